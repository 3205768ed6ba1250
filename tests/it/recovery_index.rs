//! The index is missing, damaged, old, or beside a journal that it was not made for: every acknowledged task is there with its result after the
//! start, those that wait go on, and a key still stands for what it stood for. With a sound index the start reads no segment in which nothing
//! is left to do. And the other way round: segments of the journal are gone or do not read, and what the index tells is all that is left of them.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{
    Node, SETTLE, builtin,
    oracle::{Oracle, chain, count, id_of},
};

/// A text of so many bytes is kept beside the journal.
const LARGE_BYTES: usize = 200_000;
/// Of so many bytes each step of a bulky task gives an output: as large as one that is kept in the journal itself.
const BULK_BYTES: usize = 60_000;
/// So many such tasks of three steps are more than a segment holds.
const BULKY: u64 = 80;

/// A node with tasks that have ended, under keys and without, one that waits, and a call with a key.
struct Scene {
    home: Node,
    oracle: Oracle,
    /// Each with the number that its chain of two began with.
    ended: Vec<(String, u64)>,
    /// Waits for an agent that nobody has yet.
    waiting: String,
}

fn keyed_call() -> Value {
    json!({ "capability": "test.work", "input": { "step": "call", "add": [41] }, "idempotency_key": "a-call" })
}

fn definition(first: u64) -> Value {
    chain(&format!("ended-{first}"), "test.work", &["a", "b"], first, &json!({}))
}

impl Scene {
    async fn start() -> Self {
        let builder = Node::builder();
        let oracle = Oracle::new(builder.home());
        let home = builder.agent(oracle.agent("worker", "test.work", 4)).agent(builtin("echo", "echo")).spawn().await;
        let mut scene = Self { home, oracle, ended: Vec::new(), waiting: String::new() };
        assert_eq!(scene.home.invoke(keyed_call()).await.ok()["output"]["sum"], 42);
        for first in 0..4 {
            scene.add(first).await;
        }
        let mut definition = chain("waiting", "test.work", &["a", "b"], 7, &json!({}));
        definition["subtasks"][1]["agent_capability"] = "test.later".into();
        scene.waiting = scene.home.submit(&definition).await;
        scene.home.task_events(&scene.waiting).await.wait_for("deferred", SETTLE, |event| event["subtask_id"] == "b").await;
        scene
    }

    /// One more task that ends, under a key of its own.
    async fn add(&mut self, first: u64) {
        let task = self.submit(first).await;
        self.home.history(&task).await;
        self.ended.push((task, first));
    }

    async fn submit(&self, first: u64) -> String {
        let request = self.home.request(Method::POST, "/aitp/tasks").header("Idempotency-Key", format!("key-{first}"));
        id_of(&self.home.send(request.json(&definition(first))).await.ok())
    }

    /// Stops the node, changes its data directory, and starts it again.
    async fn changed(mut self, change: impl FnOnce(&Path)) -> Self {
        assert!(self.home.terminate().await.success());
        change(&self.home.data_dir());
        self.home = self.home.reborn().spawn().await;
        self
    }

    /// Everything that was acknowledged is as it was, and nothing was done again.
    async fn is_whole(&self) {
        let done = self.oracle.of("").len();
        for (task, first) in &self.ended {
            let result = self.home.task_result(task).await;
            assert_eq!((&result["outcome"], &result["result"]["sum"]), (&json!("success"), &json!(first + 2)), "{result}");
            assert_eq!(self.home.task(task).await["status"], "COMPLETED");
            assert_eq!(self.home.history(task).await.len(), self.home.history(&self.ended[0].0).await.len());
            assert_eq!(self.submit(*first).await, *task, "its key stands for it");
        }
        let mut listed = Vec::new();
        let mut page = self.home.get("/aitp/tasks?status=COMPLETED&limit=3").await.ok();
        loop {
            listed.extend(page["tasks"].as_array().expect("rows").iter().map(id_of));
            let Some(next) = page["next"].as_str() else { break };
            page = self.home.get(&format!("/aitp/tasks?status=COMPLETED&limit=3&after={next}")).await.ok();
        }
        let expected: Vec<String> = self.ended.iter().rev().map(|(task, _)| task.clone()).collect();
        assert_eq!(listed.iter().filter(|task| expected.contains(task)).cloned().collect::<Vec<_>>(), expected, "the latest first");
        assert_eq!(self.home.invoke(keyed_call()).await.ok()["output"]["sum"], 42);
        assert_eq!(count(&self.oracle.of("call"), "finished")["call"], 1, "the call is not made again");
        assert_eq!(self.oracle.of("").len(), done);
        let waiting = self.home.task(&self.waiting).await;
        assert_eq!(waiting["status"], "EXECUTING", "{waiting}");
    }

