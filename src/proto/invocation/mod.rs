//! How a call is routed, carried, retried and answered.
//!
//! [`call`] decides which agent is asked and what happens when it fails; [`client`] and [`server`] are the two ends of a lane; [`dedup`]
//! makes calls with one idempotency key one call, [`blobs`] matches large bodies with their announcements. Invariant of all of them: what was accepted ends in exactly one reply.
//! Implements design.md section 5; AMP-4, AOP-4, MEAP-9.

pub mod blobs;
pub mod call;
pub mod client;
pub mod dedup;
pub mod server;
