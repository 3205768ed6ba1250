//! Points at which this process dies on demand, so that tests can show what a crash leaves (security.md F1, F21).
//!
//! `MESHWORK_FAILPOINT="dispatched:2"` ends it when the second entry of that name has been handed to the journal, which may have written it or
//! not. `committed-dispatched:2`: when it is durable, and nothing that follows from it has left. `kept-dispatched:2`: when it is durable
//! and nothing behind it is, not even what was decided together with it. Builds without debug assertions hold none of this.

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

/// Everything before this one is durable.
pub(super) fn committed(end: Index) {
    #[cfg(debug_assertions)]
    armed::committed(end);
    #[cfg(not(debug_assertions))]
    let _ = end;
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
    }

    struct Point {
        when: When,
        name: String,
        /// Which one; counts down.
        left: AtomicU64,
        /// The index behind it, once it was handed to the journal.
        end: AtomicU64,
    }

    static POINT: LazyLock<Option<Point>> = LazyLock::new(|| {
        let text = std::env::var("MESHWORK_FAILPOINT").ok()?;
        let (name, number) = text.split_once(':')?;
        let (when, name) = match name.split_once('-') {
            Some(("committed", name)) => (When::Committed, name),
            Some(("kept", name)) => (When::Kept, name),
            Some(_) | None => (When::Queued, name),
        };
        Some(Point { when, name: name.to_owned(), left: AtomicU64::new(number.parse().ok()?), end: AtomicU64::new(u64::MAX) })
    });

    impl Point {
        /// The place of the entry that is meant.
        fn find(&self, entries: &[Bytes]) -> Option<usize> {
            let named = |bytes: &Bytes| Entry::decode(bytes).is_ok_and(|entry| entry.event.name() == self.name);
            entries.iter().position(|bytes| named(bytes) && self.left.fetch_sub(1, Ordering::Relaxed) == 1)
        }
    }

    pub(super) fn before(journal: &Journal, entries: &[Bytes]) {
        let Some(point) = POINT.as_ref().filter(|point| matches!(point.when, When::Kept)) else { return };
        if let Some(place) = point.find(entries) {
            let _ = journal.append(entries.iter().take(place + 1).cloned().collect());
            journal.close();
            std::process::abort();
        }
    }

    pub(super) fn queued(entries: &[Bytes], ticket: &Ticket) {
        let Some(point) = POINT.as_ref().filter(|point| !matches!(point.when, When::Kept)) else { return };
        match (point.find(entries), &point.when) {
            (Some(place), When::Committed) => point.end.store(ticket.first().0 + place as u64 + 1, Ordering::Relaxed),
            (Some(_), When::Queued) => std::process::abort(),
            (Some(_), When::Kept) | (None, _) => {}
        }
    }

    pub(super) fn committed(end: Index) {
        if POINT.as_ref().is_some_and(|point| end.0 >= point.end.load(Ordering::Relaxed)) {
            std::process::abort();
        }
    }
}
