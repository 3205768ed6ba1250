//! Tasks that name a shared context: their steps are given what it holds and write to it, and no agent needs a right of its own (AMP "Context
//! Management", MAOP 3.3).

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{
    Node, SETTLE, eventually, script,
    tasks::{step, task},
    with,
};

/// An agent that answers with what it is given, and writes what its input says.
fn agent(name: &str, capability: &str) -> Value {
    script(name, "contexts.py", &[], json!({ "id": capability, "idempotent": true }))
}

async fn create(owner: &Node, shared: Value, access: Value) -> String {
    let body = json!({ "session_id": "session-1", "shared_memory": shared, "access_control": access });
    owner.post("/v1/contexts", &body).await.ok()["id"].as_str().expect("an id").to_owned()
}

async fn shared(node: &Node, id: &str) -> Value {
    node.get(&format!("/v1/contexts/{id}?path=/shared_memory")).await.ok()
}

fn append(path: &str, value: &str) -> Value {
    json!([{ "op": "append", "path": format!("/shared_memory{path}"), "value": value }])
}

/// A task with that context, whose steps are not repeated.
fn with_context(context: Value, subtasks: &[Value]) -> Value {
    with(task(subtasks), json!({ "context": context, "metadata": { "retry_policy": { "max_retries": 0 } } }))
}

/// AMP-9, MAOP-5: what one step writes the next one sees, on whatever nodes they run; the history says which steps wrote; agents that are
/// called otherwise see no context.
#[tokio::test]
async fn a_step_sees_what_the_step_before_it_wrote() {
    let other = Node::builder().agent(agent("second", "test.second")).spawn().await;
    let home = Node::builder().agent(agent("first", "test.first")).join(&other).spawn().await;
    home.knows("test.second", &["second"]).await;
    let id = create(&home, json!({ "plan": { "title": "draft" } }), json!({})).await;
    // More than stands in the journal itself, or in one operation.
    let long = "x".repeat(40_000);
    let mut ops = append("/plan/log", "from a").as_array().expect("a list").clone();
    ops.extend((0..2).map(|at| json!({ "op": "set", "path": format!("/shared_memory/plan/long/{at}"), "value": long })));
    let mut second = step("b", "test.second", json!({ "ops": [] }));
    (second["depends_on"], second["context"]) = (json!(["a"]), json!("read"));
    let mut third = step("c", "test.second", json!({}));
    (third["depends_on"], third["context"]) = (json!(["b"]), json!("none"));
    let wanted = json!({ "id": &id[..10], "access": "write", "path": "/shared_memory/plan" });
    let subtasks = [step("a", "test.first", json!({ "ops": ops })), second, third];
    let definition = with(task(&subtasks), json!({ "context": wanted, "output": { "type": "object" } }));

    let plan = home.post("/aitp/tasks/plan", &definition).await.ok();
    assert_eq!(plan["subtasks"].as_array().map(Vec::len), Some(3), "{plan}");
    let task = home.submit(&definition).await;
    let history = home.history(&task).await;
    let result = home.task_result(&task).await;
    assert_eq!((&result["outcome"], &result["result"]), (&json!("success"), &json!({})), "{result}\n{history:?}");
    let names: Vec<&str> = history.iter().filter(|(_, event)| event["subtask_id"] == "a").map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["dispatched", "accepted", "result_received", "context_written", "validated"]);
    let written = json!({ "title": "draft", "log": ["from a"], "long": { "0": long, "1": long } });
    assert_eq!(shared(&home, &id).await, json!({ "plan": written }));

    let past = home.get(&format!("/v1/contexts/{id}/history")).await.ok();
    let rows = past["operations"].as_array().expect("a list");
    let by_step: Vec<&Value> = rows.iter().map(|row| &row["step"]).filter(|step| !step.is_null()).collect();
    assert!(by_step.len() >= 2 && by_step.iter().all(|by| **by == json!({ "task_id": task, "subtask_id": "a" })), "{past}");

    // What the second was given stands in its output.
    let mut reads = step("b", "test.second", json!({}));
    reads["context"] = json!("read");
    let again = home.submit(&with_context(json!({ "id": id, "access": "write", "path": "/shared_memory/plan" }), &[reads])).await;
    home.history(&again).await;
    let given = home.task_result(&again).await["result"]["given"].clone();
    assert_eq!((&given["id"], &given["session_id"], &given["value"]), (&json!(id), &json!("session-1"), &written), "{given}");
    assert_eq!((&given["path"], &given["access"]), (&json!("/shared_memory/plan"), &json!("read")));
    let frontier = home.get(&format!("/v1/contexts/{id}")).await.ok()["version"]["frontier"].clone();
    assert_eq!(given["version"], json!({ "frontier": frontier }));
    assert_eq!(home.call("test.first", json!({})).await["output"], json!({}), "a plain call has no context");
}

