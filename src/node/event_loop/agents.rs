//! The loop's part in hosting: records and pulses of this node's agents go out.

use std::sync::Arc;
use std::time::Duration;

use serde_bytes::ByteBuf;

use super::turn::{EventLoop, Issued};
use crate::agents::{Change, Health};
use crate::model::{Now, Shard};
use crate::node::hosting;
use crate::wire::directory::{Gossip, GossipContent, Pulse, Record};
use crate::wire::{self, Verified};

impl EventLoop {
    pub(super) fn on_health(&mut self, change: &Change) {
        tracing::info!(agent = %change.agent, health = ?change.health, "agent health");
        self.hosting.on_health(change.agent, change.health == Health::Up);
        let now = self.now();
        self.issue_due(now.mono);
        self.pulse(now);
    }

    pub(super) fn issue_due(&mut self, now: Duration) {
        if self.mesh.listening().next().is_none() || self.leaving {
            return;
        }
        let addresses: Vec<String> = self.mesh.advertised().iter().map(ToString::to_string).collect();
        for agent in self.hosting.due(&self.shared.registry.all(), now) {
            self.hosting.begin(agent.id());
            let (shared, disk, addresses) = (Arc::clone(&self.shared), Arc::clone(&self.disk), addresses.clone());
            let issued = self.inputs.issued.0.clone();
            tokio::task::spawn_blocking(move || {
                let record = hosting::issue(&agent, &shared, &disk, addresses);
                let _ = issued.blocking_send(Issued { agent: agent.id(), record });
            });
        }
    }

    pub(super) fn on_issued(&mut self, issued: Issued) {
        let now = self.now();
        let attached = self.shared.registry.get(issued.agent).is_some();
        match issued.record {
            Ok(record) if attached => {
                let fresh = self.hosting.finish(issued.agent, Some(&record), now.mono);
                self.directory.handle_own_record(record.clone(), now);
                self.publish_record(&record);
                for name in fresh {
                    self.mesh.provide(&name);
                }
                self.pulse(now);
            }
            Ok(_) => drop(self.hosting.finish(issued.agent, None, now.mono)),
            Err(error) => {
                tracing::error!(agent = %issued.agent, error, "the agent cannot be advertised");
                self.hosting.finish(issued.agent, None, now.mono);
            }
        }
    }

    pub(super) fn publish_record(&mut self, record: &Verified<Record>) {
        for shard in record.shards() {
            self.publish(shard, GossipContent::Record(ByteBuf::from(record.bytes())));
        }
    }

    pub(super) fn publish(&mut self, shard: Shard, content: GossipContent) {
        match wire::encode(&Gossip { shard: shard.number(), content }) {
            Ok(bytes) => self.mesh.publish(shard, bytes),
            Err(error) => tracing::error!(%error, "cannot be gossiped"),
        }
    }

    pub(super) fn pulse(&mut self, now: Now) {
        let agents = self.shared.registry.all();
        if let Some(pulse) = self.hosting.pulse(&agents, &self.shared, self.leaving, now) {
            self.send_pulse(pulse);
        }
    }

    pub(super) fn send_pulse(&mut self, pulse: Verified<Pulse>) {
        for shard in self.hosting.take_shards() {
            self.publish(shard, GossipContent::Pulse(ByteBuf::from(pulse.bytes())));
        }
        self.directory.handle_own_pulse(pulse);
    }
}
