//! One node: a process of its own with a temporary directory.

use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, BufReader},
    process::{Child, ChildStdout, Command},
};

use super::{
    agents::tables,
    answer::Answer,
    command::{Output, finished, program, program_after},
    events::Events,
    port::Port,
    wait::{SETTLE, eventually, poll, within},
};

/// From the start of the process to its ready line, on a machine that has other things to do. Who promises less holds it against the clock.
const READY: Duration = Duration::from_secs(60);
/// Where a node listens that may have another address whenever it starts.
const ANYWHERE: &str = "/ip4/127.0.0.1/tcp/0";
/// From SIGTERM to the end of the process: what the interface allows, and a little for the machine.
const STOP: Duration = Duration::from_secs(35);
/// How long any one request may take.
const REQUEST: Duration = Duration::from_secs(40);
/// How much of a failed node's log is shown, in bytes.
const LOG_SHOWN: usize = 16 * 1024;

/// What a node is started with.
#[derive(Debug, Clone)]
pub(crate) struct Builder {
    home: Arc<TempDir>,
    port: Arc<Port>,
    config: String,
    config_file: Option<PathBuf>,
    agents: Vec<Value>,
    join: Vec<String>,
    listen: Vec<String>,
    api: String,
    failpoint: Option<String>,
    prelude: Option<String>,
}

impl Builder {
    /// Writes this at the top of its configuration file.
    pub(crate) fn config(mut self, text: &str) -> Self {
        self.config.push_str(text);
        self
    }

    /// Uses this file as its configuration; agents are then those of the file.
    pub(crate) fn config_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.config_file = Some(path.into());
        self
    }

    /// Attaches an agent through the configuration file.
    pub(crate) fn agent(mut self, definition: Value) -> Self {
        self.agents.push(definition);
        self
    }

    /// Joins through another node.
    pub(crate) fn join(self, other: &Node) -> Self {
        self.join_address(&other.address())
    }

    /// Joins through an address.
    pub(crate) fn join_address(mut self, address: &str) -> Self {
        self.join.push(address.to_owned());
        self
    }

    /// Forgets whom to join.
    pub(crate) fn no_join(mut self) -> Self {
        self.join.clear();
        self
    }

    /// Listens here and nowhere else; without an address the flag is left out.
    pub(crate) fn listen(mut self, addresses: &[&str]) -> Self {
        self.listen = addresses.iter().map(|address| (*address).to_owned()).collect();
        self
    }

    /// Serves its API here, rather than at a free port.
    pub(crate) fn api(mut self, address: &str) -> Self {
        address.clone_into(&mut self.api);
        self
    }

    /// Dies at this point (`src/node/failpoint.rs`), or at none.
    pub(crate) fn failpoint(mut self, point: Option<&str>) -> Self {
        self.failpoint = point.map(str::to_owned);
        self
    }

    /// Is started by a shell that does this first.
    pub(crate) fn prelude(mut self, commands: &str) -> Self {
        self.prelude = Some(commands.to_owned());
        self
    }

    /// Where it keeps its keys and its token.
    pub(crate) fn data_dir(&self) -> PathBuf {
        self.home.path().join("data")
    }

    /// A folder beside the data directory, for the test's own files.
    pub(crate) fn home(&self) -> &Path {
        self.home.path()
    }

    /// Starts it and waits until it is ready.
    pub(crate) async fn spawn(self) -> Node {
        self.start().ready().await
    }

    /// Starts it; it may have to wait for others before it is ready.
    pub(crate) fn start(self) -> Starting {
        let log = File::options().create(true).append(true).open(self.log_file()).expect("the log file is made");
        let mut command = match &self.prelude {
            Some(prelude) => program_after(prelude),
            None => program(),
        };
        command.envs(self.failpoint.iter().map(|point| ("MESHWORK_FAILPOINT", point)));
        command.arg("up").arg("--json").arg("--data-dir").arg(self.data_dir()).args(["--api", &self.api]);
        if let Some(file) = self.written_config() {
            command.arg("--config").arg(file);
        }
        for address in &self.listen {
            command.args(["--listen", address]);
        }
        for address in &self.join {
            command.args(["--join", address]);
        }
        let mut child = command.stdout(Stdio::piped()).stderr(log).spawn().expect("the program starts");
        let stdout = BufReader::new(child.stdout.take().expect("its output is piped"));
        Starting { builder: self, child, stdout }
    }

    fn written_config(&self) -> Option<PathBuf> {
        if self.config_file.is_some() {
            return self.config_file.clone();
        }
        if self.config.is_empty() && self.agents.is_empty() {
            return None;
        }
        let text = format!("{}\n{}", self.config, tables(&self.agents));
        let file = self.home.path().join("node.toml");
        fs::write(&file, text).expect("the configuration is written");
        Some(file)
    }

    fn log_file(&self) -> PathBuf {
        self.home.path().join("node.log")
    }

    fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.log_file()).unwrap_or_default()).into_owned()
    }
}

