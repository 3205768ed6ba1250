//! Receipts: what this node tells others of agents, and what the word of others is worth to it (design.md section 5, threats T16, T17).
//!
//! *Making* ([`Windows`]): this node's own outcomes, summed per agent and capability over windows that follow one another; those that are
//! over are handed out to be signed, once. *Keeping* ([`Book`]): receipts of others, the newest window of each issuer, agent and
//! capability. *Counting* ([`Book::count`]): what the kept ones add to this node's own evidence, as [`Attested`]. *Asking* ([`Asking`]):
//! whom to ask for receipts, and when.
//!
//! Trust is pinned: a receipt counts only if the owner of this node has named its issuer. Keys cost nothing, so nothing that keys say of one
//! another can tell a crowd from a liar with many keys (EigenTrust needs pre-trusted peers for the same reason). There is no second hop:
//! an issuer's pins are not ours, or one careless owner would open the door of everybody who pinned him.
//!
//! Invariants:
//! - Without a pin nothing counts, however many keys praise one another.
//! - A pin is an edge of limited flow: all that comes through it about capabilities under one root counts together as at most
//!   [`PIN_FLOW`] calls, however many agents it speaks of. A query by name draws on one root, so a pinned liar with a thousand
//!   agents moves no more than with one.
//! - Own evidence dominates ([`Attested::inform`]): from the first call of its own that a node remembers, the word of all
//!   others together weighs no more than that, so no praise lifts a poor record above a stranger.
//! - The word of others moves the mean alone, which a score uses. The interval is first-hand, and with it who is proven and who is doubted:
//!   nobody is outlawed on hearsay, or comes before those that this node has seen do well.
//! - A node gives out only what it issued itself and takes receipts only from their issuers, so no node stores or carries for strangers.
//! - Every table is bounded, and strangers' receipts never push out those of a pin.
//!
//! Left to others: signatures (only [`Verified`](crate::wire::Verified) receipts come in here), the wire, the disk, and how a score uses trust.

mod asking;
mod attested;
mod book;
mod windows;

pub use asking::Asking;
pub use attested::Attested;
pub use book::{Book, Judged, PINS_MAX, Pinned, Refusal, Verdict, screen};
pub use windows::Windows;

use crate::model::{AgentId, CapabilityName};

/// How many calls everything that comes through one pin may count as, per root of the capabilities. As many calls of a node's own say
/// more than a receipt can, so a pin spares a node its first few bad calls and decides nothing after that.
pub const PIN_FLOW: f64 = 4.0;

/// An agent and what it does.
pub type Pair = (AgentId, CapabilityName);
