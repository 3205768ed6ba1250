//! Who does a call: rankings that calls share, attempts one after the other, and what each of them has taught.
//!
//! The decisions are `proto::invocation`'s; here they meet the clock, chance and the locks. A lock is held for one choice or one end of
//! an attempt, never across a wait, and never while a ranking is made. Every choice is ended exactly once, also when the caller goes
//! away: [`Attempt`] sees to it when it is dropped.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use rust_decimal::Decimal;
use tokio::sync::oneshot;

use super::invoke::{InvokeReply, InvokeRequest, attempt, deadline};
use crate::config;
use crate::mesh::lanes::Watch;
use crate::model::{AgentId, CapabilityName, ErrorCode, Failure, InvocationId};
use crate::node::explain::{self, Explanation};
use crate::node::find;
use crate::node::shared::{Shared, lock};
use crate::proto::directory::Rankings;
use crate::proto::directory::rank::{Answer, Candidate, Ranking, Rejection};
use crate::proto::invocation::breaker::{self, Phase};
use crate::proto::invocation::budget::Turn;
use crate::proto::invocation::call::{self, AttemptFailure, Step};
use crate::proto::invocation::chain;
use crate::proto::invocation::evidence::{Evidence, Reader, evidence};
use crate::proto::invocation::routing::{self, Choice};
use crate::wire::directory::{Query, Wanted};
use crate::wire::invocation::{Body, Hop, Success};

/// What calls share when they choose whom to ask.
#[derive(Debug)]
pub(in crate::node) struct Routing {
    state: Mutex<routing::State>,
    rankings: RwLock<Rankings>,
    explained: Mutex<Explained>,
}

/// How choices from one ranking came about. Under load many steps of tasks choose from the same, and each keeps its explanation.
#[derive(Debug, Default)]
struct Explained {
    ranking: Option<Arc<Ranking>>,
    texts: Vec<(AgentId, String, Bytes)>,
}

/// Choices of one ranking whose explanations are at hand.
const EXPLAINED_TEXTS_MAX: usize = 32;

impl Explained {
    fn get(&self, ranking: &Arc<Ranking>, chosen: AgentId, why: &str) -> Option<Bytes> {
        self.ranking.as_ref().filter(|known| Arc::ptr_eq(known, ranking))?;
        self.texts.iter().find(|(agent, reason, _)| *agent == chosen && reason == why).map(|(.., text)| text.clone())
    }

    fn insert(&mut self, ranking: &Arc<Ranking>, chosen: AgentId, why: String, text: Bytes) {
        if !self.ranking.as_ref().is_some_and(|known| Arc::ptr_eq(known, ranking)) {
            self.ranking = Some(Arc::clone(ranking));
            self.texts.clear();
        }
        if self.texts.len() < EXPLAINED_TEXTS_MAX {
            self.texts.push((chosen, why, text));
        }
    }
}

impl Routing {
    pub(in crate::node) fn new(config: &config::Routing) -> Self {
        let breaker = breaker::Config {
            failures_max: config.breaker_failures,
            open: Duration::from_millis(config.breaker_open_ms),
            open_max: Duration::from_millis(config.breaker_open_ms_max.max(config.breaker_open_ms)),
        };
        let config::Routing { balance, exploration, retry_budget, .. } = *config;
        let config = routing::Config { balance, exploration, retry_budget, breaker };
        Self { state: Mutex::new(routing::State::new(config)), rankings: RwLock::default(), explained: Mutex::default() }
    }

    /// Every breaker that is not closed.
    pub(in crate::node) fn tripped(&self, now: Duration) -> BTreeMap<(AgentId, CapabilityName), Phase> {
        let state = lock(&self.state);
        state.breakers().tripped(now).map(|(agent, capability, phase)| ((agent, capability.clone()), phase)).collect()
    }

    /// Whether a task's step may make an attempt now, as far as retries are a share of traffic.
    pub(in crate::node) fn admits(&self, turn: Turn, now: Duration) -> bool {
        lock(&self.state).admits(turn, now)
    }

    /// Leaves out whoever no call would be given to now, until `limit` are left.
    pub(in crate::node) fn withhold(&self, answer: &mut Answer, limit: usize, now: Duration) {
        // There may be as many as agents are known, and those that are not needed are let go of once the lock is free again.
        let mut candidates = std::mem::take(&mut answer.candidates).into_iter();
        lock(&self.state).withhold(&mut candidates, answer, limit, now);
    }
}

