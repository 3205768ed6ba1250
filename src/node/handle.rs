//! What doors and verbs can ask of a node. Cheap to clone; the channels behind it stay hidden.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::Value;
use tokio::sync::{broadcast, oneshot, watch};

use super::find;
use super::invocation::invoke::{self, InvokeReply, InvokeRequest};
use super::invocation::offers::{self, OffersAnswer, OffersRequest};
use super::schemas::{Known, schemas_of};
use super::shared::{Command, Network, Shared, lock};
use super::start::Disk;
use super::task;
use super::view::{Check, Counts, Event, Level, NodeView, State};
use crate::agents::definition::{self, Checked};
use crate::agents::{Agent, Health};
use crate::mesh::Peer;
use crate::model::{Adapter, AgentId, CapabilityName, Definition, ErrorCode, Failure, InvocationId, NodeId, nearest};
use crate::proto::directory::Entry;
use crate::proto::directory::rank::{Answer, Standing};
use crate::proto::invocation::breaker::Phase;
use crate::proto::invocation::call;
use crate::proto::peers::trust::Estimate;
use crate::wire::Document;
use crate::wire::directory::{AGENTS_PER_NODE_MAX, Query, SchemaHash};

/// An agent as clients see it.
#[derive(Debug, Clone)]
pub struct AgentView {
    /// What the directory knows.
    pub entry: Entry,
    /// Whether it is attached here.
    pub local: bool,
    /// Why it is down, if its node is this one and says so.
    pub reason: Option<String>,
}

/// What this node believes of an agent doing a capability.
#[derive(Debug, Clone)]
pub struct TrustView {
    /// The agent.
    pub agent: AgentId,
    /// The capability.
    pub capability: CapabilityName,
    /// What the directory knows of it, if it still does.
    pub entry: Option<Entry>,
    /// The evidence.
    pub estimate: Estimate,
    /// What comes of it in a ranking.
    pub standing: Standing,
    /// How its breaker stands.
    pub breaker: Phase,
}

/// A running node.
#[derive(Clone)]
pub struct Handle {
    pub(super) shared: Arc<Shared>,
    pub(super) disk: Arc<Disk>,
    pub(super) tasks: Arc<super::task::Access>,
    pub(super) started_at: crate::model::Timestamp,
}

impl std::fmt::Debug for Handle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Handle({})", self.shared.node())
    }
}

/// How long a program that was just attached is watched for a false start.
const FIRST_SIGN: Duration = Duration::from_millis(150);

pub(super) fn stopping() -> Failure {
    Failure::new(ErrorCode::Unavailable, "this node is stopping")
}

impl Handle {
    /// Who the node is.
    pub fn node_id(&self) -> NodeId {
        self.shared.node()
    }

    /// The limits it keeps to.
    pub fn config(&self) -> &crate::config::Config {
        &self.shared.config
    }

    /// The bearer token of its API.
    pub fn token(&self) -> &str {
        &self.disk.token
    }

    /// Whether a client of the API may ask for more work now.
    ///
    /// # Errors
    /// `RATE_LIMIT_EXCEEDED` with the time to come back.
    pub fn admit_client(&self) -> Result<(), Failure> {
        self.shared.rates.client(self.shared.mono())
    }

    /// Answers a directory query. With an `input`, only agents whose schema accepts it will do.
    ///
    /// # Errors
    /// `INVALID_REQUEST` if the query breaks a bound, `BUSY` or `UNAVAILABLE` if the node cannot look.
    pub async fn find(&self, query: Query, input: Option<&Value>) -> Result<Answer, Failure> {
        query.check().map_err(|error| Failure::new(ErrorCode::InvalidRequest, error.to_string()))?;
        let limit = usize::try_from(query.limit).unwrap_or(1);
        let mut answer = find::find(&self.shared, query, limit).await?;
        if let Some(input) = input {
            find::keep_compatible(&self.shared, &mut answer, input, limit).await;
        }
        self.shared.routing.withhold(&mut answer, limit, self.shared.mono());
        Ok(answer)
    }

    /// Asks the best candidates whether they could do something, when, and for how much (AMP-7). Their answers bind nobody.
    ///
    /// # Errors
    /// `INVALID_REQUEST` if the request breaks a bound, `BUSY` or `UNAVAILABLE` if the node cannot look.
    pub async fn offers(&self, request: OffersRequest) -> Result<OffersAnswer, Failure> {
        offers::offers(&self.shared, request).await
    }

