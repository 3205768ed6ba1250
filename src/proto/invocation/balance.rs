//! Which of several near-equal agents takes a call (MEAP-5).
//!
//! Round robin takes whoever was chosen longest ago, least connections whoever has the fewest calls of this node, least load whoever has
//! the fewest calls of anybody for its size: this node's own, counted exactly, and those of others by the last pulse. At most
//! [`COMPARED_MAX`] of the near-equals are compared, from a random place on: the best of sixteen spreads calls nearly as well as the best
//! of a thousand, and costs the same however many there are.

use std::sync::atomic::Ordering;

use rand::Rng;

use crate::model::Balance;
use crate::proto::directory::Reach;
use crate::proto::directory::rank::Candidate;

/// Near-equals that are compared at most.
pub const COMPARED_MAX: usize = 16;

/// Chooses among `equals`, which index `candidates`, and counts how many were looked at. `None` if none is usable.
pub fn choose(
    balance: Balance,
    candidates: &[Candidate],
    equals: &[usize],
    usable: impl Fn(usize) -> bool,
    looked: &mut usize,
    rng: &mut impl Rng,
) -> Option<usize> {
    let start = if equals.len() > COMPARED_MAX { rng.random_range(0..equals.len()) } else { 0 };
    let sample = equals.iter().cycle().skip(start).take(equals.len().min(COMPARED_MAX)).copied();
    let (mut best, mut ties) = (None, 0_u32);
    for index in sample {
        *looked += 1;
        let Some(candidate) = candidates.get(index).filter(|_| usable(index)) else { continue };
        let measured = (is_full(candidate), measure(balance, candidate));
        match best {
            Some((least, _)) if measured > least => {}
            // Each of those that are the least so far is as likely to be kept as any other.
            Some((least, _)) if measured == least => {
                ties += 1;
                if rng.random_range(0..=ties) == 0 {
                    best = Some((measured, index));
                }
            }
            Some(_) | None => (best, ties) = (Some((measured, index)), 0),
        }
    }
    best.map(|(_, index)| index)
}

/// What is compared; the least wins.
fn measure(balance: Balance, candidate: &Candidate) -> u64 {
    let traffic = &candidate.entry.traffic;
    match balance {
        Balance::RoundRobin => traffic.turn.load(Ordering::Relaxed),
        Balance::LeastConnections => u64::from(traffic.in_flight.load(Ordering::Relaxed)) * 2 + away(candidate),
        Balance::LeastLoad => {
            let size = u64::from(candidate.entry.record.concurrency.max(1));
            u64::from(candidate.entry.load()) * 1_000 / size * 2 + away(candidate)
        }
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
