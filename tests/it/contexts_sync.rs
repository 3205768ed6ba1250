//! How contexts come from node to node: through those in between, and past those who never answer (design/contexts.md, "Sync").

use std::time::Duration;

use meshwork::model::ContextId;
use meshwork::wire::context::sync::{Answer as Told, Question};
use meshwork::wire::directory::Control;
use serde_json::{Value, json};

use crate::support::{
    Node, SETTLE,
    contexts::{HostileMember, at, create, pair, patch, set, shows},
    eventually,
};

/// How long what is written may take to a node that is not connected to its author: well below the half minute of the exchange.
const HINTED: Duration = Duration::from_secs(8);
/// Pulls from one node at once (`node::context::book`).
const PULLS_PER_NODE_MAX: usize = 8;

/// AMP-9: what is written on one node is soon on another that is not connected to it, by way of a reader in between; also on the way back.
#[tokio::test]
async fn a_change_goes_on_to_readers_who_are_not_connected_to_its_author() {
    let middle = Node::first().await;
    // Nobody can dial them, so they know only whom they join.
    let end = async || Node::builder().listen(&[]).config("[mesh]\nclient_only = true\n").join(&middle).spawn().await;
    let ends = [end().await, end().await];
    for end in &ends {
        middle.meets(end).await;
    }
    let all = json!([middle.id(), ends[0].id(), ends[1].id()]);
    let id = create(&ends[0], json!({ "write": all })).await;
    let arrives = async |node: &Node, path: &str, value: Value| {
        let there = async || (at(node, &id, path).await? == value).then_some(());
        eventually(&format!("{path} is at the other end"), HINTED, there).await;
    };
    arrives(&ends[1], "/plan/title", json!("draft")).await;
    // Were it the exchange, it would have to come just in time again and again.
    for round in 0..4 {
        let (from, to) = if round % 2 == 0 { (&ends[0], &ends[1]) } else { (&ends[1], &ends[0]) };
        patch(from, &id, set("/round", json!(round))).await.ok();
        arrives(to, "/round", json!(round)).await;
    }
    for (end, other) in [(&ends[0], &ends[1]), (&ends[1], &ends[0])] {
        let peers = end.peers().await;
        assert!(peers.contains(&middle.id().to_owned()) && !peers.contains(&other.id().to_owned()), "{peers:?}");
    }
}

/// T28: a peer that tells of many contexts and answers no question about them has a few pulls waiting for it; others are served meanwhile.
#[tokio::test]
async fn a_peer_that_never_answers_holds_up_nobody_else() {
    let (owner, reader) = pair().await;
    let silent = HostileMember::silent(&[&reader]).await;
    let is_pull =
        |control: &Control| matches!(control, Control::Context(bytes) if matches!(Question::decode(bytes), Ok(Question::Pull { .. })));
    let tell = async |number| silent.push(&reader, ContextId::from_bytes([number; 32]), &[], &[]).await;
    // One after the other, since a node takes few questions of one peer at once; and soon, since a pull that is given up after a while leaves
    // its place to a later one.
    let mut told = Vec::new();
    for number in 0..24 {
        told.push(tell(number).await);
    }
    assert!(told.iter().all(|told| *told == Told::Taken), "what it is told of is looked at later: {told:?}");
    let asked = async || (silent.peer.times_asked(is_pull) >= PULLS_PER_NODE_MAX).then_some(());
    eventually("as many pulls as one peer may have wait for it", SETTLE, asked).await;
    let id = create(&owner, json!({ "read": [reader.id()] })).await;
    shows(&reader, &id, "/plan/title", json!("draft")).await;
    assert_eq!(silent.peer.times_asked(is_pull), PULLS_PER_NODE_MAX, "for the rest there was no place");
}
