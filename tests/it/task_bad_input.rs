//! Tasks that are refused: before anything runs, with every fault in its place; and questions about tasks that have no answer.

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{
    Node, builtin, meshwork,
    oracle::Oracle,
    script,
    tasks::{Workshop, planner, step, task},
    with,
};

/// A step that could run.
fn fine(id: &str) -> Value {
    step(id, "echo", json!({ "x": 1 }))
}

/// A task with this metadata.
fn metadata(metadata: Value) -> Value {
    with(task(&[fine("a")]), json!({ "metadata": metadata }))
}

/// Submits what must be refused; its faults as `path: message`.
async fn faults(node: &Node, document: &Value) -> Vec<String> {
    let error = node.post("/aitp/tasks", document).await.refused(400, "INVALID_REQUEST");
    let faults = error["details"]["faults"].as_array().unwrap_or_else(|| panic!("faults: {error}")).clone();
    let text = |fault: &Value, field: &str| fault[field].as_str().unwrap_or_else(|| panic!("{field}: {fault}")).to_owned();
    faults.iter().map(|fault| format!("{}: {}", text(fault, "path"), text(fault, "message"))).collect()
}

/// AITP-1, AITP-3: each fault of a definition is told with its place.
#[tokio::test]
async fn every_fault_of_a_definition_is_told_with_its_place() {
    let node = Node::builder().agent(builtin("echo", "echo")).spawn().await;
    let b = |input: Value| with(task(&[fine("a"), step("b", "echo", input)]), json!({ "parameters": { "text": "t" } }));
    let depends = |a: Value, b: Value| task(&[with(fine("a"), json!({ "depends_on": a })), with(fine("b"), json!({ "depends_on": b }))]);
    for (document, path, words) in [
        (json!({}), "/name", "is missing"),
        (json!({ "name": "n" }), "/", "`subtasks` to run, or a `goal`"),
        (json!({ "name": "n", "subtasks": [] }), "/", "`subtasks` to run, or a `goal`"),
        (json!({ "name": "", "goal": "g" }), "/name", "1 to 200"),
        (json!({ "name": "two\nlines", "goal": "g" }), "/name", "on one line"),
        (json!({ "name": 7, "goal": "g" }), "/name", "is a text"),
        (with(task(&[fine("a")]), json!({ "subtaks": [] })), "/subtaks", "subtasks"),
        (with(task(&[fine("a")]), json!({ "priority": "URGENT" })), "/priority", "HIGH"),
        (with(task(&[fine("a")]), json!({ "parameters": [] })), "/parameters", "is an object"),
        (with(task(&[fine("a")]), json!({ "input": { "type": "objekt" } })), "/input", "objekt"),
        (task(&[json!({ "agent_capability": "echo" })]), "/subtasks/0/subtask_id", "is missing"),
        (task(&[json!({ "subtask_id": "a" })]), "/subtasks/0/agent_capability", "is missing"),
        (task(&[fine("a"), fine("a")]), "/subtasks/1/subtask_id", "already"),
        (task(&[step("a b", "echo", json!(1))]), "/subtasks/0/subtask_id", "a b"),
        (task(&[step("a", "Echo!", json!(1))]), "/subtasks/0/agent_capability", "Echo!"),
        (task(&[with(fine("a"), json!({ "depends_on": ["c"] }))]), "/subtasks/0/depends_on/0", "`c` is not a subtask"),
        (task(&[with(fine("a"), json!({ "depends_on": ["a"] }))]), "/subtasks/0/depends_on/0", "cannot wait for itself"),
        (depends(json!(["b"]), json!(["a"])), "/subtasks/0/depends_on", "a -> b -> a"),
        (b(json!("${c.output.x}")), "/subtasks/1/input", "c"),
        (b(json!("${b.output.x}")), "/subtasks/1/input", "which is this subtask"),
        (b(json!({ "deep": ["${parent.input.txt}"] })), "/subtasks/1/input/deep/0", "txt"),
        (b(json!("${parent.input.text.deep}")), "/subtasks/1/input", "has no value"),
        (b(json!("${a.result}")), "/subtasks/1/input", "output"),
        (b(json!("${a.output")), "/subtasks/1/input", "}"),
        (b(json!("${system('x')}")), "/subtasks/1/input", "system"),
        (b(json!("${parent.input.__proto__}")), "/subtasks/1/input", "__proto__"),
        (b(json!("${}")), "/subtasks/1/input", "${}"),
        (task(&[with(fine("a"), json!({ "output_mapping": { "x": "y", "z": "y" } }))]), "/subtasks/0/output_mapping/z", "already"),
        (task(&[with(fine("a"), json!({ "retry": "always" }))]), "/subtasks/0/retry", "always"),
        (task(&[with(fine("a"), json!({ "agent": "somebody" }))]), "/subtasks/0/agent", "somebody"),
        (task(&[json!(7)]), "/subtasks/0", "is an object"),
        (
            with(task(&[fine("a")]), json!({ "fallback": { "on_timeout": { "strategy": "DEFER" } } })),
            "/fallback/on_timeout/strategy",
            "DEFER",
        ),
        (with(task(&[fine("a")]), json!({ "fallback": { "on_timeout": {} } })), "/fallback/on_timeout/strategy", "is missing"),
    ] {
        let found = faults(&node, &document).await;
        let fits = |fault: &String| fault.starts_with(&format!("{path}: ")) && fault.contains(words);
        assert!(found.iter().any(fits), "{document}: {path} {words}: {found:?}");
    }
    assert_eq!(node.get("/aitp/tasks").await.ok()["tasks"], json!([]), "nothing of that was taken");
}

