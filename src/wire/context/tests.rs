//! What peers send as statements of contexts, and what owners, writers and relays could make of them.

use proptest::prelude::*;
use rand::SeedableRng;
use rand::rngs::StdRng;
use serde_json::{Value, json};

use super::seal::{ContextKey, SEALED_KEY_BYTES};
use super::{
    Access, BASE_BYTES_MAX, Body, Checkpoint, Cut, DEPENDENCIES_MAX, ENVELOPE_BYTES_MAX, Envelope, Genesis, Header, ITEMS_MAX, Item, Last,
    OPERATION_BYTES_MAX, Operation, PREFIXES_MAX, PRINCIPALS_MAX, Parent, PrincipalKey, Reader, SESSION_ID_CHARS_MAX, SOURCES_MAX, Signed,
    Statement, Step, Verified, Writer, message, name, verify, written,
};
use crate::model::{CONTEXT_DEPTH_MAX, ContextId, OperationId, PATH_BYTES_MAX, Path, Principal, TaskId, Timestamp};
use crate::wire::{AgentKey, Error, NodeKey, VERSION};

const BEGIN: Timestamp = Timestamp::from_ms(1_700_614_200_000);
const END: Timestamp = Timestamp::from_ms(1_700_617_800_000);

fn key(seed: u8) -> PrincipalKey {
    PrincipalKey::from_seed(&[seed; 32])
}

fn who(seed: u8) -> Principal {
    key(seed).principal()
}

fn rng() -> StdRng {
    StdRng::seed_from_u64(5)
}

fn context_id() -> ContextId {
    ContextId::from_bytes([4; 32])
}

fn path(below: &str) -> Path {
    format!("/shared_memory{below}").parse().expect("a path")
}

fn private_path(seed: u8, below: &str) -> Path {
    format!("/agent_memory/{}{below}", who(seed)).parse().expect("a path")
}

/// Names in order.
fn ids(count: usize) -> Vec<OperationId> {
    (0..count).map(|at| OperationId::from_bytes(numbered(at))).collect()
}

fn numbered(at: usize) -> [u8; 32] {
    let [.., high, low] = at.to_be_bytes();
    let mut bytes = [0; 32];
    (bytes[0], bytes[1]) = (high, low);
    bytes
}

fn genesis() -> Genesis {
    let parent =
        Parent { context: ContextId::from_bytes([1; 32]), root: ContextId::from_bytes([2; 32]), frontier: ids(2), state_hash: [3; 32] };
    Genesis {
        v: VERSION,
        owner: who(1),
        nonce: [9; 16],
        session_id: "session-1".to_owned(),
        created_at: BEGIN,
        expires_at: END,
        parent: Some(parent),
    }
}

fn context_key() -> ContextKey {
    ContextKey::random(&mut rng())
}

fn reader(principal: Principal) -> Reader {
    Reader { principal, sealed_key: [6; SEALED_KEY_BYTES] }
}

/// A change with `count` readers, the owner among them.
fn readers(count: usize) -> Vec<Reader> {
    let mut readers: Vec<_> = (1..count).map(|at| reader(Principal::from_public_key(numbered(at)))).chain([reader(who(1))]).collect();
    readers.sort_by_key(|reader| reader.principal);
    readers
}

fn access() -> Access {
    let mut both = vec![who(1), who(2)];
    both.sort_unstable();
    let seal = |principal| Reader { principal, sealed_key: context_key().seal_to(principal, context_id(), &mut rng()).expect("a key") };
    Access {
        v: VERSION,
        context: context_id(),
        owner: who(1),
        epoch: 3,
        prev: [7; 32],
        writers: vec![Writer { principal: who(2), prefixes: vec![path("/a"), path("/b")] }],
        readers: both.into_iter().map(seal).collect(),
        key_epoch: 2,
        key_check: context_key().check(),
        previous_key: Some(context_key().seal_previous(&ContextKey::random(&mut StdRng::seed_from_u64(6)))),
        cuts: vec![Cut { author: who(3), last: Some(Last { seq: 4, id: ids(1)[0] }) }],
        expires_at: END,
        at: BEGIN,
        checkpoint: None,
    }
}

/// The change as a checkpoint.
fn checkpoint() -> Access {
    Access { checkpoint: Some(Checkpoint { lamport: 9, hash: [8; 32], bytes: 1_000 }), ..access() }
}

fn header() -> Header {
    Header {
        v: VERSION,
        context: context_id(),
        author: who(2),
        seq: 1,
        prev: Some(OperationId::from_bytes([200; 32])),
        deps: ids(2),
        lamport: 5,
        acl_epoch: 3,
        is_private: false,
        at: BEGIN,
    }
}

