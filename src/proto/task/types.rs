//! Clashes of types that can be seen before anything runs (AITP-3).
//!
//! Where a template puts a value of one type and the capability takes another, the task would fail at that step on every agent; so it is
//! refused when it is submitted. Only what is certain is told: types are known from the simple keywords `type`, `properties`, `items`,
//! `required` and `additionalProperties: false`, and a schema with a reference or a combination says nothing here. What is not certain is
//! for the schemas to say when the values are there.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::definition::{Definition, Subtask};
use super::fault::{Fault, Faults, below};
use super::template::Node;
use super::template::expression::{Expression, Root, Source, Step};
use crate::model::printable;

/// Keywords that take or put aside what the others say, or say it in a way that is not followed here.
const COMBINING: [&str; 14] = [
    "$ref",
    "$dynamicRef",
    "$recursiveRef",
    "allOf",
    "anyOf",
    "oneOf",
    "not",
    "if",
    "enum",
    "const",
    "dependentSchemas",
    "dependencies",
    "patternProperties",
    "unevaluatedProperties",
];

/// The types that a value may have, by JSON Schema's names; a whole number is a number too.
const TYPES: [&str; 6] = ["null", "boolean", "number", "string", "array", "object"];

/// What a subtask's capability takes and gives.
pub type Schemas<'a> = (&'a Value, &'a Value);

/// Whether a schema says more than its simple keywords.
pub(super) fn is_combined(schema: &Value) -> bool {
    COMBINING.iter().any(|keyword| schema.get(keyword).is_some())
}

/// Every clash, with its place in the definition. `schemas` gives the schemas of a subtask's capability, where they are known.
pub fn clashes<'a>(definition: &'a Definition, schemas: &dyn Fn(&Subtask) -> Option<Schemas<'a>>) -> Vec<Fault> {
    // What a task within this one takes and gives, its own schemas say.
    let schemas = &|subtask: &Subtask| schemas(subtask).filter(|_| subtask.task.is_none());
    let mut checker = Checker { definition, schemas, faults: Faults::default() };
    for (place, subtask) in definition.subtasks.iter().enumerate() {
        let Some((input, output)) = schemas(subtask) else { continue };
        let path = format!("/subtasks/{place}");
        checker.node(subtask.input.root(), input, &below(&path, "input"), &subtask.capability.to_string());
        checker.mapping(subtask, output, &below(&path, "output_mapping"));
    }
    checker.faults.into_vec()
}

struct Checker<'a, 'b> {
    definition: &'a Definition,
    schemas: &'b dyn Fn(&Subtask) -> Option<Schemas<'a>>,
    faults: Faults,
}

