//! How often a peer may ask (GCRA): one time per peer, so memory is bounded by the number of peers that are remembered.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::model::NodeId;

/// A rate per peer.
#[derive(Debug)]
pub struct Limiter {
    full_at_by_peer: BTreeMap<NodeId, Duration>,
    pause: Duration,
    burst: u32,
    peers_max: usize,
}

impl Limiter {
    /// Lets `per_second` requests through, and `burst` at once, for at most `peers_max` peers.
    pub fn new(per_second: u32, burst: u32, peers_max: usize) -> Self {
        Self { full_at_by_peer: BTreeMap::new(), pause: Duration::from_secs(1) / per_second.max(1), burst: burst.max(1), peers_max }
    }

    /// Whether `peer` may ask now.
    ///
    /// # Errors
    /// How long it should wait.
    pub fn check(&mut self, peer: NodeId, now: Duration) -> Result<(), Duration> {
        if self.full_at_by_peer.len() >= self.peers_max {
            // Whoever has been quiet needs no entry; a crowd of the busy is refused as one.
            self.full_at_by_peer.retain(|_, full_at| *full_at > now);
        }
        let known = self.full_at_by_peer.get(&peer).copied();
        if known.is_none() && self.full_at_by_peer.len() >= self.peers_max {
            return Err(self.pause.saturating_mul(self.burst));
        }
        let full_at = known.unwrap_or(now).max(now);
        let limit = now.saturating_add(self.pause.saturating_mul(self.burst.saturating_sub(1)));
        if full_at > limit {
            return Err(full_at.saturating_sub(limit));
        }
        self.full_at_by_peer.insert(peer, full_at.saturating_add(self.pause));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer() -> NodeId {
        libp2p_identity::PeerId::random().into()
    }

    #[test]
    fn a_burst_passes_and_the_rest_is_told_how_long_to_wait() {
        let (mut limiter, peer) = (Limiter::new(10, 3, 8), peer());
        for _ in 0..3 {
            assert_eq!(limiter.check(peer, Duration::ZERO), Ok(()));
        }
        let wait = limiter.check(peer, Duration::ZERO).expect_err("the burst is used up");
        assert_eq!(wait, Duration::from_millis(100));
        assert_eq!(limiter.check(peer, wait), Ok(()));
    }

    #[test]
    fn the_table_keeps_to_its_bound() {
        let mut limiter = Limiter::new(1, 1, 2);
        assert!(limiter.check(peer(), Duration::ZERO).is_ok());
        assert!(limiter.check(peer(), Duration::ZERO).is_ok());
        assert!(limiter.check(peer(), Duration::ZERO).is_err());
        assert!(limiter.check(peer(), Duration::from_secs(2)).is_ok(), "the quiet make room");
    }
}
