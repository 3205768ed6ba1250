//! The contexts of this node: which there are, which are in memory, and whose keys open them.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::{Value, json};
use tokio::sync::{Semaphore, SemaphorePermit};

use super::hot::{Hot, Room};
use crate::config;
use crate::model::{AgentId, ContextId, ErrorCode, Failure, NodeId, Now, Principal, Timestamp, nearest};
use crate::node::handle::UNFLUSHED;
use crate::node::shared::{Shared, lock};
use crate::proto::context::gone::{Gone, Why};
use crate::proto::context::quota::{self, Quotas};
use crate::store;
use crate::wire::context::sync::Heads;
use crate::wire::context::{Access, Genesis, Operation, PrincipalKey, Verified};

/// How long after its end the file of a context is still kept: a clock may be ahead.
const GRACE: std::time::Duration = std::time::Duration::from_secs(600);

/// For how long what found no room is not pulled again.
const REFUSED_PAUSE: std::time::Duration = std::time::Duration::from_secs(600);
/// How many of these are remembered.
const REFUSED_MAX: usize = 100_000;
/// Lines of access that are gathered at once: each may take some ten megabytes.
const GATHERINGS_MAX: usize = 2;
/// Contexts that are pulled at once, and from one node: one that never answers must leave room for the others.
const PULLS_MAX: usize = 64;
const PULLS_PER_NODE_MAX: usize = 8;
/// The largest file that is read beside others: what a file takes while it is read is more than what its replica takes then.
const LARGE_BYTES: u64 = 4 * 1024 * 1024;
/// Authors of one context who are shown to have signed two operations of one number.
pub(super) const EQUIVOCATIONS_MAX: usize = 64;
/// Notes of all kinds beyond which contexts add none.
const NOTES_MAX: usize = 1_000;
/// Ids among which the one is looked for that somebody may have meant.
const NEAREST_MAX: usize = 1_000;

/// All contexts of a node.
#[derive(Debug)]
pub(in crate::node) struct Book {
    store: store::Contexts,
    slots: Mutex<Slots>,
    /// What they take on the disk.
    room: Room,
    /// Those for which there was no room, by when they are pulled again.
    refused: Mutex<BTreeMap<ContextId, Timestamp>>,
    /// Those that are not taken in again.
    gone: Mutex<Gone>,
    /// Those of them whose files a stop or a failing disk left behind.
    left: Mutex<BTreeSet<ContextId>>,
    /// How many are in memory at once, and how many bytes they take there.
    hot_max: usize,
    hot_bytes_max: u64,
    /// Counts the changes of the keys that are here.
    keys: AtomicU64,
    /// Room for lines of access.
    gatherings: Semaphore,
    /// What is being pulled, and from whom: each once at a time, and again if it was asked for meanwhile.
    pulls: Mutex<BTreeMap<(NodeId, ContextId), bool>>,
    /// Which have something that came from another node and was not passed on yet.
    fresh: Mutex<BTreeSet<ContextId>>,
    /// Held while a large file is read.
    loading: Mutex<()>,
    /// Held while the list of those that are gone is written.
    letting_go: Mutex<()>,
    /// Held while a merge reads one context and writes another: a second one in between would bring the same again.
    pub(super) merging: Mutex<()>,
}

/// A pull under way, for as long as this lives.
pub(super) struct Pulling<'b> {
    book: &'b Book,
    pull: Option<(NodeId, ContextId)>,
}

impl Pulling<'_> {
    /// Ends it, unless it was asked for again meanwhile.
    pub(super) fn end(mut self) -> Option<Self> {
        let pull = self.pull?;
        let mut pulls = lock(&self.book.pulls);
        if pulls.get_mut(&pull).is_some_and(std::mem::take) {
            drop(pulls);
            return Some(self);
        }
        pulls.remove(&pull);
        self.pull = None;
        None
    }
}

impl Drop for Pulling<'_> {
    fn drop(&mut self) {
        self.pull.and_then(|pull| lock(&self.book.pulls).remove(&pull));
    }
}

#[derive(Debug, Default)]
struct Slots {
    by_id: BTreeMap<ContextId, Arc<Slot>>,
    hot: InMemory,
}

/// Those in memory, by when they were last used, with the bytes that they took then.
#[derive(Debug, Default)]
struct InMemory {
    by_use: BTreeMap<u64, (ContextId, u64)>,
    bytes: u64,
    /// Counts uses.
    clock: u64,
}

