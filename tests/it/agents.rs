//! Agents of every kind, and how a node keeps house with them.

use serde_json::{Value, json};

use crate::support::{HttpAgent, Node, SETTLE, builtin, eventually, script, with};

#[tokio::test]
async fn the_builtin_validator_names_each_fault() {
    let node = Node::builder().agent(builtin("validator", "data-validation")).spawn().await;
    node.knows("data-validation", &["validator"]).await;
    let schema = json!({ "type": "object", "required": ["name"], "properties": { "age": { "type": "integer", "minimum": 0 } } });

    let good = node.call("data-validation", json!({ "schema": schema, "data": { "name": "x", "age": 1 } })).await;
    let bad = node.call("data-validation", json!({ "schema": schema, "data": { "name": "x", "age": -1 } })).await;

    assert_eq!(good["output"], json!({ "valid": true, "faults": [] }));
    assert_eq!((&bad["output"]["valid"], &bad["output"]["faults"][0]["path"]), (&json!(false), &json!("/age")));
}

#[tokio::test]
async fn the_builtin_orchestrator_joins_results() {
    let node = Node::builder().agent(builtin("joiner", "orchestration")).spawn().await;
    node.knows("orchestration", &["joiner"]).await;

    let input = json!({ "strategy": "merge", "inputs": { "a": { "x": 1 }, "b": { "y": { "z": 2 } } } });
    let answer = node.call("orchestration", input).await;

    assert_eq!(answer["output"], json!({ "result": { "x": 1, "y": { "z": 2 } }, "sources": ["a", "b"], "conflicts": [] }));
}

#[tokio::test]
async fn lines_that_mean_nothing_are_passed_over() {
    let node = Node::builder().agent(script("noisy", "garbage.py", &[], json!({ "id": "test.noisy" }))).spawn().await;
    node.knows("test.noisy", &["noisy"]).await;

    for number in 0..5 {
        assert_eq!(node.call("test.noisy", json!(number)).await["output"], number);
    }

    let log = async || node.log().lines().any(|line| line.contains("noisy") && line.contains("a word on standard error")).then_some(());
    eventually("what it says on standard error is in the log, under its name", SETTLE, log).await;
    assert!(!node.log().contains("\u{1b}[31mred"), "escape sequences of agents stay out of the log");
}

#[tokio::test]
async fn a_second_answer_is_taken_for_nobodys() {
    let host = Node::builder().agent(script("twice", "twice.py", &[], json!({ "id": "test.twice" }))).spawn().await;
    let caller = Node::builder().join(&host).spawn().await;
    caller.knows("test.twice", &["twice"]).await;

    for number in 0..10 {
        assert_eq!(caller.call("test.twice", json!(number)).await["output"], number);
    }
}

#[tokio::test]
async fn a_program_that_crashed_is_started_again() {
    let node = Node::builder().agent(script("phoenix", "crash.py", &[], json!({ "id": "test.phoenix" }))).spawn().await;
    node.knows("test.phoenix", &["phoenix"]).await;

    for round in 0..2 {
        let crash = json!({ "capability": "test.phoenix", "input": { "crash": true } });
        node.invoke(crash).await.error("AGENT_FAILED");
        let call = json!({ "capability": "test.phoenix", "input": { "round": round } });
        let served = async || Some(node.invoke(call.clone()).await).filter(|answer| answer.status == 200);
        let answer = eventually("it serves again", SETTLE, served).await.ok();
        assert_eq!(answer["output"]["round"], round);
    }
}

#[tokio::test]
async fn lists_tell_this_nodes_agents_from_those_of_the_mesh() {
    let first = Node::builder().agent(builtin("near", "echo")).spawn().await;
    let second = Node::builder().join(&first).agent(builtin("far", "text-analysis")).spawn().await;
    first.knows("text-analysis", &["far"]).await;

    assert_eq!(listed(&first, "").await, ["near"]);
    assert_eq!(listed(&first, "?scope=local").await, ["near"]);
    assert_eq!(listed(&first, "?scope=mesh").await, ["far", "near"]);
    assert_eq!(listed(&first, "?scope=mesh&capability=text-processing").await, ["far"]);
    assert_eq!(listed(&first, "?scope=local&capability=text-analysis").await, [""; 0]);
    let record = first.agent("far").await;
    assert_eq!((&record["node_id"], &record["status"]["state"]), (&json!(second.id()), &json!("available")), "{record}");
    first.get("/v1/agents?scope=galaxy").await.refused(400, "INVALID_REQUEST");
}

