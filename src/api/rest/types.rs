//! Bodies and answers of the REST door.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::sync::Arc;

use rust_decimal::Decimal;
use serde::{Deserialize, Deserializer, Serialize, de};
use serde_json::value::RawValue;
use serde_json::{Value, json};
use utoipa::ToSchema;

use crate::model::{AgentId, CapabilityName, Figure, InvocationId, VersionRequirement};
use crate::node::explain::{self, figure, round};
use crate::node::{AgentView, Answer, Availability, Entry, InvokeReply, Phase, Priority, Reach, SchemaHash, TrustView, Wanted};

/// What every error looks like.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::api) struct ErrorDocument {
    /// The error.
    error: ErrorBody,
}

/// The inside of an error.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::api) struct ErrorBody {
    /// A stable word.
    code: String,
    /// The number in MAOP's classes.
    number: u16,
    /// One sentence for a person.
    message: String,
    /// Whether the same request may succeed later or elsewhere.
    retryable: bool,
    /// Facts for a program.
    details: BTreeMap<String, Value>,
    /// The trace, if there is one.
    trace_id: Option<String>,
}

/// Constraints of a query or call.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Constraints {
    /// Longest latency in milliseconds.
    max_latency_ms: Option<f64>,
    /// Smallest share of calls that succeed, 0 to 1.
    min_success_rate: Option<f64>,
    /// Least trust, 0 to 100.
    min_trust: Option<f64>,
    /// Highest price per unit, as a decimal in a string.
    #[serde(deserialize_with = "decimal")]
    #[schema(value_type = Option<String>)]
    max_cost: Option<Decimal>,
    /// Language that must be supported.
    language: Option<String>,
}

impl From<Constraints> for Wanted {
    fn from(given: Constraints) -> Self {
        Self {
            max_latency_ms: given.max_latency_ms,
            min_success_rate: given.min_success_rate,
            min_trust: given.min_trust,
            max_cost: given.max_cost,
            language: given.language,
        }
    }
}

/// A decimal as a string, or as a number as far as JSON keeps its digits.
pub(super) fn decimal<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Decimal>, D::Error> {
    let text = match Option::<Value>::deserialize(deserializer)? {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::String(text)) => text,
        Some(Value::Number(number)) => number.to_string(),
        Some(Value::Bool(_) | Value::Array(_) | Value::Object(_)) => {
            return Err(de::Error::custom("expected a decimal such as \"0.01\""));
        }
    };
    Decimal::from_str(&text).map(Some).map_err(|_| de::Error::custom("expected a decimal such as \"0.01\""))
}

/// Body of `POST /v1/find`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct FindBody {
    /// Names of capabilities or headings; any of them will do.
    #[serde(default)]
    #[schema(value_type = Vec<String>)]
    pub(super) capabilities: Vec<CapabilityName>,
    /// Words to look for in names and descriptions.
    #[serde(default)]
    pub(super) text: Option<String>,
    /// Which versions will do, such as `^1.2`.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub(super) version: Option<VersionRequirement>,
    /// What else must hold.
    #[serde(default)]
    pub(super) constraints: Constraints,
    /// Only agents whose input schema accepts this input.
    #[serde(default, deserialize_with = "given")]
    pub(super) input: Option<Value>,
    /// How many answers are wanted, 1 to 64.
    #[serde(default = "limit_default")]
    pub(super) limit: u32,
    /// Whether to list who was left out, and the terms of each score.
    #[serde(default)]
    pub(super) explain: bool,
}

/// `null` is an input like any other.
fn given<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(deserializer).map(Some)
}

fn limit_default() -> u32 {
    10
}

/// Body of `POST /v1/invoke`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct InvokeBody {
    /// What shall be done.
    #[schema(value_type = String)]
    pub(super) capability: CapabilityName,
    /// Which versions will do.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub(super) version: Option<VersionRequirement>,
    /// The only agent that may do it: id, name, or name@prefix.
    #[serde(default)]
    pub(super) agent_id: Option<String>,
    /// The input; passed on as it is written.
    #[serde(default)]
    #[schema(value_type = Value)]
    pub(super) input: Option<Box<RawValue>>,
    /// How long it may take.
    #[serde(default)]
    pub(super) timeout_ms: Option<u64>,
    /// For agents that call in turn: the id of the call that the agent works on, as it was given. The call gets no more time than that one
    /// has left, ends with it, and goes to nobody who waits for it.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub(super) parent: Option<InvocationId>,
    /// HIGH, NORMAL or LOW, in any letters.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub(super) priority: Option<Priority>,
    /// Calls with one key are one call.
    #[serde(default)]
    pub(super) idempotency_key: Option<String>,
    /// What else must hold of the agent.
    #[serde(default)]
    pub(super) constraints: Constraints,
    /// Whether the answer comes as server-sent events: any number of `chunk`, then one `result` or `error`. A client that reads slowly
    /// slows the agent down.
    #[serde(default)]
    pub(super) stream: bool,
    /// How long the first chunk of a streamed answer may take.
    #[serde(default)]
    pub(super) first_chunk_timeout_ms: Option<u64>,
    /// How long the pause after a chunk may be.
    #[serde(default)]
    pub(super) idle_timeout_ms: Option<u64>,
    /// Whether the answer says how it came about.
    #[serde(default)]
    pub(super) explain: bool,
    /// Chosen by the client, so that it can cancel: 32 hexadecimal digits.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub(super) invocation_id: Option<InvocationId>,
}

