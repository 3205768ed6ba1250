//! One context in memory: its replica, and the file that holds all that the replica was given.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use bytes::Bytes;

use super::book::{principals, refused};
use crate::model::{ContextId, ErrorCode, Failure, OperationId, Principal};
use crate::node::handle::disk_failure;
use crate::node::shared::lock;
use crate::proto::context::chain::Step;
use crate::proto::context::past::Past;
use crate::proto::context::quota::Quotas;
use crate::proto::context::replica::{Refusal, Replica};
use crate::store::{self, CONTEXT_BYTES_MAX, Kept, KeptKind, Log, Place};
use crate::wire::context::{Access, Genesis, Operation, PrincipalKey, Signed, Statement, Verified, verify};

/// What all contexts take on the disk.
pub(super) type Room = Arc<Mutex<Quotas>>;

/// A context in memory.
#[derive(Debug)]
pub(super) struct Hot {
    pub(super) replica: Replica,
    log: Log,
    room: Room,
    own: Vec<PrincipalKey>,
    /// Where each operation stands in the file.
    places: BTreeMap<OperationId, Place>,
    /// Whether the replica has taken in what its file has not.
    is_ahead: bool,
    /// How far authors had written by a file that is damaged; what comes after that may hang on what cannot be read.
    written: BTreeMap<Principal, u64>,
}

/// What came of statements.
#[derive(Debug, Default)]
pub(super) struct Taken {
    /// What is new, and kept.
    pub(super) accesses: Vec<Verified<Access>>,
    /// What is new, and kept.
    pub(super) operations: Vec<Verified<Operation>>,
    /// Authors who signed two operations of one number.
    pub(super) equivocators: BTreeSet<Principal>,
    /// Why something was refused, if something was: it was not signed by whom it names, or does not count.
    pub(super) refused: Option<String>,
}

impl Taken {
    /// The operations that are new, by their names.
    pub(super) fn ids(&self) -> Vec<OperationId> {
        self.operations.iter().map(Verified::<Operation>::id).collect()
    }

    /// Whether nothing is new.
    pub(super) fn is_empty(&self) -> bool {
        self.accesses.is_empty() && self.operations.is_empty()
    }

    fn refuse(&mut self, reason: impl std::fmt::Display) {
        self.refused.get_or_insert_with(|| reason.to_string());
    }
}

fn kept_access(access: &Verified<Access>) -> Kept {
    Kept { kind: KeptKind::Access, bytes: Bytes::from(access.to_bytes()) }
}

fn kept_operation(operation: &Verified<Operation>) -> Kept {
    Kept { kind: KeptKind::Operation, bytes: Bytes::from(operation.to_bytes()) }
}

impl Hot {
    /// Begins a context with its first statements, all of them durably or none.
    ///
    /// # Errors
    /// If there is no room, the disk refuses, or a statement does not count.
    pub(super) fn begin(
        contexts: &store::Contexts,
        genesis: Verified<Genesis>,
        accesses: Vec<Verified<Access>>,
        operations: Vec<Verified<Operation>>,
        own: Vec<PrincipalKey>,
        room: Room,
    ) -> Result<Self, Failure> {
        let mut first = vec![Kept { kind: KeptKind::Genesis, bytes: Bytes::from(genesis.to_bytes()) }];
        let mut replica = Replica::new(genesis, own.clone());
        for access in accesses {
            let kept = kept_access(&access);
            let refused = |error: crate::proto::context::chain::Refusal| Failure::new(ErrorCode::InvalidRequest, error.to_string());
            if matches!(replica.on_access(access).map_err(refused)?.0, Step::Added | Step::Split) {
                first.push(kept);
            }
        }
        let mut ids = Vec::new();
        for operation in operations {
            first.push(kept_operation(&operation));
            ids.push(operation.id());
            replica.on_operation(operation).map_err(|refusal| super::door::refused(&refusal))?;
        }
        let places = Place::of_first(&first);
        let places = ids.into_iter().rev().zip(places.into_iter().rev()).collect();
        let (id, owner) = (replica.id(), replica.genesis().owner);
        let bytes = first.iter().map(Kept::len_bytes).sum();
        lock(&room).reserve(id, owner, &principals(&own), bytes).map_err(|full| refused(&full))?;
        let created = contexts.create(id, &first).map_err(disk_failure);
        let log = created.inspect_err(|_| lock(&room).remove(id))?;
        lock(&room).set(id, owner, log.len_bytes());
        Ok(Self { replica, log, room, own, places, is_ahead: false, written: BTreeMap::new() })
    }

