//! What the journeys share: whole nodes as child processes, a client for their API, agents written in Python, and waiting.
//!
//! Every node has a temporary directory of its own, listens on ports that nobody else has and dies with its value, so tests run beside
//! each other. Nothing here sleeps: a test waits for a named condition under a deadline ([`eventually`]) or for an event ([`Node::events`]).

mod agents;
mod answer;
mod command;
pub(crate) mod contexts;
mod events;
mod node;
pub(crate) mod oracle;
pub(crate) mod peer;
mod port;
pub(crate) mod stepping;
pub(crate) mod target;
pub(crate) mod tasks;
mod wait;

pub(crate) use agents::{HttpAgent, Journal, builtin, script, slow, stepper, with};
pub(crate) use answer::Answer;
pub(crate) use command::{Output, Running, finished, meshwork, shell};
pub(crate) use events::Events;
pub(crate) use node::{Builder, Node, signal};
pub(crate) use port::Port;
pub(crate) use wait::{SETTLE, eventually, within};
