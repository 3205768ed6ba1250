//! Reads a JSON body: bounded, typed, with the place of a fault.

use axum::body::Bytes;
use axum::extract::{FromRequest, Request};
use serde::de::DeserializeOwned;

use super::super::ApiError;
use crate::model::{ErrorCode, Failure};
use crate::node::{Handle, off_workers};

/// A body as it came, if it is no larger than bodies may be.
pub(in crate::api) async fn bytes(request: Request, handle: &Handle) -> Result<Bytes, ApiError> {
    Bytes::from_request(request, handle).await.map_err(|rejection| {
        let too_large = rejection.status() == axum::http::StatusCode::PAYLOAD_TOO_LARGE;
        if !too_large {
            return ApiError::from(Failure::new(ErrorCode::InvalidRequest, rejection.body_text()));
        }
        let limit = handle.config().limits.http_body_bytes_max;
        let message = format!("the body has more than {limit} bytes (limits.http_body_bytes_max)");
        ApiError::from(Failure::new(ErrorCode::PayloadTooLarge, message).with("limit", limit))
    })
}

/// A JSON body. Unknown fields are refused by its type; faults are named by line, column and field.
pub(super) struct Body<T>(pub(super) T);

impl<T: DeserializeOwned> FromRequest<Handle> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, handle: &Handle) -> Result<Self, ApiError> {
        let bytes = bytes(request, handle).await?;
        let parsed = off_workers(bytes.len(), || serde_json::from_slice(&bytes));
        parsed
            .map(Self)
            .map_err(|error| ApiError::from(Failure::new(ErrorCode::InvalidRequest, format!("the body cannot be read: {error}"))))
    }
}
