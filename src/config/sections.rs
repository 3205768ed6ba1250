//! The settings, section by section, each with its default and the reason for it.
//!
//! These are plain values. What a number may be stands in one table beside the known keys; what a text may be, and which
//! settings exclude each other, is checked where the layers come together.

use std::{
    net::{AddrParseError, SocketAddr},
    path::PathBuf,
};

use serde::{Deserialize, Serialize};

use crate::model::{self, Balance};

/// Everything that a node needs to know before it starts.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Who this node is and where it keeps its files.
    pub node: Node,
    /// How it meets other nodes.
    pub mesh: Mesh,
    /// The door for clients on this machine.
    pub api: Api,
    /// How agents are chosen.
    pub routing: Routing,
    /// What this node accepts at most.
    pub limits: Limits,
    /// The tasks that it owns.
    pub task: Task,
    /// The shared contexts that it keeps.
    pub context: Context,
    /// What it writes about itself.
    pub telemetry: Telemetry,
    /// The agents that it hosts from the start: the `[[agent]]` tables.
    #[serde(rename = "agent", skip_serializing_if = "Vec::is_empty")]
    pub agents: Vec<model::Definition>,
}

impl Config {
    /// The file that holds the token of the API.
    pub fn token_file(&self) -> PathBuf {
        self.api.token_file.clone().unwrap_or_else(|| self.node.data_dir.join("api-token"))
    }
}

/// `[node]`: who this node is and where it keeps its files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Node {
    /// What people call it, 1 to 64 printable characters; the host name once a configuration is loaded. It proves nothing: the key does.
    pub name: Option<String>,
    /// Where keys, definitions and indexes live; one node per directory. Default `$XDG_DATA_HOME/meshwork`, else `~/.local/share/meshwork`.
    pub data_dir: PathBuf,
}

impl Default for Node {
    fn default() -> Self {
        let home = super::load::data_dir_default(|name| std::env::var(name).ok());
        Self { name: None, data_dir: home.unwrap_or_else(|| PathBuf::from("meshwork-data")) }
    }
}

/// `[mesh]`: how this node meets others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Mesh {
    /// Addresses to listen on, as multiaddrs over TCP or QUIC, at most 16; port 0 picks a free one. Both transports by default, because
    /// QUIC keeps calls apart under bulk load and TCP passes where UDP is blocked.
    pub listen: Vec<String>,
    /// Nodes to join through, at most 64, best ending in `/p2p/PEER_ID` so that nobody else can answer in their place.
    pub join: Vec<String>,
    /// Addresses to tell others, at most 16, for a node whose own interfaces do not show how it is reached (port forwarding, a public name).
    pub external: Vec<String>,
    /// Whether peers in private ranges are dialled although this node listens on none. Off, because an address that a stranger tells
    /// could otherwise point into the local network.
    pub private: bool,
    /// Whether this node only asks: it does not listen, answers nobody's lookups and hosts no agents, since a node that cannot be
    /// dialled cannot be found.
    pub client_only: bool,
    /// Whether gossip and digests are exchanged. Off suits a metered link: only lookups in the DHT remain, so answers are less fresh.
    pub gossip: bool,
    /// How many connections there may be.
    pub limits: MeshLimits,
}

impl Default for Mesh {
    fn default() -> Self {
        Self {
            listen: vec!["/ip4/0.0.0.0/tcp/7481".to_owned(), "/ip4/0.0.0.0/udp/7481/quic-v1".to_owned()],
            join: Vec::new(),
            external: Vec::new(),
            private: false,
            client_only: false,
            gossip: true,
            limits: MeshLimits::default(),
        }
    }
}

