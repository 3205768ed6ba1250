//! The journal under power cuts, damage, full and failing disks.

use std::{collections::BTreeMap, io::ErrorKind, sync::Arc, time::Duration};

use bytes::Bytes;
use proptest::{prelude::*, test_runner::RngSeed};
use rand::{Rng, SeedableRng, rngs::SmallRng};

use super::{
    Committed, Config, ENTRY_BYTES_MAX, Finding, FindingKind, Index, Journal, Position, Refused, Replay, SegmentId,
    disk::Disk,
    segment::{ENTRIES_AT, Piece},
    testing::{Knobs, Memory},
    writer::Writer,
};
use crate::store::{DataDir, Error};

const SMALL: Config = Config { segment_bytes: 65_536, queue_entries_max: 1_000, queue_bytes_max: 4 * 1_048_576 };

type Kept = BTreeMap<u64, (Position, Vec<u8>)>;

fn open(disk: &Memory) -> (Journal, Writer, Replay) {
    Journal::parts(Arc::new(disk.clone()), SMALL).expect("opens")
}

fn replay(replay: Replay) -> (Kept, Vec<Finding>) {
    let mut kept = Kept::new();
    let findings = replay
        .run(|entry| {
            let last = kept.last_key_value().map(|(index, _)| *index);
            assert!(last.is_none_or(|last| last < entry.index.0), "{last:?} before {}", entry.index);
            kept.insert(entry.index.0, (entry.position, entry.payload.to_vec()));
        })
        .expect("reads");
    (kept, findings)
}

/// A payload that no other entry has, with bytes that look like a head now and then.
fn payload(number: u64, length: usize) -> Bytes {
    let mut bytes = number.to_le_bytes().to_vec();
    bytes.extend((0..length).map(|at| if at % 7 == 0 { 0 } else { (at as u64 ^ number) as u8 }));
    Bytes::from(bytes)
}

fn committed(journal: &Journal) -> Committed {
    journal.committed().borrow().clone()
}

/// Lets the writer do what is to do, and closes the journal.
fn close(journal: &Journal, mut writer: Writer) {
    journal.close();
    while writer.turn() {}
}

/// A disk with `count` entries of about 1 KB, in batches of one to seven, on several segments; closed in good order.
fn filled(count: u64, seed: u64) -> (Memory, Kept) {
    let disk = Memory::default();
    let (journal, mut writer, _) = open(&disk);
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut kept = Kept::new();
    while (kept.len() as u64) < count {
        let entries: Vec<Bytes> =
            (0..rng.random_range(1..=7)).map(|at| payload(kept.len() as u64 + at, rng.random_range(0..2_000))).collect();
        let ticket = journal.append(entries.clone()).expect("room");
        assert!(writer.turn());
        kept.extend((ticket.first().0..).zip(ticket.positions().iter().copied().zip(entries.iter().map(|entry| entry.to_vec()))));
    }
    close(&journal, writer);
    (disk, kept)
}

fn segments(disk: &Memory) -> Vec<String> {
    disk.names().expect("lists").into_iter().filter(|name| SegmentId::from_file_name(name).is_some()).collect()
}

#[derive(Debug, Clone)]
enum Op {
    /// Appends entries of these lengths.
    Append(Vec<usize>),
    /// The writer takes a turn.
    Turn,
    /// The writer takes turns until the power is cut after so many changes.
    Cut { changes: usize, luck: u64 },
    /// The process is killed: what was written stays.
    Kill,
    /// Everything is written and closed.
    Close,
    /// Segments that begin before this share of the entries are deleted.
    Forget(u8),
}

fn op() -> impl Strategy<Value = Op> {
    let length = prop_oneof![6 => 0..600_usize, 2 => 600..9_000_usize, 1 => 30_000..60_000_usize];
    prop_oneof![
        8 => prop::collection::vec(length, 1..6).prop_map(Op::Append),
        6 => Just(Op::Turn),
        3 => (0..30_usize, any::<u64>()).prop_map(|(changes, luck)| Op::Cut { changes, luck }),
        1 => Just(Op::Kill),
        1 => Just(Op::Close),
        1 => (0..100_u8).prop_map(Op::Forget),
    ]
}

/// The journal and what it must hold.
struct World {
    disk: Memory,
    journal: Journal,
    writer: Writer,
    /// What was appended, by index, and may be there after a crash.
    appended: Kept,
    /// Everything before it must be there.
    committed: u64,
    /// Before which all was deleted.
    forgotten: SegmentId,
    waiting: bool,
    numbers: u64,
}