/// What cannot be used is refused when the task is submitted or planned, with its place.
#[tokio::test]
async fn a_context_that_a_task_cannot_use_is_refused_with_its_place() {
    let owner = Node::builder().agent(agent("editor", "test.first")).spawn().await;
    let other = Node::builder().join(&owner).spawn().await;
    owner.meets(&other).await;
    let id = create(&owner, json!({ "plan": {} }), json!({ "read": [other.id()] })).await;
    eventually("the context is there", SETTLE, async || (other.get(&format!("/v1/contexts/{id}")).await.status == 200).then_some(())).await;
    let unknown = "ab".repeat(32);
    for (node, context, place, word) in [
        (&owner, json!(unknown), "/context/id", "CONTEXT_NOT_FOUND"),
        (&owner, json!("abcd"), "/context/id", "CONTEXT_NOT_FOUND"),
        (&owner, json!({ "id": id, "agent": "nobody" }), "/context/agent", "AGENT_NOT_FOUND"),
        (&owner, json!({ "id": id, "agent": "editor" }), "/context/id", "ACCESS_DENIED"),
        (&other, json!({ "id": id, "access": "write" }), "/context/path", "ACCESS_DENIED"),
        (&owner, json!({ "id": id, "access": "all" }), "/context/access", "words"),
    ] {
        let definition = with_context(context, &[step("a", "test.first", json!({}))]);
        for path in ["/aitp/tasks", "/aitp/tasks/plan"] {
            let refused = node.post(path, &definition).await.refused(400, "INVALID_REQUEST");
            assert_eq!(refused["details"]["path"], place, "{refused}");
            assert!(refused["message"].as_str().expect("a message").contains(word), "{refused}");
        }
    }
    let sections = json!({ "Task": { "name": "t", "context": unknown }, "Subtasks": [step("a", "test.first", json!({}))] });
    let refused = owner.post("/aitp/tasks", &sections).await.refused(400, "INVALID_REQUEST");
    assert_eq!(refused["details"]["path"], "/Task/context/id");
    let read = with_context(json!(id), &[step("a", "test.first", json!({}))]);
    let task = other.submit(&read).await;
    other.history(&task).await;
    assert_eq!(other.task_result(&task).await["result"]["given"]["value"], json!({ "plan": {} }), "a reader may read");
}

