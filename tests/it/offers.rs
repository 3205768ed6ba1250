//! Negotiation: agents are asked whether they could do something, when and for how much, before anybody calls.

use std::{
    fs,
    time::{Duration, Instant},
};

use meshwork::{
    model::Price,
    wire::{
        directory::{Control, Record, Reply},
        offer::{Offer, Offers},
    },
};
use serde_json::{Value, json};

use crate::support::{
    Node, SETTLE, builtin, eventually,
    peer::{Forger, Habits, HostilePeer, cbor},
    script, slow, with,
};

/// How long an asker waits for those who do not answer, and a little for the machine.
const ANSWERED_MAX: Duration = Duration::from_secs(4);

/// An agent that takes as long as it is told, for a tenth of a cent per token.
fn priced(name: &str) -> Value {
    let capability = json!({ "id": "test.slow", "price": { "amount": "0.001", "currency": "USD", "unit": "token" }, "idempotent": true });
    with(script(name, "slow.py", &[], capability), json!({ "concurrency": 1, "queue": 1 }))
}

async fn ask(node: &Node, body: Value) -> Value {
    node.post("/v1/offers", &with(json!({ "capability": "test.slow" }), body)).await.ok()
}

/// AMP-7: an offer says when from what was measured, and how much from the estimate.
#[tokio::test]
async fn an_agent_elsewhere_says_when_and_for_how_much() {
    let asker = Node::first().await;
    let host = Node::builder().join(&asker).agent(priced("slow")).spawn().await;
    asker.knows("test.slow", &["slow"]).await;

    let answer = ask(&asker, json!({ "estimated_tokens": 1500, "deadline_ms": 60_000 })).await;
    let offer = &answer["offers"][0];
    assert_eq!((&offer["name"], &offer["node_id"], &offer["local"]), (&json!("slow"), &json!(host.id()), &json!(false)), "{answer}");
    assert_eq!((&offer["cost"], &offer["units"]), (&json!({ "amount": "1.5", "currency": "USD" }), &json!("1500")), "{answer}");
    assert_eq!((&offer["free_slots"], &offer["starts_in_ms"]), (&json!(1), &json!(0)), "{answer}");
    assert_eq!((&offer["runs"], &offer["takes_ms"]), (&json!(0), &Value::Null), "nothing was measured yet: {answer}");
    assert!(offer["valid_ms"].as_u64().is_some_and(|ms| ms > 0) && answer["declined"] == json!([]), "{answer}");

    asker.call("test.slow", json!({ "ms": 300 })).await;
    let answer = ask(&asker, json!({ "units": "2" })).await;
    let offer = &answer["offers"][0];
    assert_eq!((&offer["runs"], &offer["takes_ms"]["source"]), (&json!(1), &json!("claimed")), "its node's word: {answer}");
    assert!(offer["takes_ms"]["value"].as_u64().is_some_and(|ms| (300..5_000).contains(&ms)), "{answer}");
    assert!(offer["completes_in_ms"].as_f64() >= offer["latency_ms"]["value"].as_f64(), "what was measured here outranks it: {answer}");
    assert_eq!(offer["cost"]["amount"], "0.002", "without tokens the units are counted: {answer}");
}

/// AMP-7: what cannot be is refused with the reason, and the code that a call would meet.
#[tokio::test]
async fn who_cannot_keep_the_terms_declines_with_a_reason() {
    let asker = Node::first().await;
    let _host = Node::builder().join(&asker).agent(priced("slow")).spawn().await;
    asker.knows("test.slow", &["slow"]).await;
    asker.call("test.slow", json!({ "ms": 300 })).await;

    for (terms, code) in
        [(json!({ "deadline_ms": 100 }), "TIMEOUT"), (json!({ "estimated_tokens": 1500, "max_cost": "1.4999" }), "OVER_BUDGET")]
    {
        let answer = ask(&asker, terms).await;
        assert_eq!((&answer["offers"], &answer["declined"][0]["code"]), (&json!([]), &json!(code)), "{answer}");
    }
    let answer = ask(&asker, json!({ "version": "^7" })).await;
    assert_eq!(answer["declined"][0]["reason"], "no version fits", "{answer}");
    let faulty = asker.post("/v1/offers", &json!({ "capability": "test.slow", "units": "-1" })).await;
    assert!(faulty.error("INVALID_REQUEST")["message"].as_str().is_some_and(|message| message.contains("units")));
    asker.post("/v1/offers", &json!({ "capability": "test.slow", "limit": 17 })).await.error("INVALID_REQUEST");
    asker.post("/v1/offers", &json!({ "capability": "test.slow", "max_cost": "cheap" })).await.error("INVALID_REQUEST");
}

