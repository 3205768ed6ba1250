//! The list of protocols that a node speaks.

use libp2p::swarm::NetworkBehaviour;
use libp2p::{connection_limits, identify, kad, memory_connection_limits, ping, request_response};

use super::{control, gossip, limits, substreams};

/// One line per protocol or guard. Guards come first: the first that refuses a connection ends it.
#[derive(NetworkBehaviour)]
pub(super) struct Behaviour {
    /// Totals and per-peer bounds.
    pub(super) totals: connection_limits::Behaviour,
    /// No new connections when memory runs out.
    pub(super) memory: memory_connection_limits::Behaviour,
    /// Bounds per address range, handshake rates, bans.
    pub(super) limits: limits::Behaviour,
    /// Who the other side is and where it listens.
    pub(super) identify: identify::Behaviour,
    /// Whether the other side still answers.
    pub(super) ping: ping::Behaviour,
    /// Who provides a capability.
    pub(super) kademlia: kad::Behaviour<kad::store::MemoryStore>,
    /// Records and pulses, as hints.
    pub(super) gossip: gossip::Behaviour,
    /// Queries, digests, schemas.
    pub(super) control: request_response::Behaviour<control::Codec>,
    /// Calls.
    pub(super) lanes: substreams::Behaviour,
    /// Large bodies.
    pub(super) blobs: substreams::Behaviour,
}
