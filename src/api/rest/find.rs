//! Directory queries.

use axum::Json;
use axum::extract::State;
use serde_json::Value;

use super::super::ApiError;
use super::body::Body;
use super::types::{ErrorDocument, FindBody, found};
use crate::node::{Handle, Query};

/// Who can do something, best first (AMP-5).
#[utoipa::path(
    post, path = "/v1/find", request_body = FindBody,
    responses((status = 200, description = "Candidates and who was left out", body = Value), (status = 400, description = "Faulty query", body = ErrorDocument))
)]
pub(super) async fn find(State(handle): State<Handle>, Body(body): Body<FindBody>) -> Result<Json<Value>, ApiError> {
    let query = Query {
        capabilities: body.capabilities,
        text: body.text,
        version: body.version,
        constraints: body.constraints.into(),
        limit: body.limit,
    };
    let answer = handle.find(query, body.input.as_ref()).await?;
    Ok(Json(found(&answer, body.explain, handle.node_id())))
}