    /// Reads a context; `None` if there is none of that name. What could not be read is told in words.
    ///
    /// # Errors
    /// If the disk refuses, or nothing of the file can be used.
    pub(super) fn load(
        contexts: &store::Contexts,
        id: ContextId,
        own: Vec<PrincipalKey>,
        room: Room,
    ) -> Result<Option<(Self, Option<String>)>, Failure> {
        let Some((log, loaded)) = contexts.open(id).map_err(disk_failure)? else { return Ok(None) };
        let Replayed { replica, ids, mut written, damage } = replayed(id, &loaded.kept, own.clone(), loaded.damage.is_some())?;
        let places = ids.into_iter().zip(loaded.places).filter_map(|(id, place)| Some((id?, place))).collect();
        let damage = loaded.damage.or(damage);
        // Whoever wrote the last operation, which was changed since, has signed its number already.
        if let Some(last) = loaded.changed_last.and_then(|bytes| Signed::<Operation>::from_bytes(&bytes).ok()) {
            let (author, seq) = (last.unverified().header.author, last.unverified().header.seq);
            if seq == replica.operations().last(author).map_or(0, |before| before.seq.saturating_add(1)) {
                written.insert(author, seq);
            }
        }
        let written = if damage.is_some() { written } else { BTreeMap::new() };
        lock(&room).set(id, replica.genesis().owner, log.len_bytes());
        Ok(Some((Self { replica, log, room, own, places, is_ahead: false, written }, damage)))
    }

    /// Whether the replica has taken in what its file has not: it must be dropped.
    pub(super) fn is_ahead(&self) -> bool {
        self.is_ahead
    }

    /// Whether so many bytes more find room, on this node and in the file.
    ///
    /// # Errors
    /// As [`refused`].
    pub(super) fn has_room(&self, bytes: u64) -> Result<(), Failure> {
        self.fits(bytes)?;
        let (id, owner) = (self.replica.id(), self.replica.genesis().owner);
        lock(&self.room).check(id, owner, &principals(&self.own), bytes).map_err(|full| refused(&full))
    }

    fn fits(&self, bytes: u64) -> Result<(), Failure> {
        if self.len_bytes().saturating_add(bytes) <= CONTEXT_BYTES_MAX {
            return Ok(());
        }
        let message = format!("the context has all that one may have on a node, {} MiB", CONTEXT_BYTES_MAX / 1024 / 1024);
        Err(Failure::new(ErrorCode::InsufficientResources, message).with("limit", CONTEXT_BYTES_MAX).retryable(false))
    }

    /// Refuses a new operation of an author whose last ones are on the disk and hang on one that is damaged: a second one of the same number
    /// would be proof of a lie.
    ///
    /// # Errors
    /// `UNAVAILABLE` until another replica has given back what is missing.
    pub(super) fn may_draft(&self, author: Principal) -> Result<(), Failure> {
        let (written, last) = (self.written.get(&author), self.replica.operations().last(author).map(|last| last.seq));
        if written.is_none_or(|written| last.is_some_and(|last| last >= *written)) {
            return Ok(());
        }
        let message = "the file of this context is damaged, and what was written last hangs on what cannot be read";
        Err(Failure::new(ErrorCode::Unavailable, message).with("suggestion", "it goes on once another reader's node has given that back"))
    }

    /// Makes the replica anew from the file, after a change of access that took something back. What was parked is taken in again, and may count
    /// by now.
    fn rebuild(&mut self) -> Result<Taken, Failure> {
        let loaded = self.log.read().map_err(disk_failure)?;
        let parked = self.replica.take_parked();
        self.replica = replayed(self.replica.id(), &loaded.kept, self.own.clone(), loaded.damage.is_some())?.replica;
        let mut taken = Taken::default();
        parked.into_iter().for_each(|operation| self.take_operation(operation, &mut taken));
        Ok(taken)
    }

