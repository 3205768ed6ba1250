//! Whole verbs against a small server that answers as a node does.

use std::{
    future::{Future, IntoFuture as _, pending, ready},
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Json, Router,
    extract::{Request, State},
    http::{StatusCode, header::AUTHORIZATION},
    response::{IntoResponse as _, Response},
};
use clap::CommandFactory as _;
use serde_json::{Value, json};
use tokio::sync::Notify;

use super::*;

pub(super) const AGENT: &str = "did:key:z6MkeXCES4onVW4up9Qgz1KRnZsKmGufcaZxF6Zpv2w5QwUK";
pub(super) const NODE: &str = "12D3KooWEyoppNCUx8Yx66oV9fJnriXwCcXwDDUA2kj6vnc6iDEp";

#[test]
fn the_command_line_is_well_formed_and_every_verb_has_an_example() {
    fn check(command: &clap::Command, path: &str) {
        let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        assert!(help.contains("Example") && help.contains("meshwork "), "{path} has no example");
        command.get_subcommands().for_each(|sub| check(sub, &format!("{path} {}", sub.get_name())));
    }
    Cli::command().debug_assert();
    check(&Cli::command(), "meshwork");
}

#[test]
fn arguments_are_checked_before_anything_is_asked() {
    for line in [
        "find",
        "find Text-Analysis",
        "find echo --max-cost cheap",
        "find echo --version x.y",
        "call echo {} --timeout 0",
        "call echo {} --priority urgent",
        "call echo {} --idle-timeout 1",
        "call echo {} --stream --idle-timeout 0",
        "call echo {} more",
        "agent",
        "agent add",
        "agents --scope mesh",
        "task",
        "task run",
        "task run x.yaml --input topic",
        "task run x.yaml --timeout 0",
        "task result 1f3a --timeout 3",
        "task list --status RUNNING",
        "task list --limit 0",
        "fly",
    ] {
        let error = Cli::try_parse_from(["meshwork"].into_iter().chain(line.split(' '))).expect_err(line);
        assert_eq!(error.exit_code(), 2, "{line}");
    }
    for line in
        ["find --text words", "find echo text-analysis --version ^1.2 --max-cost 0.01", "call echo -1", "--json agents", "agents --json"]
    {
        assert!(Cli::try_parse_from(["meshwork"].into_iter().chain(line.split(' '))).is_ok(), "{line}");
    }
}

#[tokio::test]
async fn the_output_of_a_call_stands_alone_on_stdout() {
    let node = Node::start(|_, _| answer(200, served())).await;
    let ended = node.run(&["call", "echo", "{\"a\":1}", "--key", "k", "--max-cost", "0.5"]).await;
    assert_eq!(ended, (0, "\"hi \\u001b[31m\"\n".to_owned(), String::new()));
    let (call, body) = node.requests().remove(0);
    assert_eq!(call, "POST /v1/invoke");
    assert_eq!(body["invocation_id"].as_str().map(str::len), Some(32));
    assert_eq!(body["constraints"], json!({ "max_cost": "0.5" }));
    assert_eq!((&body["input"], &body["idempotency_key"], &body["timeout_ms"]), (&json!({ "a": 1 }), &json!("k"), &json!(60_000)));
    assert_eq!((&body["agent_id"], &body["explain"]), (&Value::Null, &Value::Null));
    assert_eq!((&body["priority"], &body["idle_timeout_ms"]), (&Value::Null, &Value::Null));
}

#[tokio::test]
async fn urgency_and_patience_between_chunks_go_to_the_node() {
    let stream = format!("event: result\ndata: {}\n\n", served());
    let node = Node::start(move |_, _| ([("content-type", "text/event-stream")], stream.clone()).into_response()).await;
    let words = ["call", "echo", "--priority", "low", "--stream", "--first-chunk-timeout", "2.5", "--idle-timeout", "0.5"];
    let (exit, _, err) = node.run(&words).await;
    assert_eq!(exit, 0, "{err}");
    let body = &node.requests()[0].1;
    assert_eq!(body["priority"], "LOW");
    assert_eq!((&body["first_chunk_timeout_ms"], &body["idle_timeout_ms"]), (&json!(2_500), &json!(500)));
}

