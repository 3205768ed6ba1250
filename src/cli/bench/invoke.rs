//! Plain calls: as many as are asked for in flight, for a while.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde_json::{Value, json};

use super::measure::{histogram, row, tenths};
use super::pair::{Pair, name};
use crate::cli::CliError;
use crate::model::CapabilityName;
use crate::node::{Handle, InvokeRequest};

/// What is echoed: 256 bytes of JSON.
pub(super) fn payload() -> bytes::Bytes {
    format!("\"{}\"", "x".repeat(254)).into()
}

/// A row of plain calls.
pub(super) async fn invoke(pair: &Pair, transport: &str, in_flight: usize, time: Duration) -> Result<Value, CliError> {
    let payload = payload();
    let name = name()?;
    // A warm-up opens the lane and fills caches.
    load(&pair.node.handle, &name, &payload, in_flight, Duration::from_millis(300)).await?;
    let began = Instant::now();
    let histogram = load(&pair.node.handle, &name, &payload, in_flight, time).await?;
    Ok(row("invoke", json!({ "transport": transport, "bytes": payload.len(), "in_flight": in_flight }), &histogram, began.elapsed()))
}

/// Keeps `in_flight` calls running for a while, and records how long each took, in microseconds.
pub(super) async fn load(
    handle: &Handle,
    name: &CapabilityName,
    payload: &bytes::Bytes,
    in_flight: usize,
    time: Duration,
) -> Result<Histogram<u64>, CliError> {
    let until = Instant::now() + time;
    // A histogram of its own for each of many callers would be most of the memory that is measured.
    let shared: Vec<_> = (0..in_flight.min(8)).map(|_| histogram().map(|one| Arc::new(Mutex::new(one)))).collect::<Result<_, _>>()?;
    let callers: Vec<_> = (0..in_flight)
        .map(|number| {
            let (handle, name, payload) = (handle.clone(), name.clone(), payload.clone());
            let histogram = shared.get(number % shared.len()).cloned();
            tokio::spawn(async move {
                while Instant::now() < until {
                    let began = Instant::now();
                    handle.invoke(InvokeRequest::new(name.clone(), payload.clone())).await?;
                    let took = tenths(began.elapsed());
                    if let Some(histogram) = &histogram {
                        histogram.lock().unwrap_or_else(PoisonError::into_inner).saturating_record(took);
                    }
                }
                Ok::<_, CliError>(())
            })
        })
        .collect();
    let mut sum = histogram()?;
    for caller in callers {
        caller.await.map_err(|error| CliError::internal(error.to_string()))??;
    }
    for one in shared {
        sum.add(&*one.lock().unwrap_or_else(PoisonError::into_inner)).map_err(|error| CliError::internal(error.to_string()))?;
    }
    Ok(sum)
}