/// The answer of `POST /v1/find`.
pub(super) fn found(answer: &Answer, explain: bool, here: crate::model::NodeId) -> Value {
    let rows: Vec<Value> = answer.candidates.iter().map(|found| explain::candidate(found, explain, here)).collect();
    json!({ "agents": rows, "rejected": explain::rejected(answer) })
}

/// The answer of `POST /v1/invoke`. The output is written as the agent wrote it.
pub(super) fn invoked(reply: &InvokeReply, here: crate::model::NodeId) -> String {
    let cost = reply.cost.as_ref().map(|(amount, currency)| json!({ "amount": amount.to_string(), "currency": currency }));
    let mut rest = json!({
        "invocation_id": reply.id,
        "status": "success",
        "agent_id": reply.agent,
        "node_id": reply.node,
        "attempts": reply.attempts,
        "latency_ms": round(reply.latency.as_secs_f64() * 1_000.0, 3),
        "cost": cost,
        "units": reply.units.normalize().to_string(),
    });
    if let (Some(explanation), Some(fields)) = (&reply.explanation, rest.as_object_mut()) {
        fields.insert("explain".to_owned(), explanation.document(here));
    }
    let rest = rest.to_string();
    let output = std::str::from_utf8(&reply.output).unwrap_or("null");
    // Splicing keeps the agent's bytes: re-encoding would cost time and could change its numbers.
    format!("{},\"output\":{output}}}", rest.strip_suffix('}').unwrap_or(&rest))
}

/// An agent's record and state.
pub(super) fn record(view: &AgentView, schemas: &[(SchemaHash, Arc<Value>)]) -> Value {
    let record = &view.entry.record;
    let schema = |hash: SchemaHash| schemas.iter().find(|(known, _)| *known == hash).map(|(_, text)| (**text).clone());
    let capabilities: Vec<Value> = record
        .capabilities
        .iter()
        .map(|offered| {
            let mut shown = json!({
                "id": offered.id,
                "version": offered.version,
                "description": offered.description,
                "input_schema_hash": offered.input_schema.to_string(),
                "output_schema_hash": offered.output_schema.to_string(),
                "price": offered.price,
                "constraints": offered.constraints,
                "idempotent": offered.idempotent,
                "score": figure(offered.claims.score.map(Figure::claimed)),
                "specializations": offered.claims.specializations,
                "limitations": offered.claims.limitations,
                "resource_requirements": offered.claims.resource_requirements,
            });
            if let (false, Some(fields)) = (schemas.is_empty(), shown.as_object_mut()) {
                let any = || json!({});
                fields.insert("input_schema".to_owned(), schema(offered.input_schema).unwrap_or_else(any));
                fields.insert("output_schema".to_owned(), schema(offered.output_schema).unwrap_or_else(any));
            }
            shown
        })
        .collect();
    json!({
        "agent_id": record.agent,
        "name": record.name,
        "version": record.version,
        "framework": record.framework,
        "protocol_version": "1.0",
        "description": record.description,
        "node_id": record.node,
        "local": view.local,
        "sequence": record.sequence,
        "issued_at": record.issued_at.to_string(),
        "expires_at": record.expires_at.to_string(),
        "addresses": record.addresses,
        "concurrency": record.concurrency,
        "capabilities": capabilities,
        "status": status(&view.entry, view.reason.as_deref()),
    })
}

fn status(entry: &Entry, reason: Option<&str>) -> Value {
    let reachable = matches!(entry.reach, Reach::Here | Reach::Connected | Reach::Proven);
    let state = match entry.availability {
        Availability::Available if reachable => "available",
        Availability::Suspect => "suspect",
        Availability::Available | Availability::Unavailable => "unavailable",
    };
    let why = match (reason, entry.availability) {
        (Some(reason), _) => Some(reason),
        (None, Availability::Unavailable) => Some("its node reports it unavailable"),
        (None, Availability::Suspect) => Some("it or its node failed moments ago"),
        (None, Availability::Available) if !reachable => Some("its node cannot be reached from here"),
        (None, Availability::Available) => None,
    };
    json!({ "state": state, "reason": why, "in_flight": entry.in_flight, "queue": entry.queued, "reachable": reachable })
}

/// A row of `GET /v1/trust`. Evidence has decayed, so its counts are no whole numbers.
pub(super) fn trust(view: &TrustView) -> Value {
    let estimate = &view.estimate;
    json!({
        "agent_id": view.agent,
        "name": view.entry.as_ref().map(|entry| entry.record.name.clone()),
        "node_id": view.entry.as_ref().map(|entry| entry.record.node),
        "capability": view.capability,
        "trust": round(estimate.trust, 2),
        "low": round(estimate.low, 2),
        "high": round(estimate.high, 2),
        "standing": view.standing.to_string(),
        "successes": round(estimate.successes, 2),
        "failures": round(estimate.failures, 2),
        "latency_ms": estimate.latency_ms.map(|ms| round(ms, 3)),
        "attested": explain::attested(estimate.attested.as_ref()),
        "breaker": breaker(view.breaker),
    })
}

fn breaker(phase: Phase) -> Value {
    match phase {
        Phase::Closed => json!({ "state": "closed" }),
        Phase::Open { left } => json!({ "state": "open", "left_ms": u64::try_from(left.as_millis()).unwrap_or(u64::MAX) }),
        Phase::HalfOpen { probed } => json!({ "state": "half-open", "probed": probed }),
    }
}

/// The agent that text names, for bodies that take an id.
pub(super) fn as_agent_id(text: &str) -> Option<AgentId> {
    text.parse().ok()
}
