//! What the swarm reports, made into the events that the node knows. Nothing is ignored silently: what needs no answer is counted.

use futures::StreamExt;
use libp2p::core::ConnectedPoint;
use libp2p::kad::store::RecordStore;
use libp2p::multiaddr::Protocol;
use libp2p::swarm::{ConnectionId, DialError, SwarmEvent};
use libp2p::{Multiaddr, gossipsub, identify, kad, ping, request_response};
use tokio::time::Instant;

use super::behaviour::BehaviourEvent;
use super::event::Event;
use super::substreams;
use super::swarm::{FAMILY, Link, Mesh, Purpose, ReplyTo, SearchId, Stamp};
use super::{gossip, kademlia};
use crate::model::NodeId;
use crate::wire;
use crate::wire::directory::{Control, Reply};

impl Mesh {
    /// The next event. Dropping the future loses nothing.
    pub async fn next(&mut self) -> Event {
        loop {
            if let Some(event) = self.events.pop_front() {
                return event;
            }
            let event = self.swarm.select_next_some().await;
            self.on_swarm_event(event);
        }
    }

    fn push(&mut self, event: Event) {
        self.events.push_back(event);
    }

    fn on_swarm_event(&mut self, event: SwarmEvent<BehaviourEvent>) {
        #[expect(clippy::wildcard_enum_match_arm, reason = "libp2p's enum is non-exhaustive; what remains needs no answer and is traced")]
        match event {
            SwarmEvent::Behaviour(event) => self.on_behaviour_event(event),
            SwarmEvent::ConnectionEstablished { peer_id, connection_id, endpoint, .. } => {
                self.on_established(peer_id.into(), connection_id, &endpoint);
            }
            SwarmEvent::ConnectionClosed { peer_id, connection_id, num_established, cause, .. } => {
                let node = NodeId::from(peer_id);
                tracing::debug!(%node, cause = ?cause.map(|cause| cause.to_string()), remaining = num_established, "connection closed");
                if let Some(links) = self.links_by_node.get_mut(&node) {
                    links.remove(&connection_id);
                }
                if num_established == 0 {
                    self.links_by_node.remove(&node);
                    self.programs_by_node.remove(&node);
                    self.tallies_by_node.remove(&node);
                    // It may come back at another address, which must be proven anew.
                    self.proven.remove(&node);
                    let in_order = self.closing.remove(&node);
                    self.push(Event::Disconnected { node, in_order });
                }
            }
            SwarmEvent::OutgoingConnectionError { connection_id, error, .. } => {
                if let Some(purpose) = self.purposes_by_dial.remove(&connection_id) {
                    self.on_dial_error(purpose, &error);
                }
            }
            SwarmEvent::IncomingConnectionError { error, send_back_addr, .. } => {
                tracing::debug!(%error, from = %send_back_addr, "an incoming connection failed");
            }
            SwarmEvent::NewListenAddr { address, .. } => {
                self.listening.insert(address.clone());
                self.push(Event::Listening(address));
            }
            SwarmEvent::ExpiredListenAddr { address, .. } => {
                self.listening.remove(&address);
            }
            SwarmEvent::ListenerClosed { reason: Err(error), .. } => self.push(Event::ListenFailed(root_cause(&error))),
            SwarmEvent::ListenerError { error, .. } => tracing::warn!(%error, "a listener reports an error and goes on"),
            other => tracing::trace!(event = ?other, "needs no answer"),
        }
    }

    fn on_established(&mut self, node: NodeId, connection: ConnectionId, endpoint: &ConnectedPoint) {
        let purpose = self.purposes_by_dial.remove(&connection);
        let address = without_peer(endpoint.get_remote_address());
        let link = Link { address: address.clone(), outbound: endpoint.is_dialer(), since: Instant::now(), rtt: None };
        let links = self.links_by_node.entry(node).or_default();
        let first = links.is_empty();
        links.insert(connection, link);
        if first {
            self.push(Event::Connected { node, address: address.clone() });
        }
        if matches!(purpose, Some(Purpose::Prove(_))) {
            self.add_proven(node, address);
            if !first {
                self.swarm.close_connection(connection);
            }
        }
    }

    fn add_proven(&mut self, node: NodeId, address: Multiaddr) {
        self.swarm.behaviour_mut().kademlia.add_address(&node.peer_id(), address);
        if self.proven.insert(node) {
            self.push(Event::Proven(node));
        }
    }

