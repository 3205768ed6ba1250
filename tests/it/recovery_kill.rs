//! The home node dies at every event that its journal keeps, and is started again: each acknowledged task ends as it would have ended.
//!
//! A case is a task, an event, and what the disk had of it (`src/node/failpoint.rs`). Executions are counted by the agents, so a step that
//! was done twice shows, whatever the node believes: only one whose predecessors were done and whose successors had not begun when the node
//! died may be, and where the agent is on another node, which keeps what was done, only one that the agent was not done with.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::mpsc,
};

use futures::{StreamExt, stream};
use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    support::{
        Answer, Node, SETTLE, eventually,
        oracle::{Noted, Oracle, count, id_of},
        tasks::{Workshop, step, task},
        with,
    },
    task_callbacks,
};

/// Cases that run at once.
const AT_ONCE: usize = 4;

/// A step, those that it waits for, and how it differs from others.
type Step<'a> = (&'a str, &'a [&'a str], Value);

/// What the shapes of tasks are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    /// Four steps, of which one fails once.
    Diamond,
    /// The same, found by an agent.
    Goal,
    /// One of the four fails for good, and the rest is asked for.
    Degraded,
    /// The second step is for an agent that comes later.
    Late,
    /// The same, and nobody waits for it.
    Cancelled,
    /// The second step is for an agent that is busy at first.
    Crowded,
    /// The second step is a task of another node.
    Nested,
    /// One of the four is done by two agents, and the first answers with what does not fit.
    Odd,
    /// Somebody wants to be told of its end.
    Told,
    /// The first step writes to a shared context of the home node.
    Writing,
}

/// One death.
#[derive(Debug, Clone, Copy)]
struct Case {
    shape: Shape,
    point: &'static str,
    /// Where it dies once more, when it has come back.
    again: Option<&'static str>,
    /// Whether the agents are on the home node itself.
    alone: bool,
}

fn case(shape: Shape, point: &'static str) -> Case {
    Case { shape, point, again: None, alone: false }
}

/// The node that hosts the agents of all cases of a test.
struct Others {
    host: Node,
    oracle: Oracle,
}

impl Others {
    async fn start(crowds: usize) -> Self {
        let builder = Node::builder();
        let oracle = Oracle::new(builder.home());
        let worker = oracle.agent("worker", "test.step", 4);
        let planner = oracle.agent("planner", "task-decomposition", 1);
        let mut builder = builder.agent(worker).agent(planner);
        for (name, ms) in [("strange", 1), ("sound", 900)] {
            let mut agent = oracle.agent(name, "test.pair", 4);
            agent["capability"][0]["constraints"] = json!({ "response_time_ms": ms });
            builder = builder.agent(agent);
        }
        builder = builder.agent(json!({ "name": "runner", "concurrency": 8, "adapter": { "type": "task" } }));
        for number in 0..crowds {
            builder = builder.agent(oracle.agent(&format!("narrow-{number}"), &format!("test.narrow-{number}"), 1));
        }
        Self { host: builder.spawn().await, oracle }
    }
}

/// Runs cases beside each other.
async fn run(cases: &[Case]) {
    let crowds = cases.iter().filter(|case| case.shape == Shape::Crowded).count();
    let others = Others::start(crowds).await;
    let mut crowd = 0;
    let runs = cases.iter().enumerate().map(|(number, case)| {
        let narrow = format!("test.narrow-{crowd}");
        crowd += usize::from(case.shape == Shape::Crowded);
        die_and_rise(&others, *case, format!("case-{number}"), narrow)
    });
    stream::iter(runs.collect::<Vec<_>>()).buffer_unordered(AT_ONCE).collect::<()>().await;
}

fn cases_of_its_steps() -> Vec<Case> {
    let points = [
        "submitted:1",
        "committed-submitted:1",
        "dispatched:1",
        "committed-dispatched:1",
        "committed-dispatched:3",
        "accepted:1",
        "committed-accepted:1",
        "result_received:2",
        "kept-result_received:2",
        "committed-result_received:2",
        "validated:1",
        "committed-validated:1",
        "committed-validated:4",
        "attempt_failed:1",
        "kept-attempt_failed:1",
        "committed-attempt_failed:1",
        "ended:1",
        "committed-ended:1",
    ];
    points.map(|point| case(Shape::Diamond, point)).to_vec()
}

#[tokio::test]
async fn a_task_survives_the_death_of_its_home_node_at_any_event_of_its_steps() {
    run(&cases_of_its_steps()).await;
}

