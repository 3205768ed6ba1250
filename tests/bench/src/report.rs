//! The report: a table for people, a document for programs.

use std::io::Write;

use anyhow::Result;
use serde::Serialize;

use crate::measure::{Row, median};

/// Something that was to be reached.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Aim {
    what: String,
    aim: String,
    measured: Option<f64>,
    met: bool,
}

impl Aim {
    /// A figure that shall not be larger. Without a measurement the aim is not met.
    pub(crate) fn at_most(what: &str, most: f64, measured: Option<f64>) -> Self {
        let measured = measured.filter(|measured| measured.is_finite());
        Self { what: what.to_owned(), aim: format!("<= {most}"), measured, met: measured.is_some_and(|measured| measured <= most) }
    }

    /// A figure that shall not be smaller.
    pub(crate) fn at_least(what: &str, least: f64, measured: Option<f64>) -> Self {
        let measured = measured.filter(|measured| measured.is_finite());
        Self { what: what.to_owned(), aim: format!(">= {least}"), measured, met: measured.is_some_and(|measured| measured >= least) }
    }

    /// No call of these rows failed, and there were some.
    pub(crate) fn no_failures<'a>(what: &str, rows: impl IntoIterator<Item = &'a Row>) -> Self {
        let figures: Option<Vec<_>> = rows.into_iter().map(|row| row.figures.as_ref()).collect();
        let figures = figures.filter(|figures| !figures.is_empty());
        let failed = figures.map(|figures| figures.iter().map(|figures| figures.failed).sum::<u64>() as f64);
        Self { what: what.to_owned(), aim: "0 failed".to_owned(), measured: failed, met: failed == Some(0.0) }
    }
}

/// One contender over another. Each is the median of the ratios within the rounds.
#[derive(Debug, Clone, Serialize)]
struct Ratio {
    what: &'static str,
    setting: String,
    of: String,
    to: String,
    per_second: f64,
    per_second_min: f64,
    per_second_max: f64,
    p50: f64,
    p99: f64,
    cpu_per_call: f64,
}

/// Everything that a run found out.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    build: &'static str,
    cores: usize,
    rounds: usize,
    run_ms: u64,
    rows: Vec<Row>,
    ratios: Vec<Ratio>,
    aims: Vec<Aim>,
}

impl Report {
    /// An empty report of so much effort.
    pub(crate) fn new(rounds: usize, run_ms: u64) -> Self {
        let build = if cfg!(debug_assertions) { "debug" } else { "release" };
        let cores = std::thread::available_parallelism().map_or(0, usize::from);
        Self { build, cores, rounds, run_ms, rows: Vec::new(), ratios: Vec::new(), aims: Vec::new() }
    }

    /// Takes in what was measured.
    pub(crate) fn rows(&mut self, rows: Vec<Row>) {
        self.rows.extend(rows);
    }

    /// Takes in whether an aim is met.
    pub(crate) fn aim(&mut self, aim: Aim) {
        self.aims.push(aim);
    }

    /// Compares two contenders of one alternation, and returns the ratio of their calls per second. Nothing if either could not do it.
    pub(crate) fn compare(&mut self, rows: &[Row], of: &str, to: &str) -> Option<f64> {
        let row = |name: &str| rows.iter().find(|row| row.contender == name && row.figures.is_some());
        let (over, under) = (row(of)?, row(to)?);
        let ratios = |figure: fn(&crate::measure::Round) -> f64| -> Vec<f64> {
            over.rounds.iter().zip(&under.rounds).map(|(over, under)| figure(over) / figure(under)).collect()
        };
        let per_second = ratios(|round| round.figures.per_second);
        let middle = |values: Vec<f64>| median(values.into_iter());
        let ratio = Ratio {
            what: over.what,
            setting: over.setting.clone(),
            of: of.to_owned(),
            to: to.to_owned(),
            per_second_min: per_second.iter().copied().fold(f64::INFINITY, f64::min),
            per_second_max: per_second.iter().copied().fold(0.0, f64::max),
            per_second: middle(per_second),
            p50: middle(ratios(|round| round.figures.p50_us)),
            p99: middle(ratios(|round| round.figures.p99_us)),
            cpu_per_call: over.cpu_us_per_call / under.cpu_us_per_call,
        };
        let calls = ratio.per_second;
        self.ratios.push(ratio);
        Some(calls)
    }

