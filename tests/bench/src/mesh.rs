//! Meshwork: a node that hosts agents in one process, a node that calls them in another.
//!
//! Both are nodes as `meshwork up` runs them, with the defaults of the configuration, encrypted and authenticated; calls go through the
//! node's handle, as those of a door do. A node hosts at most 64 agents, so more of them stand on several nodes of the host's process.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use bytes::Bytes;
use meshwork::config::Config;
use meshwork::model::{CapabilityName, Definition, ErrorCode, Failure};
use meshwork::node::{Handle, InvokeRequest, Node, Reach, State};
use serde_json::json;

use crate::load::{Caller, Contender, Refused};

/// Agents that a node hosts, by the bound of a pulse.
const AGENTS_PER_NODE_MAX: usize = 64;
/// Calls at once that an engine has room for whose work takes its time.
pub(crate) const WORK_PLACES: u32 = 8;
/// How many may wait for such a place.
const WORK_LINE: u32 = 32;
/// How long nodes may take to start and to join.
const READY_MAX: Duration = Duration::from_secs(20);
/// How long a caller may take to hear of every agent: the comparison of directories comes round every half minute.
const KNOWN_MAX: Duration = Duration::from_secs(90);

/// What a host process hosts.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Hosted {
    /// How many agents.
    #[arg(long, default_value_t = 1)]
    agents: usize,
    /// The HTTP server whose endpoints the agents are, each with a capability of its own; builtin echoes of one capability without it.
    #[arg(long)]
    engines: Option<String>,
    /// How long the work of an engine takes, in milliseconds; it then has room for few.
    #[arg(long)]
    work_ms: Option<u64>,
}

impl Hosted {
    fn definition(&self, number: usize) -> Result<Definition> {
        let name = format!("agent-{number}");
        let (path, concurrency, queue) = match self.work_ms {
            None => (format!("engine/{number}"), 8, 4_096),
            Some(ms) => (format!("work/{ms}"), WORK_PLACES, WORK_LINE),
        };
        let definition = match &self.engines {
            None => json!({ "name": name, "concurrency": 64, "queue": 4_096, "adapter": { "type": "builtin", "kind": "echo" } }),
            Some(server) => json!({
                "name": name, "concurrency": concurrency, "queue": queue,
                "adapter": { "type": "http", "endpoint": format!("http://{server}/{path}"), "allow_private": true },
                "capability": [{ "id": engine_capability(number), "version": "1.0", "input_schema": {}, "output_schema": {} }],
            }),
        };
        Ok(serde_json::from_value(definition)?)
    }
}

fn engine_capability(number: usize) -> String {
    format!("bench.engine-{number}")
}

async fn start(dir: &Path, name: &str, listen: &str, join: &[String]) -> Result<Node> {
    let mut config = Config::default();
    config.node.name = Some(name.to_owned());
    config.node.data_dir = dir.join(name);
    config.mesh.listen = vec![listen.to_owned()];
    config.mesh.join = join.to_vec();
    let node = Node::start(config).await.with_context(|| format!("node {name}"))?;
    let mut state = node.handle.watch_state();
    tokio::time::timeout(READY_MAX, state.wait_for(|state| *state != State::Joining))
        .await
        .with_context(|| format!("node {name} did not join in time"))??;
    Ok(node)
}

/// Runs the nodes that host agents until `done`. `ready` is told where they can be joined.
pub(crate) async fn host(
    dir: &Path,
    listen: &str,
    hosted: &Hosted,
    ready: impl FnOnce(Vec<String>) -> Result<()>,
    done: impl Future<Output = ()>,
) -> Result<()> {
    let (mut nodes, mut addresses) = (Vec::new(), Vec::new());
    for number in 0..hosted.agents.div_ceil(AGENTS_PER_NODE_MAX) {
        let join: Vec<String> = addresses.iter().take(1).cloned().collect();
        let node = start(dir, &format!("host-{number}"), listen, &join).await?;
        for agent in (number * AGENTS_PER_NODE_MAX..hosted.agents).take(AGENTS_PER_NODE_MAX) {
            node.handle.attach(hosted.definition(agent)?, false).await.map_err(|failure| anyhow!("agent {agent}: {failure}"))?;
        }
        let view = node.handle.node().await.map_err(|failure| anyhow!("{failure}"))?;
        addresses.push(view.listen.first().cloned().context("the node listens nowhere")?);
        nodes.push(node);
    }
    ready(addresses)?;
    done.await;
    for node in nodes.into_iter().rev() {
        node.stop().await;
    }
    Ok(())
}

/// A node that calls.
#[derive(Debug)]
pub(crate) struct Mesh {
    node: Node,
    capabilities: Arc<[CapabilityName]>,
}

impl Mesh {
    /// Joins the hosts and waits until all their agents can be called.
    pub(crate) async fn join(dir: &Path, listen: &str, hosts: &[String], hosted: &Hosted) -> Result<Self> {
        let node = start(dir, "caller", listen, hosts).await?;
        let names: Vec<String> = match hosted.engines {
            None => vec!["echo".to_owned()],
            Some(_) => (0..hosted.agents).map(engine_capability).collect(),
        };
        let capabilities = names.iter().map(|name| name.parse().map_err(|error| anyhow!("{name}: {error}"))).collect::<Result<_>>()?;
        tokio::time::timeout(KNOWN_MAX, know(&node.handle, hosted.agents)).await.context("not every agent was heard of in time")??;
        Ok(Self { node, capabilities })
    }

    /// Leaves the mesh.
    pub(crate) async fn stop(self) {
        self.node.stop().await;
    }
}

async fn know(handle: &Handle, agents: usize) -> Result<()> {
    let mut events = handle.events();
    loop {
        let known = handle.agents().await.map_err(|failure| anyhow!("{failure}"))?;
        if known.iter().filter(|view| view.entry.reach == Reach::Connected).count() >= agents {
            return Ok(());
        }
        // Whether an event came or some were missed: look again.
        let event = tokio::time::timeout(Duration::from_secs(1), events.recv()).await;
        ensure!(!matches!(event, Ok(Err(tokio::sync::broadcast::error::RecvError::Closed))), "the node broke off");
    }
}

impl Contender for Mesh {
    type Caller = MeshCaller;

    async fn caller(&self) -> Result<MeshCaller> {
        // Callers begin at different capabilities, so that all engines work at once.
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let next = NEXT.fetch_add(1, Ordering::Relaxed);
        Ok(MeshCaller { handle: self.node.handle.clone(), capabilities: Arc::clone(&self.capabilities), next })
    }
}

/// A clone of the node's handle.
#[derive(Debug)]
pub(crate) struct MeshCaller {
    handle: Handle,
    capabilities: Arc<[CapabilityName]>,
    next: usize,
}

impl Caller for MeshCaller {
    async fn call(&mut self, payload: Bytes) -> Result<Bytes> {
        let capability = self.capabilities.iter().cycle().nth(self.next % self.capabilities.len()).context("no capability")?;
        self.next = self.next.wrapping_add(1);
        let reply = self.handle.invoke(InvokeRequest::new(capability.clone(), payload)).await;
        let told =
            |failure: Failure| if failure.code == ErrorCode::Busy { Refused(failure.to_string()).into() } else { anyhow!("{failure}") };
        reply.map(|reply| reply.output.clone()).map_err(told)
    }
}
