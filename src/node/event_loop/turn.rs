//! What the loop owns, and what one turn of it is.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use libp2p::Multiaddr;
use rand::rngs::SmallRng;
use rand::seq::IteratorRandom;
use rand::{Rng, SeedableRng};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until};

use super::receipts::Receipts;
use crate::agents::Change;
use crate::mesh::lanes::{Lane, LaneEnd};
use crate::mesh::{ControlId, Mesh, SearchId};
use crate::model::{AgentId, CapabilityName, Failure, NodeId, Now, Priority, Shard};
use crate::node::gossip::Report;
use crate::node::hosting::{self, Hosting};
use crate::node::shared::{Command, Network, Observed, Shared};
use crate::node::start::Disk;
use crate::node::view::{Event as NodeEvent, State};
use crate::proto::directory::rank::Answer;
use crate::proto::directory::search;
use crate::proto::directory::{self};
use crate::proto::invocation::dedup::Key;
use crate::proto::peers::bootstrap::{self, Standing};
use crate::proto::peers::penalties::{self, Penalties};
use crate::proto::peers::rate::Limiter;
use crate::proto::peers::trust::Outcome;
use crate::wire::Verified;
use crate::wire::directory::{Control, Query, Record};
use crate::wire::offer::{Inquiry, Offers};

/// Outcomes of calls are taken in batches: a turn of the loop for each would cost more than the call.
const OUTCOMES_PAUSE: Duration = Duration::from_millis(10);
/// How often time is looked at.
pub(super) const TICK: Duration = Duration::from_millis(100);
/// Pause between digest exchanges with a random peer, a quarter more or less.
pub(super) const REPAIR_PAUSE: Duration = Duration::from_secs(30);
/// How long after the first connection a newcomer waits for digests and dials before it calls itself ready.
pub(super) const SETTLE_MAX: Duration = Duration::from_millis(800);
/// Searches that may run at once.
pub(super) const SEARCHES_MAX: usize = 256;
/// Queries that may wait for one search.
pub(super) const WAITERS_MAX: usize = 4_096;
/// A name that the DHT was asked for is not asked for again so soon.
pub(super) const LOOKUP_FRESH: Duration = Duration::from_secs(5);
/// Names whose last lookup is remembered.
pub(super) const LOOKUPS_KEPT: usize = 1_024;
/// Lanes of one peer that are served at once: one per priority, and one to spare.
pub(super) const LANES_PER_PEER_MAX: usize = 4;
/// Control requests of one peer: per second, and at once.
pub(super) const CONTROL_RATE: (f64, u32) = (50.0, 200);
/// Peers whose control requests are counted.
pub(super) const CONTROL_PEERS_MAX: usize = 4_096;
/// After the routing table grew, provider records are sent again, for as long as it is this small.
pub(super) const REPROVIDE_PEERS_MAX: usize = 20;
/// Up to this many known agents the node follows every shard; beyond it only those it hosts on or was lately asked about.
pub(super) const FOLLOW_ALL_MAX: usize = 1_000;
/// How long a shard is followed after somebody asked for a capability on it.
pub(super) const FOLLOW_ASKED: Duration = Duration::from_secs(600);
/// Reports of workers that may wait.
pub(in crate::node) const REPORTS_MAX: usize = 1_024;

/// Points for what a peer did (see `penalties`): a ban is 50.
pub(super) mod fault {
    pub(in crate::node) const MALFORMED: u32 = 10;
    pub(in crate::node) const SIGNATURE: u32 = 25;
    pub(in crate::node) const PROTOCOL: u32 = 10;
}

pub(super) struct Search {
    pub(super) machine: search::State,
    pub(super) names: BTreeSet<CapabilityName>,
    pub(super) query: Query,
    /// Everybody who waits, each with a query of its own about the same names.
    pub(super) waiters: Vec<(Query, oneshot::Sender<Answer>)>,
}

/// What a peer has this node's agents do.
#[derive(Default)]
pub(super) struct Served {
    pub(super) lanes: usize,
    pub(super) running: Arc<AtomicUsize>,
}

/// Why a control request was sent.
pub(super) enum Asked {
    Search(u64),
    Digest,
    Fetch,
    Schemas(oneshot::Sender<Result<Vec<String>, Failure>>),
    /// Held by whoever waits for the answer, if anybody does.
    Receipts(Option<mpsc::Sender<()>>),
    Offers(Box<Inquiry>, oneshot::Sender<Result<Offers, Failure>>),
    Context(oneshot::Sender<Result<Vec<u8>, Failure>>),
    Results(Vec<Key>),
}

