//! What a peer has done wrong lately, and what follows from it.
//!
//! Every fault costs points. Points fade with a half-life of ten minutes, so a clumsy peer is forgiven by waiting
//! and a hostile one is not, because it keeps earning them. At twenty points the peer is disconnected, at fifty it
//! is banned: for twelve hours the first time, for twice as long each further time, for seven days at most.
//! The shape is Lighthouse's (settings table of the security plan, row "ban / decay"); doubling and the bounds are ours.
//!
//! Invariants:
//! - A fault never improves a peer's standing: points and bans only grow by [`Penalties::penalise`].
//! - One burst is one ban. Faults of a peer that is already banned change nothing, however many were on their way.
//! - Both tables are bounded. The least guilty leave first, and bans and points do not compete for room, so a crowd of
//!   banned throwaway keys cannot make the node forget the points of the others.
//! - Points are whole thousandths and decay by integer arithmetic: the same input gives the same verdict everywhere.
//!
//! Time is the duration since the node started, which means nothing after a restart. A [`Snapshot`] therefore holds
//! what is *left* of each ban, and [`Penalties::restore`] takes the time that passed in between.
//!
//! Left to others: which fault costs how much (the caller knows what happened), closing connections and refusing
//! new ones (`mesh::limits`), and quality of service, which is trust and not guilt.

use std::collections::BTreeMap;
use std::time::Duration;

use libp2p_identity::PeerId;
use serde::{Deserialize, Serialize};

/// When faults lead to consequences, and how long they are remembered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Config {
    /// The time in which points fade to one half.
    pub half_life: Duration,
    /// The points at which a peer is disconnected.
    pub disconnect_points_min: u32,
    /// The points at which a peer is banned.
    pub ban_points_min: u32,
    /// The length of a first ban.
    pub ban_first: Duration,
    /// The length that doubling stops at. A peer that stays clean for as long after a ban is a first offender again.
    pub ban_max: Duration,
    /// The most peers with points, and the most peers with bans, that are remembered.
    pub entries_max: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            half_life: Duration::from_secs(600),
            disconnect_points_min: 20,
            ban_points_min: 50,
            ban_first: Duration::from_secs(12 * 3_600),
            ban_max: Duration::from_secs(7 * 24 * 3_600),
            entries_max: 10_000,
        }
    }
}

/// What to do with a peer after a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing yet.
    Keep,
    /// Close its connections; it may come back.
    Disconnect,
    /// Close its connections and refuse it until this time since the node started.
    Ban {
        /// The end of the ban.
        until: Duration,
    },
}

/// The faults of all peers.
#[derive(Debug, Clone, Default)]
pub struct Penalties {
    config: Config,
    scores_by_peer: BTreeMap<PeerId, Score>,
    bans_by_peer: BTreeMap<PeerId, Ban>,
}

/// Points as they were when last counted.
#[derive(Debug, Clone, Copy)]
struct Score {
    milli_points: u64,
    counted_at: Duration,
}

/// The latest ban of a peer. It outlives its end, so that the next one is longer.
#[derive(Debug, Clone, Copy)]
struct Ban {
    count: u32,
    until: Duration,
    forgotten_at: Duration,
}

impl Penalties {
    /// A clean slate.
    #[must_use]
    pub fn new(config: Config) -> Self {
        Self { config, scores_by_peer: BTreeMap::new(), bans_by_peer: BTreeMap::new() }
    }

    /// Charges a fault to a peer. `now` is the time since the node started.
    pub fn penalise(&mut self, peer: PeerId, points: u32, now: Duration) -> Verdict {
        if let Some(until) = self.banned_until(&peer, now) {
            return Verdict::Ban { until };
        }
        let milli_points = self.milli_points(&peer, now).saturating_add(u64::from(points) * MILLI);
        if milli_points >= u64::from(self.config.ban_points_min) * MILLI {
            self.scores_by_peer.remove(&peer);
            return Verdict::Ban { until: self.ban(peer, now) };
        }
        if milli_points > 0 {
            self.score(peer, Score { milli_points, counted_at: now }, now);
        }
        if milli_points >= u64::from(self.config.disconnect_points_min) * MILLI { Verdict::Disconnect } else { Verdict::Keep }
    }

