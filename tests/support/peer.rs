//! A peer that keeps to no rule: raw libp2p in the process of the test, with a key of its own and bytes of its own.
//!
//! [`Forger`] signs whatever it is told to, true or not. [`HostilePeer`] speaks every protocol of the mesh without any of the checks that
//! a node makes before it sends: gossip and control messages are bytes, lanes are substreams, Kademlia stores what nobody asked for.

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, StreamExt};
use libp2p::{
    Multiaddr, PeerId, Stream, StreamProtocol, Swarm, SwarmBuilder, gossipsub, identify,
    identity::Keypair,
    kad, noise, request_response,
    swarm::{ConnectionId, NetworkBehaviour, SwarmEvent, behaviour::toggle::Toggle, dial_opts::DialOpts},
    tcp, yamux,
};
use meshwork::{
    mesh::substreams::{self, Direction},
    mesh::{blobs, lanes},
    model::{AgentId, CapabilityName, Claims, Constraints, Framework, InvocationId, NodeId, Priority, Shard, Timestamp},
    wire::{
        self,
        blob::{HEAD_BYTES, Head, PIECE_BYTES},
        context::PrincipalKey,
        directory::{AgentPulse, Capability, Control, Gossip, GossipContent, LIFETIME_MS_MAX, Pulse, Record, Reply, SchemaHash},
        invocation::{Body, Frame, LENGTH_BYTES, Request},
        offer::Offers,
        outbox::Word,
        receipt::Receipt,
    },
};
use serde::Serialize;
use serde_bytes::ByteBuf;
use serde_json::Value;
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
};

use super::{
    node::Node,
    wait::{SETTLE, eventually, within},
};

const CONTROL: StreamProtocol = StreamProtocol::new("/meshwork/control/1");
const KADEMLIA: StreamProtocol = StreamProtocol::new("/meshwork/kad/1");
/// Where a hostile peer that provides something says it listens; nobody does.
const NOWHERE: &str = "/ip4/127.0.0.1/tcp/9";
/// What this peer reads at most in one message; far more than any node sends or takes.
const MESSAGE_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Orders of the test that may wait for the swarm.
const ORDERS_MAX: usize = 1_024;
/// Lanes of nodes that may wait for the test; further ones are dropped, which closes them.
const LANES_MAX: usize = 128;

/// Any document as CBOR, whatever rules it breaks.
pub(crate) fn cbor<T: Serialize>(document: &T) -> Vec<u8> {
    let mut bytes = Vec::new();
    ciborium::into_writer(document, &mut bytes).expect("documents of the tests are CBOR");
    bytes
}

/// Milliseconds since 1970.
pub(crate) fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("the clock is past 1970");
    u64::try_from(now.as_millis()).expect("the clock is before the end of time")
}

/// The gossip message that carries a signed record.
pub(crate) fn record_message(shard: Shard, record: &[u8]) -> Vec<u8> {
    cbor(&Gossip { shard: shard.number(), content: GossipContent::Record(ByteBuf::from(record)) })
}

/// The gossip message that carries a signed pulse.
pub(crate) fn pulse_message(shard: Shard, pulse: &[u8]) -> Vec<u8> {
    cbor(&Gossip { shard: shard.number(), content: GossipContent::Pulse(ByteBuf::from(pulse)) })
}

/// A gossip message with a field that nobody knows: the same content in other bytes, past the memory of messages that gossip keeps.
#[derive(Serialize)]
struct Padded {
    shard: u8,
    content: GossipContent,
    padding: u64,
}

/// The same message in other bytes.
pub(crate) fn repeated(shard: Shard, content: GossipContent, number: u64) -> Vec<u8> {
    cbor(&Padded { shard: shard.number(), content, padding: number })
}

/// A signed document, as the wire has it, with signatures that need not fit.
#[derive(Serialize)]
struct Envelope {
    #[serde(with = "serde_bytes")]
    body: Vec<u8>,
    #[serde(with = "serde_bytes")]
    node_signature: Vec<u8>,
    #[serde(with = "serde_bytes", skip_serializing_if = "Vec::is_empty")]
    agent_signature: Vec<u8>,
}

/// The keys of a node that signs anything.
#[derive(Clone)]
pub(crate) struct Forger {
    key: Keypair,
}

impl fmt::Debug for Forger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Forger({})", self.id())
    }
}

impl Forger {
    /// A new identity.
    pub(crate) fn new() -> Self {
        Self { key: Keypair::generate_ed25519() }
    }

    /// Its id.
    pub(crate) fn id(&self) -> NodeId {
        self.key.public().to_peer_id().into()
    }

    /// Its key, as a reader and writer of contexts.
    pub(crate) fn principal_key(&self) -> PrincipalKey {
        let pair = self.key.clone().try_into_ed25519().expect("nodes have ed25519 keys");
        PrincipalKey::from_seed(pair.secret().as_ref().try_into().expect("32 bytes"))
    }

    /// The id of the agent whose key has this seed.
    pub(crate) fn agent(seed: u8) -> AgentId {
        let key = agent_key(seed).public().try_into_ed25519().expect("agents have ed25519 keys");
        AgentId::from_public_key(key.to_bytes())
    }

