//! Getting into the mesh, and back into it: which address to dial, and when to try again.
//!
//! Each bootstrap address is tried at once and then with growing, jittered pauses for as long as the node runs, so a bootstrap peer that
//! starts late or restarts is found without anybody doing anything. The last good peers of an earlier run are tried beside them, and
//! again whenever no peer is left, so bootstrap peers may be gone for good once the others have met (fault F16). A peer that
//! fell silent is dialled again for a while by the side that had dialled it, whoever else is connected: the halves of a mesh that was divided
//! find each other again without any bootstrap peer (fault F5). Who closed a connection had a reason, and whose process died comes back by
//! itself.

use std::collections::BTreeMap;
use std::time::Duration;

use multiaddr::{Multiaddr, Protocol};
use rand::Rng;

use crate::model::NodeId;

/// Pause after the first failure; doubles with each further one.
const PAUSE_MIN: Duration = Duration::from_millis(500);
/// Longest pause between attempts: a mesh that was divided is whole again a few seconds after it can be.
const PAUSE_MAX: Duration = Duration::from_secs(3);
/// How long a peer that fell silent is dialled beside others. Whoever is away for longer comes back by itself or through the directory.
const LOST: Duration = Duration::from_secs(600);
/// How long an attempt may take before it counts as failed.
const ATTEMPT: Duration = Duration::from_secs(10);
/// How many of the last good peers are kept and tried.
pub const LAST_GOOD_MAX: usize = 32;
/// How many addresses of a connected peer are kept.
const ADDRESSES_MAX: usize = 2;

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

/// An address, and when it is dialled.
#[derive(Debug, Clone)]
struct Target {
    node: Option<NodeId>,
    /// It is in the configuration: always.
    configured: bool,
    /// It was good in an earlier run: while no peer is connected.
    remembered: bool,
    /// Its node fell silent: until then, and while no peer is connected.
    lost_until: Option<Duration>,
    failures: u32,
    next_at: Duration,
    dialling: bool,
}

/// A connected peer.
#[derive(Debug, Default)]
struct Peer {
    /// Where it was dialled.
    dialled: Vec<Multiaddr>,
    is_silent: bool,
}

/// The state of joining.
#[derive(Debug)]
pub struct State {
    targets_by_address: BTreeMap<Multiaddr, Target>,
    connected: BTreeMap<NodeId, Peer>,
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
        let target = |configured: bool| {
            move |address: Multiaddr| {
                let target = Target {
                    node: node_of(&address),
                    configured,
                    remembered: !configured,
                    lost_until: None,
                    failures: 0,
                    next_at: Duration::ZERO,
                    dialling: false,
                };
                (address, target)
            }
        };
        let mut targets: BTreeMap<_, _> = remembered.into_iter().take(LAST_GOOD_MAX).map(target(false)).collect();
        targets.extend(join.into_iter().map(target(true)));
        Self { targets_by_address: targets, connected: BTreeMap::new(), met_anyone: false }
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
        let is_lost = |target: &Target| target.lost_until.is_some_and(|until| now < until);
        self.targets_by_address.retain(|_, target| nobody || target.configured || target.remembered || is_lost(target));
        for (address, target) in &mut self.targets_by_address {
            if target.node.is_some_and(|node| self.connected.contains_key(&node)) {
                continue;
            }
            let wanted = nobody || target.configured || is_lost(target);
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
        let waiting = |target: &&Target| !target.node.is_some_and(|node| self.connected.contains_key(&node));
        self.targets_by_address.values().filter(waiting).map(|target| target.next_at).min()
    }

    /// A connection to `node` stands.
    pub fn on_connected(&mut self, node: NodeId, address: &Multiaddr) {
        self.met_anyone = true;
        self.connected.entry(node).or_default();
        for (target_address, target) in &mut self.targets_by_address {
            let plain = target.node.is_none() && address_starts_with(address, target_address);
            if target.node == Some(node) || plain {
                target.node = Some(node);
                target.dialling = false;
                target.failures = 0;
            }
        }
    }

    /// The connected `node` was dialled at these addresses, each with its id, and is one of this mesh.
    pub fn on_dialled(&mut self, node: NodeId, addresses: Vec<Multiaddr>) {
        if let Some(peer) = self.connected.get_mut(&node) {
            peer.dialled = addresses;
            peer.dialled.truncate(ADDRESSES_MAX);
        }
    }