    /// The points that a peer has left, rounded down.
    #[must_use]
    pub fn points(&self, peer: &PeerId, now: Duration) -> u32 {
        u32::try_from(self.milli_points(peer, now) / MILLI).unwrap_or(u32::MAX)
    }

    /// The end of a peer's ban, if it is banned.
    #[must_use]
    pub fn banned_until(&self, peer: &PeerId, now: Duration) -> Option<Duration> {
        self.bans_by_peer.get(peer).map(|ban| ban.until).filter(|until| *until > now)
    }

    /// Whether a peer is banned.
    #[must_use]
    pub fn is_banned(&self, peer: &PeerId, now: Duration) -> bool {
        self.banned_until(peer, now).is_some()
    }

    /// Iterates over the banned peers and the ends of their bans.
    pub fn banned(&self, now: Duration) -> impl Iterator<Item = (PeerId, Duration)> {
        self.bans_by_peer.iter().filter(move |(_, ban)| ban.until > now).map(|(peer, ban)| (*peer, ban.until))
    }

    /// What must be kept on disk so that a restart pardons nobody.
    #[must_use]
    pub fn snapshot(&self, now: Duration) -> Snapshot {
        let scores = self.scores_by_peer.keys().map(|peer| (*peer, self.milli_points(peer, now)));
        let scores = scores.filter(|(_, milli_points)| *milli_points >= MILLI);
        let bans = self.bans_by_peer.iter().filter(|(_, ban)| ban.forgotten_at > now);
        Snapshot {
            scores: scores.map(|(peer, milli_points)| KeptScore { peer, milli_points }).collect(),
            bans: bans
                .map(|(peer, ban)| KeptBan {
                    peer: *peer,
                    count: ban.count,
                    left_ms: millis(ban.until.saturating_sub(now)),
                    forgotten_in_ms: millis(ban.forgotten_at.saturating_sub(now)),
                })
                .collect(),
        }
    }

    /// Takes up a snapshot that was made `elapsed` ago.
    ///
    /// A snapshot is only as honest as the disk: figures beyond what this configuration could have produced are cut
    /// to it, and a wall clock that was set back shortens nobody's ban if the caller then passes zero.
    #[must_use]
    pub fn restore(config: Config, snapshot: &Snapshot, elapsed: Duration, now: Duration) -> Self {
        let mut penalties = Self::new(config);
        let milli_points_max = (u64::from(config.ban_points_min) * MILLI).saturating_sub(1);
        for kept in &snapshot.scores {
            let milli_points = decayed(kept.milli_points.min(milli_points_max), elapsed, config.half_life);
            if milli_points >= MILLI {
                penalties.score(kept.peer, Score { milli_points, counted_at: now }, now);
            }
        }
        for kept in &snapshot.bans {
            let left = Duration::from_millis(kept.left_ms).min(config.ban_max).saturating_sub(elapsed);
            let forgotten_in = Duration::from_millis(kept.forgotten_in_ms).min(config.ban_max * 2).saturating_sub(elapsed);
            if !forgotten_in.is_zero() {
                let ban = Ban { count: kept.count.max(1), until: now + left, forgotten_at: now + forgotten_in.max(left) };
                penalties.keep_ban(kept.peer, ban, now);
            }
        }
        penalties
    }

    fn milli_points(&self, peer: &PeerId, now: Duration) -> u64 {
        self.scores_by_peer.get(peer).map_or(0, |score| score.at(now, self.config.half_life))
    }

    fn ban(&mut self, peer: PeerId, now: Duration) -> Duration {
        let earlier = self.bans_by_peer.get(&peer).filter(|ban| ban.forgotten_at > now).map_or(0, |ban| ban.count);
        let doublings = 1_u32.checked_shl(earlier).unwrap_or(u32::MAX);
        let length = self.config.ban_first.saturating_mul(doublings).min(self.config.ban_max);
        let until = now.saturating_add(length);
        let forgotten_at = until.saturating_add(self.config.ban_max);
        self.keep_ban(peer, Ban { count: earlier.saturating_add(1), until, forgotten_at }, now);
        until
    }

