//! Tasks that ask for live offers before each choice: who is chosen, why, and what happens where nobody's offer fits.

use serde_json::{Value, json};

use crate::support::{Node, SETTLE, builtin, eventually, slow, with};

/// Submits a task of one step that wants offers; its id.
async fn submit(node: &Node, capability: &str, input: Value, more: Value) -> String {
    let step = json!({ "subtask_id": "only", "agent_capability": capability, "input": input, "offers": true });
    let definition = with(json!({ "name": "with offers", "subtasks": [step] }), more);
    let receipt = node.post("/aitp/tasks", &definition).await;
    assert_eq!(receipt.status, 201, "{receipt:?}");
    receipt.body["task_id"].as_str().expect("a receipt names its task").to_owned()
}

/// Its result, once it has ended.
async fn ended(node: &Node, task: &str) -> Value {
    let path = format!("/aitp/tasks/{task}/result");
    let result = async || {
        let answer = node.get(&path).await;
        (answer.status == 200).then_some(answer.body)
    };
    eventually("the task ends", SETTLE, result).await
}

/// Its only step, with every attempt.
async fn step(node: &Node, task: &str) -> Value {
    let status = node.get(&format!("/aitp/tasks/{task}?explain=true")).await.ok();
    status["progress"]["steps"][0].clone()
}

fn priced(name: &str, amount: &str, currency: &str) -> Value {
    with(builtin(name, "echo"), json!({ "capability": [{ "id": "echo", "price": { "amount": amount, "currency": currency } }] }))
}

/// AMP-7, AITP-5: the agents are asked, the best offer that fits is taken, and the attempt tells what was offered.
#[tokio::test]
async fn a_step_goes_to_the_best_offer_that_fits_and_tells_of_all() {
    let home = Node::builder().agent(priced("dear", "2", "USD")).spawn().await;
    let _host = Node::builder().join(&home).agent(priced("cheap", "0.5", "USD")).agent(priced("foreign", "0.1", "EUR")).spawn().await;
    home.knows("echo", &["cheap", "dear", "foreign"]).await;

    let task = submit(&home, "echo", json!({ "x": 1 }), json!({ "metadata": { "cost_limit": 1 } })).await;

    let result = ended(&home, &task).await;
    assert_eq!((&result["outcome"], &result["result"], &result["cost"]), (&json!("success"), &json!({ "x": 1 }), &json!(0.5)), "{result}");
    let step = step(&home, &task).await;
    assert_eq!(step["agent"], "cheap", "{step}");
    let said = &step["attempts"][0]["explain"]["offers"];
    let names = |rows: &Value| rows.as_array().into_iter().flatten().map(|row| row["name"].clone()).collect::<Vec<_>>();
    assert_eq!((names(&said["offers"]), names(&said["declined"])), (vec![json!("foreign"), json!("cheap")], vec![json!("dear")]), "{step}");
    let (cost, reason) = (&said["offers"][1]["cost"]["amount"], &said["declined"][0]["reason"]);
    assert_eq!((cost, reason), (&json!("0.5"), &json!("price of 2 is above max_cost")), "{step}");
}

/// AITP-5: an agent that would only begin when the call is taken back again is not chosen; the step waits until it has room.
#[tokio::test]
async fn an_agent_that_could_not_begin_in_time_is_waited_for() {
    let folder = tempfile::tempdir().expect("a folder");
    let journal = folder.path().join("journal");
    let capability = json!([{ "id": "test.slow", "constraints": { "response_time_ms": 60_000 } }]);
    let agent = with(slow("slow", Some(&journal)), json!({ "concurrency": 1, "queue": 1, "capability": capability }));
    let node = Node::builder().agent(agent).spawn().await;
    node.knows("test.slow", &["slow"]).await;

    let before = node.invoke(json!({ "capability": "test.slow", "input": { "ms": 2_000 } }));
    let waits = async {
        let works = async || std::fs::read_to_string(&journal).is_ok_and(|lines| lines.starts_with("started")).then_some(());
        eventually("the agent works", SETTLE, works).await;
        let task = submit(&node, "test.slow", json!({ "ms": 10 }), json!({})).await;
        let told = async || {
            let step = step(&node, &task).await;
            let waits = step["waiting_for"].as_str().is_some_and(|text| text.contains("would begin in 60000 ms"));
            waits.then_some(step)
        };
        let step = eventually("the step waits", SETTLE, told).await;
        assert_eq!((&step["attempt"], &step["status"]), (&json!(0), &json!("PENDING")), "nobody was called: {step}");
        task
    };
    let (before, task) = tokio::join!(before, waits);

    before.ok();
    assert_eq!(ended(&node, &task).await["outcome"], "success");
}

/// AITP-7, AITP-9: without an offer that fits a step fails or waits for the reason that it is.
#[tokio::test]
async fn a_step_that_nobody_bids_for_fails_as_its_author_said() {
    let node = Node::builder().agent(priced("dear", "2", "USD")).spawn().await;
    node.knows("echo", &["dear"]).await;

    let dear = submit(&node, "echo", json!({}), json!({ "metadata": { "cost_limit": 1 } })).await;
    let result = ended(&node, &dear).await;
    assert_eq!((&result["reason"], &result["error"]["code"]), (&json!("COST"), &json!("OVER_BUDGET")), "{result}");

    let fallback = json!({ "fallback": { "on_capability_unavailable": { "strategy": "FAIL_AND_NOTIFY" } } });
    let unknown = submit(&node, "test.nobody", json!({}), fallback).await;
    let result = ended(&node, &unknown).await;
    assert_eq!((&result["reason"], &result["error"]["code"]), (&json!("NO_CAPABILITY"), &json!("CAPABILITY_NOT_FOUND")), "{result}");
}
