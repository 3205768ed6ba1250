//! `meshwork agent add`, `remove` and `show`: one agent.
//!
//! A definition is read here as strictly as the node reads it, so a slip in a file is told with the place in the file and nothing is
//! sent. `remove` looks among the node's own agents alone: another node may have one of the same name.

use std::{fmt::Write as _, io::Read as _, path::Path, time::Duration};

use clap::Subcommand;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    CliError, Global,
    agents::{Listing, Record, load},
    client::{ANSWER_TIMEOUT, Client, read},
    figures,
    table::facts,
};
use crate::model::{Definition, ErrorCode, Failure, nearest, printable};

/// Attaching starts the agent's program, which may load a model first.
const ADD_TIMEOUT: Duration = Duration::from_secs(120);

/// How much of a description or schema is shown, in characters.
const LINE_CHARS_MAX: usize = 400;

/// The fewest characters of an id that are enough to remove an agent.
const PREFIX_CHARS_MIN: usize = 6;

/// Arguments of `agent`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  meshwork agent add extractor.toml
  meshwork agent show extractor
  meshwork agent remove extractor")]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Attach an agent to this node.
    #[command(after_help = "FILE is TOML, either the definition itself or one [[agent]] table, or JSON; `-` reads it from stdin.

Example:
  meshwork agent add - <<'END'
  name = \"echo\"
  adapter = { type = \"builtin\", kind = \"echo\" }
  END")]
    Add {
        /// The agent's definition.
        file: String,
    },
    /// Detach one of this node's agents.
    #[command(after_help = "Example:
  meshwork agent remove extractor")]
    Remove {
        /// Its name, its id, name@prefix, or the beginning of its id behind the @.
        name: String,
    },
    /// Show all that is known of an agent, its schemas included.
    #[command(after_help = "Example:
  meshwork agent show extractor@pQrStUvW --json")]
    Show {
        /// Its id, its name, name@prefix, or the beginning of its id.
        id: String,
    },
}

/// Runs one of the three.
pub(crate) async fn run(args: Args, global: &Global) -> Result<(), CliError> {
    match args.verb {
        Verb::Add { file } => add(&file, global).await,
        Verb::Remove { name } => remove(&name, global).await,
        Verb::Show { id } => show(&id, global).await,
    }
}

async fn add(file: &str, global: &Global) -> Result<(), CliError> {
    let mut definition = definition(&text_of(file)?).map_err(|fault| {
        let name = if file == "-" { "stdin" } else { file };
        CliError::usage(format!("{name} does not define an agent")).with("faults", fault.lines().collect::<Vec<_>>())
    })?;
    // The node runs elsewhere; what the file names beside itself must mean the same there.
    let folder = if file == "-" { Path::new(".") } else { Path::new(file).parent().unwrap_or_else(|| Path::new("")) };
    let folder =
        std::path::absolute(Path::new(".").join(folder)).map_err(|error| CliError::usage(format!("failed to find {file}: {error}")))?;
    definition.adapter.resolve_paths(&folder);
    let body = serde_json::to_value(&definition).map_err(|error| CliError::internal(error.to_string()))?;
    let answer = Client::new(global)?.post(&["v1", "agents"], &body, ADD_TIMEOUT).await?;
    global.answer(&answer, || {
        let added: Added = read(&answer)?;
        let mut text = format!("added {}  {}\n", figures::agent(&definition.name, &added.agent_id), figures::word(&added.agent_id));
        let status = &added.record.status;
        if status.state != "available" {
            let reason = status.reason.as_deref().unwrap_or("see the node's log");
            text += &format!("but it is {}: {}\n", figures::word(&status.state), printable(reason, LINE_CHARS_MAX));
        }
        Ok(text)
    })
}

#[derive(Debug, Deserialize)]
struct Added {
    agent_id: String,
    record: Record,
}

/// What stands in a file, or on stdin for `-`.
pub(super) fn text_of(file: &str) -> Result<String, CliError> {
    let mut text = String::new();
    let read = match file {
        "-" => std::io::stdin().lock().read_to_string(&mut text).map(|_| text),
        path => std::fs::read_to_string(path),
    };
    read.map_err(|error| CliError::usage(format!("failed to read {}: {error}", if file == "-" { "stdin" } else { file })))
}

