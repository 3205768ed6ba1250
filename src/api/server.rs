//! The HTTP server: binds loopback, bounds what it reads, stops with the node.

use std::net::SocketAddr;

use axum::extract::DefaultBodyLimit;
use axum::http::{Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::{Json, Router};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::guard::{self, Guard};
use super::{ApiError, aitp, rest};
use crate::model::{ErrorCode, Failure, nearest};
use crate::node::Handle;

/// A bound listener.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
}

/// Binds the API's address, so that a port in use is known before the node starts.
///
/// # Errors
/// What the system says, with the setting to change.
pub async fn bind(address: SocketAddr) -> Result<Server, String> {
    let failed =
        |error: std::io::Error| format!("cannot listen on {address} for the API: {error} (api.listen or --api; port 0 picks a free one)");
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    Ok(Server { listener, address })
}

impl Server {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers clients until `stop` is cancelled.
    pub async fn run(self, handle: Handle, stop: CancellationToken) {
        let bytes_max = usize::try_from(handle.config().limits.http_body_bytes_max).unwrap_or(usize::MAX);
        let app = Router::new()
            .merge(rest::router())
            .fallback(unknown_path)
            .method_not_allowed_fallback(unknown_method)
            .layer(DefaultBodyLimit::max(bytes_max))
            .layer(axum::middleware::from_fn_with_state(Guard::new(&handle), guard::check))
            .with_state(handle);
        let served = axum::serve(self.listener, app).with_graceful_shutdown(async move { stop.cancelled().await });
        if let Err(error) = served.await {
            tracing::error!(%error, "the API stopped");
        }
    }
}

async fn unknown_path(uri: Uri) -> Response {
    let path = uri.path();
    let failure = Failure::new(ErrorCode::InvalidRequest, format!("there is nothing at {}", crate::model::printable(path, 120)));
    let error = ApiError::from(match nearest(path, rest::PATHS.iter().chain(aitp::PATHS).copied()) {
        Some(near) => failure.with("suggestion", near),
        None => failure.with("suggestion", "see /openapi.json"),
    });
    // The request is at fault, but HTTP has words of its own for a wrong path and a wrong method.
    (StatusCode::NOT_FOUND, Json(error.document())).into_response()
}

async fn unknown_method(method: Method, uri: Uri) -> Response {
    let path = crate::model::printable(uri.path(), 120);
    let failure = Failure::new(ErrorCode::InvalidRequest, format!("{path} does not take {method}"));
    let error = ApiError::from(failure.with("suggestion", "see /openapi.json"));
    (StatusCode::METHOD_NOT_ALLOWED, Json(error.document())).into_response()
}
