//! What memory keeps of tasks that have ended.
//!
//! One that has just ended is here with its row and the places of its entries, until a checkpoint has brought it into the index; from then
//! on little more than its id is. One whose entries cannot be read stays here for good: the index has only what reads. Removals wait for a
//! checkpoint too. Nothing here touches the disk: who needs what the index has gets a [`Place`], and reads it on a worker.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use super::door::{Listing, Receipt, Standing};
use super::filed::{self, Filed};
use super::row::Row;
use crate::model::{Failure, TaskId, Timestamp};
use crate::proto::task::state::State;
use crate::proto::task::view;
use crate::store::journal::{Position, SegmentId};
use crate::wire::task::Outcome;

/// Hexadecimal digits of a task's id.
const ID_DIGITS: usize = 32;
/// So many that the index does not have yet are too many to wait for the next checkpoint.
const FRESH_MAX: usize = 16_384;

/// A task that has ended; the rest of it is in the journal.
#[derive(Debug, Clone)]
pub(super) struct Ended {
    pub(super) row: Row,
    pub(super) outcome: Outcome,
    pub(super) created: Timestamp,
    pub(super) at: Timestamp,
    pub(super) positions: Arc<[Position]>,
    pub(super) key: Option<(String, [u8; 32])>,
    /// What is wrong, if its entries cannot be read.
    pub(super) unreadable: Option<Arc<Failure>>,
    /// Whom to tell of it, until that has come to an end.
    pub(super) callback: Option<String>,
}

/// Where a task is read that has ended.
#[derive(Debug, Clone)]
pub(in crate::node) enum Place {
    /// Its entries are here.
    Journal(Arc<[Position]>),
    /// The index knows: the task that was submitted then.
    Index(Timestamp, TaskId),
}

/// What a checkpoint takes of the archive.
#[derive(Debug)]
pub(super) struct Taken {
    /// Tasks that the index is to have, with whom to tell of them.
    pub(super) tasks: Vec<(TaskId, Arc<Ended>, Option<String>)>,
    /// Keys that it is to lose.
    pub(super) unwanted: Vec<Vec<u8>>,
}

/// The tasks that have ended.
#[derive(Debug, Default)]
pub(super) struct Archive {
    fresh: BTreeMap<TaskId, Arc<Ended>>,
    filed: BTreeMap<TaskId, Filed>,
    /// Whom to tell of a task, until that has come to an end.
    callbacks: BTreeMap<TaskId, String>,
    /// Keys in the index that nobody wants any more.
    unwanted: BTreeSet<Vec<u8>>,
}

impl Archive {
    /// Takes up what a start found.
    pub(super) fn restore(
        ended: BTreeMap<TaskId, Ended>,
        filed: BTreeMap<TaskId, Filed>,
        callbacks: BTreeMap<TaskId, String>,
        unwanted: Vec<Vec<u8>>,
    ) -> Self {
        let mut archive = Self { filed, callbacks, unwanted: unwanted.into_iter().collect(), ..Self::default() };
        for (task, ended) in ended {
            archive.insert(task, ended);
        }
        archive
    }

    /// A task has ended.
    pub(super) fn insert(&mut self, task: TaskId, mut ended: Ended) {
        self.callbacks.extend(ended.callback.take().map(|url| (task, url)));
        self.fresh.insert(task, Arc::new(ended));
    }

    pub(super) fn contains(&self, task: &TaskId) -> bool {
        self.fresh.contains_key(task) || self.filed.contains_key(task)
    }

    pub(super) fn len(&self) -> usize {
        self.fresh.len().saturating_add(self.filed.len())
    }

    /// Whether a checkpoint is due before its time.
    pub(super) fn is_crowded(&self) -> bool {
        self.fresh.len() > FRESH_MAX
    }

    /// Each of them, by when it was submitted.
    pub(super) fn ages(&self) -> impl Iterator<Item = (Timestamp, TaskId)> {
        let fresh = self.fresh.iter().map(|(task, ended)| (ended.created, *task));
        fresh.chain(self.filed.iter().map(|(task, filed)| (filed.created, *task)))
    }

    /// When those that are still to be filed were submitted, and under which keys.
    pub(super) fn keys(&self) -> impl Iterator<Item = (Timestamp, &str, (TaskId, [u8; 32]))> {
        let keyed = self.fresh.iter().filter_map(|(task, ended)| Some((task, ended.created, ended.key.as_ref()?)));
        keyed.map(|(task, created, (key, identity))| (created, key.as_str(), (*task, *identity)))
    }

