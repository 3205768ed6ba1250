//! Forks and merges of shared contexts, their older states, and their events told again (AMP "Fork Context", "Merge Contexts").

use serde_json::{Value, json};

use crate::support::{Answer, Node, Running, SETTLE, builtin, eventually};

async fn patch(node: &Node, id: &str, body: Value) -> Answer {
    node.send(node.request(reqwest::Method::PATCH, &format!("/v1/contexts/{id}")).json(&body)).await
}

/// Writes operations, each `[op, path below the shared memory, value]`; their ids.
async fn write(node: &Node, id: &str, operations: &[(&str, &str, Value)]) -> Vec<String> {
    let operation = |(op, path, value): &(&str, &str, Value)| {
        let mut operation = json!({ "op": op, "path": format!("/shared_memory{path}") });
        match *op {
            "inc" => operation["by"] = value.clone(),
            "del" => {}
            _ => operation["value"] = value.clone(),
        }
        operation
    };
    let answer = patch(node, id, json!({ "ops": operations.iter().map(operation).collect::<Vec<_>>() })).await.ok();
    answer["operations"].as_array().expect("a list").iter().map(|id| id.as_str().expect("an id").to_owned()).collect()
}

async fn get(node: &Node, id: &str) -> Value {
    node.get(&format!("/v1/contexts/{id}")).await.ok()
}

async fn shared(node: &Node, id: &str) -> Value {
    get(node, id).await["shared_memory"].clone()
}

/// Waits until a node shows this.
async fn shows(node: &Node, id: &str, expected: Value) {
    let agrees = async || {
        let answer = node.get(&format!("/v1/contexts/{id}")).await;
        (answer.body["shared_memory"] == expected).then_some(())
    };
    eventually(&format!("{id} holds {expected}"), SETTLE, agrees).await;
}

async fn create(owner: &Node, memory: Value, access: Value) -> String {
    let body = json!({ "session_id": "session-1", "shared_memory": memory, "access_control": access });
    owner.post("/v1/contexts", &body).await.ok()["id"].as_str().expect("an id").to_owned()
}

async fn fork(node: &Node, id: &str, body: Value) -> Value {
    node.post(&format!("/v1/contexts/{id}/fork"), &body).await.ok()
}

async fn merge(node: &Node, id: &str, body: Value) -> Answer {
    node.post(&format!("/v1/contexts/{id}/merge"), &body).await
}

fn id_of(document: &Value) -> String {
    document["id"].as_str().expect("an id").to_owned()
}

async fn pair() -> (Node, Node) {
    let owner = Node::first().await;
    let other = Node::builder().join(&owner).spawn().await;
    owner.meets(&other).await;
    (owner, other)
}

