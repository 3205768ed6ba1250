//! What peers do: connections, gossip, and the control protocol.

use std::sync::Arc;
use std::time::Duration;

use libp2p::Multiaddr;
use libp2p::gossipsub::MessageAcceptance;
use serde_bytes::ByteBuf;

use super::turn::{Asked, CONTROL_RATE, EventLoop, REPROVIDE_PEERS_MAX, fault};
use crate::mesh::substreams::OpenError;
use crate::mesh::{ControlId, Event, ReplyTo, Stamp};
use crate::model::{AgentId, ErrorCode, Failure, NodeId, Now, Shard};
use crate::node::context;
use crate::node::gossip::{self, Document, Purpose, Report, VERIFYING_MAX};
use crate::node::invocation::offers;
use crate::node::shared::Command;
use crate::node::view::Event as NodeEvent;
use crate::proto::directory::{Digest, Verdict};
use crate::proto::invocation::offer;
use crate::proto::peers::rate::{Rate, whole_ms};
use crate::telemetry::Kind;
use crate::wire::directory::{ANSWERS_MAX, Control, FETCH_MAX, Gossip, GossipContent, Pulse, Query, Record, Reply, SchemaHash};
use crate::wire::offer::{Inquiry, Offers};
use crate::wire::{self, Document as _, Signed, Verified};

/// Room left in a reply for what stands around its documents.
const REPLY_SPARE_BYTES: usize = 4 * 1024;
/// Room that a document takes beside its own bytes.
const DOCUMENT_SPARE_BYTES: usize = 8;
/// When to come back with a question about contexts that there is no room for.
const CONTEXT_PAUSE_MS: u64 = 200;

impl EventLoop {
    pub(super) fn on_mesh(&mut self, event: Event) {
        let now = self.now();
        match event {
            Event::Listening(address) => {
                tracing::info!(%address, "listening");
                for agent in self.shared.registry.all() {
                    self.hosting.expire(agent.id());
                }
            }
            Event::ListenFailed(reason) => tracing::error!(reason, "a listener is gone"),
            Event::Connected { node, address } => self.on_connected(node, &address),
            Event::Disconnected { node, in_order } => self.on_disconnected(node, in_order, now),
            Event::Silent(node) => {
                self.bootstrap.on_silent(node);
                self.directory.on_node_silent(node, now);
            }
            Event::JoinFailed(address, reason) => {
                tracing::info!(%address, reason, "a bootstrap peer did not answer; trying again");
                self.bootstrap.on_dial_failed(&address, now.mono, &mut self.rng);
            }
            Event::ReachFailed(node, reason) => {
                tracing::debug!(%node, reason, "a node cannot be reached");
                self.directory.on_dial_failed(node, now);
                self.dialled(node);
                self.refuse_lanes(
                    node,
                    &Failure::new(ErrorCode::Unavailable, format!("node {} cannot be reached: {reason}", node.short())),
                );
            }
            Event::Proven(node) => self.on_proven(node),
            Event::Foreign(node, family) => {
                tracing::info!(%node, family, "a peer speaks another protocol or version");
                self.mesh.disconnect(node, false);
            }
            Event::Gossip { stamp, from, shard, data } => self.on_gossip(stamp, from, shard, &data, now),
            Event::Request { node, to, request } => self.on_request(node, to, request, now),
            Event::Reply { id, node, reply } => self.on_reply(id, node, reply, now),
            Event::Providers { search, nodes, done } => {
                let Some((number, name)) = self.names_by_lookup.get(&search).cloned() else { return };
                if done {
                    self.names_by_lookup.remove(&search);
                }
                self.with_search(number, |machine, outputs| machine.on_providers(&name, nodes, done, outputs));
            }
            Event::Lane { node, direction, stream } => self.on_lane(node, direction, stream),
            Event::LaneFailed(node, _, error) => {
                let failure = match error {
                    OpenError::Unsupported => Failure::new(ErrorCode::VersionUnsupported, format!("node {}: {error}", node.short())),
                    OpenError::NotConnected | OpenError::Failed => {
                        Failure::new(ErrorCode::Unavailable, format!("no lane to node {}: {error}", node.short()))
                    }
                };
                self.refuse_lanes(node, &failure);
            }
            Event::Blob { node, direction, stream } => self.on_blob(node, direction, stream),
            Event::BlobFailed(_, tag, _) => drop(self.blob_waiters_by_tag.remove(&tag)),
            Event::Misbehaved(node, what) => self.penalise(node, fault::PROTOCOL, what),
        }
    }

