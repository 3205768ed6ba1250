//! The disk of a home node is full (fault F3): what is new is refused, what can be read is read, what runs ends or waits, and when there is
//! room again the node takes tasks without being started anew.
//!
//! Anybody may limit how large a file of a process may grow (RLIMIT_FSIZE), and that is how a disk without room for the next segment of the
//! journal is made here. The same with a small file system needs the right to mount one.

use std::{fs, path::Path, time::Duration};

use reqwest::StatusCode;
use serde_json::json;

use crate::support::{
    Node, SETTLE, eventually,
    oracle::{Oracle, chain, id_of},
};

/// How long a node may take to see that there is room again.
const NOTICED: Duration = Duration::from_secs(10);

/// Whatever files of `node` may not become larger.
fn limit(node: &Node, bytes: &str) {
    let pid = node.pid().to_string();
    let status = std::process::Command::new("prlimit").args(["--pid", &pid, &format!("--fsize={bytes}:unlimited")]).status();
    assert!(status.expect("`prlimit` is there").success());
}

/// F3: no room for the next segment of the journal.
#[tokio::test]
async fn a_full_disk_refuses_new_tasks_and_nothing_else() {
    let builder = Node::builder();
    let oracle = Oracle::new(builder.home());
    let mut home = builder.agent(oracle.agent("worker", "test.work", 2)).spawn().await;
    let done = home.submit(&chain("done", "test.work", &["a"], 1, &json!({}))).await;
    home.history(&done).await;
    let mut waits = chain("waits", "test.work", &["a", "b"], 1, &json!({}));
    waits["subtasks"][1]["agent_capability"] = "test.later".into();
    let waits = home.submit(&waits).await;
    home.task_events(&waits).await.wait_for("deferred", SETTLE, |event| event["subtask_id"] == "b").await;
    assert!(home.terminate().await.success());
    // The next segment is made in advance; without it and without room the journal is full as soon as the node is there.
    fs::remove_file(home.data_dir().join("journal").join("spare")).expect("the spare segment is there");
    let home = home.reborn().prelude("trap '' XFSZ; ulimit -S -f 8192").spawn().await;

    let definition = chain("new", "test.work", &["a"], 1, &json!({}));
    let error = home.post("/aitp/tasks", &definition).await.refused(503, "INSUFFICIENT_RESOURCES");
    assert!(error["message"].as_str().is_some_and(|message| message.contains("full")) && error["retryable"] == true, "{error}");
    assert!(error["details"]["retry_after_ms"].is_u64(), "{error}");
    assert_eq!(home.task_result(&done).await["result"]["sum"], 2, "what is there is read");
    assert_eq!(home.get("/aitp/tasks").await.ok()["tasks"].as_array().map(Vec::len), Some(2));
    home.post("/v1/agents", &oracle.agent("later", "test.later", 1)).await;
    // An agent that was attached already would do as well: what runs may end.
    home.history(&waits).await;
    assert_eq!(home.task_result(&waits).await["result"]["sum"], 3);
    home.post("/aitp/tasks", &definition).await.refused(503, "INSUFFICIENT_RESOURCES");

    limit(&home, "unlimited");
    let taken = async || Some(home.post("/aitp/tasks", &definition).await).filter(|answer| answer.status == StatusCode::CREATED);
    let task = id_of(&eventually("there is room again", NOTICED, taken).await.ok());
    home.history(&task).await;
    assert_eq!(home.task_result(&task).await["result"]["sum"], 2);
}

