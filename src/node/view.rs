//! The node as clients see it.

use std::sync::Arc;

use futures::Stream;
use serde::Serialize;
use serde_json::{Value, json};

use crate::model::{AgentId, Failure, NodeId, Timestamp};

/// One of the events of something that keeps them, so that they can be told again.
#[derive(Debug, Clone)]
pub struct NumberedEvent {
    /// Which of them, from 0.
    pub index: u64,
    /// What clients call it.
    pub name: &'static str,
    /// All of it.
    pub data: Value,
}

/// Such events from one of them on, and then as they come.
pub type EventStream = std::pin::Pin<Box<dyn Stream<Item = Result<NumberedEvent, Failure>> + Send>>;

/// How far the node has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Looking for its bootstrap peers.
    Joining,
    /// Part of a mesh.
    Ready,
    /// Alone by choice.
    Alone,
    /// Stopping.
    Draining,
}

/// `GET /v1/node`.
#[derive(Debug, Clone, Serialize)]
pub struct NodeView {
    /// Who it is.
    pub node_id: NodeId,
    /// What people call it.
    pub name: String,
    /// Version of the program.
    pub version: &'static str,
    /// Family of protocols.
    pub protocol: &'static str,
    /// When it started.
    pub started_at: String,
    /// How long ago, in milliseconds.
    pub uptime_ms: u64,
    /// Where it listens.
    pub listen: Vec<String>,
    /// What its records say about where it listens.
    pub advertised: Vec<String>,
    /// Whether it takes part.
    pub ready: bool,
    /// How far it has come.
    pub state: State,
    /// Sizes.
    pub counts: Counts,
}

/// Sizes of a node.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Counts {
    /// Connected peers.
    pub peers: usize,
    /// Agents attached here.
    pub agents_local: usize,
    /// Agents in the directory.
    pub agents_mesh: usize,
    /// Calls that clients wait for.
    pub calls_in_flight: usize,
    /// Peers in the DHT's routing table.
    pub dht_peers: usize,
}

/// How a check of `doctor` went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Well.
    Ok,
    /// Worth a look.
    Warn,
    /// Broken.
    Fail,
}

/// One check of `doctor`.
#[derive(Debug, Clone, Serialize)]
pub struct Check {
    /// What was looked at.
    pub name: &'static str,
    /// How it is.
    pub level: Level,
    /// What was found.
    pub message: String,
    /// What to do.
    pub remedy: Option<String>,
}

/// Something happened on the node (`GET /v1/events`).
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// It takes part in the mesh.
    Ready(NodeId),
    /// A peer is connected.
    PeerConnected(NodeId),
    /// A peer is gone.
    PeerDisconnected(NodeId),
    /// An agent can be called.
    AgentUp {
        /// Which.
        agent: AgentId,
        /// Its name.
        name: String,
        /// Where.
        node: Option<NodeId>,
    },
    /// An agent cannot be called any more.
    AgentDown {
        /// Which.
        agent: AgentId,
        /// Its name.
        name: String,
        /// Where.
        node: Option<NodeId>,
    },
    /// A peer was banned.
    PeerBanned(NodeId, &'static str),
    /// A task of this node has ended; its row in the list.
    TaskEnded(Arc<Value>),
    /// A shared context has changed (AMP 4).
    ContextUpdate(Arc<Value>),
    /// The node stops.
    Draining(Timestamp),
}

impl Event {
    /// The event's name and data on the stream.
    pub fn parts(&self) -> (&'static str, Value) {
        match self {
            Self::Ready(node) => ("ready", json!({ "node_id": node })),
            Self::PeerConnected(node) => ("peer_connected", json!({ "node_id": node })),
            Self::PeerDisconnected(node) => ("peer_disconnected", json!({ "node_id": node })),
            Self::AgentUp { agent, name, node } => ("agent_up", json!({ "agent_id": agent, "name": name, "node_id": node })),
            Self::AgentDown { agent, name, node } => ("agent_down", json!({ "agent_id": agent, "name": name, "node_id": node })),
            Self::PeerBanned(node, reason) => ("peer_banned", json!({ "node_id": node, "reason": reason })),
            Self::TaskEnded(row) => ("task_ended", row.as_ref().clone()),
            Self::ContextUpdate(update) => ("context_update", update.as_ref().clone()),
            Self::Draining(at) => ("draining", json!({ "at": at.to_string() })),
        }
    }
}
