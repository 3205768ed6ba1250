//! An agent has done a step of a task, and the home node did not hear of it: the node of the agent tells it once it can, and the work is used, or
//! billed as a duplicate. Executions are counted by the agents.

use std::path::PathBuf;

use meshwork::{
    model::AgentId,
    wire::{
        directory::{Control, Reply},
        invocation::Frame,
        outbox::{KeptResult, Word},
    },
};
use serde_json::{Value, json};

use crate::support::{
    Node, SETTLE, eventually,
    oracle::{Oracle, count},
    peer::{Forger, Habits, HostilePeer, cbor},
};

/// Letters of an output that travels beside the calls.
const LARGE: usize = 200_000;

/// An agent that is asked before others, and takes half a dollar for each step.
fn agent(oracle: &Oracle, name: &str, place: u64) -> Value {
    let mut agent = oracle.agent(name, "test.work", 4);
    agent["capability"][0]["constraints"] = json!({ "response_time_ms": 1 + 900 * place });
    agent["capability"][0]["price"] = json!({ "amount": "0.5", "currency": "USD", "unit": "step" });
    agent
}

/// A task of two steps that each wait for a file: the second gives the accounts of the first time to be still open.
struct Job {
    oracle: Oracle,
    definition: Value,
}

impl Job {
    fn new(oracle: &Oracle) -> Self {
        let step = |id: &str, add: Value| {
            let input = json!({ "step": format!("job.{id}"), "add": [add], "until": oracle.beside(id) });
            json!({ "subtask_id": id, "agent_capability": "test.work", "input": input })
        };
        let steps = [step("a", json!(1)), step("b", json!("${a.output.sum}"))];
        Self { oracle: oracle.clone(), definition: json!({ "name": "job", "metadata": { "cost_limit": 10 }, "subtasks": steps }) }
    }

    fn release(&self, id: &str) {
        std::fs::write(self.oracle.beside(id), "").expect("the file is written");
    }

    fn begun(&self, id: &str) -> usize {
        count(&self.oracle.of("job"), "started").get(&format!("job.{id}")).copied().unwrap_or(0)
    }

    /// The second step ends, and the task with it; its lines of the ledger: subtask, agent, amount, whether it is a duplicate.
    async fn ends(&self, home: &Node, task: &str) -> (Value, Vec<(String, String, f64, bool)>) {
        self.release("b");
        let history = home.history(task).await;
        let result = home.task_result(task).await;
        assert_eq!((&result["status"], &result["result"]["sum"]), (&json!("COMPLETED"), &json!(3)), "{result}\n{history:?}");
        let text = |line: &Value, field: &str| line[field].as_str().unwrap_or_default().to_owned();
        let lines = result["ledger"]["entries"].as_array().unwrap_or_else(|| panic!("a ledger: {result}"));
        let line = |line: &Value| {
            let total = line["total"].as_f64().unwrap_or_else(|| panic!("an amount: {line}"));
            (text(line, "subtask_id"), text(line, "agent_id"), total, line["duplicate"] == true)
        };
        (result.clone(), lines.iter().map(line).collect())
    }
}

/// Waits until the journal of a node holds this text.
async fn until_kept(node: &Node, text: &str) {
    let folder: PathBuf = node.data_dir().join("journal");
    let holds = async || {
        let mut files = std::fs::read_dir(&folder).expect("a journal is a folder").filter_map(|file| std::fs::read(file.ok()?.path()).ok());
        files.any(|bytes| bytes.windows(text.len()).any(|found| found == text.as_bytes())).then_some(())
    };
    eventually(&format!("{text} is in the journal"), SETTLE, holds).await;
}

