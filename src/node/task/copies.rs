//! Copies of tasks that wait for long.
//!
//! Segments of the journal go from the oldest on, so a task that waits, for an agent or for its time, would keep all that came after its first
//! entry, and have every start read it. So when those that have not ended are all that a start would have to go far back for, their entries are
//! appended once more, as they are and next to each other, and what was before them is free to go.
//!
//! A copy counts when all of it is durable; until then the task's entries are where they were. A crash in between leaves a part of it, which replay
//! passes over ([`super::replay`]). Nothing is copied of a task that goes on meanwhile, none that is large, and little at a time, since it takes its
//! turn in the journal with all that is new.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;

use super::live::Live;
use crate::model::TaskId;
use crate::node::failpoint;
use crate::store::Journal;
use crate::store::journal::{Index, Position, SegmentId};

/// So many segments a start may have to go back for tasks that wait: each is copied once in the time that as many pass.
const SEGMENTS_MAX: usize = 4;
/// The entries of one task that are copied: a quarter of what may wait for the disk.
const TASK_BYTES_MAX: usize = 2 * 1_048_576;
/// The entries of all tasks that are copied together: half of what may wait for the disk, in bytes and in number.
const BYTES_MAX: usize = 4 * 1_048_576;
const ENTRIES_MAX: usize = 8_192;
/// Entries that are read before it is asked whether they are too many bytes.
const PER_READ: usize = 16;

/// Tasks that are to be copied, each with where its entries are.
pub(super) type Due = Vec<(TaskId, Arc<[Position]>)>;

/// A copy that the disk does not have yet.
#[derive(Debug)]
struct Copy {
    task: TaskId,
    end: Index,
    positions: Vec<Position>,
}

/// Copies on their way to the disk.
#[derive(Debug, Default)]
pub(super) struct Copies(VecDeque<Copy>);

impl Copies {
    /// Which tasks are to be copied where a start must begin at `others` whatever they do, the oldest first.
    pub(super) fn due(&self, journal: &Journal, live: &BTreeMap<TaskId, Live>, others: SegmentId) -> Due {
        let Some(limit) = journal.before(others, SEGMENTS_MAX).filter(|_| self.0.is_empty() && !journal.is_full()) else {
            return Due::new();
        };
        let first = |live: &Live| live.positions.first().map(|position| position.segment);
        let is_durable = |live: &Live| u64::try_from(live.positions.len()).is_ok_and(|events| events == live.machine.committed_events());
        let old = live.iter().filter(|(_, live)| first(live).is_some_and(|first| first < limit) && is_durable(live));
        let mut old: Vec<(Option<SegmentId>, TaskId, &Live)> = old.map(|(task, live)| (first(live), *task, live)).collect();
        old.sort_unstable_by_key(|(first, task, _)| (*first, *task));
        let mut left = ENTRIES_MAX;
        let fits =
            |(.., live): &(Option<SegmentId>, TaskId, &Live)| left.checked_sub(live.positions.len()).inspect(|rest| left = *rest).is_some();
        old.into_iter().take_while(fits).map(|(_, task, live)| (task, live.positions.as_slice().into())).collect()
    }

    /// Appends the entries of a task once more, unless something has happened to it since they were read.
    pub(super) fn begin(&mut self, journal: &Journal, live: &BTreeMap<TaskId, Live>, task: TaskId, entries: Vec<Bytes>) {
        let count = u64::try_from(entries.len()).unwrap_or(u64::MAX);
        let is_whole = |live: &&Live| live.machine.state().events() == count && live.positions.len() == entries.len();
        if live.get(&task).filter(is_whole).is_none() {
            return;
        }
        failpoint::before(journal, &entries);
        match journal.append_later(entries.clone()) {
            Ok(ticket) => {
                failpoint::queued(&entries, &ticket);
                self.0.push_back(Copy { task, end: ticket.end(), positions: ticket.positions().to_vec() });
            }
            // The next checkpoint tries again.
            Err(error) => tracing::debug!(%error, %task, "what a task that waits needs was not copied"),
        }
    }

    /// Everything before this is durable: tasks lie where their copies do.
    pub(super) fn on_committed(&mut self, end: Index, live: &mut BTreeMap<TaskId, Live>) {
        while self.0.front().is_some_and(|copy| copy.end <= end) {
            let Some(Copy { task, positions, .. }) = self.0.pop_front() else { return };
            if let Some(live) = live.get_mut(&task) {
                live.positions.splice(..positions.len().min(live.positions.len()), positions);
            }
        }
    }
}

/// Reads what is to be copied and hands it on, task by task. Blocks.
pub(super) fn read(journal: &Journal, due: Due, mut hand_on: impl FnMut(TaskId, Vec<Bytes>)) {
    let mut left = BYTES_MAX;
    for (task, positions) in due {
        let most = left.min(TASK_BYTES_MAX);
        let (mut entries, mut bytes) = (Vec::with_capacity(positions.len()), 0_usize);
        for part in positions.chunks(PER_READ) {
            // One that does not read is met by whoever needs it.
            let Ok(read) = journal.read_many(part) else { break };
            bytes = bytes.saturating_add(read.iter().map(Vec::len).sum());
            if bytes > most {
                break;
            }
            entries.extend(read.into_iter().map(Bytes::from));
        }
        if entries.len() == positions.len() {
            left = left.saturating_sub(bytes);
            hand_on(task, entries);
        }
    }
}
