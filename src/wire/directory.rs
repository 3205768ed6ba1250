//! What nodes tell each other about agents: records, pulses, queries and digests (design.md section 4).
//!
//! A record is an agent's signed description and the truth about it until it expires or a higher sequence replaces it. A pulse is a
//! node's signed word on all its agents, a hint. Both travel by gossip ([`Gossip`]) and inside the answers of the control protocol
//! ([`Control`], [`Reply`]). AMP-1, AMP-2, AMP-5, AMP-6, MAOP-2: the fields; endpoints and credentials never leave the node.

use rust_decimal::Decimal;
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use super::context::sync::{ANSWER_BYTES_MAX, QUESTION_BYTES_MAX};
use super::offer::{Inquiry, Offers};
use super::outbox::{self, KeptResult, RESULTS_MAX, Word};
use super::receipt::{RECEIPT_AGENTS_MAX, RECEIPTS_MAX};
use super::{Document, Error, VERSION, rule, short, signed::Signable, version};
use crate::model::{
    AgentId, CapabilityName, CapabilityVersion, Claims, Constraints, Framework, NodeId, Price, Shard, Timestamp, VersionRequirement,
    at_most,
};

/// How long after it was issued a record or pulse may stay valid (threat T7).
pub const LIFETIME_MS_MAX: u64 = 300_000;
/// How far a clock may be off.
pub const CLOCK_SKEW_MS_MAX: u64 = 60_000;
/// Capabilities in one record.
pub const CAPABILITIES_MAX: usize = 32;
/// Agents in one pulse, and so on one node.
pub const AGENTS_PER_NODE_MAX: usize = 64;
/// Addresses in one record.
pub const ADDRESSES_MAX: usize = 8;
/// Buckets of a digest: agents are dealt by the first byte of their key.
pub const BUCKETS: usize = 256;
/// Records asked for in one [`Control::Fetch`].
pub const FETCH_MAX: usize = 256;
/// Schemas in one [`Control::Schemas`]: those of one record.
pub const SCHEMAS_MAX: usize = CAPABILITIES_MAX * 2;
/// Entries in one [`Reply::Differences`].
pub const DIFFERENCES_MAX: usize = 4_096;
/// Capabilities in one query.
pub const QUERY_CAPABILITIES_MAX: usize = 16;
/// Records in one answer.
pub const ANSWERS_MAX: usize = 64;

/// The signed description of an agent; at most 8 KiB, schemas by hash.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Format version.
    pub v: u16,
    /// The agent, whose key signs.
    pub agent: AgentId,
    /// The node that hosts it, whose key countersigns.
    pub node: NodeId,
    /// What people call it; not unique in the mesh.
    pub name: String,
    /// The agent's own version.
    pub version: String,
    /// One line for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
    /// What it was built with.
    #[serde(default)]
    pub framework: Framework,
    /// What it offers.
    #[serde(deserialize_with = "at_most::<CAPABILITIES_MAX, _, _>")]
    pub capabilities: Vec<Capability>,
    /// Where its node listens, as multiaddresses.
    #[serde(deserialize_with = "at_most::<ADDRESSES_MAX, _, _>")]
    pub addresses: Vec<String>,
    /// How many calls it works on at once.
    pub concurrency: u32,
    /// Grows with every change; a higher one replaces a lower one for good.
    pub sequence: u64,
    /// When it was signed.
    pub issued_at: Timestamp,
    /// When it must be forgotten.
    pub expires_at: Timestamp,
}

/// One capability of a record.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Capability {
    /// Its name.
    pub id: CapabilityName,
    /// Its version.
    pub version: CapabilityVersion,
    /// What it does, in one line.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
    /// BLAKE3 of the input schema; all zero where any input will do.
    pub input_schema: SchemaHash,
    /// BLAKE3 of the output schema.
    pub output_schema: SchemaHash,
    /// What it costs; free without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub price: Option<Price>,
    /// The bounds it sets.
    #[serde(default)]
    pub constraints: Constraints,
    /// Whether doing it twice does no harm.
    #[serde(default)]
    pub idempotent: bool,
    /// What the agent says of how well it does this. A node that does not know the field passes over it.
    #[serde(default, skip_serializing_if = "Claims::is_empty")]
    pub claims: Claims,
}

/// The name of a JSON Schema: the hash of its canonical text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SchemaHash([u8; 32]);

