//! Bytes between nodes: strict decoding, signatures, versions.
//!
//! Two shapes of CBOR, for two needs. *Documents* (records, pulses, control messages) are maps by field name, written and read through
//! ciborium, so that a later version may add a field and an older node keeps working; they are few. *Frames* of a lane are arrays,
//! read in place by minicbor, with the payload as one byte string that nobody copies or re-encodes; they are many.
//!
//! Everything here may come from an enemy. A decoder is given the bytes it may read and a bound, never allocates by a declared length,
//! does not recurse deeper than `DEPTH_MAX`, and refuses bytes after the end. What is signed is verified over the bytes as they came.
//! The only way from bytes to a [`Verified`] value is through [`Signed::verify`]; `proto` accepts nothing else (threats T15, T27).

use serde::{Serialize, de::DeserializeOwned};

pub mod blob;
pub mod context;
pub mod directory;
pub mod invocation;
pub mod kept;
pub mod offer;
pub mod outbox;
pub mod paired;
pub mod receipt;
mod signed;
pub mod task;

pub use signed::{AgentKey, NodeKey, Signable, Signed, Verified};

/// The version of every document and protocol name that this build writes.
pub const VERSION: u16 = 1;

/// How deep a document may nest. Our own nest four levels.
const DEPTH_MAX: usize = 16;

/// Bytes from outside were not what they should be. The sender is at fault, nothing was changed, and the same bytes fail again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// More bytes than the kind allows.
    #[error("{kind} has {bytes} bytes, at most {bytes_max} are allowed")]
    Oversize {
        /// What was read.
        kind: &'static str,
        /// How many bytes there were.
        bytes: usize,
        /// How many there may be.
        bytes_max: usize,
    },
    /// Not the CBOR that it should be.
    #[error("{kind} is malformed: {reason}")]
    Malformed {
        /// What was read.
        kind: &'static str,
        /// What the decoder said, made printable.
        reason: String,
    },
    /// A format version that this build does not know.
    #[error("{kind} has version {version}, this node reads version {VERSION}")]
    Version {
        /// What was read.
        kind: &'static str,
        /// The version it names.
        version: u16,
    },
    /// A signature does not fit the bytes, or a key is not a key.
    #[error("{kind} is not signed by {signer}")]
    Signature {
        /// What was read.
        kind: &'static str,
        /// Who should have signed.
        signer: &'static str,
    },
    /// Well-formed and signed, but a field breaks a rule.
    #[error("{kind}: {field} {rule}")]
    Rule {
        /// What was read.
        kind: &'static str,
        /// The field.
        field: &'static str,
        /// The rule it breaks.
        rule: &'static str,
    },
}

impl Error {
    /// A short constant word for counters: peers must not choose metric labels.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Oversize { .. } => "oversize",
            Self::Malformed { .. } => "malformed",
            Self::Version { .. } => "version",
            Self::Signature { .. } => "signature",
            Self::Rule { .. } => "rule",
        }
    }
}

/// Something with a name and a bound, written as one CBOR map.
pub trait Document: Serialize + DeserializeOwned {
    /// What it is called in errors.
    const KIND: &'static str;
    /// The largest encoding that is read or written.
    const BYTES_MAX: usize;

    /// Checks what the type system cannot.
    ///
    /// # Errors
    /// [`Error::Rule`] or [`Error::Version`] for the first rule that is broken.
    fn check(&self) -> Result<(), Error>;
}

/// The bytes of a document.
///
/// # Errors
/// [`Error::Oversize`] or [`Error::Rule`] if the value is one that no other node would accept.
pub fn encode<D: Document>(document: &D) -> Result<Vec<u8>, Error> {
    document.check()?;
    let mut bytes = Vec::new();
    ciborium::into_writer(document, &mut bytes).map_err(|error| malformed(D::KIND, &error))?;
    bounded::<D>(&bytes)?;
    Ok(bytes)
}

/// The document in `bytes`, which must hold that and nothing else.
///
/// # Errors
/// Any variant of [`Error`]; the sender is at fault.
pub fn decode<D: Document>(bytes: &[u8]) -> Result<D, Error> {
    bounded::<D>(bytes)?;
    let mut rest = bytes;
    let document: D = ciborium::de::from_reader_with_recursion_limit(&mut rest, DEPTH_MAX).map_err(|error| malformed(D::KIND, &error))?;
    if !rest.is_empty() {
        return Err(malformed(D::KIND, &"bytes after the end"));
    }
    document.check()?;
    Ok(document)
}

