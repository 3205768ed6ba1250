//! What clients ask about tasks, and how it reaches the loop that owns them.

use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use serde_json::Value;
use serde_json::value::RawValue;
use tokio::sync::{oneshot, watch};

use super::archive::Place;
use super::book::Book;
use super::clock::TaskClock;
use super::live::Durable;
use super::read::{self, Reader, unknown};
use super::recent::Whole;
use super::replay::Started;
use super::row::Row;
use super::{callback, context, plan, types};
use crate::agents::off_workers;
use crate::model::{ErrorCode, Failure, NodeId, TaskId, Timestamp, printable};
use crate::node::handle::{Handle, stopping};
use crate::node::view::{EventStream, NumberedEvent};
use crate::proto::task::definition::Definition;
use crate::proto::task::state::State;
use crate::proto::task::{fault, result, view};
use crate::store::journal::Position;
use crate::wire::invocation::KEY_BYTES_MAX;
use crate::wire::outbox::{KeptResult, Word};
use crate::wire::task::{Event, Outcome, Parent, Submitted};

/// The largest document of a task, in bytes: as large as bodies are unless configured otherwise, so that a task can be given what a call can.
const DOCUMENT_BYTES_MAX: usize = 6 * 1024 * 1024;
/// Rows that one list holds at most: some hundred kilobytes, which are read in a moment.
pub const LIST_MAX: usize = 500;
/// Tasks that the loop is asked for at once where only some of them fit a list.
const LOOKED_AT: usize = 256;
/// Entries that are read from the journal at once for a stream of events.
const EVENTS_PER_READ: usize = 256;

type Reply<T> = oneshot::Sender<Result<T, Failure>>;

/// What the handle needs of tasks beside the loop that owns them.
#[derive(Debug)]
pub(in crate::node) struct Access {
    pub(in crate::node) reader: Reader,
    pub(in crate::node) clock: TaskClock,
    /// What the start read.
    pub(in crate::node) started: Started,
}

/// A question or order to the loop.
pub(in crate::node) enum Command {
    /// Take a task in; one that was taken in before is still that one. The answer is its receipt, and whether it is new.
    Submit { task: TaskId, definition: Box<Definition>, event: Box<Event>, at: Timestamp, reply: Reply<(Receipt, bool)> },
    /// The receipt of the task that was taken in under this key, if there is one.
    Known { key: String, identity: [u8; 32], reply: Reply<Option<Receipt>> },
    /// How a task stands: the document, or where to read it if it has ended.
    Status { task: TaskId, explain: bool, reply: Reply<Standing> },
    /// How far a task is, in percent; `None` if it has ended, or just goes on.
    Percent { task: TaskId, reply: oneshot::Sender<Option<usize>> },
    /// Where a task lies that has ended, or, if it cannot be read, the document that tells its result.
    Ended { task: TaskId, reply: Reply<Standing> },
    /// Cancel it.
    Cancel { task: TaskId, reply: Reply<Value> },
    /// So many tasks, the latest first, from those on that were submitted before `after`.
    List { after: Option<(Timestamp, TaskId)>, count: usize, reply: oneshot::Sender<Vec<Listed>> },
    /// Where its events are, and how to hear of more.
    Follow { task: TaskId, reply: Reply<Cursor> },
    /// A callback has come to its end.
    CalledBack { task: TaskId, delivered: bool },
    /// A node has these results of tasks of this one, and does not know whether they were heard of: a word on each.
    Results { node: NodeId, results: Vec<KeptResult>, reply: oneshot::Sender<Vec<Word>> },
    /// Which tasks this may be the beginning of.
    Resolve { prefix: String, reply: oneshot::Sender<Vec<TaskId>> },
}

/// What a submission is answered with.
pub(in crate::node) enum Receipt {
    /// This.
    Told(Value),
    /// What is to be read in the index of a task that has ended.
    Index(Timestamp, TaskId),
}

/// A task in a list: when it was submitted, which it is, and its row.
pub(in crate::node) struct Listed {
    pub(super) place: (Timestamp, TaskId),
    pub(super) row: Listing,
}

/// A task's row, or where it is.
#[derive(Debug)]
pub(super) enum Listing {
    /// This.
    Told(Value),
    /// The same, written down.
    Kept(Row),
    /// In the index.
    Index,
}

