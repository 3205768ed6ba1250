//! The README, held to its word: its commands are run as they are written, its map, its tables and its figures are compared with what is
//! there, and what it promises of calls is tried where no other journey does.
//!
//! A block of commands is marked in the text above it: `tested: NAME` is run here, `not tested: REASON` is not. `output: NAME` is what such a
//! block prints, lines with numbers aside. A machine of the README is a home folder here; only addresses and ids differ, since two machines
//! have to share one.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use futures::future::join_all;
use meshwork::{api::http_status, config::Config, model::ErrorCode};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines},
    process::{Child, ChildStdout, Command},
    time::timeout,
};

use crate::support::{Builder, Node, Output, SETTLE, builtin, eventually, finished, meshwork, script, shell, with};

const README: &str = include_str!("../../README.md");
const REPOSITORY: &str = env!("CARGO_MANIFEST_DIR");
/// The blocks that the tests below run.
const TESTED: [&str; 17] = [
    "demo",
    "up-a",
    "up-b",
    "add",
    "find-and-call",
    "look-around",
    "http",
    "launch",
    "large",
    "stream",
    "explain",
    "offers",
    "trust",
    "context",
    "task",
    "task-later",
    "config",
];
/// From the start of a node to its last line about itself.
const READY: Duration = Duration::from_secs(20);

/// A fenced block, with the comment above it.
#[derive(Debug)]
struct Block {
    mark: Option<String>,
    language: String,
    text: String,
}

fn blocks() -> Vec<Block> {
    let (mut blocks, mut mark, mut open) = (Vec::new(), None, None::<Block>);
    for line in README.lines() {
        match (&mut open, line.strip_prefix("```")) {
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (Some(block), None) => block.text += &format!("{line}\n"),
            (None, Some(language)) => open = Some(Block { mark: mark.take(), language: language.to_owned(), text: String::new() }),
            (None, None) => mark = line.strip_prefix("<!-- ").and_then(|rest| rest.strip_suffix(" -->")).map(str::to_owned),
        }
    }
    assert!(open.is_none(), "a block is not closed");
    blocks
}

fn marked(mark: &str) -> String {
    let found: Vec<Block> = blocks().into_iter().filter(|block| block.mark.as_deref() == Some(mark)).collect();
    let [block] = &found[..] else { panic!("the README has {} blocks marked `{mark}`", found.len()) };
    block.text.clone()
}

/// A machine of the README: a home folder, and a node once it runs.
#[derive(Debug)]
struct Machine {
    home: TempDir,
    api: Option<String>,
    node: Option<(Child, Lines<BufReader<ChildStdout>>)>,
}

impl Machine {
    fn new() -> Self {
        Self { home: tempfile::tempdir().expect("a home folder"), api: None, node: None }
    }

    fn shell(&self, script: &str) -> Command {
        let mut command = shell(self.home.path(), None, script);
        command.env("HOME", self.home.path()).env_remove("XDG_DATA_HOME").stdin(Stdio::null()).kill_on_drop(true);
        if let Some(api) = &self.api {
            command.env("MESHWORK_API", api);
        }
        command
    }

    /// Runs a block that ends, and gives what it wrote to standard output.
    async fn run(&self, name: &str) -> String {
        self.run_at(name, "").await.text().to_owned()
    }

    /// Runs a block that names a node, with `id` for its id.
    async fn run_at(&self, name: &str, id: &str) -> Output {
        let mut script = marked(&format!("tested: {name}")).replace("12D3KooW...", id);
        if let Some(api) = &self.api {
            script = script.replace("http://127.0.0.1:7480", api);
        }
        finished(&mut self.shell(&script)).await
    }

    /// Writes a file that the README shows.
    fn write(&self, name: &str) {
        let text = marked(&format!("file: {name}"));
        fs::write(self.home.path().join(name), text).expect("the file is written");
    }

