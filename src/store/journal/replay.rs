//! What a journal holds when a node starts: where it goes on, and everything that was kept, in order.
//!
//! *Looking* reads the heads of all segments and the whole of the last one, and decides where the next entry goes. Behind damage or a torn
//! write the journal goes on in a new segment: the old bytes stay as they are, for whoever wants to know, and nothing is ever written over
//! bytes that were not understood.
//! *Replaying* then reads one segment after the other. Bytes before the last known commit that cannot be read are entries *lost*; bytes after
//! it are a write that was *torn* by a crash, of which only what comes before the tear counts, since nothing of it was acknowledged. A segment that is
//! not there is *missing*, unless it lay before the mark of what was forgotten on purpose.
//!
//! What is replayed is on the disk: the last segment is flushed before anything of it is shown, since a killed process may have left it in
//! memory, and the layer above acts on what it sees.

use std::{collections::BTreeMap, fmt, sync::Arc};

use super::{
    disk::Disk,
    entry::{Finding, FindingKind, Index, Position, SegmentId},
    mark::Mark,
    queue::Place,
    segment::{END_AT, ENTRIES_AT, End, Head, HeadFault, Header, Piece, Pieces},
};
use crate::store::Error;

/// How many segments of which nothing could be read are kept for whoever wants to know what happened.
const DAMAGED_KEPT_MAX: usize = 4;

/// One entry of a [`Replay`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry<'a> {
    /// Its number.
    pub index: Index,
    /// Where to read it again.
    pub position: Position,
    /// What was appended.
    pub payload: &'a [u8],
}

/// Everything that a journal kept, as found when it is opened.
#[must_use = "what was acknowledged is in it"]
pub struct Replay {
    disk: Arc<dyn Disk>,
    segments: Vec<Sealed>,
    /// The last segment as it was when the journal was opened, since it is being written to since then.
    last: Option<(Last, Vec<u8>)>,
    findings: Vec<Finding>,
    is_whole: bool,
}

impl fmt::Debug for Replay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Replay").field("segments", &self.segments).field("findings", &self.findings).finish_non_exhaustive()
    }
}

/// A segment that has another after it.
#[derive(Debug, Clone, Copy)]
struct Sealed {
    header: Header,
    /// Its own word, or its neighbour's: all that it held is before this.
    end: End,
}

/// The last segment, and what is known of it.
#[derive(Debug, Clone, Copy)]
struct Last {
    header: Header,
    /// How far it was certainly committed: what cannot be read before is lost, what cannot be read behind was torn.
    proven: u32,
    /// The index that was certainly reached.
    reached: u64,
}

/// What [`look`] found.
#[derive(Debug)]
pub(super) struct Looked {
    pub(super) replay: Replay,
    /// The headers of all segments by their first index, for reading.
    pub(super) headers: BTreeMap<u64, Header>,
    /// Where the next entry goes.
    pub(super) next: Place,
    /// How much was forgotten on purpose.
    pub(super) mark: Mark,
}

impl Replay {
    /// Passes over the segments before this one: nothing of them is read, and damage to their entries not found.
    pub fn skip_before(&mut self, watermark: SegmentId) {
        self.segments.retain(|segment| segment.header.first >= watermark.0);
    }

    /// Whether no segment lies aside that could not be read, at this start or an earlier one: nobody knows what was in it.
    pub fn is_whole(&self) -> bool {
        self.is_whole
    }

    /// How many segments are going to be read.
    pub fn len(&self) -> usize {
        self.segments.len().saturating_add(usize::from(self.last.is_some()))
    }

