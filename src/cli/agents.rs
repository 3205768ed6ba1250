//! `meshwork agents`: this node's agents, or all that its directory holds.

use serde::Deserialize;
use serde_json::Value;

use super::{
    CliError, Global,
    client::{Client, read},
    figures,
    table::Table,
};
use crate::model::CapabilityName;

/// How many capabilities a row names before it only counts the rest.
const CAPABILITIES_SHOWN: usize = 3;

/// Arguments of `agents`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  meshwork agents --mesh --capability text-analysis")]
pub(crate) struct Args {
    /// All agents that the directory holds, not only this node's.
    #[arg(long)]
    mesh: bool,
    /// Only agents with this capability, or one below it.
    #[arg(long, value_name = "CAPABILITY")]
    capability: Option<CapabilityName>,
}

/// What the command line shows of an agent's record.
#[derive(Debug, Deserialize)]
pub(super) struct Record {
    pub(super) agent_id: String,
    #[serde(default)]
    pub(super) name: String,
    #[serde(default)]
    pub(super) version: String,
    #[serde(default)]
    pub(super) framework: String,
    #[serde(default)]
    pub(super) description: String,
    #[serde(default)]
    pub(super) node_id: String,
    #[serde(default)]
    pub(super) local: bool,
    #[serde(default)]
    pub(super) expires_at: Value,
    #[serde(default)]
    pub(super) capabilities: Vec<Capability>,
    #[serde(default)]
    pub(super) status: Status,
}

/// One capability of a record.
#[derive(Debug, Deserialize)]
pub(super) struct Capability {
    pub(super) id: String,
    #[serde(default)]
    pub(super) version: String,
    #[serde(default)]
    pub(super) description: String,
    #[serde(default)]
    pub(super) price: Value,
    #[serde(default)]
    pub(super) constraints: Value,
    #[serde(default)]
    pub(super) score: Value,
    #[serde(default)]
    pub(super) specializations: Vec<String>,
    #[serde(default)]
    pub(super) limitations: Vec<String>,
    #[serde(default)]
    pub(super) resource_requirements: Value,
    #[serde(default)]
    pub(super) input_schema: Value,
    #[serde(default)]
    pub(super) output_schema: Value,
}

/// How an agent is, as far as the node knows.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Status {
    #[serde(default)]
    pub(super) state: String,
    #[serde(default)]
    pub(super) reason: Option<String>,
    #[serde(default)]
    pub(super) in_flight: u64,
    #[serde(default)]
    pub(super) queue: u64,
}

/// The answer to a listing.
#[derive(Debug, Deserialize)]
pub(super) struct Listing {
    pub(super) agents: Vec<Record>,
}

/// Lists agents.
pub(crate) async fn run(args: Args, global: &Global) -> Result<(), CliError> {
    let mut query = vec![("scope", if args.mesh { "mesh" } else { "local" })];
    if let Some(capability) = &args.capability {
        query.push(("capability", capability.as_str()));
    }
    let answer = Client::new(global)?.get(&["v1", "agents"], &query).await?;
    global.answer(&answer, || {
        let listing: Listing = read(&answer)?;
        Ok(match (listing.agents.is_empty(), args.mesh) {
            (true, true) => "no agents in the mesh\n".to_owned(),
            (true, false) => "no agents on this node; attach one with `meshwork agent add FILE`, or look further with --mesh\n".to_owned(),
            (false, _) => text(&listing.agents, global.colour()),
        })
    })
}

fn text(agents: &[Record], colour: bool) -> String {
    let mut table = Table::new(["agent", "version", "framework", "node", "state", "busy", "capabilities"]);
    for agent in agents {
        let named: Vec<&str> = agent.capabilities.iter().take(CAPABILITIES_SHOWN).map(|capability| capability.id.as_str()).collect();
        let more = agent.capabilities.len().saturating_sub(CAPABILITIES_SHOWN);
        let more = if more > 0 { format!(" +{more}") } else { String::new() };
        table.row([
            figures::agent(&agent.name, &agent.agent_id),
            agent.version.clone(),
            agent.framework.clone(),
            if agent.local { "here".to_owned() } else { figures::node(&agent.node_id) },
            agent.status.state.clone(),
            load(&agent.status),
            named.join(", ") + &more,
        ]);
    }
    table.text(colour)
}

/// `2`, or `2 (+5 waiting)`.
pub(super) fn load(status: &Status) -> String {
    let waiting = if status.queue > 0 { format!(" (+{} waiting)", status.queue) } else { String::new() };
    status.in_flight.to_string() + &waiting
}