    /// What waits goes on when its agent is there, and a new task is taken.
    async fn goes_on(&mut self) {
        self.home.post("/v1/agents", &self.oracle.agent("later", "test.later", 1)).await.ok();
        assert_eq!(self.home.history(&self.waiting).await.last().expect("an end").1["outcome"], "success");
        assert_eq!(self.home.task_result(&self.waiting).await["result"]["sum"], 9);
        self.add(50).await;
    }

    /// Nobody waits any more, so that nothing is pinned.
    async fn nobody_waits(&self) {
        self.home.post(&format!("/aitp/tasks/{}/cancel", self.waiting), &json!({})).await.ok();
    }

    /// Somebody waits whose entries are the last.
    async fn one_waits(&mut self) {
        let mut definition = chain("waiting", "test.work", &["a", "b"], 7, &json!({}));
        definition["subtasks"][1]["agent_capability"] = "test.later".into();
        self.waiting = self.home.submit(&definition).await;
        self.home.task_events(&self.waiting).await.wait_for("deferred", SETTLE, |event| event["subtask_id"] == "b").await;
    }

    /// A task of one step that echoes a text; its id.
    async fn echoed(&self, bytes: usize) -> String {
        let step = json!({ "subtask_id": "a", "agent_capability": "echo", "input": { "text": "${parent.input.text}" } });
        let task = self.home.submit(&json!({ "name": "echoed", "parameters": { "text": "x".repeat(bytes) }, "subtasks": [step] })).await;
        self.home.history(&task).await;
        task
    }

    /// Has tasks pass until the journal has one segment more.
    async fn fill_segment(&self) {
        let before = segments(&self.home.data_dir()).len();
        while segments(&self.home.data_dir()).len() == before {
            let step = |at: usize| json!({ "subtask_id": format!("s{at}"), "agent_capability": "echo", "input": { "text": "${parent.input.text}" } });
            let steps: Vec<Value> = (0..20).map(step).collect();
            let task = json!({ "name": "bulk", "parameters": { "text": "x".repeat(BULK_BYTES) }, "subtasks": steps });
            let task = self.home.submit(&task).await;
            self.home.task_events(&task).await.wait_for("ended", SETTLE, |_| true).await;
        }
    }

    async fn checks(&self, name: &str) -> String {
        let report = self.home.cli(&["doctor", "--json"]).await.json();
        let checks = report["checks"].as_array().expect("checks").iter().filter(|check| check["name"] == name);
        checks.map(|check| check["message"].as_str().expect("a message").to_owned() + "\n").collect()
    }

    /// How many segments the start read, of how many, and how many tasks it had from the index.
    async fn started(&self) -> [usize; 3] {
        let told = self.checks("journal").await;
        let numbers: Vec<usize> = told.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        numbers.try_into().unwrap_or_else(|_| panic!("three numbers: {told}"))
    }
}

/// The segments of the journal, the oldest first.
fn segments(data: &Path) -> Vec<PathBuf> {
    let mut segments = files(&data.join("journal"));
    segments.retain(|path| path.extension().is_some_and(|ending| ending == "seg"));
    segments
}

/// Whether an entry of a task lies in a file.
fn holds(file: &Path, task: &str) -> bool {
    let id = u128::from_str_radix(&task.replace('-', ""), 16).expect("a task's id is a UUID").to_be_bytes();
    memchr::memmem::find(&fs::read(file).expect("a segment"), &id).is_some()
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder");
    for entry in fs::read_dir(from).expect("a folder").map(|entry| entry.expect("an entry")) {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).expect("copied");
        }
    }
}

/// Puts the folder `from` in the place of `to`.
fn replace(from: &Path, to: &Path) {
    fs::remove_dir_all(to).expect("it goes");
    copy(from, to);
}

/// Every file of sled's.
fn files(folder: &Path) -> Vec<std::path::PathBuf> {
    let mut files = Vec::new();
    for path in fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path()) {
        if path.is_dir() { files.extend(self::files(&path)) } else { files.push(path) }
    }
    files.sort();
    files
}

