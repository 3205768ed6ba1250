//! A segment: the head of its file, and the walk through its entries, whatever became of them.
//!
//! The head takes the first 4,096 bytes: the header, a copy of it in another sector, and the *end*, all checked. The header never changes. The end is
//! written when the segment is full (*sealed*), and, as a note of how far it certainly was committed, when the journal has been idle. It
//! says where entries end, so what a crash left behind them need not be wiped: it stays as evidence, and nobody reads it again.
//!
//! A release that writes another format keeps the first 32 bytes as they are here, so that an older one can say what it met.

use super::entry::{self, Found, HEAD_BYTES};

/// How many bytes of a file come before its first entry.
pub(super) const ENTRIES_AT: u32 = 4_096;

/// How large a segment may be: one is read as a whole when a node starts.
pub(super) const SEGMENT_BYTES_MAX: u32 = 64 * 1_048_576;

/// Where the copy of the header is, and where the end: each in a sector of its own, which a disk writes as a whole.
const COPY_AT: usize = 512;
pub(super) const END_AT: u32 = 1_024;

const MAGIC: &[u8; 8] = b"MESHJRNL";
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 32;
const END_BYTES: usize = 20;

/// What a segment says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    /// How long its file is, in bytes.
    pub(super) bytes: u32,
    /// The index of its first entry.
    pub(super) first: u64,
    /// What the checksums of its entries begin from.
    pub(super) seed: u32,
}

/// How far a segment was committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct End {
    /// The index after its last entry.
    pub(super) index: u64,
    /// Where that would begin.
    pub(super) offset: u32,
    /// Whether nothing comes after it in this segment.
    pub(super) sealed: bool,
}

/// Why a head does not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HeadFault {
    /// Another format of ours.
    Newer(u32),
    /// Not ours.
    Foreign,
    /// Empty, cut short or damaged in both places.
    Damaged,
}

/// A head that reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) header: Header,
    pub(super) end: Option<End>,
    /// Which part of it does not read, if one does not.
    pub(super) damaged_at: Option<u32>,
}

impl Header {
    /// The head of a new segment.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut header = Vec::with_capacity(ENTRIES_AT as usize);
        header.extend_from_slice(MAGIC);
        header.extend_from_slice(&VERSION.to_le_bytes());
        header.extend_from_slice(&self.bytes.to_le_bytes());
        header.extend_from_slice(&self.first.to_le_bytes());
        header.extend_from_slice(&self.seed.to_le_bytes());
        header.extend_from_slice(&crc32c::crc32c(&header).to_le_bytes());
        let mut head = header.clone();
        head.resize(COPY_AT, 0);
        head.extend_from_slice(&header);
        head.resize(ENTRIES_AT as usize, 0);
        head
    }

    fn decode(bytes: &[u8]) -> Result<Self, HeadFault> {
        let bytes = bytes.get(..HEADER_BYTES).ok_or(HeadFault::Damaged)?;
        if bytes.iter().all(|byte| *byte == 0) {
            return Err(HeadFault::Damaged);
        }
        let half = |at| entry::number::<4>(bytes, at).and_then(|number| u32::try_from(number).ok()).ok_or(HeadFault::Damaged);
        let sound = crc32c::crc32c(&bytes[..HEADER_BYTES - 4]) == half(28)?;
        match (bytes.starts_with(MAGIC), sound, half(8)?) {
            (false, _, _) => Err(HeadFault::Foreign),
            (true, false, _) => Err(HeadFault::Damaged),
            (true, true, VERSION) => {
                let header = Self { bytes: half(12)?, first: entry::number::<8>(bytes, 16).ok_or(HeadFault::Damaged)?, seed: half(24)? };
                let sensible = (ENTRIES_AT..=SEGMENT_BYTES_MAX).contains(&header.bytes);
                sensible.then_some(header).ok_or(HeadFault::Damaged)
            }
            (true, true, version) => Err(HeadFault::Newer(version)),
        }
    }
}

impl End {
    pub(super) fn encode(&self, seed: u32) -> [u8; END_BYTES] {
        let mut bytes = [0; END_BYTES];
        bytes[..8].copy_from_slice(&self.index.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.offset.to_le_bytes());
        bytes[12..16].copy_from_slice(&u32::from(self.sealed).to_le_bytes());
        let crc = crc32c::crc32c_append(seed, &bytes[..16]);
        bytes[16..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8], header: &Header) -> Option<Self> {
        let half = |at| entry::number::<4>(bytes, at).and_then(|number| u32::try_from(number).ok());
        let end = Self { index: entry::number::<8>(bytes, 0)?, offset: half(8)?, sealed: half(12)? == 1 };
        let sound = crc32c::crc32c_append(header.seed, bytes.get(..16)?) == half(16)?;
        let sensible = (ENTRIES_AT..=header.bytes).contains(&end.offset) && end.index >= header.first;
        (sound && sensible).then_some(end)
    }
}

