//! A task as clients see it: its status, its result, its row in a list, its events (AITP 5.3, 7.2, 8; rows AITP-7, AITP-10, AITP-11).
//!
//! Every document is made from the state alone, so it says the same on the node that ran the task and on one that only replayed it.
//! Costs are JSON numbers with the digits of the decimal. What agents call themselves is made printable here; failures were when they
//! were made. Points in time are seconds since 1970 and spans milliseconds, as the draft has them.

use rust_decimal::Decimal;
use serde::Serialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use super::definition::Definition;
use super::ledger::Ledger;
use super::state::{Attempt, Part, Phase, State, Status, failure_of, number};
use crate::model::{Failure, NodeId, TaskId, Timestamp, printable};
use crate::wire::task::{Event, Fence, Outcome, Reason, Text};

/// How much of a name is shown.
const NAME_CHARS_MAX: usize = 200;
/// How many of the subtasks that another one waits for are named.
const WAITS_SHOWN_MAX: usize = 3;

/// What a submission is answered with (AITP 8.1).
pub fn receipt(state: &State) -> Value {
    json!({"task_id": state.id, "status": state.status().as_str(), "created_at": seconds(state.created)})
}

/// The same for a task of which its row in a list is at hand.
pub fn receipt_of(summary: &Value) -> Value {
    json!({"task_id": summary["task_id"], "status": summary["status"], "created_at": summary["created_at"]})
}

/// The status document (AITP 8.2); with `explain` each step tells its attempts and how their agents were chosen.
pub fn status(state: &State, home: NodeId, explain: bool, now: Timestamp) -> Value {
    let definition = &state.definition;
    let End { outcome, reason, error, at } = end(state);
    let progress = progress(state, explain, now);
    json!({
        "task_id": state.id,
        "name": printable(&definition.name, NAME_CHARS_MAX),
        "description": definition.description,
        "goal": definition.goal,
        "status": state.status().as_str(),
        "outcome": outcome,
        "reason": reason,
        "error": error,
        "home_node_id": home,
        "priority": definition.priority,
        "tags": definition.tags,
        "created_by": definition.created_by.as_deref().map(|name| printable(name, NAME_CHARS_MAX)),
        "created_at": seconds(state.created),
        "started_at": started(state).map(seconds),
        "ended_at": at.map(seconds),
        "deadline": definition.deadline.map(seconds),
        "parent": definition.parent.as_ref().map(|parent| {
            json!({
                "node_id": parent.home, "task_id": parent.task, "subtask_id": parent.subtask.as_deref().map(|id| printable(id, NAME_CHARS_MAX)),
                "hops": parent.hops.len(),
            })
        }),
        "current_step": progress["current_step"],
        "estimated_completion": estimated_completion(state, now).map(seconds),
        "cost_so_far": cost(state.ledger.spent()),
        "currency": currency(&state.ledger),
        "budget": state.ledger.budget().map(|budget| cost(budget.amount)),
        "progress": progress,
    })
}

/// The task's row in a list.
pub fn summary(state: &State) -> Value {
    let definition = &state.definition;
    let End { outcome, reason, error: _, at } = end(state);
    json!({
        "task_id": state.id,
        "name": printable(&definition.name, NAME_CHARS_MAX),
        "status": state.status().as_str(),
        "outcome": outcome,
        "reason": reason,
        "priority": definition.priority,
        "tags": definition.tags,
        "created_at": seconds(state.created),
        "ended_at": at.map(seconds),
        "percent_complete": percent(state),
        "total_steps": state.parts.len(),
        "cost_so_far": cost(state.ledger.spent()),
        "currency": currency(&state.ledger),
    })
}

/// The result document (AITP 8.3). The result itself may be large, so it goes through as the text that it is.
#[derive(Debug, Serialize)]
pub struct ResultDocument<'a> {
    task_id: TaskId,
    status: &'static str,
    outcome: Option<&'static str>,
    reason: Option<&'static str>,
    error: Value,
    result: Option<&'a RawValue>,
    /// Subtasks that were not done, where the rest was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    missing: Option<Vec<&'a str>>,
    cost: Value,
    currency: String,
    execution_time_ms: u64,
    ledger: Value,
}

