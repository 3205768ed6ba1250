//! What a start finds in the journal: tasks to go on with, and tasks that have ended.
//!
//! A task whose entries cannot be read, because a disk changed them or a later release wrote them, is not guessed at: it is reported, listed
//! as failed with the reason UNREADABLE by the node's doctor, and left as it is in the journal.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;

use super::book::{Ended, ended};
use super::read::{self, Reader};
use crate::model::{Failure, TaskId};
use crate::node::invocation::kept::Found as FoundCall;
use crate::proto::task::state::State;
use crate::store::journal::{Position, Replay};
use crate::wire::kept;
use crate::wire::task::{Entry, Event};

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

/// Tasks as they are put together.
#[derive(Default)]
struct Gathering {
    live: BTreeMap<TaskId, (State, Vec<Position>)>,
    ended: BTreeMap<TaskId, Ended>,
    broken: BTreeMap<TaskId, String>,
    calls: Vec<FoundCall>,
}

impl Gathering {
    fn take(&mut self, reader: &Reader, position: Position, bytes: &[u8]) {
        if kept::Subject::of(bytes) == Some(kept::Subject::Call) {
            // One that cannot be read is a result that nobody finds: its key is free.
            self.calls.extend(kept::Entry::decode(bytes).map(|entry| FoundCall::new(entry, position)));
            return;
        }
        let entry = match Entry::decode(bytes) {
            Ok(entry) => entry,
            Err(error) => {
                if let Some(task) = Entry::task_of(bytes) {
                    self.give_up(task, error.to_string());
                }
                return;
            }
        };
        if self.broken.contains_key(&entry.task) {
            return;
        }
        if let Err(failure) = self.apply(reader, position, &entry) {
            self.give_up(entry.task, failure.message);
        }
    }

    fn apply(&mut self, reader: &Reader, position: Position, entry: &Entry) -> Result<(), Failure> {
        if let Event::Submitted(submitted) = &entry.event {
            let state = read::begin(&reader.blobs, entry.task, &reader.config, &reader.defaults, submitted, entry.at)?;
            self.live.insert(entry.task, (state, vec![position]));
            return Ok(());
        }
        let Some((state, positions)) = self.live.get_mut(&entry.task) else {
            if self.ended.contains_key(&entry.task) {
                return Ok(());
            }
            return Err(Failure::new(crate::model::ErrorCode::Internal, "its beginning is missing"));
        };
        read::apply(&reader.blobs, state, entry)?;
        positions.push(position);
        if let Some(ended) = ended(state, positions) {
            self.live.remove(&entry.task);
            self.ended.insert(entry.task, ended);
        }
        Ok(())
    }

    fn give_up(&mut self, task: TaskId, why: String) {
        self.live.remove(&task);
        self.ended.remove(&task);
        self.broken.entry(task).or_insert(why);
    }
}

/// Reads the journal. Blocks.
pub(in crate::node) fn run(reader: &Reader, replay: Replay) -> Result<Found, crate::store::Error> {
    let mut gathering = Gathering::default();
    let findings = replay.run(|entry| gathering.take(reader, entry.position, entry.payload))?;
    let mut notes: Vec<String> = findings.iter().map(ToString::to_string).collect();
    let mut found = Found { ended: gathering.ended, calls: gathering.calls, ..Found::default() };
    for (task, (state, positions)) in gathering.live {
        match reader.outputs(&state) {
            Ok(outputs) => {
                found.live.insert(task, Unfinished { state, positions, outputs });
            }
            Err(failure) => {
                gathering.broken.insert(task, failure.message);
            }
        }
    }
    notes.extend(gathering.broken.iter().map(|(task, why)| format!("task {task} is stopped, because the journal cannot be read: {why}")));
    for note in &notes {
        tracing::warn!(note, "the journal");
    }
    found.notes = notes;
    Ok(found)
}
