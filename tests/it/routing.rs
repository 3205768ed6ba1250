//! Who is asked: liars are found out, breakers open and close, equals share, and a call can say why.

use std::{collections::BTreeMap, fs, path::Path};

use serde_json::{Value, json};

use crate::support::{Builder, Node, SETTLE, eventually, script};

/// What the caller of these tests is configured with: breakers that close soon.
const CALLER: &str = "[routing]\nbreaker_open_ms = 50\nbreaker_open_ms_max = 200\n";

/// T16, AITP-5: an agent that claims to cost nothing and take 1 ms, and fails, gets under 5 % of the calls after 50; well again, it is
/// called again.
#[tokio::test]
async fn a_liar_is_found_out_and_forgiven_once_it_keeps_its_word() {
    let builder = Node::builder();
    let mood = builder.home().join("mood");
    fs::write(&mood, "fail").expect("the mood is written");
    let liar = builder.agent(moody("liar", &mood, json!({ "response_time_ms": 1 }))).spawn().await;
    let honest = host(&liar, "honest").spawn().await;
    let decent = host(&liar, "decent").spawn().await;
    let caller = Node::builder().config(CALLER).join(&liar).spawn().await;
    caller.knows("test.offer", &["decent", "honest", "liar"]).await;
    let liars_id = liar.agent_id("liar").await;

    calls(&caller, 50).await;
    let others = [honest.agent_id("honest").await, decent.agent_id("decent").await];
    // Whoever serves first is proven first; the other one is tried by the budget of exploration until it is, too.
    let shared = async || {
        let asked = calls(&caller, 200).await;
        let share = asked.get(&liars_id).copied().unwrap_or_default();
        assert!(share < 10, "{share} of 200: {asked:?}");
        others.iter().all(|other| asked.get(other).is_some_and(|calls| *calls > 40)).then_some(())
    };
    eventually("those who keep their word share the calls", SETTLE * 2, shared).await;
    let trust = caller.get("/v1/trust").await.ok();
    let row = trust["agents"].as_array().and_then(|rows| rows.iter().find(|row| row["name"] == "liar")).expect("a row").clone();
    assert_eq!(row["standing"], "doubted", "{row}");

    fs::write(&mood, "serve").expect("the mood is written");
    let forgiven = async || {
        let asked = calls(&caller, 20).await;
        asked.get(&liars_id).is_some_and(|calls| *calls >= 5).then_some(())
    };
    eventually("the liar is called again", SETTLE * 2, forgiven).await;
}

/// How long a breaker stays open whose state a test looks at from all sides before it is half-open, in milliseconds.
const OPEN_MS: u64 = 6_000;
/// The same with the most that chance may add.
const OPEN_MS_MAX: u64 = OPEN_MS * 12 / 10;

/// MEAP-4: three failures open the breaker, and callers are told at once when to come back; one good call closes it.
#[tokio::test]
async fn a_breaker_opens_tells_when_to_come_back_and_closes_again() {
    let builder = Node::builder().config(&format!("[routing]\nbreaker_open_ms = {OPEN_MS}\n"));
    let mood = builder.home().join("mood");
    fs::write(&mood, "fail").expect("the mood is written");
    let host = Node::builder().agent(moody("moody", &mood, json!({}))).spawn().await;
    let caller = builder.join(&host).spawn().await;
    caller.knows("test.offer", &["moody"]).await;
    let ask = async || caller.invoke(json!({ "capability": "test.offer", "input": 1 })).await;

    for _ in 0..3 {
        ask().await.refused(502, "AGENT_FAILED");
    }
    let error = ask().await.refused(503, "UNAVAILABLE");
    assert!(error["message"].as_str().is_some_and(|message| message.contains("its breaker is open for another")), "{error}");
    let back = error["details"]["retry_after_ms"].as_u64();
    assert!(back.is_some_and(|ms| (1..=OPEN_MS_MAX).contains(&ms)) && error["retryable"] == true, "{error}");
    let found = caller.query(json!({ "capabilities": ["test.offer"] })).await;
    assert!(found["rejected"][0]["reason"].as_str().is_some_and(|reason| reason.contains("breaker")), "{found}");
    assert!(caller.cli(&["trust"]).await.text().contains("open for"));
    let offers = caller.cli(&["offers", "test.offer", "--json"]).await.json();
    assert_eq!(offers["declined"][0]["code"], "UNAVAILABLE", "{offers}");

    fs::write(&mood, "serve").expect("the mood is written");
    let served = async || (ask().await.status == 200).then_some(());
    eventually("the probe goes well", SETTLE, served).await;
    ask().await.ok();
    let text = caller.cli(&["trust"]).await;
    assert!(text.text().contains("closed"), "{text:?}");
}