/// The result document of a task that has ended; `None` before.
pub fn result<'a>(state: &'a State, result: Option<&'a RawValue>) -> Option<ResultDocument<'a>> {
    let ended = state.end.as_ref()?;
    let End { outcome, reason, error, at: _ } = end(state);
    let undone = || {
        let steps = state.parts.iter().zip(&state.definition.subtasks);
        steps.filter(|(part, _)| part.status != Status::Success).map(|(_, subtask)| subtask.id.as_str()).collect()
    };
    Some(ResultDocument {
        task_id: state.id,
        status: state.status().as_str(),
        outcome,
        reason,
        error,
        result,
        missing: (ended.outcome == Outcome::Partial).then(undone),
        cost: cost(state.ledger.spent()),
        currency: currency(&state.ledger),
        execution_time_ms: ms(ended.at, started(state).unwrap_or(state.created)),
        ledger: ledger(state),
    })
}

/// One event of the task's stream: the `index`th entry of its journal.
pub fn event(index: u64, task: TaskId, event: &Event, at: Timestamp, definition: &Definition) -> Value {
    let mut document = Map::new();
    let mut put = |name: &str, value: Value| {
        document.insert(name.to_owned(), value);
    };
    put("index", index.into());
    put("task_id", json!(task));
    put("event", event.name().into());
    put("at_ms", at.as_ms().into());
    let mut about = |subtask: u32, attempt: Option<u32>, facts: Value| {
        let place = usize::try_from(subtask).ok();
        put("subtask_id", json!(place.and_then(|place| definition.subtasks.get(place)).map(|subtask| subtask.id.as_str())));
        if let Some(attempt) = attempt {
            put("attempt", attempt.into());
        }
        if let Value::Object(facts) = facts {
            facts.into_iter().for_each(|(name, fact)| put(&name, fact));
        }
    };
    let mut attempt = |fence: Fence, facts: Value| about(fence.subtask, Some(fence.attempt), facts);
    let price = |charge: &Option<crate::wire::task::Charge>| charge.as_ref().map(|charge| cost(charge.total));
    match event {
        Event::Submitted(_) | Event::CancelRequested => {}
        Event::Planned { subtasks: _, by, bill: _ } => put("decomposed_by", printable(by, NAME_CHARS_MAX).into()),
        Event::Dispatched(dispatched) => attempt(
            dispatched.fence,
            json!({
                "agent_id": dispatched.agent,
                "agent": printable(&dispatched.name, NAME_CHARS_MAX),
                "node_id": dispatched.node,
                "estimated_cost": dispatched.estimate.map(cost),
            }),
        ),
        Event::CalledBack { delivered } => put("delivered", (*delivered).into()),
        Event::Delegated { fence, task, node } => attempt(*fence, json!({"child_task_id": task, "child_node_id": node})),
        Event::Accepted(fence) | Event::Validated(fence) | Event::Requeued(fence) | Event::ContextWritten(fence) => {
            attempt(*fence, Value::Null);
        }
        Event::Rejected { fence, expired, failure } => attempt(*fence, json!({"expired": expired, "error": kept_error(failure)})),
        Event::ResultReceived { fence, output, charge, context_ops } => {
            let mut facts = json!({"output_bytes": output.len(), "cost": price(charge)});
            if let Some(ops) = context_ops {
                facts["context_ops_bytes"] = ops.len().into();
            }
            attempt(*fence, facts);
        }
        Event::AttemptFailed { fence, loss: _, failure, retry_in, charge } => {
            let retry_in = retry_in.map(|span| u64::try_from(span.as_millis()).unwrap_or(u64::MAX));
            attempt(*fence, json!({"error": kept_error(failure), "retry_in_ms": retry_in, "cost": price(charge)}));
        }
        Event::Deferred { subtask, span, failure } => {
            let span = u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
            about(*subtask, None, json!({"error": kept_error(failure), "retry_in_ms": span}));
        }
        Event::SubtaskFailed { subtask, reason, failure } => {
            about(*subtask, None, json!({"reason": reason_word(*reason), "error": kept_error(failure)}));
        }
        Event::DuplicateResult { fence, charge } => attempt(*fence, json!({"cost": price(charge)})),
        Event::Ended { outcome, reason, failure } => {
            put("outcome", outcome_word(*outcome).into());
            put("reason", json!(reason.map(reason_word)));
            put("error", failure.as_ref().map_or(Value::Null, kept_error));
        }
    }
    Value::Object(document)
}

/// A failure as documents show it.
pub fn error(failure: &Failure) -> Value {
    json!({
        "code": failure.code,
        "number": failure.code.number(),
        "message": failure.message,
        "retryable": failure.retryable,
        "details": failure.details,
    })
}

