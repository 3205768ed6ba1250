//! Agents that live inside the binary: real, small, and enough to try the mesh without writing a line.
//!
//! Each file is one agent, or two names of one: what it offers and how it answers.
//!
//! | name | file | does |
//! |---|---|---|
//! | `echo` | [`echo`] | gives back what it was given |
//! | `pdf_text_extraction` | [`document`] | text of a PDF, Markdown or text document |
//! | `text-analysis`, `nlp_analysis` | [`text`] | language, keywords, sentiment, readability, statistics |
//! | `summarization` | [`summary`] | the sentences that say most |
//! | `data-validation` | [`validation`] | a value against a JSON Schema |
//! | `orchestration` | [`orchestration`] | several results into one |
//!
//! Invariants:
//! - A run is a plain function: no randomness, no network; the same input gives the same output. Only [`document`] may read a file, and
//!   only below a directory that [`Settings::file_allow`] names; it alone watches a clock, to give up on a PDF that takes too long.
//! - Time and memory are bounded by the size of the input, and every text is data: nothing in it is executed, expanded or fetched.
//! - What goes in and comes out fits the schemas that the [`Offer`] carries; the tests hold every agent to that.
//!
//! Left to others: admission by schema, prices, concurrency, the deadline, and the worker threads these functions run on.
//!
//! Source: the interface section on agents (`builtin`), threats T23 and T26.

pub mod document;
pub mod echo;
pub mod orchestration;
mod pdf;
pub mod summary;
pub mod text;
pub mod validation;
mod words;

use std::path::PathBuf;

use rust_decimal::Decimal;
use serde_json::Value;

/// An agent inside the binary.
#[derive(Debug, Clone, Copy)]
pub struct Builtin {
    /// What a configuration calls it.
    pub name: &'static str,
    /// One sentence for people.
    pub description: &'static str,
    /// What it offers.
    pub capabilities: fn() -> Vec<Offer>,
    /// Answers one call: the capability, the input, the settings of the agent. Blocks until it is done.
    pub run: fn(&str, &Value, &Settings) -> Result<Output, Failure>,
}

/// A capability of a builtin agent.
#[derive(Debug, Clone, PartialEq)]
pub struct Offer {
    /// The name of the capability.
    pub id: &'static str,
    /// Its version.
    pub version: &'static str,
    /// One sentence for people.
    pub description: &'static str,
    /// What goes in.
    pub input_schema: Value,
    /// What comes out.
    pub output_schema: Value,
}

/// What a run gives.
#[derive(Debug, Clone, PartialEq)]
pub struct Output {
    /// The answer; it fits the output schema.
    pub value: Value,
    /// How many units were used, where that is not one.
    pub units: Option<Decimal>,
}

impl Output {
    fn of(value: Value) -> Self {
        Self { value, units: None }
    }
}

/// What the configuration allows an agent to touch. The default is nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Settings {
    /// Directories and files that a `file:` URL may lead to, after symbolic links are followed.
    pub file_allow: Vec<PathBuf>,
    /// Hosts that an `https:` URL may name. No agent here fetches, so such a URL is refused either way; the refusal says which it was.
    pub https_allow: Vec<String>,
}

/// Why a run gave nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The input is not what the capability takes. Happens in normal life; the caller has to change it.
    #[error("read the input at {path}: {message}")]
    BadInput {
        /// The place as a JSON pointer, `/` for the whole.
        path: String,
        /// What was expected.
        message: String,
    },
    /// The input asks for something that the settings do not allow. Retrying does not help.
    #[error("go there: {0}")]
    Forbidden(String),
    /// The input was understood and could not be worked on, such as an encrypted document. Retrying does not help.
    #[error("finish the work: {0}")]
    Failed(String),
}

impl Failure {
    fn bad(path: &str, message: impl Into<String>) -> Self {
        Self::BadInput { path: path.to_owned(), message: message.into() }
    }
}

/// Every builtin agent.
pub fn all() -> &'static [Builtin] {
    &[echo::AGENT, document::AGENT, text::TEXT_ANALYSIS, text::NLP_ANALYSIS, summary::AGENT, validation::AGENT, orchestration::AGENT]
}

/// The builtin agent of a name.
pub fn find(name: &str) -> Option<&'static Builtin> {
    all().iter().find(|builtin| builtin.name == name)
}

