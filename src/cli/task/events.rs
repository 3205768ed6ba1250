//! `meshwork task events`: what has happened to a task, from its journal.
//!
//! With `--json` each event is the node's document on a line; for a person it is a moment, a word and what belongs to it.

use std::{pin::pin, time::Duration};

use futures::StreamExt as _;
use serde_json::Value;
use tokio::time::timeout;

use super::{
    super::{
        CliError, Global,
        client::{Client, read},
        feed::{News, feed},
        figures,
    },
    document::{REASON_CHARS_MAX, Status, reason},
    resolve,
};
use crate::model::printable;

/// The events of a task that runs have been told once nothing more comes for so long.
const PAUSE: Duration = Duration::from_millis(500);

/// What a line says in its own way, or not at all.
const TOLD: [&str; 10] = ["index", "task_id", "event", "at_ms", "subtask_id", "attempt", "agent_id", "agent", "node_id", "error"];

/// Facts of one event that are shown; `--json` has them all.
const FACTS_MAX: usize = 8;

/// Arguments of `task events`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  meshwork task events 1f3a9c02
  meshwork task events 1f3a9c02 --follow
  meshwork task events 1f3a9c02 --after 12 --json | jq -c 'select(.event == \"attempt_failed\")'")]
pub(super) struct Args {
    /// The task: its id or the beginning of it.
    id: String,
    /// Only those after the event with this number.
    #[arg(long, value_name = "N")]
    after: Option<u64>,
    /// Go on until the task has ended.
    #[arg(long)]
    follow: bool,
}

/// Prints the events.
pub(super) async fn run(args: Args, global: &Global) -> Result<(), CliError> {
    let client = Client::new(global)?;
    let id = resolve(&client, &args.id).await?;
    // A task that does not exist and a node that is not there are told at once, not waited for.
    let task: Status = read(&client.get(&["aitp", "tasks", &id], &[]).await?)?;
    let all = args.follow || task.has_ended();
    let mut feed = pin!(feed(&client, &["aitp", "tasks", &id, "events"], &[], args.after));
    loop {
        let news = match timeout(PAUSE, feed.next()).await {
            Ok(news) => news,
            Err(_) if all => feed.next().await,
            Err(_) => return Ok(()),
        };
        match news.transpose()? {
            Some(News::Event(event)) if global.json => global.screen.line(&event)?,
            Some(News::Event(event)) => global.screen.out(&(line(&event) + "\n"))?,
            Some(News::Lost(why)) if args.follow => global.screen.err(&format!("{}; trying again\n", printable(&why, REASON_CHARS_MAX))),
            Some(News::Lost(why)) => return Err(CliError::unreachable(why)),
            Some(News::Back) => global.screen.err("connected again\n"),
            None => return Ok(()),
        }
    }
}

/// An event on a line, for a person.
pub(super) fn line(event: &Value) -> String {
    let text = |name: &str| event.get(name).and_then(Value::as_str);
    let mut line = format!("{}  {:<16}", time(event.get("at_ms")), text("event").map_or_else(|| figures::plain(event), figures::word));
    let mut add = |part: String| line += &format!("  {part}");
    if let Some(subtask) = text("subtask_id") {
        add(figures::word(subtask));
    }
    if let Some(attempt) = event.get("attempt").filter(|attempt| !attempt.is_null()) {
        add(format!("attempt {}", figures::plain(attempt)));
    }
    if let Some(id) = text("agent_id") {
        add(figures::agent(text("agent").unwrap_or_default(), id));
    }
    if let Some(node) = text("node_id") {
        add(format!("on {}", figures::node(node)));
    }
    let others = event.as_object().into_iter().flatten().filter(|(name, value)| !TOLD.contains(&name.as_str()) && !value.is_null());
    for (name, value) in others.take(FACTS_MAX) {
        add(format!("{} {}", figures::word(name), figures::plain(value)));
    }
    if let Some(error) = event.get("error").filter(|error| !error.is_null()) {
        add(reason(error));
    }
    line.trim_end().to_owned()
}

/// The time of day in UTC, to the millisecond.
fn time(at_ms: Option<&Value>) -> String {
    let Some(ms) = at_ms.and_then(Value::as_u64) else { return figures::NOTHING.to_owned() };
    let (hours, minutes, seconds) = (ms / 3_600_000 % 24, ms / 60_000 % 60, ms / 1_000 % 60);
    format!("{hours:02}:{minutes:02}:{seconds:02}.{:03}", ms % 1_000)
}