/// How a task ended, as clients see it.
pub fn outcome_word(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Success => "success",
        Outcome::Partial => "partial",
        Outcome::Failed => "failed",
        Outcome::Cancelled => "cancelled",
    }
}

/// Why a task or subtask failed, as clients see it.
pub fn reason_word(reason: Reason) -> &'static str {
    match reason {
        Reason::Deadline => "DEADLINE",
        Reason::NoCapability => "NO_CAPABILITY",
        Reason::Cost => "COST",
        Reason::Cancelled => "CANCELLED",
        Reason::UpstreamFailed => "UPSTREAM_FAILED",
        Reason::RetriesExhausted => "RETRIES_EXHAUSTED",
        Reason::NonRetryable => "NON_RETRYABLE",
        Reason::UnknownOutcome => "UNKNOWN_OUTCOME",
        Reason::InvalidOutput => "INVALID_OUTPUT",
        Reason::DependencyFailed => "DEPENDENCY_FAILED",
        Reason::InvalidInput => "INVALID_INPUT",
        Reason::NoPlan => "NO_PLAN",
        Reason::Unreadable => "UNREADABLE",
    }
}

fn kept_error(failure: &Text) -> Value {
    error(&failure_of(failure))
}

struct End {
    outcome: Option<&'static str>,
    reason: Option<&'static str>,
    error: Value,
    at: Option<Timestamp>,
}

fn end(state: &State) -> End {
    let end = state.end.as_ref();
    End {
        outcome: end.map(|end| outcome_word(end.outcome)),
        reason: end.and_then(|end| end.reason).map(reason_word),
        error: end.and_then(|end| end.failure.as_ref()).map_or(Value::Null, error),
        at: end.map(|end| end.at),
    }
}

/// Progress (AITP 5.3).
fn progress(state: &State, explain: bool, now: Timestamp) -> Value {
    let spent = state.ledger.spent_by_subtask();
    let spent = |index: usize| spent.get(&number(index)).copied();
    let steps: Vec<Value> = (0..state.parts.len()).filter_map(|index| step(state, index, spent(index), explain, now)).collect();
    json!({
        "task_id": state.id,
        "current_step": current_step(state),
        "total_steps": state.parts.len(),
        "percent_complete": percent(state),
        "steps": steps,
    })
}

/// The first step under way; where none is, the first that is not over; where all are over, the last.
fn current_step(state: &State) -> usize {
    let busy = state.parts.iter().position(|part| part.current().is_some());
    let open = || state.parts.iter().position(|part| !part.is_over());
    busy.or_else(open).map_or(state.parts.len(), |index| index + 1)
}

/// How much of the task is done, in percent: whole steps, and of those that run as tasks of other nodes what these say.
pub fn percent(state: &State) -> usize {
    let done = state.parts.iter().map(|part| if part.status == Status::Success { 100 } else { running_percent(part) });
    done.sum::<usize>().checked_div(state.parts.len()).unwrap_or_default()
}

/// How far the task is that a step is on another node, as long as it runs.
fn running_percent(part: &Part) -> usize {
    if part.current().is_some() { part.unkept.progress_percentage.into() } else { 0 }
}

fn step(state: &State, index: usize, spent: Option<Decimal>, explain: bool, now: Timestamp) -> Option<Value> {
    let (part, subtask) = (state.parts.get(index)?, state.definition.subtasks.get(index)?);
    // Whom a step was refused by says nothing about who will do it.
    let shown = part.attempts.last().filter(|_| part.status != Status::Pending || part.current().is_some());
    let id = |place: &usize| state.definition.subtasks.get(*place).map(|subtask| subtask.id.as_str());
    let mut step = json!({
        "step_id": index + 1,
        "subtask_id": subtask.id,
        "name": printable(&subtask.name, NAME_CHARS_MAX),
        "capability": subtask.capability,
        "status": part.status.as_str(),
        "after": subtask.after.iter().filter_map(id).collect::<Vec<_>>(),
        "started_at": part.started.map(seconds),
        "completed_at": part.ended.map(seconds),
        "started_ms": part.started.map(|at| ms(at, state.created)),
        "duration_ms": part.started.zip(part.ended).map(|(started, ended)| ms(ended, started)),
        "agent_id": shown.map(|attempt| attempt.agent),
        "agent": shown.map(|attempt| printable(&attempt.name, NAME_CHARS_MAX)),
        "node_id": shown.map(|attempt| attempt.node),
        "attempt": part.attempts.last().map_or(0, |attempt| attempt.number),
        "retries": part.retries,
        "cost": spent.map(cost),
        "waiting_for": waiting_for(state, index, now),
        "error": part.failure.as_ref().map(|(_, failure)| error(failure)),
    });
    if subtask.task.is_some() {
        let child = shown.and_then(|attempt| attempt.child);
        step["progress_percentage"] = if part.status == Status::Success { 100 } else { running_percent(part) }.into();
        step["child"] = child.map_or(Value::Null, |(task, node)| json!({"task_id": task, "node_id": node}));
    }
    if let Some((since, failure)) = context_wait(state, index) {
        step["context_write"] = json!({"state": "waiting", "reason": failure.code, "since": seconds(*since)});
    }
    if explain {
        step["attempts"] = part.attempts.iter().map(|attempt| explained(state, index, attempt)).collect();
    }
    Some(step)
}

