//! The rules of the house, as tests: what may import what, what each file says about itself, what has no place where.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Which layers each layer may know. A layer that is missing here may know none.
const MAY_KNOW: [(&str, &[&str]); 12] = [
    ("model", &[]),
    ("wire", &["model"]),
    ("proto", &["model", "wire"]),
    ("telemetry", &["model"]),
    ("config", &["model"]),
    ("store", &["model"]),
    ("agents", &["model", "wire"]),
    ("mesh", &["model", "wire", "proto"]),
    ("node", &["model", "wire", "proto", "telemetry", "config", "store", "agents", "mesh"]),
    ("api", &["model", "node"]),
    ("cli", &["model", "node", "api", "config", "store", "telemetry"]),
    ("main", &["cli"]),
];

/// Lines before the tests at which a file should be asked which two nouns it holds.
const LINES_MAX: usize = 800;

/// Crates that the core must build without.
const DENIED_IN_CORE: [&str; 8] = ["tokio", "libp2p", "libp2p-swarm", "sled", "axum", "reqwest", "mio", "clap"];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn files(below: &str, ending: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(below)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
            let path = entry.expect("a readable entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.to_string_lossy().ends_with(ending) {
                found.push(path);
            }
        }
    }
    found.sort();
    assert!(!found.is_empty(), "no {ending} files below {below}");
    found
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn shown(path: &Path) -> String {
    path.strip_prefix(root()).expect("below the root").display().to_string()
}

/// The first folder below `src`, or the file's own name there.
fn layer(path: &Path) -> String {
    let inside = path.strip_prefix(root().join("src")).expect("below src");
    let first = inside.iter().next().expect("a name").to_string_lossy().into_owned();
    first.trim_end_matches(".rs").to_owned()
}

/// Lines of code before the tests, without comments.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let numbered = text.lines().enumerate().map(|(at, line)| (at + 1, line));
    numbered.take_while(|(_, line)| !line.trim_start().starts_with("#[cfg(test)]")).filter(|(_, line)| !line.trim_start().starts_with("//"))
}

