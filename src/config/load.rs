//! How the layers become one configuration: defaults, then the file, then the environment, then flags.
//!
//! Every layer is taken apart into single settings, each with the place it was written at; a later layer replaces what an earlier one
//! said about the same key, lists included. Only what is left at the end is checked, so a flag can mend a file. Each setting is read on
//! its own before all are read together, which is what lets one run report every fault and not only the first.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use serde::Deserialize;
use toml::{
    Spanned, Table, Value,
    de::{DeTable, DeValue, ValueDeserializer},
};

use super::{
    Config, Error, Place, agents, check,
    error::Faults,
    keys::{self, Shape},
};
use crate::model;

/// How large a configuration file may be.
const FILE_BYTES_MAX: u64 = 1_048_576;

/// How many mistakes of syntax are reported: later ones tend to follow from the first.
const SYNTAX_FAULTS_MAX: usize = 4;

/// How long a node's name is, in characters.
pub(super) const NAME_CHARS_MAX: usize = 64;

/// The settings whose relative paths mean "beside the file".
const PATHS: [&str; 2] = ["node.data_dir", "api.token_file"];

/// Where a configuration comes from.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// The node-config file, if one was named; at most 1 MiB of TOML.
    pub file: Option<PathBuf>,
    /// The environment. `MESHWORK_SECTION__KEY` and `MESHWORK_DATA_DIR` are settings; `HOME`, `XDG_DATA_HOME` and `HOSTNAME` serve defaults.
    pub env: BTreeMap<String, String>,
    /// The command line.
    pub flags: Flags,
}

/// What the command line of `up` can say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Flags {
    /// `--data-dir`: sets `node.data_dir`.
    pub data_dir: Option<PathBuf>,
    /// `--listen`, repeated: replaces `mesh.listen` unless empty.
    pub listen: Vec<String>,
    /// `--join`, repeated: replaces `mesh.join` unless empty.
    pub join: Vec<String>,
    /// `--api`: sets `api.listen`.
    pub api: Option<String>,
    /// `--name`: sets `node.name`.
    pub name: Option<String>,
}

impl Config {
    /// The configuration that these sources give together.
    ///
    /// # Errors
    /// If the file cannot be read, or settings are wrong; all faults that can be found are in the error.
    pub fn load(sources: Sources) -> Result<Self, Error> {
        let mut layers = Layers::new();
        if let Some(path) = &sources.file {
            layers.add_file(&read(path)?, &path.display().to_string(), path.parent());
        }
        layers.add_env(&sources.env);
        layers.add_flags(&sources.flags);
        layers.finish(|name| sources.env.get(name).cloned())
    }

    /// The configuration that a text gives alone, for checking; `origin` is the name that faults carry. Relative paths stay as written.
    ///
    /// # Errors
    /// If settings are wrong; all faults that can be found are in the error.
    pub fn parse(text: &str, origin: &str) -> Result<Self, Error> {
        let mut layers = Layers::new();
        layers.add_file(text, origin, None);
        layers.finish(|name| std::env::var(name).ok())
    }
}

fn read(path: &Path) -> Result<String, Error> {
    let fail = |source: io::Error| Error::Read { path: path.to_owned(), source };
    let mut text = String::new();
    File::open(path).map_err(fail)?.take(FILE_BYTES_MAX + 1).read_to_string(&mut text).map_err(fail)?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(Error::TooLarge { path: path.to_owned(), bytes_max: FILE_BYTES_MAX });
    }
    Ok(text)
}

