//! A subtask that is a task of its own, from the side that gives it away (AMP-8): what the other node is sent, and what its answer means.
//!
//! What is sent is the same in every attempt on one agent, since the other node knows the call by it: the share of the budget is that of the
//! first attempt. The share is held back in full for as long as the task runs, and what the other node says was spent is billed, at the
//! agent's price per unit spent, or one for one where it has none; also where the task failed. So budgets are split and never copied (threat
//! T20). What is billed where the other node says nothing more, the core decides.

use std::time::Duration;

use bytes::Bytes;
use rust_decimal::Decimal;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use super::step::Report;
use crate::model::{Currency, ErrorCode, Failure, Price, TaskId, printable};
use crate::proto::task::definition::{Definition, Subtask};
use crate::proto::task::ledger::SPENT_UNIT;
use crate::proto::task::machine::Input;
use crate::wire::task::{Charge, Fence};

/// How often a task is told at most how far one within it is.
const PROGRESS_EVERY: Duration = Duration::from_millis(250);
/// The longest word on progress: two fields, of which one is an id. Events are longer, and not read.
const PROGRESS_BYTES_MAX: usize = 128;
/// Digits behind the point of a share: finer than any price is paid.
const SHARE_DIGITS: u32 = 9;

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
        let currency = currency(definition);
        input["budget"] = json!({ "amount": amount.to_string(), "currency": currency });
    }
    serde_json::to_vec(&input).map(Bytes::from).map_err(broken)
}

/// What shares are in.
fn currency(definition: &Definition) -> String {
    definition.budget.map_or_else(|| "USD".to_owned(), |budget| budget.currency.to_string())
}

/// What a task that failed says it has spent, at the agent's price, and no more than its share, which is all that it can have spent for us.
/// `None` if it does not say, or in another currency than it was given.
pub(super) fn spent(failure: &Failure, definition: &Definition, share: Option<Decimal>, price: Option<Price>) -> Option<Charge> {
    let spent = failure.details.get("spent")?.to_string().parse::<Decimal>().ok().filter(|spent| !spent.is_sign_negative())?;
    let currency = failure.details.get("currency")?.as_str().filter(|told| *told == currency(definition))?.parse::<Currency>().ok()?;
    let mut charge = match price {
        Some(price) if price.currency != currency => return None,
        Some(price) => Charge { units: spent, total: price.times(spent), unit: price.unit, price: price.amount, currency },
        None => one_for_one(spent, currency),
    };
    charge.total = share.map_or(charge.total, |share| charge.total.min(share));
    Some(charge)
}

fn one_for_one(spent: Decimal, currency: Currency) -> Charge {
    Charge { units: spent, unit: SPENT_UNIT.to_owned(), price: Decimal::ONE, currency, total: spent }
}

/// The task that the other node's first word names.
pub(super) async fn first(chunks: &mut mpsc::Receiver<Bytes>) -> Option<TaskId> {
    let chunk = chunks.recv().await?;
    let said: Value = serde_json::from_slice(&chunk).ok()?;
    said["task_id"].as_str()?.parse().ok()
}

/// Takes the other node's further words until there are none, and tells how far its task is: what changed, and no more often than
/// [`PROGRESS_EVERY`], whatever comes.
pub(super) async fn progress(chunks: &mut mpsc::Receiver<Bytes>, reports: &mpsc::Sender<Report>, task: TaskId, fence: Fence) {
    let (mut told, mut news) = (0, None);
    let mut free_at = Instant::now();
    loop {
        tokio::select! {
            chunk = chunks.recv() => {
                let Some(chunk) = chunk else { return };
                if let Some(percent) = percent(&chunk) {
                    news = Some(percent).filter(|percent| *percent != told);
                }
            }
            Some(percent) = async { news }, if news.is_some() && free_at <= Instant::now() => {
                (told, news) = (percent, None);
                free_at = Instant::now() + PROGRESS_EVERY;
                // The book outlives its steps; if it is gone, so is the node.
                let _ = reports.send(Report { task, input: Input::Progress(fence, percent), output: None }).await;
            }
            () = sleep_until(free_at), if news.is_some() && free_at > Instant::now() => {}
        }
    }
}

