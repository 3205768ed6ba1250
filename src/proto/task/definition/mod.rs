//! What a task is, as its author wrote it and as it is run (AITP 2, 3, 6).
//!
//! A definition is read once, when it is submitted: every name is resolved, every expression parsed, every bound checked, and each fault
//! is told with its path. What comes out is valid by construction, so that running it never meets a cycle, an unknown name or an
//! expression that cannot be read.
//!
//! `read` takes the whole document; `metadata`, `subtasks` and `fallback` each take a section of it; `section` reads single
//! fields, `context` what stands about a shared context, `defaults` fills in what a schema gives, `currency` knows which money there is.

mod context;
mod currency;
mod defaults;
mod delegated;
mod fallback;
mod metadata;
mod read;
mod section;
mod subtasks;

#[cfg(test)]
mod tests;

pub use context::{ContextAccess, TaskContext};
pub(super) use currency::usual as usual_currency;
pub use defaults::fill_defaults;
pub use read::Defaults;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rust_decimal::Decimal;
use serde_json::{Map, Value};

use super::{graph, template::Template};
use crate::model::{AgentId, CapabilityName, Currency, Priority, SubtaskId, TaskId, Timestamp, VersionRequirement};
use crate::wire::task::Parent;

/// A task that can be run.
#[derive(Debug, Clone, PartialEq)]
pub struct Definition {
    /// What people call it, 1 to 200 characters.
    pub name: String,
    /// What it does, for people.
    pub description: Option<String>,
    /// What shall come of it, in words: for agents that decompose.
    pub goal: Option<String>,
    /// JSON Schema of the parameters; `true` where none was given.
    pub input: Value,
    /// JSON Schema of the result; `true` where none was given.
    pub output: Value,
    /// The values that it is run with, the schema's defaults filled in.
    pub parameters: Map<String, Value>,
    /// Who asked, as they call themselves.
    pub created_by: Option<String>,
    /// How urgent its calls are.
    pub priority: Priority,
    /// When it is given up.
    pub deadline: Option<Timestamp>,
    /// For finding it again; at most 32.
    pub tags: BTreeSet<String>,
    /// Tasks of the same home node that must have ended well before it begins; at most 64.
    pub dependencies: BTreeSet<TaskId>,
    /// What it may cost.
    pub budget: Option<Budget>,
    /// Whose work it is a part of, if a call brought it; its deadline and budget are within what that gave.
    pub parent: Option<Parent>,
    /// Where its author wants to be told of its end.
    pub completion_callback: Option<String>,
    /// The shared context that its steps are given.
    pub context: Option<TaskContext>,
    /// What its author thinks that it costs.
    pub estimated_cost: Option<Decimal>,
    /// What to do when something goes wrong.
    pub fallback: Fallback,
    /// What its subtasks have that do not say otherwise.
    pub usual: Usual,
    /// The parts; empty if it has a goal alone and is still to be decomposed. At most [`SUBTASKS_MAX`].
    pub subtasks: Vec<Subtask>,
}

impl Definition {
    /// The places of the subtasks that nobody waits for: what they give is the task's result.
    pub fn sinks(&self) -> Vec<usize> {
        let after: Vec<BTreeSet<usize>> = self.subtasks.iter().map(|subtask| subtask.after.clone()).collect();
        graph::sinks(&after)
    }

    /// An order in which each subtask comes after those that it waits for.
    pub fn order(&self) -> Vec<usize> {
        let after: Vec<BTreeSet<usize>> = self.subtasks.iter().map(|subtask| subtask.after.clone()).collect();
        // What was read has no circles; one that was put together otherwise is run in the order of its text.
        graph::order(&after).unwrap_or_else(|_| (0..self.subtasks.len()).collect())
    }
}

/// The most subtasks that one task may have.
pub const SUBTASKS_MAX: usize = 2_000;

/// What a task may cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// Never negative.
    pub amount: Decimal,
    /// Agents whose price is in another one are not asked.
    pub currency: Currency,
}

/// What subtasks have that do not say otherwise: a task's metadata, else the node's [`Defaults`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Usual {
    /// See [`Subtask::retry`].
    pub retry: Retry,
    /// See [`Subtask::attempt_timeout`].
    pub attempt_timeout: Duration,
    /// See [`Subtask::min_trust`].
    pub min_trust: Option<f64>,
    /// See [`Subtask::offers`].
    pub offers: bool,
}

