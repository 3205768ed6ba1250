//! A task that waits for long while many others pass keeps neither their segments nor the starts of its node: it is copied forward (design.md 7).
//! The node dies in the middle of a copy, before what is behind it is forgotten, and after that.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};

use crate::support::{
    Node, SETTLE, builtin, eventually,
    oracle::{Oracle, chain, count},
};

/// Each step of a bulky task gives an output of so many bytes: as large as one that is kept in the journal itself.
const BULK_BYTES: usize = 60_000;
const STEPS: usize = 25;
/// One more than may lie between a task that waits and the end of the journal.
const SEGMENTS: usize = 6;

/// The segments of the journal, the oldest first.
fn segments(data: &Path) -> Vec<PathBuf> {
    let files = fs::read_dir(data.join("journal")).expect("the journal").map(|file| file.expect("a file").path());
    let mut segments: Vec<PathBuf> = files.filter(|path| path.extension().is_some_and(|ending| ending == "seg")).collect();
    segments.sort();
    segments
}

/// How often a task is named in each segment.
fn named(data: &Path, task: &str) -> Vec<usize> {
    let id = u128::from_str_radix(&task.replace('-', ""), 16).expect("a task's id is a UUID").to_be_bytes();
    let count = |file: PathBuf| memchr::memmem::find_iter(&fs::read(file).unwrap_or_default(), &id).count();
    segments(data).into_iter().map(count).collect()
}

/// F1, AITP-12: what waits goes on from where it was, whatever happened to its copies, and no step is done twice.
#[tokio::test]
async fn a_task_that_waits_is_copied_forward_and_keeps_no_old_segment() {
    let builder = Node::builder().config("[task]\nkept_max = 0\n");
    let oracle = Oracle::new(builder.home());
    let mut home = builder.agent(oracle.agent("worker", "test.work", 2)).agent(builtin("echo", "echo")).spawn().await;
    let mut definition = chain("waiting", "test.work", &["a", "b"], 7, &json!({}));
    definition["subtasks"][1]["agent_capability"] = "test.later".into();
    let waiting = home.submit(&definition).await;
    home.task_events(&waiting).await.wait_for("deferred", SETTLE, |event| event["subtask_id"] == "b").await;
    let data = home.data_dir();
    let step =
        |at: usize| json!({ "subtask_id": format!("s{at}"), "agent_capability": "echo", "input": { "text": "${parent.input.text}" } });
    let steps: Vec<Value> = (0..STEPS).map(step).collect();
    let bulky = json!({ "name": "bulk", "parameters": { "text": "x".repeat(BULK_BYTES) }, "subtasks": steps });
    while segments(&data).len() < SEGMENTS {
        let task = home.submit(&bulky).await;
        home.task_events(&task).await.wait_for("ended", SETTLE * 4, |_| true).await;
    }
    assert!(home.terminate().await.success());
    let before = named(&data, &waiting);
    assert!(before.len() == SEGMENTS && before[0] > 0 && before[1..].iter().all(|times| *times == 0), "{before:?}");

    // Of the copy there are the entries up to the fifth.
    let builder = home.reborn().failpoint(Some("kept-validated:1")).start().died().await;
    let part = named(&data, &waiting);
    assert!(part[0] == before[0] && (1..before[0]).contains(part.last().expect("segments")), "{part:?}");

    let mut home = builder.failpoint(None).spawn().await;
    eventually("a whole copy is there", SETTLE, async || {
        (named(&data, &waiting).last() >= Some(&(before[0] + part[part.len() - 1]))).then_some(())
    })
    .await;
    assert_eq!(home.task(&waiting).await["status"], "EXECUTING");
    home.kill().await;
    assert_eq!(segments(&data).len(), SEGMENTS, "nothing has gone yet");

    let mut home = home.reborn().spawn().await;
    eventually("what is behind it goes", SETTLE, async || (segments(&data).len() <= 2).then_some(())).await;
    assert_eq!(home.task(&waiting).await["status"], "EXECUTING");
    home.kill().await;

    let home = home.reborn().spawn().await;
    let report = home.cli(&["doctor", "--json"]).await.json();
    assert!(report["checks"].as_array().expect("checks").iter().all(|check| check["name"] != "start"), "{report}");
    home.post("/v1/agents", &oracle.agent("later", "test.later", 1)).await.ok();
    let events = home.history(&waiting).await;
    assert_eq!(events.iter().filter(|(name, _)| name == "submitted").count(), 1, "{events:?}");
    assert_eq!(home.task_result(&waiting).await["result"]["sum"], 9);
    let finished = count(&oracle.of("waiting"), "finished");
    assert_eq!(finished.values().copied().collect::<Vec<_>>(), [1, 1], "{finished:?}");
}
