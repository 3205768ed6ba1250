//! Tasks of others: a call of an agent whose adapter is this node becomes a task of this node (AMP 3 "Task Delegation", AMP-8, T20).
//!
//! The task is submitted under the call's own key, so that a call that is made once more, because either node went down, finds it again:
//! running, or ended. One that was cancelled or ran out of its call's time is begun anew, since that was its caller's end and not its own;
//! what it spent until then is taken from the money of the new one. A task gets no more time and money than the call brings, and its own
//! calls carry the chain of those that led to it, so that circles and long chains are refused where any call in turn is. When nobody waits
//! for the call any more, it is cancelled.
//!
//! What it came to is answered as a document: the result, whose task it was, and what was spent under the call's key, which is also what the
//! agent counts as units. A task that failed tells that too, with what went wrong in the innermost task first, and is a failure that another
//! attempt does not mend: its own retries are behind it.

use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::future::BoxFuture;
use rust_decimal::Decimal;
use serde_json::{Value, json};
use tokio::time::{MissedTickBehavior, interval};

use super::door::Access;
use crate::agents::task::{RunTasks, TaskCall, TaskDone};
use crate::model::{Currency, ErrorCode, Failure, TaskId, Timestamp, printable};
use crate::node::handle::{Handle, stopping};
use crate::node::shared::Shared;
use crate::node::start::Disk;
use crate::wire::invocation::INLINE_BYTES_MAX;
use crate::wire::task::{Parent, Share};

/// How often whoever listens is told how far the task is, where that has changed.
const PROGRESS_EVERY: Duration = Duration::from_millis(500);

/// How often a task is begun anew under the key of one call: more often than any step is repeated.
const ROUNDS_MAX: u32 = 64;

/// This node, as its agents see it. They do not keep it alive.
pub(in crate::node) struct Delegate {
    shared: Weak<Shared>,
    disk: Weak<Disk>,
    tasks: Weak<Access>,
    started_at: Timestamp,
}

impl Delegate {
    pub(in crate::node) fn of(handle: &Handle) -> Self {
        let Handle { shared, disk, tasks, started_at } = handle;
        Self { shared: Arc::downgrade(shared), disk: Arc::downgrade(disk), tasks: Arc::downgrade(tasks), started_at: *started_at }
    }

    fn handle(&self) -> Option<Handle> {
        let (shared, disk, tasks) = (self.shared.upgrade()?, self.disk.upgrade()?, self.tasks.upgrade()?);
        Some(Handle { shared, disk, tasks, started_at: self.started_at })
    }
}

impl RunTasks for Delegate {
    fn run(&self, call: TaskCall) -> BoxFuture<'static, Result<TaskDone, Failure>> {
        let handle = self.handle();
        Box::pin(async move { run(&handle.ok_or_else(stopping)?, call).await })
    }
}

async fn run(handle: &Handle, call: TaskCall) -> Result<TaskDone, Failure> {
    let Begun { task, spent_before } = begin(handle, &call).await?;
    let followed = tokio::select! {
        followed = follow(handle, &call, task) => followed,
        () = call.cancel.cancelled() => {
            // One that has just ended needs none.
            let _ = handle.cancel_task(task).await;
            return Err(Failure::new(ErrorCode::Cancelled, "the call was cancelled"));
        }
        // It goes on with the next start, where the same call finds it.
        () = handle.shared.drain.cancelled() => return Err(stopping()),
    };
    followed?;
    let result = handle.task_result(task).await?;
    let result: Value = serde_json::from_str(result.get()).map_err(|error| Failure::new(ErrorCode::Internal, error.to_string()))?;
    done(handle, task, spent_before, result, call.currency)
}

/// The task of a call.
struct Begun {
    task: TaskId,
    /// What others spent that were begun for the call before it.
    spent_before: Decimal,
}

/// Begins the task of a call, or finds the one that is known under its key.
async fn begin(handle: &Handle, call: &TaskCall) -> Result<Begun, Failure> {
    let (document, mut parent) = read(handle, call)?;
    let mut spent_before = Decimal::ZERO;
    let identity = *blake3::hash(call.input.to_string().as_bytes()).as_bytes();
    let agent = parent.hops.last().map(|hop| hop.agent.to_string()).unwrap_or_default();
    for round in 1..=ROUNDS_MAX {
        // No client's key has a line break in it.
        let key = call.key.as_ref().map(|key| format!("{}\n{agent}\n{round}\n{key}", parent.home));
        let submission = handle.submit_delegated(document, key, identity, parent.clone()).await?;
        let task = submission.receipt["task_id"].as_str().and_then(|text| text.parse().ok());
        let task: TaskId = task.ok_or_else(|| Failure::new(ErrorCode::Internal, "a receipt names no task"))?;
        if submission.created {
            return Ok(Begun { task, spent_before });
        }
        let known = handle.task(task, false).await?;
        if known["outcome"] != "cancelled" && known["reason"] != "DEADLINE" {
            return Ok(Begun { task, spent_before });
        }
        let spent = amount(&known["cost_so_far"]);
        spent_before = spent_before.saturating_add(spent);
        if let Some(budget) = &mut parent.budget {
            budget.amount = budget.amount.saturating_sub(spent).max(Decimal::ZERO);
        }
    }
    Err(Failure::new(ErrorCode::Conflict, format!("the task of this call was cancelled {ROUNDS_MAX} times")))
}

