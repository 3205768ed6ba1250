//! What clients ask of forks, merges and older states (AMP "Fork Context", "Merge Contexts"; design/contexts.md "Life").
//!
//! What a fork begins with and what a merge brings is decided in `proto::context::branch`; here it is read from the files of this node and
//! written. A fork is on the disk as a whole or not at all, and so is what a merge writes. Two merges do not run at once on a node, since
//! the second would bring what the first has just brought.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;
use serde_json::{Value, json};

use super::door::{LIFE_MAX, Origin, Rights, bring, fault, hex, version_with_hash};
use super::hot::{Hot, Taken};
use crate::model::{AGENT_MEMORY, ContextId, ErrorCode, Failure, OperationId, Path, Principal, SHARED_MEMORY, printable};
use crate::node::handle::Handle;
use crate::node::shared::lock;
use crate::proto::context::branch::{self, Apart, Conflict, Had, Prefer, Untold, Work};
use crate::proto::context::past::{Past, State};
use crate::proto::context::replica;
use crate::wire;
use crate::wire::context::{FRONTIER_MAX, Genesis};

/// How many digits of an operation's name tell it apart.
const DIGITS_MIN: usize = 8;

/// What somebody wants to fork.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ForkRequest {
    /// The session that the fork belongs to; that of the parent without it.
    pub session_id: Option<String>,
    /// When it ends; with its parent without it.
    pub expires_at: Option<String>,
    /// Who else may read and write; without it whoever may in the parent, the parent's owner among them.
    pub access_control: Option<Rights>,
    /// The operations after which it leaves its parent; the newest without it.
    pub at: Option<Vec<String>>,
    /// As which agent of this node; without it as the node.
    pub agent: Option<String>,
}

/// What somebody wants to merge into a context.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MergeRequest {
    /// The context from which changes come.
    pub source: String,
    /// Whose value stays where both changed one.
    #[serde(default)]
    pub prefer: Prefer,
    /// As which agent of this node; without it as the node.
    pub agent: Option<String>,
}

/// A context as it was.
pub(super) struct Older {
    pub(super) state: State,
    /// The newest of its operations.
    frontier: BTreeSet<OperationId>,
    operations: usize,
}

impl Older {
    /// The context after the operations `at` and all that they build on, as `reader` sees it.
    pub(super) fn of(hot: &Hot, at: &[String], reader: Principal) -> Result<Self, Failure> {
        let past = hot.past()?;
        Self::after(&past, operations(hot, at)?, reader)
    }

    fn after(past: &Past<'_>, frontier: impl IntoIterator<Item = OperationId>, reader: Principal) -> Result<Self, Failure> {
        let behind = past.behind(frontier);
        let state = past.state(&behind, reader).ok_or_else(|| incomplete(past.replica().id()))?;
        Ok(Self { state, frontier: past.heads(&behind), operations: behind.len() })
    }

    /// Puts what it held into the object of the context; who may read and write is as it is now.
    pub(super) fn show(&self, document: &mut Value, reader: Principal) {
        let private: BTreeMap<String, Value> = self.state.private().into_iter().map(|memory| (reader.to_string(), memory)).collect();
        document[SHARED_MEMORY] = self.state.shared();
        document[AGENT_MEMORY] = json!(private);
        let version = &mut document["version"];
        version["frontier"] = json!(self.frontier);
        version["state_hash"] = json!(hex(&self.state.hash()));
        version["operations"] = json!(self.operations);
    }
}

/// The operations that these texts name: ids, or the beginnings of them.
fn operations(hot: &Hot, texts: &[String]) -> Result<Vec<OperationId>, Failure> {
    if texts.is_empty() || texts.len() > FRONTIER_MAX {
        return Err(fault("/at", format!("expected 1 to {FRONTIER_MAX} operations, found {}", texts.len())));
    }
    let named = |(at, text): (usize, &String)| {
        let place = format!("/at/{at}");
        let shown = printable(text, 80);
        if text.len() < DIGITS_MIN || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(fault(&place, format!("`{shown}` is no operation: expected its id, or at least its first {DIGITS_MIN} digits")));
        }
        match hot.replica.named(text).as_slice() {
            [id] => Ok(*id),
            [] => {
                let message = format!("no operation `{shown}` of context {} is known here", hot.replica.id().short());
                Err(Failure::new(ErrorCode::ContextNotFound, message).with("path", place))
            }
            _ => Err(fault(&place, format!("`{shown}` begins the ids of several operations; write more of it"))),
        }
    };
    texts.iter().enumerate().map(named).collect()
}

