//! Time as the core sees it: handed in, never read.

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};

/// Wall-clock milliseconds since 1970, used only for expiry across machines and for display.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timestamp(u64);

impl Timestamp {
    /// The moment `ms` milliseconds after the beginning of 1970.
    pub const fn from_ms(ms: u64) -> Self {
        Self(ms)
    }

    /// Milliseconds since the beginning of 1970.
    pub const fn as_ms(self) -> u64 {
        self.0
    }

    /// This moment, `duration` later; stays at the end of time rather than wrap.
    pub fn saturating_add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)))
    }

    /// How long after `earlier` this is; zero when it is not.
    pub fn saturating_since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

impl std::str::FromStr for Timestamp {
    type Err = super::ParseError;

    /// RFC 3339, with any offset.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let moment = text.parse::<jiff::Timestamp>().ok().and_then(|moment| u64::try_from(moment.as_millisecond()).ok());
        moment.map(Self).ok_or_else(|| super::ParseError::Timestamp(super::printable(text, 80)))
    }
}

impl fmt::Display for Timestamp {
    /// RFC 3339 in UTC.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let moment = i64::try_from(self.0).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
        match moment {
            Some(moment) => moment.fmt(f),
            None => write!(f, "{} ms", self.0),
        }
    }
}

/// What time it is, read once by the shell and handed to a machine with its input.
///
/// Waiting and measuring use `mono`, which a stepped wall clock cannot move; `wall` only meets expiry times that other machines wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// Time since this process began.
    pub mono: Duration,
    /// The wall clock.
    pub wall: Timestamp,
}

impl Now {
    /// The same reading `duration` later, for virtual clocks.
    #[must_use]
    pub fn plus(self, duration: Duration) -> Self {
        Self { mono: self.mono.saturating_add(duration), wall: self.wall.saturating_add(duration) }
    }
}
