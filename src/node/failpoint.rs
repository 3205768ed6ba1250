//! Points at which this process dies on demand, so that tests can show what a crash leaves (security.md F1, F21).
//!
//! `MESHWORK_FAILPOINT="dispatched:2"` ends it when the second entry of that name has been handed to the journal, which may have written it or
//! not. `committed-dispatched:2`: when it is durable, and nothing that follows from it has left. `kept-dispatched:2`: when it is durable
//! and nothing behind it is, not even what was decided together with it. `late-dispatched:2` ends nothing: that it is durable is told only
//! when something behind it is too, so that what rarely comes in between surely does. Several points are separated by spaces. Builds
//! without debug assertions hold none of this.

use bytes::Bytes;

use crate::store::journal::{Index, Journal, Ticket};

/// Entries are about to be handed to the journal.
pub(super) fn before(journal: &Journal, entries: &[Bytes]) {
    #[cfg(debug_assertions)]
    armed::before(journal, entries);
    #[cfg(not(debug_assertions))]
    let _ = (journal, entries);
}

/// The journal has them.
pub(super) fn queued(entries: &[Bytes], ticket: &Ticket) {
    #[cfg(debug_assertions)]
    armed::queued(entries, ticket);
    #[cfg(not(debug_assertions))]
    let _ = (entries, ticket);
}

/// Everything before this one is durable; gives how far that is told.
pub(super) fn committed(end: Index) -> Index {
    #[cfg(debug_assertions)]
    return armed::committed(end);
    #[cfg(not(debug_assertions))]
    end
}

#[cfg(debug_assertions)]
mod armed {
    use std::sync::LazyLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::{Bytes, Index, Journal, Ticket};
    use crate::wire::task::Entry;

    enum When {
        Queued,
        Committed,
        Kept,
        Late,
    }

    struct Point {
        when: When,
        name: String,
        /// Which one; counts down.
        left: AtomicU64,
        /// The index behind it, once it was handed to the journal.
        end: AtomicU64,
    }

    static POINTS: LazyLock<Vec<Point>> = LazyLock::new(|| {
        let text = std::env::var("MESHWORK_FAILPOINT").unwrap_or_default();
        text.split_whitespace().filter_map(Point::read).collect()
    });

    impl Point {
        fn read(text: &str) -> Option<Self> {
            let (name, number) = text.split_once(':')?;
            let (when, name) = match name.split_once('-') {
                Some(("committed", name)) => (When::Committed, name),
                Some(("kept", name)) => (When::Kept, name),
                Some(("late", name)) => (When::Late, name),
                Some(_) | None => (When::Queued, name),
            };
            Some(Self { when, name: name.to_owned(), left: AtomicU64::new(number.parse().ok()?), end: AtomicU64::new(u64::MAX) })
        }

        /// The place of the entry that is meant.
        fn find(&self, entries: &[Bytes]) -> Option<usize> {
            let named = |bytes: &Bytes| Entry::decode(bytes).is_ok_and(|entry| entry.event.name() == self.name);
            entries.iter().position(|bytes| named(bytes) && self.left.fetch_sub(1, Ordering::Relaxed) == 1)
        }
    }

    pub(super) fn before(journal: &Journal, entries: &[Bytes]) {
        for point in POINTS.iter().filter(|point| matches!(point.when, When::Kept)) {
            if let Some(place) = point.find(entries) {
                let _ = journal.append(entries.iter().take(place + 1).cloned().collect());
                journal.close();
                std::process::abort();
            }
        }
    }

    pub(super) fn queued(entries: &[Bytes], ticket: &Ticket) {
        for point in POINTS.iter().filter(|point| !matches!(point.when, When::Kept)) {
            match (point.find(entries), &point.when) {
                (Some(place), When::Committed | When::Late) => point.end.store(ticket.first().0 + place as u64 + 1, Ordering::Relaxed),
                (Some(_), When::Queued) => std::process::abort(),
                (Some(_), When::Kept) | (None, _) => {}
            }
        }
    }

    pub(super) fn committed(end: Index) -> Index {
        let mut told = end;
        for point in POINTS.iter() {
            let meant = point.end.load(Ordering::Relaxed);
            match point.when {
                When::Committed if end.0 >= meant => std::process::abort(),
                When::Late if end.0 == meant => told = told.min(Index(meant.saturating_sub(1))),
                When::Committed | When::Late | When::Queued | When::Kept => {}
            }
        }
        told
    }
}
