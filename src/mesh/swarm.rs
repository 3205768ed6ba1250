//! The swarm and what can be asked of it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use libp2p::swarm::dial_opts::{DialOpts, PeerCondition};
use libp2p::swarm::{ConnectionId, Swarm};
use libp2p::{Multiaddr, PeerId, gossipsub, identify, kad, memory_connection_limits, ping, request_response};
use tokio::time::Instant;

use super::address::{self, AddressClass, AddressClasses, DialBudget, Policy};
use super::behaviour::Behaviour;
use super::event::Event;
use super::inbound::root_cause;
use super::lanes::{Tally, Totals};
use super::{blobs, control, gossip, kademlia, lanes, limits, substreams, transport};
use crate::model::{CapabilityName, NodeId, Priority, Shard};
use crate::wire::NodeKey;
use crate::wire::directory::{Control, Reply};

/// What identify calls the family of protocols; a peer that names another is none of ours.
pub(super) const FAMILY: &str = "meshwork/1";
/// How often a connection is asked for a sign of life. TCP says nothing when a link dies in silence.
const PING_INTERVAL: Duration = Duration::from_secs(2);
/// How long the answer may take. Bulk data delays it, so it is more patient than a lane's heartbeat.
const PING_MAX: Duration = Duration::from_secs(4);
/// How long a control request may take.
const CONTROL_MAX: Duration = Duration::from_secs(5);
/// Control requests that one connection may have open.
const CONTROL_STREAMS_MAX: usize = 32;
/// Dials per minute at addresses that others told of, whoever they were.
const DIALS_PER_MINUTE_MAX: usize = 600;
/// Control requests to one node that are under way at once.
const ASKING_MAX: usize = 16;
/// Control requests to one node that may wait.
const ASKING_QUEUE_MAX: usize = 256;
/// Addresses of one peer that are tried at once.
const ADDRESSES_TRIED_MAX: usize = 8;

/// How a node takes part in the mesh.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Who it is.
    pub key: NodeKey,
    /// Where it listens, as configured.
    pub listen: Vec<Multiaddr>,
    /// Addresses under which others reach it although it does not listen there itself.
    pub external: Vec<Multiaddr>,
    /// Where it joins; decides which classes of addresses are open.
    pub join: Vec<Multiaddr>,
    /// Whether private addresses are open anyway.
    pub private: bool,
    /// Whether it hosts nothing and answers no DHT queries.
    pub client_only: bool,
    /// Whether it takes part in gossip.
    pub gossip: bool,
    /// Who may connect.
    pub limits: limits::Limits,
    /// Memory above which connections are refused, in bytes.
    pub memory_bytes_max: usize,
    /// The zero of all durations.
    pub clock: Instant,
}

/// The mesh could not be set up. Happens at start only; nothing was changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Keys or name resolution.
    #[error("the transport could not be set up: {0}")]
    Transport(#[from] std::io::Error),
    /// Gossip settings.
    #[error("gossip could not be set up: {0}")]
    Gossip(#[from] gossip::Error),
    /// A listen address.
    #[error("cannot listen on {address}: {reason} (mesh.listen or --listen)")]
    Listen {
        /// The address.
        address: Multiaddr,
        /// What the system said.
        reason: String,
    },
}

/// Names a control request until its reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ControlId(pub(super) u64);

/// Control requests of this node to one other: each is a substream, and one substream too many would cost the connection.
#[derive(Debug, Default)]
pub(super) struct Asking {
    pub(super) ids_by_request: BTreeMap<request_response::OutboundRequestId, ControlId>,
    pub(super) waiting: VecDeque<(ControlId, Control)>,
}

/// Where the reply to a peer's control request goes.
#[derive(Debug)]
pub struct ReplyTo(pub(super) request_response::ResponseChannel<Reply>);

/// Names a gossip message until it is judged.
#[derive(Debug, Clone)]
pub struct Stamp {
    pub(super) message: gossipsub::MessageId,
    pub(super) from: PeerId,
}

/// Names a search for providers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SearchId(pub(super) kad::QueryId);

/// One connection.
#[derive(Debug, Clone)]
pub(super) struct Link {
    pub(super) address: Multiaddr,
    pub(super) outbound: bool,
    pub(super) since: Instant,
    pub(super) rtt: Option<Duration>,
}

/// A connected peer, for people.
#[derive(Debug, Clone)]
pub struct Peer {
    /// Who.
    pub node: NodeId,
    /// Remote addresses of its connections.
    pub addresses: Vec<Multiaddr>,
    /// Whether this node dialled the oldest connection.
    pub outbound: bool,
    /// How long the oldest connection has stood.
    pub connected: Duration,
    /// Last measured round trip.
    pub rtt: Option<Duration>,
    /// Program and version it names.
    pub program: Option<String>,
    /// What the calls to and from it came to, since its oldest connection.
    pub calls: Totals,
}

/// Why a dial was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Purpose {
    /// A bootstrap or remembered address.
    Join(Multiaddr),
    /// To reach a node.
    Reach(NodeId),
    /// To see whether a peer that is connected can be dialled at the address it names.
    Prove(NodeId),
}