    /// A record of one of its agents in which nothing is wrong, with one capability of the agent's name below `test`.
    pub(crate) fn record(&self, seed: u8, name: &str) -> Record {
        let now = now_ms();
        let capability = Capability {
            id: format!("test.{name}").parse().expect("a capability's name"),
            version: "1.0".parse().expect("a version"),
            description: String::new(),
            input_schema: SchemaHash::new([0; 32]),
            output_schema: SchemaHash::new([0; 32]),
            price: None,
            constraints: Constraints::default(),
            idempotent: false,
            claims: Claims::default(),
        };
        Record {
            v: Record::V,
            agent: Self::agent(seed),
            node: self.id(),
            name: name.to_owned(),
            version: "1.0.0".to_owned(),
            description: String::new(),
            framework: Framework::Custom,
            capabilities: vec![capability],
            addresses: Vec::new(),
            concurrency: 8,
            sequence: now,
            issued_at: Timestamp::from_ms(now),
            expires_at: Timestamp::from_ms(now + LIFETIME_MS_MAX),
        }
    }

    /// A pulse in which nothing is wrong.
    pub(crate) fn pulse(&self, agents: Vec<AgentPulse>) -> Pulse {
        let now = now_ms();
        Pulse {
            v: Record::V,
            node: self.id(),
            sequence: now,
            issued_at: Timestamp::from_ms(now),
            expires_at: Timestamp::from_ms(now + LIFETIME_MS_MAX),
            leaving: false,
            agents,
        }
    }

    /// Signs a record with its own key and the agent's, whoever the record names.
    pub(crate) fn sign(&self, record: &Record, seed: u8) -> Vec<u8> {
        self.seal("meshwork/record/1", cbor(record), Some(seed), |body| body)
    }

    /// Signs a record, and changes the body afterwards.
    pub(crate) fn sign_then(&self, record: &Record, seed: u8, change: impl FnOnce(&mut Record)) -> Vec<u8> {
        let mut changed = record.clone();
        change(&mut changed);
        self.seal("meshwork/record/1", cbor(record), Some(seed), |_| cbor(&changed))
    }

    /// Signs a record as if it were another type of document.
    pub(crate) fn sign_under(&self, domain: &str, record: &Record, seed: u8) -> Vec<u8> {
        self.seal(domain, cbor(record), Some(seed), |body| body)
    }

    /// Signs a pulse with its own key, whoever the pulse names.
    pub(crate) fn sign_pulse(&self, pulse: &Pulse) -> Vec<u8> {
        self.seal("meshwork/pulse/1", cbor(pulse), None, |body| body)
    }

    /// A receipt in which nothing is wrong: nine good calls and a bad one in the minute before now.
    pub(crate) fn receipt(&self, agent: AgentId, capability: &str) -> Receipt {
        let now = now_ms();
        Receipt {
            v: Receipt::V,
            issuer: self.id(),
            agent,
            capability: capability.parse().expect("a capability's name"),
            window_start: Timestamp::from_ms(now - 60_000),
            window_end: Timestamp::from_ms(now),
            successes: 9,
            failures: 1,
            latency_ms: Some(25.0),
            issued_at: Timestamp::from_ms(now),
            expires_at: Timestamp::from_ms(now + 600_000),
        }
    }

    /// Signs a receipt with its own key, whoever the receipt names, and changes the body afterwards.
    pub(crate) fn sign_receipt_then(&self, receipt: &Receipt, change: impl FnOnce(&mut Receipt)) -> Vec<u8> {
        let mut changed = receipt.clone();
        change(&mut changed);
        self.seal("meshwork/receipt/1", cbor(receipt), None, |_| cbor(&changed))
    }

    /// Signs a receipt with its own key, whoever the receipt names.
    pub(crate) fn sign_receipt(&self, receipt: &Receipt) -> Vec<u8> {
        self.sign_receipt_then(receipt, |_| {})
    }

    fn seal(&self, domain: &str, body: Vec<u8>, seed: Option<u8>, change: impl FnOnce(Vec<u8>) -> Vec<u8>) -> Vec<u8> {
        let message = [domain.as_bytes(), &[0], &body].concat();
        let sign = |key: &Keypair| key.sign(&message).expect("ed25519 keys sign");
        let agent_signature = seed.map(|seed| sign(&agent_key(seed))).unwrap_or_default();
        cbor(&Envelope { node_signature: sign(&self.key), agent_signature, body: change(body) })
    }
}

fn agent_key(seed: u8) -> Keypair {
    Keypair::ed25519_from_bytes([seed; 32]).expect("32 bytes are a key")
}

/// A call as a well-behaved node would send it.
pub(crate) fn request(agent: AgentId, capability: &str, input: &Value) -> Request {
    Request {
        invocation: InvocationId::from_random(u128::from(now_ms())),
        capability: capability.parse().expect("a capability's name"),
        version: None,
        agent,
        budget_ms: 30_000,
        priority: Priority::Normal,
        key: None,
        fence: None,
        traceparent: None,
        hops: Vec::new(),
        confirm: true,
        window_bytes: 0,
        body: Body::Inline(Bytes::from(input.to_string())),
        with_context: false,
    }
}

/// What a peer answers to a control request; `None` leaves it to the usual answer.
type Answer = Arc<dyn Fn(&Control) -> Option<Vec<u8>> + Send + Sync>;

/// How a hostile peer presents itself.
#[derive(Clone)]
pub(crate) struct Habits {
    family: &'static str,
    lanes: bool,
    blobs: bool,
    records: Vec<(Record, Vec<u8>)>,
    schemas: Vec<(SchemaHash, String)>,
    answer: Answer,
    ignores: fn(&Control) -> bool,
}

