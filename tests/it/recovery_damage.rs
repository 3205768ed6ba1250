//! The journal of a home node is damaged while the node is down (faults F4): it starts, says what is lost and where, stops the tasks whose
//! entries are hit and that had not ended, still tells how those ended that had, and goes on with all others.

use std::{fs, path::PathBuf};

use serde_json::{Value, json};

use crate::support::{
    Node, SETTLE,
    oracle::{Oracle, chain, count},
};

/// A node with tasks in its journal: some have ended, some wait for an agent that nobody has yet.
struct Scene {
    home: Node,
    oracle: Oracle,
    /// The chain of three steps that begins with its place here has ended.
    ended: Vec<String>,
    /// One step of each was done, and the second waits.
    waiting: Vec<String>,
}

impl Scene {
    async fn start() -> Self {
        let builder = Node::builder();
        let oracle = Oracle::new(builder.home());
        let home = builder.agent(oracle.agent("worker", "test.work", 2)).spawn().await;
        let (mut ended, mut waiting) = (Vec::new(), Vec::new());
        for place in 0..3 {
            let task = home.submit(&chain(&format!("ended-{place}"), "test.work", &["a", "b", "c"], place, &json!({}))).await;
            home.history(&task).await;
            ended.push(task);
            let mut definition = chain(&format!("waiting-{place}"), "test.work", &["a", "b"], place, &json!({}));
            definition["subtasks"][1]["agent_capability"] = "test.later".into();
            let task = home.submit(&definition).await;
            home.task_events(&task).await.wait_for("deferred", SETTLE, |event| event["subtask_id"] == "b").await;
            waiting.push(task);
        }
        Self { home, oracle, ended, waiting }
    }

    /// Stops the node, changes the bytes of its journal, and starts it again.
    async fn damaged(mut self, change: impl FnOnce(&mut Vec<u8>)) -> Self {
        assert!(self.home.terminate().await.success());
        let file = segment(&self.home);
        let mut bytes = fs::read(&file).expect("the segment is read");
        change(&mut bytes);
        fs::write(&file, bytes).expect("the segment is written");
        self.home = self.home.reborn().spawn().await;
        self
    }

    /// Everything but these tasks is as it was, and goes on.
    async fn others_go_on(&self, stopped: &[&String]) {
        for (place, task) in self.ended.iter().enumerate().filter(|(_, task)| !stopped.contains(task)) {
            let result = self.home.task_result(task).await;
            assert_eq!((&result["outcome"], &result["result"]["sum"]), (&json!("success"), &json!(place + 3)), "{result}");
        }
        self.home.post("/v1/agents", &self.oracle.agent("later", "test.later", 1)).await.ok();
        for (place, task) in self.waiting.iter().enumerate().filter(|(_, task)| !stopped.contains(task)) {
            self.home.history(task).await;
            let result = self.home.task_result(task).await;
            assert_eq!((&result["outcome"], &result["result"]["sum"]), (&json!("success"), &json!(place + 2)), "{result}");
        }
        for task in stopped {
            if self.ended.contains(task) {
                self.has_no_result(task).await;
            } else {
                self.is_unreadable(task).await;
            }
        }
        let new = self.home.submit(&chain("new", "test.work", &["a"], 1, &json!({}))).await;
        self.home.history(&new).await;
        assert_eq!(self.home.task_result(&new).await["result"]["sum"], 2);
    }

    /// How the task ended is told, and that its result and events cannot be read.
    async fn has_no_result(&self, task: &str) {
        let status = self.home.task(task).await;
        assert_eq!((&status["status"], &status["outcome"]), (&json!("COMPLETED"), &json!("success")), "{status}");
        assert!(status["error"]["message"].as_str().is_some_and(|message| message.contains("journal")), "{status}");
        let refused = self.home.get(&format!("/aitp/tasks/{task}/result")).await.refused(500, "INTERNAL").to_string();
        assert!(refused.contains("no sound entry at byte") && refused.contains("meshwork doctor"), "{refused}");
        let listing = self.home.get("/aitp/tasks?status=COMPLETED").await.ok();
        assert!(listing["tasks"].as_array().expect("rows").iter().any(|row| row["task_id"] == task), "{listing}");
        self.home.post(&format!("/aitp/tasks/{task}/cancel"), &json!({})).await.refused(409, "CONFLICT");
    }

