//! Frames of a lane (design.md section 5).
//!
//! A lane is one long-lived substream on which the opener calls and the other side answers. Each frame is a length of four bytes, big
//! end first, and a CBOR array whose first element says which frame it is. A body is a byte string at the end of the array, sliced out of
//! the receive buffer rather than copied; one over [`INLINE_BYTES_MAX`] is announced by hash and length, and travels on a substream of its
//! own ([`super::blob`]), so that it never stands in the way of a small call.
//!
//! Every [`Request`] has exactly one final [`Frame::Result`] or [`Frame::Error`]. A request that must not be done twice asks to be
//! confirmed: the agent's node says [`Frame::Accepted`] once the agent is free, and the work begins at [`Frame::Go`]. Until its caller has
//! sent that, the call has surely not begun and may be tried elsewhere; a call that may be repeated saves itself the round trip. Chunks of a
//! streamed answer come within the credit that the caller has granted, counted in [`chunk_cost`]. AMP-3, AMP-4, MEAP-1, MEAP-7: the
//! envelope's fields; who sends is proven by the channel and so not written again.

use bytes::Bytes;
use minicbor::{Decoder, Encoder, decode, encode};

use super::{Error, malformed};
use crate::model::{AgentId, CapabilityName, Failure, InvocationId, NodeId, Priority, VersionRequirement};

/// The largest body or chunk that travels on a lane itself.
pub const INLINE_BYTES_MAX: usize = 64 * 1024;
/// The largest frame: a body and its head.
pub const FRAME_BYTES_MAX: usize = INLINE_BYTES_MAX + 8 * 1024;
/// Calls in turn that may lead to a call (threat T20).
pub const HOPS_MAX: usize = 8;
/// The largest credit that a caller may have granted and not seen used.
pub const WINDOW_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// What the smallest chunk costs, so that credit bounds the number of chunks under way as well as their bytes.
pub const CHUNK_COST_MIN: u64 = 256;
/// Longest idempotency key, in bytes.
pub const KEY_BYTES_MAX: usize = 128;
/// The four bytes before each frame.
pub const LENGTH_BYTES: usize = 4;

const KIND: &str = "frame";
const TEXT_BYTES_MAX: usize = 256;
const FAILURE_BYTES_MAX: usize = 4 * 1024;

/// A call that led to this one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hop {
    /// The node on which it was made.
    pub node: NodeId,
    /// The agent that made it.
    pub agent: AgentId,
}

/// An input or output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    /// JSON text, at most [`INLINE_BYTES_MAX`].
    Inline(Bytes),
    /// JSON text that travels on a substream of its own.
    Blob(BlobId),
}

/// What a blob is known by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlobId {
    /// BLAKE3 of its bytes.
    pub hash: [u8; 32],
    /// How many there are; no substream carries more than [`BLOB_BYTES_MAX`](super::blob::BLOB_BYTES_MAX).
    pub length_bytes: u64,
}

impl BlobId {
    /// The id of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self { hash: *blake3::hash(bytes).as_bytes(), length_bytes: u64::try_from(bytes.len()).unwrap_or(u64::MAX) }
    }
}

impl Body {
    /// How many bytes the text has.
    pub fn len(&self) -> u64 {
        match self {
            Self::Inline(bytes) => u64::try_from(bytes.len()).unwrap_or(u64::MAX),
            Self::Blob(blob) => blob.length_bytes,
        }
    }

    /// Whether there is no byte, which is never JSON.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// What a chunk of this many bytes takes of the credit.
pub fn chunk_cost(bytes: usize) -> u64 {
    u64::try_from(bytes).unwrap_or(u64::MAX).max(CHUNK_COST_MIN)
}

/// One call as it travels to the agent's node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The same on every node that the call passes.
    pub invocation: InvocationId,
    /// What is called.
    pub capability: CapabilityName,
    /// Which versions will do.
    pub version: Option<VersionRequirement>,
    /// Who shall do it.
    pub agent: AgentId,
    /// Time left, in milliseconds: clocks are not compared.
    pub budget_ms: u64,
    /// How urgent it is.
    pub priority: Priority,
    /// Calls with one key from one caller are one call.
    pub key: Option<String>,
    /// Which attempt of a task's step it is; a lower one under the same key comes too late (design/tasks.md, "Fences and idempotency").
    pub fence: Option<Fence>,
    /// W3C trace context.
    pub traceparent: Option<String>,
    /// The calls that led to this one, outermost first; none where a client made it.
    pub hops: Vec<Hop>,
    /// Whether the work waits for [`Frame::Go`].
    pub confirm: bool,
    /// Credit for chunks of the answer, at most [`WINDOW_BYTES_MAX`]; 0 if the caller wants none.
    pub window_bytes: u64,
    /// The input, as JSON text; beside a context where there is one ([`super::paired`]).
    pub body: Body,
    /// Whether the agent is given a shared context, and may write to it with its answer. The last thing in the frame, and only there if so.
    pub with_context: bool,
}