/// AMP-1, AMP-2, MAOP-2: a record says all that its definition said, schemas included.
#[tokio::test]
async fn a_record_shows_what_its_definition_said() {
    let schema = json!({ "type": "object", "required": ["text"], "properties": { "text": { "type": "string" } } });
    let capability = json!({
        "id": "data-extraction", "version": "1.4", "description": "Extract tables from text",
        "input_schema": schema, "output_schema": { "type": "object" },
        "price": { "amount": "0.001", "currency": "USD", "unit": "document" },
        "constraints": { "max_input_length": 10000, "supported_languages": ["en"], "response_time_ms": 5000 },
        "score": 0.9, "specializations": ["invoices", "tables"], "limitations": ["no handwriting"],
        "resource_requirements": { "gpu": true, "memory_mb": 2048, "model": "small" },
    });
    let agent = with(script("extractor", "echo.py", &[], capability.clone()), json!({ "version": "2.0.0", "framework": "crewai" }));
    let host = Node::builder().agent(agent).spawn().await;
    let other = Node::builder().join(&host).spawn().await;
    other.knows("data-extraction", &["extractor"]).await;

    for node in [&host, &other] {
        let record = node.agent("extractor").await;
        assert!(record["agent_id"].as_str().is_some_and(|id| id.starts_with("did:key:z6Mk")), "{record}");
        assert_eq!((&record["version"], &record["framework"]), (&json!("2.0.0"), &json!("crewai")), "{record}");
        let same = ["id", "version", "description", "input_schema", "output_schema", "price", "constraints"];
        for field in same.into_iter().chain(["specializations", "limitations", "resource_requirements"]) {
            assert_eq!(record["capabilities"][0][field], capability[field], "{field}: {record}");
        }
        assert_eq!(record["capabilities"][0]["score"], json!({ "value": 0.9, "source": "claimed" }), "{record}");
    }
    let found = other.post("/v1/find", &json!({ "text": "invoices" })).await.ok();
    assert_eq!(found["agents"][0]["name"], "extractor", "{found}");
    let shown = other.cli(&["agent", "show", "extractor"]).await;
    assert!(shown.text().contains("0.9 c (its own claim)") && shown.text().contains("no handwriting"), "{shown:?}");
}

/// MAOP-2: claims that break a bound are refused where they are made, by the name of the field.
#[tokio::test]
async fn claims_beyond_their_bounds_are_refused() {
    let node = Node::first().await;
    for (claims, path) in [
        (json!({ "score": 1.5 }), "capability[0].score"),
        (json!({ "specializations": ["ok", "x".repeat(129)] }), "capability[0].specializations[1]"),
        (json!({ "resource_requirements": { "gpu": "" } }), "capability[0].resource_requirements.gpu"),
    ] {
        let definition = script("boaster", "echo.py", &[], with(json!({ "id": "test.boast" }), claims));
        let refused = node.post("/v1/agents", &definition).await.refused(400, "INVALID_REQUEST");
        assert_eq!(refused["details"]["path"], path, "{refused}");
    }
}

#[tokio::test]
async fn agents_added_over_http_survive_a_restart() {
    let node = Node::first().await;
    let added = node.post("/v1/agents", &builtin("kept", "echo")).await.ok();
    let removed = node.post("/v1/agents", &builtin("dropped", "echo")).await.ok();
    node.delete(&format!("/v1/agents/{}", removed["agent_id"].as_str().expect("an id"))).await.ok();

    let node = node.restart().await;

    node.knows("echo", &["kept"]).await;
    assert_eq!(node.agent_id("kept").await, added["agent_id"].as_str().expect("an id"), "its key stays");
    assert_eq!(listed(&node, "").await, ["kept"]);
}

/// AMP-6: credentials never leave the node.
#[tokio::test]
async fn the_token_of_an_http_agent_is_used_and_never_shown() {
    let program = HttpAgent::start().await;
    let token = "s3cret-of-the-agent";
    let file = program.require_token(token);
    let mut definition = program.definition("guarded", json!({ "id": "test.guarded" }));
    definition["adapter"]["token_file"] = json!(file.to_str().expect("temporary folders have plain names"));
    let host = Node::builder().agent(definition).spawn().await;
    let caller = Node::builder().join(&host).spawn().await;
    caller.knows("test.guarded", &["guarded"]).await;

    assert_eq!(caller.call("test.guarded", json!("in")).await["output"], "in");

    assert!(program.requests().starts_with("POST /invoke test.guarded"), "{}", program.requests());
    for node in [&host, &caller] {
        let shown = node.agent("guarded").await.to_string() + &node.log();
        assert!(!shown.contains(token), "the token is shown: {shown}");
        assert!(!node.agent("guarded").await.to_string().contains("token"), "where the token is kept is nobody's business");
    }
}

#[tokio::test]
async fn an_http_agent_may_answer_in_events() {
    let program = HttpAgent::start().await;
    let mut definition = program.definition("streamer", json!({ "id": "test.events" }));
    let endpoint = definition["adapter"]["endpoint"].as_str().expect("an endpoint").replace("/invoke", "/stream");
    definition["adapter"]["endpoint"] = json!(endpoint);
    let node = Node::builder().agent(definition).spawn().await;
    node.knows("test.events", &["streamer"]).await;

    assert_eq!(node.call("test.events", json!({ "x": [1, 2] })).await["output"], json!({ "x": [1, 2] }));
}

#[tokio::test]
async fn an_http_agent_in_a_private_network_needs_leave() {
    let program = HttpAgent::start().await;
    let node = Node::first().await;
    let mut definition = program.definition("inside", json!({ "id": "test.inside" }));
    definition["adapter"]["allow_private"] = json!(false);

    let error = node.post("/v1/agents", &definition).await.refused(400, "INVALID_REQUEST");

    assert!(error["message"].as_str().is_some_and(|message| message.contains("adapter.endpoint")), "{error}");
    assert_eq!(program.requests(), "");
}

/// The names in a listing, sorted.
async fn listed(node: &Node, query: &str) -> Vec<String> {
    let answer = node.get(&format!("/v1/agents{query}")).await.ok();
    let agents = answer["agents"].as_array().unwrap_or_else(|| panic!("agents: {answer}"));
    let mut names: Vec<String> = agents.iter().filter_map(|agent: &Value| agent["name"].as_str()).map(str::to_owned).collect();
    names.sort();
    names
}
