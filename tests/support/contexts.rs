//! Shared contexts as the API shows them, and a member of one who keeps to no rule.

use std::sync::{Arc, Mutex, PoisonError};

use meshwork::{
    model::{ContextId, Path, Principal, Timestamp},
    proto::context::replica::{self, Replica, Rights},
    wire::{
        VERSION,
        context::{
            Access, Body, Genesis, Header, Item, Operation, PrincipalKey, Signed, Verified,
            seal::ContextKey,
            sync::{Answer as Told, Heads, Question, Statements},
            verify,
        },
        directory::{Control, Reply},
    },
};
use minicbor::bytes::ByteVec;
use rand::{SeedableRng, rngs::StdRng};
use serde_bytes::ByteBuf;
use serde_json::{Value, json};

use super::{
    Answer, Node, SETTLE, eventually,
    peer::{Forger, Habits, HostilePeer, cbor, now_ms},
};

/// The value at a path of a context, as this node shows it; nothing while it is not there.
pub(crate) async fn at(node: &Node, id: &str, path: &str) -> Option<Value> {
    let answer = node.get(&format!("/v1/contexts/{id}?path=/shared_memory{path}")).await;
    (answer.status == 200).then_some(answer.body)
}

/// Waits until this node shows that value.
pub(crate) async fn shows(node: &Node, id: &str, path: &str, expected: Value) {
    eventually(&format!("{path} of {id} is {expected}"), SETTLE, async || (at(node, id, path).await? == expected).then_some(())).await;
}

/// Changes a context.
pub(crate) async fn patch(node: &Node, id: &str, body: Value) -> Answer {
    node.send(node.request(reqwest::Method::PATCH, &format!("/v1/contexts/{id}")).json(&body)).await
}

/// The change that sets one value.
pub(crate) fn set(path: &str, value: Value) -> Value {
    json!({ "ops": [{ "op": "set", "path": format!("/shared_memory{path}"), "value": value }] })
}

/// A context with a small plan in it, and who else has which right.
pub(crate) async fn create(owner: &Node, access: Value) -> String {
    let body = json!({ "session_id": "session-1", "shared_memory": { "plan": { "title": "draft" } }, "access_control": access });
    let document = owner.post("/v1/contexts", &body).await.ok();
    document["id"].as_str().expect("an id").to_owned()
}

/// Two nodes that know each other.
pub(crate) async fn pair() -> (Node, Node) {
    let owner = Node::first().await;
    let other = Node::builder().join(&owner).spawn().await;
    owner.meets(&other).await;
    (owner, other)
}

/// What a node says of how far it has come with a context.
pub(crate) async fn version(node: &Node, id: &str) -> Value {
    node.get(&format!("/v1/contexts/{id}")).await.ok()["version"].clone()
}

/// A place in the shared memory.
pub(crate) fn place(below: &str) -> Path {
    format!("/shared_memory{below}").parse().expect("a path")
}

/// A member of contexts that signs and sends whatever the test says.
pub(crate) struct HostileMember {
    pub(crate) peer: HostilePeer,
    pub(crate) key: PrincipalKey,
    /// What it says to whoever asks about contexts.
    answer: Arc<Mutex<Option<Statements>>>,
}

impl HostileMember {
    /// A member that is connected to `nodes`.
    pub(crate) async fn joined(nodes: &[&Node]) -> Self {
        Self::of(Habits::default(), nodes).await
    }

    /// One that leaves every question about contexts without an answer.
    pub(crate) async fn silent(nodes: &[&Node]) -> Self {
        Self::of(Habits::default().ignores(|control| matches!(control, Control::Context(_))), nodes).await
    }

    async fn of(habits: Habits, nodes: &[&Node]) -> Self {
        let (forger, answer) = (Forger::new(), Arc::new(Mutex::new(None)));
        let key = forger.principal_key();
        let says = Arc::clone(&answer);
        let habits = habits.answers(move |control| {
            let Control::Context(_) = control else { return None };
            let statements: Option<Statements> = says.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let bytes = Told::Statements(statements?).encode().expect("an answer that fits");
            Some(cbor(&Reply::Context(ByteBuf::from(bytes))))
        });
        let peer = HostilePeer::start(forger, habits);
        for node in nodes {
            peer.connect(node).await;
        }
        Self { peer, key, answer }
    }

    /// How nodes and people name it.
    pub(crate) fn id(&self) -> String {
        self.peer.id()
    }

    /// Asks a node about contexts.
    pub(crate) async fn ask(&self, node: &Node, question: &Question) -> Told {
        let bytes = question.encode().expect("a question that fits");
        let reply = self.peer.ask(node, cbor(&Control::Context(ByteBuf::from(bytes)))).await;
        let Reply::Context(bytes) = reply else { panic!("expected an answer about contexts, not {reply:?}") };
        Told::decode(&bytes).expect("a node's answer")
    }