impl World {
    fn new() -> Self {
        let disk = Memory::default();
        let (journal, writer, _) = open(&disk);
        Self { disk, journal, writer, appended: Kept::new(), committed: 0, forgotten: SegmentId(0), waiting: false, numbers: 0 }
    }

    fn step(&mut self, op: Op) {
        match op {
            Op::Append(lengths) => {
                let entries: Vec<Bytes> = (self.numbers..).zip(lengths).map(|(number, length)| payload(number, length)).collect();
                self.numbers += entries.len() as u64;
                let Ok(ticket) = self.journal.append(entries.clone()) else { return };
                let placed = ticket.positions().iter().copied().zip(entries.iter().map(|entry| entry.to_vec()));
                self.appended.extend((ticket.first().0..).zip(placed));
                self.waiting = true;
            }
            Op::Turn => self.turn(),
            Op::Cut { changes, luck } => {
                self.disk.set(Knobs { changes_left: Some(changes), ..Knobs::default() });
                self.turn();
                self.reopen(self.disk.after_power_cut(luck));
            }
            Op::Kill => self.reopen(self.disk.copy()),
            Op::Close => {
                self.journal.close();
                while self.writer.turn() {}
                self.committed = committed(&self.journal).end.0;
                assert_eq!(self.committed, self.appended.last_key_value().map_or(self.committed, |(index, _)| index + 1));
                self.reopen(self.disk.copy());
            }
            Op::Forget(share) => {
                let before = self.committed * u64::from(share) / 100;
                self.journal.forget_before(SegmentId(before)).expect("deletes");
                self.forgotten = self.journal.forgotten();
            }
        }
    }

    fn turn(&mut self) {
        if self.waiting {
            self.writer.turn();
            self.waiting = false;
        }
        self.committed = committed(&self.journal).end.0;
        let positions: Vec<Position> = self.wanted().filter(|(index, _)| *index < self.committed).map(|(_, (at, _))| *at).collect();
        let read = self.journal.read_many(&positions).expect("what is committed reads");
        assert!(read.iter().zip(self.wanted()).all(|(read, (_, (_, wanted)))| read == wanted));
    }

    /// What was not deleted.
    fn wanted(&self) -> impl Iterator<Item = (u64, &(Position, Vec<u8>))> {
        self.appended.iter().map(|(index, kept)| (*index, kept)).filter(|(_, (position, _))| position.segment >= self.forgotten)
    }

    fn reopen(&mut self, disk: Memory) {
        let (journal, writer, opened) = open(&disk);
        let (kept, findings) = replay(opened);
        assert!(findings.iter().all(|finding| finding.kind == FindingKind::TornTail), "{findings:?}");
        let end = committed(&journal).end.0;
        assert!(self.committed <= end, "{} were committed, {end} are there", self.committed);
        // Every entry that was wanted and is before the end, and no other, also if the cut has undone that some were deleted.
        for (index, wanted) in self.wanted().filter(|(index, _)| *index < end) {
            assert_eq!(kept.get(&index), Some(wanted), "entry {index} of {end}");
        }
        let wanted = |index: &u64| self.appended.get(index).filter(|(position, _)| position.segment >= self.forgotten);
        assert!(kept.iter().all(|(index, found)| *index < end && wanted(index) == Some(found)));
        self.appended.retain(|index, _| *index < end);
        (self.disk, self.journal, self.writer, self.committed, self.waiting) = (disk, journal, writer, end, false);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, rng_seed: RngSeed::Fixed(4), ..ProptestConfig::with_cases(300) })]

    /// F1, F2: whatever part of the unflushed bytes, and of the renames, a crash keeps: every committed entry is there with its index, place and bytes,
    /// of the others only a beginning, and nothing that was not appended.
    #[test]
    fn every_committed_entry_survives_any_crash(ops in prop::collection::vec(op(), 1..60)) {
        let mut world = World::new();
        for op in ops {
            world.step(op);
        }
        world.reopen(world.disk.copy());
    }
}

