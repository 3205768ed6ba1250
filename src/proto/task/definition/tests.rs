use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::proto::task::fault::{FAULTS_MAX, Fault};

const NOW: Timestamp = Timestamp::from_ms(1_700_614_200_000);

fn read(document: &Value) -> Result<Definition, Vec<Fault>> {
    Definition::read(document, &Defaults::default(), NOW)
}

fn faults(document: &Value) -> Vec<String> {
    read(document).expect_err("faults").iter().map(Fault::to_string).collect()
}

/// The only fault.
#[track_caller]
fn fault(document: &Value) -> String {
    let found = faults(document);
    assert_eq!(found.len(), 1, "{found:?}");
    found[0].clone()
}

/// The draft's example (AITP 2.1, 2.2, 3.1, 6.2) in its own sections, indentation mended, one priority chosen, a deadline to come, and a
/// document to read.
fn draft() -> Value {
    json!({
        "Task": {
            "task_id": "task_uuid_v4",
            "name": "Research Paper Analysis",
            "description": "Analyze a research paper and extract key findings",
            "goal": "Extract key findings from the research paper including:\n- Main hypothesis\n- Methodology\n- Key results\n- Limitations\n",
            "input": {
                "type": "object",
                "properties": {
                    "paper_pdf_url": {"type": "string", "format": "uri"},
                    "max_pages": {"type": "integer", "default": 50},
                },
            },
            "output": {
                "type": "object",
                "properties": {
                    "hypothesis": {"type": "string"},
                    "methodology": {"type": "string"},
                    "results": {"type": "array", "items": {"type": "string"}},
                    "limitations": {"type": "string"},
                },
            },
            "parameters": {"paper_pdf_url": "data:,x"},
            "created_at": 1_700_614_200,
            "created_by": "agent_id_requester",
            "priority": "HIGH",
            "status": "PENDING",
        },
        "Metadata": {
            "deadline": 1_700_700_600,
            "timeout_seconds": 3600,
            "retry_policy": {"max_retries": 3, "backoff_strategy": "exponential", "backoff_base_ms": 1000},
            "cost_limit": 10.00,
            "estimated_cost": 5.50,
            "actual_cost": 0.00,
            "tags": ["research", "nlp", "analysis"],
            "dependencies": [],
        },
        "Subtasks": [
            {
                "subtask_id": "subtask_1",
                "name": "Extract Text from PDF",
                "agent_capability": "pdf_text_extraction",
                "input": {"paper_pdf_url": "${parent.input.paper_pdf_url}", "max_pages": "${parent.input.max_pages}"},
                "output_mapping": {"extracted_text": "raw_text"},
                "priority": 1,
            },
            {
                "subtask_id": "subtask_2",
                "name": "Analyze Text with NLP",
                "agent_capability": "nlp_analysis",
                "depends_on": ["subtask_1"],
                "input": {"text": "${subtask_1.output.raw_text}"},
                "output_mapping": {"analysis": "nlp_results"},
                "priority": 2,
            },
            {
                "subtask_id": "subtask_3",
                "name": "Aggregate Results",
                "agent_capability": "orchestration",
                "depends_on": ["subtask_1", "subtask_2"],
                "input": {"raw_text": "${subtask_1.output.raw_text}", "nlp_results": "${subtask_2.output.nlp_results}"},
                "output_mapping": {},
                "priority": 3,
            },
        ],
        "Fallback": {
            "on_agent_offline": {"strategy": "SELECT_NEXT_BEST"},
            "on_timeout": {"strategy": "RETRY_WITH_TIMEOUT_EXTENSION", "extended_timeout_seconds": 7200},
            "on_cost_exceeded": {"strategy": "FAIL_AND_NOTIFY", "notification": "Task exceeded budget"},
            "on_capability_unavailable": {"strategy": "DEFER"},
        },
    })
}

/// A flat document with more fields than a name and a goal.
fn flat(more: &Value) -> Value {
    let mut document = json!({"name": "n", "goal": "g"});
    if let (Value::Object(fields), Value::Object(more)) = (&mut document, more) {
        fields.extend(more.clone());
    }
    document
}

