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
            let safe = !last.accepted || self.repeatable || self.asked_idempotent;
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
