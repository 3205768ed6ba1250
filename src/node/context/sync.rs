//! Contexts between nodes: what others are told, what they are asked, and what they are given (design/contexts.md "Sync").
//!
//! What is new goes straight from its author's node to those of all readers. Not all of them may be connected to it, so whoever was told
//! passes on to a few others that there is something. When a peer connects, and with a random one every half minute, both compare how far
//! they have come and pull what they lack, so that a message that was lost is made up for. Nodes of readers alone are answered; the
//! connection proves the node, and the directory's signed records say whose agents live on it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use minicbor::bytes::ByteVec;
use rand::seq::IndexedRandom as _;
use serde_bytes::ByteBuf;
use tokio::sync::{broadcast, oneshot};

use super::book::Row;
use super::checkpoint::HEARING;
use super::hot::Hot;
use crate::model::{AgentId, ContextId, ErrorCode, Failure, NodeId, Principal, printable};
use crate::node::handle::stopping;
use crate::node::shared::{Command, Shared};
use crate::node::view::Event;
use crate::proto::context::chain::EPOCHS_MAX;
use crate::store::Kept;
use crate::wire::context::sync::{ANSWER_BYTES_MAX, Answer, HEADS_MAX, Heads, PIECE_BYTES_MAX, Question, STATEMENTS_MAX, Statements};
use crate::wire::context::{Access, Genesis, Operation, Signed, Verified};
use crate::wire::directory::Reply;

/// Pause between exchanges with a random peer.
const EXCHANGE_PAUSE: Duration = Duration::from_secs(30);
/// Pause between hints: what comes in meanwhile is passed on as one.
const HINT_PAUSE: Duration = Duration::from_secs(1);
/// How many members are told that another node had something new. Each of them tells as many, so that soon all have heard.
const HINTED: usize = 2;
/// Pause between looks for contexts that have ended.
const SWEEP_PAUSE: Duration = Duration::from_secs(60);
/// Contexts that are looked at for a member who is connected.
const MEMBER_TRIES: usize = 16;
/// How often a pull is done again because it was asked for meanwhile; what is still missing then comes with the next exchange.
const AGAIN_MAX: usize = 16;
/// Rounds of one pull: each brings more than a megabyte, or the last of it.
const ROUNDS_MAX: usize = 256;
/// How many bytes the changes of access of a context may have that is not here yet: eight times what 1,024 changes of a dozen readers take.
const LINE_BYTES_MAX: usize = 32 * 1024 * 1024;
/// How long the line of access of a context that is not here may take: only a few are gathered at once.
const GATHERING: Duration = Duration::from_secs(60);
/// What an answer has room for beside its statements.
const SPARE_BYTES: usize = 16 * 1024;
/// What stands around each statement in a message.
const STATEMENT_SPARE_BYTES: usize = 8;

async fn order<T>(shared: &Shared, make: impl FnOnce(oneshot::Sender<T>) -> Command) -> Result<T, Failure> {
    let (reply, answer) = oneshot::channel();
    shared.commands.send(make(reply)).await.map_err(|_| stopping())?;
    answer.await.map_err(|_| stopping())
}

pub(super) async fn blocking<T: Send + 'static>(act: impl FnOnce() -> T + Send + 'static) -> Result<T, Failure> {
    tokio::task::spawn_blocking(act).await.map_err(|_| stopping())
}

/// Everybody who reads through `node`: the node itself, and the agents that live there.
async fn principals(shared: &Shared, node: NodeId) -> Result<BTreeSet<Principal>, Failure> {
    let agents = order(shared, |reply| Command::AgentsOf { node, reply }).await?;
    let own = node.public_key().map(Principal::from_public_key);
    Ok(agents.into_iter().map(Principal::from).chain(own).collect())
}

/// The nodes through which `readers` read, but for this one.
pub(super) async fn nodes(shared: &Shared, readers: &[Principal]) -> Result<BTreeSet<NodeId>, Failure> {
    let agents: Vec<AgentId> = readers.iter().copied().map(AgentId::from).collect();
    let hosts = order(shared, |reply| Command::HostsOf { agents, reply }).await?;
    let direct = readers.iter().filter_map(|reader| NodeId::from_public_key(reader.public_key()));
    // A key that is no node's leads nowhere, and nobody is asked at it: only connected peers are.
    let connected: BTreeSet<NodeId> = order(shared, |reply| Command::Connected { reply }).await?.into_iter().collect();
    Ok(hosts.into_iter().chain(direct).filter(|node| *node != shared.node() && connected.contains(node)).collect())
}

