//! Whom to ask for receipts, and when: pinned peers regularly, others when a person looks, nobody too often.

use std::collections::BTreeMap;
use std::time::Duration;

use rand::Rng;

use crate::model::NodeId;

/// Longest pause between two questions to a pinned peer, a quarter more or less.
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// A peer is never asked again sooner, whatever people look at: it counts questions (`rate`), and others wait for its answers.
const PAUSE_MIN: Duration = Duration::from_secs(1);
/// A peer that refused, since it does not know receipts, is left alone for this long. It may count each question as a fault.
const REFUSED_PAUSE: Duration = Duration::from_secs(600);

#[derive(Debug, Clone, Copy)]
struct Peer {
    /// When it is asked by itself, if it is pinned.
    next_at: Duration,
    /// Until when it is not asked at all.
    not_before: Duration,
}

/// When each connected peer is asked.
#[derive(Debug)]
pub struct Asking {
    pause: Duration,
    peers_by_node: BTreeMap<NodeId, Peer>,
}

impl Asking {
    /// For a node whose windows are this long: asking more often than windows end brings nothing.
    pub fn new(window: Duration) -> Self {
        Self { pause: window.clamp(PAUSE_MIN, PAUSE_MAX), peers_by_node: BTreeMap::new() }
    }

    /// A connection to `node` stands; it is asked soon, though not by everybody in step.
    pub fn on_connected(&mut self, node: NodeId, now: Duration, rng: &mut impl Rng) {
        let next_at = now.saturating_add(PAUSE_MIN.mul_f64(rng.random_range(0.0..1.0)));
        self.peers_by_node.entry(node).or_insert(Peer { next_at, not_before: now });
    }

    /// The last connection to `node` is gone.
    pub fn on_disconnected(&mut self, node: NodeId) {
        self.peers_by_node.remove(&node);
    }

    /// `node` does not answer such questions.
    pub fn on_refused(&mut self, node: NodeId, now: Duration) {
        if let Some(peer) = self.peers_by_node.get_mut(&node) {
            peer.not_before = now.saturating_add(REFUSED_PAUSE);
        }
    }

    /// Peers to ask for all their receipts now: those that `is_pinned` and whose time has come.
    pub fn handle_tick(&mut self, now: Duration, rng: &mut impl Rng, is_pinned: impl Fn(NodeId) -> bool) -> Vec<NodeId> {
        let due = self.peers_by_node.iter_mut().filter(|(node, peer)| peer.next_at.max(peer.not_before) <= now && is_pinned(**node));
        let asked = due.map(|(node, peer)| {
            peer.next_at = now.saturating_add(self.pause.mul_f64(rng.random_range(0.75..1.25)));
            peer.not_before = now.saturating_add(PAUSE_MIN);
            *node
        });
        asked.collect()
    }

    /// Peers to ask because a person looks, the pinned ones first, at most `count_max`.
    pub fn handle_view(&mut self, now: Duration, count_max: usize, is_pinned: impl Fn(NodeId) -> bool) -> Vec<NodeId> {
        let free = self.peers_by_node.iter().filter(|(_, peer)| peer.not_before <= now).map(|(node, _)| *node);
        let (mut asked, others): (Vec<NodeId>, Vec<NodeId>) = free.partition(|node| is_pinned(*node));
        asked.extend(others);
        asked.truncate(count_max);
        for node in &asked {
            if let Some(peer) = self.peers_by_node.get_mut(node) {
                peer.not_before = now.saturating_add(PAUSE_MIN);
            }
        }
        asked
    }
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::SmallRng};

    use super::*;

    fn peer() -> NodeId {
        libp2p_identity::PeerId::random().into()
    }

    #[test]
    fn a_pinned_peer_is_asked_each_minute_while_it_is_connected() {
        let (mut asking, mut rng, pinned) = (Asking::new(Duration::from_secs(3_600)), SmallRng::seed_from_u64(1), peer());
        asking.on_connected(pinned, Duration::ZERO, &mut rng);
        asking.on_connected(peer(), Duration::ZERO, &mut rng);
        let mut asked = Vec::new();
        for second in 1..=600 {
            let due = asking.handle_tick(Duration::from_secs(second), &mut rng, |node| node == pinned);
            assert!(due.iter().all(|node| *node == pinned));
            asked.extend(due.iter().map(|_| second));
        }
        assert!(asked[0] <= 2 && (9..=14).contains(&asked.len()), "{asked:?}");
        assert!(asked.windows(2).all(|two| (45..=76).contains(&(two[1] - two[0]))), "{asked:?}");
        asking.on_disconnected(pinned);
        assert!(asking.handle_tick(Duration::from_secs(9_999), &mut rng, |_| true).iter().all(|node| *node != pinned));
    }

    #[test]
    fn whoever_looks_again_and_again_asks_nobody_more_than_once_a_second() {
        let (mut asking, mut rng, pinned) = (Asking::new(Duration::from_secs(60)), SmallRng::seed_from_u64(1), peer());
        for node in (0..4).map(|_| peer()).chain([pinned]) {
            asking.on_connected(node, Duration::ZERO, &mut rng);
        }
        let now = Duration::from_secs(1);
        let first = asking.handle_view(now, 3, |node| node == pinned);
        assert_eq!((first.len(), first[0]), (3, pinned), "the pinned one is asked before the others");
        let second = asking.handle_view(now, 3, |node| node == pinned);
        assert_eq!(second.len(), 2);
        assert!(second.iter().all(|node| !first.contains(node)));
        assert!(asking.handle_view(now, 3, |_| true).is_empty());
        assert!(asking.handle_tick(now, &mut rng, |_| true).is_empty());
        assert_eq!(asking.handle_view(now + PAUSE_MIN, 9, |_| true).len(), 5);
    }

    #[test]
    fn a_peer_that_does_not_understand_is_left_alone() {
        let (mut asking, mut rng, old) = (Asking::new(Duration::from_secs(60)), SmallRng::seed_from_u64(1), peer());
        asking.on_connected(old, Duration::ZERO, &mut rng);
        asking.on_refused(old, Duration::ZERO);
        let before = REFUSED_PAUSE - Duration::from_millis(1);
        assert!(asking.handle_tick(before, &mut rng, |_| true).is_empty() && asking.handle_view(before, 9, |_| true).is_empty());
        assert_eq!(asking.handle_tick(REFUSED_PAUSE, &mut rng, |_| true), [old]);
    }
}