impl InMemory {
    /// Notes that one is in memory with so many bytes, or is not, which was used `before`; when that was.
    fn used(&mut self, id: ContextId, before: Option<u64>, held_bytes: Option<u64>) -> Option<u64> {
        self.remove(before);
        let bytes = held_bytes?;
        self.clock += 1;
        self.by_use.insert(self.clock, (id, bytes));
        self.bytes = self.bytes.saturating_add(bytes);
        Some(self.clock)
    }

    fn remove(&mut self, used: Option<u64>) {
        let bytes = used.and_then(|used| self.by_use.remove(&used)).map_or(0, |(_, bytes)| bytes);
        self.bytes = self.bytes.saturating_sub(bytes);
    }

    /// If there are too many, the one that was used least lately, which is counted no longer; the last one is never too many.
    fn pop_beyond(&mut self, hot_max: usize, hot_bytes_max: u64) -> Option<ContextId> {
        let is_beyond = self.by_use.len() > hot_max || self.bytes > hot_bytes_max;
        let (used, id) =
            self.by_use.first_key_value().map(|(used, (id, _))| (*used, *id)).filter(|_| is_beyond && self.by_use.len() > 1)?;
        self.remove(Some(used));
        Some(id)
    }
}

#[derive(Debug, Default)]
struct Slot {
    /// With the count of keys at which it was read.
    hot: Mutex<Option<(u64, Hot)>>,
    seen: Mutex<Seen>,
}

/// What is known of a context that need not be in memory.
#[derive(Debug, Default)]
struct Seen {
    /// When it was last used, if it is in memory.
    used: Option<u64>,
    row: Option<Row>,
    /// Why it is not used until the node starts again.
    unflushed: Option<Failure>,
}

/// What a list shows of a context, and what others ask of it first.
#[derive(Debug, Clone)]
pub(super) struct Row {
    pub(super) heads: Heads,
    /// Whether what it held at its newest checkpoint is here.
    pub(super) is_whole: bool,
    pub(super) owner: Principal,
    pub(super) readers: Vec<Principal>,
    pub(super) session_id: String,
    pub(super) created_at: Timestamp,
    pub(super) expires_at: Timestamp,
    pub(super) operations: usize,
    pub(super) bytes: u64,
    /// When its era is to end, if its owner is on this node.
    pub(super) checkpoint_at: Option<Timestamp>,
}

impl Row {
    /// How far it has come, as others are told: one that lacks what a checkpoint says tells of no access, so that they differ.
    pub(super) fn told(&self) -> Heads {
        if self.is_whole { self.heads.clone() } else { Heads { epoch: 0, access: [0; 32], ..self.heads.clone() } }
    }

    pub(super) fn document(&self) -> Value {
        json!({
            "id": self.heads.context,
            "session_id": self.session_id,
            "owner": self.owner,
            "created_at": self.created_at.to_string(),
            "expires_at": self.expires_at.to_string(),
            "readers": self.readers,
            "operations": self.operations,
            "bytes": self.bytes,
        })
    }
}

fn row(hot: &Hot) -> Row {
    let (replica, genesis) = (&hot.replica, hot.replica.genesis());
    Row {
        heads: replica.heads(),
        is_whole: replica.is_whole(),
        owner: genesis.owner,
        readers: replica.chain().tip().map(|access| access.readers.iter().map(|reader| reader.principal).collect()).unwrap_or_default(),
        session_id: genesis.session_id.clone(),
        created_at: genesis.created_at,
        expires_at: replica.chain().expires_at(),
        operations: replica.operations().len(),
        bytes: hot.len_bytes(),
        checkpoint_at: hot.checkpoint_at(),
    }
}

/// The keys of everybody on this node who may be a reader: the node's own, and those of its agents.
pub(super) fn own_keys(shared: &Shared) -> Vec<PrincipalKey> {
    let node = PrincipalKey::try_from(&shared.key).ok();
    node.into_iter().chain(shared.registry.all().iter().map(|agent| PrincipalKey::from(agent.key()))).collect()
}

/// Whose keys these are.
pub(super) fn principals(keys: &[PrincipalKey]) -> BTreeSet<Principal> {
    keys.iter().map(PrincipalKey::principal).collect()
}

