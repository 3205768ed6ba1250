//! One run for all calls with one idempotency key (the rules are in `proto::invocation::dedup`).
//!
//! The run belongs to nobody's connection: it goes on while anybody waits for it, so a client that lost its connection and comes back
//! with its key finds its call still running. Each who waits keeps to a deadline and a cancel of its own: the run is made with the deadline of
//! whoever came first, so when that one's time is up, the next who has time left runs the call anew. When the last one is gone, the run is
//! told to stop.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::model::{ErrorCode, Failure};
use crate::node::clock::Clock;
use crate::node::shared::lock;
use crate::proto::invocation::dedup::{Config, Key, State, Verdict};

type Waiter<R> = oneshot::Sender<Result<R, Failure>>;

/// By so much a run may seem to end before its deadline: deadlines travel in whole milliseconds, to clocks that tick apart.
const ROUNDED: Duration = Duration::from_millis(50);

/// Calls by key, with the results that are kept.
pub(in crate::node) struct Calls<R> {
    runs: Mutex<Runs<R>>,
    /// How many bytes a result has.
    size: fn(&R) -> u64,
    clock: Clock,
}

/// Under one lock, so that nobody meets a run without what keeps it going.
struct Runs<R> {
    state: State<Waiter<R>, R>,
    /// What keeps each run going: held by everybody who waits for it.
    interest_by_key: BTreeMap<Key, (Weak<DropGuard>, Duration)>,
}

/// How a call stands to its key.
enum Place<R> {
    /// It was done before.
    Done(R),
    /// It is to be run, for this waiter.
    Run(CancellationToken, Waiter<R>, Arc<DropGuard>),
    /// It waits for a run that goes on.
    Joined(Arc<DropGuard>, Duration),
    /// Everybody else has left, and the run is being stopped: its end is waited for, then the key is free.
    Doomed,
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
    /// No call yet. `size` is how many bytes of what `config` leaves room for a result takes.
    pub(in crate::node) fn new(config: Config, size: fn(&R) -> u64, clock: Clock) -> Self {
        Self { runs: Mutex::new(Runs { state: State::new(config), interest_by_key: BTreeMap::new() }), size, clock }
    }

    /// Starts what `run` makes, or waits for the call that runs under the key, or returns the result that is kept. `joined` is told when
    /// it waits for somebody else's run. `run` gets a token that is cancelled when nobody waits any more.
    pub(super) async fn once<F>(
        self: &Arc<Self>,
        ask: Ask<'_>,
        joined: impl Fn(),
        run: impl FnOnce(CancellationToken) -> F,
    ) -> Result<R, Failure>
    where
        F: Future<Output = Result<R, Failure>> + Send + 'static,
    {
        let broke_off = || Failure::new(ErrorCode::AgentFailed, "the call that ran under this key broke off");
        // Each turn outlasts somebody else's run, and the asker's own deadline ends them all.
        loop {
            let (reply, answer) = oneshot::channel();
            match self.place(&ask, reply)? {
                Place::Done(result) => return Ok(result),
                Place::Run(stop, reply, _interest) => {
                    self.start(ask.key.clone(), reply, run(stop));
                    return self.wait(&ask, answer).await?.unwrap_or_else(|| Err(broke_off()));
                }
                Place::Joined(_interest, deadline) => {
                    joined();
                    let ended = self.wait(&ask, answer).await?.unwrap_or_else(|| Err(broke_off()));
                    let now = self.clock.mono();
                    let was_up = deadline <= now.saturating_add(ROUNDED);
                    // What is for good is what the agent itself said; the rest is up to the patience of whoever came first.
                    let is_late =
                        |failure: &Failure| failure.code == ErrorCode::Timeout && now < ask.deadline && (was_up || failure.retryable);
                    if !ended.as_ref().is_err_and(is_late) {
                        return ended;
                    }
                }
                Place::Doomed => drop(self.wait(&ask, answer).await?),
            }
        }
    }

    /// Waits for the end of a run, as long as the asker does. `None` if the run broke off.
    async fn wait(&self, ask: &Ask<'_>, answer: oneshot::Receiver<Result<R, Failure>>) -> Result<Option<Result<R, Failure>>, Failure> {
        tokio::select! {
            ended = answer => Ok(ended.ok()),
            () = ask.cancel.cancelled() => Err(Failure::new(ErrorCode::Cancelled, "the call was cancelled")),
            () = tokio::time::sleep_until(self.clock.zero() + ask.deadline) => {
                Err(Failure::new(ErrorCode::Timeout, "the call that runs under this key did not end before the deadline"))
            }
        }
    }

