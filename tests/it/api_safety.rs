//! Who may speak to a node's API, and from where.

use reqwest::Method;
use serde_json::json;

use crate::support::{Node, meshwork};

#[tokio::test]
async fn nothing_but_health_is_answered_without_the_token() {
    let node = Node::first().await;

    for path in [
        "/v1/node",
        "/v1/peers",
        "/v1/agents",
        "/v1/events",
        "/v1/trust",
        "/v1/trust/receipts",
        "/v1/trust/pins",
        "/ready",
        "/metrics",
        "/openapi.json",
    ] {
        let answer = node.send(node.bare(Method::GET, path)).await;
        answer.refused(401, "AUTHENTICATION_FAILED");
    }
    let invoke = node.bare(Method::POST, "/v1/invoke").json(&json!({ "capability": "echo", "input": 1 }));
    node.send(invoke).await.refused(401, "AUTHENTICATION_FAILED");
    assert_eq!(node.send(node.bare(Method::GET, "/health")).await.status, 200);
}

#[tokio::test]
async fn a_wrong_token_is_refused() {
    let node = Node::first().await;
    let token = node.token().to_owned();

    for wrong in
        ["Bearer wrong".to_owned(), format!("Bearer {token}x"), format!("Bearer {}", &token[1..]), token.clone(), "Bearer ".to_owned()]
    {
        let request = node.bare(Method::GET, "/v1/node").header("authorization", &wrong);
        let answer = node.send(request).await;
        assert_eq!(answer.status, 401, "{answer:?}");
        assert!(!answer.refused(401, "AUTHENTICATION_FAILED").to_string().contains(&token), "the right token is not told");
    }
    assert_eq!(node.get("/v1/node").await.status, 200);
}

/// A page that rebinds its own name to this machine must not command the node.
#[tokio::test]
async fn a_foreign_host_is_refused() {
    let node = Node::first().await;
    let port = node.api().rsplit(':').next().expect("the API has a port").to_owned();

    for host in ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:80", "169.254.169.254"] {
        let request = node.request(Method::GET, "/v1/node").header("host", host);
        node.send(request).await.refused(403, "ACCESS_DENIED");
    }
    for host in [format!("localhost:{port}"), format!("127.0.0.1:{port}")] {
        let request = node.request(Method::GET, "/v1/node").header("host", &host);
        assert_eq!(node.send(request).await.status, 200, "{host}");
    }
}

#[tokio::test]
async fn a_foreign_origin_is_refused() {
    let node = Node::builder().config("[api]\nallowed_origins = [\"https://console.example.org\"]\n").spawn().await;

    for origin in ["https://evil.example", "null", "https://console.example.org.evil.example", "http://console.example.org"] {
        let request = node.request(Method::GET, "/v1/node").header("origin", origin);
        node.send(request).await.refused(403, "ACCESS_DENIED");
    }
    let request = node.request(Method::GET, "/v1/node").header("origin", "https://console.example.org");
    assert_eq!(node.send(request).await.status, 200);
}

#[tokio::test]
async fn an_api_that_others_could_reach_is_refused_at_the_start() {
    let folder = tempfile::tempdir().expect("a folder");
    let data_dir = folder.path().join("data").display().to_string();

    for api in ["0.0.0.0:0", "192.0.2.1:7480", "[::]:0", "not-an-address"] {
        let output = meshwork(&["up", "--json", "--data-dir", &data_dir, "--listen", "/ip4/127.0.0.1/tcp/0", "--api", api]).await;
        assert_eq!(output.code, 2, "{output:?}");
        assert!(output.stderr.contains("api.listen"), "{output:?}");
        assert!(!output.stdout.contains("\"ready\""), "{output:?}");
    }
}

#[cfg(unix)]
#[tokio::test]
async fn keys_and_token_are_their_owners_alone() {
    use std::os::unix::fs::PermissionsExt as _;

    let node = Node::first().await;

    let mode = |path: &std::path::Path| std::fs::metadata(path).expect("it exists").permissions().mode() & 0o777;
    assert_eq!(mode(&node.data_dir()), 0o700);
    for file in ["api-token", "node.key"] {
        assert_eq!(mode(&node.data_dir().join(file)), 0o600, "{file}");
    }
    assert!(node.token().len() >= 32, "a token cannot be guessed");
    assert!(!node.log().contains(node.token()), "the token is not logged");
}

#[tokio::test]
async fn a_token_stays_over_a_restart() {
    let node = Node::first().await;
    let token = node.token().to_owned();

    let node = node.restart().await;

    assert_eq!(node.token(), token);
}

#[tokio::test]
async fn health_readiness_and_metrics_are_there_for_watchers() {
    let node = Node::first().await;

    assert_eq!(node.get("/ready").await.status, 200);
    let metrics = node.get("/metrics").await;
    assert_eq!(metrics.status, 200);
    assert!(metrics.body.as_str().is_some_and(|text| text.contains("# TYPE ")), "{metrics:?}");
    let description = node.get("/openapi.json").await.ok();
    assert_eq!(description["openapi"].as_str().map(|version| &version[..3]), Some("3.1"));
    assert!(description["paths"]["/v1/invoke"]["post"].is_object(), "{description}");
}
