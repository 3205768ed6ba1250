//! What the loop and the invocation plane share.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, broadcast, mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::clock::Clock;
use super::context;
use super::invocation::blobs::Blobs;
use super::invocation::invoke::InvokeReply;
use super::invocation::keyed::Calls;
use super::invocation::lanes::Lanes;
use super::invocation::rates::Rates;
use super::invocation::routing::Routing;
use super::invocation::running::Running;
use super::receipts;
use super::schemas::Schemas;
use super::task;
use super::view::{Event, State};
use crate::agents::Registry;
use crate::config::Config;
use crate::mesh::foreground::Foreground;
use crate::mesh::lanes::Lane;
use crate::mesh::{Peer, ReplyTo};
use crate::model::{AgentId, CapabilityName, Failure, InvocationId, NodeId, Priority};
use crate::proto::directory::rank::{Answer, Rules};
use crate::proto::directory::{Entry, Routes};
use crate::proto::invocation::offer::Timings;
use crate::proto::peers::trust::{Ledger, Outcome};
use crate::telemetry::Metrics;
use crate::wire::NodeKey;
use crate::wire::directory::{Query, Reply, SchemaHash};
use crate::wire::invocation::Success;
use crate::wire::offer::{Inquiry, Offers};

/// Events that a slow listener may lag behind before it misses some.
pub(super) const EVENTS_MAX: usize = 1_024;
/// Commands that may wait for the loop.
pub(super) const COMMANDS_MAX: usize = 4_096;
/// Outcomes that may wait for the loop; beyond it they are dropped, since they are evidence and not accounts.
pub(super) const OUTCOMES_MAX: usize = 65_536;

/// A question or order to the loop.
pub(super) enum Command {
    /// Answer a query, looking further than the directory if it does not hold `enough` candidates.
    Find { query: Query, enough: usize, reply: oneshot::Sender<Answer> },
    /// Answer a query by words alone, beside the loop and within the room that it was given.
    Scan { query: Query, room: OwnedSemaphorePermit, reply: oneshot::Sender<Answer> },
    /// A lane to this node.
    OpenLane { node: NodeId, priority: Priority, reply: oneshot::Sender<Result<Lane, Failure>> },
    /// A substream for a blob to this node.
    OpenBlob { node: NodeId, reply: oneshot::Sender<libp2p::Stream> },
    /// A peer did what an honest one does not.
    Penalise { node: NodeId, what: &'static str },
    /// Schemas that this node's records name.
    Schemas { node: NodeId, hashes: Vec<SchemaHash>, reply: oneshot::Sender<Result<Vec<String>, Failure>> },
    /// What a node answers about shared contexts.
    Context { node: NodeId, question: Vec<u8>, reply: oneshot::Sender<Result<Vec<u8>, Failure>> },
    /// The answer to a request that was not answered in the loop.
    Answer { to: ReplyTo, reply: Box<Reply> },
    /// The agents that live on a node, by their records.
    AgentsOf { node: NodeId, reply: oneshot::Sender<Vec<AgentId>> },
    /// The nodes on which these agents live, by their records.
    HostsOf { agents: Vec<AgentId>, reply: oneshot::Sender<Vec<NodeId>> },
    /// The nodes that are connected and speak this protocol.
    Connected { reply: oneshot::Sender<Vec<NodeId>> },
    /// What agents of this node could do.
    Offers { node: NodeId, inquiry: Box<Inquiry>, reply: oneshot::Sender<Result<Offers, Failure>> },
    /// Everything in the directory.
    Entries { reply: oneshot::Sender<Vec<Entry>> },
    /// Who is connected.
    Peers { reply: oneshot::Sender<Vec<(Peer, usize)>> },
    /// Where the node listens and what the swarm counts.
    Network { reply: oneshot::Sender<Network> },
    /// An agent was attached or replaced, or is gone.
    AgentChanged { agent: AgentId, reply: oneshot::Sender<()> },
    /// Something about receipts or pins.
    Receipts(receipts::Order),
    /// Stop: leave the mesh.
    Leave { reply: oneshot::Sender<()> },
}

/// What the swarm knows of itself.
#[derive(Debug, Clone, Default)]
pub(super) struct Network {
    pub(super) listen: Vec<String>,
    pub(super) advertised: Vec<String>,
    pub(super) peers: usize,
    pub(super) records: usize,
    pub(super) dht_peers: usize,
    pub(super) denied: [u64; 3],
}

/// How one attempt ended.
pub(super) struct Observed {
    pub(super) agent: AgentId,
    pub(super) capability: CapabilityName,
    pub(super) outcome: Outcome,
    /// Its node said that it is down, or does not know it.
    pub(super) down: bool,
}

/// State that more than one task reads. Locks are held for moments and never across a wait.
pub(super) struct Shared {
    pub(super) config: Config,
    pub(super) key: NodeKey,
    pub(super) clock: Clock,
    pub(super) registry: Registry,
    pub(super) routes: ArcSwap<Routes>,
    pub(super) rules: Rules,
    pub(super) routing: Routing,
    pub(super) ledger: RwLock<Ledger>,
    pub(super) timings: Mutex<Timings>,
    pub(super) quick_runs: AtomicUsize,
    pub(super) rates: Rates,
    pub(super) running: Running,
    pub(super) lanes: Lanes,
    pub(super) blobs: Blobs,
    /// Calls that large bodies give way to.
    pub(super) foreground: Arc<Foreground>,
    pub(super) schemas: Schemas,
    pub(super) calls_by_key: Arc<Calls<Arc<InvokeReply>>>,
    pub(super) results_by_key: Arc<Calls<Success>>,
    pub(super) cancels_by_invocation: Mutex<BTreeMap<InvocationId, CancellationToken>>,
    pub(super) in_flight: AtomicUsize,
    pub(super) serving: AtomicUsize,
    /// Room for queries that look at every record.
    pub(super) scans: Arc<Semaphore>,
    pub(super) metrics: Metrics,
    pub(super) commands: mpsc::Sender<Command>,
    pub(super) outcomes: mpsc::Sender<Observed>,
    pub(super) events: broadcast::Sender<Event>,
    pub(super) state: watch::Sender<State>,
    pub(super) drain: CancellationToken,
    /// To the loop that owns tasks, and the word that it ends.
    pub(super) tasks: mpsc::Sender<task::Command>,
    pub(super) tasks_stop: CancellationToken,
    pub(super) notes: Mutex<Vec<String>>,
    pub(super) contexts: context::Book,
    /// Room for questions of peers about contexts.
    pub(super) context_questions: Arc<context::Questions>,
}

impl Shared {
    pub(super) fn node(&self) -> NodeId {
        self.key.id()
    }

    pub(super) fn mono(&self) -> Duration {
        self.clock.mono()
    }

    pub(super) fn publish(&self, event: Event) {
        // Without listeners there is nobody to tell.
        let _ = self.events.send(event);
    }

    pub(super) fn observe(&self, agent: AgentId, capability: &CapabilityName, outcome: Outcome, down: bool) {
        let observed = Observed { agent, capability: capability.clone(), outcome, down };
        let _ = self.outcomes.try_send(observed);
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Counts something while it lives.
pub(super) struct Counted<'a>(&'a AtomicUsize);

impl<'a> Counted<'a> {
    pub(super) fn new(counter: &'a AtomicUsize) -> Self {
        counter.fetch_add(1, Ordering::Relaxed);
        Self(counter)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
