//! The definitions of agents that were added while the node ran, so that they are there again after a restart.
//!
//! One file per agent, `agents/NAME/definition.json`: an envelope with the format's version, the BLAKE3 checksum of the definition's
//! exact bytes and the definition itself. Agents of the node-config file are not kept here: their truth is that file.
//!
//! A file that does not read is reported by name and skipped, since one torn file must not keep a node with ten sound agents down, and
//! it is never deleted, since it may be all that its owner has.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{
    Error, agent_folder,
    files::{self, MODE_SECRET, fail},
};
use crate::model::Definition;

/// The format that this release writes.
const VERSION: u32 = 1;

/// How large an envelope may be: 32 capabilities with two schemas of 16 KiB each.
const FILE_BYTES_MAX: u64 = 2 * 1_048_576;

/// The kept definitions of a data directory. Made by [`super::DataDir::definitions`]; calls block on the disk.
#[derive(Debug, Clone)]
pub struct Definitions {
    folder: PathBuf,
}

/// What [`Definitions::load_all`] found.
#[derive(Debug, Default)]
pub struct Loaded {
    /// The sound definitions, by name.
    pub definitions: Vec<Definition>,
    /// The files that did not read, each as the error that names it and says what to do; they are untouched.
    pub skipped: Vec<Error>,
}

#[derive(Serialize, Deserialize)]
struct Envelope {
    version: u32,
    checksum: String,
    definition: Box<RawValue>,
}

/// All that is read before the version is known to be ours.
#[derive(Deserialize)]
struct VersionOnly {
    version: u32,
}

impl Definitions {
    pub(super) fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned() }
    }

    /// Keeps `definition`, durably, in place of an earlier one of the same name.
    ///
    /// # Errors
    /// [`Error::Name`], [`Error::TooLarge`] if it could not be read back, or [`Error::Io`]; the earlier one then stands.
    pub fn save(&self, definition: &Definition) -> Result<(), Error> {
        let folder = agent_folder(&self.folder, &definition.name)?;
        let path = folder.join("definition.json");
        let encode = || {
            let raw = serde_json::value::to_raw_value(definition)?;
            serde_json::to_vec(&Envelope { version: VERSION, checksum: checksum(&raw), definition: raw })
        };
        let bytes = encode().map_err(|error| fail("encode", &path)(io::Error::other(error)))?;
        if bytes.len() as u64 > FILE_BYTES_MAX {
            return Err(Error::TooLarge { path, bytes_max: FILE_BYTES_MAX });
        }
        files::create_folder(&folder)?;
        files::write_durable(&path, &bytes, MODE_SECRET)
    }

    /// Every kept definition, sorted by name, and what had to be skipped.
    ///
    /// # Errors
    /// [`Error::Io`] if the folder itself cannot be listed.
    pub fn load_all(&self) -> Result<Loaded, Error> {
        let agents = self.folder.join("agents");
        let entries = match fs::read_dir(&agents) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Loaded::default()),
            Err(error) => return Err(fail("list", &agents)(error)),
        };
        let mut loaded = Loaded::default();
        let names: io::Result<Vec<_>> = entries.map(|entry| entry.map(|entry| entry.file_name())).collect();
        let mut names = names.map_err(fail("list", &agents))?;
        names.sort();
        for name in names {
            // A name that no agent can have is somebody else's file.
            let Some(folder) = name.to_str().and_then(|name| agent_folder(&self.folder, name).ok()) else { continue };
            match load(&folder.join("definition.json"), &name.to_string_lossy()) {
                Ok(Some(definition)) => loaded.definitions.push(definition),
                // Agents of the node-config file have a key here and nothing else.
                Ok(None) => {}
                Err(error) => loaded.skipped.push(error),
            }
        }
        Ok(loaded)
    }

    /// Forgets the definition called `name`, durably; says whether there was one. Its key and sequence stay, so that an agent that comes
    /// back under its name is the same agent.
    ///
    /// # Errors
    /// [`Error::Name`] or [`Error::Io`].
    pub fn remove(&self, name: &str) -> Result<bool, Error> {
        files::remove_durable(&agent_folder(&self.folder, name)?.join("definition.json"))
    }
}