impl Default for Habits {
    fn default() -> Self {
        let (records, schemas) = (Vec::new(), Vec::new());
        Self { family: "meshwork/1", lanes: true, blobs: true, records, schemas, answer: Arc::new(|_| None), ignores: |_| false }
    }
}

impl Habits {
    /// Names another family of protocols.
    pub(crate) fn family(mut self, family: &'static str) -> Self {
        self.family = family;
        self
    }

    /// Does not speak the lane protocol.
    pub(crate) fn without_lanes(mut self) -> Self {
        self.lanes = false;
        self
    }

    /// Does not speak the blob protocol.
    pub(crate) fn without_blobs(mut self) -> Self {
        self.blobs = false;
        self
    }

    /// Tells of this record in digests, and sends it to whoever asks for anything.
    pub(crate) fn advertises(mut self, record: &Record, signed: Vec<u8>) -> Self {
        self.records.push((record.clone(), signed));
        self
    }

    /// Sends this schema to whoever asks for it.
    pub(crate) fn schema(mut self, hash: SchemaHash, schema: &Value) -> Self {
        self.schemas.push((hash, schema.to_string()));
        self
    }

    /// Answers control requests with these bytes.
    pub(crate) fn answers(mut self, answer: impl Fn(&Control) -> Option<Vec<u8>> + Send + Sync + 'static) -> Self {
        self.answer = Arc::new(answer);
        self
    }

    /// Leaves some control requests without an answer.
    pub(crate) fn ignores(mut self, which: fn(&Control) -> bool) -> Self {
        self.ignores = which;
        self
    }

    fn reply(&self, request: &Control) -> Vec<u8> {
        (self.answer)(request).unwrap_or_else(|| cbor(&self.usual(request)))
    }

    fn usual(&self, request: &Control) -> Reply {
        let held = || self.records.iter().map(|(record, _)| (record.agent, record.sequence)).collect();
        let text = |hash: &SchemaHash| self.schemas.iter().find(|(known, _)| known == hash).map(|(_, text)| text.clone());
        match request {
            Control::Digest(_) => Reply::Differences { held: held(), more: false },
            Control::Find(_) | Control::Fetch(_) => {
                let records = self.records.iter().map(|(_, signed)| ByteBuf::from(signed.clone())).collect();
                Reply::Records { records, pulses: Vec::new() }
            }
            Control::Schemas(hashes) => Reply::Schemas(hashes.iter().map(|hash| text(hash).unwrap_or_default()).collect()),
            Control::Receipts(_) => Reply::Receipts(Vec::new()),
            Control::Offers(_) => Reply::Offers(Offers::default()),
            Control::Context(_) => Reply::Refused("no contexts here".to_owned()),
            Control::Results(results) => Reply::Results(vec![Word::Known; results.len()]),
        }
    }
}

/// Reads and writes whatever it is given.
#[derive(Debug, Clone, Default)]
struct Raw;

async fn read_all(io: &mut (impl AsyncRead + Unpin + Send)) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    io.take(MESSAGE_BYTES_MAX as u64).read_to_end(&mut bytes).await?;
    Ok(bytes)
}

impl request_response::Codec for Raw {
    type Protocol = StreamProtocol;
    type Request = Vec<u8>;
    type Response = Vec<u8>;

    async fn read_request<T: AsyncRead + Unpin + Send>(&mut self, _: &StreamProtocol, io: &mut T) -> std::io::Result<Vec<u8>> {
        read_all(io).await
    }

    async fn read_response<T: AsyncRead + Unpin + Send>(&mut self, _: &StreamProtocol, io: &mut T) -> std::io::Result<Vec<u8>> {
        read_all(io).await
    }

    async fn write_request<T: AsyncWrite + Unpin + Send>(&mut self, _: &StreamProtocol, io: &mut T, bytes: Vec<u8>) -> std::io::Result<()> {
        io.write_all(&bytes).await
    }

    async fn write_response<T: AsyncWrite + Unpin + Send>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
        bytes: Vec<u8>,
    ) -> std::io::Result<()> {
        io.write_all(&bytes).await
    }
}

#[derive(NetworkBehaviour)]
struct Behaviour {
    identify: identify::Behaviour,
    gossip: gossipsub::Behaviour,
    control: request_response::Behaviour<Raw>,
    kademlia: kad::Behaviour<kad::store::MemoryStore>,
    lanes: Toggle<substreams::Behaviour>,
    blobs: Toggle<substreams::Behaviour>,
}

type Told<T> = oneshot::Sender<Result<T, String>>;

enum Order {
    Dial { address: Multiaddr, told: Told<PeerId> },
    Gossip { topic: gossipsub::IdentTopic, bytes: Vec<u8>, told: Told<()> },
    Control { node: PeerId, bytes: Vec<u8>, told: Told<Vec<u8>> },
    OpenLane { node: PeerId, told: Told<Stream> },
    OpenBlob { node: PeerId, told: Told<Stream> },
    Provide { node: PeerId, address: Multiaddr, key: [u8; 32], told: Told<()> },
    Providers { node: PeerId, address: Multiaddr, key: [u8; 32], told: Told<Vec<PeerId>> },
    Put { node: PeerId, address: Multiaddr, key: Vec<u8>, told: Told<()> },
}