    pub(super) fn on_dial_error(&mut self, purpose: Purpose, error: &DialError) {
        let reason = describe(error);
        match purpose {
            Purpose::Join(address) => self.push(Event::JoinFailed(address, reason)),
            Purpose::Reach(node) if self.links_by_node.contains_key(&node) => {}
            Purpose::Reach(node) => self.push(Event::ReachFailed(node, reason)),
            Purpose::Prove(node) => tracing::debug!(%node, reason, "a connected peer cannot be dialled"),
        }
    }

    fn on_behaviour_event(&mut self, event: BehaviourEvent) {
        match event {
            BehaviourEvent::Identify(event) => self.on_identify(event),
            BehaviourEvent::Ping(event) => self.on_ping(event),
            BehaviourEvent::Kademlia(event) => self.on_kademlia(event),
            BehaviourEvent::Gossip(event) => self.on_gossip(event),
            BehaviourEvent::Control(event) => self.on_control(event),
            BehaviourEvent::Lanes(substreams::Event::Opened { peer, direction, stream }) => {
                self.push(Event::Lane { node: peer.into(), direction, stream });
            }
            BehaviourEvent::Lanes(substreams::Event::OpenFailed { peer, tag, error }) => {
                self.push(Event::LaneFailed(peer.into(), tag, error))
            }
            BehaviourEvent::Blobs(substreams::Event::Opened { peer, direction, stream }) => {
                self.push(Event::Blob { node: peer.into(), direction, stream });
            }
            BehaviourEvent::Blobs(substreams::Event::OpenFailed { peer, tag, error }) => {
                self.push(Event::BlobFailed(peer.into(), tag, error))
            }
            BehaviourEvent::Totals(never) | BehaviourEvent::Memory(never) | BehaviourEvent::Limits(never) => match never {},
        }
    }

    fn on_identify(&mut self, event: identify::Event) {
        let (peer, info) = match event {
            identify::Event::Received { peer_id, info, .. } => (peer_id, info),
            identify::Event::Error { peer_id, error, .. } => {
                tracing::debug!(peer = %peer_id, %error, "a peer did not say who it is");
                return;
            }
            identify::Event::Sent { .. } | identify::Event::Pushed { .. } => return,
        };
        let node = NodeId::from(peer);
        if info.protocol_version != FAMILY {
            self.push(Event::Foreign(node, crate::model::printable(&info.protocol_version, 40)));
            return;
        }
        self.programs_by_node.insert(node, crate::model::printable(&info.agent_version, 60));
        if self.proven.contains(&node) || !info.protocols.contains(&kademlia::PROTOCOL) {
            return;
        }
        match self.dialled_addresses(node).first().cloned() {
            Some(address) => self.add_proven(node, address),
            None => {
                let addresses: Vec<Multiaddr> = info.listen_addrs.iter().map(without_peer).collect();
                self.prove(node, &addresses);
            }
        }
    }

    fn on_ping(&mut self, event: ping::Event) {
        let link = self.links_by_node.get_mut(&NodeId::from(event.peer)).and_then(|links| links.get_mut(&event.connection));
        match (event.result, link) {
            (Ok(rtt), Some(link)) => link.rtt = Some(rtt),
            (Ok(_), None) => {}
            (Err(ping::Failure::Unsupported), _) => {}
            (Err(error), _) => {
                tracing::debug!(peer = %event.peer, %error, "no answer to a ping");
                self.swarm.close_connection(event.connection);
                // Closing waits for a goodbye that a dead link never carries, so the node is told now.
                let node = NodeId::from(event.peer);
                if self.links_by_node.get(&node).is_some_and(|links| links.len() == 1) {
                    self.push(Event::Silent(node));
                }
            }
        }
    }