/// AMP-9: a reader forks what it may not write to, works there, and the owner merges that back; what both changed is a conflict.
#[tokio::test]
async fn a_reader_forks_a_context_and_its_owner_merges_that_back() {
    let (owner, other) = pair().await;
    let memory = json!({ "plan": { "title": "draft", "pages": 3 }, "votes": 1, "log": ["begun"], "null": null, "empty": {} });
    let begun = json!({ "plan": { "title": "draft", "pages": 3 }, "votes": 1 });
    let id = create(&owner, begun.clone(), json!({ "read": [other.id()] })).await;
    shows(&other, &id, begun).await;
    write(&owner, &id, &[("append", "/log", json!("begun")), ("set", "/null", json!(null)), ("set", "/empty", json!({}))]).await;
    shows(&other, &id, memory.clone()).await;

    let forked = fork(&other, &id, json!({})).await;
    let fork = id_of(&forked);
    assert_eq!(forked["lineage"], json!({ "parent_context": id, "root_context": id }));
    assert_eq!((&forked["shared_memory"], &forked["session_id"]), (&memory, &json!("session-1")));
    let parent = get(&owner, &id).await;
    assert_eq!(forked["version"]["state_hash"], parent["version"]["state_hash"], "the same state has the same hash");
    assert_eq!(forked["expires_at"], parent["expires_at"]);
    assert_ne!(forked["owner"], parent["owner"]);
    shows(&owner, &fork, memory.clone()).await;

    write(&other, &fork, &[("inc", "/votes", json!(2)), ("append", "/log", json!("other")), ("set", "/plan/title", json!("final"))]).await;
    write(&owner, &fork, &[("set", "/notes", json!({ "a": 1 })), ("del", "/null", json!(0))]).await;
    write(&owner, &id, &[("inc", "/votes", json!(10)), ("append", "/log", json!("owner")), ("set", "/plan/title", json!("mine"))]).await;
    shows(&other, &fork, shared(&owner, &fork).await).await;
    let mut worked = memory.clone();
    worked.as_object_mut().expect("an object").remove("null");
    (worked["votes"], worked["log"], worked["plan"]["title"]) = (json!(3), json!(["begun", "other"]), json!("final"));
    worked["notes"] = json!({ "a": 1 });
    shows(&owner, &fork, worked).await;

    merge(&other, &id, json!({ "source": fork })).await.refused(403, "ACCESS_DENIED");
    let merged = merge(&owner, &id, json!({ "source": &fork[..12] })).await.ok();
    let changed =
        ["/shared_memory/log", "/shared_memory/notes/a", "/shared_memory/null", "/shared_memory/plan/title", "/shared_memory/votes"];
    assert_eq!((&merged["changed"], &merged["source"]), (&json!(changed), &json!(fork)));
    let conflict = json!({ "path": "/shared_memory/plan/title", "source": "final", "target": "mine" });
    assert_eq!(merged["conflicts"], json!([conflict]));
    let expected = json!({
        "plan": { "title": "final", "pages": 3 }, "votes": 13, "log": ["begun", "owner", "other"], "empty": {}, "notes": { "a": 1 }
    });
    shows(&owner, &id, expected.clone()).await;
    shows(&other, &id, expected.clone()).await;
    let past = owner.get(&format!("/v1/contexts/{id}/history?limit=1")).await.ok();
    let frontier = get(&owner, &fork).await["version"]["frontier"].clone();
    let row = &past["operations"][0];
    assert_eq!((&row["id"], &row["source"], &row["sources"]), (&merged["operations"][0], &json!(fork), &frontier));

    let again = merge(&owner, &id, json!({ "source": fork })).await.ok();
    assert_eq!((&again["operations"], &again["changed"], &again["conflicts"]), (&json!([]), &json!([]), &json!([])));
    assert_eq!(again["version"], merged["version"], "merged twice is merged once");
    // The other way, and to and fro: nothing is brought twice.
    merge(&other, &fork, json!({ "source": id })).await.ok();
    let mut brought = expected;
    brought["log"] = json!(["begun", "other", "owner"]);
    shows(&other, &fork, brought).await;
    write(&other, &fork, &[("inc", "/votes", json!(100))]).await;
    shows(&owner, &fork, shared(&other, &fork).await).await;
    merge(&owner, &id, json!({ "source": fork })).await.ok();
    assert_eq!(shared(&owner, &id).await["votes"], json!(113));
}

