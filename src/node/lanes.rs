//! The lanes of this node by peer: one per peer, opened when the first call needs it.

use std::collections::BTreeMap;
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::oneshot;

use super::shared::{Command, Shared};
use crate::mesh::lanes::Lane;
use crate::model::{ErrorCode, Failure, NodeId};

/// How long connecting and opening a lane may take before the call goes elsewhere.
const OPEN_MAX: Duration = Duration::from_millis(1_500);

/// Open lanes.
#[derive(Debug, Default)]
pub(super) struct Lanes {
    lanes_by_node: RwLock<BTreeMap<NodeId, Lane>>,
}

impl Lanes {
    pub(super) fn get(&self, node: NodeId) -> Option<Lane> {
        let lanes = self.lanes_by_node.read().unwrap_or_else(PoisonError::into_inner);
        lanes.get(&node).filter(|lane| !lane.is_closed()).cloned()
    }

    pub(super) fn insert(&self, lane: Lane) {
        self.lanes_by_node.write().unwrap_or_else(PoisonError::into_inner).insert(lane.node(), lane);
    }

    /// Forgets the lane to `node` if it is closed.
    pub(super) fn remove_closed(&self, node: NodeId) {
        let mut lanes = self.lanes_by_node.write().unwrap_or_else(PoisonError::into_inner);
        if lanes.get(&node).is_some_and(Lane::is_closed) {
            lanes.remove(&node);
        }
    }

    /// Calls outstanding towards `node`.
    pub(super) fn outstanding(&self, node: NodeId) -> usize {
        self.get(node).map_or(0, |lane| lane.outstanding())
    }
}

/// The lane to `node`, opened if need be.
pub(super) async fn lane_to(shared: &Shared, node: NodeId) -> Result<Lane, Failure> {
    if let Some(lane) = shared.lanes.get(node) {
        return Ok(lane);
    }
    let (reply, answer) = oneshot::channel();
    let asked = shared.commands.try_send(Command::OpenLane { node, reply });
    asked.map_err(|_| Failure::new(ErrorCode::Busy, "this node is too busy to open lanes").with("retry_after_ms", 100))?;
    let unreachable = || Failure::new(ErrorCode::Unavailable, format!("node {} cannot be reached", node.short()));
    match tokio::time::timeout(OPEN_MAX, answer).await {
        Ok(Ok(opened)) => opened,
        Ok(Err(_)) | Err(_) => Err(unreachable()),
    }
}
