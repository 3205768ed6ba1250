//! Which contexts this node has let go of, in `contexts/gone`: ids, until when each is remembered, and whether a person dropped it.
//!
//! One file that is replaced as a whole, before the file of a context is removed: what was dropped does not come back because of a crash.

use std::path::{Path, PathBuf};

use super::files::{MODE_SECRET, create_folder, read_bounded, write_durable};
use super::{Error, lines};
use crate::model::{ContextId, Timestamp};

/// How large the file may be: twice what is remembered.
const FILE_BYTES_MAX: u64 = 8 * 1024 * 1024;
/// The first line: what the file is, and its format.
const HEADING: &str = "meshwork-contexts-gone 1";

/// The list of a data directory. Calls block on the disk. One caller at a time.
#[derive(Debug, Clone)]
pub struct GoneContexts {
    path: PathBuf,
}

/// A context, whether a person dropped it, and until when that is remembered.
type Entry = (ContextId, bool, Timestamp);

impl GoneContexts {
    pub(super) fn new(folder: &Path) -> Self {
        Self { path: folder.join("gone") }
    }

    /// All that are remembered.
    ///
    /// # Errors
    /// [`Error::Damaged`] if the file does not read, [`Error::TooLarge`] or [`Error::Io`].
    pub fn load(&self) -> Result<Vec<Entry>, Error> {
        let Some(bytes) = read_bounded(&self.path, FILE_BYTES_MAX)? else { return Ok(Vec::new()) };
        let entries = lines::decode(HEADING, &bytes).and_then(|lines| lines.map(entry).collect());
        entries.ok_or_else(|| Error::Damaged {
            path: self.path.clone(),
            reason: "torn or not a list of contexts, so contexts that were dropped may come back; move it away".to_owned(),
        })
    }

    /// Replaces them, durably.
    ///
    /// # Errors
    /// [`Error::Io`]: what was there stands. [`Error::Unflushed`]: nobody knows.
    pub fn write(&self, entries: impl Iterator<Item = Entry>) -> Result<(), Error> {
        self.path.parent().map_or(Ok(()), create_folder)?;
        write_durable(&self.path, lines::encode(HEADING, entries.map(line)).as_bytes(), MODE_SECRET)
    }
}

fn line((id, dropped, until): Entry) -> String {
    format!("{id} {} {}", until.as_ms(), if dropped { "dropped" } else { "ended" })
}

fn entry(line: &str) -> Option<Entry> {
    let mut words = line.split(' ');
    let (id, until, why) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?, words.next()?);
    let dropped = ["ended", "dropped"].iter().position(|word| *word == why)? == 1;
    words.next().is_none().then_some((id, dropped, Timestamp::from_ms(until)))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn what_was_written_is_read_and_damage_is_named() {
        let folder = tempfile::tempdir().expect("folder");
        let gone = GoneContexts::new(&folder.path().join("contexts"));
        assert_eq!(gone.load().expect("nothing yet"), []);
        let entries = [1, 2].map(|byte| (ContextId::from_bytes([byte; 32]), byte == 1, Timestamp::from_ms(u64::from(byte))));
        gone.write(entries.into_iter()).expect("writes");
        assert_eq!(gone.load().expect("reads"), entries);
        let whole = fs::read(&gone.path).expect("reads");
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            fs::write(&gone.path, &bytes).expect("writes");
            assert!(matches!(gone.load(), Err(Error::Damaged { .. })), "byte {at}");
            fs::write(&gone.path, &whole[..at]).expect("writes");
            assert!(gone.load().is_err(), "cut at {at}");
        }
    }
}
