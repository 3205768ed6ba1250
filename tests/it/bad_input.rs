//! What is wrong is refused with the place, the reason and, where one can be guessed, the remedy (MEAP-9).

use std::fs;

use serde_json::{Value, json};

use crate::support::{Node, builtin, meshwork, script, with};

/// AMP-10: an unknown capability comes with the nearest known one.
#[tokio::test]
async fn an_unknown_capability_is_answered_with_the_nearest_known_one() {
    let host = Node::builder().agent(builtin("analyst", "text-analysis")).spawn().await;
    let caller = Node::builder().join(&host).spawn().await;
    caller.knows("text-analysis", &["analyst"]).await;

    let answer = caller.invoke(json!({ "capability": "text-analisys", "input": {} })).await;

    let error = answer.refused(404, "CAPABILITY_NOT_FOUND");
    assert_eq!((&error["number"], &error["retryable"]), (&json!(2404), &json!(false)), "{error}");
    assert!(error["details"]["suggestion"].as_str().is_some_and(|hint| hint.contains("text-analysis")), "{error}");
}

/// AMP-2, AOP-1: an input is checked against its schema before the agent sees it.
#[tokio::test]
async fn an_input_against_its_schema_is_refused_with_the_path() {
    let schema = json!({ "type": "object", "required": ["text"], "properties": { "text": { "type": "string" } } });
    let agent = script("typed", "echo.py", &[], json!({ "id": "test.typed", "input_schema": schema }));
    let host = Node::builder().agent(agent).spawn().await;
    let caller = Node::builder().join(&host).spawn().await;
    caller.knows("test.typed", &["typed"]).await;

    for node in [&host, &caller] {
        let answer = node.invoke(json!({ "capability": "test.typed", "input": { "text": 7 } })).await;
        let error = answer.refused(422, "INVALID_SCHEMA");
        assert_eq!(error["details"]["path"], "/text", "{error}");
    }
}

/// AMP-2: an output is checked too.
#[tokio::test]
async fn an_output_against_its_schema_does_not_reach_the_caller() {
    let schema = json!({ "type": "object", "properties": { "total": { "type": "integer" } } });
    let agent = script("liar", "bad_output.py", &[], json!({ "id": "test.liar", "output_schema": schema }));
    let host = Node::builder().agent(agent).spawn().await;
    let caller = Node::builder().join(&host).spawn().await;
    caller.knows("test.liar", &["liar"]).await;

    for node in [&host, &caller] {
        assert_eq!(node.call("test.liar", json!({ "output": { "total": 1 } })).await["output"]["total"], 1);
        let answer = node.invoke(json!({ "capability": "test.liar", "input": { "output": { "total": "one" } } })).await;
        let error = answer.error("INVALID_SCHEMA");
        assert_eq!(error["details"]["path"], "/total", "{error}");
    }
}

#[tokio::test]
async fn a_body_beyond_the_limit_is_refused_with_the_limit() {
    let node = Node::builder().agent(builtin("echo", "echo")).spawn().await;

    let error = node.invoke(json!({ "capability": "echo", "input": "x".repeat(5_242_880) })).await.refused(413, "PAYLOAD_TOO_LARGE");
    assert_eq!(error["details"]["limit"], 5_242_880, "{error}");
    let body = format!("{{\"capability\":\"echo\",\"input\":\"{}\"}}", "x".repeat(6_300_000));
    let error = node.post_text("/v1/invoke", body).await.refused(413, "PAYLOAD_TOO_LARGE");
    assert_eq!(error["details"]["limit"], 6_291_456, "{error}");
}

#[tokio::test]
async fn a_body_that_is_not_json_is_refused() {
    let node = Node::first().await;

    for body in ["{\"capability\":", "", "not JSON", "[]", "\"text\"", "{\"capability\":\"echo\"}}", "{\"capability\":7,\"input\":1}"] {
        let answer = node.post_text("/v1/invoke", body.to_owned()).await;
        assert_eq!(answer.status, 400, "{body:?}: {answer:?}");
        answer.error("INVALID_REQUEST");
    }
}

#[tokio::test]
async fn json_nested_ten_thousand_levels_deep_is_refused() {
    let node = Node::builder().agent(builtin("echo", "echo")).spawn().await;
    node.knows("echo", &["echo"]).await;
    let (open, close) = ("[".repeat(10_000), "]".repeat(10_000));

    for input in [format!("{open}{close}"), open] {
        let body = format!("{{\"capability\":\"echo\",\"input\":{input}}}");
        node.post_text("/v1/invoke", body).await.refused(400, "INVALID_REQUEST");
    }

    assert_eq!(node.call("echo", json!("still here")).await["output"], "still here");
}

#[tokio::test]
async fn a_field_that_nobody_knows_is_named() {
    let node = Node::first().await;

    for (path, body, field) in [
        ("/v1/invoke", json!({ "capability": "echo", "input": 1, "timeout": 5 }), "timeout"),
        ("/v1/find", json!({ "capabilities": ["echo"], "limmit": 5 }), "limmit"),
        ("/v1/find", json!({ "capabilities": ["echo"], "constraints": { "max_latency": 5 } }), "max_latency"),
        ("/v1/agents", with(builtin("x", "echo"), json!({ "secret": "s" })), "secret"),
    ] {
        let error = node.post(path, &body).await.refused(400, "INVALID_REQUEST");
        assert!(error["message"].as_str().is_some_and(|message| message.contains(field)), "{field}: {error}");
    }
}

