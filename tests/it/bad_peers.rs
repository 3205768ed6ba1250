//! Peers that call and are called by no rule: they take no chunks, leave lanes behind, or send other bytes than they announced. A call of
//! theirs has a clear end, the agent is free again, and nobody else notices. (Frames that are none, floods, and answers to no call:
//! `hostile`; bodies of honest peers and those that die: `large`.)

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::join_all;
use meshwork::{
    model::{AgentId, ErrorCode, InvocationId},
    wire::{
        blob::{HEAD_BYTES, Head, Part},
        invocation::{BlobId, Body, Frame, Request, Success, WINDOW_BYTES_MAX},
    },
};
use serde_json::{Value, json};

use crate::support::{
    Journal, Node, SETTLE, builtin, eventually,
    peer::{Forger, Habits, HostilePeer, request},
    stepper,
    target::{IN_TIME, agent, announced, echoing, failure, fast, invoke, result, serves, still_serves, text, trap, until_dropped},
    within,
};

/// A chunk that its agent writes again and again, in bytes.
const CHUNK_BYTES: usize = 60_000;
/// The largest payload unless configured otherwise, in bytes.
const PAYLOAD_MAX: usize = 5_242_880;
/// A body that does not fit into a frame, in bytes.
const LARGE: usize = 1_000_000;
/// What a node may hold more than before because of one such peer, in bytes.
const HELD_MAX: u64 = 32 * 1024 * 1024;
/// How long a frame may take, or output may wait for somebody to take it.
const PROGRESS_MAX: Duration = Duration::from_secs(10);
/// How long a body is kept whose announcement does not come.
const EARLY_MAX: Duration = Duration::from_secs(5);
/// How long an agent is kept free for a caller that does not say `Go`.
const GO_WAIT_MAX: Duration = Duration::from_secs(2);

/// MEAP-7, threat T4: a caller that grants no further credit holds an agent until its own deadline, and gets no more than it granted.
#[tokio::test]
async fn a_caller_that_grants_no_credit_has_its_call_ended() {
    let host = Host::start().await;
    let peer = HostilePeer::joined(&host.node).await;
    let mut lane = peer.open_lane(&host.node).await;
    let before = host.node.resident_bytes();
    let window_bytes = 3 * CHUNK_BYTES as u64;

    lane.call(1, Request { window_bytes, budget_ms: 2_500, ..host.endless() }).await;
    let mut granted = window_bytes;
    let reading = async {
        loop {
            let frame = lane.next().await.expect("the lane goes on");
            if let Frame::Chunk { chunk, .. } = &frame {
                granted = granted.checked_sub(chunk.len() as u64).expect("no more than was granted");
            } else if matches!(frame, Frame::Error { .. }) {
                return failure(&frame);
            }
        }
    };
    let (failure, ()) = tokio::join!(reading, host.serves_others());

    assert_eq!(failure.code, ErrorCode::Timeout, "{failure}");
    assert!(granted < CHUNK_BYTES as u64, "what was granted came: {granted} bytes are left");
    host.is_free().await;
    let held = host.node.resident_bytes().saturating_sub(before);
    assert!(held < HELD_MAX, "{held} bytes more than before");
    assert!(lane.is_alive().await, "to read slowly is no breach of the protocol");
}

/// Threat T4: a peer that does not even read its lane loses it, and the agent is told.
#[tokio::test]
async fn a_caller_that_reads_nothing_loses_its_lane() {
    let host = Host::start().await;
    let peer = HostilePeer::joined(&host.node).await;
    let mut lane = peer.open_lane(&host.node).await;
    let call = Request { window_bytes: WINDOW_BYTES_MAX, confirm: false, budget_ms: 120_000, ..host.endless() };

    lane.call(1, call).await;
    eventually("the agent writes", SETTLE, async || (host.journal.emitted() > 0).then_some(())).await;
    let cancelled = async || (host.journal.count("cancelled") == 1).then_some(());
    tokio::join!(eventually("the agent is told", PROGRESS_MAX + IN_TIME, cancelled), host.serves_others());

    until_dropped(&host.node, "Lane", "violation", 1).await;
    host.is_free().await;
}

/// MEAP-7: nobody grants more than a window, and nobody grants it where nothing was asked for.
#[tokio::test]
async fn absurd_credit_ends_the_lane_and_frees_the_agent() {
    let host = Host::start().await;
    let some = 3 * CHUNK_BYTES as u64;
    for (number, (window_bytes, bytes)) in (1..).zip([(some, u64::MAX), (some, WINDOW_BYTES_MAX + 1), (0, 1)]) {
        let peer = HostilePeer::joined(&host.node).await;
        let mut lane = peer.open_lane(&host.node).await;
        lane.send(&[Frame::Credit { id: 77, bytes: u64::MAX }]).await;
        assert!(lane.is_alive().await, "credit may cross the end of its call");
        lane.call(1, Request { window_bytes, ..host.endless() }).await;
        assert_eq!(lane.next().await, Some(Frame::Accepted { id: 1 }));
        eventually("the agent works", SETTLE, async || (host.journal.count("started") == number).then_some(())).await;
        lane.send(&[Frame::Credit { id: 1, bytes }]).await;
        lane.closed().await;
        until_dropped(&host.node, "Lane", "violation", number as u64).await;
        host.is_free().await;
    }
    // A window beyond the largest is no request at all.
    let peer = HostilePeer::joined(&host.node).await;
    let mut lane = peer.open_lane(&host.node).await;
    lane.call(1, Request { window_bytes: WINDOW_BYTES_MAX + 1, ..host.endless() }).await;
    lane.closed().await;
    assert_eq!(host.journal.count("started"), 3);
    host.serves_others().await;
}

