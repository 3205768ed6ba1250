//! A step whose task asks for live offers: the best candidates say what they could do before one of them is chosen (AITP-5, AMP-7).
//!
//! The directory knows of load what the last pulse said; an offer is what an agent's node says now. So the best of those are taken whose
//! offer fits: it costs no more than may still be spent, in the currency of the budget, and begins before a call would be taken back. Who
//! failed at this step before comes last. A step that names its agent asks for none. An offer binds nobody: whoever is chosen may still refuse, and is then asked no more for a while.
//!
//! Where nobody makes an offer that fits, the step waits as if all were busy; where nobody was there to ask, as routing says of that; and
//! where money alone stood in the way, the step fails for its cost.

use std::sync::Arc;
use std::time::Duration;

use rust_decimal::Decimal;
use serde_json::{Value, json};

use crate::model::{AgentId, ErrorCode, Failure, Price, Timestamp, printable};
use crate::node::explain::round;
use crate::node::invocation::invoke::InvokeRequest;
use crate::node::invocation::offers::{self, Offered, OffersAnswer, OffersRequest};
use crate::node::shared::Shared;
use crate::proto::task::definition::{Definition, OnTimeout, Subtask};
use crate::proto::task::machine::Choose;
use crate::wire::offer::SPAN_MS_MAX;

/// How many agents are asked: as many as clients of this node ask unless they say otherwise.
const ASKED: u32 = 8;
/// How many agents that were not even asked are listed.
const ROWS_MAX: usize = 8;
/// How many reasons of those who made no offer are told.
const REASONS_TOLD_MAX: usize = 4;

/// What came of asking.
pub(super) struct Bids {
    /// Whose offers fit, the best first.
    pub(super) agents: Vec<AgentId>,
    /// Everything that was said, for the explanation of the choice.
    pub(super) document: Value,
    /// Why nobody's offer fits; `None` where nobody was there to ask.
    pub(super) nobody: Option<Failure>,
}

/// Asks around for one step. `request` is the call that would be made, and `now` the time of tasks.
pub(super) async fn ask(
    shared: &Arc<Shared>,
    request: &InvokeRequest,
    definition: &Definition,
    subtask: &Subtask,
    choose: &Choose,
    now: Timestamp,
) -> Result<Bids, Failure> {
    let start_within = Duration::from_millis(shared.config.task.start_within_ms);
    let asked = OffersRequest {
        capability: request.capability.clone(),
        version: request.version.clone(),
        tokens: None,
        units: Some(subtask.estimated_units).filter(|units| *units > Decimal::ZERO),
        deadline_ms: Some(span_ms(definition, subtask, now)),
        // What a task may spend is not what its agent asks for.
        max_cost: choose.cost_max.filter(|_| subtask.task.is_none()),
        constraints: request.constraints.clone(),
        limit: ASKED,
    };
    let answer = offers::offers(shared, asked).await?;
    let mut reasons = Vec::new();
    let mut agents = Vec::new();
    for offered in &answer.offers {
        let agent = offered.candidate.agent();
        match unfit(offered, definition, start_within) {
            Some(reason) => reasons.push(reason),
            None if choose.refused_by.contains(&agent) => {
                let name = printable(&offered.candidate.entry.record.name, 64);
                reasons.push((ErrorCode::Busy, format!("`{name}` did not take it just now")));
            }
            None => agents.push(agent),
        }
    }
    agents.sort_by_key(|agent| choose.failed_on.contains(agent));
    let declined = answer.declined.iter().map(|declined| {
        let name = printable(&declined.candidate.entry.record.name, 64);
        (declined.code, format!("`{name}`: {}", printable(&declined.reason, 200)))
    });
    reasons.extend(declined);
    if !reasons.is_empty() {
        // Who is only away for a time may yet make an offer, so money alone does not stand in the way.
        let away = answer.rejected.iter().filter(|rejected| rejected.reason.is_for_a_time());
        reasons.extend(away.map(|away| (away.reason.code(), format!("`{}`: {}", printable(&away.name, 64), away.reason))));
    }
    let nobody = (agents.is_empty() && !reasons.is_empty()).then(|| nobody(&reasons));
    Ok(Bids { agents, document: document(&answer), nobody })
}

