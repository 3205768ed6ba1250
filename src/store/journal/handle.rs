//! The journal as its callers see it: entries go in and are committed, and can be read where they lie.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
};

use bytes::Bytes;
use tokio::sync::watch;

use super::{
    disk::{Disk, Folder, Medium},
    entry::{self, HEAD_BYTES, Index, Position, SegmentId},
    mark::Mark,
    queue::{Bounds, Queue, Refused, Ticket},
    replay::{self, Replay, io},
    segment::{ENTRIES_AT, Header, SEGMENT_BYTES_MAX},
    writer::{Committed, Shared, Writer},
};
use crate::store::{Error, files};

/// How large an entry may be, in bytes. Larger bodies are blobs, so that none holds up what is behind it.
pub const ENTRY_BYTES_MAX: usize = 1_048_576;

/// How much of an entry is read at first: most are smaller, and then one read does.
const READ_BYTES: usize = 2_048;

/// The folder of the journal in the data directory.
const FOLDER: &str = "journal";

/// How large things are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Config {
    /// How large a segment is, in bytes: what a start reads at once, and what is freed at once. 64 KiB to 64 MiB; others are brought within.
    pub segment_bytes: u32,
    /// How many entries may wait for the disk.
    pub queue_entries_max: usize,
    /// How many bytes may wait for the disk.
    pub queue_bytes_max: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self { segment_bytes: 16 * 1_048_576, queue_entries_max: 16_384, queue_bytes_max: 8 * 1_048_576 }
    }
}

/// The open journal. Clones share it; when the last is dropped, what waits is still written, if there is room.
#[derive(Debug, Clone)]
pub struct Journal {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    disk: Arc<dyn Disk>,
    shared: Arc<Shared>,
    committed: watch::Receiver<Committed>,
    mark: Mutex<Mark>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.shared.queue.close();
    }
}