/// The swarm, as its owner sees it.
pub struct Mesh {
    pub(super) swarm: Swarm<Behaviour>,
    pub(super) policy: Policy,
    pub(super) budget: DialBudget,
    pub(super) budget_of_all: DialBudget,
    pub(super) quota: kademlia::Quota,
    pub(super) clock: Instant,
    pub(super) links_by_node: BTreeMap<NodeId, BTreeMap<ConnectionId, Link>>,
    pub(super) programs_by_node: BTreeMap<NodeId, String>,
    /// Of connected peers with lanes.
    pub(super) tallies_by_node: BTreeMap<NodeId, Arc<Tally>>,
    pub(super) proven: BTreeSet<NodeId>,
    pub(super) closing: BTreeSet<NodeId>,
    pub(super) purposes_by_dial: BTreeMap<ConnectionId, Purpose>,
    pub(super) listening: BTreeSet<Multiaddr>,
    pub(super) external: Vec<Multiaddr>,
    pub(super) joined: AddressClasses,
    pub(super) gossip: bool,
    pub(super) followed: BTreeSet<Shard>,
    pub(super) client_only: bool,
    pub(super) events: VecDeque<Event>,
    pub(super) asking_by_node: BTreeMap<NodeId, Asking>,
    pub(super) asked: u64,
}

impl std::fmt::Debug for Mesh {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mesh").field("listening", &self.listening).field("links", &self.links_by_node.len()).finish_non_exhaustive()
    }
}

impl Mesh {
    /// Sets the mesh up and begins to listen. Whether listening succeeds shows in [`Event::Listening`] and [`Event::ListenFailed`].
    ///
    /// # Errors
    /// If a part of the swarm cannot be made, or an address is refused outright.
    pub fn new(settings: &Settings) -> Result<Self, Error> {
        let keypair = settings.key.keypair().clone();
        let peer = keypair.public().to_peer_id();
        let configured = if settings.private { AddressClasses::NONE.with(AddressClass::Private) } else { AddressClasses::NONE };
        let policy = Policy::new(configured, &settings.listen, &settings.join);
        let own: Vec<Multiaddr> = settings.listen.iter().chain(&settings.join).cloned().collect();
        let identity = identify::Config::new(FAMILY.to_owned(), keypair.public())
            .with_agent_version(concat!("meshwork/", env!("CARGO_PKG_VERSION")).to_owned())
            .with_push_listen_addr_updates(true)
            .with_cache_size(0);
        let control_config =
            request_response::Config::default().with_request_timeout(CONTROL_MAX).with_max_concurrent_streams(CONTROL_STREAMS_MAX);
        let protocols = [(control::PROTOCOL, request_response::ProtocolSupport::Full)];
        let behaviour = Behaviour {
            totals: libp2p::connection_limits::Behaviour::new(limits::connection_limits(&settings.limits)),
            memory: memory_connection_limits::Behaviour::with_max_bytes(settings.memory_bytes_max),
            limits: limits::Behaviour::new(settings.limits, policy.allowed, settings.clock.into_std()),
            identify: identify::Behaviour::new(identity),
            ping: ping::Behaviour::new(ping::Config::new().with_interval(PING_INTERVAL).with_timeout(PING_MAX)),
            kademlia: kademlia::behaviour(peer, settings.client_only),
            gossip: gossip::behaviour(&keypair, &gossip::exempt_networks(&own))?,
            control: request_response::Behaviour::with_codec(control::Codec, protocols, control_config),
            lanes: substreams::Behaviour::new(lanes::PROTOCOL, lanes::INBOUND_PER_CONNECTION_MAX),
            // How many of these are open at once is bounded by what is announced; over a long life they may be many.
            blobs: substreams::Behaviour::new(blobs::PROTOCOL, usize::MAX),
        };
        let config = libp2p::swarm::Config::with_tokio_executor()
            .with_idle_connection_timeout(Duration::from_secs(60))
            .with_max_negotiating_inbound_streams(64)
            .with_notify_handler_buffer_size(NonZeroUsize::MIN.saturating_add(63));
        let swarm = Swarm::new(transport::build(&keypair, policy)?, behaviour, peer, config);
        let mut mesh = Self {
            swarm,
            policy,
            budget: DialBudget::default(),
            budget_of_all: DialBudget::new(DIALS_PER_MINUTE_MAX, 1),
            quota: kademlia::Quota::default(),
            clock: settings.clock,
            links_by_node: BTreeMap::new(),
            programs_by_node: BTreeMap::new(),
            tallies_by_node: BTreeMap::new(),
            proven: BTreeSet::new(),
            closing: BTreeSet::new(),
            purposes_by_dial: BTreeMap::new(),
            listening: BTreeSet::new(),
            external: settings.external.clone(),
            joined: AddressClasses::of(&settings.join),
            gossip: settings.gossip,
            followed: BTreeSet::new(),
            client_only: settings.client_only,
            events: VecDeque::new(),
            asking_by_node: BTreeMap::new(),
            asked: 0,
        };
        for address in &settings.listen {
            let listened = mesh.swarm.listen_on(address.clone());
            listened.map_err(|error| Error::Listen { address: address.clone(), reason: root_cause(&error) })?;
        }
        for address in &settings.external {
            mesh.swarm.add_external_address(address.clone());
        }
        mesh.follow(&Shard::all().collect());
        Ok(mesh)
    }

