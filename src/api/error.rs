//! How failures look to clients: one table, one document.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use crate::model::{ErrorCode, Failure};

/// The HTTP status of a code (interface.md, "Errors"; MAOP-6).
pub fn http_status(code: ErrorCode) -> StatusCode {
    match code {
        ErrorCode::InvalidRequest => StatusCode::BAD_REQUEST,
        ErrorCode::InvalidSchema => StatusCode::UNPROCESSABLE_ENTITY,
        ErrorCode::PayloadTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        ErrorCode::VersionUnsupported => StatusCode::HTTP_VERSION_NOT_SUPPORTED,
        ErrorCode::AgentNotFound | ErrorCode::CapabilityNotFound | ErrorCode::ContextNotFound | ErrorCode::TaskNotFound => {
            StatusCode::NOT_FOUND
        }
        ErrorCode::AgentFailed => StatusCode::BAD_GATEWAY,
        ErrorCode::Timeout => StatusCode::GATEWAY_TIMEOUT,
        // Nobody standardised it, and everybody knows it: the client went away.
        ErrorCode::Cancelled => StatusCode::from_u16(499).unwrap_or(StatusCode::CONFLICT),
        ErrorCode::NotFinished => StatusCode::TOO_EARLY,
        ErrorCode::OverBudget => StatusCode::PAYMENT_REQUIRED,
        ErrorCode::AuthenticationFailed => StatusCode::UNAUTHORIZED,
        ErrorCode::AccessDenied => StatusCode::FORBIDDEN,
        ErrorCode::RateLimitExceeded | ErrorCode::Busy => StatusCode::TOO_MANY_REQUESTS,
        ErrorCode::Conflict => StatusCode::CONFLICT,
        ErrorCode::InsufficientResources | ErrorCode::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        ErrorCode::Internal => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// A failure on its way to an HTTP client.
#[derive(Debug, Clone)]
pub struct ApiError {
    /// What went wrong.
    pub failure: Failure,
    /// The trace it belongs to: 32 hexadecimal digits.
    pub trace_id: Option<String>,
}

impl From<Failure> for ApiError {
    fn from(failure: Failure) -> Self {
        Self { failure, trace_id: None }
    }
}

impl ApiError {
    /// The document that describes it.
    pub fn document(&self) -> serde_json::Value {
        let failure = &self.failure;
        json!({ "error": {
            "code": failure.code,
            "number": failure.code.number(),
            "message": failure.message,
            "retryable": failure.retryable,
            "details": failure.details,
            "trace_id": self.trace_id,
        }})
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (http_status(self.failure.code), Json(self.document())).into_response();
        if let Some(ms) = self.failure.retry_after_ms() {
            let seconds = ms.div_ceil(1_000).max(1);
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// MAOP-6: every code has a status of the 4xx or 5xx class.
    #[test]
    fn every_code_is_an_error_status() {
        for code in ErrorCode::ALL {
            let status = http_status(*code);
            assert!(status.is_client_error() || status.is_server_error(), "{code}");
        }
    }
}