#[tokio::test]
async fn a_busy_agent_says_when_it_would_begin_and_a_full_one_declines() {
    let folder = tempfile::tempdir().expect("a folder");
    let journal = folder.path().join("journal");
    let node = Node::builder().agent(with(slow("slow", Some(&journal)), json!({ "concurrency": 1, "queue": 1 }))).spawn().await;
    node.knows("test.slow", &["slow"]).await;
    node.call("test.slow", json!({ "ms": 200 })).await;
    let long = || node.invoke(json!({ "capability": "test.slow", "input": { "ms": 20_000 } }));
    let started = async || {
        let lines = fs::read_to_string(&journal).unwrap_or_default();
        (lines.lines().filter(|line| line.starts_with("started")).count() == 2).then_some(())
    };

    let asking = async {
        eventually("the agent works", SETTLE, started).await;
        let answer = ask(&node, json!({})).await;
        let offer = &answer["offers"][0];
        assert_eq!((&offer["free_slots"], &offer["queue"], &offer["local"]), (&json!(0), &json!(0), &json!(true)), "{answer}");
        assert!(offer["starts_in_ms"].as_u64() == offer["takes_ms"]["value"].as_u64(), "one run is before it: {answer}");
        assert_eq!(offer["takes_ms"]["source"], "measured", "{answer}");
        let full = async || {
            let answer = ask(&node, json!({})).await;
            (answer["declined"][0]["code"] == "BUSY").then_some(())
        };
        tokio::select! {
            () = eventually("the agent is full", SETTLE, full) => {}
            answer = long() => panic!("it waits: {answer:?}"),
        }
    };
    tokio::select! {
        () = asking => {}
        answer = long() => panic!("it takes longer than the test: {answer:?}"),
    }
}

/// AMP-7: own agents are asked like any other, and the cheaper of equals is first.
#[tokio::test]
async fn offers_of_several_nodes_are_compared() {
    let cost = |amount: &str| json!({ "id": "echo", "price": { "amount": amount, "currency": "EUR" } });
    let priced = |name: &str, amount: &str| with(builtin(name, "echo"), json!({ "capability": [cost(amount)] }));
    let asker = Node::builder().agent(priced("dear", "2")).spawn().await;
    let _host = Node::builder().join(&asker).agent(priced("cheap", "0.5")).agent(priced("fair", "1")).spawn().await;
    asker.knows("echo", &["cheap", "dear", "fair"]).await;

    let answer = asker.post("/v1/offers", &json!({ "capability": "echo", "units": 3 })).await.ok();
    let rows = answer["offers"].as_array().expect("offers");
    let shown: Vec<_> =
        rows.iter().map(|row| (row["name"].as_str().unwrap_or_default(), row["cost"]["amount"].as_str().unwrap_or_default())).collect();
    assert_eq!(shown, [("cheap", "1.5"), ("fair", "3"), ("dear", "6")], "{answer}");
    let one = asker.post("/v1/offers", &json!({ "capability": "custom", "limit": 1 })).await.ok();
    assert_eq!(one["offers"].as_array().map(Vec::len), Some(1), "{one}");

    let text = asker.cli(&["offers", "echo", "--units", "3", "--max-cost", "4", "--deadline", "30"]).await;
    assert!(text.text().contains("1.5 EUR") && text.text().contains("binds nobody"), "{text:?}");
    assert!(text.text().contains("it costs 6, at most 4 is offered"), "{text:?}");
    let document = asker.cli(&["offers", "echo", "--json"]).await.json();
    assert_eq!(document["offers"].as_array().map(Vec::len), Some(3), "{document}");
    let nobody = asker.cli(&["offers", "ecco"]).await;
    assert!(nobody.text().contains("nobody") && nobody.text().contains("try `echo`"), "{nobody:?}");
}

/// An offer of the agent in `record` that would be taken.
fn honest(record: &Record) -> Offer {
    let capability = record.capabilities.first().expect("a record names a capability");
    Offer {
        agent: record.agent,
        capability: capability.id.clone(),
        version: capability.version.clone(),
        free_slots: 1_000,
        queued: 0,
        starts_in_ms: Some(0),
        takes_ms: Some(1),
        runs: u32::MAX,
        price: capability.price.clone(),
        units: 1.into(),
        valid_ms: 1_000,
    }
}

