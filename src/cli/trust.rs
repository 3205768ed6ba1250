//! `meshwork trust`: what this node believes of agents and how sure it is, the receipts it has heard, and whose word counts.

use clap::Subcommand;
use serde::Deserialize;
use serde_json::Value;

use super::{
    CliError, Global,
    client::{ANSWER_TIMEOUT, Client, read},
    figures,
    table::Table,
};

/// Arguments of `trust`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Trust comes from this node's own calls. A receipt is another node's signed word on its calls; it counts only if that node \
is pinned, and never against what this node has seen itself.

Example:
  meshwork trust
  meshwork trust receipts extractor
  meshwork trust pin 12D3KooWGzh1Tt9Wq3bwHyTn9Dj4s4mCvW1JXwCKCcKZ9wXyZabc"
)]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// List what is believed of agents; the same as no verb.
    #[command(after_help = "Example:
  meshwork trust list --json")]
    List,
    /// Let the receipts of a node count, over restarts too.
    #[command(after_help = "Example:
  meshwork trust pin 12D3KooWGzh1Tt9Wq3bwHyTn9Dj4s4mCvW1JXwCKCcKZ9wXyZabc
  meshwork trust pin 9wXyZabc                  the same node, if only one that is known here ends so")]
    Pin {
        /// The id of the node, or the end of it that tables show; `meshwork peers --long` shows whole ids.
        node: String,
    },
    /// Let the receipts of a node count no longer.
    #[command(after_help = "Example:
  meshwork trust unpin 12D3KooWGzh1Tt9Wq3bwHyTn9Dj4s4mCvW1JXwCKCcKZ9wXyZabc")]
    Unpin {
        /// The id of the node, or the end of it that tables show.
        node: String,
    },
    /// List the nodes whose receipts count.
    #[command(after_help = "Example:
  meshwork trust pins")]
    Pins,
    /// List receipts, asking connected peers for theirs, with whether they count and why not.
    #[command(after_help = "Example:
  meshwork trust receipts extractor --json")]
    Receipts {
        /// Only those about this agent: its id, its name, name@prefix, or the beginning of its id.
        agent: Option<String>,
    },
}

/// Runs one of them.
pub(crate) async fn run(args: Args, global: &Global) -> Result<(), CliError> {
    match args.verb {
        None | Some(Verb::List) => list(global).await,
        Some(Verb::Pin { node }) => set(&node, true, global).await,
        Some(Verb::Unpin { node }) => set(&node, false, global).await,
        Some(Verb::Pins) => pins(global).await,
        Some(Verb::Receipts { agent }) => receipts(agent.as_deref(), global).await,
    }
}

#[derive(Debug, Deserialize)]
struct Listing {
    agents: Vec<Row>,
}

#[derive(Debug, Deserialize)]
struct Row {
    agent_id: String,
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    node_id: Option<String>,
    #[serde(default)]
    capability: String,
    #[serde(default)]
    trust: Value,
    #[serde(default)]
    low: Value,
    #[serde(default)]
    high: Value,
    #[serde(default)]
    successes: Value,
    #[serde(default)]
    failures: Value,
    #[serde(default)]
    latency_ms: Value,
    #[serde(default)]
    standing: String,
    #[serde(default)]
    breaker: Value,
    #[serde(default)]
    attested: Option<Attested>,
}

#[derive(Debug, Deserialize)]
struct Attested {
    successes: f64,
    failures: f64,
    #[serde(default)]
    latency_ms: Option<f64>,
}

async fn list(global: &Global) -> Result<(), CliError> {
    let answer = Client::new(global)?.get(&["v1", "trust"], &[]).await?;
    global.answer(&answer, || {
        let listing: Listing = read(&answer)?;
        let none = "nothing learnt yet: trust comes from calls, and from the receipts of nodes that are pinned\n";
        Ok(if listing.agents.is_empty() { none.to_owned() } else { table(&listing.agents, global.colour()) })
    })
}

fn table(rows: &[Row], colour: bool) -> String {
    let mut table = Table::new([
        "agent",
        "node",
        "capability",
        "trust",
        "likely",
        "standing",
        "successes",
        "failures",
        "latency",
        "attested",
        "breaker",
    ]);
    for row in rows {
        let number = |value| figures::figure(value, figures::number);
        table.row([
            figures::agent(row.name.as_deref().unwrap_or_default(), &row.agent_id),
            row.node_id.as_deref().map_or_else(|| figures::NOTHING.to_owned(), figures::node),
            row.capability.clone(),
            number(&row.trust),
            format!("{} to {}", number(&row.low), number(&row.high)),
            figures::word(&row.standing),
            number(&row.successes),
            number(&row.failures),
            figures::figure(&row.latency_ms, figures::millis),
            row.attested.as_ref().map_or_else(|| figures::NOTHING.to_owned(), attested),
            breaker(&row.breaker),
        ]);
    }
    table.text(colour)
}

