//! Principals, contexts and replicas for the tests of contexts: everything that a replica was given is kept, so that it can be given to
//! another in any order.

use std::collections::{BTreeMap, BTreeSet};

use rand::SeedableRng;
use rand::rngs::StdRng;
use serde_json::Value;

use super::chain::Step;
use super::checkpoint::Base;
use super::replica::{self, Refusal, Replica, Rights, Taken};
use crate::model::{Path, Principal, Timestamp};
use crate::wire::VERSION;
use crate::wire::context::seal::ContextKey;
use crate::wire::context::{Access, Body, Genesis, Header, Item, Operation, PrincipalKey, Signed, Verified};

/// When every test begins.
pub(super) const BEGIN: Timestamp = Timestamp::from_ms(1_700_614_200_000);
/// When every context ends, unless it is extended.
pub(super) const END: Timestamp = Timestamp::from_ms(1_700_617_800_000);

pub(super) fn key(seed: u8) -> PrincipalKey {
    PrincipalKey::from_seed(&[seed; 32])
}

pub(super) fn who(seed: u8) -> Principal {
    key(seed).principal()
}

pub(super) fn path(below: &str) -> Path {
    format!("/shared_memory{below}").parse().expect("a path")
}

pub(super) fn set(below: &str, value: impl Into<Value>) -> Item {
    Item::Set(path(below), value.into())
}

pub(super) fn body(items: impl IntoIterator<Item = Item>) -> Body {
    Body { items: items.into_iter().collect(), sources: Vec::new(), step: None, source: None, again: None }
}

/// Everybody may write everywhere.
pub(super) fn all_write(seeds: impl IntoIterator<Item = u8>) -> Rights {
    let write = seeds.into_iter().map(|seed| (who(seed), BTreeSet::from([Path::shared()]))).collect();
    Rights { read: BTreeSet::new(), write }
}

/// What one node has of a context, and all that it kept of it.
pub(super) struct Node {
    pub(super) replica: Replica,
    pub(super) own: Vec<u8>,
    pub(super) accesses: Vec<Verified<Access>>,
    pub(super) kept: BTreeMap<(u64, [u8; 32]), Verified<Operation>>,
    pub(super) bases: BTreeMap<u64, Base>,
    pub(super) rebuilds: usize,
}

/// A context of the owner 1 in which those with `seeds` may write, and the owner's node.
pub(super) fn context(rights: &Rights) -> Node {
    let genesis = Genesis {
        v: VERSION,
        owner: who(1),
        nonce: [9; 16],
        session_id: "session-1".to_owned(),
        created_at: BEGIN,
        expires_at: END,
        parent: None,
    };
    let genesis = replica::begin(&key(1), genesis).expect("a valid genesis");
    let mut node = Node::new(genesis, &[1]);
    node.change_access(rights);
    node
}

impl Node {
    /// A node with the keys of `own`, which knows how a context began.
    pub(super) fn new(genesis: Verified<Genesis>, own: &[u8]) -> Self {
        let replica = Replica::new(genesis, own.iter().map(|seed| key(*seed)).collect());
        Self { replica, own: own.to_vec(), accesses: Vec::new(), kept: BTreeMap::new(), bases: BTreeMap::new(), rebuilds: 0 }
    }

    /// Another node with the keys of `own`, which knows how the context began.
    pub(super) fn join(&self, own: &[u8]) -> Self {
        Self::new(self.replica.genesis().clone(), own)
    }

    /// The owner changes the rights.
    pub(super) fn change_access(&mut self, rights: &Rights) -> Verified<Access> {
        let access = self.draft_access(rights);
        assert_eq!(self.on_access(access.clone()), Ok(Step::Added));
        access
    }

    pub(super) fn draft_access(&self, rights: &Rights) -> Verified<Access> {
        let mut rng = StdRng::seed_from_u64(self.replica.chain().epoch());
        self.replica.draft_access(&key(1), rights, END, BEGIN, &mut rng).expect("the owner may")
    }

    pub(super) fn on_access(&mut self, access: Verified<Access>) -> Result<Step, super::chain::Refusal> {
        let (step, taken) = self.replica.on_access(access.clone())?;
        if matches!(step, Step::Added | Step::Split) {
            self.accesses.push(access);
        }
        self.keep(taken);
        Ok(step)
    }

    /// An operation of the author `seed`, not yet taken in.
    pub(super) fn draft(&self, seed: u8, items: impl IntoIterator<Item = Item>) -> Result<Verified<Operation>, Refusal> {
        self.draft_body(seed, &body(items))
    }

    fn draft_body(&self, seed: u8, body: &Body) -> Result<Verified<Operation>, Refusal> {
        let mut rng = StdRng::seed_from_u64(u64::try_from(self.replica.operations().len()).expect("few") << 8 | u64::from(seed));
        self.replica.draft(&key(seed), body, BEGIN, &mut rng)
    }

