//! What writers do to a context (design/contexts.md "Operation").

use std::collections::{BTreeMap, BTreeSet};

use minicbor::{Decode, Encode};
use serde_json::Value;

use super::{Signed, Statement, Verified, codec, written};
use crate::model::{CONTEXT_DEPTH_MAX, ContextId, OperationId, Path, Principal, SubtaskId, TaskId, Timestamp};
use crate::wire::{Error, rule, version};

/// The largest operation.
pub const OPERATION_BYTES_MAX: usize = 64 * 1024;
/// How many operations of others an operation may name.
pub const DEPENDENCIES_MAX: usize = 16;
/// How many operations of an author one signature vouches for beside its own.
const COVERED_MAX: usize = 63;
/// How many bytes they may have.
const COVERED_BYTES_MAX: usize = 256 * 1024;
/// How many items an operation may have.
pub const ITEMS_MAX: usize = 256;
/// How many operations of another context an operation may have been made of.
pub const SOURCES_MAX: usize = 256;

/// One change of a context: what everybody on its way may know, and what its readers alone can open.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Operation {
    /// Who, when and after what.
    #[n(0)]
    pub header: Header,
    /// Chosen at random for this operation.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub nonce: [u8; 24],
    /// The [`Body`], sealed, with the header as what it is bound to.
    #[cbor(n(2), with = "minicbor::bytes")]
    pub sealed: Vec<u8>,
}

/// What is known of an operation without its key.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Header {
    /// The version of the format.
    #[n(0)]
    pub v: u16,
    /// The context.
    #[cbor(n(1), with = "codec::context")]
    pub context: ContextId,
    /// Who wrote it.
    #[cbor(n(2), with = "codec::principal")]
    pub author: Principal,
    /// How many operations its author wrote in this context before it.
    #[n(3)]
    pub seq: u64,
    /// The author's operation before it, if there is one.
    #[cbor(n(4), with = "codec::maybe_operation")]
    pub prev: Option<OperationId>,
    /// Operations of others that its author knew and nobody had built on, in order.
    #[cbor(n(5), with = "codec::operations")]
    pub deps: Vec<OperationId>,
    /// One more than the greatest of `prev` and `deps`; 1 if there is none.
    #[n(6)]
    pub lamport: u64,
    /// The newest change of access that its author knew, which also says with which key it is sealed.
    #[n(7)]
    pub acl_epoch: u64,
    /// Whether it is sealed to its author alone.
    #[n(8)]
    pub is_private: bool,
    /// When it was written, by the author's clock; shown, and decides nothing.
    #[cbor(n(9), with = "codec::time")]
    pub at: Timestamp,
}

/// What an operation does.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
pub struct Body {
    /// In this order.
    #[n(0)]
    pub items: Vec<Item>,
    /// How far another context had come, all of which is here since this operation (AMP "Merge Contexts", "Fork Context").
    #[cbor(n(1), with = "codec::operations")]
    pub sources: Vec<OperationId>,
    /// The step of a task that wrote it.
    #[n(2)]
    pub step: Option<Step>,
    /// The context that the sources belong to: an operation's name alone does not tell.
    #[cbor(n(3), with = "codec::maybe_context")]
    pub source: Option<ContextId>,
    /// The author's own operation that this is once more: a checkpoint ended its era and does not have it.
    #[cbor(n(4), with = "codec::maybe_operation")]
    pub again: Option<OperationId>,
}

/// A step of a task.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Step {
    /// The task.
    #[cbor(n(0), with = "codec::task")]
    pub task: TaskId,
    /// The subtask's name.
    #[cbor(n(1), with = "subtask")]
    pub subtask: SubtaskId,
}

