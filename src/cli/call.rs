//! `meshwork call`: one invocation, its output alone on stdout.
//!
//! The id of the invocation is drawn here, so that Ctrl-C can cancel the call at the node before its answer has told us anything. Who
//! served it and what it cost is news for a person: it goes to stderr, and only when a person is there or asked with `--explain`.

use std::time::Duration;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{
    CliError, Global,
    agent::text_of,
    client::{Client, read},
    figures,
    find::{self, Limits, Rejected, Row},
    table::Table,
};
use crate::model::{CapabilityName, ErrorCode, InvocationId, Priority, printable};

/// How long a call may take unless it is told otherwise: agents think.
const TIMEOUT_S_DEFAULT: f64 = 60.0;

/// The longest call that a node allows.
const TIMEOUT_S_MAX: f64 = 600.0;

/// How much longer than the call the client waits, so that the node's own word on a timeout arrives.
const ANSWER_GRACE: Duration = Duration::from_secs(5);

/// How long a cancelled call may hold up the end of the program.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(3);

/// How much of the error of an attempt is shown, in characters.
const ERROR_CHARS_MAX: usize = 2_000;

/// Arguments of `call`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  meshwork call text-analysis '{\"text\":\"Good morning\"}'
  meshwork call echo '\"a string is JSON too\"' --agent echo
  meshwork call data-extraction @input.json --timeout 120 --explain > output.json
  meshwork call words @text.json --stream         a line for each chunk as it comes, then the output
  meshwork call words @text.json --stream --first-chunk-timeout 10 --idle-timeout 2
  meshwork call words @text.json --priority low   refused first when places run out
  meshwork call words @text.json --parent \"$ID\"   by an agent, while it works on call $ID")]
pub(crate) struct Args {
    /// What is to be done.
    capability: CapabilityName,
    /// The input as JSON, @FILE, or - for stdin.
    #[arg(default_value = "{}", allow_negative_numbers = true)]
    input: String,
    /// Let this agent do it: its id, name, name@prefix or the beginning of its id.
    #[arg(long, value_name = "ID")]
    agent: Option<String>,
    /// How long it may take, in seconds.
    #[arg(long, value_name = "S", default_value_t = TIMEOUT_S_DEFAULT, value_parser = seconds)]
    timeout: f64,
    /// How urgent it is: HIGH, NORMAL or LOW. When places run out the less urgent are refused first.
    #[arg(long, value_name = "P", default_value_t)]
    priority: Priority,
    /// For agents that call in turn: the id of the call that the agent works on [env: MESHWORK_PARENT].
    #[arg(long, value_name = "ID")]
    parent: Option<InvocationId>,
    /// Idempotency key: a call with the same key is done once and answered alike.
    #[arg(long, value_name = "KEY")]
    key: Option<String>,
    /// Take the answer in chunks, and print each on a line of its own as it comes, before the output.
    #[arg(long)]
    stream: bool,
    /// How long the first chunk may take, in seconds.
    #[arg(long, value_name = "S", value_parser = seconds, requires = "stream")]
    first_chunk_timeout: Option<f64>,
    /// How long the pause after a chunk may be, in seconds.
    #[arg(long, value_name = "S", value_parser = seconds, requires = "stream")]
    idle_timeout: Option<f64>,
    #[command(flatten)]
    limits: Limits,
    /// Tell on stderr who was considered, with the terms of their scores, and what was tried.
    #[arg(long)]
    explain: bool,
}

fn seconds(text: &str) -> Result<f64, String> {
    let number: f64 = text.parse().map_err(|_| format!("`{text}` is not a number of seconds"))?;
    if number > 0.0 && number <= TIMEOUT_S_MAX { Ok(number) } else { Err(format!("a call may take up to {TIMEOUT_S_MAX} seconds")) }
}

/// The part of the node's answer that is told on stderr.
#[derive(Debug, Deserialize)]
struct Answer {
    #[serde(default)]
    status: String,
    #[serde(default)]
    agent_id: String,
    #[serde(default)]
    node_id: String,
    #[serde(default)]
    attempts: Value,
    #[serde(default)]
    latency_ms: Value,
    #[serde(default)]
    cost: Value,
    #[serde(default)]
    explain: Option<Explanation>,
}

#[derive(Debug, Deserialize)]
struct Explanation {
    #[serde(default)]
    candidates: Vec<Row>,
    #[serde(default)]
    rejected: Vec<Rejected>,
    #[serde(default)]
    attempts: Vec<Attempt>,
    #[serde(default)]
    total_ms: Value,
}

