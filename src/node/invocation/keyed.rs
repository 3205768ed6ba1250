//! One run for all calls with one idempotency key (the rules are in `proto::invocation::dedup`).
//!
//! The run belongs to nobody's connection: it goes on while anybody waits for it, so a client that lost its connection and comes back
//! with its key finds its call still running. Each who waits keeps to a deadline and a cancel of its own: the run is made with the deadline of
//! whoever came first, so when that one's time is up, the next who has time left runs the call anew. When the last one is gone, the run is
//! told to stop; only the step of a task goes on when the connection of its owner is lost, since that one comes back and asks again, or is
//! told of the result ([`super::outbox`]).
//!
//! What is kept is on the disk ([`super::kept`]), but for calls of this node's own to its own agents: their owner keeps them itself.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::kept::{self, Begun, Found, Keep, Kept, Results, What};
use crate::mesh::lanes::Handover;
use crate::model::{ErrorCode, Failure};
use crate::node::clock::Clock;
use crate::node::shared::lock;
use crate::proto::invocation::dedup::{Call, Config, Key, Standing, State, Verdict};
use crate::proto::invocation::outbox;
use crate::store::journal::SegmentId;
use crate::wire::kept::Side;

type Waiter<R> = oneshot::Sender<Result<R, Failure>>;

/// By so much a run may seem to end before its deadline: deadlines travel in whole milliseconds, to clocks that tick apart.
const ROUNDED: Duration = Duration::from_millis(50);

/// Calls by key, with the results that are kept.
pub(in crate::node) struct Calls<R> {
    pub(super) runs: Mutex<Runs<R>>,
    results: Results,
    pub(super) outbox: Mutex<outbox::State>,
    pub(super) clock: Clock,
}

/// Under one lock, so that nobody meets a run without what keeps it going.
pub(super) struct Runs<R> {
    pub(super) state: State<Waiter<R>, Kept<R>>,
    interest_by_key: BTreeMap<Key, Interest>,
}

/// What keeps a run going.
struct Interest {
    /// Held by everybody who waits for it.
    held: Weak<DropGuard>,
    deadline: Duration,
    /// No entry of it lies in the journal before this segment; `None` if there will be none.
    floor: Option<SegmentId>,
}

/// Calls that are looked at under one lock, so that nobody waits long for it.
const AT_ONCE: usize = 256;

/// How a call stands to its key.
enum Place<R> {
    /// It was done before.
    Done(Kept<R>),
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
    /// What must be the same for the same key, and what tells calls apart.
    pub(super) call: Call,
    /// Whether what becomes of it is made durable.
    pub(super) durable: bool,
    /// Says, if it is the step of a task, whether it is the connection that was lost when `cancel` comes, and the run shall go on.
    pub(super) handover: Option<&'a Handover>,
    /// When the asker gives up, since the start of the node.
    pub(super) deadline: Duration,
    /// Cancelled when the asker no longer waits.
    pub(super) cancel: &'a CancellationToken,
}

impl<R: Keep> Calls<R> {
    /// No call yet.
    pub(in crate::node) fn new(config: Config, results: Results, clock: Clock) -> Self {
        let runs = Runs { state: State::new(config), interest_by_key: BTreeMap::new() };
        Self { runs: Mutex::new(runs), results, outbox: Mutex::new(outbox::State::new(config.results_max)), clock }
    }

    /// Takes up what a start found in the journal. What happened on the other side is passed over.
    pub(in crate::node) fn restore(&self, found: &Found) {
        let Found { side, key, at, what } = found;
        let since = Duration::from_millis(at.as_ms());
        if *side != self.results.side {
            return;
        }
        let state = &mut lock(&self.runs).state;
        match what {
            What::Begun(call) => state.restore_begun(key.clone(), *call, since),
            What::Done { position, bytes, blobs, begun } => {
                if let Some(call) = begun {
                    state.restore_begun(key.clone(), *call, since);
                }
                state.restore_done(key, Kept::Journal { position: *position, blobs: blobs.clone() }, *bytes, since);
            }
            What::Failed => state.release(key),
        }
    }

    /// Segments of the journal that hold results which somebody may ask for.
    pub(in crate::node) fn segments(&self) -> BTreeSet<SegmentId> {
        let runs = &mut *lock(&self.runs);
        runs.state.expire(self.results.now());
        self.results.forget(runs.state.take_forgotten());
        kept::segments(runs.state.results())
    }

    /// The segment before which no run under way has an entry in the journal, if there are such runs. What became of all others is known.
    pub(in crate::node) fn floor(&self) -> Option<SegmentId> {
        lock(&self.runs).interest_by_key.values().filter_map(|interest| interest.floor).min()
    }

