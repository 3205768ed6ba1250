//! What a node says about itself: structured logs and counters.
//!
//! Log levels mean something. ERROR: the node cannot keep a promise. WARN: somebody should look at it within the day (an agent that keeps
//! dying, a peer that was banned). INFO: what an operator wants in the history (start, joined, agent up and down). DEBUG: decisions about
//! single peers and calls. TRACE: single messages. Peers' words are made printable before they are logged (threat T29).

mod log;
mod metrics;

pub use log::start_log;
pub use metrics::{Kind, Metrics, Side};
