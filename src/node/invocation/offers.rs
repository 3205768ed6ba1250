//! Offers: this node's answers to those who ask, and its own round of asking (AMP-7).
//!
//! Whoever asks here gets the agents of this node and of others alike: the best candidates of a query are asked at once, each node one
//! time for all its agents, and what has not come in time is missing. What was said is judged in `proto`; offers bind nobody, so nothing
//! is remembered of them on either side.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::future::join_all;
use rust_decimal::Decimal;
use tokio::sync::oneshot;

use crate::agents::Health;
use crate::model::{AgentId, CapabilityName, ErrorCode, Failure, NodeId, VersionRequirement};
use crate::node::find;
use crate::node::shared::{Command, Shared, lock};
use crate::proto::directory::rank::{Candidate, Rejected};
use crate::proto::invocation::offer::{self, Bid, Hosted, Known};
use crate::wire::Document;
use crate::wire::directory::{Query, Wanted};
use crate::wire::offer::{AGENTS_ASKED_MAX, Inquiry, Offer, Offers, Refusal};

/// How long nodes may take to answer; who is slower in saying what it could do is no help.
const ANSWER_MAX: Duration = Duration::from_millis(1_500);
/// Runs shorter than this are timed by samples.
const QUICK: Duration = Duration::from_millis(1);
/// One quick run in so many is timed.
const QUICK_SAMPLED: usize = 16;

/// What somebody would like to have done, as a client of this node asks.
#[derive(Debug, Clone)]
pub struct OffersRequest {
    /// What is to be done.
    pub capability: CapabilityName,
    /// Which versions will do.
    pub version: Option<VersionRequirement>,
    /// How many tokens the input probably has.
    pub tokens: Option<u64>,
    /// How many units of another kind it probably takes.
    pub units: Option<Decimal>,
    /// How long it may take until it is done, in milliseconds.
    pub deadline_ms: Option<u64>,
    /// What all of it may cost.
    pub max_cost: Option<Decimal>,
    /// What must hold of the agents that are asked.
    pub constraints: Wanted,
    /// How many agents are asked, 1 to 16.
    pub limit: u32,
}

/// An offer, and whom it is from.
#[derive(Debug, Clone)]
pub struct Offered {
    /// The agent, as the directory ranks it.
    pub candidate: Candidate,
    /// What it offers, and how good that is.
    pub bid: Bid,
}

/// Why an agent that was asked makes no offer.
#[derive(Debug, Clone)]
pub struct Declined {
    /// The agent.
    pub candidate: Candidate,
    /// With which code a call would fail.
    pub code: ErrorCode,
    /// One line for people.
    pub reason: String,
}

/// What came of asking around.
#[derive(Debug, Clone, Default)]
pub struct OffersAnswer {
    /// Who could do it, best first.
    pub offers: Vec<Offered>,
    /// Who was asked and could not, or did not answer.
    pub declined: Vec<Declined>,
    /// Who was not asked, and why.
    pub rejected: Vec<Rejected>,
}

/// Asks the best candidates what they could do.
pub(in crate::node) async fn offers(shared: &Arc<Shared>, request: OffersRequest) -> Result<OffersAnswer, Failure> {
    let limit = usize::try_from(request.limit).unwrap_or(usize::MAX);
    if !(1..=AGENTS_ASKED_MAX).contains(&limit) {
        return Err(Failure::new(ErrorCode::InvalidRequest, format!("limit is 1 to {AGENTS_ASKED_MAX}")).with("path", "/limit"));
    }
    let inquiry = Inquiry {
        capability: request.capability.clone(),
        version: request.version.clone(),
        agents: Vec::new(),
        tokens: request.tokens,
        units: request.units,
        deadline_ms: request.deadline_ms,
        max_cost: request.max_cost,
        language: request.constraints.language.clone(),
    };
    let query = Query {
        capabilities: vec![request.capability],
        text: None,
        version: request.version,
        constraints: request.constraints,
        limit: request.limit,
    };
    let invalid = |error: crate::wire::Error| Failure::new(ErrorCode::InvalidRequest, error.to_string());
    query.check().map_err(invalid)?;
    // Whom it is put to is not known yet, and does not bear on whether it keeps to the bounds.
    Inquiry { agents: vec![AgentId::from_public_key([0; 32])], ..inquiry.clone() }.check().map_err(invalid)?;
    let mut found = find::find(shared, query, limit).await?;
    shared.routing.withhold(&mut found, limit, shared.mono());

    let mut candidates_by_node: BTreeMap<NodeId, Vec<Candidate>> = BTreeMap::new();
    for candidate in found.candidates {
        candidates_by_node.entry(candidate.entry.record.node).or_default().push(candidate);
    }
    let asked = candidates_by_node.into_iter().map(|(node, candidates)| {
        let inquiry = Inquiry { agents: candidates.iter().map(Candidate::agent).collect(), ..inquiry.clone() };
        async move { (candidates, ask(shared, node, inquiry).await) }
    });
    let mut answer = OffersAnswer { rejected: found.rejected, ..OffersAnswer::default() };
    let mut candidates_by_agent = BTreeMap::new();
    let mut bids = Vec::new();
    for (candidates, said) in join_all(asked).await {
        for candidate in candidates {
            match judge(&candidate, &said) {
                Ok(bid) => {
                    bids.push(bid);
                    candidates_by_agent.insert(candidate.agent(), candidate);
                }
                Err((code, reason)) => answer.declined.push(Declined { candidate, code, reason }),
            }
        }
    }
    let span_ms = inquiry.deadline_ms.unwrap_or(shared.config.limits.call_timeout_ms_default);
    offer::order(&mut bids, &shared.rules.weights, inquiry.max_cost, span_ms);
    let with_candidate = |bid: Bid| Some(Offered { candidate: candidates_by_agent.remove(&bid.offer.agent)?, bid });
    answer.offers = bids.into_iter().filter_map(with_candidate).collect();
    Ok(answer)
}

