//! Bodies that do not fit into a frame of a lane: whole both ways, within their bounds, beside small calls, and their budgets given back.

use futures::future::join_all;
use meshwork::{
    model::{ErrorCode, InvocationId},
    wire::{
        blob::{Head, Part},
        invocation::{BlobId, Body, Frame, Request},
    },
};
use serde_json::json;

use crate::support::{
    Node, SETTLE, builtin, eventually,
    peer::{HostilePeer, request},
    script,
    target::{agent, announced, failure, serves, still_serves, text},
    with,
};

/// The largest body that travels on a lane itself, in bytes.
const INLINE_MAX: usize = 65_536;
/// The largest payload unless configured otherwise, in bytes.
const PAYLOAD_MAX: usize = 5_242_880;
/// What one peer may have announced unless configured otherwise, in bytes.
const ANNOUNCED_MAX: usize = 67_108_864;

/// MAOP-10: what does not fit into a frame of a lane goes as a blob, over either transport, and nobody can tell.
#[tokio::test]
async fn payloads_of_any_size_up_to_5_mib_pass_both_ways() {
    for listen in ["/ip4/127.0.0.1/tcp/0", "/ip4/127.0.0.1/udp/0/quic-v1"] {
        let host = echoing("").listen(&[listen]).spawn().await;
        let caller = Node::builder().listen(&[listen]).join(&host).spawn().await;
        for node in [&host, &caller] {
            knows(node).await;
            for bytes in [INLINE_MAX - 1, INLINE_MAX, INLINE_MAX + 1, PAYLOAD_MAX] {
                let text = text(bytes, 0);
                assert!(node.call("echo", text.clone()).await["output"] == text, "{bytes} bytes over {listen}");
                assert_eq!(sized(node, bytes).await, Ok(bytes), "over {listen}");
            }
            let error = node.invoke(json!({ "capability": "echo", "input": text(PAYLOAD_MAX + 1, 0) })).await;
            assert_eq!(error.refused(413, "PAYLOAD_TOO_LARGE")["details"]["limit"], PAYLOAD_MAX);
            assert_eq!(sized(node, PAYLOAD_MAX + 1).await, Err("PAYLOAD_TOO_LARGE".to_owned()));
        }
    }
}

/// MAOP-10: many at once do not get into each other's way.
#[tokio::test]
async fn twenty_large_payloads_at_once_arrive_each_at_its_own_caller() {
    let (host, caller) = pair("", "").await;
    // As much as one peer may have under way.
    let bytes = ANNOUNCED_MAX / 20;

    let calls = (1..=20).map(|seed| {
        let (text, caller) = (text(bytes, seed), &caller);
        async move { (caller.call("echo", text.clone()).await["output"] == text).then_some(()).ok_or(seed) }
    });

    assert_eq!(join_all(calls).await, [Ok(()); 20]);
    serves(&host).await;
}

/// MAOP-10, MEAP-9: far more bodies than travel at once wait for each other at their sender; nobody fails, and nobody is asked again.
#[tokio::test]
async fn sixty_four_large_payloads_at_once_are_each_sent_once() {
    let (_host, caller) = pair("", "").await;
    let calls = (1..=64).map(|seed| {
        let (text, caller) = (text(100_000, seed), &caller);
        async move {
            let answer = caller.invoke(json!({ "capability": "echo", "input": text })).await;
            (answer.body["output"] == text).then_some(answer.body["attempts"].clone()).ok_or(answer.body)
        }
    });

    assert_eq!(join_all(calls).await, vec![Ok(json!(1)); 64]);
}

/// MAOP-10, F12: work that is done is not lost because the caller has no room for its output yet.
#[tokio::test]
async fn outputs_beyond_the_budget_of_the_caller_wait_for_room() {
    const BYTES: usize = 1_000_000;
    let limits = "[limits]\npayload_bytes_max = 1000000\nannounced_per_peer_bytes_max = 1000000\n";
    let (_host, caller) = pair("", limits).await;

    let outcomes = join_all((0..30).map(|_| sized(&caller, BYTES))).await;

    assert_eq!(outcomes, vec![Ok(BYTES); 30]);
}

/// MAOP-10, F12: more than a node takes in at once is told to wait, not dropped, and passes when it comes back.
#[tokio::test]
async fn payloads_beyond_the_budget_of_a_peer_are_told_to_wait() {
    let (_host, caller) = pair("[limits]\nannounced_per_peer_bytes_max = 5242880\n", "").await;
    let text = text(PAYLOAD_MAX, 1);

    let outcomes = join_all((0..6).map(|_| caller.invoke(json!({ "capability": "echo", "input": text })))).await;

    let (good, refused): (Vec<_>, Vec<_>) = outcomes.into_iter().partition(|answer| answer.status == 200);
    assert!(!good.is_empty() && good.iter().all(|answer| answer.body["output"] == text));
    assert!(!refused.is_empty(), "six times the budget");
    for answer in refused {
        let error = answer.refused(429, "BUSY");
        assert!(error["details"]["retry_after_ms"].is_u64() && error["retryable"] == true, "{error}");
    }
    assert!(caller.call("echo", text.clone()).await["output"] == text, "the budget was given back");
}

