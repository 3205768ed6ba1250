//! Peers that mean harm: whatever they send, the node drops it, counts it, shuts them out in the end, and serves everybody else.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::future::join_all;
use meshwork::{
    agents::definition::schema_hash,
    model::{AgentId, ErrorCode, Failure, Priority, Shard, Timestamp},
    wire::{
        Signed,
        directory::{AgentPulse, Control, GossipContent, Query, Record, Reply, Wanted},
        invocation::{Body, FRAME_BYTES_MAX, Frame, Hop, INLINE_BYTES_MAX, Success},
    },
};
use serde_bytes::ByteBuf;
use serde_json::{Value, json};

use crate::support::{
    Events, HttpAgent, Node, SETTLE, builtin, eventually,
    peer::{Forger, Habits, HostilePeer, RawLane, cbor, now_ms, pulse_message, record_message, repeated, request},
    slow,
    target::{IN_TIME, agent, dropped, echoing, failure, fast, invoke, result, serves, still_serves, trap, until_dropped},
    with,
};

/// How long a frame may take from its first byte to its last.
const PROGRESS_MAX: Duration = Duration::from_secs(10);
/// Lanes that one connection may open.
const LANES_MAX: usize = 4;
/// Calls of one peer that may run at once.
const CALLS_MAX: usize = 1_024;
/// Agents that one node may have.
const AGENTS_MAX: u8 = 64;

/// Threats T1, T5, T27: bytes that are no message cost their sender its connection and then its welcome.
#[tokio::test]
async fn malformed_gossip_is_counted_and_gets_its_sender_banned() {
    let (node, honest) = served().await;
    let mut events = node.events().await;
    let hostile = HostilePeer::joined(&node).await;

    hostile.gossip(Shard::new(3), b"this is no CBOR".to_vec()).await;
    until_dropped(&node, "Gossip", "malformed", 1).await;
    assert_eq!(node.metric("meshwork_penalties_total").await, 1);
    let mut number = 0;
    let insisting = insist(&node, &hostile, async || {
        number += 1;
        // Whether it arrives depends on whether the node hangs up first.
        let _ = hostile.try_gossip(Shard::new(3), format!("nor is this, for the {number}. time").into_bytes()).await;
    });
    let banned = tokio::select! {
        banned = events.wait_for("peer_banned", SETTLE, |event| event["node_id"] == hostile.id()) => banned,
        () = insisting => panic!("nobody insists for ever"),
    };

    assert_eq!(banned["reason"], "malformed gossip", "{banned}");
    assert_eq!(node.metric("meshwork_bans_total").await, 1);
    stays_out(&node, &hostile).await;
    still_serves(&node, &honest).await;
}

/// Threats T12, T15: a record is believed only with the signatures of the agent and the node that it names, over its very bytes.
#[tokio::test]
async fn a_record_that_is_not_signed_as_it_says_is_not_believed() {
    let (node, other) = (echoing().await, Forger::new());
    let cases: [(&str, Sign); 5] = [
        ("signed by another agent", |forger, _, record| forger.sign(record, 99)),
        ("signed by another node", |_, other, record| other.sign(record, 1)),
        ("changed after it was signed", |forger, _, record| {
            forger.sign_then(record, 1, |record| record.addresses = vec!["/ip4/192.0.2.1/tcp/1".to_owned()])
        }),
        ("of a foreign node, signed by the sender", |forger, other, record| forger.sign(&Record { node: other.id(), ..record.clone() }, 1)),
        ("signed as a pulse", |forger, _, record| forger.sign_under("meshwork/pulse/1", record, 1)),
    ];

    for (number, (case, sign)) in (1..).zip(cases) {
        let hostile = HostilePeer::joined(&node).await;
        let record = hostile.forger().record(1, "forged");
        hostile.gossip_record(&record, &sign(hostile.forger(), &other, &record)).await;
        until_dropped(&node, "Document", "signature", number).await;
        // One wrong signature is nobody's slip.
        hostile.disconnected().await;
        assert_eq!(stranger_names(&node, "test.forged").await, Vec::<String>::new(), "{case}");
    }
    serves(&node).await;
}

/// Threat T7: what is over, and what has not begun, is not valid now.
#[tokio::test]
async fn a_record_of_another_time_is_not_believed() {
    let node = echoing().await;
    let at = |issued_ms: u64, expires_ms: u64| {
        move |record: &mut Record| {
            record.issued_at = Timestamp::from_ms(issued_ms);
            record.expires_at = Timestamp::from_ms(expires_ms);
        }
    };
    let now = now_ms();

    gossip_bad(&node, at(now - 200_000, now - 1), "Document", "ignored").await;
    gossip_bad(&node, at(now + 120_000, now + 240_000), "Document", "ignored").await;
    gossip_bad(&node, at(now, now + 300_001), "Gossip", "rule").await;
    gossip_bad(&node, at(now, now - 1), "Gossip", "rule").await;
    serves(&node).await;
}

/// Threats T2, T5, T12: size, version and shard are looked at before anything dear.
#[tokio::test]
async fn a_record_that_breaks_a_bound_is_not_believed() {
    let node = echoing().await;

    gossip_bad(&node, |record| record.description = "x".repeat(9_000), "Gossip", "oversize").await;
    gossip_bad(&node, |record| record.v = 2, "Gossip", "version").await;
    gossip_bad(&node, |record| record.name = "\u{1b}[31mred".to_owned(), "Gossip", "rule").await;

    let hostile = HostilePeer::joined(&node).await;
    let record = hostile.forger().record(1, "bad");
    let signed = hostile.forger().sign(&record, 1);
    let shard = Shard::new(record.capabilities[0].id.shard().number() + 1);
    hostile.gossip(shard, record_message(shard, &signed)).await;
    until_dropped(&node, "Document", "rejected", 1).await;
    hostile.gossip(shard, record_message(record.capabilities[0].id.shard(), &signed)).await;
    until_dropped(&node, "Gossip", "rule", 2).await;
    let hostile = HostilePeer::joined(&node).await;
    hostile.gossip(shard, vec![0x60; 20 * 1024]).await;
    until_dropped(&node, "Gossip", "oversize", 2).await;

    assert_eq!(stranger_names(&node, "test.bad").await, Vec::<String>::new());
    serves(&node).await;
}