fn step(id: &str, after: &[&str]) -> Value {
    json!({"subtask_id": id, "agent_capability": "echo", "depends_on": after})
}

fn one_step(more: &Value) -> Value {
    let mut subtask = step("a", &[]);
    if let (Value::Object(fields), Value::Object(more)) = (&mut subtask, more) {
        fields.extend(more.clone());
    }
    flat(&json!({"parameters": {"text": "t"}, "subtasks": [subtask]}))
}

/// AITP-1, AITP-2, AITP-3: the draft's own example is a task, read-only fields included.
#[test]
fn the_drafts_own_example_is_read() {
    let task = read(&draft()).expect("a definition");
    assert_eq!((task.name.as_str(), task.priority), ("Research Paper Analysis", Priority::High));
    assert_eq!(task.deadline, Some(Timestamp::from_ms(1_700_700_600_000)));
    assert_eq!(task.budget, Some(Budget { amount: Decimal::from(10), currency: "USD".parse().expect("a currency") }));
    assert_eq!(task.estimated_cost, Some(Decimal::new(55, 1)));
    assert_eq!(task.parameters["max_pages"], 50, "the schema's default");
    assert_eq!(task.tags.len(), 3);
    let after: Vec<Vec<usize>> = task.subtasks.iter().map(|subtask| subtask.after.iter().copied().collect()).collect();
    assert_eq!(after, [vec![], vec![0], vec![0, 1]]);
    assert_eq!((task.order(), task.sinks()), (vec![0, 1, 2], vec![2]));
    let first = &task.subtasks[0];
    assert_eq!((first.order, first.attempt_timeout, first.retry), (1, Duration::from_secs(3_600), Defaults::default().retry));
    let input = first.input.render(&task.parameters, &|_| None).expect("an input");
    assert_eq!(input, json!({"paper_pdf_url": "data:,x", "max_pages": 50}));
    assert_eq!(task.fallback.on_timeout, OnTimeout::Extend(Some(Duration::from_secs(7_200))));
    assert_eq!(task.fallback.cost_notification.as_deref(), Some("Task exceeded budget"));
}

/// AITP-1: the shape that AITP 8.1 posts says the same as the draft's sections.
#[test]
fn the_flat_shape_and_the_sections_are_one() {
    let mut document = draft();
    let mut task = document["Task"].take();
    task["metadata"] = document["Metadata"].take();
    task["subtasks"] = document["Subtasks"].take();
    task["fallback"] = document["Fallback"].take();
    assert_eq!(read(&task), read(&draft()));
}

/// AITP-2, AITP-9: what is not said is as in the draft's examples, or as the node is configured.
#[test]
fn what_is_not_said_is_as_in_the_draft() {
    let task = read(&flat(&json!({"subtasks": [step("a", &[])]}))).expect("a definition");
    let expected = Fallback {
        on_agent_offline: OnOffline::NextBest,
        on_timeout: OnTimeout::Extend(None),
        cost_notification: None,
        on_unavailable: OnUnavailable::Defer(Duration::from_secs(300)),
        on_failure: OnFailure::Fail,
    };
    assert_eq!((task.fallback, task.priority, task.budget, task.deadline), (expected, Priority::Normal, None, None));
    let first = &task.subtasks[0];
    assert_eq!((first.name.as_str(), first.order, first.estimated_units, first.offers), ("a", 100, Decimal::ONE, false));
    let retry = first.retry;
    assert_eq!([1, 2, 3].map(|repetition| retry.pause(repetition).as_secs()), [1, 2, 4]);
    let defaults = Defaults { attempt_timeout: Duration::from_secs(10), defer: Duration::from_secs(1), ..Defaults::default() };
    let task = Definition::read(&flat(&json!({"subtasks": [step("a", &[])]})), &defaults, NOW).expect("a definition");
    assert_eq!(task.subtasks[0].extended_timeout(None), Duration::from_secs(20), "twice its own");
    assert_eq!(task.subtasks[0].extended_timeout(Some(Duration::from_secs(5))), Duration::from_secs(10), "never less");
    assert_eq!(task.fallback.on_unavailable, OnUnavailable::Defer(Duration::from_secs(1)));
}

