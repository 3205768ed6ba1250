//! The clock of tasks: the wall clock as it was when the node started, and from then on one that nobody can step (fault F15).
//!
//! What it says can be compared with what is in the journal, across starts as well as a wall clock can.

use std::time::Duration;

use tokio::time::Instant;

use crate::model::Timestamp;
use crate::node::clock::Clock;

/// What a moment is taken for that is too far ahead to be told.
const FAR: Duration = Duration::from_secs(60);

/// Tells the time for every task of this node.
#[derive(Debug, Clone, Copy)]
pub(in crate::node) struct TaskClock {
    clock: Clock,
    zero: Timestamp,
}

impl TaskClock {
    pub(in crate::node) fn new(clock: Clock) -> Self {
        let now = clock.now();
        Self { clock, zero: Timestamp::from_ms(now.wall.as_ms().saturating_sub(u64::try_from(now.mono.as_millis()).unwrap_or(0))) }
    }

    pub(in crate::node) fn now(&self) -> Timestamp {
        self.zero.saturating_add(self.clock.mono())
    }

    /// When this moment comes.
    pub(super) fn instant(&self, at: Timestamp) -> Instant {
        let now = Instant::now();
        now.checked_add(at.saturating_since(self.now())).unwrap_or(now + FAR)
    }
}
