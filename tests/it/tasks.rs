//! Tasks of several steps, as people and programs submit, watch and finish them: the draft's own example, steps that run at once, values
//! that pass from step to step, what it costs, and the doors. What goes wrong is in `task_faults`, what is refused in `task_bad_input`.

use std::{
    fs,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use futures::future::join_all;
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{
    Node, SETTLE, builtin, eventually, script,
    tasks::{Workshop, planner, step, task},
    with, within,
};

/// The draft's own example.
const EXAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/node-config/tasks/research-paper.yaml");

/// Three nodes, each with one of the agents that the example needs, and one that asks.
async fn example_mesh() -> (Node, [Node; 3]) {
    let desk = Node::first().await;
    let host = |name, kind| Node::builder().join(&desk).agent(builtin(name, kind)).spawn();
    let (library, study, office) =
        tokio::join!(host("extractor", "pdf_text_extraction"), host("analyst", "nlp_analysis"), host("clerk", "orchestration"));
    for (capability, name) in [("pdf_text_extraction", "extractor"), ("nlp_analysis", "analyst"), ("orchestration", "clerk")] {
        desk.knows(capability, &[name]).await;
    }
    (desk, [library, study, office])
}

/// AITP-3, AITP-11, MAOP-4: the draft's example runs over three nodes, as a person runs it, and what it gives is what a program gets.
#[tokio::test]
async fn the_example_of_the_draft_runs_over_three_nodes() {
    let (desk, hosts) = example_mesh().await;

    let plan = desk.cli(&["task", "plan", EXAMPLE]).await;
    for words in ["subtask_1", "extractor@", "subtask_2", "analyst@", "subtask_3", "clerk@", "estimated cost"] {
        assert!(plan.text().contains(words), "{words}: {plan:?}");
    }
    let result = desk.cli(&["task", "run", EXAMPLE]).await.json();
    assert!(result["result"]["raw_text"].as_str().is_some_and(|text| text.len() > 500), "{result}");
    assert!(result["result"]["nlp_results"].is_object(), "{result}");

    let listed = desk.cli(&["task", "list", "--tag", "nlp", "--json"]).await.json();
    let id = listed["tasks"][0]["task_id"].as_str().expect("an id").to_owned();
    let status = desk.task(&id).await;
    assert_eq!(
        (&status["status"], &status["outcome"], &status["home_node_id"]),
        (&json!("COMPLETED"), &json!("success"), &json!(desk.id()))
    );
    assert_eq!((&status["progress"]["percent_complete"], &status["current_step"]), (&json!(100), &json!(3)));
    let steps = status["progress"]["steps"].as_array().expect("steps");
    let nodes: Vec<&Value> = steps.iter().map(|step| &step["node_id"]).collect();
    assert_eq!(nodes, hosts.iter().map(Node::id).collect::<Vec<_>>(), "each step where its agent is");
    assert_eq!(steps.iter().map(|step| &step["status"]).collect::<Vec<_>>(), ["SUCCESS"; 3]);
    let document = desk.get(&format!("/aitp/tasks/{id}/result")).await.ok();
    assert_eq!((&document["result"], &document["status"], &document["cost"]), (&result, &json!("COMPLETED"), &json!(0)), "{document}");
    assert!(document["execution_time_ms"].as_u64().is_some_and(|ms| ms < 60_000), "{document}");
    assert_eq!(document["ledger"]["budget"], 10, "{document}");
}

/// AITP-7, AITP-11: the shapes of the draft, over HTTP.
#[tokio::test]
async fn a_task_is_submitted_read_and_finished_over_http() {
    let workshop = Workshop::new();
    let node = planner().agent(workshop.worker("worker", "test.work", json!({}))).spawn().await;
    node.knows("test.work", &["worker"]).await;
    let document = with(
        task(&[step("a", "test.work", json!({ "until": "go", "output": { "n": 1 } }))]),
        json!({ "description": "d", "goal": "g", "created_by": "somebody", "priority": "HIGH", "metadata": { "tags": ["x", "y"] } }),
    );

    let response = node.request(Method::POST, "/aitp/tasks").json(&document).send().await.expect("the node answers");
    assert_eq!(response.status().as_u16(), 201);
    let place = response.headers()["location"].to_str().expect("text").to_owned();
    let receipt: Value = response.json().await.expect("JSON");
    let id = receipt["task_id"].as_str().expect("an id");
    assert_eq!((&receipt["status"], place), (&json!("PENDING"), format!("/aitp/tasks/{id}")), "{receipt}");
    assert!(receipt["created_at"].as_u64().is_some_and(|at| at > 1_700_000_000 && at < 100_000_000_000), "Unix seconds: {receipt}");

    workshop.until("started", 1).await;
    let error = node.get(&format!("/aitp/tasks/{id}/result")).await.refused(425, "NOT_FINISHED");
    assert!(error["details"]["retry_after_ms"].is_u64(), "{error}");
    let running = node.until_step(id, "a", |step| step["status"] == "EXECUTING").await;
    assert_eq!(
        (&running["agent"], &running["attempt"], &running["completed_at"]),
        (&json!("worker"), &json!(1), &Value::Null),
        "{running}"
    );
    let status = node.get(&format!("/aitp/tasks/{id}")).await.ok();
    assert_eq!((&status["status"], &status["current_step"], &status["cost_so_far"]), (&json!("EXECUTING"), &json!(1), &json!(0)));
    for (field, value) in [("description", "d"), ("goal", "g"), ("created_by", "somebody"), ("priority", "HIGH")] {
        assert_eq!(status[field], value, "{status}");
    }
    assert!(status["progress"]["steps"][0].get("attempts").is_none(), "only who asks for explanations gets them: {status}");

    workshop.release("go");
    let result = node.result(id).await;
    assert_eq!((&result["task_id"], &result["status"], &result["outcome"]), (&json!(id), &json!("COMPLETED"), &json!("success")));
    assert_eq!((&result["result"], &result["error"]), (&json!({ "n": 1 }), &Value::Null));
    // The first characters of an id name it, here as on the command line.
    assert_eq!(node.get(&format!("/aitp/tasks/{}", &id[..8])).await.ok()["task_id"], *id);
}

/// AITP-6, MAOP-4: steps that do not need each other run at once, here and on another node, and the one that needs them all begins last.
#[tokio::test]
async fn steps_that_do_not_need_each_other_run_at_once() {
    let workshop = Workshop::new();
    let node = planner().agent(workshop.worker("here", "test.here", json!({}))).spawn().await;
    let _other = Node::builder().join(&node).agent(workshop.worker("there", "test.there", json!({}))).spawn().await;
    node.knows("test.there", &["there"]).await;
    // Each waits until all three have begun, so one after the other would never end.
    let part = |id: &str, capability: &str| step(id, capability, json!({ "meet": 3, "output": { "name": id } }));
    let joined =
        step("joined", "test.here", json!({ "mark": "last", "output": ["${a.output.name}", "${b.output.name}", "${c.output.name}"] }));

    let result = node.run_task(&task(&[part("a", "test.here"), part("b", "test.there"), part("c", "test.there"), joined])).await;

    assert_eq!(result["result"], json!(["a", "b", "c"]), "{result}");
    assert_eq!(workshop.notes("started")[3]["input"]["mark"], "last");
}

/// AITP-3, MAOP-12: several steps that nobody waits for make one result, by their names.
#[tokio::test]
async fn a_task_with_several_ends_gives_each_by_its_name() {
    let workshop = Workshop::new();
    let node = planner().agent(workshop.worker("worker", "test.work", json!({}))).spawn().await;
    node.knows("test.work", &["worker"]).await;
    let mapped = with(step("left", "test.work", json!({ "output": { "n": 1, "m": 2 } })), json!({ "output_mapping": { "n": "number" } }));
    let waits = with(step("right", "test.work", json!({ "output": "later" })), json!({ "depends_on": ["first"] }));

    let result = node.run_task(&task(&[step("first", "test.work", json!({ "output": 0 })), mapped, waits])).await;

    assert_eq!(result["result"], json!({ "left": { "number": 1 }, "right": "later" }), "{result}");
}

/// AITP-1: the values of a run are held against the task's schema, its defaults filled in, and so is what comes out.
#[tokio::test]
async fn values_and_results_are_held_against_the_tasks_own_schemas() {
    let workshop = Workshop::new();
    let node = planner().agent(workshop.worker("worker", "test.work", json!({}))).spawn().await;
    node.knows("test.work", &["worker"]).await;
    let schemas = json!({
        "input": { "type": "object", "required": ["text"], "properties": {
            "text": { "type": "string" }, "many": { "type": "integer", "default": 50 } } },
        "output": { "type": "object", "required": ["n"], "properties": { "n": { "type": "integer" } } },
    });
    let document = |text: Value, n: Value| {
        let input = json!({ "output": { "n": n, "said": "${parent.input.text}: ${parent.input.many}" } });
        with(task(&[step("a", "test.work", input)]), with(schemas.clone(), json!({ "parameters": { "text": text } })))
    };

    let good = node.run_task(&document(json!("hello"), json!("${parent.input.many}"))).await;
    assert_eq!(good["result"], json!({ "n": 50, "said": "hello: 50" }), "{good}");
    let error = node.post("/aitp/tasks", &document(json!(7), json!(1))).await.refused(400, "INVALID_REQUEST");
    assert!(
        error["details"]["path"] == "/parameters/text" && error["message"].as_str().is_some_and(|text| text.contains("parameters")),
        "{error}"
    );
    let bad = node.run_task(&document(json!("hello"), json!("many"))).await;
    assert_eq!((&bad["status"], &bad["reason"], &bad["result"]), (&json!("FAILED"), &json!("INVALID_OUTPUT"), &Value::Null), "{bad}");
    assert_eq!((&bad["error"]["code"], &bad["error"]["details"]["path"]), (&json!("INVALID_SCHEMA"), &json!("/n")), "{bad}");
}

/// AITP-1, AITP-6: an agent's output that does not match the step's schema is no success; the next attempt may be.
#[tokio::test]
async fn an_output_that_does_not_fit_is_tried_again() {
    let workshop = Workshop::new();
    let node = planner()
        .agent(workshop.worker("wrong", "test.work", json!({ "constraints": { "response_time_ms": 1 } })))
        .agent(script("right", "echo.py", &[], json!({ "id": "test.work", "constraints": { "response_time_ms": 900 } })))
        .spawn()
        .await;
    node.knows("test.work", &["right", "wrong"]).await;
    // The worker gives what `output` says; the other gives the whole of its input, which has the field.
    let typed = json!({ "output": { "type": "object", "required": ["field"] }, "retry_policy": { "backoff_base_ms": 1 } });
    let document = task(&[with(step("a", "test.work", json!({ "output": {}, "field": 1 })), typed)]);

    let id = node.submit(&document).await;
    let result = node.result(&id).await;

    assert_eq!((&result["outcome"], &result["result"]["field"]), (&json!("success"), &json!(1)), "{result}");
    let step = node.step(&id, "a").await;
    assert_eq!((&step["attempt"], &step["agent"], &step["retries"]), (&json!(2), &json!("right"), &json!(1)), "{step}");
    assert_eq!(step["attempts"][0]["error"]["code"], "INVALID_SCHEMA", "{step}");
}

/// AITP-3, threat T23: a value is never read again: what looks like an expression is passed on as the text that it is.
#[tokio::test]
async fn values_that_look_like_templates_stay_what_they_are() {
    let workshop = Workshop::new();
    let node = planner().agent(workshop.worker("worker", "test.work", json!({}))).spawn().await;
    node.knows("test.work", &["worker"]).await;
    let hostile = "${parent.input.secret} ${a.output} $${x} ${";
    let document = with(
        task(&[
            step("a", "test.work", json!({ "output": { "said": "${parent.input.text}" } })),
            step("b", "test.work", json!({ "output": { "whole": "${a.output}", "part": "<${a.output.said}>" } })),
        ]),
        json!({ "parameters": { "text": hostile, "secret": "do not tell" } }),
    );

    let result = node.run_task(&document).await;

    assert_eq!(result["result"], json!({ "whole": { "said": hostile }, "part": format!("<{hostile}>") }), "{result}");
    assert!(!result.to_string().contains("do not tell"), "{result}");
}

/// AITP-3: a value keeps its type where it stands alone and becomes text within a text.
#[tokio::test]
async fn values_keep_their_types() {
    let workshop = Workshop::new();
    let node = planner().agent(workshop.worker("worker", "test.work", json!({}))).spawn().await;
    node.knows("test.work", &["worker"]).await;
    let values = json!({ "n": 1.5, "big": 12_345_678_901_234_567_u64, "list": [1, { "x": null }], "no": false, "text": "grüße \u{1f980}" });
    let given = json!({ "same": "${parent.input}", "inside": "${parent.input.n} ${parent.input.no}", "deep": "${parent.input.list[1].x}" });
    let first = step("a", "test.work", json!({ "output": given }));
    let second = step("b", "test.work", json!({ "output": "${a.output}" }));

    let result = node.run_task(&with(task(&[first, second]), json!({ "parameters": values }))).await;

    assert_eq!(result["result"], json!({ "same": values, "inside": "1.5 false", "deep": null }), "{result}");
}

/// AITP-4, MAOP-12, AITP-10: a goal alone is given to an agent that decomposes, for no more than its author pays, and its plan is run like any
/// other.
#[tokio::test]
async fn a_goal_is_decomposed_by_an_agent_and_run() {
    let workshop = Workshop::new();
    let steps = json!([
        step("words", "test.work", json!({ "output": { "said": "${parent.input.text}" } })),
        step("sum", "test.work", json!({ "output": "${words.output.said}!" })),
    ]);
    let plan = |name: &str, subtasks: &Value| {
        let agent = "import json, sys\nfor line in sys.stdin:\n    call = json.loads(line)\n    if 'cancel' not in call:\n        print(json.dumps({'id': call['id'], 'output': {'subtasks': json.loads(sys.argv[1])}}), flush=True)\n";
        let command = json!(["python3", "-c", agent, subtasks.to_string()]);
        let priced = json!({ "id": "task-decomposition", "price": { "amount": "0.3", "currency": "USD" } });
        json!({ "name": name, "adapter": { "type": "process", "command": command }, "capability": [priced] })
    };
    let node = planner().agent(workshop.worker("worker", "test.work", json!({}))).spawn().await;
    let goal = json!({ "name": "A goal", "goal": "Say it louder.", "parameters": { "text": "well" } });
    node.knows("test.work", &["worker"]).await;

    let nobody = node.run_task(&goal).await;
    assert_eq!((&nobody["status"], &nobody["reason"]), (&json!("FAILED"), &json!("NO_PLAN")), "{nobody}");
    assert!(nobody["error"]["message"].as_str().is_some_and(|text| text.contains("task-decomposition")), "{nobody}");

    node.post("/v1/agents", &plan("planner", &steps)).await.ok();
    node.knows("task-decomposition", &["planner"]).await;
    let planned = node.post("/aitp/tasks/plan", &goal).await.ok();
    assert_eq!((&planned["decomposed_by"], &planned["subtasks"][1]["after"]), (&json!("agent"), &json!(["words"])), "{planned}");
    let id = node.submit(&goal).await;
    let result = node.result(&id).await;
    assert_eq!((&result["outcome"], &result["result"]), (&json!("success"), &json!("well!")), "{result}");
    assert_eq!(node.task(&id).await["progress"]["total_steps"], 2);
    let bill = &result["ledger"]["entries"][0];
    assert_eq!((&result["cost"], &bill["unit"], &bill["subtask_id"]), (&json!(0.3), &json!("plan"), &Value::Null), "{result}");
    let poor = node.run_task(&with(goal.clone(), json!({ "metadata": { "cost_limit": "0.2" } }))).await;
    assert_eq!((&poor["reason"], &poor["cost"]), (&json!("NO_PLAN"), &json!(0)), "{poor}");
    node.delete("/v1/agents/planner").await.ok();

    let bad = json!([step("a", "test.work", json!("${nobody.output}"))]);
    node.post("/v1/agents", &plan("careless", &bad)).await.ok();
    node.knows("task-decomposition", &["careless"]).await;
    let refused = node.run_task(&goal).await;
    assert_eq!(
        (&refused["reason"], refused["error"]["message"].as_str().is_some_and(|text| text.contains("cannot be run"))),
        (&json!("NO_PLAN"), true)
    );
}

/// AITP-10: what a plan would cost is told for each currency, since nothing is converted.
#[tokio::test]
async fn a_plan_adds_up_no_two_currencies() {
    let workshop = Workshop::new();
    let price = |amount: &str, currency: &str| json!({ "price": { "amount": amount, "currency": currency, "unit": "request" } });
    let node = planner()
        .agent(workshop.worker("dollars", "test.dollars", price("0.02", "USD")))
        .agent(workshop.worker("euros", "test.euros", price("0.5", "EUR")))
        .agent(workshop.worker("free", "test.free", json!({})))
        .spawn()
        .await;
    node.knows("test.free", &["free"]).await;
    let steps = ["dollars", "euros", "dollars", "free"].into_iter().enumerate();
    let steps: Vec<Value> = steps.map(|(number, name)| step(&format!("s{number}"), &format!("test.{name}"), json!({}))).collect();

    let both = node.post("/aitp/tasks/plan", &task(&steps)).await.ok();
    let costs = json!([{ "amount": "0.5", "currency": "EUR" }, { "amount": "0.04", "currency": "USD" }]);
    assert_eq!((&both["estimated_cost"], &both["estimated_costs"]), (&Value::Null, &costs), "{both}");
    assert_eq!(both["subtasks"][2]["estimated_cost"], json!({ "amount": "0.02", "currency": "USD" }), "{both}");
    let one = node.post("/aitp/tasks/plan", &task(&steps[2..])).await.ok();
    let cost = json!({ "amount": "0.02", "currency": "USD" });
    assert_eq!((&one["estimated_cost"], &one["estimated_costs"]), (&cost, &json!([cost])), "{one}");
    let none = node.post("/aitp/tasks/plan", &task(&steps[3..])).await.ok();
    assert_eq!((&none["estimated_cost"], &none["estimated_costs"]), (&Value::Null, &json!([])), "{none}");
}

/// AITP-4: the agents of a plan are looked for side by side: nobody waits for each of those who are not there.
#[tokio::test]
async fn a_plan_that_nobody_can_do_is_told_in_time() {
    const STEPS: usize = 48;
    let node = planner().spawn().await;
    let other = Node::builder().join(&node).spawn().await;
    node.meets(&other).await;
    // Whoever is asked does not answer, so each look takes all the time that it has.
    other.stop().await;
    let steps: Vec<Value> = (0..STEPS).map(|number| step(&format!("s{number}"), &format!("test.nobody-{number}"), json!({}))).collect();

    // One after the other would take much longer than this.
    let plan = within("the plan is told", SETTLE, node.post("/aitp/tasks/plan", &task(&steps))).await.ok();

    let many: Vec<Value> = (0..10 * STEPS).map(|number| step(&format!("s{number}"), "test.missing", json!({}))).collect();
    let alike = within("who is missing is looked for once", SETTLE, node.post("/aitp/tasks/plan", &task(&many))).await.ok();
    assert!(alike["subtasks"][10 * STEPS - 1]["reason"].as_str().is_some_and(|reason| reason.contains("test.missing")), "{alike}");
    let rows = plan["subtasks"].as_array().expect("rows");
    assert_eq!((rows.len(), &plan["runnable"]), (STEPS, &json!(false)), "{plan}");
    for (number, row) in rows.iter().enumerate() {
        assert_eq!(row["subtask_id"], format!("s{number}"), "in order");
        assert!(row["reason"].as_str().is_some_and(|reason| reason.contains(&format!("test.nobody-{number}"))), "{row}");
    }
}

/// AITP-10: what agents claim is what is billed, in decimals, with an entry for each.
#[tokio::test]
async fn each_step_is_billed_by_price_and_units() {
    let workshop = Workshop::new();
    let price = |amount: &str, unit: &str| json!({ "price": { "amount": amount, "currency": "USD", "unit": unit } });
    let node = planner()
        .agent(workshop.worker("image", "test.image", price("0.001", "image")))
        .agent(workshop.worker("token", "test.token", price("0.00001", "token")))
        .agent(workshop.worker("free", "test.free", json!({})))
        .spawn()
        .await;
    node.knows("test.token", &["token"]).await;
    let steps = [
        step("a", "test.image", json!({ "output": 1 })),
        step("b", "test.token", json!({ "output": 2, "units": 5000, "seen": "${a.output}" })),
        step("c", "test.free", json!({ "output": 3, "seen": "${b.output}" })),
    ];
    let document = with(task(&steps), json!({ "metadata": { "cost_limit": 10.00 } }));

    let plan = node.post("/aitp/tasks/plan", &document).await.ok();
    assert_eq!(plan["estimated_cost"], json!({ "amount": "0.00101", "currency": "USD" }), "{plan}");
    let id = node.submit(&document).await;
    let result = node.result(&id).await;

    // The draft's own figures (AITP 7.2).
    let ledger = &result["ledger"];
    assert_eq!(
        (&result["cost"], &ledger["total_cost"], &ledger["remaining_budget"]),
        (&json!(0.051), &json!(0.051), &json!(9.949)),
        "{result}"
    );
    let entries = ledger["entries"].as_array().expect("entries");
    assert_eq!(entries.len(), 2, "what has no price has no entry: {ledger}");
    for (entry, (name, units, price, total)) in entries.iter().zip([("a", 1, 0.001, 0.001), ("b", 5000, 0.00001, 0.05)]) {
        assert_eq!((&entry["subtask_id"], &entry["units"]), (&json!(name), &json!(units)), "{entry}");
        assert_eq!(
            (&entry["price_per_unit"], &entry["total"], &entry["duplicate"]),
            (&json!(price), &json!(total), &json!(false)),
            "{entry}"
        );
        assert_eq!(entry["agent_id"], node.step(&id, name).await["agent_id"]);
    }
    assert_eq!(node.task(&id).await["cost_so_far"], 0.051);
}

/// AITP-5: whom a step was given to, and why, is told with each attempt.
#[tokio::test]
async fn each_attempt_explains_its_choice() {
    let workshop = Workshop::new();
    let claim = |ms: u64| json!({ "constraints": { "response_time_ms": ms } });
    let node = planner()
        .agent(workshop.worker("quick", "test.work", claim(1)))
        .agent(workshop.worker("slow", "test.work", claim(900)))
        .spawn()
        .await;
    node.knows("test.work", &["quick", "slow"]).await;

    let id = node.submit(&task(&[step("a", "test.work", json!({ "output": 1 }))])).await;
    node.result(&id).await;

    let step = node.step(&id, "a").await;
    assert_eq!((&step["agent"], &step["attempts"][0]["outcome"]), (&json!("quick"), &json!("success")), "{step}");
    let explained = step["attempts"][0]["explain"].to_string();
    for (agent, other) in [("quick", "slow"), ("slow", "quick")] {
        assert!(explained.contains(node.agent_id(agent).await.as_str()), "{agent}, beside {other}: {explained}");
    }
    let shown = node.cli(&["task", "status", &id[..8], "--explain"]).await;
    assert!(shown.text().contains("ATTEMPT") && shown.text().contains("quick@"), "{shown:?}");
}

/// AITP-7: what happened is told from the beginning, or from any event on, and the stream ends with the task.
#[tokio::test]
async fn events_are_replayed_from_any_point_and_then_followed() {
    let workshop = Workshop::new();
    let node = planner().agent(workshop.worker("worker", "test.work", json!({}))).spawn().await;
    node.knows("test.work", &["worker"]).await;
    let id = node
        .submit(&task(&[
            step("a", "test.work", json!({ "until": "go", "output": 1 })),
            step("b", "test.work", json!({ "x": "${a.output}" })),
        ]))
        .await;
    workshop.until("started", 1).await;
    let mut following = node.task_events(&id).await;
    following.wait_for("accepted", SETTLE, |event| event["subtask_id"] == "a").await;
    workshop.release("go");
    let followed = following.rest().await;

    let all = node.task_events(&id).await.rest().await;
    let names: Vec<&str> = all.iter().map(|(name, _)| name.as_str()).collect();
    let of_a_step = ["dispatched", "accepted", "result_received", "validated"];
    assert_eq!(names, [&["submitted"][..], &of_a_step, &of_a_step, &["ended"]].concat(), "{all:?}");
    for (number, (name, event)) in all.iter().enumerate() {
        assert_eq!((&event["index"], &event["event"], &event["task_id"]), (&json!(number), &json!(name), &json!(id)), "{event}");
    }
    assert!(all.windows(2).all(|pair| pair[0].1["at_ms"].as_u64() <= pair[1].1["at_ms"].as_u64()), "{all:?}");
    assert_eq!(followed, all[3..], "who followed saw the same");
    assert_eq!(node.task_events_from(&id, "?after=4").await.rest().await, all[5..]);
    assert_eq!(node.task_events_from(&id, "?after=1000").await.rest().await, []);
    let path = format!("/aitp/tasks/{id}/events");
    let response = node.request(Method::GET, &path).header("Last-Event-ID", "7").send().await.expect("the node answers");
    let text = response.text().await.expect("a text");
    assert!(text.starts_with("id: 8\n") && text.contains("event: ended\n") && !text.contains("id: 7\n"), "{text}");
    // A browser that connects again says where it was, at an address that still says where it began.
    for (header, first) in [("7", "id: 8\n"), ("0", "id: 1\n"), ("1000", ""), ("nothing", "id: 3\n"), ("-1", "id: 3\n")] {
        let again = node.request(Method::GET, &format!("{path}?after=2")).header("Last-Event-ID", header).send();
        let text = again.await.expect("the node answers").text().await.expect("a text");
        assert!(text.starts_with(first) && text.is_empty() == first.is_empty(), "{header}: {text}");
    }

    let lines = node.cli(&["task", "events", &id, "--after", "6", "--json"]).await;
    let told: Vec<Value> = lines.text().lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(told, all[7..].iter().map(|(_, event)| event.clone()).collect::<Vec<_>>());
}

/// AITP-2, AITP-11: tasks are listed the newest first, by status and tag.
#[tokio::test]
async fn tasks_are_listed_by_status_and_tag() {
    let workshop = Workshop::new();
    let node = planner().agent(workshop.worker("worker", "test.work", json!({}))).spawn().await;
    node.knows("test.work", &["worker"]).await;
    let tagged = |number: usize, tag: &str, until: &str| {
        let steps = [step("a", "test.work", json!({ "until": until, "mark": number }))];
        with(task(&steps), json!({ "name": format!("task {number}"), "metadata": { "tags": [tag] } }))
    };
    workshop.release("now");
    let mut ids = Vec::new();
    for number in 0..5 {
        let id = node.submit(&tagged(number, if number % 2 == 0 { "even" } else { "odd" }, "now")).await;
        node.result(&id).await;
        ids.push(id);
    }
    let running = node.submit(&tagged(5, "odd", "later")).await;
    node.until_step(&running, "a", |step| step["status"] == "EXECUTING").await;
    ids.push(running.clone());
    let listed = async |query: &str| {
        let page = node.get(&format!("/aitp/tasks{query}")).await.ok();
        let ids: Vec<String> =
            page["tasks"].as_array().expect("rows").iter().map(|row| row["task_id"].as_str().expect("an id").to_owned()).collect();
        (ids, page["next"].as_str().map(str::to_owned))
    };
    let newest_first: Vec<String> = ids.iter().rev().cloned().collect();

    assert_eq!(listed("").await, (newest_first, None));
    assert_eq!(listed("?status=executing").await.0, [running.as_str()]);
    assert_eq!(listed("?status=COMPLETED&tag=odd").await.0, [ids[3].as_str(), &ids[1]]);
    assert_eq!(listed("?tag=nobody").await, (Vec::new(), None));
    let shown = node.cli(&["task", "list", "--status", "executing"]).await;
    assert!(shown.text().contains("task 5") && !shown.text().contains("task 4"), "{shown:?}");
    node.post(&format!("/aitp/tasks/{running}/cancel"), &json!({})).await.ok();
}

/// AITP-5: an agent that others keep busy says so by its node's pulses; the next step goes to another without asking it first.
#[tokio::test]
async fn a_step_goes_elsewhere_when_a_pulse_says_that_the_best_agent_is_full() {
    let workshop = Workshop::new();
    let home = planner().spawn().await;
    let mut hosts = Vec::new();
    for (name, ms) in [("best", 1), ("next", 900)] {
        let agent = workshop.worker(name, "test.work", json!({ "constraints": { "response_time_ms": ms } }));
        hosts.push(Node::builder().join(&home).agent(with(agent, json!({ "concurrency": 1, "queue": 8 }))).spawn().await);
    }
    home.knows("test.work", &["best", "next"]).await;
    let id = home
        .submit(&task(&[
            step("a", "test.work", json!({ "mark": "a", "until": "go", "output": 1 })),
            step("b", "test.work", json!({ "mark": "b", "output": "${a.output}" })),
        ]))
        .await;
    workshop.until("started", 1).await;
    let call =
        json!({ "capability": "test.work", "agent_id": hosts[0].agent_id("best").await, "input": { "mark": "other", "until": "over" } });
    let others = [(); 4].map(|()| tokio::spawn(hosts[0].request(Method::POST, "/v1/invoke").json(&call).send()));
    let is_told = async || {
        let rows = home.find("test.work").await;
        rows.iter().any(|row| row["name"] == "best" && row["in_flight"].as_u64() >= Some(5)).then_some(())
    };
    eventually("the home node hears that the agent is full", SETTLE, is_told).await;
    workshop.release("go");

    assert_eq!(home.result(&id).await["result"], 1);
    let [a, b] = [home.step(&id, "a").await, home.step(&id, "b").await];
    assert_eq!((&a["node_id"], &b["node_id"]), (&json!(hosts[0].id()), &json!(hosts[1].id())), "{b}");
    let attempts = b["attempts"].as_array().expect("attempts");
    // By room or by load, as near as what was measured by then has brought them; in any case without having asked the one that is full.
    assert_eq!(attempts.len(), 1, "nobody refused: {b}");
    workshop.release("over");
    for other in join_all(others).await {
        let answer = other.expect("no call panics").expect("the node answers");
        assert_eq!(answer.status().as_u16(), 200);
    }
}

/// AITP-7, AITP-11: when a task will be done is estimated from what its steps took, once one is done and until it ends.
#[tokio::test]
async fn the_end_of_a_task_is_estimated_while_it_runs() {
    let workshop = Workshop::new();
    let node = planner().agent(workshop.worker("worker", "test.work", json!({}))).spawn().await;
    node.knows("test.work", &["worker"]).await;
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is right").as_secs();
    let begun = now();
    let steps =
        [json!({ "ms": 2_000, "output": 1 }), json!({ "until": "go", "output": "${a.output}" }), json!({ "output": "${b.output}" })];
    let id = node
        .submit(&task(&["a", "b", "c"].into_iter().zip(steps).map(|(id, input)| step(id, "test.work", input)).collect::<Vec<_>>()))
        .await;
    let first = node.task(&id).await;
    assert_eq!(first["estimated_completion"], Value::Null, "nothing is known yet: {first}");
    node.until_step(&id, "b", |step| step["status"] == "EXECUTING").await;

    let before = now();
    let running = node.task(&id).await;
    let (after, estimated) = (now(), running["estimated_completion"].as_u64().expect("a time"));
    // The last step has yet to take as long as the first, two seconds at least; that one took no longer than all until now.
    assert!((before + 2..=after + 2 * (after - begun + 1)).contains(&estimated), "{begun} {before} {after}: {running}");
    workshop.release("go");
    node.result(&id).await;
    assert_eq!(node.task(&id).await["estimated_completion"], Value::Null);
}

/// AITP-11: a list is read a page at a time, and no task is left out or told twice.
#[tokio::test]
async fn a_list_is_read_a_page_at_a_time() {
    let node = Node::builder().agent(builtin("echo", "echo")).spawn().await;
    let mut newest_first = Vec::new();
    for number in 0..5 {
        newest_first.insert(0, node.submit(&task(&[step("a", "echo", json!(number))])).await);
    }
    for limit in [1, 2, 4, 5, 6] {
        let (mut paged, mut cursor) = (Vec::new(), String::new());
        loop {
            let page = node.get(&format!("/aitp/tasks?limit={limit}{cursor}")).await.ok();
            let rows = page["tasks"].as_array().expect("rows");
            assert!(rows.len() <= limit, "{page}");
            paged.extend(rows.iter().map(|row| row["task_id"].as_str().expect("an id").to_owned()));
            let Some(next) = page["next"].as_str() else { break };
            cursor = format!("&after={next}");
        }
        assert_eq!(paged, newest_first, "{limit} at a time");
    }
    assert_eq!(node.get("/aitp/tasks?limit=500").await.ok()["tasks"].as_array().map(Vec::len), Some(5));
    for limit in [0, 501] {
        let error = node.get(&format!("/aitp/tasks?limit={limit}")).await.refused(400, "INVALID_REQUEST");
        let message = error["message"].as_str().unwrap_or_default();
        assert!(error["details"]["path"] == "/limit" && message.contains("1 to 500") && message.contains("`next`"), "{error}");
    }
}

/// AITP-12: one key is one task, however often and from wherever it is submitted at once.
#[tokio::test]
async fn the_same_key_is_the_same_task() {
    let workshop = Workshop::new();
    let node = planner().agent(workshop.worker("worker", "test.work", json!({}))).spawn().await;
    node.knows("test.work", &["worker"]).await;
    let document = |n: u32| task(&[step("a", "test.work", json!({ "output": n }))]);
    let submit = |document: Value| node.send(node.request(Method::POST, "/aitp/tasks").header("Idempotency-Key", "monday").json(&document));

    let answers = join_all((0..8).map(|_| submit(document(1)))).await;
    assert_eq!(answers.iter().filter(|answer| answer.status == 201).count(), 1, "{answers:?}");
    let ids: Vec<&Value> = answers.iter().map(|answer| &answer.body["task_id"]).collect();
    assert!(ids[0].is_string() && ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    let id = ids[0].as_str().expect("an id");
    node.result(id).await;
    let again = submit(document(1)).await;
    assert_eq!((again.status, &again.body["task_id"], &again.body["status"]), (200, &json!(id), &json!("COMPLETED")), "{again:?}");
    let error = submit(document(2)).await.refused(409, "CONFLICT");
    assert_eq!(error["details"]["task_id"], *id, "{error}");
    assert_eq!(workshop.notes("started").len(), 1);
}

/// AITP-2: a task begins when those on which it depends have ended well, and fails with one that has not.
#[tokio::test]
async fn a_task_waits_for_those_on_which_it_depends() {
    let workshop = Workshop::new();
    let mut node = planner().agent(workshop.worker("worker", "test.work", json!({}))).spawn().await;
    node.knows("test.work", &["worker"]).await;
    let after = |id: &str, mark: &str| {
        with(task(&[step("a", "test.work", json!({ "mark": mark }))]), json!({ "metadata": { "dependencies": [id] } }))
    };
    let first = node.submit(&task(&[step("a", "test.work", json!({ "until": "go", "mark": "first" }))])).await;
    let second = node.submit(&after(&first, "second")).await;
    let third = node.submit(&after(&second, "third")).await;
    workshop.until("started", 1).await;
    let waiting = node.step(&third, "a").await;
    assert!(waiting["waiting_for"].as_str().is_some_and(|text| text.contains(&second)), "{waiting}");
    assert_eq!(node.task(&third).await["status"], "PENDING");

    workshop.release("go");
    assert_eq!(node.result(&third).await["outcome"], "success");
    let order: Vec<Value> = workshop.notes("started").iter().map(|note| note["input"]["mark"].clone()).collect();
    assert_eq!(order, ["first", "second", "third"]);
    assert_eq!(node.run_task(&after(&third, "late")).await["outcome"], "success", "one that has ended holds up nothing");

    let failing = with(
        step("a", "test.work", json!({ "fail": { "times": 9, "error": { "message": "no", "retryable": false } }, "mark": "f" })),
        json!({}),
    );
    let failed = node.submit(&task(&[failing])).await;
    let dependent = node.run_task(&after(&failed, "never")).await;
    assert_eq!((&dependent["status"], &dependent["reason"]), (&json!("FAILED"), &json!("DEPENDENCY_FAILED")), "{dependent}");
    assert_eq!(dependent["error"]["details"]["task_id"], failed, "{dependent}");
    let belated = node.submit(&after(&failed, "never")).await;
    let names = |history: Vec<(String, Value)>| history.into_iter().map(|(name, _)| name).collect::<Vec<_>>();
    assert_eq!(names(node.history(&belated).await), ["submitted", "ended"], "one that has failed is told of after the submission");
    assert!(workshop.notes("started").iter().all(|note| note["input"]["mark"] != "never"));

    node.kill().await;
    let node = node.restart().await;
    assert_eq!(node.result(&belated).await["reason"], "DEPENDENCY_FAILED");
}

/// AITP-1: the more urgent task gets the next free place; AITP-3: among steps that are ready the smallest `priority` goes first.
#[tokio::test]
async fn the_more_urgent_goes_first() {
    let workshop = Workshop::new();
    let one_at_a_time = with(workshop.worker("worker", "test.work", json!({})), json!({ "concurrency": 1 }));
    let node = planner().config("[task]\nparallel_max = 1\n").agent(one_at_a_time).spawn().await;
    node.knows("test.work", &["worker"]).await;
    let urgent = |mark: &str, priority: &str, until: &str| {
        with(task(&[step("a", "test.work", json!({ "mark": mark, "until": until }))]), json!({ "priority": priority }))
    };
    workshop.release("now");
    let blocker = node.submit(&urgent("blocker", "NORMAL", "go")).await;
    workshop.until("started", 1).await;
    let low = node.submit(&urgent("low", "LOW", "now")).await;
    let high = node.submit(&urgent("high", "HIGH", "now")).await;
    let in_line = async || (node.get("/v1/agents").await.ok()["agents"][0]["status"]["queue"] == 2).then_some(());
    eventually("both wait for the agent", SETTLE, in_line).await;
    workshop.release("go");
    for id in [blocker, low, high] {
        assert_eq!(node.result(&id).await["outcome"], "success");
    }
    let marks =
        || workshop.notes("started").iter().map(|note| note["input"]["mark"].as_str().unwrap_or_default().to_owned()).collect::<Vec<_>>();
    assert_eq!(marks(), ["blocker", "high", "low"]);

    let ordered = [("third", 3), ("first", 1), ("second", 2)];
    let steps = ordered.map(|(name, priority)| with(step(name, "test.work", json!({ "mark": name })), json!({ "priority": priority })));
    node.run_task(&task(&steps)).await;
    assert_eq!(marks()[3..], ["first", "second", "third"]);
}

/// MAOP-10, AITP-3: values of megabytes pass from step to step, and come back whole.
#[tokio::test]
async fn large_values_pass_through_steps() {
    const BYTES: usize = 4_000_000;
    let workshop = Workshop::new();
    let node = planner().agent(workshop.worker("here", "test.here", json!({}))).spawn().await;
    let _other = Node::builder().join(&node).agent(workshop.worker("there", "test.there", json!({}))).spawn().await;
    node.knows("test.there", &["there"]).await;
    let steps = [
        step("a", "test.here", json!({ "sized": BYTES })),
        step("b", "test.there", json!({ "output": "${a.output}" })),
        step("c", "test.here", json!({ "output": { "text": "${b.output}", "again": "${parent.input.small}" } })),
    ];

    let result = node.run_task(&with(task(&steps), json!({ "parameters": { "small": "s" } }))).await;

    assert_eq!(result["outcome"], "success", "{}", result["error"]);
    let text = result["result"]["text"].as_str().expect("a text");
    assert!(text.len() == BYTES - 2 && text.bytes().all(|byte| byte == b'x'), "{} bytes", text.len());
    assert_eq!(result["result"]["again"], "s");

    let given = "y".repeat(4_000_000);
    let document =
        with(task(&[step("a", "test.there", json!({ "output": "${parent.input.text}" }))]), json!({ "parameters": { "text": given } }));
    let echoed = node.run_task(&document).await;
    assert!(echoed["result"] == given.as_str(), "{}", echoed["error"]);
}

/// AITP-12: what was acknowledged is there after the node was killed, and a step that ran is not lost: it ends, and its result is used once.
#[tokio::test]
async fn a_task_outlives_its_node() {
    let workshop = Workshop::new();
    let seed = Node::first().await;
    let mut node = planner().join(&seed).spawn().await;
    let _host = Node::builder().join(&seed).agent(workshop.worker("worker", "test.work", json!({}))).spawn().await;
    node.knows("test.work", &["worker"]).await;
    let document = task(&[
        step("a", "test.work", json!({ "output": "once", "mark": "a" })),
        step("b", "test.work", json!({ "output": "${a.output} more", "until": "go", "mark": "b" })),
    ]);
    let ended = node.submit(&task(&[step("a", "test.work", json!({ "output": "before" }))])).await;
    let before = node.result(&ended).await;
    let id = node.submit(&document).await;
    node.until_step(&id, "b", |step| step["status"] == "EXECUTING").await;

    node.kill().await;
    let node = node.restart().await;
    workshop.release("go");

    assert_eq!(node.get(&format!("/aitp/tasks/{ended}/result")).await.ok(), before);
    let result = node.result(&id).await;
    assert_eq!((&result["outcome"], &result["result"]), (&json!("success"), &json!("once more")), "{result}");
    let events = node.task_events(&id).await.rest().await;
    for name in ["a", "b"] {
        let used = events.iter().filter(|(event, data)| event == "validated" && data["subtask_id"] == name).count();
        assert_eq!(used, 1, "{name}: {events:?}");
    }
    let begun = |mark: &str| workshop.notes("started").iter().filter(|note| note["input"]["mark"] == mark).count();
    assert_eq!(begun("a"), 1, "what was done before is not done again");
    assert!((1..=2).contains(&begun("b")), "what ran when the node was killed may run twice: {}", begun("b"));
}

/// AITP-11: a wait that is broken off leaves the task alone, and the exit code says how a task ended.
#[tokio::test]
async fn the_command_line_submits_waits_and_tells_how_it_ended() {
    let workshop = Workshop::new();
    let node = planner().agent(workshop.worker("worker", "test.work", json!({}))).spawn().await;
    node.knows("test.work", &["worker"]).await;
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("task.yaml");
    let yaml = "name: From a file\nparameters: { said: nothing, until: go }\nsubtasks:\n  - subtask_id: only\n    agent_capability: test.work\n    \
                input: { until: \"${parent.input.until}\", output: \"${parent.input.said}\" }\n";
    fs::write(&file, yaml).expect("the file is written");
    let file = file.to_str().expect("temporary folders have plain names");

    let waited = node.cli(&["task", "run", file, "--input", "said=hello", "--timeout", "0.5"]).await;
    assert!(waited.code == 4 && waited.stdout.is_empty() && waited.stderr.contains("it goes on"), "{waited:?}");
    let id = node.get("/aitp/tasks").await.ok()["tasks"][0]["task_id"].as_str().expect("an id").to_owned();
    assert!(waited.stderr.contains(&format!("meshwork task watch {}", &id[..8])), "{waited:?}");
    let early = node.cli(&["task", "result", &id[..8]]).await;
    assert!(early.code == 1 && early.stderr.contains("NOT_FINISHED") && early.stderr.contains("--wait"), "{early:?}");
    let status = node.cli(&["task", "status", &id[..8]]).await;
    assert!(status.text().contains("EXECUTING") && status.text().contains("worker@"), "{status:?}");
    workshop.release("go");
    let result = node.cli(&["task", "result", &id, "--wait"]).await;
    assert_eq!(result.text(), "\"hello\"\n");

    let submitted = node.cli(&["task", "submit", file, "--input", "until=never", "--key", "k"]).await;
    let id = submitted.text().trim().to_owned();
    assert_eq!(node.cli(&["task", "submit", file, "--input", "until=never", "--key", "k"]).await.text().trim(), id);
    let other = node.cli(&["task", "submit", file, "--key", "k"]).await;
    assert!(other.code == 1 && other.stderr.contains("CONFLICT"), "{other:?}");
    let cancelled = node.cli(&["task", "cancel", &id[..8]]).await;
    assert!(cancelled.text().contains("cancelled From a file"), "{cancelled:?}");
    let again = node.cli(&["task", "cancel", &id]).await;
    assert!(again.code == 1 && again.stderr.contains("CONFLICT"), "{again:?}");
    let watched = node.cli(&["task", "watch", &id]).await;
    assert!(watched.code == 1 && watched.stderr.contains("cancel_requested") && watched.stderr.contains("CANCELLED"), "{watched:?}");
    let done = node.cli(&["task", "run", file, "--input", "until=go", "--watch"]).await;
    assert!(done.text() == "\"nothing\"\n" && done.stderr.contains("result_received"), "{done:?}");
}

/// AITP-11: the description of the interface names every path.
#[tokio::test]
async fn the_description_of_the_interface_has_the_paths() {
    let node = Node::first().await;

    let described = node.get("/openapi.json").await.ok();

    for (path, verbs) in [
        ("/aitp/tasks", &["get", "post"][..]),
        ("/aitp/tasks/plan", &["post"]),
        ("/aitp/tasks/{id}", &["get"]),
        ("/aitp/tasks/{id}/result", &["get"]),
        ("/aitp/tasks/{id}/cancel", &["post"]),
        ("/aitp/tasks/{id}/events", &["get"]),
    ] {
        for verb in verbs {
            assert!(described["paths"][path][verb]["responses"].is_object(), "{verb} {path}");
        }
    }
}

/// MAOP-4: the node tells everybody who listens that a task has ended.
#[tokio::test]
async fn the_end_of_a_task_is_an_event_of_the_node() {
    let workshop = Workshop::new();
    let node = planner().agent(workshop.worker("worker", "test.work", json!({}))).spawn().await;
    node.knows("test.work", &["worker"]).await;
    let mut events = node.events().await;

    let id = node.submit(&task(&[step("a", "test.work", json!({ "output": 1 }))])).await;

    let ended = events.wait_for("task_ended", Duration::from_secs(10), |event| event["task_id"] == id.as_str()).await;
    assert_eq!((&ended["outcome"], &ended["percent_complete"]), (&json!("success"), &json!(100)), "{ended}");
}