    fn place(&self, ask: &Ask<'_>, reply: Waiter<R>) -> Result<Place<R>, Failure> {
        let runs = &mut *lock(&self.runs);
        match runs.state.on_call(ask.key.clone(), ask.input, reply, self.clock.now().mono) {
            Verdict::Done(_, result) => Ok(Place::Done(result)),
            Verdict::Refuse(_, failure) => Err(failure),
            Verdict::Wait => {
                let runs = runs.interest_by_key.get(&ask.key);
                let interest = runs.and_then(|(interest, deadline)| Some((interest.upgrade()?, *deadline)));
                Ok(interest.map_or(Place::Doomed, |(interest, deadline)| Place::Joined(interest, deadline)))
            }
            Verdict::Run(reply) => {
                let stop = CancellationToken::new();
                let interest = Arc::new(stop.clone().drop_guard());
                runs.interest_by_key.insert(ask.key.clone(), (Arc::downgrade(&interest), ask.deadline));
                Ok(Place::Run(stop, reply, interest))
            }
        }
    }

    fn start(self: &Arc<Self>, key: Key, reply: Waiter<R>, run: impl Future<Output = Result<R, Failure>> + Send + 'static) {
        let mut running = Running { calls: Arc::clone(self), key: Some(key) };
        tokio::spawn(async move {
            let result = run.await;
            for waiter in running.finish(result.as_ref().ok()).into_iter().chain([reply]) {
                let _ = waiter.send(result.clone());
            }
        });
    }
}

/// Frees the key once, also if the run breaks off; those who wait then see their channels close.
struct Running<R: Clone + Send + 'static> {
    calls: Arc<Calls<R>>,
    key: Option<Key>,
}

impl<R: Clone + Send + 'static> Running<R> {
    fn finish(&mut self, good: Option<&R>) -> Vec<Waiter<R>> {
        let Some(key) = self.key.take() else { return Vec::new() };
        let runs = &mut *lock(&self.calls.runs);
        runs.interest_by_key.remove(&key);
        runs.state.handle_done(&key, good.map(|result| (result, (self.calls.size)(result))), self.calls.clock.now().mono)
    }
}

impl<R: Clone + Send + 'static> Drop for Running<R> {
    fn drop(&mut self) {
        drop(self.finish(None));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{AgentId, NodeId};

    const CONFIG: Config = Config { results_max: 8, bytes_max: 1_024, keep: Duration::from_secs(60) };

    /// MEAP-9: a deadline is its caller's own, also where somebody who gave less time began what runs under the key.
    #[tokio::test(start_paused = true)]
    async fn whoever_has_time_left_does_not_fail_by_the_deadline_of_the_first() {
        let calls = Arc::new(Calls::new(CONFIG, |_: &u64| 1, Clock::start()));
        let node: NodeId = libp2p::PeerId::random().into();
        // The work takes a second; a run is given up at the deadline of whoever began it. The result is who that was.
        let call = async |deadline_ms: u64| {
            let (calls, deadline, cancel) = (Arc::clone(&calls), Duration::from_millis(deadline_ms), CancellationToken::new());
            let key = (node, AgentId::from_public_key([0; 32]), "k".to_owned());
            let until = calls.clock.zero() + deadline;
            let run = |_| async move {
                let work = tokio::time::timeout_at(until, tokio::time::sleep(Duration::from_secs(1))).await;
                work.map(|()| deadline_ms).map_err(|_| Failure::new(ErrorCode::Timeout, "no time"))
            };
            let ask = Ask { key, input: [0; 32], deadline, cancel: &cancel };
            calls.once(ask, || {}, run).await.map_err(|failure| failure.code)
        };

        let ended = tokio::join!(call(300), call(60_000), call(500), call(70_000));

        let late = Err(ErrorCode::Timeout);
        assert_eq!((ended.0, ended.2), (late, late));
        assert!(ended.1.is_ok_and(|began| began >= 60_000) && ended.1 == ended.3, "they share the run of one who had time: {ended:?}");
    }
}
