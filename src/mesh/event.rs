//! What the node hears of the mesh: its own few events, whatever libp2p calls them.

use libp2p::{Multiaddr, Stream};

use super::substreams::{Direction, OpenError};
use super::swarm::{ControlId, ReplyTo, SearchId, Stamp};
use crate::model::NodeId;
use crate::wire;
use crate::wire::directory::{Control, Reply};

/// Something happened in the mesh.
#[derive(Debug)]
pub enum Event {
    /// The node listens here.
    Listening(Multiaddr),
    /// A listener is gone.
    ListenFailed(String),
    /// The first connection to a node stands.
    Connected {
        /// Who.
        node: NodeId,
        /// The remote address.
        address: Multiaddr,
    },
    /// The last connection to a node is gone.
    Disconnected {
        /// Who.
        node: NodeId,
        /// Whether this node let it go in good order.
        in_order: bool,
    },
    /// The only connection to a node carries nothing any more.
    Silent(NodeId),
    /// A bootstrap address did not answer.
    JoinFailed(Multiaddr, String),
    /// A node could not be reached.
    ReachFailed(NodeId, String),
    /// A node can be dialled at an address it names, and answers DHT queries.
    Proven(NodeId),
    /// A peer is none of ours, or speaks another version.
    Foreign(NodeId, String),
    /// A gossip message waits to be judged.
    Gossip {
        /// Names it.
        stamp: Stamp,
        /// Who passed it on.
        from: NodeId,
        /// On which shard.
        shard: u8,
        /// What it says.
        data: Vec<u8>,
    },
    /// A peer asks.
    Request {
        /// Who.
        node: NodeId,
        /// Where the answer goes.
        to: ReplyTo,
        /// What, or why it could not be understood.
        request: Result<Control, wire::Error>,
    },
    /// A peer answered, or did not.
    Reply {
        /// To which request.
        id: ControlId,
        /// Who.
        node: NodeId,
        /// What, or why not.
        reply: Result<Reply, String>,
    },
    /// The DHT named providers.
    Providers {
        /// Of which search.
        search: SearchId,
        /// Who; may repeat what was said before.
        nodes: Vec<NodeId>,
        /// Whether the search is over.
        done: bool,
    },
    /// A lane stands.
    Lane {
        /// With whom.
        node: NodeId,
        /// Who calls on it; the tag is the priority.
        direction: Direction,
        /// The lane.
        stream: Stream,
    },
    /// A lane that was asked for, with its tag, cannot be.
    LaneFailed(NodeId, u64, OpenError),
    /// The substream of a blob stands.
    Blob {
        /// With whom.
        node: NodeId,
        /// Who sends on it.
        direction: Direction,
        /// The substream.
        stream: Stream,
    },
    /// The substream of a blob that was asked for, with its tag, cannot be.
    BlobFailed(NodeId, u64, OpenError),
    /// A peer did something that an honest one does not.
    Misbehaved(NodeId, &'static str),
}