/// MAOP-10: the limit is the owner's to set, higher or lower, and holds on either side.
#[tokio::test]
async fn the_largest_payload_is_as_configured() {
    let high = "[limits]\npayload_bytes_max = 16777216\nhttp_body_bytes_max = 20000000\n";
    let (host, caller) = pair(high, high).await;
    for node in [&host, &caller] {
        let text = text(16_777_216, 3);
        assert!(node.call("echo", text.clone()).await["output"] == text);
        assert_eq!(sized(node, 16_777_216).await, Ok(16_777_216));
        assert_eq!(sized(node, 16_777_217).await, Err("PAYLOAD_TOO_LARGE".to_owned()));
    }
    let echo = async |caller: &Node, bytes| {
        let answer = caller.invoke(json!({ "capability": "echo", "input": text(bytes, 3) })).await;
        if answer.status == 200 {
            return Ok(());
        }
        let error = answer.refused(413, "PAYLOAD_TOO_LARGE");
        assert!(error["message"].as_str().expect("text").ends_with("(its limits.payload_bytes_max)"), "{error}");
        Err((error["details"]["limit"].clone(), error["details"]["node_id"].as_str().expect("whose limit it is").to_owned()))
    };

    let low = "[limits]\npayload_bytes_max = 100000\n";
    let (host, caller) = pair(low, "").await;
    assert_eq!(echo(&caller, 100_000).await, Ok(()));
    assert_eq!(echo(&caller, 100_001).await, Err((json!(100_000), host.id().to_owned())), "the agent's node says so");
    assert_eq!(sized(&caller, 100_001).await, Err("PAYLOAD_TOO_LARGE".to_owned()));

    let (_host, caller) = pair("", low).await;
    assert_eq!(echo(&caller, 100_001).await, Err((json!(100_000), caller.id().to_owned())), "the calling node says so");
    assert_eq!(sized(&caller, 100_000).await, Ok(100_000));
    assert_eq!(sized(&caller, 100_001).await, Err("PAYLOAD_TOO_LARGE".to_owned()), "nor does it take in more");
    assert_eq!(sized(&caller, INLINE_MAX).await, Ok(INLINE_MAX), "the lane goes on");
}

/// MAOP-10: a body on its way holds up no small call on the same connection, however long it takes.
#[tokio::test]
async fn small_calls_are_answered_while_a_large_body_is_under_way() {
    let node = echoing("").spawn().await;
    knows(&node).await;
    let echo = agent(&node, "echo").await;
    let peer = HostilePeer::joined(&node).await;
    let mut lane = peer.open_lane(&node).await;
    let (call, head, bytes) = announced(request(echo, "echo", &json!(0)), PAYLOAD_MAX, 1);
    lane.call(0, call).await;
    let mut blob = peer.open_blob(&node).await;
    let (first, second) = bytes.split_at(PAYLOAD_MAX / 2);
    assert!(blob.write(&head.encode()).await && blob.write(first).await);

    for id in 1..=200 {
        let mut small = request(echo, "echo", &json!(id));
        small.confirm = false;
        lane.call(id, small).await;
        let Some((answered, Frame::Result { success, .. })) = lane.end().await else { panic!("a result") };
        assert_eq!((answered, success.body), (id, Body::Inline(id.to_string().into())));
    }

    assert!(blob.write(second).await, "and what is under way goes on");
    let Some((0, Frame::Result { success, .. })) = lane.end().await else { panic!("a result") };
    assert_eq!(success.body, Body::Blob(head.blob));
    let (pushed, output) = peer.accept_blob().await;
    assert_eq!((pushed, output == bytes), (Head { part: Part::Output, ..head }, true));
}

/// MAOP-10: the same between two nodes at full speed.
#[tokio::test]
async fn small_calls_end_before_a_large_one_that_began_earlier() {
    let (_host, caller) = pair("", "").await;
    let text = text(PAYLOAD_MAX, 2);
    let mut answered = 0;

    let large = caller.call("echo", text.clone());
    let small = async {
        loop {
            caller.call("echo", json!(answered)).await;
            answered += 1;
        }
    };
    tokio::select! {
        answer = large => assert!(answer["output"] == text),
        () = small => {}
    }

    assert!(answered >= 5, "{answered} small calls beside one of 5 MiB");
}

