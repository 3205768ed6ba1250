//! What a node is told before it starts: file, environment and flags, made into one checked [`Config`].
//!
//! *Words.* A *section* is a table of the file (`[mesh]`), a *key* is a setting's dotted name (`mesh.listen`), a *layer* is one source
//! of settings. Layers apply in this order, each replacing what earlier ones said about the same key: the defaults of [`Config`], the
//! node-config file, `MESHWORK_SECTION__KEY` in the environment (`MESHWORK_MESH__LIMITS__PER_PEER_MAX=8`), the flags of `up`.
//!
//! *Environment.* A value is read as TOML (`["a", "b"]`, `3`, `true`) and taken as plain text where that does not fit. `MESHWORK_DATA_DIR`
//! sets `node.data_dir` unless `MESHWORK_NODE__DATA_DIR` does. Other names with single underscores are no settings and are ignored here.
//!
//! *Paths.* A relative path in a file is taken from the file's own folder, so a file works from wherever it is named; a path in the
//! environment or a flag is taken from the working directory, as any shell would.
//!
//! *What holds of a loaded configuration.* Every key is known, every number lies within its bounds, every address parses, the API listens
//! on loopback, a client-only node has no agents, the node has a name. Whether a port is free or a key file is safe shows only at
//! the start itself. Secrets are never settings: they stand in files, or in variables that a definition names.
//!
//! *Faults.* An unknown key is an error, because a setting that is silently ignored is a setting that someone relies on. All faults are
//! reported together, with the place they were written at and the nearest known key ([`Error`]).
//!
//! The files of `node-config/` are compiled in as [`EXAMPLES`].

mod agents;
mod check;
mod error;
mod keys;
mod load;
mod sections;

#[cfg(test)]
mod tests;

pub use error::{Error, Fault, Faults, Place};
pub use load::{Flags, Sources, data_dir_default};
pub use sections::{Api, Config, Context, Limits, LogFormat, Mesh, MeshLimits, Node, Routing, Telemetry};

/// Runnable configurations with comments, one per situation: name and text.
pub const EXAMPLES: [(&str, &str); 6] = [
    ("bootstrap", include_str!("../../node-config/bootstrap.toml")),
    ("agent-host", include_str!("../../node-config/agent-host.toml")),
    ("client-only", include_str!("../../node-config/client-only.toml")),
    ("private-lan", include_str!("../../node-config/private-lan.toml")),
    ("local-a", include_str!("../../node-config/local-a.toml")),
    ("local-b", include_str!("../../node-config/local-b.toml")),
];

/// The example called `name`, with or without `.toml`.
pub fn example(name: &str) -> Option<&'static str> {
    let name = name.strip_suffix(".toml").unwrap_or(name);
    EXAMPLES.iter().find(|(known, _)| *known == name).map(|(_, text)| *text)
}
