//! One call from the side of its caller: whom to ask, and whether to ask another when that fails.
//!
//! A call is given to another agent only where that is safe: when nobody took responsibility for it yet, or when doing it twice does no
//! harm, because the caller gave an idempotency key or the capability says so. An agent is asked once per call. What remains when nobody
//! is left is the most telling failure, not the last one.

use std::collections::BTreeSet;
use std::time::Duration;

use rand::Rng;

use crate::model::{AgentId, CapabilityName, ErrorCode, Failure, NodeId, nearest};
use crate::proto::directory::rank::{Answer, Candidate};
use crate::proto::directory::{Reach, without};

/// Scores within this distance of the best are equals; among them load decides, then chance.
const NEAR: f64 = 0.02;

/// How calls are tried.
#[derive(Debug, Clone, Copy)]
pub struct Config {
    /// Agents asked at most.
    pub attempts_max: u32,
    /// Share of calls, 0 to 1, that go to somebody of whom little is known, if one is there.
    pub exploration: f64,
}

/// How an attempt ended, if not well.
#[derive(Debug, Clone, PartialEq)]
pub struct AttemptFailure {
    /// Why.
    pub failure: Failure,
    /// Whether the agent's node had taken responsibility.
    pub accepted: bool,
}

/// One attempt, for people who want to know.
#[derive(Debug, Clone)]
pub struct Attempt {
    /// Who was asked.
    pub agent: AgentId,
    /// On which node.
    pub node: NodeId,
    /// When, since the call began.
    pub started: Duration,
    /// When it was over, since the call began.
    pub ended: Option<Duration>,
    /// How it failed; `None` while it runs or if it went well.
    pub failure: Option<AttemptFailure>,
}

/// What to do next.
#[derive(Debug, Clone)]
pub enum Step {
    /// Ask this agent.
    Ask(Box<Candidate>),
    /// Look further than the directory: nobody here will do, and nobody has been asked.
    Search,
    /// Give up.
    Fail(Failure),
}

/// The state of one call.
#[derive(Debug)]
pub struct State {
    config: Config,
    capability: CapabilityName,
    pinned: Option<AgentId>,
    repeatable: bool,
    started: Duration,
    deadline: Duration,
    searched: bool,
    tried: BTreeSet<AgentId>,
    attempts: Vec<Attempt>,
    asked_idempotent: bool,
    streamed: bool,
}

impl State {
    /// A call that begins `now` and must be over at `deadline`. `pinned` names the only agent that may be asked; `repeatable` says that
    /// the caller gave a key.
    pub fn new(
        config: Config,
        capability: CapabilityName,
        pinned: Option<AgentId>,
        repeatable: bool,
        now: Duration,
        deadline: Duration,
    ) -> Self {
        Self {
            config,
            capability,
            pinned,
            repeatable,
            started: now,
            deadline,
            searched: false,
            tried: BTreeSet::new(),
            attempts: Vec::new(),
            asked_idempotent: false,
            streamed: false,
        }
    }

    /// Who was asked so far.
    pub fn attempts(&self) -> &[Attempt] {
        &self.attempts
    }

    /// Decides the next step from what the directory answers. Must not be called while an attempt runs.
    pub fn next(
        &mut self,
        mut answer: Answer,
        known_names: &mut dyn Iterator<Item = &CapabilityName>,
        now: Duration,
        rng: &mut impl Rng,
    ) -> Step {
        if now >= self.deadline {
            return Step::Fail(self.timeout());
        }
        if let Some(last) = self.attempts.last().and_then(|attempt| attempt.failure.as_ref()) {
            let safe = !self.streamed && (!last.accepted || self.repeatable || self.asked_idempotent);
            if !safe || !may_go_elsewhere(last) || self.pinned.is_some() || self.attempts.len() >= self.config.attempts_max as usize {
                return Step::Fail(self.verdict());
            }
        }
        if let Some(pinned) = self.pinned {
            answer.candidates.retain(|candidate| candidate.agent() == pinned);
            answer.rejected.retain(|rejected| rejected.agent == pinned);
        }
        without(&mut answer, &self.tried);
        match self.choose(&answer.candidates, rng) {
            Some(candidate) => {
                let (agent, node) = (candidate.agent(), candidate.entry.record.node);
                self.tried.insert(agent);
                self.asked_idempotent = candidate.capability().is_some_and(|capability| capability.idempotent);
                let started = now.saturating_sub(self.started);
                self.attempts.push(Attempt { agent, node, started, ended: None, failure: None });
                Step::Ask(Box::new(candidate))
            }
            None if !self.searched => {
                self.searched = true;
                Step::Search
            }
            None if self.attempts.is_empty() => Step::Fail(self.nobody(&answer, known_names)),
            None => Step::Fail(self.verdict()),
        }
    }

