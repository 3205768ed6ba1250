//! The graph of what was written: which operation builds on which, who wrote how much, and what one replica has that another lacks.
//!
//! Operations of one author form a line, unless the author signs two of one number; then both are kept, and are the proof of it.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::{OperationId, Principal};
use crate::wire::context::{Header, Last, Tip};

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

/// All operations of a context.
#[derive(Debug, Default)]
pub struct Operations {
    entries: BTreeMap<OperationId, Entry>,
    lines: BTreeMap<Principal, Line>,
    /// Those that count and that nothing which counts was built on.
    heads: BTreeSet<OperationId>,
}

#[derive(Debug, Default)]
struct Line {
    /// How many there are on all branches, and how many bytes they have.
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

    /// What is known of one.
    pub fn get(&self, id: OperationId) -> Option<&Entry> {
        self.entries.get(&id)
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

    /// How many operations of `author` there are on all its branches, and how many bytes they have.
    pub fn written(&self, author: Principal) -> (u64, u64) {
        self.lines.get(&author).map_or((0, 0), |line| line.written)
    }

    /// Whether `author` has signed two operations of one number.
    pub fn has_twins(&self, author: Principal) -> bool {
        self.lines.get(&author).is_some_and(|line| !line.twins.is_empty())
    }

    /// Takes in an operation whose parents are all here.
    pub(super) fn insert(&mut self, id: OperationId, entry: Entry, header: &Header) {
        let Entry { author, seq, prev, line_bytes, counts, .. } = entry;
        let bytes = line_bytes.saturating_sub(prev.and_then(|prev| self.get(prev)).map_or(0, |prev| prev.line_bytes));
        let skip = prev.and_then(|prev| self.skip_behind(prev));
        self.entries.insert(id, Entry { skip, ..entry });
        if counts {
            for parent in header.parents() {
                self.heads.remove(&parent);
            }
            self.heads.insert(id);
        }
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
        !ends_here || self.on_line(last.id, seq) == Some(id)
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
