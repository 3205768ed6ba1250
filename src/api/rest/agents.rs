//! Agents: those attached here, and all that the directory holds.

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};
use utoipa::IntoParams;

use super::super::ApiError;
use super::body::Body;
use super::types;
use crate::model::{CapabilityName, Definition, ErrorCode, Failure};
use crate::node::{AgentView, Handle};

/// Which agents are meant.
#[derive(Debug, Deserialize, IntoParams)]
pub(super) struct Filter {
    /// `local` (default) or `mesh`.
    scope: Option<String>,
    /// Only agents that offer this or something under it.
    capability: Option<String>,
}

/// Lists agents.
#[utoipa::path(get, path = "/v1/agents", params(Filter), responses((status = 200, description = "Records", body = Value)))]
pub(super) async fn list(State(handle): State<Handle>, Query(filter): Query<Filter>) -> Result<Json<Value>, ApiError> {
    let mesh = match filter.scope.as_deref() {
        None | Some("local") => false,
        Some("mesh") => true,
        Some(_) => return Err(Failure::new(ErrorCode::InvalidRequest, "scope is local or mesh").with("path", "scope").into()),
    };
    let name: Option<CapabilityName> = match filter.capability.map(|name| name.parse()).transpose() {
        Ok(name) => name,
        Err(error) => return Err(Failure::new(ErrorCode::InvalidRequest, error).with("path", "capability").into()),
    };
    let offers =
        |view: &AgentView| name.as_ref().is_none_or(|name| view.entry.record.capabilities.iter().any(|offered| offered.id.is_under(name)));
    let views = handle.agents().await?;
    let records: Vec<Value> =
        views.iter().filter(|view| (mesh || view.local) && offers(view)).map(|view| types::record(view, &[])).collect();
    Ok(Json(json!({ "agents": records })))
}

/// Attaches an agent and keeps its definition over restarts.
#[utoipa::path(
    post, path = "/v1/agents", request_body = Value,
    responses((status = 201, description = "Attached", body = Value), (status = 400, description = "Faulty definition", body = types::ErrorDocument), (status = 409, description = "Name taken"))
)]
pub(super) async fn attach(
    State(handle): State<Handle>,
    Body(definition): Body<Definition>,
) -> Result<(StatusCode, Json<Value>), ApiError> {
    let view = handle.attach(definition, false).await?;
    Ok((StatusCode::CREATED, Json(attached(&view))))
}

fn attached(view: &AgentView) -> Value {
    json!({ "agent_id": view.entry.record.agent, "record": types::record(view, &[]) })
}

/// Shows one agent with its schemas, by id, name, name@prefix or the beginning of its id.
#[utoipa::path(get, path = "/v1/agents/{id}", params(("id" = String, Path)), responses((status = 200, description = "Record", body = Value), (status = 404, description = "Unknown")))]
pub(super) async fn show(State(handle): State<Handle>, Path(id): Path<String>) -> Result<Json<Value>, ApiError> {
    let view = handle.agent(&id).await?;
    let schemas = handle.schemas(&view.entry).await;
    Ok(Json(types::record(&view, &schemas)))
}

/// Replaces an agent of this node; the definition's name must be the agent's.
#[utoipa::path(
    put, path = "/v1/agents/{id}", params(("id" = String, Path)), request_body = Value,
    responses((status = 200, description = "Replaced", body = Value), (status = 404, description = "Unknown"))
)]
pub(super) async fn replace(
    State(handle): State<Handle>,
    Path(id): Path<String>,
    Body(definition): Body<Definition>,
) -> Result<Json<Value>, ApiError> {
    let view = handle.agent(&id).await?;
    if !view.local || view.entry.record.name != definition.name {
        let message = format!("the definition names `{}`, the path names another agent", crate::model::printable(&definition.name, 64));
        return Err(Failure::new(ErrorCode::Conflict, message).into());
    }
    let view = handle.attach(definition, true).await?;
    Ok(Json(attached(&view)))
}

/// Detaches an agent of this node and forgets its definition.
#[utoipa::path(delete, path = "/v1/agents/{id}", params(("id" = String, Path)), responses((status = 204, description = "Detached"), (status = 404, description = "Unknown")))]
pub(super) async fn detach(State(handle): State<Handle>, Path(id): Path<String>) -> Result<StatusCode, ApiError> {
    handle.detach(&id).await?;
    Ok(StatusCode::NO_CONTENT)
}
