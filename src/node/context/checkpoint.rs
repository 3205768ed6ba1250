//! When the owner of a context ends an era of it (design/contexts.md "Life").
//!
//! The owner's node looks once a minute. An era with a thousand operations, or a mebibyte of them, ends when it is a day old, so that what
//! was written in the last day can always be looked back at; one that comes near to what authors may write ends after an hour, so that nobody
//! makes it end so often that no changes of access are left. A node that has just started, or meets no other reader's, waits: what others wrote
//! meanwhile would have to be written once more. As long as the owner's node is away, eras are as long as authors' quotas last.

use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};

use super::book::{Row, own_keys, principals};
use super::door::document;
use super::hot::Hot;
use super::sync::{blocking, changed, nodes};
use crate::model::{ErrorCode, Failure, Now, Timestamp};
use crate::node::handle::Handle;
use crate::node::shared::Shared;
use crate::proto::context::replica::Replica;
use crate::wire::context::{Access, PrincipalKey, Verified};

/// How much an era has before it ends, and how old it is then.
const OPERATIONS_MIN: usize = 1_000;
const BYTES_MIN: u64 = 1024 * 1024;
const AGE_MIN: Duration = Duration::from_secs(24 * 3_600);
/// How much it has when it ends sooner: half of what its authors may write, if one of them wrote all of it.
const OPERATIONS_MAX: usize = 50_000;
const BYTES_MAX: u64 = 8 * 1024 * 1024;
const FULL_AGE_MIN: Duration = Duration::from_secs(3_600);
/// For how long a node that started hears from others first.
pub(super) const HEARING: Duration = Duration::from_secs(600);

/// Whose checkpoint it is to be.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckpointRequest {
    /// As which agent of this node; without it as the node.
    pub agent: Option<String>,
}

/// When the era of a context is to end, if that is near and its owner is on this node.
pub(super) fn due(replica: &Replica) -> Option<Timestamp> {
    let (operations, bytes) = replica.operations().written_since();
    let began = replica.chain().at(replica.chain().newest_era()).map_or(replica.genesis().created_at, |checkpoint| checkpoint.at);
    let is_full = operations >= OPERATIONS_MAX || bytes >= BYTES_MAX;
    let is_large = operations >= OPERATIONS_MIN || bytes >= BYTES_MIN;
    let age_min = if is_full { FULL_AGE_MIN } else { AGE_MIN };
    (is_large && replica.is_whole() && replica.chain().split().is_none()).then_some(began.saturating_add(age_min))
}

/// Ends the eras that are to end.
pub(super) async fn sweep(shared: &Arc<Shared>, now: Now) {
    let worker = Arc::clone(shared);
    let due = blocking(move || {
        let own = own_keys(&worker);
        let owner = |owner| own.iter().find(|key| key.principal() == owner).cloned();
        let is_due = |row: &Row| row.checkpoint_at.is_some_and(|at| at <= now.wall) && owner(row.owner).is_some();
        let rows = worker.contexts.ids().into_iter().filter_map(|id| worker.contexts.row_for(&worker, id, now, is_due));
        rows.filter_map(|row| Some((owner(row.owner)?, row))).collect::<Vec<_>>()
    });
    for (key, row) in due.await.unwrap_or_default() {
        let own = principals(&own_keys(shared));
        let is_alone = row.readers.iter().all(|reader| own.contains(reader));
        if !is_alone && nodes(shared, &row.readers).await.is_ok_and(|nodes| nodes.is_empty()) {
            continue;
        }
        let (worker, id) = (Arc::clone(shared), row.heads.context);
        let ended = blocking(move || {
            let ended = worker.contexts.with(&worker, id, now, |hot| end(hot, &key).inspect_err(|_| hot.put_off_checkpoint()));
            ended.map(|checkpoint| changed(&worker, id, &[checkpoint], &[], None))
        });
        if let Ok(Err(failure)) = ended.await {
            tracing::warn!(context = %id, %failure, "a context goes on without a checkpoint");
        }
    }
}

