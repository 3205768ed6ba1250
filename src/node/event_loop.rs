//! The loop: one thing after the other, nothing slow.
//!
//! Each turn takes one input (an order to stop, a worker's report, a command, an event of the mesh, or the tick), hands it to the machine
//! it belongs to, and carries out what the machine decided. Every bound of the loop stands in the block below.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use libp2p::Multiaddr;
use libp2p::gossipsub::MessageAcceptance;
use rand::rngs::SmallRng;
use rand::seq::IteratorRandom;
use rand::{Rng, SeedableRng};
use serde_bytes::ByteBuf;
use tokio::sync::{mpsc, oneshot};

use super::execute::AgentsHere;
use super::find::SEARCH_MAX;
use super::gossip::{self, Document, Purpose, Report, VERIFYING_MAX};
use super::hosting::{self, Hosting};
use super::shared::{Command, Network, Observed, Shared};
use super::start::Disk;
use super::view::{Event as NodeEvent, State};
use crate::agents::Change;
use crate::mesh::lanes::{self, Direction, Lane, LaneEnd};
use crate::mesh::{ControlId, Event, Mesh, ReplyTo, SearchId, Stamp};
use crate::model::{AgentId, CapabilityName, ErrorCode, Failure, NodeId, Now, Shard};
use crate::proto::directory::rank::Answer;
use crate::proto::directory::search;
use crate::proto::directory::{self, Digest, Verdict};
use crate::proto::peers::bootstrap::{self, Standing};
use crate::proto::peers::penalties::{self, Penalties};
use crate::proto::peers::rate::Limiter;
use crate::proto::peers::trust::Outcome;
use crate::telemetry::Kind;
use crate::wire::directory::{ANSWERS_MAX, Control, FETCH_MAX, Gossip, GossipContent, Pulse, Query, Record, Reply, SchemaHash};
use crate::wire::{self, Signed, Verified};

/// How often time is looked at.
const TICK: Duration = Duration::from_millis(50);
/// Pause between digest exchanges with a random peer, a quarter more or less.
const REPAIR_PAUSE: Duration = Duration::from_secs(30);
/// How long after the first connection a newcomer waits for digests and dials before it calls itself ready.
const SETTLE_MAX: Duration = Duration::from_millis(800);
/// Searches that may run at once.
const SEARCHES_MAX: usize = 256;
/// A name that the DHT was asked for is not asked for again so soon.
const LOOKUP_FRESH: Duration = Duration::from_secs(5);
/// Names whose last lookup is remembered.
const LOOKUPS_KEPT: usize = 1_024;
/// Lanes of peers that are served at once.
const LANES_SERVED_MAX: usize = 512;
/// Control requests of one peer: per second, and at once.
const CONTROL_RATE: (u32, u32) = (50, 200);
/// After the routing table grew, provider records are sent again, for as long as it is this small.
const REPROVIDE_PEERS_MAX: usize = 20;
/// Reports of workers that may wait.
pub(super) const REPORTS_MAX: usize = 1_024;

/// Points for what a peer did (see `penalties`): a ban is 50.
mod fault {
    pub(super) const MALFORMED: u32 = 10;
    pub(super) const SIGNATURE: u32 = 25;
    pub(super) const PROTOCOL: u32 = 10;
}

struct Search {
    machine: search::State,
    query: Query,
    reply: oneshot::Sender<Answer>,
}

/// Why a control request was sent.
enum Asked {
    Search(u64),
    Digest,
    Fetch,
    Schemas(oneshot::Sender<Result<Vec<String>, Failure>>),
}

/// What a worker made of an order to issue a record.
pub(super) struct Issued {
    agent: AgentId,
    record: Result<Verified<Record>, String>,
}

/// The channels into the loop.
pub(super) struct Inputs {
    pub(super) commands: mpsc::Receiver<Command>,
    pub(super) outcomes: mpsc::Receiver<Observed>,
    pub(super) changes: mpsc::Receiver<Change>,
    pub(super) reports: (mpsc::Sender<Report>, mpsc::Receiver<Report>),
    pub(super) issued: (mpsc::Sender<Issued>, mpsc::Receiver<Issued>),
    pub(super) ended: (mpsc::Sender<Ended>, mpsc::Receiver<Ended>),
}

