//! What members and strangers who keep to no rule can do to the contexts of real nodes: nothing that lasts (threat T28).
//!
//! Each test has an honest owner, mostly an honest reader beside it, and a [`HostileMember`] with a key of its own that signs and sends
//! what it likes. Whatever it did, both honest nodes show the same state afterwards and take what honest writers write.

use std::collections::BTreeSet;

use meshwork::model::{ContextId, OperationId, Timestamp};
use meshwork::proto::context::replica::{OPERATIONS_PER_AUTHOR_MAX, Replica};
use meshwork::wire::context::sync::{Answer as Told, Heads, Question};
use meshwork::wire::context::{Header, ITEMS_MAX, Item, Operation, Verified};
use meshwork::wire::directory::Control;
use serde_json::{Value, json};

use crate::support::{
    Node, SETTLE,
    contexts::{HostileMember, at, create, pair, patch, place, set, shows, version},
    eventually,
    peer::now_ms,
};

fn id_of(text: &str) -> ContextId {
    text.parse().expect("the id of a context")
}

fn item(below: &str, value: impl Into<Value>) -> Item {
    Item::Set(place(below), value.into())
}

/// An owner, a reader beside it, and a member who may write below `/notes`; the context, and the member's replica of it.
async fn shared() -> (Node, Node, HostileMember, String, Replica) {
    let (owner, reader) = pair().await;
    let member = HostileMember::joined(&[&owner, &reader]).await;
    let write = json!([{ "principal": member.id(), "paths": ["/shared_memory/notes"] }]);
    let id = create(&owner, json!({ "read": [reader.id()], "write": write })).await;
    shows(&reader, &id, "/plan/title", json!("draft")).await;
    let replica = member.pull(&owner, id_of(&id)).await.expect("a member is given what it may read");
    (owner, reader, member, id, replica)
}

/// Both nodes show the same, and take what the owner writes then.
async fn still_agree(owner: &Node, reader: &Node, id: &str) {
    patch(owner, id, set("/after", json!(true))).await.ok();
    shows(reader, id, "/after", json!(true)).await;
    let same = async || (version(owner, id).await["state_hash"] == version(reader, id).await["state_hash"]).then_some(());
    eventually("both nodes show the same state", SETTLE, same).await;
}

/// T28: who may not read is given the same answers for a context as for none, and is never asked about one.
#[tokio::test]
async fn a_stranger_learns_nothing_of_a_context() {
    let (owner, reader) = pair().await;
    let stranger = HostileMember::joined(&[&owner]).await;
    let text = create(&owner, json!({ "read": [reader.id()] })).await;
    shows(&reader, &text, "/plan/title", json!("draft")).await;
    let (known, unknown) = (id_of(&text), ContextId::from_bytes([5; 32]));
    let heads = |context| Heads { context, epoch: 0, access: [0; 32], tips: Vec::new() };
    let mut answers = Vec::new();
    for context in [known, unknown] {
        let compared = stranger.ask(&owner, &Question::Heads(vec![heads(context)])).await;
        let pulled = stranger.ask(&owner, &Question::Pull { heads: heads(context), knows_genesis: true }).await;
        assert!(matches!(pulled, Told::Refused(_)), "{pulled:?}");
        answers.push((compared, pulled, stranger.push(&owner, context, &[], &[]).await));
    }
    assert_eq!(answers[0], answers[1]);
    let names_it = |asked: &Control| matches!(asked, Control::Context(bytes) if bytes.windows(32).any(|part| part == known.to_bytes()));
    assert!(!stranger.peer.was_asked(names_it), "the owner names it to no stranger");
    assert_eq!(at(&owner, &text, "/plan/title").await, Some(json!("draft")));
}