/// A node that has not said yet that it is ready.
#[derive(Debug)]
pub(crate) struct Starting {
    builder: Builder,
    child: Child,
    stdout: BufReader<ChildStdout>,
}

impl Starting {
    /// Waits until the process has ended by itself, ready or not.
    pub(crate) async fn died(mut self) -> Builder {
        within("the node dies", STOP, self.child.wait()).await.expect("the process is waited for");
        self.builder
    }

    /// Waits for the ready line.
    pub(crate) async fn ready(mut self) -> Node {
        let mut line = String::new();
        let read = tokio::time::timeout(READY, self.stdout.read_line(&mut line)).await;
        let ready_at = Instant::now();
        let ready: Option<Value> = serde_json::from_str(&line).ok().filter(|ready: &Value| ready["event"] == "ready");
        let Some(ready) = ready else {
            panic!("no ready line: {read:?}, {line:?}, {:?}\n{}", self.child.try_wait(), self.builder.log());
        };
        let text = |name: &str| ready[name].as_str().unwrap_or_else(|| panic!("the ready line names no {name}: {ready}")).to_owned();
        let token = fs::read_to_string(self.builder.data_dir().join("api-token")).expect("a ready node has written its token");
        let http = reqwest::Client::builder().no_proxy().build().expect("an HTTP client");
        let (id, api) = (text("peer_id"), text("api"));
        let listen = ready["listen"].as_array().expect("the ready line lists addresses");
        let listen = listen.iter().filter_map(Value::as_str).map(str::to_owned).collect();
        let token = token.trim().to_owned();
        Node { builder: self.builder, child: self.child, stdout: self.stdout, ready_at, id, listen, api, token, http }
    }
}

/// A running node; it is killed when the value is dropped, and its log shown if the test has failed.
#[derive(Debug)]
pub(crate) struct Node {
    builder: Builder,
    child: Child,
    stdout: BufReader<ChildStdout>,
    ready_at: Instant,
    id: String,
    listen: Vec<String>,
    api: String,
    token: String,
    http: reqwest::Client,
}

impl Node {
    /// A node that listens on one TCP port of this machine, which stays free for it while it is dead.
    pub(crate) fn builder() -> Builder {
        let home = Arc::new(tempfile::tempdir().expect("a folder for the node"));
        let port = Arc::new(Port::reserve());
        let listen = vec![port.address()];
        Builder {
            home,
            port,
            config: String::new(),
            config_file: None,
            agents: Vec::new(),
            join: Vec::new(),
            listen,
            api: "127.0.0.1:0".to_owned(),
            failpoint: None,
            prelude: None,
        }
    }

    /// A node without agents that others join through.
    pub(crate) async fn first() -> Self {
        Self::builder().spawn().await
    }

    /// Its id.
    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    /// Its first address, ending in its id.
    pub(crate) fn address(&self) -> String {
        self.listen.first().expect("the node listens").clone()
    }

    /// The base URL of its API.
    pub(crate) fn api(&self) -> &str {
        &self.api
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id().expect("the process runs")
    }