/// One thing that an operation does, at one place.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
pub enum Item {
    /// Puts a value there, in place of all that was there and below.
    #[n(0)]
    Set(#[cbor(n(0), with = "codec::path")] Path, #[cbor(n(1), with = "codec::value")] Value),
    /// Takes away what is there and below.
    #[n(1)]
    Del(#[cbor(n(0), with = "codec::path")] Path),
    /// Adds to the counter there.
    #[n(2)]
    Inc(#[cbor(n(0), with = "codec::path")] Path, #[n(1)] i64),
    /// Puts a value behind those of the list there.
    #[n(3)]
    Append(#[cbor(n(0), with = "codec::path")] Path, #[cbor(n(1), with = "codec::value")] Value),
}

impl Item {
    /// Where.
    pub fn path(&self) -> &Path {
        match self {
            Self::Set(path, _) | Self::Del(path) | Self::Inc(path, _) | Self::Append(path, _) => path,
        }
    }

    fn value(&self) -> Option<&Value> {
        match self {
            Self::Set(_, value) | Self::Append(_, value) => Some(value),
            Self::Del(_) | Self::Inc(..) => None,
        }
    }
}

impl Body {
    const KIND: &'static str = "operation body";

    /// Checks what the type system cannot.
    ///
    /// # Errors
    /// [`Error::Rule`] for the first rule that is broken.
    pub fn check(&self) -> Result<(), Error> {
        let kind = Self::KIND;
        rule((1..=ITEMS_MAX).contains(&self.items.len()), kind, "items", "are 1 to 256")?;
        rule(self.sources.len() <= SOURCES_MAX, kind, "sources", "are at most 256")?;
        rule(self.source.is_none() == self.sources.is_empty(), kind, "source", "is there if there are sources")?;
        let is_shallow = |item: &Item| {
            let below = CONTEXT_DEPTH_MAX.saturating_sub(item.path().segments().len());
            item.value().is_none_or(|value| is_shallow(value, below))
        };
        rule(self.items.iter().all(is_shallow), kind, "value", "nests at most 32 deep together with its path")?;
        let is_whole = |item: &Item| {
            let segments = item.path().segments().len();
            segments > if item.path().private_to().is_some() { 2 } else { 1 }
                || matches!(item, Item::Del(_) | Item::Set(_, Value::Object(_)))
        };
        rule(self.items.iter().all(is_whole), kind, "value", "of a whole memory is an object")?;
        let owners: BTreeSet<Option<Principal>> = self.items.iter().map(|item| item.path().private_to()).collect();
        rule(owners.len() == 1, kind, "items", "are all shared or all in one memory")
    }

    /// Whose memory it writes to; nobody's if it is shared.
    pub fn private_to(&self) -> Option<Principal> {
        self.items.first().and_then(|item| item.path().private_to())
    }

    pub(super) fn encode(&self) -> Result<Vec<u8>, Error> {
        self.check()?;
        Ok(written(self))
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, Error> {
        let body: Self = super::read(Self::KIND, bytes)?;
        body.check()?;
        Ok(body)
    }
}

/// Whether `value` nests at most `depth_max` deep; a plain value does not nest.
fn is_shallow(value: &Value, depth_max: usize) -> bool {
    match value {
        Value::Array(values) => depth_max > 0 && values.iter().all(|value| is_shallow(value, depth_max.saturating_sub(1))),
        Value::Object(fields) => depth_max > 0 && fields.values().all(|value| is_shallow(value, depth_max.saturating_sub(1))),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => true,
    }
}

impl Header {
    /// What a body is bound to.
    pub(super) fn encode(&self) -> Vec<u8> {
        written(self)
    }

    /// The operations that it names.
    pub fn parents(&self) -> impl Iterator<Item = OperationId> {
        self.prev.into_iter().chain(self.deps.iter().copied())
    }
}

impl Statement for Operation {
    const KIND: &'static str = "operation";
    const DOMAIN: &'static str = "meshwork/context/operation/1";
    const BYTES_MAX: usize = OPERATION_BYTES_MAX;

    fn signer(&self) -> Principal {
        self.header.author
    }

    fn check(&self) -> Result<(), Error> {
        let (kind, header) = (Self::KIND, &self.header);
        version(header.v, kind)?;
        rule(header.prev.is_some() == (header.seq > 0), kind, "prev", "is there unless the operation is its author's first")?;
        let deps_ok = header.deps.len() <= DEPENDENCIES_MAX && header.deps.is_sorted_by(|a, b| a < b);
        rule(deps_ok, kind, "deps", "has at most 16 operations, each once and in order")?;
        rule(header.prev.is_none_or(|prev| !header.deps.contains(&prev)), kind, "deps", "does not repeat prev")?;
        rule(header.lamport > header.seq, kind, "lamport", "counts the author's own operations too")?;
        rule(header.acl_epoch >= 1, kind, "acl_epoch", "counts from 1")
    }
}

impl Verified<Operation> {
    /// The hash that it is known by.
    pub fn id(&self) -> OperationId {
        OperationId::from_bytes(self.name())
    }
}

/// Checks a run of operations in the order in which they build on each other: one signature for each author whose operations are all
/// there, or for each 64 of them. An answer for each, in the same order. This belongs on a worker.
///
/// # Errors
/// [`Error::Signature`] for one whose signature is wrong and which no later operation of its author covers.
pub fn verify(run: Vec<Signed<Operation>>) -> Vec<Result<Verified<Operation>, Error>> {
    // A signature covers what its author names as its own operation before; that somebody else wrote that is not for the author to say.
    // With how many and how many bytes it covers: those who relay a part of a run must find an end of it that convinces.
    let mut covered: BTreeMap<([u8; 32], Principal), (usize, usize)> = BTreeMap::new();
    let mut answers: Vec<_> = run
        .into_iter()
        .rev()
        .map(|signed| {
            let author = signed.content.header.author;
            let by_later = covered.get(&(signed.name, author)).copied();
            let by_later = by_later.filter(|(operations, bytes)| *operations < COVERED_MAX && *bytes < COVERED_BYTES_MAX);
            let (prev, bytes) = (signed.content.header.prev, signed.bytes.len());
            let verified = if by_later.is_some() { Verified { signed, is_checked: false } } else { signed.verify()? };
            let (operations, before) = by_later.unwrap_or_default();
            covered.extend(prev.map(|prev| ((prev.to_bytes(), author), (operations.saturating_add(1), before.saturating_add(bytes)))));
            Ok(verified)
        })
        .collect();
    answers.reverse();
    answers
}

mod subtask {
    use minicbor::decode::Error as DecodeError;
    use minicbor::encode::{Error as EncodeError, Write};
    use minicbor::{Decoder, Encoder};

    use crate::model::SubtaskId;

    pub(super) fn encode<C, W: Write>(value: &SubtaskId, e: &mut Encoder<W>, _: &mut C) -> Result<(), EncodeError<W::Error>> {
        e.str(value.as_str())?;
        Ok(())
    }

    pub(super) fn decode<C>(d: &mut Decoder<'_>, _: &mut C) -> Result<SubtaskId, DecodeError> {
        d.str()?.parse().map_err(|_| DecodeError::message("no name of a subtask"))
    }
}
