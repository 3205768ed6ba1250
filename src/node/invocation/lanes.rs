//! The lanes of this node: one per peer and priority, opened when the first call needs it. A node to which none can be opened in time is
//! down for all that is known, but not if it was the caller's deadline that left no time.

use std::collections::BTreeMap;
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::oneshot;

use crate::mesh::lanes::Lane;
use crate::model::{ErrorCode, Failure, NodeId, Priority};
use crate::node::shared::{Command, Shared};

/// How long connecting and opening a lane may take before the call goes elsewhere.
const OPEN_MAX: Duration = Duration::from_millis(1_500);

/// Open lanes.
#[derive(Debug, Default)]
pub(in crate::node) struct Lanes {
    lanes_by_node: RwLock<BTreeMap<NodeId, [Option<Lane>; Priority::ALL.len()]>>,
}

impl Lanes {
    pub(in crate::node) fn get(&self, node: NodeId, priority: Priority) -> Option<Lane> {
        let lanes = self.lanes_by_node.read().unwrap_or_else(PoisonError::into_inner);
        lanes.get(&node)?.get(priority as usize)?.as_ref().filter(|lane| !lane.is_closed()).cloned()
    }

    pub(in crate::node) fn insert(&self, lane: Lane) {
        let mut lanes = self.lanes_by_node.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = lanes.entry(lane.node()).or_default().get_mut(lane.priority() as usize) {
            *place = Some(lane);
        }
    }

    /// Forgets the lanes to `node` that are closed.
    pub(in crate::node) fn remove_closed(&self, node: NodeId) {
        let mut lanes = self.lanes_by_node.write().unwrap_or_else(PoisonError::into_inner);
        let Some(places) = lanes.get_mut(&node) else { return };
        for place in places.iter_mut() {
            place.take_if(|lane| lane.is_closed());
        }
        if places.iter().all(Option::is_none) {
            lanes.remove(&node);
        }
    }

    /// Calls outstanding towards `node`.
    pub(in crate::node) fn outstanding(&self, node: NodeId) -> usize {
        let lanes = self.lanes_by_node.read().unwrap_or_else(PoisonError::into_inner);
        lanes.get(&node).into_iter().flatten().flatten().map(Lane::outstanding).sum()
    }
}

/// The lane to `node` for calls of this priority, opened if need be.
pub(super) async fn lane_to(shared: &Shared, node: NodeId, priority: Priority, deadline: Duration) -> Result<Lane, Failure> {
    if let Some(lane) = shared.lanes.get(node, priority) {
        return Ok(lane);
    }
    let (reply, answer) = oneshot::channel();
    let asked = shared.commands.try_send(Command::OpenLane { node, priority, reply });
    asked.map_err(|_| Failure::new(ErrorCode::Busy, "this node is too busy to open lanes").with("retry_after_ms", 100))?;
    let left = deadline.saturating_sub(shared.mono());
    match tokio::time::timeout(left.min(OPEN_MAX), answer).await {
        Ok(Ok(opened)) => opened,
        // Of a node for which its caller had no time nothing is known; it must not pass for one that is down.
        Err(_) if left < OPEN_MAX => {
            let message = format!("no lane to node {} could be opened before the deadline", node.short());
            Err(Failure::new(ErrorCode::Timeout, message))
        }
        Ok(Err(_)) | Err(_) => Err(Failure::new(ErrorCode::Unavailable, format!("node {} cannot be reached", node.short()))),
    }
}
