//! `meshwork key show`: who this node and its agents are, read from the data directory.
//!
//! It takes no lock and makes nothing, so it works beside a running node and never creates an identity by looking for one. Only ids are
//! shown; the keys themselves are wiped from memory as soon as the ids are known.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use clap::Subcommand;
use libp2p_identity::Keypair;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::{CliError, Global, doctor::mode, figures, table::Table};
use crate::{
    model::{AgentId, NodeId},
    store::read_bounded,
};

/// How large a key's file may be: far more than a key takes.
const KEY_BYTES_MAX: u64 = 1_024;

/// Arguments of `key`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  meshwork key show")]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Show the ids of the node and its agents, and who can read their keys.
    #[command(after_help = "Example:
  meshwork key show --json | jq -r .node.node_id")]
    Show,
}

/// One key: whose it is, its id and its file.
struct Shown {
    name: String,
    id: String,
    file: PathBuf,
    mode: u32,
}

/// Shows the keys.
pub(crate) fn run(args: Args, global: &Global) -> Result<(), CliError> {
    let Verb::Show = args.verb;
    let folder = global.data_dir()?;
    let node = shown("node", folder.join("node.key"), node_id)?.ok_or_else(|| {
        CliError::usage(format!("no node has its data in {}", folder.display()))
            .hint("`meshwork up` makes a key at its first start; if the data is elsewhere, pass --data-dir DIR")
    })?;
    let agents = agents(&folder.join("agents"))?;
    let fields = |key: &Shown, id: &str| json!({ id: key.id, "file": key.file.display().to_string(), "mode": format!("{:03o}", key.mode) });
    let listed = agents.iter().map(|key| {
        let mut listed = fields(key, "agent_id");
        listed["name"] = json!(key.name);
        listed
    });
    let document =
        json!({ "data_dir": folder.display().to_string(), "node": fields(&node, "node_id"), "agents": listed.collect::<Vec<Value>>() });
    global.answer(&document, || Ok(text(&node, &agents, global.colour())))
}

/// The keys of all agents, by name.
fn agents(folder: &Path) -> Result<Vec<Shown>, CliError> {
    let failed = |error: io::Error| CliError::usage(format!("failed to list {}: {error}", folder.display()));
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries.collect::<Result<Vec<_>, _>>().map_err(failed)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let keys = entries.into_iter().map(|entry| shown(&entry.file_name().to_string_lossy(), entry.path().join("key"), agent_id));
    let mut keys: Vec<Shown> = keys.filter_map(Result::transpose).collect::<Result<_, _>>()?;
    keys.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(keys)
}

/// The key in `file`; `None` if there is no such file.
fn shown(name: &str, file: PathBuf, id: fn(&mut [u8]) -> Option<String>) -> Result<Option<Shown>, CliError> {
    let bytes = read_bounded(&file, KEY_BYTES_MAX).map_err(|error| CliError::usage(format!("failed to {error}")))?;
    let Some(mut bytes) = bytes.map(Zeroizing::new) else { return Ok(None) };
    let id = id(&mut bytes).ok_or_else(|| CliError::usage(format!("{} is damaged: it holds no ed25519 key", file.display())))?;
    let mode = mode(&file).map_err(|error| CliError::usage(format!("failed to inspect {}: {error}", file.display())))?;
    Ok(Some(Shown { name: name.to_owned(), id, file, mode }))
}

/// A node's key is a key pair in libp2p's encoding.
fn node_id(bytes: &mut [u8]) -> Option<String> {
    Keypair::from_protobuf_encoding(bytes).ok().map(|pair| NodeId::from(pair.public().to_peer_id()).to_string())
}

/// An agent's key is the bare seed.
fn agent_id(bytes: &mut [u8]) -> Option<String> {
    let pair = Keypair::ed25519_from_bytes(bytes).ok()?.try_into_ed25519().ok()?;
    Some(AgentId::from_public_key(pair.public().to_bytes()).to_string())
}

fn text(node: &Shown, agents: &[Shown], colour: bool) -> String {
    let mut table = Table::new(["of", "id", "mode", "key file"]);
    for (key, name) in [(node, "this node".to_owned())].into_iter().chain(agents.iter().map(|key| (key, figures::word(&key.name)))) {
        table.row([name, key.id.clone(), format!("{:03o}", key.mode), key.file.display().to_string()]);
    }
    let exposed: Vec<&Shown> = [node].into_iter().chain(agents).filter(|key| key.mode & 0o077 != 0).collect();
    let warning = |key: &&Shown| format!("open to other users: chmod 600 {}\n", figures::word(&key.file.display().to_string()));
    table.text(colour) + &exposed.iter().map(warning).collect::<String>()
}
