//! Agents of this node: what a definition may say, how an agent's program is reached, and how much it is asked to do.
//!
//! [`definition`] turns what a person wrote into something that can be trusted: names, schemas, prices and bounds are checked and every
//! fault is named by its field. [`Agent`] is one attached agent: its slots, its queue, whether it is well. Adapters (`process`,
//! `http`, [`builtin`]) do the work. What is advertised of an agent is decided elsewhere, from what is reported here.
//! Implements interface.md "Agents"; AMP-2, AMP-6, MAOP-3, MAOP-12.

mod agent;
pub mod builtin;
pub mod definition;
mod events;
mod exchange;
mod http;
mod process;
mod registry;
pub mod schema;
mod slots;
pub mod task;

pub use agent::{Agent, Failed, Output, schema_failure};
pub(crate) use exchange::off_workers;
pub use exchange::{Confirm, Health, Invocation};
pub use registry::{Change, Registry};
