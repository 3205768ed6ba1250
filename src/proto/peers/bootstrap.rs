//! Getting into the mesh, and back into it: which address to dial, and when to try again.
//!
//! Each bootstrap address is tried at once and then with growing, jittered pauses for as long as the node runs, so a bootstrap peer that
//! starts late or restarts is found without anybody doing anything. The last good peers of an earlier run are tried beside them, and
//! again whenever no peer is left, so bootstrap peers may be gone for good once the others have met (fault F16).

use std::collections::BTreeMap;
use std::time::Duration;

use multiaddr::{Multiaddr, Protocol};
use rand::Rng;

use crate::model::NodeId;

/// Pause after the first failure; doubles with each further one.
const PAUSE_MIN: Duration = Duration::from_millis(500);
/// Longest pause between attempts.
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// How long an attempt may take before it counts as failed.
const ATTEMPT: Duration = Duration::from_secs(10);
/// How many of the last good peers are kept and tried.
pub const LAST_GOOD_MAX: usize = 32;

/// Whether the node has found its mesh.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Bootstrap peers are configured and none has been reached yet.
    Joining,
    /// At least one peer has been met.
    Joined,
    /// No bootstrap peer is configured: alone by choice, until others come.
    Alone,
}

#[derive(Debug, Clone)]
struct Target {
    node: Option<NodeId>,
    /// A configured one is tried for ever, a remembered one only while no peer is connected.
    configured: bool,
    failures: u32,
    next_at: Duration,
    dialling: bool,
}

/// The state of joining.
#[derive(Debug)]
pub struct State {
    targets_by_address: BTreeMap<Multiaddr, Target>,
    connected: std::collections::BTreeSet<NodeId>,
    met_anyone: bool,
}

fn node_of(address: &Multiaddr) -> Option<NodeId> {
    match address.iter().last() {
        Some(Protocol::P2p(peer)) => Some(peer.into()),
        _ => None,
    }
}

impl State {
    /// A node that knows these addresses: `join` from its configuration, `remembered` from an earlier run.
    pub fn new(join: impl IntoIterator<Item = Multiaddr>, remembered: impl IntoIterator<Item = Multiaddr>) -> Self {
        let target = |configured| {
            move |address: Multiaddr| {
                let node = node_of(&address);
                (address, Target { node, configured, failures: 0, next_at: Duration::ZERO, dialling: false })
            }
        };
        let mut targets: BTreeMap<_, _> = remembered.into_iter().take(LAST_GOOD_MAX).map(target(false)).collect();
        targets.extend(join.into_iter().map(target(true)));
        Self { targets_by_address: targets, connected: Default::default(), met_anyone: false }
    }

    /// Whether the mesh is joined.
    pub fn standing(&self) -> Standing {
        if self.met_anyone {
            Standing::Joined
        } else if self.targets_by_address.values().any(|target| target.configured) {
            Standing::Joining
        } else {
            Standing::Alone
        }
    }

    /// Addresses to dial now. Each will be reported back by [`State::on_connected`] or [`State::on_dial_failed`], or given up on.
    pub fn handle_tick(&mut self, now: Duration, rng: &mut impl Rng) -> Vec<Multiaddr> {
        let nobody = self.connected.is_empty();
        let mut due = Vec::new();
        for (address, target) in &mut self.targets_by_address {
            if target.node.is_some_and(|node| self.connected.contains(&node)) {
                continue;
            }
            let wanted = nobody || target.configured;
            if !wanted || now < target.next_at {
                continue;
            }
            if target.dialling {
                fail(target, now, rng);
                continue;
            }
            target.dialling = true;
            target.next_at = now.saturating_add(ATTEMPT);
            due.push(address.clone());
        }
        due
    }

    /// When [`State::handle_tick`] has something to do next.
    pub fn poll_timeout(&self) -> Option<Duration> {
        let waiting = |target: &&Target| !target.node.is_some_and(|node| self.connected.contains(&node));
        self.targets_by_address.values().filter(waiting).map(|target| target.next_at).min()
    }

    /// A connection to `node` stands.
    pub fn on_connected(&mut self, node: NodeId, address: &Multiaddr) {
        self.met_anyone = true;
        self.connected.insert(node);
        for (target_address, target) in &mut self.targets_by_address {
            let plain = target.node.is_none() && address_starts_with(address, target_address);
            if target.node == Some(node) || plain {
                target.node = Some(node);
                target.dialling = false;
                target.failures = 0;
            }
        }
    }

