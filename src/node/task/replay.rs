//! What a start finds in the journal: tasks to go on with, tasks that have ended, and tasks that a disk has damaged.
//!
//! Nothing is guessed. A task is *unreadable* if an entry of it is missing between others, is damaged, or was written by a later release: it
//! is listed as failed with the reason UNREADABLE and left in the journal as it is. It is *in doubt* if the journal has lost entries that may
//! have been its last ones: had one of them been its end, or the beginning of work that must not be done twice, to go on would be wrong. Such
//! a task is ended for good, with the same reason. Whose a damaged entry was is mostly still to be read in it, and then nobody else is in doubt.
//!
//! An entry whose task has no beginning is what is left of a task that was forgotten, if the task has ended and nothing was lost.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use serde_json::Value;

use super::book::{Ended, Row, ended};
use super::read::{self, Reader};
use crate::model::{ErrorCode, Failure, NodeId, TaskId, Timestamp};
use crate::node::invocation::kept::Found as FoundCall;
use crate::proto::task::state::State;
use crate::proto::task::{unreadable, view};
use crate::store::journal::{Finding, FindingKind, Position, Replay};
use crate::wire::kept;
use crate::wire::task::{Entry, Event, Outcome, Reason};

/// A task to go on with.
pub(super) struct Unfinished {
    pub(super) state: State,
    pub(super) positions: Vec<Position>,
    pub(super) outputs: Vec<Option<Arc<Value>>>,
}

/// What was found.
#[derive(Default)]
pub(in crate::node) struct Found {
    pub(super) live: BTreeMap<TaskId, Unfinished>,
    pub(super) ended: BTreeMap<TaskId, Ended>,
    /// What happened to calls with a key.
    pub(in crate::node) calls: Vec<FoundCall>,
    /// What went wrong, for people.
    pub(in crate::node) notes: Vec<String>,
}

/// A task that has not ended, as far as was read.
struct Open {
    state: State,
    positions: Vec<Position>,
    /// The index of its last entry.
    last: u64,
}

/// A task that cannot be read.
struct Broken {
    why: String,
    /// Its row before that.
    known: Option<Value>,
    positions: Vec<Position>,
    since: Timestamp,
    key: Option<(String, [u8; 32])>,
    /// Whether it is an end without a beginning.
    is_rest: bool,
}

/// Tasks as they are put together.
struct Gathering<'a> {
    reader: &'a Reader,
    now: Timestamp,
    live: BTreeMap<TaskId, Open>,
    ended: BTreeMap<TaskId, Ended>,
    broken: BTreeMap<TaskId, Broken>,
    /// Who keeps this journal, and what its entries begin with.
    home: Option<(NodeId, Vec<u8>)>,
    /// The index that comes next if none is missing.
    next: Option<u64>,
    /// What happened to calls with a key.
    calls: Vec<FoundCall>,
    /// Indices that were passed over.
    gaps: Vec<Range<u64>>,
    /// Entries that not even name a task.
    nameless: Vec<Position>,
}