/// AITP-2: times and money that cannot be meant are refused, with what could be.
#[tokio::test]
async fn absurd_budgets_and_times_are_refused() {
    let node = Node::builder().agent(builtin("echo", "echo")).spawn().await;
    for (given, path, words) in [
        (json!({ "deadline": 1_700_700_600 }), "deadline", "in the past"),
        (json!({ "deadline": -1 }), "deadline", "in the past"),
        (json!({ "deadline": 9_000_000_000_000_u64 }), "deadline", "Unix time is in seconds"),
        (json!({ "deadline": "tomorrow" }), "deadline", "2030-01-31T12:00:00Z"),
        (json!({ "timeout_seconds": 0 }), "timeout_seconds", "0.001 to 604800"),
        (json!({ "timeout_seconds": -5 }), "timeout_seconds", "0.001 to 604800"),
        (json!({ "timeout_seconds": 1e300 }), "timeout_seconds", ""),
        (json!({ "timeout_seconds": "60" }), "timeout_seconds", "is a number"),
        (json!({ "cost_limit": -1 }), "cost_limit", "0 to 1000000000"),
        (json!({ "cost_limit": 1e12 }), "cost_limit", "0 to 1000000000"),
        (json!({ "cost_limit": "ten" }), "cost_limit", "ten"),
        (json!({ "cost_limit": { "amount": 1, "currency": "DOGE" } }), "cost_limit/currency", "ISO 4217"),
        (json!({ "cost_limit": { "amount": 1, "currency": "usd" } }), "cost_limit/currency", "did you mean USD?"),
        (json!({ "cost_limit": { "currency": "USD" } }), "cost_limit/amount", "is missing"),
        (json!({ "retry_policy": { "max_retries": 1000 } }), "retry_policy/max_retries", "0 to 20"),
        (json!({ "retry_policy": { "max_retries": 1.5 } }), "retry_policy/max_retries", "whole number"),
        (json!({ "retry_policy": { "backoff_strategy": "random" } }), "retry_policy/backoff_strategy", "exponential"),
        (json!({ "retry_policy": { "backoff_base_ms": -1 } }), "retry_policy/backoff_base_ms", "0 to 3600000"),
        (json!({ "min_trust_score": 101 }), "min_trust_score", "0 to 100"),
        (json!({ "tags": vec!["t"; 33] }), "tags", "32"),
        (json!({ "dependencies": ["not an id"] }), "dependencies/0", "not an id"),
    ] {
        let found = faults(&node, &metadata(given.clone())).await;
        let fits = |fault: &String| fault.starts_with(&format!("/metadata/{path}: ")) && fault.contains(words);
        assert!(found.iter().any(fits), "{given}: {path} {words}: {found:?}");
    }
    let unknown = "00000000-0000-4000-8000-000000000000";
    let error = node.post("/aitp/tasks", &metadata(json!({ "dependencies": [unknown] }))).await.refused(400, "INVALID_REQUEST");
    assert!(error["message"].as_str().is_some_and(|text| text.contains(unknown)), "{error}");
}

