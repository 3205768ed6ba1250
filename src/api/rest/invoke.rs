//! Calls.

use std::convert::Infallible;
use std::time::Duration;

use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use super::super::ApiError;
use super::body::Body;
use super::types::{ErrorDocument, InvokeBody, as_agent_id, invoked};
use crate::model::{ErrorCode, Failure, InvocationId};
use crate::node::{Handle, InvokeRequest};

/// Has an agent do something (AMP-4). Closing the connection cancels the call, unless others wait for it under its key.
#[utoipa::path(
    post, path = "/v1/invoke", request_body = InvokeBody,
    responses((status = 200, description = "Output, who did it, and what it cost", body = serde_json::Value), (status = "default", description = "Why not", body = ErrorDocument))
)]
pub(super) async fn invoke(State(handle): State<Handle>, headers: HeaderMap, Body(body): Body<InvokeBody>) -> Result<Response, ApiError> {
    let agent = match &body.agent_id {
        None => None,
        Some(text) => match as_agent_id(text) {
            Some(agent) => Some(agent),
            None => Some(handle.agent(text).await?.entry.record.agent),
        },
    };
    let input = body.input.map_or_else(|| "{}".to_owned(), |input| input.get().to_owned());
    let request = InvokeRequest {
        id: body.invocation_id,
        version: body.version,
        agent,
        parent: body.parent,
        timeout: body.timeout_ms.map(Duration::from_millis),
        priority: body.priority.unwrap_or_default(),
        key: body.idempotency_key,
        constraints: body.constraints.into(),
        traceparent: headers.get("traceparent").and_then(|value| value.to_str().ok()).map(str::to_owned),
        explain: body.explain,
        first_chunk: body.first_chunk_timeout_ms.map(Duration::from_millis),
        idle: body.idle_timeout_ms.map(Duration::from_millis),
        ..InvokeRequest::new(body.capability, input.into())
    };
    // The invocation's id is as long as a trace id, and stands in where the client brought no trace.
    let id = request.id.unwrap_or_else(|| InvocationId::from_random(rand::random()));
    let traced = request.traceparent.as_deref().and_then(|text| text.split('-').nth(1)).map(str::to_owned);
    let trace_id = Some(traced.unwrap_or_else(|| id.to_string()));
    let request = InvokeRequest { id: Some(id), ..request };
    let here = handle.node_id();
    let (sender, chunks) = body.stream.then(|| mpsc::channel(1)).unzip();
    let request = InvokeRequest { chunks: sender, ..request };
    let call = async move {
        let reply = handle.invoke(request).await.map_err(|failure| ApiError { failure, trace_id })?;
        Ok::<String, ApiError>(invoked(&reply, here))
    };
    let Some(chunks) = chunks else {
        return Ok(([(header::CONTENT_TYPE, "application/json")], call.await?).into_response());
    };
    // A task of its own hears of a cancel or the deadline also while the client reads nothing; it ends with the connection.
    let call = AbortOnDropHandle::new(tokio::spawn(call));
    let events = futures::stream::unfold(Answering::Running(call, chunks), |answering| answering.next());
    Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(Duration::from_secs(15))).into_response())
}

/// A streamed answer on its way: the next chunk is asked for when the client has taken the one before.
enum Answering {
    Running(AbortOnDropHandle<Result<String, ApiError>>, mpsc::Receiver<Bytes>),
    Ending(Event, mpsc::Receiver<Bytes>),
    Over,
}

impl Answering {
    async fn next(self) -> Option<(Result<Event, Infallible>, Self)> {
        let (end, mut chunks) = match self {
            Self::Running(mut call, mut chunks) => tokio::select! {
                biased;
                Some(chunk) = chunks.recv() => return Some((Ok(chunk_event(&chunk)), Self::Running(call, chunks))),
                // A failure comes as an event too: the stream has begun with status 200 by then.
                result = &mut call => (match result {
                    Ok(Ok(document)) => Event::default().event("result").data(document),
                    Ok(Err(error)) => failed(&error),
                    Err(_) => failed(&Failure::new(ErrorCode::Internal, "the call broke off").into()),
                }, chunks),
            },
            Self::Ending(end, chunks) => (end, chunks),
            Self::Over => return None,
        };
        match chunks.recv().await {
            Some(chunk) => Some((Ok(chunk_event(&chunk)), Self::Ending(end, chunks))),
            None => Some((Ok(end), Self::Over)),
        }
    }
}

fn failed(error: &ApiError) -> Event {
    Event::default().event("error").data(error.document().to_string())
}

fn chunk_event(chunk: &[u8]) -> Event {
    Event::default().event("chunk").data(String::from_utf8_lossy(chunk))
}

/// Cancels a call that a client of this node waits for.
#[utoipa::path(
    delete, path = "/v1/invocations/{id}", params(("id" = String, Path)),
    responses((status = 204, description = "Cancelled"), (status = 404, description = "No such call runs"))
)]
pub(super) async fn cancel(State(handle): State<Handle>, Path(id): Path<String>) -> Result<StatusCode, ApiError> {
    let id: InvocationId =
        id.parse().map_err(|error: crate::model::ParseError| Failure::new(ErrorCode::InvalidRequest, error.to_string()))?;
    if handle.cancel(id) {
        return Ok(StatusCode::NO_CONTENT);
    }
    Err(Failure::new(ErrorCode::TaskNotFound, format!("no call {id} of this node's clients is running")).into())
}
