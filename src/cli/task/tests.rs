//! Whole verbs on tasks against a small server that answers as a node does.

use std::{
    future::pending,
    sync::atomic::{AtomicUsize, Ordering},
};

use axum::{
    body::Body,
    http::StatusCode,
    response::{IntoResponse as _, Response},
};
use futures::{StreamExt as _, stream};
use serde_json::{Value, json};

use super::{
    document::Status,
    progress::{Frame, lines},
    run_until,
};
use crate::cli::{
    Verb,
    output::Screen,
    report,
    tests::{AGENT, NODE, Node, answer, parse, refusal, token},
};

const ID: &str = "1f3a9c02-5b1e-4c55-9d3f-0123456789ab";

/// A task file, which goes with its folder.
struct File {
    _folder: tempfile::TempDir,
    path: String,
}

fn file(task: &Value) -> File {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("task.json");
    std::fs::write(&path, task.to_string()).expect("written");
    let name = path.display().to_string();
    File { _folder: folder, path: name }
}

fn event(index: u64, name: &str, more: Value) -> Value {
    let mut event = json!({ "index": index, "task_id": ID, "event": name, "at_ms": 43_384_005 + index });
    event.as_object_mut().expect("an object").extend(more.as_object().cloned().unwrap_or_default());
    event
}

fn sse(events: &[Value]) -> String {
    let one = |event: &Value| format!("id: {}\nevent: {}\ndata: {event}\n\n", event["index"], event["event"].as_str().expect("a name"));
    events.iter().map(one).collect()
}

/// A stream of these events that ends with the last.
fn closed(events: &[Value]) -> Response {
    ([("content-type", "text/event-stream")], sse(events)).into_response()
}

/// A stream of these events that stays open.
fn open(events: &[Value]) -> Response {
    let text: Result<String, std::io::Error> = Ok(sse(events));
    let body = Body::from_stream(stream::iter([text]).chain(stream::pending()));
    ([("content-type", "text/event-stream")], body).into_response()
}

fn created() -> Response {
    answer(201, json!({ "task_id": ID, "status": "PENDING", "created_at": 1_000 }))
}

fn ended(outcome: &str, more: Value) -> Value {
    let status = if matches!(outcome, "success" | "partial") { "COMPLETED" } else { "FAILED" };
    let mut document = json!({ "task_id": ID, "status": status, "outcome": outcome, "reason": null, "error": null, "result": { "n": 1 },
        "missing": [], "cost": 0.051, "currency": "USD", "execution_time_ms": 12 });
    document.as_object_mut().expect("an object").extend(more.as_object().cloned().unwrap_or_default());
    document
}

/// A node that takes a task whose result is `result`.
async fn node_with(result: Value) -> Node {
    Node::start(move |call, _| match call {
        "POST /aitp/tasks" => created(),
        call if call.contains("/events") => closed(&[event(1, "submitted", json!({})), event(2, "ended", json!({}))]),
        _ => answer(200, result.clone()),
    })
    .await
}

fn calls(node: &Node) -> Vec<String> {
    node.requests().into_iter().map(|(call, _)| call.replace(ID, "ID")).collect()
}

#[tokio::test]
async fn the_result_of_a_task_stands_alone_on_stdout() {
    let node = node_with(ended("success", json!({}))).await;
    let file = file(&json!({ "name": "t", "parameters": { "a": 1 } }));
    let ran = node.run(&["task", "run", &file.path, "--input", "topic=bees", "--input", "a=[2]"]).await;
    assert_eq!(ran, (0, "{\"n\":1}\n".to_owned(), String::new()));
    assert_eq!(calls(&node), ["POST /aitp/tasks", "GET /aitp/tasks/ID/events", "GET /aitp/tasks/ID/result"]);
    assert_eq!(node.requests()[0].1, json!({ "name": "t", "parameters": { "a": [2], "topic": "bees" } }));
    let (exit, out, _) = node.run(&["task", "run", &file.path, "--json"]).await;
    assert_eq!((exit, serde_json::from_str::<Value>(&out).expect("JSON")), (0, ended("success", json!({}))));
}

