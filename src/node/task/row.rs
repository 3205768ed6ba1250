//! A task's row in a list, as it is kept of those that have ended.

use std::sync::Arc;

use serde_json::Value;

/// A task's row in a list, as JSON text: there may be many, and few are looked at.
#[derive(Debug, Clone)]
pub(super) struct Row(Arc<str>);

impl Row {
    pub(super) fn new(row: &Value) -> Self {
        Self(row.to_string().into())
    }

    /// One that was written down.
    pub(super) fn of_text(text: &str) -> Self {
        Self(text.into())
    }

    pub(super) fn text(&self) -> &str {
        &self.0
    }

    pub(super) fn value(&self) -> Value {
        serde_json::from_str(&self.0).unwrap_or_default()
    }
}
