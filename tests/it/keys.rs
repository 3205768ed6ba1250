//! Calls with an idempotency key, over the death of the nodes that have a part in them (fault F10, tasks.md "Fences and idempotency").
//!
//! The agents note what they do in a file, so nobody has to believe a node about how often something was done.

use serde_json::{Value, json};

use crate::support::{
    Node,
    oracle::{Oracle, count},
    tasks::{Workshop, step, task},
    with,
};

/// A call of the oracle's agent, for a step of this name.
fn call(step: &str, key: &str) -> Value {
    json!({ "capability": "noted", "input": { "step": step }, "idempotency_key": key })
}

fn done(oracle: &Oracle, step: &str) -> usize {
    count(&oracle.of(step), "finished").get(step).copied().unwrap_or_default()
}

/// AITP-12, fault F10: what a client was answered is answered again after its node was killed, and not done again.
#[tokio::test]
async fn a_result_outlives_the_node_of_the_client() {
    let folder = tempfile::tempdir().expect("a folder");
    let oracle = Oracle::new(folder.path());
    let host = Node::builder().agent(oracle.agent("noter", "noted", 2)).spawn().await;
    let mut desk = Node::builder().join(&host).spawn().await;
    desk.knows("noted", &["noter"]).await;

    let first = desk.invoke(call("once", "k")).await.ok();
    desk.kill().await;
    let desk = desk.reborn().spawn().await;
    let again = desk.invoke(call("once", "k")).await.ok();

    let telling = ["output", "agent_id", "node_id", "invocation_id", "units", "attempts"];
    assert_eq!(telling.map(|field| &again[field]), telling.map(|field| &first[field]));
    assert_eq!(done(&oracle, "once"), 1);
    let other = desk.invoke(json!({ "capability": "noted", "input": { "step": "other" }, "idempotency_key": "k" })).await;
    assert_eq!(other.error("CONFLICT")["retryable"], false, "the key still stands for the first input");
}

/// Fault F10: the agent's node answers from its disk what it did before it was killed, also for a caller that has forgotten.
#[tokio::test]
async fn a_result_outlives_the_node_of_the_agent() {
    let folder = tempfile::tempdir().expect("a folder");
    let oracle = Oracle::new(folder.path());
    let mut host = Node::builder().agent(oracle.agent("noter", "noted", 2)).spawn().await;
    // The caller keeps no result itself.
    let desk = Node::builder().join(&host).config("[limits]\nresults_kept_max = 0\n").spawn().await;
    desk.knows("noted", &["noter"]).await;

    let first = desk.invoke(call("once", "k")).await.ok();
    host.kill().await;
    let host = host.reborn().spawn().await;
    desk.meets(&host).await;
    desk.knows("noted", &["noter"]).await;
    let again = desk.invoke(call("once", "k")).await.ok();

    assert_eq!((&again["output"], &again["node_id"]), (&first["output"], &first["node_id"]));
    assert_eq!(done(&oracle, "once"), 1, "asked again, and not done again");
}

/// AITP-6, faults F10 and F21: work of which the owner went away in the middle is finished, kept, and there when the owner asks again.
#[tokio::test]
async fn a_step_outlives_the_node_that_it_is_for() {
    let workshop = Workshop::new();
    let host = Node::builder().agent(workshop.worker("smith", "forge", json!({}))).spawn().await;
    let mut desk = Node::builder().join(&host).spawn().await;
    desk.knows("forge", &["smith"]).await;

    let steps = [
        step("long", "forge", json!({ "until": "enough", "output": { "made": 7 } })),
        step("next", "forge", json!({ "got": "${long.output.made}" })),
    ];
    let id = desk.submit(&task(&steps)).await;
    workshop.until("started", 1).await;
    desk.kill().await;
    workshop.release("enough");
    workshop.until("done", 1).await;
    let desk = desk.reborn().spawn().await;
    let result = desk.result(&id).await;

    assert_eq!(result["result"]["got"], 7, "{result}");
    assert_eq!(workshop.notes("started").len(), 2, "each step was begun once");
    assert!(workshop.notes("cancelled").is_empty());
    let long = desk.step(&id, "long").await;
    assert_eq!((&long["attempt"], &long["attempts"][0]["outcome"]), (&json!(2), &json!("requeued")), "{long}");
}

/// AITP-6: a step that stood in an agent's line when its owner died has not begun, and begins under the attempt that follows.
#[tokio::test]
async fn a_step_that_waited_in_line_is_not_lost_with_its_owner() {
    let workshop = Workshop::new();
    let smith = with(workshop.worker("smith", "forge", json!({})), json!({ "concurrency": 1, "queue": 8 }));
    let host = Node::builder().agent(smith).spawn().await;
    let mut desk = Node::builder().join(&host).spawn().await;
    desk.knows("forge", &["smith"]).await;

    let first = desk.submit(&task(&[step("holds", "forge", json!({ "until": "enough", "output": 1 }))])).await;
    workshop.until("started", 1).await;
    let second = desk.submit(&task(&[step("waits", "forge", json!({ "output": 2 }))])).await;
    desk.until_step(&second, "waits", |step| step["attempt"] == 1).await;
    desk.kill().await;
    let desk = desk.reborn().spawn().await;
    desk.until_step(&second, "waits", |step| step["attempt"].as_u64() >= Some(2)).await;
    workshop.release("enough");

    assert_eq!((&desk.result(&first).await["result"], &desk.result(&second).await["result"]), (&json!(1), &json!(2)));
    assert_eq!(workshop.notes("started").len(), 2, "each was begun once");
}
