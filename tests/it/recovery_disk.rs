//! The disk of a home node is full (fault F3): what is new is refused, what can be read is read, what runs ends or waits, and when there is
//! room again the node takes tasks without being started anew.
//!
//! Anybody may limit how large a file of a process may grow (RLIMIT_FSIZE), and that is how a disk without room for the next segment of the
//! journal is made here. A small file system is mounted in a namespace of the test's own, which most systems let anybody make.

use std::{env, fs, io::Write, path::Path, process::Command, time::Duration};

use reqwest::StatusCode;
use serde_json::json;

use crate::support::{
    Node, SETTLE, eventually,
    oracle::{Oracle, chain, id_of},
    tasks::{Workshop, step, task},
};

/// How long a node may take to see that there is room again.
const NOTICED: Duration = Duration::from_secs(10);

/// Whatever files of `node` may not become larger.
fn limit(node: &Node, bytes: &str) {
    let pid = node.pid().to_string();
    let status = Command::new("prlimit").args(["--pid", &pid, &format!("--fsize={bytes}:unlimited")]).status();
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

/// Says to a test that it runs in its own namespace.
const INSIDE: &str = "TEST_RUNS_IN_ITS_NAMESPACE";

/// Runs the test of this name in a namespace of its own, where it may mount; false if it runs there.
fn ran_inside(test: &str) -> bool {
    if env::var_os(INSIDE).is_some() {
        return false;
    }
    let may = Command::new("unshare").args(["-rm", "true"]).output();
    if !may.is_ok_and(|done| done.status.success()) {
        let note =
            "not run: this system lets nobody make a namespace (user.max_user_namespaces, kernel.apparmor_restrict_unprivileged_userns)";
        let _ = writeln!(std::io::stderr(), "{test}: {note}");
        return true;
    }
    let program = env::current_exe().expect("a test has a program");
    let name = format!("recovery_disk::{test}");
    let status = Command::new("unshare").arg("-rm").arg(program).args(["--exact", &name, "--nocapture"]).env(INSIDE, "1").status();
    assert!(status.expect("`unshare` is there").success(), "{name} failed in its namespace");
    true
}

/// A file system of so many bytes, gone with this value.
struct Mount<'a>(&'a Path);

impl<'a> Mount<'a> {
    fn new(folder: &'a Path, bytes: u64) -> Self {
        fs::create_dir_all(folder).expect("a folder to mount at");
        let mut mount = Command::new("mount");
        let status = mount.args(["-t", "tmpfs", "-o", &format!("size={bytes}"), "tmpfs"]).arg(folder).status();
        assert!(status.expect("`mount` is there").success(), "may mount");
        Self(folder)
    }
}

impl Drop for Mount<'_> {
    fn drop(&mut self) {
        // A folder that stays mounted is litter, and no reason to fail.
        let _ = Command::new("umount").arg("-l").arg(self.0).status();
    }
}

/// What the journal takes at once, and some.
const ROOM_BYTES: u64 = 56 * 1_048_576;