/// What it is to a client that there is no room: `INSUFFICIENT_RESOURCES` with the setting that says so, `UNAVAILABLE` while that is not known.
pub(super) fn refused(full: &quota::Full) -> Failure {
    match full {
        quota::Full::Of { what, max, .. } => {
            Failure::new(ErrorCode::InsufficientResources, full.to_string()).with("limit", *max).with("key", what.key())
        }
        quota::Full::Uncounted => Failure::new(ErrorCode::Unavailable, full.to_string()),
    }
}

/// Tells whoever looks after this node, once.
pub(super) fn note(shared: &Shared, note: String) {
    let mut notes = lock(&shared.notes);
    if !notes.contains(&note) && notes.len() < NOTES_MAX {
        tracing::warn!(note, "noted");
        notes.push(note);
    }
}

/// Trusts an author no more who signed two operations of one number.
pub(super) fn convict(shared: &Shared, context: ContextId, author: Principal) {
    note(shared, format!("{author} signed two operations of one number in context {}; it is trusted no more", context.short()));
    let mut ledger = shared.ledger.write().unwrap_or_else(PoisonError::into_inner);
    ledger.handle_proof(AgentId::from(author), shared.mono());
}

/// After a flush that failed nobody knows what the disk holds, and a second one may say that all is well: the context is left alone until the
/// node starts again.
fn note_unflushed(slot: &Slot, failure: &Failure) {
    if failure.details.contains_key(UNFLUSHED) {
        lock(&slot.seen).unflushed.get_or_insert_with(|| failure.clone());
    }
}

impl Book {
    /// The contexts in the data directory. Reads their names and sizes alone. What went wrong with those that are gone is told in `notes`.
    ///
    /// # Errors
    /// If the folder cannot be read.
    pub(in crate::node) fn open(
        store: store::Contexts,
        config: &config::Context,
        now: Timestamp,
        notes: &mut Vec<String>,
    ) -> Result<Self, store::Error> {
        let kept = store.gone().load().unwrap_or_else(|error| {
            notes.push(format!("contexts that were dropped are not remembered: {error}"));
            Vec::new()
        });
        let why = |dropped| if dropped { Why::Dropped } else { Why::Ended };
        let gone = Gone::new(kept.into_iter().map(|(id, dropped, until)| (id, why(dropped), until)), now);
        // What was to be removed when the node stopped is not shown again; its file goes with the next sweep.
        let (left, found): (Vec<_>, Vec<_>) = store.list()?.into_iter().partition(|(id, _)| gone.holds(*id, now));
        let by_id = found.iter().map(|(id, _)| (*id, Arc::default())).collect();
        let limits = quota::Limits { contexts_max: u64::from(config.contexts_max), bytes_max: config.bytes_max };
        Ok(Self {
            store,
            slots: Mutex::new(Slots { by_id, ..Slots::default() }),
            room: Arc::new(Mutex::new(Quotas::new(limits, found))),
            refused: Mutex::default(),
            gone: Mutex::new(gone),
            left: Mutex::new(left.into_iter().map(|(id, _)| id).collect()),
            hot_max: usize::try_from(config.hot_max).unwrap_or(usize::MAX),
            hot_bytes_max: config.hot_bytes_max,
            keys: AtomicU64::new(0),
            gatherings: Semaphore::new(GATHERINGS_MAX),
            pulls: Mutex::default(),
            fresh: Mutex::default(),
            loading: Mutex::default(),
            letting_go: Mutex::default(),
            merging: Mutex::default(),
        })
    }

    /// Learns whose the contexts are that were found, and then takes those of others. Blocks.
    pub(super) fn count(&self) {
        let unowned = lock(&self.room).unowned();
        for id in unowned {
            let genesis = self.store.genesis(id).ok().flatten().and_then(|kept| Verified::<Genesis>::kept(&kept.bytes).ok());
            if let Some(genesis) = genesis.filter(|genesis| genesis.name() == id.to_bytes()) {
                lock(&self.room).own(id, genesis.owner);
            }
        }
        lock(&self.room).counted();
    }

    /// Whether a context of `owner`, or what is to come to it, fits with so many bytes more.
    ///
    /// # Errors
    /// As [`refused`].
    pub(super) fn has_room(&self, shared: &Shared, id: ContextId, owner: Principal, bytes: u64) -> Result<(), Failure> {
        lock(&self.room).check(id, owner, &principals(&own_keys(shared)), bytes).map_err(|full| refused(&full))
    }