/// A lane is over.
pub(super) enum Ended {
    Called(NodeId, LaneEnd),
    Served(NodeId, Option<&'static str>),
}

/// Everything the loop owns.
pub(super) struct EventLoop {
    shared: Arc<Shared>,
    disk: Arc<Disk>,
    mesh: Mesh,
    inputs: Inputs,
    rng: SmallRng,
    directory: directory::State,
    bootstrap: bootstrap::State,
    penalties: Penalties,
    limiter: Limiter,
    hosting: Hosting,
    verifying: usize,
    searches_by_number: BTreeMap<u64, Search>,
    searches_begun: u64,
    names_by_lookup: HashMap<SearchId, (u64, CapabilityName)>,
    looked_up_at: BTreeMap<CapabilityName, Duration>,
    asked_by_control: BTreeMap<ControlId, Asked>,
    lane_waiters_by_node: BTreeMap<NodeId, Vec<oneshot::Sender<Result<Lane, Failure>>>>,
    lanes_served: usize,
    repairs_running: usize,
    repair_at: Duration,
    reprovide_at: Option<Duration>,
    proven_len: usize,
    met_at: Option<Duration>,
    compatible: BTreeSet<NodeId>,
    leaving: bool,
}

impl EventLoop {
    pub(super) fn new(
        shared: Arc<Shared>,
        disk: Arc<Disk>,
        mesh: Mesh,
        inputs: Inputs,
        directory: directory::State,
        bootstrap: bootstrap::State,
        penalties: Penalties,
    ) -> Self {
        let mut rng = SmallRng::from_os_rng();
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
            limiter: Limiter::new(CONTROL_RATE.0, CONTROL_RATE.1, 4_096),
            hosting: Hosting::default(),
            verifying: 0,
            searches_by_number: BTreeMap::new(),
            searches_begun: 0,
            names_by_lookup: HashMap::new(),
            looked_up_at: BTreeMap::new(),
            asked_by_control: BTreeMap::new(),
            lane_waiters_by_node: BTreeMap::new(),
            lanes_served: 0,
            repairs_running: 0,
            repair_at,
            reprovide_at: None,
            proven_len: 0,
            met_at: None,
            compatible: BTreeSet::new(),
            leaving: false,
        }
    }

