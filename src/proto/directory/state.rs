//! The directory's tables and the events that change them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use super::digest::{Digest, bucket};
use super::rank::{self, Answer, Asked, Rules};
use super::routes::{Routes, consider};
use crate::model::{AgentId, CapabilityName, NodeId, Now, Timestamp};
use crate::proto::peers::trust::Ledger;
use crate::wire::Verified;
use crate::wire::directory::{AGENTS_PER_NODE_MAX, AgentPulse, CLOCK_SKEW_MS_MAX, DIFFERENCES_MAX, Pulse, Query, Record};

/// Bounds and pauses of the directory.
#[derive(Debug, Clone)]
pub struct Config {
    /// This node.
    pub node: NodeId,
    /// Records kept; beyond it new agents are ignored, known ones still renewed.
    pub records_max: usize,
    /// Pause between two accepted records of one agent, beyond the burst (threat T6).
    pub record_pause: Duration,
    /// Records of one agent that may come at once.
    pub record_burst: u32,
    /// Pause between two accepted pulses of one node, beyond the burst; an honest node pauses as long itself.
    pub pulse_pause: Duration,
    /// Pulses of one node that may come at once.
    pub pulse_burst: u32,
    /// How long an agent that is down, or a silent node, stays out of routing unless it shows itself sooner.
    pub suspect: Duration,
    /// First pause before a node that could not be reached is dialled again; doubles up to a minute.
    pub redial_pause: Duration,
    /// What candidates are ranked by.
    pub rules: Rules,
}

impl Config {
    /// The defaults of design.md for `node`.
    pub fn new(node: NodeId) -> Self {
        Self {
            node,
            records_max: 100_000,
            record_pause: Duration::from_secs(30),
            record_burst: 4,
            pulse_pause: Duration::from_millis(100),
            pulse_burst: 50,
            suspect: Duration::from_secs(10),
            redial_pause: Duration::from_secs(1),
            rules: Rules::default(),
        }
    }
}

/// What is to be done with a message that carried a record or pulse.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// New and good: keep and pass on.
    Accept,
    /// Known, older, or more than fits: drop, blame nobody.
    Ignore(&'static str),
    /// Wrong in a way that its sender must have seen: drop and blame.
    Reject(&'static str),
}

/// Whether an agent takes calls, as far as its node's word and this node's own experience go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Availability {
    /// It does.
    Available,
    /// Its node says that it does not.
    Unavailable,
    /// It was down, or its node silent, moments ago.
    Suspect,
}

/// Whether an agent's node can be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// It is this node.
    Here,
    /// A connection stands.
    Connected,
    /// Reached before and let go in good order, to keep within the number of connections.
    Proven,
    /// Never reached; being dialled, or waiting to be.
    Unproven,
    /// The connection broke or dialling failed.
    Lost,
}

/// What is known of one agent.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Its newest record.
    pub record: Arc<Verified<Record>>,
    /// Whether it takes calls.
    pub availability: Availability,
    /// Whether its node can be reached.
    pub reach: Reach,
    /// Calls that it works on, by its node's last pulse.
    pub in_flight: u32,
    /// Calls that wait for it, by its node's last pulse.
    pub queued: u32,
    /// How many of those were not this node's, as far as it can tell.
    pub others: u32,
    /// What this node has under way there, counted by the invocation plane.
    pub traffic: Arc<Traffic>,
}

impl Entry {
    /// Calls that it works on or that wait for it: exact for this node's own, by the last pulse for those of others.
    pub fn load(&self) -> u32 {
        self.others.saturating_add(self.traffic.in_flight.load(Ordering::Relaxed))
    }
}

/// What this node has under way at one agent. Shared by all that know the agent, so that a count is exact although entries are copied.
#[derive(Debug, Default)]
pub struct Traffic {
    /// Calls under way.
    pub in_flight: AtomicU32,
    /// When it was last chosen, as a number that grows with each choice.
    pub turn: AtomicU64,
}