async fn ask(shared: &Shared, node: NodeId, question: &Question) -> Result<Answer, Failure> {
    let question = question.encode().map_err(|error| Failure::new(ErrorCode::Internal, error.to_string()))?;
    let answer = order(shared, |reply| Command::Context { node, question, reply }).await??;
    Answer::decode(&answer).map_err(|error| Failure::new(ErrorCode::Unavailable, format!("node {}: {error}", node.short())))
}

/// Compares and completes contexts for as long as the node runs.
pub(in crate::node) async fn run(shared: Arc<Shared>) {
    let mut events = shared.events.subscribe();
    let worker = Arc::clone(&shared);
    let _ = blocking(move || worker.contexts.count()).await;
    let began = tokio::time::Instant::now();
    let mut exchange = tokio::time::interval(EXCHANGE_PAUSE);
    let mut hint = tokio::time::interval(HINT_PAUSE);
    let mut sweep = tokio::time::interval(SWEEP_PAUSE);
    loop {
        tokio::select! {
            () = shared.drain.cancelled() => return,
            event = events.recv() => match event {
                // Whose agents live on it is known once its records are.
                Ok(Event::PeerConnected(node) | Event::AgentUp { node: Some(node), .. }) if node != shared.node() => {
                    drop(tokio::spawn(greet(Arc::clone(&shared), node)));
                }
                Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => return,
            },
            _ = exchange.tick() => {
                if let Some(node) = any_member(&shared).await {
                    tokio::spawn(greet(Arc::clone(&shared), node));
                }
            }
            _ = hint.tick() => {
                let fresh = shared.contexts.take_fresh();
                if !fresh.is_empty() {
                    tokio::spawn(pass_on(Arc::clone(&shared), fresh));
                }
            }
            _ = sweep.tick() => {
                let (shared, now, has_heard) = (Arc::clone(&shared), shared.clock.now(), began.elapsed() >= HEARING);
                tokio::spawn(async move {
                    let worker = Arc::clone(&shared);
                    let _ = blocking(move || worker.contexts.sweep(&worker, now)).await;
                    if has_heard {
                        super::checkpoint::sweep(&shared, now).await;
                    }
                });
            }
        }
    }
}

/// A node that reads one of this node's contexts, at random.
async fn any_member(shared: &Arc<Shared>) -> Option<NodeId> {
    for _ in 0..MEMBER_TRIES {
        let id = shared.contexts.ids().choose(&mut rand::rng()).copied()?;
        let (worker, now) = (Arc::clone(shared), shared.clock.now());
        let Some(row) = blocking(move || worker.contexts.row(&worker, id, now)).await.ok()? else { continue };
        let members: Vec<NodeId> = nodes(shared, &row.readers).await.ok()?.into_iter().collect();
        if let Some(node) = members.choose(&mut rand::rng()) {
            return Some(*node);
        }
    }
    None
}

/// Tells a few members of each of these contexts, at random, how far this node has come.
async fn pass_on(shared: Arc<Shared>, fresh: BTreeSet<ContextId>) {
    let mut heads_by_node: BTreeMap<NodeId, Vec<Heads>> = BTreeMap::new();
    for id in fresh {
        let (worker, now) = (Arc::clone(&shared), shared.clock.now());
        let Ok(Some(row)) = blocking(move || worker.contexts.row(&worker, id, now)).await else { continue };
        let Ok(members) = nodes(&shared, &row.readers).await else { return };
        let members: Vec<NodeId> = members.into_iter().collect();
        for node in members.choose_multiple(&mut rand::rng(), HINTED) {
            heads_by_node.entry(*node).or_default().push(row.told());
        }
    }
    let tell = |(node, heads)| compare(Arc::clone(&shared), node, heads);
    futures::future::join_all(heads_by_node.into_iter().map(tell)).await;
}

/// Those of these contexts that this node shares with `node`.
async fn shared_with(shared: &Arc<Shared>, node: NodeId, ids: Vec<ContextId>) -> Result<Vec<Row>, Failure> {
    let theirs = principals(shared, node).await?;
    let (shared, now) = (Arc::clone(shared), shared.clock.now());
    blocking(move || {
        ids.into_iter()
            .filter_map(|id| shared.contexts.row_for(&shared, id, now, |row| row.readers.iter().any(|reader| theirs.contains(reader))))
            .collect()
    })
    .await
}

