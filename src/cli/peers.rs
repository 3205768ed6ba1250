//! `meshwork peers`: the nodes that this one is connected to.

use serde::Deserialize;
use serde_json::Value;

use super::{
    CliError, Global,
    client::{Client, read},
    figures,
    table::Table,
};

/// Arguments of `peers`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Of the calls since a peer connected, SENT went to it, FAILED of those were refused, failed, lost or late, LATENCY is the
mean of those that succeeded, and RECEIVED came from it.

Examples:
  meshwork peers --long
  meshwork peers --json | jq -r '.peers[].node_id'"
)]
pub(crate) struct Args {
    /// Show whole ids of nodes.
    #[arg(long)]
    long: bool,
}

#[derive(Debug, Deserialize)]
struct Listing {
    peers: Vec<Peer>,
}

#[derive(Debug, Deserialize)]
struct Peer {
    node_id: String,
    #[serde(default)]
    addresses: Vec<String>,
    #[serde(default)]
    direction: String,
    #[serde(default)]
    transport: String,
    #[serde(default)]
    rtt_ms: Value,
    #[serde(default)]
    agents: u64,
    #[serde(default)]
    connected_ms: u64,
    #[serde(default)]
    agent_version: Option<String>,
    #[serde(default)]
    calls: Calls,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Calls {
    sent: u64,
    received: u64,
    failed: u64,
    latency_ms: Value,
}

/// Lists the connected peers.
pub(crate) async fn run(args: Args, global: &Global) -> Result<(), CliError> {
    let answer = Client::new(global)?.get(&["v1", "peers"], &[]).await?;
    global.answer(&answer, || {
        let listing: Listing = read(&answer)?;
        let alone = "no peers; join a mesh with `meshwork up --join MULTIADDR`, or see what `meshwork doctor` says\n";
        Ok(if listing.peers.is_empty() { alone.to_owned() } else { text(&listing.peers, args.long, global.colour()) })
    })
}

fn text(peers: &[Peer], long: bool, colour: bool) -> String {
    let heads =
        ["node", "address", "direction", "transport", "rtt", "agents", "connected", "sent", "failed", "latency", "received", "version"];
    let mut table = Table::new(heads);
    for peer in peers {
        let more = if peer.addresses.len() > 1 { format!(" +{}", peer.addresses.len() - 1) } else { String::new() };
        table.row([
            if long { peer.node_id.clone() } else { figures::node(&peer.node_id) },
            peer.addresses.first().map_or_else(|| figures::NOTHING.to_owned(), |address| figures::word(address)) + &more,
            peer.direction.clone(),
            peer.transport.clone(),
            figures::figure(&peer.rtt_ms, figures::millis),
            peer.agents.to_string(),
            figures::span(peer.connected_ms),
            peer.calls.sent.to_string(),
            peer.calls.failed.to_string(),
            figures::figure(&peer.calls.latency_ms, figures::millis),
            peer.calls.received.to_string(),
            peer.agent_version.clone().unwrap_or_else(|| figures::NOTHING.to_owned()),
        ]);
    }
    table.text(colour)
}
