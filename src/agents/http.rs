//! Agents behind an HTTP endpoint (interface.md, "Agents").
//!
//! A call is one POST with the same object that a process agent reads, the answer the same object as JSON or as the last of a stream of
//! server-sent events. Health is polled where the definition names a URL: one bad answer takes the agent out, one good answer brings it
//! back. No redirects, no proxies, and private addresses only where the definition allows them, checked on what a name resolves to
//! (threat T25). The token is read when it is needed and never leaves the node (AMP-6).

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::header::{ACCEPT, CONTENT_TYPE};
use tokio::sync::{mpsc, watch};
use tokio::task::coop::consume_budget;
use tokio::time::sleep_until;
use tokio_util::sync::CancellationToken;

use super::definition::is_public;
use super::events::{Events, TooLarge};
use super::exchange::{Answer, Attached, Health, Invocation, Reply, cancelled, off_workers, request, stopped, timed_out};
use crate::model::{CapabilityName, ErrorCode, Failure, HealthCheck, printable};

/// What an answer may have beside the largest output.
const BODY_BYTES_SPARE: usize = 64 * 1024;
/// Largest stream of events, all chunks together, in outputs of the largest size.
const STREAM_OUTPUTS_MAX: usize = 64;
/// How long connecting may take.
const CONNECT_MAX: Duration = Duration::from_secs(5);

/// Where the bearer token is found.
#[derive(Debug, Clone)]
pub(super) struct Token {
    file: Option<String>,
    variable: Option<String>,
}

impl Token {
    pub(super) fn new(file: Option<String>, variable: Option<String>) -> Self {
        Self { file, variable }
    }

    async fn read(&self) -> Result<Option<String>, String> {
        if let Some(file) = &self.file {
            let text = tokio::fs::read_to_string(file).await.map_err(|error| format!("token_file {file}: {error}"))?;
            return Ok(Some(text.trim().to_owned()));
        }
        match &self.variable {
            Some(variable) => std::env::var(variable).map(Some).map_err(|_| format!("token_env {variable} is not set")),
            None => Ok(None),
        }
    }
}

/// Resolves names, and lets only permitted addresses through.
struct Guard;

impl Resolve for Guard {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let public: Vec<SocketAddr> = found.filter(|address| is_public(address.ip())).collect();
            if public.is_empty() {
                return Err("it resolves to a private address only; set adapter.allow_private if that is meant".into());
            }
            Ok(Box::new(public.into_iter()) as Addrs)
        })
    }
}

/// One HTTP agent.
pub(super) struct HttpAgent {
    name: String,
    endpoint: String,
    token: Token,
    client: Result<reqwest::Client, String>,
    body_bytes_max: usize,
    stop: CancellationToken,
}

impl HttpAgent {
    pub(super) fn start(attached: Attached<'_>, endpoint: &str, health: Option<HealthCheck>, token: Token, allow_private: bool) -> Self {
        let Attached { name, output_bytes_max, report, stop } = attached;
        let builder = reqwest::Client::builder()
            .connect_timeout(CONNECT_MAX)
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .user_agent(concat!("meshwork/", env!("CARGO_PKG_VERSION")));
        let builder = if allow_private { builder } else { builder.dns_resolver(Arc::new(Guard)) };
        let client = builder.build().map_err(|error| error.to_string());
        if let (Some(health), Ok(client)) = (health, &client) {
            // Nobody is sent there before it was seen to be well.
            let _ = report.send(Health::Down("its health has not been checked yet".to_owned()));
            tokio::spawn(watch_health(name.to_owned(), health, client.clone(), token.clone(), report, stop.clone()));
        } else if let Err(error) = &client {
            let _ = report.send(Health::Down(error.clone()));
        } else {
            // Keeps the channel open for the life of the agent.
            let stop = stop.clone();
            tokio::spawn(async move {
                stop.cancelled().await;
                drop(report);
            });
        }
        let body_bytes_max = output_bytes_max.saturating_add(BODY_BYTES_SPARE);
        Self { name: name.to_owned(), endpoint: endpoint.to_owned(), token, client, body_bytes_max, stop }
    }

    pub(super) async fn run(
        &self,
        invocation: &Invocation,
        capability: &CapabilityName,
        cancel: &CancellationToken,
    ) -> Result<Answer, Failure> {
        tokio::select! {
            answer = self.post(invocation, capability) => answer,
            () = cancel.cancelled() => Err(cancelled()),
            () = self.stop.cancelled() => Err(stopped(&self.name)),
            () = sleep_until(invocation.deadline) => Err(timed_out(&self.name)),
        }
    }

