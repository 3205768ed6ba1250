//! Who may read and write a context, as its owner says (AMP `access_control`, design/contexts.md "Access").
//!
//! Each change names the one before it, so that all of them form one chain. A change replaces the lists as a whole. Whoever loses a right is
//! named in `cuts` with the last operation that the owner had accepted of it: what it wrote later, or claims to have written earlier,
//! does not count.

use minicbor::{Decode, Encode};

use super::seal::{SEALED_KEY_BYTES, SEALED_PREVIOUS_BYTES};
use super::{Statement, codec};
use crate::model::{ContextId, OperationId, Path, Principal, Timestamp};
use crate::wire::{Error, rule, version};

/// How many principals may read a context, and how many may write to it.
pub const PRINCIPALS_MAX: usize = 64;
/// How many prefixes a writer may be given.
pub const PREFIXES_MAX: usize = 16;

/// The largest state that a checkpoint has, as text.
pub const BASE_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// The latest clock of a checkpoint: far more than anybody can have written, and far from where clocks end.
const LAMPORT_MAX: u64 = u64::MAX / 2;

/// One change of access.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Access {
    /// The version of the format.
    #[n(0)]
    pub v: u16,
    /// The context.
    #[cbor(n(1), with = "codec::context")]
    pub context: ContextId,
    /// Its owner.
    #[cbor(n(2), with = "codec::principal")]
    pub owner: Principal,
    /// The number of the change; the first is 1.
    #[n(3)]
    pub epoch: u64,
    /// The name of the change before it; of the genesis for the first.
    #[cbor(n(4), with = "minicbor::bytes")]
    pub prev: [u8; 32],
    /// Who may write besides the owner, in order of their keys.
    #[n(5)]
    pub writers: Vec<Writer>,
    /// Who may read, the owner and all writers among them, in order of their keys.
    #[n(6)]
    pub readers: Vec<Reader>,
    /// The number of the key that operations are sealed with from now on.
    #[n(7)]
    pub key_epoch: u64,
    /// What shows a reader that it was given the same key as all others.
    #[cbor(n(8), with = "minicbor::bytes")]
    pub key_check: [u8; 32],
    /// The key of the epoch before, sealed with this one; the first key has none before it.
    #[cbor(n(9), with = "minicbor::bytes")]
    pub previous_key: Option<[u8; SEALED_PREVIOUS_BYTES]>,
    /// Whoever lost a right, or wrote before a checkpoint, in order of their keys.
    #[n(10)]
    pub cuts: Vec<Cut>,
    /// When the context ends.
    #[cbor(n(11), with = "codec::time")]
    pub expires_at: Timestamp,
    /// When the change was made, by the owner's clock.
    #[cbor(n(12), with = "codec::time")]
    pub at: Timestamp,
    /// What the context held then, if the change is a checkpoint: what was written before begins no more anew.
    #[n(13)]
    pub checkpoint: Option<Checkpoint>,
}

/// What a context held when its owner ended what was written so far and had a new era begin. The cuts of the change then name the last
/// operation of everybody who wrote in the era before: those and all that they build on are in it, and nothing else is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct Checkpoint {
    /// The clock from which the operations of the new era count on.
    #[n(0)]
    pub lamport: u64,
    /// The hash of what the context held, as [`crate::proto::context::checkpoint::Base`] writes it.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub hash: [u8; 32],
    /// How many bytes that has.
    #[n(2)]
    pub bytes: u64,
}

/// Somebody who may write below some paths.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Writer {
    /// Who.
    #[cbor(n(0), with = "codec::principal")]
    pub principal: Principal,
    /// Where, in order.
    #[cbor(n(1), with = "codec::paths")]
    pub prefixes: Vec<Path>,
}

/// Somebody who may read.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Reader {
    /// Who.
    #[cbor(n(0), with = "codec::principal")]
    pub principal: Principal,
    /// The context's key, sealed to the reader.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub sealed_key: [u8; SEALED_KEY_BYTES],
}

/// The last operation that counts of somebody who lost a right, or wrote before a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Cut {
    /// Who.
    #[cbor(n(0), with = "codec::principal")]
    pub author: Principal,
    /// Its last operation that the owner had accepted, if there was one.
    #[n(1)]
    pub last: Option<Last>,
}