    /// The task is told of as stopped, wherever it is told of.
    async fn is_unreadable(&self, task: &str) {
        let expected = json!(["FAILED", "failed", "UNREADABLE"]);
        let told = |document: &Value| json!([document["status"], document["outcome"], document["reason"]]);
        let status = self.home.task(task).await;
        assert_eq!(told(&status), expected, "{status}");
        assert!(status["error"]["message"].as_str().is_some_and(|message| message.contains("journal")), "{status}");
        let result = self.home.task_result(task).await;
        assert_eq!((told(&result), &result["result"]), (expected.clone(), &Value::Null), "{result}");
        let listing = self.home.get("/aitp/tasks?status=FAILED").await.ok();
        let rows = listing["tasks"].as_array().expect("rows");
        let row = rows.iter().find(|row| row["task_id"] == task).unwrap_or_else(|| panic!("no row of {task}: {listing}"));
        assert_eq!(told(row), expected, "{row}");
        self.home.post(&format!("/aitp/tasks/{task}/cancel"), &json!({})).await.refused(409, "CONFLICT");
        let shown = self.home.cli(&["task", "status", task]).await;
        assert!(shown.stdout.contains("UNREADABLE"), "{shown:?}");
    }

    /// What the node says is wrong.
    async fn notes(&self) -> String {
        let report = self.home.cli(&["doctor", "--json"]).await.json();
        let checks = report["checks"].as_array().expect("checks").iter().filter(|check| check["name"] == "start");
        checks.map(|check| check["message"].as_str().expect("a message").to_owned() + "\n").collect()
    }
}

/// The one segment that the journal has.
fn segment(node: &Node) -> PathBuf {
    let files = fs::read_dir(node.data_dir().join("journal")).expect("the journal is there");
    let mut segments = files.map(|file| file.expect("a file").path()).filter(|path| path.extension().is_some_and(|ending| ending == "seg"));
    let segment = segments.next().expect("a segment");
    assert_eq!(segments.next(), None);
    segment
}

/// Where the bytes of a task's id are: one place for each of its entries.
fn places(bytes: &[u8], task: &str) -> Vec<usize> {
    let id = u128::from_str_radix(&task.replace('-', ""), 16).expect("a task's id is a UUID").to_be_bytes();
    bytes.windows(id.len()).enumerate().filter(|(_, window)| *window == id).map(|(place, _)| place).collect()
}

/// Flips a bit a little behind the id in one of a task's entries, and says where; a negative number counts from the last.
fn flip(bytes: &mut [u8], task: &str, entry: isize) -> usize {
    let places = places(bytes, task);
    let entry = usize::try_from(entry).unwrap_or_else(|_| places.len() - entry.unsigned_abs());
    bytes[places[entry] + 18] ^= 4;
    places[entry]
}

/// F4: one bit in the middle of a task that has ended.
#[tokio::test]
async fn a_flipped_bit_costs_the_result_of_the_task_whose_entry_it_is() {
    let mut at = 0;
    let scene = Scene::start().await;
    let hit = scene.ended[1].clone();
    let scene = scene.damaged(|bytes| at = flip(bytes, &hit, 4)).await;
    let notes = scene.notes().await;
    let file = segment(&scene.home);
    assert!(notes.contains(&file.display().to_string()) && notes.contains("are lost") && notes.contains(&hit), "{notes}");
    let named = notes.split("from byte ").nth(1).and_then(|rest| rest.split(' ').next()?.parse::<usize>().ok());
    assert!(named.is_some_and(|named| named < at && at < named + 200), "the place is named: {at} in {notes}");
    scene.others_go_on(&[&hit]).await;
}

/// F4: one bit in the last entry of a task that has not ended: to go on without it would be a guess, for this one alone.
#[tokio::test]
async fn a_flipped_bit_in_the_last_entry_of_a_task_stops_it_too() {
    let scene = Scene::start().await;
    let hit = scene.waiting[1].clone();
    let scene = scene
        .damaged(|bytes| {
            let _ = flip(bytes, &hit, -1);
        })
        .await;
    assert!(scene.notes().await.contains(&hit));
    scene.others_go_on(&[&hit]).await;
    // It stays stopped.
    let Scene { home, oracle, ended, waiting } = scene;
    let scene = Scene { home: home.restart().await, oracle, ended, waiting };
    scene.is_unreadable(&hit).await;
}