/// AITP-2: a subtask's own word goes before the metadata's.
#[test]
fn a_subtask_has_the_metadatas_word_unless_it_has_its_own() {
    let own = json!({
        "subtask_id": "b", "agent_capability": "echo", "timeout_seconds": 0.25, "retry_policy": {"max_retries": 0}, "retry": "never",
        "min_trust_score": 12.5, "offers": false, "cost_limit": "0.001", "estimated_units": 2000, "version": "^1", "output": {"type": "string"},
    });
    let metadata = json!({"timeout_seconds": 60, "retry_policy": {"backoff_strategy": "fixed"}, "min_trust_score": 70, "offers": true, "cost_limit": {"amount": "3.10", "currency": "EUR"}});
    let task = read(&flat(&json!({"metadata": metadata, "subtasks": [step("a", &[]), own]}))).expect("a definition");
    let [a, b] = &task.subtasks[..] else { panic!("two") };
    assert_eq!(
        (a.attempt_timeout.as_millis(), a.retry.backoff, a.retry.retries_max, a.min_trust, a.offers),
        (60_000, Backoff::Fixed, 3, Some(70.0), true)
    );
    assert_eq!(
        (b.attempt_timeout.as_millis(), b.retry.backoff, b.retry.retries_max, b.min_trust, b.offers),
        (250, Backoff::Fixed, 0, Some(12.5), false)
    );
    assert_eq!((a.cost_limit, b.cost_limit, b.estimated_units), (None, Some(Decimal::new(1, 3)), Decimal::from(2_000)));
    assert!(b.retry.never && !a.retry.never && b.version.is_some());
    assert_eq!(
        task.budget.map(|budget| (budget.amount.to_string(), budget.currency.to_string())),
        Some(("3.10".to_owned(), "EUR".to_owned()))
    );
}

/// AITP-2: amounts are exact, whichever way they are written.
#[test]
fn amounts_keep_every_digit() {
    for (written, exact) in
        [("0.1", "0.1"), ("1e-7", "0.0000001"), ("\"0.10\"", "0.10"), ("1e3", "1000"), ("1000000000", "1000000000"), ("-0.0", "0.0")]
    {
        let value: Value = serde_json::from_str(written).expect("JSON");
        let budget = read(&flat(&json!({"metadata": {"cost_limit": value}}))).expect(written).budget.expect("a budget");
        assert_eq!(budget.amount, exact.parse::<Decimal>().expect("a decimal"), "{written}");
    }
}

/// AITP-1: every fault is told at once, with its place and the word that was probably meant.
#[test]
fn all_faults_are_told_at_once_with_their_places() {
    let found = faults(&json!({
        "nmae": "x",
        "priority": "URGENT",
        "input": [],
        "metadata": {"dedline": 1, "retry_policy": {"max_retries": 21, "backoff_strategy": "exponental"}, "tags": ["ok", 1]},
        "subtasks": [{"subtask_id": "a", "agent_capability": "Not A Name", "depends_on": ["b"], "input": {"x/y": "${c.output}"}}],
        "fallback": {"on_timeout": {"strategy": "RETRY"}},
    }));
    for expected in [
        "/nmae: `nmae` is not a field of a task; there are: ",
        "; did you mean `name`?",
        "/name: is missing",
        "/priority: `URGENT` is not a priority",
        "/input: is a JSON Schema, so an object, true or false, not a list",
        "/metadata/dedline: `dedline` is not a field of metadata; there are: deadline",
        "/metadata/retry_policy/max_retries: is a whole number from 0 to 20, not 21",
        "did you mean `exponential`?",
        "/metadata/tags/1: is a text, not a number",
        "/subtasks/0/agent_capability: `Not A Name` is not a capability name",
        "/subtasks/0/depends_on/0: `b` is not a subtask of this task; there is: a",
        "/subtasks/0/input/x~1y: `c` is not a name that an expression may begin with",
        "/fallback/on_timeout/strategy: `RETRY` is not one of the words",
    ] {
        assert!(found.iter().any(|fault| fault.contains(expected)), "{expected}: {found:#?}");
    }
    let many: Map<String, Value> = (0..1_000).map(|number| (format!("x{number}"), json!(1))).collect();
    assert_eq!(faults(&Value::Object(many)).len(), FAULTS_MAX);
}