/// What is wrong with what a damaged disk gives back, if anything.
fn check_damaged(disk: &Memory, kept: &Kept, context: &str) {
    let before: BTreeMap<String, Vec<u8>> = segments(disk).into_iter().map(|name| (name.clone(), disk.bytes(&name))).collect();
    let (journal, mut writer, opened) = match Journal::parts(Arc::new(disk.clone()), SMALL) {
        Ok(parts) => parts,
        Err(error) => panic!("{context}: {error}"),
    };
    let (found, findings) = replay(opened);
    let lost = |index: u64| {
        findings.iter().any(|finding| match finding.kind {
            FindingKind::Lost { first, end } | FindingKind::Missing { first, end } => (first.0..end.0).contains(&index),
            FindingKind::Unreadable { first } => index >= first.0,
            FindingKind::TornTail | FindingKind::Header => false,
        })
    };
    for (index, wanted) in kept {
        match found.get(index) {
            Some(found) => assert!(found == wanted && !lost(*index), "{context}: entry {index}, {findings:?}"),
            None => assert!(lost(*index), "{context}: entry {index} is missing and nobody says so: {findings:?}"),
        }
    }
    assert!(found.keys().all(|index| kept.contains_key(index)), "{context}: {findings:?}");
    assert!(!findings.is_empty(), "{context}: nothing was found amiss");
    // It goes on, and what was there stays as it was but for the note of where it ends.
    let ticket = journal.append(vec![payload(1 << 40, 100)]).expect("goes on");
    assert!(writer.turn());
    for (name, bytes) in &before {
        let aside = format!("{name}.damaged-1");
        let name = if disk.names().expect("lists").contains(&aside) { &aside } else { name };
        let after = disk.bytes(name);
        let from = (ENTRIES_AT as usize).min(bytes.len());
        let appended = ticket.positions()[0];
        let until = if appended.segment.file_name() == *name { appended.offset as usize } else { bytes.len() };
        assert_eq!(after[from..until], bytes[from..until], "{context}: {name} was written over");
    }
    let (again, findings) = replay(open(&disk.copy()).2);
    assert_eq!(again.len(), found.len() + 1, "{context}: {findings:?}");
    assert!(found.iter().all(|(index, found)| again.get(index) == Some(found)), "{context}");
    assert_eq!(again.get(&ticket.first().0).map(|(_, payload)| payload.len()), Some(108), "{context}");
}

/// F4: whatever bit of a segment flips, every entry is there or is said to be lost; its neighbours are unharmed.
#[test]
fn a_flipped_bit_costs_one_entry_at_most_and_is_named() {
    let (disk, kept) = filled(250, 1);
    let names = segments(&disk);
    assert!(names.len() > 3, "{names:?}");
    let mut rng = SmallRng::seed_from_u64(2);
    let mut single = 0;
    for round in 0..1_000 {
        let name = &names[rng.random_range(0..names.len())];
        let bytes = disk.bytes(name);
        let used = bytes.len() - bytes.iter().rev().take_while(|byte| **byte == 0).count();
        // The head is small, so it gets its share.
        let at = match rng.random_range(0..10) {
            0 => [0, 512, 1_024][rng.random_range(0..3)] + rng.random_range(0..20),
            _ => rng.random_range(ENTRIES_AT as usize..used),
        };
        let disk = disk.copy();
        disk.tamper(name, |bytes| bytes[at] ^= 1 << rng.random_range(0..8));
        check_damaged(&disk, &kept, &format!("round {round}, byte {at} of {name}"));
        let (found, findings) = replay(open(&disk.copy()).2);
        assert!(kept.len() - found.keys().filter(|index| kept.contains_key(index)).count() <= 1, "{findings:?}");
        single += findings.iter().filter(|finding| matches!(finding.kind, FindingKind::Lost { .. })).count();
    }
    assert!(single > 700, "{single}");
}

/// F4: a file cut short at any place is read as far as it goes, and what is missing is named.
#[test]
fn a_cut_file_is_read_as_far_as_it_goes() {
    let (disk, kept) = filled(250, 3);
    let names = segments(&disk);
    let mut rng = SmallRng::seed_from_u64(4);
    for round in 0..200 {
        let name = &names[rng.random_range(0..names.len())];
        let bytes = disk.bytes(name);
        let used = bytes.len() - bytes.iter().rev().take_while(|byte| **byte == 0).count();
        let length = if rng.random_bool(0.1) { rng.random_range(0..ENTRIES_AT as usize) } else { rng.random_range(0..used) };
        let disk = disk.copy();
        disk.tamper(name, |bytes| bytes.truncate(length));
        check_damaged(&disk, &kept, &format!("round {round}, {name} cut to {length}"));
    }
}

