//! HTTP: an axum echo over kept connections.
//!
//! Two processes, HTTP/1.1 in the clear. The client is hyper's own connection, one per caller: HTTP/1.1 answers in order, so a connection
//! carries one call at a time, and there is nothing between caller and connection that could be left out. reqwest stands on the same
//! connection and adds a pool, redirects and the parsing of an address to every call.
//!
//! The server also plays engines for the rows of MAOP-10 and of overload: any path below `/engine` answers as an agent's endpoint does,
//! `/work/MS` so many milliseconds later.

use std::time::Duration;

use anyhow::{Result, ensure};
use axum::Router;
use axum::extract::{DefaultBodyLimit, Path};
use axum::routing::post;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::value::RawValue;
use tokio::net::{TcpListener, TcpStream};

use crate::load::{Caller, Contender};

/// Serves until the process ends.
pub(crate) async fn serve(ready: impl FnOnce(String) -> Result<()>) -> Result<()> {
    let app = Router::new()
        .route("/echo", post(|body: Bytes| async { body }))
        .route("/engine/{name}", post(engine))
        .route("/work/{ms}", post(work))
        .layer(DefaultBodyLimit::disable());
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    ready(listener.local_addr()?.to_string())?;
    use axum::serve::ListenerExt;
    Ok(axum::serve(listener.tap_io(|socket| drop(socket.set_nodelay(true))), app).await?)
}

#[derive(serde::Deserialize)]
struct Invocation {
    input: Box<RawValue>,
}

async fn engine(body: Bytes) -> (StatusCode, [(hyper::header::HeaderName, &'static str); 1], String) {
    let answer = match serde_json::from_slice::<Invocation>(&body) {
        Ok(invocation) => (StatusCode::OK, format!("{{\"output\":{}}}", invocation.input)),
        Err(error) => (StatusCode::BAD_REQUEST, error.to_string()),
    };
    (answer.0, [(CONTENT_TYPE, "application/json")], answer.1)
}

async fn work(Path(ms): Path<u64>, body: Bytes) -> (StatusCode, [(hyper::header::HeaderName, &'static str); 1], String) {
    tokio::time::sleep(Duration::from_millis(ms)).await;
    engine(body).await
}

/// A server to call.
#[derive(Debug)]
pub(crate) struct Http {
    address: String,
}

impl Http {
    /// The server at this address.
    pub(crate) fn new(address: String) -> Self {
        Self { address }
    }
}

impl Contender for Http {
    type Caller = Connection;

    async fn caller(&self) -> Result<Connection> {
        let socket = TcpStream::connect(&self.address).await?;
        socket.set_nodelay(true)?;
        let (sender, connection) = http1::handshake(TokioIo::new(socket)).await?;
        tokio::spawn(connection);
        Ok(Connection { sender, host: self.address.clone() })
    }
}

/// One kept connection.
#[derive(Debug)]
pub(crate) struct Connection {
    sender: SendRequest<Full<Bytes>>,
    host: String,
}

impl Caller for Connection {
    async fn call(&mut self, payload: Bytes) -> Result<Bytes> {
        let request = Request::post("/echo").header(HOST, &self.host).body(Full::new(payload))?;
        self.sender.ready().await?;
        let response = self.sender.send_request(request).await?;
        ensure!(response.status() == StatusCode::OK, "HTTP {}", response.status());
        Ok(response.into_body().collect().await?.to_bytes())
    }
}
