//! How a call is routed, carried, retried and answered.
//!
//! [`call`] decides which agent is asked and what happens when it fails, [`routing`] with what all calls share: [`breaker`], [`balance`],
//! [`exploration`] and the [`budget`] for retries; [`evidence`] says what an end means for an agent's standing. [`client`] and [`server`]
//! are the two ends of a lane; [`dedup`] makes calls with one idempotency key one call, [`delivery`] says which results of
//! steps a lane has surely brought home and [`outbox`] who is told of the others, [`blobs`] matches large bodies with their
//! announcements, [`window`] bounds what of one is on its way, [`chain`] bounds calls that agents make in turn, and [`offer`] says what a call would take before it is made. Invariant of
//! all of them: what was accepted ends in exactly one reply.
//! Implements design.md section 5; AMP-4, AOP-4, MEAP-4, MEAP-5, MEAP-9.

pub mod balance;
pub mod blobs;
pub mod breaker;
pub mod budget;
pub mod call;
pub mod chain;
pub mod client;
pub mod dedup;
pub mod delivery;
pub mod evidence;
pub mod exploration;
pub mod offer;
pub mod outbox;
pub mod routing;
pub mod server;
pub mod window;

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
