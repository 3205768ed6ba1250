//! The home node of a goal dies around its plan: who made that is asked again, and makes and is paid for one plan.

use serde_json::{Value, json};

use crate::support::{
    Node, builtin,
    oracle::{Noted, Oracle},
    tasks::planner,
};

/// A node that plans for a price, and its oracle; a home node that dies there, if anywhere.
async fn start(failpoint: Option<&str>) -> (Node, Node, Oracle) {
    let builder = Node::builder();
    let oracle = Oracle::new(builder.home());
    let mut agent = oracle.agent("planner", "task-decomposition", 1);
    agent["capability"][0]["price"] = json!({ "amount": "0.5", "currency": "USD", "unit": "plan" });
    let host = builder.agent(agent).agent(oracle.agent("worker", "test.step", 1)).spawn().await;
    let home = planner().join(&host).failpoint(failpoint).spawn().await;
    home.knows("task-decomposition", &["planner"]).await;
    home.knows("test.step", &["worker"]).await;
    (home, host, oracle)
}

fn goal(parameters: Value) -> Value {
    let step = json!({ "subtask_id": "a", "agent_capability": "test.step", "input": { "step": "work", "add": [1] } });
    let mut task = json!({ "name": "task", "goal": "work", "parameters": { "plan": [step] } });
    task["parameters"].as_object_mut().expect("an object").extend(parameters.as_object().expect("an object").clone());
    task
}

/// The task has ended well, and its plan was made once and paid once.
async fn was_planned_once(home: &Node, id: &str, oracle: &Oracle) {
    let result = home.result(id).await;
    assert_eq!((&result["outcome"], &result["result"]["sum"]), (&json!("success"), &json!(2)), "{result}");
    let noted: Vec<Noted> = oracle.of("plan-task");
    assert_eq!(noted.iter().map(|noted| noted.what.as_str()).collect::<Vec<_>>(), ["started", "finished"], "{noted:?}");
    let lines = result["ledger"]["entries"].as_array().expect("entries");
    assert_eq!((lines.len(), &result["cost"]), (1, &json!(0.5)), "{result}");
}

/// AITP-4, F1: the plan was made, and the home node dies when it is about to keep it.
#[tokio::test]
async fn a_plan_that_was_about_to_be_kept_is_not_made_again() {
    let (mut home, _host, oracle) = start(Some("planned:1")).await;
    let id = home.submit(&goal(json!({}))).await;
    home.died().await;
    assert_eq!(oracle.of("plan-task").len(), 2, "it was made: {:?}", oracle.of("plan-task"));
    let home = home.reborn().spawn().await;
    was_planned_once(&home, &id, &oracle).await;
}

/// AITP-4, F10: the home node dies while the plan is made, and comes back when it was; by then it knows another capability, and asks
/// with other words.
#[tokio::test]
async fn a_plan_that_nobody_heard_of_is_not_made_again() {
    let (mut home, _host, oracle) = start(None).await;
    let free = oracle.beside("free");
    let id = home.submit(&goal(json!({ "until": free }))).await;
    oracle.until("plan-task", "started", 1).await;
    home.kill().await;
    std::fs::write(&free, "").expect("the file is written");
    oracle.until("plan-task", "finished", 1).await;
    let home = home.reborn().agent(builtin("echo", "echo")).spawn().await;
    was_planned_once(&home, &id, &oracle).await;
}