/// One call of a task.
#[derive(Debug, Clone, PartialEq)]
pub struct Subtask {
    /// Its name in the task.
    pub id: SubtaskId,
    /// What people call it; its id where it has no name.
    pub name: String,
    /// What is called.
    pub capability: CapabilityName,
    /// Which versions will do.
    pub version: Option<VersionRequirement>,
    /// The only agent that may do it.
    pub agent: Option<AgentId>,
    /// How its input is made.
    pub input: Template,
    /// A JSON Schema of its output beside the capability's own; `true` where none was given.
    pub output: Value,
    /// `{field of the agent's output: name in this subtask's output}`; empty: the output is passed on unchanged.
    pub output_mapping: BTreeMap<String, String>,
    /// Which subtasks must have succeeded before, by their places in [`Definition::subtasks`]: those of `depends_on` and those that its
    /// input names.
    pub after: BTreeSet<usize>,
    /// Among those that are ready at once the smallest goes first.
    pub order: u32,
    /// How failed attempts are repeated.
    pub retry: Retry,
    /// How long one attempt may take, from the moment that the agent accepted it.
    pub attempt_timeout: Duration,
    /// How many units it probably takes.
    pub estimated_units: Decimal,
    /// What one attempt may cost at most, in the currency of the budget; US dollars where there is no budget.
    pub cost_limit: Option<Decimal>,
    /// The least trust, 0 to 100; the node's own rule without it.
    pub min_trust: Option<f64>,
    /// Whether agents are asked for live offers before one is chosen.
    pub offers: bool,
    /// What it may do with the task's context; nothing without it.
    pub context: Option<ContextAccess>,
    /// A task for another node to run: its document but for the parameters, which are what [`Subtask::input`] makes. What such an attempt may
    /// cost is all held back for it, so that two of them never share the same money (threat T20).
    pub task: Option<Value>,
}

impl Subtask {
    /// How long an attempt may take after one took too long.
    pub fn extended_timeout(&self, named: Option<Duration>) -> Duration {
        named.unwrap_or_else(|| self.attempt_timeout.saturating_mul(2)).max(self.attempt_timeout)
    }
}

/// How failed attempts are repeated (AITP 6.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retry {
    /// Attempts after the first; at most 20.
    pub retries_max: u32,
    /// How the pauses grow.
    pub backoff: Backoff,
    /// The first pause; at most an hour.
    pub base: Duration,
    /// `retry: never`: the agent begins at most once, whatever is lost.
    pub never: bool,
}

/// How the pauses between attempts grow (AITP 2.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backoff {
    /// Each is twice the one before.
    Exponential,
    /// Each is longer than the one before by the first.
    Linear,
    /// All are the same.
    Fixed,
}

impl Retry {
    /// The pause before the `retry`th repetition, counted from 1; never more than [`PAUSE_MAX`].
    pub fn pause(&self, retry: u32) -> Duration {
        let factor = match self.backoff {
            Backoff::Exponential => 1_u32.checked_shl(retry.saturating_sub(1)).unwrap_or(u32::MAX),
            Backoff::Linear => retry.max(1),
            Backoff::Fixed => 1,
        };
        self.base.saturating_mul(factor).min(PAUSE_MAX)
    }
}

/// The longest pause between two attempts.
pub const PAUSE_MAX: Duration = Duration::from_secs(24 * 3_600);

/// What to do when something goes wrong (AITP 6.2, MAOP 4.2).
#[derive(Debug, Clone, PartialEq)]
pub struct Fallback {
    /// The agent is gone.
    pub on_agent_offline: OnOffline,
    /// An attempt took too long.
    pub on_timeout: OnTimeout,
    /// What is told when the budget is used up.
    pub cost_notification: Option<String>,
    /// Nobody can do it.
    pub on_unavailable: OnUnavailable,
    /// A subtask failed for good.
    pub on_failure: OnFailure,
}

/// `on_agent_offline`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnOffline {
    /// `SELECT_NEXT_BEST`: another agent is asked at once; it is no retry.
    NextBest,
    /// `FAIL_AND_NOTIFY`: the subtask fails.
    Fail,
}

/// `on_timeout`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnTimeout {
    /// `RETRY_WITH_TIMEOUT_EXTENSION`: the attempts after the first that took too long have this much time, or twice their own where the author
    /// names none; never less than the first had.
    Extend(Option<Duration>),
    /// `SELECT_NEXT_BEST`: another attempt, with the same time.
    Retry,
    /// `FAIL_AND_NOTIFY`: the subtask fails.
    Fail,
}

/// `on_capability_unavailable`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnUnavailable {
    /// `DEFER`: looks again after this long, or as soon as somebody offers it.
    Defer(Duration),
    /// `FAIL_AND_NOTIFY`: the subtask fails.
    Fail,
}

/// `on_subtask_failed`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnFailure {
    /// `FAIL_AND_NOTIFY`: so does the task.
    Fail,
    /// `DEGRADE`: what does not need it goes on, and the result is marked as partial (MAOP-7).
    Degrade,
}