/// Threats T7, T12: the highest sequence counts, whatever is said again later.
#[tokio::test]
async fn an_old_record_does_not_come_back() {
    let node = echoing().await;
    let hostile = HostilePeer::joined(&node).await;
    let forger = hostile.forger();
    let old = forger.record(1, "turncoat");
    let new = Record { sequence: old.sequence + 1, name: "reformed".to_owned(), ..old.clone() };
    let (signed_old, signed_new) = (forger.sign(&old, 1), forger.sign(&new, 1));
    let fork = forger.sign(&Record { name: "fork".to_owned(), ..new.clone() }, 1);
    hostile.gossip_record(&old, &signed_old).await;
    node.knows("test.turncoat", &["turncoat"]).await;
    hostile.gossip_record(&new, &signed_new).await;
    node.knows("test.turncoat", &["reformed"]).await;

    let shard = old.capabilities[0].id.shard();
    for (number, replayed) in (1..).zip([signed_old, signed_new, fork]) {
        hostile.gossip(shard, repeated(shard, GossipContent::Record(ByteBuf::from(replayed)), number)).await;
        until_dropped(&node, "Document", "ignored", number).await;
        assert_eq!(node.names("test.turncoat").await, ["reformed"]);
    }
    assert!(hostile.is_connected(), "whoever passes on what is old need not know better");
    serves(&node).await;
}

/// Threat T6: of many copies that come at once one is taken and every other is counted.
#[tokio::test]
async fn copies_of_a_record_that_come_at_once_are_dropped() {
    let node = echoing().await;
    let hostile = HostilePeer::joined(&node).await;
    let record = hostile.forger().record(1, "copied");
    let signed = hostile.forger().sign(&record, 1);
    let shard = record.capabilities[0].id.shard();

    for number in 0..10 {
        hostile.gossip(shard, repeated(shard, GossipContent::Record(ByteBuf::from(signed.clone())), number)).await;
    }

    until_dropped(&node, "Document", "ignored", 9).await;
    assert_eq!(node.names("test.copied").await, ["copied"]);
    serves(&node).await;
}

/// Threats T6, T12: a node has at most 64 agents.
#[tokio::test]
async fn a_node_with_more_than_64_agents_is_known_by_64() {
    let node = echoing().await;
    let hostile = HostilePeer::joined(&node).await;
    let send = async |seed: u8| {
        let record = Record { name: format!("agent-{seed}"), ..hostile.forger().record(seed, "crowd") };
        hostile.gossip_record(&record, &hostile.forger().sign(&record, seed)).await;
    };
    let known = async || strangers(&node).await.len();

    for seed in 1..=AGENTS_MAX {
        send(seed).await;
    }
    eventually("64 agents are known", SETTLE, async || (known().await == usize::from(AGENTS_MAX)).then_some(())).await;
    let ignored = dropped(&node, "Document", "ignored").await;
    for seed in AGENTS_MAX + 1..=AGENTS_MAX + 6 {
        send(seed).await;
    }

    until_dropped(&node, "Document", "ignored", ignored + 6).await;
    assert_eq!(known().await, usize::from(AGENTS_MAX));
    assert!(!strangers(&node).await.contains("agent-65"));
    // A new record of one that is known is still taken.
    let renewed = Record { name: "renewed".to_owned(), ..hostile.forger().record(1, "crowd") };
    hostile.gossip_record(&renewed, &hostile.forger().sign(&renewed, 1)).await;
    eventually("the record is renewed", SETTLE, async || strangers(&node).await.contains("renewed").then_some(())).await;
    serves(&node).await;
}

/// Threats T12, T15: only a node itself withdraws its agents.
#[tokio::test]
async fn a_pulse_forged_for_another_node_withdraws_nothing() {
    let (host, caller) = served().await;
    let mut events = caller.events().await;
    let agent: AgentId = host.agent_id("echo").await.parse().expect("an agent's id");
    let shard = "echo".parse::<meshwork::model::CapabilityName>().expect("a name").shard();

    for (number, leaving) in [(1, true), (2, false)] {
        let hostile = HostilePeer::joined(&caller).await;
        let mut pulse = hostile.forger().pulse(vec![AgentPulse { agent, available: false, in_flight: 9, queued: 9 }]);
        pulse.node = host.id().parse().expect("a node's id");
        pulse.sequence += 1_000_000;
        pulse.leaving = leaving;
        hostile.gossip(shard, pulse_message(shard, &hostile.forger().sign_pulse(&pulse))).await;
        until_dropped(&caller, "Document", "signature", number).await;
        hostile.disconnected().await;
        assert_eq!(caller.names("echo").await, ["echo"]);
    }
    still_serves(&host, &caller).await;
    nobody_was_withdrawn(&host, &mut events).await;
}

/// Threat T7: a pulse is good once.
#[tokio::test]
async fn a_pulse_that_is_played_again_withdraws_nothing() {
    let agent = HttpAgent::start().await;
    let host = Node::builder().agent(agent.definition("web", json!({ "id": "test.web" }))).spawn().await;
    let caller = Node::builder().join(&host).spawn().await;
    caller.knows("test.web", &["web"]).await;
    let id: AgentId = host.agent_id("web").await.parse().expect("an agent's id");
    let hostile = HostilePeer::joined(&caller).await;
    agent.set_healthy(false);
    caller.knows("test.web", &[]).await;
    let Reply::Records { pulses, .. } = hostile.ask(&caller, cbor(&Control::Fetch(vec![id]))).await else { panic!("records and pulses") };
    let withdrawal = pulses.first().expect("the pulse of the agent's node").clone();
    agent.set_healthy(true);
    caller.knows("test.web", &["web"]).await;

    let shard = "test.web".parse::<meshwork::model::CapabilityName>().expect("a name").shard();
    let mut events = caller.events().await;
    hostile.gossip(shard, pulse_message(shard, &withdrawal)).await;
    hostile.gossip(shard, repeated(shard, GossipContent::Pulse(withdrawal), 1)).await;
    // Messages of one peer are taken in order: once this one is counted the others have been dealt with.
    hostile.gossip(shard, b"the end".to_vec()).await;
    until_dropped(&caller, "Gossip", "malformed", 1).await;

    assert!(dropped(&caller, "Document", "ignored").await >= 1);
    assert_eq!(caller.names("test.web").await, ["web"]);
    assert_eq!(caller.call("test.web", json!("still there")).await["output"], "still there");
    nobody_was_withdrawn(&host, &mut events).await;
}

