//! Shared contexts on the disk: for each a file of its own, `contexts/ID.log`, to which statements are appended (design/contexts.md).
//!
//! A context is read as a whole or not at all, lives for months or minutes, and ends by itself; in the journal it would hold back all that
//! came after it. A file of its own is read from front to back in one go, is removed in one go, and what damages it damages nothing else.
//!
//! Each entry has its length, a CRC32C and a kind before its bytes, which this layer does not look into. An append returns after the file is
//! flushed. What a crash left unfinished at the end was never acknowledged and is cut off: it is short, or the system had made room for it and
//! not filled that. Any other entry whose bytes changed is passed over and reported, and those behind it are found by their checksums:
//! statements are signed and named by their hash, so that another replica can give it back.
//!
//! What nobody needs any more goes when the file is written anew as a whole; how many entries stood in its place is noted there, so that those
//! behind it keep their numbers.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::files::{create_durable, create_folder, fail, remove_durable, write_durable};
use super::gone::GoneContexts;
use super::{Error, MODE_SECRET};
use crate::model::ContextId;

const MAGIC: &[u8; 8] = b"MESHCTX\0";
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 12;
/// Length, checksum, kind.
const ENTRY_HEAD_BYTES: usize = 9;
/// The largest entry: a statement with its signature.
const ENTRY_BYTES_MAX: usize = 96 * 1024;
const WHOLE_ENTRY_BYTES_MAX: usize = ENTRY_HEAD_BYTES + ENTRY_BYTES_MAX;
/// How much is read at once by somebody who goes through a file piece by piece; more than an entry.
const PAGE_BYTES: u64 = 256 * 1024;
/// The largest file.
pub const FILE_BYTES_MAX: u64 = 256 * 1024 * 1024;

/// What a disk writes at once.
const SECTOR_BYTES: usize = 512;
/// So many zeros do not stand in a row in what is encrypted and signed.
const EMPTY_BYTES_MIN: usize = 8;
/// How much of a file holds its first entry, which is small.
const FIRST_BYTES_MAX: u64 = 8 * 1024;

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// How the context began; the first entry.
    Genesis,
    /// A change of access.
    Access,
    /// An operation.
    Operation,
    /// A piece of what the context held at a checkpoint.
    Base,
    /// So many entries stood here.
    Dropped,
}

impl Kind {
    fn number(self) -> u8 {
        match self {
            Self::Genesis => 1,
            Self::Access => 2,
            Self::Operation => 3,
            Self::Base => 4,
            Self::Dropped => 5,
        }
    }

    fn of(number: u8) -> Option<Self> {
        [Self::Genesis, Self::Access, Self::Operation, Self::Base, Self::Dropped].into_iter().find(|kind| kind.number() == number)
    }
}

/// One statement of a context.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// What it is.
    pub kind: Kind,
    /// Its bytes.
    pub bytes: Bytes,
}

impl Kept {
    /// The entry that stands for `count` others.
    pub fn dropped(count: u64) -> Self {
        Self { kind: Kind::Dropped, bytes: Bytes::copy_from_slice(&count.to_le_bytes()) }
    }

    /// How many entries it stands for: one, unless it tells of others.
    pub fn count(&self) -> u64 {
        let count = <[u8; 8]>::try_from(&self.bytes[..]).ok().filter(|_| self.kind == Kind::Dropped);
        count.map_or(1, u64::from_le_bytes)
    }

    /// How many bytes of a file it takes.
    pub fn len_bytes(&self) -> u64 {
        Self::length_bytes(&self.bytes)
    }

    /// How many bytes of a file such a statement takes.
    pub fn length_bytes(statement: &[u8]) -> u64 {
        u64::try_from(ENTRY_HEAD_BYTES.saturating_add(statement.len())).unwrap_or(u64::MAX)
    }
}

/// The folder of all contexts.
#[derive(Debug, Clone)]
pub struct Contexts {
    folder: PathBuf,
}

/// Where an entry stands in its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    offset: u64,
    length_bytes: u32,
}

impl Place {
    /// Where statements stand with which a file begins.
    pub fn of_first(statements: &[Kept]) -> Vec<Self> {
        Self::from(u64::try_from(HEADER_BYTES).unwrap_or(u64::MAX), statements)
    }