/// T28: an operation without the right, outside of its path, backdated, ahead of its time, out of its line or of another context is not
/// taken in by anybody, and does not keep an honest one out.
#[tokio::test]
async fn what_a_writer_may_not_changes_nothing() {
    let (owner, reader, member, id, mut replica) = shared().await;
    let first = member.write(&mut replica, vec![item("/notes/first", 1)]);
    assert_eq!(member.push(&owner, id_of(&id), &[], &[first]).await, Told::Taken);
    shows(&owner, &id, "/notes/first", json!(1)).await;
    let before = version(&owner, &id).await;
    let elsewhere = ContextId::from_bytes([9; 32]);
    type Change = fn(&mut Header);
    let changes: [(&str, Vec<Item>, Change); 8] = [
        ("outside of its path", vec![item("/plan/title", "mine")], |_| {}),
        ("one of two outside of its path", vec![item("/notes/a", 1), item("/plan/title", "mine")], |_| {}),
        ("a whole memory", vec![Item::Del(place(""))], |_| {}),
        ("far ahead", vec![item("/notes/a", 1)], |header| header.lamport = 1 << 40),
        ("at the end of all clocks", vec![item("/notes/a", 1)], |header| header.lamport = u64::MAX),
        ("a number left out", vec![item("/notes/a", 1)], |header| header.seq += 1),
        ("the last number there may be", vec![item("/notes/a", 1)], |header| {
            (header.seq, header.lamport) = (OPERATIONS_PER_AUTHOR_MAX, OPERATIONS_PER_AUTHOR_MAX + 1);
        }),
        ("before its own last", vec![item("/notes/a", 1)], |header| (header.seq, header.prev, header.deps) = (0, None, Vec::new())),
    ];
    for (what, items, change) in changes {
        let forged = member.forge(&replica, items, change);
        member.push(&owner, id_of(&id), &[], &[forged]).await;
        assert_eq!(version(&owner, &id).await["state_hash"], before["state_hash"], "{what}");
        assert_eq!(at(&owner, &id, "/plan/title").await, Some(json!("draft")), "{what}");
    }
    let foreign = member.forge(&replica, vec![item("/notes/a", 1)], |_| {});
    member.push(&owner, elsewhere, &[], &[foreign]).await;
    assert_eq!(version(&owner, &id).await["state_hash"], before["state_hash"], "under another context");
    let good = member.write(&mut replica, vec![item("/notes/second", 2)]);
    member.push(&owner, id_of(&id), &[], &[good]).await;
    for node in [&owner, &reader] {
        shows(node, &id, "/notes", json!({ "first": 1, "second": 2 })).await;
    }
    still_agree(&owner, &reader, &id).await;
}

/// T28: a writer whose right was taken away writes as if it had not heard of it, to a node that has heard and to one that has not.
#[tokio::test]
async fn a_revoked_writer_backdates_in_vain() {
    let (owner, reader, member, id, mut replica) = shared().await;
    let kept = member.write(&mut replica, vec![item("/notes/kept", true)]);
    member.push(&owner, id_of(&id), &[], &[kept]).await;
    shows(&reader, &id, "/notes/kept", json!(true)).await;
    owner.put(&format!("/v1/contexts/{id}/access"), &json!({ "read": [reader.id(), member.id()], "write": [] })).await.ok();
    eventually("the reader has heard of the change", SETTLE, async || (version(&reader, &id).await["access_epoch"] == 2).then_some(()))
        .await;
    // Written at the change of access before, behind the last that the owner had seen.
    let late: Vec<_> = (0..3).map(|at| member.write(&mut replica, vec![item("/notes/kept", at)])).collect();
    for node in [&owner, &reader] {
        member.push(node, id_of(&id), &[], &late).await;
        assert_eq!(at(node, &id, "/notes/kept").await, Some(json!(true)));
    }
    still_agree(&owner, &reader, &id).await;
    assert_eq!(at(&owner, &id, "/notes/kept").await, Some(json!(true)));
}

/// T28: an author who tells each of two nodes something else under one number does not divide them.
#[tokio::test]
async fn an_author_who_says_two_things_divides_nobody() {
    let (owner, reader, member, id, mut replica) = shared().await;
    let mut twin = member.pull(&owner, id_of(&id)).await.expect("a member");
    let (here, there) =
        (member.write(&mut replica, vec![item("/notes/a", "here")]), member.write(&mut twin, vec![item("/notes/a", "there")]));
    assert_eq!((here.header.seq, here.id() == there.id()), (there.header.seq, false));
    member.push(&owner, id_of(&id), &[], &[here]).await;
    member.push(&reader, id_of(&id), &[], &[there]).await;
    for node in [&owner, &reader] {
        eventually("the proof is shown", SETTLE, async || {
            let document = node.get(&format!("/v1/contexts/{id}")).await.ok();
            (document["equivocations"][0]["operations"].as_array().map(Vec::len) == Some(2)).then_some(())
        })
        .await;
    }
    still_agree(&owner, &reader, &id).await;
    // One of the two shows, the same on both.
    assert_eq!(at(&owner, &id, "/notes/a").await, at(&reader, &id, "/notes/a").await);
    let both = [&owner, &reader].map(async |node| version(node, &id).await["operations"].clone());
    let [owners, readers] = both;
    assert_eq!(owners.await, readers.await, "both hold both");
}

