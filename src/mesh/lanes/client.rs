//! The calling end of a lane: a handle that many callers share, and the task behind it.

use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::{AsyncRead, AsyncWrite};
use libp2p::Stream;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until};

use super::io::{self, OUTPUT_HIGH_BYTES};
use super::{Observers, Tally};
use crate::model::{ErrorCode, Failure, NodeId, Priority};
use crate::proto::invocation::client::{Closed, Outcome, Output, State};
use crate::wire::invocation::{CHUNK_COST_MIN, Frame, Request, chunk_cost};

/// Calls that may wait to be taken by the task.
const COMMANDS_MAX: usize = 1_024;
/// Calls outstanding on one lane.
const PENDING_MAX: usize = 4_096;
/// Commands taken before the lane looks at its stream again.
const COMMANDS_PER_TURN: usize = 256;
/// Credit for the chunks of a call that wants them: what a round trip of a tenth of a second needs at 2.5 MB/s.
const WINDOW_BYTES: u64 = 256 * 1024;
/// Chunks that fit into the credit.
const CHUNKS_MAX: usize = (WINDOW_BYTES / CHUNK_COST_MIN) as usize;

enum Command {
    Call {
        id: u64,
        request: Box<Request>,
        deadline: Duration,
        reply: oneshot::Sender<Settled>,
        chunks: Option<mpsc::Sender<Bytes>>,
        watch: Option<oneshot::Sender<()>>,
    },
    Go {
        id: u64,
    },
    Taken {
        id: u64,
        cost: u64,
    },
    Cancel {
        id: u64,
    },
}

/// Who waits for a call.
struct Caller {
    id: u64,
    since: Duration,
    reply: oneshot::Sender<Settled>,
}

/// How a call ended on the lane, and how long after it was sent; without that it never was.
type Settled = (Outcome, Option<Duration>);

/// Who wants to know when the agent accepts a call.
#[derive(Debug)]
pub struct Watch {
    /// Told when it does.
    pub accepted: oneshot::Sender<()>,
    /// The agent begins when this comes, and never if it is dropped.
    pub go: oneshot::Receiver<()>,
}

/// Why a lane ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LaneEnd {
    /// The node no longer needs it, or its connection is gone.
    Closed,
    /// The other side fell silent while calls were outstanding.
    Silent,
    /// The other side broke the protocol.
    Violation(&'static str),
}

/// A lane to one node. Cheap to clone; calls on it may be outstanding by the thousand.
#[derive(Debug, Clone)]
pub struct Lane {
    node: NodeId,
    priority: Priority,
    commands: mpsc::Sender<Command>,
    ids: Arc<AtomicU64>,
    outstanding: Arc<AtomicUsize>,
    clock: Instant,
    tally: Arc<Tally>,
}

/// Tells the lane when a caller goes away before its answer.
struct CancelOnDrop<'a> {
    lane: &'a Lane,
    id: u64,
    armed: bool,
}

impl Drop for CancelOnDrop<'_> {
    fn drop(&mut self) {
        self.lane.outstanding.fetch_sub(1, Ordering::Relaxed);
        if !self.armed {
            return;
        }
        // Whoever had a thousand calls under way and takes them all back fills the queue; the rest of the word follows them.
        if let (Err(mpsc::error::TrySendError::Full(cancel)), Ok(runtime)) =
            (self.lane.commands.try_send(Command::Cancel { id: self.id }), Handle::try_current())
        {
            let commands = self.lane.commands.clone();
            runtime.spawn(async move { commands.send(cancel).await });
        }
    }
}

impl Lane {
    /// The calling end of `stream`, and the task that drives it. `clock` is the zero of every deadline.
    pub fn new(
        node: NodeId,
        priority: Priority,
        stream: Stream,
        clock: Instant,
        observers: Observers,
    ) -> (Self, impl Future<Output = LaneEnd> + Send) {
        let (commands, inbox) = mpsc::channel(COMMANDS_MAX);
        let (ids, outstanding, tally) = (Arc::default(), Arc::default(), Arc::clone(&observers.tally));
        let lane = Self { node, priority, commands, ids, outstanding, clock, tally };
        let (reader, writer) = io::split(stream, observers.foreground);
        let now = clock.elapsed();
        let machine = State::new(PENDING_MAX, now);
        let (chunks_by_id, watches_by_id, outbox, outputs) = (HashMap::new(), HashMap::new(), VecDeque::new(), Vec::new());
        let task =
            Task { reader, writer, inbox, machine, chunks_by_id, watches_by_id, outbox, outputs, clock, now, tally: observers.tally };
        (lane, task.run())
    }

