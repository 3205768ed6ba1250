//! Large bodies on their way: expected from peers, pushed to them.
//!
//! What is expected from whom is decided in `proto::invocation::blobs`; here the streams are read and written. A body is announced only
//! once it has a place among those that are pushed to its peer, and keeps it until the peer has taken it: there are never more at once than
//! the peer reads, and none waits for its announcement or for its stream behind another that waits for it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use libp2p::Stream;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::task::yield_now;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use super::own_side::OwnSide;
use crate::mesh::blobs::{self, Error, HASHED_BYTES};
use crate::model::{ErrorCode, Failure, InvocationId, NodeId, Priority};
use crate::node::clock::Clock;
use crate::node::shared::{Command, Shared, lock};
use crate::proto::invocation::blobs::{Arrival, Config, Key, STREAMS_MAX, State};
use crate::wire::blob::{Head, Part};
use crate::wire::invocation::{BlobId, Body, INLINE_BYTES_MAX, Request};

/// How long the substream of an announced blob may take to come.
pub(super) const STREAM_WAIT_MAX: Duration = Duration::from_secs(5);
/// How long opening a substream may take.
const OPEN_MAX: Duration = Duration::from_secs(5);
/// Substreams of one peer whose heads are being read.
const HEADS_PER_PEER_MAX: usize = 16;
/// Bodies that are pushed to one peer at once: fewer than its [`HEADS_PER_PEER_MAX`] and its streams that wait.
const PUSHES_PER_PEER_MAX: usize = 12;
/// Bytes that are pushed to one peer at once.
const PUSHED_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// Bytes of outputs that one peer may have asked for and not taken; beyond it its answers are dropped, and it is told why. Inputs are this
/// node's own: as many as its clients may call wait until there is a place.
const OWED_BYTES_MAX: u64 = 4 * PUSHED_BYTES_MAX;

/// The same for all peers, so that no number of identities takes all memory.
const OWED_TOTAL_BYTES_MAX: u64 = 4 * OWED_BYTES_MAX;

/// What is pushed to one peer.
#[derive(Debug)]
struct Pushing {
    /// For bodies of each priority and those that are less urgent; whoever has a place has one in each that it counts in.
    places: BTreeMap<Priority, Arc<Semaphore>>,
    /// One permit per KiB.
    room: Arc<Semaphore>,
    owed_bytes: AtomicU64,
}

/// The blobs of this node.
#[derive(Debug)]
pub(in crate::node) struct Blobs {
    state: Mutex<State<Stream, mpsc::Sender<Stream>>>,
    /// Told whenever room becomes free.
    freed: Notify,
    heads_by_peer: Mutex<BTreeMap<NodeId, usize>>,
    pushing_by_peer: Mutex<BTreeMap<NodeId, Arc<Pushing>>>,
    owed_bytes: Arc<AtomicU64>,
    clock: Clock,
}

impl Blobs {
    pub(in crate::node) fn new(config: Config, clock: Clock) -> Self {
        let state = Mutex::new(State::new(config));
        Self {
            state,
            freed: Notify::new(),
            heads_by_peer: Mutex::default(),
            pushing_by_peer: Mutex::default(),
            owed_bytes: Arc::default(),
            clock,
        }
    }

    /// Refuses streams that nobody announced in time.
    pub(in crate::node) fn tick(&self, now: Duration) {
        drop(lock(&self.state).handle_timeout(now));
    }

    /// From now on the blob with this key is welcome, until what is returned is dropped.
    pub(super) fn expect(&self, key: Key, blob: BlobId) -> Result<Expected<'_>, Failure> {
        let (waiter, streams) = mpsc::channel(STREAMS_MAX);
        if let Some(early) = lock(&self.state).handle_expect(key, blob, waiter.clone())? {
            let _ = waiter.try_send(early);
        }
        Ok(Expected { blobs: self, key, blob, streams })
    }

    fn on_stream(&self, peer: NodeId, head: &Head, stream: Stream) {
        match lock(&self.state).on_stream(peer, head, stream, self.clock.now().mono) {
            Arrival::Deliver(stream, waiter) => drop(waiter.try_send(stream)),
            Arrival::Held => {}
            Arrival::Refuse(_, why) => tracing::debug!(%peer, why, "a blob was refused"),
        }
    }

    fn pushing(&self, peer: NodeId) -> Arc<Pushing> {
        let mut pushing = lock(&self.pushing_by_peer);
        pushing.retain(|_, pushing| Arc::strong_count(pushing) > 1);
        let fresh = || {
            let room = Arc::new(Semaphore::new(usize::try_from(PUSHED_BYTES_MAX / 1_024).unwrap_or(usize::MAX)));
            let places = Priority::ALL.map(|priority| (priority, Arc::new(Semaphore::new(priority.room(PUSHES_PER_PEER_MAX)))));
            Arc::new(Pushing { places: places.into(), room, owed_bytes: AtomicU64::new(0) })
        };
        Arc::clone(pushing.entry(peer).or_insert_with(fresh))
    }
}

