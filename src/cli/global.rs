//! Which node is meant, and with which right: the flags that every verb has, and what they default to.
//!
//! The API token is looked for in this order: `MESHWORK_TOKEN`, then the file `api-token` of the data directory, which is `--data-dir`,
//! else `MESHWORK_DATA_DIR`, else `meshwork` in the user's data folder. The environment is read once and carried along as a value, so
//! that tests choose their own and no verb reads it behind another's back.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    fmt,
    path::PathBuf,
};

use serde_json::Value;
use zeroize::Zeroizing;

use super::{error::CliError, output::Screen};
use crate::{config::data_dir_default, store::read_token};

/// Where a node's API listens unless it is told otherwise.
pub(crate) const API_DEFAULT: &str = "http://127.0.0.1:7480";

/// The flags of every verb.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Global {
    /// Print one JSON document, the same as the node's HTTP API gives.
    #[arg(long, global = true, display_order = 900)]
    pub(crate) json: bool,

    /// The node to talk to, as a URL or HOST:PORT [env: MESHWORK_API] [default: http://127.0.0.1:7480].
    #[arg(long, global = true, value_name = "URL", display_order = 901)]
    pub(crate) api: Option<String>,

    /// The node's data directory, where its API token is [env: MESHWORK_DATA_DIR] [default: ~/.local/share/meshwork].
    #[arg(long, global = true, value_name = "DIR", display_order = 902)]
    pub(crate) data_dir: Option<PathBuf>,

    /// The environment as it was when the program started.
    #[arg(skip = Environment::of_process())]
    pub(crate) env: Environment,

    /// Where answers go.
    #[arg(skip)]
    pub(crate) screen: Screen,
}

impl Global {
    /// The node to talk to, as it was written.
    pub(crate) fn api(&self) -> String {
        let asked = self.api.clone().or_else(|| self.env.text("MESHWORK_API"));
        asked.unwrap_or_else(|| API_DEFAULT.to_owned())
    }

    /// The node's data directory.
    ///
    /// # Errors
    /// When nothing names one and the user has no home.
    pub(crate) fn data_dir(&self) -> Result<PathBuf, CliError> {
        let named = self.data_dir.clone().or_else(|| self.env.path("MESHWORK_DATA_DIR"));
        named
            .or_else(|| data_dir_default(|name| self.env.text(name)))
            .ok_or_else(|| CliError::usage("no data directory: HOME is not set").hint("name one with --data-dir DIR or MESHWORK_DATA_DIR"))
    }

    /// The API token of the node.
    ///
    /// # Errors
    /// When there is none, with the places where one was looked for.
    pub(crate) fn token(&self) -> Result<Token, CliError> {
        if let Some(text) = self.env.text("MESHWORK_TOKEN") {
            return Token::from_env(&text);
        }
        let file = self.data_dir()?.join("api-token");
        match read_token(&file) {
            Ok(Some(secret)) => Ok(Token { secret, origin: file.display().to_string() }),
            Ok(None) => {
                let message = format!("no API token: MESHWORK_TOKEN is not set and {} does not exist", file.display());
                let hint = "a node writes its token when it starts (`meshwork up`); if it keeps its data elsewhere, pass --data-dir DIR";
                Err(CliError::usage(message).hint(hint))
            }
            Err(error) => Err(CliError::usage(format!("failed to {error}"))),
        }
    }

    /// Whether stdout may be coloured.
    pub(crate) fn colour(&self) -> bool {
        self.screen.out_is_terminal() && self.env.text("NO_COLOR").is_none()
    }

    /// Prints an answer: with `--json` the document itself, else what `text` makes of it.
    ///
    /// # Errors
    /// Those of `text` and of writing.
    pub(crate) fn answer(&self, document: &Value, text: impl FnOnce() -> Result<String, CliError>) -> Result<(), CliError> {
        if self.json { self.screen.json(document) } else { self.screen.out(&text()?) }
    }
}

/// The secret that a node asks its clients for.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Token {
    /// The secret itself.
    pub(crate) secret: Zeroizing<String>,
    /// Where it was found, for messages.
    pub(crate) origin: String,
}

