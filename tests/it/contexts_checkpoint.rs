//! Checkpoints of shared contexts: what was written long ago is let go of, and nothing that was acknowledged is lost by it (AMP "Context
//! Management", design/contexts.md "Life").

use serde_json::{Value, json};

use crate::support::{
    Node, SETTLE,
    contexts::{pair, patch},
    eventually,
};

async fn create(owner: &Node, memory: Value, access: Value) -> String {
    let body = json!({ "session_id": "session-1", "shared_memory": memory, "access_control": access });
    owner.post("/v1/contexts", &body).await.ok()["id"].as_str().expect("an id").to_owned()
}

/// Adds to the counter and to the log.
async fn note(node: &Node, id: &str, by: i64, entry: &str) {
    let ops = json!([
        { "op": "inc", "path": "/shared_memory/n", "by": by },
        { "op": "append", "path": "/shared_memory/log", "value": entry },
    ]);
    patch(node, id, json!({ "ops": ops })).await.ok();
}

async fn checkpoint(owner: &Node, id: &str) -> Value {
    owner.post(&format!("/v1/contexts/{id}/checkpoint"), &json!({})).await.ok()
}

async fn get(node: &Node, id: &str) -> Value {
    node.get(&format!("/v1/contexts/{id}")).await.ok()
}

/// Waits until a node shows this, all of it at hand.
async fn shows(node: &Node, id: &str, expected: &Value) {
    eventually(&format!("{id} holds {expected}"), SETTLE, async || {
        let answer = node.get(&format!("/v1/contexts/{id}")).await;
        let is_here = answer.body["checkpoint"].is_null() || answer.body["checkpoint"]["is_here"] == true;
        (answer.body["shared_memory"] == *expected && is_here).then_some(())
    })
    .await;
}

fn file_bytes(node: &Node, id: &str) -> u64 {
    std::fs::metadata(node.data_dir().join("contexts").join(format!("{id}.log"))).expect("the file of the context").len()
}

