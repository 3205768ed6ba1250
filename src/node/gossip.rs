//! Documents from peers on their way into the directory: cheap checks in the loop, signatures on a worker, the verdict back in the loop.

use serde_bytes::ByteBuf;
use tokio::sync::mpsc;

use super::receipts;
use crate::mesh::{ReplyTo, Stamp};
use crate::model::NodeId;
use crate::wire::directory::{Pulse, Record};
use crate::wire::outbox::Word;
use crate::wire::receipt::Receipt;
use crate::wire::{Error, Signed, Verified};

/// Documents that may be verified at once; more are dropped, since digests bring them again.
pub(super) const VERIFYING_MAX: usize = 64;

/// A record or a pulse.
#[derive(Debug)]
pub(super) enum Document<R, P> {
    Record(Box<R>),
    Pulse(Box<P>),
}

/// A document whose form is right and whose signatures are not yet checked.
pub(super) type Claimed = Document<Signed<Record>, Signed<Pulse>>;
/// A document whose signatures hold.
pub(super) type Checked = Document<Verified<Record>, Verified<Pulse>>;

/// What a batch was fetched for.
#[derive(Debug, Clone, Copy)]
pub(super) enum Purpose {
    /// An answer to a query, of one search.
    Search(u64),
    /// A digest exchange.
    Repair,
}

/// What workers report to the loop.
#[derive(Debug)]
pub(super) enum Report {
    /// A gossip message.
    Gossip { stamp: Stamp, from: NodeId, document: Result<Checked, Error> },
    /// The documents of a reply; `bad` of them did not hold.
    Batch { from: NodeId, purpose: Purpose, records: Vec<Verified<Record>>, pulses: Vec<Verified<Pulse>>, bad: usize },
    /// The receipts of a reply, or of an earlier run.
    Receipts(receipts::Batch),
    /// Receipts of this node.
    Signed(Vec<Verified<Receipt>>),
    /// A word on each result of tasks that a node has told of; `None` if nobody had time for them.
    Words { node: NodeId, to: ReplyTo, words: Option<Vec<Word>> },
}

/// Verifies a gossip message on a worker.
pub(super) fn verify(stamp: Stamp, from: NodeId, claimed: Claimed, reports: mpsc::Sender<Report>) {
    tokio::task::spawn_blocking(move || {
        let document = match claimed {
            Document::Record(record) => record.verify().map(|record| Document::Record(Box::new(record))),
            Document::Pulse(pulse) => pulse.verify().map(|pulse| Document::Pulse(Box::new(pulse))),
        };
        let _ = reports.blocking_send(Report::Gossip { stamp, from, document });
    });
}

/// Reads and verifies the documents of a reply on a worker.
pub(super) fn verify_batch(from: NodeId, purpose: Purpose, records: Vec<ByteBuf>, pulses: Vec<ByteBuf>, reports: mpsc::Sender<Report>) {
    tokio::task::spawn_blocking(move || {
        let mut bad = 0_usize;
        let mut keep = |error: &Error| {
            tracing::debug!(peer = %from, %error, "a document in a reply does not hold");
            bad += 1;
        };
        let records =
            records.iter().filter_map(|bytes| Signed::from_bytes(bytes).and_then(Signed::verify).inspect_err(&mut keep).ok()).collect();
        let pulses =
            pulses.iter().filter_map(|bytes| Signed::from_bytes(bytes).and_then(Signed::verify).inspect_err(&mut keep).ok()).collect();
        let _ = reports.blocking_send(Report::Batch { from, purpose, records, pulses, bad });
    });
}