fn cases_around_trouble() -> Vec<Case> {
    let mut cases = vec![
        case(Shape::Goal, "submitted:1"),
        case(Shape::Goal, "planned:1"),
        case(Shape::Goal, "committed-planned:1"),
        case(Shape::Crowded, "rejected:1"),
        case(Shape::Crowded, "committed-rejected:1"),
        case(Shape::Late, "deferred:1"),
        case(Shape::Late, "committed-deferred:1"),
        case(Shape::Degraded, "subtask_failed:1"),
        case(Shape::Degraded, "kept-attempt_failed:1"),
        case(Shape::Degraded, "kept-subtask_failed:1"),
        case(Shape::Degraded, "committed-subtask_failed:2"),
        case(Shape::Degraded, "kept-ended:1"),
        case(Shape::Cancelled, "cancel_requested:1"),
        case(Shape::Cancelled, "kept-cancel_requested:1"),
        case(Shape::Cancelled, "committed-cancel_requested:1"),
    ];
    for again in ["requeued:1", "kept-requeued:1", "committed-requeued:1"] {
        cases.push(Case { again: Some(again), ..case(Shape::Diamond, "committed-accepted:1") });
    }
    cases
}

#[tokio::test]
async fn a_task_survives_the_death_of_its_home_node_at_any_event_on_its_way_around_trouble() {
    run(&cases_around_trouble()).await;
}

fn cases_with_others() -> Vec<Case> {
    let points = [
        (Shape::Nested, ["delegated:1", "kept-delegated:1", "committed-delegated:1"]),
        (Shape::Odd, ["invalid_output:1", "kept-invalid_output:1", "committed-invalid_output:1"]),
        (Shape::Told, ["called_back:1", "kept-called_back:1", "committed-called_back:1"]),
        (Shape::Writing, ["context_written:1", "kept-context_written:1", "committed-context_written:1"]),
        (Shape::Writing, ["committed-accepted:1", "result_received:1", "committed-result_received:1"]),
    ];
    points.into_iter().flat_map(|(shape, points)| points.map(|point| case(shape, point))).collect()
}

#[tokio::test]
async fn a_task_survives_the_death_of_its_home_node_at_any_event_that_others_have_a_part_in() {
    run(&cases_with_others()).await;
}

/// What is kept only where a node was out of reach: `outbox.rs` kills the home node there.
const ELSEWHERE: [&str; 1] = ["duplicate_result"];

/// F1: no event is kept at which the node was not killed, both before and after the journal had it.
#[test]
fn the_home_node_dies_at_every_event_that_its_journal_keeps() {
    let names = include_str!("../../src/wire/task.rs").split_once("pub fn name(&self)").expect("events have names").1;
    let names = names.split_once("\n    }\n").expect("a function ends").0;
    let names: BTreeSet<&str> = names.lines().filter_map(|line| line.split_once("=> \"")?.1.split('"').next()).collect();
    assert!(names.len() >= 18, "{names:?}");
    let cases = [cases_of_its_steps(), cases_around_trouble(), cases_with_others(), cases_together()].concat();
    let points: Vec<&str> = cases.iter().flat_map(|case| [Some(case.point), case.again]).flatten().collect();
    let dies = |name: &str, when: &[&str]| {
        let named = |point: &&str| point.split_once(':').is_some_and(|(point, _)| when.iter().any(|when| point == format!("{when}{name}")));
        points.iter().any(named)
    };
    assert!(ELSEWHERE.iter().all(|name| names.contains(name)), "{names:?}");
    let kept = names.iter().filter(|name| !ELSEWHERE.contains(*name));
    let missing: Vec<&&str> = kept.filter(|name| !dies(name, &["", "kept-"]) || !dies(name, &["kept-", "committed-"])).collect();
    assert!(missing.is_empty(), "nobody kills the node at {missing:?}");
}

fn cases_together() -> Vec<Case> {
    let points = ["committed-dispatched:1", "committed-accepted:2", "result_received:1", "committed-validated:3", "committed-ended:1"];
    points.map(|point| Case { alone: true, ..case(Shape::Diamond, point) }).to_vec()
}

#[tokio::test]
async fn a_task_survives_the_death_of_its_home_node_together_with_its_agents() {
    run(&cases_together()).await;
}

