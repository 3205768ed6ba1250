//! Shared contexts across nodes: what one writes the others see, after partitions, kills and revocations (AMP "Context Management").

use serde_json::{Value, json};

use crate::support::{
    Node, SETTLE, builtin,
    contexts::{at, create, pair, patch, set, shows},
    eventually,
};

/// AMP-9: the context object has AMP's fields; a member sees it, writes to it, and all see the same.
#[tokio::test]
async fn a_context_is_one_document_on_all_nodes_of_its_readers() {
    let (owner, other) = pair().await;
    let id = create(&owner, json!({ "write": [other.id()] })).await;
    shows(&other, &id, "/plan/title", json!("draft")).await;
    patch(&other, &id, set("/plan/title", json!("final"))).await.ok();
    patch(&owner, &id, json!({ "shared_memory": { "plan": { "pages": 3 } } })).await.ok();
    shows(&owner, &id, "/plan", json!({ "title": "final", "pages": 3 })).await;
    shows(&other, &id, "/plan", json!({ "title": "final", "pages": 3 })).await;

    let documents = [owner.get(&format!("/v1/contexts/{id}")).await.ok(), other.get(&format!("/v1/contexts/{}", &id[..8])).await.ok()];
    let [here, there] = &documents;
    assert_eq!(here["version"]["state_hash"], there["version"]["state_hash"]);
    for field in ["id", "session_id", "created_at", "expires_at", "shared_memory", "agent_memory", "lineage"] {
        assert!(!here[field].is_null() && here[field] == there[field], "{field}: {here}");
    }
    assert_eq!(here["lineage"], json!({ "parent_context": null, "root_context": id }));
    let past = owner.get(&format!("/v1/contexts/{id}/history")).await.ok();
    let authors: Vec<&Value> = past["operations"].as_array().expect("a list").iter().map(|row| &row["author"]).collect();
    assert_eq!((past["total"].as_u64(), authors.len()), (Some(3), 3));
    assert_ne!(authors[0], authors[1], "each is told with its author");
}

/// What is written while a reader's node is still given the context for the first time arrives there too, at once.
#[tokio::test]
async fn what_follows_the_beginning_of_a_context_at_once_is_not_missed() {
    let (owner, other) = pair().await;
    for round in 0..12 {
        let id = create(&owner, json!({ "read": [other.id()] })).await;
        for at in 0..3 {
            patch(&owner, &id, set("/at", json!([round, at]))).await.ok();
        }
        shows(&other, &id, "/at", json!([round, 2])).await;
    }
}

/// AMP-9: whoever is no reader is given nothing, and who may not write there changes nothing.
#[tokio::test]
async fn the_lists_of_readers_and_writers_hold() {
    let (owner, other) = pair().await;
    let hidden = create(&owner, json!({})).await;
    let access = json!({ "read": [], "write": [{ "principal": other.id(), "paths": ["/shared_memory/notes"] }] });
    let id = create(&owner, access).await;
    shows(&other, &id, "/plan/title", json!("draft")).await;
    // It was told of both at once, if it was told of both.
    other.get(&format!("/v1/contexts/{hidden}")).await.refused(404, "CONTEXT_NOT_FOUND");
    patch(&other, &id, set("/notes/a", json!(1))).await.ok();
    let refused = patch(&other, &id, set("/plan/title", json!("mine"))).await.refused(403, "ACCESS_DENIED");
    assert_eq!(refused["details"]["path"], "/shared_memory/plan/title");
    shows(&owner, &id, "/notes", json!({ "a": 1 })).await;

    let access = json!({ "read": [other.id()], "write": [] });
    other.put(&format!("/v1/contexts/{id}/access"), &access).await.refused(403, "ACCESS_DENIED");
    owner.put(&format!("/v1/contexts/{id}/access"), &access).await.ok();
    eventually("the right is gone", SETTLE, async || (patch(&other, &id, set("/notes/b", json!(1))).await.status == 403).then_some(()))
        .await;
    owner.put(&format!("/v1/contexts/{id}/access"), &json!({ "read": [], "write": [] })).await.ok();
    patch(&owner, &id, set("/secret", json!(true))).await.ok();
    let third = Node::builder().join(&owner).spawn().await;
    owner.meets(&third).await;
    owner.put(&format!("/v1/contexts/{id}/access"), &json!({ "read": [third.id()] })).await.ok();
    shows(&third, &id, "/secret", json!(true)).await;
    assert_eq!(at(&other, &id, "/secret").await, None, "a reader who is gone reads no more");
    assert_eq!(at(&third, &id, "/notes/a").await, Some(json!(1)), "one who came reads from the beginning");
}