/// AITP-2: negative and absurd budgets and times are refused, and the bound is named.
#[test]
fn absurd_budgets_and_times_are_refused_with_the_bound() {
    for (metadata, told) in [
        (json!({"cost_limit": -1}), "/metadata/cost_limit: is 0 to 1000000000, not -1"),
        (json!({"cost_limit": "-0.01"}), "is 0 to 1000000000"),
        (json!({"cost_limit": 1_000_000_001}), "is 0 to 1000000000"),
        (json!({"cost_limit": 1e300}), "is not a decimal number"),
        (json!({"cost_limit": 1e-300}), "is not a decimal number"),
        (json!({"cost_limit": "NaN"}), "`NaN` is not a decimal number"),
        (json!({"cost_limit": "1e3"}), "is not a decimal number"),
        (json!({"cost_limit": "Infinity"}), "is not a decimal number"),
        (json!({"cost_limit": null}), "not null"),
        (json!({"cost_limit": {"currency": "USD"}}), "/metadata/cost_limit/amount: is missing"),
        (json!({"cost_limit": {"amount": 1, "currency": "XYZ"}}), "`XYZ` is not a currency of ISO 4217"),
        (json!({"cost_limit": {"amount": 1, "currency": "eur"}}), "did you mean EUR?"),
        (json!({"cost_limit": {"amount": 1, "currency": "tokens"}}), "is not a currency"),
        (json!({"estimated_cost": "a lot"}), "/metadata/estimated_cost"),
        (json!({"timeout_seconds": 0}), "is a time of 0.001 to 604800 seconds, not 0"),
        (json!({"timeout_seconds": -5}), "not -5"),
        (json!({"timeout_seconds": 604_801}), "is a time of 0.001 to 604800"),
        (json!({"timeout_seconds": "60"}), "is a number, not a text"),
        (json!({"retry_policy": {"max_retries": 1.5}}), "a whole number from 0 to 20"),
        (json!({"retry_policy": {"backoff_base_ms": 3_600_001}}), "a whole number from 0 to 3600000"),
        (json!({"retry": "always"}), "there is: never"),
        (json!({"min_trust_score": 101}), "is 0 to 100, not 101"),
        (json!({"offers": 1}), "is true or false, not a number"),
        (json!({"deadline": 1_700_614_200}), "lies in the past: 2023-11-22T00:50:00Z"),
        (json!({"deadline": -1}), "lies in the past"),
        (json!({"deadline": "2023-11-21T00:00:00Z"}), "lies in the past"),
        (json!({"deadline": 1_700_700_600_000_u64}), "Unix time is in seconds"),
        (json!({"deadline": 1e28}), "more than a year ahead"),
        (json!({"deadline": "tomorrow"}), "`tomorrow` is not a time"),
        (json!({"deadline": []}), "not a list"),
        (json!({"tags": vec!["x"; 33]}), "has at most 32 entries, not 33"),
        (json!({"tags": ["x".repeat(65)]}), "/metadata/tags/0: has 1 to 64 characters, not 65"),
        (json!({"tags": ["\u{1b}[31m"]}), "printable"),
        (json!({"dependencies": ["task_uuid"]}), "/metadata/dependencies/0: `task_uuid` is not a task id"),
        (json!([]), "/metadata: metadata is an object, not a list"),
    ] {
        let found = fault(&flat(&json!({"metadata": metadata})));
        assert!(found.contains(told), "{metadata}: {found}");
    }
    assert!(read(&flat(&json!({"metadata": {"deadline": "2023-11-22T02:00:00+01:00", "cost_limit": 0}}))).is_ok());
}