/// Which attempt of a task's step a call is; with the caller, who is the task's owner, and the key, nothing else has the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fence {
    /// How often the task has changed its owner.
    pub epoch: u64,
    /// The attempt, from 1 on.
    pub attempt: u32,
}

/// The good end of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Success {
    /// Units of work to be paid for, as a decimal.
    pub units: Option<String>,
    /// How long the agent worked, in microseconds.
    pub execution_us: u64,
    /// The output, as JSON text; beside what is written to the context if the request came with one ([`super::paired`]).
    pub body: Body,
}

/// One message on a lane. `id` numbers the calls of one lane and means nothing elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// Caller: do this.
    Request {
        /// The call's number on this lane.
        id: u64,
        /// The call.
        request: Box<Request>,
    },
    /// Caller: never mind.
    Cancel {
        /// The call's number.
        id: u64,
    },
    /// Caller: are you there?
    Ping {
        /// Comes back in the answer.
        nonce: u64,
    },
    /// Answerer: the agent is free, and waits for [`Frame::Go`].
    Accepted {
        /// The call's number.
        id: u64,
    },
    /// Answerer: done.
    Result {
        /// The call's number.
        id: u64,
        /// What came of it.
        success: Success,
    },
    /// Answerer: it cannot be, or went wrong.
    Error {
        /// The call's number.
        id: u64,
        /// Whether the agent may have begun.
        begun: bool,
        /// Why, as JSON text of a [`Failure`].
        failure: Bytes,
    },
    /// Answerer: I am here.
    Pong {
        /// The nonce of the ping.
        nonce: u64,
    },
    /// Answerer: a chunk of the answer.
    Chunk {
        /// The call's number.
        id: u64,
        /// The chunk, as JSON text.
        chunk: Bytes,
    },
    /// Caller: this much of the chunks has been taken.
    Credit {
        /// The call's number.
        id: u64,
        /// What may be sent in addition.
        bytes: u64,
    },
    /// Caller: begin.
    Go {
        /// The call's number.
        id: u64,
    },
}

impl Frame {
    /// A final error frame.
    pub fn error(id: u64, begun: bool, failure: &Failure) -> Self {
        let text = serde_json::to_vec(failure).unwrap_or_default();
        let slim = || {
            let bare = Failure::new(failure.code, &failure.message).retryable(failure.retryable);
            serde_json::to_vec(&bare).unwrap_or_default()
        };
        let failure = if text.len() <= FAILURE_BYTES_MAX { text } else { slim() };
        Self::Error { id, begun, failure: failure.into() }
    }

    /// Appends the frame with its length to `buffer`.
    ///
    /// # Errors
    /// [`Error::Oversize`] if it is larger than a receiver would take; `buffer` is then as it was.
    pub fn encode(&self, buffer: &mut Vec<u8>) -> Result<(), Error> {
        let start = buffer.len();
        let body = start.saturating_add(LENGTH_BYTES);
        buffer.extend_from_slice(&[0; LENGTH_BYTES]);
        let written = self.write(&mut Encoder::new(&mut *buffer));
        let length = buffer.len().saturating_sub(body);
        if let Err(error) = written {
            buffer.truncate(start);
            return Err(malformed(KIND, &error));
        }
        if length > FRAME_BYTES_MAX {
            buffer.truncate(start);
            return Err(Error::Oversize { kind: KIND, bytes: length, bytes_max: FRAME_BYTES_MAX });
        }
        let prefix = u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes();
        if let Some(place) = buffer.get_mut(start..body) {
            place.copy_from_slice(&prefix);
        }
        Ok(())
    }

