//! What the steps of this node's tasks do with a shared context: they are given what it holds, and write to it (design/contexts.md, "What
//! people see").
//!
//! The node does both for them, with its own key or that of the agent that the task names, so an agent needs no right of its own and sees no
//! more than the task's path, at the moment at which its step begins. A task that another node gave away has no more rights here than that
//! node has. What a step writes is kept in the journal before it is written, and once: whoever may have written it before looks in the
//! context first, where operations name their step.
//!
//! All of this blocks.

use std::sync::Arc;

use serde_json::{Value, json};

use super::door::{acting, bodies, write};
use super::hot::{Hot, Taken};
use crate::model::{ContextId, ErrorCode, Failure, Path, Principal};
use crate::node::shared::Shared;
use crate::proto::context::{edit, replica};
use crate::proto::task::definition::{ContextAccess, TaskContext};
use crate::wire::context::{Item, PrincipalKey, Step};
use crate::wire::task::Parent;

/// The largest context that a call carries, as JSON text: a quarter of what the operations of the largest request may write, and no burden
/// for a call.
pub(in crate::node) const GIVEN_BYTES_MAX: usize = 256 * 1024;

/// The most that a step writes, with what its items count beside their bytes: what one author may write in a context is written in the name of the
/// task's node, and no agent of a step is to use it up.
pub(in crate::node) const WRITTEN_BYTES_MAX: u64 = 256 * 1024;

/// The context whose id this is, or begins so.
///
/// # Errors
/// `CONTEXT_NOT_FOUND`, or `INVALID_REQUEST` if several begin so.
pub(in crate::node) fn named(shared: &Shared, text: &str) -> Result<ContextId, Failure> {
    shared.contexts.named(text)
}

/// A context as a task has it.
#[derive(Debug, Clone)]
pub(in crate::node) struct Used {
    /// What the task says.
    pub(in crate::node) context: TaskContext,
    /// The node that gave the task away, if one did.
    pub(in crate::node) giver: Option<Principal>,
}

impl Used {
    /// The context of a task that this call brought, if one did.
    ///
    /// # Errors
    /// `ACCESS_DENIED` if nobody can say what the node may that made the call.
    pub(in crate::node) fn of(context: &TaskContext, parent: Option<&Parent>) -> Result<Self, Failure> {
        let key = |parent: &Parent| {
            let unknown = || Failure::new(ErrorCode::AccessDenied, "the node that gave the task away has no key that a context could name");
            parent.home.public_key().map(Principal::from_public_key).ok_or_else(unknown)
        };
        Ok(Self { context: context.clone(), giver: parent.map(key).transpose()? })
    }

    /// Whether the context is here, and the task's steps may do with it what the task says.
    ///
    /// # Errors
    /// `CONTEXT_NOT_FOUND`, `ACCESS_DENIED`, `AGENT_NOT_FOUND`.
    pub(in crate::node) fn check(&self, shared: &Shared) -> Result<(), Failure> {
        self.with(shared, self.context.access, |_, _| Ok(()))
    }

    /// What a step is given, as JSON text.
    ///
    /// # Errors
    /// As [`Used::check`], and `PAYLOAD_TOO_LARGE`.
    pub(in crate::node) fn given(&self, shared: &Shared, access: ContextAccess) -> Result<Vec<u8>, Failure> {
        let path = &self.context.path;
        let text = self.with(shared, access, |hot, key| {
            let replica = &hot.replica;
            let document = json!({
                "id": replica.id(),
                "session_id": replica.genesis().session_id,
                "path": path,
                "access": access.as_str(),
                "value": replica.get(path, key.principal()),
                "version": { "frontier": replica.operations().heads() },
            });
            Ok(document.to_string().into_bytes())
        })?;
        if text.len() > GIVEN_BYTES_MAX {
            let message =
                format!("what the context holds at {path} has {} bytes, and a step is given at most {GIVEN_BYTES_MAX}", text.len());
            let failure = Failure::new(ErrorCode::PayloadTooLarge, message).with("limit", GIVEN_BYTES_MAX).with("path", path.to_string());
            return Err(failure.with("suggestion", "name a narrower `path` in the task's `context`"));
        }
        Ok(text)
    }

