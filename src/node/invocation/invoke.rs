//! A call from the side of its caller: admission, its key, and each attempt. Who is asked is decided in `routing`.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use rand::Rng;
use rust_decimal::Decimal;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use super::blobs::{self, Place, Push, STREAM_WAIT_MAX};
use super::execute;
use super::keyed::Ask;
use super::lanes::lane_to;
use super::own_side::OwnSide;
use super::routing::run;
use super::stream;
use crate::agents::definition::ANYTHING;
use crate::agents::off_workers;
use crate::mesh::lanes::{Lane, Watch};
use crate::model::{AgentId, CapabilityName, Currency, ErrorCode, Failure, InvocationId, NodeId, Priority, VersionRequirement};
use crate::node::explain::Explanation;
use crate::node::schemas::schemas_of;
use crate::node::shared::{Counted, Shared, lock};
use crate::proto::directory::rank::Candidate;
use crate::proto::invocation::blobs::Key;
use crate::proto::invocation::call::AttemptFailure;
use crate::proto::invocation::chain;
use crate::proto::invocation::client::Outcome as LaneOutcome;
use crate::proto::invocation::dedup::Call;
use crate::proto::invocation::evidence::Reader;
use crate::telemetry::Side;
use crate::wire::blob::Part;
use crate::wire::directory::Wanted;
use crate::wire::invocation::{Body, Fence, Hop, KEY_BYTES_MAX, Request, Success};
use crate::wire::paired;

/// How long a call waits for the schemas of an agent; without them only the agent's node checks.
const SCHEMAS_WAIT_MAX: Duration = Duration::from_secs(1);

/// How long a call whose input could not be sent waits for a word of the other side about it, once that must have missed the input too.
const WORD_WAIT_MAX: Duration = Duration::from_secs(1);

/// One call, as a client asks for it.
#[derive(Debug, Clone)]
pub struct InvokeRequest {
    /// Chosen by the client, so that it can cancel; else drawn here.
    pub id: Option<InvocationId>,
    /// What shall be done.
    pub capability: CapabilityName,
    /// Which versions will do.
    pub version: Option<VersionRequirement>,
    /// The only agent that may do it.
    pub agent: Option<AgentId>,
    /// The input, as JSON text.
    pub input: Bytes,
    /// The shared context that the step of a task is given, as JSON text.
    pub(crate) context: Option<Bytes>,
    /// How long it may take; the configured default without it.
    pub timeout: Option<Duration>,
    /// The call that the agent works on that makes this one.
    pub parent: Option<InvocationId>,
    /// What led to it; filled in from the parent.
    pub(crate) hops: Vec<Hop>,
    /// How urgent it is.
    pub priority: Priority,
    /// Calls with one key are one call.
    pub key: Option<String>,
    /// Which attempt of a task's step it is; its key alone then says which call it is.
    pub(crate) fence: Option<Fence>,
    /// What else must hold of the agent.
    pub constraints: Wanted,
    /// W3C trace context.
    pub traceparent: Option<String>,
    /// Whether the reply says how it came about.
    pub explain: bool,
    /// Where the chunks of the answer go, each as JSON text; whoever sends waits until there is room. `None`: the whole answer is enough.
    pub chunks: Option<mpsc::Sender<Bytes>>,
    /// How long the first chunk of a streamed answer may take.
    pub first_chunk: Option<Duration>,
    /// How long the pause after a chunk may be.
    pub idle: Option<Duration>,
}

impl InvokeRequest {
    /// A call with every choice left to the node.
    pub fn new(capability: CapabilityName, input: Bytes) -> Self {
        Self {
            id: None,
            capability,
            version: None,
            agent: None,
            input,
            context: None,
            timeout: None,
            parent: None,
            hops: Vec::new(),
            priority: Priority::Normal,
            key: None,
            fence: None,
            constraints: Wanted::default(),
            traceparent: None,
            explain: false,
            chunks: None,
            first_chunk: None,
            idle: None,
        }
    }
}

/// The good end of a call.
#[derive(Debug, Clone)]
pub struct InvokeReply {
    /// The call.
    pub id: InvocationId,
    /// The output, as JSON text.
    pub output: Bytes,
    /// Who did it.
    pub agent: AgentId,
    /// Where.
    pub node: NodeId,
    /// How many agents were asked.
    pub attempts: usize,
    /// From request to reply.
    pub latency: Duration,
    /// Units to be paid for.
    pub units: Decimal,
    /// What it costs, if the capability has a price.
    pub cost: Option<(Decimal, Currency)>,
    /// How it came about, if that was asked for.
    pub explanation: Option<Explanation>,
}

