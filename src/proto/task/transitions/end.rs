//! The end of a task: done, done in part, failed, cancelled, or out of time.

use super::super::definition::OnFailure;
use super::super::state::{AttemptEnd, End, Phase, State, Status, failure_of, kept};
use super::settle;
use crate::model::{ErrorCode, Failure, Timestamp};
use crate::wire::task::{Event, Outcome, Reason, Text};

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
    let mut events = vec![Event::CancelRequested];
    events.extend(cancelled(state, now));
    events
}

/// What follows once that wish is kept.
pub(super) fn cancelled(state: &State, now: Timestamp) -> Vec<Event> {
    let failure = Failure::new(ErrorCode::Cancelled, "the task was cancelled");
    decide(state, Outcome::Cancelled, Some(Reason::Cancelled), Some(failure), now)
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
    if let Err(failure) = composed {
        return decide(state, Outcome::Failed, Some(Reason::InvalidOutput), Some(failure), now);
    }
    let failures = || state.parts.iter().filter_map(|part| part.failure.clone());
    // What failed by itself says more than what failed because of that.
    let cause = failures().find(|(reason, _)| *reason != Reason::UpstreamFailed).or_else(|| failures().next());
    let Some((reason, failure)) = cause else { return decide(state, Outcome::Success, None, None, now) };
    let any_done = state.parts.iter().any(|part| part.status == Status::Success);
    let is_partial = any_done && state.definition.fallback.on_failure == OnFailure::Degrade;
    decide(state, if is_partial { Outcome::Partial } else { Outcome::Failed }, Some(reason), Some(failure), now)
}

pub(in crate::proto::task) fn apply(state: &mut State, outcome: Outcome, reason: Option<Reason>, failure: Option<&Text>, at: Timestamp) {
    let open: Vec<usize> = state.parts.iter().enumerate().filter(|(_, part)| !part.is_over()).map(|(index, _)| index).collect();
    // What stopped the task is the failure of the subtask that stopped it; the others were only cancelled, unless time stopped them all.
    let word = reason.filter(|reason| *reason == Reason::Deadline).unwrap_or(Reason::Cancelled);
    for index in open {
        settle::closed(state, index);
        if let Some(part) = state.parts.get_mut(index) {
            part.status = Status::Failed;
            part.ended = Some(at);
            part.waiting = None;
            // A result that was kept and not yet looked at when the home node went down is nobody's any more.
            part.output = None;
            part.context_ops = None;
            part.failure = Some((word, Failure::new(ErrorCode::Cancelled, "the task ended before this was done")));
            part.end_attempt(AttemptEnd::Withdrawn, at);
        }
        state.enter(index, Phase::Over);
    }
    state.end = Some(End { outcome, reason, failure: failure.map(failure_of), at });
}
