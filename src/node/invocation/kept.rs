//! Results of calls with a key, on the disk (design/tasks.md, "Fences and idempotency").
//!
//! That a call begins is durable before its agent starts, and its result before it is sent, so whoever repeats the key after a crash gets
//! the result that there was. The journal holds them, beside tasks; a large output is a blob. Memory holds where they are, and the index
//! ([`crate::store::Index`]) the same, so that a start need not read the journal for it.

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use minicbor::{Decode, Encode};
use rust_decimal::Decimal;
use tokio::sync::oneshot;

use super::invoke::InvokeReply;
use crate::model::{ErrorCode, Failure, InvocationId, Timestamp};
use crate::node::handle::{disk_failure, stopping};
use crate::node::shared::lock;
use crate::node::task::TaskClock;
use crate::proto::invocation::dedup::{Call, Key, Standing};
use crate::store::Blobs;
use crate::store::journal::{Index, Journal, Position, Refused, SegmentId, Ticket};
use crate::wire::invocation::{Body, Fence, Success};
use crate::wire::kept::{self, By, Done, Entry, Event, Side};
use crate::wire::task::{Charge, TEXT_BYTES_MAX, Text};

/// Characters of the hash in the name of an owner of blobs.
const OWNER_HASH_CHARS: usize = 32;

/// How often a result is handed to a journal that is busy; each time is a batch later.
const TRIES_MAX: usize = 50;

/// Tells each caller of a journal when what it appended is durable. One task looks at the disk for all of them.
#[derive(Debug)]
pub(in crate::node) struct Commits {
    journal: Journal,
    waiting: Mutex<VecDeque<(Index, oneshot::Sender<()>)>>,
}

impl Commits {
    /// For this journal; the task that it needs ends with the journal.
    pub(in crate::node) fn new(journal: Journal) -> Arc<Self> {
        let commits = Arc::new(Self { journal, waiting: Mutex::default() });
        let (told, mut committed) = (Arc::downgrade(&commits), commits.journal.committed());
        tokio::spawn(async move {
            while committed.changed().await.is_ok() {
                let (end, stopped) = {
                    let committed = committed.borrow_and_update();
                    (committed.end, committed.stopped.is_some())
                };
                let Some(commits) = told.upgrade() else { return };
                let mut waiting = lock(&commits.waiting);
                while waiting.front().is_some_and(|(needed, _)| *needed <= end) {
                    if let Some((_, waiter)) = waiting.pop_front() {
                        let _ = waiter.send(());
                    }
                }
                if stopped {
                    // Whoever still waits hears that nothing will come.
                    waiting.clear();
                }
            }
        });
        commits
    }

    /// Appends, and tells when it is durable; an end without a word means that it will never be.
    fn append(&self, entries: Vec<Bytes>) -> Result<(Ticket, oneshot::Receiver<()>), Refused> {
        let (waiter, durable) = oneshot::channel();
        // Under one lock, so that they wait in the order of the journal, and none is missed.
        let mut waiting = lock(&self.waiting);
        let ticket = self.journal.append(entries)?;
        waiting.push_back((ticket.end(), waiter));
        Ok((ticket, durable))
    }
}

/// Comes when it is durable that a call begins; if it is dropped, that will never be.
pub(super) type Begun = oneshot::Receiver<()>;

/// Where a result is.
#[derive(Debug, Clone)]
pub(in crate::node) enum Kept<R> {
    /// Only here: a call of this node's own.
    Memory(R),
    /// In the journal.
    Journal {
        /// Where.
        position: Position,
        /// Whose blobs go with it, if it is large.
        blobs: Option<String>,
    },
}

/// A result that can be kept.
pub(in crate::node) trait Keep: Clone + Send + Sync + 'static {
    /// Its output.
    fn output(&self) -> &Bytes;
    /// The rest of it, with the output where that is kept, and how it began.
    fn done(&self, output: Text, begun: kept::Begun) -> Done;
    /// The result that was kept; `None` if it is one of the other side.
    fn of(done: &Done, output: Bytes) -> Option<Self>;
}

impl Keep for Success {
    fn output(&self) -> &Bytes {
        static NONE: Bytes = Bytes::new();
        match &self.body {
            Body::Inline(text) => text,
            // Whatever comes from an agent of this node is at hand.
            Body::Blob(_) => &NONE,
        }
    }

    fn done(&self, output: Text, begun: kept::Begun) -> Done {
        Done { output, units: self.units.clone(), took_us: self.execution_us, by: None, begun: Some(begun) }
    }

    fn of(done: &Done, output: Bytes) -> Option<Self> {
        Some(Self { units: done.units.clone(), execution_us: done.took_us, body: Body::Inline(output) })
    }
}

