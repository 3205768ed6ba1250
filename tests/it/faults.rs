//! Nodes that die or stand still with calls in hand: what has surely not begun is done elsewhere, what may have been done is not done again
//! without leave, and whoever stood still is called again once it goes on. What was done is counted by the agents, not by the nodes.
//! (The same once chunks of the answer have come: `streaming`; agents that die alone: `invocation`.)

use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{
    Node, SETTLE, builtin, eventually, stepper,
    stepping::{Two, stepping, until_count},
    with,
};

/// Within this time a node that stands still is noticed, on a busy machine.
const NOTICED: Duration = Duration::from_secs(5);

/// MEAP-9, F1: what stands in line at a node that dies has surely not begun; it is done elsewhere, once.
#[tokio::test]
async fn a_call_that_had_not_begun_when_its_node_died_is_done_elsewhere_once() {
    let Two { caller, mut first, second, journals } = Two::start(false).await;
    let blocking = with(stepping("test.two", &long()), json!({ "agent_id": "first" }));
    let _blocking = tokio::spawn(first.request(Method::POST, "/v1/invoke").json(&blocking).send());
    until_count(&journals[0], "started", 1).await;

    let killing = async {
        let in_line = async || (first.agent("first").await["status"]["queue"] == 1).then_some(());
        eventually("the call stands in line", SETTLE, in_line).await;
        first.kill().await;
    };
    let (answer, ()) = tokio::join!(caller.invoke(stepping("test.two", &[json!({ "output": "done" })])), killing);

    let answer = answer.ok();
    assert_eq!((&answer["output"], &answer["node_id"], &answer["attempts"]), (&json!("done"), &json!(second.id()), &json!(2)), "{answer}");
    assert_eq!((journals[0].count("started"), journals[1].count("started")), (1, 1), "the first one began with what blocked it alone");
}

/// MEAP-9, F1, F9: what an agent works on when its node dies may have been done; nobody does it again.
#[tokio::test]
async fn a_call_whose_node_died_in_the_middle_is_not_repeated() {
    let Two { caller, mut first, second, journals } = Two::start(false).await;

    let killing = async {
        until_count(&journals[0], "started", 1).await;
        first.kill().await;
    };
    let asked = Instant::now();
    let (answer, ()) = tokio::join!(caller.invoke(stepping("test.two", &long())), killing);

    is_unknown(&answer.refused(502, "AGENT_FAILED"));
    assert!(asked.elapsed() < SETTLE, "{:?}", asked.elapsed());
    assert_eq!(journals[1].count("started"), 0, "nobody else was asked");
    // The next call is another one.
    let answer = caller.invoke(stepping("test.two", &[json!({ "output": "next" })])).await.ok();
    assert_eq!((&answer["output"], &answer["node_id"]), (&json!("next"), &json!(second.id())), "{answer}");
    assert_eq!(journals[1].count("started"), 1);
}

/// AOP-4, MEAP-9, F1, F9: with a key, or where the agents say that it does no harm, it is done again, once.
#[tokio::test]
async fn a_repeatable_call_whose_node_died_in_the_middle_is_done_again_once() {
    for (idempotent, more) in [(true, json!({})), (false, json!({ "idempotency_key": "order-11" }))] {
        let Two { caller, mut first, second, journals } = Two::start(idempotent).await;
        // Only the first agent takes long, so that the second has an answer.
        let steps = [json!({ "ms": 60_000, "of": "first" }), json!({ "output": "done" })];

        let killing = async {
            until_count(&journals[0], "started", 1).await;
            first.kill().await;
        };
        let (answer, ()) = tokio::join!(caller.invoke(with(stepping("test.two", &steps), more.clone())), killing);

        let answer = answer.ok();
        assert_eq!(
            (&answer["output"], &answer["node_id"], &answer["attempts"]),
            (&json!("done"), &json!(second.id()), &json!(2)),
            "{answer}"
        );
        assert_eq!((journals[0].count("started"), journals[1].count("started")), (1, 1), "idempotent: {idempotent}");
    }
}

