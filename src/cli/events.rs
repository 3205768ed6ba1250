//! `meshwork events`: what happens on the node, as it happens.
//!
//! One line per event, `{"event":NAME,"data":...}`, with or without `--json`: the stream is made for programs, and a person reads it as
//! well. It ends with Ctrl-C, or with exit code 3 when the node goes away.

use serde_json::json;

use super::{CliError, Global, client::Client};

/// Arguments of `events`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  meshwork events | jq -c 'select(.event | startswith(\"agent\"))'")]
pub(crate) struct Args {}

/// Prints events until the stream ends.
pub(crate) async fn run(Args {}: Args, global: &Global) -> Result<(), CliError> {
    let client = Client::new(global)?;
    client.follow_all(|event, data| global.screen.line(&json!({ "event": event, "data": data }))).await
}