    fn from(mut offset: u64, statements: &[Kept]) -> Vec<Self> {
        let place = |kept: &Kept| {
            let place = Self::of(offset, kept);
            offset = offset.saturating_add(kept.len_bytes());
            place
        };
        statements.iter().map(place).collect()
    }

    fn of(offset: u64, kept: &Kept) -> Self {
        Self { offset, length_bytes: u32::try_from(kept.len_bytes()).unwrap_or(u32::MAX) }
    }

    /// How many bytes its statement has.
    pub fn len_bytes(self) -> usize {
        usize::try_from(self.length_bytes).unwrap_or(usize::MAX).saturating_sub(ENTRY_HEAD_BYTES)
    }
}

/// What a file holds.
#[derive(Debug)]
pub struct Loaded {
    /// In the order in which they were appended.
    pub kept: Vec<Kept>,
    /// Where each of them stands.
    pub places: Vec<Place>,
    /// What could not be read, if something could not.
    pub damage: Option<String>,
    /// What stands in the last entry, if that was changed.
    pub changed_last: Option<Bytes>,
}

/// The file of one context. It is opened for each thing that is done to it: thousands of contexts are in memory at once, and a process may have
/// no more than a thousand files open.
#[derive(Debug)]
pub struct Log {
    path: PathBuf,
    bytes: u64,
    /// Whether a flush failed: nobody knows what the disk holds, so nothing more is written.
    is_broken: bool,
}

impl Contexts {
    pub(super) fn new(data_dir: &Path) -> Self {
        Self { folder: data_dir.join("contexts") }
    }

    fn path(&self, id: ContextId) -> PathBuf {
        self.folder.join(format!("{id}.log"))
    }

    /// Those that this node has let go of.
    pub fn gone(&self) -> GoneContexts {
        GoneContexts::new(&self.folder)
    }

    /// Which contexts there are, with the bytes of their files; other files are left alone.
    ///
    /// # Errors
    /// [`Error::Io`] if the folder cannot be read.
    pub fn list(&self) -> Result<Vec<(ContextId, u64)>, Error> {
        let entries = match fs::read_dir(&self.folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(fail("list", &self.folder)(error)),
        };
        let named = |entry: std::io::Result<fs::DirEntry>| {
            let entry = entry.ok()?;
            let id = entry.file_name().to_str()?.strip_suffix(".log")?.parse().ok()?;
            // What cannot be looked at takes no less than a file may.
            Some((id, entry.metadata().map_or(FILE_BYTES_MAX, |metadata| metadata.len())))
        };
        Ok(entries.filter_map(named).collect())
    }

    /// Begins a context with its first statements, durably.
    ///
    /// # Errors
    /// [`Error::Io`], with the kind `AlreadyExists` if the context is there; [`Error::Unflushed`].
    pub fn create(&self, id: ContextId, first: &[Kept]) -> Result<Log, Error> {
        create_folder(&self.folder)?;
        let (bytes, path) = (whole(first), self.path(id));
        create_durable(&path, &bytes, MODE_SECRET)?;
        Ok(Log { path, bytes: u64::try_from(bytes.len()).unwrap_or(u64::MAX), is_broken: false })
    }

    /// Opens a context; `None` if there is none of that name.
    ///
    /// # Errors
    /// [`Error::Damaged`] if the file is not one of a context, [`Error::Newer`] if a later release wrote it, [`Error::Io`],
    /// [`Error::Unflushed`].
    pub fn open(&self, id: ContextId) -> Result<Option<(Log, Loaded)>, Error> {
        let path = self.path(id);
        let Some(bytes) = super::read_bounded(&path, FILE_BYTES_MAX)? else { return Ok(None) };
        let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        let (loaded, end) = decode(&path, &Bytes::from(bytes))?;
        let mut log = Log { path, bytes: length, is_broken: false };
        let file = log.opened()?;
        if end < length {
            log.cut(&file, end)?;
        }
        // What a process left that was killed is on the disk before anybody is shown it.
        log.flush(&file)?;
        Ok(Some((log, loaded)))
    }

