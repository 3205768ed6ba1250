//! The calling end of a lane: which calls are outstanding, whether the other side is still there.
//!
//! Each call that is taken is settled once: by its final frame, by its deadline, by its caller's cancel, or with the lane. While calls
//! are outstanding and nothing arrives, the other side is asked for a sign of life every half second; two seconds of silence end the
//! lane. One late reply to each call that was settled here is harmless; a reply to no call, or a frame that only callers send, ends the lane.
//! A failure that only the caller's side can state is, from the other side, a failure of the agent.
//!
//! A call that must not be done twice has surely not begun until this end has sent `Go`; one that may be repeated counts as begun once it is
//! sent. Credit for chunks is conserved: what is granted, what has arrived and is not yet taken, and what was taken and not yet granted anew
//! always add up to the window.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;

use crate::model::{ErrorCode, Failure};
use crate::wire::invocation::{Frame, Request, Success, chunk_cost};

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
        /// Whether the agent may have begun.
        begun: bool,
    },
    /// The lane ended first.
    Lost {
        /// Whether the agent may have begun.
        begun: bool,
    },
    /// The deadline came first.
    TimedOut {
        /// Whether the agent may have begun.
        begun: bool,
    },
}

/// What the shell must do.
#[derive(Debug, Clone, PartialEq)]
pub enum Output<T> {
    /// Write this frame.
    Send(Frame),
    /// The agent is free for the call with this number, which its caller watches.
    Accepted(u64),
    /// Give this outcome to whoever waits.
    Settle(T, Outcome),
    /// Give this chunk of the answer to whoever waits for the call with this number; report what is taken with [`State::handle_taken`].
    Chunk(u64, Bytes),
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
    begun: bool,
    /// Whether the word to begin is the caller's to give, once it has heard that the agent is free.
    watched: bool,
    credit: Credit,
}

/// The chunks of one call; all zero where the caller wants none.
#[derive(Debug, Default)]
struct Credit {
    window_bytes: u64,
    /// Granted and not yet used.
    open: u64,
    /// Taken and not yet granted anew.
    taken: u64,
}

/// The calling end. `T` is what the shell needs to answer its caller.
#[derive(Debug)]
pub struct State<T> {
    pending_by_id: BTreeMap<u64, Pending<T>>,
    /// No call is due before this. Calls that end earlier leave it as it is: it is looked at anew when it comes.
    none_due_before: Duration,
    pings: u64,
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
            none_due_before: Duration::MAX,
            pings: 0,
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

    /// Takes a call under a number that no other call of this lane has or had, or settles it at once if the lane is full or closed.
    pub fn handle_call(
        &mut self,
        id: u64,
        request: Box<Request>,
        token: T,
        deadline: Duration,
        now: Duration,
        outputs: &mut Vec<Output<T>>,
    ) {
        if self.closed {
            outputs.push(Output::Settle(token, Outcome::Lost { begun: false }));
            return;
        }
        if self.pending_by_id.len() >= self.pending_max {
            let failure = Failure::new(ErrorCode::Busy, "the lane to the agent's node is full").with("retry_after_ms", 50);
            outputs.push(Output::Settle(token, Outcome::Failed { failure, begun: false }));
            return;
        }
        if self.pending_by_id.is_empty() {
            // Silence counts from the moment somebody waits.
            self.heard_at = now;
            self.pinged_at = None;
        }
        let credit = Credit { window_bytes: request.window_bytes, open: request.window_bytes, taken: 0 };
        self.pending_by_id.insert(id, Pending { token, deadline, begun: !request.confirm, watched: false, credit });
        self.none_due_before = self.none_due_before.min(deadline);
        outputs.push(Output::Send(Frame::Request { id, request }));
    }

    /// The caller wants to know when the agent is free, and says itself when that may begin, with [`State::handle_go`].
    pub fn handle_watch(&mut self, id: u64) {
        if let Some(pending) = self.pending_by_id.get_mut(&id) {
            pending.watched = true;
        }
    }

    /// The agent may begin; nothing if it has, or is not free yet.
    pub fn handle_go(&mut self, id: u64, outputs: &mut Vec<Output<T>>) {
        if let Some(pending) = self.pending_by_id.get_mut(&id).filter(|pending| !pending.begun) {
            pending.begun = true;
            outputs.push(Output::Send(Frame::Go { id }));
        }
    }

