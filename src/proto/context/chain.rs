//! The owner's line of access changes: who could write what, and when (design/contexts.md "Access").
//!
//! Changes are numbered from 1 and each names the one before it. An owner who signs two for one number has split the line: access then stays
//! as it was at the last common change for good, on every replica that has seen both, and the two are the proof. Of several splits the earliest
//! holds, whichever was seen first.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::{ContextId, Path, Principal, Timestamp};
use crate::wire::context::{Access, Cut, Genesis, Verified};

/// How many changes a context may have.
pub const EPOCHS_MAX: u64 = 1_024;

/// All that is known of the access to one context.
#[derive(Debug)]
pub struct Chain {
    owner: Principal,
    context: ContextId,
    born_until: Timestamp,
    changes: Vec<Verified<Access>>,
    /// Who lost a right, and with which changes.
    losses: BTreeMap<Principal, Vec<u64>>,
    split: Option<Box<(Verified<Access>, Verified<Access>)>>,
}

/// What became of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// It was known.
    Known,
    /// It is the newest now.
    Added,
    /// Changes before it are missing.
    Early,
    /// The owner has signed two for one number.
    Split,
}

/// Why a change does not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// It belongs to another context or comes from another key.
    #[error("the change is not one of this context's owner")]
    Foreign,
    /// It names another change before it than there is, with no other of its number to show for it.
    #[error("the change does not follow the one before it")]
    Loose,
    /// A reader was removed and the key stayed, or the key changes in another way than by one.
    #[error("the change takes a reader away and does not change the key, or changes it wrongly")]
    Key,
    /// It ends the context earlier than before.
    #[error("the change ends the context earlier than it was to end")]
    Shortened,
    /// The line was split at an earlier change.
    #[error("the owner has signed two different changes for one number; access stays as it was before them")]
    Frozen,
    /// There are too many.
    #[error("a context has at most {EPOCHS_MAX} changes of access")]
    TooMany,
}

impl Chain {
    /// The line that begins with `genesis`.
    pub fn new(context: ContextId, genesis: &Genesis) -> Self {
        Self { owner: genesis.owner, context, born_until: genesis.expires_at, changes: Vec::new(), losses: BTreeMap::new(), split: None }
    }

    /// The newest change that counts.
    pub fn tip(&self) -> Option<&Verified<Access>> {
        self.changes.last()
    }

    /// The number of the newest change that counts; 0 if there is none.
    pub fn epoch(&self) -> u64 {
        self.tip().map_or(0, |access| access.epoch)
    }

    /// The change of that number, if it counts.
    pub fn at(&self, epoch: u64) -> Option<&Verified<Access>> {
        let at = usize::try_from(epoch.checked_sub(1)?).ok()?;
        self.changes.get(at)
    }

    /// All that count, oldest first.
    pub fn changes(&self) -> &[Verified<Access>] {
        &self.changes
    }

    /// Two changes of the owner for one number, if there are two.
    pub fn split(&self) -> Option<&(Verified<Access>, Verified<Access>)> {
        self.split.as_deref()
    }

    /// When the context ends.
    pub fn expires_at(&self) -> Timestamp {
        self.tip().map_or(self.born_until, |access| access.expires_at)
    }

    /// Takes in a change.
    ///
    /// # Errors
    /// If it does not count; nothing was changed.
    pub fn on_change(&mut self, access: Verified<Access>) -> Result<Step, Refusal> {
        if access.context != self.context || access.owner != self.owner {
            return Err(Refusal::Foreign);
        }
        if access.epoch > EPOCHS_MAX {
            return Err(Refusal::TooMany);
        }
        if let Some((first, second)) = self.split() {
            let is_known = [first, second].iter().any(|known| known.name() == access.name());
            if is_known {
                return Ok(Step::Known);
            }
            if access.epoch >= first.epoch {
                return Err(Refusal::Frozen);
            }
        }
        if access.epoch > self.epoch() + 1 {
            return Ok(Step::Early);
        }
        self.follows(&access)?;
        match self.at(access.epoch) {
            Some(known) if known.name() == access.name() => Ok(Step::Known),
            Some(known) => {
                self.split = Some(Box::new((known.clone(), access)));
                let common = self.split.as_ref().map_or(0, |split| split.0.epoch.saturating_sub(1));
                self.changes.truncate(usize::try_from(common).unwrap_or(0));
                self.losses.values_mut().for_each(|epochs| epochs.retain(|epoch| *epoch <= common));
                Ok(Step::Split)
            }
            None => {
                for author in self.tip().map(|before| losers(before, &access)).unwrap_or_default() {
                    self.losses.entry(author).or_default().push(access.epoch);
                }
                self.changes.push(access);
                Ok(Step::Added)
            }
        }
    }

