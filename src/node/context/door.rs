//! What clients ask of contexts: create, list, get, change, share, look back (AMP "Context Operations").
//!
//! A client acts as its node's key, or as one of the node's agents if it names one. Names of others may be keys, ids of nodes, or names that
//! the directory resolves without doubt.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::book::{EQUIVOCATIONS_MAX, own_keys};
use super::hot::{Hot, Taken};
use crate::model::{AGENT_MEMORY, ContextId, ErrorCode, Failure, Now, OperationId, Path, Principal, SHARED_MEMORY, Timestamp};
use crate::node::handle::{Handle, disk_failure, stopping};
use crate::node::shared::Shared;
use crate::node::view::Event;
use crate::proto::context::edit;
use crate::proto::context::gone::Why;
use crate::proto::context::replica::{self, Refusal};
use crate::wire;
use crate::wire::context::{Access, Body, Genesis, Item, OPERATION_BYTES_MAX, Operation, PrincipalKey, Step, Verified, Writer};

/// How long a context lives if nobody says how long.
const LIFE_DEFAULT: Duration = Duration::from_secs(24 * 3_600);
/// How long a context may be asked to live.
pub(super) const LIFE_MAX: Duration = Duration::from_secs(366 * 24 * 3_600);
/// What the items of one operation take at most, so that it fits with all that stands around them.
const ITEMS_BYTES_MAX: usize = OPERATION_BYTES_MAX - 4 * 1024;
/// Rows of a history where nobody says how many, and at most.
const HISTORY_DEFAULT: usize = 100;
const HISTORY_MAX: usize = 1_000;

/// What somebody wants to create.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ContextRequest {
    /// The session that it belongs to, in the client's words; one is made up without it.
    pub session_id: Option<String>,
    /// When it ends.
    pub expires_at: Option<String>,
    /// What it holds from the beginning.
    pub shared_memory: Option<Map<String, Value>>,
    /// Who else may read and write.
    #[serde(default)]
    pub access_control: Rights,
    /// As which agent of this node; without it as the node.
    pub agent: Option<String>,
}

/// Who may read and write (AMP `access_control`).
#[derive(Debug, Default, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rights {
    /// Who may read.
    #[serde(default)]
    pub read: Vec<String>,
    /// Who may write, and where; whoever may write may read as well.
    #[serde(default)]
    pub write: Vec<Grant>,
}

/// Who may read and write from now on.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AccessRequest {
    /// As [`Rights::read`].
    #[serde(default)]
    read: Vec<String>,
    /// As [`Rights::write`].
    #[serde(default)]
    write: Vec<Grant>,
    /// When the context ends, if it is to live longer.
    expires_at: Option<String>,
}

/// Somebody who may write: everywhere, or below some paths.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub enum Grant {
    /// Everywhere.
    All(String),
    /// Below these.
    Below {
        /// Who.
        principal: String,
        /// Where.
        paths: Vec<String>,
    },
}

pub(super) fn fault(path: &str, message: impl AsRef<str>) -> Failure {
    Failure::new(ErrorCode::InvalidRequest, message).with("path", path)
}

/// What a refusal is to a client.
pub(super) fn refused(refusal: &Refusal) -> Failure {
    let code = match refusal {
        Refusal::Access | Refusal::NotReader => ErrorCode::AccessDenied,
        Refusal::Frozen | Refusal::Behind | Refusal::Checkpoint(_) => ErrorCode::Conflict,
        Refusal::Quota => ErrorCode::OverBudget,
        Refusal::Malformed(wire::Error::Oversize { .. }) => ErrorCode::PayloadTooLarge,
        Refusal::Malformed(_) | Refusal::Foreign | Refusal::Shut(_) | Refusal::Numbers(_) => ErrorCode::InvalidRequest,
    };
    Failure::new(code, refusal.to_string())
}

impl Handle {
    /// Does something with the contexts' files on a worker.
    pub(super) async fn on_worker<T: Send + 'static>(
        &self,
        act: impl FnOnce(&Self, Now) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Failure> {
        let handle = self.clone();
        let now = self.shared.clock.now();
        tokio::task::spawn_blocking(move || act(&handle, now)).await.map_err(|_| stopping())?
    }

    /// The key of the agent of this node that is called `agent`, or of the node itself.
    fn acting(&self, agent: Option<&str>) -> Result<PrincipalKey, Failure> {
        acting(&self.shared, agent)
    }