#[tokio::test]
async fn a_submission_without_an_answer_is_sent_again_with_its_key() {
    let tries = AtomicUsize::new(0);
    let node =
        Node::start(
            move |_, _| {
                if tries.fetch_add(1, Ordering::Relaxed) == 0 { (StatusCode::BAD_GATEWAY, "gone").into_response() } else { created() }
            },
        )
        .await;
    let file = file(&json!({}));
    assert_eq!(node.run(&["task", "submit", &file.path]).await, (0, format!("{ID}\n"), String::new()));
    let keys = node.keys();
    assert!(keys.len() == 2 && keys[0] == keys[1] && keys[0].len() == 32, "{keys:?}");
    let (exit, out, _) = node.run(&["task", "submit", &file.path, "--key", "monday", "--json"]).await;
    assert_eq!((exit, node.keys().pop().as_deref()), (0, Some("monday")));
    assert_eq!(serde_json::from_str::<Value>(&out).expect("JSON")["task_id"], ID);
}

#[tokio::test]
async fn a_wait_goes_on_where_it_was_when_the_node_comes_back() {
    let tries = AtomicUsize::new(0);
    let node = Node::start(move |call, _| match call {
        "POST /aitp/tasks" => created(),
        call if call.contains("/events") => match tries.fetch_add(1, Ordering::Relaxed) {
            0 => closed(&[event(1, "submitted", json!({})), event(2, "planned", json!({}))]),
            1 => (StatusCode::BAD_GATEWAY, "starting").into_response(),
            2 => refusal(503, "UNAVAILABLE", json!({})),
            // It repeats one that was seen, which must not be told again.
            _ => closed(&[event(2, "planned", json!({})), event(3, "ended", json!({}))]),
        },
        _ => answer(200, ended("success", json!({}))),
    })
    .await;
    let file = file(&json!({}));
    let (exit, out, err) = node.run(&["task", "run", &file.path, "--watch"]).await;
    assert_eq!((exit, out.as_str()), (0, "{\"n\":1}\n"));
    assert_eq!(calls(&node)[1..4], ["GET /aitp/tasks/ID/events", "GET /aitp/tasks/ID/events?after=2", "GET /aitp/tasks/ID/events?after=2"]);
    assert_eq!(err.matches("planned").count(), 1, "{err}");
    assert!(err.contains("broke off; trying again\n") && err.contains("\nconnected again\n12:03:04.008  ended\n"), "{err}");
}

#[tokio::test]
async fn a_task_that_is_unknown_ends_the_wait() {
    let node = Node::start(|call, _| if call == "POST /aitp/tasks" { created() } else { refusal(404, "TASK_NOT_FOUND", json!({})) }).await;
    let file = file(&json!({}));
    let (exit, _, err) = node.run(&["task", "run", &file.path]).await;
    assert_eq!((exit, err.as_str()), (1, "error: TASK_NOT_FOUND: no\n"));
}

#[tokio::test]
async fn a_failed_task_is_exit_code_one_with_its_code_and_a_way_on() {
    for code in ["AGENT_FAILED", "TIMEOUT"] {
        let error = json!({ "code": code, "number": 3500, "message": "boom \u{1b}[2J", "retryable": true, "details": {} });
        let node = node_with(ended("failed", json!({ "reason": "DEADLINE", "error": error }))).await;
        let file = file(&json!({}));
        let (exit, out, err) = node.run(&["task", "run", &file.path]).await;
        assert_eq!((exit, out.as_str()), (1, ""));
        assert_eq!(err, format!("error: {code}: boom \u{fffd}[2J\nhint: `meshwork task status 1f3a9c02` shows what each step did\n"));
        let (exit, out, _) = node.run(&["task", "result", ID, "--json"]).await;
        let document: Value = serde_json::from_str(&out).expect("one document");
        assert_eq!((exit, &document["error"]["code"], &document["outcome"]), (1, &json!(code), &json!("failed")));
    }
}

#[tokio::test]
async fn a_cancelled_task_is_exit_code_one_and_a_partial_one_names_what_is_missing() {
    let node = node_with(ended("cancelled", json!({ "reason": "CANCELLED" }))).await;
    let (exit, out, err) = node.run(&["task", "result", ID]).await;
    assert_eq!((exit, out.as_str()), (1, ""));
    assert!(err.starts_with(&format!("error: CANCELLED: task {ID} was cancelled\nhint: ")), "{err}");

    let node = node_with(ended("partial", json!({ "missing": ["sum\u{1b}", "chart"] }))).await;
    let (exit, out, err) = node.run(&["task", "result", ID]).await;
    assert_eq!((exit, out.as_str()), (0, "{\"n\":1}\n"));
    assert!(err.starts_with("the result is partial: nothing from sum\u{fffd}, chart\nhint: "), "{err}");
}

