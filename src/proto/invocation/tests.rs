//! Both ends of a lane together: honest ends, frames that arrive in order and at any time, agents and callers that do what they like.
//!
//! The tests beside [`client`] and [`server`] hold each end to its word against a peer that sends anything. Here each hears only what the
//! other said, however late: then neither may take the other for a liar, every call has one end at each side, every chunk arrives once, in
//! order and within the credit, no credit is lost, and a call whose caller was told that it has not begun never does.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;
use proptest::test_runner::{RngSeed, TestRunner};

use super::call::AttemptFailure;
use super::client::{self, Outcome};
use super::server;
use crate::model::{AgentId, ErrorCode, Failure, InvocationId, Priority};
use crate::wire::invocation::{Body, Frame, Request, Success, chunk_cost};

/// More calls than either end takes, so that both refuse some.
const CALLS: u64 = 10;
const PENDING_MAX: usize = 6;
const RUNNING_MAX: usize = 4;
/// Credit for the chunks of a call; a chunk may cost half of it.
const WINDOW_BYTES: u64 = 1_024;
const CHUNK_BYTES_MAX: usize = 512;

/// Something happens; `pick` chooses among the calls to which it can happen.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Op {
    Call {
        confirm: bool,
        streams: bool,
        budget_ms: u64,
    },
    Cancel {
        pick: usize,
    },
    /// The next frame arrives at the agent's side.
    Up,
    /// The next frame arrives at the caller's side.
    Down,
    Free {
        pick: usize,
    },
    Chunk {
        pick: usize,
        bytes: usize,
    },
    Done {
        pick: usize,
        well: bool,
    },
    Take {
        pick: usize,
    },
    Pass {
        ms: u64,
    },
    Drain,
    Lose,
}

fn op() -> impl Strategy<Value = Op> {
    let pick = || 0..PENDING_MAX;
    let call = (any::<bool>(), prop::bool::weighted(0.7), prop::sample::select(vec![100_u64, 5_000, 600_000, 600_000]));
    prop_oneof![
        12 => call.prop_map(|(confirm, streams, budget_ms)| Op::Call { confirm, streams, budget_ms }),
        3 => pick().prop_map(|pick| Op::Cancel { pick }),
        60 => Just(Op::Up),
        60 => Just(Op::Down),
        15 => pick().prop_map(|pick| Op::Free { pick }),
        60 => (pick(), 1..=CHUNK_BYTES_MAX).prop_map(|(pick, bytes)| Op::Chunk { pick, bytes }),
        6 => (pick(), any::<bool>()).prop_map(|(pick, well)| Op::Done { pick, well }),
        50 => pick().prop_map(|pick| Op::Take { pick }),
        8 => prop::sample::select(vec![1_u64, 90, 600, 2_500, 31_000]).prop_map(|ms| Op::Pass { ms }),
        1 => prop_oneof![4 => Just(Op::Drain), 1 => Just(Op::Lose)],
    ]
}

/// What one call has seen so far.
#[derive(Debug, Default)]
struct Call {
    confirm: bool,
    streams: bool,
    settled: u32,
    succeeded: bool,
    /// The caller was told that the agent has not begun.
    not_begun: bool,
    /// The agent's side has the call, and has not said that it is done.
    runs: bool,
    begun: bool,
    stopped: bool,
    /// The agent may report a chunk.
    may_chunk: bool,
    chunks_reported: usize,
    /// Chunks that arrived, and of these those that are not taken, by what they cost.
    chunks_arrived: usize,
    untaken: VecDeque<u64>,
    sent_cost: u64,
    granted: u64,
}

struct World {
    client: client::State<u64>,
    server: server::State,
    up: VecDeque<Frame>,
    down: VecDeque<Frame>,
    now: Duration,
    calls: BTreeMap<u64, Call>,
    seen: BTreeSet<&'static str>,
}

impl World {
    fn new() -> Self {
        Self {
            client: client::State::new(PENDING_MAX, Duration::ZERO),
            server: server::State::new(RUNNING_MAX),
            up: VecDeque::new(),
            down: VecDeque::new(),
            now: Duration::ZERO,
            calls: BTreeMap::new(),
            seen: BTreeSet::new(),
        }
    }