/// Threats T4, T27: bombs and garbage are refused at once, with a word to whoever sent them.
#[tokio::test]
async fn malformed_control_requests_are_refused() {
    let (node, honest) = served().await;
    let length_bomb = [&[0xa1, 0x64][..], b"find", &[0x7b, 0, 0, 1, 0, 0, 0, 0, 0]].concat();
    let array_bomb = [&[0xa1, 0x65][..], b"fetch", &[0x9b, 0, 0, 1, 0, 0, 0, 0, 0]].concat();
    let cases = [
        ("garbage", b"GET / HTTP/1.1\r\n\r\n".to_vec(), "malformed"),
        ("nothing", Vec::new(), "malformed"),
        ("a nesting bomb", vec![0x81; 900], "malformed"),
        ("a text of a tebibyte", length_bomb, "malformed"),
        ("an array of a tebi entries", array_bomb, "malformed"),
        ("bytes after the end", [cbor(&Control::Fetch(Vec::new())), vec![0]].concat(), "malformed"),
        ("too many entries", cbor(&Control::Fetch(vec![Forger::agent(1); 257])), "malformed"),
        ("an oversize request", vec![0x60; 40 * 1024], "oversize"),
    ];

    for (case, bytes, reason) in cases {
        let before = dropped(&node, "Control", reason).await;
        let hostile = HostilePeer::joined(&node).await;
        let asked = Instant::now();
        let reply = hostile.ask(&node, bytes).await;
        assert!(matches!(reply, Reply::Refused(_)), "{case}: {reply:?}");
        assert!(asked.elapsed() < IN_TIME, "{case}: {:?}", asked.elapsed());
        assert_eq!(dropped(&node, "Control", reason).await, before + 1, "{case}");
    }
    let persistent = HostilePeer::joined(&node).await;
    while persistent.is_connected() {
        // The last of them may find the connection closed.
        let _ = persistent.control(&node, vec![0xff]).await;
    }
    still_serves(&node, &honest).await;
}

/// Threats T3, T4: whoever asks too often is told when to come back, and nobody else waits for it.
#[tokio::test]
async fn a_flood_of_control_requests_is_told_to_wait() {
    let (node, honest) = served().await;
    let hostile = HostilePeer::joined(&node).await;
    let find = cbor(&Control::Find(query("echo")));

    let flood = async {
        let mut waits = Vec::new();
        for _ in 0..30 {
            let replies = join_all((0..16).map(|_| hostile.ask(&node, find.clone()))).await;
            waits.extend(replies.into_iter().filter_map(|reply| match reply {
                Reply::Busy { retry_after_ms } => Some(retry_after_ms),
                Reply::Records { .. } => None,
                Reply::Differences { .. }
                | Reply::Schemas(_)
                | Reply::Receipts(_)
                | Reply::Offers(_)
                | Reply::Context(_)
                | Reply::Results(_)
                | Reply::Refused(_) => panic!("another answer: {reply:?}"),
            }));
        }
        waits
    };
    let serving = async {
        for _ in 0..5 {
            still_serves(&node, &honest).await;
        }
    };
    let (waits, ()) = tokio::join!(flood, serving);

    assert!(!waits.is_empty(), "480 requests in a moment are too many");
    assert!(waits.iter().all(|wait| (1..=1_000).contains(wait)), "{waits:?}");
    assert_eq!(dropped(&node, "Control", "rate").await, waits.len() as u64);
    assert!(hostile.is_connected(), "haste is no fault");
    let newcomer = Node::builder().join(&node).spawn().await;
    assert_eq!(newcomer.names("echo").await, ["echo"]);
}

/// Threat T12: a node speaks for its own agents only.
#[tokio::test]
async fn a_query_of_a_peer_is_answered_with_own_agents_only() {
    let node = echoing().await;
    let _second = Node::builder().join(&node).agent(builtin("second", "echo")).spawn().await;
    node.knows("echo", &["echo", "second"]).await;
    let hostile = HostilePeer::joined(&node).await;

    let Reply::Records { records, .. } = hostile.ask(&node, cbor(&Control::Find(query("echo")))).await else { panic!("records") };

    let hosts: Vec<String> = records.iter().map(|record| read(record).node.to_string()).collect();
    assert_eq!(hosts, [node.id()]);
    serves(&node).await;
}

/// Threats T11, T12: a provider that lies about others is not believed and is thrown out.
#[tokio::test]
async fn lies_in_the_answer_to_a_query_do_not_reach_the_directory() {
    let node = echoing().await;
    let name = "test.prey".parse().expect("a name");
    let (liar, accomplice) = (Forger::new(), Forger::new());
    let foreign = accomplice.record(2, "prey");
    let stolen = Record { node: accomplice.id(), ..liar.record(3, "prey") };
    let altered = liar.sign_then(&liar.record(4, "prey"), 4, |record| record.sequence += 1);
    let node_itself = Record { node: node.id().parse().expect("a node's id"), ..liar.record(5, "prey") };

    // What another node signed is true, but this one does not speak for it.
    let answer = [accomplice.sign(&foreign, 2)];
    let gossiping = lying(&node, &name, Forger::new(), &answer).await;
    assert_eq!(stranger_names(&node, "test.prey").await, Vec::<String>::new());
    assert!(gossiping.is_connected());
    drop(gossiping);

    let answer = [liar.sign(&stolen, 3), altered, liar.sign(&node_itself, 5), b"no record at all".to_vec()];
    let hostile = lying(&node, &name, liar, &answer).await;
    until_dropped(&node, "Document", "signature", 1).await;
    hostile.disconnected().await;

    assert_eq!(stranger_names(&node, "test.prey").await, Vec::<String>::new());
    serves(&node).await;
}

/// Threat T12: lies in a digest exchange are as worthless.
#[tokio::test]
async fn lies_in_a_digest_do_not_reach_the_directory() {
    let node = echoing().await;
    let own: AgentId = node.agent_id("echo").await.parse().expect("an agent's id");
    let forger = Forger::new();
    let record = forger.record(1, "planted");
    let forged = forger.sign_then(&record, 1, |record| record.name = "other".to_owned());
    let habits = Habits::default().answers(move |asked| match asked {
        Control::Digest(_) => Some(cbor(&Reply::Differences { held: vec![(Forger::agent(1), u64::MAX), (own, u64::MAX)], more: true })),
        Control::Fetch(_) => Some(cbor(&Reply::Records { records: vec![ByteBuf::from(forged.clone())], pulses: Vec::new() })),
        Control::Find(_) | Control::Schemas(_) | Control::Receipts(_) | Control::Offers(_) | Control::Context(_) | Control::Results(_) => {
            None
        }
    });
    let hostile = HostilePeer::start(forger, habits);

    hostile.connect(&node).await;

    until_dropped(&node, "Document", "signature", 1).await;
    hostile.disconnected().await;
    assert_eq!(stranger_names(&node, "test.planted").await, Vec::<String>::new());
    serves(&node).await;
}

