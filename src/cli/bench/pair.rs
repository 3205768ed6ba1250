//! The two nodes that are measured: the caller's in this process, the agent's in a process of its own, joined over loopback.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use crate::cli::CliError;
use crate::cli::local::{self, Scratch};
use crate::model::CapabilityName;
use crate::node::{Event, Node};

/// A node here, and one in a process of its own that it is joined with.
pub(super) struct Pair {
    pub(super) node: Node,
    host: Child,
    api: reqwest::Client,
    api_url: String,
    token: String,
    scratch: Scratch,
}

impl Pair {
    /// Starts both, with their data in a new folder below `folder`, joined at addresses like `listen`.
    pub(super) async fn start(folder: &Path, listen: &str) -> Result<Self, CliError> {
        let scratch = Scratch::below(folder, "bench")?;
        let dir = scratch.path().join("host");
        let program = std::env::current_exe().map_err(|error| CliError::internal(error.to_string()))?;
        let failed = |error: std::io::Error| CliError::internal(format!("the agent's node did not start: {error}"));
        let mut host = Command::new(program)
            .args(["up", "--json", "--listen", listen, "--api", "127.0.0.1:0", "--name", "host", "--data-dir"])
            .arg(&dir)
            .env("MESHWORK_LOG", "error")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(failed)?;
        let stdout = host.stdout.take().ok_or_else(|| CliError::internal("no pipe"))?;
        let mut lines = BufReader::new(stdout).lines();
        let line = tokio::time::timeout(Duration::from_secs(20), lines.next_line()).await;
        let line = line.map_err(|_| CliError::timeout("the agent's node did not start in time"))?.map_err(failed)?;
        let ready: Value = line.and_then(|line| serde_json::from_str(&line).ok()).ok_or_else(|| CliError::internal("no ready line"))?;
        let text = |value: Option<&Value>| value.and_then(Value::as_str).unwrap_or_default().to_owned();
        let address = text(ready.pointer("/listen/0"));
        let token = std::fs::read_to_string(dir.join("api-token")).map_err(failed)?.trim().to_owned();
        let api = reqwest::Client::builder().no_proxy().build().map_err(|error| CliError::internal(error.to_string()))?;
        let mut config = local::config(scratch.path(), "caller", &[listen], &[address]);
        config.routing.exploration = 0.0;
        let node = local::start(config).await?;
        let pair = Self { node, host, api, api_url: text(ready.get("api")), token, scratch };
        pair.attach("echo").await?;
        Ok(pair)
    }

    /// Attaches an echo agent on the other node over its API. Returns how long that took, and how long until this node knew.
    pub(super) async fn attach(&self, name: &str) -> Result<(Duration, Duration), CliError> {
        let mut events = self.node.handle.events();
        let definition = local::builtin(name, "echo", None)?;
        let began = Instant::now();
        let post = self.api.post(format!("{}/v1/agents", self.api_url)).bearer_auth(&self.token).json(&definition);
        let response = post.send().await.map_err(|error| CliError::internal(error.to_string()))?;
        let registered = began.elapsed();
        if !response.status().is_success() {
            return Err(CliError::internal(format!("attaching {name}: HTTP {}", response.status())));
        }
        let heard = async {
            loop {
                match events.recv().await {
                    Ok(Event::AgentUp { name: up, .. }) if up == name => return,
                    Ok(_) => {}
                    Err(_) => std::future::pending().await,
                }
            }
        };
        let known = tokio::time::timeout(Duration::from_secs(10), heard).await;
        known.map_err(|_| CliError::timeout(format!("agent {name} was not heard of in time")))?;
        // What was heard before the answer came counts as heard at once.
        Ok((registered, began.elapsed().saturating_sub(registered)))
    }

    /// Asks the other node's API for something.
    pub(super) async fn ask(&self, method: reqwest::Method, path: &str, body: &Value) -> Result<Value, CliError> {
        let request = self.api.request(method, format!("{}{path}", self.api_url)).bearer_auth(&self.token).json(body);
        let response = request.send().await.map_err(|error| CliError::internal(error.to_string()))?;
        let status = response.status();
        let answer: Value = response.json().await.map_err(|error| CliError::internal(error.to_string()))?;
        if status.is_success() { Ok(answer) } else { Err(CliError::internal(format!("{path}: HTTP {status}: {answer}"))) }
    }

    /// Where both keep their data.
    pub(super) fn folder(&self) -> &Path {
        self.scratch.path()
    }

    /// The process of the agent's node.
    pub(super) fn host_pid(&self) -> String {
        self.host.id().map_or_else(|| "self".to_owned(), |pid| pid.to_string())
    }

    /// Stops both.
    pub(super) async fn stop(mut self) {
        self.node.stop().await;
        let _ = self.host.kill().await;
    }
}

/// The capability that is called.
pub(super) fn name() -> Result<CapabilityName, CliError> {
    "echo".parse().map_err(CliError::internal)
}
