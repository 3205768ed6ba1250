//! HIGH, NORMAL and LOW: each on a lane of its own, so that none waits behind another, and refused in turn when a peer has too much.
//! (Who waits for an agent: `overload`, and `slots` in the crate.)

use std::{collections::BTreeMap, time::Duration};

use futures::future::join_all;
use meshwork::{
    model::{ErrorCode, Priority},
    wire::invocation::{Frame, Request},
};
use serde_json::json;

use crate::support::{
    Answer, Node, SETTLE, eventually,
    peer::{Forger, Habits, HostilePeer, RawLane, request},
    slow,
    target::{agent, echoing, failure, fast, result, serves, trap},
    with,
};

/// How many places a peer has.
const PLACES: usize = 10;
/// Calls that are more, in bytes, than a lane takes in whose other end reads nothing.
const STUCK: usize = 20;
/// The input of each of them, in bytes.
const STUCK_BYTES: usize = 60_000;
/// How often a peer that reads nothing says that it lives.
const ALIVE: Duration = Duration::from_millis(200);

/// AITP-1: calls of three priorities to one node go out on three lanes, and stay there.
#[tokio::test]
async fn calls_of_each_priority_have_a_lane_of_their_own() {
    let node = echoing().await;
    let forger = Forger::new();
    let record = fast(&forger, "three");
    let hostile = trap(&node, forger, &record, Habits::default()).await;
    let mut lanes = BTreeMap::new();

    for round in ["1", "2"] {
        for priority in Priority::ALL {
            let answering = async {
                let mut lane = match lanes.remove(&priority) {
                    Some(lane) => lane,
                    None => hostile.accept_lane().await,
                };
                // That all calls of a lane are of the priority of its first is looked at in `next_call`.
                assert_eq!(answer_one(&mut lane, round).await, priority, "round {round}");
                lanes.insert(priority, lane);
            };
            let (answer, ()) = tokio::join!(ask(&node, "test.three", "?", priority), answering);
            assert_eq!(answer.ok()["output"].to_string(), round, "{priority}");
        }
    }

    assert_eq!(lanes.len(), Priority::ALL.len());
}

/// AITP-1: a lane whose other end reads nothing holds up the calls on it and no others, and they go on when it does.
#[tokio::test]
async fn a_lane_that_is_stuck_does_not_hold_up_more_urgent_calls() {
    let node = echoing().await;
    let forger = Forger::new();
    let record = fast(&forger, "stuck");
    let hostile = trap(&node, forger, &record, Habits::default()).await;
    let large = "x".repeat(STUCK_BYTES);

    let held_up = join_all((0..STUCK).map(|_| ask(&node, "test.stuck", &large, Priority::Low)));
    let meanwhile = async {
        let mut low = hostile.accept_lane().await;
        let urgent = async {
            in_flight(&node, STUCK).await;
            let mut lanes = BTreeMap::new();
            for priority in [Priority::High, Priority::Normal].repeat(5) {
                let answering = async {
                    let mut lane = match lanes.remove(&priority) {
                        Some(lane) => lane,
                        None => hostile.accept_lane().await,
                    };
                    assert_eq!(answer_one(&mut lane, "\"urgent\"").await, priority);
                    lanes.insert(priority, lane);
                };
                let (answer, ()) = tokio::join!(ask(&node, "test.stuck", "?", priority), answering);
                assert_eq!(answer.ok()["output"], "urgent");
            }
            in_flight(&node, STUCK).await;
        };
        let mut due = tokio::time::interval(ALIVE);
        let alive = async {
            loop {
                due.tick().await;
                low.send(&[Frame::Pong { nonce: 0 }]).await;
            }
        };
        tokio::select! {
            () = urgent => {}
            () = alive => {}
        }
        for _ in 0..STUCK {
            assert_eq!(answer_one(&mut low, "\"at last\"").await, Priority::Low);
        }
    };
    let (answers, ()) = tokio::join!(held_up, meanwhile);

    for answer in answers {
        assert_eq!(answer.ok()["output"], "at last");
    }
    serves(&node).await;
}

