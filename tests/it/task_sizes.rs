//! Tasks as wide and as long as they are promised to be, on a real node: each step is done once, and what comes out is what the agents made.

use std::{io::Write, time::Instant};

use serde_json::json;

use crate::support::{
    Node,
    oracle::{Oracle, chain, count},
};

/// Subtasks that may run beside each other, all at once.
const WIDE: u64 = 1_000;
/// Subtasks that follow each other.
const LONG: u64 = 50;

/// AITP-3, AITP-6: a thousand subtasks beside each other, of which the outputs are added up, and a chain of fifty, of which each adds one.
#[tokio::test]
async fn a_thousand_subtasks_at_once_and_fifty_in_a_chain_come_to_the_right_sum() {
    let builder = Node::builder();
    let oracle = Oracle::new(builder.home());
    let node = builder.agent(oracle.agent("worker", "test.work", 64)).spawn().await;
    node.knows("test.work", &["worker"]).await;
    let id = |number: u64| format!("s{number}");
    let step = |number: u64| {
        let input = json!({ "step": format!("wide.{}", id(number)), "add": [number] });
        json!({ "subtask_id": id(number), "agent_capability": "test.work", "input": input })
    };
    let sums: Vec<String> = (0..WIDE).map(|number| format!("${{{}.output.sum}}", id(number))).collect();
    let total = json!({ "subtask_id": "total", "agent_capability": "test.work", "input": { "step": "wide.total", "add": sums } });
    let wide = json!({ "name": "wide", "subtasks": (0..WIDE).map(step).chain([total]).collect::<Vec<_>>() });
    let names: Vec<String> = (0..LONG).map(id).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();

    let began = Instant::now();
    let done = node.run_task(&wide).await;
    let took = began.elapsed();
    // Each adds one to its number, and the last one to them all.
    let sum = WIDE * (WIDE + 1) / 2 + 1;
    assert_eq!((&done["outcome"], &done["result"]["sum"]), (&json!("success"), &json!(sum)), "{}", done["error"]);
    let done = node.run_task(&chain("long", "test.work", &names, 0, &json!({}))).await;
    assert_eq!((&done["outcome"], &done["result"]["sum"]), (&json!("success"), &json!(LONG)), "{}", done["error"]);

    let _ = writeln!(std::io::stderr(), "{WIDE} at once in {took:?}, then {LONG} in a chain in {:?}", began.elapsed() - took);

    let noted = oracle.of("");
    for what in ["started", "finished"] {
        let counts = count(&noted, what);
        assert_eq!((counts.len() as u64, counts.values().all(|times| *times == 1)), (WIDE + 1 + LONG, true), "each was {what} once");
    }
}