fn bounded<D: Document>(bytes: &[u8]) -> Result<(), Error> {
    if bytes.len() > D::BYTES_MAX {
        return Err(Error::Oversize { kind: D::KIND, bytes: bytes.len(), bytes_max: D::BYTES_MAX });
    }
    Ok(())
}

fn malformed(kind: &'static str, reason: &dyn std::fmt::Display) -> Error {
    Error::Malformed { kind, reason: crate::model::printable(&reason.to_string(), 120) }
}

/// `Ok` if `holds`, else the rule that is broken.
fn rule(holds: bool, kind: &'static str, field: &'static str, rule: &'static str) -> Result<(), Error> {
    if holds { Ok(()) } else { Err(Error::Rule { kind, field, rule }) }
}

/// Whether a text is printable and no longer than that.
fn short(text: &str, chars_max: usize) -> bool {
    text.len() <= chars_max.saturating_mul(4) && text.chars().count() <= chars_max && !text.chars().any(char::is_control)
}

fn version(found: u16, kind: &'static str) -> Result<(), Error> {
    if found == VERSION { Ok(()) } else { Err(Error::Version { kind, version: found }) }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Note {
        text: String,
        tags: Vec<String>,
    }

    impl Document for Note {
        const KIND: &'static str = "note";
        const BYTES_MAX: usize = 1_000;

        fn check(&self) -> Result<(), Error> {
            rule(self.tags.len() < 3, "note", "tags", "has at most two entries")
        }
    }

    fn note() -> Note {
        Note { text: "hello".to_owned(), tags: vec!["a".to_owned()] }
    }

    #[test]
    fn a_document_survives_the_wire() {
        let bytes = encode(&note()).expect("fits");
        assert_eq!(decode::<Note>(&bytes), Ok(note()));
    }

    #[test]
    fn bytes_after_the_end_are_refused() {
        let mut bytes = encode(&note()).expect("fits");
        bytes.push(0);
        assert!(matches!(decode::<Note>(&bytes), Err(Error::Malformed { .. })));
    }

    #[test]
    fn a_repeated_field_is_refused() {
        let mut bytes = vec![0xa3];
        for (key, value) in [("text", vec![0x61, b'x']), ("tags", vec![0x80]), ("text", vec![0x61, b'y'])] {
            bytes.push(0x64);
            bytes.extend_from_slice(key.as_bytes());
            bytes.extend(value);
        }
        assert!(matches!(decode::<Note>(&bytes), Err(Error::Malformed { .. })));
    }

    #[test]
    fn a_field_of_a_later_version_is_passed_over() {
        let mut bytes = encode(&note()).expect("fits");
        bytes[0] = 0xa3;
        bytes.extend([0x63, b'n', b'e', b'w', 0x01]);
        assert_eq!(decode::<Note>(&bytes), Ok(note()));
    }

    /// Threat T27: nesting and length bombs.
    #[test]
    fn bombs_are_refused_without_being_unpacked() {
        let nested = vec![0x81; 900];
        let long_text = [&[0xa1, 0x64][..], b"text", &[0x7b, 0, 0, 1, 0, 0, 0, 0, 0]].concat();
        let long_array = [&[0xa1, 0x64][..], b"tags", &[0x9b, 0, 0, 1, 0, 0, 0, 0, 0]].concat();
        for bomb in [nested, long_text, long_array] {
            assert!(matches!(decode::<Note>(&bomb), Err(Error::Malformed { .. })));
        }
        assert!(matches!(decode::<Note>(&vec![0x60; 1_001]), Err(Error::Oversize { .. })));
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_a_decoder_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..300)) {
            let _ = decode::<Note>(&bytes);
            let _ = decode::<directory::Control>(&bytes);
            let _ = decode::<directory::Reply>(&bytes);
            let _ = Signed::<directory::Record>::from_bytes(&bytes);
            let _ = Signed::<receipt::Receipt>::from_bytes(&bytes);
            let _ = invocation::Frame::decode(&bytes.into());
        }
    }
}