/// What a worker made of an order to issue a record.
pub(in crate::node) struct Issued {
    pub(super) agent: AgentId,
    pub(super) record: Result<Verified<Record>, String>,
}

/// Where the answer to somebody who asked for a lane goes.
pub(super) type LaneReply = oneshot::Sender<Result<Lane, Failure>>;

/// The channels into the loop.
pub(in crate::node) struct Inputs {
    pub(in crate::node) commands: mpsc::Receiver<Command>,
    pub(in crate::node) outcomes: mpsc::Receiver<Observed>,
    pub(in crate::node) changes: mpsc::Receiver<Change>,
    pub(in crate::node) reports: (mpsc::Sender<Report>, mpsc::Receiver<Report>),
    pub(in crate::node) issued: (mpsc::Sender<Issued>, mpsc::Receiver<Issued>),
    pub(in crate::node) ended: (mpsc::Sender<Ended>, mpsc::Receiver<Ended>),
}

/// A lane is over.
pub(in crate::node) enum Ended {
    Called(NodeId, LaneEnd),
    Served(NodeId, Option<&'static str>),
}

/// Everything the loop owns.
pub(in crate::node) struct EventLoop {
    pub(super) shared: Arc<Shared>,
    pub(super) disk: Arc<Disk>,
    pub(super) mesh: Mesh,
    pub(super) inputs: Inputs,
    pub(super) rng: SmallRng,
    pub(super) directory: directory::State,
    pub(super) bootstrap: bootstrap::State,
    pub(super) penalties: Penalties,
    pub(super) limiter: Limiter<NodeId>,
    pub(super) hosting: Hosting,
    pub(super) verifying: usize,
    pub(super) searches_by_number: BTreeMap<u64, Search>,
    pub(super) searches_begun: u64,
    pub(super) names_by_lookup: HashMap<SearchId, (u64, CapabilityName)>,
    pub(super) looked_up_at: BTreeMap<CapabilityName, Duration>,
    pub(super) asked_by_control: BTreeMap<ControlId, Asked>,
    pub(super) lane_waiters_by_node: BTreeMap<NodeId, Vec<(Priority, LaneReply)>>,
    pub(super) blob_waiters_by_tag: BTreeMap<u64, oneshot::Sender<libp2p::Stream>>,
    pub(super) blobs_opened: u64,
    pub(super) served_by_node: BTreeMap<NodeId, Served>,
    pub(super) repairs_running: usize,
    pub(super) repair_at: Duration,
    pub(super) asked_at_by_shard: BTreeMap<Shard, Duration>,
    pub(super) reprovide_at: Option<Duration>,
    pub(super) proven_len: usize,
    pub(super) met_at: Option<Duration>,
    pub(super) compatible: BTreeSet<NodeId>,
    pub(super) receipts: Receipts,
    pub(super) leaving: bool,
    /// Until then outcomes wait for each other.
    outcomes_at: Option<Instant>,
}

impl EventLoop {
    pub(in crate::node) fn new(
        shared: Arc<Shared>,
        disk: Arc<Disk>,
        mesh: Mesh,
        inputs: Inputs,
        directory: directory::State,
        bootstrap: bootstrap::State,
        penalties: Penalties,
    ) -> Self {
        let mut rng = SmallRng::from_os_rng();
        let receipts = Receipts::new(shared.node(), &shared.config.routing);
        let repair_at = REPAIR_PAUSE.mul_f64(rng.random_range(0.5..1.0));
        Self {
            shared,
            disk,
            mesh,
            inputs,
            rng,
            directory,
            bootstrap,
            penalties,
            limiter: Limiter::new(CONTROL_PEERS_MAX),
            hosting: Hosting::default(),
            verifying: 0,
            searches_by_number: BTreeMap::new(),
            searches_begun: 0,
            names_by_lookup: HashMap::new(),
            looked_up_at: BTreeMap::new(),
            asked_by_control: BTreeMap::new(),
            lane_waiters_by_node: BTreeMap::new(),
            blob_waiters_by_tag: BTreeMap::new(),
            blobs_opened: 0,
            served_by_node: BTreeMap::new(),
            repairs_running: 0,
            repair_at,
            asked_at_by_shard: BTreeMap::new(),
            reprovide_at: None,
            proven_len: 0,
            met_at: None,
            compatible: BTreeSet::new(),
            receipts,
            leaving: false,
            outcomes_at: None,
        }
    }

