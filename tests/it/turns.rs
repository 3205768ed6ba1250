//! Calls that agents make in turn: the chain they carry, where it ends, and that they end with the call they belong to.

use std::{fs, path::Path, time::Duration};

use meshwork::{
    model::{AgentId, ErrorCode, Failure},
    wire::invocation::{Frame, HOPS_MAX, Hop},
};
use serde_json::{Value, json};

use crate::support::{
    Node, SETTLE, builtin, eventually,
    peer::{Forger, HostilePeer, request},
    script, slow,
};

const ID: &str = "00112233445566778899aabbccddeeff";

/// Attaches an agent that calls in turn, with the capability `test.NAME`; its id.
async fn relay(node: &Node, name: &str) -> String {
    let definition = script(name, "relay.py", &[node.api(), node.token()], json!({ "id": format!("test.{name}") }));
    let added = node.post("/v1/agents", &definition).await.ok();
    added["agent_id"].as_str().expect("an agent's id").to_owned()
}

fn step(name: &str) -> Value {
    json!({ "capability": format!("test.{name}") })
}

/// Nodes in one mesh with a relay each, who all know each other; with the ids of the agents.
async fn ring(names: &[&str]) -> (Vec<Node>, Vec<String>) {
    let (mut nodes, mut agents): (Vec<Node>, Vec<String>) = (Vec::new(), Vec::new());
    for name in names {
        let builder = Node::builder();
        let node = match nodes.first() {
            Some(first) => builder.join(first),
            None => builder,
        };
        let node = node.spawn().await;
        agents.push(relay(&node, name).await);
        nodes.push(node);
    }
    for node in &nodes {
        for name in names {
            node.knows(&format!("test.{name}"), &[name]).await;
        }
    }
    (nodes, agents)
}

/// The agents of a refusal's chain.
fn chain(error: &Value) -> Vec<&str> {
    let hops = error["details"]["chain"].as_array().unwrap_or_else(|| panic!("a chain: {error}"));
    hops.iter().map(|hop| hop["agent_id"].as_str().expect("an agent's id")).collect()
}

fn lines(journal: &Path, what: &str) -> usize {
    fs::read_to_string(journal).unwrap_or_default().lines().filter(|line| line.starts_with(what)).count()
}

/// Threat T20: A calls B, B calls C, C calls A, which waits for all of them; the refusal names the chain.
#[tokio::test]
async fn a_circle_over_three_nodes_is_refused_where_it_would_close() {
    let (nodes, agents) = ring(&["a", "b", "c"]).await;

    let answer = nodes[0].call("test.a", json!({ "route": [step("b"), step("c"), step("a")] })).await;

    let error = &answer["output"]["then"]["output"]["then"]["output"]["then"]["error"];
    assert_eq!((&error["code"], &error["retryable"]), (&json!("INVALID_REQUEST"), &json!(false)), "{answer}");
    assert_eq!(chain(error), agents, "{error}");
    assert!(error["message"].as_str().is_some_and(|message| message.contains("circle")), "{error}");
    let nodes_of = error["details"]["chain"].as_array().expect("a chain").iter().map(|hop| hop["node_id"].as_str().expect("an id"));
    assert_eq!(nodes_of.collect::<Vec<_>>(), nodes.iter().map(Node::id).collect::<Vec<_>>());

    // Naming the agent does not help, and without the chain there is no circle.
    let named = json!({ "capability": "test.a", "agent_id": agents[0] });
    let answer = nodes[0].call("test.a", json!({ "route": [step("b"), named] })).await;
    assert_eq!(chain(&answer["output"]["then"]["output"]["then"]["error"]), agents[..2], "{answer}");
    let trust = nodes[2].get("/v1/trust").await.ok();
    let blamed = |row: &Value| row["failures"].as_f64() > Some(0.0);
    assert!(!trust["agents"].as_array().expect("rows").iter().any(blamed), "nobody is to blame: {trust}");
}

