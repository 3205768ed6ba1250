//! The directory: queries, registrations, and how soon the other node knows of one.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::measure::{histogram, row, tenths};
use super::pair::{Pair, name};
use crate::cli::CliError;
use crate::node::{Query, Wanted};

/// Rows of what the directory does.
pub(super) async fn find(pair: &Pair, time: Duration) -> Result<Vec<Value>, CliError> {
    let handle = &pair.node.handle;
    let query = Query { capabilities: vec![name()?], text: None, version: None, constraints: Wanted::default(), limit: 1 };
    let (mut queries, mut registrations, mut distributions) = (histogram()?, histogram()?, histogram()?);
    let began = Instant::now();
    while began.elapsed() < time {
        let asked = Instant::now();
        handle.find(query.clone(), None).await?;
        queries.saturating_record(tenths(asked.elapsed()));
    }
    let took = began.elapsed();
    let began = Instant::now();
    for number in 0..20 {
        let (registered, distributed) = pair.attach(&format!("agent-{number}")).await?;
        registrations.saturating_record(tenths(registered));
        distributions.saturating_record(tenths(distributed));
    }
    let agents = json!({ "agents": 20 });
    Ok(vec![
        row("find", json!({ "records": 1 }), &queries, took),
        row("register", agents.clone(), &registrations, began.elapsed()),
        row("distribute", agents, &distributions, began.elapsed()),
    ])
}
