//! What is wrong with a configuration, said so that a person can mend it in one go.
//!
//! A start that fails on the first of five mistakes costs five starts, so every check adds a [`Fault`] to a list and the list becomes
//! one [`Error`]. A fault names the key, the place it was written at, what is allowed there and, where one can be guessed, the remedy.

use std::{fmt, io, path::PathBuf};

use crate::model;

/// How many faults are kept; a file with more than this is not a configuration.
const FAULTS_MAX: usize = 64;

/// How much of a wrong value is shown, in characters.
const VALUE_CHARS_MAX: usize = 80;

/// Why there is no configuration to start with. Nothing was changed in any of these cases, and only a person can mend them.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The file could not be read. Happens in normal life when a path is mistyped; may be retried once the file is there.
    #[error("read configuration {}: {source}", path.display())]
    Read {
        /// The file that was asked for.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The file is larger than a configuration can be, so it is probably some other file.
    #[error("read configuration {}: larger than {bytes_max} bytes, which no configuration is", path.display())]
    TooLarge {
        /// The file that was asked for.
        path: PathBuf,
        /// The bound, in bytes.
        bytes_max: u64,
    },
    /// Settings are unknown, malformed, out of range or contradict each other. All that were found are listed.
    #[error("accept the configuration:{0}")]
    Invalid(Faults),
}

impl Error {
    /// The single faults, as far as the settings were reached at all.
    pub fn faults(&self) -> &[Fault] {
        match self {
            Self::Invalid(faults) => faults.as_slice(),
            Self::Read { .. } | Self::TooLarge { .. } => &[],
        }
    }
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The dotted key, such as `mesh.listen` or `agent[0].adapter.command`; empty when the text is not TOML at all.
    pub key: String,
    /// What is wrong with it, and what would be right.
    pub problem: String,
    /// What to write instead, where that can be guessed.
    pub hint: Option<String>,
    /// Where it was written; `None` for a default.
    pub place: Option<Place>,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.problem)?;
        if let Some(hint) = &self.hint {
            write!(f, ", {hint}")?;
        }
        match &self.place {
            Some(place) => write!(f, " ({place})"),
            None => Ok(()),
        }
    }
}

/// Where a setting was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A line of the file, counted from 1.
    File {
        /// The file's name as the caller gave it.
        name: String,
        /// The line.
        line: usize,
    },
    /// An environment variable.
    Environment(String),
    /// A flag of the command line.
    Flag(&'static str),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { name, line } => write!(f, "line {line} of {}", model::printable(name, 256)),
            Self::Environment(name) => write!(f, "environment {}", model::printable(name, VALUE_CHARS_MAX)),
            Self::Flag(name) => write!(f, "flag {name}"),
        }
    }
}

/// The faults of one configuration, in the order in which they were found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Faults(Vec<Fault>);

impl Faults {
    /// All of them; at most 64 are kept.
    pub fn as_slice(&self) -> &[Fault] {
        &self.0
    }

    /// Notes one more.
    pub(super) fn add(&mut self, key: &str, problem: impl Into<String>, hint: Option<String>, place: Option<Place>) {
        if self.0.len() < FAULTS_MAX {
            self.0.push(Fault { key: model::printable(key, 160), problem: problem.into(), hint, place });
        }
    }

    /// Notes a wrong value: what it is and what is allowed.
    pub(super) fn add_value(&mut self, key: &str, value: impl fmt::Display, allowed: &str, place: Option<Place>) {
        let value = model::printable(&value.to_string(), VALUE_CHARS_MAX);
        self.add(key, format!("`{value}` is not allowed: expected {allowed}"), None, place);
    }

    /// The list as an error, if anything is on it.
    pub(super) fn into_result(self) -> Result<(), Error> {
        if self.0.is_empty() { Ok(()) } else { Err(Error::Invalid(self)) }
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // One fault reads on in the sentence, several stand below each other.
        if let [only] = self.as_slice() {
            return write!(f, " {only}");
        }
        self.0.iter().try_for_each(|fault| write!(f, "\n  {fault}"))
    }
}
