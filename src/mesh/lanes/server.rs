//! The answering end of a lane: takes requests, has them executed, sends one final frame for each.
//!
//! A call is polled once where its bytes arrived: what is answered without waiting (the larger part of the calls of quick agents) never
//! costs a task of its own. Everything else goes on as a task that reports back.
//!
//! When the lane ends, whoever does the work is told which results of tasks' steps may not have been read ([`Handover`]).

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use libp2p::Stream;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::Observers;
use super::io::{self, OUTPUT_HIGH_BYTES};
use crate::model::{ErrorCode, Failure, NodeId};
use crate::proto::invocation::call::AttemptFailure;
use crate::proto::invocation::dedup::Key;
use crate::proto::invocation::delivery;
use crate::proto::invocation::server::{Output, State};
use crate::wire::invocation::{Body, Frame, Request, Success};

/// Finished calls and chunks that may wait for the lane's task.
const REPORTS_MAX: usize = 1_024;
/// Bodies up to this size are looked at where they arrive; larger ones would hold up the calls behind them.
const INLINE_WORK_BYTES_MAX: usize = 4 * 1024;

/// What goes with a call besides its request.
#[derive(Debug)]
pub struct Orders {
    /// Cancelled when the caller no longer waits.
    pub cancel: CancellationToken,
    /// Where the chunks of the answer go, if the caller wants them.
    pub chunks: Option<mpsc::Sender<Bytes>>,
    /// To be told once the agent is free, and what to wait for before it begins, if the caller wants to confirm.
    pub confirm: Option<(oneshot::Sender<()>, oneshot::Receiver<()>)>,
    /// Ends once all chunks of the answer are on their way, if the caller wants them.
    pub drained: Option<oneshot::Receiver<()>>,
    /// What the lane is told of the result, and tells of its own end, if the call is the step of a task.
    pub handover: Option<Arc<Handover>>,
}

/// What a lane and whoever works for it tell each other of the step of a task.
#[derive(Debug, Default)]
pub struct Handover {
    kept: OnceLock<Key>,
    closed: AtomicBool,
    lost: AtomicBool,
}

impl Handover {
    /// The result is kept under this key, and given to the lane. False if the lane is gone already.
    pub fn handle_kept(&self, key: Key) -> bool {
        // Nobody keeps a second result of one call.
        let _ = self.kept.set(key);
        !self.closed.load(Ordering::SeqCst)
    }

    /// The key of the result, once it is given to the lane.
    pub fn kept(&self) -> Option<Key> {
        self.kept.get().cloned()
    }

    /// Whether the call is cancelled not by its owner's will but by the end of the lane, after it was told to begin.
    pub fn is_lost(&self) -> bool {
        self.lost.load(Ordering::SeqCst)
    }

    /// The lane is gone. The key of the result, if there is one that it was given and did not write.
    fn on_closed(&self, is_lost: bool) -> Option<Key> {
        self.lost.store(is_lost, Ordering::SeqCst);
        self.closed.store(true, Ordering::SeqCst);
        self.kept()
    }
}

/// Whoever does the work: the node, through its agents.
pub trait Executor: Send + Sync + 'static {
    /// Does what `caller` asks for, returns the result, and ends soon after it is cancelled or `deadline` (since the start of the node)
    /// has passed.
    fn execute(self: Arc<Self>, caller: NodeId, request: Box<Request>, deadline: Duration, orders: Orders) -> Executing;

    /// The lane is gone, and the results that are kept under these keys may not have reached its other end.
    fn undelivered(&self, keys: Vec<Key>);
}

/// A call that is being done.
pub type Executing = BoxFuture<'static, Result<Success, AttemptFailure>>;

enum Report {
    Accepted(u64),
    Chunk(u64, Bytes),
    Done(u64, Result<Success, AttemptFailure>),
}

