//! Calls with one idempotency key are one call.
//!
//! A key belongs to its caller: two peers that choose the same word do not meet. The first call with a key runs; others with the same
//! key and the same input wait for it and get the same result; with another input they are refused. Only good results are kept, so a
//! failed call may be tried again under its key.
//!
//! A task's step carries a fence as well: an attempt that is lower than one that was seen under its key comes too late and is refused
//! (design/tasks.md, "Fences and idempotency"). Its key alone says which work it is, since the owner of the task makes the key from what has to be
//! the same: an input that tells of the moment, such as who is there to ask, need not be. After a restart, a key whose run broke off is free again, and its fence still holds.
//!
//! Results are kept for a while, and within bounds of number and bytes. Where room is short, the first to expire of whichever caller holds the most
//! makes it, bytes where bytes are short and results where results are, so that nobody who holds no more than its even share loses any of
//! it to others (threat T23). One that is larger than all the room is not kept at all. However a result goes, its key is free from then
//! on, and a call that repeats it runs again. A run under way is never let go of, whatever is kept.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, btree_map};
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use crate::model::{AgentId, ErrorCode, Failure, NodeId};
use crate::wire::invocation::Fence;

/// Which key, for which agent, and whose; in this order, since it is the word that mostly tells two apart.
pub type Key = Arc<(String, AgentId, NodeId)>;

/// When an entry expires, and a number that it shares with no other.
type End = (Duration, u64);

/// A key as the table has it: behind the end of its word, where words that are alike mostly differ. That stands in the table itself, and the
/// key is somewhere else in memory, which is the dearer the more of them there are.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Placed {
    tail: [u8; TAIL_BYTES],
    key: Key,
}

/// How much of a word tells it from a hundred thousand others, even if it is the digits of a number.
const TAIL_BYTES: usize = 8;

impl Placed {
    fn new(key: &Key) -> Self {
        Self { tail: key.0.as_bytes().last_chunk().copied().unwrap_or_default(), key: Arc::clone(key) }
    }
}

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
    /// How long each is kept that says nothing else.
    pub keep: Duration,
}

/// What must be the same in all calls with one key, and what tells them apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Call {
    /// A hash of the input, which is the same.
    pub input: [u8; 32],
    /// Which attempt it is, if it is one of a task.
    pub fence: Option<Fence>,
    /// How long its result is kept, if not as long as others.
    pub keep: Option<Duration>,
}

#[derive(Debug)]
struct Entry<W, R> {
    call: Call,
    state: Progress<W, R>,
}

#[derive(Debug)]
enum Progress<W, R> {
    Running(Vec<W>),
    /// A run that broke off with the process that it was in.
    Interrupted {
        end: End,
    },
    Done {
        result: R,
        bytes: u64,
        end: End,
    },
}

/// How a call stands to its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing<'a, R> {
    /// It runs.
    Running,
    /// Nothing is known but that it began, and when.
    Interrupted {
        /// When.
        since: Duration,
    },
    /// It went well.
    Done {
        /// Its result.
        result: &'a R,
        /// How large that is.
        bytes: u64,
        /// Since when it is kept.
        since: Duration,
    },
}

/// Calls by key. `W` is what the shell needs to answer a caller, `R` a good result.
#[derive(Debug)]
pub struct State<W, R> {
    config: Config,
    entries_by_key: BTreeMap<Placed, Entry<W, R>>,
    /// Those that are over, by when they expire.
    keys_by_end: BTreeMap<End, Key>,
    /// How many ends were given out.
    ends: u64,
    /// Results that were let go of since somebody asked.
    forgotten: Vec<R>,
    /// What the results of those have together.
    bytes: u64,
    /// The same for each caller that has any.
    kept_by_caller: BTreeMap<NodeId, Kept>,
    /// Who holds how many bytes, and among equals whose result expires first: the last makes room for bytes.
    callers_by_bytes: BTreeSet<(u64, Reverse<Duration>, NodeId)>,
    /// Who holds how many results, likewise.
    callers_by_count: BTreeSet<(usize, Reverse<Duration>, NodeId)>,
}

/// What is kept for one caller.
#[derive(Debug, Default)]
struct Kept {
    ends: BTreeSet<End>,
    bytes: u64,
}

