//! libp2p: how bytes travel between nodes. What they mean is decided elsewhere.
//!
//! [`Mesh`] owns the swarm and is owned by the event loop; `inbound` turns what the swarm reports into the few [`Event`]s that the loop
//! knows, and is the only file that names `SwarmEvent`. Calls do not pass through here: a lane, once open, is driven by its own task
//! ([`lanes`]), and large bodies have substreams of their own ([`blobs`]), on which they give way to calls ([`foreground`]); both are opened
//! by [`substreams`]. Who may connect is
//! [`limits`], whom we dial [`address`], what gossip is worth [`gossip`] (design.md section 4, security.md sections 2 and 5).

pub mod address;
mod behaviour;
pub mod blobs;
mod control;
mod event;
pub mod foreground;
pub mod gossip;
mod inbound;
mod kademlia;
pub mod lanes;
pub mod limits;
pub mod substreams;
mod swarm;
mod transport;

pub use event::Event;
pub use swarm::{ControlId, Error, Mesh, Peer, ReplyTo, SearchId, Settings, Stamp};