    /// What a step wants to be written, as far as that can be judged without the context.
    ///
    /// # Errors
    /// `INVALID_SCHEMA` with the place of the fault.
    pub(in crate::node) fn read(&self, access: ContextAccess, ops: &Value) -> Result<Vec<Item>, Failure> {
        const PLACE: &str = "/context_ops";
        let fault = |message: String, place: Value| Failure::new(ErrorCode::InvalidSchema, message).with("path", place);
        if access < ContextAccess::Write {
            return Err(fault("the step may read the context, and answered with context_ops".to_owned(), PLACE.into()));
        }
        let misread = |failure: Failure| {
            let place = failure.details.get("path").cloned().unwrap_or_else(|| PLACE.into());
            fault(format!("context_ops cannot be read: {}", failure.message), place)
        };
        let items = edit::operations_at(ops, PLACE).map_err(misread)?;
        if let Some((at, item)) = items.iter().enumerate().find(|(_, item)| !self.context.path.covers(item.path())) {
            let message = format!("{} is not below {}, which is what the task's steps may write to", item.path(), self.context.path);
            return Err(fault(message, format!("{PLACE}/{at}/path").into()));
        }
        let bodies = bodies(items.clone(), None).map_err(|failure| fault(failure.message, PLACE.into()))?;
        let counted = bodies.iter().map(replica::takes_bytes).sum::<u64>();
        let bytes = u64::try_from(items.iter().map(edit::size).sum::<usize>()).unwrap_or(u64::MAX).saturating_add(counted);
        if bytes > WRITTEN_BYTES_MAX {
            let message = format!("context_ops count {bytes} bytes with their paths, and a step writes at most {WRITTEN_BYTES_MAX}");
            return Err(fault(message, PLACE.into()));
        }
        Ok(items)
    }

    /// Writes what a step wants to be written, durably, and tells whoever follows the context. `again` says that it may be there already.
    ///
    /// # Errors
    /// As [`Used::check`], those of the disk, `CONFLICT`.
    pub(in crate::node) fn write(&self, shared: &Arc<Shared>, step: &Step, mut items: Vec<Item>, again: bool) -> Result<(), Failure> {
        let now = shared.clock.now();
        let taken = self.with(shared, ContextAccess::Write, |hot, key| {
            if again {
                let written = written(hot, key.principal(), step)?;
                items.drain(..written.min(items.len()));
            }
            if items.is_empty() { Ok(Taken::default()) } else { write(hot, key, items, Some(step), now) }
        })?;
        if again {
            // What was there before, others may not have been told of.
            shared.contexts.note_fresh(self.context.id);
        }
        if !taken.is_empty() {
            super::sync::changed(shared, self.context.id, &[], &taken.operations, None);
        }
        Ok(())
    }

    /// Does something in the name of the task, if it may.
    fn with<T>(
        &self,
        shared: &Shared,
        access: ContextAccess,
        act: impl FnOnce(&mut Hot, &PrincipalKey) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let key = acting(shared, self.context.agent.as_deref()).map_err(|failure| failure.with("path", "/context/agent"))?;
        shared.contexts.with(shared, self.context.id, shared.clock.now(), |hot| {
            for (who, is_giver) in [(Some(key.principal()), false), (self.giver, true)] {
                let Some(who) = who else { continue };
                may(hot, who, access, &self.context.path).map_err(|(place, verb)| denied(who, is_giver, verb).with("path", place))?;
            }
            act(hot, &key)
        })
    }
}

/// Whether somebody may do that; else what of the task's context asks for too much.
fn may(hot: &Hot, who: Principal, access: ContextAccess, path: &Path) -> Result<(), (&'static str, &'static str)> {
    let tip = hot.replica.chain().tip();
    if !tip.is_some_and(|tip| tip.may_read(who)) {
        return Err(("/context/id", "read the context"));
    }
    if access == ContextAccess::Write && !tip.is_some_and(|tip| tip.may_write(who, path)) {
        return Err(("/context/path", "write to that part of the context"));
    }
    Ok(())
}

fn denied(who: Principal, is_giver: bool, verb: &str) -> Failure {
    let whom = if is_giver { "the node that gave the task away" } else { "the node, or the agent that the task names," };
    let failure = Failure::new(ErrorCode::AccessDenied, format!("{whom} may not {verb}: {who}"));
    failure.with("suggestion", "its owner gives rights with `meshwork context grant`")
}

