//! `meshwork trust`: what this node has learnt about agents, with how sure it is.

use serde::Deserialize;
use serde_json::Value;

use super::{
    CliError, Global,
    client::{Client, read},
    figures,
    table::Table,
};

/// Arguments of `trust`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  meshwork trust")]
pub(crate) struct Args {}

#[derive(Debug, Deserialize)]
struct Listing {
    agents: Vec<Row>,
}

#[derive(Debug, Deserialize)]
struct Row {
    agent_id: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    node_id: String,
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
}

/// Lists what is known.
pub(crate) async fn run(Args {}: Args, global: &Global) -> Result<(), CliError> {
    let answer = Client::new(global)?.get(&["v1", "trust"], &[]).await?;
    global.answer(&answer, || {
        let listing: Listing = read(&answer)?;
        let none = "nothing learnt yet: trust comes from calls\n";
        Ok(if listing.agents.is_empty() { none.to_owned() } else { text(&listing.agents, global.colour()) })
    })
}

fn text(rows: &[Row], colour: bool) -> String {
    let mut table =
        Table::new(["agent", "node", "capability", "trust", "likely", "standing", "successes", "failures", "latency", "breaker"]);
    for row in rows {
        let number = |value| figures::figure(value, figures::number);
        table.row([
            figures::agent(&row.name, &row.agent_id),
            figures::node(&row.node_id),
            row.capability.clone(),
            number(&row.trust),
            format!("{} to {}", number(&row.low), number(&row.high)),
            figures::word(&row.standing),
            number(&row.successes),
            number(&row.failures),
            figures::figure(&row.latency_ms, figures::millis),
            breaker(&row.breaker),
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
