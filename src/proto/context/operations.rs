//! The graph of what was written: which operation builds on which, who wrote how much, and what one replica has that another lacks.
//!
//! Operations of one author form a line, unless the author signs two of one number; then both are kept, and are the proof of it.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::{OperationId, Principal};
use crate::wire::context::{Cut, Header, Last, Tip};

/// What the entry of an operation takes in memory, with its places in the tables below and in that of where it stands on the disk.
const HELD_BYTES: u64 = 512;

/// What is kept in memory of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// Who wrote it.
    pub author: Principal,
    /// How many operations its author wrote before it.
    pub seq: u64,
    /// Its author's operation before it.
    pub prev: Option<OperationId>,
    /// Its clock.
    pub lamport: u64,
    /// The change of access that its author knew.
    pub acl_epoch: u64,
    /// How many bytes its author's line has up to here.
    pub line_bytes: u64,
    /// Whether it counts. Otherwise it lies behind a cut, and stands there for what others built on it.
    pub counts: bool,
    /// An operation far before it on its author's line, so that the way to any of them is short.
    pub(super) skip: Option<OperationId>,
}

/// The proof that an author signed two operations of one number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Equivocation {
    /// The author.
    pub author: Principal,
    /// The number.
    pub seq: u64,
    /// The two.
    pub operations: [OperationId; 2],
}

/// All operations of a context.
#[derive(Debug, Default)]
pub struct Operations {
    entries: BTreeMap<OperationId, Entry>,
    lines: BTreeMap<Principal, Line>,
    /// Those that count and that nothing which counts was built on.
    heads: BTreeSet<OperationId>,
    /// The change of access with which the newest era began.
    era: u64,
    /// How many bytes all of them have.
    bytes: u64,
    /// How many came since the last checkpoint, and how many bytes they have.
    since: (usize, u64),
}

#[derive(Debug, Default)]
struct Line {
    /// How many there are on all branches since the last checkpoint, and how many bytes they have.
    written: (u64, u64),
    /// By number; a second one of a number stands in `twins`.
    by_seq: BTreeMap<u64, OperationId>,
    twins: BTreeSet<(u64, OperationId)>,
    /// The last of each branch.
    tips: BTreeSet<(u64, OperationId)>,
}

impl Operations {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// About how many bytes they take in memory at most, with what they left in the fold: what counts against their authors, and entries.
    pub fn held_bytes(&self) -> u64 {
        let entries = u64::try_from(self.entries.len()).unwrap_or(u64::MAX);
        self.bytes.saturating_add(entries.saturating_mul(HELD_BYTES))
    }

    /// Those whose names begin with these hexadecimal digits; of many the first two, which show that there are several.
    pub fn named(&self, digits: &str) -> Vec<OperationId> {
        let range = OperationId::beginning(digits);
        range.map(|range| self.entries.range(range).take(2).map(|(id, _)| *id).collect()).unwrap_or_default()
    }

    /// Those of `author`, on all its branches.
    pub fn of(&self, author: Principal) -> impl Iterator<Item = OperationId> {
        self.lines.get(&author).into_iter().flat_map(Line::all)
    }

    /// What is known of one.
    pub fn get(&self, id: OperationId) -> Option<&Entry> {
        self.entries.get(&id)
    }

    /// The latest by their clocks, at most so many, the latest first.
    pub fn latest(&self, count_max: usize) -> Vec<OperationId> {
        let mut all: Vec<_> = self.entries.iter().map(|(id, entry)| std::cmp::Reverse((entry.lamport, *id))).collect();
        if count_max < all.len() {
            all.select_nth_unstable(count_max);
            all.truncate(count_max);
        }
        all.sort_unstable();
        all.into_iter().map(|std::cmp::Reverse((_, id))| id).collect()
    }

    /// Those that count and that nothing which counts was built on, in order.
    pub fn heads(&self) -> &BTreeSet<OperationId> {
        &self.heads
    }

    /// The last operation of `author`: of several branches that of the longest.
    pub fn last(&self, author: Principal) -> Option<Last> {
        let (seq, id) = *self.lines.get(&author)?.tips.last()?;
        Some(Last { seq, id })
    }

