//! The data directory, held by one process at a time (fault F19).
//!
//! Two nodes with one key would be two voices under one name, and two writers would each overwrite what the other acknowledged. The
//! lock is the operating system's, on a file that stays: it ends with its process however that ends, so nothing stale is ever cleared by
//! hand. The process id in the file only serves the message to whoever comes second.

use std::{
    fs::{File, TryLockError},
    io::{Read, Seek, Write},
    path::{Path, PathBuf},
};

use super::{
    Blobs, Contexts, Definitions, Error, Index, Keystore, Pins, Sequences,
    files::{self, MODE_SECRET, fail},
    journal::{self, Journal, Replay},
};

/// How long the text of a process id is at most, in bytes.
const PID_BYTES_MAX: u64 = 16;

/// An open data directory. Whoever holds the value holds the lock.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    // Closing the file gives the lock back.
    _lock: File,
}

impl DataDir {
    /// Opens the directory at `path` and locks it, making it (with mode 0700) if need be. Blocks on the disk, never on the lock.
    ///
    /// # Errors
    /// [`Error::Locked`] if another process holds it; [`Error::Io`] if it cannot be made or opened.
    pub fn open(path: &Path) -> Result<Self, Error> {
        files::create_folder(path)?;
        let lock_path = path.join("lock");
        let mut lock =
            files::options(MODE_SECRET).read(true).create(true).truncate(false).open(&lock_path).map_err(fail("open", &lock_path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(Error::Locked { path: path.to_owned(), pid: holder(&mut lock) }),
            Err(TryLockError::Error(source)) => return Err(fail("lock", &lock_path)(source)),
        }
        let noted = lock.set_len(0).and_then(|()| lock.rewind()).and_then(|()| writeln!(lock, "{}", std::process::id()));
        noted.map_err(fail("write", &lock_path))?;
        Ok(Self { path: path.to_owned(), _lock: lock })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The keys of this node and its agents.
    pub fn keys(&self) -> Keystore {
        Keystore::new(&self.path)
    }

    /// The definitions of agents that were added while running.
    pub fn definitions(&self) -> Definitions {
        Definitions::new(&self.path)
    }

    /// The sequence numbers of records.
    pub fn sequences(&self) -> Sequences {
        Sequences::new(&self.path)
    }

    /// Whom somebody pinned while the node ran.
    pub fn pins(&self) -> Pins {
        Pins::new(&self.path)
    }

    /// Opens the index, moving a damaged one aside; at most once at a time. Reads every value once; blocks.
    ///
    /// # Errors
    /// [`Error::Index`] or [`Error::Io`] if the disk refuses: it is full, or not ours to write. Damage is never an error. A node can go on
    /// without an index.
    pub fn index(&self) -> Result<Index, Error> {
        Index::open(&self.path)
    }

    /// Opens the journal, at most once at a time, and gives what it holds, to be replayed before anything is appended. Blocks.
    ///
    /// # Errors
    /// [`Error::Newer`] or [`Error::Damaged`] if a segment is not ours to read, [`Error::Io`] or [`Error::Unflushed`] if the disk refuses.
    /// Damage to entries is no error; [`Replay::run`] reports it.
    pub fn journal(&self, config: journal::Config) -> Result<(Journal, Replay), Error> {
        Journal::open(&self.path, config)
    }

    /// The shared contexts.
    pub fn contexts(&self) -> Contexts {
        Contexts::new(&self.path)
    }

    /// The bodies that are too large for the journal.
    pub fn blobs(&self) -> Blobs {
        Blobs::new(&self.path)
    }
}

/// The process id that the holder wrote, if it has got that far.
fn holder(lock: &mut File) -> Option<u32> {
    let mut text = String::new();
    lock.take(PID_BYTES_MAX).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_opener_is_told_who_holds_the_directory() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("data");
        let first = DataDir::open(&path).expect("free");
        let error = DataDir::open(&path).expect_err("held");
        assert!(matches!(error, Error::Locked { pid: Some(pid), .. } if pid == std::process::id()));
        let text = error.to_string();
        assert!(text.contains(&std::process::id().to_string()) && text.contains("--data-dir"), "{text}");
        drop(first);
        DataDir::open(&path).expect("free again");
    }

    #[cfg(unix)]
    #[test]
    fn a_new_directory_admits_its_owner_alone() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("a/b");
        let data = DataDir::open(&path).expect("makes it");
        assert_eq!(std::fs::metadata(data.path()).expect("there").permissions().mode() & 0o777, 0o700);
    }
}