    /// How many bytes the file of a context has; none if it cannot be looked at.
    pub fn len_bytes(&self, id: ContextId) -> u64 {
        fs::metadata(self.path(id)).map_or(0, |metadata| metadata.len())
    }

    /// How a context began, and no more than that is read of its file; `None` if there is none of that name, or it cannot be told.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be read.
    pub fn genesis(&self, id: ContextId) -> Result<Option<Kept>, Error> {
        let path = self.path(id);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(fail("open", &path)(error)),
        };
        let mut bytes = Vec::new();
        file.take(FIRST_BYTES_MAX).read_to_end(&mut bytes).map_err(fail("read", &path))?;
        let first = entry(&Bytes::from(bytes), HEADER_BYTES).map(|(kept, _)| kept);
        Ok(first.filter(|first| first.kind == Kind::Genesis))
    }

    /// Removes a context durably; says whether it was there.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::Unflushed`].
    pub fn remove(&self, id: ContextId) -> Result<bool, Error> {
        remove_durable(&self.path(id))
    }
}

impl Log {
    /// Appends statements, returns once they are on the disk, and says where.
    ///
    /// # Errors
    /// [`Error::Io`]: nothing was appended. [`Error::Unflushed`]: nobody knows; the file must be opened anew.
    pub fn append(&mut self, statements: &[Kept]) -> Result<Vec<Place>, Error> {
        self.check_sound()?;
        let mut bytes = Vec::new();
        statements.iter().for_each(|kept| encode(kept, &mut bytes));
        let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        if self.bytes.saturating_add(length) > FILE_BYTES_MAX {
            return Err(Error::TooLarge { path: self.path.clone(), bytes_max: FILE_BYTES_MAX });
        }
        let mut file = self.opened()?;
        file.seek(SeekFrom::Start(self.bytes)).map_err(fail("write", &self.path))?;
        if let Err(error) = file.write_all(&bytes).map_err(fail("write", &self.path)) {
            // What was written of it would stand before what comes next.
            self.is_broken = self.cut(&file, self.bytes).is_err();
            return Err(error);
        }
        self.flush(&file)?;
        let places = Place::from(self.bytes, statements);
        self.bytes += length;
        Ok(places)
    }

    /// Has the file hold these statements and nothing else, durably and all at once, and says where they stand.
    ///
    /// # Errors
    /// [`Error::Io`]: what was there stands. [`Error::Unflushed`]: nobody knows; the file must be opened anew.
    pub fn replace(&mut self, statements: &[Kept]) -> Result<Vec<Place>, Error> {
        self.check_sound()?;
        let bytes = whole(statements);
        write_durable(&self.path, &bytes, MODE_SECRET).inspect_err(|error| self.is_broken |= matches!(error, Error::Unflushed { .. }))?;
        self.bytes = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        Ok(Place::of_first(statements))
    }

    /// What stands at these places; nothing else of the file is read.
    ///
    /// # Errors
    /// [`Error::Io`], or [`Error::Damaged`] if something else stands there now.
    pub fn read_at(&self, places: &[Place]) -> Result<Vec<Kept>, Error> {
        let mut file = File::open(&self.path).map_err(fail("open", &self.path))?;
        let mut read = |place: &Place| {
            file.seek(SeekFrom::Start(place.offset)).map_err(fail("read", &self.path))?;
            let mut bytes = vec![0; ENTRY_HEAD_BYTES.saturating_add(place.len_bytes())];
            file.read_exact(&mut bytes).map_err(fail("read", &self.path))?;
            let found = entry(&Bytes::from(bytes), 0).map(|(kept, _)| kept).filter(|kept| Place::of(place.offset, kept) == *place);
            let reason = || format!("what stands at byte {} was changed since the file was opened", place.offset);
            found.ok_or_else(|| Error::Damaged { path: self.path.clone(), reason: reason() })
        };
        places.iter().map(&mut read).collect()
    }

