//! The load: one generator and one histogram for every contender.
//!
//! Closed loop: a number of callers, each of which begins its next call when the last one is answered. Open loop: calls fall due at a
//! fixed rate whether or not earlier ones are answered, and each is timed from when it was due, so that a stall shows in the calls that
//! it held up. Timers are as coarse as tokio's, one millisecond; that is inside the open loop's figures, for every contender alike.
//!
//! A caller is whatever one call at a time needs: a clone of a handle, or a connection of its own where the protocol answers in order.
//! Every answer is compared with what was sent. A call that fails is counted and not timed, unless it was refused: how long that took is
//! a figure of its own.

use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use bytes::Bytes;
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// Callers of the open loop: at 10,000 calls a second each has 50 ms for its call before it is late for the next.
const OPEN_CALLERS: u32 = 500;
/// Histograms that the callers share. One for each of 512 would be most of the memory that is measured.
const TALLIES_MAX: usize = 8;

/// How fast calls come.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) enum Pace {
    /// Closed loop: this many are always under way.
    InFlight(u32),
    /// Open loop: this many fall due each second.
    PerSecond(u32),
}

impl Pace {
    fn callers(self) -> u32 {
        match self {
            Self::InFlight(callers) => callers,
            Self::PerSecond(rate) => rate.min(OPEN_CALLERS),
        }
    }
}

/// What a client process is told to do.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Order {
    /// How fast.
    pub(crate) pace: Pace,
    /// Size of each payload, a JSON string.
    pub(crate) bytes: usize,
    /// For how long.
    pub(crate) run_ms: u64,
    /// Size of the payloads that one more caller sends all the while; none at zero.
    pub(crate) beside_bytes: usize,
}

/// What came of it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Figures {
    pub(crate) count: u64,
    pub(crate) failed: u64,
    /// The first failure.
    pub(crate) failure: Option<String>,
    /// Calls that were told to come back later.
    pub(crate) refused: u64,
    pub(crate) refused_p50_us: f64,
    pub(crate) refused_p99_us: f64,
    pub(crate) per_second: f64,
    pub(crate) p50_us: f64,
    pub(crate) p90_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) p999_us: f64,
    pub(crate) max_us: f64,
    /// Calls of the caller beside.
    pub(crate) beside: u64,
}

/// A call was told to come back later, because there is no room for it.
#[derive(Debug)]
pub(crate) struct Refused(pub(crate) String);

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refused {}

/// Makes one call at a time.
pub(crate) trait Caller: Send + 'static {
    /// Sends a payload and returns the answer.
    fn call(&mut self, payload: Bytes) -> impl Future<Output = Result<Bytes>> + Send;
}

/// Gives out callers.
pub(crate) trait Contender {
    /// What it gives out.
    type Caller: Caller;

    /// One more caller.
    fn caller(&self) -> impl Future<Output = Result<Self::Caller>> + Send;
}

#[derive(Debug)]
struct Tally {
    histogram: Histogram<u64>,
    refusals: Histogram<u64>,
    failed: u64,
    failure: Option<String>,
}

type Shared = Arc<Mutex<Tally>>;

/// A JSON string of this many bytes, quotes included.
pub(crate) fn payload(bytes: usize) -> Bytes {
    format!("\"{}\"", "x".repeat(bytes.saturating_sub(2))).into()
}

