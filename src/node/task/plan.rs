//! From a goal to subtasks, and from subtasks to what would become of them (AITP 3, `meshwork task plan`).
//!
//! A task whose author gave subtasks is taken as it is. One with a goal alone is given to an agent that offers `task-decomposition`; where
//! there is none, a chain is looked for by the schemas that the directory names. What comes of either is read like any definition and held
//! against the schemas of those who would do it, so a bad plan is refused with its faults and never run.
//!
//! The call of an agent that decomposes has a key and a fence, like that of a step, so a home node that went down before it kept the plan is
//! given the one that was made: from its own disk, or by the agent's node. The key names the task alone, since the input cannot be made
//! again: it tells which capabilities there were at that moment.
//!
//! What a plan would cost is told for each currency on its own: nothing is converted, so sums over several would mean nothing.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use rust_decimal::Decimal;
use serde_json::{Value, json};
use tokio::time::sleep;

use super::{book, read, types};
use crate::agents::off_workers;
use crate::model::{AgentId, CapabilityName, Currency, ErrorCode, Failure, TaskId};
use crate::node::explain::round;
use crate::node::invocation::invoke::{self, InvokeReply, InvokeRequest};
use crate::node::invocation::routing;
use crate::node::shared::{Shared, lock};
use crate::proto::directory::Routes;
use crate::proto::task::definition::{Definition, Subtask};
use crate::proto::task::fault::{self, Fault};
use crate::proto::task::machine::Input;
use crate::proto::task::planner::{self, Offer};
use crate::store::Blobs;
use crate::wire;
use crate::wire::directory::{Query, Wanted};
use crate::wire::task::{Bill, Charge};

/// What the bill of a plan counts.
const PLAN_UNIT: &str = "plan";
/// The capability of agents that decompose.
const DECOMPOSITION: &str = "task-decomposition";
/// How long an agent may take to decompose a goal, if calls may take that long: a language model thinks.
pub const DECOMPOSE_MAX: Duration = Duration::from_secs(120);
/// Names of the directory that are looked at for a chain.
const NAMES_MAX: usize = 4_096;
/// How long is looked for each agent of a plan, and for how many at once.
const LOOK_MAX: Duration = Duration::from_secs(2);
const LOOKS_MAX: usize = 16;
/// How long after its start a node still expects to meet those who can decompose a goal, and how often it asks for them.
const MEET_MAX: Duration = Duration::from_secs(10);
const MEET_EVERY: Duration = Duration::from_millis(250);

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

/// Refuses a definition that asks for more time for one attempt than this node gives.
pub(super) fn check_times(shared: &Shared, definition: &Definition, in_sections: bool) -> Result<(), Failure> {
    let faults = definition.overlong(Duration::from_millis(shared.config.limits.step_timeout_ms_max), in_sections);
    if faults.is_empty() { Ok(()) } else { Err(fault::failure(&faults)) }
}

/// Subtasks for a goal.
pub(super) async fn decompose(shared: Arc<Shared>, blobs: Blobs, task: TaskId, definition: Arc<Definition>) -> Input {
    let Planned { subtasks, by, bill, definition } = loop {
        match planned(&shared, &definition, Some(task)).await {
            Ok(planned) => break planned,
            // A node that has just come back may not have met those who were there before.
            Err(failure) if failure.code == ErrorCode::CapabilityNotFound && shared.mono() < MEET_MAX => sleep(MEET_EVERY).await,
            Err(failure) => return Input::Unplanned(failure),
        }
    };
    let text = serde_json::to_vec(&subtasks).unwrap_or_default();
    match read::keep(&blobs, task, text.into()).await {
        Ok(subtasks) => Input::Planned { subtasks, by: by.to_string(), bill, definition: Box::new(definition) },
        Err(failure) => Input::Unplanned(failure),
    }
}

/// A goal that was decomposed.
struct Planned {
    subtasks: Value,
    by: Planner,
    bill: Option<Bill>,
    definition: Definition,
}

/// Who decomposed it.
#[derive(Clone, Copy)]
enum Planner {
    Agent(AgentId),
    Schemas,
}

impl Planner {
    fn word(self) -> &'static str {
        match self {
            Self::Agent(_) => "agent",
            Self::Schemas => "schemas",
        }
    }
}

impl fmt::Display for Planner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Agent(agent) => write!(f, "agent {agent}"),
            Self::Schemas => f.write_str("schemas"),
        }
    }
}