#[tokio::test]
async fn an_agent_names_the_call_that_it_works_on_by_flag_or_environment() {
    let (flag, set) = ("00112233445566778899aabbccddeeff", "ffeeddccbbaa99887766554433221100");
    let node = Node::start(|_, _| answer(200, served())).await;
    let env = |parent: &str| [("MESHWORK_TOKEN", "t0ken"), ("MESHWORK_PARENT", parent)].into_iter().collect();
    for (words, named) in [(&["call", "echo", "--parent", flag][..], flag), (&["call", "echo"], set)] {
        let words = [words, &["--api", &node.address]].concat();
        let (exit, _, err) = run_line(&words, env(set)).await;
        assert_eq!(exit, 0, "{err}");
        assert_eq!(node.requests().pop().expect("asked").1["parent"], named);
    }
    let (exit, _, err) = run_line(&["call", "echo", "--api", &node.address], env("x")).await;
    assert!(exit == 2 && err.contains("MESHWORK_PARENT"), "{err}");
}

#[tokio::test]
async fn with_json_a_call_prints_the_nodes_answer() {
    let node = Node::start(|_, _| answer(200, served())).await;
    let (exit, out, _) = node.run(&["call", "echo", "--json"]).await;
    assert_eq!((exit, serde_json::from_str::<Value>(&out).expect("JSON")), (0, served()));
}

#[tokio::test]
async fn an_explained_call_tells_on_stderr_who_was_considered_and_what_was_tried() {
    let node = Node::start(|_, _| {
        let mut served = served();
        served["explain"] = json!({
            "candidates": [row()],
            "rejected": [{ "agent_id": "did:key:z6Mkx", "reason": "trust 12 is below 30" }],
            "attempts": [{ "agent_id": AGENT, "name": "extractor", "node_id": NODE, "why": "best score", "begun": true,
                "started_ms": 1_000, "ended_ms": 1_012, "outcome": "success" }],
            "total_ms": 13,
        });
        answer(200, served)
    })
    .await;
    let (exit, out, err) = node.run(&["call", "echo", "--explain"]).await;
    assert_eq!((exit, out.lines().count()), (0, 1));
    for part in [
        "extractor@eXCES4on",
        "match 0.30 + trust 0.21",
        "trust 12 is below 30",
        "0 ms   12 ms  yes    success  best score",
        "13 ms in all",
        "served by extractor@",
        "cost 0.001 USD",
    ] {
        assert!(err.contains(part), "`{part}` is missing in:\n{err}");
    }
}

#[tokio::test]
async fn a_call_that_failed_is_explained_too() {
    let node = Node::start(|_, _| {
        let attempt = json!({ "agent_id": AGENT, "name": "extractor", "node_id": NODE, "why": "best score", "begun": false,
            "started_ms": 0, "ended_ms": 3, "outcome": format!("BUSY: {}, come back later", "full ".repeat(40)) });
        refusal(429, "BUSY", json!({ "explain": { "candidates": [row()], "rejected": [], "attempts": [attempt], "total_ms": 3 } }))
    })
    .await;
    let (exit, out, err) = node.run(&["call", "echo", "--explain"]).await;
    assert_eq!((exit, out.as_str()), (1, ""));
    assert!(err.contains("no     BUSY     best score") && err.ends_with("error: BUSY: no\n"), "{err}");
    assert!(err.contains("\nattempt 1: BUSY: full ") && err.contains(" , come back later\n"), "errors are told whole: {err}");
}