    /// All that the file holds now.
    ///
    /// # Errors
    /// As [`Contexts::open`].
    pub fn read(&self) -> Result<Loaded, Error> {
        let mut bytes = Vec::new();
        let file = File::open(&self.path).map_err(fail("open", &self.path))?;
        file.take(self.bytes).read_to_end(&mut bytes).map_err(fail("read", &self.path))?;
        Ok(decode(&self.path, &Bytes::from(bytes))?.0)
    }

    /// The statements from byte `from` on, as many as a page holds, and where they end; none where the file ends. What was damaged is passed
    /// over. The file begins at 0.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn page(&self, from: u64) -> Result<(Vec<Kept>, u64), Error> {
        let mut file = File::open(&self.path).map_err(fail("open", &self.path))?;
        let mut from = from.max(u64::try_from(HEADER_BYTES).unwrap_or(u64::MAX));
        loop {
            let length = PAGE_BYTES.min(self.bytes.saturating_sub(from));
            let is_end = from.saturating_add(length) >= self.bytes;
            let mut bytes = Vec::new();
            file.seek(SeekFrom::Start(from)).map_err(fail("read", &self.path))?;
            (&mut file).take(length).read_to_end(&mut bytes).map_err(fail("read", &self.path))?;
            let (kept, end) = page(&Bytes::from(bytes), is_end);
            from = from.saturating_add(u64::try_from(end).unwrap_or(u64::MAX));
            if is_end || !kept.is_empty() {
                return Ok((kept, from));
            }
        }
    }

    /// How large the file is, in bytes.
    pub fn len_bytes(&self) -> u64 {
        self.bytes
    }

    fn check_sound(&self) -> Result<(), Error> {
        if self.is_broken {
            let source = std::io::Error::other("an earlier flush failed");
            return Err(Error::Unflushed { path: self.path.clone(), source });
        }
        Ok(())
    }

    fn opened(&self) -> Result<File, Error> {
        File::options().write(true).open(&self.path).map_err(fail("open", &self.path))
    }

    fn cut(&mut self, file: &File, end: u64) -> Result<(), Error> {
        file.set_len(end).map_err(fail("cut", &self.path))?;
        self.bytes = end;
        Ok(())
    }

    fn flush(&mut self, file: &File) -> Result<(), Error> {
        file.sync_data().map_err(|source| {
            self.is_broken = true;
            Error::Unflushed { path: self.path.clone(), source }
        })
    }
}

/// A file of these statements.
fn whole(statements: &[Kept]) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    statements.iter().for_each(|kept| encode(kept, &mut bytes));
    bytes
}

fn encode(kept: &Kept, bytes: &mut Vec<u8>) {
    let length = u32::try_from(kept.bytes.len()).unwrap_or(u32::MAX);
    let kind = kept.kind.number();
    let crc = crc32c::crc32c_append(crc32c::crc32c(&[kind]), &kept.bytes);
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(&crc.to_le_bytes());
    bytes.push(kind);
    bytes.extend_from_slice(&kept.bytes);
}

/// What stands in a file, and where the last whole entry ends.
fn decode(path: &Path, bytes: &Bytes) -> Result<(Loaded, u64), Error> {
    let number = |at: usize| bytes.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map(u32::from_le_bytes);
    if !bytes.starts_with(MAGIC) {
        let reason = "it does not begin as the file of a context does; move it away and let another replica give the context back";
        return Err(Error::Damaged { path: path.to_owned(), reason: reason.to_owned() });
    }
    match number(MAGIC.len()) {
        Some(VERSION) => {}
        version => return Err(Error::Newer { path: path.to_owned(), version: version.unwrap_or_default() }),
    }
    let mut loaded = Loaded { kept: Vec::new(), places: Vec::new(), damage: None, changed_last: None };
    let (mut at, mut damages) = (HEADER_BYTES, Vec::new());
    loop {
        if let Some((kept, end)) = entry(bytes, at) {
            loaded.places.push(Place::of(u64::try_from(at).unwrap_or(u64::MAX), &kept));
            loaded.kept.push(kept);
            at = end;
            continue;
        }
        let next = (at + 1..bytes.len()).find(|at| entry(bytes, *at).is_some());
        if next.is_none() {
            loaded.changed_last = changed(bytes, at);
            // Otherwise a crash left it, and nobody was told that it is there.
            if loaded.changed_last.is_none() {
                break;
            }
        }
        damages.push(at);
        at = next.unwrap_or(bytes.len());
        if at == bytes.len() {
            break;
        }
    }
    if let [first, rest @ ..] = damages.as_slice() {
        let more = if rest.is_empty() { String::new() } else { format!(", and in {} more places", rest.len()) };
        loaded.damage = Some(format!("{}: what stands at byte {first} was changed{more}", path.display()));
    }
    Ok((loaded, u64::try_from(at).unwrap_or(u64::MAX)))
}