/// F2: garbage where the next write would have gone is named, left alone, and never read as entries.
#[test]
fn a_torn_tail_is_named_with_its_place_and_length() {
    let (disk, kept) = filled(20, 5);
    let name = segments(&disk).pop().expect("a segment");
    let (position, last) = kept.last_key_value().expect("entries").1;
    let end = position.offset as usize + 20 + last.len();
    disk.tamper(&name, |bytes| bytes[end + 3..end + 50].fill(0xAA));
    let (found, findings) = replay(open(&disk).2);
    assert_eq!(found, kept);
    let expected = Finding { file: disk.path(&name), offset: end as u64, bytes: 50, kind: FindingKind::TornTail };
    assert_eq!(findings, [expected]);
    let text = findings[0].to_string();
    assert!(text.contains(&name) && text.contains(&end.to_string()), "{text}");
}

/// F4: damage in the middle is not mistaken for a torn tail even after a kill, and entries behind it are there.
#[test]
fn damage_before_the_last_batch_is_lost_not_torn() {
    let disk = Memory::default();
    let (journal, mut writer, _) = open(&disk);
    let mut places = Vec::new();
    for number in 0..5 {
        places.extend_from_slice(journal.append(vec![payload(number, 300)]).expect("room").positions());
        assert!(writer.turn());
    }
    let name = places[0].segment.file_name();
    for (at, expected) in [(2, FindingKind::Lost { first: Index(2), end: Index(3) }), (4, FindingKind::TornTail)] {
        let disk = disk.copy();
        disk.tamper(&name, |bytes| bytes[places[at].offset as usize + 40] ^= 1);
        let (found, findings) = replay(open(&disk).2);
        assert_eq!(found.len(), 4);
        assert_eq!((&findings[0].kind, findings[0].offset), (&expected, places[at].offset.into()));
        assert_eq!(findings.len(), 1);
    }
}

/// F2: what a torn write left behind its tear stays, unread, whatever comes after it, and whatever is deleted after it.
#[test]
fn nothing_behind_a_tear_comes_back() {
    let disk = Memory::default();
    let (journal, mut writer, _) = open(&disk);
    journal.append(vec![payload(0, 300)]).expect("room");
    assert!(writer.turn());
    let torn = journal.append((1..4).map(|number| payload(number, 300)).collect()).expect("room");
    assert!(writer.turn());
    let at = torn.positions()[0];
    let name = at.segment.file_name();
    let disk = disk.copy();
    disk.tamper(&name, |bytes| bytes[at.offset as usize..at.offset as usize + 100].fill(0));
    let left = disk.bytes(&name);
    // Entries of the same length would lie where the torn ones did, with the indices that those had.
    let (journal, mut writer, opened) = open(&disk);
    assert_eq!(replay(opened).0.len(), 1);
    let again = journal.append(vec![payload(11, 300)]).expect("room");
    assert_eq!(again.first(), torn.first());
    assert!(writer.turn());
    assert_eq!(disk.bytes(&name)[ENTRIES_AT as usize..], left[ENTRIES_AT as usize..]);
    for number in 12..15 {
        journal.append(vec![payload(number, 50_000)]).expect("room");
        assert!(writer.turn());
    }
    let (kept, findings) = replay(open(&disk.copy()).2);
    assert_eq!((kept.into_keys().collect::<Vec<_>>(), findings), (vec![0, 1, 2, 3, 4], vec![]));
    let gone = again.positions()[0].segment.file_name();
    disk.remove(&gone).expect("deleted");
    let (kept, findings) = replay(open(&disk.copy()).2);
    let missing = Finding { file: disk.path(&gone), offset: 0, bytes: 0, kind: FindingKind::Missing { first: Index(1), end: Index(3) } };
    assert_eq!((kept.into_keys().collect::<Vec<_>>(), findings), (vec![0, 3, 4], vec![missing]));
}

/// F4: an idle journal notes how far it is committed, so that damage to its last batch is known for what it is.
#[test]
fn damage_to_the_last_batch_is_lost_once_the_journal_was_idle() {
    let disk = Memory::default();
    let (journal, mut writer, _) = open(&disk);
    let position = journal.append(vec![payload(0, 300)]).expect("room").positions()[0];
    assert!(writer.turn() && writer.turn(), "the second finds nothing to write");
    let disk = disk.copy();
    disk.tamper(&position.segment.file_name(), |bytes| bytes[position.offset as usize + 40] ^= 1);
    let (_, findings) = replay(open(&disk).2);
    assert_eq!(findings[0].kind, FindingKind::Lost { first: Index(0), end: Index(1) });
}