#[derive(Debug, Deserialize)]
struct Attempt {
    agent_id: String,
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    why: String,
    #[serde(default)]
    begun: Option<bool>,
    #[serde(default)]
    node_id: String,
    #[serde(default)]
    started_ms: f64,
    #[serde(default)]
    ended_ms: Option<f64>,
    #[serde(default)]
    outcome: Value,
}

/// Calls, unless Ctrl-C comes first.
pub(crate) async fn run(args: Args, global: &Global) -> Result<(), CliError> {
    let interrupt = async {
        // Without a handler Ctrl-C ends the process by itself, so there is nothing to wait for.
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    run_until(args, global, interrupt).await
}

/// Calls, unless `interrupt` comes first.
pub(super) async fn run_until(args: Args, global: &Global, interrupt: impl Future<Output = ()>) -> Result<(), CliError> {
    let id = InvocationId::from_random(rand::random()).to_string();
    let body = body(&args, &id, parent(&args, global)?)?;
    let client = Client::new(global)?;
    let timeout = Duration::from_secs_f64(args.timeout) + ANSWER_GRACE;
    let asked = async {
        if args.stream {
            client.post_for_events(&["v1", "invoke"], &body, timeout, |chunk| global.screen.line(chunk)).await
        } else {
            client.post(&["v1", "invoke"], &body, timeout).await
        }
    };
    let answer = tokio::select! {
        answer = asked => answer.inspect_err(|error| tell_failed(error, global))?,
        () = interrupt => return Err(cancel(&client, &id).await),
    };
    // A JSON string stays quoted: what follows in a pipe reads JSON, whatever the agent answers.
    global.screen.json(if global.json { &answer } else { answer.get("output").unwrap_or(&Value::Null) })?;
    if args.explain || global.screen.err_is_terminal() {
        // The call is done and its output out: a tale that cannot be read does not undo it.
        let told = read(&answer).map(|answer| account(&answer));
        global.screen.err(&told.unwrap_or_else(|error| format!("{}\n", error.message().unwrap_or_default())));
    }
    Ok(())
}

/// The call that the agent works on that makes this one, if an agent makes it.
fn parent(args: &Args, global: &Global) -> Result<Option<InvocationId>, CliError> {
    if args.parent.is_some() {
        return Ok(args.parent);
    }
    let Some(text) = global.env.text("MESHWORK_PARENT") else { return Ok(None) };
    text.parse().map(Some).map_err(|error| CliError::usage(format!("MESHWORK_PARENT is not the id of a call: {error}")))
}

/// The request; nothing that was not asked for is in it.
fn body(args: &Args, id: &str, parent: Option<InvocationId>) -> Result<Value, CliError> {
    let mut body = Map::new();
    let mut put = |name: &str, value: Value| drop(body.insert(name.to_owned(), value));
    put("invocation_id", json!(id));
    put("capability", json!(args.capability));
    put("input", input(&args.input)?);
    put("timeout_ms", whole_ms(args.timeout));
    if args.priority != Priority::default() {
        put("priority", json!(args.priority));
    }
    for (name, seconds) in [("first_chunk_timeout_ms", args.first_chunk_timeout), ("idle_timeout_ms", args.idle_timeout)] {
        if let Some(seconds) = seconds {
            put(name, whole_ms(seconds));
        }
    }
    if let Some(agent) = &args.agent {
        put("agent_id", json!(agent));
    }
    if let Some(parent) = parent {
        put("parent", json!(parent));
    }
    if let Some(key) = &args.key {
        put("idempotency_key", json!(key));
    }
    let constraints = args.limits.constraints();
    if !constraints.is_empty() {
        put("constraints", Value::Object(constraints));
    }
    if args.explain {
        put("explain", json!(true));
    }
    if args.stream {
        put("stream", json!(true));
    }
    Ok(Value::Object(body))
}

fn whole_ms(seconds: f64) -> Value {
    json!(Duration::from_secs_f64(seconds).as_millis().max(1))
}

pub(super) fn input(text: &str) -> Result<Value, CliError> {
    let (place, json) = match text.strip_prefix('@') {
        Some(file) => (format!("what stands in {file}"), text_of(file)?),
        None if text == "-" => ("what stands on stdin".to_owned(), text_of("-")?),
        None => ("the input".to_owned(), text.to_owned()),
    };
    serde_json::from_str(&json).map_err(|error| {
        let hint = match place.as_str() {
            "the input" => format!("a text is quoted as JSON: '{}'; a file is named with @FILE", Value::from(text)),
            _ => "the input of a call is one JSON document".to_owned(),
        };
        CliError::usage(format!("{place} is not JSON: {error}")).hint(hint)
    })
}

async fn cancel(client: &Client, id: &str) -> CliError {
    let told = client.delete(&["v1", "invocations", id], CANCEL_TIMEOUT).await;
    let error = CliError::cancelled(match told {
        Ok(_) => format!("invocation {id} was cancelled"),
        // The node cancels when the connection of the call closes, which is mostly before it reads that it shall.
        Err(error) if error.is(ErrorCode::TaskNotFound) => format!("invocation {id} was cancelled"),
        Err(error) => format!("interrupted; the node could not be told to cancel invocation {id}: {}", error.message().unwrap_or_default()),
    });
    error.with("invocation_id", id)
}

/// Tells how a call that failed came about, if that was asked for; the failure itself is told by whoever ends the program.
fn tell_failed(error: &CliError, global: &Global) {
    if let Some(Ok(explanation)) = error.detail("explain").map(read::<Explanation>) {
        global.screen.err(&story(&explanation));
    }
}

/// Who did it and how it went, for a person.
fn account(answer: &Answer) -> String {
    let explain = answer.explain.as_ref();
    let name = explain.and_then(|explain| explain.candidates.iter().find(|row| row.agent_id == answer.agent_id));
    let tries = answer.attempts.as_u64().or_else(|| answer.attempts.as_array().map(|all| all.len() as u64)).unwrap_or(1);
    explain.map(story).unwrap_or_default()
        + &format!(
            "{} by {} on {}, {}, cost {}, {tries} {}\n",
            if answer.status == "partial" { "served in part" } else { "served" },
            figures::agent(name.map(|row| row.name.as_str()).unwrap_or_default(), &answer.agent_id),
            figures::node(&answer.node_id),
            figures::figure(&answer.latency_ms, figures::millis),
            figures::money(&answer.cost),
            if tries == 1 { "attempt" } else { "attempts" },
        )
}

/// Who was considered, who was left out, who was asked and what came of it.
fn story(explain: &Explanation) -> String {
    let mut text = if explain.candidates.is_empty() { String::new() } else { find::candidates(&explain.candidates, true, false) };
    text += &find::rejections(&explain.rejected);
    text += &attempts(explain);
    match explain.total_ms.as_f64() {
        Some(ms) if !explain.attempts.is_empty() => text + &format!("{} in all\n", figures::millis(ms)),
        Some(_) | None => text,
    }
}

fn attempts(explain: &Explanation) -> String {
    // Where the node's clock begins is its own affair.
    let start = explain.attempts.first().map(|first| first.started_ms).unwrap_or_default();
    let mut table = Table::new(["attempt", "agent", "node", "after", "took", "begun", "outcome", "chosen for"]);
    let mut errors = String::new();
    for (attempt, number) in explain.attempts.iter().zip(1..) {
        let outcome = attempt.outcome.as_str().unwrap_or(figures::NOTHING);
        // A sentence is too long for a column; the table has its code.
        if outcome.contains(':') {
            errors += &format!("attempt {number}: {}\n", printable(outcome, ERROR_CHARS_MAX));
        }
        table.row([
            number.to_string(),
            figures::agent(attempt.name.as_deref().unwrap_or_default(), &attempt.agent_id),
            figures::node(&attempt.node_id),
            figures::millis(attempt.started_ms - start),
            attempt.ended_ms.map_or_else(|| figures::NOTHING.to_owned(), |ended| figures::millis(ended - attempt.started_ms)),
            attempt.begun.map_or(figures::NOTHING, |begun| if begun { "yes" } else { "no" }).to_owned(),
            outcome.split(':').next().map(figures::word).unwrap_or_default(),
            figures::word(&attempt.why),
        ]);
    }
    if table.is_empty() { String::new() } else { table.text(false) + &errors }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::error::Exit;

    #[test]
    fn the_input_is_json_from_the_line_or_a_file() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("input.json");
        std::fs::write(&file, "[1, 2]").expect("written");
        assert_eq!(input("{\"a\":1}"), Ok(json!({ "a": 1 })));
        assert_eq!(input(&format!("@{}", file.display())), Ok(json!([1, 2])));
        assert_eq!(input("@/nowhere/at/all").expect_err("no file").exit(), Exit::Usage);
    }

    #[test]
    fn text_that_is_not_json_is_refused_with_the_way_to_quote_it() {
        let screen = crate::cli::output::Screen::memory();
        let error = input("good \"morning\"").expect_err("text");
        error.print(&screen, false);
        assert_eq!(error.exit(), Exit::Usage);
        assert!(screen.pages().1.contains(r#"'"good \"morning\""'"#), "{}", screen.pages().1);
    }

    #[test]
    fn a_timeout_is_a_number_of_seconds_within_bounds() {
        assert_eq!(seconds("1.5"), Ok(1.5));
        for text in ["0", "-1", "601", "NaN", "inf", "soon"] {
            assert!(seconds(text).is_err(), "{text}");
        }
    }
}