    /// The caller no longer waits.
    pub fn handle_cancel(&mut self, id: u64, outputs: &mut Vec<Output<T>>) {
        if let Some(pending) = self.remove(id) {
            self.settled_early = self.settled_early.saturating_add(1);
            outputs.push(Output::Send(Frame::Cancel { id }));
            let failure = Failure::new(ErrorCode::Cancelled, "the call was cancelled");
            outputs.push(Output::Settle(pending.token, Outcome::Failed { failure, begun: pending.begun }));
        }
    }

    /// The caller has taken chunks that cost this much.
    pub fn handle_taken(&mut self, id: u64, cost: u64, outputs: &mut Vec<Output<T>>) {
        let Some(pending) = self.pending_by_id.get_mut(&id) else { return };
        let credit = &mut pending.credit;
        // More than has arrived cannot have been taken.
        let under_way = credit.window_bytes.saturating_sub(credit.open).saturating_sub(credit.taken);
        credit.taken = credit.taken.saturating_add(cost.min(under_way));
        // A grant for each chunk would double the frames; half a window keeps the sender going.
        if credit.taken > 0 && credit.taken >= credit.window_bytes / 2 {
            let bytes = std::mem::take(&mut credit.taken);
            credit.open = credit.open.saturating_add(bytes);
            outputs.push(Output::Send(Frame::Credit { id, bytes }));
        }
    }

    /// The request with this number does not fit into a frame, and was not sent.
    pub fn handle_unsendable(&mut self, id: u64, why: &crate::wire::Error, outputs: &mut Vec<Output<T>>) {
        if let Some(pending) = self.remove(id) {
            let failure = Failure::new(ErrorCode::PayloadTooLarge, format!("the call cannot be sent: {why}"));
            outputs.push(Output::Settle(pending.token, Outcome::Failed { failure, begun: false }));
        }
    }

