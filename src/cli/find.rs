//! `meshwork find`: who can do something, in the order in which a call would try them.

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{
    CliError, Global,
    client::{ANSWER_TIMEOUT, Client, read},
    figures,
    table::Table,
};
use crate::model::{CapabilityName, VersionRequirement, printable};

/// How much of a reason is shown, in characters.
const REASON_CHARS_MAX: usize = 200;

/// Arguments of `find`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  meshwork find text-analysis --max-latency 500 --min-success 0.9 --explain")]
pub(crate) struct Args {
    /// Names of capabilities or of categories above them; any of them will do.
    #[arg(required_unless_present = "text")]
    capability: Vec<CapabilityName>,
    /// Words to look for in names and descriptions.
    #[arg(long, value_name = "WORDS")]
    text: Option<String>,
    /// Versions that will do, such as 1.2, ^1 or >=1.1,<3.
    #[arg(long, value_name = "REQUIREMENT", value_parser = requirement)]
    version: Option<VersionRequirement>,
    /// How many rows at most.
    #[arg(long, value_name = "N")]
    limit: Option<u32>,
    #[command(flatten)]
    limits: Limits,
    /// How likely an agent must be to succeed, 0 to 1.
    #[arg(long, value_name = "R")]
    min_success: Option<f64>,
    /// The language that the agent must understand, such as en.
    #[arg(long, value_name = "L")]
    language: Option<String>,
    /// Only agents whose input schema accepts this input.
    #[arg(long, value_name = "JSON", value_parser = json_value)]
    accepts: Option<Value>,
    /// Show the terms of each score, and who was rejected and why.
    #[arg(long)]
    explain: bool,
}

fn json_value(text: &str) -> Result<Value, String> {
    serde_json::from_str(text).map_err(|error| format!("it is not JSON: {error}"))
}

fn requirement(text: &str) -> Result<VersionRequirement, String> {
    text.parse().map_err(|error: String| error)
}

/// The constraints that `find` and `call` share.
#[derive(Debug, Default, clap::Args)]
pub(super) struct Limits {
    /// How long an answer may usually take, in milliseconds.
    #[arg(long, value_name = "MS")]
    max_latency: Option<u64>,
    /// How much trust an agent must have earned, 0 to 100.
    #[arg(long, value_name = "N")]
    min_trust: Option<f64>,
    /// What it may cost at most, in the currency of its price.
    #[arg(long, value_name = "X")]
    max_cost: Option<rust_decimal::Decimal>,
}

impl Limits {
    /// The constraints as the API takes them; none that was not asked for.
    pub(super) fn constraints(&self) -> Map<String, Value> {
        let cost = self.max_cost.map(|cost| Value::String(cost.to_string()));
        let limits =
            [("max_latency_ms", self.max_latency.map(Value::from)), ("min_trust", self.min_trust.map(Value::from)), ("max_cost", cost)];
        limits.into_iter().filter_map(|(name, limit)| Some((name.to_owned(), limit?))).collect()
    }
}

impl Args {
    fn body(&self) -> Value {
        let mut constraints = self.limits.constraints();
        constraints.extend(self.min_success.map(|rate| ("min_success_rate".to_owned(), rate.into())));
        constraints.extend(self.language.as_ref().map(|language| ("language".to_owned(), language.as_str().into())));
        let mut body = json!({ "capabilities": self.capability, "constraints": constraints, "explain": self.explain });
        let version = self.version.as_ref().map(ToString::to_string);
        for (name, value) in [("text", json!(self.text)), ("version", json!(version)), ("limit", json!(self.limit))] {
            if !value.is_null() {
                body[name] = value;
            }
        }
        if let Some(input) = &self.accepts {
            body["input"] = input.clone();
        }
        body
    }
}

/// A candidate, as the directory ranks it.
#[derive(Debug, Deserialize)]
pub(super) struct Row {
    pub(super) agent_id: String,
    #[serde(default)]
    pub(super) name: String,
    #[serde(default)]
    capability: String,
    #[serde(default)]
    capability_version: String,
    #[serde(default)]
    score: Value,
    #[serde(default)]
    trust: Value,
    #[serde(default)]
    latency_ms: Value,
    #[serde(default)]
    cost: Value,
    #[serde(default)]
    success_rate: Value,
    #[serde(default)]
    terms: Value,
    #[serde(default)]
    standing: String,
}

/// An agent that was considered and left out.
#[derive(Debug, Deserialize)]
pub(super) struct Rejected {
    agent_id: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    reason: String,
}

#[derive(Debug, Deserialize)]
struct Answer {
    agents: Vec<Row>,
    #[serde(default)]
    rejected: Vec<Rejected>,
    #[serde(default)]
    suggestion: Option<String>,
}

/// Asks the directory.
pub(crate) async fn run(args: Args, global: &Global) -> Result<(), CliError> {
    let answer = Client::new(global)?.post(&["v1", "find"], &args.body(), ANSWER_TIMEOUT).await?;
    global.answer(&answer, || {
        let found: Answer = read(&answer)?;
        let mut text =
            if found.agents.is_empty() { "nobody\n".to_owned() } else { candidates(&found.agents, args.explain, global.colour()) };
        if args.explain {
            text += &rejections(&found.rejected);
        } else if let Some(near) = found.suggestion.filter(|_| found.agents.is_empty()) {
            text += &format!("hint: try `{}` instead\n", figures::word(&near));
        } else if found.agents.is_empty() {
            text += "--explain shows who was considered and why they were rejected\n";
        }
        Ok(text)
    })
}

/// The candidates as a table, with the terms of their scores if asked for.
pub(super) fn candidates(rows: &[Row], explain: bool, colour: bool) -> String {
    let (standing, terms_of) = if explain { ("standing", "terms") } else { ("", "") };
    let mut table = Table::new(["agent", "capability", "score", "trust", "latency", "cost", "success", standing, terms_of]);
    for row in rows {
        let version =
            if row.capability_version.is_empty() { String::new() } else { format!(" {}", figures::word(&row.capability_version)) };
        table.row([
            figures::agent(&row.name, &row.agent_id),
            figures::word(&row.capability) + &version,
            figures::figure(&row.score, |score| format!("{score:.3}")),
            figures::figure(&row.trust, figures::number),
            figures::figure(&row.latency_ms, figures::millis),
            figures::money(&row.cost),
            figures::figure(&row.success_rate, figures::percent),
            if explain { figures::word(&row.standing) } else { String::new() },
            if explain { terms(&row.terms) } else { String::new() },
        ]);
    }
    table.text(colour) + figures::MARKS + "\n"
}

/// `match 0.30 + trust 0.21 + latency 0.18 + cost 0.20`.
fn terms(terms: &Value) -> String {
    let term = |name: &str| terms.get(name).and_then(Value::as_f64).map(|value| format!("{name} {value:.2}"));
    ["match", "trust", "latency", "cost"].into_iter().filter_map(term).collect::<Vec<_>>().join(" + ")
}

/// Who was rejected, and why.
pub(super) fn rejections(rejected: &[Rejected]) -> String {
    let line = |one: &Rejected| format!("  {}: {}\n", figures::agent(&one.name, &one.agent_id), printable(&one.reason, REASON_CHARS_MAX));
    let lines: String = rejected.iter().map(line).collect();
    if lines.is_empty() { "nobody was rejected\n".to_owned() } else { format!("rejected:\n{lines}") }
}