/// The steps of a diamond, with what `more` adds to one of them.
fn diamond(changed: &str, more: &Value) -> Vec<Step<'static>> {
    let steps: [(&str, &[&str]); 4] = [("a", &[]), ("b", &["a"]), ("c", &["a"]), ("d", &["b", "c"])];
    let extra = |name: &str| if name == changed { more.clone() } else { json!({}) };
    steps.into_iter().map(|(name, after)| (name, after, extra(name))).collect()
}

impl Case {
    fn steps(self) -> Vec<Step<'static>> {
        match self.shape {
            Shape::Diamond | Shape::Goal => diamond("b", &json!({ "fails": 1 })),
            Shape::Degraded => diamond("c", &json!({ "fails": 99 })),
            Shape::Odd => diamond("b", &json!({ "odd": "strange" })),
            Shape::Late | Shape::Cancelled | Shape::Crowded | Shape::Nested | Shape::Told | Shape::Writing => {
                vec![("a", &[], json!({})), ("b", &["a"], json!({}))]
            }
        }
    }

    fn definition(self, tag: &str, other: &str) -> Value {
        let mut subtasks = Vec::new();
        for (name, after, more) in self.steps() {
            let add: Vec<String> = after.iter().map(|before| format!("${{{before}.output.sum}}")).collect();
            let input = with(json!({ "step": format!("{tag}.{name}"), "add": add, "ms": 20 }), more);
            let is_other = name == "b" && matches!(self.shape, Shape::Late | Shape::Cancelled | Shape::Crowded);
            let mut subtask = json!({ "subtask_id": name, "agent_capability": if is_other { other } else { "test.step" }, "input": input });
            if name == "b" && self.shape == Shape::Odd {
                subtask["agent_capability"] = "test.pair".into();
                subtask["output"] = json!({ "type": "object", "properties": { "sum": { "type": "integer" } } });
            }
            if name == "a" && self.shape == Shape::Writing {
                subtask["input"]["ops"] = written(tag);
            }
            if name == "b" && self.shape == Shape::Nested {
                subtask["input"]["add"] = json!(["${parent.input.sum}"]);
                let inner = json!({ "name": "inner", "parameters": { "sum": "${a.output.sum}" }, "subtasks": [subtask] });
                subtask = json!({ "subtask_id": name, "task": inner });
            }
            subtasks.push(subtask);
        }
        let retries = if self.shape == Shape::Degraded { 0 } else { 3 };
        let policy = json!({ "max_retries": retries, "backoff_base_ms": 100, "backoff_strategy": "fixed" });
        let mut definition = json!({ "name": tag, "metadata": { "retry_policy": policy } });
        if self.shape == Shape::Degraded {
            definition["fallback"] = json!({ "on_subtask_failed": { "strategy": "DEGRADE" } });
        }
        if self.shape == Shape::Goal {
            definition["goal"] = "a diamond".into();
            definition["parameters"] = json!({ "plan": subtasks });
        } else {
            definition["subtasks"] = subtasks.into();
        }
        definition
    }
}

/// Sends a request to a node that may die of it.
async fn ask(node: &Node, path: &str, body: &Value, key: &str) -> Option<Answer> {
    let request = node.request(Method::POST, path).header("idempotency-key", key).json(body);
    let response = request.send().await.ok()?;
    let status = response.status().as_u16();
    Some(Answer { status, body: response.json().await.ok()? })
}

