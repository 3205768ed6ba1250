//! Tasks that have ended, as the index has them, and what a start learns from it.
//!
//! The journal stays the truth. The index spares a start the segments in which nothing is left to do, and memory the rows of tasks that nobody
//! looks at: what stays there of such a task is a [`Filed`], and its row and the places of its entries are read when somebody asks.
//! Its callback, while that is pending, is a value of its own, and so is every call with a key (`node::invocation::kept`).
//!
//! What does not fit the journal, or does not read, is forgotten as a whole, and the journal is read from its beginning: nothing that was
//! acknowledged depends on this. An index that fits outlives damage of the journal: what it tells of a task stands, whether or not the entries can
//! still be read.

use std::collections::BTreeMap;
use std::sync::Arc;

use minicbor::{Decode, Encode};

use super::archive::Ended;
use super::read::Reader;
use super::row::Row;
use crate::model::{TaskId, Timestamp};
use crate::node::invocation::kept;
use crate::store::journal::{Position, SegmentId};
use crate::store::{Checkpoint, Index};
use crate::wire::task::Outcome;

/// What the keys of tasks begin with; when a task was submitted and its id follow, so that values that come together lie together.
const TASK: &[u8] = b"t";
/// What the keys of pending callbacks begin with; the id of the task follows.
const CALLBACK: &[u8] = b"b";

/// What memory keeps of a task that the index has.
#[derive(Debug, Clone)]
pub(super) struct Filed {
    pub(super) created: Timestamp,
    pub(super) at: Timestamp,
    /// Where its first entry is.
    pub(super) first: SegmentId,
    pub(super) key: Option<Arc<str>>,
    pub(super) events: u32,
    pub(super) outcome: Outcome,
}

/// The whole of it.
#[derive(Debug, Encode, Decode)]
#[cbor(map)]
struct Value<'a> {
    #[n(0)]
    outcome: Outcome,
    #[n(1)]
    at_ms: u64,
    #[cbor(b(2))]
    row: &'a str,
    #[n(3)]
    runs: Vec<Run>,
    #[cbor(b(4))]
    key: Option<Key<'a>>,
}

/// An idempotency key, and what else must come with it.
#[derive(Debug, Encode, Decode)]
#[cbor(array)]
struct Key<'a> {
    #[cbor(b(0))]
    text: &'a str,
    #[cbor(n(1), with = "minicbor::bytes")]
    identity: [u8; 32],
}

/// Entries in one segment: each by how far it lies behind the one before.
#[derive(Debug, Encode, Decode)]
#[cbor(array)]
struct Run {
    #[n(0)]
    segment: u64,
    #[n(1)]
    steps: Vec<u32>,
}

fn runs(positions: &[Position]) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    let mut last = 0;
    for Position { segment, offset } in positions {
        match runs.last_mut().filter(|run| run.segment == segment.0).zip(offset.checked_sub(last)) {
            Some((run, step)) => run.steps.push(step),
            None => runs.push(Run { segment: segment.0, steps: vec![*offset] }),
        }
        last = *offset;
    }
    runs
}

fn positions(runs: &[Run]) -> Vec<Position> {
    let in_run = |run: &Run| {
        let segment = SegmentId(run.segment);
        let offsets = run.steps.iter().scan(0_u32, |offset, step| {
            *offset = offset.saturating_add(*step);
            Some(*offset)
        });
        offsets.map(|offset| Position { segment, offset }).collect::<Vec<_>>()
    };
    runs.iter().flat_map(in_run).collect()
}

/// Where the index has a task.
pub(super) fn task_key(created: Timestamp, task: TaskId) -> Vec<u8> {
    [TASK, &created.as_ms().to_be_bytes(), &task.to_bytes()].concat()
}

fn place_of(key: &[u8]) -> Option<(Timestamp, TaskId)> {
    let (created, task) = key.strip_prefix(TASK)?.split_at_checked(8)?;
    let created = u64::from_be_bytes(created.try_into().ok()?);
    Some((Timestamp::from_ms(created), TaskId::from_bytes(task.try_into().ok()?)))
}

/// Where the index has the callback of a task.
pub(super) fn callback_key(task: TaskId) -> Vec<u8> {
    [CALLBACK, &task.to_bytes()].concat()
}

/// A task as the index has it; `None` for one that cannot be read, which the index never has.
pub(super) fn value(ended: &Ended) -> Option<Vec<u8>> {
    if ended.unreadable.is_some() {
        return None;
    }
    let key = ended.key.as_ref().map(|(text, identity)| Key { text, identity: *identity });
    let value = Value { outcome: ended.outcome, at_ms: ended.at.as_ms(), row: ended.row.text(), runs: runs(&ended.positions), key };
    minicbor::to_vec(value).ok()
}

/// What memory keeps of a task that was filed.
pub(super) fn of(ended: &Ended, key: Option<Arc<str>>) -> Option<Filed> {
    let first = ended.positions.first()?.segment;
    let events = u32::try_from(ended.positions.len()).unwrap_or(u32::MAX);
    Some(Filed { created: ended.created, at: ended.at, first, key, events, outcome: ended.outcome })
}

