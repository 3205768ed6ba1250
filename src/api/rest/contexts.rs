//! Shared contexts under `/v1/contexts` (AMP "Context Management", design/contexts.md).
//!
//! Ids may be written by their beginning. A client acts as the node, or with `agent` as one of the node's agents.

use std::convert::Infallible;

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::sse::{Event, Sse};
use axum::response::{IntoResponse, Response};
use futures::Stream;
use serde::Deserialize;
use serde_json::Value;
use utoipa::IntoParams;

use super::super::ApiError;
use super::super::replay::{after, replay};
use super::body::Body;
use super::types::ErrorDocument;
use crate::model::{ErrorCode, Failure};
use crate::node::{AccessRequest, CheckpointRequest, ContextRequest, ForkRequest, Handle, MergeRequest};

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
    Ok(created(handle.create_context(request).await?))
}

fn created(document: Value) -> Response {
    let place = format!("/v1/contexts/{}", document["id"].as_str().unwrap_or_default());
    (StatusCode::CREATED, [(header::LOCATION, place)], Json(document)).into_response()
}

/// What is wanted of a context.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub(super) struct Shown {
    /// Only what is at this JSON Pointer into the context object.
    path: Option<String>,
    /// As it was after these operations and all that they build on: up to 64 ids with commas between them, or their first digits, at
    /// least 8. Who may read and write is shown as it is now.
    at: Option<String>,
    /// As which agent of this node; without it as the node itself.
    agent: Option<String>,
}

/// Shows a context, or what is at a path of it: as it is, or as it was.
#[utoipa::path(
    get, path = "/v1/contexts/{id}", params(("id" = String, Path), Shown),
    responses((status = 200, description = "The context object, or the value", body = Value), (status = 404, description = "No such context, or no such operation of it", body = ErrorDocument), (status = 403, description = "Whoever asks is no reader", body = ErrorDocument))
)]
pub(super) async fn show(State(handle): State<Handle>, Path(id): Path<String>, shown: Queried<Shown>) -> Result<Json<Value>, ApiError> {
    let shown = query(shown)?;
    let at = shown.at.map(|at| at.split(',').map(str::to_owned).collect());
    Ok(Json(handle.context(&id, shown.path.as_deref(), at, shown.agent.as_deref()).await?))
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
    Body(rights): Body<AccessRequest>,
) -> Result<Json<Value>, ApiError> {
    let acting = query(acting)?;
    Ok(Json(handle.share_context(&id, rights, acting.agent.as_deref()).await?))
}

/// Ends what was written so far with a checkpoint: what the context holds is what is written to from then on, and what was written before the
/// checkpoint before is let go of. Nodes do so by themselves once enough was written. For the owner alone.
#[utoipa::path(
    post, path = "/v1/contexts/{id}/checkpoint", params(("id" = String, Path)), request_body = Value,
    responses((status = 200, description = "The context object", body = Value), (status = 403, description = "Not the owner", body = ErrorDocument), (status = 409, description = "Nothing was written since the last one", body = ErrorDocument))
)]
pub(super) async fn checkpoint(
    State(handle): State<Handle>,
    Path(id): Path<String>,
    Body(request): Body<CheckpointRequest>,
) -> Result<Json<Value>, ApiError> {
    Ok(Json(handle.checkpoint_context(&id, request).await?))
}

/// Forks a context: a new one, owned by whoever asks, that holds what this one holds or, with `at`, held. All is durable before it is answered.
#[utoipa::path(
    post, path = "/v1/contexts/{id}/fork", params(("id" = String, Path)), request_body = Value,
    responses((status = 201, description = "The new context object", body = Value), (status = 403, description = "Whoever asks is no reader", body = ErrorDocument), (status = 404, description = "No such context, or no such operation of it", body = ErrorDocument))
)]
pub(super) async fn fork(
    State(handle): State<Handle>,
    Path(id): Path<String>,
    Body(request): Body<ForkRequest>,
) -> Result<Response, ApiError> {
    Ok(created(handle.fork_context(&id, request).await?))
}

/// Brings what another context changed, since one was forked from the other or they were merged last, into this one. Counters and lists add
/// up; what both changed is named in `conflicts` and taken from `prefer`, the `source` unless it says `target`. All of it or nothing; durable
/// before it is answered.
#[utoipa::path(
    post, path = "/v1/contexts/{id}/merge", params(("id" = String, Path)), request_body = Value,
    responses((status = 200, description = "The operations that it became, what they changed, and the conflicts", body = Value), (status = 403, description = "Whoever asks may not read the source, or not write there", body = ErrorDocument), (status = 409, description = "The two have no common ancestor", body = ErrorDocument))
)]
pub(super) async fn merge(
    State(handle): State<Handle>,
    Path(id): Path<String>,
    Body(request): Body<MergeRequest>,
) -> Result<Json<Value>, ApiError> {
    Ok(Json(handle.merge_context(&id, request).await?))
}

/// From where on events are wanted.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub(super) struct Since {
    /// Events with a larger number are sent; all of them without it.
    after: Option<u64>,
    /// As which agent of this node; without it as the node itself.
    agent: Option<String>,
}

/// Follows a context: what came to this node so far, or after a given event, in the order in which it came, then what comes. The numbers of
/// events are this node's own; another had heard of them in another order.
#[utoipa::path(
    get, path = "/v1/contexts/{id}/events",
    params(
        ("id" = String, Path), Since,
        ("Last-Event-ID" = Option<u64>, Header, description = "The same as `after`, as browsers send it when they connect again; it wins over `after`")
    ),
    responses((status = 200, description = "Server-sent events: `created`, `access`, `operation`, and `error` if it ends too early", content_type = "text/event-stream", body = String), (status = 403, description = "Whoever asks is no reader", body = ErrorDocument))
)]
pub(super) async fn events(
    State(handle): State<Handle>,
    Path(id): Path<String>,
    since: Queried<Since>,
    headers: HeaderMap,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, ApiError> {
    let since = query(since)?;
    Ok(replay(handle.context_events(&id, after(&headers, since.after), since.agent).await?))
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