#[tokio::test]
async fn what_the_mesh_refuses_is_exit_code_one_with_its_code() {
    let node = Node::start(|_, _| refusal(404, "CAPABILITY_NOT_FOUND", json!({ "suggestion": "echo", "retry_after_ms": 250 }))).await;
    let (exit, out, err) = node.run(&["call", "ecko"]).await;
    assert_eq!((exit, out.as_str()), (1, ""));
    assert_eq!(err, "error: CAPABILITY_NOT_FOUND: no\nhint: echo\nhint: try again in 250 ms\n");
    let (exit, out, _) = node.run(&["call", "ecko", "--json"]).await;
    assert_eq!(exit, 1);
    assert_eq!(serde_json::from_str::<Value>(&out).expect("JSON")["error"]["code"], "CAPABILITY_NOT_FOUND");
}

#[tokio::test]
async fn input_that_is_not_json_is_exit_code_two_and_nothing_is_sent() {
    let node = Node::start(|_, _| answer(200, served())).await;
    let (exit, _, err) = node.run(&["call", "echo", "hello"]).await;
    assert_eq!(exit, 2);
    assert!(err.contains("'\"hello\"'"), "{err}");
    assert!(node.requests().is_empty());
}

#[tokio::test]
async fn a_missing_token_is_exit_code_two() {
    let node = Node::start(|_, _| answer(200, served())).await;
    let folder = tempfile::tempdir().expect("a folder");
    let env = [("HOME", folder.path().as_os_str())].into_iter().collect();
    let (exit, _, err) = run_line(&["status", "--api", &node.address], env).await;
    assert_eq!(exit, 2);
    assert!(err.contains("api-token does not exist") && err.contains("--data-dir"), "{err}");
    assert!(node.requests().is_empty());
}

#[tokio::test]
async fn a_node_that_does_not_answer_is_exit_code_three_and_named() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound").to_string();
    drop(listener);
    let (exit, out, err) = run_line(&["call", "echo", "--json", "--api", &address], token()).await;
    assert_eq!(exit, 3);
    assert!(err.contains(&address) && err.contains("meshwork up") && err.contains("--api"), "{err}");
    let document: Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!((&document["error"]["code"], &document["error"]["trace_id"]), (&json!("UNAVAILABLE"), &Value::Null));
}

#[tokio::test]
async fn something_else_at_the_address_is_exit_code_three() {
    let node = Node::start(|_, _| (StatusCode::NOT_FOUND, "<html>").into_response()).await;
    let (exit, _, err) = node.run(&["status"]).await;
    assert_eq!(exit, 3);
    assert!(err.contains("HTTP status 404"), "{err}");
}

#[tokio::test]
async fn a_timeout_of_the_mesh_is_exit_code_four() {
    let node = Node::start(|_, _| refusal(504, "TIMEOUT", json!({}))).await;
    assert_eq!(node.run(&["call", "echo", "--timeout", "0.1"]).await.0, 4);
}

#[tokio::test]
async fn a_node_that_never_answers_is_exit_code_four() {
    let node = Node::start_silent().await;
    let screen = Screen::memory();
    let client = client::Client::new(&global(&["status", "--api", &node.address], token(), &screen)).expect("a client");
    let error = client.post(&["v1", "invoke"], &json!({}), Duration::from_millis(50)).await.expect_err("silence");
    assert_eq!(error.exit(), Exit::Timeout);
}

#[tokio::test]
async fn an_interrupted_call_is_cancelled_at_the_node() {
    // A node that saw the connection close has cancelled already, and knows no such call any more.
    let gone = Node::serve(Arc::new(|call, _| call.starts_with("DELETE ").then(|| refusal(404, "TASK_NOT_FOUND", json!({}))))).await;
    for node in [Node::start_silent().await, gone] {
        let screen = Screen::memory();
        let cli = parse(&["call", "echo", "--json", "--api", &node.address], token(), &screen);
        let Verb::Call(args) = cli.verb else { panic!("a call") };
        let arrived = node.arrived.clone();
        let ended = call::run_until(args, &cli.global, async move { arrived.notified().await }).await;
        assert_eq!(report(ended, &cli.global), Exit::Refused);
        let requests = node.requests();
        let id = requests[0].1["invocation_id"].as_str().expect("an id");
        assert_eq!(screen.pages().1, format!("error: CANCELLED: invocation {id} was cancelled\n"));
        assert_eq!(requests[1].0, format!("DELETE /v1/invocations/{id}"));
    }
}