/// What the lane's task holds of a call that runs.
struct Call {
    cancel: CancellationToken,
    go: Option<oneshot::Sender<()>>,
    /// One permit per chunk that may be reported.
    next: Option<Arc<Semaphore>>,
    handover: Option<Arc<Handover>>,
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
    observers: Observers,
) -> Option<&'static str> {
    let (mut reader, mut writer) = io::split(stream, observers.foreground);
    let (reports, mut inbox) = mpsc::channel(REPORTS_MAX);
    let mut lane = Answering {
        peer,
        executor,
        clock,
        reports,
        machine: State::new(calls_max),
        delivery: delivery::State::default(),
        calls_by_id: HashMap::new(),
        outputs: Vec::new(),
        taken: Vec::new(),
    };
    let mut draining = false;
    let violation = loop {
        let reading = writer.waiting() < OUTPUT_HIGH_BYTES;
        if !reading {
            // A frame that this side does not read cannot be blamed for its slowness.
            reader.partial_since = None;
        }
        let stuck = io::progress_deadline(&reader, &writer);
        let timer = lane.machine.poll_timeout().and_then(|at| clock.checked_add(at));
        let wake = [timer, stuck].into_iter().flatten().min();
        tokio::select! {
            biased;
            Some(report) = inbox.recv() => {
                lane.on_report(report);
                while let Ok(report) = inbox.try_recv() {
                    lane.on_report(report);
                }
            }
            filled = reader.fill(), if reading => {
                if !matches!(filled, Ok(true)) {
                    break None;
                }
                let instant = Instant::now();
                let now = instant.saturating_duration_since(clock);
                lane.delivery.on_heard(now);
                let malformed = loop {
                    match reader.frame(instant) {
                        Ok(Some(frame)) => {
                            if matches!(frame, Frame::Request { .. }) {
                                observers.tally.on_received();
                            }
                            lane.machine.on_frame(frame, now, &mut lane.outputs);
                        }
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
                lane.machine.handle_drain();
            }
            () = sleep_until(wake.unwrap_or_else(Instant::now)), if wake.is_some() => {
                if io::progress_deadline(&reader, &writer).is_some_and(|stuck| stuck <= Instant::now()) {
                    break Some("no progress");
                }
                lane.machine.handle_timeout(clock.elapsed(), &mut lane.outputs);
            }
        }
        if let Some(violation) = lane.apply(&mut writer) {
            break Some(violation);
        }
    };
    lane.machine.on_closed(&mut lane.outputs);
    let mut undelivered = lane.delivery.on_closed();
    for call in lane.calls_by_id.into_values() {
        // One that was not told to begin begins under the next attempt, which has a word of its own to give.
        undelivered.extend(call.handover.and_then(|handover| handover.on_closed(call.go.is_none())));
        call.cancel.cancel();
    }
    if !undelivered.is_empty() {
        lane.executor.undelivered(undelivered);
    }
    violation
}

struct Answering {
    peer: NodeId,
    executor: Arc<dyn Executor>,
    clock: Instant,
    reports: mpsc::Sender<Report>,
    machine: State,
    delivery: delivery::State,
    calls_by_id: HashMap<u64, Call>,
    outputs: Vec<Output>,
    /// Room for the outputs that are carried out.
    taken: Vec<Output>,
}

impl Answering {
    fn on_report(&mut self, report: Report) {
        let now = self.clock.elapsed();
        match report {
            Report::Accepted(id) => self.machine.handle_accepted(id, now, &mut self.outputs),
            Report::Chunk(id, chunk) => self.machine.handle_chunk(id, chunk, now, &mut self.outputs),
            Report::Done(id, result) => self.done(id, result),
        }
    }

    fn done(&mut self, id: u64, result: Result<Success, AttemptFailure>) {
        let handover = self.calls_by_id.remove(&id).and_then(|call| call.handover);
        if let Some(key) = handover.and_then(|handover| handover.kept()).filter(|_| result.is_ok()) {
            self.delivery.handle_written(key, self.clock.elapsed());
        }
        self.machine.handle_done(id, result, &mut self.outputs);
    }

    /// Carries out what the machine wants, until it wants nothing more. Returns what the peer did wrong, if it did.
    fn apply<W: futures::AsyncWrite + Unpin>(&mut self, writer: &mut io::Writer<W>) -> Option<&'static str> {
        let mut violation = None;
        let mut outputs = std::mem::take(&mut self.taken);
        while !self.outputs.is_empty() {
            std::mem::swap(&mut self.outputs, &mut outputs);
            for output in outputs.drain(..) {
                match output {
                    Output::Send(frame) => send(writer, &frame),
                    Output::Run { id, request, deadline } => self.run(id, request, deadline),
                    Output::Go { id } => {
                        if let Some(go) = self.calls_by_id.get_mut(&id).and_then(|call| call.go.take()) {
                            let _ = go.send(());
                        }
                    }
                    Output::Next { id } => {
                        if let Some(next) = self.calls_by_id.get(&id).and_then(|call| call.next.as_ref()) {
                            next.add_permits(1);
                        }
                    }
                    Output::Stop { id } => {
                        if let Some(call) = self.calls_by_id.get(&id) {
                            call.cancel.cancel();
                        }
                    }
                    Output::Close(why) => violation = Some(why),
                }
            }
        }
        self.taken = outputs;
        violation
    }

    fn run(&mut self, id: u64, request: Box<Request>, deadline: Duration) {
        let cancel = CancellationToken::new();
        let handover = request.fence.map(|_| Arc::<Handover>::default());
        let quick = matches!(&request.body, Body::Inline(bytes) if bytes.len() <= INLINE_WORK_BYTES_MAX);
        if !request.confirm && request.window_bytes == 0 {
            let orders = Orders { cancel: cancel.clone(), chunks: None, confirm: None, drained: None, handover: handover.clone() };
            let mut execution = Arc::clone(&self.executor).execute(self.peer, request, deadline, orders);
            let ended = if quick { execution.as_mut().now_or_never() } else { None };
            if handover.is_some() || ended.is_none() {
                self.calls_by_id.insert(id, Call { cancel, go: None, next: None, handover });
            }
            if let Some(result) = ended {
                return self.done(id, result);
            }
            let reports = self.reports.clone();
            tokio::spawn(async move {
                let result = execution.await;
                let _ = reports.send(Report::Done(id, result)).await;
            });
            return;
        }
        let (ready, is_ready) = oneshot::channel();
        let (go, gone) = oneshot::channel();
        let confirm = request.confirm.then_some((ready, gone));
        let passed_on = (request.window_bytes > 0).then(|| {
            let ((chunks, arriving), (draining, drained)) = (mpsc::channel(1), oneshot::channel());
            (chunks, drained, (arriving, Arc::new(Semaphore::new(1)), draining))
        });
        let (chunks, drained, arriving) =
            passed_on.map_or((None, None, None), |(chunks, drained, arriving)| (Some(chunks), Some(drained), Some(arriving)));
        let next = arriving.as_ref().map(|(_, next, _)| Arc::clone(next));
        let orders = Orders { cancel: cancel.clone(), chunks, confirm, drained, handover: handover.clone() };
        self.calls_by_id.insert(id, Call { cancel: cancel.clone(), go: Some(go), next, handover });
        let (executor, peer, reports) = (Arc::clone(&self.executor), self.peer, self.reports.clone());
        // In a box, since a task is moved about at its full size.
        tokio::spawn(Box::pin(async move {
            let tell = async {
                if is_ready.await.is_ok() {
                    let _ = reports.send(Report::Accepted(id)).await;
                }
            };
            let pass_on = async {
                if let Some((arriving, next, draining)) = arriving {
                    pass_on(id, arriving, &next, &reports, draining, &cancel).await;
                }
            };
            let ((), (), result) = tokio::join!(tell, pass_on, executor.execute(peer, request, deadline, orders));
            let _ = reports.send(Report::Done(id, result)).await;
        }));
    }
}

