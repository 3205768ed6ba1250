//! Making receipts: own outcomes, summed over windows.
//!
//! A window of an agent and capability begins with the first outcome after the one before it has ended, and ends a fixed time later. So
//! windows never overlap, whatever the clock or the configuration does between two runs; one that has not ended when the node stops is
//! lost. Only the latest receipt of each pair is kept, since nobody counts an earlier one.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Pair;
use crate::model::{AgentId, CapabilityName, NodeId, Timestamp};
use crate::proto::peers::trust::Outcome;
use crate::wire::Verified;
use crate::wire::directory::CLOCK_SKEW_MS_MAX;
use crate::wire::receipt::{RECEIPT_LIFETIME, RECEIPTS_MAX, Receipt};

/// Agents and capabilities that are summed at once; outcomes of more are not summed, and those not called for longest are forgotten.
const PAIRS_MAX: usize = 1_024;
/// Receipts that are handed out to be signed at a time; the others wait for the next.
const SIGNED_MAX: usize = 64;

/// A window that has not ended.
#[derive(Debug)]
struct Tally {
    start: Timestamp,
    successes: u32,
    failures: u32,
    latency_ms_sum: f64,
}

#[derive(Debug, Default)]
struct Own {
    open: Option<Tally>,
    /// Until when this node has spoken of the pair; nothing it says may reach back before that.
    told_until: Timestamp,
    latest: Option<Verified<Receipt>>,
}

/// This node's own outcomes and receipts.
#[derive(Debug)]
pub struct Windows {
    node: NodeId,
    window: Duration,
    own_by_pair: BTreeMap<Pair, Own>,
}

impl Windows {
    /// Nothing yet, for a node whose windows are this long.
    pub fn new(node: NodeId, window: Duration) -> Self {
        Self { node, window, own_by_pair: BTreeMap::new() }
    }

    /// Takes in how one call of an agent on another node ended.
    pub fn handle_outcome(&mut self, agent: AgentId, capability: &CapabilityName, outcome: Outcome, wall: Timestamp) {
        let pair = (agent, capability.clone());
        if !self.own_by_pair.contains_key(&pair) && !self.make_room() {
            return;
        }
        let own = self.own_by_pair.entry(pair).or_default();
        // A clock that was far ahead and is right again must not silence the node for as long as it was ahead.
        let skewed = own.told_until.saturating_since(wall) > Duration::from_millis(CLOCK_SKEW_MS_MAX);
        let start = if skewed { wall } else { own.told_until.max(wall) };
        let open = own.open.get_or_insert(Tally { start, successes: 0, failures: 0, latency_ms_sum: 0.0 });
        match outcome {
            Outcome::Success { latency_ms } => {
                open.successes = open.successes.saturating_add(1);
                open.latency_ms_sum += latency_ms;
            }
            // A promise broken so far is no good end.
            Outcome::Late { .. } | Outcome::Failure => open.failures = open.failures.saturating_add(1),
        }
    }

    /// Receipts that are to be signed now and handed to [`Windows::handle_signed`]. Each window comes once.
    pub fn handle_tick(&mut self, wall: Timestamp) -> Vec<Receipt> {
        let (node, window) = (self.node, self.window);
        let over = |own: &Own| own.open.as_ref().is_some_and(|open| open.start.saturating_add(window) <= wall);
        let due = self.own_by_pair.iter_mut().filter(|(_, own)| over(own)).take(SIGNED_MAX);
        let receipts = due.filter_map(|((agent, capability), own)| {
            let tally = own.open.take()?;
            let window_end = tally.start.saturating_add(window);
            own.told_until = window_end;
            let latency_ms = (tally.successes > 0).then(|| (tally.latency_ms_sum / f64::from(tally.successes)).clamp(0.0, 1e9));
            Some(Receipt {
                v: Receipt::V,
                issuer: node,
                agent: *agent,
                capability: capability.clone(),
                window_start: tally.start,
                window_end,
                successes: tally.successes,
                failures: tally.failures,
                latency_ms,
                issued_at: wall,
                expires_at: wall.saturating_add(RECEIPT_LIFETIME),
            })
        });
        let receipts = receipts.collect();
        let alive = |receipt: &Verified<Receipt>| receipt.expires_at > wall;
        self.own_by_pair.retain(|_, own| own.open.is_some() || own.told_until > wall || own.latest.as_ref().is_none_or(alive));
        receipts
    }

