//! The secrets of a node: its own key, one key per agent, the token of its API (threat T14).
//!
//! `node.key` holds an ed25519 key pair in libp2p's protobuf encoding, `agents/NAME/key` the 32-byte seed of an agent's ed25519 key,
//! `api-token` 32 random bytes as hexadecimal digits. Each is made when it is first asked for, with mode 0600 and never over an
//! existing file, and refused when other users could get at it or when it is reached through a link. A damaged key is an error and not
//! replaced: a new key is a new identity, and that is for its owner to decide.
//!
//! Keys are not encrypted on disk. Buffers that held them are wiped; libp2p's and dalek's own key types wipe themselves.

use std::path::{Path, PathBuf};

use ed25519_dalek::SigningKey;
use libp2p_identity::{Keypair, ed25519};
use zeroize::Zeroizing;

use super::{
    Error, agent_folder,
    files::{self, MODE_SECRET},
};

/// How large a secret's file may be: far more than any of them takes.
const SECRET_BYTES_MAX: u64 = 1_024;

/// How short a token may be that a person chose, in characters. Shorter ones could be guessed.
const TOKEN_CHARS_MIN: usize = 16;

/// The secrets in a data directory. Made by [`super::DataDir::keys`]; calls block on the disk.
#[derive(Debug, Clone)]
pub struct Keystore {
    folder: PathBuf,
}

impl Keystore {
    pub(super) fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned() }
    }

    /// The key that is this node's identity, made at the first call.
    ///
    /// # Errors
    /// [`Error::Exposed`], [`Error::NotAFile`], [`Error::Damaged`] or [`Error::Io`].
    pub fn node_key(&self) -> Result<Keypair, Error> {
        let path = self.folder.join("node.key");
        if let Some(bytes) = read(&path)? {
            let pair = Keypair::from_protobuf_encoding(&bytes).ok().filter(|pair| pair.clone().try_into_ed25519().is_ok());
            return pair.ok_or_else(|| damaged(&path, "not an ed25519 key; restore it from a copy, or move it away to become a new node"));
        }
        let pair = Keypair::generate_ed25519();
        let unreachable = |_| damaged(&path, "the new key cannot be encoded");
        let bytes = Zeroizing::new(pair.to_protobuf_encoding().map_err(unreachable)?);
        files::create_durable(&path, &bytes, MODE_SECRET)?;
        Ok(pair)
    }

    /// The key that signs the record of the agent called `name`, made at the first call.
    ///
    /// # Errors
    /// [`Error::Name`], else as [`Keystore::node_key`].
    pub fn agent_key(&self, name: &str) -> Result<SigningKey, Error> {
        let folder = agent_folder(&self.folder, name)?;
        let path = folder.join("key");
        if let Some(bytes) = read(&path)? {
            let seed = <&[u8; 32]>::try_from(bytes.as_slice()).ok();
            let reason = "not a 32-byte seed; restore it from a copy, or move it away to give the agent a new identity";
            return seed.map(SigningKey::from_bytes).ok_or_else(|| damaged(&path, reason));
        }
        files::create_folder(&folder)?;
        let seed = random_bytes();
        files::create_durable(&path, seed.as_slice(), MODE_SECRET)?;
        Ok(SigningKey::from_bytes(&seed))
    }

    /// The bearer token of the API in `file` (default `api-token` of the data directory), made at the first call.
    ///
    /// # Errors
    /// [`Error::Damaged`] if the file holds no usable token, else as [`Keystore::node_key`].
    pub fn api_token(&self, file: Option<&Path>) -> Result<Zeroizing<String>, Error> {
        let own = self.folder.join("api-token");
        let path = file.unwrap_or(&own);
        if let Some(token) = read_token(path)? {
            return Ok(token);
        }
        let bytes = random_bytes();
        let mut token = Zeroizing::new(String::with_capacity(64));
        for byte in bytes.iter() {
            token.extend([byte >> 4, byte & 15].map(|digit| char::from_digit(digit.into(), 16).unwrap_or('0')));
        }
        files::create_durable(path, token.as_bytes(), MODE_SECRET)?;
        Ok(token)
    }
}

/// The token in `path`, for a client of a node that holds the lock; `None` if there is no such file.
///
/// # Errors
/// [`Error::Damaged`] if it holds fewer than 16 characters or some that no header may carry, else as [`Keystore::node_key`].
pub fn read_token(path: &Path) -> Result<Option<Zeroizing<String>>, Error> {
    let Some(bytes) = read(path)? else { return Ok(None) };
    let token = std::str::from_utf8(&bytes).unwrap_or_default().trim();
    if token.len() < TOKEN_CHARS_MIN || !token.chars().all(|c| c.is_ascii_graphic()) {
        return Err(damaged(path, "not a token of at least 16 visible characters; remove it and a new one is made at the next start"));
    }
    Ok(Some(Zeroizing::new(token.to_owned())))
}

