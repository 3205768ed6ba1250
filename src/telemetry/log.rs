//! Logs go to stderr, as text for people or JSON lines for machines; stdout belongs to the verbs.

use std::io::{IsTerminal, stderr};

use tracing_subscriber::EnvFilter;

/// Starts logging with a filter such as `info` or `meshwork=debug,warn`. A second call does nothing.
///
/// # Errors
/// If the filter cannot be read.
pub fn start_log(filter: &str, json: bool) -> Result<(), String> {
    // The libraries below report single connections at their own levels; they are heard when somebody asks for them.
    let quiet = ",libp2p=error,libp2p_swarm=error,libp2p_gossipsub=error,libp2p_kad=error,libp2p_mdns=error,hickory_resolver=error,sled=warn,pdf_extract=off,lopdf=off";
    let names_libraries = filter.contains("libp2p");
    let full = if names_libraries { filter.to_owned() } else { format!("{filter}{quiet}") };
    let filter = EnvFilter::try_new(full).map_err(|error| error.to_string())?;
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(stderr).with_ansi(stderr().is_terminal());
    let started = if json { subscriber.json().flatten_event(true).try_init() } else { subscriber.with_target(false).try_init() };
    if let Err(error) = started {
        tracing::debug!(%error, "logging runs already");
    }
    Ok(())
}