    async fn principal(&self, text: &str, path: &str) -> Result<Principal, Failure> {
        if let Ok(principal) = text.parse() {
            return Ok(principal);
        }
        let view = self.agent(text).await.map_err(|failure| failure.with("path", path))?;
        Ok(view.entry.record.agent.into())
    }

    pub(super) async fn rights(&self, asked: &Rights, place: &str) -> Result<replica::Rights, Failure> {
        let mut rights = replica::Rights::default();
        for (at, text) in asked.read.iter().enumerate() {
            rights.read.insert(self.principal(text, &format!("{place}/read/{at}")).await?);
        }
        for (at, grant) in asked.write.iter().enumerate() {
            let place = format!("{place}/write/{at}");
            let (text, paths) = match grant {
                Grant::All(text) => (text, BTreeSet::from([Path::shared()])),
                Grant::Below { principal, paths } => {
                    let parse = |(at, text): (usize, &String)| {
                        text.parse::<Path>().map_err(|error| fault(&format!("{place}/paths/{at}"), error.to_string()))
                    };
                    (principal, paths.iter().enumerate().map(parse).collect::<Result<_, _>>()?)
                }
            };
            rights.write.entry(self.principal(text, &place).await?).or_default().extend(paths);
        }
        Ok(rights)
    }

    pub(super) fn end(text: Option<&str>, path: &str, now: Now) -> Result<Option<Timestamp>, Failure> {
        let Some(text) = text else { return Ok(None) };
        let end: Timestamp = text.parse().map_err(|_| fault(path, "expected a time such as 2026-12-24T18:00:00Z"))?;
        if end <= now.wall {
            return Err(fault(path, format!("{end} is past")));
        }
        if end.saturating_since(now.wall) > LIFE_MAX {
            return Err(fault(path, format!("a context lives at most {} days", LIFE_MAX.as_secs() / 86_400)));
        }
        Ok(Some(end))
    }

    /// Creates a context, durably, and tells the nodes of its readers.
    ///
    /// # Errors
    /// `INVALID_REQUEST` with the path of the fault, `INSUFFICIENT_RESOURCES`, those of names that are not known.
    pub async fn create_context(&self, request: ContextRequest) -> Result<Value, Failure> {
        let now = self.shared.clock.now();
        let key = self.acting(request.agent.as_deref())?;
        let end = Self::end(request.expires_at.as_deref(), "/expires_at", now)?.unwrap_or_else(|| now.wall.saturating_add(LIFE_DEFAULT));
        let rights = self.rights(&request.access_control, "/access_control").await?;
        let session_id = request.session_id.unwrap_or_else(|| crate::model::TaskId::from_random(rand::random()).to_string());
        let genesis = Genesis {
            v: wire::VERSION,
            owner: key.principal(),
            nonce: rand::random(),
            session_id,
            created_at: now.wall,
            expires_at: end,
            parent: None,
        };
        let items: Vec<Item> = match request.shared_memory {
            Some(fields) if !fields.is_empty() => edit::merge_patch(&json!({ SHARED_MEMORY: fields }))?,
            Some(_) | None => Vec::new(),
        };
        self.on_worker(move |handle, now| handle.begin_context(&key, genesis, &rights, items, now)).await
    }

    /// Begins a context with all that it holds, durably, and tells of it; one that was forked holds what its parent held.
    pub(super) fn begin_context(
        &self,
        key: &PrincipalKey,
        genesis: Genesis,
        rights: &replica::Rights,
        items: Vec<Item>,
        now: Now,
    ) -> Result<Value, Failure> {
        let end = genesis.expires_at;
        let origin = genesis.parent.as_ref().map(|parent| Origin { context: parent.context, frontier: parent.frontier.clone() });
        let genesis = replica::begin(key, genesis).map_err(|refusal| refused(&refusal))?;
        let mut blank = replica::Replica::new(genesis.clone(), own_keys(&self.shared));
        let access = blank.draft_access(key, rights, end, now.wall, &mut rand::rng()).map_err(|refusal| refused(&refusal))?;
        // What cannot be written is refused before anything is kept.
        blank.on_access(access.clone()).map_err(|refusal| Failure::new(ErrorCode::InvalidRequest, refusal.to_string()))?;
        let mut operations = Vec::new();
        for body in bodies(items, origin.as_ref())? {
            let operation = blank.draft(key, &body, now.wall, &mut rand::rng()).map_err(|refusal| refused(&refusal))?;
            blank.on_operation(operation.clone()).map_err(|refusal| refused(&refusal))?;
            operations.push(operation);
        }
        let row = self.shared.contexts.begin(&self.shared, genesis, vec![access.clone()], operations)?;
        let id = row.heads.context;
        let document = self.shared.contexts.with(&self.shared, id, now, |hot| Ok(document(hot, key)))?;
        self.context_changed(id, &[access], &[]);
        Ok(document)
    }

