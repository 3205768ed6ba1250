//! Results of tasks' steps that may not have reached their owner, until it says what becomes of them (design/tasks.md, "A result that cannot
//! be delivered waits in an outbox").
//!
//! The results themselves are kept elsewhere ([`super::dedup`], on the disk); here stands whose they are and when that one is told next. An
//! owner is told while it is connected, of so many at a time, one time after the other. What it does not know, has, or has no use for leaves
//! the outbox; what it wants stays until it has it, and it is told again after a pause that grows, as it is where it gives no answer.
//! A result whose time is over leaves it as well. Telling too often does no harm, since the owner decides by what it knows.
//!
//! Bounded by the number of results that may be kept: the one whose time is over first makes room.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::dedup::Key;
use crate::model::{NodeId, Timestamp};
use crate::wire::outbox::{RESULTS_MAX, Word};

/// The first pause before an owner is told of a result once more; each further one is twice as long.
const PAUSE: Duration = Duration::from_secs(1);
/// The longest of them.
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// One result.
#[derive(Debug, Clone, Copy)]
struct Waiting {
    /// When its owner is told of it, since the start of the node.
    due: Duration,
    /// How long it waits after that.
    pause: Duration,
    /// When it is no longer kept.
    until: Timestamp,
}

/// The results of one owner.
#[derive(Debug, Default)]
struct Owner {
    results: BTreeMap<Key, Waiting>,
    /// The same by when it is due.
    by_due: BTreeSet<(Duration, Key)>,
    /// Whether it has been told, and has not answered.
    is_told: bool,
}

impl Owner {
    fn put(&mut self, key: &Key, waiting: Waiting) {
        self.take(key);
        self.by_due.insert((waiting.due, key.clone()));
        self.results.insert(key.clone(), waiting);
    }

    fn take(&mut self, key: &Key) -> Option<Waiting> {
        let waiting = self.results.remove(key)?;
        self.by_due.remove(&(waiting.due, key.clone()));
        Some(waiting)
    }

    /// Tells of it later, after its pause.
    fn put_off(&mut self, key: &Key, now: Duration) {
        if let Some(waiting) = self.results.get(key).copied() {
            let (due, pause) = (now.saturating_add(waiting.pause), waiting.pause.saturating_mul(2).min(PAUSE_MAX));
            self.put(key, Waiting { due, pause, ..waiting });
        }
    }
}

/// The outbox of a node.
#[derive(Debug)]
pub struct State {
    results_max: usize,
    owners: BTreeMap<NodeId, Owner>,
    by_end: BTreeSet<(Timestamp, Key)>,
}

impl State {
    /// Nothing waits.
    pub fn new(results_max: usize) -> Self {
        Self { results_max, owners: BTreeMap::new(), by_end: BTreeSet::new() }
    }

    /// This result, which is kept until then, may not have reached its owner.
    pub fn handle_undelivered(&mut self, key: Key, until: Timestamp, now: Duration) {
        self.remove(&key);
        if self.by_end.len() >= self.results_max
            && let Some((_, first)) = self.by_end.pop_first()
        {
            self.remove(&first);
        }
        if self.results_max > 0 {
            self.by_end.insert((until, key.clone()));
            self.owners.entry(key.2).or_default().put(&key, Waiting { due: now, pause: PAUSE, until });
        }
    }

    /// This result is not kept any more.
    pub fn remove(&mut self, key: &Key) {
        let Some(owner) = self.owners.get_mut(&key.2) else { return };
        if let Some(waiting) = owner.take(key) {
            self.by_end.remove(&(waiting.until, key.clone()));
        }
        if owner.results.is_empty() {
            self.owners.remove(&key.2);
        }
    }

    /// An owner is there, after it was not: it is told at once.
    pub fn on_connected(&mut self, node: NodeId, now: Duration) {
        let Some(owner) = self.owners.get_mut(&node) else { return };
        owner.is_told = false;
        let keys: Vec<(Key, Waiting)> = owner.results.iter().map(|(key, waiting)| (key.clone(), *waiting)).collect();
        keys.iter().for_each(|(key, waiting)| owner.put(key, Waiting { due: now, pause: PAUSE, ..*waiting }));
    }

    /// Time has passed: who is told now, and of what.
    pub fn handle_tick(&mut self, now: Duration, wall: Timestamp, is_connected: impl Fn(NodeId) -> bool) -> Vec<(NodeId, Vec<Key>)> {
        while let Some((_, over)) = self.by_end.first().filter(|(until, _)| *until <= wall).cloned() {
            self.remove(&over);
        }
        let mut told = Vec::new();
        for (node, owner) in self.owners.iter_mut().filter(|(_, owner)| !owner.is_told) {
            let due = owner.by_due.iter().take_while(|(due, _)| *due <= now).take(RESULTS_MAX);
            let keys: Vec<Key> = due.map(|(_, key)| key.clone()).collect();
            if !keys.is_empty() && is_connected(*node) {
                owner.is_told = true;
                told.push((*node, keys));
            }
        }
        told
    }

    /// An owner has answered what it was told, with a word on each in the same order; what it says nothing of it is told again, and so
    /// it is of all where it gave no answer.
    pub fn on_words(&mut self, node: NodeId, keys: &[Key], words: &[Word], now: Duration) {
        for (place, key) in keys.iter().enumerate() {
            match words.get(place) {
                Some(Word::Known | Word::Unknown | Word::Refused) => self.remove(key),
                Some(Word::Wanted) | None => self.owners.entry(node).or_default().put_off(key, now),
            }
        }
        self.settle(node);
    }

