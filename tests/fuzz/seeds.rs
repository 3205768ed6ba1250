//! Well-formed messages, each field of them used at least once. The same on every machine: keys are fixed and nothing reads a clock.

use std::collections::BTreeMap;

use bytes::Bytes;
use libp2p_identity::Keypair;
use meshwork::model::{
    AgentId, Claims, Constraints, ContextId, Currency, ErrorCode, Fact, Failure, Framework, InvocationId, NodeId, OperationId, Path, Price,
    Principal, Priority, Shard, TaskId, Timestamp,
};
use meshwork::proto::context::checkpoint::{Base, Merged, Source};
use meshwork::proto::context::fold::Fold;
use meshwork::wire::blob::{Head, Part};
use meshwork::wire::context::seal::{ContextKey, SEALED_KEY_BYTES};
use meshwork::wire::context::sync::{Answer, Heads, Question, Statements};
use meshwork::wire::context::{
    Access, Checkpoint, Cut, Genesis, Header, Item, Last, Operation, Parent, PrincipalKey, Reader, Statement, Step, Tip, Writer,
};
use meshwork::wire::directory::{
    AgentPulse, BUCKETS, Capability, Control, Gossip, GossipContent, LIFETIME_MS_MAX, Pulse, Query, Record, Reply, SchemaHash, Wanted,
};
use meshwork::wire::invocation::{BlobId, Body, Frame, Hop, LENGTH_BYTES, Request, Success};
use meshwork::wire::offer::{Inquiry, Offer, Offers, Refusal, SPAN_MS_MAX, VALID_MS_MAX};
use meshwork::wire::outbox::{KeptResult, Word};
use meshwork::wire::receipt::{RECEIPT_LIFETIME_MS_MAX, Receipt, WINDOW_MS_MAX};
use meshwork::wire::{self, AgentKey, Document, NodeKey, Signed, context};
use minicbor::bytes::ByteVec;
use rand::SeedableRng;
use rand::rngs::StdRng;
use serde_bytes::ByteBuf;

fn node_key() -> NodeKey {
    NodeKey::new(Keypair::ed25519_from_bytes([7; 32]).expect("32 bytes are a key"))
}

fn node() -> NodeId {
    node_key().id()
}

fn agent_key() -> AgentKey {
    AgentKey::from_seed(&[9; 32])
}

fn agent() -> AgentId {
    agent_key().id()
}

fn encoded<D: Document>(documents: impl IntoIterator<Item = D>) -> Vec<Vec<u8>> {
    documents.into_iter().map(|document| wire::encode(&document).expect("a seed is well-formed")).collect()
}

pub(crate) fn frames() -> Vec<Vec<u8>> {
    let full = Request {
        invocation: InvocationId::from_random(9),
        capability: "text-analysis".parse().expect("a name"),
        version: Some("^1.0".parse().expect("a requirement")),
        agent: agent(),
        budget_ms: 60_000,
        priority: Priority::High,
        key: Some("k".to_owned()),
        fence: None,
        traceparent: Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".to_owned()),
        hops: vec![Hop { node: node(), agent: agent() }, Hop { node: node(), agent: AgentId::from_public_key([3; 32]) }],
        confirm: true,
        window_bytes: 262_144,
        body: Body::Inline(Bytes::from_static(b"{\"text\":\"x\"}")),
        with_context: true,
    };
    let large = Body::Blob(BlobId::of(b"many"));
    let bare = Request {
        version: None,
        key: None,
        fence: None,
        traceparent: None,
        hops: Vec::new(),
        priority: Priority::Low,
        confirm: false,
        window_bytes: 0,
        body: large.clone(),
        with_context: false,
        ..full.clone()
    };
    let paid = Success { units: Some("2.5".to_owned()), execution_us: 12, body: Body::Inline(Bytes::from_static(b"[1]")) };
    let free = Success { units: None, body: large, ..paid };
    let frames = [
        Frame::Request { id: 1, request: Box::new(full) },
        Frame::Request { id: u64::MAX, request: Box::new(bare) },
        Frame::Cancel { id: 24 },
        Frame::Ping { nonce: 256 },
        Frame::Accepted { id: 65_536 },
        Frame::Result { id: 4, success: paid },
        Frame::Result { id: 5, success: free },
        Frame::error(6, true, &Failure::new(ErrorCode::Busy, "later").with("retry_after_ms", 10)),
        Frame::error(6, false, &Failure::new(ErrorCode::AgentFailed, "no")),
        Frame::Pong { nonce: 7 },
        Frame::Chunk { id: 8, chunk: Bytes::from_static(b"\"part\"") },
        Frame::Credit { id: 9, bytes: 65_536 },
        Frame::Go { id: 10 },
    ];
    let write = |frame: &Frame| {
        let mut buffer = Vec::new();
        frame.encode(&mut buffer).expect("a seed is well-formed");
        buffer.split_off(LENGTH_BYTES)
    };
    frames.iter().map(write).collect()
}