impl Keep for Arc<InvokeReply> {
    fn output(&self) -> &Bytes {
        &self.output
    }

    fn done(&self, output: Text, begun: kept::Begun) -> Done {
        let charge =
            self.cost.map(|(total, currency)| Charge { units: self.units, unit: String::new(), price: Decimal::ZERO, currency, total });
        let by = By {
            invocation: self.id.to_bytes(),
            agent: self.agent,
            node: self.node,
            attempts: u32::try_from(self.attempts).unwrap_or(u32::MAX),
            charge,
        };
        let took_us = u64::try_from(self.latency.as_micros()).unwrap_or(u64::MAX);
        Done { output, units: Some(self.units.to_string()), took_us, by: Some(Box::new(by)), begun: Some(begun) }
    }

    fn of(done: &Done, output: Bytes) -> Option<Self> {
        let by = done.by.as_deref()?;
        Some(Self::new(InvokeReply {
            id: InvocationId::from_bytes(by.invocation),
            output,
            agent: by.agent,
            node: by.node,
            attempts: usize::try_from(by.attempts).unwrap_or(usize::MAX),
            latency: Duration::from_micros(done.took_us),
            units: done.units.as_ref().and_then(|units| units.parse().ok()).unwrap_or(Decimal::ONE),
            cost: by.charge.as_ref().map(|charge| (charge.total, charge.currency)),
            // It was told to whoever asked first.
            explanation: None,
        }))
    }
}

/// What a start finds of a call with a key: an entry without its output.
#[derive(Debug)]
pub(in crate::node) struct Found {
    pub(super) side: Side,
    pub(super) key: Key,
    pub(super) at: Timestamp,
    pub(super) what: What,
}

/// What happened to it.
#[derive(Debug)]
pub(super) enum What {
    Begun(Call),
    Done { position: Position, bytes: u64, blobs: Option<String>, begun: Option<Call> },
    Failed,
}

/// What the keys of calls in the index begin with.
pub(in crate::node) const FILED: &[u8] = b"c";

/// A call as the index has it: the entry that it began with, and where its result is.
#[derive(Debug, Encode, Decode)]
#[cbor(map)]
struct Filed {
    #[cbor(n(0), with = "minicbor::bytes")]
    begun: Vec<u8>,
    #[n(1)]
    done: Option<FiledDone>,
}

#[derive(Debug, Encode, Decode)]
#[cbor(map)]
struct FiledDone {
    #[n(0)]
    segment: u64,
    #[n(1)]
    offset: u32,
    #[n(2)]
    bytes: u64,
    #[n(3)]
    blobs: Option<String>,
}

impl Found {
    /// What an entry at this position says.
    pub(in crate::node) fn new(entry: Entry, position: Position) -> Self {
        let Entry { side, caller, agent, word, at, event } = entry;
        let key = Arc::new((word, agent, caller));
        let what = match event {
            Event::Begun(begun) => What::Begun(call(&begun)),
            Event::Done(Done { output, begun, .. }) => {
                let blobs = matches!(output, Text::Blob { .. }).then(|| owner(side, &key, at));
                What::Done { position, bytes: output.len(), blobs, begun: begun.as_ref().map(call) }
            }
            Event::Failed => What::Failed,
        };
        Self { side, key, at, what }
    }

    /// What the index has of a call; `None` if it does not read.
    pub(in crate::node) fn filed(body: &[u8]) -> Option<Vec<Self>> {
        let Filed { begun, done } = minicbor::decode(body).ok()?;
        let entry = Entry::decode(&begun).ok()?;
        let (side, at) = (entry.side, entry.at);
        // No entry of the journal has this place, and none is needed for a beginning.
        let begun = Self::new(entry, Position { segment: SegmentId(0), offset: 0 });
        let done = done.map(|FiledDone { segment, offset, bytes, blobs }| {
            let position = Position { segment: SegmentId(segment), offset };
            Self { side, key: begun.key.clone(), at, what: What::Done { position, bytes, blobs, begun: None } }
        });
        Some([begun].into_iter().chain(done).collect())
    }

    /// What tells its key from all others, as the index has it.
    pub(in crate::node) fn filed_key(&self) -> Vec<u8> {
        filed_key(self.side, &self.key)
    }

    /// Where its result is, if it has one.
    pub(in crate::node) fn position(&self) -> Option<Position> {
        match self.what {
            What::Done { position, .. } => Some(position),
            What::Begun(_) | What::Failed => None,
        }
    }
}

fn hash_of(side: Side, key: &Key) -> blake3::Hash {
    let (word, agent, caller) = &**key;
    let mut hasher = blake3::Hasher::new();
    hasher.update(&[u8::from(side == Side::Caller)]).update(&caller.peer_id().to_bytes());
    hasher.update(&agent.public_key()).update(word.as_bytes()).finalize()
}

