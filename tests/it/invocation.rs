//! Calling agents: from anywhere, in time, once, and past those that fail.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use futures::future::join_all;
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{
    Answer, Node, SETTLE, builtin, eventually, script, slow, stepper,
    stepping::{stepping, until_count},
    with,
};

/// The document that the program's own demonstration works on.
const SAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/agents/builtin/assets/sample.pdf");

#[tokio::test]
async fn any_node_calls_an_agent_on_any_other() {
    let first = Node::first().await;
    let host = Node::builder().join(&first).agent(builtin("echo", "echo")).spawn().await;
    let third = Node::builder().join(&first).spawn().await;
    let input = json!({ "text": "grüße", "list": [1, 2.5, null, true], "${x}": {} });

    for node in [&first, &host, &third] {
        node.knows("echo", &["echo"]).await;
        let answer = node.call("echo", input.clone()).await;
        assert_eq!(answer["output"], input);
        assert_eq!((&answer["node_id"], &answer["attempts"]), (&json!(host.id()), &json!(1)), "{answer}");
        assert_eq!(answer["agent_id"], host.agent_id("echo").await.as_str());
        assert!(answer["latency_ms"].is_number() && answer["invocation_id"].as_str().is_some_and(|id| id.len() == 32), "{answer}");
    }
}

/// MEAP-6: of each connected peer it is told what the calls to it and from it came to, and that begins anew with its connection.
#[tokio::test]
async fn the_calls_of_each_connection_are_counted_by_how_they_ended() {
    let first = Node::builder().agent(builtin("echo", "echo")).spawn().await;
    let builder = Node::builder();
    let (agent, journal) = stepper("worker", builder.home(), json!({ "id": "test.work" }));
    let second = builder.agent(agent).join(&first).spawn().await;
    let idle = Node::builder().join(&first).spawn().await;
    first.meets(&idle).await;
    first.knows("test.work", &["worker"]).await;
    second.knows("echo", &["echo"]).await;
    const WORK_MS: u64 = 100;

    for _ in 0..3 {
        first.invoke(stepping("test.work", &[json!({ "ms": WORK_MS }), json!({ "output": 1 })])).await.ok();
    }
    first.invoke(stepping("test.work", &[json!({ "error": { "message": "no" } })])).await.refused(502, "AGENT_FAILED");
    let late = with(stepping("test.work", &[json!({ "ms": 400 }), json!({ "output": 1 })]), json!({ "timeout_ms": 200 }));
    first.invoke(late).await.refused(504, "TIMEOUT");
    let served = async || (first.invoke(stepping("test.work", &[json!({ "output": 1 })])).await.status == 200).then_some(());
    eventually("it serves again", SETTLE, served).await;
    let before = calls_of(&first, &second).await;
    let started = journal.count("started");
    let id = format!("{:032x}", 7);
    let taken_back = first.invoke(with(stepping("test.work", &[json!({ "ms": 30_000 })]), json!({ "invocation_id": id })));
    let (answer, ()) = tokio::join!(taken_back, async {
        until_count(&journal, "started", started + 1).await;
        first.send(first.request(Method::DELETE, &format!("/v1/invocations/{id}"))).await.ok();
    });
    answer.error("CANCELLED");
    second.call("echo", json!(1)).await;

    let counted = calls_of(&first, &second).await;
    let (sent, failed) = (counted["sent"].as_u64().expect("a count"), counted["failed"].as_u64().expect("a count"));
    assert!(sent >= 7 && failed >= 2 && failed <= sent - 5, "{counted}");
    assert_eq!(
        (&json!(sent - 1), &counted["failed"]),
        (&before["sent"], &before["failed"]),
        "to take a call back is no failure of the peer"
    );
    assert_eq!(counted["received"], 1, "{counted}");
    assert!(counted["latency_ms"].as_f64().is_some_and(|ms| (WORK_MS as f64 * 0.7..5_000.0).contains(&ms)), "{counted}");
    let mirrored = calls_of(&second, &first).await;
    assert_eq!((&mirrored["received"], &mirrored["sent"], &mirrored["failed"]), (&counted["sent"], &json!(1), &json!(0)), "{mirrored}");
    let nothing = json!({ "sent": 0, "received": 0, "failed": 0, "latency_ms": null });
    assert_eq!(calls_of(&first, &idle).await, nothing);
    let shown = first.cli(&["peers", "--long"]).await;
    let row = shown.text().lines().find(|line| line.starts_with(second.id())).expect("a row").to_owned();
    let words: Vec<&str> = row.split("  ").map(str::trim).filter(|word| !word.is_empty()).collect();
    let (sent, failed) = (sent.to_string(), failed.to_string());
    assert!(words.windows(2).any(|pair| pair == [sent.as_str(), failed.as_str()]), "{words:?}");

    let second = second.restart().await;
    first.meets(&second).await;
    assert_eq!(calls_of(&first, &second).await, nothing);
}

