//! What is measured, in which order, and what is compared with what.
//!
//! Rows of one part alternate among its contenders; parts follow each other, and each ends its processes, so that nobody is measured
//! beside what another part left running.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;

use crate::contender::{QUIC, Running, TCP};
use crate::load::{Order, Pace};
use crate::measure::{Effort, Row, alternate, idle};
use crate::mesh::WORK_PLACES;
use crate::records;
use crate::report::{Aim, Report};

/// Payload of a small call, in bytes.
const SMALL: usize = 256;
/// Payload of a large call, in bytes: 5 MB, quotes included.
const LARGE: usize = 5_000_000;
/// The rate of MEAP-10, in calls per second.
const RATE: u32 = 10_000;
/// The engines of MAOP-10.
const ENGINES: usize = 100;
/// Agents of one capability.
const AGENTS: [usize; 4] = [1, 10, 100, 1_000];

/// How long the work of the engine takes that is overloaded, in milliseconds.
const WORK_MS: u32 = 20;

/// A part of the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Part {
    /// 256-byte echo at 1, 64 and 512 in flight: NATS, HTTP, Meshwork over TCP and over QUIC; each idle first.
    Calls,
    /// MEAP-10: 10,000 calls fall due each second.
    Offered,
    /// MAOP-10: 100 engines of distinct capability, 100 calls in flight over all of them.
    Engines,
    /// A 5 MB message beside one on a bare libp2p substream, and small calls beside 5 MB messages.
    Large,
    /// A call when 1, 10, 100 and 1,000 agents offer the capability.
    Agents,
    /// A query over 1,000, 10,000 and 100,000 records.
    Records,
    /// F12: an engine is offered what it has room for, and three times as much.
    Overload,
}

impl Part {
    /// All of them.
    pub(crate) const ALL: [Self; 7] = [Self::Calls, Self::Offered, Self::Engines, Self::Large, Self::Agents, Self::Records, Self::Overload];
}

fn closed(in_flight: u32) -> Order {
    Order { pace: Pace::InFlight(in_flight), bytes: SMALL, run_ms: 0, beside_bytes: 0 }
}

/// Runs the parts that are wanted.
pub(crate) async fn run(parts: &[Part], dir: &Path, effort: Effort, report: &mut Report) -> Result<()> {
    let wants = |part| parts.contains(&part);
    if wants(Part::Calls) || wants(Part::Offered) {
        field(parts, dir, effort, report).await?;
    }
    if wants(Part::Engines) {
        let mut engines = Running::engines("engines", dir, ENGINES).await?;
        let rows = alternate("engines", "100 engines, 100 in flight", &mut [(&mut engines, closed(100))], effort).await?;
        report.aim(Aim::no_failures("MAOP-10: 100 engines at once, every call answered", &rows));
        report.rows(rows);
        engines.end().await?;
    }
    if wants(Part::Large) {
        large(dir, effort, report).await?;
    }
    if wants(Part::Agents) {
        agents(dir, effort, report).await?;
    }
    if wants(Part::Records) {
        say("records");
        let rows = records::measure(Duration::from_millis(effort.run_ms))?;
        let largest = rows.iter().find(|row| row.setting == "100000 records, by name");
        report.aim(Aim::at_most("local query, 100k records, p99 ms", 1.0, largest.map(|row| row.p99_us() / 1_000.0)));
        report.rows(rows);
    }
    if wants(Part::Overload) {
        overload(dir, effort, report).await?;
    }
    Ok(())
}

fn say(what: &str) {
    crate::report::progress(what);
}

/// All contenders side by side.
async fn field(parts: &[Part], dir: &Path, effort: Effort, report: &mut Report) -> Result<()> {
    let mut contenders = [
        Running::nats().await?,
        Running::http().await?,
        Running::mesh("meshwork", dir, TCP, 1).await?,
        Running::mesh("meshwork-quic", dir, QUIC, 1).await?,
    ];
    if parts.contains(&Part::Calls) {
        for contender in &contenders {
            say(&format!("idle: {}", contender.name()));
            report.rows(vec![idle(contender, Duration::from_millis(effort.run_ms)).await?]);
        }
        for in_flight in [1, 64, 512] {
            let setting = format!("{in_flight} in flight");
            say(&format!("calls: {setting}"));
            let rows = together("calls", &setting, &mut contenders, &closed(in_flight), effort).await?;
            let ratio = report.compare(&rows, "meshwork", "nats");
            match in_flight {
                1 => report.aim(Aim::at_most("call, 1 in flight, p50 us", 100.0, p50_us(&rows, "meshwork"))),
                _ => report.aim(Aim::at_least(&format!("calls/s over those of NATS, {setting}"), 2.0, ratio)),
            }
            report.compare(&rows, "meshwork", "http");
            report.compare(&rows, "meshwork-quic", "nats");
            report.rows(rows);
        }
    }
    if parts.contains(&Part::Offered) {
        say("offered");
        let order = Order { pace: Pace::PerSecond(RATE), ..closed(1) };
        let rows = together("offered", "10000 per s", &mut contenders, &order, effort).await?;
        let p99_ms = rows.iter().find(|row| row.contender == "meshwork").map(|row| row.p99_us() / 1_000.0);
        report.aim(Aim::at_most("MEAP-10: 10,000 calls/s offered, p99 ms", 10.0, p99_ms));
        report.aim(Aim::no_failures("MEAP-10: every call answered", rows.iter().filter(|row| row.contender == "meshwork")));
        report.rows(rows);
    }
    for contender in contenders {
        contender.end().await?;
    }
    Ok(())
}

