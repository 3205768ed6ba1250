//! The one thread that writes: takes what waits, writes it at once, flushes once, reports.
//!
//! While it flushes, the next batch gathers, so the number of flushes follows the disk and not the callers.
//!
//! *The spare* is the next segment, made in advance. A journal without one reports itself full: there is room for what runs, in the segment at hand,
//! and none for what is new. The writer tries again every second. When the segment at hand is used up too, entries wait.
//!
//! *Zeros* are written some way ahead of the entries: the first flush of a block that was only reserved makes the file system write down that it
//! is in use, and takes twice as long as any later one. They change nothing, since what is reserved reads as zeros.
//!
//! *A write that finds no room* (ENOSPC, EDQUOT) changed nothing that counts: it is repeated until there is some. *One that fails otherwise* is
//! not: a limit on the size of files (EFBIG), a read-only file system and a failing disk (EIO) stay until somebody sees to them, and what
//! EIO left is unknown. *A flush that fails is never repeated*: the system may have dropped the bytes and would report success for what is
//! gone. The journal then stops for good, and after a restart what is on the disk is read again.

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    path::PathBuf,
    sync::{
        Arc, RwLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::sync::watch;

use super::{
    disk::{Disk, Medium},
    entry::{self, Index, SegmentId},
    queue::{Place, Queue, Taken, Ticket, Waiting},
    segment::{END_AT, End, Header},
};

/// The name of the segment that was made in advance.
pub(super) const SPARE: &str = "spare";

/// How much is written and flushed at once: more would make the first in line wait for the last.
const BATCH_BYTES_MAX: usize = 1_048_576;
const BATCH_ENTRIES_MAX: usize = 4_096;

/// How long until a full disk is tried again.
const RETRY_EVERY: Duration = Duration::from_secs(1);

/// How long nothing must have been written until the segment notes how far it is committed.
const IDLE: Duration = Duration::from_secs(1);

/// How far the disk is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Committed {
    /// Every entry before this one is on the disk.
    pub end: Index,
    /// Why nothing more will be, once the journal has stopped.
    pub stopped: Option<Arc<str>>,
}

impl Committed {
    /// Whether all entries of the ticket are on the disk.
    pub fn covers(&self, ticket: &Ticket) -> bool {
        ticket.end() <= self.end
    }
}

/// What readers and callers may know of the writer.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) queue: Queue,
    pub(super) headers: RwLock<BTreeMap<u64, Header>>,
    pub(super) full: AtomicBool,
    /// How often entries were flushed: what durability costs.
    pub(super) flushes: AtomicU64,
}

/// How far ahead of the entries zeros are written at once: a few milliseconds' work. Where blocks are not reserved, they were all written.
const ZEROS_AHEAD_BYTES: u32 = if cfg!(target_os = "linux") { 512 * 1024 } else { 0 };

static ZEROS: [u8; 64 * 1024] = [0; 64 * 1024];

/// Why something could not be written.
#[derive(Debug)]
enum Trouble {
    /// There may be room later.
    NoRoom(io::Error),
    /// For good.
    Failed { action: &'static str, path: PathBuf, source: io::Error },
}

/// The segment at hand.
#[derive(Debug)]
struct Current {
    header: Header,
    file: Arc<dyn Medium>,
    /// How far it is written and flushed.
    end: End,
    /// Whether it says so itself.
    settled: bool,
    /// How far zeros are written behind the entries.
    zeros_end: u32,
}

impl Current {
    fn new(header: Header, file: Arc<dyn Medium>, end: End) -> Self {
        Self { header, file, end, settled: true, zeros_end: end.offset }
    }