#[tokio::test]
async fn a_value_of_the_wrong_kind_is_named() {
    let node = Node::first().await;

    for (path, body, field) in [
        ("/v1/invoke", json!({ "capability": "Echo!", "input": 1 }), "Echo!"),
        ("/v1/invoke", json!({ "capability": "echo", "input": 1, "timeout_ms": 0 }), "timeout"),
        ("/v1/invoke", json!({ "capability": "echo", "input": 1, "timeout_ms": 900_000_000 }), "timeout"),
        ("/v1/invoke", json!({ "capability": "echo", "input": 1, "idempotency_key": "" }), "idempotency key"),
        ("/v1/invoke", json!({ "capability": "echo", "input": 1, "invocation_id": "42" }), "42"),
        ("/v1/find", json!({ "capabilities": ["echo"], "version": "newest" }), "newest"),
    ] {
        let error = node.post(path, &body).await.refused(400, "INVALID_REQUEST");
        assert!(error["message"].as_str().is_some_and(|message| message.contains(field)), "{field}: {error}");
    }
}

/// AMP-2, AMP-6: a definition is checked whole before anything is attached.
#[tokio::test]
async fn a_bad_definition_is_refused_with_the_name_of_the_field() {
    let node = Node::first().await;
    let with_capability = |capability: Value| script("bad", "echo.py", &[], capability);

    for (definition, field) in [
        (with_capability(json!({ "id": "test.x", "input_schema": { "$ref": "https://example.com/s.json" } })), "input_schema"),
        (with_capability(json!({ "id": "Not A Name" })), "Not A Name"),
        (with_capability(json!({ "id": "text-processing" })), "text-processing"),
        (with_capability(json!({ "id": "test.x", "price": { "amount": "-1", "currency": "USD" } })), "price"),
        (with(with_capability(json!({ "id": "test.x" })), json!({ "name": "../escape" })), "name"),
        (with(with_capability(json!({ "id": "test.x" })), json!({ "concurrency": 0 })), "concurrency"),
        (json!({ "name": "bad", "adapter": { "type": "process", "command": [] }, "capability": [{ "id": "test.x" }] }), "adapter.command"),
        (builtin("bad", "telepathy"), "telepathy"),
    ] {
        let answer = node.post("/v1/agents", &definition).await;
        assert!([400, 422].contains(&answer.status), "{field}: {answer:?}");
        assert!(answer.body["error"].to_string().contains(field), "{field}: {answer:?}");
    }

    assert_eq!(node.get("/v1/agents").await.ok()["agents"], json!([]), "nothing was attached");
}

#[tokio::test]
async fn a_name_that_is_taken_is_a_conflict() {
    let node = Node::builder().agent(builtin("echo", "echo")).spawn().await;

    node.post("/v1/agents", &builtin("echo", "summarization")).await.refused(409, "CONFLICT");

    node.knows("echo", &["echo"]).await;
}

#[tokio::test]
async fn a_path_or_method_that_does_not_exist_is_refused_in_the_same_shape() {
    let node = Node::first().await;

    for answer in [node.get("/v1/nothing").await, node.delete("/v1/node").await] {
        assert!((400..=405).contains(&answer.status), "{answer:?}");
        let error = answer.error("INVALID_REQUEST");
        assert!(error["details"]["suggestion"].is_string(), "{error}");
    }
    node.get("/v1/agents/did:key:z6MkNobody").await.refused(404, "AGENT_NOT_FOUND");
}

#[tokio::test]
async fn a_broken_configuration_ends_the_start_and_suggests_the_nearest_key() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("node.toml");
    fs::write(&file, "[mesh]\nlissten = []\n\n[limits]\nattempts_max = 99\n").expect("the file is written");
    let (file, data_dir) = (file.display().to_string(), folder.path().join("data").display().to_string());

    let output = meshwork(&["up", "--json", "--api", "127.0.0.1:0", "--config", &file, "--data-dir", &data_dir]).await;

    assert_eq!(output.code, 2, "{output:?}");
    for word in ["mesh.lissten", "did you mean mesh.listen?", "line 2", "limits.attempts_max", "between 1 and 16"] {
        assert!(output.stderr.contains(word), "{word}: {output:?}");
    }
}

#[tokio::test]
async fn an_agent_table_with_a_slip_ends_the_start() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("node.toml");
    let text = "[[agent]]\nname = \"x\"\nconcurency = 2\nadapter = { type = \"builtin\", kind = \"echo\" }\n";
    fs::write(&file, text).expect("the file is written");
    let (file, data_dir) = (file.display().to_string(), folder.path().join("data").display().to_string());

    let output = meshwork(&["up", "--json", "--api", "127.0.0.1:0", "--config", &file, "--data-dir", &data_dir]).await;

    assert_eq!(output.code, 2, "{output:?}");
    assert!(output.stderr.contains("concurency") && output.stderr.contains("agent[0].concurrency"), "{output:?}");
}