    /// Runs until the node leaves.
    pub(in crate::node) async fn run(mut self) {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while self.step(&mut ticks).await {}
    }

    /// Takes one input. Returns whether to go on.
    async fn step(&mut self, ticks: &mut tokio::time::Interval) -> bool {
        tokio::select! {
            biased;
            Some(report) = self.inputs.reports.1.recv() => self.on_report(report),
            Some(issued) = self.inputs.issued.1.recv() => self.on_issued(issued),
            Some(ended) = self.inputs.ended.1.recv() => self.on_lane_ended(ended),
            Some(change) = self.inputs.changes.recv() => self.on_health(&change),
            Some(command) = self.inputs.commands.recv() => {
                if let Command::Leave { reply } = command {
                    self.leave(reply).await;
                    return false;
                }
                self.on_command(command);
            }
            Some(observed) = self.inputs.outcomes.recv(), if self.outcomes_at.is_none() => self.on_outcomes(observed),
            () = sleep_until(self.outcomes_at.unwrap_or_else(Instant::now)), if self.outcomes_at.is_some() => self.outcomes_at = None,
            event = self.mesh.next() => self.on_mesh(event),
            _ = ticks.tick() => self.on_tick(),
        }
        self.settle();
        true
    }

    pub(super) fn now(&self) -> Now {
        self.shared.clock.now()
    }

    /// Carries out what the directory decided, and lets the invocation plane see it.
    pub(super) fn settle(&mut self) {
        for output in self.directory.drain() {
            match output {
                directory::Output::Dial { node, addresses } => {
                    for search in self.searches_by_number.values_mut() {
                        search.machine.on_dialling(node);
                    }
                    let addresses: Vec<Multiaddr> = addresses.iter().filter_map(|address| address.parse().ok()).collect();
                    if self.mesh.is_connected(node) {
                        self.directory.on_connected(node);
                        self.dialled(node);
                    } else {
                        self.mesh.reach(node, &addresses, node);
                    }
                }
                directory::Output::Event(event) => {
                    let (agent, name, up) = match event {
                        directory::Event::AgentUp(agent, name) => (agent, name, true),
                        directory::Event::AgentDown(agent, name) => (agent, name, false),
                    };
                    let node = self.directory.entry(agent).map(|entry| entry.record.node);
                    tracing::debug!(%agent, name, up, "agent");
                    self.shared.publish(if up {
                        NodeEvent::AgentUp { agent, name, node }
                    } else {
                        NodeEvent::AgentDown { agent, name, node }
                    });
                }
            }
        }
        self.publish_routes();
    }

    pub(super) fn publish_routes(&mut self) {
        if let Some(routes) = self.directory.changed_routes() {
            self.shared.routes.store(Arc::new(routes));
        }
    }

    fn on_tick(&mut self) {
        let now = self.now();
        for address in self.bootstrap.handle_tick(now.mono, &mut self.rng) {
            tracing::debug!(%address, "dialling");
            self.mesh.join(&address);
        }
        self.directory.handle_tick(now);
        self.shared.blobs.tick(now.mono);
        self.issue_due(now.mono);
        self.pulse(now);
        let numbers: Vec<u64> = self.searches_by_number.keys().copied().collect();
        for number in numbers {
            self.with_search(number, |machine, outputs| machine.handle_timeout(now.mono, outputs));
        }
        if now.mono >= self.repair_at {
            self.repair_at = now.mono.saturating_add(REPAIR_PAUSE.mul_f64(self.rng.random_range(0.75..1.25)));
            let partner = self.compatible.iter().copied().choose(&mut self.rng);
            partner.into_iter().for_each(|node| self.ask_digest(node));
        }
        if self.reprovide_at.is_some_and(|at| at <= now.mono) {
            self.reprovide_at = None;
            for name in self.hosting.provided() {
                self.mesh.provide(&name);
            }
        }
        self.tick_receipts(now);
        self.tick_outbox(now);
        self.follow_shards(now.mono);
        self.update_state(now.mono);
        self.make_room();
        let count = |value: usize| i64::try_from(value).unwrap_or(i64::MAX);
        self.shared.metrics.peers.set(count(self.mesh.connected_len()));
        self.shared.metrics.records.set(count(self.directory.len()));
    }