/// In which time it must be done, in milliseconds: what one attempt may take, and what is left of the task's time.
fn span_ms(definition: &Definition, subtask: &Subtask, now: Timestamp) -> u64 {
    let longest = match definition.fallback.on_timeout {
        OnTimeout::Extend(extended) => subtask.extended_timeout(extended),
        OnTimeout::Retry | OnTimeout::Fail => subtask.attempt_timeout,
    };
    let left = definition.deadline.map(|deadline| deadline.saturating_since(now));
    let span = left.map_or(longest, |left| left.min(longest));
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX).clamp(1, SPAN_MS_MAX)
}

/// Why an offer is no use to this task.
fn unfit(offered: &Offered, definition: &Definition, start_within: Duration) -> Option<(ErrorCode, String)> {
    let (name, offer) = (printable(&offered.candidate.entry.record.name, 64), &offered.bid.offer);
    let foreign = |price: &&Price| definition.budget.is_some_and(|budget| price.currency != budget.currency) && !price.amount.is_zero();
    if let Some(price) = offer.price.as_ref().filter(foreign) {
        return Some((ErrorCode::OverBudget, format!("`{name}` is paid in {}", price.currency)));
    }
    let late = offer.starts_in_ms.filter(|ms| Duration::from_millis(*ms) > start_within)?;
    Some((ErrorCode::Busy, format!("`{name}` would begin in {late} ms, after the {} ms that a call waits", start_within.as_millis())))
}

fn nobody(reasons: &[(ErrorCode, String)]) -> Failure {
    let code = if reasons.iter().all(|(code, _)| *code == ErrorCode::OverBudget) { ErrorCode::OverBudget } else { ErrorCode::Busy };
    let told: Vec<&str> = reasons.iter().take(REASONS_TOLD_MAX).map(|(_, reason)| reason.as_str()).collect();
    let more = reasons.len().saturating_sub(told.len());
    let more = if more > 0 { format!(" (and {more} more)") } else { String::new() };
    Failure::new(code, format!("nobody makes an offer that fits: {}{more}", told.join("; ")))
}

fn document(answer: &OffersAnswer) -> Value {
    let offers = answer.offers.iter().map(|Offered { candidate, bid }| {
        let (record, offer) = (&candidate.entry.record, &bid.offer);
        let cost = offer.price.as_ref().zip(offer.cost());
        json!({
            "agent_id": record.agent, "name": printable(&record.name, 64), "node_id": record.node,
            "starts_in_ms": offer.starts_in_ms, "takes_ms": offer.takes_ms, "free_slots": offer.free_slots, "queue": offer.queued,
            "cost": cost.map(|(price, cost)| json!({ "amount": cost.normalize().to_string(), "currency": price.currency })),
            "score": round(bid.score, 4),
        })
    });
    let declined = answer.declined.iter().map(|declined| {
        let record = &declined.candidate.entry.record;
        let reason = printable(&declined.reason, 200);
        json!({ "agent_id": record.agent, "name": printable(&record.name, 64), "node_id": record.node, "code": declined.code, "reason": reason })
    });
    let rejected = answer.rejected.iter().take(ROWS_MAX).map(|rejected| {
        let (code, reason) = (rejected.reason.code(), rejected.reason.to_string());
        json!({ "agent_id": rejected.agent, "name": printable(&rejected.name, 64), "node_id": null, "code": code, "reason": reason })
    });
    json!({ "offers": offers.collect::<Vec<_>>(), "declined": declined.chain(rejected).collect::<Vec<_>>() })
}
