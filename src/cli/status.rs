//! `meshwork status`: the node in a dozen lines.

use serde::Deserialize;

use super::{
    CliError, Global,
    client::{Client, read},
    figures,
    table::facts,
};
use crate::model::printable;

/// How much of an address is shown, in characters: long enough for a relayed one with both ids.
const ADDRESS_CHARS_MAX: usize = 240;

/// Arguments of `status`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  meshwork status --api 127.0.0.1:7481")]
pub(crate) struct Args {}

#[derive(Debug, Deserialize)]
struct Node {
    node_id: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    version: String,
    #[serde(default)]
    protocol: serde_json::Value,
    #[serde(default)]
    uptime_ms: u64,
    #[serde(default)]
    listen: Vec<String>,
    #[serde(default)]
    advertised: Vec<String>,
    #[serde(default)]
    state: String,
    #[serde(default)]
    counts: Counts,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Counts {
    peers: u64,
    agents_local: u64,
    agents_mesh: u64,
    calls_in_flight: u64,
}

/// Sums up the node.
pub(crate) async fn run(Args {}: Args, global: &Global) -> Result<(), CliError> {
    let answer = Client::new(global)?.get(&["v1", "node"], &[]).await?;
    global.answer(&answer, || Ok(text(&read(&answer)?)))
}

fn text(node: &Node) -> String {
    let counts = &node.counts;
    let meaning = match node.state.as_str() {
        "joining" => " (looking for the mesh)",
        "alone" => " (no mesh joined, by choice)",
        "draining" => " (finishing its calls, then leaving)",
        _ => "",
    };
    let mut shown = vec![
        ("node", format!("{}  {}", figures::word(&node.name), figures::word(&node.node_id)).trim_start().to_owned()),
        ("version", format!("{}, protocol {}", figures::word(&node.version), figures::plain(&node.protocol))),
        ("state", figures::word(&node.state) + meaning),
        ("up", figures::span(node.uptime_ms)),
        ("peers", counts.peers.to_string()),
        ("agents", format!("{} here, {} in the mesh", counts.agents_local, counts.agents_mesh)),
        ("calls", format!("{} in flight", counts.calls_in_flight)),
    ];
    for (name, addresses) in [("listens", &node.listen), ("advertises", &node.advertised)] {
        shown.extend(addresses.iter().map(|address| (name, printable(address, ADDRESS_CHARS_MAX))));
    }
    facts(&shown)
}
