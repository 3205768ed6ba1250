//! The node itself.

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use serde_json::{Value, json};

use super::super::ApiError;
use crate::node::{Handle, State as NodeState};

/// Who the node is and how it is.
#[utoipa::path(get, path = "/v1/node", responses((status = 200, description = "Identity, addresses, version, counts", body = Value)))]
pub(super) async fn node(State(handle): State<Handle>) -> Result<Json<Value>, ApiError> {
    let view = handle.node().await?;
    Ok(Json(json!(view)))
}

/// Who is connected. `calls` says what the calls to and from each peer came to since it connected: how many were `sent` to it and how many
/// `received` from it, how many of those sent have `failed` (refused, failed, lost, or late; not those that their caller took back), and the
/// mean `latency_ms` of those sent that succeeded, null before the first.
#[utoipa::path(get, path = "/v1/peers", responses((status = 200, description = "Connected peers, each with the figures of its calls", body = Value)))]
pub(super) async fn peers(State(handle): State<Handle>) -> Result<Json<Value>, ApiError> {
    let peers = handle.peers().await?;
    let row = |(peer, agents): &(crate::node::Peer, usize)| {
        let addresses: Vec<String> = peer.addresses.iter().map(ToString::to_string).collect();
        let transport = if addresses.first().is_some_and(|address| address.contains("/quic")) { "quic" } else { "tcp" };
        json!({
            "node_id": peer.node,
            "addresses": addresses,
            "direction": if peer.outbound { "outbound" } else { "inbound" },
            "transport": transport,
            "rtt_ms": peer.rtt.map(|rtt| rtt.as_secs_f64() * 1_000.0),
            "agents": agents,
            "connected_ms": u64::try_from(peer.connected.as_millis()).unwrap_or(u64::MAX),
            "agent_version": peer.program,
            "calls": {
                "sent": peer.calls.sent,
                "received": peer.calls.received,
                "failed": peer.calls.failed,
                "latency_ms": peer.calls.latency.map(|latency| latency.as_secs_f64() * 1_000.0),
            },
        })
    };
    Ok(Json(json!({ "peers": peers.iter().map(row).collect::<Vec<_>>() })))
}

/// What is wrong and how to mend it.
#[utoipa::path(get, path = "/v1/doctor", responses((status = 200, description = "Checks with remedies", body = Value)))]
pub(super) async fn doctor(State(handle): State<Handle>) -> Result<Json<Value>, ApiError> {
    Ok(Json(json!({ "checks": handle.doctor().await? })))
}

/// Whether the process lives. Needs no token.
#[utoipa::path(get, path = "/health", responses((status = 200, description = "It does", body = Value)))]
pub(super) async fn health() -> Json<Value> {
    Json(json!({ "status": "ok" }))
}

/// Whether the node takes part: the mesh is joined, or the node is alone by choice.
#[utoipa::path(get, path = "/ready", responses((status = 200, description = "It does", body = Value), (status = 503, description = "Not yet")))]
pub(super) async fn ready(State(handle): State<Handle>) -> impl IntoResponse {
    let state = handle.state();
    let status = match state {
        NodeState::Ready | NodeState::Alone => StatusCode::OK,
        NodeState::Joining | NodeState::Draining => StatusCode::SERVICE_UNAVAILABLE,
    };
    (status, Json(json!({ "state": state })))
}

/// Counters for Prometheus.
#[utoipa::path(get, path = "/metrics", responses((status = 200, description = "OpenMetrics text", body = String)))]
pub(super) async fn metrics(State(handle): State<Handle>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], handle.metrics())
}
