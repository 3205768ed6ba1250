use proptest::prelude::*;
use serde_json::json;

use super::*;

fn places() -> BTreeMap<&'static str, usize> {
    BTreeMap::from([("subtask_1", 0), ("s-2", 1)])
}

fn parsed(value: &Value) -> Template {
    Template::parse(value, "/input", &places()).expect("a template")
}

fn input() -> Map<String, Value> {
    let Value::Object(fields) =
        json!({"n": 50, "text": "tell ${subtask_1.output.secret} and $${x}", "deep": {"list": [1, {"odd key": null}]}})
    else {
        unreachable!("an object was written")
    };
    fields
}

fn rendered(value: &Value) -> Result<Value, Failure> {
    let (input, output) = (input(), json!({"raw_text": "a\u{1b}b", "secret": "s", "items": [{"name": "x"}], "${parent.input.n}": 7}));
    parsed(value).render(&input, &|place| (place == 0).then_some(&output))
}

/// AITP-3: a text that is one expression takes the value with its type.
#[test]
fn a_whole_expression_keeps_the_type() {
    let value = json!({"n": "${parent.input.n}", "all": "${ parent.input }", "item": "${subtask_1.output.items[0].name}", "list": ["${parent.input.deep.list}"]});
    let made = rendered(&value).expect("values");
    assert_eq!(made, json!({"n": 50, "all": input(), "item": "x", "list": [[1, {"odd key": null}]]}));
    assert_eq!(rendered(&json!("${parent.input.deep.list[1][\"odd key\"]}")), Ok(Value::Null));
}

/// AITP-3: inside a longer text values are written out.
#[test]
fn an_expression_in_a_text_is_written_into_it() {
    let made = rendered(&json!("${parent.input.n}: ${parent.input.deep.list}, ${subtask_1.output.items[0].name}${parent.input.n}"));
    assert_eq!(made, Ok(json!("50: [1,{\"odd key\":null}], x50")));
}

/// T23: a value that reads like an expression stays what it is, in each form, and so does a key.
#[test]
fn a_value_is_never_read_as_a_template() {
    let hostile = json!("tell ${subtask_1.output.secret} and $${x}");
    assert_eq!(rendered(&json!("${parent.input.text}")), Ok(hostile.clone()));
    assert_eq!(rendered(&json!("a ${parent.input.text}")), Ok(json!(format!("a {}", hostile.as_str().expect("a text")))));
    assert_eq!(rendered(&json!({"${parent.input.n}": "${subtask_1.output[\"${parent.input.n}\"]}"})), Ok(json!({"${parent.input.n}": 7})));
}

#[test]
fn a_pair_of_dollars_is_one_before_a_brace() {
    for (template, value) in [
        ("$${parent.input.n}", json!("${parent.input.n}")),
        ("$$${parent.input.n}", json!("$50")),
        ("$$$${x}", json!("$${x}")),
        ("$ $$ $x {", json!("$ $$ $x {")),
        ("", json!("")),
    ] {
        assert_eq!(rendered(&json!(template)), Ok(value), "{template}");
    }
}

/// AITP-3: what is not there is told with the expression, its place and what is there instead.
#[test]
fn a_missing_value_is_a_failure_that_names_it() {
    for (template, why) in [
        (json!({"a": ["${parent.input.m}"]}), "`${parent.input.m}` has no value: there is no field `m`, only deep, n, text"),
        (json!("see ${parent.input.m}"), "there is no field `m`"),
        (json!({"a": "${subtask_1.output.raw_tex}"}), "there is no field `raw_tex`, only"),
        (json!({"a": "${parent.input.n.x}"}), "there is no field `x` in a number"),
        (json!({"a": "${parent.input.deep.list[2]}"}), "there is no entry 2 in a list of 2"),
        (json!({"a": "${s-2.output}"}), "a subtask that has not succeeded"),
    ] {
        let failure = rendered(&template).expect_err("missing");
        assert!(failure.message.contains(why), "{template}: {failure}");
        assert!(failure.details.contains_key("expression") && failure.details.contains_key("path"), "{failure:?}");
    }
}

#[test]
fn a_field_that_is_a_parameter_which_was_not_given_is_left_out() {
    assert_eq!(rendered(&json!({"a": "${parent.input.m}", "b": {"c": "${parent.input.deep.m.x}"}})), Ok(json!({"b": {}})));
}

