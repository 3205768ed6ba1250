//! Who may be connected to this node, and how many of them.
//!
//! Three guards stand side by side in the swarm (threat T3). libp2p's own [`mod@connection_limits`] bounds the totals and
//! its memory guard refuses new ones before the process runs out; this file has the figures for both. The third guard is the
//! [`Behaviour`] here, for what libp2p does not count:
//!
//! - **Ranges**: at most eight connections, of either direction, with one IPv4 /24 or IPv6 /64, so that one owner of
//!   addresses cannot surround the node (threat T10). An incoming one takes its place with the first packet, so that
//!   the half-open connections of one owner cannot fill the places for handshakes either.
//! - **Handshakes**: a token bucket per IPv4 address or IPv6 /64, since a handshake costs the node a key exchange and
//!   costs a flooder one packet.
//! - **Bans**: peers that [`crate::proto::peers::penalties`] has judged.
//!
//! Exempt from the first two are loopback, link-local and private hosts, if this node listens on or joins through
//! that class: a local mesh is many nodes at few addresses. Global addresses are never exempt, whatever the caller
//! passes in.
//!
//! Invariants: every table has a bound; each connection is counted once from its first packet or, if this node
//! dialled, from its establishment, until the swarm says that it failed or closed; refusals are typed ([`Denied`]).
//!
//! Left to others: what deserves a ban and persisting it (`penalties`), which addresses are dialled at all
//! (`address`). A peer that was dialled by name has no address that libp2p tells, so it is not counted in a range.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use libp2p::connection_limits::{self, ConnectionLimits};
use libp2p::core::Endpoint;
use libp2p::core::transport::PortUse;
use libp2p::swarm::behaviour::{AddressChange, ConnectionClosed, ConnectionEstablished, ExpiredListenAddr, ListenFailure, NewListenAddr};
use libp2p::swarm::{
    CloseConnection, ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, THandler, THandlerInEvent, THandlerOutEvent, ToSwarm,
    dummy,
};
use libp2p::{Multiaddr, PeerId};

use crate::mesh::address::{AddressClass, AddressClasses, Network, ip_of};

/// How many connections this node keeps and how fast it takes new ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Incoming connections in their handshake. Half-open ones end after the handshake timeout, so this is also how
    /// many a flooder can hold.
    pub pending_in_max: u32,
    /// Outgoing connections in their handshake; a search dials few peers at a time.
    pub pending_out_max: u32,
    /// Established incoming connections. Below the total, so that a quarter is always left for peers of our choice.
    pub established_in_max: u32,
    /// Established outgoing connections.
    pub established_out_max: u32,
    /// Established connections of either direction, at about 40 KB each.
    pub established_max: u32,
    /// Connections with one peer: both sides dialling at once over two transports.
    pub per_peer_max: u32,
    /// Connections with one /24 or /64 that is not exempt.
    pub per_range_max: u32,
    /// Handshakes that one address may start at once, after being quiet for long enough.
    pub handshake_burst: u32,
    /// Handshakes that one address may start in the long run.
    pub handshakes_per_s: u32,
    /// Addresses whose handshakes are remembered; beyond it the longest quiet is forgotten.
    pub handshake_addresses_max: usize,
    /// Bans that are kept; beyond it the one that ends first is lifted.
    pub bans_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            pending_in_max: 32,
            pending_out_max: 16,
            established_in_max: 96,
            established_out_max: 64,
            established_max: 128,
            per_peer_max: 4,
            per_range_max: 8,
            handshake_burst: 20,
            handshakes_per_s: 5,
            handshake_addresses_max: 4_096,
            bans_max: 10_000,
        }
    }
}

/// The totals, in the form that libp2p's own guard takes.
#[must_use]
pub fn connection_limits(limits: &Limits) -> ConnectionLimits {
    connection_limits::ConnectionLimits::default()
        .with_max_pending_incoming(Some(limits.pending_in_max))
        .with_max_pending_outgoing(Some(limits.pending_out_max))
        .with_max_established_incoming(Some(limits.established_in_max))
        .with_max_established_outgoing(Some(limits.established_out_max))
        .with_max_established(Some(limits.established_max))
        .with_max_established_per_peer(Some(limits.per_peer_max))
}

/// The memory above which new connections are refused: three quarters of what this process may have.
///
/// That is the tightest limit of its control groups, version 2 before version 1, or else the memory of the machine,
/// which libp2p's percentage would take even inside a container. Reads a handful of small files, so it belongs to start-up.
#[must_use]
pub fn memory_limit_bytes() -> usize {
    three_quarters(memory_bytes(&|path| std::fs::read_to_string(path).ok()))
}

