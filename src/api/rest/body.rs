//! Reads a JSON body: bounded, typed, with the place of a fault.

use axum::body::Bytes;
use axum::extract::{FromRequest, Request};
use serde::de::DeserializeOwned;

use super::super::ApiError;
use crate::model::{ErrorCode, Failure};

/// A JSON body. Unknown fields are refused by its type; faults are named by line, column and field.
pub(super) struct Body<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let bytes = Bytes::from_request(request, state).await.map_err(|rejection| {
            let too_large = rejection.status() == axum::http::StatusCode::PAYLOAD_TOO_LARGE;
            let code = if too_large { ErrorCode::PayloadTooLarge } else { ErrorCode::InvalidRequest };
            let message = if too_large { "the body is larger than limits.http_body_bytes_max".to_owned() } else { rejection.body_text() };
            ApiError(Failure::new(code, message))
        })?;
        let parsed = serde_json::from_slice(&bytes);
        parsed.map(Self).map_err(|error| ApiError(Failure::new(ErrorCode::InvalidRequest, format!("the body cannot be read: {error}"))))
    }
}
