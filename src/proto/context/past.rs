//! What a context was: its state as of any operations of it (design/contexts.md, `?at=`).
//!
//! A state is a function of a set of operations, so an older one is the fold of those that somebody names and all that they build on, since
//! the checkpoint that their era begins with. What
//! does not count now does not count then either: a writer who was cut off is not shown again by looking back. The replica says which
//! operations there are and which of them count; what stands in them comes from whoever keeps them.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::checkpoint::{Base, Merged};
use super::fold::Fold;
use super::replica::{self, Replica};
use crate::model::{OperationId, Path, Principal};
use crate::wire::context::{Body, Header, Operation, Verified};

/// All that a replica took in, to be gone back along.
#[derive(Debug)]
pub struct Past<'r> {
    replica: &'r Replica,
    bases: BTreeMap<u64, Base>,
    kept: BTreeMap<OperationId, Verified<Operation>>,
    /// What was kept of private memories when the rest of an era was let go of.
    settled: Vec<Verified<Operation>>,
}

/// What a context holds as one of its readers sees it, after some of its operations.
#[derive(Debug, Default)]
pub struct State {
    shared: Fold,
    private: Option<Fold>,
}

impl<'r> Past<'r> {
    /// The past of `replica`, for which all was kept that it took in, and what the context held at checkpoints. What it did not take in is
    /// passed over.
    pub fn new(replica: &'r Replica, bases: BTreeMap<u64, Base>, kept: impl IntoIterator<Item = Verified<Operation>>) -> Self {
        let (kept, left): (Vec<_>, Vec<_>) = kept.into_iter().partition(|operation| replica.operations().get(operation.id()).is_some());
        let chain = replica.chain();
        let is_settled = |operation: &Verified<Operation>| {
            let Header { author, seq, is_private, acl_epoch, .. } = operation.header;
            // What the end of its era left behind was written once more.
            let last = || chain.last_before(chain.end_of(chain.era(acl_epoch))?.epoch, author);
            is_private && acl_epoch < replica.first_era() && last().is_some_and(|last| seq <= last.seq)
        };
        let settled = left.into_iter().filter(is_settled).collect();
        Self { replica, bases, kept: kept.into_iter().map(|operation| (operation.id(), operation)).collect(), settled }
    }

    /// The replica whose past it is.
    pub fn replica(&self) -> &'r Replica {
        self.replica
    }

    /// Those that count and are wanted, in the order of their names, each with what stands in it as far as `reader` may see that.
    pub fn counted(
        &self,
        reader: Principal,
        wanted: impl Fn(&Header) -> bool,
    ) -> impl Iterator<Item = (OperationId, &Verified<Operation>, Body)> {
        let counts = |id: OperationId| self.replica.operations().get(id).is_some_and(|entry| entry.counts);
        let counted = self.kept.iter().filter(move |(id, operation)| wanted(&operation.header) && counts(**id));
        counted.filter_map(move |(id, operation)| Some((*id, operation, self.replica.open_for(operation, reader)?)))
    }

    /// These operations and all that they build on, as far as they are here.
    pub fn behind(&self, frontier: impl IntoIterator<Item = OperationId>) -> BTreeSet<OperationId> {
        let mut behind = BTreeSet::new();
        let mut next: Vec<OperationId> = frontier.into_iter().collect();
        while let Some(id) = next.pop() {
            if let Some(operation) = self.kept.get(&id) {
                if behind.insert(id) {
                    next.extend(operation.header.parents());
                }
            } else if self.replica.is_checkpoint(id) {
                behind.insert(id);
            }
        }
        behind
    }

    /// The newest era of these operations; all that counted of eras before it is behind them.
    pub fn era(&self, operations: &BTreeSet<OperationId>) -> u64 {
        let chain = self.replica.chain();
        let begun =
            chain.checkpoints().iter().copied().filter(|era| self.replica.root(*era).is_some_and(|root| operations.contains(&root)));
        let written = operations.iter().filter_map(|id| self.replica.operations().get(*id)).map(|entry| chain.era(entry.acl_epoch));
        written.chain(begun).max().unwrap_or(0)
    }

    /// What stood where an era begins, and what had been merged by then; `None` if that is not here.
    pub fn begin(&self, era: u64) -> Option<(Fold, Merged)> {
        if era == 0 {
            return Some(Default::default());
        }
        self.bases.get(&era)?.begin(self.replica.chain().at(era)?.checkpoint?.lamport)
    }

    /// Those of `operations` that count and that nothing which counts of them was built on, in order.
    pub fn heads(&self, operations: &BTreeSet<OperationId>) -> BTreeSet<OperationId> {
        let entry = |id: OperationId| self.replica.operations().get(id);
        let counts = |id: &&OperationId| entry(**id).map_or_else(|| self.replica.is_checkpoint(**id), |entry| entry.counts);
        let mut heads: BTreeSet<OperationId> = operations.iter().filter(counts).copied().collect();
        for operation in operations.iter().filter(counts).filter_map(|id| self.kept.get(id)) {
            for parent in operation.header.parents() {
                heads.remove(&parent);
            }
        }
        heads
    }

    /// What the context holds after `operations` and no others, as `reader` sees it; `None` if what stood where their era begins is not here.
    pub fn state(&self, operations: &BTreeSet<OperationId>, reader: Principal) -> Option<State> {
        let (era, chain) = (self.era(operations), self.replica.chain());
        let mut state = State { shared: self.begin(era).filter(|_| era >= self.replica.first_era())?.0, private: None };
        let is_shown = |header: &Header| match chain.era(header.acl_epoch).cmp(&era) {
            Ordering::Equal => true,
            // No checkpoint holds a private memory.
            Ordering::Less => header.is_private,
            Ordering::Greater => false,
        };
        for (id, operation, body) in self.counted(reader, is_shown) {
            let Header { is_private, lamport, acl_epoch, .. } = operation.header;
            if operations.contains(&id) || chain.era(acl_epoch) < era {
                let memory = if is_private { state.private.get_or_insert_default() } else { &mut state.shared };
                memory.apply_all(id, lamport, &body.items);
            }
        }
        for operation in self.settled.iter().filter(|operation| chain.era(operation.header.acl_epoch) < era) {
            if let Some(body) = self.replica.open_for(operation, reader) {
                state.private.get_or_insert_default().apply_all(operation.id(), operation.header.lamport, &body.items);
            }
        }
        Some(state)
    }
}

