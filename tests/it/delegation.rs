//! Tasks within tasks: a subtask that another node runs as a task of its own, with its share of the money, its end and its way back.

use std::fs;

use meshwork::wire::invocation::HOPS_MAX;
use serde_json::{Value, json};

use crate::support::{
    Builder, Node, SETTLE, builtin, eventually, script, slow,
    tasks::{Workshop, planner, step, task},
    with,
};

/// The agent by which a node runs tasks for others.
fn runner(name: &str) -> Value {
    json!({ "name": name, "concurrency": 8, "adapter": { "type": "task" } })
}

async fn submit(node: &Node, definition: &Value) -> String {
    let receipt = node.post("/aitp/tasks", definition).await;
    assert_eq!(receipt.status, 201, "{receipt:?}");
    receipt.body["task_id"].as_str().expect("a receipt names its task").to_owned()
}

async fn result(node: &Node, task: &str) -> Value {
    let path = format!("/aitp/tasks/{task}/result");
    let ended = async || {
        let answer = node.get(&path).await;
        (answer.status == 200).then_some(answer.body)
    };
    eventually("the task ends", SETTLE * 2, ended).await
}

async fn status(node: &Node, task: &str) -> Value {
    node.get(&format!("/aitp/tasks/{task}")).await.ok()
}

/// The task that the first step of `task` is on another node, once that is known.
async fn child(node: &Node, task: &str) -> String {
    let known = async || status(node, task).await["progress"]["steps"][0]["child"]["task_id"].as_str().map(str::to_owned);
    eventually("the child is known", SETTLE, known).await
}

/// The tasks of a node.
async fn count(node: &Node) -> usize {
    node.get("/aitp/tasks").await.ok()["tasks"].as_array().map_or(0, Vec::len)
}

fn within(subtask: &str, inner: Value) -> Value {
    json!({ "name": "outer", "subtasks": [{ "subtask_id": subtask, "task": inner }] })
}

/// A task of one step that takes so long.
fn taking(ms: u64) -> Value {
    json!({ "name": "inner", "subtasks": [{ "subtask_id": "work", "agent_capability": "test.slow", "input": { "ms": ms } }] })
}

/// A node with a slow agent that keeps a journal, and who runs tasks.
fn host(join: &Node) -> Builder {
    let builder = Node::builder().join(join);
    let journal = builder.home().join("journal");
    builder.agent(slow("slow", Some(&journal))).agent(runner("runner"))
}

fn journal(builder_home: &std::path::Path) -> String {
    fs::read_to_string(builder_home.join("journal")).unwrap_or_default()
}

/// AMP-8: a subtask is a task of another node; values go in by its parameters, its result comes out, and both sides tell of the other.
#[tokio::test]
async fn a_subtask_runs_as_a_task_of_another_node() {
    let home = Node::first().await;
    let host = Node::builder().join(&home).agent(builtin("echo", "echo")).agent(runner("runner")).spawn().await;
    home.knows("task-execution", &["runner"]).await;
    home.knows("echo", &["echo"]).await;

    let inner = json!({
        "name": "inner",
        "parameters": { "given": "${first.output.x}", "more": ["${parent.input.y}", "$${plain}"] },
        "subtasks": [{ "subtask_id": "say", "agent_capability": "echo", "input": { "said": "${parent.input.given}", "all": "${parent.input.more}" } }],
    });
    let outer = json!({
        "name": "outer",
        "parameters": { "y": 7 },
        "subtasks": [
            { "subtask_id": "first", "agent_capability": "echo", "input": { "x": "${parent.input.y}" } },
            { "subtask_id": "inner", "task": inner },
            { "subtask_id": "last", "agent_capability": "echo", "input": { "got": "${inner.output.said}", "all": "${inner.output.all}" } },
        ],
    });
    let task = submit(&home, &outer).await;
    let done = result(&home, &task).await;
    assert_eq!((&done["outcome"], &done["result"]), (&json!("success"), &json!({ "got": 7, "all": [7, "${plain}"] })), "{done}");

    let step = status(&home, &task).await["progress"]["steps"][1].clone();
    assert_eq!(step["child"]["node_id"], host.id(), "{step}");
    let child = step["child"]["task_id"].as_str().expect("a task's id");
    let inner = status(&host, child).await;
    let parent = json!({ "node_id": home.id(), "task_id": task, "subtask_id": "inner", "hops": 1 });
    assert_eq!((&inner["parent"], &inner["status"]), (&parent, &json!("COMPLETED")), "{inner}");
    let shown = home.cli(&["task", "status", &task]).await;
    assert!(shown.text().contains(&format!("inner: is task {child}")), "{shown:?}");
}