    /// Runs until the node leaves.
    pub(super) async fn run(mut self) {
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
            Some(observed) = self.inputs.outcomes.recv() => self.on_outcomes(observed),
            event = self.mesh.next() => self.on_mesh(event),
            _ = ticks.tick() => self.on_tick(),
        }
        self.settle();
        true
    }

    fn now(&self) -> Now {
        self.shared.clock.now()
    }

    /// Carries out what the directory decided, and lets the invocation plane see it.
    fn settle(&mut self) {
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
        if let Some(routes) = self.directory.changed_routes() {
            self.shared.routes.store(Arc::new(routes));
        }
    }

    // Time.

    fn on_tick(&mut self) {
        let now = self.now();
        for address in self.bootstrap.handle_tick(now.mono, &mut self.rng) {
            tracing::debug!(%address, "dialling");
            self.mesh.join(&address);
        }
        self.directory.handle_tick(now);
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
        self.update_state(now.mono);
        self.make_room();
        let count = |value: usize| i64::try_from(value).unwrap_or(i64::MAX);
        self.shared.metrics.peers.set(count(self.mesh.connected_len()));
        self.shared.metrics.records.set(count(self.directory.len()));
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

    // Own agents.

    fn on_health(&mut self, change: &Change) {
        tracing::info!(agent = %change.agent, health = ?change.health, "agent health");
        self.hosting.expire(change.agent);
        let now = self.now();
        self.issue_due(now.mono);
        self.pulse(now);
    }

    fn issue_due(&mut self, now: Duration) {
        if self.mesh.listening().next().is_none() || self.leaving {
            return;
        }
        let addresses: Vec<String> = self.mesh.advertised().iter().map(ToString::to_string).collect();
        for agent in self.hosting.due(&self.shared.registry.all(), now) {
            self.hosting.begin(agent.id());
            let (shared, disk, addresses) = (Arc::clone(&self.shared), Arc::clone(&self.disk), addresses.clone());
            let issued = self.inputs.issued.0.clone();
            tokio::task::spawn_blocking(move || {
                let record = hosting::issue(&agent, &shared, &disk, addresses);
                let _ = issued.blocking_send(Issued { agent: agent.id(), record });
            });
        }
    }

    fn on_issued(&mut self, issued: Issued) {
        let now = self.now();
        let attached = self.shared.registry.get(issued.agent).is_some();
        match issued.record {
            Ok(record) if attached => {
                let fresh = self.hosting.finish(issued.agent, Some(&record), now.mono);
                self.directory.handle_own_record(record.clone(), now);
                self.publish_record(&record);
                for name in fresh {
                    self.mesh.provide(&name);
                }
                self.pulse(now);
            }
            Ok(_) => drop(self.hosting.finish(issued.agent, None, now.mono)),
            Err(error) => {
                tracing::error!(agent = %issued.agent, error, "the agent cannot be advertised");
                self.hosting.finish(issued.agent, None, now.mono);
            }
        }
    }

    fn publish_record(&mut self, record: &Verified<Record>) {
        for shard in record.shards() {
            self.publish(shard, GossipContent::Record(ByteBuf::from(record.bytes())));
        }
    }

    fn publish(&mut self, shard: Shard, content: GossipContent) {
        match wire::encode(&Gossip { shard: shard.number(), content }) {
            Ok(bytes) => self.mesh.publish(shard, bytes),
            Err(error) => tracing::error!(%error, "cannot be gossiped"),
        }
    }

    fn pulse(&mut self, now: Now) {
        let agents = self.shared.registry.all();
        if let Some(pulse) = self.hosting.pulse(&agents, &self.shared, self.leaving, now) {
            self.send_pulse(pulse);
        }
    }

    fn send_pulse(&mut self, pulse: Verified<Pulse>) {
        for shard in self.hosting.take_shards() {
            self.publish(shard, GossipContent::Pulse(ByteBuf::from(pulse.bytes())));
        }
        self.directory.handle_own_pulse(pulse);
    }

    // Commands.

    fn on_command(&mut self, command: Command) {
        match command {
            Command::Find { query, enough, reply } => self.find(query, enough, reply),
            Command::OpenLane { node, reply } => self.open_lane(node, reply),
            Command::Schemas { node, hashes, reply } => {
                let id = self.mesh.ask(node, Control::Schemas(hashes));
                self.asked_by_control.insert(id, Asked::Schemas(reply));
            }
            Command::Entries { reply } => drop(reply.send(self.directory.entries().collect())),
            Command::Peers { reply } => {
                let peers = self.mesh.peers();
                let counted =
                    peers.into_iter().map(|peer| (self.directory.hosted_len(peer.node), peer)).map(|(agents, peer)| (peer, agents));
                let _ = reply.send(counted.collect());
            }
            Command::Network { reply } => drop(reply.send(self.network())),
            Command::AgentChanged { agent, reply } => self.on_agent_changed(agent, reply),
            Command::Leave { .. } => {}
        }
    }

    fn network(&mut self) -> Network {
        let node = self.shared.node();
        Network {
            listen: self.mesh.listening().map(|address| format!("{address}/p2p/{node}")).collect(),
            advertised: self.mesh.advertised().iter().map(ToString::to_string).collect(),
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
                let (commands, weak) = (self.shared.commands.clone(), Arc::downgrade(&attached));
                tokio::spawn(async move {
                    let work = tokio::task::spawn_blocking(move || {
                        let record = hosting::issue(&attached, &shared, &disk, addresses);
                        let _ = issued.blocking_send(Issued { agent, record });
                    });
                    let _ = work.await;
                    drop(weak);
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
        let now = self.now();
        let mut next = Some(first);
        while let Some(observed) = next {
            let succeeded = matches!(observed.outcome, Outcome::Success { .. });
            let mut ledger = self.shared.ledger.write().unwrap_or_else(std::sync::PoisonError::into_inner);
            ledger.handle_outcome(observed.agent, &observed.capability, observed.outcome, now.mono);
            drop(ledger);
            if observed.down {
                self.directory.on_agent_down(observed.agent, now);
            } else {
                self.directory.on_outcome(observed.agent, succeeded, now);
            }
            next = self.inputs.outcomes.try_recv().ok();
        }
    }

    // Searches.

    fn find(&mut self, query: Query, enough: usize, reply: oneshot::Sender<Answer>) {
        let now = self.now().mono;
        let answer = self.answer(&query, now);
        let fresh = |name: &&CapabilityName| self.looked_up_at.get(*name).is_none_or(|at| now.saturating_sub(*at) >= LOOKUP_FRESH);
        let alone = self.mesh.connected_len() == 0;
        let names: BTreeSet<CapabilityName> =
            if alone { BTreeSet::new() } else { query.capabilities.iter().filter(fresh).cloned().collect() };
        let dialling = self.directory.unproven_hosts(&query);
        let idle = names.is_empty() && dialling.is_empty();
        if answer.candidates.len() >= enough || idle || self.searches_by_number.len() >= SEARCHES_MAX {
            let _ = reply.send(answer);
            return;
        }
        if self.looked_up_at.len() >= LOOKUPS_KEPT {
            self.looked_up_at.retain(|_, at| now.saturating_sub(*at) < LOOKUP_FRESH);
        }
        self.looked_up_at.extend(names.iter().cloned().map(|name| (name, now)));
        let number = self.searches_begun;
        self.searches_begun = number.wrapping_add(1);
        let mut outputs = Vec::new();
        let deadline = now.saturating_add(SEARCH_MAX);
        let machine = search::State::new(self.shared.node(), names, dialling, deadline, &mut outputs);
        self.searches_by_number.insert(number, Search { machine, query, reply });
        self.carry_out(number, outputs);
    }

    fn answer(&self, query: &Query, now: Duration) -> Answer {
        let ledger = self.shared.ledger.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        self.directory.query(query, &ledger, now)
    }

    fn with_search(&mut self, number: u64, act: impl FnOnce(&mut search::State, &mut Vec<search::Output>)) {
        let mut outputs = Vec::new();
        if let Some(search) = self.searches_by_number.get_mut(&number) {
            act(&mut search.machine, &mut outputs);
        }
        self.carry_out(number, outputs);
    }

    fn carry_out(&mut self, number: u64, outputs: Vec<search::Output>) {
        for output in outputs {
            match output {
                search::Output::Lookup(name) => {
                    let lookup = self.mesh.search(&name);
                    self.names_by_lookup.insert(lookup, (number, name));
                }
                search::Output::Ask(node) => {
                    let Some(search) = self.searches_by_number.get(&number) else { continue };
                    let id = self.mesh.ask(node, Control::Find(search.query.clone()));
                    self.asked_by_control.insert(id, Asked::Search(number));
                }
                search::Output::Done => {
                    if let Some(search) = self.searches_by_number.remove(&number) {
                        let answer = self.answer(&search.query, self.now().mono);
                        let _ = search.reply.send(answer);
                    }
                }
            }
        }
    }

    fn dialled(&mut self, node: NodeId) {
        let numbers: Vec<u64> = self.searches_by_number.keys().copied().collect();
        for number in numbers {
            self.with_search(number, |machine, outputs| machine.on_dialled(node, outputs));
        }
    }

    // Lanes.

    fn open_lane(&mut self, node: NodeId, reply: oneshot::Sender<Result<Lane, Failure>>) {
        if let Some(lane) = self.shared.lanes.get(node) {
            let _ = reply.send(Ok(lane));
            return;
        }
        let waiters = self.lane_waiters_by_node.entry(node).or_default();
        waiters.retain(|waiter| !waiter.is_closed());
        let first = waiters.is_empty();
        waiters.push(reply);
        if !first {
            return;
        }
        if self.mesh.is_connected(node) {
            self.mesh.open_lane(node);
        } else {
            let addresses = self.directory.entries().find(|entry| entry.record.node == node).map(|entry| entry.record.addresses.clone());
            let addresses: Vec<Multiaddr> = addresses.unwrap_or_default().iter().filter_map(|address| address.parse().ok()).collect();
            self.mesh.reach(node, &addresses, node);
        }
    }

    fn refuse_lane(&mut self, node: NodeId, failure: &Failure) {
        for waiter in self.lane_waiters_by_node.remove(&node).unwrap_or_default() {
            let _ = waiter.send(Err(failure.clone()));
        }
    }

    fn on_lane(&mut self, node: NodeId, direction: Direction, stream: libp2p::Stream) {
        let (ended, clock) = (self.inputs.ended.0.clone(), self.shared.clock.zero());
        match direction {
            Direction::Outbound => {
                let (lane, task) = Lane::new(node, stream, clock);
                self.shared.lanes.insert(lane.clone());
                tokio::spawn(async move {
                    let end = task.await;
                    let _ = ended.send(Ended::Called(node, end)).await;
                });
                for waiter in self.lane_waiters_by_node.remove(&node).unwrap_or_default() {
                    let _ = waiter.send(Ok(lane.clone()));
                }
            }
            Direction::Inbound if self.lanes_served >= LANES_SERVED_MAX => {
                self.shared.metrics.dropped(Kind::Lane, "too_many");
            }
            Direction::Inbound => {
                self.lanes_served += 1;
                let executor: Arc<dyn lanes::Executor> = Arc::new(AgentsHere(Arc::clone(&self.shared)));
                let calls_max = usize::try_from(self.shared.config.limits.calls_per_peer_max).unwrap_or(1);
                let drain = self.shared.drain.clone();
                tokio::spawn(async move {
                    let violation = lanes::serve(node, stream, executor, calls_max, clock, drain).await;
                    let _ = ended.send(Ended::Served(node, violation)).await;
                });
            }
        }
    }

    fn on_lane_ended(&mut self, ended: Ended) {
        match ended {
            Ended::Called(node, end) => {
                self.shared.lanes.remove_closed(node);
                match end {
                    LaneEnd::Closed => {}
                    LaneEnd::Silent => {
                        tracing::debug!(%node, "a lane fell silent while calls were outstanding");
                        self.directory.on_node_silent(node, self.now());
                        // The connection is as dead as the lane; a node that lives is dialled again.
                        self.mesh.disconnect(node, false);
                    }
                    LaneEnd::Violation(what) => self.penalise(node, fault::PROTOCOL, what),
                }
            }
            Ended::Served(node, violation) => {
                self.lanes_served = self.lanes_served.saturating_sub(1);
                if let Some(what) = violation {
                    self.shared.metrics.dropped(Kind::Lane, "violation");
                    self.penalise(node, fault::PROTOCOL, what);
                }
            }
        }
    }

    // The mesh.

    fn on_mesh(&mut self, event: Event) {
        let now = self.now();
        match event {
            Event::Listening(address) => {
                tracing::info!(%address, "listening");
                for agent in self.shared.registry.all() {
                    self.hosting.expire(agent.id());
                }
            }
            Event::ListenFailed(reason) => tracing::error!(reason, "a listener is gone"),
            Event::Connected { node, address } => self.on_connected(node, &address),
            Event::Disconnected { node, in_order } => self.on_disconnected(node, in_order, now),
            Event::JoinFailed(address, reason) => {
                tracing::info!(%address, reason, "a bootstrap peer did not answer; trying again");
                self.bootstrap.on_dial_failed(&address, now.mono, &mut self.rng);
            }
            Event::ReachFailed(node, reason) => {
                tracing::debug!(%node, reason, "a node cannot be reached");
                self.directory.on_dial_failed(node, now);
                self.dialled(node);
                self.refuse_lane(node, &Failure::new(ErrorCode::Unavailable, format!("node {} cannot be reached: {reason}", node.short())));
            }
            Event::Proven(node) => self.on_proven(node),
            Event::Foreign(node, family) => {
                tracing::info!(%node, family, "a peer speaks another protocol or version");
                self.mesh.disconnect(node, false);
            }
            Event::Gossip { stamp, from, shard, data } => self.on_gossip(stamp, from, shard, &data, now),
            Event::Request { node, to, request } => self.on_request(node, to, request, now),
            Event::Reply { id, node, reply } => self.on_reply(id, node, reply, now),
            Event::Providers { search, nodes, done } => {
                let Some((number, name)) = self.names_by_lookup.get(&search).cloned() else { return };
                if done {
                    self.names_by_lookup.remove(&search);
                }
                self.with_search(number, |machine, outputs| machine.on_providers(&name, nodes, done, outputs));
            }
            Event::Lane { node, direction, stream } => self.on_lane(node, direction, stream),
            Event::LaneFailed(node, error) => {
                let failure = match error {
                    lanes::OpenError::Unsupported => Failure::new(ErrorCode::VersionUnsupported, format!("node {}: {error}", node.short())),
                    lanes::OpenError::NotConnected | lanes::OpenError::Failed => {
                        Failure::new(ErrorCode::Unavailable, format!("no lane to node {}: {error}", node.short()))
                    }
                };
                self.refuse_lane(node, &failure);
            }
            Event::Misbehaved(node, what) => self.penalise(node, fault::PROTOCOL, what),
        }
    }

    fn on_connected(&mut self, node: NodeId, address: &Multiaddr) {
        tracing::info!(%node, %address, "connected");
        self.bootstrap.on_connected(node, address);
        self.directory.on_connected(node);
        self.shared.publish(NodeEvent::PeerConnected(node));
        self.dialled(node);
        if self.lane_waiters_by_node.contains_key(&node) {
            self.mesh.open_lane(node);
        }
        self.compatible.insert(node);
        self.ask_digest(node);
        // Gossip reaches a new peer only from the next heartbeat on; until then it learns from the digest.
        self.hosting.hurry();
    }

    fn on_disconnected(&mut self, node: NodeId, in_order: bool, now: Now) {
        tracing::info!(%node, in_order, "disconnected");
        self.compatible.remove(&node);
        self.bootstrap.on_disconnected(node, now.mono, &mut self.rng);
        self.directory.on_disconnected(node, in_order, now);
        self.shared.publish(NodeEvent::PeerDisconnected(node));
        self.refuse_lane(node, &Failure::new(ErrorCode::Unavailable, format!("node {} disconnected", node.short())));
    }

    fn on_proven(&mut self, node: NodeId) {
        self.proven_len += 1;
        if self.proven_len <= REPROVIDE_PEERS_MAX {
            self.reprovide_at = Some(self.now().mono.saturating_add(Duration::from_millis(200)));
        }
        let addresses: Vec<String> = self.mesh.dialled_addresses(node).iter().map(|address| format!("{address}/p2p/{node}")).collect();
        let (disk, wall) = (Arc::clone(&self.disk), self.now().wall);
        tokio::task::spawn_blocking(move || disk.remember(&node, addresses, wall));
    }

    fn on_gossip(&mut self, stamp: Stamp, from: NodeId, shard: u8, data: &[u8], now: Now) {
        let claimed = match claim(shard, data) {
            Ok(claimed) => claimed,
            Err(error) => {
                tracing::debug!(%from, %error, "a gossip message was refused");
                self.shared.metrics.dropped(Kind::Gossip, error.label());
                self.mesh.judge(&stamp, MessageAcceptance::Reject);
                self.penalise(from, fault::MALFORMED, "malformed gossip");
                return;
            }
        };
        let verdict = match &claimed {
            Document::Record(record) if !record.unverified().shards().contains(&Shard::new(shard)) => Verdict::Reject("on a foreign shard"),
            Document::Record(record) => self.directory.screen(record.unverified(), now),
            Document::Pulse(pulse) => self.directory.screen_pulse(pulse.unverified(), now),
        };
        match verdict {
            Verdict::Accept if self.verifying >= VERIFYING_MAX => {
                self.shared.metrics.dropped(Kind::Gossip, "busy");
                self.mesh.judge(&stamp, MessageAcceptance::Ignore);
            }
            Verdict::Accept => {
                self.verifying += 1;
                gossip::verify(stamp, from, claimed, self.inputs.reports.0.clone());
            }
            Verdict::Ignore(reason) => {
                tracing::trace!(%from, reason, "a gossip message was dropped");
                self.shared.metrics.dropped(Kind::Document, "ignored");
                self.mesh.judge(&stamp, MessageAcceptance::Ignore);
            }
            Verdict::Reject(reason) => {
                self.shared.metrics.dropped(Kind::Document, "rejected");
                self.mesh.judge(&stamp, MessageAcceptance::Reject);
                self.penalise(from, fault::MALFORMED, reason);
            }
        }
    }

    fn on_report(&mut self, report: Report) {
        let now = self.now();
        match report {
            Report::Gossip { stamp, from, document } => {
                self.verifying = self.verifying.saturating_sub(1);
                let verdict = match document {
                    Ok(Document::Record(record)) => self.directory.on_record(*record, now),
                    Ok(Document::Pulse(pulse)) => self.directory.on_pulse(*pulse, now),
                    Err(error) => {
                        self.shared.metrics.dropped(Kind::Document, error.label());
                        self.mesh.judge(&stamp, MessageAcceptance::Reject);
                        self.penalise(from, fault::SIGNATURE, "a document with a wrong signature");
                        return;
                    }
                };
                let acceptance = match verdict {
                    Verdict::Accept => MessageAcceptance::Accept,
                    Verdict::Ignore(_) => MessageAcceptance::Ignore,
                    Verdict::Reject(_) => MessageAcceptance::Reject,
                };
                self.mesh.judge(&stamp, acceptance);
            }
            Report::Batch { from, purpose, records, pulses, bad } => self.on_batch(from, purpose, records, pulses, bad, now),
        }
    }

    fn on_batch(
        &mut self,
        from: NodeId,
        purpose: Purpose,
        records: Vec<Verified<Record>>,
        pulses: Vec<Verified<Pulse>>,
        bad: usize,
        now: Now,
    ) {
        if bad > 0 {
            self.shared.metrics.dropped(Kind::Document, "signature");
            self.penalise(from, fault::SIGNATURE, "documents that do not hold in a reply");
        }
        let answers_query = matches!(purpose, Purpose::Search(_));
        for record in records {
            // Only a node itself knows which of its agents answer a query.
            if !answers_query || record.node == from {
                self.directory.on_record(record, now);
            }
        }
        for pulse in pulses {
            self.directory.on_pulse(pulse, now);
        }
        match purpose {
            Purpose::Search(number) => {
                // Hosts that are dialled because of this answer are waited for, so they must be known before it is counted.
                if self.mesh.is_connected(from) {
                    self.directory.on_connected(from);
                }
                self.settle();
                self.with_search(number, |machine, outputs| machine.on_answer(from, outputs));
            }
            Purpose::Repair => self.repairs_running = self.repairs_running.saturating_sub(1),
        }
    }

    // Control.

    fn ask_digest(&mut self, node: NodeId) {
        if self.shared.config.mesh.gossip && !self.leaving {
            let id = self.mesh.ask(node, Control::Digest(ByteBuf::from(self.directory.digest().to_bytes())));
            self.asked_by_control.insert(id, Asked::Digest);
            self.repairs_running += 1;
        }
    }

    fn on_request(&mut self, node: NodeId, to: ReplyTo, request: Result<Control, wire::Error>, now: Now) {
        let request = match request {
            Ok(request) => request,
            Err(error) => {
                self.shared.metrics.dropped(Kind::Control, error.label());
                self.mesh.reply(to, Reply::Refused(crate::model::printable(&error.to_string(), 150)));
                self.penalise(node, fault::MALFORMED, "a malformed control request");
                return;
            }
        };
        if let Err(wait) = self.limiter.check(node, now.mono) {
            self.shared.metrics.dropped(Kind::Control, "rate");
            let retry_after_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX).max(1);
            self.mesh.reply(to, Reply::Busy { retry_after_ms });
            return;
        }
        let reply = match request {
            Control::Find(query) => self.answer_peer(&query, now),
            Control::Digest(_) if !self.shared.config.mesh.gossip => Reply::Differences { held: Vec::new(), more: false },
            Control::Digest(hashes) => match Digest::from_bytes(&hashes) {
                Some(theirs) => {
                    let (held, more) = self.directory.differences(&theirs);
                    Reply::Differences { held, more }
                }
                None => Reply::Refused("the digest does not have 256 hashes".to_owned()),
            },
            Control::Fetch(agents) => self.documents(&agents),
            Control::Schemas(hashes) => Reply::Schemas(hashes.iter().map(|hash| self.schema_text(*hash)).collect()),
        };
        self.mesh.reply(to, reply);
    }

    fn schema_text(&self, hash: SchemaHash) -> String {
        self.shared.schemas.get(hash).and_then(|known| serde_json::to_string(&*known.text).ok()).unwrap_or_default()
    }

    /// This node's own agents that answer a peer's query.
    fn answer_peer(&self, query: &Query, now: Now) -> Reply {
        let answer = self.answer(query, now.mono);
        let here = answer.candidates.iter().filter(|candidate| candidate.entry.record.node == self.shared.node());
        let agents: Vec<AgentId> = here.map(|candidate| candidate.agent()).take(ANSWERS_MAX).collect();
        self.documents(&agents)
    }

    fn documents(&self, agents: &[AgentId]) -> Reply {
        let (records, pulses) = self.directory.documents(agents);
        Reply::Records {
            records: records.iter().map(|record| ByteBuf::from(record.bytes())).collect(),
            pulses: pulses.iter().take(FETCH_MAX).map(|pulse| ByteBuf::from(pulse.bytes())).collect(),
        }
    }

    fn on_reply(&mut self, id: ControlId, node: NodeId, reply: Result<Reply, String>, now: Now) {
        let Some(asked) = self.asked_by_control.remove(&id) else { return };
        let reports = self.inputs.reports.0.clone();
        match (asked, reply) {
            (Asked::Search(number), Ok(Reply::Records { records, pulses })) => {
                gossip::verify_batch(node, Purpose::Search(number), records, pulses, reports);
            }
            (Asked::Search(number), _) => self.with_search(number, |machine, outputs| machine.on_answer(node, outputs)),
            (Asked::Digest, Ok(Reply::Differences { held, more })) => {
                self.repairs_running = self.repairs_running.saturating_sub(1);
                let missing = self.directory.missing(&held);
                for agents in missing.chunks(FETCH_MAX) {
                    let id = self.mesh.ask(node, Control::Fetch(agents.to_vec()));
                    self.asked_by_control.insert(id, Asked::Fetch);
                    self.repairs_running += 1;
                }
                if more && !missing.is_empty() {
                    self.repair_at = now.mono.saturating_add(Duration::from_secs(1));
                }
            }
            (Asked::Fetch, Ok(Reply::Records { records, pulses })) => gossip::verify_batch(node, Purpose::Repair, records, pulses, reports),
            (Asked::Digest | Asked::Fetch, reply) => {
                tracing::debug!(%node, reply = ?reply.err(), "a digest exchange failed");
                self.repairs_running = self.repairs_running.saturating_sub(1);
            }
            (Asked::Schemas(waiter), Ok(Reply::Schemas(schemas))) => drop(waiter.send(Ok(schemas))),
            (Asked::Schemas(waiter), reply) => {
                let reason = reply.err().unwrap_or_else(|| "another answer than schemas".to_owned());
                let failure = Failure::new(ErrorCode::Unavailable, format!("node {} sent no schemas: {reason}", node.short()));
                let _ = waiter.send(Err(failure));
            }
        }
    }

    // Penalties and the end.

    fn penalise(&mut self, node: NodeId, points: u32, what: &'static str) {
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

/// Reads a gossip message without believing it.
fn claim(shard: u8, data: &[u8]) -> Result<gossip::Claimed, wire::Error> {
    let message: Gossip = wire::decode(data)?;
    if message.shard != shard {
        return Err(wire::Error::Rule { kind: "gossip message", field: "shard", rule: "is the one it is published on" });
    }
    match message.content {
        GossipContent::Record(bytes) => Signed::from_bytes(&bytes).map(|record| Document::Record(Box::new(record))),
        GossipContent::Pulse(bytes) => Signed::from_bytes(&bytes).map(|pulse| Document::Pulse(Box::new(pulse))),
    }
}
