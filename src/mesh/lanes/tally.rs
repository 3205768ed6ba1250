//! What the calls between this node and one connected peer came to (MEAP-6).
//!
//! All lanes with the peer share one tally, which begins and ends with its connection. Each figure is an atomic of its own: calls on several
//! lanes end at once, and none may wait for another. So figures that are read together may be a few calls apart. A call that its own
//! caller took back counts as sent and says nothing else about the peer.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::model::ErrorCode;
use crate::proto::invocation::client::Outcome;

/// The counters of one peer.
#[derive(Debug, Default)]
pub struct Tally {
    sent: AtomicU64,
    received: AtomicU64,
    succeeded: AtomicU64,
    failed: AtomicU64,
    /// Of those that succeeded, together.
    latency_us: AtomicU64,
}

/// What was counted so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Calls sent to the peer.
    pub sent: u64,
    /// Calls that came from it.
    pub received: u64,
    /// Of those sent: refused, failed, lost, or not answered in time.
    pub failed: u64,
    /// Of those sent that succeeded: the mean time from sending to the answer. `None` before the first.
    pub latency: Option<Duration>,
}

impl Tally {
    pub(super) fn on_sent(&self) {
        self.sent.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn on_received(&self) {
        self.received.fetch_add(1, Ordering::Relaxed);
    }

    /// A call that was sent has ended after so long, with the bodies that belong to it.
    pub(super) fn on_end(&self, outcome: &Outcome, took: Duration) {
        match outcome {
            Outcome::Success(_) => {
                self.succeeded.fetch_add(1, Ordering::Relaxed);
                self.latency_us.fetch_add(u64::try_from(took.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
            }
            Outcome::Failed { failure, .. } if failure.code == ErrorCode::Cancelled => {}
            Outcome::Failed { .. } | Outcome::Lost { .. } | Outcome::TimedOut { .. } => self.on_failed(),
        }
    }

    /// A call that was sent has failed.
    pub(super) fn on_failed(&self) {
        self.failed.fetch_add(1, Ordering::Relaxed);
    }

    /// Reads all of it.
    pub fn totals(&self) -> Totals {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let mean_us = read(&self.latency_us).checked_div(read(&self.succeeded));
        Totals {
            sent: read(&self.sent),
            received: read(&self.received),
            failed: read(&self.failed),
            latency: mean_us.map(Duration::from_micros),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Failure;
    use crate::wire::invocation::{Body, Success};

    /// MEAP-6: the mean is that of the good answers alone, and to take a call back is nobody's failure.
    #[test]
    fn calls_are_counted_by_how_they_ended() {
        let tally = Tally::default();
        assert_eq!(tally.totals(), Totals::default());
        let success = Outcome::Success(Success { units: None, execution_us: 1, body: Body::Inline("1".into()) });
        let failed = |code| Outcome::Failed { failure: Failure::new(code, "no"), begun: true };
        let ends = [
            (success.clone(), 10),
            (success, 31),
            (failed(ErrorCode::Busy), 1_000),
            (failed(ErrorCode::AgentFailed), 1_000),
            (failed(ErrorCode::Cancelled), 1_000),
            (Outcome::Lost { begun: false }, 1_000),
            (Outcome::TimedOut { begun: true }, 1_000),
        ];
        for (outcome, us) in &ends {
            tally.on_sent();
            tally.on_end(outcome, Duration::from_micros(*us));
        }
        tally.on_received();
        assert_eq!(tally.totals(), Totals { sent: 7, received: 1, failed: 4, latency: Some(Duration::from_micros(20)) });
    }
}
