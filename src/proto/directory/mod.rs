//! What this node knows of agents, and how it answers when somebody asks.
//!
//! Records come from gossip, from answers of providers that the DHT named, and from digests of peers; [`State`] keeps the newest of
//! each agent until it expires, with what pulses and connections say about its node. [`State::query`] ranks what it knows ([`rank`]) and
//! gives the reason for each agent that it leaves out; [`Scan`] does so bit by bit where everybody must be looked at. [`Digest`] compares two directories and repairs what gossip lost.
//!
//! Invariants: an expired record is gone with the next tick; a lower sequence never replaces a higher one; an agent whose node
//! has not been reached is no candidate; every table is bounded. The DHT itself and verification of signatures are the shell's.
//! Implements design.md section 4, AMP-5, AOP-2, MAOP-2.

mod digest;
pub mod rank;
mod routes;
mod scan;
pub mod search;
mod state;

pub use digest::Digest;
pub use routes::{Rankings, Routes};
pub use scan::Scan;
pub use state::{Availability, Config, Documents, Entry, Event, Output, Reach, State, Traffic, Verdict};
