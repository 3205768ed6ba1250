//! Whom somebody pinned while the node ran: the nodes whose receipts count beside those of the configuration.
//!
//! A person's decision, which nobody could give back, so it is kept as truth and not in the index: one small file, replaced as a whole. A
//! damaged one is a named error and nobody in it counts: less trust than was given is a nuisance, trust that nobody gave would be a hole.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::{
    Error,
    files::{self, MODE_SECRET},
    lines,
};
use crate::model::NodeId;

/// How large the file may be: some hundreds of ids.
const FILE_BYTES_MAX: u64 = 32 * 1024;

/// The first line: what the file is, and its format.
const HEADING: &str = "meshwork-pins 1";

/// The pins of a data directory. Made by [`super::DataDir::pins`]; calls block on the disk. One caller at a time.
#[derive(Debug, Clone)]
pub struct Pins {
    path: PathBuf,
}

impl Pins {
    pub(super) fn new(folder: &Path) -> Self {
        Self { path: folder.join("pins") }
    }

    /// Who is pinned.
    ///
    /// # Errors
    /// [`Error::Damaged`] if the file does not read, [`Error::TooLarge`] or [`Error::Io`].
    pub fn load(&self) -> Result<BTreeSet<NodeId>, Error> {
        let Some(bytes) = files::read_bounded(&self.path, FILE_BYTES_MAX)? else { return Ok(BTreeSet::new()) };
        let pins = lines::decode(HEADING, &bytes).and_then(|lines| lines.map(|line| line.parse().ok()).collect());
        pins.ok_or_else(|| Error::Damaged {
            path: self.path.clone(),
            reason: "torn or not a list of pins, so nobody in it counts; remove the file and pin again".to_owned(),
        })
    }

    /// Adds or removes a pin, durably; says whether that changed anything.
    ///
    /// # Errors
    /// As [`Pins::load`]; the former content then stands.
    pub fn set(&self, node: NodeId, pinned: bool) -> Result<bool, Error> {
        let mut pins = self.load()?;
        let changed = if pinned { pins.insert(node) } else { pins.remove(&node) };
        if changed {
            files::write_durable(&self.path, lines::encode(HEADING, pins.iter().map(NodeId::to_string)).as_bytes(), MODE_SECRET)?;
        }
        Ok(changed)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn node() -> NodeId {
        NodeId::from(libp2p_identity::Keypair::generate_ed25519().public().to_peer_id())
    }

    #[test]
    fn pins_survive_a_restart_until_they_are_removed() {
        let folder = tempfile::tempdir().expect("folder");
        let (a, b) = (node(), node());
        let pins = Pins::new(folder.path());
        assert_eq!(pins.load().expect("none yet"), BTreeSet::new());
        assert!(pins.set(a, true).expect("kept") && pins.set(b, true).expect("kept"));
        assert!(!pins.set(b, true).expect("known"));
        let again = Pins::new(folder.path());
        assert_eq!(again.load().expect("reads"), BTreeSet::from([a, b]));
        assert!(again.set(a, false).expect("removed") && !again.set(a, false).expect("gone"));
        assert_eq!(again.load().expect("reads"), BTreeSet::from([b]));
    }

    #[test]
    fn a_damaged_file_pins_nobody_and_is_not_written_over() {
        let folder = tempfile::tempdir().expect("folder");
        let pins = Pins::new(folder.path());
        pins.set(node(), true).expect("kept");
        let path = folder.path().join("pins");
        let whole = fs::read_to_string(&path).expect("reads");
        let foreign = whole.replacen(HEADING, "meshwork-pins 9", 1);
        for text in ["", "\n", "12D3KooW\n", &whole[..whole.len() - 2], &whole.replacen("12D3KooW", "12D3KooX", 1), &foreign] {
            fs::write(&path, text).expect("writes");
            let error = pins.set(node(), true).expect_err(text);
            assert!(error.to_string().contains("pins") && error.to_string().contains("pin again"), "{error}");
            assert_eq!(fs::read_to_string(&path).expect("reads"), text);
        }
    }
}
