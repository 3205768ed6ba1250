//! Eras: what becomes of a replica at its owner's checkpoints, and how it is made anew of what was kept (design/contexts.md "Life").
//!
//! The first era of a context begins with nothing, each later one with what its checkpoint says that the context held: the *base*. A replica
//! that has all that counted of an era makes the base of the next one by itself, and one that has not is *not whole* until it is given it. The
//! graph holds the newest era and the one before, as far as all of that is here.
//!
//! What an author wrote in an era and its checkpoint does not have never counts. If the author is of this node, it is *stranded*: the author
//! writes it once more in the newest era, with new numbers. Among what several authors wrote so, who built on whom is lost.

use std::collections::{BTreeMap, BTreeSet};

use super::{Checkpoint, Refusal, Replica};
use crate::model::{OperationId, Principal, Timestamp};
use crate::proto::context::checkpoint::Base;
use crate::proto::context::fold::Stamp;
use crate::proto::context::operations::{Entry, Operations};
use crate::wire::context::seal::TAG_BYTES;
use crate::wire::context::{Access, Body, Header, Item, Operation, PRINCIPALS_MAX, PrincipalKey, Signed, Verified};

/// How many checkpoints a context may have: they must leave changes of access for those who give and take rights.
const CHECKPOINTS_MAX: usize = 512;

/// How often a checkpoint is drafted with less in it.
const DRAFTS_MAX: usize = 16;

/// An operation that is stranded, and what is left of it to do.
type Stranded = (Verified<Operation>, Body);

/// What came of all that was kept.
#[derive(Debug, Default)]
pub struct Recalled {
    /// What the context held at checkpoints, by their numbers, as far as it was not kept before.
    pub bases: BTreeMap<u64, Base>,
    /// What authors of this node are to write once more: the operation that is stranded, its author, and what the new one does.
    pub stranded: Vec<(OperationId, Principal, Body)>,
    /// Operations that are of no use any more: of eras before the first that is here, unless they are on private memories of this node's
    /// agents, and those of its authors that no checkpoint has.
    pub gone: BTreeSet<OperationId>,
}

impl Replica {
    /// Takes in, as a fresh replica that has the whole line of access, all that one kept, in an order in which each operation builds on those
    /// before it: what the context held at checkpoints, and what was written. Of eras before the last two only private memories are used.
    pub fn recall(&mut self, bases: &BTreeMap<u64, Base>, kept: Vec<Verified<Operation>>) -> Recalled {
        self.foresee(kept.iter());
        let mut stranded = self.stranded(&kept);
        let mut by_era: BTreeMap<u64, Vec<Verified<Operation>>> = BTreeMap::new();
        for operation in kept {
            by_era.entry(self.chain.era(operation.header.acl_epoch)).or_default().push(operation);
        }
        let mut recalled = Recalled::default();
        recalled.gone.extend(stranded.iter().map(|(operation, _)| operation.id()));
        self.drop_repeated(&mut stranded, by_era.values().flatten());
        let begins = |era: &u64| *era == 0 || bases.contains_key(era);
        self.first_era = [self.chain.settled_era(), self.chain.newest_era()].into_iter().find(begins).unwrap_or(0);
        for era in std::iter::once(0).chain(self.chain.checkpoints().to_vec()) {
            let operations = by_era.remove(&era).unwrap_or_default();
            if era < self.first_era {
                self.pass_over(era, &operations, &mut recalled.gone);
                continue;
            }
            if era > 0 {
                self.enter(era, bases, &mut recalled.bases, &mut stranded);
            }
            for operation in operations {
                let _ = self.on_operation(operation);
            }
        }
        stranded.retain_mut(|(operation, body)| {
            body.items.retain(|item| operation.header.is_private || body.step.is_some() || !self.is_replaced(item));
            !body.items.is_empty()
        });
        let again = |(operation, body): Stranded| (operation.id(), operation.header.author, Body { again: Some(operation.id()), ..body });
        recalled.stranded = stranded.into_iter().map(again).collect();
        self.foreseen = Operations::default();
        self.is_stale = false;
        recalled
    }

    /// What authors of this node wrote and no checkpoint has, although it ended the era.
    fn stranded(&self, kept: &[Verified<Operation>]) -> Vec<Stranded> {
        let is_behind = |operation: &&Verified<Operation>| {
            let era = self.chain.era(operation.header.acl_epoch);
            !self.is_before_end(era, operation.id(), &operation.header)
        };
        let opened = |operation: &Verified<Operation>| Some((operation.clone(), self.open_own(operation)?));
        kept.iter().filter(is_behind).filter_map(opened).collect()
    }

