//! Tasks under `/aitp` (AITP 8), with what the draft leaves out: a list, a cancel, a plan, and the events of a task.
//!
//! A submission is durable before it is answered. `Idempotency-Key` makes a submission that is repeated, because its answer was lost, the
//! same task. Events carry their number, and a stream that broke off is taken up with `Last-Event-ID` or `after`: it replays what was
//! missed, then follows, and ends with the task. Where both are given, the header is the later word.

use std::convert::Infallible;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{FromRequest, Path, Query, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::sse::{Event, Sse};
use axum::response::{IntoResponse, Response};
use futures::Stream;
use serde::Deserialize;
use serde_json::Value;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::ApiError;
use super::replay::{after, replay};
use super::rest::types::ErrorDocument;
use crate::model::{ErrorCode, Failure, TaskId};
use crate::node::{Handle, off_workers};

/// Paths that people may mean when they mistype one.
pub(super) const PATHS: &[&str] = &["/aitp/tasks", "/aitp/tasks/plan"];

/// The routes of this door.
pub(super) fn routes() -> OpenApiRouter<Handle> {
    OpenApiRouter::new()
        .routes(routes!(list, submit))
        .routes(routes!(plan))
        .routes(routes!(status))
        .routes(routes!(result))
        .routes(routes!(cancel))
        .routes(routes!(events))
}

/// The body as it came: it is kept as it was written.
struct Document(Bytes);

impl FromRequest<Handle> for Document {
    type Rejection = ApiError;

    async fn from_request(request: Request, handle: &Handle) -> Result<Self, ApiError> {
        super::rest::body::bytes(request, handle).await.map(Self)
    }
}

async fn named(handle: &Handle, text: &str) -> Result<TaskId, ApiError> {
    Ok(handle.task_named(text).await?)
}

/// Takes a task in (AITP 8.1). The answer comes when it is durable.
#[utoipa::path(
    post, path = "/aitp/tasks", request_body = Value, params(("Idempotency-Key" = Option<String>, Header)),
    responses(
        (status = 201, description = "Taken: its id", body = Value), (status = 200, description = "The same was submitted under this key before", body = Value),
        (status = 400, description = "Faulty definition, each fault with its path", body = ErrorDocument), (status = "default", description = "Why not", body = ErrorDocument)
    )
)]
async fn submit(State(handle): State<Handle>, headers: HeaderMap, Document(document): Document) -> Result<Response, ApiError> {
    let key = match headers.get("idempotency-key") {
        None => None,
        Some(key) => Some(key.to_str().map(str::to_owned).map_err(|_| {
            let failure = Failure::new(ErrorCode::InvalidRequest, "an idempotency key has printable ASCII characters");
            ApiError::from(failure.with("path", "/Idempotency-Key"))
        })?),
    };
    let submission = handle.submit(document, key).await?;
    let status = if submission.created { StatusCode::CREATED } else { StatusCode::OK };
    let place = format!("/aitp/tasks/{}", submission.receipt["task_id"].as_str().unwrap_or_default());
    Ok((status, [(header::LOCATION, place)], Json(submission.receipt)).into_response())
}

/// Which tasks are wanted.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ListQuery {
    status: Option<String>,
    tag: Option<String>,
    limit: Option<usize>,
    after: Option<String>,
}

/// Rows of a page where nobody says how many.
const LIMIT_DEFAULT: usize = 50;

/// Lists this node's tasks, the latest first.
#[utoipa::path(
    get, path = "/aitp/tasks",
    params(("status" = Option<String>, Query), ("tag" = Option<String>, Query), ("limit" = Option<usize>, Query, minimum = 1, maximum = 500, description = "How many at most: 1 to 500, which is refused above; 50 without it"),
        ("after" = Option<String>, Query, description = "`next` of another page: those behind it")),
    responses((status = 200, description = "Tasks, and in `next` where the next page begins; null if there is none", body = Value), (status = 400, description = "No such status, limit or cursor", body = ErrorDocument))
)]
async fn list(
    State(handle): State<Handle>,
    query: Result<Query<ListQuery>, axum::extract::rejection::QueryRejection>,
) -> Result<Json<Value>, ApiError> {
    let Query(query) = query.map_err(|error| Failure::new(ErrorCode::InvalidRequest, error.body_text()))?;
    let status = query.status.map(|status| status.to_ascii_uppercase());
    let known = ["PENDING", "EXECUTING", "COMPLETED", "FAILED"];
    if let Some(unknown) = status.as_deref().filter(|status| !known.contains(status)) {
        let unknown = crate::model::printable(unknown, 40);
        let failure = Failure::new(ErrorCode::InvalidRequest, format!("`{unknown}` is not a status: expected {}", known.join(", ")));
        return Err(failure.with("path", "/status").into());
    }
    Ok(Json(handle.tasks(status, query.tag, query.limit.unwrap_or(LIMIT_DEFAULT), query.after.as_deref()).await?))
}