    /// The node at the other end.
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// How urgent the calls on it are.
    pub fn priority(&self) -> Priority {
        self.priority
    }

    /// Whether the lane can take calls no more.
    pub fn is_closed(&self) -> bool {
        self.commands.is_closed()
    }

    /// Calls that callers of this handle wait for.
    pub fn outstanding(&self) -> usize {
        self.outstanding.load(Ordering::Relaxed)
    }

    /// Makes one call and waits for its end. The chunks of a streamed answer go to `chunks`, and the other side may send more as these are
    /// taken. A call that waits to be confirmed may be watched. What its end needs besides is done by `finish`, while chunks may still be handed
    /// on; only then it counts as good or bad. Dropping the future cancels the call, also at the other end.
    pub async fn call<F: Future<Output = Outcome>>(
        &self,
        mut request: Box<Request>,
        deadline: Duration,
        chunks: Option<&mpsc::Sender<Bytes>>,
        watch: Option<Watch>,
        finish: impl FnOnce(Outcome) -> F,
    ) -> Outcome {
        let id = self.ids.fetch_add(1, Ordering::Relaxed);
        let (reply, answer) = oneshot::channel();
        self.outstanding.fetch_add(1, Ordering::Relaxed);
        let mut guard = CancelOnDrop { lane: self, id, armed: false };
        request.window_bytes = if chunks.is_some() { WINDOW_BYTES } else { 0 };
        let (arriving, arrived) = chunks.map(|_| mpsc::channel(CHUNKS_MAX)).unzip();
        let (watch, go) = watch.map(|watch| (watch.accepted, watch.go)).unzip();
        match self.commands.try_send(Command::Call { id, request, deadline, reply, chunks: arriving, watch }) {
            Ok(()) => {}
            Err(mpsc::error::TrySendError::Closed(_)) => return Outcome::Lost { begun: false },
            Err(mpsc::error::TrySendError::Full(_)) => {
                let failure = Failure::new(ErrorCode::Busy, "too many calls wait for the lane to the agent's node");
                return Outcome::Failed { failure: failure.with("retry_after_ms", 20), begun: false };
            }
        }
        guard.armed = true;
        // The task settles every call that it took; without an answer it never took this one.
        let answer = async {
            let settled = match go {
                Some(go) => Box::pin(self.held(id, answer, go)).await,
                None => answer.await,
            };
            let (outcome, took) = settled.unwrap_or((Outcome::Lost { begun: false }, None));
            let outcome = finish(outcome).await;
            if let Some(took) = took {
                self.tally.on_end(&outcome, took);
            }
            outcome
        };
        let outcome = match chunks.zip(arrived) {
            Some((chunks, arrived)) => Box::pin(self.stream(id, deadline, answer, chunks, arrived)).await,
            None => answer.await,
        };
        guard.armed = false;
        outcome
    }

    /// Passes the word to begin on.
    async fn held(
        &self,
        id: u64,
        mut answer: oneshot::Receiver<Settled>,
        go: oneshot::Receiver<()>,
    ) -> Result<Settled, oneshot::error::RecvError> {
        tokio::select! {
            settled = &mut answer => return settled,
            went = go => if went.is_ok() {
                let _ = self.commands.send(Command::Go { id }).await;
            }
        }
        answer.await
    }

    /// Counts a call that was taken back because the other side did not take what belongs to it.
    pub fn on_untaken(&self) {
        self.tally.on_failed();
    }