/// design.md 7: a start reads from the watermark on, also after a crash.
#[tokio::test]
async fn a_start_with_a_sound_index_does_not_read_old_segments() {
    let mut scene = Scene::start().await;
    scene.nobody_waits().await;
    let text = "x".repeat(BULK_BYTES);
    let step = |id: &str, text: &str| json!({ "subtask_id": id, "agent_capability": "echo", "input": { "text": text } });
    let steps = [step("a", "${parent.input.text}"), step("b", "${a.output.text}"), step("c", "${b.output.text}")];
    let bulky = json!({ "name": "bulky", "parameters": { "text": text }, "subtasks": steps });
    for _ in 0..BULKY {
        let task = scene.home.submit(&bulky).await;
        scene.home.task_events(&task).await.wait_for("ended", SETTLE, |_| true).await;
    }
    scene.one_waits().await;

    let tasks = scene.ended.len() + usize::try_from(BULKY).expect("few") + 1;
    let mut scene = scene.changed(|_| {}).await;
    let [read, segments, filed] = scene.started().await;
    assert!(read == 1 && segments > 1, "{read} of {segments}");
    assert_eq!((filed, scene.checks("start").await), (tasks, String::new()));
    scene.is_whole().await;
    scene.add(20).await;
    scene.home.kill().await;
    scene.home = scene.home.reborn().spawn().await;
    assert_eq!(scene.started().await, [1, segments, tasks], "what came after the checkpoint is read from the journal");
    scene.is_whole().await;

    let mut scene = scene.changed(|data| fs::remove_dir_all(data.join("index")).expect("it goes")).await;
    assert_eq!(scene.started().await, [segments, segments, 0]);
    scene.is_whole().await;
    scene.goes_on().await;
}

/// F4: the index is gone.
#[tokio::test]
async fn a_missing_index_is_made_anew_from_the_journal() {
    let scene = Scene::start().await;
    let scene = scene.changed(|data| fs::remove_dir_all(data.join("index")).expect("it goes")).await;
    assert_eq!(scene.started().await[2], 0);
    scene.is_whole().await;
    let mut scene = scene.changed(|_| {}).await;
    assert_eq!(scene.started().await[2], 4, "the stop before filed what the start had read");
    scene.is_whole().await;
    scene.goes_on().await;
}

/// F4: bytes of the index have changed, all over it or one of them.
#[tokio::test]
async fn a_damaged_index_costs_nothing_that_was_acknowledged() {
    let mut scene = Scene::start().await;
    scene = scene
        .changed(|data| {
            for file in files(&data.join("index")) {
                let mut bytes = fs::read(&file).expect("a file of sled's");
                bytes.iter_mut().step_by(97).for_each(|byte| *byte ^= 0x55);
                fs::write(&file, bytes).expect("written");
            }
        })
        .await;
    assert!(scene.checks("start").await.contains("the index was damaged"), "{}", scene.checks("start").await);
    assert_eq!(scene.started().await[2], 0);
    scene.is_whole().await;
    for part in 1..6 {
        scene = scene
            .changed(|data| {
                let file = files(&data.join("index")).into_iter().find(|file| file.ends_with("db")).expect("the log of sled");
                let mut bytes = fs::read(&file).expect("a file of sled's");
                let used = bytes.iter().rposition(|byte| *byte != 0).expect("it holds something");
                bytes[used * part / 6] ^= 4;
                fs::write(&file, bytes).expect("written");
            })
            .await;
        scene.is_whole().await;
    }
    scene.goes_on().await;
}

/// An index of last week beside the journal of today, as a backup may bring it.
#[tokio::test]
async fn an_older_copy_of_the_index_is_brought_up_to_date() {
    let older = tempfile::tempdir().expect("a folder");
    let scene = Scene::start().await;
    let mut scene = scene.changed(|data| copy(&data.join("index"), older.path())).await;
    scene.add(10).await;
    scene.goes_on().await;
    let Scene { home, oracle, ended, waiting } = scene;
    let scene = Scene { home, oracle, ended, waiting };
    let scene = scene.changed(|data| replace(older.path(), &data.join("index"))).await;
    assert_eq!((scene.started().await[2], scene.checks("start").await), (4, String::new()), "it still serves for what it knows");
    for (task, first) in &scene.ended {
        assert_eq!((&scene.submit(*first).await, &scene.home.task_result(task).await["result"]["sum"]), (task, &json!(first + 2)));
    }
    assert_eq!(scene.home.task_result(&scene.waiting).await["result"]["sum"], 9, "it had ended since");
}

