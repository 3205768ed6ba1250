//! Shared contexts under `/v1/contexts` (AMP "Context Management", design/contexts.md).
//!
//! Ids may be written by their beginning. A client acts as the node, or with `agent` as one of the node's agents.

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::Value;
use utoipa::IntoParams;

use super::super::ApiError;
use super::body::Body;
use super::types::ErrorDocument;
use crate::model::{ErrorCode, Failure};
use crate::node::{ContextRequest, Handle, Rights};

/// As whom a client acts.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub(super) struct Acting {
    /// An agent of this node; without it the node itself.
    agent: Option<String>,
}

type Queried<T> = Result<Query<T>, axum::extract::rejection::QueryRejection>;

fn query<T>(query: Queried<T>) -> Result<T, ApiError> {
    let Query(query) = query.map_err(|error| Failure::new(ErrorCode::InvalidRequest, error.body_text()))?;
    Ok(query)
}

/// Lists the contexts that this node keeps, the latest first.
#[utoipa::path(get, path = "/v1/contexts", responses((status = 200, description = "Contexts without what they hold", body = Value)))]
pub(super) async fn list(State(handle): State<Handle>) -> Result<Json<Value>, ApiError> {
    Ok(Json(handle.contexts().await?))
}

/// Creates a context. The answer comes when it is durable.
#[utoipa::path(
    post, path = "/v1/contexts", request_body = Value,
    responses((status = 201, description = "Created: the context object", body = Value), (status = 400, description = "Faulty request, with the path of the fault", body = ErrorDocument))
)]
pub(super) async fn create(State(handle): State<Handle>, Body(request): Body<ContextRequest>) -> Result<Response, ApiError> {
    let document = handle.create_context(request).await?;
    let place = format!("/v1/contexts/{}", document["id"].as_str().unwrap_or_default());
    Ok((StatusCode::CREATED, [(header::LOCATION, place)], Json(document)).into_response())
}

/// What is wanted of a context.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub(super) struct Shown {
    /// Only what is at this JSON Pointer into the context object.
    path: Option<String>,
    /// As which agent of this node; without it as the node itself.
    agent: Option<String>,
}

/// Shows a context, or what is at a path of it.
#[utoipa::path(
    get, path = "/v1/contexts/{id}", params(("id" = String, Path), Shown),
    responses((status = 200, description = "The context object, or the value", body = Value), (status = 404, description = "No such context", body = ErrorDocument), (status = 403, description = "Whoever asks is no reader", body = ErrorDocument))
)]
pub(super) async fn show(State(handle): State<Handle>, Path(id): Path<String>, shown: Queried<Shown>) -> Result<Json<Value>, ApiError> {
    let shown = query(shown)?;
    Ok(Json(handle.context(&id, shown.path.as_deref(), shown.agent.as_deref()).await?))
}

/// Changes a context: `{"ops": [{"op": "set" | "del" | "inc" | "append", "path", "value" | "by"}]}`, or a merge patch on the context object
/// (RFC 7396). All of it or nothing; durable before it is answered.
#[utoipa::path(
    patch, path = "/v1/contexts/{id}", params(("id" = String, Path), Acting), request_body = Value,
    responses((status = 200, description = "The operations that it became, and the version after them", body = Value), (status = 403, description = "Whoever asks may not write there", body = ErrorDocument), (status = 409, description = "Something of another kind is there", body = ErrorDocument))
)]
pub(super) async fn change(
    State(handle): State<Handle>,
    Path(id): Path<String>,
    acting: Queried<Acting>,
    Body(body): Body<Value>,
) -> Result<Json<Value>, ApiError> {
    let acting = query(acting)?;
    Ok(Json(handle.change_context(&id, &body, acting.agent.as_deref()).await?))
}

/// Lets go of this node's replica; the nodes of other readers keep theirs. This node takes the context in from nobody for 30 days.
#[utoipa::path(
    delete, path = "/v1/contexts/{id}", params(("id" = String, Path)),
    responses((status = 204, description = "Let go of"), (status = 404, description = "No such context", body = ErrorDocument))
)]
pub(super) async fn let_go(State(handle): State<Handle>, Path(id): Path<String>) -> Result<StatusCode, ApiError> {
    handle.drop_context(&id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Says who may read and write from now on; both lists replace those before. For the owner alone.
#[utoipa::path(
    put, path = "/v1/contexts/{id}/access", params(("id" = String, Path), Acting), request_body = Value,
    responses((status = 200, description = "The context object", body = Value), (status = 403, description = "Not the owner", body = ErrorDocument))
)]
pub(super) async fn share(
    State(handle): State<Handle>,
    Path(id): Path<String>,
    acting: Queried<Acting>,
    Body(rights): Body<Rights>,
) -> Result<Json<Value>, ApiError> {
    let acting = query(acting)?;
    Ok(Json(handle.share_context(&id, rights, acting.agent.as_deref()).await?))
}

/// How much of a history is wanted.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub(super) struct Past {
    /// At most so many operations, up to 1000; 100 without it.
    limit: Option<usize>,
    /// As which agent of this node; without it as the node itself.
    agent: Option<String>,
}

/// Shows who wrote what, the latest first.
#[utoipa::path(
    get, path = "/v1/contexts/{id}/history", params(("id" = String, Path), Past),
    responses((status = 200, description = "Operations with author, time and items", body = Value), (status = 404, description = "No such context", body = ErrorDocument))
)]
pub(super) async fn history(State(handle): State<Handle>, Path(id): Path<String>, past: Queried<Past>) -> Result<Json<Value>, ApiError> {
    let past = query(past)?;
    Ok(Json(handle.context_history(&id, past.limit, past.agent.as_deref()).await?))
}