#[derive(Debug)]
struct Known {
    record: Arc<Verified<Record>>,
    announced_away: bool,
    in_flight: u32,
    queued: u32,
    others: u32,
    traffic: Arc<Traffic>,
    /// What routes and queries share; `None` once something changed.
    entry: Option<Arc<Entry>>,
    suspect_until: Option<Duration>,
    /// When the record budget of this agent will be full again (GCRA).
    budget_at: Duration,
}

#[derive(Debug)]
struct Host {
    reach: Reach,
    suspect_until: Option<Duration>,
    pulse: Option<Arc<Verified<Pulse>>>,
    /// When the pulse budget of this node will be full again (GCRA).
    pulse_budget_at: Duration,
    dial_at: Option<Duration>,
    dial_failures: u32,
}

/// Signed records, and the latest pulses of their nodes.
pub type Documents = (Vec<Arc<Verified<Record>>>, Vec<Arc<Verified<Pulse>>>);

/// What the shell must do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Dial this node, which hosts agents and is not connected.
    Dial {
        /// The node.
        node: NodeId,
        /// Where its records say that it listens.
        addresses: Vec<String>,
    },
    /// Tell whoever listens.
    Event(Event),
}

/// Something changed in the directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// An agent can be called that could not be before.
    AgentUp(AgentId, String),
    /// An agent cannot be called any more.
    AgentDown(AgentId, String),
}

/// The directory.
#[derive(Debug)]
pub struct State {
    config: Config,
    known_by_agent: BTreeMap<AgentId, Known>,
    agents_by_name: BTreeMap<CapabilityName, BTreeSet<AgentId>>,
    hosts_by_node: BTreeMap<NodeId, Host>,
    agents_by_node: BTreeMap<NodeId, BTreeSet<AgentId>>,
    agents_by_expiry: BTreeSet<(Timestamp, AgentId)>,
    digest: Digest,
    routes: Routes,
    stale_names: BTreeSet<CapabilityName>,
    /// When the first suspicion or pause is over; until then a tick need not look at every entry.
    wake_at: Option<Duration>,
    outputs: Vec<Output>,
}

impl State {
    /// An empty directory.
    pub fn new(config: Config) -> Self {
        let here =
            Host { reach: Reach::Here, suspect_until: None, pulse: None, pulse_budget_at: Duration::ZERO, dial_at: None, dial_failures: 0 };
        Self {
            hosts_by_node: BTreeMap::from([(config.node, here)]),
            config,
            known_by_agent: BTreeMap::new(),
            agents_by_name: BTreeMap::new(),
            agents_by_node: BTreeMap::new(),
            agents_by_expiry: BTreeSet::new(),
            digest: Digest::default(),
            routes: Routes::default(),
            stale_names: BTreeSet::new(),
            wake_at: None,
            outputs: Vec::new(),
        }
    }

    /// What is to be done since the last call.
    pub fn drain(&mut self) -> Vec<Output> {
        std::mem::take(&mut self.outputs)
    }

    /// Whether a record is worth the cost of checking its signatures. Its sender is blamed only for what it can be blamed for.
    pub fn screen(&self, record: &Record, now: Now) -> Verdict {
        if record.node == self.config.node {
            return Verdict::Ignore("own record");
        }
        if let Some(verdict) = timely(record.issued_at, record.expires_at, now) {
            return verdict;
        }
        match self.known_by_agent.get(&record.agent) {
            Some(known) if record.sequence <= known.record.sequence => return Verdict::Ignore("known sequence"),
            Some(known) => {
                let burst = self.config.record_pause.saturating_mul(self.config.record_burst.saturating_sub(1));
                if known.budget_at > now.mono.saturating_add(burst) {
                    return Verdict::Ignore("too many records of one agent");
                }
            }
            None if self.known_by_agent.len() >= self.config.records_max => return Verdict::Ignore("directory full"),
            None => {}
        }
        let hosted = self.agents_by_node.get(&record.node);
        if hosted.is_some_and(|agents| agents.len() >= AGENTS_PER_NODE_MAX && !agents.contains(&record.agent)) {
            // Whoever passed it on may know fewer of that node's agents, and is not to blame.
            return Verdict::Ignore("too many agents on one node");
        }
        Verdict::Accept
    }