impl Head {
    /// Reads the head of the segment that the file's name says begins with `first`.
    pub(super) fn decode(bytes: &[u8], first: u64) -> Result<Self, HeadFault> {
        let copies = [0, COPY_AT].map(|at| Header::decode(bytes.get(at..).unwrap_or_default()));
        let (header, mut damaged_at) = match copies {
            [Ok(header), copy] => (header, copy.is_err().then_some(COPY_AT as u32)),
            [Err(_), Ok(header)] => (header, Some(0)),
            [Err(fault), Err(other)] if fault == other => return Err(fault),
            // Two faults of different kinds are damage, not another format.
            [Err(_), Err(_)] => return Err(HeadFault::Damaged),
        };
        if header.first != first {
            return Err(HeadFault::Foreign);
        }
        let end_bytes = bytes.get(END_AT as usize..END_AT as usize + END_BYTES).ok_or(HeadFault::Damaged)?;
        let end = End::decode(end_bytes, &header);
        if end.is_none() && end_bytes.iter().any(|byte| *byte != 0) {
            damaged_at = Some(END_AT);
        }
        Ok(Self { header, end, damaged_at })
    }
}

/// A part of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Piece<'a> {
    /// A sound entry.
    Entry { offset: u32, found: Found<'a> },
    /// Bytes that are no entry, up to the next sound one or to the last byte that is not zero.
    Bad { offset: u32, end: u32 },
}

/// The parts of a segment in order. What is zero to its end is no part.
#[derive(Debug)]
pub(super) struct Pieces<'a> {
    bytes: &'a [u8],
    /// Where the last byte that is not zero ends.
    used: usize,
    seed: u32,
    at: usize,
    index: u64,
}

impl<'a> Pieces<'a> {
    /// Walks through `bytes`, the file's from its beginning to where entries may end at most.
    pub(super) fn new(bytes: &'a [u8], header: &Header) -> Self {
        Self { bytes, used: used(bytes), seed: header.seed, at: ENTRIES_AT as usize, index: header.first }
    }

    /// The entry at `at`, if there is one and it cannot be from before where the walk has come.
    fn entry(&self, at: usize) -> Option<Found<'a>> {
        let bytes = self.bytes.get(at..)?;
        // What lies between could hold so many entries at most; this spares nearly all checksums of a search.
        let skipped = at.saturating_sub(self.at) / HEAD_BYTES;
        let index_max = self.index.saturating_add(skipped as u64);
        let plausible = (self.index..=index_max).contains(&entry::stated_index(bytes)?);
        let found = plausible.then(|| entry::decode(bytes, self.seed)).flatten()?;
        (found.batch as usize <= at).then_some(found)
    }
}

impl<'a> Iterator for Pieces<'a> {
    type Item = Piece<'a>;

    fn next(&mut self) -> Option<Piece<'a>> {
        if self.at >= self.used {
            return None;
        }
        let at = self.at;
        let offset = u32::try_from(at).ok()?;
        if let Some(found) = self.entry(at) {
            self.at = at.saturating_add(found.room());
            self.index = found.index.saturating_add(1);
            return Some(Piece::Entry { offset, found });
        }
        let next = (at + 1..self.used).find_map(|at| self.entry(at).map(|found| (at, found.index)));
        if let Some((_, index)) = next {
            self.index = index;
        }
        self.at = next.map_or(self.used, |(at, _)| at);
        Some(Piece::Bad { offset, end: u32::try_from(self.at).ok()? })
    }
}