/// Tells `node` how far this one has come with all that they share, and pulls what it has and this one lacks.
async fn greet(shared: Arc<Shared>, node: NodeId) {
    let Ok(rows) = shared_with(&shared, node, shared.contexts.ids()).await else { return };
    compare(shared, node, rows.iter().map(Row::told).collect()).await;
}

/// Tells `node` how far this one has come with contexts that they share, and pulls what it has and this one lacks.
async fn compare(shared: Arc<Shared>, node: NodeId, heads: Vec<Heads>) {
    for heads in portions(heads) {
        let asked: BTreeSet<ContextId> = heads.iter().map(|heads| heads.context).collect();
        match ask(&shared, node, &Question::Heads(heads)).await {
            Ok(Answer::Heads(theirs)) => {
                for heads in theirs.into_iter().filter(|heads| asked.contains(&heads.context)) {
                    reconcile(&shared, node, heads).await;
                }
            }
            Ok(_) => {}
            Err(failure) => {
                tracing::debug!(%node, %failure, "contexts were not compared");
                return;
            }
        }
    }
}

/// Heads in portions that fit into a question.
fn portions(heads: Vec<Heads>) -> Vec<Vec<Heads>> {
    // A tip takes 80 bytes, and what stands before it 100.
    const TIPS_PER_QUESTION: usize = 300;
    let mut portions: Vec<Vec<Heads>> = Vec::new();
    let mut tips = 0;
    for heads in heads {
        let size = heads.tips.len() + 2;
        match portions.last_mut().filter(|portion| portion.len() < HEADS_MAX && tips + size <= TIPS_PER_QUESTION) {
            Some(portion) => {
                portion.push(heads);
                tips += size;
            }
            None => {
                portions.push(vec![heads]);
                tips = size;
            }
        }
    }
    portions
}

/// What was pulled of a context that is not here yet: the whole line of its access is needed to say whether somebody here may read it, and may
/// take more than one answer.
#[derive(Default)]
struct Beginning {
    genesis: Option<ByteVec>,
    accesses: Vec<ByteVec>,
    bytes: usize,
    /// The last change of the line so far.
    epoch: u64,
    access: [u8; 32],
}

impl Beginning {
    /// Takes in an answer; gives all back once the line is whole.
    fn add(&mut self, answer: Statements) -> Result<Option<Statements>, Failure> {
        let fault = |message: &str| Failure::new(ErrorCode::InvalidRequest, message);
        let Statements { context, genesis, accesses, operations, more } = answer;
        self.genesis = self.genesis.take().or(genesis);
        let is_whole = !more || !operations.is_empty();
        if !is_whole {
            let last = accesses.last().ok_or_else(|| fault("the answer holds nothing and says that there is more"))?;
            let last = Signed::<Access>::from_bytes(last).map_err(|error| fault(&error.to_string()))?;
            if last.unverified().epoch <= self.epoch {
                return Err(fault("the line of access does not go on"));
            }
            (self.epoch, self.access) = (last.unverified().epoch, last.name());
        }
        self.bytes = self.bytes.saturating_add(accesses.iter().map(|access| access.len()).sum());
        self.accesses.extend(accesses);
        if self.bytes > LINE_BYTES_MAX || self.epoch > EPOCHS_MAX {
            return Err(fault("the line of access is longer than one may be that is pulled as a whole"));
        }
        let Self { genesis, accesses, .. } = if is_whole { std::mem::take(self) } else { return Ok(None) };
        Ok(Some(Statements { context, genesis, accesses, operations, more }))
    }
}

/// Pulls from `node` what it has of a context and this one lacks; of a context that is here only if the node is one of its readers', since the
/// question says how far this one has come.
async fn reconcile(shared: &Arc<Shared>, node: NodeId, theirs: Heads) {
    let id = theirs.context;
    let now = shared.clock.now();
    if shared.contexts.is_gone(id, now) || shared.contexts.is_refused(id, now) {
        return;
    }
    let Some(mut pulling) = shared.contexts.pulling(node, id) else { return };
    pull(shared, node, &theirs).await;
    complete(shared, node, id).await;
    // What was told of while it was pulled may have come too late for that.
    for _ in 0..AGAIN_MAX {
        let Some(again) = pulling.end() else { return };
        pulling = again;
        pull(shared, node, &further(id)).await;
        complete(shared, node, id).await;
    }
}

