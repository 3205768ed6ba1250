//! Contexts that this node has let go of: they ended, or a person dropped them. Neither comes back for a while, whoever sends it again.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::model::{ContextId, Timestamp};

/// For how long none of them is taken in again.
pub const KEEP: Duration = Duration::from_secs(30 * 24 * 3_600);
/// How many are remembered.
pub const GONE_MAX: usize = 32_768;

/// Why one is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Why {
    /// It ended. Its genesis says so too, so these are the first to be forgotten.
    Ended,
    /// A person dropped it.
    Dropped,
}

/// Which contexts are gone, why, and until when that is remembered.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Gone(BTreeMap<ContextId, (Why, Timestamp)>);

impl Gone {
    /// Those that were kept, as far as they are to be remembered still.
    pub fn new(kept: impl IntoIterator<Item = (ContextId, Why, Timestamp)>, now: Timestamp) -> Self {
        let mut gone = Self(kept.into_iter().map(|(id, why, until)| (id, (why, until))).collect());
        gone.forget(now);
        gone
    }

    /// Notes that contexts are gone from now on. Of too many, those that ended longest ago are forgotten, then those dropped longest ago.
    pub fn put(&mut self, ids: impl IntoIterator<Item = ContextId>, why: Why, now: Timestamp) {
        self.0.extend(ids.into_iter().map(|id| (id, (why, now.saturating_add(KEEP)))));
        self.forget(now);
    }

    /// Whether a context is gone.
    pub fn holds(&self, id: ContextId, now: Timestamp) -> bool {
        self.0.get(&id).is_some_and(|(_, until)| *until > now)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (ContextId, Why, Timestamp)> {
        self.0.iter().map(|(id, (why, until))| (*id, *why, *until))
    }

    fn forget(&mut self, now: Timestamp) {
        self.0.retain(|_, (_, until)| *until > now);
        let over = self.0.len().saturating_sub(GONE_MAX);
        if over > 0 {
            let mut all: Vec<_> = self.iter().map(|(id, why, until)| (why, until, id)).collect();
            all.sort_unstable();
            for (.., id) in all.into_iter().take(over) {
                self.0.remove(&id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_ms(1_000_000);

    fn id(number: usize) -> ContextId {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&number.to_be_bytes());
        ContextId::from_bytes(bytes)
    }

    #[test]
    fn one_is_remembered_for_30_days() {
        let mut gone = Gone::default();
        gone.put([id(1)], Why::Dropped, NOW);
        let last = Timestamp::from_ms(NOW.saturating_add(KEEP).as_ms() - 1);
        assert!(gone.holds(id(1), last) && !gone.holds(id(2), NOW));
        assert!(!gone.holds(id(1), NOW.saturating_add(KEEP)));
        assert_eq!(Gone::new(gone.iter(), last), gone);
        assert_eq!(Gone::new(gone.iter(), NOW.saturating_add(KEEP)), Gone::default());
    }

    /// Threat T28: whoever lets many contexts end makes nobody forget what a person dropped.
    #[test]
    fn of_too_many_the_oldest_that_ended_leave_first() {
        let mut gone = Gone::default();
        gone.put([id(0)], Why::Dropped, NOW);
        let later = Timestamp::from_ms(NOW.as_ms() + 1);
        gone.put([id(1)], Why::Ended, NOW);
        gone.put((2..GONE_MAX).map(id), Why::Ended, later);
        assert!((0..GONE_MAX).all(|at| gone.holds(id(at), later)), "at the limit");
        gone.put([id(GONE_MAX)], Why::Ended, later);
        assert_eq!(gone.iter().count(), GONE_MAX);
        assert!(gone.holds(id(0), later) && !gone.holds(id(1), later) && gone.holds(id(GONE_MAX), later));
    }
}
