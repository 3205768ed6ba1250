//! Which results of tasks' steps a lane has surely brought to their owner (design/tasks.md, "Fences and idempotency").
//!
//! What was written to a lane is not therefore read: a peer that is gone, or a network that is cut, takes it in silence. A caller that hears
//! nothing ends its lane after [`DEAD_AFTER`], and what is read from a lane comes in the order in which it was written. So once the caller is
//! heard that long after a result was written, it has the result. All others are in doubt when the lane ends, however it ends. Doubt costs
//! one question ([`super::outbox`]), so it may be wrong in that direction only.

use std::collections::VecDeque;
use std::time::Duration;

use super::client::DEAD_AFTER;
use super::dedup::Key;

/// Results of one lane that may be in doubt: more than are written in [`DEAD_AFTER`]. Beyond it the oldest pass for delivered.
const IN_DOUBT_MAX: usize = 16_384;

/// The results of one lane, with when each was written.
#[derive(Debug, Default)]
pub struct State {
    in_doubt: VecDeque<(Duration, Key)>,
}

impl State {
    /// A result was written.
    pub fn handle_written(&mut self, key: Key, now: Duration) {
        if self.in_doubt.len() >= IN_DOUBT_MAX {
            self.in_doubt.pop_front();
        }
        self.in_doubt.push_back((now, key));
    }

    /// The caller was heard.
    pub fn on_heard(&mut self, now: Duration) {
        while self.in_doubt.front().is_some_and(|(written, _)| written.saturating_add(DEAD_AFTER) <= now) {
            self.in_doubt.pop_front();
        }
    }

    /// The lane is gone: what it may not have brought to its owner.
    pub fn on_closed(&mut self) -> Vec<Key> {
        std::mem::take(&mut self.in_doubt).into_iter().map(|(_, key)| key).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::model::AgentId;

    fn key(word: &str) -> Key {
        let node = libp2p_identity::PeerId::from_bytes(&[0, 1, 7]).expect("a short identity hash");
        Arc::new((word.to_owned(), AgentId::from_public_key([1; 32]), node.into()))
    }

    fn written(at_ms: &[u64]) -> State {
        let mut state = State::default();
        at_ms.iter().for_each(|ms| state.handle_written(key(&ms.to_string()), Duration::from_millis(*ms)));
        state
    }

    fn in_doubt(mut state: State) -> Vec<String> {
        state.on_closed().iter().map(|key| key.0.clone()).collect()
    }

    #[test]
    fn what_is_written_is_in_doubt_until_the_caller_is_heard_long_after() {
        let mut state = written(&[0, 100, 1_500]);
        state.on_heard(Duration::from_millis(1_999));
        assert_eq!(state.in_doubt.len(), 3, "what was on its way when the result was written says nothing of it");
        state.on_heard(Duration::from_millis(2_100));
        assert_eq!(in_doubt(state), ["1500"]);
    }

    #[test]
    fn a_lane_in_silence_keeps_its_doubts_however_long_it_stands() {
        let mut state = written(&[0, 60_000]);
        assert_eq!(state.on_closed().len(), 2);
        assert_eq!(state.on_closed().len(), 0, "each is told once");
    }

    #[test]
    fn doubts_are_bounded() {
        let at: Vec<u64> = (0..IN_DOUBT_MAX as u64 + 1).collect();
        let left = in_doubt(written(&at));
        assert_eq!((left.len(), left[0].as_str()), (IN_DOUBT_MAX, "1"));
    }
}