/// F3: a file system without a byte left when a large output comes: it is waited for room, and what was done is not done again.
#[tokio::test]
async fn a_large_output_waits_until_there_is_room() {
    if ran_inside("a_large_output_waits_until_there_is_room") {
        return;
    }
    const BYTES: usize = 300_000;
    let builder = Node::builder();
    let data = builder.data_dir();
    let _mount = Mount::new(&data, ROOM_BYTES);
    let workshop = Workshop::new();
    let home = builder.agent(workshop.worker("worker", "test.work", json!({}))).spawn().await;
    home.knows("test.work", &["worker"]).await;
    let large = step("large", "test.work", json!({ "until": "go", "sized": BYTES }));
    let after = step("after", "test.work", json!({ "output": { "text": "${large.output}" } }));
    let id = home.submit(&task(&[large, after])).await;
    workshop.until("started", 1).await;
    let ballast = data.join("ballast");
    fill(&ballast);
    workshop.release("go");
    // Its folder can be made all the same, and shows that it was tried.
    let folder = data.join("blobs").join(&id);
    eventually("the output is to be kept", SETTLE, async || folder.exists().then_some(())).await;
    let refused = home.post("/aitp/tasks", &json!({ "name": "n", "goal": "g", "parameters": { "text": "x".repeat(100_000) } })).await;
    refused.refused(503, "INSUFFICIENT_RESOURCES");
    assert_eq!(home.step(&id, "large").await["status"], "EXECUTING");
    assert_eq!(fs::read_dir(&folder).expect("it is a folder").count(), 0, "nothing is left of what did not fit");

    fs::remove_file(&ballast).expect("room is made");

    let result = home.result(&id).await;
    assert_eq!(result["outcome"], "success", "{}", result["error"]);
    assert_eq!(result["result"]["text"].as_str().map(str::len), Some(BYTES - 2));
    assert_eq!(workshop.notes("started").len(), 2, "each was done once");
    assert_eq!(home.step(&id, "large").await["attempt"], 1);
    let owners = fs::read_dir(data.join("blobs")).expect("large texts lie there").count();
    assert_eq!(
        (owners, fs::read_dir(&folder).expect("it is a folder").count()),
        (1, 2),
        "the two outputs, and nothing of what was refused"
    );
    let home = home.restart().await;
    assert_eq!(home.task_result(&id).await, result);
}

/// F3: a file system without a byte left, in the middle of the work.
#[tokio::test]
async fn a_file_system_that_fills_up_loses_nothing() {
    if ran_inside("a_file_system_that_fills_up_loses_nothing") {
        return;
    }
    let builder = Node::builder();
    let oracle = Oracle::new(builder.home());
    let data = builder.data_dir();
    let _mount = Mount::new(&data, ROOM_BYTES);
    let home = builder.agent(oracle.agent("worker", "test.work", 4)).spawn().await;
    // The journal takes two segments at once; all the rest is taken by somebody else.
    let ballast = data.join("ballast");
    let text = "x".repeat(60_000);
    let mut definition = chain("large", "test.work", &["a"], 1, &json!({}));
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
        assert!(tasks.len() < 500, "the disk is never full");
    };
    refused.refused(503, "INSUFFICIENT_RESOURCES");
    all_done(&home, &tasks).await;
    fs::remove_file(&ballast).expect("room is made");
    let taken = async || Some(home.post("/aitp/tasks", &definition).await).filter(|answer| answer.status == 201);
    tasks.push(id_of(&eventually("there is room again", NOTICED, taken).await.ok()));
    let home = home.restart().await;
    all_done(&home, &tasks).await;
}

/// Waits until these are done, and they alone.
async fn all_done(home: &Node, tasks: &[String]) {
    let mut rows = Vec::new();
    let done = async || {
        let page = home.get("/aitp/tasks?limit=500").await.ok();
        assert!(page["next"].is_null(), "more than a page");
        rows = page["tasks"].as_array().expect("rows").clone();
        rows.iter().all(|row| !row["outcome"].is_null()).then_some(())
    };
    eventually("all have ended", SETTLE * 4, done).await;
    assert!(rows.iter().all(|row| row["outcome"] == "success"), "{rows:?}");
    let mut ids: Vec<&str> = rows.iter().filter_map(|row| row["task_id"].as_str()).collect();
    ids.reverse();
    assert_eq!(ids, tasks, "in the order in which they were taken");
    for task in tasks.iter().step_by(tasks.len() / 8) {
        home.history(task).await;
        assert_eq!(home.task_result(task).await["result"]["sum"], 2);
    }
}

/// Writes until nothing more fits.
fn fill(file: &Path) {
    let mut file = fs::File::create(file).expect("the ballast is made");
    while file.write_all(&[1; 4_096]).is_ok() {}
}
