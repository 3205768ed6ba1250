//! Three times the load that fits: what fits is done as if nothing more had come, and the rest is told at once when to come back, the least
//! urgent first. Asserted are counts, orders and bounds; how long refusals take is shown, and measured by `tests/bench`.

use std::{
    collections::BTreeMap,
    io::Write,
    time::{Duration, Instant},
};

use futures::{StreamExt, stream::FuturesUnordered};
use serde_json::json;

use crate::support::{Node, script, with};

/// Calls that the agent works on at once.
const PLACES: u32 = 4;
/// Calls that may wait for a place.
const LINE: u32 = 16;
/// Calls that clients of the calling node may wait for.
const WAITING: u32 = 80;
/// How long a call takes the agent: so long that a machine with other things to do has time for three times the load, and it is the agent that
/// is overloaded.
const WORK: Duration = Duration::from_millis(300);
/// How long a load is kept up.
const LOAD: Duration = Duration::from_secs(3);
/// What shall be done of three times the load, as a share of what is done of the load that fits.
const GOODPUT_AIM: f64 = 0.9;
/// A machine that has other things to do besides may miss the aim in each of its rounds; what collapses under load is far below this.
const GOODPUT_MIN: f64 = 0.5;
/// How often both loads are compared, unless the aim is met before.
const ROUNDS_MAX: usize = 4;
/// Of four calls one is urgent and one may wait.
const PRIORITIES: [&str; 4] = ["HIGH", "NORMAL", "LOW", "NORMAL"];
/// What a node may hold more than before, in bytes.
const HELD_MAX: u64 = 32 * 1024 * 1024;
/// Half of the refusals take no longer than this, on whatever machine; the aim is a fraction of it.
const REFUSED_MEDIAN_MAX: Duration = Duration::from_secs(1);

/// F12, MAOP-3, MEAP-9: the goodput under three times the load is that under the load that fits, and refusals hit the less urgent.
#[tokio::test]
async fn three_times_the_load_that_fits_is_shed_from_below() {
    let agent = with(script("slow", "slow.py", &[], json!({ "id": "test.slow" })), json!({ "concurrency": PLACES, "queue": LINE }));
    let host = Node::builder().agent(agent).spawn().await;
    let caller = Node::builder().config(&format!("[limits]\ncalls_in_flight_max = {WAITING}\n")).join(&host).spawn().await;
    caller.knows("test.slow", &["slow"]).await;
    let fits = WORK / PLACES;
    offer(&caller, fits, WORK * 5).await;
    let before = [&host, &caller].map(Node::resident_bytes);

    let (mut most, mut refused, mut goodput) = (Most::default(), BTreeMap::<&str, Vec<Duration>>::new(), 0.0_f64);
    let mut offered = Vec::new();
    for _ in 0..ROUNDS_MAX {
        let once = offer(&caller, fits, LOAD).await;
        let thrice = tokio::select! {
            thrice = offer(&caller, fits / 3, LOAD) => thrice,
            () = watch(&host, &caller, &mut most) => panic!("nobody watches for ever"),
        };
        offered.push((once.offered, thrice.offered));
        if thrice.offered <= once.offered * 2 {
            // The machine had no time to offer it, so nothing was shown, for good or bad.
            continue;
        }
        for (priority, took) in thrice.refused {
            refused.entry(priority).or_default().extend(took);
        }
        goodput = goodput.max(thrice.done as f64 / once.done as f64);
        if goodput >= GOODPUT_AIM {
            break;
        }
    }

    let [high, normal, low] = ["HIGH", "NORMAL", "LOW"].map(|priority| refused.get(priority).map_or(0, Vec::len));
    assert!(low > 0, "three times the load was never offered, or none of it refused: {offered:?}");
    let mut took: Vec<Duration> = refused.into_values().flatten().collect();
    took.sort();
    let (median, p99) = (took[took.len() / 2], took[took.len() * 99 / 100]);
    let shown = format!(
        "goodput {goodput:.2} of the usual; refused {high} HIGH, {normal} NORMAL, {low} LOW, p50 {median:?}, p99 {p99:?}; {most:?}"
    );
    writeln!(std::io::stderr(), "{shown}").expect("standard error is there");
    assert!(goodput >= GOODPUT_MIN, "{shown}");
    // As many of either were offered.
    assert!(high * 4 <= low, "{shown}");
    assert!(median < REFUSED_MEDIAN_MAX, "{shown}");
    // Whoever had to make room counts until it has heard of it.
    assert!(most.in_flight <= u64::from(PLACES) && most.queued <= u64::from(LINE + PLACES), "{shown}");
    assert!(most.waiting <= u64::from(WAITING), "{shown}");
    for (node, before) in [&host, &caller].into_iter().zip(before) {
        let held = node.resident_bytes_max().saturating_sub(before);
        assert!(held < HELD_MAX, "{held} bytes more than before: {shown}");
    }
    assert_eq!(caller.call("test.slow", json!({ "ms": 1 })).await["output"]["ms"], 1, "what was refused left nothing behind");
    let trust = caller.get("/v1/trust").await.ok();
    assert_eq!(trust["agents"][0]["failures"].as_f64(), Some(0.0), "to be busy is no failure: {trust}");
}

/// What became of a load.
#[derive(Debug, Default)]
struct Offered {
    offered: usize,
    /// Calls that ended well while the load was kept up.
    done: usize,
    /// How long each refusal took.
    refused: BTreeMap<&'static str, Vec<Duration>>,
}

/// Begins a call every so often, whatever became of those before, and waits for the end of all.
async fn offer(caller: &Node, every: Duration, time: Duration) -> Offered {
    let mut offered = Offered::default();
    let mut calls = FuturesUnordered::new();
    let mut due = tokio::time::interval(every);
    let until = Instant::now() + time;
    loop {
        tokio::select! {
            _ = due.tick(), if Instant::now() < until => {
                let priority = PRIORITIES[offered.offered % PRIORITIES.len()];
                offered.offered += 1;
                let input = json!({ "ms": WORK.as_millis() as u64 });
                let call = json!({ "capability": "test.slow", "priority": priority, "input": input });
                calls.push(async move {
                    let asked = Instant::now();
                    (priority, caller.invoke(call).await, asked.elapsed())
                });
            }
            Some((priority, answer, took)) = calls.next() => {
                if answer.status == 200 {
                    offered.done += usize::from(Instant::now() < until);
                } else {
                    let error = answer.refused(429, "BUSY");
                    assert!(error["details"]["retry_after_ms"].is_u64() && error["retryable"] == true, "{error}");
                    offered.refused.entry(priority).or_default().push(took);
                }
            }
            else => return offered,
        }
    }
}

/// The most that was seen at once.
#[derive(Debug, Default)]
struct Most {
    /// Calls that the agent worked on.
    in_flight: u64,
    /// Calls that waited for a place.
    queued: u64,
    /// Calls that clients of the calling node waited for.
    waiting: u64,
}

/// Looks again and again.
async fn watch(host: &Node, caller: &Node, most: &mut Most) {
    loop {
        let status = host.agent("slow").await["status"].take();
        let count = |name: &str| status[name].as_u64().unwrap_or_else(|| panic!("a count: {status}"));
        most.in_flight = most.in_flight.max(count("in_flight"));
        most.queued = most.queued.max(count("queue"));
        most.waiting = most.waiting.max(caller.metric("meshwork_calls_in_flight").await);
    }
}
