//! The verbs against a running node: words for people, documents for scripts, and exit codes that say who has to act.

use std::fs;

use serde_json::json;

use crate::support::{Node, SETTLE, builtin, eventually, meshwork, script, with};

#[tokio::test]
async fn find_lists_candidates() {
    let node = Node::builder().agent(builtin("analyst", "text-analysis")).spawn().await;
    node.knows("text-analysis", &["analyst"]).await;

    let text = node.cli(&["find", "text-analysis", "--explain"]).await;
    assert!(text.text().contains("analyst@") && text.text().contains("text-analysis"), "{text:?}");
    let document = node.cli(&["find", "text-processing", "--limit", "1", "--json"]).await.json();
    assert_eq!((&document["agents"][0]["name"], &document["agents"][0]["node_id"]), (&json!("analyst"), &json!(node.id())));

    let nobody = node.cli(&["find", "text-analysis", "--max-latency", "1000", "--version", "^7", "--json"]).await;
    assert_eq!((nobody.code, &nobody.json()["agents"]), (0, &json!([])));
}

#[tokio::test]
async fn call_prints_the_output_alone() {
    let node = Node::builder().agent(builtin("echo", "echo")).spawn().await;
    node.knows("echo", &["echo"]).await;
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("input.json");
    fs::write(&file, "{\"from\": \"a file\"}").expect("the input is written");

    assert_eq!(node.cli(&["call", "echo", "{\"text\":\"Guten Morgen\"}"]).await.json(), json!({ "text": "Guten Morgen" }));
    assert_eq!(node.cli(&["call", "echo", "\"a text\""]).await.text().trim(), "\"a text\"");
    let from_file = node.cli(&["call", "echo", &format!("@{}", file.display())]).await;
    assert_eq!(from_file.json(), json!({ "from": "a file" }));
    let document = node.cli(&["call", "echo", "1", "--json", "--agent", "echo", "--key", "k"]).await.json();
    assert_eq!((&document["output"], &document["status"], &document["attempts"]), (&json!(1), &json!("success"), &json!(1)));
    assert_eq!(node.cli(&["call", "echo", "[2]", "--stream"]).await.json(), json!([2]));
    assert_eq!(node.cli(&["call", "no.such.thing", "--stream"]).await.code, 1);
}

#[tokio::test]
async fn call_explains_itself_on_standard_error() {
    let node = Node::builder().agent(builtin("echo", "echo")).spawn().await;
    node.knows("echo", &["echo"]).await;

    let output = node.cli(&["call", "echo", "[1]", "--explain"]).await;

    assert_eq!(output.json(), json!([1]), "standard output is the answer alone");
    assert!(output.stderr.contains("served by echo@") && output.stderr.contains("1 attempt"), "{output:?}");
}

#[tokio::test]
async fn agents_lists_this_node_or_the_mesh() {
    let first = Node::builder().agent(builtin("near", "echo")).spawn().await;
    let _second = Node::builder().join(&first).agent(builtin("far", "summarization")).spawn().await;
    first.knows("summarization", &["far"]).await;

    let local = first.cli(&["agents"]).await;
    assert!(local.text().contains("near@") && !local.text().contains("far@"), "{local:?}");
    let mesh = first.cli(&["agents", "--mesh"]).await;
    assert!(mesh.text().contains("near@") && mesh.text().contains("far@"), "{mesh:?}");
    assert_eq!(first.cli(&["agents", "--json"]).await.json()["agents"].as_array().map(Vec::len), Some(1));
    let filtered = first.cli(&["agents", "--mesh", "--capability", "summarization", "--json"]).await.json();
    assert_eq!(filtered["agents"][0]["name"], "far");
}

#[tokio::test]
async fn an_agent_is_added_shown_and_removed() {
    let node = Node::first().await;
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("agent.toml");
    fs::write(&file, "name = \"parrot\"\nadapter = { type = \"builtin\", kind = \"echo\" }\n").expect("the definition is written");
    let file = file.to_str().expect("temporary folders have plain names");

    let added = node.cli(&["agent", "add", file]).await;
    assert!(added.text().starts_with("added parrot@"), "{added:?}");
    let shown = node.cli(&["agent", "show", "parrot"]).await;
    assert!(shown.text().contains("(this node)") && shown.text().contains("echo 1.0"), "{shown:?}");
    let document = node.cli(&["agent", "show", "parrot", "--json"]).await.json();
    assert_eq!(document["agent_id"], node.agent_id("parrot").await.as_str());
    let removed = node.cli(&["agent", "remove", "parrot", "--json"]).await;
    assert_eq!(removed.json()["agent_id"], document["agent_id"]);

    let again = node.cli(&["agent", "add", file, "--json"]).await.json();
    assert_eq!(again["record"]["name"], "parrot");
    assert!(node.cli(&["agent", "remove", "parrot"]).await.text().starts_with("removed parrot@"));
    assert_eq!(node.cli(&["agent", "show", "parrot"]).await.code, 1);
}