    fn follows(&self, access: &Access) -> Result<(), Refusal> {
        let before = self.at(access.epoch.saturating_sub(1));
        let expected = before.map_or_else(|| self.context.to_bytes(), Verified::name);
        if access.prev != expected {
            return Err(Refusal::Loose);
        }
        if access.expires_at < before.map_or(self.born_until, |before| before.expires_at) {
            return Err(Refusal::Shortened);
        }
        let Some(before) = before else {
            return if access.key_epoch == 1 { Ok(()) } else { Err(Refusal::Key) };
        };
        let lost_reader = before.readers.iter().any(|reader| !access.may_read(reader.principal));
        let is_same_key = access.key_epoch == before.key_epoch && access.key_check == before.key_check && access.previous_key == before.previous_key;
        let is_next_key = access.key_epoch == before.key_epoch + 1 && access.key_check != before.key_check;
        if is_next_key || (is_same_key && !lost_reader) { Ok(()) } else { Err(Refusal::Key) }
    }

    /// Whether `author` could write at all of `paths` when change `epoch` was the newest.
    pub fn could_write<'p>(&self, author: Principal, epoch: u64, mut paths: impl Iterator<Item = &'p Path>) -> bool {
        self.at(epoch).is_some_and(|access| paths.all(|path| access.may_write(author, path)))
    }

    /// Whether `author` could read when change `epoch` was the newest.
    pub fn could_read(&self, author: Principal, epoch: u64) -> bool {
        self.at(epoch).is_some_and(|access| access.may_read(author))
    }

    /// The cuts that an operation of `author` on `paths`, written at `epoch`, must lie before: one for every later change that took the right
    /// away. A change that took it away without a cut leaves nothing of it.
    pub fn cuts(&self, author: Principal, epoch: u64, paths: &BTreeSet<&Path>) -> Vec<Cut> {
        let holds = |access: &Access| {
            if paths.is_empty() { access.may_read(author) } else { paths.iter().all(|path| access.may_write(author, path)) }
        };
        let later = self.losses.get(&author).into_iter().flatten().filter(|after| **after > epoch);
        let pairs = later.filter_map(|after| self.at(after.checked_sub(1)?).zip(self.at(*after)));
        let losses = pairs.filter(|(before, after)| holds(before) && !holds(after)).map(|(_, after)| after);
        let cut_of = |access: &Verified<Access>| {
            let named = access.cuts.binary_search_by_key(&author, |cut| cut.author).ok().and_then(|at| access.cuts.get(at));
            named.cloned().unwrap_or(Cut { author, last: None })
        };
        losses.map(cut_of).collect()
    }
}

/// Who may less after a change than before it, in order.
pub fn losers(before: &Access, after: &Access) -> Vec<Principal> {
    let prefixes = |access: &Access, author: Principal| {
        let at = access.writers.binary_search_by_key(&author, |writer| writer.principal);
        at.ok().and_then(|at| access.writers.get(at)).map(|writer| writer.prefixes.clone()).unwrap_or_default()
    };
    let loses = |author: &Principal| {
        let still = prefixes(after, *author);
        let is_covered = |prefix: &Path| still.iter().any(|wider| wider.covers(prefix));
        *author != after.owner && (!after.may_read(*author) || !prefixes(before, *author).iter().all(is_covered))
    };
    before.readers.iter().map(|reader| reader.principal).filter(loses).collect()
}
