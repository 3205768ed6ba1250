//! One call from the side of its caller: whom to ask, and whether to ask another when that fails.
//!
//! A call is given to another agent only where that is safe: when nobody can have begun it yet, or when doing it twice does no
//! harm, because the caller gave an idempotency key or the capability says so. An agent is asked once per call. What remains when nobody
//! is left is the most telling failure, not the last one.
//!
//! A retry that burdens somebody anew is paid out of the node's budget for them ([`super::budget`]). Free is one that loads nobody more
//! than the first attempt did, because the agent or its node was down before anybody took the call: there the failed attempt was none.

use std::time::Duration;

use rand::Rng;

use super::routing::{self, Choice, Why};
use crate::model::{AgentId, CapabilityName, ErrorCode, Failure, NodeId, nearest};
use crate::proto::directory::Routes;
use crate::proto::directory::rank::{Ranking, Rejection};

/// How calls are tried.
#[derive(Debug, Clone, Copy)]
pub struct Config {
    /// Agents asked at most.
    pub attempts_max: u32,
}

/// How an attempt ended, if not well.
#[derive(Debug, Clone, PartialEq)]
pub struct AttemptFailure {
    /// Why.
    pub failure: Failure,
    /// Whether the agent may have begun.
    pub begun: bool,
}

impl AttemptFailure {
    /// Whether the failed attempt loaded nobody, so that the next is no more than the first was meant to be.
    pub(crate) fn costs_nothing(&self) -> bool {
        !self.begun && matches!(self.failure.code, ErrorCode::Unavailable | ErrorCode::AgentNotFound)
    }
}

/// One attempt, for people who want to know.
#[derive(Debug, Clone)]
pub struct Attempt {
    /// Who was asked.
    pub agent: AgentId,
    /// On which node.
    pub node: NodeId,
    /// Why this one.
    pub why: Why,
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
    /// Ask this candidate of the ranking.
    Ask(Choice),
    /// Look further than the directory: nobody here will do, and nobody has been asked.
    Search,
    /// Give up.
    Fail(Failure),
    /// Give up, because nobody offers it; [`unknown`] says so. To look for a better name takes time, and `next` has others waiting for
    /// what calls share.
    Unknown,
}

/// The state of one call.
#[derive(Debug)]
pub struct State {
    config: Config,
    capability: CapabilityName,
    named: Option<AgentId>,
    repeatable: bool,
    started: Duration,
    deadline: Duration,
    searched: bool,
    tried: Vec<AgentId>,
    attempts: Vec<Attempt>,
    asked_idempotent: bool,
    streamed: bool,
    uncounted: bool,
}

impl State {
    /// A call that begins `now` and must be over at `deadline`. `named` is the only agent that may be asked, if the caller named one;
    /// `repeatable` says that the caller gave a key.
    pub fn new(
        config: Config,
        capability: CapabilityName,
        named: Option<AgentId>,
        repeatable: bool,
        now: Duration,
        deadline: Duration,
    ) -> Self {
        Self {
            config,
            capability,
            named,
            repeatable,
            started: now,
            deadline,
            searched: false,
            tried: Vec::new(),
            attempts: Vec::new(),
            asked_idempotent: false,
            streamed: false,
            uncounted: false,
        }
    }

    /// The same call as a mere choice: whether and when it is made is decided elsewhere, and so is what that earns for retries.
    #[must_use]
    pub fn uncounted(mut self) -> Self {
        self.uncounted = true;
        self
    }

    /// The same call, which these agents are not asked for.
    #[must_use]
    pub fn avoiding(mut self, agents: impl IntoIterator<Item = AgentId>) -> Self {
        self.tried.extend(agents);
        self
    }

    /// Who was asked so far.
    pub fn attempts(&self) -> &[Attempt] {
        &self.attempts
    }

