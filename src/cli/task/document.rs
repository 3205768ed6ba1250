//! What the verbs read of the node's documents on tasks, and the words for it.
//!
//! Everything but the id may be missing: an older or newer node is shown as far as it is understood. Texts in here are strangers' and
//! become harmless where they are written out, by [`figures::word`] and the table.

use serde::Deserialize;
use serde_json::Value;

use super::super::figures;
use crate::model::{Timestamp, printable};

/// How much of a task's id tables and views show.
pub(super) const SHORT_CHARS: usize = 8;

/// How much of an error or a reason to wait is shown, in characters.
pub(super) const REASON_CHARS_MAX: usize = 500;

/// Digits behind the point of a cost; prices per token are small.
const COST_DIGITS: usize = 6;

/// A task as `GET /aitp/tasks/{id}` and, without its steps, the list tell it.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Status {
    pub(super) task_id: String,
    pub(super) name: String,
    pub(super) status: String,
    pub(super) outcome: Option<String>,
    pub(super) reason: Option<String>,
    pub(super) error: Option<Value>,
    pub(super) created_at: Option<u64>,
    pub(super) ended_at: Option<u64>,
    pub(super) deadline: Option<u64>,
    pub(super) estimated_completion: Option<u64>,
    pub(super) percent_complete: f64,
    pub(super) total_steps: u64,
    pub(super) cost_so_far: Value,
    pub(super) currency: String,
    pub(super) budget: Value,
    pub(super) tags: Vec<String>,
    pub(super) progress: Progress,
}

/// How far a task is.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Progress {
    pub(super) total_steps: u64,
    pub(super) percent_complete: f64,
    pub(super) steps: Vec<Step>,
}

/// One subtask.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Step {
    pub(super) step_id: Value,
    pub(super) subtask_id: String,
    pub(super) name: String,
    pub(super) capability: String,
    pub(super) status: String,
    pub(super) after: Vec<String>,
    pub(super) started_ms: Option<f64>,
    pub(super) duration_ms: Option<f64>,
    pub(super) agent_id: Option<String>,
    pub(super) agent: Option<String>,
    pub(super) node_id: Option<String>,
    pub(super) attempt: Option<u64>,
    pub(super) cost: Value,
    pub(super) waiting_for: Option<String>,
    pub(super) error: Option<Value>,
    pub(super) child: Option<Child>,
    pub(super) progress_percentage: Option<f64>,
    pub(super) attempts: Vec<Attempt>,
}

/// The task that a step is on another node.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Child {
    pub(super) task_id: String,
    pub(super) node_id: String,
}

/// One try of a subtask, which only an explained status has.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Attempt {
    pub(super) attempt: Value,
    pub(super) agent_id: String,
    pub(super) node_id: String,
    pub(super) chosen_ms: Option<f64>,
    pub(super) accepted_ms: Option<f64>,
    pub(super) ended_ms: Option<f64>,
    pub(super) outcome: Value,
    pub(super) error: Option<Value>,
}

/// A page of the list.
#[derive(Debug, Deserialize)]
pub(super) struct Listing {
    pub(super) tasks: Vec<Status>,
    #[serde(default)]
    pub(super) next: Option<Value>,
}

impl Status {
    /// Whether nothing will happen to it any more.
    pub(super) fn has_ended(&self) -> bool {
        matches!(self.status.as_str(), "COMPLETED" | "FAILED")
    }

    /// `EXECUTING`, `COMPLETED`, `COMPLETED (partial)`, `FAILED (DEADLINE)`.
    pub(super) fn standing(&self) -> String {
        let why = match (self.outcome.as_deref(), self.reason.as_deref()) {
            (Some("cancelled" | "failed"), Some(reason)) => Some(reason),
            (Some("success") | None, _) => None,
            (Some("failed"), None) => None,
            (Some(outcome), _) => Some(outcome),
        };
        let status = figures::word(&self.status);
        why.map_or_else(|| status.clone(), |why| format!("{status} ({})", figures::word(why)))
    }

