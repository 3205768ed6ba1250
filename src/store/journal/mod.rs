//! What a node has acknowledged: a list of numbered entries that survives a killed process and a cut of the power. What entries mean is for the layer
//! above; here they are bytes.
//!
//! *Committed* is an entry that was written and flushed with all before it. [`Journal::append`] queues and never waits; one thread writes
//! what waits, flushes once for all of it and moves [`Journal::committed`] on. Whoever acts or answers on an entry waits for that.
//!
//! *After a crash* every committed entry is there, with its index and its bytes. Of what was not committed some may be there, but never one
//! without those before it.
//!
//! *Damage* (faults F2, F4) is found by checksums, named with file, offset and the indices that are missing, and costs no other entry. No
//! bytes are shown that were not appended, and none that were not understood are written over. A segment of another format is refused (fault F17).
//!
//! *A full disk* (fault F3) is known before it hurts: the next segment is made in advance, and without it [`Journal::is_full`] asks the callers to
//! refuse new work while what runs may end. *A failing disk* stops the journal for good; what can be read stays readable.
//!
//! *Bounds*: an entry has at most [`ENTRY_BYTES_MAX`] bytes; what waits is bounded in entries and bytes ([`Config`]), and more is refused
//! as busy; a start holds one segment at a time. The number of segments is for the layer above, which says before which one all can go.
//! What went so is known (`mark`), and every other segment that is not there is missed.
//!
//! Files, in `journal/`: `FIRST-INDEX.seg`, the `spare` that will be the next one, `forgotten` with the mark, and up to four `.seg.damaged-N` of
//! which nothing could be read.

mod disk;
mod entry;
mod handle;
mod mark;
mod queue;
mod replay;
mod segment;
mod writer;

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

pub use entry::{Finding, FindingKind, Index, Position, SegmentId};
pub use handle::{Config, ENTRY_BYTES_MAX, Journal};
pub use queue::{Refused, Ticket};
pub use replay::{Entry, Replay};
pub use writer::Committed;