    pub(super) fn on_connected(&mut self, node: NodeId, address: &Multiaddr) {
        tracing::info!(%node, %address, "connected");
        self.bootstrap.on_connected(node, address);
        self.directory.on_connected(node);
        self.shared.publish(NodeEvent::PeerConnected(node));
        self.dialled(node);
        self.open_lanes_waited_for(node);
        self.compatible.insert(node);
        self.receipts_connected(node);
        self.shared.results_by_key.on_home_connected(node);
        self.ask_digest(node);
        // Gossip reaches a new peer only from the next heartbeat on; until then it learns from the digest.
        self.hosting.hurry();
    }

    pub(super) fn on_disconnected(&mut self, node: NodeId, in_order: bool, now: Now) {
        tracing::info!(%node, in_order, "disconnected");
        self.compatible.remove(&node);
        self.receipts_disconnected(node);
        self.bootstrap.on_disconnected(node, now.mono, &mut self.rng);
        self.directory.on_disconnected(node, in_order, now);
        self.shared.publish(NodeEvent::PeerDisconnected(node));
        self.refuse_lanes(node, &Failure::new(ErrorCode::Unavailable, format!("node {} disconnected", node.short())));
    }

    pub(super) fn on_proven(&mut self, node: NodeId) {
        self.proven_len += 1;
        if self.proven_len <= REPROVIDE_PEERS_MAX {
            self.reprovide_at = Some(self.now().mono.saturating_add(Duration::from_millis(200)));
        }
        let dialled = self.mesh.dialled_addresses(node);
        let addresses: Vec<String> = dialled.iter().map(|address| format!("{address}/p2p/{node}")).collect();
        self.bootstrap.on_dialled(node, addresses.iter().filter_map(|address| address.parse().ok()).collect());
        let (disk, wall) = (Arc::clone(&self.disk), self.now().wall);
        tokio::task::spawn_blocking(move || disk.remember(&node, addresses, wall));
    }

    pub(super) fn on_gossip(&mut self, stamp: Stamp, from: NodeId, shard: u8, data: &[u8], now: Now) {
        let claimed = match claim(shard, data) {
            Ok(claimed) => claimed,
            Err(error) => {
                tracing::debug!(%from, %error, "a gossip message was refused");
                self.shared.metrics.dropped(Kind::Gossip, error.label());
                // A later release is not malformed, and whoever passes it on is not to blame.
                if matches!(error, wire::Error::Version { .. }) {
                    self.mesh.judge(&stamp, MessageAcceptance::Ignore);
                    return;
                }
                self.mesh.judge(&stamp, MessageAcceptance::Reject);
                self.penalise(from, fault::MALFORMED, "malformed gossip");
                return;
            }
        };
        let verdict = match &claimed {
            Document::Record(record) if !record.unverified().shards().contains(&Shard::new(shard)) => Verdict::Reject("on a foreign shard"),
            Document::Record(record) => self.directory.screen(record.unverified(), now),
            Document::Pulse(pulse) => self.directory.screen_pulse(pulse.unverified(), now),
        };
        match verdict {
            Verdict::Accept if self.verifying >= VERIFYING_MAX => {
                self.shared.metrics.dropped(Kind::Gossip, "busy");
                self.mesh.judge(&stamp, MessageAcceptance::Ignore);
            }
            Verdict::Accept => {
                self.verifying += 1;
                gossip::verify(stamp, from, claimed, self.inputs.reports.0.clone());
            }
            Verdict::Ignore(reason) => {
                tracing::trace!(%from, reason, "a gossip message was dropped");
                self.shared.metrics.dropped(Kind::Document, "ignored");
                self.mesh.judge(&stamp, MessageAcceptance::Ignore);
            }
            Verdict::Reject(reason) => {
                self.shared.metrics.dropped(Kind::Document, "rejected");
                self.mesh.judge(&stamp, MessageAcceptance::Reject);
                self.penalise(from, fault::MALFORMED, reason);
            }
        }
    }