    /// Starts a node by a command that does not end, and waits until it has said all about itself. Returns what it said.
    async fn up(&mut self, command: &str, settings: &[(&str, &str)]) -> Vec<String> {
        let mut command = self.shell(&format!("exec {}", command.trim()));
        command.envs([("MESHWORK_MESH__LISTEN", "[\"/ip4/127.0.0.1/tcp/0\"]"), ("MESHWORK_API__LISTEN", "127.0.0.1:0")]);
        command.envs(settings.iter().copied()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().expect("the command starts");
        let mut lines = BufReader::new(child.stdout.take().expect("its output is piped")).lines();
        let mut said: Vec<String> = Vec::new();
        while !said.last().is_some_and(|line| line.starts_with("others join with:")) {
            let line = timeout(READY, lines.next_line()).await.expect("the node is ready in time").expect("it writes UTF-8");
            said.push(line.unwrap_or_else(|| panic!("the node ended: {said:?}")));
        }
        let api = said.iter().find_map(|line| line.trim().strip_prefix("API on ")).expect("it names its API");
        self.api = api.split(',').next().map(str::to_owned);
        self.node = Some((child, lines));
        said
    }
}

#[test]
fn every_block_of_commands_is_tested_or_says_why_not() {
    for block in blocks().iter().filter(|block| block.language == "sh") {
        let mark = block.mark.as_deref().unwrap_or_default();
        let tested = mark.strip_prefix("tested: ").is_some_and(|name| TESTED.contains(&name));
        assert!(tested || mark.starts_with("not tested: "), "no test: {block:?}");
    }
}

/// The way of a newcomer, block by block.
#[tokio::test]
async fn two_machines_in_five_minutes() {
    let (mut a, mut b) = (Machine::new(), Machine::new());
    let said = a.up(&marked("tested: up-a"), &[]).await;
    let address = said.last().and_then(|line| line.rsplit(' ').next()).expect("it says how others join").to_owned();
    assert!(said.iter().any(|line| line.contains("listening on") && line.ends_with(&address)), "{said:?}");

    let (shown, up_b) = ("/ip4/192.168.1.10/tcp/7481/p2p/12D3KooW...", marked("tested: up-b"));
    assert!(up_b.contains(shown), "{up_b}");
    // Nobody waits ten minutes for a receipt here.
    let said = b.up(&up_b.replace(shown, &address), &[("MESHWORK_ROUTING__RECEIPT_WINDOW_MS", "1000")]).await;
    assert!(said.iter().any(|line| line.contains("1 peers")), "{said:?}");

    a.write("word_count.py");
    a.write("word-counter.toml");
    let added = a.run("add").await;
    assert!(added.starts_with("added word-counter@") && added.contains("available"), "{added}");
    let known = async || finished(&mut b.shell("meshwork find word-count")).await.text().contains("word-counter@").then_some(());
    eventually("B knows the agent", SETTLE, known).await;
    let called = b.run("find-and-call").await;
    assert!(called.contains("0.001 USD/request c") && called.ends_with("{\"characters\":13,\"words\":3}\n"), "{called}");
    assert_shows("find-and-call", &called);
    let looked = b.run("look-around").await;
    assert!(looked.contains("0 here, 1 in the mesh") && looked.contains("word-counter@"), "{looked}");
    let answer: Value = serde_json::from_str(&b.run("http").await).expect("one JSON document");
    assert_eq!((&answer["status"], &answer["output"]["words"]), (&"success".into(), &3.into()), "{answer}");

    assert_eq!(b.run("large").await, "{\"characters\":4500000,\"words\":900000}\n");
    a.write("words.py");
    a.write("words.toml");
    let streamed = a.run("stream").await;
    assert!(streamed.ends_with("\n\"one\"\n\"two\"\n\"three\"\n3\n"), "{streamed}");
    let explained = b.run_at("explain", "").await;
    assert_eq!(explained.text(), "{\"characters\":13,\"words\":3}\n");
    assert_shows("explain", &explained.stderr);
    let offers = b.run("offers").await;
    assert!(offers.contains("0.003 USD"), "{offers}");
    assert_shows("offers", &offers);

    b.write("texts.yaml");
    let ran = b.run("task").await;
    assert!(ran.contains("0.003 USD") && ran.ends_with("\n{\"characters\":16,\"words\":4}\n"), "{ran}");
    assert_shows("task", &ran);
    let later = b.run("task-later").await;
    for words in ["{\"characters\":16,\"words\":4}", "COMPLETED", "result_received", "word-counter@"] {
        assert!(later.contains(words), "{words}: {later}");
    }

    let shared = b.run("context").await;
    assert!(shared.ends_with("\n{\"log\":[{\"found\":3}],\"title\":\"shorter\",\"votes\":1}\n"), "{shared}");
    assert!(shared.contains("/shared_memory/counts") && shared.contains("append /shared_memory/log {\"found\":3}"), "{shared}");
    let heard = async || finished(&mut a.shell("meshwork context list")).await.text().contains("CONTEXT").then_some(());
    eventually("A's agent is a reader, so A has it", SETTLE, heard).await;

    let id = finished(&mut b.shell("meshwork status --json")).await.json()["node_id"].as_str().expect("an id").to_owned();
    let issued = async || finished(&mut a.shell("meshwork trust receipts")).await.text().contains("word-counter@").then_some(());
    eventually("B's window has ended", SETTLE, issued).await;
    let told = a.run_at("trust", &id).await;
    for words in ["none: its issuer is not pinned", "its receipts count from now on", "command", "its receipts count no longer"] {
        assert!(told.text().contains(words), "{words}: {told:?}");
    }
}

/// What the README shows of a block's output is printed by it.
fn assert_shows(name: &str, printed: &str) {
    let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let printed_words: Vec<Vec<String>> = printed.lines().map(words).collect();
    let shown = marked(&format!("output: {name}"));
    for line in shown.lines().filter(|line| !line.contains(|c: char| c.is_ascii_digit())) {
        assert!(printed_words.contains(&words(line)), "`{line}` is not printed:\n{printed}");
    }
}

#[tokio::test]
async fn the_demo_runs() {
    let shown = Machine::new().run("demo").await;

    for step in ["pdf_text_extraction", "text-analysis", "summarization", "orchestration", "total cost 0.007 USD", "summary"] {
        assert!(shown.contains(step), "{step}: {shown}");
    }
}

#[tokio::test]
async fn several_nodes_are_launched_shown_and_stopped() {
    let machine = Machine::new();
    let script = marked("tested: launch").replace("/tmp/mesh", "\"$HOME/mesh\"");

    let output = finished(machine.shell(&script).current_dir(REPOSITORY)).await;

    // Stops what a broken script has left.
    finished(machine.shell("scripts/launch --stop \"$HOME/mesh\"").current_dir(REPOSITORY)).await;
    assert_eq!(output.text().matches("  ready").count(), 6, "three rows, twice: {output:?}");
    assert!(output.text().ends_with("node-3: stopped\nnode-2: stopped\nnode-1: stopped\n"), "{output:?}");
}

#[tokio::test]
async fn examples_are_printed_and_checked() {
    let printed = Machine::new().run("config").await;

    assert!(printed.ends_with("node.toml: ok\n"), "{printed}");
    let files = fs::read_dir(format!("{REPOSITORY}/node-config")).expect("a folder").flatten();
    for name in files.filter_map(|entry| entry.file_name().into_string().ok()).filter(|name| name.ends_with(".toml")) {
        assert!(printed.contains(name.trim_end_matches(".toml")), "{name} is listed");
        assert!(README.contains(&format!("`{name}`")), "{name} is in the README");
    }
}

#[tokio::test]
async fn flags_outrank_the_environment_and_that_the_file() {
    for (settings, flag, expected) in [
        (&[][..], "", "node file ("),
        (&[("MESHWORK_NODE__NAME", "variable")], "", "node variable ("),
        (&[("MESHWORK_NODE__NAME", "variable")], " --name flag", "node flag ("),
    ] {
        let mut machine = Machine::new();
        fs::write(machine.home.path().join("node.toml"), "[node]\nname = \"file\"\n").expect("the file is written");

        let said = machine.up(&format!("meshwork up --config node.toml{flag}"), settings).await;

        assert!(said[0].starts_with(expected), "{said:?}");
    }
}

#[test]
fn the_python_agent_has_at_most_15_lines() {
    assert!(marked("file: word_count.py").lines().count() <= 15);
}

#[test]
fn the_map_is_the_territory() {
    let mut above: Vec<PathBuf> = Vec::new();
    let mut shown = BTreeSet::new();
    for line in marked("map").lines() {
        let depth = (line.len() - line.trim_start().len()) / 2;
        let name = line.split_whitespace().next().expect("a name");
        above.truncate(depth);
        above.push(name.into());
        let path: PathBuf = above.iter().collect();
        let there = Path::new(REPOSITORY).join(&path);
        assert_eq!((there.exists(), there.is_dir()), (true, name.ends_with('/')), "{}", path.display());
        shown.insert(there);
    }
    for folder in ["src", "src/proto", "tests"] {
        let entries = fs::read_dir(Path::new(REPOSITORY).join(folder)).expect("a folder").flatten().map(|entry| entry.path());
        let missing: Vec<PathBuf> = entries.filter(|path| path.is_dir() && !shown.contains(path)).collect();
        assert!(missing.is_empty(), "not on the map: {missing:?}");
    }
}

#[test]
fn the_table_of_errors_is_complete_and_right() {
    let rows: Vec<Vec<&str>> =
        README.lines().filter(|line| line.starts_with("| `")).map(|line| line.split('|').map(str::trim).collect()).collect();
    for code in ErrorCode::ALL {
        let (word, number, status) = (format!("`{code}`"), code.number().to_string(), http_status(*code).as_u16().to_string());
        match rows.iter().find(|row| row[1] == word) {
            Some(row) => assert_eq!((row[2], row[3]), (number.as_str(), status.as_str()), "{code}"),
            None => assert!(
                README.lines().any(|line| line.contains(&word) && line.contains("are not given yet")),
                "{code} is neither in the table nor among those that are not given yet"
            ),
        }
    }
}

#[test]
fn the_settings_it_names_exist() {
    let config = serde_json::to_value(Config::default()).expect("settings are data");
    let quoted = README.split('`').skip(1).step_by(2);
    let named = quoted.filter_map(|text| text.split_once('.').filter(|(section, _)| config.get(section).is_some()));
    let named: Vec<(&str, &str)> = named.filter(|(section, key)| config[section].is_object() && !key.is_empty()).collect();
    assert!(named.len() > 5, "{named:?}");
    for (section, key) in named {
        assert!(config[section].get(key).is_some(), "{section}.{key}");
    }
    let routing =
        README.split("All these keys stand in `[routing]`").next().and_then(|text| text.rsplit("\n\n").next()).expect("a paragraph");
    for key in routing.split('`').skip(1).step_by(2).filter(|key| key.contains('_')) {
        assert!(config["routing"].get(key).is_some(), "routing.{key}");
    }
}

#[test]
fn the_defaults_it_names_are_the_defaults() {
    let Config { limits, routing, task, .. } = Config::default();
    const MIB: u64 = 1024 * 1024;

    assert_eq!((limits.payload_bytes_max.into(), limits.http_body_bytes_max), (5 * MIB, 6 * MIB));
    assert_eq!((limits.announced_per_peer_bytes_max, limits.announced_bytes_max), (64 * MIB, 256 * MIB));
    assert_eq!((limits.call_timeout_ms_default, limits.call_timeout_ms_max, limits.drain_ms_max), (60_000, 600_000, 30_000));
    assert_eq!((limits.results_kept_ms, limits.results_kept_max, limits.attempts_max), (600_000, 10_000, 4));
    assert_eq!((limits.calls_per_peer_per_s, limits.api_requests_per_s), (0, 0));
    assert_eq!((task.live_max, task.kept_max, task.keep_ms, task.parallel_max), (10_000, 100_000, 604_800_000, 64));
    assert_eq!((task.defer_ms, task.start_within_ms), (300_000, 5_000));
    assert_eq!((routing.exploration, routing.evidence_half_life_ms, routing.retry_budget), (0.05, 1_200_000, 0.1));
    assert_eq!((routing.breaker_failures, routing.breaker_open_ms, routing.breaker_open_ms_max), (3, 1_000, 30_000));
    assert_eq!((routing.receipt_window_ms, serde_json::to_value(routing.balance).expect("a word")), (600_000, json!("least-load")));
}

/// MAOP-10: as large as may be configured, and no larger.
#[tokio::test]
async fn payloads_may_have_64_mib_and_no_more() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("node.toml");
    for (bytes, code) in [(67_108_864, 0), (67_108_865, 2)] {
        fs::write(&file, format!("[limits]\npayload_bytes_max = {bytes}\nhttp_body_bytes_max = 68157440\n")).expect("the file is written");

        let checked = meshwork(&["config".as_ref(), "check".as_ref(), file.as_os_str()]).await;

        assert_eq!(checked.code, code, "{checked:?}");
    }
}

