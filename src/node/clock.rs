//! The one place where the node reads clocks.

use std::time::{SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

use crate::model::{Now, Timestamp};

/// The clocks of a node: a monotonic one that began with it, and the wall clock.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clock {
    zero: Instant,
}

impl Clock {
    /// A clock that begins now.
    pub(super) fn start() -> Self {
        Self { zero: Instant::now() }
    }

    /// The zero of every duration that machines speak of.
    pub(super) fn zero(&self) -> Instant {
        self.zero
    }

    /// Time since the start: what a call needs of the clocks, which are read several times on its way.
    pub(super) fn mono(&self) -> std::time::Duration {
        self.zero.elapsed()
    }

    /// What time it is.
    pub(super) fn now(&self) -> Now {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let wall_ms = u64::try_from(wall.as_millis()).unwrap_or(u64::MAX);
        Now { mono: self.zero.elapsed(), wall: Timestamp::from_ms(wall_ms) }
    }
}
