//! `meshwork bench`: measures this build on this machine.
//!
//! The agent's node is a process of its own, the caller's node is this one; they speak over loopback as two machines would, encrypted and
//! authenticated. Calls are made through the node's handle, so the figures hold for doors that add nothing. Tasks are durable, so theirs
//! depend on the disk; which one it was, and how fast it is by itself, stands beside them.

mod context;
mod find;
mod invoke;
mod measure;
mod pair;
mod task;
mod text;

use std::time::Duration;

use serde_json::{Value, json};

use super::{CliError, Global};
use context::context;
use find::find;
use invoke::invoke;
use measure::{Disk, resident};
use pair::Pair;

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum What {
    /// Calls of a 256-byte echo over TCP and QUIC, at 1, 64 and 512 in flight.
    Invoke,
    /// Directory queries, registration, and how soon others know of a new agent.
    Find,
    /// Durable tasks of three steps, each on what the one before gave, at 1, 64 and 512 in flight.
    Task,
    /// Shared contexts: a transfer of 1,000 operations, updates, writes, the fold, and what 10,000 take in memory.
    Context,
}

/// Arguments of `bench`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  meshwork bench                     everything, about two minutes
  meshwork bench invoke --seconds 5 --json
  meshwork bench invoke --transport tcp --in-flight 8,64
  meshwork bench task --data-dir /var/tmp     on the disk that matters; it makes a folder of its own there

Without --data-dir, data goes below TMPDIR, else /tmp. Where that is memory (tmpfs), tasks are measured all the same, but without what a \
disk costs them; the file system and how long it takes to flush stand above their figures.

What is aimed at for tasks, on two cores with both nodes on them and a disk: a result within 200 ms of the last step (MAOP 6.1), submit p99 \
under 25 ms, end to end p50 under 3 ms at 1 in flight, about 6000 tasks/s at 512. For contexts: a transfer of 1,000 operations p99 under 50 ms (MAOP 6.1), 10,000 active in under 64 MB, 200,000 \
folded items per second.

Use a release build; a debug build measures the debugger's patience.")]
pub(crate) struct Args {
    /// What to measure; everything without it.
    what: Option<What>,

    /// How long each row runs.
    #[arg(long, value_name = "S", default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=60))]
    seconds: u64,

    /// Calls or tasks in flight, a row each.
    #[arg(long, value_name = "N", value_delimiter = ',', default_values_t = [1, 64, 512], value_parser = clap::value_parser!(u32).range(1..=4_096))]
    in_flight: Vec<u32>,

    /// Only over this transport.
    #[arg(long, value_enum)]
    transport: Option<Transport>,
}

/// How the two nodes speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Transport {
    /// TCP, Noise or TLS 1.3, yamux.
    Tcp,
    /// QUIC.
    Quic,
}

impl Transport {
    fn listen(self) -> (&'static str, &'static str) {
        match self {
            Self::Tcp => ("tcp", "/ip4/127.0.0.1/tcp/0"),
            Self::Quic => ("quic", "/ip4/127.0.0.1/udp/0/quic-v1"),
        }
    }
}

/// Runs the measurements.
pub(crate) async fn run(args: Args, global: &Global) -> Result<(), CliError> {
    crate::telemetry::start_log("error", false).map_err(CliError::internal)?;
    let mut rows = Vec::new();
    let mut memory = Vec::new();
    let folder = global.data_dir.clone().unwrap_or_else(std::env::temp_dir);
    let wanted = |what| args.what.is_none_or(|only| only == what);
    let mut disk = Value::Null;
    let transports = [Transport::Tcp, Transport::Quic].into_iter().filter(|transport| args.transport.is_none_or(|only| only == *transport));
    for (transport, listen) in transports.map(Transport::listen) {
        let pair = Pair::start(&folder, listen).await?;
        let (time, in_flight) =
            (Duration::from_secs(args.seconds), || args.in_flight.iter().map(|number| usize::try_from(*number).unwrap_or(1)));
        // What a transport adds shows in calls; the rest is measured over one.
        let first = transport == "tcp" || args.transport.is_some();
        if wanted(What::Task) && first {
            let measured = Disk::of(pair.folder())?;
            disk = serde_json::to_value(measured).map_err(|error| CliError::internal(error.to_string()))?;
            for in_flight in in_flight() {
                rows.push(task::task(&pair, transport, in_flight, time).await?);
            }
        }
        if wanted(What::Invoke) {
            for in_flight in in_flight() {
                rows.push(invoke(&pair, transport, in_flight, time).await?);
            }
            memory.push(json!({ "transport": transport, "caller_bytes": resident("self"), "host_bytes": resident(&pair.host_pid()) }));
        }
        if wanted(What::Find) && first {
            rows.extend(find(&pair, time).await?);
        }
        if wanted(What::Context) && first {
            rows.extend(context(&pair, time).await?);
        }
        pair.stop().await;
    }
    let document = json!({
        "build": if cfg!(debug_assertions) { "debug" } else { "release" },
        "version": env!("CARGO_PKG_VERSION"),
        "cores": std::thread::available_parallelism().map_or(0, usize::from),
        "disk": disk,
        "rows": rows,
        "resident": memory,
    });
    global.answer(&document, || Ok(text::text(&document, global.colour())))
}