#[test]
fn texts_and_values_have_bounds_and_kinds() {
    for (more, told) in [
        (json!({"name": ""}), "/name: has 1 to 200 characters, not 0"),
        (json!({"name": "x".repeat(201)}), "not 201"),
        (json!({"name": "a\nb"}), "on one line"),
        (json!({"name": 1}), "is a text, not a number"),
        (json!({"description": "x".repeat(4_001)}), "/description"),
        (json!({"goal": "x".repeat(16_001)}), "/goal"),
        (json!({"parameters": [1]}), "/parameters: is an object with the task's values, not a list"),
        (json!({"output": "text"}), "/output: is a JSON Schema"),
        (json!({"subtasks": {}}), "/subtasks: is a list, not an object"),
        (json!({"fallback": {"on_timeout": {}}}), "/fallback/on_timeout/strategy: is missing"),
        (json!({"metadata": {"timeout_seconds": -1e28}}), "/metadata/timeout_seconds: is a time of 0.001 to"),
        (json!({"subtasks": [{"subtask_id": "a", "agent_capability": "echo", "timeout_seconds": -1e28}]}), "/subtasks/0/timeout_seconds"),
        (json!({"fallback": {"on_timeout": {"strategy": "FAIL_AND_NOTIFY", "extended_timeout_seconds": 9000}}}), "does not wait"),
        (json!({"fallback": {"on_agent_offline": {"strategy": "DEFER"}}}), "there are: SELECT_NEXT_BEST, FAIL_AND_NOTIFY"),
        (json!({"fallback": {"on_subtask_failed": {"strategy": "DEGRADE", "x": 1}}}), "/fallback/on_subtask_failed/x"),
    ] {
        let found = fault(&flat(&more));
        assert!(found.contains(told), "{more}: {found}");
    }
    for document in [json!(null), json!([]), json!("task"), json!({"Task": 1}), json!({"Task": {}, "metadata": {}})] {
        assert!(read(&document).is_err(), "{document}");
    }
    assert!(faults(&json!({"Task": {"name": "n", "goal": "g"}, "metadata": {}}))[0].contains("did you mean `Metadata`?"));
    assert!(fault(&json!({"name": "n"})).contains("a task has `subtasks` to run, or a `goal`"));
    assert!(fault(&json!({"Task": {"name": "n"}, "Subtasks": []})).contains("a task has `Subtasks` to run"));
}

/// AITP-9: each strategy is read.
#[test]
fn fallbacks_are_read() {
    let task = read(&flat(&json!({"fallback": {
        "on_agent_offline": {"strategy": "FAIL_AND_NOTIFY"},
        "on_timeout": {"strategy": "SELECT_NEXT_BEST"},
        "on_capability_unavailable": {"strategy": "DEFER", "retry_after_seconds": 5},
        "on_subtask_failed": {"strategy": "DEGRADE"},
    }})));
    let fallback = task.expect("a definition").fallback;
    assert_eq!((fallback.on_agent_offline, fallback.on_timeout), (OnOffline::Fail, OnTimeout::Retry));
    assert_eq!((fallback.on_unavailable, fallback.on_failure), (OnUnavailable::Defer(Duration::from_secs(5)), OnFailure::Degrade));
}

