//! The head of a blob: which part of which call follows on this substream (design.md section 5).
//!
//! A body too large for a lane is announced there by hash and length, and pushed by its sender on a substream that carries this head and
//! then the bytes, nothing else; the receiver answers every [`PIECE_BYTES`] but the last with one byte. Nobody can fetch a blob: what was not announced on a lane of the same peer is refused. The layout is fixed:
//! 16 bytes of invocation, one for the part, 32 of BLAKE3, eight of length, big end first; a change takes another protocol name.

use super::invocation::BlobId;
use super::{Error, malformed};
use crate::model::InvocationId;

/// Bytes of a head.
pub const HEAD_BYTES: usize = 57;
/// After so many bytes, the last ones excepted, the receiver writes one byte back, whatever its value, so that the sender knows what is still on its way.
pub const PIECE_BYTES: usize = 32 * 1024;
/// The largest blob that the protocol carries; a node's own limit (`limits.payload_bytes_max`) is usually smaller.
pub const BLOB_BYTES_MAX: u64 = 64 * 1024 * 1024;

const KIND: &str = "blob head";

/// Which body of a call a blob is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// The input, from the caller's node.
    Input,
    /// The output, from the agent's node.
    Output,
}

/// What comes before the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// The call.
    pub invocation: InvocationId,
    /// Which of its bodies.
    pub part: Part,
    /// What follows.
    pub blob: BlobId,
}

impl Head {
    /// The head as it travels.
    pub fn encode(&self) -> [u8; HEAD_BYTES] {
        let part = match self.part {
            Part::Input => 0,
            Part::Output => 1,
        };
        let mut bytes = [0; HEAD_BYTES];
        let written =
            self.invocation.to_bytes().into_iter().chain([part]).chain(self.blob.hash).chain(self.blob.length_bytes.to_be_bytes());
        bytes.iter_mut().zip(written).for_each(|(place, byte)| *place = byte);
        bytes
    }

    /// Reads a head.
    ///
    /// # Errors
    /// [`Error::Malformed`] for an unknown part, [`Error::Oversize`] for more than [`BLOB_BYTES_MAX`].
    pub fn decode(bytes: &[u8; HEAD_BYTES]) -> Result<Self, Error> {
        let (invocation, rest) = bytes.split_first_chunk::<16>().ok_or_else(|| malformed(KIND, &"too short"))?;
        let (part, rest) = rest.split_first().ok_or_else(|| malformed(KIND, &"too short"))?;
        let (hash, rest) = rest.split_first_chunk::<32>().ok_or_else(|| malformed(KIND, &"too short"))?;
        let length_bytes = rest.first_chunk::<8>().map(|bytes| u64::from_be_bytes(*bytes)).ok_or_else(|| malformed(KIND, &"too short"))?;
        let part = match part {
            0 => Part::Input,
            1 => Part::Output,
            _ => return Err(malformed(KIND, &"an unknown part")),
        };
        if length_bytes > BLOB_BYTES_MAX {
            let bytes_max = usize::try_from(BLOB_BYTES_MAX).unwrap_or(usize::MAX);
            return Err(Error::Oversize { kind: KIND, bytes: usize::try_from(length_bytes).unwrap_or(usize::MAX), bytes_max });
        }
        Ok(Self { invocation: InvocationId::from_bytes(*invocation), part, blob: BlobId { hash: *hash, length_bytes } })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head() -> Head {
        Head { invocation: InvocationId::from_random(7), part: Part::Output, blob: BlobId::of(b"many") }
    }

    #[test]
    fn a_head_survives_the_wire() {
        assert_eq!(Head::decode(&head().encode()), Ok(head()));
    }

    #[test]
    fn an_unknown_part_and_an_absurd_length_are_refused() {
        let mut bytes = head().encode();
        bytes[16] = 2;
        assert!(matches!(Head::decode(&bytes), Err(Error::Malformed { .. })));
        let mut bytes = head().encode();
        bytes[49..].copy_from_slice(&(BLOB_BYTES_MAX + 1).to_be_bytes());
        assert!(matches!(Head::decode(&bytes), Err(Error::Oversize { .. })));
    }
}