/// Threats T1, T27: a lane on which something is no frame is closed.
#[tokio::test]
async fn a_malformed_frame_closes_its_lane() {
    let (node, honest) = served().await;
    let frame = |bytes: &[u8]| [&u32::try_from(bytes.len()).expect("a short frame").to_be_bytes()[..], bytes].concat();
    let cases = [
        ("an unknown kind", frame(&[0x82, 0x18, 0x63, 0x00])),
        ("an empty frame", frame(&[])),
        ("garbage", frame(b"\xff\xff\xff")),
        ("a nesting bomb", frame(&[0x81; 900])),
        ("bytes after the end", frame(&[0x82, 0x02, 0x01, 0x00])),
        ("four gibibytes", u32::MAX.to_be_bytes().to_vec()),
        ("a byte more than a frame may have", (FRAME_BYTES_MAX as u32 + 1).to_be_bytes().to_vec()),
    ];

    for (number, (case, bytes)) in (1..).zip(cases) {
        let hostile = HostilePeer::joined(&node).await;
        let mut lane = hostile.open_lane(&node).await;
        assert!(lane.is_alive().await, "{case}");
        lane.write(&bytes).await;
        lane.closed().await;
        until_dropped(&node, "Lane", "violation", number).await;
    }
    assert_eq!(node.metric("meshwork_penalties_total").await, 7);
    still_serves(&node, &honest).await;
}

/// Threat T4: a frame that is sent byte by byte and never ends is waited for ten seconds.
#[tokio::test]
async fn a_frame_that_never_completes_closes_its_lane() {
    let (node, honest) = served().await;
    let hostile = HostilePeer::joined(&node).await;
    let mut lane = hostile.open_lane(&node).await;
    assert!(lane.is_alive().await);
    let begun = Instant::now();

    lane.write(&1_000_u32.to_be_bytes()).await;
    // Progress within the frame does not prolong its time.
    let dripping = async {
        let mut drops = tokio::time::interval(Duration::from_millis(500));
        loop {
            drops.tick().await;
            drip(&mut lane).await;
            if dropped(&node, "Lane", "violation").await > 0 {
                break;
            }
        }
    };
    tokio::time::timeout(PROGRESS_MAX + IN_TIME, dripping).await.expect("the node gives up");

    assert!(begun.elapsed() >= PROGRESS_MAX - Duration::from_millis(500), "{:?}", begun.elapsed());
    lane.closed().await;
    still_serves(&node, &honest).await;
}

/// Threats T1, T4: who breaks the order of calls loses the lane.
#[tokio::test]
async fn a_frame_out_of_order_closes_its_lane() {
    let node = Node::builder().agent(builtin("echo", "echo")).agent(slow("slow", None)).spawn().await;
    let honest = Node::builder().join(&node).spawn().await;
    honest.knows("echo", &["echo"]).await;
    let (busy, echo) = (agent(&node, "slow").await, agent(&node, "echo").await);
    let long = request(busy, "test.slow", &json!({ "ms": 20_000 }));

    let hostile = HostilePeer::joined(&node).await;
    let mut lane = hostile.open_lane(&node).await;
    lane.call(1, long.clone()).await;
    assert_eq!(lane.next().await, Some(Frame::Accepted { id: 1 }));
    lane.call(1, request(echo, "echo", &json!("the same number"))).await;
    lane.closed().await;
    until_dropped(&node, "Lane", "violation", 1).await;

    let failure = Failure::new(ErrorCode::Internal, "not asked");
    let success = Success { units: None, execution_us: 0, body: Body::Inline(Bytes::from_static(b"1")) };
    let answers = [Frame::Accepted { id: 1 }, Frame::Result { id: 1, success }, Frame::error(1, false, &failure), Frame::Pong { nonce: 1 }];
    for (number, frame) in (2..).zip(answers) {
        let hostile = HostilePeer::joined(&node).await;
        let mut lane = hostile.open_lane(&node).await;
        lane.send(&[frame]).await;
        lane.closed().await;
        until_dropped(&node, "Lane", "violation", number).await;
    }
    // The call that was cut off holds the agent no longer than it takes to cancel it.
    let free = async || (node.agent("slow").await["status"]["in_flight"] == 0).then_some(());
    eventually("the agent is free", SETTLE, free).await;
    still_serves(&node, &honest).await;
}

/// AMP-4: a call that cannot be done is answered, and the lane goes on.
#[tokio::test]
async fn calls_that_cannot_be_done_are_answered_on_a_lane_that_goes_on() {
    let (node, honest) = served().await;
    let echo = agent(&node, "echo").await;
    let hostile = HostilePeer::joined(&node).await;
    let mut lane = hostile.open_lane(&node).await;
    let good = request(echo, "echo", &json!("good"));
    let mut hops = good.clone();
    hops.hops = vec![Hop { node: hostile.forger().id(), agent: echo }; 8];
    let mut no_json = good.clone();
    no_json.body = Body::Inline(Bytes::from_static(b"{\"open"));
    let mut no_time = good.clone();
    no_time.budget_ms = 0;
    let mut version = good.clone();
    version.version = Some("^99".parse().expect("a requirement"));

    for (id, (call, code)) in (1..).zip([
        (no_time, ErrorCode::Timeout),
        (request(Forger::agent(1), "echo", &json!(1)), ErrorCode::AgentNotFound),
        (request(echo, "test.nothing", &json!(1)), ErrorCode::CapabilityNotFound),
        (version, ErrorCode::CapabilityNotFound),
        (hops, ErrorCode::InvalidRequest),
        (no_json, ErrorCode::InvalidRequest),
    ]) {
        lane.call(id, call).await;
        let frame = lane.next().await.unwrap_or_else(|| panic!("an answer, {code}"));
        assert_eq!(failure(&frame).code, code, "{frame:?}");
    }
    // However long a peer wants to wait, and whatever it calls its call, the answer comes under the number that it chose.
    let mut forever = good;
    forever.budget_ms = u64::MAX;
    lane.call(u64::MAX, forever).await;
    let Some((u64::MAX, Frame::Result { success, .. })) = lane.end().await else { panic!("a result") };
    assert_eq!(success.body, Body::Inline("\"good\"".into()));
    assert_eq!(node.metric("meshwork_penalties_total").await, 0, "none of this is a fault");
    still_serves(&node, &honest).await;
}