    pub(super) fn on_report(&mut self, report: Report) {
        let now = self.now();
        match report {
            Report::Gossip { stamp, from, document } => {
                self.verifying = self.verifying.saturating_sub(1);
                let verdict = match document {
                    Ok(Document::Record(record)) => self.directory.on_record(*record, now),
                    Ok(Document::Pulse(pulse)) => self.directory.on_pulse(*pulse, now),
                    Err(error) => {
                        self.shared.metrics.dropped(Kind::Document, error.label());
                        self.mesh.judge(&stamp, MessageAcceptance::Reject);
                        self.penalise(from, fault::SIGNATURE, "a document with a wrong signature");
                        return;
                    }
                };
                // Others may have come first while this one was verified.
                let acceptance = match verdict {
                    Verdict::Accept => MessageAcceptance::Accept,
                    Verdict::Ignore(_) => {
                        self.shared.metrics.dropped(Kind::Document, "ignored");
                        MessageAcceptance::Ignore
                    }
                    Verdict::Reject(_) => {
                        self.shared.metrics.dropped(Kind::Document, "rejected");
                        MessageAcceptance::Reject
                    }
                };
                self.mesh.judge(&stamp, acceptance);
            }
            Report::Receipts(batch) => self.on_receipts(batch),
            Report::Signed(receipts) => self.on_signed(receipts),
            Report::Words { node, to, words } => self.on_words_said(node, to, words),
            Report::Batch { from, purpose, records, pulses, bad } => self.on_batch(from, purpose, records, pulses, bad, now),
        }
    }

    pub(super) fn on_batch(
        &mut self,
        from: NodeId,
        purpose: Purpose,
        records: Vec<Verified<Record>>,
        pulses: Vec<Verified<Pulse>>,
        bad: usize,
        now: Now,
    ) {
        if bad > 0 {
            self.shared.metrics.dropped(Kind::Document, "signature");
            self.penalise(from, fault::SIGNATURE, "documents that do not hold in a reply");
        }
        let answers_query = matches!(purpose, Purpose::Search(_));
        for record in records {
            // Only a node itself knows which of its agents answer a query.
            if !answers_query || record.node == from {
                self.directory.on_record(record, now);
            }
        }
        for pulse in pulses {
            self.directory.on_pulse(pulse, now);
        }
        match purpose {
            Purpose::Search(number) => {
                // Hosts that are dialled because of this answer are waited for, so they must be known before it is counted.
                if self.mesh.is_connected(from) {
                    self.directory.on_connected(from);
                }
                self.settle();
                self.with_search(number, |machine, outputs| machine.on_answer(from, outputs));
            }
            Purpose::Repair => self.repairs_running = self.repairs_running.saturating_sub(1),
        }
    }

    pub(super) fn ask_digest(&mut self, node: NodeId) {
        if self.shared.config.mesh.gossip && !self.leaving {
            let id = self.mesh.ask(node, Control::Digest(ByteBuf::from(self.directory.digest().to_bytes())));
            self.asked_by_control.insert(id, Asked::Digest);
            self.repairs_running += 1;
        }
    }