/// A peer with its own key that does as the test says.
pub(crate) struct HostilePeer {
    forger: Forger,
    orders: mpsc::Sender<Order>,
    connections: watch::Receiver<usize>,
    asked: Arc<Mutex<Vec<Control>>>,
    lanes: tokio::sync::Mutex<mpsc::Receiver<Stream>>,
    blobs: tokio::sync::Mutex<mpsc::Receiver<Stream>>,
    task: JoinHandle<()>,
}

impl fmt::Debug for HostilePeer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HostilePeer").field("forger", &self.forger).finish_non_exhaustive()
    }
}

impl Drop for HostilePeer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl HostilePeer {
    /// A peer with a new key that looks like any other, connected to `node`.
    pub(crate) async fn joined(node: &Node) -> Self {
        let peer = Self::start(Forger::new(), Habits::default());
        peer.connect(node).await;
        peer
    }

    /// A peer that is connected to nobody.
    pub(crate) fn start(forger: Forger, habits: Habits) -> Self {
        let (orders, inbox) = mpsc::channel(ORDERS_MAX);
        let (connected, connections) = watch::channel(0);
        let (lanes_in, lanes) = mpsc::channel(LANES_MAX);
        let (blobs_in, blobs) = mpsc::channel(LANES_MAX);
        let asked = Arc::new(Mutex::new(Vec::new()));
        let driver = Driver {
            swarm: swarm(&forger.key, &habits),
            habits,
            connected,
            asked: Arc::clone(&asked),
            lanes_in,
            blobs_in,
            dials: HashMap::new(),
            messages: Vec::new(),
            requests: HashMap::new(),
            unanswered: Vec::new(),
            openers: VecDeque::new(),
            blob_openers: VecDeque::new(),
            providing: HashMap::new(),
            searches: HashMap::new(),
            puts: HashMap::new(),
        };
        let (lanes, blobs) = (tokio::sync::Mutex::new(lanes), tokio::sync::Mutex::new(blobs));
        Self { forger, orders, connections, asked, lanes, blobs, task: tokio::spawn(driver.run(inbox)) }
    }

    /// The keys it signs with.
    pub(crate) fn forger(&self) -> &Forger {
        &self.forger
    }

    /// Its id, as the API of a node shows it.
    pub(crate) fn id(&self) -> String {
        self.forger.id().to_string()
    }

    /// Connects to `node`, which may still throw it out afterwards.
    pub(crate) async fn connect(&self, node: &Node) {
        let address = address_of(node);
        self.order("the hostile peer connects", |told| Order::Dial { address, told }).await.expect("a node takes connections");
    }

    /// Waits until no connection is left.
    pub(crate) async fn disconnected(&self) {
        let mut connections = self.connections.clone();
        let ended = within("the hostile peer is disconnected", SETTLE, connections.wait_for(|count| *count == 0)).await;
        ended.expect("the hostile peer runs");
    }

    /// Whether a connection stands.
    pub(crate) fn is_connected(&self) -> bool {
        *self.connections.borrow() > 0
    }

    /// Publishes bytes on a shard, once the node has said that it listens there.
    pub(crate) async fn gossip(&self, shard: Shard, bytes: Vec<u8>) {
        self.try_gossip(shard, bytes).await.expect("the message is published");
    }

    /// Publishes bytes on a shard, if the node does not hang up first.
    ///
    /// # Errors
    /// Why it was not published.
    pub(crate) async fn try_gossip(&self, shard: Shard, bytes: Vec<u8>) -> Result<(), String> {
        let topic = gossipsub::IdentTopic::new(format!("meshwork/1/shard/{:02x}", shard.number()));
        self.order("the message is published", |told| Order::Gossip { topic, bytes, told }).await
    }

    /// Publishes a signed record on the shard of its first capability.
    pub(crate) async fn gossip_record(&self, record: &Record, signed: &[u8]) {
        let shard = record.capabilities.first().expect("a record names a capability").id.shard();
        self.gossip(shard, record_message(shard, signed)).await;
    }

    /// Sends a control request and reads the answer.
    ///
    /// # Errors
    /// What libp2p says if there is none.
    pub(crate) async fn control(&self, node: &Node, bytes: Vec<u8>) -> Result<Vec<u8>, String> {
        let node = peer_of(node);
        self.order("the control request is answered", |told| Order::Control { node, bytes, told }).await
    }

    /// Sends a control request that must be answered with a reply.
    pub(crate) async fn ask(&self, node: &Node, bytes: Vec<u8>) -> Reply {
        let answer = self.control(node, bytes).await.expect("the node answers");
        wire::decode(&answer).unwrap_or_else(|error| panic!("the answer is a reply: {error}"))
    }

    /// Opens a lane on which it calls.
    pub(crate) async fn open_lane(&self, node: &Node) -> RawLane {
        let node = peer_of(node);
        let opened = self.order("the lane opens", |told| Order::OpenLane { node, told }).await;
        RawLane::new(opened.expect("the node takes lanes"))
    }

    /// The next lane that the node opens to call it.
    pub(crate) async fn accept_lane(&self) -> RawLane {
        let stream = within("the node opens a lane", SETTLE, async { self.lanes.lock().await.recv().await }).await;
        RawLane::new(stream.expect("the hostile peer runs"))
    }