/// How many bytes there are up to the last that is not zero.
fn used(bytes: &[u8]) -> usize {
    const ZEROS: [u8; 4_096] = [0; 4_096];
    let mut end = bytes.len();
    while end > 0 {
        let part = end.min(ZEROS.len());
        let page = &bytes[end - part..end];
        // As one comparison of memory, since there may be many megabytes of it.
        if page != &ZEROS[..part] {
            return end - page.iter().rev().take_while(|byte| **byte == 0).count();
        }
        end -= part;
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: Header = Header { bytes: 65_536, first: 10, seed: 99 };

    fn segment(payloads: &[&[u8]]) -> Vec<u8> {
        let mut bytes = HEADER.encode();
        for (index, payload) in (HEADER.first..).zip(payloads) {
            let batch = bytes.len() as u32;
            entry::encode(&mut bytes, HEADER.seed, index, batch, payload);
        }
        bytes.resize(HEADER.bytes as usize, 0);
        bytes
    }

    fn indices(bytes: &[u8]) -> (Vec<u64>, Vec<(u32, u32)>) {
        let (mut entries, mut bad) = (Vec::new(), Vec::new());
        for piece in Pieces::new(bytes, &HEADER) {
            match piece {
                Piece::Entry { found, .. } => entries.push(found.index),
                Piece::Bad { offset, end } => bad.push((offset, end)),
            }
        }
        (entries, bad)
    }

    #[test]
    fn a_header_is_read_from_its_copy_when_the_first_is_damaged() {
        let whole = HEADER.encode();
        assert_eq!(Head::decode(&whole, 10), Ok(Head { header: HEADER, end: None, damaged_at: None }));
        for (at, damaged_at) in [(3, 0), (20, 0), (512 + 30, 512)] {
            let mut bytes = whole.clone();
            bytes[at] ^= 4;
            assert_eq!(Head::decode(&bytes, 10), Ok(Head { header: HEADER, end: None, damaged_at: Some(damaged_at) }));
        }
        assert_eq!(Head::decode(&whole, 11), Err(HeadFault::Foreign), "a renamed file");
        assert_eq!(Head::decode(&[0; 4_096], 10), Err(HeadFault::Damaged));
        assert_eq!(Head::decode(&whole[..40], 10).map(|_| ()), Err(HeadFault::Damaged));
        assert_eq!(Head::decode(&[b'x'; 4_096], 10), Err(HeadFault::Foreign));
    }

    #[test]
    fn a_later_format_is_known_by_its_number() {
        let mut bytes = HEADER.encode();
        for at in [0, COPY_AT] {
            bytes[at + 8] = 2;
            let crc = crc32c::crc32c(&bytes[at..at + 28]);
            bytes[at + 28..at + 32].copy_from_slice(&crc.to_le_bytes());
        }
        assert_eq!(Head::decode(&bytes, 10), Err(HeadFault::Newer(2)));
    }

    #[test]
    fn an_end_that_is_damaged_or_impossible_is_none() {
        let mut bytes = HEADER.encode();
        let end = End { index: 12, offset: 5_000, sealed: true };
        let at = END_AT as usize;
        bytes[at..at + END_BYTES].copy_from_slice(&end.encode(HEADER.seed));
        assert_eq!(Head::decode(&bytes, 10).map(|head| (head.end, head.damaged_at)), Ok((Some(end), None)));
        bytes[at] ^= 1;
        assert_eq!(Head::decode(&bytes, 10).map(|head| (head.end, head.damaged_at)), Ok((None, Some(END_AT))));
        let behind = End { offset: HEADER.bytes + 1, ..end };
        bytes[at..at + END_BYTES].copy_from_slice(&behind.encode(HEADER.seed));
        assert_eq!(Head::decode(&bytes, 10).map(|head| head.end), Ok(None));
    }

    #[test]
    fn a_damaged_entry_costs_no_other() {
        let whole = segment(&[b"first", b"", b"third", &[7; 300], b"fifth"]);
        assert_eq!(indices(&whole), (vec![10, 11, 12, 13, 14], vec![]));
        let third = ENTRIES_AT as usize + 25 + 20;
        // Its checksum, length, index, batch and payload.
        for at in [0, 4, 7, 8, 15, 16, 20, 24] {
            let mut bytes = whole.clone();
            bytes[third + at] ^= 0x40;
            assert_eq!(indices(&bytes), (vec![10, 11, 13, 14], vec![(third as u32, third as u32 + 25)]), "byte {at}");
        }
    }

    #[test]
    fn an_entry_inside_a_payload_is_never_taken_for_one() {
        let mut forged = Vec::new();
        entry::encode(&mut forged, HEADER.seed + 1, 11, ENTRIES_AT, b"pay me");
        let mut bytes = segment(&[b"first", &forged, b"third"]);
        bytes[ENTRIES_AT as usize + 25] ^= 1;
        assert_eq!(indices(&bytes).0, vec![10, 12]);
    }

    #[test]
    fn a_torn_end_is_bad_up_to_its_last_byte() {
        let mut bytes = segment(&[b"first", b"second"]);
        let second = ENTRIES_AT as usize + 25;
        bytes[second + 22..].fill(0);
        assert_eq!(indices(&bytes), (vec![10], vec![(second as u32, second as u32 + 22)]));
        bytes[second..].fill(0);
        assert_eq!(indices(&bytes), (vec![10], vec![]), "nothing of it arrived");
    }
}
