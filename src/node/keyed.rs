//! One run for all calls with one idempotency key (the rules are in `proto::invocation::dedup`).

use std::sync::Mutex;

use tokio::sync::oneshot;

use super::clock::Clock;
use super::shared::lock;
use crate::model::Failure;
use crate::proto::invocation::dedup::{Admission, Key, State};

/// Whoever waits for a call that runs under the same key.
pub(super) type Waiter<R> = oneshot::Sender<Result<R, Failure>>;
/// Calls by key, with the results that are kept.
pub(super) type Calls<R> = Mutex<State<Waiter<R>, R>>;

/// Runs `run`, or waits for the call that runs under `key`, or returns the result that is kept. `joined` is told when it waits;
/// `broke_off` is the failure of those who waited for a run that was dropped.
pub(super) async fn once<R: Clone>(
    calls: &Calls<R>,
    clock: Clock,
    key: Key,
    input: &[u8],
    joined: impl FnOnce(),
    broke_off: Failure,
    run: impl Future<Output = Result<R, Failure>>,
) -> Result<R, Failure> {
    let input = *blake3::hash(input).as_bytes();
    let (reply, answer) = oneshot::channel();
    let admission = lock(calls).on_call(key.clone(), input, reply, clock.now().mono);
    match admission {
        Admission::Done(_, result) => Ok(result),
        Admission::Refuse(_, failure) => Err(failure),
        Admission::Wait => {
            joined();
            answer.await.unwrap_or(Err(broke_off))
        }
        Admission::Run(_) => {
            let mut running = Running { calls, clock, key: Some(key) };
            let result = run.await;
            running.settle(Some(&result));
            result
        }
    }
}

/// Settles those who wait, also when the run is dropped: their channels close.
struct Running<'a, R: Clone> {
    calls: &'a Calls<R>,
    clock: Clock,
    key: Option<Key>,
}

impl<R: Clone> Running<'_, R> {
    fn settle(&mut self, result: Option<&Result<R, Failure>>) {
        let Some(key) = self.key.take() else { return };
        let good = result.and_then(|result| result.as_ref().ok());
        let waiters = lock(self.calls).handle_done(&key, good, self.clock.now().mono);
        for (waiter, result) in waiters.into_iter().filter_map(|waiter| Some((waiter, result?))) {
            let _ = waiter.send(result.clone());
        }
    }
}

impl<R: Clone> Drop for Running<'_, R> {
    fn drop(&mut self) {
        self.settle(None);
    }
}
