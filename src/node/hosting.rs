//! The agents of this node as others hear of them: records, provider keys, pulses.
//!
//! A record is issued when an agent comes up, when its definition or the node's addresses change, and before the old one is half-way to
//! its expiry; never for an agent that is down. A pulse goes out at once when an agent comes up or goes down, and at most every five
//! seconds when only loads changed. Issuing needs the disk (the sequence must never go back), so it happens on a worker.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::shared::Shared;
use super::start::Disk;
use crate::agents::definition::Checked;
use crate::agents::{Agent, Health};
use crate::model::{AgentId, CapabilityName, ErrorCode, Failure, Now, Shard};
use crate::wire::directory::{AgentPulse, LIFETIME_MS_MAX, Pulse, Record};
use crate::wire::{self, Signed, Verified};

/// Records are renewed at this age, so that two may be missed before one expires.
const RENEW_AFTER: Duration = Duration::from_secs(100);
/// Shortest pause between pulses.
const PULSE_MIN: Duration = Duration::from_millis(100);
/// Pause between pulses that only tell of loads.
const PULSE_LOAD: Duration = Duration::from_secs(5);
/// A pulse is repeated at this age even if nothing changed, before it expires.
const PULSE_RENEW: Duration = Duration::from_secs(120);

/// What the loop remembers of its own agents.
#[derive(Debug, Default)]
pub(super) struct Hosting {
    advertised: BTreeMap<AgentId, Advertised>,
    issuing: BTreeSet<AgentId>,
    again: BTreeSet<AgentId>,
    down: BTreeSet<AgentId>,
    pulse_sequence: u64,
    pulsed_at: Option<Duration>,
    pulsed: Vec<AgentPulse>,
    /// Shards whose last agent here is gone: they are owed the pulse that says so.
    owed: BTreeSet<Shard>,
    urgent: bool,
}

#[derive(Debug)]
struct Advertised {
    /// When its record was issued; `None` if that record is out of date.
    at: Option<Duration>,
    names: BTreeSet<CapabilityName>,
}

/// Whether a definition's record keeps to its bound.
///
/// # Errors
/// `INVALID_REQUEST` that says by how much it is too large.
pub(super) fn fits_record(checked: &Checked, shared: &Shared) -> Result<(), Failure> {
    // Addresses and numbers are as long as they can get, so what fits now fits always.
    let key = wire::AgentKey::from_seed(&[0; 32]);
    let addresses = vec!["/ip6/ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/udp/65535/quic-v1".to_owned(); wire::directory::ADDRESSES_MAX];
    let now = Now { mono: Duration::ZERO, wall: shared.clock.now().wall };
    let record = body(&key, checked, shared, addresses, u64::MAX, now);
    wire::encode(&record).map(drop).map_err(|error| {
        let message = format!("the agent cannot be advertised: {error}; shorten its descriptions or offer fewer capabilities");
        Failure::new(ErrorCode::InvalidRequest, message).with("path", "capability")
    })
}

fn body(key: &wire::AgentKey, checked: &Checked, shared: &Shared, addresses: Vec<String>, sequence: u64, now: Now) -> Record {
    let definition = &checked.definition;
    Record {
        v: Record::V,
        agent: key.id(),
        node: shared.node(),
        name: definition.name.clone(),
        version: definition.version.clone(),
        description: definition.description.clone(),
        framework: definition.framework,
        capabilities: checked.offered.iter().map(|offered| offered.advertised.clone()).collect(),
        addresses,
        concurrency: definition.concurrency,
        sequence,
        issued_at: now.wall,
        expires_at: now.wall.saturating_add(Duration::from_millis(LIFETIME_MS_MAX)),
    }
}

/// Issues a record. Blocks on the disk.
pub(super) fn issue(agent: &Agent, shared: &Shared, disk: &Disk, addresses: Vec<String>) -> Result<Verified<Record>, String> {
    let now = shared.clock.now();
    let sequence = disk.next_sequence(agent.name(), now.wall).map_err(|error| error.to_string())?;
    let record = body(agent.key(), agent.checked(), shared, addresses, sequence, now);
    Signed::sign(record, &shared.key, Some(agent.key())).map_err(|error| error.to_string())
}

impl Hosting {
    /// Agents whose records should be issued now.
    pub(super) fn due(&self, agents: &[Arc<Agent>], now: Duration) -> Vec<Arc<Agent>> {
        let due = |agent: &&Arc<Agent>| {
            let issued_at = self.advertised.get(&agent.id()).and_then(|advertised| advertised.at);
            let fresh = issued_at.is_some_and(|at| now.saturating_sub(at) < RENEW_AFTER);
            !fresh && !self.issuing.contains(&agent.id()) && agent.health() == Health::Up
        };
        agents.iter().filter(due).cloned().collect()
    }

