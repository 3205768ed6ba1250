//! Receipts: what one node tells another of agents, and whose word counts.

use meshwork::{
    model::{AgentId, Timestamp},
    wire::{
        directory::{Control, Reply},
        receipt::Receipt,
    },
};
use reqwest::Method;
use serde_bytes::ByteBuf;
use serde_json::{Value, json};

use crate::support::{
    Builder, Node, SETTLE, builtin, eventually,
    peer::{Forger, Habits, HostilePeer, cbor},
    target::{echoing, serves, until_dropped},
};

/// A node whose windows end before a test does.
fn hasty() -> Builder {
    Node::builder().config("[routing]\nreceipt_window_ms = 300\n")
}

/// The one row that a query for `echo` gives, with what it is made of.
async fn echo_row(node: &Node) -> Value {
    let answer = node.query(json!({ "capabilities": ["echo"], "explain": true })).await;
    answer["agents"][0].clone()
}

/// Waits until the node says of `echo` what others told it.
async fn hears(node: &Node) -> Value {
    let heard = async || Some(echo_row(node).await).filter(|row| row["success_rate"]["source"] == "attested");
    eventually("the word of the pinned node counts", SETTLE, heard).await
}

async fn receipts(node: &Node) -> Vec<Value> {
    let answer = node.get("/v1/trust/receipts").await.ok();
    answer["receipts"].as_array().unwrap_or_else(|| panic!("receipts: {answer}")).clone()
}

/// AITP-5, threats T16, T17: a caller's word reaches those who pinned it, and nobody else; own calls come first, and a restart loses nothing.
#[tokio::test]
async fn the_word_of_a_pinned_caller_counts_and_is_kept() {
    let host = Node::builder().agent(builtin("echo", "echo")).spawn().await;
    let mut caller = hasty().join(&host).spawn().await;
    let pinning = format!("[routing]\nreceipt_window_ms = 300\npinned = [\"{}\"]\n", caller.id());
    let listener = Node::builder().config(&pinning).join(&caller).join(&host).spawn().await;
    let stranger = hasty().join(&caller).join(&host).spawn().await;
    caller.knows("echo", &["echo"]).await;
    assert_eq!(echo_row(&listener).await["success_rate"], Value::Null);
    for number in 0..5 {
        caller.call("echo", json!(number)).await;
    }

    let row = hears(&listener).await;
    assert_eq!((&row["latency_ms"]["source"], &row["success_rate"]["value"]), (&json!("attested"), &json!(1.0)), "{row}");
    assert!(row["trust"].as_f64().is_some_and(|trust| trust > 50.0) && row["attested"]["failures"] == 0.0, "{row}");
    let trust = listener.get("/v1/trust").await.ok();
    assert!(trust["agents"][0]["attested"]["successes"].as_f64().is_some_and(|calls| calls > 0.0), "{trust}");
    assert_eq!(trust["agents"][0]["successes"], 0.0, "nothing was seen at first hand: {trust}");
    let shown = receipts(&listener).await;
    let [receipt] = shown.as_slice() else { panic!("one receipt: {shown:?}") };
    assert_eq!((&receipt["issuer"], &receipt["name"]), (&json!(caller.id()), &json!("echo")), "{receipt}");
    assert_eq!((&receipt["counted"], &receipt["reason"]), (&json!(true), &Value::Null), "{receipt}");

    let told = receipts(&stranger).await;
    assert_eq!((&told[0]["counted"], &told[0]["reason"]), (&json!(false), &json!("its issuer is not pinned")), "{told:?}");
    assert_eq!(echo_row(&stranger).await["success_rate"], Value::Null);
    let own = receipts(&caller).await;
    assert!(own[0]["own"] == true && own[0]["counted"] == false, "{own:?}");

    // Nobody is left to ask, so what counts after the restart was on the disk.
    caller.kill().await;
    let listener = listener.restart().await;
    hears(&listener).await;
    listener.call("echo", json!("first hand")).await;
    let measured = async || Some(echo_row(&listener).await).filter(|row| row["success_rate"]["source"] == "measured");
    let row = eventually("own calls come first", SETTLE, measured).await;
    assert_eq!(row["latency_ms"]["source"], "measured", "{row}");
}