    /// The only connection to `node` carries nothing any more, and is given up.
    pub fn on_silent(&mut self, node: NodeId) {
        if let Some(peer) = self.connected.get_mut(&node) {
            peer.is_silent = true;
        }
    }

    /// The last connection to `node` is gone.
    pub fn on_disconnected(&mut self, node: NodeId, now: Duration, rng: &mut impl Rng) {
        let peer = self.connected.remove(&node).unwrap_or_default();
        for address in peer.dialled.into_iter().filter(|_| peer.is_silent) {
            if self.targets_by_address.values().filter(|target| target.lost_until.is_some()).count() >= LAST_GOOD_MAX {
                break;
            }
            let lost_until = Some(now.saturating_add(LOST));
            let (configured, remembered) = (false, false);
            let lost = Target { node: Some(node), configured, remembered, lost_until, failures: 0, next_at: now, dialling: false };
            self.targets_by_address.entry(address).or_insert(lost).lost_until = lost_until;
        }
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

    /// F5: whoever had dialled a peer that fell silent dials it again for a while, beside others; who closed the connection is let go.
    #[test]
    fn a_peer_that_fell_silent_is_dialled_for_a_while() {
        let (lost, left, stays, mut rng) = (address(1), address(2), address(3), rng());
        let mut state = State::new([], []);
        for target in [&lost, &left, &stays] {
            let node = node_of(target).expect("named");
            state.on_connected(node, target);
            state.on_dialled(node, vec![target.clone()]);
        }
        let now = Duration::from_secs(60);
        assert!(state.handle_tick(now, &mut rng).is_empty());
        state.on_silent(node_of(&lost).expect("named"));
        for target in [&lost, &left] {
            state.on_disconnected(node_of(target).expect("named"), now, &mut rng);
        }
        let (mut dialled, mut at) = (Vec::new(), now);
        while let Some(next) = state.poll_timeout().filter(|next| *next < now + LOST) {
            assert!(next.saturating_sub(at) <= PAUSE_MAX.mul_f64(1.25));
            at = next;
            for address in state.handle_tick(at, &mut rng) {
                assert_eq!(address, lost);
                state.on_dial_failed(&address, at, &mut rng);
                dialled.push(at);
            }
        }
        assert!(dialled.len() > 150, "{} times", dialled.len());
        assert!(state.handle_tick(now + LOST, &mut rng).is_empty());
        assert_eq!(state.poll_timeout(), None, "nothing is kept of it");
    }

    /// F16: a peer that is remembered stays so, however long it was away; and the last that was there is not given up while nobody else is.
    #[test]
    fn nobody_is_forgotten_while_no_other_is_there() {
        let (friend, other, mut rng) = (address(1), address(2), rng());
        let mut state = State::new([], [friend.clone()]);
        for target in [&friend, &other] {
            let node = node_of(target).expect("named");
            state.on_connected(node, target);
            state.on_dialled(node, vec![target.clone()]);
            state.on_silent(node);
            state.on_disconnected(node, Duration::ZERO, &mut rng);
        }
        let mut due = state.handle_tick(LOST * 10, &mut rng);
        due.sort();
        let mut both = vec![friend.clone(), other.clone()];
        both.sort();
        assert_eq!(due, both);
        both.iter().for_each(|address| state.on_dial_failed(address, LOST * 10, &mut rng));
        // With somebody there, the one that is remembered stays, and is dialled once it is needed.
        let third = address(3);
        state.on_connected(node_of(&third).expect("named"), &third);
        assert!(state.handle_tick(LOST * 11, &mut rng).is_empty());
        state.on_disconnected(node_of(&third).expect("named"), LOST * 12, &mut rng);
        assert_eq!(state.handle_tick(LOST * 13, &mut rng), [friend]);
    }

    #[test]
    fn of_many_peers_that_were_lost_a_bounded_number_is_dialled() {
        let mut state = State::new([], []);
        let many: Vec<Multiaddr> = (1..=60).map(address).collect();
        for target in &many {
            let node = node_of(target).expect("named");
            state.on_connected(node, target);
            state.on_dialled(node, vec![target.clone(); 3]);
            state.on_silent(node);
            assert_eq!(state.connected.get(&node).map(|peer| peer.dialled.len()), Some(ADDRESSES_MAX));
        }
        many.iter().for_each(|target| state.on_disconnected(node_of(target).expect("named"), Duration::ZERO, &mut rng()));
        assert_eq!(state.handle_tick(Duration::from_secs(1), &mut rng()).len(), LAST_GOOD_MAX);
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