/// Makes one call. Dropping the future cancels it.
pub(in crate::node) async fn invoke(shared: &Arc<Shared>, mut request: InvokeRequest) -> Result<Arc<InvokeReply>, Failure> {
    let chosen = request.id.is_some();
    let id = request.id.unwrap_or_else(|| InvocationId::from_random(rand::rng().random()));
    request.id = Some(id);
    let admitted = admit(shared, &mut request).and_then(|()| in_turn(shared, &mut request));
    let result = match admitted {
        Ok(parent) => {
            let _counted = Counted::new(&shared.in_flight);
            // Only a client that chose the id can cancel by it. What is rare on this path is boxed: a future is moved at its full size.
            if chosen || request.key.is_some() || parent.is_some() {
                Box::pin(cancellable(shared, request, id, parent.unwrap_or_default())).await
            } else {
                run(shared, &request, id).await.map(Arc::new)
            }
        }
        Err(failure) => Err(failure),
    };
    match &result {
        Ok(reply) => {
            shared.metrics.call_succeeded(Side::Client);
            shared.metrics.latency(reply.latency.as_secs_f64());
        }
        Err(failure) => shared.metrics.call_failed(Side::Client, failure.code.as_str()),
    }
    result
}

async fn cancellable(
    shared: &Arc<Shared>,
    request: InvokeRequest,
    id: InvocationId,
    cancel: CancellationToken,
) -> Result<Arc<InvokeReply>, Failure> {
    let _registered = Registered::new(shared, id, &cancel)?;
    once(shared, request, id, &cancel).await
}

/// Lets a client cancel a call by its id while it runs.
struct Registered<'a> {
    shared: &'a Shared,
    id: InvocationId,
}

impl<'a> Registered<'a> {
    fn new(shared: &'a Shared, id: InvocationId, cancel: &CancellationToken) -> Result<Self, Failure> {
        let mut cancels = lock(&shared.cancels_by_invocation);
        if cancels.contains_key(&id) {
            return Err(Failure::new(ErrorCode::Conflict, format!("invocation {id} is running already")));
        }
        cancels.insert(id, cancel.clone());
        Ok(Self { shared, id })
    }
}

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        lock(&self.shared.cancels_by_invocation).remove(&self.id);
    }
}

fn admit(shared: &Shared, request: &mut InvokeRequest) -> Result<(), Failure> {
    let limits = &shared.config.limits;
    if shared.drain.is_cancelled() {
        return Err(Failure::new(ErrorCode::Unavailable, "this node is stopping").retryable(false));
    }
    let in_flight_max = usize::try_from(limits.calls_in_flight_max).unwrap_or(usize::MAX);
    if shared.in_flight.load(Ordering::Relaxed) >= request.priority.room(in_flight_max) {
        let message = request.priority.refused("of this node's clients", in_flight_max, "run");
        let failure = Failure::new(ErrorCode::Busy, message + " (limits.calls_in_flight_max)");
        return Err(failure.with("limit", in_flight_max).with("retry_after_ms", 50));
    }
    blobs::check_length(shared, Part::Input, request.input.len() as u64, false)?;
    let invalid = |field: &str, message: String| Err(Failure::new(ErrorCode::InvalidRequest, message).with("path", format!("/{field}")));
    if request.key.as_ref().is_some_and(|key| key.is_empty() || key.len() > KEY_BYTES_MAX || key.chars().any(char::is_control)) {
        return invalid("idempotency_key", format!("an idempotency key has 1 to {KEY_BYTES_MAX} printable characters"));
    }
    let timeout_max = Duration::from_millis(limits.call_timeout_ms_max);
    let zero = |timeout: &Option<Duration>| timeout.is_some_and(|timeout| timeout.is_zero());
    let timeouts = [("timeout_ms", request.timeout), ("first_chunk_timeout_ms", request.first_chunk), ("idle_timeout_ms", request.idle)];
    if let Some((field, _)) = timeouts.iter().find(|(_, timeout)| zero(timeout)) {
        return invalid(field, "a timeout is at least 1 ms".to_owned());
    }
    if request.timeout.is_some_and(|timeout| timeout > timeout_max) {
        return invalid("timeout_ms", format!("a timeout is at most {} ms (limits.call_timeout_ms_max)", timeout_max.as_millis()));
    }
    request.traceparent = request.traceparent.take().filter(|text| text.len() <= 128 && text.is_ascii());
    Ok(())
}

