//! What the end of an attempt says about the agent: to its breaker, to its trust, and to the directory.
//!
//! Refusals and the caller's own faults say nothing (MEAP-9). That an agent is down or unknown at its node is believed at once and costs
//! trust, but is no business of the breaker, since the directory leaves the agent out until it shows itself. A deadline that passed
//! counts only if there was time enough to answer. An answer that comes far later than the agent claims is a broken promise (threat T16).

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

/// How long `candidate` may take until it is late, in milliseconds; with a queue before it, as much longer.
fn late_ms(candidate: &Candidate) -> f64 {
    let claimed = candidate.claimed_ms().or(candidate.estimate.latency_ms).unwrap_or_default();
    let ahead = f64::from(candidate.entry.load()) / f64::from(candidate.entry.record.concurrency.max(1));
    (claimed * LATE_FACTOR).max(LATE_FLOOR_MS) * ahead.max(1.0)
}

/// What it says that `candidate` ended like this after `took`; to be asked before its load counts down. How long an answer takes that
/// was `streamed` is up to its reader as well, so its time is not held against the agent.
pub fn evidence(candidate: &Candidate, failed: Option<&AttemptFailure>, took: Duration, streamed: bool) -> Evidence {
    let took_ms = took.as_secs_f64() * 1_000.0;
    let latency_ms = if streamed { candidate.estimate.latency_ms.unwrap_or_else(|| took_ms.min(late_ms(candidate))) } else { took_ms };
    let Some(AttemptFailure { failure, begun }) = failed else {
        let late = !streamed && candidate.claimed_ms().is_some() && latency_ms > late_ms(candidate);
        let trust = if late { trust::Outcome::Late { latency_ms } } else { trust::Outcome::Success { latency_ms } };
        return Evidence { breaker: breaker::Outcome::Success, trust: Some(trust), down: false };
    };
    let callers_fault = failure.is_refusal() || (failure.code == ErrorCode::InvalidSchema && !failure.retryable);
    let hasty = failure.code == ErrorCode::Timeout && (streamed || took_ms < late_ms(candidate));
    if callers_fault || hasty {
        return Evidence::NONE;
    }
    let down = matches!(failure.code, ErrorCode::Unavailable | ErrorCode::AgentNotFound) && !begun;
    let worked = *begun || failure.code == ErrorCode::Timeout;
    let breaker = if worked { breaker::Outcome::Failure } else { breaker::Outcome::Nothing };
    Evidence { breaker, trust: Some(trust::Outcome::Failure), down }
}

#[cfg(test)]
mod tests {
    use super::super::testing::agent;
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
    }

    #[test]
    fn what_fails_after_it_was_taken_counts_against_the_agent() {
        let failed = Evidence { breaker: breaker::Outcome::Failure, trust: Some(trust::Outcome::Failure), down: false };
        assert_eq!(ended(ErrorCode::AgentFailed, true, 10), failed);
        assert_eq!(ended(ErrorCode::Unavailable, true, 10), failed);
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
        assert_eq!(ended(ErrorCode::Timeout, true, 1_000).breaker, breaker::Outcome::Failure);
    }

    /// T16: what is claimed is held against what is measured.
    #[test]
    fn an_answer_far_later_than_claimed_is_a_broken_promise() {
        let said = |ms: u64, took_ms: u64| evidence(&agent(1).claims_ms(ms).build(), None, Duration::from_millis(took_ms), false).trust;
        assert_eq!(said(1, 200), Some(trust::Outcome::Success { latency_ms: 200.0 }), "networks are slow");
        assert_eq!(said(1, 600), Some(trust::Outcome::Late { latency_ms: 600.0 }));
        assert_eq!(said(200, 600), Some(trust::Outcome::Success { latency_ms: 600.0 }), "within five times its word");
        assert_eq!(said(200, 1_200), Some(trust::Outcome::Late { latency_ms: 1_200.0 }));
        let queued = agent(1).claims_ms(1).load(2, 2).build();
        let trust = evidence(&queued, None, Duration::from_millis(600), false).trust;
        assert_eq!(trust, Some(trust::Outcome::Success { latency_ms: 600.0 }), "its callers made it late");
    }

    #[test]
    fn a_slow_reader_of_a_stream_is_not_the_agents_fault() {
        let (agent, minute) = (agent(1).claims_ms(1).build(), Duration::from_secs(60));
        let served = evidence(&agent, None, minute, true);
        assert_eq!(served.trust, Some(trust::Outcome::Success { latency_ms: 250.0 }));
        let failed = AttemptFailure { failure: Failure::new(ErrorCode::Timeout, "no"), begun: true };
        assert_eq!(evidence(&agent, Some(&failed), minute, true), Evidence::NONE);
    }

    fn ended(code: ErrorCode, begun: bool, took_ms: u64) -> Evidence {
        let failed = AttemptFailure { failure: Failure::new(code, "no"), begun };
        evidence(&agent(1).build(), Some(&failed), Duration::from_millis(took_ms), false)
    }
}