/// A number of a document.
fn amount(number: &Value) -> Decimal {
    number.to_string().parse().unwrap_or_default()
}

/// What the call asks for.
fn read<'a>(handle: &Handle, call: &'a TaskCall) -> Result<(&'a Value, Parent), Failure> {
    let invalid = |field: &str, message: &str| Failure::new(ErrorCode::InvalidRequest, message).with("path", format!("/{field}"));
    let text = |field: &str| call.input[field].as_str();
    let task = text("parent_task_id").map(|id| id.parse::<TaskId>().map_err(|_| invalid("parent_task_id", "is not the id of a task")));
    let budget = call.input.get("budget").map(|budget| {
        let amount = budget["amount"].as_str().and_then(|amount| amount.parse::<Decimal>().ok());
        let amount =
            amount.filter(|amount| !amount.is_sign_negative()).ok_or_else(|| invalid("budget/amount", "is a decimal from 0 on"))?;
        let currency = budget["currency"].as_str().and_then(|currency| currency.parse::<Currency>().ok());
        let currency = currency.ok_or_else(|| invalid("budget/currency", "is a currency such as USD"))?;
        match call.currency.filter(|paid| *paid != currency) {
            Some(paid) => Err(invalid("budget/currency", &format!("is {currency}, and the agent is paid in {paid}"))),
            None => Ok(Share { amount, currency }),
        }
    });
    // Refused here if the chain is as long as one may get.
    let came = handle.shared.running.parent(handle.node_id(), call.id)?;
    let left = came.deadline.saturating_sub(handle.shared.mono());
    let parent = Parent {
        home: came.caller,
        task: task.transpose()?,
        subtask: text("subtask_id").map(|id| printable(id, 64)),
        hops: came.hops,
        deadline: handle.tasks.clock.now().saturating_add(left),
        budget: budget.transpose()?,
    };
    Ok((&call.input["definition"], parent))
}

/// Waits for the end of the task, and tells of what happens to it if somebody listens: first which task it is, then its events, and now and
/// then how far it is, since tasks within it go on without an event.
async fn follow(handle: &Handle, call: &TaskCall, task: TaskId) -> Result<(), Failure> {
    let mut events = handle.task_events(task, None).await?;
    let tell = async |what: Value| {
        let text = Bytes::from(what.to_string());
        if let Some(chunks) = call.chunks.as_ref().filter(|_| text.len() <= INLINE_BYTES_MAX) {
            // Who does not listen any more misses nothing.
            let _ = chunks.send(text).await;
        }
    };
    tell(json!({ "task_id": task, "home_node_id": handle.node_id() })).await;
    let mut tick = interval(PROGRESS_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut told = 0;
    loop {
        tokio::select! {
            event = events.next() => match event {
                Some(event) => tell(event?.data).await,
                None => return Ok(()),
            },
            _ = tick.tick(), if call.chunks.is_some() => {
                if let Some(percent) = handle.task_percent(task).await.filter(|percent| *percent != told) {
                    told = percent;
                    tell(json!({ "task_id": task, "progress_percentage": percent })).await;
                }
            }
        }
    }
}

/// What a task that has ended came to.
fn done(handle: &Handle, task: TaskId, spent_before: Decimal, mut result: Value, paid: Option<Currency>) -> Result<TaskDone, Failure> {
    let spent = amount(&result["cost"]).saturating_add(spent_before);
    // As a number with the digits of the decimal.
    let cost: Value = serde_json::from_str(&spent.normalize().to_string()).unwrap_or_default();
    let outcome = result["outcome"].as_str().unwrap_or_default();
    // Its time was that of the call which brought it; another has its own.
    let is_late = result["reason"] == "DEADLINE";
    if !matches!(outcome, "success" | "partial") {
        // Of tasks within that one, what the innermost says: a chain of words about others would be longer than any message.
        let error = &result["error"];
        let told = |inner: &str, own: &str, chars| {
            error["details"][inner].as_str().or_else(|| error[own].as_str()).map(|text| printable(text, chars))
        };
        let (why, cause) = (told("why", "message", 400), told("cause", "code", 64));
        let why = why.unwrap_or_else(|| "somebody there cancelled it".to_owned());
        let message = format!("task {task} of node {} ended {outcome}: {why}", handle.node_id().short());
        let failure =
            Failure::new(ErrorCode::AgentFailed, message).with("task_id", task.to_string()).with("reason", result["reason"].take());
        return Err(failure
            .with("cause", cause)
            .with("why", why)
            .with("spent", cost)
            .with("currency", result["currency"].take())
            .retryable(is_late));
    }
    // Nothing is converted: who is paid in one currency cannot count another.
    let counts = paid.is_none_or(|paid| result["currency"] == paid.to_string().as_str());
    let spent = if counts { spent } else { Decimal::ZERO };
    let output = json!({
        "task_id": task,
        "home_node_id": handle.node_id(),
        "outcome": outcome,
        "missing": result["missing"].clone(),
        "cost": cost,
        "currency": result["currency"].clone(),
        "result": result["result"].take(),
    });
    Ok(TaskDone { output: output.to_string().into(), spent })
}
