//! Texts and tasks on the disk: keeping what is too large for the journal, reading back what ended.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde_json::Value;

use super::archive::Place;
use super::filed;
use super::row::Row;
use crate::agents::definition::schema_hash;
use crate::agents::{off_workers, schema_failure};
use crate::model::{ErrorCode, Failure, NodeId, TaskId, Timestamp};
use crate::node::handle::disk_failure;
use crate::node::shared::Shared;
use crate::proto::task::definition::{Defaults, Definition};
use crate::proto::task::state::{Config, State};
use crate::proto::task::{fault, unreadable, view};
use crate::store::journal::{Journal, Position};
use crate::store::{Blobs, Index};
use crate::wire::task::{Entry, Event, Submitted, TEXT_BYTES_MAX, Text};

fn broke_off<E>(_: E) -> Failure {
    Failure::new(ErrorCode::Unavailable, "this node is stopping")
}

/// Keeps a text: in the entry that it is meant for, or beside the journal, durably, if it is too large for that.
pub(super) async fn keep(blobs: &Blobs, task: TaskId, text: Bytes) -> Result<Text, Failure> {
    if text.len() <= TEXT_BYTES_MAX {
        return Ok(Text::Inline(text));
    }
    let blobs = blobs.clone();
    let length_bytes = u64::try_from(text.len()).unwrap_or(u64::MAX);
    let kept = tokio::task::spawn_blocking(move || blobs.put(&task.to_string(), &text)).await.map_err(broke_off)?;
    let hash = kept.map_err(disk_failure)?;
    Ok(Text::Blob { hash: *hash.as_bytes(), length_bytes })
}

/// A text as it was kept. Blocks.
pub(super) fn text_of(blobs: &Blobs, task: TaskId, text: &Text) -> Result<Bytes, Failure> {
    match text {
        Text::Inline(bytes) => Ok(bytes.clone()),
        Text::Blob { hash, .. } => {
            let found = blobs.get(&task.to_string(), &blake3::Hash::from_bytes(*hash)).map_err(disk_failure)?;
            let lost = || Failure::new(ErrorCode::Internal, format!("a large text of task {task} is gone from the disk"));
            found.map(Bytes::from).ok_or_else(lost)
        }
    }
}

/// A value as it was kept. Blocks.
pub(super) fn value_of(blobs: &Blobs, task: TaskId, text: &Text) -> Result<Value, Failure> {
    let text = text_of(blobs, task, text)?;
    let broken = |error| Failure::new(ErrorCode::Internal, format!("a text of task {task} is no JSON any more: {error}"));
    off_workers(text.len(), || serde_json::from_slice(&text).map_err(broken))
}

/// Checks a value against a schema that an author gave. Schemas are compiled once.
pub(super) fn check(shared: &Shared, schema: &Value, value: &Value, what: &str) -> Result<(), Failure> {
    if *schema == Value::Bool(true) {
        return Ok(());
    }
    let hash = schema_hash(schema);
    let known = shared.schemas.get(hash).or_else(|| shared.schemas.get(shared.schemas.insert(schema.clone())));
    match known.and_then(|known| known.schema) {
        Some(schema) => off_workers(schema.cost(0), || schema.check(value)).map_err(|faults| schema_failure(what, &faults)),
        // Looked at when the task was submitted.
        None => Ok(()),
    }
}

/// A task as its submission began it. Blocks if its definition is large.
pub(super) fn begin(
    blobs: &Blobs,
    task: TaskId,
    config: &Arc<Config>,
    defaults: &Defaults,
    submitted: &Submitted,
    at: Timestamp,
) -> Result<State, Failure> {
    let document = value_of(blobs, task, &submitted.document)?;
    let definition = Definition::read(&document, defaults, at).map_err(|faults| fault::failure(&faults))?;
    let definition = match &submitted.parent {
        Some(parent) => definition.within(parent.as_ref().clone()).map_err(|fault| fault::failure(&[fault]))?,
        None => definition,
    };
    Ok(State::submitted(task, Arc::clone(config), definition, submitted, at))
}

/// Applies one entry to a task that it is not the first of, unless one is missing before it. Blocks if what it names is large.
pub(super) fn apply(blobs: &Blobs, state: &mut State, entry: &Entry) -> Result<(), Failure> {
    if entry.number != state.events() {
        let message =
            format!("event {} of it follows on event {}: what came between is lost", entry.number, state.events().saturating_sub(1));
        return Err(Failure::new(ErrorCode::Internal, message));
    }
    if let Event::Planned { subtasks, .. } = &entry.event {
        let subtasks = value_of(blobs, entry.task, subtasks)?;
        let planned = state.definition().with_subtasks(&subtasks).map_err(|faults| fault::failure(&faults))?;
        state.apply(&entry.event, entry.at);
        state.planned(planned);
    } else {
        state.apply(&entry.event, entry.at);
    }
    Ok(())
}

