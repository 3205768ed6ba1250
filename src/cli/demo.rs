//! `meshwork demo`: a mesh of four nodes in this process, and a task whose steps are done on three of them.
//!
//! The task is a file like any other, `node-config/tasks/document.yaml`, and nothing here knows what its steps mean beyond their names:
//! whom they go to, in which order and at what cost comes from the node that the task was given to.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Map, Value, json};

use super::local::{self, Scratch};
use super::{CliError, Global, figures, task, task_file};
use crate::model::{CapabilityName, ErrorCode, Failure, TaskId, printable};
use crate::node::{Handle, Node, Query, Wanted};

/// The document that is used when none is named.
const SAMPLE: &[u8] = include_bytes!("../agents/builtin/assets/sample.pdf");

/// What is done with it.
const TASK: &str = include_str!("../../node-config/tasks/document.yaml");

/// How long the asking node may take to hear of the agents.
const KNOWN_WITHIN: Duration = Duration::from_secs(15);

/// How often it is asked.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Arguments of `demo`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  meshwork demo                            on a document that ships inside
  meshwork demo report.pdf                 on yours: PDF, Markdown or text, up to 3.9 MB
  meshwork demo --task > document.yaml     the task that it runs, for `meshwork task run` on a mesh of your own

Starts four nodes on loopback that find each other, attaches agents to three of them, and gives the fourth a task: extract the document's \
text, analyse it and sum it up at once, report both, each step by whichever agent the mesh offers. Nothing is left behind.")]
pub(crate) struct Args {
    /// A PDF, Markdown or text file.
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
    /// Print the task that is run, and run nothing.
    #[arg(long, conflicts_with = "file")]
    task: bool,
}

/// An agent: its name, what it is, and what it asks for which unit.
type Hosted = (&'static str, &'static str, (&'static str, &'static str));

/// The nodes that host agents, by their names.
const HOSTS: [(&str, &[Hosted]); 3] = [
    ("library", &[("extractor", "pdf_text_extraction", ("0.002", "document"))]),
    ("study", &[("analyst", "text-analysis", ("0.001", "request"))]),
    ("press", &[("editor", "summarization", ("0.003", "request")), ("clerk", "orchestration", ("0.001", "request"))]),
];

/// The node that the task is given to.
const DESK: &str = "desk";

/// Runs the demo.
pub(crate) async fn run(args: Args, global: &Global) -> Result<(), CliError> {
    let mut definition = task_file::from_yaml(TASK)?;
    if args.task {
        return global.answer(&definition, || Ok(TASK.to_owned()));
    }
    let (title, document) = read(args.file)?;
    definition["parameters"] = json!({ "document": document });
    crate::telemetry::start_log("error", false).map_err(CliError::internal)?;
    let scratch = Scratch::new("demo")?;
    let interrupted = || CliError::from(Failure::new(ErrorCode::Cancelled, "interrupted; nothing is left behind"));
    let began = Instant::now();
    let mut nodes = Vec::new();
    let result = tokio::select! {
        result = all(&scratch, &mut nodes, &definition, global) => result,
        Ok(()) = tokio::signal::ctrl_c() => Err(interrupted()),
    };
    for node in nodes {
        node.stop().await;
    }
    let Done { task, meshed_at, status, result } = result?;
    let meshed = meshed_at.saturating_duration_since(began);
    let answer = answer(&title, meshed, task, &status, &result);
    global.answer(&answer, || Ok(text(&title, meshed, &answer, &status)))
}

/// What became of the task.
struct Done {
    task: TaskId,
    meshed_at: Instant,
    /// Its status document.
    status: Value,
    /// Its result document.
    result: Value,
}

async fn all(scratch: &Scratch, nodes: &mut Vec<Node>, definition: &Value, global: &Global) -> Result<Done, CliError> {
    let progress = progress(global);
    let handle = mesh(scratch, nodes).await;
    progress.finish_and_clear();
    let handle = handle?;
    let meshed_at = Instant::now();
    let submission = handle.submit(definition.to_string().into(), None).await?;
    let id = submission.receipt["task_id"].as_str().and_then(|id| id.parse::<TaskId>().ok());
    let task = id.ok_or_else(|| CliError::internal("the node took the task and told no id"))?;
    task::watch(&handle, task, global).await?;
    let status = handle.task(task, false).await?;
    let result = handle.task_result(task).await?;
    let result: Value = serde_json::from_str(result.get()).map_err(|error| CliError::internal(error.to_string()))?;
    if result["outcome"] == "success" {
        return Ok(Done { task, meshed_at, status, result });
    }
    let told = result["error"]["message"].as_str().unwrap_or("it told no reason");
    Err(CliError::from(Failure::new(ErrorCode::AgentFailed, format!("the task failed: {told}"))).with("task", result["error"].clone()))
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
    bar.set_message("starting four nodes");
    bar
}

