//! Meshwork: one program that makes any machine a node of a peer-to-peer mesh of AI agents.
//!
//! Agents attached to a node are found and called from every other node; there is no registry, broker or orchestrator to run. This crate
//! is that program, and a library for those who build on its parts.
//!
//! # The map
//! Rows are layers, and each knows only those above it in this list. Columns are the journeys, named by the same word in every row that has
//! a part in them: `directory` (who is there), `invocation` (calling them), `task` (calls that are one piece of work),
//! `context` (documents that they share).
//!
//! | layer | what it does |
//! |---|---|
//! | [`model`] | nouns, valid by construction |
//! | [`wire`] | bytes between nodes: strict CBOR, signatures, versions |
//! | [`proto`] | decides, without input or output |
#![cfg_attr(
    feature = "node",
    doc = "| [`telemetry`], [`config`], [`store`], [`agents`], [`mesh`] | do: logs, settings, disk, local work, libp2p |
| [`node`] | drives: the event loop, invocations beside it, the handle that everyone else calls |
| [`api`], [`cli`] | face clients: HTTP, the command line |"
)]
//!
//! Without the feature `node` the crate is `model`, `wire` and `proto` alone and needs no runtime, which keeps the decisions honest.
//!
//! # Why so
//! - *Why do calls not use libp2p's request-response?* It opens a substream per call. A lane, one long-lived substream with many calls in
//!   flight, carries more than ten times as many calls at a third of the latency, and still gives every request one reply.
//! - *Why is gossip only a hint?* A network that only gossips leaves late joiners blind, and gossip drops messages by design. What a node
//!   believes are signed records; it gets them from gossip, from digests that repair what gossip lost, and from the providers themselves,
//!   whom the DHT names.
//! - *Why two CBOR crates?* Documents are few and must grow: maps by name, through serde. Frames are many and must not be copied: arrays,
//!   read in place.
//! - *Why do large bodies leave the lane?* A 5 MiB frame would hold up every small call behind it. A body over 64 KiB is announced on the lane
//!   and pushed beside it, never fetched: nobody can ask a node for bytes that it did not mean to send. Beside is not enough, since both share
//!   sockets and processors, so it goes in pieces, few at a time, and lets calls past between them.
//! - *Why has a node only half as many workers as cores?* Calls are short steps of tasks that wake each other. On two cores one worker carries
//!   half again as many calls as two, and agents have the other core.
//! - *Why does work that must not be done twice wait for a go?* Without one, a call that is lost while it is handed over may have begun or not, and
//!   the caller could neither repeat it nor promise that it did not happen. The round trip buys that certainty; whoever says that twice
//!   does no harm does not pay for it.
//! - *Why one journal for all tasks?* A flush takes as long for one entry as for a hundred, and it is what a task waits for. In one file the
//!   entries of all tasks share it, and a start reads one thing from front to back. A database would write each of them several times.
//! - *Why is an event on the disk before anything follows from it?* A call that went out and is not in the journal is made again after a
//!   crash by somebody who does not know of it; an answer that is not would be taken back. So what leaves the node waits for the disk, and
//!   what a restart knows is all that anybody was told.
//! - *Why is trust not shared?* Praise is free for whoever can make keys. A node believes what it saw, and hears others only where its owner
//!   has pinned them.

#[cfg(feature = "node")]
pub mod agents;
#[cfg(feature = "node")]
pub mod api;
#[cfg(feature = "node")]
pub mod cli;
#[cfg(feature = "node")]
pub mod config;
#[cfg(feature = "node")]
pub mod mesh;
pub mod model;
#[cfg(feature = "node")]
pub mod node;
pub mod proto;
#[cfg(feature = "node")]
pub mod store;
#[cfg(feature = "node")]
pub mod telemetry;
pub mod wire;
