//! What peers that mean harm are let loose on: a node with an agent that echoes, and whether it stands.

use std::time::Duration;

use bytes::Bytes;
use meshwork::{
    model::{AgentId, Failure},
    wire::{
        blob::{Head, Part},
        directory::Record,
        invocation::{BlobId, Body, Frame, Request, Success},
    },
};
use serde_json::{Value, json};

use super::{
    agents::builtin,
    answer::Answer,
    node::Node,
    peer::{Forger, Habits, HostilePeer},
    wait::{SETTLE, eventually},
};

/// A node never waits longer for somebody who does not answer than this, where the call's own deadline is not shorter.
pub(crate) const IN_TIME: Duration = Duration::from_secs(5);

/// A node with an agent that echoes.
pub(crate) async fn echoing() -> Node {
    Node::builder().agent(builtin("echo", "echo")).spawn().await
}

/// The node answers its own clients.
pub(crate) async fn serves(node: &Node) {
    assert_eq!(node.call("echo", json!("still here")).await["output"], "still here");
    assert_eq!(node.get("/health").await.status, 200);
}

/// The node answers its own clients and those of an honest neighbour.
pub(crate) async fn still_serves(node: &Node, honest: &Node) {
    serves(node).await;
    let answer = honest.call("echo", json!("there, too")).await;
    assert_eq!((&answer["output"], &answer["node_id"]), (&json!("there, too"), &json!(node.id())), "{answer}");
}

/// A record of the agent `name` that everybody would choose.
pub(crate) fn fast(forger: &Forger, name: &str) -> Record {
    let mut record = forger.record(1, name);
    record.capabilities[0].constraints.response_time_ms = Some(1);
    record
}

/// A peer whose agent the node knows and would call.
pub(crate) async fn trap(node: &Node, forger: Forger, record: &Record, habits: Habits) -> HostilePeer {
    let signed = forger.sign(record, 1);
    let hostile = HostilePeer::start(forger, habits.advertises(record, signed));
    hostile.connect(node).await;
    node.knows(record.capabilities[0].id.as_str(), &[&record.name]).await;
    hostile
}

pub(crate) async fn invoke(node: &Node, capability: &str, timeout_ms: u64) -> Answer {
    node.invoke(json!({ "capability": capability, "input": "?", "timeout_ms": timeout_ms })).await
}

pub(crate) fn result(id: u64, output: &'static str) -> Frame {
    Frame::Result { id, success: Success { units: None, execution_us: 1, body: Body::Inline(Bytes::from_static(output.as_bytes())) } }
}

/// What an error frame says.
#[track_caller]
pub(crate) fn failure(frame: &Frame) -> Failure {
    let Frame::Error { failure, .. } = frame else { panic!("no error: {frame:?}") };
    serde_json::from_slice(failure).expect("a failure as JSON")
}

pub(crate) async fn agent(node: &Node, name: &str) -> AgentId {
    node.agent_id(name).await.parse().expect("an agent's id")
}

/// How many messages of a kind the node has dropped for a reason.
pub(crate) async fn dropped(node: &Node, kind: &str, reason: &str) -> u64 {
    node.metric(&format!("meshwork_dropped_total{{kind=\"{kind}\",reason=\"{reason}\"}}")).await
}

/// Waits until the node has dropped exactly as many.
pub(crate) async fn until_dropped(node: &Node, kind: &str, reason: &str, count: u64) {
    let what = format!("{count} of {kind} dropped as {reason}");
    eventually(&what, SETTLE, async || (dropped(node, kind, reason).await == count).then_some(())).await;
}

/// A request whose input goes as a blob of this size, what goes before it, and the bytes.
pub(crate) fn announced(call: Request, bytes: usize, seed: usize) -> (Request, Head, Vec<u8>) {
    let bytes = serde_json::to_vec(&text(bytes, seed)).expect("a text is JSON");
    let blob = BlobId::of(&bytes);
    let head = Head { invocation: call.invocation, part: Part::Input, blob };
    (Request { body: Body::Blob(blob), confirm: false, ..call }, head, bytes)
}

/// A text of so many bytes as JSON that looks like anything but a text; each seed gives another.
pub(crate) fn text(bytes: usize, seed: usize) -> Value {
    let odd = "\0\u{1}\"\\\r\n\u{7f}\u{9b}é\u{1f600}</script>${x}\u{202e}";
    // Six bytes for each of the first two, two for each of the next four; the others stand as they are.
    let odd_bytes = 6 * 2 + 2 * 4 + (odd.len() - 6);
    let head = format!("{seed}:");
    let rest = bytes - 2 - head.len();
    let text = head + &odd.repeat(rest / odd_bytes) + &"x".repeat(rest % odd_bytes);
    debug_assert_eq!(serde_json::to_vec(&text).map(|json| json.len()).ok(), Some(bytes));
    Value::String(text)
}
