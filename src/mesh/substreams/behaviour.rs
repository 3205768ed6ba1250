//! All substreams of one protocol: which connection a new one is opened on.

use std::collections::{BTreeMap, VecDeque};
use std::task::{Context, Poll};

use libp2p::core::Endpoint;
use libp2p::core::transport::PortUse;
use libp2p::swarm::{
    ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, NotifyHandler, THandler, THandlerInEvent, THandlerOutEvent, ToSwarm,
};
use libp2p::{Multiaddr, PeerId, Stream, StreamProtocol};

use super::handler::{Handler, HandlerEvent, Open};

/// Which side opened a substream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// The other side.
    Inbound,
    /// This node, with this tag.
    Outbound(u64),
}

/// Why a substream could not be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// There is no connection to the peer; dial first.
    #[error("not connected")]
    NotConnected,
    /// The peer does not speak this version of the protocol.
    #[error("the peer does not speak its protocol")]
    Unsupported,
    /// The connection failed meanwhile.
    #[error("the connection failed")]
    Failed,
}

/// What happened to substreams.
#[derive(Debug)]
pub enum Event {
    /// A substream stands.
    Opened {
        /// With whom.
        peer: PeerId,
        /// Who opened it.
        direction: Direction,
        /// The substream.
        stream: Stream,
    },
    /// A substream that was asked for cannot be.
    OpenFailed {
        /// With whom.
        peer: PeerId,
        /// The opener's tag.
        tag: u64,
        /// Why.
        error: OpenError,
    },
}

/// Opens and accepts substreams of one protocol.
#[derive(Debug)]
pub struct Behaviour {
    protocol: StreamProtocol,
    inbound_max: usize,
    connections_by_peer: BTreeMap<PeerId, Vec<ConnectionId>>,
    events: VecDeque<ToSwarm<Event, Open>>,
}

impl Behaviour {
    /// Speaks `protocol`, and accepts at most `inbound_max` substreams on one connection in its life.
    pub fn new(protocol: StreamProtocol, inbound_max: usize) -> Self {
        Self { protocol, inbound_max, connections_by_peer: BTreeMap::new(), events: VecDeque::new() }
    }

    /// Opens a substream to `peer`. Ends in one [`Event::Opened`] or [`Event::OpenFailed`].
    pub fn open(&mut self, peer: PeerId, tag: u64) {
        match self.connections_by_peer.get(&peer).and_then(|connections| connections.first()) {
            Some(connection) => {
                let handler = NotifyHandler::One(*connection);
                self.events.push_back(ToSwarm::NotifyHandler { peer_id: peer, handler, event: Open { tag } });
            }
            None => {
                let failed = Event::OpenFailed { peer, tag, error: OpenError::NotConnected };
                self.events.push_back(ToSwarm::GenerateEvent(failed));
            }
        }
    }
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = Handler;
    type ToSwarm = Event;

    fn handle_established_inbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(Handler::new(self.protocol.clone(), self.inbound_max))
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(Handler::new(self.protocol.clone(), self.inbound_max))
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        #[expect(clippy::wildcard_enum_match_arm, reason = "libp2p's enum is non-exhaustive; only connections matter here")]
        match event {
            FromSwarm::ConnectionEstablished(made) => {
                self.connections_by_peer.entry(made.peer_id).or_default().push(made.connection_id);
            }
            FromSwarm::ConnectionClosed(closed) => {
                if let Some(connections) = self.connections_by_peer.get_mut(&closed.peer_id) {
                    connections.retain(|connection| *connection != closed.connection_id);
                    if connections.is_empty() {
                        self.connections_by_peer.remove(&closed.peer_id);
                    }
                }
            }
            _ => {}
        }
    }

    fn on_connection_handler_event(&mut self, peer: PeerId, _: ConnectionId, event: THandlerOutEvent<Self>) {
        let event = match event {
            HandlerEvent::Opened(direction, stream) => Event::Opened { peer, direction, stream },
            HandlerEvent::OpenFailed(tag, error) => Event::OpenFailed { peer, tag, error },
        };
        self.events.push_back(ToSwarm::GenerateEvent(event));
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        // Every push happens inside a call from the swarm or from its owner, who polls it again afterwards.
        self.events.pop_front().map_or(Poll::Pending, Poll::Ready)
    }
}