#[tokio::test]
async fn the_node_that_refuses_the_token_says_where_the_token_came_from() {
    let node = Node::start(|_, _| refusal(401, "AUTHENTICATION_FAILED", json!({}))).await;
    let (exit, _, err) = node.run(&["peers"]).await;
    assert_eq!(exit, 1);
    assert!(err.contains("came from MESHWORK_TOKEN"), "{err}");
}

#[tokio::test]
async fn find_shows_who_vouches_for_each_figure() {
    let node = Node::start(|_, _| answer(200, json!({ "agents": [row()], "rejected": [] }))).await;
    let (exit, out, _) = node.run(&["find", "data-extraction", "--min-success", "0.9", "--language", "en", "--version", "1.0"]).await;
    assert_eq!(exit, 0);
    assert!(out.contains("extractor@eXCES4on  data-extraction 1.0  0.890  70     12 ms m  0.001 USD/document c  97 % m"), "{out}");
    assert!(out.ends_with("c claimed by the agent, m measured by this node, a attested by others' receipts\n"), "{out}");
    let body = &node.requests()[0].1;
    assert_eq!(body["constraints"], json!({ "min_success_rate": 0.9, "language": "en" }));
    assert_eq!((&body["capabilities"], &body["version"]), (&json!(["data-extraction"]), &json!("^1.0")));
}

#[tokio::test]
async fn agents_are_listed_and_hostile_names_made_harmless() {
    let node = Node::start(|_, _| {
        let mut record = record();
        record["name"] = json!("bad\u{1b}[2J");
        answer(200, json!({ "agents": [record] }))
    })
    .await;
    let (exit, out, _) = node.run(&["agents", "--mesh", "--capability", "data-extraction"]).await;
    assert_eq!(exit, 0);
    assert!(out.contains("bad\u{fffd}[2J@eXCES4on") && !out.contains('\u{1b}'), "{out}");
    assert_eq!(node.requests()[0].0, "GET /v1/agents?scope=mesh&capability=data-extraction");
}

#[tokio::test]
async fn an_agent_is_added_shown_and_removed() {
    let node = Node::start(|call, _| match call {
        "POST /v1/agents" => answer(201, json!({ "agent_id": AGENT, "record": record() })),
        "GET /v1/agents?scope=local" => answer(200, json!({ "agents": [record()] })),
        call if call.starts_with("DELETE ") => StatusCode::NO_CONTENT.into_response(),
        _ => answer(200, record()),
    })
    .await;
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("agent.toml");
    std::fs::write(&file, "name = \"extractor\"\nadapter = { type = \"builtin\", kind = \"echo\" }\n").expect("written");
    let (exit, out, err) = node.run(&["agent", "add", &file.display().to_string()]).await;
    assert_eq!((exit, out, err), (0, format!("added extractor@eXCES4on  {AGENT}\n"), String::new()));
    let (exit, out, _) = node.run(&["agent", "show", "extractor@eXCES4on"]).await;
    assert!(exit == 0 && out.contains("{\"type\":\"object\"}") && out.contains("1970-01-01T00:00:02Z"), "{out}");
    let (exit, out, _) = node.run(&["agent", "remove", "extractor"]).await;
    assert_eq!((exit, out.as_str()), (0, "removed extractor@eXCES4on\n"));
    assert_eq!(node.run(&["agent", "remove", "eXCES4"]).await.0, 0);
    let (exit, _, err) = node.run(&["agent", "remove", "extracter"]).await;
    assert_eq!(
        (exit, err.as_str()),
        (1, "error: AGENT_NOT_FOUND: no agent on this node is called `extracter`\nhint: did you mean `extractor`?\n")
    );
    let calls: Vec<String> = node.requests().into_iter().map(|(call, _)| call).collect();
    assert_eq!(
        calls[1..4],
        ["GET /v1/agents/extractor@eXCES4on".to_owned(), "GET /v1/agents?scope=local".to_owned(), format!("DELETE /v1/agents/{AGENT}")]
    );
}