    /// Takes in a record that somebody sent.
    pub fn on_record(&mut self, record: Verified<Record>, now: Now) -> Verdict {
        let verdict = self.screen(&record, now);
        if verdict == Verdict::Accept {
            self.insert(record, now);
        }
        verdict
    }

    /// Takes in a record of an agent on this node.
    pub fn handle_own_record(&mut self, record: Verified<Record>, now: Now) {
        if record.node == self.config.node {
            self.insert(record, now);
        }
    }

    /// Forgets an agent of this node.
    pub fn handle_own_removed(&mut self, agent: AgentId) {
        if self.known_by_agent.get(&agent).is_some_and(|known| known.record.node == self.config.node) {
            self.forget(agent);
        }
    }

    /// Whether a pulse is worth the cost of checking its signature.
    pub fn screen_pulse(&self, pulse: &Pulse, now: Now) -> Verdict {
        if pulse.node == self.config.node {
            return Verdict::Ignore("own pulse");
        }
        if let Some(verdict) = timely(pulse.issued_at, pulse.expires_at, now) {
            return verdict;
        }
        let Some(host) = self.hosts_by_node.get(&pulse.node) else { return Verdict::Ignore("no agent of this node is known") };
        let known = host.pulse.as_ref().map_or(0, |known| known.sequence);
        if pulse.sequence <= known {
            return Verdict::Ignore("known sequence");
        }
        let burst = self.config.pulse_pause.saturating_mul(self.config.pulse_burst.saturating_sub(1));
        if host.pulse_budget_at > now.mono.saturating_add(burst) {
            return Verdict::Ignore("too many pulses of one node");
        }
        Verdict::Accept
    }

    /// Takes in a pulse that somebody sent.
    pub fn on_pulse(&mut self, pulse: Verified<Pulse>, now: Now) -> Verdict {
        let verdict = self.screen_pulse(&pulse, now);
        if verdict == Verdict::Accept {
            if let Some(host) = self.hosts_by_node.get_mut(&pulse.node) {
                host.pulse_budget_at = host.pulse_budget_at.max(now.mono).saturating_add(self.config.pulse_pause);
            }
            self.apply_pulse(pulse);
        }
        verdict
    }

    /// Takes in this node's own pulse, so that it is sent to whoever fetches records.
    pub fn handle_own_pulse(&mut self, pulse: Verified<Pulse>) {
        if pulse.node == self.config.node {
            self.apply_pulse(pulse);
        }
    }

    fn apply_pulse(&mut self, pulse: Verified<Pulse>) {
        let said: BTreeMap<AgentId, &AgentPulse> = pulse.agents.iter().map(|agent| (agent.agent, agent)).collect();
        for agent in self.agents_by_node.get(&pulse.node).cloned().unwrap_or_default() {
            let was_up = self.is_up(agent);
            let Some(known) = self.known_by_agent.get_mut(&agent) else { continue };
            known.announced_away = withdraws(&pulse, &known.record);
            if let Some(said) = said.get(&agent) {
                known.in_flight = said.in_flight;
                known.queued = said.queued;
                let own = known.traffic.in_flight.load(Ordering::Relaxed);
                known.others = said.in_flight.saturating_add(said.queued).saturating_sub(own);
                if said.available && !pulse.leaving {
                    known.suspect_until = None;
                }
            }
            self.changed(agent, was_up);
        }
        if let Some(host) = self.hosts_by_node.get_mut(&pulse.node) {
            host.pulse = Some(Arc::new(pulse));
        }
    }

