//! Schemas of other nodes' agents, compiled once and kept by hash, so that a wrong input is refused before it travels.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock, Weak};

use serde_json::Value;
use tokio::sync::oneshot;

use super::off_workers;
use super::shared::{Command, Shared};
use crate::agents::definition::{ANYTHING, schema_hash};
use crate::agents::schema::Schema;
use crate::model::{ErrorCode, Failure, NodeId};
use crate::wire::directory::SchemaHash;

/// Schemas that are kept; a mesh has few kinds of agents.
const SCHEMAS_MAX: usize = 4_096;

/// A schema and its text.
#[derive(Debug, Clone)]
pub(super) struct Known {
    pub(super) text: Arc<Value>,
    /// `None` if it breaks our bounds; then only the agent's node checks.
    pub(super) schema: Option<Schema>,
}

/// Schemas by hash.
#[derive(Debug, Default)]
pub(super) struct Schemas {
    known_by_hash: RwLock<BTreeMap<SchemaHash, Known>>,
    turns_by_node: std::sync::Mutex<BTreeMap<NodeId, Weak<tokio::sync::Mutex<()>>>>,
}

impl Schemas {
    pub(super) fn get(&self, hash: SchemaHash) -> Option<Known> {
        self.known_by_hash.read().unwrap_or_else(PoisonError::into_inner).get(&hash).cloned()
    }

    /// Whose turn it is to ask `node`.
    fn turn(&self, node: NodeId) -> Arc<tokio::sync::Mutex<()>> {
        let mut turns = super::shared::lock(&self.turns_by_node);
        if let Some(turn) = turns.get(&node).and_then(Weak::upgrade) {
            return turn;
        }
        turns.retain(|_, turn| turn.strong_count() > 0);
        let turn = Arc::default();
        turns.insert(node, Arc::downgrade(&turn));
        turn
    }

    /// Keeps a schema under the hash of its text.
    pub(super) fn insert(&self, text: Value) -> SchemaHash {
        let hash = schema_hash(&text);
        let known = Known { schema: off_workers(usize::MAX, || Schema::compile(&text)).ok(), text: Arc::new(text) };
        let mut schemas = self.known_by_hash.write().unwrap_or_else(PoisonError::into_inner);
        if schemas.len() >= SCHEMAS_MAX && !schemas.contains_key(&hash) {
            schemas.pop_first();
        }
        schemas.insert(hash, known);
        hash
    }
}

/// The schemas with these hashes, fetched from `node` where they are not known. Unknown ones are left out.
pub(super) async fn schemas_of(shared: &Shared, node: NodeId, hashes: &[SchemaHash]) -> Vec<(SchemaHash, Known)> {
    let wanted: Vec<SchemaHash> = hashes.iter().copied().filter(|hash| *hash != ANYTHING).collect();
    let lacking = || wanted.iter().copied().filter(|hash| shared.schemas.get(*hash).is_none()).collect::<Vec<SchemaHash>>();
    if lacking().is_empty() || node == shared.node() {
        return wanted.into_iter().filter_map(|hash| Some((hash, shared.schemas.get(hash)?))).collect();
    }
    // A burst of first calls asks once.
    let turn = shared.schemas.turn(node);
    let _turn = turn.lock().await;
    let missing = lacking();
    if !missing.is_empty() {
        let (reply, answer) = oneshot::channel();
        let asked = shared.commands.try_send(Command::Schemas { node, hashes: missing.clone(), reply });
        let fetched = match asked {
            Ok(()) => answer.await.unwrap_or_else(|_| Err(Failure::new(ErrorCode::Unavailable, "the node is stopping"))),
            Err(_) => Err(Failure::new(ErrorCode::Busy, "this node is busy")),
        };
        // Without its schema a call is still checked where the agent is.
        for text in fetched.unwrap_or_default().iter().filter(|text| !text.is_empty()) {
            if let Ok(schema) = serde_json::from_str::<Value>(text)
                && missing.contains(&schema_hash(&schema))
            {
                shared.schemas.insert(schema);
            }
        }
    }
    wanted.into_iter().filter_map(|hash| Some((hash, shared.schemas.get(hash)?))).collect()
}
