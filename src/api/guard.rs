//! Who may speak to the API (threat T24): a browser page must not reach it through a name it controls, nor without the token.
//!
//! Host must be loopback or configured, a foreign Origin is refused, and everything but `/health` needs the bearer token, compared
//! without telling by its time how much of it was right. Who has it may still ask for work only as often as the configuration says.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::ApiError;
use crate::model::{ErrorCode, Failure};
use crate::node::Handle;

/// What the guard compares with.
#[derive(Clone)]
pub(super) struct Guard {
    handle: Handle,
    /// BLAKE3 of the token: hashes are compared, in constant time.
    token: blake3::Hash,
    hosts: Arc<[String]>,
    origins: Arc<[String]>,
}

impl Guard {
    pub(super) fn new(handle: &Handle) -> Self {
        let api = &handle.config().api;
        Self {
            handle: handle.clone(),
            token: blake3::hash(handle.token().as_bytes()),
            hosts: api.allowed_hosts.iter().map(|host| host.to_ascii_lowercase()).collect(),
            origins: api.allowed_origins.iter().map(|origin| origin.to_ascii_lowercase()).collect(),
        }
    }

    fn check(&self, method: &Method, uri: &Uri, headers: &HeaderMap) -> Result<(), Failure> {
        let denied = |message: String| Err(Failure::new(ErrorCode::AccessDenied, message));
        let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).or_else(|| uri.host());
        match host.map(str::to_ascii_lowercase) {
            Some(host) if self.is_known_host(&host) => {}
            Some(host) => {
                let shown = crate::model::printable(&host, 80);
                return denied(format!("the host `{shown}` is not allowed; add it to api.allowed_hosts if it is yours"));
            }
            None => return denied("the request names no host".to_owned()),
        }
        for origin in headers.get_all(header::ORIGIN) {
            let origin = origin.to_str().unwrap_or("?").to_ascii_lowercase();
            let own = origin.strip_prefix("http://").is_some_and(|host| self.is_known_host(host));
            if !own && !self.origins.contains(&origin) {
                let shown = crate::model::printable(&origin, 80);
                return denied(format!("the origin `{shown}` is not allowed; add it to api.allowed_origins if it is yours"));
            }
        }
        if uri.path() == "/health" {
            return Ok(());
        }
        let given = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let token = given.and_then(|value| value.strip_prefix("Bearer ").or_else(|| value.strip_prefix("bearer ")));
        match token {
            Some(token) if blake3::hash(token.trim().as_bytes()) == self.token => {
                // Who looks on or cancels makes no work.
                if method == Method::POST { self.handle.admit_client() } else { Ok(()) }
            }
            Some(_) => Err(Failure::new(ErrorCode::AuthenticationFailed, "the bearer token is wrong")),
            None => {
                let message = "a bearer token is needed; it is in the file api-token of the node's data directory";
                Err(Failure::new(ErrorCode::AuthenticationFailed, message))
            }
        }
    }

    fn is_known_host(&self, host: &str) -> bool {
        let name = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((ip, _)) => ip,
            None => host.rsplit_once(':').map_or(host, |(name, _)| name),
        };
        let loopback = name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback()) || name == "localhost";
        loopback || self.hosts.iter().any(|known| known == host || known == name)
    }
}

/// Lets a request through, or answers it with what is wrong.
pub(super) async fn check(State(guard): State<Guard>, request: Request, next: Next) -> Response {
    match guard.check(request.method(), request.uri(), request.headers()) {
        Ok(()) => next.run(request).await,
        Err(failure) => ApiError::from(failure).into_response(),
    }
}
