//! A task under way, as the loop holds it: its machine, and what of it runs and waits in this process.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;
use tokio::sync::{oneshot, watch};
use tokio_util::task::AbortOnDropHandle;

use crate::model::{Failure, Timestamp};
use crate::proto::task::machine::{Machine, Send as Order};
use crate::store::journal::Position;

/// A call under way, and the words that it waits for, or what a step writes to its context. Dropping it takes the call back; a write
/// that has begun is made.
pub(super) struct Running {
    pub(super) send: Option<oneshot::Sender<Order>>,
    pub(super) begin: Option<oneshot::Sender<()>>,
    pub(super) _work: AbortOnDropHandle<()>,
}

/// A task that has not ended.
pub(super) struct Live {
    pub(super) machine: Machine,
    /// Outputs of its subtasks, by their places.
    pub(super) outputs: Vec<Option<Arc<Value>>>,
    pub(super) running_by_subtask: BTreeMap<u32, Running>,
    /// Late results that are asked for.
    pub(super) recalls_by_subtask: BTreeMap<u32, AbortOnDropHandle<()>>,
    /// Planning or composing, of which there is one at a time.
    pub(super) work: Option<AbortOnDropHandle<()>>,
    pub(super) wake: Option<Timestamp>,
    /// Where its entries lie.
    pub(super) positions: Vec<Position>,
    /// How long its entries are together, with the texts of which they only have the hash; without end for one that a start found.
    pub(super) entry_bytes: usize,
    /// How many of them are durable, for those who follow.
    pub(super) durable: watch::Sender<Durable>,
    /// Answers that wait for the disk, with the number of events that it must have.
    pub(super) answers: Vec<(u64, Answer)>,
}

impl Live {
    /// A task with these entries, of which as many are durable as its machine says.
    pub(super) fn new(machine: Machine, positions: Vec<Position>, outputs: Vec<Option<Arc<Value>>>) -> Self {
        let durable = watch::channel(Durable { events: machine.committed_events(), ended: false }).0;
        let (running_by_subtask, recalls_by_subtask) = (BTreeMap::new(), BTreeMap::new());
        let entry_bytes = if positions.is_empty() { 0 } else { usize::MAX };
        Self {
            machine,
            outputs,
            running_by_subtask,
            recalls_by_subtask,
            work: None,
            wake: None,
            positions,
            entry_bytes,
            durable,
            answers: Vec::new(),
        }
    }

    /// Notes how much of it is durable, and tells those who follow it, if there are any: to tell nobody takes long too.
    pub(super) fn tell(&self, events: u64, ended: bool) {
        self.durable.send_if_modified(|durable| {
            *durable = Durable { events, ended };
            self.durable.receiver_count() > 0
        });
    }

    /// What a step is given: the outputs that it may name, and not all that there are.
    pub(super) fn outputs_for(&self, subtask: u32) -> Vec<Option<Arc<Value>>> {
        let subtasks = &self.machine.state().definition().subtasks;
        let subtask = usize::try_from(subtask).ok().and_then(|place| subtasks.get(place));
        let mut given = vec![None; self.outputs.len()];
        for index in subtask.into_iter().flat_map(|subtask| &subtask.after) {
            if let (Some(given), Some(output)) = (given.get_mut(*index), self.outputs.get(*index)) {
                given.clone_from(output);
            }
        }
        given
    }
}

/// How far a task is durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Durable {
    pub(super) events: u64,
    pub(super) ended: bool,
}

/// An answer to a client, which goes out when what it tells is durable.
pub(super) type Answer = Box<dyn FnOnce(Result<(), Failure>) + Send>;