/// The newest operations of a context, as another one names them.
fn named(context: ContextId, frontier: &BTreeSet<OperationId>) -> Result<Vec<OperationId>, Failure> {
    if frontier.len() > FRONTIER_MAX {
        let message =
            format!("context {} has {} newest operations at once, and {FRONTIER_MAX} can be named", context.short(), frontier.len());
        let failure = Failure::new(ErrorCode::Conflict, message);
        return Err(failure.with("suggestion", "a change of the context by one who has seen them makes them fewer"));
    }
    Ok(frontier.iter().copied().collect())
}

impl Handle {
    /// Forks a context, durably: a new one, owned by whoever asks, that holds what its parent holds, or held.
    ///
    /// # Errors
    /// `CONTEXT_NOT_FOUND`, `ACCESS_DENIED` if whoever asks may not read the parent, `INVALID_REQUEST` with the path of the fault,
    /// `INSUFFICIENT_RESOURCES`, `UNAVAILABLE` if what the parent held at a checkpoint is not here yet, `OVER_BUDGET` if it holds more than
    /// one author may write.
    pub async fn fork_context(&self, which: &str, request: ForkRequest) -> Result<Value, Failure> {
        let id = self.shared.contexts.named(which)?;
        let now = self.shared.clock.now();
        let ForkRequest { session_id, expires_at, access_control, at, agent } = request;
        let end = Self::end(expires_at.as_deref(), "/expires_at", now)?;
        let asked = match &access_control {
            Some(asked) => Some(self.rights(asked, "/access_control").await?),
            None => None,
        };
        self.on_worker(move |handle, now| {
            let (key, genesis, rights, items) = handle.shared.contexts.with(&handle.shared, id, now, |hot| {
                let key = handle.reading(hot, agent.as_deref())?;
                if !hot.replica.is_whole() {
                    return Err(incomplete(id));
                }
                let past = hot.past()?;
                let older = match &at {
                    Some(at) => Older::after(&past, operations(hot, at)?, key.principal())?,
                    None => Older::after(&past, hot.replica.operations().heads().iter().copied(), key.principal())?,
                };
                named(id, &older.frontier)?;
                let genesis = Genesis {
                    v: wire::VERSION,
                    owner: key.principal(),
                    nonce: rand::random(),
                    session_id: session_id.unwrap_or_else(|| hot.replica.genesis().session_id.clone()),
                    created_at: now.wall,
                    expires_at: end.unwrap_or_else(|| hot.replica.chain().expires_at().min(now.wall.saturating_add(LIFE_MAX))),
                    parent: Some(branch::leave(&hot.replica, &older.frontier, older.state.hash())),
                };
                let rights = asked.unwrap_or_else(|| inherited(hot));
                Ok((key, genesis, rights, branch::copy(&older.state.shared())))
            })?;
            handle.begin_context(&key, genesis, &rights, items, now)
        })
        .await
    }

