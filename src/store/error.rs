//! What can go wrong between a node and its disk.

use std::{io, path::PathBuf};

/// Why something could not be read from the data directory or made durable in it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused. Normal life when a disk is full or permissions are wrong. A failed write leaves the former content
    /// as it was; retry once there is room.
    #[error("{action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// With which file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// Written bytes could not be flushed. Never normal: it is unknown which content the disk holds, and a second attempt may report success
    /// for bytes that are gone. Do not retry; stop, and read what is there after a restart.
    #[error("flush {}: {source}; the disk may be failing: stop the node, check the disk and start again", path.display())]
    Unflushed {
        /// The file or folder.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// A secret can be read or written by other users. Happens after a careless copy; nothing was changed; retry after the remedy.
    #[error("use {}: its mode {mode:04o} lets other users at a secret; run `chmod 600 {}`", path.display(), path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// A symbolic link, folder or device stands where a secret's file should be. Never normal; nothing was changed; a person must look.
    #[error("use {}: not a regular file; a secret is neither a link nor a device, so put the file itself there", path.display())]
    NotAFile {
        /// What was found.
        path: PathBuf,
    },
    /// A file's content is not what was written: torn, edited or of another kind. Nothing was changed; the message says what to do.
    #[error("read {}: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and the remedy.
        reason: String,
    },
    /// A file is larger than anything that is kept there. Nothing was changed.
    #[error("read {}: larger than {bytes_max} bytes, so it is not what belongs there; move it away", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The bound, in bytes.
        bytes_max: u64,
    },
    /// A file was written by a later release. Normal life after a downgrade; nothing was changed; run that release again.
    #[error("read {}: written in format {version}, which a later release of meshwork understands; run that release", path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// The format that it states.
        version: u32,
    },
    /// Another process uses the data directory. Normal life when a node is started twice; nothing was changed; retry when it has ended.
    #[error(
        "open {}: in use by another meshwork{}; stop it, or name another directory with --data-dir (node.data_dir)",
        path.display(),
        pid.map(|pid| format!(" with process id {pid}")).unwrap_or_default()
    )]
    Locked {
        /// The data directory.
        path: PathBuf,
        /// The process that holds it, if it has said so.
        pid: Option<u32>,
    },
    /// A name cannot be a folder's. Names are checked before they come here, so this is a mistake of the caller; nothing was changed.
    #[error("keep `{name}`: a name has 1 to 64 letters, digits, `-`, `_` or `.` and does not begin with `.`")]
    Name {
        /// The name, made printable.
        name: String,
    },
    /// The index refused a read or a write. It holds nothing that cannot be learnt again, so go on without; a restart rebuilds it.
    #[error("use the index {}: {source}", path.display())]
    Index {
        /// Its folder.
        path: PathBuf,
        /// What sled said.
        source: sled::Error,
    },
}

impl Error {
    /// Whether the disk or a quota is full: new durable work must be refused, reads go on.
    pub fn is_full(&self) -> bool {
        let full = |source: &io::Error| matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
        match self {
            Self::Io { source, .. } => full(source),
            Self::Index { source: sled::Error::Io(source), .. } => full(source),
            Self::Index { .. }
            | Self::Unflushed { .. }
            | Self::Exposed { .. }
            | Self::NotAFile { .. }
            | Self::Damaged { .. }
            | Self::TooLarge { .. }
            | Self::Newer { .. }
            | Self::Locked { .. }
            | Self::Name { .. } => false,
        }
    }
}