impl Gathering<'_> {
    fn take(&mut self, index: u64, position: Position, bytes: &[u8]) {
        if let Some(next) = self.next.filter(|next| *next < index) {
            self.gaps.push(next..index);
        }
        self.next = Some(index.saturating_add(1));
        if kept::Subject::of(bytes) == Some(kept::Subject::Call) {
            // One that cannot be read is a result that nobody finds: its key is free.
            self.calls.extend(kept::Entry::decode(bytes).map(|entry| FoundCall::new(entry, position)));
            return;
        }
        let entry = match Entry::decode(bytes) {
            Ok(entry) => entry,
            Err(error) => {
                match Entry::task_of(bytes) {
                    Some(task) => self.give_up(task, Some(position), error.to_string(), self.now),
                    None => self.nameless.push(position),
                }
                return;
            }
        };
        if self.home.is_none() {
            let head = memchr::memmem::find(bytes, &entry.task.to_bytes()).and_then(|place| bytes.get(..place));
            self.home = head.map(|head| (entry.home, head.to_vec()));
        }
        if let Some(broken) = self.broken.get_mut(&entry.task) {
            broken.positions.push(position);
            broken.is_rest |= broken.known.is_none() && matches!(entry.event, Event::Ended { .. });
        } else if let Err(failure) = self.apply(index, position, &entry) {
            self.give_up(entry.task, Some(position), failure.message, entry.at);
            if let Some(broken) = self.broken.get_mut(&entry.task) {
                broken.is_rest = broken.known.is_none() && matches!(entry.event, Event::Ended { .. });
            }
        }
    }

    fn apply(&mut self, index: u64, position: Position, entry: &Entry) -> Result<(), Failure> {
        if let Event::Submitted(submitted) = &entry.event {
            let reader = self.reader;
            let state = read::begin(&reader.blobs, entry.task, &reader.config, &reader.defaults, submitted, entry.at)?;
            self.live.insert(entry.task, Open { state, positions: vec![position], last: index });
            return Ok(());
        }
        let Some(open) = self.live.get_mut(&entry.task) else {
            if self.ended.contains_key(&entry.task) {
                return Ok(());
            }
            return Err(Failure::new(ErrorCode::Internal, "its beginning is missing"));
        };
        read::apply(&self.reader.blobs, &mut open.state, entry)?;
        open.positions.push(position);
        open.last = index;
        if let Some(ended) = ended(&open.state, &open.positions) {
            self.live.remove(&entry.task);
            self.ended.insert(entry.task, ended);
        }
        Ok(())
    }

    fn give_up(&mut self, task: TaskId, position: Option<Position>, why: String, at: Timestamp) {
        let (known, mut positions, since, key) = match (self.live.remove(&task), self.ended.remove(&task)) {
            (Some(Open { state, positions, .. }), _) => {
                let key = state.key().map(|(key, identity)| (key.to_owned(), identity));
                (Some(view::summary(&state)), positions, state.created(), key)
            }
            (None, Some(ended)) => (Some(ended.row.value()), ended.positions.to_vec(), ended.created, ended.key),
            (None, None) => (None, Vec::new(), at, None),
        };
        positions.extend(position);
        self.broken.entry(task).or_insert(Broken { why, known, positions, since, key, is_rest: false });
    }

    /// Stops every task that what was lost may have been part of.
    fn doubt(&mut self, lost: &[Lost]) -> Vec<(TaskId, String)> {
        let mut doubtful = BTreeMap::new();
        for Lost { range, bytes, told } in lost {
            let named = self.named_in(bytes);
            let is_told = u64::try_from(named.len()).is_ok_and(|named| named >= range.end.saturating_sub(range.start));
            let named: BTreeSet<TaskId> = named.into_values().collect();
            for (task, open) in &self.live {
                if named.contains(task) || (!is_told && open.last < range.start) {
                    doubtful.entry(*task).or_insert_with(|| told.clone());
                }
            }
        }
        doubtful.into_iter().collect()
    }

    /// The tasks that damaged bytes name, by where they do.
    fn named_in(&self, bytes: &[u8]) -> BTreeMap<usize, TaskId> {
        let head = self.home.as_ref().map(|(_, head)| head.as_slice()).unwrap_or_default();
        let tasks = self.live.keys().chain(self.ended.keys()).chain(self.broken.keys());
        let known: BTreeSet<[u8; 16]> = tasks.map(|task| task.to_bytes()).collect();
        let begins = |place: usize| !head.is_empty() && bytes.get(..place).is_some_and(|before| before.ends_with(head));
        let named = |(place, id): (usize, &[u8])| {
            let id = <[u8; 16]>::try_from(id).ok().filter(|id| known.contains(id) || begins(place))?;
            Some((place, TaskId::from_bytes(id)))
        };
        bytes.windows(16).enumerate().filter_map(named).collect()
    }

    /// Ends a task for good that nobody can say how far it came.
    fn end(&mut self, task: TaskId, why: &str) -> Result<(), String> {
        let (Some(open), Some((home, _))) = (self.live.get(&task), &self.home) else { return Ok(()) };
        let (mut state, mut positions) = (open.state.clone(), open.positions.clone());
        let failure = serde_json::to_vec(&failure(task, why)).unwrap_or_default();
        let failure = Some(crate::wire::task::Text::Inline(failure.into()));
        let event = Event::Ended { outcome: Outcome::Failed, reason: Some(Reason::Unreadable), failure };
        let entry = Entry { home: *home, epoch: super::book::EPOCH, task, at: self.now, number: state.events(), event };
        let journal = &self.reader.journal;
        let ticket = journal.append(vec![entry.encode()]).map_err(|refused| refused.to_string())?;
        futures::executor::block_on(journal.wait(&ticket)).map_err(|refused| refused.to_string())?;
        state.apply(&entry.event, entry.at);
        positions.extend_from_slice(ticket.positions());
        self.live.remove(&task);
        self.ended.extend(ended(&state, &positions).map(|ended| (task, ended)));
        Ok(())
    }
}