    /// Whether there is nothing to read.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Shows every entry that was kept to `visit`, in order, and says what was found amiss. Blocks; holds one segment at a time.
    ///
    /// # Errors
    /// [`Error::Io`] if the disk refuses to be read; what was shown stands. Damage is never an error.
    pub fn run(mut self, mut visit: impl FnMut(Entry<'_>)) -> Result<Vec<Finding>, Error> {
        let mut bytes = Vec::new();
        for Sealed { header, end } in std::mem::take(&mut self.segments) {
            let name = SegmentId(header.first).file_name();
            read_whole(&*self.disk, &name, end.offset, &mut bytes)?;
            let last = Last { header, proven: u32::MAX, reached: end.index };
            self.show(last, &bytes, &mut visit);
        }
        if let Some((last, bytes)) = self.last.take() {
            self.show(last, &bytes, &mut visit);
        }
        Ok(self.findings)
    }

    /// Shows what can be read of one segment.
    fn show(&mut self, segment: Last, bytes: &[u8], visit: &mut impl FnMut(Entry<'_>)) {
        let Last { header, proven, reached } = segment;
        let id = SegmentId(header.first);
        let mut expected = header.first;
        let mut bad: Option<(u32, u32)> = None;
        for piece in Pieces::new(bytes, &header) {
            match piece {
                Piece::Bad { offset, end } if offset >= proven => {
                    self.find(id, offset, end.saturating_sub(offset), FindingKind::TornTail);
                    break;
                }
                Piece::Bad { offset, end } => bad = Some((offset, end)),
                // The neighbour says that it is its own.
                Piece::Entry { found, .. } if proven == u32::MAX && found.index >= reached => break,
                Piece::Entry { offset, found } => {
                    if let Some((from, to)) = bad.take() {
                        self.lost(id, from, to, expected, found.index);
                    }
                    expected = found.index.saturating_add(1);
                    visit(Entry { index: Index(found.index), position: Position { segment: id, offset }, payload: found.payload });
                }
            }
        }
        if expected < reached {
            let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
            let (from, to) = bad.unwrap_or((length, length));
            self.lost(id, from, to, expected, reached);
        }
    }

    fn lost(&mut self, segment: SegmentId, from: u32, to: u32, first: u64, end: u64) {
        self.find(segment, from, to.saturating_sub(from), FindingKind::Lost { first: Index(first), end: Index(end) });
    }

    fn find(&mut self, segment: SegmentId, offset: u32, bytes: u32, kind: FindingKind) {
        self.note(&segment.file_name(), offset, bytes, kind);
    }

    fn note(&mut self, name: &str, offset: u32, bytes: u32, kind: FindingKind) {
        let finding = Finding { file: self.disk.path(name), offset: offset.into(), bytes: bytes.into(), kind };
        tracing::warn!(finding = %finding, "the journal is not as it was written");
        self.findings.push(finding);
    }
}

/// Looks at what the folder holds.
///
/// # Errors
/// [`Error::Newer`] or [`Error::Damaged`] for a segment that is not ours to read, and [`Error::Io`] or [`Error::Unflushed`].
pub(super) fn look(disk: Arc<dyn Disk>) -> Result<Looked, Error> {
    let names = disk.names().map_err(|source| io(&*disk, "list", "", source))?;
    let mark = Mark::read(&*disk).map_err(|source| io(&*disk, "read", super::mark::NAME, source))?;
    if !names.iter().any(|name| name == super::mark::NAME)
        && let Err(error) = Mark::prepare(&*disk)
    {
        tracing::debug!(%error, "there is no room yet to note what is forgotten");
    }
    let forgotten = mark.index().0;
    let mut ids: Vec<SegmentId> = names.iter().filter_map(|name| SegmentId::from_file_name(name)).collect();
    // A crash may have come before all that was forgotten was gone.
    ids.retain(|id| id.0 >= forgotten);
    ids.sort_unstable();
    // An index that was given once is not given again, also if its segment had to be moved aside.
    let aside = names.iter().filter_map(|name| damaged_number(name)).map(|(id, _)| id.0).max();
    let floor = aside.unwrap_or_default().max(forgotten);
    let mut replay = Replay { disk: disk.clone(), segments: Vec::new(), last: None, findings: Vec::new(), is_whole: aside.is_none() };
    let mut headers = BTreeMap::new();
    let mut next = Place::new_segment(0);
    // The index that the next segment begins with if none is missing.
    let mut expected = forgotten;
    for (at, id) in ids.iter().enumerate() {
        if id.0 > expected {
            replay.find(SegmentId(expected), 0, 0, FindingKind::Missing { first: Index(expected), end: Index(id.0) });
        }
        expected = ids.get(at + 1).map_or(expected, |after| after.0);
        let name = id.file_name();
        let mut bytes = Vec::new();
        read_whole(&*disk, &name, ENTRIES_AT, &mut bytes)?;
        let head = match Head::decode(&bytes, id.0) {
            Ok(head) => Some(head),
            Err(HeadFault::Newer(version)) => return Err(Error::Newer { path: disk.path(&name), version }),
            Err(HeadFault::Foreign) => return Err(foreign(&*disk, &name)),
            Err(HeadFault::Damaged) => None,
        };
        if let Some(damaged_at) = head.and_then(|head| head.damaged_at) {
            replay.find(*id, damaged_at, 32, FindingKind::Header);
        }
        match (head, ids.get(at + 1)) {
            (Some(head), Some(after)) => {
                headers.insert(id.0, head.header);
                let sealed = head.end.filter(|end| end.sealed);
                expected = sealed.map_or(after.0, |end| end.index);
                let end = sealed.unwrap_or(End { index: after.0, offset: head.header.bytes, sealed: true });
                replay.segments.push(Sealed { header: head.header, end });
            }
            (Some(head), None) => {
                next = look_at_last(&mut replay, head)?;
                if matches!(next, Place { first, .. } if first == id.0 && next.is_new()) {
                    // Nothing of it can be read, and its name is needed.
                    let moved = move_aside(&*disk, &name)?;
                    (replay.last, replay.is_whole) = (None, false);
                    replay.note(&moved, ENTRIES_AT, head.header.bytes.saturating_sub(ENTRIES_AT), FindingKind::TornTail);
                } else {
                    headers.insert(id.0, head.header);
                }
            }
            (None, Some(after)) => {
                replay.lost(*id, 0, u32::try_from(bytes.len()).unwrap_or(u32::MAX), id.0, after.0);
            }
            (None, None) => {
                // How many entries it held is not known; that its head was flushed before the first of them is.
                let moved = move_aside(&*disk, &name)?;
                replay.is_whole = false;
                replay.note(&moved, 0, ENTRIES_AT, FindingKind::Unreadable { first: Index(id.0) });
                next = Place::new_segment(id.0);
            }
        }
    }
    if next.next < floor {
        next = Place::new_segment(floor);
    }
    Ok(Looked { replay, headers, next, mark })
}

/// Reads the last segment and says where the next entry goes.
fn look_at_last(replay: &mut Replay, head: Head) -> Result<Place, Error> {
    let Head { header, end, .. } = head;
    let disk = replay.disk.clone();
    let name = SegmentId(header.first).file_name();
    let file = disk.open(&name).map_err(|source| io(&*disk, "open", &name, source))?;
    file.sync().map_err(|source| Error::Unflushed { path: disk.path(&name), source })?;
    let sealed = end.filter(|end| end.sealed);
    let mut bytes = Vec::new();
    read_whole(&*disk, &name, sealed.map_or(header.bytes, |end| end.offset), &mut bytes)?;
    let mut proven = end.map_or(ENTRIES_AT, |end| end.offset);
    for piece in Pieces::new(&bytes, &header) {
        if let Piece::Entry { found, .. } = piece {
            proven = proven.max(found.batch);
        }
    }
    let length = file.length().map_err(|source| io(&*disk, "inspect", &name, source))?;
    let missing = header.bytes.saturating_sub(u32::try_from(length).unwrap_or(u32::MAX));
    if missing > 0 {
        replay.find(SegmentId(header.first), header.bytes - missing, missing, FindingKind::TornTail);
    }
    // Where entries end, how many there were, and whether nothing but room follows.
    let (mut offset, mut index, mut whole) = (ENTRIES_AT, header.first, missing == 0);
    for piece in Pieces::new(&bytes, &header) {
        match piece {
            Piece::Entry { offset: from, found } => {
                offset = from.saturating_add(u32::try_from(found.room()).unwrap_or(u32::MAX));
                index = found.index.saturating_add(1);
            }
            Piece::Bad { offset, .. } => {
                whole = false;
                if offset >= proven {
                    break;
                }
            }
        }
    }
    let reached = end.map_or(index, |end| end.index.max(index));
    // Entries that were committed and are not there: their place is not for others.
    whole &= reached == index;
    replay.last = Some((Last { header, proven, reached }, bytes));
    if sealed.is_some() {
        return Ok(Place::new_segment(reached));
    }
    if whole {
        return Ok(Place { next: index, first: header.first, offset, bytes: header.bytes });
    }
    if reached > header.first {
        let end = End { index: reached, offset: offset.max(end.map_or(0, |end| end.offset)), sealed: true };
        let sealed = file.write_at(&end.encode(header.seed), END_AT.into());
        sealed.map_err(|source| io(&*disk, "write", &name, source))?;
        file.sync().map_err(|source| Error::Unflushed { path: disk.path(&name), source })?;
    }
    Ok(Place::new_segment(reached))
}

/// Fills `bytes` with what the file holds, `bytes_max` at most.
fn read_whole(disk: &dyn Disk, name: &str, bytes_max: u32, bytes: &mut Vec<u8>) -> Result<(), Error> {
    let fail = |source| io(disk, "read", name, source);
    let file = disk.open(name).map_err(fail)?;
    let length = file.length().map_err(fail)?.min(bytes_max.into());
    bytes.resize(usize::try_from(length).unwrap_or_default(), 0);
    let read = file.read_at(bytes, 0).map_err(fail)?;
    bytes.truncate(read);
    Ok(())
}

/// Renames a segment to its next free `.damaged-N`, removes all but the latest of those, and says its new name.
fn move_aside(disk: &dyn Disk, name: &str) -> Result<String, Error> {
    let fail = |source| io(disk, "move aside", name, source);
    let names = disk.names().map_err(fail)?;
    let mut damaged: Vec<(u64, String)> =
        names.into_iter().filter_map(|other| damaged_number(&other).map(|(_, number)| (number, other))).collect();
    damaged.sort_unstable();
    let aside = format!("{name}.damaged-{}", damaged.last().map_or(1, |(number, _)| number.saturating_add(1)));
    disk.rename(name, &aside).map_err(fail)?;
    disk.sync_names().map_err(|source| Error::Unflushed { path: disk.path(name), source })?;
    let old = (damaged.len() + 1).saturating_sub(DAMAGED_KEPT_MAX);
    for (_, name) in damaged.into_iter().take(old) {
        // Litter at worst: the next move tries again.
        let _ = disk.remove(&name);
    }
    Ok(aside)
}

/// The segment and the number of a file that was moved aside.
fn damaged_number(name: &str) -> Option<(SegmentId, u64)> {
    let (segment, number) = name.split_once(".damaged-")?;
    Some((SegmentId::from_file_name(segment)?, number.parse().ok()?))
}

fn foreign(disk: &dyn Disk, name: &str) -> Error {
    let reason = "not a segment of this journal; move it away, or put the right file there".to_owned();
    Error::Damaged { path: disk.path(name), reason }
}

pub(super) fn io(disk: &dyn Disk, action: &'static str, name: &str, source: std::io::Error) -> Error {
    Error::Io { action, path: disk.path(name), source }
}
