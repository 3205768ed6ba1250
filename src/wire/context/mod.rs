//! What shared contexts are made of, as bytes: signed, named by their hash, read strictly (design/contexts.md).
//!
//! Three kinds of statement, each signed by one key: the [`Genesis`] that begins a context, the [`Access`] changes of its owner, and the
//! [`Operation`]s of its writers, whose [`Body`] only readers can open ([`seal`]). They are kept and relayed for as long as the context
//! lives, so each is named by the BLAKE3 hash of its exact bytes, and there is one way alone to write it: what reads as a value but is not
//! what this node would have written for it is refused. Nobody can give one statement two names.
//!
//! A signature covers the name. A name covers what the statement refers to, so the signature of a writer's last operation vouches for all
//! that it wrote before: [`verify`] checks a run of operations with one signature for each writer, not one for each operation.

mod access;
mod codec;
mod genesis;
mod key;
mod operation;
pub mod seal;
pub mod sync;
#[cfg(test)]
mod tests;

use bytes::Bytes;
use minicbor::{Decode, Encode};

pub use access::{Access, BASE_BYTES_MAX, Checkpoint, Cut, Last, PREFIXES_MAX, PRINCIPALS_MAX, Reader, Writer};
pub use genesis::{FRONTIER_MAX, Genesis, Parent, SESSION_ID_CHARS_MAX};
pub use key::PrincipalKey;
pub use operation::{Body, DEPENDENCIES_MAX, Header, ITEMS_MAX, Item, OPERATION_BYTES_MAX, Operation, SOURCES_MAX, Step, verify};
pub use sync::Tip;

use super::{Error, malformed};
use crate::model::Principal;

/// Something that a principal says of a context.
pub trait Statement: Sized + Encode<()> + for<'b> Decode<'b, ()> {
    /// What it is called in errors.
    const KIND: &'static str;
    /// The domain tag of its names and signatures; no two kinds share one.
    const DOMAIN: &'static str;
    /// The largest encoding that is read or written.
    const BYTES_MAX: usize;

    /// Who must have signed it.
    fn signer(&self) -> Principal;

    /// Checks what the type system cannot.
    ///
    /// # Errors
    /// [`Error::Rule`] or [`Error::Version`] for the first rule that is broken.
    fn check(&self) -> Result<(), Error>;
}

/// A statement as it travels. Nothing in it is to be believed yet.
#[derive(Debug, Clone, PartialEq)]
pub struct Signed<T> {
    content: T,
    bytes: Bytes,
    name: [u8; 32],
    signature: [u8; 64],
}

/// A statement that its signer made.
#[derive(Debug, Clone, PartialEq)]
pub struct Verified<T> {
    signed: Signed<T>,
    /// Whether this signature was checked, or that of a later statement which covers it.
    is_checked: bool,
}

/// How a statement and its signature travel: `[statement, signature]`, both byte strings.
#[derive(Encode, Decode)]
struct Envelope<'b> {
    #[cbor(n(0), with = "minicbor::bytes")]
    statement: &'b [u8],
    #[cbor(n(1), with = "minicbor::bytes")]
    signature: [u8; 64],
}

/// What the envelope adds to a statement.
const ENVELOPE_BYTES_MAX: usize = 80;

impl<T: Statement> Signed<T> {
    /// Signs `content`.
    ///
    /// # Errors
    /// If it breaks one of its own rules, or names another signer.
    pub fn sign(content: T, key: &PrincipalKey) -> Result<Verified<T>, Error> {
        if content.signer() != key.principal() {
            return Err(Error::Signature { kind: T::KIND, signer: "its author" });
        }
        content.check()?;
        let bytes = Bytes::from(written(&content));
        bounded::<T>(bytes.len())?;
        let name = name::<T>(&bytes);
        let signature = key.sign(&message::<T>(&name));
        Ok(Verified { signed: Self { content, bytes, name, signature }, is_checked: true })
    }