    /// Shows every call as the index should have it, by its key there; `None` if what it has stands until the call is over. What
    /// happens meanwhile may be missing.
    pub(in crate::node) fn visit_filed(&self, visit: &mut dyn FnMut(Vec<u8>, Option<Vec<u8>>)) {
        let mut last: Option<Key> = None;
        loop {
            let runs = lock(&self.runs);
            let mut seen = 0;
            let from = last.take();
            for (key, call, standing) in runs.state.following(from.as_ref()).take(AT_ONCE) {
                seen += 1;
                last = Some(key.clone());
                let is_running = matches!(standing, Standing::Running);
                match self.results.filed(key, call, &standing) {
                    None if !is_running => {}
                    body => visit(self.results.filed_key(key), body),
                }
            }
            if seen < AT_ONCE {
                return;
            }
        }
    }

    /// Owners of the blobs that hold such results.
    pub(in crate::node) fn owners(&self) -> BTreeSet<String> {
        kept::owners(lock(&self.runs).state.results())
    }

    /// Starts what `run` makes, or waits for the call that runs under the key, or returns the result that is kept. `joined` is told when
    /// it waits for somebody else's run. `run` gets a token that is cancelled when nobody waits any more, and what it must wait for before
    /// it has the work begin, if that has to be durable.
    pub(super) async fn once<F>(
        self: &Arc<Self>,
        ask: Ask<'_>,
        joined: impl Fn(),
        run: impl FnOnce(CancellationToken, Option<Begun>) -> F,
    ) -> Result<R, Failure>
    where
        F: Future<Output = Result<R, Failure>> + Send + 'static,
    {
        let broke_off = || Failure::new(ErrorCode::AgentFailed, "the call that ran under this key broke off");
        // Each turn outlasts somebody else's run, and the asker's own deadline ends them all.
        loop {
            let (reply, answer) = oneshot::channel();
            match self.place(&ask, reply)? {
                Place::Done(kept) => match self.results.load(kept).await {
                    Ok(result) => return Ok(result),
                    Err(failure) if failure.code == ErrorCode::Unavailable => return Err(failure),
                    Err(failure) => {
                        tracing::warn!(%failure, "a result that was kept cannot be read: its call runs again");
                        lock(&self.runs).state.release(&ask.key);
                    }
                },
                Place::Run(stop, reply, interest) => {
                    self.start(&ask, reply, |begun| run(stop, begun));
                    return self.wait(&ask, answer, Some(interest)).await?.unwrap_or_else(|| Err(broke_off()));
                }
                Place::Joined(interest, deadline) => {
                    joined();
                    let ended = self.wait(&ask, answer, Some(interest)).await?.unwrap_or_else(|| Err(broke_off()));
                    let now = self.clock.mono();
                    let was_up = deadline <= now.saturating_add(ROUNDED);
                    // What is for good is what the agent itself said; the rest is up to the patience of whoever came first.
                    let is_late =
                        |failure: &Failure| failure.code == ErrorCode::Timeout && now < ask.deadline && (was_up || failure.retryable);
                    if !ended.as_ref().is_err_and(is_late) {
                        return ended;
                    }
                }
                Place::Doomed => drop(self.wait(&ask, answer, None).await?),
            }
        }
    }

    /// Waits for the end of a run, as long as the asker does. `None` if the run broke off.
    async fn wait(
        self: &Arc<Self>,
        ask: &Ask<'_>,
        mut answer: oneshot::Receiver<Result<R, Failure>>,
        interest: Option<Arc<DropGuard>>,
    ) -> Result<Option<Result<R, Failure>>, Failure> {
        tokio::select! {
            ended = &mut answer => Ok(ended.ok()),
            () = ask.cancel.cancelled() => {
                if let Some(interest) = interest.filter(|_| ask.handover.is_some_and(Handover::is_lost)) {
                    // The owner of the task asks again under the same key, and finds it running or done, or is told that it is done.
                    let (calls, key) = (Arc::clone(self), ask.key.clone());
                    tokio::spawn(async move {
                        let ended = answer.await;
                        drop(interest);
                        if matches!(ended, Ok(Ok(_))) {
                            calls.undelivered(&[key]);
                        }
                    });
                }
                Err(Failure::new(ErrorCode::Cancelled, "the call was cancelled"))
            }
            () = tokio::time::sleep_until(self.clock.zero() + ask.deadline) => {
                Err(Failure::new(ErrorCode::Timeout, "the call that runs under this key did not end before the deadline"))
            }
        }
    }

