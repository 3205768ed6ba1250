//! The answering end of a lane: which calls run for the peer, and that each gets one final frame.
//!
//! A request is handed to the shell, which asks the agent. Where the caller wants to confirm, `Accepted` goes out once the agent is free,
//! and the work begins at `Go`. Chunks go out as far as the caller's credit reaches; at most one per call waits here, and the shell is asked
//! for the next only when it is gone, so that a slow reader slows the agent. A caller that leaves a chunk or an agent waiting too long, or past
//! the deadline of its call, has its call stopped. A call that is cancelled is told so to the agent, and still ends in one frame. A number that is in use, credit that was
//! not asked for, or a frame that only answerers send, breaks the protocol and ends the lane.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;

use super::call::AttemptFailure;
use crate::model::{ErrorCode, Failure};
use crate::wire::invocation::{Frame, Request, Success, WINDOW_BYTES_MAX, chunk_cost};

/// How long an agent is kept free for a caller that does not say `Go`.
pub const GO_WAIT_MAX: Duration = Duration::from_secs(2);
/// How long a chunk may wait for credit; a reader that is slower than this holds an agent for nothing.
pub const CREDIT_WAIT_MAX: Duration = Duration::from_secs(30);

/// What the shell must do.
#[derive(Debug, Clone, PartialEq)]
pub enum Output {
    /// Write this frame.
    Send(Frame),
    /// Ask the agent; report with [`State::handle_accepted`], [`State::handle_chunk`] and [`State::handle_done`].
    Run {
        /// The call's number on this lane.
        id: u64,
        /// The call.
        request: Box<Request>,
        /// When it must be over.
        deadline: Duration,
    },
    /// Let the work begin.
    Go {
        /// The call's number.
        id: u64,
    },
    /// The chunk that was reported last is on its way; the next may be reported.
    Next {
        /// The call's number.
        id: u64,
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
    /// Calls that wait for their caller, each with when that is over.
    waits: BTreeMap<u64, Duration>,
    running_max: usize,
    draining: bool,
}

#[derive(Debug, Default)]
struct Running {
    stopped: bool,
    deadline: Duration,
    /// What the caller has granted and chunks have not used; `None` if it wants no chunks.
    credit: Option<u64>,
    confirm: Confirm,
    chunk: Option<Bytes>,
    /// The good end, while a chunk before it waits.
    result: Option<Box<Success>>,
    /// Why the call was stopped, if not by its caller.
    why: Option<Box<Failure>>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Confirm {
    /// Nobody asked for it, or it is over.
    #[default]
    Settled,
    /// The agent is not free yet.
    Asked,
    /// The agent is free; the caller has not said `Go`.
    Waiting,
}

impl State {
    /// A lane on which at most `running_max` calls run at once.
    pub fn new(running_max: usize) -> Self {
        Self { running_by_id: BTreeMap::new(), waits: BTreeMap::new(), running_max, draining: false }
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
            Frame::Cancel { id } => self.stop(id, None, outputs),
            Frame::Go { id } => self.on_go(id, outputs),
            Frame::Credit { id, bytes } => self.on_credit(id, bytes, outputs),
            Frame::Ping { nonce } => outputs.push(Output::Send(Frame::Pong { nonce })),
            Frame::Accepted { .. } | Frame::Result { .. } | Frame::Error { .. } | Frame::Pong { .. } | Frame::Chunk { .. } => {
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
            Some(failure) => outputs.push(Output::Send(Frame::error(id, false, &failure))),
            None => {
                let deadline = now.saturating_add(Duration::from_millis(request.budget_ms));
                let confirm = if request.confirm { Confirm::Asked } else { Confirm::Settled };
                let credit = (request.window_bytes > 0).then_some(request.window_bytes);
                self.running_by_id.insert(id, Running { deadline, credit, confirm, ..Running::default() });
                outputs.push(Output::Run { id, request, deadline });
            }
        }
    }