    /// The last operations of all authors.
    pub fn tips(&self) -> Vec<Tip> {
        let of_line = |(author, line): (&Principal, &Line)| {
            let author = *author;
            line.tips.iter().map(move |(seq, id)| Tip { author, seq: *seq, id: *id }).collect::<Vec<_>>()
        };
        self.lines.iter().flat_map(of_line).collect()
    }

    /// Another operation of the same author with the same number, if there is one.
    pub fn twin(&self, id: OperationId) -> Option<OperationId> {
        let entry = self.get(id)?;
        let line = self.lines.get(&entry.author)?;
        let others = line.twins.range((entry.seq, OperationId::from_bytes([0; 32]))..=(entry.seq, OperationId::from_bytes([u8::MAX; 32])));
        line.by_seq.get(&entry.seq).into_iter().chain(others.map(|(_, id)| id)).find(|other| **other != id).copied()
    }

    /// How many operations of `author` came since the last checkpoint on all its branches, and how many bytes they have.
    pub fn written(&self, author: Principal) -> (u64, u64) {
        self.lines.get(&author).map_or((0, 0), |line| line.written)
    }

    /// How many operations came since the last checkpoint, and how many bytes they have.
    pub fn written_since(&self) -> (usize, u64) {
        self.since
    }

    /// Whether `author` has signed two operations of one number.
    pub fn has_twins(&self, author: Principal) -> bool {
        self.lines.get(&author).is_some_and(|line| !line.twins.is_empty())
    }

    /// Of each author who signed two operations of one number, the first number and two operations of it; of at most so many authors. The
    /// same for all who hold the same.
    pub fn equivocations(&self, authors_max: usize) -> Vec<Equivocation> {
        let first = |(author, line): (&Principal, &Line)| {
            let mut twins = line.twins.iter();
            let ((seq, one), (_, other)) = (twins.next()?, twins.next()?);
            Some(Equivocation { author: *author, seq: *seq, operations: [*one, *other] })
        };
        self.lines.iter().filter_map(first).take(authors_max).collect()
    }

    /// Begins an era at the checkpoint that stands for all that was before it. What authors may write in it is counted anew.
    pub(super) fn begin(&mut self, era: u64, root: Option<OperationId>) {
        self.era = era;
        self.heads = root.into_iter().collect();
        self.since = (0, 0);
        self.lines.values_mut().for_each(|line| line.written = (0, 0));
    }

    /// The greatest clock of an era, and the last operation of each of its authors, in order.
    pub(super) fn ends(&self, era: u64) -> (u64, Vec<Cut>) {
        let is_of_era = |id: OperationId| self.get(id).is_some_and(|entry| entry.acl_epoch >= era);
        let lamport = self.entries.values().map(|entry| entry.lamport).max().unwrap_or(0);
        let last =
            |author: &Principal| self.last(*author).filter(|last| is_of_era(last.id)).map(|last| Cut { author: *author, last: Some(last) });
        (lamport, self.lines.keys().filter_map(last).collect())
    }

    /// Takes in an operation whose parents are all here.
    pub(super) fn insert(&mut self, id: OperationId, entry: Entry, header: &Header) {
        let Entry { author, seq, prev, line_bytes, counts, .. } = entry;
        // Each era counts from nothing.
        let before = prev.and_then(|prev| self.get(prev)).filter(|prev| prev.acl_epoch >= self.era);
        let bytes = line_bytes.saturating_sub(before.map_or(0, |prev| prev.line_bytes));
        let skip = prev.and_then(|prev| self.skip_behind(prev));
        self.entries.insert(id, Entry { skip, ..entry });
        if counts {
            for parent in header.parents() {
                self.heads.remove(&parent);
            }
            self.heads.insert(id);
        }
        self.bytes = self.bytes.saturating_add(bytes);
        self.since = (self.since.0.saturating_add(1), self.since.1.saturating_add(bytes));
        let line = self.lines.entry(author).or_default();
        line.written = (line.written.0.saturating_add(1), line.written.1.saturating_add(bytes));
        if let Some(first) = line.by_seq.get(&seq) {
            line.twins.extend([(seq, *first), (seq, id)]);
        } else {
            line.by_seq.insert(seq, id);
        }
        if let (Some(prev), Some(seq)) = (prev, seq.checked_sub(1)) {
            line.tips.remove(&(seq, prev));
        }
        line.tips.insert((seq, id));
    }