    /// Notes that there was no room for what was pulled of a context: pulling it with every exchange would move it over the network in vain.
    pub(super) fn refuse(&self, id: ContextId, now: Now) {
        let mut refused = lock(&self.refused);
        refused.retain(|_, until| *until > now.wall);
        if refused.len() < REFUSED_MAX {
            refused.insert(id, now.wall.saturating_add(REFUSED_PAUSE));
        }
    }

    /// Whether there was no room for a context a while ago.
    pub(super) fn is_refused(&self, id: ContextId, now: Now) -> bool {
        lock(&self.refused).get(&id).is_some_and(|until| *until > now.wall)
    }

    /// A place to gather the line of access of a context that is not here, if it takes more than one answer.
    pub(super) fn gathering(&self) -> Option<SemaphorePermit<'_>> {
        self.gatherings.try_acquire().ok()
    }

    /// A place to pull a context from a node; none while that is done already, or too much else is.
    pub(super) fn pulling(&self, node: NodeId, context: ContextId) -> Option<Pulling<'_>> {
        let mut pulls = lock(&self.pulls);
        let pull = (node, context);
        if let Some(again) = pulls.get_mut(&pull) {
            *again = true;
            return None;
        }
        let of_node = (node, ContextId::from_bytes([0; 32]))..=(node, ContextId::from_bytes([u8::MAX; 32]));
        let has_place = pulls.len() < PULLS_MAX && pulls.range(of_node).count() < PULLS_PER_NODE_MAX;
        // Made only where there is a place: one that is dropped gives its place back.
        has_place.then(|| {
            pulls.insert(pull, false);
            Pulling { book: self, pull: Some(pull) }
        })
    }

    /// Another node had something new of a context.
    pub(super) fn note_fresh(&self, context: ContextId) {
        lock(&self.fresh).insert(context);
    }

    /// Of which contexts other nodes had something new since this was last asked.
    pub(super) fn take_fresh(&self) -> BTreeSet<ContextId> {
        std::mem::take(&mut *lock(&self.fresh))
    }

    /// Which contexts there are.
    pub(super) fn ids(&self) -> Vec<ContextId> {
        lock(&self.slots).by_id.keys().copied().collect()
    }

    /// The context whose id is `text` or begins with it.
    ///
    /// # Errors
    /// `CONTEXT_NOT_FOUND` or, if several begin so, `INVALID_REQUEST`.
    pub(super) fn named(&self, text: &str) -> Result<ContextId, Failure> {
        let text = text.to_ascii_lowercase();
        let range = ContextId::beginning(&text).filter(|_| text.len() >= 4);
        let found: Vec<ContextId> =
            range.map(|range| lock(&self.slots).by_id.range(range).map(|(id, _)| *id).collect()).unwrap_or_default();
        match found.as_slice() {
            [id] => Ok(*id),
            [] => {
                let known: Vec<String> = lock(&self.slots).by_id.keys().take(NEAREST_MAX).map(ToString::to_string).collect();
                let message = format!("no context `{}` is known here", crate::model::printable(&text, 80));
                let failure = Failure::new(ErrorCode::ContextNotFound, message);
                let near = nearest(&text, known.iter().map(String::as_str));
                Err(failure.with("suggestion", near.unwrap_or("`meshwork context list` shows those that are")))
            }
            several => {
                let message = format!("`{text}` begins the ids of {} contexts; write more of it", several.len());
                Err(Failure::new(ErrorCode::InvalidRequest, message))
            }
        }
    }

    /// Begins a context with its first statements, all of them durably or none. Blocks.
    ///
    /// # Errors
    /// `INSUFFICIENT_RESOURCES` if there is no room for it or the disk is full; `CONFLICT` if it is there.
    pub(super) fn begin(
        &self,
        shared: &Shared,
        genesis: Verified<Genesis>,
        accesses: Vec<Verified<Access>>,
        operations: Vec<Verified<Operation>>,
    ) -> Result<Row, Failure> {
        let id = ContextId::from_bytes(genesis.name());
        let slot = Arc::new(Slot::default());
        // Whoever finds it meanwhile waits until it is on the disk.
        let mut held = lock(&slot.hot);
        match lock(&self.slots).by_id.entry(id) {
            Entry::Occupied(_) => return Err(Failure::new(ErrorCode::Conflict, format!("context {} is here already", id.short()))),
            Entry::Vacant(vacant) => drop(vacant.insert(Arc::clone(&slot))),
        }
        // Looked up when its place is taken: what is dropped meanwhile has been noted before that is free.
        if self.is_gone(id, shared.clock.now()) {
            lock(&self.slots).by_id.remove(&id);
            let message = format!("context {} has ended, or was dropped here in the last 30 days", id.short());
            return Err(Failure::new(ErrorCode::AccessDenied, message));
        }
        let keys = self.keys.load(Ordering::SeqCst);
        let now = shared.clock.now().wall;
        let hot = match Hot::begin(&self.store, genesis, accesses, operations, own_keys(shared), Arc::clone(&self.room), now) {
            Ok(hot) => &mut held.insert((keys, hot)).1,
            Err(failure) => {
                // What the disk has of it nobody was told of; it goes before anybody else can begin it.
                if let Err(error) = self.store.remove(id) {
                    tracing::warn!(context = %id, %error, "a context that could not be begun may have left a file");
                }
                lock(&self.slots).by_id.remove(&id);
                return Err(failure);
            }
        };
        let (row, bytes) = (row(hot), hot.held_bytes());
        lock(&slot.seen).row = Some(row.clone());
        drop(held);
        self.used(id, Some(bytes));
        Ok(row)
    }

    /// Does something with a context, which is read from the disk if it is not in memory. Blocks. If `act` leaves it ahead of its file, it
    /// is dropped from memory.
    ///
    /// # Errors
    /// `CONTEXT_NOT_FOUND`, those of the disk and of `act`.
    pub(super) fn with<T>(
        &self,
        shared: &Shared,
        id: ContextId,
        now: Now,
        act: impl FnOnce(&mut Hot) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let unknown = || Failure::new(ErrorCode::ContextNotFound, format!("no context {} is known here", id.short()));
        let slot = lock(&self.slots).by_id.get(&id).cloned().ok_or_else(unknown)?;
        let mut held = lock(&slot.hot);
        // Looked at when it is this one's turn: whoever was before may have found out.
        if let Some(failure) = lock(&slot.seen).unflushed.clone() {
            return Err(failure);
        }
        // Counted before they are looked at: with a key that comes while it is read, it is read again.
        let keys = self.keys.load(Ordering::SeqCst);
        held.take_if(|(read_with, _)| *read_with != keys);
        if held.is_none() {
            let is_large = self.store.len_bytes(id) > LARGE_BYTES;
            let _alone = is_large.then(|| lock(&self.loading));
            let loaded = Hot::load(&self.store, id, own_keys(shared), Arc::clone(&self.room), now.wall);
            let (hot, damage) = loaded.inspect_err(|failure| note_unflushed(&slot, failure))?.ok_or_else(unknown)?;
            if let Some(damage) = damage {
                note(shared, format!("something of context {} could not be read: {damage}", id.short()));
            }
            // The proof is kept with the context, and so is what comes of it.
            for proof in hot.replica.operations().equivocations(EQUIVOCATIONS_MAX) {
                convict(shared, id, proof.author);
            }
            *held = Some((keys, hot));
        }
        let (_, hot) = held.as_mut().ok_or_else(unknown)?;
        hot.now = now.wall;
        let end = hot.replica.chain().expires_at();
        let done = if end > now.wall {
            act(hot)
        } else {
            Err(Failure::new(ErrorCode::ContextNotFound, format!("context {} ended at {end}", id.short())))
        };
        let (row, bytes) = (row(hot), hot.held_bytes());
        // What the disk did not take must not be shown either, nor told to others.
        let is_broken = hot.is_ahead() || done.as_ref().is_err_and(|failure| failure.code == ErrorCode::Internal);
        if is_broken {
            *held = None;
            done.as_ref().err().into_iter().for_each(|failure| note_unflushed(&slot, failure));
        } else {
            lock(&slot.seen).row = Some(row);
        }
        drop(held);
        self.used(id, (!is_broken).then_some(bytes));
        done
    }

    /// What a list shows of a context. Blocks if it was never read.
    pub(super) fn row(&self, shared: &Shared, id: ContextId, now: Now) -> Option<Row> {
        self.row_for(shared, id, now, |_| true)
    }

    /// The same, if the context `fits`; others are not copied.
    pub(super) fn row_for(&self, shared: &Shared, id: ContextId, now: Now, fits: impl Fn(&Row) -> bool) -> Option<Row> {
        let slot = lock(&self.slots).by_id.get(&id).cloned()?;
        if lock(&slot.seen).row.is_none() {
            let _ = self.with(shared, id, now, |_| Ok(()));
        }
        let seen = lock(&slot.seen);
        seen.row.as_ref().filter(|row| row.expires_at > now.wall && fits(row)).cloned()
    }

    /// Notes that `id` was used, and how much memory it takes if it is there; what is beyond the bounds leaves it.
    fn used(&self, id: ContextId, held_bytes: Option<u64>) {
        let mut slots = lock(&self.slots);
        let Some(slot) = slots.by_id.get(&id).cloned() else { return };
        let mut seen = lock(&slot.seen);
        seen.used = slots.hot.used(id, seen.used, held_bytes);
        drop(seen);
        // A large one takes a while to let go of, and others wait for the table.
        let mut cold = Vec::new();
        while let Some(coldest) = slots.hot.pop_beyond(self.hot_max, self.hot_bytes_max) {
            let Some(slot) = slots.by_id.get(&coldest) else { continue };
            // One that is in use now stays, and is counted again after that.
            if let Ok(mut hot) = slot.hot.try_lock() {
                cold.extend(hot.take());
                lock(&slot.seen).used = None;
            }
        }
        drop(slots);
    }

    /// Has all be read anew when they are next used, with the keys that are here from now on.
    pub(in crate::node) fn reopen(&self) {
        self.keys.fetch_add(1, Ordering::SeqCst);
    }

    /// Removes contexts that ended a while ago. Blocks.
    pub(super) fn sweep(&self, shared: &Shared, now: Now) {
        let has_ended = |id: &ContextId| {
            let slot = lock(&self.slots).by_id.get(id).cloned();
            let Some(slot) = slot else { return false };
            if lock(&slot.seen).row.is_none() {
                let _ = self.with(shared, *id, now, |_| Ok(()));
            }
            lock(&slot.seen).row.as_ref().is_some_and(|row| row.expires_at.saturating_add(GRACE) <= now.wall)
        };
        let ended: Vec<ContextId> = self.ids().into_iter().filter(has_ended).collect();
        if !ended.is_empty()
            && let Err(error) = self.let_go(&ended, Why::Ended, now)
        {
            tracing::warn!(%error, "contexts that ended are still kept");
        }
        self.clear_left();
    }

    fn clear_left(&self) {
        let left = std::mem::take(&mut *lock(&self.left));
        left.into_iter().for_each(|id| drop(self.remove(id)));
    }

    /// Removes contexts, and remembers durably that they are not to come back before it does. Blocks.
    ///
    /// # Errors
    /// If the disk refuses. Nothing was changed, or the next [`Book::sweep`] does what is left to do.
    pub(super) fn let_go(&self, ids: &[ContextId], why: Why, now: Now) -> Result<(), store::Error> {
        let writing = lock(&self.letting_go);
        let mut after = lock(&self.gone).clone();
        after.put(ids.iter().copied(), why, now.wall);
        self.store.gone().write(after.iter().map(|(id, why, until)| (id, why == Why::Dropped, until)))?;
        *lock(&self.gone) = after;
        drop(writing);
        ids.iter().map(|id| self.remove(*id)).fold(Ok(()), Result::and)
    }

    fn remove(&self, id: ContextId) -> Result<(), store::Error> {
        let slot = lock(&self.slots).by_id.get(&id).cloned().unwrap_or_default();
        // Whoever uses it now has done so first.
        let mut held = lock(&slot.hot);
        *held = None;
        self.store.remove(id).inspect_err(|_| {
            lock(&self.left).insert(id);
        })?;
        let mut slots = lock(&self.slots);
        slots.by_id.remove(&id);
        slots.hot.remove(lock(&slot.seen).used.take());
        drop(slots);
        lock(&self.room).remove(id);
        Ok(())
    }

    /// Whether a context is not taken in again: it ended, or was dropped here.
    pub(super) fn is_gone(&self, id: ContextId, now: Now) -> bool {
        lock(&self.gone).holds(id, now.wall)
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write as _;
    use std::path::{Path, PathBuf};

    use super::*;
    use crate::node::{ContextRequest, Node};

    fn id(number: u8) -> ContextId {
        ContextId::from_bytes([number; 32])
    }

    #[test]
    fn what_was_used_least_lately_leaves_memory_when_there_are_too_many_or_they_are_too_large() {
        let mut hot = InMemory::default();
        let used: Vec<_> = (0..3).map(|at| hot.used(id(at), None, Some(100))).collect();
        assert_eq!((hot.bytes, hot.pop_beyond(3, 300)), (300, None), "at the limits");
        let again = hot.used(id(0), used[0], Some(101));
        assert_eq!((hot.by_use.len(), hot.bytes), (3, 301));
        assert_eq!(hot.pop_beyond(3, 300), Some(id(1)), "past that of bytes");
        assert_eq!((hot.bytes, hot.pop_beyond(1, 300)), (201, Some(id(2))), "past that of contexts");
        assert_eq!(hot.pop_beyond(1, 100), None, "the one in use stays, however large");
        assert_eq!(hot.used(id(0), again, None), None);
        assert_eq!((hot.by_use.len(), hot.bytes), (0, 0));
    }

    #[test]
    fn what_found_no_room_is_left_alone_for_a_while() {
        let folder = tempfile::tempdir().expect("folder");
        let store = store::DataDir::open(folder.path()).expect("opens").contexts();
        let at = |ms| Now { wall: Timestamp::from_ms(ms), mono: std::time::Duration::ZERO };
        let pause = u64::try_from(REFUSED_PAUSE.as_millis()).expect("small");
        let book = Book::open(store, &config::Context::default(), at(0).wall, &mut Vec::new()).expect("opens");
        book.refuse(id(1), at(0));
        assert!(book.is_refused(id(1), at(pause - 1)) && !book.is_refused(id(1), at(pause)) && !book.is_refused(id(2), at(0)));
        lock(&book.refused).extend((0..REFUSED_MAX).map(|number| {
            let mut bytes = [9; 32];
            bytes[..8].copy_from_slice(&number.to_be_bytes());
            (ContextId::from_bytes(bytes), at(pause).wall)
        }));
        book.refuse(id(2), at(1));
        assert!(!book.is_refused(id(2), at(1)), "there are too many");
        book.refuse(id(2), at(pause));
        assert!(book.is_refused(id(2), at(pause)), "until those before it are pulled again");
    }

    /// Design "Life": what was dropped is not shown after a start, and its file goes, whenever the node was stopped.
    #[test]
    fn what_was_let_go_of_stays_gone_when_its_file_was_left_behind() {
        let folder = tempfile::tempdir().expect("folder");
        let dir = store::DataDir::open(folder.path()).expect("opens");
        let now = Now { wall: Timestamp::from_ms(1_000), mono: std::time::Duration::ZERO };
        let open = || Book::open(dir.contexts(), &config::Context::default(), now.wall, &mut Vec::new()).expect("opens");
        let file = |number| dir.contexts().create(id(number), &[]).expect("creates");
        (1..=2).for_each(|number| drop(file(number)));
        let book = open();
        assert_eq!(book.ids(), [id(1), id(2)]);
        book.let_go(&[id(1)], Why::Dropped, now).expect("lets go");
        assert_eq!((book.ids(), dir.contexts().list().expect("lists").len()), (vec![id(2)], 1));
        // As if the node had been killed in between.
        drop(file(1));
        let book = open();
        assert!(book.ids() == [id(2)] && book.is_gone(id(1), now) && !book.is_gone(id(2), now));
        book.clear_left();
        assert_eq!(dir.contexts().list().expect("lists").len(), 1);
        // A list that cannot be read is told of, and keeps nobody from starting.
        std::fs::write(folder.path().join("contexts").join("gone"), "x").expect("writes");
        let mut notes = Vec::new();
        let book = Book::open(dir.contexts(), &config::Context::default(), now.wall, &mut notes).expect("opens");
        assert!(notes.len() == 1 && !book.is_gone(id(1), now), "{notes:?}");
    }

    /// A node with a context of its own, the context's id and its file.
    async fn with_context(folder: &Path) -> (Node, ContextId, PathBuf) {
        let mut config = config::Config::default();
        config.node.data_dir = folder.to_owned();
        config.mesh.listen = vec!["/ip4/127.0.0.1/tcp/0".to_owned()];
        let node = Node::start(config).await.expect("a node");
        let created = node.handle.create_context(ContextRequest::default()).await.expect("a context");
        let id: ContextId = created["id"].as_str().and_then(|id| id.parse().ok()).expect("an id");
        (node, id, folder.join("contexts").join(format!("{id}.log")))
    }

    /// Puts a pipe in the place of a file, which then stands at the path that is given back: whoever reads the pipe waits for what is written to it,
    /// and it cannot be flushed.
    fn pipe_for(file: &Path) -> PathBuf {
        let aside = file.with_extension("aside");
        std::fs::rename(file, &aside).expect("renames");
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        rustix::fs::mknodat(rustix::fs::CWD, file, rustix::fs::FileType::Fifo, mode, 0).expect("a pipe");
        aside
    }

    fn write_end(pipe: &Path) -> File {
        File::options().write(true).open(pipe).expect("somebody reads")
    }

    /// Fault F3: after a flush that failed while a context was read nobody knows what the disk holds, and a second one may succeed all the
    /// same: the context is left alone until the node starts again.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_context_whose_flush_failed_while_it_was_read_is_left_alone() {
        let folder = tempfile::tempdir().expect("folder");
        let (node, id, file) = with_context(folder.path()).await;
        let shared = Arc::clone(&node.handle.shared);
        let tried = tokio::task::spawn_blocking(move || {
            let (book, now) = (&shared.contexts, shared.clock.now());
            let read = || book.with(&shared, id, now, |_| Ok(()));
            assert_eq!(read(), Ok(()));
            book.reopen();
            let aside = pipe_for(&file);
            let failure = std::thread::scope(|scope| {
                let reading = scope.spawn(read);
                write_end(&file).write_all(&std::fs::read(&aside).expect("reads")).expect("writes");
                // Whoever opens it to write waits for this.
                let _flushed = File::open(&file).expect("somebody writes");
                reading.join().expect("it ends").expect_err("a pipe has no disk")
            });
            assert!(failure.code == ErrorCode::Internal && failure.details.contains_key(UNFLUSHED), "{failure:?}");
            std::fs::rename(&aside, &file).expect("renames");
            assert_eq!(read(), Err(failure), "its file can be read and flushed again");
            let started = Book::open(book.store.clone(), &config::Context::default(), now.wall, &mut Vec::new()).expect("opens");
            assert_eq!(started.with(&shared, id, now, |_| Ok(())), Ok(()), "a start looks what is there");
        });
        tried.await.expect("it is tried");
        drop(node);
    }

    /// A key that comes while a context is read was not there when that began: the context is read again, with it.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_key_that_comes_while_a_context_is_read_opens_it_all_the_same() {
        let folder = tempfile::tempdir().expect("folder");
        let (node, id, file) = with_context(folder.path()).await;
        let handle = node.handle.clone();
        let scribe =
            || serde_json::from_value(json!({ "name": "scribe", "adapter": { "type": "builtin", "kind": "echo" } })).expect("an agent");
        let agent = Principal::from(handle.attach(scribe(), false).await.expect("attached").entry.record.agent);
        let rights = serde_json::from_value(json!({ "read": [agent] })).expect("who may");
        handle.share_context(&id.to_string(), rights, None).await.expect("the owner may");
        let note = json!({ "agent_memory": { agent.to_string(): { "mood": "curious" } } });
        handle.change_context(&id.to_string(), &note, Some("scribe")).await.expect("its own memory");
        handle.detach("scribe").await.expect("detached");
        let runtime = tokio::runtime::Handle::current();
        let tried = tokio::task::spawn_blocking(move || {
            let shared = &handle.shared;
            let (book, now) = (&shared.contexts, shared.clock.now());
            let memory = || book.with(shared, id, now, |hot| Ok(hot.replica.private(agent)));
            book.reopen();
            let aside = pipe_for(&file);
            let without = std::thread::scope(|scope| {
                let reading = scope.spawn(memory);
                // It has looked which keys there are.
                let mut pipe = write_end(&file);
                runtime.block_on(handle.attach(scribe(), false)).expect("attached");
                pipe.write_all(&std::fs::read(&aside).expect("reads")).expect("writes");
                std::fs::rename(&aside, &file).expect("renames");
                drop(pipe);
                reading.join().expect("it ends")
            });
            assert_eq!((without, memory()), (Ok(None), Ok(Some(json!({ "mood": "curious" })))));
        });
        tried.await.expect("it is tried");
        drop(node);
    }
}