/// Why a connection was refused. All of these happen in normal life under load; none changes any state but a counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Denied {
    /// The range of the remote address has all the connections that a range may have. Trying later may help.
    #[error("{connections_max} connections with {range} are the most that one range may have")]
    Range {
        /// The range.
        range: Network,
        /// How many connections it may have.
        connections_max: u32,
    },
    /// The remote address starts handshakes too fast. Trying a second later helps.
    #[error("too many handshakes from {source_range}")]
    Rate {
        /// The address, or the /64 that counts as one.
        source_range: Network,
    },
    /// The peer is banned. Trying again before the ban ends is useless.
    #[error("peer {peer} is banned")]
    Banned {
        /// The peer.
        peer: PeerId,
    },
}

/// Bounds connections by address range, handshakes by address, and keeps banned peers out.
#[derive(Debug)]
pub struct Behaviour {
    limits: Limits,
    started_at: Instant,
    exempt: Exempt,
    ranges_by_connection: BTreeMap<ConnectionId, Network>,
    connections_by_range: BTreeMap<Network, u32>,
    connections_by_peer: BTreeMap<PeerId, u32>,
    handshakes: Handshakes,
    bans: Bans,
    to_disconnect: BTreeSet<PeerId>,
    waker: Option<Waker>,
    denied_by_range: u64,
    denied_by_rate: u64,
    denied_by_ban: u64,
}

impl Behaviour {
    /// A guard that exempts the local classes in `exempt`, and those of the addresses that the node turns out to
    /// listen on. `started_at` is the zero of every duration that is passed in, as in [`crate::proto`].
    #[must_use]
    pub fn new(limits: Limits, exempt: AddressClasses, started_at: Instant) -> Self {
        let exempt = Exempt { configured: exempt, learns: true, local_listeners: BTreeMap::new() };
        Self::with_exempt(limits, exempt, started_at)
    }

    /// A guard that exempts nobody, wherever the node listens: for nodes that share a local network with strangers.
    #[must_use]
    pub fn strict(limits: Limits, started_at: Instant) -> Self {
        let exempt = Exempt { configured: AddressClasses::NONE, learns: false, local_listeners: BTreeMap::new() };
        Self::with_exempt(limits, exempt, started_at)
    }

    fn with_exempt(limits: Limits, exempt: Exempt, started_at: Instant) -> Self {
        Self {
            limits,
            started_at,
            exempt,
            ranges_by_connection: BTreeMap::new(),
            connections_by_range: BTreeMap::new(),
            connections_by_peer: BTreeMap::new(),
            handshakes: Handshakes::new(&limits),
            bans: Bans::new(limits.bans_max),
            to_disconnect: BTreeSet::new(),
            waker: None,
            denied_by_range: 0,
            denied_by_rate: 0,
            denied_by_ban: 0,
        }
    }

    /// Refuses a peer until a time after the start of the node, and closes its connections. A later end replaces an
    /// earlier one; an earlier end does not shorten a ban.
    pub fn ban(&mut self, peer: PeerId, until: Duration) {
        let now = self.started_at.elapsed();
        if until <= now {
            return;
        }
        self.bans.add(peer, until, now);
        if self.connections_by_peer.contains_key(&peer) {
            self.to_disconnect.insert(peer);
            if let Some(waker) = self.waker.take() {
                waker.wake();
            }
        }
    }

    /// Whether a peer is banned at the moment.
    #[must_use]
    pub fn is_banned(&self, peer: &PeerId) -> bool {
        self.bans.contains(peer, self.started_at.elapsed())
    }

    /// How many connections were refused because their range was full.
    #[must_use]
    pub fn denied_by_range(&self) -> u64 {
        self.denied_by_range
    }

    /// How many connections were refused because their address was too fast.
    #[must_use]
    pub fn denied_by_rate(&self) -> u64 {
        self.denied_by_rate
    }

    /// How many connections were refused because their peer was banned.
    #[must_use]
    pub fn denied_by_ban(&self) -> u64 {
        self.denied_by_ban
    }

    /// How many connections there are with the range of an address, incoming handshakes among them.
    #[must_use]
    pub fn connections_in_range(&self, ip: IpAddr) -> u32 {
        self.connections_by_range.get(&Network::of_neighbours(ip)).copied().unwrap_or(0)
    }

    fn check_ban(&mut self, peer: PeerId) -> Result<(), ConnectionDenied> {
        if self.is_banned(&peer) {
            self.denied_by_ban = self.denied_by_ban.saturating_add(1);
            return Err(ConnectionDenied::new(Denied::Banned { peer }));
        }
        Ok(())
    }