/// AMP-9: a context goes on over checkpoints; its file lets go of what was written before the last two, and a reader who comes then is given
/// what it held.
#[tokio::test]
async fn a_context_goes_on_over_checkpoints() {
    let (owner, other) = pair().await;
    let id = create(&owner, json!({ "n": 0, "log": [] }), json!({ "write": [other.id()] })).await;
    shows(&other, &id, &json!({ "n": 0, "log": [] })).await;
    let large = "x".repeat(50_000);
    for _ in 0..4 {
        patch(&owner, &id, json!({ "shared_memory": { "large": large } })).await.ok();
    }
    note(&other, &id, 1, "other").await;
    patch(&owner, &id, json!({ "shared_memory": { "large": null } })).await.ok();
    let mut held = json!({ "n": 1, "log": ["other"] });
    shows(&owner, &id, &held).await;
    shows(&other, &id, &held).await;
    let hash = get(&owner, &id).await["version"]["state_hash"].clone();

    let done = checkpoint(&owner, &id).await;
    assert_eq!((&done["shared_memory"], &done["version"]["state_hash"]), (&held, &hash), "nothing that is seen has changed");
    owner.post(&format!("/v1/contexts/{id}/checkpoint"), &json!({})).await.refused(409, "CONFLICT");
    other.post(&format!("/v1/contexts/{id}/checkpoint"), &json!({})).await.refused(403, "ACCESS_DENIED");
    note(&owner, &id, 10, "owner").await;
    (held["n"], held["log"]) = (json!(11), json!(["other", "owner"]));
    shows(&other, &id, &held).await;
    let events = async |node: &Node, after: u64| node.get(&format!("/v1/contexts/{id}/history?limit={after}")).await.ok();
    assert_eq!(events(&owner, 100).await["since"], Value::Null, "what was before the first is still looked back at");
    let before = [file_bytes(&owner, &id), file_bytes(&other, &id)];

    let second = checkpoint(&owner, &id).await;
    note(&other, &id, 100, "other").await;
    (held["n"], held["log"]) = (json!(111), json!(["other", "owner", "other"]));
    shows(&owner, &id, &held).await;
    shows(&other, &id, &held).await;
    for (node, before) in [&owner, &other].into_iter().zip(before) {
        let after = file_bytes(node, &id);
        assert!(before > 200_000 && after < 20_000, "{before} to {after} bytes");
        let history = events(node, 100).await;
        assert_eq!((history["operations"].as_array().expect("a list").len(), &history["since"]["epoch"]), (2, &json!(2)));
    }
    let newest = second["checkpoint"]["id"].as_str().expect("an id");
    let older = owner.get(&format!("/v1/contexts/{id}?at={newest}")).await.ok();
    assert_eq!(older["shared_memory"], json!({ "n": 11, "log": ["other", "owner"] }));

    // After a start as before, and for a reader who comes now.
    let (owner, other) = (owner.restart().await, other);
    let other = other.restart_with(|builder| builder.join(&owner)).await;
    shows(&owner, &id, &held).await;
    shows(&other, &id, &held).await;
    let late = Node::builder().join(&owner).spawn().await;
    owner.meets(&late).await;
    let access = json!({ "read": [late.id()], "write": [other.id(), late.id()] });
    owner.send(owner.request(reqwest::Method::PUT, &format!("/v1/contexts/{id}/access")).json(&access)).await.ok();
    shows(&late, &id, &held).await;
    note(&late, &id, 1_000, "late").await;
    (held["n"], held["log"]) = (json!(1_111), json!(["other", "owner", "other", "late"]));
    let hashes = async |node: &Node| get(node, &id).await["version"]["state_hash"].clone();
    for node in [&owner, &other, &late] {
        shows(node, &id, &held).await;
        assert_eq!(hashes(node).await, hashes(&owner).await);
    }
    let shown = owner.cli(&["context", "get", &id]).await.stdout;
    assert!(shown.contains("checkpoint"), "{shown}");
    let history = owner.cli(&["context", "history", &id]).await.stdout;
    assert!(history.contains("what was written before the checkpoint of"), "{history}");
}

/// What its node acknowledged while the owner was away is not lost when the owner ends the era without it: it is written once more, once.
#[tokio::test]
async fn what_was_written_while_the_owner_was_away_is_written_once_more() {
    let (mut owner, mut other) = pair().await;
    let id = create(&owner, json!({ "n": 0, "log": [], "who": "nobody" }), json!({ "write": [other.id()] })).await;
    shows(&other, &id, &json!({ "n": 0, "log": [], "who": "nobody" })).await;
    owner.kill().await;
    note(&other, &id, 5, "away").await;
    patch(&other, &id, json!({ "shared_memory": { "who": "other", "only": true } })).await.ok();
    other.kill().await;

    let owner = owner.restart().await;
    note(&owner, &id, 1, "owner").await;
    checkpoint(&owner, &id).await;
    patch(&owner, &id, json!({ "shared_memory": { "later": true } })).await.ok();
    let mut other = other.restart_with(|builder| builder.join(&owner)).await;
    let held = json!({ "n": 6, "log": ["owner", "away"], "who": "other", "only": true, "later": true });
    shows(&other, &id, &held).await;
    shows(&owner, &id, &held).await;
    for _ in 0..2 {
        other.kill().await;
        other = other.restart_with(|builder| builder.join(&owner)).await;
        shows(&other, &id, &held).await;
    }
    note(&other, &id, 10, "after").await;
    checkpoint(&owner, &id).await;
    note(&other, &id, 100, "last").await;
    let held = json!({ "n": 116, "log": ["owner", "away", "after", "last"], "who": "other", "only": true, "later": true });
    shows(&other, &id, &held).await;
    shows(&owner, &id, &held).await;
    assert_eq!(get(&owner, &id).await["equivocations"], json!([]), "nobody signed two of one number");
}

