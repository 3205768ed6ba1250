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
        let work = Box::pin(self.run(Arc::clone(shared), blobs.clone()));
        guard::report(work, reports, task, move |failure| Input::ContextWritten(fence, Err(failure)))
    }

    /// A disk that is full, or a context that waits to be mended, is waited for; the task's deadline and a cancel end that.
    async fn run(mut self, shared: Arc<Shared>, blobs: Blobs) -> Input {
        let (task, fence) = (self.task, self.fence);
        let mut pause = FULL_RETRY;
        loop {
            let (write, shared, blobs) = (self.clone(), Arc::clone(&shared), blobs.clone());
            match blocking(move || write.once(&shared, &blobs)).await {
                // What a flush left unknown is looked up after the next start; until then the context is left alone.
                Err(failure) if failure.retryable || failure.details.contains_key(UNFLUSHED) => {
                    tracing::warn!(%task, ?fence, %failure, "what a step writes to its context waits");
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