/// Decomposes a goal, by an agent if one offers that. What is planned for a task is planned once.
async fn planned(shared: &Arc<Shared>, definition: &Definition, task: Option<TaskId>) -> Result<Planned, Failure> {
    let (subtasks, by, bill) = match Box::pin(by_agent(shared, definition, task)).await? {
        Some(reply) => (subtasks_of(&reply.output), Planner::Agent(reply.agent), bill(&reply)),
        None => (Box::pin(by_schemas(shared, definition)).await?, Planner::Schemas, None),
    };
    let bad = |failure: Failure| Failure { message: format!("{by} made a plan that cannot be run: {}", failure.message), ..failure };
    let planned = definition.with_subtasks(&subtasks).map_err(|faults| bad(fault::failure(&faults)))?;
    check_times(shared, &planned, false).map_err(bad)?;
    Box::pin(types::check(shared, &planned, types::SUBTASKS)).await.map_err(bad)?;
    Ok(Planned { subtasks, by, bill, definition: planned })
}

/// Every capability that somebody can be asked for, with the score of the best and what all who offer it agree on.
fn offered<'a>(shared: &Shared, routes: &'a Routes, min_trust: Option<f64>) -> Vec<(&'a CapabilityName, f64, types::Agreed)> {
    let now = shared.mono();
    let best = |name: &CapabilityName| {
        let constraints = Wanted { min_trust, ..Wanted::default() };
        let query = Query { capabilities: vec![name.clone()], text: None, version: None, constraints, limit: 1 };
        let ledger = shared.ledger.read().unwrap_or_else(PoisonError::into_inner);
        let answer = routes.rank(&query, None, &shared.rules, &ledger, now);
        // A heading is nothing that can be done; what stands below it has its own turn.
        let best = answer.candidates.first().filter(|best| best.capability().is_some_and(|offered| offered.id == *name));
        best.map(|best| best.score)
    };
    let names = routes.names().take(NAMES_MAX);
    names.filter_map(|name| Some((name, best(name)?, types::agreed_on(routes, name, None, None)?))).collect()
}

/// Looks for a chain of capabilities whose schemas lead from the parameters to the output.
async fn by_schemas(shared: &Arc<Shared>, definition: &Definition) -> Result<Value, Failure> {
    let routes = shared.routes.load_full();
    let mut found = off_workers(usize::MAX, || offered(shared, &routes, definition.usual.min_trust));
    // The best are the likeliest to be chosen, should there be more than are looked at.
    found.sort_by(|(_, a, _), (_, b, _)| b.total_cmp(a));
    found.truncate(planner::OFFERS_MAX);
    let hashes = found.iter().flat_map(|(_, _, agreed)| [agreed.input, agreed.output].map(|hash| (agreed.node, hash)));
    let schemas = types::texts(shared, hashes).await;
    let offers: Vec<Offer<'_>> = found
        .iter()
        .filter_map(|(name, score, agreed)| {
            let (input, output) = (schemas.get(&agreed.input)?, schemas.get(&agreed.output)?);
            Some(Offer { name, input, output, score: *score })
        })
        .collect();
    let planned = off_workers(usize::MAX, || planner::plan(&definition.input, &definition.parameters, &definition.output, &offers));
    planned.map_err(|failure| {
        let message =
            format!("the task has no subtasks, no agent offers `{DECOMPOSITION}`, and no steps were found by schemas: {}", failure.message);
        Failure { message, ..failure }
    })
}

/// Asks an agent that decomposes; `None` if there is none.
async fn by_agent(shared: &Arc<Shared>, definition: &Definition, task: Option<TaskId>) -> Result<Option<Arc<InvokeReply>>, Failure> {
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
    request.timeout = Some(DECOMPOSE_MAX.min(Duration::from_millis(shared.config.limits.call_timeout_ms_max)));
    request.key = task.map(key);
    request.fence = task.map(|_| wire::invocation::Fence { epoch: book::EPOCH, attempt: 1 });
    request.priority = definition.priority;
    request.constraints.min_trust = definition.usual.min_trust;
    request.constraints.max_cost = definition.budget.map(|budget| budget.amount);
    // Whoever decomposes may give tasks to others, which must not lead back here for ever.
    request.hops = definition.parent.as_ref().map(|parent| parent.hops.clone()).unwrap_or_default();
    match invoke::invoke(shared, request).await {
        Ok(reply) => Ok(Some(reply)),
        Err(failure) if failure.code == ErrorCode::CapabilityNotFound => Ok(None),
        Err(failure) => {
            let message = format!("the goal could not be decomposed: {}", failure.message);
            Err(Failure::new(failure.code, message).retryable(failure.retryable))
        }
    }
}

/// What the plan of a task is known by to whoever makes it. The name of no subtask has a line break in it, so it is the key of no step.
fn key(task: TaskId) -> String {
    blake3::Hasher::new().update(&task.to_bytes()).update(b"\nplan").finalize().to_hex().to_string()
}

/// The subtasks in what an agent made of a goal.
fn subtasks_of(answer: &[u8]) -> Value {
    let mut answer: Value = off_workers(answer.len(), || serde_json::from_slice(answer)).unwrap_or_default();
    match answer.get_mut("subtasks") {
        Some(subtasks) => subtasks.take(),
        None => answer,
    }
}