impl Token {
    fn from_env(text: &str) -> Result<Self, CliError> {
        let secret = text.trim();
        // Anything else could not stand in a header, and would be reported as a broken request.
        if secret.is_empty() || !secret.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(CliError::usage("MESHWORK_TOKEN is not a token: it may hold visible ASCII characters only"));
        }
        Ok(Self { secret: Zeroizing::new(secret.to_owned()), origin: "MESHWORK_TOKEN".to_owned() })
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token(from {})", self.origin)
    }
}

/// The variables of the environment that the command line listens to; a variable that is set to nothing counts as not set.
#[derive(Clone, Default)]
pub(crate) struct Environment(BTreeMap<String, OsString>);

impl Environment {
    fn of_process() -> Self {
        std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value))).collect()
    }

    /// A variable as text.
    pub(crate) fn text(&self, name: &str) -> Option<String> {
        self.get(name).map(|value| value.to_string_lossy().into_owned())
    }

    fn path(&self, name: &str) -> Option<PathBuf> {
        self.get(name).map(PathBuf::from)
    }

    fn get(&self, name: &str) -> Option<&OsStr> {
        self.0.get(name).map(OsString::as_os_str).filter(|value| !value.is_empty())
    }

    /// Every variable that is text.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().filter_map(|(name, value)| Some((name.as_str(), value.to_str()?)))
    }
}

impl<N: Into<String>, V: Into<OsString>> FromIterator<(N, V)> for Environment {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(variables: I) -> Self {
        Self(variables.into_iter().map(|(name, value)| (name.into(), value.into())).collect())
    }
}

impl fmt::Debug for Environment {
    /// Names alone: values may be secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{cli::error::Exit, store::DataDir};

    fn global(env: &[(&str, &str)]) -> Global {
        let env = env.iter().map(|(name, value)| (*name, *value)).collect();
        Global { json: false, api: None, data_dir: None, env, screen: Screen::memory() }
    }

    #[test]
    fn the_flag_outranks_the_environment_and_both_the_default() {
        let mut global = global(&[("MESHWORK_API", "10.0.0.1:1"), ("MESHWORK_DATA_DIR", "/env"), ("HOME", "/home/x")]);
        assert_eq!(global.api(), "10.0.0.1:1");
        assert_eq!(global.data_dir(), Ok(PathBuf::from("/env")));
        global.api = Some("localhost:2".to_owned());
        global.data_dir = Some(PathBuf::from("/flag"));
        assert_eq!(global.api(), "localhost:2");
        assert_eq!(global.data_dir(), Ok(PathBuf::from("/flag")));
    }

    #[test]
    fn the_default_data_directory_follows_the_xdg_folders() {
        assert_eq!(global(&[("HOME", "/h")]).data_dir(), Ok(PathBuf::from("/h/.local/share/meshwork")));
        assert_eq!(global(&[("HOME", "/h"), ("XDG_DATA_HOME", "/x")]).data_dir(), Ok(PathBuf::from("/x/meshwork")));
        assert_eq!(global(&[("HOME", "/h"), ("XDG_DATA_HOME", "")]).data_dir(), Ok(PathBuf::from("/h/.local/share/meshwork")));
        assert_eq!(global(&[]).data_dir().expect_err("nowhere").exit(), Exit::Usage);
    }

    #[test]
    fn the_token_is_found_in_the_environment_before_the_data_directory() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut global = global(&[]);
        global.data_dir = Some(folder.path().to_owned());
        let missing = global.token().expect_err("no file");
        assert_eq!(missing.exit(), Exit::Usage);
        assert!(missing.message().is_some_and(|message| message.contains("api-token")), "{missing:?}");

        let made = DataDir::open(folder.path()).expect("opens").keys().api_token(None).expect("made");
        assert_eq!(global.token().map(|token| token.secret), Ok(made));
        global.env = [("MESHWORK_TOKEN", "from-env")].into_iter().collect();
        assert_eq!(global.token().map(|token| token.secret.to_string()), Ok("from-env".to_owned()));
    }

    #[test]
    fn neither_token_nor_environment_shows_its_secrets() {
        let global = global(&[("MESHWORK_TOKEN", "hush")]);
        assert!(!format!("{global:?} {:?}", global.token()).contains("hush"));
    }

    #[test]
    fn a_token_that_could_break_a_header_is_refused() {
        assert_eq!(global(&[("MESHWORK_TOKEN", "a\r\nHost: b")]).token().expect_err("two lines").exit(), Exit::Usage);
    }
}