    /// The agent's health changed. A record is due only if the agent was away: the first is issued when it is attached.
    pub(super) fn on_health(&mut self, agent: AgentId, up: bool) {
        if !up {
            self.down.insert(agent);
        } else if self.down.remove(&agent) {
            self.expire(agent);
        }
        self.urgent = true;
    }

    /// The agent's record is out of date; if it is being issued, it will be once more.
    pub(super) fn expire(&mut self, agent: AgentId) {
        if self.issuing.contains(&agent) {
            self.again.insert(agent);
        }
        if let Some(advertised) = self.advertised.get_mut(&agent) {
            advertised.at = None;
        }
        self.urgent = true;
    }

    /// A record is being issued.
    pub(super) fn begin(&mut self, agent: AgentId) {
        self.issuing.insert(agent);
    }

    /// A record was issued, or could not be. Returns the names that are provided from now on for the first time.
    pub(super) fn finish(&mut self, agent: AgentId, record: Option<&Record>, now: Duration) -> BTreeSet<CapabilityName> {
        self.issuing.remove(&agent);
        let Some(record) = record else { return BTreeSet::new() };
        let own = record.capabilities.iter().map(|capability| &capability.id);
        let names: BTreeSet<CapabilityName> = own.flat_map(|id| id.ancestors().into_iter().chain([id.clone()])).collect();
        let known = self.provided();
        let at = (!self.again.remove(&agent)).then_some(now);
        self.advertised.insert(agent, Advertised { at, names: names.clone() });
        self.urgent = true;
        names.into_iter().filter(|name| !known.contains(name)).collect()
    }

    /// The agent is gone. Returns the names that nobody here provides any more.
    pub(super) fn remove(&mut self, agent: AgentId) -> BTreeSet<CapabilityName> {
        self.urgent = true;
        self.down.remove(&agent);
        let Some(removed) = self.advertised.remove(&agent) else { return BTreeSet::new() };
        self.owed.extend(removed.names.iter().map(CapabilityName::shard));
        let still = self.provided();
        removed.names.into_iter().filter(|name| !still.contains(name)).collect()
    }

    /// All names that are provided.
    pub(super) fn provided(&self) -> BTreeSet<CapabilityName> {
        self.advertised.values().flat_map(|advertised| advertised.names.iter().cloned()).collect()
    }

    /// The shards on which a pulse goes out.
    pub(super) fn take_shards(&mut self) -> BTreeSet<Shard> {
        let mut shards = std::mem::take(&mut self.owed);
        shards.extend(self.shards());
        shards
    }

    /// The shards of what is hosted here.
    pub(super) fn shards(&self) -> BTreeSet<Shard> {
        self.advertised.values().flat_map(|advertised| advertised.names.iter().map(CapabilityName::shard)).collect()
    }

    /// Something changed that others should hear of at once.
    pub(super) fn hurry(&mut self) {
        self.urgent = true;
    }

    /// The pulse that is due, if one is.
    pub(super) fn pulse(&mut self, agents: &[Arc<Agent>], shared: &Shared, leaving: bool, now: Now) -> Option<Verified<Pulse>> {
        if self.advertised.is_empty() && self.pulsed_at.is_none() && !leaving {
            return None;
        }
        let said: Vec<AgentPulse> = agents
            .iter()
            .map(|agent| {
                let (in_flight, queued) = agent.load();
                AgentPulse { agent: agent.id(), available: agent.health() == Health::Up && !leaving, in_flight, queued }
            })
            .collect();
        let age = self.pulsed_at.map(|at| now.mono.saturating_sub(at));
        let due = match age {
            None => true,
            Some(age) => (self.urgent && age >= PULSE_MIN) || (age >= PULSE_LOAD && said != self.pulsed) || age >= PULSE_RENEW || leaving,
        };
        if !due {
            return None;
        }
        self.pulse_sequence = now.wall.as_ms().max(self.pulse_sequence.saturating_add(1));
        let pulse = Pulse {
            v: Record::V,
            node: shared.node(),
            sequence: self.pulse_sequence,
            issued_at: now.wall,
            expires_at: now.wall.saturating_add(Duration::from_millis(LIFETIME_MS_MAX)),
            leaving,
            agents: said.clone(),
        };
        match Signed::sign(pulse, &shared.key, None) {
            Ok(pulse) => {
                self.urgent = false;
                self.pulsed_at = Some(now.mono);
                self.pulsed = said;
                Some(pulse)
            }
            Err(error) => {
                tracing::error!(%error, "a pulse could not be signed");
                None
            }
        }
    }
}
