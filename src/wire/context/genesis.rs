//! How a context begins (AMP "Context Object Structure", "Fork Context").

use minicbor::{Decode, Encode};

use super::{Statement, codec};
use crate::model::{ContextId, OperationId, Principal, Timestamp};
use crate::wire::{Error, rule, short, version};

/// The longest id of a session, in characters.
pub const SESSION_ID_CHARS_MAX: usize = 128;
/// How many operations may be the newest of a parent.
pub const FRONTIER_MAX: usize = 64;

/// The first statement of a context, whose name is the context's id.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Genesis {
    /// The version of the format.
    #[n(0)]
    pub v: u16,
    /// Who decides on access.
    #[cbor(n(1), with = "codec::principal")]
    pub owner: Principal,
    /// Chosen at random, so that two contexts that begin alike are two.
    #[cbor(n(2), with = "minicbor::bytes")]
    pub nonce: [u8; 16],
    /// The owner's session that it belongs to, in the owner's words (AMP `session_id`).
    #[n(3)]
    pub session_id: String,
    /// When it was created, by the owner's clock.
    #[cbor(n(4), with = "codec::time")]
    pub created_at: Timestamp,
    /// When it ends, unless the owner extends it.
    #[cbor(n(5), with = "codec::time")]
    pub expires_at: Timestamp,
    /// The context that it was forked from.
    #[n(6)]
    pub parent: Option<Parent>,
}

/// Where a fork left its parent.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Parent {
    /// The parent.
    #[cbor(n(0), with = "codec::context")]
    pub context: ContextId,
    /// The first of the line, whose forks they all are.
    #[cbor(n(1), with = "codec::context")]
    pub root: ContextId,
    /// The parent's newest operations at the fork, in order.
    #[cbor(n(2), with = "codec::operations")]
    pub frontier: Vec<OperationId>,
    /// The hash of the parent's shared memory at the fork.
    #[cbor(n(3), with = "minicbor::bytes")]
    pub state_hash: [u8; 32],
}

impl Statement for Genesis {
    const KIND: &'static str = "context genesis";
    const DOMAIN: &'static str = "meshwork/context/genesis/1";
    const BYTES_MAX: usize = 4 * 1024;

    fn signer(&self) -> Principal {
        self.owner
    }

    fn check(&self) -> Result<(), Error> {
        let kind = Self::KIND;
        version(self.v, kind)?;
        let session_ok = !self.session_id.is_empty() && short(&self.session_id, SESSION_ID_CHARS_MAX);
        rule(session_ok, kind, "session_id", "is printable and has 1 to 128 characters")?;
        rule(self.expires_at > self.created_at, kind, "expires_at", "lies after created_at")?;
        self.parent.as_ref().map_or(Ok(()), |parent| {
            let sorted = parent.frontier.is_sorted_by(|a, b| a < b);
            rule(sorted && parent.frontier.len() <= FRONTIER_MAX, kind, "frontier", "has at most 64 operations, each once and in order")
        })
    }
}