    fn place(&self, ask: &Ask<'_>, reply: Waiter<R>) -> Result<Place<R>, Failure> {
        let runs = &mut *lock(&self.runs);
        let verdict = runs.state.on_call(ask.key.clone(), ask.call, reply, self.results.now());
        self.results.forget(runs.state.take_forgotten());
        match verdict {
            Verdict::Done(_, kept) => Ok(Place::Done(kept)),
            Verdict::Refuse(_, failure) => Err(failure),
            Verdict::Wait => {
                let runs = runs.interest_by_key.get(&ask.key);
                let interest = runs.and_then(|interest| Some((interest.held.upgrade()?, interest.deadline)));
                Ok(interest.map_or(Place::Doomed, |(interest, deadline)| Place::Joined(interest, deadline)))
            }
            Verdict::Run(reply) => {
                let stop = CancellationToken::new();
                let interest = Arc::new(stop.clone().drop_guard());
                let floor = ask.durable.then(|| self.results.floor());
                let held = Arc::downgrade(&interest);
                runs.interest_by_key.insert(ask.key.clone(), Interest { held, deadline: ask.deadline, floor });
                Ok(Place::Run(stop, reply, interest))
            }
        }
    }

    fn start<F>(self: &Arc<Self>, ask: &Ask<'_>, reply: Waiter<R>, run: impl FnOnce(Option<Begun>) -> F)
    where
        F: Future<Output = Result<R, Failure>> + Send + 'static,
    {
        let mut running = Running { calls: Arc::clone(self), key: Some(ask.key.clone()) };
        let (key, call, durable) = (ask.key.clone(), ask.call, ask.durable);
        // On the caller's side nothing has happened before there is a result.
        let begins = durable && self.results.side == Side::Agent;
        let run = match begins.then(|| self.results.begin(&key, &call)).transpose() {
            Ok(begun) => run(begun),
            Err(failure) => {
                for waiter in running.finish(None).into_iter().chain([reply]) {
                    let _ = waiter.send(Err(failure.clone()));
                }
                return;
            }
        };
        // In a box, since a task is moved about at its full size.
        tokio::spawn(Box::pin(async move {
            let (result, kept) = running.calls.made_durable(&key, &call, durable, run).await;
            for waiter in running.finish(kept).into_iter().chain([reply]) {
                let _ = waiter.send(result.clone());
            }
        }));
    }

    /// Runs a call, and makes durable what has to be when it is over.
    async fn made_durable(
        &self,
        key: &Key,
        call: &Call,
        durable: bool,
        run: impl Future<Output = Result<R, Failure>>,
    ) -> (Result<R, Failure>, Option<(Kept<R>, u64)>) {
        let result = run.await;
        let bytes = |result: &R| u64::try_from(result.output().len()).unwrap_or(u64::MAX);
        let kept = match &result {
            Ok(result) if durable => match self.results.keep(key, call, result).await {
                Ok(kept) => Some((kept, bytes(result))),
                Err(failure) => {
                    // The work is done, and its result worth more than the promise that a repeat finds it.
                    tracing::warn!(%failure, "a result could not be kept: a call that repeats its key runs again");
                    None
                }
            },
            Ok(result) => Some((Kept::Memory(result.clone()), bytes(result))),
            Err(_) => {
                if durable && self.results.side == Side::Agent {
                    self.results.fail(key);
                }
                None
            }
        };
        (result, kept)
    }
}

/// Frees the key once, also if the run breaks off; those who wait then see their channels close.
struct Running<R: Keep> {
    calls: Arc<Calls<R>>,
    key: Option<Key>,
}

impl<R: Keep> Running<R> {
    fn finish(&mut self, kept: Option<(Kept<R>, u64)>) -> Vec<Waiter<R>> {
        let Some(key) = self.key.take() else { return Vec::new() };
        let runs = &mut *lock(&self.calls.runs);
        runs.interest_by_key.remove(&key);
        let results = &self.calls.results;
        let waiters = runs.state.handle_done(&key, kept, results.now());
        results.forget(runs.state.take_forgotten());
        waiters
    }
}

impl<R: Keep> Drop for Running<R> {
    fn drop(&mut self) {
        drop(self.finish(None));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{AgentId, NodeId};
    use crate::node::task::TaskClock;
    use crate::wire::invocation::{Body, Success};

    const CONFIG: Config = Config { results_max: 8, bytes_max: 1_024, keep: Duration::from_secs(60) };

    /// MEAP-9: a deadline is its caller's own, also where somebody who gave less time began what runs under the key.
    #[tokio::test(start_paused = true)]
    async fn whoever_has_time_left_does_not_fail_by_the_deadline_of_the_first() {
        let (folder, clock) = (tempfile::tempdir().expect("a folder"), Clock::start());
        let dir = crate::store::DataDir::open(folder.path()).expect("a data directory");
        let (journal, _) = dir.journal(crate::store::journal::Config::default()).expect("a journal");
        let results =
            Results { side: Side::Agent, commits: super::kept::Commits::new(journal), blobs: dir.blobs(), clock: TaskClock::new(clock) };
        let calls = Arc::new(Calls::new(CONFIG, results, clock));
        let node: NodeId = libp2p::PeerId::random().into();
        // The work takes a second; a run is given up at the deadline of whoever began it. The result is who that was.
        let call = async |deadline_ms: u64| {
            let (calls, deadline, cancel) = (Arc::clone(&calls), Duration::from_millis(deadline_ms), CancellationToken::new());
            let key = Arc::new(("k".to_owned(), AgentId::from_public_key([0; 32]), node));
            let until = calls.clock.zero() + deadline;
            let run = |_, _| async move {
                let work = tokio::time::timeout_at(until, tokio::time::sleep(Duration::from_secs(1))).await;
                let who = || Success { units: Some(deadline_ms.to_string()), execution_us: 0, body: Body::Inline(bytes::Bytes::new()) };
                work.map(|()| who()).map_err(|_| Failure::new(ErrorCode::Timeout, "no time"))
            };
            let call = Call { input: [0; 32], fence: None, keep: None };
            let ask = Ask { key, call, durable: false, handover: None, deadline, cancel: &cancel };
            let ended = calls.once(ask, || {}, run).await;
            ended.map(|success| success.units.and_then(|units| units.parse::<u64>().ok())).map_err(|failure| failure.code)
        };

        let ended = tokio::join!(call(300), call(60_000), call(500), call(70_000));

        let late = Err(ErrorCode::Timeout);
        assert_eq!((ended.0, ended.2), (late, late));
        assert!(
            ended.1.is_ok_and(|began| began >= Some(60_000)) && ended.1 == ended.3,
            "they share the run of one who had time: {ended:?}"
        );
    }

    /// The segment in which its beginning lies is forgotten; the result is found all the same, and nothing runs twice.
    #[tokio::test]
    async fn a_result_that_is_kept_needs_no_entry_before_it() {
        const SMALL: crate::store::journal::Config =
            crate::store::journal::Config { segment_bytes: 65_536, queue_entries_max: 64, queue_bytes_max: 1_048_576 };
        let (folder, clock) = (tempfile::tempdir().expect("a folder"), Clock::start());
        let dir = crate::store::DataDir::open(folder.path()).expect("a data directory");
        let config = Config { keep: Duration::from_secs(1 << 40), ..CONFIG };
        let calls = |journal: &crate::store::Journal| {
            let commits = super::kept::Commits::new(journal.clone());
            Arc::new(Calls::new(config, Results { side: Side::Agent, commits, blobs: dir.blobs(), clock: TaskClock::new(clock) }, clock))
        };
        let key: Key = Arc::new(("k".to_owned(), AgentId::from_public_key([0; 32]), libp2p::PeerId::random().into()));
        let cancel = CancellationToken::new();
        let ask = || Ask {
            key: key.clone(),
            call: Call { input: [7; 32], fence: None, keep: None },
            durable: true,
            handover: None,
            deadline: Duration::from_secs(60),
            cancel: &cancel,
        };
        let success = |units: &str| Success { units: Some(units.to_owned()), execution_us: 0, body: Body::Inline(bytes::Bytes::new()) };
        let (journal, _) = dir.journal(SMALL).expect("a journal");
        let before = calls(&journal);
        let run = |_, _| {
            let journal = journal.clone();
            async move {
                let filler = journal.append(vec![bytes::Bytes::from(vec![9; 60_000]); 2]).expect("room");
                journal.wait(&filler).await.expect("kept");
                Ok(success("1"))
            }
        };
        before.once(ask(), || {}, run).await.expect("a result");
        let wanted = *before.segments().first().expect("it is kept");
        assert!(journal.forget_before(wanted).expect("they go") > 0, "it began in another segment");
        journal.close();

        let (journal, replay) = dir.journal(SMALL).expect("the journal again");
        let mut found = Vec::new();
        replay
            .run(|entry| found.extend(crate::wire::kept::Entry::decode(entry.payload).map(|read| Found::new(read, entry.position))))
            .expect("reads");
        assert_eq!(found.len(), 1, "{found:?}");
        let after = calls(&journal);
        found.iter().for_each(|found| after.restore(found));
        let ended = after.once(ask(), || {}, |_, _| async move { Ok(success("2")) }).await.expect("a result");
        assert_eq!(ended.units.as_deref(), Some("1"), "nothing ran");
        let other = Ask { call: Call { input: [8; 32], fence: None, keep: None }, ..ask() };
        let refused = after.once(other, || {}, |_, _| async move { Ok(success("3")) }).await.expect_err("the key stands for another input");
        assert_eq!(refused.code, ErrorCode::Conflict);
        journal.close();
    }
}
