//! The loop: one thing after the other, nothing slow.
//!
//! Each turn takes one input (an order to stop, a worker's report, a command, an event of the mesh, or the tick), hands it to the machine
//! it belongs to, and carries out what the machine decided. `turn` holds what the loop owns, every bound, and the turn itself; the
//! other files are the loop's part in hosting agents, searching, lanes and dealing with peers.

mod agents;
mod lanes;
mod outbox;
mod peers;
mod receipts;
mod searches;
mod turn;

pub(super) use turn::{EventLoop, Inputs, REPORTS_MAX};