/// F2: a segment of which the first batch was torn gives way, and the indices before it stay used even if nothing else remembers them.
#[test]
fn no_index_is_given_twice_when_a_segment_is_moved_aside() {
    let (disk, kept) = filled(250, 10);
    let (journal, _writer, _) = open(&disk);
    let names = segments(&disk);
    let last = SegmentId::from_file_name(names.last().expect("several")).expect("a segment");
    journal.forget_before(last).expect("deletes");
    let disk = disk.copy();
    disk.tamper(&last.file_name(), |bytes| {
        bytes[1_024..1_044].fill(0);
        bytes[ENTRIES_AT as usize + 30..].fill(0);
    });
    for _ in 0..2 {
        let (journal, _writer, opened) = open(&disk);
        assert_eq!(committed(&journal).end, Index(last.0));
        assert!(replay(opened).0.keys().all(|index| kept.contains_key(index)));
    }
}

/// F17: a segment of another format, or none at all, is refused by name and left alone.
#[test]
fn a_segment_of_a_later_release_is_refused_by_name() {
    let (disk, _) = filled(20, 6);
    let name = segments(&disk).pop().expect("a segment");
    let foreign = disk.copy();
    disk.tamper(&name, |bytes| {
        for at in [0, 512] {
            bytes[at + 8] = 9;
            let crc = crc32c::crc32c(&bytes[at..at + 28]);
            bytes[at + 28..at + 32].copy_from_slice(&crc.to_le_bytes());
        }
    });
    let whole = disk.bytes(&name);
    let error = Journal::parts(Arc::new(disk.clone()), SMALL).map(|_| ()).expect_err("a later format");
    assert!(matches!(error, Error::Newer { version: 9, .. }) && error.to_string().contains(&name), "{error}");
    assert_eq!(disk.bytes(&name), whole);
    foreign.tamper(&name, |bytes| bytes.fill(b'x'));
    let error = Journal::parts(Arc::new(foreign), SMALL).map(|_| ()).expect_err("no segment");
    assert!(matches!(error, Error::Damaged { .. }) && error.to_string().contains(&name), "{error}");
}

/// F3: a flush that fails is not repeated; nothing is acknowledged any more, and reading goes on.
#[test]
fn a_failed_flush_stops_the_journal_for_good() {
    let disk = Memory::default();
    let (journal, mut writer, _) = open(&disk);
    let first = journal.append(vec![payload(0, 10)]).expect("room");
    assert!(writer.turn() && committed(&journal).covers(&first));
    disk.set(Knobs { flush_fails: true, ..Knobs::default() });
    let second = journal.append(vec![payload(1, 10)]).expect("room");
    let flushes = disk.flushes();
    assert!(!writer.turn());
    assert_eq!(disk.flushes(), flushes + 1, "one attempt");
    disk.set(Knobs::default());
    let state = committed(&journal);
    assert!(!state.covers(&second) && state.end == first.end());
    let reason = state.stopped.expect("a reason");
    assert!(reason.contains("flush") && reason.contains(".seg") && reason.contains("start the node again"), "{reason}");
    assert!(matches!(journal.append(vec![payload(2, 10)]), Err(Refused::Stopped { .. })));
    assert_eq!(journal.read(first.positions()[0]).expect("reads"), payload(0, 10));
}

/// F3: a full disk is reported while there still is room for what runs, then entries wait, and go on when there is room again.
#[test]
fn a_full_disk_is_told_in_time_and_gets_well_by_itself() {
    let disk = Memory::default();
    let (journal, mut writer, _) = open(&disk);
    let large = || vec![payload(0, 40_000)];
    journal.append(large()).expect("room");
    assert!(writer.turn() && !journal.is_full(), "the first segment is at hand and a spare beside it");
    disk.set(Knobs { full: true, ..Knobs::default() });
    let in_spare = journal.append(large()).expect("room");
    assert!(writer.turn());
    assert!(committed(&journal).covers(&in_spare) && journal.is_full(), "there is no third");
    let small = journal.append(vec![payload(1, 100)]).expect("room");
    assert!(writer.turn());
    assert!(committed(&journal).covers(&small) && journal.is_full(), "what fits goes on");
    let waits = journal.append(large()).expect("room in the queue");
    assert!(writer.turn());
    assert!(!committed(&journal).covers(&waits) && committed(&journal).stopped.is_none());
    disk.set(Knobs::default());
    assert!(writer.turn());
    assert!(committed(&journal).covers(&waits) && !journal.is_full());
    assert_eq!(replay(open(&disk.copy()).2).0.len(), 4);
}

