//! The home node came back: attempts whose end it did not see are made anew, under the same key (security.md F1, F21).
//!
//! The agent that had the attempt is asked first: its node keeps the result of what was done under the key, or joins the call to the one that
//! still runs there. Where the author forbids a second beginning, an attempt that was accepted has an unknown outcome, and one that was
//! not accepted has not begun: the agent waits for a word that is only given once the acceptance is kept.

use super::super::state::{AttemptEnd, Phase, State, number, place};
use super::fail;
use crate::model::{ErrorCode, Failure, Timestamp};
use crate::wire::task::{Event, Fence, Reason};

/// What follows from a restart.
pub(in crate::proto::task) fn decide(state: &State, now: Timestamp) -> Vec<Event> {
    let mut events = Vec::new();
    for (index, part) in state.parts.iter().enumerate() {
        let Some(attempt) = part.current() else { continue };
        let fence = Fence { subtask: number(index), attempt: attempt.number };
        let never = state.definition.subtasks.get(index).is_some_and(|subtask| subtask.retry.never);
        if never && part.phase == Phase::Running {
            let message = "the home node went down while the agent worked, and the work must not be done twice";
            let failure = Failure::new(ErrorCode::AgentFailed, message).with("outcome", "unknown").retryable(false);
            events.extend(fail::decide(state, fence.subtask, Reason::UnknownOutcome, failure, now));
            if events.iter().any(|event| matches!(event, Event::Ended { .. })) {
                return events;
            }
        } else {
            events.push(Event::Requeued(fence));
        }
    }
    events
}

pub(in crate::proto::task) fn apply(state: &mut State, fence: Fence, at: Timestamp) {
    let index = place(fence.subtask);
    let Some(part) = state.parts.get_mut(index) else { return };
    part.prefer = part.attempts.last().map(|attempt| attempt.agent);
    part.end_attempt(AttemptEnd::Requeued, at);
    state.ledger.release(fence.subtask);
    state.enter(index, Phase::Ready);
}
