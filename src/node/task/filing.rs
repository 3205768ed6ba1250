//! Checkpoints: what has ended goes into the index, and what nobody needs goes from the disk.
//!
//! A checkpoint is made on a worker, from what the loop gave it. The *watermark* is the first segment that a start must read after it: nothing
//! that has not ended, and nothing that the index does not have, has an entry before it. It moves with the last batch, when all that it needs is
//! there; the others carry the one before. If any batch fails, what it would have changed waits for the next checkpoint, and the journal is
//! read from the older watermark.
//!
//! What would hold the watermark far back for long is read for a copy ([`super::copies`]).
//!
//! Calls with a key change where they run, so they are looked at from here, some at a time. What happens to one meanwhile lies in the journal
//! behind the watermark, since that was taken first.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use tokio::sync::mpsc;

use super::archive::Taken;
use super::copies;
use super::filed::{self, Known};
use super::read::Reader;
use crate::model::{TaskId, Timestamp};
use crate::node::shared::{Shared, lock};
use crate::store::Journal;
use crate::store::journal::SegmentId;
use crate::store::{Changes, Checkpoint, Error, Index};

/// Tasks or calls in one batch: so much is in memory twice.
const PER_BATCH: usize = 512;
/// Words to the loop that may wait.
pub(super) const WORDS_MAX: usize = 16;

/// What a checkpoint is made of.
#[derive(Debug)]
pub(super) struct Work {
    pub(super) taken: Taken,
    /// Where a start has to begin for tasks, and the first segment that anything at all needs.
    pub(super) watermark: SegmentId,
    pub(super) oldest: SegmentId,
    /// Tasks whose blobs go.
    pub(super) forgotten: Vec<TaskId>,
    /// Tasks that keep more than they are worth.
    pub(super) copied: copies::Due,
}

/// A word from a checkpoint that is being made.
#[derive(Debug)]
pub(super) enum Word {
    /// The index has these tasks.
    Filed(Vec<(Timestamp, TaskId)>),
    /// The index has lost these keys.
    Unfiled(Vec<Vec<u8>>),
    /// These are all entries of a task that is to be copied.
    Copied(TaskId, Vec<Bytes>),
    /// It is over.
    Over,
}

/// Makes checkpoints, one at a time.
#[derive(Clone)]
pub(super) struct Filer {
    shared: Arc<Shared>,
    reader: Reader,
    state: Arc<Mutex<State>>,
}

/// Takes a call's key in the index, and its value; `None` if the one that is there stands.
type See<'a> = dyn FnMut(Vec<u8>, Option<Vec<u8>>) + 'a;

/// The hash of each call's value, by its key.
type Hashes = BTreeMap<Vec<u8>, blake3::Hash>;

/// What the index has, beside tasks.
#[derive(Debug)]
pub(super) struct State {
    watermark: Option<SegmentId>,
    calls: Hashes,
}

impl Filer {
    /// For an index of which this is known.
    pub(super) fn new(shared: Arc<Shared>, reader: Reader, known: &mut Known) -> Self {
        Self { shared, reader, state: Arc::new(Mutex::new(State::new(known))) }
    }

    /// The first segment that a start would have to read for calls, if all that is known of them by now were in the index.
    pub(super) fn floor(&self) -> Option<SegmentId> {
        let floors = [self.shared.calls_by_key.floor(), self.shared.results_by_key.floor()];
        floors.into_iter().flatten().min()
    }

    /// Makes a checkpoint and frees what nobody needs. Blocks.
    pub(super) fn run(&self, work: Work, words: &mpsc::Sender<Word>) {
        let Work { taken, watermark, oldest, forgotten, copied } = work;
        let blobs = &self.reader.blobs;
        let calls = |see: &mut See<'_>| {
            self.shared.calls_by_key.visit_filed(see);
            self.shared.results_by_key.visit_filed(see);
        };
        let filed = match &self.reader.index {
            Some(index) => lock(&self.state).file(&self.reader.journal, index, taken, watermark, calls, words),
            None => {
                let _ = words.blocking_send(Word::Unfiled(taken.unwanted));
                Ok(())
            }
        };
        for task in forgotten {
            if let Err(error) = blobs.remove_all(&task.to_string()) {
                tracing::warn!(%error, %task, "large texts of a forgotten task could not be removed");
            }
        }
        copies::read(&self.reader.journal, copied, |task, entries| drop(words.blocking_send(Word::Copied(task, entries))));
        match filed.and_then(|()| self.reader.journal.forget_before(oldest)) {
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(%error, "what has ended could not be filed or freed: a start reads more of the journal until it is")
            }
        }
        let _ = words.blocking_send(Word::Over);
    }
}

