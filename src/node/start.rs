//! From a configuration to a running node.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, RwLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use futures::{StreamExt, TryStreamExt};
use libp2p::Multiaddr;
use tokio::sync::{Semaphore, broadcast, mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

use super::clock::Clock;
use super::context;
use super::event_loop::{EventLoop, Inputs, REPORTS_MAX};
use super::find::SCANS_MAX;
use super::handle::Handle;
use super::invocation::blobs::Blobs;
use super::invocation::kept::{Commits, Results};
use super::invocation::keyed::Calls;
use super::invocation::lanes::Lanes;
use super::invocation::rates::Rates;
use super::invocation::routing::Routing;
use super::invocation::running::Running;
use super::leftovers;
use super::schemas::Schemas;
use super::shared::{COMMANDS_MAX, EVENTS_MAX, OUTCOMES_MAX, Shared};
use super::task;
use super::view::State;
use crate::agents::Registry;
use crate::agents::definition;
use crate::config::Config;
use crate::mesh::{self, Event, Mesh, limits};
use crate::model::{Definition, Failure, NodeId, Timestamp};
use crate::proto::directory::rank::{Rules, Weights};
use crate::proto::directory::{self, Routes};
use crate::proto::invocation::offer::Timings;
use crate::proto::invocation::{blobs as proto_blobs, dedup};
use crate::proto::peers::bootstrap::{self, LAST_GOOD_MAX};
use crate::proto::peers::penalties::{self, Penalties};
use crate::proto::peers::trust::Ledger;
use crate::store::{self, Ban, DataDir, GoodPeer, Index};
use crate::telemetry::Metrics;
use crate::wire::directory::{AGENTS_PER_NODE_MAX, CAPABILITIES_MAX};
use crate::wire::kept::Side;
use crate::wire::{AgentKey, NodeKey};

/// How long the system may take to let the node listen.
const LISTEN_MAX: Duration = Duration::from_secs(5);
/// How far ahead of the clock sequence numbers are made durable.
const RESERVED: Duration = Duration::from_secs(600);
/// Agents that are attached at once while the node starts.
const ATTACHING_MAX: usize = 16;
/// Pairs of agent and capability on which evidence is kept.
const EVIDENCE_MAX: usize = 20_000;

/// The node could not start. Nothing runs; what was already on disk is as it was, new keys excepted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The data directory: in use, not writable, exposed keys. The message says what to do.
    #[error("{0}")]
    Store(#[from] store::Error),
    /// The mesh: an address in use, name resolution.
    #[error("{0}")]
    Mesh(#[from] mesh::Error),
    /// An agent of the configuration.
    #[error("agent `{name}`: {failure}")]
    Agent {
        /// Its name.
        name: String,
        /// What is wrong with it.
        failure: Failure,
    },
    /// The configuration holds an address that is none; `Config::load` checks this.
    #[error("`{0}` is not an address")]
    Address(String),
    /// A worker broke off.
    #[error("a worker broke off")]
    Worker,
}

/// The disk of a node.
pub(super) struct Disk {
    pub(super) dir: DataDir,
    pub(super) token: Zeroizing<String>,
    /// `None` if the disk has no room for an index: the node then remembers no peers.
    pub(super) index: Option<Index>,
    /// Whoever changes pins, one at a time.
    pub(super) pinning: tokio::sync::Mutex<()>,
    /// Sequence numbers that are durable already, by agent's name.
    reserved: Mutex<BTreeMap<String, RangeInclusive<u64>>>,
}

impl Disk {
    /// The key of the agent called `name`, made at first use.
    pub(super) fn agent_key(&self, name: &str) -> Result<AgentKey, store::Error> {
        let key = self.dir.keys().agent_key(name)?;
        Ok(AgentKey::from_seed(&key.to_bytes()))
    }

    /// The next sequence number of an agent's records. Blocks on the disk once per [`RESERVED`].
    pub(super) fn next_sequence(&self, name: &str, wall: Timestamp) -> Result<u64, store::Error> {
        let mut reserved = super::shared::lock(&self.reserved);
        let left = reserved.get(name).map(|left| *left.start().max(&wall.as_ms())..=*left.end()).filter(|left| !left.is_empty());
        let left = match left {
            Some(left) => left,
            None => {
                let ahead = u64::try_from(RESERVED.as_millis()).unwrap_or(u64::MAX);
                self.dir.sequences().reserve(name, wall.as_ms(), ahead)?
            }
        };
        let next = *left.start();
        reserved.insert(name.to_owned(), next.saturating_add(1)..=*left.end());
        Ok(next)
    }

    /// Remembers a peer that was dialled with success.
    pub(super) fn remember(&self, node: &NodeId, addresses: Vec<String>, wall: Timestamp) {
        let Some(index) = &self.index else { return };
        let before = index.peers().unwrap_or_default().into_iter().find(|(known, _)| known == node);
        let successes = before.map_or(0, |(_, peer)| peer.successes).saturating_add(1);
        let peer = GoodPeer { addresses, last_seen_ms: wall.as_ms(), successes };
        if let Err(error) = index.put_peer(node, &peer).and_then(|()| index.flush()) {
            tracing::warn!(%error, "a peer could not be remembered");
        }
    }

    /// Remembers a ban.
    pub(super) fn ban(&self, node: &NodeId, until: Timestamp, points: u32) {
        let Some(index) = &self.index else { return };
        let ban = Ban { until_ms: until.as_ms(), points: f64::from(points) };
        if let Err(error) = index.put_ban(node, &ban).and_then(|()| index.flush()) {
            tracing::warn!(%error, "a ban could not be remembered");
        }
    }
}

/// A node and its loop.
#[derive(Debug)]
pub struct Node {
    /// What everything else talks to.
    pub handle: Handle,
    task: JoinHandle<()>,
}

struct Opened {
    disk: Disk,
    key: NodeKey,
    peers: Vec<(NodeId, GoodPeer)>,
    bans: BTreeMap<NodeId, Ban>,
    definitions: Vec<Definition>,
    pins: BTreeSet<NodeId>,
    tasks: (task::Reader, task::Found),
    contexts: context::Book,
    /// Who has blobs, before anybody gets more.
    owners: Vec<String>,
    notes: Vec<String>,
}

/// Everything that start-up reads from the disk. Blocks.
fn open(config: &Config, wall: Timestamp) -> Result<Opened, StartError> {
    let dir = DataDir::open(&config.node.data_dir)?;
    let key = NodeKey::new(dir.keys().node_key()?);
    let token = dir.keys().api_token(config.api.token_file.as_deref())?;
    let loaded = dir.definitions().load_all()?;
    let mut notes: Vec<String> = loaded.skipped.iter().map(ToString::to_string).collect();
    let index = match dir.index() {
        Ok(index) => {
            notes.extend(index.begun_anew().map(str::to_owned));
            Some(index)
        }
        Err(error) => {
            notes.push(format!("peers, bans and receipts are not remembered: {error}"));
            None
        }
    };
    let peers = index.as_ref().and_then(|index| index.peers().ok()).unwrap_or_default();
    let bans = index.as_ref().and_then(|index| index.bans(wall.as_ms()).ok()).unwrap_or_default();
    let pins = match dir.pins().load() {
        Ok(pins) => pins,
        Err(error) => {
            notes.push(format!("pins are not used: {error}"));
            BTreeSet::new()
        }
    };
    for note in &notes {
        tracing::warn!(note, "start-up goes on without this");
    }
    let (journal, replay) = dir.journal(store::journal::Config::default())?;
    let reader = task::Reader::new(journal, dir.blobs(), index.clone(), config);
    let mut found = task::replay(&reader, replay, wall)?;
    notes.append(&mut found.notes);
    let owners = leftovers::owners(reader.blobs(), &found);
    let contexts = context::Book::open(dir.contexts(), &config.context, wall, &mut notes)?;
    let disk = Disk { dir, token, index, pinning: tokio::sync::Mutex::default(), reserved: Mutex::default() };
    let definitions = loaded.definitions;
    Ok(Opened { disk, key, peers, bans, definitions, pins, tasks: (reader, found), contexts, owners, notes })
}

fn addresses(texts: &[String]) -> Result<Vec<Multiaddr>, StartError> {
    texts.iter().map(|text| text.parse().map_err(|_| StartError::Address(text.clone()))).collect()
}

impl Node {
    /// Starts a node: opens its data directory, listens, attaches its agents, begins to join. Returns as soon as it listens.
    ///
    /// # Errors
    /// See [`StartError`].
    pub async fn start(config: Config) -> Result<Self, StartError> {
        let clock = Clock::start();
        let wall = clock.now().wall;
        let opened = {
            let config = config.clone();
            tokio::task::spawn_blocking(move || open(&config, wall)).await.map_err(|_| StartError::Worker)??
        };
        let Opened { disk, key, peers, bans, definitions, pins, tasks: (reader, found), contexts, owners, notes } = opened;
        let node = key.id();
        let join = addresses(&config.mesh.join)?;
        let remembered =
            peers.iter().take(LAST_GOOD_MAX).flat_map(|(_, peer)| peer.addresses.iter().take(2)).filter_map(|text| text.parse().ok());
        let bootstrap = bootstrap::State::new(join.clone(), remembered.filter(|address| !join.contains(address)).collect::<Vec<_>>());
        let (mut mesh, mut penalties) = (Self::mesh(&config, &key, join, clock)?, Penalties::new(penalties::Config::default()));
        restore_bans(&bans, wall, &mut mesh, &mut penalties);
        listen(&mut mesh, &config).await?;

        let (commands, command_inbox) = mpsc::channel(COMMANDS_MAX);
        let (outcomes, outcome_inbox) = mpsc::channel(OUTCOMES_MAX);
        let (changes, change_inbox) = mpsc::channel(1_024);
        let (tasks, task_inbox) = mpsc::channel(task::COMMANDS_MAX);
        let routing = &config.routing;
        let weights = Weights {
            r#match: routing.weight_match,
            trust: routing.weight_trust,
            latency: routing.weight_latency,
            cost: routing.weight_cost,
        };
        let rules = Rules { weights, min_trust: routing.min_trust };
        let ledger = Ledger::new(EVIDENCE_MAX).with_half_life(Duration::from_millis(routing.evidence_half_life_ms));
        let mut directory_config = directory::Config::new(node);
        directory_config.records_max = usize::try_from(config.limits.records_max).unwrap_or(usize::MAX);
        directory_config.suspect = Duration::from_millis(routing.suspect_ms);
        directory_config.rules = rules;
        let limits = &config.limits;
        let blobs = proto_blobs::Config {
            bytes_max: u64::from(limits.payload_bytes_max),
            bytes_per_peer_max: limits.announced_per_peer_bytes_max,
            bytes_total_max: limits.announced_bytes_max,
        };
        let kept = dedup::Config {
            results_max: usize::try_from(limits.results_kept_max).unwrap_or(usize::MAX),
            bytes_max: limits.results_kept_bytes_max,
            keep: Duration::from_millis(limits.results_kept_ms),
        };
        let times = task::TaskClock::new(clock);
        let (commits, kept_blobs) = (Commits::new(reader.journal().clone()), reader.blobs().clone());
        let results = |side| Results { side, commits: Arc::clone(&commits), blobs: kept_blobs.clone(), clock: times };
        let shared = Arc::new(Shared {
            registry: Registry::new(changes),
            key,
            clock,
            routes: ArcSwap::from_pointee(Routes::default()),
            rules,
            routing: Routing::new(routing),
            ledger: RwLock::new(ledger),
            timings: Mutex::new(Timings::new(AGENTS_PER_NODE_MAX * CAPABILITIES_MAX)),
            quick_runs: AtomicUsize::new(0),
            rates: Rates::new(&config.limits),
            running: Running::default(),
            lanes: Lanes::default(),
            blobs: Blobs::new(blobs, clock),
            foreground: Arc::default(),
            schemas: Schemas::default(),
            calls_by_key: Arc::new(Calls::new(kept, results(Side::Caller), clock)),
            results_by_key: Arc::new(Calls::new(kept, results(Side::Agent), clock)),
            cancels_by_invocation: Mutex::default(),
            in_flight: AtomicUsize::new(0),
            serving: AtomicUsize::new(0),
            scans: Arc::new(Semaphore::new(SCANS_MAX)),
            metrics: Metrics::default(),
            commands,
            outcomes,
            events: broadcast::channel(EVENTS_MAX).0,
            state: watch::channel(State::Joining).0,
            drain: CancellationToken::new(),
            tasks,
            tasks_stop: CancellationToken::new(),
            notes: Mutex::new(notes),
            contexts,
            context_questions: Arc::default(),
            config,
        });
        let inputs = Inputs {
            commands: command_inbox,
            outcomes: outcome_inbox,
            changes: change_inbox,
            reports: mpsc::channel(REPORTS_MAX),
            issued: mpsc::channel(REPORTS_MAX),
            ended: mpsc::channel(REPORTS_MAX),
        };
        let disk = Arc::new(disk);
        let directory = directory::State::new(directory_config);
        let event_loop = EventLoop::new(Arc::clone(&shared), Arc::clone(&disk), mesh, inputs, directory, bootstrap, penalties);
        let task = tokio::spawn(event_loop.with_pins(pins).run());
        for call in &found.calls {
            shared.calls_by_key.restore(call);
            shared.results_by_key.restore(call);
        }
        shared.results_by_key.doubt_all();
        leftovers::remove(reader.blobs(), owners, &found, &[shared.calls_by_key.owners(), shared.results_by_key.owners()]);
        let access = Arc::new(task::Access { reader: reader.clone(), clock: times, started: found.started });
        let book = task::Book::new(Arc::clone(&shared), reader, found, task_inbox);
        let node = Self { handle: Handle { shared, disk, tasks: access, started_at: wall }, task };
        node.attach_all(definitions).await?;
        // Contexts are read with the keys of this node's own agents.
        tokio::spawn(context::run(Arc::clone(&node.handle.shared)));
        // Tasks go on once this node's own agents are there.
        tokio::spawn(book.run());
        Ok(node)
    }

    fn mesh(config: &Config, key: &NodeKey, join: Vec<Multiaddr>, clock: Clock) -> Result<Mesh, StartError> {
        let given = &config.mesh.limits;
        let limits = limits::Limits {
            pending_in_max: given.pending_in_max,
            pending_out_max: given.pending_out_max,
            established_in_max: given.established_in_max,
            established_out_max: given.established_out_max,
            established_max: given.established_max,
            per_peer_max: given.per_peer_max,
            per_range_max: given.per_range_max,
            ..limits::Limits::default()
        };
        let memory = given.memory_bytes_max.and_then(|bytes| usize::try_from(bytes).ok());
        let settings = mesh::Settings {
            key: key.clone(),
            listen: addresses(&config.mesh.listen)?,
            external: addresses(&config.mesh.external)?,
            join,
            private: config.mesh.private,
            client_only: config.mesh.client_only,
            gossip: config.mesh.gossip,
            limits,
            memory_bytes_max: memory.unwrap_or_else(limits::memory_limit_bytes),
            clock: clock.zero(),
        };
        Ok(Mesh::new(&settings)?)
    }

    /// Attaches the agents of the configuration, and those added while the node ran before. The configuration wins over a stored one.
    async fn attach_all(&self, stored: Vec<Definition>) -> Result<(), StartError> {
        let configured = self.handle.shared.config.agents.clone();
        let is_configured = |name: &str| configured.iter().any(|definition| definition.name == name);
        let attach = |definition: Definition| async {
            let name = definition.name.clone();
            self.attach(definition).await.map_err(|failure| StartError::Agent { name, failure })
        };
        let stored: Vec<Definition> = stored.into_iter().filter(|definition| !is_configured(&definition.name)).collect();
        futures::stream::iter(configured.iter().cloned().map(attach)).buffer_unordered(ATTACHING_MAX).try_collect::<()>().await?;
        // What was added while the node ran must not keep it from starting.
        let mut attached = futures::stream::iter(stored.into_iter().map(attach)).buffer_unordered(ATTACHING_MAX);
        while let Some(result) = attached.next().await {
            if let Err(error) = result {
                tracing::warn!(%error, "a stored agent was not attached");
                super::shared::lock(&self.handle.shared.notes).push(format!("a stored agent was not attached: {error}"));
            }
        }
        Ok(())
    }

    async fn attach(&self, definition: Definition) -> Result<(), Failure> {
        let checked = definition::check(definition).map_err(|faults| definition::failure(&faults))?;
        super::hosting::fits_record(&checked, &self.handle.shared)?;
        let (disk, name) = (Arc::clone(&self.handle.disk), checked.definition.name.clone());
        let key = tokio::task::spawn_blocking(move || disk.agent_key(&name)).await;
        let internal = |message: String| Failure::new(crate::model::ErrorCode::Internal, message);
        let key = key.map_err(|error| internal(error.to_string()))?.map_err(|error| internal(error.to_string()))?;
        self.handle.attach_checked(key, checked).await.map(drop)
    }

    /// Stops the node in good order.
    pub async fn stop(self) {
        self.handle.stop().await;
        if let Err(error) = self.task.await {
            tracing::error!(%error, "the event loop broke off");
        }
    }
}

fn restore_bans(bans: &BTreeMap<NodeId, Ban>, wall: Timestamp, mesh: &mut Mesh, penalties: &mut Penalties) {
    for (node, ban) in bans {
        let left = Timestamp::from_ms(ban.until_ms).saturating_since(wall);
        if !left.is_zero() {
            mesh.ban(*node, left);
            // Enough points for a ban, so that the machine knows of it too.
            penalties.penalise(node.peer_id(), penalties::Config::default().ban_points_min, Duration::ZERO);
        }
    }
}

/// Waits until every configured address is listened on.
async fn listen(mesh: &mut Mesh, config: &Config) -> Result<(), StartError> {
    let wanted = config.mesh.listen.len();
    let refused = |reason: String| {
        let address = config.mesh.listen.first().and_then(|text| text.parse().ok()).unwrap_or_else(Multiaddr::empty);
        StartError::Mesh(mesh::Error::Listen { address, reason })
    };
    let all = async {
        let mut listening = 0;
        while listening < wanted {
            let event = mesh.next().await;
            if let Event::ListenFailed(reason) = event {
                return Err(refused(reason));
            }
            // Nobody can know this node yet, so nothing else happens before it listens.
            if let Event::Listening(address) = event {
                tracing::info!(%address, "listening");
                listening += 1;
            }
        }
        Ok(())
    };
    tokio::time::timeout(LISTEN_MAX, all).await.unwrap_or_else(|_| Err(refused("no answer from the system".to_owned())))
}