#[test]
fn imports_flow_one_way() {
    let may_know: BTreeMap<&str, &[&str]> = MAY_KNOW.into_iter().collect();
    let mut faults = Vec::new();
    for path in files("src", ".rs") {
        let layer = layer(&path);
        if layer == "lib" {
            continue;
        }
        let allowed = may_know.get(layer.as_str()).unwrap_or_else(|| panic!("`{layer}` has no place in the house; see MAY_KNOW"));
        for (number, line) in code(&read(&path)) {
            for place in line.match_indices("crate::") {
                let rest = &line[place.0 + place.1.len()..];
                let known: String = rest.chars().take_while(|c| c.is_ascii_lowercase() || *c == '_').collect();
                let is_layer = MAY_KNOW.iter().any(|(name, _)| *name == known);
                if is_layer && known != layer && !allowed.contains(&known.as_str()) {
                    faults.push(format!("{}:{number}: `{layer}` must not know `{known}`", shown(&path)));
                }
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn every_file_begins_with_a_header() {
    let without: Vec<String> = ["src", "tests/bench/src"]
        .iter()
        .flat_map(|folder| files(folder, ".rs"))
        .filter(|path| !read(path).starts_with("//! ") && !path.ends_with("tests.rs"))
        .map(|path| shown(&path))
        .collect();
    assert!(without.is_empty(), "no `//!` header: {without:?}");
}

#[test]
fn decisions_read_no_clock_and_draw_no_luck() {
    let banned = [
        "Instant::now",
        "SystemTime",
        "thread_rng",
        "rand::rng()",
        "from_os_rng",
        "tokio::",
        "HashMap",
        "HashSet",
        "std::fs",
        "std::net::Tcp",
        "std::env",
    ];
    let mut faults = Vec::new();
    for path in ["src/model", "src/wire", "src/proto"].iter().flat_map(|folder| files(folder, ".rs")) {
        for (number, line) in code(&read(&path)) {
            faults.extend(banned.iter().filter(|word| line.contains(**word)).map(|word| format!("{}:{number}: {word}", shown(&path))));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn only_one_file_names_swarm_events() {
    let naming: BTreeSet<String> = files("src", ".rs")
        .iter()
        .filter(|path| code(&read(path)).any(|(_, line)| line.contains("SwarmEvent")))
        .map(|path| shown(path))
        .collect();
    assert_eq!(naming, BTreeSet::from(["src/mesh/inbound.rs".to_owned()]));
}

#[test]
fn no_file_holds_two_nouns() {
    let long = |path: &PathBuf| {
        let text = read(path);
        let lines = text.lines().take_while(|line| !line.starts_with("#[cfg(test)]")).count();
        (lines > LINES_MAX && !path.ends_with("tests.rs")).then(|| format!("{} has {lines} lines before its tests", shown(path)))
    };
    let long: Vec<String> = files("src", ".rs").iter().filter_map(long).collect();
    assert!(long.is_empty(), "over {LINES_MAX}: {long:?}");
}

#[test]
fn nothing_is_left_unfinished_and_no_test_sleeps() {
    let unfinished =
        [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X:"), concat!("todo", "!("), concat!("unimplemented", "!(")];
    let mut faults = Vec::new();
    for path in ["src", "tests", "scripts", "node-config"].iter().flat_map(|folder| files(folder, "")) {
        let Ok(text) = fs::read_to_string(&path) else { continue };
        let is_test = shown(&path).starts_with("tests/") && !shown(&path).starts_with("tests/bench/");
        let sleeps = is_test && path.extension().is_some_and(|ending| ending == "rs");
        for (number, line) in text.lines().enumerate() {
            let place = format!("{}:{}", shown(&path), number + 1);
            faults.extend(unfinished.iter().filter(|mark| line.contains(**mark)).map(|mark| format!("{place}: {mark}")));
            if sleeps && line.contains(concat!("sle", "ep(")) {
                faults.push(format!("{place}: sleeps"));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn the_core_builds_without_a_runtime() {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let arguments = ["tree", "--edges", "normal", "--no-default-features", "--prefix", "none", "--format", "{p}", "--offline", "--locked"];
    let tree = Command::new(cargo).args(arguments).current_dir(root()).output().expect("cargo runs");
    assert!(tree.status.success(), "{}", String::from_utf8_lossy(&tree.stderr));
    let names: BTreeSet<String> =
        String::from_utf8_lossy(&tree.stdout).lines().filter_map(|line| line.split(' ').next().map(str::to_owned)).collect();
    let denied: Vec<&&str> = DENIED_IN_CORE.iter().filter(|name| names.contains(**name)).collect();
    assert!(denied.is_empty(), "the core depends on {denied:?}");
}

#[test]
fn security_floors_hold() {
    let floors = [
        ("libp2p", [0, 57, 1]),
        ("libp2p-gossipsub", [0, 50, 1]),
        ("yamux", [0, 14, 0]),
        ("quinn-proto", [0, 11, 15]),
        ("h2", [0, 4, 16]),
        ("ed25519-dalek", [3, 0, 0]),
    ];
    let lock: toml::Table = read(&root().join("Cargo.lock")).parse().expect("a lock file");
    for package in lock["package"].as_array().expect("packages") {
        let (name, version) = (package["name"].as_str().expect("a name"), package["version"].as_str().expect("a version"));
        for (floored, floor) in floors.iter().filter(|(floored, _)| *floored == name) {
            let numbers: Vec<u64> = version.split(['.', '-', '+']).take(3).map(|part| part.parse().unwrap_or(0)).collect();
            assert!(numbers >= floor.to_vec(), "{floored} {version} is older than {floor:?}");
        }
    }
}

#[test]
fn every_configuration_parses() {
    for path in files("node-config", ".toml") {
        let parsed = meshwork::config::Config::parse(&read(&path), &shown(&path));
        assert!(parsed.is_ok(), "{}: {:?}", shown(&path), parsed.err());
    }
}

#[test]
fn scripts_can_be_run() {
    for script in ["scripts/test", "scripts/demo", "scripts/launch", "scripts/fuzz", "tests/bench/run", ".ci/run"] {
        let mode = fs::metadata(root().join(script)).unwrap_or_else(|error| panic!("{script}: {error}")).permissions().mode();
        assert_eq!(mode & 0o111, 0o111, "{script} has no run bit");
    }
}