    /// Decides the next step from a ranking; that of a call with a named agent holds this one alone. Must not be called while an
    /// attempt runs.
    pub fn next(&mut self, ranking: &Ranking, routing: &mut routing::State, now: Duration, rng: &mut impl Rng) -> Step {
        if now >= self.deadline {
            return Step::Fail(self.timeout());
        }
        let last = self.attempts.last().and_then(|attempt| attempt.failure.as_ref());
        if let Some(last) = last {
            let safe = !self.streamed && (!last.begun || self.repeatable || self.asked_idempotent);
            if !safe || !may_go_elsewhere(last) || self.named.is_some() || self.attempts.len() >= self.config.attempts_max as usize {
                return Step::Fail(self.verdict());
            }
        }
        let pick = routing.pick(ranking, &self.tried, self.named.is_some(), now, rng);
        let Some((pick, candidate)) = pick.and_then(|pick| Some((pick, ranking.candidates().get(pick.index())?))) else {
            if !self.searched {
                self.searched = true;
                return Step::Search;
            }
            let nobody = self.attempts.is_empty();
            return if nobody { self.nobody(ranking, routing, now).map_or(Step::Unknown, Step::Fail) } else { Step::Fail(self.verdict()) };
        };
        match last {
            None if self.uncounted => {}
            None => routing.budget().on_first(),
            Some(last) if last.costs_nothing() => {}
            Some(last) => {
                if !routing.budget().spend() {
                    let share = routing.budget().share() * 100.0;
                    let spent = format!("not retried: retries are {share} % of calls, and all are spent (routing.retry_budget)");
                    let failure = last.failure.clone().with("retry_budget", spent);
                    return Step::Fail(failure.with("attempts", self.attempts.len()));
                }
            }
        }
        let choice = routing.take(pick, candidate, now);
        let (agent, node) = (candidate.agent(), candidate.entry.record.node);
        self.tried.push(agent);
        self.asked_idempotent = candidate.capability().is_some_and(|capability| capability.idempotent);
        let started = now.saturating_sub(self.started);
        self.attempts.push(Attempt { agent, node, why: choice.why, started, ended: None, failure: None });
        Step::Ask(choice)
    }

    /// A chunk of the running attempt's answer went to the client, or the client's patience for one is over. Another agent's answer would
    /// begin anew, so nobody else is asked.
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

    fn timeout(&self) -> Failure {
        let waited_ms = u64::try_from(self.deadline.saturating_sub(self.started).as_millis()).unwrap_or(u64::MAX);
        Failure::new(ErrorCode::Timeout, format!("`{}` did not finish within {waited_ms} ms", self.capability))
            .with("timeout_ms", waited_ms)
            .with("attempts", self.attempts.len())
    }

    /// The most telling failure of all attempts: one that says what the agents did, before one that says they were busy or away.
    fn verdict(&self) -> Failure {
        let failures = self.attempts.iter().filter_map(|attempt| attempt.failure.as_ref());
        let telling = |failed: &&AttemptFailure| (failed.begun, !failed.failure.is_refusal(), failed.failure.code == ErrorCode::Busy);
        let best = failures.max_by_key(telling).map(|failed| failed.failure.clone());
        best.unwrap_or_else(|| self.timeout()).with("attempts", self.attempts.len())
    }

    /// Why nobody can be asked; `None` if nobody is known.
    fn nobody(&self, ranking: &Ranking, routing: &routing::State, now: Duration) -> Option<Failure> {
        let obstacles = ranking.candidates().iter().filter_map(|candidate| Some((candidate, routing.obstacle(candidate, now)?)));
        let obstacles: Vec<_> = obstacles.take(REASONS_MAX).collect();
        let blocked = obstacles.iter().map(|(candidate, reason)| (candidate.entry.record.name.as_str(), reason));
        let rejected = ranking.answer().rejected.iter().map(|rejected| (rejected.name.as_str(), &rejected.reason));
        // Whoever may do it later stands first, so that the reasons which are told are those that decide.
        let (passing, lasting): (Vec<_>, Vec<_>) = blocked.chain(rejected).partition(|(_, reason)| reason.is_for_a_time());
        // The first breaker to become half-open says when it is worth coming back.
        let left = |reason: &Rejection| if let Rejection::Breaker(left) = reason { Some(*left) } else { None };
        let wait = passing.iter().filter_map(|(_, reason)| left(reason)).min();
        let later = |message: String| {
            let failure = Failure::new(ErrorCode::Unavailable, message);
            match wait {
                Some(wait) => failure.with("retry_after_ms", u64::try_from(wait.as_millis()).unwrap_or(u64::MAX).max(1)),
                None => failure,
            }
        };
        let is_for_a_time = !passing.is_empty();
        let mut reasons = passing.into_iter().chain(lasting);
        if let Some(named) = self.named {
            let reason = reasons.next().map_or_else(|| "it is not known here".to_owned(), |(_, reason)| reason.to_string());
            let message = format!("agent {named} cannot do `{}`: {reason}", self.capability);
            let failure = if is_for_a_time { later(message) } else { Failure::new(ErrorCode::AgentNotFound, message) };
            return Some(failure.with("agent_id", named.to_string()));
        }
        let reasons: Vec<String> = reasons.take(REASONS_MAX).map(|(name, reason)| format!("{name}: {reason}")).collect();
        if reasons.is_empty() {
            return None;
        }
        let list = reasons.join("; ");
        let failure = if is_for_a_time {
            later(format!("no agent can do `{}` now: {list}", self.capability))
        } else {
            Failure::new(ErrorCode::CapabilityNotFound, format!("no agent that offers `{}` will do: {list}", self.capability))
        };
        Some(failure.with("rejected", reasons))
    }
}

