//! The agent accepted an attempt (AITP 5.2), or runs it as a task of its own node (AMP-8).

use super::super::state::{Phase, State, Status, place};
use crate::model::{NodeId, TaskId, Timestamp};
use crate::wire::task::{Event, Fence};

/// What follows when the agent says that it begins.
pub(in crate::proto::task) fn decide(state: &State, fence: Fence) -> Vec<Event> {
    let is_current = state
        .part(fence.subtask)
        .is_some_and(|part| part.phase == Phase::Sent && part.current().is_some_and(|attempt| attempt.number == fence.attempt));
    if is_current { vec![Event::Accepted(fence)] } else { Vec::new() }
}

/// What follows when the agent's node says which task of its own it is.
pub(in crate::proto::task) fn decide_delegated(state: &State, fence: Fence, (task, node): (TaskId, NodeId)) -> Vec<Event> {
    let attempt = state.part(fence.subtask).and_then(|part| part.current()).filter(|attempt| attempt.number == fence.attempt);
    let is_news = attempt.is_some_and(|attempt| attempt.child.is_none());
    if is_news { vec![Event::Delegated { fence, task, node }] } else { Vec::new() }
}

pub(in crate::proto::task) fn delegated(state: &mut State, fence: Fence, child: (TaskId, NodeId)) {
    let part = state.parts.get_mut(place(fence.subtask));
    if let Some(attempt) = part.and_then(|part| part.attempts.iter_mut().find(|attempt| attempt.number == fence.attempt)) {
        attempt.child = Some(child);
    }
}

pub(in crate::proto::task) fn apply(state: &mut State, fence: Fence, at: Timestamp) {
    let index = place(fence.subtask);
    let Some(part) = state.parts.get_mut(index) else { return };
    part.status = Status::Executing;
    part.refused_by.clear();
    part.rounds = 0;
    if let Some(attempt) = part.attempts.last_mut() {
        attempt.accepted = Some(at);
    }
    state.enter(index, Phase::Running);
}