/// What a node tells of the calls to and from a peer.
async fn calls_of(node: &Node, peer: &Node) -> Value {
    let listing = node.get("/v1/peers").await.ok();
    let rows = listing["peers"].as_array().unwrap_or_else(|| panic!("peers: {listing}"));
    let row = rows.iter().find(|row| row["node_id"] == peer.id()).unwrap_or_else(|| panic!("no row of {}: {listing}", peer.id()));
    row["calls"].clone()
}

#[tokio::test]
async fn the_text_of_a_pdf_on_another_node_is_extracted_and_worked_on() {
    let host = Node::builder()
        .agent(builtin("reader", "pdf_text_extraction"))
        .agent(builtin("analyst", "text-analysis"))
        .agent(builtin("writer", "summarization"))
        .spawn()
        .await;
    let caller = Node::builder().join(&host).spawn().await;
    caller.knows("pdf_text_extraction", &["reader"]).await;
    caller.knows("text-processing", &["analyst", "writer"]).await;
    let pdf = fs::read(SAMPLE).expect("the sample document");
    let document = format!("data:application/pdf;base64,{}", STANDARD.encode(pdf));

    let extracted = caller.call("pdf_text_extraction", json!({ "document": document })).await["output"].take();
    let text = extracted["text"].as_str().expect("a text");
    let analysis = caller.call("text-analysis", json!({ "text": text })).await["output"].take();
    let summary = caller.call("summarization", json!({ "text": text, "max_sentences": 3 })).await["output"].take();

    assert!(text.contains("mesh") && text.len() > 500, "{text}");
    assert_eq!(analysis["language"]["code"], "en", "{analysis}");
    assert!(analysis["keywords"].as_array().is_some_and(|keywords| !keywords.is_empty()), "{analysis}");
    let short = summary["summary"].as_str().expect("a summary");
    assert!(!short.is_empty() && short.len() < text.len() / 2, "{short}");
}

/// AOP-4, MAOP-3: a node that dies with calls in hand costs no caller its answer.
#[tokio::test]
async fn calls_to_a_dying_node_are_served_by_another() {
    let caller = Node::first().await;
    let builder = Node::builder();
    let journal = builder.home().join("journal");
    let many = |definition| with(definition, json!({ "concurrency": 4, "queue": 32 }));
    let mut dying = builder.join(&caller).agent(many(slow("dying", Some(&journal)))).spawn().await;
    let living = Node::builder().join(&caller).agent(many(slow("living", None))).spawn().await;
    caller.knows("test.slow", &["dying", "living"]).await;

    let body = json!({ "capability": "test.slow", "input": { "ms": 300 }, "timeout_ms": 30_000 });
    let calls = join_all((0..20).map(|_| caller.invoke(body.clone())));
    let killing = async {
        eventually("the dying node has calls in hand", SETTLE, async || contains(&journal, "started").then_some(())).await;
        dying.kill().await;
    };
    let (answers, ()) = tokio::join!(calls, killing);

    let answers: Vec<Value> = answers.into_iter().map(Answer::ok).collect();
    assert!(answers.iter().any(|answer| answer["node_id"] == living.id() && answer["attempts"].as_u64() > Some(1)), "{answers:?}");
}

