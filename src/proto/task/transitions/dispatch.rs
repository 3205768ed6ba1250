//! An agent was chosen: what it probably costs is reserved, and the call goes out once that is kept (AITP 4.2, AITP 7).

use bytes::Bytes;
use rust_decimal::Decimal;

use super::super::ledger::Cover;
use super::super::machine::Chosen;
use super::super::state::{Attempt, Phase, State, Unkept, number, place};
use super::{fail, settle};
use crate::model::{ErrorCode, Failure, Timestamp};
use crate::wire::task::{Dispatched, Event, Fence, Reason, TEXT_BYTES_MAX};

/// What follows from a choice; nothing if the money it needs is held back by others, or the subtask no longer waits for one.
pub(in crate::proto::task) fn decide(state: &State, subtask: u32, chosen: Chosen, now: Timestamp) -> Vec<Event> {
    let Some(part) = state.part(subtask).filter(|part| part.phase == Phase::Choosing) else { return Vec::new() };
    let cost = chosen.estimate.unwrap_or(Decimal::ZERO);
    match cover(state, subtask, &chosen) {
        Cover::Covered => {}
        Cover::Later => return Vec::new(),
        Cover::Never => {
            let foreseen = settle::foreseen(state, subtask, chosen.agent);
            let left = foreseen.as_ref().unwrap_or(&state.ledger).remaining().unwrap_or_default();
            let message = format!("`{}` probably costs {}, and {} is left of the budget", chosen.name, cost.normalize(), left.normalize());
            return fail::decide(state, subtask, Reason::Cost, over_budget(state, &message), now);
        }
    }
    let attempt = part.attempts.last().map_or(0, |attempt| attempt.number).saturating_add(1);
    let Chosen { agent, name, node, estimate, explain } = chosen;
    // An explanation that is too long for the journal is worth less than the task.
    let explain = if explain.len() > TEXT_BYTES_MAX { Bytes::new() } else { explain };
    vec![Event::Dispatched(Dispatched { fence: Fence { subtask, attempt }, agent, name, node, estimate, explain })]
}

/// Whether the money is there for this choice, once what was lost with attempts before it is settled.
pub(in crate::proto::task) fn cover(state: &State, subtask: u32, chosen: &Chosen) -> Cover {
    let foreseen = settle::foreseen(state, subtask, chosen.agent);
    foreseen.as_ref().unwrap_or(&state.ledger).cover(chosen.estimate.unwrap_or_default())
}

/// What is told when the money does not suffice: the author's own words, if there are any, and ours.
pub(in crate::proto::task) fn over_budget(state: &State, message: &str) -> Failure {
    let budget = state.ledger.budget();
    let notification = state.definition.fallback.cost_notification.as_deref();
    let failure = Failure::new(ErrorCode::OverBudget, notification.map_or_else(|| message.to_owned(), |own| format!("{own}: {message}")));
    let failure = failure.with("spent", state.ledger.spent().normalize().to_string());
    match budget {
        Some(budget) => failure.with("budget", budget.amount.normalize().to_string()).with("currency", budget.currency.to_string()),
        None => failure,
    }
}

pub(in crate::proto::task) fn apply(state: &mut State, event: &Dispatched, at: Timestamp) {
    let index = place(event.fence.subtask);
    let Some(part) = state.parts.get_mut(index) else { return };
    part.started.get_or_insert(at);
    part.waiting = None;
    part.prefer = None;
    part.unkept = Unkept::default();
    part.forget_attempts();
    // Mostly the only one, and each has many fields.
    part.attempts.reserve_exact(1);
    part.attempts.push(Attempt {
        number: event.fence.attempt,
        agent: event.agent,
        name: event.name.clone(),
        node: event.node,
        chosen: at,
        accepted: None,
        ended: None,
        end: None,
        explain: event.explain.clone(),
        estimate: event.estimate,
        child: None,
    });
    if state.definition.subtasks.get(index).is_some_and(|subtask| subtask.task.is_some()) {
        part.share = part.share.or(event.estimate);
        part.unsettled = settle::followed(&mut state.ledger, part, event.fence.subtask, event.agent);
    }
    state.ledger.reserve(number(index), event.estimate.unwrap_or(Decimal::ZERO));
    state.enter(index, Phase::Sent);
}
