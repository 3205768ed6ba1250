//! The substreams of one connection: negotiates them and hands them out.

use std::collections::VecDeque;
use std::task::{Context, Poll};

use libp2p::core::upgrade::ReadyUpgrade;
use libp2p::swarm::handler::{ConnectionEvent, DialUpgradeError, FullyNegotiatedInbound, FullyNegotiatedOutbound};
use libp2p::swarm::{ConnectionHandler, ConnectionHandlerEvent, StreamUpgradeError, SubstreamProtocol};
use libp2p::{Stream, StreamProtocol};

use super::behaviour::{Direction, OpenError};

/// Asks the handler for a substream.
#[derive(Debug)]
pub struct Open {
    pub(super) tag: u64,
}

/// What the handler has to say.
#[derive(Debug)]
pub enum HandlerEvent {
    /// A substream stands.
    Opened(Direction, Stream),
    /// The substream with this tag cannot be.
    OpenFailed(u64, OpenError),
}

type ToSwarm = ConnectionHandlerEvent<ReadyUpgrade<StreamProtocol>, u64, HandlerEvent>;

/// The substreams of one connection.
#[derive(Debug)]
pub struct Handler {
    protocol: StreamProtocol,
    inbound_max: usize,
    events: VecDeque<ToSwarm>,
    inbound_opened: usize,
}

impl Handler {
    pub(super) fn new(protocol: StreamProtocol, inbound_max: usize) -> Self {
        Self { protocol, inbound_max, events: VecDeque::new(), inbound_opened: 0 }
    }

    fn report(&mut self, event: HandlerEvent) {
        self.events.push_back(ConnectionHandlerEvent::NotifyBehaviour(event));
    }
}

impl ConnectionHandler for Handler {
    type FromBehaviour = Open;
    type ToBehaviour = HandlerEvent;
    type InboundProtocol = ReadyUpgrade<StreamProtocol>;
    type OutboundProtocol = ReadyUpgrade<StreamProtocol>;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = u64;

    fn listen_protocol(&self) -> SubstreamProtocol<Self::InboundProtocol> {
        SubstreamProtocol::new(ReadyUpgrade::new(self.protocol.clone()), ())
    }

    /// Connections are kept until the node lets them go: to be connected is how it knows that the other side lives.
    fn connection_keep_alive(&self) -> bool {
        true
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ToSwarm> {
        self.events.pop_front().map_or(Poll::Pending, Poll::Ready)
    }

    fn on_behaviour_event(&mut self, open: Open) {
        let protocol = SubstreamProtocol::new(ReadyUpgrade::new(self.protocol.clone()), open.tag);
        self.events.push_back(ConnectionHandlerEvent::OutboundSubstreamRequest { protocol });
    }

    fn on_connection_event(&mut self, event: ConnectionEvent<'_, Self::InboundProtocol, Self::OutboundProtocol, (), u64>) {
        #[expect(
            clippy::wildcard_enum_match_arm,
            reason = "libp2p's enum is non-exhaustive; address and protocol changes do not matter here"
        )]
        match event {
            // Dropping a stream beyond the bound resets it, which tells the other side.
            ConnectionEvent::FullyNegotiatedInbound(FullyNegotiatedInbound { protocol: stream, .. })
                if self.inbound_opened < self.inbound_max =>
            {
                self.inbound_opened = self.inbound_opened.saturating_add(1);
                self.report(HandlerEvent::Opened(Direction::Inbound, stream));
            }
            ConnectionEvent::FullyNegotiatedOutbound(FullyNegotiatedOutbound { protocol: stream, info: tag }) => {
                self.report(HandlerEvent::Opened(Direction::Outbound(tag), stream));
            }
            ConnectionEvent::DialUpgradeError(DialUpgradeError { error, info: tag }) => {
                let unsupported = matches!(error, StreamUpgradeError::NegotiationFailed);
                self.report(HandlerEvent::OpenFailed(tag, if unsupported { OpenError::Unsupported } else { OpenError::Failed }));
            }
            _ => {}
        }
    }
}
