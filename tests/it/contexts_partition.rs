//! Two halves of a mesh that cannot reach each other write to one context, and agree once they can (fault F5); a replica that is killed while
//! it is being filled goes on where it was (fault F1).

use std::io::Write as _;
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::process::Command;

use crate::support::{
    Node, SETTLE,
    contexts::{create, patch, shows, version},
    eventually, within,
};

/// What each of the four writers writes, and in which time.
const WRITES: usize = 2_500;
const WRITING: Duration = Duration::from_secs(60);
/// How long the halves may take to agree, on a machine that does all of it at once in a debug build.
const HEALING: Duration = Duration::from_secs(60);

/// A client that lives in its half: the API of a node is reached from its own machine alone.
const CLIENT: &str = include_str!("../support/agents/half.py");

/// Two network namespaces with a cable between them.
struct Halves {
    names: [String; 2],
}

fn ip(arguments: &str) {
    let status = std::process::Command::new("ip").args(arguments.split(' ')).status().expect("`ip` runs");
    assert!(status.success(), "ip {arguments}: {status}; this test makes network namespaces, which takes root");
}

impl Halves {
    fn new() -> Self {
        let names = ["a", "b"].map(|half| format!("meshwork-{}-{half}", std::process::id()));
        let [a, b] = &names;
        names.iter().for_each(|name| ip(&format!("netns add {name}")));
        ip(&format!("link add cable netns {a} type veth peer name cable netns {b}"));
        for (name, address) in names.iter().zip(["10.77.0.1", "10.77.0.2"]) {
            ip(&format!("-n {name} addr add {address}/24 dev cable"));
            ip(&format!("-n {name} link set cable up"));
            ip(&format!("-n {name} link set lo up"));
        }
        Self { names }
    }

    /// What either sends to the other is lost from now on, or no more.
    fn set_cut(&self, is_cut: bool) {
        for (name, other) in self.names.iter().zip(["10.77.0.2", "10.77.0.1"]) {
            ip(&format!("-n {name} route {} blackhole {other}/32", if is_cut { "add" } else { "del" }));
        }
    }

    /// A node in a half, which joins through `other`.
    async fn node(&self, half: usize, other: Option<&Node>) -> Node {
        let address = format!("/ip4/10.77.0.{}/tcp/0", half + 1);
        let prelude = format!("exec ip netns exec {} \"$0\" \"$@\"", self.names[half]);
        let builder = Node::builder().listen(&[&address]).prelude(&prelude);
        match other {
            Some(other) => builder.join(other).spawn().await,
            None => builder.spawn().await,
        }
    }

    /// A client in a half.
    async fn client(&self, half: usize, node: &Node, arguments: &[&str]) -> Option<String> {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.names[half], "python3", "-c", CLIENT, node.api(), node.token()]).args(arguments);
        let output = command.stderr(Stdio::null()).kill_on_drop(true).output().await.expect("a client runs");
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    async fn state(&self, half: usize, node: &Node, id: &str) -> Option<Value> {
        serde_json::from_str(&self.client(half, node, &["state", id]).await?).ok()
    }
}

impl Drop for Halves {
    fn drop(&mut self) {
        for name in &self.names {
            let _ = std::process::Command::new("ip").args(["netns", "del", name]).status();
        }
    }
}