    /// Lists the contexts of this node, the latest first.
    ///
    /// # Errors
    /// `UNAVAILABLE` while the node stops.
    pub async fn contexts(&self) -> Result<Value, Failure> {
        self.on_worker(|handle, now| {
            let book = &handle.shared.contexts;
            let mut rows: Vec<_> = book.ids().into_iter().filter_map(|id| book.row(&handle.shared, id, now)).collect();
            rows.sort_by_key(|row| std::cmp::Reverse((row.created_at, row.heads.context)));
            Ok(json!({ "contexts": rows.iter().map(super::book::Row::document).collect::<Vec<_>>() }))
        })
        .await
    }

    /// Shows a context, or what is at a path of it: as it is, or as it was after the operations `at` and all that they build on.
    ///
    /// # Errors
    /// `CONTEXT_NOT_FOUND`, also for an operation; `ACCESS_DENIED` if whoever asks may not read it.
    pub async fn context(&self, which: &str, path: Option<&str>, at: Option<Vec<String>>, agent: Option<&str>) -> Result<Value, Failure> {
        let id = self.shared.contexts.named(which)?;
        let path = path.map(|text| text.parse::<Path>().map_err(|error| fault("/path", error.to_string()))).transpose()?;
        let agent = agent.map(str::to_owned);
        self.on_worker(move |handle, now| {
            handle.shared.contexts.with(&handle.shared, id, now, |hot| {
                let key = handle.reading(hot, agent.as_deref())?;
                let reader = key.principal();
                let older = at.map(|at| super::branch::Older::of(hot, &at, reader)).transpose()?;
                let Some(path) = path else {
                    let mut document = document(hot, &key);
                    older.iter().for_each(|older| older.show(&mut document, reader));
                    return Ok(document);
                };
                let found = older.map_or_else(|| hot.replica.get(&path, reader), |older| older.state.get(&path, reader));
                found.ok_or_else(|| fault("/path", format!("nothing is at {path}")))
            })
        })
        .await
    }

    /// The key of whoever asks: of the agent that was named, else of the node.
    pub(super) fn reading(&self, hot: &Hot, agent: Option<&str>) -> Result<PrincipalKey, Failure> {
        let may_read = |key: &PrincipalKey| hot.replica.chain().tip().is_some_and(|access| access.may_read(key.principal()));
        Some(self.acting(agent)?).filter(may_read).ok_or_else(|| {
            let message = match agent {
                Some(_) => "the agent is not, or not any more, among the readers of the context",
                None => "the node itself is not, or not any more, among the readers of the context; an agent of it that is must be named",
            };
            Failure::new(ErrorCode::AccessDenied, message).with("suggestion", "its owner adds readers with `meshwork context grant`")
        })
    }

    /// Changes a context: `{"ops": [...]}`, or a merge patch on the context object (RFC 7396). Durable before it is answered.
    ///
    /// # Errors
    /// `INVALID_REQUEST` with the path of the fault, `ACCESS_DENIED`, `CONFLICT`, `PAYLOAD_TOO_LARGE`.
    pub async fn change_context(&self, which: &str, body: &Value, agent: Option<&str>) -> Result<Value, Failure> {
        let id = self.shared.contexts.named(which)?;
        let items = match body.get("ops") {
            Some(list) if body.as_object().is_some_and(|fields| fields.len() == 1) => edit::operations(list)?,
            Some(_) => return Err(fault("/ops", "operations and a merge patch do not go together")),
            None => edit::merge_patch(body)?,
        };
        let agent = agent.map(str::to_owned);
        self.on_worker(move |handle, now| {
            let (answer, taken) = handle.shared.contexts.with(&handle.shared, id, now, |hot| {
                let key = handle.reading(hot, agent.as_deref())?;
                let taken = write(hot, &key, items, None, now)?;
                Ok((json!({ "id": id, "operations": taken.ids(), "version": version(hot) }), taken))
            })?;
            handle.context_changed(id, &[], &taken.operations);
            Ok(answer)
        })
        .await
    }