    /// When a task was submitted.
    pub(super) fn created(&self, task: &TaskId) -> Option<Timestamp> {
        self.fresh.get(task).map(|ended| ended.created).or_else(|| self.filed.get(task).map(|filed| filed.created))
    }

    pub(super) fn outcome(&self, task: &TaskId) -> Option<Outcome> {
        self.fresh.get(task).map(|ended| ended.outcome).or_else(|| self.filed.get(task).map(|filed| filed.outcome))
    }

    /// How many events a task had.
    pub(super) fn events(&self, task: &TaskId) -> Option<u64> {
        let fresh = self.fresh.get(task).map(|ended| u64::try_from(ended.positions.len()).unwrap_or(u64::MAX));
        fresh.or_else(|| self.filed.get(task).map(|filed| u64::from(filed.events)))
    }

    /// Where to read a task, or what is wrong with it.
    pub(super) fn place(&self, task: &TaskId) -> Option<Result<Place, Failure>> {
        if let Some(ended) = self.fresh.get(task) {
            return Some(match &ended.unreadable {
                Some(failure) => Err(failure.as_ref().clone()),
                None => Ok(Place::Journal(Arc::clone(&ended.positions))),
            });
        }
        self.filed.get(task).map(|filed| Ok(Place::Index(filed.created, *task)))
    }

    /// Where to read a task, or, if it cannot be read, the document that `told` makes of its row and of what is wrong.
    pub(super) fn standing(&self, task: &TaskId, told: impl FnOnce(&Value, &Failure) -> Value) -> Option<Standing> {
        let unreadable = self.fresh.get(task).and_then(|ended| Some((&ended.row, ended.unreadable.as_ref()?)));
        if let Some((row, failure)) = unreadable {
            return Some(Standing::Told(told(&row.value(), failure)));
        }
        self.place(task)?.ok().map(Standing::Ended)
    }

    /// A task's row, or that the index has it.
    pub(super) fn listed(&self, task: &TaskId) -> Option<Listing> {
        let filed = || self.filed.contains_key(task).then_some(Listing::Index);
        self.fresh.get(task).map(|ended| Listing::Kept(ended.row.clone())).or_else(filed)
    }

    /// What its submission is answered with when it is made once more.
    pub(super) fn receipt(&self, task: &TaskId) -> Option<Receipt> {
        let filed = || self.filed.get(task).map(|filed| Receipt::Index(filed.created, *task));
        self.fresh.get(task).map(|ended| Receipt::Told(view::receipt_of(&ended.row.value()))).or_else(filed)
    }

    /// Those whose ids lie in a range, some of them.
    pub(super) fn ids(&self, range: std::ops::RangeInclusive<TaskId>) -> impl Iterator<Item = TaskId> {
        let filed = self.filed.range(range.clone()).map(|(task, _)| *task);
        self.fresh.range(range).map(|(task, _)| *task).chain(filed)
    }

    /// Whom to tell of which task, and when that ended.
    pub(super) fn callbacks(&self) -> impl Iterator<Item = (TaskId, &str, Timestamp)> {
        let at = |task: &TaskId| self.fresh.get(task).map(|ended| ended.at).or_else(|| self.filed.get(task).map(|filed| filed.at));
        self.callbacks.iter().filter_map(move |(task, url)| Some((*task, url.as_str(), at(task)?)))
    }

    /// Whoever was to be told of a task was, or is given up. False if that was known.
    pub(super) fn called_back(&mut self, task: TaskId) -> bool {
        self.unwanted.insert(filed::callback_key(task));
        self.callbacks.remove(&task).is_some()
    }

    /// The oldest segment in which an entry of them lies.
    pub(super) fn oldest(&self) -> Option<SegmentId> {
        let fresh = self.fresh.values().filter_map(|ended| ended.positions.first()).map(|position| position.segment);
        fresh.chain(self.filed.values().map(|filed| filed.first)).min()
    }

    /// The oldest segment that a start must read for one that the index will not have.
    pub(super) fn pinned(&self) -> Option<SegmentId> {
        let unreadable = self.fresh.values().filter(|ended| ended.unreadable.is_some());
        unreadable.filter_map(|ended| ended.positions.first()).map(|position| position.segment).min()
    }

