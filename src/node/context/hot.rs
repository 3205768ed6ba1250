//! One context in memory: its replica, and the file that holds all that the replica was given.
//!
//! After a checkpoint the file is given what the context held then, and what authors of this node wrote that the checkpoint does not have is
//! written once more; at the next one the file lets go of what was before. Each of these is done again after a start if the node
//! died before it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use bytes::Bytes;

use super::book::{principals, refused};
use crate::model::{ContextId, ErrorCode, Failure, OperationId, Principal, Timestamp};
use crate::node::handle::{UNFLUSHED, disk_failure};
use crate::node::shared::lock;
use crate::proto::context::chain::Step;
use crate::proto::context::checkpoint::Base;
use crate::proto::context::edit;
use crate::proto::context::past::Past;
use crate::proto::context::quota::Quotas;
use crate::proto::context::replica::{Recalled, Refusal, Replica};
use crate::store::{self, CONTEXT_BYTES_MAX, Kept, KeptKind, Log, Place};
use crate::wire::context::sync::PIECE_BYTES_MAX;
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
    /// Where the pieces of bases stand in the file, by their checkpoints.
    bases: BTreeMap<[u8; 32], Vec<Place>>,
    /// How many entries the file has let go of.
    dropped: u64,
    /// When it was last looked at.
    pub(super) now: Timestamp,
    /// Before which no checkpoint is tried again.
    put_off: Timestamp,
}

/// How long after a checkpoint that could not be made the next is tried.
const PUT_OFF: std::time::Duration = std::time::Duration::from_secs(24 * 3_600);

