//! A contender as the run sees it: a client process that takes orders, and the processes that it needs.

use std::path::Path;

use anyhow::Result;

use crate::process::Process;

/// Where nodes listen over TCP.
pub(crate) const TCP: &str = "/ip4/127.0.0.1/tcp/0";
/// Where nodes listen over QUIC.
pub(crate) const QUIC: &str = "/ip4/127.0.0.1/udp/0/quic-v1";

/// A contender whose processes run.
#[derive(Debug)]
pub(crate) struct Running {
    name: String,
    client: Process,
    servers: Vec<Process>,
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

impl Running {
    /// NATS: a broker and a responder.
    pub(crate) async fn nats() -> Result<Self> {
        let (broker, address) = Process::nats_server().await?;
        let (responder, ()) = Process::role("responder", &words(&["nats-responder", &address])).await?;
        let (client, ()) = Process::role("client", &words(&["nats-client", &address])).await?;
        Ok(Self { name: "nats".to_owned(), client, servers: vec![broker, responder] })
    }

    /// HTTP: an axum server.
    pub(crate) async fn http() -> Result<Self> {
        let (server, address): (_, String) = Process::role("server", &words(&["http-server"])).await?;
        let (client, ()) = Process::role("client", &words(&["http-client", &address])).await?;
        Ok(Self { name: "http".to_owned(), client, servers: vec![server] })
    }

    /// A bare libp2p substream.
    pub(crate) async fn substream() -> Result<Self> {
        let (server, address): (_, String) = Process::role("server", &words(&["substream-server"])).await?;
        let (client, ()) = Process::role("client", &words(&["substream-client", &address])).await?;
        Ok(Self { name: "substream".to_owned(), client, servers: vec![server] })
    }

    /// Meshwork, with as many echo agents of one capability.
    pub(crate) async fn mesh(name: &str, dir: &Path, listen: &str, agents: usize) -> Result<Self> {
        Self::hosting(name, dir, listen, &words(&["--agents", &agents.to_string()]), Vec::new()).await
    }

    /// Meshwork, with as many HTTP engines, each with a capability of its own.
    pub(crate) async fn engines(name: &str, dir: &Path, agents: usize) -> Result<Self> {
        let (server, address): (_, String) = Process::role("engines", &words(&["http-server"])).await?;
        let hosted = words(&["--agents", &agents.to_string(), "--engines", &address]);
        Self::hosting(name, dir, TCP, &hosted, vec![server]).await
    }

    /// Meshwork, with one HTTP engine whose work takes so long, and which has room for few.
    pub(crate) async fn worker(name: &str, dir: &Path, work_ms: u32) -> Result<Self> {
        let (server, address): (_, String) = Process::role("engines", &words(&["http-server"])).await?;
        let hosted = words(&["--agents", "1", "--engines", &address, "--work-ms", &work_ms.to_string()]);
        Self::hosting(name, dir, TCP, &hosted, vec![server]).await
    }

    async fn hosting(name: &str, dir: &Path, listen: &str, hosted: &[String], mut servers: Vec<Process>) -> Result<Self> {
        let dir = dir.join(name).display().to_string();
        std::fs::create_dir_all(&dir)?;
        let place = words(&["--dir", &dir, "--listen", listen]);
        let host = [words(&["mesh-host"]), place.clone(), hosted.to_vec()].concat();
        let (host, joins): (_, Vec<String>) = Process::role("host", &host).await?;
        let joins = joins.into_iter().flat_map(|join| ["--join".to_owned(), join]).collect();
        let client = [words(&["mesh-client"]), place, joins, hosted.to_vec()].concat();
        let (client, ()) = Process::role("caller", &client).await?;
        servers.push(host);
        Ok(Self { name: name.to_owned(), client, servers })
    }

    /// What it is called in the report.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The process that takes orders.
    pub(crate) fn client(&mut self) -> &mut Process {
        &mut self.client
    }

    /// All its processes.
    pub(crate) fn processes(&self) -> impl Iterator<Item = &Process> {
        std::iter::once(&self.client).chain(&self.servers)
    }

    /// Processor time of all its processes so far, in microseconds.
    pub(crate) fn cpu_us(&self) -> Result<u64> {
        self.processes().map(Process::cpu_us).sum()
    }

    /// Ends its processes, the client first.
    pub(crate) async fn end(self) -> Result<()> {
        self.client.end().await?;
        for server in self.servers.into_iter().rev() {
            server.end().await?;
        }
        Ok(())
    }
}