    /// A connection to `node` stands.
    pub fn on_connected(&mut self, node: NodeId) {
        self.set_reach(node, Reach::Connected);
        for agent in self.agents_by_node.get(&node).cloned().unwrap_or_default() {
            self.clear_suspicion(agent);
        }
    }

    /// The last connection to `node` is gone; `in_order` if this node closed it to make room.
    pub fn on_disconnected(&mut self, node: NodeId, in_order: bool, now: Now) {
        self.set_reach(node, if in_order { Reach::Proven } else { Reach::Lost });
        let at = now.mono.saturating_add(self.config.redial_pause / 4);
        if let Some(host) = self.hosts_by_node.get_mut(&node).filter(|_| !in_order) {
            host.dial_failures = 0;
            host.dial_at = Some(at);
            self.wake(at);
        }
    }

    /// Dialling `node` came to nothing.
    pub fn on_dial_failed(&mut self, node: NodeId, now: Now) {
        if self.hosts_by_node.get(&node).is_some_and(|host| host.reach == Reach::Connected) {
            return;
        }
        self.set_reach(node, Reach::Lost);
        let first = self.config.redial_pause;
        if let Some(host) = self.hosts_by_node.get_mut(&node) {
            let pause = first.saturating_mul(2_u32.saturating_pow(host.dial_failures.min(6))).min(Duration::from_secs(60));
            let at = now.mono.saturating_add(pause);
            host.dial_failures = host.dial_failures.saturating_add(1);
            host.dial_at = Some(at);
            self.wake(at);
        }
    }

    /// The lane to `node` fell silent while calls were outstanding.
    pub fn on_node_silent(&mut self, node: NodeId, now: Now) {
        let until = now.mono.saturating_add(self.config.suspect);
        self.wake(until);
        let agents = self.agents_by_node.get(&node).cloned().unwrap_or_default();
        let up: Vec<(AgentId, bool)> = agents.into_iter().map(|agent| (agent, self.is_up(agent))).collect();
        if let Some(host) = self.hosts_by_node.get_mut(&node) {
            host.suspect_until = Some(until);
        }
        for (agent, was_up) in up {
            self.changed(agent, was_up);
        }
    }

    /// A call to `agent` ended well, so it is up. Failures are the breaker's business (`proto::invocation::breaker`).
    pub fn on_success(&mut self, agent: AgentId) {
        self.clear_suspicion(agent);
    }

    /// `agent`'s node refused a call because the agent is down, or does not know it: believed at once.
    pub fn on_agent_down(&mut self, agent: AgentId, now: Now) {
        let was_up = self.is_up(agent);
        let until = now.mono.saturating_add(self.config.suspect);
        if let Some(known) = self.known_by_agent.get_mut(&agent) {
            known.suspect_until = Some(until);
            self.wake(until);
            self.changed(agent, was_up);
        }
    }

    /// Time has passed: expired records go, suspicions end, lost nodes are dialled again.
    pub fn handle_tick(&mut self, now: Now) {
        while let Some(&(expires_at, agent)) = self.agents_by_expiry.first() {
            if expires_at > now.wall {
                break;
            }
            self.forget(agent);
        }
        if self.wake_at.is_some_and(|at| at <= now.mono) {
            self.end_pauses(now);
        }
    }