impl<'a> Checker<'a, '_> {
    /// What a template puts where `schema` holds.
    fn node(&mut self, node: &Node, schema: &Value, path: &str, who: &str) {
        if is_combined(schema) {
            return;
        }
        let Some(taken) = Types::of(schema) else { return };
        let (given, what) = match node {
            Node::Plain(value) => (Some(Types::of_value(value)), "a plain value".to_owned()),
            Node::Text(_) => (Some(Types::named("string")), "a text with values in it".to_owned()),
            Node::List(_) => (Some(Types::named("array")), "a list".to_owned()),
            Node::Object(_) => (Some(Types::named("object")), "an object".to_owned()),
            Node::Value(expression) => (self.types_of(expression, path), format!("`{expression}`")),
        };
        if let Some(given) = given
            && !given.meet(taken)
        {
            let told = format!("{what} is {}, and `{who}` takes {} here", given.shown(), taken.shown());
            self.faults.add(path, told);
            return;
        }
        match node {
            Node::Object(fields) => self.fields(fields, schema, path, who),
            Node::List(entries) if schema.get("prefixItems").is_none() => {
                for (schema, (number, entry)) in schema.get("items").into_iter().cycle().zip(entries.iter().enumerate()) {
                    self.node(entry, schema, &below(path, &number.to_string()), who);
                }
            }
            Node::Plain(_) | Node::Text(_) | Node::List(_) | Node::Value(_) => {}
        }
    }

    fn fields(&mut self, fields: &[(String, Node)], schema: &Value, path: &str, who: &str) {
        let none = Map::new();
        let properties = schema.get("properties").and_then(Value::as_object).unwrap_or(&none);
        let closed = schema.get("additionalProperties") == Some(&Value::Bool(false));
        for (key, field) in fields {
            match properties.get(key) {
                Some(schema) => self.node(field, schema, &below(path, key), who),
                None if closed && !self.is_left_out(field) => {
                    self.faults.unknown(
                        &below(path, key),
                        &format!("a field that `{who}` takes"),
                        key,
                        properties.keys().map(String::as_str),
                    );
                }
                None => {}
            }
        }
        let given: BTreeSet<&str> = fields.iter().filter(|(_, field)| !self.is_left_out(field)).map(|(key, _)| key.as_str()).collect();
        for required in schema.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str) {
            if !given.contains(required) {
                self.faults.add(path, format!("does not give `{}`, which `{who}` requires", printable(required, 80)));
            }
        }
    }

    /// Whether a field is a parameter that was not given.
    fn is_left_out(&self, field: &Node) -> bool {
        match field {
            Node::Value(expression) if expression.source == Source::Input => {
                expression.follow(Root::Fields(&self.definition.parameters)).is_err()
            }
            Node::Plain(_) | Node::Text(_) | Node::List(_) | Node::Object(_) | Node::Value(_) => false,
        }
    }

    /// The types that an expression may have; `None` where that is not known.
    fn types_of(&mut self, expression: &Expression, path: &str) -> Option<Types> {
        let upstream = match expression.source {
            Source::Input => {
                let found = expression.follow(Root::Fields(&self.definition.parameters)).ok()?;
                return Some(match found {
                    Root::Fields(_) => Types::named("object"),
                    Root::Value(value) => Types::of_value(value),
                });
            }
            Source::Output(place) => self.definition.subtasks.get(place)?,
        };
        let (_, mut schema) = (self.schemas)(upstream)?;
        let mut steps = expression.steps.as_slice();
        if !upstream.output_mapping.is_empty() {
            let [Step::Field(name), rest @ ..] = steps else { return Some(Types::named("object")) };
            let (field, _) = upstream.output_mapping.iter().find(|(_, mapped)| *mapped == name)?;
            schema = inner(schema, &Step::Field(field.clone()))?;
            steps = rest;
        }
        for step in steps {
            let wanted = match step {
                Step::Field(_) => "object",
                Step::Item(_) => "array",
            };
            if let Some(types) = Types::of(schema)
                && !is_combined(schema)
                && !types.meet(Types::named(wanted))
            {
                let told =
                    format!("`{expression}` has no value: there is no {step} in what `{}` gives, which is {}", upstream.id, types.shown());
                self.faults.add(path, told);
                return None;
            }
            schema = inner(schema, step)?;
        }
        if is_combined(schema) { None } else { Types::of(schema) }
    }

    /// Fields that a mapping names and the capability never gives.
    fn mapping(&mut self, subtask: &Subtask, output: &Value, path: &str) {
        if is_combined(output) || output.get("additionalProperties") != Some(&Value::Bool(false)) {
            return;
        }
        let Some(properties) = output.get("properties").and_then(Value::as_object) else { return };
        for field in subtask.output_mapping.keys().filter(|field| !properties.contains_key(*field)) {
            let what = format!("a field that `{}` gives", subtask.capability);
            self.faults.unknown(&below(path, field), &what, field, properties.keys().map(String::as_str));
        }
    }
}

