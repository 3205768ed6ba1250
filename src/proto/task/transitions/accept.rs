//! The agent accepted an attempt (AITP 5.2).

use super::super::state::{Phase, State, Status, place};
use crate::model::Timestamp;
use crate::wire::task::{Event, Fence};

/// What follows when the agent says that it begins.
pub(in crate::proto::task) fn decide(state: &State, fence: Fence) -> Vec<Event> {
    let is_current = state
        .part(fence.subtask)
        .is_some_and(|part| part.phase == Phase::Sent && part.current().is_some_and(|attempt| attempt.number == fence.attempt));
    if is_current { vec![Event::Accepted(fence)] } else { Vec::new() }
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
