//! Bodies that are too large for the journal: one file each, `blobs/OWNER/HASH`, named by the BLAKE3 hash of its content.
//!
//! An entry of the journal names a blob by owner and hash, so a blob is durable before that entry is written, and goes, with all others of its
//! owner, after the last entry that names it. The same content of one owner is one file. What is read back is what the hash
//! names or an error, so a damaged file is never passed on; keeping the content again mends it.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use blake3::Hash;

use super::{
    Error, check_name,
    files::{self, MODE_SECRET, fail},
};

/// How large a blob may be, in bytes: as large as a body that travels between nodes.
const BLOB_BYTES_MAX: u64 = 64 * 1_048_576;

/// The blobs of a data directory. Made by [`super::DataDir::blobs`]; calls block on the disk.
#[derive(Debug, Clone)]
pub struct Blobs {
    folder: Arc<Path>,
}

impl Blobs {
    pub(super) fn new(data_dir: &Path) -> Self {
        Self { folder: data_dir.join("blobs").into() }
    }

    /// Keeps `bytes` for `owner`, durably, and says under which hash.
    ///
    /// # Errors
    /// [`Error::TooLarge`], [`Error::Name`] for an owner that cannot be a folder, [`Error::Io`] or [`Error::Unflushed`].
    pub fn put(&self, owner: &str, bytes: &[u8]) -> Result<Hash, Error> {
        let hash = blake3::hash(bytes);
        let path = self.path(owner, &hash)?;
        if bytes.len() as u64 > BLOB_BYTES_MAX {
            return Err(Error::TooLarge { path, bytes_max: BLOB_BYTES_MAX });
        }
        // Only what reads as it should is left alone; a damaged file is replaced.
        if files::read_bounded(&path, BLOB_BYTES_MAX).is_ok_and(|kept| kept.as_deref() == Some(bytes)) {
            // A crash may have come between its making and the flush of its name.
            files::sync_folder(&path)?;
            return Ok(hash);
        }
        files::create_folder(&self.folder.join(owner))?;
        files::write_durable(&path, bytes, MODE_SECRET)?;
        Ok(hash)
    }

    /// The content that `owner` kept under `hash`; `None` if there is none.
    ///
    /// # Errors
    /// [`Error::Damaged`] if it is not what the hash names, [`Error::TooLarge`], [`Error::Name`] or [`Error::Io`].
    pub fn get(&self, owner: &str, hash: &Hash) -> Result<Option<Vec<u8>>, Error> {
        let path = self.path(owner, hash)?;
        let Some(bytes) = files::read_bounded(&path, BLOB_BYTES_MAX)? else { return Ok(None) };
        if blake3::hash(&bytes) != *hash {
            return Err(Error::Damaged { path, reason: "not the content that its name states; the disk may be failing".to_owned() });
        }
        Ok(Some(bytes))
    }

    /// Whether `owner` has a place for blobs: from the first that is kept until all are removed.
    ///
    /// # Errors
    /// [`Error::Name`] or [`Error::Io`].
    pub fn knows(&self, owner: &str) -> Result<bool, Error> {
        check_name(owner)?;
        let folder = self.folder.join(owner);
        folder.try_exists().map_err(fail("inspect", &folder))
    }

    /// Removes everything that `owner` kept, durably.
    ///
    /// # Errors
    /// [`Error::Name`], [`Error::Io`] or [`Error::Unflushed`]; some of it may be gone then.
    pub fn remove_all(&self, owner: &str) -> Result<(), Error> {
        check_name(owner)?;
        let folder = self.folder.join(owner);
        match fs::remove_dir_all(&folder) {
            Ok(()) => files::sync_folder(&folder),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(fail("remove", &folder)(error)),
        }
    }

    /// The owners of blobs, so that those whom nobody knows any more can be removed.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn owners(&self) -> Result<Vec<String>, Error> {
        let entries = match fs::read_dir(&self.folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(fail("list", &self.folder)(error)),
        };
        let name = |entry: io::Result<fs::DirEntry>| entry.map(|entry| entry.file_name().to_string_lossy().into_owned());
        let names: io::Result<Vec<String>> = entries.map(name).collect();
        let mut names = names.map_err(fail("list", &self.folder))?;
        names.retain(|name| check_name(name).is_ok());
        Ok(names)
    }

    fn path(&self, owner: &str, hash: &Hash) -> Result<PathBuf, Error> {
        check_name(owner)?;
        Ok(self.folder.join(owner).join(hash.to_hex().as_str()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_content_is_one_file_and_reads_back() {
        let folder = tempfile::tempdir().expect("folder");
        let blobs = Blobs::new(folder.path());
        let hash = blobs.put("task-1", b"body").expect("kept");
        assert_eq!(blobs.put("task-1", b"body").expect("kept"), hash);
        let empty = blobs.put("task-1", b"").expect("kept");
        assert_eq!(fs::read_dir(folder.path().join("blobs/task-1")).expect("lists").count(), 2);
        let again = Blobs::new(folder.path());
        assert_eq!(again.get("task-1", &hash).expect("reads").as_deref(), Some(&b"body"[..]));
        assert_eq!(again.get("task-1", &empty).expect("reads").as_deref(), Some(&b""[..]));
        assert_eq!(again.get("task-2", &hash).expect("no error"), None, "each owner's are its own");
    }

    #[test]
    fn blobs_go_with_their_owner_and_with_nobody_else() {
        let folder = tempfile::tempdir().expect("folder");
        let blobs = Blobs::new(folder.path());
        assert_eq!(blobs.owners().expect("none yet"), Vec::<String>::new());
        let hash = blobs.put("a", b"x").expect("kept");
        blobs.put("b", b"x").expect("kept");
        blobs.remove_all("a").expect("removed");
        blobs.remove_all("a").expect("nothing to do");
        assert_eq!(blobs.owners().expect("lists"), ["b"]);
        assert_eq!(blobs.get("a", &hash).expect("no error"), None);
        assert_eq!(blobs.get("b", &hash).expect("reads").as_deref(), Some(&b"x"[..]));
    }

    #[test]
    fn a_damaged_blob_is_named_and_mended_by_keeping_it_again() {
        let folder = tempfile::tempdir().expect("folder");
        let blobs = Blobs::new(folder.path());
        let hash = blobs.put("a", b"body").expect("kept");
        let path = folder.path().join("blobs/a").join(hash.to_hex().as_str());
        for text in ["bodY", "bod", "", "body and more"] {
            fs::write(&path, text).expect("writes");
            let error = blobs.get("a", &hash).expect_err(text);
            assert!(matches!(&error, Error::Damaged { .. }) && error.to_string().contains(hash.to_hex().as_str()), "{error}");
        }
        blobs.put("a", b"body").expect("kept");
        assert_eq!(blobs.get("a", &hash).expect("reads").as_deref(), Some(&b"body"[..]));
    }

    #[test]
    fn an_owner_that_is_no_plain_name_is_refused() {
        let folder = tempfile::tempdir().expect("folder");
        let blobs = Blobs::new(folder.path());
        for owner in ["", ".", "..", "../a", "a/b", ".hidden", "a\0b", &"x".repeat(65)] {
            assert!(matches!(blobs.put(owner, b"x"), Err(Error::Name { .. })), "{owner}");
            assert!(matches!(blobs.remove_all(owner), Err(Error::Name { .. })), "{owner}");
        }
        assert_eq!(fs::read_dir(folder.path()).expect("lists").count(), 0);
    }
}