fn load(path: &Path, name: &str) -> Result<Option<Definition>, Error> {
    let Some(bytes) = files::read_bounded(path, FILE_BYTES_MAX)? else { return Ok(None) };
    let damaged = |what: &str| Error::Damaged {
        path: path.to_owned(),
        reason: format!("{what}; agent `{name}` is left out: add it again, or restore the file and restart"),
    };
    let VersionOnly { version } = serde_json::from_slice(&bytes).map_err(|_| damaged("torn or not a definition"))?;
    if version > VERSION {
        return Err(Error::Newer { path: path.to_owned(), version });
    }
    let envelope: Envelope = serde_json::from_slice(&bytes).map_err(|_| damaged("torn or not a definition"))?;
    if envelope.checksum != checksum(&envelope.definition) {
        return Err(damaged("the checksum does not match the definition"));
    }
    let definition: Definition = serde_json::from_str(envelope.definition.get()).map_err(|error| damaged(&error.to_string()))?;
    if definition.name != name {
        return Err(damaged("the definition names another agent than its folder"));
    }
    Ok(Some(definition))
}

fn checksum(definition: &RawValue) -> String {
    blake3::hash(definition.get().as_bytes()).to_hex().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn definitions_come_back_as_they_were_saved() {
        let folder = tempfile::tempdir().expect("folder");
        let kept = Definitions::new(folder.path());
        assert!(kept.load_all().expect("an empty directory").definitions.is_empty());
        for name in ["b", "a"] {
            kept.save(&definition(name)).expect("saves");
        }
        let mut changed = definition("a");
        changed.concurrency = 7;
        kept.save(&changed).expect("replaces");
        let loaded = kept.load_all().expect("loads");
        assert_eq!(loaded.definitions, [changed, definition("b")]);
        assert!(loaded.skipped.is_empty());
    }

    #[test]
    fn a_torn_file_is_named_and_skipped_and_kept() {
        let folder = tempfile::tempdir().expect("folder");
        let kept = Definitions::new(folder.path());
        for name in ["a", "b"] {
            kept.save(&definition(name)).expect("saves");
        }
        let path = folder.path().join("agents/a/definition.json");
        let whole = fs::read(&path).expect("reads");
        for length in 0..whole.len() {
            fs::write(&path, &whole[..length]).expect("tears");
            let loaded = kept.load_all().expect("loads");
            assert_eq!(loaded.definitions, [definition("b")], "torn at {length}");
            assert!(loaded.skipped[0].to_string().contains("agents/a/definition.json"));
            assert_eq!(fs::read(&path).expect("still there").len(), length);
        }
    }

    #[test]
    fn an_edited_definition_fails_its_checksum() {
        let folder = tempfile::tempdir().expect("folder");
        let kept = Definitions::new(folder.path());
        kept.save(&definition("a")).expect("saves");
        let path = folder.path().join("agents/a/definition.json");
        let edited = fs::read_to_string(&path).expect("reads").replace("echo", "ECHO");
        fs::write(&path, edited).expect("edits");
        assert!(kept.load_all().expect("loads").skipped[0].to_string().contains("checksum"));
    }

    #[test]
    fn a_later_format_is_left_to_the_later_release() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("agents/a/definition.json");
        fs::create_dir_all(path.parent().expect("a folder")).expect("makes");
        fs::write(&path, r#"{"version":2,"something":"else"}"#).expect("writes");
        let loaded = Definitions::new(folder.path()).load_all().expect("loads");
        assert!(matches!(loaded.skipped[..], [Error::Newer { version: 2, .. }]));
    }

    #[test]
    fn removing_forgets_the_definition_and_keeps_the_key() {
        let folder = tempfile::tempdir().expect("folder");
        let (kept, keys) = (Definitions::new(folder.path()), super::super::Keystore::new(folder.path()));
        let key = keys.agent_key("a").expect("made");
        kept.save(&definition("a")).expect("saves");
        assert!(kept.remove("a").expect("removes"));
        assert!(!kept.remove("a").expect("nothing to do"));
        let loaded = kept.load_all().expect("loads");
        assert!(loaded.definitions.is_empty() && loaded.skipped.is_empty());
        assert_eq!(keys.agent_key("a").expect("read").verifying_key(), key.verifying_key());
    }

    fn definition(name: &str) -> Definition {
        let text = format!(r#"{{"name":"{name}","adapter":{{"type":"builtin","kind":"echo"}}}}"#);
        serde_json::from_str(&text).expect("valid")
    }
}