/// What sets the largest input and output.
const PAYLOAD_KEY: &str = "limits.payload_bytes_max";

/// A blob that is welcome.
pub(super) struct Expected<'a> {
    blobs: &'a Blobs,
    key: Key,
    blob: BlobId,
    streams: mpsc::Receiver<Stream>,
}

impl Drop for Expected<'_> {
    fn drop(&mut self) {
        lock(&self.blobs.state).handle_done(&self.key);
        self.blobs.freed.notify_waiters();
    }
}

impl Expected<'_> {
    /// Waits for room for all of it, and no longer than `until`.
    async fn room(&self, until: Instant) -> Result<(), Failure> {
        loop {
            let mut freed = std::pin::pin!(self.blobs.freed.notified());
            // What becomes free after the look counts.
            freed.as_mut().enable();
            let Err(failure) = lock(&self.blobs.state).handle_room(&self.key) else { return Ok(()) };
            timeout_at(until, freed).await.map_err(|_| failure)?;
        }
    }

    /// Waits for the bytes. An input whose stream breaks off may come on another: what broke may be left of an attempt before this one.
    async fn pull(mut self) -> Result<Bytes, Error> {
        let until = Instant::now() + STREAM_WAIT_MAX;
        while let Ok(Some(stream)) = timeout_at(until, self.streams.recv()).await {
            match blobs::pull(stream, &self.blob).await {
                Err(Error::Broken) if self.key.2 == Part::Input => {}
                end => return end,
            }
        }
        Err(Error::Broken)
    }
}

/// Takes in a substream that a peer opened.
pub(in crate::node) fn accept(shared: &Arc<Shared>, peer: NodeId, mut stream: Stream) {
    {
        let mut heads = lock(&shared.blobs.heads_by_peer);
        let reading = heads.entry(peer).or_default();
        if *reading >= HEADS_PER_PEER_MAX {
            return;
        }
        *reading += 1;
    }
    let shared = Arc::clone(shared);
    tokio::spawn(async move {
        let head = blobs::read_head(&mut stream).await;
        {
            let mut heads = lock(&shared.blobs.heads_by_peer);
            let left = heads.get(&peer).map_or(0, |reading| reading.saturating_sub(1));
            if left == 0 {
                heads.remove(&peer)
            } else {
                heads.insert(peer, left)
            };
        }
        match head {
            Ok(head) => shared.blobs.on_stream(peer, &head, stream),
            Err(error) => blame(&shared, peer, error),
        }
    });
}

fn blame(shared: &Shared, peer: NodeId, error: Error) {
    tracing::debug!(%peer, %error, "a blob did not come");
    if error.blames_peer() {
        let _ = shared.commands.try_send(Command::Penalise { node: peer, what: "a blob that is not what was announced" });
    }
}