/// AMP-9: what was merged once is not brought again, although the operations that told of it are gone; and what cannot be told any more is
/// refused rather than guessed.
#[tokio::test]
async fn merges_are_remembered_over_checkpoints() {
    let node = Node::first().await;
    let id = create(&node, json!({ "n": 0, "log": [] }), json!({})).await;
    let forked = node.post(&format!("/v1/contexts/{id}/fork"), &json!({})).await.ok();
    let fork = forked["id"].as_str().expect("an id").to_owned();
    let merge = async |source: &str| node.post(&format!("/v1/contexts/{id}/merge"), &json!({ "source": source })).await;
    note(&node, &fork, 5, "fork").await;
    merge(&fork).await.ok();
    for by in [10, 100] {
        note(&node, &id, by, "parent").await;
        checkpoint(&node, &id).await;
    }
    assert_eq!(merge(&fork).await.ok()["changed"], json!([]), "it has all of it");
    note(&node, &fork, 1_000, "fork").await;
    merge(&fork).await.ok();
    let held = json!({ "n": 1_115, "log": ["fork", "parent", "parent", "fork"] });
    shows(&node, &id, &held).await;
    // The fork lets go of what it had when it was forked, and of what was merged.
    for by in [1, 2, 3] {
        note(&node, &fork, by, "fork").await;
        checkpoint(&node, &fork).await;
    }
    let refused = merge(&fork).await.refused(503, "UNAVAILABLE");
    assert!(refused["message"].as_str().is_some_and(|message| message.contains("let go of after a checkpoint")), "{refused}");
    shows(&node, &id, &held).await;
}

/// Events keep their numbers when the file lets go of what was before them, also for a client that follows meanwhile.
#[tokio::test]
async fn events_keep_their_numbers_over_checkpoints() {
    let node = Node::first().await;
    let id = create(&node, json!({ "n": 0 }), json!({})).await;
    let mut following = node.follow(&format!("/v1/contexts/{id}/events")).await;
    let mut numbers = Vec::new();
    for by in 1..=3 {
        note(&node, &id, by, "x").await;
        let event = following.wait_for("operation", SETTLE, |event| event["items"][0]["by"] == by).await;
        numbers.push(event["index"].as_u64().expect("a number"));
        checkpoint(&node, &id).await;
        following.wait_for("access", SETTLE, |event| event["checkpoint"] == true).await;
    }
    assert!(numbers.is_sorted_by(|a, b| a < b), "{numbers:?}");
    let last = numbers[2];
    let mut again = node.follow(&format!("/v1/contexts/{id}/events?after={}", last - 1)).await;
    let event = again.wait_for("operation", SETTLE, |_| true).await;
    assert_eq!((&event["index"], &event["items"][0]["by"]), (&json!(last), &json!(3)));
    let mut all = node.follow(&format!("/v1/contexts/{id}/events")).await;
    let first = all.wait_for("operation", SETTLE, |_| true).await;
    assert_eq!((&first["index"], &first["items"][0]["by"]), (&json!(last), &json!(3)), "those before were let go of");
}

#[tokio::test]
async fn a_checkpoint_is_for_the_owner_alone() {
    let (owner, other) = pair().await;
    let id = create(&owner, json!({ "n": 0 }), json!({ "write": [other.id()] })).await;
    shows(&other, &id, &json!({ "n": 0 })).await;
    let refused = other.cli(&["context", "checkpoint", &id]).await;
    assert!(refused.code != 0 && refused.stderr.contains("only the owner"), "{}", refused.stderr);
    let done = owner.cli(&["context", "checkpoint", &id]).await;
    assert!(done.code == 0 && done.stdout.contains("checkpoint"), "{}", done.stdout);
    let refused = owner.cli(&["context", "checkpoint", &id]).await;
    assert!(refused.code != 0 && refused.stderr.contains("nothing was written since the last one"), "{}", refused.stderr);
    owner.post("/v1/contexts/0000/checkpoint", &json!({})).await.refused(404, "CONTEXT_NOT_FOUND");
    owner.post(&format!("/v1/contexts/{id}/checkpoint"), &json!({ "agnet": "x" })).await.refused(400, "INVALID_REQUEST");
}
