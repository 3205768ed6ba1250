//! The answering end of a lane: takes requests, has them executed, sends one final frame for each.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use libp2p::Stream;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::io::{self, OUTPUT_HIGH_BYTES};
use crate::model::{Failure, NodeId};
use crate::proto::invocation::server::{Output, State};
use crate::wire::invocation::{Request, Success};

/// Finished calls that may wait for the lane's task.
const DONE_MAX: usize = 1_024;

/// Whoever does the work: the node, through its agents.
#[async_trait]
pub trait Executor: Send + Sync + 'static {
    /// Does what `caller` asks for. Sends on `accepted` once an agent has taken responsibility, returns the result, and ends soon after
    /// `cancel` is cancelled or `deadline` (since the start of the node) has passed.
    async fn execute(
        &self,
        caller: NodeId,
        request: Request,
        deadline: Duration,
        accepted: oneshot::Sender<()>,
        cancel: CancellationToken,
    ) -> Result<Success, Failure>;
}

enum Report {
    Accepted(u64),
    Done(u64, Result<Success, Failure>),
}

/// Drives the answering end until the lane is gone. Returns what the peer did wrong, if it did. Once `drain` is cancelled, new calls are
/// refused while running ones are still answered.
pub async fn serve(
    peer: NodeId,
    stream: Stream,
    executor: Arc<dyn Executor>,
    calls_max: usize,
    clock: Instant,
    drain: CancellationToken,
) -> Option<&'static str> {
    let (mut reader, mut writer) = io::split(stream);
    let (reports, mut inbox) = mpsc::channel(DONE_MAX);
    let mut machine = State::new(calls_max);
    let mut outputs = Vec::new();
    let mut cancels: BTreeMap<u64, CancellationToken> = BTreeMap::new();
    let mut draining = false;
    let violation = loop {
        let reading = writer.waiting() < OUTPUT_HIGH_BYTES;
        if !reading {
            // A frame that this side does not read cannot be blamed for its slowness.
            reader.partial_since = None;
        }
        let stuck = io::progress_deadline(&reader, &writer);
        tokio::select! {
            biased;
            Some(report) = inbox.recv() => {
                let mut next = Some(report);
                while let Some(report) = next {
                    match report {
                        Report::Accepted(id) => machine.handle_accepted(id, &mut outputs),
                        Report::Done(id, result) => {
                            cancels.remove(&id);
                            machine.handle_done(id, result, &mut outputs);
                        }
                    }
                    next = inbox.try_recv().ok();
                }
            }
            filled = reader.fill(), if reading => {
                if !matches!(filled, Ok(true)) {
                    break None;
                }
                let now = clock.elapsed();
                let malformed = loop {
                    match reader.frame(Instant::now()) {
                        Ok(Some(frame)) => machine.on_frame(frame, now, &mut outputs),
                        Ok(None) => break false,
                        Err(_) => break true,
                    }
                };
                if malformed {
                    break Some("a malformed frame");
                }
            }
            advanced = writer.advance(), if writer.is_dirty() => {
                if advanced.is_err() {
                    break None;
                }
            }
            () = drain.cancelled(), if !draining => {
                draining = true;
                machine.handle_drain();
            }
            () = sleep_until(stuck.unwrap_or_else(Instant::now)), if stuck.is_some() => {
                if io::progress_deadline(&reader, &writer).is_some_and(|stuck| stuck <= Instant::now()) {
                    break Some("no progress");
                }
            }
        }
        let mut violation = None;
        for output in outputs.drain(..) {
            match output {
                Output::Send(frame) => {
                    let too_large = writer.push(&frame).is_err();
                    if let (true, crate::wire::invocation::Frame::Result { id, .. }) = (too_large, &frame) {
                        let failure = Failure::new(crate::model::ErrorCode::PayloadTooLarge, "the output does not fit into a frame");
                        let _ = writer.push(&crate::wire::invocation::Frame::error(*id, &failure));
                    }
                }
                Output::Run { id, request, deadline } => {
                    let cancel = CancellationToken::new();
                    cancels.insert(id, cancel.clone());
                    tokio::spawn(run(Arc::clone(&executor), peer, id, *request, deadline, cancel, reports.clone()));
                }
                Output::Stop { id } => {
                    if let Some(cancel) = cancels.get(&id) {
                        cancel.cancel();
                    }
                }
                Output::Close(why) => violation = Some(why),
            }
        }
        if violation.is_some() {
            break violation;
        }
    };
    machine.on_closed(&mut outputs);
    for cancel in cancels.into_values() {
        cancel.cancel();
    }
    violation
}

async fn run(
    executor: Arc<dyn Executor>,
    peer: NodeId,
    id: u64,
    request: Request,
    deadline: Duration,
    cancel: CancellationToken,
    reports: mpsc::Sender<Report>,
) {
    let (accept, mut accepted) = oneshot::channel();
    let mut execution = executor.execute(peer, request, deadline, accept, cancel);
    let (result, told) = tokio::select! {
        biased;
        result = &mut execution => (result, false),
        Ok(()) = &mut accepted => {
            let _ = reports.send(Report::Accepted(id)).await;
            (execution.await, true)
        }
    };
    // A result speaks for itself; a failure must say whether the agent had taken the call.
    if !told && result.is_err() && accepted.try_recv().is_ok() {
        let _ = reports.send(Report::Accepted(id)).await;
    }
    let _ = reports.send(Report::Done(id, result)).await;
}