/// F3: a file system that claims blocks only when they are written may refuse within a segment, and so may a quota.
#[test]
fn no_room_within_a_segment_is_waited_out() {
    for kind in [ErrorKind::StorageFull, ErrorKind::QuotaExceeded] {
        let disk = Memory::default();
        let (journal, mut writer, _) = open(&disk);
        journal.append(vec![payload(0, 10)]).expect("room");
        assert!(writer.turn());
        disk.set(Knobs { write_fails: Some(kind), ..Knobs::default() });
        let ticket = journal.append(vec![payload(1, 10)]).expect("room");
        assert!(writer.turn());
        assert!(journal.is_full() && !committed(&journal).covers(&ticket), "{kind}");
        disk.set(Knobs::default());
        close(&journal, writer);
        assert!(committed(&journal).covers(&ticket), "{kind}: closing tries once more");
        assert_eq!(replay(open(&disk).2).0.len(), 2);
    }
}

/// F3: a limit on the size of files, a failing disk and a file system that has become read-only do not go away by waiting: the journal stops
/// and says why, and after a restart everything is there that was told to be.
#[test]
fn a_write_that_fails_for_another_reason_stops_the_journal_for_good() {
    for kind in [ErrorKind::FileTooLarge, ErrorKind::ReadOnlyFilesystem, ErrorKind::Other] {
        let disk = Memory::default();
        let (journal, mut writer, _) = open(&disk);
        let first = journal.append(vec![payload(0, 10)]).expect("room");
        assert!(writer.turn());
        disk.set(Knobs { write_fails: Some(kind), ..Knobs::default() });
        journal.append(vec![payload(1, 10)]).expect("room");
        assert!(!writer.turn(), "{kind}");
        disk.set(Knobs::default());
        let reason = committed(&journal).stopped.expect("a reason");
        assert!(reason.contains("write") && reason.contains(&kind.to_string()) && reason.contains("start the node again"), "{reason}");
        assert!(matches!(journal.append(vec![payload(2, 10)]), Err(Refused::Stopped { .. })), "{kind}");
        let (kept, findings) = replay(open(&disk).2);
        assert_eq!((kept.len(), kept.values().next().map(|(position, _)| *position)), (1, first.positions().first().copied()), "{kind}");
        assert_eq!(findings, [], "{kind}");
    }
}

#[test]
fn a_full_queue_refuses_and_takes_more_once_it_is_written() {
    let (journal, mut writer, _) = open(&Memory::default());
    for number in 0..SMALL.queue_entries_max as u64 {
        journal.append(vec![payload(number, 1)]).expect("room");
    }
    let refused = journal.append(vec![payload(0, 1)]).expect_err("full");
    assert!(refused.is_retryable() && refused.to_string().contains("ms"), "{refused}");
    assert!(writer.turn());
    journal.append(vec![payload(0, 1)]).expect("room again");
}

#[test]
fn an_entry_at_the_limit_is_kept_and_one_past_it_refused() {
    let disk: Arc<dyn Disk> = Arc::new(Memory::default());
    let (journal, mut writer, _) = Journal::parts(disk, Config::default()).expect("opens");
    let limit = vec![3; ENTRY_BYTES_MAX];
    let ticket = journal.append(vec![Bytes::from(limit.clone())]).expect("at the limit");
    assert!(writer.turn());
    assert_eq!(journal.read(ticket.positions()[0]).expect("reads"), limit);
    let past = journal.append(vec![payload(0, 1), Bytes::from(vec![3; ENTRY_BYTES_MAX + 1])]);
    assert_eq!(past, Err(Refused::TooLarge { bytes: ENTRY_BYTES_MAX + 1, bytes_max: ENTRY_BYTES_MAX }));
    let next = journal.append(vec![payload(0, 1)]).expect("room");
    assert_eq!(next.first(), ticket.end(), "nothing of what was refused was queued");
    let (small, _writer, _) = open(&Memory::default());
    let room = SMALL.segment_bytes as usize - ENTRIES_AT as usize - 20;
    assert!(small.append(vec![Bytes::from(vec![0; room])]).is_ok() && small.append(vec![Bytes::from(vec![0; room + 1])]).is_err());
}

