//! The agent that gives back what it was given: the shortest way to see that a call arrives.

use serde_json::{Value, json};

use super::{Builtin, Failure, Offer, Output, Settings};

/// The `echo` agent.
pub const AGENT: Builtin = Builtin { name: "echo", description: "Gives back what it was given", capabilities: offers, run };

fn offers() -> Vec<Offer> {
    let description = "The input, unchanged";
    vec![Offer { id: "echo", version: "1.0.0", description, input_schema: json!({}), output_schema: json!({}) }]
}

fn run(_capability: &str, input: &Value, _settings: &Settings) -> Result<Output, Failure> {
    Ok(Output::of(input.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_in_comes_out_and_nothing_in_it_is_expanded() {
        let input = json!({"a": ["${HOME}", "\u{1b}[31m", {"$ref": "#"}], "b": null});
        assert_eq!(run("echo", &input, &Settings::default()).unwrap().value, input);
    }
}