#[tokio::test]
async fn a_broken_definition_is_exit_code_two_with_its_place() {
    let node = Node::start(|_, _| answer(201, json!({}))).await;
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("agent.toml");
    std::fs::write(&file, "name = \"x\"\nadaptor = 1\n").expect("written");
    let (exit, _, err) = node.run(&["agent", "add", &file.display().to_string()]).await;
    assert_eq!(exit, 2);
    assert!(err.contains("line 2") && err.contains("adaptor"), "{err}");
    assert!(node.requests().is_empty());
}

#[tokio::test]
async fn peers_status_and_trust_are_readable() {
    let node = Node::start(|call, _| match call {
        "GET /v1/peers" => {
            let peer = json!({ "node_id": NODE, "addresses": ["/ip4/10.0.0.2/tcp/1", "/ip4/10.0.0.3/tcp/1"], "direction": "outbound",
                "transport": "tcp", "rtt_ms": 1.25, "agents": 2, "connected_ms": 61_000, "agent_version": null,
                "calls": { "sent": 9, "received": 4, "failed": 2, "latency_ms": 12.25 } });
            answer(200, json!({ "peers": [peer] }))
        }
        "GET /v1/trust" => {
            let known = json!({ "agent_id": AGENT, "name": "extractor", "node_id": NODE, "capability": "data-extraction",
                "trust": 71.5, "low": 60, "high": 80.25, "successes": 9, "failures": 1, "latency_ms": 12,
                "standing": "proven", "breaker": { "state": "open", "left_ms": 1_200 },
                "attested": { "successes": 3, "failures": 0.5, "latency_ms": 20 } });
            // Known from receipts alone, and no longer in the directory.
            let heard = json!({ "agent_id": AGENT, "name": null, "node_id": null, "capability": "echo",
                "trust": 60, "low": 5, "high": 95, "successes": 0, "failures": 0, "latency_ms": null, "attested": null });
            answer(200, json!({ "agents": [known, heard] }))
        }
        "GET /v1/trust/receipts?agent=extractor" => {
            let receipt = json!({ "issuer": NODE, "agent_id": AGENT, "name": "extractor", "capability": "data-extraction",
                "window": { "start": "2026-01-01T10:00:00Z", "end": "2026-01-01T11:00:00Z" }, "successes": 9, "failures": 1, "latency_ms": 12,
                "counted": false, "counted_calls": 0, "reason": "its issuer is not pinned" });
            answer(200, json!({ "receipts": [receipt] }))
        }
        _ => answer(
            200,
            json!({ "node_id": NODE, "name": "first", "version": "0.1.0", "protocol": "1", "uptime_ms": 3_720_000, "state": "ready",
                "listen": ["/ip4/127.0.0.1/tcp/4001"], "advertised": [], "ready": true,
                "counts": { "peers": 3, "agents_local": 1, "agents_mesh": 7, "calls_in_flight": 0 } }),
        ),
    })
    .await;
    let (_, out, _) = node.run(&["peers"]).await;
    assert!(
        out.contains("…vnc6iDEp") && out.contains("/ip4/10.0.0.2/tcp/1 +1") && out.contains("1.25 ms") && out.contains("1 min"),
        "{out}"
    );
    let words = |line: &str| line.split("  ").map(str::trim).filter(|word| !word.is_empty()).map(str::to_owned).collect::<Vec<_>>();
    let columns: Vec<(String, String)> =
        words(out.lines().next().expect("a head")).into_iter().zip(words(out.lines().nth(1).expect("a row"))).collect();
    for (head, figure) in [("SENT", "9"), ("FAILED", "2"), ("LATENCY", "12 ms"), ("RECEIVED", "4")] {
        assert!(columns.contains(&(head.to_owned(), figure.to_owned())), "{columns:?}");
    }
    let (_, out, _) = node.run(&["peers", "--long"]).await;
    assert!(out.contains(NODE) && !out.contains('…'), "{out}");
    let (_, out, _) = node.run(&["trust"]).await;
    assert!(out.contains("71.5   60 to 80.25  proven"), "{out}");
    assert!(out.contains("open for 1.2 s") && out.contains("3 of 3.5 well, 20 ms"), "{out}");
    let (_, out, _) = node.run(&["trust", "receipts", "extractor"]).await;
    assert!(out.contains("…vnc6iDEp") && out.contains("2026-01-01T11:00:00Z") && out.contains("none: its issuer is not pinned"), "{out}");
    let (_, out, _) = node.run(&["status"]).await;
    assert!(out.contains("1 h 2 min") && out.contains("1 here, 7 in the mesh") && out.contains("/ip4/127.0.0.1/tcp/4001"), "{out}");
}