/// Threats T3, T4: lanes that are opened and left, with nothing, half a frame or a call on them, leave nothing behind.
#[tokio::test]
async fn lanes_that_are_abandoned_leave_nothing_behind() {
    let host = Host::start().await;
    let before = host.node.resident_bytes();

    for round in 1..=15 {
        let peer = HostilePeer::joined(&host.node).await;
        drop(peer.open_lane(&host.node).await);
        let mut half = peer.open_lane(&host.node).await;
        half.write(&[0, 0, 4, 0, 0x8e]).await;
        drop(half);
        let mut working = peer.open_lane(&host.node).await;
        working.call(1, Request { confirm: false, window_bytes: WINDOW_BYTES_MAX, ..host.endless() }).await;
        eventually("the agent works", SETTLE, async || (host.journal.count("started") == round).then_some(())).await;
        // Whether the lane goes alone or with its peer.
        if round % 2 == 0 {
            drop(peer);
        }
        drop(working);
        eventually("the agent is told", SETTLE, async || (host.journal.count("cancelled") == round).then_some(())).await;
    }

    host.is_free().await;
    let held = host.node.resident_bytes().saturating_sub(before);
    assert!(held < HELD_MAX, "{held} bytes more than before");
    host.serves_others().await;
}

/// Threat T4: a hundred lanes at ten bytes a second cost the others nothing, and end.
#[tokio::test]
async fn a_hundred_lanes_at_ten_bytes_a_second_are_cut_off() {
    let host = Host::start().await;
    let peers = join_all((0..25).map(|_| HostilePeer::joined(&host.node))).await;
    let before = host.node.resident_bytes();

    let dripping = async |peer: &HostilePeer| {
        let mut lane = peer.open_lane(&host.node).await;
        lane.write(&60_000_u32.to_be_bytes()).await;
        let mut drips = tokio::time::interval(Duration::from_millis(100));
        let drip = async {
            loop {
                drips.tick().await;
                lane.write(&[0x8e]).await;
            }
        };
        tokio::time::timeout(PROGRESS_MAX, drip).await.expect_err("drips do not end");
        lane.closed().await;
    };
    let all = join_all(peers.iter().flat_map(|peer| [peer; 4]).map(dripping));
    let others = async {
        loop {
            host.serves_others().await;
        }
    };
    tokio::select! {
        _ = all => {}
        () = others => {}
    }

    let held = host.node.resident_bytes().saturating_sub(before);
    assert!(held < HELD_MAX, "{held} bytes more than before");
    host.serves_others().await;
}

/// Threat T4: frames that mean nothing, however many, do not keep an agent waiting for a `Go` that does not come.
#[tokio::test]
async fn a_flood_of_frames_does_not_hold_an_agent() {
    let host = Host::start().await;
    let peer = HostilePeer::joined(&host.node).await;
    let mut lane = peer.open_lane(&host.node).await;
    lane.call(1, host.asks(&json!({ "steps": [{ "output": 1 }] }))).await;
    assert_eq!(lane.next_silently().await, Some(Frame::Accepted { id: 1 }));

    let began = Instant::now();
    let cancels: Vec<Frame> = (100..20_000).map(|id| Frame::Cancel { id }).collect();
    let flood = async {
        loop {
            lane.send(&cancels).await;
        }
    };
    tokio::select! {
        () = flood => {}
        () = host.is_free() => {}
    }

    assert!(began.elapsed() < GO_WAIT_MAX + IN_TIME, "{:?}", began.elapsed());
    assert_eq!(host.journal.count("started"), 0, "nobody said go");
    let Some((1, end @ Frame::Error { begun: false, .. })) = lane.end().await else { panic!("the call has an end, and has not begun") };
    assert_eq!(failure(&end).code, ErrorCode::Busy);
    host.serves_others().await;
}

/// AMP-4: a `Go` is said once, to a call that waits for it; only the one who answers sends chunks.
#[tokio::test]
async fn a_go_or_a_chunk_out_of_place_ends_the_lane() {
    let host = Host::start().await;
    let long = host.asks(&json!({ "steps": [{ "ms": 30_000 }] }));

    let peer = HostilePeer::joined(&host.node).await;
    let mut lane = peer.open_lane(&host.node).await;
    lane.send(&[Frame::Go { id: 9 }]).await;
    assert!(lane.is_alive().await, "a go may cross the end of its call");
    lane.call(1, long).await;
    assert_eq!(lane.next().await, Some(Frame::Accepted { id: 1 }));
    eventually("the agent works", SETTLE, async || (host.journal.count("started") == 1).then_some(())).await;
    lane.send(&[Frame::Go { id: 1 }]).await;
    lane.closed().await;
    until_dropped(&host.node, "Lane", "violation", 1).await;
    eventually("the agent is told", SETTLE, async || (host.journal.count("cancelled") == 1).then_some(())).await;
    host.is_free().await;

    let mut lane = peer.open_lane(&host.node).await;
    lane.send(&[Frame::Chunk { id: 1, chunk: Bytes::from_static(b"1") }]).await;
    lane.closed().await;
    until_dropped(&host.node, "Lane", "violation", 2).await;
    host.serves_others().await;
}

