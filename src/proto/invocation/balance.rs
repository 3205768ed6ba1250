//! Which of several near-equal agents takes a call (MEAP-5).
//!
//! Round robin takes whoever was chosen longest ago, least connections whoever has the fewest calls of this node, least load whoever has
//! the fewest calls of anybody for its size: this node's own, counted exactly, and those of others by the last pulse. At most [`WINDOW`]
//! of the near-equals are compared, from a random place on: the best of sixteen spreads calls nearly as well as the best of a thousand,
//! and costs the same however many there are.

use std::sync::atomic::Ordering;

use rand::Rng;

use crate::proto::directory::Reach;
use crate::proto::directory::rank::Candidate;

/// Near-equals that are compared at most.
pub const WINDOW: usize = 16;

/// How calls are spread over near-equals.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Balance {
    /// Each in turn.
    RoundRobin,
    /// Whoever this node has the fewest calls at.
    LeastConnections,
    /// Whoever has the least to do for its size.
    #[default]
    LeastLoad,
}

impl Balance {
    /// What is compared; the least wins.
    fn measure(self, candidate: &Candidate) -> u64 {
        let traffic = &candidate.entry.traffic;
        match self {
            Self::RoundRobin => traffic.turn.load(Ordering::Relaxed),
            Self::LeastConnections => u64::from(traffic.in_flight.load(Ordering::Relaxed)) * 2 + away(candidate),
            Self::LeastLoad => {
                let size = u64::from(candidate.entry.record.concurrency.max(1));
                u64::from(candidate.entry.load()) * 1_000 / size * 2 + away(candidate)
            }
        }
    }

    /// Chooses among `equals`, which index `candidates`, and counts how many were looked at. `None` if none is usable.
    pub fn choose(
        self,
        candidates: &[Candidate],
        equals: &[usize],
        usable: impl Fn(usize) -> bool,
        looked: &mut usize,
        rng: &mut impl Rng,
    ) -> Option<usize> {
        let start = if equals.len() > WINDOW { rng.random_range(0..equals.len()) } else { 0 };
        let window = equals.iter().cycle().skip(start).take(equals.len().min(WINDOW)).copied();
        let (mut best, mut ties) = (None, 0_u32);
        for index in window {
            *looked += 1;
            let Some(candidate) = candidates.get(index).filter(|_| usable(index)) else { continue };
            let measure = (is_full(candidate), self.measure(candidate));
            match best {
                Some((least, _)) if measure > least => {}
                // Each of those that are the least so far is as likely to be kept as any other.
                Some((least, _)) if measure == least => {
                    ties += 1;
                    if rng.random_range(0..=ties) == 0 {
                        best = Some((measure, index));
                    }
                }
                Some(_) | None => (best, ties) = (Some((measure, index)), 0),
            }
        }
        best.map(|(_, index)| index)
    }
}

/// An agent on this node costs no network; it wins only among those otherwise equal.
fn away(candidate: &Candidate) -> u64 {
    u64::from(candidate.entry.reach != Reach::Here)
}

/// Whether an agent has as many calls waiting as it works on: another one would wait for two to end, so it is better put elsewhere.
pub fn is_full(candidate: &Candidate) -> bool {
    candidate.entry.load() >= candidate.entry.record.concurrency.saturating_mul(2)
}
