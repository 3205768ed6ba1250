//! The calling end of a lane: which calls are outstanding, whether the other side is still there.
//!
//! Each call that is taken is settled once: by its final frame, by its deadline, by its caller's cancel, or with the lane. While calls
//! are outstanding and nothing arrives, the other side is asked for a sign of life every half second; two seconds of silence end the
//! lane. One late reply to each call that was settled here is harmless; a reply to no call, or a frame that only callers send, ends the lane.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::model::{ErrorCode, Failure};
use crate::wire::invocation::{Frame, Request, Success};

/// Silence after which a sign of life is asked for.
pub const PING_AFTER: Duration = Duration::from_millis(500);
/// Silence after which the other side is taken for dead.
pub const DEAD_AFTER: Duration = Duration::from_millis(2_000);

/// How a call ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// The agent answered.
    Success(Success),
    /// The other side said no, or that it went wrong.
    Failed {
        /// Why.
        failure: Failure,
        /// Whether it had taken responsibility.
        accepted: bool,
    },
    /// The lane ended first.
    Lost {
        /// Whether the other side had taken responsibility.
        accepted: bool,
    },
    /// The deadline came first.
    TimedOut {
        /// Whether the other side had taken responsibility.
        accepted: bool,
    },
}

/// What the shell must do.
#[derive(Debug, Clone, PartialEq)]
pub enum Output<T> {
    /// Write this frame.
    Send(Frame),
    /// Give this outcome to whoever waits.
    Settle(T, Outcome),
    /// Close the lane; everything outstanding has been settled.
    Close(Closed),
}

/// Why a lane is closed from this end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Closed {
    /// Nothing was heard for [`DEAD_AFTER`] while calls were outstanding.
    Silent,
    /// The other side broke the protocol.
    Violation(&'static str),
}

#[derive(Debug)]
struct Pending<T> {
    token: T,
    deadline: Duration,
    accepted: bool,
}

/// The calling end. `T` is what the shell needs to answer its caller.
#[derive(Debug)]
pub struct State<T> {
    pending_by_id: BTreeMap<u64, Pending<T>>,
    ids_by_deadline: std::collections::BTreeSet<(Duration, u64)>,
    next_id: u64,
    pending_max: usize,
    heard_at: Duration,
    pinged_at: Option<Duration>,
    settled_early: u64,
    closed: bool,
}

impl<T> State<T> {
    /// A lane on which at most `pending_max` calls are outstanding.
    pub fn new(pending_max: usize, now: Duration) -> Self {
        Self {
            pending_by_id: BTreeMap::new(),
            ids_by_deadline: Default::default(),
            next_id: 0,
            pending_max,
            heard_at: now,
            pinged_at: None,
            settled_early: 0,
            closed: false,
        }
    }

    /// Calls without a final reply.
    pub fn pending_len(&self) -> usize {
        self.pending_by_id.len()
    }

    /// Takes a call. Returns its number, or settles it at once if the lane is full or closed.
    pub fn handle_call(
        &mut self,
        request: Request,
        token: T,
        deadline: Duration,
        now: Duration,
        outputs: &mut Vec<Output<T>>,
    ) -> Option<u64> {
        if self.closed {
            outputs.push(Output::Settle(token, Outcome::Lost { accepted: false }));
            return None;
        }
        if self.pending_by_id.len() >= self.pending_max {
            let failure = Failure::new(ErrorCode::Busy, "the lane to the agent's node is full").with("retry_after_ms", 50);
            outputs.push(Output::Settle(token, Outcome::Failed { failure, accepted: false }));
            return None;
        }
        if self.pending_by_id.is_empty() {
            // Silence counts from the moment somebody waits.
            self.heard_at = now;
            self.pinged_at = None;
        }
        let id = self.next_id;
        self.next_id = self.next_id.wrapping_add(1);
        self.pending_by_id.insert(id, Pending { token, deadline, accepted: false });
        self.ids_by_deadline.insert((deadline, id));
        outputs.push(Output::Send(Frame::Request { id, request: Box::new(request) }));
        Some(id)
    }

    /// The caller no longer waits.
    pub fn handle_cancel(&mut self, id: u64, outputs: &mut Vec<Output<T>>) {
        if let Some(pending) = self.remove(id) {
            self.settled_early = self.settled_early.saturating_add(1);
            outputs.push(Output::Send(Frame::Cancel { id }));
            let failure = Failure::new(ErrorCode::Cancelled, "the call was cancelled");
            outputs.push(Output::Settle(pending.token, Outcome::Failed { failure, accepted: pending.accepted }));
        }
    }

