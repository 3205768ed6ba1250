//! What shared contexts may take of a node, and what it lets go of: whoever shares them, it stays within its bounds and says so.

use serde_json::{Value, json};

use crate::support::{Node, SETTLE, builtin, eventually};

async fn pair(config: &str) -> (Node, Node) {
    let owner = Node::first().await;
    let other = Node::builder().config(config).join(&owner).spawn().await;
    owner.meets(&other).await;
    (owner, other)
}

async fn create(owner: &Node, body: Value) -> String {
    owner.post("/v1/contexts", &body).await.ok()["id"].as_str().expect("an id").to_owned()
}

/// Creates a context that `other` reads.
async fn share(owner: &Node, other: &Node, value: Value) -> String {
    create(owner, json!({ "shared_memory": { "x": value }, "access_control": { "read": [other.id()] } })).await
}

async fn append(node: &Node, id: &str, value: Value) {
    let body = json!({ "ops": [{ "op": "append", "path": "/shared_memory/log", "value": value }] });
    node.send(node.request(reqwest::Method::PATCH, &format!("/v1/contexts/{id}")).json(&body)).await.ok();
}

/// How many of `ids` are on a node.
async fn here(node: &Node, ids: &[String]) -> usize {
    let listed = node.get("/v1/contexts").await.ok();
    let listed: Vec<&Value> = listed["contexts"].as_array().expect("a list").iter().map(|row| &row["id"]).collect();
    ids.iter().filter(|id| listed.contains(&&json!(id))).count()
}

async fn is_noted(node: &Node, text: &str) {
    eventually(&format!("`{text}` is noted"), SETTLE, async || {
        let doctor = node.get("/v1/doctor").await.ok();
        let of_start = |check: &&Value| check["name"] == "start" && check["message"].as_str().is_some_and(|message| message.contains(text));
        let notes: Vec<&Value> = doctor["checks"].as_array().expect("a list").iter().filter(of_start).collect();
        assert!(notes.len() <= 1, "once: {notes:?}");
        (notes.len() == 1).then_some(())
    })
    .await;
}

/// Threat T28: one owner elsewhere has an eighth of the contexts; this node's own find room all the same, up to the last.
#[tokio::test]
async fn an_owner_elsewhere_has_an_eighth_of_the_contexts() {
    let (owner, other) = pair("[context]\ncontexts_max = 16\n").await;
    let mut ids = Vec::new();
    for at in 0..4 {
        ids.push(share(&owner, &other, json!(at)).await);
    }
    is_noted(&other, "an owner's eighth, 2 contexts (context.contexts_max)").await;
    assert_eq!(here(&other, &ids).await, 2);
    for at in 0..14 {
        create(&other, json!({ "shared_memory": { "x": at } })).await;
    }
    let refused = other.post("/v1/contexts", &json!({})).await.refused(503, "INSUFFICIENT_RESOURCES");
    assert_eq!((&refused["details"]["key"], &refused["details"]["limit"]), (&json!("context.contexts_max"), &json!(16)));
    assert_eq!((here(&owner, &ids).await, here(&other, &ids).await), (4, 2));
}

/// Threat T28: and an eighth of the bytes. What does not fit is refused as a whole, what is there stays as it was.
#[tokio::test]
async fn an_owner_elsewhere_has_an_eighth_of_the_bytes() {
    let (owner, other) = pair("[context]\nbytes_max = 1048576\n").await;
    let id = share(&owner, &other, json!(0)).await;
    let length = async |node: &Node| {
        let log = node.get(&format!("/v1/contexts/{id}?path=/shared_memory/log")).await;
        if log.status == 200 { log.body.as_array().expect("a list").len() } else { 0 }
    };
    for at in 1..=2 {
        append(&owner, &id, json!("x".repeat(50_000))).await;
        eventually("it is there", SETTLE, async || (length(&other).await == at).then_some(())).await;
    }
    append(&owner, &id, json!("x".repeat(50_000))).await;
    is_noted(&other, "an owner's eighth, 131072 bytes (context.bytes_max)").await;
    assert_eq!((length(&owner).await, length(&other).await), (3, 2));
    // It is the disk that counts, also after a start.
    let other = other.restart_with(|builder| builder.join(&owner)).await;
    is_noted(&other, "an owner's eighth, 131072 bytes (context.bytes_max)").await;
    assert_eq!(length(&other).await, 2);
    // This node's own have more room than that.
    let own = create(&other, json!({})).await;
    for _ in 0..15 {
        append(&other, &own, json!("x".repeat(50_000))).await;
    }
}

