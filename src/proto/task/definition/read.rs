//! Reads the document of a task, as AITP 8.1 posts it or in the sections of AITP 2 and 3.
//!
//! Either it is flat (`name`, `goal`, ..., `metadata`, `subtasks`, `fallback`), or it has the draft's own sections `Task`, `Metadata`,
//! `Subtasks` and `Fallback`; with `Task` it is the latter. `input` and `output` are schemas, and values stand in `parameters`. Fields that
//! only the node writes (`task_id`, `created_at`, `status`, `actual_cost`) are passed over wherever they stand, so that the draft's own
//! example, or a task that was read from one node, can be posted to another. Every other unknown field is refused: a misspelt limit must
//! not be no limit.
//!
//! Left to others: whether schemas compile and the parameters fit theirs, which needs a compiler; how large a document may be; whether
//! agents can be found.

use std::time::Duration;

use serde_json::{Map, Value};

use super::super::fault::{Fault, Faults};
use super::delegated::Nesting;
use super::section::Section;
use super::subtasks::Parent;
use super::{Backoff, Definition, OnTimeout, Retry, context, fallback, fill_defaults, metadata, subtasks};
use crate::model::{Priority, Timestamp, json_kind};

/// The longest name of a task or a subtask, in characters.
pub(super) const NAME_CHARS_MAX: usize = 200;
/// The longest description, in characters.
const DESCRIPTION_CHARS_MAX: usize = 4_000;
/// The longest goal, in characters: it is put before agents that plan.
const GOAL_CHARS_MAX: usize = 16_000;

/// The longest URL that is called back, in characters.
const CALLBACK_CHARS_MAX: usize = 2_000;

const SECTIONS: [&str; 4] = ["Task", "Metadata", "Subtasks", "Fallback"];

const TASK_FIELDS: [&str; 13] = [
    "name",
    "description",
    "goal",
    "input",
    "output",
    "parameters",
    "priority",
    "created_by",
    "completion_callback",
    "context",
    // What the node writes.
    "task_id",
    "created_at",
    "status",
];

const FLAT_FIELDS: [&str; 16] = [
    "name",
    "description",
    "goal",
    "input",
    "output",
    "parameters",
    "priority",
    "created_by",
    "completion_callback",
    "context",
    "metadata",
    "subtasks",
    "fallback",
    // What the node writes.
    "task_id",
    "created_at",
    "status",
];

/// What holds where a definition says nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Defaults {
    /// How long one attempt may take.
    pub attempt_timeout: Duration,
    /// How failed attempts are repeated.
    pub retry: Retry,
    /// How long to wait before looking again for a capability that nobody offers.
    pub defer: Duration,
}

impl Default for Defaults {
    /// What the draft's examples say (AITP 2.2, 6.1, 6.2).
    fn default() -> Self {
        Self {
            attempt_timeout: Duration::from_secs(3_600),
            retry: Retry { retries_max: 3, backoff: Backoff::Exponential, base: Duration::from_secs(1), never: false },
            defer: Duration::from_secs(300),
        }
    }
}

impl Definition {
    /// Reads a document.
    ///
    /// # Errors
    /// Everything that is wrong with it, each with its place.
    pub fn read(document: &Value, defaults: &Defaults, now: Timestamp) -> Result<Self, Vec<Fault>> {
        read_nested(document, defaults, now, &Nesting::default())
    }

    /// The same task with the subtasks of a plan, read as if its author had written them.
    ///
    /// # Errors
    /// Everything that is wrong with the plan; places begin with `/subtasks`.
    pub fn with_subtasks(&self, subtasks: &Value) -> Result<Self, Vec<Fault>> {
        let (usual, budget, nesting) = (self.usual, self.budget, &Nesting::default());
        let context = self.context.as_ref().map(|context| context.access);
        let parent = Parent { input: &self.input, parameters: &self.parameters, usual, budget, context, nesting, reading: None };
        let subtasks = subtasks::read_alone(subtasks, &parent)?;
        Ok(Self { subtasks, ..self.clone() })
    }

    /// Everything that asks for more time for one attempt than this node gives. A definition that was taken in when the node gave more is
    /// still read, so reading does not refuse it. `in_sections` tells how it was written.
    pub fn overlong(&self, longest: Duration, in_sections: bool) -> Vec<Fault> {
        let mut faults = Faults::default();
        let mut hold = |asked: Duration, path: &str| {
            if asked > longest {
                let (most, asked) = (longest.as_secs_f64(), asked.as_secs_f64());
                faults.add(path, format!("is at most {most} seconds on this node (limits.step_timeout_ms_max), not {asked}"));
            }
        };
        let [metadata, subtasks, fallback] =
            if in_sections { ["Metadata", "Subtasks", "Fallback"] } else { ["metadata", "subtasks", "fallback"] };
        hold(self.usual.attempt_timeout, &format!("/{metadata}/timeout_seconds"));
        if let OnTimeout::Extend(Some(extended)) = self.fallback.on_timeout {
            hold(extended, &format!("/{fallback}/on_timeout/extended_timeout_seconds"));
        }
        for (place, subtask) in self.subtasks.iter().enumerate() {
            if subtask.attempt_timeout != self.usual.attempt_timeout {
                hold(subtask.attempt_timeout, &format!("/{subtasks}/{place}/timeout_seconds"));
            }
        }
        faults.into_vec()
    }
}