/// What a caller may push that is not what it announced.
const PUSHED: [(&str, Result<(), ErrorCode>); 7] = [
    ("other bytes", Err(ErrorCode::InvalidRequest)),
    ("fewer bytes", Err(ErrorCode::Busy)),
    ("more bytes", Ok(())),
    ("another blob", Err(ErrorCode::Busy)),
    ("nothing", Err(ErrorCode::Busy)),
    ("drips", Err(ErrorCode::Busy)),
    ("what it announced", Ok(())),
];

/// Pushes a blob as `how` says.
async fn push(peer: &HostilePeer, node: &Node, head: &Head, bytes: &[u8], how: &str) {
    let other = || bytes.iter().rev().copied().collect::<Vec<u8>>();
    if how == "nothing" {
        return;
    }
    let mut blob = peer.open_blob(node).await;
    match how {
        "other bytes" => blob.push(head, &other()).await,
        "fewer bytes" => blob.push(head, &bytes[..bytes.len() - 1]).await,
        "more bytes" => blob.push(head, &[bytes, b" "].concat()).await,
        "another blob" => blob.push(&Head { blob: BlobId::of(&other()), ..*head }, &other()).await,
        "what it announced" => blob.push(head, bytes).await,
        "drips" => {
            assert!(blob.write(&head.encode()).await);
            let mut drips = tokio::time::interval(Duration::from_millis(100));
            for byte in bytes {
                drips.tick().await;
                if !blob.write(&[*byte]).await {
                    break;
                }
            }
        }
        other => panic!("no such way: {other}"),
    }
}

/// MAOP-10, threats T4, T27: a body that is not what its caller announced fails that call alone, before anything has begun.
#[tokio::test]
async fn a_blob_that_is_not_what_was_announced_fails_its_call_alone() {
    let host = Host::start().await;
    let case = async |how: &'static str, seed: usize| {
        let peer = HostilePeer::joined(&host.node).await;
        let mut lane = peer.open_lane(&host.node).await;
        let (call, head, bytes) = announced(request(host.echo, "echo", &json!(0)), LARGE, seed);
        lane.call(1, call).await;
        let (end, _) = tokio::join!(lane.end(), push(&peer, &host.node, &head, &bytes, how));
        let outcome = match end.expect("the lane goes on") {
            (1, Frame::Result { success, .. }) if success.body == Body::Blob(head.blob) => Ok(()),
            (1, frame @ Frame::Error { begun: false, .. }) => Err(failure(&frame).code),
            end => panic!("{how}: {end:?}"),
        };
        if how == "what it announced" {
            assert!(lane.is_alive().await);
            let (pushed, output) = peer.accept_blob().await;
            assert_eq!((pushed.part, output == bytes), (Part::Output, true));
        }
        (how, outcome)
    };

    let others = async {
        for _ in 0..10 {
            host.serves_others().await;
        }
    };
    let (outcomes, ()) = tokio::join!(join_all((1..).zip(PUSHED).map(|(seed, (how, _))| case(how, seed))), others);

    assert_eq!(outcomes, PUSHED);
    assert_eq!(host.node.metric("meshwork_penalties_total").await, 1, "only other bytes are surely meant");
    host.serves_others().await;
}

/// MAOP-10, threat T4: whoever says that it has taken what was never sent gets nothing more of it, and everybody else is served.
#[tokio::test]
async fn what_was_never_sent_cannot_be_taken() {
    let host = Host::start().await;
    let peer = HostilePeer::joined(&host.node).await;
    let mut lane = peer.open_lane(&host.node).await;
    let (call, head, bytes) = announced(request(host.echo, "echo", &json!(0)), LARGE, 1);
    lane.call(1, call).await;
    peer.open_blob(&host.node).await.push(&head, &bytes).await;
    assert!(matches!(lane.end().await, Some((1, Frame::Result { .. }))));

    let mut blob = peer.accept_raw_blob().await;
    assert!(blob.write(&[0; 1_000]).await);

    let output = blob.rest().await;
    assert!(output.len() < HEAD_BYTES + LARGE, "all {} bytes came", output.len());
    assert!(lane.is_alive().await);
    host.serves_others().await;
}