/// Heads that no replica has: somebody has come further, and how far is not known.
fn further(context: ContextId) -> Heads {
    Heads { context, epoch: u64::MAX, access: [0; 32], tips: Vec::new() }
}

async fn pull(shared: &Arc<Shared>, node: NodeId, theirs: &Heads) {
    let id = theirs.context;
    let Ok(readers) = principals(shared, node).await else { return };
    let (mut beginning, mut gathering) = (Beginning::default(), None);
    let began = tokio::time::Instant::now();
    for _ in 0..ROUNDS_MAX {
        let (worker, now) = (Arc::clone(shared), shared.clock.now());
        let Ok(row) = blocking(move || worker.contexts.row(&worker, id, now)).await else { return };
        let known = row.is_some();
        if row.as_ref().is_some_and(|row| !row.readers.iter().any(|reader| readers.contains(reader))) {
            return;
        }
        let begun = Heads { context: id, epoch: beginning.epoch, access: beginning.access, tips: Vec::new() };
        let heads = row.map_or(begun, |row| row.heads);
        if known && heads == *theirs {
            return;
        }
        let knows_genesis = known || beginning.genesis.is_some();
        let answer = ask(shared, node, &Question::Pull { heads, knows_genesis }).await;
        let statements = match answer {
            Ok(Answer::Statements(statements)) if statements.context == id => statements,
            Ok(_) => return,
            Err(failure) => {
                tracing::debug!(%node, %failure, "a context was not pulled");
                return;
            }
        };
        let statements = if known { Ok(Some(statements)) } else { beginning.add(statements) };
        let statements = match statements {
            Ok(Some(statements)) => statements,
            Ok(None) => {
                // Memory for a few of them alone; the others come with a later exchange.
                gathering = gathering.or_else(|| shared.contexts.gathering());
                if gathering.is_none() || began.elapsed() > GATHERING {
                    return;
                }
                continue;
            }
            Err(failure) => {
                tracing::debug!(%node, context = %id, %failure, "the beginning of a context was not taken");
                return;
            }
        };
        let more = statements.more;
        match take(shared, node, statements).await {
            Ok(true) if more => {}
            Ok(_) => return,
            Err(failure) => {
                if failure.code == ErrorCode::InsufficientResources {
                    shared.contexts.refuse(id, shared.clock.now());
                }
                tracing::debug!(%node, context = %id, %failure, "statements of a context were not taken");
                return;
            }
        }
    }
}

/// Asks `node` for what a context held at its newest checkpoint, if that is not here.
async fn complete(shared: &Arc<Shared>, node: NodeId, id: ContextId) {
    let Ok(readers) = principals(shared, node).await else { return };
    let (worker, now) = (Arc::clone(shared), shared.clock.now());
    let wanted = blocking(move || {
        let row = worker.contexts.row_for(&worker, id, now, |row| row.readers.iter().any(|reader| readers.contains(reader)))?;
        (!row.is_whole).then(|| worker.contexts.with(&worker, id, now, |hot| Ok(hot.replica.wanted_base())).ok().flatten()).flatten()
    });
    let Ok(Some((era, checkpoint, length))) = wanted.await else { return };
    // Memory for a few of them alone; the others come with a later exchange.
    let Some(_gathering) = shared.contexts.gathering() else { return };
    let (mut sealed, mut from, began) = (Vec::new(), 0, tokio::time::Instant::now());
    while from < length {
        if began.elapsed() > GATHERING {
            return;
        }
        let Ok(Answer::Base(piece)) = ask(shared, node, &Question::Base { context: id, checkpoint, from }).await else { return };
        if !is_full(piece.len(), length - from) {
            return;
        }
        sealed.extend_from_slice(&piece);
        from = u64::try_from(sealed.len()).unwrap_or(u64::MAX);
    }
    let (worker, now) = (Arc::clone(shared), shared.clock.now());
    let taken = blocking(move || {
        let taken = worker.contexts.with(&worker, id, now, |hot| {
            hot.has_room(length)?;
            // The owner may have signed the hash of anything: what nothing can begin with is not kept.
            let is_base = hot.replica.open_base(era, &sealed).is_some_and(|base| base.begin(0).is_some());
            if is_base { hot.take_base(era, &sealed) } else { Err(Failure::new(ErrorCode::InvalidRequest, "it is no base")) }
        })?;
        changed(&worker, id, &[], &taken.operations, Some(node));
        Ok::<_, Failure>(())
    });
    if let Ok(Err(failure)) = taken.await {
        tracing::debug!(%node, context = %id, %failure, "what a context held at a checkpoint was not taken");
    }
}

