//! A call from the side of the agent's node: whose agent, under which key, with what result.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;

use super::blobs::{self, Place, Push};
use super::kept::Begun;
use super::keyed::Ask;
use super::offers;
use super::own_side::OwnSide;
use crate::agents::{Agent, Confirm, Invocation, off_workers};
use crate::mesh::lanes::{Executing, Executor, Handover, Orders, Watch};
use crate::model::{ErrorCode, Failure, NodeId, Priority};
use crate::node::shared::{Counted, Shared, lock};
use crate::proto::invocation::call::AttemptFailure;
use crate::proto::invocation::chain;
use crate::proto::invocation::dedup::{Call, Key};
use crate::telemetry::Side;
use crate::wire::blob::{Head, Part};
use crate::wire::invocation::{Body, Request, Success};
use crate::wire::paired;

pub(super) use crate::agents::schema_failure;

/// How long the result of a task's step is kept after the deadline of the attempt (design/tasks.md).
const STEP_KEPT: Duration = Duration::from_secs(24 * 3_600);

/// How much earlier than the deadline a caller is told that there was no place for its output, unless it has less time in all.
const WORD_MAX: Duration = Duration::from_secs(1);

/// The node's agents, for the calls of one peer, over however many lanes they come.
pub(in crate::node) struct AgentsHere {
    pub(in crate::node) shared: Arc<Shared>,
    /// Calls of this peer that run.
    pub(in crate::node) running: Arc<AtomicUsize>,
}

impl Executor for AgentsHere {
    fn execute(self: Arc<Self>, caller: NodeId, request: Box<Request>, deadline: Duration, orders: Orders) -> Executing {
        Box::pin(async move { self.serve(caller, request, deadline, orders).await })
    }

    fn undelivered(&self, keys: Vec<Key>) {
        self.shared.results_by_key.undelivered(&keys);
    }
}

impl AgentsHere {
    async fn serve(
        &self,
        caller: NodeId,
        mut request: Box<Request>,
        deadline: Duration,
        mut orders: Orders,
    ) -> Result<Success, AttemptFailure> {
        self.shared.rates.peer(caller, || self.shared.mono()).map_err(not_begun)?;
        let limits = &self.shared.config.limits;
        let running_max = usize::try_from(limits.calls_per_peer_max).unwrap_or(usize::MAX);
        let (_running, _serving) = (Counted::new(&self.running), Counted::new(&self.shared.serving));
        if self.running.load(Ordering::Relaxed) > request.priority.room(running_max) {
            let message = request.priority.refused("of this peer", running_max, "run");
            let failure = Failure::new(ErrorCode::Busy, message + " (limits.calls_per_peer_max of the agent's node)");
            return Err(not_begun(failure.with("limit", running_max).with("retry_after_ms", 50)));
        }
        // A peer's deadline is clamped to what this node allows anybody.
        let longest = if request.fence.is_some() { limits.step_timeout_ms_max } else { limits.call_timeout_ms_max };
        let longest = Duration::from_millis(longest);
        let deadline = deadline.min(self.shared.mono().saturating_add(longest));
        let (invocation, priority) = (request.invocation, request.priority);
        if let Body::Blob(_) = request.body {
            let input = blobs::take_body(&mut request);
            // Boxed, like whatever else is rare on this path: a future is moved about at its full size.
            let until = self.shared.clock.zero() + deadline;
            let (key, own) = ((caller, invocation, Part::Input), OwnSide::default());
            let bytes = Box::pin(blobs::bytes_of(&self.shared, key, input, until, &orders.cancel, &own));
            request.body = Body::Inline(bytes.await.map_err(not_begun)?);
        }
        let (drained, cancel, handover) = (orders.drained.take(), orders.cancel.clone(), orders.handover.clone());
        let success = execute(&self.shared, caller, request, deadline, orders).await?;
        // A node that stops waits for the last chunk too, and a large output is not announced before it.
        if let Some(drained) = drained {
            tokio::select! {
                _ = drained => {}
                () = cancel.cancelled() => {}
            }
        }
        let (body, blob) = blobs::announced(&self.shared, invocation, Part::Output, success.body).await;
        if let Some(blob) = blob {
            let kept = handover.as_deref().and_then(Handover::kept);
            let pushed = Box::pin(self.push(caller, priority, blob, deadline, &cancel, kept.clone())).await;
            pushed.map_err(|failure| {
                self.undelivered(kept.into_iter().collect());
                // The agent has done its work, so nobody may read this as a call that was not begun.
                AttemptFailure { failure: failure.with("outcome", "unknown"), begun: true }
            })?;
        }
        Ok(Success { body, ..success })
    }