#[tokio::test]
async fn an_interrupted_wait_leaves_the_task_and_says_how_to_go_on() {
    let node = Node::start(|call, _| if call == "POST /aitp/tasks" { created() } else { open(&[event(1, "submitted", json!({}))]) }).await;
    let (file, screen) = (file(&json!({})), Screen::memory());
    let cli = parse(&["task", "run", &file.path, "--api", &node.address], token(), &screen);
    let Verb::Task(args) = cli.verb else { panic!("a task") };
    let arrived = node.arrived.clone();
    let interrupt = async move {
        arrived.notified().await;
        arrived.notified().await;
    };
    let exit = report(run_until(args, &cli.global, interrupt).await, &cli.global);
    let (out, err) = screen.pages();
    assert_eq!((exit as u8, out.as_str()), (1, ""));
    assert!(err.starts_with(&format!("error: NOT_FINISHED: interrupted; task {ID} goes on\nhint: ")), "{err}");
    assert!(err.contains("`meshwork task watch 1f3a9c02`") && err.contains("`meshwork task cancel 1f3a9c02`"), "{err}");
    assert_eq!(calls(&node), ["POST /aitp/tasks", "GET /aitp/tasks/ID/events"], "nothing is cancelled");
}

#[tokio::test]
async fn interrupted_before_the_answer_the_key_is_told() {
    let node = Node::start_silent().await;
    let (file, screen) = (file(&json!({})), Screen::memory());
    let cli = parse(&["task", "run", &file.path, "--key", "monday", "--api", &node.address], token(), &screen);
    let Verb::Task(args) = cli.verb else { panic!("a task") };
    let arrived = node.arrived.clone();
    let exit = report(run_until(args, &cli.global, async move { arrived.notified().await }).await, &cli.global);
    assert_eq!(exit as u8, 1);
    assert!(screen.pages().1.contains("may have taken the task") && screen.pages().1.contains("--key monday"), "{}", screen.pages().1);
}

#[tokio::test]
async fn a_wait_that_runs_out_is_exit_code_four() {
    let node = Node::start(|call, _| match call {
        "POST /aitp/tasks" => created(),
        call if call.ends_with("/result") => refusal(425, "NOT_FINISHED", json!({ "retry_after_ms": 1_000 })),
        _ => open(&[event(1, "submitted", json!({}))]),
    })
    .await;
    let file = file(&json!({}));
    let words = [&["task", "run", &file.path, "--timeout", "0.05"][..], &["task", "result", ID, "--wait", "--timeout", "0.05"]];
    for words in words {
        let (exit, out, err) = node.run(words).await;
        assert_eq!((exit, out.as_str()), (4, ""));
        assert!(err.starts_with("error: TIMEOUT: ") && err.contains("`meshwork task result 1f3a9c02 --wait`"), "{err}");
    }
    let (exit, _, err) = node.run(&["task", "result", ID]).await;
    assert!(exit == 1 && err.starts_with("error: NOT_FINISHED") && err.contains("--wait"), "{err}");
}

#[tokio::test]
async fn every_fault_of_a_definition_is_shown_with_its_place() {
    let faults = json!([{ "path": "/subtasks/1/input/text", "message": "nothing is called `x`", "suggestion": "y" }]);
    let node = Node::start(move |_, _| refusal(400, "INVALID_REQUEST", json!({ "faults": faults }))).await;
    let file = file(&json!({}));
    let (exit, _, err) = node.run(&["task", "run", &file.path]).await;
    assert_eq!((exit, err.as_str()), (1, "error: INVALID_REQUEST: no\n  /subtasks/1/input/text: nothing is called `x`\n"));
    assert_eq!(node.requests().len(), 1, "what the node refused is not sent again");
    assert_eq!(node.run(&["task", "run", "/nowhere/at/all"]).await.0, 2);
}

