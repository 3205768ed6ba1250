//! What this node itself holds up of an attempt, so that no agent is blamed for it.
//!
//! An attempt may wait for a lane, for a place among the large bodies that go to a node, for its input to get there, for room for its
//! output, and for that to get here. Such waits are counted while they last, wherever in the attempt they are; what they mean is decided in
//! `proto::invocation::evidence`. The way of a body is up to both sides, so it counts as far as a slow line explains it, that of an output
//! only once it has come; and a node that takes no input at all is noted.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::node::shared::lock;

/// A body of several on a slow line comes at this rate, in bytes per second; slower than that is a node that takes it slowly.
const SLOW_LINE_BYTES_PER_S: u64 = 64 * 1024;

/// What one attempt notes while it runs.
#[derive(Debug, Default)]
pub(super) struct OwnSide(Mutex<Noted>);

#[derive(Debug, Default)]
struct Noted {
    waited: Duration,
    /// Since when it waits, and how much of that counts at most.
    waits: Option<(Instant, Duration)>,
    untaken: bool,
}

impl Noted {
    fn total(&self) -> Duration {
        let waits = self.waits.map_or(Duration::ZERO, |(since, longest)| since.elapsed().min(longest));
        self.waited.saturating_add(waits)
    }
}

impl OwnSide {
    /// Counts how long `wait` takes, or lives.
    pub(super) async fn holds_up<F: Future>(&self, wait: F) -> F::Output {
        self.counted(Duration::MAX, wait).await
    }

    /// Counts how long an input of so many bytes is on its way.
    pub(super) async fn sends<F: Future>(&self, bytes: u64, push: F) -> F::Output {
        self.counted(slow_line(bytes), push).await
    }

    /// An output of so many bytes has come after so long.
    pub(super) fn on_come(&self, bytes: u64, took: Duration) {
        let mut noted = lock(&self.0);
        noted.waited = noted.waited.saturating_add(took.min(slow_line(bytes)));
    }

    async fn counted<F: Future>(&self, longest: Duration, wait: F) -> F::Output {
        let _waits = Waits::begin(self, longest);
        wait.await
    }

    /// The other node took nothing of the input, and had no word for it.
    pub(super) fn on_untaken(&self) {
        lock(&self.0).untaken = true;
    }

    /// How long this node has held up the attempt so far.
    pub(super) fn total(&self) -> Duration {
        lock(&self.0).total()
    }

    /// How long this node has held up the attempt, and whether its input was not taken.
    pub(super) fn noted(self) -> (Duration, bool) {
        let noted = self.0.into_inner().unwrap_or_else(PoisonError::into_inner);
        (noted.total(), noted.untaken)
    }
}

/// How long so many bytes are on their way on a slow line.
fn slow_line(bytes: u64) -> Duration {
    Duration::from_millis(bytes.saturating_mul(1_000) / SLOW_LINE_BYTES_PER_S)
}

/// One wait, which may end by being dropped. A wait within another is part of it.
struct Waits<'a>(&'a OwnSide);

impl<'a> Waits<'a> {
    fn begin(own: &'a OwnSide, longest: Duration) -> Option<Self> {
        let mut noted = lock(&own.0);
        if noted.waits.is_some() {
            return None;
        }
        noted.waits = Some((Instant::now(), longest));
        Some(Self(own))
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        let mut noted = lock(&self.0.0);
        noted.waited = noted.total();
        noted.waits = None;
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::{sleep, timeout};

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn waits_are_counted_while_they_last_and_once() {
        let own = OwnSide::default();
        own.holds_up(sleep(SECOND)).await;
        sleep(SECOND).await;
        assert_eq!(own.total(), SECOND, "what lies between is the agent's");

        let longer = own.holds_up(own.holds_up(sleep(SECOND * 3)));
        let looks = async {
            sleep(SECOND).await;
            own.total()
        };
        let ((), seen) = tokio::join!(longer, looks);
        assert_eq!((seen, own.total()), (SECOND * 2, SECOND * 4));

        let _ = timeout(SECOND, own.holds_up(std::future::pending::<()>())).await;
        assert_eq!(own.noted(), (SECOND * 5, false), "a wait that is given up was one");
    }

    /// T16: whoever takes or brings a body more slowly than any line is held to it.
    #[tokio::test(start_paused = true)]
    async fn a_body_may_take_as_long_as_on_a_slow_line() {
        let own = OwnSide::default();
        own.sends(640 * 1024, sleep(SECOND * 9)).await;
        assert_eq!(own.total(), SECOND * 9);
        own.sends(640 * 1024, sleep(SECOND * 90)).await;
        own.on_come(640 * 1024, SECOND);
        own.on_come(640 * 1024, SECOND * 90);
        own.on_untaken();
        assert_eq!(own.noted(), (SECOND * 30, true));
    }
}
