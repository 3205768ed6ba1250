//! The node's HTTP API, as the verbs use it.
//!
//! The token goes to nobody but the node that was named: no proxies, no redirects, and without encryption to this machine only. An
//! answer that is neither the node's JSON nor its error document means that something else listens there, which is said as such.

use eventsource_stream::{EventStreamError, Eventsource as _};
use futures::StreamExt as _;
use std::{error::Error, net::IpAddr, time::Duration};

use reqwest::{Method, RequestBuilder, Response, StatusCode, Url};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;

use super::{
    error::{Body, CliError},
    global::{Global, Token},
};

/// How long a node on the same machine or behind one hop may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long an answer may take when the verb has no time limit of its own.
pub(crate) const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// A node's API.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    http: reqwest::Client,
    base: Url,
    token: Option<Token>,
}

impl Client {
    /// The client for the node that the flags and the environment name, with its token.
    ///
    /// # Errors
    /// When the address or the token is missing or wrong.
    pub(crate) fn new(global: &Global) -> Result<Self, CliError> {
        Ok(Self { token: Some(global.token()?), ..Self::without_token(global)? })
    }

    /// The same client for what needs no token.
    ///
    /// # Errors
    /// When the address is wrong.
    pub(crate) fn without_token(global: &Global) -> Result<Self, CliError> {
        let base = address(&global.api())?;
        let builder = reqwest::Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none()).connect_timeout(CONNECT_TIMEOUT);
        let http = builder.build().map_err(|error| CliError::internal(format!("failed to set up HTTP: {}", cause(&error))))?;
        Ok(Self { http, base, token: None })
    }

    /// The node's address, as messages show it.
    pub(crate) fn address(&self) -> &str {
        self.base.as_str().trim_end_matches('/')
    }

    /// Whether anything answers as a node does.
    pub(crate) async fn reach(&self) -> Result<(), CliError> {
        self.open(self.http.get(self.url(&["health"])).timeout(CONNECT_TIMEOUT)).await.map(drop)
    }

    /// Reads something.
    pub(crate) async fn get(&self, path: &[&str], query: &[(&str, &str)]) -> Result<Value, CliError> {
        self.send(self.http.get(self.url_with(path, query)).timeout(ANSWER_TIMEOUT)).await
    }

    /// Sends a document, and waits for the answer as long as `timeout`.
    pub(crate) async fn post(&self, path: &[&str], body: &Value, timeout: Duration) -> Result<Value, CliError> {
        self.send(self.http.post(self.url(path)).json(body).timeout(timeout)).await
    }

    /// Sends a document that is taken once, however often it is sent with the same `key`.
    pub(crate) async fn post_once(&self, path: &[&str], body: &Value, key: &str) -> Result<Value, CliError> {
        self.send(self.http.post(self.url(path)).header("idempotency-key", key).json(body).timeout(ANSWER_TIMEOUT)).await
    }

    /// Sets something that its path names.
    pub(crate) async fn put(&self, path: &[&str], timeout: Duration) -> Result<Value, CliError> {
        self.send(self.http.put(self.url(path)).timeout(timeout)).await
    }

    /// Sets what its path names to a document.
    pub(crate) async fn put_document(&self, path: &[&str], query: &[(&str, &str)], body: &Value) -> Result<Value, CliError> {
        self.send(self.http.put(self.url_with(path, query)).json(body).timeout(ANSWER_TIMEOUT)).await
    }

    /// Changes something.
    pub(crate) async fn patch(&self, path: &[&str], query: &[(&str, &str)], body: &Value) -> Result<Value, CliError> {
        self.send(self.http.patch(self.url_with(path, query)).json(body).timeout(ANSWER_TIMEOUT)).await
    }

    /// Removes or cancels something.
    pub(crate) async fn delete(&self, path: &[&str], timeout: Duration) -> Result<Value, CliError> {
        self.send(self.http.request(Method::DELETE, self.url(path)).timeout(timeout)).await
    }

    /// Opens a stream of events; only connecting is limited in time.
    pub(crate) async fn follow(&self, path: &[&str], query: &[(&str, &str)]) -> Result<Response, CliError> {
        self.open(self.http.get(self.url_with(path, query)).header("accept", "text/event-stream")).await
    }

    /// Sends a document whose answer comes in events: each but the last is given to `each`, and the last is the answer.
    pub(crate) async fn post_for_events(
        &self,
        path: &[&str],
        body: &Value,
        timeout: Duration,
        mut each: impl FnMut(&Value) -> Result<(), CliError>,
    ) -> Result<Value, CliError> {
        let request = self.http.post(self.url(path)).json(body).header("accept", "text/event-stream").timeout(timeout);
        let mut events = self.open(request).await?.bytes_stream().eventsource();
        while let Some(event) = events.next().await {
            let event = event.map_err(|error| match error {
                EventStreamError::Transport(error) => self.failed(&error),
                EventStreamError::Utf8(_) | EventStreamError::Parser(_) => self.stranger("it sends something that is not an event"),
            })?;
            let data: Value = serde_json::from_str(&event.data).map_err(|_| self.stranger("an event of it is not JSON"))?;
            match event.event.as_str() {
                "result" => return Ok(data),
                "error" => {
                    return Err(read::<ErrorDocument>(&data).map_or_else(|error| error, |document| CliError::answered(document.error)));
                }
                _ => each(&data)?,
            }
        }
        Err(self.stranger("it ends the stream without a result"))
    }

    fn url(&self, path: &[&str]) -> Url {
        let mut url = self.base.clone();
        // Only URLs without a host cannot have a path, and `address` lets none of them in.
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(path);
        }
        url
    }

    fn url_with(&self, path: &[&str], query: &[(&str, &str)]) -> Url {
        let mut url = self.url(path);
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        url
    }

    async fn send(&self, request: RequestBuilder) -> Result<Value, CliError> {
        let response = self.open(request).await?;
        let status = response.status();
        let bytes = response.bytes().await.map_err(|error| self.failed(&error))?;
        if status == StatusCode::NO_CONTENT || bytes.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&bytes).map_err(|_| self.stranger("what it answers is not JSON"))
    }

    /// Sends and turns every status but success into an error.
    async fn open(&self, request: RequestBuilder) -> Result<Response, CliError> {
        let request = match &self.token {
            Some(token) => request.bearer_auth(token.secret.as_str()),
            None => request,
        };
        let response = request.send().await.map_err(|error| self.failed(&error))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let bytes = response.bytes().await.map_err(|error| self.failed(&error))?;
        let document: ErrorDocument =
            serde_json::from_slice(&bytes).map_err(|_| self.stranger(&format!("it answers with HTTP status {}", status.as_u16())))?;
        let error = CliError::answered(document.error);
        Err(match &self.token {
            Some(token) if status == StatusCode::UNAUTHORIZED => error.hint(format!(
                "the token came from {}; if the node at {} keeps its data elsewhere, pass --data-dir DIR or set MESHWORK_TOKEN",
                token.origin,
                self.address()
            )),
            _ => error,
        })
    }

    fn failed(&self, error: &reqwest::Error) -> CliError {
        let address = self.address();
        if error.is_timeout() && !error.is_connect() {
            return CliError::timeout(format!("the node at {address} did not answer in time"));
        }
        let message = if error.is_connect() {
            format!("no node answers at {address}: {}", cause(error))
        } else {
            format!("the connection to {address} broke: {}", cause(error))
        };
        CliError::unreachable(message).hint("start a node with `meshwork up`, or name another with --api URL or MESHWORK_API")
    }

    fn stranger(&self, what: &str) -> CliError {
        let message = format!("{} does not answer like a Meshwork node: {what}", self.address());
        CliError::unreachable(message).hint("does something else listen there? Name the node with --api URL or MESHWORK_API")
    }
}