    fn end_pauses(&mut self, now: Now) {
        let over = |until: Option<Duration>| until.is_some_and(|until| until <= now.mono);
        let agents: Vec<AgentId> = self.known_by_agent.iter().filter(|(_, known)| over(known.suspect_until)).map(|(id, _)| *id).collect();
        for agent in agents {
            self.clear_suspicion(agent);
        }
        let nodes: Vec<NodeId> = self.hosts_by_node.iter().filter(|(_, host)| over(host.suspect_until)).map(|(id, _)| *id).collect();
        for node in nodes {
            let before = self.up_on(node);
            if let Some(host) = self.hosts_by_node.get_mut(&node) {
                host.suspect_until = None;
            }
            for (agent, was_up) in before {
                self.changed(agent, was_up);
            }
        }
        let due: Vec<NodeId> = self.hosts_by_node.iter().filter(|(_, host)| over(host.dial_at)).map(|(node, _)| *node).collect();
        for node in due {
            self.dial(node);
        }
        let agents = self.known_by_agent.values().filter_map(|known| known.suspect_until);
        let hosts = self.hosts_by_node.values().flat_map(|host| [host.suspect_until, host.dial_at]).flatten();
        self.wake_at = agents.chain(hosts).min();
    }

    fn wake(&mut self, at: Duration) {
        self.wake_at = Some(self.wake_at.map_or(at, |earlier| earlier.min(at)));
    }

    /// Answers `query` from what is known. One that names no capability looks at everybody, which is better done by a [`super::Scan`].
    pub fn query(&self, query: &Query, ledger: &Ledger, now: Duration) -> Answer {
        let (mut answer, asked) = (Answer::default(), Asked::new(query));
        let named: BTreeSet<AgentId> = if query.capabilities.is_empty() {
            self.known_by_agent.keys().copied().collect()
        } else {
            query.capabilities.iter().filter_map(|name| self.agents_by_name.get(name)).flatten().copied().collect()
        };
        for entry in named.into_iter().filter_map(|agent| self.shared_entry(agent)) {
            consider(&entry, &asked, ledger, now, &self.config.rules, &mut answer);
        }
        rank::order(&mut answer.candidates, &self.config.rules.weights, query.constraints.max_cost);
        answer
    }

    /// Answers `query` from the agents of one node alone: what a peer asks costs no more than that.
    pub fn query_hosted(&self, query: &Query, node: NodeId, ledger: &Ledger, now: Duration) -> Answer {
        let (mut answer, asked) = (Answer::default(), Asked::new(query));
        let hosted = self.agents_by_node.get(&node).into_iter().flatten();
        for entry in hosted.filter_map(|agent| self.shared_entry(*agent)) {
            consider(&entry, &asked, ledger, now, &self.config.rules, &mut answer);
        }
        rank::order(&mut answer.candidates, &self.config.rules.weights, query.constraints.max_cost);
        answer
    }

    /// Nodes that host something `query` asks for and have not been reached yet, though nothing speaks against them.
    pub fn unproven_hosts(&self, query: &Query) -> BTreeSet<NodeId> {
        let agents = query.capabilities.iter().filter_map(|name| self.agents_by_name.get(name)).flatten();
        let hosts = agents.filter_map(|agent| self.known_by_agent.get(agent)).map(|known| known.record.node);
        hosts.filter(|node| self.hosts_by_node.get(node).is_some_and(|host| host.reach == Reach::Unproven)).collect()
    }

    /// Nodes with agents that are known but not reached yet, though nothing speaks against them.
    pub fn unproven_len(&self) -> usize {
        self.hosts_by_node.values().filter(|host| host.reach == Reach::Unproven).count()
    }

    /// What is known of one agent.
    pub fn entry(&self, agent: AgentId) -> Option<Entry> {
        let known = self.known_by_agent.get(&agent)?;
        let host = self.hosts_by_node.get(&known.record.node)?;
        let availability = if known.announced_away {
            Availability::Unavailable
        } else if known.suspect_until.is_some() || host.suspect_until.is_some() {
            Availability::Suspect
        } else {
            Availability::Available
        };
        Some(Entry {
            record: Arc::clone(&known.record),
            availability,
            reach: host.reach,
            in_flight: known.in_flight,
            queued: known.queued,
            others: known.others,
            traffic: Arc::clone(&known.traffic),
        })
    }