/// Threat T4, MAOP-3: one peer has so many calls at once and no more, and those that it has are kept.
#[tokio::test]
async fn more_calls_than_a_peer_may_have_are_told_to_wait() {
    let crowded = with(slow("slow", None), json!({ "queue": 2_000 }));
    let node = Node::builder().agent(builtin("echo", "echo")).agent(crowded).spawn().await;
    let honest = Node::builder().join(&node).spawn().await;
    honest.knows("echo", &["echo"]).await;
    let busy = agent(&node, "slow").await;
    let hostile = HostilePeer::joined(&node).await;
    let mut lane = hostile.open_lane(&node).await;
    let mut call = request(busy, "test.slow", &json!({ "ms": 20_000 }));
    // Only the most urgent may have every place.
    call.priority = Priority::High;
    let last = CALLS_MAX as u64;

    let calls: Vec<Frame> = (0..=last).map(|id| Frame::Request { id, request: Box::new(call.clone()) }).collect();
    lane.send(&calls).await;

    // The agent takes one at a time; the others stand in line without a word, but for the one too many.
    let (mut accepted, mut refused) = (BTreeSet::new(), Vec::new());
    while accepted.is_empty() || refused.is_empty() {
        match lane.next().await.expect("the lane goes on") {
            Frame::Accepted { id } => assert!(accepted.insert(id), "{id} is accepted twice"),
            frame @ Frame::Error { id, .. } => refused.push((id, failure(&frame))),
            frame @ (Frame::Request { .. }
            | Frame::Cancel { .. }
            | Frame::Ping { .. }
            | Frame::Result { .. }
            | Frame::Pong { .. }
            | Frame::Chunk { .. }
            | Frame::Credit { .. }
            | Frame::Go { .. }) => panic!("unexpected: {frame:?}"),
        }
    }
    assert_eq!(refused.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [last]);
    assert!(refused.iter().all(|(_, failure)| failure.code == ErrorCode::Busy && failure.retry_after_ms().is_some()), "{refused:?}");
    still_serves(&node, &honest).await;

    // What was not refused ends in one frame each.
    let mut running: BTreeSet<u64> = (0..last).collect();
    let cancels: Vec<Frame> = running.iter().map(|id| Frame::Cancel { id: *id }).collect();
    lane.send(&cancels).await;
    while !running.is_empty() {
        let (id, frame) = lane.end().await.expect("the lane goes on");
        assert_eq!(failure(&frame).code, ErrorCode::Cancelled, "{frame:?}");
        assert!(running.remove(&id), "{id} ends twice");
    }
    assert!(lane.is_alive().await);
    still_serves(&node, &honest).await;
}

/// MAOP-3: a full agent says so on a lane, too.
#[tokio::test]
async fn calls_to_a_full_agent_are_told_to_wait() {
    let small = with(slow("slow", None), json!({ "concurrency": 1, "queue": 2 }));
    let node = Node::builder().agent(builtin("echo", "echo")).agent(small).spawn().await;
    let busy = agent(&node, "slow").await;
    let hostile = HostilePeer::joined(&node).await;
    let mut lane = hostile.open_lane(&node).await;
    let call = request(busy, "test.slow", &json!({ "ms": 20_000 }));

    let calls: Vec<Frame> = (0..10).map(|id| Frame::Request { id, request: Box::new(call.clone()) }).collect();
    lane.send(&calls).await;

    // One is taken, two stand in line without a word, seven are told to wait.
    let mut busy = 0;
    for _ in 0..8 {
        let frame = lane.next().await.expect("the lane goes on");
        if !matches!(frame, Frame::Accepted { .. }) {
            let failure = failure(&frame);
            assert_eq!(failure.code, ErrorCode::Busy, "{failure}");
            assert!(failure.retry_after_ms().is_some_and(|wait| wait > 0), "{failure:?}");
            busy += 1;
        }
    }
    assert_eq!(busy, 7);
    serves(&node).await;
}

/// Threat T4: a body on a lane has at most 64 KiB, and what is larger is not even read as a frame.
#[tokio::test]
async fn a_body_over_64_kib_closes_its_lane() {
    let (node, honest) = served().await;
    let echo = agent(&node, "echo").await;
    let sized = |bytes: usize| {
        let mut call = request(echo, "echo", &json!(null));
        call.body = Body::Inline(Bytes::from(format!("\"{}\"", "x".repeat(bytes - 2))));
        call
    };

    let hostile = HostilePeer::joined(&node).await;
    let mut lane = hostile.open_lane(&node).await;
    lane.call(1, sized(INLINE_BYTES_MAX)).await;
    assert!(matches!(lane.end().await, Some((1, Frame::Result { success, .. })) if success.body.len() == 65_536));
    lane.call(2, sized(INLINE_BYTES_MAX + 1)).await;
    lane.closed().await;

    until_dropped(&node, "Lane", "violation", 1).await;
    still_serves(&node, &honest).await;
}

/// Threat T3: a connection opens so many lanes in its life.
#[tokio::test]
async fn a_peer_opens_a_bounded_number_of_lanes() {
    let (node, honest) = served().await;
    let hostile = HostilePeer::joined(&node).await;

    let mut alive = Vec::new();
    for _ in 0..100 {
        let mut lane = hostile.open_lane(&node).await;
        if lane.is_alive().await {
            alive.push(lane);
        }
    }

    assert_eq!(alive.len(), LANES_MAX);
    for lane in &mut alive {
        assert!(lane.is_alive().await, "the lanes that stand are not touched");
    }
    still_serves(&node, &honest).await;
}

