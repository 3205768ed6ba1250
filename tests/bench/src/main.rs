//! Measures Meshwork beside what people would use instead: the same load, in turn, in one run.
//!
//! The main process keeps the order of things and the report; whatever is measured runs in processes of its own, with the same tokio
//! runtime: a client process, and the servers that it needs. `load` makes the calls of all of them, `contender` knows who needs
//! which processes, `plan` what is compared.

mod contender;
mod http;
mod load;
mod measure;
mod mesh;
mod nats;
mod plan;
mod process;
mod records;
mod report;
mod role;
mod substream;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Parser;

use measure::Effort;
use plan::Part;
use report::Report;
use role::Role;

/// Calls to NATS, HTTP and Meshwork in turn, and the limits that Meshwork set itself.
#[derive(Debug, Parser)]
#[command(name = "tests/bench/run", max_term_width = 110)]
struct Args {
    /// What to measure; everything without it.
    parts: Vec<Part>,

    /// Rounds; every contender runs once in each.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=100))]
    rounds: u16,

    /// How long each contender runs in a round, in seconds.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=600))]
    seconds: u16,

    /// Writes everything that was measured to this file too.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,

    /// Fails if an aim is missed.
    #[arg(long)]
    strict: bool,

    #[command(subcommand)]
    hidden: Option<Hidden>,
}

#[derive(Debug, clap::Subcommand)]
enum Hidden {
    /// One part in a run; the program starts itself so.
    #[command(hide = true, subcommand)]
    Role(Role),
}

fn main() -> Result<ExitCode> {
    let args = Args::parse();
    // A node runs as the program runs it, everybody else as their users would.
    let is_node = matches!(args.hidden, Some(Hidden::Role(Role::MeshHost(_) | Role::MeshClient(_))));
    let runtime = if is_node { meshwork::node::runtime()? } else { tokio::runtime::Runtime::new()? };
    runtime.block_on(start(args))
}

async fn start(args: Args) -> Result<ExitCode> {
    if let Some(Hidden::Role(role)) = args.hidden {
        meshwork::telemetry::start_log("error", false).map_err(anyhow::Error::msg)?;
        Box::pin(role::run(role)).await?;
        return Ok(ExitCode::SUCCESS);
    }
    tokio::select! {
        done = Box::pin(run(&args)) => done,
        _ = tokio::signal::ctrl_c() => bail!("interrupted"),
    }
}

async fn run(args: &Args) -> Result<ExitCode> {
    let parts = if args.parts.is_empty() { Part::ALL.to_vec() } else { args.parts.clone() };
    let effort = Effort { rounds: usize::from(args.rounds), run_ms: u64::from(args.seconds) * 1_000 };
    let scratch = tempfile::Builder::new().prefix("meshwork-bench-").tempdir()?;
    let mut report = Report::new(effort.rounds, effort.run_ms);
    // What was measured before a failure took minutes, and is shown all the same.
    let ended = plan::run(&parts, scratch.path(), effort, &mut report).await;
    std::io::stdout().lock().write_all(report.text().as_bytes())?;
    if let Some(file) = &args.json {
        std::fs::write(file, report.json()?).with_context(|| format!("write {}", file.display()))?;
    }
    ended?;
    Ok(if args.strict && !report.all_met() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