#[tokio::test]
async fn peers_and_status_show_the_mesh() {
    let first = Node::builder().agent(builtin("echo", "echo")).spawn().await;
    let second = Node::builder().join(&first).spawn().await;
    second.meets(&first).await;
    second.knows("echo", &["echo"]).await;

    let short = &first.id()[first.id().len() - 8..];
    let peers = second.cli(&["peers"]).await;
    assert!(peers.text().contains(short), "{peers:?}");
    assert_eq!(second.cli(&["peers", "--json"]).await.json()["peers"][0]["node_id"], first.id());
    let status = second.cli(&["status"]).await;
    assert!(status.text().contains(second.id()) && status.text().contains("0 here, 1 in the mesh"), "{status:?}");
    let document = second.cli(&["status", "--json"]).await.json();
    assert_eq!((&document["node_id"], &document["counts"]["peers"]), (&json!(second.id()), &json!(1)));
}

#[tokio::test]
async fn trust_shows_what_calls_taught() {
    let node = Node::builder().agent(builtin("echo", "echo")).spawn().await;
    node.knows("echo", &["echo"]).await;

    assert!(node.cli(&["trust"]).await.text().contains("nothing learnt yet"));
    node.call("echo", json!(1)).await;
    let learnt = async || Some(node.cli(&["trust", "--json"]).await.json()).filter(|trust| trust["agents"] != json!([]));
    let document = eventually("a call leaves evidence", SETTLE, learnt).await;
    assert_eq!((&document["agents"][0]["name"], &document["agents"][0]["capability"]), (&json!("echo"), &json!("echo")));
    assert!(node.cli(&["trust"]).await.text().contains("echo@"));
}

#[tokio::test]
async fn doctor_finds_a_healthy_node_well_and_a_missing_one_not() {
    let mut node = Node::first().await;

    let text = node.cli(&["doctor"]).await;
    assert!(text.text().contains("ok") && !text.stdout.contains("FAIL"), "{text:?}");
    let document = node.cli(&["doctor", "--json"]).await.json();
    assert!(document["checks"].as_array().is_some_and(|checks| checks.len() > 3), "{document}");

    node.kill().await;
    let dead = node.cli(&["doctor"]).await;
    assert!(dead.code == 1 && dead.stdout.contains("FAIL") && dead.stdout.contains("meshwork up"), "{dead:?}");
}

#[tokio::test]
async fn key_show_tells_who_the_node_is() {
    let node = Node::builder().agent(builtin("echo", "echo")).spawn().await;
    node.knows("echo", &["echo"]).await;

    let text = node.cli(&["key", "show"]).await;
    assert!(text.text().contains(node.id()) && text.text().contains("600"), "{text:?}");
    let document = node.cli(&["key", "show", "--json"]).await.json();
    assert_eq!(document["node"]["node_id"], node.id());
    assert_eq!(document["agents"][0]["agent_id"], node.agent_id("echo").await.as_str());
}

#[tokio::test]
async fn config_checks_files_and_prints_examples() {
    let folder = tempfile::tempdir().expect("a folder");
    let (good, bad) = (folder.path().join("good.toml"), folder.path().join("bad.toml"));
    fs::write(&good, "[node]\nname = \"x\"\n").expect("the file is written");
    fs::write(&bad, "[routing]\nmin_trsut = 20\n").expect("the file is written");
    let (good, bad) = (good.display().to_string(), bad.display().to_string());

    assert!(meshwork(&["config", "check", &good]).await.text().ends_with("ok\n"));
    assert_eq!(meshwork(&["config", "check", &good, "--json"]).await.json()["ok"], true);
    let refused = meshwork(&["config", "check", &bad]).await;
    assert!(refused.code == 2 && refused.stderr.contains("routing.min_trust"), "{refused:?}");
    let refused = meshwork(&["config", "check", &bad, "--json"]).await;
    assert_eq!((refused.code, &refused.json()["error"]["code"]), (2, &json!("INVALID_REQUEST")));

    assert!(meshwork(&["config", "example"]).await.text().contains("agent-host"));
    assert!(meshwork(&["config", "example", "bootstrap"]).await.text().contains("[mesh]"));
    assert!(meshwork(&["config", "example", "bootstrap", "--json"]).await.json()["text"].is_string());
}

