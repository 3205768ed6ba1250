//! `meshwork offers`: who could do something, when, for how much.
//!
//! The agents themselves are asked, which `find` does not do. What they answer is their word and reserves nothing.

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

/// The longest deadline in seconds: a day.
const DEADLINE_S_MAX: f64 = 86_400.0;

/// Arguments of `offers`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "TAKES is the slower of what the agent says (c) and what this node measured (m), and counts; DONE IN is STARTS IN and TAKES \
together. --json has both figures.

Example:
  meshwork offers text-analysis --tokens 1200 --deadline 30 --max-cost 0.05"
)]
pub(crate) struct Args {
    /// What is to be done: a capability or a category above it.
    capability: CapabilityName,
    /// Versions that will do, such as 1.2, ^1 or >=1.1,<3.
    #[arg(long, value_name = "REQUIREMENT", value_parser = requirement)]
    version: Option<VersionRequirement>,
    /// How many units it will probably take, in what the agent's price counts; 1 without it.
    #[arg(long, value_name = "N")]
    units: Option<rust_decimal::Decimal>,
    /// How many tokens the input probably has, for prices per token.
    #[arg(long, value_name = "N")]
    tokens: Option<u64>,
    /// By when it must be done, in seconds from now.
    #[arg(long, value_name = "S", value_parser = seconds)]
    deadline: Option<f64>,
    /// What all of it may cost, in the currency of the agent's price.
    #[arg(long, value_name = "X")]
    max_cost: Option<rust_decimal::Decimal>,
    /// How much trust an agent must have earned to be asked, 0 to 100.
    #[arg(long, value_name = "N")]
    min_trust: Option<f64>,
    /// The language that the agent must understand, such as en.
    #[arg(long, value_name = "L")]
    language: Option<String>,
    /// How many agents are asked, 1 to 16.
    #[arg(long, value_name = "N")]
    limit: Option<u32>,
}

fn requirement(text: &str) -> Result<VersionRequirement, String> {
    text.parse().map_err(|error: String| error)
}

fn seconds(text: &str) -> Result<f64, String> {
    let number: f64 = text.parse().map_err(|_| format!("`{text}` is not a number of seconds"))?;
    if number > 0.0 && number <= DEADLINE_S_MAX { Ok(number) } else { Err("a deadline lies within a day".to_owned()) }
}

impl Args {
    /// The request; nothing that was not asked for is in it.
    fn body(&self) -> Value {
        let mut body = Map::from_iter([("capability".to_owned(), json!(self.capability))]);
        let mut put = |name: &str, value: Option<Value>| body.extend(value.map(|value| (name.to_owned(), value)));
        put("version", self.version.as_ref().map(|version| version.to_string().into()));
        put("units", self.units.map(|units| units.to_string().into()));
        put("estimated_tokens", self.tokens.map(Value::from));
        let deadline_ms = self.deadline.map(|seconds| std::time::Duration::from_secs_f64(seconds).as_millis().max(1));
        put("deadline_ms", deadline_ms.map(|ms| json!(ms)));
        put("max_cost", self.max_cost.map(|cost| cost.to_string().into()));
        put("limit", self.limit.map(Value::from));
        let mut constraints = Map::new();
        constraints.extend(self.min_trust.map(|trust| ("min_trust".to_owned(), trust.into())));
        constraints.extend(self.language.as_ref().map(|language| ("language".to_owned(), language.as_str().into())));
        put("constraints", (!constraints.is_empty()).then_some(Value::Object(constraints)));
        Value::Object(body)
    }
}

#[derive(Debug, Deserialize)]
struct Answer {
    offers: Vec<Row>,
    #[serde(default)]
    declined: Vec<Declined>,
    #[serde(default)]
    suggestion: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Row {
    agent_id: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    capability: String,
    #[serde(default)]
    capability_version: String,
    #[serde(default)]
    starts_in_ms: Value,
    #[serde(default)]
    takes_ms: Value,
    #[serde(default)]
    latency_ms: Value,
    #[serde(default)]
    completes_in_ms: Value,
    #[serde(default)]
    cost: Value,
    #[serde(default)]
    free_slots: Value,
    #[serde(default)]
    queue: Value,
    #[serde(default)]
    trust: Value,
    #[serde(default)]
    score: Value,
}

#[derive(Debug, Deserialize)]
struct Declined {
    agent_id: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    reason: String,
}

/// Asks the agents.
pub(crate) async fn run(args: Args, global: &Global) -> Result<(), CliError> {
    let answer = Client::new(global)?.post(&["v1", "offers"], &args.body(), ANSWER_TIMEOUT).await?;
    global.answer(&answer, || {
        let said: Answer = read(&answer)?;
        let mut text = if said.offers.is_empty() { "nobody\n".to_owned() } else { table(&said.offers, global.colour()) };
        for one in &said.declined {
            text += &format!("  {}: {}\n", figures::agent(&one.name, &one.agent_id), printable(&one.reason, REASON_CHARS_MAX));
        }
        if let Some(near) = said.suggestion {
            text += &format!("hint: try `{}` instead\n", figures::word(&near));
        }
        Ok(text)
    })
}

/// The figure that counts of a promise and a measurement.
fn slower<'a>(promised: &'a Value, measured: &'a Value) -> &'a Value {
    let ms = |figure: &Value| figure.get("value").and_then(Value::as_f64);
    if ms(measured) > ms(promised) { measured } else { promised }
}

fn table(rows: &[Row], colour: bool) -> String {
    let mut table = Table::new(["agent", "capability", "starts in", "takes", "done in", "cost", "free", "waiting", "trust", "score"]);
    for row in rows {
        let millis = |value| figures::figure(value, figures::millis);
        table.row([
            figures::agent(&row.name, &row.agent_id),
            format!("{} {}", figures::word(&row.capability), figures::word(&row.capability_version)),
            millis(&row.starts_in_ms),
            millis(slower(&row.takes_ms, &row.latency_ms)),
            millis(&row.completes_in_ms),
            figures::money(&row.cost),
            figures::plain(&row.free_slots),
            figures::plain(&row.queue),
            figures::figure(&row.trust, figures::number),
            figures::figure(&row.score, |score| format!("{score:.3}")),
        ]);
    }
    table.text(colour) + "an offer reserves nothing and binds nobody; " + figures::MARKS + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_figures_of_an_offer_add_up_whoever_vouches_for_them() {
        let claimed = json!({ "value": 25, "source": "claimed" });
        for (measured, takes, done) in [(json!({ "value": 53, "source": "measured" }), "53 ms m", 253), (Value::Null, "25 ms c", 225)] {
            let row = json!({ "agent_id": "x", "starts_in_ms": 200, "takes_ms": claimed, "latency_ms": measured, "completes_in_ms": done });
            let text = table(&[serde_json::from_value(row).expect("a row")], false);
            assert!(text.contains(&format!("200 ms     {takes}  {done} ms")), "{text}");
        }
    }
}