/// Gives a call what it has from its parent, if it has one: the chain, no more than the time that is left, and the token of its end.
fn in_turn(shared: &Shared, request: &mut InvokeRequest) -> Result<Option<CancellationToken>, Failure> {
    let Some(id) = request.parent else { return Ok(None) };
    let parent = shared.running.parent(shared.node(), id)?;
    if let Some(agent) = request.agent {
        chain::check(&parent.hops, agent)?;
    }
    let now = shared.mono();
    request.timeout = Some(deadline(shared, request, now).min(parent.deadline).saturating_sub(now));
    request.hops = parent.hops;
    Ok(Some(parent.cancel.child_token()))
}

/// Runs the call, or waits for the one that already runs under its key.
async fn once(
    shared: &Arc<Shared>,
    request: InvokeRequest,
    id: InvocationId,
    cancel: &CancellationToken,
) -> Result<Arc<InvokeReply>, Failure> {
    let Some(key) = request.key.clone() else {
        return tokio::select! {
            result = run(shared, &request, id) => result.map(Arc::new),
            () = cancel.cancelled() => Err(Failure::new(ErrorCode::Cancelled, "the call was cancelled")),
        };
    };
    let nobody = AgentId::from_public_key([0; 32]);
    let ask = Ask {
        key: Arc::new((format!("{}\n{key}", request.capability), nobody, shared.node())),
        call: Call { input: identity(&request), fence: request.fence, keep: None },
        durable: true,
        handover: None,
        deadline: deadline(shared, &request, shared.mono()),
        cancel,
    };
    let shared_run = Arc::clone(shared);
    let start = |stop: CancellationToken, _| async move {
        tokio::select! {
            result = run(&shared_run, &request, id) => result.map(Arc::new),
            () = stop.cancelled() => Err(Failure::new(ErrorCode::Cancelled, "nobody waited for the call any more")),
        }
    };
    shared.calls_by_key.once(ask, || {}, start).await
}

/// What must be the same in two calls with one key.
fn identity(request: &InvokeRequest) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    let chosen = (request.agent, request.version.as_ref(), &request.constraints);
    off_workers(request.input.len(), || hasher.update(format!("{chosen:?}\n").as_bytes()).update(&request.input));
    *hasher.finalize().as_bytes()
}

pub(super) fn deadline(shared: &Shared, request: &InvokeRequest, now: Duration) -> Duration {
    let default = Duration::from_millis(shared.config.limits.call_timeout_ms_default);
    now.saturating_add(request.timeout.unwrap_or(default))
}

/// Asks one agent. A watched call waits for the agent to accept it. Says also what the reader of its chunks saw and did.
pub(super) async fn attempt(
    shared: &Arc<Shared>,
    request: &InvokeRequest,
    id: InvocationId,
    candidate: &Candidate,
    watch: Option<Watch>,
    mut now: Duration,
    deadline: Duration,
) -> (Result<Success, AttemptFailure>, Reader) {
    let record = &candidate.entry.record;
    let refuse = |failure: Failure| (Err(AttemptFailure { failure, begun: false }), Reader::default());
    let Some(offered) = candidate.capability() else {
        return refuse(Failure::new(ErrorCode::Internal, "the candidate lost its capability"));
    };
    let is_here = record.node == shared.node();
    let mut output_schema = None;
    if !is_here && (offered.input_schema != ANYTHING || offered.output_schema != ANYTHING) {
        let wait = deadline.saturating_sub(now).min(SCHEMAS_WAIT_MAX);
        let hashes = [offered.input_schema, offered.output_schema];
        let fetch = schemas_of(shared, record.node, &hashes);
        let known = Box::pin(tokio::time::timeout(wait, fetch)).await.unwrap_or_default();
        let schema = |hash| known.iter().find(|(known, _)| *known == hash).and_then(|(_, known)| known.schema.clone());
        if let Some(schema) = schema(offered.input_schema)
            && let Err(failure) = check(&schema, &request.input, "input")
        {
            return refuse(failure);
        }
        output_schema = schema(offered.output_schema);
        now = shared.mono();
    }
    let wire = Box::new(Request {
        invocation: id,
        capability: offered.id.clone(),
        version: request.version.clone(),
        agent: record.agent,
        budget_ms: u64::try_from(deadline.saturating_sub(now).as_millis()).unwrap_or(u64::MAX),
        priority: request.priority,
        key: request.key.clone(),
        fence: request.fence,
        traceparent: request.traceparent.clone(),
        hops: request.hops.clone(),
        confirm: watch.is_some() || (request.key.is_none() && !offered.idempotent),
        window_bytes: 0,
        body: Body::Inline(match &request.context {
            Some(context) => off_workers(request.input.len(), || paired::given(&request.input, context)),
            None => request.input.clone(),
        }),
        with_context: request.context.is_some(),
    });
    let own = OwnSide::default();
    let (mut outcome, reader) = match &request.chunks {
        Some(chunks) => {
            let (sender, arriving) = mpsc::channel(1);
            let call = ask(shared, record.node, wire, deadline, Some(sender), watch, &own);
            let patience = stream::Patience::new(request, shared.clock.zero() + deadline);
            Box::pin(stream::pass_on(call, arriving, chunks, patience, &own)).await
        }
        None => (ask(shared, record.node, wire, deadline, None, watch, &own).await, Reader::default()),
    };
    let (own, untaken) = own.noted();
    let reader = Reader { own, untaken, ..reader };
    if let (Ok(success), Some(schema)) = (&outcome, &output_schema)
        && let Err(failure) = output_of(success, request.context.is_some()).and_then(|text| check(schema, &text, "output"))
    {
        // The work was done all the same, and is paid for.
        let failure = failure.retryable(true).with("units", success.units.clone());
        outcome = Err(AttemptFailure { failure, begun: true });
    }
    (outcome, reader)
}

