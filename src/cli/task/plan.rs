//! `meshwork task plan`: who would do each step of a task, and for how much, without running a step.
//!
//! A task that is only a goal has no steps until somebody plans them, so the node asks an agent that does, as it would for a run. That is a
//! call like any other: it takes its time and may cost, which the help says.

use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use super::{
    super::{
        CliError, Global,
        client::{Client, read},
        error::Exit,
        figures,
        table::Table,
    },
    document::REASON_CHARS_MAX,
    run::{Given, definition},
    wait::said,
};
use crate::model::{ErrorCode, Failure, printable};
use crate::node::DECOMPOSE_MAX;

/// How long a plan may take: the node gives an agent that decomposes a goal so much, and then looks who would do each step.
const PLAN_TIMEOUT: Duration = DECOMPOSE_MAX.saturating_add(Duration::from_secs(30));

/// Arguments of `task plan`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  meshwork task plan report.yaml
  meshwork task plan report.yaml --json | jq '.subtasks[] | select(.agent == null)'

The agents are those that are best now; a run chooses anew when a step is due. No step is run, but where the file has a goal and no \
subtasks, an agent that offers task-decomposition is asked for them: that may take two minutes and cost what the agent takes, and a run \
asks again. Exit code 1 if some step has nobody.")]
pub(super) struct Args {
    #[command(flatten)]
    given: Given,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Plan {
    decomposed_by: String,
    subtasks: Vec<Planned>,
    estimated_costs: Vec<Value>,
    runnable: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Planned {
    subtask_id: String,
    capability: String,
    after: Vec<String>,
    agent: Option<Chosen>,
    candidates: Value,
    estimated_cost: Value,
    reason: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Chosen {
    agent_id: String,
    name: String,
    node_id: String,
    score: Value,
}

/// Asks for the plan.
pub(super) async fn run(args: Args, global: &Global) -> Result<(), CliError> {
    let task = definition(&args.given.file, args.given.input)?;
    let answer = Client::new(global)?.post(&["aitp", "tasks", "plan"], &task, PLAN_TIMEOUT).await?;
    let plan: Plan = read(&answer)?;
    global.answer(&answer, || Ok(text(&plan, global.colour())))?;
    if plan.runnable {
        return Ok(());
    }
    let open = plan.subtasks.iter().filter(|planned| planned.agent.is_none()).count();
    let have = if open == 1 { "has" } else { "have" };
    let message = format!("the task cannot run now: {open} of {} subtasks {have} no agent", plan.subtasks.len());
    let error = CliError::from(Failure::new(ErrorCode::CapabilityNotFound, message));
    Err(said(&error.hint("`meshwork find CAPABILITY --explain` says who was left out and why"), Exit::Refused, global))
}

fn text(plan: &Plan, colour: bool) -> String {
    let mut table = Table::new(["subtask", "capability", "after", "agent", "node", "of", "score", "estimated cost"]);
    let mut reasons = String::new();
    for planned in &plan.subtasks {
        let chosen = planned.agent.as_ref();
        let or_nothing = |text: Option<String>| text.unwrap_or_else(|| figures::NOTHING.to_owned());
        table.row([
            figures::word(&planned.subtask_id),
            figures::word(&planned.capability),
            or_nothing((!planned.after.is_empty()).then(|| planned.after.join(", "))),
            or_nothing(chosen.map(|agent| figures::agent(&agent.name, &agent.agent_id))),
            or_nothing(chosen.map(|agent| figures::node(&agent.node_id))),
            figures::figure(&planned.candidates, figures::number),
            chosen.map_or_else(|| figures::NOTHING.to_owned(), |agent| figures::figure(&agent.score, |score| format!("{score:.3}"))),
            cost(&planned.estimated_cost),
        ]);
        if let Some(reason) = &planned.reason {
            reasons += &format!("  {}: {}\n", figures::word(&planned.subtask_id), printable(reason, REASON_CHARS_MAX));
        }
    }
    let by = match plan.decomposed_by.as_str() {
        "agent" => "the steps are an agent's proposal for the goal; ",
        "schemas" => "the steps were found from what agents take and give; ",
        _ => "",
    };
    let costs = match &plan.estimated_costs[..] {
        [] => figures::NOTHING.to_owned(),
        costs => costs.iter().map(figures::money).collect::<Vec<_>>().join(" and "),
    };
    table.text(colour) + &reasons + &format!("{by}estimated cost {costs}\n")
}

/// An estimate; unlike a price, one that is missing is not free but unknown.
fn cost(value: &Value) -> String {
    if value.is_null() { figures::NOTHING.to_owned() } else { figures::money(value) }
}