/// AMP-8: nobody runs the tasks of others whose owner has not said so.
#[tokio::test]
async fn a_node_without_such_an_agent_runs_nobodys_tasks() {
    let home = Node::first().await;
    let other = Node::builder().join(&home).agent(builtin("echo", "echo")).spawn().await;
    home.knows("echo", &["echo"]).await;
    let inner = json!({ "name": "inner", "subtasks": [{ "subtask_id": "a", "agent_capability": "echo" }] });
    let fallback = json!({ "fallback": { "on_capability_unavailable": { "strategy": "FAIL_AND_NOTIFY" } } });

    let task = submit(&home, &with(within("inner", inner), fallback)).await;

    assert_eq!(result(&home, &task).await["reason"], "NO_CAPABILITY");
    assert_eq!(count(&other).await, 0);
}

/// AMP-8: a task within a task is read when the outer one is submitted, and each fault is told with its place.
#[tokio::test]
async fn faults_of_an_inner_task_are_told_with_their_places() {
    let node = Node::first().await;
    let step = json!({ "subtask_id": "a", "agent_capability": "echo" });
    let deep = (0..9).fold(json!({ "name": "deepest", "subtasks": [step] }), |inner, _| within("in", inner));
    let deepest = "/subtasks/0/task".repeat(9);
    for (outer, path) in [
        (within("in", json!({ "name": "n" })), "/subtasks/0/task"),
        (within("in", json!({ "name": "n", "subtasks": [{ "subtask_id": "a" }] })), "/subtasks/0/task/subtasks/0/agent_capability"),
        (
            within("in", json!({ "name": "n", "parameters": { "x": "${nobody.output}" }, "subtasks": [step] })),
            "/subtasks/0/task/parameters/x",
        ),
        (within("in", json!(3)), "/subtasks/0/task"),
        (deep, deepest.as_str()),
        (
            json!({ "name": "n", "subtasks": [with(step.clone(), json!({ "task": { "name": "n", "subtasks": [step] } }))] }),
            "/subtasks/0/agent_capability",
        ),
        (
            json!({ "name": "n", "metadata": { "cost_limit": { "amount": 1, "currency": "EUR" } },
                    "subtasks": [{ "subtask_id": "in", "task": { "name": "n", "metadata": { "cost_limit": 1 }, "subtasks": [step] } }] }),
            "/subtasks/0/task",
        ),
    ] {
        let error = node.post("/aitp/tasks", &outer).await.refused(400, "INVALID_REQUEST");
        assert_eq!(error["details"]["path"], path, "{error}");
    }
}

/// AMP-8: cancelling the parent cancels the child, and what it runs.
#[tokio::test]
async fn cancel_reaches_the_child() {
    let home = Node::first().await;
    let builder = host(&home);
    let folder = builder.home().to_owned();
    let host = builder.spawn().await;
    home.knows("task-execution", &["runner"]).await;

    let task = submit(&home, &within("inner", taking(60_000))).await;
    let child = child(&home, &task).await;
    eventually("the child's agent works", SETTLE, async || journal(&folder).contains("started").then_some(())).await;
    home.post(&format!("/aitp/tasks/{task}/cancel"), &json!({})).await.ok();

    let cancelled = async || (status(&host, &child).await["outcome"] == "cancelled").then_some(());
    eventually("the child is cancelled", SETTLE, cancelled).await;
    eventually("its agent is told", SETTLE, async || journal(&folder).contains("cancelled").then_some(())).await;
}

/// AMP-8: the end of the parent's time is the end of the child's, and travels with it: nobody is left to cancel this one.
#[tokio::test]
async fn a_child_has_no_more_time_than_its_parent() {
    let first = Node::first().await;
    let mut home = Node::builder().join(&first).spawn().await;
    let host = host(&first).spawn().await;
    home.knows("task-execution", &["runner"]).await;
    host.meets(&home).await;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");

    let task = submit(&home, &with(within("inner", taking(60_000)), json!({ "metadata": { "deadline": now.as_secs() + 4 } }))).await;
    let child = child(&home, &task).await;
    home.kill().await;

    let ended = result(&host, &child).await;
    assert_eq!((&ended["outcome"], &ended["reason"]), (&json!("failed"), &json!("DEADLINE")), "{ended}");
    let home = home.restart().await;
    assert_eq!(result(&home, &task).await["reason"], "DEADLINE");
}