/// Whether a piece of a base is all that is left of it, or as much as an answer carries: whoever gives it in drops holds a place for which
/// others wait.
fn is_full(piece_bytes: usize, left_bytes: u64) -> bool {
    let length = usize::try_from(left_bytes).unwrap_or(usize::MAX).min(PIECE_BYTES_MAX);
    piece_bytes == length
}

/// Takes in statements that `node` sent; says whether anything was new.
async fn take(shared: &Arc<Shared>, node: NodeId, statements: Statements) -> Result<bool, Failure> {
    let (worker, now, id) = (Arc::clone(shared), shared.clock.now(), statements.context);
    let taken = blocking(move || {
        let shared = &worker;
        let accesses: Vec<Signed<Access>> = read_all(&statements.accesses)?;
        let operations: Vec<Signed<Operation>> = read_all(&statements.operations)?;
        let on_disk = |statements: &[ByteVec]| -> u64 { statements.iter().map(|bytes| Kept::length_bytes(bytes)).sum() };
        let mut bytes = on_disk(&statements.accesses).saturating_add(on_disk(&statements.operations));
        let mut is_new = false;
        if let Some(genesis) = &statements.genesis
            && shared.contexts.row(shared, id, now).is_none()
        {
            begin(shared, id, genesis, &accesses, bytes.saturating_add(Kept::length_bytes(genesis)))?;
            bytes = on_disk(&statements.operations);
            is_new = true;
        }
        // What would not fit is not looked at: nothing is kept by halves, and nobody makes this node check it again and again.
        let taken = shared.contexts.with(shared, id, now, |hot| hot.has_room(bytes).and_then(|()| hot.take(accesses, operations)))?;
        if is_new || !taken.is_empty() {
            changed(shared, id, &taken.accesses, &taken.operations, Some(node));
        }
        Ok::<_, Failure>((is_new || !taken.is_empty(), taken.refused, taken.equivocators))
    });
    let (is_new, refused, equivocators) = taken.await?.inspect_err(|failure| {
        if failure.code == ErrorCode::InsufficientResources {
            super::book::note(shared, format!("contexts of others are not kept up: {}", failure.message));
        }
    })?;
    for author in equivocators {
        super::book::convict(shared, id, author);
        // A node has no trust of its own: its fault is counted as its other ones are.
        let node = NodeId::from_public_key(author.public_key());
        let connected = order(shared, |reply| Command::Connected { reply }).await.unwrap_or_default();
        if let Some(node) = node.filter(|node| connected.contains(node)) {
            let what = "two operations of one number in a context";
            let _ = shared.commands.send(Command::Penalise { node, what }).await;
        }
    }
    if let Some(reason) = refused {
        tracing::debug!(%node, reason, "statements of a context were refused");
    }
    Ok(is_new)
}

fn read_all<T: crate::wire::context::Statement>(statements: &[ByteVec]) -> Result<Vec<Signed<T>>, Failure> {
    let fault = |error: crate::wire::Error| Failure::new(ErrorCode::InvalidRequest, error.to_string());
    statements.iter().map(|bytes| Signed::from_bytes(bytes).map_err(fault)).collect()
}