/// Threat T20: who waits for the call is passed over as long as somebody else can do it.
#[tokio::test]
async fn a_call_in_turn_goes_to_an_agent_outside_the_chain() {
    let node = Node::first().await;
    relay(&node, "a").await;
    let second = script("second", "echo.py", &[], json!({ "id": "test.a" }));
    node.knows("test.a", &["a"]).await;
    let first = node.agent_id("a").await;
    node.post("/v1/agents", &second).await.ok();
    node.knows("test.a", &["a", "second"]).await;

    let asked = json!({ "capability": "test.a", "agent_id": first, "input": { "route": [step("a")] } });
    for _ in 0..5 {
        let answer = node.invoke(asked.clone()).await.ok();
        assert_eq!(answer["output"]["then"]["agent_id"], node.agent_id("second").await, "{answer}");
    }
}

/// Threat T20: eight calls may lead to a call, a ninth may not.
#[tokio::test]
async fn a_chain_of_nine_is_refused() {
    let node = Node::first().await;
    let names: Vec<String> = (0..=HOPS_MAX + 1).map(|number| format!("r{number}")).collect();
    for name in &names {
        relay(&node, name).await;
    }
    let last = names.last().expect("ten names");
    node.knows(&format!("test.{last}"), &[last]).await;
    let route: Vec<Value> = names.iter().skip(1).map(|name| step(name)).collect();

    let mut answer = &node.call("test.r0", json!({ "route": route })).await;
    let mut calls = 0;
    while answer["status"] == "success" {
        calls += 1;
        answer = &answer["output"]["then"];
    }

    assert_eq!(calls, HOPS_MAX + 1, "{answer}");
    let error = &answer["error"];
    assert_eq!((&error["code"], &error["details"]["limit"]), (&json!("INVALID_REQUEST"), &json!(HOPS_MAX)), "{answer}");
    assert_eq!(chain(error).len(), HOPS_MAX + 1);
}

/// Threat T20: a call in turn has no more time than what is left of the call it belongs to.
#[tokio::test]
async fn the_deadline_shrinks_along_the_chain() {
    let (nodes, _) = ring(&["a", "b", "c"]).await;
    let patient = |name: &str| json!({ "capability": format!("test.{name}"), "timeout_ms": 60_000 });
    let body = json!({ "capability": "test.a", "timeout_ms": 9_000, "input": { "route": [patient("b"), step("c")] } });

    let answer = nodes[0].invoke(body).await.ok();

    let (first, second) = (&answer["output"], &answer["output"]["then"]["output"]);
    let left: Vec<u64> =
        [first, second, &second["then"]["output"]].iter().map(|output| output["deadline_ms"].as_u64().expect("a deadline")).collect();
    assert!(left[0] <= 9_000 && left[1] <= left[0] && left[2] <= left[1] && left[2] > 0, "{left:?}");

    // What takes longer than the first has time for ends with it, whatever the second asked for.
    let journal = tempfile::tempdir().expect("a folder");
    let journal = journal.path().join("journal");
    nodes[1].post("/v1/agents", &slow("slow", Some(&journal))).await.ok();
    nodes[0].knows("test.slow", &["slow"]).await;
    let long = json!({ "capability": "test.slow", "timeout_ms": 60_000, "input": { "ms": 50_000 } });
    let body = json!({ "capability": "test.a", "timeout_ms": 1_500, "input": { "route": [long] } });
    let began = std::time::Instant::now();
    nodes[0].invoke(body).await.refused(504, "TIMEOUT");
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
}