    /// Its API token.
    pub(crate) fn token(&self) -> &str {
        &self.token
    }

    /// When its ready line was read.
    pub(crate) fn ready_at(&self) -> Instant {
        self.ready_at
    }

    /// Where it keeps its keys and its token.
    pub(crate) fn data_dir(&self) -> PathBuf {
        self.builder.data_dir()
    }

    /// What it has written to standard error so far.
    pub(crate) fn log(&self) -> String {
        self.builder.log()
    }

    /// An authorised request that has not been sent.
    pub(crate) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.bare(method, path).bearer_auth(&self.token)
    }

    /// A request without a token.
    pub(crate) fn bare(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("{}{path}", self.api)).timeout(REQUEST)
    }

    /// Sends a request and reads its answer.
    pub(crate) async fn send(&self, request: RequestBuilder) -> Answer {
        let response = request.send().await.unwrap_or_else(|error| panic!("the node answers: {error:?}"));
        let status = response.status().as_u16();
        let bytes = response.bytes().await.unwrap_or_else(|error| panic!("the answer is whole: {error:?}"));
        // What is not JSON is kept as a text, so that a failed assertion shows it.
        let text = || Value::String(String::from_utf8_lossy(&bytes).into_owned());
        let body = if bytes.is_empty() { Value::Null } else { serde_json::from_slice(&bytes).unwrap_or_else(|_| text()) };
        Answer { status, body }
    }

    /// `GET`.
    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.send(self.request(Method::GET, path)).await
    }

    /// `POST`.
    pub(crate) async fn post(&self, path: &str, body: &Value) -> Answer {
        self.send(self.request(Method::POST, path).json(body)).await
    }

    /// `PUT`.
    pub(crate) async fn put(&self, path: &str, body: &Value) -> Answer {
        self.send(self.request(Method::PUT, path).json(body)).await
    }

    /// `DELETE`.
    pub(crate) async fn delete(&self, path: &str) -> Answer {
        self.send(self.request(Method::DELETE, path)).await
    }

    /// `POST` with a body that need not be JSON.
    pub(crate) async fn post_text(&self, path: &str, body: String) -> Answer {
        self.send(self.request(Method::POST, path).header("content-type", "application/json").body(body)).await
    }

    /// Its events from here on.
    pub(crate) async fn events(&self) -> Events {
        let request = self.http.get(format!("{}/v1/events", self.api)).bearer_auth(&self.token);
        let response = within("the event stream opens", REQUEST, request.send()).await.expect("the node answers");
        assert_eq!(response.status().as_u16(), 200, "the event stream is refused");
        Events::new(response)
    }

    /// The events at a path.
    pub(crate) async fn follow(&self, path: &str) -> Events {
        let response = within("the events begin", SETTLE, self.request(Method::GET, path).send()).await.expect("the node answers");
        assert_eq!((response.status().as_u16(), &response.headers()["content-type"] == "text/event-stream"), (200, true));
        Events::new(response)
    }

    /// One invocation.
    pub(crate) async fn invoke(&self, body: Value) -> Answer {
        self.post("/v1/invoke", &body).await
    }

    /// One invocation whose answer comes as events.
    pub(crate) async fn stream(&self, mut body: Value) -> Events {
        body.as_object_mut().expect("a body is an object").insert("stream".to_owned(), Value::Bool(true));
        let request = self.http.post(format!("{}/v1/invoke", self.api)).bearer_auth(&self.token).json(&body);
        let response = within("the streamed answer begins", REQUEST, request.send()).await.expect("the node answers");
        assert_eq!(response.status().as_u16(), 200, "the streamed call is refused");
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Events::new(response)
    }

    /// One invocation that must succeed; the whole answer.
    pub(crate) async fn call(&self, capability: &str, input: Value) -> Value {
        let answer = self.invoke(json!({ "capability": capability, "input": input })).await.ok();
        assert_eq!(answer["status"], "success", "{answer}");
        answer
    }

    /// A directory query with whatever belongs in its body.
    pub(crate) async fn query(&self, body: Value) -> Value {
        self.post("/v1/find", &body).await.ok()
    }

    /// The rows that a directory query for one capability gives.
    pub(crate) async fn find(&self, capability: &str) -> Vec<Value> {
        let answer = self.query(json!({ "capabilities": [capability] })).await;
        answer["agents"].as_array().unwrap_or_else(|| panic!("rows: {answer}")).clone()
    }

    /// The names of the agents that a directory query for one capability gives, sorted.
    pub(crate) async fn names(&self, capability: &str) -> Vec<String> {
        let rows = self.find(capability).await;
        let mut names: Vec<String> = rows.iter().filter_map(|row| row["name"].as_str()).map(str::to_owned).collect();
        names.sort();
        names
    }

    /// Waits until a query gives exactly the agents with these names.
    pub(crate) async fn until_names(&self, capability: &str, expected: &[&str], limit: Duration) {
        let mut seen = Vec::new();
        let agrees = async || {
            seen = self.names(capability).await;
            (seen == expected).then_some(())
        };
        let agreed = poll(limit, agrees).await.is_some();
        assert!(agreed, "`{capability}` as seen from {}: {seen:?}, not {expected:?} within {limit:?}", self.id);
    }

    /// Waits until a query gives exactly the agents with these names, for as long as a mesh may take to settle.
    pub(crate) async fn knows(&self, capability: &str, expected: &[&str]) {
        self.until_names(capability, expected, SETTLE).await;
    }

    /// The ids of the nodes it is connected to.
    pub(crate) async fn peers(&self) -> Vec<String> {
        let answer = self.get("/v1/peers").await.ok();
        let peers = answer["peers"].as_array().unwrap_or_else(|| panic!("peers: {answer}"));
        peers.iter().filter_map(|peer| peer["node_id"].as_str()).map(str::to_owned).collect()
    }

    /// Waits until it is connected to `other`.
    pub(crate) async fn meets(&self, other: &Self) {
        let what = format!("{} is connected to {}", self.id, other.id);
        eventually(&what, SETTLE, async || self.peers().await.contains(&other.id).then_some(())).await;
    }

    /// An agent's record, by id or name.
    pub(crate) async fn agent(&self, id: &str) -> Value {
        self.get(&format!("/v1/agents/{id}")).await.ok()
    }

    /// The id of one of its own agents.
    pub(crate) async fn agent_id(&self, name: &str) -> String {
        let answer = self.get("/v1/agents?scope=local").await.ok();
        let agents = answer["agents"].as_array().unwrap_or_else(|| panic!("agents: {answer}"));
        let agent = agents.iter().find(|agent| agent["name"] == name).unwrap_or_else(|| panic!("no agent `{name}` here: {answer}"));
        agent["agent_id"].as_str().unwrap_or_else(|| panic!("an agent's id: {agent}")).to_owned()
    }

    /// Runs a verb against this node.
    pub(crate) async fn cli(&self, arguments: &[&str]) -> Output {
        finished(&mut self.verb(arguments)).await
    }

    /// A verb against this node that has not been started.
    pub(crate) fn verb(&self, arguments: &[&str]) -> Command {
        let mut command = program();
        command.args(arguments).args(["--api", &self.api]).arg("--data-dir").arg(self.data_dir());
        command
    }

    /// Memory that the process holds, in bytes.
    pub(crate) fn resident_bytes(&self) -> u64 {
        self.memory_bytes("VmRSS:")
    }

    /// The most memory that the process has held so far, in bytes.
    pub(crate) fn resident_bytes_max(&self) -> u64 {
        self.memory_bytes("VmHWM:")
    }

    fn memory_bytes(&self, which: &str) -> u64 {
        let pid = self.child.id().expect("the process runs");
        let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the process is alive");
        let line = status.lines().find_map(|line| line.strip_prefix(which)).expect("its memory is told");
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number of KiB") * 1024
    }

    /// The value of one line of its metrics; what was never counted is zero.
    pub(crate) async fn metric(&self, line: &str) -> u64 {
        let Value::String(text) = self.get("/metrics").await.ok() else { panic!("metrics are a text") };
        let value = text.lines().find_map(|found| found.strip_prefix(line)?.strip_prefix(' '));
        value.map_or(0, |value| value.parse().unwrap_or_else(|_| panic!("a count: {value}")))
    }

    /// Ends the process at once, as a crash would.
    pub(crate) async fn kill(&mut self) {
        self.child.kill().await.expect("the process is killed");
    }

    /// Waits until the process has ended by itself.
    pub(crate) async fn died(&mut self) -> ExitStatus {
        within("the node dies", STOP, self.child.wait()).await.expect("the process is waited for")
    }

    /// How it is started again at the address that others know it by; it must have ended.
    pub(crate) fn reborn(self) -> Builder {
        let address = self.address();
        let bare = address.split_once("/p2p/").map_or(address.as_str(), |(bare, _)| bare);
        self.builder.clone().failpoint(None).listen(&[bare])
    }

    /// Asks the process to stop and waits until it has.
    pub(crate) async fn terminate(&mut self) -> ExitStatus {
        self.signal("TERM");
        within("the node stops", STOP, self.child.wait()).await.expect("the process is waited for")
    }

    /// Freezes the process: its connections stay open and nothing answers. The signal only asks for that; a thread that runs meanwhile may
    /// still answer, so each is waited for.
    pub(crate) async fn stop(&self) {
        self.signal("STOP");
        let frozen = async || self.threads().all(|state| state == 'T').then_some(());
        eventually(&format!("{} is frozen", self.id), SETTLE, frozen).await;
    }

    /// The state of each of its threads: `R` running, `S` waiting, `T` stopped.
    fn threads(&self) -> impl Iterator<Item = char> {
        let pid = self.child.id().expect("the process runs");
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("the process is alive");
        let stats = tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("stat")).ok());
        // The thread's name stands in parentheses before its state, and may hold anything.
        stats.map(|stat| stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next()).expect("a state"))
    }

    /// Lets a frozen process go on.
    pub(crate) fn cont(&self) {
        self.signal("CONT");
    }

    /// What a stopped node had left on standard output after its ready line.
    pub(crate) async fn rest_of_stdout(&mut self) -> String {
        let mut rest = String::new();
        within("standard output ends", SETTLE, self.stdout.read_to_string(&mut rest)).await.expect("standard output is UTF-8");
        rest
    }

    /// Stops it if it runs, and starts it again on the same data directory, at another address unless its test has chosen one.
    pub(crate) async fn restart(self) -> Self {
        self.restart_with(|builder| builder).await
    }

    /// The same, started in another way.
    pub(crate) async fn restart_with(mut self, change: impl FnOnce(Builder) -> Builder) -> Self {
        let runs = self.child.try_wait().expect("the process is looked at").is_none();
        if runs {
            self.terminate().await;
        }
        let mut builder = self.builder.clone();
        if builder.listen == [builder.port.address()] {
            builder = builder.listen(&[ANYWHERE]);
        }
        change(builder).spawn().await
    }

    fn signal(&self, name: &str) {
        signal(&self.child, name);
    }
}

/// Sends a signal to a process that runs.
pub(crate) fn signal(child: &Child, name: &str) {
    let pid = child.id().expect("the process runs").to_string();
    let status = std::process::Command::new("kill").args(["-s", name, &pid]).status().expect("`kill` runs");
    assert!(status.success(), "SIG{name} reaches process {pid}");
}

impl Drop for Node {
    fn drop(&mut self) {
        // A process that has ended already is as dead as it should be.
        let _ = self.child.start_kill();
        if std::thread::panicking() {
            let log = fs::read(self.builder.log_file()).unwrap_or_default();
            let tail = log.get(log.len().saturating_sub(LOG_SHOWN)..).unwrap_or_default();
            let head = format!("--- log of {} ---\n", self.id);
            // Nobody is left to tell if even this fails.
            let _ = std::io::stderr().write_all(&[head.as_bytes(), tail].concat());
        }
    }
}