    fn write(&self, e: &mut Encoder<&mut Vec<u8>>) -> Result<(), encode::Error<std::convert::Infallible>> {
        match self {
            Self::Request { id, request } => {
                e.array(if request.with_context { 16 } else { 15 })?
                    .u8(0)?
                    .u64(*id)?
                    .bytes(&request.invocation.to_bytes())?
                    .str(request.capability.as_str())?;
                text(e, request.version.as_ref().map(ToString::to_string).as_deref())?;
                e.bytes(&request.agent.public_key())?.u64(request.budget_ms)?.u8(request.priority as u8)?;
                text(e, request.key.as_deref())?;
                match request.fence {
                    Some(fence) => e.array(2)?.u64(fence.epoch)?.u32(fence.attempt)?,
                    None => e.null()?,
                };
                text(e, request.traceparent.as_deref())?;
                e.array(u64::try_from(request.hops.len()).unwrap_or(u64::MAX))?;
                for hop in &request.hops {
                    e.array(2)?.bytes(&hop.node.peer_id().to_bytes())?.bytes(&hop.agent.public_key())?;
                }
                e.bool(request.confirm)?.u64(request.window_bytes)?;
                body(e, &request.body)?;
                if request.with_context {
                    e.bool(true)?;
                }
            }
            Self::Cancel { id } => {
                e.array(2)?.u8(1)?.u64(*id)?;
            }
            Self::Ping { nonce } => {
                e.array(2)?.u8(2)?.u64(*nonce)?;
            }
            Self::Accepted { id } => {
                e.array(2)?.u8(3)?.u64(*id)?;
            }
            Self::Result { id, success } => {
                e.array(5)?.u8(4)?.u64(*id)?;
                text(e, success.units.as_deref())?;
                e.u64(success.execution_us)?;
                body(e, &success.body)?;
            }
            Self::Error { id, begun, failure } => {
                e.array(4)?.u8(5)?.u64(*id)?.bool(*begun)?.bytes(failure)?;
            }
            Self::Pong { nonce } => {
                e.array(2)?.u8(6)?.u64(*nonce)?;
            }
            Self::Chunk { id, chunk } => {
                e.array(3)?.u8(7)?.u64(*id)?.bytes(chunk)?;
            }
            Self::Credit { id, bytes } => {
                e.array(3)?.u8(8)?.u64(*id)?.u64(*bytes)?;
            }
            Self::Go { id } => {
                e.array(2)?.u8(9)?.u64(*id)?;
            }
        }
        Ok(())
    }

    /// Reads one frame, without its length. The payload is a slice of `bytes`.
    ///
    /// # Errors
    /// [`Error::Oversize`] or [`Error::Malformed`]; the lane should be closed, since its sender cannot be followed any more.
    pub fn decode(bytes: &Bytes) -> Result<Self, Error> {
        Self::decode_from(bytes, Some(bytes))
    }

    /// Reads one frame, without its length. The payload is copied, so that a small one does not keep alive all that came with it.
    ///
    /// # Errors
    /// As [`Frame::decode`].
    pub fn decode_copied(bytes: &[u8]) -> Result<Self, Error> {
        Self::decode_from(bytes, None)
    }

    fn decode_from(bytes: &[u8], shared: Option<&Bytes>) -> Result<Self, Error> {
        if bytes.len() > FRAME_BYTES_MAX {
            return Err(Error::Oversize { kind: KIND, bytes: bytes.len(), bytes_max: FRAME_BYTES_MAX });
        }
        let mut d = Decoder::new(bytes);
        let frame = read(&mut d, shared).map_err(|error| malformed(KIND, &error))?;
        if d.position() != bytes.len() {
            return Err(malformed(KIND, &"bytes after the end"));
        }
        Ok(frame)
    }
}

fn text(e: &mut Encoder<&mut Vec<u8>>, value: Option<&str>) -> Result<(), encode::Error<std::convert::Infallible>> {
    match value {
        Some(value) => e.str(value)?,
        None => e.null()?,
    };
    Ok(())
}

fn body(e: &mut Encoder<&mut Vec<u8>>, body: &Body) -> Result<(), encode::Error<std::convert::Infallible>> {
    match body {
        Body::Inline(bytes) => e.bytes(bytes)?,
        Body::Blob(blob) => e.array(2)?.bytes(&blob.hash)?.u64(blob.length_bytes)?,
    };
    Ok(())
}