/// Four nodes: one that asks, and three that join it and host agents. Those that were started are in `nodes`, also if a later one was not.
async fn mesh(scratch: &Scratch, nodes: &mut Vec<Node>) -> Result<Handle, CliError> {
    const LISTEN: [&str; 1] = ["/ip4/127.0.0.1/tcp/0"];
    let desk = local::start(local::config(scratch.path(), DESK, &LISTEN, &[])).await?;
    let handle = desk.handle.clone();
    let join = local::address(&desk).await;
    nodes.push(desk);
    let join = [join?];
    for (name, agents) in HOSTS {
        let mut config = local::config(scratch.path(), name, &LISTEN, &join);
        config.agents = agents.iter().map(|(agent, kind, price)| local::builtin(agent, kind, Some(*price))).collect::<Result<_, _>>()?;
        nodes.push(local::start(config).await?);
    }
    for (_, kind, _) in HOSTS.iter().flat_map(|(_, agents)| *agents) {
        known(&handle, kind).await?;
    }
    Ok(handle)
}

/// Waits until the asking node knows who offers this; a task would wait by itself, and a demo shall not show that.
async fn known(handle: &Handle, capability: &str) -> Result<(), CliError> {
    let name: CapabilityName = capability.parse().map_err(CliError::internal)?;
    let looking = async {
        loop {
            let query = Query { capabilities: vec![name.clone()], text: None, version: None, constraints: Wanted::default(), limit: 1 };
            if !handle.find(query, None).await?.candidates.is_empty() {
                return Ok(());
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    tokio::time::timeout(KNOWN_WITHIN, looking).await.map_err(|_| CliError::timeout(format!("no node heard of `{capability}` in time")))?
}

fn answer(title: &str, meshed: Duration, task: TaskId, status: &Value, result: &Value) -> Value {
    let report = &result["result"]["report"];
    let steps = status["progress"]["steps"].as_array().into_iter().flatten().map(|step| {
        let id = step["subtask_id"].as_str().unwrap_or_default();
        let cost = if step["cost"].is_null() {
            Value::Null
        } else {
            json!({ "amount": step["cost"].to_string(), "currency": result["currency"] })
        };
        json!({
            "step": id,
            "capability": step["capability"],
            "agent": figures::agent(step["agent"].as_str().unwrap_or_default(), step["agent_id"].as_str().unwrap_or_default()),
            "agent_id": step["agent_id"],
            "node": place(step["agent"].as_str().unwrap_or_default()),
            "node_id": step["node_id"],
            "latency_ms": step["duration_ms"],
            "cost": cost,
            // The last step gives all that the others gave.
            "output": report.get(id),
        })
    });
    let steps: Vec<Value> = steps.collect();
    let cost = json!({ "amount": result["cost"].to_string(), "currency": result["currency"] });
    json!({
        "document": title,
        "mesh_ms": meshed.as_secs_f64() * 1_000.0,
        "task_id": task,
        "steps": steps,
        "cost": cost,
        "execution_time_ms": result["execution_time_ms"],
    })
}

/// The node that hosts an agent of the demo.
fn place(agent: &str) -> &'static str {
    HOSTS.iter().find(|(_, agents)| agents.iter().any(|(name, ..)| *name == agent)).map_or("elsewhere", |(node, _)| node)
}

fn text(title: &str, meshed: Duration, answer: &Value, status: &Value) -> String {
    let word = |value: &Value| figures::word(value.as_str().unwrap_or_default());
    let mut text = format!(
        "Four nodes found each other in {:.0} ms. Task: {} (`meshwork demo --task` prints it)\nDocument: {}\n\n",
        meshed.as_secs_f64() * 1_000.0,
        word(&status["name"]),
        printable(title, 120),
    );
    let empty = Map::new();
    let mut outputs = Vec::new();
    for step in answer["steps"].as_array().into_iter().flatten().filter_map(Value::as_object) {
        let of = |name: &str| step.get(name).unwrap_or(&Value::Null);
        text.push_str(&format!(
            "{:<8} {:<20} {:<20} on {:<8} {:>8}  {}\n",
            word(of("step")),
            word(of("capability")),
            word(of("agent")),
            word(of("node")),
            figures::millis(of("latency_ms").as_f64().unwrap_or_default()),
            figures::money(of("cost")),
        ));
        outputs.push(of("output").as_object().unwrap_or(&empty));
    }
    text.push_str(&format!(
        "\ntotal cost {}, {} from the submission to the end\n\n",
        figures::money(&answer["cost"]),
        figures::millis(answer["execution_time_ms"].as_f64().unwrap_or_default()),
    ));
    let output = |name: &str| outputs.iter().find_map(|output| output.get(name));
    if let Some(keywords) = output("keywords").and_then(Value::as_array) {
        let words: Vec<&str> = keywords
            .iter()
            .filter_map(|keyword| keyword.get("word").or_else(|| keyword.get("term")).and_then(Value::as_str))
            .take(8)
            .collect();
        text.push_str(&format!("keywords  {}\n", printable(&words.join(", "), 200)));
    }
    if let Some(summary) = output("summary").and_then(Value::as_str) {
        text.push_str(&format!("summary   {}\n", printable(summary, 2_000)));
    }
    text
}