    /// The known name or heading most like one that nobody offers.
    pub fn nearest_name(&self, asked: &CapabilityName) -> Option<String> {
        call::nearest_name(asked, &self.shared.routes.load()).map(str::to_owned)
    }

    /// Makes one call. Dropping the future cancels it.
    ///
    /// # Errors
    /// Whatever kept the call from a good end.
    pub fn invoke(&self, request: InvokeRequest) -> impl Future<Output = Result<Arc<InvokeReply>, Failure>> + Send + '_ {
        invoke::invoke(&self.shared, request)
    }

    /// Cancels a call that a client of this node waits for. False if there is none with this id.
    pub fn cancel(&self, id: InvocationId) -> bool {
        let cancel = lock(&self.shared.cancels_by_invocation).get(&id).cloned();
        cancel.inspect(|cancel| cancel.cancel()).is_some()
    }

    /// Attaches an agent and keeps its definition over restarts; `replace` an existing one of the same name.
    ///
    /// # Errors
    /// `INVALID_REQUEST` naming each faulty field, `CONFLICT` if the name is taken, `INSUFFICIENT_RESOURCES` if the disk or the number
    /// of agents forbids it. On an error nothing has changed.
    pub async fn attach(&self, definition: Definition, replace: bool) -> Result<AgentView, Failure> {
        let checked = definition::check(definition).map_err(|faults| definition::failure(&faults))?;
        let name = checked.definition.name.clone();
        let before = self.shared.registry.named(&name);
        if before.is_some() && !replace {
            let message = format!("an agent named `{name}` is attached already");
            return Err(Failure::new(ErrorCode::Conflict, message).with("suggestion", "replace it with PUT, or choose another name"));
        }
        let agents_max = usize::try_from(self.shared.config.limits.agents_max).unwrap_or(usize::MAX);
        let agents_max = agents_max.min(AGENTS_PER_NODE_MAX);
        if before.is_none() && self.shared.registry.len() >= agents_max {
            let failure = Failure::new(ErrorCode::InsufficientResources, format!("this node has its {agents_max} agents"));
            return Err(failure.with("limit", agents_max).retryable(false));
        }
        if self.shared.config.mesh.client_only {
            return Err(Failure::new(ErrorCode::Conflict, "a client-only node hosts no agents (mesh.client_only)"));
        }
        super::hosting::fits_record(&checked, &self.shared)?;
        let disk = Arc::clone(&self.disk);
        let kept = checked.definition.clone();
        let key = tokio::task::spawn_blocking(move || {
            let key = disk.agent_key(&kept.name)?;
            disk.dir.definitions().save(&kept)?;
            Ok::<_, crate::store::Error>(key)
        });
        let key = key.await.map_err(|_| stopping())?.map_err(disk_failure)?;
        let has_program = matches!(checked.definition.adapter, Adapter::Process { .. });
        let view = self.attach_checked(key, checked).await?;
        let agent = self.shared.registry.get(view.entry.record.agent).filter(|_| has_program);
        if let Some(mut health) = agent.map(|agent| agent.watch_health()) {
            // A program that cannot start shows it at once, and whoever attached it wants to know.
            let _ = tokio::time::timeout(FIRST_SIGN, health.wait_for(|health| *health != Health::Up)).await;
            return self.agent(&view.entry.record.agent.to_string()).await;
        }
        Ok(view)
    }

    /// Attaches an agent whose definition is already kept elsewhere.
    pub(super) async fn attach_checked(&self, key: crate::wire::AgentKey, checked: Checked) -> Result<AgentView, Failure> {
        // More than fit into a pulse could never be withdrawn.
        if self.shared.registry.get(key.id()).is_none() && self.shared.registry.len() >= AGENTS_PER_NODE_MAX {
            return Err(Failure::new(ErrorCode::InsufficientResources, format!("a node hosts at most {AGENTS_PER_NODE_MAX} agents")));
        }
        for offered in checked.offered.iter() {
            self.shared.schemas.insert(offered.definition.input_schema.clone());
            self.shared.schemas.insert(offered.definition.output_schema.clone());
        }
        let output_bytes_max = usize::try_from(self.shared.config.limits.payload_bytes_max).unwrap_or(usize::MAX);
        let agent = Agent::start(Arc::new(key), checked, self.disk.dir.path(), output_bytes_max, Arc::new(task::Delegate::of(self)));
        let id = agent.id();
        let is_new = self.shared.registry.get(id).is_none();
        self.shared.registry.insert(agent);
        if is_new {
            // It may be a reader, and its key opens what nobody here could open.
            self.shared.contexts.reopen();
        }
        self.agent_changed(id).await?;
        self.agent(&id.to_string()).await
    }

    async fn agent_changed(&self, agent: AgentId) -> Result<(), Failure> {
        let (reply, done) = oneshot::channel();
        self.shared.commands.send(Command::AgentChanged { agent, reply }).await.map_err(|_| stopping())?;
        done.await.map_err(|_| stopping())
    }

    /// Detaches an agent of this node and forgets its definition. Its key and identity stay.
    ///
    /// # Errors
    /// `AGENT_NOT_FOUND` if no agent here is called so.
    pub async fn detach(&self, which: &str) -> Result<AgentId, Failure> {
        let found = self.shared.registry.all().into_iter().find(|agent| agent.name() == which || agent.id().to_string() == which);
        let Some(agent) = found else {
            let names: Vec<String> = self.shared.registry.all().iter().map(|agent| agent.name().to_owned()).collect();
            let failure = Failure::new(ErrorCode::AgentNotFound, format!("no agent of this node is called `{which}`"));
            return Err(match nearest(which, names.iter().map(String::as_str)) {
                Some(near) => failure.with("suggestion", near),
                None => failure,
            });
        };
        let (disk, name) = (Arc::clone(&self.disk), agent.name().to_owned());
        let removed = tokio::task::spawn_blocking(move || disk.dir.definitions().remove(&name));
        removed.await.map_err(|_| stopping())?.map_err(disk_failure)?;
        self.shared.registry.remove(agent.id());
        self.agent_changed(agent.id()).await?;
        Ok(agent.id())
    }

    /// All agents that the directory holds, and those attached here.
    ///
    /// # Errors
    /// `UNAVAILABLE` while the node stops.
    pub async fn agents(&self) -> Result<Vec<AgentView>, Failure> {
        let (reply, answer) = oneshot::channel();
        self.shared.commands.send(Command::Entries { reply }).await.map_err(|_| stopping())?;
        let entries = answer.await.map_err(|_| stopping())?;
        Ok(entries.into_iter().map(|entry| self.view(entry)).collect())
    }

    fn view(&self, mut entry: Entry) -> AgentView {
        let agent = self.shared.registry.get(entry.record.agent);
        let local = entry.record.node == self.node_id();
        let health = agent.as_ref().filter(|_| local).map(|agent| agent.health());
        if let Some(agent) = agent.filter(|_| local) {
            (entry.in_flight, entry.queued) = agent.load();
        }
        let reason = match health {
            Some(Health::Down(reason)) => Some(reason),
            Some(Health::Up) | None => None,
        };
        AgentView { entry, local, reason }
    }

    /// The agent that `which` means: its id, its name, `name@prefix`, or an unambiguous beginning of its id.
    ///
    /// # Errors
    /// `AGENT_NOT_FOUND` if there is none or more than one.
    pub async fn agent(&self, which: &str) -> Result<AgentView, Failure> {
        let agents = self.agents().await?;
        let by_id = |view: &&AgentView| view.entry.record.agent.to_string() == which;
        if let Some(view) = agents.iter().find(by_id) {
            return Ok(view.clone());
        }
        let means = |view: &&AgentView| {
            let (id, name) = (view.entry.record.agent, view.entry.record.name.as_str());
            let prefixed =
                which.rsplit_once('@').is_some_and(|(n, prefix)| n == name && !prefix.is_empty() && id.prefix().starts_with(prefix));
            let begins = which.len() >= 4
                && (id.prefix().starts_with(which) || (which.starts_with("did:key:z6Mk") && id.to_string().starts_with(which)));
            name == which || prefixed || begins
        };
        let found: Vec<&AgentView> = agents.iter().filter(means).collect();
        // A node's own agents come first: their owner gave them their names.
        let here: Vec<&AgentView> = found.iter().copied().filter(|view| view.local).collect();
        let found = if here.len() == 1 { here } else { found };
        match found.as_slice() {
            [view] => Ok((*view).clone()),
            [] => {
                let failure =
                    Failure::new(ErrorCode::AgentNotFound, format!("no agent `{}` is known here", crate::model::printable(which, 80)));
                let near = nearest(which, agents.iter().map(|view| view.entry.record.name.as_str()));
                Err(failure.with("suggestion", near.unwrap_or("`meshwork agents --mesh` lists those that are known")))
            }
            several => {
                let names: Vec<String> = several.iter().take(8).map(|view| label(&view.entry)).collect();
                let failure = Failure::new(ErrorCode::AgentNotFound, format!("`{which}` could mean {}", names.join(", ")));
                Err(failure.with("candidates", names).with("suggestion", "name one of them as name@prefix"))
            }
        }
    }

    /// The schemas of an agent's capabilities, by hash; those that cannot be had are left out.
    pub async fn schemas(&self, entry: &Entry) -> Vec<(SchemaHash, Arc<Value>)> {
        let hashes: Vec<SchemaHash> =
            entry.record.capabilities.iter().flat_map(|offered| [offered.input_schema, offered.output_schema]).collect();
        let known: Vec<(SchemaHash, Known)> = schemas_of(&self.shared, entry.record.node, &hashes).await;
        known.into_iter().map(|(hash, known)| (hash, known.text)).collect()
    }

    /// Connected peers, each with the number of agents that are known there.
    ///
    /// # Errors
    /// `UNAVAILABLE` while the node stops.
    pub async fn peers(&self) -> Result<Vec<(Peer, usize)>, Failure> {
        let (reply, answer) = oneshot::channel();
        self.shared.commands.send(Command::Peers { reply }).await.map_err(|_| stopping())?;
        answer.await.map_err(|_| stopping())
    }

    /// What this node has learnt about agents.
    ///
    /// # Errors
    /// `UNAVAILABLE` while the node stops.
    pub async fn trust(&self) -> Result<Vec<TrustView>, Failure> {
        let agents = self.agents().await?;
        let entries_by_agent: BTreeMap<AgentId, &Entry> = agents.iter().map(|view| (view.entry.record.agent, &view.entry)).collect();
        let now = self.shared.mono();
        let tripped = self.shared.routing.tripped(now);
        let ledger = self.shared.ledger.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        let view = |(agent, capability, estimate): (AgentId, &CapabilityName, Estimate)| TrustView {
            agent,
            capability: capability.clone(),
            entry: entries_by_agent.get(&agent).map(|entry| (*entry).clone()),
            estimate,
            standing: Standing::of(&estimate, self.shared.rules.min_trust),
            breaker: tripped.get(&(agent, capability.clone())).copied().unwrap_or(Phase::Closed),
        };
        Ok(ledger.iter(now).map(view).collect())
    }

    /// The node at a glance.
    ///
    /// # Errors
    /// `UNAVAILABLE` while the node stops.
    pub async fn node(&self) -> Result<NodeView, Failure> {
        let network = self.network().await?;
        let state = *self.shared.state.borrow();
        Ok(NodeView {
            node_id: self.node_id(),
            name: self.shared.config.node.name.clone().unwrap_or_default(),
            version: env!("CARGO_PKG_VERSION"),
            protocol: "meshwork/1",
            started_at: self.started_at.to_string(),
            uptime_ms: u64::try_from(self.shared.mono().as_millis()).unwrap_or(u64::MAX),
            ready: matches!(state, State::Ready | State::Alone),
            state,
            counts: Counts {
                peers: network.peers,
                agents_local: self.shared.registry.len(),
                agents_mesh: network.records,
                calls_in_flight: self.shared.in_flight.load(Ordering::Relaxed),
                dht_peers: network.dht_peers,
            },
            listen: network.listen,
            advertised: network.advertised,
        })
    }

    async fn network(&self) -> Result<Network, Failure> {
        let (reply, answer) = oneshot::channel();
        self.shared.commands.send(Command::Network { reply }).await.map_err(|_| stopping())?;
        answer.await.map_err(|_| stopping())
    }

    /// How far the node has come, without asking the loop.
    pub fn state(&self) -> State {
        *self.shared.state.borrow()
    }

    /// Follows how far the node has come.
    pub fn watch_state(&self) -> watch::Receiver<State> {
        self.shared.state.subscribe()
    }

    /// Follows what happens on the node. A listener that lags behind misses the oldest events.
    pub fn events(&self) -> broadcast::Receiver<Event> {
        self.shared.events.subscribe()
    }

    /// Counters for Prometheus.
    pub fn metrics(&self) -> String {
        let count = |value: usize| i64::try_from(value).unwrap_or(i64::MAX);
        self.shared.metrics.agents.set(count(self.shared.registry.len()));
        self.shared.metrics.in_flight.set(count(self.shared.in_flight.load(Ordering::Relaxed)));
        self.shared.metrics.text()
    }

    /// What is wrong with the node, and how to mend it.
    ///
    /// # Errors
    /// `UNAVAILABLE` while the node stops.
    pub async fn doctor(&self) -> Result<Vec<Check>, Failure> {
        let network = self.network().await?;
        let state = self.state();
        let mut checks = Vec::new();
        let mut check = |name, level, message: String, remedy: Option<&str>| {
            checks.push(Check { name, level, message, remedy: remedy.map(str::to_owned) });
        };
        match state {
            State::Ready => check("mesh", Level::Ok, format!("connected to {} peers", network.peers), None),
            State::Alone => check("mesh", Level::Ok, "alone by choice: no bootstrap peer is configured".to_owned(), None),
            State::Joining => check(
                "mesh",
                Level::Fail,
                "no bootstrap peer has answered yet".to_owned(),
                Some("see that the addresses in mesh.join are right, that the peer runs, and that no firewall is in between"),
            ),
            State::Draining => check("mesh", Level::Warn, "the node is stopping".to_owned(), None),
        }
        if network.listen.is_empty() && !self.shared.config.mesh.client_only {
            check("listen", Level::Fail, "the node listens nowhere".to_owned(), Some("set mesh.listen, or mesh.client_only = true"));
        } else {
            check("listen", Level::Ok, format!("listening on {} addresses", network.listen.len()), None);
        }
        let down: Vec<String> = self
            .shared
            .registry
            .all()
            .iter()
            .filter_map(|agent| match agent.health() {
                Health::Up => None,
                Health::Down(reason) => Some(format!("{} ({reason})", agent.name())),
            })
            .collect();
        if down.is_empty() {
            check("agents", Level::Ok, format!("{} attached, all well", self.shared.registry.len()), None);
        } else {
            check("agents", Level::Fail, format!("down: {}", down.join(", ")), Some("see the agent's lines in the node's log"));
        }
        if network.dht_peers == 0 && network.peers > 0 {
            check(
                "dht",
                Level::Warn,
                "no peer could be dialled back, so the DHT is empty".to_owned(),
                Some("see that peers listen on addresses that this node can reach"),
            );
        } else {
            check("dht", Level::Ok, format!("{} peers in the routing table", network.dht_peers), None);
        }
        let [range, rate, ban] = network.denied;
        let level = if range + rate + ban == 0 { Level::Ok } else { Level::Warn };
        check("limits", level, format!("connections refused: {range} by range, {rate} by rate, {ban} by ban"), None);
        check("journal", Level::Ok, self.journal_read(), None);
        for note in lock(&self.shared.notes).iter() {
            check("start", Level::Warn, note.clone(), None);
        }
        Ok(checks)
    }

    /// Stops: refuses new calls, waits for running ones as long as the configuration allows, leaves the mesh, flushes.
    pub async fn stop(&self) {
        self.shared.state.send_replace(State::Draining);
        self.shared.publish(Event::Draining(self.shared.clock.now().wall));
        self.shared.drain.cancel();
        let patience = Duration::from_millis(self.shared.config.limits.drain_ms_max);
        let busy = || self.shared.in_flight.load(Ordering::Relaxed) + self.shared.serving.load(Ordering::Relaxed) > 0;
        let mut ticks = tokio::time::interval(Duration::from_millis(20));
        let drained = async {
            while busy() {
                ticks.tick().await;
            }
        };
        if tokio::time::timeout(patience, drained).await.is_err() {
            tracing::warn!("calls were still running when the time to drain was over");
        }
        self.shared.tasks_stop.cancel();
        // Closed once everything that was decided is on the disk.
        let _ = tokio::time::timeout(Duration::from_secs(5), self.shared.tasks.closed()).await;
        let (reply, left) = oneshot::channel();
        if self.shared.commands.send(Command::Leave { reply }).await.is_ok() {
            let _ = tokio::time::timeout(Duration::from_secs(2), left).await;
        }
        for agent in self.shared.registry.all() {
            agent.stop();
        }
        let disk = Arc::clone(&self.disk);
        let flushed = tokio::task::spawn_blocking(move || disk.index.as_ref().map(crate::store::Index::flush)).await;
        if let Ok(Some(Err(error))) = flushed {
            tracing::warn!(%error, "the index could not be flushed");
        }
    }
}

/// How people see an agent: `name@prefix`.
pub(crate) fn label(entry: &Entry) -> String {
    format!("{}@{}", entry.record.name, entry.record.agent.prefix())
}

/// The detail of a failure after which nobody knows what the disk holds.
pub(super) const UNFLUSHED: &str = "unflushed";

pub(super) fn disk_failure(error: crate::store::Error) -> Failure {
    let code = if error.is_full() { ErrorCode::InsufficientResources } else { ErrorCode::Internal };
    let failure = Failure::new(code, error.to_string());
    if matches!(error, crate::store::Error::Unflushed { .. }) { failure.with(UNFLUSHED, true) } else { failure }
}