fn read(d: &mut Decoder<'_>, whole: Option<&Bytes>) -> Result<Frame, decode::Error> {
    let length = d.array()?.ok_or_else(|| decode::Error::message("an array without a length"))?;
    let kind = d.u8()?;
    let expected = match kind {
        // One with a context says so behind its body.
        0 if length == 16 => 16,
        0 => 15,
        1..=3 | 6 | 9 => 2,
        4 => 5,
        5 => 4,
        7 | 8 => 3,
        _ => return Err(decode::Error::message("an unknown kind of frame")),
    };
    if length != expected {
        return Err(decode::Error::message("an array of the wrong length"));
    }
    let id = d.u64()?;
    Ok(match kind {
        0 => Frame::Request { id, request: Box::new(read_request(d, whole, length == 16)?) },
        1 => Frame::Cancel { id },
        2 => Frame::Ping { nonce: id },
        3 => Frame::Accepted { id },
        4 => {
            let units = read_text(d, 64)?;
            let execution_us = d.u64()?;
            Frame::Result { id, success: Success { units, execution_us, body: read_body(d, whole)? } }
        }
        5 => Frame::Error { id, begun: d.bool()?, failure: slice(d, whole, FAILURE_BYTES_MAX)? },
        6 => Frame::Pong { nonce: id },
        7 => Frame::Chunk { id, chunk: slice(d, whole, INLINE_BYTES_MAX)? },
        8 => Frame::Credit { id, bytes: d.u64()? },
        _ => Frame::Go { id },
    })
}

fn read_fence(d: &mut Decoder<'_>) -> Result<Option<Fence>, decode::Error> {
    if d.datatype()? == minicbor::data::Type::Null {
        d.null()?;
        return Ok(None);
    }
    match d.array()? {
        Some(2) => Ok(Some(Fence { epoch: d.u64()?, attempt: d.u32()? })),
        _ => Err(decode::Error::message("a fence of the wrong length")),
    }
}

fn read_request(d: &mut Decoder<'_>, whole: Option<&Bytes>, is_longer: bool) -> Result<Request, decode::Error> {
    let invocation = InvocationId::from_bytes(fixed(d)?);
    let capability = d.str()?.parse().map_err(decode::Error::message)?;
    let version = read_text(d, TEXT_BYTES_MAX)?.map(|version| version.parse()).transpose().map_err(decode::Error::message)?;
    let agent = AgentId::from_public_key(fixed(d)?);
    let budget_ms = d.u64()?;
    let priority = match d.u8()? {
        0 => Priority::Low,
        1 => Priority::Normal,
        2 => Priority::High,
        _ => return Err(decode::Error::message("an unknown priority")),
    };
    let key = read_text(d, KEY_BYTES_MAX)?;
    let fence = read_fence(d)?;
    let traceparent = read_text(d, TEXT_BYTES_MAX)?;
    let hops_len = d.array()?.ok_or_else(|| decode::Error::message("an array without a length"))?;
    let hops_len = usize::try_from(hops_len).ok().filter(|len| *len <= HOPS_MAX).ok_or_else(|| decode::Error::message("too many hops"))?;
    let mut hops = Vec::with_capacity(hops_len);
    for _ in 0..hops_len {
        if d.array()? != Some(2) {
            return Err(decode::Error::message("a hop is a node and an agent"));
        }
        let peer = libp2p_identity::PeerId::from_bytes(d.bytes()?).map_err(|_| decode::Error::message("a hop is not a node id"))?;
        hops.push(Hop { node: peer.into(), agent: AgentId::from_public_key(fixed(d)?) });
    }
    let confirm = d.bool()?;
    let window_bytes = d.u64()?;
    if window_bytes > WINDOW_BYTES_MAX {
        return Err(decode::Error::message("a window is too large"));
    }
    let body = read_body(d, whole)?;
    let with_context = is_longer && d.bool()?;
    Ok(Request {
        invocation,
        capability,
        version,
        agent,
        budget_ms,
        priority,
        key,
        fence,
        traceparent,
        hops,
        confirm,
        window_bytes,
        body,
        with_context,
    })
}

fn read_body(d: &mut Decoder<'_>, whole: Option<&Bytes>) -> Result<Body, decode::Error> {
    if d.datatype()? != minicbor::data::Type::Array {
        return slice(d, whole, INLINE_BYTES_MAX).map(Body::Inline);
    }
    if d.array()? != Some(2) {
        return Err(decode::Error::message("a blob is a hash and a length"));
    }
    Ok(Body::Blob(BlobId { hash: fixed(d)?, length_bytes: d.u64()? }))
}

fn read_text(d: &mut Decoder<'_>, bytes_max: usize) -> Result<Option<String>, decode::Error> {
    if d.datatype()? == minicbor::data::Type::Null {
        d.null()?;
        return Ok(None);
    }
    let text = d.str()?;
    if text.len() > bytes_max { Err(decode::Error::message("a text is too long")) } else { Ok(Some(text.to_owned())) }
}

fn fixed<const N: usize>(d: &mut Decoder<'_>) -> Result<[u8; N], decode::Error> {
    d.bytes()?.try_into().map_err(|_| decode::Error::message("an id of the wrong length"))
}