impl Listed {
    /// The row; `None` if it was forgotten meanwhile. Blocks.
    fn value(&self, reader: &Reader) -> Result<Option<Value>, Failure> {
        let (created, task) = self.place;
        match &self.row {
            Listing::Told(row) => Ok(Some(row.clone())),
            Listing::Kept(row) => Ok(Some(row.value())),
            Listing::Index => match reader.filed(created, task) {
                Ok((row, _)) => Ok(Some(row.value())),
                Err(failure) if failure.code == ErrorCode::TaskNotFound => Ok(None),
                Err(failure) => Err(failure),
            },
        }
    }
}

/// How a task stands.
pub(in crate::node) enum Standing {
    /// The document that tells it.
    Told(Value),
    /// It has just ended, and this is all of it.
    Recent(Arc<Whole>),
    /// It has ended, and this is where to read it.
    Ended(Place),
}

impl Book {
    /// Where the events of a task are, and how to hear of more.
    pub(super) fn follow(&self, task: TaskId) -> Result<Cursor, Failure> {
        if let Some(live) = self.live.get(&task) {
            let committed = usize::try_from(live.machine.committed_events()).unwrap_or(usize::MAX);
            let positions = live.positions.get(..committed.min(live.positions.len())).unwrap_or_default().into();
            let definition = Some(Arc::clone(live.machine.state().definition()));
            return Ok(Cursor { place: Place::Journal(positions), durable: Some(live.durable.subscribe()), definition });
        }
        let place = self.ended.place(&task).ok_or_else(|| unknown(task))??;
        let definition = self.recent.get(&task).map(|recent| Arc::clone(recent.state().definition()));
        Ok(Cursor { place, durable: None, definition })
    }

    /// So many of the tasks that were submitted before `after`, the latest first.
    pub(super) fn list(&self, after: Option<(Timestamp, TaskId)>, count: usize) -> Vec<Listed> {
        let until = after.map_or(Bound::Unbounded, Bound::Excluded);
        let rows = self.by_age.range((Bound::Unbounded, until)).rev().filter_map(|place| {
            let row = match self.live.get(&place.1) {
                // What is not durable yet is nobody's business.
                Some(live) if live.machine.committed_events() == 0 => return None,
                Some(live) => Listing::Told(view::summary(live.machine.state())),
                None => self.ended.listed(&place.1)?,
            };
            Some(Listed { place: *place, row })
        });
        rows.take(count).collect()
    }
}

/// Which tasks a list shall hold.
#[derive(Debug, Clone)]
struct Wanted {
    status: Option<String>,
    tag: Option<String>,
}

impl Wanted {
    fn is_all(&self) -> bool {
        self.status.is_none() && self.tag.is_none()
    }

    fn fits(&self, row: &Value) -> bool {
        let tags = || row["tags"].as_array().into_iter().flatten();
        self.status.as_deref().is_none_or(|status| row["status"] == status)
            && self.tag.as_deref().is_none_or(|tag| tags().any(|given| given == tag))
    }
}

/// Where the next page of a list begins.
fn cursor_text((at, task): (Timestamp, TaskId)) -> String {
    format!("{}-{task}", at.as_ms())
}

fn cursor_of(text: &str) -> Option<(Timestamp, TaskId)> {
    let (at, task) = text.split_once('-')?;
    Some((Timestamp::from_ms(at.parse().ok()?), task.parse().ok()?))
}

/// Where a task's events are.
#[derive(Debug, Clone)]
pub(in crate::node) struct Cursor {
    pub(super) place: Place,
    /// Grows while the task is under way.
    pub(super) durable: Option<watch::Receiver<Durable>>,
    /// What it is to do, if that is at hand.
    pub(super) definition: Option<Arc<Definition>>,
}

/// What a submission came to.
#[derive(Debug, Clone)]
pub struct Submission {
    /// The receipt (AITP 8.1).
    pub receipt: Value,
    /// False if the same was submitted under the same key before.
    pub created: bool,
}

fn broke_off<E>(_: E) -> Failure {
    stopping()
}

impl Handle {
    async fn ask_tasks<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Result<T, Failure> {
        let (reply, answer) = oneshot::channel();
        self.shared.tasks.send(command(reply)).await.map_err(broke_off)?;
        answer.await.map_err(broke_off)
    }

    /// Reads and checks a definition without running it.
    fn definition_of(&self, document: &Value, at: Timestamp) -> Result<Definition, Failure> {
        let definition = Definition::read(document, &self.tasks.reader.defaults, at).map_err(|faults| fault::failure(&faults))?;
        plan::check(&self.shared, &definition)?;
        plan::check_times(&self.shared, &definition, document.get("Task").is_some())?;
        callback::check(&self.shared.config.task.callback_allow, definition.completion_callback.as_deref())?;
        Ok(definition)
    }

