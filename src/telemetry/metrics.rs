//! Counters for Prometheus. Labels come from this program only, never from a peer (threat T29).

use std::sync::atomic::{AtomicI64, AtomicU64};

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, text::encode};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

/// Where a call was carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// It began here.
    Client,
    /// An agent here did it.
    Agent,
}

impl Side {
    fn name(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Agent => "agent",
        }
    }
}

const SUCCESS: &str = "success";

/// Where a call was carried out, and how it ended.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct CallEnd {
    /// `client` for calls that began here, `agent` for calls that agents here did.
    pub side: &'static str,
    /// `success`, or the error code.
    pub outcome: &'static str,
}

/// Why something that a peer sent was dropped.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct Dropped {
    /// What it was.
    pub kind: Kind,
    /// Why.
    pub reason: &'static str,
}

/// What a peer sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum Kind {
    /// A gossip message.
    Gossip,
    /// A record or pulse.
    Document,
    /// A control request or reply.
    Control,
    /// A lane.
    Lane,
}

/// All counters of a node.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    calls: Family<CallEnd, Counter<u64, AtomicU64>>,
    /// The good ends among `calls`, of each side: looking a label up costs more than counting.
    successes: [Counter<u64, AtomicU64>; 2],
    attempts: Counter<u64, AtomicU64>,
    latency: Histogram,
    dropped: Family<Dropped, Counter<u64, AtomicU64>>,
    penalties: Counter<u64, AtomicU64>,
    bans: Counter<u64, AtomicU64>,
    /// Connected peers.
    pub peers: Gauge<i64, AtomicI64>,
    /// Agents in the directory.
    pub records: Gauge<i64, AtomicI64>,
    /// Agents attached here.
    pub agents: Gauge<i64, AtomicI64>,
    /// Calls that clients of this node wait for.
    pub in_flight: Gauge<i64, AtomicI64>,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("meshwork");
        let metrics = Self {
            calls: Family::default(),
            successes: Default::default(),
            attempts: Counter::default(),
            latency: Histogram::new(exponential_buckets(0.000_1, 2.0, 20)),
            dropped: Family::default(),
            penalties: Counter::default(),
            bans: Counter::default(),
            peers: Gauge::default(),
            records: Gauge::default(),
            agents: Gauge::default(),
            in_flight: Gauge::default(),
            registry: Registry::default(),
        };
        registry.register("calls", "Calls by side and outcome", metrics.calls.clone());
        registry.register("attempts", "Agents asked on behalf of clients", metrics.attempts.clone());
        registry.register_with_unit(
            "call_latency",
            "Time from request to answer of calls that went well",
            Unit::Seconds,
            metrics.latency.clone(),
        );
        registry.register("dropped", "What peers sent and was dropped", metrics.dropped.clone());
        registry.register("penalties", "Faults charged to peers", metrics.penalties.clone());
        registry.register("bans", "Peers banned", metrics.bans.clone());
        registry.register("peers", "Connected peers", metrics.peers.clone());
        registry.register("records", "Agents in the directory", metrics.records.clone());
        registry.register("agents", "Agents attached here", metrics.agents.clone());
        registry.register("calls_in_flight", "Calls that clients of this node wait for", metrics.in_flight.clone());
        let success = |side: Side| metrics.calls.get_or_create_owned(&CallEnd { side: side.name(), outcome: SUCCESS });
        let successes = [success(Side::Client), success(Side::Agent)];
        Self { registry, successes, ..metrics }
    }
}

impl Metrics {
    /// A call ended well.
    pub fn call_succeeded(&self, side: Side) {
        let [client, agent] = &self.successes;
        match side {
            Side::Client => client.inc(),
            Side::Agent => agent.inc(),
        };
    }

    /// A call ended with this error code.
    pub fn call_failed(&self, side: Side, code: &'static str) {
        self.calls.get_or_create(&CallEnd { side: side.name(), outcome: code }).inc();
    }

    /// An agent was asked.
    pub fn attempt(&self) {
        self.attempts.inc();
    }

    /// A call went well after so many seconds.
    pub fn latency(&self, seconds: f64) {
        self.latency.observe(seconds);
    }

    /// Something was dropped.
    pub fn dropped(&self, kind: Kind, reason: &'static str) {
        self.dropped.get_or_create(&Dropped { kind, reason }).inc();
    }

    /// A peer was charged a fault.
    pub fn penalty(&self, banned: bool) {
        self.penalties.inc();
        if banned {
            self.bans.inc();
        }
    }

    /// The text that Prometheus reads.
    pub fn text(&self) -> String {
        let mut text = String::new();
        match encode(&mut text, &self.registry) {
            Ok(()) => text,
            Err(std::fmt::Error) => String::new(),
        }
    }
}