    /// Where the node really listens.
    pub fn listening(&self) -> impl Iterator<Item = &Multiaddr> {
        self.listening.iter()
    }

    /// The addresses that belong into the records of this node.
    pub fn advertised(&self) -> Vec<Multiaddr> {
        let listening: Vec<Multiaddr> = self.listening.iter().cloned().collect();
        address::advertisable(&listening, &self.external, self.joined)
    }

    /// Dials a bootstrap or remembered address, which its owner answers for. Ends in `Connected` or `DialFailed`.
    pub fn join(&mut self, address: &Multiaddr) {
        let options = match address.iter().last() {
            Some(libp2p::multiaddr::Protocol::P2p(peer)) => {
                DialOpts::peer_id(peer).addresses(vec![address.clone()]).condition(PeerCondition::Always).build()
            }
            _ => DialOpts::unknown_peer_id().address(address.clone()).build(),
        };
        self.dial(options, Purpose::Join(address.clone()));
    }

    /// Dials a node at the addresses that `source` said it has. Ends in `Connected` or `DialFailed`, if it is not connected already.
    pub fn reach(&mut self, node: NodeId, addresses: &[Multiaddr], source: NodeId) {
        if self.links_by_node.contains_key(&node) {
            return;
        }
        let usable = self.usable(addresses, source);
        // Without usable addresses Kademlia may still know some.
        let options = DialOpts::peer_id(node.peer_id()).condition(PeerCondition::Disconnected).addresses(usable);
        self.dial(options.extend_addresses_through_behaviour().build(), Purpose::Reach(node));
    }

    /// Sees whether a connected peer can be dialled at an address that it names.
    pub(super) fn prove(&mut self, node: NodeId, addresses: &[Multiaddr]) {
        let pending = self.purposes_by_dial.values().any(|purpose| *purpose == Purpose::Prove(node));
        let usable = self.usable(addresses, node);
        if pending || usable.is_empty() {
            return;
        }
        let options = DialOpts::peer_id(node.peer_id()).condition(PeerCondition::Always).addresses(usable);
        self.dial(options.allocate_new_port().build(), Purpose::Prove(node));
    }

