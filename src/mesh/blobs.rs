//! Blobs: large bodies, each on a substream of its own (design.md section 5).
//!
//! The sender writes a head and the bytes and closes; the receiver reads as many bytes as were announced, checks their hash as they
//! come, says so after each piece but the last, and drops the substream, by which the sender knows that all were taken. What was announced, and by whom,
//! is decided in [`crate::proto::invocation::blobs`]; nothing is read before it was. How much may be on its way is decided by
//! [`crate::proto::invocation::window`], and between two pieces the sender gives way to calls. Bytes have to keep coming at a minimum rate
//! (threat T4).

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use libp2p::{Stream, StreamProtocol};
use tokio::time::{Instant, timeout};

use super::foreground::Foreground;
use crate::proto::invocation::window::Window;
use crate::wire::blob::{HEAD_BYTES, Head, PIECE_BYTES};
use crate::wire::invocation::BlobId;

/// The name under which peers negotiate a blob.
pub const PROTOCOL: StreamProtocol = StreamProtocol::new("/meshwork/blob/1");

/// How long a head may take.
const HEAD_MAX: Duration = Duration::from_secs(5);
/// Within this time the next piece has to come, or be taken.
const PIECE_MAX: Duration = Duration::from_secs(5);
/// Pieces of which the receiver may tell at once.
const TOLD_MAX: usize = 64;
/// Bytes that are hashed at once: some tens of microseconds, and few enough to be in the cache still.
pub const HASHED_BYTES: usize = 128 * 1024;
/// Memory that is taken before any byte has come.
const RESERVED_BYTES: usize = 256 * 1024;

/// Why a blob did not come. [`Error::blames_peer`] says which of them only a faulty peer causes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The substream or its connection broke. Happens in normal life.
    #[error("its substream broke off")]
    Broken,
    /// Less than the minimum rate.
    #[error("it came too slowly")]
    Slow,
    /// Another blob than was announced.
    #[error("it is not what was announced")]
    Mismatch,
    /// No head that can be read.
    #[error("its head cannot be read")]
    Head,
}

impl Error {
    /// Whether only a faulty or hostile peer does this.
    pub fn blames_peer(self) -> bool {
        match self {
            Self::Broken | Self::Slow => false,
            Self::Mismatch | Self::Head => true,
        }
    }
}

/// Sends a blob, and waits until the other side has taken it. It may wait for `patience` before it takes a piece, because it has no room yet.
///
/// # Errors
/// [`Error::Broken`] if the other side does not want it or is gone, [`Error::Slow`] if it does not take it in. Not all bytes have been
/// sent then.
pub async fn push(mut stream: Stream, head: &Head, bytes: &Bytes, patience: Duration, foreground: &Foreground) -> Result<(), Error> {
    let piece_max = PIECE_MAX.max(patience);
    let broken = |_| Error::Broken;
    timeout(HEAD_MAX, stream.write_all(&head.encode())).await.map_err(|_| Error::Slow)?.map_err(broken)?;
    let mut sending = Sending { stream, window: Window::new(), began: Instant::now() };
    for piece in bytes.chunks(PIECE_BYTES) {
        timeout(piece_max, sending.send(piece)).await.map_err(|_| Error::Slow)??;
        foreground.give_way().await;
    }
    let Sending { mut stream, window, .. } = sending;
    // Whoever has all bytes may drop the substream before it is closed here, so what goes wrong from now on is no failure.
    let _ = timeout(piece_max, stream.close()).await;
    for _ in 0..=window.outstanding() {
        let Ok(Ok(1..)) = timeout(piece_max, stream.read(&mut [0; TOLD_MAX])).await else { break };
    }
    Ok(())
}

/// A blob on its way.
struct Sending {
    stream: Stream,
    window: Window,
    began: Instant,
}

impl Sending {
    /// Writes a piece once the window has room for it.
    async fn send(&mut self, piece: &[u8]) -> Result<(), Error> {
        let mut rest = piece;
        poll_fn(|cx| {
            // What was taken is heard of at once: its time is what the window goes by.
            let mut taken = [0; TOLD_MAX];
            while let Poll::Ready(read) = Pin::new(&mut self.stream).poll_read(cx, &mut taken) {
                let pieces = read.ok().filter(|pieces| *pieces > 0).ok_or(Error::Broken)?;
                for _ in 0..pieces {
                    self.window.on_taken(self.began.elapsed()).map_err(|_| Error::Broken)?;
                }
            }
            while rest.len() < piece.len() || self.window.has_room() {
                let written = ready!(Pin::new(&mut self.stream).poll_write(cx, rest)).map_err(|_| Error::Broken)?;
                rest = rest.get(written..).filter(|_| written > 0).ok_or(Error::Broken)?;
                if rest.is_empty() {
                    self.window.handle_sent(self.began.elapsed());
                    return Poll::Ready(Ok(()));
                }
            }
            Poll::Pending
        })
        .await?;
        self.stream.flush().await.map_err(|_| Error::Broken)
    }
}

/// Reads the head of a blob.
///
/// # Errors
/// If it does not come in time, or cannot be read.
pub async fn read_head(stream: &mut Stream) -> Result<Head, Error> {
    let mut bytes = [0; HEAD_BYTES];
    timeout(HEAD_MAX, stream.read_exact(&mut bytes)).await.map_err(|_| Error::Slow)?.map_err(|_| Error::Broken)?;
    Head::decode(&bytes).map_err(|_| Error::Head)
}

/// Reads the bytes of an announced blob.
///
/// # Errors
/// If they do not come, or are others.
pub async fn pull(mut stream: Stream, blob: &BlobId) -> Result<Bytes, Error> {
    let length = usize::try_from(blob.length_bytes).map_err(|_| Error::Mismatch)?;
    // An announcement is cheap, so memory follows the bytes that really come.
    let mut bytes = BytesMut::with_capacity(length.min(RESERVED_BYTES));
    let (mut hasher, mut hashed) = (blake3::Hasher::new(), 0);
    while bytes.len() < length {
        let start = bytes.len();
        let end = length.min(start.saturating_add(PIECE_BYTES));
        bytes.resize(end, 0);
        let piece = bytes.get_mut(start..).unwrap_or_default();
        timeout(PIECE_MAX, stream.read_exact(piece)).await.map_err(|_| Error::Slow)?.map_err(|_| Error::Broken)?;
        if end - hashed >= HASHED_BYTES || end == length {
            hasher.update(bytes.get(hashed..).unwrap_or_default());
            hashed = end;
        }
        // That the last piece was taken shows when the substream is dropped.
        if end < length {
            let told = async {
                stream.write_all(&[0]).await?;
                stream.flush().await
            };
            timeout(PIECE_MAX, told).await.map_err(|_| Error::Slow)?.map_err(|_| Error::Broken)?;
        }
    }
    if *hasher.finalize().as_bytes() != blob.hash {
        return Err(Error::Mismatch);
    }
    Ok(bytes.freeze())
}