impl State {
    pub(super) fn new(known: &mut Known) -> Self {
        Self { watermark: known.watermark, calls: std::mem::take(&mut known.call_hashes) }
    }

    /// Brings into the index what was taken and what `calls` shows, with this watermark.
    pub(super) fn file(
        &mut self,
        journal: &Journal,
        index: &Index,
        taken: Taken,
        watermark: SegmentId,
        calls: impl FnOnce(&mut See<'_>),
        words: &mpsc::Sender<Word>,
    ) -> Result<(), Error> {
        let Some((first, _)) = journal.segments() else { return Ok(()) };
        let watermark = journal.at_or_before(watermark).unwrap_or(first);
        // What was filed before holds for the segments from there on; with nothing filed, all are read. What is now wanted from further back is
        // read again from the first batch on.
        let before = self.watermark.filter(|before| journal.seed(*before).is_some()).unwrap_or(first).min(watermark);
        let file = |changes: &Changes, watermark| match Checkpoint::new(journal, watermark) {
            // Memory lets go of what it holds when the disk has it, as far as sled tells.
            Some(checkpoint) => index.file(changes, &checkpoint).and_then(|()| index.flush()).map(|()| true),
            None => Ok(false),
        };
        for unwanted in taken.unwanted.chunks(PER_BATCH) {
            if file(&unwanted.iter().map(|key| (key.clone(), None)).collect(), before)? {
                let _ = words.blocking_send(Word::Unfiled(unwanted.to_vec()));
            }
        }
        for tasks in taken.tasks.chunks(PER_BATCH) {
            let (mut changes, mut filed) = (Changes::new(), Vec::with_capacity(tasks.len()));
            for (task, ended, callback) in tasks {
                let Some(value) = filed::value(ended) else { continue };
                changes.insert(filed::task_key(ended.created, *task), Some(value));
                if let Some(url) = callback {
                    changes.insert(filed::callback_key(*task), Some(url.as_bytes().to_vec()));
                }
                filed.push((ended.created, *task));
            }
            if file(&changes, before)? {
                let _ = words.blocking_send(Word::Filed(filed));
            }
        }
        let (changes, known) = changes_of_calls(&self.calls, calls);
        let mut changes = changes.into_iter().peekable();
        while changes.peek().is_some() {
            let batch: Changes = changes.by_ref().take(PER_BATCH).collect();
            file(&batch, before)?;
            // One by one: should the next not be filed, it is known what has been.
            for key in batch.into_keys() {
                match known.get(&key) {
                    Some(hash) => drop(self.calls.insert(key, *hash)),
                    None => drop(self.calls.remove(&key)),
                }
            }
        }
        if self.watermark != Some(watermark) && file(&Changes::new(), watermark)? {
            self.watermark = Some(watermark);
        }
        Ok(())
    }
}

/// What has changed of calls since the index heard of them, and what it then has.
fn changes_of_calls(before: &Hashes, calls: impl FnOnce(&mut See<'_>)) -> (Changes, Hashes) {
    let (mut changes, mut now) = (Changes::new(), BTreeMap::new());
    let mut see = |key: Vec<u8>, body: Option<Vec<u8>>| {
        let known = before.get(&key).copied();
        match body {
            Some(body) => {
                let hash = blake3::hash(&body);
                now.insert(key.clone(), hash);
                if known != Some(hash) {
                    changes.insert(key, Some(body));
                }
            }
            None => now.extend(known.map(|hash| (key, hash))),
        }
    };
    calls(&mut see);
    changes.extend(before.keys().filter(|key| !now.contains_key(*key)).map(|key| (key.clone(), None)));
    (changes, now)
}