/// Design "Life": what a person dropped is gone here, also after a start, and does not come back; others keep theirs.
#[tokio::test]
async fn a_context_that_was_dropped_does_not_come_back() {
    let (owner, other) = pair("").await;
    let ids = [share(&owner, &other, json!(1)).await, share(&owner, &other, json!(2)).await];
    eventually("both are there", SETTLE, async || (here(&other, &ids).await == 2).then_some(())).await;
    let dropped = other.cli(&["context", "drop", &ids[0][..8]]).await;
    assert_eq!((dropped.code, dropped.stdout.as_str()), (0, &*format!("dropped {}\n", &ids[0][..8])), "{dropped:?}");
    other.get(&format!("/v1/contexts/{}", ids[0])).await.refused(404, "CONTEXT_NOT_FOUND");
    other.delete(&format!("/v1/contexts/{}", ids[0])).await.refused(404, "CONTEXT_NOT_FOUND");
    let again = other.cli(&["context", "drop", &ids[0][..8]]).await;
    assert!(again.code == 1 && again.stderr.contains("CONTEXT_NOT_FOUND"), "{again:?}");
    // Both are pushed again, and compared when the nodes meet: of what is written to both, one arrives.
    let other = other.restart_with(|builder| builder.join(&owner)).await;
    for id in &ids {
        append(&owner, id, json!("again")).await;
    }
    let log = format!("/v1/contexts/{}?path=/shared_memory/log", ids[1]);
    eventually("the other is kept up", SETTLE, async || (other.get(&log).await.status == 200).then_some(())).await;
    assert_eq!((here(&other, &ids[..1]).await, here(&owner, &ids).await), (0, 2));
    assert!(!other.data_dir().join("contexts").join(format!("{}.log", ids[0])).exists(), "nothing of it is on the disk");
}

/// A reader who is added after so many changes of access that they take several answers is given the context all the same.
#[tokio::test]
async fn a_reader_who_is_added_late_in_a_long_line_of_access_is_given_the_context() {
    let (owner, other) = pair("").await;
    let id = create(&owner, json!({ "shared_memory": { "x": 1 } })).await;
    let writers: Vec<String> = (0..7).map(|_| libp2p::identity::Keypair::generate_ed25519().public().to_peer_id().to_string()).collect();
    let paths: Vec<String> = (0..16).map(|at| format!("/shared_memory/{at}{}", "x".repeat(480))).collect();
    let access = |readers: &[&str], round: usize| {
        let write = writers.iter().map(|writer| json!({ "principal": writer, "paths": paths[round % 2..] })).collect::<Vec<_>>();
        json!({ "read": readers, "write": write })
    };
    // Each takes more than 50 KiB, an answer 1.5 MiB.
    for round in 0..60 {
        owner.put(&format!("/v1/contexts/{id}/access"), &access(&[], round)).await.ok();
    }
    owner.put(&format!("/v1/contexts/{id}/access"), &access(&[other.id()], 60)).await.ok();
    append(&owner, &id, json!("for all")).await;
    let path = format!("/v1/contexts/{id}?path=/shared_memory/x");
    eventually("it is there", SETTLE, async || (other.get(&path).await.status == 200).then_some(())).await;
    let versions =
        [&owner, &other].map(async |node: &Node| node.get(&format!("/v1/contexts/{id}")).await.ok()["version"]["access_epoch"].clone());
    let [here, there] = versions;
    assert_eq!((here.await, there.await), (json!(62), json!(62)));
}