    /// `0.051 of 10 USD`.
    pub(super) fn cost(&self) -> String {
        let budget = if self.budget.is_null() { String::new() } else { format!(" of {}", amount(&self.budget)) };
        format!("{}{budget} {}", amount(&self.cost_so_far), figures::word(&self.currency)).trim_end().to_owned()
    }

    /// How long it took, or has taken at `now_ms`.
    pub(super) fn elapsed_ms(&self, now_ms: u64) -> Option<u64> {
        let until_ms = self.ended_at.map_or(now_ms, |ended| ended.saturating_mul(1_000));
        self.created_at.map(|created| until_ms.saturating_sub(created.saturating_mul(1_000)))
    }
}

impl Step {
    /// What it is called by whoever refers to it.
    pub(super) fn label(&self) -> String {
        figures::word(if self.subtask_id.is_empty() { &self.name } else { &self.subtask_id })
    }

    /// `extractor@pQrStUvW`, or nothing while nobody has it.
    pub(super) fn who(&self) -> String {
        self.agent_id.as_deref().map(|id| figures::agent(self.agent.as_deref().unwrap_or_default(), id)).unwrap_or_default()
    }

    /// `…vnc6iDEp`, or nothing.
    pub(super) fn node(&self) -> String {
        self.node_id.as_deref().map(figures::node).unwrap_or_default()
    }

    /// What it waits for, as a person is told.
    pub(super) fn waits(&self) -> Option<String> {
        let told = self.waiting_for.as_deref()?;
        Some(printable(&if told.starts_with("deferred") { told.to_owned() } else { format!("waits for {told}") }, REASON_CHARS_MAX))
    }

    /// Whether it will not change any more.
    pub(super) fn has_ended(&self) -> bool {
        matches!(self.status.as_str(), "SUCCESS" | "FAILED")
    }

    /// Its status, and how far it is where it runs as a task of another node.
    pub(super) fn state(&self) -> String {
        let status = figures::word(&self.status);
        match self.progress_percentage.filter(|_| self.is_running()) {
            Some(percent) => format!("{status} {:.0} %", percent.clamp(0.0, 100.0)),
            None => status,
        }
    }

    /// Whether an agent works on it, or is about to again.
    pub(super) fn is_running(&self) -> bool {
        matches!(self.status.as_str(), "EXECUTING" | "RETRYING" | "COMPLETED")
    }
}

/// An amount of money or units: at most six digits behind the point, none that say nothing.
pub(super) fn amount(value: &Value) -> String {
    match value {
        Value::Null => "0".to_owned(),
        Value::Number(number) => number.as_f64().map_or_else(
            || number.to_string(),
            |number| {
                let text = format!("{number:.COST_DIGITS$}");
                text.trim_end_matches('0').trim_end_matches('.').to_owned()
            },
        ),
        Value::Bool(_) | Value::String(_) | Value::Array(_) | Value::Object(_) => figures::plain(value),
    }
}

/// `AGENT_FAILED: the model is gone`; an error is a document or already a text.
pub(super) fn reason(error: &Value) -> String {
    let part = |name: &str| error.get(name).and_then(Value::as_str);
    let text = match (part("code"), part("message")) {
        (Some(code), Some(message)) => format!("{code}: {message}"),
        (Some(one), None) | (None, Some(one)) => one.to_owned(),
        (None, None) => error.as_str().map_or_else(|| error.to_string(), str::to_owned),
    };
    printable(&text, REASON_CHARS_MAX)
}

/// A moment that the node gave in seconds since 1970.
pub(super) fn moment(unix_s: Option<u64>) -> String {
    unix_s.map_or_else(|| figures::NOTHING.to_owned(), |unix_s| Timestamp::from_ms(unix_s.saturating_mul(1_000)).to_string())
}

/// Milliseconds since 1970 on this machine's clock.
pub(super) fn now_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
