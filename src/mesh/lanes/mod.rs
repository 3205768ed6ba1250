//! Lanes: long-lived substreams on which calls travel, one per peer and priority (design.md section 5).
//!
//! [`Lane`] is the calling end, driven by a task of its own around [`crate::proto::invocation::client`]; [`serve`] drives the answering
//! end around [`crate::proto::invocation::server`] and an [`Executor`]. Both have [`Observers`]. The substreams themselves
//! come from [`super::substreams`].

mod client;
mod io;
mod server;
mod tally;

pub use client::{Lane, LaneEnd, Watch};
pub use server::{Executing, Executor, Handover, Orders, serve};
pub use tally::{Tally, Totals};

use std::sync::Arc;

use libp2p::StreamProtocol;

use super::foreground::Foreground;

/// The name under which peers negotiate a lane.
pub const PROTOCOL: StreamProtocol = StreamProtocol::new("/meshwork/lane/1");

/// Lanes that one connection may open towards this node in its life. An honest peer needs one per priority, and another after a fault.
pub(super) const INBOUND_PER_CONNECTION_MAX: usize = 64;

/// Who is told of the calls on a lane.
#[derive(Debug, Clone)]
pub struct Observers {
    /// What the calls with its peer came to.
    pub tally: Arc<Tally>,
    /// What gives way to the calls of this node.
    pub foreground: Arc<Foreground>,
}