    /// Begins to push an output when the answer that announces it can go out at once, because it has a place and a substream. It ends with
    /// the deadline, past which nobody waits for it. What is `kept` of it goes to the outbox if it is not taken.
    async fn push(
        &self,
        caller: NodeId,
        priority: Priority,
        (head, bytes): (Head, Bytes),
        deadline: Duration,
        cancel: &CancellationToken,
        kept: Option<Key>,
    ) -> Result<(), Failure> {
        let shared = Arc::clone(&self.shared);
        let serving = Serving::new(&self.shared);
        let until = shared.clock.zero() + deadline;
        // The word that there was no place has to reach the caller before it gives up, and blames the agent.
        let in_time = until - (until.saturating_duration_since(Instant::now()) / 10).min(WORD_MAX);
        let ready = async {
            let place = Place::wait(&shared.blobs, caller, Part::Output, priority, head.blob.length_bytes).await?;
            Push::open(&shared, caller, place).await
        };
        let push = tokio::select! {
            biased;
            () = cancel.cancelled() => return Err(Failure::new(ErrorCode::Cancelled, "the call was cancelled")),
            push = ready => push?,
            () = sleep_until(in_time) => return Err(Failure::new(ErrorCode::Busy, "too many large outputs went to this caller until shortly before the deadline")),
        };
        tokio::spawn(async move {
            let _serving = serving;
            // The caller may have no room for it until its deadline.
            let patience = until.saturating_duration_since(Instant::now());
            match timeout_at(until, push.run(&shared, head, bytes, patience)).await {
                Ok(Ok(())) => return,
                Ok(Err(failure)) => tracing::debug!(invocation = %head.invocation, %failure, "an output was not taken"),
                Err(_) => tracing::debug!(invocation = %head.invocation, "an output was not taken before the deadline"),
            }
            shared.results_by_key.undelivered(kept.as_slice());
        });
        Ok(())
    }
}

/// Counts a call whose output is on its way: a node that stops waits until it was taken.
struct Serving(Arc<Shared>);

impl Serving {
    fn new(shared: &Arc<Shared>) -> Self {
        shared.serving.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(shared))
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.0.serving.fetch_sub(1, Ordering::Relaxed);
    }
}

fn not_begun(failure: Failure) -> AttemptFailure {
    AttemptFailure { failure, begun: false }
}

/// Has an agent of this node do a call of this node's own client.
pub(super) async fn here(
    shared: &Arc<Shared>,
    request: Box<Request>,
    deadline: Duration,
    chunks: Option<mpsc::Sender<Bytes>>,
    watch: Option<Watch>,
) -> Result<Success, AttemptFailure> {
    let cancel = CancellationToken::new();
    // Dropping this future drops the guard, which tells the agent to stop.
    let _guard = cancel.clone().drop_guard();
    let task = {
        let (shared, caller) = (Arc::clone(shared), shared.node());
        let orders = Orders { cancel, chunks, confirm: watch.map(|watch| (watch.accepted, watch.go)), drained: None, handover: None };
        // The agent is told to stop by the token, and must be able to hear it after this future is gone.
        tokio::spawn(async move {
            let _serving = Counted::new(&shared.serving);
            execute(&shared, caller, request, deadline, orders).await
        })
    };
    let broke_off = |_| Err(AttemptFailure { failure: Failure::new(ErrorCode::Internal, "the call broke off"), begun: true });
    task.await.unwrap_or_else(broke_off)
}

async fn execute(
    shared: &Arc<Shared>,
    caller: NodeId,
    request: Box<Request>,
    deadline: Duration,
    orders: Orders,
) -> Result<Success, AttemptFailure> {
    let result = under_key(shared, caller, request, deadline, orders).await;
    match &result {
        Ok(_) => shared.metrics.call_succeeded(Side::Agent),
        Err(failed) => shared.metrics.call_failed(Side::Agent, failed.failure.code.as_str()),
    }
    result
}

async fn under_key(
    shared: &Arc<Shared>,
    caller: NodeId,
    request: Box<Request>,
    deadline: Duration,
    orders: Orders,
) -> Result<Success, AttemptFailure> {
    chain::check_arrived(&request.hops, request.agent, caller).map_err(not_begun)?;
    let agent = shared.registry.get(request.agent).ok_or_else(|| {
        let message = format!("agent {} is not on node {}", request.agent, shared.node().short());
        not_begun(Failure::new(ErrorCode::AgentNotFound, message))
    })?;
    match request.key.clone() {
        None => run(shared, caller, &agent, request, deadline, orders, None).await,
        Some(word) => Box::pin(keyed(shared, caller, agent, word, request, deadline, orders)).await,
    }
}