/// The bytes of a body from `peer`, wherever they travel. An input that finds no room is refused at once, an output is work that has been
/// done and waits for it; neither is waited for past `until`, the deadline of its call.
pub(super) async fn bytes_of(
    shared: &Shared,
    key: Key,
    body: Body,
    until: Instant,
    cancel: &CancellationToken,
    own: &OwnSide,
) -> Result<Bytes, Failure> {
    let blob = match body {
        Body::Inline(bytes) => return Ok(bytes),
        Body::Blob(blob) => blob,
    };
    let (peer, _, part) = key;
    // Inputs come to the node of an agent, outputs to the node of a caller.
    let at_agent = part == Part::Input;
    check_length(shared, part, blob.length_bytes, at_agent)?;
    let expected = shared.blobs.expect(key, blob)?;
    let pulling = async {
        own.holds_up(expected.room(if at_agent { Instant::now() } else { until })).await?;
        let began = Instant::now();
        let pulled = expected.pull().await;
        if pulled.is_ok() {
            own.on_come(blob.length_bytes, began.elapsed());
        }
        Ok(pulled)
    };
    let pulled = tokio::select! {
        biased;
        pulled = pulling => pulled?,
        () = cancel.cancelled() => return Err(Failure::new(ErrorCode::Cancelled, "the call was cancelled")),
        () = sleep_until(until) => {
            let message = format!("the {} of {} bytes did not arrive before the deadline", what(part), blob.length_bytes);
            return Err(Failure::new(ErrorCode::Timeout, message));
        }
    };
    pulled.map_err(|error| {
        blame(shared, peer, error);
        let what = what(part);
        let code = match (error.blames_peer(), at_agent) {
            (true, _) => ErrorCode::InvalidRequest,
            // Not UNAVAILABLE: that an input does not arrive is no fault of the agent, which is there.
            (false, true) => ErrorCode::Busy,
            (false, false) => ErrorCode::Unavailable,
        };
        Failure::new(code, format!("the {what} of {} bytes did not arrive: {error}", blob.length_bytes))
    })
}

/// Refuses an input or output that is larger than this node allows; `at_agent` says that it is the agent's node of the call.
pub(super) fn check_length(shared: &Shared, part: Part, bytes: u64, at_agent: bool) -> Result<(), Failure> {
    let bytes_max = u64::from(shared.config.limits.payload_bytes_max);
    if bytes <= bytes_max {
        return Ok(());
    }
    let (what, node) = (what(part), shared.node());
    let whose = if at_agent { format!("the agent's node {}", node.short()) } else { "this node".to_owned() };
    let message = format!("the {what} has {bytes} bytes, {whose} takes at most {bytes_max} (its {PAYLOAD_KEY})");
    let failure = Failure::new(ErrorCode::PayloadTooLarge, message).with("limit", bytes_max).with("key", PAYLOAD_KEY);
    Err(failure.with("node_id", node.to_string()).with("path", format!("/{what}")))
}

fn what(part: Part) -> &'static str {
    match part {
        Part::Input => "input",
        Part::Output => "output",
    }
}

/// The body that goes on a lane in place of `body`, and what has to be pushed beside it.
pub(super) async fn announced(shared: &Shared, invocation: InvocationId, part: Part, body: Body) -> (Body, Option<(Head, Bytes)>) {
    match body {
        Body::Inline(bytes) if bytes.len() > INLINE_BYTES_MAX => {
            // Boxed: what is rare must not make every call's future larger.
            let blob = Box::pin(id_of(shared, &bytes)).await;
            (Body::Blob(blob), Some((Head { invocation, part, blob }, bytes)))
        }
        Body::Inline(_) | Body::Blob(_) => (body, None),
    }
}

/// The id of `bytes`, found in pieces between which calls are let past.
async fn id_of(shared: &Shared, bytes: &[u8]) -> BlobId {
    let mut hasher = blake3::Hasher::new();
    for piece in bytes.chunks(HASHED_BYTES) {
        hasher.update(piece);
        // Who has not called yet could not be given way to without it.
        yield_now().await;
        shared.foreground.give_way().await;
    }
    BlobId { hash: *hasher.finalize().as_bytes(), length_bytes: u64::try_from(bytes.len()).unwrap_or(u64::MAX) }
}

/// Takes the body out of a request.
pub(super) fn take_body(request: &mut Request) -> Body {
    std::mem::replace(&mut request.body, Body::Inline(Bytes::new()))
}

/// A place among the bodies that are pushed to one peer.
pub(super) struct Place {
    bytes: u64,
    _owed: Option<Owed>,
    /// Places are counted as long as anybody has one.
    _pushing: Arc<Pushing>,
    _places: Vec<OwnedSemaphorePermit>,
    _room: OwnedSemaphorePermit,
}