    pub(super) fn write_body(&mut self, seed: u8, body: &Body) -> Result<usize, Refusal> {
        let operation = self.draft_body(seed, body)?;
        self.on_operation(operation)
    }

    /// The owner ends the era.
    pub(super) fn checkpoint(&mut self) -> Verified<Access> {
        let checkpoint = self.draft_checkpoint().expect("the owner may");
        assert_eq!(self.on_access(checkpoint.clone()), Ok(Step::Added));
        checkpoint
    }

    pub(super) fn draft_checkpoint(&self) -> Result<Verified<Access>, Refusal> {
        self.replica.draft_checkpoint(&key(1), &self.bases, self.kept.values().cloned().collect(), BEGIN)
    }

    /// What the author `seed` would write next, with another header and other items, signed by whom the header names.
    pub(super) fn forge(&self, seed: u8, items: impl IntoIterator<Item = Item>, change: impl FnOnce(&mut Header)) -> Verified<Operation> {
        let mut header = self.draft(seed, [set("/forged", 1)]).expect("may").header.clone();
        change(&mut header);
        let tip = self.replica.chain().tip().expect("a tip");
        let context_key = self.own.iter().find_map(|own| ContextKey::of(tip, &key(*own)).ok()).expect("a reader");
        let mut rng = StdRng::seed_from_u64(header.lamport << 16 | header.seq << 8 | u64::from(seed));
        let operation = context_key.seal_operation(header, &body(items), &mut rng).expect("a valid body");
        let signer = (1..16).find(|signer| who(*signer) == operation.header.author).expect("one of the tests' principals");
        Signed::sign(operation, &key(signer)).expect("a valid operation")
    }

    /// What the owner would change next, changed and signed all the same.
    pub(super) fn forge_access(&self, rights: &Rights, change: impl FnOnce(&mut Access)) -> Verified<Access> {
        let mut access = (*self.draft_access(rights)).clone();
        change(&mut access);
        Signed::sign(access, &key(1)).expect("a valid change")
    }

    /// The author `seed` writes here.
    pub(super) fn write(&mut self, seed: u8, items: impl IntoIterator<Item = Item>) -> Verified<Operation> {
        let operation = self.draft(seed, items).expect("may write");
        let taken = self.on_operation(operation.clone()).expect("counts");
        assert_eq!(taken, 1, "one operation is taken in");
        operation
    }

    /// How many operations were taken in.
    pub(super) fn on_operation(&mut self, operation: Verified<Operation>) -> Result<usize, Refusal> {
        let taken = self.replica.on_operation(operation)?;
        let count = taken.kept.len();
        self.keep(taken);
        Ok(count)
    }

    fn keep(&mut self, taken: Taken) {
        self.kept.extend(taken.kept.into_iter().map(|operation| ((operation.header.lamport, operation.name()), operation)));
        if self.replica.is_stale() {
            self.rebuild();
        }
    }

    /// Makes the replica anew from all that was kept, as a node does that reads its disk.
    pub(super) fn rebuild(&mut self) {
        self.rebuilds += 1;
        let keys = self.own.iter().map(|seed| key(*seed)).collect();
        let mut replica = Replica::new(self.replica.genesis().clone(), keys);
        for access in &self.accesses {
            replica.on_access(access.clone()).expect("it counted before");
        }
        let recalled = replica.recall(&self.bases, self.kept.values().cloned().collect());
        self.bases.extend(recalled.bases);
        // What a node lets go of.
        if replica.is_whole() {
            self.kept.retain(|_, operation| !recalled.gone.contains(&operation.id()));
        }
        let parked = self.replica.take_parked();
        self.replica = replica;
        for operation in parked {
            let _ = self.on_operation(operation);
        }
        for (_, author, body) in recalled.stranded {
            let seed = self.own.iter().copied().find(|seed| who(*seed) == author).expect("its own");
            self.write_body(seed, &body).expect("it still may");
        }
    }

    /// Takes in all that another node has, as far as this one lacks it.
    pub(super) fn pull(&mut self, other: &Self) {
        for access in &other.accesses {
            self.on_access(access.clone()).expect("it counted there");
        }
        for id in other.replica.beyond(&self.replica.tips()) {
            let lamport = other.replica.operations().get(id).expect("listed").lamport;
            let operation = other.kept.get(&(lamport, id.to_bytes())).expect("kept what it lists");
            let _ = self.on_operation(operation.clone());
        }
        // What stood at the checkpoint, if it cannot be made of what is here.
        if !self.replica.is_whole()
            && let Some((era, base)) = other.bases.last_key_value()
        {
            self.bases.insert(*era, base.clone());
            self.rebuild();
        }
    }

    pub(super) fn shared(&self) -> Value {
        self.replica.shared()
    }
}
