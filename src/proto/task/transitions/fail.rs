//! A subtask is given up, and what follows from that: the task ends with it, or goes on without it (AITP 6.2, MAOP 4.2 "degraded mode").

use super::super::definition::OnFailure;
use super::super::state::{AttemptEnd, Phase, State, Status, failure_of, kept, number, place};
use super::{end, settle};
use crate::model::{ErrorCode, Failure, Timestamp};
use crate::wire::task::{Event, Loss, Outcome, Reason, Text};

/// What follows when a subtask cannot be done.
pub(in crate::proto::task) fn decide(state: &State, subtask: u32, reason: Reason, failure: Failure, now: Timestamp) -> Vec<Event> {
    let name = state.definition.subtasks.get(place(subtask)).map(|subtask| subtask.id.to_string()).unwrap_or_default();
    let failure = failure.with("subtask_id", name);
    let mut events = vec![Event::SubtaskFailed { subtask, reason, failure: kept(&failure) }];
    events.extend(consequences(state, place(subtask), reason, failure, now));
    events
}

/// What follows for the others when the subtask at `index` failed.
pub(super) fn consequences(state: &State, index: usize, reason: Reason, failure: Failure, now: Timestamp) -> Vec<Event> {
    match state.definition.fallback.on_failure {
        OnFailure::Fail => end::decide(state, Outcome::Failed, Some(reason), Some(failure), now),
        OnFailure::Degrade => {
            let name = state.definition.subtasks.get(index).map(|subtask| subtask.id.to_string()).unwrap_or_default();
            let upstream = Failure::new(ErrorCode::AgentFailed, format!("`{name}` failed, and this needs its output"));
            let upstream = kept(&upstream.with("subtask_id", name).retryable(false));
            let lost = downstream(state, index).into_iter().map(number);
            let reason = Reason::UpstreamFailed;
            lost.map(|subtask| Event::SubtaskFailed { subtask, reason, failure: upstream.clone() }).collect()
        }
    }
}

/// Everything that needs the output of `index`, directly or through others, and is not over.
fn downstream(state: &State, index: usize) -> Vec<usize> {
    let mut found = Vec::new();
    let mut seen = vec![false; state.parts.len()];
    let mut open = vec![index];
    while let Some(index) = open.pop() {
        for dependent in state.dependents.get(index).into_iter().flatten() {
            let Some(is_seen) = seen.get_mut(*dependent).filter(|is_seen| !**is_seen) else { continue };
            *is_seen = true;
            open.push(*dependent);
            if state.parts.get(*dependent).is_some_and(|part| !part.is_over()) {
                found.push(*dependent);
            }
        }
    }
    found.sort_unstable();
    found
}

pub(in crate::proto::task) fn apply(state: &mut State, subtask: u32, reason: Reason, failure: &Text, at: Timestamp) {
    let index = place(subtask);
    if state.parts.get(index).is_none_or(|part| part.is_over()) {
        return;
    }
    settle::closed(state, index);
    let Some(part) = state.parts.get_mut(index) else { return };
    part.status = Status::Failed;
    let failure = failure_of(failure);
    // Only what nobody knows the outcome of is still open here.
    part.end_attempt(AttemptEnd::Failed(Loss::AgentLost, failure.clone()), at);
    part.failure = Some((reason, failure));
    part.waiting = None;
    // An output that was refused after all is nobody's input.
    part.output = None;
    part.context_ops = None;
    part.ended = Some(at);
    state.enter(index, Phase::Over);
    state.wake_held();
}
