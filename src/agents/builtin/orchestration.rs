//! The agent that joins several results into one: the last step of most plans.
//!
//! Inputs are taken in the order of their names, so the same inputs always give the same result, whatever order they came in.
//! - `merge`: objects are laid over each other, level by level; where two say different things the later name wins, and the place is listed.
//! - `concat`: texts with a blank line between them, or lists end to end.
//! - `collect`: a list of the values as they are.
//!
//! AITP's example hands its results over by name, without `inputs` and `strategy`. Two or more fields of other names are joined into one
//! object, each under its own name.
//!
//! Values are moved, never read as templates: a text that looks like `${x}` stays that text.

use serde_json::{Map, Value, json};

use super::{Builtin, Failure, Offer, Output, Settings};

/// The `orchestration` agent.
pub const AGENT: Builtin =
    Builtin { name: "orchestration", description: "Joins the results of several agents into one", capabilities: offers, run };

/// Below this level an object replaces another whole.
const MERGE_DEPTH_MAX: usize = 32;
/// The most values that are joined.
const INPUTS_MAX: usize = 10_000;
/// The most places where inputs differ that are listed.
const CONFLICTS_MAX: usize = 64;

fn offers() -> Vec<Offer> {
    vec![Offer {
        id: "orchestration",
        version: "1.0.0",
        description: "Joins named inputs: merges objects, concatenates texts or lists, or collects anything",
        input_schema: json!({
            "type": "object",
            "anyOf": [
                {
                    "required": ["inputs", "strategy"],
                    "properties": {
                        "inputs": {"type": "object", "maxProperties": INPUTS_MAX},
                        "strategy": {"type": "string", "enum": ["merge", "concat", "collect"]},
                    },
                    "additionalProperties": false,
                },
                {"properties": {"inputs": false, "strategy": false}, "minProperties": 2, "maxProperties": INPUTS_MAX},
            ],
        }),
        output_schema: json!({
            "type": "object",
            "required": ["result", "sources", "conflicts"],
            "properties": {
                "result": {},
                "sources": {"type": "array", "items": {"type": "string"}},
                "conflicts": {"type": "array", "maxItems": CONFLICTS_MAX, "items": {"type": "string"}},
            },
            "additionalProperties": false,
        }),
    }]
}

fn run(_capability: &str, input: &Value, _settings: &Settings) -> Result<Output, Failure> {
    if let Some(named) = named(input) {
        let sources: Vec<&String> = named.keys().collect();
        return Ok(Output::of(json!({"result": named, "sources": sources, "conflicts": []})));
    }
    let inputs =
        input.get("inputs").and_then(Value::as_object).ok_or_else(|| Failure::bad("/inputs", "expected an object of named values"))?;
    let mut conflicts = Vec::new();
    let result = match input.get("strategy").and_then(Value::as_str) {
        Some("merge") => merge(inputs, &mut conflicts)?,
        Some("concat") => concat(inputs)?,
        Some("collect") => Value::Array(inputs.values().cloned().collect()),
        Some(_) | None => return Err(Failure::bad("/strategy", "expected merge, concat or collect")),
    };
    let sources: Vec<&String> = inputs.keys().collect();
    Ok(Output::of(json!({"result": result, "sources": sources, "conflicts": conflicts})))
}

/// The values to join, if they are given by names of their own. One alone has nothing to be joined with.
fn named(input: &Value) -> Option<&Map<String, Value>> {
    let fields = input.as_object()?;
    let are_named = (2..=INPUTS_MAX).contains(&fields.len()) && !fields.contains_key("inputs") && !fields.contains_key("strategy");
    are_named.then_some(fields)
}

fn merge(inputs: &Map<String, Value>, conflicts: &mut Vec<String>) -> Result<Value, Failure> {
    let mut result = Map::new();
    for (name, value) in inputs {
        let object = value.as_object().ok_or_else(|| Failure::bad(&place(name), "expected an object: merge joins objects only"))?;
        lay_over(&mut result, object, "", MERGE_DEPTH_MAX, conflicts);
    }
    Ok(Value::Object(result))
}