/// What a schema says of a part of the value; `None` where that is not known.
fn inner<'a>(schema: &'a Value, step: &Step) -> Option<&'a Value> {
    if is_combined(schema) {
        return None;
    }
    match step {
        Step::Field(name) => schema.get("properties")?.get(name),
        Step::Item(_) if schema.get("prefixItems").is_some() => None,
        Step::Item(_) => schema.get("items").filter(|items| items.is_object()),
    }
}

/// A set of [`TYPES`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Types([bool; TYPES.len()]);

impl Types {
    fn named(name: &str) -> Self {
        Self(TYPES.map(|known| known == name || (known == "number" && name == "integer")))
    }

    fn of_value(value: &Value) -> Self {
        Self::named(match value {
            Value::Null => "null",
            Value::Bool(_) => "boolean",
            Value::Number(_) => "number",
            Value::String(_) => "string",
            Value::Array(_) => "array",
            Value::Object(_) => "object",
        })
    }

    /// What `type` says; `None` where it says nothing that is known here.
    fn of(schema: &Value) -> Option<Self> {
        let types = match schema.get("type")? {
            Value::String(name) => Self::named(name),
            Value::Array(names) => names.iter().filter_map(Value::as_str).map(Self::named).reduce(Self::or)?,
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => return None,
        };
        types.0.contains(&true).then_some(types)
    }

    fn or(self, other: Self) -> Self {
        Self(std::array::from_fn(|at| self.0[at] || other.0[at]))
    }

    fn meet(self, other: Self) -> bool {
        self.0.iter().zip(other.0).any(|(a, b)| *a && b)
    }