    fn apply(&mut self, op: Op) -> Result<(), TestCaseError> {
        let (mut said, mut done) = (Vec::new(), Vec::new());
        match op {
            Op::Call { confirm, streams, budget_ms } => {
                let id = u64::try_from(self.calls.len()).expect("few calls");
                if id < CALLS {
                    let window_bytes = if streams { WINDOW_BYTES } else { 0 };
                    self.calls.insert(id, Call { confirm, streams, granted: window_bytes, ..Call::default() });
                    let deadline = self.now + Duration::from_millis(budget_ms);
                    self.client.handle_call(id, Box::new(request(confirm, window_bytes, budget_ms)), id, deadline, self.now, &mut said);
                }
            }
            Op::Cancel { pick } => {
                if let Some((id, _)) = self.pick(pick, |call| call.settled == 0) {
                    self.client.handle_cancel(id, &mut said);
                }
            }
            Op::Up => {
                if let Some(frame) = self.up.pop_front() {
                    self.server.on_frame(frame, self.now, &mut done);
                }
            }
            Op::Down => {
                if let Some(frame) = self.down.pop_front() {
                    self.client.on_frame(frame, self.now, &mut said);
                }
            }
            Op::Free { pick } => {
                if let Some((id, _)) = self.pick(pick, |call| call.runs && !call.begun) {
                    self.server.handle_accepted(id, self.now, &mut done);
                }
            }
            Op::Chunk { pick, bytes } => {
                if let Some((id, call)) = self.pick(pick, |call| call.runs && call.begun && call.may_chunk) {
                    call.may_chunk = !call.streams;
                    let chunk = chunk(call.chunks_reported, bytes);
                    call.chunks_reported += 1;
                    self.server.handle_chunk(id, chunk, self.now, &mut done);
                }
            }
            Op::Done { pick, well } => {
                if let Some((id, call)) = self.pick(pick, |call| call.runs) {
                    call.runs = false;
                    let failure = Failure::new(ErrorCode::AgentFailed, "no");
                    let result = if well && call.begun { Ok(success()) } else { Err(AttemptFailure { failure, begun: call.begun }) };
                    self.server.handle_done(id, result, &mut done);
                }
            }
            Op::Take { pick } => {
                if let Some((id, call)) = self.pick(pick, |call| !call.untaken.is_empty()) {
                    let cost = call.untaken.pop_front().unwrap_or_default();
                    self.client.handle_taken(id, cost, &mut said);
                }
            }
            Op::Pass { ms } => {
                self.now += Duration::from_millis(ms);
                // The other side takes in what is sent to it: silence is another test's business.
                self.client.on_alive(self.now);
                self.client.handle_timeout(self.now, &mut said);
                self.server.handle_timeout(self.now, &mut done);
            }
            Op::Drain => self.server.handle_drain(),
            Op::Lose => {
                (self.up, self.down) = (VecDeque::new(), VecDeque::new());
                self.client.on_closed(&mut said);
                self.server.on_closed(&mut done);
            }
        }
        for output in said {
            self.caller_does(output)?;
        }
        for output in done {
            self.agent_does(output)?;
        }
        Ok(())
    }

    fn pick(&mut self, pick: usize, fits: impl Fn(&Call) -> bool) -> Option<(u64, &mut Call)> {
        let mut fitting: Vec<_> = self.calls.iter_mut().filter(|(_, call)| fits(call)).map(|(id, call)| (*id, call)).collect();
        if fitting.is_empty() { None } else { Some(fitting.swap_remove(pick % fitting.len())) }
    }

    fn caller_does(&mut self, output: client::Output<u64>) -> Result<(), TestCaseError> {
        match output {
            client::Output::Send(frame) => self.up.push_back(frame),
            client::Output::Accepted(_) => {}
            client::Output::Settle(id, outcome) => {
                let call = self.calls.get_mut(&id).expect("a call that was made");
                call.settled += 1;
                prop_assert_eq!(call.settled, 1, "call {} is settled again by {:?}", id, outcome);
                let (seen, begun) = match outcome {
                    Outcome::Success(_) => ("success", true),
                    Outcome::Failed { failure, begun } if failure.code == ErrorCode::Cancelled => ("cancelled", begun),
                    Outcome::Failed { begun, .. } => ("refused", begun),
                    Outcome::Lost { begun } => ("lost", begun),
                    Outcome::TimedOut { begun } => ("timed out", begun),
                };
                self.seen.insert(seen);
                (call.succeeded, call.not_begun) = (seen == "success", !begun);
                prop_assert!(!(call.not_begun && call.begun), "call {} has begun, and its caller was told otherwise", id);
            }
            client::Output::Chunk(id, bytes) => {
                let call = self.calls.get_mut(&id).expect("a call that was made");
                prop_assert_eq!(call.settled, 0, "a chunk of call {} after its end", id);
                prop_assert_eq!(&bytes, &chunk(call.chunks_arrived, bytes.len()), "chunks of call {} out of order", id);
                self.seen.insert("chunk");
                call.chunks_arrived += 1;
                call.untaken.push_back(chunk_cost(bytes.len()));
                let waiting: u64 = call.untaken.iter().sum();
                prop_assert!(waiting <= WINDOW_BYTES, "{} bytes of call {} wait for a caller who granted {}", waiting, id, WINDOW_BYTES);
            }
            client::Output::Close(why) => prop_assert!(false, "the caller's end takes the agent's for a liar: {:?}", why),
        }
        Ok(())
    }