/// Ranks who may do a call; those that ask for a capability and nothing else share one ranking.
fn rank(shared: &Shared, request: &InvokeRequest, now: Duration) -> Arc<Ranking> {
    let routes = shared.routes.load();
    let is_plain = request.agent.is_none() && request.version.is_none() && request.constraints == Wanted::default();
    let name = Some(&request.capability).filter(|_| is_plain);
    let kept = name.and_then(|name| shared.routing.rankings.read().unwrap_or_else(PoisonError::into_inner).get(name, &routes, now));
    if let Some(ranking) = kept {
        return ranking;
    }
    let query = query_of(request);
    let answer = {
        let ledger = shared.ledger.read().unwrap_or_else(PoisonError::into_inner);
        routes.rank(&query, request.agent, &shared.rules, &ledger, now)
    };
    let ranking = Arc::new(Ranking::new(answer));
    if let Some(name) = name.filter(|_| !ranking.candidates().is_empty()) {
        let mut rankings = shared.routing.rankings.write().unwrap_or_else(PoisonError::into_inner);
        rankings.insert(name.clone(), Arc::clone(&ranking), &routes, now);
    }
    ranking
}

/// The ranking without those that the call came from: they would wait for themselves.
fn outside(hops: &[Hop], ranking: Arc<Ranking>) -> Arc<Ranking> {
    if hops.is_empty() || !ranking.candidates().iter().any(|candidate| chain::contains(hops, candidate.agent())) {
        return ranking;
    }
    let mut answer = ranking.answer().clone();
    for candidate in std::mem::take(&mut answer.candidates) {
        if chain::contains(hops, candidate.agent()) {
            answer.reject(&candidate.entry, Rejection::Waiting);
        } else {
            answer.candidates.push(candidate);
        }
    }
    Arc::new(Ranking::new(answer))
}

/// The circle that a call would close, if nobody but those that it came from can do it.
fn circle(hops: &[Hop], ranking: &Ranking) -> Option<Failure> {
    let waiting = ranking.answer().rejected.iter().find(|rejected| rejected.reason == Rejection::Waiting)?;
    if ranking.candidates().is_empty() { chain::check(hops, waiting.agent).err() } else { None }
}

/// One attempt, from the choice of its agent on: it counts where load is looked at, and its end is told however it ends.
pub(in crate::node) struct Attempt<'a> {
    shared: &'a Arc<Shared>,
    ranking: Arc<Ranking>,
    choice: Choice,
    ended: bool,
}

impl<'a> Attempt<'a> {
    /// `None` if the choice is not one of this ranking.
    fn new(shared: &'a Arc<Shared>, ranking: &Arc<Ranking>, choice: Choice) -> Option<Self> {
        let candidate = ranking.candidates().get(choice.index)?;
        candidate.entry.traffic.in_flight.fetch_add(1, Ordering::Relaxed);
        Some(Self { shared, ranking: Arc::clone(ranking), choice, ended: false })
    }

    /// Whom it is given to.
    pub(in crate::node) fn candidate(&self) -> &Candidate {
        // Looked at when it was made.
        &self.ranking.candidates()[self.choice.index]
    }

    /// How many could have been chosen.
    pub(in crate::node) fn candidates(&self) -> usize {
        self.ranking.candidates().len()
    }

    /// How the choice came about, in short: the chosen, the next best, and who was left out.
    pub(in crate::node) fn explanation(&self, now: Duration) -> Bytes {
        let (chosen, why) = (self.candidate().agent(), self.choice.why.to_string());
        if let Some(text) = lock(&self.shared.routing.explained).get(&self.ranking, chosen, &why) {
            return text;
        }
        let text = Bytes::from(self.explain(now).to_string());
        lock(&self.shared.routing.explained).insert(&self.ranking, chosen, why, text.clone());
        text
    }

    /// The same as a document of its own.
    pub(in crate::node) fn explain(&self, now: Duration) -> serde_json::Value {
        let mut answer = considered(self.shared, &self.ranking, Some(self.candidate().agent()), now, CHOICE_LISTED_MAX);
        answer.rejected.truncate(CHOICE_LISTED_MAX);
        let here = self.shared.node();
        let candidates: Vec<_> = answer.candidates.iter().map(|found| explain::candidate(found, true, here)).collect();
        serde_json::json!({ "why": self.choice.why.to_string(), "candidates": candidates, "rejected": explain::rejected(&answer) })
    }

