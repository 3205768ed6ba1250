//! Lanes: long-lived substreams on which calls travel (design.md section 5).
//!
//! [`Behaviour`] opens a lane on a connection that it chooses (the oldest that stands) and accepts a bounded number of them from the
//! other side; what it opened is handed out as a stream and never passes through the swarm again. [`Lane`] is the calling end, driven by
//! a task of its own around [`crate::proto::invocation::client`]; [`serve`] drives the answering end around
//! [`crate::proto::invocation::server`] and an [`Executor`].

mod behaviour;
mod client;
mod handler;
mod io;
mod server;

pub use behaviour::{Behaviour, Direction, Event, OpenError};
pub use client::{Lane, LaneEnd};
pub use server::{Executor, serve};

use libp2p::StreamProtocol;

/// The name under which peers negotiate a lane.
pub const PROTOCOL: StreamProtocol = StreamProtocol::new("/meshwork/lane/1");

/// Lanes that one connection may open towards this node in its life. An honest peer needs one, and another after a fault.
const INBOUND_PER_CONNECTION_MAX: usize = 64;