pub(crate) fn blob_heads() -> Vec<Vec<u8>> {
    let head = |part| Head { invocation: InvocationId::from_random(9), part, blob: BlobId::of(b"many") };
    [Part::Input, Part::Output].map(|part| head(part).encode().to_vec()).to_vec()
}

pub(crate) fn failures() -> Vec<Vec<u8>> {
    let plain = Failure::new(ErrorCode::Busy, "later").with("retry_after_ms", 10);
    let listed = Failure::new(ErrorCode::InvalidSchema, "two faults").with("faults", vec!["/a", "/b"]).with("path", "/a").retryable(true);
    [plain, listed].iter().map(|failure| serde_json::to_vec(failure).expect("a failure is JSON")).collect()
}

fn price(unit: &str) -> Price {
    Price { amount: "0.00100".parse().expect("a decimal"), currency: "USD".parse::<Currency>().expect("a currency"), unit: unit.to_owned() }
}

fn query() -> Query {
    Query {
        capabilities: vec!["text-processing".parse().expect("a name"), "acme.scan".parse().expect("a name")],
        text: Some("invoices".to_owned()),
        version: Some(">=1.0, <2".parse().expect("a requirement")),
        constraints: Wanted {
            max_latency_ms: Some(100.0),
            min_success_rate: Some(0.9),
            min_trust: Some(50.5),
            max_cost: Some("0.002".parse().expect("a decimal")),
            language: Some("en".to_owned()),
        },
        limit: 16,
    }
}

pub(crate) fn queries() -> Vec<Vec<u8>> {
    let bare = Query { text: None, version: None, constraints: Wanted::default(), limit: 1, ..query() };
    encoded([query(), bare])
}

pub(crate) fn controls() -> Vec<Vec<u8>> {
    encoded([
        Control::Find(query()),
        Control::Digest(ByteBuf::from(vec![1; BUCKETS * 8])),
        Control::Fetch(vec![agent(), AgentId::from_public_key([3; 32])]),
        Control::Schemas(vec![SchemaHash::new([4; 32])]),
        Control::Receipts(vec![agent(), AgentId::from_public_key([3; 32])]),
        Control::Receipts(Vec::new()),
        Control::Offers(inquiry()),
        Control::Results(vec![KeptResult { agent: agent(), key: "a key".to_owned(), epoch: 1, attempt: 2 }]),
    ])
}