pub(super) fn unknown(task: TaskId) -> Failure {
    let failure = Failure::new(ErrorCode::TaskNotFound, format!("this node knows no task {task}"));
    failure.with("suggestion", "`meshwork task list` lists those that it knows")
}

/// What reading needs.
#[derive(Debug, Clone)]
pub(in crate::node) struct Reader {
    pub(super) journal: Journal,
    pub(super) blobs: Blobs,
    /// `None` if the disk has no room for one.
    pub(super) index: Option<Index>,
    pub(super) config: Arc<Config>,
    pub(super) defaults: Defaults,
}

impl Reader {
    pub(in crate::node) fn journal(&self) -> &Journal {
        &self.journal
    }

    pub(in crate::node) fn blobs(&self) -> &Blobs {
        &self.blobs
    }

    pub(in crate::node) fn new(journal: Journal, blobs: Blobs, index: Option<Index>, config: &crate::config::Config) -> Self {
        let ms = Duration::from_millis;
        let rules = Config {
            start_within: ms(config.task.start_within_ms),
            attempt_timeout_max: ms(config.limits.step_timeout_ms_max),
            parallel_max: usize::try_from(config.task.parallel_max).unwrap_or(usize::MAX),
            ..Config::default()
        };
        let attempt_timeout = ms(config.task.attempt_timeout_ms_default.min(config.limits.step_timeout_ms_max));
        let defaults = Defaults { attempt_timeout, defer: ms(config.task.defer_ms), ..Defaults::default() };
        Self { journal, blobs, index, config: Arc::new(rules), defaults }
    }

    /// A task that the index has: its row, and where its entries are. Blocks.
    pub(super) fn filed(&self, created: Timestamp, task: TaskId) -> Result<(Row, Arc<[Position]>), Failure> {
        let index = self.index.as_ref().ok_or_else(|| unknown(task))?;
        let body = index.filed(&filed::task_key(created, task)).map_err(disk_failure)?.ok_or_else(|| unknown(task))?;
        let broken = || Failure::new(ErrorCode::Internal, format!("the index cannot tell of task {task}"));
        filed::read(&body).ok_or_else(|| broken().with("suggestion", "restart the node: it reads the journal and makes the index anew"))
    }

    /// Where the entries of a task are that has ended. Blocks.
    pub(super) fn positions(&self, place: &Place) -> Result<Arc<[Position]>, Failure> {
        match place {
            Place::Journal(positions) => Ok(Arc::clone(positions)),
            Place::Index(created, task) => self.filed(*created, *task).map(|(_, positions)| positions),
        }
    }

    /// The entries at these positions, which are committed. Blocks.
    pub(super) fn entries(&self, positions: &[Position]) -> Result<Vec<Entry>, Failure> {
        let lost =
            |error| disk_failure(error).retryable(false).with("suggestion", "`meshwork doctor` tells what of the journal is damaged");
        let read = self.journal.read_many(positions).map_err(lost)?;
        let unreadable = |error: crate::wire::Error| Failure::new(ErrorCode::Internal, format!("the journal cannot be read: {error}"));
        read.iter().map(|bytes| Entry::decode(bytes).map_err(unreadable)).collect()
    }

    /// The task that these entries made. Blocks.
    pub(super) fn state(&self, positions: &[Position]) -> Result<State, Failure> {
        let mut entries = self.entries(positions)?.into_iter();
        let none = || Failure::new(ErrorCode::Internal, "the journal holds no beginning of this task");
        let first = entries.next().ok_or_else(none)?;
        let Event::Submitted(submitted) = &first.event else { return Err(none()) };
        let mut state = begin(&self.blobs, first.task, &self.config, &self.defaults, submitted, first.at)?;
        for entry in entries {
            apply(&self.blobs, &mut state, &entry)?;
        }
        Ok(state)
    }

    /// How a task stands that has ended: what its entries tell, or, where the index has its row and they cannot be read, that and what is wrong. Blocks.
    pub(super) fn status(&self, place: &Place, home: NodeId, explain: bool, now: Timestamp) -> Result<Value, Failure> {
        let told = |state: &State| view::status(state, home, explain, now);
        match place {
            Place::Journal(positions) => self.state(positions).as_ref().map(told).map_err(Failure::clone),
            Place::Index(created, task) => {
                let (row, positions) = self.filed(*created, *task)?;
                Ok(self.state(&positions).as_ref().map_or_else(|failure| unreadable::status(&row.value(), failure, home), told))
            }
        }
    }

    /// The value of each output that a task has. Blocks.
    pub(super) fn outputs(&self, state: &State) -> Result<Vec<Option<Arc<Value>>>, Failure> {
        let read = |part: &crate::proto::task::state::Part| {
            part.output.as_ref().map(|output| value_of(&self.blobs, state.id(), output).map(Arc::new)).transpose()
        };
        state.parts().iter().map(read).collect()
    }
}
