//! The decisions of the mesh, without input or output.
//!
//! Each journey has its machines here: `directory` decides what is known and believed of agents, `invocation` how a call is admitted,
//! routed, retried and answered, `task` how many calls become one piece of work that survives its nodes, `peers` whom to dial, trust and shun. They never read a clock, draw from global randomness, touch a
//! socket or wait: time and randomness are arguments, effects are values that come back. So the same code runs in the node, in unit
//! tests and in a simulator.
//!
//! One contract for all: after each input the caller drains the outputs completely before it hands over the next. Methods that take a
//! person's or this node's wish are called `handle_`, those that take what a peer said or did are called `on_`.

pub mod context;
pub mod directory;
pub mod invocation;
pub mod peers;
pub mod task;