    /// Whether the operation `id` of `author` with number `seq` lies on the line that ends with `last`, or is its end. As long as that end
    /// is not here, all before it may.
    pub fn is_on_line(&self, id: OperationId, seq: u64, author: Principal, last: Last) -> bool {
        if seq >= last.seq {
            return id == last.id;
        }
        let ends_here = self.get(last.id).is_some_and(|end| end.author == author && end.seq == last.seq);
        // Of a line with a hole, of which not all was kept, that is kept which lay on it.
        !ends_here || self.on_line(last.id, seq).is_none_or(|on_line| on_line == id)
    }

    /// The operation with number `seq` on the line that ends with `last`.
    fn on_line(&self, last: OperationId, seq: u64) -> Option<OperationId> {
        let mut at = last;
        loop {
            let entry = self.get(at)?;
            if entry.seq <= seq {
                return (entry.seq == seq).then_some(at);
            }
            let skip = entry.skip.filter(|skip| self.get(*skip).is_some_and(|far| far.seq >= seq));
            at = skip.or(entry.prev)?;
        }
    }

    /// Where the one after `prev` skips to. Any way along `prev` and these takes a number of steps in the order of its logarithm
    /// (Myers, "An applicative random-access stack", 1983).
    fn skip_behind(&self, prev: OperationId) -> Option<OperationId> {
        let near = self.get(prev)?;
        let Some(far) = near.skip else { return Some(prev) };
        let far_entry = self.get(far)?;
        let further = far_entry.skip.unwrap_or(far);
        let is_even = near.seq.checked_sub(far_entry.seq)? == far_entry.seq.checked_sub(self.get(further)?.seq)?;
        Some(if is_even { further } else { prev })
    }

    /// What a replica with those tips lacks, in an order in which each builds on those before it.
    pub fn beyond(&self, tips: &[Tip]) -> Vec<OperationId> {
        let mut lacking: Vec<(u64, OperationId)> = Vec::new();
        for (author, line) in &self.lines {
            let theirs: Vec<&Tip> = tips.iter().filter(|tip| tip.author == *author).collect();
            let ids: Vec<OperationId> = match theirs.as_slice() {
                [] => line.all().collect(),
                [tip] if line.twins.is_empty() => {
                    let agrees = line.by_seq.get(&tip.seq).is_none_or(|id| *id == tip.id);
                    // With another operation of the same number, nothing is known of what lies before.
                    let from = if agrees { tip.seq.saturating_add(1) } else { 0 };
                    line.by_seq.range(from..).map(|(_, id)| *id).collect()
                }
                tips => {
                    let had = self.lines_of(tips);
                    line.all().filter(|id| !had.contains(id)).collect()
                }
            };
            lacking.extend(ids.into_iter().filter_map(|id| self.get(id).map(|entry| (entry.lamport, id))));
        }
        lacking.sort_unstable();
        lacking.into_iter().map(|(_, id)| id).collect()
    }

    /// The operations on the lines that end with those tips.
    fn lines_of(&self, tips: &[&Tip]) -> BTreeSet<OperationId> {
        let mut had = BTreeSet::new();
        for tip in tips {
            let mut on_line = Some(tip.id);
            while let Some(id) = on_line
                && let Some(entry) = self.get(id)
                && had.insert(id)
            {
                on_line = entry.prev;
            }
        }
        had
    }
}