/// Threats T4, T27: an input that comes by drips holds its room no longer than its call may take.
#[tokio::test]
async fn an_input_that_comes_by_drips_is_given_up_at_the_deadline() {
    let host = Host::start().await;
    let peer = HostilePeer::joined(&host.node).await;
    let mut lane = peer.open_lane(&host.node).await;
    let (call, head, bytes) = announced(request(host.echo, "echo", &json!(0)), LARGE, 1);
    let asked = Instant::now();
    lane.call(1, Request { budget_ms: 1_000, ..call }).await;

    let (end, ()) = tokio::join!(lane.end(), push(&peer, &host.node, &head, &bytes, "drips"));

    let (_, end) = end.expect("the lane goes on");
    assert!(matches!(end, Frame::Error { begun: false, .. }));
    assert_eq!(failure(&end).code, ErrorCode::Timeout);
    assert!(asked.elapsed() < IN_TIME, "{:?}", asked.elapsed());
    host.serves_others().await;
}

/// MAOP-10: a stream that breaks off, as one does that a refused attempt has left, does not keep out the one that brings the input.
#[tokio::test]
async fn an_input_whose_first_stream_breaks_off_comes_on_the_next() {
    let host = Host::start().await;
    let peer = HostilePeer::joined(&host.node).await;
    let mut lane = peer.open_lane(&host.node).await;
    let (call, head, bytes) = announced(request(host.echo, "echo", &json!(0)), PAYLOAD_MAX, 1);
    lane.call(1, call).await;
    let mut first = peer.open_blob(&host.node).await;
    assert!(first.write(&head.encode()).await && first.write(&bytes[..PAYLOAD_MAX / 2]).await, "the node has begun to read it");
    drop(first);

    peer.open_blob(&host.node).await.push(&head, &bytes).await;

    let Some((1, Frame::Result { success, .. })) = lane.end().await else { panic!("a result") };
    assert_eq!(success.body, Body::Blob(head.blob));
    host.serves_others().await;
}

/// MEAP-7, MAOP-10: a large output is not sent before the answer that announces it, which waits for the last part as long as its reader does.
#[tokio::test]
async fn a_large_output_waits_for_the_parts_before_it() {
    let host = Host::start().await;
    let peer = HostilePeer::joined(&host.node).await;
    let mut lane = peer.open_lane(&host.node).await;
    let steps = json!({ "steps": [{ "chunks": 3, "bytes": CHUNK_BYTES }, { "sized": LARGE }] });
    // The last part waits for credit, for longer than anybody keeps an output whose announcement does not come.
    lane.call(1, Request { window_bytes: 2 * CHUNK_BYTES as u64, confirm: false, ..host.asks(&steps) }).await;
    for _ in 0..2 {
        assert!(matches!(lane.next().await, Some(Frame::Chunk { id: 1, .. })));
    }
    host.is_free().await;
    let early = tokio::time::timeout(EARLY_MAX + IN_TIME, peer.accept_blob()).await;
    assert!(early.is_err(), "it was pushed before its announcement");

    lane.send(&[Frame::Credit { id: 1, bytes: CHUNK_BYTES as u64 }]).await;

    assert!(matches!(lane.next().await, Some(Frame::Chunk { id: 1, .. })));
    let Some(Frame::Result { success, .. }) = lane.next().await else { panic!("the end follows the last part") };
    let (head, bytes) = peer.accept_blob().await;
    assert_eq!((Body::Blob(head.blob), bytes.len()), (success.body, LARGE));
    host.serves_others().await;
}

/// MEAP-7, MAOP-10: a node that is told to stop first gives what is left of an answer, however slowly its caller takes it.
#[tokio::test]
async fn a_node_that_stops_gives_the_last_part_and_the_output_first() {
    for bytes in [100, LARGE] {
        let Host { mut node, echo, process, .. } = Host::start().await;
        let peer = HostilePeer::joined(&node).await;
        let mut lane = peer.open_lane(&node).await;
        let steps = json!({ "steps": [{ "chunks": 3, "bytes": CHUNK_BYTES }, { "sized": bytes }] });
        let call = request(process, "test.process", &steps);
        lane.call(0, Request { window_bytes: 2 * CHUNK_BYTES as u64, confirm: false, ..call }).await;
        for _ in 0..2 {
            assert!(matches!(lane.next().await, Some(Frame::Chunk { id: 0, .. })));
        }

        let taking = async {
            for id in 1.. {
                lane.call(id, request(echo, "echo", &json!(0))).await;
                let (_, end) = lane.end().await.expect("the node stands");
                if matches!(end, Frame::Error { .. }) {
                    assert_eq!(failure(&end).code, ErrorCode::Unavailable, "it stops");
                    break;
                }
            }
            assert!(tokio::time::timeout(Duration::from_secs(1), lane.next()).await.is_err(), "it waits for credit");
            lane.send(&[Frame::Credit { id: 0, bytes: CHUNK_BYTES as u64 }]).await;
            assert!(matches!(lane.next().await, Some(Frame::Chunk { id: 0, .. })));
            let Some(Frame::Result { id: 0, success, .. }) = lane.next().await else { panic!("the end follows the last part") };
            let Body::Blob(blob) = success.body else { return };
            let mut pushed = peer.accept_raw_blob().await;
            assert!(tokio::time::timeout(Duration::from_secs(1), lane.next()).await.is_err(), "it waits for whoever takes the output");
            assert_eq!(pushed.rest().await.len(), HEAD_BYTES + usize::try_from(blob.length_bytes).expect("a length"));
        };
        let (status, ()) = tokio::join!(node.terminate(), taking);
        assert!(status.success(), "{bytes} bytes");
    }
}

