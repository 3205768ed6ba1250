//! From a goal to subtasks, and from subtasks to what would become of them (AITP 3, `meshwork task plan`).
//!
//! A task whose author gave subtasks is taken as it is. One with a goal alone is given to an agent that offers `task-decomposition`; what it
//! answers is read like any definition, so a bad plan is refused with its faults and never run.

use std::sync::Arc;
use std::time::Duration;

use rust_decimal::Decimal;
use serde_json::{Value, json};

use super::read;
use crate::model::{CapabilityName, ErrorCode, Failure, TaskId};
use crate::node::explain::round;
use crate::node::invocation::invoke::{self, InvokeRequest};
use crate::node::invocation::routing;
use crate::node::shared::Shared;
use crate::proto::task::definition::Definition;
use crate::proto::task::fault::{self, Fault};
use crate::proto::task::machine::Input;
use crate::store::Blobs;

/// The capability of agents that decompose.
const DECOMPOSITION: &str = "task-decomposition";
/// How long an agent may take to decompose a goal: a language model thinks.
const DECOMPOSE_MAX: Duration = Duration::from_secs(120);
/// How long is looked for each agent of a plan.
const LOOK_MAX: Duration = Duration::from_secs(2);

/// Refuses a definition that breaks what only compiled schemas can tell.
pub(super) fn check(shared: &Shared, definition: &Definition) -> Result<(), Failure> {
    let invalid = |path: &str, message: String| fault::failure(&[Fault { path: path.to_owned(), message, suggestion: None }]);
    let compiles = |schema: &Value, path: &str| {
        if *schema == Value::Bool(true) {
            return Ok(());
        }
        crate::agents::schema::Schema::compile(schema).map(drop).map_err(|error| invalid(path, error.to_string()))
    };
    compiles(&definition.input, "/input")?;
    compiles(&definition.output, "/output")?;
    for (index, subtask) in definition.subtasks.iter().enumerate() {
        compiles(&subtask.output, &format!("/subtasks/{index}/output"))?;
    }
    let parameters = Value::Object(definition.parameters.clone());
    read::check(shared, &definition.input, &parameters, "parameters").map_err(|failure| {
        // The place is one of the document, not of the values alone.
        let place = failure.details.get("path").and_then(Value::as_str).unwrap_or_default().trim_end_matches('/').to_owned();
        invalid(&format!("/parameters{place}"), failure.message)
    })
}

/// Subtasks for a goal.
pub(super) async fn decompose(shared: Arc<Shared>, blobs: Blobs, task: TaskId, definition: Arc<Definition>) -> Input {
    let planned = Box::pin(by_agent(&shared, &definition)).await;
    let (subtasks, by, definition) = match planned {
        Ok(planned) => planned,
        Err(failure) => return Input::Unplanned(failure),
    };
    let text = serde_json::to_vec(&subtasks).unwrap_or_default();
    match read::keep(&blobs, task, text.into()).await {
        Ok(subtasks) => Input::Planned { subtasks, by, definition: Box::new(definition) },
        Err(failure) => Input::Unplanned(failure),
    }
}

/// Asks an agent that decomposes.
async fn by_agent(shared: &Arc<Shared>, definition: &Definition) -> Result<(Value, String, Definition), Failure> {
    let name: CapabilityName =
        DECOMPOSITION.parse().map_err(|_| Failure::new(ErrorCode::Internal, "the name of decomposition is no capability"))?;
    let input = json!({
        "goal": definition.goal,
        "name": definition.name,
        "description": definition.description,
        "input": definition.input,
        "output": definition.output,
        "parameters": definition.parameters,
        "capabilities": shared.routes.load().names().take(256).map(CapabilityName::as_str).collect::<Vec<_>>(),
    });
    let mut request = InvokeRequest::new(name, input.to_string().into());
    request.timeout = Some(DECOMPOSE_MAX);
    let reply = invoke::invoke(shared, request).await.map_err(|failure| {
        let nobody = failure.code == ErrorCode::CapabilityNotFound;
        let message = if nobody {
            format!("the task has no subtasks, and no agent offers `{DECOMPOSITION}`")
        } else {
            format!("the goal could not be decomposed: {}", failure.message)
        };
        Failure::new(failure.code, message).retryable(failure.retryable)
    })?;
    let answer: Value = serde_json::from_slice(&reply.output).unwrap_or_default();
    let subtasks = answer.get("subtasks").cloned().unwrap_or(answer);
    let planned = definition.with_subtasks(&subtasks).map_err(|faults| {
        let failure = fault::failure(&faults);
        Failure { message: format!("agent {} made a plan that cannot be run: {}", reply.agent, failure.message), ..failure }
    })?;
    Ok((subtasks, format!("agent {}", reply.agent), planned))
}

/// What would come of a definition.
pub(super) async fn explain(shared: &Arc<Shared>, _blobs: &Blobs, definition: Definition) -> Result<Value, Failure> {
    let (definition, by) = if definition.subtasks.is_empty() {
        let (_, _, planned) = Box::pin(by_agent(shared, &definition)).await?;
        (planned, "agent")
    } else {
        (definition, "given")
    };
    let mut rows = Vec::new();
    let (mut total, mut currency, mut runnable) = (Decimal::ZERO, None, true);
    for subtask in &definition.subtasks {
        let mut request = InvokeRequest::new(subtask.capability.clone(), "{}".into());
        request.version = subtask.version.clone();
        request.agent = subtask.agent;
        request.constraints.min_trust = subtask.min_trust;
        let deadline = shared.mono().saturating_add(LOOK_MAX);
        let chosen = Box::pin(routing::choose(shared, &request, &[], deadline)).await;
        let after: Vec<&str> = subtask.after.iter().filter_map(|index| Some(definition.subtasks.get(*index)?.id.as_str())).collect();
        let mut row = json!({
            "subtask_id": subtask.id, "name": subtask.name, "capability": subtask.capability, "after": after,
            "agent": null, "candidates": 0, "estimated_cost": null, "reason": null,
        });
        match chosen {
            Ok(attempt) => {
                let candidate = attempt.candidate();
                let record = &candidate.entry.record;
                row["agent"] = json!({
                    "agent_id": record.agent, "name": crate::model::printable(&record.name, 64), "node_id": record.node,
                    "score": round(candidate.score, 4), "trust": round(candidate.estimate.trust, 2),
                });
                row["candidates"] = json!(attempt.candidates());
                if let Some(price) = candidate.capability().and_then(|capability| capability.price.as_ref()) {
                    let cost = price.times(subtask.estimated_units);
                    row["estimated_cost"] = json!({ "amount": cost.normalize().to_string(), "currency": price.currency });
                    total = total.saturating_add(cost);
                    currency.get_or_insert(price.currency);
                }
            }
            Err(failure) => {
                runnable = false;
                row["reason"] = json!(failure.message);
            }
        }
        rows.push(row);
    }
    let cost = currency.map(|currency| json!({ "amount": total.normalize().to_string(), "currency": currency }));
    Ok(json!({ "name": definition.name, "decomposed_by": by, "subtasks": rows, "estimated_cost": cost, "runnable": runnable }))
}
