//! A task's shared context, where its steps meet it: named when the task is taken in, read when a step begins, written when its result is
//! durable. What may be done with it is `node::context::steps`' to say.

use std::sync::Arc;

use bytes::Bytes;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use super::step::{FULL_RETRY, Report};
use super::{guard, read};
use crate::model::{ContextId, ErrorCode, Failure, TaskId};
use crate::node::context::steps::{self, Used};
use crate::node::handle::{UNFLUSHED, stopping};
use crate::node::shared::Shared;
use crate::proto::task::definition::{ContextAccess, Definition};
use crate::proto::task::fault::{self, Fault};
use crate::proto::task::machine::Input;
use crate::store::Blobs;
use crate::wire::context::Step;
use crate::wire::paired;
use crate::wire::task::{Fence, Text};

/// The longest pause before what a step writes is tried again.
const RETRY_MAX: std::time::Duration = std::time::Duration::from_secs(60);

async fn blocking<T: Send + 'static>(act: impl FnOnce() -> Result<T, Failure> + Send + 'static) -> Result<T, Failure> {
    match tokio::task::spawn_blocking(act).await {
        Ok(done) => done,
        // Told to the task like one of this future itself.
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_) => Err(stopping()),
    }
}

/// What a definition that is read always has where a step has a context.
fn used(definition: &Definition) -> Result<Used, Failure> {
    let context = definition.context.as_ref().ok_or_else(|| Failure::new(ErrorCode::Internal, "the task names no context"))?;
    Used::of(context, definition.parent.as_ref())
}

/// The fault of a definition whose context cannot be used.
fn fault_at(root: &str, failure: &Failure) -> Failure {
    let place = failure.details.get("path").and_then(Value::as_str).unwrap_or("/context/id");
    let suggestion = failure.details.get("suggestion").and_then(Value::as_str).map(str::to_owned);
    fault::failure(&[Fault { path: format!("{root}{place}"), message: failure.to_string(), suggestion }])
}

/// Writes the whole id into a document that only has the beginning of it, and says whether it did.
///
/// # Errors
/// `INVALID_REQUEST` if no context is meant, or several may be.
pub(super) fn resolve(shared: &Shared, document: &mut Value) -> Result<bool, Failure> {
    let root = if document.get("Task").is_some() { "/Task" } else { "" };
    let place = format!("{root}/context");
    let place = if document.pointer(&place).is_some_and(Value::is_object) { place + "/id" } else { place };
    let Some(id) = document.pointer_mut(&place) else { return Ok(false) };
    // Whether it can be an id at all is for whoever reads the document to say.
    let Some(text) = id.as_str().filter(|text| text.parse::<ContextId>().is_err()) else { return Ok(false) };
    if text.len() >= 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Ok(false);
    }
    let whole = steps::named(shared, text).map_err(|failure| fault_at(root, &failure))?;
    *id = whole.to_string().into();
    Ok(true)
}

/// Refuses a definition whose context is not here, or must not be used so. `place` is where its subtasks stand.
pub(super) async fn check(shared: &Arc<Shared>, definition: &Definition, place: &str) -> Result<(), Failure> {
    if definition.context.is_none() {
        return Ok(());
    }
    let root = if place == super::types::SUBTASKS { "" } else { "/Task" };
    let here = Arc::clone(shared);
    let checked = match used(definition) {
        Ok(used) => blocking(move || used.check(&here)).await,
        Err(failure) => Err(failure),
    };
    checked.map_err(|failure| {
        let is_its_fault = matches!(failure.code, ErrorCode::ContextNotFound | ErrorCode::AccessDenied | ErrorCode::AgentNotFound);
        if is_its_fault { fault_at(root, &failure) } else { failure }
    })
}

/// What a step is given now.
pub(super) async fn given(shared: &Arc<Shared>, definition: &Definition, access: ContextAccess) -> Result<Bytes, Failure> {
    let (used, shared) = (used(definition)?, Arc::clone(shared));
    blocking(move || used.given(&shared, access)).await.map(Bytes::from)
}

/// The output of a step that may do so much with its context, and what it wants to be written there, as JSON texts.
pub(super) fn apart(definition: &Definition, access: ContextAccess, body: &Bytes) -> Result<(Bytes, Option<Bytes>), Failure> {
    let misread = |error: &dyn std::fmt::Display| Failure::new(ErrorCode::InvalidSchema, error.to_string());
    let (output, ops) = paired::read_made(body).map_err(|error| misread(&error))?;
    if let Some(ops) = &ops {
        let ops = serde_json::from_slice(ops).map_err(|error| misread(&error))?;
        used(definition)?.read(access, &ops)?;
    }
    Ok((output, ops))
}

/// What a result brought for the context.
#[derive(Clone)]
pub(super) struct Write {
    pub(super) task: TaskId,
    pub(super) fence: Fence,
    pub(super) definition: Arc<Definition>,
    /// As JSON text.
    pub(super) ops: Text,
    /// Whether it may be there already.
    pub(super) again: bool,
}

