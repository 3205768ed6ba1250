//! What comes of a task: the output of each subtask, and the result of them all (AITP 3.1, 3.2).

use serde_json::{Map, Value};

use super::definition::{Definition, Subtask};
use super::graph;
use crate::model::{ErrorCode, Failure, printable};

/// How many fields of an output a failure names.
const FIELDS_SHOWN_MAX: usize = 8;

/// The output of a subtask, made of what its agent gave: the fields that the mapping names under the names that it gives them, or all
/// unchanged where there is no mapping.
///
/// # Errors
/// The agent gave no object, or one without a field that the mapping names.
pub fn map_output(subtask: &Subtask, output: Value) -> Result<Value, Failure> {
    if subtask.output_mapping.is_empty() {
        return Ok(output);
    }
    let told =
        |what: String| Failure::new(ErrorCode::InvalidSchema, format!("the output of `{}` cannot be mapped: {what}", subtask.capability));
    let Value::Object(mut given) = output else { return Err(told("it is no object".to_owned())) };
    let mut mapped = Map::new();
    for (field, name) in &subtask.output_mapping {
        let Some(value) = given.remove(field) else {
            let there: Vec<String> = given.keys().take(FIELDS_SHOWN_MAX).map(|key| printable(key, 80)).collect();
            let there = if there.is_empty() { "no other".to_owned() } else { there.join(", ") };
            let failure = told(format!("it has no field `{}`; it has {there}", printable(field, 80)));
            return Err(failure.with("field", field.clone()));
        };
        mapped.insert(name.clone(), value);
    }
    Ok(Value::Object(mapped))
}

/// The result of a task, made of the outputs of its subtasks: what the only one gave that nobody waits for, or, where there are several,
/// an object of them by `subtask_id`.
///
/// In degraded mode some outputs are missing. Then the result is an object by `subtask_id` of the furthest that were reached: those that
/// succeeded while nothing that waits for them did. So a task whose last step failed still hands over what that step would have joined.
pub fn compose<'a>(definition: &Definition, output: &dyn Fn(usize) -> Option<&'a Value>) -> Value {
    if let [only] = definition.sinks()[..]
        && let Some(value) = output(only)
    {
        return value.clone();
    }
    let after: Vec<_> = definition.subtasks.iter().map(|subtask| subtask.after.clone()).collect();
    let dependents = graph::dependents(&after);
    let mut result = Map::new();
    for (place, subtask) in definition.subtasks.iter().enumerate() {
        let is_furthest = dependents[place].iter().all(|dependent| output(*dependent).is_none());
        if let (true, Some(value)) = (is_furthest, output(place)) {
            result.insert(subtask.id.to_string(), value.clone());
        }
    }
    Value::Object(result)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::model::Timestamp;
    use crate::proto::task::definition::Defaults;

    fn definition(subtasks: &Value) -> Definition {
        let document = json!({"name": "n", "subtasks": subtasks});
        Definition::read(&document, &Defaults::default(), Timestamp::from_ms(0)).expect("a definition")
    }

    fn step(id: &str, after: &[&str]) -> Value {
        json!({"subtask_id": id, "agent_capability": "echo", "depends_on": after})
    }

    fn composed(subtasks: &Value, outputs: &[Option<Value>]) -> Value {
        compose(&definition(subtasks), &|place| outputs[place].as_ref())
    }

    /// AITP-3: the mapping names what is passed on; nothing else is.
    #[test]
    fn an_output_is_mapped_or_passed_on_unchanged() {
        let mapped = definition(&json!([{"subtask_id": "a", "agent_capability": "echo", "output_mapping": {"x": "y", "y": "x"}}]));
        assert_eq!(map_output(&mapped.subtasks[0], json!({"x": 1, "y": 2, "z": 3})), Ok(json!({"y": 1, "x": 2})));
        let plain = definition(&json!([step("a", &[])]));
        assert_eq!(map_output(&plain.subtasks[0], json!([1])), Ok(json!([1])));
    }

    #[test]
    fn a_field_that_the_agent_did_not_give_is_named() {
        let mapped = definition(&json!([{"subtask_id": "a", "agent_capability": "echo", "output_mapping": {"x": "y"}}]));
        let failure = map_output(&mapped.subtasks[0], json!({"z": 3})).expect_err("no x");
        assert!(failure.message.contains("no field `x`; it has z"), "{failure}");
        assert!(map_output(&mapped.subtasks[0], json!("x")).expect_err("a text").message.contains("no object"));
    }

    /// AITP-3: the result is the output of the single sink, or an object by subtask.
    #[test]
    fn the_result_is_what_the_last_step_gave_or_each_of_the_last_steps() {
        let joined = json!([step("a", &[]), step("b", &["a"])]);
        assert_eq!(composed(&joined, &[Some(json!(1)), Some(json!(2))]), json!(2));
        let fanned = json!([step("a", &[]), step("b", &["a"]), step("c", &["a"])]);
        assert_eq!(composed(&fanned, &[Some(json!(1)), Some(json!(2)), Some(json!(3))]), json!({"b": 2, "c": 3}));
    }

    /// MAOP-7: what was reached is handed over where the rest failed.
    #[test]
    fn a_partial_result_has_the_furthest_that_were_reached() {
        let diamond = json!([step("a", &[]), step("b", &["a"]), step("c", &["a"]), step("d", &["b", "c"])]);
        assert_eq!(composed(&diamond, &[Some(json!(1)), Some(json!(2)), None, None]), json!({"b": 2}));
        assert_eq!(composed(&diamond, &[Some(json!(1)), None, None, None]), json!({"a": 1}));
        assert_eq!(composed(&diamond, &[None, None, None, None]), json!({}));
    }
}