pub(crate) fn replies() -> Vec<Vec<u8>> {
    let signed = |documents: Vec<Vec<u8>>| documents.into_iter().map(ByteBuf::from).collect::<Vec<_>>();
    encoded([
        Reply::Records { records: signed(signed_records()), pulses: signed(signed_pulses()) },
        Reply::Differences { held: vec![(agent(), 7), (AgentId::from_public_key([3; 32]), u64::MAX)], more: true },
        Reply::Schemas(vec!["{\"type\":\"string\"}".to_owned(), String::new()]),
        Reply::Receipts(signed(signed_receipts())),
        Reply::Offers(offer_body()),
        Reply::Results(vec![Word::Wanted, Word::Known, Word::Unknown, Word::Refused]),
        Reply::Busy { retry_after_ms: 100 },
        Reply::Refused("what is this".to_owned()),
    ])
}

fn inquiry() -> Inquiry {
    Inquiry {
        capability: "text-analysis".parse().expect("a name"),
        version: Some("^1.0".parse().expect("a requirement")),
        agents: vec![agent(), AgentId::from_public_key([3; 32])],
        tokens: Some(1_200),
        units: Some("2.5".parse().expect("a decimal")),
        deadline_ms: Some(SPAN_MS_MAX),
        max_cost: Some("0.002".parse().expect("a decimal")),
        language: Some("en".to_owned()),
    }
}

fn offer_body() -> Offers {
    let full = Offer {
        agent: agent(),
        capability: "text-analysis".parse().expect("a name"),
        version: "1.2.3".parse().expect("a version"),
        free_slots: 3,
        queued: 1,
        starts_in_ms: Some(SPAN_MS_MAX),
        takes_ms: Some(120),
        runs: 40,
        price: Some(price("token")),
        units: "1200".parse().expect("a decimal"),
        valid_ms: VALID_MS_MAX,
    };
    let bare = Offer { starts_in_ms: None, takes_ms: None, runs: 0, price: None, ..full.clone() };
    let refusals = [(ErrorCode::Busy, "no room before the deadline"), (ErrorCode::Unavailable, "it is away")];
    let refusals = refusals.map(|(code, reason)| Refusal::new(agent(), code, reason)).to_vec();
    Offers { offers: vec![full, bare], refusals }
}

pub(crate) fn inquiries() -> Vec<Vec<u8>> {
    let bare = Inquiry { version: None, tokens: None, units: None, deadline_ms: None, max_cost: None, language: None, ..inquiry() };
    encoded([inquiry(), bare])
}

pub(crate) fn offers() -> Vec<Vec<u8>> {
    encoded([offer_body(), Offers::default()])
}

pub(crate) fn gossip() -> Vec<Vec<u8>> {
    let content = |documents: Vec<Vec<u8>>| ByteBuf::from(documents.into_iter().next().expect("a seed"));
    let last = Shard::COUNT - 1;
    encoded([
        Gossip { shard: 0, content: GossipContent::Record(content(signed_records())) },
        Gossip { shard: last, content: GossipContent::Pulse(content(signed_pulses())) },
    ])
}

/// What the records of [`signed_records`] say.
pub(crate) fn record_bodies() -> Vec<Record> {
    let capability = Capability {
        id: "text-analysis".parse().expect("a name"),
        version: "1.2.3".parse().expect("a version"),
        description: "Language, keywords and sentiment".to_owned(),
        input_schema: SchemaHash::new([1; 32]),
        output_schema: SchemaHash::new([2; 32]),
        price: Some(price("document")),
        constraints: Constraints {
            max_input_length: Some(10_000),
            supported_languages: vec!["en".to_owned(), "de".to_owned()],
            response_time_ms: Some(120),
        },
        idempotent: true,
        claims: Claims {
            score: Some(0.75),
            specializations: vec!["news".to_owned()],
            limitations: vec!["no tables".to_owned()],
            resource_requirements: BTreeMap::from([("gpu".to_owned(), Fact::Flag(false)), ("memory_mib".to_owned(), Fact::Whole(512))]),
        },
    };
    let bare = Capability {
        id: "acme.scan".parse().expect("a name"),
        description: String::new(),
        price: None,
        constraints: Constraints::default(),
        idempotent: false,
        claims: Claims::default(),
        ..capability.clone()
    };
    let full = Record {
        v: Record::V,
        agent: agent(),
        node: node(),
        name: "extractor".to_owned(),
        version: "1.0.0".to_owned(),
        description: "Reads what people wrote".to_owned(),
        framework: Framework::Langchain,
        capabilities: vec![capability, bare.clone()],
        addresses: vec!["/ip4/192.0.2.1/tcp/7481".to_owned(), "/ip6/2001:db8::1/udp/7481/quic-v1".to_owned()],
        concurrency: 8,
        sequence: 1_700_000_000_000,
        issued_at: Timestamp::from_ms(1_700_000_000_000),
        expires_at: Timestamp::from_ms(1_700_000_000_000 + LIFETIME_MS_MAX),
    };
    let small = Record {
        description: String::new(),
        framework: Framework::Custom,
        capabilities: vec![bare],
        addresses: Vec::new(),
        sequence: 1,
        ..full.clone()
    };
    vec![full, small]
}