    fn shared_entry(&self, agent: AgentId) -> Option<Arc<Entry>> {
        let kept = self.known_by_agent.get(&agent)?.entry.clone();
        kept.or_else(|| self.entry(agent).map(Arc::new))
    }

    /// Everything that is known, by agent id.
    pub fn entries(&self) -> impl Iterator<Item = Entry> + '_ {
        self.known_by_agent.keys().filter_map(|agent| self.entry(*agent))
    }

    /// How many agents a query by name has to rank: few for most, everybody under a heading.
    pub fn ranked_len(&self, query: &Query) -> usize {
        query.capabilities.iter().filter_map(|name| self.agents_by_name.get(name)).map(BTreeSet::len).sum()
    }

    /// How many agents are known.
    pub fn len(&self) -> usize {
        self.known_by_agent.len()
    }

    /// Whether nothing is known.
    pub fn is_empty(&self) -> bool {
        self.known_by_agent.is_empty()
    }

    /// How many agents a node hosts, as far as is known.
    pub fn hosted_len(&self, node: NodeId) -> usize {
        self.agents_by_node.get(&node).map_or(0, BTreeSet::len)
    }

    /// The index for the invocation plane, if it changed since the last call.
    pub fn changed_routes(&mut self) -> Option<Routes> {
        if self.stale_names.is_empty() {
            return None;
        }
        for name in std::mem::take(&mut self.stale_names) {
            let agents: Vec<AgentId> = self.agents_by_name.get(&name).into_iter().flatten().copied().collect();
            let mut entries = Vec::with_capacity(agents.len());
            for agent in agents {
                // Only what changed is made anew: the news of one agent costs little even where a thousand offer the same.
                let Some(entry) = self.shared_entry(agent) else { continue };
                if let Some(known) = self.known_by_agent.get_mut(&agent) {
                    known.entry = Some(Arc::clone(&entry));
                }
                entries.push(entry);
            }
            self.routes.set(name, entries);
        }
        Some(self.routes.clone())
    }

    /// The hashes by which a peer sees whether its directory differs.
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// Agents and sequences in the buckets where `theirs` differs from this directory, and whether there are more than fit.
    pub fn differences(&self, theirs: &Digest) -> (Vec<(AgentId, u64)>, bool) {
        let mut held = Vec::new();
        for bucket in self.digest.differences(theirs) {
            for (agent, known) in self.bucket_entries(bucket) {
                if held.len() >= DIFFERENCES_MAX {
                    return (held, true);
                }
                held.push((agent, known.record.sequence));
            }
        }
        (held, false)
    }

    fn bucket_entries(&self, number: usize) -> impl Iterator<Item = (AgentId, &Known)> {
        let first = u8::try_from(number).unwrap_or(u8::MAX);
        let mut low = [0; 32];
        let mut high = [0xff; 32];
        low[0] = first;
        high[0] = first;
        let range = AgentId::from_public_key(low)..=AgentId::from_public_key(high);
        self.known_by_agent.range(range).map(|(agent, known)| (*agent, known)).filter(move |(agent, _)| bucket(*agent) == number)
    }

    /// Of what a peer holds, the agents whose records are missing or older here.
    pub fn missing(&self, held: &[(AgentId, u64)]) -> Vec<AgentId> {
        let newer =
            |(agent, sequence): &&(AgentId, u64)| self.known_by_agent.get(agent).is_none_or(|known| known.record.sequence < *sequence);
        held.iter().filter(newer).map(|(agent, _)| *agent).collect()
    }

    /// The records of `agents` and the latest pulses of their nodes, as they were signed.
    pub fn documents(&self, agents: &[AgentId]) -> Documents {
        let records: Vec<_> = agents.iter().filter_map(|agent| Some(Arc::clone(&self.known_by_agent.get(agent)?.record))).collect();
        let nodes: BTreeSet<NodeId> = records.iter().map(|record| record.node).collect();
        let pulses = nodes.iter().filter_map(|node| self.hosts_by_node.get(node)?.pulse.clone()).collect();
        (records, pulses)
    }

    fn insert(&mut self, record: Verified<Record>, now: Now) {
        let (agent, node) = (record.agent, record.node);
        let was_up = self.is_up(agent);
        let before = self.known_by_agent.remove(&agent);
        if let Some(before) = &before {
            self.unlink(&before.record);
        }
        let pulse = self.hosts_by_node.get(&node).and_then(|host| host.pulse.as_ref());
        let away = pulse.is_some_and(|pulse| withdraws(pulse, &record));
        let budget_at = before.as_ref().map_or(now.mono, |before| before.budget_at.max(now.mono));
        let known = Known {
            announced_away: away,
            in_flight: before.as_ref().map_or(0, |before| before.in_flight),
            queued: before.as_ref().map_or(0, |before| before.queued),
            others: before.as_ref().map_or(0, |before| before.others),
            traffic: before.as_ref().map(|before| Arc::clone(&before.traffic)).unwrap_or_default(),
            entry: None,
            suspect_until: None,
            budget_at: budget_at.saturating_add(self.config.record_pause),
            record: Arc::new(record),
        };
        self.link(&known.record);
        self.known_by_agent.insert(agent, known);
        if let Some(before) = before.filter(|before| before.record.node != node) {
            self.forget_idle(before.record.node);
        }
        // A lost host that speaks again may be at a new address, so it is dialled before its pause is over.
        let wanted = match self.hosts_by_node.get(&node) {
            Some(host) => host.reach == Reach::Lost && host.dial_at.is_some(),
            None => true,
        };
        self.hosts_by_node.entry(node).or_insert(Host {
            reach: Reach::Unproven,
            suspect_until: None,
            pulse: None,
            pulse_budget_at: Duration::ZERO,
            dial_at: None,
            dial_failures: 0,
        });
        if wanted {
            self.dial(node);
        }
        self.changed(agent, was_up);
    }

    fn link(&mut self, record: &Arc<Verified<Record>>) {
        for name in names(record) {
            self.agents_by_name.entry(name).or_default().insert(record.agent);
        }
        self.agents_by_node.entry(record.node).or_default().insert(record.agent);
        self.agents_by_expiry.insert((record.expires_at, record.agent));
        self.digest.add(record.agent, record.sequence);
    }

    fn unlink(&mut self, record: &Arc<Verified<Record>>) {
        for name in names(record) {
            self.stale_names.insert(name.clone());
            remove_from(&mut self.agents_by_name, &name, record.agent);
        }
        remove_from(&mut self.agents_by_node, &record.node, record.agent);
        self.agents_by_expiry.remove(&(record.expires_at, record.agent));
        self.digest.remove(record.agent, record.sequence);
    }

    fn forget(&mut self, agent: AgentId) {
        let was_up = self.is_up(agent);
        let Some(known) = self.known_by_agent.remove(&agent) else { return };
        self.unlink(&known.record);
        self.forget_idle(known.record.node);
        if was_up {
            self.outputs.push(Output::Event(Event::AgentDown(agent, known.record.name.clone())));
        }
    }

    /// Forgets a node that hosts nobody and is not connected.
    fn forget_idle(&mut self, node: NodeId) {
        let connected = |host: &Host| matches!(host.reach, Reach::Connected | Reach::Here);
        if !self.agents_by_node.contains_key(&node) && !self.hosts_by_node.get(&node).is_some_and(connected) {
            self.hosts_by_node.remove(&node);
        }
    }

    fn set_reach(&mut self, node: NodeId, reach: Reach) {
        let before = self.up_on(node);
        let has_agents = self.agents_by_node.contains_key(&node);
        if !has_agents && reach != Reach::Connected {
            self.hosts_by_node.remove(&node);
            return;
        }
        let fresh = Host { reach, suspect_until: None, pulse: None, pulse_budget_at: Duration::ZERO, dial_at: None, dial_failures: 0 };
        let host = self.hosts_by_node.entry(node).or_insert(fresh);
        host.reach = reach;
        if reach == Reach::Connected {
            host.dial_at = None;
            host.dial_failures = 0;
            host.suspect_until = None;
        }
        for (agent, was_up) in before {
            self.changed(agent, was_up);
        }
    }

    fn dial(&mut self, node: NodeId) {
        let agents = self.agents_by_node.get(&node).into_iter().flatten();
        let newest = agents.filter_map(|agent| self.known_by_agent.get(agent)).max_by_key(|known| known.record.issued_at);
        let Some(addresses) = newest.map(|known| known.record.addresses.clone()) else { return };
        if let Some(host) = self.hosts_by_node.get_mut(&node) {
            host.dial_at = None;
            self.outputs.push(Output::Dial { node, addresses });
        }
    }

    fn clear_suspicion(&mut self, agent: AgentId) {
        let was_up = self.is_up(agent);
        let known = self.known_by_agent.get_mut(&agent);
        if known.is_some_and(|known| known.suspect_until.take().is_some()) {
            self.changed(agent, was_up);
        }
    }

    fn up_on(&self, node: NodeId) -> Vec<(AgentId, bool)> {
        let agents = self.agents_by_node.get(&node).into_iter().flatten();
        agents.map(|agent| (*agent, self.is_up(*agent))).collect()
    }

    fn is_up(&self, agent: AgentId) -> bool {
        self.entry(agent).is_some_and(|entry| {
            entry.availability == Availability::Available && matches!(entry.reach, Reach::Here | Reach::Connected | Reach::Proven)
        })
    }

    /// Marks what depends on `agent` as stale, and tells if it came up or went down.
    fn changed(&mut self, agent: AgentId, was_up: bool) {
        let Some(known) = self.known_by_agent.get_mut(&agent) else { return };
        known.entry = None;
        let (names, name) = (names(&known.record), known.record.name.clone());
        self.stale_names.extend(names);
        match (was_up, self.is_up(agent)) {
            (false, true) => self.outputs.push(Output::Event(Event::AgentUp(agent, name))),
            (true, false) => self.outputs.push(Output::Event(Event::AgentDown(agent, name))),
            (true, true) | (false, false) => {}
        }
    }
}

