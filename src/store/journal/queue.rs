//! What waits to be written, and the order and place that it will have.
//!
//! Places follow from lengths alone: an entry goes behind the one before it, or into a new segment if it does not fit. So they are decided when
//! entries are queued, and whoever queues them knows at once where they will lie.

use std::{
    collections::VecDeque,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;

use super::{
    entry::{HEAD_BYTES, Index, Position, SegmentId},
    segment::ENTRIES_AT,
};

/// When to try again after a refusal: a batch is written in a millisecond or less, and several may wait.
const RETRY_AFTER: Duration = Duration::from_millis(20);

/// How long entries wait that nobody waits for: something urgent mostly comes before, and takes them along at no cost.
const LINGER: Duration = Duration::from_millis(2);

/// How long entries gather while many come: each flush costs the processor what some twenty entries do, and whoever is served among many
/// waits longer for that than for this.
const GATHER: Duration = Duration::from_micros(500);

/// Many are as many as this in one batch.
const GATHER_ENTRIES: usize = 24;

/// Why entries were not queued. Nothing changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refused {
    /// More waits than may wait: the disk is slower than the callers, or full. Normal under load; try again.
    #[error("the journal is busy; try again in {} ms", retry_after.as_millis())]
    Busy {
        /// When.
        retry_after: Duration,
    },
    /// An entry, or all of them together, are larger than may be. A mistake of the caller: large bodies are blobs.
    #[error("{bytes} bytes are too much for the journal, which takes {bytes_max}; keep large bodies as blobs")]
    TooLarge {
        /// How large it is.
        bytes: usize,
        /// How large it may be.
        bytes_max: usize,
    },
    /// The journal has stopped for good, and what is not committed never will be. Happens when a disk fails, and at the end.
    #[error("the journal has stopped: {reason}")]
    Stopped {
        /// Why.
        reason: Arc<str>,
    },
}

impl Refused {
    /// Whether the same entries may be taken later.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Busy { .. })
    }
}

/// Entries that were queued together, with consecutive indices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ticket {
    pub(super) first: u64,
    pub(super) positions: Vec<Position>,
}

impl Ticket {
    /// The index of the first entry.
    pub fn first(&self) -> Index {
        Index(self.first)
    }

    /// The index after the last entry.
    pub fn end(&self) -> Index {
        Index(self.first.saturating_add(self.positions.len() as u64))
    }

    /// Where the entries lie, in order, once they are committed.
    pub fn positions(&self) -> &[Position] {
        &self.positions
    }
}

/// Where the next entry goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    /// Its index.
    pub(super) next: u64,
    /// The segment that entries go to now.
    pub(super) first: u64,
    /// Where its next entry begins.
    pub(super) offset: u32,
    /// How long it is; 0 if it has yet to be made.
    pub(super) bytes: u32,
}

impl Place {
    /// The first place of a segment that has yet to be made.
    pub(super) fn new_segment(next: u64) -> Self {
        Self { next, first: next, offset: ENTRIES_AT, bytes: 0 }
    }

    /// Whether nothing was placed in its segment yet, nor will be before it is made.
    pub(super) fn is_new(&self) -> bool {
        self.bytes == 0
    }

    /// Takes the place for an entry, in a new segment of `segment_bytes` if it does not fit.
    fn take(&mut self, payload_bytes: usize, segment_bytes: u32) -> Position {
        let room = u32::try_from(payload_bytes.saturating_add(HEAD_BYTES)).unwrap_or(u32::MAX);
        if self.offset.saturating_add(room) > self.bytes {
            *self = Self { bytes: segment_bytes, ..Self::new_segment(self.next) };
        }
        let position = Position { segment: SegmentId(self.first), offset: self.offset };
        self.offset = self.offset.saturating_add(room);
        self.next = self.next.saturating_add(1);
        position
    }
}

/// An entry that waits.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) index: u64,
    pub(super) position: Position,
    pub(super) payload: Bytes,
}

/// How much may wait, and how large things may be.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    pub(super) entries_max: usize,
    pub(super) bytes_max: usize,
    pub(super) entry_bytes_max: usize,
    pub(super) segment_bytes: u32,
}

/// What callers and the writer share.
#[derive(Debug)]
pub(super) struct Queue {
    bounds: Bounds,
    state: Mutex<State>,
    filled: Condvar,
}

#[derive(Debug)]
struct State {
    waiting: VecDeque<Waiting>,
    bytes: usize,
    place: Place,
    /// What the writer sleeps for: waking it costs a system call.
    writer: Sleeps,
    /// Whether somebody waits for something that waits here.
    urgent: bool,
    /// Whether the last batch was a large one.
    many: bool,
    closing: bool,
    stopped: Option<Arc<str>>,
}

/// What wakes the writer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sleeps {
    /// Nothing, since it is awake or waits for time to pass.
    No,
    /// Anything that is queued.
    ForAny,
    /// What somebody waits for.
    ForUrgent,
}

/// What the writer got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Taken {
    /// Entries to write.
    Entries,
    /// Nothing came in time.
    Nothing,
    /// Nothing is left and nothing will come.
    Closed,
}

