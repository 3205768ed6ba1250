//! How replicas compare and complete each other: heads, pull, push and what stood at a checkpoint (design/contexts.md "Sync").
//!
//! They travel inside the control protocol, each as one byte string. Who may be told what is for the node to say; here is only what may
//! be written.

use minicbor::bytes::ByteVec;
use minicbor::{Decode, Encode};

use super::{BASE_BYTES_MAX, PRINCIPALS_MAX, codec, read, written};
use crate::model::{ContextId, OperationId, Principal};
use crate::wire::{Error, rule, short};

/// The largest question.
pub const QUESTION_BYTES_MAX: usize = 30 * 1024;
/// The largest answer.
pub const ANSWER_BYTES_MAX: usize = 1_536 * 1024;
/// How many contexts one message speaks of.
pub const HEADS_MAX: usize = 64;
/// How many tips a context has in a message: an author has one, unless it signed two operations of one number.
pub const TIPS_MAX: usize = 4 * PRINCIPALS_MAX;
/// How much of a base one answer carries.
pub const PIECE_BYTES_MAX: usize = 1024 * 1024;
/// How many statements one message carries.
pub const STATEMENTS_MAX: usize = 4_096;

const KIND: &str = "context message";

/// The last operation of an author that a replica has; one for each branch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
pub struct Tip {
    /// The author.
    #[cbor(n(0), with = "codec::principal")]
    pub author: Principal,
    /// How many operations it wrote before.
    #[n(1)]
    pub seq: u64,
    /// The operation.
    #[cbor(n(2), with = "codec::operation")]
    pub id: OperationId,
}

/// How far a replica has come.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Heads {
    /// Of which context.
    #[cbor(n(0), with = "codec::context")]
    pub context: ContextId,
    /// Its newest change of access; 0 if it has none.
    #[n(1)]
    pub epoch: u64,
    /// The name of that change.
    #[cbor(n(2), with = "minicbor::bytes")]
    pub access: [u8; 32],
    /// The last operations of all authors.
    #[n(3)]
    pub tips: Vec<Tip>,
}

/// Statements of one context, each with its signature.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Statements {
    /// Of which context.
    #[cbor(n(0), with = "codec::context")]
    pub context: ContextId,
    /// How it began, for one who does not know it.
    #[n(1)]
    pub genesis: Option<ByteVec>,
    /// Changes of access, in order.
    #[n(2)]
    pub accesses: Vec<ByteVec>,
    /// Operations, in an order in which each builds on those before it.
    #[n(3)]
    pub operations: Vec<ByteVec>,
    /// Whether there is more to pull.
    #[n(4)]
    pub more: bool,
}

/// What a replica asks or tells another.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum Question {
    /// This is what I have of contexts that we share; what do you have of them?
    #[n(0)]
    Heads(#[n(0)] Vec<Heads>),
    /// Send me what I lack.
    #[n(1)]
    Pull {
        /// What I have.
        #[n(0)]
        heads: Heads,
        /// Whether I know how the context began.
        #[n(1)]
        knows_genesis: bool,
    },
    /// This is new.
    #[n(2)]
    Push(#[n(0)] Statements),
    /// Send me what the context held at its newest checkpoint, from a byte on.
    #[n(3)]
    Base {
        /// Of which context.
        #[cbor(n(0), with = "codec::context")]
        context: ContextId,
        /// The name of that checkpoint.
        #[cbor(n(1), with = "minicbor::bytes")]
        checkpoint: [u8; 32],
        /// How much of it I have.
        #[n(2)]
        from: u64,
    },
}

/// What a replica answers.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum Answer {
    /// What I have of those contexts, where it differs.
    #[n(0)]
    Heads(#[n(0)] Vec<Heads>),
    /// What you lack, or some of it.
    #[n(1)]
    Statements(#[n(0)] Statements),
    /// I have it now.
    #[n(2)]
    Taken,
    /// Not to you, or not that.
    #[n(3)]
    Refused(#[n(0)] String),
    /// Some of what the context held.
    #[n(4)]
    Base(#[n(0)] ByteVec),
}

impl Heads {
    fn check(&self) -> Result<(), Error> {
        rule(self.tips.len() <= TIPS_MAX, KIND, "tips", "has at most 256 entries")
    }
}

impl Statements {
    fn check(&self) -> Result<(), Error> {
        let count = self.accesses.len().saturating_add(self.operations.len());
        rule(count <= STATEMENTS_MAX, KIND, "statements", "has at most 4096 entries")
    }
}

fn bounded(bytes: &[u8], bytes_max: usize) -> Result<(), Error> {
    if bytes.len() > bytes_max { Err(Error::Oversize { kind: KIND, bytes: bytes.len(), bytes_max }) } else { Ok(()) }
}

impl Question {
    /// The question as bytes.
    ///
    /// # Errors
    /// [`Error::Oversize`] or [`Error::Rule`] if nobody would read it.
    pub fn encode(&self) -> Result<Vec<u8>, Error> {
        self.check()?;
        let bytes = written(self);
        bounded(&bytes, QUESTION_BYTES_MAX)?;
        Ok(bytes)
    }

    /// The question in `bytes`.
    ///
    /// # Errors
    /// Any variant of [`Error`] but [`Error::Signature`].
    pub fn decode(bytes: &[u8]) -> Result<Self, Error> {
        bounded(bytes, QUESTION_BYTES_MAX)?;
        let question: Self = read(KIND, bytes)?;
        question.check()?;
        Ok(question)
    }

    fn check(&self) -> Result<(), Error> {
        match self {
            Self::Heads(heads) => {
                rule(heads.len() <= HEADS_MAX, KIND, "heads", "has at most 64 entries")?;
                heads.iter().try_for_each(Heads::check)
            }
            Self::Pull { heads, .. } => heads.check(),
            Self::Base { from, .. } => rule(*from <= BASE_BYTES_MAX, KIND, "from", "is at most 16 MiB"),
            Self::Push(statements) => statements.check(),
        }
    }
}

impl Answer {
    /// The answer as bytes.
    ///
    /// # Errors
    /// [`Error::Oversize`] or [`Error::Rule`] if nobody would read it.
    pub fn encode(&self) -> Result<Vec<u8>, Error> {
        self.check()?;
        let bytes = written(self);
        bounded(&bytes, ANSWER_BYTES_MAX)?;
        Ok(bytes)
    }

    /// The answer in `bytes`.
    ///
    /// # Errors
    /// Any variant of [`Error`] but [`Error::Signature`].
    pub fn decode(bytes: &[u8]) -> Result<Self, Error> {
        bounded(bytes, ANSWER_BYTES_MAX)?;
        let answer: Self = read(KIND, bytes)?;
        answer.check()?;
        Ok(answer)
    }

    fn check(&self) -> Result<(), Error> {
        match self {
            Self::Heads(heads) => {
                rule(heads.len() <= HEADS_MAX, KIND, "heads", "has at most 64 entries")?;
                heads.iter().try_for_each(Heads::check)
            }
            Self::Statements(statements) => statements.check(),
            Self::Taken => Ok(()),
            Self::Base(piece) => rule((1..=PIECE_BYTES_MAX).contains(&piece.len()), KIND, "base", "has 1 byte to 1 MiB"),
            Self::Refused(reason) => rule(short(reason, 200), KIND, "refused", "has at most 200 printable characters"),
        }
    }
}