/// Counters add up and lists keep what each appended, also while nobody hears of the others.
#[tokio::test]
async fn what_both_write_while_they_are_apart_is_merged_when_they_meet() {
    let (owner, other) = pair().await;
    let id = create(&owner, json!({ "write": [other.id()] })).await;
    shows(&other, &id, "/plan/title", json!("draft")).await;
    let other = {
        let mut other = other;
        other.kill().await;
        for at in 0..20 {
            let list = json!([
                { "op": "inc", "path": "/shared_memory/votes" },
                { "op": "append", "path": "/shared_memory/log", "value": format!("owner {at}") },
            ]);
            patch(&owner, &id, json!({ "ops": list })).await.ok();
        }
        // Back alone: the peer that it knew is where it was, but it is told to join nobody and holds no connection yet.
        other.reborn().no_join().spawn().await
    };
    for at in 0..10 {
        let list = json!([
            { "op": "inc", "path": "/shared_memory/votes", "by": 2 },
            { "op": "append", "path": "/shared_memory/log", "value": format!("other {at}") },
        ]);
        patch(&other, &id, json!({ "ops": list })).await.ok();
    }
    let other = other.restart_with(|builder| builder.join(&owner)).await;
    for node in [&owner, &other] {
        shows(node, &id, "/votes", json!(40)).await;
        let log = at(node, &id, "/log").await.expect("there");
        let of = |who: &str| {
            log.as_array().expect("a list").iter().filter(|entry| entry.as_str().is_some_and(|text| text.starts_with(who))).count()
        };
        assert_eq!((of("owner"), of("other")), (20, 10));
    }
    let hashes =
        [&owner, &other].map(async |node: &Node| node.get(&format!("/v1/contexts/{id}")).await.ok()["version"]["state_hash"].clone());
    let [here, there] = hashes;
    assert_eq!(here.await, there.await);
}

/// Fault F1: what was acknowledged is there after the node was killed, on every node that had acknowledged it.
#[tokio::test]
async fn what_was_acknowledged_outlives_a_kill() {
    let mut owner = Node::first().await;
    let id = create(&owner, json!({})).await;
    for round in 0..3 {
        for at in 0..30 {
            patch(&owner, &id, json!({ "ops": [{ "op": "append", "path": "/shared_memory/log", "value": [round, at] }] })).await.ok();
        }
        owner.kill().await;
        owner = owner.reborn().spawn().await;
        let log = at(&owner, &id, "/log").await.expect("there");
        assert_eq!(log.as_array().map(Vec::len), Some(30 * (round + 1)));
    }
    assert_eq!(owner.get("/v1/contexts").await.ok()["contexts"][0]["id"], id.as_str());
}

/// Somebody who was away when a context was shared hears of it when they meet.
#[tokio::test]
async fn a_reader_who_comes_late_is_given_the_context() {
    let (owner, mut other) = pair().await;
    let name = other.id().to_owned();
    other.kill().await;
    let id = create(&owner, json!({ "read": [name] })).await;
    let other = other.reborn().join(&owner).spawn().await;
    shows(&other, &id, "/plan/title", json!("draft")).await;
}