/// An agent for `test.promise` that claims to answer within `ms`, which decides who is asked first; twice does harm.
fn claims(name: &str, file: &str, arguments: &[&str], ms: u64) -> Value {
    script(name, file, arguments, json!({ "id": "test.promise", "constraints": { "response_time_ms": ms } }))
}

/// A caller that asks whoever claims to be quicker.
fn caller(routing: &str) -> Builder {
    Node::builder().config(&format!("[routing]\nexploration = 0.0\n{routing}"))
}

/// AOP-4: a call that must not be done twice is safe to give to another agent until its work has begun, and not after.
#[tokio::test]
async fn a_lost_call_goes_elsewhere_before_its_work_begins_and_is_unknown_after() {
    let caller = caller("").spawn().await;
    let frozen = Node::builder().join(&caller).agent(claims("frozen", "echo.py", &[], 1)).spawn().await;
    let builder = Node::builder();
    let journal = builder.home().join("journal");
    let journal = journal.to_str().expect("temporary folders have plain names");
    let mut working = builder.join(&caller).agent(claims("working", "slow.py", &[journal], 900)).spawn().await;
    caller.knows("test.promise", &["frozen", "working"]).await;

    frozen.stop().await;
    let answer = caller.call("test.promise", json!({ "ms": 1 })).await;
    assert_eq!((&answer["attempts"], &answer["agent_id"]), (&json!(2), &json!(working.agent_id("working").await)), "{answer}");

    let _other = Node::builder().join(&caller).agent(claims("other", "echo.py", &[], 2_000)).spawn().await;
    eventually("another agent stands by", SETTLE, async || caller.names("test.promise").await.contains(&"other".to_owned()).then_some(()))
        .await;
    let body = json!({ "capability": "test.promise", "input": { "ms": 20_000 } });
    let killing = async {
        let begun = async || (fs::read_to_string(journal).unwrap_or_default().matches("started").count() == 2).then_some(());
        eventually("the agent works", SETTLE, begun).await;
        working.kill().await;
    };
    let (answer, ()) = tokio::join!(caller.invoke(body), killing);
    let error = answer.refused(502, "AGENT_FAILED");
    assert_eq!((&error["details"]["outcome"], &error["details"]["attempts"]), (&json!("unknown"), &json!(1)), "{error}");
}

