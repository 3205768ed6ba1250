//! The agent did not take an attempt, or did not say so in time: the next best is asked, and it is no retry (design/tasks.md, "States").

use super::super::definition::OnOffline;
use super::super::state::{AttemptEnd, Phase, State, failure_of, kept, place};
use super::{fail, settle};
use crate::model::{ErrorCode, Failure, Timestamp};
use crate::wire::task::{Event, Fence, Reason, Text};

/// What follows when an attempt was not begun.
pub(in crate::proto::task) fn decide(state: &State, fence: Fence, expired: bool, failure: Failure, now: Timestamp) -> Vec<Event> {
    let is_current = state
        .part(fence.subtask)
        .is_some_and(|part| part.phase == Phase::Sent && part.current().is_some_and(|attempt| attempt.number == fence.attempt));
    if !is_current {
        return Vec::new();
    }
    let mut events = vec![Event::Rejected { fence, expired, failure: kept(&failure) }];
    let is_offline = matches!(failure.code, ErrorCode::Unavailable | ErrorCode::AgentNotFound);
    // What is wrong with the input is wrong everywhere.
    let is_fault = matches!(failure.code, ErrorCode::InvalidRequest | ErrorCode::InvalidSchema | ErrorCode::PayloadTooLarge);
    if is_fault || (is_offline && state.definition.fallback.on_agent_offline == OnOffline::Fail) {
        events.extend(fail::decide(state, fence.subtask, Reason::NonRetryable, failure, now));
    }
    events
}

pub(in crate::proto::task) fn apply(state: &mut State, fence: Fence, expired: bool, failure: &Text, at: Timestamp) {
    let index = place(fence.subtask);
    let Some(part) = state.parts.get_mut(index) else { return };
    if let Some(attempt) = part.attempts.last() {
        part.refused_by.insert(attempt.agent);
    }
    part.end_attempt(AttemptEnd::Rejected { expired, failure: failure_of(failure) }, at);
    settle::released(state, fence.subtask);
    state.enter(index, Phase::Ready);
    state.wake_held();
}