/// AMP-4: a call that is cancelled has one final frame, and so has one that is cancelled too late, twice, or never was.
#[tokio::test]
async fn a_cancelled_call_has_one_final_frame() {
    let node = Node::builder().agent(builtin("echo", "echo")).agent(slow("slow", None)).spawn().await;
    let (busy, echo) = (agent(&node, "slow").await, agent(&node, "echo").await);
    let hostile = HostilePeer::joined(&node).await;
    let mut lane = hostile.open_lane(&node).await;

    lane.call(1, request(busy, "test.slow", &json!({ "ms": 20_000 }))).await;
    assert_eq!(lane.next().await, Some(Frame::Accepted { id: 1 }));
    lane.send(&[Frame::Cancel { id: 1 }, Frame::Cancel { id: 1 }, Frame::Cancel { id: 4_711 }]).await;
    let Some((1, frame)) = lane.end().await else { panic!("one end") };
    assert_eq!(failure(&frame).code, ErrorCode::Cancelled);
    lane.call(2, request(echo, "echo", &json!(2))).await;
    assert!(matches!(lane.end().await, Some((2, Frame::Result { .. }))));
    lane.send(&[Frame::Cancel { id: 2 }]).await;

    // Whatever else was on its way stands before this answer.
    assert!(lane.is_alive().await);
    serves(&node).await;
}

/// A peer of another family of protocols is let go at once.
#[tokio::test]
async fn a_peer_of_another_protocol_version_is_let_go() {
    let (node, honest) = served().await;
    let mut events = node.events().await;
    let hostile = HostilePeer::start(Forger::new(), Habits::default().family("meshwork/2"));

    hostile.connect(&node).await;

    hostile.disconnected().await;
    events.wait_for("peer_disconnected", SETTLE, |event| event["node_id"] == hostile.id()).await;
    assert!(!node.peers().await.contains(&hostile.id()));
    assert_eq!(node.metric("meshwork_penalties_total").await, 0, "to be newer is no fault");
    still_serves(&node, &honest).await;
}

/// A node that speaks no lane of this version is said to, and passed over for one that does.
#[tokio::test]
async fn a_call_to_a_node_without_lanes_says_so_or_goes_elsewhere() {
    let node = Node::builder().config("[routing]\nexploration = 0.0\n").agent(builtin("echo", "echo")).spawn().await;
    let forger = Forger::new();
    let record = fast(&forger, "odd");
    let signed = forger.sign(&record, 1);
    let hostile = HostilePeer::start(forger, Habits::default().without_lanes().advertises(&record, signed));
    hostile.connect(&node).await;
    node.knows("test.odd", &["odd"]).await;

    let error = invoke(&node, "test.odd", 5_000).await.error("VERSION_UNSUPPORTED");
    assert_eq!(error["retryable"], false, "{error}");

    let capability = json!({ "id": "test.odd", "constraints": { "response_time_ms": 900 } });
    let agent = crate::support::script("even", "echo.py", &[], capability);
    let _even = Node::builder().join(&node).agent(agent).spawn().await;
    eventually("an honest provider is known", SETTLE, async || node.names("test.odd").await.contains(&"even".to_owned()).then_some(()))
        .await;
    let answer = invoke(&node, "test.odd", 5_000).await.ok();
    assert_eq!(answer["output"], json!("?"), "{answer}");
    serves(&node).await;
}

/// Threats T16, T23: an output that breaks the schema of its own capability does not reach the caller.
#[tokio::test]
async fn an_output_against_its_schema_is_kept_from_the_caller() {
    let node = echoing().await;
    let schema = json!({ "type": "object", "required": ["score"], "properties": { "score": { "type": "number" } } });
    let forger = Forger::new();
    let mut record = fast(&forger, "liar");
    record.capabilities[0].output_schema = schema_hash(&schema);
    let habits = Habits::default().schema(record.capabilities[0].output_schema, &schema);
    let hostile = trap(&node, forger, &record, habits).await;

    let answering = async {
        let mut lane = hostile.accept_lane().await;
        for output in ["{\"score\":\"high\"}", "[]", "{\"open"] {
            let (id, _) = lane.next_call().await.expect("a call");
            lane.send(&[Frame::Accepted { id }, result(id, output)]).await;
        }
        lane
    };
    let calling = async {
        for _ in 0..3 {
            invoke(&node, "test.liar", 5_000).await.error("INVALID_SCHEMA");
        }
    };
    let (_lane, ()) = tokio::join!(answering, calling);

    // Three failures in a row, and nobody is sent there for a while.
    node.knows("test.liar", &[]).await;
    serves(&node).await;
}

/// Threat T26: a schema that explodes is not unfolded, and one that is not what its hash says is not used; only the agent's node checks then.
#[tokio::test]
async fn a_schema_that_explodes_or_is_another_one_costs_nothing() {
    let node = echoing().await;
    let levels = (0..28).map(|level| {
        let next = json!({ "$ref": format!("#/$defs/{}", level + 1) });
        (level.to_string(), json!({ "allOf": [next, next] }))
    });
    let mut levels: serde_json::Map<String, Value> = levels.collect();
    levels.insert("28".to_owned(), json!({ "type": "string" }));
    let bomb = json!({ "$defs": levels, "$ref": "#/$defs/0" });
    let (promised, sent) = (json!({ "type": "string" }), json!({ "type": "number" }));

    for (number, (hash, schema)) in (1..).zip([(schema_hash(&bomb), bomb), (schema_hash(&promised), sent)]) {
        let forger = Forger::new();
        let name = format!("bomber-{number}");
        let mut record = fast(&forger, &name);
        record.capabilities[0].input_schema = hash;
        let hostile = trap(&node, forger, &record, Habits::default().schema(hash, &schema)).await;
        let answering = async {
            let mut lane = hostile.accept_lane().await;
            let (id, _) = lane.next_call().await.expect("a call");
            lane.send(&[result(id, "true")]).await;
            lane
        };
        let asked = Instant::now();
        let capability = format!("test.{name}");
        let (answer, _lane) = tokio::join!(invoke(&node, &capability, 20_000), answering);
        assert_eq!(answer.ok()["output"], true);
        assert!(asked.elapsed() < Duration::from_secs(1), "{:?}", asked.elapsed());
        assert!(hostile.was_asked(|asked| matches!(asked, Control::Schemas(_))));
    }
    serves(&node).await;
}

