//! The home node came back: attempts whose end it did not see are made anew, under the same key (security.md F1, F21), and what was
//! decided but only kept in part is carried through.
//!
//! The agent that had the attempt is asked first: its node keeps the result of what was done under the key, or joins the call to the one that
//! still runs there. Where the author forbids a second beginning, an attempt that was accepted has an unknown outcome, and one that was
//! not accepted has not begun: the agent waits for a word that is only given once the acceptance is kept.
//!
//! One decision may be several events, and the node may have gone down between any two of them. Each of them leaves a trace that tells
//! what had to follow: an attempt that is over in a subtask that is not, a failure that nobody has drawn conclusions from, a wish to cancel.

use super::super::state::{AttemptEnd, Phase, State, Status, number, place};
use super::{end, fail, result, retry, settle};
use crate::model::{ErrorCode, Failure, Timestamp};
use crate::wire::task::{Event, Fence, Reason};

/// What follows from a restart for the task as a whole.
pub(in crate::proto::task) fn task(state: &State, now: Timestamp) -> Vec<Event> {
    if state.cancelling { end::cancelled(state, now) } else { Vec::new() }
}

/// What follows from a restart for one subtask.
pub(in crate::proto::task) fn subtask(state: &State, index: usize, now: Timestamp) -> Vec<Event> {
    let (Some(part), Some(subtask)) = (state.parts.get(index), state.definition.subtasks.get(index)) else { return Vec::new() };
    if state.end.is_some() {
        return Vec::new();
    }
    if let (Phase::Over, Some((reason, failure))) = (part.phase, &part.failure) {
        return fail::consequences(state, index, *reason, failure.clone(), now);
    }
    let (Phase::Sent | Phase::Running, Some(attempt)) = (part.phase, part.attempts.last()) else { return Vec::new() };
    let fence = Fence { subtask: number(index), attempt: attempt.number };
    match &attempt.end {
        Some(AttemptEnd::Failed(loss, failure)) => {
            match retry::verdict(state, part, subtask, *loss, failure, settle::is_overdrawn(state)) {
                Err((reason, failure)) => fail::decide(state, fence.subtask, reason, failure, now),
                // A pause would have been kept with the event.
                Ok(_) => vec![Event::Requeued(fence)],
            }
        }
        Some(_) if part.status == Status::Completed => {
            let used = part.attempts.iter().find(|attempt| attempt.end == Some(AttemptEnd::Success));
            result::judge(state, Fence { attempt: used.map_or(attempt.number, |used| used.number), ..fence }, now)
        }
        None if subtask.retry.never && part.phase == Phase::Running => {
            let message = "the home node went down while the agent worked, and the work must not be done twice";
            let failure = Failure::new(ErrorCode::AgentFailed, message).with("outcome", "unknown").retryable(false);
            fail::decide(state, fence.subtask, Reason::UnknownOutcome, failure, now)
        }
        Some(_) | None => vec![Event::Requeued(fence)],
    }
}

pub(in crate::proto::task) fn apply(state: &mut State, fence: Fence, at: Timestamp) {
    let index = place(fence.subtask);
    let Some(part) = state.parts.get_mut(index) else { return };
    part.prefer = part.attempts.last().map(|attempt| attempt.agent);
    part.end_attempt(AttemptEnd::Requeued, at);
    settle::lost(state, fence.subtask);
    state.enter(index, Phase::Ready);
}