    pub(super) fn on_request(&mut self, node: NodeId, to: ReplyTo, request: Result<Control, wire::Error>, now: Now) {
        let request = match request {
            Ok(request) => request,
            Err(error) => {
                self.shared.metrics.dropped(Kind::Control, error.label());
                self.mesh.reply(to, Reply::Refused(crate::model::printable(&error.to_string(), 150)));
                self.penalise(node, fault::MALFORMED, "a malformed control request");
                return;
            }
        };
        let rate = Rate::new(CONTROL_RATE.0, CONTROL_RATE.1);
        if let Err(wait) = self.limiter.check(node, rate, now.mono) {
            self.shared.metrics.dropped(Kind::Control, "rate");
            self.mesh.reply(to, Reply::Busy { retry_after_ms: whole_ms(wait) });
            return;
        }
        let reply = match request {
            Control::Find(query) => self.answer_peer(&query, now),
            Control::Digest(_) if !self.shared.config.mesh.gossip => Reply::Differences { held: Vec::new(), more: false },
            Control::Digest(hashes) => match Digest::from_bytes(&hashes) {
                Some(theirs) => {
                    let (held, more) = self.directory.differences(&theirs);
                    Reply::Differences { held, more }
                }
                None => Reply::Refused("the digest does not have 256 hashes".to_owned()),
            },
            Control::Fetch(agents) => self.documents(&agents),
            Control::Schemas(hashes) => Reply::Schemas(hashes.iter().map(|hash| self.schema_text(*hash)).collect()),
            Control::Receipts(agents) => self.answer_receipts(&agents, now),
            Control::Offers(inquiry) => Reply::Offers(offers::answer(&self.shared, &inquiry)),
            Control::Context(question) => return self.answer_context(node, to, question),
            Control::Results(results) => return self.on_results(node, to, results),
        };
        self.mesh.reply(to, reply);
    }

    /// Answers a question about contexts beside the loop: disk and signatures take their time.
    fn answer_context(&mut self, node: NodeId, to: ReplyTo, question: ByteBuf) {
        let Some(room) = self.shared.context_questions.begin(node) else {
            self.shared.metrics.dropped(Kind::Control, "busy");
            self.mesh.reply(to, Reply::Busy { retry_after_ms: CONTEXT_PAUSE_MS });
            return;
        };
        let shared = Arc::clone(&self.shared);
        tokio::spawn(async move {
            let reply = Box::new(context::answer(Arc::clone(&shared), node, question).await);
            drop(room);
            // Without a loop there is no peer either.
            let _ = shared.commands.send(Command::Answer { to, reply }).await;
        });
    }

    pub(super) fn schema_text(&self, hash: SchemaHash) -> String {
        self.shared.schemas.get(hash).and_then(|known| serde_json::to_string(&*known.text).ok()).unwrap_or_default()
    }

    /// This node's own agents that answer a peer's query.
    pub(super) fn answer_peer(&self, query: &Query, now: Now) -> Reply {
        let ledger = self.shared.ledger.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        let answer = self.directory.query_hosted(query, self.shared.node(), &ledger, now.mono);
        drop(ledger);
        let agents: Vec<AgentId> = answer.candidates.iter().map(|candidate| candidate.agent()).take(ANSWERS_MAX).collect();
        self.documents(&agents)
    }

    pub(super) fn documents(&self, agents: &[AgentId]) -> Reply {
        let (records, pulses) = self.directory.documents(agents);
        // What does not fit is asked for again by the next digest.
        let mut room = Reply::BYTES_MAX - REPLY_SPARE_BYTES;
        let mut fits = |bytes: &[u8]| {
            let left = room.checked_sub(bytes.len() + DOCUMENT_SPARE_BYTES);
            room = left.unwrap_or(room);
            left.is_some()
        };
        let records: Vec<_> = records.iter().filter(|record| fits(record.bytes())).map(|record| ByteBuf::from(record.bytes())).collect();
        let pulses = pulses.iter().take(FETCH_MAX).filter(|pulse| fits(pulse.bytes()));
        Reply::Records { pulses: pulses.map(|pulse| ByteBuf::from(pulse.bytes())).collect(), records }
    }

