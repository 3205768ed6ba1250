//! Calls that are taken back where no agent works on them: while the input is on its way, while the output is, and before anybody is found.
//! Whoever has part in one hears of it, and what it held is free again. (While an agent works, or waits: `streaming`, `hostile`.)

use meshwork::{
    model::{CapabilityName, ErrorCode},
    wire::{
        blob::{HEAD_BYTES, Head, Part},
        directory::Control,
        invocation::{Body, Frame, Success},
    },
};
use serde_json::{Value, json};

use crate::support::{
    Answer, Builder, Node, SETTLE, builtin, eventually,
    peer::{Forger, Habits, HostilePeer, RawLane, request},
    stepper,
    target::{agent, announced, failure, fast, result, serves, text, trap},
};

/// The largest payload unless configured otherwise, in bytes.
const PAYLOAD_MAX: usize = 5_242_880;
/// Room for one such payload: whatever a call leaves behind keeps the next from passing.
const ROOM_FOR_ONE: &str = "[limits]\nannounced_bytes_max = 5242880\nannounced_per_peer_bytes_max = 5242880\n";
/// The id of the call that is taken back.
const ID: &str = "00000000000000000000000000000abc";

/// MEAP-7: a call is taken back while its node still pushes the input.
#[tokio::test]
async fn a_call_is_cancelled_while_its_input_is_pushed() {
    let node = one_at_a_time().spawn().await;
    let forger = Forger::new();
    let record = fast(&forger, "sink");
    let hostile = trap(&node, forger, &record, Habits::default()).await;

    let call = ask(&node, "test.sink", text(PAYLOAD_MAX, 1));
    let reading = async {
        let mut lane = hostile.accept_lane().await;
        let (id, call) = lane.next_call().await.expect("a call");
        assert_eq!(call.body.len(), PAYLOAD_MAX as u64);
        let mut blob = hostile.accept_raw_blob().await;
        take_back(&node).await;
        assert_eq!(lane.next_cancel().await, Some(id), "the agent's node is told");
        let came = blob.rest().await.len();
        assert!(came < HEAD_BYTES + PAYLOAD_MAX, "nothing more is pushed for nobody");
        lane
    };
    let (answer, mut lane) = tokio::join!(call, reading);
    answer.error("CANCELLED");

    let (next, _) = tokio::join!(node.call("test.sink", text(PAYLOAD_MAX, 2)), async {
        let (id, _) = lane.next_call().await.expect("the lane goes on");
        let (head, bytes) = hostile.accept_blob().await;
        assert_eq!((head.part, bytes.len()), (Part::Input, PAYLOAD_MAX));
        lane.send(&[Frame::Accepted { id }, result(id, "2")]).await;
    });
    assert_eq!(next["output"], 2);
    serves(&node).await;
}

/// MEAP-7: the same as the agent's node sees it: the agent never hears of the call, and there is room for the next.
#[tokio::test]
async fn a_call_is_cancelled_before_its_input_has_come() {
    let builder = one_at_a_time();
    let (process, journal) = stepper("process", builder.home(), json!({ "id": "test.process" }));
    let host = builder.agent(process).spawn().await;
    let (echo, process) = (agent(&host, "echo").await, agent(&host, "process").await);
    let peer = HostilePeer::joined(&host).await;
    let mut lane = peer.open_lane(&host).await;

    let (call, head, bytes) = announced(request(process, "test.process", &json!(0)), PAYLOAD_MAX, 1);
    lane.call(1, call).await;
    let mut blob = peer.open_blob(&host).await;
    assert!(blob.write(&head.encode()).await && blob.write(&bytes[..PAYLOAD_MAX / 2]).await);
    lane.send(&[Frame::Cancel { id: 1 }]).await;
    let Some((1, frame @ Frame::Error { begun: false, .. })) = lane.end().await else { panic!("it ends, and has not begun") };
    assert_eq!(failure(&frame).code, ErrorCode::Cancelled);
    blob.refused().await;

    let (call, head, bytes) = announced(request(echo, "echo", &json!(0)), PAYLOAD_MAX, 2);
    lane.call(2, call).await;
    peer.open_blob(&host).await.push(&head, &bytes).await;
    assert!(matches!(lane.end().await, Some((2, Frame::Result { .. }))), "there is room for the next");
    assert_eq!(journal.lines(), [""; 0], "the agent was never called");
    serves(&host).await;
}

/// MEAP-7: a call is taken back while the output comes.
#[tokio::test]
async fn a_call_is_cancelled_while_its_output_comes() {
    let node = one_at_a_time().spawn().await;
    let forger = Forger::new();
    let record = fast(&forger, "spring");
    let hostile = trap(&node, forger, &record, Habits::default()).await;

    let call = ask(&node, "test.spring", json!(1));
    let pushing = async {
        let mut lane = hostile.accept_lane().await;
        let (head, bytes) = answer_with_blob(&mut lane, 1).await;
        let mut blob = hostile.open_blob(&node).await;
        assert!(blob.write(&head.encode()).await && blob.write(&bytes[..PAYLOAD_MAX / 2]).await);
        take_back(&node).await;
        blob.refused().await;
        lane
    };
    let (answer, mut lane) = tokio::join!(call, pushing);
    answer.error("CANCELLED");

    let (next, ()) = tokio::join!(node.call("test.spring", json!(2)), async {
        let (head, bytes) = answer_with_blob(&mut lane, 2).await;
        hostile.open_blob(&node).await.push(&head, &bytes).await;
    });
    assert!(next["output"] == text(PAYLOAD_MAX, 2), "there is room for the next");
    assert_eq!(node.metric("meshwork_penalties_total").await, 0);
    serves(&node).await;
}

