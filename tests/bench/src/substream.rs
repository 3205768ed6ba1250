//! One bare libp2p substream: what a large message costs before anybody makes a mesh of it.
//!
//! Two processes, TCP, Noise, yamux, no swarm, no negotiation of protocols. A message is its length in four bytes and its bytes; the other
//! side reads it whole and sends it back, as an agent would that only echoes.

use std::future::poll_fn;
use std::io;
use std::task::Poll;

use anyhow::{Context, Result, anyhow};
use bytes::Bytes;
use futures::{AsyncReadExt, AsyncWriteExt, StreamExt};
use libp2p::core::muxing::{StreamMuxerBox, StreamMuxerExt, SubstreamBox};
use libp2p::core::transport::{Boxed, DialOpts, ListenerId, PortUse, TransportEvent};
use libp2p::core::upgrade::Version;
use libp2p::core::{Endpoint, Transport};
use libp2p::identity::Keypair;
use libp2p::{Multiaddr, PeerId, noise, tcp, yamux};
use tokio::sync::{mpsc, oneshot};

use crate::load::{Caller, Contender};

/// Callers that may wait for a substream.
const OPENING_MAX: usize = 16;
/// Larger messages are a mistake of this program.
const MESSAGE_BYTES_MAX: usize = 64 * 1024 * 1024;

type Connections = Boxed<(PeerId, StreamMuxerBox)>;

fn transport() -> Result<Connections> {
    let noise = noise::Config::new(&Keypair::generate_ed25519())?;
    let tcp = tcp::tokio::Transport::new(tcp::Config::default().nodelay(true));
    let upgraded = tcp.upgrade(Version::V1Lazy).authenticate(noise).multiplex(yamux::Config::default());
    Ok(upgraded.map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer))).boxed())
}

/// Echoes on every substream of every connection until the process ends.
pub(crate) async fn serve(ready: impl FnOnce(String) -> Result<()>) -> Result<()> {
    let mut transport = transport()?;
    transport.listen_on(ListenerId::next(), "/ip4/127.0.0.1/tcp/0".parse()?)?;
    let mut ready = Some(ready);
    while let Some(event) = transport.next().await {
        match event {
            TransportEvent::NewAddress { listen_addr, .. } => {
                if let Some(ready) = ready.take() {
                    ready(listen_addr.to_string())?;
                }
            }
            TransportEvent::Incoming { upgrade, .. } => {
                tokio::spawn(async move {
                    if let Ok((_, muxer)) = upgrade.await {
                        echo_all(muxer).await;
                    }
                });
            }
            other @ (TransportEvent::ListenerClosed { .. } | TransportEvent::ListenerError { .. }) => return Err(anyhow!("{other:?}")),
            TransportEvent::AddressExpired { .. } => {}
        }
    }
    Ok(())
}

async fn echo_all(mut muxer: StreamMuxerBox) {
    // The caller ends the connection when it has what it wanted.
    while let Ok(mut stream) = next(&mut muxer).await {
        tokio::spawn(async move {
            while let Ok(message) = read(&mut stream).await {
                if write(&mut stream, &message).await.is_err() {
                    return;
                }
            }
        });
    }
}

async fn next(muxer: &mut StreamMuxerBox) -> io::Result<SubstreamBox> {
    poll_fn(|context| {
        // The connection itself only moves while it is polled.
        if let Poll::Ready(Err(error)) = muxer.poll_unpin(context) {
            return Poll::Ready(Err(error));
        }
        muxer.poll_inbound_unpin(context)
    })
    .await
}

async fn read(stream: &mut SubstreamBox) -> io::Result<Vec<u8>> {
    let mut length = [0; 4];
    stream.read_exact(&mut length).await?;
    let length = usize::try_from(u32::from_be_bytes(length)).ok().filter(|length| *length <= MESSAGE_BYTES_MAX);
    let mut message = vec![0; length.ok_or(io::ErrorKind::InvalidData)?];
    stream.read_exact(&mut message).await?;
    Ok(message)
}

async fn write(stream: &mut SubstreamBox, message: &[u8]) -> io::Result<()> {
    let length = u32::try_from(message.len()).map_err(io::Error::other)?;
    stream.write_all(&length.to_be_bytes()).await?;
    stream.write_all(message).await?;
    stream.flush().await
}

/// A connection on which substreams can be opened.
#[derive(Debug)]
pub(crate) struct Substream {
    wanted: mpsc::Sender<oneshot::Sender<SubstreamBox>>,
}

impl Substream {
    /// Connects.
    pub(crate) async fn connect(address: &str) -> Result<Self> {
        let mut transport = transport()?;
        let address: Multiaddr = address.parse()?;
        let options = DialOpts { role: Endpoint::Dialer, port_use: PortUse::New };
        let (_, muxer) = transport.dial(address, options)?.await?;
        let (wanted, inbox) = mpsc::channel(OPENING_MAX);
        tokio::spawn(drive(muxer, inbox));
        Ok(Self { wanted })
    }
}

async fn drive(mut muxer: StreamMuxerBox, mut inbox: mpsc::Receiver<oneshot::Sender<SubstreamBox>>) {
    let mut waiting = None;
    poll_fn(|context| {
        if let Poll::Ready(Err(_)) = muxer.poll_unpin(context) {
            return Poll::Ready(());
        }
        loop {
            if waiting.is_none() {
                match inbox.poll_recv(context) {
                    Poll::Ready(Some(wanted)) => waiting = Some(wanted),
                    Poll::Ready(None) => return Poll::Ready(()),
                    Poll::Pending => return Poll::Pending,
                }
            }
            match muxer.poll_outbound_unpin(context) {
                // Whoever asked and went away needs no substream.
                Poll::Ready(Ok(stream)) => drop(waiting.take().map(|waiting| waiting.send(stream))),
                Poll::Ready(Err(_)) => return Poll::Ready(()),
                Poll::Pending => return Poll::Pending,
            }
        }
    })
    .await;
}

impl Contender for Substream {
    type Caller = SubstreamCaller;

    async fn caller(&self) -> Result<SubstreamCaller> {
        let (reply, opened) = oneshot::channel();
        self.wanted.send(reply).await.ok().context("the connection is gone")?;
        Ok(SubstreamCaller(opened.await.context("the connection is gone")?))
    }
}

/// A substream; it carries one message at a time.
pub(crate) struct SubstreamCaller(SubstreamBox);

impl Caller for SubstreamCaller {
    async fn call(&mut self, payload: Bytes) -> Result<Bytes> {
        write(&mut self.0, &payload).await?;
        Ok(read(&mut self.0).await?.into())
    }
}