/// `[mesh.limits]`: how many connections there may be. A handshake costs signatures and an idle connection memory, so strangers get few.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MeshLimits {
    /// Handshakes that others began and have not finished: what a flood of half-open connections can hold.
    pub pending_in_max: u32,
    /// Dials under way: more would look like a scan to the networks between.
    pub pending_out_max: u32,
    /// Connections that others opened. Below the total, so that a crowd outside cannot keep this node from dialling out.
    pub established_in_max: u32,
    /// Connections that this node opened: its own choice of peers, which an attacker cannot fill.
    pub established_out_max: u32,
    /// Connections of both kinds together, which bounds memory (about 40 KB for an idle one).
    pub established_max: u32,
    /// Connections of one peer: TCP and QUIC, once from each side.
    pub per_peer_max: u32,
    /// Connections from one /24 or /64, so that one rented subnet cannot fill the table. Ranges that this node itself listens on or
    /// joins through are exempt if they are private.
    pub per_range_max: u32,
    /// Memory in bytes above which no connection is accepted; without it the limit of the control group decides.
    pub memory_bytes_max: Option<u64>,
}

impl Default for MeshLimits {
    fn default() -> Self {
        Self {
            pending_in_max: 32,
            pending_out_max: 16,
            established_in_max: 96,
            established_out_max: 64,
            established_max: 128,
            per_peer_max: 4,
            per_range_max: 8,
            memory_bytes_max: None,
        }
    }
}

/// `[api]`: the door for clients on this machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Api {
    /// Loopback address and port; port 0 picks a free one. Loopback only, because the API speaks plain HTTP and its token would travel in clear.
    pub listen: String,
    /// Names beside the loopback ones that a request's Host header may carry, at most 32: needed behind a reverse proxy, refused
    /// otherwise so that a page cannot rebind its own name to this machine.
    pub allowed_hosts: Vec<String>,
    /// Web origins (`https://host[:port]`) whose pages may call the API, at most 32; none by default.
    pub allowed_origins: Vec<String>,
    /// File that holds the bearer token; default `api-token` in the data directory.
    pub token_file: Option<PathBuf>,
}

impl Api {
    /// The address to listen on.
    ///
    /// # Errors
    /// If `listen` is not `ADDRESS:PORT`, which a loaded configuration never has.
    pub fn address(&self) -> Result<SocketAddr, AddrParseError> {
        self.listen.parse()
    }
}

impl Default for Api {
    fn default() -> Self {
        Self { listen: "127.0.0.1:7480".to_owned(), allowed_hosts: Vec::new(), allowed_origins: Vec::new(), token_file: None }
    }
}

/// `[routing]`: how agents are chosen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Routing {
    /// Share of the score that closeness of the capability has, 0 to 1. The four weights need not add up to 1, but one must be above 0.
    pub weight_match: f64,
    /// Share of the score that trust has, 0 to 1.
    pub weight_trust: f64,
    /// Share of the score that latency has, 0 to 1.
    pub weight_latency: f64,
    /// Share of the score that cost has, 0 to 1.
    pub weight_cost: f64,
    /// Trust that divides proven agents from doubted ones, 0 to 100. Who surely has it comes before who may have it; who surely has not
    /// is asked only when nobody else is there, or to see whether it has recovered. A stranger stands at 50.
    pub min_trust: f64,
    /// Share of calls that go to agents of which little is known, or that may have recovered, 0 to 0.5. At 0 newcomers would never earn
    /// trust while somebody is proven.
    pub exploration: f64,
    /// How calls are spread over near-equals: `least-load`, which sees what other nodes ask of an agent as well, `least-connections`
    /// (this node's own calls alone) or `round-robin`.
    pub balance: Balance,
    /// Retries that burden somebody anew, as a share of calls, 0 to 1. A tenth, so that an overload is not multiplied by its victims.
    pub retry_budget: f64,
    /// Failures in a row after which an agent is left alone for a while, 1 to 100. Three, since a single one may be the call's own fault.
    pub breaker_failures: u32,
    /// How long it is left alone the first time, in milliseconds; doubles with each failed probe.
    pub breaker_open_ms: u64,
    /// The longest that it is left alone between probes, in milliseconds: what an agent that recovered may have to wait.
    pub breaker_open_ms_max: u64,
    /// After this many milliseconds an outcome counts half: long enough to tell agents apart by a few calls an hour, short enough to forgive.
    pub evidence_half_life_ms: u64,
    /// How long an agent that is down, or the agents of a silent node, stay out of routing unless they show themselves, in milliseconds.
    pub suspect_ms: u64,
    /// Ids of nodes whose receipts count, at most 16: what they say of agents is heard until this node knows better. Nobody by default,
    /// since keys cost nothing and only a person can tell whose word is good.
    pub pinned: Vec<String>,
    /// How long the windows are over which this node sums its calls into receipts, in milliseconds. Ten minutes, in which its own evidence
    /// has not faded much; shorter ones say less each, and only the latest counts.
    pub receipt_window_ms: u64,
}