    fn on_go(&mut self, id: u64, outputs: &mut Vec<Output>) {
        // It may cross the end of its call.
        let Some(running) = self.running_by_id.get_mut(&id) else { return };
        match running.confirm {
            Confirm::Waiting => {
                running.confirm = Confirm::Settled;
                self.waits.remove(&id);
                if !running.stopped {
                    outputs.push(Output::Go { id });
                }
            }
            Confirm::Asked | Confirm::Settled => outputs.push(Output::Close("a go that nobody waits for")),
        }
    }

    fn on_credit(&mut self, id: u64, bytes: u64, outputs: &mut Vec<Output>) {
        let Some(running) = self.running_by_id.get_mut(&id) else { return };
        let granted = running.credit.and_then(|credit| credit.checked_add(bytes)).filter(|credit| *credit <= WINDOW_BYTES_MAX);
        if granted.is_none() {
            outputs.push(Output::Close("credit beyond the window"));
            return;
        }
        running.credit = granted;
        self.advance(id, outputs);
    }

    /// The agent is free for the call.
    pub fn handle_accepted(&mut self, id: u64, now: Duration, outputs: &mut Vec<Output>) {
        if let Some(running) = self.running_by_id.get_mut(&id).filter(|running| running.confirm == Confirm::Asked) {
            running.confirm = Confirm::Waiting;
            self.waits.insert(id, now.saturating_add(GO_WAIT_MAX));
            outputs.push(Output::Send(Frame::Accepted { id }));
        }
    }

    /// The agent has given a chunk of the answer. One at a time: the next may come after [`Output::Next`]. Dropped without it if the caller
    /// wants no chunks or no longer waits.
    pub fn handle_chunk(&mut self, id: u64, chunk: Bytes, now: Duration, outputs: &mut Vec<Output>) {
        let Some(running) = self.running_by_id.get_mut(&id).filter(|running| running.credit.is_some() && !running.stopped) else { return };
        running.chunk = Some(chunk);
        self.waits.insert(id, now.saturating_add(CREDIT_WAIT_MAX).min(running.deadline));
        self.advance(id, outputs);
    }

    /// The call is over.
    pub fn handle_done(&mut self, id: u64, result: Result<Success, AttemptFailure>, outputs: &mut Vec<Output>) {
        let Some(running) = self.running_by_id.get_mut(&id) else { return };
        match result {
            Ok(success) if running.chunk.is_some() && !running.stopped => running.result = Some(Box::new(success)),
            result => self.finish(id, result, outputs),
        }
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Duration, outputs: &mut Vec<Output>) {
        let over: Vec<u64> = self.waits.iter().filter(|(_, until)| **until <= now).map(|(id, _)| *id).collect();
        for id in over {
            let why = match self.running_by_id.get(&id).map(|running| running.confirm) {
                // The place goes to somebody else, as if there had been none. It is no failure of anybody here, and nothing was begun.
                Some(Confirm::Waiting) => Failure::new(ErrorCode::Busy, "the agent was kept free, but the caller did not say go"),
                Some(Confirm::Asked | Confirm::Settled) | None => Failure::new(ErrorCode::Timeout, "the caller took no chunk for too long"),
            };
            self.stop(id, Some(why), outputs);
        }
    }

    /// When [`State::handle_timeout`] has something to do next.
    pub fn poll_timeout(&self) -> Option<Duration> {
        self.waits.values().min().copied()
    }

    /// The lane is gone: whatever runs for it is stopped.
    pub fn on_closed(&mut self, outputs: &mut Vec<Output>) {
        self.waits.clear();
        for (id, running) in std::mem::take(&mut self.running_by_id) {
            if !running.stopped {
                outputs.push(Output::Stop { id });
            }
        }
    }