    /// Whether every aim was met.
    pub(crate) fn all_met(&self) -> bool {
        self.aims.iter().all(|aim| aim.met)
    }

    /// The document for programs.
    pub(crate) fn json(&self) -> Result<String> {
        Ok(serde_json::to_string_pretty(self)? + "\n")
    }

    /// The tables for people.
    pub(crate) fn text(&self) -> String {
        let Self { build, cores, rounds, run_ms, .. } = self;
        let mut text = format!("{build} build, {cores} cores; medians of {rounds} rounds of {run_ms} ms\n\n");
        self.measured(&mut text);
        self.compared(&mut text);
        self.aimed(&mut text);
        text
    }

    fn measured(&self, text: &mut String) {
        let heads = ["per s", "p50 us", "p90 us", "p99 us", "p99.9 us", "cpu us/call", "failed"];
        text.push_str(&format!("{:<9}{:<34}{:<15}", "what", "setting", "contender"));
        text.push_str(&heads.map(|head| format!("{head:>12}")).concat());
        text.push_str("  memory MiB\n");
        for row in &self.rows {
            text.push_str(&format!("{:<9}{:<34}{:<15}", row.what, row.setting, row.contender));
            match (&row.figures, &row.error) {
                (Some(f), _) => {
                    let numbers = [f.p50_us, f.p90_us, f.p99_us, f.p999_us, row.cpu_us_per_call];
                    text.push_str(&format!("{:>12.0}", f.per_second));
                    text.push_str(
                        &numbers.map(|number| if number.is_nan() { format!("{:>12}", "-") } else { format!("{number:>12.1}") }).concat(),
                    );
                    text.push_str(&format!("{:>12}", f.failed));
                }
                (None, Some(error)) => text.push_str(&format!("  not measured: {error}")),
                (None, None) => text.push_str(&" ".repeat(12 * heads.len())),
            }
            let memory = row.resident_bytes.iter().map(|(process, bytes)| format!("{process} {:.1}", *bytes as f64 / 1_048_576.0));
            text.push_str(&format!("  {}\n", memory.collect::<Vec<_>>().join(", ")));
            if let Some(f) = row.figures.as_ref().filter(|figures| figures.refused > 0) {
                text.push_str(&format!(
                    "{:<9}refused: {}, p50 {:.1} us, p99 {:.1} us\n",
                    "", f.refused, f.refused_p50_us, f.refused_p99_us
                ));
            }
            if let Some(failure) = row.figures.as_ref().and_then(|figures| figures.failure.as_ref()) {
                text.push_str(&format!("{:<9}first failure: {failure}\n", ""));
            }
        }
    }

    fn compared(&self, text: &mut String) {
        if self.ratios.is_empty() {
            return;
        }
        let heads = ["per s", "p50", "p99", "cpu/call"];
        text.push_str(&format!("\n{:<9}{:<34}{:<28}", "ratio", "setting", "of / to"));
        text.push_str(&heads.map(|head| format!("{head:>10}")).concat());
        text.push_str("  per s, lowest and highest round\n");
        for r in &self.ratios {
            text.push_str(&format!("{:<9}{:<34}{:<28}", r.what, r.setting, format!("{} / {}", r.of, r.to)));
            text.push_str(&[r.per_second, r.p50, r.p99, r.cpu_per_call].map(|number| format!("{number:>10.2}")).concat());
            text.push_str(&format!("  {:.2} {:.2}\n", r.per_second_min, r.per_second_max));
        }
    }

    fn aimed(&self, text: &mut String) {
        if self.aims.is_empty() {
            return;
        }
        text.push_str(&format!("\n{:<60}{:>12}{:>12}\n", "aim", "wanted", "measured"));
        for aim in &self.aims {
            let measured = aim.measured.map_or_else(|| "-".to_owned(), |measured| format!("{measured:.2}"));
            text.push_str(&format!("{:<60}{:>12}{measured:>12}  {}\n", aim.what, aim.aim, if aim.met { "met" } else { "missed" }));
        }
    }
}

/// A line on standard error about what goes on.
pub(crate) fn progress(what: &str) {
    // Nobody who went away needs to know.
    let _ = writeln!(std::io::stderr(), "{what} ...");
}