/// Begins a context of another node, if somebody here may read it and there is room for so many bytes of it.
fn begin(shared: &Shared, id: ContextId, genesis: &[u8], accesses: &[Signed<Access>], bytes: u64) -> Result<(), Failure> {
    let fault = |error: crate::wire::Error| Failure::new(ErrorCode::InvalidRequest, error.to_string());
    let genesis = Signed::<Genesis>::from_bytes(genesis).and_then(Signed::verify).map_err(fault)?;
    if genesis.name() != id.to_bytes() {
        return Err(Failure::new(ErrorCode::InvalidRequest, "the genesis is that of another context"));
    }
    let accesses: Vec<Verified<Access>> = accesses.iter().cloned().map(Signed::verify).collect::<Result<_, _>>().map_err(fault)?;
    let own = super::book::own_keys(shared);
    let is_reader = accesses.last().is_some_and(|access| own.iter().any(|key| access.may_read(key.principal())));
    let ends_at = accesses.iter().map(|access| access.expires_at).max().unwrap_or(genesis.expires_at);
    let now = shared.clock.now().wall;
    let is_of_now = ends_at > now && ends_at.saturating_since(now) <= super::door::LIFE_MAX;
    if !is_reader || !is_of_now {
        return Err(Failure::new(
            ErrorCode::AccessDenied,
            "nobody here may read the context, it has ended, or it is to last for more than a year",
        ));
    }
    shared.contexts.has_room(shared, id, genesis.owner, bytes)?;
    shared.contexts.begin(shared, genesis, accesses, Vec::new()).map(drop)
}

/// Tells listeners here and, of what was written here, the nodes of all readers. What came `from` another node is passed on a little later.
pub(super) fn changed(
    shared: &Arc<Shared>,
    id: ContextId,
    accesses: &[Verified<Access>],
    operations: &[Verified<Operation>],
    from: Option<NodeId>,
) {
    let Some(row) = shared.contexts.row(shared, id, shared.clock.now()) else { return };
    shared.publish(super::door::update(id, &row.session_id, accesses, operations));
    if from.is_some() {
        shared.contexts.note_fresh(id);
        return;
    }
    let push = Question::Push(Statements {
        context: id,
        genesis: None,
        accesses: accesses.iter().map(|access| ByteVec::from(access.to_bytes())).collect(),
        operations: operations.iter().map(|operation| ByteVec::from(operation.to_bytes())).collect(),
        more: false,
    });
    // What is too large to push is pulled.
    let question = if push.encode().is_ok() { push } else { Question::Heads(vec![row.heads.clone()]) };
    let shared = Arc::clone(shared);
    let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
    runtime.spawn(async move {
        let Ok(members) = nodes(&shared, &row.readers).await else { return };
        let tell = |node: NodeId| {
            let (shared, question) = (&shared, &question);
            async move {
                if let Err(failure) = ask(shared, node, question).await {
                    tracing::debug!(%node, %failure, "a member was not told of a change");
                }
            }
        };
        futures::future::join_all(members.into_iter().map(tell)).await;
    });
}

/// Answers what `node` asks or tells.
pub(in crate::node) async fn answer(shared: Arc<Shared>, node: NodeId, question: ByteBuf) -> Reply {
    let answer = match Question::decode(&question) {
        Ok(question) => answered(&shared, node, question).await,
        Err(error) => Err(Failure::new(ErrorCode::InvalidRequest, error.to_string())),
    };
    let answer = answer.unwrap_or_else(|failure| Answer::Refused(printable(&failure.message, 150)));
    match answer.encode() {
        Ok(bytes) => Reply::Context(ByteBuf::from(bytes)),
        Err(error) => Reply::Refused(printable(&error.to_string(), 150)),
    }
}

