//! Drives shared contexts: keeps them on the disk, shows them to clients, completes them with other nodes (design/contexts.md).
//!
//! [`book`] holds the contexts of this node, a bounded number of them in memory, each behind a lock of its own; [`hot`] is one of them, a
//! replica and its file; [`door`] is what clients ask, [`branch`] what they ask of forks, merges and older states, [`events`] what they follow,
//! [`checkpoint`] when a context lets go of what was written long ago, [`steps`] what the steps of tasks do; [`sync`] is what other nodes ask
//! and tell, [`questions`] how many of them at once.
//!
//! What is written is signed, taken into the replica and appended to the file before anybody is told. If the disk refuses, the replica in
//! memory is ahead of the file: it is dropped, and read again when it is next needed. A node gives a context to the nodes of its readers and to
//! nobody else, and takes none that has no reader here.

mod book;
mod branch;
mod checkpoint;
mod door;
mod events;
mod hot;
mod questions;
pub(super) mod steps;
mod sync;

pub(super) use book::Book;
pub use branch::{ForkRequest, MergeRequest};
pub use checkpoint::CheckpointRequest;
pub use door::{AccessRequest, ContextRequest};
pub(super) use questions::Questions;
pub(super) use sync::{answer, run};