    /// Sends the chunk that waits, if the credit reaches, and the end that waits behind it.
    fn advance(&mut self, id: u64, outputs: &mut Vec<Output>) {
        let Some(running) = self.running_by_id.get_mut(&id) else { return };
        let Some(chunk) = running.chunk.take() else { return };
        match running.credit.and_then(|credit| credit.checked_sub(chunk_cost(chunk.len()))) {
            Some(rest) => {
                running.credit = Some(rest);
                self.waits.remove(&id);
                outputs.push(Output::Send(Frame::Chunk { id, chunk }));
                match running.result.take() {
                    Some(success) => self.finish(id, Ok(*success), outputs),
                    None => outputs.push(Output::Next { id }),
                }
            }
            None => running.chunk = Some(chunk),
        }
    }

    fn stop(&mut self, id: u64, why: Option<Failure>, outputs: &mut Vec<Output>) {
        self.waits.remove(&id);
        let Some(running) = self.running_by_id.get_mut(&id).filter(|running| !running.stopped) else { return };
        running.stopped = true;
        running.chunk = None;
        running.why = why.map(Box::new);
        // The agent is done, and only its chunk waited: the call ends here.
        if running.result.take().is_some() {
            let failure = Failure::new(ErrorCode::Cancelled, "the call was cancelled");
            self.finish(id, Err(AttemptFailure { failure, begun: true }), outputs);
        } else {
            outputs.push(Output::Stop { id });
        }
    }

