//! Nobody can do a subtask now (AITP 6.2, `on_capability_unavailable`).
//!
//! Two cases that look alike and are not. *Nobody offers it*: the author's fallback decides, by default it is looked for again after five
//! minutes, or as soon as somebody shows up who offers it. *Everybody who offers it refuses, or is away for the moment*: it is tried again
//! after a short pause that grows, whatever the fallback says.

use std::time::Duration;

use super::super::definition::OnUnavailable;
use super::super::state::{Phase, State, failure_of, kept, place};
use super::{dispatch, fail};
use crate::model::{ErrorCode, Failure, Timestamp};
use crate::wire::task::{Event, Reason, Text};

/// What follows when no agent could be chosen.
pub(in crate::proto::task) fn decide(state: &State, subtask: u32, failure: Failure, now: Timestamp) -> Vec<Event> {
    let Some(part) = state.part(subtask).filter(|part| part.phase == Phase::Choosing) else { return Vec::new() };
    let defer = |span| vec![Event::Deferred { subtask, span, failure: kept(&failure) }];
    let is_fault = matches!(failure.code, ErrorCode::InvalidRequest | ErrorCode::InvalidSchema | ErrorCode::PayloadTooLarge);
    let nobody = matches!(failure.code, ErrorCode::CapabilityNotFound | ErrorCode::AgentNotFound) && part.refused_by.is_empty();
    if is_fault {
        return fail::decide(state, subtask, Reason::InvalidInput, failure, now);
    }
    if failure.code == ErrorCode::OverBudget {
        let mut told = dispatch::over_budget(state, &failure.message);
        told.details.extend(failure.details);
        return fail::decide(state, subtask, Reason::Cost, told, now);
    }
    if nobody {
        return match state.definition.fallback.on_unavailable {
            OnUnavailable::Fail => fail::decide(state, subtask, Reason::NoCapability, failure, now),
            OnUnavailable::Defer(span) => defer(span),
        };
    }
    let factor = 1_u32.checked_shl(part.rounds).unwrap_or(u32::MAX);
    let pause = state.config.refused_pause.saturating_mul(factor).min(state.config.refused_pause_max);
    let asked = failure.retry_after_ms().map_or(Duration::ZERO, Duration::from_millis).min(state.config.refused_pause_max);
    defer(pause.max(asked))
}

pub(in crate::proto::task) fn apply(state: &mut State, subtask: u32, span: Duration, failure: &Text, at: Timestamp) {
    let index = place(subtask);
    let Some(part) = state.parts.get_mut(index) else { return };
    part.rounds = part.rounds.saturating_add(1);
    part.refused_by.clear();
    part.waiting = Some(failure_of(failure));
    state.enter(index, Phase::Paused { until: at.saturating_add(span), deferred: true });
}