    fn usable(&mut self, addresses: &[Multiaddr], source: NodeId) -> Vec<Multiaddr> {
        let now = self.clock.elapsed();
        // Names would be resolved by this node on a stranger's behalf.
        let by_number = |address: &&Multiaddr| AddressClass::of(address) != AddressClass::Dns;
        let open = addresses.iter().filter(by_number).filter(|address| self.policy.may_dial(address));
        let open: Vec<Multiaddr> = open.take(ADDRESSES_TRIED_MAX).cloned().collect();
        let own = self.listening.clone();
        // Ids cost nothing: all of them together may not make this node dial without end.
        let here = *self.swarm.local_peer_id();
        open.into_iter()
            .filter(|address| !own.contains(address))
            .filter(|address| !matches!(self.budget.spend(source.peer_id(), address, now), address::Spend::Exhausted))
            .filter(|address| {
                // One address under many ids is many dials; one id at its own address is dialled again as often as need be.
                let named = address.clone().with(libp2p::multiaddr::Protocol::P2p(source.peer_id()));
                !matches!(self.budget_of_all.spend(here, &named, now), address::Spend::Exhausted)
            })
            .collect()
    }

    fn dial(&mut self, options: DialOpts, purpose: Purpose) {
        let connection = options.connection_id();
        match self.swarm.dial(options) {
            Ok(()) => {
                self.purposes_by_dial.insert(connection, purpose);
            }
            Err(error) => self.on_dial_error(purpose, &error),
        }
    }

    /// Lets a peer go in good order, to make room or to leave.
    pub fn disconnect(&mut self, node: NodeId, in_order: bool) {
        if in_order {
            self.closing.insert(node);
        }
        let _ = self.swarm.disconnect_peer_id(node.peer_id());
    }

    /// Keeps a peer out until a time since the start of the node.
    pub fn ban(&mut self, node: NodeId, until: Duration) {
        self.swarm.behaviour_mut().limits.ban(node.peer_id(), until);
    }

    /// Listens to gossip on exactly these shards, unless the node takes no part in gossip.
    pub fn follow(&mut self, shards: &BTreeSet<Shard>) {
        if !self.gossip || *shards == self.followed {
            return;
        }
        let gossip = &mut self.swarm.behaviour_mut().gossip;
        for shard in shards.difference(&self.followed) {
            // The filter knows exactly these topics, so subscribing cannot fail.
            let _ = gossip.subscribe(&gossip::topic(shard.number()));
        }
        for shard in self.followed.difference(shards) {
            gossip.unsubscribe(&gossip::topic(shard.number()));
        }
        self.followed.clone_from(shards);
    }

    /// Publishes a message on a shard. Without peers there it goes nowhere, which is no error: digests repair it.
    pub fn publish(&mut self, shard: Shard, message: Vec<u8>) {
        if self.gossip {
            let published = self.swarm.behaviour_mut().gossip.publish(gossip::topic(shard.number()), message);
            if let Err(error) = published {
                tracing::trace!(shard = shard.number(), %error, "not published");
            }
        }
    }

    /// Judges a gossip message: accepted ones are passed on, rejected ones cost their sender.
    pub fn judge(&mut self, stamp: &Stamp, acceptance: gossipsub::MessageAcceptance) {
        self.swarm.behaviour_mut().gossip.report_message_validation_result(&stamp.message, &stamp.from, acceptance);
    }

    /// Announces in the DHT that this node provides `name`, and keeps doing so.
    pub fn provide(&mut self, name: &CapabilityName) {
        if self.client_only {
            return;
        }
        if let Err(error) = self.swarm.behaviour_mut().kademlia.start_providing(kad::RecordKey::new(&name.key())) {
            tracing::warn!(capability = %name, %error, "cannot be provided in the DHT");
        }
    }

    /// Stops announcing `name`.
    pub fn stop_providing(&mut self, name: &CapabilityName) {
        self.swarm.behaviour_mut().kademlia.stop_providing(&kad::RecordKey::new(&name.key()));
    }

    /// Asks the DHT who provides `name`. Ends in an [`Event::Providers`] that is done.
    pub fn search(&mut self, name: &CapabilityName) -> SearchId {
        SearchId(self.swarm.behaviour_mut().kademlia.get_providers(kad::RecordKey::new(&name.key())))
    }

