//! How much of the journal was forgotten on purpose: without it, nobody could tell a segment that went because nothing in it was wanted any more from
//! one that somebody or a failing disk took away (fault F4).
//!
//! The mark is the index of the first entry that is still wanted. It only moves on, and it is durable before the first segment behind it goes. It
//! is written in place, into the older of two slots that lie in sectors of their own: a torn write leaves the other, and a full disk has
//! room for it, which is when segments must go. A mark that is missing or does not read stands at the beginning, so that what is not there is
//! missed once too often rather than once too little.

use std::io;

use super::{
    disk::Disk,
    entry::{self, Index},
};

/// The name of its file.
pub(super) const NAME: &str = "forgotten";

const MAGIC: &[u8; 8] = b"MESHMRK1";
const SLOT_BYTES: usize = 20;
/// Where the slots are: in sectors that a disk writes as a whole.
const SLOTS_AT: [u16; 2] = [0, 512];
const FILE_BYTES: u16 = 1_024;

/// What the slots say.
#[derive(Debug, Default)]
pub(super) struct Mark([u64; 2]);

impl Mark {
    /// Reads the file, if there is one.
    pub(super) fn read(disk: &dyn Disk) -> io::Result<Self> {
        let file = match disk.open(NAME) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(error),
        };
        let mut bytes = vec![0; usize::from(FILE_BYTES)];
        let read = file.read_at(&mut bytes, 0)?;
        bytes.truncate(read);
        let slots = SLOTS_AT.map(|at| decode(bytes.get(usize::from(at)..).unwrap_or_default()));
        if slots.iter().all(Option::is_none) && bytes.iter().any(|byte| *byte != 0) {
            tracing::warn!(file = %disk.path(NAME).display(), "what was forgotten of the journal is not known: all that is not there is missed");
        }
        Ok(Self(slots.map(Option::unwrap_or_default)))
    }

    /// Makes the file if there is none, while there is room for it.
    pub(super) fn prepare(disk: &dyn Disk) -> io::Result<()> {
        disk.allocate(NAME, FILE_BYTES.into()).map(drop)
    }

    /// All entries before this one were forgotten.
    pub(super) fn index(&self) -> Index {
        Index(self.0.into_iter().max().unwrap_or_default())
    }

    /// Moves the mark on, durably.
    pub(super) fn advance(&mut self, disk: &dyn Disk, index: Index) -> io::Result<()> {
        if index <= self.index() {
            return Ok(());
        }
        let older = usize::from(self.0[1] < self.0[0]);
        let file = disk.allocate(NAME, FILE_BYTES.into())?;
        file.write_at(&encode(index.0), SLOTS_AT[older].into())?;
        file.sync()?;
        // The file may be new.
        disk.sync_names()?;
        self.0[older] = index.0;
        Ok(())
    }
}

fn encode(index: u64) -> [u8; SLOT_BYTES] {
    let mut bytes = [0; SLOT_BYTES];
    bytes[..8].copy_from_slice(MAGIC);
    bytes[8..16].copy_from_slice(&index.to_le_bytes());
    let crc = crc32c::crc32c(&bytes[..16]);
    bytes[16..].copy_from_slice(&crc.to_le_bytes());
    bytes
}

fn decode(bytes: &[u8]) -> Option<u64> {
    let bytes = bytes.get(..SLOT_BYTES)?;
    let sound = entry::number::<4>(bytes, 16)? == u64::from(crc32c::crc32c(&bytes[..16]));
    (sound && bytes.starts_with(MAGIC)).then(|| entry::number::<8>(bytes, 8))?
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::journal::testing::{Knobs, Memory};

    fn index(disk: &Memory) -> u64 {
        Mark::read(disk).expect("reads").index().0
    }

    #[test]
    fn the_mark_moves_on_and_never_back_and_needs_no_room() {
        let disk = Memory::default();
        assert_eq!(index(&disk), 0);
        Mark::prepare(&disk).expect("room");
        disk.set(Knobs { full: true, ..Knobs::default() });
        let mut mark = Mark::read(&disk).expect("reads");
        for (to, expected) in [(7, 7), (9, 9), (3, 9), (20, 20)] {
            mark.advance(&disk, Index(to)).expect("written");
            assert_eq!((mark.index().0, index(&disk)), (expected, expected));
        }
    }

    /// F2: whatever a power cut leaves of a write, the mark is where it was or where it was to be.
    #[test]
    fn a_torn_mark_is_the_one_before() {
        let disk = Memory::default();
        let mut mark = Mark::default();
        mark.advance(&disk, Index(7)).expect("written");
        mark.advance(&disk, Index(9)).expect("written");
        for changes in 0..4 {
            let cut = disk.copy();
            cut.set(Knobs { changes_left: Some(changes), ..Knobs::default() });
            let done = Mark::read(&cut).expect("reads").advance(&cut, Index(20)).is_ok();
            for luck in 0..20 {
                let found = index(&cut.after_power_cut(luck));
                assert!(found == 20 || (found == 9 && !done), "{changes}, {luck}: {found}");
            }
        }
        disk.tamper(NAME, |bytes| bytes[9] ^= 1);
        assert_eq!(index(&disk), 9, "the slot that holds the 7 was damaged");
        disk.tamper(NAME, |bytes| bytes[512 + 9] ^= 1);
        assert_eq!(index(&disk), 0, "what is not there is missed");
    }
}