/// The data directory of a node that is told none: `$XDG_DATA_HOME/meshwork`, else `$HOME/.local/share/meshwork`; `None` without either.
pub fn data_dir_default(env: impl Fn(&str) -> Option<String>) -> Option<PathBuf> {
    // The base directory specification has relative paths ignored.
    let absolute = |name: &str| env(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let base = absolute("XDG_DATA_HOME").or_else(|| absolute("HOME").map(|home| home.join(".local/share")));
    base.map(|base| base.join("meshwork"))
}

/// What the machine calls itself, fit to be shown.
fn host_name(env: impl Fn(&str) -> Option<String>) -> String {
    let files = ["/proc/sys/kernel/hostname", "/etc/hostname"];
    let from_file = files.iter().find_map(|path| std::fs::read_to_string(path).ok().filter(|text| !text.trim().is_empty()));
    let name = from_file.or_else(|| env("HOSTNAME")).unwrap_or_default();
    let name: String = name.trim().chars().filter(|c| !c.is_control() && !c.is_whitespace()).take(NAME_CHARS_MAX).collect();
    if name.is_empty() { "node".to_owned() } else { name }
}

/// One setting as one layer wrote it.
#[derive(Debug, Clone)]
struct Leaf {
    value: Value,
    place: Place,
    /// The environment's text, which may have been meant as it stands although it also reads as a number.
    text: Option<String>,
}

/// The settings seen so far, by dotted key.
#[derive(Debug)]
struct Layers {
    shape: Shape,
    leaves_by_key: BTreeMap<String, Leaf>,
    agents: Vec<model::Definition>,
    faults: Faults,
}

impl Layers {
    fn new() -> Self {
        Self { shape: keys::sections(), leaves_by_key: BTreeMap::new(), agents: Vec::new(), faults: Faults::default() }
    }

    fn add_file(&mut self, text: &str, name: &str, folder: Option<&Path>) {
        let place = |offset: usize| Place::File { name: name.to_owned(), line: line_of(text, offset) };
        let (table, errors) = DeTable::parse_recoverable(text);
        for error in errors.iter().take(SYNTAX_FAULTS_MAX) {
            let problem = format!("not TOML: {}", model::printable(error.message(), 200));
            self.faults.add("", problem, None, error.span().map(|span| place(span.start)));
        }
        if !errors.is_empty() {
            return;
        }
        let mut table = table.into_inner();
        if let Some(rows) = table.remove("agent") {
            self.agents = agents::read(&rows, folder, &place, &mut self.faults);
        }
        let shape = self.shape.clone();
        self.add_table(&table, "", &shape, folder, &place);
    }

    fn add_table(&mut self, table: &DeTable<'_>, prefix: &str, shape: &Shape, folder: Option<&Path>, place: &impl Fn(usize) -> Place) {
        for (key, value) in table {
            let (written, path) = (place(key.span().start), keys::join(prefix, key.get_ref()));
            match (shape.get(key.get_ref()), value.get_ref()) {
                (None, _) => self.add_unknown(prefix, key.get_ref(), shape, written),
                (Some(below @ Shape::Table(_)), DeValue::Table(table)) => self.add_table(table, &path, below, folder, place),
                (Some(Shape::Table(_)), _) => {
                    self.faults.add(&path, "is a section, not a value", Some(format!("write [{path}] and its keys below")), Some(written));
                }
                (Some(Shape::Leaf | Shape::Rows(_)), _) => self.add_value(path, value, folder, written),
            }
        }
    }

    fn add_value(&mut self, path: String, value: &Spanned<DeValue<'_>>, folder: Option<&Path>, place: Place) {
        let mut value = match Value::deserialize(ValueDeserializer::from(value.clone())) {
            Ok(value) => value,
            Err(error) => return self.faults.add(&path, model::printable(error.message(), 200), None, Some(place)),
        };
        if let (true, Some(folder), Value::String(text)) = (PATHS.contains(&path.as_str()), folder, &mut value) {
            *text = beside(folder, text);
        }
        self.leaves_by_key.insert(path, Leaf { value, place, text: None });
    }

    fn add_unknown(&mut self, prefix: &str, key: &str, here: &Shape, place: Place) {
        let path = keys::join(prefix, key);
        let what = if prefix.is_empty() { "unknown section" } else { "unknown key" };
        let agent = prefix.is_empty() && model::nearest(key, ["agent", "agents"]).is_some();
        let hint = if agent { Some("[[agent]]".to_owned()) } else { keys::meant(prefix, key, here, &self.shape) };
        self.faults.add(&path, what, hint.map(|hint| format!("did you mean {hint}?")), Some(place));
    }

    fn add_env(&mut self, env: &BTreeMap<String, String>) {
        if let Some(folder) = env.get("MESHWORK_DATA_DIR").filter(|folder| !folder.is_empty()) {
            self.add_env_value("node.data_dir".to_owned(), "MESHWORK_DATA_DIR", folder);
        }
        for (name, text) in env {
            // Names with single underscores belong to the client commands and to other programs.
            let Some(rest) = name.strip_prefix("MESHWORK_").filter(|rest| rest.contains("__")) else { continue };
            let path = rest.replace("__", ".").to_lowercase();
            let place = Place::Environment(name.clone());
            match self.shape.at(&path) {
                Some(Shape::Leaf) => self.add_env_value(path, name, text),
                Some(Shape::Table(_) | Shape::Rows(_)) => self.faults.add(&path, "is a section, not a value", None, Some(place)),
                None if path.starts_with("agent.") => {
                    let hint = "describe them as [[agent]] tables of a file".to_owned();
                    self.faults.add(&path, "agents cannot be set by the environment", Some(hint), Some(place));
                }
                None => {
                    let (prefix, key) = path.rsplit_once('.').unwrap_or(("", &path));
                    // In a section that is unknown as well, only whole paths can be compared.
                    let here = self.shape.at(prefix).unwrap_or(&Shape::Leaf);
                    let near = keys::meant(prefix, key, here, &self.shape).map(|near| near.replace('.', "__").to_uppercase());
                    self.faults.add(&path, "unknown key", near.map(|near| format!("did you mean MESHWORK_{near}?")), Some(place));
                }
            }
        }
    }

    fn add_env_value(&mut self, path: String, name: &str, text: &str) {
        let value = text.parse().unwrap_or_else(|_| Value::String(text.to_owned()));
        self.leaves_by_key.insert(path, Leaf { value, place: Place::Environment(name.to_owned()), text: Some(text.to_owned()) });
    }

    fn add_flags(&mut self, flags: &Flags) {
        let list = |texts: &[String]| (!texts.is_empty()).then(|| Value::Array(texts.iter().cloned().map(Value::String).collect()));
        let data_dir = flags.data_dir.as_ref().map(|path| Value::String(path.to_string_lossy().into_owned()));
        let given = [
            ("node.data_dir", "--data-dir", data_dir),
            ("mesh.listen", "--listen", list(&flags.listen)),
            ("mesh.join", "--join", list(&flags.join)),
            ("api.listen", "--api", flags.api.clone().map(Value::String)),
            ("node.name", "--name", flags.name.clone().map(Value::String)),
        ];
        for (key, flag, value) in given {
            if let Some(value) = value {
                self.leaves_by_key.insert(key.to_owned(), Leaf { value, place: Place::Flag(flag), text: None });
            }
        }
        if flags.data_dir.as_ref().is_some_and(|path| path.to_str().is_none()) {
            self.faults.add("node.data_dir", "the path is not UTF-8", None, Some(Place::Flag("--data-dir")));
        }
    }

    fn finish(mut self, env: impl Fn(&str) -> Option<String>) -> Result<Config, Error> {
        let mut merged = Table::new();
        for (key, leaf) in &self.leaves_by_key {
            let as_text = leaf.text.clone().map(Value::String);
            let fits = |value: &Value| fits(key, value).is_ok();
            match std::iter::once(leaf.value.clone()).chain(as_text).find(fits) {
                Some(value) => insert(&mut merged, key, value),
                None => {
                    let allowed = fits_not(key, &leaf.value);
                    self.faults.add_value(key, &leaf.value, &allowed, Some(leaf.place.clone()));
                }
            }
        }
        let mut config: Config = merged.try_into().unwrap_or_else(|error: toml::de::Error| {
            self.faults.add("", model::printable(error.message(), 200), None, None);
            Config::default()
        });
        config.agents = self.agents;
        if !self.leaves_by_key.contains_key("node.data_dir") {
            match data_dir_default(&env) {
                Some(path) => config.node.data_dir = path,
                None => self.faults.add("node.data_dir", "there is no home directory to take it from", Some("set it".to_owned()), None),
            }
        }
        if config.mesh.client_only && !self.leaves_by_key.contains_key("mesh.listen") {
            config.mesh.listen.clear();
        }
        let name = config.node.name.take().unwrap_or_else(|| host_name(&env));
        config.node.name = Some(name);
        let leaves_by_key = &self.leaves_by_key;
        check::check(&config, &|key| leaves_by_key.get(key).map(|leaf| leaf.place.clone()), &mut self.faults);
        self.faults.into_result()?;
        Ok(config)
    }
}

/// Whether `value` can be the setting `key`, judged alone.
fn fits(key: &str, value: &Value) -> Result<(), String> {
    if let Some(bounds) = keys::bounds(key) {
        let number = value.as_float().or_else(|| value.as_integer().map(|number| number as f64));
        let kind_fits = value.is_integer() || !bounds.whole;
        if !number.is_some_and(|number| kind_fits && (bounds.min..=bounds.max).contains(&number)) {
            return Err(bounds.to_string());
        }
    }
    let mut alone = Table::new();
    insert(&mut alone, key, value.clone());
    alone.try_into::<Config>().map(|_| ()).map_err(|error| {
        let message = error.message();
        let expected = message.split_once("expected ").map_or(message, |(_, expected)| expected);
        match expected.trim() {
            "a sequence" => "a list such as [\"...\"]".to_owned(),
            "a boolean" => "true or false".to_owned(),
            "a string" | "path string" | "a path string" => "text in quotes".to_owned(),
            other => model::printable(other.lines().next().unwrap_or(other), 200),
        }
    })
}

/// What `key` should hold instead of `value`.
fn fits_not(key: &str, value: &Value) -> String {
    fits(key, value).err().unwrap_or_default()
}

/// Puts `value` at a dotted key.
fn insert(table: &mut Table, key: &str, value: Value) {
    match key.split_once('.') {
        None => drop(table.insert(key.to_owned(), value)),
        Some((first, rest)) => {
            let below = table.entry(first).or_insert_with(|| Value::Table(Table::new()));
            if let Value::Table(below) = below {
                insert(below, rest, value);
            }
        }
    }
}

/// A path of the file, taken from the folder of the file.
pub(super) fn beside(folder: &Path, text: &str) -> String {
    // `~` is left alone so that its fault shows what was written.
    if text.is_empty() || text.starts_with('~') { text.to_owned() } else { folder.join(text).to_string_lossy().into_owned() }
}

/// The line of a byte offset, counted from 1.
fn line_of(text: &str, offset: usize) -> usize {
    text.get(..offset).unwrap_or(text).matches('\n').count() + 1
}
