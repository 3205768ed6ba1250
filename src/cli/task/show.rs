//! `meshwork task status`, `result`, `watch`, `cancel` and `list`: tasks that a node has.

use serde_json::{Value, json};

use super::{
    super::{
        CliError, Global,
        client::{ANSWER_TIMEOUT, Client, read},
        figures,
        table::{Table, facts},
    },
    document::{Listing, Status, Step, amount, moment, now_ms, reason},
    duration, outcome, resolve, seconds, short,
    wait::{self, Show},
};
use crate::model::ErrorCode;
use crate::node::LIST_MAX;

/// The most tasks that one list shows, in as many pages of the node as it takes.
const LIMIT_MAX: usize = 1_000;

/// Arguments of `task status`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  meshwork task status 1f3a9c02
  meshwork task status 1f3a9c02 --explain     with every attempt")]
pub(super) struct StatusArgs {
    /// The task: its id or the beginning of it.
    id: String,
    /// Show every attempt too: by whom, when, and what came of it.
    #[arg(long)]
    explain: bool,
}

/// Arguments of `task result`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  meshwork task result 1f3a9c02 > result.json
  meshwork task result 1f3a9c02 --wait --timeout 600
  meshwork task result 1f3a9c02 --json | jq .ledger")]
pub(super) struct ResultArgs {
    /// The task: its id or the beginning of it.
    id: String,
    /// Wait for the end of the task.
    #[arg(long)]
    wait: bool,
    /// How long to wait, in seconds.
    #[arg(long, value_name = "S", value_parser = seconds, requires = "wait")]
    timeout: Option<f64>,
}

/// Arguments of `task watch`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  meshwork task watch 1f3a9c02

Where stderr is no terminal, a line is written per event. It ends with the task, with the result on stdout and the exit codes of `run`.")]
pub(super) struct WatchArgs {
    /// The task: its id or the beginning of it.
    id: String,
}

/// Arguments of `task cancel`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  meshwork task cancel 1f3a9c02")]
pub(super) struct CancelArgs {
    /// The task: its id or the beginning of it.
    id: String,
}

/// Arguments of `task list`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  meshwork task list
  meshwork task list --status EXECUTING --limit 5
  meshwork task list --tag nightly --json | jq -r '.tasks[].task_id'")]
pub(super) struct ListArgs {
    /// Only those with this status: PENDING, EXECUTING, COMPLETED or FAILED.
    #[arg(long, value_name = "S", ignore_case = true, value_parser = ["PENDING", "EXECUTING", "COMPLETED", "FAILED"])]
    status: Option<String>,
    /// Only those with this tag.
    #[arg(long, value_name = "T")]
    tag: Option<String>,
    /// How many at most, up to 1000, which are asked for 500 at a time; 50 without it.
    #[arg(long, value_name = "N", value_parser = limit)]
    limit: Option<usize>,
    /// Those after the last of another list, which names this.
    #[arg(long, value_name = "CURSOR")]
    after: Option<String>,
}

/// Shows how far a task is.
pub(super) async fn status(args: StatusArgs, global: &Global) -> Result<(), CliError> {
    let client = Client::new(global)?;
    let id = resolve(&client, &args.id).await?;
    let query: &[(&str, &str)] = if args.explain { &[("explain", "true")] } else { &[] };
    let answer = client.get(&["aitp", "tasks", &id], query).await?;
    global.answer(&answer, || {
        let task: Status = read(&answer)?;
        let steps = steps(&task, global.colour());
        let attempts = if args.explain { attempts(&task, global.colour()) } else { String::new() };
        Ok(summary(&task) + &steps + &attempts)
    })
}

/// Prints the result, after the end of the task if asked to wait for it.
pub(super) async fn result(args: ResultArgs, global: &Global, interrupt: impl Future<Output = ()>) -> Result<(), CliError> {
    let client = Client::new(global)?;
    let id = resolve(&client, &args.id).await?;
    let document = match client.get(&["aitp", "tasks", &id, "result"], &[]).await {
        Err(error) if error.is(ErrorCode::NotFinished) && args.wait => {
            wait::for_result(&client, global, &id, Show::fitting(false, global), duration(args.timeout), interrupt).await?
        }
        Err(error) if error.is(ErrorCode::NotFinished) => {
            return Err(error.hint(format!("`meshwork task result {} --wait` waits for it", short(&id))));
        }
        answer => answer?,
    };
    outcome::tell(&document, global)
}

