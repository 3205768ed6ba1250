//! Limits on how often: for each peer, for each agent, and for the clients of a node.

use meshwork::{
    model::{AgentId, ErrorCode, Failure},
    wire::invocation::Frame,
};
use reqwest::{Method, header::RETRY_AFTER};
use serde_json::{Value, json};

use crate::support::{
    Node, SETTLE, builtin, eventually,
    peer::{HostilePeer, RawLane, request},
    stepper,
    stepping::until_count,
    with,
};

/// Calls `agent` so often at once, and gives the failures.
async fn burst(lane: &mut RawLane, agent: AgentId, calls: u64) -> Vec<Failure> {
    let frames: Vec<Frame> = (0..calls).map(|id| Frame::Request { id, request: Box::new(request(agent, "echo", &json!(id))) }).collect();
    lane.send(&frames).await;
    let mut failures = Vec::new();
    for _ in 0..calls {
        // An end that is no error is a result.
        if let (_, Frame::Error { failure, .. }) = lane.end().await.expect("every call is answered") {
            failures.push(serde_json::from_slice(&failure).expect("a failure"));
        }
    }
    failures
}

fn one_of(name: &str, limit: Value) -> Value {
    with(builtin(name, "echo"), json!({ "rate_limit": limit }))
}

/// MEAP-3: a peer is known by its key, and each has a budget of its own; so have the node's own clients.
#[tokio::test]
async fn a_peer_that_calls_too_often_is_told_when_to_come_back() {
    let limits = "[limits]\ncalls_per_peer_per_s = 1\ncalls_per_peer_burst = 5\n";
    let node = Node::builder().config(limits).agent(builtin("echo", "echo")).spawn().await;
    let agent: AgentId = node.agent_id("echo").await.parse().expect("an agent's id");
    let (greedy, modest) = (HostilePeer::joined(&node).await, HostilePeer::joined(&node).await);
    let (mut lane, mut other) = (greedy.open_lane(&node).await, modest.open_lane(&node).await);

    let failures = burst(&mut lane, agent, 40).await;

    // A second or two may pass on a busy machine.
    assert!((30..=35).contains(&failures.len()), "{} of 40 calls were refused", failures.len());
    for failure in &failures {
        assert_eq!((failure.code, &failure.details["scope"]), (ErrorCode::RateLimitExceeded, &json!("peer")), "{failure}");
        assert!(failure.retryable && failure.retry_after_ms().is_some_and(|ms| (1..=1_000).contains(&ms)), "{failure}");
    }
    assert_eq!(burst(&mut other, agent, 5).await, [], "another peer has a budget of its own");
    assert_eq!(node.call("echo", json!("mine")).await["output"], "mine");
    // A second lane is the same peer.
    let mut second = greedy.open_lane(&node).await;
    assert!(!burst(&mut second, agent, 5).await.is_empty());
}

/// MEAP-3: an agent names its own rate; a client of the API sees the hint as HTTP has it, and the agent's name does not suffer.
#[tokio::test]
async fn an_agent_that_is_called_too_often_refuses_with_a_hint() {
    let host = Node::builder().agent(one_of("shy", json!({ "per_s": 0.01, "burst": 2 }))).spawn().await;
    let caller = Node::builder().join(&host).spawn().await;
    caller.knows("echo", &["shy"]).await;
    caller.call("echo", json!(1)).await;
    host.call("echo", json!(2)).await;

    for node in [&caller, &host] {
        let body = json!({ "capability": "echo", "input": 3 });
        let refused = node.request(Method::POST, "/v1/invoke").json(&body).send().await.expect("an answer");
        let seconds = refused.headers()[RETRY_AFTER].to_str().expect("ASCII").parse::<u64>().expect("a number of seconds");
        assert_eq!(refused.status().as_u16(), 429);
        let error: Value = refused.json().await.expect("a document");
        let details = &error["error"]["details"];
        assert_eq!((&error["error"]["code"], &details["scope"]), (&json!("RATE_LIMIT_EXCEEDED"), &json!("agent")), "{error}");
        let ms = details["retry_after_ms"].as_u64().expect("a hint");
        assert!((1..=100_000).contains(&ms) && seconds == ms.div_ceil(1_000), "{error}");
    }
    let trust = caller.get("/v1/trust").await.ok();
    assert_eq!(trust["agents"][0]["failures"].as_f64(), Some(0.0), "a refusal is no failure: {trust}");
}

/// MEAP-3: what an agent has no place for does not use up its rate, and a place is no way around the rate.
#[tokio::test]
async fn a_call_that_finds_no_place_costs_an_agent_nothing_of_its_rate() {
    let host = Node::builder();
    let (agent, journal) = stepper("narrow", host.home(), json!({ "id": "test.narrow" }));
    let host = host.agent(with(agent, json!({ "concurrency": 1, "queue": 0, "rate_limit": { "per_s": 0.001, "burst": 2 } }))).spawn().await;
    let caller = Node::builder().join(&host).spawn().await;
    caller.knows("test.narrow", &["narrow"]).await;
    let does = |steps: Value| json!({ "capability": "test.narrow", "input": { "steps": steps } });
    let busy = host.stream(does(json!([{ "chunk": 1 }, { "ms": 30_000 }]))).await;
    until_count(&journal, "started", 1).await;

    for node in [&host, &caller, &host, &caller] {
        node.invoke(does(json!([{ "output": 1 }]))).await.error("BUSY");
    }
    drop(busy);

    let served = async || Some(host.invoke(does(json!([{ "output": 2 }]))).await).filter(|answer| answer.status == 200);
    eventually("the second of two is served", SETTLE, served).await;
    for node in [&host, &caller] {
        node.invoke(does(json!([{ "output": 3 }]))).await.error("RATE_LIMIT_EXCEEDED");
    }
}

/// AOP-4, MEAP-3: a call that one agent has no room for goes to another.
#[tokio::test]
async fn a_call_over_the_limit_of_one_agent_goes_to_another() {
    let host = Node::builder().agent(one_of("shy", json!({ "per_s": 0.001 }))).agent(builtin("bold", "echo")).spawn().await;
    let caller = Node::builder().join(&host).spawn().await;
    caller.knows("echo", &["bold", "shy"]).await;
    for number in 0..20 {
        assert_eq!(caller.call("echo", json!(number)).await["output"], number);
    }
}

#[tokio::test]
async fn clients_of_the_api_share_one_budget_for_work() {
    let limits = "[limits]\napi_requests_per_s = 1\napi_requests_burst = 3\n";
    let node = Node::builder().config(limits).agent(builtin("echo", "echo")).spawn().await;
    let mut refused = 0;
    for number in 0..20 {
        let answer = node.invoke(json!({ "capability": "echo", "input": number })).await;
        if answer.status == 429 {
            let error = answer.refused(429, "RATE_LIMIT_EXCEEDED");
            assert_eq!(error["details"]["scope"], "clients", "{error}");
            refused += 1;
        }
        node.get("/v1/node").await.ok();
    }
    assert!(refused > 10, "{refused} of 20 requests were refused");
}