/// AOP-5, threat T20: cancelling a call cancels what its agent has called, and what that one has called.
#[tokio::test]
async fn a_cancel_reaches_the_grandchild() {
    let (nodes, _) = ring(&["a", "b"]).await;
    let folder = tempfile::tempdir().expect("a folder");
    let journal = folder.path().join("journal");
    let host = Node::builder().join(&nodes[0]).agent(slow("slow", Some(&journal))).spawn().await;
    nodes[1].knows("test.slow", &["slow"]).await;
    let long = json!({ "capability": "test.slow", "input": { "ms": 50_000 } });

    let call = nodes[0].invoke(json!({ "invocation_id": ID, "capability": "test.a", "input": { "route": [step("b"), long] } }));
    let cancelling = async {
        eventually("the last agent works", SETTLE, async || (lines(&journal, "started") == 1).then_some(())).await;
        nodes[0].delete(&format!("/v1/invocations/{ID}")).await
    };
    let (answer, cancelled) = tokio::join!(call, cancelling);

    assert_eq!(cancelled.status, 204, "{cancelled:?}");
    answer.refused(499, "CANCELLED");
    eventually("the last agent is told", SETTLE, async || (lines(&journal, "cancelled") == 1).then_some(())).await;
    drop(host);
}

#[tokio::test]
async fn what_an_agent_does_not_wait_for_ends_with_its_answer() {
    let folder = tempfile::tempdir().expect("a folder");
    let journal = folder.path().join("journal");
    let node = Node::builder().agent(slow("slow", Some(&journal))).spawn().await;
    relay(&node, "a").await;
    node.knows("test.slow", &["slow"]).await;
    let forgotten = json!({ "capability": "test.slow", "input": { "ms": 50_000 }, "forget": journal });

    node.call("test.a", json!({ "route": [forgotten] })).await;

    assert_eq!(lines(&journal, "started"), 1);
    let told = async || (lines(&journal, "cancelled") == 1).then_some(());
    eventually("nothing goes on in the name of what is over", SETTLE, told).await;
    assert_eq!(node.call("test.slow", json!({ "ms": 1 })).await["output"]["ms"], 1, "the agent is free");
}

#[tokio::test]
async fn a_parent_that_nobody_works_on_is_refused() {
    let node = Node::builder().agent(builtin("echo", "echo")).spawn().await;

    let refused = node.invoke(json!({ "capability": "echo", "input": 1, "parent": ID })).await.refused(400, "INVALID_REQUEST");
    assert_eq!(refused["details"]["path"], "/parent", "{refused}");
    assert!(refused["message"].as_str().is_some_and(|message| message.contains(ID)), "{refused}");
    node.invoke(json!({ "capability": "echo", "input": 1, "parent": "x" })).await.refused(400, "INVALID_REQUEST");
    let output = node.cli(&["call", "echo", "1", "--parent", ID]).await;
    assert!(output.code == 1 && output.stderr.contains(ID), "{output:?}");
    assert_eq!(node.cli(&["call", "echo", "1", "--parent", "x"]).await.code, 2);
}

/// Threat T20: the chain is looked at where a call arrives too, and its end must be the one that calls.
#[tokio::test]
async fn a_peer_cannot_bring_a_chain_that_is_not_its_own() {
    let node = Node::builder().agent(builtin("echo", "echo")).spawn().await;
    let echo: AgentId = node.agent_id("echo").await.parse().expect("an agent's id");
    let hostile = HostilePeer::joined(&node).await;
    let mut lane = hostile.open_lane(&node).await;
    let own = |agent: AgentId| Hop { node: hostile.forger().id(), agent };
    let others = Hop { node: Forger::new().id(), agent: Forger::agent(2) };
    let cases = [
        (vec![others, own(Forger::agent(1))], None),
        (vec![own(echo)], Some("circle")),
        (vec![own(Forger::agent(1)), others], Some("is not the one that calls")),
    ];
    for (number, (hops, fault)) in (1..).zip(cases) {
        let mut call = request(echo, "echo", &json!("in turn"));
        call.hops = hops;
        lane.call(number, call).await;
        match lane.end().await {
            Some((_, Frame::Error { failure, .. })) => {
                let failure: Failure = serde_json::from_slice(&failure).expect("a failure");
                assert_eq!(failure.code, ErrorCode::InvalidRequest, "{failure}");
                assert!(fault.is_some_and(|fault| failure.message.contains(fault)), "{fault:?}: {failure}");
            }
            end => assert!(fault.is_none() && end.is_some(), "{fault:?}: {end:?}"),
        }
    }
    assert!(lane.is_alive().await, "a refused chain is no breach of the protocol");
}