#[tokio::test]
async fn exit_code_1_means_that_the_mesh_said_no() {
    let node = Node::builder().agent(builtin("echo", "echo")).spawn().await;
    node.knows("echo", &["echo"]).await;

    let text = node.cli(&["call", "ecko", "1"]).await;
    assert_eq!((text.code, text.stdout.as_str()), (1, ""), "{text:?}");
    assert!(text.stderr.contains("CAPABILITY_NOT_FOUND") && text.stderr.contains("echo"), "{text:?}");
    let document = node.cli(&["call", "ecko", "1", "--json"]).await;
    assert_eq!((document.code, &document.json()["error"]["code"]), (1, &json!("CAPABILITY_NOT_FOUND")));
    let remove = node.cli(&["agent", "remove", "ecko", "--json"]).await;
    assert_eq!((remove.code, &remove.json()["error"]["code"]), (1, &json!("AGENT_NOT_FOUND")));
}

#[tokio::test]
async fn exit_code_2_means_wrong_usage() {
    let node = Node::first().await;

    for arguments in [
        &["call"][..],
        &["call", "echo", "not JSON"],
        &["call", "Not A Name", "1"],
        &["call", "echo", "1", "--timeout", "0"],
        &["fnd", "echo"],
        &["agent", "add", "/nowhere/agent.toml"],
        &["config", "check", "/nowhere/node.toml"],
        &["status", "--data-dir-of-another"],
    ] {
        let output = node.cli(arguments).await;
        assert_eq!(output.code, 2, "{arguments:?}: {output:?}");
        assert!(!output.stderr.is_empty() && output.stdout.is_empty(), "{arguments:?}: {output:?}");
    }
    assert_eq!(meshwork(&["status", "--data-dir", "/nowhere/at/all"]).await.code, 2, "there is no token");
    assert_eq!(meshwork(&["up", "--config", "/nowhere/node.toml"]).await.code, 2);
}

#[tokio::test]
async fn exit_code_3_means_that_no_node_answers() {
    let mut node = Node::first().await;
    node.kill().await;

    let text = node.cli(&["status"]).await;
    assert!(text.code == 3 && text.stderr.contains("meshwork up"), "{text:?}");
    let document = node.cli(&["find", "echo", "--json"]).await;
    assert_eq!((document.code, &document.json()["error"]["code"]), (3, &json!("UNAVAILABLE")));
}

#[tokio::test]
async fn exit_code_4_means_that_time_ran_out() {
    let agent = with(script("mute", "never.py", &[], json!({ "id": "test.mute" })), json!({ "concurrency": 2 }));
    let node = Node::builder().agent(agent).spawn().await;
    node.knows("test.mute", &["mute"]).await;

    let text = node.cli(&["call", "test.mute", "1", "--timeout", "0.5"]).await;
    assert!(text.code == 4 && text.stderr.contains("TIMEOUT"), "{text:?}");
    let document = node.cli(&["call", "test.mute", "1", "--timeout", "0.5", "--json"]).await;
    assert_eq!((document.code, &document.json()["error"]["code"]), (4, &json!("TIMEOUT")), "{document:?}");
}

#[tokio::test]
async fn every_verb_has_help_with_an_example() {
    let verbs =
        ["up", "demo", "agents", "agent", "find", "call", "peers", "status", "trust", "doctor", "events", "key", "config", "bench", "task"];
    for verb in verbs {
        let help = meshwork(&[verb, "--help"]).await;
        assert!(help.text().contains("Example") && help.text().contains("--json"), "{help:?}");
    }
    assert!(meshwork(&["--version"]).await.text().starts_with("meshwork "));
}

/// A demonstration that left out a part of the document would say something about another one.
#[tokio::test]
async fn the_demo_works_on_the_whole_of_a_long_text() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("long.txt");
    std::fs::write(&file, "The quick fox jumps over it. ".repeat(5_000)).expect("the file is written");

    let demo = meshwork(&["demo".as_ref(), file.as_os_str(), "--json".as_ref()]).await.json();

    assert_eq!(demo["steps"][1]["output"]["statistics"]["words"], 30_000, "{}", demo["steps"][1]);
    assert!(demo["task_id"].as_str().is_some_and(|id| id.len() == 36), "{}", demo["task_id"]);
    for (step, capability, node) in [
        ("extract", "pdf_text_extraction", "library"),
        ("analyse", "text-analysis", "study"),
        ("sum-up", "summarization", "press"),
        ("report", "orchestration", "press"),
    ] {
        let told = demo["steps"].as_array().and_then(|steps| steps.iter().find(|told| told["step"] == step)).expect("the step");
        assert_eq!((&told["capability"], &told["node"]), (&json!(capability), &json!(node)), "{told}");
        assert!(told["agent_id"].is_string() && told["node_id"].is_string() && told["latency_ms"].is_number(), "{told}");
        assert!(told["cost"]["amount"].is_string() && told["cost"]["currency"] == "USD", "{told}");
    }
    assert_eq!(demo["cost"], json!({ "amount": "0.007", "currency": "USD" }));
}
