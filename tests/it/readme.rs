//! The README, held to its word: its commands are run as they are written, its map and its tables are compared with what is there.
//!
//! A block of commands is marked in the text above it: `tested: NAME` is run here, `not tested: REASON` is not. A machine of the README is
//! a home folder here; only addresses differ, since two machines have to share one.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use meshwork::{api::http_status, model::ErrorCode};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines},
    process::{Child, ChildStdout, Command},
    time::timeout,
};

use crate::support::{SETTLE, eventually, finished, shell};

const README: &str = include_str!("../../README.md");
const REPOSITORY: &str = env!("CARGO_MANIFEST_DIR");
/// The blocks that the tests below run.
const TESTED: [&str; 9] = ["demo", "up-a", "up-b", "add", "find-and-call", "look-around", "http", "launch", "config"];
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
        let mut script = marked(&format!("tested: {name}"));
        if let Some(api) = &self.api {
            script = script.replace("http://127.0.0.1:7480", api);
        }
        finished(&mut self.shell(&script)).await.text().to_owned()
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
    let said = b.up(&up_b.replace(shown, &address), &[]).await;
    assert!(said.iter().any(|line| line.contains("1 peers")), "{said:?}");

    a.write("word_count.py");
    a.write("word-counter.toml");
    let added = a.run("add").await;
    assert!(added.starts_with("added word-counter@") && added.contains("available"), "{added}");
    let known = async || finished(&mut b.shell("meshwork find word-count")).await.text().contains("word-counter@").then_some(());
    eventually("B knows the agent", SETTLE, known).await;
    let called = b.run("find-and-call").await;
    assert!(called.contains("0.001 USD/request c") && called.ends_with("{\"characters\":13,\"words\":3}\n"), "{called}");
    let looked = b.run("look-around").await;
    assert!(looked.contains("0 here, 1 in the mesh") && looked.contains("word-counter@"), "{looked}");
    let answer: serde_json::Value = serde_json::from_str(&b.run("http").await).expect("one JSON document");
    assert_eq!((&answer["status"], &answer["output"]["words"]), (&"success".into(), &3.into()), "{answer}");
}

#[tokio::test]
async fn the_demo_runs() {
    let shown = Machine::new().run("demo").await;

    for step in ["pdf_text_extraction", "text-analysis", "summarization", "total cost", "summary"] {
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