/// AITP-3: what cannot be read is refused with its place and what would do.
#[test]
fn expressions_that_cannot_be_read_are_refused_with_their_place() {
    let faults = |text: &str| Template::parse(&json!({"a/b": [0, text]}), "/input", &places()).expect_err("a fault");
    for (text, told) in [
        ("${", "begins with"),
        ("${}", "begins with"),
        ("${parent}", "comes `.input`"),
        ("${parent.output.x}", "comes `.input`"),
        ("${subtask_1.input}", "comes `.output`"),
        ("${parent.input.x", "has no end"),
        ("${parent.input.}", "after a dot"),
        ("${parent.input[x]}", "in brackets"),
        ("${parent.input[-1]}", "in brackets"),
        ("${parent.input[\"x}", "JSON text"),
        ("${parent.input[0}", "in brackets"),
        ("${parent.input.a b}", "expected `.field`"),
        ("${parent.input.x + 1}", "expected `.field`"),
        ("${subtask_2.output}", "`subtask_2` is not a name"),
        (&format!("${{parent.input.{}}}", "x".repeat(600)), "longer than 512 bytes"),
        (&format!("${{parent.input{}}}", "[0]".repeat(40)), "more than 32 steps"),
    ] {
        let found = faults(text);
        assert_eq!((found.len(), found[0].path.as_str()), (1, "/input/a~1b/1"), "{text}");
        assert!(found[0].message.contains(told), "{text}: {}", found[0]);
    }
    assert_eq!(faults("${subtask_2.output}")[0].suggestion.as_deref(), Some("subtask_1"));
}

#[test]
fn depth_and_number_of_expressions_are_bounded() {
    let deep = |levels| (0..levels).fold(json!("${parent.input}"), |inner, _| json!([inner]));
    assert!(Template::parse(&deep(DEPTH_MAX), "", &places()).is_ok());
    assert!(Template::parse(&deep(DEPTH_MAX + 1), "", &places()).expect_err("too deep")[0].message.contains("32 levels"));
    assert!(Template::parse(&json!("${parent.input}".repeat(EXPRESSIONS_MAX)), "", &places()).is_ok());
    let many = json!(["${parent.input}".repeat(EXPRESSIONS_MAX + 1), "${parent.input}"]);
    assert!(Template::parse(&many, "", &places()).expect_err("too many")[0].message.contains("at most 2048 expressions"));
}

/// T23: naming a large value often does not make a huge one.
#[test]
fn what_comes_out_is_bounded() {
    let large = json!("x".repeat(1024 * 1024));
    let template = parsed(&json!("${subtask_1.output}".repeat(20)));
    let failure = template.render(&Map::new(), &|_| Some(&large)).expect_err("too large");
    assert_eq!(failure.code, ErrorCode::PayloadTooLarge);
    let deep = (0..120).fold(json!(1), |inner, _| json!([inner]));
    let nested = (0..10).fold(json!("${subtask_1.output}"), |inner, _| json!([inner]));
    assert!(parsed(&nested).render(&Map::new(), &|_| Some(&deep)).expect_err("too deep").message.contains("128 levels"));
}

proptest! {
    /// AITP-3: any text is a template or a fault.
    #[test]
    fn any_text_is_a_template_or_a_fault(text in "[$ {}\\[\\]\".a-z0-9_é\\\\]{0,60}|\\$\\{(parent\\.input|subtask_1\\.output)[$ {}\\[\\]\".a-z0-9é\\\\]{0,30}\\}?") {
        if let Ok(template) = Template::parse(&json!(text), "", &places()) {
            let _ = template.render(&input(), &|_| None);
        }
    }

    /// T23: a text gives what was written and the values that it names, in that order, and nothing else.
    #[test]
    fn a_rendered_text_is_made_of_its_parts(parts in prop::collection::vec(("[a-z ]{0,5}", ".{0,12}"), 1..8)) {
        let text: String = parts.iter().enumerate().map(|(number, (plain, _))| format!("{plain}${{parent.input[\"{number}\"]}}")).collect();
        let input: Map<String, Value> = parts.iter().enumerate().map(|(number, (_, value))| (number.to_string(), json!(value))).collect();
        let expected: String = parts.iter().flat_map(|(plain, value)| [plain.as_str(), value.as_str()]).collect();
        prop_assert_eq!(parsed(&json!(text)).render(&input, &|_| None), Ok(json!(expected)));
    }
}
