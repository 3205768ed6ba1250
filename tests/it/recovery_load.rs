//! The home node is killed again and again while many clients submit tasks to it. What counts is what the clients were told, and what the
//! agents did.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Write,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::{StreamExt, future::join_all, stream};
use rand::{Rng, SeedableRng, rngs::SmallRng};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::support::{
    Node, SETTLE, eventually,
    oracle::{Noted, Oracle, chain, count, id_of},
};

const CLIENTS: usize = 64;
/// How long the clients may take between two deaths, and how long nothing may get on, on a machine that has other things to do.
const PATIENCE: Duration = Duration::from_secs(180);

/// Where the node is now.
#[derive(Debug, Clone)]
struct Door {
    api: String,
    token: String,
}

/// What the clients know.
#[derive(Debug, Default)]
struct Told {
    next: AtomicU64,
    is_over: AtomicBool,
    /// Tasks that were acknowledged, by the number that they begin with.
    acknowledged: Mutex<BTreeMap<u64, String>>,
}

impl Told {
    fn count(&self) -> usize {
        self.acknowledged.lock().expect("no client has panicked").len()
    }
}

#[tokio::test]
async fn no_acknowledged_task_is_lost_when_the_home_node_is_killed_under_load() {
    kill_under_load(5, 40).await;
}

#[tokio::test]
#[ignore = "takes minutes: nice cargo nextest run --run-ignored only --no-capture --test it a_hundred_times"]
async fn no_acknowledged_task_is_lost_when_the_home_node_is_killed_a_hundred_times_under_load() {
    kill_under_load(100, 60).await;
}

/// Kills the node so often, each time after up to twice as many tasks.
async fn kill_under_load(kills: usize, tasks: usize) {
    let seed: u64 = rand::random();
    // Whatever fails, the seed is told.
    let _ = writeln!(std::io::stderr(), "seed {seed}");
    let mut rng = SmallRng::seed_from_u64(seed);
    let builder = Node::builder();
    let oracle = Oracle::new(builder.home());
    let host = builder.agent(oracle.agent("worker", "test.load", 8)).spawn().await;
    let mut home = Node::builder().join(&host).spawn().await;
    home.knows("test.load", &["worker"]).await;
    let told = Told::default();
    let (door, doors) = watch::channel(door_of(&home));

    let clients = join_all((0..CLIENTS).map(|_| client(&told, doors.clone())));
    let killing = async {
        let mut at_deaths = Vec::new();
        let mut at = 0;
        for _ in 0..kills {
            at = told.count().max(at) + rng.random_range(1..2 * tasks);
            let reached = async || (told.count() >= at).then_some(());
            eventually(&format!("seed {seed}: {at} tasks are taken"), PATIENCE, reached).await;
            home.kill().await;
            at_deaths.push(oracle.of(""));
            home = home.reborn().spawn().await;
            door.send_replace(door_of(&home));
        }
        told.is_over.store(true, Ordering::Relaxed);
        (home, at_deaths)
    };
    let ((home, at_deaths), _) = tokio::join!(killing, clients);

    all_end(&home, &oracle).await;
    let acknowledged = told.acknowledged.lock().expect("no client has panicked").clone();
    assert!(acknowledged.len() >= kills, "seed {seed}: the clients got something done: {}", acknowledged.len());
    let check = async |(first, task): (&u64, &String)| {
        let result = ended(&home, task).await;
        let expected = json!(["COMPLETED", "success", { "step": format!("load-{first}.c"), "sum": first + 3 }]);
        assert_eq!(json!([result["status"], result["outcome"], result["result"]]), expected, "seed {seed}: {result}");
    };
    stream::iter(acknowledged.iter().map(check).collect::<Vec<_>>()).buffer_unordered(32).collect::<()>().await;
    // What was submitted without an answer is there as a whole or not at all, and once.
    let rows = all_rows(&home).await;
    let names: BTreeSet<&str> = rows.iter().map(|row| row["name"].as_str().expect("a name")).collect();
    assert_eq!(names.len(), rows.len(), "seed {seed}: no task is there twice");
    for row in &rows {
        ended(&home, row["task_id"].as_str().expect("an id")).await;
    }
    let rows = all_rows(&home).await;
    assert!(rows.iter().all(|row| row["outcome"] == "success"), "seed {seed}: {rows:?}");
    only_what_was_in_flight_ran_twice(seed, &at_deaths, &oracle.of(""), &names);
}

fn door_of(node: &Node) -> Door {
    Door { api: node.api().to_owned(), token: node.token().to_owned() }
}