/// AMP-9: what a step may not write, or nobody can read, is an output that is no use: its place is told, the work is redone, and nothing of it is
/// written.
#[tokio::test]
async fn what_a_step_may_not_write_is_no_use() {
    let home = Node::builder().agent(agent("first", "test.first")).spawn().await;
    let id = create(&home, json!({ "plan": {} }), json!({})).await;
    let inside = json!([{ "op": "inc", "path": "/shared_memory/plan/votes" }]);
    let write = json!({ "id": id, "access": "write", "path": "/shared_memory/plan" });
    let huge = json!([{ "op": "set", "path": "/shared_memory/plan/a", "value": "x".repeat(70_000) }]);
    for (context, ops, place) in [
        (json!(id), inside.clone(), "/context_ops"),
        (write.clone(), json!([inside[0], append("/log", "x")[0]]), "/context_ops/1/path"),
        (write.clone(), json!([{ "op": "set", "path": "/shared_memory/plan/a" }]), "/context_ops/0/value"),
        (write.clone(), json!([{ "op": "put", "path": "/shared_memory/plan/a", "value": 1 }]), "/context_ops/0/op"),
        (write.clone(), json!("all"), "/context_ops"),
        (write.clone(), huge, "/context_ops"),
    ] {
        let task = home.submit(&with_context(context, &[step("a", "test.first", json!({ "ops": ops }))])).await;
        let history = home.history(&task).await;
        let error = history.iter().find(|(name, _)| name == "invalid_output").map(|(_, event)| event["error"].clone());
        let error = error.unwrap_or_else(|| panic!("{history:?}"));
        assert_eq!((&error["code"], &error["details"]["path"]), (&json!("INVALID_SCHEMA"), &json!(place)), "{error}");
        assert_eq!(home.task_result(&task).await["reason"], "RETRIES_EXHAUSTED");
    }
    let mut none = step("a", "test.first", json!({ "ops": inside }));
    none["context"] = json!("none");
    let task = home.submit(&with_context(write.clone(), &[none])).await;
    let history = home.history(&task).await;
    assert!(
        history.iter().any(|(name, event)| name == "invalid_output" && event["error"]["details"]["path"] == "/context_ops"),
        "{history:?}"
    );
    assert_eq!(shared(&home, &id).await, json!({ "plan": {} }), "nothing was written");

    let tries = json!({ "step": "s", "tries": [append("/log", "x"), inside] });
    let mut definition = with_context(write, &[step("a", "test.first", tries)]);
    definition["metadata"]["retry_policy"] = json!({ "max_retries": 1, "backoff_base_ms": 10 });
    let task = home.submit(&definition).await;
    home.history(&task).await;
    assert_eq!(home.task_result(&task).await["outcome"], "success");
    assert_eq!(shared(&home, &id).await, json!({ "plan": { "votes": 1 } }), "the second answer was right");
}

/// A context that is too large for a call fails the step, and says how it would fit.
#[tokio::test]
async fn a_context_that_is_too_large_is_not_given() {
    let home = Node::builder().agent(agent("first", "test.first")).spawn().await;
    let parts: Vec<String> = (0..6).map(|_| "x".repeat(50_000)).collect();
    let id = create(
        &home,
        json!({ "small": 1, "large": { "a": parts[0], "b": parts[1], "c": parts[2], "d": parts[3], "e": parts[4], "f": parts[5] } }),
        json!({}),
    )
    .await;
    let task = home.submit(&with_context(json!(id), &[step("a", "test.first", json!({}))])).await;
    home.history(&task).await;
    let result = home.task_result(&task).await;
    let error = &result["error"];
    assert_eq!(
        (&error["code"], &error["details"]["path"], &error["details"]["limit"]),
        (&json!("PAYLOAD_TOO_LARGE"), &json!("/shared_memory"), &json!(262_144)),
        "{result}"
    );
    let narrow = json!({ "id": id, "path": "/shared_memory/small" });
    let task = home.submit(&with_context(narrow, &[step("a", "test.first", json!({}))])).await;
    home.history(&task).await;
    assert_eq!(home.task_result(&task).await["result"]["given"]["value"], 1);
}

/// A step whose part of the context finds no room waits for it, and shows since when and why; with room it goes on, and writes once.
#[tokio::test]
async fn a_write_that_waits_for_room_is_shown() {
    let home = Node::builder().config("[context]\nbytes_max = 1048576\n").agent(agent("first", "test.first")).spawn().await;
    let id = create(&home, json!({}), json!({})).await;
    let large = "x".repeat(60_000);
    let filler = create(&home, (0..16).map(|at| (at.to_string(), json!(large))).collect(), json!({})).await;
    let ops = json!([0, 1].map(|_| json!({ "op": "append", "path": "/shared_memory/log", "value": large })));
    let task = home.submit(&with_context(json!({ "id": id, "access": "write" }), &[step("a", "test.first", json!({ "ops": ops }))])).await;
    let waiting = async || {
        let status = home.get(&format!("/aitp/tasks/{task}")).await.ok();
        Some(status["progress"]["steps"][0].clone()).filter(|step| !step["context_write"].is_null())
    };
    let shown = eventually("the write waits", SETTLE, waiting).await;
    let write = &shown["context_write"];
    assert_eq!(
        (&write["state"], &write["reason"], &shown["status"]),
        (&json!("waiting"), &json!("INSUFFICIENT_RESOURCES"), &json!("COMPLETED"))
    );
    assert!(write["since"].as_u64() >= shown["started_at"].as_u64() && write["since"].is_u64(), "{shown}");
    let told = home.cli(&["task", "status", &task]).await.stdout;
    assert!(told.contains("waits for its context: ") && told.contains("(context.bytes_max)"), "{told}");

    home.delete(&format!("/v1/contexts/{filler}")).await.ok();
    let history = home.history(&task).await;
    let names: Vec<&str> = history.iter().filter(|(_, event)| event["subtask_id"] == "a").map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["dispatched", "accepted", "result_received", "context_written", "validated"], "tries are no events");
    assert_eq!(shared(&home, &id).await["log"], json!([large, large]));
    assert_eq!(home.get(&format!("/aitp/tasks/{task}")).await.ok()["progress"]["steps"][0]["context_write"], Value::Null);
}