/// The journal of last week beside the index of today, and the journal of another node: what the journal says holds.
#[tokio::test]
async fn an_index_that_knows_more_than_the_journal_is_made_anew() {
    let (older, newer) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let scene = Scene::start().await;
    let mut scene = scene.changed(|data| copy(&data.join("journal"), older.path())).await;
    scene.add(10).await;
    let (later, _) = scene.ended.pop().expect("it was added");
    let scene = scene
        .changed(|data| {
            copy(&data.join("index"), newer.path());
            replace(older.path(), &data.join("journal"));
        })
        .await;
    assert!(scene.checks("start").await.contains("does not fit the journal"), "{}", scene.checks("start").await);
    assert_eq!(scene.started().await[2], 0);
    scene.is_whole().await;
    scene.home.get(&format!("/aitp/tasks/{later}")).await.refused(404, "TASK_NOT_FOUND");

    let mut other = Scene::start().await;
    assert!(other.home.terminate().await.success());
    let journal = other.home.data_dir().join("journal");
    let mut scene = scene
        .changed(|data| {
            replace(newer.path(), &data.join("index"));
            replace(&journal, &data.join("journal"));
        })
        .await;
    let told = scene.checks("start").await;
    assert!(told.contains("is of another journal"), "{told}");
    for (task, first) in &other.ended {
        assert_eq!(scene.home.task_result(task).await["result"]["sum"], first + 2);
    }
    for (task, _) in &scene.ended {
        scene.home.get(&format!("/aitp/tasks/{task}")).await.refused(404, "TASK_NOT_FOUND");
    }
    scene.add(30).await;
}

/// A node is stopped, the `lost`th of its four segments is lost in that way, and it is started again, twice.
async fn lost_segment(lost: usize, lose: impl Fn(&Path)) {
    let mut scene = Scene::start().await;
    scene.nobody_waits().await;
    let mut large = vec![scene.echoed(LARGE_BYTES).await];
    for first in 10..13 {
        scene.fill_segment().await;
        scene.add(first).await;
        large.push(scene.echoed(LARGE_BYTES).await);
    }
    scene.one_waits().await;
    assert!(scene.home.terminate().await.success());
    let data = scene.home.data_dir();
    let segments = segments(&data);
    assert!(segments.len() >= 4, "{segments:?}");
    let file = &segments[lost];
    let is_hit = |task: &String| holds(file, task);
    let ended = scene.ended.iter().map(|(task, _)| task).chain(&large);
    let hit: BTreeSet<String> = ended.clone().filter(|task| is_hit(task)).cloned().collect();
    let blobs = files(&data.join("blobs"));
    assert!(!hit.is_empty() && hit.len() < ended.count() && blobs.len() >= 2 * large.len(), "{hit:?}, {blobs:?}");
    lose(file);
    scene.ended.retain(|(task, _)| !hit.contains(task));
    let name = file.file_name().expect("a name").to_string_lossy().into_owned();

    for _ in 0..2 {
        scene.home = scene.home.reborn().spawn().await;
        let told = scene.checks("start").await;
        assert!(told.contains(&name) && hit.iter().all(|task| told.contains(task)), "{name} in {told}");
        let kept = large.iter().chain(scene.ended.iter().map(|(task, _)| task)).filter(|task| !hit.contains(*task));
        for task in kept {
            assert!(!told.contains(task), "{task} in {told}");
            assert_eq!(scene.home.task_result(task).await["outcome"], "success");
        }
        for task in &hit {
            let status = scene.home.task(task).await;
            assert_eq!((&status["status"], &status["outcome"]), (&json!("COMPLETED"), &json!("success")), "{status}");
            assert!(status["error"]["message"].as_str().is_some_and(|message| message.contains(&name)), "{status}");
            let refused = scene.home.get(&format!("/aitp/tasks/{task}/result")).await.refused(500, "INTERNAL");
            assert!(refused.to_string().contains(&name) && refused.to_string().contains("meshwork doctor"), "{refused}");
        }
        assert!(scene.home.terminate().await.success());
        assert_eq!(files(&data.join("blobs")), blobs, "whatever is still told of is kept");
    }
    scene.home = scene.home.reborn().spawn().await;
    scene.goes_on().await;
}

/// F4: the oldest segment was deleted by hand. Only what the node forgot on purpose is forgotten.
#[tokio::test]
async fn a_first_segment_that_is_deleted_costs_what_was_in_it_and_is_told() {
    lost_segment(0, |file| fs::remove_file(file).expect("it goes")).await;
}

/// F4: neither copy of its header reads any more.
#[tokio::test]
async fn a_first_segment_that_does_not_say_what_it_is_costs_what_was_in_it_and_is_told() {
    lost_segment(0, |file| {
        let mut bytes = fs::read(file).expect("a segment");
        for at in [20, 512 + 20] {
            bytes[at] ^= 4;
        }
        fs::write(file, bytes).expect("written");
    })
    .await;
}

/// F4: a segment between others was deleted by hand.
#[tokio::test]
async fn a_middle_segment_that_is_deleted_costs_what_was_in_it_and_is_told() {
    lost_segment(1, |file| fs::remove_file(file).expect("it goes")).await;
}