/// MEAP-7, MAOP-10: a large output is taken when it comes, whether or not the client has read the parts before it.
#[tokio::test]
async fn a_large_output_is_taken_while_nobody_reads_the_parts_before_it() {
    let node = echoing().await;
    let forger = Forger::new();
    let record = fast(&forger, "streaming");
    let capability = record.capabilities[0].id.to_string();
    let hostile = trap(&node, forger, &record, Habits::default()).await;
    let mut stream = node.stream(json!({ "capability": capability, "input": "?", "timeout_ms": 60_000 })).await;
    let mut lane = hostile.accept_lane().await;
    let (id, call) = lane.next_call().await.expect("a call");
    let chunk = Bytes::from(serde_json::to_vec(&"x".repeat(CHUNK_BYTES)).expect("JSON"));
    let (mut credit, mut sent) = (call.window_bytes, 0);
    lane.send(&[Frame::Accepted { id }]).await;
    // Until everything between here and the client is full.
    loop {
        while let Some(left) = credit.checked_sub(chunk.len() as u64) {
            credit = left;
            sent += 1;
            lane.send(&[Frame::Chunk { id, chunk: chunk.clone() }]).await;
        }
        let granted = async {
            loop {
                match lane.next().await {
                    Some(Frame::Credit { bytes, .. }) => return bytes,
                    Some(Frame::Ping { nonce }) => lane.send(&[Frame::Pong { nonce }]).await,
                    frame => assert!(matches!(frame, Some(Frame::Go { .. })), "{frame:?}"),
                }
            }
        };
        match tokio::time::timeout(IN_TIME, granted).await {
            Ok(bytes) => credit += bytes,
            Err(_) => break,
        }
    }

    let (_, head, bytes) = announced(*call, LARGE, 1);
    lane.send(&[Frame::Result { id, success: Success { units: None, execution_us: 1, body: Body::Blob(head.blob) } }]).await;
    let mut blob = hostile.open_blob(&node).await;
    assert!(blob.write(&Head { part: Part::Output, ..head }.encode()).await && blob.write(&bytes).await);
    blob.refused().await;

    let events = stream.rest().await;
    let (last, parts) = events.split_last().expect("an end");
    assert!(parts.len() == sent && parts.iter().all(|(name, _)| name == "chunk"), "{} of {sent} parts", parts.len());
    assert!(last.1["output"] == serde_json::from_slice::<Value>(&bytes).expect("JSON"), "{}", last.0);
    serves(&node).await;
}

/// MAOP-10, threat T4: a caller that takes a large output by drips holds it until its deadline and no longer.
#[tokio::test]
async fn an_output_that_is_taken_by_drips_is_given_up_at_the_deadline() {
    let host = Host::start().await;
    let peer = HostilePeer::joined(&host.node).await;
    let mut lane = peer.open_lane(&host.node).await;
    let asked = Instant::now();
    let steps = json!({ "steps": [{ "sized": PAYLOAD_MAX }] });
    lane.call(1, Request { budget_ms: 3_000, confirm: false, ..host.asks(&steps) }).await;
    assert!(matches!(lane.end().await, Some((1, Frame::Result { .. }))));

    let mut blob = peer.accept_raw_blob().await;
    let (mut taken, mut drips) = (0, tokio::time::interval(Duration::from_millis(50)));
    while blob.take(16 * 1024).await {
        taken += 16 * 1024;
        drips.tick().await;
    }

    assert!(taken < PAYLOAD_MAX / 2 && asked.elapsed() < Duration::from_secs(3) + IN_TIME, "{taken} bytes in {:?}", asked.elapsed());
    host.serves_others().await;
}

/// MAOP-10: an output that cannot be sent is not announced; its caller hears at once that it is not the agent that failed.
#[tokio::test]
async fn a_caller_that_takes_no_blobs_hears_so_instead_of_an_output() {
    let host = Host::start().await;
    let peer = HostilePeer::start(Forger::new(), Habits::default().without_blobs());
    peer.connect(&host.node).await;
    let mut lane = peer.open_lane(&host.node).await;
    lane.call(1, Request { confirm: false, ..host.asks(&json!({ "steps": [{ "sized": LARGE }] })) }).await;

    let Some((1, end @ Frame::Error { begun: true, .. })) = lane.end().await else { panic!("no error") };

    let failure = failure(&end);
    assert_eq!((failure.code, &failure.details["outcome"]), (ErrorCode::Busy, &json!("unknown")), "{failure}");
    host.serves_others().await;
}