/// F10: the home node is dead when the agent is done; when it is back, the result is used, although an agent of its own offers the same.
#[tokio::test]
async fn what_was_done_while_the_home_node_was_dead_is_used_whoever_else_offers_it() {
    let builder = Node::builder().config("[routing]\nexploration = 0.0\n");
    let oracle = Oracle::new(builder.home());
    let job = Job::new(&oracle);
    let mut home = builder.agent(agent(&oracle, "own", 1)).spawn().await;
    let first = Node::builder().join(&home).agent(agent(&oracle, "first", 0)).spawn().await;
    home.knows("test.work", &["first", "own"]).await;
    let first_id = first.agent_id("first").await;
    let task = home.submit(&job.definition).await;
    oracle.until("job.a", "started", 1).await;
    home.kill().await;
    job.release("a");
    until_kept(&first, r#""sum""#).await;

    let home = home.reborn().spawn().await;
    home.task_events(&task).await.wait_for("validated", SETTLE * 2, |event| event["subtask_id"] == "a").await;

    assert_eq!(job.begun("a"), 1, "{:?}", oracle.of("job"));
    let (_, lines) = job.ends(&home, &task).await;
    let of_a: Vec<_> = lines.into_iter().filter(|(subtask, ..)| subtask == "a").collect();
    assert_eq!(of_a, [("a".to_owned(), first_id, 0.5, false)]);
}

/// F14: the node of the agent is out of reach for longer than a lane lives, and the step is given to another: what the first did is billed, not
/// used, and the ledger says so.
#[tokio::test]
async fn a_result_that_comes_after_another_attempt_was_begun_is_billed_as_a_duplicate() {
    let builder = Node::builder().config("[routing]\nexploration = 0.0\n");
    let oracle = Oracle::new(builder.home());
    let job = Job::new(&oracle);
    let home = builder.spawn().await;
    let first = Node::builder().join(&home).agent(agent(&oracle, "first", 0)).spawn().await;
    let second = Node::builder().join(&home).agent(agent(&oracle, "second", 1)).spawn().await;
    home.knows("test.work", &["first", "second"]).await;
    let (first_id, second_id) = (first.agent_id("first").await, second.agent_id("second").await);
    let task = home.submit(&job.definition).await;
    oracle.until("job.a", "started", 1).await;
    first.stop().await;
    oracle.until("job.a", "started", 2).await;
    job.release("a");
    oracle.until("job.a", "finished", 2).await;
    home.task_events(&task).await.wait_for("validated", SETTLE, |event| event["subtask_id"] == "a").await;
    first.cont();

    let late = home.task_events(&task).await.wait_for("duplicate_result", SETTLE * 2, |_| true).await;
    assert_eq!((&late["subtask_id"], &late["attempt"]), (&json!("a"), &json!(1)), "{late}");
    let (result, lines) = job.ends(&home, &task).await;
    assert!(lines.contains(&("a".to_owned(), first_id, 0.5, true)), "{lines:?}");
    assert!(lines.contains(&("a".to_owned(), second_id, 0.5, false)), "{lines:?}");
    assert_eq!((lines.len(), result["cost"].as_f64()), (3, Some(1.5)), "{result}");
    assert_eq!((job.begun("a"), job.begun("b")), (2, 1), "{:?}", oracle.of("job"));
}

/// F10, F14: nobody else does the step, and the agent that was lost would not be asked again for long: its result is used all the same, as that of
/// the attempt that it was made in.
#[tokio::test]
async fn a_late_result_is_used_while_nobody_else_was_given_the_step() {
    let pause = "breaker_failures = 1\nbreaker_open_ms = 600000\nbreaker_open_ms_max = 600000\n";
    let builder = Node::builder().config(&format!("[routing]\nexploration = 0.0\n{pause}"));
    let oracle = Oracle::new(builder.home());
    let job = Job::new(&oracle);
    let home = builder.spawn().await;
    let first = Node::builder().join(&home).agent(agent(&oracle, "first", 0)).spawn().await;
    home.knows("test.work", &["first"]).await;
    let mut definition = job.definition.clone();
    definition["subtasks"].as_array_mut().expect("steps").truncate(1);
    definition["subtasks"][0]["input"]["pad"] = LARGE.into();
    let task = home.submit(&definition).await;
    oracle.until("job.a", "started", 1).await;
    first.stop().await;
    home.task_events(&task).await.wait_for("attempt_failed", SETTLE, |_| true).await;
    job.release("a");
    oracle.until("job.a", "finished", 1).await;
    first.cont();

    let history = home.history(&task).await;
    let counted = |wanted: &str| history.iter().filter(|(name, _)| name == wanted).count();
    assert_eq!((counted("dispatched"), counted("result_received"), job.begun("a")), (1, 1, 1), "{history:?}");
    let result = home.task_result(&task).await;
    assert_eq!((&result["result"]["sum"], result["cost"].as_f64()), (&json!(2), Some(0.5)), "{}", result["ledger"]);
    assert_eq!(result["result"]["pad"].as_str().map(str::len), Some(LARGE));
    assert_eq!(home.step(&task, "a").await["attempts"][0]["outcome"], "success");
}

/// F1, F10: the node of the agent is killed with results that it could not deliver; started again, it still tells of them, until the home node,
/// which dies over it, has billed them. It does so once.
#[tokio::test]
async fn what_waits_for_its_home_node_outlives_the_node_of_the_agent() {
    let builder = Node::builder().config("[routing]\nexploration = 0.0\n");
    let oracle = Oracle::new(builder.home());
    let job = Job::new(&oracle);
    let mut home = builder.spawn().await;
    let mut first = Node::builder().join(&home).agent(agent(&oracle, "first", 0)).spawn().await;
    let _second = Node::builder().join(&home).agent(agent(&oracle, "second", 1)).spawn().await;
    home.knows("test.work", &["first", "second"]).await;
    let first_id = first.agent_id("first").await;
    let task = home.submit(&job.definition).await;
    oracle.until("job.a", "started", 1).await;
    home.kill().await;
    job.release("a");
    until_kept(&first, r#""sum""#).await;
    first.kill().await;
    let mut home = home.reborn().failpoint(Some("duplicate_result:1")).spawn().await;
    // Nobody knows when the first will be back, so after a moment the second does the work.
    home.task_events(&task).await.wait_for("validated", SETTLE * 2, |event| event["subtask_id"] == "a").await;
    assert_eq!(job.begun("a"), 2, "{:?}", oracle.of("job"));
    let _first = first.reborn().spawn().await;
    // Its journal may have the duplicate then, or not.
    home.died().await;
    let home = home.reborn().spawn().await;

    home.task_events(&task).await.wait_for("duplicate_result", SETTLE * 2, |event| event["subtask_id"] == "a").await;
    let (_, lines) = job.ends(&home, &task).await;
    let of_first: Vec<_> = lines.into_iter().filter(|(_, agent, ..)| *agent == first_id).collect();
    assert_eq!(of_first, [("a".to_owned(), first_id, 0.5, true)]);
    assert_eq!(job.begun("a"), 2, "{:?}", oracle.of("job"));
}

/// Threats T4, T16: whoever tells of results of steps that it was not given is refused, and pays for it; the task is as it was.
#[tokio::test]
async fn a_stranger_who_tells_of_results_is_refused() {
    let builder = Node::builder();
    let oracle = Oracle::new(builder.home());
    let job = Job::new(&oracle);
    let home = builder.spawn().await;
    let first = Node::builder().join(&home).agent(agent(&oracle, "first", 0)).spawn().await;
    home.knows("test.work", &["first"]).await;
    let agent: AgentId = first.agent_id("first").await.parse().expect("an id");
    let task = home.submit(&job.definition).await;
    oracle.until("job.a", "started", 1).await;
    let key = oracle.of("job")[0].key.clone();
    let known = KeptResult { agent, key: key.clone(), epoch: 1, attempt: 1 };
    let nowhere = KeptResult { key: key.replacen(&task, "00000000-0000-4000-8000-000000000000", 1), ..known.clone() };
    assert_ne!(nowhere.key, known.key, "the key names its task");
    let later = KeptResult { attempt: 2, ..known.clone() };
    let odd = KeptResult { key: "k".to_owned(), ..known.clone() };

    let stranger = HostilePeer::joined(&home).await;
    let results = vec![nowhere, later, odd, KeptResult { epoch: 2, ..known.clone() }];
    let reply = stranger.ask(&home, cbor(&Control::Results(results))).await;
    assert_eq!(reply, Reply::Results(vec![Word::Unknown; 4]));
    assert!(stranger.is_connected(), "who knows too much of the past is no enemy");
    let told = cbor(&Control::Results(vec![known]));
    let reply = stranger.ask(&home, told.clone()).await;
    assert_eq!(reply, Reply::Results(vec![Word::Refused]));
    // Faults fade, so it takes one more than the two that would do at once.
    for _ in 0..2 {
        let _ = stranger.control(&home, told.clone()).await;
    }
    stranger.disconnected().await;

    job.release("a");
    let (result, lines) = job.ends(&home, &task).await;
    assert_eq!((lines.len(), result["cost"].as_f64()), (2, Some(1.0)), "{result}");
    let ended = KeptResult { agent, key, epoch: 1, attempt: 1 };
    let other = HostilePeer::joined(&home).await;
    let reply = other.ask(&home, cbor(&Control::Results(vec![ended]))).await;
    assert_eq!(reply, Reply::Results(vec![Word::Known]), "its accounts are closed");
}

/// Threat T16: who was given a step and was lost tells of a result that it does not have, and is not told to begin; then of one under another key
/// than the step's, and pays for it.
#[tokio::test]
async fn who_tells_of_a_result_that_there_is_not_gains_nothing() {
    let home = Node::builder().config("[routing]\nexploration = 0.0\n").spawn().await;
    let forger = Forger::new();
    let record = forger.record(1, "forged");
    let signed = forger.sign(&record, 1);
    let hostile = HostilePeer::start(forger, Habits::default().advertises(&record, signed));
    hostile.connect(&home).await;
    home.knows("test.forged", &["forged"]).await;
    let task = home.submit(&json!({ "name": "n", "subtasks": [{ "subtask_id": "a", "agent_capability": "test.forged" }] })).await;
    let mut lane = hostile.accept_lane().await;
    let (id, request) = lane.next_call().await.expect("a call");
    lane.send(&[Frame::Accepted { id }]).await;
    assert_eq!(lane.next_silently().await, Some(Frame::Go { id }));
    drop(lane);
    home.task_events(&task).await.wait_for("attempt_failed", SETTLE, |_| true).await;

    let key = request.key.clone().expect("a step has a key");
    let result = KeptResult { agent: record.agent, key, epoch: 1, attempt: 1 };
    let tell = async |key: String| {
        let told = cbor(&Control::Results(vec![KeptResult { key, ..result.clone() }]));
        hostile.control(&home, told).await.map(|answer| meshwork::wire::decode::<Reply>(&answer))
    };
    assert_eq!(tell(result.key.clone()).await, Ok(Ok(Reply::Results(vec![Word::Wanted]))));
    let mut lane = hostile.accept_lane().await;
    // The same agent may be asked to do the work, too, and does not answer that.
    let asked = loop {
        let frame = lane.next_silently().await.expect("the lane stands");
        if let Frame::Ping { nonce } = frame {
            lane.send(&[Frame::Pong { nonce }]).await;
        } else if let Frame::Request { id, request } = frame
            && request.fence.is_some_and(|fence| fence.attempt == 1)
        {
            break (id, request);
        }
    };
    assert_eq!((&asked.1.key, asked.1.confirm), (&request.key, true));
    lane.send(&[Frame::Accepted { id: asked.0 }]).await;
    loop {
        let frame = lane.next_silently().await.expect("the lane stands");
        assert_ne!(frame, Frame::Go { id: asked.0 }, "it has not the result, and is told to do the work");
        if let Frame::Ping { nonce } = frame {
            lane.send(&[Frame::Pong { nonce }]).await;
        } else if frame == (Frame::Cancel { id: asked.0 }) {
            break;
        }
    }

    let other = format!("{}{}", &result.key[..result.key.len() - 4], if result.key.ends_with("0000") { "1111" } else { "0000" });
    let mut told = 0;
    while hostile.is_connected() && told < 1_000 && tell(other.clone()).await.is_ok() {
        told += 1;
    }
    hostile.disconnected().await;
    let status = home.task(&task).await;
    assert_ne!(status["status"], "COMPLETED", "{status}");
}
