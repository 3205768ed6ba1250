//! Calls with one idempotency key are one call.
//!
//! A key belongs to its caller: two peers that choose the same word do not meet. The first call with a key runs; others with the same
//! key and the same input wait for it and get the same result; with another input they are refused. Only good results are kept, so a
//! failed call may be tried again under its key.
//!
//! They are kept for a while, and within bounds of number and bytes. Where room is short, the oldest of whichever caller holds the most
//! makes it, bytes where bytes are short and results where results are, so that nobody who holds no more than its even share loses any of
//! it to others (threat T23). One that is larger than all the room is not kept at all. However a result goes, its key is free from then
//! on, and a call that repeats it runs again. A run under way is never let go of, whatever is kept.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::model::{AgentId, ErrorCode, Failure, NodeId};

/// Whose key, for which agent, and which.
pub type Key = (NodeId, AgentId, String);

/// What to do with a call that carries a key.
#[derive(Debug, PartialEq)]
pub enum Verdict<W, R> {
    /// Nobody runs it: run it, then report with [`State::handle_done`]. The waiter is given back.
    Run(W),
    /// It is being run; the waiter is kept and comes back with the result.
    Wait,
    /// It was done before.
    Done(W, R),
    /// The key stands for another input, or too many wait.
    Refuse(W, Failure),
}

/// What is kept of calls that are over.
#[derive(Debug, Clone, Copy)]
pub struct Config {
    /// How many results.
    pub results_max: usize,
    /// How many bytes they may have together.
    pub bytes_max: u64,
    /// How long each is kept.
    pub keep: Duration,
}

#[derive(Debug)]
struct Entry<W, R> {
    input: [u8; 32],
    state: Progress<W, R>,
}

#[derive(Debug)]
enum Progress<W, R> {
    Running(Vec<W>),
    Done { result: R, bytes: u64 },
}

/// Calls by key. `W` is what the shell needs to answer a caller, `R` a good result.
#[derive(Debug)]
pub struct State<W, R> {
    config: Config,
    entries_by_key: BTreeMap<Key, Entry<W, R>>,
    /// Those that are over.
    keys_by_age: BTreeSet<(Duration, Key)>,
    /// What the results of those have together.
    bytes: u64,
    /// The same for each caller that has any.
    kept_by_caller: BTreeMap<NodeId, Kept>,
    /// Who holds how many bytes, and among equals who has the oldest result: the last makes room for bytes.
    callers_by_bytes: BTreeSet<(u64, Reverse<Duration>, NodeId)>,
    /// Who holds how many results, likewise.
    callers_by_count: BTreeSet<(usize, Reverse<Duration>, NodeId)>,
}

/// What is kept for one caller.
#[derive(Debug, Default)]
struct Kept {
    keys_by_age: BTreeSet<(Duration, Key)>,
    bytes: u64,
}

impl Kept {
    fn oldest(&self) -> Reverse<Duration> {
        Reverse(self.keys_by_age.first().map_or(Duration::MAX, |(at, _)| *at))
    }
}

/// Callers that may wait for one running call.
const WAITERS_MAX: usize = 64;

impl<W, R: Clone> State<W, R> {
    /// No call yet.
    pub fn new(config: Config) -> Self {
        Self {
            config,
            entries_by_key: BTreeMap::new(),
            keys_by_age: BTreeSet::new(),
            bytes: 0,
            kept_by_caller: BTreeMap::new(),
            callers_by_bytes: BTreeSet::new(),
            callers_by_count: BTreeSet::new(),
        }
    }

