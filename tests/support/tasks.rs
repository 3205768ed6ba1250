//! Tasks of several steps: agents that do a step as their input says (`tests/support/agents/worker.py`), and what became of a task.

use std::{fs, path::PathBuf, time::Duration};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::{
    agents::{script, with},
    events::Events,
    node::{Builder, Node},
    wait::{SETTLE, eventually},
};

/// From the submission of a task to its end.
const END: Duration = Duration::from_secs(30);

/// What the workers of one test share: the folder of their notes.
#[derive(Debug)]
pub(crate) struct Workshop(TempDir);

impl Workshop {
    /// An empty one.
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().expect("a folder for the notes"))
    }

    /// An agent that does what its input says, with one capability; twice does no harm, and four calls run at once.
    pub(crate) fn worker(&self, name: &str, capability: &str, more: Value) -> Value {
        let folder = self.0.path().to_str().expect("temporary folders have plain names");
        let capability = with(json!({ "id": capability, "idempotent": true }), more);
        with(script(name, "worker.py", &[name, folder], capability), json!({ "concurrency": 4 }))
    }

    /// Puts a file there that workers wait for.
    pub(crate) fn release(&self, file: &str) {
        fs::write(self.0.path().join(file), "").expect("the file is written");
    }

    /// Where its files are.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Its notes of one kind, in order.
    pub(crate) fn notes(&self, what: &str) -> Vec<Value> {
        let text = fs::read_to_string(self.file("notes")).unwrap_or_default();
        let notes = text.lines().map(|line| serde_json::from_str::<Value>(line).expect("a note is JSON"));
        notes.filter(|note| note["what"] == what).collect()
    }

    /// Waits until there are so many notes of a kind.
    pub(crate) async fn until(&self, what: &str, count: usize) {
        let noted = async || (self.notes(what).len() >= count).then_some(());
        eventually(&format!("{count} calls {what}"), SETTLE, noted).await;
    }
}

/// A node that leaves nobody alone for failing, and tries nobody for the sake of trying: who is asked follows from what agents claim.
pub(crate) fn planner() -> Builder {
    Node::builder().config("[routing]\nexploration = 0.0\nbreaker_failures = 100\n")
}

/// A step that calls `capability` with this input.
pub(crate) fn step(id: &str, capability: &str, input: Value) -> Value {
    json!({ "subtask_id": id, "agent_capability": capability, "input": input })
}

/// A task of these steps.
pub(crate) fn task(subtasks: &[Value]) -> Value {
    json!({ "name": "A task of a test", "subtasks": subtasks })
}

impl Node {
    /// How a task stands, with every attempt and why its agent was chosen.
    pub(crate) async fn explained(&self, id: &str) -> Value {
        self.get(&format!("/aitp/tasks/{id}?explain=true")).await.ok()
    }

    /// One step of it.
    pub(crate) async fn step(&self, id: &str, step: &str) -> Value {
        let task = self.explained(id).await;
        let steps = task["progress"]["steps"].as_array().unwrap_or_else(|| panic!("steps: {task}"));
        steps.iter().find(|found| found["subtask_id"] == step).unwrap_or_else(|| panic!("no step {step}: {task}")).clone()
    }

    /// Waits until a step is in this state; the step.
    pub(crate) async fn until_step(&self, id: &str, step: &str, fits: impl Fn(&Value) -> bool) -> Value {
        let mut seen = Value::Null;
        let agrees = async || {
            seen = self.step(id, step).await;
            fits(&seen).then(|| seen.clone())
        };
        eventually(&format!("the step {step} of {id}"), SETTLE, agrees).await
    }

    /// Its events, from the beginning or after one of them (`?after=N`).
    pub(crate) async fn task_events_from(&self, id: &str, query: &str) -> Events {
        self.follow(&format!("/aitp/tasks/{id}/events{query}")).await
    }

    /// Waits for the end of a task; its result document.
    pub(crate) async fn result(&self, id: &str) -> Value {
        self.task_events(id).await.wait_for("ended", END, |_| true).await;
        self.task_result(id).await
    }

    /// Submits a task and waits for its end; its result document.
    pub(crate) async fn run_task(&self, task: &Value) -> Value {
        let id = self.submit(task).await;
        self.result(&id).await
    }
}
