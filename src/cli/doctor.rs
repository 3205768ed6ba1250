//! `meshwork doctor`: what is wrong and how to mend it.
//!
//! The first checks need no node, so they also help when none answers: are the data directory and the token kept from other users, does
//! something answer at the address, is the token accepted. A node that answers adds its own checks. Any `fail` makes the exit code 1.

use std::{fs, io, path::Path};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    CliError, Global,
    client::{Client, read},
    error::Exit,
};
use crate::model::printable;

/// How much of a message is shown, in characters.
const MESSAGE_CHARS_MAX: usize = 400;

/// Arguments of `doctor`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  meshwork doctor || echo 'something fails'")]
pub(crate) struct Args {}

/// How bad it is. A level that this build does not know is shown and does not fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Level {
    Ok,
    Fail,
    #[serde(other)]
    Warn,
}

/// One thing that was looked at.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Check {
    name: String,
    level: Level,
    message: String,
    remedy: Option<String>,
}

impl Check {
    fn new(name: &str, level: Level, message: impl Into<String>) -> Self {
        Self { name: name.to_owned(), level, message: message.into(), remedy: None }
    }

    fn remedy(self, remedy: impl Into<String>) -> Self {
        Self { remedy: Some(remedy.into()), ..self }
    }

    fn failed(name: &str, error: &CliError) -> Self {
        let check = Self::new(name, Level::Fail, error.message().unwrap_or_default());
        match error.suggestion() {
            Some(suggestion) => check.remedy(suggestion),
            None => check,
        }
    }
}

#[derive(Debug, Deserialize)]
struct Report {
    checks: Vec<Check>,
}

/// Looks at everything and says what it found.
pub(crate) async fn run(Args {}: Args, global: &Global) -> Result<(), CliError> {
    let mut checks = Vec::new();
    checks.extend(data_directory(global));
    checks.push(token(global));
    checks.extend(node(global).await);
    let failed = checks.iter().any(|check| check.level == Level::Fail);
    global.answer(&json!({ "checks": checks }), || Ok(text(&checks, global.colour())))?;
    if failed { Err(CliError::reported(Exit::Refused)) } else { Ok(()) }
}

fn data_directory(global: &Global) -> Option<Check> {
    const NAME: &str = "data directory";
    let folder = match global.data_dir() {
        Ok(folder) => folder,
        Err(error) => return Some(Check::failed(NAME, &error)),
    };
    match exposed(&folder) {
        // Whoever brings a token along may well look at a node on another machine.
        Err(error) if error.kind() == io::ErrorKind::NotFound && global.env.text("MESHWORK_TOKEN").is_some() => None,
        Err(error) => Some(
            Check::new(NAME, Level::Fail, format!("{}: {error}", folder.display()))
                .remedy("`meshwork up` makes it; name another with --data-dir DIR or MESHWORK_DATA_DIR"),
        ),
        Ok(Some(mode)) => Some(
            Check::new(NAME, Level::Warn, format!("{} is open to other users of this machine (mode {mode:03o})", folder.display()))
                .remedy(format!("chmod 700 {}", folder.display())),
        ),
        Ok(None) => Some(Check::new(NAME, Level::Ok, format!("{} is this user's alone", folder.display()))),
    }
}

fn token(global: &Global) -> Check {
    match global.token() {
        Ok(token) => Check::new("token", Level::Ok, format!("found in {}", token.origin)),
        Err(error) => Check::failed("token", &error),
    }
}

async fn node(global: &Global) -> Vec<Check> {
    let mut checks = Vec::new();
    let client = match Client::without_token(global) {
        Ok(client) => client,
        Err(error) => return vec![Check::failed("address", &error)],
    };
    if let Err(error) = client.reach().await {
        return vec![Check::failed("reachable", &error)];
    }
    checks.push(Check::new("reachable", Level::Ok, format!("a node answers at {}", client.address())));
    let Ok(client) = Client::new(global) else {
        // The missing token has a check of its own.
        return checks;
    };
    match client.get(&["v1", "node"], &[]).await {
        Err(error) => {
            checks.push(Check::failed("token accepted", &error));
            return checks;
        }
        Ok(answer) => {
            checks.push(Check::new("token accepted", Level::Ok, "the node accepts it"));
            checks.extend(version(&answer));
        }
    }
    match client.get(&["v1", "doctor"], &[]).await.and_then(|answer| read::<Report>(&answer)) {
        Ok(report) => checks.extend(report.checks),
        Err(error) => checks.push(Check::failed("the node's own checks", &error)),
    }
    checks
}

/// Warns when the node and this program are of different builds.
fn version(node: &Value) -> Option<Check> {
    let theirs = node.get("version").and_then(Value::as_str)?;
    let ours = env!("CARGO_PKG_VERSION");
    (theirs != ours).then(|| {
        Check::new("version", Level::Warn, format!("the node runs {theirs}, this program is {ours}"))
            .remedy("restart the node with this program")
    })
}

/// The permission bits of a file or folder if others than its owner have any.
fn exposed(path: &Path) -> io::Result<Option<u32>> {
    mode(path).map(|mode| Some(mode).filter(|mode| mode & 0o077 != 0))
}

/// The permission bits of a file or folder.
#[cfg(unix)]
pub(super) fn mode(path: &Path) -> io::Result<u32> {
    use std::os::unix::fs::PermissionsExt as _;
    fs::metadata(path).map(|metadata| metadata.permissions().mode() & 0o777)
}

/// Other systems guard a user's folders by other means; here it only has to exist.
#[cfg(not(unix))]
pub(super) fn mode(path: &Path) -> io::Result<u32> {
    fs::metadata(path).map(|_| 0o600)
}

fn text(checks: &[Check], colour: bool) -> String {
    let mut text = String::new();
    for check in checks {
        let (word, paint) = match check.level {
            Level::Ok => ("ok  ", "32"),
            Level::Warn => ("warn", "33"),
            Level::Fail => ("FAIL", "31"),
        };
        let word = if colour { format!("\u{1b}[{paint}m{word}\u{1b}[0m") } else { word.to_owned() };
        let shown = |text: &str| printable(text, MESSAGE_CHARS_MAX);
        text += &format!("{word}  {}: {}\n", shown(&check.name), shown(&check.message));
        if let Some(remedy) = &check.remedy {
            text += &format!("      {}\n", shown(remedy));
        }
    }
    text
}
