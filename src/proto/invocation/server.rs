//! The answering end of a lane: which calls run for the peer, and that each gets one final frame.
//!
//! A request is handed to the shell, which asks the agent; once the agent has taken it, `Accepted` goes out, and later one `Result` or
//! `Error`. A call that is cancelled or over its deadline is told so to the agent, and still ends in one frame. A number that is in use,
//! or a frame that only answerers send, breaks the protocol and ends the lane.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::model::{ErrorCode, Failure};
use crate::wire::invocation::{Frame, Request, Success};

/// What the shell must do.
#[derive(Debug, Clone, PartialEq)]
pub enum Output {
    /// Write this frame.
    Send(Frame),
    /// Ask the agent; report with [`State::handle_accepted`] and [`State::handle_done`].
    Run {
        /// The call's number on this lane.
        id: u64,
        /// The call.
        request: Box<Request>,
        /// When it must be over.
        deadline: Duration,
    },
    /// Tell the agent to stop; report the end with [`State::handle_done`] all the same.
    Stop {
        /// The call's number.
        id: u64,
    },
    /// Close the lane: the peer broke the protocol.
    Close(&'static str),
}

/// The answering end.
#[derive(Debug)]
pub struct State {
    running_by_id: BTreeMap<u64, Running>,
    running_max: usize,
    draining: bool,
}

#[derive(Debug)]
struct Running {
    stopped: bool,
}

impl State {
    /// A lane on which at most `running_max` calls run at once.
    pub fn new(running_max: usize) -> Self {
        Self { running_by_id: BTreeMap::new(), running_max, draining: false }
    }

    /// Calls without a final frame.
    pub fn running_len(&self) -> usize {
        self.running_by_id.len()
    }

    /// From now on new calls are refused, because the node stops.
    pub fn handle_drain(&mut self) {
        self.draining = true;
    }

    /// A frame arrived.
    pub fn on_frame(&mut self, frame: Frame, now: Duration, outputs: &mut Vec<Output>) {
        match frame {
            Frame::Request { id, request } => self.on_request(id, request, now, outputs),
            Frame::Cancel { id } => {
                if let Some(running) = self.running_by_id.get_mut(&id).filter(|running| !running.stopped) {
                    running.stopped = true;
                    outputs.push(Output::Stop { id });
                }
            }
            Frame::Ping { nonce } => outputs.push(Output::Send(Frame::Pong { nonce })),
            Frame::Accepted { .. } | Frame::Result { .. } | Frame::Error { .. } | Frame::Pong { .. } => {
                outputs.push(Output::Close("an answer on a lane that only asks"));
            }
        }
    }

    fn on_request(&mut self, id: u64, request: Box<Request>, now: Duration, outputs: &mut Vec<Output>) {
        if self.running_by_id.contains_key(&id) {
            outputs.push(Output::Close("a call number that is in use"));
            return;
        }
        let refusal = if self.draining {
            Some(Failure::new(ErrorCode::Unavailable, "the agent's node is stopping"))
        } else if self.running_by_id.len() >= self.running_max {
            let failure = Failure::new(ErrorCode::Busy, format!("{} calls of this peer are running", self.running_max));
            Some(failure.with("limit", self.running_max).with("retry_after_ms", 50))
        } else if request.budget_ms == 0 {
            Some(Failure::new(ErrorCode::Timeout, "the deadline had passed on arrival"))
        } else {
            None
        };
        match refusal {
            Some(failure) => outputs.push(Output::Send(Frame::error(id, &failure))),
            None => {
                let deadline = now.saturating_add(Duration::from_millis(request.budget_ms));
                self.running_by_id.insert(id, Running { stopped: false });
                outputs.push(Output::Run { id, request, deadline });
            }
        }
    }

    /// The agent has taken the call.
    pub fn handle_accepted(&mut self, id: u64, outputs: &mut Vec<Output>) {
        if self.running_by_id.contains_key(&id) {
            outputs.push(Output::Send(Frame::Accepted { id }));
        }
    }

    /// The call is over.
    pub fn handle_done(&mut self, id: u64, result: Result<Success, Failure>, outputs: &mut Vec<Output>) {
        if self.running_by_id.remove(&id).is_some() {
            outputs.push(Output::Send(match result {
                Ok(success) => Frame::Result { id, success },
                Err(failure) => Frame::error(id, &failure),
            }));
        }
    }

    /// The lane is gone: whatever runs for it is stopped.
    pub fn on_closed(&mut self, outputs: &mut Vec<Output>) {
        for (id, running) in std::mem::take(&mut self.running_by_id) {
            if !running.stopped {
                outputs.push(Output::Stop { id });
            }
        }
    }
}