    /// Hands the chunks of an answer on, each before the end that follows it.
    async fn stream(
        &self,
        id: u64,
        deadline: Duration,
        answer: impl Future<Output = Outcome>,
        chunks: &mpsc::Sender<Bytes>,
        mut arrived: mpsc::Receiver<Bytes>,
    ) -> Outcome {
        let mut answer = std::pin::pin!(answer);
        let mut ended = None;
        loop {
            let chunk = tokio::select! {
                biased;
                chunk = arrived.recv() => chunk,
                outcome = &mut answer, if ended.is_none() => {
                    ended = Some(outcome);
                    continue;
                }
            };
            // The lane drops its end of the channel with the call, so what is left in it comes before the end.
            let Some(chunk) = chunk else { break };
            let cost = chunk_cost(chunk.len());
            // Room is waited for rather than the sending, so that the chunk survives a good end that comes meanwhile.
            loop {
                tokio::select! {
                    biased;
                    room = chunks.reserve() => {
                        // Nobody reads any more: what is lost then is missed by nobody.
                        if let Ok(room) = room {
                            room.send(chunk);
                        }
                        break;
                    }
                    outcome = &mut answer, if ended.is_none() => match outcome {
                        Outcome::Success(_) => ended = Some(outcome),
                        // Whoever reads too slowly to hear of a failure in time hears of it now.
                        Outcome::Failed { .. } | Outcome::Lost { .. } | Outcome::TimedOut { .. } => return outcome,
                    },
                    () = sleep_until(self.clock + deadline) => return Outcome::TimedOut { begun: true },
                }
            }
            let _ = self.commands.send(Command::Taken { id, cost }).await;
        }
        match ended {
            Some(outcome) => outcome,
            None => answer.await,
        }
    }
}

struct Task<R, W> {
    reader: io::Reader<R>,
    writer: io::Writer<W>,
    inbox: mpsc::Receiver<Command>,
    machine: State<Caller>,
    chunks_by_id: HashMap<u64, mpsc::Sender<Bytes>>,
    watches_by_id: HashMap<u64, oneshot::Sender<()>>,
    /// Frames for which the writer has no room yet. A call whose request waits here has a deadline like any other.
    outbox: VecDeque<Frame>,
    outputs: Vec<Output<Caller>>,
    clock: Instant,
    /// When the input came that is handled.
    now: Duration,
    tally: Arc<Tally>,
}

impl<R: AsyncRead + Unpin + Send, W: AsyncWrite + Unpin + Send> Task<R, W> {
    async fn run(mut self) -> LaneEnd {
        let end = loop {
            if let Some(end) = self.step().await {
                break end;
            }
        };
        // Whoever still waits in the queue is told that the call was never sent.
        self.inbox.close();
        while let Ok(command) = self.inbox.try_recv() {
            if let Command::Call { reply, .. } = command {
                let _ = reply.send((Outcome::Lost { begun: false }, None));
            }
        }
        self.machine.on_closed(&mut self.outputs);
        let _ = self.apply();
        end
    }

    /// Waits for one thing and handles it. Returns how the lane ended, if it did.
    async fn step(&mut self) -> Option<LaneEnd> {
        let at = |offset: Duration| self.clock.checked_add(offset);
        let timer = self.machine.poll_timeout().and_then(at);
        let stuck = io::progress_deadline(&self.reader, &self.writer);
        let wake = [timer, stuck].into_iter().flatten().min();
        tokio::select! {
            biased;
            filled = self.reader.fill() => match filled {
                Ok(true) => self.on_bytes(),
                Ok(false) | Err(_) => return Some(LaneEnd::Closed),
            },
            command = self.inbox.recv() => {
                let Some(command) = command else { return Some(LaneEnd::Closed) };
                // Callers that are about to call are let in first: what is written at once costs little more than a single call. Even
                // one alone gains, since the connection that this wakes then runs here and not on another thread.
                tokio::task::yield_now().await;
                self.now = self.clock.elapsed();
                self.handle(command);
                for _ in 1..COMMANDS_PER_TURN {
                    match self.inbox.try_recv() {
                        Ok(command) => self.handle(command),
                        Err(_) => break,
                    }
                }
            }
            advanced = self.writer.advance(), if self.writer.is_dirty() => {
                if advanced.is_err() {
                    return Some(LaneEnd::Closed);
                }
                // While a slow link still takes in what waits, a ping is stuck behind it and its answer cannot be due.
                if self.writer.waiting() > 0 {
                    self.machine.on_alive(self.clock.elapsed());
                }
                while self.writer.waiting() < OUTPUT_HIGH_BYTES
                    && let Some(frame) = self.outbox.pop_front()
                {
                    self.write(&frame);
                }
            }
            () = sleep_until(wake.unwrap_or_else(Instant::now)), if wake.is_some() => {
                if stuck.is_some_and(|stuck| stuck <= Instant::now()) {
                    return Some(LaneEnd::Silent);
                }
                self.now = self.clock.elapsed();
                self.machine.handle_timeout(self.now, &mut self.outputs);
            }
        }
        self.apply()
    }