/// A peer whose agent stands in the directory, and that answers inquiries with these bytes.
async fn answering(node: &Node, reply: impl FnOnce(&Record) -> Vec<u8>) -> HostilePeer {
    let forger = Forger::new();
    let record = forger.record(1, "slow");
    let bytes = reply(&record);
    let habits = Habits::default().answers(move |asked| matches!(asked, Control::Offers(_)).then(|| bytes.clone()));
    known(node, forger, &record, habits).await
}

/// A peer that tells the node of the agent in `record`.
async fn known(node: &Node, forger: Forger, record: &Record, habits: Habits) -> HostilePeer {
    let signed = forger.sign(record, 1);
    let hostile = HostilePeer::start(forger, habits.advertises(record, signed));
    hostile.connect(node).await;
    hostile
}

fn offers(offers: Vec<Offer>) -> Vec<u8> {
    cbor(&Reply::Offers(Offers { offers, refusals: Vec::new() }))
}

/// Threat T16: an offer that no honest node makes is not shown, and its sender pays for it.
#[tokio::test]
async fn offers_that_cannot_be_are_refused_and_held_against_their_sender() {
    let price = |amount: &str| Price {
        amount: amount.parse().expect("a decimal"),
        currency: "USD".parse().expect("a currency"),
        unit: "request".to_owned(),
    };
    type Lie = fn(&Record, &Price) -> Vec<Offer>;
    let lies: [(&str, Lie); 5] = [
        ("an agent of somebody else", |record, _| vec![Offer { agent: Forger::agent(9), ..honest(record) }]),
        ("two offers of one agent", |record, _| vec![honest(record), honest(record)]),
        ("too many offers", |record, _| vec![honest(record); 17]),
        ("an absurd time", |record, _| vec![Offer { starts_in_ms: Some(u64::MAX), ..honest(record) }]),
        ("a negative price", |record, price| vec![Offer { price: Some(price.clone()), ..honest(record) }]),
    ];
    for (case, lie) in lies {
        let node = Node::builder().agent(priced("true")).spawn().await;
        let _hostile = answering(&node, |record| offers(lie(record, &price("-1")))).await;
        node.knows("test.slow", &["slow", "true"]).await;

        let answer = ask(&node, json!({})).await;

        let names: Vec<_> = answer["offers"].as_array().expect("offers").iter().map(|offer| offer["name"].clone()).collect();
        assert_eq!(names, ["true"], "{case}: {answer}");
        assert_eq!(
            (&answer["declined"][0]["name"], &answer["declined"][0]["code"]),
            (&json!("slow"), &json!("UNAVAILABLE")),
            "{case}: {answer}"
        );
        assert_eq!(node.metric("meshwork_penalties_total").await, 1, "{case}");
    }
}

/// Threat T16: a price that differs from the signed record is no price, and a promise alone puts nobody first.
#[tokio::test]
async fn a_bait_is_no_offer() {
    let node = Node::builder().agent(builtin("true", "echo")).spawn().await;
    let cheaper = |record: &Record| {
        let price = Price { amount: 1.into(), currency: "USD".parse().expect("a currency"), unit: "request".to_owned() };
        offers(vec![Offer { price: Some(price), ..honest(record) }])
    };
    let _hostile = answering(&node, cheaper).await;
    node.knows("test.slow", &["slow"]).await;

    let answer = ask(&node, json!({})).await;

    assert_eq!((&answer["offers"], &answer["declined"][0]["code"]), (&json!([]), &json!("CONFLICT")), "{answer}");
}

#[tokio::test]
async fn who_does_not_answer_holds_up_nobody_for_long() {
    let node = Node::builder().agent(priced("true")).spawn().await;
    let forger = Forger::new();
    let record = forger.record(1, "slow");
    let hostile = known(&node, forger, &record, Habits::default().ignores(|asked| matches!(asked, Control::Offers(_)))).await;
    node.knows("test.slow", &["slow", "true"]).await;

    let asked = Instant::now();
    let answer = ask(&node, json!({})).await;

    assert!(asked.elapsed() < ANSWERED_MAX && hostile.was_asked(|asked| matches!(asked, Control::Offers(_))), "{:?}", asked.elapsed());
    assert_eq!((&answer["offers"][0]["name"], &answer["declined"][0]["name"]), (&json!("true"), &json!("slow")), "{answer}");
}