    /// Changes who may read and write; the lists replace those before.
    ///
    /// # Errors
    /// `ACCESS_DENIED` unless the owner asks, `INVALID_REQUEST`, `CONFLICT` if access stands still.
    pub async fn share_context(&self, which: &str, asked: AccessRequest, agent: Option<&str>) -> Result<Value, Failure> {
        let id = self.shared.contexts.named(which)?;
        let AccessRequest { read, write, expires_at } = asked;
        let rights = self.rights(&Rights { read, write }, "").await?;
        let end = Self::end(expires_at.as_deref(), "/expires_at", self.shared.clock.now())?;
        let agent = agent.map(str::to_owned);
        self.on_worker(move |handle, now| {
            let (answer, access) = handle.shared.contexts.with(&handle.shared, id, now, |hot| {
                let key = handle.owning(hot, agent.as_deref())?;
                let before = hot.replica.chain().expires_at();
                let end = end.unwrap_or(before);
                if end < before {
                    return Err(fault("/expires_at", format!("a context does not end earlier than it was to: {before}")));
                }
                let access =
                    hot.replica.draft_access(&key, &rights, end, now.wall, &mut rand::rng()).map_err(|refusal| refused(&refusal))?;
                if let Some(reason) = hot.take_own_access(access.clone())?.refused {
                    return Err(Failure::new(ErrorCode::Conflict, reason));
                }
                Ok((document(hot, &key), access))
            })?;
            handle.context_changed(id, &[access], &[]);
            Ok(answer)
        })
        .await
    }

    /// Lets go of this node's replica of a context, durably, and takes it in from nobody for 30 days. Others keep theirs.
    ///
    /// # Errors
    /// `CONTEXT_NOT_FOUND`, or those of the disk.
    pub async fn drop_context(&self, which: &str) -> Result<ContextId, Failure> {
        let id = self.shared.contexts.named(which)?;
        self.on_worker(move |handle, now| {
            handle.shared.contexts.let_go(&[id], Why::Dropped, now).map_err(disk_failure)?;
            Ok(id)
        })
        .await
    }

    pub(super) fn owning(&self, hot: &Hot, agent: Option<&str>) -> Result<PrincipalKey, Failure> {
        let owner = hot.replica.genesis().owner;
        Some(self.acting(agent)?).filter(|key| key.principal() == owner).ok_or_else(|| {
            let message = format!("only the owner {owner} changes who may read and write, and makes checkpoints");
            Failure::new(ErrorCode::AccessDenied, message)
        })
    }

    /// Who wrote what, the latest first: author, time, and the step of a task that wrote it.
    ///
    /// # Errors
    /// `CONTEXT_NOT_FOUND`, `ACCESS_DENIED`.
    pub async fn context_history(&self, which: &str, limit: Option<usize>, agent: Option<&str>) -> Result<Value, Failure> {
        let id = self.shared.contexts.named(which)?;
        let limit = limit.unwrap_or(HISTORY_DEFAULT);
        if !(1..=HISTORY_MAX).contains(&limit) {
            return Err(fault("/limit", format!("expected 1 to {HISTORY_MAX}")));
        }
        let agent = agent.map(str::to_owned);
        self.on_worker(move |handle, now| {
            handle.shared.contexts.with(&handle.shared, id, now, |hot| {
                let key = handle.reading(hot, agent.as_deref())?;
                history(hot, &key, limit)
            })
        })
        .await
    }

    /// Tells listeners here, and the nodes of readers, that a context has changed.
    pub(super) fn context_changed(&self, id: ContextId, accesses: &[Verified<Access>], operations: &[Verified<Operation>]) {
        super::sync::changed(&self.shared, id, accesses, operations, None);
    }
}

/// What a change of a context is to listeners (AMP 4, `context_update`).
pub(super) fn update(id: ContextId, session_id: &str, accesses: &[Verified<Access>], operations: &[Verified<Operation>]) -> Event {
    let authors: BTreeSet<Principal> = operations.iter().map(|operation| operation.header.author).collect();
    Event::ContextUpdate(Arc::new(json!({
        "context": { "id": id, "session_id": session_id },
        "operations": operations.iter().map(Verified::<Operation>::id).collect::<Vec<_>>(),
        "authors": authors,
        "access_changed": !accesses.is_empty(),
    })))
}