impl SchemaHash {
    /// The name for a hash.
    pub const fn new(hash: [u8; 32]) -> Self {
        Self(hash)
    }
}

impl std::fmt::Display for SchemaHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl Serialize for SchemaHash {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for SchemaHash {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bytes = ByteBuf::deserialize(deserializer)?;
        let hash = bytes.as_slice().try_into();
        hash.map(Self).map_err(|_| serde::de::Error::custom("a schema hash has 32 bytes"))
    }
}

impl Record {
    /// The shards on which it is announced, each once.
    pub fn shards(&self) -> std::collections::BTreeSet<Shard> {
        self.capabilities.iter().map(|capability| capability.id.shard()).collect()
    }
}

fn lifetime(kind: &'static str, issued_at: Timestamp, expires_at: Timestamp) -> Result<(), Error> {
    let lifetime_ms = expires_at.as_ms().checked_sub(issued_at.as_ms());
    rule(
        lifetime_ms.is_some_and(|ms| (1..=LIFETIME_MS_MAX).contains(&ms)),
        kind,
        "expires_at",
        "lies after issued_at, by five minutes at most",
    )
}

impl Document for Record {
    const KIND: &'static str = "record";
    const BYTES_MAX: usize = 8 * 1024;

    fn check(&self) -> Result<(), Error> {
        let kind = Self::KIND;
        version(self.v, kind)?;
        lifetime(kind, self.issued_at, self.expires_at)?;
        rule(!self.name.is_empty() && short(&self.name, 64), kind, "name", "has 1 to 64 printable characters")?;
        rule(short(&self.version, 32), kind, "version", "has at most 32 printable characters")?;
        rule(short(&self.description, 512), kind, "description", "has at most 512 printable characters")?;
        rule((1..=CAPABILITIES_MAX).contains(&self.capabilities.len()), kind, "capabilities", "has 1 to 32 entries")?;
        rule(self.addresses.len() <= ADDRESSES_MAX, kind, "addresses", "has at most 8 entries")?;
        rule(self.addresses.iter().all(|address| short(address, 128)), kind, "addresses", "are at most 128 characters each")?;
        rule((1..=1_024).contains(&self.concurrency), kind, "concurrency", "is 1 to 1024")?;
        for (index, capability) in self.capabilities.iter().enumerate() {
            rule(!capability.id.is_heading(), kind, "capabilities.id", "is not a heading of the taxonomy")?;
            rule(short(&capability.description, 512), kind, "capabilities.description", "has at most 512 printable characters")?;
            let languages = &capability.constraints.supported_languages;
            let languages_ok = languages.len() <= 64 && languages.iter().all(|language| short(language, 16));
            rule(languages_ok, kind, "capabilities.constraints.supported_languages", "has at most 64 short entries")?;
            rule(capability.claims.check().is_ok(), kind, "capabilities.claims", "keep to their bounds")?;
            let mut earlier = self.capabilities.iter().take(index);
            let repeated = earlier.any(|other| other.id == capability.id && other.version == capability.version);
            rule(!repeated, kind, "capabilities", "names each capability and version once")?;
        }
        Ok(())
    }
}

impl Signable for Record {
    const DOMAIN: &'static str = "meshwork/record/1";

    fn node(&self) -> NodeId {
        self.node
    }

    fn agent(&self) -> Option<AgentId> {
        Some(self.agent)
    }
}

/// A node's word on all its agents: how busy they are, which of them are away. A hint, never the truth.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Pulse {
    /// Format version.
    pub v: u16,
    /// The node that speaks.
    pub node: NodeId,
    /// Grows with every pulse of this node.
    pub sequence: u64,
    /// When it was signed.
    pub issued_at: Timestamp,
    /// When it must be forgotten.
    pub expires_at: Timestamp,
    /// Whether the node is about to stop, with all its agents.
    #[serde(default)]
    pub leaving: bool,
    /// Each agent that the node hosts; one that is missing has been removed.
    #[serde(deserialize_with = "at_most::<AGENTS_PER_NODE_MAX, _, _>")]
    pub agents: Vec<AgentPulse>,
}

/// One agent in a pulse.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentPulse {
    /// The agent.
    pub agent: AgentId,
    /// Whether it takes calls.
    pub available: bool,
    /// Calls it works on.
    pub in_flight: u32,
    /// Calls that wait for a slot.
    pub queued: u32,
}

impl Document for Pulse {
    const KIND: &'static str = "pulse";
    const BYTES_MAX: usize = 12 * 1024;

