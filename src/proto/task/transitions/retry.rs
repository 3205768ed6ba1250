//! An attempt failed after it had begun: another follows after a pause, or none (AITP 6.1, AITP 6.2).
//!
//! A retry goes to another agent wherever there is one. One that was lost with its agent is made at once, since the pause is there for an
//! agent to recover; for every other the pause of the author's policy holds, and chance only ever makes it longer.
//!
//! Retries are a share of a node's traffic, but for the first that a lost agent is to blame for: the work of a node that died is the traffic of
//! the others now. So a retry may be put off, for longer each time. That is nobody's fault and nothing of it is kept:
//! it is only time, which the deadline of the task bounds.
//!
//! Whoever did the work keeps its result under its key, so after an output that broke its schema the work gets another: else the same agent would
//! answer the same again. The key follows from what the journal says of such outputs, so a start that repeats an attempt repeats its key.
//!
//! What the attempt cost is billed before that, and once more than the budget is spent there is no other.

use std::time::Duration;

use rand::Rng;

use super::super::definition::{OnOffline, OnTimeout, Subtask};
use super::super::state::{AttemptEnd, Part, Phase, State, Status, failure_of, kept, place};
use super::{dispatch, fail, result, settle};
use crate::model::{ErrorCode, Failure, Timestamp};
use crate::proto::invocation::budget::Turn;
use crate::wire::task::{Charge, Event, Fence, Loss, Reason, Text};

/// By how much of itself a pause is longer at most, so that steps that failed together do not come back together.
const JITTER: f64 = 0.1;

/// The first pause of a retry that is put off; each further one is twice as long. Chance makes each of them up to twice as long again.
const PUT_OFF: Duration = Duration::from_millis(500);
/// The longest of them, so that a retry is not far behind when there is room for it.
const PUT_OFF_MAX: Duration = Duration::from_secs(8);

/// What the next attempt is to those who count retries.
pub(in crate::proto::task) fn turn(part: &Part) -> Turn {
    match part.attempts.last().map(|attempt| &attempt.end) {
        None => Turn::First,
        Some(Some(AttemptEnd::Failed(Loss::AgentLost, _))) if part.retries <= 1 => Turn::Again,
        Some(Some(AttemptEnd::Failed(..))) => Turn::Retry,
        Some(_) => Turn::Again,
    }
}

/// The retry waits until it may be made.
pub(in crate::proto::task) fn put_off(state: &mut State, subtask: u32, now: Timestamp, rng: &mut impl Rng) {
    let index = place(subtask);
    let Some(part) = state.parts.get_mut(index).filter(|part| part.phase == Phase::Choosing) else { return };
    let factor = 1_u32.checked_shl(part.unkept.put_off).unwrap_or(u32::MAX);
    part.unkept.put_off = part.unkept.put_off.saturating_add(1);
    let pause = PUT_OFF.saturating_mul(factor).min(PUT_OFF_MAX).mul_f64(1.0 + rng.random_range(0.0..1.0));
    state.enter(index, Phase::Paused { until: now.saturating_add(pause), deferred: false });
}

/// What follows when an attempt that had begun failed.
pub(in crate::proto::task) fn decide(
    state: &State,
    fence: Fence,
    loss: Loss,
    failure: Failure,
    charge: Option<Charge>,
    now: Timestamp,
    rng: &mut impl Rng,
) -> Vec<Event> {
    let Some(part) = state.part(fence.subtask) else { return Vec::new() };
    if part.current().is_none_or(|attempt| attempt.number != fence.attempt) {
        return if loss == Loss::InvalidOutput { result::unused(state, fence, charge) } else { Vec::new() };
    }
    let Some(subtask) = state.definition.subtasks.get(place(fence.subtask)) else { return Vec::new() };
    let overdraws = charge.as_ref().is_some_and(|charge| settle::overdraws(state, fence, charge));
    let failed = |retry_in, charge| Event::AttemptFailed { fence, loss, failure: kept(&failure), retry_in, charge };
    match verdict(state, part, subtask, loss, &failure, overdraws) {
        Ok(pause) => vec![failed(Some(pause.mul_f64(1.0 + rng.random_range(0.0..JITTER))), charge)],
        Err((reason, told)) => {
            let mut events = vec![failed(None, charge)];
            events.extend(fail::decide(state, fence.subtask, reason, told, now));
            events
        }
    }
}

/// After which pause an attempt that was lost is repeated.
///
/// # Errors
/// Why it is not.
pub(super) fn verdict(
    state: &State,
    part: &Part,
    subtask: &Subtask,
    loss: Loss,
    failure: &Failure,
    is_overdrawn: bool,
) -> Result<Duration, (Reason, Failure)> {
    let (retry, fallback) = (subtask.retry, &state.definition.fallback);
    if retry.never && matches!(loss, Loss::AgentLost | Loss::AttemptTimeout) {
        return Err((Reason::UnknownOutcome, failure.clone().with("outcome", "unknown").retryable(false)));
    }
    let is_final = match loss {
        // Only what the agent itself says can be the word on whether another attempt is of use.
        Loss::AgentError => {
            !failure.retryable || matches!(failure.code, ErrorCode::InvalidRequest | ErrorCode::PayloadTooLarge | ErrorCode::Cancelled)
        }
        Loss::AgentLost => fallback.on_agent_offline == OnOffline::Fail,
        Loss::AttemptTimeout => fallback.on_timeout == OnTimeout::Fail,
        Loss::InvalidOutput => false,
    };
    if retry.never || is_final {
        return Err((Reason::NonRetryable, failure.clone()));
    }
    let retries = part.retries.saturating_add(1);
    if retries > retry.retries_max {
        return Err((Reason::RetriesExhausted, failure.clone().with("attempts", retries)));
    }
    if is_overdrawn {
        let message = format!("an attempt that failed was billed more than was left of the budget: {}", failure.message);
        return Err((Reason::Cost, dispatch::over_budget(state, &message)));
    }
    Ok(if loss == Loss::AgentLost { Duration::ZERO } else { retry.pause(retries) })
}

pub(in crate::proto::task) fn apply(
    state: &mut State,
    fence: Fence,
    loss: Loss,
    failure: &Text,
    charge: Option<&Charge>,
    retry_in: Option<Duration>,
    at: Timestamp,
) {
    let index = place(fence.subtask);
    let Some(part) = state.parts.get_mut(index) else { return };
    let failure = failure_of(failure);
    let agent = part.attempts.last().map(|attempt| attempt.agent);
    part.failed_on.extend(agent);
    part.end_attempt(AttemptEnd::Failed(loss, failure.clone()), at);
    part.extended |= loss == Loss::AttemptTimeout;
    match (agent, charge, loss) {
        (Some(agent), Some(_), _) => {
            settle::billed(state, fence, agent, charge, false);
            settle::released(state, fence.subtask);
        }
        // The agent's own word that it failed, and none on the cost, is that there is none.
        (_, _, Loss::AgentError) => settle::released(state, fence.subtask),
        (_, _, Loss::AgentLost | Loss::AttemptTimeout) => settle::lost(state, fence.subtask),
        (_, _, Loss::InvalidOutput) => settle::spent(state, fence.subtask),
    }
    let Some(part) = state.parts.get_mut(index) else { return };
    if loss == Loss::InvalidOutput {
        part.spoiled.push(fence.attempt);
    }
    if let Some(pause) = retry_in {
        part.status = Status::Retrying;
        part.retries = part.retries.saturating_add(1);
        part.waiting = Some(failure);
        state.enter(index, Phase::Paused { until: at.saturating_add(pause), deferred: false });
    }
    state.wake_held();
}