/// Threat T4: who keeps its schemas back holds up each call for a second at most, and is the slower agent for it.
#[tokio::test]
async fn a_node_that_keeps_its_schemas_back_does_not_hold_up_calls() {
    let node = echoing().await;
    let forger = Forger::new();
    let mut record = fast(&forger, "secretive");
    record.capabilities[0].input_schema = schema_hash(&json!({ "type": "string" }));
    let hostile = trap(&node, forger, &record, Habits::default().ignores(|asked| matches!(asked, Control::Schemas(_)))).await;

    let answering = async {
        let mut lane = hostile.accept_lane().await;
        let (id, _) = lane.next_call().await.expect("a call");
        lane.send(&[result(id, "true")]).await;
        lane
    };
    let asked = Instant::now();
    let (answer, _lane) = tokio::join!(invoke(&node, "test.secretive", 20_000), answering);

    assert_eq!(answer.ok()["output"], true);
    assert!(asked.elapsed() < Duration::from_secs(2), "{:?}", asked.elapsed());
    let slow = async || {
        let rows = node.find("test.secretive").await;
        rows.first().and_then(|row| row["latency_ms"]["value"].as_f64()).filter(|ms| *ms >= 100.0)
    };
    eventually("the delay counts", SETTLE, slow).await;
    serves(&node).await;
}

/// Threats T4, T16: an answer to a call that was never made ends the lane, and the call on it has a clear end.
#[tokio::test]
async fn an_answer_to_no_call_ends_the_lane_and_not_the_node() {
    let node = echoing().await;
    let forger = Forger::new();
    let record = fast(&forger, "confused");
    let hostile = trap(&node, forger, &record, Habits::default()).await;

    for accepts in [false, true] {
        let answering = async {
            let mut lane = hostile.accept_lane().await;
            let (id, _) = lane.next_call().await.expect("a call");
            let accepted = accepts.then_some(Frame::Accepted { id });
            lane.send(&accepted.into_iter().chain([result(id + 1_000, "1")]).collect::<Vec<_>>()).await;
            lane.closed().await;
        };
        let asked = Instant::now();
        let (answer, ()) = tokio::join!(invoke(&node, "test.confused", 20_000), answering);
        let error = answer.error(if accepts { "AGENT_FAILED" } else { "UNAVAILABLE" });
        assert_eq!(error["details"]["outcome"], if accepts { "unknown" } else { "not_started" }, "{error}");
        assert!(asked.elapsed() < IN_TIME, "{:?}", asked.elapsed());
        if !accepts {
            // A node that cut the lane before it took the call is out of routing for a while.
            eventually("it is routed to again", SETTLE, async || (node.names("test.confused").await == ["confused"]).then_some(())).await;
        }
    }
    assert_eq!(node.metric("meshwork_penalties_total").await, 2);
    serves(&node).await;
}

/// AMP-4: the first answer counts; a second is a fault.
#[tokio::test]
async fn a_second_answer_does_not_change_the_first() {
    let node = echoing().await;
    let forger = Forger::new();
    let record = fast(&forger, "twice");
    let hostile = trap(&node, forger, &record, Habits::default()).await;

    let answering = async {
        let mut lane = hostile.accept_lane().await;
        let (id, _) = lane.next_call().await.expect("a call");
        lane.send(&[Frame::Accepted { id }, result(id, "\"first\""), result(id, "\"second\"")]).await;
        lane.closed().await;
    };
    let (answer, ()) = tokio::join!(invoke(&node, "test.twice", 5_000), answering);

    assert_eq!(answer.ok()["output"], "first");
    let penalised = async || (node.metric("meshwork_penalties_total").await == 1).then_some(());
    eventually("the second answer is a fault", SETTLE, penalised).await;
    serves(&node).await;
}

/// MEAP-9: a node that never answers is given up in time, whether it lives or not.
#[tokio::test]
async fn an_agent_that_never_answers_is_given_up_in_time() {
    let node = echoing().await;
    let forger = Forger::new();
    let record = fast(&forger, "mute");
    let hostile = trap(&node, forger, &record, Habits::default()).await;

    // Alive but silent about the call: the deadline decides.
    let asked = Instant::now();
    let mut lane = None;
    let answering = async {
        let mut accepted = hostile.accept_lane().await;
        accepted.next_call().await.expect("a call");
        lane.insert(accepted).keep_alive().await;
    };
    let answer = tokio::select! {
        answer = invoke(&node, "test.mute", 3_000) => answer,
        () = answering => panic!("a living lane is not closed"),
    };
    answer.refused(504, "TIMEOUT");
    assert!((Duration::from_secs(3)..IN_TIME).contains(&asked.elapsed()), "{:?}", asked.elapsed());

    // Not a sign of life: two seconds of silence decide.
    let asked = Instant::now();
    let error = invoke(&node, "test.mute", 20_000).await.error("UNAVAILABLE");
    assert_eq!(error["details"]["outcome"], "not_started", "{error}");
    assert!(asked.elapsed() < IN_TIME, "{:?}", asked.elapsed());
    hostile.disconnected().await;
    node.knows("test.mute", &[]).await;
    serves(&node).await;
}

/// Threats T1, T16: garbage on a lane that the node opened is as harmless.
#[tokio::test]
async fn garbage_instead_of_an_answer_ends_the_lane_and_not_the_node() {
    let node = echoing().await;
    let cases: [(&str, Vec<u8>); 3] = [
        ("garbage", b"\0\0\0\x03\xff\xff\xff".to_vec()),
        ("a frame of four gibibytes", vec![0xff; 4]),
        ("a call in return", {
            let mut bytes = Vec::new();
            Frame::Ping { nonce: 1 }.encode(&mut bytes).expect("a frame");
            bytes
        }),
    ];

    for (number, (case, bytes)) in (1_u64..).zip(cases) {
        let forger = Forger::new();
        let record = fast(&forger, "noise");
        let hostile = trap(&node, forger, &record, Habits::default()).await;
        let answering = async {
            let mut lane = hostile.accept_lane().await;
            lane.next_call().await.expect("a call");
            lane.write(&bytes).await;
            lane.closed().await;
        };
        let (answer, ()) = tokio::join!(invoke(&node, "test.noise", 20_000), answering);
        let error = answer.error("UNAVAILABLE");
        assert_eq!(error["details"]["outcome"], "not_started", "{case}: {error}");
        let penalised = async || (node.metric("meshwork_penalties_total").await == number).then_some(());
        eventually(case, SETTLE, penalised).await;
        drop(hostile);
        node.knows("test.noise", &[]).await;
    }
    serves(&node).await;
}

