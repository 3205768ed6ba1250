//! What a node keeps on its disk, all of it in one data directory.
//!
//! *Truth* is what nobody else could give back: the node's key (`node.key`), each agent's key, sequence and added definition
//! (`agents/NAME/key`, `sequence`, `definition.json`), the token of the API (`api-token`), whose word counts (`pins`). Each is a small file that is replaced as a whole and
//! flushed, with its folder, before the call returns; a damaged one is a named error, never silently replaced and never deleted.
//!
//! So are the [`journal`] of what the node has acknowledged, in `journal/`, and the bodies too large for it, in `blobs/OWNER/HASH`; and the
//! shared contexts, in `contexts/ID.log`, with what it has let go of in `contexts/gone`.
//!
//! *Index* is what can be learnt again: good peers, bans, receipts, and what a start need not read of the journal, in sled under `index/`. sled does not flush to the platter on Linux when asked
//! to, so nothing that was acknowledged may depend on it; a damaged index is moved aside and begun anew.
//!
//! *One process.* [`DataDir`] holds an exclusive lock, and everything else is made from it. A second node on the same directory gets an
//! error that names the process in its way.
//!
//! *Secrets.* Mode 0600 in folders of mode 0700, created exclusively, refused if other users could get at them (threat T14).
//!
//! Every call blocks on the disk, those into sled included, so none belongs in an event loop: a blocking worker makes them.

mod agents;
mod blobs;
mod contexts;
mod error;
mod files;
mod gone;
mod index;
pub mod journal;
mod keys;
mod lines;
mod lock;
mod pins;
mod sequence;

use std::path::{Path, PathBuf};

pub use agents::{Definitions, Loaded};
pub use blobs::Blobs;
pub use contexts::{Contexts, FILE_BYTES_MAX as CONTEXT_BYTES_MAX, Kept, Kind as KeptKind, Loaded as LoadedContext, Log, Place};
pub use error::Error;
pub use files::{MODE_SECRET, create_durable, read_bounded, remove_durable, write_durable};
pub use gone::GoneContexts;
pub use index::{Ban, Changes, Checkpoint, GoodPeer, Index, KeptReceipt};
pub use journal::Journal;
pub use keys::{Keystore, read_token};
pub use lock::DataDir;
pub use pins::Pins;
pub use sequence::Sequences;

use crate::model;

/// How long the name of an agent, or of whom blobs belong to, may be, in bytes.
const NAME_BYTES_MAX: usize = 64;

/// Where the files of the agent called `name` are.
fn agent_folder(data_dir: &Path, name: &str) -> Result<PathBuf, Error> {
    check_name(name)?;
    Ok(data_dir.join("agents").join(name))
}

/// Refuses a name that is no plain folder name: names come from files and requests.
fn check_name(name: &str) -> Result<(), Error> {
    let chars_ok = name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'));
    if !chars_ok || name.starts_with('.') || !(1..=NAME_BYTES_MAX).contains(&name.len()) {
        return Err(Error::Name { name: model::printable(name, NAME_BYTES_MAX) });
    }
    Ok(())
}
