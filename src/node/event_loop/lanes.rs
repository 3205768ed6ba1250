//! The loop's part in lanes and blobs: opening and serving them, and what the end of a lane says about a peer.

use std::collections::BTreeSet;
use std::sync::Arc;

use libp2p::Multiaddr;
use tokio::sync::oneshot;

use super::turn::{Ended, EventLoop, LANES_PER_PEER_MAX, LaneReply, fault};
use crate::mesh::lanes::{self, Lane, LaneEnd, Observers};
use crate::mesh::substreams::Direction;
use crate::model::{Failure, NodeId, Priority};
use crate::node::invocation::blobs;
use crate::node::invocation::execute::AgentsHere;
use crate::telemetry::Kind;

impl EventLoop {
    pub(super) fn open_lane(&mut self, node: NodeId, priority: Priority, reply: LaneReply) {
        if let Some(lane) = self.shared.lanes.get(node, priority) {
            let _ = reply.send(Ok(lane));
            return;
        }
        let waiters = self.lane_waiters_by_node.entry(node).or_default();
        waiters.retain(|(_, waiter)| !waiter.is_closed());
        let first = !waiters.iter().any(|(of, _)| *of == priority);
        waiters.push((priority, reply));
        if !first {
            return;
        }
        if self.mesh.is_connected(node) {
            self.mesh.open_lane(node, priority);
        } else {
            let addresses = self.directory.entries().find(|entry| entry.record.node == node).map(|entry| entry.record.addresses.clone());
            let addresses: Vec<Multiaddr> = addresses.unwrap_or_default().iter().filter_map(|address| address.parse().ok()).collect();
            self.mesh.reach(node, &addresses, node);
        }
    }

    /// Tells everybody who waits for a lane to `node` that there will be none.
    pub(super) fn refuse_lanes(&mut self, node: NodeId, failure: &Failure) {
        for (_, waiter) in self.lane_waiters_by_node.remove(&node).unwrap_or_default() {
            let _ = waiter.send(Err(failure.clone()));
        }
    }

    /// A connection stands: opens the lanes that somebody waits for.
    pub(super) fn open_lanes_waited_for(&mut self, node: NodeId) {
        let waiters = self.lane_waiters_by_node.get(&node).into_iter().flatten();
        let priorities: BTreeSet<Priority> = waiters.map(|(priority, _)| *priority).collect();
        for priority in priorities {
            self.mesh.open_lane(node, priority);
        }
    }

    fn lane_opened(&mut self, lane: &Lane) {
        let Some(waiters) = self.lane_waiters_by_node.get_mut(&lane.node()) else { return };
        for (_, waiter) in waiters.extract_if(.., |(priority, _)| *priority == lane.priority()) {
            let _ = waiter.send(Ok(lane.clone()));
        }
        if waiters.is_empty() {
            self.lane_waiters_by_node.remove(&lane.node());
        }
    }

    pub(super) fn open_blob(&mut self, node: NodeId, reply: oneshot::Sender<libp2p::Stream>) {
        self.blob_waiters_by_tag.retain(|_, waiter| !waiter.is_closed());
        self.blobs_opened = self.blobs_opened.wrapping_add(1);
        self.blob_waiters_by_tag.insert(self.blobs_opened, reply);
        self.mesh.open_blob(node, self.blobs_opened);
    }

    pub(super) fn on_blob(&mut self, node: NodeId, direction: Direction, stream: libp2p::Stream) {
        match direction {
            Direction::Inbound => blobs::accept(&self.shared, node, stream),
            Direction::Outbound(tag) => {
                if let Some(waiter) = self.blob_waiters_by_tag.remove(&tag) {
                    let _ = waiter.send(stream);
                }
            }
        }
    }

    pub(super) fn on_lane(&mut self, node: NodeId, direction: Direction, stream: libp2p::Stream) {
        let (ended, clock) = (self.inputs.ended.0.clone(), self.shared.clock.zero());
        let observers = Observers { tally: self.mesh.tally(node), foreground: Arc::clone(&self.shared.foreground) };
        match direction {
            Direction::Outbound(tag) => {
                let Some(priority) = Priority::ALL.into_iter().find(|priority| *priority as u64 == tag) else { return };
                // Two may have been asked for while the first took long; one is enough.
                if let Some(lane) = self.shared.lanes.get(node, priority) {
                    self.lane_opened(&lane);
                    return;
                }
                let (lane, task) = Lane::new(node, priority, stream, clock, observers);
                self.shared.lanes.insert(lane.clone());
                tokio::spawn(async move {
                    let end = task.await;
                    let _ = ended.send(Ended::Called(node, end)).await;
                });
                self.lane_opened(&lane);
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
                    let violation = lanes::serve(node, stream, executor, calls_max, clock, drain, observers).await;
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