#[tokio::test]
async fn a_plan_shows_who_would_do_what_and_one_with_a_gap_is_exit_code_one() {
    let costs = json!([{ "amount": "0.5", "currency": "EUR" }, { "amount": "0.003", "currency": "USD" }]);
    let plan = json!({ "name": "t", "decomposed_by": "schemas", "estimated_cost": null, "estimated_costs": costs, "runnable": false,
        "subtasks": [
            { "subtask_id": "extract", "capability": "pdf", "after": [], "candidates": 3, "reason": null,
                "agent": { "agent_id": AGENT, "name": "extractor\u{1b}", "node_id": NODE, "score": 0.89, "trust": 70 },
                "estimated_cost": { "amount": "0.001", "currency": "USD" } },
            { "subtask_id": "sum", "capability": "magic", "after": ["extract"], "agent": null, "candidates": 0, "estimated_cost": null,
                "reason": "no agent offers `magic`" },
        ] });
    let sent = plan.clone();
    let node = Node::start(move |_, _| answer(200, sent.clone())).await;
    let file = file(&json!({}));
    let (exit, out, err) = node.run(&["task", "plan", &file.path]).await;
    assert_eq!(exit, 1);
    assert!(out.contains("extractor\u{fffd}@eXCES4on  …vnc6iDEp  3   0.890  0.001 USD\n"), "{out}");
    assert!(
        out.contains("\n  sum: no agent offers `magic`\n")
            && out.contains("what agents take and give; estimated cost 0.5 EUR and 0.003 USD\n"),
        "{out}"
    );
    assert!(err.starts_with("error: CAPABILITY_NOT_FOUND: the task cannot run now: 1 of 2 subtasks has no agent\nhint: "), "{err}");
    assert_eq!(calls(&node), ["POST /aitp/tasks/plan"]);
    let (exit, out, _) = node.run(&["task", "plan", &file.path, "--json"]).await;
    assert_eq!((exit, serde_json::from_str::<Value>(&out).expect("one document")), (1, plan));
}

fn status() -> Value {
    let step = |id: u64, name: &str, status: &str, after: Value| {
        json!({ "step_id": id, "subtask_id": name, "name": name, "capability": "text-analysis", "status": status, "after": after,
            "started_ms": null, "duration_ms": null, "agent_id": null, "agent": null, "node_id": null, "attempt": 1, "retries": 0, "cost": null,
            "waiting_for": null, "error": null })
    };
    let given = |mut step: Value, agent: &str, started_ms: u64| {
        (step["agent_id"], step["agent"], step["node_id"], step["started_ms"]) =
            (json!(AGENT), json!(agent), json!(NODE), json!(started_ms));
        step
    };
    let mut done = given(step(1, "extract", "SUCCESS", json!([])), "extractor", 10);
    (done["duration_ms"], done["cost"]) = (json!(1_240), json!(0.001));
    let running = given(step(2, "analyse", "EXECUTING", json!(["extract"])), "analyst", 1_300);
    let mut retrying = given(step(3, "translate", "RETRYING", json!(["extract"])), "polyglot\u{1b}[31m", 1_300);
    (retrying["attempt"], retrying["error"]) =
        (json!(2), json!({ "code": "AGENT_FAILED", "number": 3500, "message": "the \u{9b}model is gone" }));
    let mut deferred = step(4, "chart", "PENDING", json!([]));
    deferred["waiting_for"] = json!("deferred for 298 s: no agent offers `draw-chart`");
    let waiting = step(5, "summarize", "PENDING", json!(["extract", "analyse", "translate"]));
    json!({ "task_id": ID, "name": "Report on bees", "description": "", "goal": null, "status": "EXECUTING", "outcome": null, "reason": null,
        "error": null, "home_node_id": NODE, "priority": "NORMAL", "tags": [], "created_by": "x", "created_at": 1_000, "started_at": 1_000,
        "ended_at": null, "deadline": 5_000, "current_step": 2, "estimated_completion": null, "cost_so_far": 0.051, "currency": "USD", "budget": 10,
        "progress": { "task_id": ID, "current_step": 2, "total_steps": 5, "percent_complete": 20,
            "steps": [done, running, retrying, deferred, waiting] } })
}

#[tokio::test]
async fn a_status_has_a_row_per_step_and_what_keeps_it() {
    let node = Node::start(|call, _| {
        let mut status = status();
        if call.ends_with("?explain=true") {
            let error = json!({ "code": "BUSY", "message": "come \u{1b}back" });
            status["progress"]["steps"][0]["attempts"] = json!([{ "attempt": 1, "agent_id": AGENT, "node_id": NODE, "chosen_ms": 2,
                "accepted_ms": 10, "ended_ms": 1_250, "outcome": "failed", "error": error }]);
        }
        answer(200, status)
    })
    .await;
    let (exit, out, err) = node.run(&["task", "status", ID]).await;
    assert_eq!((exit, err.as_str()), (0, ""));
    for part in [
        "status    EXECUTING\n",
        "progress  1 of 5 steps, 20 %\n",
        "deadline  1970-01-01T01:23:20Z\n",
        "cost      0.051 of 10 USD\n",
        "extractor@eXCES4on      …vnc6iDEp  1        1.24 s  0.001 USD  -\n",
        "  translate: AGENT_FAILED: the \u{fffd}model is gone\n",
        "  chart: deferred for 298 s: no agent offers `draw-chart`\n",
    ] {
        assert!(out.contains(part), "`{part}` is missing in:\n{out}");
    }
    assert!(!out.contains(['\u{1b}', '\u{9b}']), "{out}");
    let (_, out, _) = node.run(&["task", "status", ID, "--explain"]).await;
    assert!(out.contains("+2 ms   +10 ms    +1.25 s  failed") && out.contains("  extract attempt 1: BUSY: come \u{fffd}back\n"), "{out}");
    let (_, out, _) = node.run(&["task", "status", ID, "--json"]).await;
    assert_eq!(serde_json::from_str::<Value>(&out).expect("JSON"), status());
}

