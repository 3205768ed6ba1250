//! Calls with one idempotency key are one call.
//!
//! A key belongs to its caller: two peers that choose the same word do not meet. The first call with a key runs; others with the same
//! key and the same input wait for it and get the same result; with another input they are refused. Only good results are kept, for a
//! while and within a bound, so a failed call may be tried again under its key.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::model::{AgentId, ErrorCode, Failure, NodeId};

/// Whose key, for which agent, and which.
pub type Key = (NodeId, AgentId, String);

/// What to do with a call that carries a key.
#[derive(Debug, PartialEq)]
pub enum Admission<W, R> {
    /// Nobody runs it: run it, then report with [`State::handle_done`]. The waiter is given back.
    Run(W),
    /// It is being run; the waiter is kept and comes back with the result.
    Wait,
    /// It was done before.
    Done(W, R),
    /// The key stands for another input, or too many wait.
    Refuse(W, Failure),
}

#[derive(Debug)]
struct Entry<W, R> {
    input: [u8; 32],
    state: Progress<W, R>,
}

#[derive(Debug)]
enum Progress<W, R> {
    Running(Vec<W>),
    Done(R),
}

/// Calls by key. `W` is what the shell needs to answer a caller, `R` a good result.
#[derive(Debug)]
pub struct State<W, R> {
    entries_by_key: BTreeMap<Key, Entry<W, R>>,
    keys_by_age: std::collections::BTreeSet<(Duration, Key)>,
    results_max: usize,
    keep: Duration,
}

/// Callers that may wait for one running call.
const WAITERS_MAX: usize = 64;

impl<W, R: Clone> State<W, R> {
    /// Keeps at most `results_max` results, each for `keep`.
    pub fn new(results_max: usize, keep: Duration) -> Self {
        Self { entries_by_key: BTreeMap::new(), keys_by_age: Default::default(), results_max, keep }
    }

    /// A call with `key` and an input of this hash has come.
    pub fn on_call(&mut self, key: Key, input: [u8; 32], waiter: W, now: Duration) -> Admission<W, R> {
        self.expire(now);
        let Some(entry) = self.entries_by_key.get_mut(&key) else {
            self.entries_by_key.insert(key, Entry { input, state: Progress::Running(Vec::new()) });
            return Admission::Run(waiter);
        };
        if entry.input != input {
            let message = format!("the idempotency key `{}` was used before with another input", key.2);
            return Admission::Refuse(waiter, Failure::new(ErrorCode::Conflict, message));
        }
        match &mut entry.state {
            Progress::Done(result) => Admission::Done(waiter, result.clone()),
            Progress::Running(waiters) if waiters.len() >= WAITERS_MAX => {
                let failure = Failure::new(ErrorCode::Busy, "too many callers wait for this idempotency key");
                Admission::Refuse(waiter, failure.with("retry_after_ms", 500))
            }
            Progress::Running(waiters) => {
                waiters.push(waiter);
                Admission::Wait
            }
        }
    }

    /// The call that was run is over, with a result to keep if it went well. Returns those who waited for it.
    pub fn handle_done(&mut self, key: &Key, result: Option<&R>, now: Duration) -> Vec<W> {
        let Some(entry) = self.entries_by_key.get_mut(key) else { return Vec::new() };
        let waiters = match &mut entry.state {
            Progress::Running(waiters) => std::mem::take(waiters),
            Progress::Done(_) => return Vec::new(),
        };
        match result {
            Some(success) => {
                entry.state = Progress::Done(success.clone());
                self.keys_by_age.insert((now, key.clone()));
                while self.keys_by_age.len() > self.results_max {
                    if let Some((_, oldest)) = self.keys_by_age.pop_first() {
                        self.entries_by_key.remove(&oldest);
                    }
                }
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
        while let Some((at, key)) = self.keys_by_age.first() {
            if at.saturating_add(self.keep) > now {
                break;
            }
            self.entries_by_key.remove(key);
            self.keys_by_age.pop_first();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(word: &str) -> Key {
        let node = libp2p_identity::PeerId::from_bytes(&[0, 1, 7]).expect("a short identity hash");
        (node.into(), AgentId::from_public_key([1; 32]), word.to_owned())
    }

    fn success() -> &'static str {
        "1"
    }

    #[test]
    fn callers_with_one_key_share_one_run() {
        let mut state: State<i32, &str> = State::new(10, Duration::from_secs(60));
        assert_eq!(state.on_call(key("k"), [0; 32], 1, Duration::ZERO), Admission::Run(1));
        assert_eq!(state.on_call(key("k"), [0; 32], 2, Duration::ZERO), Admission::Wait);
        assert_eq!(state.handle_done(&key("k"), Some(&success()), Duration::ZERO), [2]);
        assert_eq!(state.on_call(key("k"), [0; 32], 3, Duration::ZERO), Admission::Done(3, success()));
    }

    #[test]
    fn a_key_with_another_input_is_a_conflict() {
        let mut state: State<i32, &str> = State::new(10, Duration::from_secs(60));
        assert_eq!(state.on_call(key("k"), [0; 32], 1, Duration::ZERO), Admission::Run(1));
        assert!(
            matches!(state.on_call(key("k"), [1; 32], 2, Duration::ZERO), Admission::Refuse(2, failure) if failure.code == ErrorCode::Conflict)
        );
    }

    #[test]
    fn a_failed_call_may_be_tried_again() {
        let mut state: State<i32, &str> = State::new(10, Duration::from_secs(60));
        assert_eq!(state.on_call(key("k"), [0; 32], 1, Duration::ZERO), Admission::Run(1));
        state.handle_done(&key("k"), None, Duration::ZERO);
        assert_eq!(state.on_call(key("k"), [0; 32], 2, Duration::ZERO), Admission::Run(2));
    }

    #[test]
    fn results_are_kept_for_a_while_and_within_a_bound() {
        let mut state: State<i32, &str> = State::new(2, Duration::from_secs(60));
        for word in ["a", "b", "c"] {
            assert_eq!(state.on_call(key(word), [0; 32], 0, Duration::ZERO), Admission::Run(0));
            state.handle_done(&key(word), Some(&success()), Duration::ZERO);
        }
        assert_eq!(state.len(), 2);
        assert_eq!(state.on_call(key("c"), [0; 32], 0, Duration::from_secs(61)), Admission::Run(0));
    }
}