/// MEAP-5: equals share the calls, by whatever policy, and it is the one that is configured.
#[tokio::test]
async fn equals_share_the_calls_by_every_policy() {
    let first = Node::first().await;
    let hosts = [host(&first, "a").spawn().await, host(&first, "b").spawn().await];
    let policies = [
        ("round-robin", "its turn among 2 near-equals"),
        ("least-connections", "fewest connections among 2 near-equals"),
        ("least-load", "least load among 2 near-equals"),
    ];
    for (balance, why) in policies {
        let caller = Node::builder().config(&format!("[routing]\nbalance = \"{balance}\"\n")).join(&first).spawn().await;
        caller.knows("test.offer", &["a", "b"]).await;
        // Whoever serves first is proven first; the other one has to be explored before they are equals.
        let ids = [hosts[0].agent_id("a").await, hosts[1].agent_id("b").await];
        let shared = async || {
            let attempts = attempts(&caller, 60).await;
            let asked = tally(&attempts, "agent_id");
            let shared = ids.iter().all(|id| (15..=45).contains(&asked.get(id).copied().unwrap_or_default()));
            shared.then(|| tally(&attempts, "why"))
        };
        let reasons = eventually(&format!("equals share the calls by {balance}"), SETTLE * 2, shared).await;
        for (reason, count) in &reasons {
            // One that stands alone for a while, because the other has just been late, needs no policy.
            let alone = reason == "best score" || reason.starts_with("exploration");
            assert!(reason == why || alone, "{count} calls by {balance}: {reasons:?}");
        }
        assert!(reasons.get(why).is_some_and(|count| *count >= 30), "{balance}: {reasons:?}");
    }
}

/// MEAP-9, AITP-5: a call says who was considered with which terms, who was left out and why, who was chosen and why, and what each
/// attempt came to.
#[tokio::test]
async fn a_call_explains_its_choice_and_its_attempts() {
    let caller = Node::builder().config("[routing]\nexploration = 0.0\n").spawn().await;
    let crashing = script("crashing", "crash.py", &[], json!({ "id": "test.offer", "constraints": { "response_time_ms": 1 } }));
    let _crashing = Node::builder().join(&caller).agent(crashing).spawn().await;
    let steady = host(&caller, "steady").spawn().await;
    caller.knows("test.offer", &["crashing", "steady"]).await;

    let body = json!({ "capability": "test.offer", "input": { "crash": true }, "idempotency_key": "k", "explain": true });
    let answer = caller.invoke(body).await.ok();

    let explain = &answer["explain"];
    assert_eq!(explain["candidates"][0]["name"], "crashing", "{explain}");
    for candidate in explain["candidates"].as_array().expect("candidates") {
        assert!(candidate["terms"]["trust"].is_number() && candidate["standing"] == "unproven", "{candidate}");
    }
    let [failed, served] = explain["attempts"].as_array().expect("attempts").as_slice() else { panic!("two attempts: {explain}") };
    assert_eq!((&failed["name"], &failed["begun"], &failed["why"]), (&json!("crashing"), &json!(true), &json!("best score")));
    assert!(failed["outcome"].as_str().is_some_and(|outcome| outcome.starts_with("AGENT_FAILED")), "{failed}");
    assert_eq!((&served["name"], &served["outcome"]), (&json!("steady"), &json!("success")));
    assert!(served["started_ms"].as_f64() >= failed["ended_ms"].as_f64() && explain["total_ms"].is_number(), "{explain}");

    let told = caller.cli(&["call", "test.offer", "[1]", "--explain", "--agent", &steady.agent_id("steady").await]).await;
    assert_eq!(told.json(), json!([1]));
    assert!(told.stderr.contains("the caller named it") && told.stderr.contains("unproven"), "{}", told.stderr);
    // The word that it is down may still be on its way, so that it seems up before it is.
    let crash = async || {
        let lost = caller.cli(&["call", "test.offer", "{\"crash\":true}", "--explain", "--agent", "crashing"]).await;
        Some(lost).filter(|lost| !lost.stderr.contains("UNAVAILABLE"))
    };
    let lost = eventually("it is up again", SETTLE, crash).await;
    assert!(lost.code == 1 && lost.stderr.contains("the caller named it"), "{lost:?}");
    assert!(lost.stderr.contains("\nattempt 1: AGENT_FAILED: "), "{lost:?}");
}

/// A node beside an agent that keeps its word, at a normal price.
fn host(joined: &Node, name: &str) -> Builder {
    let price = json!({ "amount": "0.01", "currency": "USD", "unit": "call" });
    let capability = json!({ "id": "test.offer", "idempotent": true, "constraints": { "response_time_ms": 50 }, "price": price });
    Node::builder().join(joined).agent(script(name, "echo.py", &[], capability))
}

/// An agent for `test.offer` that serves or fails as the file says.
fn moody(name: &str, mood: &Path, constraints: Value) -> Value {
    let capability = json!({ "id": "test.offer", "constraints": constraints });
    script(name, "moody.py", &[mood.to_str().expect("temporary folders have plain names")], capability)
}

/// Makes calls one after the other, whatever comes of them; how often each agent was asked.
async fn calls(caller: &Node, count: u32) -> BTreeMap<String, u32> {
    tally(&attempts(caller, count).await, "agent_id")
}

/// How often a field of these attempts says what.
fn tally(attempts: &[Value], field: &str) -> BTreeMap<String, u32> {
    let mut counts = BTreeMap::new();
    for attempt in attempts {
        *counts.entry(attempt[field].as_str().unwrap_or_else(|| panic!("{field}: {attempt}")).to_owned()).or_default() += 1;
    }
    counts
}

/// The attempts of calls that are made one after the other.
async fn attempts(caller: &Node, count: u32) -> Vec<Value> {
    let mut attempts = Vec::new();
    for number in 0..count {
        let answer = caller.invoke(json!({ "capability": "test.offer", "input": number, "explain": true })).await;
        let explain = if answer.status == 200 { &answer.body["explain"] } else { &answer.body["error"]["details"]["explain"] };
        attempts.extend(explain["attempts"].as_array().unwrap_or_else(|| panic!("attempts: {answer:?}")).iter().cloned());
    }
    attempts
}