/// MEAP-9: who has no retry left says so.
#[tokio::test]
async fn retries_that_burden_somebody_anew_are_paid_out_of_a_budget() {
    let caller = caller("retry_budget = 0.0\n").spawn().await;
    let host = Node::builder().join(&caller).agent(claims("crashing", "crash.py", &[], 1)).agent(claims("steady", "echo.py", &[], 900));
    let _host = host.spawn().await;
    caller.knows("test.promise", &["crashing", "steady"]).await;

    let body = json!({ "capability": "test.promise", "input": { "crash": true }, "idempotency_key": "k" });
    let error = caller.invoke(body).await.refused(502, "AGENT_FAILED");

    assert!(error["details"]["retry_budget"].as_str().is_some_and(|why| why.contains("routing.retry_budget")), "{error}");
}

/// AITP-1: places go to the most urgent who waits, and the less urgent are refused first.
#[tokio::test]
async fn the_less_urgent_wait_longer_and_are_refused_first() {
    let builder = Node::builder();
    let journal = builder.home().join("journal");
    let journal = journal.to_str().expect("temporary folders have plain names");
    let agent = with(claims("slow", "slow.py", &[journal], 1), json!({ "concurrency": 1, "queue": 4 }));
    let node = builder.agent(agent).spawn().await;
    node.knows("test.promise", &["slow"]).await;
    let call = |number: u32, priority: &str, more: Value| {
        let body = json!({ "capability": "test.promise", "priority": priority, "invocation_id": format!("{number:032x}") });
        node.invoke(with(body, more))
    };
    let long = json!({ "input": { "ms": 20_000 } });
    let short = json!({ "input": { "ms": 1 } });
    let in_line = async |count: usize| {
        let queue = async || (node.get("/v1/agents").await.ok()["agents"][0]["status"]["queue"] == count).then_some(());
        eventually("they wait", SETTLE, queue).await;
    };

    let working = async {
        assert_eq!(call(1, "NORMAL", long.clone()).await.status, 499, "it is taken back");
    };
    let asking = async {
        let begun = async || fs::read_to_string(journal).unwrap_or_default().contains("started").then_some(());
        eventually("the agent works", SETTLE, begun).await;
        let waiting = join_all([call(2, "LOW", short.clone()), call(3, "LOW", short.clone())]);
        let more = async {
            in_line(2).await;
            let error = call(4, "LOW", short.clone()).await.refused(429, "BUSY");
            assert!(error["details"]["retry_after_ms"].is_u64(), "{error}");
            assert_eq!(error["message"], "LOW calls of agent `slow` are taken while fewer than 2 of 4 wait (its queue)");
            let urgent = call(5, "HIGH", short.clone());
            let release = async {
                in_line(3).await;
                node.delete(&format!("/v1/invocations/{:032x}", 1)).await.ok();
            };
            let (urgent, ()) = tokio::join!(urgent, release);
            urgent.ok();
        };
        let (waited, ()) = tokio::join!(waiting, more);
        assert!(waited.iter().all(|answer| answer.status == 200), "{waited:?}");
    };
    tokio::join!(working, asking);

    let journal = fs::read_to_string(journal).expect("the agent kept it");
    let begun: Vec<&str> = journal.lines().filter_map(|line| line.strip_prefix("started ")).map(|id| id.trim_start_matches('0')).collect();
    assert_eq!((begun.len(), &begun[..2]), (4, &["1", "5"][..]), "{journal}");
}