    /// Opens a substream for a blob.
    pub(crate) async fn open_blob(&self, node: &Node) -> RawBlob {
        let node = peer_of(node);
        let opened = self.order("the blob's substream opens", |told| Order::OpenBlob { node, told }).await;
        RawBlob::new(opened.expect("the node takes blobs"))
    }

    /// The substream of the next blob that the node pushes to it, from which nothing has been read.
    pub(crate) async fn accept_raw_blob(&self) -> RawBlob {
        let stream = within("the node pushes a blob", SETTLE, async { self.blobs.lock().await.recv().await }).await;
        RawBlob::new(stream.expect("the hostile peer runs"))
    }

    /// The next blob that the node pushes to it.
    pub(crate) async fn accept_blob(&self) -> (Head, Vec<u8>) {
        let bytes = self.accept_raw_blob().await.rest().await;
        let (head, bytes) = bytes.split_first_chunk::<HEAD_BYTES>().expect("a blob has a head");
        (Head::decode(head).expect("a node sends heads"), bytes.to_vec())
    }

    /// Whether the node has asked it something that `fits`.
    pub(crate) fn was_asked(&self, fits: impl Fn(&Control) -> bool) -> bool {
        self.times_asked(fits) > 0
    }

    /// How often the node has asked it something that `fits`.
    pub(crate) fn times_asked(&self, fits: impl Fn(&Control) -> bool) -> usize {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).iter().filter(|asked| fits(asked)).count()
    }

    /// Tells the node that it provides `name`, and waits until the node says so to whoever asks.
    pub(crate) async fn provide(&self, node: &Node, name: &CapabilityName) {
        let (key, own) = (name.key(), self.forger.id().peer_id());
        let (peer, address) = (peer_of(node), address_of(node));
        self.order("it provides", |told| Order::Provide { node: peer, address, key, told }).await.expect("the record is sent");
        // A node tells nobody of himself, so it takes another to ask.
        let other = Self::joined(node).await;
        let named = async || {
            let (node, address) = (peer_of(node), address_of(node));
            let found = other.order("providers are found", |told| Order::Providers { node, address, key, told }).await;
            found.is_ok_and(|found| found.contains(&own)).then_some(())
        };
        eventually("the node names it as a provider", SETTLE, named).await;
    }

    /// Asks the node to keep a value under a key, which no node of the mesh does.
    pub(crate) async fn put_value(&self, node: &Node, key: &[u8]) {
        let (key, node, address) = (key.to_vec(), peer_of(node), address_of(node));
        // Whether the node pretends to have kept it does not matter.
        let _ = self.order("the value is sent", |told| Order::Put { node, address, key, told }).await;
    }

    async fn order<T>(&self, what: &str, order: impl FnOnce(Told<T>) -> Order) -> Result<T, String> {
        let (told, outcome) = oneshot::channel();
        assert!(self.orders.send(order(told)).await.is_ok(), "{what}: the hostile peer has stopped");
        within(what, SETTLE, outcome).await.unwrap_or_else(|_| Err("the connection is gone".to_owned()))
    }
}

fn address_of(node: &Node) -> Multiaddr {
    node.address().parse().expect("a node's address")
}

fn peer_of(node: &Node) -> PeerId {
    node.id().parse().expect("a node's id")
}

fn swarm(key: &Keypair, habits: &Habits) -> Swarm<Behaviour> {
    let id = key.public().to_peer_id();
    let gossip_config = gossipsub::ConfigBuilder::default()
        .max_transmit_size(MESSAGE_BYTES_MAX)
        .heartbeat_initial_delay(Duration::from_millis(100))
        .build()
        .expect("gossip settings");
    let mut kademlia = kad::Behaviour::with_config(id, kad::store::MemoryStore::new(id), kad::Config::new(KADEMLIA));
    kademlia.set_mode(Some(kad::Mode::Client));
    let behaviour = Behaviour {
        identify: identify::Behaviour::new(identify::Config::new(habits.family.to_owned(), key.public())),
        gossip: gossipsub::Behaviour::new(gossipsub::MessageAuthenticity::Signed(key.clone()), gossip_config).expect("gossip starts"),
        control: request_response::Behaviour::with_codec(
            Raw,
            [(CONTROL, request_response::ProtocolSupport::Full)],
            request_response::Config::default(),
        ),
        kademlia,
        lanes: habits.lanes.then(|| substreams::Behaviour::new(lanes::PROTOCOL, usize::MAX)).into(),
        blobs: habits.blobs.then(|| substreams::Behaviour::new(blobs::PROTOCOL, usize::MAX)).into(),
    };
    SwarmBuilder::with_existing_identity(key.clone())
        .with_tokio()
        .with_tcp(tcp::Config::default().nodelay(true), noise::Config::new, yamux::Config::default)
        .expect("a transport")
        .with_behaviour(|_| behaviour)
        .expect("a behaviour")
        .with_swarm_config(|config| config.with_idle_connection_timeout(Duration::from_secs(3_600)))
        .build()
}