/// Reads a document that may stand within another.
pub(super) fn read_nested(document: &Value, defaults: &Defaults, now: Timestamp, nesting: &Nesting) -> Result<Definition, Vec<Fault>> {
    let mut faults = Faults::default();
    match read(document, defaults, now, nesting, &mut faults) {
        Some(definition) => faults.or(definition),
        None => Err(faults.into_vec()),
    }
}

fn read(document: &Value, defaults: &Defaults, now: Timestamp, nesting: &Nesting, faults: &mut Faults) -> Option<Definition> {
    let in_sections = document.get("Task").is_some();
    let root = Section::of(document, "", "a task", if in_sections { &SECTIONS } else { &FLAT_FIELDS }, faults)?;
    let inner = if in_sections { Some(Section::of(root.get("Task")?, "/Task", "a task", &TASK_FIELDS, faults)?) } else { None };
    let task = inner.as_ref().unwrap_or(&root);
    let key = |flat, section| if in_sections { section } else { flat };
    let (metadata_key, subtasks_key, fallback_key) =
        (key("metadata", "Metadata"), key("subtasks", "Subtasks"), key("fallback", "Fallback"));

    if task.get("name").is_none() {
        faults.add(&task.at("name"), "is missing; a task has a name that people know it by");
    }
    let name = printable(task.text("name", NAME_CHARS_MAX, faults), &task.at("name"), faults);
    let created_by = printable(task.text("created_by", NAME_CHARS_MAX, faults), &task.at("created_by"), faults);
    let description = task.text("description", DESCRIPTION_CHARS_MAX, faults).map(str::to_owned);
    let completion_callback = task.text("completion_callback", CALLBACK_CHARS_MAX, faults).map(str::to_owned);
    let goal = task.text("goal", GOAL_CHARS_MAX, faults).map(str::to_owned);
    let priority = task.parsed::<Priority>("priority", faults).unwrap_or_default();
    let (input, output) = (task.schema("input", faults), task.schema("output", faults));
    let mut parameters = match task.get("parameters") {
        None => Map::new(),
        Some(Value::Object(fields)) => fields.clone(),
        Some(other) => {
            faults.add(&task.at("parameters"), format!("is an object with the task's values, not {}", json_kind(other)));
            Map::new()
        }
    };
    fill_defaults(&input, &mut parameters);
    let metadata = metadata::read(root.get(metadata_key), &root.at(metadata_key), defaults, now, faults);
    let fallback = fallback::read(root.get(fallback_key), &root.at(fallback_key), defaults.defer, faults);
    let (usual, budget, reading) = (metadata.usual, metadata.budget, Some((defaults, now)));
    let context = context::read(task, faults);
    let access = context.as_ref().map(|context| context.access);
    let parent = Parent { input: &input, parameters: &parameters, usual, budget, context: access, nesting, reading };
    let subtasks = root.get(subtasks_key).map(|value| (value, subtasks::read(value, &root.at(subtasks_key), &parent, faults)));
    let has_subtasks = subtasks.as_ref().is_some_and(|(value, _)| value.as_array().is_none_or(|entries| !entries.is_empty()));
    if !has_subtasks && task.get("goal").is_none() {
        faults.add(root.path(), format!("a task has `{subtasks_key}` to run, or a `goal` to find them for"));
    }
    Some(Definition {
        name: name.unwrap_or_default(),
        description,
        goal,
        input,
        output,
        parameters,
        created_by,
        priority,
        deadline: metadata.deadline,
        tags: metadata.tags,
        dependencies: metadata.dependencies,
        budget: metadata.budget,
        parent: None,
        completion_callback,
        context,
        estimated_cost: metadata.estimated_cost,
        fallback,
        usual: metadata.usual,
        subtasks: subtasks.map(|(_, subtasks)| subtasks).unwrap_or_default(),
    })
}

/// A text that stands in tables and logs.
fn printable(text: Option<&str>, path: &str, faults: &mut Faults) -> Option<String> {
    let text = text?;
    if text.chars().any(char::is_control) {
        faults.add(path, "has printable characters only, on one line");
    }
    Some(text.to_owned())
}