    /// Lets go of those that ended `keep` ago, and of so many more, those that ended first, that `kept_max` are left. Returns them, with when they were
    /// submitted and what key they had.
    pub(super) fn forget(&mut self, now: Timestamp, keep: Duration, kept_max: usize) -> Vec<(Timestamp, TaskId, Option<Arc<str>>)> {
        let ends = self.fresh.iter().map(|(task, ended)| (ended.at, *task));
        let mut by_end: Vec<(Timestamp, TaskId)> = ends.chain(self.filed.iter().map(|(task, filed)| (filed.at, *task))).collect();
        let surplus = by_end.len().saturating_sub(kept_max);
        if surplus > 0 && surplus < by_end.len() {
            by_end.select_nth_unstable(surplus);
        }
        let is_over = |place: usize, at: Timestamp| place < surplus || now.saturating_since(at) >= keep;
        let over: Vec<TaskId> =
            by_end.into_iter().enumerate().filter(|(place, (at, _))| is_over(*place, *at)).map(|(_, (_, task))| task).collect();
        over.into_iter().filter_map(|task| self.remove(task).map(|(created, key)| (created, task, key))).collect()
    }

    fn remove(&mut self, task: TaskId) -> Option<(Timestamp, Option<Arc<str>>)> {
        if self.callbacks.remove(&task).is_some() {
            self.unwanted.insert(filed::callback_key(task));
        }
        if let Some(ended) = self.fresh.remove(&task) {
            return Some((ended.created, ended.key.as_ref().map(|(key, _)| key.as_str().into())));
        }
        let filed = self.filed.remove(&task)?;
        self.unwanted.insert(filed::task_key(filed.created, task));
        Some((filed.created, filed.key))
    }

    /// What the next checkpoint brings into the index.
    pub(super) fn take(&self) -> Taken {
        let readable = self.fresh.iter().filter(|(_, ended)| ended.unreadable.is_none());
        let tasks = readable.map(|(task, ended)| (*task, Arc::clone(ended), self.callbacks.get(task).cloned())).collect();
        Taken { tasks, unwanted: self.unwanted.iter().cloned().collect() }
    }

    /// The index has these now. `key_of` gives the text of a key that is shared with others.
    pub(super) fn on_filed(&mut self, tasks: Vec<(Timestamp, TaskId)>, key_of: impl Fn(&str) -> Option<Arc<str>>) {
        for (created, task) in tasks {
            let Some(ended) = self.fresh.remove(&task) else {
                // It was forgotten meanwhile.
                self.unwanted.extend([filed::task_key(created, task), filed::callback_key(task)]);
                continue;
            };
            let key = ended.key.as_ref().map(|(key, _)| key_of(key).unwrap_or_else(|| key.as_str().into()));
            match filed::of(&ended, key) {
                Some(filed) => drop(self.filed.insert(task, filed)),
                None => drop(self.fresh.insert(task, ended)),
            }
        }
    }

    /// The index has lost these keys.
    pub(super) fn on_unfiled(&mut self, keys: &[Vec<u8>]) {
        for key in keys {
            self.unwanted.remove(key);
        }
    }
}

/// What is kept at hand of a task that has ended; `None` if it has not.
pub(super) fn ended(state: &State, positions: &[Position]) -> Option<Ended> {
    state.end().and_then(|_| ended_as(&view::summary(state), state, positions))
}

/// The same where its row is at hand.
pub(super) fn ended_as(summary: &Value, state: &State, positions: &[Position]) -> Option<Ended> {
    let end = state.end()?;
    Some(Ended {
        row: Row::new(summary),
        outcome: end.outcome,
        created: state.created(),
        at: end.at,
        positions: positions.into(),
        key: state.key().map(|(key, identity)| (key.to_owned(), identity)),
        unreadable: None,
        callback: state.definition().completion_callback.clone(),
    })
}

/// The ids of tasks that may begin with this text, which has the digits of an id.
pub(super) fn ids_from(prefix: &str) -> std::ops::RangeInclusive<TaskId> {
    let digits: String = prefix.chars().filter(char::is_ascii_hexdigit).take(ID_DIGITS).collect();
    let id = |fill: &str| {
        let padded = format!("{digits}{}", fill.repeat(ID_DIGITS - digits.len()));
        TaskId::from_bytes(u128::from_str_radix(&padded, 16).unwrap_or_default().to_be_bytes())
    };
    id("0")..=id("f")
}
