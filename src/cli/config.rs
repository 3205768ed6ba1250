//! `meshwork config`: is this file right, and what does a right one look like.
//!
//! `check` judges the file alone: variables of the environment that would override it on a start are left out, so the verdict is the same
//! on every machine. Neither verb needs a running node.

use std::path::PathBuf;

use clap::Subcommand;
use serde_json::{Value, json};

use super::{CliError, Global};
use crate::{
    config::{Config, EXAMPLES, Sources, example},
    model::nearest,
};

/// The variables that only serve defaults (where a home is, what the machine is called).
const DEFAULTS_FROM: [&str; 3] = ["HOME", "XDG_DATA_HOME", "HOSTNAME"];

/// Arguments of `config`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  meshwork config example agent-host > node.toml
  meshwork config check node.toml")]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Check a configuration file; prints ok, or every fault.
    #[command(after_help = "Example:
  meshwork config check node.toml && meshwork up --config node.toml")]
    Check {
        /// The file.
        file: PathBuf,
    },
    /// Print a commented example, or without a name the list of them.
    #[command(after_help = "Example:
  meshwork config example bootstrap > node.toml")]
    Example {
        /// Which one.
        name: Option<String>,
    },
}

/// Runs one of the two.
pub(crate) fn run(args: Args, global: &Global) -> Result<(), CliError> {
    match args.verb {
        Verb::Check { file } => check(file, global),
        Verb::Example { name: Some(name) } => print_example(&name, global),
        Verb::Example { name: None } => {
            let names: Vec<&str> = EXAMPLES.iter().map(|(name, _)| *name).collect();
            global.answer(&json!({ "examples": names }), || Ok(names.join("\n") + "\n"))
        }
    }
}

fn check(file: PathBuf, global: &Global) -> Result<(), CliError> {
    let shown = file.display().to_string();
    let defaults = global.env.iter().filter(|(name, _)| DEFAULTS_FROM.contains(name));
    let env = defaults.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    let sources = Sources { file: Some(file), env, ..Sources::default() };
    match Config::load(sources) {
        Ok(_) => global.answer(&json!({ "ok": true, "file": shown }), || Ok(format!("{shown}: ok\n"))),
        Err(error) if error.faults().is_empty() => Err(CliError::usage(format!("failed to {error}"))),
        Err(error) => {
            let faults: Vec<Value> = error.faults().iter().map(|fault| fault.to_string().into()).collect();
            let count = if faults.len() == 1 { "a fault".to_owned() } else { format!("{} faults", faults.len()) };
            Err(CliError::usage(format!("{shown} has {count}")).with("faults", faults))
        }
    }
}

fn print_example(name: &str, global: &Global) -> Result<(), CliError> {
    let Some(text) = example(name) else {
        let names = EXAMPLES.iter().map(|(name, _)| *name);
        let error = CliError::usage(format!("there is no example called `{name}`"));
        return Err(match nearest(name, names) {
            Some(near) => error.hint(format!("did you mean `{near}`?")),
            None => error.hint("`meshwork config example` lists them"),
        });
    };
    global.answer(&json!({ "name": name, "text": text }), || Ok(text.to_owned()))
}