#[tokio::test]
async fn doctor_joins_its_own_checks_with_the_nodes_and_fails_when_one_fails() {
    let node = Node::start(|call, _| match call {
        "GET /v1/doctor" => {
            answer(200, json!({ "checks": [{ "name": "clock", "level": "fail", "message": "two minutes off", "remedy": "run ntp" }] }))
        }
        _ => answer(200, json!({ "node_id": NODE, "version": env!("CARGO_PKG_VERSION") })),
    })
    .await;
    let (exit, out, err) = node.run(&["doctor"]).await;
    assert_eq!((exit, err.as_str()), (1, ""));
    assert!(out.contains("ok    token accepted") && out.ends_with("FAIL  clock: two minutes off\n      run ntp\n"), "{out}");
    let (_, out, _) = node.run(&["doctor", "--json"]).await;
    assert!(serde_json::from_str::<Value>(&out).expect("one document")["checks"].as_array().is_some_and(|checks| checks.len() >= 4));
}

#[cfg(unix)]
#[tokio::test]
async fn doctor_finds_a_token_that_others_can_read_without_a_node() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("api-token");
    std::fs::write(&file, "a-secret-of-enough-length").expect("written");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).expect("ours");
    let env = [("MESHWORK_DATA_DIR", folder.path().as_os_str())].into_iter().collect();
    let (exit, out, _) = run_line(&["doctor", "--api", "127.0.0.1:1"], env).await;
    assert_eq!(exit, 1);
    assert!(out.contains("chmod 600") && out.contains("FAIL  reachable"), "{out}");
    assert!(!out.contains("a-secret"), "{out}");
}

#[tokio::test]
async fn events_are_one_document_per_line_and_end_with_the_node() {
    let stream = "event: agent.up\ndata: {\"name\":\"x\"}\n\n: still here\n\nevent: note\ndata: text\n\n";
    let node = Node::start(move |_, _| ([("content-type", "text/event-stream")], stream).into_response()).await;
    let (exit, out, err) = node.run(&["events"]).await;
    assert_eq!(out, "{\"data\":{\"name\":\"x\"},\"event\":\"agent.up\"}\n{\"data\":\"text\",\"event\":\"note\"}\n");
    assert!(exit == 3 && err.contains("ended the stream"), "{err}");
}

#[tokio::test]
async fn a_configuration_is_checked_without_a_node() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("node.toml");
    let path = file.display().to_string();
    let env = || [("HOME", "/home/x")].into_iter().collect();
    std::fs::write(&file, "[node]\nname = \"first\"\n").expect("written");
    assert_eq!(run_line(&["config", "check", &path], env()).await, (0, format!("{path}: ok\n"), String::new()));

    std::fs::write(&file, "[nod]\nname = 1\n[mesh]\nlissen = []\n").expect("written");
    let (exit, out, err) = run_line(&["config", "check", &path, "--json"], env()).await;
    assert_eq!(exit, 2);
    assert!(err.contains("2 faults") && err.contains("lissen"), "{err}");
    let document: Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!(document["error"]["details"]["faults"].as_array().map(Vec::len), Some(2));
    assert_eq!(run_line(&["config", "check", "/nowhere/at/all"], env()).await.0, 2);
}