fn body(items: Vec<Item>) -> Body {
    Body { items, sources: Vec::new(), step: None, source: None, again: None }
}

fn full_body() -> Body {
    let items = vec![
        Item::Set(path("/a"), json!({"b": [1, 2.5, null, "é"], "c": {"d": true}})),
        Item::Del(path("/b")),
        Item::Inc(path("/n"), -5),
        Item::Append(path("/list"), json!("x")),
    ];
    let step = Step { task: TaskId::from_random(7), subtask: "extract".parse().expect("a name") };
    Body { items, sources: ids(2), step: Some(step), source: Some(context_id()), again: Some(OperationId::from_bytes([7; 32])) }
}

fn operation(header: Header) -> Operation {
    context_key().seal_operation(header, &full_body(), &mut rng()).expect("a body")
}

fn signed<T: Statement>(content: T, seed: u8) -> Verified<T> {
    Signed::sign(content, &key(seed)).expect("a valid statement")
}

/// The bytes of a statement whatever it says, rightly signed.
fn forged<T: Statement>(content: &T, seed: u8) -> Vec<u8> {
    let statement = written(content);
    let signature = key(seed).sign(&message::<T>(&name::<T>(&statement)));
    written(&Envelope { statement: &statement, signature })
}

fn survives<T: Statement + Clone + PartialEq + std::fmt::Debug>(content: T, seed: u8) {
    let sent = signed(content.clone(), seed);
    let bytes = sent.to_bytes();
    let read = Signed::<T>::from_bytes(&bytes).expect("well-formed");
    assert_eq!((read.unverified(), read.name()), (&content, sent.name()));
    assert_eq!(read.verify().as_deref(), Ok(&content));
    let kept = Verified::<T>::kept(&bytes).expect("what was kept");
    assert!(kept.stands_alone());
    assert_eq!((kept.to_bytes(), kept.len_bytes()), (bytes.clone(), sent.len_bytes()));
    assert!(bytes.len() - sent.len_bytes() <= ENVELOPE_BYTES_MAX);
}

#[test]
fn each_statement_survives_the_wire() {
    survives(genesis(), 1);
    survives(Genesis { parent: None, ..genesis() }, 1);
    survives(access(), 1);
    survives(checkpoint(), 1);
    survives(Access { epoch: 1, key_epoch: 1, previous_key: None, cuts: Vec::new(), writers: Vec::new(), ..access() }, 1);
    survives(operation(header()), 2);
    survives(operation(Header { seq: 0, prev: None, deps: Vec::new(), lamport: 1, is_private: true, ..header() }), 2);
}

/// What became of changed bytes: how many were not even read, and how many were read and not believed.
fn flip<T: Statement + Clone + PartialEq + std::fmt::Debug>(sent: &Verified<T>) -> (usize, usize) {
    let bytes = sent.to_bytes();
    let (mut unread, mut unbelieved) = (0, 0);
    for at in 0..bytes.len() {
        for bit in 0..8 {
            let mut changed = bytes.clone();
            changed[at] ^= 1 << bit;
            match Signed::<T>::from_bytes(&changed) {
                Err(_) => unread += 1,
                Ok(read) => match read.verify() {
                    Err(error) => {
                        assert_eq!(error, Error::Signature { kind: T::KIND, signer: "its author" });
                        unbelieved += 1;
                    }
                    Ok(read) => panic!("byte {at}, bit {bit}: believed {read:?}"),
                },
            }
        }
        assert!(Signed::<T>::from_bytes(&bytes[..at]).is_err(), "the first {at} bytes are no statement");
    }
    for more in [0, 0x40, 0xff] {
        assert!(Signed::<T>::from_bytes(&[bytes.as_slice(), &[more]].concat()).is_err(), "nothing comes behind a statement");
    }
    assert_eq!(unread + unbelieved, 8 * bytes.len());
    (unread, unbelieved)
}

/// AMP-9, threat T15: nobody on the way changes a statement unnoticed.
#[test]
fn a_genesis_with_any_bit_changed_is_refused() {
    let (unread, unbelieved) = flip(&signed(genesis(), 1));
    assert!(unread > 0 && unbelieved > 8 * 64, "{unread} unread, {unbelieved} not believed");
}

/// AMP-9, threat T15: nobody on the way changes a statement unnoticed.
#[test]
fn an_access_change_with_any_bit_changed_is_refused() {
    let (unread, unbelieved) = flip(&signed(checkpoint(), 1));
    assert!(unread > 0 && unbelieved > 8 * 64, "{unread} unread, {unbelieved} not believed");
}

