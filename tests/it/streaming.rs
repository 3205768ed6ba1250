//! Answers in chunks: in order, at the reader's pace, from one agent only, and taken back from wherever somebody stops listening.

use std::process::Stdio;

use reqwest::Method;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::Child,
};

use crate::support::{
    Events, HttpAgent, Journal, Node, SETTLE, eventually, signal, stepper,
    stepping::{Two, stepping, until_count, until_it_serves},
    with, within,
};

/// The largest chunk, in bytes.
const CHUNK_BYTES_MAX: usize = 65_536;
/// A chunk that is a little smaller, in bytes.
const CHUNK_BYTES: usize = 60_000;
/// What a node may hold more than before while somebody reads too slowly, in bytes.
const HELD_MAX: u64 = 48 * 1024 * 1024;

/// MEAP-7: chunks come in order and before the output, from either kind of agent, near and far, to the API and to the program.
#[tokio::test]
async fn chunks_come_in_order_and_before_the_output() {
    let mesh = Mesh::start().await;
    let chunks = [json!(1), json!(null), json!("grüße\r\n\u{1b}[2J"), json!({ "nested": [true, 0.5], "${x}": {} }), json!("")];
    let output = json!({ "whole": "answer" });
    let mut steps: Vec<Value> = chunks.iter().map(|chunk| json!({ "chunk": chunk })).collect();
    // White space within a chunk is the agent's, and the events' line ends among it.
    steps.push(json!({ "text": "{\"id\":\"ID\",\"chunk\":[1,\r 2]}" }));
    steps.push(json!({ "output": output }));
    let chunks: Vec<Value> = chunks.into_iter().chain([json!([1, 2])]).collect();

    for node in [&mesh.host, &mesh.caller] {
        for capability in ["test.process", "test.http"] {
            let (told, end) = told(node.stream(stepping(capability, &steps)).await).await;
            assert_eq!((&told, &end["output"], &end["attempts"]), (&chunks, &output, &json!(1)), "{capability}: {end}");

            let input = json!({ "steps": steps }).to_string();
            let printed = node.cli(&["call", capability, &input, "--stream"]).await;
            let lines: Vec<Value> = printed.text().lines().map(|line| serde_json::from_str(line).expect("a line is JSON")).collect();
            assert_eq!(lines, [&chunks[..], std::slice::from_ref(&output)].concat(), "{capability}");

            let whole = node.invoke(stepping(capability, &steps)).await.ok();
            assert_eq!(whole["output"], output, "who asks for no chunks gets none");
        }
    }
}

/// MEAP-7: what is no chunk of this answer is not taken for one.
#[tokio::test]
async fn lines_that_are_no_chunks_are_passed_over() {
    let mesh = Mesh::start().await;
    let steps = [
        json!({ "text": "not JSON at all" }),
        json!({ "text": "{\"id\":\"ID\",\"chunk\":not JSON}" }),
        json!({ "text": "{\"id\":\"ID\"}" }),
        json!({ "chunk": "mine" }),
        json!({ "text": "{\"id\":\"ffffffffffffffffffffffffffffffff\",\"chunk\":\"of nobody\"}" }),
        json!({ "output": 1 }),
        json!({ "chunk": "too late" }),
        json!({ "output": "the second" }),
    ];

    for round in 0..3 {
        let (told, end) = told(mesh.caller.stream(stepping("test.process", &steps)).await).await;
        assert_eq!((told, &end["output"]), (vec![json!("mine")], &json!(1)), "round {round}");
    }
    // Events carry no other calls, so an id is not asked for.
    let (told, end) = told(mesh.caller.stream(stepping("test.http", &steps)).await).await;
    assert_eq!((told, &end["output"]), (vec![json!("mine"), json!("of nobody")], &json!(1)));
}

