//! Finding agents: what a query gives, how fast news travels, and how fast the dead are forgotten.

use std::{
    fs,
    time::{Duration, Instant},
};

use futures::future::join_all;
use serde_json::{Value, json};

use crate::support::{HttpAgent, Node, SETTLE, builtin, eventually, script, with};

/// How long a dead agent may stay in routing.
const GONE: Duration = Duration::from_secs(3);
/// How long a newcomer may take to its first right answer.
const FIRST_ANSWER: Duration = Duration::from_secs(1);

/// AMP-5: what was announced long before one came is found all the same.
#[tokio::test]
async fn the_first_find_of_a_late_joiner_is_right() {
    let first = Node::builder().agent(builtin("a", "echo")).spawn().await;
    let second = Node::builder().join(&first).agent(builtin("b", "echo")).spawn().await;
    let third = Node::builder().join(&first).agent(builtin("c", "echo")).spawn().await;
    for node in [&first, &second, &third] {
        node.knows("echo", &["a", "b", "c"]).await;
    }

    let late = Node::builder().join(&first).spawn().await;
    let names = late.names("echo").await;

    assert!(late.ready_at().elapsed() < FIRST_ANSWER, "{:?}", late.ready_at().elapsed());
    assert_eq!(names, ["a", "b", "c"]);
}

#[tokio::test]
async fn a_restarted_node_is_found_again_at_its_new_address() {
    let asker = Node::first().await;
    let host = Node::builder().join(&asker).agent(builtin("echo", "echo")).spawn().await;
    asker.knows("echo", &["echo"]).await;
    let (id, agent, address) = (host.id().to_owned(), host.agent_id("echo").await, host.address());

    let host = host.restart().await;

    assert_eq!((host.id(), host.agent_id("echo").await), (id.as_str(), agent), "keys stay");
    assert_ne!(host.address(), address, "the system picked another port");
    asker.knows("echo", &["echo"]).await;
    assert_eq!(asker.call("echo", json!("again")).await["node_id"], host.id());
}

/// AOP-4, MEAP-9: a program that dies and cannot be started again leaves routing on every node.
#[tokio::test]
async fn an_agent_whose_program_stays_dead_is_out_of_routing() {
    let asker = Node::first().await;
    let builder = Node::builder();
    let life = builder.home().join("life");
    fs::write(&life, "").expect("the file that keeps it alive");
    let path = life.to_str().expect("temporary folders have plain names");
    let agent = script("mortal", "crash.py", &[path], json!({ "id": "test.mortal" }));
    let host = builder.join(&asker).agent(agent).spawn().await;
    asker.knows("test.mortal", &["mortal"]).await;
    fs::remove_file(&life).expect("the file is removed");

    let crashed = Instant::now();
    host.invoke(json!({ "capability": "test.mortal", "input": { "crash": true } })).await.error("AGENT_FAILED");

    asker.until_names("test.mortal", &[], GONE.saturating_sub(crashed.elapsed())).await;
    assert_eq!(host.agent("mortal").await["status"]["state"], "unavailable");
}

/// AMP-6, AOP-4: health checks decide who is offered.
#[tokio::test]
async fn an_http_agent_is_offered_only_while_it_is_well() {
    let program = HttpAgent::start().await;
    let asker = Node::first().await;
    let definition = program.definition("web", json!({ "id": "test.web" }));
    let _host = Node::builder().join(&asker).agent(definition).spawn().await;
    asker.knows("test.web", &["web"]).await;
    assert_eq!(asker.call("test.web", json!([1])).await["output"], json!([1]));

    program.set_healthy(false);
    asker.until_names("test.web", &[], GONE).await;

    program.set_healthy(true);
    asker.knows("test.web", &["web"]).await;
    assert_eq!(asker.call("test.web", json!([2])).await["output"], json!([2]));
}

/// AOP-4: nobody is sent to a node that died.
#[tokio::test]
async fn a_killed_node_is_out_of_everybodys_answers() {
    killed_node_over("/ip4/127.0.0.1/tcp/0").await;
}

/// AOP-4: a QUIC connection says nothing when its process is killed; its silence does.
#[tokio::test]
async fn a_killed_node_is_missed_over_quic_too() {
    killed_node_over("/ip4/127.0.0.1/udp/0/quic-v1").await;
}

