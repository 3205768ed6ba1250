//! A call from the side of the agent's node: whose agent, under which key, with what result.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::keyed::Ask;
use super::shared::{Counted, Shared, lock};
use crate::agents::{Agent, Invocation};
use crate::mesh::lanes::Executor;
use crate::model::{ErrorCode, Failure, NodeId};
use crate::proto::invocation::call::AttemptFailure;
use crate::wire::invocation::{HOPS_MAX, PAYLOAD_BYTES_MAX, Request, Success};

pub(super) use crate::agents::schema_failure;

/// The node's agents, for the calls of one peer, over however many lanes they come.
pub(super) struct AgentsHere {
    pub(super) shared: Arc<Shared>,
    /// Calls of this peer that run.
    pub(super) running: Arc<AtomicUsize>,
}

#[async_trait]
impl Executor for AgentsHere {
    async fn execute(
        &self,
        caller: NodeId,
        request: Request,
        deadline: Duration,
        accepted: oneshot::Sender<()>,
        cancel: CancellationToken,
    ) -> Result<Success, Failure> {
        let limits = &self.shared.config.limits;
        let running_max = usize::try_from(limits.calls_per_peer_max).unwrap_or(usize::MAX);
        let _running = Counted::new(&self.running);
        if self.running.load(Ordering::Relaxed) > running_max {
            let failure = Failure::new(ErrorCode::Busy, format!("{running_max} calls of this peer are running"));
            return Err(failure.with("limit", running_max).with("retry_after_ms", 50));
        }
        // A peer's deadline is clamped to what this node allows anybody.
        let longest = Duration::from_millis(limits.call_timeout_ms_max);
        let deadline = deadline.min(self.shared.mono().saturating_add(longest));
        execute(&self.shared, caller, request, deadline, Some(accepted), &cancel).await
    }
}

/// Has an agent of this node do a call of this node's own client.
pub(super) async fn here(shared: &Arc<Shared>, request: Request, deadline: Duration) -> Result<Success, AttemptFailure> {
    let (accept, mut accepted) = oneshot::channel();
    let cancel = CancellationToken::new();
    // Dropping this future drops the guard, which tells the agent to stop.
    let _guard = cancel.clone().drop_guard();
    let task = {
        let (shared, caller) = (Arc::clone(shared), shared.node());
        // The agent is told to stop by the token, and must be able to hear it after this future is gone.
        tokio::spawn(async move { execute(&shared, caller, request, deadline, Some(accept), &cancel).await })
    };
    let broke_off = |_| Err(Failure::new(ErrorCode::Internal, "the call broke off"));
    let result = task.await.unwrap_or_else(broke_off);
    result.map_err(|failure| AttemptFailure { failure, accepted: accepted.try_recv().is_ok() })
}

async fn execute(
    shared: &Arc<Shared>,
    caller: NodeId,
    request: Request,
    deadline: Duration,
    accepted: Option<oneshot::Sender<()>>,
    cancel: &CancellationToken,
) -> Result<Success, Failure> {
    let _serving = Counted::new(&shared.serving);
    let result = under_key(shared, caller, request, deadline, accepted, cancel).await;
    shared.metrics.call("agent", result.as_ref().map_or_else(|failure| failure.code.as_str(), |_| "success"));
    result
}

async fn under_key(
    shared: &Arc<Shared>,
    caller: NodeId,
    request: Request,
    deadline: Duration,
    accepted: Option<oneshot::Sender<()>>,
    cancel: &CancellationToken,
) -> Result<Success, Failure> {
    if request.hops.len() >= HOPS_MAX {
        return Err(Failure::new(ErrorCode::InvalidRequest, format!("the call has passed {HOPS_MAX} nodes")).with("limit", HOPS_MAX));
    }
    let agent = shared.registry.get(request.agent).ok_or_else(|| {
        let message = format!("agent {} is not on node {}", request.agent, shared.node().short());
        Failure::new(ErrorCode::AgentNotFound, message)
    })?;
    let Some(word) = request.key.clone() else { return run(shared, &agent, request, deadline, accepted, cancel).await };
    let ask = Ask {
        key: (caller, request.agent, format!("{}\n{word}", request.capability)),
        input: *blake3::hash(&request.payload).as_bytes(),
        deadline,
        cancel,
    };
    // Only one of the two tells the caller: whoever runs, when the agent takes it; whoever waits, at once.
    let accepted = Arc::new(Mutex::new(accepted));
    let waits = Arc::clone(&accepted);
    let joined = move || {
        if let Some(accepted) = lock(&waits).take() {
            let _ = accepted.send(());
        }
    };
    let here = Arc::clone(shared);
    let start = |stop: CancellationToken| async move {
        let accepted = lock(&accepted).take();
        run(&here, &agent, request, deadline, accepted, &stop).await
    };
    shared.results_by_key.once(ask, joined, start).await
}

async fn run(
    shared: &Shared,
    agent: &Agent,
    request: Request,
    deadline: Duration,
    accepted: Option<oneshot::Sender<()>>,
    cancel: &CancellationToken,
) -> Result<Success, Failure> {
    let invocation = Invocation {
        id: request.invocation,
        capability: request.capability,
        version: request.version,
        input: request.payload,
        deadline: shared.clock.zero() + deadline,
        key: request.key,
    };
    let output = agent.invoke(invocation, accepted, cancel).await?;
    if output.payload.len() > PAYLOAD_BYTES_MAX {
        let message = format!("the output has {} bytes, at most {PAYLOAD_BYTES_MAX} are allowed", output.payload.len());
        return Err(Failure::new(ErrorCode::PayloadTooLarge, message).with("limit", PAYLOAD_BYTES_MAX));
    }
    Ok(Success {
        units: output.units.map(|units| units.to_string()),
        execution_us: u64::try_from(output.took.as_micros()).unwrap_or(u64::MAX),
        payload: output.payload,
    })
}