/// What the pulses of [`signed_pulses`] say.
pub(crate) fn pulse_bodies() -> Vec<Pulse> {
    let agents = vec![
        AgentPulse { agent: agent(), available: true, in_flight: 3, queued: 0 },
        AgentPulse { agent: AgentId::from_public_key([3; 32]), available: false, in_flight: 0, queued: u32::MAX },
    ];
    let full = Pulse {
        v: Record::V,
        node: node(),
        sequence: 1_700_000_000_000,
        issued_at: Timestamp::from_ms(1_700_000_000_000),
        expires_at: Timestamp::from_ms(1_700_000_000_000 + LIFETIME_MS_MAX),
        leaving: false,
        agents,
    };
    let leaving = Pulse { leaving: true, agents: Vec::new(), ..full };
    vec![full, leaving]
}

/// What the receipts of [`signed_receipts`] say.
pub(crate) fn receipt_bodies() -> Vec<Receipt> {
    let at = |ms| Timestamp::from_ms(1_700_000_000_000 + ms);
    let full = Receipt {
        v: Receipt::V,
        issuer: node(),
        agent: agent(),
        capability: "text-analysis".parse().expect("a name"),
        window_start: at(0),
        window_end: at(WINDOW_MS_MAX),
        successes: 40,
        failures: 2,
        latency_ms: Some(12.5),
        issued_at: at(WINDOW_MS_MAX),
        expires_at: at(WINDOW_MS_MAX + RECEIPT_LIFETIME_MS_MAX),
    };
    let failed = Receipt { successes: 0, failures: u32::MAX, latency_ms: None, ..full.clone() };
    vec![full, failed]
}

pub(crate) fn receipts() -> Vec<Vec<u8>> {
    encoded(receipt_bodies())
}

pub(crate) fn records() -> Vec<Vec<u8>> {
    encoded(record_bodies())
}

pub(crate) fn pulses() -> Vec<Vec<u8>> {
    encoded(pulse_bodies())
}

pub(crate) fn signed_records() -> Vec<Vec<u8>> {
    let sign = |body: Record| Signed::sign(body, &node_key(), Some(&agent_key())).expect("a seed is well-formed").bytes().to_vec();
    record_bodies().into_iter().map(sign).collect()
}

pub(crate) fn signed_pulses() -> Vec<Vec<u8>> {
    let sign = |body: Pulse| Signed::sign(body, &node_key(), None).expect("a seed is well-formed").bytes().to_vec();
    pulse_bodies().into_iter().map(sign).collect()
}

pub(crate) fn signed_receipts() -> Vec<Vec<u8>> {
    let sign = |body: Receipt| Signed::sign(body, &node_key(), None).expect("a seed is well-formed").bytes().to_vec();
    receipt_bodies().into_iter().map(sign).collect()
}

fn principal_key() -> PrincipalKey {
    PrincipalKey::from(&agent_key())
}

