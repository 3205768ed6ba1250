//! One entry as it lies in a segment, and the names that entries go by.
//!
//! An entry is a head of 20 bytes, all numbers little-endian, and its payload:
//!
//! | bytes | what |
//! |---|---|
//! | 4 | CRC32C, begun from the segment's own seed, of all that follows |
//! | 4 | length of the payload |
//! | 8 | index |
//! | 4 | offset at which its batch begins |
//!
//! *The seed* is drawn for each segment. Payloads hold what strangers sent, and a search behind damage must not take a forged entry inside a
//! payload for a real one, nor bytes of a former life of the disk.
//! *The batch* is what tells damage from a torn write: a batch is only written when everything before it is on the disk, so an entry is a
//! witness that whatever cannot be read before its batch was once there.

use std::{
    fmt,
    fs::File,
    io::{self, Read as _, Seek as _, SeekFrom},
    path::PathBuf,
};

/// How long the head of an entry is, in bytes.
pub(super) const HEAD_BYTES: usize = 20;

/// The number of an entry: the first of a journal is 0, and none is left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Index(pub u64);

impl fmt::Display for Index {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A segment, by the index of its first entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentId(pub u64);

impl SegmentId {
    /// The name of its file in the journal's folder.
    pub fn file_name(self) -> String {
        format!("{:016x}.seg", self.0)
    }

    /// The segment that a file of this name holds.
    pub(super) fn from_file_name(name: &str) -> Option<Self> {
        let digits = name.strip_suffix(".seg").filter(|digits| digits.len() == 16)?;
        let id = u64::from_str_radix(digits, 16).map(Self).ok()?;
        (id.file_name() == name).then_some(id)
    }
}

/// Where an entry lies; known as soon as it is queued, good for reading once it is committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// The segment.
    pub segment: SegmentId,
    /// Where in its file the entry begins, in bytes.
    pub offset: u32,
}

/// What a start found amiss in the journal. Nothing of it stops a node; each is logged as a warning, and `missing` is what the layer above
/// must look after.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Finding {
    /// The segment's file, or where it was moved to.
    pub file: PathBuf,
    /// Where the doubtful bytes begin.
    pub offset: u64,
    /// How many bytes are doubtful.
    pub bytes: u64,
    /// What they mean.
    pub kind: FindingKind,
}

/// What doubtful bytes mean.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum FindingKind {
    /// The last write before a crash did not reach the disk as a whole. Normal after a power cut: nothing in it was acknowledged, unless the
    /// disk lost what it had confirmed. The bytes stay where they are, and the journal goes on in a new segment.
    TornTail,
    /// Entries that were committed cannot be read any more. The disk is failing or somebody edited the file.
    Lost {
        /// The first that is missing.
        first: Index,
        /// The first after it that is not.
        end: Index,
    },
    /// A segment is not there, or several, and nobody forgot it on purpose. `file` is where it should be.
    Missing {
        /// The first entry that is missing.
        first: Index,
        /// The first after it that is not.
        end: Index,
    },
    /// The last segment does not say what it is any more, so it is not known how many entries are lost with it. It was moved aside.
    Unreadable {
        /// The first that it held.
        first: Index,
    },
    /// A header is damaged, and its copy or its neighbours served instead: no entry is missing.
    Header,
}

impl Finding {
    /// The doubtful bytes as they are. Blocks.
    ///
    /// # Errors
    /// If the file cannot be read any more.
    pub fn read(&self) -> io::Result<Vec<u8>> {
        let mut file = File::open(&self.file)?;
        file.seek(SeekFrom::Start(self.offset))?;
        let mut bytes = Vec::new();
        file.take(self.bytes).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// What was appended, damaged or not, as far as the heads in doubtful bytes still tell where it lies; nothing if they do not.
    pub fn payloads(mut bytes: &[u8]) -> Vec<&[u8]> {
        let mut payloads = Vec::new();
        while !bytes.is_empty() {
            let end = payload_bytes(bytes).and_then(|length| HEAD_BYTES.checked_add(length));
            let Some((entry, rest)) = end.and_then(|end| bytes.split_at_checked(end)) else { return Vec::new() };
            payloads.extend(entry.get(HEAD_BYTES..));
            bytes = rest;
        }
        payloads
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.file.display())?;
        if let FindingKind::Missing { first, end } = &self.kind {
            return write!(f, "not there: entries {first} up to {end} (exclusive) are gone with this file of the journal");
        }
        write!(f, "{} bytes from byte {} ", self.bytes, self.offset)?;
        match &self.kind {
            FindingKind::Missing { .. } => Ok(()),
            FindingKind::TornTail => f.write_str("are a write that a crash tore, and are left aside"),
            FindingKind::Lost { first, end } => write!(f, "are damaged: entries {first} up to {end} (exclusive) are lost"),
            FindingKind::Unreadable { first } => write!(f, "cannot be read: entries from {first} on are lost, how many is not known"),
            FindingKind::Header => f.write_str("of its header are damaged; its entries are not"),
        }
    }
}