/// AITP-5: a stranger is proven by three calls that end well, and not by two.
#[tokio::test]
async fn three_good_calls_prove_an_agent() {
    let node = Node::builder().agent(builtin("echo", "echo")).spawn().await;
    node.knows("echo", &["echo"]).await;
    for (calls, standing) in [(2, "unproven"), (1, "proven")] {
        for number in 0..calls {
            node.call("echo", json!(number)).await;
        }
        let stands = async || (node.get("/v1/trust").await.ok()["agents"][0]["standing"] == standing).then_some(());
        eventually(&format!("it is {standing}"), SETTLE, stands).await;
    }
}

/// MAOP-2, threat T16: what an agent says of itself is shown and found, and puts nobody first.
#[tokio::test]
async fn claims_are_shown_and_searched_and_move_no_ranking() {
    let claims =
        json!({ "score": 1.0, "specializations": ["palimpsests"], "limitations": ["none"], "resource_requirements": { "gpu": true } });
    let boastful = script("boastful", "echo.py", &[], with(json!({ "id": "test.claims" }), claims));
    let modest = script("modest", "echo.py", &[], json!({ "id": "test.claims", "score": 0.0 }));
    let node = Node::builder().agent(boastful).agent(modest).spawn().await;
    node.knows("test.claims", &["boastful", "modest"]).await;

    let rows = node.find("test.claims").await;
    assert_eq!((&rows[0]["score"], &rows[0]["trust"]), (&rows[1]["score"], &rows[1]["trust"]), "{rows:?}");
    let found = node.cli(&["find", "--text", "palimpsests"]).await;
    assert!(found.text().contains("boastful@") && !found.stdout.contains("modest@"), "{found:?}");
    let shown = node.cli(&["agent", "show", "boastful"]).await;
    assert!(shown.text().contains("1 c (its own claim)") && shown.stdout.contains("palimpsests"), "{shown:?}");
}

