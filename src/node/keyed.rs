//! One run for all calls with one idempotency key (the rules are in `proto::invocation::dedup`).
//!
//! The run belongs to nobody's connection: it goes on while anybody waits for it, so a client that lost its connection and comes back
//! with its key finds its call still running. Each who waits keeps to a deadline and a cancel of its own. When the last one is gone, the
//! run is told to stop.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::clock::Clock;
use super::shared::lock;
use crate::model::{ErrorCode, Failure};
use crate::proto::invocation::dedup::{Admission, Key, State};

type Waiter<R> = oneshot::Sender<Result<R, Failure>>;

/// Calls by key, with the results that are kept.
pub(super) struct Calls<R> {
    state: Mutex<State<Waiter<R>, R>>,
    /// What keeps each run going: held by everybody who waits for it.
    interest_by_key: Mutex<BTreeMap<Key, Weak<DropGuard>>>,
    clock: Clock,
}

/// Who asks, and how long it waits.
pub(super) struct Ask<'a> {
    /// Names the call.
    pub(super) key: Key,
    /// What must be the same for the same key.
    pub(super) input: [u8; 32],
    /// When the asker gives up, since the start of the node.
    pub(super) deadline: Duration,
    /// Cancelled when the asker no longer waits.
    pub(super) cancel: &'a CancellationToken,
}

impl<R: Clone + Send + 'static> Calls<R> {
    /// Keeps at most `results_max` results, each for `keep`.
    pub(super) fn new(results_max: usize, keep: Duration, clock: Clock) -> Self {
        Self { state: Mutex::new(State::new(results_max, keep)), interest_by_key: Mutex::default(), clock }
    }

    /// Starts what `run` makes, or waits for the call that runs under the key, or returns the result that is kept. `joined` is told when
    /// it waits for somebody else's run. `run` gets a token that is cancelled when nobody waits any more.
    pub(super) async fn once<F>(
        self: &Arc<Self>,
        ask: Ask<'_>,
        joined: impl FnOnce(),
        run: impl FnOnce(CancellationToken) -> F,
    ) -> Result<R, Failure>
    where
        F: Future<Output = Result<R, Failure>> + Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        let admission = lock(&self.state).on_call(ask.key.clone(), ask.input, reply, self.clock.now().mono);
        let _interest = match admission {
            Admission::Done(_, result) => return Ok(result),
            Admission::Refuse(_, failure) => return Err(failure),
            Admission::Wait => {
                joined();
                lock(&self.interest_by_key).get(&ask.key).and_then(Weak::upgrade)
            }
            Admission::Run(reply) => Some(self.start(ask.key, reply, run)),
        };
        let until = self.clock.zero() + ask.deadline;
        tokio::select! {
            answer = answer => answer.unwrap_or_else(|_| Err(Failure::new(ErrorCode::AgentFailed, "the call that ran under this key broke off"))),
            () = ask.cancel.cancelled() => Err(Failure::new(ErrorCode::Cancelled, "the call was cancelled")),
            () = tokio::time::sleep_until(until) => {
                Err(Failure::new(ErrorCode::Timeout, "the call that runs under this key did not end before the deadline"))
            }
        }
    }

    fn start<F>(self: &Arc<Self>, key: Key, reply: Waiter<R>, run: impl FnOnce(CancellationToken) -> F) -> Arc<DropGuard>
    where
        F: Future<Output = Result<R, Failure>> + Send + 'static,
    {
        let stop = CancellationToken::new();
        let interest = Arc::new(stop.clone().drop_guard());
        lock(&self.interest_by_key).insert(key.clone(), Arc::downgrade(&interest));
        let settle = Settle { calls: Arc::clone(self), key };
        let run = run(stop);
        tokio::spawn(async move {
            let result = run.await;
            for waiter in settle.calls.finish(&settle.key, result.as_ref().ok()).into_iter().chain([reply]) {
                let _ = waiter.send(result.clone());
            }
        });
        interest
    }

    fn finish(&self, key: &Key, good: Option<&R>) -> Vec<Waiter<R>> {
        lock(&self.interest_by_key).remove(key);
        lock(&self.state).handle_done(key, good, self.clock.now().mono)
    }
}

/// Frees the key also if the run breaks off; those who wait then see their channels close.
struct Settle<R: Clone + Send + 'static> {
    calls: Arc<Calls<R>>,
    key: Key,
}

impl<R: Clone + Send + 'static> Drop for Settle<R> {
    fn drop(&mut self) {
        // After a finished run this finds a kept result or nothing, and changes neither.
        drop(self.calls.finish(&self.key, None));
    }
}