/// F5: 10,000 operations in a minute on both sides of a cut; all four nodes show the same after it, and nothing that was acknowledged is
/// missing.
#[tokio::test]
#[ignore = "makes network namespaces, which takes root: cargo nextest run --run-ignored only --no-capture --test it two_halves"]
async fn two_halves_that_wrote_apart_agree_when_they_meet() {
    let halves = Halves::new();
    let first = halves.node(0, None).await;
    let second = halves.node(0, Some(&first)).await;
    let third = halves.node(1, Some(&first)).await;
    let fourth = halves.node(1, Some(&third)).await;
    let nodes = [(0, &first), (0, &second), (1, &third), (1, &fourth)];
    let writers = json!(nodes.map(|(_, node)| node.id())).to_string();
    let id = halves.client(0, &first, &["create", &writers]).await.expect("a context");
    for (half, node) in nodes {
        eventually("the context is there", SETTLE, async || halves.state(half, node, &id).await.map(drop)).await;
    }

    halves.set_cut(true);
    let (count, seconds) = (WRITES.to_string(), WRITING.as_secs().to_string());
    let write = async |(half, node): (usize, &Node)| halves.client(half, node, &["write", &id, node.id(), &count, &seconds]).await;
    let written = within("all have written", WRITING * 5, futures::future::join_all(nodes.map(write))).await;
    assert_eq!(written, vec![Some(count.clone()); 4], "each was told that all is kept");
    let apart = [halves.state(0, &first, &id).await, halves.state(1, &fourth, &id).await].map(|state| state.expect("there"));
    for state in &apart {
        assert_eq!(state["shared_memory"]["votes"], 2 * WRITES, "nothing came through the cut");
    }

    halves.set_cut(false);
    let healed = Instant::now();
    let agree = async || {
        let mut hashes = Vec::new();
        for (half, node) in nodes {
            let state = halves.state(half, node, &id).await?;
            if state["shared_memory"]["votes"] != 4 * WRITES {
                return None;
            }
            hashes.push(state["version"]["state_hash"].clone());
        }
        hashes.iter().all(|hash| *hash == hashes[0]).then_some(())
    };
    eventually("all four show the same", HEALING, agree).await;
    writeln!(std::io::stderr(), "agreed {:.1} s after the cut was mended", healed.elapsed().as_secs_f64()).expect("it is told");
    let state = halves.state(1, &fourth, &id).await.expect("there");
    let kept: usize = state["shared_memory"]["writes"]
        .as_object()
        .expect("writers")
        .values()
        .map(|of| of.as_object().map_or(0, serde_json::Map::len))
        .sum();
    assert_eq!(kept, 4 * WRITES);
}

/// F1: a replica that dies while it is filled, again and again, ends with all of it.
#[tokio::test]
async fn a_replica_that_is_killed_while_it_is_filled_goes_on_where_it_was() {
    let owner = Node::first().await;
    let id = create(&owner, json!({})).await;
    // Rounds of a pull carry a megabyte and a half.
    for at in 0..120 {
        let body = json!({ "ops": [{ "op": "append", "path": "/shared_memory/log", "value": format!("{at:03}{}", "x".repeat(40_000)) }] });
        patch(&owner, &id, body).await.ok();
    }
    let all = version(&owner, &id).await;
    let mut reader = Node::builder().join(&owner).spawn().await;
    owner.meets(&reader).await;
    let file = reader.data_dir().join("contexts").join(format!("{id}.log"));
    let whole = std::fs::metadata(owner.data_dir().join("contexts").join(format!("{id}.log"))).expect("the owner's file").len();
    owner.put(&format!("/v1/contexts/{id}/access"), &json!({ "read": [reader.id()] })).await.ok();
    let mut deaths = 0;
    for portion in 1..=2 {
        let has_begun = async || std::fs::metadata(&file).is_ok_and(|file| file.len() > portion * 1_000_000).then_some(());
        eventually("a part of it is here", SETTLE * 4, has_begun).await;
        reader.kill().await;
        let part = std::fs::metadata(&file).expect("a part").len();
        deaths += usize::from(part < whole);
        reader = reader.reborn().join(&owner).spawn().await;
    }
    assert!(deaths > 0, "it was whole before the first death");
    let filled = async || (version(&reader, &id).await["state_hash"] == all["state_hash"]).then_some(());
    eventually("it has all of it", SETTLE * 4, filled).await;
    shows(&owner, &id, "/plan/title", json!("draft")).await;
}