/// A pin that is set while the node runs counts at once and after a restart, until it is removed.
#[tokio::test]
async fn pins_are_set_and_removed_while_the_node_runs() {
    let host = Node::builder().agent(builtin("echo", "echo")).spawn().await;
    let caller = hasty().join(&host).spawn().await;
    let listener = hasty().join(&caller).join(&host).spawn().await;
    caller.knows("echo", &["echo"]).await;
    caller.call("echo", json!(1)).await;
    assert!(listener.cli(&["trust", "pins"]).await.text().contains("nobody is pinned"));

    let shown = format!("…{}", &caller.id()[caller.id().len() - 8..]);
    assert!(listener.cli(&["peers"]).await.text().contains(&shown));
    let pinned = listener.cli(&["trust", "pin", &shown]).await;
    assert_eq!(pinned.text(), format!("pinned {}: its receipts count from now on\n", caller.id()));
    assert_eq!(listener.cli(&["trust", "pin", caller.id(), "--json"]).await.json()["changed"], false);
    hears(&listener).await;
    let table = listener.cli(&["trust"]).await;
    assert!(table.text().contains("ATTESTED") && table.stdout.contains(" well, "), "{table:?}");
    let table = listener.cli(&["trust", "receipts", "echo"]).await;
    assert!(table.text().contains("echo@") && !table.stdout.contains("none: "), "{table:?}");
    assert!(listener.cli(&["find", "echo"]).await.text().contains(" a"));

    let listener = listener.restart().await;
    let pins = listener.cli(&["trust", "pins", "--json"]).await.json();
    assert_eq!((&pins["pins"][0]["node_id"], &pins["pins"][0]["source"]), (&json!(caller.id()), &json!("command")), "{pins}");
    hears(&listener).await;
    assert!(listener.cli(&["trust", "unpin", caller.id()]).await.text().contains("count no longer"));
    assert_eq!(echo_row(&listener).await["success_rate"], Value::Null, "what was heard is taken back");
    assert_eq!(listener.get("/v1/trust/pins").await.ok()["pins"], json!([]));

    std::fs::write(listener.data_dir().join("pins"), "12D3KooW\n").expect("the file is damaged");
    let listener = listener.restart().await;
    assert!(listener.cli(&["doctor"]).await.stdout.contains("pins are not used"));
    let refused = listener.cli(&["trust", "pin", caller.id()]).await;
    assert!(refused.code == 1 && refused.stderr.contains("pin again"), "{refused:?}");
}

#[tokio::test]
async fn pins_that_make_no_sense_are_refused_with_the_reason() {
    let pinned = Forger::new().id();
    let node = Node::builder().config(&format!("[routing]\npinned = [\"{pinned}\"]\n")).spawn().await;
    let put = async |id: &str| node.send(node.request(Method::PUT, &format!("/v1/trust/pins/{id}"))).await;

    let own = put(node.id()).await;
    assert_eq!((own.status, &own.body["error"]["code"]), (400, &json!("INVALID_REQUEST")), "{own:?}");
    let nobody = put("somebody").await;
    assert_eq!((nobody.status, &nobody.body["error"]["details"]["path"]), (400, &json!("node")), "{nobody:?}");
    let configured = node.delete(&format!("/v1/trust/pins/{pinned}")).await;
    assert!(configured.status == 409 && configured.body.to_string().contains("routing.pinned"), "{configured:?}");
    assert_eq!(node.delete(&format!("/v1/trust/pins/{}", Forger::new().id())).await.ok()["changed"], false);
    for _ in 1..16 {
        assert_eq!(put(&Forger::new().id().to_string()).await.ok()["changed"], true);
    }
    let full = put(&Forger::new().id().to_string()).await;
    assert_eq!(full.body["error"]["code"], "INSUFFICIENT_RESOURCES", "{full:?}");
    assert_eq!(node.cli(&["trust", "pin", "somebody"]).await.code, 1);
    assert_eq!(node.get("/v1/trust/receipts?agent=nobody").await.status, 404);
}

/// What a peer answers when it is asked for receipts, as bytes.
type Answer = fn(&Forger, AgentId) -> Vec<u8>;

fn reply(receipts: Vec<Vec<u8>>) -> Vec<u8> {
    cbor(&Reply::Receipts(receipts.into_iter().map(ByteBuf::from).collect()))
}

/// A pinned peer that gives this answer about the node's own agent.
async fn answering(node: &Node, answer: Answer) -> HostilePeer {
    let agent: AgentId = node.agent_id("echo").await.parse().expect("an agent's id");
    let forger = Forger::new();
    let path = format!("/v1/trust/pins/{}", forger.id());
    node.send(node.request(Method::PUT, &path)).await.ok();
    let signer = forger.clone();
    let habits = Habits::default().answers(move |asked| matches!(asked, Control::Receipts(_)).then(|| answer(&signer, agent)));
    let peer = HostilePeer::start(forger, habits);
    peer.connect(node).await;
    peer
}