fn context_id() -> ContextId {
    ContextId::from_bytes([4; 32])
}

fn operation_id(first: u8) -> OperationId {
    OperationId::from_bytes([first; 32])
}

fn path(text: &str) -> Path {
    text.parse().expect("a path")
}

/// What [`context_geneses`] say.
pub(crate) fn geneses() -> Vec<Genesis> {
    let parent = Parent {
        context: context_id(),
        root: ContextId::from_bytes([5; 32]),
        frontier: vec![operation_id(1), operation_id(2)],
        state_hash: [6; 32],
    };
    let fork = Genesis {
        v: wire::VERSION,
        owner: principal_key().principal(),
        nonce: [7; 16],
        session_id: "session-1".to_owned(),
        created_at: Timestamp::from_ms(1_700_614_200_000),
        expires_at: Timestamp::from_ms(1_700_617_800_000),
        parent: Some(parent),
    };
    let first = Genesis { parent: None, ..fork.clone() };
    vec![fork, first]
}

/// What [`context_accesses`] say.
pub(crate) fn accesses() -> Vec<Access> {
    let owner = principal_key().principal();
    let other = Principal::from_public_key([3; 32]);
    let mut readers = [owner, other].map(|principal| Reader { principal, sealed_key: [8; SEALED_KEY_BYTES] }).to_vec();
    readers.sort_by_key(|reader| reader.principal);
    let full = Access {
        v: wire::VERSION,
        context: context_id(),
        owner,
        epoch: 3,
        prev: [9; 32],
        writers: vec![Writer { principal: other, prefixes: vec![path("/shared_memory/a"), path("/shared_memory/b~1c")] }],
        readers: readers.clone(),
        key_epoch: 2,
        key_check: [10; 32],
        previous_key: Some([11; 48]),
        cuts: vec![
            Cut { author: other, last: Some(Last { seq: 4, id: operation_id(1) }) },
            Cut { author: Principal::from_public_key([12; 32]), last: None },
        ],
        expires_at: Timestamp::from_ms(1_700_617_800_000),
        at: Timestamp::from_ms(1_700_614_200_000),
        checkpoint: None,
    };
    let ends = vec![Cut { author: other, last: Some(Last { seq: 4, id: operation_id(1) }) }];
    let checkpoint = Access { cuts: ends, checkpoint: Some(Checkpoint { lamport: 9, hash: [13; 32], bytes: 1_000 }), ..full.clone() };
    let first = Access { epoch: 1, writers: Vec::new(), key_epoch: 1, previous_key: None, cuts: Vec::new(), ..full.clone() };
    vec![full, first, checkpoint]
}

fn body_of_operation() -> context::Body {
    let items = vec![
        Item::Set(path("/shared_memory/a"), serde_json::json!({"b": [1, 2.5, null, "é"], "c": {"d": true}})),
        Item::Del(path("/shared_memory/b~0c")),
        Item::Inc(path("/shared_memory/n"), i64::MIN),
        Item::Append(path("/shared_memory/list"), serde_json::json!([{}, -1])),
    ];
    let step = Step { task: TaskId::from_random(7), subtask: "extract".parse().expect("a name") };
    context::Body { items, sources: vec![operation_id(1)], step: Some(step), source: Some(context_id()), again: Some(operation_id(2)) }
}

/// What [`context_operations`] say.
pub(crate) fn operations() -> Vec<Operation> {
    let header = Header {
        v: wire::VERSION,
        context: context_id(),
        author: principal_key().principal(),
        seq: 4,
        prev: Some(operation_id(3)),
        deps: vec![operation_id(1), operation_id(2)],
        lamport: 9,
        acl_epoch: 3,
        is_private: false,
        at: Timestamp::from_ms(1_700_614_200_000),
    };
    let first = Header { seq: 0, prev: None, deps: Vec::new(), lamport: 1, is_private: true, ..header };
    let mut rng = StdRng::seed_from_u64(1);
    let key = ContextKey::random(&mut rng);
    [header, first].map(|header| key.seal_operation(header, &body_of_operation(), &mut rng).expect("a seed is well-formed")).to_vec()
}