/// MEAP-7: a chunk is at most 64 KiB, so that it never stands in the way of a small call.
#[tokio::test]
async fn a_chunk_over_64_kib_is_a_fault_of_its_agent() {
    let mesh = Mesh::start().await;
    let steps = |bytes: usize| [json!({ "chunk": "small" }), json!({ "chunks": 1, "bytes": bytes }), json!({ "output": "end" })];

    for node in [&mesh.host, &mesh.caller] {
        for capability in ["test.process", "test.http"] {
            let served = async || {
                let (told, end) = told_or_not(node.stream(stepping(capability, &steps(CHUNK_BYTES_MAX))).await).await;
                end.is_ok().then_some((told, end))
            };
            let (chunks, _) = eventually("the largest chunk passes", SETTLE, served).await;
            assert_eq!(chunks[1].to_string().len(), CHUNK_BYTES_MAX);

            let (chunks, error) = failed(node.stream(stepping(capability, &steps(CHUNK_BYTES_MAX + 1))).await).await;
            assert_eq!((chunks, &error["code"]), (vec![json!("small")], &json!("AGENT_FAILED")), "{error}");
            let message = error["message"].as_str().expect("a message");
            assert!(message.contains("65537") && message.contains("65536"), "{message}");
        }
    }
}

/// MEAP-7: a client that stops reading stops the agent, and costs the nodes between them next to nothing.
#[tokio::test]
async fn a_reader_that_stops_stops_the_agent() {
    let mesh = Mesh::start().await;
    let endless = [json!({ "chunks": 3_500, "bytes": CHUNK_BYTES }), json!({ "output": "end" })];

    for (capability, journal) in mesh.agents() {
        for node in [&mesh.host, &mesh.caller] {
            let before = [mesh.host.resident_bytes(), mesh.caller.resident_bytes()];
            let cancelled = journal.count("cancelled");
            let mut stream = node.stream(stepping(capability, &endless)).await;
            assert_eq!(stream.next().await.expect("a chunk").0, "chunk");

            let written = until_it_waits(journal).await;

            assert!(written < 1_000, "{capability}: {written} of 3,500 chunks were written to nobody");
            for (node, before) in [&mesh.host, &mesh.caller].into_iter().zip(before) {
                let held = node.resident_bytes().saturating_sub(before);
                assert!(held < HELD_MAX, "{capability}: {held} bytes more than before");
            }
            drop(stream);
            until_count(journal, "cancelled", cancelled + 1).await;
        }
    }
}

/// MEAP-7: whoever reads on gets everything, in order.
#[tokio::test]
async fn a_reader_that_goes_on_misses_nothing() {
    let mesh = Mesh::start().await;
    // More than the buffers of all sockets on the way may hold, which is tens of megabytes where the system lets them grow.
    const COUNT: usize = 1_200;
    let steps = [json!({ "chunks": COUNT, "bytes": CHUNK_BYTES }), json!({ "output": "end" })];

    for (capability, journal) in mesh.agents() {
        let mut stream = mesh.caller.stream(stepping(capability, &steps)).await;
        assert_eq!(stream.next().await.expect("a chunk").1["n"], 0);
        let written = until_it_waits(journal).await;
        assert!(written < COUNT, "{capability}: the agent never waited");

        let (chunks, end) = told(stream).await;

        let numbers: Vec<usize> = chunks.iter().filter_map(|chunk| chunk["n"].as_u64()?.try_into().ok()).collect();
        assert_eq!(numbers, (1..COUNT).collect::<Vec<_>>(), "{capability}");
        assert!(chunks.iter().all(|chunk| chunk["x"].as_str().is_some_and(|text| text.len() > CHUNK_BYTES - 100)));
        assert_eq!(end["output"], "end");
    }
}

/// Where a call can be when somebody takes it back, as steps of its agent.
const POINTS: [&str; 3] = ["before the first chunk", "between two chunks", "blocked by its reader"];

fn steps_to(point: &str) -> Vec<Value> {
    match point {
        "before the first chunk" => vec![json!({ "ms": 30_000 }), json!({ "output": "late" })],
        "between two chunks" => vec![json!({ "chunk": 1 }), json!({ "ms": 30_000 }), json!({ "output": "late" })],
        "blocked by its reader" => vec![json!({ "chunks": 3_500, "bytes": CHUNK_BYTES }), json!({ "output": "late" })],
        other => panic!("no such point: {other}"),
    }
}

/// Waits until a call is there; `started` is how many calls the agent had begun before.
async fn until_at(point: &str, stream: &mut Events, journal: &Journal, started: usize) {
    until_count(journal, "started", started + 1).await;
    if point != "before the first chunk" {
        assert_eq!(stream.next().await.expect("a chunk").0, "chunk", "{point}");
    }
    if point == "blocked by its reader" {
        until_it_waits(journal).await;
    }
}