/// MAOP-10, F2: a caller that dies in the middle of a transfer leaves nothing behind.
#[tokio::test]
async fn the_budget_of_a_caller_that_dies_in_mid_transfer_is_given_back() {
    let limits = "[limits]\nannounced_bytes_max = 5242880\nannounced_per_peer_bytes_max = 5242880\n";
    let (host, other) = pair(limits, "").await;
    let whole = async || {
        let answer = other.invoke(json!({ "capability": "echo", "input": text(PAYLOAD_MAX, 7) })).await;
        (answer.status == 200).then_some(())
    };
    let echo = agent(&host, "echo").await;

    // Half of a body, and then nothing more.
    for _ in 0..2 {
        let peer = HostilePeer::joined(&host).await;
        let mut lane = peer.open_lane(&host).await;
        let (call, head, bytes) = announced(request(echo, "echo", &json!(0)), PAYLOAD_MAX, 1);
        lane.call(0, call).await;
        let mut blob = peer.open_blob(&host).await;
        assert!(blob.write(&head.encode()).await && blob.write(&bytes[..PAYLOAD_MAX / 2]).await);
        drop((blob, lane, peer));
        eventually("the budget is given back", SETTLE, whole).await;
    }
    // A whole node, killed at one moment or another.
    for small in [1, 3, 6, 10] {
        let mut caller = Node::builder().join(&host).spawn().await;
        knows(&caller).await;
        let large = async {
            loop {
                let _ = caller
                    .request(reqwest::Method::POST, "/v1/invoke")
                    .json(&json!({ "capability": "echo", "input": text(PAYLOAD_MAX, 4) }))
                    .send()
                    .await;
            }
        };
        let meanwhile = async {
            for number in 0..small {
                caller.call("echo", json!(number)).await;
            }
        };
        tokio::select! {
            () = large => {}
            () = meanwhile => {}
        }
        caller.kill().await;
        eventually("the budget is given back", SETTLE, whole).await;
    }
    still_serves(&host, &other).await;
}

/// Threats T4, T27: announcements cost the node nothing, and only so many stand.
#[tokio::test]
async fn a_thousand_announcements_hold_no_memory_and_are_told_to_wait() {
    let (host, other) = pair("", "").await;
    let echo = agent(&host, "echo").await;
    let peer = HostilePeer::joined(&host).await;
    let mut lane = peer.open_lane(&host).await;
    let before = host.resident_bytes();

    let fit = (ANNOUNCED_MAX / PAYLOAD_MAX) as u64;
    for id in 0..1_000_u64 {
        let blob = BlobId { hash: [7; 32], length_bytes: PAYLOAD_MAX as u64 };
        let invocation = InvocationId::from_random(u128::from(id));
        lane.call(id, Request { invocation, body: Body::Blob(blob), confirm: false, ..request(echo, "echo", &json!(0)) }).await;
    }
    let mut waiting = fit;
    for _ in fit..1_000 {
        let (_, frame) = lane.end().await.expect("the lane goes on");
        let failure = failure(&frame);
        assert_eq!(failure.code, ErrorCode::Busy, "{failure}");
        if failure.message.contains("did not arrive") {
            // Those that were let in have not been sent for five seconds, on a slow machine.
            waiting -= 1;
            continue;
        }
        assert!(failure.retry_after_ms().is_some(), "{failure:?}");
    }
    let text = text(PAYLOAD_MAX, 5);
    assert!(other.call("echo", text.clone()).await["output"] == text, "others have budgets of their own");
    assert!(host.resident_bytes().saturating_sub(before) < 64 * 1024 * 1024, "{} bytes more", host.resident_bytes() - before);

    for _ in 0..waiting {
        let (_, frame) = lane.end().await.expect("the lane goes on");
        assert!(failure(&frame).message.contains("did not arrive"), "{frame:?}");
    }
    assert!(lane.is_alive().await);
    still_serves(&host, &other).await;
}

/// A node with `echo`, and with an agent whose output has the size that it is told.
fn echoing(config: &str) -> crate::support::Builder {
    let sized = with(script("sized", "sized.py", &[], json!({ "id": "test.sized" })), json!({ "concurrency": 4, "queue": 64 }));
    Node::builder().config(config).agent(builtin("echo", "echo")).agent(sized)
}

async fn knows(node: &Node) {
    node.knows("echo", &["echo"]).await;
    node.knows("test.sized", &["sized"]).await;
}

/// Such a node and one that calls it, with a configuration each.
async fn pair(host: &str, caller: &str) -> (Node, Node) {
    let host = echoing(host).spawn().await;
    let caller = Node::builder().config(caller).join(&host).spawn().await;
    knows(&caller).await;
    (host, caller)
}

/// Asks for an output of so many bytes: its size, or the code of the failure.
async fn sized(node: &Node, bytes: usize) -> Result<usize, String> {
    let answer = node.invoke(json!({ "capability": "test.sized", "input": { "bytes": bytes } })).await;
    match answer.body["output"].as_str() {
        Some(text) => Ok(text.len() + 2),
        None => Err(answer.body["error"]["code"].as_str().expect("an output or an error").to_owned()),
    }
}