/// MEAP-9, F13, F14: a node that stands still in the middle of a call costs its caller a word, not its patience; the call is not repeated, not
/// even when the node goes on, and the node is called again without being joined anew.
#[tokio::test]
async fn a_call_whose_node_stands_still_ends_with_a_word_and_is_not_repeated() {
    let Two { caller, first, second, journals } = Two::start(false).await;

    let stopping = async {
        until_count(&journals[0], "started", 1).await;
        first.stop().await;
        Instant::now()
    };
    let (answer, stopped) = tokio::join!(caller.invoke(stepping("test.two", &long())), stopping);

    is_unknown(&answer.refused(502, "AGENT_FAILED"));
    assert!(stopped.elapsed() < NOTICED, "{:?}", stopped.elapsed());
    let next = stepping("test.two", &[json!({ "output": "next" })]);
    for _ in 0..5 {
        let answer = caller.invoke(next.clone()).await.ok();
        assert_eq!(answer["node_id"], second.id(), "others go on: {answer}");
    }
    first.cont();
    until_count(&journals[0], "cancelled", 1).await;
    let back = async || {
        let answer = caller.invoke(with(next.clone(), json!({ "agent_id": "first" }))).await;
        (answer.status == 200).then_some(answer.body)
    };
    let answer = eventually("it is called again", SETTLE * 2, back).await;
    assert_eq!((&answer["output"], &answer["node_id"]), (&json!("next"), &json!(first.id())), "{answer}");
    assert_eq!((journals[0].count("started"), journals[1].count("started")), (2, 5), "nothing was done twice");
}

/// MEAP-9, F13: the sole agent of a capability stands still: a clear word in time, each time, while calls of others go on; then it serves.
#[tokio::test]
async fn calls_of_the_sole_agent_fail_in_time_while_it_stands_still() {
    let caller = Node::builder().agent(builtin("echo", "echo")).spawn().await;
    let builder = Node::builder();
    let (agent, journal) = stepper("sole", builder.home(), json!({ "id": "test.sole" }));
    let frozen = builder.join(&caller).agent(agent).spawn().await;
    let other = Node::builder().join(&caller).agent(builtin("other", "text-analysis")).spawn().await;
    caller.knows("test.sole", &["sole"]).await;
    caller.knows("text-analysis", &["other"]).await;
    let ask = || caller.invoke(stepping("test.sole", &[json!({ "output": "here" })]));
    assert_eq!(ask().await.ok()["output"], "here");

    frozen.stop().await;
    let asking = async {
        for _ in 0..3 {
            let asked = Instant::now();
            let answer = ask().await;
            let error = &answer.body["error"];
            assert!(["UNAVAILABLE", "CAPABILITY_NOT_FOUND"].contains(&error["code"].as_str().unwrap_or_default()), "{answer:?}");
            assert_eq!(error["retryable"], true, "{error}");
            assert!(asked.elapsed() < NOTICED, "{:?}", asked.elapsed());
        }
    };
    let others = async {
        for number in 0..20 {
            assert_eq!(caller.call("echo", json!(number)).await["output"], number);
            assert_eq!(caller.call("text-analysis", json!({ "text": "a word" })).await["node_id"], other.id());
        }
    };
    tokio::join!(asking, others);
    assert_eq!(journal.count("started"), 1, "what failed was not begun");

    frozen.cont();
    let back = async || Some(ask().await).filter(|answer| answer.status == 200);
    assert_eq!(eventually("it serves again", SETTLE * 2, back).await.ok()["node_id"], frozen.id());
}

/// MEAP-9, MEAP-4: a deadline that leaves no time to reach a node says nothing about its agents, neither to this client nor to the others.
#[tokio::test]
async fn a_deadline_too_short_to_reach_a_node_is_held_against_nobody() {
    let caller = Node::first().await;
    let builder = Node::builder();
    let (agent, journal) = stepper("sole", builder.home(), json!({ "id": "test.sole" }));
    let frozen = builder.join(&caller).agent(agent).spawn().await;
    caller.knows("test.sole", &["sole"]).await;
    let call = stepping("test.sole", &[json!({ "output": "here" })]);

    frozen.stop().await;
    for _ in 0..3 {
        caller.invoke(with(call.clone(), json!({ "timeout_ms": 20 }))).await.refused(504, "TIMEOUT");
        assert_eq!(caller.names("test.sole").await, ["sole"], "it is not taken for down");
    }
    frozen.cont();

    let held = caller.get("/v1/trust").await.ok();
    let rows = held["agents"].as_array().expect("rows");
    assert!(rows.iter().all(|row| row["name"] != "sole"), "{held}");
    assert_eq!(caller.invoke(call).await.ok()["output"], "here");
    assert_eq!(journal.count("started"), 1, "what had no time was not begun");
}

/// Work that does not end within a test.
fn long() -> [Value; 2] {
    [json!({ "ms": 60_000 }), json!({ "output": "late" })]
}

/// The error of a call of which nobody knows what became of it.
fn is_unknown(error: &Value) {
    assert_eq!((&error["details"]["outcome"], &error["details"]["attempts"]), (&json!("unknown"), &json!(1)), "{error}");
}