/// Reports chunks one at a time, each when the one before it is on its way. Drops `draining` when the last one is, if anybody waits for that.
async fn pass_on(
    id: u64,
    mut chunks: mpsc::Receiver<Bytes>,
    next: &Semaphore,
    reports: &mpsc::Sender<Report>,
    mut draining: oneshot::Sender<()>,
    cancel: &CancellationToken,
) {
    let passing = async {
        while let Some(chunk) = chunks.recv().await {
            let Ok(permit) = next.acquire().await else { return };
            permit.forget();
            let _ = reports.send(Report::Chunk(id, chunk)).await;
        }
        tokio::select! {
            _ = next.acquire() => {}
            () = draining.closed() => {}
        }
    };
    tokio::select! {
        () = passing => {}
        // The agent may go on, for others who wait under the same key; this caller's end does not wait for theirs.
        () = cancel.cancelled() => {}
    }
}

fn send<W: futures::AsyncWrite + Unpin>(writer: &mut io::Writer<W>, frame: &Frame) {
    let too_large = writer.push(frame).is_err();
    if let (true, Frame::Result { id, .. }) = (too_large, frame) {
        let failure = Failure::new(ErrorCode::PayloadTooLarge, "the output does not fit into a frame");
        let _ = writer.push(&Frame::error(*id, true, &failure));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::AgentId;

    /// F10: whichever comes first, the end of the lane or the result, one side learns that it was not delivered.
    #[test]
    fn a_result_and_the_end_of_its_lane_do_not_miss_each_other() {
        let node: NodeId = libp2p::PeerId::random().into();
        let key: Key = Arc::new(("k".to_owned(), AgentId::from_public_key([1; 32]), node));
        let first_kept = Handover::default();
        assert!(first_kept.handle_kept(Arc::clone(&key)) && !first_kept.is_lost());
        assert_eq!(first_kept.on_closed(true), Some(Arc::clone(&key)));
        let first_closed = Handover::default();
        assert_eq!(first_closed.on_closed(true), None);
        assert!(first_closed.is_lost() && !first_closed.handle_kept(key));
        let not_begun = Handover::default();
        assert_eq!((not_begun.on_closed(false), not_begun.is_lost()), (None, false));
    }
}