/// The string at a key of the input, at most `max` bytes.
fn string<'a>(input: &'a Value, key: &str, max: usize) -> Result<&'a str, Failure> {
    let text = input.get(key).and_then(Value::as_str).ok_or_else(|| Failure::bad(&format!("/{key}"), "expected a string"))?;
    if text.len() > max { Err(Failure::bad(&format!("/{key}"), format!("longer than {max} bytes"))) } else { Ok(text) }
}

/// The whole number at a key of the input, or `default` where there is none.
fn count(input: &Value, key: &str, default: usize, max: usize) -> Result<usize, Failure> {
    let Some(value) = input.get(key) else { return Ok(default) };
    let number = value.as_u64().and_then(|number| usize::try_from(number).ok()).filter(|number| (1..=max).contains(number));
    number.ok_or_else(|| Failure::bad(&format!("/{key}"), format!("expected a whole number from 1 to {max}")))
}

/// Rounds for reading: scores are estimates, and long fractions pretend otherwise.
fn rounded(number: f64) -> f64 {
    if number.is_finite() { (number * 1000.0).round() / 1000.0 } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::agents::schema::Schema;

    const PROSE: &str =
        "Meshes are good. A mesh finds its agents by what they can do, and it works well without a centre. It is not bad at all!";

    /// One or more inputs for each capability.
    fn examples(capability: &str) -> Vec<Value> {
        let sample = format!("data:text/markdown,{PROSE}");
        match capability {
            "echo" => vec![json!(null), json!({"a": [1, "${x}"]})],
            "pdf_text_extraction" => vec![
                json!({"document": sample}),
                json!({"document": document::tests::sample_url()}),
                json!({"paper_pdf_url": sample, "max_pages": 50}),
            ],
            "text-analysis" | "nlp_analysis" => vec![
                json!({"text": PROSE}),
                json!({"text": ""}),
                json!({"text": "Das ist ein schöner Tag und wir gehen in den Wald.", "max_keywords": 2}),
            ],
            "summarization" => vec![json!({"text": PROSE}), json!({"text": ""}), json!({"text": PROSE, "max_sentences": 1})],
            "data-validation" => vec![json!({"schema": {"type": "string"}, "data": "x"}), json!({"schema": {"type": "string"}, "data": 1})],
            "orchestration" => ["merge", "concat", "collect"]
                .iter()
                .flat_map(|strategy| {
                    let inputs = if *strategy == "merge" { json!({"a": {"x": 1}, "b": {"y": 2}}) } else { json!({"a": ["x"], "b": ["y"]}) };
                    [
                        json!({"inputs": inputs, "strategy": strategy}),
                        json!({"inputs": {}, "strategy": strategy}),
                        json!({"raw_text": "x", "nlp_results": {}}),
                    ]
                })
                .collect(),
            other => panic!("no examples for {other}"),
        }
    }

    #[test]
    fn every_agent_keeps_to_its_own_schemas() {
        for agent in all() {
            for offer in (agent.capabilities)() {
                let input_schema = Schema::compile(&offer.input_schema).unwrap();
                let output_schema = Schema::compile(&offer.output_schema).unwrap();
                for input in examples(offer.id) {
                    assert_eq!(input_schema.check(&input), Ok(()), "{}", offer.id);
                    let output = (agent.run)(offer.id, &input, &Settings::default()).unwrap();
                    assert_eq!(output_schema.check(&output.value), Ok(()), "{}: {}", offer.id, output.value);
                    assert_eq!((agent.run)(offer.id, &input, &Settings::default()).unwrap(), output, "the same again");
                }
            }
        }
    }

    #[test]
    fn odd_inputs_are_bad_input_and_never_a_panic() {
        let odd = [
            json!(null),
            json!([]),
            json!("x"),
            json!({}),
            json!({"text": 1}),
            json!({"document": []}),
            json!({"inputs": [], "strategy": "x"}),
        ];
        for agent in all().iter().filter(|agent| agent.name != "echo") {
            for input in &odd {
                let result = (agent.run)(agent.name, input, &Settings::default());
                assert!(matches!(result, Err(Failure::BadInput { .. })), "{}: {result:?}", agent.name);
            }
        }
    }

    #[test]
    fn names_are_unique_and_found() {
        for agent in all() {
            assert_eq!(find(agent.name).map(|found| found.name), Some(agent.name));
            assert_eq!(all().iter().filter(|other| other.name == agent.name).count(), 1);
            assert!((agent.capabilities)().iter().all(|offer| offer.version == "1.0.0" && !offer.description.is_empty()));
        }
        assert!(find("none").is_none());
    }
}