/// Threats T7, T12, T15: a receipt that was changed, or that its sender did not sign, costs its sender the connection, pinned or not.
#[tokio::test]
async fn a_forged_receipt_is_refused_and_its_sender_thrown_out() {
    let node = echoing().await;
    let cases: [(&str, u64, Answer); 4] = [
        ("signature", 1, |forger, agent| {
            let receipt = Receipt { failures: 9, ..forger.receipt(agent, "echo") };
            reply(vec![forger.sign_receipt_then(&receipt, |receipt| receipt.failures = 0)])
        }),
        // In the name of another, which is not that other's signature.
        ("foreign", 1, |forger, agent| {
            let receipt = Receipt { issuer: Forger::new().id(), ..forger.receipt(agent, "echo") };
            reply(vec![forger.sign_receipt(&receipt)])
        }),
        // Another's own word, which is that other's to give.
        ("foreign", 2, |_, agent| {
            let other = Forger::new();
            reply(vec![other.sign_receipt(&other.receipt(agent, "echo"))])
        }),
        ("rule", 1, |forger, agent| {
            let receipt = forger.receipt(agent, "echo");
            reply(vec![forger.sign_receipt(&Receipt { successes: 0, failures: 0, latency_ms: None, ..receipt })])
        }),
    ];
    for (reason, count, answer) in cases {
        let hostile = answering(&node, answer).await;
        until_dropped(&node, "Document", reason, count).await;
        hostile.disconnected().await;
        assert_eq!(receipts(&node).await, [Value::Null; 0], "{reason}");
    }
    assert_eq!(echo_row(&node).await["attested"], Value::Null);
    serves(&node).await;
}

/// Threat T7: what is over and what has not begun is not kept, and nobody is blamed for his clock.
#[tokio::test]
async fn a_receipt_of_another_time_is_not_kept() {
    let node = echoing().await;
    let cases: [(&str, Answer); 2] = [
        ("expired", |forger, agent| {
            let past = |at: Timestamp| Timestamp::from_ms(at.as_ms() - 700_000);
            let receipt = forger.receipt(agent, "echo");
            let (issued_at, expires_at) = (past(receipt.issued_at), past(receipt.expires_at));
            let (window_start, window_end) = (past(receipt.window_start), past(receipt.window_end));
            reply(vec![forger.sign_receipt(&Receipt { issued_at, expires_at, window_start, window_end, ..receipt })])
        }),
        ("future", |forger, agent| {
            let receipt = forger.receipt(agent, "echo");
            let issued_at = Timestamp::from_ms(receipt.issued_at.as_ms() + 120_000);
            reply(vec![forger.sign_receipt(&Receipt { issued_at, ..receipt })])
        }),
    ];
    for (reason, answer) in cases {
        let peer = answering(&node, answer).await;
        until_dropped(&node, "Document", reason, 1).await;
        assert!(peer.is_connected(), "{reason}");
        assert_eq!(receipts(&node).await, [Value::Null; 0], "{reason}");
    }
    serves(&node).await;
}

/// Threat T17: a node's praise of its own agents is kept to be looked at and counts for nothing.
#[tokio::test]
async fn a_pinned_node_does_not_praise_its_own_agents() {
    let node = echoing().await;
    let forger = Forger::new();
    node.send(node.request(Method::PUT, &format!("/v1/trust/pins/{}", forger.id()))).await.ok();
    let record = forger.record(1, "proud");
    let signer = forger.clone();
    let praise = move |asked: &Control| {
        let praise = || signer.sign_receipt(&signer.receipt(Forger::agent(1), "test.proud"));
        matches!(asked, Control::Receipts(_)).then(|| reply(vec![praise()]))
    };
    let signed = forger.sign(&record, 1);
    let peer = HostilePeer::start(forger, Habits::default().advertises(&record, signed).answers(praise));
    peer.connect(&node).await;

    let known = async || receipts(&node).await.into_iter().find(|receipt| receipt["reason"] == "its issuer hosts the agent itself");
    let receipt = eventually("the praise is shown", SETTLE, known).await;
    assert_eq!((&receipt["counted"], &receipt["name"]), (&json!(false), &json!("proud")), "{receipt}");
    let rows = node.get("/v1/trust").await.ok();
    assert_eq!(rows["agents"], json!([]), "{rows}");
    serves(&node).await;
}

/// Threats T5, T27: neither garbage nor a flood of receipts does harm, and a peer that does not know them is no longer asked.
#[tokio::test]
async fn garbage_and_refusals_instead_of_receipts_do_no_harm() {
    let node = echoing().await;
    let answers: [Answer; 4] = [
        |_, _| b"this is no CBOR".to_vec(),
        |forger, agent| reply(vec![forger.sign_receipt(&forger.receipt(agent, "echo")); 129]),
        |_, _| cbor(&Reply::Schemas(vec!["{}".to_owned()])),
        |_, _| cbor(&Reply::Refused("control request is malformed".to_owned())),
    ];
    for answer in answers {
        let peer = answering(&node, answer).await;
        eventually("the peer was asked", SETTLE, async || peer.was_asked(|asked| matches!(asked, Control::Receipts(_))).then_some(()))
            .await;
        assert_eq!(receipts(&node).await, [Value::Null; 0]);
    }
    serves(&node).await;
}
