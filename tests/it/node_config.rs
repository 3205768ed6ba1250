//! The configurations that come with the program start nodes that do what they say.

use std::{collections::BTreeSet, fs};

use serde_json::json;

use crate::support::{Builder, Node, SETTLE, builtin, meshwork};

/// Every file, and so a test below for each.
const FILES: [&str; 6] = ["agent-host", "bootstrap", "client-only", "local-a", "local-b", "private-lan"];

fn path(name: &str) -> String {
    format!("{}/node-config/{name}.toml", env!("CARGO_MANIFEST_DIR"))
}

fn from_file(name: &str) -> Builder {
    Node::builder().config_file(path(name))
}

#[test]
fn every_file_has_a_test() {
    let folder = fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/node-config")).expect("the folder is readable");
    let names = folder.map(|entry| entry.expect("the folder is readable").file_name().to_string_lossy().into_owned());
    let names: BTreeSet<String> = names.filter_map(|name| name.strip_suffix(".toml").map(str::to_owned)).collect();
    assert_eq!(names, FILES.map(str::to_owned).into());
}

#[tokio::test]
async fn every_file_passes_the_check() {
    for name in FILES {
        let output = meshwork(&["config", "check", &path(name)]).await;
        assert!(output.text().contains("ok"), "{output:?}");
    }
}

#[tokio::test]
async fn every_file_is_printed_as_an_example() {
    for name in FILES {
        let output = meshwork(&["config", "example", name]).await;
        assert_eq!(output.text(), fs::read_to_string(path(name)).expect("the file is readable"));
    }
}

#[tokio::test]
async fn local_a_and_local_b_form_a_mesh() {
    let a = from_file("local-a").spawn().await;

    let b = from_file("local-b").join(&a).spawn().await;

    b.knows("text-analysis", &["analyst"]).await;
    a.knows("summarization", &["summariser"]).await;
    let answer = b.call("text-analysis", json!({ "text": "Found on the other node." })).await;
    assert_eq!(answer["node_id"], a.id());
    assert_eq!(a.get("/v1/node").await.ok()["name"], "local-a");
}

#[tokio::test]
async fn agent_host_offers_its_three_agents() {
    let node = from_file("agent-host").spawn().await;

    node.knows("text-processing", &["analyst", "summariser"]).await;
    node.knows("word-count", &["word-counter"]).await;
    let answer = node.call("word-count", json!({ "text": "one two three" })).await;
    assert_eq!(answer["output"], json!({ "lines": 1, "words": 3, "characters": 13 }));
}

#[tokio::test]
async fn others_meet_through_bootstrap() {
    let bootstrap = from_file("bootstrap").spawn().await;
    let host = Node::builder().join(&bootstrap).agent(builtin("echo", "echo")).spawn().await;
    let asker = Node::builder().join(&bootstrap).spawn().await;

    asker.knows("echo", &["echo"]).await;
    assert_eq!(asker.call("echo", json!(1)).await["node_id"], host.id());
    assert!(bootstrap.log().lines().all(|line| line.starts_with('{')), "its log is for collectors: {}", bootstrap.log());
}

#[tokio::test]
async fn client_only_calls_agents_and_is_never_asked() {
    let host = Node::builder().agent(builtin("analyst", "text-analysis")).spawn().await;

    let laptop = from_file("client-only").listen(&[]).join(&host).spawn().await;

    laptop.knows("text-analysis", &["analyst"]).await;
    let answer = laptop.call("text-analysis", json!({ "text": "A fine day." })).await;
    assert_eq!(answer["node_id"], host.id());
    assert_eq!(laptop.get("/v1/node").await.ok()["listen"], json!([]), "it does not listen");
    assert!(laptop.post("/v1/agents", &builtin("echo", "echo")).await.status >= 400, "it hosts nobody");
}

#[tokio::test]
async fn private_lan_nodes_find_each_other() {
    let first = from_file("private-lan").spawn().await;

    let second = from_file("private-lan").join(&first).spawn().await;

    second.until_names("echo", &["echo", "echo"], SETTLE).await;
    first.until_names("echo", &["echo", "echo"], SETTLE).await;
}
