//! The control protocol on the wire: one bounded CBOR document each way.

use std::io;

use futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use libp2p::{StreamProtocol, request_response};

use crate::wire::{
    self, Document,
    directory::{Control, Reply},
};

/// The name under which peers negotiate it.
pub(super) const PROTOCOL: StreamProtocol = StreamProtocol::new("/meshwork/control/1");

/// Reads and writes [`Control`] and [`Reply`]. A request that cannot be decoded is handed on as such, so that its sender can be told.
#[derive(Debug, Clone, Default)]
pub(super) struct Codec;

async fn read_all<T: AsyncRead + Unpin + Send>(io: &mut T, bytes_max: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let limit = u64::try_from(bytes_max).unwrap_or(u64::MAX).saturating_add(1);
    io.take(limit).read_to_end(&mut bytes).await?;
    Ok(bytes)
}

fn invalid(error: wire::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

impl request_response::Codec for Codec {
    type Protocol = StreamProtocol;
    type Request = Result<Control, wire::Error>;
    type Response = Reply;

    async fn read_request<T>(&mut self, _: &StreamProtocol, io: &mut T) -> io::Result<Self::Request>
    where
        T: AsyncRead + Unpin + Send,
    {
        let bytes = read_all(io, Control::BYTES_MAX).await?;
        Ok(wire::decode(&bytes))
    }

    async fn read_response<T>(&mut self, _: &StreamProtocol, io: &mut T) -> io::Result<Reply>
    where
        T: AsyncRead + Unpin + Send,
    {
        let bytes = read_all(io, Reply::BYTES_MAX).await?;
        // A peer that gives up closes the stream, which is a failure and no lie.
        if bytes.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        wire::decode(&bytes).map_err(invalid)
    }

    async fn write_request<T>(&mut self, _: &StreamProtocol, io: &mut T, request: Self::Request) -> io::Result<()>
    where
        T: AsyncWrite + Unpin + Send,
    {
        let bytes = request.and_then(|request| wire::encode(&request)).map_err(invalid)?;
        io.write_all(&bytes).await
    }

    async fn write_response<T>(&mut self, _: &StreamProtocol, io: &mut T, reply: Reply) -> io::Result<()>
    where
        T: AsyncWrite + Unpin + Send,
    {
        io.write_all(&wire::encode(&reply).map_err(invalid)?).await
    }
}
