//! Why an answer is what it is, as a document: candidates with the terms of their scores, who was left out and why, attempts and times.
//!
//! The same rows answer `find`. A call that fails carries its explanation in the failure's details, so they are made here and not in one
//! of the doors: each door passes details on as they are.

use std::time::Duration;

use serde::Serialize;
use serde_json::{Value, json};

use crate::model::{Figure, NodeId};
use crate::proto::directory::rank::{Answer, Candidate};
use crate::proto::invocation::call::Attempt;
use crate::proto::peers::receipts::Attested;

/// How a call came about.
#[derive(Debug, Clone)]
pub struct Explanation {
    /// The candidates when the first agent was chosen.
    pub answer: Answer,
    /// Everybody who was asked.
    pub attempts: Vec<Attempt>,
    /// From request to end.
    pub took: Duration,
}

impl Explanation {
    /// The whole of it; `here` is this node.
    pub(crate) fn document(&self, here: NodeId) -> Value {
        let candidates: Vec<Value> = self.answer.candidates.iter().map(|found| candidate(found, true, here)).collect();
        let attempts: Vec<Value> = self.attempts.iter().map(|attempt| self.attempt(attempt)).collect();
        json!({ "candidates": candidates, "rejected": rejected(&self.answer), "attempts": attempts, "total_ms": ms(self.took) })
    }

    fn attempt(&self, attempt: &Attempt) -> Value {
        let considered = self.answer.candidates.iter().find(|candidate| candidate.agent() == attempt.agent);
        let rejected = self.answer.rejected.iter().find(|rejected| rejected.agent == attempt.agent);
        let name = considered.map(|candidate| &candidate.entry.record.name).or_else(|| rejected.map(|rejected| &rejected.name));
        let outcome = attempt.failure.as_ref().map_or_else(|| "success".to_owned(), |failed| failed.failure.to_string());
        json!({
            "agent_id": attempt.agent,
            "name": name,
            "node_id": attempt.node,
            "why": attempt.why.to_string(),
            "started_ms": ms(attempt.started),
            "ended_ms": attempt.ended.map(ms),
            "outcome": outcome,
            "begun": attempt.failure.as_ref().is_none_or(|failed| failed.begun),
        })
    }
}

fn ms(duration: Duration) -> f64 {
    round(duration.as_secs_f64() * 1_000.0, 3)
}

/// A figure with who vouches for it.
pub(crate) fn figure<T: Serialize>(value: Option<Figure<T>>) -> Value {
    value.map_or(Value::Null, |figure| json!({ "value": figure.value, "source": figure.source }))
}

/// A figure with so many digits behind the point.
pub(crate) fn round(value: f64, digits: i32) -> f64 {
    let scale = 10_f64.powi(digits);
    (value * scale).round() / scale
}

/// One candidate; with `explain` its standing and the terms of its score.
pub(crate) fn candidate(found: &Candidate, explain: bool, here: NodeId) -> Value {
    let record = &found.entry.record;
    let offered = found.capability();
    let price = offered.and_then(|offered| offered.price.as_ref());
    let rate = found.estimate.success_figure().map(|figure| Figure { value: round(figure.value, 4), ..figure });
    let mut row = json!({
        "agent_id": record.agent,
        "name": record.name,
        "node_id": record.node,
        "capability": offered.map(|offered| offered.id.as_str()),
        "capability_version": offered.map(|offered| offered.version.to_string()),
        "match": round(found.terms.r#match, 4),
        "score": round(found.score, 4),
        "trust": round(found.estimate.trust, 2),
        "latency_ms": figure(found.latency_ms.map(|figure| Figure { value: round(figure.value, 3), ..figure })),
        "cost": price.map(|price| json!({ "value": price.amount.to_string(), "currency": price.currency, "unit": price.unit, "source": "claimed" })),
        "success_rate": figure(rate),
        "in_flight": found.entry.load(),
        "local": record.node == here,
    });
    if let (true, Some(fields)) = (explain, row.as_object_mut()) {
        let terms = &found.terms;
        let shown = json!({
            "match": round(terms.r#match, 4),
            "trust": round(terms.trust, 4),
            "latency": round(terms.latency, 4),
            "cost": round(terms.cost, 4),
        });
        fields.insert("terms".to_owned(), shown);
        fields.insert("standing".to_owned(), found.standing.to_string().into());
        fields.insert("attested".to_owned(), attested(found.estimate.attested.as_ref()));
    }
    row
}

/// What counted receipts say, in calls that they count as; `null` if they say nothing.
pub(crate) fn attested(said: Option<&Attested>) -> Value {
    said.map_or(Value::Null, |said| {
        json!({
            "successes": round(said.successes, 2),
            "failures": round(said.failures, 2),
            "latency_ms": said.latency_ms.map(|ms| round(ms, 3)),
        })
    })
}

/// Who was left out, and why.
pub(crate) fn rejected(answer: &Answer) -> Vec<Value> {
    answer
        .rejected
        .iter()
        .map(|rejected| json!({ "agent_id": rejected.agent, "name": rejected.name, "reason": rejected.reason.to_string() }))
        .collect()
}