    fn finish(&mut self, id: u64, result: Result<Success, AttemptFailure>, outputs: &mut Vec<Output>) {
        self.waits.remove(&id);
        let Some(running) = self.running_by_id.remove(&id) else { return };
        outputs.push(Output::Send(match (result, running.why) {
            (Ok(success), None) => Frame::Result { id, success },
            // A chunk was given up, so the answer is not whole, however well it ended.
            (Ok(_), Some(why)) => Frame::error(id, true, &why),
            (Err(failed), why) => Frame::error(id, failed.begun, &why.map_or(failed.failure, |why| *why)),
        }));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;
    use proptest::test_runner::RngSeed;

    use super::*;
    use crate::model::Priority;
    use crate::model::{AgentId, InvocationId};
    use crate::wire::invocation::Body;

    #[test]
    fn a_request_runs_until_its_budget_is_spent() {
        let (mut lane, mut outputs) = lane();
        lane.on_frame(request(1, 250), ms(1_000), &mut outputs);
        let [Output::Run { id: 1, deadline, .. }] = outputs[..] else { panic!("not run: {outputs:?}") };
        assert_eq!(deadline, ms(1_250));
    }

    #[test]
    fn accepted_and_one_final_frame_answer_a_request() {
        let (mut lane, mut outputs) = running(&[1, 2]);

        lane.handle_accepted(1, ms(1), &mut outputs);
        lane.handle_done(1, Ok(success()), &mut outputs);
        lane.handle_done(2, Err(failure()), &mut outputs);

        let accepted = Output::Send(Frame::Accepted { id: 1 });
        let result = Output::Send(Frame::Result { id: 1, success: success() });
        assert_eq!(outputs, [accepted, result, Output::Send(Frame::error(2, true, &failure().failure))]);
        assert_eq!(lane.running_len(), 0);
    }

    #[test]
    fn what_is_reported_after_the_final_frame_is_not_sent() {
        let (mut lane, mut outputs) = running(&[1]);
        lane.handle_done(1, Ok(success()), &mut outputs);
        outputs.clear();
        lane.handle_accepted(1, ms(1), &mut outputs);
        lane.handle_done(1, Err(failure()), &mut outputs);
        assert_eq!(outputs, []);
    }

    #[test]
    fn an_agent_waits_for_go_and_not_for_ever() {
        let (mut lane, mut outputs) = running(&[1, 2]);
        lane.handle_accepted(1, ms(0), &mut outputs);
        lane.on_frame(Frame::Go { id: 1 }, ms(1), &mut outputs);
        assert_eq!(outputs, [Output::Send(Frame::Accepted { id: 1 }), Output::Go { id: 1 }]);
        assert_eq!(lane.poll_timeout(), None);
        outputs.clear();

        lane.handle_accepted(2, ms(10), &mut outputs);
        lane.handle_timeout(ms(2_009), &mut outputs);
        assert_eq!((outputs.len(), lane.poll_timeout()), (1, Some(ms(2_010))));
        lane.handle_timeout(ms(2_010), &mut outputs);
        assert_eq!(outputs.last(), Some(&Output::Stop { id: 2 }));
        outputs.clear();
        let not_begun = AttemptFailure { begun: false, ..failure() };
        lane.handle_done(2, Err(not_begun), &mut outputs);
        let [.., Output::Send(Frame::Error { begun, .. })] = &outputs[..] else { panic!("no end: {outputs:?}") };
        let failure = refusal(&outputs);
        assert!(!begun && failure.is_refusal() && failure.retryable, "it may go elsewhere, and blames nobody: {failure:?}");
        assert!(failure.message.ends_with("the caller did not say go"), "{failure}");
    }

    #[test]
    fn a_go_that_nobody_waits_for_closes_the_lane_unless_it_crosses_the_end() {
        let (mut lane, mut outputs) = running(&[1]);
        lane.on_frame(Frame::Go { id: 9 }, ms(0), &mut outputs);
        assert_eq!(outputs, []);
        lane.on_frame(Frame::Go { id: 1 }, ms(0), &mut outputs);
        assert_eq!(outputs, [Output::Close("a go that nobody waits for")]);
    }

    /// MEAP-7: credit is backpressure.
    #[test]
    fn a_chunk_without_credit_waits_and_the_end_waits_behind_it() {
        let (mut lane, mut outputs) = streaming();
        let chunk = |bytes: usize| Bytes::from(vec![b'1'; bytes]);
        lane.handle_chunk(1, chunk(700), ms(0), &mut outputs);
        assert_eq!(outputs, [Output::Send(Frame::Chunk { id: 1, chunk: chunk(700) }), Output::Next { id: 1 }]);
        outputs.clear();
        lane.handle_chunk(1, chunk(400), ms(1), &mut outputs);
        lane.handle_done(1, Ok(success()), &mut outputs);
        assert_eq!((&outputs[..], lane.poll_timeout()), (&[][..], Some(ms(30_001))));

        lane.on_frame(Frame::Credit { id: 1, bytes: 700 }, ms(5), &mut outputs);

        let end = Output::Send(Frame::Result { id: 1, success: success() });
        assert_eq!(outputs, [Output::Send(Frame::Chunk { id: 1, chunk: chunk(400) }), end]);
        assert_eq!((lane.running_len(), lane.poll_timeout()), (0, None));
    }

    #[test]
    fn a_reader_that_takes_nothing_has_its_call_stopped() {
        for done in [false, true] {
            let (mut lane, mut outputs) = streaming();
            lane.handle_chunk(1, Bytes::from(vec![b'1'; 2_000]), ms(0), &mut outputs);
            if done {
                lane.handle_done(1, Ok(success()), &mut outputs);
            }
            lane.handle_timeout(ms(30_000), &mut outputs);
            if !done {
                assert_eq!(outputs, [Output::Stop { id: 1 }]);
                outputs.clear();
                lane.handle_done(1, Err(failure()), &mut outputs);
            }
            assert_eq!(refusal(&outputs).message, "the caller took no chunk for too long");
            assert_eq!(lane.poll_timeout(), None);
        }
    }

    /// F13: the end of a call does not wait for a reader past its deadline.
    #[test]
    fn a_chunk_waits_no_longer_than_its_call_lasts() {
        let (mut lane, mut outputs) = streaming();
        lane.handle_chunk(1, Bytes::from(vec![b'1'; 2_000]), ms(599_000), &mut outputs);
        assert_eq!(lane.poll_timeout(), Some(ms(600_000)));
        lane.handle_timeout(ms(600_000), &mut outputs);
        assert_eq!(outputs, [Output::Stop { id: 1 }]);
    }

    #[test]
    fn an_answer_whose_chunk_was_given_up_does_not_end_well() {
        let (mut lane, mut outputs) = streaming();
        lane.handle_chunk(1, Bytes::from(vec![b'1'; 2_000]), ms(0), &mut outputs);
        lane.handle_timeout(ms(30_000), &mut outputs);
        outputs.clear();
        lane.handle_done(1, Ok(success()), &mut outputs);
        assert_eq!(refusal(&outputs).message, "the caller took no chunk for too long");
    }

    #[test]
    fn credit_beyond_a_window_or_for_a_call_without_chunks_closes_the_lane() {
        let (mut lane, mut outputs) = streaming();
        lane.on_frame(Frame::Credit { id: 1, bytes: u64::MAX }, ms(0), &mut outputs);
        assert_eq!(outputs, [Output::Close("credit beyond the window")]);
        let (mut lane, mut outputs) = running(&[1]);
        lane.on_frame(Frame::Credit { id: 1, bytes: 1 }, ms(0), &mut outputs);
        assert_eq!(outputs, [Output::Close("credit beyond the window")]);
    }

    #[test]
    fn chunks_for_a_caller_that_wants_none_are_passed_over() {
        let (mut lane, mut outputs) = running(&[1]);
        lane.handle_chunk(1, "1".into(), ms(0), &mut outputs);
        assert_eq!(outputs, []);
    }

    #[test]
    fn a_number_may_be_used_again_once_it_is_answered() {
        let (mut lane, mut outputs) = running(&[1]);
        lane.handle_done(1, Ok(success()), &mut outputs);
        outputs.clear();
        lane.on_frame(request(1, 100), ms(0), &mut outputs);
        assert!(matches!(outputs[..], [Output::Run { id: 1, .. }]));
    }

    #[test]
    fn a_number_that_is_in_use_closes_the_lane() {
        let (mut lane, mut outputs) = running(&[1]);
        lane.on_frame(request(1, 100), ms(0), &mut outputs);
        assert_eq!(outputs, [Output::Close("a call number that is in use")]);
    }

    #[test]
    fn a_frame_that_only_answerers_send_closes_the_lane() {
        let result = Frame::Result { id: 1, success: success() };
        for frame in [Frame::Accepted { id: 1 }, result, Frame::error(1, true, &failure().failure), Frame::Pong { nonce: 1 }] {
            let (mut lane, mut outputs) = lane();
            lane.on_frame(frame, ms(0), &mut outputs);
            assert_eq!(outputs, [Output::Close("an answer on a lane that only asks")]);
        }
    }

    #[test]
    fn a_cancelled_call_is_stopped_once_and_still_answered() {
        let (mut lane, mut outputs) = running(&[1]);

        lane.on_frame(Frame::Cancel { id: 1 }, ms(1), &mut outputs);
        lane.on_frame(Frame::Cancel { id: 1 }, ms(2), &mut outputs);
        lane.handle_done(1, Err(failure()), &mut outputs);

        assert_eq!(outputs, [Output::Stop { id: 1 }, Output::Send(Frame::error(1, true, &failure().failure))]);
    }

    #[test]
    fn a_cancel_that_crosses_the_answer_is_harmless() {
        let (mut lane, mut outputs) = lane();
        lane.on_frame(Frame::Cancel { id: 1 }, ms(0), &mut outputs);
        assert_eq!(outputs, []);
    }

    #[test]
    fn a_draining_lane_refuses_new_calls_and_finishes_old_ones() {
        let (mut lane, mut outputs) = running(&[1]);
        lane.handle_drain();

        lane.on_frame(request(2, 100), ms(0), &mut outputs);
        assert_eq!(refusal(&outputs).code, ErrorCode::Unavailable);
        outputs.clear();

        lane.handle_done(1, Ok(success()), &mut outputs);
        assert_eq!(outputs, [Output::Send(Frame::Result { id: 1, success: success() })]);
    }

    #[test]
    fn more_calls_than_fit_are_refused_with_the_limit() {
        let (mut lane, mut outputs) = running(&[1, 2, 3]);
        lane.on_frame(request(4, 100), ms(0), &mut outputs);
        let failure = refusal(&outputs);
        assert_eq!((failure.code, failure.details["limit"].as_u64()), (ErrorCode::Busy, Some(3)));
        assert!(failure.retry_after_ms().is_some());
        assert_eq!(lane.running_len(), 3);
    }

    #[test]
    fn a_call_without_time_left_is_refused() {
        let (mut lane, mut outputs) = lane();
        lane.on_frame(request(1, 0), ms(0), &mut outputs);
        assert_eq!(refusal(&outputs).code, ErrorCode::Timeout);
        assert_eq!(lane.running_len(), 0);
    }

    #[test]
    fn a_ping_is_answered_with_its_nonce() {
        let (mut lane, mut outputs) = lane();
        lane.on_frame(Frame::Ping { nonce: 9 }, ms(0), &mut outputs);
        assert_eq!(outputs, [Output::Send(Frame::Pong { nonce: 9 })]);
    }

    #[test]
    fn when_the_lane_is_gone_what_runs_is_stopped_and_nothing_more_is_sent() {
        let (mut lane, mut outputs) = running(&[1, 2]);
        lane.on_frame(Frame::Cancel { id: 1 }, ms(1), &mut outputs);
        outputs.clear();

        lane.on_closed(&mut outputs);
        lane.handle_done(2, Ok(success()), &mut outputs);

        assert_eq!(outputs, [Output::Stop { id: 2 }]);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, rng_seed: RngSeed::Fixed(7), ..ProptestConfig::with_cases(256) })]