impl Place {
    /// Waits for a place for so many bytes. However many wait that are less urgent, some places are left for those that are more; in bytes,
    /// all are served as they come, which at the default size of bodies is room for all places.
    ///
    /// # Errors
    /// `BUSY` for an output if the peer takes nothing of what it asked for, which is nobody's failure but its own.
    pub(super) async fn wait(blobs: &Blobs, peer: NodeId, part: Part, priority: Priority, bytes: u64) -> Result<Self, Failure> {
        let pushing = blobs.pushing(peer);
        let owed = match part {
            Part::Input => None,
            Part::Output => Some(Owed::new(Arc::clone(&pushing), Arc::clone(&blobs.owed_bytes), bytes)?),
        };
        let permits = u32::try_from(bytes.min(PUSHED_BYTES_MAX).div_ceil(1_024)).unwrap_or(u32::MAX);
        let closed = |_| Failure::new(ErrorCode::Internal, "the places for large bodies are gone");
        let mut places = Vec::new();
        for (_, of_class) in pushing.places.range(priority..) {
            places.push(Arc::clone(of_class).acquire_owned().await.map_err(closed)?);
        }
        let room = Arc::clone(&pushing.room).acquire_many_owned(permits).await.map_err(closed)?;
        Ok(Self { bytes, _owed: owed, _pushing: pushing, _places: places, _room: room })
    }

    fn failed(&self, peer: NodeId, what: &str) -> Failure {
        let message = format!("{} bytes could not be sent to node {}: {what}", self.bytes, peer.short());
        Failure::new(ErrorCode::Busy, message).with("retry_after_ms", 100)
    }
}

/// A body that can be pushed at once.
pub(super) struct Push {
    peer: NodeId,
    place: Place,
    stream: Stream,
}

impl Push {
    /// Opens the substream on which a body goes to `peer`.
    ///
    /// # Errors
    /// `BUSY` if there is none: nothing of it is a fault of an agent.
    pub(super) async fn open(shared: &Shared, peer: NodeId, place: Place) -> Result<Self, Failure> {
        let (reply, opened) = oneshot::channel();
        let opening = async {
            shared.commands.send(Command::OpenBlob { node: peer, reply }).await.ok()?;
            opened.await.ok()
        };
        match timeout(OPEN_MAX, opening).await.ok().flatten() {
            Some(stream) => Ok(Self { peer, place, stream }),
            None => Err(place.failed(peer, "no substream")),
        }
    }

    /// Pushes the body, and waits until it was taken. The peer may wait for `patience` before it takes anything.
    ///
    /// # Errors
    /// `BUSY` whatever broke: nothing of it is a fault of an agent. The peer has not received all bytes then.
    pub(super) async fn run(self, shared: &Shared, head: Head, bytes: Bytes, patience: Duration) -> Result<(), Failure> {
        let Self { peer, place, stream } = self;
        let pushed = blobs::push(stream, &head, &bytes, patience, &shared.foreground).await;
        pushed.map_err(|error| place.failed(peer, &error.to_string()))
    }
}

/// Counts what a peer has not taken yet.
struct Owed {
    pushing: Arc<Pushing>,
    total_bytes: Arc<AtomicU64>,
    bytes: u64,
}

impl Owed {
    fn new(pushing: Arc<Pushing>, total_bytes: Arc<AtomicU64>, bytes: u64) -> Result<Self, Failure> {
        let add = |counter: &AtomicU64| counter.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes);
        let (of_peer, total) = (add(&pushing.owed_bytes), add(&total_bytes));
        let owed = Self { pushing, total_bytes, bytes };
        let (whose, limit) = match (of_peer > OWED_BYTES_MAX, total > OWED_TOTAL_BYTES_MAX) {
            (true, _) => ("this caller", OWED_BYTES_MAX),
            // A caller that owes nothing else can take it at once.
            (false, true) if of_peer > bytes => ("the callers of this node", OWED_TOTAL_BYTES_MAX),
            (false, _) => return Ok(owed),
        };
        let failure = Failure::new(ErrorCode::Busy, format!("too many large outputs wait to be taken by {whose}"));
        Err(failure.with("limit", limit).with("retry_after_ms", 1_000))
    }
}