/// MAOP-10: what is announced beyond the limit is refused at once, as is the same blob twice, and the lane goes on.
#[tokio::test]
async fn an_absurd_announcement_is_refused_at_once() {
    let host = Host::start().await;
    let peer = HostilePeer::joined(&host.node).await;
    let mut lane = peer.open_lane(&host.node).await;
    let (call, head, bytes) = announced(request(host.echo, "echo", &json!(0)), LARGE, 1);

    for (id, length_bytes) in (1..).zip([PAYLOAD_MAX as u64 + 1, u64::from(u32::MAX), u64::MAX]) {
        lane.call(id, Request { body: Body::Blob(BlobId { length_bytes, ..head.blob }), ..call.clone() }).await;
        let Some((_, frame)) = lane.end().await else { panic!("an answer for {length_bytes} bytes") };
        let failure = failure(&frame);
        assert_eq!((failure.code, &failure.details["limit"]), (ErrorCode::PayloadTooLarge, &json!(PAYLOAD_MAX)), "{failure}");
    }
    lane.call(10, call.clone()).await;
    lane.call(11, call).await;
    let Some((refused, frame)) = lane.end().await else { panic!("one of them is refused") };
    assert_eq!(failure(&frame).code, ErrorCode::Conflict);
    peer.open_blob(&host.node).await.push(&head, &bytes).await;
    assert!(matches!(lane.end().await, Some((id, Frame::Result { .. })) if id != refused));
    assert!(lane.is_alive().await);
    host.serves_others().await;
}

/// Threats T4, T27: blobs that nobody announced, and substreams that never say what they are, are dropped and cost next to nothing.
#[tokio::test]
async fn blobs_that_nobody_announced_are_dropped() {
    let host = Host::start().await;
    let peer = HostilePeer::joined(&host.node).await;
    let before = host.node.resident_bytes();
    let (_, head, bytes) = announced(request(host.echo, "echo", &json!(0)), PAYLOAD_MAX, 1);
    let unannounced = async |number: u128| {
        let head = Head { invocation: InvocationId::from_random(number), ..head };
        peer.open_blob(&host.node).await.push(&head, &bytes).await;
    };
    let headless = async |bytes: &'static [u8]| {
        let mut blob = peer.open_blob(&host.node).await;
        blob.write(bytes).await;
        blob.refused().await;
    };

    let pushing = join_all((1..=40).map(unannounced));
    let silent = join_all([&b""[..], b"half a head"].repeat(20).into_iter().map(headless));
    within("all are dropped", SETTLE, async { tokio::join!(pushing, silent, host.serves_others()) }).await;

    let held = host.node.resident_bytes().saturating_sub(before);
    assert!(held < HELD_MAX, "{held} bytes more than before");
    let mut lane = peer.open_lane(&host.node).await;
    let (call, head, bytes) = announced(request(host.echo, "echo", &json!(0)), LARGE, 99);
    lane.call(1, call).await;
    peer.open_blob(&host.node).await.push(&head, &bytes).await;
    assert!(matches!(lane.end().await, Some((1, Frame::Result { .. }))), "what is announced still comes");
}

/// MAOP-10, threat T16: an output that is not what its node announced is a failure of its agent, whose work is done for all anybody knows.
#[tokio::test]
async fn an_output_that_is_not_what_was_announced_fails_its_call_alone() {
    let (node, forger) = (echoing().await, Forger::new());
    let records: Vec<_> = (1..).zip(PUSHED).map(|(seed, _)| forger.record(seed, &format!("pusher-{seed}"))).collect();
    let habits = (1..).zip(&records).fold(Habits::default(), |habits, (seed, record)| habits.advertises(record, forger.sign(record, seed)));
    let hostile = HostilePeer::start(forger, habits);
    hostile.connect(&node).await;
    let mut lane = None;

    for (number, (how, expected)) in (1..).zip(PUSHED) {
        let name = format!("pusher-{number}");
        let capability = format!("test.{name}");
        node.knows(&capability, &[&name]).await;
        let answering = async {
            if lane.is_none() {
                lane = Some(hostile.accept_lane().await);
            }
            let lane = lane.as_mut().expect("a lane");
            let (id, call) = lane.next_call().await.expect("a call");
            let (_, head, bytes) = announced(*call, LARGE, number);
            let success = Success { units: None, execution_us: 1, body: Body::Blob(head.blob) };
            lane.send(&[Frame::Accepted { id }, Frame::Result { id, success }]).await;
            push(&hostile, &node, &Head { part: Part::Output, ..head }, &bytes, how).await;
            serde_json::from_slice::<Value>(&bytes).expect("JSON")
        };
        let asked = Instant::now();
        let (answer, output) = tokio::join!(invoke(&node, &capability, 20_000), answering);
        if expected.is_ok() {
            assert!(answer.ok()["output"] == output, "{how}");
        } else {
            let error = answer.refused(502, "AGENT_FAILED");
            assert_eq!(error["details"]["outcome"], "unknown", "{how}: {error}");
        }
        assert!(asked.elapsed() < IN_TIME * 2, "{how}: {:?}", asked.elapsed());
    }
    assert_eq!(node.metric("meshwork_penalties_total").await, 1, "only other bytes are surely meant");
    let calls = calls_to(&node, &hostile).await;
    assert_eq!((&calls["sent"], &calls["failed"]), (&json!(PUSHED.len()), &json!(5)), "an output that does not come is a failure");
    serves(&node).await;
}

