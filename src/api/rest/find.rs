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
    let asked = query.capabilities.first().cloned();
    let answer = handle.find(query, body.input.as_ref()).await?;
    let mut document = found(&answer, body.explain, handle.node_id());
    let nobody = answer.candidates.is_empty() && answer.rejected.is_empty();
    if let Some(near) = asked.filter(|_| nobody).and_then(|asked| handle.nearest_name(&asked)) {
        document["suggestion"] = Value::String(near);
    }
    Ok(Json(document))
}
