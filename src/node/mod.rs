//! Drives the machines of `proto`: one event loop for everything that can wait its turn, and the invocation plane beside it.
//!
//! The loop owns the swarm, the directory and the tables of joining, searching and penalising; others reach it through a bounded channel
//! behind the [`Handle`], which every door and verb uses. Nothing slow runs in it: signatures, disk and agents go to workers and come
//! back as inputs. Calls do not pass through it: those of `invocation` read the directory through a snapshot that the loop replaces, travel on
//! lanes that have tasks of their own, and report how they ended in batches.

mod clock;
mod context;
mod event_loop;
pub(crate) mod explain;
mod failpoint;
mod find;
mod gossip;
mod handle;
mod hosting;
mod invocation;
mod leftovers;
mod receipts;
mod runtime;
mod schemas;
mod shared;
mod start;
mod task;
mod view;

pub use context::{AccessRequest, CheckpointRequest, ContextRequest, ForkRequest, MergeRequest};
pub use explain::Explanation;
pub use handle::{AgentView, Handle, TrustView};
pub use invocation::invoke::{InvokeReply, InvokeRequest};
pub use invocation::offers::{Declined, Offered, OffersAnswer, OffersRequest};
pub use receipts::{PinView, ReceiptView};
pub use runtime::runtime;
pub use start::{Node, StartError};
pub use task::{DECOMPOSE_MAX, LIST_MAX, Submission};
pub use view::{Check, Event, EventStream, Level, NodeView, NumberedEvent, State};

// What questions and answers are made of, so that doors and verbs need to know no other layer.
pub(crate) use crate::agents::off_workers;
pub use crate::mesh::Peer;
pub use crate::model::Priority;
pub use crate::proto::context::fold::{Fold, Stamp};
pub use crate::proto::directory::rank::{Answer, Candidate, Standing};
pub use crate::proto::directory::{Availability, Entry, Reach};
pub use crate::proto::invocation::breaker::Phase;
pub use crate::proto::peers::receipts::Pinned;
pub use crate::wire::context::Item;
pub use crate::wire::directory::{Query, SchemaHash, Wanted};