fn check(schema: &crate::agents::schema::Schema, text: &[u8], what: &str) -> Result<(), Failure> {
    off_workers(schema.cost(text.len()), || check_inner(schema, text, what))
}

fn check_inner(schema: &crate::agents::schema::Schema, text: &[u8], what: &str) -> Result<(), Failure> {
    let value: Value =
        serde_json::from_slice(text).map_err(|error| Failure::new(ErrorCode::InvalidSchema, format!("the {what} is not JSON: {error}")))?;
    schema.check(&value).map_err(|faults| execute::schema_failure(what, &faults))
}

/// The output alone, also where it came beside what is to be written to a context.
fn output_of(success: &Success, with_context: bool) -> Result<Bytes, Failure> {
    let text = match &success.body {
        Body::Inline(text) => text,
        Body::Blob(_) => &Bytes::new(),
    };
    if !with_context {
        return Ok(text.clone());
    }
    let made = off_workers(text.len(), || paired::read_made(text));
    made.map(|(output, _)| output).map_err(|error| Failure::new(ErrorCode::InvalidSchema, error.to_string()))
}

/// Asks the agent here, or over a lane.
async fn ask(
    shared: &Arc<Shared>,
    node: NodeId,
    mut request: Box<Request>,
    deadline: Duration,
    chunks: Option<mpsc::Sender<Bytes>>,
    watch: Option<Watch>,
    own: &OwnSide,
) -> Result<Success, AttemptFailure> {
    if node == shared.node() {
        return Box::pin(execute::here(shared, request, deadline, chunks, watch)).await;
    }
    let refuse = |failure: Failure| AttemptFailure { failure, begun: false };
    let lane = match shared.lanes.get(node, request.priority) {
        Some(lane) => lane,
        None => Box::pin(own.holds_up(lane_to(shared, node, request.priority, deadline))).await.map_err(refuse)?,
    };
    let invocation = request.invocation;
    let (body, blob) = blobs::announced(shared, invocation, Part::Input, blobs::take_body(&mut request)).await;
    request.body = body;
    let place = match &blob {
        None => None,
        Some((head, _)) => {
            let place = place(shared, &mut request, node, head.blob.length_bytes, deadline);
            Some(Box::pin(own.holds_up(place)).await.map_err(refuse)?)
        }
    };
    let call =
        lane.call(request, deadline, chunks.as_ref(), watch, |outcome| with_output(shared, node, invocation, deadline, own, outcome));
    let outcome = match blob.zip(place) {
        None => call.await,
        Some(((head, bytes), place)) => {
            let push = async { Push::open(shared, node, place).await?.run(shared, head, bytes, Duration::ZERO).await };
            let push = own.sends(head.blob.length_bytes, push);
            Box::pin(with_input(&lane, call, push, own)).await
        }
    };
    settled(node, outcome)
}

/// A place for an input of this call on its way to `node`, before the call is sent.
async fn place(shared: &Shared, request: &mut Request, node: NodeId, bytes: u64, deadline: Duration) -> Result<Place, Failure> {
    let place = timeout_at(shared.clock.zero() + deadline, Place::wait(&shared.blobs, node, Part::Input, request.priority, bytes)).await;
    let place =
        place.unwrap_or_else(|_| Err(Failure::new(ErrorCode::Busy, "too many large inputs went to the agent's node until the deadline")));
    request.budget_ms = u64::try_from(deadline.saturating_sub(shared.mono()).as_millis()).unwrap_or(u64::MAX);
    place
}