/// AITP-3: what subtasks may not say.
#[test]
fn subtasks_that_cannot_run_are_refused() {
    for (more, told) in [
        (json!({"subtask_id": "parent"}), "/subtasks/0/subtask_id: `parent` is not a name of a subtask"),
        (json!({"subtask_id": 1}), "is a text, not a number"),
        (json!({"depends_on": ["a"]}), "/subtasks/0/depends_on/0: `a` is this subtask"),
        (json!({"input": "${a.output}"}), "/subtasks/0/input: names `a`, which is this subtask"),
        (
            json!({"input": {"x": "${parent.input.txet}"}}),
            "/subtasks/0/input/x: `txet` is not given in `parameters` or described in `input`; there is: text; did you mean `text`?",
        ),
        (json!({"input": {"x": "${parent.input.text.y}"}}), "there is no field `y` in a text"),
        (json!({"output_mapping": {"x": "n", "y": "n"}}), "/subtasks/0/output_mapping/y: `n` is what another field is called"),
        (json!({"output_mapping": {"x": 1}}), "is a text, not a number"),
        (json!({"output_mapping": []}), "is an object of names"),
        (json!({"priority": "HIGH"}), "/subtasks/0/priority: is a number, not a text"),
        (json!({"agent": "somebody"}), "is not an agent id"),
        (json!({"version": "not one"}), "/subtasks/0/version"),
        (json!({"estimated_units": -1}), "is 0 to 1000000000"),
        (json!({"cost_limit": {"amount": 1, "currency": "EUR"}}), ""),
        (json!({"capability": "echo"}), "did you mean `agent_capability`?"),
    ] {
        match read(&one_step(&more)) {
            Ok(_) => assert!(told.is_empty(), "{more}"),
            Err(found) => assert!(!told.is_empty() && found[0].to_string().contains(told), "{more}: {found:?}"),
        }
    }
    let two = json!({"metadata": {"cost_limit": 1}, "subtasks": [{"subtask_id": "a", "agent_capability": "echo", "cost_limit": {"amount": 1, "currency": "EUR"}}]});
    assert!(fault(&flat(&two)).contains("is in EUR, and the task's cost_limit in USD"));
    assert!(
        fault(&flat(&json!({"subtasks": [step("a", &[]), step("a", &[])]})))
            .contains("/subtasks/1/subtask_id: `a` is the name of subtask 0 already")
    );
    let mapped = json!([{"subtask_id": "a", "agent_capability": "echo", "output_mapping": {"x": "raw_text"}}, {"subtask_id": "b", "agent_capability": "echo", "input": "${a.output.raw_tex}"}]);
    assert!(fault(&flat(&json!({"subtasks": mapped}))).contains("did you mean `raw_text`?"));
}

/// AITP-3: a parameter that was not given may be named where it may be left out, and nowhere else.
#[test]
fn a_described_parameter_may_be_left_out_of_a_field_and_of_nothing_else() {
    let described = |input: Value| {
        flat(&json!({
            "input": {"properties": {"opt": {"type": "string"}, "object": {"type": "object"}}},
            "subtasks": [{"subtask_id": "a", "agent_capability": "echo", "input": input}],
        }))
    };
    assert!(read(&described(json!({"x": "${parent.input.opt}", "y": "${parent.input.object.z}"}))).is_ok());
    for input in [json!("${parent.input.opt}"), json!(["${parent.input.opt}"]), json!({"x": "see ${parent.input.opt}"})] {
        assert!(fault(&described(input)).contains("or a default in `input`"));
    }
}

/// AITP-3: a circle is refused, and told.
#[test]
fn circles_are_told() {
    let round = json!([step("a", &["b"]), {"subtask_id": "b", "agent_capability": "echo", "input": {"x": "${a.output}"}}]);
    assert_eq!(
        fault(&flat(&json!({"subtasks": round}))),
        "/subtasks/0/depends_on: goes round in a circle, in which each waits for the next: a -> b -> a"
    );
}

/// AITP-3: the limit is named before any of them is looked at.
#[test]
fn too_many_subtasks_are_refused_with_the_limit() {
    assert_eq!(fault(&flat(&json!({"subtasks": vec![json!(0); 10_000]}))), "/subtasks: has at most 2000 entries, not 10000");
    let ids: Vec<String> = (0..SUBTASKS_MAX).map(|number| format!("s{number}")).collect();
    let chain: Vec<Value> = ids
        .iter()
        .enumerate()
        .map(|(at, id)| step(id, &at.checked_sub(1).map(|at| ids[at].as_str()).into_iter().collect::<Vec<_>>()))
        .collect();
    assert_eq!(read(&flat(&json!({"subtasks": chain}))).expect("a chain").order().len(), SUBTASKS_MAX);
    let all: Vec<&str> = ids.iter().map(String::as_str).collect();
    let dense: Vec<Value> = ids.iter().enumerate().map(|(at, id)| step(id, &all[..at])).collect();
    assert!(fault(&flat(&json!({"subtasks": dense}))).contains("more than 200000 dependencies"));
}

