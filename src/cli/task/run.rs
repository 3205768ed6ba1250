//! `meshwork task run` and `submit`: a file and some values become a task.
//!
//! A submission carries a key that is drawn here, so that one whose answer was lost can be sent again and is still one task. From the
//! answer on the task is the node's: breaking off the wait changes nothing about it.

use std::pin::pin;

use serde_json::{Map, Value, json};

use super::{
    super::{
        CliError, Global,
        agent::text_of,
        client::{Client, read},
        feed::patiently,
    },
    document::Status,
    duration, outcome, seconds,
    wait::{self, Show},
};
use crate::cli::task_file;
use crate::model::{ErrorCode, Failure, InvocationId};

/// How often a submission is sent while no answer comes.
const SUBMIT_ATTEMPTS_MAX: usize = 4;

/// Which task, with which values.
#[derive(Debug, clap::Args)]
pub(super) struct Given {
    /// The task, in YAML or JSON; - for stdin.
    pub(super) file: String,
    /// A value of the task's input: JSON, else a text; NAME=@FILE is the text of a file.
    #[arg(long, value_name = "NAME=VALUE", value_parser = assignment)]
    pub(super) input: Vec<(String, Value)>,
}

/// Arguments of `task run`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  meshwork task run report.yaml --input topic=bees --input pages=3
  meshwork task run report.yaml --input text=@notes.txt > result.json
  meshwork task run report.yaml --watch 2> progress.log     a line per event
  meshwork task run report.yaml --timeout 60 || meshwork task list

On a terminal a live view on stderr shows who does what. Ctrl-C and --timeout end the wait and leave the task running; a node that goes \
away and comes back does not end the wait. The result alone goes to stdout, as JSON. Exit code 0 for success, also in part; 1 if the \
task failed or was cancelled; 4 if --timeout ran out.")]
pub(super) struct RunArgs {
    #[command(flatten)]
    given: Given,
    /// Idempotency key: the same task with the same key is one task, however often it is submitted.
    #[arg(long, value_name = "KEY")]
    key: Option<String>,
    /// Tell every event on stderr where no live view can be shown.
    #[arg(long)]
    watch: bool,
    /// How long to wait for the end, in seconds; without it as long as it takes.
    #[arg(long, value_name = "S", value_parser = seconds)]
    timeout: Option<f64>,
}

/// Arguments of `task submit`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  meshwork task submit report.yaml --input topic=bees
  ID=$(meshwork task submit report.yaml --key report-of-monday)
  meshwork task result \"$ID\" --wait")]
pub(super) struct SubmitArgs {
    #[command(flatten)]
    given: Given,
    /// Idempotency key: the same task with the same key is one task, however often it is submitted.
    #[arg(long, value_name = "KEY")]
    key: Option<String>,
}

/// Submits, waits and prints the result.
pub(super) async fn run(args: RunArgs, global: &Global, interrupt: impl Future<Output = ()>) -> Result<(), CliError> {
    let (task, key) = (definition(&args.given.file, args.given.input)?, key(args.key));
    let client = Client::new(global)?;
    let mut interrupt = pin!(interrupt);
    let answer = tokio::select! {
        answer = submit(&client, &task, &key) => answer?,
        () = &mut interrupt => {
            let message = "interrupted before the node answered; it may have taken the task";
            let hint = format!("the same command with --key {key} submits it only if it has not, and follows it");
            return Err(CliError::from(Failure::new(ErrorCode::NotFinished, message)).hint(hint));
        }
    };
    let id = read::<Status>(&answer)?.task_id;
    let show = Show::fitting(args.watch, global);
    let result = wait::for_result(&client, global, &id, show, duration(args.timeout), interrupt).await?;
    outcome::tell(&result, global)
}

/// Submits and prints the id.
pub(super) async fn submit_only(args: SubmitArgs, global: &Global) -> Result<(), CliError> {
    let (task, key) = (definition(&args.given.file, args.given.input)?, key(args.key));
    let answer = submit(&Client::new(global)?, &task, &key).await?;
    global.answer(&answer, || Ok(super::figures::word(&read::<Status>(&answer)?.task_id) + "\n"))
}

async fn submit(client: &Client, task: &Value, key: &str) -> Result<Value, CliError> {
    patiently(SUBMIT_ATTEMPTS_MAX, || client.post_once(&["aitp", "tasks"], task, key))
        .await
        .map_err(|error| error.with("idempotency_key", key))
}

fn key(given: Option<String>) -> String {
    given.unwrap_or_else(|| InvocationId::from_random(rand::random()).to_string())
}

/// The task of a file with values put in.
pub(super) fn definition(file: &str, input: Vec<(String, Value)>) -> Result<Value, CliError> {
    let mut document = task_file::read(file)?;
    if input.is_empty() {
        return Ok(document);
    }
    let not_an_object = |what: &str| CliError::usage(format!("{what} of {file} is no object, so --input cannot put anything into it"));
    // Where the file follows the draft's sections, the values belong to the section of the task.
    let place = if document.get("Task").is_some_and(Value::is_object) { document.get_mut("Task") } else { Some(&mut document) };
    let task = place.and_then(Value::as_object_mut).ok_or_else(|| not_an_object("the document"))?;
    let parameters = task.entry("parameters").or_insert_with(|| json!(Map::new()));
    parameters.as_object_mut().ok_or_else(|| not_an_object("`parameters`"))?.extend(input);
    Ok(document)
}

/// `NAME=VALUE`, where the value is JSON if it can be read so, the text of a file after `@`, else a text.
fn assignment(text: &str) -> Result<(String, Value), String> {
    let (name, value) = text.split_once('=').ok_or_else(|| format!("`{text}` is not NAME=VALUE"))?;
    if name.is_empty() {
        return Err(format!("`{text}` has no name before the ="));
    }
    let value = match value.strip_prefix('@') {
        Some(file) => Value::String(text_of(file).map_err(|error| error.message().unwrap_or_default().to_owned())?),
        None => serde_json::from_str(value).unwrap_or_else(|_| Value::from(value)),
    };
    Ok((name.to_owned(), value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_json_if_it_can_be_else_a_text() {
        for (text, value) in [
            ("n=3", json!(3)),
            ("n=3 bees", json!("3 bees")),
            ("n=[1,\"2\"]", json!([1, "2"])),
            ("n=a=b", json!("a=b")),
            ("n=", json!("")),
            ("n=\"3\"", json!("3")),
        ] {
            assert_eq!(assignment(text), Ok(("n".to_owned(), value)), "{text}");
        }
        for text in ["n", "=3", "n=@/nowhere/at/all"] {
            assert!(assignment(text).is_err(), "{text}");
        }
    }

    #[test]
    fn values_go_where_the_file_keeps_them() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("task.json");
        let file = path.display().to_string();
        let put = |document: &Value| {
            std::fs::write(&path, document.to_string()).expect("written");
            definition(&file, vec![("a".to_owned(), json!(2))])
        };
        assert_eq!(put(&json!({ "parameters": { "a": 1, "b": 1 } })), Ok(json!({ "parameters": { "a": 2, "b": 1 } })));
        assert_eq!(put(&json!({ "Task": {}, "Subtasks": [] })), Ok(json!({ "Task": { "parameters": { "a": 2 } }, "Subtasks": [] })));
        for wrong in [json!([1]), json!({ "parameters": 1 })] {
            assert!(put(&wrong).is_err(), "{wrong}");
        }
    }
}