    /// A call with `key` and an input of this hash has come.
    pub fn on_call(&mut self, key: Key, input: [u8; 32], waiter: W, now: Duration) -> Verdict<W, R> {
        self.expire(now);
        let Some(entry) = self.entries_by_key.get_mut(&key) else {
            self.entries_by_key.insert(key, Entry { input, state: Progress::Running(Vec::new()) });
            return Verdict::Run(waiter);
        };
        if entry.input != input {
            let message = format!("the idempotency key `{}` was used before with another input", key.2);
            return Verdict::Refuse(waiter, Failure::new(ErrorCode::Conflict, message));
        }
        match &mut entry.state {
            Progress::Done { result, .. } => Verdict::Done(waiter, result.clone()),
            Progress::Running(waiters) if waiters.len() >= WAITERS_MAX => {
                let failure = Failure::new(ErrorCode::Busy, "too many callers wait for this idempotency key");
                Verdict::Refuse(waiter, failure.with("retry_after_ms", 500))
            }
            Progress::Running(waiters) => {
                waiters.push(waiter);
                Verdict::Wait
            }
        }
    }

    /// The call that was run is over, with a result to keep, and its size in bytes, if it went well. Returns those who waited for it.
    pub fn handle_done(&mut self, key: &Key, good: Option<(&R, u64)>, now: Duration) -> Vec<W> {
        let Some(entry) = self.entries_by_key.get_mut(key) else { return Vec::new() };
        let waiters = match &mut entry.state {
            Progress::Running(waiters) => std::mem::take(waiters),
            Progress::Done { .. } => return Vec::new(),
        };
        match good.filter(|(_, bytes)| *bytes <= self.config.bytes_max) {
            Some((result, bytes)) => {
                entry.state = Progress::Done { result: result.clone(), bytes };
                self.bytes = self.bytes.saturating_add(bytes);
                self.keys_by_age.insert((now, key.clone()));
                self.change(key.0, |kept| {
                    kept.keys_by_age.insert((now, key.clone()));
                    kept.bytes = kept.bytes.saturating_add(bytes);
                });
                while self.make_room() {}
            }
            None => {
                self.entries_by_key.remove(key);
            }
        }
        waiters
    }

    /// Results kept and calls running.
    pub fn len(&self) -> usize {
        self.entries_by_key.len()
    }

    /// Whether nothing is kept.
    pub fn is_empty(&self) -> bool {
        self.entries_by_key.is_empty()
    }

    fn expire(&mut self, now: Duration) {
        let keep = self.config.keep;
        while self.keys_by_age.first().is_some_and(|(at, _)| at.saturating_add(keep) <= now) {
            let Some(oldest) = self.keys_by_age.first().cloned() else { return };
            self.forget(&oldest);
        }
    }

    /// Forgets the oldest result of whoever holds the most of what is short. False if nothing is, or nothing is left.
    fn make_room(&mut self) -> bool {
        let largest = if self.bytes > self.config.bytes_max {
            self.callers_by_bytes.last().map(|(.., caller)| *caller)
        } else if self.keys_by_age.len() > self.config.results_max {
            self.callers_by_count.last().map(|(.., caller)| *caller)
        } else {
            None
        };
        let kept = largest.and_then(|caller| self.kept_by_caller.get(&caller));
        let Some(oldest) = kept.and_then(|kept| kept.keys_by_age.first()).cloned() else { return false };
        self.forget(&oldest);
        true
    }

    fn forget(&mut self, aged: &(Duration, Key)) {
        self.keys_by_age.remove(aged);
        let Some(Entry { state: Progress::Done { bytes, .. }, .. }) = self.entries_by_key.remove(&aged.1) else { return };
        self.bytes = self.bytes.saturating_sub(bytes);
        self.change(aged.1.0, |kept| {
            kept.keys_by_age.remove(aged);
            kept.bytes = kept.bytes.saturating_sub(bytes);
        });
    }

    /// Changes what is kept for `caller`, and where that puts it among the others.
    fn change(&mut self, caller: NodeId, change: impl FnOnce(&mut Kept)) {
        let kept = self.kept_by_caller.entry(caller).or_default();
        self.callers_by_bytes.remove(&(kept.bytes, kept.oldest(), caller));
        self.callers_by_count.remove(&(kept.keys_by_age.len(), kept.oldest(), caller));
        change(kept);
        if kept.keys_by_age.is_empty() {
            self.kept_by_caller.remove(&caller);
            return;
        }
        self.callers_by_bytes.insert((kept.bytes, kept.oldest(), caller));
        self.callers_by_count.insert((kept.keys_by_age.len(), kept.oldest(), caller));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::test_runner::RngSeed;

    use super::*;

    fn key(word: &str) -> Key {
        key_of(7, word)
    }

    fn key_of(caller: u8, word: &str) -> Key {
        let node = libp2p_identity::PeerId::from_bytes(&[0, 1, caller]).expect("a short identity hash");
        (node.into(), AgentId::from_public_key([1; 32]), word.to_owned())
    }

    fn success() -> &'static str {
        "1"
    }