/// F3: a write fails, and not for want of room: nothing is acknowledged any more, what can be read is read, and the next start goes on.
#[tokio::test]
async fn a_failing_disk_stops_the_tasks_of_a_node_and_loses_none() {
    let host_builder = Node::builder();
    let oracle = Oracle::new(host_builder.home());
    let host = host_builder.agent(oracle.agent("worker", "test.work", 2)).spawn().await;
    let mut home = Node::builder().join(&host).prelude("trap '' XFSZ").spawn().await;
    home.knows("test.work", &["worker"]).await;
    let done = home.submit(&chain("done", "test.work", &["a"], 1, &json!({}))).await;
    home.history(&done).await;
    let running = home.submit(&chain("running", "test.work", &["a", "b"], 1, &json!({ "ms": 300 }))).await;
    oracle.until("running", "started", 1).await;
    limit(&home, "4096");

    let definition = chain("new", "test.work", &["a"], 1, &json!({}));
    // The first one to meet the failure may be told of it as well as those behind it.
    let error = home.post("/aitp/tasks", &definition).await.refused(503, "UNAVAILABLE");
    assert!(error["message"].as_str().is_some_and(|message| message.contains("journal")) && error["retryable"] == false, "{error}");
    home.post("/aitp/tasks", &definition).await.refused(503, "UNAVAILABLE");
    assert_eq!(home.task_result(&done).await["result"]["sum"], 2, "what is there is read");

    home.kill().await;
    let home = home.reborn().prelude(":").spawn().await;
    home.history(&running).await;
    assert_eq!(home.task_result(&running).await["result"]["sum"], 3);
    assert_eq!(home.task_result(&done).await["result"]["sum"], 2);
    let rows = home.get("/aitp/tasks").await.ok();
    assert_eq!(rows["tasks"].as_array().map(Vec::len), Some(2), "what was refused is not there: {rows}");
}

/// A file system of so many bytes, gone with this value.
struct Mount<'a>(&'a Path);

impl<'a> Mount<'a> {
    fn new(folder: &'a Path, bytes: u64) -> Self {
        fs::create_dir_all(folder).expect("a folder to mount at");
        let mut mount = std::process::Command::new("mount");
        let status = mount.args(["-t", "tmpfs", "-o", &format!("size={bytes}"), "tmpfs"]).arg(folder).status();
        assert!(status.expect("`mount` is there").success(), "may mount");
        Self(folder)
    }
}

impl Drop for Mount<'_> {
    fn drop(&mut self) {
        // A folder that stays mounted is litter, and no reason to fail.
        let _ = std::process::Command::new("umount").arg("-l").arg(self.0).status();
    }
}

/// F3: a file system without a byte left, in the middle of the work.
#[tokio::test]
#[ignore = "needs the right to mount a file system"]
async fn a_file_system_that_fills_up_loses_nothing() {
    const ROOM_BYTES: u64 = 56 * 1_048_576;
    let builder = Node::builder();
    let oracle = Oracle::new(builder.home());
    let data = builder.data_dir();
    let _mount = Mount::new(&data, ROOM_BYTES);
    let home = builder.agent(oracle.agent("worker", "test.work", 2)).spawn().await;
    // The journal takes two segments at once; all the rest is taken by somebody else.
    let ballast = data.join("ballast");
    let text = "x".repeat(60_000);
    let mut definition = chain("large", "test.work", &["a"], 1, &json!({ "ms": 5 }));
    definition["description"] = "y".into();
    definition["parameters"] = json!({ "text": text });
    let mut tasks = Vec::new();
    let mut is_filled = false;
    let refused = loop {
        let answer = home.post("/aitp/tasks", &definition).await;
        if answer.status != 201 {
            break answer;
        }
        tasks.push(id_of(&answer.body));
        if !is_filled {
            is_filled = true;
            fill(&ballast);
        }
        assert!(tasks.len() < 2_000, "the disk is never full");
    };
    refused.refused(503, "INSUFFICIENT_RESOURCES");
    for task in &tasks {
        home.history(task).await;
        assert_eq!(home.task_result(task).await["result"]["sum"], 2);
    }
    fs::remove_file(&ballast).expect("room is made");
    let taken = async || Some(home.post("/aitp/tasks", &definition).await).filter(|answer| answer.status == 201);
    tasks.push(id_of(&eventually("there is room again", NOTICED, taken).await.ok()));
    let home = home.restart().await;
    for task in &tasks {
        home.history(task).await;
        assert_eq!(home.task_result(task).await["result"]["sum"], 2);
    }
}

/// Writes until nothing more fits.
fn fill(file: &Path) {
    use std::io::Write;
    let mut file = fs::File::create(file).expect("the ballast is made");
    while file.write_all(&[1; 4_096]).is_ok() {}
}