/// AITP-3: how many steps a task may have is told to whoever has more, and so many it may have.
#[tokio::test]
async fn ten_thousand_subtasks_are_refused_with_the_limit() {
    let node = Node::builder().agent(builtin("echo", "echo")).spawn().await;
    let many = |count: usize| task(&(0..count).map(|n| fine(&format!("s{n}"))).collect::<Vec<_>>());

    for count in [10_000, 2_001] {
        let found = faults(&node, &many(count)).await;
        assert!(found.len() == 1 && found[0].starts_with("/subtasks: ") && found[0].contains("2000"), "{found:?}");
    }
    let id = node.submit(&many(2_000)).await;
    assert_eq!(node.get(&format!("/aitp/tasks/{id}")).await.ok()["progress"]["total_steps"], 2_000);
    node.post(&format!("/aitp/tasks/{id}/cancel"), &json!({})).await;
}

/// AITP-1: what is too large, too deep or no JSON at all is refused, and the node goes on.
#[tokio::test]
async fn bodies_that_cannot_be_tasks_are_refused() {
    let node = Node::builder().agent(builtin("echo", "echo")).spawn().await;
    for body in ["", "{", "[]", "null", "7", "\"name: x\"", "name: x", "{\"name\":\"n\",\"goal\":\"g\"}}"] {
        for path in ["/aitp/tasks", "/aitp/tasks/plan"] {
            node.post_text(path, body.to_owned()).await.refused(400, "INVALID_REQUEST");
        }
    }
    let deep = format!("{{\"name\":\"n\",\"parameters\":{{\"x\":{}{}}}}}", "[".repeat(10_000), "]".repeat(10_000));
    node.post_text("/aitp/tasks", deep).await.refused(400, "INVALID_REQUEST");
    let large = with(task(&[fine("a")]), json!({ "parameters": { "x": "y".repeat(6_300_000) } }));
    let error = node.post("/aitp/tasks", &large).await.refused(413, "PAYLOAD_TOO_LARGE");
    assert_eq!(error["details"]["limit"], 6_291_456, "{error}");
    for key in ["", "schlüssel", &"k".repeat(1_000)] {
        let request = node.request(Method::POST, "/aitp/tasks").header("Idempotency-Key", key.as_bytes()).json(&task(&[fine("a")]));
        node.send(request).await.refused(400, "INVALID_REQUEST");
    }
    assert_eq!(node.get("/aitp/tasks").await.ok()["tasks"], json!([]));
}

/// AITP-2: more time for an attempt than the node gives is refused with its place and the name of the limit, and what it gives is taken.
#[tokio::test]
async fn more_time_than_the_node_gives_is_refused_and_not_cut() {
    let node = Node::builder().config("[limits]\nstep_timeout_ms_max = 90_500\n").agent(builtin("echo", "echo")).spawn().await;
    let extended =
        |seconds: f64| json!({ "on_timeout": { "strategy": "RETRY_WITH_TIMEOUT_EXTENSION", "extended_timeout_seconds": seconds } });
    let metadata = |seconds: f64| with(task(&[fine("a")]), json!({ "metadata": { "timeout_seconds": seconds } }));
    let of_step = |seconds: f64| task(&[fine("a"), with(fine("b"), json!({ "timeout_seconds": seconds }))]);
    let fallback = |seconds: f64| with(task(&[fine("a")]), json!({ "fallback": extended(seconds) }));
    let in_sections =
        |seconds: f64| json!({ "Task": { "name": "n" }, "Metadata": { "timeout_seconds": seconds }, "Subtasks": [fine("a")] });
    let documents: [(&dyn Fn(f64) -> Value, &str); 4] = [
        (&metadata, "/metadata/timeout_seconds"),
        (&of_step, "/subtasks/1/timeout_seconds"),
        (&fallback, "/fallback/on_timeout/extended_timeout_seconds"),
        (&in_sections, "/Metadata/timeout_seconds"),
    ];
    for (document, path) in documents {
        let found = faults(&node, &document(90.501)).await;
        assert_eq!(found, [format!("{path}: is at most 90.5 seconds on this node (limits.step_timeout_ms_max), not 90.501")]);
        assert_eq!(node.run_task(&document(90.5)).await["outcome"], "success", "{path}");
    }
}

