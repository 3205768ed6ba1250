//! `meshwork demo`: a mesh of four nodes in this process, and a document that passes through three of them.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use rust_decimal::Decimal;
use serde_json::{Value, json};

use super::local::{self, Scratch};
use super::{CliError, Global};
use crate::model::{CapabilityName, ErrorCode, Failure, printable};
use crate::node::{Handle, InvokeReply, InvokeRequest, Node, Query, Wanted};

/// The document that is used when none is named.
const SAMPLE: &[u8] = include_bytes!("../agents/builtin/assets/sample.pdf");

/// Arguments of `demo`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  meshwork demo                  on a document that ships inside
  meshwork demo report.pdf       on yours: PDF, Markdown or text, up to 3.9 MB

Starts four nodes on loopback that find each other, attaches agents to three of them, and has the fourth extract the document's text, \
analyse it and sum it up, each step by whichever agent the mesh offers. Nothing is left behind.")]
pub(crate) struct Args {
    /// A PDF, Markdown or text file.
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
}

/// One step that was done.
struct Done {
    step: &'static str,
    capability: &'static str,
    reply: std::sync::Arc<InvokeReply>,
    agent: String,
    node: &'static str,
    output: Value,
}

const HOSTS: [(&str, &str, &str, (&str, &str)); 3] = [
    ("library", "extractor", "pdf_text_extraction", ("0.002", "document")),
    ("study", "analyst", "text-analysis", ("0.001", "request")),
    ("press", "editor", "summarization", ("0.003", "request")),
];

/// Runs the demo.
pub(crate) async fn run(args: Args, global: &Global) -> Result<(), CliError> {
    let (title, document) = read(args.file)?;
    crate::telemetry::start_log("error", false).map_err(CliError::internal)?;
    let scratch = Scratch::new("demo")?;
    let progress = progress(global);
    let began = Instant::now();
    progress.set_message("starting four nodes");
    let (nodes, handle) = mesh(&scratch).await?;
    let meshed = began.elapsed();
    let result = chain(&handle, &nodes, document, &progress).await;
    progress.finish_and_clear();
    for node in nodes {
        node.stop().await;
    }
    let done = result?;
    global.answer(&answer(&title, meshed, &done), || Ok(text(&title, meshed, &done)))
}

fn read(file: Option<PathBuf>) -> Result<(String, String), CliError> {
    let (title, bytes) = match &file {
        None => ("the document inside the program".to_owned(), SAMPLE.to_vec()),
        Some(path) => {
            let failed = |error: std::io::Error| CliError::usage(format!("cannot read {}: {error}", path.display()));
            (path.display().to_string(), std::fs::read(path).map_err(failed)?)
        }
    };
    let kind = match file.as_ref().and_then(|path| path.extension()).and_then(|extension| extension.to_str()) {
        _ if bytes.starts_with(b"%PDF") => "application/pdf",
        Some("md" | "markdown") => "text/markdown",
        _ if std::str::from_utf8(&bytes).is_ok() => "text/plain",
        _ => return Err(CliError::usage(format!("{title} is neither a PDF nor text"))),
    };
    let url = format!("data:{kind};base64,{}", STANDARD.encode(&bytes));
    // The input of a call is bounded, and its JSON adds a little to the document.
    let bytes_max = usize::try_from(crate::config::Limits::default().payload_bytes_max).unwrap_or(usize::MAX) - 256;
    if url.len() > bytes_max {
        let message = format!("{title} has {} bytes; documents of up to {} bytes travel in one call", bytes.len(), bytes_max / 4 * 3 - 64);
        return Err(CliError::from(Failure::new(ErrorCode::PayloadTooLarge, message).with("limit", bytes_max / 4 * 3 - 64)));
    }
    Ok((title, url))
}

fn progress(global: &Global) -> ProgressBar {
    let target = if global.screen.err_is_terminal() && !global.json { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let bar = ProgressBar::with_draw_target(None, target);
    if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} ({elapsed})") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(80));
    bar
}

/// Four nodes: one that asks, and three that join it and host an agent each.
async fn mesh(scratch: &Scratch) -> Result<(Vec<Node>, Handle), CliError> {
    const LISTEN: [&str; 1] = ["/ip4/127.0.0.1/tcp/0"];
    let desk = local::start(local::config(scratch.path(), "desk", &LISTEN, &[])).await?;
    let join = [local::address(&desk).await?];
    let handle = desk.handle.clone();
    let mut nodes = vec![desk];
    for (name, agent, kind, price) in HOSTS {
        let mut config = local::config(scratch.path(), name, &LISTEN, &join);
        config.agents = vec![local::builtin(agent, kind, Some(price))?];
        nodes.push(local::start(config).await?);
    }
    Ok((nodes, handle))
}