/// How many of the items of a step are written: it writes them in order, as operations that name it.
fn written(hot: &Hot, author: Principal, step: &Step) -> Result<usize, Failure> {
    let own = hot.operations(hot.replica.operations().of(author))?;
    let bodies = own.iter().filter_map(|operation| hot.replica.open_for(operation, author));
    Ok(bodies.filter(|body| body.step.as_ref() == Some(step)).map(|body| body.items.len()).sum())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::TaskId;
    use crate::node::{ContextRequest, Node};

    /// AMP-9: the agent of a step does not use up what its task's node may write.
    #[test]
    fn a_step_writes_so_much_and_no_more() {
        let context = TaskContext { id: ContextId::from_bytes([1; 32]), access: ContextAccess::Write, path: Path::shared(), agent: None };
        let used = Used { context, giver: None };
        let read = |bytes: usize| {
            let ops: Vec<Value> =
                (0..8).map(|at| json!({"op": "set", "path": format!("/shared_memory/{at}"), "value": "x".repeat(bytes)})).collect();
            used.read(ContextAccess::Write, &json!(ops)).map(|items| items.len()).map_err(|failure| failure.details["path"].clone())
        };
        let most = (32_000..33_000).rev().find(|bytes| read(*bytes).is_ok()).expect("some fit");
        assert_eq!((read(most), read(most + 1)), (Ok(8), Err(json!("/context_ops"))));
        assert!(8 * (most + 1) < 256 * 1024 && 8 * (most + 200) > 256 * 1024, "{most}");
        let many: Vec<Value> = (0..4_000).map(|at| json!({"op": "inc", "path": format!("/shared_memory/{at}")})).collect();
        assert!(used.read(ContextAccess::Write, &json!(many)).is_err(), "small ones count for what they hold");
    }

    async fn node(folder: &std::path::Path) -> Node {
        let mut config = crate::config::Config::default();
        config.node.data_dir = folder.to_owned();
        config.mesh.listen = vec!["/ip4/127.0.0.1/tcp/0".to_owned()];
        Node::start(config).await.expect("a node")
    }

    /// Threat T20: the steps of a task that another node gave away do there what that node may, whatever this one may, and no more; what it
    /// may is looked at whenever they read or write.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_step_does_what_the_giver_of_its_task_may() {
        let folder = tempfile::tempdir().expect("a folder");
        let node = node(folder.path()).await;
        let created = node.handle.create_context(ContextRequest::default()).await.expect("a context");
        let text = created["id"].as_str().expect("an id").to_owned();
        let giver = PrincipalKey::from_seed(&[5; 32]).principal();
        let plan: Path = "/shared_memory/plan".parse().expect("a path");
        let context = TaskContext { id: text.parse().expect("an id"), access: ContextAccess::Write, path: plan.clone(), agent: None };
        let own = Used { context: context.clone(), giver: None };
        let given = Used { context, giver: Some(giver) };
        let does = async |used: &Used| {
            let (used, shared) = (used.clone(), Arc::clone(&node.handle.shared));
            let did = tokio::task::spawn_blocking(move || {
                let step = Step { task: TaskId::from_random(7), subtask: "s".parse().expect("a name") };
                let place = |failure: Failure| (failure.code, failure.details["path"].clone());
                let items = vec![Item::Append(used.context.path.clone(), json!("x"))];
                let given = used.given(&shared, ContextAccess::Read).map(drop).map_err(place);
                let checked = used.check(&shared).map_err(place);
                (given, checked, used.write(&shared, &step, items, false).map_err(place))
            });
            did.await.expect("it is tried")
        };
        let may_not = |place: &str| Err((ErrorCode::AccessDenied, json!(place)));
        for (access, read, write) in [
            (json!({}), may_not("/context/id"), may_not("/context/id")),
            (json!({ "read": [giver] }), Ok(()), may_not("/context/path")),
            (json!({ "write": [{ "principal": giver, "paths": ["/shared_memory/plan/a"] }] }), Ok(()), may_not("/context/path")),
            (json!({ "write": [{ "principal": giver, "paths": ["/shared_memory/plan"] }] }), Ok(()), Ok(())),
            (json!({ "read": [giver] }), Ok(()), may_not("/context/path")),
        ] {
            let access = serde_json::from_value(access).expect("who may");
            node.handle.share_context(&text, access, None).await.expect("the owner may");
            assert_eq!(does(&given).await, (read, write.clone(), write));
        }
        assert_eq!(does(&own).await, (Ok(()), Ok(()), Ok(())), "a task of this node's own");
        let log = node.handle.context(&text, Some("/shared_memory/plan"), None, None).await.expect("a list");
        assert_eq!(log, json!(["x", "x"]), "what was refused wrote nothing");
        drop(node);
    }

    /// AITP-12: whatever part of a step's operations the disk had when the node went down, all of them are there once in the end.
    #[tokio::test(flavor = "multi_thread")]
    async fn what_was_written_in_part_is_completed_once() {
        let folder = tempfile::tempdir().expect("a folder");
        let node = node(folder.path()).await;
        let created = node.handle.create_context(ContextRequest::default()).await.expect("a context");
        let id = created["id"].as_str().and_then(|id| id.parse().ok()).expect("an id");
        let context = TaskContext { id, access: ContextAccess::Write, path: Path::shared(), agent: None };
        let used = Used { context, giver: None };
        let step = |name: &str| Step { task: TaskId::from_random(7), subtask: name.parse().expect("a name") };
        let path = "/shared_memory/log".parse::<Path>().expect("a path");
        let items: Vec<Item> = (0..5).map(|at| Item::Append(path.clone(), json!(at))).collect();
        let shared = Arc::clone(&node.handle.shared);
        let log = tokio::task::spawn_blocking(move || {
            for there in 1..=items.len() {
                let step = step(&format!("s{there}"));
                used.write(&shared, &step, items[..there].to_vec(), false).expect("a part is written");
                for _ in 0..2 {
                    used.write(&shared, &step, items.clone(), true).expect("the rest is written");
                }
            }
            let given = used.given(&shared, ContextAccess::Read).expect("a context");
            serde_json::from_slice::<Value>(&given).expect("JSON")["value"]["log"].clone()
        });
        let once_each: Vec<u64> = (0..5).flat_map(|_| 0..5).collect();
        assert_eq!(log.await.expect("it is written"), json!(once_each));
        drop(node);
    }
}
