//! The processes of a run: this program in its other roles, and the NATS server.
//!
//! A role says on standard output, in one JSON line, that it is ready and where; a client then answers each order line on its standard
//! input with one line. It ends when its standard input does, so that nothing is left of a run that broke off.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use crate::load::{Figures, Order};

/// A thousand agents take their time to be attached, signed and heard of.
const READY_MAX: Duration = Duration::from_secs(180);
/// What an order may take beyond the time that it names: 512 connections, a last slow call.
const ORDER_MAX: Duration = Duration::from_secs(90);
/// How long a process may take to end in good order.
const END_MAX: Duration = Duration::from_secs(5);
/// Ticks of `/proc/PID/stat` in a second: Linux has told programs so since the beginning.
const TICKS_PER_SECOND: u64 = 100;

/// A running process.
#[derive(Debug)]
pub(crate) struct Process {
    name: String,
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Option<Lines<BufReader<ChildStdout>>>,
}

impl Process {
    /// Starts this program in another role and returns what it said when it was ready.
    pub(crate) async fn role<T: DeserializeOwned>(name: &str, arguments: &[String]) -> Result<(Self, T)> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("role").args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().with_context(|| format!("start {name}"))?;
        let stdout = child.stdout.take().context("no pipe")?;
        let stdin = child.stdin.take();
        let mut process = Self { name: name.to_owned(), child, stdin, lines: Some(BufReader::new(stdout).lines()) };
        let line = process.line(READY_MAX).await?;
        let ready = serde_json::from_str(&line).with_context(|| format!("{name} said {line}"))?;
        Ok((process, ready))
    }

    /// Starts a NATS server on a free port and returns its address.
    pub(crate) async fn nats_server() -> Result<(Self, String)> {
        let mut command = Command::new("nats-server");
        command.args(["-a", "127.0.0.1", "-p", "-1"]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().context("nats-server is missing; tests/bench/run installs it")?;
        let mut log = BufReader::new(child.stderr.take().context("no pipe")?).lines();
        let address = async {
            while let Some(line) = log.next_line().await? {
                if let Some((_, address)) = line.split_once("Listening for client connections on ") {
                    return Ok(address.trim().to_owned());
                }
            }
            bail!("nats-server ended before it listened")
        };
        let address = tokio::time::timeout(READY_MAX, address).await.context("nats-server did not listen in time")??;
        // It writes a line now and then, and would stop at a full pipe.
        tokio::spawn(async move { while let Ok(Some(_)) = log.next_line().await {} });
        Ok((Self { name: "nats-server".to_owned(), child, stdin: None, lines: None }, address))
    }

    async fn line(&mut self, patience: Duration) -> Result<String> {
        let name = &self.name;
        let lines = self.lines.as_mut().context("a process without lines")?;
        let line = tokio::time::timeout(patience, lines.next_line()).await.with_context(|| format!("{name} did not answer in time"))??;
        line.with_context(|| format!("{name} broke off"))
    }

    /// Has a client carry out an order. The inner error is the client's: it could not do the calls.
    pub(crate) async fn order(&mut self, order: &Order) -> Result<Result<Figures, String>> {
        let line = serde_json::to_string(order)? + "\n";
        let stdin = self.stdin.as_mut().context("a process that takes no orders")?;
        stdin.write_all(line.as_bytes()).await?;
        let answer = self.line(Duration::from_millis(order.run_ms) + ORDER_MAX).await?;
        let answer: Value = serde_json::from_str(&answer)?;
        match answer.get("error").and_then(Value::as_str) {
            Some(error) => Ok(Err(error.to_owned())),
            None => Ok(Ok(serde_json::from_value(answer)?)),
        }
    }

    /// What it is called in the report.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Resident memory, in bytes.
    pub(crate) fn resident_bytes(&self) -> Result<u64> {
        let status = self.proc("status")?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        let kib: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
        Ok(kib * 1_024)
    }

    /// Processor time used so far, in microseconds.
    pub(crate) fn cpu_us(&self) -> Result<u64> {
        let stat = self.proc("stat")?;
        // The name, in parentheses, may hold anything; user and system time are the 12th and 13th field after it.
        let (_, fields) = stat.rsplit_once(')').context("no name")?;
        let ticks: Vec<u64> = fields.split_ascii_whitespace().skip(11).take(2).map(str::parse).collect::<Result<_, _>>()?;
        ensure!(ticks.len() == 2, "no times");
        Ok(ticks.iter().sum::<u64>() * (1_000_000 / TICKS_PER_SECOND))
    }

    fn proc(&self, file: &str) -> Result<String> {
        let pid = self.child.id().with_context(|| format!("{} has ended", self.name))?;
        std::fs::read_to_string(format!("/proc/{pid}/{file}")).with_context(|| format!("{} has ended", self.name))
    }

    /// Ends it.
    pub(crate) async fn end(mut self) -> Result<()> {
        if self.stdin.take().is_some() && tokio::time::timeout(END_MAX, self.child.wait()).await.is_ok() {
            return Ok(());
        }
        self.child.kill().await.map_err(|error| anyhow!("end {}: {error}", self.name))
    }
}