#[tokio::test]
async fn tasks_are_listed_page_by_page() {
    let node = Node::start(|_, _| {
        let mut task = status();
        (task["name"], task["status"], task["outcome"], task["reason"]) =
            (json!("a\u{1b}"), json!("FAILED"), json!("failed"), json!("DEADLINE"));
        (task["ended_at"], task["percent_complete"], task["total_steps"], task["tags"]) =
            (json!(1_075), json!(66), json!(3), json!(["x", "y"]));
        answer(200, json!({ "tasks": [task], "next": "c17" }))
    })
    .await;
    let (exit, out, _) = node.run(&["task", "list", "--status", "failed", "--tag", "a&b", "--limit", "1", "--after", "c1"]).await;
    assert_eq!(exit, 0);
    assert!(out.contains("1f3a9c02  a\u{fffd}    FAILED (DEADLINE)  66 %  3      1970-01-01T00:16:40Z  1 min  0.051 USD  x, y\n"), "{out}");
    assert!(out.ends_with("there are more: --after c17\n"), "{out}");
    assert_eq!(calls(&node), ["GET /aitp/tasks?status=FAILED&tag=a%26b&limit=1&after=c1"]);
    let node = Node::start(|_, _| answer(200, json!({ "tasks": [], "next": null }))).await;
    assert_eq!(node.run(&["task", "list"]).await, (0, "no tasks\n".to_owned(), String::new()));
}

#[tokio::test]
async fn a_list_goes_on_until_it_is_as_long_as_was_asked() {
    let node = Node::start(|call, _| {
        let rows = |names: &[&str]| names.iter().map(|name| json!({ "task_id": name })).collect::<Vec<_>>();
        answer(
            200,
            match call {
                "GET /aitp/tasks?tag=x&limit=5" => json!({ "tasks": rows(&["a", "b"]), "next": "c2" }),
                "GET /aitp/tasks?tag=x&limit=3&after=c2" => json!({ "tasks": rows(&["c", "d"]), "next": "c4" }),
                "GET /aitp/tasks?tag=x&limit=1&after=c4" => json!({ "tasks": rows(&["e"]), "next": "c5" }),
                // More than a page holds is not asked for at once.
                "GET /aitp/tasks?tag=y&limit=500" => json!({ "tasks": rows(&["g"; 500]), "next": "c7" }),
                "GET /aitp/tasks?tag=y&limit=200&after=c7" => json!({ "tasks": rows(&["h"; 200]), "next": null }),
                "GET /aitp/tasks?tag=x&limit=6&after=c5" => json!({ "tasks": rows(&["f"]), "next": null }),
                // A node that gives nothing and says that there is more is not asked for ever.
                _ => json!({ "tasks": [], "next": "c5" }),
            },
        )
    })
    .await;
    let ids = async |words: &[&str]| {
        let (exit, out, _) = node.run(&[&["task", "list", "--json"], words].concat()).await;
        let document: Value = serde_json::from_str(&out).expect("one document");
        assert_eq!(exit, 0, "{out}");
        let ids = document["tasks"].as_array().expect("rows").iter().map(|row| row["task_id"].as_str().expect("an id").to_owned());
        (ids.collect::<String>(), document["next"].clone())
    };
    assert_eq!(ids(&["--tag", "x", "--limit", "5"]).await, ("abcde".to_owned(), json!("c5")));
    assert_eq!(ids(&["--tag", "x", "--limit", "6", "--after", "c5"]).await, ("f".to_owned(), Value::Null));
    assert_eq!(ids(&["--tag", "y", "--limit", "700"]).await, ("g".repeat(500) + &"h".repeat(200), Value::Null));
    assert_eq!(ids(&["--limit", "1000"]).await, (String::new(), json!("c5")));
}