    /// Keeps a receipt of this node that was signed now or before a restart; an earlier one than is known is passed over.
    pub fn handle_signed(&mut self, receipt: Verified<Receipt>, wall: Timestamp) {
        let pair = (receipt.agent, receipt.capability.clone());
        let ours = receipt.issuer == self.node && receipt.expires_at > wall;
        if !ours || (!self.own_by_pair.contains_key(&pair) && !self.make_room()) {
            return;
        }
        let own = self.own_by_pair.entry(pair).or_default();
        own.told_until = own.told_until.max(receipt.window_end);
        if own.latest.as_ref().is_none_or(|latest| latest.window_end < receipt.window_end) {
            own.latest = Some(receipt);
        }
    }

    /// This node's receipts on these agents, on all if none is named; the latest windows first, as many as fit into an answer.
    pub fn about(&self, agents: &[AgentId], wall: Timestamp) -> Vec<&Verified<Receipt>> {
        let wanted = |receipt: &&Verified<Receipt>| receipt.expires_at > wall && (agents.is_empty() || agents.contains(&receipt.agent));
        let mut found: Vec<_> = self.iter().filter(wanted).collect();
        found.sort_by_key(|receipt| std::cmp::Reverse(receipt.window_end));
        found.truncate(RECEIPTS_MAX);
        found
    }

    /// The latest receipt on each agent and capability.
    pub fn iter(&self) -> impl Iterator<Item = &Verified<Receipt>> {
        self.own_by_pair.values().filter_map(|own| own.latest.as_ref())
    }