    /// A small mesh is followed whole; in a large one each node listens only where it has something to hear.
    fn follow_shards(&mut self, now: Duration) {
        let all = self.directory.len() < FOLLOW_ALL_MAX;
        self.asked_at_by_shard.retain(|_, at| now.saturating_sub(*at) < FOLLOW_ASKED);
        let asked = self.asked_at_by_shard.keys().copied();
        let wanted: BTreeSet<Shard> = if all { Shard::all().collect() } else { asked.chain(self.hosting.shards()).collect() };
        self.mesh.follow(&wanted);
    }

    fn update_state(&mut self, now: Duration) {
        if *self.shared.state.borrow() != State::Joining {
            if *self.shared.state.borrow() == State::Alone && self.bootstrap.standing() == Standing::Joined {
                self.shared.state.send_replace(State::Ready);
            }
            return;
        }
        let state = match self.bootstrap.standing() {
            Standing::Joining => return,
            Standing::Alone => State::Alone,
            Standing::Joined => {
                let met_at = *self.met_at.get_or_insert(now);
                let settled = self.repairs_running == 0 && self.directory.unproven_len() == 0 && !self.compatible.is_empty();
                if !settled && now.saturating_sub(met_at) < SETTLE_MAX {
                    return;
                }
                State::Ready
            }
        };
        self.shared.state.send_replace(state);
        self.shared.publish(NodeEvent::Ready(self.shared.node()));
    }

    /// Lets idle peers go before the limit on connections refuses useful ones.
    fn make_room(&mut self) {
        let max = usize::try_from(self.shared.config.mesh.limits.established_max).unwrap_or(usize::MAX);
        if self.mesh.connected_len() <= max / 4 * 3 {
            return;
        }
        let idle = |peer: &crate::mesh::Peer| peer.connected > Duration::from_secs(60) && self.shared.lanes.outstanding(peer.node) == 0;
        let peers = self.mesh.peers();
        let least = peers
            .iter()
            .filter(|peer| idle(peer))
            .min_by_key(|peer| (self.directory.hosted_len(peer.node), std::cmp::Reverse(peer.connected)));
        if let Some(peer) = least {
            self.mesh.disconnect(peer.node, true);
        }
    }

    fn on_command(&mut self, command: Command) {
        match command {
            Command::Find { query, enough, reply } => self.find(query, enough, reply),
            Command::Scan { query, room, reply } => self.scan(query, room, reply),
            Command::OpenLane { node, priority, reply } => self.open_lane(node, priority, reply),
            Command::OpenBlob { node, reply } => self.open_blob(node, reply),
            Command::Penalise { node, what } => self.penalise(node, fault::PROTOCOL, what),
            Command::Schemas { node, hashes, reply } => {
                let id = self.mesh.ask(node, Control::Schemas(hashes));
                self.asked_by_control.insert(id, Asked::Schemas(reply));
            }
            Command::Offers { node, inquiry, reply } => {
                let id = self.mesh.ask(node, Control::Offers((*inquiry).clone()));
                self.asked_by_control.insert(id, Asked::Offers(inquiry, reply));
            }
            Command::Context { node, question, reply } => {
                let id = self.mesh.ask(node, Control::Context(question.into()));
                self.asked_by_control.insert(id, Asked::Context(reply));
            }
            Command::Answer { to, reply } => self.mesh.reply(to, *reply),
            Command::AgentsOf { node, reply } => {
                let hosted = self.directory.entries().filter(|entry| entry.record.node == node);
                let _ = reply.send(hosted.map(|entry| entry.record.agent).collect());
            }
            Command::HostsOf { agents, reply } => {
                let hosts = agents.into_iter().filter_map(|agent| self.directory.entry(agent)).map(|entry| entry.record.node);
                let _ = reply.send(hosts.collect());
            }
            Command::Connected { reply } => drop(reply.send(self.compatible.iter().copied().collect())),
            Command::Entries { reply } => drop(reply.send(self.directory.entries().collect())),
            Command::Peers { reply } => {
                let peers = self.mesh.peers();
                let counted =
                    peers.into_iter().map(|peer| (self.directory.hosted_len(peer.node), peer)).map(|(agents, peer)| (peer, agents));
                let _ = reply.send(counted.collect());
            }
            Command::Network { reply } => drop(reply.send(self.network())),
            Command::AgentChanged { agent, reply } => self.on_agent_changed(agent, reply),
            Command::Receipts(order) => self.on_receipts_order(order),
            Command::Leave { .. } => {}
        }
    }