/// MEAP-9, MAOP-3: of one peer's calls the least urgent are refused first, over however many lanes they come.
#[tokio::test]
async fn the_least_urgent_calls_of_a_peer_are_refused_first() {
    let slow = with(slow("slow", None), json!({ "queue": 100 }));
    let host = Node::builder().config(&format!("[limits]\ncalls_per_peer_max = {PLACES}\n")).agent(slow).spawn().await;
    let slow = agent(&host, "slow").await;
    let peer = HostilePeer::joined(&host).await;
    // What need not be confirmed is looked at in the order in which it comes.
    let call = Request { confirm: false, ..request(slow, "test.slow", &json!({ "ms": 30_000 })) };
    let mut lanes: BTreeMap<Priority, RawLane> = BTreeMap::new();
    for priority in Priority::ALL {
        lanes.insert(priority, peer.open_lane(&host).await);
    }

    let (mut running, mut next) = (0, 0);
    for (priority, room) in Priority::ALL.into_iter().zip([5, 9, PLACES]) {
        let lane = lanes.get_mut(&priority).expect("a lane");
        for _ in running..room {
            lane.call(next, Request { priority, ..call.clone() }).await;
            next += 1;
        }
        running = room;
        for (less, lane) in lanes.range_mut(..=priority) {
            lane.call(next, Request { priority: *less, ..call.clone() }).await;
            let Some((id, frame @ Frame::Error { begun: false, .. })) = lane.end().await else { panic!("{less}: one too many") };
            let failure = failure(&frame);
            assert_eq!((id, failure.code), (next, ErrorCode::Busy), "{less} while {running} run: {failure}");
            assert!(failure.message.starts_with(&format!("{less} calls of this peer")), "{failure}");
            next += 1;
        }
    }

    // The place that comes free is for the urgent alone.
    let high = next - 4;
    let lane = lanes.get_mut(&Priority::High).expect("a lane");
    lane.send(&[Frame::Cancel { id: high }]).await;
    assert!(matches!(lane.end().await, Some((id, frame)) if id == high && failure(&frame).code == ErrorCode::Cancelled));
    for (priority, lane) in &mut lanes {
        lane.call(next, Request { priority: *priority, ..call.clone() }).await;
        if *priority == Priority::High {
            assert!(lane.is_alive().await, "it is let in: nothing comes before the sign of life");
        } else {
            assert_eq!(lane.end().await.map(|(id, frame)| (id, failure(&frame).code)), Some((next, ErrorCode::Busy)), "{priority}");
        }
        next += 1;
    }
    serves_elsewhere(&host).await;
}

/// Whoever is not that peer has places of its own.
async fn serves_elsewhere(host: &Node) {
    let other = HostilePeer::joined(host).await;
    let mut lane = other.open_lane(host).await;
    let nobody = Request { priority: Priority::Low, ..request(Forger::agent(9), "test.slow", &json!(1)) };
    lane.call(1, nobody).await;
    let Some((1, frame)) = lane.end().await else { panic!("an answer") };
    assert_eq!(failure(&frame).code, ErrorCode::AgentNotFound, "it is not told to wait");
}

async fn ask(node: &Node, capability: &str, input: &str, priority: Priority) -> Answer {
    node.invoke(json!({ "capability": capability, "input": input, "priority": priority, "timeout_ms": 30_000 })).await
}

/// Answers the next call of a lane; its priority.
async fn answer_one(lane: &mut RawLane, output: &'static str) -> Priority {
    let (id, call) = lane.next_call().await.expect("the lane goes on");
    lane.send(&[Frame::Accepted { id }, result(id, output)]).await;
    call.priority
}

/// Waits until clients of the node wait for so many calls.
async fn in_flight(node: &Node, count: usize) {
    let waiting = async || (node.get("/v1/node").await.ok()["counts"]["calls_in_flight"] == count).then_some(());
    eventually(&format!("{count} calls are in flight"), SETTLE, waiting).await;
}