/// What a node's answer says of one of the agents it was asked about.
fn judge(candidate: &Candidate, said: &Result<Offers, Failure>) -> Result<Bid, (ErrorCode, String)> {
    let said = said.as_ref().map_err(|failure| (failure.code, failure.message.clone()))?;
    let agent = candidate.agent();
    if let Some(offer) = said.offers.iter().find(|offer| offer.agent == agent) {
        let known = Known {
            standing: candidate.standing,
            fit: candidate.terms.r#match,
            trust: candidate.terms.trust,
            measured_ms: candidate.estimate.latency_ms,
        };
        return Bid::new(&candidate.entry.record, known, offer.clone()).map_err(|refusal| (refusal.code, refusal.reason));
    }
    let refusal = said.refusals.iter().find(|refusal| refusal.agent == agent);
    let silent = || (ErrorCode::Unavailable, "its node said nothing of it".to_owned());
    Err(refusal.map_or_else(silent, |refusal| (refusal.code, refusal.reason.clone())))
}

async fn ask(shared: &Shared, node: NodeId, inquiry: Inquiry) -> Result<Offers, Failure> {
    if node == shared.node() {
        return Ok(answer(shared, &inquiry));
    }
    let unanswered = |why: &str| Failure::new(ErrorCode::Unavailable, format!("node {} made no offers: {why}", node.short()));
    let (reply, said) = oneshot::channel();
    let sent = shared.commands.try_send(Command::Offers { node, inquiry: Box::new(inquiry), reply });
    sent.map_err(|_| Failure::new(ErrorCode::Busy, "this node is too busy to ask").with("retry_after_ms", 100))?;
    match tokio::time::timeout(ANSWER_MAX, said).await {
        Ok(said) => said.unwrap_or_else(|_| Err(unanswered("this node is stopping"))),
        Err(_) => Err(unanswered(&format!("no answer within {} ms", ANSWER_MAX.as_millis()))),
    }
}

/// What this node's own agents answer. Costs a look at each of those that are named.
pub(in crate::node) fn answer(shared: &Shared, inquiry: &Inquiry) -> Offers {
    let mut answer = Offers::default();
    for agent in &inquiry.agents {
        match offer_of(shared, inquiry, *agent) {
            Ok(offer) => answer.offers.push(offer),
            Err(refusal) => answer.refusals.push(refusal),
        }
    }
    answer
}

fn offer_of(shared: &Shared, inquiry: &Inquiry, id: AgentId) -> Result<Offer, Refusal> {
    let agent = shared.registry.get(id).ok_or_else(|| Refusal::new(id, ErrorCode::AgentNotFound, "it is not on this node"))?;
    if shared.drain.is_cancelled() {
        return Err(Refusal::new(id, ErrorCode::Unavailable, "its node is stopping"));
    }
    let (in_flight, queued) = agent.load();
    let checked = agent.checked();
    let hosted = Hosted {
        agent: id,
        capabilities: checked.offered.iter().map(|offered| &offered.advertised).collect(),
        up: agent.health() == Health::Up,
        slots: checked.definition.concurrency,
        in_flight,
        queued,
        queue_max: checked.definition.queue_len_max(),
    };
    offer::decide(inquiry, &hosted, &lock(&shared.timings))
}

/// A run of one of this node's agents ended well after `took`.
pub(super) fn on_run(shared: &Shared, agent: AgentId, capability: &CapabilityName, took: Duration) {
    // Calls do not queue up for the sake of a hint: of many quick ones a few tell enough, and so does one of those that end together.
    let quick = took < QUICK;
    if quick && !shared.quick_runs.fetch_add(1, Ordering::Relaxed).is_multiple_of(QUICK_SAMPLED) {
        return;
    }
    if let Ok(mut timings) = shared.timings.try_lock() {
        timings.handle_run(agent, capability, took);
    }
}
