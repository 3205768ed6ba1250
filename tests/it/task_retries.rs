//! Retries of steps are a share of a node's traffic, so that an overload is not multiplied by those who suffer from it (F12).

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::support::{
    Node,
    tasks::{Workshop, planner, step, task},
    with,
};

/// So many that the agent fails less often in a row than a breaker can be set to bear.
const STEPS: usize = 50;

/// F12: steps that all fail, and may all be tried again at once five times, are so for a tenth of what was sent, the reserve, and two a
/// second; the others wait, until the deadline of their task, and none fails for that.
#[tokio::test]
async fn a_storm_of_failing_steps_sends_no_more_than_the_share_of_retries() {
    let workshop = Workshop::new();
    let node =
        planner().agent(with(workshop.worker("worker", "test.work", json!({})), json!({ "concurrency": 8, "queue": 200 }))).spawn().await;
    node.knows("test.work", &["worker"]).await;
    let steps: Vec<Value> = (0..STEPS)
        .map(|number| step(&format!("s{number}"), "test.work", json!({ "mark": format!("m{number}"), "fail": { "times": 1_000 } })))
        .collect();
    let deadline = SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is right").as_secs() + 12;
    let policy = json!({ "max_retries": 5, "backoff_strategy": "fixed", "backoff_base_ms": 1 });
    let metadata = json!({ "metadata": { "deadline": deadline, "retry_policy": policy } });
    let fallback = json!({ "fallback": { "on_subtask_failed": { "strategy": "DEGRADE" } } });

    let begun = Instant::now();
    let id = node.submit(&with(with(task(&steps), metadata), fallback)).await;
    let done = node.result(&id).await;

    let attempts = workshop.notes("started").len();
    let allowed = STEPS + STEPS / 10 + 10 + 2 * usize::try_from(begun.elapsed().as_secs() + 1).expect("few");
    assert!((STEPS + 1..=allowed).contains(&attempts), "{attempts} attempts, and {allowed} are allowed");
    assert_eq!(done["reason"], "DEADLINE", "{done}");
    let events = node.task_events(&id).await.rest().await;
    let failed = events.iter().find(|(name, _)| name == "subtask_failed");
    assert!(failed.is_none(), "{failed:?}");
}

/// A task of one step for the only agent, on another node, whose first output is not the number that the step wants.
async fn odd_at_first(workshop: &Workshop, more: Value) -> (Node, Node, String) {
    let home = planner().spawn().await;
    let host = Node::builder().join(&home).agent(workshop.worker("worker", "test.work", json!({}))).spawn().await;
    home.knows("test.work", &["worker"]).await;
    let mut work = step("a", "test.work", json!({ "mark": "a", "odd": 1, "output": 7 }));
    work["output"] = json!({ "type": "integer" });
    let policy = json!({ "metadata": { "retry_policy": { "max_retries": 2, "backoff_strategy": "fixed", "backoff_base_ms": 10 } } });
    let id = home.submit(&with(task(&[with(work, more)]), policy)).await;
    (home, host, id)
}

/// AITP-8, MAOP-7: an output that does not fit is kept by its agent's node like any other; the retry has the only agent do the work again.
#[tokio::test]
async fn the_only_agent_does_again_what_did_not_fit() {
    let workshop = Workshop::new();
    let (home, _host, id) = odd_at_first(&workshop, json!({})).await;
    let result = home.result(&id).await;
    assert_eq!((&result["outcome"], &result["result"]), (&json!("success"), &json!(7)), "{result}");
    assert_eq!(workshop.notes("done").len(), 2, "once more, and no more often");
    let outcomes: Vec<Value> =
        home.step(&id, "a").await["attempts"].as_array().expect("attempts").iter().map(|a| a["outcome"].clone()).collect();
    assert_eq!(outcomes, ["invalid_output", "success"]);
}

/// AITP-8: what must not be done twice is not, also where its output does not fit.
#[tokio::test]
async fn what_is_never_repeated_fails_with_an_output_that_does_not_fit() {
    let workshop = Workshop::new();
    let (home, _host, id) = odd_at_first(&workshop, json!({ "retry": "never" })).await;
    let result = home.result(&id).await;
    assert_eq!((&result["outcome"], &result["error"]["code"]), (&json!("failed"), &json!("INVALID_SCHEMA")), "{result}");
    assert_eq!(workshop.notes("started").len(), 1);
}
