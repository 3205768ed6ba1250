//! The loop's part in lanes: opening them, serving them, and what their ends say about a peer.

use std::sync::Arc;

use libp2p::Multiaddr;
use tokio::sync::oneshot;

use super::turn::{Ended, EventLoop, LANES_PER_PEER_MAX, fault};
use crate::mesh::lanes::{self, Direction, Lane, LaneEnd};
use crate::model::{Failure, NodeId};
use crate::node::execute::AgentsHere;
use crate::telemetry::Kind;

impl EventLoop {
    pub(super) fn open_lane(&mut self, node: NodeId, reply: oneshot::Sender<Result<Lane, Failure>>) {
        if let Some(lane) = self.shared.lanes.get(node) {
            let _ = reply.send(Ok(lane));
            return;
        }
        let waiters = self.lane_waiters_by_node.entry(node).or_default();
        waiters.retain(|waiter| !waiter.is_closed());
        let first = waiters.is_empty();
        waiters.push(reply);
        if !first {
            return;
        }
        if self.mesh.is_connected(node) {
            self.mesh.open_lane(node);
        } else {
            let addresses = self.directory.entries().find(|entry| entry.record.node == node).map(|entry| entry.record.addresses.clone());
            let addresses: Vec<Multiaddr> = addresses.unwrap_or_default().iter().filter_map(|address| address.parse().ok()).collect();
            self.mesh.reach(node, &addresses, node);
        }
    }

    pub(super) fn refuse_lane(&mut self, node: NodeId, failure: &Failure) {
        for waiter in self.lane_waiters_by_node.remove(&node).unwrap_or_default() {
            let _ = waiter.send(Err(failure.clone()));
        }
    }

    pub(super) fn on_lane(&mut self, node: NodeId, direction: Direction, stream: libp2p::Stream) {
        let (ended, clock) = (self.inputs.ended.0.clone(), self.shared.clock.zero());
        match direction {
            Direction::Outbound => {
                // Two may have been asked for while the first took long; one is enough.
                let known = self.shared.lanes.get(node);
                if let Some(lane) = known {
                    for waiter in self.lane_waiters_by_node.remove(&node).unwrap_or_default() {
                        let _ = waiter.send(Ok(lane.clone()));
                    }
                    return;
                }
                let (lane, task) = Lane::new(node, stream, clock);
                self.shared.lanes.insert(lane.clone());
                tokio::spawn(async move {
                    let end = task.await;
                    let _ = ended.send(Ended::Called(node, end)).await;
                });
                for waiter in self.lane_waiters_by_node.remove(&node).unwrap_or_default() {
                    let _ = waiter.send(Ok(lane.clone()));
                }
            }
            Direction::Inbound => {
                let served = self.served_by_node.entry(node).or_default();
                if served.lanes >= LANES_PER_PEER_MAX {
                    self.shared.metrics.dropped(Kind::Lane, "too_many");
                    return;
                }
                served.lanes += 1;
                let here = AgentsHere { shared: Arc::clone(&self.shared), running: Arc::clone(&served.running) };
                let executor: Arc<dyn lanes::Executor> = Arc::new(here);
                let calls_max = usize::try_from(self.shared.config.limits.calls_per_peer_max).unwrap_or(1);
                let drain = self.shared.drain.clone();
                tokio::spawn(async move {
                    let violation = lanes::serve(node, stream, executor, calls_max, clock, drain).await;
                    let _ = ended.send(Ended::Served(node, violation)).await;
                });
            }
        }
    }

    pub(super) fn on_lane_ended(&mut self, ended: Ended) {
        match ended {
            Ended::Called(node, end) => {
                self.shared.lanes.remove_closed(node);
                match end {
                    LaneEnd::Closed => {}
                    LaneEnd::Silent => {
                        tracing::debug!(%node, "a lane fell silent while calls were outstanding");
                        self.directory.on_node_silent(node, self.now());
                        // The connection is as dead as the lane; a node that lives is dialled again.
                        self.mesh.disconnect(node, false);
                    }
                    LaneEnd::Violation(what) => self.penalise(node, fault::PROTOCOL, what),
                }
            }
            Ended::Served(node, violation) => {
                if let Some(served) = self.served_by_node.get_mut(&node) {
                    served.lanes = served.lanes.saturating_sub(1);
                    if served.lanes == 0 {
                        self.served_by_node.remove(&node);
                    }
                }
                if let Some(what) = violation {
                    self.shared.metrics.dropped(Kind::Lane, "violation");
                    self.penalise(node, fault::PROTOCOL, what);
                }
            }
        }
    }
}