    /// Writes zeros behind the entries, which end at `offset`, if there are none.
    fn keep_zeros(&mut self, offset: u32) {
        if offset < self.zeros_end {
            return;
        }
        self.zeros_end = offset.saturating_add(ZEROS_AHEAD_BYTES).min(self.header.bytes);
        let mut at = offset;
        while let Some(zeros) = self.zeros_end.checked_sub(at).and_then(|left| ZEROS.get(..ZEROS.len().min(left as usize))) {
            // Entries need none of it; what is wrong with the disk, the flush will say.
            if zeros.is_empty() || self.file.write_at(zeros, at.into()).is_err() {
                return;
            }
            at = at.saturating_add(zeros.len() as u32);
        }
    }
}

/// The writer's own state; [`Writer::run`] is its thread.
#[derive(Debug)]
pub(super) struct Writer {
    disk: Arc<dyn Disk>,
    shared: Arc<Shared>,
    committed: watch::Sender<Committed>,
    segment_bytes: u32,
    current: Option<Current>,
    spare: Option<Arc<dyn Medium>>,
    /// What was taken from the queue and is not committed yet.
    batch: VecDeque<Waiting>,
    buffer: Vec<u8>,
}

impl Writer {
    /// Opens the segment at `place`, where there is one, and makes the spare.
    pub(super) fn new(
        disk: Arc<dyn Disk>,
        shared: Arc<Shared>,
        committed: watch::Sender<Committed>,
        segment_bytes: u32,
        place: Place,
    ) -> io::Result<Self> {
        let header = shared.headers.read().unwrap_or_else(std::sync::PoisonError::into_inner).get(&place.first).copied();
        let current = match header.filter(|_| !place.is_new()) {
            Some(header) => {
                let file = disk.open(&SegmentId(place.first).file_name())?;
                let end = End { index: place.next, offset: place.offset, sealed: false };
                Some(Current::new(header, file, end))
            }
            None => None,
        };
        let (batch, buffer) = (VecDeque::new(), Vec::new());
        let mut writer = Self { disk, shared, committed, segment_bytes, current, spare: None, batch, buffer };
        writer.keep_spare();
        Ok(writer)
    }

    /// Writes until the journal is closed or stops.
    pub(super) fn run(mut self) {
        while self.turn() {}
    }

    /// Waits for a batch and writes it; says whether there may be another.
    pub(super) fn turn(&mut self) -> bool {
        let wait_max = match &self.current {
            _ if self.is_full() => Some(RETRY_EVERY),
            Some(current) if !current.settled => Some(IDLE),
            Some(_) | None => None,
        };
        let held = !self.batch.is_empty();
        let taken = self.shared.queue.take(&mut self.batch, BATCH_ENTRIES_MAX, BATCH_BYTES_MAX, wait_max);
        let done = match taken {
            Taken::Entries => self.write(),
            Taken::Nothing => self.settle(),
            // What is held still found no room.
            Taken::Closed => self.write().and_then(|()| self.settle()),
        };
        match done {
            // There was room after all, and so there may be for the rest.
            Ok(()) if taken == Taken::Closed && held => return true,
            Ok(()) => self.keep_spare(),
            Err(Trouble::NoRoom(source)) => self.set_full(Some(&source)),
            Err(Trouble::Failed { action, path, source }) => {
                self.stop(&format!("{action} {}: {source}; check the disk and start the node again", path.display()));
                return false;
            }
        }
        if taken == Taken::Closed {
            self.stop("it was closed");
        }
        taken != Taken::Closed
    }

    /// Commits what is in the batch, segment by segment. What found no room stays in it.
    fn write(&mut self) -> Result<(), Trouble> {
        while let Some(first) = self.batch.front() {
            let (id, index, begin) = (first.position.segment, first.index, first.position.offset);
            if self.current.as_ref().is_none_or(|current| current.header.first != id.0) {
                self.roll(index)?;
            }
            let Some(current) = &mut self.current else { return Ok(()) };
            self.buffer.clear();
            let mut count = 0_usize;
            for waiting in self.batch.iter().take_while(|waiting| waiting.position.segment == id) {
                entry::encode(&mut self.buffer, current.header.seed, waiting.index, begin, &waiting.payload);
                count += 1;
            }
            let path = || self.disk.path(&id.file_name());
            current.file.write_at(&self.buffer, begin.into()).map_err(|source| written(source, path()))?;
            current.settled = false;
            let offset = begin.saturating_add(u32::try_from(self.buffer.len()).unwrap_or(u32::MAX));
            current.keep_zeros(offset);
            current.file.sync().map_err(|source| Trouble::Failed { action: "flush", path: path(), source })?;
            self.shared.flushes.fetch_add(1, Ordering::Relaxed);
            self.batch.drain(..count);
            let end = index.saturating_add(count as u64);
            current.end = End { index: end, offset, sealed: false };
            self.committed.send_modify(|committed| committed.end = Index(end));
        }
        Ok(())
    }