    fn check(&self) -> Result<(), Error> {
        version(self.v, Self::KIND)?;
        lifetime(Self::KIND, self.issued_at, self.expires_at)?;
        rule(self.agents.len() <= AGENTS_PER_NODE_MAX, Self::KIND, "agents", "has at most 64 entries")
    }
}

impl Signable for Pulse {
    const DOMAIN: &'static str = "meshwork/pulse/1";

    fn node(&self) -> NodeId {
        self.node
    }

    fn agent(&self) -> Option<AgentId> {
        None
    }
}

/// A gossip message. It names its shard, so that the same document on two shards is two messages.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gossip {
    /// The shard it was published on.
    pub shard: u8,
    /// What it carries.
    pub content: GossipContent,
}

/// What a gossip message carries: the bytes of a signed document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GossipContent {
    /// A [`super::Signed`] [`Record`].
    Record(ByteBuf),
    /// A [`super::Signed`] [`Pulse`].
    Pulse(ByteBuf),
}

impl Document for Gossip {
    const KIND: &'static str = "gossip message";
    const BYTES_MAX: usize = 16 * 1024;

    fn check(&self) -> Result<(), Error> {
        rule(self.shard < Shard::COUNT, Self::KIND, "shard", "is below 64")
    }
}

/// A directory query as it travels and as the directory answers it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Query {
    /// Names of capabilities or headings; an agent that offers any of them will do. May be empty if `text` is not.
    #[serde(default, deserialize_with = "at_most::<QUERY_CAPABILITIES_MAX, _, _>")]
    pub capabilities: Vec<CapabilityName>,
    /// Words to look for in names and descriptions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// Which versions will do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<VersionRequirement>,
    /// What else must hold.
    #[serde(default)]
    pub constraints: Wanted,
    /// How many answers are wanted, 1 to 64.
    pub limit: u32,
}

/// The constraints of a query (AMP-5); each that is absent holds for everybody.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Wanted {
    /// Longest latency in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_latency_ms: Option<f64>,
    /// Smallest share of calls that succeed, 0 to 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_success_rate: Option<f64>,
    /// Least trust, 0 to 100.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_trust: Option<f64>,
    /// Highest price per unit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_cost: Option<Decimal>,
    /// Language that must be supported.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub language: Option<String>,
}

impl Document for Query {
    const KIND: &'static str = "query";
    const BYTES_MAX: usize = 4 * 1024;

    fn check(&self) -> Result<(), Error> {
        let kind = Self::KIND;
        let in_range = |value: Option<f64>, low: f64, high: f64| value.is_none_or(|value| (low..=high).contains(&value));
        let wanted = &self.constraints;
        rule(self.capabilities.len() <= QUERY_CAPABILITIES_MAX, kind, "capabilities", "has at most 16 entries")?;
        rule(!self.capabilities.is_empty() || self.text.is_some(), kind, "capabilities", "or text must be given")?;
        rule(self.text.as_deref().is_none_or(|text| short(text, 256)), kind, "text", "has at most 256 printable characters")?;
        rule((1..=64).contains(&self.limit), kind, "limit", "is 1 to 64")?;
        rule(in_range(wanted.max_latency_ms, 0.0, 1e9), kind, "constraints.max_latency_ms", "is a number of milliseconds, not negative")?;
        rule(in_range(wanted.min_success_rate, 0.0, 1.0), kind, "constraints.min_success_rate", "is 0 to 1")?;
        rule(in_range(wanted.min_trust, 0.0, 100.0), kind, "constraints.min_trust", "is 0 to 100")?;
        rule(wanted.max_cost.is_none_or(|cost| cost >= Decimal::ZERO), kind, "constraints.max_cost", "is not negative")?;
        rule(wanted.language.as_deref().is_none_or(|text| short(text, 16)), kind, "constraints.language", "has at most 16 characters")
    }
}