/// Waits for the end of a call while its input is pushed.
async fn with_input(
    lane: &Lane,
    call: impl Future<Output = LaneOutcome>,
    push: impl Future<Output = Result<(), Failure>>,
    own: &OwnSide,
) -> LaneOutcome {
    let missed_at = Instant::now() + STREAM_WAIT_MAX;
    let mut call = std::pin::pin!(call);
    let pushed = tokio::select! {
        outcome = &mut call => return outcome,
        pushed = push => pushed,
    };
    let Err(failure) = pushed else { return call.await };
    // Whoever cannot take an input says why on the lane. Of whoever takes none without a word the agent cannot have begun, but he is no
    // better than one who does not answer.
    let said = timeout_at(missed_at.max(Instant::now()) + WORD_WAIT_MAX, call).await;
    said.unwrap_or_else(|_| {
        lane.on_untaken();
        own.on_untaken();
        LaneOutcome::Failed { failure: Failure::new(ErrorCode::Timeout, failure.message), begun: false }
    })
}

/// The end of a call with its output, also if that comes as a blob.
async fn with_output(
    shared: &Arc<Shared>,
    node: NodeId,
    invocation: InvocationId,
    deadline: Duration,
    own: &OwnSide,
    outcome: LaneOutcome,
) -> LaneOutcome {
    let LaneOutcome::Success(success @ Success { body: Body::Blob(_), .. }) = outcome else { return outcome };
    match Box::pin(fetched(shared, (node, invocation, Part::Output), success, deadline, own)).await {
        Ok(success) => LaneOutcome::Success(success),
        Err(AttemptFailure { failure, begun }) => LaneOutcome::Failed { failure, begun },
    }
}

/// An answer whose output comes as a blob, once it has come.
async fn fetched(shared: &Arc<Shared>, key: Key, success: Success, deadline: Duration, own: &OwnSide) -> Result<Success, AttemptFailure> {
    let (cancel, until) = (CancellationToken::new(), shared.clock.zero() + deadline);
    match blobs::bytes_of(shared, key, success.body, until, &cancel, own).await {
        Ok(text) => Ok(Success { body: Body::Inline(text), ..success }),
        Err(failure) => {
            // The agent has done its work, so nobody may read this as a call that was not begun.
            let lost = matches!(failure.code, ErrorCode::InvalidRequest | ErrorCode::Unavailable);
            let failure = if lost { Failure::new(ErrorCode::AgentFailed, failure.message).retryable(true) } else { failure };
            Err(AttemptFailure { failure: failure.with("outcome", "unknown"), begun: true })
        }
    }
}

fn settled(node: NodeId, outcome: LaneOutcome) -> Result<Success, AttemptFailure> {
    match outcome {
        LaneOutcome::Success(success) => Ok(success),
        LaneOutcome::Failed { failure, begun } => Err(AttemptFailure { failure, begun }),
        LaneOutcome::Lost { begun } => {
            let message = if begun {
                format!("node {} was lost while its agent worked; what it did is unknown", node.short())
            } else {
                format!("node {} was lost before its agent took the call", node.short())
            };
            let code = if begun { ErrorCode::AgentFailed } else { ErrorCode::Unavailable };
            let failure = Failure::new(code, message).with("outcome", if begun { "unknown" } else { "not_started" });
            Err(AttemptFailure { failure, begun })
        }
        LaneOutcome::TimedOut { begun } => {
            let failure = Failure::new(ErrorCode::Timeout, "the agent did not answer before the deadline");
            Err(AttemptFailure { failure, begun })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// MEAP-9: a call that was lost on its way and surely did not begin was no attempt that another one would have to be paid for; one that
    /// may have begun was.
    #[test]
    fn only_a_call_that_was_lost_before_it_could_begin_is_given_to_another_agent_at_no_cost() {
        let node = libp2p::PeerId::random().into();
        let failed = |outcome| settled(node, outcome).expect_err("it did not end well");
        let lost = failed(LaneOutcome::Lost { begun: false });
        assert_eq!((lost.failure.code, lost.begun, lost.costs_nothing()), (ErrorCode::Unavailable, false, true));
        assert_eq!(lost.failure.details["outcome"], "not_started");
        let unknown = failed(LaneOutcome::Lost { begun: true });
        assert_eq!((unknown.failure.code, unknown.begun, unknown.costs_nothing()), (ErrorCode::AgentFailed, true, false));
        assert_eq!(unknown.failure.details["outcome"], "unknown");
        for begun in [false, true] {
            assert!(!failed(LaneOutcome::TimedOut { begun }).costs_nothing());
            let failure = Failure::new(ErrorCode::Busy, "later");
            assert!(!failed(LaneOutcome::Failed { failure, begun }).costs_nothing());
        }
    }
}