    /// Brings what `source` changed since the two were one, or were merged last, into a context. Durable before it is answered.
    ///
    /// # Errors
    /// `CONTEXT_NOT_FOUND`, also for a context on the way from one to the other; `ACCESS_DENIED` if whoever asks may not read the source or not
    /// write what changed; `CONFLICT` if they have no common ancestor; `UNAVAILABLE` if the source has not come here as far as the target
    /// knows it, or what one of them held at a checkpoint has not; `PAYLOAD_TOO_LARGE`, `OVER_BUDGET`.
    pub async fn merge_context(&self, which: &str, request: MergeRequest) -> Result<Value, Failure> {
        let id = self.shared.contexts.named(which)?;
        let MergeRequest { source, prefer, agent } = request;
        let source = self.shared.contexts.named(&source).map_err(|failure| failure.with("path", "/source"))?;
        if source == id {
            return Err(fault("/source", "a context is not merged into itself"));
        }
        self.on_worker(move |handle, now| {
            let (book, shared) = (&handle.shared.contexts, &handle.shared);
            let _alone = lock(&book.merging);
            let (mut had, target) = book.with(shared, id, now, |hot| {
                let reader = handle.reading(hot, agent.as_deref())?.principal();
                let had = Had::of(&hot.past()?, source, reader).ok_or_else(|| incomplete(id))?;
                Ok((had, (**hot.replica.genesis()).clone()))
            })?;
            let genesis_of = |id| book.with(shared, id, now, |hot| Ok((**hot.replica.genesis()).clone()));
            let parting = branch::parting((source, &genesis_of(source)?), (id, &target), |id| genesis_of(id).ok());
            had.add(parting.map_err(|apart| refused(source, id, &apart))?);
            let (work, origin) = book.with(shared, source, now, |hot| {
                let reader = handle.reading(hot, agent.as_deref())?.principal();
                let work = Work::of(&hot.past()?, id, &had, reader).map_err(|untold| behind(source, id, untold))?;
                Ok((work, Origin { context: source, frontier: named(source, hot.replica.operations().heads())? }))
            })?;
            let (answer, taken) = book.with(shared, id, now, |hot| {
                let key = handle.reading(hot, agent.as_deref())?;
                let merge = branch::merge(&work, &hot.replica.shared(), prefer);
                let changed: BTreeSet<Path> = merge.items.iter().map(|item| item.path().clone()).collect();
                let taken = if merge.items.is_empty() { Taken::default() } else { bring(hot, &key, merge.items, &origin, now)? };
                let answer = json!({
                    "id": id,
                    "source": source,
                    "operations": taken.ids(),
                    "changed": changed,
                    "conflicts": merge.conflicts.iter().map(conflict).collect::<Vec<_>>(),
                    "version": version_with_hash(hot),
                });
                Ok((answer, taken))
            })?;
            if !taken.is_empty() {
                handle.context_changed(id, &[], &taken.operations);
            }
            Ok(answer)
        })
        .await
    }
}

/// Who may do in a fork what they may in its parent; the parent's owner, who may all, is named.
fn inherited(hot: &Hot) -> replica::Rights {
    let access = hot.replica.chain().tip();
    let mut rights = replica::Rights::default();
    if let Some(access) = access {
        rights.read.extend(access.readers.iter().map(|reader| reader.principal));
        rights.write.extend(access.writers.iter().map(|writer| (writer.principal, writer.prefixes.iter().cloned().collect())));
    }
    rights.write.insert(hot.replica.genesis().owner, BTreeSet::from([Path::shared()]));
    rights
}

fn conflict(conflict: &Conflict) -> Value {
    let mut row = json!({ "path": conflict.path });
    for (side, value) in [("source", &conflict.source), ("target", &conflict.target)] {
        if let Some(value) = value {
            row[side] = value.clone();
        }
    }
    row
}

fn refused(source: ContextId, target: ContextId, apart: &Apart) -> Failure {
    match apart {
        Apart::Strangers(of_source, of_target) => {
            let message =
                format!("contexts {source} and {target} have no common ancestor: one comes of {of_source}, the other of {of_target}");
            let failure = Failure::new(ErrorCode::Conflict, message).with("path", "/source");
            failure.with("source_root", of_source.to_string()).with("target_root", of_target.to_string())
        }
        Apart::Unknown(missing) => {
            let message = format!("whether {target} comes of {source} is not known: context {missing} between them is not here");
            Failure::new(ErrorCode::ContextNotFound, message).with("path", "/source").with("missing", missing.to_string())
        }
    }
}

fn incomplete(context: ContextId) -> Failure {
    let message = format!("what context {} held at a checkpoint is not here yet", context.short());
    Failure::new(ErrorCode::Unavailable, message).with("suggestion", "it comes from another reader's node; try again then")
}

fn behind(source: ContextId, target: ContextId, untold: Untold) -> Failure {
    match untold {
        Untold::Missing(missing) => {
            let message = format!(
                "context {} knows operation {missing} of context {}, which is not here: it has not come yet, or was let go of after a checkpoint",
                target.short(),
                source.short()
            );
            let failure = Failure::new(ErrorCode::Unavailable, message).with("operation", missing.to_string());
            failure.with("suggestion", "it comes from another reader's node; if it is lost, a fork of the target can be merged instead")
        }
        Untold::Incomplete => incomplete(source),
        Untold::Settled => {
            let message = format!("what context {} had before its own work was let go of after a checkpoint", source.short());
            let failure = Failure::new(ErrorCode::Conflict, message).with("path", "/source");
            failure.with("suggestion", "fork the target anew, and write to that what is to be merged")
        }
    }
}
