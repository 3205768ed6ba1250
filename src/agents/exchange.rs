//! What a node and an agent's program say to each other, whatever the adapter: the object of a call, the object of an answer.
//!
//! interface.md, "Agents". An agent may not speak for the node: of the codes that it writes, only those pass that are an agent's to give.

use bytes::Bytes;
use rust_decimal::Decimal;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::model::{CapabilityName, ErrorCode, Failure, InvocationId, Priority, VersionRequirement, printable};
use crate::wire::invocation::INLINE_BYTES_MAX;

/// The largest chunk of a streamed answer.
pub(super) const CHUNK_BYTES_MAX: usize = INLINE_BYTES_MAX;

/// Whether an agent can be called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// It can.
    Up,
    /// It cannot; the reason is for people.
    Down(String),
}

/// What every adapter is started with.
pub(super) struct Attached<'a> {
    /// The agent's name.
    pub(super) name: &'a str,
    /// The largest output that is of use.
    pub(super) output_bytes_max: usize,
    /// Where its health goes.
    pub(super) report: watch::Sender<Health>,
    /// Cancelled when it is detached.
    pub(super) stop: CancellationToken,
}

/// How a caller confirms a call that must not be done twice.
#[derive(Debug)]
pub struct Confirm {
    /// Told once the agent is free.
    pub ready: oneshot::Sender<()>,
    /// The work begins when this comes, and never if it is dropped.
    pub go: oneshot::Receiver<()>,
}

/// One call of an agent.
#[derive(Debug)]
pub struct Invocation {
    /// The same on every node.
    pub id: InvocationId,
    /// What is asked for.
    pub capability: CapabilityName,
    /// Which versions will do.
    pub version: Option<VersionRequirement>,
    /// The input, as JSON text.
    pub input: Bytes,
    /// The shared context that a step of a task is given, as JSON text; kept no longer than the call.
    pub context: Option<Bytes>,
    /// When it must be over.
    pub deadline: Instant,
    /// The caller's idempotency key.
    pub key: Option<String>,
    /// How urgent it is.
    pub priority: Priority,
    /// What the work waits for once the agent is free.
    pub confirm: Option<Confirm>,
    /// Comes once it is durable that the work begins, which it does not before, and never if this is dropped.
    pub begun: Option<oneshot::Receiver<()>>,
    /// Where the chunks of the answer go, each as JSON text of at most `CHUNK_BYTES_MAX`; whoever sends waits until there is room.
    pub chunks: Option<mpsc::Sender<Bytes>>,
}

impl Invocation {
    /// Time left, in milliseconds.
    pub(super) fn budget_ms(&self) -> u64 {
        u64::try_from(self.deadline.saturating_duration_since(Instant::now()).as_millis()).unwrap_or(u64::MAX)
    }
}

/// An answer before it was checked against its schema.
#[derive(Debug)]
pub(super) struct Answer {
    /// JSON text, as the agent wrote it.
    pub(super) output: Bytes,
    pub(super) units: Option<Decimal>,
    /// What it wants to be written to the context, as JSON text; nothing if that is an empty list.
    pub(super) context_ops: Option<Bytes>,
}

impl Answer {
    /// An answer that has nothing to do with a context.
    pub(super) fn plain(output: Bytes, units: Option<Decimal>) -> Self {
        Self { output, units, context_ops: None }
    }
}

#[derive(serde::Serialize)]
struct Line<'a> {
    id: &'a str,
    capability: &'a str,
    input: &'a RawValue,
    #[serde(skip_serializing_if = "Option::is_none")]
    context: Option<&'a RawValue>,
    deadline_ms: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    idempotency_key: Option<&'a str>,
}