fn filed_key(side: Side, key: &Key) -> Vec<u8> {
    [FILED, hash_of(side, key).as_bytes()].concat()
}

/// Whose the blobs of a result are: a later one under the same key has others.
fn owner(side: Side, key: &Key, at: Timestamp) -> String {
    format!("call-{}-{:x}", hash_of(side, key).to_hex().get(..OWNER_HASH_CHARS).unwrap_or_default(), at.as_ms())
}

/// The part of the journal that results of one side are kept in.
#[derive(Debug, Clone)]
pub(in crate::node) struct Results {
    pub(in crate::node) side: Side,
    pub(in crate::node) commits: Arc<Commits>,
    pub(in crate::node) blobs: Blobs,
    pub(in crate::node) clock: TaskClock,
}

fn refused(refused: Refused) -> Failure {
    match refused {
        Refused::Busy { retry_after } => {
            let ms = u64::try_from(retry_after.as_millis()).unwrap_or(u64::MAX);
            Failure::new(ErrorCode::Busy, "the journal of this node is busy").with("retry_after_ms", ms)
        }
        Refused::TooLarge { .. } | Refused::Stopped { .. } => Failure::new(ErrorCode::Unavailable, refused.to_string()),
    }
}

impl Results {
    /// What time it is, as results are aged by.
    pub(in crate::node) fn now(&self) -> Duration {
        Duration::from_millis(self.clock.now().as_ms())
    }

    fn entry(&self, key: &Key, event: Event) -> Bytes {
        self.entry_at(key, self.clock.now(), event)
    }

    fn entry_at(&self, key: &Key, at: Timestamp, event: Event) -> Bytes {
        let (word, agent, caller) = &**key;
        Entry { side: self.side, caller: *caller, agent: *agent, word: word.clone(), at, event }.encode()
    }

    fn begun_entry(&self, key: &Key, call: &Call) -> Bytes {
        self.entry(key, Event::Begun(begun(call)))
    }

    /// Has it made durable that a call begins. It must not before the word comes that it is.
    pub(super) fn begin(&self, key: &Key, call: &Call) -> Result<Begun, Failure> {
        if self.commits.journal.is_full() {
            let failure = Failure::new(ErrorCode::InsufficientResources, "the disk of this node is full, and the call has a key");
            return Err(failure.with("retry_after_ms", 5_000));
        }
        self.commits.append(vec![self.begun_entry(key, call)]).map(|(_, durable)| durable).map_err(refused)
    }

    /// Notes that a call ended without a result. Nobody waits for this: without it, the call is only known to have begun.
    pub(super) fn fail(&self, key: &Key) {
        if let Err(error) = self.commits.journal.append_later(vec![self.entry(key, Event::Failed)]) {
            tracing::debug!(%error, "the end of a call was not noted");
        }
    }

    /// Makes a result durable.
    pub(super) async fn keep<R: Keep>(&self, key: &Key, call: &Call, result: &R) -> Result<Kept<R>, Failure> {
        let (text, at) = (result.output().clone(), self.clock.now());
        let (output, blobs) = if text.len() <= TEXT_BYTES_MAX {
            (Text::Inline(text), None)
        } else {
            let (blobs, owner) = (self.blobs.clone(), owner(self.side, key, at));
            let length_bytes = u64::try_from(text.len()).unwrap_or(u64::MAX);
            let put = {
                let owner = owner.clone();
                tokio::task::spawn_blocking(move || blobs.put(&owner, &text))
            };
            let hash = put.await.map_err(|_| stopping())?.map_err(disk_failure)?;
            (Text::Blob { hash: *hash.as_bytes(), length_bytes }, Some(owner))
        };
        let entry = self.entry_at(key, at, Event::Done(result.done(output, begun(call))));
        let mut committed = self.commits.journal.committed();
        for _ in 0..TRIES_MAX {
            match self.commits.append(vec![entry.clone()]) {
                Ok((ticket, durable)) => {
                    durable.await.map_err(|_| stopping())?;
                    let position = ticket.positions().last().copied().ok_or_else(stopping)?;
                    return Ok(Kept::Journal { position, blobs });
                }
                Err(busy) if busy.is_retryable() => drop(committed.changed().await),
                Err(other) => return Err(refused(other)),
            }
        }
        Err(Failure::new(ErrorCode::Busy, "the journal of this node is busy"))
    }

