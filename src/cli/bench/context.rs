//! Shared contexts: how soon a reader has one that it did not know, how soon others see a change, what writing costs, what ten thousand take
//! in memory, and what the fold alone does.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use futures::{StreamExt as _, TryStreamExt as _, stream};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::sync::broadcast;

use super::measure::{histogram, resident, row, tenths};
use super::pair::Pair;
use crate::cli::CliError;
use crate::model::{OperationId, Path};
use crate::node::{ContextRequest, Event, Fold, Item, Stamp};

/// Operations of a context that is handed over.
const OPERATIONS: usize = 1_000;
/// Contexts that are handed over.
const TRANSFERS: usize = 20;
/// Contexts that are held in memory.
const ACTIVE: usize = 10_000;
/// Operations of each.
const ACTIVE_OPERATIONS: usize = 4;
/// Requests at once while contexts are filled, which is not measured.
const FILLING: usize = 16;
/// Writers at once, a context each.
const WRITERS: usize = 64;
/// Items that are folded at a time, and how many places they go to.
const FOLDED: u32 = 100_000;
const PLACES: u32 = 1_000;
/// How long others may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// Rows of what contexts do.
pub(super) async fn context(pair: &Pair, time: Duration) -> Result<Vec<Value>, CliError> {
    // First, since nothing may have to make way for them.
    let memory = active(pair).await?;
    let mut rows = vec![transfers(pair).await?, updates(pair, time).await?];
    for writers in [1, WRITERS] {
        rows.push(writes(pair, writers, time).await?);
    }
    rows.push(tokio::task::spawn_blocking(move || folds(time)).await.map_err(|error| CliError::internal(error.to_string()))??);
    rows.push(memory);
    Ok(rows)
}

/// A context on the other node that this one may read, or not yet.
async fn create(pair: &Pair, is_shared: bool) -> Result<String, CliError> {
    let read = if is_shared { vec![pair.node.handle.node_id()] } else { Vec::new() };
    let body = json!({ "shared_memory": { "title": "bench" }, "access_control": { "read": read } });
    let created = pair.ask(Method::POST, "/v1/contexts", &body).await?;
    created["id"].as_str().map(str::to_owned).ok_or_else(|| CliError::internal("a context has no id"))
}

async fn change(pair: &Pair, id: &str, at: usize) -> Result<(), CliError> {
    let ops = json!({ "ops": [{ "op": "set", "path": format!("/shared_memory/steps/{at}"), "value": { "state": "done", "by": at } }] });
    pair.ask(Method::PATCH, &format!("/v1/contexts/{id}"), &ops).await.map(drop)
}

async fn fill(pair: &Pair, contexts: usize, operations: usize) -> Result<Vec<String>, CliError> {
    let one = |_| async move {
        let id = create(pair, false).await?;
        // The first was written with the context.
        for at in 1..operations {
            change(pair, &id, at).await?;
        }
        Ok::<_, CliError>(id)
    };
    stream::iter(0..contexts).map(one).buffer_unordered(FILLING).try_collect().await
}

/// Waits until so many operations of each context were heard of.
async fn heard(events: &mut broadcast::Receiver<Event>, left_by_id: &mut BTreeMap<String, usize>) -> Result<(), CliError> {
    let hearing = async {
        while left_by_id.values().any(|left| *left > 0) {
            match events.recv().await {
                Ok(Event::ContextUpdate(update)) => {
                    let id = update["context"]["id"].as_str().unwrap_or_default();
                    let came = update["operations"].as_array().map_or(0, Vec::len);
                    if let Some(left) = left_by_id.get_mut(id) {
                        *left = left.saturating_sub(came);
                    }
                }
                Ok(_) => {}
                Err(_) => return Err(CliError::internal("events were lost")),
            }
        }
        Ok(())
    };
    tokio::time::timeout(PATIENCE, hearing).await.map_err(|_| CliError::timeout("a context was not handed over in time"))?
}

