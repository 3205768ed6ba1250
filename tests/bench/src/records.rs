//! How the directory grows: a query over 1,000, 10,000 and 100,000 records, asked of `proto::directory` itself.
//!
//! Each capability is offered by ten agents, a node hosts 64, all nodes are connected. Asked for are one name and, as the dearest question
//! that there is, words of a description, one of them everybody's: every record is looked at and ranked, beside the event loop. A third row
//! is the ranking that the calls of ten milliseconds share.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use hdrhistogram::Histogram;
use libp2p::identity::Keypair;
use meshwork::model::{Claims, Constraints, Framework, Now, Timestamp};
use meshwork::proto::directory::rank::{Answer, Rules};
use meshwork::proto::directory::{Config, Routes, Scan, State, Verdict};
use meshwork::proto::peers::trust::Ledger;
use meshwork::wire::directory::{Capability, LIFETIME_MS_MAX, Query, Record, SchemaHash, Wanted};
use meshwork::wire::{AgentKey, NodeKey, Signed};

use crate::load;
use crate::measure::Row;

/// Sizes of the directory.
const SIZES: [u32; 3] = [1_000, 10_000, 100_000];
/// Agents that offer the same.
const AGENTS_PER_NAME: u32 = 10;
/// Agents on one node.
const AGENTS_PER_NODE: u32 = 64;
/// When everything happens.
const NOW: Now = Now { mono: Duration::from_secs(1), wall: Timestamp::from_ms(1_000_000) };

/// One row for each size and kind of question.
pub(crate) fn measure(time: Duration) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for size in SIZES {
        let (state, routes) = directory(size)?;
        let (ledger, rules) = (Ledger::new(1), Rules::default());
        let names = size / AGENTS_PER_NAME;
        let named = |number: u32| query(vec![name(number % names)], None);
        let by_name = |number| Ok(state.query(&named(number)?, &ledger, NOW.mono));
        let by_route = |number| Ok(routes.rank(&named(number)?, None, &rules, &ledger, NOW.mono));
        let by_text = |number| {
            let query = query(Vec::new(), Some(format!("number-{}", number % names)))?;
            let mut scan = Scan::new(&query, &routes);
            while scan.step(&ledger, NOW.mono, &rules) {}
            Ok(scan.finish(&rules))
        };
        rows.push(row(size, "by name", time, by_name)?);
        rows.push(row(size, "ranked for calls", time, by_route)?);
        rows.push(row(size, "by text", time, by_text)?);
    }
    Ok(rows)
}

fn row(size: u32, how: &str, time: Duration, ask: impl Fn(u32) -> Result<Answer>) -> Result<Row> {
    let found = ask(0)?.candidates.len();
    ensure!(found >= 1, "{how} over {size} records finds nobody");
    let histogram = repeat(time, ask)?;
    Ok(Row::alone("records", format!("{size} records, {how}"), "directory", load::timings(&histogram, time)))
}

fn repeat(time: Duration, ask: impl Fn(u32) -> Result<Answer>) -> Result<Histogram<u64>> {
    let mut histogram = load::histogram()?;
    let began = Instant::now();
    // A prime step, so that neighbours in memory are not neighbours in time.
    let mut number = 0_u32;
    while began.elapsed() < time {
        number = number.wrapping_add(7_919);
        let asked = Instant::now();
        std::hint::black_box(ask(number)?);
        histogram.saturating_record(u64::try_from(asked.elapsed().as_nanos())? / 100);
    }
    Ok(histogram)
}

fn name(number: u32) -> String {
    format!("bench.name-{number}")
}

fn query(capabilities: Vec<String>, text: Option<String>) -> Result<Query> {
    let capabilities = capabilities.iter().map(|name| name.parse().map_err(|error| anyhow!("{name}: {error}"))).collect::<Result<_>>()?;
    Ok(Query { capabilities, text, version: None, constraints: Wanted::default(), limit: 10 })
}

fn directory(size: u32) -> Result<(State, Routes)> {
    let mut state = State::new(Config::new(NodeKey::new(Keypair::generate_ed25519()).id()));
    let mut node = NodeKey::new(Keypair::generate_ed25519());
    for number in 0..size {
        if number % AGENTS_PER_NODE == 0 {
            node = NodeKey::new(Keypair::generate_ed25519());
        }
        let mut seed = [0; 32];
        seed[..4].copy_from_slice(&number.to_le_bytes());
        let key = AgentKey::from_seed(&seed);
        let signed = Signed::sign(record(&node, &key, number, size)?, &node, Some(&key))?;
        ensure!(state.on_record(signed, NOW) == Verdict::Accept, "record {number} was not taken");
        state.on_connected(node.id());
    }
    state.drain();
    let routes = state.changed_routes().context("no routes")?;
    Ok((state, routes))
}

fn record(node: &NodeKey, key: &AgentKey, number: u32, size: u32) -> Result<Record> {
    let group = number % (size / AGENTS_PER_NAME);
    let id = name(group);
    let capability = Capability {
        id: id.parse().map_err(|error| anyhow!("{id}: {error}"))?,
        version: "1.0".parse().map_err(|error| anyhow!("version: {error}"))?,
        description: format!("Does number-{group} as well as the nine others that offer it"),
        input_schema: SchemaHash::new([0; 32]),
        output_schema: SchemaHash::new([0; 32]),
        price: None,
        constraints: Constraints::default(),
        idempotent: true,
        claims: Claims::default(),
    };
    Ok(Record {
        v: Record::V,
        agent: key.id(),
        node: node.id(),
        name: format!("agent-{number}"),
        version: "1.0.0".to_owned(),
        description: String::new(),
        framework: Framework::Custom,
        capabilities: vec![capability],
        addresses: vec!["/ip4/192.0.2.1/tcp/7481".to_owned()],
        concurrency: 8,
        sequence: 1,
        issued_at: NOW.wall,
        expires_at: NOW.wall.saturating_add(Duration::from_millis(LIFETIME_MS_MAX)),
    })
}
