//! Calls with an idempotency key, over the death of the nodes that have a part in them (fault F10, tasks.md "Fences and idempotency").
//!
//! The agents note what they do in a file, so nobody has to believe a node about how often something was done.

use meshwork::{
    model::ErrorCode,
    wire::invocation::{Fence, Frame, Request},
};
use serde_json::{Value, json};

use crate::support::{
    Node,
    oracle::{Oracle, count},
    peer::{HostilePeer, RawLane, request},
    target::{agent, failure},
    tasks::{Workshop, step, task},
    with,
};

/// A call of the oracle's agent, for a step of this name.
fn call(step: &str, key: &str) -> Value {
    json!({ "capability": "noted", "input": { "step": step }, "idempotency_key": key })
}

fn done(oracle: &Oracle, step: &str) -> usize {
    count(&oracle.of(step), "finished").get(step).copied().unwrap_or_default()
}

/// AITP-12, fault F10: what a client was answered is answered again after its node was killed, and not done again.
#[tokio::test]
async fn a_result_outlives_the_node_of_the_client() {
    let folder = tempfile::tempdir().expect("a folder");
    let oracle = Oracle::new(folder.path());
    let host = Node::builder().agent(oracle.agent("noter", "noted", 2)).spawn().await;
    let mut desk = Node::builder().join(&host).spawn().await;
    desk.knows("noted", &["noter"]).await;

    let first = desk.invoke(call("once", "k")).await.ok();
    desk.kill().await;
    let desk = desk.reborn().spawn().await;
    let again = desk.invoke(call("once", "k")).await.ok();

    let telling = ["output", "agent_id", "node_id", "invocation_id", "units", "attempts"];
    assert_eq!(telling.map(|field| &again[field]), telling.map(|field| &first[field]));
    assert_eq!(done(&oracle, "once"), 1);
    let other = desk.invoke(json!({ "capability": "noted", "input": { "step": "other" }, "idempotency_key": "k" })).await;
    assert_eq!(other.error("CONFLICT")["retryable"], false, "the key still stands for the first input");
}

/// Fault F10: the agent's node answers from its disk what it did before it was killed, also for a caller that has forgotten.
#[tokio::test]
async fn a_result_outlives_the_node_of_the_agent() {
    let folder = tempfile::tempdir().expect("a folder");
    let oracle = Oracle::new(folder.path());
    let mut host = Node::builder().agent(oracle.agent("noter", "noted", 2)).spawn().await;
    // The caller keeps no result itself.
    let desk = Node::builder().join(&host).config("[limits]\nresults_kept_max = 0\n").spawn().await;
    desk.knows("noted", &["noter"]).await;

    let first = desk.invoke(call("once", "k")).await.ok();
    host.kill().await;
    let host = host.reborn().spawn().await;
    desk.meets(&host).await;
    desk.knows("noted", &["noter"]).await;
    let again = desk.invoke(call("once", "k")).await.ok();

    assert_eq!((&again["output"], &again["node_id"]), (&first["output"], &first["node_id"]));
    assert_eq!(done(&oracle, "once"), 1, "asked again, and not done again");
}

/// AITP-6, faults F10 and F21: work of which the owner went away in the middle is finished, kept, and there when the owner asks again.
#[tokio::test]
async fn a_step_outlives_the_node_that_it_is_for() {
    let workshop = Workshop::new();
    let host = Node::builder().agent(workshop.worker("smith", "forge", json!({}))).spawn().await;
    let mut desk = Node::builder().join(&host).spawn().await;
    desk.knows("forge", &["smith"]).await;

    let steps = [
        step("long", "forge", json!({ "until": "enough", "output": { "made": 7 } })),
        step("next", "forge", json!({ "got": "${long.output.made}" })),
    ];
    let id = desk.submit(&task(&steps)).await;
    workshop.until("started", 1).await;
    desk.kill().await;
    workshop.release("enough");
    workshop.until("done", 1).await;
    let desk = desk.reborn().spawn().await;
    let result = desk.result(&id).await;

    assert_eq!(result["result"]["got"], 7, "{result}");
    assert_eq!(workshop.notes("started").len(), 2, "each step was begun once");
    assert!(workshop.notes("cancelled").is_empty());
    let long = desk.step(&id, "long").await;
    // The answer to the first attempt may still come after the second was sent, and is then known as a duplicate.
    let is_given_up = ["requeued", "duplicate"].iter().any(|outcome| long["attempts"][0]["outcome"] == *outcome);
    assert!(long["attempt"] == 2 && is_given_up, "{long}");
}

