//! The end of a task: done, done in part, failed, cancelled, or out of time.

use super::super::definition::OnFailure;
use super::super::state::{AttemptEnd, End, Phase, State, Status, failure_of, kept, number};
use crate::model::{ErrorCode, Failure, Timestamp};
use crate::wire::task::{Event, Loss, Outcome, Reason, Text};

/// What follows when the task is over.
pub(in crate::proto::task) fn decide(
    state: &State,
    outcome: Outcome,
    reason: Option<Reason>,
    failure: Option<Failure>,
    _now: Timestamp,
) -> Vec<Event> {
    if state.end.is_some() {
        return Vec::new();
    }
    vec![Event::Ended { outcome, reason, failure: failure.as_ref().map(kept) }]
}

/// What follows when somebody wants it to be cancelled.
pub(in crate::proto::task) fn cancel(state: &State, now: Timestamp) -> Vec<Event> {
    if state.end.is_some() || state.cancelling {
        return Vec::new();
    }
    let failure = Failure::new(ErrorCode::Cancelled, "the task was cancelled");
    let mut events = vec![Event::CancelRequested];
    events.extend(decide(state, Outcome::Cancelled, Some(Reason::Cancelled), Some(failure), now));
    events
}

/// What follows when its time is up.
pub(in crate::proto::task) fn deadline(state: &State, now: Timestamp) -> Vec<Event> {
    let waiting: Vec<String> = state
        .parts
        .iter()
        .zip(&state.definition.subtasks)
        .filter(|(part, _)| !part.is_over())
        .filter_map(|(part, subtask)| Some(format!("{}: {}", subtask.id, part.waiting.as_ref()?.message)))
        .take(8)
        .collect();
    let mut failure = Failure::new(ErrorCode::Timeout, "the deadline passed before the task was done").retryable(false);
    if !waiting.is_empty() {
        failure = failure.with("waiting", waiting);
    }
    decide(state, Outcome::Failed, Some(Reason::Deadline), Some(failure), now)
}

/// What follows when every subtask is over. `composed` is what came of looking at the result.
pub(in crate::proto::task) fn complete(state: &State, composed: Result<(), Failure>, now: Timestamp) -> Vec<Event> {
    let failed: Vec<u32> =
        state.parts.iter().enumerate().filter(|(_, part)| part.status == Status::Failed).map(|(index, _)| number(index)).collect();
    if let Err(failure) = composed {
        return decide(state, Outcome::Failed, Some(Reason::InvalidOutput), Some(failure), now);
    }
    if failed.is_empty() {
        return decide(state, Outcome::Success, None, None, now);
    }
    let first = failed.first().and_then(|subtask| state.part(*subtask)).and_then(|part| part.failure.clone());
    let (reason, failure) = first.unzip();
    let done = state.definition.fallback.on_failure == OnFailure::Degrade && has_result(state);
    decide(state, if done { Outcome::Partial } else { Outcome::Failed }, reason, failure, now)
}

/// Whether anything that could be a result was done.
fn has_result(state: &State) -> bool {
    let sinks = state.dependents.iter().enumerate().filter(|(_, dependents)| dependents.is_empty());
    sinks.filter_map(|(index, _)| state.parts.get(index)).any(|part| part.status == Status::Success)
}

pub(in crate::proto::task) fn apply(state: &mut State, outcome: Outcome, reason: Option<Reason>, failure: Option<&Text>, at: Timestamp) {
    let open: Vec<usize> = state.parts.iter().enumerate().filter(|(_, part)| !part.is_over()).map(|(index, _)| index).collect();
    let word = if outcome == Outcome::Cancelled { Reason::Cancelled } else { reason.unwrap_or(Reason::Cancelled) };
    for index in open {
        if let Some(part) = state.parts.get_mut(index) {
            part.status = Status::Failed;
            part.ended = Some(at);
            part.waiting = None;
            part.failure = Some((word, Failure::new(ErrorCode::Cancelled, "the task ended before this was done")));
            let cancelled = Failure::new(ErrorCode::Cancelled, "the task ended");
            part.end_attempt(AttemptEnd::Failed(Loss::AgentLost, cancelled), at);
        }
        state.ledger.release(number(index));
        state.enter(index, Phase::Over);
    }
    state.end = Some(End { outcome, reason, failure: failure.map(failure_of), at });
}