/// AMP-9: the target's side may be preferred, two forks of one context are merged, and contexts that have nothing in common are not.
#[tokio::test]
async fn siblings_are_merged_and_strangers_are_not() {
    let node = Node::first().await;
    let id = create(&node, json!({ "x": 0, "n": 0 }), json!({})).await;
    let [first, second] = [id_of(&fork(&node, &id, json!({})).await), id_of(&fork(&node, &id, json!({ "session_id": "second" })).await)];
    assert_eq!(get(&node, &second).await["session_id"], "second");
    write(&node, &first, &[("set", "/x", json!(1)), ("inc", "/n", json!(1)), ("set", "/only", json!("first"))]).await;
    write(&node, &second, &[("set", "/x", json!(2)), ("inc", "/n", json!(10))]).await;
    let merged = merge(&node, &second, json!({ "source": first, "prefer": "target" })).await.ok();
    assert_eq!(merged["conflicts"], json!([{ "path": "/shared_memory/x", "source": 1, "target": 2 }]));
    assert_eq!(shared(&node, &second).await, json!({ "x": 2, "n": 11, "only": "first" }));
    // A fork of a fork comes of the same root.
    let grandchild = id_of(&fork(&node, &second, json!({})).await);
    assert_eq!(get(&node, &grandchild).await["lineage"], json!({ "parent_context": second, "root_context": id }));
    write(&node, &id, &[("inc", "/n", json!(5))]).await;
    merge(&node, &grandchild, json!({ "source": id })).await.ok();
    assert_eq!(shared(&node, &grandchild).await["n"], json!(16), "what it had through its parent does not come again");

    let stranger = create(&node, json!({ "x": 9 }), json!({})).await;
    let before = get(&node, &grandchild).await;
    let refused = merge(&node, &grandchild, json!({ "source": stranger })).await.refused(409, "CONFLICT");
    assert_eq!((&refused["details"]["source_root"], &refused["details"]["target_root"]), (&json!(stranger), &json!(id)));
    for (body, status, code) in [
        (json!({ "source": grandchild }), 400, "INVALID_REQUEST"),
        (json!({ "source": "ffffffff" }), 404, "CONTEXT_NOT_FOUND"),
        (json!({ "source": id, "prefer": "both" }), 400, "INVALID_REQUEST"),
        (json!({ "prefer": "source" }), 400, "INVALID_REQUEST"),
        (json!({ "source": id, "agent": "nobody" }), 404, "AGENT_NOT_FOUND"),
    ] {
        merge(&node, &grandchild, body).await.refused(status, code);
    }
    assert_eq!(get(&node, &grandchild).await, before, "what is refused changes nothing");
    merge(&node, "ffffffff", json!({ "source": id })).await.refused(404, "CONTEXT_NOT_FOUND");
}