/// AITP-4: a plan is read as its author's own subtasks would be.
#[test]
fn a_plan_is_read_like_subtasks_that_were_written() {
    let goal = read(&flat(&json!({"parameters": {"text": "t"}, "metadata": {"timeout_seconds": 7}}))).expect("a goal");
    let plan = json!([{"subtask_id": "a", "agent_capability": "echo", "input": "${parent.input.text}"}, step("b", &["a"])]);
    let planned = goal.with_subtasks(&plan).expect("a plan");
    assert_eq!((planned.subtasks.len(), planned.subtasks[0].attempt_timeout.as_secs(), planned.goal.as_deref()), (2, 7, Some("g")));
    for plan in [
        json!([]),
        json!({}),
        json!(null),
        json!([step("a", &["a"])]),
        json!([{"subtask_id": "a", "agent_capability": "echo", "input": "${parent.input.x}"}]),
    ] {
        assert!(goal.with_subtasks(&plan).expect_err("no plan")[0].path.starts_with("/subtasks"), "{plan}");
    }
}

/// Values of every kind, with the words of a definition among their keys.
fn any_value() -> impl Strategy<Value = Value> {
    let text = prop_oneof![
        "[ -~]{0,12}",
        Just("${parent.input.a}".to_owned()),
        Just("${a.output}".to_owned()),
        Just("a".to_owned()),
        Just("echo".to_owned())
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        text.prop_map(Value::from)
    ];
    leaf.prop_recursive(6, 64, 6, |inner| {
        let key = prop::sample::select(vec![
            "name",
            "goal",
            "input",
            "output",
            "parameters",
            "priority",
            "metadata",
            "subtasks",
            "fallback",
            "Task",
            "Metadata",
            "Subtasks",
            "deadline",
            "timeout_seconds",
            "retry_policy",
            "cost_limit",
            "amount",
            "currency",
            "tags",
            "subtask_id",
            "agent_capability",
            "depends_on",
            "output_mapping",
            "on_timeout",
            "strategy",
            "properties",
            "default",
            "a",
            "~/",
        ]);
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            prop::collection::vec((key, inner), 0..8)
                .prop_map(|fields| Value::Object(fields.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())),
        ]
    })
}

/// AMP-9: a task names a context, and each step has what it says of it, else what the task says.
#[test]
fn a_task_names_a_context_and_its_steps_what_they_do_with_it() {
    let id = "0a".repeat(32);
    let whole = json!({"id": id, "access": "write", "path": "/shared_memory/plan", "agent": "editor"});
    let steps = json!([step("a", &[]), {"subtask_id": "b", "agent_capability": "echo", "context": "read"},
        {"subtask_id": "c", "agent_capability": "echo", "context": "none"},
        {"subtask_id": "d", "task": {"name": "inner", "context": id, "subtasks": [step("a", &[])]}}]);
    let task = read(&flat(&json!({"context": whole, "subtasks": steps}))).expect("a definition");
    let context = task.context.as_ref().expect("a context");
    assert_eq!(
        (context.id.to_string(), context.access, context.path.to_string()),
        (id.clone(), ContextAccess::Write, "/shared_memory/plan".to_owned())
    );
    assert_eq!(context.agent.as_deref(), Some("editor"));
    let accesses = |task: &Definition| task.subtasks.iter().map(|subtask| subtask.context).collect::<Vec<_>>();
    assert_eq!(accesses(&task), [Some(ContextAccess::Write), Some(ContextAccess::Read), None, None]);
    let plan = json!([step("a", &[]), {"subtask_id": "b", "agent_capability": "echo", "context": "none"}]);
    assert_eq!(accesses(&task.with_subtasks(&plan).expect("a plan")), [Some(ContextAccess::Write), None]);

    let short = read(&flat(&json!({"context": id, "subtasks": [step("a", &[])]}))).expect("a definition");
    assert_eq!(
        short.context,
        Some(TaskContext { id: context.id, access: ContextAccess::Read, path: crate::model::Path::shared(), agent: None })
    );
    assert_eq!(accesses(&read(&flat(&json!({"subtasks": [step("a", &[])]}))).expect("a definition")), [None]);
}