/// MAOP-4: what a task may ask for in time is `deadline` and `timeout_seconds`, in quality `min_trust_score` and the schema of an output, in
/// resources `cost_limit`. Of what an agent takes (memory, a GPU) only its own word is known, so nothing can be held to it, and who asks is told.
#[tokio::test]
async fn resources_that_nobody_can_be_held_to_are_refused_with_their_place() {
    let node = Node::builder().agent(builtin("echo", "echo")).spawn().await;
    let memory = json!({ "memory_mb": 2_048 });
    for (document, path) in [
        (with(task(&[fine("a")]), json!({ "constraints": { "resources": memory } })), "/constraints"),
        (with(task(&[fine("a")]), json!({ "metadata": { "resources": memory } })), "/metadata/resources"),
        (with(task(&[fine("a")]), json!({ "metadata": { "constraints": { "timing": {} } } })), "/metadata/constraints"),
        (task(&[with(fine("a"), json!({ "resources": memory }))]), "/subtasks/0/resources"),
        (task(&[with(fine("a"), json!({ "resource_requirements": memory }))]), "/subtasks/0/resource_requirements"),
    ] {
        let found = faults(&node, &document).await;
        assert!(found.len() == 1 && found[0].starts_with(&format!("{path}: ")), "{document}: {found:?}");
    }
    assert_eq!(node.get("/aitp/tasks").await.ok()["tasks"], json!([]));
}

/// AITP-4, threat T23: what an agent proposes as a plan is read as strictly as what anybody submits.
#[tokio::test]
async fn a_plan_that_means_harm_is_refused_with_its_faults() {
    let builder = planner();
    let oracle = Oracle::new(builder.home());
    let node = builder.agent(oracle.agent("planner", "task-decomposition", 1)).agent(builtin("echo", "echo")).spawn().await;
    node.knows("task-decomposition", &["planner"]).await;
    let goal = |plan: &Value| json!({ "name": "n", "goal": "g", "parameters": { "plan": plan } });
    let one = |more: Value| json!([with(fine("a"), more)]);
    for (plan, path, words) in [
        (one(json!({ "cost_limit": -1e28 })), "/subtasks/0/cost_limit", "0 to 1000000000"),
        (one(json!({ "cost_limit": { "amount": "-10000000000000000000000000000", "currency": "USD" } })), "/subtasks/0/cost_limit", ""),
        (one(json!({ "estimated_units": -1e28 })), "/subtasks/0/estimated_units", "0"),
        (one(json!({ "estimated_units": 1e28 })), "/subtasks/0/estimated_units", "0"),
        (one(json!({ "timeout_seconds": 1e300 })), "/subtasks/0/timeout_seconds", "28 digits"),
        (one(json!({ "timeout_seconds": -1e28 })), "/subtasks/0/timeout_seconds", "0.001 to 604800"),
        (one(json!({ "timeout_seconds": 7_201 })), "/subtasks/0/timeout_seconds", "limits.step_timeout_ms_max"),
        (one(json!({ "retry_policy": { "max_retries": 1e18 } })), "/subtasks/0/retry_policy/max_retries", "0 to 20"),
        (one(json!({ "priority": -1 })), "/subtasks/0/priority", ""),
        (one(json!({ "depends_on": ["a"] })), "/subtasks/0/depends_on/0", "cannot wait for itself"),
        (one(json!({ "input": "${parent.input.plan[9].x}" })), "/subtasks/0/input", ""),
        (json!([{ "subtask_id": "a", "task": task(&[fine("b")]) }]), "/subtasks/0/task", "stands in a plan"),
        ((0..10_000).map(|number| fine(&format!("s{number}"))).collect(), "/subtasks", "2000"),
        (json!([7, null, []]), "/subtasks/0", "is an object"),
        (json!({ "subtask_id": "a" }), "/subtasks", "list"),
        (json!([]), "", ""),
    ] {
        let result = node.run_task(&goal(&plan)).await;
        let told = result["error"].to_string();
        let shown: String = plan.to_string().chars().take(200).collect();
        assert_eq!((&result["status"], &result["reason"]), (&json!("FAILED"), &json!("NO_PLAN")), "{shown}: {told}");
        assert!(told.contains(path) && told.contains(words), "{shown}: {path} {words}: {told}");
    }
    let honest = node.run_task(&goal(&json!([fine("a")]))).await;
    assert_eq!((&honest["outcome"], &honest["result"]), (&json!("success"), &json!({ "x": 1 })), "{honest}");
}