/// MEAP-7: a client that hangs up takes its call back from the agent, wherever the call is.
#[tokio::test]
async fn a_client_that_hangs_up_cancels_at_the_agent() {
    let mesh = Mesh::start().await;
    for (capability, journal) in mesh.agents() {
        for node in [&mesh.host, &mesh.caller] {
            for point in POINTS {
                let (started, cancelled) = (journal.count("started"), journal.count("cancelled"));
                let mut stream = node.stream(stepping(capability, &steps_to(point))).await;
                until_at(point, &mut stream, journal, started).await;

                drop(stream);

                until_count(journal, "cancelled", cancelled + 1).await;
                until_it_serves(node, capability, point).await;
            }
        }
    }
}

/// MEAP-7: so does a client that says so, and the stream ends in that word.
#[tokio::test]
async fn a_streamed_call_is_cancelled_by_its_id() {
    let mesh = Mesh::start().await;
    for (capability, journal) in mesh.agents() {
        for node in [&mesh.host, &mesh.caller] {
            for point in POINTS {
                let (started, cancelled) = (journal.count("started"), journal.count("cancelled"));
                let id = format!("{:032x}", started + 1);
                let mut stream = node.stream(with(stepping(capability, &steps_to(point)), json!({ "invocation_id": id }))).await;
                until_at(point, &mut stream, journal, started).await;

                node.send(node.request(Method::DELETE, &format!("/v1/invocations/{id}"))).await.ok();

                until_count(journal, "cancelled", cancelled + 1).await;
                assert_eq!(failed(stream).await.1["code"], "CANCELLED", "{capability} {point}");
                until_it_serves(node, capability, point).await;
            }
        }
    }
}

/// MEAP-7: Ctrl-C at the terminal reaches the agent.
#[tokio::test]
async fn an_interrupt_of_the_program_cancels_at_the_agent() {
    let mesh = Mesh::start().await;
    for (number, point) in (1..).zip(["before the first chunk", "between two chunks"]) {
        let input = json!({ "steps": steps_to(point) }).to_string();
        let mut verb = mesh.caller.verb(&["call", "test.process", &input, "--stream"]);
        let mut child: Child = verb.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("the program starts");
        until_count(&mesh.process, "started", number).await;
        if point == "between two chunks" {
            let mut lines = BufReader::new(child.stdout.take().expect("its output is piped")).lines();
            let line = within("the first chunk is printed", SETTLE, lines.next_line()).await.expect("it is text");
            assert_eq!(line.as_deref(), Some("1"));
        }

        signal(&child, "INT");

        until_count(&mesh.process, "cancelled", number).await;
        let status = within("the program ends", SETTLE, child.wait()).await.expect("it is waited for");
        assert_eq!(status.code(), Some(1), "{point}");
    }
}

/// MEAP-7, F2: nobody is left to read when the calling node dies.
#[tokio::test]
async fn the_death_of_the_calling_node_cancels_at_the_agent() {
    let builder = Node::builder();
    let (agent, journal) = stepper("process", builder.home(), json!({ "id": "test.process" }));
    let host = builder.agent(agent).spawn().await;
    for (number, point) in (0..).zip(POINTS) {
        let mut caller = Node::builder().join(&host).spawn().await;
        caller.knows("test.process", &["process"]).await;
        let mut stream = caller.stream(stepping("test.process", &steps_to(point))).await;
        until_at(point, &mut stream, &journal, number * 2).await;

        caller.kill().await;

        until_count(&journal, "cancelled", number + 1).await;
        until_it_serves(&host, "test.process", point).await;
    }
}

/// MEAP-7, AOP-4: before its first chunk an answer may still come from somebody else.
#[tokio::test]
async fn an_agent_that_dies_before_its_first_chunk_is_replaced() {
    let two = Two::start(true).await;
    let steps = [json!({ "exit": "first" }), json!({ "chunk": "a" }), json!({ "chunk": "b" }), json!({ "output": "ab" })];

    let (chunks, end) = told(two.caller.stream(stepping("test.two", &steps)).await).await;

    assert_eq!((chunks, &end["output"]), (vec![json!("a"), json!("b")], &json!("ab")));
    assert_eq!((&end["attempts"], &end["node_id"]), (&json!(2), &json!(two.second.id())), "{end}");
}

