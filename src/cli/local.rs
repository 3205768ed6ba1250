//! Nodes inside this process, for the verbs that bring their own mesh (`demo`, `bench`).

use std::path::{Path, PathBuf};

use rand::Rng;

use super::CliError;
use crate::config::Config;
use crate::model::Definition;
use crate::node::{Node, State};

/// A folder that goes away with its owner.
pub(super) struct Scratch(PathBuf);

impl Scratch {
    /// A new empty folder among the system's temporary ones.
    pub(super) fn new(purpose: &str) -> Result<Self, CliError> {
        Self::below(&std::env::temp_dir(), purpose)
    }

    /// A new empty folder in this one.
    pub(super) fn below(folder: &Path, purpose: &str) -> Result<Self, CliError> {
        let path = folder.join(format!("meshwork-{purpose}-{:016x}", rand::rng().random::<u64>()));
        std::fs::create_dir(&path).map_err(|error| CliError::internal(format!("cannot create {}: {error}", path.display())))?;
        Ok(Self(path))
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A configuration for a node on loopback with its data below `folder`.
pub(super) fn config(folder: &Path, name: &str, listen: &[&str], join: &[String]) -> Config {
    let mut config = Config::default();
    config.node.name = Some(name.to_owned());
    config.node.data_dir = folder.join(name);
    config.mesh.listen = listen.iter().map(|address| (*address).to_owned()).collect();
    config.mesh.join = join.to_vec();
    config
}

/// Starts a node and waits until it takes part.
pub(super) async fn start(config: Config) -> Result<Node, CliError> {
    let name = config.node.name.clone().unwrap_or_default();
    let node = Node::start(config).await.map_err(|error| CliError::internal(format!("node {name}: {error}")))?;
    let mut state = node.handle.watch_state();
    let joined = tokio::time::timeout(std::time::Duration::from_secs(15), state.wait_for(|state| *state != State::Joining)).await;
    match joined {
        Ok(Ok(_)) => Ok(node),
        Ok(Err(_)) | Err(_) => Err(CliError::timeout(format!("node {name} did not join in time"))),
    }
}

/// Where a local node can be joined.
pub(super) async fn address(node: &Node) -> Result<String, CliError> {
    let view = node.handle.node().await?;
    view.listen.first().cloned().ok_or_else(|| CliError::internal("the node listens nowhere"))
}

/// The definition of a builtin agent, with a price if it has one.
pub(super) fn builtin(name: &str, kind: &str, price: Option<(&str, &str)>) -> Result<Definition, CliError> {
    let mut definition =
        serde_json::json!({ "name": name, "concurrency": 64, "queue": 4096, "adapter": { "type": "builtin", "kind": kind } });
    if let (Some((amount, unit)), Some(fields)) = (price, definition.as_object_mut()) {
        let capability = serde_json::json!([{ "id": kind, "price": { "amount": amount, "currency": "USD", "unit": unit } }]);
        fields.insert("capability".to_owned(), capability);
    }
    serde_json::from_value(definition).map_err(|error| CliError::internal(error.to_string()))
}