    async fn post(&self, invocation: &Invocation, capability: &CapabilityName) -> Result<Answer, Failure> {
        let client = self.client.as_ref().map_err(|error| self.failed(error))?;
        let token = self.token.read().await.map_err(|error| self.failed(&error).retryable(false))?;
        let post =
            client.post(&self.endpoint).header(CONTENT_TYPE, "application/json").header(ACCEPT, "application/json, text/event-stream");
        let post = post.body(request(invocation, capability)?);
        let post = token.into_iter().fold(post, |post, token| post.bearer_auth(token));
        let response = post.send().await.map_err(|error| self.failed(&root_cause(&error)))?;
        let status = response.status();
        let is_stream = response.headers().get(CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"text/event-stream"));
        if status.is_success() && is_stream {
            return self.read_events(response, invocation.chunks.as_ref()).await;
        }
        let body = self.read_body(response).await?;
        let reply: Option<Reply> = off_workers(body.len(), || serde_json::from_slice(&body).ok());
        match reply.and_then(|reply| reply.end(&self.name)) {
            Some(end) if status.is_success() || end.is_err() => end,
            Some(_) | None if status.is_success() => Err(self.failed("its answer has neither output nor error").retryable(false)),
            Some(_) | None => {
                let retryable = status.is_server_error() || status.as_u16() == 429;
                Err(self.failed(&format!("HTTP {status}")).retryable(retryable).with("http_status", status.as_u16()))
            }
        }
    }

    async fn read_body(&self, response: reqwest::Response) -> Result<Vec<u8>, Failure> {
        let mut body = Vec::new();
        let mut stream = response.bytes_stream();
        while let Some(piece) = stream.next().await {
            body.extend_from_slice(&piece.map_err(|error| self.failed(&root_cause(&error)))?);
            if body.len() > self.body_bytes_max {
                return Err(self.failed(&format!("its answer has more than {} bytes", self.body_bytes_max)).retryable(false));
            }
        }
        Ok(body)
    }

    async fn read_events(&self, response: reqwest::Response, chunks: Option<&mpsc::Sender<Bytes>>) -> Result<Answer, Failure> {
        let stream_bytes_max = self.body_bytes_max.saturating_mul(STREAM_OUTPUTS_MAX);
        let too_large = |what: &str, bytes_max: usize| self.failed(&format!("{what} has more than {bytes_max} bytes")).retryable(false);
        let (mut events, mut read) = (Events::new(self.body_bytes_max), 0_usize);
        let mut pieces = response.bytes_stream();
        while let Some(piece) = pieces.next().await {
            let piece = piece.map_err(|error| self.failed(&root_cause(&error)))?;
            read = read.saturating_add(piece.len());
            if read > stream_bytes_max {
                return Err(too_large("its stream", stream_bytes_max));
            }
            events.feed(piece);
            while let Some(data) = events.next().map_err(|TooLarge| too_large("an event of its stream", self.body_bytes_max))? {
                // Many small events are one piece, for which nothing is waited.
                consume_budget().await;
                let mut reply: Option<Reply> = serde_json::from_slice(&data).ok();
                if let Some(chunk) = reply.as_mut().and_then(|reply| reply.take_chunk(&self.name)) {
                    let chunk = chunk?;
                    if let Some(chunks) = chunks {
                        // Nothing is read while a chunk waits for its reader, so that the agent comes to wait as well.
                        let _ = chunks.send(chunk).await;
                    }
                    continue;
                }
                if let Some(end) = reply.and_then(|reply| reply.end(&self.name)) {
                    return end;
                }
            }
        }
        Err(self.failed("its stream ended without output or error"))
    }

    fn failed(&self, reason: &str) -> Failure {
        Failure::new(ErrorCode::AgentFailed, format!("agent `{}`: {}", self.name, printable(reason, 200)))
    }
}

fn root_cause(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}

async fn watch_health(
    name: String,
    health: HealthCheck,
    client: reqwest::Client,
    token: Token,
    report: watch::Sender<Health>,
    stop: CancellationToken,
) {
    let mut ticks = tokio::time::interval(Duration::from_millis(health.interval_ms));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = stop.cancelled() => return,
        }
        let now = match check(&health, &client, &token).await {
            Ok(()) => Health::Up,
            Err(reason) => Health::Down(reason),
        };
        report.send_if_modified(|before| {
            let changed = std::mem::discriminant(before) != std::mem::discriminant(&now);
            if changed {
                tracing::info!(agent = name, health = ?now, "an agent's health changed");
                *before = now;
            }
            changed
        });
    }
}

async fn check(health: &HealthCheck, client: &reqwest::Client, token: &Token) -> Result<(), String> {
    let get = client.get(&health.url).timeout(Duration::from_millis(health.timeout_ms));
    let get = token.read().await?.into_iter().fold(get, |get, token| get.bearer_auth(token));
    let response = get.send().await.map_err(|error| format!("health check: {}", root_cause(&error)))?;
    if response.status().is_success() { Ok(()) } else { Err(format!("health check: HTTP {}", response.status())) }
}