    fn shown(self) -> String {
        let names: Vec<&str> = TYPES.iter().zip(self.0).filter(|(_, there)| *there).map(|(name, _)| *name).collect();
        names.join(" or ")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::model::Timestamp;
    use crate::proto::task::definition::Defaults;

    /// The clashes of a task whose second step takes what `second_input` says; its first step gives what the first schema says.
    fn told(first_output: &Value, second_input: &Value, second: Value) -> Vec<String> {
        let document = json!({
            "name": "n",
            "input": {"properties": {"text": {"type": "string"}, "opt": {"type": "string"}}},
            "parameters": {"text": "t", "count": 3, "list": [1]},
            "subtasks": [{"subtask_id": "a", "agent_capability": "first", "input": {}}, second],
        });
        let definition = Definition::read(&document, &Defaults::default(), Timestamp::from_ms(0)).expect("a definition");
        let anything = json!(true);
        let found = clashes(&definition, &|subtask| {
            Some(if subtask.id.as_str() == "a" { (&anything, first_output) } else { (second_input, &anything) })
        });
        found.iter().map(Fault::to_string).collect()
    }

    fn second(input: Value) -> Value {
        json!({"subtask_id": "b", "agent_capability": "second", "input": input})
    }

    fn takes(field: Value) -> Value {
        json!({"type": "object", "properties": {"x": field}, "required": ["x"], "additionalProperties": false})
    }

    /// AITP-3: types that cannot meet are refused, wherever the value comes from.
    #[test]
    fn a_value_of_another_type_is_a_clash() {
        let gives =
            json!({"type": "object", "properties": {"n": {"type": "integer"}, "l": {"type": "array", "items": {"type": "string"}}}});
        for (field, template, clash) in [
            (
                json!({"type": "string"}),
                json!("${a.output.n}"),
                "/subtasks/1/input/x: `${a.output.n}` is number, and `second` takes string here",
            ),
            (json!({"type": "integer"}), json!("${a.output.l[0]}"), "is string, and `second` takes number"),
            (json!({"type": "string"}), json!("${parent.input.count}"), "`${parent.input.count}` is number"),
            (json!({"type": ["string", "null"]}), json!(3), "a plain value is number, and `second` takes null or string"),
            (json!({"type": "number"}), json!("${parent.input.count}!"), "a text with values in it is string"),
            (json!({"type": "array", "items": {"type": "object"}}), json!(["${a.output.n}"]), "/subtasks/1/input/x/0: "),
            (json!({"type": "string"}), json!("${a.output.n.deep}"), "there is no field `deep` in what `a` gives, which is number"),
            (json!({"type": "string"}), json!({"y": 1}), "an object is object"),
        ] {
            let found = told(&gives, &takes(field), second(json!({"x": template})));
            assert!(found.len() == 1 && found[0].contains(clash), "{template}: {found:?}");
        }
    }

    /// AITP-3: what the capability requires is given, and what it does not take is not.
    #[test]
    fn a_field_that_is_required_or_unknown_is_a_clash() {
        let taken = takes(json!({}));
        let missing = told(&json!(true), &taken, second(json!({})));
        assert_eq!(missing, ["/subtasks/1/input: does not give `x`, which `second` requires"]);
        assert_eq!(told(&json!(true), &taken, second(json!({"x": "${parent.input.opt}"}))), missing, "a parameter that was not given");
        assert_eq!(told(&json!(true), &json!({"type": "string"}), second(json!({}))).len(), 1);
        let unknown = told(&json!(true), &taken, second(json!({"x": 1, "X": 1})));
        assert_eq!(unknown, ["/subtasks/1/input/X: `X` is not a field that `second` takes; there is: x"]);
    }

    /// AITP-3: the mapping is followed, and must name fields that are given.
    #[test]
    fn the_output_mapping_is_followed() {
        let gives = json!({"type": "object", "properties": {"n": {"type": "integer"}}, "additionalProperties": false});
        let taken = takes(json!({"type": "string"}));
        let document = |field: &str| {
            json!({"name": "n", "subtasks": [
                {"subtask_id": "a", "agent_capability": "first", "output_mapping": {field: "m"}},
                {"subtask_id": "b", "agent_capability": "second", "input": {"x": "${a.output.m}"}},
            ]})
        };
        let found = |field: &str| {
            let definition = Definition::read(&document(field), &Defaults::default(), Timestamp::from_ms(0)).expect("a definition");
            clashes(&definition, &|subtask| {
                Some(if subtask.id.as_str() == "a" { (&Value::Bool(true), &gives) } else { (&taken, &Value::Bool(true)) })
            })
        };
        assert_eq!(found("n")[0].path, "/subtasks/1/input/x");
        assert_eq!((found("nn")[0].path.as_str(), found("nn")[0].suggestion.as_deref()), ("/subtasks/0/output_mapping/nn", Some("n")));
    }

    /// AITP-3: what is not certain is left to the schemas.
    #[test]
    fn what_is_not_known_is_no_clash() {
        let string = json!({"type": "string"});
        for gives in [
            json!(true),
            json!({}),
            json!({"properties": {}}),
            json!({"$ref": "#/$defs/a", "properties": {"n": {"type": "integer"}}}),
            json!({"anyOf": [], "properties": {"n": {"type": "integer"}}}),
            json!({"properties": {"n": {"oneOf": [{"type": "integer"}], "type": "integer"}}}),
            json!({"properties": {"n": {"type": "colour"}}}),
            json!({"properties": {"n": {"type": ["integer", "string"]}}}),
            json!({"properties": {"n": 1}, "items": 1, "type": 1}),
        ] {
            assert_eq!(told(&gives, &takes(string.clone()), second(json!({"x": "${a.output.n}"}))), [""; 0], "{gives}");
        }
        for taken in [json!(true), json!({"anyOf": [{"required": ["y"]}], "required": ["x"]}), json!({"required": 1, "properties": 1})] {
            assert_eq!(told(&json!(true), &taken, second(json!({}))), [""; 0], "{taken}");
        }
        let whole = takes(json!({"type": "integer"}));
        assert_eq!(told(&json!({"properties": {"n": {"type": "number"}}}), &whole, second(json!({"x": "${a.output.n}"}))), [""; 0]);
    }
}