impl Queue {
    pub(super) fn new(bounds: Bounds, place: Place) -> Self {
        let state = State {
            waiting: VecDeque::new(),
            bytes: 0,
            place,
            writer: Sleeps::No,
            urgent: false,
            many: false,
            closing: false,
            stopped: None,
        };
        Self { bounds, state: Mutex::new(state), filled: Condvar::new() }
    }

    /// Queues `payloads` together, or none of them. Never waits for the disk. Those that are not `urgent` may be written with what comes
    /// after them, if that is soon.
    pub(super) fn append(&self, payloads: Vec<Bytes>, urgent: bool) -> Result<Ticket, Refused> {
        let Bounds { entries_max, bytes_max, entry_bytes_max, segment_bytes } = self.bounds;
        if let Some(large) = payloads.iter().find(|payload| payload.len() > entry_bytes_max) {
            return Err(Refused::TooLarge { bytes: large.len(), bytes_max: entry_bytes_max });
        }
        let bytes = payloads.iter().map(|payload| payload.len().saturating_add(HEAD_BYTES)).sum::<usize>();
        if bytes > bytes_max || payloads.len() > entries_max {
            return Err(Refused::TooLarge { bytes, bytes_max });
        }
        let mut state = self.lock();
        if let Some(reason) = &state.stopped {
            return Err(Refused::Stopped { reason: reason.clone() });
        }
        if state.closing {
            return Err(Refused::Stopped { reason: "it was closed".into() });
        }
        if state.bytes + bytes > bytes_max || state.waiting.len() + payloads.len() > entries_max {
            return Err(Refused::Busy { retry_after: RETRY_AFTER });
        }
        let ticket_first = state.place.next;
        let mut positions = Vec::with_capacity(payloads.len());
        for payload in payloads {
            let index = state.place.next;
            let position = state.place.take(payload.len(), segment_bytes);
            positions.push(position);
            state.waiting.push_back(Waiting { index, position, payload });
        }
        state.bytes += bytes;
        state.urgent |= urgent;
        let wakes = match state.writer {
            Sleeps::No => false,
            Sleeps::ForAny => true,
            Sleeps::ForUrgent => urgent,
        };
        if wakes {
            state.writer = Sleeps::No;
        }
        drop(state);
        if wakes {
            self.filled.notify_one();
        }
        Ok(Ticket { first: ticket_first, positions })
    }

    /// Moves the next batch to `batch`: at most `entries_max` entries, and `bytes_max` bytes unless one alone is larger. Waits for it, for at most
    /// `wait_max` if that is given. If `batch` holds some still, it waits for all of `wait_max`, or until the journal closes, and adds none.
    pub(super) fn take(&self, batch: &mut VecDeque<Waiting>, entries_max: usize, bytes_max: usize, wait_max: Option<Duration>) -> Taken {
        let mut state = self.lock();
        let held = !batch.is_empty();
        let idle = |state: &mut State| !state.closing && (held || state.waiting.is_empty());
        if idle(&mut state) {
            // Entries that come while others are held wait with them.
            state.writer = if held { Sleeps::No } else { Sleeps::ForAny };
            state = match wait_max {
                Some(wait_max) => {
                    let waited = self.filled.wait_timeout_while(state, wait_max, |state| idle(state));
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.filled.wait_while(state, |state| idle(state)).unwrap_or_else(PoisonError::into_inner),
            };
            state.writer = Sleeps::No;
        }
        let lingers = |state: &mut State| !state.closing && !state.urgent && !state.waiting.is_empty();
        if !held && lingers(&mut state) {
            state.writer = Sleeps::ForUrgent;
            let waited = self.filled.wait_timeout_while(state, LINGER, |state| lingers(state));
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
            state.writer = Sleeps::No;
        }
        if !held && state.many && state.waiting.len() < entries_max {
            // Nobody wakes the writer for this, which would cost what it saves.
            let waited = self.filled.wait_timeout_while(state, GATHER, |state| !state.closing);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        if held {
            return if state.closing { Taken::Closed } else { Taken::Entries };
        }
        let mut bytes = 0_usize;
        while let Some(next) = state.waiting.front() {
            let room = next.payload.len() + HEAD_BYTES;
            if batch.len() >= entries_max || (!batch.is_empty() && bytes + room > bytes_max) {
                break;
            }
            bytes += room;
            batch.extend(state.waiting.pop_front());
        }
        state.bytes = state.bytes.saturating_sub(bytes);
        state.many = batch.len() >= GATHER_ENTRIES;
        // What did not fit into this batch is written right after it.
        state.urgent &= !state.waiting.is_empty();
        match (batch.is_empty(), state.closing) {
            (false, _) => Taken::Entries,
            (true, false) => Taken::Nothing,
            (true, true) => Taken::Closed,
        }
    }

    /// Refuses everything from now on and lets the writer end once it has written the rest.
    pub(super) fn close(&self) {
        self.lock().closing = true;
        self.filled.notify_all();
    }

    /// Refuses everything from now on and forgets what waits, which will never be committed.
    pub(super) fn stop(&self, reason: Arc<str>) {
        let mut state = self.lock();
        state.waiting.clear();
        state.bytes = 0;
        state.stopped.get_or_insert(reason);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