/// AMP-9: a context is shown as it was after any of its operations, and forked from there.
#[tokio::test]
async fn older_states_are_shown_and_forked() {
    let (owner, other) = pair().await;
    let id = create(&owner, json!({}), json!({ "write": [other.id()] })).await;
    shows(&other, &id, json!({})).await;
    let mut states = Vec::new();
    for round in 0..4 {
        let node = if round % 2 == 0 { &owner } else { &other };
        let written = write(node, &id, &[("set", "/round", json!(round)), ("inc", "/n", json!(1))]).await;
        let document = get(node, &id).await;
        assert_eq!(document["version"]["frontier"], json!(written));
        shows(&owner, &id, document["shared_memory"].clone()).await;
        shows(&other, &id, document["shared_memory"].clone()).await;
        states.push((written[0].clone(), document));
    }
    for (operation, document) in &states {
        for node in [&owner, &other] {
            assert_eq!(&node.get(&format!("/v1/contexts/{id}?at={operation}")).await.ok(), document);
            let short = node.get(&format!("/v1/contexts/{id}?at={}&path=/shared_memory/round", &operation[..8])).await.ok();
            assert_eq!(short, document["shared_memory"]["round"]);
        }
    }
    let (early, document) = &states[1];
    let both = owner.get(&format!("/v1/contexts/{id}?at={early},{}", states[0].0)).await.ok();
    assert_eq!(&both, document, "what one of them builds on adds nothing");
    let forked = fork(&other, &id, json!({ "at": [early], "access_control": {}, "expires_at": "2027-06-01T00:00:00Z" })).await;
    assert_eq!(forked["shared_memory"], document["shared_memory"]);
    assert_eq!((&forked["access_control"]["write"], &forked["expires_at"]), (&json!([]), &json!("2027-06-01T00:00:00Z")));
    assert_eq!(forked["access_control"]["read"].as_array().map(Vec::len), Some(1));
    let back = merge(&other, &id, json!({ "source": forked["id"] })).await.ok();
    assert_eq!((&back["changed"], &back["conflicts"]), (&json!([]), &json!([])), "it changed nothing since then");

    let path = |at: &str| format!("/v1/contexts/{id}?at={at}");
    let unknown = owner.get(&path(&"0".repeat(64))).await.refused(404, "CONTEXT_NOT_FOUND");
    assert!(unknown["message"].as_str().is_some_and(|message| message.contains("no operation `0000")), "{unknown}");
    assert_eq!(unknown["details"]["path"], "/at/0");
    for at in ["", "0000000", "zzzzzzzz", &format!("{early},")] {
        owner.get(&path(at)).await.refused(400, "INVALID_REQUEST");
    }
    let many = |count: usize| vec![early.as_str(); count];
    assert_eq!(&owner.get(&path(&many(64).join(","))).await.ok(), document);
    assert_eq!(owner.get(&path(&many(65).join(","))).await.refused(400, "INVALID_REQUEST")["details"]["path"], "/at");
    let forking = format!("/v1/contexts/{id}/fork");
    for (body, status, place) in [
        (json!({ "at": many(65) }), 400, "/at"),
        (json!({ "at": [] }), 400, "/at"),
        (json!({ "at": [early, "ffffffffff"] }), 404, "/at/1"),
        (json!({ "expires_at": "yesterday" }), 400, "/expires_at"),
        (json!({ "expires_at": "2020-01-01T00:00:00Z" }), 400, "/expires_at"),
        (json!({ "access_control": { "read": ["did:key:z6Mkxxx"] } }), 404, "/access_control/read/0"),
    ] {
        let answer = owner.post(&forking, &body).await;
        assert_eq!((answer.status, &answer.body["error"]["details"]["path"]), (status, &json!(place)), "{}", answer.body);
    }
    owner.post(&forking, &json!({ "session_id": "x".repeat(129) })).await.refused(400, "INVALID_REQUEST");
    owner.post(&forking, &json!({ "shared_memory": {} })).await.refused(400, "INVALID_REQUEST");
    owner.post("/v1/contexts/ffffffff/fork", &json!({})).await.refused(404, "CONTEXT_NOT_FOUND");
    assert_eq!(owner.get("/v1/contexts").await.ok()["contexts"].as_array().map(Vec::len), Some(1), "of what was refused nothing is left");
}

/// AMP-9: whoever may not read a context, or not any more, neither looks back nor follows, forks or merges it.
#[tokio::test]
async fn who_may_not_read_a_context_has_no_part_in_its_past_or_its_forks() {
    let node = Node::builder().agent(builtin("scribe", "echo")).spawn().await;
    let scribe = node.agent_id("scribe").await;
    let id = create(&node, json!({ "a": 1 }), json!({ "read": [scribe] })).await;
    let first = get(&node, &id).await["version"]["frontier"][0].as_str().expect("an id").to_owned();
    let forked = fork(&node, &id, json!({ "agent": "scribe" })).await;
    let fork = id_of(&forked);
    assert_eq!(forked["owner"], json!(scribe));
    let mut events = node.follow(&format!("/v1/contexts/{id}/events?agent=scribe")).await;
    assert_eq!(events.next().await.expect("an event").0, "created");
    merge(&node, &id, json!({ "source": fork, "agent": "scribe" })).await.ok();
    write(&node, &id, &[("set", "/a", json!(2))]).await;
    merge(&node, &fork, json!({ "source": id, "agent": "scribe" })).await.ok();
    merge(&node, &id, json!({ "source": fork, "agent": "scribe" })).await.ok();
    write(&node, &fork, &[("set", "/a", json!(3))]).await;
    merge(&node, &id, json!({ "source": fork, "agent": "scribe" })).await.refused(403, "ACCESS_DENIED");

    node.put(&format!("/v1/contexts/{id}/access"), &json!({})).await.ok();
    let refused = events.wait_for("error", SETTLE, |_| true).await;
    assert_eq!(refused["error"]["code"], "ACCESS_DENIED");
    assert_eq!(events.next().await.map(|(name, _)| name), None, "and no more");
    node.get(&format!("/v1/contexts/{id}?agent=scribe&at={first}")).await.refused(403, "ACCESS_DENIED");
    node.get(&format!("/v1/contexts/{id}/events?agent=scribe")).await.refused(403, "ACCESS_DENIED");
    node.get("/v1/contexts/ffffffff/events").await.refused(404, "CONTEXT_NOT_FOUND");
    node.post(&format!("/v1/contexts/{id}/fork"), &json!({ "agent": "scribe" })).await.refused(403, "ACCESS_DENIED");
    merge(&node, &fork, json!({ "source": id, "agent": "scribe" })).await.refused(403, "ACCESS_DENIED");
    merge(&node, &id, json!({ "source": fork, "agent": "scribe" })).await.refused(403, "ACCESS_DENIED");
    assert_eq!(shared(&node, &id).await, json!({ "a": 2 }));
    merge(&node, &id, json!({ "source": fork })).await.ok();
    assert_eq!(shared(&node, &id).await, json!({ "a": 3 }));
}

