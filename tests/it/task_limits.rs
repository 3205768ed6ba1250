//! What a node keeps of tasks is bounded: so many that have not ended, so many that have, and what they took of the disk goes with them.

use std::{fs, path::Path};

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{
    Answer, Builder, Node, SETTLE, builtin, eventually,
    oracle::id_of,
    tasks::{Workshop, planner, step, task},
    with,
};

/// What makes a node forget at once, and not when it is time: so many more than it may keep (`FORGET_AT_ONCE` in `src/node/task/book.rs`).
const SURPLUS: usize = 257;

async fn submit_as(node: &Node, key: &str, document: &Value) -> Answer {
    node.send(node.request(Method::POST, "/aitp/tasks").header("idempotency-key", key).json(document)).await
}

/// Folders of large texts, by owner.
fn owners(data_dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(data_dir.join("blobs")).into_iter().flatten();
    let mut names: Vec<String> = entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// Runs so many small tasks, one after the other; the last of them.
async fn run_many(node: &Node, count: usize) -> String {
    let mut last = String::new();
    for number in 0..count {
        last = node.submit(&task(&[step("a", "echo", json!(number))])).await;
        assert_eq!(node.result(&last).await["result"], number);
    }
    last
}

/// AITP-11, threat T23: a node that has as many tasks as it may says so and when to come again, knows those it has, and takes the next when
/// one has ended.
#[tokio::test]
async fn a_node_with_all_its_tasks_refuses_the_next_until_one_has_ended() {
    let workshop = Workshop::new();
    let node = planner().config("[task]\nlive_max = 2\n").agent(workshop.worker("worker", "test.work", json!({}))).spawn().await;
    node.knows("test.work", &["worker"]).await;
    let waiting = |file: &str| task(&[step("a", "test.work", json!({ "until": file, "output": file }))]);

    let first = id_of(&submit_as(&node, "first", &waiting("one")).await.ok());
    let second = id_of(&submit_as(&node, "second", &waiting("two")).await.ok());
    for _ in 0..3 {
        let error = submit_as(&node, "third", &waiting("one")).await.refused(429, "BUSY");
        assert!(error["message"].as_str().is_some_and(|text| text.contains("task.live_max")) && error["retryable"] == true, "{error}");
        assert!(error["details"]["limit"] == 2 && error["details"]["retry_after_ms"].as_u64() > Some(0), "{error}");
    }
    let again = submit_as(&node, "first", &waiting("one")).await;
    assert_eq!((again.status, id_of(&again.ok())), (200, first.clone()), "one that was taken is known all the same");
    assert_eq!(node.get("/aitp/tasks").await.ok()["tasks"].as_array().map(Vec::len), Some(2));

    workshop.release("one");
    assert_eq!(node.result(&first).await["result"], "one");
    let third = id_of(&submit_as(&node, "third", &waiting("one")).await.ok());
    assert_eq!(node.result(&third).await["result"], "one");
    node.post(&format!("/aitp/tasks/{second}/cancel"), &json!({})).await.ok();
}

/// AITP-11, threat T23: of tasks that have ended the latest are kept. What is forgotten is gone with all it took, its key is free, and it does not
/// come back with the next start.
#[tokio::test]
async fn the_oldest_tasks_that_have_ended_are_forgotten_with_all_that_they_took() {
    let workshop = Workshop::new();
    let node = keeping(2, &workshop).spawn().await;
    node.knows("test.work", &["worker"]).await;
    let large = |mark: &str| {
        let input = json!({ "mark": mark, "sized": 200_000 });
        with(task(&[step("a", "test.work", input)]), json!({ "parameters": { "text": "t".repeat(100_000) } }))
    };
    let old = id_of(&submit_as(&node, "monday", &large("old")).await.ok());
    assert_eq!(node.result(&old).await["outcome"], "success");
    let other = node.submit(&large("other")).await;
    node.result(&other).await;
    let mut both = [old.clone(), other];
    both.sort();
    assert_eq!(owners(&node.data_dir()), both, "both have large texts on the disk");

    let newest = run_many(&node, SURPLUS).await;

    let forgotten = async || (node.get(&format!("/aitp/tasks/{old}")).await.status == 404).then_some(());
    eventually("the oldest is forgotten", SETTLE, forgotten).await;
    for path in ["", "/result", "/events"] {
        node.get(&format!("/aitp/tasks/{old}{path}")).await.refused(404, "TASK_NOT_FOUND");
    }
    assert_eq!(node.get(&format!("/aitp/tasks/{newest}/result")).await.ok()["result"], SURPLUS - 1);
    let listed = node.get("/aitp/tasks").await.ok();
    assert_eq!((listed["tasks"].as_array().map(Vec::len), &listed["tasks"][0]["task_id"]), (Some(2), &json!(newest)), "{listed}");
    eventually("nothing large is left", SETTLE, async || owners(&node.data_dir()).is_empty().then_some(())).await;

    let second = submit_as(&node, "monday", &task(&[step("a", "echo", json!("another"))])).await;
    let new = id_of(&second.ok());
    assert_ne!(new, old);
    assert_eq!(node.result(&new).await["result"], "another");
    let node = node.restart().await;
    let forgotten = async || (node.get(&format!("/aitp/tasks/{old}")).await.status == 404).then_some(());
    eventually("it stays forgotten", SETTLE, forgotten).await;
    let same = submit_as(&node, "monday", &task(&[step("a", "echo", json!("another"))])).await;
    assert_eq!((same.status, id_of(&same.ok())), (200, new), "the key is that of the later one");
    assert_eq!(workshop.notes("started").len(), 2, "what was forgotten was not run again");
}

/// A node that keeps so many tasks, with agents for large and for small ones.
fn keeping(tasks: usize, workshop: &Workshop) -> Builder {
    let worker = workshop.worker("worker", "test.work", json!({}));
    planner().config(&format!("[task]\nkept_max = {tasks}\n")).agent(worker).agent(builtin("echo", "echo"))
}

/// AITP-2: what was acknowledged stays so: the same submission under the same key is the same task, though its deadline has passed since and would
/// be refused.
#[tokio::test]
async fn a_submission_is_repeated_under_its_key_after_its_deadline() {
    let node = Node::builder().spawn().await;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("the clock is right").as_secs();
    let document = with(task(&[step("a", "test.nobody", json!({}))]), json!({ "metadata": { "deadline": now + 2 } }));
    let first = submit_as(&node, "late", &document).await;
    assert_eq!(first.status, 201, "{first:?}");
    let id = first.body["task_id"].as_str().expect("an id").to_owned();
    assert_eq!(node.result(&id).await["reason"], "DEADLINE");
    submit_as(&node, "other", &document).await.refused(400, "INVALID_REQUEST");
    let node = node.restart().await;
    let again = submit_as(&node, "late", &document).await;
    assert_eq!((again.status, again.body["task_id"].as_str()), (200, Some(id.as_str())), "{again:?}");
    let changed = with(document.clone(), json!({ "description": "another" }));
    submit_as(&node, "late", &changed).await.refused(409, "CONFLICT");
}

/// AITP-5, F12: more steps than an agent can take at once are done at its pace: whoever was refused is tried when a step ends, the most urgent
/// first, and not when a pause that has grown long is over.
#[tokio::test]
async fn many_steps_in_line_keep_an_agent_busy() {
    const TASKS: usize = 200;
    let agent = with(builtin("echo", "echo"), json!({ "concurrency": 1, "queue": 1 }));
    let node = Node::builder().agent(agent).spawn().await;
    let chain = task(&[step("a", "echo", json!("x")), step("b", "echo", json!("${a.output}"))]);
    let submitted = futures::future::join_all((0..TASKS).map(|_| node.submit(&chain))).await;
    let ended = async || node.get("/aitp/tasks?status=COMPLETED&limit=500").await.ok()["tasks"].as_array().map(Vec::len);
    // By pauses alone, which grow to half a minute, it is more than a minute.
    eventually("all of them end", SETTLE * 2, async || (ended().await == Some(TASKS)).then_some(())).await;
    let refused = node.task_events(&submitted[TASKS - 1]).await.rest().await.into_iter().filter(|(name, _)| name == "deferred").count();
    assert!(refused > 0, "the last of them had to wait");
}

/// AITP-2: a step has the time that its task gives it, which may be more than a call has, also on the node of its agent.
#[tokio::test]
async fn a_step_may_take_longer_than_a_call() {
    let workshop = Workshop::new();
    let short = "[limits]\ncall_timeout_ms_default = 300\ncall_timeout_ms_max = 300\n";
    let home = Node::builder().config(short).spawn().await;
    let host = Node::builder().config(short).join(&home).agent(workshop.worker("worker", "test.work", json!({}))).spawn().await;
    home.knows("test.work", &["worker"]).await;
    let long = json!({ "ms": 1_500, "output": 7 });
    let call = json!({ "capability": "test.work", "input": long });
    assert_eq!(home.invoke(call).await.refused(504, "TIMEOUT")["code"], "TIMEOUT");
    let result = home.run_task(&task(&[step("a", "test.work", long)])).await;
    assert_eq!((&result["outcome"], &result["result"]), (&json!("success"), &json!(7)), "{result}");
    drop(host);
}
