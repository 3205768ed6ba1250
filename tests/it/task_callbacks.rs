//! Completion callbacks: who is told of a task's end, and where a node does not let itself be sent.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener},
    sync::mpsc,
    time::Duration,
};

use serde_json::{Value, json};

use crate::support::{Builder, Node, SETTLE, builtin, eventually, with};

/// A server that answers each request with the next of these lines, the last for ever; the requests come out of the channel.
pub(crate) fn server(answers: &'static [&'static str]) -> (SocketAddr, mpsc::Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("it listens");
    let (sender, requests) = mpsc::channel();
    std::thread::spawn(move || {
        for (number, stream) in listener.incoming().enumerate() {
            let Ok(mut stream) = stream else { return };
            let mut request = Vec::new();
            let mut piece = [0; 4_096];
            let whole = |request: &[u8]| {
                let text = String::from_utf8_lossy(request);
                let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
                let length = head.to_ascii_lowercase().split("content-length: ").nth(1).and_then(|rest| rest.lines().next()?.parse().ok());
                length.is_some_and(|length: usize| body.len() >= length)
            };
            while !whole(&request) {
                match stream.read(&mut piece) {
                    Ok(read) if read > 0 => request.extend(&piece[..read]),
                    _ => break,
                }
            }
            let answer = answers.get(number).or_else(|| answers.last()).expect("an answer");
            let _ = stream.write_all(format!("HTTP/1.1 {answer}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").as_bytes());
            if sender.send(String::from_utf8_lossy(&request).into_owned()).is_err() {
                return;
            }
        }
    });
    (address, requests)
}

/// A node that may call back there.
fn node(allowed: &[String]) -> Builder {
    Node::builder().config(&format!("[task]\ncallback_allow = {allowed:?}\n")).agent(builtin("echo", "echo"))
}

fn task(callback: &str) -> Value {
    let step = json!({ "subtask_id": "only", "agent_capability": "echo", "input": { "x": 1 } });
    json!({ "name": "told", "completion_callback": callback, "subtasks": [step] })
}

async fn submit(node: &Node, definition: &Value) -> String {
    let receipt = node.post("/aitp/tasks", definition).await;
    assert_eq!(receipt.status, 201, "{receipt:?}");
    receipt.body["task_id"].as_str().expect("a receipt names its task").to_owned()
}

/// The next request.
pub(crate) async fn request(requests: &mpsc::Receiver<String>) -> String {
    eventually("a request comes", SETTLE, async || requests.try_recv().ok()).await
}

/// AMP-8, threat T25: the result is posted, again if it was not taken, with nothing secret in it.
#[tokio::test]
async fn the_end_of_a_task_is_told_until_it_is_taken() {
    let (address, requests) = server(&["503 Service Unavailable", "204 No Content"]);
    let node = node(&[format!("http://{address}/done")]).spawn().await;

    let id = submit(&node, &task(&format!("http://{address}/done/here"))).await;

    for _ in 0..2 {
        let request = request(&requests).await;
        let (head, body) = request.split_once("\r\n\r\n").expect("a head and a body");
        assert!(head.starts_with("POST /done/here HTTP/1.1"), "{head}");
        assert!(head.to_ascii_lowercase().contains(&format!("idempotency-key: {id}")), "{head}");
        assert!(!head.to_ascii_lowercase().contains("authorization") && !request.contains(node.token()), "{head}");
        let told: Value = serde_json::from_str(body).expect("a document");
        assert_eq!((&told["task_id"], &told["outcome"], &told["result"]), (&json!(id), &json!("success"), &json!({ "x": 1 })), "{told}");
    }
    // What was taken is not told again, not even by the next start.
    let node = node.restart().await;
    let after = submit(&node, &task(&format!("http://{address}/done/after"))).await;
    assert!(request(&requests).await.contains(&after));
}

/// Threat T25: a redirect is an answer that is not followed.
#[tokio::test]
async fn a_redirect_is_not_followed() {
    let (target, reached) = server(&["204 No Content"]);
    let redirect: &'static str = Box::leak(format!("302 Found\r\nlocation: http://{target}/latest/meta-data").into_boxed_str());
    let (address, requests) = server(Box::leak(vec![redirect].into_boxed_slice()));
    let node = node(&[format!("http://{address}/")]).spawn().await;

    submit(&node, &task(&format!("http://{address}/x"))).await;

    for _ in 0..2 {
        assert!(request(&requests).await.starts_with("POST /x"), "it is tried again where it was sent first");
    }
    assert!(reached.recv_timeout(Duration::ZERO).is_err(), "the target was reached");
}

/// Threat T25: a name that leads to this machine is not posted to, though the list has it.
#[tokio::test]
async fn a_name_for_this_machine_is_not_reached() {
    let (address, reached) = server(&["204 No Content"]);
    let place = format!("http://localhost:{}/", address.port());
    let node = node(std::slice::from_ref(&place)).spawn().await;

    let id = submit(&node, &task(&place)).await;

    let refused = async || node.log().contains("private addresses only").then_some(());
    eventually("it is refused", SETTLE, refused).await;
    assert!(node.log().contains(&id) && reached.recv_timeout(Duration::ZERO).is_err());
}

/// Threat T25: nothing is called back unless the owner of the node allows it.
#[tokio::test]
async fn callbacks_are_off_by_default_and_only_go_where_they_may() {
    let plain = Node::builder().agent(builtin("echo", "echo")).spawn().await;
    let error = plain.post("/aitp/tasks", &task("https://hooks.example.org/done")).await.refused(400, "INVALID_REQUEST");
    assert_eq!(error["details"]["path"], "/completion_callback", "{error}");

    let node = node(&["https://hooks.example.org/done".to_owned()]).spawn().await;
    for elsewhere in ["https://hooks.example.org/other", "https://hooks.example.org.evil.example/done", "http://127.0.0.1:1/", "done"] {
        let error = node.post("/aitp/tasks", &task(elsewhere)).await.refused(400, "INVALID_REQUEST");
        assert_eq!(error["details"]["path"], "/completion_callback", "{error}");
    }
    let inner =
        json!({ "name": "outer", "subtasks": [{ "subtask_id": "in", "task": with(task("done"), json!({ "completion_callback": 3 })) }] });
    let error = node.post("/aitp/tasks", &inner).await.refused(400, "INVALID_REQUEST");
    assert_eq!(error["details"]["path"], "/subtasks/0/task/completion_callback", "{error}");
}