/// The end of a call for what nobody offers, with what is offered instead.
pub fn unknown(capability: &CapabilityName, routes: &Routes) -> Failure {
    let names: Vec<&str> = routes.names().take(NAMES_LISTED_MAX).map(CapabilityName::as_str).collect();
    let failure = Failure::new(ErrorCode::CapabilityNotFound, format!("no agent offers `{capability}`"));
    let failure = failure.with("available_capabilities", names);
    match nearest_name(capability, routes) {
        Some(near) => failure.with("suggestion", format!("Try '{near}' instead")),
        None => failure,
    }
}

/// The known name or heading most like `asked`, but for itself.
pub fn nearest_name<'a>(asked: &CapabilityName, routes: &'a Routes) -> Option<&'a str> {
    nearest(asked.as_str(), routes.names_beside(asked, NAMES_COMPARED_MAX / 2).map(CapabilityName::as_str))
}

/// Known names that a failure lists.
const NAMES_LISTED_MAX: usize = 32;
/// Known names that one which nobody offers is compared with: those beside it, since likeness is greatest where names begin alike. It keeps
/// a question that anybody can ask as often as he likes under a millisecond.
const NAMES_COMPARED_MAX: usize = 1_000;

/// Reasons that a failure lists.
const REASONS_MAX: usize = 8;