/// The sound entries of a part of a file, and where the next part begins: one that is cut off here is whole there.
fn page(bytes: &Bytes, is_end: bool) -> (Vec<Kept>, usize) {
    let (mut kept, mut at) = (Vec::new(), 0);
    loop {
        if let Some((sound, end)) = entry(bytes, at) {
            kept.push(sound);
            at = end;
            continue;
        }
        let left = bytes.len().saturating_sub(at);
        if left == 0 || left < WHOLE_ENTRY_BYTES_MAX && !is_end {
            return (kept, at);
        }
        let rest = if is_end { bytes.len() } else { (bytes.len() + 1).saturating_sub(WHOLE_ENTRY_BYTES_MAX) };
        at = (at + 1..bytes.len()).find(|at| entry(bytes, *at).is_some()).unwrap_or(rest);
    }
}

/// The sound entry that begins at `at`, and where it ends.
fn entry(bytes: &Bytes, at: usize) -> Option<(Kept, usize)> {
    let number = |at: usize| bytes.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map(u32::from_le_bytes);
    let (length, crc, kind) = (usize::try_from(number(at)?).ok()?, number(at + 4)?, *bytes.get(at + 8)?);
    let end = (at + ENTRY_HEAD_BYTES).checked_add(length).filter(|end| length <= ENTRY_BYTES_MAX && *end <= bytes.len())?;
    let content = bytes.slice(at + ENTRY_HEAD_BYTES..end);
    let kept = Kept { kind: Kind::of(kind)?, bytes: content };
    (crc32c::crc32c_append(crc32c::crc32c(&[kind]), &kept.bytes) == crc).then_some((kept, end))
}