impl Kept {
    fn first_end(&self) -> Reverse<Duration> {
        Reverse(self.ends.first().map_or(Duration::MAX, |(at, _)| *at))
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
            keys_by_end: BTreeMap::new(),
            ends: 0,
            forgotten: Vec::new(),
            bytes: 0,
            kept_by_caller: BTreeMap::new(),
            callers_by_bytes: BTreeSet::new(),
            callers_by_count: BTreeSet::new(),
        }
    }

    /// A call with `key` has come.
    pub fn on_call(&mut self, key: Key, call: Call, waiter: W, now: Duration) -> Verdict<W, R> {
        self.expire(now);
        let entry = match self.entries_by_key.entry(Placed::new(&key)) {
            btree_map::Entry::Occupied(entry) => entry.into_mut(),
            btree_map::Entry::Vacant(place) => {
                place.insert(Entry { call, state: Progress::Running(Vec::new()) });
                return Verdict::Run(waiter);
            }
        };
        let is_step = entry.call.fence.is_some() && call.fence.is_some();
        if entry.call.input != call.input && !is_step {
            let message = format!("the idempotency key `{}` was used before with another input", key.0);
            return Verdict::Refuse(waiter, Failure::new(ErrorCode::Conflict, message));
        }
        if call.fence < entry.call.fence {
            let failure = Failure::new(ErrorCode::Conflict, "a later attempt of the same step has been made");
            return Verdict::Refuse(waiter, failure);
        }
        entry.call.fence = call.fence;
        match &mut entry.state {
            Progress::Done { result, .. } => Verdict::Done(waiter, result.clone()),
            Progress::Interrupted { end } => {
                self.keys_by_end.remove(end);
                entry.state = Progress::Running(Vec::new());
                Verdict::Run(waiter)
            }
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
    pub fn handle_done(&mut self, key: &Key, good: Option<(R, u64)>, now: Duration) -> Vec<W> {
        let Some(entry) = self.entries_by_key.get_mut(&Placed::new(key)) else { return Vec::new() };
        let waiters = match &mut entry.state {
            Progress::Running(waiters) => std::mem::take(waiters),
            Progress::Interrupted { .. } | Progress::Done { .. } => return Vec::new(),
        };
        match good {
            Some((result, bytes)) if bytes <= self.config.bytes_max => {
                let until = now.saturating_add(entry.call.keep.unwrap_or(self.config.keep));
                self.keep(key, result, bytes, until);
            }
            Some((result, _)) => {
                self.forgotten.push(result);
                self.entries_by_key.remove(&Placed::new(key));
            }
            None => {
                self.entries_by_key.remove(&Placed::new(key));
            }
        }
        waiters
    }

    fn keep(&mut self, key: &Key, result: R, bytes: u64, until: Duration) {
        let end = self.end(until);
        let Some(entry) = self.entries_by_key.get_mut(&Placed::new(key)) else { return };
        entry.state = Progress::Done { result, bytes, end };
        self.bytes = self.bytes.saturating_add(bytes);
        self.keys_by_end.insert(end, key.clone());
        self.change(key.2, |kept| {
            kept.ends.insert(end);
            kept.bytes = kept.bytes.saturating_add(bytes);
        });
        while self.make_room() {}
    }

    fn end(&mut self, until: Duration) -> End {
        self.ends = self.ends.saturating_add(1);
        (until, self.ends)
    }

    /// Takes up a run of which nothing is known but that it began, at that time.
    pub fn restore_begun(&mut self, key: Key, call: Call, at: Duration) {
        let until = at.saturating_add(call.keep.unwrap_or(self.config.keep));
        self.release(&key);
        let end = self.end(until);
        self.keys_by_end.insert(end, key.clone());
        self.entries_by_key.insert(Placed::new(&key), Entry { call, state: Progress::Interrupted { end } });
    }

    /// Takes up the good end of a run that was taken up before.
    pub fn restore_done(&mut self, key: &Key, result: R, bytes: u64, at: Duration) {
        let Some(Entry { call, state: Progress::Interrupted { end } }) = self.entries_by_key.get(&Placed::new(key)) else { return };
        let (before, after) = (*end, at.saturating_add(call.keep.unwrap_or(self.config.keep)));
        self.keys_by_end.remove(&before);
        if bytes > self.config.bytes_max {
            self.entries_by_key.remove(&Placed::new(key));
            self.forgotten.push(result);
            return;
        }
        self.keep(key, result, bytes, after);
    }

    /// Lets go of what was taken up under a key: its run ended without a result.
    pub fn release(&mut self, key: &Key) {
        let end = match self.entries_by_key.get(&Placed::new(key)).map(|entry| &entry.state) {
            Some(Progress::Interrupted { end } | Progress::Done { end, .. }) => *end,
            Some(Progress::Running(_)) | None => return,
        };
        self.forget(end);
    }

    /// Results that were let go of since this was asked last.
    pub fn take_forgotten(&mut self) -> Vec<R> {
        std::mem::take(&mut self.forgotten)
    }

    /// Every result that is kept.
    pub fn results(&self) -> impl Iterator<Item = &R> {
        self.entries_by_key.values().filter_map(|entry| match &entry.state {
            Progress::Done { result, .. } => Some(result),
            Progress::Running(_) | Progress::Interrupted { .. } => None,
        })
    }

    /// The calls whose keys follow on `after`, or all of them, in an order that does not change.
    pub fn following(&self, after: Option<&Key>) -> impl Iterator<Item = (&Key, &Call, Standing<'_, R>)> {
        let from = after.map_or(Bound::Unbounded, |after| Bound::Excluded(Placed::new(after)));
        self.entries_by_key.range((from, Bound::Unbounded)).map(|(Placed { key, .. }, Entry { call, state })| {
            let since = |(until, _): &End| until.saturating_sub(call.keep.unwrap_or(self.config.keep));
            let standing = match state {
                Progress::Running(_) => Standing::Running,
                Progress::Interrupted { end } => Standing::Interrupted { since: since(end) },
                Progress::Done { result, bytes, end } => Standing::Done { result, bytes: *bytes, since: since(end) },
            };
            (key, call, standing)
        })
    }

    /// The fence of a task's step whose result is kept under this key, and until when it is.
    pub fn step(&self, key: &Key) -> Option<(Fence, Duration)> {
        match self.entries_by_key.get(&Placed::new(key))? {
            Entry { call: Call { fence: Some(fence), .. }, state: Progress::Done { end: (until, _), .. } } => Some((*fence, *until)),
            Entry { .. } => None,
        }
    }

    /// Results kept and calls running.
    pub fn len(&self) -> usize {
        self.entries_by_key.len()
    }

    /// Whether nothing is kept.
    pub fn is_empty(&self) -> bool {
        self.entries_by_key.is_empty()
    }

    /// Lets go of what has been kept for long enough.
    pub fn expire(&mut self, now: Duration) {
        while let Some((end, _)) = self.keys_by_end.first_key_value().filter(|((until, _), _)| *until <= now) {
            self.forget(*end);
        }
    }

    /// Forgets what expires first of whoever holds the most of what is short. False if nothing is, or nothing is left.
    fn make_room(&mut self) -> bool {
        let largest = if self.bytes > self.config.bytes_max {
            self.callers_by_bytes.last().map(|(.., caller)| *caller)
        } else if self.keys_by_end.len() > self.config.results_max {
            self.callers_by_count.last().map(|(.., caller)| *caller)
        } else {
            None
        };
        let kept = largest.and_then(|caller| self.kept_by_caller.get(&caller));
        let Some(first) = kept.and_then(|kept| kept.ends.first()).copied() else { return false };
        self.forget(first);
        true
    }

    fn forget(&mut self, end: End) {
        let Some(key) = self.keys_by_end.remove(&end) else { return };
        let Some(Entry { state: Progress::Done { bytes, result, .. }, .. }) = self.entries_by_key.remove(&Placed::new(&key)) else {
            return;
        };
        self.forgotten.push(result);
        self.bytes = self.bytes.saturating_sub(bytes);
        self.change(key.2, |kept| {
            kept.ends.remove(&end);
            kept.bytes = kept.bytes.saturating_sub(bytes);
        });
    }

    /// Changes what is kept for `caller`, and where that puts it among the others.
    fn change(&mut self, caller: NodeId, change: impl FnOnce(&mut Kept)) {
        let kept = self.kept_by_caller.entry(caller).or_default();
        let places = |kept: &Kept| ((kept.bytes, kept.first_end(), caller), (kept.ends.len(), kept.first_end(), caller));
        let before = places(kept);
        change(kept);
        let after = places(kept);
        let is_gone = kept.ends.is_empty();
        if is_gone {
            self.kept_by_caller.remove(&caller);
        } else {
            // Before the other goes: the table of a single caller would give its memory back each time.
            self.callers_by_bytes.insert(after.0);
            self.callers_by_count.insert(after.1);
        }
        if is_gone || before.0 != after.0 {
            self.callers_by_bytes.remove(&before.0);
        }
        if is_gone || before.1 != after.1 {
            self.callers_by_count.remove(&before.1);
        }
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
        Arc::new((word.to_owned(), AgentId::from_public_key([1; 32]), node.into()))
    }

    fn plain(input: u8) -> Call {
        Call { input: [input; 32], fence: None, keep: None }
    }

    fn success() -> &'static str {
        "1"
    }

    fn keeping(results_max: usize, bytes_max: u64) -> State<i32, &'static str> {
        State::new(Config { results_max, bytes_max, keep: Duration::from_secs(60) })
    }

    /// A call that runs and ends with a result of so many bytes.
    fn done(state: &mut State<i32, &'static str>, word: &str, bytes: u64, second: u64) {
        assert_eq!(state.on_call(key(word), plain(0), 0, s(second)), Verdict::Run(0), "{word}");
        assert_eq!(state.handle_done(&key(word), Some((success(), bytes)), s(second)), [0_i32; 0]);
    }

    fn is_kept(state: &State<i32, &'static str>, word: &str) -> bool {
        state.entries_by_key.contains_key(&Placed::new(&key(word)))
    }

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn callers_with_one_key_share_one_run() {
        let mut state: State<i32, &str> = keeping(10, 100);
        assert_eq!(state.on_call(key("k"), plain(0), 1, Duration::ZERO), Verdict::Run(1));
        assert_eq!(state.on_call(key("k"), plain(0), 2, Duration::ZERO), Verdict::Wait);
        assert_eq!(state.handle_done(&key("k"), Some((success(), 1)), Duration::ZERO), [2]);
        assert_eq!(state.on_call(key("k"), plain(0), 3, Duration::ZERO), Verdict::Done(3, success()));
    }

    #[test]
    fn a_key_with_another_input_is_a_conflict() {
        let mut state: State<i32, &str> = keeping(10, 100);
        assert_eq!(state.on_call(key("k"), plain(0), 1, Duration::ZERO), Verdict::Run(1));
        assert!(
            matches!(state.on_call(key("k"), plain(1), 2, Duration::ZERO), Verdict::Refuse(2, failure) if failure.code == ErrorCode::Conflict)
        );
    }

    #[test]
    fn a_failed_call_may_be_tried_again() {
        let mut state: State<i32, &str> = keeping(10, 100);
        assert_eq!(state.on_call(key("k"), plain(0), 1, Duration::ZERO), Verdict::Run(1));
        state.handle_done(&key("k"), None, Duration::ZERO);
        assert_eq!(state.on_call(key("k"), plain(0), 2, Duration::ZERO), Verdict::Run(2));
    }

    #[test]
    fn results_are_kept_for_a_while_and_within_a_bound() {
        let mut state: State<i32, &str> = keeping(2, 100);
        for word in ["a", "b", "c"] {
            assert_eq!(state.on_call(key(word), plain(0), 0, Duration::ZERO), Verdict::Run(0));
            state.handle_done(&key(word), Some((success(), 1)), Duration::ZERO);
        }
        assert_eq!(state.len(), 2);
        assert_eq!(state.on_call(key("c"), plain(0), 0, Duration::from_secs(61)), Verdict::Run(0));
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
        assert_eq!(state.on_call(key("d"), plain(0), 1, s(3)), Verdict::Run(1), "its key is free again");
    }

    #[test]
    fn a_result_larger_than_all_the_room_reaches_who_waits_and_is_not_kept() {
        let mut state = keeping(10, 100);
        done(&mut state, "small", 60, 0);
        assert_eq!(state.on_call(key("large"), plain(0), 1, s(1)), Verdict::Run(1));
        assert_eq!(state.on_call(key("large"), plain(0), 2, s(1)), Verdict::Wait);
        assert_eq!(state.handle_done(&key("large"), Some((success(), 101)), s(1)), [2]);
        assert_eq!((state.len(), state.bytes), (1, 60), "nobody else has to make room for what is not kept");
        assert_eq!(state.on_call(key("large"), plain(0), 3, s(1)), Verdict::Run(3), "as after its time, a repeat runs again");
    }

    /// Threat T23: one peer cannot flush what is kept for the others.
    #[test]
    fn the_caller_that_holds_the_most_makes_room() {
        let keep = |state: &mut State<i32, &'static str>, caller, word: &str, bytes, second| {
            assert_eq!(state.on_call(key_of(caller, word), plain(0), 0, s(second)), Verdict::Run(0), "{word}");
            state.handle_done(&key_of(caller, word), Some((success(), bytes)), s(second));
        };
        let mut state = keeping(4, 100);
        keep(&mut state, 1, "first", 1, 0);
        for second in 1..50 {
            keep(&mut state, 2, &second.to_string(), 1, second);
        }
        assert!(state.entries_by_key.contains_key(&Placed::new(&key_of(1, "first"))), "many small ones");
        keep(&mut state, 2, "large", 100, 50);
        assert!(state.entries_by_key.contains_key(&Placed::new(&key_of(1, "first"))), "a large one");
        assert!(!state.entries_by_key.contains_key(&Placed::new(&key_of(2, "large"))), "there is no room left for it");
    }

    #[test]
    fn a_run_under_way_stays_whatever_is_kept() {
        let mut state = keeping(1, 100);
        assert_eq!(state.on_call(key("running"), plain(0), 1, s(0)), Verdict::Run(1));
        for second in 1..200 {
            done(&mut state, &second.to_string(), 100, second);
        }
        assert_eq!(state.on_call(key("running"), plain(0), 2, s(200)), Verdict::Wait);
        assert_eq!(state.handle_done(&key("running"), Some((success(), 1)), s(200)), [2]);
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

    /// AITP-6: a stale attempt of a step cannot begin anew, nor take the result of a later one.
    #[test]
    fn an_attempt_below_one_that_was_seen_is_refused() {
        let attempt = |attempt| Call { fence: Some(Fence { epoch: 1, attempt }), ..plain(0) };
        let refused = |verdict| matches!(verdict, Verdict::Refuse(_, Failure { code: ErrorCode::Conflict, .. }));
        let mut state = keeping(10, 100);
        assert_eq!(state.on_call(key("k"), attempt(2), 1, s(0)), Verdict::Run(1));
        assert!(refused(state.on_call(key("k"), attempt(1), 2, s(0))));
        assert_eq!(state.on_call(key("k"), attempt(3), 3, s(0)), Verdict::Wait, "the same work, asked for again");
        assert_eq!(state.handle_done(&key("k"), Some((success(), 1)), s(1)), [3]);
        assert!(refused(state.on_call(key("k"), attempt(2), 4, s(1))));
        assert_eq!(state.on_call(key("k"), attempt(4), 5, s(1)), Verdict::Done(5, success()));
    }

    /// AITP-4, F10: what a step's owner calls the same is the same, although its input tells of another moment; for a call it is not.
    #[test]
    fn the_key_of_a_step_says_alone_which_work_it_is() {
        let step = |input| Call { fence: Some(Fence { epoch: 1, attempt: 1 }), ..plain(input) };
        let mut state = keeping(10, 100);
        assert_eq!(state.on_call(key("k"), step(1), 1, s(0)), Verdict::Run(1));
        assert_eq!(state.on_call(key("k"), step(2), 2, s(0)), Verdict::Wait);
        let refused = state.on_call(key("k"), plain(2), 3, s(0));
        assert!(matches!(refused, Verdict::Refuse(3, Failure { code: ErrorCode::Conflict, .. })), "{refused:?}");
        state.handle_done(&key("k"), Some((success(), 1)), s(1));
        assert_eq!(state.on_call(key("k"), step(3), 4, s(1)), Verdict::Done(4, success()));
    }

    /// Fault F10: what was kept before a restart answers after it; what had only begun is run again, and its fence holds.
    #[test]
    fn what_a_start_finds_answers_as_before() {
        let attempt = |attempt| Call { fence: Some(Fence { epoch: 1, attempt }), keep: Some(s(100)), ..plain(0) };
        let mut state = keeping(10, 100);
        for word in ["done", "begun", "failed", "old"] {
            state.restore_begun(key(word), attempt(2), s(10));
        }
        state.restore_done(&key("done"), success(), 7, s(20));
        state.restore_done(&key("old"), success(), 5, s(0));
        state.release(&key("failed"));

        assert_eq!(state.on_call(key("done"), attempt(3), 1, s(110)), Verdict::Done(1, success()));
        assert_eq!(state.bytes, 7, "the old one is over");
        assert!(matches!(state.on_call(key("begun"), attempt(1), 1, s(109)), Verdict::Run(1)), "its time is over as well");
        assert_eq!(state.on_call(key("failed"), attempt(1), 1, s(30)), Verdict::Run(1));

        state.restore_begun(key("again"), attempt(2), s(110));
        assert!(matches!(state.on_call(key("again"), attempt(1), 1, s(111)), Verdict::Refuse(..)));
        assert_eq!(state.on_call(key("again"), attempt(2), 1, s(111)), Verdict::Run(1));
        assert_eq!(state.take_forgotten(), [success()], "so that what it took of the disk can be freed");
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
                prop_assert_eq!(state.on_call(key.clone(), plain(0), 0, s(0)), Verdict::Run(0));
                state.handle_done(&key, Some((success(), bytes)), Duration::from_millis(number));
                if bytes <= BYTES_MAX {
                    kept.insert(key, bytes);
                }
                let share = |kept: &BTreeMap<Key, u64>, caller: NodeId| {
                    let own = kept.iter().filter(|(key, _)| key.2 == caller);
                    (own.clone().count(), own.map(|(_, bytes)| bytes).sum::<u64>())
                };
                let before = kept.clone();
                kept.retain(|key, _| state.entries_by_key.contains_key(&Placed::new(key)));
                let callers: BTreeSet<NodeId> = before.keys().map(|key| key.2).collect();
                for caller in callers {
                    let (count, bytes) = share(&before, caller);
                    let within = count <= RESULTS_MAX / usize::from(CALLERS) && bytes <= BYTES_MAX / u64::from(CALLERS);
                    prop_assert!(!within || share(&kept, caller) == (count, bytes), "it held no more than its share");
                    let counted = state.kept_by_caller.get(&caller).map_or((0, 0), |kept| (kept.ends.len(), kept.bytes));
                    prop_assert_eq!(counted, share(&kept, caller));
                }
                prop_assert!(state.keys_by_end.len() <= RESULTS_MAX && state.bytes <= BYTES_MAX);
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
                        match state.on_call(key(WORDS[word]), plain(input), callers, now) {
                            Verdict::Run(waiter) => {
                                prop_assert_eq!(waiter, callers);
                                prop_assert_eq!(unanswered.insert(word, BTreeSet::from([waiter])), None, "a second run");
                            }
                            Verdict::Wait => prop_assert!(unanswered.get_mut(&word).expect("a run to wait for").insert(callers)),
                            Verdict::Done(waiter, _) | Verdict::Refuse(waiter, _) => prop_assert_eq!(waiter, callers),
                        }
                    }
                    Op::Done { word, good } => {
                        let waited = state.handle_done(&key(WORDS[word]), good.map(|bytes| ("1", bytes)), now);
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
                    Progress::Running(_) | Progress::Interrupted { .. } => None,
                });
                prop_assert_eq!((kept.clone().count(), kept.sum::<u64>()), (state.keys_by_end.len(), state.bytes));
                prop_assert!(state.keys_by_end.len() <= 3 && state.bytes <= 100);
                prop_assert_eq!(state.len(), state.keys_by_end.len() + unanswered.len());
            }
        }
    }

    #[test]
    fn the_result_of_a_step_is_told_from_those_of_other_calls() {
        let mut state = keeping(10, 100);
        let fence = Some(Fence { epoch: 1, attempt: 2 });
        let step = Call { fence, keep: Some(s(90)), ..plain(0) };
        assert_eq!(state.on_call(key("step"), step, 0, s(0)), Verdict::Run(0));
        assert_eq!(state.step(&key("step")), None, "it has no result");
        state.handle_done(&key("step"), Some((success(), 1)), s(1));
        done(&mut state, "plain", 1, 1);
        assert_eq!(state.step(&key("step")), fence.map(|fence| (fence, s(91))));
        assert_eq!((state.step(&key("plain")), state.step(&key("none"))), (None, None));
    }
}