/// Threat T16, MEAP-4: a node that is there and takes no inputs has failed, whatever it claims, and its breaker opens.
#[tokio::test]
async fn a_node_that_takes_no_inputs_is_blamed_for_it() {
    let (node, forger) = (echoing().await, Forger::new());
    let mut record = fast(&forger, "shut");
    record.capabilities[0].constraints.response_time_ms = Some(60_000);
    let hostile = trap(&node, forger, &record, Habits::default()).await;
    let body = json!({ "capability": "test.shut", "input": text(LARGE, 1), "timeout_ms": 30_000 });

    let calls = join_all((0..3).map(|_| node.invoke(body.clone())));
    let alive = async {
        let mut lane = hostile.accept_lane().await;
        // Whether it closes a substream or leaves it open makes no difference.
        tokio::join!(lane.keep_alive(), async { drop(hostile.accept_raw_blob().await) })
    };
    let answers = tokio::select! {
        answers = calls => answers,
        _ = alive => panic!("the lane goes on"),
    };

    for answer in answers {
        answer.refused(504, "TIMEOUT");
    }
    let error = node.invoke(body).await.refused(503, "UNAVAILABLE");
    assert!(error["message"].as_str().is_some_and(|message| message.contains("breaker")), "{error}");
    assert_eq!(calls_to(&node, &hostile).await["failed"], 3);
    serves(&node).await;
}

/// MEAP-9: the time that input and output are on their way is not held against the agent.
#[tokio::test]
async fn bodies_that_are_long_on_their_way_do_not_make_their_agent_late() {
    let (node, forger) = (echoing().await, Forger::new());
    let record = fast(&forger, "far");
    // Made before it is asked for: only what is on its way shall take long.
    let (_, prepared, bytes) = announced(request(record.agent, "far", &json!(0)), LARGE, 2);
    let hostile = trap(&node, forger, &record, Habits::default()).await;
    let answering = async {
        let mut lane = hostile.accept_lane().await;
        let (id, call) = lane.next_call().await.expect("a call");
        let mut drips = tokio::time::interval(Duration::from_millis(100));
        let taking = async {
            let mut blob = hostile.accept_raw_blob().await;
            while blob.take(64 * 1024).await {
                drips.tick().await;
            }
        };
        tokio::select! {
            () = taking => {}
            () = lane.keep_alive() => panic!("the lane goes on"),
        }
        let success = Success { units: None, execution_us: 1, body: Body::Blob(prepared.blob) };
        lane.send(&[Frame::Accepted { id }, Frame::Result { id, success }]).await;
        let mut blob = hostile.open_blob(&node).await;
        assert!(blob.write(&Head { invocation: call.invocation, part: Part::Output, ..prepared }.encode()).await);
        for piece in bytes.chunks(64 * 1024) {
            assert!(blob.write(piece).await);
            drips.tick().await;
        }
    };
    let body = json!({ "capability": "test.far", "input": text(LARGE, 1), "timeout_ms": 30_000 });
    let (answer, ()) = tokio::join!(node.invoke(body), answering);

    let latency_ms = answer.ok()["latency_ms"].as_f64();
    assert!(latency_ms.is_some_and(|ms| ms > 2_000.0), "{latency_ms:?}");
    let learnt = async || Some(node.get("/v1/trust").await.ok()["agents"][0].clone()).filter(|row| row["successes"] != 0.0);
    let row = eventually("the call counts", SETTLE, learnt).await;
    assert_eq!(row["failures"], 0.0, "{row}");
}

/// Threat T16: a node that answers by no rule loses the lane, and the call on it has a clear end.
#[tokio::test]
async fn an_answer_out_of_place_ends_the_lane_and_not_the_node() {
    let node = echoing().await;
    let cases = [
        ("a chunk that nobody asked for", "AGENT_FAILED"),
        ("a chunk of no call", "AGENT_FAILED"),
        ("more than may be", "PAYLOAD_TOO_LARGE"),
    ];
    for (number, (case, code)) in (1..).zip(cases) {
        let (forger, name) = (Forger::new(), format!("odd-{number}"));
        let record = fast(&forger, &name);
        let hostile = trap(&node, forger, &record, Habits::default()).await;
        let answering = async {
            let mut lane = hostile.accept_lane().await;
            let (id, _) = lane.next_call().await.expect("a call");
            let chunk = |id| Frame::Chunk { id, chunk: Bytes::from_static(b"1") };
            let huge = Body::Blob(BlobId { hash: [7; 32], length_bytes: PAYLOAD_MAX as u64 + 1 });
            let odd = match case {
                "a chunk that nobody asked for" => chunk(id),
                "a chunk of no call" => chunk(id + 9),
                _ => Frame::Result { id, success: Success { units: None, execution_us: 1, body: huge } },
            };
            lane.send(&[Frame::Accepted { id }, odd]).await;
            lane
        };
        let asked = Instant::now();
        let capability = format!("test.{name}");
        let (answer, mut lane) = tokio::join!(invoke(&node, &capability, 20_000), answering);
        answer.error(code);
        assert!(asked.elapsed() < IN_TIME, "{case}: {:?}", asked.elapsed());
        if code == "AGENT_FAILED" {
            lane.closed().await;
        } else {
            let (answer, _) = tokio::join!(invoke(&node, &capability, 20_000), async {
                let (id, _) = lane.next_call().await.expect("the lane goes on");
                lane.send(&[Frame::Accepted { id }, Frame::Accepted { id }, result(id, "2")]).await;
            });
            assert_eq!(answer.ok()["output"], 2, "{case}");
        }
    }
    serves(&node).await;
}