async fn killed_node_over(listen: &str) {
    let node = || Node::builder().listen(&[listen]);
    let first = node().agent(builtin("a", "echo")).spawn().await;
    let second = node().join(&first).agent(builtin("b", "echo")).spawn().await;
    let mut third = node().join(&first).agent(builtin("c", "echo")).spawn().await;
    for node in [&first, &second, &third] {
        node.knows("echo", &["a", "b", "c"]).await;
    }

    let killed = Instant::now();
    third.kill().await;

    for node in [&first, &second] {
        node.until_names("echo", &["a", "b"], GONE.saturating_sub(killed.elapsed())).await;
    }
}

#[tokio::test]
async fn quiet_nodes_find_each_other_through_the_dht() {
    let quiet = "[mesh]\ngossip = false\n";
    let bootstrap = Node::first().await;
    let provider = Node::builder().config(quiet).join(&bootstrap).agent(builtin("hermit", "echo")).spawn().await;
    let asker = Node::builder().config(quiet).join(&bootstrap).spawn().await;
    provider.meets(&bootstrap).await;

    asker.knows("echo", &["hermit"]).await;

    let answer = asker.call("echo", json!("heard without gossip")).await;
    assert_eq!((&answer["output"], &answer["node_id"]), (&json!("heard without gossip"), &json!(provider.id())));
}

/// Queries that come together about what only the DHT knows share one search, and each gets its answer.
#[tokio::test]
async fn calls_that_come_together_are_all_served_through_the_dht() {
    let quiet = "[mesh]\ngossip = false\n";
    let bootstrap = Node::first().await;
    let provider = Node::builder().config(quiet).join(&bootstrap).agent(builtin("hermit", "echo")).spawn().await;
    let asker = Node::builder().config(quiet).join(&bootstrap).spawn().await;
    provider.meets(&bootstrap).await;
    // Once the bootstrap node finds the provider by its key, anybody does.
    bootstrap.knows("echo", &["hermit"]).await;

    let calls = join_all((0..8).map(|number| asker.invoke(json!({ "capability": "echo", "input": number })))).await;

    for (number, call) in calls.into_iter().enumerate() {
        assert_eq!(call.ok()["output"], number);
    }
}

/// AMP-2, AMP-5, MAOP-2: constraints of the query against what records claim.
#[tokio::test]
async fn a_query_keeps_to_its_constraints() {
    let priced = |name: &str, amount: &str, ms: u64, language: &str| {
        let price = json!({ "amount": amount, "currency": "USD", "unit": "document" });
        let constraints = json!({ "response_time_ms": ms, "supported_languages": [language] });
        script(name, "echo.py", &[], json!({ "id": "test.offer", "price": price, "constraints": constraints }))
    };
    let host = Node::builder().agent(priced("cheap", "0.001", 900, "en")).agent(priced("fast", "0.5", 50, "de")).spawn().await;
    let asker = Node::builder().join(&host).spawn().await;
    asker.knows("test.offer", &["cheap", "fast"]).await;

    for (constraints, expected) in [
        (json!({ "max_latency_ms": 100 }), vec!["fast"]),
        (json!({ "max_cost": "0.01" }), vec!["cheap"]),
        (json!({ "language": "de" }), vec!["fast"]),
        (json!({ "min_trust": 10 }), vec!["cheap", "fast"]),
        (json!({ "max_latency_ms": 100, "max_cost": "0.01" }), vec![]),
    ] {
        let body = json!({ "capabilities": ["test.offer"], "constraints": constraints });
        assert_eq!(names(&asker.query(body.clone()).await), expected, "{body}");
    }
}

#[tokio::test]
async fn a_query_names_those_it_rejects_and_why() {
    let capability = json!({ "id": "test.offer", "price": { "amount": "2", "currency": "USD" } });
    let node = Node::builder().agent(script("dear", "echo.py", &[], capability)).spawn().await;
    node.knows("test.offer", &["dear"]).await;
    let body = json!({ "capabilities": ["test.offer"], "constraints": { "max_cost": "1" }, "explain": true });

    let answer = node.query(body).await;

    assert_eq!(answer["agents"], json!([]));
    assert_eq!(answer["rejected"][0]["agent_id"], node.agent_id("dear").await.as_str());
    let reason = answer["rejected"][0]["reason"].as_str().expect("a reason");
    assert!(reason.contains("max_cost"), "{reason}");
}