    /// Takes away what was written once more already.
    fn drop_repeated<'k>(&self, stranded: &mut Vec<Stranded>, kept: impl Iterator<Item = &'k Verified<Operation>>) {
        if !stranded.is_empty() {
            let again: BTreeSet<OperationId> = kept.filter_map(|operation| self.open_own(operation)?.again).collect();
            stranded.retain(|(operation, _)| !again.contains(&operation.id()));
        }
    }

    /// Takes of an era that is over for good what counts on private memories of this node's agents, which no checkpoint holds.
    fn pass_over(&mut self, era: u64, operations: &[Verified<Operation>], gone: &mut BTreeSet<OperationId>) {
        for operation in operations {
            let (id, Header { author, lamport, is_private, .. }) = (operation.id(), &operation.header);
            let counts = *is_private && self.is_before_end(era, id, &operation.header);
            match if counts { self.open_own(operation) } else { None } {
                Some(body) => self.private.entry(*author).or_default().apply_all(id, *lamport, &body.items),
                None => drop(gone.insert(id)),
            }
        }
    }

    fn open_own(&self, operation: &Operation) -> Option<Body> {
        let is_own = self.own.iter().any(|own| own.principal() == operation.header.author);
        if is_own { self.open(operation).ok().flatten() } else { None }
    }

    fn foresee<'k>(&mut self, kept: impl Iterator<Item = &'k Verified<Operation>>) {
        let mut kept: Vec<_> = kept.collect();
        kept.sort_by_key(|operation| operation.header.lamport);
        for operation in kept {
            let Header { author, seq, prev, lamport, acl_epoch, .. } = operation.header;
            let entry = Entry { author, seq, prev, lamport, acl_epoch, line_bytes: 0, counts: false, skip: None };
            self.foreseen.insert(operation.id(), entry, &operation.header);
        }
    }

    /// Ends the era that is taken in and begins the one of checkpoint `era` with what the context held then: as it was kept, or as this replica
    /// has it. If neither is what the checkpoint says, it is not whole, and goes on with what it has. Of what is stranded of the era that ends
    /// only that is left which would still have changed something, as far as that can be told.
    fn enter(&mut self, era: u64, bases: &BTreeMap<u64, Base>, made: &mut BTreeMap<u64, Base>, stranded: &mut Vec<Stranded>) {
        let Some((checkpoint, cuts)) = self.chain.at(era).and_then(|access| Some((access.checkpoint?, &access.cuts))) else { return };
        let (ended, mut base) = (self.era, bases.get(&era).cloned());
        let is_next = self.chain.end_of(ended).is_some_and(|end| end.epoch == era);
        let is_here = cuts.iter().all(|cut| cut.last.is_some_and(|last| self.operations.get(last.id).is_some()));
        let is_complete = is_next && is_here && self.is_whole;
        if is_complete && base.is_none() {
            base = Base::of(&self.shared, &self.merged).filter(|own| own.checkpoint(checkpoint.lamport) == checkpoint);
            made.extend(base.clone().map(|base| (era, base)));
        }
        if is_complete {
            stranded.retain_mut(|(operation, body)| {
                let is_of_ended = self.chain.era(operation.header.acl_epoch) == ended;
                body.items.retain(|item| !is_of_ended || body.step.is_some() || self.would_change(operation, item));
                !body.items.is_empty()
            });
        }
        let begun = base.and_then(|base| base.begin(checkpoint.lamport));
        self.is_whole = begun.is_some();
        if let Some(begun) = begun {
            (self.shared, self.merged) = begun;
        }
        // No more than two eras are looked back at, and none of which something is missing.
        if !is_complete || era <= self.chain.settled_era() {
            (self.operations, self.first_era) = (Operations::default(), era);
        }
        self.era = era;
        self.operations.begin(era, self.root(era));
    }

    /// Whether an item of an operation that does not count would change what is shown. Nobody looks into a private memory here.
    fn would_change(&self, operation: &Verified<Operation>, item: &Item) -> bool {
        let stamp = Stamp { lamport: operation.header.lamport, id: operation.id(), item: 0 };
        operation.header.is_private || !item.path().segments().get(1..).is_some_and(|below| self.shared.hides(stamp, below))
    }

    /// Whether something of the newest era has taken the place of what an item of an older one would do.
    fn is_replaced(&self, item: &Item) -> bool {
        let stamp = Stamp { lamport: self.clock(), id: OperationId::from_bytes([u8::MAX; 32]), item: u16::MAX };
        item.path().segments().get(1..).is_some_and(|below| self.shared.hides(stamp, below))
    }

    /// Whether the checkpoint that ended an era, if one did, has an operation of it.
    pub(super) fn is_before_end(&self, era: u64, id: OperationId, header: &Header) -> bool {
        let Some(end) = self.chain.end_of(era) else { return true };
        let last = self.chain.last_before(end.epoch, header.author);
        last.is_some_and(|last| self.foreseen.is_on_line(id, header.seq, header.author, last))
    }

    /// The clock from which the operations of this era count on.
    pub(super) fn clock(&self) -> u64 {
        self.chain.at(self.era).and_then(|access| access.checkpoint).map_or(0, |checkpoint| checkpoint.lamport)
    }

    /// The checkpoint with which the owner ends the era, to be taken in like any other change, with what the context holds then. `bases` and
    /// `kept` are what [`Replica::recall`] takes.
    ///
    /// # Errors
    /// If `key` is not the owner's, access stands still, nothing was written since the last one, or there is too much to say.
    pub fn draft_checkpoint(
        &self,
        key: &PrincipalKey,
        bases: &BTreeMap<u64, Base>,
        kept: Vec<Verified<Operation>>,
        at: Timestamp,
    ) -> Result<Verified<Access>, Refusal> {
        if self.chain.split().is_some() {
            return Err(Refusal::Frozen);
        }
        if key.principal() != self.genesis.owner {
            return Err(Refusal::Access);
        }
        if !self.is_whole {
            return Err(Refusal::Checkpoint("what the context held at the last one is not here yet"));
        }
        if self.chain.checkpoints().len() >= CHECKPOINTS_MAX {
            return Err(Refusal::Checkpoint("the context has as many as one may have"));
        }
        let before = self.chain.tip().ok_or(Refusal::NotReader)?;
        let (lamport, mut cuts) = self.operations.ends(self.era);
        // What it says of the state is found by taking it in where nobody sees it. There it shows as well whether all is taken in that it names:
        // what builds on another branch of somebody who signed two operations of one number is not.
        for _ in 0..DRAFTS_MAX {
            if cuts.is_empty() {
                return Err(Refusal::Checkpoint("nothing was written since the last one"));
            }
            if cuts.len() > 2 * PRINCIPALS_MAX {
                return Err(Refusal::Checkpoint("more authors wrote since the last one than a checkpoint can name"));
            }
            let mut access = Access {
                epoch: self.chain.epoch().saturating_add(1),
                prev: before.name(),
                cuts: cuts.clone(),
                at,
                checkpoint: Some(Checkpoint { lamport, hash: [0; 32], bytes: 0 }),
                ..(**before).clone()
            };
            let mut after = Self::new(self.genesis.clone(), self.own.clone());
            for known in self.chain.changes().iter().cloned().chain([Signed::sign(access.clone(), key).map_err(Refusal::Malformed)?]) {
                after.on_access(known).map_err(|_| Refusal::Checkpoint("it does not follow from what was before"))?;
            }
            let base = after.recall_until(bases, kept.clone()).ok_or(Refusal::Checkpoint("the context holds more than one may have"))?;
            let taken = after.operations.ends(self.era).1;
            if taken == cuts {
                access.checkpoint = Some(base.checkpoint(lamport));
                return Signed::sign(access, key).map_err(Refusal::Malformed);
            }
            cuts = taken;
        }
        Err(Refusal::Checkpoint("authors who signed two operations of one number keep it from being told what counted"))
    }

    /// What the era before the newest checkpoint held, by what was kept of it.
    fn recall_until(&mut self, bases: &BTreeMap<u64, Base>, kept: Vec<Verified<Operation>>) -> Option<Base> {
        let era = self.chain.settled_era();
        self.foresee(kept.iter());
        if era > 0 {
            self.enter(era, bases, &mut BTreeMap::new(), &mut Vec::new());
        }
        for operation in kept {
            if self.chain.era(operation.header.acl_epoch) == era {
                let _ = self.on_operation(operation);
            }
        }
        Base::of(&self.shared, &self.merged).filter(|_| self.is_whole)
    }

    /// What the context held at checkpoint `era`, sealed for its readers.
    pub fn seal_base(&self, era: u64, base: &Base) -> Option<Vec<u8>> {
        Some(self.key_at(era)?.seal_base(&self.chain.at(era)?.name(), base.text()))
    }

    /// What was sealed so; `None` if it does not open, or is not what the checkpoint says.
    pub fn open_base(&self, era: u64, sealed: &[u8]) -> Option<Base> {
        let checkpoint = self.chain.at(era)?;
        Base::read(self.key_at(era)?.open_base(&checkpoint.name(), sealed).ok()?, &checkpoint.checkpoint?)
    }

    /// How many bytes the base of the newest checkpoint has when it is sealed, with its number and the checkpoint's name; `None` if it is
    /// here, or there is none.
    pub fn wanted_base(&self) -> Option<(u64, [u8; 32], u64)> {
        let checkpoint = self.chain.at(self.era).filter(|_| !self.is_whole)?;
        Some((self.era, checkpoint.name(), checkpoint.checkpoint?.bytes.saturating_add(TAG_BYTES)))
    }
}
