//! A number together with who vouches for it.

use serde::{Deserialize, Serialize};

/// Who says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// The agent's own record. A hint.
    Claimed,
    /// Receipts of others, along pinned trust.
    Attested,
    /// This node, from its own calls.
    Measured,
}

/// A figure of a directory answer, tagged with its source (design.md section 4).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Figure<T> {
    /// The number, in the unit of the field that holds it.
    pub value: T,
    /// Who vouches for it.
    pub source: Source,
}

impl<T> Figure<T> {
    /// A figure that the agent claims of itself.
    pub fn claimed(value: T) -> Self {
        Self { value, source: Source::Claimed }
    }

    /// A figure from receipts of others.
    pub fn attested(value: T) -> Self {
        Self { value, source: Source::Attested }
    }

    /// A figure that this node measured.
    pub fn measured(value: T) -> Self {
        Self { value, source: Source::Measured }
    }
}