/// An operation, by its author's count and by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct Last {
    /// How many operations its author wrote before it.
    #[n(0)]
    pub seq: u64,
    /// Its name.
    #[cbor(n(1), with = "codec::operation")]
    pub id: OperationId,
}

impl Access {
    /// Whether `principal` may read from now on.
    pub fn may_read(&self, principal: Principal) -> bool {
        self.readers.binary_search_by_key(&principal, |reader| reader.principal).is_ok()
    }

    /// Whether `principal` may write at `path` from now on. Each reader has a memory of its own; the owner writes all that is shared.
    pub fn may_write(&self, principal: Principal, path: &Path) -> bool {
        if let Some(owner) = path.private_to() {
            return owner == principal && self.may_read(principal);
        }
        let prefixes = || self.writers.binary_search_by_key(&principal, |writer| writer.principal).ok().and_then(|at| self.writers.get(at));
        principal == self.owner || prefixes().is_some_and(|writer| writer.prefixes.iter().any(|prefix| prefix.covers(path)))
    }
}

impl Statement for Access {
    const KIND: &'static str = "context access";
    const DOMAIN: &'static str = "meshwork/context/access/1";
    // Prefixes take most of it.
    const BYTES_MAX: usize = 64 * 1024;

    fn signer(&self) -> Principal {
        self.owner
    }

    fn check(&self) -> Result<(), Error> {
        let kind = Self::KIND;
        version(self.v, kind)?;
        rule(self.epoch >= 1, kind, "epoch", "counts from 1")?;
        rule((1..=self.epoch).contains(&self.key_epoch), kind, "key_epoch", "counts from 1 and is at most epoch")?;
        rule(self.previous_key.is_some() == (self.key_epoch > 1), kind, "previous_key", "is there unless the key is the first")?;
        let writers_ok = self.writers.len() <= PRINCIPALS_MAX && self.writers.is_sorted_by(|a, b| a.principal < b.principal);
        rule(writers_ok, kind, "writers", "has at most 64 principals, each once and in order")?;
        let readers_ok = self.readers.len() <= PRINCIPALS_MAX && self.readers.is_sorted_by(|a, b| a.principal < b.principal);
        rule(readers_ok, kind, "readers", "has at most 64 principals, each once and in order")?;
        rule(self.may_read(self.owner), kind, "readers", "has the owner")?;
        rule(self.writers.iter().all(|writer| self.may_read(writer.principal)), kind, "readers", "has every writer")?;
        let prefixes_ok = |prefixes: &[Path]| {
            (1..=PREFIXES_MAX).contains(&prefixes.len())
                && prefixes.is_sorted_by(|a, b| a < b)
                && prefixes.iter().all(|prefix| prefix.private_to().is_none())
        };
        let all_ok = self.writers.iter().all(|writer| prefixes_ok(&writer.prefixes));
        rule(all_ok, kind, "prefixes", "has 1 to 16 paths of shared memory, each once and in order")?;
        let cuts_ok = self.cuts.len() <= 2 * PRINCIPALS_MAX && self.cuts.is_sorted_by(|a, b| a.author < b.author);
        rule(cuts_ok, kind, "cuts", "has at most 128 authors, each once and in order")?;
        let base_ok = |checkpoint: &Checkpoint| checkpoint.bytes <= BASE_BYTES_MAX && checkpoint.lamport <= LAMPORT_MAX;
        rule(self.checkpoint.as_ref().is_none_or(base_ok), kind, "checkpoint", "has at most 16 MiB and leaves room for clocks")?;
        // The clock of an operation is greater than its number, and of the last one it is at most that of the checkpoint.
        let ends_before = |lamport: u64| self.cuts.iter().all(|cut| cut.last.is_some_and(|last| last.seq < lamport));
        let cuts_end = self.checkpoint.as_ref().is_none_or(|checkpoint| ends_before(checkpoint.lamport));
        rule(cuts_end, kind, "cuts", "of a checkpoint name operations, each of a number below the checkpoint's clock")
    }
}