    /// Makes the call.
    pub(in crate::node) async fn ask(
        mut self,
        request: &InvokeRequest,
        id: InvocationId,
        watch: Option<Watch>,
        deadline: Duration,
    ) -> (Result<Success, AttemptFailure>, Reader) {
        let now = self.shared.mono();
        self.shared.metrics.attempt();
        let (outcome, reader) = attempt(self.shared, request, id, self.candidate(), watch, now, deadline).await;
        let (ended, given) = (self.shared.mono(), deadline.saturating_sub(now));
        let learnt = evidence(self.candidate(), outcome.as_ref().err(), ended.saturating_sub(now), given, reader);
        self.tell(&learnt, ended);
        if let (Some(outcome), Some(capability)) = (learnt.trust, self.candidate().capability()) {
            self.shared.observe(self.candidate().agent(), &capability.id, outcome, learnt.down);
        }
        (outcome, reader)
    }

    fn tell(&mut self, learnt: &Evidence, now: Duration) {
        self.ended = true;
        lock(&self.shared.routing.state).on_end(self.candidate(), self.choice, learnt, now, &mut rand::rng());
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        self.candidate().entry.traffic.in_flight.fetch_sub(1, Ordering::Relaxed);
        if !self.ended {
            self.tell(&Evidence::NONE, self.shared.mono());
        }
    }
}

/// How many candidates, and how many of those left out, the explanation of one choice lists.
const CHOICE_LISTED_MAX: usize = 4;

/// Chooses an agent for one attempt of a call that is not `avoid`ed, looking further than the directory if it must.
///
/// # Errors
/// Why nobody can be asked.
pub(in crate::node) async fn choose<'a>(
    shared: &'a Arc<Shared>,
    request: &InvokeRequest,
    avoid: &[AgentId],
    deadline: Duration,
) -> Result<Attempt<'a>, Failure> {
    let mut now = shared.mono();
    let machine = call::State::new(call::Config { attempts_max: 1 }, request.capability.clone(), request.agent, true, now, deadline);
    let mut machine = machine.avoiding(avoid.iter().copied()).uncounted();
    loop {
        let ranking = outside(&request.hops, rank(shared, request, now));
        let step = machine.next(&ranking, &mut lock(&shared.routing.state), now, &mut rand::rng());
        match step {
            Step::Fail(failure) => return Err(circle(&request.hops, &ranking).unwrap_or_else(|| refused_for_cost(&ranking, failure))),
            Step::Unknown => return Err(call::unknown(&request.capability, &shared.routes.load())),
            Step::Search => {
                let wait = deadline.saturating_sub(now).min(find::SEARCH_MAX);
                let _ = Box::pin(tokio::time::timeout(wait, find::find(shared, query_of(request), 1))).await;
            }
            Step::Ask(choice) => {
                let chosen = Attempt::new(shared, &ranking, choice);
                return chosen.ok_or_else(|| Failure::new(ErrorCode::Internal, "the candidate is gone"));
            }
        }
        now = shared.mono();
    }
}

/// The agent that a request names, as it is known now.
pub(in crate::node) fn known(shared: &Shared, request: &InvokeRequest) -> Option<Candidate> {
    rank(shared, request, shared.mono()).candidates().first().cloned()
}

/// Asks for a result that is kept under the key of the request. Nothing is done for it, and nothing learnt from it.
pub(in crate::node) async fn recall(
    shared: &Arc<Shared>,
    request: &InvokeRequest,
    candidate: &Candidate,
    deadline: Duration,
) -> Result<Success, AttemptFailure> {
    let (accepted, acceptance) = oneshot::channel();
    // Who accepts has no result, and waits in vain for the word to begin.
    let (_go, going) = oneshot::channel();
    let id = InvocationId::from_random(rand::random());
    let call = attempt(shared, request, id, candidate, Some(Watch { accepted, go: going }), shared.mono(), deadline);
    tokio::select! {
        biased;
        (outcome, _) = call => outcome,
        Ok(()) = acceptance => {
            let failure = Failure::new(ErrorCode::Unavailable, "the result is not kept any more");
            Err(AttemptFailure { failure, begun: false })
        }
    }
}

/// The failure of a call that somebody would do for more than it may cost says so.
fn refused_for_cost(ranking: &Ranking, failure: Failure) -> Failure {
    let dear = ranking.answer().rejected.iter().any(|rejected| matches!(rejected.reason, Rejection::Cost(_)));
    let nobody = ranking.candidates().is_empty() && failure.code == ErrorCode::CapabilityNotFound;
    if dear && nobody { Failure { code: ErrorCode::OverBudget, ..failure } } else { failure }
}

