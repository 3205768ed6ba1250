//! A subtask that is a task of its own, from the side that gives it away (AMP-8): what the other node is sent, and what its answer means.
//!
//! What is sent is the same in every attempt on one agent, since the other node knows the call by it: the share of the budget is that of the
//! first attempt. The share is held back in full for as long as the task runs, and what the other node says was spent is billed, at the
//! agent's price per unit spent, or one for one where it has none. So budgets are split and never copied (threat T20).

use bytes::Bytes;
use rust_decimal::Decimal;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::model::{Currency, ErrorCode, Failure, Price, TaskId, printable};
use crate::proto::task::definition::{Definition, Subtask};
use crate::wire::task::Charge;

/// Digits behind the point of a share: finer than any price is paid.
const SHARE_DIGITS: u32 = 9;
/// The unit of a task's bill where its agent has no price.
const UNIT: &str = "spent";

/// The input of the call: the definition with its `parameters`, whose it is, and what it may spend.
pub(super) fn input(
    document: &Value,
    parameters: &[u8],
    (task, subtask): (TaskId, &Subtask),
    definition: &Definition,
    share: Option<Decimal>,
    price: Option<&Price>,
) -> Result<Bytes, Failure> {
    let broken = |error: serde_json::Error| Failure::new(ErrorCode::Internal, error.to_string());
    let parameters: Value = serde_json::from_slice(parameters).map_err(broken)?;
    let mut document = document.clone();
    let place = if document.get("Task").is_some_and(Value::is_object) { &mut document["Task"] } else { &mut document };
    place["parameters"] = parameters;
    let mut input = json!({ "definition": document, "parent_task_id": task, "subtask_id": subtask.id });
    if let Some(share) = share {
        // What it spends is billed at the agent's price.
        let price = price.map(|price| price.amount).filter(|amount| !amount.is_zero()).unwrap_or(Decimal::ONE);
        let amount = share.checked_div(price).unwrap_or_default().trunc_with_scale(SHARE_DIGITS).normalize();
        let currency = definition.budget.map_or_else(|| "USD".to_owned(), |budget| budget.currency.to_string());
        input["budget"] = json!({ "amount": amount.to_string(), "currency": currency });
    }
    serde_json::to_vec(&input).map(Bytes::from).map_err(broken)
}

/// The task that the other node's first word names.
pub(super) async fn first(chunks: &mut mpsc::Receiver<Bytes>) -> Option<TaskId> {
    let chunk = chunks.recv().await?;
    let said: Value = serde_json::from_slice(&chunk).ok()?;
    said["task_id"].as_str()?.parse().ok()
}

/// What the other node answers.
pub(super) struct Done {
    /// Which task it was there.
    pub(super) task: TaskId,
    /// What came of it.
    pub(super) result: Value,
    /// What it has spent, billed one for one.
    pub(super) charge: Option<Charge>,
}

/// Reads the answer.
pub(super) fn done(mut answer: Value) -> Result<Done, Failure> {
    let odd = |what: &str| Failure::new(ErrorCode::InvalidSchema, format!("the answer of an agent that runs tasks {what}"));
    let task = answer["task_id"].as_str().and_then(|text| text.parse().ok()).ok_or_else(|| odd("names no task"))?;
    let spent = answer["cost"].to_string().parse::<Decimal>().ok().filter(|spent| !spent.is_sign_negative());
    let spent = spent.ok_or_else(|| odd("names no cost"))?;
    let word = printable(answer["currency"].as_str().unwrap_or_default(), 8);
    let currency = word.parse::<Currency>().map_err(|_| odd("names no currency"))?;
    let result = answer.get_mut("result").map(Value::take).ok_or_else(|| odd("has no result"))?;
    let charge = (!spent.is_zero()).then(|| Charge { units: spent, unit: UNIT.to_owned(), price: Decimal::ONE, currency, total: spent });
    Ok(Done { task, result, charge })
}