    fn keep_ban(&mut self, peer: PeerId, ban: Ban, now: Duration) {
        if is_full_for(&self.bans_by_peer, &peer, self.config.entries_max) {
            self.bans_by_peer.retain(|_, ban| ban.forgotten_at > now);
            remove_least(&mut self.bans_by_peer, self.config.entries_max, |ban| (ban.until > now, ban.count, ban.until));
        }
        self.bans_by_peer.insert(peer, ban);
    }

    fn score(&mut self, peer: PeerId, score: Score, now: Duration) {
        let half_life = self.config.half_life;
        if is_full_for(&self.scores_by_peer, &peer, self.config.entries_max) {
            self.scores_by_peer.retain(|_, score| score.at(now, half_life) >= MILLI);
            remove_least(&mut self.scores_by_peer, self.config.entries_max, |score| score.at(now, half_life));
        }
        self.scores_by_peer.insert(peer, score);
    }
}

impl Score {
    fn at(&self, now: Duration, half_life: Duration) -> u64 {
        decayed(self.milli_points, now.saturating_sub(self.counted_at), half_life)
    }
}

/// Points and bans in a form that can be written to disk.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Snapshot {
    scores: Vec<KeptScore>,
    bans: Vec<KeptBan>,
}

impl Snapshot {
    /// Whether there is nothing to keep.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.scores.is_empty() && self.bans.is_empty()
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct KeptScore {
    #[serde(with = "peer_as_text")]
    peer: PeerId,
    milli_points: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct KeptBan {
    #[serde(with = "peer_as_text")]
    peer: PeerId,
    count: u32,
    left_ms: u64,
    forgotten_in_ms: u64,
}

/// Peer ids as people read them, since the file is small and people may have to.
mod peer_as_text {
    use libp2p_identity::PeerId;
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(peer: &PeerId, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(peer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PeerId, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

/// Points are kept in thousandths, so that small ones fade instead of vanishing.
const MILLI: u64 = 1_000;

/// One half-life in sixteen steps: 2^(-n/16) as a fraction of 2^20.
const FADE: [u128; 17] = [
    1_048_576, 1_004_120, 961_548, 920_782, 881_744, 844_361, 808_563, 774_282, 741_455, 710_020, 679_917, 651_091, 623_487, 597_053,
    571_740, 547_500, 524_288,
];
const FADE_BITS: u32 = 20;

/// Halves exactly at each half-life and follows the curve in between to a thousandth, however often it is asked.
/// Integers do that alike on every machine, which floating-point powers do not promise.
fn decayed(milli_points: u64, elapsed: Duration, half_life: Duration) -> u64 {
    let (elapsed_ms, half_life_ms) = (elapsed.as_millis(), half_life.as_millis().max(1));
    let halvings = u32::try_from(elapsed_ms / half_life_ms).unwrap_or(u32::MAX);
    let halved = u128::from(milli_points.checked_shr(halvings).unwrap_or(0));
    let sixteenths = elapsed_ms % half_life_ms * 16;
    let step = usize::try_from(sixteenths / half_life_ms).unwrap_or(0);
    let (from, to) = (FADE[step], FADE[step + 1]);
    let factor = from - (from - to) * (sixteenths % half_life_ms) / half_life_ms;
    u64::try_from((halved * factor) >> FADE_BITS).unwrap_or(u64::MAX)
}

fn is_full_for<V>(map: &BTreeMap<PeerId, V>, peer: &PeerId, entries_max: usize) -> bool {
    map.len() >= entries_max && !map.contains_key(peer)
}

/// Removes the entries that weigh least until one more fits.
fn remove_least<V, K: Ord>(map: &mut BTreeMap<PeerId, V>, entries_max: usize, weight: impl Fn(&V) -> K) {
    while map.len() >= entries_max.max(1) {
        let least = map.iter().min_by_key(|(_, value)| weight(value)).map(|(peer, _)| *peer);
        let Some(peer) = least else { return };
        map.remove(&peer);
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HOUR: Duration = Duration::from_secs(3_600);
    const START: Duration = Duration::from_secs(1_000);

    #[test]
    fn faults_lead_from_patience_to_disconnect_to_ban() {
        let (mut penalties, peer) = (Penalties::default(), PeerId::random());
        assert_eq!(penalties.penalise(peer, 19, START), Verdict::Keep);
        assert_eq!(penalties.penalise(peer, 1, START), Verdict::Disconnect);
        assert_eq!(penalties.penalise(peer, 29, START), Verdict::Disconnect);
        assert_eq!(penalties.penalise(peer, 1, START), Verdict::Ban { until: START + 12 * HOUR });
        assert!(penalties.is_banned(&peer, START + 12 * HOUR - Duration::from_millis(1)));
        assert!(!penalties.is_banned(&peer, START + 12 * HOUR));
    }

    #[test]
    fn points_halve_every_ten_minutes() {
        let (mut penalties, peer) = (Penalties::default(), PeerId::random());
        penalties.penalise(peer, 48, START);
        for (minutes, points) in [(0, 48), (5, 33), (10, 24), (20, 12), (30, 6), (60, 0)] {
            assert_eq!(penalties.points(&peer, START + minutes * HOUR / 60), points, "after {minutes} minutes");
        }
    }

    #[test]
    fn a_peer_that_errs_seldom_is_never_disconnected() {
        let (mut penalties, peer) = (Penalties::default(), PeerId::random());
        for n in 0..1_000 {
            assert_eq!(penalties.penalise(peer, 9, START + n * HOUR / 6), Verdict::Keep);
        }
    }

    #[test]
    fn one_burst_is_one_ban() {
        let (mut penalties, peer) = (Penalties::default(), PeerId::random());
        let first = penalties.penalise(peer, 50, START);
        for n in 0..100 {
            assert_eq!(penalties.penalise(peer, 50, START + n * HOUR / 100), first);
        }
        assert_eq!(penalties.penalise(peer, 1, START + 12 * HOUR), Verdict::Keep);
    }

    #[test]
    fn bans_double_up_to_a_week() {
        let (mut penalties, peer) = (Penalties::default(), PeerId::random());
        let mut now = START;
        for hours in [12, 24, 48, 96, 168, 168, 168] {
            let until = now + hours * HOUR;
            assert_eq!(penalties.penalise(peer, 1_000, now), Verdict::Ban { until });
            now = until;
        }
    }

    #[test]
    fn a_week_of_peace_makes_a_first_offender_again() {
        let (mut penalties, peer) = (Penalties::default(), PeerId::random());
        penalties.penalise(peer, 50, START);
        let after_a_week = START + 12 * HOUR + 7 * 24 * HOUR;
        let mut impatient = penalties.clone();
        let just_before = after_a_week - Duration::from_millis(1);
        assert_eq!(impatient.penalise(peer, 50, just_before), Verdict::Ban { until: just_before + 24 * HOUR });
        assert_eq!(penalties.penalise(peer, 50, after_a_week), Verdict::Ban { until: after_a_week + 12 * HOUR });
    }

    #[test]
    fn the_least_guilty_leave_a_full_table_first() {
        let mut penalties = Penalties::new(small(3));
        let peers: Vec<PeerId> = (0..4).map(|_| PeerId::random()).collect();
        penalties.penalise(peers[0], 10, START);
        penalties.penalise(peers[1], 30, START);
        penalties.penalise(peers[2], 8, START + HOUR / 6);
        // By now the ten points of the first peer are worth five.
        penalties.penalise(peers[3], 1, START + HOUR / 6);
        let left: Vec<u32> = peers.iter().map(|peer| penalties.points(peer, START + HOUR / 6)).collect();
        assert_eq!(left, [0, 15, 8, 1]);
    }

    #[test]
    fn a_crowd_of_banned_keys_displaces_neither_points_nor_longer_bans() {
        let mut penalties = Penalties::new(small(3));
        let (watched, repeated) = (PeerId::random(), PeerId::random());
        penalties.penalise(repeated, 50, START);
        let now = START + 12 * HOUR;
        penalties.penalise(repeated, 50, now);
        penalties.penalise(watched, 15, now);
        for _ in 0..100 {
            penalties.penalise(PeerId::random(), 50, now);
        }
        assert_eq!(penalties.points(&watched, now), 15);
        assert!(penalties.is_banned(&repeated, now));
        assert_eq!(penalties.banned(now).count(), 3);
    }

    #[test]
    fn both_tables_stay_within_their_bound() {
        let mut penalties = Penalties::new(small(100));
        for n in 0..1_000 {
            penalties.penalise(PeerId::random(), 1 + n % 60, START);
        }
        assert_eq!(penalties.scores_by_peer.len(), 100);
        assert!(penalties.bans_by_peer.len() <= 100);
    }

    #[test]
    fn a_restart_pardons_nobody() {
        let mut penalties = Penalties::default();
        let (banned, watched) = (PeerId::random(), PeerId::random());
        penalties.penalise(banned, 50, START);
        penalties.penalise(watched, 40, START);
        let text = serde_json::to_string(&penalties.snapshot(START + HOUR)).unwrap();
        let snapshot: Snapshot = serde_json::from_str(&text).unwrap();
        let now = Duration::from_millis(5);
        let mut restored = Penalties::restore(Config::default(), &snapshot, HOUR, now);
        assert_eq!(restored.banned_until(&banned, now), Some(now + 10 * HOUR));
        let later = now + 10 * HOUR;
        assert_eq!(restored.penalise(banned, 50, later), Verdict::Ban { until: later + 24 * HOUR });
        assert_eq!(restored.points(&watched, now), 0);
        let at_once = Penalties::restore(Config::default(), &penalties.snapshot(START), Duration::ZERO, now);
        assert_eq!(at_once.points(&watched, now), 40);
    }

    #[test]
    fn a_snapshot_can_claim_no_more_than_the_configuration_allows() {
        let (peer, other) = (PeerId::random(), PeerId::random());
        let snapshot = Snapshot {
            scores: vec![KeptScore { peer: other, milli_points: u64::MAX }],
            bans: vec![KeptBan { peer, count: u32::MAX, left_ms: u64::MAX, forgotten_in_ms: u64::MAX }],
        };
        let mut restored = Penalties::restore(Config::default(), &snapshot, Duration::ZERO, START);
        let week = Config::default().ban_max;
        assert_eq!(restored.banned_until(&peer, START), Some(START + week));
        assert_eq!(restored.points(&other, START), 49);
        assert_eq!(restored.penalise(peer, 50, START + week), Verdict::Ban { until: START + week * 2 });
    }

    #[test]
    fn an_empty_record_makes_an_empty_snapshot() {
        assert!(Penalties::default().snapshot(START).is_empty());
    }

    proptest! {
        #[test]
        fn misbehaving_more_never_brings_a_milder_verdict(faults in prop::collection::vec((0_u32..60, 0_u64..2_000), 1..40), extra in 0_u32..30) {
            let peer = PeerId::random();
            let (mut milder, mut worse) = (Penalties::default(), Penalties::default());
            let mut now = START;
            for (points, pause_s) in faults {
                now += Duration::from_secs(pause_s);
                let (mild, bad) = (milder.penalise(peer, points, now), worse.penalise(peer, points + extra, now));
                prop_assert!(severity(bad) >= severity(mild));
                if severity(bad) == 2 {
                    break;
                }
            }
        }

        #[test]
        fn points_only_fade_while_nothing_happens(points in 0_u32..50, pauses in prop::collection::vec(0_u64..100_000, 1..20)) {
            let (mut penalties, peer) = (Penalties::default(), PeerId::random());
            penalties.penalise(peer, points, START);
            let (mut now, mut last) = (START, points);
            for pause_ms in pauses {
                now += Duration::from_millis(pause_ms);
                let left = penalties.points(&peer, now);
                prop_assert!(left <= last);
                last = left;
            }
        }
    }

    fn small(entries_max: usize) -> Config {
        Config { entries_max, ..Config::default() }
    }

    fn severity(verdict: Verdict) -> u8 {
        match verdict {
            Verdict::Keep => 0,
            Verdict::Disconnect => 1,
            Verdict::Ban { .. } => 2,
        }
    }
}
