//! Large bodies on their way: expected from peers, pushed to them.
//!
//! What is expected from whom is decided in `proto::invocation::blobs`; here the streams are read and written, under two budgets: bytes that
//! peers have announced, and bytes that they have asked for and do not take.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use libp2p::Stream;
use tokio::sync::{Semaphore, oneshot};
use tokio_util::sync::CancellationToken;

use crate::mesh::blobs::{self, Error};
use crate::model::{ErrorCode, Failure, InvocationId, NodeId};
use crate::node::clock::Clock;
use crate::node::shared::{Command, Shared, lock};
use crate::proto::invocation::blobs::{Arrival, Config, Key, State};
use crate::wire::blob::{Head, Part};
use crate::wire::invocation::{BlobId, Body, INLINE_BYTES_MAX, Request};

/// How long the substream of an announced blob may take to come.
const STREAM_WAIT_MAX: Duration = Duration::from_secs(5);
/// How long opening a substream may take.
const OPEN_MAX: Duration = Duration::from_secs(5);
/// Substreams of one peer whose heads are being read.
const HEADS_PER_PEER_MAX: usize = 16;
/// Bytes that are pushed to one peer at once.
const PUSHED_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// Bytes that one peer may have asked for and not taken; beyond it its answers are dropped, and it is told why.
const OWED_BYTES_MAX: u64 = 4 * PUSHED_BYTES_MAX;

/// What is pushed to one peer.
#[derive(Debug)]
struct Pushing {
    /// One permit per KiB.
    room: Semaphore,
    owed_bytes: AtomicU64,
}

/// The blobs of this node.
#[derive(Debug)]
pub(in crate::node) struct Blobs {
    state: Mutex<State<Stream, oneshot::Sender<Stream>>>,
    heads_by_peer: Mutex<BTreeMap<NodeId, usize>>,
    pushing_by_peer: Mutex<BTreeMap<NodeId, Arc<Pushing>>>,
    clock: Clock,
}

impl Blobs {
    pub(in crate::node) fn new(config: Config, clock: Clock) -> Self {
        let state = Mutex::new(State::new(config));
        Self { state, heads_by_peer: Mutex::default(), pushing_by_peer: Mutex::default(), clock }
    }

    /// Refuses streams that nobody announced in time.
    pub(in crate::node) fn tick(&self, now: Duration) {
        drop(lock(&self.state).handle_timeout(now));
    }

    /// From now on the blob with this key is welcome, until what is returned is dropped.
    pub(super) fn expect(&self, key: Key, blob: BlobId) -> Result<Expected<'_>, Failure> {
        let (waiter, stream) = oneshot::channel();
        if let Some((early, waiter)) = lock(&self.state).handle_expect(key, blob, waiter)? {
            let _ = waiter.send(early);
        }
        Ok(Expected { blobs: self, key, blob, stream: Some(stream) })
    }

    fn on_stream(&self, peer: NodeId, head: &Head, stream: Stream) {
        match lock(&self.state).on_stream(peer, head, stream, self.clock.now().mono) {
            Arrival::Deliver(stream, waiter) => drop(waiter.send(stream)),
            Arrival::Held => {}
            Arrival::Refuse(_, why) => tracing::debug!(%peer, why, "a blob was refused"),
        }
    }

    fn pushing(&self, peer: NodeId) -> Arc<Pushing> {
        let mut pushing = lock(&self.pushing_by_peer);
        pushing.retain(|_, pushing| Arc::strong_count(pushing) > 1);
        let fresh = || {
            let room = Semaphore::new(usize::try_from(PUSHED_BYTES_MAX / 1_024).unwrap_or(usize::MAX));
            Arc::new(Pushing { room, owed_bytes: AtomicU64::new(0) })
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
    stream: Option<oneshot::Receiver<Stream>>,
}

impl Drop for Expected<'_> {
    fn drop(&mut self) {
        lock(&self.blobs.state).handle_done(&self.key);
    }
}