/// AITP-6: a step that stood in an agent's line when its owner died has not begun, and begins under the attempt that follows.
#[tokio::test]
async fn a_step_that_waited_in_line_is_not_lost_with_its_owner() {
    let workshop = Workshop::new();
    let smith = with(workshop.worker("smith", "forge", json!({})), json!({ "concurrency": 1, "queue": 8 }));
    let host = Node::builder().agent(smith).spawn().await;
    let mut desk = Node::builder().join(&host).spawn().await;
    desk.knows("forge", &["smith"]).await;

    let first = desk.submit(&task(&[step("holds", "forge", json!({ "until": "enough", "output": 1 }))])).await;
    workshop.until("started", 1).await;
    let second = desk.submit(&task(&[step("waits", "forge", json!({ "output": 2 }))])).await;
    desk.until_step(&second, "waits", |step| step["attempt"] == 1).await;
    desk.kill().await;
    let desk = desk.reborn().spawn().await;
    desk.until_step(&second, "waits", |step| step["attempt"].as_u64() >= Some(2)).await;
    workshop.release("enough");

    assert_eq!((&desk.result(&first).await["result"], &desk.result(&second).await["result"]), (&json!(1), &json!(2)));
    assert_eq!(workshop.notes("started").len(), 2, "each was begun once");
}

/// An agent of a node, and a peer that asks it for the attempts of one step in whatever order it likes.
struct Fenced {
    host: Node,
    peer: HostilePeer,
    oracle: Oracle,
    input: Value,
}

impl Fenced {
    async fn start(input: Value) -> Self {
        let builder = Node::builder();
        let oracle = Oracle::new(builder.home());
        let host = builder.agent(oracle.agent("noter", "noted", 2)).spawn().await;
        let peer = HostilePeer::joined(&host).await;
        Self { host, peer, oracle, input }
    }

    /// Asks for an attempt; the lane that it comes back on.
    async fn ask(&self, attempt: u32) -> RawLane {
        let call = request(agent(&self.host, "noter").await, "noted", &self.input);
        let mut lane = self.peer.open_lane(&self.host).await;
        let fence = Some(Fence { epoch: 1, attempt });
        lane.call(1, Request { key: Some("step".to_owned()), fence, ..call }).await;
        lane
    }

    /// What an attempt ends with.
    async fn end(&self, attempt: u32) -> Frame {
        self.ask(attempt).await.end().await.expect("the attempt has an end").1
    }

    /// The agent's node dies and comes back.
    async fn reborn(mut self) -> Self {
        self.host.kill().await;
        self.peer.disconnected().await;
        let host = self.host.reborn().spawn().await;
        self.peer.connect(&host).await;
        Self { host, ..self }
    }

    fn started(&self) -> usize {
        self.oracle.of("fenced").iter().filter(|noted| noted.what == "started").count()
    }
}

/// AITP-6: an attempt that comes after a later one of its step is refused, and neither told what that one came to nor run.
#[tokio::test]
async fn a_lower_fence_is_refused() {
    let fenced = Fenced::start(json!({ "step": "fenced" })).await;
    let second = fenced.end(2).await;
    assert!(matches!(second, Frame::Result { .. }), "{second:?}");

    let first = failure(&fenced.end(1).await);

    assert_eq!((first.code, first.retryable), (ErrorCode::Conflict, false), "{first}");
    assert!(matches!(fenced.end(2).await, Frame::Result { .. }), "the same attempt is answered again");
    assert_eq!(fenced.started(), 1);
}

/// AITP-6: the same, where the agent's node was killed between the two.
#[tokio::test]
async fn a_lower_fence_is_refused_after_the_death_of_the_node() {
    let fenced = Fenced::start(json!({ "step": "fenced" })).await;
    let second = fenced.end(2).await;
    assert!(matches!(second, Frame::Result { .. }), "{second:?}");
    let fenced = fenced.reborn().await;

    let first = failure(&fenced.end(1).await);

    assert_eq!(first.code, ErrorCode::Conflict, "{first}");
    assert!(matches!(fenced.end(2).await, Frame::Result { .. }), "the same attempt is answered again");
    assert_eq!(fenced.started(), 1);
}

/// AITP-6: the same, where the later attempt had only begun: it may be made again, and the lower one may not.
#[tokio::test]
async fn a_lower_fence_is_refused_where_the_later_attempt_broke_off() {
    let folder = tempfile::tempdir().expect("a folder");
    let free = folder.path().join("free");
    let fenced = Fenced::start(json!({ "step": "fenced", "until": free })).await;
    let mut lane = fenced.ask(2).await;
    assert_eq!(lane.next().await, Some(Frame::Accepted { id: 1 }));
    fenced.oracle.until("fenced", "started", 1).await;
    let fenced = fenced.reborn().await;
    std::fs::write(&free, "").expect("the file is written");

    let first = failure(&fenced.end(1).await);

    assert_eq!((first.code, fenced.started()), (ErrorCode::Conflict, 1), "{first}");
    let second = fenced.end(2).await;
    assert!(matches!(second, Frame::Result { .. }), "{second:?}");
    assert_eq!(fenced.started(), 2);
}
