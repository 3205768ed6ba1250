//! Whole files, written so that a reader sees the old content or the new, also after the power was cut.
//!
//! The steps are the usual ones and each has its reason: a temporary file in the same folder, because a rename is atomic only within a
//! file system; created exclusively and with its final mode, so that nobody reads a secret between creation and `chmod`; flushed
//! before the rename, or the new name could point at unwritten blocks; the folder flushed after, or the rename itself could be lost.
//!
//! All of this blocks. Callers on an async runtime go through a blocking worker.

use std::{
    fs::{self, File, OpenOptions},
    hash::{BuildHasher, Hasher, RandomState},
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

use super::Error;

/// The mode of a secret: its owner alone reads and writes it.
pub const MODE_SECRET: u32 = 0o600;

/// The mode of a folder that holds secrets.
#[cfg(unix)]
const MODE_FOLDER: u32 = 0o700;

/// Replaces the content of `path` durably; `mode` is that of the new file. Returns after the folder is flushed.
///
/// # Errors
/// [`Error::Io`]: the former content stands. [`Error::Unflushed`]: either content may be on the disk.
pub fn write_durable(path: &Path, bytes: &[u8], mode: u32) -> Result<(), Error> {
    let temporary = write_beside(path, bytes, mode)?;
    fs::rename(&temporary, path).map_err(|source| {
        forget(&temporary);
        fail("replace", path)(source)
    })?;
    sync_folder(path)
}

/// Creates `path` durably and never replaces what is there.
///
/// # Errors
/// [`Error::Io`], with the kind `AlreadyExists` if the file is there; [`Error::Unflushed`].
pub fn create_durable(path: &Path, bytes: &[u8], mode: u32) -> Result<(), Error> {
    let temporary = write_beside(path, bytes, mode)?;
    // A second name can only be given where no file stands; a rename would replace it.
    let linked = fs::hard_link(&temporary, path);
    let made = match linked {
        // File systems without hard links: the lock on the data directory keeps other nodes out between look and rename.
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists && fs::symlink_metadata(path).is_err() => fs::rename(&temporary, path),
        linked => {
            forget(&temporary);
            linked
        }
    };
    made.map_err(|source| {
        forget(&temporary);
        fail("create", path)(source)
    })?;
    sync_folder(path)
}

/// Removes `path` durably; says whether it was there.
///
/// # Errors
/// [`Error::Io`] or [`Error::Unflushed`].
pub fn remove_durable(path: &Path) -> Result<bool, Error> {
    match fs::remove_file(path) {
        Ok(()) => sync_folder(path).map(|()| true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(fail("remove", path)(error)),
    }
}

/// The content of `path`, if it has at most `bytes_max` bytes; `None` if there is no such file.
///
/// # Errors
/// [`Error::TooLarge`] or [`Error::Io`].
pub fn read_bounded(path: &Path, bytes_max: u64) -> Result<Option<Vec<u8>>, Error> {
    match File::open(path) {
        Ok(file) => read_open(file, path, bytes_max).map(Some),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(fail("open", path)(error)),
    }
}

/// The content of a secret's file; `None` if there is no such file.
///
/// # Errors
/// [`Error::Exposed`] if other users may read or write it, [`Error::NotAFile`] for links and devices, else as [`read_bounded`].
pub(super) fn read_secret(path: &Path, bytes_max: u64) -> Result<Option<Vec<u8>>, Error> {
    let seen = match fs::symlink_metadata(path) {
        Ok(seen) => seen,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(fail("inspect", path)(error)),
    };
    if !seen.is_file() {
        return Err(Error::NotAFile { path: path.to_owned() });
    }
    let file = File::open(path).map_err(fail("open", path))?;
    let opened = file.metadata().map_err(fail("inspect", path))?;
    // A link may have been put there between the look and the opening.
    if !opened.is_file() || !same_file(&seen, &opened) {
        return Err(Error::NotAFile { path: path.to_owned() });
    }
    check_mode(&opened, path)?;
    read_open(file, path, bytes_max).map(Some)
}

/// Makes `path` and its parents durably; those that are new admit their owner alone.
pub(super) fn create_folder(path: &Path) -> Result<(), Error> {
    if path.is_dir() {
        return Ok(());
    }
    // One by one, since each new name has to be flushed in the folder that holds it.
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        create_folder(parent)?;
    }
    #[cfg_attr(not(unix), expect(unused_mut, reason = "only this family has modes"))]
    let mut builder = fs::DirBuilder::new();
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, MODE_FOLDER);
    match builder.create(path) {
        // Another thread may have been quicker.
        Err(_) if path.is_dir() => {}
        made => made.map_err(fail("create the folder", path))?,
    }
    sync_folder(path)
}

/// Options that create a file with `mode`.
pub(super) fn options(mode: u32) -> OpenOptions {
    let mut options = OpenOptions::new();
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, mode);
    #[cfg(not(unix))]
    let _ = mode;
    options.write(true);
    options
}