async fn die_and_rise(others: &Others, case: Case, tag: String, narrow: String) {
    let told = format!("{case:?}");
    // Who is slow to accept may begin all the same, and be asked again: only where that is wanted is nobody waited for.
    let start_within_ms = if case.shape == Shape::Crowded { 300 } else { 5_000 };
    let (address, told_of) = task_callbacks::server(&["204 No Content"]);
    let callback = format!("http://{address}/");
    let config = format!("[routing]\nexploration = 0.0\n[task]\nstart_within_ms = {start_within_ms}\ncallback_allow = [\"{callback}\"]\n");
    let mut builder = Node::builder().join(&others.host).config(&config).failpoint(Some(case.point));
    let oracle = if case.alone { Oracle::new(builder.home()) } else { others.oracle.clone() };
    if case.alone {
        builder = builder.no_join().agent(oracle.agent("own", "test.step", 2));
    }
    let other = if case.shape == Shape::Crowded { narrow } else { format!("test.late-{tag}") };
    let mut definition = case.definition(&tag, &other);
    if case.shape == Shape::Told {
        definition["completion_callback"] = callback.clone().into();
    }
    let mut home = builder.spawn().await;
    home.knows("test.step", &[if case.alone { "own" } else { "worker" }]).await;
    match case.shape {
        Shape::Goal => home.knows("task-decomposition", &["planner"]).await,
        Shape::Nested => home.knows("task-execution", &["runner"]).await,
        Shape::Odd => home.knows("test.pair", &["sound", "strange"]).await,
        Shape::Diamond | Shape::Degraded | Shape::Late | Shape::Cancelled | Shape::Crowded | Shape::Told | Shape::Writing => {}
    }
    if case.shape == Shape::Writing {
        let context = home.post("/v1/contexts", &json!({})).await.ok();
        definition["context"] = json!({ "id": context["id"], "access": "write" });
    }
    let free = others.oracle.beside(&format!("free-{tag}"));
    let crowd = (case.shape == Shape::Crowded).then(|| {
        let blocking = json!({ "capability": other, "input": { "step": format!("block-{tag}"), "until": free } });
        tokio::spawn(others.host.request(Method::POST, "/v1/invoke").json(&blocking).send())
    });
    if crowd.is_some() {
        home.find(&other).await;
        let begun = async || (!others.oracle.of(&format!("block-{tag}")).is_empty()).then_some(());
        eventually("the agent is busy", SETTLE, begun).await;
    }

    let receipt = ask(&home, "/aitp/tasks", &definition, &tag).await;
    let acknowledged = receipt.map(|answer| id_of(&answer.ok()));
    let of_submission = ["submitted:1", "committed-submitted:1"].contains(&case.point);
    assert!(acknowledged.is_none() || !of_submission, "{told}: acknowledged before its node had heard that it is durable");
    if let (Shape::Cancelled, Some(task)) = (case.shape, &acknowledged) {
        home.task_events(task).await.wait_for("deferred", SETTLE, |event| event["subtask_id"] == "b").await;
        let _ = ask(&home, &format!("/aitp/tasks/{task}/cancel"), &json!({}), &tag).await;
    }
    home.died().await;
    std::fs::write(free, "").expect("the file is written");
    let at_death = oracle.of(&tag);

    let mut reborn = home.reborn();
    if case.again.is_some() {
        reborn = reborn.failpoint(case.again).start().died().await.failpoint(None);
    }
    let home = reborn.spawn().await;
    let listed = home.get("/aitp/tasks").await.ok();
    let rows = listed["tasks"].as_array().expect("rows").len();
    let task = match acknowledged {
        Some(task) => {
            assert_eq!((rows, &listed["tasks"][0]["task_id"]), (1, &json!(task)), "{told}: an acknowledged task is there: {listed}");
            task
        }
        None => {
            assert!(rows <= 1, "{told}: {listed}");
            let answer = ask(&home, "/aitp/tasks", &definition, &tag).await.expect("the node answers");
            assert_eq!(answer.status, if rows == 1 { 200 } else { 201 }, "{told}: what is there is the same task: {answer:?}");
            id_of(&answer.ok())
        }
    };
    match case.shape {
        Shape::Late => {
            home.task_events(&task).await.wait_for("deferred", SETTLE, |event| event["subtask_id"] == "b").await;
            home.post("/v1/agents", &oracle.agent("late", &other, 1)).await.ok();
        }
        Shape::Cancelled => {
            let standing = home.task(&task).await;
            if standing["outcome"].is_null() {
                home.post(&format!("/aitp/tasks/{task}/cancel"), &json!({})).await.ok();
            }
        }
        Shape::Diamond | Shape::Goal | Shape::Degraded | Shape::Crowded | Shape::Nested | Shape::Odd | Shape::Told | Shape::Writing => {}
    }

    let history = home.history(&task).await;
    let result = home.task_result(&task).await;
    let expected = match case.shape {
        Shape::Diamond | Shape::Goal | Shape::Odd => json!(["COMPLETED", "success", { "step": format!("{tag}.d"), "sum": 5 }]),
        Shape::Late | Shape::Crowded | Shape::Nested | Shape::Told | Shape::Writing => {
            json!(["COMPLETED", "success", { "step": format!("{tag}.b"), "sum": 2 }])
        }
        Shape::Degraded => json!(["COMPLETED", "partial", result["result"]]),
        Shape::Cancelled => json!(["FAILED", "cancelled", null]),
    };
    assert_eq!(json!([result["status"], result["outcome"], result["result"]]), expected, "{told}: {result}\n{history:?}");
    if case.shape == Shape::Degraded {
        assert_eq!(result["missing"], json!(["c", "d"]), "{told}: {result}");
    }
    at_most_one_result_each(&told, &history);
    let plans = count(&oracle.of(&format!("plan-{tag}")), "started");
    let planned = BTreeMap::from_iter((case.shape == Shape::Goal).then(|| (format!("plan-{tag}"), 1)));
    assert_eq!(plans, planned, "{told}: who makes the plan makes it once");
    only_what_was_in_flight_ran_twice(&told, &tag, case, &at_death, &oracle.of(&tag));
    if case.shape == Shape::Writing {
        written_once(&told, &home, &definition, (&task, &tag)).await;
    }
    if case.shape == Shape::Told {
        told_once(&told, &home, (&task, case.point), &callback, &told_of).await;
    }
    if let Some(crowd) = crowd {
        assert!(crowd.await.expect("the blocking call ends").is_ok(), "{told}");
    }
    // What the first start after the death made of it is what a second one finds.
    if case.alone || case.point.starts_with("kept") {
        assert_eq!(home.restart().await.task_result(&task).await, result, "{told}");
    }
}