    /// A part of the running attempt's answer went to the client. Another agent's answer would begin anew, so nobody else is asked.
    pub fn on_chunk(&mut self) {
        self.streamed = true;
    }

    /// The running attempt ended well.
    pub fn on_success(&mut self, now: Duration) {
        if let Some(attempt) = self.attempts.last_mut() {
            attempt.ended = Some(now.saturating_sub(self.started));
        }
    }

    /// The running attempt failed.
    pub fn on_failure(&mut self, failure: AttemptFailure, now: Duration) {
        if let Some(attempt) = self.attempts.last_mut() {
            attempt.ended = Some(now.saturating_sub(self.started));
            attempt.failure = Some(failure);
        }
    }

    fn choose(&self, candidates: &[Candidate], rng: &mut impl Rng) -> Option<Candidate> {
        let best = candidates.first()?.score;
        let strangers: Vec<&Candidate> = candidates.iter().filter(|c| c.estimate.successes + c.estimate.failures < 1.0).collect();
        if self.attempts.is_empty() && !strangers.is_empty() && rng.random_bool(self.config.exploration.clamp(0.0, 1.0)) {
            let at = rng.random_range(0..strangers.len());
            return strangers.get(at).map(|candidate| (*candidate).clone());
        }
        let mut equals: Vec<&Candidate> = candidates.iter().filter(|candidate| best - candidate.score <= NEAR).collect();
        let load = |candidate: &Candidate| {
            (u64::from(candidate.entry.in_flight) + u64::from(candidate.entry.queued)) * 16
                / u64::from(candidate.entry.record.concurrency.max(1))
        };
        let least = equals.iter().map(|candidate| load(candidate)).min()?;
        equals.retain(|candidate| load(candidate) == least);
        // An agent on this node costs no network; only among those otherwise equal.
        if let Some(here) = equals.iter().find(|candidate| candidate.entry.reach == Reach::Here) {
            return Some((*here).clone());
        }
        let at = rng.random_range(0..equals.len());
        equals.get(at).map(|candidate| (*candidate).clone())
    }

    fn timeout(&self) -> Failure {
        let waited_ms = u64::try_from(self.deadline.saturating_sub(self.started).as_millis()).unwrap_or(u64::MAX);
        Failure::new(ErrorCode::Timeout, format!("`{}` did not finish within {waited_ms} ms", self.capability))
            .with("timeout_ms", waited_ms)
            .with("attempts", self.attempts.len())
    }

    /// The most telling failure of all attempts: one that says what the agents did, before one that says they were busy or away.
    fn verdict(&self) -> Failure {
        let failures = self.attempts.iter().filter_map(|attempt| attempt.failure.as_ref());
        let telling = |failed: &&AttemptFailure| (failed.accepted, !failed.failure.is_refusal(), failed.failure.code == ErrorCode::Busy);
        let best = failures.max_by_key(telling).map(|failed| failed.failure.clone());
        best.unwrap_or_else(|| self.timeout()).with("attempts", self.attempts.len())
    }

    fn nobody(&self, answer: &Answer, known_names: &mut dyn Iterator<Item = &CapabilityName>) -> Failure {
        if let Some(pinned) = self.pinned {
            let reason = answer.rejected.first().map_or_else(|| "it is not known here".to_owned(), |rejected| rejected.reason.to_string());
            let message = format!("agent {pinned} cannot do `{}`: {reason}", self.capability);
            return Failure::new(ErrorCode::AgentNotFound, message).with("agent_id", pinned.to_string());
        }
        let reasons: Vec<String> =
            answer.rejected.iter().take(8).map(|rejected| format!("{}: {}", rejected.name, rejected.reason)).collect();
        if !reasons.is_empty() {
            let message = format!("no agent can do `{}` now: {}", self.capability, reasons.join("; "));
            return Failure::new(ErrorCode::CapabilityNotFound, message).retryable(true).with("rejected", reasons);
        }
        let names: Vec<&str> = known_names.map(CapabilityName::as_str).collect();
        let failure = Failure::new(ErrorCode::CapabilityNotFound, format!("no agent offers `{}`", self.capability));
        let failure = failure.with("available_capabilities", names.iter().take(32).copied().collect::<Vec<_>>());
        match nearest(self.capability.as_str(), names.iter().copied().filter(|name| *name != self.capability.as_str())) {
            Some(near) => failure.with("suggestion", format!("Try '{near}' instead")),
            None => failure,
        }
    }
}