async fn answered(shared: &Arc<Shared>, node: NodeId, question: Question) -> Result<Answer, Failure> {
    match question {
        Question::Heads(theirs) if theirs.is_empty() => Ok(Answer::Heads(Vec::new())),
        Question::Heads(theirs) => {
            let rows = shared_with(shared, node, theirs.iter().map(|heads| heads.context).collect()).await?;
            let rows: Vec<Heads> = rows.iter().map(Row::told).collect();
            let own = |id: ContextId| rows.iter().find(|heads| heads.context == id);
            let differing: Vec<Heads> = theirs.iter().filter_map(|heads| own(heads.context).filter(|own| *own != heads)).cloned().collect();
            let lacking: Vec<Heads> = theirs.into_iter().filter(|heads| own(heads.context) != Some(heads)).collect();
            if !lacking.is_empty() {
                let shared = Arc::clone(shared);
                tokio::spawn(async move {
                    for heads in lacking {
                        reconcile(&shared, node, heads).await;
                    }
                });
            }
            Ok(Answer::Heads(differing))
        }
        Question::Pull { heads, knows_genesis } => {
            let theirs = principals(shared, node).await?;
            let (worker, now) = (Arc::clone(shared), shared.clock.now());
            let statements = blocking(move || {
                worker.contexts.with(&worker, heads.context, now, |hot| {
                    let is_reader = hot.replica.chain().tip().is_some_and(|access| theirs.iter().any(|reader| access.may_read(*reader)));
                    if is_reader { lacking(hot, &heads, knows_genesis) } else { Err(not_shared()) }
                })
            });
            let told = statements.await?.map(Answer::Statements);
            told.map_err(|failure| if failure.code == ErrorCode::ContextNotFound { not_shared() } else { failure })
        }
        Question::Base { context, checkpoint, from } => {
            let theirs = principals(shared, node).await?;
            let (worker, now) = (Arc::clone(shared), shared.clock.now());
            let base = blocking(move || {
                worker.contexts.with(&worker, context, now, |hot| {
                    let is_reader = hot.replica.chain().tip().is_some_and(|access| theirs.iter().any(|reader| access.may_read(*reader)));
                    if is_reader { hot.base(checkpoint, from) } else { Err(not_shared()) }
                })
            });
            let told = base.await?.map(|piece| Answer::Base(ByteVec::from(piece)));
            told.map_err(|failure| if failure.code == ErrorCode::ContextNotFound { not_shared() } else { failure })
        }
        Question::Push(statements) => {
            let id = statements.context;
            let theirs = principals(shared, node).await?;
            let (worker, now) = (Arc::clone(shared), shared.clock.now());
            let row = blocking(move || worker.contexts.row(&worker, id, now)).await?;
            let is_member = row.as_ref().is_some_and(|row| row.readers.iter().any(|reader| theirs.contains(reader)));
            let lacks = if is_member {
                take(shared, node, statements).await?;
                let (worker, now) = (Arc::clone(shared), shared.clock.now());
                let waits =
                    blocking(move || worker.contexts.with(&worker, id, now, |hot| Ok(hot.replica.parked() > 0 || !hot.replica.is_whole())));
                waits.await?.unwrap_or(false)
            } else {
                row.is_none()
            };
            if lacks {
                // It builds on something that is not here.
                let shared = Arc::clone(shared);
                tokio::spawn(async move { reconcile(&shared, node, further(id)).await });
            }
            Ok(Answer::Taken)
        }
    }
}

/// One answer for what is not there, what has ended and what is not theirs: nobody learns which contexts there are.
fn not_shared() -> Failure {
    Failure::new(ErrorCode::ContextNotFound, "no such context is shared with this node")
}