    /// Reads a statement without believing it: well-formed, bounded, by its own rules, its signature not yet checked.
    ///
    /// # Errors
    /// Any variant of [`Error`] but [`Error::Signature`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Error> {
        bounded::<T>(bytes.len().saturating_sub(ENVELOPE_BYTES_MAX))?;
        let Envelope { statement, signature } = read(T::KIND, bytes)?;
        bounded::<T>(statement.len())?;
        let content: T = read(T::KIND, statement)?;
        content.check()?;
        Ok(Self { content, bytes: Bytes::copy_from_slice(statement), name: name::<T>(statement), signature })
    }

    /// What it says, for checks that are cheaper than a signature.
    pub fn unverified(&self) -> &T {
        &self.content
    }

    /// The hash that it is known by.
    pub fn name(&self) -> [u8; 32] {
        self.name
    }

    /// Checks the signature. This costs tens of microseconds and belongs on a worker.
    ///
    /// # Errors
    /// [`Error::Signature`] if it is wrong, or the key is weak.
    pub fn verify(self) -> Result<Verified<T>, Error> {
        if self.is_signed() {
            Ok(Verified { signed: self, is_checked: true })
        } else {
            Err(Error::Signature { kind: T::KIND, signer: "its author" })
        }
    }

    fn is_signed(&self) -> bool {
        super::signed::is_signed(&self.content.signer().public_key(), &message::<T>(&self.name), &self.signature)
    }
}

impl<T: Statement> Verified<T> {
    /// A statement that this node wrote to its own disk after it had checked it.
    ///
    /// # Errors
    /// If the bytes are not those of a statement: the disk changed them.
    pub fn kept(bytes: &[u8]) -> Result<Self, Error> {
        Ok(Self { signed: Signed::from_bytes(bytes)?, is_checked: false })
    }

    /// The hash that it is known by.
    pub fn name(&self) -> [u8; 32] {
        self.signed.name
    }

    /// The statement with its signature, to relay and to keep.
    pub fn to_bytes(&self) -> Vec<u8> {
        written(&Envelope { statement: &self.signed.bytes, signature: self.signed.signature })
    }

    /// How many bytes the statement itself has.
    pub fn len_bytes(&self) -> usize {
        self.signed.bytes.len()
    }

    /// Whether somebody else, who has only this statement, would believe it. What a later signature covered may carry any signature of
    /// its own, since nobody had to look at it.
    pub fn stands_alone(&self) -> bool {
        self.is_checked || self.signed.is_signed()
    }
}

impl<T> std::ops::Deref for Verified<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.signed.content
    }
}

fn name<T: Statement>(bytes: &[u8]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(T::DOMAIN.as_bytes()).update(&[0]).update(bytes);
    hasher.finalize().into()
}

fn message<T: Statement>(name: &[u8; 32]) -> Vec<u8> {
    [T::DOMAIN.as_bytes(), &[0], name].concat()
}

fn bounded<T: Statement>(bytes: usize) -> Result<(), Error> {
    if bytes > T::BYTES_MAX { Err(Error::Oversize { kind: T::KIND, bytes, bytes_max: T::BYTES_MAX }) } else { Ok(()) }
}

fn written(value: &impl Encode<()>) -> Vec<u8> {
    let mut bytes = Vec::new();
    // Writing to memory cannot fail, and every field has an encoding.
    let _ = minicbor::encode(value, &mut bytes);
    bytes
}

/// The value in `bytes`, if they are the ones that this node would write for it.
fn read<'b, T: Decode<'b, ()> + Encode<()>>(kind: &'static str, bytes: &'b [u8]) -> Result<T, Error> {
    let value: T = minicbor::decode(bytes).map_err(|error| malformed(kind, &error))?;
    if written(&value) == bytes { Ok(value) } else { Err(malformed(kind, &"not written in the one way there is")) }
}