/// Follows a task to its end.
pub(super) async fn watch(args: WatchArgs, global: &Global, interrupt: impl Future<Output = ()>) -> Result<(), CliError> {
    let client = Client::new(global)?;
    let id = resolve(&client, &args.id).await?;
    // A task that does not exist and a node that is not there are told at once, not waited for.
    client.get(&["aitp", "tasks", &id], &[]).await?;
    outcome::tell(&wait::for_result(&client, global, &id, Show::fitting(true, global), None, interrupt).await?, global)
}

/// Cancels a task.
pub(super) async fn cancel(args: CancelArgs, global: &Global) -> Result<(), CliError> {
    let client = Client::new(global)?;
    let id = resolve(&client, &args.id).await?;
    let answer = client.post(&["aitp", "tasks", &id, "cancel"], &json!({}), ANSWER_TIMEOUT).await?;
    global.answer(&answer, || {
        let task: Status = read(&answer)?;
        let word = if task.has_ended() { "cancelled" } else { "is being cancelled:" };
        Ok(format!("{word} {} ({})\n", figures::word(&task.name), figures::word(&id)))
    })
}

/// Lists tasks.
pub(super) async fn list(args: ListArgs, global: &Global) -> Result<(), CliError> {
    let client = Client::new(global)?;
    let mut answer = page(&client, &args, args.limit, args.after.as_deref()).await?;
    // A node refuses to give more at once than one page holds.
    while let (Some(limit), Some(next)) = (args.limit, answer["next"].as_str().map(str::to_owned)) {
        let Some(missing) = limit.checked_sub(rows(&answer).len()).filter(|missing| *missing > 0) else { break };
        let more = page(&client, &args, Some(missing), Some(&next)).await?;
        let (listed, came) = (rows(&answer), rows(&more));
        if came.is_empty() {
            break;
        }
        let both = [listed, came].concat();
        answer = json!({ "tasks": both, "next": more["next"] });
    }
    global.answer(&answer, || {
        let listing: Listing = read(&answer)?;
        if listing.tasks.is_empty() {
            return Ok("no tasks\n".to_owned());
        }
        let mut table = Table::new(["task", "name", "status", "done", "steps", "created", "took", "cost", "tags"]);
        for task in &listing.tasks {
            table.row([
                short(&task.task_id),
                figures::word(&task.name),
                task.standing(),
                format!("{} %", figures::number(task.percent_complete)),
                task.total_steps.to_string(),
                moment(task.created_at),
                task.elapsed_ms(now_ms()).map_or_else(|| figures::NOTHING.to_owned(), figures::span),
                format!("{} {}", amount(&task.cost_so_far), task.currency),
                task.tags.join(", "),
            ]);
        }
        let more = listing.next.filter(|next| !next.is_null());
        let more = more.map(|next| format!("there are more: --after {}\n", figures::plain(&next))).unwrap_or_default();
        Ok(table.text(global.colour()) + &more)
    })
}

/// A page of the list, as the node gives it.
async fn page(client: &Client, args: &ListArgs, limit: Option<usize>, after: Option<&str>) -> Result<Value, CliError> {
    let (limit, status) = (limit.map(|limit| limit.min(LIST_MAX).to_string()), args.status.as_ref().map(|status| status.to_uppercase()));
    let given = [("status", status.as_deref()), ("tag", args.tag.as_deref()), ("limit", limit.as_deref()), ("after", after)];
    let query: Vec<(&str, &str)> = given.into_iter().filter_map(|(name, value)| Some((name, value?))).collect();
    client.get(&["aitp", "tasks"], &query).await
}

fn rows(page: &Value) -> &[Value] {
    page["tasks"].as_array().map_or(&[], Vec::as_slice)
}

fn limit(text: &str) -> Result<usize, String> {
    let limit = text.parse().ok().filter(|limit| (1..=LIMIT_MAX).contains(limit));
    limit.ok_or_else(|| format!("a list shows 1 to {LIMIT_MAX} tasks; --after gives those that come behind"))
}

