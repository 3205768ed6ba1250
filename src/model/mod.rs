//! The nouns of the mesh, as values that are valid by construction.
//!
//! Every other layer speaks in these types, so a string from outside becomes a [`CapabilityName`] or an [`AgentId`] once, at the
//! border, and is never checked again. Nothing here does input or output, reads a clock or draws a random number.

mod agent;
mod balance;
mod capability;
mod claims;
mod context;
mod error_code;
mod failure;
mod figure;
mod id;
mod list;
mod price;
mod priority;
mod task;
mod text;
mod time;

pub use agent::{Adapter, CapabilityDefinition, Constraints, Definition, Framework, HealthCheck, RateLimit};
pub use balance::Balance;
pub use capability::{CapabilityName, CapabilityVersion, Shard, TAXONOMY, VersionRequirement};
pub use claims::{Claims, Fact};
pub use context::{AGENT_MEMORY, CONTEXT_DEPTH_MAX, ContextId, OperationId, PATH_BYTES_MAX, Path, Principal, SHARED_MEMORY};
pub use error_code::ErrorCode;
pub use failure::Failure;
pub use figure::{Figure, Source};
pub use id::{AgentId, InvocationId, NodeId, ParseError};
pub(crate) use list::at_most;
pub use price::{Currency, Price};
pub use priority::Priority;
pub use task::{SUBTASK_ID_BYTES_MAX, SubtaskId, TASK_EXECUTION, TaskId};
pub use text::{json_kind, nearest, percent_decoded, printable};
pub use time::{Now, Timestamp};