/// AMP-8: the home node of the parent is killed; the child's work goes on, and the call that is made again finds it.
#[tokio::test]
async fn a_child_outlives_the_home_node_of_its_parent() {
    let first = Node::first().await;
    let mut home = Node::builder().join(&first).spawn().await;
    let builder = host(&first);
    let folder = builder.home().to_owned();
    let host = builder.spawn().await;
    home.knows("task-execution", &["runner"]).await;
    host.meets(&home).await;

    let task = submit(&home, &within("inner", taking(3_000))).await;
    let before = child(&home, &task).await;
    eventually("the child's agent works", SETTLE, async || journal(&folder).contains("started").then_some(())).await;
    home.kill().await;
    let home = home.restart().await;

    let done = result(&home, &task).await;
    assert_eq!((&done["outcome"], &done["result"]), (&json!("success"), &json!({ "ms": 3_000 })), "{done}");
    assert_eq!((child(&home, &task).await, count(&host).await), (before, 1), "one child");
    assert_eq!(journal(&folder).matches("started").count(), 1, "{}", journal(&folder));
}

/// Threat T20: a circle of nodes that give a task to each other ends where it closes.
#[tokio::test]
async fn a_circle_of_delegations_is_refused() {
    let one = Node::builder().agent(runner("one")).spawn().await;
    let two = Node::builder().join(&one).agent(runner("two")).agent(builtin("echo", "echo")).spawn().await;
    one.knows("task-execution", &["one", "two"]).await;
    two.knows("task-execution", &["one", "two"]).await;
    let leaf = json!({ "name": "leaf", "subtasks": [{ "subtask_id": "a", "agent_capability": "echo" }] });
    let nest = |depth: usize| (0..depth).fold(leaf.clone(), |inner, _| within("in", inner));

    // Each of the two may stand in the chain once.
    let task = submit(&one, &nest(2)).await;
    assert_eq!(result(&one, &task).await["outcome"], "success");
    let task = submit(&one, &nest(3)).await;
    let done = result(&one, &task).await;
    assert_eq!(done["outcome"], "failed", "{done}");
    assert!(done["error"]["message"].as_str().is_some_and(|message| message.contains("close a circle")), "{done}");
}