/// T28: an owner who changes access in two ways at once freezes it at the last common change, on every node that has seen both.
#[tokio::test]
async fn an_owner_who_says_two_things_freezes_access() {
    let (left, right) = pair().await;
    let member = HostileMember::joined(&[&left, &right]).await;
    let genesis = member.genesis(Timestamp::from_ms(now_ms() + 3_600_000));
    let id = ContextId::from_bytes(genesis.name());
    let mut replica = Replica::new(genesis.clone(), vec![member.key.clone()]);
    let first = member.access(&replica, &[left.id(), right.id()], 1);
    replica.on_access(first.clone()).expect("it counts");
    for node in [&left, &right] {
        member.offer(node, &genesis, std::slice::from_ref(&first)).await;
        eventually("the context is there", SETTLE, async || (node.get(&format!("/v1/contexts/{id}")).await.status == 200).then_some(()))
            .await;
    }
    let ways = [member.access(&replica, &[left.id(), right.id()], 2), member.access(&replica, &[left.id(), right.id()], 3)];
    assert_ne!(ways[0].name(), ways[1].name());
    member.push(&left, id, &ways[..1], &[]).await;
    member.push(&right, id, &ways[1..], &[]).await;
    member.push(&left, id, &ways[1..], &[]).await;
    for node in [&left, &right] {
        eventually("access is frozen", SETTLE, async || {
            let document = node.get(&format!("/v1/contexts/{id}")).await.ok();
            (document["access_frozen"] == true && document["version"]["access_epoch"] == 1).then_some(())
        })
        .await;
    }
}

/// T28: a context that has ended is not begun again, whoever offers it.
#[tokio::test]
async fn a_context_that_has_ended_is_not_taken_in() {
    let node = Node::first().await;
    let member = HostileMember::joined(&[&node]).await;
    let ended = member.genesis(Timestamp::from_ms(now_ms() - 1));
    let mut replica = Replica::new(ended.clone(), vec![member.key.clone()]);
    let access = member.access(&replica, &[node.id()], 1);
    replica.on_access(access.clone()).expect("it counts");
    member.offer(&node, &ended, &[access]).await;
    eventually("the node has asked for it", SETTLE, async || {
        member.peer.was_asked(|asked| matches!(asked, Control::Context(_))).then_some(())
    })
    .await;
    // One that has not ended comes after it, and is taken in.
    let genesis = member.genesis(Timestamp::from_ms(now_ms() + 3_600_000));
    let access = member.access(&Replica::new(genesis.clone(), vec![member.key.clone()]), &[node.id()], 2);
    member.offer(&node, &genesis, &[access]).await;
    let living = ContextId::from_bytes(genesis.name());
    eventually("the living one is there", SETTLE, async || (node.get(&format!("/v1/contexts/{living}")).await.status == 200).then_some(()))
        .await;
    let listed = node.get("/v1/contexts").await.ok();
    assert_eq!(listed["contexts"].as_array().map(Vec::len), Some(1), "{listed}");
}

/// T28: what deletes all that nobody wrote fills its author's share and nothing else, and costs a bounded amount of memory.
#[tokio::test]
async fn a_million_tombstones_end_at_the_share_of_their_author() {
    let (owner, reader, member, id, mut replica) = shared().await;
    let before = owner.resident_bytes();
    let (mut tombstones, mut unsent, mut is_full) = (0_usize, Vec::new(), false);
    while !is_full && tombstones < 1_000_000 {
        let deleted = (tombstones..tombstones + ITEMS_MAX).map(|at| Item::Del(place(&format!("/notes/{at}")))).collect();
        let operation = member.forge(&replica, deleted, |_| {});
        is_full = replica.on_operation(operation.clone()).is_err();
        unsent.push(operation);
        tombstones += ITEMS_MAX;
        // As many as a message holds.
        if is_full || unsent.len() == 3 {
            member.push(&owner, id_of(&id), &[], &unsent).await;
            unsent.clear();
        }
    }
    let refused_at = tombstones;
    assert!((100_000..300_000).contains(&refused_at), "{refused_at} tombstones");
    let grown = owner.resident_bytes().saturating_sub(before);
    assert!(grown < 256 * 1024 * 1024, "{grown} bytes for {refused_at} tombstones");
    still_agree(&owner, &reader, &id).await;
    assert_eq!(at(&owner, &id, "/plan/title").await, Some(json!("draft")));
}

/// T28: operations that wait for something that there is not are held within a bound, and keep nobody's from counting.
#[tokio::test]
async fn a_flood_of_operations_that_wait_drowns_nothing() {
    let (owner, reader, member, id, mut replica) = shared().await;
    let before = owner.resident_bytes();
    let waits = |at: u64| -> Verified<Operation> {
        let mut missing = [0; 32];
        missing[..8].copy_from_slice(&at.to_be_bytes());
        let text = "x".repeat(24_000);
        member.forge(&replica, vec![item("/notes/late", text)], |header| {
            let known: BTreeSet<_> = header.deps.iter().copied().chain([OperationId::from_bytes(missing)]).collect();
            (header.deps, header.lamport) = (known.into_iter().collect(), 100 + at);
        })
    };
    for at in 0..300 {
        member.push(&owner, id_of(&id), &[], &[waits(at)]).await;
    }
    let grown = owner.resident_bytes().saturating_sub(before);
    assert!(grown < 64 * 1024 * 1024, "{grown} bytes");
    let good = member.write(&mut replica, vec![item("/notes/good", true)]);
    member.push(&owner, id_of(&id), &[], &[good]).await;
    shows(&reader, &id, "/notes/good", json!(true)).await;
    still_agree(&owner, &reader, &id).await;
}
