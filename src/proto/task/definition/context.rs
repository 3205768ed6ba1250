//! Which shared context a task's steps are given, and what they may do with it (AMP "Context Management", design/contexts.md).
//!
//! `context: ID`, or `{id, access, path, agent}`. The task's home node reads and writes for its steps, so that no agent needs a right of its
//! own. Whether the context is here, and the node may do with it what is asked, is for whoever has contexts to say.

use super::super::fault::Faults;
use super::section::Section;
use crate::model::{ContextId, Path};

const FIELDS: [&str; 4] = ["id", "access", "path", "agent"];
/// The longest name of an agent, in characters: its `did:key` or what it is called.
const AGENT_CHARS_MAX: usize = 200;

/// What a step may do with its task's context.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ContextAccess {
    /// It is given what the context holds.
    Read,
    /// It may also answer with what is to be written there.
    Write,
}

impl ContextAccess {
    /// As definitions write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
        }
    }
}

/// The context of a task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskContext {
    /// Which.
    pub id: ContextId,
    /// What its steps may do with it that do not say otherwise; the most that any of them may.
    pub access: ContextAccess,
    /// The part of it that they see, and below which they write; never the memory of an agent.
    pub path: Path,
    /// The agent of the home node in whose name that is done; without it the node's own.
    pub agent: Option<String>,
}

/// Reads the `context` of a task.
pub(super) fn read(task: &Section<'_>, faults: &mut Faults) -> Option<TaskContext> {
    let value = task.get("context")?;
    if value.is_string() {
        let id = task.parsed("context", faults)?;
        return Some(TaskContext { id, access: ContextAccess::Read, path: Path::shared(), agent: None });
    }
    let section = Section::of(value, &task.at("context"), "a context", &FIELDS, faults)?;
    if section.get("id").is_none() {
        faults.add(&section.at("id"), "is missing; it says which context");
    }
    let id = section.parsed("id", faults);
    let words = [ContextAccess::Read, ContextAccess::Write].map(|access| (access.as_str(), access));
    let access = section.word("access", &words, faults).unwrap_or(ContextAccess::Read);
    let path = section.parsed::<Path>("path", faults).unwrap_or_else(Path::shared);
    if path.private_to().is_some() {
        faults.add(
            &section.at("path"),
            "lies in the memory of an agent, which is nobody else's to see; steps share what is in /shared_memory",
        );
    }
    let agent = section.text("agent", AGENT_CHARS_MAX, faults).map(str::to_owned);
    Some(TaskContext { id: id?, access, path, agent })
}

/// Reads the `context` of a subtask: what it may do, where the task's steps may do as much as `most`.
pub(super) fn read_access(
    subtask: &Section<'_>,
    most: Option<ContextAccess>,
    holds_task: bool,
    faults: &mut Faults,
) -> Option<ContextAccess> {
    let words = [("read", Some(ContextAccess::Read)), ("write", Some(ContextAccess::Write)), ("none", None)];
    let Some(asked) = subtask.word("context", &words, faults) else { return most.filter(|_| !holds_task) };
    let asked = asked?;
    let path = subtask.at("context");
    if holds_task {
        faults.add(&path, "stands beside `task`, which another node runs, with a context of its own if it names one");
    } else if most.is_none() {
        faults.add(&path, "asks for a context, and the task names none");
    } else if most < Some(asked) {
        faults.add(&path, "asks to write, and the task's context is there to be read; say `access: write` there");
    }
    Some(asked)
}
