//! The calling end of a lane: a handle that many callers share, and the task behind it.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use futures::{AsyncRead, AsyncWrite};
use libp2p::Stream;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until};

use super::io::{self, OUTPUT_HIGH_BYTES};
use crate::model::{ErrorCode, Failure, NodeId};
use crate::proto::invocation::client::{Closed, Outcome, Output, State};
use crate::wire::invocation::{Frame, Request};

/// Calls that may wait to be taken by the task.
const COMMANDS_MAX: usize = 1_024;
/// Calls outstanding on one lane.
const PENDING_MAX: usize = 4_096;
/// Commands taken before the lane looks at its stream again.
const COMMANDS_PER_TURN: usize = 256;

enum Command {
    Call { token: u64, request: Box<Request>, deadline: Duration, reply: oneshot::Sender<Outcome> },
    Cancel { token: u64 },
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
    commands: mpsc::Sender<Command>,
    tokens: Arc<AtomicU64>,
    outstanding: Arc<AtomicUsize>,
}

/// Tells the lane when a caller goes away before its answer.
struct CancelOnDrop<'a> {
    lane: &'a Lane,
    token: u64,
    armed: bool,
}

impl Drop for CancelOnDrop<'_> {
    fn drop(&mut self) {
        self.lane.outstanding.fetch_sub(1, Ordering::Relaxed);
        if self.armed {
            // With the queue full the deadline ends the call instead.
            let _ = self.lane.commands.try_send(Command::Cancel { token: self.token });
        }
    }
}

impl Lane {
    /// The calling end of `stream`, and the task that drives it. `clock` is the zero of every deadline.
    pub fn new(node: NodeId, stream: Stream, clock: Instant) -> (Self, impl Future<Output = LaneEnd> + Send) {
        let (commands, inbox) = mpsc::channel(COMMANDS_MAX);
        let lane = Self { node, commands, tokens: Arc::default(), outstanding: Arc::default() };
        let (reader, writer) = io::split(stream);
        let machine = State::new(PENDING_MAX, clock.elapsed());
        let task = Task { reader, writer, inbox, machine, ids_by_token: BTreeMap::new(), outputs: Vec::new(), clock };
        (lane, task.run())
    }

    /// The node at the other end.
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// Whether the lane can take calls no more.
    pub fn is_closed(&self) -> bool {
        self.commands.is_closed()
    }

    /// Calls that callers of this handle wait for.
    pub fn outstanding(&self) -> usize {
        self.outstanding.load(Ordering::Relaxed)
    }

    /// Makes one call and waits for its end. Dropping the future cancels the call, also at the other end.
    pub async fn call(&self, request: Request, deadline: Duration) -> Outcome {
        let token = self.tokens.fetch_add(1, Ordering::Relaxed);
        let (reply, answer) = oneshot::channel();
        self.outstanding.fetch_add(1, Ordering::Relaxed);
        let mut guard = CancelOnDrop { lane: self, token, armed: false };
        match self.commands.try_send(Command::Call { token, request: Box::new(request), deadline, reply }) {
            Ok(()) => {}
            Err(mpsc::error::TrySendError::Closed(_)) => return Outcome::Lost { accepted: false },
            Err(mpsc::error::TrySendError::Full(_)) => {
                let failure = Failure::new(ErrorCode::Busy, "too many calls wait for the lane to the agent's node");
                return Outcome::Failed { failure: failure.with("retry_after_ms", 20), accepted: false };
            }
        }
        guard.armed = true;
        // The task settles every call that it took; without an answer it never took this one.
        let outcome = answer.await.unwrap_or(Outcome::Lost { accepted: false });
        guard.armed = false;
        outcome
    }
}

struct Task<R, W> {
    reader: io::Reader<R>,
    writer: io::Writer<W>,
    inbox: mpsc::Receiver<Command>,
    machine: State<(u64, oneshot::Sender<Outcome>)>,
    ids_by_token: BTreeMap<u64, u64>,
    outputs: Vec<Output<(u64, oneshot::Sender<Outcome>)>>,
    clock: Instant,
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
                let _ = reply.send(Outcome::Lost { accepted: false });
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
        let takes_calls = self.writer.waiting() < OUTPUT_HIGH_BYTES;
        tokio::select! {
            biased;
            filled = self.reader.fill() => match filled {
                Ok(true) => self.on_bytes(),
                Ok(false) | Err(_) => return Some(LaneEnd::Closed),
            },
            command = self.inbox.recv(), if takes_calls => {
                let Some(command) = command else { return Some(LaneEnd::Closed) };
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
            }
            () = sleep_until(wake.unwrap_or_else(Instant::now)), if wake.is_some() => {
                if stuck.is_some_and(|stuck| stuck <= Instant::now()) {
                    return Some(LaneEnd::Silent);
                }
                self.machine.handle_timeout(self.clock.elapsed(), &mut self.outputs);
            }
        }
        self.apply()
    }

    fn on_bytes(&mut self) {
        let now = self.clock.elapsed();
        self.machine.on_alive(now);
        loop {
            match self.reader.frame(Instant::now()) {
                Ok(Some(frame)) => self.machine.on_frame(frame, now, &mut self.outputs),
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
            Command::Call { token, request, deadline, reply } => {
                let id = self.machine.handle_call(*request, (token, reply), deadline, self.clock.elapsed(), &mut self.outputs);
                if let Some(id) = id {
                    self.ids_by_token.insert(token, id);
                }
            }
            Command::Cancel { token } => {
                if let Some(id) = self.ids_by_token.get(&token) {
                    self.machine.handle_cancel(*id, &mut self.outputs);
                }
            }
        }
    }

    fn apply(&mut self) -> Option<LaneEnd> {
        let mut end = None;
        for output in std::mem::take(&mut self.outputs) {
            match output {
                Output::Send(frame) => {
                    if let (Err(error), Frame::Request { id, .. }) = (self.writer.push(&frame), &frame) {
                        self.machine.handle_unsendable(*id, &error, &mut self.outputs);
                    }
                }
                Output::Settle((token, reply), outcome) => {
                    self.ids_by_token.remove(&token);
                    let _ = reply.send(outcome);
                }
                Output::Close(Closed::Silent) => end = Some(LaneEnd::Silent),
                Output::Close(Closed::Violation(what)) => end = Some(LaneEnd::Violation(what)),
            }
        }
        if end.is_none() && !self.outputs.is_empty() { self.apply() } else { end }
    }
}