/// Reads a definition; the fault says where it is.
fn definition(text: &str) -> Result<Definition, String> {
    // TOML never begins with a brace.
    if text.trim_start().starts_with('{') {
        return serde_json::from_str(text).map_err(|error| error.to_string());
    }
    let table: toml::Table = toml::from_str(text).map_err(|error| error.to_string())?;
    if !table.contains_key("agent") {
        return toml::from_str(text).map_err(|error| error.to_string());
    }
    let wrapped: Wrapped = toml::from_str(text).map_err(|error| error.to_string())?;
    let count = wrapped.agent.len();
    let only: Result<[Definition; 1], _> = wrapped.agent.try_into();
    only.map(|[definition]| definition).map_err(|_| format!("it holds {count} [[agent]] tables; expected one per file"))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wrapped {
    agent: Vec<Definition>,
}

async fn remove(name: &str, global: &Global) -> Result<(), CliError> {
    let client = Client::new(global)?;
    let listing: Listing = read(&client.get(&["v1", "agents"], &[("scope", "local")]).await?)?;
    let label = |agent: &Record| figures::agent(&agent.name, &agent.agent_id);
    let is_named = |agent: &&Record| [&agent.name, &agent.agent_id, &label(agent)].contains(&&name.to_owned());
    let begins = |agent: &&Record| name.len() >= PREFIX_CHARS_MIN && figures::agent("", &agent.agent_id).starts_with(name);
    let by_prefix: Vec<&Record> = listing.agents.iter().filter(begins).collect();
    let only = if let [only] = by_prefix.as_slice() { Some(*only) } else { None };
    let Some(agent) = listing.agents.iter().find(is_named).or(only) else {
        let failure = Failure::new(ErrorCode::AgentNotFound, format!("no agent on this node is called `{name}`"));
        let near = nearest(name, listing.agents.iter().map(|agent| agent.name.as_str()));
        let hint = near.map_or_else(|| "`meshwork agents` lists them".to_owned(), |near| format!("did you mean `{near}`?"));
        return Err(CliError::from(failure).hint(hint));
    };
    client.delete(&["v1", "agents", &agent.agent_id], ANSWER_TIMEOUT).await?;
    global.answer(&json!({ "agent_id": agent.agent_id }), || Ok(format!("removed {}\n", label(agent))))
}

async fn show(id: &str, global: &Global) -> Result<(), CliError> {
    let answer = Client::new(global)?.get(&["v1", "agents", id], &[]).await?;
    global.answer(&answer, || Ok(text(&read(&answer)?)))
}

fn text(agent: &Record) -> String {
    let reason = agent.status.reason.as_deref().map(|reason| format!(" ({})", printable(reason, LINE_CHARS_MAX))).unwrap_or_default();
    let mut text = facts(&[
        ("agent", figures::agent(&agent.name, &agent.agent_id)),
        ("id", figures::word(&agent.agent_id)),
        ("about", printable(&agent.description, LINE_CHARS_MAX)),
        ("version", figures::word(&agent.version)),
        ("framework", figures::word(&agent.framework)),
        ("node", figures::word(&agent.node_id) + if agent.local { " (this node)" } else { "" }),
        ("state", figures::word(&agent.status.state) + &reason),
        ("busy with", load(&agent.status)),
        ("expires", figures::moment(&agent.expires_at)),
    ]);
    for capability in &agent.capabilities {
        let about = printable(&capability.description, LINE_CHARS_MAX);
        let _ = write!(text, "\n{} {}  {about}\n", figures::word(&capability.id), figures::word(&capability.version));
        let line = |value: &Value| printable(&value.to_string(), LINE_CHARS_MAX);
        let mut shown = vec![("  price", figures::money(&capability.price))];
        if !capability.score.is_null() {
            // Its own word, said out loud: nobody ranks by it.
            shown.push(("  score", figures::figure(&capability.score, figures::number) + " (its own claim)"));
        }
        for (name, lines) in [("  best at", &capability.specializations), ("  cannot", &capability.limitations)] {
            if !lines.is_empty() {
                shown.push((name, printable(&lines.join("; "), LINE_CHARS_MAX)));
            }
        }
        for (name, value) in [
            ("  needs", &capability.resource_requirements),
            ("  constraints", &capability.constraints),
            ("  input", &capability.input_schema),
            ("  output", &capability.output_schema),
        ] {
            if !value.is_null() && value.as_object().is_none_or(|fields| !fields.is_empty()) {
                shown.push((name, line(value)));
            }
        }
        text += &facts(&shown);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const BARE: &str = "name = \"echo\"\n[adapter]\ntype = \"builtin\"\nkind = \"echo\"\n";

    #[test]
    fn a_definition_is_read_from_toml_with_and_without_its_table_and_from_json() {
        let wrapped = "[[agent]]\nname = \"echo\"\n[agent.adapter]\ntype = \"builtin\"\nkind = \"echo\"\n";
        let json = r#" {"name":"echo","adapter":{"type":"builtin","kind":"echo"}}"#;
        let bare = definition(BARE).expect("bare");
        assert_eq!(definition(wrapped).as_ref(), Ok(&bare));
        assert_eq!(definition(json).as_ref(), Ok(&bare));
    }

    #[test]
    fn a_fault_names_its_place() {
        let fault = definition("name = \"echo\"\nadaptor = 1\n").expect_err("unknown field");
        assert!(fault.contains("line 2") && fault.contains("adaptor"), "{fault}");
        assert!(definition(&format!("{}{}", "[[agent]]\n", "name = 1\n")).is_err());
    }

    #[test]
    fn a_file_defines_exactly_one_agent() {
        let one = "[[agent]]\nname = \"echo\"\nadapter = { type = \"builtin\", kind = \"echo\" }\n";
        assert_eq!(definition(&one.repeat(2)).expect_err("two"), "it holds 2 [[agent]] tables; expected one per file");
        let fault = definition(&format!("[node]\nname = \"x\"\n{one}")).expect_err("a whole configuration");
        assert!(fault.contains("node"), "{fault}");
    }
}
