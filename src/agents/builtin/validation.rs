//! The agent that says whether a value fits a JSON Schema.
//!
//! It decides nothing of its own: which schemas are harmless and what a fault looks like is decided by
//! [`schema`](crate::agents::schema). A schema that is refused there is bad input here, with the reason.

use serde_json::{Value, json};

use super::{Builtin, Failure, Offer, Output, Settings};
use crate::agents::schema::{FAULTS_MAX, Schema};

/// The `data-validation` agent.
pub const AGENT: Builtin =
    Builtin { name: "data-validation", description: "Checks a value against a JSON Schema", capabilities: offers, run };

fn offers() -> Vec<Offer> {
    let fault = json!({
        "type": "object",
        "required": ["path", "message"],
        "properties": {"path": {"type": "string"}, "message": {"type": "string"}},
        "additionalProperties": false,
    });
    vec![Offer {
        id: "data-validation",
        version: "1.0.0",
        description: "Whether the data fits the schema, and where it does not",
        input_schema: json!({
            "type": "object",
            "required": ["schema", "data"],
            "properties": {"schema": {"type": ["object", "boolean"]}, "data": {}},
            "additionalProperties": false,
        }),
        output_schema: json!({
            "type": "object",
            "required": ["valid", "faults"],
            "properties": {"valid": {"type": "boolean"}, "faults": {"type": "array", "maxItems": FAULTS_MAX, "items": fault}},
            "additionalProperties": false,
        }),
    }]
}

fn run(_capability: &str, input: &Value, _settings: &Settings) -> Result<Output, Failure> {
    let schema = input.get("schema").ok_or_else(|| Failure::bad("/schema", "expected a JSON Schema"))?;
    let data = input.get("data").ok_or_else(|| Failure::bad("/data", "expected a value to check"))?;
    let schema = Schema::compile(schema).map_err(|error| Failure::bad("/schema", error.to_string()))?;
    let faults = schema.check(data).err().unwrap_or_default();
    let listed: Vec<Value> = faults.iter().map(|fault| json!({"path": fault.path, "message": fault.message})).collect();
    Ok(Output::of(json!({"valid": listed.is_empty(), "faults": listed})))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_listed_with_their_places() {
        let input = json!({"schema": {"properties": {"age": {"minimum": 0}}}, "data": {"age": -1}});
        let value = run("data-validation", &input, &Settings::default()).unwrap().value;
        assert_eq!(value["valid"], false);
        assert_eq!(value["faults"][0]["path"], "/age");
    }

    #[test]
    fn data_that_fits_is_valid() {
        let input = json!({"schema": {"type": "integer"}, "data": 7});
        assert_eq!(run("data-validation", &input, &Settings::default()).unwrap().value, json!({"valid": true, "faults": []}));
    }

    #[test]
    fn a_harmful_schema_is_bad_input_with_the_reason() {
        let input = json!({"schema": {"$ref": "https://example.com/s.json"}, "data": 1});
        let failure = run("data-validation", &input, &Settings::default()).unwrap_err();
        assert!(matches!(&failure, Failure::BadInput { path, message } if path == "/schema" && message.contains('#')), "{failure:?}");
    }
}
