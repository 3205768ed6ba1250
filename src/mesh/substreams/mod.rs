//! Long-lived or large substreams beside request-response: lanes, blobs.
//!
//! A [`Behaviour`] speaks one protocol: it opens a substream on a connection that it chooses (the oldest that stands), accepts those of
//! the other side up to a bound, and hands them out; what is on them never passes through the swarm again. Each opening carries a tag of
//! the opener's choice and ends in one event with that tag.

mod behaviour;
mod handler;

pub use behaviour::{Behaviour, Direction, Event, OpenError};