/// Whether something expired, or was signed by a clock too far from this one. Expired ones may just be late; nobody is blamed.
fn timely(issued_at: Timestamp, expires_at: Timestamp, now: Now) -> Option<Verdict> {
    if expires_at <= now.wall {
        return Some(Verdict::Ignore("expired"));
    }
    let skewed = issued_at.saturating_since(now.wall) > Duration::from_millis(CLOCK_SKEW_MS_MAX);
    // Clocks differ, so whoever passed it on may have found it in time: blaming them would let anybody set honest nodes against each other.
    skewed.then_some(Verdict::Ignore("issued in the future"))
}

/// Whether `pulse` says that the agent of `record` takes no calls. A node does not sign records of an agent that is away, so a record
/// younger than the pulse is not yet in it, or says that the agent is back.
fn withdraws(pulse: &Pulse, record: &Record) -> bool {
    let available = pulse.agents.iter().any(|said| said.agent == record.agent && said.available);
    pulse.issued_at >= record.issued_at && (pulse.leaving || !available)
}

/// The names under which a record's agent is found.
fn names(record: &Record) -> BTreeSet<CapabilityName> {
    let own = record.capabilities.iter().map(|capability| &capability.id);
    own.flat_map(|id| id.ancestors().into_iter().chain([id.clone()])).collect()
}

fn remove_from<K: Ord + Clone>(sets: &mut BTreeMap<K, BTreeSet<AgentId>>, key: &K, agent: AgentId) {
    if let Some(set) = sets.get_mut(key) {
        set.remove(&agent);
        if set.is_empty() {
            sets.remove(key);
        }
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
