//! An agent that runs whole tasks for others: its adapter is the node itself (AMP 3 "Task Delegation", AMP-8).
//!
//! What it offers and takes is fixed here; the running is the node's, which lends itself as [`RunTasks`]. A node runs tasks of others only if
//! its owner attached such an agent: there is none by default. It can be priced like any other: it counts as units what the task has spent,
//! so a price of 1 per unit passes on what the work cost, and one of 1.1 adds a tenth.

use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;
use rust_decimal::Decimal;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::exchange::{Answer, Invocation, cancelled, stopped, timed_out};
use crate::model::{CapabilityDefinition, Currency, Failure, InvocationId, TASK_EXECUTION};

/// One call to run a task.
#[derive(Debug)]
pub struct TaskCall {
    /// The call, which the node knows to be running.
    pub id: InvocationId,
    /// The input, which matches [`input_schema`].
    pub input: Value,
    /// The caller's idempotency key.
    pub key: Option<String>,
    /// What the agent is paid in, if it has a price.
    pub currency: Option<Currency>,
    /// Where progress goes, each as JSON text.
    pub chunks: Option<mpsc::Sender<Bytes>>,
    /// Cancelled when nobody wants the task any more.
    pub cancel: CancellationToken,
}

/// What a task came to.
#[derive(Debug)]
pub struct TaskDone {
    /// The answer, as JSON text.
    pub output: Bytes,
    /// What it has spent.
    pub spent: Decimal,
}

/// Whoever runs tasks: the node.
pub trait RunTasks: Send + Sync {
    /// Runs a task to its end.
    fn run(&self, call: TaskCall) -> BoxFuture<'static, Result<TaskDone, Failure>>;
}

/// What goes in.
pub fn input_schema() -> Value {
    json!({
        "type": "object",
        "properties": {
            "definition": {"type": "object"},
            "parent_task_id": {"type": "string", "maxLength": 36},
            "subtask_id": {"type": "string", "maxLength": 64},
            "budget": {
                "type": "object",
                "properties": {"amount": {"type": "string", "maxLength": 40}, "currency": {"type": "string", "maxLength": 3}},
                "required": ["amount", "currency"],
                "additionalProperties": false,
            },
        },
        "required": ["definition"],
        "additionalProperties": false,
    })
}

/// Gives the agent its only capability; its owner may price and bound it.
pub(super) fn fill_in(capabilities: &mut Vec<CapabilityDefinition>, description: &mut String, fault: &mut dyn FnMut(&str, String)) {
    if description.is_empty() {
        "Runs whole tasks for other nodes.".clone_into(description);
    }
    if capabilities.is_empty() {
        capabilities.extend(serde_json::from_value::<CapabilityDefinition>(json!({ "id": TASK_EXECUTION })));
    }
    for (index, capability) in capabilities.iter_mut().enumerate() {
        if capability.id.as_str() != TASK_EXECUTION {
            fault(&format!("capability[{index}].id"), format!("an agent that runs tasks offers only {TASK_EXECUTION}"));
            continue;
        }
        capability.input_schema = input_schema();
        capability.output_schema = json!({});
        if capability.description.is_empty() {
            "Runs a whole task as one of its node's own, within the time and money of the call.".clone_into(&mut capability.description);
        }
    }
}

/// Has the node run the task of one call.
pub(super) async fn run(
    name: &str,
    runner: &Arc<dyn RunTasks>,
    invocation: &Invocation,
    input: Value,
    currency: Option<Currency>,
    stop: &CancellationToken,
    cancel: &CancellationToken,
) -> Result<Answer, Failure> {
    let over = CancellationToken::new();
    let call = TaskCall {
        id: invocation.id,
        input,
        key: invocation.key.clone(),
        currency,
        chunks: invocation.chunks.clone(),
        cancel: over.clone(),
    };
    // On its own, since it must hear of its end after this future is gone.
    let mut running = tokio::spawn(runner.run(call));
    let _guard = over.drop_guard();
    tokio::select! {
        done = &mut running => {
            let done = done.map_err(|_| stopped(name))??;
            Ok(Answer::plain(done.output, Some(done.spent)))
        }
        () = cancel.cancelled() => Err(cancelled()),
        () = stop.cancelled() => Err(stopped(name)),
        () = tokio::time::sleep_until(invocation.deadline) => Err(timed_out(name)),
    }
}
