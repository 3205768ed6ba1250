//! Tasks on this node: the loop that owns them, and what works for it (design/tasks.md).
//!
//! [`book`] is one task beside the event loop: every machine, the journal, and what clients ask go through it one after the other, so that
//! nothing is decided twice. It decides nothing itself: `proto::task` does. What takes time is done by others and comes back as a report:
//! [`step`] chooses an agent ([`offers`]: after asking around) and makes a call, [`plan`] decomposes a goal, [`types`] holds a definition
//! against the schemas of those who would do it, [`context`] reads a shared context for steps and writes what they want to be written there,
//! [`delegate`] runs tasks for other nodes, [`callback`] tells of those that have ended,
//! [`read`] reads them from the journal, [`recent`] has those of the last moments, [`archive`] is what memory keeps of them, and [`filed`] what the index has, where [`filing`] brings
//! it. [`late`] takes results of attempts that were given up. [`guard`] tells of work that panics. [`door`] is what clients reach it by, and [`replay`] what a start finds in the journal.
//!
//! The order of things is the journal's: an event is appended when it is decided, and what follows from it leaves this node when the disk has
//! it. A client's answer waits likewise, so nobody is ever told what a crash could undo.
//!
//! Two departures from the design. *Heartbeat*: a step does not report every 10 s to be lost after 30 s of silence; its call is on a lane, which
//! asks for a sign of life every half second while calls are under way, and is lost with all of them after 2 s of silence
//! (`proto::invocation::client`). So a node that died is noticed sooner, and an agent that hangs on a node that lives is left to the timeout of
//! the attempt. *Results*: an agent's node keeps what came of a step until a day after its deadline, but never more results, of steps and calls
//! together, than `limits.results_kept_max` and `limits.results_kept_bytes_max` say. One that had to make room is work that a repeat does
//! again, at least once and not at most, unless the step says `retry: never`.

mod archive;
pub(super) mod book;
mod callback;
mod clock;
mod context;
mod copies;
mod delegate;
mod door;
mod filed;
mod filing;
mod guard;
mod late;
mod live;
mod nested;
mod offers;
mod plan;
mod read;
mod recent;
mod replay;
mod row;
mod step;
mod types;
mod waiting;

pub(super) use book::{Book, COMMANDS_MAX};
pub(super) use clock::TaskClock;
pub(super) use delegate::Delegate;
pub(super) use door::{Access, Command};
pub use door::{LIST_MAX, Submission};
pub use plan::DECOMPOSE_MAX;
pub(super) use read::Reader;
pub(super) use replay::{Found, run as replay};
