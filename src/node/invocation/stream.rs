//! A streamed answer on its way to the client: chunks are handed on as they come, and a pause that is too long ends the call.

use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use super::invoke::InvokeRequest;
use crate::model::{ErrorCode, Failure};
use crate::proto::invocation::call::AttemptFailure;
use crate::wire::invocation::Success;

/// How long a client waits for what.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    first: Option<Duration>,
    idle: Option<Duration>,
    deadline: Instant,
}

impl Patience {
    pub(super) fn new(request: &InvokeRequest, deadline: Instant) -> Self {
        Self { first: request.first_chunk, idle: request.idle, deadline }
    }
}

/// Waits for `call` and hands the chunks of its answer on to `client`, each before the end that follows it. Says whether there was any. A
/// client that takes nothing holds up the agent, not this node's memory.
pub(super) async fn pass_on(
    call: impl Future<Output = Result<Success, AttemptFailure>>,
    mut chunks: mpsc::Receiver<Bytes>,
    client: &mpsc::Sender<Bytes>,
    patience: Patience,
) -> (Result<Success, AttemptFailure>, bool) {
    let mut call = std::pin::pin!(call);
    let mut ended = None;
    let mut any = false;
    loop {
        let pause = if any { patience.idle } else { patience.first };
        let until = pause.map(|pause| Instant::now() + pause);
        let chunk = tokio::select! {
            biased;
            chunk = chunks.recv() => chunk,
            end = &mut call, if ended.is_none() => {
                ended = Some(end);
                continue;
            }
            () = sleep_until(until.unwrap_or(patience.deadline)), if ended.is_none() && until.is_some() => {
                let what = if any { "the next chunk of the answer" } else { "the first chunk of the answer" };
                let waited_ms = u64::try_from(pause.unwrap_or_default().as_millis()).unwrap_or(u64::MAX);
                let failure = Failure::new(ErrorCode::Timeout, format!("{what} did not come within {waited_ms} ms"));
                return (Err(AttemptFailure { failure: failure.with("timeout_ms", waited_ms), begun: true }), any);
            }
        };
        let Some(chunk) = chunk else { break };
        any = true;
        tokio::select! {
            // A client that has gone misses nothing.
            _ = client.send(chunk) => {}
            () = sleep_until(patience.deadline) => {
                let failure = Failure::new(ErrorCode::Timeout, "the client did not take the answer before the deadline");
                return (Err(AttemptFailure { failure, begun: true }), any);
            }
        }
    }
    let end = match ended {
        Some(end) => end,
        None => call.await,
    };
    (end, any)
}