#[tokio::test]
async fn the_node_says_which_task_begins_so() {
    let node = Node::start(|call, _| match call {
        "GET /aitp/tasks/1f3a" => answer(200, status()),
        "GET /aitp/tasks/1f3b" => refusal(400, "INVALID_REQUEST", json!({ "candidates": ["1f3b-1", "1f3b-\u{1b}2"] })),
        call if call.starts_with("POST") => {
            let mut task = status();
            (task["status"], task["outcome"]) = (json!("FAILED"), json!("cancelled"));
            answer(200, task)
        }
        _ => refusal(404, "TASK_NOT_FOUND", json!({ "suggestion": "`meshwork task list` lists them" })),
    })
    .await;
    let (exit, out, _) = node.run(&["task", "cancel", "1f3a"]).await;
    assert_eq!((exit, out), (0, format!("cancelled Report on bees ({ID})\n")));
    assert_eq!(calls(&node).pop().as_deref(), Some("POST /aitp/tasks/ID/cancel"));
    let asked = node.requests().len();
    let (exit, _, err) = node.run(&["task", "cancel", "1f3b"]).await;
    assert!(exit == 2 && err.contains("1f3b-1, 1f3b-\u{fffd}2\nhint: write more of the id"), "{err}");
    let (exit, _, err) = node.run(&["task", "cancel", "ffff"]).await;
    assert!(exit == 1 && err.starts_with("error: TASK_NOT_FOUND") && err.contains("`meshwork task list`"), "{err}");
    assert_eq!(node.requests().len(), asked + 2, "nothing is cancelled then");
    // None of these is put into a path.
    for wrong in ["1f3", "plan", "../../v1/agents", "1f3a9c02/result", "Report", "", "1f3a9c02-5b1e-4c55-9d3f-0123456789ab?x=1"] {
        assert_eq!(node.run(&["task", "status", wrong]).await.0, 2, "{wrong}");
    }
    assert_eq!(node.requests().len(), asked + 2, "what is no id is not looked up");
}

#[tokio::test]
async fn a_plan_is_waited_for_as_long_as_an_agent_may_think_about_a_goal() {
    let node = Node::start(|_, _| {
        // The node says nothing for as long as it gives the agent. The clock stands still but for this wait, so that nobody waits.
        let thinks = stream::once(async {
            tokio::time::pause();
            tokio::time::sleep(std::time::Duration::from_secs(125)).await;
            tokio::time::resume();
            Ok::<_, std::io::Error>(json!({ "decomposed_by": "agent", "subtasks": [], "runnable": true }).to_string())
        });
        Body::from_stream(thinks).into_response()
    })
    .await;
    let file = file(&json!({ "goal": "g" }));
    let (exit, out, err) = node.run(&["task", "plan", &file.path]).await;
    assert_eq!((exit, err.as_str()), (0, ""));
    assert!(out.contains("an agent's proposal for the goal"), "{out}");
}

#[tokio::test]
async fn events_are_lines_for_people_and_documents_for_programs() {
    let events = || {
        let dispatched =
            json!({ "subtask_id": "extract", "attempt": 1, "agent_id": AGENT, "agent": "bad\u{1b}", "node_id": NODE, "fence": 3 });
        vec![
            event(7, "dispatched", dispatched),
            event(8, "attempt_failed", json!({ "subtask_id": "extract", "error": { "code": "BUSY", "message": "full" } })),
        ]
    };
    let node = Node::start(move |call, _| match call {
        call if call.contains("/events") => open(&events()),
        _ => answer(200, status()),
    })
    .await;
    let (exit, out, err) = node.run(&["task", "events", ID, "--after", "6"]).await;
    assert_eq!((exit, err.as_str()), (0, ""));
    assert_eq!(
        out,
        "12:03:04.012  dispatched        extract  attempt 1  bad\u{fffd}@eXCES4on  on …vnc6iDEp  fence 3\n\
         12:03:04.013  attempt_failed    extract  BUSY: full\n"
    );
    assert_eq!(calls(&node).pop().as_deref(), Some("GET /aitp/tasks/ID/events?after=6"));
    let (_, out, _) = node.run(&["task", "events", ID, "--json"]).await;
    let indexes: Vec<Value> = out.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON")["index"].clone()).collect();
    assert_eq!(indexes, [7, 8]);
}