    /// Reads a result back.
    pub(super) async fn load<R: Keep>(&self, kept: Kept<R>) -> Result<R, Failure> {
        let (position, owner) = match kept {
            Kept::Memory(result) => return Ok(result),
            Kept::Journal { position, blobs } => (position, blobs),
        };
        let (journal, blobs) = (self.commits.journal.clone(), self.blobs.clone());
        let lost = || Failure::new(ErrorCode::Internal, "the result that was kept under this key cannot be read any more");
        let read = move || {
            let bytes = journal.read(position).map_err(disk_failure)?;
            let entry = Entry::decode(&bytes).map_err(|error| Failure::new(ErrorCode::Internal, error.to_string()))?;
            let Event::Done(done) = entry.event else { return Err(lost()) };
            let output = match (&done.output, owner) {
                (Text::Inline(text), _) => text.clone(),
                (Text::Blob { hash, .. }, Some(owner)) => {
                    let found = blobs.get(&owner, &blake3::Hash::from_bytes(*hash)).map_err(disk_failure)?;
                    found.map(Bytes::from).ok_or_else(lost)?
                }
                (Text::Blob { .. }, None) => return Err(lost()),
            };
            R::of(&done, output).ok_or_else(lost)
        };
        tokio::task::spawn_blocking(read).await.map_err(|_| stopping())?
    }

    /// Removes what results took of the disk beside the journal that nobody can ask for any more.
    pub(super) fn forget<R: Send + 'static>(&self, forgotten: Vec<Kept<R>>) {
        let owners: Vec<String> = forgotten
            .into_iter()
            .filter_map(|kept| match kept {
                Kept::Memory(_) => None,
                Kept::Journal { blobs, .. } => blobs,
            })
            .collect();
        if owners.is_empty() {
            return;
        }
        let blobs = self.blobs.clone();
        tokio::task::spawn_blocking(move || {
            for owner in owners {
                if let Err(error) = blobs.remove_all(&owner) {
                    tracing::warn!(%error, "the output of a forgotten call could not be removed");
                }
            }
        });
    }

    /// The segment before which the journal takes nothing more.
    pub(super) fn floor(&self) -> SegmentId {
        self.commits.journal.segments().map_or(SegmentId(0), |(_, last)| last)
    }

    /// Under which key the index has a call.
    pub(super) fn filed_key(&self, key: &Key) -> Vec<u8> {
        filed_key(self.side, key)
    }

    /// A call as the index has it; `None` for one that the journal has nothing of.
    pub(super) fn filed<R>(&self, key: &Key, call: &Call, standing: &Standing<'_, Kept<R>>) -> Option<Vec<u8>> {
        let (since, done) = match standing {
            Standing::Interrupted { since } => (since, None),
            Standing::Done { result: Kept::Journal { position: Position { segment, offset }, blobs }, bytes, since } => {
                (since, Some(FiledDone { segment: segment.0, offset: *offset, bytes: *bytes, blobs: blobs.clone() }))
            }
            Standing::Running | Standing::Done { result: Kept::Memory(_), .. } => return None,
        };
        let at = Timestamp::from_ms(u64::try_from(since.as_millis()).unwrap_or(u64::MAX));
        let begun = self.entry_at(key, at, Event::Begun(begun(call))).to_vec();
        minicbor::to_vec(Filed { begun, done }).ok()
    }
}

fn call(begun: &kept::Begun) -> Call {
    let fence = begun.fence.map(|(epoch, attempt)| Fence { epoch, attempt });
    Call { input: begun.input, fence, keep: begun.keep_ms.map(Duration::from_millis) }
}

fn begun(call: &Call) -> kept::Begun {
    kept::Begun {
        input: call.input,
        fence: call.fence.map(|Fence { epoch, attempt }| (epoch, attempt)),
        keep_ms: call.keep.map(|keep| u64::try_from(keep.as_millis()).unwrap_or(u64::MAX)),
    }
}

/// Whether this is the name of an owner of blobs of results.
pub(in crate::node) fn is_owner(text: &str) -> bool {
    let hex = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
    let parts = text.strip_prefix("call-").and_then(|rest| rest.split_once('-'));
    parts.is_some_and(|(hash, at)| hash.len() == OWNER_HASH_CHARS && hex(hash) && at.len() <= 16 && hex(at))
}

/// Owners of the blobs of these results.
pub(super) fn owners<'a, R: 'a>(results: impl Iterator<Item = &'a Kept<R>>) -> BTreeSet<String> {
    results
        .filter_map(|kept| match kept {
            Kept::Memory(_) => None,
            Kept::Journal { blobs, .. } => blobs.clone(),
        })
        .collect()
}

/// Segments that some of these results lie in.
pub(super) fn segments<'a, R: 'a>(results: impl Iterator<Item = &'a Kept<R>>) -> BTreeSet<SegmentId> {
    results
        .filter_map(|kept| match kept {
            Kept::Memory(_) => None,
            Kept::Journal { position, .. } => Some(position.segment),
        })
        .collect()
}
