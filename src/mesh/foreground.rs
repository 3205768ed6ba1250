//! Large bodies give way to calls.
//!
//! A transfer and the calls beside it share a connection, its socket's buffers, and processors. So a transfer goes on in pieces, and while
//! calls travel it lets a few of them past between two pieces: a call then waits for one piece and not for a whole body, and the transfer
//! gets on about as often as a call does. Where nobody calls, nobody waits. What counts as a call is a frame that carries a body: neither
//! heartbeats nor the announcements of large bodies hold a transfer up. There is one of these for all lanes of a node, since its processors
//! are shared by all peers. Implements "a small call beside a large one" of design.md sections 5 and 9.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

/// Calls travel as long as the last one did so recently. Longer than a quick call takes, so that callers one after the other are seen.
const RECENT: Duration = Duration::from_micros(500);
/// Calls, or bursts of them, that are let past between two pieces.
const CALLS_LET_PAST: usize = 2;
/// How long the next call is waited for: whoever called before may call no more.
const WAIT_MAX: Duration = Duration::from_millis(1);

/// The calls of a node, as far as those who give way need to know.
#[derive(Debug)]
pub struct Foreground {
    zero: Instant,
    /// When a call last travelled, in microseconds since `zero`.
    last_us: AtomicU64,
    waiting: AtomicUsize,
    passed: Notify,
}

struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Foreground {
    /// No call has travelled yet.
    pub fn new() -> Self {
        // Before `RECENT` has passed for the first time nothing travelled either.
        let zero = Instant::now().checked_sub(2 * RECENT).unwrap_or_else(Instant::now);
        Self { zero, last_us: AtomicU64::new(0), waiting: AtomicUsize::new(0), passed: Notify::new() }
    }

    fn now_us(&self) -> u64 {
        u64::try_from(self.zero.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// Calls, or their answers, have just been written.
    pub(super) fn on_calls(&self) {
        self.last_us.store(self.now_us(), Ordering::Relaxed);
        // To wake nobody costs a lock that all lanes would share.
        if self.waiting.load(Ordering::Acquire) > 0 {
            self.passed.notify_waiters();
        }
    }

    fn is_busy(&self) -> bool {
        let since_us = self.now_us().saturating_sub(self.last_us.load(Ordering::Relaxed));
        u128::from(since_us) < RECENT.as_micros()
    }

    /// Lets calls past, if there are any: to be awaited between two pieces of work that take some tens of microseconds each.
    pub async fn give_way(&self) {
        for _ in 0..CALLS_LET_PAST {
            if !self.is_busy() {
                return;
            }
            self.waiting.fetch_add(1, Ordering::Release);
            let _waiting = Waiting(&self.waiting);
            let _ = timeout(WAIT_MAX, self.passed.notified()).await;
        }
    }
}

impl Default for Foreground {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    #[tokio::test(start_paused = true)]
    async fn where_nobody_calls_nobody_waits() {
        let foreground = Foreground::new();
        assert_eq!(foreground.give_way().now_or_never(), Some(()));
        foreground.on_calls();
        tokio::time::advance(RECENT).await;
        assert_eq!(foreground.give_way().now_or_never(), Some(()));
    }

    /// MEAP-9: a call waits for a piece of a large body, not for all of it.
    #[tokio::test(start_paused = true)]
    async fn calls_are_let_past() {
        let foreground = Foreground::new();
        foreground.on_calls();
        let mut giving_way = std::pin::pin!(foreground.give_way());
        for _ in 0..CALLS_LET_PAST {
            assert_eq!(giving_way.as_mut().now_or_never(), None);
            foreground.on_calls();
        }
        assert_eq!(giving_way.now_or_never(), Some(()));
        assert_eq!(foreground.waiting.load(Ordering::Relaxed), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_does_not_come_is_not_waited_for_long() {
        let foreground = Foreground::new();
        foreground.on_calls();
        let began = Instant::now();
        foreground.give_way().await;
        assert!(began.elapsed() <= 2 * WAIT_MAX, "{:?}", began.elapsed());
    }
}