/// What an agent may answer; shared with the HTTP adapter.
#[derive(Deserialize)]
pub(super) struct Reply {
    #[serde(default)]
    pub(super) id: Option<String>,
    #[serde(default, deserialize_with = "present")]
    pub(super) output: Option<Box<RawValue>>,
    #[serde(default, deserialize_with = "present")]
    pub(super) chunk: Option<Box<RawValue>>,
    #[serde(default)]
    pub(super) units: Option<Decimal>,
    #[serde(default)]
    context_ops: Option<Box<RawValue>>,
    #[serde(default)]
    pub(super) error: Option<ReplyError>,
}

/// `null` is an output like any other.
fn present<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Box<RawValue>>, D::Error> {
    Box::<RawValue>::deserialize(deserializer).map(Some)
}

#[derive(Deserialize)]
pub(super) struct ReplyError {
    #[serde(default)]
    code: Option<String>,
    #[serde(default)]
    message: String,
    #[serde(default)]
    retryable: Option<bool>,
}

impl Reply {
    /// The end of the call that this reply is; `None` for a chunk or anything else that is not an end.
    pub(super) fn end(self, name: &str) -> Option<Result<Answer, Failure>> {
        if let Some(error) = self.error {
            let known = error.code.as_deref().and_then(|code| code.parse().ok()).unwrap_or(ErrorCode::AgentFailed);
            // Only the node can say that it is busy, that nobody is there, or who may call.
            let own = [ErrorCode::InvalidRequest, ErrorCode::InvalidSchema, ErrorCode::InsufficientResources, ErrorCode::Timeout];
            let code = if own.contains(&known) { known } else { ErrorCode::AgentFailed };
            let message = if error.message.is_empty() { "no message".to_owned() } else { error.message };
            let failure = Failure::new(code, format!("agent `{name}`: {message}"));
            let failure = match error.code.filter(|written| written != code.as_str()) {
                Some(written) => failure.with("agent_code", printable(&written, 64)),
                None => failure,
            };
            let retryable = error.retryable.unwrap_or(failure.retryable);
            return Some(Err(failure.retryable(retryable)));
        }
        let units = self.units.filter(|units| !units.is_sign_negative());
        let is_something = |ops: &RawValue| !ops.get().bytes().filter(|byte| !byte.is_ascii_whitespace()).eq(*b"[]");
        let context_ops = self.context_ops.filter(|ops| is_something(ops)).map(text);
        self.output.map(|output| Ok(Answer { output: text(output), units, context_ops }))
    }

    /// The chunk of an answer that this reply is.
    ///
    /// # Errors
    /// `AGENT_FAILED` if it is too large to travel.
    pub(super) fn take_chunk(&mut self, name: &str) -> Option<Result<Bytes, Failure>> {
        let chunk = text(self.chunk.take()?);
        if chunk.len() <= CHUNK_BYTES_MAX {
            return Some(Ok(chunk));
        }
        let message = format!("agent `{name}` sent a chunk of {} bytes, at most {CHUNK_BYTES_MAX} are allowed", chunk.len());
        Some(Err(Failure::new(ErrorCode::AgentFailed, message).retryable(false)))
    }
}

fn text(value: Box<RawValue>) -> Bytes {
    Bytes::from(String::from(Box::<str>::from(value)).into_bytes())
}

/// Text above this size is read off the workers: some tens of microseconds of work.
const QUICK_BYTES_MAX: usize = 64 * 1024;

/// Does work that takes as long as reading text of so many bytes. While it takes long, the worker's other tasks are given to another thread,
/// so that no small call waits for a large one.
pub(crate) fn off_workers<T>(bytes: usize, work: impl FnOnce() -> T) -> T {
    let may = || Handle::try_current().is_ok_and(|runtime| runtime.runtime_flavor() == RuntimeFlavor::MultiThread);
    if bytes > QUICK_BYTES_MAX && may() { tokio::task::block_in_place(work) } else { work() }
}

/// The line or body that an agent is sent.
pub(super) fn request(invocation: &Invocation, capability: &CapabilityName) -> Result<Vec<u8>, Failure> {
    off_workers(request_bytes(invocation), || request_inner(invocation, capability))
}

