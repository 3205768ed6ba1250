//! Bytes of a lane: frames out of a stream and into it, with bounded buffers.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use libp2p::Stream;
use tokio::time::Instant;

use crate::mesh::foreground::Foreground;
use crate::wire;
use crate::wire::invocation::{Body, FRAME_BYTES_MAX, Frame, LENGTH_BYTES};

/// Bytes that are read at once.
const READ_BYTES: usize = 32 * 1024;
/// Above this much unwritten output a lane takes no more work.
pub(super) const OUTPUT_HIGH_BYTES: usize = 512 * 1024;
/// How long a frame may take from its first byte to its last, and unwritten output may wait (threat T4).
pub(super) const PROGRESS_MAX: Duration = Duration::from_secs(10);

/// The reading half, with what was read and is not yet a whole frame.
pub(super) struct Reader<R> {
    half: R,
    /// What a read fills; cleared once, so that no read pays for more than it brings.
    scratch: Box<[u8]>,
    buffer: BytesMut,
    /// Since when an incomplete frame waits for its rest.
    pub(super) partial_since: Option<Instant>,
}

/// The writing half, with what is not yet written.
pub(super) struct Writer<W> {
    half: W,
    buffer: Vec<u8>,
    written: usize,
    dirty: bool,
    foreground: Arc<Foreground>,
    /// Whether a body is among what was not flushed.
    carries: bool,
    /// Since when no byte could be written although some wait.
    pub(super) stuck_since: Option<Instant>,
}

/// Both halves of a lane.
pub(super) fn split(stream: Stream, foreground: Arc<Foreground>) -> (Reader<impl AsyncRead + Unpin>, Writer<impl AsyncWrite + Unpin>) {
    let (reading, writing) = stream.split();
    let reader = Reader { half: reading, scratch: vec![0; READ_BYTES].into(), buffer: BytesMut::new(), partial_since: None };
    let (buffer, stuck_since) = (Vec::new(), None);
    (reader, Writer { half: writing, buffer, written: 0, dirty: false, foreground, carries: false, stuck_since })
}

impl<R: AsyncRead + Unpin> Reader<R> {
    /// Reads what is there. Returns false at the end of the stream. Dropping the future loses nothing.
    pub(super) async fn fill(&mut self) -> io::Result<bool> {
        let read = self.half.read(&mut self.scratch).await?;
        self.buffer.extend_from_slice(self.scratch.get(..read).unwrap_or_default());
        Ok(read > 0)
    }

    /// The next whole frame among what was read.
    pub(super) fn frame(&mut self, now: Instant) -> Result<Option<Frame>, wire::Error> {
        let Some(length) = self.buffer.first_chunk::<LENGTH_BYTES>().map(|length| u32::from_be_bytes(*length)) else {
            self.partial_since = if self.buffer.is_empty() { None } else { self.partial_since.or(Some(now)) };
            return Ok(None);
        };
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        if length > FRAME_BYTES_MAX {
            return Err(wire::Error::Oversize { kind: "frame", bytes: length, bytes_max: FRAME_BYTES_MAX });
        }
        let whole = length.saturating_add(LENGTH_BYTES);
        if self.buffer.len() < whole {
            self.partial_since = self.partial_since.or(Some(now));
            return Ok(None);
        }
        self.partial_since = None;
        match self.buffer.get(LENGTH_BYTES..whole).filter(|frame| frame.len() < READ_BYTES / 8) {
            Some(small) => {
                let frame = Frame::decode_copied(small);
                self.buffer.advance(whole);
                frame.map(Some)
            }
            None => Frame::decode(&self.buffer.split_to(whole).freeze().slice(LENGTH_BYTES..)).map(Some),
        }
    }
}

impl<W: AsyncWrite + Unpin> Writer<W> {
    /// Queues a frame.
    pub(super) fn push(&mut self, frame: &Frame) -> Result<(), wire::Error> {
        self.carries |= carries_body(frame);
        frame.encode(&mut self.buffer)
    }

    /// Bytes that wait to be written.
    pub(super) fn waiting(&self) -> usize {
        self.buffer.len().saturating_sub(self.written)
    }

    /// Whether [`Writer::advance`] has something to do.
    pub(super) fn is_dirty(&self) -> bool {
        self.dirty || self.waiting() > 0
    }

    /// Writes some of what waits, or flushes once all is written. Dropping the future loses nothing.
    pub(super) async fn advance(&mut self) -> io::Result<()> {
        if self.waiting() == 0 {
            self.half.flush().await?;
            self.dirty = false;
            if std::mem::take(&mut self.carries) {
                self.foreground.on_calls();
            }
            return Ok(());
        }
        self.stuck_since.get_or_insert_with(Instant::now);
        let waiting = self.buffer.get(self.written..).unwrap_or_default();
        let written = self.half.write(waiting).await?;
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        self.stuck_since = None;
        self.dirty = true;
        self.written = self.written.saturating_add(written);
        if self.written >= self.buffer.len() {
            self.buffer.clear();
            self.written = 0;
            // One burst must not hold its memory for the life of the lane.
            self.buffer.shrink_to(READ_BYTES);
        }
        Ok(())
    }
}

/// Whether a call, an answer or a part of one travels in the frame itself.
fn carries_body(frame: &Frame) -> bool {
    match frame {
        Frame::Request { request, .. } => matches!(request.body, Body::Inline(_)),
        Frame::Result { success, .. } => matches!(success.body, Body::Inline(_)),
        Frame::Chunk { .. } => true,
        Frame::Cancel { .. }
        | Frame::Ping { .. }
        | Frame::Accepted { .. }
        | Frame::Error { .. }
        | Frame::Pong { .. }
        | Frame::Credit { .. }
        | Frame::Go { .. } => false,
    }
}

/// When a lane is given up because one of its halves makes no progress.
pub(super) fn progress_deadline<R, W>(reader: &Reader<R>, writer: &Writer<W>) -> Option<Instant> {
    let since = [reader.partial_since, writer.stuck_since].into_iter().flatten().min()?;
    since.checked_add(PROGRESS_MAX)
}