/// Has somebody do the call.
pub(super) async fn run(shared: &Arc<Shared>, request: &InvokeRequest, id: InvocationId) -> Result<InvokeReply, Failure> {
    let started = shared.mono();
    let deadline = deadline(shared, request, started);
    let config = call::Config { attempts_max: shared.config.limits.attempts_max };
    let mut machine = call::State::new(config, request.capability.clone(), request.agent, request.key.is_some(), started, deadline);
    let mut explained = None;
    let mut now = started;
    loop {
        let ranking = outside(&request.hops, rank(shared, request, now));
        let step = machine.next(&ranking, &mut lock(&shared.routing.state), now, &mut rand::rng());
        let told = |failure: Failure, explained: Option<Answer>| {
            let answer = request.explain.then(|| explained.unwrap_or_else(|| considered(shared, &ranking, None, now, EXPLAINED_MAX)));
            let explanation = answer.map(|answer| explanation(answer, &machine, now.saturating_sub(started)).document(shared.node()));
            match explanation {
                Some(document) => failure.with("explain", document),
                None => failure,
            }
        };
        match step {
            Step::Fail(failure) => {
                let failure = if machine.attempts().is_empty() { circle(&request.hops, &ranking).unwrap_or(failure) } else { failure };
                return Err(told(failure, explained));
            }
            Step::Unknown => return Err(told(call::unknown(&request.capability, &shared.routes.load()), explained)),
            Step::Search => {
                let wait = deadline.saturating_sub(now).min(find::SEARCH_MAX);
                let _ = Box::pin(tokio::time::timeout(wait, find::find(shared, query_of(request), 1))).await;
            }
            Step::Ask(choice) => {
                let Some(running) = Attempt::new(shared, &ranking, choice) else { continue };
                let Some(candidate) = ranking.candidates().get(choice.index) else { continue };
                if request.explain && explained.is_none() {
                    explained = Some(considered(shared, &ranking, Some(candidate.agent()), now, EXPLAINED_MAX));
                }
                let (outcome, reader) = running.ask(request, id, None, deadline).await;
                if reader.streamed || reader.silence.is_some() {
                    machine.on_chunk();
                }
                let ended = shared.mono();
                match outcome {
                    Ok(success) => {
                        machine.on_success(ended);
                        let explanation = explained.map(|answer| explanation(answer, &machine, ended.saturating_sub(started)));
                        return Ok(reply(id, candidate, success, machine.attempts().len(), ended.saturating_sub(started), explanation));
                    }
                    Err(failed) => {
                        tracing::debug!(invocation = %id, agent = %candidate.agent(), begun = failed.begun, failure = %failed.failure, "an attempt failed");
                        machine.on_failure(failed, ended);
                    }
                }
            }
        }
        now = shared.mono();
    }
}

/// What a call asks of the directory. How much trust is enough where the caller does not say is the ranking's own rule.
fn query_of(request: &InvokeRequest) -> Query {
    let constraints = request.constraints.clone();
    Query { capabilities: vec![request.capability.clone()], text: None, version: request.version.clone(), constraints, limit: 16 }
}

/// How many candidates an explanation lists.
const EXPLAINED_MAX: usize = 64;

/// Whom a call considered: the front of the ranking, `chosen` wherever it stands, and who was left out.
fn considered(shared: &Shared, ranking: &Ranking, chosen: Option<AgentId>, now: Duration, listed_max: usize) -> Answer {
    let mut answer = Answer { candidates: Vec::new(), rejected: ranking.answer().rejected.clone() };
    let state = lock(&shared.routing.state);
    for candidate in ranking.candidates() {
        // The probe that was just given out is this call's own.
        let is_chosen = chosen == Some(candidate.agent());
        match state.obstacle(candidate, now).filter(|_| !is_chosen) {
            Some(reason) => answer.reject(&candidate.entry, reason),
            None if is_chosen || answer.candidates.len() < listed_max => answer.candidates.push(candidate.clone()),
            None => {}
        }
    }
    answer
}

fn explanation(answer: Answer, machine: &call::State, took: Duration) -> Explanation {
    Explanation { answer, attempts: machine.attempts().to_vec(), took }
}

fn reply(
    id: InvocationId,
    candidate: &Candidate,
    success: Success,
    attempts: usize,
    latency: Duration,
    explanation: Option<Explanation>,
) -> InvokeReply {
    let units =
        success.units.and_then(|units| units.parse::<Decimal>().ok()).filter(|units| !units.is_sign_negative()).unwrap_or(Decimal::ONE);
    let price = candidate.capability().and_then(|capability| capability.price.as_ref());
    InvokeReply {
        id,
        output: match success.body {
            Body::Inline(text) => text,
            Body::Blob(_) => Bytes::new(),
        },
        agent: candidate.agent(),
        node: candidate.entry.record.node,
        attempts,
        latency,
        units,
        cost: price.map(|price| (price.times(units), price.currency)),
        explanation,
    }
}