/// MEAP-7: an answer never has chunks of two agents, even where a second one could begin anew.
#[tokio::test]
async fn an_agent_that_dies_after_its_first_chunk_fails_the_call() {
    let two = Two::start(true).await;
    let steps = [json!({ "chunk": "a" }), json!({ "exit": "first" }), json!({ "chunk": "b" }), json!({ "output": "ab" })];

    let (chunks, error) = failed(two.caller.stream(stepping("test.two", &steps)).await).await;

    assert_eq!((chunks, &error["code"]), (vec![json!("a")], &json!("AGENT_FAILED")), "{error}");
    assert_eq!(error["details"]["attempts"], 1, "{error}");
    assert_eq!(two.journals[1].count("started"), 0, "nobody else was asked");
}

/// MEAP-7: the same holds when the node of the agent dies.
#[tokio::test]
async fn a_node_that_dies_after_the_first_chunk_fails_the_call() {
    let mut two = Two::start(true).await;
    let steps = [json!({ "chunk": "a" }), json!({ "ms": 30_000 }), json!({ "output": "a" })];

    let mut stream = two.caller.stream(with(stepping("test.two", &steps), json!({ "idempotency_key": "even with a key" }))).await;
    assert_eq!(stream.next().await.expect("a chunk").1, "a");
    two.first.kill().await;
    let (chunks, error) = failed(stream).await;

    assert_eq!((chunks.len(), &error["code"]), (0, &json!("AGENT_FAILED")), "{error}");
    assert_eq!((&error["details"]["attempts"], &error["details"]["outcome"]), (&json!(1), &json!("unknown")), "{error}");
    assert_eq!(two.journals[1].count("started"), 0, "nobody else was asked");
}

/// MEAP-7: a replay by key gives the result alone, after the end and while the first call still runs.
#[tokio::test]
async fn a_replay_by_key_has_no_chunks() {
    let mesh = Mesh::start().await;
    for (number, node) in (1..).zip([&mesh.host, &mesh.caller]) {
        let steps = [json!({ "chunk": "a" }), json!({ "ms": 700 }), json!({ "chunk": "b" }), json!({ "output": node.id() })];
        let call = with(stepping("test.process", &steps), json!({ "idempotency_key": "once" }));
        let mut first = node.stream(call.clone()).await;
        assert_eq!(first.next().await.expect("a chunk").1, "a");

        let (joined, first) = tokio::join!(async { told(node.stream(call.clone()).await).await }, told(first));
        let replayed = told(node.stream(call.clone()).await).await;

        assert_eq!(first.0, [json!("b")]);
        for (chunks, end) in [joined, replayed] {
            assert_eq!((chunks, &end["output"]), (Vec::new(), &json!(node.id())));
        }
        assert_eq!(mesh.process.count("started"), number);
    }
}

/// A client that hangs up does not take the answer from another one that waits under the same key.
#[tokio::test]
async fn the_call_goes_on_for_others_when_the_one_who_reads_its_chunks_leaves() {
    let mesh = Mesh::start().await;
    let steps =
        [json!({ "chunk": "a" }), json!({ "ms": 300 }), json!({ "chunks": 50, "bytes": CHUNK_BYTES }), json!({ "output": "whole" })];
    let call = with(stepping("test.process", &steps), json!({ "idempotency_key": "shared" }));
    let mut reading = mesh.caller.stream(call.clone()).await;
    assert_eq!(reading.next().await.expect("a chunk").1, "a");

    let other = mesh.caller.invoke(call);
    let leaving = async {
        let both = async || (mesh.caller.get("/v1/node").await.ok()["counts"]["calls_in_flight"] == 2).then_some(());
        eventually("the other call waits", SETTLE, both).await;
        drop(reading);
    };
    let (answer, ()) = tokio::join!(other, leaving);

    assert_eq!(answer.ok()["output"], "whole");
    assert_eq!((mesh.process.count("started"), mesh.process.count("cancelled")), (1, 0));
}