#[test]
fn a_fault_in_what_is_said_of_a_context_is_told_with_its_place() {
    let id = "0a".repeat(32);
    let private = format!("/agent_memory/{}/x", AgentId::from_public_key([7; 32]));
    for (context, place) in [
        (json!("0a"), "/context"),
        (json!(7), "/context"),
        (json!({"access": "read"}), "/context/id"),
        (json!({"id": "x"}), "/context/id"),
        (json!({"id": id, "access": "none"}), "/context/access"),
        (json!({"id": id, "path": "plan"}), "/context/path"),
        (json!({"id": id, "path": private}), "/context/path"),
        (json!({"id": id, "agent": ""}), "/context/agent"),
        (json!({"id": id, "acess": "write"}), "/context/acess"),
    ] {
        let told = fault(&flat(&json!({"context": context, "subtasks": [step("a", &[])]})));
        assert!(told.starts_with(&format!("{place}: ")), "{told}");
    }
    let inner = json!({"name": "inner", "subtasks": [step("a", &[])]});
    for (context, subtask, place) in [
        (json!(null), json!({"agent_capability": "echo", "context": "read"}), "/subtasks/0/context"),
        (json!(id), json!({"agent_capability": "echo", "context": "write"}), "/subtasks/0/context"),
        (json!(id), json!({"agent_capability": "echo", "context": "all"}), "/subtasks/0/context"),
        (json!(id), json!({"task": inner, "context": "read"}), "/subtasks/0/context"),
    ] {
        let mut document = flat(&json!({"subtasks": [with_id(subtask)]}));
        if !context.is_null() {
            document["context"] = context;
        }
        let told = fault(&document);
        assert!(told.starts_with(&format!("{place}: ")), "{told}");
    }
}

fn with_id(mut subtask: Value) -> Value {
    subtask["subtask_id"] = "a".into();
    subtask
}

proptest! {
    /// AITP-1: any document is a definition or a bounded list of faults, and reading it never panics.
    #[test]
    fn any_document_is_a_definition_or_faults(document in any_value(), metadata in any_value(), subtask in any_value()) {
        for document in [document.clone(), flat(&json!({"metadata": metadata, "input": document, "subtasks": [subtask, step("a", &[])]}))] {
            if let Err(found) = read(&document) {
                prop_assert!((1..=FAULTS_MAX).contains(&found.len()));
                prop_assert!(found.iter().all(|fault| fault.path.starts_with('/') && fault.message.len() < 2_000));
            }
        }
    }

    /// AITP-3: the graph is what `depends_on` and the expressions say, whatever the order in which subtasks stand.
    #[test]
    fn the_graph_is_what_was_written(
        edges in prop::collection::btree_map((0..20_usize, 0..20_usize), any::<bool>(), 0..60),
        places in Just((0..20_usize).collect::<Vec<_>>()).prop_shuffle(),
    ) {
        let edges: BTreeMap<(usize, usize), bool> = edges.into_iter().filter(|((from, to), _)| from < to).collect();
        let mut written = vec![Value::Null; 20];
        for (number, place) in places.iter().enumerate() {
            let needed = |by_name: bool| edges.iter().filter(move |((_, to), named)| *to == number && **named == by_name).map(|((from, _), _)| *from);
            let depends_on: Vec<String> = needed(true).map(|from| format!("s{from}")).collect();
            let input: Vec<String> = needed(false).map(|from| format!("${{s{from}.output}}")).collect();
            written[*place] = json!({"subtask_id": format!("s{number}"), "agent_capability": "echo", "depends_on": depends_on, "input": input});
        }
        let task = read(&flat(&json!({"subtasks": written}))).expect("a graph without circles");
        let found: BTreeSet<(usize, usize)> =
            (0..20).flat_map(|to| { let after = task.subtasks[places[to]].after.clone(); (0..20).filter(move |from| after.contains(from)).map(move |from| (from, to)).collect::<Vec<_>>() }).collect();
        let expected: BTreeSet<(usize, usize)> = edges.keys().map(|(from, to)| (places[*from], *to)).collect();
        prop_assert_eq!(found, expected);
    }
}