async fn chain(handle: &Handle, nodes: &[Node], document: String, progress: &ProgressBar) -> Result<Vec<Done>, CliError> {
    let mut done = Vec::new();
    let extracted = step(handle, nodes, "extract", "pdf_text_extraction", json!({ "document": document }), progress).await?;
    let text = extracted.output.get("text").and_then(Value::as_str).unwrap_or_default().to_owned();
    done.push(extracted);
    done.push(step(handle, nodes, "analyse", "text-analysis", json!({ "text": text }), progress).await?);
    done.push(step(handle, nodes, "sum up", "summarization", json!({ "text": text, "max_sentences": 3 }), progress).await?);
    Ok(done)
}

async fn step(
    handle: &Handle,
    nodes: &[Node],
    step: &'static str,
    capability: &'static str,
    input: Value,
    progress: &ProgressBar,
) -> Result<Done, CliError> {
    progress.set_message(format!("{step}: looking for {capability}"));
    let name: CapabilityName = capability.parse().map_err(CliError::internal)?;
    let query = Query { capabilities: vec![name.clone()], text: None, version: None, constraints: Wanted::default(), limit: 1 };
    let found = handle.find(query, None).await?;
    if let Some(best) = found.candidates.first() {
        progress.set_message(format!("{step}: {} works on {capability}", best.entry.record.name));
    }
    let reply = handle.invoke(InvokeRequest::new(name, input.to_string().into())).await?;
    let output = serde_json::from_slice(&reply.output).map_err(|error| CliError::internal(error.to_string()))?;
    let agent =
        found.candidates.iter().find(|candidate| candidate.agent() == reply.agent).map(|candidate| crate::node::label(&candidate.entry));
    let places = ["desk", "library", "study", "press"];
    let node = nodes.iter().zip(places).find(|(node, _)| node.handle.node_id() == reply.node).map_or("elsewhere", |(_, name)| name);
    Ok(Done { step, capability, agent: agent.unwrap_or_else(|| reply.agent.to_string()), node, reply, output })
}

fn total(done: &[Done]) -> Decimal {
    done.iter().filter_map(|done| done.reply.cost.as_ref()).map(|(amount, _)| *amount).sum()
}

fn answer(title: &str, meshed: Duration, done: &[Done]) -> Value {
    let steps: Vec<Value> = done
        .iter()
        .map(|done| {
            json!({
                "step": done.step,
                "capability": done.capability,
                "agent": done.agent,
                "agent_id": done.reply.agent,
                "node": done.node,
                "node_id": done.reply.node,
                "latency_ms": done.reply.latency.as_secs_f64() * 1_000.0,
                "cost": done.reply.cost.as_ref().map(|(amount, currency)| json!({ "amount": amount.to_string(), "currency": currency })),
                "output": done.output,
            })
        })
        .collect();
    let cost = json!({ "amount": total(done).to_string(), "currency": "USD" });
    json!({ "document": title, "mesh_ms": meshed.as_secs_f64() * 1_000.0, "steps": steps, "cost": cost })
}

fn text(title: &str, meshed: Duration, done: &[Done]) -> String {
    let mut text =
        format!("Four nodes found each other in {:.0} ms. Document: {}\n\n", meshed.as_secs_f64() * 1_000.0, printable(title, 120));
    for done in done {
        let ms = done.reply.latency.as_secs_f64() * 1_000.0;
        let cost = done.reply.cost.as_ref().map_or_else(|| "free".to_owned(), |(amount, currency)| format!("{amount} {currency}"));
        text.push_str(&format!("{:<8} {:<20} {:<20} on {:<8} {ms:>8.1} ms  {cost}\n", done.step, done.capability, done.agent, done.node));
    }
    text.push_str(&format!("\ntotal cost {} USD\n\n", total(done)));
    let output = |capability: &str| done.iter().find(|done| done.capability == capability).map(|done| &done.output);
    if let Some(analysis) = output("text-analysis") {
        let words = analysis.get("keywords").and_then(Value::as_array).into_iter().flatten();
        let words: Vec<&str> =
            words.filter_map(|keyword| keyword.get("word").or_else(|| keyword.get("term")).and_then(Value::as_str)).take(8).collect();
        text.push_str(&format!("keywords  {}\n", printable(&words.join(", "), 200)));
    }
    if let Some(summary) = output("summarization").and_then(|output| output.get("summary")).and_then(Value::as_str) {
        text.push_str(&format!("summary   {}\n", printable(summary, 2_000)));
    }
    text
}