fn lay_over(under: &mut Map<String, Value>, over: &Map<String, Value>, at: &str, depth: usize, conflicts: &mut Vec<String>) {
    for (key, value) in over {
        let at = format!("{at}/{}", escaped(key));
        match (under.get_mut(key), value) {
            (Some(Value::Object(below)), Value::Object(above)) if depth > 0 => lay_over(below, above, &at, depth - 1, conflicts),
            (Some(below), _) => {
                if below != value {
                    *below = value.clone();
                    if conflicts.len() < CONFLICTS_MAX {
                        conflicts.push(at);
                    }
                }
            }
            (None, _) => {
                under.insert(key.clone(), value.clone());
            }
        }
    }
}

fn concat(inputs: &Map<String, Value>) -> Result<Value, Failure> {
    if inputs.values().all(Value::is_array) {
        return Ok(Value::Array(inputs.values().filter_map(Value::as_array).flatten().cloned().collect()));
    }
    let mut texts = Vec::with_capacity(inputs.len());
    for (name, value) in inputs {
        texts.push(value.as_str().ok_or_else(|| Failure::bad(&place(name), "expected all texts or all lists: concat joins one kind"))?);
    }
    Ok(Value::String(texts.join("\n\n")))
}

fn place(name: &str) -> String {
    format!("/inputs/{}", escaped(name))
}

fn escaped(key: &str) -> String {
    key.replace('~', "~0").replace('/', "~1")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn joined(strategy: &str, inputs: Value) -> Result<Value, Failure> {
        run("orchestration", &json!({"inputs": inputs, "strategy": strategy}), &Settings::default()).map(|output| output.value)
    }

    #[test]
    fn merge_goes_level_by_level_and_lists_where_inputs_differ() {
        let value = joined("merge", json!({"b": {"x": {"p": 2, "q": 3}}, "a": {"x": {"p": 1}, "y": 1}})).unwrap();
        assert_eq!(value, json!({"result": {"x": {"p": 2, "q": 3}, "y": 1}, "sources": ["a", "b"], "conflicts": ["/x/p"]}));
    }

    /// AITP-3: the draft's own example hands over its results by name.
    #[test]
    fn fields_of_other_names_are_joined_into_one_object() {
        let input = json!({"raw_text": "${x}", "nlp_results": {"words": 2}});
        let value = run("orchestration", &input, &Settings::default()).unwrap().value;
        assert_eq!(value, json!({"result": input, "sources": ["nlp_results", "raw_text"], "conflicts": []}));
        for input in [json!({"raw_text": "x"}), json!({"raw_text": "x", "strategy": "merge"}), json!({"inputs": {}, "raw_text": "x"})] {
            assert!(matches!(run("orchestration", &input, &Settings::default()), Err(Failure::BadInput { .. })), "{input}");
        }
    }

    #[test]
    fn concat_joins_texts_or_lists() {
        assert_eq!(joined("concat", json!({"a": "one", "b": "two"})).unwrap()["result"], "one\n\ntwo");
        assert_eq!(joined("concat", json!({"a": [1], "b": [2, 3]})).unwrap()["result"], json!([1, 2, 3]));
    }

    #[test]
    fn collect_keeps_values_as_they_are() {
        assert_eq!(joined("collect", json!({"a": "${b}", "b": null})).unwrap()["result"], json!(["${b}", null]));
    }

    #[test]
    fn a_value_of_the_wrong_kind_is_named() {
        let at = |failure| {
            if let Failure::BadInput { path, .. } = failure { path } else { String::new() }
        };
        assert_eq!(at(joined("merge", json!({"a/b": 1})).unwrap_err()), "/inputs/a~1b");
        assert_eq!(at(joined("concat", json!({"a": "x", "b": [1]})).unwrap_err()), "/inputs/b");
        assert_eq!(at(joined("vote", json!({})).unwrap_err()), "/strategy");
    }
}