/// A question of the control protocol. Each is answered by exactly one [`Reply`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Control {
    /// Which of your own agents answer this query?
    Find(Query),
    /// These are the hashes of my 256 buckets; in which do we differ, and what do you hold there?
    Digest(ByteBuf),
    /// Send me the records of these agents, and the latest pulses of their nodes.
    Fetch(#[serde(deserialize_with = "at_most::<FETCH_MAX, _, _>")] Vec<AgentId>),
    /// Send me the schemas with these hashes.
    Schemas(#[serde(deserialize_with = "at_most::<SCHEMAS_MAX, _, _>")] Vec<SchemaHash>),
    /// Send me the receipts that you yourself issued about these agents; about all, if none is named.
    Receipts(#[serde(deserialize_with = "at_most::<RECEIPT_AGENTS_MAX, _, _>")] Vec<AgentId>),
    /// Could your agents do this, when, for how much?
    Offers(Inquiry),
    /// About shared contexts: a [`super::context::sync::Question`].
    Context(ByteBuf),
    /// My agents have done these steps of your tasks, and I do not know whether you heard of it.
    Results(#[serde(deserialize_with = "at_most::<RESULTS_MAX, _, _>")] Vec<KeptResult>),
}

impl Document for Control {
    const KIND: &'static str = "control request";
    const BYTES_MAX: usize = 32 * 1024;

    fn check(&self) -> Result<(), Error> {
        let kind = Self::KIND;
        match self {
            Self::Find(query) => query.check(),
            Self::Digest(hashes) => rule(hashes.len() == BUCKETS * 8, kind, "digest", "has 256 hashes of 8 bytes"),
            Self::Fetch(agents) => rule(agents.len() <= FETCH_MAX, kind, "fetch", "has at most 256 entries"),
            Self::Schemas(hashes) => rule(hashes.len() <= SCHEMAS_MAX, kind, "schemas", "has at most 64 entries"),
            Self::Receipts(agents) => rule(agents.len() <= RECEIPT_AGENTS_MAX, kind, "receipts", "names at most 64 agents"),
            Self::Offers(inquiry) => inquiry.check(),
            // Read where it is answered, away from the loop.
            Self::Context(question) => rule(question.len() <= QUESTION_BYTES_MAX, kind, "context", "has at most 30 KiB"),
            Self::Results(results) => outbox::check(results),
        }
    }
}

/// The answer to a [`Control`] request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// Signed records, and signed pulses of their nodes.
    Records {
        /// Each a [`super::Signed`] [`Record`].
        #[serde(deserialize_with = "at_most::<FETCH_MAX, _, _>")]
        records: Vec<ByteBuf>,
        /// Each a [`super::Signed`] [`Pulse`].
        #[serde(deserialize_with = "at_most::<FETCH_MAX, _, _>")]
        pulses: Vec<ByteBuf>,
    },
    /// Agents and sequences in the buckets that differ; `more` if there was no room for all.
    Differences {
        /// What the answering node holds there.
        #[serde(deserialize_with = "at_most::<DIFFERENCES_MAX, _, _>")]
        held: Vec<(AgentId, u64)>,
        /// Whether to ask again once these are fetched.
        more: bool,
    },
    /// Schemas as JSON text, in the order of the request; empty where unknown.
    Schemas(#[serde(deserialize_with = "at_most::<SCHEMAS_MAX, _, _>")] Vec<String>),
    /// Receipts of the answering node, those of the latest windows first; each a [`super::Signed`] [`Receipt`](super::receipt::Receipt).
    Receipts(#[serde(deserialize_with = "at_most::<RECEIPTS_MAX, _, _>")] Vec<ByteBuf>),
    /// What the agents that were named could do.
    Offers(Offers),
    /// About shared contexts: a [`super::context::sync::Answer`].
    Context(ByteBuf),
    /// A word on each of the results that were told of, in the order of the request.
    Results(#[serde(deserialize_with = "at_most::<RESULTS_MAX, _, _>")] Vec<Word>),
    /// Not now.
    Busy {
        /// When to come back, in milliseconds.
        retry_after_ms: u64,
    },
    /// The request was not understood.
    Refused(String),
}

impl Document for Reply {
    const KIND: &'static str = "control reply";
    const BYTES_MAX: usize = 2 * 1024 * 1024;

    fn check(&self) -> Result<(), Error> {
        let kind = Self::KIND;
        match self {
            Self::Records { records, pulses } => {
                rule(records.len() <= FETCH_MAX, kind, "records", "has at most 256 entries")?;
                rule(pulses.len() <= FETCH_MAX, kind, "pulses", "has at most 256 entries")
            }
            Self::Differences { held, .. } => rule(held.len() <= DIFFERENCES_MAX, kind, "held", "has at most 4096 entries"),
            Self::Schemas(schemas) => {
                let small = schemas.len() <= SCHEMAS_MAX && schemas.iter().all(|schema| schema.len() <= 16 * 1024);
                rule(small, kind, "schemas", "has at most 64 entries of at most 16 KiB")
            }
            Self::Receipts(receipts) => rule(receipts.len() <= RECEIPTS_MAX, kind, "receipts", "has at most 128 entries"),
            Self::Offers(offers) => offers.check(),
            Self::Context(answer) => rule(answer.len() <= ANSWER_BYTES_MAX, kind, "context", "has at most 1.5 MiB"),
            Self::Results(words) => rule(words.len() <= RESULTS_MAX, kind, "results", "has at most 64 entries"),
            Self::Busy { .. } => Ok(()),
            Self::Refused(reason) => rule(short(reason, 200), kind, "refused", "has at most 200 printable characters"),
        }
    }
}

impl Record {
    /// The version that this build writes into records and pulses.
    pub const V: u16 = VERSION;
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::wire::{AgentKey, NodeKey, Signed, Verified, decode, encode};

    /// A record of the agent `seed` on `node`, with the given capabilities.
    pub(crate) fn record(node: &NodeKey, seed: u8, sequence: u64, issued_ms: u64, capabilities: &[&str]) -> Verified<Record> {
        let key = AgentKey::from_seed(&[seed; 32]);
        Signed::sign(body(node, &key, sequence, issued_ms, capabilities), node, Some(&key)).expect("a valid record")
    }

    fn body(node: &NodeKey, key: &AgentKey, sequence: u64, issued_ms: u64, capabilities: &[&str]) -> Record {
        let capability = |id: &&str| Capability {
            id: id.parse().expect("a valid name"),
            version: "1.0".parse().expect("a valid version"),
            description: String::new(),
            input_schema: SchemaHash::new([0; 32]),
            output_schema: SchemaHash::new([0; 32]),
            price: None,
            constraints: Constraints::default(),
            idempotent: false,
            claims: Claims::default(),
        };
        Record {
            v: VERSION,
            agent: key.id(),
            node: node.id(),
            name: "tester".to_owned(),
            version: "1.0.0".to_owned(),
            description: String::new(),
            framework: Framework::Custom,
            capabilities: capabilities.iter().map(capability).collect(),
            addresses: vec!["/ip4/127.0.0.1/tcp/1".to_owned()],
            concurrency: 1,
            sequence,
            issued_at: Timestamp::from_ms(issued_ms),
            expires_at: Timestamp::from_ms(issued_ms + LIFETIME_MS_MAX),
        }
    }

    /// A pulse of `node` in which the agents of `seeds` are available or not.
    pub(crate) fn pulse(node: &NodeKey, sequence: u64, issued_ms: u64, agents: &[(u8, bool)]) -> Verified<Pulse> {
        let agent = |(seed, available): &(u8, bool)| AgentPulse {
            agent: AgentKey::from_seed(&[*seed; 32]).id(),
            available: *available,
            in_flight: 0,
            queued: 0,
        };
        let body = Pulse {
            v: VERSION,
            node: node.id(),
            sequence,
            issued_at: Timestamp::from_ms(issued_ms),
            expires_at: Timestamp::from_ms(issued_ms + LIFETIME_MS_MAX),
            leaving: false,
            agents: agents.iter().map(agent).collect(),
        };
        Signed::sign(body, node, None).expect("a valid pulse")
    }

    /// A fresh node key.
    pub(crate) fn node_key() -> NodeKey {
        NodeKey::new(libp2p_identity::Keypair::generate_ed25519())
    }

    #[test]
    fn a_signed_record_is_believed_on_the_other_side() {
        let sent = record(&node_key(), 1, 7, 1_000, &["text-analysis"]);
        let received = Signed::<Record>::from_bytes(sent.bytes()).expect("well-formed").verify().expect("signed");
        assert_eq!(received, sent);
    }

    /// Threat T15: every byte of a signed record counts.
    #[test]
    fn no_byte_of_a_record_can_be_changed() {
        let sent = record(&node_key(), 1, 7, 1_000, &["text-analysis"]);
        for at in 0..sent.bytes().len() {
            let mut bytes = sent.bytes().to_vec();
            bytes[at] ^= 0x01;
            let believed = Signed::<Record>::from_bytes(&bytes).and_then(Signed::verify);
            assert!(believed.is_err(), "byte {at} changed unnoticed");
        }
    }

    /// Threat T15: a signature of one type is none of another.
    #[test]
    fn a_pulse_is_not_a_record() {
        let sent = pulse(&node_key(), 1, 1_000, &[(1, true)]);
        assert!(Signed::<Record>::from_bytes(sent.bytes()).and_then(Signed::verify).is_err());
    }

    #[test]
    fn a_node_cannot_sign_for_a_foreign_agent_or_node() {
        let (here, there) = (node_key(), node_key());
        let (mine, foreign) = (AgentKey::from_seed(&[1; 32]), AgentKey::from_seed(&[2; 32]));
        let claims_foreign_agent = body(&here, &foreign, 1, 1_000, &["a"]);
        assert!(Signed::sign(claims_foreign_agent, &here, Some(&mine)).is_err());
        let claims_foreign_node = body(&there, &mine, 1, 1_000, &["a"]);
        assert!(Signed::sign(claims_foreign_node, &here, Some(&mine)).is_err());
    }

    #[test]
    fn records_that_live_too_long_or_name_headings_are_refused() {
        let (node, key) = (node_key(), AgentKey::from_seed(&[1; 32]));
        let mut long = body(&node, &key, 1, 1_000, &["a"]);
        long.expires_at = Timestamp::from_ms(1_000 + LIFETIME_MS_MAX + 1);
        let heading = body(&node, &key, 1, 1_000, &["text-processing"]);
        let twice = body(&node, &key, 1, 1_000, &["a", "a"]);
        let mut future = body(&node, &key, 1, 1_000, &["a"]);
        future.v = 2;
        for record in [long, heading, twice] {
            assert!(matches!(encode(&record), Err(Error::Rule { .. })));
        }
        assert!(matches!(encode(&future), Err(Error::Version { version: 2, .. })));
    }

    /// MAOP-2: claims travel in the signed record; one that breaks a bound is none that any node takes.
    #[test]
    fn claims_travel_within_their_bounds() {
        let (node, key) = (node_key(), AgentKey::from_seed(&[1; 32]));
        let mut record = body(&node, &key, 1, 1_000, &["a"]);
        record.capabilities[0].claims.score = Some(0.75);
        record.capabilities[0].claims.specializations = vec!["invoices".to_owned()];
        record.capabilities[0].claims.resource_requirements.insert("gpu".to_owned(), crate::model::Fact::Flag(true));
        let sent = Signed::sign(record.clone(), &node, Some(&key)).expect("valid");
        let received = Signed::<Record>::from_bytes(sent.bytes()).expect("well-formed").verify().expect("signed");
        assert_eq!(received.capabilities, record.capabilities);
        record.capabilities[0].claims.score = Some(7.0);
        assert!(matches!(encode(&record), Err(Error::Rule { field: "capabilities.claims", .. })));
    }

    /// A record as a node of an earlier release reads it: without the claims.
    #[derive(Debug, serde::Deserialize)]
    struct Earlier {
        id: CapabilityName,
        idempotent: bool,
    }

    /// MAOP-2: claims were added later; who does not know them reads the rest.
    #[test]
    fn an_older_node_reads_a_record_with_claims_and_a_newer_one_a_record_without() {
        let (node, key) = (node_key(), AgentKey::from_seed(&[1; 32]));
        let mut record = body(&node, &key, 1, 1_000, &["a"]);
        let plain = encode(&record).expect("valid");
        assert!(!plain.windows(6).any(|bytes| bytes == b"claims"), "nothing is written where nothing is claimed");
        assert_eq!(decode::<Record>(&plain).as_ref(), Ok(&record));
        record.capabilities[0].claims.score = Some(1.0);
        let mut bytes = Vec::new();
        ciborium::into_writer(&record.capabilities[0], &mut bytes).expect("can be written");
        let read: Earlier = ciborium::from_reader(bytes.as_slice()).expect("the rest is read");
        assert_eq!((read.id.as_str(), read.idempotent), ("a", false));
    }

    #[test]
    fn queries_keep_to_their_bounds() {
        let query = |limit| Query {
            capabilities: vec!["a".parse().expect("valid")],
            text: None,
            version: None,
            constraints: Wanted::default(),
            limit,
        };
        let bytes = encode(&Control::Find(query(10))).expect("valid");
        assert_eq!(decode::<Control>(&bytes), Ok(Control::Find(query(10))));
        assert!(encode(&Control::Find(query(0))).is_err());
        let mut nan = query(1);
        nan.constraints.min_trust = Some(f64::NAN);
        assert!(encode(&Control::Find(nan)).is_err());
    }
}