    fn check_rate(&mut self, remote: &Multiaddr) -> Result<(), ConnectionDenied> {
        let Some(ip) = self.exempt.guarded_ip(remote) else { return Ok(()) };
        let source_range = Network::new(ip, if ip.is_ipv4() { 32 } else { 64 });
        if self.handshakes.admit(source_range, self.started_at.elapsed()) {
            return Ok(());
        }
        self.denied_by_rate = self.denied_by_rate.saturating_add(1);
        Err(ConnectionDenied::new(Denied::Rate { source_range }))
    }

    fn check_range(&mut self, connection: ConnectionId, remote: &Multiaddr) -> Result<(), ConnectionDenied> {
        let Some(ip) = self.exempt.guarded_ip(remote) else { return Ok(()) };
        let has_its_place = self.ranges_by_connection.contains_key(&connection);
        if has_its_place || self.connections_in_range(ip) < self.limits.per_range_max {
            return Ok(());
        }
        self.denied_by_range = self.denied_by_range.saturating_add(1);
        let range = Network::of_neighbours(ip);
        Err(ConnectionDenied::new(Denied::Range { range, connections_max: self.limits.per_range_max }))
    }

    fn count(&mut self, connection: ConnectionId, remote: &Multiaddr) {
        // Exempt ranges are counted as well: they may cease to be exempt while the connection lasts.
        let Some(range) = ip_of(remote).map(Network::of_neighbours) else { return };
        if self.ranges_by_connection.insert(connection, range).is_none() {
            *self.connections_by_range.entry(range).or_default() += 1;
        }
    }

    fn discount(&mut self, connection: ConnectionId) {
        if let Some(range) = self.ranges_by_connection.remove(&connection) {
            subtract_one(&mut self.connections_by_range, &range);
        }
    }
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = dummy::ConnectionHandler;
    type ToSwarm = Infallible;

    fn handle_pending_inbound_connection(
        &mut self,
        connection: ConnectionId,
        _: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<(), ConnectionDenied> {
        self.check_rate(remote)?;
        self.check_range(connection, remote)?;
        self.count(connection, remote);
        Ok(())
    }

    fn handle_established_inbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: PeerId,
        _: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.check_ban(peer)?;
        self.check_range(connection, remote)?;
        Ok(dummy::ConnectionHandler)
    }

    fn handle_pending_outbound_connection(
        &mut self,
        _: ConnectionId,
        peer: Option<PeerId>,
        _: &[Multiaddr],
        _: Endpoint,
    ) -> Result<Vec<Multiaddr>, ConnectionDenied> {
        peer.map_or(Ok(()), |peer| self.check_ban(peer))?;
        Ok(Vec::new())
    }

    fn handle_established_outbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: PeerId,
        remote: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.check_ban(peer)?;
        self.check_range(connection, remote)?;
        Ok(dummy::ConnectionHandler)
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        #[expect(clippy::wildcard_enum_match_arm, reason = "libp2p adds events, and only these say where connections are")]
        match event {
            FromSwarm::ConnectionEstablished(ConnectionEstablished { peer_id, connection_id, endpoint, .. }) => {
                *self.connections_by_peer.entry(peer_id).or_default() += 1;
                self.count(connection_id, endpoint.get_remote_address());
            }
            FromSwarm::ConnectionClosed(ConnectionClosed { peer_id, connection_id, .. }) => {
                subtract_one(&mut self.connections_by_peer, &peer_id);
                self.discount(connection_id);
            }
            FromSwarm::ListenFailure(ListenFailure { connection_id, .. }) => self.discount(connection_id),
            FromSwarm::AddressChange(AddressChange { connection_id, new, .. }) => {
                self.discount(connection_id);
                self.count(connection_id, new.get_remote_address());
            }
            FromSwarm::NewListenAddr(NewListenAddr { addr, .. }) => self.exempt.add_listener(addr),
            FromSwarm::ExpiredListenAddr(ExpiredListenAddr { addr, .. }) => self.exempt.remove_listener(addr),
            _ => {}
        }
    }

    fn on_connection_handler_event(&mut self, _: PeerId, _: ConnectionId, event: THandlerOutEvent<Self>) {
        match event {}
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        if let Some(peer_id) = self.to_disconnect.pop_first() {
            return Poll::Ready(ToSwarm::CloseConnection { peer_id, connection: CloseConnection::All });
        }
        self.waker = Some(cx.waker().clone());
        Poll::Pending
    }
}

/// Whose addresses are not held against them.
#[derive(Debug)]
struct Exempt {
    configured: AddressClasses,
    learns: bool,
    local_listeners: BTreeMap<Multiaddr, AddressClass>,
}