/// AMP-9: a merge is as durable as any change, and a fork is there as a whole or not at all.
#[tokio::test]
async fn forks_and_merges_outlive_a_kill() {
    let mut node = Node::first().await;
    let list: Vec<String> = (0..300).map(|at| format!("{at} {}", "x".repeat(600))).collect();
    let id = create(&node, json!({ "list": [], "n": 1 }), json!({})).await;
    for portion in list.chunks(50) {
        let operations: Vec<(&str, &str, Value)> = portion.iter().map(|entry| ("append", "/list", json!(entry))).collect();
        write(&node, &id, &operations).await;
    }
    let forked = fork(&node, &id, json!({})).await;
    let fork = id_of(&forked);
    assert_eq!(forked["shared_memory"]["list"], json!(list), "a list that no operation could hold");
    node.kill().await;
    node = node.reborn().spawn().await;
    assert_eq!(get(&node, &fork).await, forked);
    write(&node, &fork, &[("append", "/list", json!("last")), ("inc", "/n", json!(1))]).await;
    let merged = merge(&node, &id, json!({ "source": fork })).await.ok();
    node.kill().await;
    node = node.reborn().spawn().await;
    let after = get(&node, &id).await;
    assert_eq!((&after["version"], &after["shared_memory"]), (&merged["version"], &get(&node, &fork).await["shared_memory"]));
    assert_eq!(merge(&node, &id, json!({ "source": fork })).await.ok()["operations"], json!([]));
}

/// What no single author may write is not forked, and what would be too large is refused by name; nothing is left of either.
#[tokio::test]
async fn what_is_too_large_is_refused_and_leaves_nothing() {
    let (owner, other) = pair().await;
    let id = create(&owner, json!({}), json!({ "write": [other.id()] })).await;
    shows(&other, &id, json!({})).await;
    let empty = id_of(&fork(&owner, &id, json!({})).await);
    // What deep places cost adds up fastest.
    let deep = "/d".repeat(29);
    for (node, name) in [(&owner, "a"), (&other, "b")] {
        for part in 0..9 {
            let places =
                (0..1_000).map(|at| json!({ "op": "set", "path": format!("/shared_memory/{name}{deep}/{part}-{at}"), "value": 1 }));
            patch(node, &id, json!({ "ops": places.collect::<Vec<_>>() })).await.ok();
        }
    }
    let count = async |node: &Node| get(node, &id).await["version"]["operations"].as_u64();
    eventually("the owner has all", SETTLE, async || (count(&owner).await >= Some(72)).then_some(())).await;
    let contexts = async || owner.get("/v1/contexts").await.ok()["contexts"].as_array().map(Vec::len);
    let before = contexts().await;
    owner.post(&format!("/v1/contexts/{id}/fork"), &json!({})).await.refused(402, "OVER_BUDGET");
    assert_eq!(contexts().await, before);
    let unchanged = get(&owner, &empty).await;
    merge(&owner, &empty, json!({ "source": id })).await.refused(402, "OVER_BUDGET");
    assert_eq!(get(&owner, &empty).await, unchanged, "all of it or nothing");
    write(&owner, &empty, &[("set", "/small", json!(1))]).await;
    assert_eq!(shared(&owner, &empty).await, json!({ "small": 1 }));
}