/// Does what an order says. Its first call must succeed: a contender that cannot do the calls at all has no figures.
pub(crate) async fn run<C: Contender>(contender: &C, order: &Order) -> Result<Figures> {
    let payload = payload(order.bytes);
    let mut callers = Vec::new();
    for _ in 0..order.pace.callers() {
        callers.push(contender.caller().await?);
    }
    let Some(first) = callers.first_mut() else { bail!("a load without callers") };
    if first.call(payload.clone()).await? != payload {
        bail!("the answer is not what was sent");
    }
    let mut bulk = None;
    if order.beside_bytes > 0 {
        bulk = Some((contender.caller().await?, self::payload(order.beside_bytes)));
    }
    let tallies = (0..callers.len().min(TALLIES_MAX)).map(|_| tally()).collect::<Result<Vec<Shared>>>()?;
    let began = Instant::now();
    let until = began + Duration::from_millis(order.run_ms);
    let beside = bulk.map(|(mut caller, large)| {
        tokio::spawn(async move {
            let mut count = 0;
            while Instant::now() < until {
                caller.call(large.clone()).await?;
                count += 1;
            }
            anyhow::Ok(count)
        })
    });
    let mut tasks = Vec::new();
    for ((number, caller), tally) in (0_u32..).zip(callers).zip(tallies.iter().cycle()) {
        let (payload, tally) = (payload.clone(), Arc::clone(tally));
        let task = match order.pace {
            Pace::InFlight(_) => tokio::spawn(closed(caller, payload, until, tally)),
            Pace::PerSecond(rate) => {
                let gap = Duration::from_secs(1) / rate;
                let due = Due { first: began + gap * number, every: gap * order.pace.callers(), until };
                tokio::spawn(open(caller, payload, due, tally))
            }
        };
        tasks.push(task);
    }
    for task in tasks {
        task.await?;
    }
    let took = began.elapsed();
    let beside = match beside {
        Some(task) => task.await??,
        None => 0,
    };
    figures(&tallies, took, beside)
}

async fn closed<C: Caller>(mut caller: C, payload: Bytes, until: Instant, tally: Shared) {
    loop {
        let began = Instant::now();
        if began >= until {
            return;
        }
        record(&tally, caller.call(payload.clone()).await, &payload, began);
    }
}

/// When the calls of one caller fall due.
struct Due {
    first: Instant,
    every: Duration,
    until: Instant,
}

async fn open<C: Caller>(mut caller: C, payload: Bytes, due: Due, tally: Shared) {
    let mut at = due.first;
    while at < due.until {
        tokio::time::sleep_until(at.into()).await;
        record(&tally, caller.call(payload.clone()).await, &payload, at);
        at += due.every;
    }
}

fn record(tally: &Shared, answer: Result<Bytes>, payload: &Bytes, began: Instant) {
    let took = u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX) / 100;
    let refused = answer.as_ref().is_err_and(|error| error.is::<Refused>());
    let failure = match answer {
        Ok(answer) if answer == *payload => None,
        Ok(_) => Some("the answer is not what was sent".to_owned()),
        Err(error) => Some(format!("{error:#}")),
    };
    let mut tally = tally.lock().unwrap_or_else(PoisonError::into_inner);
    match failure {
        Some(_) if refused => tally.refusals.saturating_record(took),
        None => tally.histogram.saturating_record(took),
        Some(failure) => {
            tally.failed += 1;
            tally.failure.get_or_insert(failure);
        }
    }
}

fn tally() -> Result<Shared> {
    Ok(Arc::new(Mutex::new(Tally { histogram: histogram()?, refusals: histogram()?, failed: 0, failure: None })))
}

/// Tenths of a microsecond up to a minute, three digits.
pub(crate) fn histogram() -> Result<Histogram<u64>> {
    Ok(Histogram::new_with_max(600_000_000, 3)?)
}

fn figures(tallies: &[Shared], took: Duration, beside: u64) -> Result<Figures> {
    let (mut sum, mut refusals, mut failed, mut failure) = (histogram()?, histogram()?, 0, None);
    for tally in tallies {
        let mut tally = tally.lock().unwrap_or_else(PoisonError::into_inner);
        sum.add(&tally.histogram)?;
        refusals.add(&tally.refusals)?;
        failed += tally.failed;
        failure = failure.or_else(|| tally.failure.take());
    }
    let refused = timings(&refusals, took);
    let (refused_p50_us, refused_p99_us) = (refused.p50_us, refused.p99_us);
    Ok(Figures { failed, failure, beside, refused: refused.count, refused_p50_us, refused_p99_us, ..timings(&sum, took) })
}

/// What a histogram of tenths of a microsecond says.
pub(crate) fn timings(histogram: &Histogram<u64>, took: Duration) -> Figures {
    let us = |quantile| histogram.value_at_quantile(quantile) as f64 / 10.0;
    Figures {
        count: histogram.len(),
        per_second: histogram.len() as f64 / took.as_secs_f64(),
        p50_us: us(0.5),
        p90_us: us(0.9),
        p99_us: us(0.99),
        p999_us: us(0.999),
        max_us: us(1.0),
        ..Figures::default()
    }
}