async fn together(what: &'static str, setting: &str, contenders: &mut [Running], order: &Order, effort: Effort) -> Result<Vec<Row>> {
    let mut turns: Vec<_> = contenders.iter_mut().map(|contender| (contender, order.clone())).collect();
    alternate(what, setting, &mut turns, effort).await
}

fn p50_us(rows: &[Row], contender: &str) -> Option<f64> {
    rows.iter().find(|row| row.contender == contender).map(Row::p50_us)
}

async fn large(dir: &Path, effort: Effort, report: &mut Report) -> Result<()> {
    let mut contenders = [
        Running::substream().await?,
        Running::http().await?,
        Running::mesh("meshwork", &dir.join("large"), TCP, 1).await?,
        Running::mesh("meshwork-quic", &dir.join("large"), QUIC, 1).await?,
    ];
    say("large");
    let order = Order { bytes: LARGE, ..closed(1) };
    let rows = together("large", "5 MB there and back, 1 in flight", &mut contenders, &order, effort).await?;
    report.compare(&rows, "meshwork", "substream");
    let times = |row: Option<f64>| Some(row? / p50_us(&rows, "substream")?);
    report.aim(Aim::at_most("5 MB message, p50 over that of a bare substream", 1.5, times(p50_us(&rows, "meshwork"))));
    let can = rows.iter().filter(|row| row.error.is_none()).map(|row| row.contender.clone()).collect::<Vec<_>>();
    report.rows(rows);
    say("large: small calls beside");
    for contender in contenders.iter_mut().filter(|contender| can.iter().any(|name| name == contender.name() && name != "substream")) {
        // The two settings alternate as two contenders would, on the same processes.
        let (mut alone, mut beside) = (Vec::new(), Vec::new());
        for _ in 0..effort.rounds {
            let round = Effort { rounds: 1, ..effort };
            alone.extend(alternate("beside", "256 B alone", &mut [(contender, closed(1))], round).await?);
            let order = Order { beside_bytes: LARGE, ..closed(1) };
            beside.extend(alternate("beside", "256 B beside 5 MB", &mut [(contender, order)], round).await?);
        }
        let (Some(alone), Some(beside)) = (Row::merged(alone), Row::merged(beside)) else { continue };
        if contender.name() == "meshwork" {
            report.aim(Aim::at_most("small calls beside 5 MB, p99 over their usual", 2.0, Some(beside.p99_us() / alone.p99_us())));
        }
        report.rows(vec![alone, beside]);
    }
    for contender in contenders {
        contender.end().await?;
    }
    Ok(())
}

/// What fits and three times as much in turn, on the same processes.
async fn overload(dir: &Path, effort: Effort, report: &mut Report) -> Result<()> {
    say("overload");
    let mut worker = Running::worker("meshwork", &dir.join("overload"), WORK_MS).await?;
    let fits = WORK_PLACES * 1_000 / WORK_MS;
    let (mut once, mut thrice) = (Vec::new(), Vec::new());
    for _ in 0..effort.rounds {
        for (rows, times) in [(&mut once, 1), (&mut thrice, 3)] {
            let order = Order { pace: Pace::PerSecond(fits * times), ..closed(1) };
            let setting = format!("{} per s, room for {fits}", fits * times);
            rows.extend(alternate("overload", &setting, &mut [(&mut worker, order)], Effort { rounds: 1, ..effort }).await?);
        }
    }
    worker.end().await?;
    if let (Some(once), Some(thrice)) = (Row::merged(once), Row::merged(thrice)) {
        let (usual, over) = (once.figures.as_ref(), thrice.figures.as_ref());
        let goodput = usual.zip(over).map(|(usual, over)| over.per_second / usual.per_second);
        report.aim(Aim::at_least("F12: goodput at three times the load over that at once", 0.9, goodput));
        // Where nothing was refused the load was not offered, or not shed, and how soon is not known.
        let over = over.filter(|_| thrice.rounds.iter().all(|round| round.figures.refused > 0));
        report.aim(Aim::at_most("F12: BUSY at three times the load, p99 ms", 100.0, over.map(|over| over.refused_p99_us / 1_000.0)));
        report.aim(Aim::no_failures("F12: nothing fails but by BUSY", [&thrice]));
        report.rows(vec![once, thrice]);
    }
    Ok(())
}

/// One size after the other: a thousand idle agents are sixteen nodes that talk, which a single agent beside them would suffer from.
async fn agents(dir: &Path, effort: Effort, report: &mut Report) -> Result<()> {
    let mut rows = Vec::new();
    for agents in AGENTS {
        say(&format!("agents: {agents}"));
        let mut contender = Running::mesh(&format!("{agents} agents"), &dir.join("agents"), TCP, agents).await?;
        for in_flight in [1, 64] {
            let setting = format!("{in_flight} in flight");
            rows.extend(alternate("agents", &setting, &mut [(&mut contender, closed(in_flight))], effort).await?);
        }
        contender.end().await?;
    }
    for setting in ["1 in flight", "64 in flight"] {
        let alike: Vec<Row> = rows.iter().filter(|row| row.setting == setting).cloned().collect();
        for agents in AGENTS.iter().skip(1) {
            report.compare(&alike, &format!("{agents} agents"), "1 agents");
        }
    }
    report.rows(rows);
    Ok(())
}