    /// Takes a task in (AITP 8.1). It is durable when this returns. Submissions with one key are one task.
    ///
    /// # Errors
    /// `INVALID_REQUEST` with every fault of the definition, `CONFLICT` if the key stands for another one, `BUSY` or
    /// `INSUFFICIENT_RESOURCES` if this node takes no more. Nothing was changed then.
    pub async fn submit(&self, document: Bytes, key: Option<String>) -> Result<Submission, Failure> {
        if self.shared.drain.is_cancelled() {
            return Err(Failure::new(ErrorCode::Unavailable, "this node is stopping").retryable(false));
        }
        let invalid = |message: String| Failure::new(ErrorCode::InvalidRequest, message);
        if document.len() > DOCUMENT_BYTES_MAX {
            let message = format!("the definition has {} bytes, at most {DOCUMENT_BYTES_MAX} are allowed", document.len());
            return Err(Failure::new(ErrorCode::PayloadTooLarge, message).with("limit", DOCUMENT_BYTES_MAX));
        }
        if key.as_ref().is_some_and(|key| key.is_empty() || key.len() > KEY_BYTES_MAX || key.chars().any(char::is_control)) {
            return Err(
                invalid(format!("an idempotency key has 1 to {KEY_BYTES_MAX} printable characters")).with("path", "/Idempotency-Key")
            );
        }
        let identity = off_workers(document.len(), || *blake3::hash(&document).as_bytes());
        if let Some(known) = self.known(key.as_ref(), identity).await? {
            return Ok(known);
        }
        let at = self.tasks.clock.now();
        let read = off_workers(document.len(), || {
            let mut value: Value =
                serde_json::from_slice(&document).map_err(|error| invalid(format!("the body cannot be read: {error}")))?;
            let place = types::place_of_subtasks(&value);
            // The journal has the whole id: what it is the beginning of changes.
            let whole = context::resolve(&self.shared, &mut value)?.then(|| Bytes::from(value.to_string()));
            self.definition_of(&value, at).map(|definition| (definition, place, whole))
        });
        let (definition, place, whole) = read?;
        context::check(&self.shared, &definition, place).await?;
        types::check(&self.shared, &definition, place).await?;
        let document = whole.unwrap_or(document);
        let task = TaskId::from_random(rand::random());
        let document = match read::keep(&self.tasks.reader.blobs, task, document).await {
            Ok(document) => document,
            Err(failure) => return self.submitted(task, Err(failure)).await,
        };
        let event = Box::new(Event::Submitted(Submitted { document, key, identity, parent: None }));
        let submit = |reply| Command::Submit { task, definition: Box::new(definition), event, at, reply };
        self.submitted(task, self.ask_tasks(submit).await?).await
    }

    /// What was submitted under this key before. It was right then, whatever has become of its deadline and of the agents since.
    async fn known(&self, key: Option<&String>, identity: [u8; 32]) -> Result<Option<Submission>, Failure> {
        let Some(key) = key.cloned() else { return Ok(None) };
        match self.ask_tasks(|reply| Command::Known { key, identity, reply }).await?? {
            Some(receipt) => Ok(Some(Submission { receipt: self.receipt(receipt).await?, created: false })),
            None => Ok(None),
        }
    }

    async fn receipt(&self, receipt: Receipt) -> Result<Value, Failure> {
        match receipt {
            Receipt::Told(receipt) => Ok(receipt),
            Receipt::Index(at, known) => {
                let reader = self.tasks.reader.clone();
                let (row, _) = tokio::task::spawn_blocking(move || reader.filed(at, known)).await.map_err(broke_off)??;
                Ok(view::receipt_of(&row.value()))
            }
        }
    }

    /// What a submission came to. A definition that was kept for a task that is none is removed again.
    async fn submitted(&self, task: TaskId, answer: Result<(Receipt, bool), Failure>) -> Result<Submission, Failure> {
        // A journal that has stopped may hold the task all the same.
        let is_none = answer.as_ref().map_or_else(|failure| failure.code != ErrorCode::Unavailable, |(_, created)| !created);
        if is_none {
            let blobs = self.tasks.reader.blobs.clone();
            let removed = tokio::task::spawn_blocking(move || blobs.remove_all(&task.to_string())).await.map_err(broke_off)?;
            if let Err(error) = removed {
                tracing::warn!(%error, "the definition of a task that was not taken could not be removed");
            }
        }
        let (receipt, created) = answer?;
        Ok(Submission { receipt: self.receipt(receipt).await?, created })
    }