/// The percentage in a word on progress; `None` in any other.
fn percent(chunk: &[u8]) -> Option<u8> {
    if chunk.len() > PROGRESS_BYTES_MAX {
        return None;
    }
    let said: Value = serde_json::from_slice(chunk).ok()?;
    said["progress_percentage"].as_u64().and_then(|percent| u8::try_from(percent).ok()).filter(|percent| *percent <= 100)
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
    let charge = (!spent.is_zero()).then(|| one_for_one(spent, currency));
    Ok(Done { task, result, charge })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Timestamp;
    use crate::proto::task::definition::Defaults;

    fn dec(text: &str) -> Decimal {
        text.parse().expect("a number")
    }

    fn euros() -> Definition {
        let step = json!({ "subtask_id": "a", "agent_capability": "echo" });
        let limit = json!({ "amount": 1, "currency": "EUR" });
        let document = json!({ "name": "n", "metadata": { "cost_limit": limit }, "subtasks": [step] });
        Definition::read(&document, &Defaults::default(), Timestamp::from_ms(0)).expect("a definition")
    }

    fn told(spent: Value, currency: &str) -> Failure {
        Failure::new(ErrorCode::AgentFailed, "it broke").with("spent", spent).with("currency", currency)
    }

    /// AMP-8: whatever a node says of its progress, and however often, its caller hears a percentage a few times in a second.
    #[tokio::test(start_paused = true)]
    async fn progress_is_told_a_few_times_in_a_second_and_never_more_than_a_hundred() {
        let (sender, mut chunks) = mpsc::channel(16);
        let floods = async move {
            for round in 0_u64..2_000 {
                for word in [
                    format!("{{\"progress_percentage\":{}}}", round % 300),
                    "{\"progress_percentage\":-1}".to_owned(),
                    "{\"progress_percentage\":1e2}".to_owned(),
                    format!("{{\"progress_percentage\":99,\"x\":\"{}\"}}", "x".repeat(PROGRESS_BYTES_MAX)),
                    "no JSON".to_owned(),
                ] {
                    sender.send(Bytes::from(word)).await.expect("somebody listens");
                }
                tokio::time::advance(Duration::from_millis(1)).await;
            }
            sender.send(Bytes::from_static(b"{\"progress_percentage\":7}")).await.expect("somebody listens");
            tokio::time::sleep(PROGRESS_EVERY * 2).await;
        };
        let (reports, mut inbox) = mpsc::channel(64);
        let fence = Fence { subtask: 0, attempt: 1 };
        tokio::join!(floods, progress(&mut chunks, &reports, TaskId::from_random(7), fence));
        drop(reports);
        let mut told = Vec::new();
        while let Some(Report { input: Input::Progress(about, percent), .. }) = inbox.recv().await {
            assert_eq!(about, fence);
            told.push(percent);
        }
        assert!((3..=12).contains(&told.len()) && told.iter().all(|percent| *percent <= 100), "{told:?}");
        assert_eq!(told.last(), Some(&7), "the last word is not lost");
    }

    /// Threat T20: what a task that failed says of its costs is billed at the agent's price, and never more than it was given.
    #[test]
    fn a_failed_task_is_billed_what_it_says_up_to_its_share() {
        let price = Price { amount: dec("2"), currency: "EUR".parse().expect("a currency"), unit: "spent".to_owned() };
        for (told_spent, price, total) in [
            (json!(0.25), None, "0.25"),
            (json!(0), None, "0"),
            (json!(0.2), Some(price.clone()), "0.4"),
            (json!(0.5), Some(price), "0.75"),
            (json!(1e27), None, "0.75"),
        ] {
            let charge = spent(&told(told_spent, "EUR"), &euros(), Some(dec("0.75")), price);
            assert_eq!(charge.map(|charge| charge.total), Some(dec(total)));
        }
    }

    /// Threat T20: what makes no sense is no bill.
    #[test]
    fn what_a_failed_task_cannot_have_spent_is_not_read() {
        for (told_spent, currency) in [
            (json!(-1), "EUR"),
            (json!("much"), "EUR"),
            (json!("0.1"), "EUR"),
            (json!(null), "EUR"),
            (json!(0.1), "USD"),
            (json!(0.1), ""),
            (json!(1e300), "EUR"),
        ] {
            assert_eq!(spent(&told(told_spent.clone(), currency), &euros(), None, None), None, "{told_spent} {currency}");
        }
        assert_eq!(spent(&Failure::new(ErrorCode::AgentFailed, "no"), &euros(), None, None), None);
    }
}