impl Journal {
    /// What [`super::super::DataDir::journal`] does.
    pub(in crate::store) fn open(data_dir: &Path, config: Config) -> Result<(Self, Replay), Error> {
        let folder = data_dir.join(FOLDER);
        files::create_folder(&folder)?;
        let (parts, writer, replay) = Self::parts(Arc::new(Folder(folder.clone())), config)?;
        let thread = std::thread::Builder::new().name(FOLDER.to_owned()).spawn(|| writer.run());
        let thread = thread.map_err(files::fail("start the writer of", &folder))?;
        *parts.inner.thread.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread);
        Ok((parts, replay))
    }

    /// The journal and its writer, which does not run yet.
    pub(super) fn parts(disk: Arc<dyn Disk>, config: Config) -> Result<(Self, Writer, Replay), Error> {
        let replay::Looked { replay, headers, next, mark } = replay::look(disk.clone())?;
        let segment_bytes = config.segment_bytes.clamp(65_536, SEGMENT_BYTES_MAX);
        let bounds = Bounds {
            entries_max: config.queue_entries_max,
            bytes_max: config.queue_bytes_max,
            entry_bytes_max: ENTRY_BYTES_MAX.min(segment_bytes as usize - ENTRIES_AT as usize - HEAD_BYTES),
            segment_bytes,
        };
        let shared = Arc::new(Shared {
            queue: Queue::new(bounds, next),
            headers: RwLock::new(headers),
            full: AtomicBool::new(false),
            flushes: AtomicU64::new(0),
        });
        let (sender, committed) = watch::channel(Committed { end: Index(next.next), stopped: None });
        let writer = Writer::new(disk.clone(), shared.clone(), sender, segment_bytes, next);
        let writer = writer.map_err(|source| io(&*disk, "open", &SegmentId(next.first).file_name(), source))?;
        let inner = Inner { disk, shared, committed, mark: Mutex::new(mark), thread: Mutex::new(None) };
        Ok((Self { inner: Arc::new(inner) }, writer, replay))
    }

    /// Queues entries together: they get consecutive indices, and are committed when [`Committed::covers`] the ticket. After a crash before that,
    /// all of them, none, or the first of them are there. Never waits.
    ///
    /// # Errors
    /// [`Refused`]; none of them is then queued.
    pub fn append(&self, entries: Vec<Bytes>) -> Result<Ticket, Refused> {
        self.inner.shared.queue.append(entries, true)
    }

    /// The same for entries that nobody waits for: they may be written two milliseconds later, with what is urgent by then.
    ///
    /// # Errors
    /// [`Refused`]; none of them is then queued.
    pub fn append_later(&self, entries: Vec<Bytes>) -> Result<Ticket, Refused> {
        self.inner.shared.queue.append(entries, false)
    }

    /// How far the disk is, for whoever waits for many tickets.
    pub fn committed(&self) -> watch::Receiver<Committed> {
        self.inner.committed.clone()
    }

    /// Waits until the ticket is committed.
    ///
    /// # Errors
    /// [`Refused::Stopped`] if it will not be.
    pub async fn wait(&self, ticket: &Ticket) -> Result<(), Refused> {
        let mut committed = self.committed();
        let seen = committed.wait_for(|committed| committed.covers(ticket) || committed.stopped.is_some()).await;
        match seen.map(|seen| (seen.covers(ticket), seen.stopped.clone())) {
            Ok((true, _)) => Ok(()),
            Ok((false, reason)) => Err(Refused::Stopped { reason: reason.unwrap_or_default() }),
            Err(_) => Err(Refused::Stopped { reason: "its writer ended".into() }),
        }
    }

    /// Whether new work must be refused, since there is room for little more than what runs. Ends by itself.
    pub fn is_full(&self) -> bool {
        self.inner.shared.full.load(Ordering::Relaxed)
    }

    /// How often entries were flushed since the start.
    pub fn flushes(&self) -> u64 {
        self.inner.shared.flushes.load(Ordering::Relaxed)
    }

    /// The first segment that it has and the last; `None` before there is one.
    pub fn segments(&self) -> Option<(SegmentId, SegmentId)> {
        self.headers(|headers| Some((SegmentId(*headers.keys().next()?), SegmentId(*headers.keys().next_back()?))))
    }

    /// The segment itself, if it is there, or the last before it.
    pub fn at_or_before(&self, segment: SegmentId) -> Option<SegmentId> {
        self.headers(|headers| headers.range(..=segment.0).next_back().map(|(first, _)| SegmentId(*first)))
    }

    /// The segment so many before the last that is not after `segment`, if there is one.
    pub fn before(&self, segment: SegmentId, count: usize) -> Option<SegmentId> {
        self.headers(|headers| headers.range(..=segment.0).rev().nth(count).map(|(first, _)| SegmentId(*first)))
    }

    /// What tells a segment from all others of its name; `None` if there is none that reads.
    pub fn seed(&self, segment: SegmentId) -> Option<u32> {
        self.headers(|headers| headers.get(&segment.0).map(|header| header.seed))
    }

    /// Reads the entry at `position`, which must be committed, and checks it. Blocks.
    ///
    /// # Errors
    /// [`Error::Damaged`] if no sound entry is there, [`Error::Io`].
    pub fn read(&self, position: Position) -> Result<Vec<u8>, Error> {
        self.opened(position.segment).and_then(|opened| opened.read(&*self.inner.disk, position))
    }

    /// Reads several entries, in the order of `positions`; cheaper if those of one segment stand together. Blocks.
    ///
    /// # Errors
    /// As [`Journal::read`], for the first that does not read.
    pub fn read_many(&self, positions: &[Position]) -> Result<Vec<Vec<u8>>, Error> {
        let mut opened: Option<Opened> = None;
        let mut read_one = |position: &Position| {
            let open = match opened.take() {
                Some(open) if open.header.first == position.segment.0 => open,
                Some(_) | None => self.opened(position.segment)?,
            };
            opened.insert(open).read(&*self.inner.disk, *position)
        };
        positions.iter().map(&mut read_one).collect()
    }

    /// The segment before which everything was forgotten on purpose: whatever else is not there is missing.
    pub fn forgotten(&self) -> SegmentId {
        SegmentId(self.mark().index().0)
    }

    /// Deletes all segments before this one, in which nothing is wanted any more, durably; also those that do not read. The segment at hand stays.
    /// Returns how many went. Blocks.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::Unflushed`]; some of them may be gone then.
    pub fn forget_before(&self, wanted: SegmentId) -> Result<usize, Error> {
        let Inner { disk, shared, .. } = &*self.inner;
        let Some((_, last)) = self.segments() else { return Ok(0) };
        let mut mark = self.mark();
        // Only where a segment begins, so that it is seen when the one behind the mark is missing.
        if let Some(first) = self.at_or_before(wanted.min(last)) {
            mark.advance(&**disk, Index(first.0)).map_err(|source| io(&**disk, "write", super::mark::NAME, source))?;
        }
        let names = disk.names().map_err(|source| io(&**disk, "list", "", source))?;
        let mut gone = 0;
        for id in names.iter().filter_map(|name| SegmentId::from_file_name(name)).filter(|id| id.0 < mark.index().0) {
            let name = id.file_name();
            match disk.remove(&name) {
                Err(source) if source.kind() != std::io::ErrorKind::NotFound => return Err(io(&**disk, "remove", &name, source)),
                Ok(()) | Err(_) => gone += 1,
            }
            shared.headers.write().unwrap_or_else(PoisonError::into_inner).remove(&id.0);
        }
        if gone > 0 {
            disk.sync_names().map_err(|source| Error::Unflushed { path: disk.path(""), source })?;
        }
        Ok(gone)
    }

    /// Takes no more entries, commits those that wait if there is room, and ends the writer. Blocks until it has. Dropping the journal does
    /// the same without waiting.
    pub fn close(&self) {
        self.inner.shared.queue.close();
        let thread = self.inner.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the journal's writer panicked");
        }
    }

    fn mark(&self) -> std::sync::MutexGuard<'_, Mark> {
        self.inner.mark.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn headers<T>(&self, see: impl FnOnce(&BTreeMap<u64, Header>) -> T) -> T {
        see(&self.inner.shared.headers.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn opened(&self, id: SegmentId) -> Result<Opened, Error> {
        let disk = &*self.inner.disk;
        let name = id.file_name();
        let header = self.headers(|headers| headers.get(&id.0).copied());
        let header = header.ok_or_else(|| damaged(disk, id, "the journal has no such segment; it may have been deleted".to_owned()))?;
        let file = disk.open(&name).map_err(|source| io(disk, "open", &name, source))?;
        Ok(Opened { header, file })
    }
}

/// A segment that is being read.
struct Opened {
    header: Header,
    file: Arc<dyn Medium>,
}

impl Opened {
    fn read(&self, disk: &dyn Disk, Position { segment, offset }: Position) -> Result<Vec<u8>, Error> {
        let fail = |source| io(disk, "read", &segment.file_name(), source);
        let unsound = || damaged(disk, segment, format!("no sound entry at byte {offset}; the disk may be failing"));
        let mut bytes = vec![0; READ_BYTES];
        let read = self.file.read_at(&mut bytes, offset.into()).map_err(fail)?;
        let length = entry::payload_bytes(&bytes[..read]).filter(|length| *length <= ENTRY_BYTES_MAX).ok_or_else(unsound)?;
        bytes.resize(HEAD_BYTES + length, 0);
        if bytes.len() > read {
            let more = self.file.read_at(&mut bytes[read..], u64::from(offset) + read as u64).map_err(fail)?;
            bytes.truncate(read + more);
        }
        entry::decode(&bytes, self.header.seed).ok_or_else(unsound)?;
        Ok(bytes.split_off(HEAD_BYTES))
    }
}

fn damaged(disk: &dyn Disk, id: SegmentId, reason: String) -> Error {
    Error::Damaged { path: disk.path(&id.file_name()), reason }
}
