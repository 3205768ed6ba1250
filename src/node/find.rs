//! Queries: the directory first, then the DHT and the providers it names. One without a name has nothing to ask the DHT for.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::sync::oneshot;

use super::off_workers;
use super::schemas::schemas_of;
use super::shared::{Command, Shared};
use crate::model::{ErrorCode, Failure};
use crate::proto::directory::rank::{Answer, Rejected, Rejection};
use crate::wire::directory::Query;

/// How long a query may look further than the directory.
pub(super) const SEARCH_MAX: Duration = Duration::from_millis(2_000);

/// Queries that may look at every record at one time: each keeps a thread busy, and the others are for calls.
pub(super) const SCANS_MAX: usize = 2;
/// How long such a query waits for others of its kind.
const SCAN_WAIT_MAX: Duration = Duration::from_millis(2_000);

/// Answers a query. `enough` candidates in the directory answer it at once; one that names no capability is answered from there alone.
pub(super) async fn find(shared: &Arc<Shared>, query: Query, enough: usize) -> Result<Answer, Failure> {
    let busy = || Failure::new(ErrorCode::Busy, "this node is too busy to answer queries").with("retry_after_ms", 100);
    let (reply, answer) = oneshot::channel();
    let command = if query.capabilities.is_empty() {
        let room = tokio::time::timeout(SCAN_WAIT_MAX, Arc::clone(&shared.scans).acquire_owned()).await;
        Command::Scan { query, room: room.map_err(|_| busy())?.map_err(|_| busy())?, reply }
    } else {
        Command::Find { query, enough, reply }
    };
    shared.commands.try_send(command).map_err(|_| busy())?;
    answer.await.map_err(|_| Failure::new(ErrorCode::Unavailable, "this node is stopping"))
}

/// Leaves out agents whose input schema refuses `input`, until `limit` are left that accept it. Where a schema cannot be had, the agent's
/// own node will judge.
pub(super) async fn keep_compatible(shared: &Arc<Shared>, answer: &mut Answer, input: &Value, limit: usize) {
    let mut kept = Vec::new();
    for candidate in std::mem::take(&mut answer.candidates) {
        if kept.len() >= limit {
            break;
        }
        let hashes: Vec<_> = candidate.capability().map(|offered| offered.input_schema).into_iter().collect();
        let schemas = schemas_of(shared, candidate.entry.record.node, &hashes).await;
        let schema = schemas.first().and_then(|(_, known)| known.schema.as_ref());
        // The schema is a stranger's, and the input as large as a client likes.
        let faults = schema.and_then(|schema| off_workers(usize::MAX, || schema.check(input)).err());
        match faults.and_then(|faults| faults.into_iter().next()) {
            None => kept.push(candidate),
            Some(fault) => answer.rejected.push(Rejected {
                agent: candidate.agent(),
                name: candidate.entry.record.name.clone(),
                reason: Rejection::Schema(fault.to_string()),
            }),
        }
    }
    answer.candidates = kept;
}