/// Runs the call, or waits for the one that already runs under its key.
async fn keyed(
    shared: &Arc<Shared>,
    caller: NodeId,
    agent: Arc<Agent>,
    word: String,
    request: Box<Request>,
    deadline: Duration,
    mut orders: Orders,
) -> Result<Success, AttemptFailure> {
    let (cancel, handover) = (orders.cancel.clone(), orders.handover.take());
    // The owner of a task may be away for long before it asks for the result.
    let keep = request.fence.map(|_| deadline.saturating_sub(shared.mono()).saturating_add(STEP_KEPT));
    let key = Arc::new((format!("{}\n{word}", request.capability), request.agent, caller));
    let ask = Ask {
        key: Arc::clone(&key),
        call: Call { input: input_hash(&request).map_err(not_begun)?, fence: request.fence, keep },
        // Whoever calls an agent of its own node keeps the result on its own side.
        durable: caller != shared.node(),
        handover: handover.as_deref(),
        deadline,
        cancel: &cancel,
    };
    let begun = Arc::new(AtomicBool::new(false));
    let (joined, ran) = (Arc::clone(&begun), Arc::clone(&begun));
    let here = Arc::clone(shared);
    let confirm = Arc::new(Mutex::new(orders.confirm.take()));
    let own = Arc::clone(&confirm);
    let start = |stop: CancellationToken, begun: Option<Begun>| async move {
        let confirm = lock(&own).take();
        let result = run(&here, caller, &agent, request, deadline, Orders { cancel: stop, confirm, ..orders }, begun).await;
        result.map_err(|failed| {
            ran.fetch_or(failed.begun, Ordering::Relaxed);
            failed.failure
        })
    };
    // Whoever waits for somebody else's run cannot know that it has not begun; it has been accepted, so this one is as well.
    let join = || {
        joined.store(true, Ordering::Relaxed);
        if let Some((accepted, _)) = lock(&confirm).take() {
            let _ = accepted.send(());
        }
    };
    let result = shared.results_by_key.once(ask, join, start).await;
    if let Some(handover) = handover.as_ref().filter(|_| result.is_ok())
        && !handover.handle_kept(Arc::clone(&key))
    {
        shared.results_by_key.undelivered(&[key]);
    }
    result.map_err(|failure| {
        // Somebody else gave up the run that this call had joined, which is no word on this call.
        let given_up = failure.code == ErrorCode::Cancelled && !cancel.is_cancelled();
        let lost = || Failure::new(ErrorCode::Unavailable, "the call that ran under this key was given up").with("outcome", "unknown");
        AttemptFailure { failure: if given_up { lost() } else { failure }, begun: begun.load(Ordering::Relaxed) }
    })
}

/// What must be the same in two calls with one key. A context is not: it goes on while attempts are repeated.
fn input_hash(request: &Request) -> Result<[u8; 32], Failure> {
    match &request.body {
        Body::Inline(bytes) => off_workers(bytes.len(), || {
            let hash = |input: &[u8]| *blake3::hash(input).as_bytes();
            if request.with_context { Ok(hash(&given(bytes)?.0)) } else { Ok(hash(bytes)) }
        }),
        Body::Blob(blob) => Ok(blob.hash),
    }
}

fn given(body: &Bytes) -> Result<(Bytes, Bytes), Failure> {
    paired::read_given(body).map_err(|error| Failure::new(ErrorCode::InvalidRequest, error.to_string()))
}

async fn run(
    shared: &Shared,
    caller: NodeId,
    agent: &Agent,
    request: Box<Request>,
    deadline: Duration,
    orders: Orders,
    begun: Option<Begun>,
) -> Result<Success, AttemptFailure> {
    let entered = shared.running.enter(agent, caller, &request, deadline, &orders.cancel);
    let Request { invocation, capability, version, key, priority, body, with_context, .. } = *request;
    let Body::Inline(input) = body else {
        return Err(not_begun(Failure::new(ErrorCode::Internal, "the input has not been fetched")));
    };
    let (input, context) = if with_context {
        let (input, context) = off_workers(input.len(), || given(&input)).map_err(not_begun)?;
        (input, Some(context))
    } else {
        (input, None)
    };
    let limit = agent.checked().definition.rate_limit;
    shared.rates.agent(agent.id(), limit, caller, || shared.mono()).map_err(not_begun)?;
    let invocation = Invocation {
        id: invocation,
        capability: capability.clone(),
        version,
        input,
        context,
        deadline: shared.clock.zero() + deadline,
        key,
        priority,
        confirm: orders.confirm.map(|(ready, go)| Confirm { ready, go }),
        begun,
        chunks: orders.chunks,
    };
    let result = agent.invoke(invocation, &orders.cancel).await;
    drop(entered);
    let output = result.map_err(|failed| {
        // Only now is it known; asked the other way round, whoever is over the rate could take places in the agent's line.
        if failed.failure.code == ErrorCode::Busy && !failed.begun {
            shared.rates.agent_was_busy(agent.id(), limit);
        }
        AttemptFailure { failure: failed.failure, begun: failed.begun }
    })?;
    offers::on_run(shared, agent.id(), &capability, output.took);
    let body = if with_context { paired::made(&output.payload, output.context_ops.as_deref()) } else { output.payload };
    let checked = blobs::check_length(shared, Part::Output, body.len() as u64, true);
    checked.map_err(|failure| AttemptFailure { failure, begun: true })?;
    Ok(Success {
        units: output.units.map(|units| units.to_string()),
        execution_us: u64::try_from(output.took.as_micros()).unwrap_or(u64::MAX),
        body: Body::Inline(body),
    })
}