impl Exempt {
    /// The address to count, or nothing if the remote is exempt or has no address.
    fn guarded_ip(&self, remote: &Multiaddr) -> Option<IpAddr> {
        let ip = ip_of(remote)?;
        let class = AddressClass::of_ip(ip);
        let is_listened_on = || self.local_listeners.values().any(|listened| *listened == class);
        let is_exempt = class.is_local() && (self.configured.contains(class) || is_listened_on());
        (!is_exempt).then_some(ip)
    }

    fn add_listener(&mut self, address: &Multiaddr) {
        let class = AddressClass::of(address);
        if self.learns && class.is_local() {
            self.local_listeners.insert(address.clone(), class);
        }
    }

    fn remove_listener(&mut self, address: &Multiaddr) {
        self.local_listeners.remove(address);
    }
}

/// A token bucket per address, kept as the time at which the bucket will be full again.
#[derive(Debug)]
struct Handshakes {
    per_token: Duration,
    burst: Duration,
    sources_max: usize,
    full_at_by_source: BTreeMap<Network, Duration>,
    sources_by_full_at: BTreeSet<(Duration, Network)>,
}

impl Handshakes {
    fn new(limits: &Limits) -> Self {
        let per_token = Duration::from_secs(1) / limits.handshakes_per_s.max(1);
        Self {
            per_token,
            burst: per_token * limits.handshake_burst.max(1),
            sources_max: limits.handshake_addresses_max.max(1),
            full_at_by_source: BTreeMap::new(),
            sources_by_full_at: BTreeSet::new(),
        }
    }

    /// Takes a token of this source, if it has one.
    fn admit(&mut self, source: Network, now: Duration) -> bool {
        let known = self.full_at_by_source.get(&source).copied();
        let full_at = known.map_or(now, |full_at| full_at.max(now)) + self.per_token;
        if full_at - now > self.burst {
            return false;
        }
        match known {
            Some(earlier) => {
                self.sources_by_full_at.remove(&(earlier, source));
            }
            None => self.make_room(),
        }
        self.full_at_by_source.insert(source, full_at);
        self.sources_by_full_at.insert((full_at, source));
        true
    }

    fn make_room(&mut self) {
        // The bucket that is full first is the one whose loss forgives least.
        while self.full_at_by_source.len() >= self.sources_max {
            let Some((_, source)) = self.sources_by_full_at.pop_first() else {
                return;
            };
            self.full_at_by_source.remove(&source);
        }
    }
}

/// Banned peers and the ends of their bans.
#[derive(Debug)]
struct Bans {
    bans_max: usize,
    until_by_peer: BTreeMap<PeerId, Duration>,
    peers_by_until: BTreeSet<(Duration, PeerId)>,
}

impl Bans {
    fn new(bans_max: usize) -> Self {
        Self { bans_max: bans_max.max(1), until_by_peer: BTreeMap::new(), peers_by_until: BTreeSet::new() }
    }

    fn add(&mut self, peer: PeerId, until: Duration, now: Duration) {
        let until = self.until_by_peer.get(&peer).map_or(until, |earlier| until.max(*earlier));
        self.remove(&peer);
        while let Some((ends_first, other)) = self.peers_by_until.first().copied() {
            if ends_first > now && self.until_by_peer.len() < self.bans_max {
                break;
            }
            self.remove(&other);
        }
        self.until_by_peer.insert(peer, until);
        self.peers_by_until.insert((until, peer));
    }

    fn remove(&mut self, peer: &PeerId) {
        if let Some(until) = self.until_by_peer.remove(peer) {
            self.peers_by_until.remove(&(until, *peer));
        }
    }

    fn contains(&self, peer: &PeerId, now: Duration) -> bool {
        self.until_by_peer.get(peer).is_some_and(|until| *until > now)
    }
}

fn subtract_one<K: Ord>(counts: &mut BTreeMap<K, u32>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count = count.saturating_sub(1);
        if *count == 0 {
            counts.remove(key);
        }
    }
}

/// What to assume where the system tells nothing: little enough for any machine that can run a node.
const MEMORY_BYTES_UNKNOWN: u64 = 1 << 30;

/// The memory that this process may have, given a way to read files.
fn memory_bytes(read: &dyn Fn(&Path) -> Option<String>) -> u64 {
    let groups = read(Path::new("/proc/self/cgroup")).unwrap_or_default();
    let machine = read(Path::new("/proc/meminfo")).and_then(|text| total_of_meminfo(&text));
    let group = group_limit(read, &groups, "/sys/fs/cgroup", "memory.max", is_unified)
        .or_else(|| group_limit(read, &groups, "/sys/fs/cgroup/memory", "memory.limit_in_bytes", is_memory_controller));
    match (group, machine) {
        // Version 1 writes "no limit" as a number beyond any machine, and a group may be given more than there is.
        (Some(group), Some(machine)) => group.min(machine),
        (Some(bytes), None) | (None, Some(bytes)) => bytes,
        (None, None) => MEMORY_BYTES_UNKNOWN,
    }
}

