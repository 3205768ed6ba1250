//! The command line: one verb per file, one way to fail.
//!
//! A verb turns arguments into a request to a running node, or into a question that needs none (`key`, `config`), and its answer into
//! text. With `--json` the answer is the node's own document, untouched, so that a script reads the same from the shell and over HTTP.
//! `global` knows which node is meant and with which token, `client` speaks to it, `table` and `figures` lay out what people
//! read, and `output` alone writes.
//!
//! What a person can rely on:
//! - the exit code says who has to act: 0 nobody, 1 the mesh refused, 2 the command or a file is wrong, 3 no node answers, 4 time ran out;
//! - a failure is printed once, here, and with `--json` it is the document that the node's doors give;
//! - nothing that a peer or an agent wrote reaches a terminal with its control characters alive (threats T21, T29).

mod agent;
mod agents;
mod bench;
mod call;
mod client;
mod config;
mod context;
mod demo;
mod doctor;
mod error;
mod events;
mod feed;
mod figures;
mod find;
mod global;
mod key;
mod local;
mod offers;
mod output;
mod peers;
mod status;
mod table;
mod task;
mod task_file;
mod trust;
mod up;

#[cfg(test)]
mod tests;

use std::{ffi::OsString, process::ExitCode, time::Duration};

use clap::{Parser, Subcommand, error::ErrorKind};

pub(crate) use error::CliError;
pub(crate) use global::Global;

use error::Exit;
use output::Screen;

/// How long work that a finished verb left behind (a read of the terminal, say) may hold up the end of the program.
const SHUTDOWN_GRACE: Duration = Duration::from_millis(100);

/// A node of a peer-to-peer mesh of AI agents, and the commands that talk to one.
#[derive(Debug, Parser)]
#[command(
    name = "meshwork",
    version,
    max_term_width = 110,
    after_help = "Example:
  meshwork up --name first                 a node with an API on http://127.0.0.1:7480
  meshwork agents --mesh                   who is there
  meshwork call text-analysis '{\"text\":\"Good morning\"}'

Exit codes: 0 done, 1 the mesh said no, 2 wrong usage or configuration, 3 node not reachable, 4 timeout."
)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run a node until it is told to stop.
    Up(up::Args),
    /// Run a mesh of four nodes here and one task across it.
    Demo(demo::Args),
    /// List this node's agents, or all that the directory holds.
    Agents(agents::Args),
    /// Attach, remove or show one agent.
    Agent(agent::Args),
    /// Ask the directory who can do something, and how well.
    Find(find::Args),
    /// Ask agents whether they could do something, when, and for how much.
    Offers(offers::Args),
    /// Have an agent do something; its output alone goes to stdout.
    Call(call::Args),
    /// Run tasks of several steps, each by whoever in the mesh does it best, and follow them.
    Task(task::Args),
    /// Share documents between agents on several nodes; they merge without a server.
    Context(context::Args),
    /// List the nodes that this one is connected to.
    Peers(peers::Args),
    /// Sum up the node: who it is, where it listens, what it carries.
    Status(status::Args),
    /// Show what this node believes of agents, receipts of others, and whose word counts.
    Trust(trust::Args),
    /// Say what is wrong and how to mend it.
    Doctor(doctor::Args),
    /// Follow what happens on the node, one JSON document per line.
    Events(events::Args),
    /// Show identities; needs no running node.
    Key(key::Args),
    /// Check a configuration or print an example; needs no running node.
    Config(config::Args),
    /// Measure this build on this machine.
    Bench(bench::Args),
}

/// Runs the program on the process's own arguments.
pub fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let cli = match Cli::try_parse_from(&arguments) {
        Ok(cli) => cli,
        Err(error) => return refuse_arguments(&error, &arguments),
    };
    let global = cli.global.clone();
    let outcome = match crate::node::runtime() {
        Ok(runtime) => {
            let outcome = runtime.block_on(Box::pin(run(cli)));
            runtime.shutdown_timeout(SHUTDOWN_GRACE);
            outcome
        }
        Err(error) => Err(CliError::internal(format!("failed to start the runtime: {error}"))),
    };
    report(outcome, &global).into()
}

async fn run(cli: Cli) -> Result<(), CliError> {
    let global = &cli.global;
    match cli.verb {
        Verb::Up(args) => Box::pin(up::run(args, global)).await,
        Verb::Demo(args) => Box::pin(demo::run(args, global)).await,
        Verb::Agents(args) => agents::run(args, global).await,
        Verb::Agent(args) => agent::run(args, global).await,
        Verb::Find(args) => find::run(args, global).await,
        Verb::Offers(args) => offers::run(args, global).await,
        Verb::Call(args) => call::run(args, global).await,
        Verb::Task(args) => Box::pin(task::run(args, global)).await,
        Verb::Context(args) => Box::pin(context::run(args, global)).await,
        Verb::Peers(args) => peers::run(args, global).await,
        Verb::Status(args) => status::run(args, global).await,
        Verb::Trust(args) => trust::run(args, global).await,
        Verb::Doctor(args) => doctor::run(args, global).await,
        Verb::Events(args) => events::run(args, global).await,
        Verb::Key(args) => key::run(args, global),
        Verb::Config(args) => config::run(args, global),
        Verb::Bench(args) => Box::pin(bench::run(args, global)).await,
    }
}

/// Prints the failure, if there is one to print, and says how the process ends.
fn report(outcome: Result<(), CliError>, global: &Global) -> Exit {
    match outcome {
        Ok(()) => Exit::Done,
        Err(error) => {
            error.print(&global.screen, global.json);
            error.exit()
        }
    }
}

/// Help and version are answers; anything else that clap has to say is a wrong command line.
fn refuse_arguments(error: &clap::Error, arguments: &[OsString]) -> ExitCode {
    // A reader that went away is the only reason why printing fails, and then nobody is left to be told.
    let _ = error.print();
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        return Exit::Done.into();
    }
    if arguments.iter().any(|argument| argument == "--json") {
        let text = error.render().to_string();
        let said = text.lines().next().unwrap_or_default().trim_start_matches("error: ");
        let message = if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand { "the verb is missing" } else { said };
        let _ = CliError::usage(message).print_document(&Screen::default());
    }
    Exit::Usage.into()
}