fn explained(state: &State, index: usize, attempt: &Attempt) -> Value {
    let fence = Fence { subtask: number(index), attempt: attempt.number };
    let line = state.ledger.lines().iter().find(|line| line.fence == fence);
    // What is kept is text; text that is no JSON explains nothing.
    let explain: Value = serde_json::from_slice(&attempt.explain).unwrap_or_default();
    json!({
        "attempt": attempt.number,
        "agent_id": attempt.agent,
        "node_id": attempt.node,
        "chosen_ms": ms(attempt.chosen, state.created),
        "accepted_ms": attempt.accepted.map(|at| ms(at, state.created)),
        "ended_ms": attempt.ended.map(|at| ms(at, state.created)),
        "outcome": attempt.end.as_ref().map(|end| end.as_str()),
        "cost": line.map(|line| cost(line.charge.total)),
        "cost_is_assumed": line.is_some_and(|line| line.assumed),
        "error": attempt.end.as_ref().and_then(|end| end.failure()).map(error),
        "explain": explain,
    })
}

/// What a step waits for, in words; `None` where it runs or is over.
fn waiting_for(state: &State, index: usize, now: Timestamp) -> Option<String> {
    let part = state.parts.get(index)?;
    if !state.waiting_for.is_empty() && !part.is_over() {
        let tasks = state.waiting_for.iter().map(TaskId::to_string);
        return Some(format!("the end of task {}", some_of(tasks, state.waiting_for.len())));
    }
    let why = || part.waiting.as_ref().map_or_else(String::new, |failure| format!(": {}", failure.message));
    match part.phase {
        Phase::Blocked => {
            let before = &state.definition.subtasks.get(index)?.after;
            let open = before.iter().filter(|place| state.parts.get(**place).is_some_and(|part| !part.is_over()));
            let names: Vec<String> = open.filter_map(|place| Some(state.definition.subtasks.get(*place)?.id.to_string())).collect();
            let count = names.len();
            Some(some_of(names.into_iter(), count))
        }
        Phase::Ready => Some("a place among the subtasks that run".to_owned()),
        Phase::Choosing => Some("an agent to be chosen".to_owned()),
        Phase::Paused { until, deferred } => {
            let seconds = until.saturating_since(now).as_millis().div_ceil(1_000);
            Some(match (deferred, part.unkept.put_off) {
                (true, _) => format!("deferred for {seconds} s{}", why()),
                (false, 0) => format!("the next attempt in {seconds} s{}", why()),
                (false, _) => {
                    format!("retries to be less than their share of calls (routing.retry_budget), looked at in {seconds} s{}", why())
                }
            })
        }
        Phase::Held => Some("money that other subtasks hold back".to_owned()),
        Phase::Sent => Some("the agent to accept".to_owned()),
        Phase::Running | Phase::Over => context_wait(state, index).map(|(_, failure)| format!("its context: {}", failure.message)),
    }
}

/// Since when what the result of a step brings for the context cannot be written, and why.
fn context_wait(state: &State, index: usize) -> Option<&(Timestamp, Failure)> {
    let part = state.parts.get(index).filter(|part| !part.is_over())?;
    part.unkept.context_wait.as_deref()
}

/// The first few of `count` names.
fn some_of(names: impl Iterator<Item = String>, count: usize) -> String {
    let shown: Vec<String> = names.take(WAITS_SHOWN_MAX).collect();
    let more = count.saturating_sub(shown.len());
    let shown = shown.join(", ");
    if more == 0 { shown } else { format!("{shown} and {more} more") }
}