#[tokio::test]
async fn followed_events_end_with_the_task_and_survive_the_connection() {
    let tries = AtomicUsize::new(0);
    let node = Node::start(move |call, _| match call {
        call if call.contains("/events") && tries.fetch_add(1, Ordering::Relaxed) == 0 => closed(&[event(1, "submitted", json!({}))]),
        call if call.contains("/events") => open(&[event(2, "ended", json!({ "outcome": "success" }))]),
        _ => answer(200, status()),
    })
    .await;
    let (exit, out, err) = node.run(&["task", "events", ID, "--follow"]).await;
    assert_eq!((exit, out.as_str()), (0, "12:03:04.006  submitted\n12:03:04.007  ended             outcome success\n"));
    assert!(err.ends_with("connected again\n"), "{err}");
}

#[tokio::test]
async fn a_watch_tells_every_event_and_ends_with_the_result() {
    let node = Node::start(|call, _| match call {
        call if call.contains("/events") => closed(&[event(1, "submitted", json!({})), event(2, "ended", json!({}))]),
        call if call.ends_with("/result") => answer(200, ended("success", json!({}))),
        _ => answer(200, status()),
    })
    .await;
    let (exit, out, err) = node.run(&["task", "watch", ID]).await;
    assert_eq!((exit, out.as_str(), err.lines().count()), (0, "{\"n\":1}\n", 2));
    let gone = Node::start(|_, _| refusal(404, "TASK_NOT_FOUND", json!({}))).await;
    assert_eq!(gone.run(&["task", "watch", ID]).await.0, 1);
}

#[tokio::test]
async fn a_node_that_does_not_answer_is_not_waited_for_long() {
    let waits = tokio::time::timeout(std::time::Duration::from_secs(30), async {
        let file = file(&json!({}));
        for words in [&["task", "submit", &file.path, "--api", "127.0.0.1:1"][..], &["task", "watch", ID, "--api", "127.0.0.1:1"]] {
            assert_eq!(crate::cli::tests::run_line(words, token()).await.0, 3);
        }
    });
    tokio::select! {
        ended = waits => ended.expect("soon"),
        () = pending() => {}
    }
}

fn view(task: Value, width: usize, rows_max: usize) -> Vec<String> {
    let task: Status = serde_json::from_value(task).expect("a status");
    lines(&task, &Frame { elapsed_ms: 12_300, width, rows_max, number: 0, lost: None, colour: false })
}

#[test]
fn the_live_view_fits_the_terminal() {
    assert_eq!(
        view(status(), 120, 20),
        [
            "⠋ Report on bees  1f3a9c02  EXECUTING  ━━━╌╌╌╌╌╌╌╌╌╌╌╌╌ 20 %  12 s  0.051 of 10 USD",
            "  ✓ extract    ━━━━━━━━━━━━━━━━  SUCCESS    extractor@eXCES4on      on …vnc6iDEp  1.24 s  0.001 USD",
            "  ⠋ analyse    ╍╍╍╌╌╌╌╌╌╌╌╌╌╌╌╌  EXECUTING  analyst@eXCES4on        on …vnc6iDEp  11 s",
            "  ↻ translate  ╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌  RETRYING   polyglot\u{fffd}[31m@eXCES4on  on …vnc6iDEp  11 s               attempt 2",
            "      AGENT_FAILED: the \u{fffd}model is gone",
            "  · chart      ╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌  PENDING    deferred for 298 s: no agent offers `draw-chart`",
            "  · summarize  ╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌  PENDING    after analyse, translate",
        ]
    );
    assert_eq!(
        view(status(), 80, 20),
        [
            "⠋ Report on bees  1f3a9c02  EXECUTING  ━━╌╌╌╌╌╌ 20 %  12 s  0.051 of 10 USD",
            "  ✓ extract    ━━━━━━━━  SUCCESS    extractor@eXCES4on      1.24 s  0.001 USD",
            "  ⠋ analyse    ╍╍╍╌╌╌╌╌  EXECUTING  analyst@eXCES4on        11 s",
            "  ↻ translate  ╌╌╌╌╌╌╌╌  RETRYING   polyglot\u{fffd}[31m@eXCES4on  11 s",
            "      AGENT_FAILED: the \u{fffd}model is gone",
            "  · chart      ╌╌╌╌╌╌╌╌  PENDING    deferred for 298 s: no agent offers `dra…",
            "  · summarize  ╌╌╌╌╌╌╌╌  PENDING    after analyse, translate",
        ]
    );
    assert_eq!(view(status(), 60, 20)[2], "  ⠋ analyse    ╍╍╍╌╌╌╌╌  analyst@eXCES4on        11 s", "the word goes before the bar");
    assert!(view(status(), 80, 5).iter().all(|line| !line.contains("AGENT_FAILED")), "rows come before reasons");
    let mut named = status();
    named["progress"]["steps"][0]["agent"] = json!("an agent with a name that goes on and on");
    assert!(
        view(named, 80, 20)[1].ends_with("an agent with a name that g…  1.24 s  0.001 USD"),
        "no name takes the place of time and cost"
    );
    for width in 10..130 {
        let wide = view(status(), width, 20).iter().map(|line| console::measure_text_width(line)).max();
        assert!(wide.is_some_and(|wide| wide + 2 < width), "{wide:?} of {width} leaves no room for ^C");
    }
}