/// Owns the swarm of a hostile peer.
struct Driver {
    swarm: Swarm<Behaviour>,
    habits: Habits,
    connected: watch::Sender<usize>,
    asked: Arc<Mutex<Vec<Control>>>,
    lanes_in: mpsc::Sender<Stream>,
    blobs_in: mpsc::Sender<Stream>,
    dials: HashMap<ConnectionId, Told<PeerId>>,
    messages: Vec<(gossipsub::IdentTopic, Vec<u8>, Told<()>)>,
    requests: HashMap<request_response::OutboundRequestId, Told<Vec<u8>>>,
    unanswered: Vec<request_response::ResponseChannel<Vec<u8>>>,
    openers: VecDeque<Told<Stream>>,
    blob_openers: VecDeque<Told<Stream>>,
    providing: HashMap<kad::QueryId, Told<()>>,
    searches: HashMap<kad::QueryId, (Vec<PeerId>, Told<Vec<PeerId>>)>,
    puts: HashMap<kad::QueryId, Told<()>>,
}

impl Driver {
    async fn run(mut self, mut inbox: mpsc::Receiver<Order>) {
        loop {
            tokio::select! {
                order = inbox.recv() => match order {
                    Some(order) => self.obey(order),
                    None => return,
                },
                event = self.swarm.select_next_some() => self.on_event(event),
            }
        }
    }

    fn obey(&mut self, order: Order) {
        if matches!(order, Order::Provide { .. }) {
            // Nodes do not pass on providers without an address.
            self.swarm.add_external_address(NOWHERE.parse().expect("an address"));
        }
        let behaviour = self.swarm.behaviour_mut();
        match order {
            Order::Dial { address, told } => {
                let options = DialOpts::from(address);
                let connection = options.connection_id();
                match self.swarm.dial(options) {
                    Ok(()) => drop(self.dials.insert(connection, told)),
                    Err(error) => drop(told.send(Err(error.to_string()))),
                }
            }
            Order::Gossip { told, .. } if *self.connected.borrow() == 0 => drop(told.send(Err("not connected".to_owned()))),
            Order::Gossip { topic, bytes, told } => {
                self.messages.push((topic, bytes, told));
                self.publish();
            }
            Order::Control { node, bytes, told } => {
                let id = behaviour.control.send_request(&node, bytes);
                self.requests.insert(id, told);
            }
            Order::OpenLane { node, told } => match behaviour.lanes.as_mut() {
                Some(lanes) => {
                    lanes.open(node, 0);
                    self.openers.push_back(told);
                }
                None => drop(told.send(Err("this peer speaks no lanes".to_owned()))),
            },
            Order::OpenBlob { node, told } => match behaviour.blobs.as_mut() {
                Some(blobs) => {
                    blobs.open(node, 0);
                    self.blob_openers.push_back(told);
                }
                None => drop(told.send(Err("this peer speaks no blobs".to_owned()))),
            },
            Order::Provide { node, address, key, told } => {
                behaviour.kademlia.add_address(&node, address);
                let query = behaviour.kademlia.start_providing(kad::RecordKey::new(&key)).expect("room for a provider record");
                self.providing.insert(query, told);
            }
            Order::Providers { node, address, key, told } => {
                behaviour.kademlia.add_address(&node, address);
                let query = behaviour.kademlia.get_providers(kad::RecordKey::new(&key));
                self.searches.insert(query, (Vec::new(), told));
            }
            Order::Put { node, address, key, told } => {
                behaviour.kademlia.add_address(&node, address);
                let record = kad::Record::new(key, b"a value".to_vec());
                let query = behaviour.kademlia.put_record(record, kad::Quorum::One).expect("room for a value record");
                self.puts.insert(query, told);
            }
        }
    }

    /// Tries what waits; a message whose topic nobody has subscribed to yet waits on.
    fn publish(&mut self) {
        for (topic, bytes, told) in std::mem::take(&mut self.messages) {
            match self.swarm.behaviour_mut().gossip.publish(topic.clone(), bytes.clone()) {
                Ok(_) => drop(told.send(Ok(()))),
                Err(gossipsub::PublishError::NoPeersSubscribedToTopic) => self.messages.push((topic, bytes, told)),
                Err(error) => drop(told.send(Err(error.to_string()))),
            }
        }
    }

    fn on_event(&mut self, event: SwarmEvent<BehaviourEvent>) {
        #[expect(clippy::wildcard_enum_match_arm, reason = "libp2p's enum is non-exhaustive; what remains concerns no test")]
        match event {
            SwarmEvent::ConnectionEstablished { peer_id, connection_id, .. } => {
                self.connected.send_modify(|count| *count += 1);
                if let Some(told) = self.dials.remove(&connection_id) {
                    let _ = told.send(Ok(peer_id));
                }
            }
            SwarmEvent::ConnectionClosed { num_established: 0, .. } => {
                self.messages.clear();
                self.openers.clear();
                self.blob_openers.clear();
                self.connected.send_modify(|count| *count -= 1);
            }
            SwarmEvent::ConnectionClosed { .. } => self.connected.send_modify(|count| *count -= 1),
            SwarmEvent::OutgoingConnectionError { connection_id, error, .. } => {
                if let Some(told) = self.dials.remove(&connection_id) {
                    let _ = told.send(Err(error.to_string()));
                }
            }
            SwarmEvent::Behaviour(BehaviourEvent::Gossip(gossipsub::Event::Subscribed { .. })) => self.publish(),
            SwarmEvent::Behaviour(BehaviourEvent::Control(event)) => self.on_control(event),
            SwarmEvent::Behaviour(BehaviourEvent::Lanes(event)) => on_stream(event, &self.lanes_in, &mut self.openers),
            SwarmEvent::Behaviour(BehaviourEvent::Blobs(event)) => on_stream(event, &self.blobs_in, &mut self.blob_openers),
            SwarmEvent::Behaviour(BehaviourEvent::Kademlia(event)) => self.on_kademlia(event),
            _ => {}
        }
    }