    /// Whether there is room for one more pair, for which the one that was not called for longest may have to go.
    fn make_room(&mut self) -> bool {
        if self.own_by_pair.len() < PAIRS_MAX {
            return true;
        }
        let idle = self.own_by_pair.iter().filter(|(_, own)| own.open.is_none());
        let oldest = idle.min_by_key(|(_, own)| own.told_until).map(|(pair, _)| pair.clone());
        oldest.is_some_and(|pair| self.own_by_pair.remove(&pair).is_some())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::directory::tests::node_key;
    use crate::wire::{NodeKey, Signed};

    const WINDOW: Duration = Duration::from_secs(60);

    fn at(ms: u64) -> Timestamp {
        Timestamp::from_ms(ms)
    }

    fn agent(number: u32) -> AgentId {
        let mut key = [0; 32];
        key[..4].copy_from_slice(&number.to_be_bytes());
        AgentId::from_public_key(key)
    }

    fn name() -> CapabilityName {
        "echo".parse().expect("valid")
    }

    fn started() -> (NodeKey, Windows) {
        let key = node_key();
        let windows = Windows::new(key.id(), WINDOW);
        (key, windows)
    }

    /// Signs what is due, as the shell does.
    fn sign_due(key: &NodeKey, windows: &mut Windows, wall: Timestamp) -> Vec<Receipt> {
        let due = windows.handle_tick(wall);
        for receipt in due.clone() {
            windows.handle_signed(Signed::sign(receipt, key, None).expect("a valid receipt"), wall);
        }
        due
    }

    #[test]
    fn a_window_sums_what_fell_into_it() {
        let (key, mut windows) = started();
        for latency_ms in [10.0, 30.0] {
            windows.handle_outcome(agent(1), &name(), Outcome::Success { latency_ms }, at(5_000));
        }
        windows.handle_outcome(agent(1), &name(), Outcome::Failure, at(64_000));
        assert_eq!(sign_due(&key, &mut windows, at(64_999)), []);
        let [receipt] = sign_due(&key, &mut windows, at(65_000)).try_into().expect("one");
        assert_eq!((receipt.successes, receipt.failures, receipt.latency_ms), (2, 1, Some(20.0)));
        assert_eq!((receipt.window_start, receipt.window_end), (at(5_000), at(65_000)));
        assert_eq!(sign_due(&key, &mut windows, at(200_000)), [], "each window comes once, and an idle agent gets none");
        assert_eq!(windows.about(&[agent(1)], at(65_000)).len(), 1);
        assert_eq!(windows.about(&[agent(2)], at(65_000)).len(), 0);
    }

    #[test]
    fn the_latest_receipt_is_given_out_until_it_expires() {
        let (key, mut windows) = started();
        for start in [0, 100_000] {
            windows.handle_outcome(agent(1), &name(), Outcome::Failure, at(start));
            sign_due(&key, &mut windows, at(start + 60_000));
        }
        let ends: Vec<_> = windows.about(&[], at(160_000)).iter().map(|receipt| receipt.window_end).collect();
        assert_eq!(ends, [at(160_000)]);
        let expiry = at(160_000).saturating_add(RECEIPT_LIFETIME);
        assert!(windows.about(&[], expiry).is_empty());
        sign_due(&key, &mut windows, expiry);
        assert!(windows.own_by_pair.is_empty(), "what has expired is forgotten");
    }

    #[test]
    fn a_restart_with_a_clock_set_back_tells_of_no_time_twice() {
        let (key, mut before) = started();
        before.handle_outcome(agent(1), &name(), Outcome::Failure, at(100_000));
        sign_due(&key, &mut before, at(160_000));
        let mut after = Windows::new(key.id(), WINDOW);
        let stored = before.iter().next().expect("kept").clone();
        after.handle_signed(stored.clone(), at(130_000));
        after.handle_outcome(agent(1), &name(), Outcome::Failure, at(130_000));
        assert_eq!(sign_due(&key, &mut after, at(219_999)), []);
        let [receipt] = sign_due(&key, &mut after, at(220_000)).try_into().expect("one");
        assert!(!receipt.overlaps(&stored) && receipt.window_start == stored.window_end);
    }

    #[test]
    fn receipts_of_others_are_not_given_out() {
        let (_, mut windows) = started();
        windows.handle_signed(crate::wire::receipt::tests::receipt(&node_key(), 1, "echo", 100_000, (1, 0)), at(100_000));
        assert_eq!(windows.iter().count(), 0);
    }

    #[test]
    fn the_table_keeps_to_its_bound() {
        let (key, mut windows) = started();
        let calls = |windows: &mut Windows, from: u32, wall| {
            (from..from + 1_500).for_each(|number| windows.handle_outcome(agent(number), &name(), Outcome::Failure, wall));
        };
        calls(&mut windows, 0, at(0));
        assert_eq!(windows.own_by_pair.len(), PAIRS_MAX);
        let mut signed = 0;
        while signed < PAIRS_MAX {
            let due = sign_due(&key, &mut windows, at(60_000)).len();
            assert!((1..=SIGNED_MAX).contains(&due), "a bounded number at a time");
            signed += due;
        }
        calls(&mut windows, 5_000, at(70_000));
        assert_eq!(windows.own_by_pair.len(), PAIRS_MAX);
        assert!(windows.own_by_pair.contains_key(&(agent(5_000), name())), "the new takes the room of the idle");
        assert_eq!(windows.about(&[], at(70_000)).len(), 0);
    }

    proptest! {
        #[test]
        fn windows_never_overlap_and_lose_no_call(gaps in proptest::collection::vec(0_u64..50_000, 1..60)) {
            let (_, mut windows) = started();
            let (mut now, mut told) = (0, Vec::<Receipt>::new());
            for gap in &gaps {
                now += gap;
                told.extend(windows.handle_tick(at(now)));
                windows.handle_outcome(agent(1), &name(), Outcome::Failure, at(now));
            }
            told.extend(windows.handle_tick(at(now + 60_000)));
            prop_assert_eq!(told.iter().map(Receipt::calls).sum::<u64>(), gaps.len() as u64);
            prop_assert!(told.windows(2).all(|two| two[0].window_end <= two[1].window_start));
        }
    }
}
