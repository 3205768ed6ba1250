//! The node that works for a task dies, stands still or is stopped; and the home node is stopped in good order. Executions are counted by
//! the agents.

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{
    Node, SETTLE, eventually,
    oracle::{Oracle, chain, count, id_of},
    tasks::{Workshop, step, task},
    with,
};

/// How long a step takes that nobody waits for to its end, in milliseconds.
const LONG_MS: u64 = 60_000;

/// A home node, nodes that offer the same, of whom the first is asked first, and the book of their agents.
struct Scene {
    home: Node,
    others: Vec<Node>,
    oracle: Oracle,
}

impl Scene {
    async fn start(others: usize) -> Self {
        let builder = Node::builder().config("[routing]\nexploration = 0.0\n");
        let oracle = Oracle::new(builder.home());
        let home = builder.spawn().await;
        let names = ["first", "second"];
        let mut nodes = Vec::new();
        for (place, name) in names.into_iter().take(others).enumerate() {
            let mut agent = oracle.agent(name, "test.work", 2);
            agent["capability"][0]["constraints"] = json!({ "response_time_ms": 1 + 900 * place });
            nodes.push(Node::builder().join(&home).agent(agent).spawn().await);
        }
        home.knows("test.work", &names[..others]).await;
        Self { home, others: nodes, oracle }
    }
}

fn one_step(more: &Value) -> Value {
    chain("task", "test.work", &["a"], 1, more)
}

fn names(history: &[(String, Value)]) -> Vec<&str> {
    history.iter().map(|(name, _)| name.as_str()).collect()
}

/// F9: the node of an agent that works on a step is killed; another agent does it, as the second attempt, under the same key.
#[tokio::test]
async fn a_step_whose_node_is_killed_is_done_by_another() {
    let Scene { home, mut others, oracle } = Scene::start(2).await;
    let task = home.submit(&one_step(&json!({ "first_ms": LONG_MS }))).await;
    oracle.until("task", "started", 1).await;
    others[0].kill().await;

    let history = home.history(&task).await;
    assert_eq!(
        names(&history),
        ["submitted", "dispatched", "accepted", "attempt_failed", "dispatched", "accepted", "result_received", "validated", "ended"],
        "{history:?}"
    );
    let status = home.task(&task).await;
    let step = &status["progress"]["steps"][0];
    assert_eq!((&step["attempt"], &step["node_id"], &step["status"]), (&json!(2), &json!(others[1].id()), &json!("SUCCESS")), "{status}");
    assert_eq!(home.task_result(&task).await["result"]["sum"], 2);
    let noted = oracle.of("task");
    assert_eq!((count(&noted, "started")["task.a"], count(&noted, "finished")["task.a"]), (2, 1), "{noted:?}");
    assert!(noted.iter().all(|line| line.key == noted[0].key && line.key != "-"), "{noted:?}");
}

/// F9: the same where nobody else offers it: the task waits, and goes on when the node is back.
#[tokio::test]
async fn a_step_whose_only_node_is_killed_waits_for_it() {
    let Scene { home, mut others, oracle } = Scene::start(1).await;
    let task = home.submit(&one_step(&json!({ "first_ms": LONG_MS }))).await;
    oracle.until("task", "started", 1).await;
    let mut only = others.remove(0);
    only.kill().await;
    home.task_events(&task).await.wait_for("deferred", SETTLE * 2, |_| true).await;
    let status = home.task(&task).await;
    assert_eq!(status["status"], "EXECUTING", "{status}");
    assert!(status["progress"]["steps"][0]["waiting_for"].is_string(), "{status}");
    let _only = only.reborn().spawn().await;

    let history = home.history(&task).await;
    assert_eq!(home.task_result(&task).await["result"]["sum"], 2, "{history:?}");
    assert_eq!(history.iter().filter(|(name, _)| name == "validated").count(), 1, "{history:?}");
    let noted = oracle.of("task");
    assert_eq!((count(&noted, "started")["task.a"], count(&noted, "finished")["task.a"]), (2, 1), "{noted:?}");
}