/// AMP-9: agents are principals too: named by the directory, with a memory of their own that nobody else reads.
#[tokio::test]
async fn an_agent_reads_writes_and_has_a_memory_of_its_own() {
    let owner = Node::first().await;
    let host = Node::builder().join(&owner).agent(builtin("scribe", "echo")).spawn().await;
    owner.knows("echo", &["scribe"]).await;
    let id = create(&owner, json!({ "write": ["scribe"] })).await;
    let scribe = host.agent_id("scribe").await;
    let as_scribe = format!("/v1/contexts/{id}?agent=scribe");
    eventually("the context is there", SETTLE, async || (host.get(&as_scribe).await.status == 200).then_some(())).await;
    host.get(&format!("/v1/contexts/{id}")).await.refused(403, "ACCESS_DENIED");
    let private = json!({ "agent_memory": { scribe.clone(): { "mood": "curious" } } });
    let answer = host.send(host.request(reqwest::Method::PATCH, &as_scribe).json(&private)).await.ok();
    assert_eq!(answer["operations"].as_array().map(Vec::len), Some(1));
    let mine = host.get(&as_scribe).await.ok();
    assert_eq!(mine["agent_memory"], json!({ scribe.clone(): { "mood": "curious" } }));
    let written = json!({ "shared_memory": { "by": "scribe" } });
    host.send(host.request(reqwest::Method::PATCH, &as_scribe).json(&written)).await.ok();
    shows(&owner, &id, "/by", json!("scribe")).await;
    let theirs = owner.get(&format!("/v1/contexts/{id}")).await.ok();
    assert_eq!((&theirs["agent_memory"], &theirs["version"]["operations"]), (&json!({}), &json!(3)), "it travelled, and is not shown");
    owner.send(owner.request(reqwest::Method::PATCH, &format!("/v1/contexts/{id}")).json(&private)).await.refused(403, "ACCESS_DENIED");
    host.get(&format!("/v1/contexts/{id}?agent=nobody")).await.refused(404, "AGENT_NOT_FOUND");
}

/// AMP 4: each update raises `context_update`, on the node that wrote and on those of the readers.
#[tokio::test]
async fn a_change_is_told_to_those_who_listen() {
    let (owner, other) = pair().await;
    let id = create(&owner, json!({ "read": [other.id()] })).await;
    shows(&other, &id, "/plan/title", json!("draft")).await;
    let mut listeners = [owner.events().await, other.events().await];
    let changed = patch(&owner, &id, set("/x", json!(1))).await.ok();
    for events in &mut listeners {
        let told = events.wait_for("context_update", SETTLE, |data| data["operations"] == changed["operations"]).await;
        assert_eq!(told["context"], json!({ "id": id, "session_id": "session-1" }));
    }
}