/// AMP-9: what came to a node is told again from any event on, after a restart as before, and then what comes.
#[tokio::test]
async fn events_are_told_again_and_then_followed() {
    let (owner, other) = pair().await;
    let id = create(&owner, json!({ "a": 1 }), json!({ "read": [other.id()] })).await;
    shows(&other, &id, json!({ "a": 1 })).await;
    write(&owner, &id, &[("set", "/a", json!(2))]).await;
    let path = format!("/v1/contexts/{id}/events");
    let mut events = owner.follow(&path).await;
    let mut told = Vec::new();
    for name in ["created", "access", "operation", "operation"] {
        let (found, data) = events.next().await.expect("an event");
        assert_eq!((found.as_str(), &data["event"], &data["index"]), (name, &json!(name), &json!(told.len())));
        told.push(data);
    }
    let past = owner.get(&format!("/v1/contexts/{id}/history")).await.ok();
    let mut row = told[3].clone();
    row.as_object_mut().expect("an object").retain(|name, _| name != "index" && name != "event");
    assert_eq!(row, past["operations"][0], "an operation is told as the history shows it");
    assert_eq!(told[1]["access_control"], get(&owner, &id).await["access_control"]);
    let written = write(&owner, &id, &[("inc", "/n", json!(1))]).await;
    let (_, data) = events.next().await.expect("an event");
    assert_eq!((&data["id"], &data["index"]), (&json!(written[0]), &json!(4)));
    told.push(data);
    drop(events);

    // The other heard of the same; its numbers are its own.
    shows(&other, &id, json!({ "a": 2, "n": 1 })).await;
    let mut theirs = other.follow(&path).await;
    let mut ids = Vec::new();
    for _ in 0..told.len() {
        ids.push(theirs.next().await.expect("an event").1["id"].clone());
    }
    assert!(told.iter().all(|event| ids.contains(&event["id"])));

    let owner = owner.restart().await;
    let mut again = owner.follow(&format!("{path}?after=1")).await;
    for event in &told[2..] {
        assert_eq!(&again.next().await.expect("an event").1, event);
    }
    let header = owner.request(reqwest::Method::GET, &format!("{path}?after=0")).header("Last-Event-ID", "3").send();
    let mut last = header.await.expect("the node answers");
    let chunk = last.chunk().await.expect("bytes").expect("an event");
    assert!(chunk.starts_with(b"id: 4\nevent: operation\n") || chunk.starts_with(b"event: operation\n"), "{chunk:?}");
    for at in ["-1", "x", "1.5"] {
        owner.get(&format!("{path}?after={at}")).await.refused(400, "INVALID_REQUEST");
    }
    owner.put(&format!("/v1/contexts/{id}/access"), &json!({})).await.ok();
    let (name, access) = again.next().await.expect("an event");
    assert_eq!((name.as_str(), &access["epoch"]), ("access", &json!(2)));
}

/// A client that waits with its next page is given all of a long past, in order and each once.
#[tokio::test]
async fn a_long_past_is_told_in_pages() {
    let node = Node::first().await;
    let id = create(&node, json!({}), json!({})).await;
    for at in 0..12 {
        let values = (0..3).map(|part| json!({ "op": "set", "path": format!("/shared_memory/{at}/{part}"), "value": "x".repeat(30_000) }));
        patch(&node, &id, json!({ "ops": values.collect::<Vec<_>>() })).await.ok();
    }
    let count = get(&node, &id).await["version"]["operations"].as_u64().expect("a number") + 2;
    let mut events = node.follow(&format!("/v1/contexts/{id}/events")).await;
    for index in 0..count {
        assert_eq!(events.next().await.expect("an event").1["index"], json!(index));
    }
    let written = write(&node, &id, &[("set", "/last", json!(1))]).await;
    assert_eq!(events.next().await.expect("an event").1["id"], json!(written[0]));
}

