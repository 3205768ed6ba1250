//! How an ended task becomes output and exit code.
//!
//! The result is on stdout and alone there. A task that succeeded in part is a success with a warning; one that failed or was cancelled
//! is a refusal of the mesh, whatever its code: exit code 4 is left for waits that ran out on this side.

use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    super::{
        CliError, Global,
        client::read,
        error::{Body, Exit},
        figures,
    },
    short,
    wait::said,
};
use crate::model::{ErrorCode, Failure};

/// How many missing subtasks are named.
const MISSING_SHOWN_MAX: usize = 20;

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Ended {
    task_id: String,
    status: String,
    outcome: Option<String>,
    reason: Option<String>,
    error: Option<Value>,
    missing: Vec<String>,
}

/// Prints the result of a task, or why there is none.
pub(super) fn tell(document: &Value, global: &Global) -> Result<(), CliError> {
    let ended: Ended = read(document)?;
    let partial = ended.outcome.as_deref() == Some("partial");
    let good = partial || ended.outcome.as_deref() == Some("success") || ended.outcome.is_none() && ended.status == "COMPLETED";
    if global.json {
        global.screen.json(document)?;
    } else if good {
        global.screen.json(document.get("result").unwrap_or(&Value::Null))?;
    }
    if partial {
        global.screen.err(&missing(&ended));
    }
    if good { Ok(()) } else { Err(said(&failure(ended), Exit::Refused, global)) }
}

fn missing(ended: &Ended) -> String {
    let names: Vec<String> = ended.missing.iter().take(MISSING_SHOWN_MAX).map(|name| figures::word(name)).collect();
    let more = match ended.missing.len().saturating_sub(names.len()) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let of = if names.is_empty() { "some subtasks".to_owned() } else { names.join(", ") };
    format!("the result is partial: nothing from {of}{more}\nhint: {}\n", way_on(&ended.task_id))
}

fn failure(ended: Ended) -> CliError {
    let cancelled = ended.outcome.as_deref() == Some("cancelled");
    let body = ended.error.filter(Value::is_object).map(Body::deserialize);
    let error = match body {
        Some(Ok(body)) => CliError::answered(body),
        Some(Err(_)) | None => {
            let code = if cancelled { ErrorCode::Cancelled } else { ErrorCode::AgentFailed };
            let why = ended.reason.filter(|_| !cancelled).map(|reason| format!(": {}", figures::word(&reason))).unwrap_or_default();
            let what = if cancelled { "was cancelled" } else { "failed" };
            Failure::new(code, format!("task {} {what}{why}", figures::word(&ended.task_id))).into()
        }
    };
    error.hint(way_on(&ended.task_id)).with("task_id", json!(ended.task_id))
}

fn way_on(id: &str) -> String {
    format!("`meshwork task status {}` shows what each step did", short(id))
}