        /// AMP-4: whatever is asked in whatever order, each request has one final frame.
        #[test]
        fn each_request_has_one_final_frame(ops in prop::collection::vec(op(), 1..80)) {
            let mut lane = State::new(CALLS_MAX);
            let mut running: BTreeMap<u64, bool> = BTreeMap::new();
            let mut accepted = BTreeSet::new();
            let (mut requests, mut finals, mut draining) = (0, 0, false);
            for op in ops {
                let mut outputs = Vec::new();
                let expected = match op {
                    Op::Request { id, budget_ms } => {
                        lane.on_frame(request(id, budget_ms), ms(0), &mut outputs);
                        if running.contains_key(&id) {
                            Expected::Close
                        } else {
                            requests += 1;
                            let runs = !draining && running.len() < CALLS_MAX && budget_ms > 0;
                            if runs {
                                running.insert(id, false);
                            }
                            if runs { Expected::Run(id) } else { Expected::Final(id) }
                        }
                    }
                    Op::Cancel { id } => {
                        lane.on_frame(Frame::Cancel { id }, ms(0), &mut outputs);
                        let first = running.get_mut(&id).is_some_and(|stopped| !std::mem::replace(stopped, true));
                        if first { Expected::Stop(id) } else { Expected::Nothing }
                    }
                    Op::Accepted { id } => {
                        lane.handle_accepted(id, ms(0), &mut outputs);
                        let first = running.contains_key(&id) && accepted.insert(id);
                        if first { Expected::Accepted(id) } else { Expected::Nothing }
                    }
                    Op::Done { id, well } => {
                        lane.handle_done(id, if well { Ok(success()) } else { Err(failure()) }, &mut outputs);
                        accepted.remove(&id);
                        if running.remove(&id).is_some() { Expected::Final(id) } else { Expected::Nothing }
                    }
                    Op::Drain => {
                        lane.handle_drain();
                        draining = true;
                        Expected::Nothing
                    }
                    Op::Foreign => {
                        lane.on_frame(Frame::Pong { nonce: 0 }, ms(0), &mut outputs);
                        Expected::Close
                    }
                };
                prop_assert!(outputs.len() <= 1);
                let did = outputs.first().map_or(Expected::Nothing, kind);
                prop_assert_eq!(did, expected, "{:?}", op);
                finals += usize::from(matches!(did, Expected::Final(_)));
                prop_assert_eq!(lane.running_len(), running.len());
                prop_assert!(lane.running_len() <= CALLS_MAX);
            }
            let mut outputs = Vec::new();
            for id in running.into_keys() {
                lane.handle_done(id, Ok(success()), &mut outputs);
            }
            prop_assert_eq!(finals + outputs.len(), requests);
        }
    }

