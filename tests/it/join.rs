//! Getting into a mesh, staying in it and leaving it.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::{Node, Port, SETTLE, builtin, eventually, meshwork, slow};

#[tokio::test]
async fn two_nodes_meet_over_tcp() {
    let first = Node::first().await;

    let second = Node::builder().join(&first).spawn().await;

    second.meets(&first).await;
    first.meets(&second).await;
    assert!(second.address().contains("/tcp/"), "{}", second.address());
}

#[tokio::test]
async fn two_nodes_meet_over_quic() {
    let quic = ["/ip4/127.0.0.1/udp/0/quic-v1"];
    let first = Node::builder().listen(&quic).agent(builtin("echo", "echo")).spawn().await;
    assert!(first.address().contains("/quic-v1/"), "{}", first.address());

    let second = Node::builder().listen(&quic).join(&first).spawn().await;

    second.meets(&first).await;
    second.knows("echo", &["echo"]).await;
    assert_eq!(second.call("echo", json!("over QUIC")).await["output"], "over QUIC");
}

#[tokio::test]
async fn the_ready_line_says_where_the_node_is() {
    let node = Node::builder().listen(&["/ip4/127.0.0.1/tcp/0"]).spawn().await;

    let view = node.get("/v1/node").await.ok();

    assert_eq!(view["node_id"], node.id());
    assert!(node.address().ends_with(&format!("/p2p/{}", node.id())), "{}", node.address());
    assert!(!node.address().contains("/tcp/0/"), "the real port: {}", node.address());
    assert!(node.api().starts_with("http://127.0.0.1:") && !node.api().ends_with(":0"), "{}", node.api());
    assert_eq!((&view["ready"], &view["state"]), (&json!(true), &json!("alone")), "{view}");
}

#[tokio::test]
async fn a_node_that_starts_before_its_bootstrap_peer_joins_once_that_starts() {
    let port = Port::reserve();
    let fixed = port.address();
    // A first short run makes the key.
    let mut bootstrap = Node::builder().listen(&[&fixed]).spawn().await;
    let address = bootstrap.address();
    bootstrap.terminate().await;
    let waiting = Node::builder().join_address(&address).start();

    let bootstrap = bootstrap.restart().await;
    let node = waiting.ready().await;

    assert_eq!(bootstrap.address(), address);
    node.meets(&bootstrap).await;
    let view = eventually("the node is ready", SETTLE, async || Some(node.get("/v1/node").await.ok()).filter(|view| view["ready"] == true));
    assert_eq!(view.await["state"], "ready");
}

#[tokio::test]
async fn a_second_process_on_one_data_directory_is_told_who_holds_it() {
    let node = Node::first().await;
    let data_dir = node.data_dir().display().to_string();

    let listen = ["--api", "127.0.0.1:0", "--listen", "/ip4/127.0.0.1/tcp/0"];
    let second = meshwork(&[&["up", "--json", "--data-dir", &data_dir][..], &listen].concat()).await;

    assert_eq!(second.code, 2, "{second:?}");
    assert!(second.stderr.contains(&data_dir) && second.stderr.contains("in use"), "{second:?}");
    assert!(!second.stdout.contains("\"ready\""), "{second:?}");
    assert_eq!(node.get("/v1/node").await.ok()["ready"], true, "the first is not disturbed");
}

#[tokio::test]
async fn one_dead_bootstrap_peer_among_several_does_no_harm() {
    let mut dead = Node::first().await;
    let alive = Node::first().await;
    dead.kill().await;

    let node = Node::builder().join(&dead).join(&alive).spawn().await;

    node.meets(&alive).await;
}

#[tokio::test]
async fn a_restarted_node_without_bootstrap_peers_finds_its_last_good_peers() {
    let first = Node::first().await;
    let second = Node::builder().join(&first).spawn().await;
    second.meets(&first).await;
    let id = second.id().to_owned();

    let second = second.restart_with(|builder| builder.no_join()).await;

    assert_eq!(second.id(), id, "the key stays");
    second.meets(&first).await;
}

#[tokio::test]
async fn those_who_have_met_need_no_bootstrap_peer() {
    let mut bootstrap = Node::first().await;
    let host = Node::builder().join(&bootstrap).agent(builtin("echo", "echo")).spawn().await;
    let asker = Node::builder().join(&bootstrap).spawn().await;
    asker.knows("echo", &["echo"]).await;
    asker.call("echo", json!(1)).await;

    bootstrap.kill().await;

    asker.meets(&host).await;
    assert_eq!(asker.names("echo").await, ["echo"]);
    assert_eq!(asker.call("echo", json!("without it")).await["output"], "without it");
}

#[tokio::test]
async fn a_node_that_is_told_to_stop_leaves_at_once() {
    let asker = Node::first().await;
    let mut host = Node::builder().join(&asker).agent(builtin("echo", "echo")).spawn().await;
    asker.knows("echo", &["echo"]).await;
    let mut events = asker.events().await;
    let (id, agent) = (host.id().to_owned(), host.agent_id("echo").await);
    let told = Instant::now();

    let status = host.terminate().await;

    assert_eq!(status.code(), Some(0));
    assert!(told.elapsed() < Duration::from_secs(10), "nothing was running: {:?}", told.elapsed());
    assert_eq!(host.rest_of_stdout().await, "", "nothing but the ready line goes to standard output");
    events.wait_for("agent_down", Duration::from_secs(1), |event| event["agent_id"] == agent.as_str()).await;
    asker.until_names("echo", &[], Duration::from_secs(1)).await;
    eventually("the peer is gone", Duration::from_secs(3), async || (!asker.peers().await.contains(&id)).then_some(())).await;
}

#[tokio::test]
async fn peers_are_announced_as_they_come_and_go() {
    let first = Node::first().await;
    let mut events = first.events().await;

    let mut second = Node::builder().join(&first).spawn().await;
    let id = second.id().to_owned();
    events.wait_for("peer_connected", SETTLE, |event| event["node_id"] == id.as_str()).await;
    second.kill().await;

    events.wait_for("peer_disconnected", SETTLE, |event| event["node_id"] == id.as_str()).await;
}

#[tokio::test]
async fn a_node_that_stops_lets_its_calls_finish() {
    let mut node = Node::builder().agent(slow("slow", None)).spawn().await;
    node.knows("test.slow", &["slow"]).await;
    let body = json!({ "capability": "test.slow", "input": { "ms": 1500 } });
    let request = node.request(reqwest::Method::POST, "/v1/invoke").json(&body).send();
    let call = tokio::spawn(async { request.await.map(|response| response.status().as_u16()) });
    let busy = async || (node.get("/v1/node").await.ok()["counts"]["calls_in_flight"] == 1).then_some(());
    eventually("the call runs", SETTLE, busy).await;

    let status = node.terminate().await;

    assert_eq!(status.code(), Some(0));
    let answered = call.await.expect("the call does not panic").expect("the call is answered before the node ends");
    assert_eq!(answered, 200);
}