/// AMP-5: a query may show the input that will be sent.
#[tokio::test]
async fn a_query_leaves_out_agents_that_would_refuse_the_input() {
    let takes = |kind: &str| json!({ "id": "test.taste", "input_schema": { "type": kind } });
    let host = Node::builder()
        .agent(script("reader", "echo.py", &[], takes("string")))
        .agent(script("counter", "echo.py", &[], takes("integer")))
        .spawn()
        .await;
    let asker = Node::builder().join(&host).spawn().await;
    asker.knows("test.taste", &["counter", "reader"]).await;

    let answer = asker.query(json!({ "capabilities": ["test.taste"], "input": 7 })).await;

    assert_eq!(names(&answer), ["counter"]);
    assert!(answer["rejected"][0]["reason"].as_str().is_some_and(|reason| reason.contains("schema")), "{answer}");
}

/// AMP-13, AMP-14: a heading stands for what is below it, a requirement for the versions that meet it.
#[tokio::test]
async fn headings_versions_and_words_find_agents() {
    let capability = json!({ "id": "acme.tables", "version": "2.1", "description": "Extract tables from invoices" });
    let host = Node::builder()
        .agent(builtin("analyst", "text-analysis"))
        .agent(builtin("writer", "summarization"))
        .agent(script("clerk", "echo.py", &[], capability))
        .spawn()
        .await;
    let asker = Node::builder().join(&host).spawn().await;

    asker.knows("text-processing", &["analyst", "writer"]).await;
    asker.knows("acme", &["clerk"]).await;
    for (body, expected) in [
        (json!({ "capabilities": ["acme.tables"], "version": "^2" }), vec!["clerk"]),
        (json!({ "capabilities": ["acme.tables"], "version": ">=1, <2" }), vec![]),
        (json!({ "capabilities": [], "text": "tables invoices" }), vec!["clerk"]),
        (json!({ "capabilities": ["summarization", "text-analysis"] }), vec!["analyst", "writer"]),
    ] {
        assert_eq!(names(&asker.query(body.clone()).await), expected, "{body}");
    }
    // Which of several equals comes first is left to chance.
    assert_eq!(names(&asker.query(json!({ "capabilities": ["text-processing"], "limit": 1 })).await).len(), 1);
}

/// MAOP-2: an agent's word counts until there is experience.
#[tokio::test]
async fn figures_are_claimed_until_they_are_measured() {
    let capability = json!({ "id": "test.figures", "constraints": { "response_time_ms": 777 } });
    let host = Node::builder().agent(script("claimant", "echo.py", &[], capability)).spawn().await;
    let asker = Node::builder().join(&host).spawn().await;
    asker.knows("test.figures", &["claimant"]).await;

    let claimed = asker.find("test.figures").await.remove(0);
    assert_eq!((claimed["latency_ms"]["value"].as_f64(), &claimed["latency_ms"]["source"]), (Some(777.0), &json!("claimed")), "{claimed}");
    for number in 0..3 {
        asker.call("test.figures", json!(number)).await;
    }

    let measured = eventually("the latency is measured", SETTLE, async || {
        asker.find("test.figures").await.into_iter().find(|row| row["latency_ms"]["source"] == "measured")
    });
    let measured = measured.await;
    assert!(measured["latency_ms"]["value"].as_f64().is_some_and(|ms| ms > 0.0 && ms < 777.0), "{measured}");
    assert_eq!(measured["success_rate"]["source"], "measured", "{measured}");
}

/// AOP-2: a query among as many agents as a node may host names as many as were asked for. How long it takes is for the benchmark.
#[tokio::test]
async fn a_query_names_as_many_agents_as_it_asks_for() {
    let crowd = (0..64).fold(Node::builder(), |builder, number| builder.agent(builtin(&format!("agent-{number}"), "echo")));
    let host = crowd.spawn().await;
    let asker = Node::builder().join(&host).spawn().await;
    let counted = async || (asker.get("/v1/node").await.ok()["counts"]["agents_mesh"] == 64).then_some(());
    eventually("all are in the directory", SETTLE, counted).await;

    for limit in [1, 10, 64] {
        let answer = asker.query(json!({ "capabilities": ["echo"], "limit": limit })).await;
        assert_eq!(names(&answer).len(), limit);
    }
}