/// F14: the node stands still while its agent works; another does the step, and what the first brings when it goes on changes nothing.
#[tokio::test]
async fn a_node_that_stood_still_changes_nothing_when_it_goes_on() {
    let Scene { home, others, oracle } = Scene::start(2).await;
    let task = home.submit(&one_step(&json!({ "first_ms": 300 }))).await;
    oracle.until("task", "started", 1).await;
    others[0].stop().await;
    let history = home.history(&task).await;
    assert_eq!(history.iter().filter(|(name, _)| name == "validated").count(), 1, "{history:?}");
    let result = home.task_result(&task).await;
    assert_eq!((&result["status"], &result["result"]["sum"]), (&json!("COMPLETED"), &json!(2)), "{result}");
    // Its agent was done long ago; the node itself learns of it now.
    oracle.until("task", "finished", 2).await;
    others[0].cont();
    home.meets(&others[0]).await;
    home.knows("test.work", &["first", "second"]).await;
    let after = home.history(&task).await;
    assert_eq!(after.iter().filter(|(name, _)| name != "duplicate_result").collect::<Vec<_>>(), history.iter().collect::<Vec<_>>());
    assert_eq!(home.task_result(&task).await["result"], result["result"]);
}

/// F14: the only node stands still and goes on: one result is used.
#[tokio::test]
async fn a_step_whose_only_node_stood_still_has_one_result() {
    let Scene { home, others, oracle } = Scene::start(1).await;
    let task = home.submit(&one_step(&json!({ "first_ms": 300 }))).await;
    oracle.until("task", "started", 1).await;
    others[0].stop().await;
    let mut events = home.task_events(&task).await;
    events.wait_for("attempt_failed", SETTLE, |_| true).await;
    others[0].cont();
    let history = home.history(&task).await;
    assert_eq!(history.iter().filter(|(name, _)| name == "validated").count(), 1, "{history:?}");
    assert_eq!(home.task_result(&task).await["result"]["sum"], 2);
    let runs = count(&oracle.of("task"), "started")["task.a"];
    assert!((1..=2).contains(&runs), "{:?}", oracle.of("task"));
}