/// Says what would come of a definition, without running it.
#[utoipa::path(
    post, path = "/aitp/tasks/plan", request_body = Value,
    responses((status = 200, description = "Subtasks, the agents that would be chosen, and what that would probably cost: `estimated_costs` for each currency, since nothing is converted, and `estimated_cost` if there is one", body = Value), (status = 400, description = "Faulty definition", body = ErrorDocument))
)]
async fn plan(State(handle): State<Handle>, Document(document): Document) -> Result<Json<Value>, ApiError> {
    let read = off_workers(document.len(), || serde_json::from_slice::<Value>(&document));
    let document = read.map_err(|error| Failure::new(ErrorCode::InvalidRequest, format!("the body cannot be read: {error}")))?;
    Ok(Json(handle.plan(&document).await?))
}

/// What a status document shall hold.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct StatusQuery {
    #[serde(default)]
    explain: bool,
}

/// Shows how a task stands (AITP 8.2).
#[utoipa::path(
    get, path = "/aitp/tasks/{id}", params(("id" = String, Path), ("explain" = Option<bool>, Query)),
    responses((status = 200, description = "Status and progress", body = Value), (status = 404, description = "No such task", body = ErrorDocument))
)]
async fn status(
    State(handle): State<Handle>,
    Path(id): Path<String>,
    query: Result<Query<StatusQuery>, axum::extract::rejection::QueryRejection>,
) -> Result<Json<Value>, ApiError> {
    let Query(query) = query.map_err(|error| Failure::new(ErrorCode::InvalidRequest, error.body_text()))?;
    let task = named(&handle, &id).await?;
    Ok(Json(handle.task(task, query.explain).await?))
}

/// Gives the result of a task that has ended, with its ledger (AITP 8.3, AITP 7.2).
#[utoipa::path(
    get, path = "/aitp/tasks/{id}/result", params(("id" = String, Path)),
    responses((status = 200, description = "Result and ledger", body = Value), (status = 425, description = "Not ended yet", body = ErrorDocument))
)]
async fn result(State(handle): State<Handle>, Path(id): Path<String>) -> Result<Response, ApiError> {
    let task = named(&handle, &id).await?;
    let document = handle.task_result(task).await?;
    Ok(([(header::CONTENT_TYPE, "application/json")], document.get().to_owned()).into_response())
}

/// Cancels a task.
#[utoipa::path(
    post, path = "/aitp/tasks/{id}/cancel", params(("id" = String, Path)),
    responses((status = 200, description = "Cancelled: its status", body = Value), (status = 409, description = "It has ended", body = ErrorDocument))
)]
async fn cancel(State(handle): State<Handle>, Path(id): Path<String>) -> Result<Json<Value>, ApiError> {
    let task = named(&handle, &id).await?;
    Ok(Json(handle.cancel_task(task).await?))
}

/// From where on events are wanted.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct EventsQuery {
    after: Option<u64>,
}

/// Follows a task: what happened so far, or after a given event, then what happens, until it ends.
#[utoipa::path(
    get, path = "/aitp/tasks/{id}/events",
    params(
        ("id" = String, Path), ("after" = Option<u64>, Query, description = "Events with a larger number are sent; all of them without it"),
        ("Last-Event-ID" = Option<u64>, Header, description = "The same, as browsers send it when they connect again; it wins over `after`, which their address still has, and is passed over if it is no number")
    ),
    responses((status = 200, description = "Server-sent events", content_type = "text/event-stream", body = String))
)]
async fn events(
    State(handle): State<Handle>,
    Path(id): Path<String>,
    query: Result<Query<EventsQuery>, axum::extract::rejection::QueryRejection>,
    headers: HeaderMap,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, ApiError> {
    let Query(query) = query.map_err(|error| Failure::new(ErrorCode::InvalidRequest, error.body_text()))?;
    let task = named(&handle, &id).await?;
    Ok(replay(handle.task_events(task, after(&headers, query.after)).await?))
}
