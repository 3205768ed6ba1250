//! Fills in what a schema gives for parameters that were not given (AITP 2.1: `default: 50`).
//!
//! Only `properties` are followed: what `$ref` or a combination leads to may not be what holds for the value at hand.

use serde_json::{Map, Value};

/// How deep objects are filled in.
const DEPTH_MAX: usize = 32;

/// Puts each `default` of the schema's `properties` where nothing was given, in objects within objects too.
pub fn fill_defaults(schema: &Value, values: &mut Map<String, Value>) {
    fill(schema, values, DEPTH_MAX);
}

fn fill(schema: &Value, values: &mut Map<String, Value>, depth: usize) {
    let Some(Value::Object(properties)) = schema.get("properties").filter(|_| depth > 0) else { return };
    for (key, property) in properties {
        if let (false, Some(default)) = (values.contains_key(key), property.get("default")) {
            values.insert(key.clone(), default.clone());
        }
        if let Some(Value::Object(inner)) = values.get_mut(key) {
            fill(property, inner, depth - 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// AITP-1: values keep what they are, and what was not given comes from the schema, however deep.
    #[test]
    fn defaults_stand_where_nothing_was_given() {
        let inner = json!({"properties": {"c": {"default": 3}, "d": {"default": 4}}});
        let schema = json!({"properties": {"a": {"default": 1}, "b": {"default": 2}, "o": inner, "p": {"default": {}, "properties": {"q": {"default": 5}}}}});
        let Value::Object(mut values) = json!({"b": null, "o": {"d": 0}}) else { unreachable!("an object was written") };
        fill_defaults(&schema, &mut values);
        assert_eq!(Value::Object(values), json!({"a": 1, "b": null, "o": {"c": 3, "d": 0}, "p": {"q": 5}}));
    }

    #[test]
    fn odd_schemas_fill_in_nothing() {
        for schema in [json!(true), json!({"properties": []}), json!({"properties": {"a": true, "b": 1}})] {
            let mut values = Map::new();
            fill_defaults(&schema, &mut values);
            assert!(values.is_empty(), "{schema}");
        }
    }
}
