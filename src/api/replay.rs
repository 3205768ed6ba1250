//! Events that can be told again, as server-sent events: each with its number, so that a stream that broke off goes on where it was.

use std::convert::Infallible;
use std::time::Duration;

use axum::http::HeaderMap;
use axum::response::sse::{Event, KeepAlive, Sse};
use futures::{Stream, StreamExt};

use super::ApiError;
use crate::node::EventStream;

/// After which event a client goes on. The header is the later word where both are given: browsers send it when they connect again, to an
/// address that still says `after`.
pub(super) fn after(headers: &HeaderMap, after: Option<u64>) -> Option<u64> {
    let last = headers.get("last-event-id").and_then(|value| value.to_str().ok()).and_then(|text| text.parse().ok());
    last.or(after)
}

/// The stream as its client reads it; what ends it too early is its last event.
pub(super) fn replay(stream: EventStream) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let stream = stream.map(|event| {
        Ok(match event {
            Ok(event) => Event::default().id(event.index.to_string()).event(event.name).data(event.data.to_string()),
            Err(failure) => Event::default().event("error").data(ApiError::from(failure).document().to_string()),
        })
    });
    Sse::new(stream).keep_alive(KeepAlive::new().interval(Duration::from_secs(15)))
}
