//! Operations that cannot be taken in yet, held for a while within a bound (threat T28).

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::model::OperationId;
use crate::wire::context::{Operation, Verified};

/// How many are held.
pub const PARKED_MAX: usize = 1_024;
/// How many bytes they have at most together.
pub const PARKED_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Operations that wait, each for another one or for a change of access.
#[derive(Debug, Default)]
pub struct Park {
    held: BTreeMap<OperationId, Verified<Operation>>,
    /// Those that wait for a key, which is an operation that is not here.
    by_missing: BTreeMap<OperationId, BTreeSet<OperationId>>,
    /// Oldest first; may name some that have left.
    order: VecDeque<OperationId>,
    bytes: usize,
}

impl Park {
    /// Holds one that waits for `missing`, or for something else; those that have waited longest make way.
    pub fn put(&mut self, operation: Verified<Operation>, missing: Option<OperationId>) {
        let id = operation.id();
        if let Some(missing) = missing {
            self.by_missing.entry(missing).or_default().insert(id);
        }
        let bytes = operation.len_bytes();
        if self.held.insert(id, operation).is_some() {
            return;
        }
        self.bytes += bytes;
        self.order.push_back(id);
        while self.held.len() > PARKED_MAX || self.bytes > PARKED_BYTES_MAX {
            let Some(oldest) = self.order.pop_front() else { break };
            self.take(oldest);
        }
        // Some that left are still in line, and wait for something; they go when they are half of it.
        if self.order.len() > 2 * PARKED_MAX {
            let held = &self.held;
            self.order.retain(|id| held.contains_key(id));
            self.by_missing.retain(|_, waiting| {
                waiting.retain(|id| held.contains_key(id));
                !waiting.is_empty()
            });
        }
    }

    /// Gives one back.
    pub fn take(&mut self, id: OperationId) -> Option<Verified<Operation>> {
        let operation = self.held.remove(&id)?;
        self.bytes -= operation.len_bytes();
        Some(operation)
    }

    /// Gives those back that waited for `id`.
    pub fn freed_by(&mut self, id: OperationId) -> Vec<Verified<Operation>> {
        let waiting = self.by_missing.remove(&id).unwrap_or_default();
        waiting.into_iter().filter_map(|id| self.take(id)).collect()
    }

    /// Gives all back, in an order in which each builds on those before it.
    pub fn take_all(&mut self) -> Vec<Verified<Operation>> {
        let mut all: Vec<_> = std::mem::take(self).held.into_values().collect();
        all.sort_by_key(|operation| (operation.header.lamport, operation.id()));
        all
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.held.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }
}
