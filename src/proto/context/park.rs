//! Operations that cannot be taken in yet, held for a while within a bound (threat T28).
//!
//! Who fills it pushes out its own first: one author has half of it, and all those together who have no right at the present change of access
//! have a quarter. A change that is on its way may give them one, so they are held at all.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::{OperationId, Principal};
use crate::wire::context::{Operation, Verified};

/// How many are held.
pub const PARKED_MAX: usize = 1_024;
/// How many bytes they have at most together.
pub const PARKED_BYTES_MAX: usize = 4 * 1024 * 1024;
/// One author has this part of both: of two, neither keeps the other out.
pub const AUTHOR_PART: usize = 2;
/// All who have no right at present have this part together: keys cost nothing, so they are counted as one.
pub const STRANGERS_PART: usize = 4;

/// Operations that wait, each for another one or for a change of access.
#[derive(Debug, Default)]
pub struct Park {
    held: BTreeMap<OperationId, Held>,
    /// Those that wait for a key, which is an operation that is not here.
    by_missing: BTreeMap<OperationId, BTreeSet<OperationId>>,
    all: Queue,
    by_author: BTreeMap<Principal, Queue>,
    strangers: Queue,
    next_ticket: u64,
}

#[derive(Debug)]
struct Held {
    operation: Verified<Operation>,
    missing: Option<OperationId>,
    ticket: u64,
}

/// Some of them by when they came, oldest first.
#[derive(Debug, Default)]
struct Queue {
    by_ticket: BTreeMap<u64, OperationId>,
    bytes: usize,
}

impl Queue {
    fn put(&mut self, ticket: u64, operation: &Verified<Operation>) {
        self.by_ticket.insert(ticket, operation.id());
        self.bytes = self.bytes.saturating_add(operation.len_bytes());
    }

    fn take(&mut self, ticket: u64, operation: &Verified<Operation>) {
        if self.by_ticket.remove(&ticket).is_some() {
            self.bytes = self.bytes.saturating_sub(operation.len_bytes());
        }
    }

    /// The oldest, if there is more than a part of all that may be held.
    fn beyond(&self, part: usize) -> Option<OperationId> {
        let is_beyond = self.by_ticket.len() > PARKED_MAX / part || self.bytes > PARKED_BYTES_MAX / part;
        self.by_ticket.first_key_value().map(|(_, id)| *id).filter(|_| is_beyond)
    }
}

impl Park {
    /// Holds one that waits for `missing`, or for something else, of an author who may write at present or may not; those that have waited
    /// longest make way.
    pub fn put(&mut self, operation: Verified<Operation>, missing: Option<OperationId>, may_write: bool) {
        let (id, author, ticket) = (operation.id(), operation.header.author, self.next_ticket);
        self.take(id);
        if let Some(missing) = missing {
            self.by_missing.entry(missing).or_default().insert(id);
        }
        self.next_ticket = ticket.wrapping_add(1);
        self.all.put(ticket, &operation);
        self.by_author.entry(author).or_default().put(ticket, &operation);
        if !may_write {
            self.strangers.put(ticket, &operation);
        }
        self.held.insert(id, Held { operation, missing, ticket });
        while let Some(oldest) = self.beyond(author) {
            self.take(oldest);
        }
    }

    fn beyond(&self, author: Principal) -> Option<OperationId> {
        let of_author = || self.by_author.get(&author).and_then(|of| of.beyond(AUTHOR_PART));
        self.strangers.beyond(STRANGERS_PART).or_else(of_author).or_else(|| self.all.beyond(1))
    }