impl Default for Routing {
    fn default() -> Self {
        Self {
            weight_match: 0.3,
            weight_trust: 0.3,
            weight_latency: 0.2,
            weight_cost: 0.2,
            min_trust: 50.0,
            exploration: 0.05,
            balance: Balance::LeastLoad,
            retry_budget: 0.1,
            breaker_failures: 3,
            breaker_open_ms: 1_000,
            breaker_open_ms_max: 30_000,
            evidence_half_life_ms: 1_200_000,
            suspect_ms: 10_000,
            pinned: Vec::new(),
            receipt_window_ms: 600_000,
        }
    }
}

/// `[limits]`: what this node accepts at most.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Largest input or output of a call, in bytes (MAOP-10 asks for 5 MB). What does not fit into a frame of a lane travels beside it.
    pub payload_bytes_max: u32,
    /// Bytes of large inputs and outputs that this node takes in at one time; further inputs are BUSY, further outputs wait.
    pub announced_bytes_max: u64,
    /// The same for one peer.
    pub announced_per_peer_bytes_max: u64,
    /// Deadline of a call that names none, in milliseconds: long enough for a language model.
    pub call_timeout_ms_default: u64,
    /// Longest deadline that a call may ask for, in milliseconds: what it holds is held that long.
    pub call_timeout_ms_max: u64,
    /// Longest time that one attempt at a step of a task may take, in milliseconds, for the tasks of this node and for steps that its agents do:
    /// long enough for the draft's own example, which extends to two hours (AITP 6.2). A definition that asks for more is refused.
    pub step_timeout_ms_max: u64,
    /// Calls of this node's clients that may be under way; further ones are told BUSY at once.
    pub calls_in_flight_max: u32,
    /// Calls of one peer that may be under way here, so that one peer cannot take all slots.
    pub calls_per_peer_max: u32,
    /// Calls of one peer per second, by its key; 0 sets no limit. That is the default, since what suits an echo drowns a language model: calls
    /// under way are bounded anyway, and an agent may name a rate of its own.
    pub calls_per_peer_per_s: u32,
    /// Calls of one peer that may come at once after a pause, if there is a limit.
    pub calls_per_peer_burst: u32,
    /// Requests of all the API's clients together that ask for work, per second; 0, the default, sets no limit, since they share this
    /// node's own token.
    pub api_requests_per_s: u32,
    /// Such requests that may come at once after a pause, if there is a limit.
    pub api_requests_burst: u32,
    /// Agents that one call is tried on: enough to pass a dead one, too few to multiply an overload.
    pub attempts_max: u32,
    /// Agents that this node hosts: each is a record to sign, announce and renew.
    pub agents_max: u32,
    /// Records that the directory holds; at 8 KiB each at most, further ones are ignored until some expire.
    pub records_max: u32,
    /// Final results kept, on the disk, for callers that ask again with the same idempotency key.
    pub results_kept_max: u32,
    /// Bytes of such results, counted once for calls that this node made and once for those that its agents answered. The oldest go first,
    /// and one that is larger than this is not kept: its key is then free, as it is after `results_kept_ms`, and a repeat runs again.
    pub results_kept_bytes_max: u64,
    /// How long such a result is kept, in milliseconds: longer than any caller retries.
    pub results_kept_ms: u64,
    /// Largest body of an API request, in bytes: the largest payload and 64 KiB around it at least. Parsed JSON takes some twenty times its
    /// length in memory.
    pub http_body_bytes_max: u64,
    /// How long a stopping node lets calls finish, in milliseconds.
    pub drain_ms_max: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            payload_bytes_max: 5_242_880,
            announced_bytes_max: 268_435_456,
            announced_per_peer_bytes_max: 67_108_864,
            call_timeout_ms_default: 60_000,
            call_timeout_ms_max: 600_000,
            step_timeout_ms_max: 7_200_000,
            calls_in_flight_max: 4_096,
            calls_per_peer_max: 1_024,
            calls_per_peer_per_s: 0,
            calls_per_peer_burst: 100,
            api_requests_per_s: 0,
            api_requests_burst: 100,
            attempts_max: 4,
            agents_max: 64,
            records_max: 100_000,
            results_kept_max: 10_000,
            results_kept_bytes_max: 67_108_864,
            results_kept_ms: 600_000,
            http_body_bytes_max: 6_291_456,
            drain_ms_max: 30_000,
        }
    }
}