/// What the first step writes: more than one operation holds, and than stands in the journal itself.
fn written(tag: &str) -> Value {
    json!(
        [1, 2].map(|part| json!({ "op": "append", "path": "/shared_memory/log", "value": format!("{tag} {part} {}", "x".repeat(40_000)) }))
    )
}

/// What a step writes to a context is there once, under its name.
async fn written_once(told: &str, home: &Node, definition: &Value, (task, tag): (&str, &str)) {
    let context = definition["context"]["id"].as_str().expect("an id");
    let log = home.get(&format!("/v1/contexts/{context}?path=/shared_memory/log")).await.ok();
    let expected: Vec<Value> = written(tag).as_array().expect("a list").iter().map(|op| op["value"].clone()).collect();
    assert!(log == json!(expected), "{told}: {} values", log.as_array().map_or(0, Vec::len));
    let past = home.get(&format!("/v1/contexts/{context}/history")).await.ok();
    let rows = past["operations"].as_array().expect("a list");
    let by_step = |row: &Value| row["step"] == json!({ "task_id": task, "subtask_id": "a" });
    assert!(rows.len() == 2 && rows.iter().all(by_step), "{told}: {} operations", rows.len());
}

/// Who wants to know of the end of a task is told, and again only if the journal did not have it that it was.
async fn told_once(told: &str, home: &Node, (task, point): (&str, &str), callback: &str, requests: &mpsc::Receiver<String>) {
    let mut after = case(Shape::Late, "").definition("after", "test.step");
    after["completion_callback"] = callback.into();
    let after = home.submit(&after).await;
    let mut times = 0;
    loop {
        let request = task_callbacks::request(requests).await;
        if request.contains(&after) {
            break;
        }
        assert!(request.contains(task), "{told}: {request}");
        times += 1;
    }
    let most = if point.contains('-') { 1 } else { 2 };
    assert!((1..=most).contains(&times), "{told}: told {times} times");
}

/// Of each subtask one result is used at most, and the task ends once.
fn at_most_one_result_each(told: &str, history: &[(String, Value)]) {
    let mut results: BTreeMap<&str, usize> = BTreeMap::new();
    for (_, event) in history.iter().filter(|(name, _)| name == "validated") {
        *results.entry(event["subtask_id"].as_str().expect("an event names its subtask")).or_default() += 1;
    }
    assert!(results.values().all(|count| *count == 1), "{told}: {results:?}\n{history:?}");
    assert_eq!(history.iter().filter(|(name, _)| name == "ended").count(), 1, "{told}: {history:?}");
}

