//! The lanes of one connection: negotiates them and hands the streams out.

use std::collections::VecDeque;
use std::task::{Context, Poll};

use libp2p::core::upgrade::ReadyUpgrade;
use libp2p::swarm::handler::{ConnectionEvent, DialUpgradeError, FullyNegotiatedInbound, FullyNegotiatedOutbound};
use libp2p::swarm::{ConnectionHandler, ConnectionHandlerEvent, StreamUpgradeError, SubstreamProtocol};
use libp2p::{Stream, StreamProtocol};

use super::behaviour::{Direction, OpenError};
use super::{INBOUND_PER_CONNECTION_MAX, PROTOCOL};

/// Asks the handler for a lane.
#[derive(Debug)]
pub struct OpenLane;

/// What the handler has to say.
#[derive(Debug)]
pub enum HandlerEvent {
    /// A lane stands.
    Opened(Direction, Stream),
    /// A lane that was asked for cannot be.
    OpenFailed(OpenError),
}

type ToSwarm = ConnectionHandlerEvent<ReadyUpgrade<StreamProtocol>, (), HandlerEvent>;

/// The lanes of one connection.
#[derive(Debug, Default)]
pub struct Handler {
    events: VecDeque<ToSwarm>,
    inbound_opened: usize,
}

impl Handler {
    fn report(&mut self, event: HandlerEvent) {
        self.events.push_back(ConnectionHandlerEvent::NotifyBehaviour(event));
    }
}

fn protocol() -> SubstreamProtocol<ReadyUpgrade<StreamProtocol>> {
    SubstreamProtocol::new(ReadyUpgrade::new(PROTOCOL), ())
}

impl ConnectionHandler for Handler {
    type FromBehaviour = OpenLane;
    type ToBehaviour = HandlerEvent;
    type InboundProtocol = ReadyUpgrade<StreamProtocol>;
    type OutboundProtocol = ReadyUpgrade<StreamProtocol>;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = ();

    fn listen_protocol(&self) -> SubstreamProtocol<Self::InboundProtocol> {
        protocol()
    }

    /// Connections are kept until the node lets them go: to be connected is how it knows that the other side lives.
    fn connection_keep_alive(&self) -> bool {
        true
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ToSwarm> {
        self.events.pop_front().map_or(Poll::Pending, Poll::Ready)
    }

    fn on_behaviour_event(&mut self, _: OpenLane) {
        self.events.push_back(ConnectionHandlerEvent::OutboundSubstreamRequest { protocol: protocol() });
    }

    fn on_connection_event(&mut self, event: ConnectionEvent<'_, Self::InboundProtocol, Self::OutboundProtocol>) {
        #[expect(
            clippy::wildcard_enum_match_arm,
            reason = "libp2p's enum is non-exhaustive; address and protocol changes do not matter here"
        )]
        match event {
            // Dropping a stream beyond the bound resets it, which tells the other side.
            ConnectionEvent::FullyNegotiatedInbound(FullyNegotiatedInbound { protocol: stream, .. })
                if self.inbound_opened < INBOUND_PER_CONNECTION_MAX =>
            {
                self.inbound_opened = self.inbound_opened.saturating_add(1);
                self.report(HandlerEvent::Opened(Direction::Inbound, stream));
            }
            ConnectionEvent::FullyNegotiatedOutbound(FullyNegotiatedOutbound { protocol: stream, .. }) => {
                self.report(HandlerEvent::Opened(Direction::Outbound, stream));
            }
            ConnectionEvent::DialUpgradeError(DialUpgradeError { error, .. }) => {
                let unsupported = matches!(error, StreamUpgradeError::NegotiationFailed);
                self.report(HandlerEvent::OpenFailed(if unsupported { OpenError::Unsupported } else { OpenError::Failed }));
            }
            _ => {}
        }
    }
}