    /// The request with this number does not fit into a frame, and was not sent.
    pub fn handle_unsendable(&mut self, id: u64, why: &crate::wire::Error, outputs: &mut Vec<Output<T>>) {
        if let Some(pending) = self.remove(id) {
            let failure = Failure::new(ErrorCode::PayloadTooLarge, format!("the call cannot be sent: {why}"));
            outputs.push(Output::Settle(pending.token, Outcome::Failed { failure, accepted: false }));
        }
    }

    /// A frame arrived.
    pub fn on_frame(&mut self, frame: Frame, now: Duration, outputs: &mut Vec<Output<T>>) {
        if self.closed {
            return;
        }
        self.heard_at = now;
        self.pinged_at = None;
        match frame {
            Frame::Accepted { id } => {
                if let Some(pending) = self.pending_by_id.get_mut(&id) {
                    pending.accepted = true;
                }
            }
            Frame::Result { id, success } => match self.remove(id) {
                Some(pending) => outputs.push(Output::Settle(pending.token, Outcome::Success(success))),
                None => self.stray(outputs),
            },
            Frame::Error { id, failure } => match self.remove(id) {
                Some(pending) => outputs.push(Output::Settle(pending.token, failed(&failure, pending.accepted))),
                None => self.stray(outputs),
            },
            Frame::Pong { .. } => {}
            Frame::Request { .. } | Frame::Cancel { .. } | Frame::Ping { .. } => {
                self.close(Closed::Violation("a request on a lane that only answers"), outputs);
            }
        }
    }

    /// Something that is no frame arrived.
    pub fn on_garbage(&mut self, outputs: &mut Vec<Output<T>>) {
        self.close(Closed::Violation("a malformed frame"), outputs);
    }

    /// The lane is gone.
    pub fn on_closed(&mut self, outputs: &mut Vec<Output<T>>) {
        self.closed = true;
        self.ids_by_deadline.clear();
        for (_, pending) in std::mem::take(&mut self.pending_by_id) {
            outputs.push(Output::Settle(pending.token, Outcome::Lost { accepted: pending.accepted }));
        }
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Duration, outputs: &mut Vec<Output<T>>) {
        while let Some(&(deadline, id)) = self.ids_by_deadline.first() {
            if deadline > now {
                break;
            }
            if let Some(pending) = self.remove(id) {
                self.settled_early = self.settled_early.saturating_add(1);
                outputs.push(Output::Send(Frame::Cancel { id }));
                outputs.push(Output::Settle(pending.token, Outcome::TimedOut { accepted: pending.accepted }));
            }
        }
        if self.pending_by_id.is_empty() || self.closed {
            return;
        }
        let silence = now.saturating_sub(self.heard_at);
        if silence >= DEAD_AFTER {
            self.close(Closed::Silent, outputs);
        } else if silence >= PING_AFTER && self.pinged_at.is_none_or(|at| now.saturating_sub(at) >= PING_AFTER) {
            self.pinged_at = Some(now);
            outputs.push(Output::Send(Frame::Ping { nonce: self.next_id }));
        }
    }

    /// When [`State::handle_timeout`] has something to do next.
    pub fn poll_timeout(&self) -> Option<Duration> {
        let (deadline, _) = *self.ids_by_deadline.first()?;
        let sign_of_life = self.pinged_at.unwrap_or(self.heard_at).saturating_add(PING_AFTER);
        Some(deadline.min(sign_of_life))
    }

    fn remove(&mut self, id: u64) -> Option<Pending<T>> {
        let pending = self.pending_by_id.remove(&id)?;
        self.ids_by_deadline.remove(&(pending.deadline, id));
        Some(pending)
    }

    fn stray(&mut self, outputs: &mut Vec<Output<T>>) {
        // A reply may cross a cancel; each call settled early excuses one.
        if self.settled_early > 0 {
            self.settled_early = self.settled_early.saturating_sub(1);
        } else {
            self.close(Closed::Violation("a reply to no call"), outputs);
        }
    }

    fn close(&mut self, why: Closed, outputs: &mut Vec<Output<T>>) {
        self.on_closed(outputs);
        outputs.push(Output::Close(why));
    }
}

fn failed(text: &[u8], accepted: bool) -> Outcome {
    let garbled = |_| Failure::new(ErrorCode::Internal, "the agent's node sent an error that cannot be read").retryable(true);
    let failure = serde_json::from_slice::<Failure>(text).unwrap_or_else(garbled);
    // Whatever a peer wrote is cut and made printable on the way in.
    let mut shown = Failure::new(failure.code, &failure.message).retryable(failure.retryable);
    shown.details = failure.details;
    Outcome::Failed { failure: shown, accepted }
}