fn only_what_was_in_flight_ran_twice(told: &str, tag: &str, case: Case, at_death: &[Noted], noted: &[Noted]) {
    let (started, failed, finished) = (count(noted, "started"), count(noted, "failed"), count(noted, "finished"));
    let (begun_before, done_before) = (count(at_death, "started"), count(at_death, "finished"));
    let steps = case.steps();
    for (name, after, more) in &steps {
        let step = format!("{tag}.{name}");
        let number = |counts: &BTreeMap<String, usize>, name: &str| counts.get(&format!("{tag}.{name}")).copied().unwrap_or_default();
        let is_done = !matches!((case.shape, *name), (Shape::Degraded, "c" | "d") | (Shape::Cancelled, "b"));
        let fails = more["fails"].as_u64().unwrap_or_else(|| u64::from(more["odd"].is_string()));
        let needed = number(&failed, name).min(fails as usize) + usize::from(is_done);
        let runs = number(&started, name);
        let was_in_flight = after.iter().all(|before| number(&done_before, before) > 0)
            && !steps.iter().any(|(next, needs, _)| needs.contains(name) && number(&begun_before, next) > 0)
            && (case.alone || number(&done_before, name) == 0);
        let allowed = needed + usize::from(was_in_flight) * (1 + usize::from(case.again.is_some()));
        assert!((needed..=allowed).contains(&runs), "{told}: `{name}` ran {runs} times, not {needed} to {allowed}: {noted:?}");
        assert_eq!(number(&finished, name) > 0, is_done, "{told}: `{name}`: {noted:?}");
        let keys: Vec<&str> = noted.iter().filter(|noted| noted.step == step).map(|noted| noted.key.as_str()).collect();
        // An output that is no use makes other work of what is done again, if the journal had heard of it.
        let changes = keys.windows(2).filter(|pair| pair[0] != pair[1]).count();
        let most = usize::from(more["odd"].is_string());
        let least = if case.point == "invalid_output:1" { 0 } else { most };
        assert!((least..=most).contains(&changes), "{told}: all attempts of `{name}` that do one work have one key: {noted:?}");
    }
}

/// F1, AITP-10: a step is done when its task has just failed, and the node dies: the result is used nowhere, and what the next start makes of it
/// stays so.
#[tokio::test]
async fn a_result_that_comes_when_its_task_has_just_failed_is_not_used() {
    let workshop = Workshop::new();
    let price = json!({ "price": { "amount": "0.01", "currency": "USD", "unit": "request" } });
    let host = Node::builder().agent(workshop.worker("worker", "test.work", price)).spawn().await;
    // That the task has ended is durable, and not heard of until something else is.
    let mut home = Node::builder().join(&host).failpoint(Some("late-ended:1")).spawn().await;
    home.knows("test.work", &["worker"]).await;
    // It fails when the other has begun.
    let fails = json!({ "meet": 2, "fail": { "times": 9, "error": { "message": "no", "retryable": false } } });
    let late = step("b", "test.work", json!({ "until": "go", "output": 1 }));
    let id = home.submit(&task(&[step("a", "test.work", fails), late])).await;
    workshop.until("failed", 1).await;
    workshop.release("go");
    workshop.until("done", 1).await;
    let after = home.submit(&task(&[step("a", "test.work", json!({ "mark": "after", "output": 2 }))])).await;
    assert_eq!(home.result(&after).await["result"], 2);
    assert_eq!(home.task(&id).await["outcome"], "failed");

    home.kill().await;
    let home = home.reborn().spawn().await;
    let result = home.task_result(&id).await;
    assert_eq!((&result["outcome"], &result["reason"]), (&json!("failed"), &json!("NON_RETRYABLE")), "{result}");
    let lines = result["ledger"]["entries"].as_array().expect("entries").clone();
    assert!(lines.iter().all(|line| line["subtask_id"] == "b" && line["duplicate"] == true), "{result}");
    let events = home.task_events(&id).await.rest().await;
    assert_eq!(events.iter().filter(|(name, _)| name == "ended").count(), 1, "{events:?}");
    assert!(events.iter().all(|(name, event)| name != "validated" || event["subtask_id"] != "b"), "{events:?}");
    assert_ne!(home.step(&id, "b").await["status"], "SUCCESS");
    assert_eq!(home.restart().await.task_result(&id).await, result);
}

/// A client's word for a task outlives the node that gave it: the same submission is the same task, another one is refused.
#[tokio::test]
async fn the_key_of_a_submission_holds_after_the_death_of_the_node() {
    let builder = Node::builder();
    let oracle = Oracle::new(builder.home());
    let mut home = builder.agent(oracle.agent("own", "test.step", 1)).spawn().await;
    let definition = case(Shape::Diamond, "").definition("keyed", "");
    let first = ask(&home, "/aitp/tasks", &definition, "order-7").await.expect("the node answers");
    assert_eq!(first.status, 201, "{first:?}");
    home.kill().await;
    let home = home.reborn().spawn().await;
    let second = ask(&home, "/aitp/tasks", &definition, "order-7").await.expect("the node answers");
    assert_eq!((second.status, id_of(&second.body)), (200, id_of(&first.body)));
    let other = ask(&home, "/aitp/tasks", &case(Shape::Diamond, "").definition("other", ""), "order-7").await.expect("the node answers");
    other.refused(409, "CONFLICT");
    home.history(&id_of(&first.body)).await;
    assert_eq!(home.task_result(&id_of(&first.body)).await["result"]["sum"], 5);
}
