//! `meshwork bench`: measures this build on this machine.
//!
//! The agent's node is a process of its own, the caller's node is this one; they speak over loopback as two machines would, encrypted and
//! authenticated. Calls are made through the node's handle, so the figures hold for doors that add nothing.

use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use super::local::{self, Scratch};
use super::{CliError, Global};
use crate::model::CapabilityName;
use crate::node::{Event, Handle, InvokeRequest, Node, Query, Wanted};

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum What {
    /// Calls of a 256-byte echo over TCP and QUIC, at 1, 64 and 512 in flight.
    Invoke,
    /// Directory queries, registration, and how soon others know of a new agent.
    Find,
}

/// Arguments of `bench`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  meshwork bench                     everything, about half a minute
  meshwork bench invoke --seconds 5 --json
  meshwork bench invoke --transport tcp --in-flight 8,64

Use a release build; a debug build measures the debugger's patience.")]
pub(crate) struct Args {
    /// What to measure; everything without it.
    what: Option<What>,

    /// How long each row runs.
    #[arg(long, value_name = "S", default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=60))]
    seconds: u64,

    /// Calls in flight, a row each.
    #[arg(long, value_name = "N", value_delimiter = ',', default_values_t = [1, 64, 512], value_parser = clap::value_parser!(u32).range(1..=4_096))]
    in_flight: Vec<u32>,

    /// Only over this transport.
    #[arg(long, value_enum)]
    transport: Option<Transport>,
}

/// How the two nodes speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Transport {
    /// TCP, Noise or TLS 1.3, yamux.
    Tcp,
    /// QUIC.
    Quic,
}

impl Transport {
    fn listen(self) -> (&'static str, &'static str) {
        match self {
            Self::Tcp => ("tcp", "/ip4/127.0.0.1/tcp/0"),
            Self::Quic => ("quic", "/ip4/127.0.0.1/udp/0/quic-v1"),
        }
    }
}

/// Runs the measurements.
pub(crate) async fn run(args: Args, global: &Global) -> Result<(), CliError> {
    crate::telemetry::start_log("error", false).map_err(CliError::internal)?;
    let mut rows = Vec::new();
    let mut memory = Vec::new();
    let transports = [Transport::Tcp, Transport::Quic].into_iter().filter(|transport| args.transport.is_none_or(|only| only == *transport));
    for (transport, listen) in transports.map(Transport::listen) {
        let pair = Pair::start(listen).await?;
        if args.what.is_none_or(|what| what == What::Invoke) {
            for in_flight in args.in_flight.iter().map(|number| usize::try_from(*number).unwrap_or(1)) {
                rows.push(invoke(&pair, transport, in_flight, Duration::from_secs(args.seconds)).await?);
            }
            memory.push(json!({ "transport": transport, "caller_bytes": resident("self"), "host_bytes": resident(&pair.host_pid()) }));
        }
        if args.what.is_none_or(|what| what == What::Find) && transport == "tcp" {
            rows.extend(find(&pair, Duration::from_secs(args.seconds)).await?);
        }
        pair.stop().await;
    }
    let document = json!({
        "build": if cfg!(debug_assertions) { "debug" } else { "release" },
        "version": env!("CARGO_PKG_VERSION"),
        "cores": std::thread::available_parallelism().map_or(0, usize::from),
        "rows": rows,
        "resident": memory,
    });
    global.answer(&document, || Ok(text(&document)))
}

/// A node here, and one in a process of its own that it is joined with.
struct Pair {
    node: Node,
    host: Child,
    api: reqwest::Client,
    api_url: String,
    token: String,
    _scratch: Scratch,
}

impl Pair {
    async fn start(listen: &str) -> Result<Self, CliError> {
        let scratch = Scratch::new("bench")?;
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
        let pair = Self { node, host, api, api_url: text(ready.get("api")), token, _scratch: scratch };
        pair.attach("echo").await?;
        Ok(pair)
    }

    /// Attaches an echo agent on the other node over its API. Returns how long that took, and how long until this node knew.
    async fn attach(&self, name: &str) -> Result<(Duration, Duration), CliError> {
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

    fn host_pid(&self) -> String {
        self.host.id().map_or_else(|| "self".to_owned(), |pid| pid.to_string())
    }

    async fn stop(mut self) {
        self.node.stop().await;
        let _ = self.host.kill().await;
    }
}

fn name() -> Result<CapabilityName, CliError> {
    "echo".parse().map_err(CliError::internal)
}

async fn invoke(pair: &Pair, transport: &str, in_flight: usize, time: Duration) -> Result<Value, CliError> {
    let payload: bytes::Bytes = format!("\"{}\"", "x".repeat(254)).into();
    let name = name()?;
    // A warm-up opens the lane and fills caches.
    load(&pair.node.handle, &name, &payload, in_flight, Duration::from_millis(300)).await?;
    let began = Instant::now();
    let histogram = load(&pair.node.handle, &name, &payload, in_flight, time).await?;
    Ok(row("invoke", json!({ "transport": transport, "bytes": payload.len(), "in_flight": in_flight }), &histogram, began.elapsed()))
}

/// Keeps `in_flight` calls running for a while, and records how long each took, in microseconds.
async fn load(
    handle: &Handle,
    name: &CapabilityName,
    payload: &bytes::Bytes,
    in_flight: usize,
    time: Duration,
) -> Result<Histogram<u64>, CliError> {
    let until = Instant::now() + time;
    // A histogram of its own for each of many callers would be most of the memory that is measured.
    let shared: Vec<_> = (0..in_flight.min(8)).map(|_| histogram().map(|one| Arc::new(Mutex::new(one)))).collect::<Result<_, _>>()?;
    let callers: Vec<_> = (0..in_flight)
        .map(|number| {
            let (handle, name, payload) = (handle.clone(), name.clone(), payload.clone());
            let histogram = shared.get(number % shared.len()).cloned();
            tokio::spawn(async move {
                while Instant::now() < until {
                    let began = Instant::now();
                    handle.invoke(InvokeRequest::new(name.clone(), payload.clone())).await?;
                    let took = u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX) / 100;
                    if let Some(histogram) = &histogram {
                        histogram.lock().unwrap_or_else(PoisonError::into_inner).saturating_record(took);
                    }
                }
                Ok::<_, CliError>(())
            })
        })
        .collect();
    let mut sum = histogram()?;
    for caller in callers {
        caller.await.map_err(|error| CliError::internal(error.to_string()))??;
    }
    for one in shared {
        sum.add(&*one.lock().unwrap_or_else(PoisonError::into_inner)).map_err(|error| CliError::internal(error.to_string()))?;
    }
    Ok(sum)
}

