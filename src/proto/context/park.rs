//! Operations that cannot be taken in yet, held for a while within a bound (threat T28).

use std::collections::{BTreeMap, BTreeSet};

use crate::model::OperationId;
use crate::wire::context::{Operation, Verified};

/// How many are held.
pub const PARKED_MAX: usize = 1_024;
/// How many bytes they have at most together.
pub const PARKED_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Operations that wait, each for another one or for a change of access.
#[derive(Debug, Default)]
pub struct Park {
    held: BTreeMap<OperationId, Held>,
    /// Those that wait for a key, which is an operation that is not here.
    by_missing: BTreeMap<OperationId, BTreeSet<OperationId>>,
    /// By when they came, oldest first.
    by_ticket: BTreeMap<u64, OperationId>,
    next_ticket: u64,
    bytes: usize,
}

#[derive(Debug)]
struct Held {
    operation: Verified<Operation>,
    missing: Option<OperationId>,
    ticket: u64,
}

impl Park {
    /// Holds one that waits for `missing`, or for something else; those that have waited longest make way.
    pub fn put(&mut self, operation: Verified<Operation>, missing: Option<OperationId>) {
        let (id, ticket) = (operation.id(), self.next_ticket);
        self.take(id);
        if let Some(missing) = missing {
            self.by_missing.entry(missing).or_default().insert(id);
        }
        self.next_ticket = ticket.wrapping_add(1);
        self.by_ticket.insert(ticket, id);
        self.bytes += operation.len_bytes();
        self.held.insert(id, Held { operation, missing, ticket });
        while self.held.len() > PARKED_MAX || self.bytes > PARKED_BYTES_MAX {
            let Some((_, oldest)) = self.by_ticket.pop_first() else { break };
            self.take(oldest);
        }
    }

    /// Gives one back.
    pub fn take(&mut self, id: OperationId) -> Option<Verified<Operation>> {
        let Held { operation, missing, ticket } = self.held.remove(&id)?;
        self.bytes -= operation.len_bytes();
        self.by_ticket.remove(&ticket);
        if let Some(missing) = missing
            && let Some(waiting) = self.by_missing.get_mut(&missing)
        {
            waiting.remove(&id);
            if waiting.is_empty() {
                self.by_missing.remove(&missing);
            }
        }
        Some(operation)
    }

    /// Gives those back that waited for `id`.
    pub fn freed_by(&mut self, id: OperationId) -> Vec<Verified<Operation>> {
        let waiting = self.by_missing.remove(&id).unwrap_or_default();
        waiting.into_iter().filter_map(|id| self.take(id)).collect()
    }

    /// Gives all back, in an order in which each builds on those before it.
    pub fn take_all(&mut self) -> Vec<Verified<Operation>> {
        let mut all: Vec<_> = std::mem::take(self).held.into_values().map(|held| held.operation).collect();
        all.sort_by_key(|operation| (operation.header.lamport, operation.id()));
        all
    }

    /// How many bytes they have.
    pub fn len_bytes(&self) -> usize {
        self.bytes
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

#[cfg(test)]
mod tests {
    use super::super::testing::{Node, all_write, context, set};
    use super::*;

    fn line(node: &mut Node, count: usize, bytes: usize) -> Vec<Verified<Operation>> {
        let text = "x".repeat(bytes);
        (0..count).map(|_| node.write(1, [set("/a", text.clone())])).collect()
    }

    #[test]
    fn those_that_waited_longest_make_way_when_there_are_too_many_bytes() {
        let operations = line(&mut context(&all_write([])), 75, 60_000);
        let each = operations[0].len_bytes();
        let fit = PARKED_BYTES_MAX / operations[74].len_bytes();
        assert!((60..75).contains(&fit), "{fit} of {each} bytes");
        let mut park = Park::default();
        operations.iter().for_each(|operation| park.put(operation.clone(), None));
        assert_eq!(park.len(), fit);
        assert!(park.bytes <= PARKED_BYTES_MAX);
        assert!(park.take(operations[74 - fit].id()).is_none(), "the oldest have left");
        assert!(park.take(operations[75 - fit].id()).is_some());
        assert!(park.take(operations[74].id()).is_some());
        assert_eq!(park.bytes, park.held.values().map(|held| held.operation.len_bytes()).sum::<usize>());
    }

    #[test]
    fn one_that_is_put_twice_is_held_once() {
        let operations = line(&mut context(&all_write([])), 2, 10);
        let mut park = Park::default();
        park.put(operations[1].clone(), Some(operations[0].id()));
        park.put(operations[1].clone(), Some(operations[0].id()));
        assert_eq!((park.len(), park.bytes), (1, operations[1].len_bytes()));
        assert_eq!(park.freed_by(operations[1].id()), [], "it waits for another");
        assert_eq!(park.freed_by(operations[0].id()), [operations[1].clone()]);
        assert_eq!((park.len(), park.bytes), (0, 0));
        assert!(park.is_empty());
    }

    #[test]
    fn all_come_back_in_an_order_in_which_each_builds_on_those_before_it() {
        let operations = line(&mut context(&all_write([])), 20, 10);
        let mut park = Park::default();
        operations.iter().rev().for_each(|operation| park.put(operation.clone(), None));
        assert_eq!(park.take_all(), operations);
        assert!(park.is_empty() && park.bytes == 0);
    }

    /// Threat T28: nothing is remembered of those that left.
    #[test]
    fn what_many_waited_for_is_forgotten_with_them() {
        let operations = line(&mut context(&all_write([])), 1_100, 10);
        let mut park = Park::default();
        for round in 0..4_u8 {
            for (operation, at) in operations.iter().zip(0_u16..) {
                let mut missing = [round; 32];
                missing[..2].copy_from_slice(&at.to_be_bytes());
                park.put(operation.clone(), Some(OperationId::from_bytes(missing)));
            }
            assert_eq!((park.len(), park.by_missing.len(), park.by_ticket.len()), (PARKED_MAX, PARKED_MAX, PARKED_MAX));
        }
        park.take_all();
        assert_eq!((park.len(), park.by_missing.len(), park.by_ticket.len(), park.bytes), (0, 0, 0, 0));
    }
}
