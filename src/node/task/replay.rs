//! What a start finds in the journal: tasks to go on with, tasks that have ended, and tasks that a disk has damaged.
//!
//! Nothing is guessed. A task is *unreadable* if an entry of it is missing between others, is damaged, or was written by a later release: it
//! is listed as failed with the reason UNREADABLE and left in the journal as it is. It is *in doubt* if the journal has lost entries that may
//! have been its last ones: had one of them been its end, or the beginning of work that must not be done twice, to go on would be wrong. Such
//! a task is ended for good, with the same reason. Whose a damaged entry was is mostly still to be read in it, and then nobody else is in doubt.
//!
//! Of what the index knows ([`super::filed`]) nothing is read again: replay begins at its watermark, and passes over the entries of its tasks behind
//! that, but for the word that a callback is over. All of them have ended, and how is told by their rows, which stand whatever the journal has lost;
//! those of which it has lost entries are named, and whoever asks for their results or events hears what is wrong. A flipped bit before the watermark
//! is met only then; that a whole segment is missing there is noticed at every start.
//!
//! A task that waits for long may be there twice ([`super::copies`]), or its beginning and then all of it. An event that it has already is one of a
//! copy, and must be the same; where it lies counts when the copy is complete. One that begins anew is what was there before, if it comes as far.
//!
//! An entry whose task has no beginning is what is left of a task that was forgotten, if the task has ended and nothing was lost. So is one whose plan
//! went with all its large texts: those of a task go when it is forgotten, and its entries when nobody needs their segments.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use serde_json::Value;

use super::archive::{Ended, ended};
use super::filed::{self, Known};
use super::read::{self, Reader};
use super::row::Row;
use crate::model::{ErrorCode, Failure, NodeId, TaskId, Timestamp};
use crate::node::invocation::kept::Found as FoundCall;
use crate::proto::task::state::State;
use crate::proto::task::{unreadable, view};
use crate::store::journal::{Finding, FindingKind, Position, Replay, SegmentId};
use crate::wire::kept;
use crate::wire::task::{Entry, Event, Outcome, Reason, Text};

/// By so many bits of 128 an id may differ from one that is known to be taken for it.
const NEAR_BITS: u32 = 8;
/// So many tasks are named in one note; a segment may hold thousands.
const NAMED_MAX: usize = 256;

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
    /// What the index knows, and it alone, but for what happened to calls with a key.
    pub(super) known: Known,
    /// What happened to calls with a key.
    pub(in crate::node) calls: Vec<FoundCall>,
    /// How much was read.
    pub(in crate::node) started: Started,
    /// What went wrong, for people.
    pub(in crate::node) notes: Vec<String>,
    /// Whether the journal has entries, and neither lost any nor put any aside, so that who is not in it is nobody.
    pub(in crate::node) is_whole: bool,
}

impl Found {
    /// Whether a task of this name is there, going on, ended or unreadable.
    pub(in crate::node) fn knows(&self, task: &TaskId) -> bool {
        self.live.contains_key(task) || self.ended.contains_key(task) || self.known.tasks.contains_key(task)
    }
}

/// How much of the journal a start read.
#[derive(Debug, Clone, Copy, Default)]
pub(in crate::node) struct Started {
    segments: usize,
    read: usize,
    filed: usize,
}

impl fmt::Display for Started {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { segments, read, filed } = self;
        write!(f, "the start read {read} of {segments} segments; {filed} tasks that have ended came from the index")
    }
}

/// A task that has not ended, as far as was read.
struct Open {
    state: State,
    positions: Vec<Position>,
    /// Where the first of them lie once more, while a copy of it is read.
    copied: Vec<Position>,
    /// What it was taken for before its copy began.
    before: Option<Broken>,
    /// The index of its last entry.
    last: u64,
}

/// A task that cannot be read.
struct Broken {
    why: String,
    /// Its row before that.
    known: Option<Value>,
    positions: Vec<Position>,
    /// How many events it had at least.
    events: u64,
    since: Timestamp,
    key: Option<(String, [u8; 32])>,
    /// Whether all its large texts are gone.
    is_bare: bool,
    /// Whether it is what is left of a task that has ended: its beginning or all its large texts are gone.
    is_rest: bool,
}

impl Broken {
    /// What was found of it before belongs to it.
    fn take_in(&mut self, before: Broken) {
        self.positions.splice(..0, before.positions);
        self.events = self.events.max(before.events);
    }
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
    /// Whether there was no entry.
    is_empty: bool,
    known: Known,
    /// What happened to calls with a key, and up to where the index knows that of each that has a result.
    calls: Vec<FoundCall>,
    known_calls: BTreeMap<Vec<u8>, Position>,
    /// Entries that not even name a task.
    nameless: Vec<Position>,
}