#[test]
fn what_gathers_is_flushed_once() {
    let disk = Memory::default();
    let (journal, mut writer, _) = open(&disk);
    journal.append(vec![payload(0, 10)]).expect("room");
    assert!(writer.turn());
    let flushes = disk.flushes();
    let tickets: Vec<_> = (1..100).map(|number| journal.append(vec![payload(number, 10)]).expect("room")).collect();
    assert!(writer.turn());
    assert_eq!(disk.flushes(), flushes + 1);
    assert!(tickets.iter().all(|ticket| committed(&journal).covers(ticket)));
}

#[test]
fn forgotten_segments_are_gone_and_the_others_are_not() {
    let (disk, kept) = filled(250, 7);
    let (journal, _writer, _) = open(&disk);
    let all = segments(&disk);
    assert_eq!((journal.forget_before(SegmentId(0)).expect("nothing to do"), journal.forgotten()), (0, SegmentId(0)));
    let third = SegmentId::from_file_name(&all[2]).expect("a segment");
    assert_eq!(journal.forget_before(SegmentId(third.0 + 1)).expect("deletes"), 2, "the one that the entry lies in stays");
    assert_eq!((journal.forgotten(), segments(&disk).len()), (third, all.len() - 2));
    for (position, payload) in kept.values() {
        match journal.read(*position) {
            Ok(read) => assert!(read == *payload && position.segment >= third),
            Err(error) => assert!(position.segment < third && error.to_string().contains("deleted"), "{error}"),
        }
    }
    let (found, findings) = replay(open(&disk.copy()).2);
    assert_eq!(findings, [], "what was deleted on purpose is not missed");
    assert!(kept.iter().filter(|(_, (position, _))| position.segment >= third).eq(found.iter()));
    let rest = journal.forget_before(SegmentId(u64::MAX)).expect("deletes");
    assert_eq!(segments(&disk).len(), 1, "{rest}: the one at hand stays");
    let (again, ..) = open(&disk.copy());
    assert_eq!(Some((again.forgotten(), again.forgotten())), again.segments());
}

/// F4: whichever segments somebody takes away, what was in them is said to be gone, and what was forgotten before is not.
#[test]
fn a_segment_that_is_not_there_is_missed_unless_it_was_forgotten() {
    let (disk, kept) = filled(400, 11);
    let (journal, _writer, _) = open(&disk);
    let all: Vec<SegmentId> = segments(&disk).iter().filter_map(|name| SegmentId::from_file_name(name)).collect();
    assert!(all.len() > 5, "{all:?}");
    journal.forget_before(all[1]).expect("deletes");
    let missing = |from: usize, to: usize| {
        let kind = FindingKind::Missing { first: Index(all[from].0), end: Index(all[to].0) };
        Finding { file: disk.path(&all[from].file_name()), offset: 0, bytes: 0, kind }
    };
    let ways: [(&[usize], Vec<Finding>); 4] =
        [(&[], vec![]), (&[1], vec![missing(1, 2)]), (&[2, 3], vec![missing(2, 4)]), (&[1, 3], vec![missing(1, 2), missing(3, 4)])];
    for (gone, expected) in ways {
        let disk = disk.copy();
        gone.iter().for_each(|at| disk.remove(&all[*at].file_name()).expect("deleted"));
        for _ in 0..2 {
            let (found, findings) = replay(open(&disk).2);
            assert_eq!(findings, expected, "{gone:?}");
            let wanted = |segment| all[1] <= segment && !gone.iter().any(|at| all[*at] == segment);
            assert!(kept.iter().filter(|(_, (position, _))| wanted(position.segment)).eq(found.iter()), "{gone:?}");
        }
        // Once nothing before is wanted any more, nobody misses it, and a head that does not read goes as well.
        disk.tamper(&all[4].file_name(), |bytes| bytes[..1_024].fill(0));
        let (journal, _writer, opened) = open(&disk);
        assert!(opened.is_whole());
        journal.forget_before(all[5]).expect("deletes");
        assert_eq!((replay(open(&disk).2).1, segments(&disk).len()), (vec![], all.len() - 5), "{gone:?}");
    }
}