/// What stands in the entry at `at`, behind which there is none, if it was written as a whole and changed since: it is as long as it says, or
/// it says the wrong length alone; and no part of it that a disk writes at once is empty.
fn changed(bytes: &Bytes, at: usize) -> Option<Bytes> {
    let rest = bytes.slice(at.checked_add(ENTRY_HEAD_BYTES).filter(|from| *from < bytes.len())?..);
    let number = |at: usize| bytes.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map(u32::from_le_bytes);
    let (length, crc, kind) = (usize::try_from(number(at)?).ok()?, number(at + 4)?, *bytes.get(at + 8)?);
    let says_wrong_length = crc32c::crc32c_append(crc32c::crc32c(&[kind]), &rest) == crc;
    let content = if says_wrong_length { rest } else { rest.get(..length).map(|content| rest.slice_ref(content))? };
    let is_plausible = (1..=ENTRY_BYTES_MAX).contains(&content.len());
    let first = (at + ENTRY_HEAD_BYTES).next_multiple_of(SECTOR_BYTES) - (at + ENTRY_HEAD_BYTES);
    let (head, body) = content.split_at(first.min(content.len()));
    let is_empty = |part: &[u8]| part.len() >= EMPTY_BYTES_MIN && part.iter().all(|byte| *byte == 0);
    let is_filled = !is_empty(head) && !body.chunks(SECTOR_BYTES).any(is_empty);
    (is_plausible && is_filled).then_some(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(byte: u8) -> ContextId {
        ContextId::from_bytes([byte; 32])
    }

    fn kept(kind: Kind, text: &str) -> Kept {
        Kept { kind, bytes: Bytes::copy_from_slice(text.as_bytes()) }
    }

    fn three() -> [Kept; 3] {
        [kept(Kind::Access, "access"), kept(Kind::Operation, "one"), kept(Kind::Operation, "two")]
    }

    fn contexts() -> (tempfile::TempDir, Contexts) {
        let folder = tempfile::tempdir().expect("folder");
        let contexts = Contexts::new(folder.path());
        (folder, contexts)
    }

    #[test]
    fn what_was_appended_is_there_after_opening_again() {
        let (_folder, contexts) = contexts();
        assert_eq!(contexts.list().expect("lists"), []);
        let genesis = kept(Kind::Genesis, "genesis");
        let mut log = contexts.create(id(1), std::slice::from_ref(&genesis)).expect("creates");
        log.append(&three()).expect("appends");
        let all = [vec![genesis.clone()], three().to_vec()].concat();
        assert_eq!(log.read().expect("reads").kept, all);
        drop(log);
        let (mut log, loaded) = contexts.open(id(1)).expect("opens").expect("is there");
        let loaded_bytes: u64 = loaded.kept.iter().map(Kept::len_bytes).sum();
        assert_eq!((loaded.kept, loaded.damage), (all.clone(), None));
        log.append(&three()[..1]).expect("appends");
        assert_eq!(log.read().expect("reads").kept.len(), all.len() + 1);
        assert_eq!(contexts.list().expect("lists"), [(id(1), log.len_bytes())]);
        assert_eq!(log.len_bytes(), 12 + loaded_bytes + three()[0].len_bytes());
        assert_eq!(contexts.genesis(id(1)).expect("reads"), Some(genesis.clone()));
        assert_eq!(contexts.genesis(id(2)).expect("looks"), None);
        assert!(contexts.create(id(1), &[genesis]).is_err(), "it is there");
        assert!(contexts.remove(id(1)).expect("removes") && contexts.open(id(1)).expect("looks").is_none());
    }

    #[test]
    fn a_file_that_is_replaced_holds_what_is_left_and_goes_on() {
        let (folder, contexts) = contexts();
        let genesis = kept(Kind::Genesis, "genesis");
        let mut log = contexts.create(id(1), std::slice::from_ref(&genesis)).expect("creates");
        log.append(&three()).expect("appends");
        let left = [genesis, Kept::dropped(2), kept(Kind::Base, "base"), three()[2].clone()];
        assert_eq!(left.iter().map(Kept::count).collect::<Vec<_>>(), [1, 2, 1, 1]);
        let places = log.replace(&left).expect("replaces");
        assert_eq!(log.read_at(&places).expect("reads"), left);
        let place = log.append(&three()[..1]).expect("appends");
        let (again, loaded) = contexts.open(id(1)).expect("opens").expect("is there");
        assert_eq!((again.len_bytes(), loaded.kept.len(), loaded.damage), (log.len_bytes(), 5, None));
        assert_eq!((loaded.kept[..4].to_vec(), loaded.places.last()), (left.to_vec(), place.last()));
        assert_eq!(fs::read_dir(folder.path()).expect("lists").count(), 1, "nothing is left beside it");
    }

    #[test]
    fn nothing_is_written_to_a_file_of_which_a_flush_failed() {
        let (_folder, contexts) = contexts();
        let genesis = kept(Kind::Genesis, "genesis");
        let mut log = contexts.create(id(1), std::slice::from_ref(&genesis)).expect("creates");
        log.append(&three()).expect("appends");
        log.is_broken = true;
        assert!(matches!(log.append(&three()), Err(Error::Unflushed { .. })));
        assert!(matches!(log.replace(std::slice::from_ref(&genesis)), Err(Error::Unflushed { .. })));
        let (_, loaded) = contexts.open(id(1)).expect("opens").expect("is there");
        assert_eq!(loaded.kept.len(), 4, "what was there stands");
    }

    /// Whatever else became of the file, what stands at a place is read there, and its checksum with it.
    #[test]
    fn one_entry_is_read_without_the_others() {
        let (_folder, contexts) = contexts();
        let mut log = contexts.create(id(1), &[kept(Kind::Genesis, "genesis")]).expect("creates");
        let appended = [log.append(&three()[..1]).expect("appends"), log.append(&three()[1..]).expect("appends")].concat();
        let (log, loaded) = contexts.open(id(1)).expect("opens").expect("is there");
        assert_eq!(loaded.places[1..], appended);
        assert_eq!(appended[1].len_bytes(), "one".len());
        let path = contexts.path(id(1));
        let mut bytes = fs::read(&path).expect("reads");
        let one_at = bytes.len() - 2 * (ENTRY_HEAD_BYTES + 3);
        for (at, byte) in bytes.iter_mut().enumerate() {
            *byte ^= if (one_at..one_at + ENTRY_HEAD_BYTES + 3).contains(&at) { 0 } else { 0xff };
        }
        fs::write(&path, &bytes).expect("writes");
        assert_eq!(log.read_at(&appended[1..2]).expect("reads"), three()[1..2]);
        assert!(matches!(log.read_at(&appended), Err(Error::Damaged { .. })));
        fs::write(&path, &bytes[..one_at + 5]).expect("writes");
        assert!(matches!(log.read_at(&appended[1..2]), Err(Error::Io { .. })));
    }

    /// Read piece by piece a file shows what it shows as a whole, damaged or not, and goes on where it had ended.
    #[test]
    fn pages_hold_what_the_file_holds() {
        let (_folder, contexts) = contexts();
        let mut log = contexts.create(id(1), &[kept(Kind::Genesis, "genesis")]).expect("creates");
        let sizes = [1, 96 * 1024 - 1, 96 * 1024, 40_000, 96 * 1024, 3, 96 * 1024, 96 * 1024, 96 * 1024, 7];
        let entries: Vec<Kept> =
            sizes.iter().zip('a'..).map(|(size, text)| kept(Kind::Operation, &text.to_string().repeat(*size))).collect();
        for entry in &entries {
            log.append(std::slice::from_ref(entry)).expect("appends");
        }
        let paged = |log: &Log| {
            let (mut all, mut from, mut pages) = (Vec::new(), 0, 0);
            loop {
                let (some, end) = log.page(from).expect("reads");
                if some.is_empty() {
                    return (all, end, pages);
                }
                all.extend(some);
                (from, pages) = (end, pages + 1);
            }
        };
        let (all, end, pages) = paged(&log);
        assert_eq!((all, end), (log.read().expect("reads").kept, log.len_bytes()));
        assert!(pages > 2);
        log.append(&three()).expect("appends");
        assert_eq!(log.page(end).expect("reads").0, three());
        // Damage in the middle, longer than a page.
        let mut bytes = fs::read(contexts.path(id(1))).expect("reads");
        bytes[100_000..450_000].fill(0xff);
        fs::write(contexts.path(id(1)), &bytes).expect("writes");
        let (log, loaded) = contexts.open(id(1)).expect("opens").expect("is there");
        assert!(loaded.damage.is_some() && loaded.kept.len() < 14);
        assert_eq!(paged(&log).0, loaded.kept);
    }

    /// A file that ends anywhere within its last entry loses that entry and nothing else, and takes more.
    #[test]
    fn a_torn_end_costs_what_was_never_acknowledged() {
        let (_folder, contexts) = contexts();
        let mut log = contexts.create(id(1), &[kept(Kind::Genesis, "genesis")]).expect("creates");
        log.append(&three()).expect("appends");
        let whole = fs::read(contexts.path(id(1))).expect("reads");
        let last = whole.len() - (ENTRY_HEAD_BYTES + 3);
        for end in last..whole.len() {
            fs::write(contexts.path(id(1)), &whole[..end]).expect("writes");
            let (mut log, loaded) = contexts.open(id(1)).expect("opens").expect("is there");
            assert_eq!((loaded.kept.len(), loaded.damage), (3, None), "cut at {end}");
            log.append(&[kept(Kind::Operation, "new")]).expect("appends");
            let (_, loaded) = contexts.open(id(1)).expect("opens").expect("is there");
            assert_eq!(loaded.kept.last(), Some(&kept(Kind::Operation, "new")));
        }
    }

    /// Threat F4: also where nothing comes after it. It is reported for as long as it is there, and what is appended is found behind it.
    #[test]
    fn a_flipped_bit_in_the_last_entry_is_no_unfinished_write() {
        let (_folder, contexts) = contexts();
        let mut log = contexts.create(id(1), &[kept(Kind::Genesis, "genesis")]).expect("creates");
        log.append(&three()).expect("appends");
        let whole = fs::read(contexts.path(id(1))).expect("reads");
        let last = whole.len() - (ENTRY_HEAD_BYTES + 3);
        for at in last..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x10;
            fs::write(contexts.path(id(1)), &bytes).expect("writes");
            let (mut log, loaded) = contexts.open(id(1)).expect("opens").expect("is there");
            assert_eq!((loaded.kept.len(), loaded.changed_last.as_deref()), (3, Some(&bytes[last + ENTRY_HEAD_BYTES..])), "byte {at}");
            assert!(loaded.damage.is_some_and(|damage| damage.contains(&format!("byte {last}"))));
            let place = log.append(&[kept(Kind::Operation, "new")]).expect("appends");
            assert_eq!(log.read_at(&place).expect("reads"), [kept(Kind::Operation, "new")]);
            let (_, loaded) = contexts.open(id(1)).expect("opens").expect("is there");
            assert_eq!((loaded.kept.last(), loaded.places.last()), (Some(&kept(Kind::Operation, "new")), place.last()));
            assert!(loaded.damage.is_some() && loaded.changed_last.is_none());
        }
    }

    /// A file that was made longer and not filled when the power was cut: nobody was told of it.
    #[test]
    fn a_last_entry_of_which_a_part_is_empty_was_never_finished() {
        let (_folder, contexts) = contexts();
        let mut log = contexts.create(id(1), &[kept(Kind::Genesis, "genesis")]).expect("creates");
        log.append(&three()[..1]).expect("appends");
        let before = fs::read(contexts.path(id(1))).expect("reads").len();
        log.append(&[kept(Kind::Operation, &"x".repeat(3 * SECTOR_BYTES))]).expect("appends");
        let whole = fs::read(contexts.path(id(1))).expect("reads");
        let sectors = (before + ENTRY_HEAD_BYTES).next_multiple_of(SECTOR_BYTES)..whole.len();
        for from in sectors.step_by(SECTOR_BYTES).chain([before, before + ENTRY_HEAD_BYTES]) {
            let mut bytes = whole.clone();
            bytes[from..].fill(0);
            fs::write(contexts.path(id(1)), &bytes).expect("writes");
            let (log, loaded) = contexts.open(id(1)).expect("opens").expect("is there");
            assert_eq!((loaded.kept.len(), loaded.damage), (2, None), "empty from {from}");
            assert_eq!(log.len_bytes(), u64::try_from(before).expect("small"));
        }
    }

    /// Threat F4: a flipped bit is found; what it does not touch is there.
    #[test]
    fn a_flipped_bit_costs_one_entry_and_is_named() {
        let (_folder, contexts) = contexts();
        let mut log = contexts.create(id(1), &[kept(Kind::Genesis, "genesis")]).expect("creates");
        log.append(&three()).expect("appends");
        let whole = fs::read(contexts.path(id(1))).expect("reads");
        let access_at = HEADER_BYTES + ENTRY_HEAD_BYTES + "genesis".len();
        for at in access_at..access_at + ENTRY_HEAD_BYTES + "access".len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x10;
            fs::write(contexts.path(id(1)), &bytes).expect("writes");
            let (_, loaded) = contexts.open(id(1)).expect("opens").expect("is there");
            let texts: Vec<_> = loaded.kept.iter().map(|kept| kept.bytes.clone()).collect();
            assert_eq!(texts, ["genesis", "one", "two"], "byte {at}");
            assert!(loaded.damage.is_some_and(|damage| damage.contains(&format!("byte {access_at}"))));
        }
        let mut foreign = whole.clone();
        foreign[0] = b'x';
        fs::write(contexts.path(id(1)), &foreign).expect("writes");
        assert!(matches!(contexts.open(id(1)), Err(Error::Damaged { .. })));
        let mut newer = whole;
        newer[8] = 2;
        fs::write(contexts.path(id(1)), &newer).expect("writes");
        assert!(matches!(contexts.open(id(1)), Err(Error::Newer { version: 2, .. })));
    }
}