impl Gathering<'_> {
    fn take(&mut self, index: u64, position: Position, bytes: &[u8]) {
        self.is_empty = false;
        if kept::Subject::of(bytes) == Some(kept::Subject::Call) {
            // One that cannot be read is a result that nobody finds: its key is free. What it may own is left alone.
            let Ok(entry) = kept::Entry::decode(bytes) else { return self.nameless.push(position) };
            let found = FoundCall::new(entry, position);
            // What led to a result that is known would undo it.
            if self.known_calls.get(&found.filed_key()).is_none_or(|known| *known < position) {
                self.calls.push(found);
            }
            return;
        }
        let entry = match Entry::decode(bytes) {
            Ok(entry) => entry,
            Err(error) => {
                match Entry::task_of(bytes) {
                    Some(task) if self.known.tasks.contains_key(&task) => {}
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
        if self.known.tasks.contains_key(&entry.task) {
            if matches!(entry.event, Event::CalledBack { .. }) && self.known.callbacks.remove(&entry.task).is_some() {
                self.known.unwanted.push(filed::callback_key(entry.task));
            }
            return;
        }
        let before = if entry.number == 0 { self.broken.remove(&entry.task) } else { None };
        if let Some(broken) = self.broken.get_mut(&entry.task) {
            broken.positions.push(position);
        } else if let Err(failure) = self.apply(index, position, &entry, bytes) {
            self.give_up(entry.task, Some(position), failure.message, entry.at);
        }
        match (self.live.get_mut(&entry.task), self.broken.get_mut(&entry.task), before) {
            (Some(open), _, Some(before)) => open.before = Some(before),
            (None, Some(broken), Some(before)) => broken.take_in(before),
            _ => {}
        }
        if let Some(broken) = self.broken.get_mut(&entry.task) {
            broken.events = broken.events.max(entry.number.saturating_add(1));
        }
        let is_plan = matches!(entry.event, Event::Planned { subtasks: Text::Blob { .. }, .. });
        if let Some(broken) = self.broken.get_mut(&entry.task) {
            broken.is_bare |= is_plan && self.reader.blobs.knows(&entry.task.to_string()).is_ok_and(|knows| !knows);
            broken.is_rest |= (broken.known.is_none() || broken.is_bare) && matches!(entry.event, Event::Ended { .. });
        }
    }

    fn apply(&mut self, index: u64, position: Position, entry: &Entry, bytes: &[u8]) -> Result<(), Failure> {
        let reader = self.reader;
        if let Some(open) = self.live.get_mut(&entry.task).filter(|open| entry.number < open.state.events()) {
            let place = usize::try_from(entry.number).unwrap_or(usize::MAX);
            let original = open.positions.get(place).and_then(|position| reader.journal.read(*position).ok());
            if original.is_none_or(|original| original != bytes) {
                return Err(Failure::new(ErrorCode::Internal, format!("event {} of it is there twice, and not the same", entry.number)));
            }
            if place == 0 {
                open.copied.clear();
            }
            // What is not in turn is of a copy that lacks something, and does not count.
            if place == open.copied.len() {
                open.copied.push(position);
            }
            if open.copied.len() == open.positions.len() {
                open.positions = std::mem::take(&mut open.copied);
            }
            return Ok(());
        }
        if let Event::Submitted(submitted) = &entry.event {
            let state = read::begin(&reader.blobs, entry.task, &reader.config, &reader.defaults, submitted, entry.at)?;
            self.live.insert(entry.task, Open { state, positions: vec![position], copied: Vec::new(), before: None, last: index });
            return Ok(());
        }
        let Some(open) = self.live.get_mut(&entry.task) else {
            if let Some(ended) = self.ended.get_mut(&entry.task) {
                if matches!(entry.event, Event::CalledBack { .. }) {
                    ended.callback = None;
                }
                return Ok(());
            }
            // What is left of a task that was forgotten.
            if matches!(entry.event, Event::CalledBack { .. }) {
                return Ok(());
            }
            return Err(Failure::new(ErrorCode::Internal, "its beginning is missing"));
        };
        read::apply(&reader.blobs, &mut open.state, entry)?;
        open.positions.push(position);
        open.last = index;
        if let Some(ended) = ended(&open.state, &open.positions) {
            self.live.remove(&entry.task);
            self.ended.insert(entry.task, ended);
        }
        Ok(())
    }

    fn give_up(&mut self, task: TaskId, position: Option<Position>, why: String, at: Timestamp) {
        let mut before = None;
        let (known, mut positions, since, key) = match (self.live.remove(&task), self.ended.remove(&task)) {
            (Some(Open { state, positions, before: gone, .. }), _) => {
                before = gone;
                let key = state.key().map(|(key, identity)| (key.to_owned(), identity));
                (Some(view::summary(&state)), positions, state.created(), key)
            }
            (None, Some(ended)) => (Some(ended.row.value()), ended.positions.to_vec(), ended.created, ended.key),
            (None, None) => (None, Vec::new(), at, None),
        };
        positions.extend(position);
        let broken = Broken { why, known, positions, events: 0, since, key, is_bare: false, is_rest: false };
        let broken = self.broken.entry(task).or_insert(broken);
        before.into_iter().for_each(|before| broken.take_in(before));
    }

    /// Gives up what a copy was to mend that does not come as far.
    fn give_up_cut_copies(&mut self) {
        let is_cut = |open: &Open| open.before.as_ref().is_some_and(|before| open.state.events() < before.events);
        let cut: Vec<TaskId> = self.live.iter().filter(|(_, open)| is_cut(open)).map(|(task, _)| *task).collect();
        for task in cut {
            self.give_up(task, None, "its beginning is missing, and of the copy of it the end".to_owned(), self.now);
        }
    }

    /// Stops every task that what was lost may have been part of.
    fn doubt(&mut self, lost: &[Lost]) -> Vec<(TaskId, String)> {
        let mut doubtful = BTreeMap::new();
        for Lost { range, bytes, told } in lost {
            let named = self.named_in(bytes);
            let is_call = |payload: &&&[u8]| kept::Subject::of(payload) == Some(kept::Subject::Call);
            let calls = Finding::payloads(bytes).iter().filter(is_call).count();
            let is_told = u64::try_from(named.len() + calls).is_ok_and(|told| told >= range.end.saturating_sub(range.start));
            let named: BTreeSet<TaskId> = named.into_values().collect();
            for (task, open) in &self.live {
                if named.contains(task) || (!is_told && open.last < range.start) {
                    doubtful.entry(*task).or_insert_with(|| told.clone());
                }
            }
        }
        doubtful.into_iter().collect()
    }

    /// Tells of the tasks of the index of which entries were lost, if there are such. Reads all of them.
    fn told_of_filed(&self, findings: &[Finding]) -> Option<String> {
        let journal = &self.reader.journal;
        let is_lost = |position: &Position| {
            let name = position.segment.file_name();
            let offset = u64::from(position.offset);
            let hits = |finding: &Finding| {
                let is_there = finding.offset <= offset && offset < finding.offset.saturating_add(finding.bytes);
                finding.file.file_name().is_some_and(|file| *file == *name) && is_there
            };
            journal.seed(position.segment).is_none() || findings.iter().filter(|finding| finding.kind != FindingKind::Header).any(hits)
        };
        // One whose value does not read is met by whoever asks for it.
        let positions =
            |(task, filed): (&TaskId, &filed::Filed)| self.reader.filed(filed.created, *task).ok().map(|(_, positions)| positions);
        let hit = self.known.tasks.iter().filter(|known| positions(*known).is_some_and(|positions| positions.iter().any(is_lost)));
        let hit: Vec<TaskId> = hit.map(|(task, _)| *task).collect();
        let told = "how they ended is known, and of their results and events only what can still be read";
        (!hit.is_empty()).then(|| format!("entries of tasks that have ended are lost: {told}: {}", named(&hit)))
    }

    /// The tasks that damaged bytes name, by where they do.
    fn named_in(&self, bytes: &[u8]) -> BTreeMap<usize, TaskId> {
        let head = self.home.as_ref().map(|(_, head)| head.as_slice()).unwrap_or_default();
        let tasks = self.live.keys().chain(self.ended.keys()).chain(self.broken.keys()).chain(self.known.tasks.keys());
        let known: BTreeSet<[u8; 16]> = tasks.map(|task| task.to_bytes()).collect();
        let begins = |place: usize| !head.is_empty() && bytes.get(..place).is_some_and(|before| before.ends_with(head));
        // Ids are drawn from so many that one that is nearly another is that other, damaged.
        let near =
            |id: &[u8; 16]| known.iter().find(|known| known.iter().zip(id).map(|(a, b)| (a ^ b).count_ones()).sum::<u32>() <= NEAR_BITS);
        let named = |(place, id): (usize, &[u8])| {
            let id = <[u8; 16]>::try_from(id).ok()?;
            let named = if known.contains(&id) { id } else { begins(place).then(|| near(&id).copied()).flatten()? };
            Some((place, TaskId::from_bytes(named)))
        };
        bytes.windows(16).enumerate().filter_map(named).collect()
    }

    /// Ends a task for good that nobody can say how far it came.
    fn end(&mut self, task: TaskId, why: &str) -> Result<(), String> {
        let (Some(open), Some((home, _))) = (self.live.get(&task), &self.home) else { return Ok(()) };
        let (mut state, mut positions) = (open.state.clone(), open.positions.clone());
        let failure = serde_json::to_vec(&failure(task, why)).unwrap_or_default();
        let failure = Some(Text::Inline(failure.into()));
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

/// What was lost, as the journal says.
fn lost(findings: &[Finding]) -> Vec<Lost> {
    let lost = |finding: &Finding| {
        let (range, bytes) = match &finding.kind {
            // What cannot be read again names nobody, and then all are in doubt.
            FindingKind::Lost { first, end } => (first.0..end.0, finding.read().unwrap_or_default()),
            FindingKind::Unreadable { first } => (first.0..u64::MAX, finding.read().unwrap_or_default()),
            FindingKind::Missing { first, end } => (first.0..end.0, Vec::new()),
            FindingKind::TornTail | FindingKind::Header => return None,
        };
        Some(Lost { range, bytes, told: finding.to_string() })
    };
    findings.iter().filter_map(lost).collect()
}

/// The names of tasks, or how many more there are.
fn named(tasks: &[TaskId]) -> String {
    let names: Vec<String> = tasks.iter().take(NAMED_MAX).map(ToString::to_string).collect();
    let more = tasks.len().saturating_sub(NAMED_MAX);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{}{more}", names.join(", "))
}

fn failure(task: TaskId, why: &str) -> Failure {
    let failure = Failure::new(ErrorCode::Internal, format!("the journal holds task {task} in part: {why}")).retryable(false);
    failure.with("suggestion", "`meshwork doctor` tells what is damaged; see what was done, and submit the rest anew")
}

/// Reads the journal. Blocks.
pub(in crate::node) fn run(reader: &Reader, mut replay: Replay, now: Timestamp) -> Result<Found, crate::store::Error> {
    let (mut known, misfit) = filed::load(reader);
    let watermark = known.watermark.unwrap_or(SegmentId(0));
    let segments = replay.len();
    replay.skip_before(watermark);
    let started = Started { segments, read: replay.len(), filed: known.tasks.len() };
    let (calls, mut dropped) = (std::mem::take(&mut known.calls), std::mem::take(&mut known.dropped));
    let nothing_aside = replay.is_whole();
    let known_calls = calls.iter().filter_map(|call| Some((call.filed_key(), call.position()?))).collect();
    let mut gathering = Gathering {
        reader,
        now,
        live: BTreeMap::new(),
        ended: BTreeMap::new(),
        broken: BTreeMap::new(),
        home: None,
        is_empty: true,
        known,
        calls,
        known_calls,
        nameless: Vec::new(),
    };
    let findings = replay.run(|entry| gathering.take(entry.index.0, entry.position, entry.payload))?;
    let lost = lost(&findings);
    let mut notes: Vec<String> = findings.iter().map(ToString::to_string).collect();
    notes.extend(misfit.clone());
    for position in &gathering.nameless {
        let file = position.segment.file_name();
        notes.push(format!("{file}: the entry at byte {} cannot be read and names no task", position.offset));
    }
    gathering.give_up_cut_copies();
    for (task, why) in gathering.doubt(&lost) {
        notes.push(format!("task {task} is stopped, because entries of it may be lost: {why}"));
        if let Err(error) = gathering.end(task, &why) {
            tracing::warn!(%task, error, "that it is stopped could not be kept");
            gathering.give_up(task, None, why, now);
        }
    }
    if !lost.is_empty() {
        notes.extend(gathering.told_of_filed(&findings));
    }
    if lost.iter().all(|lost| lost.range.end <= watermark.0) {
        gathering.broken.retain(|_, broken| !broken.is_rest);
    }
    // An index that tells of more than is there says that something is not.
    let is_whole = misfit.is_none() && lost.is_empty() && nothing_aside && gathering.nameless.is_empty() && !gathering.is_empty;
    let mut found = Found { calls: std::mem::take(&mut gathering.calls), started, is_whole, ..Found::default() };
    for (task, open) in std::mem::take(&mut gathering.live) {
        match reader.outputs(&open.state) {
            Ok(outputs) => {
                found.live.insert(task, Unfinished { state: open.state, positions: open.positions, outputs });
            }
            Err(failure) => {
                gathering.live.insert(task, open);
                gathering.give_up(task, None, failure.message, now);
            }
        }
    }
    found.ended = gathering.ended;
    found.known = gathering.known;
    for (task, Broken { why, known, positions, since, key, .. }) in gathering.broken {
        notes.push(format!("task {task} is stopped, because the journal cannot be read: {why}"));
        let row = Row::new(&unreadable::summary(task, known, since, now));
        let unreadable = Some(Arc::new(failure(task, &why)));
        let ended =
            Ended { row, outcome: Outcome::Failed, created: since, at: now, positions: positions.into(), key, callback: None, unreadable };
        found.ended.insert(task, ended);
    }
    dropped.retain(|task| !found.knows(task));
    if !dropped.is_empty() {
        notes.push(format!("the index knew tasks that the journal does not have: {}", named(&dropped)));
    }
    for note in &notes {
        tracing::warn!(note, "the journal");
    }
    found.notes = notes;
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use bytes::Bytes;
    use serde_json::json;

    use super::*;
    use crate::store::DataDir;
    use crate::store::journal::Config;
    use crate::wire::task::Submitted;

    /// Room for a few entries of [`ROW_BYTES`] each in a segment.
    const CONFIG: Config = Config { segment_bytes: 65_536, queue_entries_max: 1_024, queue_bytes_max: 1_048_576 };
    const ROW_BYTES: usize = 9_000;
    const NOW: Timestamp = Timestamp::from_ms(1_800_000_000_000);

    fn task(number: u128) -> TaskId {
        TaskId::from_random(number)
    }

    fn submitted() -> Event {
        let subtasks = json!([{ "subtask_id": "a", "agent_capability": "test.a" }]);
        let document = json!({ "name": "n", "parameters": { "text": "x".repeat(ROW_BYTES) }, "subtasks": subtasks }).to_string();
        Event::Submitted(Submitted { document: Text::Inline(document.into()), key: None, identity: [0; 32], parent: None })
    }

    fn deferred() -> Event {
        let failure = json!({ "code": "BUSY", "message": "x".repeat(ROW_BYTES), "retryable": true, "details": {} }).to_string();
        Event::Deferred { subtask: 0, span: std::time::Duration::from_secs(300), failure: Text::Inline(failure.into()) }
    }

    fn cancelled() -> Event {
        Event::Ended { outcome: Outcome::Cancelled, reason: Some(Reason::Cancelled), failure: None }
    }

    fn home() -> NodeId {
        crate::wire::NodeKey::new(libp2p_identity::Keypair::generate_ed25519()).id()
    }

    fn entry(home: NodeId, task: TaskId, number: u64, event: Event) -> Bytes {
        Entry { home, epoch: 1, task, at: NOW, number, event }.encode()
    }

    /// Keeps these entries, does something to the folder, and looks at what a start finds.
    fn found(entries: Vec<Bytes>, change: impl FnOnce(&Path)) -> Found {
        let folder = tempfile::tempdir().expect("a folder");
        let dir = DataDir::open(folder.path()).expect("a data directory");
        let (journal, replay) = dir.journal(CONFIG).expect("a journal");
        replay.run(|_| {}).expect("an empty one");
        for entry in entries {
            let ticket = journal.append(vec![entry]).expect("room");
            futures::executor::block_on(journal.wait(&ticket)).expect("kept");
        }
        journal.close();
        change(&folder.path().join("journal"));
        start(&dir)
    }

    fn start(dir: &DataDir) -> Found {
        let (journal, replay) = dir.journal(CONFIG).expect("the journal again");
        let reader = Reader::new(journal, dir.blobs(), dir.index().ok(), &crate::config::Config::default());
        let found = run(&reader, replay, NOW).expect("a journal that reads");
        reader.journal.close();
        found
    }

    fn segments(folder: &Path) -> Vec<std::path::PathBuf> {
        let files = fs::read_dir(folder).expect("a folder").map(|file| file.expect("a file").path());
        let mut segments: Vec<_> = files.filter(|path| path.extension().is_some_and(|ending| ending == "seg")).collect();
        segments.sort();
        segments
    }

    fn reason(found: &Found, task: TaskId) -> Option<Value> {
        found.ended.get(&task).map(|ended| ended.row.value()["reason"].clone())
    }

    #[test]
    fn a_task_goes_on_from_what_is_kept() {
        let home = home();
        let found = found(vec![entry(home, task(1), 0, submitted()), entry(home, task(1), 1, deferred())], |_| {});
        assert_eq!((found.live.len(), found.ended.len(), found.notes.len()), (1, 0, 0), "{:?}", found.notes);
        assert_eq!(found.live[&task(1)].positions.len(), 2);
    }

    #[test]
    fn a_task_with_an_event_missing_in_between_is_unreadable_and_no_other_is() {
        let home = home();
        let entries = [(1, 0, submitted()), (2, 0, submitted()), (1, 2, deferred()), (2, 1, deferred())];
        let found = found(entries.map(|(of, number, event)| entry(home, task(of), number, event)).to_vec(), |_| {});
        assert_eq!(reason(&found, task(1)), Some(json!("UNREADABLE")));
        assert_eq!(found.ended[&task(1)].positions.len(), 2, "its entries are kept");
        assert!(found.live.contains_key(&task(2)) && found.notes.len() == 1, "{:?}", found.notes);
    }

    /// F4: a later release has written an event that this one does not know. Its task is not gone on with; the others are.
    #[test]
    fn an_event_of_a_later_release_makes_its_task_unreadable_and_no_other() {
        const UNKNOWN: u8 = 23;
        let home = home();
        let mut later = entry(home, task(1), 1, Event::CalledBack { delivered: true }).to_vec();
        // The event is an array of its number and its fields; below 24 a number is one byte.
        let place = memchr::memmem::rfind(&later, &[0x82, 15, 0x81, 0xf5]).expect("the event");
        later[place + 1] = UNKNOWN;
        assert!(Entry::decode(&later).is_err_and(|error| error.to_string().contains(&UNKNOWN.to_string())), "{later:?}");
        let entries = vec![
            entry(home, task(1), 0, submitted()),
            entry(home, task(2), 0, submitted()),
            later.into(),
            entry(home, task(2), 1, deferred()),
            entry(home, task(3), 0, submitted()),
            entry(home, task(3), 1, cancelled()),
            entry(home, task(1), 2, deferred()),
        ];
        let found = found(entries, |_| {});
        assert_eq!(reason(&found, task(1)), Some(json!("UNREADABLE")), "{:?}", found.notes);
        assert_eq!(found.ended[&task(1)].positions.len(), 3, "its entries are kept, for the release that knows them");
        assert_eq!(found.live.keys().copied().collect::<Vec<_>>(), [task(2)]);
        assert_eq!(found.live[&task(2)].positions.len(), 2);
        assert_eq!((reason(&found, task(3)), found.notes.len()), (Some(json!("CANCELLED")), 1), "{:?}", found.notes);
    }

    /// F4: a file of the journal was deleted. Who has entries on both sides misses some, and who has none behind it may miss some.
    #[test]
    fn a_missing_segment_is_noticed_and_puts_those_in_doubt_who_have_nothing_behind_it() {
        let home = home();
        let mut entries: Vec<Bytes> = (1..=3).map(|of| entry(home, task(of), 0, submitted())).collect();
        entries.push(entry(home, task(1), 1, cancelled()));
        for number in 1..20 {
            entries.push(entry(home, task(2), number, deferred()));
        }
        entries.push(entry(home, task(4), 0, submitted()));
        let mut gone = String::new();
        let remove = |folder: &Path| {
            let segments = segments(folder);
            assert!(segments.len() > 2, "{segments:?}");
            fs::remove_file(&segments[1]).expect("it goes");
            gone = folder.display().to_string();
        };
        let found = found(entries, remove);
        assert_eq!(reason(&found, task(1)), Some(json!("CANCELLED")), "what has ended has ended");
        assert_eq!(reason(&found, task(2)), Some(json!("UNREADABLE")));
        assert_eq!(reason(&found, task(3)), Some(json!("UNREADABLE")), "its next entry may have been its end");
        assert!(found.live.contains_key(&task(4)), "it began afterwards");
        assert!(found.notes.iter().any(|note| note.contains("are gone with this file of the journal")), "{:?}", found.notes);
    }

    /// What is lost of calls with a key is no task's.
    #[test]
    fn a_damaged_entry_of_a_call_puts_no_task_in_doubt() {
        let home = home();
        let agent = crate::model::AgentId::from_public_key([3; 32]);
        let event = kept::Event::Failed;
        let call = kept::Entry { side: kept::Side::Agent, caller: home, agent, word: "k".to_owned(), at: NOW, event }.encode();
        let entries = vec![entry(home, task(1), 0, submitted()), call.clone(), entry(home, task(2), 0, submitted())];
        let flip = |folder: &Path| {
            let file = segments(folder).remove(0);
            let mut bytes = fs::read(&file).expect("the segment");
            let place = memchr::memmem::find(&bytes, &call).expect("the call");
            bytes[place + call.len() - 1] ^= 1;
            fs::write(&file, bytes).expect("the segment");
        };
        let found = found(entries, flip);
        assert_eq!((found.live.len(), found.calls.len(), found.notes.len()), (2, 0, 1), "{:?}", found.notes);
    }

    /// What is in doubt once is not taken up by a later start that sees no damage any more.
    #[test]
    fn a_task_in_doubt_is_ended_for_good() {
        let home = home();
        let folder = tempfile::tempdir().expect("a folder");
        let dir = DataDir::open(folder.path()).expect("a data directory");
        let (journal, replay) = dir.journal(CONFIG).expect("a journal");
        replay.run(|_| {}).expect("an empty one");
        for (of, number, event) in [(1, 0, submitted()), (2, 0, submitted()), (2, 1, cancelled())] {
            let ticket = journal.append(vec![entry(home, task(of), number, event)]).expect("room");
            futures::executor::block_on(journal.wait(&ticket)).expect("kept");
        }
        journal.close();
        let file = segments(&folder.path().join("journal")).remove(0);
        let mut bytes = fs::read(&file).expect("the segment");
        let places: Vec<usize> = memchr::memmem::find_iter(&bytes, &task(2).to_bytes()).collect();
        // The id itself is gone, so it may have been an entry of anybody.
        bytes[places[1]..places[1] + 16].fill(0xff);
        fs::write(&file, bytes).expect("the segment");
        for _ in 0..2 {
            let found = start(&dir);
            assert_eq!(reason(&found, task(1)), Some(json!("UNREADABLE")), "{:?}", found.notes);
            assert_eq!(reason(&found, task(2)), Some(json!("UNREADABLE")), "{:?}", found.notes);
            assert!(found.live.is_empty());
        }
    }

    /// F4: the bit that flipped is one of the task's id.
    #[test]
    fn an_entry_with_a_damaged_id_is_still_its_tasks() {
        let home = home();
        let ids = [task(0x5eed_0001 << 64), task(0xfeed_0002 << 90)];
        let entries = ids.iter().flat_map(|id| [entry(home, *id, 0, submitted()), entry(home, *id, 1, deferred())]).collect();
        let flip = |folder: &Path| {
            let file = segments(folder).remove(0);
            let mut bytes = fs::read(&file).expect("the segment");
            let place = memchr::memmem::rfind(&bytes, &ids[1].to_bytes()).expect("its last entry");
            bytes[place + 3] ^= 0x10;
            fs::write(&file, bytes).expect("the segment");
        };
        let found = found(entries, flip);
        assert_eq!(reason(&found, ids[1]), Some(json!("UNREADABLE")), "{:?}", found.notes);
        assert!(found.live.contains_key(&ids[0]), "{:?}", found.notes);
    }

    #[test]
    fn the_rest_of_a_forgotten_task_is_no_fault() {
        let home = home();
        let mut entries = vec![entry(home, task(1), 0, submitted())];
        entries.extend((1..20).map(|number| entry(home, task(1), number, deferred())));
        entries.push(entry(home, task(1), 20, cancelled()));
        let data = Home::new();
        data.append(entries.clone());
        data.forget(1);
        let found = data.started(false);
        assert_eq!((found.live.len(), found.ended.len(), found.notes.len()), (0, 0, 0), "{:?}", found.notes);
        let found = self::found(entries, |folder| fs::remove_file(&segments(folder)[0]).expect("it goes"));
        assert_eq!(reason(&found, task(1)), Some(json!("UNREADABLE")), "nobody has forgotten it: {:?}", found.notes);
        assert!(found.notes[0].contains("0000.seg: not there") && !found.is_whole, "{:?}", found.notes);
    }

    /// Its entries are still there, since an older task needs the segments, and its plan is not.
    #[test]
    fn a_forgotten_task_whose_plan_was_a_large_text_stays_forgotten() {
        let data = Home::new();
        let blobs = data.dir().blobs();
        let goal = || {
            let document = Text::Inline(json!({ "name": "n", "goal": "g" }).to_string().into());
            Event::Submitted(Submitted { document, key: None, identity: [0; 32], parent: None })
        };
        let planned = |of: u128| {
            let plan = json!([{ "subtask_id": "a", "agent_capability": "test.a" }]).to_string();
            let hash = blobs.put(&task(of).to_string(), plan.as_bytes()).expect("kept");
            let subtasks = Text::Blob { hash: *hash.as_bytes(), length_bytes: plan.len() as u64 };
            (hash, Event::Planned { subtasks, by: "agent".to_owned(), bill: None })
        };
        data.append([data.entry(1, 0, submitted())]);
        for of in 2..=5 {
            data.append([data.entry(of, 0, goal()), data.entry(of, 1, planned(of).1)]);
            let end = (of != 4).then(|| data.entry(of, 2, cancelled()));
            data.append(end);
        }
        let of = |number: u128| task(number).to_string();
        blobs.remove_all(&of(2)).expect("it is forgotten");
        fs::remove_file(data.folder.path().join("blobs").join(of(3)).join(planned(3).0.to_hex().as_str())).expect("a disk lost it");
        blobs.remove_all(&of(4)).expect("somebody removed what was still needed");
        let found = data.started(false);
        assert!(!found.knows(&task(2)), "{:?}", found.notes);
        assert_eq!([3, 4].map(|of| reason(&found, task(of))), [Some(json!("UNREADABLE")), Some(json!("UNREADABLE"))], "{:?}", found.notes);
        assert_eq!(reason(&found, task(5)), Some(json!("CANCELLED")));
        assert_eq!((found.live.len(), found.notes.len()), (1, 2), "{:?}", found.notes);
    }

    #[test]
    fn a_task_without_beginning_and_end_is_listed() {
        let home = home();
        let found = found(vec![entry(home, task(1), 3, deferred())], |_| {});
        let ended = &found.ended[&task(1)];
        assert_eq!((&ended.row.value()["reason"], &ended.row.value()["task_id"]), (&json!("UNREADABLE"), &json!(task(1))));
        assert!(ended.unreadable.is_some() && found.notes.len() == 1, "{:?}", found.notes);
    }

    /// A task that waits, of three entries; others; and its copy or a part of one.
    fn copied(data: &Home, part: std::ops::Range<u64>) {
        data.append(data.entries(1));
        data.append(data.ended(2, 9));
        data.append(part.map(|number| data.entries(1).remove(usize::try_from(number).expect("small"))));
    }

    #[test]
    fn a_task_lies_where_its_copy_does_once_that_is_whole() {
        let data = Home::new();
        copied(&data, 0..3);
        data.append([data.entry(1, 3, deferred())]);
        let found = data.started(false);
        assert_eq!((found.live.len(), found.notes.len()), (1, 0), "{:?}", found.notes);
        let positions = found.live[&task(1)].positions.clone();
        let copy = positions[0].segment;
        assert!(copy > SegmentId(0) && positions.is_sorted() && positions.len() == 4, "{positions:?}");
        // What it lay in before is forgotten; the copy alone makes the same.
        let count = data.segments().iter().position(|file| file.ends_with(copy.file_name())).expect("it is there");
        data.forget(count);
        let again = data.started(false);
        assert_eq!((again.notes.len(), &again.live[&task(1)].positions), (0, &positions), "{:?}", again.notes);
        assert_eq!(again.live[&task(1)].state.events(), 4);
        // And so it ends.
        data.append([data.entry(1, 4, cancelled())]);
        assert_eq!(data.started(false).ended[&task(1)].positions.len(), 5);
    }

    /// F1: the node died while a copy was written.
    #[test]
    fn a_part_of_a_copy_changes_nothing_and_a_whole_one_may_follow() {
        for part in [1, 2] {
            let data = Home::new();
            copied(&data, 0..part);
            let found = data.started(false);
            assert_eq!((found.live.len(), found.notes.len()), (1, 0), "{:?}", found.notes);
            assert!(found.live[&task(1)].positions.iter().all(|position| position.segment == SegmentId(0)), "{part}");
            assert_eq!(found.live[&task(1)].state.events(), 3);
            data.append(data.entries(1));
            let found = data.started(false);
            let positions = &found.live[&task(1)].positions;
            assert!(positions.len() == 3 && positions.is_sorted() && positions[0].segment > SegmentId(0), "{part}: {positions:?}");
            assert_eq!(found.live[&task(1)].state.events(), 3);
            // It goes on from there, also without the whole copy.
            data.append([data.entry(1, 3, deferred())]);
            assert_eq!(data.started(false).live[&task(1)].state.events(), 4);
        }
    }

    /// F4: two words of one event are damage.
    #[test]
    fn a_copy_that_differs_stops_its_task() {
        let data = Home::new();
        copied(&data, 0..1);
        data.append([data.entry(1, 1, cancelled())]);
        let found = data.started(false);
        assert_eq!(reason(&found, task(1)), Some(json!("UNREADABLE")));
        assert!(found.notes.iter().any(|note| note.contains("twice, and not the same")), "{:?}", found.notes);
    }

    /// The segment with its beginning was forgotten or lost, the next one was not; a copy is all of it, and a part of one is not.
    #[test]
    fn a_copy_mends_a_task_without_a_beginning_if_it_comes_as_far() {
        for (part, lose) in [(10, false), (10, true), (9, false), (4, true)] {
            let data = Home::new();
            let entries =
                || [vec![data.entry(1, 0, submitted())], (1..10).map(|number| data.entry(1, number, deferred())).collect()].concat();
            data.append(entries());
            data.append(entries().into_iter().take(part));
            if lose {
                fs::remove_file(data.segments().remove(0)).expect("it goes");
            } else {
                data.forget(1);
            }
            let found = data.started(false);
            if part == 10 {
                assert!(found.live[&task(1)].state.events() == 10 && found.live[&task(1)].positions.is_sorted(), "{:?}", found.notes);
                assert_eq!(found.notes.len(), usize::from(lose), "{:?}", found.notes);
            } else {
                assert_eq!(reason(&found, task(1)), Some(json!("UNREADABLE")), "{part}: {:?}", found.notes);
                let positions = &found.ended[&task(1)].positions;
                assert!(positions.is_sorted() && positions.len() > part, "what is left of it stays: {positions:?}");
            }
        }
    }

    /// The data directory of a node that is started again and again.
    struct Home {
        folder: tempfile::TempDir,
        home: NodeId,
    }

    impl Home {
        fn new() -> Self {
            Self { folder: tempfile::tempdir().expect("a folder"), home: home() }
        }

        fn dir(&self) -> DataDir {
            DataDir::open(self.folder.path()).expect("a data directory")
        }

        fn segments(&self) -> Vec<std::path::PathBuf> {
            segments(&self.folder.path().join("journal"))
        }

        /// Keeps these entries behind those that are there.
        fn append(&self, entries: impl IntoIterator<Item = Bytes>) {
            let (journal, replay) = self.dir().journal(CONFIG).expect("a journal");
            replay.run(|_| {}).expect("it reads");
            for entry in entries {
                let ticket = journal.append(vec![entry]).expect("room");
                futures::executor::block_on(journal.wait(&ticket)).expect("kept");
            }
            journal.close();
        }

        /// Forgets so many segments.
        fn forget(&self, count: usize) {
            let (journal, replay) = self.dir().journal(CONFIG).expect("a journal");
            replay.run(|_| {}).expect("it reads");
            let name = self.segments()[count].file_stem().expect("a name").to_string_lossy().into_owned();
            let wanted = SegmentId(u64::from_str_radix(&name, 16).expect("an index"));
            assert_eq!(journal.forget_before(wanted).expect("they go"), count);
            journal.close();
        }

        /// What the index has of a task: its row's outcome, and what comes of reading its entries.
        fn kept(&self, of: u128, found: &Found) -> (Value, Result<(), Failure>) {
            let dir = self.dir();
            let (journal, _) = dir.journal(CONFIG).expect("the journal again");
            let reader = Reader::new(journal, dir.blobs(), Some(dir.index().expect("an index")), &crate::config::Config::default());
            let (row, positions) = reader.filed(found.known.tasks[&task(of)].created, task(of)).expect("it reads");
            let read = reader.state(&positions).map(|_| ());
            reader.journal.close();
            (row.value()["outcome"].clone(), read)
        }

        fn entry(&self, of: u128, number: u64, event: Event) -> Bytes {
            entry(self.home, task(of), number, event)
        }

        /// All entries of a task that waits.
        fn entries(&self, of: u128) -> Vec<Bytes> {
            vec![self.entry(of, 0, submitted()), self.entry(of, 1, deferred()), self.entry(of, 2, deferred())]
        }

        /// A task of so many entries that has ended.
        fn ended(&self, of: u128, entries: u64) -> Vec<Bytes> {
            let begin = [self.entry(of, 0, submitted())];
            let rest = (1..entries - 1).map(|number| self.entry(of, number, deferred()));
            begin.into_iter().chain(rest).chain([self.entry(of, entries - 1, cancelled())]).collect()
        }

        /// Starts, makes a checkpoint of what was found, with this watermark at most, and looks at what was found.
        fn started(&self, file: bool) -> Found {
            let dir = self.dir();
            let (journal, replay) = dir.journal(CONFIG).expect("the journal again");
            let reader = Reader::new(journal, dir.blobs(), Some(dir.index().expect("an index")), &crate::config::Config::default());
            let mut found = run(&reader, replay, NOW).expect("a journal that reads");
            if file {
                let (_, last) = reader.journal.segments().expect("segments");
                let live = found.live.values().filter_map(|live| live.positions.first()).map(|position| position.segment);
                let watermark = live.chain([last]).min().expect("one");
                let archive = super::super::archive::Archive::restore(
                    found.ended.clone(),
                    BTreeMap::new(),
                    BTreeMap::new(),
                    found.known.unwanted.clone(),
                );
                let words = tokio::sync::mpsc::channel(64).0;
                let index = reader.index.as_ref().expect("an index");
                let mut state = super::super::filing::State::new(&mut found.known);
                state.file(&reader.journal, index, archive.take(), watermark, |_| {}, &words).expect("filed");
            }
            reader.journal.close();
            found
        }
    }

    /// What the index knows is not read again, so damage to it is not met; what lives goes on.
    #[test]
    fn a_start_reads_from_the_first_segment_that_something_needs() {
        let home = Home::new();
        home.append((1..=4).flat_map(|of| home.ended(of, 4)));
        home.append([home.entry(5, 0, submitted()), home.entry(5, 1, deferred())]);
        let before = home.started(true);
        assert_eq!((before.ended.len(), before.live.len(), before.started.filed), (4, 1, 0));
        let mut bytes = fs::read(&home.segments()[0]).expect("the segment");
        bytes[5_000..9_000].fill(0xff);
        fs::write(&home.segments()[0], bytes).expect("the segment");
        let after = home.started(false);
        let Started { segments, read, filed } = after.started;
        assert!(read < segments && filed == 4, "{}", after.started);
        assert_eq!((after.known.tasks.len(), after.ended.len(), after.live.len(), after.notes.len()), (4, 0, 1, 0), "{:?}", after.notes);
        assert_eq!(after.live[&task(5)].positions, before.live[&task(5)].positions);
        let dir = home.dir();
        let (journal, _) = dir.journal(CONFIG).expect("the journal again");
        let reader = Reader::new(journal, dir.blobs(), Some(dir.index().expect("an index")), &crate::config::Config::default());
        for (id, ended) in &before.ended {
            let filed = &after.known.tasks[id];
            let (row, positions) = reader.filed(filed.created, *id).expect("it reads");
            assert_eq!((row.value(), &*positions), (ended.row.value(), &*ended.positions));
            assert_eq!((filed.at, filed.outcome, filed.events), (ended.at, ended.outcome, 4));
        }
        let damaged = reader.state(&before.ended[&task(1)].positions).expect_err("its entries are damaged");
        assert!(damaged.message.contains(".seg") && damaged.message.contains("no sound entry at byte"), "{damaged:?}");
        reader.journal.close();
    }

    #[test]
    fn a_task_that_lives_holds_the_watermark_and_those_that_ended_behind_it_are_passed_over() {
        let home = Home::new();
        home.append(home.ended(1, 9));
        home.append([home.entry(2, 0, submitted())]);
        home.append((3..=5).flat_map(|of| home.ended(of, 5)));
        home.started(true);
        home.append([home.entry(2, 1, deferred()), home.entry(6, 0, submitted())]);
        let found = home.started(true);
        assert!(found.started.read < found.started.segments && found.started.read > 2, "{}", found.started);
        assert_eq!((found.known.tasks.len(), found.ended.len(), found.notes.len()), (4, 0, 0), "{:?}", found.notes);
        assert_eq!((found.live[&task(2)].positions.len(), found.live[&task(6)].positions.len()), (2, 1));
        // It ends, and the next start knows of that without reading it twice.
        home.append([home.entry(2, 2, cancelled())]);
        assert_eq!(home.started(true).ended.keys().copied().collect::<Vec<_>>(), [task(2)]);
        let found = home.started(false);
        assert_eq!((found.known.tasks.len(), found.ended.len(), found.live.len()), (5, 0, 1));
    }

    #[test]
    fn a_callback_that_came_to_its_end_behind_the_watermark_is_not_made_again() {
        let home = Home::new();
        let with_callback = |of| {
            let document = json!({
                "name": "n", "completion_callback": "http://192.0.2.1/done", "subtasks": [{ "subtask_id": "a", "agent_capability": "test.a" }],
            });
            let document = Text::Inline(document.to_string().into());
            let submitted = Event::Submitted(Submitted { document, key: None, identity: [0; 32], parent: None });
            [home.entry(of, 0, submitted), home.entry(of, 1, cancelled())]
        };
        home.append([1, 2].into_iter().flat_map(with_callback));
        home.started(true);
        home.append([home.entry(2, 2, Event::CalledBack { delivered: true })]);
        for file in [true, false] {
            let found = home.started(file);
            assert_eq!(found.known.callbacks.keys().copied().collect::<Vec<_>>(), [task(1)], "whether or not it was filed since");
            assert_eq!(found.known.tasks.len(), 2);
        }
    }

    #[test]
    fn an_index_that_is_ahead_of_the_journal_is_made_anew() {
        let home = Home::new();
        home.append(home.ended(1, 4));
        home.append([home.entry(2, 0, submitted())]);
        let older: Vec<_> = home.segments().into_iter().map(|file| (fs::read(&file).expect("a segment"), file)).collect();
        home.append([home.entry(2, 1, cancelled())]);
        home.started(true);
        older.into_iter().for_each(|(bytes, file)| fs::write(file, bytes).expect("a segment"));
        let found = home.started(true);
        assert!(found.notes.len() == 1 && found.notes[0].contains("does not fit the journal"), "{:?}", found.notes);
        assert_eq!((found.live.len(), found.ended.len(), found.known.tasks.len()), (1, 1, 0), "what the journal says holds");
        let found = home.started(false);
        assert_eq!((found.known.tasks.len(), found.notes.len()), (1, 0), "{:?}", found.notes);
    }

    /// Between the checkpoint and the start the oldest segments were forgotten, and with them the tasks that began there.
    #[test]
    fn what_the_index_knows_of_segments_that_are_forgotten_is_dropped() {
        let home = Home::new();
        home.append(home.ended(1, 9));
        home.append(home.ended(2, 9));
        home.append([home.entry(3, 0, submitted())]);
        home.started(true);
        home.forget(1);
        let found = home.started(true);
        assert_eq!((found.known.forgotten.as_slice(), found.known.tasks.len(), found.live.len()), (&[task(1)][..], 1, 1));
        assert!(found.is_whole && found.notes.is_empty(), "{:?}", found.notes);
        assert_eq!(home.started(false).known.forgotten, [], "and is not met again");
    }

    /// F4: a segment that was not forgotten is gone, or its head does not read. Whatever was in it, the rows of the index stand, nobody is taken as
    /// forgotten, and what lies elsewhere reads as before.
    #[test]
    fn what_the_index_knows_of_segments_that_are_lost_stands() {
        let behead = |file: &Path| {
            let mut bytes = fs::read(file).expect("the segment");
            bytes[..1_024].fill(0);
            fs::write(file, bytes).expect("the segment");
        };
        let remove = |file: &Path| fs::remove_file(file).expect("it goes");
        type Way<'a> = (&'a str, &'a dyn Fn(&Path));
        let ways: [Way<'_>; 2] = [("removed", &remove), ("beheaded", &behead)];
        for (what, lose) in ways {
            for lost in 0..3 {
                let home = Home::new();
                (1..=4).for_each(|of| home.append(home.ended(of, 7)));
                home.append([home.entry(5, 0, submitted())]);
                home.started(true);
                let segments = home.segments();
                assert!(segments.len() > 4, "{segments:?}");
                lose(&segments[lost]);
                for _ in 0..2 {
                    let found = home.started(true);
                    let context = format!("{what}, {lost}: {:?}", found.notes);
                    assert!(!found.is_whole && found.known.forgotten.is_empty(), "{context}");
                    assert_eq!((found.known.tasks.len(), found.live.len(), found.ended.len()), (4, 1, 0), "{context}");
                    let name = segments[lost].file_name().expect("a name").to_string_lossy();
                    assert!(found.notes[0].contains(&*name) && found.notes.len() == 2, "{context}");
                    let mut unread = 0;
                    for of in 1..=4 {
                        let (outcome, read) = home.kept(of, &found);
                        assert_eq!(outcome, "cancelled", "{context}");
                        assert_eq!(read.is_err(), found.notes[1].contains(&task(of).to_string()), "{of}, {context}");
                        unread += usize::from(read.is_err_and(|failure| failure.message.contains(&*name)));
                    }
                    assert!((1..=2).contains(&unread), "{unread}, {context}");
                }
            }
        }
    }

    /// F4: the last segment is gone, and with it the proof that the index is this journal's.
    #[test]
    fn tasks_of_an_index_that_the_journal_does_not_have_are_named() {
        let home = Home::new();
        home.append(home.ended(1, 4));
        home.append(home.ended(2, 9));
        home.started(true);
        fs::remove_file(home.segments().last().expect("a segment")).expect("it goes");
        let found = home.started(false);
        assert!(found.notes[0].contains("does not fit the journal") && !found.is_whole, "{:?}", found.notes);
        assert!(found.ended.contains_key(&task(1)) && found.known.tasks.is_empty());
        for file in home.segments() {
            fs::remove_file(file).expect("it goes");
        }
        home.append([home.entry(4, 0, submitted())]);
        home.started(true);
        fs::remove_file(home.segments().last().expect("a segment")).expect("it goes");
        home.append([home.entry(5, 0, submitted())]);
        let found = home.started(false);
        assert_eq!((found.known.tasks.len(), found.live.len()), (0, 1), "{:?}", found.notes);
    }

    /// F4: damage to what a start reads is told at once also where it hits a task that the index knows, and stops no other.
    #[test]
    fn a_task_of_the_index_with_a_damaged_entry_behind_the_watermark_is_named() {
        let home = Home::new();
        home.append([home.entry(1, 0, submitted())]);
        home.append([home.ended(2, 4), home.ended(3, 4)].concat());
        home.append([home.entry(1, 1, deferred())]);
        home.started(true);
        let file = home.segments().remove(0);
        let mut bytes = fs::read(&file).expect("the segment");
        let place = memchr::memmem::find_iter(&bytes, &task(2).to_bytes()).nth(1).expect("its second entry");
        bytes[place + 40] ^= 1;
        fs::write(&file, bytes).expect("the segment");
        for file in [true, false] {
            let found = home.started(file);
            assert!(found.notes.len() == 2 && found.notes[1].contains(&task(2).to_string()), "{:?}", found.notes);
            assert!(!found.notes[1].contains(&task(3).to_string()), "{:?}", found.notes);
            assert_eq!((found.known.tasks.len(), found.live.len(), found.is_whole), (2, 1, false));
            let (outcome, read) = home.kept(2, &found);
            assert!(outcome == "cancelled" && read.is_err_and(|failure| failure.message.contains(".seg")));
            assert_eq!(home.kept(3, &found).1, Ok(()));
        }
    }

    /// The result of a call that the index knows stands, whatever of what led to it is read again.
    #[test]
    fn what_led_to_a_result_that_the_index_knows_does_not_undo_it() {
        let home = Home::new();
        let agent = crate::model::AgentId::from_public_key([3; 32]);
        let call = |word: &str, event| {
            kept::Entry { side: kept::Side::Agent, caller: home.home, agent, word: word.to_owned(), at: NOW, event }.encode()
        };
        let begun = || kept::Event::Begun(kept::Begun { input: [1; 32], fence: None, keep_ms: None });
        let done = || {
            let output = Text::Inline(Bytes::from_static(b"1"));
            kept::Event::Done(kept::Done { output, units: None, took_us: 1, by: None, begun: None })
        };
        home.append([call("k", begun()), call("k", kept::Event::Failed), call("k", begun()), call("k", done()), call("other", begun())]);
        let dir = home.dir();
        let (journal, replay) = dir.journal(CONFIG).expect("the journal again");
        let reader = Reader::new(journal, dir.blobs(), Some(dir.index().expect("an index")), &crate::config::Config::default());
        let mut found = run(&reader, replay, NOW).expect("a journal that reads");
        assert_eq!(found.calls.len(), 5);
        let clock = crate::node::clock::Clock::start();
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let _entered = runtime.enter();
        let commits = crate::node::invocation::kept::Commits::new(reader.journal.clone());
        let results = crate::node::invocation::kept::Results {
            side: kept::Side::Agent,
            commits,
            blobs: dir.blobs(),
            clock: super::super::TaskClock::new(clock),
        };
        let config =
            crate::proto::invocation::dedup::Config { results_max: 8, bytes_max: 1_024, keep: std::time::Duration::from_secs(1 << 40) };
        let calls = crate::node::invocation::keyed::Calls::<crate::wire::invocation::Success>::new(config, results, clock);
        found.calls.iter().for_each(|call| calls.restore(call));
        let (words, taken) = (tokio::sync::mpsc::channel(64).0, super::super::archive::Archive::default().take());
        let index = reader.index.as_ref().expect("an index");
        let mut state = super::super::filing::State::new(&mut found.known);
        let watermark = reader.journal.segments().expect("segments").1;
        state.file(&reader.journal, index, taken, watermark, |see| calls.visit_filed(see), &words).expect("filed");
        reader.journal.close();
        drop((reader, calls, found, dir));
        home.append([call("k", kept::Event::Failed)]);
        let found = home.started(false);
        let shape: Vec<_> = found.calls.iter().map(|call| call.position().is_some()).collect();
        // From the index: a beginning and a result, and a beginning; from the journal: that beginning again, and what came later.
        assert_eq!(shape.len(), 5, "{:?}", found.calls);
        assert_eq!(shape.iter().filter(|has_result| **has_result).count(), 1, "{:?}", found.calls);
    }
}
