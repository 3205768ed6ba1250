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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use proptest::test_runner::RngSeed;

    use super::*;
    use crate::model::{AgentId, InvocationId};
    use crate::wire::invocation::Priority;

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

        lane.handle_accepted(1, &mut outputs);
        lane.handle_done(1, Ok(success()), &mut outputs);
        lane.handle_done(2, Err(failure()), &mut outputs);

        let accepted = Output::Send(Frame::Accepted { id: 1 });
        let result = Output::Send(Frame::Result { id: 1, success: success() });
        assert_eq!(outputs, [accepted, result, Output::Send(Frame::error(2, &failure()))]);
        assert_eq!(lane.running_len(), 0);
    }

    #[test]
    fn what_is_reported_after_the_final_frame_is_not_sent() {
        let (mut lane, mut outputs) = running(&[1]);
        lane.handle_done(1, Ok(success()), &mut outputs);
        outputs.clear();
        lane.handle_accepted(1, &mut outputs);
        lane.handle_done(1, Err(failure()), &mut outputs);
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
        for frame in [Frame::Accepted { id: 1 }, result, Frame::error(1, &failure()), Frame::Pong { nonce: 1 }] {
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

        assert_eq!(outputs, [Output::Stop { id: 1 }, Output::Send(Frame::error(1, &failure()))]);
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
                        lane.handle_accepted(id, &mut outputs);
                        if running.contains_key(&id) { Expected::Accepted(id) } else { Expected::Nothing }
                    }
                    Op::Done { id, well } => {
                        lane.handle_done(id, if well { Ok(success()) } else { Err(failure()) }, &mut outputs);
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
        Close,
    }

    fn kind(output: &Output) -> Expected {
        match output {
            Output::Send(Frame::Accepted { id }) => Expected::Accepted(*id),
            Output::Send(Frame::Result { id, .. } | Frame::Error { id, .. }) => Expected::Final(*id),
            Output::Send(frame) => panic!("an answerer does not send {frame:?} here"),
            Output::Run { id, .. } => Expected::Run(*id),
            Output::Stop { id } => Expected::Stop(*id),
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
            traceparent: None,
            hops: Vec::new(),
            payload: "{}".into(),
        };
        Frame::Request { id, request: Box::new(request) }
    }

    fn success() -> Success {
        Success { units: None, execution_us: 1, payload: "1".into() }
    }

    fn failure() -> Failure {
        Failure::new(ErrorCode::AgentFailed, "no")
    }
}