/// When the task will probably be done: as long as its steps took on average, for each step of the longest chain that is still open.
/// `None` before one is done, and once the task is over.
fn estimated_completion(state: &State, now: Timestamp) -> Option<Timestamp> {
    if state.end.is_some() {
        return None;
    }
    let took: Vec<u64> = state.parts.iter().filter(|part| part.status == Status::Success).filter_map(span_ms).collect();
    let average_ms = took.iter().sum::<u64>().checked_div(u64::try_from(took.len()).ok()?)?;
    let left_ms = |part: &Part| match part.phase {
        Phase::Over => 0,
        Phase::Running => average_ms.saturating_sub(ms(now, part.attempts.last().and_then(|attempt| attempt.accepted).unwrap_or(now))),
        Phase::Paused { until, .. } => ms(until, now).saturating_add(average_ms),
        Phase::Blocked | Phase::Ready | Phase::Choosing | Phase::Held | Phase::Sent => average_ms,
    };
    // A step is looked at once all before it have been, so that it knows when the last of them ends.
    let subtasks = &state.definition.subtasks;
    let mut before: Vec<usize> = subtasks.iter().map(|subtask| subtask.after.len()).collect();
    let mut begins_ms = vec![0_u64; subtasks.len()];
    let mut open: Vec<usize> = before.iter().enumerate().filter(|(_, count)| **count == 0).map(|(index, _)| index).collect();
    let mut last_ms = 0;
    while let Some(index) = open.pop() {
        let ends_ms = begins_ms.get(index)?.saturating_add(left_ms(state.parts.get(index)?));
        last_ms = last_ms.max(ends_ms);
        for dependent in state.dependents.get(index)? {
            let (begins, count) = (begins_ms.get_mut(*dependent)?, before.get_mut(*dependent)?);
            *begins = (*begins).max(ends_ms);
            *count = count.saturating_sub(1);
            if *count == 0 {
                open.push(*dependent);
            }
        }
    }
    Some(now.saturating_add(std::time::Duration::from_millis(last_ms)))
}

fn span_ms(part: &Part) -> Option<u64> {
    Some(ms(part.ended?, part.started?))
}

/// The cost ledger (AITP 7.2).
fn ledger(state: &State) -> Value {
    let ledger = &state.ledger;
    let entries = ledger.lines().iter().map(|line| {
        let place = usize::try_from(line.fence.subtask).ok();
        json!({
            "subtask_id": place.and_then(|place| state.definition.subtasks.get(place)).map(|subtask| subtask.id.as_str()),
            "attempt": line.fence.attempt,
            "agent_id": line.agent,
            "units": cost(line.charge.units),
            "unit": printable(&line.charge.unit, NAME_CHARS_MAX),
            "price_per_unit": cost(line.charge.price),
            "total": cost(line.charge.total),
            "duplicate": line.duplicate,
            "assumed": line.assumed,
        })
    });
    json!({
        "task_id": state.id,
        "budget": ledger.budget().map(|budget| cost(budget.amount)),
        "currency": currency(ledger),
        "entries": entries.collect::<Vec<_>>(),
        "total_cost": cost(ledger.spent()),
        "remaining_budget": ledger.remaining().map(cost),
    })
}

/// What amounts are in; dollars where nothing says so (AITP 2.2).
fn currency(ledger: &Ledger) -> String {
    ledger.currency().map_or_else(|| "USD".to_owned(), |currency| currency.to_string())
}

/// A decimal as the number that its digits are in JSON.
fn cost(amount: Decimal) -> Value {
    serde_json::from_str(&amount.normalize().to_string()).unwrap_or_default()
}

fn started(state: &State) -> Option<Timestamp> {
    state.parts.iter().filter_map(|part| part.started).min()
}

fn seconds(at: Timestamp) -> u64 {
    at.as_ms() / 1_000
}