/// Tenths of a microsecond up to a minute, three digits.
fn histogram() -> Result<Histogram<u64>, CliError> {
    Histogram::new_with_max(600_000_000, 3).map_err(|error| CliError::internal(error.to_string()))
}

async fn find(pair: &Pair, time: Duration) -> Result<Vec<Value>, CliError> {
    let handle = &pair.node.handle;
    let query = Query { capabilities: vec![name()?], text: None, version: None, constraints: Wanted::default(), limit: 1 };
    let (mut queries, mut registrations, mut distributions) = (histogram()?, histogram()?, histogram()?);
    let tenths = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX) / 100;
    let began = Instant::now();
    while began.elapsed() < time {
        let asked = Instant::now();
        handle.find(query.clone(), None).await?;
        queries.saturating_record(tenths(asked.elapsed()));
    }
    let took = began.elapsed();
    let began = Instant::now();
    for number in 0..20 {
        let (registered, distributed) = pair.attach(&format!("agent-{number}")).await?;
        registrations.saturating_record(tenths(registered));
        distributions.saturating_record(tenths(distributed));
    }
    let agents = json!({ "agents": 20 });
    Ok(vec![
        row("find", json!({ "records": 1 }), &queries, took),
        row("register", agents.clone(), &registrations, began.elapsed()),
        row("distribute", agents, &distributions, began.elapsed()),
    ])
}

fn row(what: &str, setting: Value, histogram: &Histogram<u64>, took: Duration) -> Value {
    let us = |quantile: f64| {
        let tenths = u32::try_from(histogram.value_at_quantile(quantile)).unwrap_or(u32::MAX);
        f64::from(tenths) / 10.0
    };
    let count = u32::try_from(histogram.len()).unwrap_or(u32::MAX);
    json!({
        "what": what,
        "setting": setting,
        "count": histogram.len(),
        "per_second": (f64::from(count) / took.as_secs_f64()).round(),
        "p50_us": us(0.5),
        "p90_us": us(0.9),
        "p99_us": us(0.99),
        "p999_us": us(0.999),
        "max_us": us(1.0),
    })
}

/// Resident memory of a process, in bytes.
fn resident(pid: &str) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().trim_end_matches("kB").trim().parse().ok()?;
    kib.checked_mul(1_024)
}

fn text(document: &Value) -> String {
    let number = |row: &Value, key: &str| row.get(key).and_then(Value::as_f64).unwrap_or_default();
    let mut text =
        format!("meshwork {} ({} build)\n\n", env!("CARGO_PKG_VERSION"), document.get("build").and_then(Value::as_str).unwrap_or("?"));
    text.push_str(&format!("{:<12}{:<42}{:>10}{:>12}{:>12}{:>12}\n", "what", "setting", "per s", "p50 us", "p99 us", "p99.9 us"));
    for row in document.get("rows").and_then(Value::as_array).into_iter().flatten() {
        let what = row.get("what").and_then(Value::as_str).unwrap_or_default();
        let setting = row.get("setting").and_then(Value::as_object).into_iter().flatten();
        let setting: Vec<String> = setting.map(|(key, value)| format!("{key} {}", value.to_string().trim_matches('"'))).collect();
        text.push_str(&format!(
            "{what:<12}{:<42}{:>10.0}{:>12.1}{:>12.1}{:>12.1}\n",
            setting.join(", "),
            number(row, "per_second"),
            number(row, "p50_us"),
            number(row, "p99_us"),
            number(row, "p999_us")
        ));
    }
    for row in document.get("resident").and_then(Value::as_array).into_iter().flatten() {
        let mb = |key: &str| number(row, key) / 1_048_576.0;
        let transport = row.get("transport").and_then(Value::as_str).unwrap_or_default();
        text.push_str(&format!(
            "\nresident after {transport}: caller {:.1} MiB, agent's node {:.1} MiB",
            mb("caller_bytes"),
            mb("host_bytes")
        ));
    }
    text.push('\n');
    text
}