/// The key of the agent of this node that is called `agent`, or of the node itself.
pub(super) fn acting(shared: &Shared, agent: Option<&str>) -> Result<PrincipalKey, Failure> {
    let Some(name) = agent else {
        return PrincipalKey::try_from(&shared.key).map_err(|error| Failure::new(ErrorCode::Internal, error.to_string()));
    };
    let found = shared.registry.all().into_iter().find(|agent| agent.name() == name || agent.id().to_string() == name);
    let found = found.ok_or_else(|| {
        let message = format!("no agent of this node is called `{}`; a client acts only for those", crate::model::printable(name, 80));
        Failure::new(ErrorCode::AgentNotFound, message)
    })?;
    Ok(PrincipalKey::from(found.key()))
}

/// What operations of one context were made of: how far another had come.
pub(super) struct Origin {
    pub(super) context: ContextId,
    pub(super) frontier: Vec<OperationId>,
}

/// Writes items as operations of the author with `key`, by a step of a task if there is one: all of them, or none.
pub(super) fn write(hot: &mut Hot, key: &PrincipalKey, items: Vec<Item>, step: Option<&Step>, now: Now) -> Result<Taken, Failure> {
    may_write(hot, key.principal(), &items)?;
    edit::check(&hot.replica, key.principal(), &items)?;
    let mut bodies = bodies(items, None)?;
    bodies.iter_mut().for_each(|body| body.step = step.cloned());
    append(hot, key, &bodies, now)
}

/// The same with what a merge brings, which fits by itself.
pub(super) fn bring(hot: &mut Hot, key: &PrincipalKey, items: Vec<Item>, origin: &Origin, now: Now) -> Result<Taken, Failure> {
    may_write(hot, key.principal(), &items)?;
    append(hot, key, &bodies(items, Some(origin))?, now)
}

fn may_write(hot: &Hot, author: Principal, items: &[Item]) -> Result<(), Failure> {
    let tip = hot.replica.chain().tip();
    let Some(item) = items.iter().find(|item| !tip.is_some_and(|access| access.may_write(author, item.path()))) else { return Ok(()) };
    let message = format!("{author} may not write at {}", item.path());
    Err(Failure::new(ErrorCode::AccessDenied, message).with("path", item.path().to_string()))
}

fn append(hot: &mut Hot, key: &PrincipalKey, bodies: &[Body], now: Now) -> Result<Taken, Failure> {
    hot.may_draft(key.principal())?;
    // Looked at before anything is drafted, since what the disk does not take has the replica read anew.
    let bytes = bodies.iter().flat_map(|body| &body.items).map(edit::size).sum::<usize>();
    hot.has_room(u64::try_from(bytes).unwrap_or(u64::MAX))?;
    let mut taken = Taken::default();
    for body in bodies {
        // What was taken in before one that is refused is dropped with the replica, and is not in the file.
        let operation = hot.replica.draft(key, body, now.wall, &mut rand::rng()).map_err(|refusal| refused(&refusal))?;
        hot.take_drafted(operation, &mut taken).map_err(|refusal| refused(&refusal))?;
    }
    hot.keep(taken)
}

/// The operations that items become.
pub(super) fn bodies(items: Vec<Item>, origin: Option<&Origin>) -> Result<Vec<Body>, Failure> {
    if let Some(item) = items.iter().find(|item| edit::size(item) > ITEMS_BYTES_MAX) {
        let message = format!("what goes to {} takes more than an operation of {} KiB holds", item.path(), OPERATION_BYTES_MAX / 1024);
        return Err(Failure::new(ErrorCode::PayloadTooLarge, message).with("path", item.path().to_string()));
    }
    let sources = || origin.map(|origin| origin.frontier.clone()).unwrap_or_default();
    // A context in which nothing was written has come nowhere.
    let source = origin.filter(|origin| !origin.frontier.is_empty()).map(|origin| origin.context);
    let portions = edit::portions(items, ITEMS_BYTES_MAX).into_iter();
    let bodies: Vec<Body> = portions.map(|items| Body { items, sources: sources(), step: None, source, again: None }).collect();
    bodies.iter().try_for_each(Body::check).map_err(|error| refused(&Refusal::Malformed(error)))?;
    Ok(bodies)
}