/// Design "Operation": an author whose node went back to an older state of its disk signs a number twice. Both are kept and shown as the proof,
/// all see the same, and its agent is trusted no more.
#[tokio::test]
async fn an_author_who_signs_one_number_twice_is_shown_and_trusted_no_more() {
    let mut owner = Node::first().await;
    let mut host = Node::builder().join(&owner).agent(builtin("scribe", "echo")).spawn().await;
    owner.knows("echo", &["scribe"]).await;
    assert_eq!(owner.find("echo").await[0]["trust"], 50.0);
    let id = create(&owner, json!({ "access_control": { "write": ["scribe"] } })).await;
    let as_scribe = format!("/v1/contexts/{id}?agent=scribe");
    let write = async |node: &Node, value: &str| {
        let body = json!({ "shared_memory": { value: true } });
        let answer = node.send(node.request(reqwest::Method::PATCH, &as_scribe).json(&body)).await.ok();
        answer["operations"][0].as_str().expect("an id").to_owned()
    };
    eventually("the context is there", SETTLE, async || (host.get(&as_scribe).await.status == 200).then_some(())).await;
    let file = host.data_dir().join("contexts").join(format!("{id}.log"));
    let before = std::fs::read(&file).expect("reads");
    let first = write(&host, "first").await;
    let at_owner = format!("/v1/contexts/{id}");
    let shows = async |node: &Node, fields: Value| {
        eventually(&format!("it shows {fields}"), SETTLE, async || {
            (node.get(&at_owner).await.body["shared_memory"] == fields).then_some(())
        })
        .await;
    };
    shows(&owner, json!({ "first": true })).await;
    owner.kill().await;
    host.kill().await;
    std::fs::write(&file, before).expect("writes");
    let host = host.reborn().no_join().spawn().await;
    let second = write(&host, "second").await;
    let owner = owner.reborn().spawn().await;
    let host = host.restart_with(|builder| builder.join(&owner)).await;
    shows(&owner, json!({ "first": true, "second": true })).await;
    let scribe = host.agent_id("scribe").await;
    let mut operations = [first, second];
    operations.sort();
    let proof = json!([{ "author": scribe, "seq": 0, "operations": operations }]);
    assert_eq!(owner.get(&at_owner).await.ok()["equivocations"], proof);
    assert!(owner.cli(&["context", "get", &id]).await.text().contains(&format!("signed twice  {scribe}  number 0: ")));
    is_noted(&owner, &format!("{scribe} signed two operations of one number")).await;
    eventually("it is trusted no more", SETTLE, async || (owner.find("echo").await.first()?["trust"] == 0.0).then_some(())).await;
    // It is what the disk says, also after a start.
    let owner = owner.restart().await;
    assert_eq!(owner.get(&at_owner).await.ok()["equivocations"], proof);
    is_noted(&owner, &format!("{scribe} signed two operations of one number")).await;
}

/// Contexts that do not fit into memory together are read when they are needed, and one that is larger than all of it is used all the same.
#[tokio::test]
async fn contexts_that_do_not_fit_into_memory_are_read_again() {
    let node = Node::builder().config("[context]\nhot_bytes_max = 1048576\n").spawn().await;
    let mut ids = Vec::new();
    for at in 0..3 {
        let id = create(&node, json!({ "shared_memory": { "at": at } })).await;
        for _ in 0..25 {
            append(&node, &id, json!("x".repeat(50_000))).await;
        }
        ids.push(id);
    }
    for (at, id) in ids.iter().enumerate() {
        append(&node, id, json!("last")).await;
        let shared = node.get(&format!("/v1/contexts/{id}?path=/shared_memory")).await.ok();
        assert_eq!((&shared["at"], shared["log"].as_array().map(Vec::len), &shared["log"][25]), (&json!(at), Some(26), &json!("last")));
    }
}