/// Entries that are gone.
struct Lost {
    range: Range<u64>,
    /// What is left of them.
    bytes: Vec<u8>,
    told: String,
}

/// What was lost: what the journal says of damage, and what is missing without that.
fn lost(findings: &[Finding], gaps: &[Range<u64>]) -> Vec<Lost> {
    let damaged = findings.iter().filter_map(|finding| {
        let range = match &finding.kind {
            FindingKind::Lost { first, end } => first.0..end.0,
            FindingKind::Unreadable { first } => first.0..u64::MAX,
            FindingKind::TornTail | FindingKind::Header => return None,
        };
        // What cannot be read again names nobody, and then all are in doubt.
        Some(Lost { range, bytes: finding.read().unwrap_or_default(), told: finding.to_string() })
    });
    let mut lost: Vec<Lost> = damaged.collect();
    for gap in gaps {
        let is_told = lost.iter().any(|lost| lost.range.start <= gap.start && gap.end <= lost.range.end);
        if !is_told {
            let told = format!("entries {} up to {} (exclusive) are gone with a file of the journal that is missing", gap.start, gap.end);
            lost.push(Lost { range: gap.clone(), bytes: Vec::new(), told });
        }
    }
    lost
}

fn failure(task: TaskId, why: &str) -> Failure {
    let failure = Failure::new(ErrorCode::Internal, format!("the journal holds task {task} in part: {why}")).retryable(false);
    failure.with("suggestion", "`meshwork doctor` tells what is damaged; see what was done, and submit the rest anew")
}

/// Reads the journal. Blocks.
pub(in crate::node) fn run(reader: &Reader, replay: Replay, now: Timestamp) -> Result<Found, crate::store::Error> {
    let mut gathering = Gathering {
        reader,
        now,
        live: BTreeMap::new(),
        ended: BTreeMap::new(),
        broken: BTreeMap::new(),
        home: None,
        next: None,
        calls: Vec::new(),
        gaps: Vec::new(),
        nameless: Vec::new(),
    };
    let findings = replay.run(|entry| gathering.take(entry.index.0, entry.position, entry.payload))?;
    let lost = lost(&findings, &gathering.gaps);
    let mut notes: Vec<String> = findings.iter().map(ToString::to_string).collect();
    notes.extend(lost.iter().map(|lost| lost.told.clone()).filter(|told| !notes.contains(told)).collect::<Vec<_>>());
    for position in &gathering.nameless {
        let file = position.segment.file_name();
        notes.push(format!("{file}: the entry at byte {} cannot be read and names no task", position.offset));
    }
    for (task, why) in gathering.doubt(&lost) {
        notes.push(format!("task {task} is stopped, because entries of it may be lost: {why}"));
        if let Err(error) = gathering.end(task, &why) {
            tracing::warn!(%task, error, "that it is stopped could not be kept");
            gathering.give_up(task, None, why, now);
        }
    }
    if lost.is_empty() {
        gathering.broken.retain(|_, broken| !broken.is_rest);
    }
    let mut found = Found { calls: std::mem::take(&mut gathering.calls), ..Found::default() };
    for (task, Open { state, positions, last }) in std::mem::take(&mut gathering.live) {
        match reader.outputs(&state) {
            Ok(outputs) => {
                found.live.insert(task, Unfinished { state, positions, outputs });
            }
            Err(failure) => {
                gathering.live.insert(task, Open { state, positions, last });
                gathering.give_up(task, None, failure.message, now);
            }
        }
    }
    found.ended = gathering.ended;
    for (task, Broken { why, known, positions, since, key, is_rest: _ }) in gathering.broken {
        notes.push(format!("task {task} is stopped, because the journal cannot be read: {why}"));
        let row = Row::new(&unreadable::summary(task, known, since, now));
        let unreadable = Some(Arc::new(failure(task, &why)));
        let ended = Ended { row, outcome: Outcome::Failed, created: since, at: now, positions: positions.into(), key, unreadable };
        found.ended.insert(task, ended);
    }
    for note in &notes {
        tracing::warn!(note, "the journal");
    }
    found.notes = notes;
    Ok(found)
}