/// MEAP-9: a node that hangs is noticed although its connections stay open.
#[tokio::test]
async fn calls_to_a_frozen_node_are_served_by_another() {
    let caller = Node::builder().config("[routing]\nexploration = 0.0\nsuspect_ms = 1000\n").spawn().await;
    let frozen = Node::builder().join(&caller).agent(claims("frozen", "echo.py", 1, true)).spawn().await;
    let _other = Node::builder().join(&caller).agent(claims("other", "echo.py", 900, true)).spawn().await;
    caller.knows("test.claims", &["frozen", "other"]).await;

    frozen.stop().await;
    let asked = Instant::now();
    let answer = caller.call("test.claims", json!("hello?")).await;

    assert_eq!((&answer["output"], &answer["attempts"]), (&json!("hello?"), &json!(2)), "{answer}");
    assert!(asked.elapsed() < Duration::from_secs(5), "{:?}", asked.elapsed());
    frozen.cont();
    caller.knows("test.claims", &["frozen", "other"]).await;
}

#[tokio::test]
async fn a_call_with_a_key_survives_the_crash_of_its_agent() {
    let caller = Node::builder().config("[routing]\nexploration = 0.0\n").spawn().await;
    let _crashing = Node::builder().join(&caller).agent(claims("crashing", "crash.py", 1, false)).spawn().await;
    let steady = Node::builder().join(&caller).agent(claims("steady", "echo.py", 900, false)).spawn().await;
    caller.knows("test.claims", &["crashing", "steady"]).await;

    let body = json!({ "capability": "test.claims", "input": { "crash": true }, "idempotency_key": "survivor" });
    let answer = caller.invoke(body).await.ok();

    assert_eq!((&answer["output"], &answer["attempts"]), (&json!({ "crash": true }), &json!(2)), "{answer}");
    assert_eq!(answer["node_id"], steady.id());
}

#[tokio::test]
async fn a_call_that_may_have_had_effects_is_not_repeated_without_leave() {
    let caller = Node::builder().config("[routing]\nexploration = 0.0\n").spawn().await;
    let _crashing = Node::builder().join(&caller).agent(claims("crashing", "crash.py", 1, false)).spawn().await;
    let _steady = Node::builder().join(&caller).agent(claims("steady", "echo.py", 900, false)).spawn().await;
    caller.knows("test.claims", &["crashing", "steady"]).await;

    let answer = caller.invoke(json!({ "capability": "test.claims", "input": { "crash": true } })).await;

    let error = answer.refused(502, "AGENT_FAILED");
    assert_eq!(error["retryable"], true, "{error}");
}

#[tokio::test]
async fn a_deadline_is_kept_by_near_and_far_agents() {
    let mute = |name: &str| script(name, "never.py", &[], json!({ "id": format!("test.{name}") }));
    let host = Node::builder().agent(mute("one")).agent(mute("two")).spawn().await;
    let far = Node::builder().join(&host).spawn().await;

    // A program that does not answer keeps its place for a while, so each call has an agent of its own.
    for (node, name) in [(&host, "one"), (&far, "two")] {
        let capability = format!("test.{name}");
        node.knows(&capability, &[name]).await;
        let asked = Instant::now();
        let answer = node.invoke(json!({ "capability": capability, "input": null, "timeout_ms": 700 })).await;
        assert!(asked.elapsed() < Duration::from_millis(1_700), "{:?}", asked.elapsed());
        answer.refused(504, "TIMEOUT");
    }
}

/// Threat T4: a caller's short deadline takes a program from nobody, however often: it is told that nobody waits, and goes on.
#[tokio::test]
async fn a_short_deadline_costs_a_program_nothing() {
    let node = Node::builder().agent(slow("slow", None)).spawn().await;
    node.knows("test.slow", &["slow"]).await;

    for round in 0..5 {
        let call = json!({ "capability": "test.slow", "input": { "ms": 20_000 }, "timeout_ms": 100 });
        node.invoke(call).await.refused(504, "TIMEOUT");
        assert_eq!(node.agent("slow").await["status"]["state"], "available", "round {round}");
    }

    node.call("test.slow", json!({ "ms": 1 })).await;
    assert!(!node.log().contains("an agent's process"), "{}", node.log());
}