/// The payload: a slice of the frame where that is shared, else a copy.
fn slice(d: &mut Decoder<'_>, whole: Option<&Bytes>, bytes_max: usize) -> Result<Bytes, decode::Error> {
    let bytes = d.bytes()?;
    if bytes.len() > bytes_max {
        return Err(decode::Error::message("a payload is too large"));
    }
    let Some(whole) = whole else { return Ok(Bytes::copy_from_slice(bytes)) };
    let end = d.position();
    let start = end.checked_sub(bytes.len()).ok_or_else(|| decode::Error::message("a payload out of place"))?;
    Ok(whole.slice(start..end))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ErrorCode;

    fn request(payload: &'static [u8]) -> Frame {
        let hop = libp2p_identity::Keypair::generate_ed25519().public().to_peer_id();
        let request = Request {
            invocation: InvocationId::from_random(9),
            capability: "text-analysis".parse().expect("valid"),
            version: Some("^1.0".parse().expect("valid")),
            agent: AgentId::from_public_key([3; 32]),
            budget_ms: 60_000,
            priority: Priority::High,
            key: Some("k".to_owned()),
            fence: None,
            traceparent: None,
            hops: vec![Hop { node: hop.into(), agent: AgentId::from_public_key([4; 32]) }],
            confirm: true,
            window_bytes: 262_144,
            body: Body::Inline(Bytes::from_static(payload)),
            with_context: false,
        };
        Frame::Request { id: u64::MAX, request: Box::new(request) }
    }

    fn with_context(frame: Frame) -> Frame {
        let Frame::Request { id, request } = frame else { return frame };
        Frame::Request { id, request: Box::new(Request { with_context: true, ..*request }) }
    }

    fn frames() -> Vec<Frame> {
        let success = Success { units: Some("2.5".to_owned()), execution_us: 12, body: Body::Inline(Bytes::from_static(b"[1]")) };
        let large = Success { units: None, execution_us: 12, body: Body::Blob(BlobId::of(b"many")) };
        vec![
            request(b"{}"),
            with_context(request(b"{}")),
            Frame::Cancel { id: 1 },
            Frame::Ping { nonce: 2 },
            Frame::Accepted { id: 3 },
            Frame::Result { id: 4, success },
            Frame::Result { id: 4, success: large },
            Frame::error(5, true, &Failure::new(ErrorCode::Busy, "later").with("retry_after_ms", 10)),
            Frame::Pong { nonce: 6 },
            Frame::Chunk { id: 7, chunk: Bytes::from_static(b"\"part\"") },
            Frame::Credit { id: 8, bytes: 65_536 },
            Frame::Go { id: 9 },
        ]
    }

    fn encoded(frame: &Frame) -> Bytes {
        let mut buffer = Vec::new();
        frame.encode(&mut buffer).expect("fits");
        assert_eq!(buffer[..LENGTH_BYTES], u32::try_from(buffer.len() - LENGTH_BYTES).expect("small").to_be_bytes());
        Bytes::from(buffer).slice(LENGTH_BYTES..)
    }

    #[test]
    fn every_frame_survives_the_wire() {
        for frame in frames() {
            assert_eq!(Frame::decode(&encoded(&frame)), Ok(frame));
        }
    }

    #[test]
    fn a_frame_cut_short_or_with_a_tail_is_refused() {
        for frame in frames() {
            let bytes = encoded(&frame);
            for end in 0..bytes.len() {
                assert!(Frame::decode(&bytes.slice(..end)).is_err(), "{frame:?} cut at {end}");
            }
            let longer = [&bytes[..], &[0]].concat();
            assert!(Frame::decode(&longer.into()).is_err());
        }
    }

    #[test]
    fn no_changed_byte_makes_the_decoder_panic() {
        for frame in frames() {
            let bytes = encoded(&frame);
            for at in 0..bytes.len() {
                for flip in [0x01, 0x20, 0x80, 0xff] {
                    let mut changed = bytes.to_vec();
                    changed[at] ^= flip;
                    let _ = Frame::decode(&changed.into());
                }
            }
        }
    }

    #[test]
    fn a_payload_past_the_limit_is_not_written() {
        static LARGE: [u8; FRAME_BYTES_MAX] = [0; FRAME_BYTES_MAX];
        let mut buffer = vec![1, 2, 3];
        assert!(matches!(request(&LARGE).encode(&mut buffer), Err(Error::Oversize { .. })));
        assert_eq!(buffer, [1, 2, 3]);
    }

    #[test]
    fn an_unknown_frame_is_refused() {
        assert!(Frame::decode(&Bytes::from_static(&[0x82, 0x18, 0x63, 0x00])).is_err());
    }
}