    /// These operations as they were kept, in this order, as far as they are here; no more than they is read of the file.
    ///
    /// # Errors
    /// If the disk refuses.
    pub(super) fn operations(&self, ids: impl IntoIterator<Item = OperationId>) -> Result<Vec<Verified<Operation>>, Failure> {
        let places: Vec<Place> = ids.into_iter().filter_map(|id| self.places.get(&id).copied()).collect();
        let kept = self.log.read_at(&places).map_err(disk_failure)?;
        let unread = |error: crate::wire::Error| Failure::new(ErrorCode::Internal, error.to_string());
        kept.iter().map(|kept| Verified::kept(&kept.bytes).map_err(unread)).collect()
    }

    /// All operations in the file, to be gone back along.
    ///
    /// # Errors
    /// If the disk refuses.
    pub(super) fn past(&self) -> Result<Past<'_>, Failure> {
        let kept = self.log.read().map_err(disk_failure)?.kept;
        let operations = kept.into_iter().filter(|kept| kept.kind == KeptKind::Operation);
        Ok(Past::new(&self.replica, operations.filter_map(|kept| Verified::kept(&kept.bytes).ok())))
    }

    /// Some statements of the file from a byte on, and where they end; see [`Log::page`].
    ///
    /// # Errors
    /// If the disk refuses.
    pub(super) fn page(&self, from: u64) -> Result<(Vec<Kept>, u64), Failure> {
        self.log.page(from).map_err(disk_failure)
    }

    /// How many bytes the file has of an operation, if it has it.
    pub(super) fn length_of(&self, id: OperationId) -> Option<usize> {
        self.places.get(&id).map(|place| place.len_bytes())
    }

    /// How large the file is.
    pub(super) fn len_bytes(&self) -> u64 {
        self.log.len_bytes()
    }

    /// About how many bytes of memory it takes.
    pub(super) fn held_bytes(&self) -> u64 {
        self.replica.held_bytes()
    }

    /// Takes in what this node wrote or another sent, and keeps what is new before it returns.
    ///
    /// # Errors
    /// If the disk refuses: the replica is then ahead of its file and must be dropped.
    pub(super) fn take(&mut self, accesses: Vec<Signed<Access>>, operations: Vec<Signed<Operation>>) -> Result<Taken, Failure> {
        let mut taken = Taken::default();
        for access in accesses {
            match access.verify() {
                Ok(access) => self.take_access(access, &mut taken),
                Err(error) => taken.refuse(error),
            }
        }
        for operation in verify(operations) {
            match operation {
                Ok(operation) => self.take_operation(operation, &mut taken),
                Err(error) => taken.refuse(error),
            }
        }
        self.keep(taken)
    }

    /// Takes in a change of access that this node's owner made.
    ///
    /// # Errors
    /// As [`Hot::take`].
    pub(super) fn take_own_access(&mut self, access: Verified<Access>) -> Result<Taken, Failure> {
        let mut taken = Taken::default();
        self.take_access(access, &mut taken);
        self.keep(taken)
    }

    /// Takes an operation that was drafted here into the replica, not yet to the disk.
    ///
    /// # Errors
    /// If it does not count; nothing was changed.
    pub(super) fn take_drafted(&mut self, operation: Verified<Operation>, taken: &mut Taken) -> Result<(), Refusal> {
        let step = self.replica.on_operation(operation)?;
        self.note(step, taken);
        self.is_ahead |= !taken.is_empty();
        Ok(())
    }

    fn take_operation(&mut self, operation: Verified<Operation>, taken: &mut Taken) {
        match self.replica.on_operation(operation) {
            Ok(step) => self.note(step, taken),
            Err(error) => taken.refuse(error),
        }
        self.is_ahead |= !taken.is_empty();
    }

    fn take_access(&mut self, access: Verified<Access>, taken: &mut Taken) {
        match self.replica.on_access(access.clone()) {
            Ok((step, more)) => {
                if matches!(step, Step::Added | Step::Split) {
                    taken.accesses.push(access);
                }
                self.note(more, taken);
            }
            Err(error) => taken.refuse(error),
        }
        self.is_ahead |= !taken.is_empty();
    }

    fn note(&self, step: crate::proto::context::replica::Taken, taken: &mut Taken) {
        let authors = step.twins.iter().filter_map(|(first, _)| self.replica.operations().get(*first)).map(|entry| entry.author);
        taken.equivocators.extend(authors);
        if let Some((_, error)) = step.refused.first() {
            taken.refuse(error);
        }
        taken.operations.extend(step.kept);
    }

    /// Keeps what was taken in, and what follows from it.
    ///
    /// # Errors
    /// As [`Hot::take`].
    pub(super) fn keep(&mut self, mut taken: Taken) -> Result<Taken, Failure> {
        self.append(&taken)?;
        if self.replica.is_stale() {
            let freed = self.rebuild()?;
            self.append(&freed)?;
            taken.operations.extend(freed.operations);
            taken.equivocators.extend(freed.equivocators);
        }
        self.is_ahead = false;
        Ok(taken)
    }

    /// Has the file hold what the replica took in.
    fn append(&mut self, taken: &Taken) -> Result<(), Failure> {
        if taken.is_empty() {
            return Ok(());
        }
        let statements: Vec<Kept> = taken.accesses.iter().map(kept_access).chain(taken.operations.iter().map(kept_operation)).collect();
        let bytes = statements.iter().map(Kept::len_bytes).sum();
        self.fits(bytes)?;
        let (id, owner) = (self.replica.id(), self.replica.genesis().owner);
        lock(&self.room).reserve(id, owner, &principals(&self.own), bytes).map_err(|full| refused(&full))?;
        let appended = self.log.append(&statements).map_err(disk_failure);
        lock(&self.room).set(id, owner, self.log.len_bytes());
        let places = appended?.into_iter().skip(taken.accesses.len());
        self.places.extend(taken.operations.iter().map(Verified::<Operation>::id).zip(places));
        Ok(())
    }
}