fn summary(task: &Status) -> String {
    let ended = |step: &&Step| step.status == "SUCCESS";
    let done = task.progress.steps.iter().filter(ended).count();
    let total = task.progress.total_steps.max(u64::try_from(task.progress.steps.len()).unwrap_or(u64::MAX));
    let mut lines = vec![
        ("task", figures::word(&task.task_id)),
        ("name", figures::word(&task.name)),
        ("status", task.standing()),
        ("progress", format!("{done} of {total} steps, {} %", figures::number(task.progress.percent_complete))),
        ("created", moment(task.created_at)),
    ];
    lines.extend(task.elapsed_ms(now_ms()).map(|ms| (if task.has_ended() { "took" } else { "for" }, figures::span(ms))));
    if !task.has_ended() {
        lines.extend(task.deadline.map(|deadline| ("deadline", moment(Some(deadline)))));
        lines.extend(task.estimated_completion.map(|end| ("expected", moment(Some(end)))));
    }
    lines.push(("cost", task.cost()));
    lines.extend(task.error.as_ref().filter(|error| !error.is_null()).map(|error| ("error", reason(error))));
    facts(&lines) + "\n"
}

fn steps(task: &Status, colour: bool) -> String {
    let mut table = Table::new(["step", "subtask", "capability", "status", "agent", "node", "attempt", "took", "cost", "after"]);
    let mut notes = String::new();
    for step in &task.progress.steps {
        let or_nothing = |text: String| if text.is_empty() { figures::NOTHING.to_owned() } else { text };
        table.row([
            figures::plain(&step.step_id),
            step.label(),
            figures::word(&step.capability),
            step.state(),
            or_nothing(step.who()),
            or_nothing(step.node()),
            step.attempt.filter(|attempt| *attempt > 0).map_or_else(|| figures::NOTHING.to_owned(), |attempt| attempt.to_string()),
            step.duration_ms.map_or_else(|| figures::NOTHING.to_owned(), figures::millis),
            if step.cost.is_null() { figures::NOTHING.to_owned() } else { format!("{} {}", amount(&step.cost), task.currency) },
            or_nothing(step.after.join(", ")),
        ]);
        if let Some(child) = &step.child {
            notes += &format!("  {}: is task {} of node {}\n", step.label(), figures::word(&child.task_id), figures::node(&child.node_id));
        }
        let note = step.error.as_ref().map(reason).or_else(|| step.waits());
        if let Some(note) = note {
            notes += &format!("  {}: {note}\n", step.label());
        }
    }
    if table.is_empty() { "no steps yet\n".to_owned() } else { table.text(colour) + &notes }
}

fn attempts(task: &Status, colour: bool) -> String {
    let mut table = Table::new(["subtask", "attempt", "agent", "node", "chosen", "accepted", "ended", "outcome"]);
    let mut errors = String::new();
    for (step, attempt) in task.progress.steps.iter().flat_map(|step| step.attempts.iter().map(move |attempt| (step, attempt))) {
        let at = |ms: Option<f64>| ms.map_or_else(|| figures::NOTHING.to_owned(), |ms| format!("+{}", figures::millis(ms)));
        let name = if step.agent_id.as_deref() == Some(&attempt.agent_id) { step.agent.as_deref() } else { None };
        table.row([
            step.label(),
            figures::plain(&attempt.attempt),
            figures::agent(name.unwrap_or_default(), &attempt.agent_id),
            figures::node(&attempt.node_id),
            at(attempt.chosen_ms),
            at(attempt.accepted_ms),
            at(attempt.ended_ms),
            attempt.outcome.as_str().map_or_else(|| figures::NOTHING.to_owned(), figures::word),
        ]);
        if let Some(error) = attempt.error.as_ref().filter(|error| !Value::is_null(error)) {
            errors += &format!("  {} attempt {}: {}\n", step.label(), figures::plain(&attempt.attempt), reason(error));
        }
    }
    if table.is_empty() { String::new() } else { format!("\n{}{errors}", table.text(colour)) }
}
