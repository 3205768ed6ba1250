//! Retries of steps are a share of a node's traffic, so that an overload is not multiplied by those who suffer from it (F12).

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::support::{
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