    fn on_bytes(&mut self) {
        let instant = Instant::now();
        self.now = instant.saturating_duration_since(self.clock);
        self.machine.on_alive(self.now);
        loop {
            match self.reader.frame(instant) {
                Ok(Some(frame)) => self.machine.on_frame(frame, self.now, &mut self.outputs),
                Ok(None) => break,
                Err(_) => {
                    self.machine.on_garbage(&mut self.outputs);
                    break;
                }
            }
        }
    }

    fn handle(&mut self, command: Command) {
        match command {
            Command::Call { id, request, deadline, reply, chunks, watch } => {
                if let Some(chunks) = chunks {
                    self.chunks_by_id.insert(id, chunks);
                }
                self.tally.on_sent();
                let caller = Caller { id, since: self.now, reply };
                self.machine.handle_call(id, request, caller, deadline, self.now, &mut self.outputs);
                if let Some(accepted) = watch {
                    self.watches_by_id.insert(id, accepted);
                    self.machine.handle_watch(id);
                }
            }
            Command::Go { id } => self.machine.handle_go(id, &mut self.outputs),
            Command::Taken { id, cost } => self.machine.handle_taken(id, cost, &mut self.outputs),
            Command::Cancel { id } => self.machine.handle_cancel(id, &mut self.outputs),
        }
    }

    fn send(&mut self, frame: Frame) {
        if self.outbox.is_empty() && self.writer.waiting() < OUTPUT_HIGH_BYTES {
            return self.write(&frame);
        }
        // What has not gone out need not be taken back.
        if let Frame::Cancel { id } = frame {
            let is_request = |waits: &Frame| matches!(waits, Frame::Request { id: waiting, .. } if *waiting == id);
            if let Some(at) = self.outbox.iter().position(is_request) {
                self.outbox.remove(at);
                return;
            }
        }
        self.outbox.push_back(frame);
    }

    fn write(&mut self, frame: &Frame) {
        if let (Err(error), Frame::Request { id, .. }) = (self.writer.push(frame), frame) {
            self.machine.handle_unsendable(*id, &error, &mut self.outputs);
        }
    }

    fn apply(&mut self) -> Option<LaneEnd> {
        let mut end = None;
        let mut outputs = std::mem::take(&mut self.outputs);
        for output in outputs.drain(..) {
            match output {
                Output::Send(frame) => self.send(frame),
                Output::Chunk(id, chunk) => {
                    // The credit is smaller than the channel, so it is never full; a caller that has gone misses nothing.
                    if let Some(chunks) = self.chunks_by_id.get(&id) {
                        let _ = chunks.try_send(chunk);
                    }
                }
                Output::Accepted(id) => {
                    if let Some(watch) = self.watches_by_id.remove(&id) {
                        let _ = watch.send(());
                    }
                }
                Output::Settle(Caller { id, since, reply }, outcome) => {
                    if !self.chunks_by_id.is_empty() {
                        self.chunks_by_id.remove(&id);
                    }
                    if !self.watches_by_id.is_empty() {
                        self.watches_by_id.remove(&id);
                    }
                    let _ = reply.send((outcome, Some(self.now.saturating_sub(since))));
                }
                Output::Close(Closed::Silent) => end = Some(LaneEnd::Silent),
                Output::Close(Closed::Violation(what)) => end = Some(LaneEnd::Violation(what)),
            }
        }
        if end.is_none() && !self.outputs.is_empty() {
            return self.apply();
        }
        // The next outputs find the room of these.
        self.outputs = outputs;
        end
    }
}