    /// Gives one back.
    pub fn take(&mut self, id: OperationId) -> Option<Verified<Operation>> {
        let Held { operation, missing, ticket } = self.held.remove(&id)?;
        let author = operation.header.author;
        self.all.take(ticket, &operation);
        self.strangers.take(ticket, &operation);
        if let Some(of) = self.by_author.get_mut(&author) {
            of.take(ticket, &operation);
            if of.by_ticket.is_empty() {
                self.by_author.remove(&author);
            }
        }
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
        self.all.bytes
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
    use super::super::testing::{Node, all_write, context, set, who};
    use super::*;

    fn line(node: &mut Node, count: usize, bytes: usize) -> Vec<Verified<Operation>> {
        let text = "x".repeat(bytes);
        (0..count).map(|_| node.write(1, [set("/a", text.clone())])).collect()
    }

    #[test]
    fn those_that_waited_longest_make_way_when_there_are_too_many_bytes() {
        let operations = line(&mut context(&all_write([])), 75, 60_000);
        assert_eq!(operations[74].header.author, who(1));
        let each = operations[0].len_bytes();
        let fit = PARKED_BYTES_MAX / AUTHOR_PART / operations[74].len_bytes();
        assert!((30..37).contains(&fit), "{fit} of {each} bytes");
        let mut park = Park::default();
        operations.iter().for_each(|operation| park.put(operation.clone(), None, true));
        assert_eq!(park.len(), fit);
        assert!(park.all.bytes <= PARKED_BYTES_MAX / AUTHOR_PART);
        assert!(park.take(operations[74 - fit].id()).is_none(), "the oldest have left");
        assert!(park.take(operations[75 - fit].id()).is_some());
        assert!(park.take(operations[74].id()).is_some());
        assert_eq!(park.all.bytes, park.held.values().map(|held| held.operation.len_bytes()).sum::<usize>());
    }

    #[test]
    fn one_that_is_put_twice_is_held_once() {
        let operations = line(&mut context(&all_write([])), 2, 10);
        let mut park = Park::default();
        park.put(operations[1].clone(), Some(operations[0].id()), true);
        park.put(operations[1].clone(), Some(operations[0].id()), true);
        assert_eq!((park.len(), park.all.bytes), (1, operations[1].len_bytes()));
        assert_eq!(park.freed_by(operations[1].id()), [], "it waits for another");
        assert_eq!(park.freed_by(operations[0].id()), [operations[1].clone()]);
        assert_eq!((park.len(), park.all.bytes), (0, 0));
        assert!(park.is_empty());
    }

    #[test]
    fn all_come_back_in_an_order_in_which_each_builds_on_those_before_it() {
        let operations = line(&mut context(&all_write([])), 20, 10);
        let mut park = Park::default();
        operations.iter().rev().for_each(|operation| park.put(operation.clone(), None, true));
        assert_eq!(park.take_all(), operations);
        assert!(park.is_empty() && park.all.bytes == 0);
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
                park.put(operation.clone(), Some(OperationId::from_bytes(missing)), true);
            }
            assert_eq!((park.len(), park.by_missing.len(), park.all.by_ticket.len()), (PARKED_MAX / 2, PARKED_MAX / 2, PARKED_MAX / 2));
        }
        park.take_all();
        assert_eq!((park.len(), park.by_missing.len(), park.all.by_ticket.len(), park.all.bytes), (0, 0, 0, 0));
    }

    /// Threat T28: one author has half, all who have no right a quarter together, and what was there of others stays.
    #[test]
    fn whoever_fills_the_park_pushes_out_its_own() {
        let mut node = context(&all_write([2, 3, 4]));
        node.own.extend([2, 3, 4]);
        let lines: Vec<Vec<_>> = [1, 2, 3, 4].map(|seed| (0..600).map(|_| node.write(seed, [set("/a", 1)])).collect()).into();
        let mut park = Park::default();
        let held = |park: &Park, seed: u8| park.by_author.get(&who(seed)).map_or(0, |of| of.by_ticket.len());
        lines[0][..100].iter().for_each(|operation| park.put(operation.clone(), None, true));
        for (line, seed) in [(&lines[2], 3), (&lines[3], 4)] {
            line.iter().for_each(|operation| park.put(operation.clone(), None, false));
            assert_eq!((park.strangers.by_ticket.len(), held(&park, seed)), (PARKED_MAX / STRANGERS_PART, PARKED_MAX / STRANGERS_PART));
        }
        lines[1].iter().for_each(|operation| park.put(operation.clone(), None, true));
        assert_eq!((held(&park, 1), held(&park, 2), held(&park, 3), held(&park, 4)), (100, PARKED_MAX / AUTHOR_PART, 0, 256));
        lines[0][100..].iter().for_each(|operation| park.put(operation.clone(), None, true));
        let left = (held(&park, 1), held(&park, 2), held(&park, 4), park.len());
        assert_eq!(left, (500, PARKED_MAX / AUTHOR_PART, 12, PARKED_MAX), "those that waited longest made way");
        assert!(lines[0].iter().chain(&lines[1]).all(|operation| park.take(operation.id()).is_none_or(|taken| taken == *operation)));
        assert_eq!(park.len(), park.strangers.by_ticket.len());
    }
}