/// `[task]`: the tasks that this node owns.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Task {
    /// Tasks that have not ended; further ones are told BUSY. Each takes some kilobytes of memory, and what its subtasks gave.
    pub live_max: u32,
    /// Tasks that have ended and can still be looked at; the oldest go first. Each takes some 200 bytes of memory, and some hundred bytes of the index
    /// beside what it has in the journal.
    pub kept_max: u32,
    /// How long they can be looked at, in milliseconds.
    pub keep_ms: u64,
    /// Subtasks of one task that run at once.
    pub parallel_max: u32,
    /// How long an agent may take to accept a subtask before the next best is asked, in milliseconds.
    pub start_within_ms: u64,
    /// How long until a capability that nobody offers is looked for again, in milliseconds, unless the task says otherwise. An agent that shows
    /// up ends the wait.
    pub defer_ms: u64,
    /// How long one attempt may take unless the task says otherwise, in milliseconds; never longer than `limits.step_timeout_ms_max`, here and on
    /// the agent's node.
    pub attempt_timeout_ms_default: u64,
    /// Where the `completion_callback` of a task may lead, as the beginnings of URLs (`https://host[:port]/path`); nowhere by default. A host on
    /// this machine or a private network is only reached if its entry is a plain address.
    pub callback_allow: Vec<String>,
}

impl Default for Task {
    fn default() -> Self {
        Self {
            live_max: 10_000,
            kept_max: 100_000,
            keep_ms: 604_800_000,
            parallel_max: 64,
            start_within_ms: 5_000,
            defer_ms: 300_000,
            attempt_timeout_ms_default: 3_600_000,
            callback_allow: Vec::new(),
        }
    }
}

/// `[context]`: the shared contexts of which this node keeps a replica.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Context {
    /// Contexts that this node keeps, its own and those that others share with it; each is a file. Those of others have half of it, those
    /// of one owner elsewhere an eighth.
    pub contexts_max: u32,
    /// Bytes that their files have together, shared out in the same way.
    pub bytes_max: u64,
    /// Contexts that are in memory at once; the others are read when they are needed.
    pub hot_max: u32,
    /// Bytes of memory that these take, by an estimate that is rather too high; the one in use stays, however large.
    pub hot_bytes_max: u64,
}

impl Default for Context {
    fn default() -> Self {
        // An owner's eighth holds four contexts of the largest size, and all of it fits on a small disk. As many as may be hot have room
        // if they have about 30 changes each.
        Self { contexts_max: 100_000, bytes_max: 8 * 1024 * 1024 * 1024, hot_max: 10_000, hot_bytes_max: 256 * 1024 * 1024 }
    }
}

/// `[telemetry]`: what the node writes about itself, on its standard error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Telemetry {
    /// What is logged: a level, or directives such as `info,meshwork::mesh=debug`; at most 1,024 characters.
    pub log: String,
    /// How a line looks.
    pub format: LogFormat,
}

impl Default for Telemetry {
    fn default() -> Self {
        Self { log: "info".to_owned(), format: LogFormat::Text }
    }
}

/// How a log line looks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object per line, for collectors.
    Json,
}