/// F4: the beginning of a task that has ended, and of one that has not.
#[tokio::test]
async fn a_task_whose_beginning_is_damaged_is_listed() {
    let scene = Scene::start().await;
    let (ended, waiting) = (scene.ended[0].clone(), scene.waiting[2].clone());
    let hit = [&ended, &waiting];
    let scene = scene
        .damaged(|bytes| {
            for task in hit {
                flip(bytes, task, 0);
            }
        })
        .await;
    let notes = scene.notes().await;
    assert!(notes.contains(&ended) && notes.contains(&waiting), "{notes}");
    scene.others_go_on(&hit).await;
}

/// F4: the file ends in the middle of the last task. What the journal had noted as committed is known to be missing.
#[tokio::test]
async fn a_torn_tail_is_named_and_costs_the_task_that_it_hits() {
    let scene = Scene::start().await;
    let hit = scene.waiting[2].clone();
    let cut = |bytes: &mut Vec<u8>| {
        let last = *places(bytes, &hit).last().expect("it has entries");
        bytes.truncate(last + 3);
    };
    let scene = scene.damaged(cut).await;
    let notes = scene.notes().await;
    assert!(notes.contains("a crash tore") && notes.contains("are lost") && notes.contains(&hit), "{notes}");
    // Whose it was is not to be read any more, so all that had nothing later are in doubt.
    let stopped: Vec<&String> = scene.waiting.iter().collect();
    scene.others_go_on(&stopped).await;
}

/// Where the last entry of a segment begins: behind a head of 20 bytes that states its length, each follows on the one before.
fn last_entry(bytes: &[u8]) -> usize {
    let length = |at: usize| bytes.get(at + 4..at + 8).map_or(0, |length| u32::from_le_bytes(length.try_into().expect("four bytes")));
    let (mut at, mut last) = (4_096, 4_096);
    while length(at) > 0 {
        last = at;
        at += 20 + usize::try_from(length(at)).expect("it fits");
    }
    last
}

/// F2: the power goes while the last entry is written, of which nobody was told. It is gone, its place is named, and all before it is there.
#[tokio::test]
async fn a_write_that_a_power_cut_tore_is_named_and_costs_nothing_that_was_acknowledged() {
    let builder = Node::builder().failpoint(Some("committed-dispatched:2"));
    let oracle = Oracle::new(builder.home());
    let mut home = builder.agent(oracle.agent("worker", "test.work", 2)).spawn().await;
    let task = home.submit(&chain("torn", "test.work", &["a", "b"], 1, &json!({}))).await;
    home.died().await;
    let file = segment(&home);
    let mut bytes = fs::read(&file).expect("the segment is read");
    let torn = last_entry(&bytes);
    let (before, all) = (places(&bytes[..torn], &task).len(), places(&bytes, &task).len());
    assert_eq!((before + 1, oracle.of("torn.b").len()), (all, 0), "the second step was about to be sent");
    bytes[torn + 30..].fill(0);
    fs::write(&file, &bytes).expect("the segment is written");

    let home = home.reborn().spawn().await;

    let report = home.cli(&["doctor", "--json"]).await.json();
    let checks = report["checks"].as_array().expect("checks").iter().filter(|check| check["name"] == "start");
    let notes: Vec<&str> = checks.map(|check| check["message"].as_str().expect("a message")).collect();
    let named = [file.display().to_string(), format!("bytes from byte {torn} are a write that a crash tore")];
    assert!(notes.len() == 1 && named.iter().all(|name| notes[0].contains(name)), "{named:?} in {notes:?}");
    let events = home.history(&task).await;
    let of = |wanted: &str| events.iter().filter(|(name, _)| name == wanted).map(|(_, event)| &event["subtask_id"]).collect::<Vec<_>>();
    assert!(events.len() > before, "{events:?}");
    assert_eq!((of("submitted").len(), of("dispatched"), of("requeued")), (1, vec![&json!("a"), &json!("b")], vec![]), "{events:?}");
    assert_eq!(home.task_result(&task).await["result"]["sum"], 3);
    assert_eq!(count(&oracle.of("torn"), "started"), [("torn.a".to_owned(), 1), ("torn.b".to_owned(), 1)].into());
    let after = fs::read(&file).expect("the segment is read");
    assert_eq!(after[4_096..], bytes[4_096..], "what was not understood is not written over");
}