/// 32 bytes from the operating system's generator, which is what a fresh ed25519 seed is.
fn random_bytes() -> Zeroizing<[u8; 32]> {
    let secret = ed25519::Keypair::generate().secret();
    let mut bytes = Zeroizing::new([0; 32]);
    for (byte, random) in bytes.iter_mut().zip(secret.as_ref()) {
        *byte = *random;
    }
    bytes
}

fn read(path: &Path) -> Result<Option<Zeroizing<Vec<u8>>>, Error> {
    Ok(files::read_secret(path, SECRET_BYTES_MAX)?.map(Zeroizing::new))
}

fn damaged(path: &Path, reason: &str) -> Error {
    Error::Damaged { path: path.to_owned(), reason: reason.to_owned() }
}

#[cfg(all(test, unix))]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;

    #[test]
    fn keys_are_made_once_and_stay() {
        let folder = tempfile::tempdir().expect("folder");
        let keys = Keystore::new(folder.path());
        assert_eq!(keys.node_key().expect("made").public(), keys.node_key().expect("read").public());
        assert_eq!(keys.agent_key("a").expect("made").verifying_key(), keys.agent_key("a").expect("read").verifying_key());
        assert_ne!(keys.agent_key("a").expect("read").verifying_key(), keys.agent_key("b").expect("made").verifying_key());
        let token = keys.api_token(None).expect("made");
        assert_eq!((token.len(), &token), (64, &keys.api_token(None).expect("read")));
        assert_eq!(read_token(&folder.path().join("api-token")).expect("reads"), Some(token));
    }

    #[test]
    fn every_secret_admits_its_owner_alone() {
        let folder = tempfile::tempdir().expect("folder");
        all(&Keystore::new(folder.path())).into_iter().for_each(|made| made.expect("made"));
        for (path, mode) in [("node.key", 0o600), ("api-token", 0o600), ("agents/a/key", 0o600), ("agents", 0o700), ("agents/a", 0o700)] {
            assert_eq!(fs::metadata(folder.path().join(path)).expect("there").permissions().mode() & 0o777, mode, "{path}");
        }
    }

    #[test]
    fn a_secret_that_others_may_read_is_refused_with_the_remedy() {
        let folder = tempfile::tempdir().expect("folder");
        let keys = Keystore::new(folder.path());
        all(&keys).into_iter().for_each(|made| made.expect("made"));
        for path in ["node.key", "agents/a/key", "api-token"] {
            let path = folder.path().join(path);
            for mode in [0o640, 0o604, 0o620] {
                fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("changes");
                let refused: Vec<String> = all(&keys).into_iter().filter_map(|read| read.err()).map(|error| error.to_string()).collect();
                assert_eq!(refused.len(), 1, "{}", path.display());
                assert!(refused[0].contains(&format!("chmod 600 {}", path.display())), "{}", refused[0]);
            }
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("changes back");
        }
    }

    #[test]
    fn a_secret_behind_a_link_is_refused() {
        let folder = tempfile::tempdir().expect("folder");
        let keys = Keystore::new(folder.path());
        keys.node_key().expect("made");
        fs::rename(folder.path().join("node.key"), folder.path().join("elsewhere")).expect("moves");
        std::os::unix::fs::symlink(folder.path().join("elsewhere"), folder.path().join("node.key")).expect("links");
        assert!(matches!(keys.node_key(), Err(Error::NotAFile { .. })));
    }

    #[test]
    fn a_damaged_key_is_an_error_and_stays_as_it_is() {
        let folder = tempfile::tempdir().expect("folder");
        let keys = Keystore::new(folder.path());
        for (path, read) in [("node.key", 0), ("agents/a/key", 1), ("api-token", 2)] {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().expect("a folder")).expect("makes");
            files::write_durable(&path, b"short", MODE_SECRET).expect("writes");
            let result = all(&keys).into_iter().nth(read).expect("three secrets");
            assert!(matches!(result, Err(Error::Damaged { .. })), "{}", path.display());
            assert_eq!(fs::read(&path).expect("reads"), b"short");
        }
    }

    #[test]
    fn a_name_that_leaves_the_folder_is_refused() {
        let folder = tempfile::tempdir().expect("folder");
        for name in ["", ".", "..", "a/b", "../a", ".hidden", "a b", &"x".repeat(65)] {
            assert!(matches!(Keystore::new(folder.path()).agent_key(name), Err(Error::Name { .. })), "{name}");
        }
        assert_eq!(fs::read_dir(folder.path()).expect("lists").count(), 0);
    }

    fn all(keys: &Keystore) -> [Result<(), Error>; 3] {
        [keys.node_key().map(|_| ()), keys.agent_key("a").map(|_| ()), keys.api_token(None).map(|_| ())]
    }
}