#[tokio::test]
async fn a_cancelled_call_is_cancelled_at_its_agent() {
    let builder = Node::builder();
    let journal = builder.home().join("journal");
    let host = builder.agent(slow("slow", Some(&journal))).spawn().await;
    let caller = Node::builder().join(&host).spawn().await;
    caller.knows("test.slow", &["slow"]).await;
    let id = "00112233445566778899aabbccddeeff";

    let call = caller.invoke(json!({ "invocation_id": id, "capability": "test.slow", "input": { "ms": 20_000 } }));
    let cancelling = async {
        eventually("the agent works", SETTLE, async || contains(&journal, &format!("started {id}")).then_some(())).await;
        caller.delete(&format!("/v1/invocations/{id}")).await
    };
    let (answer, cancelled) = tokio::join!(call, cancelling);

    assert!((200..300).contains(&cancelled.status), "{cancelled:?}");
    answer.refused(499, "CANCELLED");
    eventually("the agent is told", SETTLE, async || contains(&journal, &format!("cancelled {id}")).then_some(())).await;
    assert_eq!(caller.call("test.slow", json!({ "ms": 1 })).await["output"]["ms"], 1, "the agent goes on");
}

#[tokio::test]
async fn an_invocation_that_nobody_knows_cannot_be_cancelled() {
    let node = Node::first().await;

    let answer = node.delete("/v1/invocations/ffffffffffffffffffffffffffffffff").await;

    assert_eq!((answer.status, answer.body["error"]["retryable"].clone()), (404, json!(false)), "{answer:?}");
}

#[tokio::test]
async fn calls_with_one_key_are_done_once() {
    let builder = Node::builder();
    let file = builder.home().join("executions");
    let path = file.to_str().expect("temporary folders have plain names");
    let agent = with(script("counter", "count.py", &[path], json!({ "id": "test.count" })), json!({ "concurrency": 2 }));
    let host = builder.agent(agent).spawn().await;
    let caller = Node::builder().join(&host).spawn().await;
    caller.knows("test.count", &["counter"]).await;
    let body = json!({ "capability": "test.count", "input": { "ms": 200 }, "idempotency_key": "order-7" });

    let together = join_all((0..8).map(|_| caller.invoke(body.clone()))).await;
    let again = caller.invoke(body.clone()).await;

    for answer in together.into_iter().chain([again]) {
        assert_eq!(answer.ok()["output"]["executions"], 1);
    }
    let other = with(body.clone(), json!({ "input": { "ms": 1 } }));
    caller.invoke(other).await.refused(409, "CONFLICT");
    let unrelated = with(body, json!({ "idempotency_key": "order-8" }));
    assert_eq!(caller.invoke(unrelated).await.ok()["output"]["executions"], 2);
    assert_eq!(fs::read_to_string(&file).expect("the journal").lines().count(), 2);
}

/// Threat T23: results for which there is no room are not kept; whoever waited has one, and the key is then free.
#[tokio::test]
async fn a_result_too_large_to_be_kept_reaches_who_waits_and_frees_its_key() {
    let builder = Node::builder().config("[limits]\nresults_kept_bytes_max = 8\n");
    let file = builder.home().join("executions");
    let path = file.to_str().expect("temporary folders have plain names");
    let agent = with(script("counter", "count.py", &[path], json!({ "id": "test.count" })), json!({ "concurrency": 2 }));
    let node = builder.agent(agent).spawn().await;
    node.knows("test.count", &["counter"]).await;
    let body = json!({ "capability": "test.count", "input": { "ms": 200 }, "idempotency_key": "order-7" });

    let together = join_all((0..4).map(|_| node.invoke(body.clone()))).await;
    let again = node.invoke(body).await;

    assert!(together.into_iter().all(|answer| answer.ok()["output"]["executions"] == 1));
    assert_eq!(again.ok()["output"]["executions"], 2);
}

/// A client that lost its connection and comes back with its key finds its call still running.
#[tokio::test]
async fn a_key_outlives_the_connection_of_its_caller() {
    let builder = Node::builder();
    let file = builder.home().join("executions");
    let path = file.to_str().expect("temporary folders have plain names");
    let host = builder.agent(script("counter", "count.py", &[path], json!({ "id": "test.count" }))).spawn().await;
    let caller = Node::builder().join(&host).spawn().await;
    caller.knows("test.count", &["counter"]).await;
    let body = json!({ "capability": "test.count", "input": { "ms": 1_500 }, "idempotency_key": "order-9" });

    let begun = async || fs::read_to_string(&file).is_ok_and(|journal| !journal.is_empty()).then_some(());
    let mut again = None;
    tokio::select! {
        biased;
        () = async {
            eventually("the first call runs", SETTLE, begun).await;
            again = Some(tokio::spawn(caller.request(Method::POST, "/v1/invoke").json(&body).send()));
            // The first request is dropped as soon as the second is on its way.
            let counted = async || (caller.get("/v1/node").await.ok()["counts"]["calls_in_flight"] == 2).then_some(());
            eventually("the second call waits", SETTLE, counted).await;
        } => {}
        _ = caller.invoke(body.clone()) => panic!("the first call ended before the second began"),
    }

    let answer = again.expect("it was sent").await.expect("it ends").expect("the node answers");
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.json::<Value>().await.expect("JSON")["output"]["executions"], 1);
    assert_eq!(fs::read_to_string(&file).expect("the journal").lines().count(), 1);
}