/// AMP-9, threat T15: nobody on the way changes a statement unnoticed.
#[test]
fn an_operation_with_any_bit_changed_is_refused() {
    let (unread, unbelieved) = flip(&signed(operation(header()), 2));
    assert!(unread > 0 && unbelieved > 8 * 64, "{unread} unread, {unbelieved} not believed");
}

/// What a genesis says, as a statement of another kind.
#[derive(Debug, Clone, PartialEq, minicbor::Encode, minicbor::Decode)]
#[cbor(transparent)]
struct Copy(#[n(0)] Genesis);

impl Statement for Copy {
    const KIND: &'static str = "copy";
    const DOMAIN: &'static str = "meshwork/context/copy/1";
    const BYTES_MAX: usize = Genesis::BYTES_MAX;

    fn signer(&self) -> Principal {
        self.0.signer()
    }

    fn check(&self) -> Result<(), Error> {
        self.0.check()
    }
}

#[test]
fn the_signature_of_one_kind_is_none_of_another() {
    let sent = signed(genesis(), 1);
    let read = Signed::<Copy>::from_bytes(&sent.to_bytes()).expect("the same bytes mean the same");
    assert_ne!(read.name(), sent.name());
    assert_eq!(read.verify(), Err(Error::Signature { kind: "copy", signer: "its author" }));
    let all = [sent.to_bytes(), signed(access(), 1).to_bytes(), signed(operation(header()), 2).to_bytes()];
    let reads: [fn(&[u8]) -> bool; 3] = [
        |bytes| Signed::<Genesis>::from_bytes(bytes).is_ok(),
        |bytes| Signed::<Access>::from_bytes(bytes).is_ok(),
        |bytes| Signed::<Operation>::from_bytes(bytes).is_ok(),
    ];
    for (kind, read) in reads.iter().enumerate() {
        for (at, bytes) in all.iter().enumerate() {
            assert_eq!(read(bytes), kind == at, "kind {kind} reads statement {at}");
        }
    }
    let domains = std::collections::BTreeSet::from([Genesis::DOMAIN, Access::DOMAIN, Operation::DOMAIN]);
    assert_eq!(domains.len(), 3);
}

#[test]
fn nobody_signs_in_the_name_of_another() {
    assert_eq!(Signed::sign(genesis(), &key(2)), Err(Error::Signature { kind: "context genesis", signer: "its author" }));
    let read = Signed::<Genesis>::from_bytes(&forged(&genesis(), 2)).expect("well-formed");
    assert!(read.verify().is_err());
    // A weak key, for which anybody can sign.
    let weak = Genesis { owner: Principal::from_public_key([0; 32]), ..genesis() };
    let bytes = written(&Envelope { statement: &written(&weak), signature: [0; 64] });
    assert!(Signed::<Genesis>::from_bytes(&bytes).expect("well-formed").verify().is_err());
}

#[test]
fn keys_of_nodes_and_agents_are_keys_of_principals() {
    let agent = AgentKey::from_seed(&[9; 32]);
    assert_eq!(PrincipalKey::from(&agent).principal(), agent.id().into());
    let node = NodeKey::new(libp2p_identity::Keypair::ed25519_from_bytes([7; 32]).expect("32 bytes are a key"));
    let principal = PrincipalKey::try_from(&node).expect("an ed25519 key").principal();
    assert_eq!(Some(principal.public_key()), node.id().public_key());
}

/// Who wrote it, by its own rules, can neither send it nor have it read.
fn breaks<T: Statement + std::fmt::Debug + Clone + PartialEq>(content: T, seed: u8, field: &str) {
    let error = content.check().expect_err(field);
    match &error {
        Error::Rule { field: broken, .. } => assert_eq!(*broken, field),
        Error::Version { .. } => assert_eq!(field, "v"),
        Error::Oversize { .. } | Error::Malformed { .. } | Error::Signature { .. } => panic!("{error}"),
    }
    assert_eq!(Signed::<T>::from_bytes(&forged(&content, seed)), Err(error.clone()));
    assert_eq!(Signed::sign(content, &key(seed)), Err(error));
}

fn keeps<T: Statement + Clone + PartialEq + std::fmt::Debug>(content: T, seed: u8) {
    assert_eq!(content.check(), Ok(()));
    survives(content, seed);
}

#[test]
fn each_rule_of_a_genesis_holds_at_its_limit_and_not_past_it() {
    let parent = |count| Genesis { parent: Some(Parent { frontier: ids(count), ..genesis().parent.expect("a parent") }), ..genesis() };
    keeps(parent(64), 1);
    keeps(parent(0), 1);
    breaks(parent(65), 1, "frontier");
    let unsorted = Parent { frontier: vec![ids(2)[1], ids(2)[0]], ..genesis().parent.expect("a parent") };
    breaks(Genesis { parent: Some(unsorted), ..genesis() }, 1, "frontier");
    let twice = Parent { frontier: vec![ids(1)[0]; 2], ..genesis().parent.expect("a parent") };
    breaks(Genesis { parent: Some(twice), ..genesis() }, 1, "frontier");
    keeps(Genesis { session_id: "é".repeat(SESSION_ID_CHARS_MAX), ..parent(64) }, 1);
    keeps(Genesis { session_id: "\u{1f600}".repeat(SESSION_ID_CHARS_MAX), ..parent(64) }, 1);
    for session_id in ["é".repeat(SESSION_ID_CHARS_MAX + 1), String::new(), "a\nb".to_owned()] {
        breaks(Genesis { session_id, ..genesis() }, 1, "session_id");
    }
    keeps(Genesis { expires_at: Timestamp::from_ms(BEGIN.as_ms() + 1), ..genesis() }, 1);
    breaks(Genesis { expires_at: BEGIN, ..genesis() }, 1, "expires_at");
    breaks(Genesis { v: VERSION + 1, ..genesis() }, 1, "v");
}

#[test]
fn each_rule_of_an_access_change_holds_at_its_limit_and_not_past_it() {
    let with_readers = |count| Access { readers: readers(count), writers: Vec::new(), ..access() };
    keeps(with_readers(PRINCIPALS_MAX), 1);
    breaks(with_readers(PRINCIPALS_MAX + 1), 1, "readers");
    breaks(Access { readers: readers(3).into_iter().rev().collect(), writers: Vec::new(), ..access() }, 1, "readers");
    let nobody = readers(3).into_iter().filter(|reader| reader.principal != who(1)).collect();
    breaks(Access { readers: nobody, writers: Vec::new(), ..access() }, 1, "readers");
    let writer = |reader: &Reader, prefixes: Vec<Path>| Writer { principal: reader.principal, prefixes };
    let all = readers(PRINCIPALS_MAX);
    let with_writers = |writers| Access { readers: all.clone(), writers, ..access() };
    let prefixes = |count| (0..count).map(|at| path(&format!("/{at:03}"))).collect::<Vec<_>>();
    keeps(with_writers(all.iter().map(|reader| writer(reader, prefixes(PREFIXES_MAX))).collect()), 1);
    breaks(with_writers(vec![writer(&all[0], prefixes(PREFIXES_MAX + 1))]), 1, "prefixes");
    breaks(with_writers(vec![writer(&all[0], Vec::new())]), 1, "prefixes");
    breaks(with_writers(vec![writer(&all[0], vec![path("/b"), path("/a")])]), 1, "prefixes");
    breaks(with_writers(vec![writer(&all[0], vec![private_path(2, "")])]), 1, "prefixes");
    breaks(with_writers(vec![writer(&all[1], prefixes(1)), writer(&all[0], prefixes(1))]), 1, "writers");
    breaks(with_writers(vec![writer(&reader(who(9)), prefixes(1))]), 1, "readers");
    let too_many = |count: usize| (0..count).map(|at| writer(&reader(Principal::from_public_key(numbered(at))), prefixes(1))).collect();
    breaks(with_writers(too_many(PRINCIPALS_MAX + 1)), 1, "writers");
    let cuts = |count: usize| (0..count).map(|at| Cut { author: Principal::from_public_key(numbered(at)), last: None }).collect::<Vec<_>>();
    keeps(Access { cuts: cuts(2 * PRINCIPALS_MAX), ..access() }, 1);
    breaks(Access { cuts: cuts(2 * PRINCIPALS_MAX + 1), ..access() }, 1, "cuts");
    breaks(Access { cuts: cuts(2).into_iter().rev().collect(), ..access() }, 1, "cuts");
    keeps(Access { key_epoch: 3, ..access() }, 1);
    breaks(Access { key_epoch: 4, ..access() }, 1, "key_epoch");
    breaks(Access { key_epoch: 0, previous_key: None, ..access() }, 1, "key_epoch");
    breaks(Access { epoch: 0, ..access() }, 1, "epoch");
    breaks(Access { previous_key: None, ..access() }, 1, "previous_key");
    breaks(Access { key_epoch: 1, ..access() }, 1, "previous_key");
    breaks(Access { v: 0, ..access() }, 1, "v");
    let checkpoint = |lamport, bytes| Access { checkpoint: Some(Checkpoint { lamport, hash: [8; 32], bytes }), ..access() };
    keeps(checkpoint(u64::MAX / 2, BASE_BYTES_MAX), 1);
    breaks(checkpoint(u64::MAX / 2 + 1, BASE_BYTES_MAX), 1, "checkpoint");
    breaks(checkpoint(1, BASE_BYTES_MAX + 1), 1, "checkpoint");
    breaks(Access { cuts: vec![Cut { author: who(3), last: None }], ..checkpoint(1, 1) }, 1, "cuts");
    let ends_at = |seq| vec![Cut { author: who(3), last: Some(Last { seq, id: ids(1)[0] }) }];
    keeps(Access { cuts: ends_at(8), ..checkpoint(9, 1) }, 1);
    breaks(Access { cuts: ends_at(9), ..checkpoint(9, 1) }, 1, "cuts");
}

/// All lists may be full at once while paths are short; beyond that the error says how many bytes there may be.
#[test]
fn an_access_change_with_full_lists_fits_unless_its_paths_are_long() {
    let all = readers(PRINCIPALS_MAX);
    let full = |names: usize| {
        let prefix = |at: usize| path(&format!("/{at:02}{}", "x".repeat(names)));
        let prefixes: Vec<_> = (0..PREFIXES_MAX).map(prefix).collect();
        let writers = all.iter().map(|reader| Writer { principal: reader.principal, prefixes: prefixes.clone() }).collect();
        let last = Some(Last { seq: u64::MAX, id: OperationId::from_bytes([255; 32]) });
        let cuts = (0..2 * PRINCIPALS_MAX).map(|at| Cut { author: Principal::from_public_key(numbered(at)), last }).collect();
        Access { readers: all.clone(), writers, cuts, ..access() }
    };
    keeps(full(20), 1);
    let longest = full(PATH_BYTES_MAX - "/shared_memory/00".len());
    let bytes = written(&longest).len();
    let oversize = Error::Oversize { kind: "context access", bytes, bytes_max: 64 * 1024 };
    assert!(oversize.to_string().contains("at most 65536 are allowed"), "{oversize}");
    assert_eq!(Signed::sign(longest.clone(), &key(1)), Err(oversize));
    assert!(matches!(Signed::<Access>::from_bytes(&forged(&longest, 1)), Err(Error::Oversize { .. })));
}

#[test]
fn each_rule_of_an_operation_holds_at_its_limit_and_not_past_it() {
    let with = |header: Header| operation(header);
    keeps(with(Header { deps: ids(DEPENDENCIES_MAX), ..header() }), 2);
    breaks(with(Header { deps: ids(DEPENDENCIES_MAX + 1), ..header() }), 2, "deps");
    breaks(with(Header { deps: ids(2).into_iter().rev().collect(), ..header() }), 2, "deps");
    breaks(with(Header { deps: vec![ids(1)[0]; 2], ..header() }), 2, "deps");
    breaks(with(Header { prev: Some(ids(2)[1]), ..header() }), 2, "deps");
    breaks(with(Header { prev: None, ..header() }), 2, "prev");
    breaks(with(Header { seq: 0, ..header() }), 2, "prev");
    keeps(with(Header { seq: 4, ..header() }), 2);
    breaks(with(Header { seq: 5, ..header() }), 2, "lamport");
    keeps(with(Header { seq: u64::MAX - 1, lamport: u64::MAX, ..header() }), 2);
    breaks(with(Header { seq: 0, prev: None, lamport: 0, ..header() }), 2, "lamport");
    keeps(with(Header { acl_epoch: 1, ..header() }), 2);
    breaks(with(Header { acl_epoch: 0, ..header() }), 2, "acl_epoch");
    breaks(with(Header { v: VERSION + 1, ..header() }), 2, "v");
}

#[test]
fn an_operation_has_64_kib_and_no_byte_more() {
    let sized = |bytes: usize| {
        let body = body(vec![Item::Set(path("/a"), Value::from("x".repeat(bytes)))]);
        context_key().seal_operation(header(), &body, &mut rng()).expect("a body")
    };
    let overhead = written(&sized(60_000)).len() - 60_000;
    let largest = sized(OPERATION_BYTES_MAX - overhead);
    assert_eq!(written(&largest).len(), OPERATION_BYTES_MAX);
    keeps(largest, 2);
    let larger = sized(OPERATION_BYTES_MAX - overhead + 1);
    let oversize = Error::Oversize { kind: "operation", bytes: OPERATION_BYTES_MAX + 1, bytes_max: OPERATION_BYTES_MAX };
    assert_eq!(Signed::sign(larger.clone(), &key(2)), Err(oversize.clone()));
    assert_eq!(Signed::<Operation>::from_bytes(&forged(&larger, 2)), Err(oversize), "nor is it read");
}

fn body_breaks(body: &Body, field: &str) {
    let error = body.check().expect_err(field);
    assert!(matches!(&error, Error::Rule { field: broken, .. } if *broken == field), "{error}");
    assert_eq!(context_key().seal_operation(header(), body, &mut rng()), Err(error.clone()));
    assert_eq!(Body::decode(&written(body)), Err(error));
}

fn body_keeps(body: &Body) {
    let operation = context_key().seal_operation(header(), body, &mut rng()).expect("a valid body");
    assert_eq!(context_key().open_operation(&operation).as_ref(), Ok(body));
}

/// A value that nests that deep.
fn nested(depth: usize) -> Value {
    (0..depth).fold(json!(1), |value, at| if at % 2 == 0 { json!([value]) } else { json!({"a": value}) })
}

#[test]
fn each_rule_of_a_body_holds_at_its_limit_and_not_past_it() {
    body_keeps(&full_body());
    let increments = |count| body(vec![Item::Inc(path("/n"), i64::MIN); count]);
    body_keeps(&increments(ITEMS_MAX));
    body_breaks(&increments(ITEMS_MAX + 1), "items");
    body_breaks(&increments(0), "items");
    let sources = |count| Body { sources: ids(count), source: Some(context_id()), ..increments(1) };
    body_keeps(&sources(SOURCES_MAX));
    body_breaks(&sources(SOURCES_MAX + 1), "sources");
    body_keeps(&Body { source: None, ..sources(0) });
    body_breaks(&sources(0), "source");
    body_breaks(&Body { source: None, ..sources(1) }, "source");
    for depth in [2, 10, CONTEXT_DEPTH_MAX] {
        let place = path(&"/a".repeat(depth - 1));
        for item in [Item::Set, Item::Append] {
            body_keeps(&body(vec![item(place.clone(), nested(CONTEXT_DEPTH_MAX - depth))]));
            body_breaks(&body(vec![item(place.clone(), nested(CONTEXT_DEPTH_MAX - depth + 1))]), "value");
        }
    }
    let longest = path(&format!("/{}", "a".repeat(PATH_BYTES_MAX - "/shared_memory/".len())));
    body_keeps(&body(vec![Item::Del(longest)]));
    // A memory as a whole is an object or nothing.
    for whole in [path(""), private_path(2, "")] {
        body_keeps(&body(vec![Item::Set(whole.clone(), json!({"a": 1}))]));
        body_keeps(&body(vec![Item::Del(whole.clone())]));
        body_breaks(&body(vec![Item::Set(whole.clone(), json!([1]))]), "value");
        body_breaks(&body(vec![Item::Inc(whole.clone(), 1)]), "value");
        body_breaks(&body(vec![Item::Append(whole, json!({}))]), "value");
    }
    body_breaks(&body(vec![Item::Del(path("/a")), Item::Del(private_path(2, "/a"))]), "items");
    body_breaks(&body(vec![Item::Del(private_path(2, "/a")), Item::Del(private_path(3, "/a"))]), "items");
    let private = body(vec![Item::Del(private_path(2, "/a")), Item::Del(private_path(2, "/b"))]);
    body_keeps(&private);
    assert_eq!((private.private_to(), full_body().private_to()), (Some(who(2)), None));
}

/// A path that is too long, or none, is not read either; nobody can write it with our types.
#[test]
fn what_is_no_path_is_not_read_in_a_body() {
    let place = path(&format!("/{}", "a".repeat(PATH_BYTES_MAX - "/shared_memory/".len())));
    let bytes = written(&body(vec![Item::Del(place)]));
    assert!(Body::decode(&bytes).is_ok());
    // One letter longer, with the length in the head of the text one more, too.
    let mut longer = bytes.clone();
    let at = bytes.iter().position(|byte| *byte == b'/').expect("a path");
    longer[at - 1] += 1;
    longer.insert(at + 20, b'a');
    assert!(matches!(Body::decode(&longer), Err(Error::Malformed { .. })));
    let mut elsewhere = bytes;
    elsewhere[at + 1] = b'S';
    assert!(Body::decode(&elsewhere).is_err());
}

/// Two texts for one value would be two operations that say the same, and differ where a reader of another make prefers the other text.
#[test]
fn a_value_is_written_in_one_way_alone() {
    let plain = body(vec![Item::Set(path("/a"), json!({"a": 1.5, "b": "x"}))]);
    let bytes = written(&plain);
    let text = br#"{"a":1.5,"b":"x"}"#;
    let at = bytes.windows(text.len()).position(|window| window == text).expect("its text");
    for other in [r#"{"b":"x","a":1.5}"#, r#"{"a":1.50,"b":""}"#, r#"{"a":1e0, "b":""}"#, r#"{"a":1.5,"a":1.5}"#, r#"{"a":15e1,"b":""}"#] {
        let mut changed = bytes.clone();
        changed.splice(at..at + text.len(), other.bytes());
        assert_eq!(other.len(), text.len());
        assert!(matches!(Body::decode(&changed), Err(Error::Malformed { .. })), "{other}");
    }
    assert_eq!(Body::decode(&bytes), Ok(plain));
}

proptest! {
    /// Whatever number somebody writes, everybody reads that number.
    #[test]
    fn fractions_survive_the_wire_to_the_last_bit(fraction in any::<f64>(), whole in any::<u64>(), negative in any::<i64>()) {
        let value = json!([fraction, whole, negative]);
        let body = body(vec![Item::Set(path("/a"), value)]);
        prop_assert_eq!(Body::decode(&body.encode().expect("a body")), Ok(body));
    }
}

/// An author's operations in a line; the first builds on nothing.
fn line(seed: u8, count: u64) -> Vec<Verified<Operation>> {
    let mut line: Vec<Verified<Operation>> = Vec::new();
    for seq in 0..count {
        let prev = line.last().map(Verified::<Operation>::id);
        let header = Header { author: who(seed), seq, prev, deps: Vec::new(), lamport: seq + 1, ..header() };
        line.push(signed(operation(header), seed));
    }
    line
}

/// As it was read, with another signature.
fn damaged(operation: &Verified<Operation>) -> Signed<Operation> {
    let mut bytes = operation.to_bytes();
    *bytes.last_mut().expect("a signature") ^= 1;
    Signed::from_bytes(&bytes).expect("well-formed")
}

fn read(operation: &Verified<Operation>) -> Signed<Operation> {
    Signed::from_bytes(&operation.to_bytes()).expect("well-formed")
}

fn ok<T>(answers: &[Result<T, Error>]) -> Vec<bool> {
    answers.iter().map(Result::is_ok).collect()
}

/// One signature is looked at for each author, since it covers all that the author built on.
#[test]
fn the_last_signature_of_an_author_covers_its_line() {
    let (a, b) = (line(2, 3), line(3, 2));
    let run = vec![damaged(&a[0]), damaged(&b[0]), damaged(&a[1]), read(&b[1]), read(&a[2])];
    let answers = verify(run);
    assert_eq!(ok(&answers), [true; 5]);
    let stand_alone: Vec<_> = answers.iter().flatten().map(Verified::stands_alone).collect();
    assert_eq!(stand_alone, [false, false, false, true, true], "whoever has one alone does not believe it");
    assert_eq!(
        answers.iter().flatten().map(Verified::<Operation>::id).collect::<Vec<_>>(),
        [a[0].id(), b[0].id(), a[1].id(), b[1].id(), a[2].id()]
    );
    // With the last signature wrong, each before it stands for itself.
    let answers = verify(vec![read(&a[0]), damaged(&a[1]), damaged(&a[2])]);
    assert_eq!(ok(&answers), [true, false, false]);
    let answers = verify(vec![damaged(&a[0]), read(&a[1]), damaged(&a[2])]);
    assert_eq!(ok(&answers), [true, true, false]);
    // In another order nothing is covered, and nothing is believed that should not be.
    assert_eq!(ok(&verify(vec![read(&a[1]), damaged(&a[0])])), [true, false]);
    assert!(verify(Vec::new()).is_empty());
}

#[test]
fn nobody_vouches_for_the_operation_of_another() {
    let honest = line(2, 2);
    let thief = |prev: &Verified<Operation>| {
        let header = Header { author: who(3), seq: 1, prev: Some(prev.id()), deps: Vec::new(), lamport: 2, ..header() };
        signed(operation(header), 3)
    };
    let claim = thief(&honest[0]);
    assert_eq!(ok(&verify(vec![damaged(&honest[0]), read(&claim)])), [false, true]);
    // Nor does such a claim take away what the author itself vouches for.
    for run in [[damaged(&honest[0]), read(&claim), read(&honest[1])], [damaged(&honest[0]), read(&honest[1]), read(&claim)]] {
        assert_eq!(ok(&verify(run.to_vec())), [true; 3]);
    }
}

#[test]
fn a_context_key_opens_for_the_reader_that_it_was_sealed_to() {
    let access = access();
    let other = ContextKey::random(&mut StdRng::seed_from_u64(6));
    assert_eq!(ContextKey::of(&access, &key(1)), Ok(context_key()));
    assert_eq!(ContextKey::of(&access, &key(2)), Ok(context_key()));
    assert_ne!(context_key(), other);
    let shut = |access: &Access, seed| assert!(matches!(ContextKey::of(access, &key(seed)), Err(Error::Rule { field: "sealed", .. })));
    shut(&access, 3);
    shut(&Access { key_check: other.check(), ..access.clone() }, 2);
    shut(&Access { context: ContextId::from_bytes([5; 32]), ..access.clone() }, 2);
    // What was sealed to one under the name of another, and another key than all others have.
    let mut swapped = access.clone();
    swapped.readers.iter_mut().for_each(|reader| reader.sealed_key = access.readers[0].sealed_key);
    let opened = [1, 2].map(|seed| ContextKey::of(&swapped, &key(seed)).is_ok());
    assert!(opened[0] ^ opened[1], "the first of the two alone");
    let mut two_keys = access.clone();
    two_keys.readers.iter_mut().filter(|reader| reader.principal == who(2)).for_each(|reader| {
        reader.sealed_key = other.seal_to(who(2), context_id(), &mut rng()).expect("a key");
    });
    assert_eq!(ContextKey::of(&two_keys, &key(1)), Ok(context_key()));
    shut(&two_keys, 2);
    for at in 0..SEALED_KEY_BYTES {
        let mut changed = access.clone();
        changed.readers.iter_mut().for_each(|reader| reader.sealed_key[at] ^= 0x10);
        shut(&changed, 1);
    }
    assert!(context_key().seal_to(Principal::from_public_key([0; 32]), context_id(), &mut rng()).is_err(), "a weak key");
}

#[test]
fn a_key_leads_back_to_the_one_before_it_and_no_further() {
    let keys: Vec<_> = (0..3).map(|seed| ContextKey::random(&mut StdRng::seed_from_u64(seed))).collect();
    let (first, second) = (keys[1].seal_previous(&keys[0]), keys[2].seal_previous(&keys[1]));
    assert_eq!(keys[2].open_previous(&second).as_ref(), Ok(&keys[1]));
    assert_eq!(keys[1].open_previous(&first).as_ref(), Ok(&keys[0]));
    assert!(keys[2].open_previous(&first).is_err());
    assert!(keys[0].open_previous(&first).is_err(), "not the other way round");
    for at in 0..first.len() {
        let mut changed = first;
        changed[at] ^= 1;
        assert!(keys[1].open_previous(&changed).is_err(), "byte {at}");
    }
}

/// AMP-9: what stands in an operation is for readers, and belongs to this header alone.
#[test]
fn a_body_opens_with_its_key_under_its_header() {
    let sealed = operation(header());
    assert_eq!(context_key().open_operation(&sealed), Ok(full_body()));
    assert!(ContextKey::random(&mut StdRng::seed_from_u64(6)).open_operation(&sealed).is_err());
    let moved = Operation { header: Header { lamport: 6, ..header() }, ..sealed.clone() };
    assert!(context_key().open_operation(&moved).is_err());
    let again = Operation { nonce: [0; 24], ..sealed.clone() };
    assert!(context_key().open_operation(&again).is_err());
    let text = b"extract";
    assert!(written(&sealed).windows(text.len()).all(|window| window != text), "nothing of it shows");
    assert!(written(&full_body()).windows(text.len()).any(|window| window == text));
}

/// AMP-9: an agent's own memory opens for that agent, in that context.
#[test]
fn a_private_body_opens_for_its_agent_alone() {
    let private = body(vec![Item::Set(private_path(2, "/mood"), json!("curious"))]);
    let sealed = ContextKey::private(&key(2), context_id()).seal_operation(Header { is_private: true, ..header() }, &private, &mut rng());
    let sealed = sealed.expect("a body");
    assert_eq!(ContextKey::private(&key(2), context_id()).open_operation(&sealed), Ok(private));
    assert!(ContextKey::private(&key(1), context_id()).open_operation(&sealed).is_err());
    assert!(ContextKey::private(&key(2), ContextId::from_bytes([5; 32])).open_operation(&sealed).is_err());
    assert!(context_key().open_operation(&sealed).is_err());
}
