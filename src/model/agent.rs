//! What a person writes to attach an agent to a node: the definition (AMP-1, AMP-2, AMP-6, AOP-1).
//!
//! The same shape is an `[[agent]]` table of the configuration, a file of `meshwork agent add` and the body of `POST /v1/agents`.
//! Reading it refuses unknown fields; what a field may hold beyond its type (names, schemas, bounds) is checked where the definition
//! is accepted, so that every fault is reported with the path of its field. Definitions hold secrets only by reference.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{CapabilityName, CapabilityVersion, Claims, Fact, Price};

/// One agent, as its owner describes it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Definition {
    /// What people call it: 1 to 64 letters, digits, `-`, `_` or `.`; unique on its node.
    pub name: String,
    /// The agent's own version, for people.
    #[serde(default = "version_default")]
    pub version: String,
    /// One line on what it is.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
    /// What it was built with.
    #[serde(default)]
    pub framework: Framework,
    /// How many invocations it works on at once, 1 to 1,024.
    #[serde(default = "concurrency_default")]
    pub concurrency: u32,
    /// How many more may wait for a free slot before callers are told BUSY; default four per slot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue: Option<u32>,
    /// How often it may be called, by all callers together; without it as often as it has room (MEAP-3).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limit: Option<RateLimit>,
    /// How the node reaches it.
    pub adapter: Adapter,
    /// What it can do, 1 to 32 capabilities; a builtin agent that names none offers all that it has.
    #[serde(rename = "capability", alias = "capabilities", default)]
    pub capabilities: Vec<CapabilityDefinition>,
}

impl Definition {
    /// How many calls may wait for a slot.
    pub fn queue_len_max(&self) -> u32 {
        self.queue.unwrap_or_else(|| self.concurrency.saturating_mul(4))
    }
}

fn version_default() -> String {
    "1.0.0".to_owned()
}

fn concurrency_default() -> u32 {
    1
}

/// So many in a second on average, so many at once.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RateLimit {
    /// Calls per second, 0.001 to 1,000,000.
    pub per_s: f64,
    /// Calls that may come at once after a pause, 1 to 1,000,000; default those of one second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub burst: Option<u32>,
}

impl RateLimit {
    /// Calls that may come at once.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped before; a rate is below the bounds of the type")]
    pub fn burst(&self) -> u32 {
        self.burst.unwrap_or_else(|| self.per_s.ceil().clamp(1.0, 1_000_000.0) as u32)
    }
}

/// The framework an agent was built with (AMP 1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Framework {
    /// LangChain.
    Langchain,
    /// CrewAI.
    Crewai,
    /// AutoGen.
    Autogen,
    /// Anything else.
    #[default]
    Custom,
}

/// How a node reaches an agent's program.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase", deny_unknown_fields)]
pub enum Adapter {
    /// Child processes that speak JSON lines, one per slot of concurrency.
    Process {
        /// Program and arguments; no shell is involved.
        command: Vec<String>,
        /// Where it runs; default the folder of the file that defines it, or the node's data directory if no file does.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        working_dir: Option<String>,
        /// Names of environment variables of the node that the child may see, beside PATH, HOME and LANG.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        pass_env: Vec<String>,
    },
    /// An HTTP endpoint that takes the invocation as JSON.
    Http {
        /// Where invocations are posted.
        endpoint: String,
        /// How its health is polled; without it every failed call counts alone.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        health: Option<HealthCheck>,
        /// File that holds the bearer token.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        token_file: Option<String>,
        /// Environment variable of the node that holds the bearer token.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        token_env: Option<String>,
        /// Whether the endpoint may be on this machine or a private network.
        #[serde(default)]
        allow_private: bool,
    },
    /// The node itself, which runs whole tasks for others (AMP-8). Without such an agent it runs nobody's tasks but its clients'.
    Task {},
    /// An agent inside the binary.
    Builtin {
        /// Which one.
        kind: String,
        /// Folders that `file:` URLs may point into.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        allow_files: Vec<String>,
    },
}