impl State {
    /// What readers share.
    pub fn shared(&self) -> Value {
        self.shared.value()
    }

    /// The memory of the reader whose view it is, if anything was ever written to it.
    pub fn private(&self) -> Option<Value> {
        self.private.as_ref().map(Fold::value)
    }

    /// The hash of what readers share.
    pub fn hash(&self) -> [u8; 32] {
        replica::state_hash(&self.shared())
    }

    /// What is at `path`, as far as `reader`, whose view it is, may see it.
    pub fn get(&self, path: &Path, reader: Principal) -> Option<Value> {
        match (path.private_to(), path.segments()) {
            (None, [_, below @ ..]) => self.shared.get(below),
            (Some(owner), [_, _, below @ ..]) if owner == reader => self.private.as_ref()?.get(below),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::testing::{Node, all_write, context, path, set, who};
    use super::*;
    use crate::wire::context::Item;

    fn past(node: &Node) -> Past<'_> {
        Past::new(&node.replica, node.bases.clone(), node.kept.values().cloned())
    }

    fn at(node: &Node, operations: &[&Verified<Operation>]) -> Value {
        let past = past(node);
        past.state(&past.behind(operations.iter().map(|operation| operation.id())), who(1)).expect("all is here").shared()
    }

    #[test]
    fn an_older_state_is_that_of_what_was_written_by_then() {
        let mut here = context(&all_write([2]));
        let first = here.write(1, [set("/a", 1), Item::Inc(path("/n"), 1)]);
        let mut there = here.join(&[2]);
        there.pull(&here);
        let second = here.write(1, [set("/a", 2), Item::Inc(path("/n"), 1)]);
        let other = there.write(2, [Item::Del(path("/a")), Item::Inc(path("/n"), 5)]);
        here.pull(&there);
        assert_eq!(at(&here, &[]), json!({}));
        assert_eq!(at(&here, &[&first]), json!({"a": 1, "n": 1}));
        assert_eq!(at(&here, &[&second]), json!({"a": 2, "n": 2}));
        assert_eq!(at(&here, &[&other]), json!({"n": 6}), "the other's line, which builds on the first");
        assert_eq!(at(&here, &[&second, &other]), here.shared());
        assert_eq!(at(&here, &[&first, &second]), json!({"a": 2, "n": 2}), "what one of them builds on adds nothing");
        let past = past(&here);
        let all = past.behind(here.replica.operations().heads().iter().copied());
        assert_eq!(&past.heads(&all), here.replica.operations().heads());
        let state = past.state(&all, who(1)).expect("all is here");
        assert_eq!(state.hash(), here.replica.state_hash());
        assert_eq!(state.get(&path("/n"), who(1)), Some(json!(7)));
    }

    #[test]
    fn a_private_memory_is_shown_as_it_was_to_its_agent_alone() {
        let mut node = context(&all_write([2]));
        node.own.push(2);
        node.rebuild();
        let mine: Path = format!("/agent_memory/{}/x", who(2)).parse().expect("a path");
        let first = node.write(2, [Item::Set(mine.clone(), json!(1))]);
        node.write(2, [Item::Set(mine.clone(), json!(2))]);
        let past = past(&node);
        let operations = past.behind([first.id()]);
        let state = past.state(&operations, who(2)).expect("all is here");
        assert_eq!((state.private(), state.get(&mine, who(2))), (Some(json!({"x": 1})), Some(json!(1))));
        assert_eq!(state.get(&mine, who(1)), None);
        assert_eq!(past.state(&operations, who(1)).and_then(|state| state.private()), None);
    }

    /// A writer who was cut off is not shown by looking back.
    #[test]
    fn what_does_not_count_now_does_not_count_then() {
        let mut owner = context(&all_write([2, 3]));
        let mut writer = owner.join(&[2]);
        writer.pull(&owner);
        writer.write(2, [set("/unseen", 1)]);
        let mut third = owner.join(&[3]);
        third.pull(&writer);
        let later = third.write(3, [set("/later", 1)]);
        assert_eq!(at_of(&third, &later, 3), json!({"unseen": 1, "later": 1}));
        owner.change_access(&all_write([3]));
        third.pull(&owner);
        assert_eq!(at_of(&third, &later, 3), json!({"later": 1}));
    }

    fn at_of(node: &Node, operation: &Verified<Operation>, reader: u8) -> Value {
        let past = past(node);
        past.state(&past.behind([operation.id()]), who(reader)).expect("all is here").shared()
    }

    /// What a checkpoint left behind of a private memory was written once more, and is not counted twice.
    #[test]
    fn what_was_written_once_more_is_shown_once() {
        let mut here = context(&all_write([2]));
        let mut there = here.join(&[2]);
        there.pull(&here);
        let mine: Path = format!("/agent_memory/{}/n", who(2)).parse().expect("a path");
        there.write(2, [Item::Inc(mine.clone(), 1)]);
        here.write(1, [set("/a", 1)]);
        for _ in 0..3 {
            here.checkpoint();
            there.pull(&here);
            there.write(2, [Item::Inc(mine.clone(), 1)]);
            here.pull(&there);
        }
        assert!(there.replica.first_era() > 0);
        let past = past(&there);
        let state = past.state(&past.behind(there.replica.operations().heads().iter().copied()), who(2)).expect("all is here");
        assert_eq!((state.private(), there.replica.private(who(2))), (Some(json!({"n": 4})), Some(json!({"n": 4}))));
    }

    #[test]
    fn a_state_whose_beginning_is_not_here_is_not_shown() {
        let mut here = context(&all_write([2]));
        here.write(1, [set("/a", 1)]);
        here.checkpoint();
        let second = here.write(1, [Item::Inc(path("/n"), 1)]);
        assert_eq!(at(&here, &[&second]), json!({"a": 1, "n": 1}));
        let mut late = here.join(&[2]);
        for access in &here.accesses {
            late.on_access(access.clone()).expect("it counts");
        }
        late.on_operation(second.clone()).expect("it builds on the checkpoint");
        let past = past(&late);
        assert!(past.state(&past.behind([second.id()]), who(2)).is_none());
    }

    #[test]
    fn operations_are_named_by_how_they_begin() {
        let mut node = context(&all_write([]));
        let ids: Vec<OperationId> = (0..40).map(|at| node.write(1, [set("/n", at)]).id()).collect();
        let operations = node.replica.operations();
        for id in &ids {
            assert_eq!(operations.named(&id.to_string()), [*id]);
            assert_eq!(operations.named(&id.to_string()[..12].to_uppercase()), [*id]);
        }
        assert_eq!(operations.named("").len(), 2, "several");
        for text in ["g", "\u{e9}", &"0".repeat(65)] {
            assert_eq!(operations.named(text), []);
        }
    }
}
