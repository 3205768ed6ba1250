//! How calls are spread over agents that are as good as each other (MEAP-5).

use serde::{Deserialize, Serialize};

/// How calls are spread over near-equals.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Balance {
    /// Each in turn.
    RoundRobin,
    /// Whoever this node has the fewest calls at.
    LeastConnections,
    /// Whoever has the least to do for its size.
    #[default]
    LeastLoad,
}
