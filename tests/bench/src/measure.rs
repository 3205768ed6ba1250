//! Rounds: every contender does the same order in turn, again and again, so that what the machine does meanwhile touches all of them.
//!
//! A figure is the median of the rounds, each figure for itself. A ratio is the median of the ratios within the rounds, since what stands
//! next to each other in time is what can be compared.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Result;
use serde::Serialize;

use crate::contender::Running;
use crate::load::{Figures, Order};

/// How long the same load runs before it is measured, in milliseconds.
const WARM_UP_MS: u64 = 300;

/// How long and how often.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Effort {
    /// Rounds.
    pub(crate) rounds: usize,
    /// How long each contender runs in a round, in milliseconds.
    pub(crate) run_ms: u64,
}

/// How one contender did one thing.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Row {
    pub(crate) what: &'static str,
    pub(crate) setting: String,
    pub(crate) contender: String,
    /// The medians of the rounds; `None` if it could not do it.
    pub(crate) figures: Option<Figures>,
    /// Why it could not.
    pub(crate) error: Option<String>,
    /// Processor time of all its processes for each call, in microseconds.
    pub(crate) cpu_us_per_call: f64,
    /// Resident memory of its processes after the last round, in bytes.
    pub(crate) resident_bytes: BTreeMap<String, u64>,
    /// Every round.
    pub(crate) rounds: Vec<Round>,
}

impl Row {
    /// Something that has no rounds.
    pub(crate) fn alone(what: &'static str, setting: String, contender: &str, figures: Figures) -> Self {
        Self {
            what,
            setting,
            contender: contender.to_owned(),
            figures: Some(figures),
            error: None,
            cpu_us_per_call: f64::NAN,
            resident_bytes: BTreeMap::new(),
            rounds: Vec::new(),
        }
    }

    /// Several rows of one thing as one.
    pub(crate) fn merged(rows: Vec<Self>) -> Option<Self> {
        let rounds: Vec<Round> = rows.iter().flat_map(|row| row.rounds.clone()).collect();
        let error = rows.iter().find_map(|row| row.error.clone());
        let last = rows.into_iter().next_back()?;
        let (figures, cpu_us_per_call) = (error.is_none().then(|| medians(&rounds)), cpu_us_per_call(&rounds));
        Some(Self { figures, error, cpu_us_per_call, rounds, ..last })
    }

    /// Half of the calls took no longer, in microseconds.
    pub(crate) fn p50_us(&self) -> f64 {
        self.figures.as_ref().map_or(f64::NAN, |figures| figures.p50_us)
    }

    /// 99 of a hundred calls took no longer, in microseconds.
    pub(crate) fn p99_us(&self) -> f64 {
        self.figures.as_ref().map_or(f64::NAN, |figures| figures.p99_us)
    }
}

/// One round of one contender.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Round {
    pub(crate) figures: Figures,
    pub(crate) cpu_us: u64,
}

fn cpu_us_per_call(rounds: &[Round]) -> f64 {
    median(rounds.iter().map(|round| round.cpu_us as f64 / round.figures.count.max(1) as f64))
}

/// The middle one; the mean of the two in the middle if their number is even.
pub(crate) fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    let at = |index: usize| values.get(index).copied().unwrap_or(f64::NAN);
    if values.len() % 2 == 1 { at(middle) } else { (at(middle.wrapping_sub(1)) + at(middle)) / 2.0 }
}

/// The figures of several rounds as one.
pub(crate) fn medians(rounds: &[Round]) -> Figures {
    let of = |figure: fn(&Figures) -> f64| median(rounds.iter().map(|round| figure(&round.figures)));
    let sum = |figure: fn(&Figures) -> u64| rounds.iter().map(|round| figure(&round.figures)).sum();
    Figures {
        count: sum(|figures| figures.count),
        failed: sum(|figures| figures.failed),
        failure: rounds.iter().find_map(|round| round.figures.failure.clone()),
        refused: sum(|figures| figures.refused),
        refused_p50_us: of(|figures| figures.refused_p50_us),
        refused_p99_us: of(|figures| figures.refused_p99_us),
        per_second: of(|figures| figures.per_second),
        p50_us: of(|figures| figures.p50_us),
        p90_us: of(|figures| figures.p90_us),
        p99_us: of(|figures| figures.p99_us),
        p999_us: of(|figures| figures.p999_us),
        max_us: of(|figures| figures.max_us),
        beside: sum(|figures| figures.beside),
    }
}

/// Has each contender carry out its order in turn, round after round.
pub(crate) async fn alternate(
    what: &'static str,
    setting: &str,
    contenders: &mut [(&mut Running, Order)],
    effort: Effort,
) -> Result<Vec<Row>> {
    let mut rounds: Vec<Vec<Round>> = contenders.iter().map(|_| Vec::new()).collect();
    let mut errors: Vec<Option<String>> = contenders.iter().map(|_| None).collect();
    for _ in 0..effort.rounds {
        for (((contender, order), rounds), error) in contenders.iter_mut().zip(&mut rounds).zip(&mut errors) {
            if error.is_some() {
                continue;
            }
            match once(contender, order, effort).await? {
                Ok(round) => rounds.push(round),
                Err(said) => *error = Some(said),
            }
        }
    }
    let mut rows = Vec::new();
    for (((contender, _), rounds), error) in contenders.iter().zip(rounds).zip(errors) {
        let resident = contender.processes().map(|process| Ok((process.name().to_owned(), process.resident_bytes()?)));
        rows.push(Row {
            what,
            setting: setting.to_owned(),
            contender: contender.name().to_owned(),
            figures: error.is_none().then(|| medians(&rounds)),
            error,
            cpu_us_per_call: cpu_us_per_call(&rounds),
            resident_bytes: resident.collect::<Result<_>>()?,
            rounds,
        });
    }
    Ok(rows)
}

async fn once(contender: &mut Running, order: &Order, effort: Effort) -> Result<Result<Round, String>> {
    let warm_up = Order { run_ms: WARM_UP_MS, ..order.clone() };
    if let Err(error) = contender.client().order(&warm_up).await? {
        return Ok(Err(error));
    }
    let before = contender.cpu_us()?;
    let done = contender.client().order(&Order { run_ms: effort.run_ms, ..order.clone() }).await?;
    let cpu_us = contender.cpu_us()?.saturating_sub(before);
    Ok(done.map(|figures| Round { figures, cpu_us }))
}

/// What a contender uses while nobody calls: share of one core, and memory.
pub(crate) async fn idle(contender: &Running, time: Duration) -> Result<Row> {
    let before = contender.cpu_us()?;
    tokio::time::sleep(time).await;
    let cpu_us = contender.cpu_us()?.saturating_sub(before);
    let resident = contender.processes().map(|process| Ok((process.name().to_owned(), process.resident_bytes()?)));
    let share = cpu_us as f64 / time.as_micros() as f64 / contender.processes().count() as f64;
    Ok(Row {
        what: "idle",
        setting: format!("{:.1}% of a core per process", share * 100.0),
        contender: contender.name().to_owned(),
        figures: None,
        error: None,
        cpu_us_per_call: f64::NAN,
        resident_bytes: resident.collect::<Result<_>>()?,
        rounds: Vec::new(),
    })
}
