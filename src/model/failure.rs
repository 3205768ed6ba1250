//! A failure as it travels: from an agent, over lanes, through a door, to the person who asked.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::ErrorCode;

/// How long a failure's message may be, in characters. Agents write some of them.
const MESSAGE_CHARS_MAX: usize = 500;

/// Why an invocation, query or command had no result.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Failure {
    /// The stable code.
    pub code: ErrorCode,
    /// One sentence for a person: what is wrong, where, and what to do.
    pub message: String,
    /// Whether the same request may succeed later or elsewhere.
    pub retryable: bool,
    /// Facts for a program: `path`, `limit`, `suggestion`, `retry_after_ms`, ...
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub details: Map<String, Value>,
}

impl Failure {
    /// A failure with the code's usual answer to "may I retry".
    pub fn new(code: ErrorCode, message: impl AsRef<str>) -> Self {
        let message = super::printable(message.as_ref(), MESSAGE_CHARS_MAX);
        Self { code, message, retryable: code.is_retryable(), details: Map::new() }
    }

    /// The same failure with one more fact in `details`.
    #[must_use]
    pub fn with(mut self, name: &str, fact: impl Into<Value>) -> Self {
        self.details.insert(name.to_owned(), fact.into());
        self
    }

    /// The same failure, marked as worth or not worth a retry.
    #[must_use]
    pub fn retryable(mut self, retryable: bool) -> Self {
        self.retryable = retryable;
        self
    }

    /// When the other side asks to be tried again, in milliseconds.
    pub fn retry_after_ms(&self) -> Option<u64> {
        self.details.get("retry_after_ms").and_then(Value::as_u64)
    }

    /// Whether this says "not now" rather than "it went wrong": it must not count against the agent.
    pub fn is_refusal(&self) -> bool {
        matches!(
            self.code,
            ErrorCode::Busy
                | ErrorCode::RateLimitExceeded
                | ErrorCode::InsufficientResources
                | ErrorCode::Cancelled
                | ErrorCode::InvalidRequest
                | ErrorCode::PayloadTooLarge
                | ErrorCode::AccessDenied
                | ErrorCode::AuthenticationFailed
        )
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.message)
    }
}

impl std::error::Error for Failure {}