    fn agent_does(&mut self, output: server::Output) -> Result<(), TestCaseError> {
        match output {
            server::Output::Send(frame) => {
                if let Frame::Chunk { id, chunk } = &frame {
                    let call = self.calls.get_mut(id).expect("a call that was made");
                    call.sent_cost += chunk_cost(chunk.len());
                    prop_assert!(call.sent_cost <= call.granted, "call {} sent {} of {}", id, call.sent_cost, call.granted);
                }
                self.down.push_back(frame);
            }
            server::Output::Run { id, .. } => {
                let call = self.calls.get_mut(&id).expect("a call that was made");
                if !call.confirm {
                    self.seen.insert("begun without leave");
                }
                (call.runs, call.begun, call.may_chunk) = (true, !call.confirm, true);
                prop_assert!(!(call.begun && call.not_begun), "call {} begins, and its caller was told that it has not", id);
            }
            server::Output::Go { id } => {
                let call = self.calls.get_mut(&id).expect("a call that was made");
                prop_assert!(!call.not_begun, "call {} begins, and its caller was told that it has not", id);
                prop_assert!(call.confirm && !call.begun && !call.stopped, "call {} begins again", id);
                self.seen.insert("go");
                call.begun = true;
            }
            server::Output::Next { id } => self.calls.get_mut(&id).expect("a call that was made").may_chunk = true,
            server::Output::Stop { id } => {
                let call = self.calls.get_mut(&id).expect("a call that was made");
                prop_assert!(!call.stopped, "call {} is stopped again", id);
                self.seen.insert("stopped");
                call.stopped = true;
            }
            server::Output::Close(why) => prop_assert!(false, "the agent's end takes the caller's for a liar: {}", why),
        }
        Ok(())
    }

    /// Notes what credit is about to reach the agent's side.
    fn watch(&mut self, op: Op) {
        if let (Op::Up, Some(Frame::Credit { id, bytes })) = (op, self.up.front()) {
            self.seen.insert("credit");
            self.calls.get_mut(id).expect("a call that was made").granted += bytes;
        }
    }

    /// Everybody does what is left to do, and no time passes: if a call has no end then, it waits for credit that was lost.
    fn finish(&mut self) -> Result<(), TestCaseError> {
        for _ in 0..10_000 {
            let op = if !self.up.is_empty() {
                Op::Up
            } else if !self.down.is_empty() {
                Op::Down
            } else if self.calls.values().any(|call| !call.untaken.is_empty()) {
                Op::Take { pick: 0 }
            } else if self.calls.values().any(|call| call.runs) {
                Op::Done { pick: 0, well: true }
            } else {
                return Ok(());
            };
            self.watch(op);
            self.apply(op)?;
        }
        Err(TestCaseError::fail("the ends never come to rest"))
    }
}

fn chunk(number: usize, bytes: usize) -> Bytes {
    vec![u8::try_from(number % 251).expect("below 251"); bytes].into()
}

fn request(confirm: bool, window_bytes: u64, budget_ms: u64) -> Request {
    Request {
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
        confirm,
        window_bytes,
        body: Body::Inline("{}".into()),
        with_context: false,
    }
}

fn success() -> Success {
    Success { units: None, execution_us: 1, body: Body::Inline("1".into()) }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, rng_seed: RngSeed::Fixed(11), ..ProptestConfig::with_cases(256) })]

    /// MEAP-7, MEAP-9, AMP-4: one reply per accepted call under any order of events, no credit lost, none exceeded, nothing done twice.
    #[test]
    fn two_honest_ends_agree_whatever_happens_when(ops in prop::collection::vec(op(), 1..400)) {
        let mut world = World::new();
        for op in ops {
            world.watch(op);
            world.apply(op)?;
        }
        world.finish()?;
        for (id, call) in &world.calls {
            prop_assert_eq!(call.settled, 1, "call {} has no end: {:?}", id, call);
        }
        for (id, call) in world.calls.iter().filter(|(_, call)| call.streams && call.succeeded) {
            prop_assert_eq!(call.chunks_arrived, call.chunks_reported, "call {} ended well without all its chunks", id);
        }
        prop_assert_eq!((world.client.pending_len(), world.server.running_len()), (0, 0));
        prop_assert_eq!((world.client.poll_timeout(), world.server.poll_timeout()), (None, None));
    }
}

/// The property would be worth little if its worlds never came to what it speaks of.
#[test]
fn the_worlds_of_the_property_come_to_what_it_speaks_of() {
    let seen = RefCell::new(BTreeSet::new());
    let config = ProptestConfig { failure_persistence: None, rng_seed: RngSeed::Fixed(11), ..ProptestConfig::with_cases(60) };
    let ran = TestRunner::new(config).run(&prop::collection::vec(op(), 300..400), |ops| {
        let mut world = World::new();
        for op in ops {
            world.watch(op);
            world.apply(op)?;
        }
        seen.borrow_mut().append(&mut world.seen);
        Ok(())
    });
    assert_eq!(ran, Ok(()));
    let wanted = ["begun without leave", "cancelled", "chunk", "credit", "go", "lost", "refused", "stopped", "success", "timed out"];
    assert_eq!(seen.into_inner(), BTreeSet::from(wanted));
}