    /// What a node's answer to `inquiry` is worth.
    fn offers_of(&mut self, node: NodeId, inquiry: &Inquiry, reply: Result<Reply, String>) -> Result<Offers, Failure> {
        let unusable = |why: &str| Failure::new(ErrorCode::Unavailable, format!("node {} made no offers: {why}", node.short()));
        match reply {
            Ok(Reply::Offers(offers)) => match offer::fault(inquiry, &offers) {
                None => Ok(offers),
                Some(what) => {
                    self.penalise(node, fault::PROTOCOL, what);
                    Err(unusable(what))
                }
            },
            Ok(Reply::Busy { retry_after_ms }) => {
                let message = format!("node {} is asked too often", node.short());
                Err(Failure::new(ErrorCode::RateLimitExceeded, message).with("retry_after_ms", retry_after_ms))
            }
            Ok(Reply::Refused(reason)) => Err(unusable(&reason)),
            Ok(
                Reply::Records { .. }
                | Reply::Differences { .. }
                | Reply::Schemas(_)
                | Reply::Receipts(_)
                | Reply::Context(_)
                | Reply::Results(_),
            ) => Err(unusable("another answer than offers")),
            Err(reason) => Err(unusable(&reason)),
        }
    }

    pub(super) fn on_reply(&mut self, id: ControlId, node: NodeId, reply: Result<Reply, String>, now: Now) {
        let Some(asked) = self.asked_by_control.remove(&id) else { return };
        let reports = self.inputs.reports.0.clone();
        match (asked, reply) {
            (Asked::Search(number), Ok(Reply::Records { records, pulses })) => {
                gossip::verify_batch(node, Purpose::Search(number), records, pulses, reports);
            }
            (Asked::Search(number), _) => self.with_search(number, |machine, outputs| machine.on_answer(node, outputs)),
            (Asked::Digest, Ok(Reply::Differences { held, more })) => {
                self.repairs_running = self.repairs_running.saturating_sub(1);
                let missing = self.directory.missing(&held);
                for agents in missing.chunks(FETCH_MAX) {
                    let id = self.mesh.ask(node, Control::Fetch(agents.to_vec()));
                    self.asked_by_control.insert(id, Asked::Fetch);
                    self.repairs_running += 1;
                }
                if more && !missing.is_empty() {
                    self.repair_at = now.mono.saturating_add(Duration::from_secs(1));
                }
            }
            (Asked::Fetch, Ok(Reply::Records { records, pulses })) => gossip::verify_batch(node, Purpose::Repair, records, pulses, reports),
            (Asked::Digest | Asked::Fetch, reply) => {
                tracing::debug!(%node, reply = ?reply.err(), "a digest exchange failed");
                self.repairs_running = self.repairs_running.saturating_sub(1);
            }
            (Asked::Receipts(answered), reply) => self.on_receipts_reply(node, reply, answered, now),
            (Asked::Schemas(waiter), Ok(Reply::Schemas(schemas))) => drop(waiter.send(Ok(schemas))),
            (Asked::Schemas(waiter), reply) => {
                let reason = reply.err().unwrap_or_else(|| "another answer than schemas".to_owned());
                let failure = Failure::new(ErrorCode::Unavailable, format!("node {} sent no schemas: {reason}", node.short()));
                let _ = waiter.send(Err(failure));
            }
            (Asked::Context(waiter), Ok(Reply::Context(answer))) => drop(waiter.send(Ok(answer.into_vec()))),
            (Asked::Context(waiter), reply) => {
                let reason = reply.err().unwrap_or_else(|| "another answer than one about contexts".to_owned());
                let message = format!("node {} said nothing of a context: {reason}", node.short());
                let _ = waiter.send(Err(Failure::new(ErrorCode::Unavailable, message)));
            }
            (Asked::Results(keys), reply) => self.on_words(node, &keys, reply, now),
            (Asked::Offers(inquiry, waiter), reply) => drop(waiter.send(self.offers_of(node, &inquiry, reply))),
        }
    }
}

/// Reads a gossip message without believing it.
fn claim(shard: u8, data: &[u8]) -> Result<gossip::Claimed, wire::Error> {
    let message: Gossip = wire::decode(data)?;
    if message.shard != shard {
        return Err(wire::Error::Rule { kind: "gossip message", field: "shard", rule: "is the one it is published on" });
    }
    match message.content {
        GossipContent::Record(bytes) => Signed::from_bytes(&bytes).map(|record| Document::Record(Box::new(record))),
        GossipContent::Pulse(bytes) => Signed::from_bytes(&bytes).map(|pulse| Document::Pulse(Box::new(pulse))),
    }
}
