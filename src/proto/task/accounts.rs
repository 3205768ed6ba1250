//! What the ledger of a task that has ended must say, told from its events by other means than its own.

use std::collections::BTreeMap;

use rust_decimal::Decimal;

use super::state::State;
use crate::model::AgentId;
use crate::wire::task::{Event, Fence, Loss};

/// The accounts, told a second time from what happened: each answer that said what it cost, and of tasks within this one for each agent
/// and key what it said last, or all that it was given where it was lost after that.
pub(super) fn check(seed: u64, state: &State, events: &[Event], share: Decimal) {
    let is_delegated = |fence: &Fence| state.definition.subtasks[fence.subtask as usize].task.is_some();
    let mut works = BTreeMap::new();
    let mut plain = Decimal::ZERO;
    // What an agent did under one key; another begins where an output was no use.
    let mut delegated: BTreeMap<(u32, AgentId, u32), Decimal> = BTreeMap::new();
    let mut redos: BTreeMap<u32, u32> = BTreeMap::new();
    let mut duplicates: BTreeMap<(u32, AgentId, u32), Decimal> = BTreeMap::new();
    let mut open: BTreeMap<u32, Fence> = BTreeMap::new();
    for event in events {
        let (fence, said) = match event {
            Event::Dispatched(dispatched) => {
                let redo = redos.get(&dispatched.fence.subtask).copied().unwrap_or_default();
                works.insert(dispatched.fence, (dispatched.fence.subtask, dispatched.agent, redo));
                continue;
            }
            Event::Accepted(fence) => {
                open.insert(fence.subtask, *fence);
                continue;
            }
            Event::ResultReceived { fence, charge, .. } | Event::DuplicateResult { fence, charge } => (fence, Some(charge.clone())),
            Event::AttemptFailed { fence, charge: Some(charge), .. } => (fence, Some(Some(charge.clone()))),
            Event::AttemptFailed { fence, loss: Loss::AgentError, .. } | Event::Rejected { fence, .. } => {
                open.remove(&fence.subtask);
                continue;
            }
            Event::AttemptFailed { fence, .. } | Event::Requeued(fence) => (fence, None),
            Event::SubtaskFailed { subtask, .. } => match open.get(subtask) {
                Some(fence) => (fence, None),
                None => continue,
            },
            Event::Ended { .. } => {
                for fence in std::mem::take(&mut open).into_values().filter(is_delegated) {
                    delegated.insert(works[&fence], share);
                }
                continue;
            }
            Event::Submitted(_)
            | Event::Planned { .. }
            | Event::Validated(_)
            | Event::ContextWritten(_)
            | Event::Deferred { .. }
            | Event::CancelRequested
            | Event::Delegated { .. }
            | Event::CalledBack { .. } => continue,
        };
        if matches!(event, Event::AttemptFailed { loss: Loss::InvalidOutput, .. }) {
            *redos.entry(fence.subtask).or_default() += 1;
        }
        let (fence, total) = (*fence, said.map(|charge| charge.map_or(Decimal::ZERO, |charge| charge.total)));
        if open.get(&fence.subtask) == Some(&fence) {
            open.remove(&fence.subtask);
        }
        if is_delegated(&fence) {
            delegated.insert(works[&fence], total.unwrap_or(share));
        } else if matches!(event, Event::DuplicateResult { .. }) {
            duplicates.insert(works[&fence], total.unwrap_or_default());
        } else {
            // The same work, which counts once.
            if total.is_some() {
                duplicates.remove(&works[&fence]);
            }
            plain += total.unwrap_or_default();
        }
    }
    let all: Decimal = plain + duplicates.values().sum::<Decimal>() + delegated.values().sum::<Decimal>();
    assert_eq!(state.ledger().spent(), all, "seed {seed}: {:?}", state.ledger().lines());
    for line in state.ledger().lines().iter().filter(|line| line.assumed) {
        assert!(is_delegated(&line.fence) && line.charge.total == share, "seed {seed}: {line:?}");
    }
}