#[cfg(unix)]
#[tokio::test]
async fn keys_are_shown_without_a_node_and_never_made() {
    let folder = tempfile::tempdir().expect("a folder");
    let env = || [("MESHWORK_DATA_DIR", folder.path().as_os_str())].into_iter().collect();
    let (exit, _, err) = run_line(&["key", "show"], env()).await;
    assert!(exit == 2 && err.contains("no node has its data in"), "{err}");
    assert_eq!(std::fs::read_dir(folder.path()).expect("there").count(), 0);

    let keys = crate::store::DataDir::open(folder.path()).expect("opens").keys();
    let node = keys.node_key().expect("made").public().to_peer_id().to_string();
    let agent = crate::model::AgentId::from_public_key(keys.agent_key("extractor").expect("made").verifying_key().to_bytes()).to_string();
    let (exit, out, err) = run_line(&["key", "show", "--json"], env()).await;
    assert_eq!((exit, err.as_str()), (0, ""));
    let document: Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!((&document["node"]["node_id"], &document["node"]["mode"]), (&json!(node), &json!("600")));
    assert_eq!((&document["agents"][0]["name"], &document["agents"][0]["agent_id"]), (&json!("extractor"), &json!(agent)));
}

#[tokio::test]
async fn examples_are_listed_and_printed_as_they_are() {
    let (exit, names, _) = run_line(&["config", "example"], token()).await;
    assert_eq!(exit, 0);
    for name in names.lines() {
        let (exit, text, _) = run_line(&["config", "example", name], token()).await;
        assert_eq!((exit, Some(text.as_str())), (0, crate::config::example(name)));
    }
    let (exit, _, err) = run_line(&["config", "example", "bootstrop"], token()).await;
    assert!(exit == 2 && err.contains("`bootstrap`"), "{err}");
}

/// A server in a node's place, and what it was asked.
pub(super) struct Node {
    pub(super) address: String,
    pub(super) arrived: Arc<Notify>,
    asked: Arc<Mutex<Vec<(String, Value)>>>,
    keys: Arc<Mutex<Vec<String>>>,
}

type Reply = Arc<dyn Fn(&str, &Value) -> Option<Response> + Send + Sync>;

impl Node {
    /// Answers each request as `reply` says.
    pub(super) async fn start(reply: impl Fn(&str, &Value) -> Response + Send + Sync + 'static) -> Self {
        Self::serve(Arc::new(move |call, body| Some(reply(call, body)))).await
    }

    /// Never answers but to a cancellation.
    pub(super) async fn start_silent() -> Self {
        Self::serve(Arc::new(|call, _| call.starts_with("DELETE ").then(|| StatusCode::NO_CONTENT.into_response()))).await
    }

    async fn serve(reply: Reply) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound").to_string();
        let (arrived, asked, keys) = (Arc::new(Notify::new()), Arc::default(), Arc::default());
        let state = (reply, arrived.clone(), Arc::clone(&asked), Arc::clone(&keys));
        tokio::spawn(axum::serve(listener, Router::new().fallback(handle).with_state(state)).into_future());
        Self { address, arrived, asked, keys }
    }

    pub(super) async fn run(&self, words: &[&str]) -> (u8, String, String) {
        run_line(&[words, &["--api", &self.address]].concat(), token()).await
    }

    pub(super) fn requests(&self) -> Vec<(String, Value)> {
        self.asked.lock().expect("no panic while held").clone()
    }

    /// The idempotency keys that came, in order.
    pub(super) fn keys(&self) -> Vec<String> {
        self.keys.lock().expect("no panic while held").clone()
    }
}

type Shared = (Reply, Arc<Notify>, Arc<Mutex<Vec<(String, Value)>>>, Arc<Mutex<Vec<String>>>);