/// MEAP-7: how long a client waits for the first chunk, and for the next, is its own choice.
#[tokio::test]
async fn a_pause_that_is_too_long_ends_the_call() {
    let mesh = Mesh::start().await;
    for (capability, journal) in mesh.agents() {
        for node in [&mesh.host, &mesh.caller] {
            let cancelled = journal.count("cancelled");
            let call = stepping(capability, &steps_to("before the first chunk"));
            let (chunks, error) = failed(node.stream(with(call, json!({ "first_chunk_timeout_ms": 300 }))).await).await;
            assert_eq!((chunks.len(), &error["code"]), (0, &json!("TIMEOUT")), "{error}");
            assert_eq!(error["details"]["timeout_ms"], 300, "{error}");
            until_count(journal, "cancelled", cancelled + 1).await;

            let call = stepping(capability, &steps_to("between two chunks"));
            let patience = json!({ "first_chunk_timeout_ms": 10_000, "idle_timeout_ms": 300 });
            let (chunks, error) = failed(node.stream(with(call, patience)).await).await;
            assert_eq!((chunks.len(), &error["code"]), (1, &json!("TIMEOUT")), "{error}");
            until_count(journal, "cancelled", cancelled + 2).await;

            // Neither bounds the whole, nor the time that the client takes for a chunk.
            let steady: Vec<Value> =
                (0..8).flat_map(|chunk| [json!({ "ms": 200, "chunk": chunk })]).chain([json!({ "output": 1 })]).collect();
            let call = with(stepping(capability, &steady), json!({ "first_chunk_timeout_ms": 1_500, "idle_timeout_ms": 1_500 }));
            assert_eq!(told(node.stream(call).await).await.0.len(), 8);
        }
    }
}

/// F13: the deadline of a call holds for those who read slowly, too.
#[tokio::test]
async fn a_reader_that_stops_is_not_waited_for_past_the_deadline() {
    let mesh = Mesh::start().await;
    for node in [&mesh.host, &mesh.caller] {
        let call = with(stepping("test.process", &steps_to("blocked by its reader")), json!({ "timeout_ms": 2_500 }));
        let mut stream = node.stream(call).await;
        assert_eq!(stream.next().await.expect("a chunk").0, "chunk");

        until_it_serves(node, "test.process", "after the deadline").await;

        assert_eq!(failed(stream).await.1["code"], "TIMEOUT");
    }
}

/// A host with an agent of either kind, and a caller on another node.
struct Mesh {
    host: Node,
    caller: Node,
    process: Journal,
    http_journal: Journal,
    _http: HttpAgent,
}

impl Mesh {
    async fn start() -> Self {
        let http = HttpAgent::start().await;
        let builder = Node::builder();
        let (agent, process) = stepper("process", builder.home(), json!({ "id": "test.process" }));
        let host = builder.agent(agent).agent(http.stepper("http", json!({ "id": "test.http" }))).spawn().await;
        let caller = Node::builder().join(&host).spawn().await;
        for node in [&host, &caller] {
            node.knows("test.process", &["process"]).await;
            node.knows("test.http", &["http"]).await;
        }
        Self { host, caller, process, http_journal: http.journal(), _http: http }
    }

    fn agents(&self) -> [(&'static str, &Journal); 2] {
        [("test.process", &self.process), ("test.http", &self.http_journal)]
    }
}

/// The chunks of an answer, and its good or bad end.
async fn told_or_not(mut stream: Events) -> (Vec<Value>, Result<Value, Value>) {
    let mut chunks = Vec::new();
    for (name, data) in stream.rest().await {
        match name.as_str() {
            "chunk" => chunks.push(data),
            "result" => return (chunks, Ok(data)),
            "error" => return (chunks, Err(data["error"].clone())),
            other => panic!("an event `{other}`: {data}"),
        }
    }
    panic!("the stream ended without an end after {} chunks", chunks.len());
}

/// The chunks of an answer that must end well, and the document at its end.
async fn told(stream: Events) -> (Vec<Value>, Value) {
    let (chunks, end) = told_or_not(stream).await;
    (chunks, end.unwrap_or_else(|error| panic!("it failed: {error}")))
}

/// The chunks of an answer that must fail, and the error at its end.
async fn failed(stream: Events) -> (Vec<Value>, Value) {
    let (chunks, end) = told_or_not(stream).await;
    (chunks, end.expect_err("it ended well"))
}

/// Waits until the agent writes no more for a while; how many chunks it has written by then.
async fn until_it_waits(journal: &Journal) -> usize {
    let (mut last, mut same) = (0, 0);
    let waits = async || {
        let written = journal.emitted();
        same = if written == last { same + 1 } else { 0 };
        last = written;
        (written > 0 && same == 20).then_some(written)
    };
    eventually("the agent waits", SETTLE * 2, waits).await
}