/// Submits one task after the other. Every second one is submitted again under its key until it is acknowledged, the others are not.
async fn client(told: &Told, doors: watch::Receiver<Door>) {
    let http = reqwest::Client::builder().no_proxy().build().expect("an HTTP client");
    while !told.is_over.load(Ordering::Relaxed) {
        let number = told.next.fetch_add(1, Ordering::Relaxed);
        let definition = chain(&format!("load-{number}"), "test.load", &["a", "b", "c"], number, &json!({ "ms": 15 }));
        let submitted = async || {
            let Door { api, token } = doors.borrow().clone();
            let request = http.post(format!("{api}/aitp/tasks")).bearer_auth(token).header("idempotency-key", format!("order-{number}"));
            let answer = request.json(&definition).timeout(SETTLE).send().await.ok()?;
            let is_taken = answer.status().is_success();
            answer.json::<Value>().await.ok().filter(|_| is_taken)
        };
        let receipt =
            if number.is_multiple_of(2) { Some(eventually("a task is taken", PATIENCE, submitted).await) } else { submitted().await };
        if let Some(receipt) = receipt {
            let before = told.acknowledged.lock().expect("no client has panicked").insert(number, id_of(&receipt));
            assert_eq!(before, None);
        }
    }
}

/// Waits until no task is left that has not ended. How long that takes is up to the machine; that something gets on is up to the node.
async fn all_end(home: &Node, oracle: &Oracle) {
    let is_left = async |status: &str| {
        let page = home.get(&format!("/aitp/tasks?limit=1&status={status}")).await.ok();
        page["tasks"].as_array().is_some_and(|rows| !rows.is_empty())
    };
    let mut is_over = false;
    while !is_over {
        let before = oracle.bytes();
        let gets_on = async || {
            if oracle.bytes() > before {
                return Some(false);
            }
            (!is_left("PENDING").await && !is_left("EXECUTING").await).then_some(true)
        };
        is_over = eventually("another step is done, or all are", PATIENCE, gets_on).await;
    }
}

/// The result of a task, when it has ended.
async fn ended(home: &Node, task: &str) -> Value {
    let result = async || {
        let answer = home.get(&format!("/aitp/tasks/{task}/result")).await;
        (answer.status != 425).then_some(answer)
    };
    eventually(&format!("task {task} ends"), PATIENCE, result).await.ok()
}

async fn all_rows(home: &Node) -> Vec<Value> {
    let (mut rows, mut after) = (Vec::new(), String::new());
    loop {
        let page = home.get(&format!("/aitp/tasks?limit=500{after}")).await.ok();
        rows.extend(page["tasks"].as_array().expect("rows").iter().cloned());
        match page["next"].as_str() {
            Some(next) => after = format!("&after={next}"),
            None => return rows,
        }
    }
}

/// Each step was done; more than once only if a death found it in flight: what comes before it was done, and its agent was not done with it.
/// What the agent had done is with the agent's node, whether the node that died had heard of it or not.
fn only_what_was_in_flight_ran_twice(seed: u64, at_deaths: &[Vec<Noted>], noted: &[Noted], names: &BTreeSet<&str>) {
    let (started, finished) = (count(noted, "started"), count(noted, "finished"));
    let done_at_deaths: Vec<_> = at_deaths.iter().map(|noted| count(noted, "finished")).collect();
    let (mut repeated, mut found) = (0, 0);
    for name in names {
        for (place, step) in ["a", "b", "c"].into_iter().enumerate() {
            let of = |step: &str| format!("{name}.{step}");
            let before = [None, Some("a"), Some("b")][place];
            let is_in_flight = |done: &&BTreeMap<String, usize>| {
                before.is_none_or(|before| done.contains_key(&of(before))) && !done.contains_key(&of(step))
            };
            let deaths = done_at_deaths.iter().filter(is_in_flight);
            let (runs, in_flight) = (started.get(&of(step)).copied().unwrap_or_default(), deaths.count());
            assert!((1..=1 + in_flight).contains(&runs), "seed {seed}: {} ran {runs} times, in flight at {in_flight} deaths", of(step));
            assert!(finished.contains_key(&of(step)), "seed {seed}: {} was not done", of(step));
            repeated += runs - 1;
            found += in_flight;
        }
    }
    let _ =
        writeln!(std::io::stderr(), "{} tasks, {} deaths, {found} steps in flight, {repeated} done again", names.len(), at_deaths.len());
    assert!(found > 0, "seed {seed}: no death found a step in flight");
}