pub(crate) fn context_bodies() -> Vec<Vec<u8>> {
    let small = |item| context::Body { items: vec![item], sources: Vec::new(), step: None, source: None, again: None };
    let memory = path(&format!("/agent_memory/{}", agent()));
    let bodies = [body_of_operation(), small(Item::Set(memory.clone(), serde_json::json!({"": {"": [[]]}}))), small(Item::Del(memory))];
    bodies.iter().map(|body| minicbor::to_vec(body).expect("a seed is well-formed")).collect()
}

fn stated<T: Statement>(contents: Vec<T>) -> Vec<Vec<u8>> {
    let sign = |content: T| context::Signed::sign(content, &principal_key()).expect("a seed is well-formed").to_bytes();
    contents.into_iter().map(sign).collect()
}

pub(crate) fn context_geneses() -> Vec<Vec<u8>> {
    stated(geneses())
}

pub(crate) fn context_accesses() -> Vec<Vec<u8>> {
    stated(accesses())
}

pub(crate) fn context_operations() -> Vec<Vec<u8>> {
    stated(operations())
}

fn heads() -> Heads {
    let tip = Tip { author: principal_key().principal(), seq: 4, id: operation_id(1) };
    Heads { context: context_id(), epoch: 3, access: [9; 32], tips: vec![tip, Tip { seq: 5, id: operation_id(2), ..tip }] }
}

fn statements() -> Statements {
    let of = |statements: Vec<Vec<u8>>| statements.into_iter().map(ByteVec::from).collect();
    let genesis = context_geneses().into_iter().next().map(ByteVec::from);
    Statements { context: context_id(), genesis, accesses: of(context_accesses()), operations: of(context_operations()), more: true }
}

fn few() -> Statements {
    Statements { genesis: None, accesses: Vec::new(), operations: vec![ByteVec::from(vec![1, 2]); 3], more: false, ..statements() }
}

pub(crate) fn context_questions() -> Vec<Vec<u8>> {
    let questions = [
        Question::Heads(vec![heads(), Heads { epoch: 0, access: [0; 32], tips: Vec::new(), ..heads() }]),
        Question::Heads(Vec::new()),
        Question::Pull { heads: heads(), knows_genesis: false },
        Question::Push(statements()),
        Question::Push(few()),
        Question::Base { context: context_id(), checkpoint: [13; 32], from: 1_048_576 },
    ];
    questions.iter().map(|question| question.encode().expect("a seed is well-formed")).collect()
}

pub(crate) fn context_answers() -> Vec<Vec<u8>> {
    let answers = [
        Answer::Heads(vec![heads()]),
        Answer::Statements(statements()),
        Answer::Statements(few()),
        Answer::Taken,
        Answer::Refused("no such context is shared with this node".to_owned()),
        Answer::Base(ByteVec::from(vec![7; 40])),
    ];
    answers.iter().map(|answer| answer.encode().expect("a seed is well-formed")).collect()
}

pub(crate) fn context_bases() -> Vec<Vec<u8>> {
    let (mut shared, mut merged) = (Fold::default(), Merged::default());
    let empty = Base::of(&shared, &merged);
    shared.apply_all(operation_id(1), 1, &body_of_operation().items);
    let below = vec![path("/shared_memory/a"), path("/shared_memory/b~1c")];
    merged.note(Source { context: context_id(), operation: operation_id(2), below }, 1);
    merged.note(Source { context: context_id(), operation: operation_id(3), below: Vec::new() }, 2);
    let text = |base: Option<Base>| base.expect("a seed is well-formed").text().as_bytes().to_vec();
    [empty, Base::of(&shared, &merged)].map(text).to_vec()
}