/// MEAP-7: a caller that no longer wants the output lets go of it, and gets the next one whole.
#[tokio::test]
async fn an_output_that_nobody_takes_any_more_holds_up_nothing() {
    let host = one_at_a_time().spawn().await;
    let echo = agent(&host, "echo").await;
    let peer = HostilePeer::joined(&host).await;
    let mut lane = peer.open_lane(&host).await;

    for id in 1..=3 {
        let seed = usize::try_from(id).expect("a small number");
        let (call, head, bytes) = announced(request(echo, "echo", &json!(0)), PAYLOAD_MAX, seed);
        lane.call(id, call).await;
        peer.open_blob(&host).await.push(&head, &bytes).await;
        assert!(matches!(lane.end().await, Some((ended, Frame::Result { .. })) if ended == id));
        if id < 3 {
            drop(peer.accept_raw_blob().await);
            lane.send(&[Frame::Cancel { id }]).await;
            assert!(lane.is_alive().await, "a cancel may cross the end of its call");
        } else {
            assert!(peer.accept_blob().await.1 == bytes);
        }
    }
    serves(&host).await;
}

/// MEAP-7: a call is taken back while agents are searched for, and whoever is found afterwards is not called.
#[tokio::test]
async fn a_call_is_cancelled_while_agents_are_searched_for() {
    let node = one_at_a_time().spawn().await;
    let is_query = |asked: &Control| matches!(asked, Control::Find(_));
    let hostile = HostilePeer::start(Forger::new(), Habits::default().ignores(|asked| matches!(asked, Control::Find(_))));
    hostile.connect(&node).await;

    // A search is over after two seconds, and its name is not searched for again for a time. Whoever comes too late tries it with another.
    let mut attempts = 0;
    let taken_back = async || {
        attempts += 1;
        let found = format!("found-{attempts}");
        let name: CapabilityName = format!("test.{found}").parse().expect("a name");
        hostile.provide(&node, &name).await;
        let before = hostile.times_asked(is_query);
        let searching = async {
            eventually("the provider is asked", SETTLE, async || (hostile.times_asked(is_query) > before).then_some(())).await;
            node.delete(&path()).await
        };
        let (answer, taken_back) = tokio::join!(ask(&node, name.as_str(), json!("the first")), searching);
        (taken_back.status == 204).then_some((found, answer))
    };
    let (found, answer) = eventually("a call is taken back in time", SETTLE * 2, taken_back).await;
    answer.error("CANCELLED");
    assert_eq!(node.get("/v1/node").await.ok()["counts"]["calls_in_flight"], 0);

    let record = fast(hostile.forger(), &found);
    hostile.gossip_record(&record, &hostile.forger().sign(&record, 1)).await;
    let capability = format!("test.{found}");
    node.knows(&capability, &[&found]).await;
    let (next, ()) = tokio::join!(node.call(&capability, json!("the second")), async {
        let mut lane = hostile.accept_lane().await;
        let (id, call) = lane.next_call().await.expect("a call");
        assert_eq!(call.body, Body::Inline("\"the second\"".into()), "nobody is called for the first");
        lane.send(&[Frame::Accepted { id }, result(id, "2")]).await;
    });
    assert_eq!(next["output"], 2);
    serves(&node).await;
}

/// A node that echoes, with room for one large body.
fn one_at_a_time() -> Builder {
    Node::builder().config(ROOM_FOR_ONE).agent(builtin("echo", "echo"))
}

/// The call that will be taken back.
async fn ask(node: &Node, capability: &str, input: Value) -> Answer {
    node.invoke(json!({ "capability": capability, "input": input, "invocation_id": ID, "timeout_ms": 30_000 })).await
}

async fn take_back(node: &Node) {
    node.delete(&path()).await.ok();
}

/// Where the call is taken back.
fn path() -> String {
    format!("/v1/invocations/{ID}")
}

/// Answers the next call with an output that is yet to come: what goes before it, and the bytes.
async fn answer_with_blob(lane: &mut RawLane, seed: usize) -> (Head, Vec<u8>) {
    let (id, call) = lane.next_call().await.expect("a call");
    let (_, head, bytes) = announced(*call, PAYLOAD_MAX, seed);
    let success = Success { units: None, execution_us: 1, body: Body::Blob(head.blob) };
    lane.send(&[Frame::Accepted { id }, Frame::Result { id, success }]).await;
    (Head { part: Part::Output, ..head }, bytes)
}
