//! An answer of the API.

use serde_json::Value;

/// Status and document; `null` where there is no body.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    /// The HTTP status.
    pub(crate) status: u16,
    /// The document.
    pub(crate) body: Value,
}

impl Answer {
    /// The document of an answer that must be a success.
    #[track_caller]
    pub(crate) fn ok(self) -> Value {
        assert!((200..300).contains(&self.status), "status {}: {}", self.status, self.body);
        self.body
    }

    /// The error of an answer that must be a refusal with this status and code, in the shape that all doors share.
    #[track_caller]
    pub(crate) fn refused(self, status: u16, code: &str) -> Value {
        let error = self.error(code);
        assert_eq!(self.status, status, "{error}");
        error
    }

    /// The error of an answer that must be a refusal with this code.
    #[track_caller]
    pub(crate) fn error(&self, code: &str) -> Value {
        let error = &self.body["error"];
        assert_eq!(error["code"], code, "status {}: {}", self.status, self.body);
        assert!(error["number"].as_u64().is_some_and(|number| (1000..6000).contains(&number)), "{error}");
        assert!(error["message"].as_str().is_some_and(|message| !message.is_empty()), "{error}");
        assert!(error["retryable"].is_boolean() && error["details"].is_object(), "{error}");
        assert!(error.get("trace_id").is_some(), "{error}");
        error.clone()
    }
}