#[test]
fn a_position_that_holds_no_entry_is_an_error_that_names_it() {
    let (disk, kept) = filled(20, 8);
    let (journal, _writer, _) = open(&disk);
    let (position, _) = kept[&3];
    for offset in [position.offset + 1, 0, u32::MAX] {
        let error = journal.read(Position { offset, ..position }).expect_err("no entry");
        assert!(error.to_string().contains(&position.segment.file_name()), "{error}");
    }
}

#[test]
fn at_most_four_unreadable_segments_are_kept() {
    let disk = Memory::default();
    for _ in 0..7 {
        let (journal, mut writer, _) = open(&disk);
        journal.append(vec![payload(0, 10)]).expect("room");
        assert!(writer.turn());
        let name = segments(&disk).pop().expect("a segment");
        disk.tamper(&name, |bytes| bytes.fill(0));
        let (kept, findings) = replay(open(&disk).2);
        assert_eq!((kept.len(), findings.len()), (0, 1));
        assert!(!open(&disk).2.is_whole(), "what lies aside may have been anybody's");
    }
    let damaged: Vec<String> = disk.names().expect("lists").into_iter().filter(|name| name.contains(".damaged-")).collect();
    assert_eq!(damaged.len(), 4, "{damaged:?}");
    assert!(damaged.iter().any(|name| name.ends_with("-7")), "the latest: {damaged:?}");
}

#[test]
fn a_walk_through_random_bytes_ends_and_finds_nothing() {
    let header = super::segment::Header { bytes: 65_536, first: 0, seed: 5 };
    let mut rng = SmallRng::seed_from_u64(9);
    let mut bytes = vec![0; 65_536];
    rng.fill(&mut bytes[..]);
    let pieces: Vec<Piece<'_>> = super::segment::Pieces::new(&bytes, &header).collect();
    assert!(matches!(pieces[..], [Piece::Bad { offset: ENTRIES_AT, .. }]), "{pieces:?}");
}

/// F1: on a real disk, with the writer's own thread.
#[tokio::test]
async fn entries_are_there_after_a_restart() {
    let folder = tempfile::tempdir().expect("folder");
    let data = DataDir::open(&folder.path().join("data")).expect("opens");
    let (journal, empty) = data.journal(SMALL).expect("opens");
    assert_eq!(replay(empty), (Kept::new(), vec![]));
    let mut tickets = Vec::new();
    for number in 0..300 {
        let ticket = journal.append(vec![payload(number, 500), payload(number, 3)]).expect("room");
        if number % 50 == 0 {
            tokio::time::timeout(Duration::from_secs(30), journal.wait(&ticket)).await.expect("in time").expect("committed");
        }
        tickets.push(ticket);
    }
    journal.close();
    assert!(matches!(journal.append(vec![payload(0, 1)]), Err(Refused::Stopped { .. })));
    journal.wait(&tickets[299]).await.expect("what waited was written");
    assert_eq!(journal.read(tickets[7].positions()[1]).expect("reads"), payload(7, 3));
    drop(journal);
    let (again, kept) = data.journal(SMALL).expect("opens");
    let (kept, findings) = replay(kept);
    assert_eq!((kept.len(), findings), (600, vec![]));
    assert!((0..300).all(|number| kept[&(2 * number + 1)].1 == payload(number, 3)));
    assert_eq!(again.append(vec![payload(300, 1)]).expect("room").first(), Index(600));
    again.close();
}

#[cfg(unix)]
#[test]
fn the_journal_admits_its_owner_alone() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().expect("folder");
    let data = DataDir::open(&folder.path().join("data")).expect("opens");
    let (journal, _) = data.journal(SMALL).expect("opens");
    journal.append(vec![payload(0, 1)]).expect("room");
    journal.close();
    let mode = |path: &std::path::Path| std::fs::metadata(path).expect("there").permissions().mode() & 0o777;
    let inside = data.path().join("journal");
    assert_eq!(mode(&inside), 0o700);
    let files: Vec<_> = std::fs::read_dir(&inside).expect("lists").map(|entry| entry.expect("reads").path()).collect();
    assert_eq!(files.len(), 3, "{files:?}");
    assert!(files.iter().all(|file| mode(file) == 0o600));
}