/// Bad input is named by its place and changes nothing.
#[tokio::test]
async fn faulty_requests_are_refused_with_their_place() {
    let node = Node::first().await;
    let id = create(&node, json!({})).await;
    for (body, place) in [
        (json!({ "session_id": "s", "expires_at": "yesterday" }), "/expires_at"),
        (json!({ "expires_at": "2020-01-01T00:00:00Z" }), "/expires_at"),
        (json!({ "access_control": { "read": ["did:key:z6Mkxxx"] } }), "/access_control/read/0"),
        (json!({ "access_control": { "write": [{ "principal": node.id(), "paths": ["notes"] }] } }), "/access_control/write/0/paths/0"),
    ] {
        let answer = node.post("/v1/contexts", &body).await;
        assert_eq!(answer.body["error"]["details"]["path"], place, "{}", answer.body);
    }
    let end = json!({ "access_control": { "expires_at": "2027-06-01T00:00:00Z" } });
    for path in ["/v1/contexts".to_owned(), format!("/v1/contexts/{id}/fork")] {
        let message = node.post(&path, &end).await.refused(400, "INVALID_REQUEST")["message"].to_string();
        assert!(message.contains("unknown field `expires_at`"), "when a context ends is no part of who may: {message}");
    }
    let large = set("/large", json!("x".repeat(70_000)));
    let before = node.get(&format!("/v1/contexts/{id}")).await.ok();
    for (body, status, code) in [
        (json!({ "ops": [] }), 400, "INVALID_REQUEST"),
        (json!({ "ops": [{ "op": "put", "path": "/shared_memory/a", "value": 1 }] }), 400, "INVALID_REQUEST"),
        (json!({ "lineage": {} }), 400, "INVALID_REQUEST"),
        (json!({ "ops": [{ "op": "inc", "path": "/shared_memory/plan/title" }] }), 409, "CONFLICT"),
        (large, 413, "PAYLOAD_TOO_LARGE"),
    ] {
        patch(&node, &id, body).await.refused(status, code);
    }
    assert_eq!(node.get(&format!("/v1/contexts/{id}")).await.ok(), before);
    let large = json!({ "shared_memory": { "large": "x".repeat(70_000) } });
    node.post("/v1/contexts", &large).await.refused(413, "PAYLOAD_TOO_LARGE");
    assert_eq!(node.get("/v1/contexts").await.ok()["contexts"].as_array().map(Vec::len), Some(1), "nothing is left of what was refused");
    node.get("/v1/contexts/ffffffff").await.refused(404, "CONTEXT_NOT_FOUND");
    node.get(&format!("/v1/contexts/{id}?path=/plan")).await.refused(400, "INVALID_REQUEST");
    node.get(&format!("/v1/contexts/{id}/history?limit=1001")).await.refused(400, "INVALID_REQUEST");
}

/// The verbs of `meshwork context` do what their help says.
#[tokio::test]
async fn the_verbs_create_change_share_and_look_back() {
    let (owner, other) = pair().await;
    let created = owner.cli(&["context", "create", "--value", r#"{"title": "draft"}"#, "--json"]).await;
    let created: Value = serde_json::from_str(&created.stdout).expect("a document");
    let id = created["id"].as_str().expect("an id");
    let short = &id[..8];
    let run = async |node: &Node, arguments: &[&str]| {
        let output = node.cli(&[&["context"], arguments].concat()).await;
        (output.code, output.stdout, output.stderr)
    };
    let done = |(code, out, err): (i32, String, String)| {
        assert_eq!(code, 0, "{err}");
        out
    };
    done(run(&owner, &["set", short, "/shared_memory/plan/steps", "[\"read\"]"]).await);
    done(run(&owner, &["append", short, "/shared_memory/plan/steps", "\"write\""]).await);
    done(run(&owner, &["inc", short, "/shared_memory/votes", "-3"]).await);
    done(run(&owner, &["del", short, "/shared_memory/title"]).await);
    let shared = done(run(&owner, &["get", short, "/shared_memory"]).await);
    assert_eq!(shared.trim(), r#"{"plan":{"steps":["read","write"]},"votes":-3}"#);
    assert!(done(run(&owner, &["list"]).await).contains(short));
    assert!(done(run(&owner, &["history", short]).await).contains("inc /shared_memory/votes -3"));

    done(run(&owner, &["grant", short, other.id(), "--write", "--path", "/shared_memory/notes"]).await);
    shows(&other, id, "/votes", json!(-3)).await;
    done(run(&other, &["set", short, "/shared_memory/notes", "{}"]).await);
    let (code, _, err) = run(&other, &["set", short, "/shared_memory/votes", "0"]).await;
    assert!(code == 1 && err.contains("ACCESS_DENIED"), "{err}");
    done(run(&owner, &["revoke", short, other.id()]).await);
    let (code, _, err) = run(&owner, &["revoke", short, other.id()]).await;
    assert!(code == 2 && err.contains("already"), "{err}");
    let (code, _, err) = run(&owner, &["get", "ffffffff"]).await;
    assert!(code == 1 && err.contains("CONTEXT_NOT_FOUND"), "{err}");
}