    fn on_control(&mut self, event: request_response::Event<Vec<u8>, Vec<u8>>) {
        match event {
            request_response::Event::Message { message: request_response::Message::Request { request, channel, .. }, .. } => {
                // A node that gave up half way has sent half of it.
                let Ok(request) = wire::decode::<Control>(&request) else { return };
                self.asked.lock().unwrap_or_else(PoisonError::into_inner).push(request.clone());
                if (self.habits.ignores)(&request) {
                    self.unanswered.push(channel);
                    return;
                }
                // Without a connection nobody waits for the answer.
                let _ = self.swarm.behaviour_mut().control.send_response(channel, self.habits.reply(&request));
            }
            request_response::Event::Message { message: request_response::Message::Response { request_id, response }, .. } => {
                if let Some(told) = self.requests.remove(&request_id) {
                    let _ = told.send(Ok(response));
                }
            }
            request_response::Event::OutboundFailure { request_id, error, .. } => {
                if let Some(told) = self.requests.remove(&request_id) {
                    let _ = told.send(Err(error.to_string()));
                }
            }
            request_response::Event::InboundFailure { .. } | request_response::Event::ResponseSent { .. } => {}
        }
    }

    fn on_kademlia(&mut self, event: kad::Event) {
        let kad::Event::OutboundQueryProgressed { id, result, step, .. } = event else { return };
        #[expect(clippy::wildcard_enum_match_arm, reason = "only what was ordered comes back")]
        match result {
            kad::QueryResult::StartProviding(result) => {
                if let Some(told) = self.providing.remove(&id) {
                    let _ = told.send(result.map(|_| ()).map_err(|error| error.to_string()));
                }
            }
            kad::QueryResult::GetProviders(result) => {
                if let (Some((found, _)), Ok(kad::GetProvidersOk::FoundProviders { providers, .. })) = (self.searches.get_mut(&id), result)
                {
                    found.extend(providers);
                }
                if let Some((found, told)) = step.last.then(|| self.searches.remove(&id)).flatten() {
                    let _ = told.send(Ok(found));
                }
            }
            kad::QueryResult::PutRecord(result) => {
                if let Some(told) = self.puts.remove(&id) {
                    let _ = told.send(result.map(|_| ()).map_err(|error| error.to_string()));
                }
            }
            _ => {}
        }
    }
}

/// Hands on a substream that the node or the test has opened.
fn on_stream(event: substreams::Event, arrived: &mpsc::Sender<Stream>, openers: &mut VecDeque<Told<Stream>>) {
    let opened = match event {
        substreams::Event::Opened { direction: Direction::Inbound, stream, .. } => return drop(arrived.try_send(stream)),
        substreams::Event::Opened { direction: Direction::Outbound(_), stream, .. } => Ok(stream),
        substreams::Event::OpenFailed { error, .. } => Err(error.to_string()),
    };
    if let Some(told) = openers.pop_front() {
        let _ = told.send(opened);
    }
}

/// The substream of one blob, byte by byte.
#[derive(Debug)]
pub(crate) struct RawBlob {
    stream: Stream,
    /// Bytes taken, and pieces of which the node was told so.
    taken: usize,
    told: usize,
}

impl RawBlob {
    fn new(stream: Stream) -> Self {
        Self { stream, taken: 0, told: 0 }
    }

    /// Writes bytes; whether the node still takes them.
    pub(crate) async fn write(&mut self, bytes: &[u8]) -> bool {
        let writing = async { self.stream.write_all(bytes).await.is_ok() && self.stream.flush().await.is_ok() };
        within("the bytes are written", SETTLE, writing).await
    }

    /// Writes a head and bytes, which need not be those that the head names, and closes.
    pub(crate) async fn push(mut self, head: &Head, bytes: &[u8]) {
        let _ = self.write(&head.encode()).await && self.write(bytes).await;
        // A node that refuses it has closed it already.
        let _ = self.stream.close().await;
    }

    /// Takes so many bytes; whether they came.
    pub(crate) async fn take(&mut self, bytes: usize) -> bool {
        let mut taken = vec![0; bytes];
        let came = within("bytes or the end of the blob's substream", SETTLE, self.stream.read_exact(&mut taken)).await.is_ok();
        self.tell(bytes).await;
        came
    }

    /// Says that so many bytes were taken.
    async fn tell(&mut self, bytes: usize) {
        self.taken += bytes;
        let pieces = self.taken.saturating_sub(HEAD_BYTES) / PIECE_BYTES;
        // A node that pushes nothing more does not listen.
        let _ = self.write(&vec![0; pieces - self.told]).await;
        self.told = pieces;
    }

    /// Waits until the node has dropped the substream.
    pub(crate) async fn refused(&mut self) {
        self.rest().await;
    }

    /// What comes until the node has closed or dropped the substream.
    pub(crate) async fn rest(&mut self) -> Vec<u8> {
        let (mut bytes, mut piece) = (Vec::new(), vec![0; PIECE_BYTES]);
        // A reset is an end like any other.
        while let Ok(read @ 1..) = within("more of the blob comes", SETTLE, self.stream.read(&mut piece)).await {
            bytes.extend_from_slice(&piece[..read]);
            self.tell(read).await;
        }
        bytes
    }
}