#[derive(Deserialize)]
struct ErrorDocument {
    error: Body,
}

/// What a verb shows of an answer.
///
/// # Errors
/// When the answer has another shape: the node is of another version.
pub(crate) fn read<T: DeserializeOwned>(answer: &Value) -> Result<T, CliError> {
    T::deserialize(answer).map_err(|error| {
        CliError::internal(format!("the node's answer has an unexpected shape: {error}"))
            .hint("compare `meshwork --version` with the node's in `meshwork status --json`; --json shows any answer as it is")
    })
}

/// The URL of an API that was written as a URL or as HOST:PORT.
fn address(text: &str) -> Result<Url, CliError> {
    let full = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
    let wrong = |why: &str| CliError::usage(format!("`{text}` is not the address of an API: {why}"));
    let example = format!("write it like {} or 127.0.0.1:7480", super::global::API_DEFAULT);
    let url = Url::parse(&full).map_err(|error| wrong(&error.to_string()).hint(example.clone()))?;
    let host = url.host_str().unwrap_or_default();
    match url.scheme() {
        "https" => Ok(url),
        "http" if is_loopback(host) => Ok(url),
        "http" => Err(wrong("without encryption the token is sent to this machine only")
            .hint("use https://, or forward a local port to the node, for example with ssh -L 7480:127.0.0.1:7480")),
        scheme => Err(wrong(&format!("`{scheme}` is not http or https")).hint(example)),
    }
}

fn is_loopback(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || bare.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// The innermost reason, which is the one a person can act on.
fn cause(error: &reqwest::Error) -> String {
    let mut reason: &dyn Error = error;
    while let Some(inner) = reason.source() {
        reason = inner;
    }
    if error.is_timeout() { "no answer in time".to_owned() } else { reason.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::error::Exit;

    #[test]
    fn an_address_may_be_a_url_or_host_and_port() {
        for (text, url) in [
            ("127.0.0.1:7480", "http://127.0.0.1:7480/"),
            ("localhost:1", "http://localhost:1/"),
            ("http://[::1]:7480/", "http://[::1]:7480/"),
            ("https://mesh.example.org/node", "https://mesh.example.org/node"),
        ] {
            assert_eq!(address(text).map(|url| url.to_string()), Ok(url.to_owned()));
        }
    }

    #[test]
    fn the_token_is_not_sent_in_the_clear_to_other_machines() {
        for text in ["http://10.0.0.1:7480", "mesh.example.org:7480", "http://localhost.example.org", "ftp://127.0.0.1", ":7480", ""] {
            assert_eq!(address(text).expect_err(text).exit(), Exit::Usage, "{text}");
        }
    }
}
