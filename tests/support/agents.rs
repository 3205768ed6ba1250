//! Agents for the tests: definitions, as JSON for the API and as tables for a file, and the HTTP agent as a process.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
};

use super::wait::within;

/// An agent inside the binary.
pub(crate) fn builtin(name: &str, kind: &str) -> Value {
    json!({ "name": name, "adapter": { "type": "builtin", "kind": kind } })
}

/// An agent that is one of the programs in `tests/support/agents`, with one capability.
pub(crate) fn script(name: &str, file: &str, arguments: &[&str], capability: Value) -> Value {
    let command: Vec<String> =
        ["python3".to_owned(), program(file)].into_iter().chain(arguments.iter().map(|argument| (*argument).to_owned())).collect();
    json!({ "name": name, "adapter": { "type": "process", "command": command }, "capability": [capability] })
}

/// An agent that takes the time it is told to take; it may keep a journal of its calls.
pub(crate) fn slow(name: &str, journal: Option<&Path>) -> Value {
    let journal: Vec<&str> = journal.iter().map(|path| path.to_str().expect("temporary folders have plain names")).collect();
    script(name, "slow.py", &journal, json!({ "id": "test.slow", "idempotent": true }))
}

/// An agent that does what its input lists (`tests/support/agents/stepping.py`) and keeps a journal of its own.
pub(crate) fn stepper(name: &str, home: &Path, capability: Value) -> (Value, Journal) {
    let journal = Journal(home.join(format!("{name}.steps")));
    fs::create_dir_all(&journal.0).expect("a folder for the journal");
    let folder = journal.0.to_str().expect("temporary folders have plain names");
    (script(name, "steps.py", &[name, folder], capability), journal)
}

/// What an agent noted of its calls.
#[derive(Debug)]
pub(crate) struct Journal(PathBuf);

impl Journal {
    /// Its lines: `started ID`, `cancelled ID`, `done ID`.
    pub(crate) fn lines(&self) -> Vec<String> {
        fs::read_to_string(self.0.join("journal")).unwrap_or_default().lines().map(str::to_owned).collect()
    }

    /// How many of its lines begin so.
    pub(crate) fn count(&self, what: &str) -> usize {
        self.lines().iter().filter(|line| line.starts_with(what)).count()
    }

    /// How many numbered chunks its last call has written.
    pub(crate) fn emitted(&self) -> usize {
        fs::read_to_string(self.0.join("emitted")).unwrap_or_default().parse().unwrap_or_default()
    }
}

/// The same definition or capability with further fields.
pub(crate) fn with(mut definition: Value, more: Value) -> Value {
    let fields = definition.as_object_mut().expect("a definition is an object");
    fields.extend(more.as_object().expect("fields are an object").clone());
    definition
}

/// A configuration's `[[agent]]` tables.
pub(super) fn tables(definitions: &[Value]) -> String {
    if definitions.is_empty() {
        return String::new();
    }
    toml::to_string(&json!({ "agent": definitions })).expect("definitions are TOML too")
}

fn program(file: &str) -> String {
    format!("{}/tests/support/agents/{file}", env!("CARGO_MANIFEST_DIR"))
}

/// The agent behind HTTP, running and well.
#[derive(Debug)]
pub(crate) struct HttpAgent {
    folder: TempDir,
    port: u16,
    _child: Child,
}

impl HttpAgent {
    /// Starts it.
    pub(crate) async fn start() -> Self {
        let folder = tempfile::tempdir().expect("a folder for the HTTP agent");
        let mut command = Command::new("python3");
        command.arg(program("http_agent.py")).arg(folder.path()).stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().expect("python3 starts");
        let mut lines = BufReader::new(child.stdout.take().expect("its output is piped")).lines();
        let line = within("the HTTP agent names its port", Duration::from_secs(20), lines.next_line()).await;
        let port = line.expect("its output is readable").expect("it runs").parse().expect("its first line is a port");
        let agent = Self { folder, port, _child: child };
        agent.set_healthy(true);
        agent
    }

    /// Decides what its health endpoint says.
    pub(crate) fn set_healthy(&self, healthy: bool) {
        let file = self.file("healthy");
        if healthy { fs::write(file, "") } else { fs::remove_file(file) }.expect("the health switch is turned");
    }

    /// Has it ask for a bearer token; the path of the file that holds it.
    pub(crate) fn require_token(&self, token: &str) -> PathBuf {
        fs::write(self.file("token"), token).expect("the token is written");
        self.file("token")
    }

    /// The calls that reached it, a line each.
    pub(crate) fn requests(&self) -> String {
        fs::read_to_string(self.file("requests")).unwrap_or_default()
    }

    /// What it noted of the calls of [`HttpAgent::stepper`].
    pub(crate) fn journal(&self) -> Journal {
        Journal(self.folder.path().to_owned())
    }

    /// A definition for it, with one capability.
    pub(crate) fn definition(&self, name: &str, capability: Value) -> Value {
        self.defined(name, "invoke", capability)
    }

    /// The same; it then does what its input lists (`tests/support/agents/stepping.py`).
    pub(crate) fn stepper(&self, name: &str, capability: Value) -> Value {
        self.defined(name, "steps", capability)
    }

    /// The same, but the answer is one body rather than a stream of events.
    pub(crate) fn whole_stepper(&self, name: &str, capability: Value) -> Value {
        self.defined(name, "whole", capability)
    }

    fn defined(&self, name: &str, path: &str, capability: Value) -> Value {
        let base = format!("http://127.0.0.1:{}", self.port);
        let health = json!({ "url": format!("{base}/health"), "interval_ms": 200, "timeout_ms": 1000 });
        let adapter = json!({ "type": "http", "endpoint": format!("{base}/{path}"), "health": health, "allow_private": true });
        json!({ "name": name, "adapter": adapter, "capability": [capability] })
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}