/// Threat T23: an answer that is nothing but brackets ends the step or the plan that it is for, and the node goes on.
#[tokio::test]
async fn an_answer_of_ten_million_brackets_does_no_harm() {
    let mut agent = script("deep", "deep.py", &[], json!({ "id": "test.deep" }));
    agent["capability"] = json!([{ "id": "test.deep" }, { "id": "task-decomposition" }]);
    let node = planner().agent(agent).agent(builtin("echo", "echo")).spawn().await;
    node.knows("task-decomposition", &["deep"]).await;
    let once = json!({ "metadata": { "retry_policy": { "max_retries": 0 } } });
    for deep in [200, 1_000_000, 5_000_000] {
        let step = node.run_task(&with(task(&[step("a", "test.deep", json!({ "deep": deep }))]), once.clone())).await;
        assert_eq!((&step["status"], &step["result"]), (&json!("FAILED"), &Value::Null), "{deep}: {step}");
        assert_eq!(step["error"]["details"]["subtask_id"], "a", "{deep}: {step}");
        let plan = node.run_task(&json!({ "name": "n", "goal": "g", "parameters": { "deep": deep } })).await;
        assert_eq!((&plan["status"], &plan["reason"]), (&json!("FAILED"), &json!("NO_PLAN")), "{deep}: {plan}");
    }
    assert_eq!(node.run_task(&task(&[fine("a")])).await["outcome"], "success");
}

/// AITP-11: ids that name nothing, several things, or nothing at all; a result before the end; questions that make no sense.
#[tokio::test]
async fn questions_about_tasks_that_are_not_there_are_answered_with_the_way_on() {
    let workshop = Workshop::new();
    let node = planner().agent(workshop.worker("worker", "test.work", json!({}))).spawn().await;
    node.knows("test.work", &["worker"]).await;
    for id in ["00000000-0000-4000-8000-000000000000", "0000", "x", "%20", "..%2f..%2fetc%2fpasswd", "${a}", &"9".repeat(2_000)] {
        for (verb, path) in [(Method::GET, ""), (Method::GET, "/result"), (Method::GET, "/events"), (Method::POST, "/cancel")] {
            let error = node.send(node.request(verb, &format!("/aitp/tasks/{id}{path}"))).await.refused(404, "TASK_NOT_FOUND");
            assert!(error["details"]["suggestion"].as_str().is_some_and(|text| text.contains("meshwork task list")), "{error}");
        }
    }
    for query in ["?status=DONE", "?limit=x", "?limit=-1", "?after=yesterday", "?sort=name"] {
        node.get(&format!("/aitp/tasks{query}")).await.refused(400, "INVALID_REQUEST");
    }
    let id = node.submit(&task(&[step("a", "test.work", json!({ "until": "go" }))])).await;
    node.get(&format!("/aitp/tasks/{id}/result")).await.refused(425, "NOT_FINISHED");
    for query in ["?after=x", "?after=-1", "?from=1"] {
        node.get(&format!("/aitp/tasks/{id}/events{query}")).await.refused(400, "INVALID_REQUEST");
    }
    node.get(&format!("/aitp/tasks/{id}?explain=maybe")).await.refused(400, "INVALID_REQUEST");
    workshop.release("go");
    node.result(&id).await;
    node.post(&format!("/aitp/tasks/{id}/cancel"), &json!({})).await.refused(409, "CONFLICT");
}