    const CALLS_MAX: usize = 3;

    #[derive(Debug, Clone, Copy)]
    enum Op {
        Request { id: u64, budget_ms: u64 },
        Cancel { id: u64 },
        Accepted { id: u64 },
        Done { id: u64, well: bool },
        Drain,
        Foreign,
    }

    fn op() -> impl Strategy<Value = Op> {
        let id = || 0_u64..6;
        prop_oneof![
            30 => (id(), 0_u64..5).prop_map(|(id, budget_ms)| Op::Request { id, budget_ms }),
            15 => id().prop_map(|id| Op::Cancel { id }),
            15 => id().prop_map(|id| Op::Accepted { id }),
            25 => (id(), any::<bool>()).prop_map(|(id, well)| Op::Done { id, well }),
            1 => Just(Op::Drain),
            2 => Just(Op::Foreign),
        ]
    }

    #[derive(Debug, Clone, Copy, PartialEq)]
    enum Expected {
        Nothing,
        Run(u64),
        Stop(u64),
        Accepted(u64),
        Final(u64),
        Chunk(u64),
        Go,
        Next,
        Close,
    }

    fn kind(output: &Output) -> Expected {
        match output {
            Output::Send(Frame::Accepted { id }) => Expected::Accepted(*id),
            Output::Send(Frame::Result { id, .. } | Frame::Error { id, .. }) => Expected::Final(*id),
            Output::Send(Frame::Chunk { id, .. }) => Expected::Chunk(*id),
            Output::Send(frame) => panic!("an answerer does not send {frame:?} here"),
            Output::Run { id, .. } => Expected::Run(*id),
            Output::Stop { id } => Expected::Stop(*id),
            Output::Go { .. } => Expected::Go,
            Output::Next { .. } => Expected::Next,
            Output::Close(_) => Expected::Close,
        }
    }