    /// Takes in a task that a call brought. `identity` is what the same key must come with.
    pub(super) async fn submit_delegated(
        &self,
        document: &Value,
        key: Option<String>,
        identity: [u8; 32],
        parent: Parent,
    ) -> Result<Submission, Failure> {
        if self.shared.drain.is_cancelled() {
            return Err(stopping());
        }
        let text = Bytes::from(document.to_string());
        if text.len() > DOCUMENT_BYTES_MAX {
            let message = format!("the definition has {} bytes, at most {DOCUMENT_BYTES_MAX} are allowed", text.len());
            return Err(Failure::new(ErrorCode::PayloadTooLarge, message).with("limit", DOCUMENT_BYTES_MAX));
        }
        if let Some(known) = self.known(key.as_ref(), identity).await? {
            return Ok(known);
        }
        let at = self.tasks.clock.now();
        let definition = off_workers(text.len(), || self.definition_of(document, at))?;
        let definition = definition.within(parent.clone()).map_err(|fault| fault::failure(&[fault]))?;
        context::check(&self.shared, &definition, types::place_of_subtasks(document)).await?;
        if !definition.dependencies.is_empty() {
            let failure = Failure::new(ErrorCode::InvalidRequest, "a task for another node waits for no tasks of that node");
            return Err(failure.with("path", "/metadata/dependencies"));
        }
        let task = TaskId::from_random(rand::random());
        let document = match read::keep(&self.tasks.reader.blobs, task, text).await {
            Ok(document) => document,
            Err(failure) => return self.submitted(task, Err(failure)).await,
        };
        let event = Box::new(Event::Submitted(Submitted { document, key, identity, parent: Some(Box::new(parent)) }));
        let submit = |reply| Command::Submit { task, definition: Box::new(definition), event, at, reply };
        self.submitted(task, self.ask_tasks(submit).await?).await
    }

    /// What would come of a definition: its subtasks, whom they would be given to, and what they would probably cost.
    ///
    /// # Errors
    /// `INVALID_REQUEST` with every fault of the definition.
    pub async fn plan(&self, document: &Value) -> Result<Value, Failure> {
        let mut document = document.clone();
        context::resolve(&self.shared, &mut document)?;
        let document = &document;
        let definition = self.definition_of(document, self.tasks.clock.now())?;
        context::check(&self.shared, &definition, types::place_of_subtasks(document)).await?;
        types::check(&self.shared, &definition, types::place_of_subtasks(document)).await?;
        Box::pin(plan::explain(&self.shared, definition)).await
    }

    /// How a task stands (AITP 8.2).
    ///
    /// # Errors
    /// `TASK_NOT_FOUND`.
    pub async fn task(&self, task: TaskId, explain: bool) -> Result<Value, Failure> {
        let place = match self.ask_tasks(|reply| Command::Status { task, explain, reply }).await?? {
            Standing::Told(document) => return Ok(document),
            Standing::Recent(whole) => return Ok(view::status(whole.state(), self.node_id(), explain, self.tasks.clock.now())),
            Standing::Ended(place) => place,
        };
        let (reader, home, now) = (self.tasks.reader.clone(), self.node_id(), self.tasks.clock.now());
        let read = move || reader.status(&place, home, explain, now);
        tokio::task::spawn_blocking(read).await.map_err(broke_off)?
    }

    /// How far a task is, in percent, if it runs and that can be said now.
    pub(super) async fn task_percent(&self, task: TaskId) -> Option<usize> {
        self.ask_tasks(|reply| Command::Percent { task, reply }).await.ok().flatten()
    }

    /// The result of a task that has ended, as a JSON document (AITP 8.3).
    ///
    /// # Errors
    /// `TASK_NOT_FOUND`, `NOT_FINISHED`.
    pub async fn task_result(&self, task: TaskId) -> Result<Box<RawValue>, Failure> {
        let internal = |error: serde_json::Error| Failure::new(ErrorCode::Internal, error.to_string());
        let place = match self.ask_tasks(|reply| Command::Ended { task, reply }).await?? {
            Standing::Told(document) => return serde_json::value::to_raw_value(&document).map_err(internal),
            Standing::Recent(whole) => return off_workers(whole.bytes(), || result_of(whole.state(), whole.outputs())),
            Standing::Ended(place) => place,
        };
        let reader = self.tasks.reader.clone();
        let read = move || result_document(&reader, &place);
        tokio::task::spawn_blocking(read).await.map_err(broke_off)?
    }