impl Adapter {
    /// Takes relative paths from `folder`, where the definition was written, and lets a process run there unless it says otherwise.
    pub fn resolve_paths(&mut self, folder: &Path) {
        let paths: Vec<&mut String> = match self {
            Self::Process { working_dir, .. } => vec![working_dir.get_or_insert_with(|| ".".to_owned())],
            Self::Http { token_file, .. } => token_file.iter_mut().collect(),
            Self::Builtin { allow_files, .. } => allow_files.iter_mut().collect(),
            Self::Task {} => Vec::new(),
        };
        // `~` is left alone so that its fault shows what was written.
        for path in paths.into_iter().filter(|path| !path.is_empty() && !path.starts_with('~')) {
            *path = folder.join(path.as_str()).to_string_lossy().into_owned();
        }
    }

    /// The word of the `type` field.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Process { .. } => "process",
            Self::Http { .. } => "http",
            Self::Builtin { .. } => "builtin",
            Self::Task {} => "task",
        }
    }
}

/// How an HTTP agent's health is polled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HealthCheck {
    /// What is fetched; any 2xx answer is healthy.
    pub url: String,
    /// How often, in milliseconds, 100 to 60,000.
    #[serde(default = "interval_default")]
    pub interval_ms: u64,
    /// How long an answer may take, in milliseconds, 50 to 10,000.
    #[serde(default = "timeout_default")]
    pub timeout_ms: u64,
}

fn interval_default() -> u64 {
    1_000
}

fn timeout_default() -> u64 {
    1_000
}

/// One capability of an agent (AMP 2).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CapabilityDefinition {
    /// Its name.
    pub id: CapabilityName,
    /// Its version.
    #[serde(default = "capability_version_default")]
    pub version: CapabilityVersion,
    /// What it does, in one line; at most 512 characters.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
    /// JSON Schema of the input.
    #[serde(default = "any_schema")]
    pub input_schema: Value,
    /// JSON Schema of the output.
    #[serde(default = "any_schema")]
    pub output_schema: Value,
    /// What it costs; free without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub price: Option<Price>,
    /// What callers must keep to, and may expect.
    #[serde(default)]
    pub constraints: Constraints,
    /// Whether doing it twice does no harm, so that a call that was lost half-way may be given to another agent without a key.
    #[serde(default)]
    pub idempotent: bool,
    /// How good it thinks it is at this, 0 to 1: shown as its claim, and without weight where agents are ranked (MAOP 2.2).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub score: Option<f64>,
    /// What it is best at, at most 16 lines that `find --text` searches.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub specializations: Vec<String>,
    /// What it cannot do, at most 16 lines.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub limitations: Vec<String>,
    /// What it takes, at most 16 names with a text, a number, true or false each.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub resource_requirements: BTreeMap<String, Fact>,
}

impl CapabilityDefinition {
    /// What it says of itself.
    pub fn claims(&self) -> Claims {
        Claims {
            score: self.score,
            specializations: self.specializations.clone(),
            limitations: self.limitations.clone(),
            resource_requirements: self.resource_requirements.clone(),
        }
    }
}

fn capability_version_default() -> CapabilityVersion {
    #[expect(clippy::unwrap_used, reason = "a literal that the tests parse")]
    "1.0".parse().unwrap()
}

fn any_schema() -> Value {
    Value::Object(serde_json::Map::new())
}

/// The bounds that an agent sets on a capability (AMP 2); enforced at the call, not only advertised.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Constraints {
    /// Longest text in the input, in characters, counted over all its strings.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_input_length: Option<u64>,
    /// Languages that the input's `language` field may name, as BCP 47 primary tags; empty means any.
    #[serde(default, deserialize_with = "super::at_most::<64, _, _>", skip_serializing_if = "Vec::is_empty")]
    pub supported_languages: Vec<String>,
    /// How long an answer usually takes, in milliseconds: the claimed latency.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response_time_ms: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// AMP-1, AMP-2: identity and capability declaration.
    #[test]
    fn a_definition_reads_amps_fields_and_fills_the_rest() {
        let text = r#"{"name":"extractor","adapter":{"type":"process","command":["python3","x.py"]},
            "capability":[{"id":"data-extraction","constraints":{"max_input_length":10}}]}"#;
        let definition: Definition = serde_json::from_str(text).expect("valid");
        assert_eq!(definition.queue_len_max(), 4);
        assert_eq!(definition.capabilities[0].version.to_string(), "1.0");
        assert_eq!(definition.framework, Framework::Custom);
    }

    #[test]
    fn unknown_fields_are_refused() {
        let text = r#"{"name":"x","adapter":{"type":"builtin","kind":"echo"},"capability":[],"secret":"s"}"#;
        assert!(serde_json::from_str::<Definition>(text).is_err());
    }
}