/// Threat T24: tasks are behind the same guard as all else.
#[tokio::test]
async fn nobody_reaches_tasks_without_the_token() {
    let node = Node::builder().agent(builtin("echo", "echo")).spawn().await;
    let id = node.submit(&task(&[fine("a")])).await;
    for (verb, path) in [
        (Method::GET, "/aitp/tasks".to_owned()),
        (Method::POST, "/aitp/tasks".to_owned()),
        (Method::POST, "/aitp/tasks/plan".to_owned()),
        (Method::GET, format!("/aitp/tasks/{id}")),
        (Method::GET, format!("/aitp/tasks/{id}/result")),
        (Method::GET, format!("/aitp/tasks/{id}/events")),
        (Method::POST, format!("/aitp/tasks/{id}/cancel")),
    ] {
        let bare = node.bare(verb.clone(), &path).json(&task(&[fine("a")]));
        node.send(bare).await.refused(401, "AUTHENTICATION_FAILED");
        let foreign = node.request(verb, &path).header("Origin", "https://evil.example").json(&task(&[fine("a")]));
        node.send(foreign).await.refused(403, "ACCESS_DENIED");
    }
}

/// AITP-1: the command line says what is wrong with a file and where, and ends with the exit code for it.
#[tokio::test]
async fn the_command_line_says_what_is_wrong_with_a_file() {
    let node = Node::builder().agent(builtin("echo", "echo")).spawn().await;
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("task.yaml");
    let name = file.to_str().expect("temporary folders have plain names");
    for (yaml, code, words) in [
        ("name: [\n", 2, "task.yaml"),
        ("name: n\nname: m\n", 2, "name"),
        ("name: &x n\ngoal: *x\n", 2, "task.yaml"),
        ("name: n\nsubtasks:\n  - subtask_id: a\n    agent_capability: echo\n    input: ${b.output}\n", 1, "/subtasks/0/input"),
        ("name: n\nsubtasks: []\nmetadata: { cost_limit: -3 }\n", 1, "/metadata/cost_limit"),
    ] {
        std::fs::write(&file, yaml).expect("the file is written");
        for verb in ["run", "submit", "plan"] {
            let output = node.cli(&["task", verb, name]).await;
            assert!(output.code == code && output.stderr.contains(words) && output.stdout.is_empty(), "{verb} {yaml}: {output:?}");
        }
    }
    for arguments in [
        &["task"][..],
        &["task", "run"],
        &["task", "run", "/nowhere/task.yaml"],
        &["task", "run", name, "--input", "x"],
        &["task", "run", name, "--timeout", "-1"],
        &["task", "status", "abc"],
        &["task", "list", "--status", "DONE"],
        &["task", "list", "--limit", "0"],
    ] {
        let output = node.cli(arguments).await;
        assert!(output.code == 2 && !output.stderr.is_empty(), "{arguments:?}: {output:?}");
    }
    for arguments in [&["task", "status", "00000000"][..], &["task", "result", "00000000-0000-4000-8000-000000000000"]] {
        let output = node.cli(arguments).await;
        assert!(output.code == 1 && output.stderr.contains("TASK_NOT_FOUND") && output.stderr.contains("task list"), "{output:?}");
    }
    let nobody = meshwork(&["task", "list", "--api", "http://127.0.0.1:1", "--data-dir", node.data_dir().to_str().expect("a name")]).await;
    assert_eq!(nobody.code, 3, "{nobody:?}");
}
