//! Results of tasks' steps that may not have reached their home node, as its side of the agent sees it (the rules are in
//! `proto::invocation::outbox`).
//!
//! A result comes here when its lane ended before it was surely read, when nobody was there any more to be given it, and when a large one could
//! not be pushed. What a crash made of all that nobody knows, so a start asks about every result that is kept: nothing of the outbox is on the disk
//! but the results themselves. The home node is told that there is a result, and asks for it by the call that it was the answer to.

use crate::model::{NodeId, Now, Timestamp};
use crate::node::shared::lock;
use crate::proto::invocation::dedup::{Key, Standing};
use crate::wire::outbox::{KeptResult, Word};

use super::kept::Keep;
use super::keyed::Calls;

/// What one home node is told of, in the order of the keys.
pub(in crate::node) struct Told {
    pub(in crate::node) home: NodeId,
    pub(in crate::node) keys: Vec<Key>,
    pub(in crate::node) results: Vec<KeptResult>,
}

impl<R: Keep> Calls<R> {
    /// The results under these keys may not have reached their owner.
    pub(in crate::node) fn undelivered(&self, keys: &[Key]) {
        let now = self.clock.mono();
        for key in keys {
            let Some((_, until)) = lock(&self.runs).state.step(key) else { continue };
            let until = Timestamp::from_ms(u64::try_from(until.as_millis()).unwrap_or(u64::MAX));
            lock(&self.outbox).handle_undelivered(key.clone(), until, now);
        }
    }

    /// Nobody knows any more which of the results that a start found have reached their owner.
    pub(in crate::node) fn doubt_all(&self) {
        let keys: Vec<Key> = {
            let runs = lock(&self.runs);
            let kept = runs.state.following(None);
            kept.filter(|(_, call, standing)| call.fence.is_some() && matches!(standing, Standing::Done { .. }))
                .map(|(key, ..)| key.clone())
                .collect()
        };
        self.undelivered(&keys);
    }

    /// A home node is there again.
    pub(in crate::node) fn on_home_connected(&self, home: NodeId) {
        lock(&self.outbox).on_connected(home, self.clock.mono());
    }

    /// Who is to be told of what now.
    pub(in crate::node) fn due(&self, now: Now, is_connected: impl Fn(NodeId) -> bool) -> Vec<Told> {
        let due = lock(&self.outbox).handle_tick(now.mono, now.wall, is_connected);
        let mut told = Vec::new();
        for (home, keys) in due {
            let (mut kept, mut results) = (Vec::new(), Vec::new());
            for key in keys {
                let step = lock(&self.runs).state.step(&key);
                match (step, key.0.split_once('\n')) {
                    (Some((fence, _)), Some((_, word))) => {
                        results.push(KeptResult { agent: key.1, key: word.to_owned(), epoch: fence.epoch, attempt: fence.attempt });
                        kept.push(key);
                    }
                    // It made room for others.
                    _ => lock(&self.outbox).remove(&key),
                }
            }
            if kept.is_empty() {
                self.on_words(home, &[], &[], now);
            } else {
                told.push(Told { home, keys: kept, results });
            }
        }
        told
    }

    /// A home node has said something of these results; nothing, where it gave no answer.
    pub(in crate::node) fn on_words(&self, home: NodeId, keys: &[Key], words: &[Word], now: Now) {
        lock(&self.outbox).on_words(home, keys, words, now.mono);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use bytes::Bytes;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::model::AgentId;
    use crate::node::clock::Clock;
    use crate::node::invocation::kept::{Commits, Results};
    use crate::node::invocation::keyed::Ask;
    use crate::node::task::TaskClock;
    use crate::proto::invocation::dedup::{Call, Config};
    use crate::wire::invocation::{Body, Fence, Success};
    use crate::wire::kept::Side;

    /// F10: a start asks about each result of a step that is kept, and of no other call; what made room for others is told of to nobody.
    #[tokio::test]
    async fn a_start_is_in_doubt_about_every_result_of_a_step() {
        let (folder, clock) = (tempfile::tempdir().expect("a folder"), Clock::start());
        let dir = crate::store::DataDir::open(folder.path()).expect("a data directory");
        let (journal, _) = dir.journal(crate::store::journal::Config::default()).expect("a journal");
        let results = Results { side: Side::Agent, commits: Commits::new(journal), blobs: dir.blobs(), clock: TaskClock::new(clock) };
        let config = Config { results_max: 2, bytes_max: 1_024, keep: Duration::from_secs(60) };
        let calls = Arc::new(Calls::new(config, results, clock));
        let (home, agent): (NodeId, _) = (libp2p::PeerId::random().into(), AgentId::from_public_key([1; 32]));
        let done = async |word: &str, fence: Option<Fence>| {
            let (key, cancel) = (Arc::new((format!("echo\n{word}"), agent, home)), CancellationToken::new());
            let call = Call { input: [0; 32], fence, keep: fence.map(|_| Duration::from_secs(30)) };
            let ask = Ask { key, call, durable: true, handover: None, deadline: Duration::from_secs(60), cancel: &cancel };
            let run = |_, _| async { Ok(Success { units: None, execution_us: 0, body: Body::Inline(Bytes::from_static(b"1")) }) };
            calls.once(ask, || {}, run).await.expect("it goes well");
        };
        done("step", Some(Fence { epoch: 1, attempt: 3 })).await;
        done("plain", None).await;

        calls.doubt_all();
        assert!(calls.due(clock.now(), |_| false).is_empty());
        let [told] = &calls.due(clock.now(), |node| node == home)[..] else { panic!("one home node") };
        assert_eq!(told.results, [KeptResult { agent, key: "step".to_owned(), epoch: 1, attempt: 3 }]);
        calls.on_words(home, &told.keys, &[Word::Wanted], clock.now());
        done("more", None).await;
        done("and more", None).await;
        calls.on_home_connected(home);
        assert!(calls.due(clock.now(), |_| true).is_empty(), "it is not kept any more");
        calls.doubt_all();
        assert!(calls.outbox.lock().expect("nobody panicked").is_empty());
    }
}