/// Turns what the operating system said into an error that names the file.
pub(super) fn fail(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io { action, path, source }
}

fn unflushed(path: &Path) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Unflushed { path: path.to_owned(), source }
}

fn read_open(file: File, path: &Path, bytes_max: u64) -> Result<Vec<u8>, Error> {
    let length = file.metadata().map_err(fail("inspect", path))?.len();
    // Room for all at once, so that a secret leaves no copies behind in buffers that were outgrown.
    let mut bytes = Vec::with_capacity(usize::try_from(length.min(bytes_max)).unwrap_or_default().saturating_add(1));
    file.take(bytes_max.saturating_add(1)).read_to_end(&mut bytes).map_err(fail("read", path))?;
    if bytes.len() as u64 > bytes_max {
        return Err(Error::TooLarge { path: path.to_owned(), bytes_max });
    }
    Ok(bytes)
}

/// Writes and flushes a new file beside `path`.
fn write_beside(path: &Path, bytes: &[u8], mode: u32) -> Result<PathBuf, Error> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = path.with_file_name(format!(".{name}.{:016x}.tmp", any_number()));
    let mut file = options(mode).create_new(true).open(&temporary).map_err(fail("create", &temporary))?;
    let written = file.write_all(bytes).map_err(fail("write", &temporary));
    written.and_then(|()| file.sync_all().map_err(unflushed(&temporary))).inspect_err(|_| forget(&temporary))?;
    Ok(temporary)
}

/// A number that differs from call to call, for names only; the standard library has no other source of randomness.
fn any_number() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// Removes a temporary file whose purpose is over; if that fails too, it is litter and not a fault.
fn forget(temporary: &Path) {
    let _ = fs::remove_file(temporary);
}

/// Flushes the folder that holds `path`, which is where its name is kept.
pub(super) fn sync_folder(path: &Path) -> Result<(), Error> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
    // Elsewhere a folder cannot be opened as a file.
    if !cfg!(unix) {
        return Ok(());
    }
    File::open(folder).map_err(fail("open the folder", folder))?.sync_all().map_err(unflushed(folder))
}

#[cfg(unix)]
fn same_file(a: &fs::Metadata, b: &fs::Metadata) -> bool {
    use std::os::unix::fs::MetadataExt;
    (a.dev(), a.ino()) == (b.dev(), b.ino())
}

#[cfg(not(unix))]
fn same_file(_: &fs::Metadata, _: &fs::Metadata) -> bool {
    true
}

#[cfg(unix)]
fn check_mode(metadata: &fs::Metadata, path: &Path) -> Result<(), Error> {
    use std::os::unix::fs::MetadataExt;
    let mode = metadata.mode() & 0o7777;
    if mode & 0o077 == 0 { Ok(()) } else { Err(Error::Exposed { path: path.to_owned(), mode }) }
}

#[cfg(not(unix))]
fn check_mode(_: &fs::Metadata, _: &Path) -> Result<(), Error> {
    Ok(())
}

#[cfg(all(test, unix))]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_written_file_has_its_content_and_mode_and_leaves_no_litter() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("x");
        write_durable(&path, b"one", 0o644).expect("writes");
        write_durable(&path, b"two", MODE_SECRET).expect("replaces");
        assert_eq!(read_bounded(&path, 3).expect("reads").as_deref(), Some(&b"two"[..]));
        assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(folder.path()).expect("lists").count(), 1);
    }

    #[test]
    fn creating_never_replaces() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("x");
        create_durable(&path, b"one", MODE_SECRET).expect("creates");
        let error = create_durable(&path, b"two", MODE_SECRET).expect_err("is there");
        assert!(matches!(error, Error::Io { source, .. } if source.kind() == io::ErrorKind::AlreadyExists));
        assert_eq!(fs::read(&path).expect("reads"), b"one");
        assert_eq!(fs::read_dir(folder.path()).expect("lists").count(), 1);
    }

    #[test]
    fn a_failed_write_leaves_the_old_content_and_no_litter() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("x");
        fs::create_dir(&path).expect("a folder in the way");
        fs::write(path.join("inside"), "old").expect("not empty");
        let error = write_durable(&path, b"new", MODE_SECRET).expect_err("cannot replace a folder");
        assert!(error.to_string().contains(&path.display().to_string()), "{error}");
        assert_eq!(fs::read_dir(folder.path()).expect("lists").count(), 1);
    }

    #[test]
    fn reading_stops_at_the_bound() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("x");
        fs::write(&path, [0; 5]).expect("writes");
        assert!(matches!(read_bounded(&path, 4), Err(Error::TooLarge { bytes_max: 4, .. })));
        assert!(read_bounded(&folder.path().join("absent"), 4).expect("no error").is_none());
    }

    #[test]
    fn removing_says_whether_something_was_there() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("x");
        fs::write(&path, "x").expect("writes");
        assert!(remove_durable(&path).expect("removes"));
        assert!(!remove_durable(&path).expect("nothing to do"));
    }
}