/// What an agent is paid for a plan.
fn bill(reply: &InvokeReply) -> Option<Bill> {
    let (total, currency) = reply.cost?;
    let price = total.checked_div(reply.units).unwrap_or(total);
    Some(Bill { agent: reply.agent, charge: Charge { units: reply.units, unit: PLAN_UNIT.to_owned(), price, currency, total } })
}

/// What would come of a definition.
pub(super) async fn explain(shared: &Arc<Shared>, definition: Definition) -> Result<Value, Failure> {
    let (definition, by) = if definition.subtasks.is_empty() {
        let planned = planned(shared, &definition, None).await?;
        (planned.definition, planned.by.word())
    } else {
        (definition, "given")
    };
    // Where nobody is, each look takes its time, so nobody is looked for twice.
    let nobody = Mutex::default();
    let looks: Vec<BoxFuture<'_, Prospect>> =
        definition.subtasks.iter().map(|subtask| would_do(shared, &definition, subtask, &nobody).boxed()).collect();
    let prospects: Vec<Prospect> = futures::stream::iter(looks).buffered(LOOKS_MAX).collect().await;
    let runnable = prospects.iter().all(|prospect| prospect.runnable);
    let costs = totals(prospects.iter().filter_map(|prospect| prospect.cost));
    let cost = if costs.len() == 1 { costs.first().cloned() } else { None };
    let rows: Vec<Value> = prospects.into_iter().map(|prospect| prospect.row).collect();
    Ok(json!({
        "name": definition.name, "decomposed_by": by, "subtasks": rows, "estimated_cost": cost, "estimated_costs": costs,
        "runnable": runnable,
    }))
}

/// What would become of one subtask.
struct Prospect {
    row: Value,
    cost: Option<(Decimal, Currency)>,
    runnable: bool,
}

/// Subtasks that nobody can do, and why.
type Nobody<'a> = Mutex<Vec<(&'a Subtask, String)>>;

/// Whether both are looked for alike.
fn alike(a: &Subtask, b: &Subtask) -> bool {
    (&a.capability, &a.version, a.agent, a.min_trust) == (&b.capability, &b.version, b.agent, b.min_trust)
}

/// Who would do a subtask, and for how much.
async fn would_do<'a>(shared: &Arc<Shared>, definition: &Definition, subtask: &'a Subtask, nobody: &Nobody<'a>) -> Prospect {
    let mut request = InvokeRequest::new(subtask.capability.clone(), "{}".into());
    request.version = subtask.version.clone();
    request.agent = subtask.agent;
    request.constraints.min_trust = subtask.min_trust;
    let deadline = shared.mono().saturating_add(LOOK_MAX);
    let known = lock(nobody).iter().find(|(other, _)| alike(other, subtask)).map(|(_, why)| why.clone());
    let chosen = match known {
        Some(why) => Err(why),
        None => routing::choose(shared, &request, &[], deadline).await.map_err(|failure| {
            lock(nobody).push((subtask, failure.message.clone()));
            failure.message
        }),
    };
    let after: Vec<&str> = subtask.after.iter().filter_map(|index| Some(definition.subtasks.get(*index)?.id.as_str())).collect();
    let mut row = json!({
        "subtask_id": subtask.id, "name": subtask.name, "capability": subtask.capability, "after": after,
        "agent": null, "candidates": 0, "estimated_cost": null, "reason": null,
    });
    let attempt = match chosen {
        Ok(attempt) => attempt,
        Err(why) => {
            row["reason"] = json!(why);
            return Prospect { row, cost: None, runnable: false };
        }
    };
    let candidate = attempt.candidate();
    let record = &candidate.entry.record;
    row["agent"] = json!({
        "agent_id": record.agent, "name": crate::model::printable(&record.name, 64), "node_id": record.node,
        "score": round(candidate.score, 4), "trust": round(candidate.estimate.trust, 2),
    });
    row["candidates"] = json!(attempt.candidates());
    let price = candidate.capability().and_then(|capability| capability.price.as_ref());
    let cost = price.map(|price| (price.times(subtask.estimated_units), price.currency));
    row["estimated_cost"] = cost.map_or(Value::Null, money);
    Prospect { row, cost, runnable: true }
}

/// What these come to together, for each currency.
fn totals(costs: impl Iterator<Item = (Decimal, Currency)>) -> Vec<Value> {
    let mut totals: BTreeMap<Currency, Decimal> = BTreeMap::new();
    for (amount, currency) in costs {
        let total = totals.entry(currency).or_default();
        *total = total.saturating_add(amount);
    }
    totals.into_iter().map(|(currency, total)| money((total, currency))).collect()
}

fn money((amount, currency): (Decimal, Currency)) -> Value {
    json!({ "amount": amount.normalize().to_string(), "currency": currency })
}
