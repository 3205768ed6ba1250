//! The program as people run it.

use std::{
    env,
    ffi::{OsStr, OsString},
    fs::{self, File},
    iter,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use serde_json::Value;
use tempfile::TempDir;
use tokio::process::{Child, Command};

use super::wait::{SETTLE, eventually, within};

/// How long a verb may take.
const VERB: Duration = Duration::from_secs(45);

/// What a finished run left.
#[derive(Debug)]
pub(crate) struct Output {
    /// The exit code; -1 after a signal.
    pub(crate) code: i32,
    /// Standard output.
    pub(crate) stdout: String,
    /// Standard error.
    pub(crate) stderr: String,
}

impl Output {
    /// Standard output of a run that must have ended well.
    #[track_caller]
    pub(crate) fn text(&self) -> &str {
        assert_eq!(self.code, 0, "{self:?}");
        &self.stdout
    }

    /// The one JSON document on standard output.
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("standard output is not one JSON document: {error}: {self:?}"))
    }
}

/// A verb that runs, and the files that it writes to.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) child: Child,
    folder: TempDir,
}

impl Running {
    /// Starts it.
    pub(crate) fn start(command: &mut Command) -> Self {
        let folder = tempfile::tempdir().expect("a folder for what it says");
        let file = |name: &str| Stdio::from(File::create(folder.path().join(name)).expect("the file is made"));
        let child = command.stdout(file("out")).stderr(file("err")).spawn().expect("the program starts");
        Self { child, folder }
    }

    /// What it has written to this stream so far, `out` or `err`.
    pub(crate) fn said(&self, stream: &str) -> String {
        String::from_utf8_lossy(&fs::read(self.folder.path().join(stream)).expect("the file is there")).into_owned()
    }

    /// Waits until it has said this.
    pub(crate) async fn until(&self, words: &str) {
        let said = async || ["out", "err"].iter().any(|stream| self.said(stream).contains(words)).then_some(());
        eventually(&format!("the program says `{words}`"), SETTLE, said).await;
    }

    /// Waits for its end.
    pub(crate) async fn end(mut self) -> Output {
        let status = within("the program ends", SETTLE * 2, self.child.wait()).await.expect("the process is waited for");
        Output { code: status.code().unwrap_or(-1), stdout: self.said("out"), stderr: self.said("err") }
    }
}

/// The program with an environment that says nothing about nodes.
pub(super) fn program() -> Command {
    without_nodes(Command::new(env!("CARGO_BIN_EXE_meshwork")))
}

/// The program, started by a shell that does `prelude` first and then becomes it.
pub(super) fn program_after(prelude: &str) -> Command {
    let mut command = without_nodes(Command::new("sh"));
    command.args(["-eu", "-c", &format!("{prelude}\nexec \"$0\" \"$@\""), env!("CARGO_BIN_EXE_meshwork")]);
    command
}

fn without_nodes(mut command: Command) -> Command {
    for (name, _) in env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("MESHWORK_")) {
        command.env_remove(name);
    }
    command.stdin(Stdio::null()).kill_on_drop(true);
    command
}

/// Runs the program to its end.
pub(crate) async fn meshwork<S: AsRef<OsStr>>(arguments: &[S]) -> Output {
    finished(program().args(arguments)).await
}

/// A script for `sh` in this folder, with the program on its path after what stands in `tools`.
pub(crate) fn shell(folder: &Path, tools: Option<&Path>, script: &str) -> Command {
    let built = Path::new(env!("CARGO_BIN_EXE_meshwork")).parent().expect("the program lies in a folder");
    let others: Vec<PathBuf> = env::split_paths(&env::var_os("PATH").unwrap_or_default()).collect();
    let path = tools.into_iter().chain(iter::once(built)).map(Path::to_owned).chain(others);
    let path: OsString = env::join_paths(path).expect("folders on the path have plain names");
    let mut command = without_nodes(Command::new("sh"));
    command.args(["-eu", "-c", script]).current_dir(folder).env("PATH", path);
    command
}

/// Runs a command to its end.
pub(crate) async fn finished(command: &mut Command) -> Output {
    let run = command.stdout(Stdio::piped()).stderr(Stdio::piped()).output();
    let output = within("the program ends", VERB, run).await.expect("the program starts");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("the program writes UTF-8");
    Output { code: output.status.code().unwrap_or(-1), stdout: text(output.stdout), stderr: text(output.stderr) }
}