/// What a replica that has come as far as `heads` lacks, as much as one answer holds.
fn lacking(hot: &Hot, heads: &Heads, knows_genesis: bool) -> Result<Statements, Failure> {
    let replica = &hot.replica;
    let mut room = ANSWER_BYTES_MAX - SPARE_BYTES;
    let mut fits = |bytes: usize| {
        let left = room.checked_sub(bytes.saturating_add(STATEMENT_SPARE_BYTES));
        room = left.unwrap_or(room);
        left.is_some()
    };
    let chain = replica.chain();
    let agrees = heads.epoch > 0 && chain.at(heads.epoch).is_some_and(|access| access.name() == heads.access);
    let from = if agrees { heads.epoch } else { 0 };
    let split = chain.split().into_iter().flat_map(|(first, second)| [first, second]);
    let wanted = chain.changes().iter().filter(|access| access.epoch > from).chain(split);
    let all: Vec<Vec<u8>> = wanted.map(Verified::to_bytes).collect();
    let count = all.len();
    let accesses: Vec<ByteVec> =
        all.into_iter().take_while(|bytes| fits(bytes.len())).take(STATEMENTS_MAX / 2).map(ByteVec::from).collect();
    let mut more = accesses.len() < count;
    let mut wanted = Vec::new();
    for id in replica.beyond(&heads.tips) {
        // One that is not on the disk any more somebody else gives them.
        let Some(bytes) = hot.length_of(id) else { continue };
        if more || wanted.len() >= STATEMENTS_MAX / 2 || !fits(bytes) {
            more = true;
            break;
        }
        wanted.push(id);
    }
    // The last of each line must convince by itself; those before it are covered by it.
    let mut covered = BTreeSet::new();
    let mut chosen: Vec<ByteVec> = Vec::new();
    for operation in hot.operations(wanted)?.into_iter().rev() {
        let author = operation.header.author;
        if covered.contains(&(operation.id(), author)) || operation.stands_alone() {
            covered.extend(operation.header.prev.map(|prev| (prev, author)));
            chosen.push(ByteVec::from(operation.to_bytes()));
        }
    }
    chosen.reverse();
    let genesis = (!knows_genesis).then(|| ByteVec::from(replica.genesis().to_bytes()));
    Ok(Statements { context: replica.id(), genesis, accesses, operations: chosen, more })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Timestamp;
    use crate::proto::context::replica::{self, Replica, Rights};
    use crate::wire::context::PrincipalKey;

    /// Changes of access of one context, in order.
    fn line(count: u64) -> Vec<ByteVec> {
        let (key, at, end) = (PrincipalKey::from_seed(&[1; 32]), Timestamp::from_ms(1_000), Timestamp::from_ms(2_000));
        let genesis = Genesis {
            v: crate::wire::VERSION,
            owner: key.principal(),
            nonce: [9; 16],
            session_id: "session-1".to_owned(),
            created_at: at,
            expires_at: end,
            parent: None,
        };
        let mut replica = Replica::new(replica::begin(&key, genesis).expect("a genesis"), vec![key.clone()]);
        let mut next = || {
            let access = replica.draft_access(&key, &Rights::default(), end, at, &mut rand::rng()).expect("the owner may");
            replica.on_access(access.clone()).expect("it counts");
            ByteVec::from(access.to_bytes())
        };
        (0..count).map(|_| next()).collect()
    }

    fn answer(accesses: &[ByteVec], more: bool) -> Statements {
        Statements {
            context: ContextId::from_bytes([1; 32]),
            genesis: Some(ByteVec::from(vec![7])),
            accesses: accesses.to_vec(),
            operations: Vec::new(),
            more,
        }
    }

    #[test]
    fn a_beginning_is_whole_once_its_line_is() {
        let line = line(6);
        let mut beginning = Beginning::default();
        assert_eq!(beginning.add(answer(&line[..2], true)), Ok(None));
        assert_eq!(beginning.epoch, 2);
        assert_eq!(beginning.add(Statements { genesis: None, ..answer(&line[2..5], true) }), Ok(None));
        let with_operations = Statements { genesis: None, operations: vec![ByteVec::from(vec![1])], ..answer(&line[5..], true) };
        let whole = beginning.add(with_operations.clone()).expect("it goes on").expect("it is whole");
        assert_eq!((&whole.accesses, &whole.genesis, whole.more), (&line, &Some(ByteVec::from(vec![7])), true));
        assert_eq!(whole.operations, with_operations.operations);
        let at_once = Beginning::default().add(answer(&line, false));
        assert_eq!(at_once.map(|whole| whole.map(|whole| whole.accesses)), Ok(Some(line)));
    }

    /// Threat T28: whoever sends the same again, nothing, or more than there may be, is left.
    #[test]
    fn a_beginning_that_does_not_go_on_is_given_up() {
        let line = line(3);
        for next in [&line[..0], &line[..1], &line[1..2]] {
            let mut beginning = Beginning::default();
            assert_eq!(beginning.add(answer(&line[..2], true)), Ok(None));
            assert!(beginning.add(answer(next, true)).is_err(), "{} changes", next.len());
        }
        let mut beginning = Beginning { bytes: LINE_BYTES_MAX - line[2].len(), ..Beginning::default() };
        assert_eq!(beginning.add(answer(&line[2..], true)), Ok(None), "at the limit");
        let mut beginning = Beginning { bytes: LINE_BYTES_MAX - line[2].len() + 1, ..Beginning::default() };
        assert!(beginning.add(answer(&line[2..], true)).is_err(), "past it");
        assert!(Beginning::default().add(answer(&[ByteVec::from(vec![0])], true)).is_err(), "no change of access");
    }

    /// Threat T28: whoever gives in drops, or more than there is, is left.
    #[test]
    fn a_piece_of_a_base_is_as_long_as_it_can_be() {
        let max = u64::try_from(PIECE_BYTES_MAX).expect("small");
        for (piece, left, is_taken) in [
            (0, 1, false),
            (1, 2, false),
            (2, 2, true),
            (3, 2, false),
            (PIECE_BYTES_MAX, max, true),
            (PIECE_BYTES_MAX - 1, max + 1, false),
            (PIECE_BYTES_MAX, max + 1, true),
            (PIECE_BYTES_MAX + 1, max + 1, false),
        ] {
            assert_eq!(is_full(piece, left), is_taken, "{piece} bytes of {left}");
        }
    }
}
