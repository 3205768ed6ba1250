//! Offers: could somebody do this, when, for how much.

use axum::Json;
use axum::extract::State;
use rust_decimal::Decimal;
use serde::Deserialize;
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::super::ApiError;
use super::body::Body;
use super::types::{Constraints, ErrorDocument, decimal};
use crate::model::{CapabilityName, Figure, NodeId, VersionRequirement};
use crate::node::explain::{figure, round};
use crate::node::{Candidate, Declined, Handle, Offered, OffersAnswer, OffersRequest};

/// Body of `POST /v1/offers`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct OffersBody {
    /// What is to be done.
    #[schema(value_type = String)]
    capability: CapabilityName,
    /// Which versions will do, such as `^1.2`.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    version: Option<VersionRequirement>,
    /// How many tokens the input probably has; counts where the price is per token.
    #[serde(default)]
    estimated_tokens: Option<u64>,
    /// How many units of any other kind it probably takes, as a decimal in a string; 1 without it.
    #[serde(default, deserialize_with = "decimal")]
    #[schema(value_type = Option<String>)]
    units: Option<Decimal>,
    /// By when it must be done, in milliseconds from now.
    #[serde(default)]
    deadline_ms: Option<u64>,
    /// What all of it may cost, as a decimal in a string.
    #[serde(default, deserialize_with = "decimal")]
    #[schema(value_type = Option<String>)]
    max_cost: Option<Decimal>,
    /// What must hold of the agents that are asked; here `max_cost` is per unit.
    #[serde(default)]
    constraints: Constraints,
    /// How many agents are asked, 1 to 16.
    #[serde(default = "limit_default")]
    limit: u32,
}

fn limit_default() -> u32 {
    8
}

/// Asks the best candidates what they could do (AMP-7). Offers are hints that nobody signs: they reserve nothing and bind nobody.
#[utoipa::path(
    post, path = "/v1/offers", request_body = OffersBody,
    responses((status = 200, description = "Offers, best first, and who made none", body = Value), (status = 400, description = "Faulty request", body = ErrorDocument))
)]
pub(super) async fn offers(State(handle): State<Handle>, Body(body): Body<OffersBody>) -> Result<Json<Value>, ApiError> {
    let asked = body.capability.clone();
    let request = OffersRequest {
        capability: body.capability,
        version: body.version,
        tokens: body.estimated_tokens,
        units: body.units,
        deadline_ms: body.deadline_ms,
        max_cost: body.max_cost,
        constraints: body.constraints.into(),
        limit: body.limit,
    };
    let answer = handle.offers(request).await?;
    let mut document = shown(&answer, handle.node_id());
    let nobody = answer.offers.is_empty() && answer.declined.is_empty() && answer.rejected.is_empty();
    if let Some(near) = Some(asked).filter(|_| nobody).and_then(|asked| handle.nearest_name(&asked)) {
        document["suggestion"] = Value::String(near);
    }
    Ok(Json(document))
}

fn shown(answer: &OffersAnswer, here: NodeId) -> Value {
    let offers: Vec<Value> = answer.offers.iter().map(|offered| offer(offered, here)).collect();
    let declined = answer.declined.iter().map(declined);
    let rejected = answer.rejected.iter().map(|rejected| {
        let (code, reason) = (rejected.reason.code(), rejected.reason.to_string());
        json!({ "agent_id": rejected.agent, "name": rejected.name, "node_id": null, "code": code, "reason": reason })
    });
    json!({ "offers": offers, "declined": declined.chain(rejected).collect::<Vec<Value>>() })
}

fn offer(offered: &Offered, here: NodeId) -> Value {
    let Offered { candidate, bid } = offered;
    let local = candidate.entry.record.node == here;
    let offer = &bid.offer;
    // What another node says that it measured is its word.
    let takes = offer.takes_ms.map(|ms| if local && offer.runs > 0 { Figure::measured(ms) } else { Figure::claimed(ms) });
    let cost = offer
        .price
        .as_ref()
        .zip(offer.cost())
        .map(|(price, cost)| json!({ "amount": cost.normalize().to_string(), "currency": price.currency }));
    let mut row = named(candidate);
    let fields = json!({
        "capability": offer.capability,
        "capability_version": offer.version,
        "free_slots": offer.free_slots,
        "queue": offer.queued,
        "starts_in_ms": offer.starts_in_ms,
        "takes_ms": figure(takes),
        "runs": offer.runs,
        "completes_in_ms": bid.completes_in_ms().map(|ms| round(ms, 3)),
        "price": offer.price,
        "units": offer.units.normalize().to_string(),
        "cost": cost,
        "valid_ms": offer.valid_ms,
        "latency_ms": figure(bid.known.measured_ms.map(|ms| Figure::measured(round(ms, 3)))),
        "trust": round(candidate.estimate.trust, 2),
        "score": round(bid.score, 4),
        "local": local,
    });
    if let (Some(row), Value::Object(fields)) = (row.as_object_mut(), fields) {
        row.extend(fields);
    }
    row
}

fn declined(declined: &Declined) -> Value {
    let mut row = named(&declined.candidate);
    row["code"] = json!(declined.code);
    row["reason"] = json!(declined.reason);
    row
}

fn named(candidate: &Candidate) -> Value {
    let record = &candidate.entry.record;
    json!({ "agent_id": record.agent, "name": record.name, "node_id": record.node })
}