/// What was made of a file.
struct Replayed {
    replica: Replica,
    /// The operation that each entry is, if it is one.
    ids: Vec<Option<OperationId>>,
    /// How far authors had written.
    written: BTreeMap<Principal, u64>,
    /// What could not be used.
    damage: Option<String>,
}

/// A replica of all that was kept. Beside damage, checksums are not enough: what looks like a statement may stand in the text of another.
fn replayed(id: ContextId, kept: &[Kept], own: Vec<PrincipalKey>, is_damaged: bool) -> Result<Replayed, Failure> {
    let damaged = |reason: String| Failure::new(ErrorCode::Internal, format!("context {} cannot be read: {reason}", id.short()));
    let first = kept.first().filter(|first| first.kind == KeptKind::Genesis);
    let first = first.ok_or_else(|| damaged("its file does not begin with its genesis".to_owned()))?;
    let genesis = Verified::<Genesis>::kept(&first.bytes).map_err(|error| damaged(error.to_string()))?;
    if genesis.name() != id.to_bytes() {
        return Err(damaged("its file is that of another context".to_owned()));
    }
    let mut replica = Replica::new(genesis, own);
    let (mut operations, mut damage, mut written) = (Vec::new(), None, BTreeMap::new());
    let mut unread = |error: crate::wire::Error| damage = damage.take().or_else(|| Some(error.to_string()));
    let mut ids = Vec::with_capacity(kept.len());
    for kept in kept {
        let mut id = None;
        match kept.kind {
            KeptKind::Genesis => {}
            KeptKind::Access => match believed(&kept.bytes, is_damaged) {
                // What was kept counted once; what came of it since then the chain knows.
                Ok(access) => drop(replica.on_access(access)),
                Err(error) => unread(error),
            },
            KeptKind::Operation => match believed::<Operation>(&kept.bytes, is_damaged) {
                Ok(operation) => {
                    let seq = written.entry(operation.header.author).or_insert(operation.header.seq);
                    *seq = operation.header.seq.max(*seq);
                    id = Some(operation.id());
                    operations.push(operation);
                }
                Err(error) => unread(error),
            },
        }
        ids.push(id);
    }
    replica.foresee(operations.iter());
    for operation in operations {
        let _ = replica.on_operation(operation);
    }
    replica.settle();
    Ok(Replayed { replica, ids, written, damage })
}

fn believed<T: Statement>(bytes: &[u8], is_damaged: bool) -> Result<Verified<T>, crate::wire::Error> {
    if is_damaged { Signed::from_bytes(bytes).and_then(Signed::verify) } else { Verified::kept(bytes) }
}
