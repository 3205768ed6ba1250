//! The agent finished: its output is kept, its work billed, and what waited for it goes on (AITP 5.2, AITP 7).
//!
//! The first result of the current attempt wins. One of an attempt that was given up is not used; it is billed all the same, marked as
//! duplicate, so that the ledger stays honest. The end of the task closes its accounts: clients are told what it cost, and that does not
//! change any more.

use rust_decimal::Decimal;

use super::super::state::{AttemptEnd, Phase, State, Status, place};
use super::{dispatch, fail, settle};
use crate::model::Timestamp;
use crate::wire::task::{Charge, Event, Fence, Reason, Text};

/// What follows when an attempt ended with an output that matches its schema.
pub(in crate::proto::task) fn decide(state: &State, fence: Fence, output: Text, charge: Option<Charge>) -> Vec<Event> {
    let Some(part) = state.part(fence.subtask).filter(|_| state.end.is_none()) else { return Vec::new() };
    if part.current().is_none_or(|attempt| attempt.number != fence.attempt) {
        let known = part.attempts.iter().find(|attempt| attempt.number == fence.attempt);
        let is_news = known.is_some_and(|attempt| !matches!(attempt.end, Some(AttemptEnd::Duplicate | AttemptEnd::Success)));
        return if is_news { vec![Event::DuplicateResult { fence, charge }] } else { Vec::new() };
    }
    vec![Event::ResultReceived { fence, output, charge }]
}

/// What follows from a result that is kept and billed: it is used, unless nobody can pay for it.
pub(in crate::proto::task) fn judge(state: &State, fence: Fence, now: Timestamp) -> Vec<Event> {
    let billed = state.part(fence.subtask).and_then(|part| part.charge.as_ref()).map_or(Decimal::ZERO, |charge| charge.total);
    let is_covered = billed.is_zero() || state.ledger.remaining().is_none_or(|remaining| !remaining.is_sign_negative());
    if is_covered {
        return vec![Event::Validated(fence)];
    }
    let message = format!("the agent billed {}, more than was left of the budget", billed.normalize());
    fail::decide(state, fence.subtask, Reason::Cost, dispatch::over_budget(state, &message), now)
}

pub(in crate::proto::task) fn received(state: &mut State, fence: Fence, output: &Text, charge: Option<&Charge>, at: Timestamp) {
    let index = place(fence.subtask);
    let Some(part) = state.parts.get_mut(index) else { return };
    if part.phase == Phase::Sent {
        // The word that it was accepted may have been overtaken.
        if let Some(attempt) = part.attempts.last_mut() {
            attempt.accepted = Some(at);
        }
    }
    part.status = Status::Completed;
    part.output = Some(output.clone());
    part.charge = charge.cloned();
    part.end_attempt(AttemptEnd::Success, at);
    if let Some(agent) = part.attempts.last().map(|attempt| attempt.agent) {
        settle::billed(state, fence, agent, charge, false);
    }
    settle::released(state, fence.subtask);
    state.wake_held();
}

pub(in crate::proto::task) fn validated(state: &mut State, fence: Fence, at: Timestamp) {
    let index = place(fence.subtask);
    let Some(part) = state.parts.get_mut(index) else { return };
    part.status = Status::Success;
    part.ended = Some(at);
    part.waiting = None;
    state.enter(index, Phase::Over);
    for dependent in state.dependents.get(index).cloned().unwrap_or_default() {
        let Some(part) = state.parts.get_mut(dependent) else { continue };
        part.missing = part.missing.saturating_sub(1);
        if part.missing == 0 && part.phase == Phase::Blocked {
            state.enter(dependent, Phase::Ready);
        }
    }
}

pub(in crate::proto::task) fn duplicate(state: &mut State, fence: Fence, charge: Option<&Charge>, at: Timestamp) {
    let Some(part) = state.parts.get_mut(place(fence.subtask)) else { return };
    let Some(attempt) = part.attempts.iter_mut().find(|attempt| attempt.number == fence.attempt) else { return };
    attempt.ended.get_or_insert(at);
    attempt.end = Some(AttemptEnd::Duplicate);
    let agent = attempt.agent;
    let is_idle = part.current().is_none();
    settle::billed(state, fence, agent, charge, true);
    if is_idle {
        settle::released(state, fence.subtask);
        state.wake_held();
    }
}
