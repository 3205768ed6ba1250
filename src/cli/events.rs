//! `meshwork events`: what happens on the node, as it happens.
//!
//! One line per event, `{"event":NAME,"data":...}`, with or without `--json`: the stream is made for programs, and a person reads it as
//! well. It ends with Ctrl-C, or with exit code 3 when the node goes away.

use eventsource_stream::{EventStreamError, Eventsource as _};
use futures::StreamExt as _;
use serde_json::{Value, json};

use super::{CliError, Global, client::Client};

/// Arguments of `events`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  meshwork events | jq -c 'select(.event | startswith(\"agent\"))'")]
pub(crate) struct Args {}

/// Prints events until the stream ends.
pub(crate) async fn run(Args {}: Args, global: &Global) -> Result<(), CliError> {
    let client = Client::new(global)?;
    let gone = |why: &str| {
        CliError::unreachable(format!("the node at {} {why}", client.address())).hint("`meshwork status` says whether it is back")
    };
    let mut events = client.follow(&["v1", "events"], &[]).await?.bytes_stream().eventsource();
    while let Some(event) = events.next().await {
        let event = event.map_err(|error| match error {
            EventStreamError::Transport(_) => gone("went away"),
            EventStreamError::Utf8(_) | EventStreamError::Parser(_) => gone("sent something that is not an event"),
        })?;
        let data = serde_json::from_str(&event.data).unwrap_or(Value::String(event.data));
        global.screen.line(&json!({ "event": event.event, "data": data }))?;
    }
    Err(gone("ended the stream"))
}
