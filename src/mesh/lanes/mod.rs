//! Lanes: long-lived substreams on which calls travel, one per peer and priority (design.md section 5).
//!
//! [`Lane`] is the calling end, driven by a task of its own around [`crate::proto::invocation::client`]; [`serve`] drives the answering
//! end around [`crate::proto::invocation::server`] and an [`Executor`]. Both count into the [`Tally`] of the peer. The substreams themselves
//! come from [`super::substreams`].

mod client;
mod io;
mod server;
mod tally;

pub use client::{Lane, LaneEnd};
pub use server::{Executing, Executor, Orders, serve};
pub use tally::{Tally, Totals};

use libp2p::StreamProtocol;

/// The name under which peers negotiate a lane.
pub const PROTOCOL: StreamProtocol = StreamProtocol::new("/meshwork/lane/1");

/// Lanes that one connection may open towards this node in its life. An honest peer needs one per priority, and another after a fault.
pub(super) const INBOUND_PER_CONNECTION_MAX: usize = 64;
