//! `scripts/launch`: a mesh started, looked at and stopped by one command, here and over ssh.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use serde_json::Value;
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, BufReader},
    process::Command,
    time::timeout,
};

use crate::support::{SETTLE, eventually, finished, meshwork, shell};

const REPOSITORY: &str = env!("CARGO_MANIFEST_DIR");

/// Folders for one launch; its nodes are stopped when the value is dropped.
#[derive(Debug)]
struct Launch {
    folder: TempDir,
}

/// A line of the list that the script keeps.
#[derive(Debug)]
struct Listed {
    name: String,
    host: String,
    data_dir: PathBuf,
    api: String,
}

impl Launch {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        // Names that need quoting, at every step of the way.
        fs::create_dir(folder.path().join("bin")).expect("a folder");
        Self { folder }
    }

    fn dir(&self) -> PathBuf {
        self.folder.path().join("it's a mesh")
    }

    /// Where the nodes of hosts keep their data.
    fn remote_dir(&self) -> PathBuf {
        self.folder.path().join("over \"there\"")
    }

    /// The script with arguments that the shell reads; `$DIR`, `$REMOTE` and `$HOSTS` stand for folders and the list.
    fn script(&self, arguments: &str) -> Command {
        let mut command = shell(Path::new(REPOSITORY), Some(&self.folder.path().join("bin")), &format!("exec scripts/launch {arguments}"));
        command.env("DIR", self.dir()).env("REMOTE", self.remote_dir()).env("HOSTS", self.folder.path().join("hosts"));
        command.env("TMPDIR", self.folder.path()).stdin(Stdio::null()).kill_on_drop(true);
        command
    }

    fn listed(&self) -> Vec<Listed> {
        let list = fs::read_to_string(self.dir().join("nodes.tsv")).expect("a list of nodes");
        let listed = |line: &str| {
            let fields: Vec<&str> = line.split('\t').collect();
            let [name, host, folder, api] = fields[..] else { panic!("not a line of the list: {line}") };
            Listed { name: name.to_owned(), host: host.to_owned(), data_dir: Path::new(folder).join("data"), api: api.to_owned() }
        };
        list.lines().map(listed).collect()
    }

    /// An `ssh` that runs the command here and notes the host.
    fn fake_ssh(&self) {
        let file = self.folder.path().join("bin/ssh");
        let text = format!(
            "#!/bin/sh\nwhile [ \"$1\" != -- ]; do shift; done\nshift\necho \"$1\" >>'{}'\nshift\nexec sh -c \"$*\"\n",
            self.folder.path().join("ssh.log").display()
        );
        fs::write(&file, text).expect("the program is written");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).expect("it can be run");
    }

    fn hosts(&self, text: &str) {
        fs::write(self.folder.path().join("hosts"), text).expect("the list is written");
    }
}

impl Drop for Launch {
    fn drop(&mut self) {
        let mut command = self.script("--stop \"$DIR\"");
        // Nobody is left to tell if even this fails.
        let _ = command.as_std_mut().stdout(Stdio::null()).stderr(Stdio::null()).status();
    }
}

impl Listed {
    async fn status(&self) -> Value {
        let data_dir = self.data_dir.to_str().expect("plain names");
        meshwork(&["status", "--json", "--api", &self.api, "--data-dir", data_dir]).await.json()
    }

    async fn sees(&self, peers: u64) {
        let seen = async || (self.status().await["counts"]["peers"] == peers).then_some(());
        eventually(&format!("{} sees {peers} peers", self.name), SETTLE, seen).await;
    }
}

#[tokio::test]
async fn three_local_nodes_are_launched_shown_and_stopped() {
    let launch = Launch::new();

    let launched = finished(&mut launch.script("3 --dir \"$DIR\" --detach")).await;

    let nodes = launch.listed();
    assert_eq!(nodes.iter().map(|node| node.name.as_str()).collect::<Vec<_>>(), ["node-1", "node-2", "node-3"], "{launched:?}");
    for node in &nodes {
        node.sees(2).await;
        let id = node.status().await["node_id"].as_str().expect("an id").to_owned();
        let row = launched.text().lines().find(|line| line.contains(&id)).unwrap_or_else(|| panic!("no row for {id}: {launched:?}"));
        assert!(row.contains(&node.name) && row.contains(&node.api) && row.ends_with("ready"), "{row}");
    }
    let state = finished(&mut launch.script("--state \"$DIR\"")).await;
    assert_eq!(state.text().lines().count(), 4, "{state:?}");
    let again = finished(&mut launch.script("1 --dir \"$DIR\" --detach")).await;
    assert!(again.code == 1 && again.stderr.contains("--stop"), "{again:?}");

    let stopped = finished(&mut launch.script("--stop \"$DIR\"")).await;

    assert_eq!(stopped.text(), "node-3: stopped\nnode-2: stopped\nnode-1: stopped\n");
    for node in &nodes {
        assert_eq!(node.status().await["error"]["code"], "UNAVAILABLE");
    }
    assert!(finished(&mut launch.script("--stop \"$DIR\"")).await.text().starts_with("nothing runs"));
}

