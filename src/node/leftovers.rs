//! Blobs that a crash left: the large text of a task or call of which the journal knows nothing.
//!
//! A blob is durable before the entry that names it, so a node that dies in between leaves one that nobody will ever ask for, or remove. A
//! start removes it, if it is sure: the journal has lost nothing that might have named its owner, and the owner's name is one of those that
//! this node gives. What else lies in the folder is somebody else's.

use std::collections::BTreeSet;

use super::invocation::kept;
use super::task::Found;
use crate::model::TaskId;
use crate::store::Blobs;

/// Who has blobs; nobody if the journal is not whole. Asked before anybody gets more. Blocks.
pub(super) fn owners(blobs: &Blobs, found: &Found) -> Vec<String> {
    if !found.is_whole {
        return Vec::new();
    }
    blobs.owners().unwrap_or_else(|error| {
        tracing::warn!(%error, "large texts that nobody knows were not looked for");
        Vec::new()
    })
}

/// Removes the blobs of those `owners` who are neither tasks that were found nor among the owners of `kept` results; a worker does it.
pub(super) fn remove(blobs: &Blobs, owners: Vec<String>, found: &Found, kept: &[BTreeSet<String>]) {
    let is_nobodys = |owner: &String| match task_of(owner) {
        Some(task) => !found.knows(&task),
        None => kept::is_owner(owner) && !kept.iter().any(|owners| owners.contains(owner)),
    };
    let nobodys: Vec<String> = owners.into_iter().filter(is_nobodys).collect();
    if nobodys.is_empty() {
        return;
    }
    let blobs = blobs.clone();
    tokio::task::spawn_blocking(move || {
        let mut removed = 0_usize;
        for owner in nobodys {
            match blobs.remove_all(&owner) {
                Ok(()) => removed += 1,
                Err(error) => tracing::warn!(%error, owner, "large texts that nobody knows could not be removed"),
            }
        }
        tracing::info!(removed, "large texts that a crash had left were removed");
    });
}

/// The task of this name, as this node writes it.
fn task_of(owner: &str) -> Option<TaskId> {
    owner.parse::<TaskId>().ok().filter(|task| task.to_string() == owner)
}