    /// How often the journal was flushed since the node started, which is what its tasks wait for.
    pub fn journal_flushes(&self) -> u64 {
        self.tasks.reader.journal.flushes()
    }

    /// Cancels a task.
    ///
    /// # Errors
    /// `TASK_NOT_FOUND`, `CONFLICT` if it has ended.
    pub async fn cancel_task(&self, task: TaskId) -> Result<Value, Failure> {
        self.ask_tasks(|reply| Command::Cancel { task, reply }).await?
    }

    /// Tasks of this node, the latest first: rows, and where the next page begins.
    ///
    /// # Errors
    /// `INVALID_REQUEST` for a cursor that is none, and for no rows or more than [`LIST_MAX`].
    pub async fn tasks(&self, status: Option<String>, tag: Option<String>, limit: usize, after: Option<&str>) -> Result<Value, Failure> {
        let cursor = |text: &str| {
            let failure = Failure::new(ErrorCode::InvalidRequest, format!("`{}` is no cursor of a list", printable(text, 60)));
            cursor_of(text).ok_or_else(|| failure.with("path", "/after"))
        };
        let mut after = after.map(cursor).transpose()?;
        if !(1..=LIST_MAX).contains(&limit) {
            let message = format!("a list holds 1 to {LIST_MAX} tasks, not {limit}; `next` in its answer leads to those behind it");
            return Err(Failure::new(ErrorCode::InvalidRequest, message).with("path", "/limit"));
        }
        let wanted = Wanted { status, tag };
        let (mut rows, mut last, mut next) = (Vec::new(), None, None);
        while next.is_none() {
            // One more than is wanted tells whether there is a next page.
            let count = if wanted.is_all() { limit.saturating_sub(rows.len()).saturating_add(1) } else { LOOKED_AT };
            let listed = self.ask_tasks(|reply| Command::List { after, count, reply }).await?;
            let Some(Listed { place, row: _ }) = listed.last() else { break };
            after = Some(*place);
            let (reader, wanted) = (self.tasks.reader.clone(), wanted.clone());
            let read = move || {
                let fitting = |listed: Listed| Ok(listed.value(&reader)?.filter(|row| wanted.fits(row)).map(|row| (listed.place, row)));
                listed.into_iter().filter_map(|listed| fitting(listed).transpose()).collect::<Result<Vec<_>, Failure>>()
            };
            for (place, row) in tokio::task::spawn_blocking(read).await.map_err(broke_off)?? {
                if rows.len() >= limit {
                    next = last.map(cursor_text);
                    break;
                }
                rows.push(row);
                last = Some(place);
            }
        }
        Ok(serde_json::json!({ "tasks": rows, "next": next }))
    }

    /// How much of the journal the start read, for people.
    pub(in crate::node) fn journal_read(&self) -> String {
        self.tasks.started.to_string()
    }

    /// The task that `text` names: its id, or an unambiguous beginning of it.
    ///
    /// # Errors
    /// `TASK_NOT_FOUND`, `INVALID_REQUEST` if it could mean several.
    pub async fn task_named(&self, text: &str) -> Result<TaskId, Failure> {
        if let Ok(task) = text.parse() {
            return Ok(task);
        }
        let is_prefix = text.len() >= 4 && text.len() < 36 && text.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-');
        let prefix = text.to_ascii_lowercase();
        let found = if is_prefix { self.ask_tasks(|reply| Command::Resolve { prefix, reply }).await? } else { Vec::new() };
        match found[..] {
            [task] => Ok(task),
            [] => {
                let failure = Failure::new(ErrorCode::TaskNotFound, format!("this node knows no task `{}`", printable(text, 80)));
                Err(failure.with("suggestion", "`meshwork task list` lists those that it knows"))
            }
            _ => {
                let names: Vec<String> = found.iter().map(ToString::to_string).collect();
                let failure = Failure::new(ErrorCode::InvalidRequest, format!("`{text}` could mean {}", names.join(", ")));
                Err(failure.with("candidates", names))
            }
        }
    }

