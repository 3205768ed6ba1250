//! What the end of an attempt says about the agent: to its breaker, to its trust, and to the directory.
//!
//! Refusals and the caller's own faults say nothing (MEAP-9). That an agent is down or unknown at its node is believed at once and costs
//! trust, but is no business of the breaker, since the directory leaves the agent out until it shows itself. An answer that comes far
//! later than the agent claims is a broken promise (threat T16).
//!
//! A call that ran out of time counts only if there was time enough to answer, and if it was not its reader who used it up. It counts just
//! the same whether the agent fell silent or said itself that time ran out, and no claim makes `ENOUGH_MS` too short. What the caller's own
//! node held up of an attempt is no time of the agent's; a node that does not take what it is sent had enough of it.

use std::time::Duration;

use super::breaker;
use super::call::AttemptFailure;
use crate::model::ErrorCode;
use crate::proto::directory::rank::Candidate;
use crate::proto::peers::trust;

/// So many times its claimed latency may pass before an agent has broken its word: networks and queues are not its fault.
const LATE_FACTOR: f64 = 5.0;
/// No agent is late before this, in milliseconds: a claim of 1 ms is fair although its caller may be an ocean away.
const LATE_FLOOR_MS: f64 = 250.0;

/// An agent that was given this long counts as given time enough, whatever it claims and however many wait for it, in milliseconds. Else
/// one that claims to be slow could use up every deadline and never be blamed. It is well below the default deadline of a call, and above
/// what people who are in a hurry give.
const ENOUGH_MS: f64 = 10_000.0;
/// A reader that kept the agent waiting for this long in all has itself to blame if time ran out: the agent's node, too, gives up a call
/// whose chunks nobody takes, after twice as long in one piece ([`super::server::CREDIT_WAIT_MAX`]).
const HELD_MAX: Duration = Duration::from_secs(15);

/// What the side that reads the answer saw and did during an attempt.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reader {
    /// Whether a part of the answer reached it.
    pub streamed: bool,
    /// How long the agent was kept waiting by it, all parts together.
    pub held: Duration,
    /// How long it waited in vain for the next part, if that is what ended the attempt.
    pub silence: Option<Duration>,
    /// How long its own node held up the attempt: a lane to be opened, other bodies before its own, no room for the output,
    /// and the way of both as far as a slow line explains it.
    pub own: Duration,
    /// Whether the agent's node did not take the input, and said nothing about it.
    pub untaken: bool,
}

/// What an attempt has taught.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Evidence {
    /// To the breaker.
    pub breaker: breaker::Outcome,
    /// To the ledger, if anything.
    pub trust: Option<trust::Outcome>,
    /// Whether the agent is down or gone.
    pub down: bool,
}

impl Evidence {
    /// Nothing: a refusal, the caller's own fault, a call that nobody waited for.
    pub const NONE: Self = Self { breaker: breaker::Outcome::Nothing, trust: None, down: false };
}

/// How long `candidate` may take until it is late, in milliseconds: `factor` times its word; with a queue before it, as much longer.
fn late_ms(candidate: &Candidate, factor: f64) -> f64 {
    let claimed = candidate.claimed_ms().or(candidate.estimate.latency_ms).unwrap_or_default();
    let ahead = f64::from(candidate.entry.load()) / f64::from(candidate.entry.record.concurrency.max(1));
    (claimed * factor).max(LATE_FLOOR_MS) * ahead.max(1.0)
}

/// Whether a call that ran out of time left `candidate` too little of it.
fn is_hasty(candidate: &Candidate, begun: bool, took: Duration, given: Duration, reader: Reader) -> bool {
    if reader.untaken {
        return false;
    }
    let (had, enough_ms) = match reader.silence {
        // What it claims is how long an answer takes, not how long it may pause within one.
        Some(pause) if reader.streamed => (pause, LATE_FLOOR_MS),
        Some(pause) => (pause, late_ms(candidate, 1.0)),
        None if reader.held >= HELD_MAX || reader.held.saturating_mul(2) > took => return true,
        // An agent that gives up early had all the time that it did not use.
        None => (if begun { given.saturating_sub(reader.held) } else { took }, late_ms(candidate, LATE_FACTOR)),
    };
    had.as_secs_f64() * 1_000.0 < enough_ms.min(ENOUGH_MS)
}