/// One lane, byte by byte.
#[derive(Debug)]
pub(crate) struct RawLane {
    stream: Stream,
    unread: Vec<u8>,
    priority: Option<Priority>,
}

impl RawLane {
    fn new(stream: Stream) -> Self {
        Self { stream, unread: Vec::new(), priority: None }
    }

    /// Writes bytes; a lane that the node has closed swallows them.
    pub(crate) async fn write(&mut self, bytes: &[u8]) {
        let writing = async {
            let _ = self.stream.write_all(bytes).await;
            let _ = self.stream.flush().await;
        };
        within("the bytes are written", SETTLE, writing).await;
    }

    /// Writes frames as they should be.
    pub(crate) async fn send(&mut self, frames: &[Frame]) {
        let mut bytes = Vec::new();
        for frame in frames {
            frame.encode(&mut bytes).expect("a frame");
        }
        self.write(&bytes).await;
    }

    /// Writes one call.
    pub(crate) async fn call(&mut self, id: u64, request: Request) {
        self.send(&[Frame::Request { id, request: Box::new(request) }]).await;
    }

    /// The next frame; `None` once the node has closed the lane. A call that has been accepted is told to go.
    pub(crate) async fn next(&mut self) -> Option<Frame> {
        let frame = self.next_silently().await;
        if let Some(Frame::Accepted { id }) = frame {
            self.send(&[Frame::Go { id }]).await;
        }
        frame
    }

    /// The next frame, to which nothing is said.
    pub(crate) async fn next_silently(&mut self) -> Option<Frame> {
        within("a frame or the end of the lane", SETTLE, self.read()).await
    }

    /// The next final frame of any call, and its number; acceptances are passed over.
    pub(crate) async fn end(&mut self) -> Option<(u64, Frame)> {
        loop {
            match self.next().await? {
                frame @ (Frame::Result { id, .. } | Frame::Error { id, .. }) => return Some((id, frame)),
                Frame::Request { .. }
                | Frame::Cancel { .. }
                | Frame::Ping { .. }
                | Frame::Accepted { .. }
                | Frame::Pong { .. }
                | Frame::Chunk { .. }
                | Frame::Credit { .. }
                | Frame::Go { .. } => {}
            }
        }
    }

    /// The next call on a lane that the node opened, with its number; signs of life are given in passing. A lane is for calls of one
    /// priority, which only they tell.
    pub(crate) async fn next_call(&mut self) -> Option<(u64, Box<Request>)> {
        loop {
            match self.next().await? {
                Frame::Request { id, request } => {
                    let priority = *self.priority.get_or_insert(request.priority);
                    assert_eq!(request.priority, priority, "a lane is for calls of one priority");
                    return Some((id, request));
                }
                Frame::Ping { nonce } => self.send(&[Frame::Pong { nonce }]).await,
                Frame::Cancel { .. }
                | Frame::Accepted { .. }
                | Frame::Result { .. }
                | Frame::Error { .. }
                | Frame::Pong { .. }
                | Frame::Chunk { .. }
                | Frame::Credit { .. }
                | Frame::Go { .. } => {}
            }
        }
    }

    /// The number of the next call that the node takes back on a lane that it opened; signs of life are given in passing.
    pub(crate) async fn next_cancel(&mut self) -> Option<u64> {
        let reading = async {
            loop {
                match self.next().await? {
                    Frame::Cancel { id } => return Some(id),
                    Frame::Ping { nonce } => self.send(&[Frame::Pong { nonce }]).await,
                    Frame::Request { .. }
                    | Frame::Accepted { .. }
                    | Frame::Result { .. }
                    | Frame::Error { .. }
                    | Frame::Pong { .. }
                    | Frame::Chunk { .. }
                    | Frame::Credit { .. }
                    | Frame::Go { .. } => {}
                }
            }
        };
        within("a call is taken back", SETTLE, reading).await
    }

    /// Gives signs of life and nothing else until the node closes the lane.
    pub(crate) async fn keep_alive(&mut self) {
        while let Some(frame) = self.read().await {
            if let Frame::Ping { nonce } = frame {
                self.send(&[Frame::Pong { nonce }]).await;
            }
        }
    }

    /// Whether the lane still answers a ping.
    pub(crate) async fn is_alive(&mut self) -> bool {
        self.send(&[Frame::Ping { nonce: 7 }]).await;
        self.next().await == Some(Frame::Pong { nonce: 7 })
    }

    /// Waits until the node has closed the lane.
    pub(crate) async fn closed(&mut self) {
        within("the lane is closed", SETTLE, async { while self.read().await.is_some() {} }).await;
    }

    async fn read(&mut self) -> Option<Frame> {
        loop {
            if let Some(length) = self.unread.first_chunk::<LENGTH_BYTES>() {
                let end = LENGTH_BYTES + usize::try_from(u32::from_be_bytes(*length)).expect("a length");
                if self.unread.len() >= end {
                    let frame: Vec<u8> = self.unread.drain(..end).skip(LENGTH_BYTES).collect();
                    return Some(Frame::decode(&frame.into()).expect("a node sends frames"));
                }
            }
            let mut piece = vec![0; 64 * 1024];
            let read = self.stream.read(&mut piece).await.unwrap_or(0);
            if read == 0 {
                return None;
            }
            self.unread.extend_from_slice(&piece[..read]);
        }
    }
}