/// What the head of an entry says, once its checksum has been found right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Found<'a> {
    pub(super) index: u64,
    /// Where its batch begins.
    pub(super) batch: u32,
    pub(super) payload: &'a [u8],
}

impl Found<'_> {
    /// How much room it takes.
    pub(super) fn room(&self) -> usize {
        HEAD_BYTES.saturating_add(self.payload.len())
    }
}

/// Puts an entry at the end of `buffer`. The payload's length was checked when it was queued.
pub(super) fn encode(buffer: &mut Vec<u8>, seed: u32, index: u64, batch: u32, payload: &[u8]) {
    let from = buffer.len();
    buffer.extend_from_slice(&[0; 4]);
    buffer.extend_from_slice(&u32::try_from(payload.len()).unwrap_or(u32::MAX).to_le_bytes());
    buffer.extend_from_slice(&index.to_le_bytes());
    buffer.extend_from_slice(&batch.to_le_bytes());
    buffer.extend_from_slice(payload);
    let crc = crc32c::crc32c_append(seed, &buffer[from + 4..]);
    buffer[from..from + 4].copy_from_slice(&crc.to_le_bytes());
}

/// The length that the head at the beginning of `bytes` states.
pub(super) fn payload_bytes(bytes: &[u8]) -> Option<usize> {
    usize::try_from(number::<4>(bytes, 4)?).ok()
}

/// The index that the head at the beginning of `bytes` states, before anything is checked.
pub(super) fn stated_index(bytes: &[u8]) -> Option<u64> {
    number::<8>(bytes, 8)
}

/// The entry at the beginning of `bytes`, if its checksum is right.
pub(super) fn decode(bytes: &[u8], seed: u32) -> Option<Found<'_>> {
    let length = payload_bytes(bytes)?;
    let whole = bytes.get(..HEAD_BYTES.checked_add(length)?)?;
    let crc = u32::try_from(number::<4>(whole, 0)?).ok()?;
    if crc32c::crc32c_append(seed, whole.get(4..)?) != crc {
        return None;
    }
    let batch = u32::try_from(number::<4>(whole, 16)?).ok()?;
    Some(Found { index: stated_index(whole)?, batch, payload: whole.get(HEAD_BYTES..)? })
}

/// The little-endian number of `N` bytes at `at`.
pub(super) fn number<const N: usize>(bytes: &[u8], at: usize) -> Option<u64> {
    let mut whole = [0; 8];
    whole.get_mut(..N)?.copy_from_slice(bytes.get(at..at.checked_add(N)?)?);
    Some(u64::from_le_bytes(whole))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_reads_as_it_was_written_and_under_no_other_seed() {
        let mut bytes = Vec::new();
        encode(&mut bytes, 7, 42, 4_096, b"payload");
        assert_eq!(decode(&bytes, 7), Some(Found { index: 42, batch: 4_096, payload: b"payload" }));
        assert_eq!(decode(&bytes, 8), None);
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_noticed() {
        let mut bytes = Vec::new();
        encode(&mut bytes, 7, 42, 4_096, b"some payload");
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(decode(&flipped, 7), None, "bit {bit}");
        }
        for length in 0..bytes.len() {
            assert_eq!(decode(&bytes[..length], 7), None, "cut to {length}");
        }
    }

    #[test]
    fn damaged_entries_are_told_apart_while_their_heads_are_sound() {
        let mut bytes = Vec::new();
        encode(&mut bytes, 7, 42, 4_096, b"first");
        encode(&mut bytes, 7, 43, 4_096, b"second");
        bytes[HEAD_BYTES] ^= 1;
        assert_eq!(Finding::payloads(&bytes), [&b"girst"[..], b"second"]);
        bytes[6] = 1;
        assert!(Finding::payloads(&bytes).is_empty());
        assert!(Finding::payloads(&bytes[..9]).is_empty());
    }

    #[test]
    fn a_segment_is_named_by_its_first_index_and_by_nothing_like_it() {
        assert_eq!(SegmentId(255).file_name(), "00000000000000ff.seg");
        assert_eq!(SegmentId::from_file_name("00000000000000ff.seg"), Some(SegmentId(255)));
        for name in ["ff.seg", "00000000000000FF.seg", "00000000000000ff.seg.damaged-1", "+0000000000000ff.seg", "spare"] {
            assert_eq!(SegmentId::from_file_name(name), None, "{name}");
        }
    }
}