/// F10: the agent was done when the home node stood still, and so the result went nowhere; then the agent's node is killed. It answers from
/// its disk, and nothing is done again.
#[tokio::test]
async fn a_result_that_nobody_heard_of_outlives_the_node_of_the_agent() {
    let Scene { home, mut others, oracle } = Scene::start(1).await;
    let free = oracle.beside("free");
    let task = home.submit(&one_step(&json!({ "until": free }))).await;
    oracle.until("task", "started", 1).await;
    home.stop().await;
    std::fs::write(&free, "").expect("the file is written");
    let mut only = others.remove(0);
    until_kept(&only, r#""sum""#).await;
    only.kill().await;
    // It joins through the home node, and is ready when that goes on.
    let only = only.reborn().start();
    home.cont();
    let _only = only.ready().await;

    assert_was_done_once(&home, &task, &oracle).await;
}

/// F10: the same, where the home node is dead meanwhile.
#[tokio::test]
async fn a_result_outlives_the_death_of_both_nodes() {
    let Scene { mut home, mut others, oracle } = Scene::start(1).await;
    let free = oracle.beside("free");
    let task = home.submit(&one_step(&json!({ "until": free }))).await;
    oracle.until("task", "started", 1).await;
    home.kill().await;
    std::fs::write(&free, "").expect("the file is written");
    let mut only = others.remove(0);
    until_kept(&only, r#""sum""#).await;
    only.kill().await;
    let home = home.reborn().spawn().await;
    let _only = only.reborn().spawn().await;

    assert_was_done_once(&home, &task, &oracle).await;
}

/// F10: the home node dies with a result in its hands that its journal does not have; it is given the same again.
#[tokio::test]
async fn a_result_that_the_home_node_lost_is_given_again() {
    let builder = Node::builder();
    let oracle = Oracle::new(builder.home());
    let _host = builder.agent(oracle.agent("only", "test.work", 1)).spawn().await;
    let mut home = Node::builder().join(&_host).failpoint(Some("result_received:1")).spawn().await;
    home.knows("test.work", &["only"]).await;
    let task = home.submit(&one_step(&json!({}))).await;
    home.died().await;
    assert_eq!(oracle.of("task").len(), 2, "the agent is done: {:?}", oracle.of("task"));
    let home = home.reborn().spawn().await;

    assert_was_done_once(&home, &task, &oracle).await;
}

/// Waits until the journal of a node holds this text.
async fn until_kept(node: &Node, text: &str) {
    let folder = node.data_dir().join("journal");
    let holds = async || {
        let mut files = std::fs::read_dir(&folder).expect("a journal is a folder").filter_map(|file| std::fs::read(file.ok()?.path()).ok());
        files.any(|bytes| bytes.windows(text.len()).any(|found| found == text.as_bytes())).then_some(())
    };
    eventually(&format!("{text} is in the journal"), SETTLE, holds).await;
}

/// The task of one step has ended well, and its agent was told to do it once.
async fn assert_was_done_once(home: &Node, task: &str, oracle: &Oracle) {
    let history = home.history(task).await;
    assert_eq!(home.task_result(task).await["result"]["sum"], 2, "{history:?}");
    assert_eq!(history.iter().filter(|(name, _)| name == "validated").count(), 1, "{history:?}");
    let noted = oracle.of("task");
    assert_eq!((count(&noted, "started")["task.a"], count(&noted, "finished")["task.a"]), (1, 1), "{noted:?}\n{history:?}");
}

/// AITP-8: what must not be done twice, and had been accepted when the home node died, is not done again; nobody knows whether it was done.
#[tokio::test]
async fn a_step_that_is_never_repeated_has_an_unknown_outcome_after_it_was_accepted() {
    let (home, _host, oracle, task) = never("committed-accepted:1").await;
    home.history(&task).await;
    let result = home.task_result(&task).await;
    assert_eq!((&result["status"], &result["reason"]), (&json!("FAILED"), &json!("UNKNOWN_OUTCOME")), "{result}");
    assert_eq!(result["error"]["details"]["outcome"], "unknown", "{result}");
    assert_eq!(oracle.of("task"), [], "it was not told to begin");
}

/// AITP-8: what had not been accepted has not begun, and is done once.
#[tokio::test]
async fn a_step_that_is_never_repeated_is_done_once_if_it_was_not_accepted() {
    let (home, _host, oracle, task) = never("committed-dispatched:1").await;
    home.history(&task).await;
    let result = home.task_result(&task).await;
    assert_eq!((&result["status"], &result["result"]["sum"]), (&json!("COMPLETED"), &json!(2)), "{result}");
    let noted = oracle.of("task");
    assert_eq!((count(&noted, "started")["task.a"], count(&noted, "finished")["task.a"]), (1, 1), "{noted:?}");
}

/// The home node of a task with a step that is never repeated, which died at this point and is back, and the node of its agent.
async fn never(point: &str) -> (Node, Node, Oracle, String) {
    let builder = Node::builder();
    let oracle = Oracle::new(builder.home());
    let host = builder.agent(oracle.agent("only", "test.work", 1)).spawn().await;
    let mut home = Node::builder().join(&host).failpoint(Some(point)).spawn().await;
    home.knows("test.work", &["only"]).await;
    let mut definition = one_step(&json!({}));
    definition["subtasks"][0]["retry"] = "never".into();
    let submit = |home: &Node| home.request(Method::POST, "/aitp/tasks").header("idempotency-key", "once").json(&definition);
    // Its death may come before its answer.
    let _ = submit(&home).send().await;
    home.died().await;
    let home = home.reborn().spawn().await;
    let task = id_of(&home.send(submit(&home)).await.ok());
    (home, host, oracle, task)
}

/// AMP-8, F9: the node that runs a step as a task of its own is killed in the middle of it: it goes on with that task when it is back, the
/// parent finds it there, and what was done of it is not done again.
#[tokio::test]
async fn a_task_within_a_task_outlives_the_node_that_runs_it() {
    let workshop = Workshop::new();
    let builder = Node::builder().config("[routing]\nexploration = 0.0\n");
    let home = builder.spawn().await;
    let forge = Node::builder().join(&home).agent(workshop.worker("smith", "test.forge", json!({}))).spawn().await;
    let runner = json!({ "name": "runner", "concurrency": 8, "adapter": { "type": "task" } });
    let mut host = Node::builder().join(&home).agent(runner).spawn().await;
    home.knows("task-execution", &["runner"]).await;
    host.knows("test.forge", &["smith"]).await;
    host.meets(&forge).await;
    let inner = task(&[
        step("first", "test.forge", json!({ "mark": "first", "output": { "n": 1 } })),
        step("second", "test.forge", json!({ "mark": "second", "until": "go", "output": { "n": 2, "before": "${first.output.n}" } })),
    ]);
    let outer = json!({ "name": "outer", "subtasks": [
        { "subtask_id": "in", "task": inner },
        { "subtask_id": "out", "agent_capability": "test.forge", "input": { "mark": "out", "output": "${in.output.n}" } },
    ] });
    let id = home.submit(&outer).await;
    workshop.until("started", 2).await;
    let child = home.until_step(&id, "in", |step| step["child"]["task_id"].is_string()).await["child"]["task_id"].clone();
    let child = child.as_str().expect("an id").to_owned();

    host.kill().await;
    home.task_events(&id).await.wait_for("attempt_failed", SETTLE, |event| event["subtask_id"] == "in").await;
    let host = host.reborn().spawn().await;
    workshop.release("go");

    let result = home.result(&id).await;
    assert_eq!((&result["outcome"], &result["result"]), (&json!("success"), &json!(2)), "{result}");
    let step = home.step(&id, "in").await;
    assert_eq!((&step["child"]["task_id"], &step["child"]["node_id"]), (&json!(child), &json!(host.id())), "{step}");
    let tasks = host.get("/aitp/tasks").await.ok();
    assert_eq!((tasks["tasks"].as_array().map(Vec::len), &tasks["tasks"][0]["task_id"]), (Some(1), &json!(child)), "{tasks}");
    assert_eq!(host.task_result(&child).await["result"], json!({ "n": 2, "before": 1 }));
    let begun = |mark: &str| workshop.notes("started").iter().filter(|note| note["input"]["mark"] == mark).count();
    assert_eq!(["first", "second", "out"].map(begun), [1, 1, 1], "each was done once");
}

/// F20: a home node that is told to stop lets the step under way end, begins no other, and goes on with the next when it is started again.
#[tokio::test]
async fn a_home_node_that_is_stopped_loses_nothing_and_repeats_nothing() {
    let Scene { mut home, others, oracle } = Scene::start(1).await;
    let definition = chain("task", "test.work", &["a", "b", "c"], 1, &json!({ "ms": 400 }));
    let task = home.submit(&definition).await;
    oracle.until("task.a", "started", 1).await;
    let status = home.terminate().await;
    assert!(status.success(), "{status}");
    let noted = oracle.of("task");
    assert_eq!((noted.len(), noted[1].what.as_str()), (2, "finished"), "what ran was waited for, and nothing begun: {noted:?}");

    let home = home.reborn().join(&others[0]).spawn().await;
    let history = home.history(&task).await;
    assert_eq!(home.task_result(&task).await["result"]["sum"], 4, "{history:?}");
    assert!(!names(&history).contains(&"requeued"), "{history:?}");
    let noted = oracle.of("task");
    assert_eq!(noted.len(), 6, "each step was done once: {noted:?}");
}

/// F20: a node that works for a task and is told to stop gives the result away first.
#[tokio::test]
async fn an_executor_that_is_stopped_hands_over_what_it_works_on() {
    let Scene { home, mut others, oracle } = Scene::start(2).await;
    let task = home.submit(&with(one_step(&json!({ "ms": 500 })), json!({ "name": "handed over" }))).await;
    oracle.until("task", "started", 1).await;
    let status = others[0].terminate().await;
    assert!(status.success(), "{status}");
    let history = home.history(&task).await;
    assert_eq!(home.task_result(&task).await["result"]["sum"], 2);
    assert!(!names(&history).contains(&"attempt_failed"), "{history:?}");
    assert_eq!(oracle.of("task").len(), 2, "{:?}", oracle.of("task"));
}