    /// The last connection to `node` is gone.
    pub fn on_disconnected(&mut self, node: NodeId, now: Duration, rng: &mut impl Rng) {
        self.connected.remove(&node);
        for target in self.targets_by_address.values_mut().filter(|target| target.node == Some(node)) {
            target.dialling = false;
            target.next_at = now.saturating_add(jittered(PAUSE_MIN, rng));
        }
    }

    /// Dialling `address` came to nothing.
    pub fn on_dial_failed(&mut self, address: &Multiaddr, now: Duration, rng: &mut impl Rng) {
        if let Some(target) = self.targets_by_address.get_mut(address) {
            fail(target, now, rng);
        }
    }
}

fn address_starts_with(address: &Multiaddr, start: &Multiaddr) -> bool {
    let mut parts = address.iter();
    start.iter().all(|part| parts.next() == Some(part))
}

fn fail(target: &mut Target, now: Duration, rng: &mut impl Rng) {
    target.dialling = false;
    let pause = PAUSE_MIN.saturating_mul(2_u32.saturating_pow(target.failures.min(10))).min(PAUSE_MAX);
    target.failures = target.failures.saturating_add(1);
    target.next_at = now.saturating_add(jittered(pause, rng));
}

/// `pause`, a quarter more or less, so that many nodes do not come back in step.
fn jittered(pause: Duration, rng: &mut impl Rng) -> Duration {
    pause.mul_f64(rng.random_range(0.75..1.25))
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::SmallRng};

    use super::*;

    fn address(port: u16) -> Multiaddr {
        let peer = libp2p_identity::Keypair::generate_ed25519().public().to_peer_id();
        format!("/ip4/127.0.0.1/tcp/{port}/p2p/{peer}").parse().expect("valid")
    }

    fn rng() -> SmallRng {
        SmallRng::seed_from_u64(1)
    }

    #[test]
    fn a_bootstrap_peer_is_tried_again_with_growing_pauses() {
        let (target, mut rng) = (address(1), rng());
        let mut state = State::new([target.clone()], []);
        assert_eq!(state.standing(), Standing::Joining);
        let mut now = Duration::ZERO;
        let mut pauses = Vec::new();
        for _ in 0..10 {
            assert_eq!(state.handle_tick(now, &mut rng), std::slice::from_ref(&target));
            assert!(state.handle_tick(now, &mut rng).is_empty());
            state.on_dial_failed(&target, now, &mut rng);
            let next = state.poll_timeout().expect("another attempt is due");
            pauses.push(next.saturating_sub(now));
            now = next;
        }
        assert!(pauses[0] <= PAUSE_MIN.mul_f64(1.25));
        assert!(pauses[9] >= PAUSE_MAX.mul_f64(0.75) && pauses[9] <= PAUSE_MAX.mul_f64(1.25));
    }

    #[test]
    fn a_lost_bootstrap_peer_is_dialled_again_while_others_are_connected() {
        let (first, second, mut rng) = (address(1), address(2), rng());
        let mut state = State::new([first.clone(), second.clone()], []);
        for target in [&first, &second] {
            state.on_connected(node_of(target).expect("named"), target);
        }
        assert_eq!(state.standing(), Standing::Joined);
        assert!(state.handle_tick(Duration::from_secs(60), &mut rng).is_empty());
        state.on_disconnected(node_of(&first).expect("named"), Duration::from_secs(60), &mut rng);
        assert_eq!(state.handle_tick(Duration::from_secs(61), &mut rng), [first]);
    }

    #[test]
    fn remembered_peers_are_dialled_only_when_nobody_is_left() {
        let (friend, other, mut rng) = (address(1), address(2), rng());
        let mut state = State::new([], [friend.clone()]);
        assert_eq!(state.standing(), Standing::Alone);
        state.on_connected(node_of(&other).expect("named"), &other);
        assert!(state.handle_tick(Duration::ZERO, &mut rng).is_empty());
        state.on_disconnected(node_of(&other).expect("named"), Duration::ZERO, &mut rng);
        assert_eq!(state.handle_tick(Duration::ZERO, &mut rng), [friend]);
    }

    #[test]
    fn an_attempt_that_is_never_reported_is_given_up() {
        let (target, mut rng) = (address(1), rng());
        let mut state = State::new([target.clone()], []);
        assert_eq!(state.handle_tick(Duration::ZERO, &mut rng).len(), 1);
        assert!(state.handle_tick(ATTEMPT, &mut rng).is_empty());
        assert_eq!(state.handle_tick(ATTEMPT * 2, &mut rng), [target]);
    }
}