/// Nobody waits any more, and the agent is still being told to stop: whoever comes back is served all the same.
#[tokio::test]
async fn a_key_whose_caller_left_is_free_again() {
    let builder = Node::builder();
    let file = builder.home().join("executions");
    let path = file.to_str().expect("temporary folders have plain names");
    let host = builder.agent(script("counter", "count.py", &[path], json!({ "id": "test.count" }))).spawn().await;
    let caller = Node::builder().join(&host).spawn().await;
    caller.knows("test.count", &["counter"]).await;
    let body = json!({ "capability": "test.count", "input": { "ms": 1_000 }, "idempotency_key": "order-10" });
    let begun = async || fs::read_to_string(&file).is_ok_and(|journal| !journal.is_empty()).then_some(());

    tokio::select! {
        biased;
        () = eventually("the first call runs", SETTLE, begun) => {}
        _ = caller.invoke(body.clone()) => panic!("the first call ended before it was left"),
    }
    let left = async || (caller.get("/v1/node").await.ok()["counts"]["calls_in_flight"] == 0).then_some(());
    eventually("nobody waits for the first call", SETTLE, left).await;

    assert_eq!(caller.invoke(body).await.ok()["output"]["executions"], 2);
}

#[tokio::test]
async fn an_answer_may_come_as_an_event() {
    let node = Node::builder().agent(builtin("echo", "echo")).spawn().await;
    node.knows("echo", &["echo"]).await;
    let asked = async |capability: &str| {
        let body = json!({ "capability": capability, "input": 7, "stream": true });
        let request = node.request(Method::POST, "/v1/invoke").json(&body);
        let answer = request.send().await.expect("the node answers");
        assert_eq!(answer.headers()["content-type"], "text/event-stream");
        answer.text().await.expect("it ends")
    };

    let (good, bad) = (asked("echo").await, asked("nothing.of.this.name").await);

    assert!(good.starts_with("event: result\ndata: {") && good.contains("\"output\":7"), "{good}");
    assert!(bad.starts_with("event: error\ndata: {") && bad.contains("CAPABILITY_NOT_FOUND"), "{bad}");
}

/// Who waits for somebody else's run keeps to a deadline of its own, be it the shorter one or the longer.
#[tokio::test]
async fn a_deadline_is_kept_while_another_call_runs_under_the_key() {
    let node = Node::builder().agent(slow("slow", None)).spawn().await;
    node.knows("test.slow", &["slow"]).await;
    let in_flight = async |count: usize| {
        let counted = async || (node.get("/v1/node").await.ok()["counts"]["calls_in_flight"] == count).then_some(());
        eventually(&format!("{count} calls run"), SETTLE, counted).await;
    };
    let call = |key: &str| json!({ "capability": "test.slow", "input": { "ms": 3_000 }, "idempotency_key": key });
    let hasty = async |key: &str, timeout_ms: u64| {
        let asked = Instant::now();
        node.invoke(with(call(key), json!({ "timeout_ms": timeout_ms }))).await.refused(504, "TIMEOUT");
        asked.elapsed()
    };

    let second = async {
        in_flight(1).await;
        hasty("joined", 300).await
    };
    let (first, waited) = tokio::join!(node.invoke(call("joined")), second);
    first.ok();
    assert!(waited < Duration::from_secs(2), "{waited:?}");

    let second = async {
        in_flight(1).await;
        let patient = node.invoke(call("begun")).await;
        patient.ok()
    };
    let (_, answer) = tokio::join!(hasty("begun", 2_000), second);
    assert_eq!(answer["output"]["ms"], 3_000, "{answer}");
}