async fn handle(State((reply, arrived, asked, keys)): State<Shared>, request: Request) -> Response {
    if request.uri().path() == "/health" {
        return Json(json!({ "status": "ok" })).into_response();
    }
    if request.headers().get(AUTHORIZATION).is_none_or(|value| value != "Bearer t0ken") {
        return refusal(401, "AUTHENTICATION_FAILED", json!({}));
    }
    if let Some(key) = request.headers().get("idempotency-key") {
        keys.lock().expect("no panic while held").push(key.to_str().expect("visible").to_owned());
    }
    let call = format!("{} {}", request.method(), request.uri());
    let bytes = axum::body::to_bytes(request.into_body(), 1_000_000).await.expect("a body");
    let body: Value = serde_json::from_slice(&bytes).unwrap_or_default();
    asked.lock().expect("no panic while held").push((call.clone(), body.clone()));
    arrived.notify_one();
    let answer: std::pin::Pin<Box<dyn Future<Output = Response> + Send>> = match reply(&call, &body) {
        Some(response) => Box::pin(ready(response)),
        None => Box::pin(pending()),
    };
    answer.await
}

pub(super) fn answer(status: u16, document: Value) -> Response {
    (StatusCode::from_u16(status).expect("a status"), Json(document)).into_response()
}

pub(super) fn refusal(status: u16, code: &str, details: Value) -> Response {
    answer(
        status,
        json!({ "error": { "code": code, "number": 1, "message": "no", "retryable": false, "details": details, "trace_id": "t" } }),
    )
}

fn served() -> Value {
    json!({ "invocation_id": "0".repeat(32), "status": "success", "output": "hi \u{1b}[31m", "agent_id": AGENT, "node_id": NODE,
        "attempts": 1, "latency_ms": 12.5, "cost": { "amount": "0.001", "currency": "USD" }, "units": 1 })
}

fn row() -> Value {
    json!({ "agent_id": AGENT, "name": "extractor", "node_id": NODE, "capability": "data-extraction", "capability_version": "1.0", "score": 0.89,
        "trust": 70, "latency_ms": { "value": 12, "source": "measured" }, "success_rate": { "value": 0.97, "source": "measured" },
        "cost": { "amount": "0.001", "currency": "USD", "unit": "document", "source": "claimed" },
        "terms": { "match": 0.3, "trust": 0.21, "latency": 0.18, "cost": 0.2 }, "standing": "proven", "match": 1.0, "in_flight": 0, "local": false })
}

fn record() -> Value {
    json!({ "agent_id": AGENT, "name": "extractor", "version": "1.0.0", "framework": "custom", "description": "", "node_id": NODE, "local": true,
        "sequence": 1, "issued_at": 1_000, "expires_at": 2_000, "addresses": [],
        "capabilities": [{ "id": "data-extraction", "version": "1.0", "description": "", "price": null, "constraints": {}, "idempotent": false,
            "input_schema": { "type": "object" }, "output_schema": {} }],
        "status": { "state": "available", "reason": null, "in_flight": 0, "queue": 0, "reachable": true } })
}

pub(super) fn token() -> global::Environment {
    [("MESHWORK_TOKEN", "t0ken")].into_iter().collect()
}

pub(super) fn parse(words: &[&str], env: global::Environment, screen: &Screen) -> Cli {
    let mut cli = Cli::try_parse_from(["meshwork"].iter().chain(words)).expect("a command line");
    (cli.global.env, cli.global.screen) = (env, screen.clone());
    cli
}

fn global(words: &[&str], env: global::Environment, screen: &Screen) -> Global {
    parse(words, env, screen).global
}

/// Runs a command line; gives exit code, stdout and stderr.
pub(super) async fn run_line(words: &[&str], env: global::Environment) -> (u8, String, String) {
    let screen = Screen::memory();
    let cli = parse(words, env, &screen);
    let global = cli.global.clone();
    let exit = report(run(cli).await, &global);
    let (out, err) = screen.pages();
    (exit as u8, out, err)
}