impl Drop for Owed {
    fn drop(&mut self) {
        for counter in [&self.pushing.owed_bytes, &self.total_bytes] {
            counter.fetch_sub(self.bytes, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use futures::future::join_all;

    use super::*;

    const BYTES: u64 = 5_000_000;
    const FIT: usize = (OWED_BYTES_MAX / BYTES) as usize;

    fn blobs() -> (Blobs, NodeId) {
        let config = Config { bytes_max: BYTES, bytes_per_peer_max: BYTES, bytes_total_max: BYTES };
        (Blobs::new(config, Clock::start()), libp2p::PeerId::random().into())
    }

    /// MAOP-10, T16: a caller that takes nothing of what it asked for is refused more, and no agent is blamed for it.
    #[tokio::test]
    async fn outputs_beyond_what_a_caller_may_owe_are_refused_until_it_takes_some() {
        let (blobs, peer) = blobs();
        let output = || Place::wait(&blobs, peer, Part::Output, Priority::High, BYTES);
        let mut under_way = join_all((0..PUSHES_PER_PEER_MAX).map(|_| output())).await;
        assert!(under_way.iter().all(Result::is_ok));
        let mut waiting: Vec<_> = (PUSHES_PER_PEER_MAX..FIT).map(|_| output().boxed()).collect();
        assert!(waiting.iter_mut().all(|place| place.now_or_never().is_none()));

        let refused = output().await.err().expect("it owes all that it may");

        assert_eq!((refused.code, refused.details["limit"].as_u64()), (ErrorCode::Busy, Some(OWED_BYTES_MAX)));
        under_way.pop();
        assert!(output().now_or_never().is_none(), "it may wait again");
    }

    /// AITP-1: a body that is urgent does not wait behind those that are not.
    #[tokio::test]
    async fn less_urgent_bodies_leave_places_for_the_others() {
        let (blobs, peer) = blobs();
        let place = |priority| Place::wait(&blobs, peer, Part::Input, priority, 1_000);
        let mut low: Vec<_> = (0..100).map(|_| place(Priority::Low).boxed()).collect();
        let under_way: Vec<_> = low.iter_mut().filter_map(FutureExt::now_or_never).collect();
        assert_eq!(under_way.len(), PUSHES_PER_PEER_MAX / 2);
        let mut normal: Vec<_> = (0..100).map(|_| place(Priority::Normal).boxed()).collect();
        let under_way_too: Vec<_> = normal.iter_mut().filter_map(FutureExt::now_or_never).collect();
        assert_eq!(under_way_too.len(), Priority::Normal.room(PUSHES_PER_PEER_MAX) - under_way.len());
        assert!(place(Priority::High).now_or_never().is_some());
        drop(under_way);
        assert_eq!(low.iter_mut().skip(PUSHES_PER_PEER_MAX / 2).filter_map(FutureExt::now_or_never).count(), 0, "normal ones are next");
        assert!(normal.iter_mut().skip(under_way_too.len()).any(|place| place.now_or_never().is_some()));
    }

    /// Threat T27: nor do many callers that take nothing hold more than this node has to give.
    #[tokio::test]
    async fn outputs_beyond_what_all_callers_may_owe_are_refused() {
        let (blobs, _) = blobs();
        let peers: Vec<NodeId> = (0..OWED_TOTAL_BYTES_MAX / OWED_BYTES_MAX + 1).map(|_| libp2p::PeerId::random().into()).collect();
        let outputs = peers.iter().flat_map(|peer| (0..FIT).map(|_| Place::wait(&blobs, *peer, Part::Output, Priority::High, BYTES)));
        let mut places: Vec<_> = outputs.map(FutureExt::boxed).collect();
        let ended: Vec<_> = places.iter_mut().filter_map(FutureExt::now_or_never).collect();
        let refused = ended.iter().find_map(|place| place.as_ref().err());
        assert_eq!(refused.map(|failure| failure.details["limit"].as_u64()), Some(Some(OWED_TOTAL_BYTES_MAX)));
        drop((places, ended));
        assert_eq!(blobs.owed_bytes.load(Ordering::Relaxed), 0);
    }

    /// MAOP-10: what this node's own clients send waits, however much it is, and comes to its turn.
    #[tokio::test]
    async fn inputs_wait_for_a_place_however_many_they_are() {
        let (blobs, peer) = blobs();
        let under_way = join_all((0..PUSHES_PER_PEER_MAX).map(|_| Place::wait(&blobs, peer, Part::Input, Priority::High, BYTES))).await;
        assert!(under_way.iter().all(Result::is_ok));
        assert!(Place::wait(&blobs, peer, Part::Input, Priority::High, BYTES).now_or_never().is_none(), "only so many go at once");
        drop(under_way);
        let inputs =
            (0..FIT * 2).map(|_| Place::wait(&blobs, peer, Part::Input, Priority::High, BYTES).map(|place| place.map(|place| place.bytes)));
        assert_eq!(join_all(inputs).await, vec![Ok(BYTES); FIT * 2]);
    }
}