    fn settle(&mut self, node: NodeId) {
        if let Some(owner) = self.owners.get_mut(&node) {
            owner.is_told = false;
            if owner.results.is_empty() {
                self.owners.remove(&node);
            }
        }
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.by_end.len()
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.by_end.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;
    use proptest::test_runner::RngSeed;

    use super::*;
    use crate::model::AgentId;

    const END: Timestamp = Timestamp::from_ms(1_000_000);
    const BEFORE: Timestamp = Timestamp::from_ms(0);

    fn node(number: u8) -> NodeId {
        libp2p_identity::PeerId::from_bytes(&[0, 1, number]).expect("a short identity hash").into()
    }

    fn key(owner: u8, word: u32) -> Key {
        Arc::new((word.to_string(), AgentId::from_public_key([1; 32]), node(owner)))
    }

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn with(words: std::ops::Range<u32>) -> State {
        let mut state = State::new(1_000);
        words.for_each(|word| state.handle_undelivered(key(1, word), END, s(0)));
        state
    }

    #[test]
    fn an_owner_is_told_while_it_is_connected_of_so_many_at_a_time_and_one_time_after_the_other() {
        let mut state = with(0..RESULTS_MAX as u32 + 1);
        assert_eq!(state.handle_tick(s(1), BEFORE, |_| false), []);
        let told = state.handle_tick(s(1), BEFORE, |_| true);
        assert_eq!((told.len(), told[0].0, told[0].1.len()), (1, node(1), RESULTS_MAX));
        assert_eq!(state.handle_tick(s(2), BEFORE, |_| true), [], "it has not answered");
        state.on_words(node(1), &told[0].1, &[Word::Known; RESULTS_MAX], s(2));
        let told = state.handle_tick(s(2), BEFORE, |_| true);
        assert_eq!(told[0].1.len(), 1);
        state.on_words(node(1), &told[0].1, &[Word::Unknown], s(2));
        assert!(state.is_empty() && state.owners.is_empty());
    }

    #[test]
    fn what_is_wanted_stays_until_the_owner_has_it() {
        let mut state = with(0..1);
        let mut pauses = Vec::new();
        let mut now = s(0);
        for _ in 0..9 {
            let told = state.handle_tick(now, BEFORE, |_| true);
            state.on_words(node(1), &told[0].1, &[Word::Wanted], now);
            let before = now;
            while state.handle_tick(now, BEFORE, |_| false).is_empty()
                && state.owners[&node(1)].by_due.first().is_some_and(|(due, _)| *due > now)
            {
                now += s(1);
            }
            pauses.push((now - before).as_secs());
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
        state.on_connected(node(1), now);
        let told = state.handle_tick(now, BEFORE, |_| true);
        state.on_words(node(1), &told[0].1, &[Word::Known], now);
        assert!(state.is_empty());
    }

    #[test]
    fn an_owner_that_gives_no_answer_is_told_again_and_one_that_comes_back_at_once() {
        let mut state = with(0..2);
        let told = state.handle_tick(s(0), BEFORE, |_| true);
        state.on_words(node(1), &told[0].1, &[], s(10));
        assert_eq!(state.handle_tick(s(10), BEFORE, |_| true), []);
        state.on_connected(node(1), s(10));
        assert_eq!(state.handle_tick(s(10), BEFORE, |_| true)[0].1.len(), 2);
        // The connection was lost with the question.
        state.on_connected(node(1), s(11));
        assert_eq!(state.handle_tick(s(11), BEFORE, |_| true)[0].1.len(), 2);
    }

    #[test]
    fn a_result_whose_time_is_over_leaves_and_the_first_to_end_makes_room() {
        let mut state = State::new(2);
        for (word, until_ms) in [(1, 300), (2, 100), (3, 200)] {
            state.handle_undelivered(key(1, word), Timestamp::from_ms(until_ms), s(0));
        }
        assert_eq!(state.handle_tick(s(0), BEFORE, |_| true)[0].1, [key(1, 1), key(1, 3)]);
        assert_eq!(state.len(), 2);
        state.handle_tick(s(1), Timestamp::from_ms(200), |_| true);
        assert_eq!(state.len(), 1);
        let mut none = State::new(0);
        none.handle_undelivered(key(1, 1), END, s(0));
        assert!(none.is_empty());
    }

    proptest! {
        #![proptest_config(ProptestConfig { rng_seed: RngSeed::Fixed(7), ..ProptestConfig::default() })]

        /// Whatever happens in whatever order, the tables agree and keep to their bound.
        #[test]
        fn tables_agree(happens in prop::collection::vec((0_u8..5, 0_u8..3, 0_u32..6, 0_u64..90), 1..200)) {
            let mut state = State::new(5);
            let mut now = s(0);
            for (what, owner, word, seconds) in happens {
                now += s(seconds / 10);
                let wall = Timestamp::from_ms(u64::try_from(now.as_millis()).expect("small"));
                match what {
                    0 | 1 => state.handle_undelivered(key(owner, word), wall.saturating_add(s(seconds)), now),
                    2 => state.on_connected(node(owner), now),
                    3 => state.remove(&key(owner, word)),
                    _ => for (node, keys) in state.handle_tick(now, wall, |known| known != node(owner)) {
                        let words = [Word::Known, Word::Wanted, Word::Refused];
                        state.on_words(node, &keys, words.get(..usize::from(owner)).expect("few"), now);
                    },
                }
                let kept: usize = state.owners.values().map(|owner| owner.results.len()).sum();
                prop_assert!(kept == state.len() && kept <= 5);
                for owner in state.owners.values() {
                    prop_assert!(!owner.results.is_empty());
                    prop_assert_eq!(owner.by_due.len(), owner.results.len());
                }
            }
        }
    }
}