/// Threat T4: a peer that takes nothing off its lane holds up nobody past the deadline, however much waits to be written.
#[tokio::test]
async fn calls_on_a_lane_that_nobody_reads_end_by_their_deadline() {
    let (node, forger) = (echoing().await, Forger::new());
    let record = fast(&forger, "deaf");
    let hostile = trap(&node, forger, &record, Habits::default()).await;
    let body = json!({ "capability": "test.deaf", "input": "x".repeat(CHUNK_BYTES), "timeout_ms": 3_000 });

    let asked = Instant::now();
    let calls = join_all((0..60).map(|_| node.invoke(body.clone())));
    let (answers, _lane) = tokio::join!(calls, hostile.accept_lane());

    assert!(asked.elapsed() < Duration::from_secs(3) + IN_TIME, "{:?}", asked.elapsed());
    // Whoever finds the peer silent before that says so.
    let ended = |status| status == 503 || status == 504;
    assert!(answers.iter().all(|answer| ended(answer.status)), "{answers:?}");
    serves(&node).await;
}

/// MEAP-9: a node that answers after the deadline of its caller does nothing wrong. The caller has had the timeout, nobody gets the answer, and
/// the lane serves the next calls.
#[tokio::test]
async fn a_result_after_the_callers_deadline_is_nobodys_and_the_lane_goes_on() {
    let node = echoing().await;
    let forger = Forger::new();
    let record = fast(&forger, "late");
    let hostile = trap(&node, forger, &record, Habits::default()).await;
    // The lane is open before a deadline counts.
    let opening = async {
        let mut lane = hostile.accept_lane().await;
        let (id, _) = lane.next_call().await.expect("a call");
        lane.send(&[Frame::Accepted { id }, result(id, "0")]).await;
        lane
    };
    let (answer, mut lane) = tokio::join!(invoke(&node, "test.late", 20_000), opening);
    answer.ok();

    let waiting = async {
        let (id, _) = lane.next_call().await.expect("a call");
        lane.send(&[Frame::Accepted { id }]).await;
        assert_eq!(lane.next_cancel().await, Some(id), "its caller waits no longer");
        id
    };
    let (answer, late) = tokio::join!(invoke(&node, "test.late", 1_000), waiting);
    answer.refused(504, "TIMEOUT");

    lane.send(&[result(late, "\"late\"")]).await;
    for (number, output) in ["1", "2"].into_iter().enumerate() {
        let answering = async {
            let (id, _) = lane.next_call().await.expect("the lane goes on");
            assert_ne!(id, late);
            lane.send(&[Frame::Accepted { id }, result(id, output)]).await;
        };
        let (answer, ()) = tokio::join!(invoke(&node, "test.late", 20_000), answering);
        assert_eq!(answer.ok()["output"], number + 1);
    }
    assert_eq!(node.metric("meshwork_penalties_total").await, 0);
    serves(&node).await;
}

/// What the calls between the node and a peer came to.
async fn calls_to(node: &Node, peer: &HostilePeer) -> Value {
    let answer = node.get("/v1/peers").await.ok();
    let peers = answer["peers"].as_array().expect("a list of peers");
    peers.iter().find(|row| row["node_id"] == peer.id()).unwrap_or_else(|| panic!("it is connected: {answer}"))["calls"].clone()
}

/// A node with an agent that echoes and one that does what it is told, and an honest neighbour.
struct Host {
    node: Node,
    honest: Node,
    journal: Journal,
    echo: AgentId,
    process: AgentId,
}

impl Host {
    async fn start() -> Self {
        let builder = Node::builder();
        let (process, journal) = stepper("process", builder.home(), json!({ "id": "test.process" }));
        let node = builder.agent(builtin("echo", "echo")).agent(process).spawn().await;
        let honest = Node::builder().join(&node).spawn().await;
        honest.knows("echo", &["echo"]).await;
        let (echo, process) = (agent(&node, "echo").await, agent(&node, "process").await);
        Self { node, honest, journal, echo, process }
    }

    /// A call of the agent that does what it is told.
    fn asks(&self, input: &Value) -> Request {
        request(self.process, "test.process", input)
    }

    /// A call whose answer has more chunks than anybody takes.
    fn endless(&self) -> Request {
        self.asks(&json!({ "steps": [{ "chunks": 100_000, "bytes": CHUNK_BYTES }] }))
    }

    /// Waits until the agent that does what it is told works on nothing.
    async fn is_free(&self) {
        let free = async || (self.node.agent("process").await["status"]["in_flight"] == 0).then_some(());
        eventually("the agent is free", SETTLE, free).await;
    }

    /// The node's own clients and an honest neighbour are served as ever.
    async fn serves_others(&self) {
        for _ in 0..5 {
            still_serves(&self.node, &self.honest).await;
        }
    }
}