#[tokio::test]
async fn a_mesh_that_is_launched_again_keeps_its_keys() {
    let launch = Launch::new();
    finished(&mut launch.script("1 --dir \"$DIR\" --detach")).await.text();
    let before = launch.listed()[0].status().await["node_id"].clone();
    finished(&mut launch.script("--stop \"$DIR\"")).await.text();

    finished(&mut launch.script("1 --dir \"$DIR\" --detach")).await.text();

    assert_eq!(launch.listed()[0].status().await["node_id"], before);
}

#[tokio::test]
async fn nodes_are_launched_on_hosts_over_ssh() {
    let launch = Launch::new();
    launch.fake_ssh();
    // The last line has no end, as editors leave it.
    launch.hosts(
        "# two hosts, one of them twice\nalpha /ip4/127.0.0.1/tcp/0\n\nbeta /ip4/127.0.0.1/tcp/0\nbeta /ip4/127.0.0.1/udp/0/quic-v1",
    );

    let launched = finished(&mut launch.script("--hosts \"$HOSTS\" --remote-dir \"$REMOTE\" --dir \"$DIR\" --detach")).await;

    let nodes = launch.listed();
    let named: Vec<(&str, &str)> = nodes.iter().map(|node| (node.name.as_str(), node.host.as_str())).collect();
    assert_eq!(named, [("alpha", "alpha"), ("beta", "beta"), ("beta-3", "beta")], "{launched:?}");
    for node in &nodes {
        assert!(node.data_dir.starts_with(launch.remote_dir()), "{node:?}");
        node.sees(2).await;
    }
    let stopped = finished(&mut launch.script("--stop \"$DIR\"")).await;
    assert_eq!(stopped.text(), "beta-3: stopped\nbeta: stopped\nalpha: stopped\n");
    let asked = fs::read_to_string(launch.folder.path().join("ssh.log")).expect("ssh was used");
    assert!(asked.contains("alpha\n") && asked.contains("beta\n"), "{asked}");
}

#[tokio::test]
async fn a_launch_that_fails_says_why_and_leaves_nothing_running() {
    let launch = Launch::new();

    let flag = finished(&mut launch.script("2 --dir \"$DIR\" --detach -- --no-such-flag")).await;
    assert!(flag.code == 1 && flag.stderr.contains("--no-such-flag"), "{flag:?}");
    assert!(!launch.dir().join("nodes.tsv").exists());
    launch.fake_ssh();
    launch.hosts("alpha /ip4/127.0.0.1/tcp/0\nbeta nonsense\n");
    let second = finished(&mut launch.script("--hosts \"$HOSTS\" --remote-dir \"$REMOTE\" --dir \"$DIR\" --detach")).await;

    assert!(second.code == 1 && second.stderr.contains("beta did not start"), "{second:?}");
    assert!(second.stdout.contains("alpha: stopped"), "the first is stopped: {second:?}");
    assert!(!launch.dir().join("nodes.tsv").exists());
    for wrong in ["", "0", "99", "two", "3 --hosts x", "3 --nonsense", "--dir"] {
        let output = finished(&mut launch.script(wrong)).await;
        assert!(output.code == 2 && output.stderr.contains("--help"), "{wrong}: {output:?}");
    }
}

#[tokio::test]
async fn ctrl_c_stops_all_and_removes_the_temporary_folder() {
    let launch = Launch::new();
    let mut child = launch.script("2").stdout(Stdio::piped()).spawn().expect("the script starts");
    let mut lines = BufReader::new(child.stdout.take().expect("its output is piped"));
    let mut said = String::new();
    while !said.contains("Ctrl-C stops them") {
        let read =
            timeout(Duration::from_secs(45), lines.read_line(&mut said)).await.expect("the script goes on").expect("it writes UTF-8");
        assert!(read > 0, "the script ended: {said}");
    }

    let pid = child.id().expect("it runs").to_string();
    assert!(std::process::Command::new("kill").args(["-s", "INT", &pid]).status().expect("`kill` runs").success());

    let mut rest = String::new();
    timeout(Duration::from_secs(45), lines.read_to_string(&mut rest)).await.expect("the script ends").expect("it writes UTF-8");
    assert_eq!(child.wait().await.expect("it has ended").code(), Some(130));
    assert!(rest.ends_with("node-2: stopped\nnode-1: stopped\n"), "{rest}");
    let left: Vec<_> = fs::read_dir(launch.folder.path()).expect("a folder").flatten().map(|entry| entry.file_name()).collect();
    assert_eq!(left, ["bin"]);
}