/// Threat T20: an agent calls in turn through the program, and names the call that it works on by its environment.
#[tokio::test]
async fn an_agent_calls_in_turn_through_the_command_line() {
    const AGENT: &str = "
import json, os, subprocess, sys
for line in sys.stdin:
    call = json.loads(line)
    run = subprocess.run(sys.argv[1:] + [call['input']], env={**os.environ, 'MESHWORK_PARENT': call['id']}, capture_output=True, text=True)
    print(json.dumps({'id': call['id'], 'output': run.stdout + run.stderr}), flush=True)
";
    let node = Node::builder().agent(builtin("echo", "echo")).spawn().await;
    let data_dir = node.data_dir();
    let verb = [env!("CARGO_BIN_EXE_meshwork"), "call", "--api", node.api(), "--data-dir", data_dir.to_str().expect("a plain name")];
    let command: Vec<&str> = ["python3", "-c", AGENT].into_iter().chain(verb).collect();
    let capability = json!({ "id": "test.turn" });
    let definition = json!({ "name": "turner", "adapter": { "type": "process", "command": command }, "capability": [capability] });
    node.post("/v1/agents", &definition).await.ok();
    node.knows("test.turn", &["turner"]).await;

    assert_eq!(node.call("test.turn", json!("echo")).await["output"], "{}\n");
    let circle = node.call("test.turn", json!("test.turn")).await;
    assert!(circle["output"].as_str().is_some_and(|said| said.contains("would close a circle")), "{circle}");
}