fn end(hot: &mut Hot, key: &PrincipalKey) -> Result<Verified<Access>, Failure> {
    let checkpoint = hot.draft_checkpoint(key)?;
    let refused = hot.take_own_access(checkpoint.clone())?.refused;
    // What waited and comes too late for it is no fault of the checkpoint.
    let is_taken = hot.replica.chain().tip().is_some_and(|tip| tip.name() == checkpoint.name());
    if is_taken { Ok(checkpoint) } else { Err(Failure::new(ErrorCode::Conflict, refused.unwrap_or_default())) }
}

/// The newest checkpoint, as people see it.
pub(super) fn shown(replica: &Replica) -> Option<Value> {
    let mut shown = shown_at(replica, replica.chain().newest_era())?;
    shown["is_here"] = replica.is_whole().into();
    Some(shown)
}

/// The checkpoint with which an era begins, as people see it; nothing for the first.
pub(super) fn shown_at(replica: &Replica, era: u64) -> Option<Value> {
    let checkpoint = replica.chain().at(era)?;
    Some(json!({ "id": replica.root(era), "epoch": era, "at": checkpoint.at.to_string() }))
}

impl Handle {
    /// Ends the era of a context now: what it holds is the beginning of the next, and what was written before the checkpoint before is let go of.
    ///
    /// # Errors
    /// `ACCESS_DENIED` unless the owner asks, `CONFLICT` if nothing was written since the last one or the context holds more than one may have.
    pub async fn checkpoint_context(&self, which: &str, CheckpointRequest { agent }: CheckpointRequest) -> Result<Value, Failure> {
        let id = self.shared.contexts.named(which)?;
        self.on_worker(move |handle, now| {
            let (answer, checkpoint) = handle.shared.contexts.with(&handle.shared, id, now, |hot| {
                let key = handle.owning(hot, agent.as_deref())?;
                let checkpoint = end(hot, &key)?;
                Ok((document(hot, &key), checkpoint))
            })?;
            handle.context_changed(id, &[checkpoint], &[]);
            Ok(answer)
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng as _;

    use super::*;
    use crate::proto::context::replica::{self, Rights};
    use crate::wire::context::{Body, Genesis, Item, PrincipalKey};

    fn written(count: usize, text: &str) -> Replica {
        let (key, begin) = (PrincipalKey::from_seed(&[1; 32]), Timestamp::from_ms(1_000));
        let genesis = Genesis {
            v: crate::wire::VERSION,
            owner: key.principal(),
            nonce: [9; 16],
            session_id: "session-1".to_owned(),
            created_at: begin,
            expires_at: Timestamp::from_ms(2_000),
            parent: None,
        };
        let mut rng = rand::rngs::StdRng::seed_from_u64(1);
        let mut replica = Replica::new(replica::begin(&key, genesis).expect("a genesis"), vec![key.clone()]);
        let access = replica.draft_access(&key, &Rights::default(), Timestamp::from_ms(2_000), begin, &mut rng).expect("the owner may");
        replica.on_access(access).expect("it counts");
        let path: crate::model::Path = "/shared_memory/a".parse().expect("a path");
        for _ in 0..count {
            let body =
                Body { items: vec![Item::Set(path.clone(), text.into())], sources: Vec::new(), step: None, source: None, again: None };
            let operation = replica.draft(&key, &body, begin, &mut rng).expect("the owner may");
            replica.on_operation(operation).expect("it counts");
        }
        replica
    }

    #[test]
    fn an_era_ends_when_it_has_enough_and_is_a_day_old_or_nearly_full() {
        let day = Some(Timestamp::from_ms(1_000 + 24 * 3_600 * 1_000));
        assert_eq!((due(&written(999, "x")), due(&written(1_000, "x"))), (None, day));
        let large = "x".repeat(60 * 1024);
        assert_eq!((due(&written(16, &large)), due(&written(17, &large))), (None, day));
        assert_eq!(due(&written(137, &large)), Some(Timestamp::from_ms(1_000 + 3_600 * 1_000)));
    }
}