/// What an operation takes beside its items, or a little more.
const SPARE_BYTES: usize = 4 * 1024;
/// How much of a base is one entry of a file.
const PIECE_BYTES: usize = 64 * 1024;

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

    fn extend(&mut self, more: Self) {
        self.accesses.extend(more.accesses);
        self.operations.extend(more.operations);
        self.equivocators.extend(more.equivocators);
        self.refused = self.refused.take().or(more.refused);
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
        now: Timestamp,
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
        if replica.is_stale() {
            // A checkpoint is among them, and what stood there comes later.
            replica.recall(&BTreeMap::new(), Vec::new());
        }
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
        let (written, bases) = (BTreeMap::new(), BTreeMap::new());
        Ok(Self { replica, log, room, own, places, is_ahead: false, written, bases, dropped: 0, now, put_off: Timestamp::from_ms(0) })
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
        now: Timestamp,
    ) -> Result<Option<(Self, Option<String>)>, Failure> {
        let Some((log, loaded)) = contexts.open(id).map_err(disk_failure)? else { return Ok(None) };
        let Contents { replica, bases, operations, entries, mut written, damage } =
            Contents::of(id, &loaded.kept, own.clone(), loaded.damage.is_some())?;
        let damage = loaded.damage.or(damage);
        lock(&room).set(id, replica.genesis().owner, log.len_bytes());
        let mut hot = Self {
            replica,
            log,
            room,
            own,
            places: BTreeMap::new(),
            is_ahead: false,
            written: BTreeMap::new(),
            bases: BTreeMap::new(),
            dropped: 0,
            now,
            put_off: Timestamp::from_ms(0),
        };
        hot.find(&entries, &loaded.kept, loaded.places);
        let recalled = hot.replica.recall(&bases, operations);
        // Whoever wrote the last operation, which was changed since, has signed its number already.
        if let Some(last) = loaded.changed_last.and_then(|bytes| Signed::<Operation>::from_bytes(&bytes).ok()) {
            let (author, seq) = (last.unverified().header.author, last.unverified().header.seq);
            if seq == hot.replica.last(author).map_or(0, |before| before.seq.saturating_add(1)) {
                written.insert(author, seq);
            }
        }
        if damage.is_some() {
            hot.written = written;
        }
        let (taken, gone) = hot.settle(recalled);
        match hot.append(&taken) {
            Ok(()) => {}
            Err(failure) if failure.details.contains_key(UNFLUSHED) => return Err(failure),
            // There is no room for what is to be written once more: it waits, and the rest is shown.
            Err(failure) => {
                tracing::warn!(context = %id, %failure, "what a checkpoint left behind is not written once more yet");
                let contents = hot.stored()?;
                hot.replica = contents.replica;
                hot.replica.recall(&contents.bases, contents.operations);
                hot.is_ahead = false;
                return Ok(Some((hot, damage)));
            }
        }
        hot.is_ahead = false;
        hot.let_go(&gone);
        Ok(Some((hot, damage)))
    }

    /// Notes where everything stands in the file.
    fn find(&mut self, entries: &[EntryName], kept: &[Kept], places: Vec<Place>) {
        (self.places, self.bases, self.dropped) = (BTreeMap::new(), BTreeMap::new(), 0);
        for ((entry, kept), place) in entries.iter().zip(kept).zip(places) {
            match entry {
                EntryName::Operation(id) => drop(self.places.insert(*id, place)),
                EntryName::Base(checkpoint, from) => {
                    // A node that was killed may have left some of them, before it kept all.
                    let pieces = self.bases.entry(*checkpoint).or_default();
                    if u64::try_from(pieces.len().saturating_mul(PIECE_BYTES)) == Ok(*from) {
                        pieces.push(place);
                    }
                }
                EntryName::Dropped => self.dropped = self.dropped.saturating_add(kept.count()),
                EntryName::Other => {}
            }
        }
    }

    /// Does what is to be done after a replica was made of a file: keeps what the context held at checkpoints, and drafts what is to be written
    /// once more. Beside that, what the file has that is of no use any more.
    fn settle(&mut self, recalled: Recalled) -> (Taken, BTreeSet<OperationId>) {
        for (era, base) in &recalled.bases {
            // Without it the replica makes it anew at the next start.
            let sealed = self.replica.seal_base(*era, base).zip(self.replica.chain().at(*era).map(Verified::name));
            if let Some(Err(failure)) = sealed.map(|(sealed, checkpoint)| self.keep_base(checkpoint, &sealed)) {
                tracing::warn!(context = %self.replica.id(), %failure, "what a context held at a checkpoint is not kept");
            }
        }
        let (mut taken, mut gone, mut bytes) = (Taken::default(), recalled.gone, 0_u64);
        for (stranded, author, body) in recalled.stranded {
            let size = body.items.iter().map(edit::size).fold(SPARE_BYTES, usize::saturating_add);
            bytes = bytes.saturating_add(u64::try_from(size).unwrap_or(u64::MAX));
            let key = self.own.iter().find(|key| key.principal() == author).cloned();
            let Some(key) = key.filter(|_| self.may_draft(author).is_ok() && self.has_room(bytes).is_ok()) else {
                gone.remove(&stranded);
                continue;
            };
            let drafted = self.replica.draft(&key, &body, self.now, &mut rand::rng());
            match drafted.and_then(|operation| self.take_drafted(operation, &mut taken)) {
                Ok(()) => {}
                // Whoever wrote it may not any more, and nobody would take it.
                Err(refusal @ (Refusal::Access | Refusal::NotReader)) => {
                    tracing::info!(context = %self.replica.id(), %author, %refusal, "what a checkpoint left behind is not written once more");
                }
                Err(refusal) => {
                    gone.remove(&stranded);
                    tracing::info!(context = %self.replica.id(), %author, %refusal, "what a checkpoint left behind waits");
                }
            }
        }
        (taken, gone)
    }

    fn keep_base(&mut self, checkpoint: [u8; 32], sealed: &[u8]) -> Result<(), Failure> {
        let piece = |(at, bytes): (usize, &[u8])| {
            let from = u64::try_from(at.saturating_mul(PIECE_BYTES)).unwrap_or(u64::MAX).to_le_bytes();
            Kept { kind: KeptKind::Base, bytes: Bytes::from([&checkpoint[..], &from, bytes].concat()) }
        };
        let pieces: Vec<Kept> = sealed.chunks(PIECE_BYTES).enumerate().map(piece).collect();
        let places = self.append_all(&pieces)?;
        self.bases.insert(checkpoint, places);
        Ok(())
    }

    /// Some of what the context held at the checkpoint of that name, sealed, from byte `from` on.
    ///
    /// # Errors
    /// `CONTEXT_NOT_FOUND` if it is not here, or the disk refuses.
    pub(super) fn base(&self, checkpoint: [u8; 32], from: u64) -> Result<Vec<u8>, Failure> {
        let unknown = || Failure::new(ErrorCode::ContextNotFound, "what the context held at that checkpoint is not here");
        let places = self.bases.get(&checkpoint).ok_or_else(unknown)?;
        let from = usize::try_from(from).map_err(|_| unknown())?;
        let wanted: Vec<Place> = places.iter().skip(from / PIECE_BYTES).take(PIECE_BYTES_MAX / PIECE_BYTES).copied().collect();
        let kept = self.log.read_at(&wanted).map_err(disk_failure)?;
        let bytes: Vec<u8> = kept.iter().filter_map(|kept| kept.bytes.get(BASE_HEAD_BYTES..)).flatten().copied().collect();
        bytes.get(from % PIECE_BYTES..).filter(|bytes| !bytes.is_empty()).map(<[u8]>::to_vec).ok_or_else(unknown)
    }

    /// Takes in what another reader says that the context held at its newest checkpoint, if that is so.
    ///
    /// # Errors
    /// `INVALID_REQUEST` if it is not, or as [`Hot::take`].
    pub(super) fn take_base(&mut self, era: u64, sealed: &[u8]) -> Result<Taken, Failure> {
        let wanted = self.replica.wanted_base().filter(|(wanted, ..)| *wanted == era);
        let Some((_, checkpoint, _)) = wanted else { return Ok(Taken::default()) };
        if self.replica.open_base(era, sealed).is_none() {
            return Err(Failure::new(ErrorCode::InvalidRequest, "it is not what the checkpoint says"));
        }
        self.keep_base(checkpoint, sealed)?;
        self.is_ahead = true;
        let (freed, gone) = self.rebuild()?;
        self.append(&freed)?;
        self.is_ahead = false;
        self.let_go(&gone);
        Ok(freed)
    }

    /// Has the file let go of what is of no use any more, if there is something. If the disk refuses, it does so after the next start.
    fn let_go(&mut self, gone: &BTreeSet<OperationId>) {
        let chain = self.replica.chain();
        let is_newer =
            |base: &[u8; 32]| chain.changes().iter().any(|change| change.epoch >= self.replica.first_era() && change.name() == *base);
        let old: Vec<[u8; 32]> = self.bases.keys().filter(|base| !is_newer(base)).copied().collect();
        let first = chain.at(self.replica.first_era()).map(Verified::name);
        let begins = first.is_none_or(|first| self.bases.contains_key(&first));
        // What a damaged file has lost comes back first, and what it is to begin with is in it.
        if gone.is_empty() && old.is_empty() || !self.replica.is_whole() || !begins || !self.written.is_empty() {
            return;
        }
        if let Err(failure) = self.keep_but(gone, &old) {
            tracing::warn!(context = %self.replica.id(), %failure, "what was before a checkpoint is still kept");
        }
    }

    fn keep_but(&mut self, gone: &BTreeSet<OperationId>, bases: &[[u8; 32]]) -> Result<(), Failure> {
        let loaded = self.log.read().map_err(disk_failure)?;
        if loaded.damage.is_some() {
            return Ok(());
        }
        let entries = Contents::of(self.replica.id(), &loaded.kept, Vec::new(), false)?.entries;
        let stays = |entry: &EntryName| match entry {
            EntryName::Operation(id) => !gone.contains(id),
            EntryName::Base(checkpoint, _) => !bases.contains(checkpoint),
            EntryName::Dropped => false,
            EntryName::Other => true,
        };
        let mut left: Vec<(EntryName, Kept)> = Vec::new();
        for (entry, kept) in entries.into_iter().zip(loaded.kept) {
            if stays(&entry) {
                left.push((entry, kept));
            } else if let Some((EntryName::Dropped, gone)) = left.last_mut() {
                *gone = Kept::dropped(gone.count().saturating_add(kept.count()));
            } else {
                left.push((EntryName::Dropped, Kept::dropped(kept.count())));
            }
        }
        let (entries, left): (Vec<EntryName>, Vec<Kept>) = left.into_iter().unzip();
        let places = self.log.replace(&left).map_err(disk_failure)?;
        lock(&self.room).set(self.replica.id(), self.replica.genesis().owner, self.log.len_bytes());
        self.find(&entries, &left, places);
        Ok(())
    }

    /// How many entries the file has let go of: whoever goes through it must begin anew if that changes.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Drafts the checkpoint with which the owner ends the era.
    ///
    /// # Errors
    /// As [`super::door::refused`], or if the disk refuses.
    pub(super) fn draft_checkpoint(&self, key: &PrincipalKey) -> Result<Verified<Access>, Failure> {
        // It would end the era without what a damaged file has lost.
        self.may_draft(key.principal())?;
        let Contents { bases, operations, .. } = self.stored()?;
        self.replica.draft_checkpoint(key, &bases, operations, self.now).map_err(|refusal| super::door::refused(&refusal))
    }

    /// When the era is to end, if that is near.
    pub(super) fn checkpoint_at(&self) -> Option<Timestamp> {
        super::checkpoint::due(&self.replica).map(|at| at.max(self.put_off))
    }

    /// A checkpoint could not be made.
    pub(super) fn put_off_checkpoint(&mut self) {
        self.put_off = self.now.saturating_add(PUT_OFF);
    }

    /// What the file holds.
    fn stored(&self) -> Result<Contents, Failure> {
        let loaded = self.log.read().map_err(disk_failure)?;
        Contents::of(self.replica.id(), &loaded.kept, self.own.clone(), loaded.damage.is_some())
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
        let (written, last) = (self.written.get(&author), self.replica.last(author).map(|last| last.seq));
        if written.is_none_or(|written| last.is_some_and(|last| last >= *written)) {
            return Ok(());
        }
        let message = "the file of this context is damaged, and what was written last hangs on what cannot be read";
        Err(Failure::new(ErrorCode::Unavailable, message).with("suggestion", "it goes on once another reader's node has given that back"))
    }

    /// Makes the replica anew from the file, after a change of access that took something back or ended an era. What was parked is taken in again,
    /// and may count by now. Beside that, what the file has that is of no use any more.
    fn rebuild(&mut self) -> Result<(Taken, BTreeSet<OperationId>), Failure> {
        let contents = self.stored()?;
        let parked = self.replica.take_parked();
        self.replica = contents.replica;
        let recalled = self.replica.recall(&contents.bases, contents.operations);
        let (mut taken, gone) = self.settle(recalled);
        parked.into_iter().for_each(|operation| self.take_operation(operation, &mut taken));
        Ok((taken, gone))
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
        let Contents { bases, operations, .. } = self.stored()?;
        Ok(Past::new(&self.replica, bases, operations))
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
        // What was written after a checkpoint is judged by a replica that has taken it in.
        if self.replica.is_stale() {
            taken = self.keep(taken)?;
        }
        let mut more = Taken::default();
        for operation in verify(operations) {
            match operation {
                Ok(operation) => self.take_operation(operation, &mut more),
                Err(error) => more.refuse(error),
            }
        }
        taken.extend(self.keep(more)?);
        Ok(taken)
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
            let (freed, gone) = self.rebuild()?;
            self.append(&freed)?;
            taken.extend(freed);
            self.let_go(&gone);
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
        let places = self.append_all(&statements)?.into_iter().skip(taken.accesses.len());
        self.places.extend(taken.operations.iter().map(Verified::<Operation>::id).zip(places));
        Ok(())
    }

    fn append_all(&mut self, statements: &[Kept]) -> Result<Vec<Place>, Failure> {
        let bytes = statements.iter().map(Kept::len_bytes).sum();
        self.fits(bytes)?;
        let (id, owner) = (self.replica.id(), self.replica.genesis().owner);
        lock(&self.room).reserve(id, owner, &principals(&self.own), bytes).map_err(|full| refused(&full))?;
        let appended = self.log.append(statements).map_err(disk_failure);
        lock(&self.room).set(id, owner, self.log.len_bytes());
        appended
    }
}