    fn keeping(results_max: usize, bytes_max: u64) -> State<i32, &'static str> {
        State::new(Config { results_max, bytes_max, keep: Duration::from_secs(60) })
    }

    /// A call that runs and ends with a result of so many bytes.
    fn done(state: &mut State<i32, &'static str>, word: &str, bytes: u64, second: u64) {
        assert_eq!(state.on_call(key(word), [0; 32], 0, s(second)), Verdict::Run(0), "{word}");
        assert_eq!(state.handle_done(&key(word), Some((&success(), bytes)), s(second)), [0_i32; 0]);
    }

    fn is_kept(state: &State<i32, &'static str>, word: &str) -> bool {
        state.entries_by_key.contains_key(&key(word))
    }

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn callers_with_one_key_share_one_run() {
        let mut state: State<i32, &str> = keeping(10, 100);
        assert_eq!(state.on_call(key("k"), [0; 32], 1, Duration::ZERO), Verdict::Run(1));
        assert_eq!(state.on_call(key("k"), [0; 32], 2, Duration::ZERO), Verdict::Wait);
        assert_eq!(state.handle_done(&key("k"), Some((&success(), 1)), Duration::ZERO), [2]);
        assert_eq!(state.on_call(key("k"), [0; 32], 3, Duration::ZERO), Verdict::Done(3, success()));
    }

    #[test]
    fn a_key_with_another_input_is_a_conflict() {
        let mut state: State<i32, &str> = keeping(10, 100);
        assert_eq!(state.on_call(key("k"), [0; 32], 1, Duration::ZERO), Verdict::Run(1));
        assert!(
            matches!(state.on_call(key("k"), [1; 32], 2, Duration::ZERO), Verdict::Refuse(2, failure) if failure.code == ErrorCode::Conflict)
        );
    }

    #[test]
    fn a_failed_call_may_be_tried_again() {
        let mut state: State<i32, &str> = keeping(10, 100);
        assert_eq!(state.on_call(key("k"), [0; 32], 1, Duration::ZERO), Verdict::Run(1));
        state.handle_done(&key("k"), None, Duration::ZERO);
        assert_eq!(state.on_call(key("k"), [0; 32], 2, Duration::ZERO), Verdict::Run(2));
    }

    #[test]
    fn results_are_kept_for_a_while_and_within_a_bound() {
        let mut state: State<i32, &str> = keeping(2, 100);
        for word in ["a", "b", "c"] {
            assert_eq!(state.on_call(key(word), [0; 32], 0, Duration::ZERO), Verdict::Run(0));
            state.handle_done(&key(word), Some((&success(), 1)), Duration::ZERO);
        }
        assert_eq!(state.len(), 2);
        assert_eq!(state.on_call(key("c"), [0; 32], 0, Duration::from_secs(61)), Verdict::Run(0));
    }

    /// Threat T23: large results do not add up to more than there is room for.
    #[test]
    fn the_oldest_results_make_room_for_new_ones() {
        let mut state = keeping(10, 100);
        for (second, (word, bytes)) in [("d", 40), ("a", 30), ("c", 30)].into_iter().enumerate() {
            done(&mut state, word, bytes, u64::try_from(second).expect("small"));
        }
        assert_eq!((state.len(), state.bytes), (3, 100), "all fit");
        done(&mut state, "b", 50, 3);
        assert_eq!((is_kept(&state, "d"), is_kept(&state, "a"), is_kept(&state, "c")), (false, false, true));
        assert_eq!((state.len(), state.bytes), (2, 80));
        assert_eq!(state.on_call(key("d"), [0; 32], 1, s(3)), Verdict::Run(1), "its key is free again");
    }

    #[test]
    fn a_result_larger_than_all_the_room_reaches_who_waits_and_is_not_kept() {
        let mut state = keeping(10, 100);
        done(&mut state, "small", 60, 0);
        assert_eq!(state.on_call(key("large"), [0; 32], 1, s(1)), Verdict::Run(1));
        assert_eq!(state.on_call(key("large"), [0; 32], 2, s(1)), Verdict::Wait);
        assert_eq!(state.handle_done(&key("large"), Some((&success(), 101)), s(1)), [2]);
        assert_eq!((state.len(), state.bytes), (1, 60), "nobody else has to make room for what is not kept");
        assert_eq!(state.on_call(key("large"), [0; 32], 3, s(1)), Verdict::Run(3), "as after its time, a repeat runs again");
    }

    /// Threat T23: one peer cannot flush what is kept for the others.
    #[test]
    fn the_caller_that_holds_the_most_makes_room() {
        let keep = |state: &mut State<i32, &'static str>, caller, word: &str, bytes, second| {
            assert_eq!(state.on_call(key_of(caller, word), [0; 32], 0, s(second)), Verdict::Run(0), "{word}");
            state.handle_done(&key_of(caller, word), Some((&success(), bytes)), s(second));
        };
        let mut state = keeping(4, 100);
        keep(&mut state, 1, "first", 1, 0);
        for second in 1..50 {
            keep(&mut state, 2, &second.to_string(), 1, second);
        }
        assert!(state.entries_by_key.contains_key(&key_of(1, "first")), "many small ones");
        keep(&mut state, 2, "large", 100, 50);
        assert!(state.entries_by_key.contains_key(&key_of(1, "first")), "a large one");
        assert!(!state.entries_by_key.contains_key(&key_of(2, "large")), "there is no room left for it");
    }

    #[test]
    fn a_run_under_way_stays_whatever_is_kept() {
        let mut state = keeping(1, 100);
        assert_eq!(state.on_call(key("running"), [0; 32], 1, s(0)), Verdict::Run(1));
        for second in 1..200 {
            done(&mut state, &second.to_string(), 100, second);
        }
        assert_eq!(state.on_call(key("running"), [0; 32], 2, s(200)), Verdict::Wait);
        assert_eq!(state.handle_done(&key("running"), Some((&success(), 1)), s(200)), [2]);
    }

    #[test]
    fn what_is_over_its_time_leaves_its_room() {
        let mut state = keeping(10, 100);
        done(&mut state, "a", 100, 0);
        done(&mut state, "b", 10, 60);
        assert_eq!((state.len(), state.bytes), (1, 10));
        done(&mut state, "c", 90, 61);
        assert_eq!((state.len(), state.bytes), (2, 100));
    }

    #[derive(Debug, Clone)]
    enum Op {
        Call { word: usize, input: u8 },
        Done { word: usize, good: Option<u64> },
        Pass { seconds: u64 },
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            5 => (0..WORDS.len(), 0_u8..2).prop_map(|(word, input)| Op::Call { word, input }),
            3 => (0..WORDS.len(), prop::option::of(0_u64..120)).prop_map(|(word, good)| Op::Done { word, good }),
            1 => (0_u64..40).prop_map(|seconds| Op::Pass { seconds }),
        ]
    }

    /// Calls of one caller that end, with so many bytes.
    fn ends() -> impl Strategy<Value = Vec<(u8, u64)>> {
        prop::collection::vec((0..CALLERS, 0_u64..120), 1..200)
    }

    const CALLERS: u8 = 3;
    const RESULTS_MAX: usize = 9;
    const BYTES_MAX: u64 = 99;
    const WORDS: [&str; 5] = ["a", "b", "c", "d", "e"];

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, rng_seed: RngSeed::Fixed(7), ..ProptestConfig::with_cases(512) })]

        /// T23: whoever loses a result to others held more than its even share of what was short; and what is kept of each caller adds up.
        #[test]
        fn nobody_loses_its_even_share_to_others(ends in ends()) {
            let mut state = keeping(RESULTS_MAX, BYTES_MAX);
            let mut kept: BTreeMap<Key, u64> = BTreeMap::new();
            for (number, (caller, bytes)) in (0..).zip(ends) {
                let key = key_of(caller, &number.to_string());
                prop_assert_eq!(state.on_call(key.clone(), [0; 32], 0, s(0)), Verdict::Run(0));
                state.handle_done(&key, Some((&success(), bytes)), Duration::from_millis(number));
                if bytes <= BYTES_MAX {
                    kept.insert(key, bytes);
                }
                let share = |kept: &BTreeMap<Key, u64>, caller: NodeId| {
                    let own = kept.iter().filter(|(key, _)| key.0 == caller);
                    (own.clone().count(), own.map(|(_, bytes)| bytes).sum::<u64>())
                };
                let before = kept.clone();
                kept.retain(|key, _| state.entries_by_key.contains_key(key));
                let callers: BTreeSet<NodeId> = before.keys().map(|key| key.0).collect();
                for caller in callers {
                    let (count, bytes) = share(&before, caller);
                    let within = count <= RESULTS_MAX / usize::from(CALLERS) && bytes <= BYTES_MAX / u64::from(CALLERS);
                    prop_assert!(!within || share(&kept, caller) == (count, bytes), "it held no more than its share");
                    let counted = state.kept_by_caller.get(&caller).map_or((0, 0), |kept| (kept.keys_by_age.len(), kept.bytes));
                    prop_assert_eq!(counted, share(&kept, caller));
                }
                prop_assert!(state.keys_by_age.len() <= RESULTS_MAX && state.bytes <= BYTES_MAX);
                prop_assert_eq!(state.callers_by_bytes.len(), state.kept_by_caller.len());
                prop_assert_eq!(state.callers_by_count.len(), state.kept_by_caller.len());
            }
        }

        /// MEAP-9, T23: whatever happens in whatever order, every caller is answered once, one run at a time goes on under a key, and what
        /// is kept stays within its bounds.
        #[test]
        fn each_caller_is_answered_once_and_what_is_kept_is_bounded(ops in prop::collection::vec(op(), 1..120)) {
            let mut state = keeping(3, 100);
            let (mut now, mut callers) = (s(0), 0);
            let mut unanswered: BTreeMap<usize, BTreeSet<i32>> = BTreeMap::new();
            for op in ops {
                match op {
                    Op::Call { word, input } => {
                        callers += 1;
                        match state.on_call(key(WORDS[word]), [input; 32], callers, now) {
                            Verdict::Run(waiter) => {
                                prop_assert_eq!(waiter, callers);
                                prop_assert_eq!(unanswered.insert(word, BTreeSet::from([waiter])), None, "a second run");
                            }
                            Verdict::Wait => prop_assert!(unanswered.get_mut(&word).expect("a run to wait for").insert(callers)),
                            Verdict::Done(waiter, _) | Verdict::Refuse(waiter, _) => prop_assert_eq!(waiter, callers),
                        }
                    }
                    Op::Done { word, good } => {
                        let waited = state.handle_done(&key(WORDS[word]), good.map(|bytes| (&"1", bytes)), now);
                        let Some(mut waiting) = unanswered.remove(&word) else {
                            prop_assert!(waited.is_empty());
                            continue;
                        };
                        waiting.pop_first();
                        prop_assert_eq!(waited, Vec::from_iter(waiting), "all but whoever runs it, in the order in which they came");
                    }
                    Op::Pass { seconds } => now += s(seconds),
                }
                let kept = state.entries_by_key.values().filter_map(|entry| match entry.state {
                    Progress::Done { bytes, .. } => Some(bytes),
                    Progress::Running(_) => None,
                });
                prop_assert_eq!((kept.clone().count(), kept.sum::<u64>()), (state.keys_by_age.len(), state.bytes));
                prop_assert!(state.keys_by_age.len() <= 3 && state.bytes <= 100);
                prop_assert_eq!(state.len(), state.keys_by_age.len() + unanswered.len());
            }
        }
    }
}
