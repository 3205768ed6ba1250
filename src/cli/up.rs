//! `meshwork up`: a node until SIGINT or SIGTERM.

use std::net::SocketAddr;
use std::path::PathBuf;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::{CliError, Global};
use crate::api;
use crate::config::{Config, Error as ConfigError, Flags, LogFormat, Sources};
use crate::node::{Node, State};
use crate::telemetry::start_log;

/// Arguments of `up`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  meshwork up                                              a node of its own; others join it
  meshwork up --join /ip4/192.0.2.7/tcp/7481/p2p/12D3...   a node that joins another
  meshwork up --config node.toml --json                    for scripts: one line when it is ready

Stops on Ctrl-C or SIGTERM: refuses new calls, waits for running ones, leaves the mesh, flushes. A second signal stops it at once.")]
pub(crate) struct Args {
    /// Configuration file; `meshwork config example` prints some.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// Where to listen for other nodes, instead of the configured addresses; may be given more than once.
    #[arg(long, value_name = "MULTIADDR")]
    listen: Vec<String>,

    /// A node to join through; may be given more than once.
    #[arg(long, value_name = "MULTIADDR")]
    join: Vec<String>,

    /// What people call this node.
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
}

/// Runs a node.
pub(crate) async fn run(args: Args, global: &Global) -> Result<(), CliError> {
    let config = load(args, global)?;
    let filter = global.env.text("MESHWORK_LOG").unwrap_or_else(|| config.telemetry.log.clone());
    let json_log = matches!(config.telemetry.format, LogFormat::Json);
    start_log(&filter, json_log).map_err(|error| CliError::usage(format!("telemetry.log: {error}")))?;
    // The port is taken before the node joins: a node whose API cannot be had must not appear in the mesh.
    let address: SocketAddr = config.api.address().map_err(|error| CliError::usage(format!("api.listen: {error}")))?;
    let server = api::bind(address).await.map_err(CliError::usage)?;
    let url = format!("http://{}", server.address());
    let node = Node::start(config).await.map_err(|error| CliError::usage(format!("cannot start: {error}")))?;
    let stop_api = CancellationToken::new();
    let api = tokio::spawn(server.run(node.handle.clone(), stop_api.clone()));
    let mut signals = Signals::new()?;
    tokio::select! {
        ready = announce(&node, &url, global) => {
            ready?;
            signals.wait().await;
        }
        () = signals.wait() => {}
    }
    tracing::info!("stopping; a second signal stops at once");
    tokio::select! {
        () = node.stop() => {}
        () = signals.wait() => tracing::warn!("stopped at once"),
    }
    stop_api.cancel();
    // Event streams stay open as long as their clients; they must not hold up the end.
    let _ = tokio::time::timeout(std::time::Duration::from_millis(200), api).await;
    Ok(())
}

fn load(args: Args, global: &Global) -> Result<Config, CliError> {
    let api = global.api.as_ref().map(|api| api.strip_prefix("http://").unwrap_or(api).trim_end_matches('/').to_owned());
    let flags = Flags { data_dir: global.data_dir.clone(), listen: args.listen, join: args.join, api, name: args.name };
    Config::load(Sources {
        file: args.config,
        env: global.env.iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
        flags,
    })
    .map_err(|error| broken(&error))
}

fn broken(error: &ConfigError) -> CliError {
    match error.faults() {
        [] | [_] => CliError::usage(format!("failed to {error}")),
        faults => {
            let listed: Vec<String> = faults.iter().map(ToString::to_string).collect();
            CliError::usage(format!("failed to accept the configuration: it has {} faults", faults.len())).with("faults", listed)
        }
    }
}

/// Waits until the node takes part, and says so.
async fn announce(node: &Node, url: &str, global: &Global) -> Result<(), CliError> {
    let mut state = node.handle.watch_state();
    if *state.borrow() == State::Joining && !global.json {
        global.screen.err("looking for the mesh ...\n");
    }
    let ended = state.wait_for(|state| *state != State::Joining).await.is_err();
    if ended {
        return Err(CliError::internal("the node broke off while it started"));
    }
    let view = node.handle.node().await?;
    if global.json {
        let document = serde_json::json!({ "event": "ready", "peer_id": view.node_id, "listen": view.listen, "api": url });
        return global.screen.line(&document);
    }
    let counts = view.counts;
    let mut text = format!("node {} ({})\n", view.name, view.node_id);
    for address in &view.listen {
        text.push_str(&format!("  listening on {address}\n"));
    }
    text.push_str(&format!("  API on {url}, token in {}\n", node.handle.config().token_file().display()));
    text.push_str(&format!("  {} peers, {} agents here, {} in the mesh\n", counts.peers, counts.agents_local, counts.agents_mesh));
    if let Some(address) = view.listen.first() {
        text.push_str(&format!("others join with: meshwork up --join {address}\n"));
    }
    global.screen.out(&text)
}

/// The signals that stop a node.
struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

impl Signals {
    fn new() -> Result<Self, CliError> {
        let listen = |kind| signal(kind).map_err(|error| CliError::internal(format!("cannot listen for signals: {error}")));
        Ok(Self { interrupt: listen(SignalKind::interrupt())?, terminate: listen(SignalKind::terminate())? })
    }

    async fn wait(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
