//! The invocation plane: calls from request to reply, beside the event loop and never through it.
//!
//! [`invoke`] is a call from the side of its caller and [`routing`] has one agent after the other do it, [`stream`] hands its chunks on,
//! and [`own_side`] knows what this node held up of it; [`execute`] is the same call from the side of the agent's node, and [`running`]
//! knows which calls agents work on here, so that they can make others in turn. Both sides share what a call needs on its way: [`lanes`] to
//! peers, [`blobs`] for large bodies, one run for all calls with one idempotency key ([`keyed`]) whose results are [`kept`], home nodes that are
//! told of those which they may have missed ([`outbox`]), and how often who may call ([`rates`]).
//! [`offers`] asks what a call would take without making it. Nothing is decided here: the rules are in `proto::invocation`, and what meets
//! clocks, chance and locks meets them here.
//!
//! What others have a part in stays with them: schemas and explanations also serve queries, and the loop opens lanes and blobs.

pub(super) mod blobs;
pub(super) mod execute;
pub(super) mod invoke;
pub(super) mod kept;
pub(super) mod keyed;
pub(super) mod lanes;
pub(super) mod offers;
pub(super) mod outbox;
mod own_side;
pub(super) mod rates;
pub(super) mod routing;
pub(super) mod running;
mod stream;