/// The row of a task and where its entries are, from its value.
pub(super) fn read(body: &[u8]) -> Option<(Row, Arc<[Position]>)> {
    let value: Value<'_> = minicbor::decode(body).ok()?;
    Some((Row::of_text(value.row), positions(&value.runs).into()))
}

/// What a start knows from the index.
#[derive(Debug, Default)]
pub(super) struct Known {
    pub(super) tasks: BTreeMap<TaskId, Filed>,
    /// Tasks of which somebody is still to be told.
    pub(super) callbacks: BTreeMap<TaskId, String>,
    pub(super) keys: BTreeMap<Arc<str>, (TaskId, [u8; 32])>,
    pub(super) calls: Vec<kept::Found>,
    /// What the index has of calls: the hash of each value, by its key.
    pub(super) call_hashes: BTreeMap<Vec<u8>, blake3::Hash>,
    /// The first segment that must be read; `None` if all must.
    pub(super) watermark: Option<SegmentId>,
    /// Values that nobody wants any more.
    pub(super) unwanted: Vec<Vec<u8>>,
    /// Tasks of an index that did not fit.
    pub(super) dropped: Vec<TaskId>,
    /// Tasks whose segments have been forgotten: their blobs go too.
    pub(super) forgotten: Vec<TaskId>,
}

/// Reads what the index knows of this journal; nothing if that does not fit, and then the text says why. Blocks.
pub(super) fn load(reader: &Reader) -> (Known, Option<String>) {
    let Some(index) = &reader.index else { return (Known::default(), None) };
    let why = match index.checkpoint() {
        Ok(None) => return (Known::default(), None),
        Ok(Some(checkpoint)) => match checkpoint.fits(&reader.journal).and_then(|()| try_load(reader, index, checkpoint)) {
            Ok(known) => return (known, None),
            Err(why) => why,
        },
        Err(error) => error.to_string(),
    };
    // By their keys alone, which lie there as they were written.
    let mut dropped = Vec::new();
    if let Err(error) = index.visit_filed(TASK, |key, _| dropped.extend(place_of(key).map(|(_, task)| task))) {
        tracing::warn!(%error, "what the index knew of another journal cannot be told");
    }
    if let Err(error) = index.unfile() {
        tracing::warn!(%error, "what the index knew of another journal could not be removed");
    }
    let known = Known { dropped, ..Known::default() };
    (known, Some(format!("the index does not fit the journal ({why}): all of the journal was read, and the index is made anew")))
}

fn try_load(reader: &Reader, index: &Index, checkpoint: Checkpoint) -> Result<Known, String> {
    let mut known = Known { watermark: Some(checkpoint.watermark()), ..Known::default() };
    // What begins before was forgotten; what else is not there is lost, and its rows are all that is left of it.
    let oldest = reader.journal.forgotten();
    let mut faulty = 0_usize;
    let task = |key: &[u8], body: &[u8]| {
        let (Some((created, task)), Ok(value)) = (place_of(key), minicbor::decode::<Value<'_>>(body)) else {
            faulty = faulty.saturating_add(1);
            return;
        };
        let Some(first) = value.runs.first().map(|run| SegmentId(run.segment)).filter(|first| *first >= oldest) else {
            known.unwanted.extend([task_key(created, task), callback_key(task)]);
            known.forgotten.push(task);
            return;
        };
        let key = value.key.map(|Key { text, identity }| {
            let text: Arc<str> = text.into();
            known.keys.insert(Arc::clone(&text), (task, identity));
            text
        });
        let events = value.runs.iter().map(|run| run.steps.len()).sum::<usize>();
        let events = u32::try_from(events).unwrap_or(u32::MAX);
        let at = Timestamp::from_ms(value.at_ms);
        known.tasks.insert(task, Filed { created, at, first, key, events, outcome: value.outcome });
    };
    index.visit_filed(TASK, task).map_err(|error| error.to_string())?;
    let callback = |key: &[u8], body: &[u8]| {
        let task = key.strip_prefix(CALLBACK).and_then(|id| id.try_into().ok()).map(TaskId::from_bytes);
        match task.zip(std::str::from_utf8(body).ok()) {
            Some((task, url)) if known.tasks.contains_key(&task) => drop(known.callbacks.insert(task, url.to_owned())),
            Some(_) => {}
            None => faulty = faulty.saturating_add(1),
        }
    };
    index.visit_filed(CALLBACK, callback).map_err(|error| error.to_string())?;
    let call = |key: &[u8], body: &[u8]| match kept::Found::filed(body) {
        // Its result was forgotten with its segment.
        Some(found) if found.iter().filter_map(kept::Found::position).any(|position| position.segment < oldest) => {
            known.unwanted.push(key.to_vec());
        }
        Some(found) => {
            known.call_hashes.insert(key.to_vec(), blake3::hash(body));
            known.calls.extend(found);
        }
        None => faulty = faulty.saturating_add(1),
    };
    index.visit_filed(kept::FILED, call).map_err(|error| error.to_string())?;
    if faulty == 0 { Ok(known) } else { Err(format!("{faulty} of its values do not read")) }
}