impl Line {
    fn all(&self) -> impl Iterator<Item = OperationId> {
        let second = self.twins.iter().filter(|(seq, id)| self.by_seq.get(seq) != Some(id)).map(|(_, id)| *id);
        self.by_seq.values().copied().chain(second)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{ContextId, Timestamp};

    fn author() -> Principal {
        Principal::from_public_key([1; 32])
    }

    fn id(branch: u8, seq: u64) -> OperationId {
        let [.., high, low] = seq.to_be_bytes();
        let mut bytes = [0; 32];
        // Names say nothing about the order in which they were written.
        (bytes[0], bytes[1], bytes[2]) = (low ^ branch, high, branch);
        OperationId::from_bytes(bytes)
    }

    fn put(operations: &mut Operations, id: OperationId, prev: Option<OperationId>, deps: &[OperationId], counts: bool) {
        let before = prev.and_then(|prev| operations.get(prev)).copied();
        let seq = before.map_or(0, |prev| prev.seq + 1);
        let line_bytes = before.map_or(0, |prev| prev.line_bytes) + 100;
        let header = Header {
            v: crate::wire::VERSION,
            context: ContextId::from_bytes([0; 32]),
            author: author(),
            seq,
            prev,
            deps: deps.to_vec(),
            lamport: seq + 1,
            acl_epoch: 1,
            is_private: false,
            at: Timestamp::from_ms(0),
        };
        let entry = Entry { author: author(), seq, prev, lamport: seq + 1, acl_epoch: 1, line_bytes, counts, skip: None };
        operations.insert(id, entry, &header);
    }

    /// A line of `count`, and one of branch 1 that leaves it after number `fork`.
    fn forked(count: u64, fork: u64) -> Operations {
        let mut operations = Operations::default();
        (0..count).for_each(|seq| put(&mut operations, id(0, seq), seq.checked_sub(1).map(|prev| id(0, prev)), &[], true));
        for seq in fork + 1..count {
            let prev = if seq == fork + 1 { id(0, fork) } else { id(1, seq - 1) };
            put(&mut operations, id(1, seq), Some(prev), &[], true);
        }
        operations
    }

    fn tip(id: OperationId, seq: u64) -> Tip {
        Tip { author: author(), seq, id }
    }

    fn numbers(branch: u8, seqs: std::ops::Range<u64>) -> Vec<OperationId> {
        seqs.map(|seq| id(branch, seq)).collect()
    }

    #[test]
    fn what_another_lacks_is_all_that_does_not_lead_to_its_tips() {
        let line = forked(10, 9);
        assert_eq!(line.beyond(&[]), numbers(0, 0..10));
        assert_eq!(line.beyond(&[tip(id(0, 6), 6)]), numbers(0, 7..10));
        assert_eq!(line.beyond(&line.tips()), []);
        assert_eq!(line.beyond(&[tip(id(0, 20), 20)]), [], "it is ahead");
        assert_eq!(line.beyond(&[tip(id(7, 6), 6)]), numbers(0, 0..10), "with another branch, nobody knows where it left");
        let stranger = Tip { author: Principal::from_public_key([2; 32]), ..tip(id(0, 6), 6) };
        assert_eq!(line.beyond(&[stranger]), numbers(0, 0..10));
    }

    #[test]
    fn of_two_branches_the_one_that_another_lacks_is_sent() {
        let operations = forked(10, 3);
        assert_eq!(operations.tips().len(), 2);
        assert_eq!(operations.beyond(&operations.tips()), []);
        assert_eq!(operations.beyond(&[tip(id(0, 9), 9)]), numbers(1, 4..10));
        assert_eq!(operations.beyond(&[tip(id(1, 9), 9)]), numbers(0, 4..10));
        let both = operations.beyond(&[tip(id(0, 3), 3)]);
        assert_eq!(both.len(), 12);
        assert!(both.iter().is_sorted_by_key(|id| operations.get(*id).expect("here").lamport), "each after what it builds on");
        assert_eq!(operations.beyond(&[tip(id(9, 5), 5)]).len(), 16, "all, for a branch that is not here");
        assert_eq!(operations.beyond(&[tip(id(0, 9), 9), tip(id(1, 6), 6)]), numbers(1, 7..10));
    }

    #[test]
    fn the_latest_are_told_from_the_last_on() {
        let operations = forked(10, 3);
        assert_eq!(operations.latest(0), []);
        let newest: BTreeSet<_> = [id(0, 9), id(1, 9)].into();
        let latest = operations.latest(3);
        assert_eq!((latest[..2].iter().copied().collect(), latest.len()), (newest, 3));
        assert_eq!(latest[..2], operations.latest(2));
        let all = operations.latest(17);
        assert_eq!((all.len(), all[15]), (16, id(0, 0)));
        assert!(all.iter().is_sorted_by_key(|id| std::cmp::Reverse(operations.get(*id).expect("here").lamport)));
        assert_eq!(all, operations.latest(16));
    }

    #[test]
    fn operations_of_one_number_are_each_others_proof() {
        let operations = forked(6, 3);
        assert!(operations.has_twins(author()));
        assert_eq!((operations.twin(id(0, 4)), operations.twin(id(1, 4))), (Some(id(1, 4)), Some(id(0, 4))));
        assert_eq!((operations.twin(id(0, 3)), operations.twin(id(5, 5))), (None, None));
        assert!(!forked(6, 5).has_twins(author()));
        let mut both = [id(0, 4), id(1, 4)];
        both.sort_unstable();
        assert_eq!(operations.equivocations(1), [Equivocation { author: author(), seq: 4, operations: both }]);
        assert_eq!((operations.equivocations(0), forked(6, 5).equivocations(1)), (Vec::new(), Vec::new()));
        assert_eq!(operations.len(), 8);
        assert_eq!(operations.written(author()), (8, 800), "both branches, each of them once");
    }

    #[test]
    fn what_lies_on_the_line_to_an_end_is_found_however_long_it_is() {
        let operations = forked(600, 250);
        for (branch, other) in [(0, 1), (1, 0)] {
            let last = Last { seq: 599, id: id(branch, 599) };
            for seq in 0..600 {
                let own = if seq <= 250 { id(0, seq) } else { id(branch, seq) };
                assert!(operations.is_on_line(own, seq, author(), last), "{seq}");
                assert!(seq <= 250 || !operations.is_on_line(id(other, seq), seq, author(), last), "{seq} of the other");
            }
        }
        let early = Last { seq: 300, id: id(1, 300) };
        assert!(operations.is_on_line(id(1, 299), 299, author(), early));
        assert!(!operations.is_on_line(id(1, 301), 301, author(), early));
        assert!(!operations.is_on_line(id(0, 300), 300, author(), early));
    }

    /// Skips are few: an attacker's line of any shape is gone along in steps of a logarithm.
    #[test]
    fn the_way_along_a_line_is_short() {
        let operations = forked(600, 599);
        for seq in [0, 1, 17, 255, 256, 511, 598] {
            let (mut at, mut steps) = (id(0, 599), 0);
            while operations.get(at).expect("here").seq > seq {
                let entry = operations.get(at).expect("here");
                let skip = entry.skip.filter(|skip| operations.get(*skip).expect("here").seq >= seq);
                at = skip.or(entry.prev).expect("not the first");
                steps += 1;
            }
            assert!(steps <= 20, "{steps} steps to {seq}");
        }
    }

    #[test]
    fn an_end_that_is_not_here_may_have_any_line() {
        let operations = forked(10, 3);
        let unknown = Last { seq: 20, id: id(0, 20) };
        assert!(operations.is_on_line(id(0, 5), 5, author(), unknown) && operations.is_on_line(id(1, 5), 5, author(), unknown));
        // An owner that gives an end another number than it has, or another's operation, has named none.
        let wrong = Last { seq: 8, id: id(0, 9) };
        assert!(operations.is_on_line(id(1, 5), 5, author(), wrong));
        assert!(!operations.is_on_line(id(0, 8), 8, author(), wrong));
        let other = Principal::from_public_key([2; 32]);
        assert!(operations.is_on_line(id(1, 5), 5, other, Last { seq: 9, id: id(0, 9) }));
    }

    #[test]
    fn what_does_not_count_takes_no_head_away_and_is_none() {
        let mut operations = forked(3, 2);
        put(&mut operations, id(1, 3), Some(id(0, 2)), &[], false);
        assert_eq!(operations.heads(), &BTreeSet::from([id(0, 2)]));
        assert_eq!(operations.tips(), [tip(id(1, 3), 3)], "it is there all the same");
        put(&mut operations, id(0, 3), Some(id(0, 2)), &[id(1, 3)], true);
        assert_eq!(operations.heads(), &BTreeSet::from([id(0, 3)]));
    }
}