/// The tightest limit from the group of this process up to the root, since each level binds those below it.
fn group_limit(
    read: &dyn Fn(&Path) -> Option<String>,
    groups: &str,
    mount: &str,
    file: &str,
    is_wanted: fn(&str, &str) -> bool,
) -> Option<u64> {
    let path = groups.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':');
        let (hierarchy, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        is_wanted(hierarchy, controllers).then_some(path)
    });
    let inner = Path::new(path.unwrap_or("/"));
    // Inside a container the path may be that of the host, of which only the root is mounted; then only the root reads.
    let levels = inner.ancestors().map(|level| {
        let below = level.strip_prefix("/").unwrap_or(level);
        let folder: PathBuf = Path::new(mount).join(below);
        folder.join(file)
    });
    levels.filter_map(|path| read(&path)?.trim().parse::<u64>().ok()).filter(|bytes| *bytes > 0).min()
}

fn is_unified(hierarchy: &str, controllers: &str) -> bool {
    hierarchy == "0" && controllers.is_empty()
}

fn is_memory_controller(_: &str, controllers: &str) -> bool {
    controllers.split(',').any(|controller| controller == "memory")
}

fn total_of_meminfo(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    kib.checked_mul(1_024)
}

fn three_quarters(bytes: u64) -> usize {
    usize::try_from(bytes / 4 * 3).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use futures::StreamExt;
    use libp2p::multiaddr::Protocol;
    use libp2p::swarm::dial_opts::DialOpts;
    use libp2p::swarm::{DialError, ListenError, SwarmEvent};
    use libp2p::{Swarm, SwarmBuilder, noise, tcp, yamux};
    use tokio::time::timeout;

    use super::*;

    const DEADLINE: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn the_ninth_connection_from_one_range_is_refused() {
        let mut listener = listening(Behaviour::strict(Limits::default(), Instant::now())).await;
        let address = address_of(&listener);
        let mut callers = Vec::new();
        for _ in 0..8 {
            callers.push(call(&address));
            assert_eq!(next_outcome(&mut listener).await, Ok(()));
        }
        callers.push(call(&address));
        let range = Network::of_neighbours(IpAddr::from([127, 0, 0, 1]));
        assert_eq!(next_outcome(&mut listener).await, Err(Denied::Range { range, connections_max: 8 }));
        assert_eq!(listener.behaviour().denied_by_range(), 1);

        // When one of the eight leaves, its place is free.
        callers.swap_remove(0).abort();
        wait_for(&mut listener, |event| matches!(event, SwarmEvent::ConnectionClosed { .. })).await;
        callers.push(call(&address));
        assert_eq!(next_outcome(&mut listener).await, Ok(()));
    }

    #[tokio::test]
    async fn a_range_that_the_node_listens_on_is_exempt() {
        let mut listener = listening(Behaviour::new(Limits::default(), AddressClasses::NONE, Instant::now())).await;
        let address = address_of(&listener);
        let callers: Vec<_> = (0..30).map(|_| call(&address)).collect();
        for _ in &callers {
            assert_eq!(next_outcome(&mut listener).await, Ok(()));
        }
        assert_eq!(listener.behaviour().connections_in_range(IpAddr::from([127, 0, 0, 1])), 30);
    }

    #[tokio::test]
    async fn half_open_connections_take_the_places_of_their_own_range_only() {
        let mut listener = listening(Behaviour::strict(Limits::default(), Instant::now())).await;
        let address = address_of(&listener);
        let mut silent = Vec::new();
        for _ in 0..8 {
            silent.push(tokio::net::TcpStream::connect(("127.0.0.1", port_of(&address))).await.unwrap());
            wait_for(&mut listener, |event| matches!(event, SwarmEvent::IncomingConnection { .. })).await;
        }
        let _refused = call(&address);
        assert!(matches!(next_outcome(&mut listener).await, Err(Denied::Range { .. })));
        assert_eq!(listener.behaviour().connections_in_range(IpAddr::from([127, 0, 1, 1])), 0);

        for stream in silent {
            drop(stream);
            wait_for(&mut listener, |event| matches!(event, SwarmEvent::IncomingConnectionError { .. })).await;
        }
        let _accepted = call(&address);
        assert_eq!(next_outcome(&mut listener).await, Ok(()));
        assert_eq!(listener.behaviour().connections_in_range(IpAddr::from([127, 0, 0, 1])), 1);
    }

    #[tokio::test]
    async fn outgoing_connections_count_in_their_range_too() {
        let limits = Limits { per_range_max: 1, ..Limits::default() };
        let mut caller = swarm(Behaviour::strict(limits, Instant::now()));
        let mut targets = Vec::new();
        for _ in 0..2 {
            let target = listening(Behaviour::strict(Limits::default(), Instant::now())).await;
            caller.dial(address_of(&target)).unwrap();
            targets.push(tokio::spawn(target.for_each(|_| async {})));
        }
        let event = wait_for(&mut caller, |event| matches!(event, SwarmEvent::OutgoingConnectionError { .. })).await;
        let SwarmEvent::OutgoingConnectionError { error: DialError::Denied { cause }, .. } = event else { panic!("not denied: {event:?}") };
        assert!(matches!(cause.downcast_ref(), Some(Denied::Range { .. })));
    }

    #[tokio::test]
    async fn too_many_handshakes_from_one_address_are_refused() {
        let limits = Limits { handshake_burst: 3, handshakes_per_s: 1, ..Limits::default() };
        // Time zero lies in the future, so that no token comes back while the test runs.
        let mut listener = listening(Behaviour::strict(limits, Instant::now() + DEADLINE * 10)).await;
        let address = address_of(&listener);
        let mut callers = Vec::new();
        for _ in 0..3 {
            callers.push(call(&address));
            assert_eq!(next_outcome(&mut listener).await, Ok(()));
        }
        callers.push(call(&address));
        assert!(matches!(next_outcome(&mut listener).await, Err(Denied::Rate { .. })));
        assert_eq!(listener.behaviour().denied_by_rate(), 1);
    }

    #[tokio::test]
    async fn a_banned_peer_is_refused_in_both_directions() {
        let mut listener = listening(Behaviour::new(Limits::default(), AddressClasses::NONE, Instant::now())).await;
        let caller = listening(Behaviour::new(Limits::default(), AddressClasses::NONE, Instant::now())).await;
        let (banned, address) = (*caller.local_peer_id(), address_of(&caller));
        listener.behaviour_mut().ban(banned, 3_600 * SECOND);
        assert!(listener.behaviour().is_banned(&banned));

        let _caller = call_from(caller, &address_of(&listener));
        assert_eq!(next_outcome(&mut listener).await, Err(Denied::Banned { peer: banned }));

        let named = listener.dial(DialOpts::peer_id(banned).addresses(vec![address.clone()]).build());
        assert!(matches!(named, Err(DialError::Denied { .. })));

        listener.dial(address).unwrap();
        let event = wait_for(&mut listener, |event| matches!(event, SwarmEvent::OutgoingConnectionError { .. })).await;
        assert!(matches!(event, SwarmEvent::OutgoingConnectionError { error: DialError::Denied { .. }, .. }), "{event:?}");
        assert_eq!(listener.behaviour().denied_by_ban(), 3);
    }

    #[tokio::test]
    async fn banning_a_connected_peer_closes_its_connection() {
        let mut listener = listening(Behaviour::new(Limits::default(), AddressClasses::NONE, Instant::now())).await;
        let _caller = call(&address_of(&listener));
        let event = wait_for(&mut listener, |event| matches!(event, SwarmEvent::ConnectionEstablished { .. })).await;
        let SwarmEvent::ConnectionEstablished { peer_id, .. } = event else { panic!("not established: {event:?}") };
        listener.behaviour_mut().ban(peer_id, 3_600 * SECOND);
        wait_for(&mut listener, |event| matches!(event, SwarmEvent::ConnectionClosed { .. })).await;
        assert_eq!(listener.behaviour().connections_in_range(IpAddr::from([127, 0, 0, 1])), 0);
    }

    #[test]
    fn tokens_come_back_at_their_rate() {
        let mut handshakes = Handshakes::new(&Limits::default());
        let source = host(1);
        assert_eq!((0..100).filter(|_| handshakes.admit(source, SECOND)).count(), 20);
        assert_eq!((0..100).filter(|_| handshakes.admit(source, 2 * SECOND)).count(), 5);
        assert_eq!((0..100).filter(|_| handshakes.admit(source, 100 * SECOND)).count(), 20);
        assert!(handshakes.admit(host(2), 100 * SECOND));
    }

    #[test]
    fn the_table_of_handshakes_is_bounded_and_forgets_the_longest_quiet() {
        let mut handshakes = Handshakes::new(&Limits { handshake_addresses_max: 3, handshake_burst: 2, ..Limits::default() });
        for n in 0..4 {
            assert!(handshakes.admit(host(n), u32::from(n) * SECOND / 1_000));
            assert!(handshakes.full_at_by_source.len() <= 3);
            assert_eq!(handshakes.full_at_by_source.len(), handshakes.sources_by_full_at.len());
        }
        assert!(!handshakes.full_at_by_source.contains_key(&host(0)));
        assert!(handshakes.full_at_by_source.contains_key(&host(3)));
    }

    #[test]
    fn bans_end_and_never_get_shorter() {
        let (mut bans, peer) = (Bans::new(10), PeerId::random());
        bans.add(peer, 20 * SECOND, SECOND);
        bans.add(peer, 10 * SECOND, SECOND);
        assert!(bans.contains(&peer, 19 * SECOND) && !bans.contains(&peer, 20 * SECOND));
    }

    #[test]
    fn the_table_of_bans_is_bounded_and_lifts_the_one_that_ends_first() {
        let mut bans = Bans::new(3);
        let peers: Vec<PeerId> = (0..5).map(|_| PeerId::random()).collect();
        for (peer, until) in peers.iter().zip([50, 10, 40, 30, 20]) {
            bans.add(*peer, until * SECOND, SECOND);
            assert!(bans.until_by_peer.len() <= 3);
            assert_eq!(bans.until_by_peer.len(), bans.peers_by_until.len());
        }
        let banned: Vec<bool> = peers.iter().map(|peer| bans.contains(peer, SECOND)).collect();
        assert_eq!(banned, [true, false, true, false, true]);
    }

    #[test]
    fn a_ban_in_the_past_is_none() {
        let mut behaviour = Behaviour::strict(Limits::default(), Instant::now());
        let peer = PeerId::random();
        behaviour.ban(peer, Duration::ZERO);
        assert!(!behaviour.is_banned(&peer));
    }

    #[test]
    fn only_local_classes_can_be_exempt() {
        let everything = AddressClass::ALL.into_iter().collect();
        let behaviour = Behaviour::new(Limits::default(), everything, Instant::now());
        for exempt in ["/ip4/127.0.0.1/tcp/1", "/ip4/10.0.0.1/tcp/1", "/ip6/fe80::1/tcp/1", "/memory/1", "/dns4/a.example.org/tcp/1"] {
            assert_eq!(behaviour.exempt.guarded_ip(&parse(exempt)), None, "{exempt}");
        }
        for guarded in ["/ip4/1.1.1.1/tcp/1", "/ip6/2606:4700::1/tcp/1", "/ip4/192.0.2.1/tcp/1", "/ip6/::ffff:1.1.1.1/tcp/1"] {
            assert!(behaviour.exempt.guarded_ip(&parse(guarded)).is_some(), "{guarded}");
        }
    }

    #[test]
    fn an_exemption_ends_with_its_last_listener() {
        let mut behaviour = Behaviour::new(Limits::default(), AddressClasses::NONE, Instant::now());
        let (first, second) = (parse("/ip4/10.0.0.1/tcp/1"), parse("/ip4/10.0.0.1/udp/1/quic-v1"));
        let remote = parse("/ip4/10.9.9.9/tcp/1");
        behaviour.exempt.add_listener(&first);
        behaviour.exempt.add_listener(&second);
        behaviour.exempt.remove_listener(&first);
        assert_eq!(behaviour.exempt.guarded_ip(&remote), None);
        behaviour.exempt.remove_listener(&second);
        assert!(behaviour.exempt.guarded_ip(&remote).is_some());
    }

    #[test]
    fn a_whole_ipv6_network_shares_one_bucket() {
        let limits = Limits { handshake_burst: 1, ..Limits::default() };
        let mut behaviour = Behaviour::strict(limits, Instant::now() + DEADLINE);
        assert!(behaviour.check_rate(&parse("/ip6/2606:4700::1/tcp/1")).is_ok());
        assert!(behaviour.check_rate(&parse("/ip6/2606:4700::2/tcp/1")).is_err());
        assert!(behaviour.check_rate(&parse("/ip6/2606:4700:0:1::1/tcp/1")).is_ok());
        assert!(behaviour.check_rate(&parse("/ip4/1.1.1.1/tcp/1")).is_ok());
        assert!(behaviour.check_rate(&parse("/ip4/1.1.1.2/tcp/1")).is_ok());
    }

    #[test]
    fn the_memory_limit_is_the_tightest_of_the_unified_groups() {
        let files = [
            ("/proc/self/cgroup", "0::/system.slice/node.service\n"),
            ("/proc/meminfo", "MemTotal:        8388608 kB\nMemFree: 1 kB\n"),
            ("/sys/fs/cgroup/system.slice/node.service/memory.max", "max\n"),
            ("/sys/fs/cgroup/system.slice/memory.max", "1073741824\n"),
        ];
        assert_eq!(memory_in(&files), 1 << 30);
    }

    #[test]
    fn a_container_that_sees_only_its_own_root_finds_its_limit() {
        let files =
            [("/proc/self/cgroup", "0::/\n"), ("/proc/meminfo", "MemTotal: 8388608 kB\n"), ("/sys/fs/cgroup/memory.max", "536870912\n")];
        assert_eq!(memory_in(&files), 512 << 20);
    }

    #[test]
    fn the_first_version_of_control_groups_is_read_when_the_second_says_nothing() {
        let files = [
            ("/proc/self/cgroup", "4:cpu,memory:/docker/abc\n0::/\n"),
            ("/proc/meminfo", "MemTotal: 8388608 kB\n"),
            ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "268435456\n"),
        ];
        assert_eq!(memory_in(&files), 256 << 20);
        let unlimited = [files[0], files[1], ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n")];
        assert_eq!(memory_in(&unlimited), 8 << 30);
    }

    #[test]
    fn without_groups_the_machine_decides_and_without_anything_a_modest_guess() {
        assert_eq!(memory_in(&[("/proc/meminfo", "MemTotal: 2097152 kB\n")]), 2 << 30);
        assert_eq!(memory_in(&[]), MEMORY_BYTES_UNKNOWN);
        assert_eq!(three_quarters(4 << 30), 3 << 30);
        assert!(memory_limit_bytes() > 1 << 20);
    }

    const SECOND: Duration = Duration::from_secs(1);

    fn memory_in(files: &[(&str, &str)]) -> u64 {
        memory_bytes(&|path| files.iter().find(|(name, _)| Path::new(name) == path).map(|(_, text)| (*text).to_owned()))
    }

    fn parse(text: &str) -> Multiaddr {
        text.parse().unwrap()
    }

    fn host(n: u8) -> Network {
        Network::new(IpAddr::from([1, 1, 1, n]), 32)
    }

    fn swarm(behaviour: Behaviour) -> Swarm<Behaviour> {
        SwarmBuilder::with_new_identity()
            .with_tokio()
            .with_tcp(tcp::Config::default(), noise::Config::new, yamux::Config::default)
            .unwrap()
            .with_behaviour(|_| behaviour)
            .unwrap()
            .with_swarm_config(|config| config.with_idle_connection_timeout(DEADLINE * 10))
            .build()
    }

    async fn listening(behaviour: Behaviour) -> Swarm<Behaviour> {
        let mut swarm = swarm(behaviour);
        swarm.listen_on(parse("/ip4/127.0.0.1/tcp/0")).unwrap();
        wait_for(&mut swarm, |event| matches!(event, SwarmEvent::NewListenAddr { .. })).await;
        swarm
    }

    fn address_of(swarm: &Swarm<Behaviour>) -> Multiaddr {
        swarm.listeners().next().cloned().unwrap()
    }

    fn port_of(address: &Multiaddr) -> u16 {
        address.iter().find_map(|part| if let Protocol::Tcp(port) = part { Some(port) } else { None }).unwrap()
    }

    /// Dials from a node of its own, which lives until the task is aborted or the test ends.
    fn call(address: &Multiaddr) -> tokio::task::JoinHandle<()> {
        call_from(swarm(Behaviour::new(Limits::default(), AddressClasses::NONE.with(AddressClass::Loopback), Instant::now())), address)
    }

    fn call_from(mut caller: Swarm<Behaviour>, address: &Multiaddr) -> tokio::task::JoinHandle<()> {
        caller.dial(address.clone()).unwrap();
        tokio::spawn(caller.for_each(|_| async {}))
    }

    async fn wait_for(swarm: &mut Swarm<Behaviour>, is_wanted: impl Fn(&SwarmEvent<Infallible>) -> bool) -> SwarmEvent<Infallible> {
        timeout(DEADLINE, async {
            loop {
                let event = swarm.select_next_some().await;
                if is_wanted(&event) {
                    return event;
                }
            }
        })
        .await
        .expect("no such event in time")
    }

    /// How the next incoming connection ends: established, or refused by this guard.
    async fn next_outcome(listener: &mut Swarm<Behaviour>) -> Result<(), Denied> {
        let event = wait_for(listener, |event| {
            matches!(event, SwarmEvent::ConnectionEstablished { .. } | SwarmEvent::IncomingConnectionError { .. })
        })
        .await;
        let SwarmEvent::IncomingConnectionError { error, .. } = event else {
            return Ok(());
        };
        let ListenError::Denied { cause } = error else { panic!("failed, not denied: {error}") };
        Err(cause.downcast().unwrap())
    }
}