    fn on_kademlia(&mut self, event: kad::Event) {
        match event {
            kad::Event::OutboundQueryProgressed { id, result: kad::QueryResult::GetProviders(result), step, .. } => {
                let nodes = match result {
                    Ok(kad::GetProvidersOk::FoundProviders { providers, .. }) => providers.into_iter().map(NodeId::from).collect(),
                    Ok(kad::GetProvidersOk::FinishedWithNoAdditionalRecord { .. }) | Err(_) => Vec::new(),
                };
                self.push(Event::Providers { search: SearchId(id), nodes, done: step.last });
            }
            kad::Event::InboundRequest { request: kad::InboundRequest::AddProvider { record: Some(record) } } => {
                let now = self.clock.elapsed();
                if self.quota.admit(record.provider, record.key.as_ref(), now) {
                    if let Err(error) = self.swarm.behaviour_mut().kademlia.store_mut().add_provider(record) {
                        tracing::debug!(%error, "a provider record was not kept");
                    }
                } else {
                    tracing::debug!(peer = %record.provider, "too many provider records");
                }
            }
            kad::Event::InboundRequest { request: kad::InboundRequest::PutRecord { source, .. } } => {
                self.push(Event::Misbehaved(source.into(), "a value record"));
            }
            kad::Event::InboundRequest { .. }
            | kad::Event::OutboundQueryProgressed { .. }
            | kad::Event::RoutingUpdated { .. }
            | kad::Event::UnroutablePeer { .. }
            | kad::Event::RoutablePeer { .. }
            | kad::Event::PendingRoutablePeer { .. }
            | kad::Event::ModeChanged { .. } => {}
        }
    }

    fn on_gossip(&mut self, event: gossipsub::Event) {
        match event {
            gossipsub::Event::Message { propagation_source, message_id, message } => {
                let stamp = Stamp { message: message_id, from: propagation_source };
                match gossip::shard_of(&message.topic) {
                    Some(shard) => self.push(Event::Gossip { stamp, from: propagation_source.into(), shard, data: message.data }),
                    None => {
                        self.judge(&stamp, gossipsub::MessageAcceptance::Reject);
                        self.push(Event::Misbehaved(propagation_source.into(), "a topic of its own"));
                    }
                }
            }
            // Drops are by design; digests repair them.
            gossipsub::Event::SlowPeer { peer_id, failed_messages } => {
                tracing::debug!(peer = %peer_id, ?failed_messages, "a peer reads gossip too slowly");
            }
            gossipsub::Event::GossipsubNotSupported { .. }
            | gossipsub::Event::Subscribed { .. }
            | gossipsub::Event::Unsubscribed { .. } => {}
        }
    }

    fn on_control(&mut self, event: request_response::Event<Result<Control, wire::Error>, Reply>) {
        match event {
            request_response::Event::Message { peer, message, .. } => match message {
                request_response::Message::Request { request, channel, .. } => {
                    self.push(Event::Request { node: peer.into(), to: ReplyTo(channel), request });
                }
                request_response::Message::Response { request_id, response } => {
                    if let Some(id) = self.asked_one(peer.into(), request_id) {
                        self.push(Event::Reply { id, node: peer.into(), reply: Ok(response) });
                    }
                }
            },
            request_response::Event::OutboundFailure { peer, request_id, error, .. } => {
                let malformed = matches!(&error, request_response::OutboundFailure::Io(io) if io.kind() == std::io::ErrorKind::InvalidData);
                if malformed {
                    self.push(Event::Misbehaved(peer.into(), "a malformed reply"));
                }
                if let Some(id) = self.asked_one(peer.into(), request_id) {
                    self.push(Event::Reply { id, node: peer.into(), reply: Err(error.to_string()) });
                }
            }
            request_response::Event::InboundFailure { peer, error, .. } => {
                tracing::debug!(%peer, %error, "a control request was not answered");
            }
            request_response::Event::ResponseSent { .. } => {}
        }
    }
}

fn without_peer(address: &Multiaddr) -> Multiaddr {
    address.iter().filter(|part| !matches!(part, Protocol::P2p(_))).collect()
}

/// The cause of a failed dial in words, addresses and all, at a bearable length.
fn describe(error: &DialError) -> String {
    let text = match error {
        DialError::Transport(attempts) => {
            let attempt =
                |(address, error): &(Multiaddr, libp2p::TransportError<std::io::Error>)| format!("{address}: {}", root_cause(error));
            attempts.iter().take(3).map(attempt).collect::<Vec<_>>().join("; ")
        }
        DialError::LocalPeerId { .. } => "that is this node itself".to_owned(),
        DialError::WrongPeerId { obtained, .. } => format!("another node answers there: {obtained}"),
        DialError::NoAddresses | DialError::DialPeerConditionFalse(_) | DialError::Aborted | DialError::Denied { .. } => error.to_string(),
    };
    crate::model::printable(&text, 300)
}

/// What lies beneath an error whose own words say little.
pub(super) fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}
