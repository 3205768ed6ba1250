//! Tasks whose executions are counted outside of every node, and what their home node tells of them.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};

use super::{
    agents::{script, with},
    events::Events,
    node::Node,
    wait::{SETTLE, eventually},
};

/// The file that agents note their executions in (`tests/support/agents/oracle.py`).
#[derive(Debug, Clone)]
pub(crate) struct Oracle(PathBuf);

/// One line of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Noted {
    /// `started`, `failed` or `finished`.
    pub(crate) what: String,
    /// Which step.
    pub(crate) step: String,
    /// The idempotency key of the call.
    pub(crate) key: String,
}

impl Oracle {
    pub(crate) fn new(folder: &Path) -> Self {
        Self(folder.join("executions"))
    }

    /// An agent that notes here what it does, at most `concurrency` things at once.
    pub(crate) fn agent(&self, name: &str, capability: &str, concurrency: u32) -> Value {
        let file = self.0.to_str().expect("temporary folders have plain names");
        let agent = script(name, "oracle.py", &[file, name], json!({ "id": capability }));
        with(agent, json!({ "concurrency": concurrency, "queue": 1_000 }))
    }

    /// A file beside it, for an agent to wait for.
    pub(crate) fn beside(&self, name: &str) -> PathBuf {
        self.0.with_file_name(name)
    }

    /// Waits until lines of this kind are there so often, for steps whose names begin so.
    pub(crate) async fn until(&self, prefix: &str, what: &str, times: usize) {
        let enough = async || (self.of(prefix).iter().filter(|noted| noted.what == what).count() >= times).then_some(());
        eventually(&format!("{prefix} {what} {times} times"), SETTLE * 2, enough).await;
    }

    /// How much was noted so far.
    pub(crate) fn bytes(&self) -> u64 {
        fs::metadata(&self.0).map_or(0, |file| file.len())
    }

    /// What was done so far of the steps whose names begin so.
    pub(crate) fn of(&self, prefix: &str) -> Vec<Noted> {
        let text = fs::read_to_string(&self.0).unwrap_or_default();
        // A line that is being written has no end yet.
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let parse = |line: &str| {
            let [what, step, key] = line.split(' ').collect::<Vec<_>>().try_into().unwrap_or_else(|_| panic!("three words: {line}"));
            Noted { what: what.to_owned(), step: step.to_owned(), key: key.to_owned() }
        };
        whole.lines().map(parse).filter(|noted| noted.step.starts_with(prefix)).collect()
    }
}

/// How often each step has this line.
pub(crate) fn count(noted: &[Noted], what: &str) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for noted in noted.iter().filter(|noted| noted.what == what) {
        *counts.entry(noted.step.clone()).or_default() += 1;
    }
    counts
}

impl Node {
    /// Submits a task that must be taken, and says which it is.
    pub(crate) async fn submit(&self, definition: &Value) -> String {
        id_of(&self.post("/aitp/tasks", definition).await.ok())
    }

    /// How a task stands.
    pub(crate) async fn task(&self, task: &str) -> Value {
        self.get(&format!("/aitp/tasks/{task}")).await.ok()
    }

    /// The events of a task, from its first on.
    pub(crate) async fn task_events(&self, task: &str) -> Events {
        self.task_events_from(task, "").await
    }

    /// Everything that happened to a task until it ended: names, and the rest of each event. No event is missing or told twice.
    pub(crate) async fn history(&self, task: &str) -> Vec<(String, Value)> {
        let events = self.task_events(task).await.rest().await;
        for (index, (name, event)) in events.iter().enumerate() {
            assert_eq!((&event["index"], &event["event"]), (&json!(index), &json!(name)), "{events:?}");
        }
        assert_eq!(events.last().map(|(name, _)| name.as_str()), Some("ended"), "{events:?}");
        events
    }

    /// The result document of a task that has ended.
    pub(crate) async fn task_result(&self, task: &str) -> Value {
        self.get(&format!("/aitp/tasks/{task}/result")).await.ok()
    }
}

/// A task whose steps follow each other, `names` of them, on agents with this capability: each adds one to `first`.
pub(crate) fn chain(tag: &str, capability: &str, names: &[&str], first: u64, more: &Value) -> Value {
    let mut subtasks = Vec::new();
    for (place, name) in names.iter().enumerate() {
        let before = place.checked_sub(1).and_then(|before| names.get(before));
        let add = before.map_or_else(|| json!(first), |before| json!(format!("${{{before}.output.sum}}")));
        let input = with(json!({ "step": format!("{tag}.{name}"), "add": [add] }), more.clone());
        subtasks.push(json!({ "subtask_id": name, "agent_capability": capability, "input": input }));
    }
    json!({ "name": tag, "subtasks": subtasks })
}

/// The task that a receipt is for.
pub(crate) fn id_of(receipt: &Value) -> String {
    receipt["task_id"].as_str().unwrap_or_else(|| panic!("a receipt names its task: {receipt}")).to_owned()
}