impl Expected<'_> {
    /// Waits for the bytes.
    async fn pull(mut self) -> Result<Bytes, Error> {
        let Some(stream) = self.stream.take() else { return Err(Error::Broken) };
        match tokio::time::timeout(STREAM_WAIT_MAX, stream).await {
            Ok(Ok(stream)) => blobs::pull(stream, &self.blob).await,
            Ok(Err(_)) | Err(_) => Err(Error::Broken),
        }
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

/// The bytes of a body from `peer`, wherever they travel.
pub(super) async fn bytes_of(
    shared: &Shared,
    peer: NodeId,
    invocation: InvocationId,
    part: Part,
    body: Body,
    cancel: &CancellationToken,
) -> Result<Bytes, Failure> {
    let blob = match body {
        Body::Inline(bytes) => return Ok(bytes),
        Body::Blob(blob) => blob,
    };
    // Inputs come to the node of an agent, outputs to the node of a caller.
    let at_agent = part == Part::Input;
    check_length(shared, part, blob.length_bytes, at_agent)?;
    let expected = shared.blobs.expect((peer, invocation, part), blob)?;
    let pulled = tokio::select! {
        pulled = expected.pull() => pulled,
        () = cancel.cancelled() => return Err(Failure::new(ErrorCode::Cancelled, "the call was cancelled")),
    };
    pulled.map_err(|error| {
        blame(shared, peer, error);
        let what = what(part);
        let code = if error.blames_peer() { ErrorCode::InvalidRequest } else { ErrorCode::Unavailable };
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
pub(super) fn announced(invocation: InvocationId, part: Part, body: Body) -> (Body, Option<(Head, Bytes)>) {
    match body {
        Body::Inline(bytes) if bytes.len() > INLINE_BYTES_MAX => {
            let blob = BlobId::of(&bytes);
            (Body::Blob(blob), Some((Head { invocation, part, blob }, bytes)))
        }
        Body::Inline(_) | Body::Blob(_) => (body, None),
    }
}

/// Takes the body out of a request.
pub(super) fn take_body(request: &mut Request) -> Body {
    std::mem::replace(&mut request.body, Body::Inline(Bytes::new()))
}

/// Pushes a blob to `peer`. Waits while much is on its way there.
///
/// # Errors
/// `INSUFFICIENT_RESOURCES` if the peer takes nothing of what it asked for; else whatever broke.
pub(super) async fn push(shared: &Shared, peer: NodeId, head: Head, bytes: Bytes) -> Result<(), Failure> {
    let pushing = shared.blobs.pushing(peer);
    let _owed = Owed::new(&pushing, head.blob.length_bytes)?;
    let permits = u32::try_from(head.blob.length_bytes.min(PUSHED_BYTES_MAX).div_ceil(1_024)).unwrap_or(u32::MAX);
    let unavailable =
        |what: String| Failure::new(ErrorCode::Unavailable, format!("{} bytes for node {}: {what}", head.blob.length_bytes, peer.short()));
    let _room = pushing.room.acquire_many(permits).await.map_err(|error| unavailable(error.to_string()))?;
    let (reply, opened) = oneshot::channel();
    let asked = shared.commands.try_send(Command::OpenBlob { node: peer, reply });
    asked.map_err(|_| unavailable("this node is too busy".to_owned()))?;
    let stream = tokio::time::timeout(OPEN_MAX, opened).await.ok().and_then(Result::ok);
    let stream = stream.ok_or_else(|| unavailable("no substream".to_owned()))?;
    blobs::push(stream, &head, &bytes).await.map_err(|error| unavailable(error.to_string()))
}

/// Counts what a peer has not taken yet.
struct Owed<'a>(&'a Pushing, u64);

impl<'a> Owed<'a> {
    fn new(pushing: &'a Pushing, bytes: u64) -> Result<Self, Failure> {
        let owed = Self(pushing, bytes);
        if pushing.owed_bytes.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes) > OWED_BYTES_MAX {
            let failure = Failure::new(ErrorCode::InsufficientResources, "too many large bodies wait to be taken");
            return Err(failure.with("limit", OWED_BYTES_MAX));
        }
        Ok(owed)
    }
}

impl Drop for Owed<'_> {
    fn drop(&mut self) {
        self.0.owed_bytes.fetch_sub(self.1, Ordering::Relaxed);
    }
}