/// From the order to let this node read a context until it has all of it, on its disk.
async fn transfers(pair: &Pair) -> Result<Value, CliError> {
    let ids = fill(pair, TRANSFERS, OPERATIONS).await?;
    let mut events = pair.node.handle.events();
    let mut spans = histogram()?;
    let all = Instant::now();
    for id in ids {
        let body = json!({ "read": [pair.node.handle.node_id()] });
        let mut left = BTreeMap::from([(id.clone(), OPERATIONS)]);
        let began = Instant::now();
        pair.ask(Method::PUT, &format!("/v1/contexts/{id}/access"), &body).await?;
        heard(&mut events, &mut left).await?;
        spans.saturating_record(tenths(began.elapsed()));
    }
    Ok(row("context transfer", json!({ "operations": OPERATIONS }), &spans, all.elapsed()))
}

/// From the request of a client of the other node until this node has the change, on both disks.
async fn updates(pair: &Pair, time: Duration) -> Result<Value, CliError> {
    let mut events = pair.node.handle.events();
    let id = create(pair, true).await?;
    heard(&mut events, &mut BTreeMap::from([(id.clone(), 1)])).await?;
    let mut spans = histogram()?;
    let all = Instant::now();
    for at in (0..).take_while(|_| all.elapsed() < time) {
        let began = Instant::now();
        change(pair, &id, at).await?;
        heard(&mut events, &mut BTreeMap::from([(id.clone(), 1)])).await?;
        spans.saturating_record(tenths(began.elapsed()));
    }
    Ok(row("context update", json!({ "nodes": 2 }), &spans, all.elapsed()))
}

/// Changes of contexts that nobody else reads, until each is durable.
async fn writes(pair: &Pair, writers: usize, time: Duration) -> Result<Value, CliError> {
    let all = Instant::now();
    let mut spans = histogram()?;
    let work = stream::iter(0..writers).map(|_| write_one(pair, all, time)).buffer_unordered(writers);
    for written in work.try_collect::<Vec<_>>().await?.into_iter().flatten() {
        spans.saturating_record(tenths(written));
    }
    Ok(row("context write", json!({ "writers": writers }), &spans, all.elapsed()))
}

async fn write_one(pair: &Pair, since: Instant, time: Duration) -> Result<Vec<Duration>, CliError> {
    let handle = &pair.node.handle;
    let created = handle.create_context(ContextRequest::default()).await?;
    let id = created["id"].as_str().unwrap_or_default();
    let mut spans = Vec::new();
    for at in (0_u64..).take_while(|_| since.elapsed() < time) {
        let began = Instant::now();
        let ops = json!({ "ops": [{ "op": "set", "path": format!("/shared_memory/{}", at % 100), "value": at }] });
        handle.change_context(id, &ops, None).await?;
        spans.push(began.elapsed());
    }
    Ok(spans)
}

/// What the fold does with items of one writer, without signatures and disk: a span is that of one item.
fn folds(time: Duration) -> Result<Value, CliError> {
    let paths: Vec<Path> = (0..PLACES)
        .map(|place| format!("/shared_memory/steps/{place}/state").parse())
        .collect::<Result<_, _>>()
        .map_err(|_| CliError::internal("a path"))?;
    let mut spans = histogram()?;
    let (all, mut busy) = (Instant::now(), Duration::ZERO);
    let mut folded = 0_u32;
    while all.elapsed() < time {
        let items: Vec<Item> = (0..FOLDED).zip(paths.iter().cycle()).map(|(at, path)| Item::Set(path.clone(), at.into())).collect();
        let mut fold = Fold::default();
        let began = Instant::now();
        for (lamport, item) in (1..).zip(&items) {
            let below = item.path().segments().get(1..).unwrap_or_default();
            fold.apply(Stamp { lamport, id: OperationId::from_bytes([0; 32]), item: 0 }, below, item);
        }
        let took = began.elapsed();
        spans.saturating_record_n(tenths(took / FOLDED).max(1), u64::from(FOLDED));
        (busy, folded) = (busy + took, folded + FOLDED);
    }
    Ok(row("context fold", json!({ "places": PLACES }), &spans, busy))
}

/// What the other node takes for ten thousand contexts that are all in its memory.
async fn active(pair: &Pair) -> Result<Value, CliError> {
    let pid = pair.host_pid();
    let before = resident(&pid);
    fill(pair, ACTIVE, ACTIVE_OPERATIONS).await?;
    let bytes = resident(&pid).zip(before).map(|(after, before)| after.saturating_sub(before));
    Ok(json!({ "what": "context memory", "setting": { "contexts": ACTIVE, "operations": ACTIVE_OPERATIONS }, "bytes": bytes }))
}