/// What an entry of a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum EntryName {
    Operation(OperationId),
    /// A piece of what the context held at the checkpoint of that name, and where it belongs.
    Base([u8; 32], u64),
    /// Others that stood there.
    Dropped,
    Other,
}

/// What stands in the file of a context.
struct Contents {
    /// With the whole line of access, and nothing else yet.
    replica: Replica,
    /// What the context held at checkpoints, by their numbers.
    bases: BTreeMap<u64, Base>,
    operations: Vec<Verified<Operation>>,
    /// What each entry is.
    entries: Vec<EntryName>,
    /// How far authors had written in the newest era.
    written: BTreeMap<Principal, u64>,
    /// What could not be used.
    damage: Option<String>,
}

/// What stands before a piece of a base: the name of its checkpoint, and where the piece belongs.
const BASE_HEAD_BYTES: usize = 32 + 8;

impl Contents {
    /// Reads what was kept. Beside damage, checksums are not enough: what looks like a statement may stand in the text of another.
    fn of(id: ContextId, kept: &[Kept], own: Vec<PrincipalKey>, is_damaged: bool) -> Result<Self, Failure> {
        let damaged = |reason: String| Failure::new(ErrorCode::Internal, format!("context {} cannot be read: {reason}", id.short()));
        let first = kept.first().filter(|first| first.kind == KeptKind::Genesis);
        let first = first.ok_or_else(|| damaged("its file does not begin with its genesis".to_owned()))?;
        let genesis = Verified::<Genesis>::kept(&first.bytes).map_err(|error| damaged(error.to_string()))?;
        if genesis.name() != id.to_bytes() {
            return Err(damaged("its file is that of another context".to_owned()));
        }
        let mut replica = Replica::new(genesis, own);
        let (mut operations, mut damage) = (Vec::new(), None);
        let mut sealed: BTreeMap<[u8; 32], Vec<u8>> = BTreeMap::new();
        let mut unread = |error: crate::wire::Error| damage = damage.take().or_else(|| Some(error.to_string()));
        let mut entries = Vec::with_capacity(kept.len());
        for kept in kept {
            let mut entry = EntryName::Other;
            match kept.kind {
                KeptKind::Genesis => {}
                KeptKind::Access => match believed(&kept.bytes, is_damaged) {
                    // What was kept counted once; what came of it since then the chain knows.
                    Ok(access) => drop(replica.on_access(access)),
                    Err(error) => unread(error),
                },
                KeptKind::Operation => match believed::<Operation>(&kept.bytes, is_damaged) {
                    Ok(operation) => {
                        entry = EntryName::Operation(operation.id());
                        operations.push(operation);
                    }
                    Err(error) => unread(error),
                },
                KeptKind::Base => {
                    if let Some((checkpoint, from, piece)) = base_piece(&kept.bytes) {
                        let text = sealed.entry(checkpoint).or_default();
                        // A piece that was damaged makes it another than the checkpoint says.
                        if usize::try_from(from) == Ok(text.len()) {
                            text.extend_from_slice(piece);
                        }
                        entry = EntryName::Base(checkpoint, from);
                    }
                }
                KeptKind::Dropped => entry = EntryName::Dropped,
            }
            entries.push(entry);
        }
        let mut written: BTreeMap<Principal, u64> = BTreeMap::new();
        let is_newest = |operation: &&Verified<Operation>| replica.chain().era(operation.header.acl_epoch) == replica.chain().newest_era();
        for header in operations.iter().filter(is_newest).map(|operation: &Verified<Operation>| &operation.header) {
            let seq = written.entry(header.author).or_insert(header.seq);
            *seq = header.seq.max(*seq);
        }
        let opened = |era: &u64| Some((*era, replica.open_base(*era, sealed.get(&replica.chain().at(*era)?.name())?)?));
        let bases = replica.chain().checkpoints().iter().filter_map(opened).collect();
        Ok(Self { bases, replica, operations, entries, written, damage })
    }
}

/// Of which checkpoint a piece of a base is, where it belongs, and what it is.
fn base_piece(bytes: &[u8]) -> Option<([u8; 32], u64, &[u8])> {
    let (checkpoint, rest) = bytes.split_first_chunk::<32>()?;
    let (from, piece) = rest.split_first_chunk::<8>()?;
    Some((*checkpoint, u64::from_le_bytes(*from), piece))
}

fn believed<T: Statement>(bytes: &[u8], is_damaged: bool) -> Result<Verified<T>, crate::wire::Error> {
    if is_damaged { Signed::from_bytes(bytes).and_then(Signed::verify) } else { Verified::kept(bytes) }
}
