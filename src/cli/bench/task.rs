//! Durable tasks: chains of three echoes, each on what the one before gave, as many as are asked for in flight.
//!
//! A chain is counted when the node says that it has ended, which it does when that is on the disk. Those who wait are told by one listener
//! to the node's events, so that waiting costs the node next to nothing. Of one task in [`SAMPLE`] the result is read as well, and held
//! against the moment at which the node had the last step's answer, by the journal's own clock: to the millisecond, and disk included.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use futures::TryStreamExt;
use hdrhistogram::Histogram;
use serde_json::{Value, json};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::oneshot;

use super::invoke::{load, payload};
use super::measure::{histogram, processor_time, resident, row, tenths, us};
use super::pair::{Pair, name};
use crate::cli::CliError;
use crate::model::{ErrorCode, TaskId};
use crate::node::{Event, Handle};

/// Steps of a chain.
const STEPS: u32 = 3;
/// One task in so many has its result read.
const SAMPLE: usize = 16;
/// How long an end is waited for before the node is asked: it forgets to tell those who do not keep up.
const ASK_AFTER: Duration = Duration::from_secs(1);

/// A chain in which each step echoes `bytes` bytes.
fn chain(bytes: usize) -> Value {
    let text = "x".repeat(bytes.saturating_sub(r#"{"text":""}"#.len()));
    let step = |number: u32| {
        let before = if number == 1 { "parent.input.text".to_owned() } else { format!("step_{}.output.text", number.saturating_sub(1)) };
        json!({ "subtask_id": format!("step_{number}"), "agent_capability": "echo", "input": { "text": format!("${{{before}}}") } })
    };
    json!({ "name": "chain", "parameters": { "text": text }, "subtasks": (1..=STEPS).map(step).collect::<Vec<_>>() })
}

/// A row of tasks.
pub(super) async fn task(pair: &Pair, transport: &str, in_flight: usize, time: Duration) -> Result<Value, CliError> {
    let handle = &pair.node.handle;
    let echoed = payload();
    let calls = load(handle, &name()?, &echoed, in_flight, time.min(Duration::from_secs(1))).await?;
    let document: bytes::Bytes = chain(echoed.len()).to_string().into();
    // A warm-up fills caches and lets the journal make room.
    chains(handle, &document, in_flight, Duration::from_millis(300)).await?;
    let host = pair.host_pid();
    let used = || (processor_time("self"), processor_time(&host), handle.journal_flushes());
    let (began, before) = (Instant::now(), used());
    let Spans { submit, whole, result } = chains(handle, &document, in_flight, time).await?;
    let (took, after) = (began.elapsed(), used());
    let tasks = f64::from(u32::try_from(whole.len()).unwrap_or(u32::MAX).max(1));
    let per_task = |before: Option<Duration>, after: Option<Duration>| {
        let used = after?.checked_sub(before?)?;
        Some((used.as_secs_f64() * 1e7 / tasks).round() / 10.0)
    };
    let flushes = u32::try_from(after.2.saturating_sub(before.2)).map_or(f64::MAX, f64::from);
    let setting = json!({ "transport": transport, "steps": STEPS, "bytes": echoed.len(), "in_flight": in_flight });
    let mut row = row("task", setting, &whole, took);
    let call_p50_us = us(&calls, 0.5);
    let more = json!({
        "submit_p50_us": us(&submit, 0.5),
        "submit_p99_us": us(&submit, 0.99),
        "call_p50_us": call_p50_us,
        "step_overhead_us": ((us(&whole, 0.5) / f64::from(STEPS) - call_p50_us) * 10.0).round() / 10.0,
        "results": result.len(),
        "result_p50_us": us(&result, 0.5),
        "result_p99_us": us(&result, 0.99),
        "result_max_us": us(&result, 1.0),
        "flushes_per_task": (flushes / tasks * 100.0).round() / 100.0,
        "caller_cpu_us": per_task(before.0, after.0),
        "host_cpu_us": per_task(before.1, after.1),
        "caller_bytes": resident("self"),
        "host_bytes": resident(&host),
    });
    if let (Some(row), Value::Object(more)) = (row.as_object_mut(), more) {
        row.extend(more);
    }
    Ok(row)
}

/// How long things took.
struct Spans {
    /// Until a task was acknowledged, and durable.
    submit: Histogram<u64>,
    /// Until it had ended.
    whole: Histogram<u64>,
    /// From the last answer to the result, as far as it was read.
    result: Histogram<u64>,
}

impl Spans {
    fn new() -> Result<Self, CliError> {
        Ok(Self { submit: histogram()?, whole: histogram()?, result: histogram()? })
    }
}

/// Keeps `in_flight` tasks running for a while.
async fn chains(handle: &Handle, document: &bytes::Bytes, in_flight: usize, time: Duration) -> Result<Spans, CliError> {
    let until = Instant::now() + time;
    let ends = Arc::new(Ends::default());
    let listener = tokio::spawn(listen(handle.events(), Arc::clone(&ends)));
    let spans = Arc::new(Mutex::new(Spans::new()?));
    let submitters: Vec<_> = (0..in_flight)
        .map(|number| {
            let (handle, document, ends, spans) = (handle.clone(), document.clone(), Arc::clone(&ends), Arc::clone(&spans));
            // Not all of them read a result at the same time.
            let mut count = number;
            tokio::spawn(async move {
                while Instant::now() < until {
                    let began = Instant::now();
                    let submission = handle.submit(document.clone(), None).await?;
                    let submitted = began.elapsed();
                    let task = submission.receipt["task_id"].as_str().and_then(|id| id.parse().ok());
                    let task = task.ok_or_else(|| CliError::internal("a submission without a task"))?;
                    wait(&handle, &ends, task).await?;
                    let whole = began.elapsed();
                    // The first of the first one is read in any case, however few there will be.
                    let result = if count % SAMPLE == 0 { Some(composed(&handle, task).await?) } else { None };
                    count = count.wrapping_add(1);
                    let mut spans = spans.lock().unwrap_or_else(PoisonError::into_inner);
                    spans.submit.saturating_record(tenths(submitted));
                    spans.whole.saturating_record(tenths(whole));
                    if let Some(result) = result {
                        spans.result.saturating_record(tenths(result));
                    }
                }
                Ok::<_, CliError>(())
            })
        })
        .collect();
    for submitter in submitters {
        submitter.await.map_err(|error| CliError::internal(error.to_string()))??;
    }
    listener.abort();
    let mut spans = spans.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(std::mem::replace(&mut *spans, Spans::new()?))
}

/// How tasks ended, and who waits for one.
#[derive(Default)]
struct Ends(Mutex<BTreeMap<TaskId, End>>);

enum End {
    Awaited(oneshot::Sender<String>),
    /// It ended before its submitter came to wait.
    Known(String),
}

impl Ends {
    fn tell(&self, task: TaskId, outcome: String) {
        let mut by_task = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match by_task.remove(&task) {
            Some(End::Awaited(waiting)) => drop(waiting.send(outcome)),
            Some(End::Known(_)) | None => drop(by_task.insert(task, End::Known(outcome))),
        }
    }

    fn expect(&self, task: TaskId) -> oneshot::Receiver<String> {
        let (tell, told) = oneshot::channel();
        let mut by_task = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match by_task.remove(&task) {
            Some(End::Known(outcome)) => drop(tell.send(outcome)),
            Some(End::Awaited(_)) | None => drop(by_task.insert(task, End::Awaited(tell))),
        }
        told
    }
}

async fn listen(mut events: tokio::sync::broadcast::Receiver<Event>, ends: Arc<Ends>) {
    loop {
        match events.recv().await {
            Ok(Event::TaskEnded(row)) => {
                if let Some(task) = row["task_id"].as_str().and_then(|id| id.parse().ok()) {
                    ends.tell(task, row["outcome"].as_str().unwrap_or("nothing").to_owned());
                }
            }
            Ok(_) | Err(RecvError::Lagged(_)) => {}
            Err(RecvError::Closed) => return,
        }
    }
}

/// Waits until a task has ended well.
async fn wait(handle: &Handle, ends: &Ends, task: TaskId) -> Result<(), CliError> {
    let outcome = loop {
        if let Ok(Ok(outcome)) = tokio::time::timeout(ASK_AFTER, ends.expect(task)).await {
            break outcome;
        }
        match handle.task_result(task).await {
            Ok(_) => break handle.task(task, false).await?["outcome"].as_str().unwrap_or("nothing").to_owned(),
            Err(failure) if failure.code == ErrorCode::NotFinished => {}
            Err(failure) => return Err(failure.into()),
        }
    };
    if outcome == "success" { Ok(()) } else { Err(CliError::internal(format!("task {task} ended in {outcome}"))) }
}

/// How long it took from the last step's answer until the result could be read, which is now.
async fn composed(handle: &Handle, task: TaskId) -> Result<Duration, CliError> {
    handle.task_result(task).await?;
    let read = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let events: Vec<_> = handle.task_events(task, None).await?.try_collect().await?;
    let received = events.iter().rev().find(|event| event.name == "result_received").and_then(|event| event.data["at_ms"].as_u64());
    let received = received.ok_or_else(|| CliError::internal(format!("task {task} ended without an answer")))?;
    Ok(read.saturating_sub(Duration::from_millis(received)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_step_echoes_as_much_as_a_plain_call() {
        let chain = chain(256);
        let text = chain["parameters"]["text"].as_str().expect("a text");
        assert_eq!(json!({ "text": text }).to_string().len(), 256);
        assert_eq!(chain["subtasks"][2]["input"]["text"], "${step_2.output.text}");
        assert_eq!(chain["subtasks"].as_array().map(Vec::len), usize::try_from(STEPS).ok());
    }

    #[tokio::test]
    async fn an_end_reaches_whoever_waits_for_it_before_or_after() {
        let (ends, [early, late]) = (Ends::default(), [1, 2].map(TaskId::from_random));
        let told = ends.expect(early);
        ends.tell(late, "failed".to_owned());
        ends.tell(early, "success".to_owned());
        assert_eq!(told.await.as_deref(), Ok("success"));
        assert_eq!(ends.expect(late).await.as_deref(), Ok("failed"));
        assert!(ends.0.lock().expect("sound").is_empty(), "nothing is kept");
    }
}