    /// Seals the segment at hand and turns the spare into the one that begins with `first`.
    fn roll(&mut self, first: u64) -> Result<(), Trouble> {
        self.note_end(true)?;
        let spare = match self.spare.take() {
            Some(spare) => spare,
            None => self.make_spare().map_err(Trouble::NoRoom)?,
        };
        // Until all is done, it stays the spare.
        let spare = self.spare.insert(spare);
        let (disk, name) = (&self.disk, SegmentId(first).file_name());
        let header = Header { bytes: self.segment_bytes, first, seed: rand::random() };
        let failed = |action| {
            let path = disk.path(&name);
            move |source| Trouble::Failed { action, path, source }
        };
        spare.write_at(&header.encode(), 0).map_err(|source| written(source, disk.path(SPARE)))?;
        spare.sync().map_err(failed("flush"))?;
        disk.rename(SPARE, &name).map_err(|source| written(source, disk.path(&name)))?;
        let file = spare.clone();
        self.spare = None;
        disk.sync_names().map_err(failed("flush the folder of"))?;
        self.shared.headers.write().unwrap_or_else(std::sync::PoisonError::into_inner).insert(first, header);
        let end = End { index: first, offset: super::segment::ENTRIES_AT, sealed: false };
        self.current = Some(Current::new(header, file, end));
        Ok(())
    }

    /// Notes in the segment at hand how far it is committed, if it does not say so yet.
    fn settle(&mut self) -> Result<(), Trouble> {
        if self.current.as_ref().is_none_or(|current| current.settled) { Ok(()) } else { self.note_end(false) }
    }

    fn note_end(&mut self, sealed: bool) -> Result<(), Trouble> {
        let Some(current) = &mut self.current else { return Ok(()) };
        let path = || self.disk.path(&SegmentId(current.header.first).file_name());
        let bytes = End { sealed, ..current.end }.encode(current.header.seed);
        current.file.write_at(&bytes, END_AT.into()).map_err(|source| written(source, path()))?;
        current.file.sync().map_err(|source| Trouble::Failed { action: "flush", path: path(), source })?;
        current.settled = true;
        Ok(())
    }

    /// Sees to it that the next segment is there.
    fn keep_spare(&mut self) {
        if self.spare.is_none() {
            match self.make_spare() {
                Ok(spare) => self.spare = Some(spare),
                Err(source) => return self.set_full(Some(&source)),
            }
        }
        self.set_full(None);
    }

    fn make_spare(&self) -> io::Result<Arc<dyn Medium>> {
        self.disk.allocate(SPARE, self.segment_bytes.into()).inspect_err(|_| {
            // What it has claimed already may be what somebody else needs to end.
            let _ = self.disk.remove(SPARE);
        })
    }

    fn is_full(&self) -> bool {
        self.shared.full.load(Ordering::Relaxed)
    }

    fn set_full(&self, reason: Option<&io::Error>) {
        let was = self.shared.full.swap(reason.is_some(), Ordering::Relaxed);
        match reason {
            Some(reason) if !was => tracing::warn!(
                folder = %self.disk.path("").display(),
                %reason,
                "no room for the next segment of the journal: new work is refused until there is"
            ),
            None if was => tracing::info!("there is room for the journal again"),
            Some(_) | None => {}
        }
    }

    fn stop(&self, reason: &str) {
        let reason: Arc<str> = reason.into();
        self.shared.queue.stop(reason.clone());
        self.committed.send_modify(|committed| committed.stopped = Some(reason));
    }
}

impl Drop for Writer {
    // Also if its thread should panic: nobody may wait for what will not come.
    fn drop(&mut self) {
        if self.committed.borrow().stopped.is_none() {
            self.stop("its writer ended");
        }
    }
}

/// A write that failed for want of room changed nothing and can be repeated.
fn written(source: io::Error, path: PathBuf) -> Trouble {
    if matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) {
        Trouble::NoRoom(source)
    } else {
        Trouble::Failed { action: "write", path, source }
    }
}
