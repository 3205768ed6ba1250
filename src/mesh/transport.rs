//! TCP (Noise or TLS 1.3, yamux) and QUIC, behind one guard that no dial can pass around.
//!
//! Addresses to dial come from many sides: the configuration, records, identify, other nodes' Kademlia answers, names. The guard stands
//! below name resolution and above the sockets, so whatever asked for the dial, an address of a class that is not open is refused there
//! (threat T13).

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::{BoxFuture, Either, TryFutureExt};
use futures::{AsyncRead, AsyncWrite};
use libp2p::core::muxing::StreamMuxerBox;
use libp2p::core::transport::{Boxed, DialOpts, ListenerId, OrTransport, TransportError, TransportEvent};
use libp2p::core::upgrade::{InboundConnectionUpgrade, OutboundConnectionUpgrade, SelectUpgrade, UpgradeInfo, Version};
use libp2p::identity::Keypair;
use libp2p::{Multiaddr, PeerId, Transport, dns, noise, quic, tcp, tls, yamux};

use super::address::{Policy, ip_of};

/// How long a connection may take until it is encrypted and multiplexed.
const HANDSHAKE_MAX: Duration = Duration::from_secs(5);
/// Streams one connection may have open.
const STREAMS_MAX: usize = 128;
/// A QUIC connection on which nothing was heard for so long is dead. Sending starts this time anew once, so a killed node shows after the
/// sum of both, which must stay below three seconds.
const QUIC_IDLE_MS: u32 = 2_000;
/// Pause of a QUIC connection before it is kept alive.
const QUIC_KEEP_ALIVE: Duration = Duration::from_millis(600);

/// The transport of a node.
pub(super) fn build(keypair: &Keypair, policy: Policy) -> Result<Boxed<(PeerId, StreamMuxerBox)>, io::Error> {
    let noise = noise::Config::new(keypair).map_err(io::Error::other)?;
    let tls = tls::Config::new(keypair).map_err(io::Error::other)?;
    let mut yamux = yamux::Config::default();
    yamux.set_max_num_streams(STREAMS_MAX);
    let tcp = tcp::tokio::Transport::new(tcp::Config::default().nodelay(true))
        .upgrade(Version::V1Lazy)
        .authenticate(Secure(SelectUpgrade::new(noise, tls)))
        .multiplex(yamux)
        .map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer)));
    let mut config = quic::Config::new(keypair);
    config.handshake_timeout = HANDSHAKE_MAX;
    config.max_idle_timeout = QUIC_IDLE_MS;
    config.keep_alive_interval = QUIC_KEEP_ALIVE;
    config.max_concurrent_stream_limit = u32::try_from(STREAMS_MAX).unwrap_or(u32::MAX);
    let quic = quic::tokio::Transport::new(config).map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer)));
    let either = OrTransport::new(quic, tcp).map(|either, _| match either {
        Either::Left(connection) | Either::Right(connection) => connection,
    });
    Ok(dns::tokio::Transport::system(Guarded { inner: either, policy })?.boxed())
}

/// Noise or TLS, whichever both sides prefer.
#[derive(Clone)]
struct Secure(SelectUpgrade<noise::Config, tls::Config>);

type SecureError = either::Either<noise::Error, tls::UpgradeError>;
type Secured<C> = (PeerId, Either<noise::Output<C>, tls::TlsStream<C>>);

impl UpgradeInfo for Secure {
    type Info = <SelectUpgrade<noise::Config, tls::Config> as UpgradeInfo>::Info;
    type InfoIter = <SelectUpgrade<noise::Config, tls::Config> as UpgradeInfo>::InfoIter;

    fn protocol_info(&self) -> Self::InfoIter {
        self.0.protocol_info()
    }
}

impl<C> InboundConnectionUpgrade<C> for Secure
where
    C: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    type Output = Secured<C>;
    type Error = SecureError;
    type Future = BoxFuture<'static, Result<Secured<C>, SecureError>>;

    fn upgrade_inbound(self, socket: C, info: Self::Info) -> Self::Future {
        Box::pin(self.0.upgrade_inbound(socket, info).map_ok(Either::factor_first))
    }
}

impl<C> OutboundConnectionUpgrade<C> for Secure
where
    C: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    type Output = Secured<C>;
    type Error = SecureError;
    type Future = BoxFuture<'static, Result<Secured<C>, SecureError>>;

    fn upgrade_outbound(self, socket: C, info: Self::Info) -> Self::Future {
        Box::pin(self.0.upgrade_outbound(socket, info).map_ok(Either::factor_first))
    }
}

/// A transport that dials only what the policy opens.
struct Guarded<T> {
    inner: T,
    policy: Policy,
}

impl<T: Transport + Unpin> Transport for Guarded<T> {
    type Output = T::Output;
    type Error = T::Error;
    type ListenerUpgrade = T::ListenerUpgrade;
    type Dial = T::Dial;

    fn listen_on(&mut self, id: ListenerId, address: Multiaddr) -> Result<(), TransportError<T::Error>> {
        self.inner.listen_on(id, address)
    }

    fn remove_listener(&mut self, id: ListenerId) -> bool {
        self.inner.remove_listener(id)
    }

    fn dial(&mut self, address: Multiaddr, options: DialOpts) -> Result<T::Dial, TransportError<T::Error>> {
        let open = ip_of(&address).is_some_and(|ip| self.policy.may_reach(ip));
        if open { self.inner.dial(address, options) } else { Err(TransportError::MultiaddrNotSupported(address)) }
    }

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<TransportEvent<T::ListenerUpgrade, T::Error>> {
        Pin::new(&mut self.inner).poll(cx)
    }
}