/// Threat T12: no node keeps values for others in the DHT, and whoever tries pays for it.
#[tokio::test]
async fn a_value_record_in_the_dht_is_refused_and_a_fault() {
    let (node, honest) = served().await;
    let mut events = node.events().await;
    let hostile = HostilePeer::joined(&node).await;

    hostile.put_value(&node, b"key").await;
    let penalised = async || (node.metric("meshwork_penalties_total").await == 1).then_some(());
    eventually("the value record is a fault", SETTLE, penalised).await;
    let mut number = 0;
    let insisting = insist(&node, &hostile, async || {
        number += 1;
        hostile.put_value(&node, format!("key {number}").as_bytes()).await;
    });
    tokio::select! {
        banned = events.wait_for("peer_banned", SETTLE, |event| event["node_id"] == hostile.id()) => drop(banned),
        () = insisting => panic!("nobody insists for ever"),
    }

    stays_out(&node, &hostile).await;
    still_serves(&node, &honest).await;
}

/// Threats T11, T12: who says that it provides a capability is asked, and garbage is no answer.
#[tokio::test]
async fn a_provider_that_answers_garbage_is_not_found() {
    let node = echoing().await;
    let name = "test.nobody".parse().expect("a name");
    let habits = Habits::default().answers(|asked| matches!(asked, Control::Find(_)).then(|| b"garbage".to_vec()));
    let hostile = HostilePeer::start(Forger::new(), habits);
    hostile.connect(&node).await;
    hostile.provide(&node, &name).await;

    let asked = Instant::now();
    let found = node.names("test.nobody").await;

    assert_eq!(found, Vec::<String>::new());
    assert!(asked.elapsed() < IN_TIME, "{:?}", asked.elapsed());
    assert!(hostile.was_asked(|asked| matches!(asked, Control::Find(_))), "the node asks its provider");
    assert_eq!(node.metric("meshwork_penalties_total").await, 1, "a malformed reply is a fault");
    invoke(&node, "test.nobody", 5_000).await.error("CAPABILITY_NOT_FOUND");
    serves(&node).await;
}

/// How a record of the first forger's agent 1 gets its signatures, with another forger's help.
type Sign = fn(&Forger, &Forger, &Record) -> Vec<u8>;

/// A node with an agent that echoes, and an honest neighbour that knows it.
async fn served() -> (Node, Node) {
    let node = echoing().await;
    let honest = Node::builder().join(&node).spawn().await;
    honest.knows("echo", &["echo"]).await;
    (node, honest)
}

/// Sends a record that is changed before it is signed; waits until it is dropped for this reason, and sees that nobody knows it.
async fn gossip_bad(node: &Node, change: impl FnOnce(&mut Record), kind: &str, reason: &str) {
    let before = dropped(node, kind, reason).await;
    let hostile = HostilePeer::joined(node).await;
    let mut record = hostile.forger().record(1, "bad");
    change(&mut record);
    hostile.gossip_record(&record, &hostile.forger().sign(&record, 1)).await;
    until_dropped(node, kind, reason, before + 1).await;
    assert_eq!(stranger_names(node, "test.bad").await, Vec::<String>::new(), "{kind} {reason}");
}

/// A peer that provides `name` and answers queries with these documents, once the node has asked it and answered its own client.
async fn lying(node: &Node, name: &meshwork::model::CapabilityName, forger: Forger, documents: &[Vec<u8>]) -> HostilePeer {
    let records: Vec<ByteBuf> = documents.iter().cloned().map(ByteBuf::from).collect();
    let answer = cbor(&Reply::Records { records, pulses: Vec::new() });
    let habits = Habits::default().answers(move |asked| matches!(asked, Control::Find(_)).then(|| answer.clone()));
    let hostile = HostilePeer::start(forger, habits);
    hostile.connect(node).await;
    hostile.provide(node, name).await;
    // A name that was looked up a moment ago is not looked up again at once.
    eventually("the provider is asked", SETTLE, async || {
        let found = node.names(name.as_str()).await;
        assert_eq!(found, Vec::<String>::new());
        hostile.was_asked(|asked| matches!(asked, Control::Find(_))).then_some(())
    })
    .await;
    hostile
}

/// No agent went down until now, not for a moment: one that comes and goes on the host is the first of which these events tell.
async fn nobody_was_withdrawn(host: &Node, events: &mut Events) {
    let added = host.post("/v1/agents", &builtin("visitor", "echo")).await.ok();
    events.wait_for("agent_up", SETTLE, |event| event["name"] == "visitor").await;
    host.delete(&format!("/v1/agents/{}", added["agent_id"].as_str().expect("an id"))).await.ok();
    let first = events.wait_for("agent_down", SETTLE, |_| true).await;
    assert_eq!(first["name"], "visitor", "{first}");
}

/// Does it again and again, and comes back each time the node hangs up.
async fn insist(node: &Node, hostile: &HostilePeer, mut act: impl AsyncFnMut()) {
    loop {
        if !hostile.is_connected() {
            hostile.connect(node).await;
        }
        act().await;
    }
}

/// A banned peer is not let in again.
async fn stays_out(node: &Node, hostile: &HostilePeer) {
    hostile.disconnected().await;
    hostile.connect(node).await;
    hostile.disconnected().await;
    assert!(!node.peers().await.contains(&hostile.id()), "a banned peer stays out");
}

/// One more byte of a frame that has no end.
async fn drip(lane: &mut RawLane) {
    lane.write(&[0x81]).await;
}

fn query(name: &str) -> Query {
    let name = name.parse().expect("a capability's name");
    Query { capabilities: vec![name], text: None, version: None, constraints: Wanted::default(), limit: 10 }
}

fn read(signed: &[u8]) -> Record {
    Signed::<Record>::from_bytes(signed).and_then(Signed::verify).map(|record| (*record).clone()).expect("a signed record")
}

/// The names of all agents in the directory that are not the node's own.
async fn strangers(node: &Node) -> BTreeSet<String> {
    let answer = node.get("/v1/agents?scope=mesh").await.ok();
    let agents = answer["agents"].as_array().unwrap_or_else(|| panic!("agents: {answer}"));
    agents.iter().filter(|agent| agent["node_id"] != node.id()).filter_map(|agent| agent["name"].as_str()).map(str::to_owned).collect()
}

/// The agents of others, by list and by query; both must agree.
async fn stranger_names(node: &Node, capability: &str) -> Vec<String> {
    let found = node.names(capability).await;
    let listed: Vec<String> = strangers(node).await.into_iter().collect();
    assert_eq!(found, listed, "the list and the query disagree");
    found
}