/// The same, as one line.
pub(super) fn request_line(invocation: &Invocation, capability: &CapabilityName) -> Result<Vec<u8>, Failure> {
    off_workers(request_bytes(invocation), || {
        let mut line = request_inner(invocation, capability)?;
        // A value may hold line breaks between its parts; on the wire a line is a line.
        line.iter_mut().filter(|byte| matches!(byte, b'\n' | b'\r')).for_each(|byte| *byte = b' ');
        line.push(b'\n');
        Ok(line)
    })
}

fn request_bytes(invocation: &Invocation) -> usize {
    invocation.input.len().saturating_add(invocation.context.as_ref().map_or(0, Bytes::len))
}

fn request_inner(invocation: &Invocation, capability: &CapabilityName) -> Result<Vec<u8>, Failure> {
    let invalid = |error: serde_json::Error| Failure::new(ErrorCode::InvalidRequest, format!("the input is not JSON: {error}"));
    let input: &RawValue = serde_json::from_slice(&invocation.input).map_err(invalid)?;
    let unread = |error: serde_json::Error| Failure::new(ErrorCode::InvalidRequest, format!("the context is not JSON: {error}"));
    let context = invocation.context.as_deref().map(serde_json::from_slice).transpose().map_err(unread)?;
    let line = Line {
        id: &invocation.id.to_string(),
        capability: capability.as_str(),
        input,
        context,
        deadline_ms: invocation.budget_ms(),
        idempotency_key: invocation.key.as_deref(),
    };
    serde_json::to_vec(&line).map_err(invalid)
}

pub(super) fn cancelled() -> Failure {
    Failure::new(ErrorCode::Cancelled, "the call was cancelled")
}

pub(super) fn stopped(name: &str) -> Failure {
    Failure::new(ErrorCode::Unavailable, format!("agent `{name}` was detached"))
}

pub(super) fn timed_out(name: &str) -> Failure {
    Failure::new(ErrorCode::Timeout, format!("agent `{name}` did not answer before the deadline"))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn line(context: Option<&'static str>) -> Value {
        let capability: CapabilityName = "test.echo".parse().expect("a name");
        let invocation = Invocation {
            id: InvocationId::from_random(1),
            capability: capability.clone(),
            version: None,
            input: Bytes::from_static(b"1"),
            context: context.map(Bytes::from),
            deadline: Instant::now(),
            key: None,
            priority: Priority::Normal,
            confirm: None,
            begun: None,
            chunks: None,
        };
        let line = request_line(&invocation, &capability).expect("a line");
        assert_eq!(line.iter().position(|byte| *byte == b'\n'), Some(line.len() - 1), "a line is a line");
        serde_json::from_slice(&line).expect("JSON")
    }

    fn answer(text: &str) -> Answer {
        let reply: Reply = serde_json::from_str(text).expect("a reply");
        reply.end("a").expect("an end").expect("an output")
    }

    /// AMP-9: an agent is given the context of its step, and sees no such field in any other call.
    #[test]
    fn a_context_stands_in_the_call_that_has_one_and_in_no_other() {
        assert_eq!(line(Some("{\"access\":\n\"read\"}"))["context"], json!({ "access": "read" }));
        assert_eq!(line(None).get("context"), None);
    }

    #[test]
    fn what_is_to_be_written_comes_with_the_output() {
        let ops = |text: &str| answer(text).context_ops.map(|ops| String::from_utf8(ops.into()).expect("a text"));
        assert_eq!(ops(r#"{"output":1,"context_ops":[{"op":"del"}]}"#).as_deref(), Some(r#"[{"op":"del"}]"#));
        assert_eq!(ops(r#"{"output":1,"context_ops":7}"#).as_deref(), Some("7"), "whoever gave the context judges it");
        for nothing in [r#"{"output":1}"#, r#"{"output":1,"context_ops":null}"#, r#"{"output":1,"context_ops":[ ]}"#] {
            assert_eq!(ops(nothing), None, "{nothing}");
        }
    }
}