/// A right that is taken away while a step works is gone when it writes: the step fails for it, and nothing is written.
#[tokio::test]
async fn a_right_that_is_taken_away_meanwhile_is_gone() {
    let owner = Node::first().await;
    let home = Node::builder().agent(agent("first", "test.first")).join(&owner).spawn().await;
    owner.meets(&home).await;
    let id = create(&owner, json!({ "plan": {} }), json!({ "write": [home.id()] })).await;
    eventually("the context is there", SETTLE, async || (home.get(&format!("/v1/contexts/{id}")).await.status == 200).then_some(())).await;
    let go = home.data_dir().join("go");
    let input = json!({ "ops": append("/log", "x"), "until": go });
    let task = home.submit(&with_context(json!({ "id": id, "access": "write" }), &[step("a", "test.first", input)])).await;
    home.task_events(&task).await.wait_for("accepted", SETTLE, |event| event["subtask_id"] == "a").await;
    owner.put(&format!("/v1/contexts/{id}/access"), &json!({ "read": [home.id()], "write": [] })).await.ok();
    let gone = async || {
        let patch = home.request(Method::PATCH, &format!("/v1/contexts/{id}")).json(&json!({ "shared_memory": { "probe": 1 } }));
        (home.send(patch).await.status == 403).then_some(())
    };
    eventually("the right is gone", SETTLE, gone).await;
    std::fs::write(&go, "").expect("the file is written");
    let history = home.history(&task).await;
    let result = home.task_result(&task).await;
    assert_eq!((&result["reason"], &result["error"]["code"]), (&json!("NON_RETRYABLE"), &json!("ACCESS_DENIED")), "{result}\n{history:?}");
    assert!(!history.iter().any(|(name, _)| name == "context_written"), "{history:?}");
    assert_eq!(shared(&owner, &id).await["log"], Value::Null);
}

/// Threat T20: a task that another node gave away has no more rights in a context than that node; with them it has its own context there.
#[tokio::test]
async fn a_task_of_another_node_has_the_rights_of_that_node() {
    let runner = json!({ "name": "runner", "concurrency": 4, "adapter": { "type": "task" } });
    let there = Node::builder().agent(agent("first", "test.first")).agent(runner).spawn().await;
    let home = Node::builder().join(&there).spawn().await;
    home.knows("task-execution", &["runner"]).await;
    let hidden = create(&there, json!({ "plan": {} }), json!({})).await;
    let open = create(&there, json!({ "plan": {} }), json!({ "write": [home.id()] })).await;
    let ends = async |id: &str| {
        let inner = with_context(json!({ "id": id, "access": "write" }), &[step("a", "test.first", json!({ "ops": append("/log", "x") }))]);
        let outer = json!({ "subtask_id": "o", "task": inner });
        let definition = with(task(&[outer]), json!({ "metadata": { "retry_policy": { "max_retries": 0 } } }));
        let task = home.submit(&definition).await;
        home.history(&task).await;
        home.task_result(&task).await
    };
    let refused = ends(&hidden).await;
    assert_eq!(refused["outcome"], "failed", "{refused}");
    assert!(refused["error"]["message"].as_str().is_some_and(|message| message.contains("ACCESS_DENIED")), "{refused}");
    assert_eq!(shared(&there, &hidden).await, json!({ "plan": {} }));
    let done = ends(&open).await;
    assert_eq!(done["outcome"], "success", "{done}");
    assert_eq!(shared(&there, &open).await["log"], json!(["x"]));
}