/// AMP-1, AMP-6, AOP-1, MAOP-3: registration over HTTP, seen from another node.
#[tokio::test]
async fn an_agent_added_on_one_node_is_found_on_another_until_it_is_removed() {
    let host = Node::first().await;
    let asker = Node::builder().join(&host).spawn().await;
    let capability = json!({ "id": "test.added", "description": "Added while running" });
    let definition = with(script("added", "echo.py", &[], capability), json!({ "version": "3.2.1", "framework": "langchain" }));

    let added = host.post("/v1/agents", &definition).await;
    assert_eq!(added.status, 201, "{}", added.body);
    let added = added.ok();
    let id = added["agent_id"].as_str().expect("an id").to_owned();
    assert_eq!(added["record"]["name"], "added");

    asker.knows("test.added", &["added"]).await;
    let record = asker.agent(&id).await;
    assert_eq!((&record["version"], &record["framework"]), (&json!("3.2.1"), &json!("langchain")), "{record}");
    assert_eq!(record["node_id"], host.id());
    assert_eq!(asker.call("test.added", json!(5)).await["agent_id"], id.as_str());

    assert_eq!(host.delete(&format!("/v1/agents/{id}")).await.status, 204);
    asker.until_names("test.added", &[], GONE).await;
    host.get(&format!("/v1/agents/{id}")).await.refused(404, "AGENT_NOT_FOUND");
}

#[tokio::test]
async fn a_changed_definition_replaces_the_old_one_under_the_same_id() {
    let host = Node::first().await;
    let asker = Node::builder().join(&host).spawn().await;
    let definition = |capability: &str| script("changing", "echo.py", &[], json!({ "id": capability }));
    let added = host.post("/v1/agents", &definition("test.before")).await.ok();
    let id = added["agent_id"].as_str().expect("an id").to_owned();
    asker.knows("test.before", &["changing"]).await;

    let changed = host.put(&format!("/v1/agents/{id}"), &definition("test.after")).await.ok();

    assert_eq!(changed["agent_id"], id.as_str());
    asker.knows("test.after", &["changing"]).await;
    asker.knows("test.before", &[]).await;
}

#[tokio::test]
async fn agents_of_one_name_are_told_apart_by_the_beginning_of_their_ids() {
    let first = Node::builder().agent(builtin("twin", "echo")).spawn().await;
    let second = Node::builder().join(&first).agent(builtin("twin", "echo")).spawn().await;
    first.knows("echo", &["twin", "twin"]).await;
    let id = second.agent_id("twin").await;
    let prefix: String = id.chars().skip("did:key:z6Mk".len()).take(8).collect();

    let record = first.agent(&format!("twin@{prefix}")).await;

    assert_eq!((&record["agent_id"], &record["node_id"]), (&json!(id), &json!(second.id())));
}

#[tokio::test]
async fn agents_are_announced_as_they_come_and_go() {
    let asker = Node::first().await;
    let host = Node::builder().join(&asker).spawn().await;
    let mut events = asker.events().await;

    let added = host.post("/v1/agents", &builtin("visitor", "echo")).await.ok();
    let up = events.wait_for("agent_up", SETTLE, |event| event["name"] == "visitor").await;
    assert_eq!((&up["agent_id"], &up["node_id"]), (&added["agent_id"], &json!(host.id())));

    host.delete(&format!("/v1/agents/{}", added["agent_id"].as_str().expect("an id"))).await.ok();
    events.wait_for("agent_down", SETTLE, |event| event["agent_id"] == added["agent_id"]).await;
}

/// The names in a query's answer, sorted.
fn names(answer: &Value) -> Vec<&str> {
    let rows = answer["agents"].as_array().unwrap_or_else(|| panic!("rows: {answer}"));
    let mut names: Vec<&str> = rows.iter().filter_map(|row| row["name"].as_str()).collect();
    names.sort_unstable();
    names
}