/// MAOP-3: what an agent can take is known, and more is turned away at once.
#[tokio::test]
async fn an_agent_takes_what_it_has_room_for_and_says_when_to_come_back() {
    let builder = Node::builder();
    let journal = builder.home().join("journal");
    let host = builder.agent(with(slow("slow", Some(&journal)), json!({ "concurrency": 1, "queue": 1 }))).spawn().await;
    let caller = Node::builder().join(&host).spawn().await;
    caller.knows("test.slow", &["slow"]).await;
    let call = || caller.invoke(json!({ "capability": "test.slow", "input": { "ms": 2_500 } }));

    let working = call();
    let rest = async {
        eventually("the agent works", SETTLE, async || contains(&journal, "started").then_some(())).await;
        let full = async {
            let status = async || Some(host.agent("slow").await["status"].take()).filter(|status| status["queue"] == 1);
            let status = eventually("a call waits", SETTLE, status).await;
            assert_eq!(status["in_flight"], 1, "{status}");
            call().await
        };
        tokio::join!(call(), full)
    };
    let (working, (waiting, refused)) = tokio::join!(working, rest);

    working.ok();
    waiting.ok();
    let error = refused.refused(429, "BUSY");
    assert!(error["details"]["retry_after_ms"].is_u64() && error["retryable"] == true, "{error}");
}

/// AMP-2: constraints are enforced, not only advertised.
#[tokio::test]
async fn an_agents_own_bounds_hold_for_every_caller() {
    let constraints = json!({ "max_input_length": 10, "supported_languages": ["en", "de"] });
    let agent = script("strict", "echo.py", &[], json!({ "id": "test.strict", "constraints": constraints }));
    let host = Node::builder().agent(agent).spawn().await;
    let caller = Node::builder().join(&host).spawn().await;
    caller.knows("test.strict", &["strict"]).await;
    let ask = async |node: &Node, input: Value| node.invoke(json!({ "capability": "test.strict", "input": input })).await;

    for node in [&host, &caller] {
        ask(node, json!({ "text": "äöüäöüäö", "language": "de" })).await.ok();
        let error = ask(node, json!({ "text": "12345", "more": ["678901"] })).await.refused(413, "PAYLOAD_TOO_LARGE");
        assert_eq!(error["details"]["limit"], 10, "{error}");
        let error = ask(node, json!({ "text": "oui", "language": "fr" })).await.refused(400, "INVALID_REQUEST");
        assert_eq!(error["details"]["path"], "/language", "{error}");
    }
}

#[tokio::test]
async fn a_call_costs_what_its_capability_says() {
    let capability = json!({ "id": "test.priced", "price": { "amount": "0.001", "currency": "USD", "unit": "document" } });
    let host = Node::builder().agent(script("priced", "echo.py", &[], capability)).spawn().await;
    let caller = Node::builder().join(&host).spawn().await;
    caller.knows("test.priced", &["priced"]).await;

    let answer = caller.call("test.priced", json!({})).await;

    assert_eq!((&answer["cost"]["amount"], &answer["cost"]["currency"]), (&json!("0.001"), &json!("USD")), "{answer}");
    // A decimal travels as a text, so that nothing is lost.
    assert_eq!(answer["units"], "1", "{answer}");
}

#[tokio::test]
async fn a_caller_may_choose_the_agent() {
    let host = Node::builder().agent(builtin("one", "echo")).agent(builtin("two", "echo")).spawn().await;
    let caller = Node::builder().join(&host).spawn().await;
    caller.knows("echo", &["one", "two"]).await;
    let id = host.agent_id("two").await;

    for chosen in [id.as_str(), "two"] {
        let answer = caller.invoke(json!({ "capability": "echo", "agent_id": chosen, "input": 1 })).await.ok();
        assert_eq!(answer["agent_id"], id.as_str());
    }
    let nobody = json!({ "capability": "echo", "agent_id": "three", "input": 1 });
    caller.invoke(nobody).await.refused(404, "AGENT_NOT_FOUND");
}

/// An agent for `test.claims` that claims to answer within `ms`, which decides who is asked first.
fn claims(name: &str, file: &str, ms: u64, idempotent: bool) -> Value {
    let constraints = json!({ "response_time_ms": ms });
    script(name, file, &[], json!({ "id": "test.claims", "idempotent": idempotent, "constraints": constraints }))
}

fn contains(file: &Path, words: &str) -> bool {
    fs::read_to_string(file).is_ok_and(|text| text.contains(words))
}