impl Write {
    /// Begins to write it; dropping the handle ends that.
    pub(super) fn begin(self, shared: &Arc<Shared>, blobs: &Blobs, reports: &mpsc::Sender<Report>) -> AbortOnDropHandle<()> {
        let (task, fence) = (self.task, self.fence);
        let work = Box::pin(self.run(Arc::clone(shared), blobs.clone(), reports.clone()));
        guard::report(work, reports, task, move |failure| Input::ContextWritten(fence, Err(failure)))
    }

    /// A disk that is full, or a context that waits to be mended, is waited for; the task's deadline and a cancel end that.
    async fn run(mut self, shared: Arc<Shared>, blobs: Blobs, reports: mpsc::Sender<Report>) -> Input {
        let (task, fence) = (self.task, self.fence);
        let mut pause = FULL_RETRY;
        loop {
            let (write, shared, blobs) = (self.clone(), Arc::clone(&shared), blobs.clone());
            match blocking(move || write.once(&shared, &blobs)).await {
                // What a flush left unknown is looked up after the next start; until then the context is left alone.
                Err(failure) if failure.retryable || failure.details.contains_key(UNFLUSHED) => {
                    tracing::warn!(%task, ?fence, %failure, "what a step writes to its context waits");
                    // The book outlives what works for it; if it is gone, so is the node.
                    let _ = reports.send(Report { task, input: Input::ContextWaits(fence, failure), output: None }).await;
                }
                written => return Input::ContextWritten(fence, written),
            }
            // Some of it may be there.
            self.again = true;
            tokio::time::sleep(pause).await;
            pause = pause.saturating_mul(2).min(RETRY_MAX);
        }
    }

    /// Blocks.
    fn once(&self, shared: &Arc<Shared>, blobs: &Blobs) -> Result<(), Failure> {
        let subtask = usize::try_from(self.fence.subtask).ok().and_then(|place| self.definition.subtasks.get(place));
        let subtask = subtask.ok_or_else(|| Failure::new(ErrorCode::Internal, "the task has no such subtask"))?;
        let ops = read::value_of(blobs, self.task, &self.ops)?;
        let used = used(&self.definition)?;
        let items = used.read(ContextAccess::Write, &ops)?;
        used.write(shared, &Step { task: self.task, subtask: subtask.id.clone() }, items, self.again)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::node::{ContextRequest, Node};
    use crate::store::DataDir;

    /// AITP-12: what finds no room is told to the task, tried again, and written once there is some; all of it once.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_write_that_finds_no_room_is_tried_until_there_is_some() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut config = crate::config::Config::default();
        config.node.data_dir = folder.path().join("node");
        config.mesh.listen = vec!["/ip4/127.0.0.1/tcp/0".to_owned()];
        config.context.bytes_max = 100_000;
        let node = Node::start(config).await.expect("a node");
        let large = "x".repeat(40_000);
        let create = async |value: Value| {
            let shared_memory = value.as_object().cloned();
            let created = node.handle.create_context(ContextRequest { shared_memory, ..ContextRequest::default() }).await;
            created.expect("a context")["id"].as_str().expect("an id").to_owned()
        };
        let id = create(json!({})).await;
        let filler = create(json!({ "a": large, "b": large })).await;

        let document = json!({
            "name": "n",
            "context": { "id": id, "access": "write" },
            "subtasks": [{ "subtask_id": "a", "agent_capability": "test.nobody" }],
        });
        let definition = Definition::read(&document, &Default::default(), node.handle.shared.clock.now().wall).expect("a definition");
        let ops = json!([{ "op": "append", "path": "/shared_memory/log", "value": large }]).to_string();
        let (task, fence) = (TaskId::from_random(7), Fence { subtask: 0, attempt: 1 });
        let write = Write { task, fence, definition: Arc::new(definition), ops: Text::Inline(ops.into()), again: false };
        let blobs = DataDir::open(&folder.path().join("blobs")).expect("a data directory").blobs();
        let (reports, mut inbox) = mpsc::channel(8);
        let _work = write.begin(&node.handle.shared, &blobs, &reports);

        let waits = inbox.recv().await.expect("a report");
        let Input::ContextWaits(about, failure) = waits.input else { panic!("not {:?}", waits.input) };
        assert_eq!((waits.task, about, failure.code), (task, fence, ErrorCode::InsufficientResources));
        node.handle.drop_context(&filler).await.expect("there is room again");
        let written = loop {
            if let Input::ContextWritten(about, written) = inbox.recv().await.expect("a report").input {
                break (about, written);
            }
        };
        assert_eq!(written, (fence, Ok(())));
        let log = node.handle.context(&id, Some("/shared_memory/log"), None, None).await.expect("a list");
        assert_eq!(log, json!([large]));
        drop(node);
    }
}