/// AMP-8, threat T20: so many tasks in turn may lead to one, and no more, whether they are written within each other or given as values.
#[tokio::test]
async fn a_chain_of_delegations_is_as_long_as_it_may_be_and_no_longer() {
    let builder = (0..=HOPS_MAX).fold(Node::builder(), |builder, number| builder.agent(runner(&format!("runner-{number}"))));
    let node = builder.agent(builtin("echo", "echo")).spawn().await;
    let names: Vec<String> = (0..=HOPS_MAX).map(|number| format!("runner-{number}")).collect();
    node.knows("task-execution", &names.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let leaf = json!({ "name": "leaf", "subtasks": [{ "subtask_id": "a", "agent_capability": "echo", "input": { "x": 7 } }] });
    // What is written within each other is counted when it is submitted; what is given as a value is not known to be a task before.
    let call = |inner: Value| {
        let step = json!({ "subtask_id": "in", "agent_capability": "task-execution", "input": { "definition": inner } });
        json!({ "name": "around", "subtasks": [step] })
    };
    let wrap = |levels: usize, inner: Value| (0..levels).fold(inner, |inner, _| within("in", inner));
    let nest = |depth: usize| wrap(5, call(wrap(depth - 6, leaf.clone())));

    let task = submit(&node, &nest(HOPS_MAX)).await;
    let done = result(&node, &task).await;
    assert_eq!((&done["outcome"], &done["result"]["result"]), (&json!("success"), &json!({ "x": 7 })), "{done}");
    assert_eq!(count(&node).await, HOPS_MAX + 1);

    let task = submit(&node, &nest(HOPS_MAX + 1)).await;
    let done = result(&node, &task).await;
    let told = format!("{} calls in turn have led to this one, at most {HOPS_MAX} may", HOPS_MAX + 1);
    assert_eq!(done["outcome"], "failed", "{done}");
    assert!(done["error"]["message"].as_str().is_some_and(|message| message.contains(&told)), "{done}");
    assert_eq!(done["error"]["details"]["cause"], "INVALID_REQUEST", "{done}");
}

/// Threat T20: money is split and not copied, so a fan-out of tasks of tasks spends no more than its root was given.
#[tokio::test]
async fn a_fan_out_spends_no_more_than_its_root_has() {
    let notes = tempfile::tempdir().expect("a folder");
    let file = notes.path().join("journal");
    let price = json!({ "id": "test.slow", "price": { "amount": "0.1", "currency": "USD" } });
    let agent = with(script("slow", "slow.py", &[file.to_str().expect("a plain name")], price), json!({ "concurrency": 8, "queue": 64 }));
    let node = Node::builder().agent(agent).agent(runner("one")).agent(runner("two")).agent(runner("three")).spawn().await;
    node.knows("task-execution", &["one", "three", "two"]).await;
    let wide = |inner: Option<Value>| {
        let step = |number: usize| match &inner {
            Some(inner) => json!({ "subtask_id": format!("s{number}"), "task": inner }),
            None => json!({ "subtask_id": format!("s{number}"), "agent_capability": "test.slow", "input": { "ms": number } }),
        };
        json!({ "name": "wide", "subtasks": (0..3).map(step).collect::<Vec<_>>(), "fallback": { "on_subtask_failed": { "strategy": "DEGRADE" } } })
    };
    let bomb = with(wide(Some(wide(Some(wide(None))))), json!({ "metadata": { "cost_limit": "0.5" } }));

    let task = submit(&node, &bomb).await;
    let done = result(&node, &task).await;

    let runs = fs::read_to_string(&file).unwrap_or_default().matches("done").count();
    assert_eq!(runs, 5, "27 leaves, and money for five: {done}");
    assert_eq!((&done["cost"], &done["outcome"]), (&json!(0.5), &json!("partial")), "{done}");
}

/// AMP-8: a runner may be paid: it counts what the task spent, and who gives the task away holds back enough for that.
#[tokio::test]
async fn a_runner_is_paid_by_what_the_task_spent() {
    let home = Node::first().await;
    let paid = json!({ "id": "echo", "price": { "amount": "0.25", "currency": "USD" } });
    let commission = json!({ "id": "task-execution", "price": { "amount": "2", "currency": "USD", "unit": "spent" } });
    let _host = Node::builder()
        .join(&home)
        .agent(with(builtin("echo", "echo"), json!({ "capability": [paid] })))
        .agent(with(runner("runner"), json!({ "capability": [commission] })))
        .spawn()
        .await;
    home.knows("task-execution", &["runner"]).await;
    let inner = json!({ "name": "inner", "subtasks": [{ "subtask_id": "a", "agent_capability": "echo" }] });
    let limited = |limit: &str| with(within("inner", inner.clone()), json!({ "metadata": { "cost_limit": limit } }));

    let enough = submit(&home, &limited("0.5")).await;
    let done = result(&home, &enough).await;
    assert_eq!((&done["outcome"], &done["cost"]), (&json!("success"), &json!(0.5)), "{done}");
    let short = submit(&home, &limited("0.49")).await;
    let done = result(&home, &short).await;
    assert_eq!((&done["outcome"], &done["cost"]), (&json!("failed"), &json!(0)), "{done}");
}

/// AITP-7, AMP-8: how far a task within a task is, however deep, is seen at its root while it runs.
#[tokio::test]
async fn the_progress_of_a_child_is_seen_at_its_parent() {
    let home = Node::first().await;
    let builder = host(&home);
    let folder = builder.home().to_owned();
    let _one = builder.agent(builtin("echo", "echo")).spawn().await;
    let _two = Node::builder().join(&home).agent(runner("other")).spawn().await;
    home.knows("task-execution", &["other", "runner"]).await;
    for node in [&_one, &_two] {
        node.knows("task-execution", &["other", "runner"]).await;
        node.knows("test.slow", &["slow"]).await;
        node.knows("echo", &["echo"]).await;
    }
    let short = json!({ "subtask_id": "short", "agent_capability": "echo" });
    let long = json!({ "subtask_id": "long", "agent_capability": "test.slow", "input": { "ms": 60_000 }, "depends_on": ["short"] });
    let innermost = json!({ "name": "innermost", "subtasks": [short, long] });
    let inner = json!({ "name": "inner", "subtasks": [short, { "subtask_id": "in", "task": innermost, "depends_on": ["short"] }] });

    let task = submit(&home, &within("inner", inner)).await;
    eventually("the innermost agent works", SETTLE, async || journal(&folder).contains("started").then_some(())).await;

    // Half of the innermost, and so three quarters of the one around it.
    let mut seen = Value::Null;
    let told = async || {
        seen = status(&home, &task).await["progress"].clone();
        (seen["steps"][0]["progress_percentage"] == 75).then(|| seen["percent_complete"].clone())
    };
    assert_eq!(eventually("the progress is known", SETTLE, told).await, 75);
    let shown = home.cli(&["task", "status", &task]).await;
    assert!(shown.text().contains("75 %"), "{shown:?}");
    home.post(&format!("/aitp/tasks/{task}/cancel"), &json!({})).await.ok();
    assert_eq!(status(&home, &task).await["progress"]["percent_complete"], 0, "what was not done is no progress");
}

/// AITP-10: a task within this one that failed is billed what it has spent.
#[tokio::test]
async fn a_child_that_failed_is_billed_what_it_spent() {
    let home = Node::first().await;
    let paid = json!({ "id": "echo", "price": { "amount": "0.25", "currency": "USD" } });
    let _host = Node::builder()
        .join(&home)
        .agent(with(builtin("echo", "echo"), json!({ "capability": [paid] })))
        .agent(runner("runner"))
        .spawn()
        .await;
    home.knows("task-execution", &["runner"]).await;
    let inner = json!({
        "name": "inner",
        "subtasks": [
            { "subtask_id": "a", "agent_capability": "echo" },
            { "subtask_id": "b", "agent_capability": "test.nobody", "depends_on": ["a"] },
        ],
        "fallback": { "on_capability_unavailable": { "strategy": "FAIL_AND_NOTIFY" } },
    });

    let task = submit(&home, &with(within("inner", inner), json!({ "metadata": { "cost_limit": 1 } }))).await;

    let done = result(&home, &task).await;
    assert_eq!((&done["outcome"], &done["cost"]), (&json!("failed"), &json!(0.25)), "{done}");
    let line = &done["ledger"]["entries"][0];
    assert_eq!((&line["subtask_id"], &line["total"], &line["assumed"]), (&json!("inner"), &json!(0.25), &json!(false)), "{done}");
    assert_eq!(status(&home, &task).await["progress"]["steps"][0]["cost"], 0.25);
}

/// Threat T20: a task that was taken back because it took too long, and is begun anew, has what is left of its share.
#[tokio::test]
async fn a_delegated_budget_is_not_spent_again_by_each_retry() {
    let notes = tempfile::tempdir().expect("a folder");
    let file = notes.path().join("journal");
    let price = json!({ "id": "test.slow", "price": { "amount": "0.1", "currency": "USD" } });
    let agent = script("slow", "slow.py", &[file.to_str().expect("a plain name")], price);
    let node = Node::builder().agent(agent).agent(runner("runner")).spawn().await;
    node.knows("task-execution", &["runner"]).await;
    let inner = json!({
        "name": "inner",
        "subtasks": [
            { "subtask_id": "short", "agent_capability": "test.slow", "input": { "ms": 1 } },
            { "subtask_id": "long", "agent_capability": "test.slow", "input": { "ms": 60_000 }, "depends_on": ["short"] },
        ],
    });
    let limits = json!({ "metadata": { "cost_limit": "0.2", "timeout_seconds": 2 } });

    let task = submit(&node, &with(within("inner", inner), limits)).await;

    let done = result(&node, &task).await;
    assert_eq!((&done["outcome"], &done["cost"]), (&json!("failed"), &json!(0.2)), "{done}");
    let runs = fs::read_to_string(&file).unwrap_or_default().matches("started").count();
    assert_eq!(runs, 3, "both, and once more the one that is still paid for: {done}");
}

/// AMP-8: a child that nobody hears of any more may have spent all that it was given, and is billed that.
#[tokio::test]
async fn a_child_that_is_cancelled_is_billed_its_share_by_assumption() {
    let home = Node::first().await;
    let builder = host(&home);
    let folder = builder.home().to_owned();
    let _host = builder.spawn().await;
    home.knows("task-execution", &["runner"]).await;

    let task = submit(&home, &with(within("inner", taking(60_000)), json!({ "metadata": { "cost_limit": "0.5" } }))).await;
    eventually("the child's agent works", SETTLE, async || journal(&folder).contains("started").then_some(())).await;
    home.post(&format!("/aitp/tasks/{task}/cancel"), &json!({})).await.ok();

    let done = result(&home, &task).await;
    let line = &done["ledger"]["entries"][0];
    assert_eq!((&done["cost"], &line["assumed"], &line["attempt"]), (&json!(0.5), &json!(true), &json!(1)), "{done}");
}

/// AMP-8: who calls the capability itself sees the task's progress as chunks, first of all which task it is.
#[tokio::test]
async fn progress_is_streamed_to_whoever_asks() {
    let node = Node::builder().agent(builtin("echo", "echo")).agent(runner("runner")).spawn().await;
    node.knows("task-execution", &["runner"]).await;
    let inner = json!({ "name": "inner", "subtasks": [{ "subtask_id": "a", "agent_capability": "echo", "input": { "x": 1 } }] });

    let answer = node.call("task-execution", json!({ "definition": inner })).await;
    assert_eq!((&answer["output"]["result"], &answer["output"]["outcome"]), (&json!({ "x": 1 }), &json!("success")), "{answer}");

    let mut events = node.stream(json!({ "capability": "task-execution", "input": { "definition": inner } })).await;
    let first = events.wait_for("chunk", SETTLE, |_| true).await;
    assert!(first.to_string().contains("home_node_id"), "{first}");
    let rest = events.rest().await;
    assert!(rest.iter().any(|(name, chunk)| name == "chunk" && chunk["event"] == "dispatched"), "{rest:?}");
    assert_eq!(rest.last().map(|(_, end)| &end["output"]["result"]), Some(&json!({ "x": 1 })), "{rest:?}");
}

/// AITP-9, threat T20: the budget pays for nobody but the agent that has its share already; that one is busy, and is waited for, although
/// somebody else is free.
#[tokio::test]
async fn a_step_waits_for_the_only_agent_that_can_still_be_paid() {
    let workshop = Workshop::new();
    let home = planner().spawn().await;
    let narrow = with(runner("first"), json!({ "concurrency": 1, "queue": 0 }));
    let host = Node::builder().join(&home).agent(workshop.worker("smith", "test.forge", json!({}))).agent(narrow).spawn().await;
    home.knows("task-execution", &["first"]).await;
    host.knows("test.forge", &["smith"]).await;
    let inner = |mark: &str| task(&[step("work", "test.forge", json!({ "mark": mark, "until": "go", "output": mark }))]);
    let retry = json!({ "max_retries": 3, "backoff_strategy": "fixed", "backoff_base_ms": 5_000 });
    let limits = json!({ "cost_limit": "1", "timeout_seconds": 3, "retry_policy": retry });

    let id = home.submit(&with(within("in", inner("paid")), json!({ "metadata": limits }))).await;
    let mut events = home.task_events(&id).await;
    events.wait_for("accepted", SETTLE, |_| true).await;
    let free = Node::builder().join(&home).agent(runner("second")).spawn().await;
    home.knows("task-execution", &["first", "second"]).await;
    events.wait_for("attempt_failed", SETTLE, |_| true).await;
    let mut other = within("in", inner("other"));
    other["subtasks"][0]["agent"] = host.agent_id("first").await.into();
    let other = home.submit(&other).await;
    home.until_step(&other, "in", |step| step["status"] == "EXECUTING").await;
    let deferred = events.wait_for("deferred", SETTLE * 2, |_| true).await;
    workshop.release("go");

    let result = home.result(&id).await;
    assert_eq!((&result["outcome"], &result["result"]), (&json!("success"), &json!("paid")), "{deferred} {result}");
    let attempts = home.step(&id, "in").await["attempts"].take();
    assert!(attempts.as_array().is_some_and(|all| all.iter().all(|one| one["node_id"] != free.id())), "{attempts}");
    home.result(&other).await;
}
