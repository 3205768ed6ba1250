//! Trust: what the node believes of agents, the receipts behind it, and whose word counts.

use axum::Json;
use axum::extract::{Path, Query, State};
use serde::Deserialize;
use serde_json::{Value, json};
use utoipa::IntoParams;

use super::super::ApiError;
use super::types::{self, ErrorDocument, as_agent_id};
use crate::node::explain::round;
use crate::node::{Handle, PinView, Pinned, ReceiptView};

/// What the node has learnt about agents from its own calls, and heard in receipts that count.
#[utoipa::path(get, path = "/v1/trust", responses((status = 200, description = "Trust per agent and capability", body = Value)))]
pub(super) async fn trust(State(handle): State<Handle>) -> Result<Json<Value>, ApiError> {
    let rows: Vec<Value> = handle.trust().await?.iter().map(types::trust).collect();
    Ok(Json(json!({ "agents": rows })))
}

/// Whose receipts are meant.
#[derive(Debug, Deserialize, IntoParams)]
pub(super) struct About {
    /// Only receipts about this agent: id, name, name@prefix, or the beginning of its id.
    agent: Option<String>,
}

/// Lists receipts and whether they count; connected peers are asked for theirs first.
#[utoipa::path(
    get, path = "/v1/trust/receipts", params(About),
    responses((status = 200, description = "Receipts", body = Value), (status = 404, description = "Unknown agent", body = ErrorDocument))
)]
pub(super) async fn receipts(State(handle): State<Handle>, Query(about): Query<About>) -> Result<Json<Value>, ApiError> {
    let agent = match about.agent {
        None => None,
        // Receipts may outlive the record of their agent, so an id need not be known.
        Some(which) => match as_agent_id(&which) {
            Some(agent) => Some(agent),
            None => Some(handle.agent(&which).await?.entry.record.agent),
        },
    };
    let rows: Vec<Value> = handle.receipts(agent).await?.iter().map(receipt).collect();
    Ok(Json(json!({ "receipts": rows })))
}

fn receipt(view: &ReceiptView) -> Value {
    let receipt = &view.receipt;
    json!({
        "issuer": receipt.issuer,
        "agent_id": receipt.agent,
        "name": view.name,
        "capability": receipt.capability,
        "window": { "start": receipt.window_start.to_string(), "end": receipt.window_end.to_string() },
        "successes": receipt.successes,
        "failures": receipt.failures,
        "latency_ms": receipt.latency_ms.map(|ms| round(ms, 3)),
        "issued_at": receipt.issued_at.to_string(),
        "expires_at": receipt.expires_at.to_string(),
        "own": view.is_own(),
        "counted": view.is_counted(),
        "counted_calls": round(view.calls, 2),
        "reason": view.reason(),
    })
}

/// Lists the nodes whose receipts count.
#[utoipa::path(get, path = "/v1/trust/pins", responses((status = 200, description = "Pinned nodes", body = Value)))]
pub(super) async fn pins(State(handle): State<Handle>) -> Result<Json<Value>, ApiError> {
    let rows: Vec<Value> = handle.pins().await?.iter().map(pin_row).collect();
    Ok(Json(json!({ "pins": rows })))
}

fn pin_row(view: &PinView) -> Value {
    let source = match view.pinned {
        Pinned::Configured => "configuration",
        Pinned::Added => "command",
    };
    json!({ "node_id": view.node, "source": source, "connected": view.connected, "receipts": view.receipts })
}

/// Lets the receipts of a node count, over restarts too. The node is named by its id or, if it is known here, by an unambiguous end of it.
#[utoipa::path(
    put, path = "/v1/trust/pins/{node}", params(("node" = String, Path)),
    responses((status = 200, description = "Pinned", body = Value), (status = 400, description = "Not the id of another node", body = ErrorDocument))
)]
pub(super) async fn pin(State(handle): State<Handle>, Path(node): Path<String>) -> Result<Json<Value>, ApiError> {
    set(&handle, &node, true).await
}

/// Lets the receipts of a node count no longer.
#[utoipa::path(
    delete, path = "/v1/trust/pins/{node}", params(("node" = String, Path)),
    responses((status = 200, description = "Not pinned", body = Value), (status = 409, description = "Pinned by the configuration", body = ErrorDocument))
)]
pub(super) async fn unpin(State(handle): State<Handle>, Path(node): Path<String>) -> Result<Json<Value>, ApiError> {
    set(&handle, &node, false).await
}

async fn set(handle: &Handle, node: &str, pinned: bool) -> Result<Json<Value>, ApiError> {
    let node = handle.node_named(node).await?;
    let changed = handle.set_pin(node, pinned).await?;
    Ok(Json(json!({ "node_id": node, "pinned": pinned, "changed": changed })))
}