    /// All that a node gives it of a context; nothing if it refuses.
    pub(crate) async fn pull(&self, node: &Node, context: ContextId) -> Option<Replica> {
        let heads = Heads { context, epoch: 0, access: [0; 32], tips: Vec::new() };
        let Told::Statements(given) = self.ask(node, &Question::Pull { heads, knows_genesis: false }).await else { return None };
        let genesis = Signed::<Genesis>::from_bytes(&given.genesis.expect("how it began")).and_then(Signed::verify).expect("a genesis");
        let mut replica = Replica::new(genesis, vec![self.key.clone()]);
        for access in &given.accesses {
            let access = Signed::<Access>::from_bytes(access).and_then(Signed::verify).expect("a change of access");
            replica.on_access(access).expect("it counts");
        }
        let run = given.operations.iter().map(|bytes| Signed::from_bytes(bytes).expect("an operation")).collect();
        for operation in verify(run) {
            replica.on_operation(operation.expect("signed")).expect("it counts");
        }
        Some(replica)
    }

    /// Tells a node of statements.
    pub(crate) async fn push(
        &self,
        node: &Node,
        context: ContextId,
        accesses: &[Verified<Access>],
        operations: &[Verified<Operation>],
    ) -> Told {
        self.ask(node, &Question::Push(statements(context, None, accesses, operations))).await
    }

    /// Gives these statements to whoever asks from now on, and tells `node` that there are some.
    pub(crate) async fn offer(&self, node: &Node, genesis: &Verified<Genesis>, accesses: &[Verified<Access>]) {
        let context = ContextId::from_bytes(genesis.name());
        let all = statements(context, Some(genesis), accesses, &[]);
        *self.answer.lock().unwrap_or_else(PoisonError::into_inner) = Some(all);
        self.push(node, context, &[], &[]).await;
    }

    /// How a context of its own begins, which ends at `expires_at`.
    pub(crate) fn genesis(&self, expires_at: Timestamp) -> Verified<Genesis> {
        let genesis = Genesis {
            v: VERSION,
            owner: self.key.principal(),
            nonce: [7; 16],
            session_id: "hostile".to_owned(),
            created_at: Timestamp::from_ms(1),
            expires_at,
            parent: None,
        };
        replica::begin(&self.key, genesis).expect("a genesis")
    }

    /// A change of access of its own context that follows what `replica` knows.
    pub(crate) fn access(&self, replica: &Replica, read: &[&str], seed: u64) -> Verified<Access> {
        let read = read.iter().map(|name| name.parse::<Principal>().expect("a principal")).collect();
        let rights = Rights { read, write: [].into() };
        let (end, now) = (replica.chain().expires_at(), Timestamp::from_ms(now_ms()));
        replica.draft_access(&self.key, &rights, end, now, &mut StdRng::seed_from_u64(seed)).expect("the owner may")
    }

    /// What it would write next, with another header; sealed and signed as it should be.
    pub(crate) fn forge(&self, replica: &Replica, items: Vec<Item>, change: impl FnOnce(&mut Header)) -> Verified<Operation> {
        let operations = replica.operations();
        let author = self.key.principal();
        let last = operations.last(author);
        let lamport = |id| operations.get(id).map_or(0, |entry| entry.lamport);
        let prev = last.map(|last| last.id);
        let deps: Vec<_> = operations.heads().iter().copied().filter(|id| Some(*id) != prev).collect();
        let mut header = Header {
            v: VERSION,
            context: replica.id(),
            author,
            seq: last.map_or(0, |last| last.seq + 1),
            prev,
            lamport: 1 + deps.iter().copied().chain(prev).map(lamport).max().unwrap_or(0),
            deps,
            acl_epoch: replica.chain().epoch(),
            is_private: false,
            at: Timestamp::from_ms(now_ms()),
        };
        change(&mut header);
        let access = replica.chain().at(header.acl_epoch).or_else(|| replica.chain().tip()).expect("a change of access");
        let context_key = ContextKey::of(access, &self.key).expect("it may read");
        let body = Body { items, sources: Vec::new(), step: None, source: None, again: None };
        let mut rng = StdRng::seed_from_u64(header.seq ^ header.lamport);
        Signed::sign(context_key.seal_operation(header, &body, &mut rng).expect("a body"), &self.key).expect("an operation")
    }

    /// What it writes next if it keeps to the rules, which it knows of from then on.
    pub(crate) fn write(&self, replica: &mut Replica, items: Vec<Item>) -> Verified<Operation> {
        let operation = self.forge(replica, items, |_| {});
        replica.on_operation(operation.clone()).expect("it counts");
        operation
    }
}

fn statements(
    context: ContextId,
    genesis: Option<&Verified<Genesis>>,
    accesses: &[Verified<Access>],
    operations: &[Verified<Operation>],
) -> Statements {
    Statements {
        context,
        genesis: genesis.map(|genesis| ByteVec::from(genesis.to_bytes())),
        accesses: accesses.iter().map(|access| ByteVec::from(access.to_bytes())).collect(),
        operations: operations.iter().map(|operation| ByteVec::from(operation.to_bytes())).collect(),
        more: false,
    }
}
