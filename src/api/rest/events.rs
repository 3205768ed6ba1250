//! What happens on the node, as server-sent events.

use std::convert::Infallible;
use std::time::Duration;

use axum::extract::State;
use axum::response::sse::{Event, KeepAlive, Sse};
use futures::{Stream, StreamExt};
use tokio_stream::wrappers::BroadcastStream;

use crate::node::Handle;

/// Follows agents and peers. A listener that reads too slowly gets a `missed` event with the number that it lost.
#[utoipa::path(get, path = "/v1/events", responses((status = 200, description = "Server-sent events", content_type = "text/event-stream", body = String)))]
pub(super) async fn events(State(handle): State<Handle>) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let stream = BroadcastStream::new(handle.events()).map(|event| {
        let (name, data) = match event {
            Ok(event) => event.parts(),
            Err(tokio_stream::wrappers::errors::BroadcastStreamRecvError::Lagged(missed)) => {
                ("missed", serde_json::json!({ "events": missed }))
            }
        };
        Ok(Event::default().event(name).data(data.to_string()))
    });
    Sse::new(stream).keep_alive(KeepAlive::new().interval(Duration::from_secs(15)))
}