/// Whether somebody else might do better. A wrong input is wrong everywhere.
fn may_go_elsewhere(failed: &AttemptFailure) -> bool {
    let refused_for_good = matches!(
        failed.failure.code,
        ErrorCode::InvalidRequest | ErrorCode::PayloadTooLarge | ErrorCode::Cancelled | ErrorCode::Timeout | ErrorCode::OverBudget
    );
    let input_fault = failed.failure.code == ErrorCode::InvalidSchema && !failed.accepted;
    !refused_for_good && !input_fault && (failed.failure.retryable || !failed.accepted)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use rand::SeedableRng;
    use rand::rngs::SmallRng;

    use super::*;
    use crate::proto::directory::rank::{Rejected, Rejection, Terms};
    use crate::proto::directory::{Availability, Entry};
    use crate::proto::peers::trust::Estimate;
    use crate::wire::directory::Record;
    use crate::wire::directory::tests::record;
    use crate::wire::{AgentKey, NodeKey, Signed};

    /// AITP-5: the highest score wins.
    #[test]
    fn the_highest_score_is_asked_first() {
        let mut call = Call::new();
        assert_eq!(call.next(&[agent(1).score(0.9), agent(2).score(0.5)]), Asked(1));
        assert_eq!(call.state.attempts().len(), 1);
    }

    /// AOP-4: no caller sees an error if another agent can serve.
    #[test]
    fn whatever_nobody_took_is_given_to_the_next_best() {
        let candidates = [agent(1).score(0.9), agent(2).score(0.7), agent(3).score(0.5)];
        let mut call = Call::new();

        assert_eq!(call.next(&candidates), Asked(1));
        call.fails(ErrorCode::Unavailable, NOT_ACCEPTED);
        assert_eq!(call.next(&candidates), Asked(2));
        call.fails(ErrorCode::Busy, NOT_ACCEPTED);
        assert_eq!(call.next(&candidates), Asked(3));
        call.fails(ErrorCode::AccessDenied, NOT_ACCEPTED);

        assert_eq!(call.fate(&candidates), ErrorCode::Unavailable);
        assert_eq!(call.state.attempts().iter().filter(|attempt| attempt.failure.is_some()).count(), 3);
    }

    #[test]
    fn an_agent_is_asked_once_per_call() {
        let mut call = Call::new();
        assert_eq!(call.next(&[agent(1)]), Asked(1));
        call.fails(ErrorCode::Busy, NOT_ACCEPTED);
        assert_eq!(call.fate(&[agent(1)]), ErrorCode::Busy);
    }

    #[test]
    fn what_an_agent_took_is_not_given_to_another() {
        let candidates = [agent(1).score(0.9), agent(2).score(0.5)];
        let mut call = Call::new();
        assert_eq!(call.next(&candidates), Asked(1));
        call.fails(ErrorCode::AgentFailed, ACCEPTED);
        assert_eq!(call.next(&candidates), Failed(ErrorCode::AgentFailed));
    }

    #[test]
    fn with_a_key_another_agent_may_repeat_it() {
        let candidates = [agent(1).score(0.9), agent(2).score(0.5)];
        let mut call = Call::with_key();
        assert_eq!(call.next(&candidates), Asked(1));
        call.fails(ErrorCode::AgentFailed, ACCEPTED);
        assert_eq!(call.next(&candidates), Asked(2));
    }

    #[test]
    fn what_does_no_harm_twice_is_repeated_without_a_key() {
        let candidates = [agent(1).score(0.9).idempotent(), agent(2).score(0.7), agent(3).score(0.5)];
        let mut call = Call::new();
        assert_eq!(call.next(&candidates), Asked(1));
        call.fails(ErrorCode::AgentFailed, ACCEPTED);
        assert_eq!(call.next(&candidates), Asked(2));
        call.fails(ErrorCode::AgentFailed, ACCEPTED);
        assert_eq!(call.next(&candidates), Failed(ErrorCode::AgentFailed), "the second agent does not say that it does no harm");
    }

    #[test]
    fn a_pinned_call_never_leaves_its_agent() {
        let candidates = [agent(1).score(0.9), agent(2).score(0.5)];
        let mut call = Call::pinned(2);
        assert_eq!(call.next(&candidates), Asked(2));
        call.fails(ErrorCode::Unavailable, NOT_ACCEPTED);
        assert_eq!(call.next(&candidates), Failed(ErrorCode::Unavailable));
    }

    #[test]
    fn a_pinned_agent_that_will_not_do_fails_with_its_reason() {
        let mut call = Call::pinned(2);
        assert_eq!(call.next(&[agent(1)]), Searched);
        let answer =
            Answer { candidates: vec![agent(1).build()], rejected: vec![rejected(3, Rejection::Version), rejected(2, Rejection::Suspect)] };
        let failure = call.failure(answer, &[]);
        assert_eq!(failure.code, ErrorCode::AgentNotFound);
        assert!(failure.message.ends_with(&Rejection::Suspect.to_string()), "{failure}");
        assert_eq!(failure.details["agent_id"], id(2).to_string());
    }

    #[test]
    fn a_pinned_agent_that_nobody_knows_is_said_to_be_unknown() {
        let mut call = Call::pinned(2);
        assert_eq!(call.next(&[]), Searched);
        let failure = call.failure(Answer::default(), &[]);
        assert_eq!(failure.code, ErrorCode::AgentNotFound);
        assert!(failure.message.ends_with("it is not known here"), "{failure}");
    }

    #[test]
    fn no_more_than_attempts_max_agents_are_asked() {
        let candidates = [agent(1).score(0.9), agent(2).score(0.7), agent(3).score(0.5), agent(4).score(0.3)];
        let mut call = Call::new();
        for number in 1..=3 {
            assert_eq!(call.next(&candidates), Asked(number));
            call.fails(ErrorCode::Unavailable, NOT_ACCEPTED);
        }
        assert_eq!(call.next(&candidates), Failed(ErrorCode::Unavailable));
    }

    #[test]
    fn the_deadline_ends_the_search_for_agents() {
        let candidates = [agent(1).score(0.9), agent(2).score(0.5)];
        let mut call = Call::new();
        assert_eq!(call.next(&candidates), Asked(1));
        call.fails(ErrorCode::Unavailable, NOT_ACCEPTED);
        call.now = DEADLINE;
        let failure = call.failure(answer(&candidates), &[]);
        assert_eq!(failure.code, ErrorCode::Timeout);
        assert_eq!((failure.details["timeout_ms"].as_u64(), failure.details["attempts"].as_u64()), (Some(60_000), Some(1)));
    }

    #[test]
    fn a_wrong_input_is_not_tried_elsewhere() {
        let candidates = [agent(1).score(0.9), agent(2).score(0.5)];
        for code in [ErrorCode::InvalidSchema, ErrorCode::InvalidRequest, ErrorCode::PayloadTooLarge] {
            let mut call = Call::with_key();
            assert_eq!(call.next(&candidates), Asked(1));
            call.fails(code, NOT_ACCEPTED);
            assert_eq!(call.next(&candidates), Failed(code));
        }
    }

    #[test]
    fn what_was_cancelled_or_ran_out_of_time_or_money_is_not_tried_elsewhere() {
        let candidates = [agent(1).score(0.9), agent(2).score(0.5)];
        for code in [ErrorCode::Cancelled, ErrorCode::Timeout, ErrorCode::OverBudget] {
            let mut call = Call::with_key();
            assert_eq!(call.next(&candidates), Asked(1));
            call.fails(code, NOT_ACCEPTED);
            assert_eq!(call.next(&candidates), Failed(code));
        }
    }

    #[test]
    fn what_an_agent_took_and_calls_hopeless_is_not_tried_elsewhere_even_with_a_key() {
        let candidates = [agent(1).score(0.9), agent(2).score(0.5)];
        let mut call = Call::with_key();
        assert_eq!(call.next(&candidates), Asked(1));
        let failure = Failure::new(ErrorCode::AgentFailed, "no").retryable(false);
        call.state.on_failure(AttemptFailure { failure, accepted: true }, call.now);
        assert_eq!(call.next(&candidates), Failed(ErrorCode::AgentFailed));
    }

    #[test]
    fn when_nobody_is_there_the_mesh_is_searched_exactly_once() {
        let mut call = Call::new();
        assert_eq!(call.next(&[]), Searched);
        assert_eq!(call.next(&[]), Failed(ErrorCode::CapabilityNotFound));
    }

    #[test]
    fn whoever_the_search_finds_is_asked() {
        let mut call = Call::new();
        assert_eq!(call.next(&[]), Searched);
        assert_eq!(call.next(&[agent(1)]), Asked(1));
    }

    /// AMP-10: the nearest capability is suggested.
    #[test]
    fn an_unknown_capability_fails_with_the_nearest_known_one() {
        let mut call = Call::new();
        assert_eq!(call.next(&[]), Searched);
        let failure = call.failure(Answer::default(), &["summarization", "text-anaylsis"]);
        assert_eq!(failure.code, ErrorCode::CapabilityNotFound);
        assert!(!failure.retryable);
        assert_eq!(failure.details["suggestion"], "Try 'text-anaylsis' instead");
        assert_eq!(failure.details["available_capabilities"], serde_json::json!(["summarization", "text-anaylsis"]));
    }

    #[test]
    fn nothing_is_suggested_where_nothing_is_near() {
        let mut call = Call::new();
        assert_eq!(call.next(&[]), Searched);
        let failure = call.failure(Answer::default(), &["quantum"]);
        assert!(!failure.details.contains_key("suggestion"));
    }

    #[test]
    fn agents_that_offer_it_but_will_not_do_are_named_with_their_reasons() {
        let mut call = Call::new();
        assert_eq!(call.next(&[]), Searched);
        let answer = Answer { candidates: Vec::new(), rejected: vec![rejected(1, Rejection::Suspect), rejected(2, Rejection::Version)] };
        let failure = call.failure(answer, &["text-anaylsis"]);
        assert_eq!(failure.code, ErrorCode::CapabilityNotFound);
        assert!(failure.retryable);
        let reasons = ["agent 1: it or its node failed moments ago", "agent 2: no version fits"];
        assert_eq!(failure.details["rejected"], serde_json::json!(reasons));
    }

    #[test]
    fn the_verdict_is_the_most_telling_failure_and_not_the_last() {
        use ErrorCode::{AccessDenied, AgentFailed, Busy, Unavailable};
        let took_it = (AgentFailed, ACCEPTED);
        let cases = [
            ([took_it, (Busy, NOT_ACCEPTED), (Unavailable, NOT_ACCEPTED)], AgentFailed),
            ([(Unavailable, NOT_ACCEPTED), took_it, (Busy, NOT_ACCEPTED)], AgentFailed),
            ([(Busy, NOT_ACCEPTED), (Unavailable, NOT_ACCEPTED), (Busy, NOT_ACCEPTED)], Unavailable),
            ([(Busy, NOT_ACCEPTED), (AccessDenied, NOT_ACCEPTED), (AccessDenied, NOT_ACCEPTED)], Busy),
        ];
        for (failures, telling) in cases {
            let candidates = [agent(1).score(0.9), agent(2).score(0.7), agent(3).score(0.5)];
            let mut call = Call::with_key();
            for (code, accepted) in failures {
                assert!(matches!(call.next(&candidates), Asked(_)));
                call.fails(code, accepted);
            }
            assert_eq!(call.fate(&candidates), telling, "{failures:?}");
        }
    }

    #[test]
    fn the_verdict_counts_the_attempts() {
        let mut call = Call::pinned(1);
        assert_eq!(call.next(&[agent(1)]), Asked(1));
        call.fails(ErrorCode::Busy, NOT_ACCEPTED);
        assert_eq!(call.failure(answer(&[agent(1)]), &[]).details["attempts"], 1);
    }

    #[test]
    fn attempts_say_when_they_began_and_ended() {
        let mut call = Call::new();
        call.now = Duration::from_millis(10);
        assert_eq!(call.next(&[agent(1)]), Asked(1));
        call.state.on_success(Duration::from_millis(30));
        let [attempt] = call.state.attempts() else { panic!("one attempt") };
        assert_eq!((attempt.agent, attempt.started.as_millis()), (id(1), 10));
        assert_eq!((attempt.ended, attempt.failure.is_none()), (Some(Duration::from_millis(30)), true));
    }

    /// MEAP-5: least load among near-equals.
    #[test]
    fn among_near_equals_the_least_loaded_for_its_size_is_asked() {
        let busy = agent(1).score(0.90).load(2, 0);
        let waiting = agent(2).score(0.89).load(0, 3);
        let wide = agent(3).score(0.89).load(4, 0).concurrency(8);
        for seed in 0..20 {
            assert_eq!(Call::seeded(seed).next(&[busy.clone(), waiting.clone(), wide.clone()]), Asked(3));
        }
    }

    #[test]
    fn load_is_compared_in_fractions_of_an_agents_size() {
        let candidates = [agent(1).load(9, 0).concurrency(8), agent(2).load(1, 0)];
        for seed in 0..20 {
            assert_eq!(Call::seeded(seed).next(&candidates), Asked(2));
        }
    }

    #[test]
    fn load_does_not_make_a_worse_agent_better() {
        let candidates = [agent(1).score(0.90).load(9, 9), agent(2).score(0.87)];
        assert_eq!(Call::new().next(&candidates), Asked(1));
    }

    /// MEAP-5: equals share the calls.
    #[test]
    fn equals_share_the_calls() {
        let candidates = [agent(1).score(0.9), agent(2).score(0.9), agent(3).score(0.89)];
        let asked = tally(&candidates, 0.0, 600);
        assert!([1, 2, 3].iter().all(|number| (150..250).contains(&asked[number])), "{asked:?}");
    }

    #[test]
    fn an_agent_on_this_node_is_preferred_among_equals_only() {
        let near = [agent(1).score(0.9), agent(2).score(0.89).here()];
        let busy = [agent(1).score(0.9), agent(2).score(0.89).here().load(1, 0)];
        let worse = [agent(1).score(0.9), agent(2).score(0.5).here()];
        for seed in 0..20 {
            assert_eq!(Call::seeded(seed).next(&near), Asked(2));
            assert_eq!(Call::seeded(seed).next(&busy), Asked(1));
            assert_eq!(Call::seeded(seed).next(&worse), Asked(1));
        }
    }

    #[test]
    fn a_share_of_calls_explores_agents_of_whom_little_is_known() {
        let candidates = [agent(1).score(0.9), agent(2).score(0.3).stranger(), agent(3).score(0.2).stranger()];
        let asked = tally(&candidates, 0.1, 2_000);
        let explored = asked[&2] + asked[&3];
        assert!((140..260).contains(&explored), "{asked:?}");
        assert!(asked[&2] > 50 && asked[&3] > 50, "{asked:?}");
        assert_eq!(tally(&candidates, 0.0, 200), BTreeMap::from([(1, 200)]));
        assert!(!tally(&candidates, 7.0, 200).contains_key(&1), "more than all is all");
    }

    #[test]
    fn a_second_attempt_explores_nobody() {
        let candidates = [agent(1).score(0.9), agent(2).score(0.8), agent(3).score(0.1).stranger(), agent(4).score(0.1).stranger()];
        let mut call = Call { state: state(1.0, None, false), ..Call::new() };
        assert!(matches!(call.next(&candidates), Asked(3 | 4)));
        call.fails(ErrorCode::Busy, NOT_ACCEPTED);
        assert_eq!(call.next(&candidates), Asked(1));
    }

    const ACCEPTED: bool = true;
    const NOT_ACCEPTED: bool = false;
    const DEADLINE: Duration = Duration::from_secs(60);

    /// A step, without what the tests do not look at.
    #[derive(Debug, PartialEq)]
    enum Did {
        Asked(u8),
        Searched,
        Failed(ErrorCode),
    }
    use Did::{Asked, Failed, Searched};

    struct Call {
        state: State,
        now: Duration,
        rng: SmallRng,
    }

    impl Call {
        fn new() -> Self {
            Self::seeded(7)
        }

        fn seeded(seed: u64) -> Self {
            Self { state: state(0.0, None, false), now: Duration::ZERO, rng: SmallRng::seed_from_u64(seed) }
        }

        fn with_key() -> Self {
            Self { state: state(0.0, None, true), ..Self::new() }
        }

        fn pinned(number: u8) -> Self {
            Self { state: state(0.0, Some(id(number)), true), ..Self::new() }
        }

        fn next(&mut self, candidates: &[Agent]) -> Did {
            match self.state.next(answer(candidates), &mut std::iter::empty(), self.now, &mut self.rng) {
                Step::Ask(candidate) => Asked((1..=9).find(|number| id(*number) == candidate.agent()).expect("one of the tests' agents")),
                Step::Search => Searched,
                Step::Fail(failure) => Failed(failure.code),
            }
        }

        fn fails(&mut self, code: ErrorCode, accepted: bool) {
            self.state.on_failure(AttemptFailure { failure: Failure::new(code, "no"), accepted }, self.now);
        }

        /// How it ends once nobody is left, with or without a search before.
        fn fate(&mut self, candidates: &[Agent]) -> ErrorCode {
            let mut did = self.next(candidates);
            if did == Searched {
                did = self.next(candidates);
            }
            let Failed(code) = did else { panic!("not over: {did:?}") };
            code
        }

        fn failure(&mut self, answer: Answer, known: &[&str]) -> Failure {
            let names: Vec<CapabilityName> = known.iter().map(|name| name.parse().expect("a valid name")).collect();
            let step = self.state.next(answer, &mut names.iter(), self.now, &mut self.rng);
            let Step::Fail(failure) = step else { panic!("not over: {step:?}") };
            failure
        }
    }

    fn state(exploration: f64, pinned: Option<AgentId>, repeatable: bool) -> State {
        let config = Config { attempts_max: 3, exploration };
        State::new(config, "text-analysis".parse().expect("a valid name"), pinned, repeatable, Duration::ZERO, DEADLINE)
    }

    fn tally(candidates: &[Agent], exploration: f64, calls: u32) -> BTreeMap<u8, u32> {
        let mut call = Call::new();
        let mut asked = BTreeMap::new();
        for _ in 0..calls {
            call.state = state(exploration, None, false);
            let Asked(number) = call.next(candidates) else { panic!("nobody was asked") };
            *asked.entry(number).or_default() += 1;
        }
        asked
    }

    /// A candidate in the making; known well, unless it is a stranger.
    #[derive(Clone)]
    struct Agent {
        score: f64,
        entry: Entry,
        estimate: Estimate,
        number: u8,
    }

    fn agent(number: u8) -> Agent {
        let record = Arc::new(record(&node(), number, 1, 1_000, &["text-analysis"]));
        let entry = Entry { record, availability: Availability::Available, reach: Reach::Connected, in_flight: 0, queued: 0 };
        let estimate = Estimate { successes: 10.0, ..Estimate::stranger() };
        Agent { score: 0.5, entry, estimate, number }
    }

    impl Agent {
        fn score(self, score: f64) -> Self {
            Self { score, ..self }
        }

        fn stranger(self) -> Self {
            Self { estimate: Estimate::stranger(), ..self }
        }

        fn here(mut self) -> Self {
            self.entry.reach = Reach::Here;
            self
        }

        fn load(mut self, in_flight: u32, queued: u32) -> Self {
            (self.entry.in_flight, self.entry.queued) = (in_flight, queued);
            self
        }

        fn concurrency(self, concurrency: u32) -> Self {
            self.changed(|record| record.concurrency = concurrency)
        }

        fn idempotent(self) -> Self {
            self.changed(|record| record.capabilities[0].idempotent = true)
        }

        fn changed(mut self, change: impl FnOnce(&mut Record)) -> Self {
            let mut body = (**self.entry.record).clone();
            change(&mut body);
            let key = AgentKey::from_seed(&[self.number; 32]);
            self.entry.record = Arc::new(Signed::sign(body, &node(), Some(&key)).expect("a valid record"));
            self
        }

        fn build(&self) -> Candidate {
            let terms = Terms { r#match: 1.0, trust: 0.5, latency: 0.5, cost: 1.0 };
            Candidate { entry: self.entry.clone(), capability: 0, score: self.score, terms, estimate: self.estimate, latency_ms: None }
        }
    }

    fn answer(candidates: &[Agent]) -> Answer {
        Answer { candidates: candidates.iter().map(Agent::build).collect(), rejected: Vec::new() }
    }

    fn rejected(number: u8, reason: Rejection) -> Rejected {
        Rejected { agent: id(number), name: format!("agent {number}"), reason }
    }

    fn id(number: u8) -> AgentId {
        AgentKey::from_seed(&[number; 32]).id()
    }

    fn node() -> NodeKey {
        NodeKey::new(libp2p_identity::Keypair::ed25519_from_bytes([1; 32]).expect("32 bytes"))
    }
}