fn ms(at: Timestamp, since: Timestamp) -> u64 {
    u64::try_from(at.saturating_since(since).as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;

    use super::super::definition::OnFailure;
    use super::super::testing::{BEGIN, after_ms, agent, budget, charge, definition, id, node, state, step, text};
    use super::*;
    use crate::model::ErrorCode;
    use crate::wire::task::{Charge, Dispatched, Loss};

    fn fence(subtask: u32) -> Fence {
        Fence { subtask, attempt: 1 }
    }

    fn dispatched(fence: Fence, explain: &'static str) -> Event {
        Event::Dispatched(Dispatched {
            fence,
            agent: agent(1),
            name: "evil\u{1b}[31m".to_owned(),
            node: node(2),
            estimate: None,
            explain: Bytes::from_static(explain.as_bytes()),
        })
    }

    /// The subtask is done between these two moments.
    fn done(state: &mut State, subtask: u32, from_ms: u64, to_ms: u64, charge: Option<Charge>) {
        let fence = fence(subtask);
        state.apply(&dispatched(fence, "{\"score\":1}"), after_ms(from_ms));
        state.apply(&Event::Accepted(fence), after_ms(from_ms + 1));
        state.apply(&Event::ResultReceived { fence, output: text("{}"), charge, context_ops: None }, after_ms(to_ms));
        state.apply(&Event::Validated(fence), after_ms(to_ms));
    }

    fn ended(state: &mut State, outcome: Outcome, ms: u64) {
        state.apply(&Event::Ended { outcome, reason: None, failure: None }, after_ms(ms));
    }

    /// The draft's own task: two steps and one that joins them, with its budget.
    fn draft() -> State {
        let mut definition = definition(vec![step("subtask_1", &[]), step("subtask_2", &[0]), step("subtask_3", &[0, 1])]);
        definition.budget = budget("10.00");
        state(definition)
    }

    /// AITP-7: while the first of three steps is done and the second runs, 33 percent are done and the second is the current one.
    #[test]
    fn progress_counts_what_is_done_and_names_what_runs() {
        let mut state = draft();
        let fresh = status(&state, node(9), false, BEGIN);
        assert_eq!(
            (&fresh["status"], &fresh["progress"]["percent_complete"], &fresh["current_step"]),
            (&json!("PENDING"), &json!(0), &json!(1))
        );
        assert_eq!((&fresh["started_at"], &fresh["estimated_completion"]), (&Value::Null, &Value::Null));

        done(&mut state, 0, 1_000, 21_000, None);
        state.apply(&dispatched(fence(1), "{}"), after_ms(22_000));
        state.apply(&Event::Accepted(fence(1)), after_ms(22_500));
        let document = status(&state, node(9), false, after_ms(32_500));
        assert_eq!(
            (&document["status"], &document["outcome"], &document["home_node_id"]),
            (&json!("EXECUTING"), &Value::Null, &json!(node(9)))
        );
        assert_eq!((&document["current_step"], &document["created_at"]), (&json!(2), &json!(1_700_614_200)));
        let progress = &document["progress"];
        assert_eq!(
            (&progress["current_step"], &progress["total_steps"], &progress["percent_complete"]),
            (&json!(2), &json!(3), &json!(33))
        );
        let steps = progress["steps"].as_array().expect("steps");
        let statuses: Vec<&Value> = steps.iter().map(|step| &step["status"]).collect();
        assert_eq!(statuses, ["SUCCESS", "EXECUTING", "PENDING"]);
        assert_eq!((&steps[0]["started_at"], &steps[0]["completed_at"]), (&json!(1_700_614_201), &json!(1_700_614_221)));
        assert_eq!((&steps[0]["started_ms"], &steps[0]["duration_ms"]), (&json!(1_000), &json!(20_000)));
        assert_eq!((&steps[2]["step_id"], &steps[2]["agent_id"], &steps[2]["attempt"]), (&json!(3), &Value::Null, &json!(0)));
        assert_eq!((&steps[2]["after"], &steps[2]["waiting_for"]), (&json!(["subtask_1", "subtask_2"]), &json!("subtask_2")));
        assert_eq!((&steps[1]["agent_id"], &steps[1]["waiting_for"]), (&json!(agent(1)), &Value::Null));
        assert!(steps[1].get("attempts").is_none(), "only where somebody asks for them");
    }

    /// AITP-7: a step took 20 s; the second has run for 10 s of that, and a third is to come.
    #[test]
    fn the_end_is_estimated_from_what_steps_took() {
        let mut state = draft();
        done(&mut state, 0, 1_000, 21_000, None);
        state.apply(&dispatched(fence(1), "{}"), after_ms(22_000));
        state.apply(&Event::Accepted(fence(1)), after_ms(22_500));
        let document = status(&state, node(9), false, after_ms(32_500));
        assert_eq!(document["estimated_completion"], json!(1_700_614_200 + 32 + 10 + 20));
    }

    #[test]
    fn hostile_names_are_shown_harmless_and_broken_explanations_as_none() {
        let mut state = draft();
        state.apply(&dispatched(fence(0), "no JSON"), after_ms(5));
        let failure = super::super::state::kept(&Failure::new(ErrorCode::Busy, "full"));
        state.apply(&Event::Rejected { fence: fence(0), expired: false, failure }, after_ms(6));
        let again = Fence { subtask: 0, attempt: 2 };
        state.apply(&dispatched(again, "{\"score\":0.5}"), after_ms(7));
        let document = status(&state, node(9), true, after_ms(8));
        let step = &document["progress"]["steps"][0];
        assert_eq!((&step["agent"], &step["attempt"], &step["retries"]), (&json!("evil\u{fffd}[31m"), &json!(2), &json!(0)));
        let attempts = step["attempts"].as_array().expect("attempts");
        assert_eq!(
            (&attempts[0]["outcome"], &attempts[0]["explain"], &attempts[0]["error"]["code"]),
            (&json!("rejected"), &Value::Null, &json!("BUSY"))
        );
        assert_eq!(
            (&attempts[0]["chosen_ms"], &attempts[0]["accepted_ms"], &attempts[0]["ended_ms"]),
            (&json!(5), &Value::Null, &json!(6))
        );
        assert_eq!((&attempts[1]["outcome"], &attempts[1]["explain"]), (&Value::Null, &json!({"score": 0.5})));
        let shown = serde_json::to_string(&event(4, id(), &dispatched(again, "{}"), after_ms(7), &state.definition)).expect("JSON");
        assert!(!shown.contains("\\u001b") && shown.contains('\u{fffd}'), "{shown}");
    }

    #[test]
    fn a_step_says_what_it_waits_for() {
        let mut state = draft();
        let waits = |state: &State, ms| waiting_for(state, 0, after_ms(ms)).unwrap_or_default();
        assert_eq!(waits(&state, 0), "a place among the subtasks that run");
        let failure = super::super::state::kept(&Failure::new(ErrorCode::CapabilityNotFound, "no agent offers `echo`"));
        state.apply(&Event::Deferred { subtask: 0, span: Duration::from_secs(300), failure }, after_ms(0));
        assert_eq!(waits(&state, 2_000), "deferred for 298 s: no agent offers `echo`");
        state.apply(&dispatched(fence(0), "{}"), after_ms(3_000));
        assert_eq!(waits(&state, 3_000), "the agent to accept");
        state.apply(&Event::Accepted(fence(0)), after_ms(3_000));
        assert_eq!(waits(&state, 3_000), "");
        let failure = super::super::state::kept(&Failure::new(ErrorCode::AgentFailed, "it broke"));
        let retry_in = Some(Duration::from_millis(1_050));
        state.apply(&Event::AttemptFailed { fence: fence(0), loss: Loss::AgentError, failure, retry_in, charge: None }, after_ms(4_000));
        assert_eq!(waits(&state, 4_000), "the next attempt in 2 s: it broke");
    }

    /// AITP-10: the draft's ledger, in numbers that read as they were written.
    #[test]
    fn the_ledger_is_that_of_the_draft_to_the_last_digit() {
        let mut state = draft();
        done(&mut state, 0, 0, 10, Some(charge("1", "0.001")));
        done(&mut state, 1, 20, 30, Some(charge("5000", "0.00001")));
        ended(&mut state, Outcome::Success, 12_345);
        let document = serde_json::to_value(result(&state, None).expect("it has ended")).expect("JSON");
        let ledger = &document["ledger"];
        assert_eq!(serde_json::to_string(&ledger["total_cost"]).expect("JSON"), "0.051");
        assert_eq!(serde_json::to_string(&ledger["remaining_budget"]).expect("JSON"), "9.949");
        assert_eq!((&ledger["budget"], &ledger["currency"], &document["cost"]), (&json!(10), &json!("USD"), &json!(0.051)));
        assert_eq!(
            ledger["entries"][1],
            json!({"subtask_id": "subtask_2", "attempt": 1, "agent_id": agent(1), "units": 5000, "unit": "request", "price_per_unit": 0.00001,
                   "total": 0.05, "duplicate": false, "assumed": false})
        );
        let document = status(&state, node(9), false, after_ms(20_000));
        assert_eq!(
            (&document["cost_so_far"], &document["budget"], &document["progress"]["steps"][0]["cost"]),
            (&json!(0.051), &json!(10), &json!(0.001))
        );
    }

    #[test]
    fn without_a_budget_nothing_remains_and_no_budget_is_shown() {
        let mut state = state(definition(vec![step("a", &[])]));
        done(&mut state, 0, 0, 10, Some(charge("1", "0.1")));
        let ledger = ledger(&state);
        assert_eq!((&ledger["budget"], &ledger["remaining_budget"], &ledger["total_cost"]), (&Value::Null, &Value::Null, &json!(0.1)));
    }

    /// AITP-11: the three documents of the draft.
    #[test]
    fn the_documents_have_the_shapes_of_the_draft() {
        let mut state = draft();
        assert_eq!(receipt(&state), json!({"task_id": id(), "status": "PENDING", "created_at": 1_700_614_200}));
        assert!(result(&state, None).is_none(), "a result before the end");
        for subtask in 0..3 {
            done(&mut state, subtask, u64::from(subtask) * 100, u64::from(subtask) * 100 + 50, None);
        }
        ended(&mut state, Outcome::Success, 12_345);
        let raw = RawValue::from_string("{\"b\":1,\"a\":  2}".to_owned()).expect("JSON");
        let written = serde_json::to_string(&result(&state, Some(&raw)).expect("it has ended")).expect("JSON");
        assert!(written.contains("\"result\":{\"b\":1,\"a\":  2}"), "the result goes through as it is: {written}");
        let document: Value = serde_json::from_str(&written).expect("JSON");
        assert_eq!(
            (&document["status"], &document["outcome"], &document["execution_time_ms"]),
            (&json!("COMPLETED"), &json!("success"), &json!(12_345))
        );
        assert!(document.get("missing").is_none());
        let document = status(&state, node(9), false, after_ms(20_000));
        assert_eq!(
            (&document["ended_at"], &document["estimated_completion"], &document["current_step"]),
            (&json!(1_700_614_212), &Value::Null, &json!(3))
        );
        let row = summary(&state);
        assert_eq!((&row["percent_complete"], &row["total_steps"], &row["ended_at"]), (&json!(100), &json!(3), &json!(1_700_614_212)));
    }

    /// MAOP-7: a result that is not whole says what is missing.
    #[test]
    fn a_partial_result_names_what_is_missing() {
        let mut definition = definition(vec![step("a", &[]), step("b", &[])]);
        definition.fallback.on_failure = OnFailure::Degrade;
        let mut state = state(definition);
        done(&mut state, 0, 0, 10, None);
        let failure = super::super::state::kept(&Failure::new(ErrorCode::AgentFailed, "it broke"));
        state.apply(&Event::SubtaskFailed { subtask: 1, reason: Reason::RetriesExhausted, failure: failure.clone() }, after_ms(20));
        let reason = Some(Reason::RetriesExhausted);
        state.apply(&Event::Ended { outcome: Outcome::Partial, reason, failure: Some(failure) }, after_ms(20));
        let document = serde_json::to_value(result(&state, None).expect("it has ended")).expect("JSON");
        assert_eq!(
            (&document["status"], &document["outcome"], &document["missing"]),
            (&json!("COMPLETED"), &json!("partial"), &json!(["b"]))
        );
        assert_eq!((&document["reason"], &document["error"]["number"]), (&json!("RETRIES_EXHAUSTED"), &json!(3500)));
        assert_eq!(status(&state, node(9), false, after_ms(30))["progress"]["percent_complete"], json!(50));
    }

    #[test]
    fn an_event_tells_what_it_is_about() {
        let definition = definition(vec![step("a", &[]), step("b", &[])]);
        let shown = |what: &Event| event(17, id(), what, after_ms(1), &definition);
        let accepted = shown(&Event::Accepted(fence(1)));
        assert_eq!(
            accepted,
            json!({"index": 17, "task_id": id(), "event": "accepted", "at_ms": 1_700_614_200_001_u64, "subtask_id": "b", "attempt": 1})
        );
        let failure = super::super::state::kept(&Failure::new(ErrorCode::Timeout, "too slow"));
        let failed = Event::AttemptFailed {
            fence: fence(0),
            loss: Loss::AttemptTimeout,
            failure: failure.clone(),
            retry_in: Some(Duration::from_secs(1)),
            charge: Some(charge("2", "0.05")),
        };
        let failed = shown(&failed);
        assert_eq!(
            (&failed["event"], &failed["retry_in_ms"], &failed["error"]["code"], &failed["cost"]),
            (&json!("attempt_failed"), &json!(1_000), &json!("TIMEOUT"), &json!(0.1))
        );
        let ended = shown(&Event::Ended { outcome: Outcome::Failed, reason: Some(Reason::Deadline), failure: Some(failure) });
        assert_eq!(
            (&ended["outcome"], &ended["reason"], &ended["error"]["message"]),
            (&json!("failed"), &json!("DEADLINE"), &json!("too slow"))
        );
        assert!(ended.get("subtask_id").is_none());
    }
}