    /// The events of a task after the one with this index, or all of them; ends when the task has.
    ///
    /// # Errors
    /// `TASK_NOT_FOUND`.
    pub async fn task_events(&self, task: TaskId, after: Option<u64>) -> Result<EventStream, Failure> {
        // Also refuses a task that nobody knows before the stream begins.
        self.ask_tasks(|reply| Command::Follow { task, reply }).await??;
        let from = after.map_or(0, |after| after.saturating_add(1));
        let following = Following { handle: self.clone(), task, next: from, definition: None, over: false };
        let batches = futures::stream::try_unfold(following, |following| async move {
            let batch = following.batch().await?;
            Ok::<_, Failure>(batch.map(|(events, following)| (futures::stream::iter(events.into_iter().map(Ok)), following)))
        });
        Ok(Box::pin(futures::TryStreamExt::try_flatten(batches)))
    }
}

/// The result document of a task that has ended. Blocks.
pub(super) fn result_document(reader: &Reader, place: &Place) -> Result<Box<RawValue>, Failure> {
    let state = reader.state(&reader.positions(place)?)?;
    let outputs = reader.outputs(&state)?;
    result_of(&state, &outputs)
}

/// The same for a task that is at hand with its outputs.
fn result_of(state: &State, outputs: &[Option<Arc<Value>>]) -> Result<Box<RawValue>, Failure> {
    let ended_well = state.end().is_some_and(|end| matches!(end.outcome, Outcome::Success | Outcome::Partial));
    let internal = |error: serde_json::Error| Failure::new(ErrorCode::Internal, error.to_string());
    let value = ended_well.then(|| result::compose(state.definition(), &|index| outputs.get(index)?.as_deref()));
    let value = value.map(|value| serde_json::value::to_raw_value(&value)).transpose().map_err(internal)?;
    let document = view::result(state, value.as_deref());
    serde_json::value::to_raw_value(&document).map_err(internal)
}

/// A stream of events on its way.
struct Following {
    handle: Handle,
    task: TaskId,
    next: u64,
    definition: Option<Arc<Definition>>,
    over: bool,
}

impl Following {
    async fn positions(&self, place: Place) -> Result<Arc<[Position]>, Failure> {
        match place {
            Place::Journal(positions) => Ok(positions),
            Place::Index(..) => {
                let reader = self.handle.tasks.reader.clone();
                tokio::task::spawn_blocking(move || reader.positions(&place)).await.map_err(broke_off)?
            }
        }
    }

    /// The next events, once there are any; `None` when the task has ended.
    async fn batch(mut self) -> Result<Option<(Vec<NumberedEvent>, Self)>, Failure> {
        if self.over {
            return Ok(None);
        }
        let task = self.task;
        loop {
            let cursor = self.handle.ask_tasks(|reply| Command::Follow { task, reply }).await??;
            self.definition = cursor.definition.or(self.definition);
            let positions = self.positions(cursor.place).await?;
            let from = usize::try_from(self.next).unwrap_or(usize::MAX).min(positions.len());
            let to = from.saturating_add(EVENTS_PER_READ).min(positions.len());
            if from < to {
                let (reader, known) = (self.handle.tasks.reader.clone(), self.definition.clone());
                let first = self.next;
                let read = move || {
                    // Names of subtasks stand in the definition alone, which a plan may have completed by then.
                    let needed = if known.as_ref().is_some_and(|known| !known.subtasks.is_empty()) { from } else { 0 };
                    let definition = match known.filter(|_| needed > 0) {
                        Some(known) => known,
                        None => Arc::clone(reader.state(positions.get(..to).unwrap_or_default())?.definition()),
                    };
                    let entries = reader.entries(positions.get(from..to).unwrap_or_default())?;
                    let events = entries.into_iter().zip(first..).map(|(entry, index)| NumberedEvent {
                        index,
                        name: entry.event.name(),
                        data: view::event(index, task, &entry.event, entry.at, &definition),
                    });
                    Ok::<_, Failure>((events.collect::<Vec<_>>(), definition))
                };
                let (events, definition) = tokio::task::spawn_blocking(read).await.map_err(broke_off)??;
                self.definition = Some(definition);
                self.next = self.next.saturating_add(u64::try_from(events.len()).unwrap_or(0));
                self.over = events.iter().any(|event| event.name == "ended");
                return Ok(Some((events, self)));
            }
            let Some(mut durable) = cursor.durable else { return Ok(None) };
            let more = durable.wait_for(|durable| durable.events > self.next || durable.ended).await.map(|durable| *durable);
            if more.is_ok_and(|durable| durable.ended && durable.events <= self.next) {
                return Ok(None);
            }
        }
    }
}