/// AMP-9: the verbs fork, merge, look back and watch do what their help says.
#[tokio::test]
async fn the_verbs_fork_merge_look_back_and_watch() {
    let mut node = Node::first().await;
    let run = async |node: &Node, arguments: &[&str]| node.cli(&[&["context"], arguments].concat()).await;
    let id = run(&node, &["create", "--value", r#"{"title": "draft", "votes": 1}"#]).await.text().trim().to_owned();
    let first = run(&node, &["set", &id, "/shared_memory/title", "\"second\""]).await;
    let first = &first.text().trim()[..12];
    run(&node, &["set", &id, "/shared_memory/title", "\"third\""]).await.text();
    assert_eq!(run(&node, &["get", &id, "/shared_memory/title", "--at", first]).await.text(), "\"second\"\n");
    assert!(run(&node, &["history", &id]).await.text().contains(&first[..8]));
    let fork = run(&node, &["fork", &id[..8], "--session", "try", "--at", first]).await.text().trim().to_owned();
    let shown = run(&node, &["get", &fork]).await;
    assert!(shown.text().contains("forked from") && shown.text().contains(&id) && shown.text().contains("second"), "{shown:?}");
    run(&node, &["inc", &fork, "/shared_memory/votes"]).await.text();
    run(&node, &["set", &fork, "/shared_memory/title", "\"mine\""]).await.text();
    let merged = run(&node, &["merge", &id[..8], &fork[..8], "--prefer", "target"]).await;
    assert!(merged.text().contains("changed 1 place in 1 operation\nboth had changed these; the target's stay:\n"), "{merged:?}");
    assert!(
        merged.text().contains("/shared_memory/title") && merged.text().contains("mine") && merged.text().contains("third"),
        "{merged:?}"
    );
    assert_eq!(run(&node, &["merge", &id[..8], &fork[..8]]).await.text(), "nothing was brought over\n");
    let json = run(&node, &["merge", &id[..8], &fork[..8], "--json"]).await.json();
    assert_eq!(json["operations"], json!([]));
    assert_eq!(run(&node, &["get", &id, "/shared_memory"]).await.text(), "{\"title\":\"third\",\"votes\":2}\n");
    let refused = run(&node, &["get", &id, "--at", "ffffffffffff"]).await;
    assert!(refused.code == 1 && refused.stderr.contains("no operation `ffffffffffff`"), "{refused:?}");
    let private = run(&node, &["fork", &id, "--private", "--json"]).await.json();
    assert_eq!(private["access_control"]["read"].as_array().map(Vec::len), Some(1));

    let watch = Running::start(&mut node.verb(&["context", "watch", &id[..8], "--after", "3"]));
    watch.until("\"index\":5").await;
    node.kill().await;
    watch.until("trying again").await;
    let address = node.api().trim_start_matches("http://").to_owned();
    let node = node.reborn().api(&address).spawn().await;
    watch.until("connected again").await;
    run(&node, &["set", &id, "/shared_memory/seen", "true"]).await.text();
    watch.until("/shared_memory/seen").await;
    let lines: Vec<Value> = watch.said("out").lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let indices: Vec<u64> = lines.iter().filter_map(|line| line["index"].as_u64()).collect();
    assert_eq!(indices, [4, 5, 6], "each once: {lines:?}");
    let unknown = run(&node, &["watch", "ffffffff"]).await;
    assert!(unknown.code == 1 && unknown.stderr.contains("CONTEXT_NOT_FOUND"), "{unknown:?}");
}