#[test]
fn the_bar_of_a_subtask_shows_how_far_it_is() {
    let row = |place: usize, status_word: &str, percent: Value, number: usize| {
        let mut task = status();
        let step = &mut task["progress"]["steps"][place];
        (step["status"], step["progress_percentage"]) = (json!(status_word), percent);
        let task: Status = serde_json::from_value(task).expect("a status");
        let frame = Frame { elapsed_ms: 12_300, width: 80, rows_max: 5, number, lost: None, colour: false };
        lines(&task, &frame).swap_remove(place + 1)
    };
    for (percent, bar) in
        [(0, "╌╌╌╌╌╌╌╌ 0 %"), (50, "━━━━╌╌╌╌ 50 %"), (75, "━━━━━━╌╌ 75 %"), (100, "━━━━━━━━ 100 %"), (255, "━━━━━━━━ 100 %")]
    {
        let row = row(1, "EXECUTING", json!(percent), 0);
        assert!(row.contains(bar), "{percent}: {row}");
    }
    // Who does not tell how far it is shows that it works: a piece of the bar goes round.
    let bars = [0, 1, 2, 12, 16].map(|number| row(1, "EXECUTING", Value::Null, number).chars().skip(15).take(8).collect::<String>());
    assert_eq!(bars, ["╍╍╍╌╌╌╌╌", "╍╍╍╌╌╌╌╌", "╌╍╍╍╌╌╌╌", "╍╌╌╌╌╌╍╍", "╍╍╍╌╌╌╌╌"]);
    for (status_word, bar) in [("COMPLETED", "━━━━━━━━"), ("SUCCESS", "━━━━━━━━"), ("FAILED", "────────"), ("RETRYING", "╌╌╌╌╌╌╌╌")]
    {
        let row = row(0, status_word, json!(100), 7);
        assert!(row.contains(&format!("  {bar}  ")) && !row.contains('%'), "{status_word}: {row}");
    }
    // Nobody works for a task that has ended.
    let mut over = status();
    over["status"] = json!("FAILED");
    assert!(view(over, 80, 20).iter().all(|line| !line.contains('╍')));
}

#[test]
fn many_subtasks_are_summed_up_and_those_that_run_are_shown() {
    let mut task = status();
    let steps: Vec<Value> = (0..40)
        .map(|number| {
            let at = if number == 30 { 1 } else { number % 2 * 4 };
            let mut step = task["progress"]["steps"][at].clone();
            step["subtask_id"] = json!(format!("s{number}"));
            step
        })
        .collect();
    task["progress"]["steps"] = json!(steps);
    let lines = view(task, 80, 20);
    let row = "  ⠋ s30  ╍╍╍╌╌╌╌╌  EXECUTING  analyst@eXCES4on  on …vnc6iDEp  11 s";
    assert_eq!(lines[1..], ["  40 subtasks: 19 done, 1 running, 20 waiting", row]);
}

#[test]
fn the_live_view_says_when_the_node_cannot_be_reached() {
    let task: Status = serde_json::from_value(status()).expect("a status");
    let frame = Frame { elapsed_ms: 1_000, width: 100, rows_max: 20, number: 3, lost: Some("no node \u{1b}answers"), colour: true };
    let lines = lines(&task, &frame);
    assert!(lines[0].contains("1f3a9c02  trying to reach the node: no node \u{fffd}answers"), "{lines:?}");
    let row = "\u{1b}[32m✓\u{1b}[0m extract    \u{1b}[32m━━━━━━━━\u{1b}[0m  SUCCESS";
    assert!(lines[1].contains(row), "only marks and bars are coloured: {lines:?}");
}