    /// Sends a control request. Ends in one [`Event::Reply`].
    pub fn ask(&mut self, node: NodeId, request: Control) -> ControlId {
        self.asked = self.asked.wrapping_add(1);
        let id = ControlId(self.asked);
        let asking = self.asking_by_node.entry(node).or_default();
        if asking.ids_by_request.len() < ASKING_MAX {
            let sent = self.swarm.behaviour_mut().control.send_request(&node.peer_id(), Ok(request));
            asking.ids_by_request.insert(sent, id);
        } else if asking.waiting.len() < ASKING_QUEUE_MAX {
            asking.waiting.push_back((id, request));
        } else {
            self.events.push_back(Event::Reply { id, node, reply: Err("too many requests to this node are waiting".to_owned()) });
        }
        id
    }

    /// A control request is over: the next one that waits goes out. Returns which it was.
    pub(super) fn asked_one(&mut self, node: NodeId, request: request_response::OutboundRequestId) -> Option<ControlId> {
        let asking = self.asking_by_node.get_mut(&node)?;
        let id = asking.ids_by_request.remove(&request);
        if let Some((next, request)) = asking.waiting.pop_front() {
            let sent = self.swarm.behaviour_mut().control.send_request(&node.peer_id(), Ok(request));
            asking.ids_by_request.insert(sent, next);
        }
        if asking.ids_by_request.is_empty() {
            self.asking_by_node.remove(&node);
        }
        id
    }

    /// Answers a peer's control request.
    pub fn reply(&mut self, to: ReplyTo, reply: Reply) {
        // An error means that the peer is gone or the request timed out; then nobody waits.
        let _ = self.swarm.behaviour_mut().control.send_response(to.0, reply);
    }

    /// Opens a lane to a node. Ends in [`Event::Lane`] or [`Event::LaneFailed`].
    pub fn open_lane(&mut self, node: NodeId, priority: Priority) {
        self.swarm.behaviour_mut().lanes.open(node.peer_id(), priority as u64);
    }

    /// Opens a substream for a blob. Ends in [`Event::Blob`] or [`Event::BlobFailed`] with this tag.
    pub fn open_blob(&mut self, node: NodeId, tag: u64) {
        self.swarm.behaviour_mut().blobs.open(node.peer_id(), tag);
    }

    /// Whether a connection to `node` stands.
    pub fn is_connected(&self, node: NodeId) -> bool {
        self.links_by_node.contains_key(&node)
    }

    /// How many nodes are connected.
    pub fn connected_len(&self) -> usize {
        self.links_by_node.len()
    }

    /// Addresses at which `node` was dialled with success, with its id, to be remembered.
    pub fn dialled_addresses(&self, node: NodeId) -> Vec<Multiaddr> {
        let links = self.links_by_node.get(&node).into_iter().flat_map(BTreeMap::values);
        links.filter(|link| link.outbound).map(|link| link.address.clone()).collect()
    }

    /// The connected peers.
    pub fn peers(&self) -> Vec<Peer> {
        let peer = |(node, links): (&NodeId, &BTreeMap<ConnectionId, Link>)| {
            let oldest = links.values().min_by_key(|link| link.since)?;
            Some(Peer {
                node: *node,
                addresses: links.values().map(|link| link.address.clone()).collect(),
                outbound: oldest.outbound,
                connected: oldest.since.elapsed(),
                rtt: links.values().filter_map(|link| link.rtt).min(),
                program: self.programs_by_node.get(node).cloned(),
                calls: self.tallies_by_node.get(node).map(|tally| tally.totals()).unwrap_or_default(),
            })
        };
        self.links_by_node.iter().filter_map(peer).collect()
    }

    /// Where the lanes with a peer count; a peer that has gone meanwhile is counted for nobody.
    pub fn tally(&mut self, node: NodeId) -> Arc<Tally> {
        if self.is_connected(node) { Arc::clone(self.tallies_by_node.entry(node).or_default()) } else { Arc::default() }
    }

    /// Connections refused by range, rate and ban, since the start.
    pub fn denied(&self) -> [u64; 3] {
        let limits = &self.swarm.behaviour().limits;
        [limits.denied_by_range(), limits.denied_by_rate(), limits.denied_by_ban()]
    }

    /// How many peers the Kademlia routing table holds.
    pub fn routing_len(&mut self) -> usize {
        self.swarm.behaviour_mut().kademlia.kbuckets().map(|bucket| bucket.num_entries()).sum()
    }
}