/// Whether somebody else might do better. A wrong input is wrong everywhere. A time that ran out may have been only that agent's: nobody
/// is asked once the call's own is over.
fn may_go_elsewhere(failed: &AttemptFailure) -> bool {
    let refused_for_good = matches!(
        failed.failure.code,
        ErrorCode::InvalidRequest | ErrorCode::PayloadTooLarge | ErrorCode::Cancelled | ErrorCode::OverBudget
    );
    let input_fault = failed.failure.code == ErrorCode::InvalidSchema && !failed.begun;
    !refused_for_good && !input_fault && (failed.failure.retryable || !failed.begun)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::test_runner::RngSeed;
    use rand::SeedableRng;
    use rand::rngs::SmallRng;

    use super::*;
    use crate::proto::directory::rank::{Answer, Rejected};
    use crate::proto::invocation::breaker;
    use crate::proto::invocation::evidence::Evidence;
    use crate::proto::invocation::testing::{Agent, agent, calm, id, number_of, ranking};

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
        call.fails(ErrorCode::Unavailable, NOT_BEGUN);
        assert_eq!(call.next(&candidates), Asked(2));
        call.fails(ErrorCode::Busy, NOT_BEGUN);
        assert_eq!(call.next(&candidates), Asked(3));
        call.fails(ErrorCode::AccessDenied, NOT_BEGUN);

        assert_eq!(call.fate(&candidates), ErrorCode::Unavailable);
        assert_eq!(call.state.attempts().iter().filter(|attempt| attempt.failure.is_some()).count(), 3);
    }

    #[test]
    fn an_agent_is_asked_once_per_call() {
        let mut call = Call::new();
        assert_eq!(call.next(&[agent(1)]), Asked(1));
        call.fails(ErrorCode::Busy, NOT_BEGUN);
        assert_eq!(call.fate(&[agent(1)]), ErrorCode::Busy);
    }

    #[test]
    fn what_an_agent_took_is_not_given_to_another() {
        let candidates = [agent(1).score(0.9), agent(2).score(0.5)];
        let mut call = Call::new();
        assert_eq!(call.next(&candidates), Asked(1));
        call.fails(ErrorCode::AgentFailed, BEGUN);
        assert_eq!(call.next(&candidates), Failed(ErrorCode::AgentFailed));
    }

    #[test]
    fn with_a_key_another_agent_may_repeat_it() {
        let candidates = [agent(1).score(0.9), agent(2).score(0.5)];
        let mut call = Call::with_key();
        assert_eq!(call.next(&candidates), Asked(1));
        call.fails(ErrorCode::AgentFailed, BEGUN);
        assert_eq!(call.next(&candidates), Asked(2));
    }

    /// AOP-4: that one agent gives up says nothing about another, as long as there is time.
    #[test]
    fn what_an_agent_gave_up_goes_to_another_where_that_is_safe_and_time_is_left() {
        let candidates = [agent(1).score(0.9), agent(2).score(0.5)];
        for code in [ErrorCode::Timeout, ErrorCode::InsufficientResources] {
            let mut call = Call::with_key();
            assert_eq!(call.next(&candidates), Asked(1));
            call.fails(code, BEGUN);
            assert_eq!(call.next(&candidates), Asked(2), "{code}");

            let mut call = Call::new();
            assert_eq!(call.next(&candidates), Asked(1));
            call.fails(code, BEGUN);
            assert_eq!(call.next(&candidates), Failed(code), "it may have been done");
        }
        let mut call = Call::with_key();
        assert_eq!(call.next(&candidates), Asked(1));
        call.now = DEADLINE;
        call.fails(ErrorCode::Timeout, BEGUN);
        assert_eq!(call.next(&candidates), Failed(ErrorCode::Timeout));
    }

    #[test]
    fn what_does_no_harm_twice_is_repeated_without_a_key() {
        let candidates = [agent(1).score(0.9).idempotent(), agent(2).score(0.7), agent(3).score(0.5)];
        let mut call = Call::new();
        assert_eq!(call.next(&candidates), Asked(1));
        call.fails(ErrorCode::AgentFailed, BEGUN);
        assert_eq!(call.next(&candidates), Asked(2));
        call.fails(ErrorCode::AgentFailed, BEGUN);
        assert_eq!(call.next(&candidates), Failed(ErrorCode::AgentFailed), "the second agent does not say that it does no harm");
    }

    #[test]
    fn a_call_of_a_named_agent_goes_to_no_other() {
        let candidates = [agent(1).score(0.9), agent(2).score(0.5)];
        let mut call = Call::named(2);
        assert_eq!(call.next(&candidates), Asked(2));
        call.fails(ErrorCode::Unavailable, NOT_BEGUN);
        assert_eq!(call.next(&candidates), Failed(ErrorCode::Unavailable));
    }

    #[test]
    fn a_named_agent_that_will_not_do_fails_with_its_reason() {
        let mut call = Call::named(2);
        assert_eq!(call.next(&[agent(1)]), Searched);
        for (reason, code) in [(Rejection::Suspect, ErrorCode::Unavailable), (Rejection::Version, ErrorCode::AgentNotFound)] {
            let answer = Answer { candidates: Vec::new(), rejected: vec![rejected(2, reason.clone())] };
            let failure = call.failure(&Ranking::new(answer));
            assert_eq!((failure.code, failure.retryable), (code, code == ErrorCode::Unavailable));
            assert!(failure.message.ends_with(&reason.to_string()), "{failure}");
            assert_eq!(failure.details["agent_id"], id(2).to_string());
        }
    }

    #[test]
    fn a_named_agent_that_nobody_knows_is_said_to_be_unknown() {
        let mut call = Call::named(2);
        assert_eq!(call.next(&[]), Searched);
        let failure = call.failure(&Ranking::default());
        assert_eq!(failure.code, ErrorCode::AgentNotFound);
        assert!(failure.message.ends_with("it is not known here"), "{failure}");
    }

    #[test]
    fn no_more_than_attempts_max_agents_are_asked() {
        let candidates = [agent(1).score(0.9), agent(2).score(0.7), agent(3).score(0.5), agent(4).score(0.3)];
        let mut call = Call::new();
        for number in 1..=3 {
            assert_eq!(call.next(&candidates), Asked(number));
            call.fails(ErrorCode::Unavailable, NOT_BEGUN);
        }
        assert_eq!(call.next(&candidates), Failed(ErrorCode::Unavailable));
    }

    #[test]
    fn the_deadline_ends_the_search_for_agents() {
        let candidates = [agent(1).score(0.9), agent(2).score(0.5)];
        let mut call = Call::new();
        assert_eq!(call.next(&candidates), Asked(1));
        call.fails(ErrorCode::Unavailable, NOT_BEGUN);
        call.now = DEADLINE;
        let failure = call.failure(&ranking(&candidates));
        assert_eq!(failure.code, ErrorCode::Timeout);
        assert_eq!((failure.details["timeout_ms"].as_u64(), failure.details["attempts"].as_u64()), (Some(60_000), Some(1)));
    }

    #[test]
    fn a_wrong_input_is_not_tried_elsewhere() {
        let candidates = [agent(1).score(0.9), agent(2).score(0.5)];
        for code in [ErrorCode::InvalidSchema, ErrorCode::InvalidRequest, ErrorCode::PayloadTooLarge] {
            let mut call = Call::with_key();
            assert_eq!(call.next(&candidates), Asked(1));
            call.fails(code, NOT_BEGUN);
            assert_eq!(call.next(&candidates), Failed(code));
        }
    }

    #[test]
    fn what_was_cancelled_or_ran_out_of_money_is_not_tried_elsewhere() {
        let candidates = [agent(1).score(0.9), agent(2).score(0.5)];
        for code in [ErrorCode::Cancelled, ErrorCode::OverBudget] {
            let mut call = Call::with_key();
            assert_eq!(call.next(&candidates), Asked(1));
            call.fails(code, NOT_BEGUN);
            assert_eq!(call.next(&candidates), Failed(code));
        }
    }

    #[test]
    fn what_an_agent_took_and_calls_hopeless_is_not_tried_elsewhere_even_with_a_key() {
        let candidates = [agent(1).score(0.9), agent(2).score(0.5)];
        let mut call = Call::with_key();
        assert_eq!(call.next(&candidates), Asked(1));
        let failure = Failure::new(ErrorCode::AgentFailed, "no").retryable(false);
        call.state.on_failure(AttemptFailure { failure, begun: true }, call.now);
        assert_eq!(call.next(&candidates), Failed(ErrorCode::AgentFailed));
    }

    #[test]
    fn when_nobody_is_there_the_mesh_is_searched_exactly_once() {
        let mut call = Call::new();
        assert_eq!(call.next(&[]), Searched);
        assert_eq!(call.next(&[]), Unknown);
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
        assert_eq!(call.next(&[]), Unknown);
        let failure = unknown(&name("text-analysis"), &Routes::named(&["summarization", "text-anaylsis"]));
        assert_eq!(failure.code, ErrorCode::CapabilityNotFound);
        assert!(!failure.retryable);
        assert_eq!(failure.details["suggestion"], "Try 'text-anaylsis' instead");
        assert_eq!(failure.details["available_capabilities"], serde_json::json!(["summarization", "text-anaylsis"]));
    }

    #[test]
    fn nothing_is_suggested_where_nothing_is_near() {
        let failure = unknown(&name("text-analysis"), &Routes::named(&["quantum"]));
        assert!(!failure.details.contains_key("suggestion"));
        assert_eq!(nearest_name(&name("quantum"), &Routes::named(&["quantum"])), None, "not itself");
    }

    /// However many names there are, a question for one that nobody offers costs the same.
    #[test]
    fn only_names_beside_the_unknown_one_are_compared_and_listed() {
        let names: Vec<String> = (0..2_000).map(|number| format!("test.n{number:04}")).collect();
        let routes = Routes::named(&names.iter().map(String::as_str).collect::<Vec<_>>());
        let asked = name("test.n1000x");
        assert_eq!(routes.names_beside(&asked, NAMES_COMPARED_MAX / 2).count(), NAMES_COMPARED_MAX);
        let failure = unknown(&asked, &routes);
        assert_eq!(failure.details["suggestion"], "Try 'test.n1000' instead");
        assert_eq!(failure.details["available_capabilities"].as_array().map(Vec::len), Some(NAMES_LISTED_MAX));
    }

    #[test]
    fn agents_that_offer_it_but_will_not_do_are_named_with_their_reasons() {
        let mut call = Call::new();
        assert_eq!(call.next(&[]), Searched);
        let answer = Answer { candidates: Vec::new(), rejected: vec![rejected(1, Rejection::Version), rejected(2, Rejection::Language)] };
        let failure = call.failure(&Ranking::new(answer));
        assert_eq!((failure.code, failure.retryable), (ErrorCode::CapabilityNotFound, false), "nothing but another question helps");
        let reasons = ["agent 1: no version fits", "agent 2: it does not support the language"];
        assert_eq!(failure.details["rejected"], serde_json::json!(reasons));
    }

    #[test]
    fn agents_that_will_do_later_make_the_call_unavailable_and_not_unknown() {
        let reasons = [Rejection::Unavailable, Rejection::Suspect, Rejection::Unreachable, Rejection::Probed];
        for reason in reasons {
            let mut call = Call::new();
            assert_eq!(call.next(&[]), Searched);
            let told = format!("agent 2: {reason}");
            let rejected = vec![rejected(1, Rejection::Version), rejected(2, reason)];
            let failure = call.failure(&Ranking::new(Answer { candidates: Vec::new(), rejected }));
            assert_eq!((failure.code, failure.retryable, failure.retry_after_ms()), (ErrorCode::Unavailable, true, None));
            assert_eq!(failure.details["rejected"][0], told.as_str(), "what decides stands first");
        }
    }

    #[test]
    fn the_verdict_is_the_most_telling_failure_and_not_the_last() {
        use ErrorCode::{AccessDenied, AgentFailed, Busy, Unavailable};
        let took_it = (AgentFailed, BEGUN);
        let cases = [
            ([took_it, (Busy, NOT_BEGUN), (Unavailable, NOT_BEGUN)], AgentFailed),
            ([(Unavailable, NOT_BEGUN), took_it, (Busy, NOT_BEGUN)], AgentFailed),
            ([(Busy, NOT_BEGUN), (Unavailable, NOT_BEGUN), (Busy, NOT_BEGUN)], Unavailable),
            ([(Busy, NOT_BEGUN), (AccessDenied, NOT_BEGUN), (AccessDenied, NOT_BEGUN)], Busy),
        ];
        for (failures, telling) in cases {
            let candidates = [agent(1).score(0.9), agent(2).score(0.7), agent(3).score(0.5)];
            let mut call = Call::with_key();
            for (code, begun) in failures {
                assert!(matches!(call.next(&candidates), Asked(_)));
                call.fails(code, begun);
            }
            assert_eq!(call.fate(&candidates), telling, "{failures:?}");
        }
    }

    #[test]
    fn the_verdict_counts_the_attempts() {
        let mut call = Call::named(1);
        assert_eq!(call.next(&[agent(1)]), Asked(1));
        call.fails(ErrorCode::Busy, NOT_BEGUN);
        assert_eq!(call.failure(&ranking(&[agent(1)])).details["attempts"], 1);
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

    /// MEAP-9: what loads nobody twice is retried without limit, what does is paid for.
    #[test]
    fn only_retries_that_burden_somebody_anew_are_paid_for() {
        let candidates = [agent(1).score(0.9), agent(2).score(0.5)];
        let cases = [
            (ErrorCode::Unavailable, NOT_BEGUN, 100),
            (ErrorCode::AgentNotFound, NOT_BEGUN, 100),
            // Ten from the reserve, and what the first ten attempts earned.
            (ErrorCode::Busy, NOT_BEGUN, 19),
            (ErrorCode::AgentFailed, BEGUN, 19),
            (ErrorCode::Unavailable, BEGUN, 19),
        ];
        for (code, begun, retried) in cases {
            let mut call = Call::with_key();
            let mut count = 0;
            for _ in 0..100 {
                call.state = state(None, true);
                assert!(matches!(call.next(&candidates), Asked(_)));
                call.fails(code, begun);
                count += u32::from(matches!(call.next(&candidates), Asked(_)));
            }
            assert_eq!(count, retried, "{code}");
        }
    }

    /// MEAP-9: without budget a call ends with its last failure, and says why it was not tried again.
    #[test]
    fn without_budget_the_last_failure_says_that_it_was_not_retried() {
        let candidates = [agent(1).score(0.9), agent(2).score(0.7), agent(3).score(0.5)];
        let mut call = Call::new();
        while call.routing.budget().spend() {}
        assert_eq!(call.next(&candidates), Asked(1));
        call.fails(ErrorCode::Unavailable, NOT_BEGUN);
        assert_eq!(call.next(&candidates), Asked(2));
        call.fails(ErrorCode::Busy, NOT_BEGUN);

        let failure = call.failure(&ranking(&candidates));

        assert_eq!((failure.code, failure.details["attempts"].as_u64()), (ErrorCode::Busy, Some(2)));
        let spent = failure.details["retry_budget"].as_str().expect("a reason");
        assert!(spent.contains("10 %") && spent.contains("routing.retry_budget"), "{spent}");
    }

    /// MEAP-4: a call fails at once where breakers are open, and says when to come back.
    #[test]
    fn agents_behind_an_open_breaker_are_named_with_the_time_that_is_left() {
        let candidates = [agent(1)];
        let mut call = Call::new();
        for _ in 0..3 {
            call.state = state(None, false);
            let Step::Ask(choice) = call.step(&ranking(&candidates)) else { panic!("it is closed") };
            call.ended(&candidates[0], choice, breaker::Outcome::Failure);
        }
        call.state = state(None, false);
        assert_eq!(call.next(&candidates), Searched);
        let failure = call.failure(&ranking(&candidates));
        assert!(failure.retryable && failure.message.contains("its breaker is open for another"), "{failure}");
        assert_eq!(failure.code, ErrorCode::Unavailable);
        assert!(failure.retry_after_ms().is_some_and(|ms| (800..=1_200).contains(&ms)), "{failure:?}");

        call.state = state(Some(id(1)), false);
        assert_eq!(call.next(&candidates), Searched);
        let failure = call.failure(&ranking(&candidates));
        assert_eq!((failure.code, failure.retryable), (ErrorCode::Unavailable, true));
        assert!(failure.message.contains("its breaker is open for another"), "{failure}");
    }

    /// What one attempt comes to, and what the client has of it by then.
    fn fate() -> impl Strategy<Value = (bool, Option<(ErrorCode, bool, bool)>)> {
        use ErrorCode::{AgentFailed, AgentNotFound, Busy, Cancelled, InvalidSchema, OverBudget, Timeout, Unavailable};
        let code = prop::sample::select(vec![AgentFailed, AgentNotFound, Busy, Cancelled, InvalidSchema, OverBudget, Timeout, Unavailable]);
        (prop::bool::weighted(0.2), prop::option::weighted(0.9, (code, any::<bool>(), any::<bool>())))
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, rng_seed: RngSeed::Fixed(7), ..ProptestConfig::with_cases(512) })]

        /// MEAP-9, AOP-4: however its attempts end, a call has one end after few steps; nobody is asked twice; and once an agent may have
        /// begun, or the client has a chunk of the answer, nobody else is asked unless doing it twice does no harm.
        #[test]
        fn a_call_ends_and_is_repeated_only_where_that_does_no_harm(
            agents in prop::collection::vec((0.0..1.0_f64, any::<bool>()), 0..6),
            fates in prop::collection::vec((fate(), 0_u64..30), 4),
            (key, budget) in any::<(bool, bool)>(),
        ) {
            let candidates: Vec<Agent> = (1..).zip(&agents).map(|(number, (score, idempotent))| {
                let agent = agent(number).score(*score);
                if *idempotent { agent.idempotent() } else { agent }
            }).collect();
            let mut call = if key { Call::with_key() } else { Call::new() };
            while !budget && call.routing.budget().spend() {}
            let (mut asked, mut searched, mut fates) = (Vec::new(), false, fates.into_iter());
            loop {
                let number = match call.next(&candidates) {
                    Asked(number) => number,
                    Searched => {
                        prop_assert!(!std::mem::replace(&mut searched, true), "searched again");
                        continue;
                    }
                    Failed(_) | Unknown => break,
                };
                prop_assert!(!asked.contains(&number), "{} was asked before", number);
                asked.push(number);
                prop_assert!(asked.len() <= 3 && call.now < DEADLINE);
                let ((chunk, fate), seconds) = fates.next().expect("one for each attempt");
                call.now += Duration::from_secs(seconds);
                if chunk {
                    call.state.on_chunk();
                }
                let Some((code, begun, retryable)) = fate else {
                    call.state.on_success(call.now);
                    return Ok(());
                };
                let harmless = key || agents[usize::from(number) - 1].1;
                let failure = Failure::new(code, "no").retryable(retryable);
                call.state.on_failure(AttemptFailure { failure, begun }, call.now);
                if chunk || (begun && !harmless) {
                    prop_assert!(matches!(call.next(&candidates), Failed(_)), "given to somebody else after {:?}", code);
                    break;
                }
            }
            prop_assert_eq!(call.state.attempts().len(), asked.len());
            let over = call.state.attempts().iter().all(|attempt| attempt.ended.is_some() && attempt.failure.is_some());
            prop_assert!(over, "{:?}", call.state.attempts());
        }
    }

    const BEGUN: bool = true;
    const NOT_BEGUN: bool = false;
    const DEADLINE: Duration = Duration::from_secs(60);

    /// A step, without what the tests do not look at.
    #[derive(Debug, PartialEq)]
    enum Did {
        Asked(u8),
        Searched,
        Failed(ErrorCode),
        Unknown,
    }
    use Did::{Asked, Failed, Searched, Unknown};

    struct Call {
        state: State,
        routing: routing::State,
        now: Duration,
        rng: SmallRng,
    }

    impl Call {
        fn new() -> Self {
            let state = state(None, false);
            Self { state, routing: calm(), now: Duration::ZERO, rng: SmallRng::seed_from_u64(7) }
        }

        fn with_key() -> Self {
            Self { state: state(None, true), ..Self::new() }
        }

        fn named(number: u8) -> Self {
            Self { state: state(Some(id(number)), true), ..Self::new() }
        }

        fn step(&mut self, ranking: &Ranking) -> Step {
            self.state.next(ranking, &mut self.routing, self.now, &mut self.rng)
        }

        fn next(&mut self, candidates: &[Agent]) -> Did {
            let named = self.state.named;
            let seen: Vec<Agent> = candidates.iter().filter(|agent| named.is_none_or(|named| agent.id() == named)).cloned().collect();
            let ranking = ranking(&seen);
            match self.step(&ranking) {
                Step::Ask(choice) => Asked(number_of(ranking.candidates()[choice.index].agent())),
                Step::Search => Searched,
                Step::Fail(failure) => Failed(failure.code),
                Step::Unknown => Unknown,
            }
        }

        fn fails(&mut self, code: ErrorCode, begun: bool) {
            self.state.on_failure(AttemptFailure { failure: Failure::new(code, "no"), begun }, self.now);
        }

        fn ended(&mut self, agent: &Agent, choice: Choice, breaker: breaker::Outcome) {
            let learnt = Evidence { breaker, ..Evidence::NONE };
            self.routing.on_end(&agent.build(), choice, &learnt, self.now, &mut self.rng);
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

        fn failure(&mut self, ranking: &Ranking) -> Failure {
            let step = self.step(ranking);
            let Step::Fail(failure) = step else { panic!("not over: {step:?}") };
            failure
        }
    }

    fn name(text: &str) -> CapabilityName {
        text.parse().expect("a valid name")
    }

    fn state(named: Option<AgentId>, repeatable: bool) -> State {
        State::new(Config { attempts_max: 3 }, name("text-analysis"), named, repeatable, Duration::ZERO, DEADLINE)
    }

    fn rejected(number: u8, reason: Rejection) -> Rejected {
        Rejected { agent: id(number), name: format!("agent {number}"), reason }
    }
}
