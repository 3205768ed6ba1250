//! `meshwork task`: tasks of several steps (AITP), which run at a node and outlive whoever started them.
//!
//! The node owns a task from the moment that it has answered a submission. What happens here is waiting and showing: a wait that is
//! broken off leaves the task alone, and a node that is killed and comes back does not end one (`cli::feed`). `document` is what the verbs
//! read of the node's answers, `progress` what a terminal shows of a running task, `outcome` how an ended one becomes output and exit code.
//!
//! A task may be named by the beginning of its id, because nobody types the whole of one. Which it is the node says, which has
//! them all; a beginning that fits two tasks names none.

mod document;
mod events;
mod local;
mod outcome;
mod plan;
mod progress;
mod run;
mod show;
mod wait;

#[cfg(test)]
mod tests;

use std::time::Duration;

use clap::Subcommand;
use serde_json::Value;

use super::{
    CliError, Global,
    client::{Client, read},
    figures,
};
use document::{SHORT_CHARS, Status};
pub(super) use local::watch;

/// How many characters of an id name a task at least; the node takes no fewer either.
const ID_CHARS_MIN: usize = 4;

/// The characters of a whole id, which needs no looking up.
const ID_CHARS: usize = 36;

/// The longest wait that can be asked for, in seconds: thirty days.
const TIMEOUT_S_MAX: f64 = 2_592_000.0;

/// Arguments of `task`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "A task is a file in YAML or JSON that names steps, what each needs, and what is to come out. It runs at the node: \
breaking off a wait does not end it. A task is named by its id or the beginning of it.

Example:
  meshwork task plan report.yaml                        who would do what, and for how much
  meshwork task run report.yaml --input topic=bees      run it, wait, and print its result
  meshwork task list --status EXECUTING"
)]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run a task and wait for its end; its result alone goes to stdout.
    Run(run::RunArgs),
    /// Submit a task and print its id, without waiting.
    Submit(run::SubmitArgs),
    /// Show who would do each step and what it would cost; no step is run.
    Plan(plan::Args),
    /// Show how far a task is, step by step.
    Status(show::StatusArgs),
    /// Print the result of a task that has ended.
    Result(show::ResultArgs),
    /// Have a task end without a result.
    Cancel(show::CancelArgs),
    /// List tasks, the newest first.
    List(show::ListArgs),
    /// Show what has happened to a task, one line per event.
    Events(events::Args),
    /// Follow a running task as `run` does.
    Watch(show::WatchArgs),
}

/// Runs one of them.
pub(crate) async fn run(args: Args, global: &Global) -> Result<(), CliError> {
    run_until(args, global, interrupt()).await
}

/// Runs one of them, unless `interrupt` comes while it waits for a task.
pub(super) async fn run_until(args: Args, global: &Global, interrupt: impl Future<Output = ()>) -> Result<(), CliError> {
    match args.verb {
        Verb::Run(args) => run::run(args, global, interrupt).await,
        Verb::Submit(args) => run::submit_only(args, global).await,
        Verb::Plan(args) => plan::run(args, global).await,
        Verb::Status(args) => show::status(args, global).await,
        Verb::Result(args) => show::result(args, global, interrupt).await,
        Verb::Cancel(args) => show::cancel(args, global).await,
        Verb::List(args) => show::list(args, global).await,
        Verb::Events(args) => events::run(args, global).await,
        Verb::Watch(args) => show::watch(args, global, interrupt).await,
    }
}

async fn interrupt() {
    // Without a handler Ctrl-C ends the process by itself, so there is nothing to wait for.
    if tokio::signal::ctrl_c().await.is_err() {
        std::future::pending::<()>().await;
    }
}

fn seconds(text: &str) -> Result<f64, String> {
    let number: f64 = text.parse().map_err(|_| format!("`{text}` is not a number of seconds"))?;
    if number > 0.0 && number <= TIMEOUT_S_MAX { Ok(number) } else { Err(format!("a wait may take up to {TIMEOUT_S_MAX} seconds")) }
}

fn duration(seconds: Option<f64>) -> Option<Duration> {
    seconds.map(Duration::from_secs_f64)
}

/// The id of the task that was named by all or the beginning of it: the node knows all its tasks, however old.
async fn resolve(client: &Client, named: &str) -> Result<String, CliError> {
    let is_id = |c: char| c.is_ascii_hexdigit() || c == '-';
    let wrong = |why: String| Err(CliError::usage(why).hint("`meshwork task list` shows the ids"));
    // Anything else could name another path of the API.
    if !named.chars().all(is_id) {
        return wrong(format!("`{named}` is no id of a task: one consists of 0 to 9, a to f and -"));
    }
    if named.len() < ID_CHARS_MIN {
        return wrong(format!("`{named}` is too little of an id: at least {ID_CHARS_MIN} characters name a task"));
    }
    if named.len() >= ID_CHARS {
        return Ok(named.to_owned());
    }
    match client.get(&["aitp", "tasks", named], &[]).await {
        Ok(task) => Ok(read::<Status>(&task)?.task_id),
        Err(error) => Err(match error.detail("candidates") {
            Some(Value::Array(candidates)) => {
                let fitting: Vec<String> = candidates.iter().map(figures::plain).collect();
                let message = format!("`{named}` is the beginning of several tasks: {}", fitting.join(", "));
                CliError::usage(message).hint("write more of the id").with("candidates", fitting)
            }
            Some(_) | None => error,
        }),
    }
}

/// Enough of an id to name the task to a person, and to this program.
fn short(id: &str) -> String {
    figures::word(&id.chars().take(SHORT_CHARS).collect::<String>())
}