/// What it says that `candidate` ended like this after `took` of the time that it was `given`; to be asked before its load counts down.
/// How long an answer takes that was streamed is up to its `reader` as well, so its time is not held against the agent.
pub fn evidence(candidate: &Candidate, failed: Option<&AttemptFailure>, took: Duration, given: Duration, reader: Reader) -> Evidence {
    let (took, given) = (took.saturating_sub(reader.own), given.saturating_sub(reader.own));
    let (took_ms, streamed) = (took.as_secs_f64() * 1_000.0, reader.streamed);
    let late_ms = late_ms(candidate, LATE_FACTOR);
    let latency_ms = if streamed { candidate.estimate.latency_ms.unwrap_or_else(|| took_ms.min(late_ms)) } else { took_ms };
    let Some(AttemptFailure { failure, begun }) = failed else {
        let late = !streamed && candidate.claimed_ms().is_some() && latency_ms > late_ms;
        let trust = if late { trust::Outcome::Late { latency_ms } } else { trust::Outcome::Success { latency_ms } };
        return Evidence { breaker: breaker::Outcome::Success, trust: Some(trust), down: false };
    };
    // Who finds out in the midst of the work that it cannot do it has not refused it.
    let gave_up = *begun && failure.code == ErrorCode::InsufficientResources;
    let callers_fault = (failure.is_refusal() && !gave_up) || (failure.code == ErrorCode::InvalidSchema && !failure.retryable);
    if callers_fault || (failure.code == ErrorCode::Timeout && is_hasty(candidate, *begun, took, given, reader)) {
        return Evidence::NONE;
    }
    let down = matches!(failure.code, ErrorCode::Unavailable | ErrorCode::AgentNotFound) && !begun;
    let worked = *begun || failure.code == ErrorCode::Timeout;
    let breaker = if worked { breaker::Outcome::Failure } else { breaker::Outcome::Nothing };
    Evidence { breaker, trust: Some(trust::Outcome::Failure), down }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Agent, agent};
    use super::*;
    use crate::model::Failure;

    /// MEAP-9: refusals and the caller's own faults say nothing about an agent.
    #[test]
    fn refusals_are_not_failures() {
        for code in
            [ErrorCode::Busy, ErrorCode::RateLimitExceeded, ErrorCode::Cancelled, ErrorCode::PayloadTooLarge, ErrorCode::InvalidSchema]
        {
            assert_eq!(ended(code, false, 10), Evidence::NONE, "{code}");
        }
        assert_eq!(ended(ErrorCode::Busy, true, 10), Evidence::NONE, "the work is done, and the caller has no room for its output");
    }

    #[test]
    fn what_fails_after_it_was_taken_counts_against_the_agent() {
        assert_eq!(ended(ErrorCode::AgentFailed, true, 10), FAILED);
        assert_eq!(ended(ErrorCode::Unavailable, true, 10), FAILED);
    }

    #[test]
    fn an_agent_that_is_down_is_the_directorys_business_and_not_the_breakers() {
        let down = Evidence { breaker: breaker::Outcome::Nothing, trust: Some(trust::Outcome::Failure), down: true };
        assert_eq!(ended(ErrorCode::Unavailable, false, 10), down);
        assert_eq!(ended(ErrorCode::AgentNotFound, false, 10), down);
    }

    #[test]
    fn a_deadline_that_left_no_time_is_nobodys_failure() {
        assert_eq!(ended(ErrorCode::Timeout, true, 100), Evidence::NONE);
        assert_eq!(ended(ErrorCode::Timeout, false, 100), Evidence::NONE);
        assert_eq!(ended(ErrorCode::Timeout, true, 1_000).breaker, breaker::Outcome::Failure);
    }

    /// T16: what is claimed is held against what is measured.
    #[test]
    fn an_answer_far_later_than_claimed_is_a_broken_promise() {
        let served = |agent: &Candidate, took_ms: u64| evidence(agent, None, ms(took_ms), MINUTE, Reader::default()).trust;
        let said = |ms: u64, took_ms: u64| served(&agent(1).claims_ms(ms).build(), took_ms);
        assert_eq!(said(1, 200), Some(trust::Outcome::Success { latency_ms: 200.0 }), "networks are slow");
        assert_eq!(said(1, 600), Some(trust::Outcome::Late { latency_ms: 600.0 }));
        assert_eq!(said(200, 600), Some(trust::Outcome::Success { latency_ms: 600.0 }), "within five times its word");
        assert_eq!(said(200, 1_200), Some(trust::Outcome::Late { latency_ms: 1_200.0 }));
        let queued = agent(1).claims_ms(1).load(2, 2).build();
        assert_eq!(served(&queued, 600), Some(trust::Outcome::Success { latency_ms: 600.0 }), "its callers made it late");
    }

    #[test]
    fn a_slow_reader_of_a_stream_is_not_the_agents_fault() {
        let agent = agent(1).claims_ms(1);
        let reader = |held_ms: u64| Reader { streamed: true, held: ms(held_ms), ..Reader::default() };
        let served = evidence(&agent.build(), None, MINUTE, MINUTE, reader(50_000));
        assert_eq!(served.trust, Some(trust::Outcome::Success { latency_ms: 250.0 }));
        for (took_ms, held_ms) in [(60_000, 50_000), (60_000, 15_000), (31_000, 30_000), (1_000, 600)] {
            assert_eq!(timed_out(&agent, took_ms, took_ms, reader(held_ms)), Evidence::NONE, "{held_ms} of {took_ms} ms");
        }
        assert_eq!(timed_out(&agent, 60_000, 60_000, reader(14_000)), FAILED, "the agent had three quarters of the time");
    }

    /// MEAP-9: a caller that asks for much at once waits for itself.
    #[test]
    fn what_the_callers_own_node_held_up_is_no_time_of_the_agent() {
        let agent = agent(1).claims_ms(1);
        let waited = |own_ms: u64| Reader { own: ms(own_ms), ..Reader::default() };
        let served = evidence(&agent.build(), None, ms(8_000), MINUTE, waited(7_900));
        assert_eq!(served.trust, Some(trust::Outcome::Success { latency_ms: 100.0 }));
        let served = evidence(&agent.build(), None, ms(8_000), MINUTE, waited(7_000));
        assert_eq!(served.trust, Some(trust::Outcome::Late { latency_ms: 1_000.0 }));
        assert_eq!(timed_out(&agent, 60_000, 60_000, waited(59_900)), Evidence::NONE, "it was asked at the last moment");
        assert_eq!(timed_out(&agent, 60_000, 60_000, waited(50_000)), FAILED);
    }

    /// T16: no claim says how long a node may leave an input untaken.
    #[test]
    fn a_node_that_does_not_take_its_input_has_failed() {
        for claims_ms in [1, 12_000, 600_000] {
            let reader = Reader { own: ms(5_000), untaken: true, ..Reader::default() };
            assert_eq!(timed_out(&agent(1).claims_ms(claims_ms), 6_000, 60_000, reader), FAILED, "{claims_ms}");
        }
    }

    /// T16: a first part does not excuse that no other comes.
    #[test]
    fn an_agent_that_falls_silent_while_somebody_waits_has_failed() {
        for claims_ms in [1, 12_000, 600_000] {
            let agent = agent(1).claims_ms(claims_ms);
            let waited = |streamed, pause_ms: u64| {
                let reader = Reader { streamed, silence: Some(ms(pause_ms)), ..Reader::default() };
                timed_out(&agent, pause_ms + 10, 60_000, reader)
            };
            assert_eq!(waited(true, 300), FAILED, "{claims_ms}");
            assert_eq!(waited(true, 100), Evidence::NONE, "whoever waits no time has seen nothing");
            assert_eq!(waited(false, 10_000), FAILED, "{claims_ms}");
            assert_eq!(timed_out(&agent, 60_000, 60_000, Reader { streamed: true, ..Reader::default() }), FAILED, "{claims_ms}");
        }
        let first = |claims_ms, pause_ms: u64| {
            let reader = Reader { silence: Some(ms(pause_ms)), ..Reader::default() };
            timed_out(&agent(1).claims_ms(claims_ms), pause_ms, 60_000, reader)
        };
        assert_eq!(first(2_000, 1_900), Evidence::NONE, "it may take what it claims");
        assert_eq!(first(2_000, 2_100), FAILED);
    }

    /// T16: whoever claims to be slow enough is still blamed for never answering.
    #[test]
    fn no_claim_and_no_queue_excuses_an_agent_that_used_up_a_long_deadline() {
        let (slow, queued) = (agent(1).claims_ms(12_000), agent(1).claims_ms(600_000).load(100, 0));
        for agent in [&slow, &queued] {
            assert_eq!(timed_out(agent, 60_000, 60_000, Reader::default()), FAILED);
            assert_eq!(timed_out(agent, 10_000, 10_000, Reader::default()), FAILED);
            assert_eq!(timed_out(agent, 9_000, 9_000, Reader::default()), Evidence::NONE, "its word stands against a short deadline");
        }
    }

    /// T16: saying that time ran out is not better than letting it run out.
    #[test]
    fn an_agent_that_gives_up_with_time_to_spare_has_failed() {
        let agent = agent(1).claims_ms(12_000);
        assert_eq!(timed_out(&agent, 5, 60_000, Reader::default()), FAILED);
        assert_eq!(timed_out(&agent, 5, 100, Reader::default()), Evidence::NONE, "nobody could have done it");
        assert_eq!(ended(ErrorCode::InsufficientResources, true, 5), FAILED);
        assert_eq!(ended(ErrorCode::InsufficientResources, false, 5), Evidence::NONE);
        assert_eq!(ended(ErrorCode::InvalidRequest, true, 5), Evidence::NONE, "the caller's fault, whoever finds it");
    }

    const FAILED: Evidence = Evidence { breaker: breaker::Outcome::Failure, trust: Some(trust::Outcome::Failure), down: false };
    const MINUTE: Duration = Duration::from_secs(60);

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn timed_out(agent: &Agent, took_ms: u64, given_ms: u64, reader: Reader) -> Evidence {
        let failed = AttemptFailure { failure: Failure::new(ErrorCode::Timeout, "no"), begun: true };
        evidence(&agent.build(), Some(&failed), ms(took_ms), ms(given_ms), reader)
    }

    /// The end of an attempt that took all the time that it had.
    fn ended(code: ErrorCode, begun: bool, took_ms: u64) -> Evidence {
        let failed = AttemptFailure { failure: Failure::new(code, "no"), begun };
        evidence(&agent(1).build(), Some(&failed), ms(took_ms), ms(took_ms), Reader::default())
    }
}