    fn lane() -> (State, Vec<Output>) {
        (State::new(CALLS_MAX), Vec::new())
    }

    fn running(ids: &[u64]) -> (State, Vec<Output>) {
        let (mut lane, mut outputs) = lane();
        for id in ids {
            lane.on_frame(request(*id, 60_000), ms(0), &mut outputs);
        }
        assert_eq!(lane.running_len(), ids.len());
        outputs.clear();
        (lane, outputs)
    }

    /// One call with a window of 1,024.
    fn streaming() -> (State, Vec<Output>) {
        let (mut lane, mut outputs) = lane();
        let Frame::Request { id, mut request } = request(1, 600_000) else { panic!("a request") };
        (request.window_bytes, request.confirm) = (1_024, false);
        lane.on_frame(Frame::Request { id, request }, ms(0), &mut outputs);
        outputs.clear();
        (lane, outputs)
    }

    fn refusal(outputs: &[Output]) -> Failure {
        let [Output::Send(Frame::Error { failure, .. })] = outputs else { panic!("not refused: {outputs:?}") };
        serde_json::from_slice(failure).expect("a failure as JSON")
    }

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn request(id: u64, budget_ms: u64) -> Frame {
        let request = Request {
            invocation: InvocationId::from_random(1),
            capability: "echo".parse().expect("a valid name"),
            version: None,
            agent: AgentId::from_public_key([1; 32]),
            budget_ms,
            priority: Priority::Normal,
            key: None,
            fence: None,
            traceparent: None,
            hops: Vec::new(),
            confirm: true,
            window_bytes: 0,
            body: Body::Inline("{}".into()),
            with_context: false,
        };
        Frame::Request { id, request: Box::new(request) }
    }

    fn success() -> Success {
        Success { units: None, execution_us: 1, body: Body::Inline("1".into()) }
    }

    fn failure() -> AttemptFailure {
        AttemptFailure { failure: Failure::new(ErrorCode::AgentFailed, "no"), begun: true }
    }
}