    fn network(&mut self) -> Network {
        let node = self.shared.node();
        let advertised = self.mesh.advertised();
        // People copy the first one to another machine, so what others can use comes first.
        let mut listen: Vec<&Multiaddr> = self.mesh.listening().collect();
        listen.sort_by_key(|address| advertised.iter().position(|known| known == *address).unwrap_or(usize::MAX));
        Network {
            listen: listen.into_iter().map(|address| format!("{address}/p2p/{node}")).collect(),
            advertised: advertised.iter().map(ToString::to_string).collect(),
            peers: self.mesh.connected_len(),
            records: self.directory.len(),
            dht_peers: self.mesh.routing_len(),
            denied: self.mesh.denied(),
        }
    }

    /// An attached agent is answered for once its record stands, so that whoever attached it finds it.
    fn on_agent_changed(&mut self, agent: AgentId, reply: oneshot::Sender<()>) {
        let now = self.now();
        match self.shared.registry.get(agent) {
            Some(attached) => {
                // The first record is issued even for an agent that is not up yet, so that people see it; its pulse says that it is away.
                self.hosting.expire(agent);
                let addresses = self.mesh.advertised().iter().map(ToString::to_string).collect();
                self.hosting.begin(agent);
                let (shared, disk, issued) = (Arc::clone(&self.shared), Arc::clone(&self.disk), self.inputs.issued.0.clone());
                let commands = self.shared.commands.clone();
                tokio::spawn(async move {
                    let work = tokio::task::spawn_blocking(move || {
                        let record = hosting::issue(&attached, &shared, &disk, addresses);
                        let _ = issued.blocking_send(Issued { agent, record });
                    });
                    let _ = work.await;
                    // The loop takes the record before it takes the next command, so an answer to this one comes after it.
                    let (entries, taken) = oneshot::channel();
                    if commands.send(Command::Entries { reply: entries }).await.is_ok() {
                        let _ = taken.await;
                    }
                    let _ = reply.send(());
                });
            }
            None => {
                for name in self.hosting.remove(agent) {
                    self.mesh.stop_providing(&name);
                }
                self.directory.handle_own_removed(agent);
                self.hosting.hurry();
                self.pulse(now);
                let _ = reply.send(());
            }
        }
    }

    fn on_outcomes(&mut self, first: Observed) {
        self.outcomes_at = Some(Instant::now() + OUTCOMES_PAUSE);
        let now = self.now();
        let mut next = Some(first);
        while let Some(observed) = next {
            let succeeded = matches!(observed.outcome, Outcome::Success { .. } | Outcome::Late { .. });
            let mut ledger = self.shared.ledger.write().unwrap_or_else(std::sync::PoisonError::into_inner);
            ledger.handle_outcome(observed.agent, &observed.capability, observed.outcome, now.mono);
            drop(ledger);
            self.sum_outcome(&observed, now);
            if observed.down {
                self.directory.on_agent_down(observed.agent, now);
            } else if succeeded {
                self.directory.on_success(observed.agent);
            }
            next = self.inputs.outcomes.try_recv().ok();
        }
    }

    pub(super) fn penalise(&mut self, node: NodeId, points: u32, what: &'static str) {
        let now = self.now();
        let verdict = self.penalties.penalise(node.peer_id(), points, now.mono);
        tracing::debug!(%node, points, what, ?verdict, "a peer misbehaved");
        self.shared.metrics.penalty(matches!(verdict, penalties::Verdict::Ban { .. }));
        match verdict {
            penalties::Verdict::Keep => {}
            penalties::Verdict::Disconnect => self.mesh.disconnect(node, false),
            penalties::Verdict::Ban { until } => {
                tracing::warn!(%node, what, "a peer was banned");
                self.mesh.ban(node, until);
                self.shared.publish(NodeEvent::PeerBanned(node, what));
                let until_wall = now.wall.saturating_add(until.saturating_sub(now.mono));
                let disk = Arc::clone(&self.disk);
                tokio::task::spawn_blocking(move || disk.ban(&node, until_wall, points));
            }
        }
    }

    async fn leave(&mut self, reply: oneshot::Sender<()>) {
        self.leaving = true;
        let now = self.now();
        self.pulse(now);
        // The last pulse is on its way once the swarm has been polled for a moment.
        let flush = async {
            loop {
                let _ = self.mesh.next().await;
            }
        };
        let _ = tokio::time::timeout(Duration::from_millis(150), flush).await;
        let _ = reply.send(());
    }
}