/// `3 of 4 well, 12 ms`.
fn attested(said: &Attested) -> String {
    let calls = format!("{} of {} well", figures::number(said.successes), figures::number(said.successes + said.failures));
    said.latency_ms.map_or_else(|| calls.clone(), |ms| format!("{calls}, {}", figures::millis(ms)))
}

#[derive(Debug, Deserialize)]
struct Change {
    node_id: String,
    changed: bool,
}

async fn set(node: &str, pinned: bool, global: &Global) -> Result<(), CliError> {
    let (client, path) = (Client::new(global)?, ["v1", "trust", "pins", node]);
    let answer = if pinned { client.put(&path, ANSWER_TIMEOUT).await? } else { client.delete(&path, ANSWER_TIMEOUT).await? };
    global.answer(&answer, || {
        let change: Change = read(&answer)?;
        let node = figures::word(&change.node_id);
        Ok(match (pinned, change.changed) {
            (true, true) => format!("pinned {node}: its receipts count from now on\n"),
            (true, false) => format!("{node} was pinned already\n"),
            (false, true) => format!("unpinned {node}: its receipts count no longer\n"),
            (false, false) => format!("{node} was not pinned\n"),
        })
    })
}

#[derive(Debug, Deserialize)]
struct Pins {
    pins: Vec<Pin>,
}

#[derive(Debug, Deserialize)]
struct Pin {
    node_id: String,
    #[serde(default)]
    source: String,
    #[serde(default)]
    connected: bool,
    #[serde(default)]
    receipts: Value,
}

async fn pins(global: &Global) -> Result<(), CliError> {
    let answer = Client::new(global)?.get(&["v1", "trust", "pins"], &[]).await?;
    global.answer(&answer, || {
        let listing: Pins = read(&answer)?;
        if listing.pins.is_empty() {
            return Ok("nobody is pinned: no receipt counts; `meshwork trust pin NODE` or routing.pinned change that\n".to_owned());
        }
        let mut table = Table::new(["node", "pinned by", "connected", "receipts"]);
        for pin in &listing.pins {
            let connected = if pin.connected { "yes" } else { "no" };
            table.row([pin.node_id.clone(), pin.source.clone(), connected.to_owned(), figures::figure(&pin.receipts, figures::number)]);
        }
        Ok(table.text(global.colour()))
    })
}

#[derive(Debug, Deserialize)]
struct Receipts {
    receipts: Vec<Receipt>,
}

#[derive(Debug, Deserialize)]
struct Receipt {
    issuer: String,
    agent_id: String,
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    capability: String,
    window: Window,
    #[serde(default)]
    successes: Value,
    #[serde(default)]
    failures: Value,
    #[serde(default)]
    latency_ms: Value,
    #[serde(default)]
    counted: bool,
    #[serde(default)]
    counted_calls: Value,
    #[serde(default)]
    reason: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Window {
    start: Value,
    end: Value,
}

async fn receipts(agent: Option<&str>, global: &Global) -> Result<(), CliError> {
    let query: Vec<(&str, &str)> = agent.map(|agent| ("agent", agent)).into_iter().collect();
    let answer = Client::new(global)?.get(&["v1", "trust", "receipts"], &query).await?;
    global.answer(&answer, || {
        let listing: Receipts = read(&answer)?;
        let none = "no receipts: neither this node nor a peer it asked has any\n";
        Ok(if listing.receipts.is_empty() { none.to_owned() } else { receipt_table(&listing.receipts, global.colour()) })
    })
}

fn receipt_table(rows: &[Receipt], colour: bool) -> String {
    let mut table = Table::new(["issuer", "agent", "capability", "from", "to", "successes", "failures", "latency", "calls counted"]);
    for row in rows {
        let number = |value| figures::figure(value, figures::number);
        let reason = || format!("none: {}", row.reason.as_deref().unwrap_or(figures::NOTHING));
        table.row([
            figures::node(&row.issuer),
            figures::agent(row.name.as_deref().unwrap_or_default(), &row.agent_id),
            row.capability.clone(),
            figures::moment(&row.window.start),
            figures::moment(&row.window.end),
            number(&row.successes),
            number(&row.failures),
            figures::figure(&row.latency_ms, figures::millis),
            if row.counted { number(&row.counted_calls) } else { reason() },
        ]);
    }
    table.text(colour)
}

/// `closed`, `open for 1.2 s`, `half-open`.
fn breaker(state: &Value) -> String {
    let left = state.get("left_ms").and_then(Value::as_f64).map(|ms| format!(" for {}", figures::millis(ms)));
    let state = state.get("state").and_then(Value::as_str).map_or_else(|| figures::NOTHING.to_owned(), figures::word);
    state + &left.unwrap_or_default()
}