/// How far the context has come.
fn version(hot: &Hot) -> Value {
    let replica = &hot.replica;
    json!({
        "frontier": replica.operations().heads(),
        "operations": replica.operations().len(),
        "access_epoch": replica.chain().epoch(),
    })
}

/// The same with the hash of the whole state, which takes as long as the state is large.
pub(super) fn version_with_hash(hot: &Hot) -> Value {
    let mut version = version(hot);
    version["state_hash"] = hex(&hot.replica.state_hash()).into();
    version
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Who signed two operations of one number, and which they are: either of them with its signature is half of the proof.
fn equivocations(hot: &Hot) -> Vec<Value> {
    let proofs = hot.replica.operations().equivocations(EQUIVOCATIONS_MAX).into_iter();
    proofs.map(|proof| json!({ "author": proof.author, "seq": proof.seq, "operations": proof.operations })).collect()
}

/// The context as the reader with `key` sees it (AMP "Context Object Structure").
pub(super) fn document(hot: &Hot, key: &PrincipalKey) -> Value {
    let (replica, genesis) = (&hot.replica, hot.replica.genesis());
    let private = replica.private(key.principal());
    let agent_memory: BTreeMap<String, Value> = private.into_iter().map(|memory| (key.principal().to_string(), memory)).collect();
    let root = genesis.parent.as_ref().map_or_else(|| replica.id(), |parent| parent.root);
    json!({
        "id": replica.id(),
        "session_id": genesis.session_id,
        "owner": genesis.owner,
        "created_at": genesis.created_at.to_string(),
        "expires_at": replica.chain().expires_at().to_string(),
        SHARED_MEMORY: replica.shared(),
        AGENT_MEMORY: agent_memory,
        "lineage": { "parent_context": genesis.parent.as_ref().map(|parent| parent.context), "root_context": root },
        "access_control": replica.chain().tip().map(|access| lists(access)),
        "access_frozen": replica.chain().split().is_some(),
        "checkpoint": super::checkpoint::shown(replica),
        "equivocations": equivocations(hot),
        "version": version_with_hash(hot),
    })
}

/// Who may read and write (AMP `access_control`).
pub(super) fn lists(access: &Access) -> Value {
    let writer = |writer: &Writer| json!({ "principal": writer.principal, "paths": writer.prefixes });
    json!({
        "read": access.readers.iter().map(|reader| reader.principal).collect::<Vec<_>>(),
        "write": access.writers.iter().map(writer).collect::<Vec<_>>(),
    })
}

fn history(hot: &Hot, key: &PrincipalKey, limit: usize) -> Result<Value, Failure> {
    let operations = hot.operations(hot.replica.operations().latest(limit))?;
    let total = hot.replica.operations().len();
    let rows = operations.iter().map(|operation| row(hot, operation, key.principal()));
    let first = super::checkpoint::shown_at(&hot.replica, hot.replica.first_era());
    Ok(json!({ "id": hot.replica.id(), "operations": rows.collect::<Vec<_>>(), "total": total, "since": first }))
}

/// An operation that the replica took in, as `reader` may see it.
pub(super) fn row(hot: &Hot, operation: &Verified<Operation>, reader: Principal) -> Value {
    let counts = hot.replica.operations().get(operation.id()).is_some_and(|entry| entry.counts);
    let body = hot.replica.open_for(operation, reader);
    json!({
        "id": operation.id(),
        "author": operation.header.author,
        "at": operation.header.at.to_string(),
        "lamport": operation.header.lamport,
        "counts": counts,
        "private": operation.header.is_private,
        "items": body.as_ref().map(|body| body.items.iter().map(item).collect::<Vec<_>>()),
        "step": body.as_ref().and_then(|body| body.step.as_ref()).map(|step| json!({ "task_id": step.task, "subtask_id": step.subtask })),
        "source": body.as_ref().and_then(|body| body.source),
        "sources": body.as_ref().map(|body| &body.sources),
    })
}

fn item(item: &Item) -> Value {
    match item {
        Item::Set(path, value) => json!({ "op": "set", "path": path, "value": value }),
        Item::Del(path) => json!({ "op": "del", "path": path }),
        Item::Inc(path, by) => json!({ "op": "inc", "path": path, "by": by }),
        Item::Append(path, value) => json!({ "op": "append", "path": path, "value": value }),
    }
}