    /// The other side gave a sign of life: part of a frame arrived, or it still takes in what is sent to it.
    pub fn on_alive(&mut self, now: Duration) {
        self.heard_at = now;
        self.pinged_at = None;
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
                let Some(pending) = self.pending_by_id.get_mut(&id).filter(|pending| !pending.begun) else { return };
                if pending.watched {
                    outputs.push(Output::Accepted(id));
                } else {
                    self.handle_go(id, outputs);
                }
            }
            Frame::Result { id, success } => match self.remove(id) {
                Some(pending) => outputs.push(Output::Settle(pending.token, Outcome::Success(success))),
                None => self.stray(outputs),
            },
            Frame::Error { id, begun, failure } => match self.remove(id) {
                // A call that was never told to go has not begun, whatever the other side says.
                Some(pending) => outputs.push(Output::Settle(pending.token, failed(&failure, begun && pending.begun))),
                None => self.stray(outputs),
            },
            Frame::Chunk { id, chunk } => self.on_chunk(id, chunk, outputs),
            Frame::Pong { .. } => {}
            Frame::Request { .. } | Frame::Cancel { .. } | Frame::Ping { .. } | Frame::Credit { .. } | Frame::Go { .. } => {
                self.close(Closed::Violation("a request on a lane that only answers"), outputs);
            }
        }
    }

    fn on_chunk(&mut self, id: u64, chunk: Bytes, outputs: &mut Vec<Output<T>>) {
        let Some(pending) = self.pending_by_id.get_mut(&id) else {
            // Chunks may cross a cancel like the final frame that follows them.
            if self.settled_early == 0 {
                self.close(Closed::Violation("a chunk of no call"), outputs);
            }
            return;
        };
        match pending.credit.open.checked_sub(chunk_cost(chunk.len())) {
            Some(open) => {
                pending.credit.open = open;
                outputs.push(Output::Chunk(id, chunk));
            }
            None => self.close(Closed::Violation("a chunk beyond the credit"), outputs),
        }
    }

    /// Something that is no frame arrived.
    pub fn on_garbage(&mut self, outputs: &mut Vec<Output<T>>) {
        if self.closed {
            return;
        }
        self.close(Closed::Violation("a malformed frame"), outputs);
    }

    /// The lane is gone.
    pub fn on_closed(&mut self, outputs: &mut Vec<Output<T>>) {
        self.closed = true;
        for (_, pending) in std::mem::take(&mut self.pending_by_id) {
            outputs.push(Output::Settle(pending.token, Outcome::Lost { begun: pending.begun }));
        }
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Duration, outputs: &mut Vec<Output<T>>) {
        for id in self.due(now) {
            if let Some(pending) = self.remove(id) {
                self.settled_early = self.settled_early.saturating_add(1);
                outputs.push(Output::Send(Frame::Cancel { id }));
                outputs.push(Output::Settle(pending.token, Outcome::TimedOut { begun: pending.begun }));
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
            self.pings = self.pings.wrapping_add(1);
            outputs.push(Output::Send(Frame::Ping { nonce: self.pings }));
        }
    }

    /// When [`State::handle_timeout`] has something to do next.
    pub fn poll_timeout(&self) -> Option<Duration> {
        if self.pending_by_id.is_empty() {
            return None;
        }
        let sign_of_life = self.pinged_at.unwrap_or(self.heard_at).saturating_add(PING_AFTER);
        let end = self.heard_at.saturating_add(DEAD_AFTER);
        Some(self.none_due_before.min(sign_of_life).min(end))
    }

    fn remove(&mut self, id: u64) -> Option<Pending<T>> {
        self.pending_by_id.remove(&id)
    }

    /// The calls whose deadline has come, the earliest first.
    fn due(&mut self, now: Duration) -> Vec<u64> {
        if now < self.none_due_before {
            return Vec::new();
        }
        let by_deadline = self.pending_by_id.iter().map(|(id, pending)| (pending.deadline, *id));
        let (due, later): (BTreeSet<_>, BTreeSet<_>) = by_deadline.partition(|(deadline, _)| *deadline <= now);
        self.none_due_before = later.first().map_or(Duration::MAX, |(deadline, _)| *deadline);
        due.into_iter().map(|(_, id)| id).collect()
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

fn failed(text: &[u8], begun: bool) -> Outcome {
    let garbled = |_| Failure::new(ErrorCode::Internal, "the agent's node sent an error that cannot be read").retryable(true);
    let failure = serde_json::from_slice::<Failure>(text).unwrap_or_else(garbled);
    // Whatever a peer wrote is cut and made printable on the way in.
    let mut shown = if is_callers_own(failure.code) {
        let message = format!("the agent's node says {}, which is not for it to say: {}", failure.code, failure.message);
        Failure::new(ErrorCode::AgentFailed, message).retryable(true)
    } else {
        Failure::new(failure.code, &failure.message).retryable(failure.retryable)
    };
    shown.details = failure.details;
    Outcome::Failed { failure: shown, begun }
}

/// What of all that nobody is blamed for only the caller's side can say: that it took the call back, after which its end is nobody's, and
/// that a client may not enter.
fn is_callers_own(code: ErrorCode) -> bool {
    matches!(code, ErrorCode::Cancelled | ErrorCode::AuthenticationFailed)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::test_runner::RngSeed;

    use super::*;
    use crate::model::Priority;
    use crate::model::{AgentId, InvocationId};
    use crate::wire::invocation::Body;

    #[test]
    fn a_call_is_settled_by_its_result() {
        let (mut lane, mut outputs) = lane();
        let id = call(&mut lane, 'a', 60_000, &mut outputs);
        assert_eq!(outputs, [Output::Send(Frame::Request { id, request: Box::new(request()) })]);
        outputs.clear();

        lane.on_frame(Frame::Accepted { id }, ms(1), &mut outputs);
        assert_eq!(outputs, [Output::Send(Frame::Go { id })]);
        outputs.clear();
        lane.on_frame(Frame::Result { id, success: success() }, ms(2), &mut outputs);

        assert_eq!(outputs, [Output::Settle('a', Outcome::Success(success()))]);
        assert_eq!((lane.pending_len(), lane.poll_timeout()), (0, None));
    }

    /// AITP-6: whoever watches is told when the agent accepts, and the work begins on that one's word alone: a caller that gave up in
    /// the meantime can be sure that it has not begun.
    #[test]
    fn a_watched_call_is_told_of_its_acceptance_and_waits_for_the_word() {
        let (mut lane, mut outputs) = lane();
        let id = call(&mut lane, 'a', 60_000, &mut outputs);
        lane.handle_watch(id);
        outputs.clear();

        lane.on_frame(Frame::Accepted { id }, ms(1), &mut outputs);
        assert_eq!(std::mem::take(&mut outputs), [Output::Accepted(id)]);
        lane.handle_go(id, &mut outputs);
        assert_eq!(std::mem::take(&mut outputs), [Output::Send(Frame::Go { id })]);
        lane.handle_go(id, &mut outputs);
        assert_eq!(outputs, []);
    }

    #[test]
    fn an_error_says_whether_the_agent_may_have_begun() {
        for accepted in [false, true] {
            let (mut lane, mut outputs) = lane();
            let id = call(&mut lane, 'a', 60_000, &mut outputs);
            if accepted {
                lane.on_frame(Frame::Accepted { id }, ms(1), &mut outputs);
            }
            outputs.clear();
            let failure = Failure::new(ErrorCode::AgentFailed, "no").with("limit", 3);
            lane.on_frame(Frame::error(id, true, &failure), ms(2), &mut outputs);
            assert_eq!(outputs, [Output::Settle('a', Outcome::Failed { failure, begun: accepted })]);
        }
    }

    #[test]
    fn a_call_that_may_be_repeated_counts_as_begun_once_it_is_sent() {
        let (mut lane, mut outputs) = lane();
        let request = Request { confirm: false, ..request() };
        let id = 0;
        lane.handle_call(id, Box::new(request), 'a', ms(60_000), ms(0), &mut outputs);
        lane.on_frame(Frame::Accepted { id }, ms(1), &mut outputs);
        outputs.clear();
        lane.on_closed(&mut outputs);
        assert_eq!(outputs, [Output::Settle('a', Outcome::Lost { begun: true })]);
    }

    /// MEAP-7: a slow reader grants less, and never more than it took.
    #[test]
    fn chunks_use_credit_and_what_is_taken_is_granted_anew() {
        let (mut lane, mut outputs) = lane();
        let id = call(&mut lane, 'a', 60_000, &mut outputs);
        outputs.clear();
        let chunk = Bytes::from(vec![b'1'; 300]);
        for _ in 0..3 {
            lane.on_frame(Frame::Chunk { id, chunk: chunk.clone() }, ms(1), &mut outputs);
        }
        assert_eq!(outputs, vec![Output::Chunk(id, chunk); 3]);
        outputs.clear();
        lane.handle_taken(id, 300, &mut outputs);
        assert_eq!(outputs, []);
        lane.handle_taken(id, 300, &mut outputs);
        assert_eq!(outputs, [Output::Send(Frame::Credit { id, bytes: 600 })]);
        outputs.clear();
        // What never arrived cannot have been taken.
        lane.handle_taken(id, 10_000, &mut outputs);
        assert_eq!(outputs, []);
        lane.on_frame(Frame::Chunk { id, chunk: Bytes::from(vec![b'1'; 725]) }, ms(1), &mut outputs);
        assert_eq!(outputs.last(), Some(&Output::Close(Closed::Violation("a chunk beyond the credit"))));
    }

    #[test]
    fn a_chunk_that_crosses_a_cancel_is_harmless_and_one_of_no_call_is_not() {
        let (mut lane, mut outputs) = lane();
        let id = call(&mut lane, 'a', 60_000, &mut outputs);
        lane.handle_cancel(id, &mut outputs);
        outputs.clear();
        lane.on_frame(Frame::Chunk { id, chunk: "1".into() }, ms(1), &mut outputs);
        lane.on_frame(Frame::error(id, true, &Failure::new(ErrorCode::Cancelled, "stopped")), ms(1), &mut outputs);
        assert_eq!(outputs, []);
        lane.on_frame(Frame::Chunk { id, chunk: "1".into() }, ms(1), &mut outputs);
        assert_eq!(outputs, [Output::Close(Closed::Violation("a chunk of no call"))]);
    }

    #[test]
    fn an_error_that_cannot_be_read_is_still_one() {
        let (mut lane, mut outputs) = lane();
        let id = call(&mut lane, 'a', 60_000, &mut outputs);
        outputs.clear();
        lane.on_frame(Frame::Error { id, begun: false, failure: "{".into() }, ms(1), &mut outputs);
        assert!(matches!(&outputs[..], [Output::Settle('a', Outcome::Failed { failure, .. })] if failure.code == ErrorCode::Internal));
    }

    /// T16: whoever ends a call in the caller's name has failed it, and is not excused.
    #[test]
    fn a_peer_cannot_say_what_is_for_the_caller_to_say() {
        for code in [ErrorCode::Cancelled, ErrorCode::AuthenticationFailed] {
            let (mut lane, mut outputs) = lane();
            let id = call(&mut lane, 'a', 60_000, &mut outputs);
            lane.on_frame(Frame::Accepted { id }, ms(1), &mut outputs);
            outputs.clear();
            lane.on_frame(Frame::error(id, true, &Failure::new(code, "no").retryable(false)), ms(2), &mut outputs);
            let [Output::Settle('a', Outcome::Failed { failure, begun: true })] = &outputs[..] else { panic!("not settled: {outputs:?}") };
            assert_eq!((failure.code, failure.retryable), (ErrorCode::AgentFailed, true), "{failure}");
        }
    }

    #[test]
    fn what_a_peer_writes_into_an_error_is_made_printable() {
        let (mut lane, mut outputs) = lane();
        let id = call(&mut lane, 'a', 60_000, &mut outputs);
        outputs.clear();
        let text = r#"{"code":"BUSY","message":"\u001b[31mred","retryable":true}"#;
        lane.on_frame(Frame::Error { id, begun: false, failure: text.into() }, ms(1), &mut outputs);
        let [Output::Settle('a', Outcome::Failed { failure, .. })] = &outputs[..] else { panic!("not settled: {outputs:?}") };
        assert_eq!(failure.message, "\u{fffd}[31mred");
    }

    #[test]
    fn a_full_lane_refuses_and_sends_nothing() {
        let (mut lane, mut outputs) = lane();
        for token in ['a', 'b', 'c'] {
            call(&mut lane, token, 60_000, &mut outputs);
        }
        outputs.clear();
        lane.handle_call(9, Box::new(request()), 'd', ms(60_000), ms(0), &mut outputs);
        let [Output::Settle('d', Outcome::Failed { failure, begun: false })] = &outputs[..] else { panic!("not refused: {outputs:?}") };
        assert_eq!((failure.code, failure.retry_after_ms()), (ErrorCode::Busy, Some(50)));
    }

    #[test]
    fn a_request_that_does_not_fit_into_a_frame_is_settled_without_a_word_to_the_peer() {
        let (mut lane, mut outputs) = lane();
        let id = call(&mut lane, 'a', 60_000, &mut outputs);
        outputs.clear();
        let why = crate::wire::Error::Oversize { kind: "frame", bytes: 2, bytes_max: 1 };
        lane.handle_unsendable(id, &why, &mut outputs);
        lane.handle_unsendable(id, &why, &mut outputs);
        assert!(
            matches!(&outputs[..], [Output::Settle('a', Outcome::Failed { failure, begun: false })] if failure.code == ErrorCode::PayloadTooLarge)
        );
    }

    #[test]
    fn a_deadline_cancels_and_its_late_reply_is_harmless_once() {
        let (mut lane, mut outputs) = lane();
        let id = call(&mut lane, 'a', 100, &mut outputs);
        outputs.clear();

        lane.handle_timeout(ms(99), &mut outputs);
        assert_eq!(outputs, []);
        lane.handle_timeout(ms(100), &mut outputs);
        let timed_out = Output::Settle('a', Outcome::TimedOut { begun: false });
        assert_eq!(outputs, [Output::Send(Frame::Cancel { id }), timed_out]);
        outputs.clear();

        lane.on_frame(Frame::Result { id, success: success() }, ms(101), &mut outputs);
        assert_eq!(outputs, []);
        lane.on_frame(Frame::Result { id, success: success() }, ms(102), &mut outputs);
        assert_eq!(outputs, [Output::Close(Closed::Violation("a reply to no call"))]);
    }

    #[test]
    fn a_cancelled_call_is_settled_at_once_and_its_late_reply_is_harmless() {
        let (mut lane, mut outputs) = lane();
        let id = call(&mut lane, 'a', 60_000, &mut outputs);
        outputs.clear();

        lane.handle_cancel(id, &mut outputs);
        lane.handle_cancel(id, &mut outputs);

        let [Output::Send(Frame::Cancel { id: cancelled }), Output::Settle('a', Outcome::Failed { failure, .. })] = &outputs[..] else {
            panic!("not cancelled once: {outputs:?}")
        };
        assert_eq!((*cancelled, failure.code), (id, ErrorCode::Cancelled));
        outputs.clear();
        lane.on_frame(Frame::error(id, false, &Failure::new(ErrorCode::Cancelled, "stopped")), ms(1), &mut outputs);
        assert_eq!(outputs, []);
    }

    #[test]
    fn a_reply_to_no_call_closes_the_lane_and_loses_what_is_outstanding() {
        let (mut lane, mut outputs) = lane();
        let id = call(&mut lane, 'a', 60_000, &mut outputs);
        call(&mut lane, 'b', 60_000, &mut outputs);
        lane.on_frame(Frame::Accepted { id }, ms(1), &mut outputs);
        outputs.clear();

        lane.on_frame(Frame::Result { id: 99, success: success() }, ms(1), &mut outputs);

        let lost = |token, accepted| Output::Settle(token, Outcome::Lost { begun: accepted });
        assert_eq!(outputs, [lost('a', true), lost('b', false), Output::Close(Closed::Violation("a reply to no call"))]);
    }

    #[test]
    fn a_frame_that_only_callers_send_closes_the_lane() {
        for frame in [Frame::Cancel { id: 0 }, Frame::Ping { nonce: 0 }, Frame::Request { id: 0, request: Box::new(request()) }] {
            let (mut lane, mut outputs) = lane();
            lane.on_frame(frame, ms(0), &mut outputs);
            assert_eq!(outputs, [Output::Close(Closed::Violation("a request on a lane that only answers"))]);
        }
    }

    #[test]
    fn a_closed_lane_loses_calls_at_once_and_hears_nothing() {
        let (mut lane, mut outputs) = lane();
        lane.on_closed(&mut outputs);
        lane.handle_call(0, Box::new(request()), 'a', ms(60_000), ms(0), &mut outputs);
        lane.on_frame(Frame::Result { id: 0, success: success() }, ms(1), &mut outputs);
        lane.handle_timeout(ms(100_000), &mut outputs);
        assert_eq!(outputs, [Output::Settle('a', Outcome::Lost { begun: false })]);
    }

    /// MEAP-1: heartbeats.
    #[test]
    fn silence_is_questioned_each_half_second_and_ends_the_lane_after_two() {
        let (mut lane, mut outputs) = lane();
        call(&mut lane, 'a', 60_000, &mut outputs);
        outputs.clear();

        let mut said = Vec::new();
        while let Some(due) = lane.poll_timeout() {
            lane.handle_timeout(due, &mut outputs);
            said.extend(outputs.drain(..).map(|output| (due.as_millis(), output)));
        }

        let ping = |nonce| Output::Send(Frame::Ping { nonce });
        let end = [Output::Settle('a', Outcome::Lost { begun: false }), Output::Close(Closed::Silent)];
        let [lost, closed] = end.map(|output| (2_000, output));
        assert_eq!(said, [(500, ping(1)), (1_000, ping(2)), (1_500, ping(3)), lost, closed]);
    }

    #[test]
    fn any_frame_is_a_sign_of_life() {
        let (mut lane, mut outputs) = lane();
        call(&mut lane, 'a', 60_000, &mut outputs);
        outputs.clear();
        for tenth in 1..=100_u64 {
            if tenth % 19 == 0 {
                lane.on_frame(Frame::Pong { nonce: 0 }, ms(tenth * 100), &mut outputs);
            }
            lane.handle_timeout(ms(tenth * 100), &mut outputs);
        }
        assert_eq!(lane.pending_len(), 1);
        assert!(outputs.iter().all(|output| matches!(output, Output::Send(Frame::Ping { .. }))));
    }

    #[test]
    fn an_idle_lane_may_be_silent_and_the_next_call_starts_afresh() {
        let (mut lane, mut outputs) = lane();
        lane.handle_timeout(ms(100_000), &mut outputs);
        assert_eq!((lane.poll_timeout(), &outputs[..]), (None, &[][..]));

        lane.handle_call(0, Box::new(request()), 'a', ms(200_000), ms(100_000), &mut outputs);
        outputs.clear();
        lane.handle_timeout(ms(100_499), &mut outputs);
        assert_eq!(outputs, []);
        assert_eq!(lane.poll_timeout(), Some(ms(100_500)));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, rng_seed: RngSeed::Fixed(7), ..ProptestConfig::with_cases(256) })]

        /// MEAP-9: whatever arrives in whatever order, each call is settled exactly once.
        #[test]
        fn each_call_is_settled_exactly_once(ops in prop::collection::vec(op(), 1..80)) {
            let mut lane = State::new(CALLS_MAX, ms(0));
            let mut seen = Seen::default();
            for op in ops {
                let mut outputs = Vec::new();
                let expected = seen.apply(&op, &mut lane, &mut outputs);
                prop_assert_eq!(&outputs, &expected, "{:?}", op);
                seen.take(&outputs);
                prop_assert_eq!(lane.pending_len(), seen.outstanding.len());
                prop_assert!(lane.pending_len() <= CALLS_MAX);
                prop_assert!(!seen.closed || lane.pending_len() == 0);
                prop_assert_eq!(lane.poll_timeout().is_some(), lane.pending_len() > 0);
            }
            let mut outputs = Vec::new();
            lane.on_closed(&mut outputs);
            seen.take(&outputs);
            prop_assert_eq!(lane.pending_len(), 0);
            prop_assert!(seen.settled_by_token.values().all(|times| *times == 1), "{:?}", seen.settled_by_token);
            prop_assert_eq!(seen.settled_by_token.len(), seen.tokens);
        }
    }

    const CALLS_MAX: usize = 3;
    const WINDOW_BYTES: u64 = 1_024;

    #[derive(Debug, Clone)]
    enum Op {
        Call { budget_ms: u64 },
        Unsendable { id: u64 },
        Cancel { id: u64 },
        Accepted { id: u64 },
        Result { id: u64 },
        Error { id: u64 },
        Pong,
        Foreign,
        Garbage,
        Passed { ms: u64 },
        Closed,
    }

    fn op() -> impl Strategy<Value = Op> {
        let id = || 0_u64..12;
        prop_oneof![
            12 => prop::sample::select(vec![0_u64, 100, 700, 5_000, 60_000]).prop_map(|budget_ms| Op::Call { budget_ms }),
            1 => id().prop_map(|id| Op::Unsendable { id }),
            3 => id().prop_map(|id| Op::Cancel { id }),
            3 => id().prop_map(|id| Op::Accepted { id }),
            4 => id().prop_map(|id| Op::Result { id }),
            3 => id().prop_map(|id| Op::Error { id }),
            3 => Just(Op::Pong),
            6 => (1_u64..700).prop_map(|ms| Op::Passed { ms }),
            1 => prop_oneof![4 => Just(Op::Passed { ms: 10_000 }), 1 => Just(Op::Foreign), 1 => Just(Op::Garbage), 1 => Just(Op::Closed)],
        ]
    }

    /// What a patient observer of the lane knows: every call in a list, looked through for each question.
    #[derive(Default)]
    struct Seen {
        now: Duration,
        tokens: usize,
        calls: u64,
        /// Number, token, deadline, whether accepted.
        outstanding: Vec<(u64, usize, Duration, bool)>,
        settled_by_token: BTreeMap<usize, u32>,
        excused: u32,
        heard_at: Duration,
        pinged_at: Option<Duration>,
        pings: u64,
        closed: bool,
    }

    impl Seen {
        fn take(&mut self, outputs: &[Output<usize>]) {
            for output in outputs {
                if let Output::Settle(token, _) = output {
                    *self.settled_by_token.entry(*token).or_default() += 1;
                }
            }
        }

        /// Does `op` to `lane`, and returns what should have come of it.
        fn apply(&mut self, op: &Op, lane: &mut State<usize>, outputs: &mut Vec<Output<usize>>) -> Vec<Output<usize>> {
            let no = Failure::new(ErrorCode::AgentFailed, "no");
            match *op {
                Op::Call { budget_ms } => {
                    let (token, deadline) = (self.tokens, self.now + ms(budget_ms));
                    self.tokens += 1;
                    lane.handle_call(self.calls, Box::new(request()), token, deadline, self.now, outputs);
                    if self.closed {
                        return vec![Output::Settle(token, Outcome::Lost { begun: false })];
                    }
                    if self.outstanding.len() >= CALLS_MAX {
                        return outputs.iter().filter(|output| is_refusal(output, token)).take(1).cloned().collect();
                    }
                    if self.outstanding.is_empty() {
                        (self.heard_at, self.pinged_at) = (self.now, None);
                    }
                    self.outstanding.push((self.calls, token, deadline, false));
                    self.calls += 1;
                    vec![Output::Send(Frame::Request { id: self.calls - 1, request: Box::new(request()) })]
                }
                Op::Unsendable { id } => {
                    let why = crate::wire::Error::Oversize { kind: "frame", bytes: 2, bytes_max: 1 };
                    lane.handle_unsendable(id, &why, outputs);
                    let Some((_, token, ..)) = self.remove(id) else { return Vec::new() };
                    let failure = Failure::new(ErrorCode::PayloadTooLarge, format!("the call cannot be sent: {why}"));
                    vec![Output::Settle(token, Outcome::Failed { failure, begun: false })]
                }
                Op::Cancel { id } => {
                    lane.handle_cancel(id, outputs);
                    let Some((_, token, _, accepted)) = self.remove(id) else { return Vec::new() };
                    self.excused += 1;
                    let failure = Failure::new(ErrorCode::Cancelled, "the call was cancelled");
                    vec![Output::Send(Frame::Cancel { id }), Output::Settle(token, Outcome::Failed { failure, begun: accepted })]
                }
                Op::Accepted { id } => {
                    lane.on_frame(Frame::Accepted { id }, self.now, outputs);
                    self.heard();
                    let first = self.outstanding.iter_mut().find(|call| call.0 == id && !call.3);
                    first.map(|call| call.3 = true).map(|()| Output::Send(Frame::Go { id })).into_iter().collect()
                }
                Op::Result { id } => {
                    lane.on_frame(Frame::Result { id, success: success() }, self.now, outputs);
                    self.final_frame(id, |_| Outcome::Success(success()))
                }
                Op::Error { id } => {
                    lane.on_frame(Frame::error(id, true, &no), self.now, outputs);
                    self.final_frame(id, |accepted| Outcome::Failed { failure: no.clone(), begun: accepted })
                }
                Op::Pong => {
                    lane.on_frame(Frame::Pong { nonce: 0 }, self.now, outputs);
                    self.heard();
                    Vec::new()
                }
                Op::Foreign => {
                    lane.on_frame(Frame::Ping { nonce: 0 }, self.now, outputs);
                    if self.closed { Vec::new() } else { self.end(Some(Closed::Violation("a request on a lane that only answers"))) }
                }
                Op::Garbage => {
                    if self.closed {
                        return Vec::new();
                    }
                    lane.on_garbage(outputs);
                    self.end(Some(Closed::Violation("a malformed frame")))
                }
                Op::Passed { ms: passed } => {
                    self.now += ms(passed);
                    lane.handle_timeout(self.now, outputs);
                    self.passed()
                }
                Op::Closed => {
                    lane.on_closed(outputs);
                    self.end(None)
                }
            }
        }

        fn heard(&mut self) {
            (self.heard_at, self.pinged_at) = (self.now, None);
        }

        fn remove(&mut self, id: u64) -> Option<(u64, usize, Duration, bool)> {
            let at = self.outstanding.iter().position(|call| call.0 == id)?;
            Some(self.outstanding.remove(at))
        }

        fn final_frame(&mut self, id: u64, outcome: impl FnOnce(bool) -> Outcome) -> Vec<Output<usize>> {
            if self.closed {
                return Vec::new();
            }
            self.heard();
            match self.remove(id) {
                Some((_, token, _, accepted)) => vec![Output::Settle(token, outcome(accepted))],
                None if self.excused > 0 => {
                    self.excused -= 1;
                    Vec::new()
                }
                None => self.end(Some(Closed::Violation("a reply to no call"))),
            }
        }

        fn passed(&mut self) -> Vec<Output<usize>> {
            let due: BTreeSet<(Duration, u64)> =
                self.outstanding.iter().filter(|call| call.2 <= self.now).map(|call| (call.2, call.0)).collect();
            let mut expected = Vec::new();
            for (_, id) in due {
                let (_, token, _, accepted) = self.remove(id).expect("outstanding");
                self.excused += 1;
                expected.extend([Output::Send(Frame::Cancel { id }), Output::Settle(token, Outcome::TimedOut { begun: accepted })]);
            }
            if self.outstanding.is_empty() {
                return expected;
            }
            let silence = self.now - self.heard_at;
            if silence >= ms(2_000) {
                expected.extend(self.end(Some(Closed::Silent)));
            } else if self.now - self.pinged_at.unwrap_or(self.heard_at) >= ms(500) {
                self.pinged_at = Some(self.now);
                self.pings += 1;
                expected.push(Output::Send(Frame::Ping { nonce: self.pings }));
            }
            expected
        }

        fn end(&mut self, why: Option<Closed>) -> Vec<Output<usize>> {
            self.closed = true;
            let mut expected: Vec<Output<usize>> = self
                .outstanding
                .drain(..)
                .map(|(_, token, _, accepted)| Output::Settle(token, Outcome::Lost { begun: accepted }))
                .collect();
            expected.extend(why.map(Output::Close));
            expected
        }
    }

    fn is_refusal(output: &Output<usize>, token: usize) -> bool {
        matches!(output, Output::Settle(settled, Outcome::Failed { failure, begun: false }) if *settled == token && failure.code == ErrorCode::Busy)
    }

    fn lane() -> (State<char>, Vec<Output<char>>) {
        (State::new(CALLS_MAX, ms(0)), Vec::new())
    }

    fn call(lane: &mut State<char>, token: char, deadline_ms: u64, outputs: &mut Vec<Output<char>>) -> u64 {
        let id = u64::from(u32::from(token)) + 1_000;
        lane.handle_call(id, Box::new(request()), token, ms(deadline_ms), ms(0), outputs);
        id
    }

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn request() -> Request {
        Request {
            invocation: InvocationId::from_random(1),
            capability: "echo".parse().expect("a valid name"),
            version: None,
            agent: AgentId::from_public_key([1; 32]),
            budget_ms: 60_000,
            priority: Priority::Normal,
            key: None,
            fence: None,
            traceparent: None,
            hops: Vec::new(),
            confirm: true,
            window_bytes: WINDOW_BYTES,
            body: Body::Inline("{}".into()),
            with_context: false,
        }
    }

    fn success() -> Success {
        Success { units: None, execution_us: 1, body: Body::Inline("1".into()) }
    }
}
