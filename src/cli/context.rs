//! `meshwork context`: documents that agents on several nodes share.
//!
//! `grant` and `revoke` read the lists of a context and write them back with one entry more or less; the owner alone may, so nobody else
//! changes them in between but the owner elsewhere.

use clap::Subcommand;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    CliError, Global,
    call::input,
    client::{ANSWER_TIMEOUT, Client, read},
    figures,
    table::{Table, facts},
};
use crate::model::printable;

/// How much of a value is shown in a table, in characters.
const VALUE_CHARS_MAX: usize = 60;

/// Arguments of `context`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "A context is a JSON document whose replicas merge without a server. Paths are JSON Pointers into it: what readers share lies below \
/shared_memory, an agent's own memory below /agent_memory/did:key:... A context is named by its id or the beginning of it.

Example:
  ID=$(meshwork context create --write extractor)
  meshwork context set $ID /shared_memory/plan '{\"title\": \"draft\"}'
  meshwork context append $ID /shared_memory/plan/steps '\"read\"'
  meshwork context inc $ID /shared_memory/votes
  meshwork context get $ID /shared_memory/plan"
)]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: Verb,
    /// Act as this agent of the node: its name or id; without it as the node.
    #[arg(long = "as", global = true, value_name = "AGENT", display_order = 800)]
    agent: Option<String>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Create a context and print its id; the node's key, or the agent's, owns it.
    #[command(after_help = "Example:
  meshwork context create --value '{\"title\": \"draft\"}' --read reviewer --write extractor
  meshwork context create --session nightly --expires 2026-12-24T18:00:00Z")]
    Create {
        /// What it shares from the beginning: a JSON object, @FILE, or - for stdin.
        #[arg(long, value_name = "JSON")]
        value: Option<String>,
        /// Who may read: a key, a node's id, or an agent that the directory knows. May be repeated.
        #[arg(long, value_name = "WHO")]
        read: Vec<String>,
        /// Who may read and write. May be repeated.
        #[arg(long, value_name = "WHO")]
        write: Vec<String>,
        /// The session that it belongs to, in your words.
        #[arg(long, value_name = "TEXT")]
        session: Option<String>,
        /// When it ends; in a day without it.
        #[arg(long, value_name = "TIME")]
        expires: Option<String>,
    },
    /// List the contexts that this node keeps.
    #[command(after_help = "Example:
  meshwork context list --json | jq -r '.contexts[].id'")]
    List,
    /// Show a context, or what is at a path of it.
    #[command(after_help = "Example:
  meshwork context get 1f3a9c02
  meshwork context get 1f3a9c02 /shared_memory/plan/title")]
    Get {
        /// The context.
        id: String,
        /// The path.
        path: Option<String>,
    },
    /// Put a value at a path, in place of all that is there.
    #[command(after_help = "Example:
  meshwork context set 1f3a9c02 /shared_memory/plan/title '\"final\"'
  meshwork context set 1f3a9c02 /shared_memory/plan @plan.json")]
    Set {
        /// The context.
        id: String,
        /// The path.
        path: String,
        /// The value as JSON, @FILE, or - for stdin.
        value: String,
    },
    /// Take away what is at a path.
    #[command(after_help = "Example:
  meshwork context del 1f3a9c02 /shared_memory/plan/title")]
    Del {
        /// The context.
        id: String,
        /// The path.
        path: String,
    },
    /// Add to a counter; what others add at the same time adds up.
    #[command(after_help = "Example:
  meshwork context inc 1f3a9c02 /shared_memory/votes
  meshwork context inc 1f3a9c02 /shared_memory/votes -3")]
    Inc {
        /// The context.
        id: String,
        /// The path.
        path: String,
        /// How much.
        #[arg(default_value_t = 1, allow_negative_numbers = true)]
        by: i64,
    },
    /// Put a value behind those of a list; what others append at the same time stays too.
    #[command(after_help = "Example:
  meshwork context append 1f3a9c02 /shared_memory/log '{\"found\": 3}'")]
    Append {
        /// The context.
        id: String,
        /// The path.
        path: String,
        /// The value as JSON, @FILE, or - for stdin.
        value: String,
    },
    /// Let somebody read, or write too; for the owner.
    #[command(after_help = "Example:
  meshwork context grant 1f3a9c02 reviewer
  meshwork context grant 1f3a9c02 extractor --write
  meshwork context grant 1f3a9c02 extractor --write --path /shared_memory/tables")]
    Grant {
        /// The context.
        id: String,
        /// Who: a key, a node's id, or an agent that the directory knows.
        who: String,
        /// Let them write.
        #[arg(long)]
        write: bool,
        /// Let them write below this path alone. May be repeated.
        #[arg(long, value_name = "PATH", requires = "write")]
        path: Vec<String>,
    },
    /// Let somebody neither read nor write any more; for the owner. What they have read they keep.
    #[command(after_help = "Example:
  meshwork context revoke 1f3a9c02 extractor
  meshwork context revoke 1f3a9c02 extractor --write        they still read")]
    Revoke {
        /// The context.
        id: String,
        /// Who.
        who: String,
        /// Take away writing alone.
        #[arg(long)]
        write: bool,
    },
    /// Show who wrote what, the latest first.
    #[command(after_help = "Example:
  meshwork context history 1f3a9c02 --limit 20")]
    History {
        /// The context.
        id: String,
        /// At most so many operations.
        #[arg(long, value_name = "N")]
        limit: Option<u32>,
    },
    /// Let go of this node's replica of a context; other nodes keep theirs. This one does not take it in again for 30 days.
    #[command(after_help = "If this node owns it, nobody changes who may read and write any more.

Example:
  meshwork context drop 1f3a9c02")]
    Drop {
        /// The context.
        id: String,
    },
    /// Follow the changes of a context, one JSON document per line.
    #[command(after_help = "Example:
  meshwork context watch 1f3a9c02")]
    Watch {
        /// The context.
        id: String,
    },
}

/// Runs one of them.
pub(crate) async fn run(args: Args, global: &Global) -> Result<(), CliError> {
    let client = Client::new(global)?;
    let agent = args.agent.as_deref();
    match args.verb {
        Verb::Create { value, read: readers, write, session, expires } => {
            let value = value.as_deref().map(input).transpose()?;
            let mut body = json!({ "access_control": { "read": readers, "write": write } });
            for (name, value) in [
                ("shared_memory", value),
                ("session_id", session.map(Value::from)),
                ("expires_at", expires.map(Value::from)),
                ("agent", agent.map(Value::from)),
            ] {
                if let Some(value) = value {
                    body[name] = value;
                }
            }
            let answer = client.post(&["v1", "contexts"], &body, ANSWER_TIMEOUT).await?;
            // The id alone, so that a script can go on with it.
            global.answer(&answer, || Ok(format!("{}\n", read::<Document>(&answer)?.id)))
        }
        Verb::List => list(&client, global).await,
        Verb::Get { id, path } => {
            let answer = get(&client, &id, path.as_deref(), agent).await?;
            // At a path the value alone, so that it can be piped on.
            global.answer(&answer, || if path.is_some() { Ok(format!("{answer}\n")) } else { shown(&answer) })
        }
        Verb::Set { id, path, value } => {
            change(&client, global, &id, agent, json!({ "op": "set", "path": path, "value": input(&value)? })).await
        }
        Verb::Del { id, path } => change(&client, global, &id, agent, json!({ "op": "del", "path": path })).await,
        Verb::Inc { id, path, by } => change(&client, global, &id, agent, json!({ "op": "inc", "path": path, "by": by })).await,
        Verb::Append { id, path, value } => {
            change(&client, global, &id, agent, json!({ "op": "append", "path": path, "value": input(&value)? })).await
        }
        Verb::Grant { id, who, write, path } => {
            let mut access = access(&client, &id, agent).await?;
            if write {
                let paths = if path.is_empty() { vec!["/shared_memory".to_owned()] } else { path };
                access.write.push(Grant { principal: who, paths });
            } else {
                access.read.push(who);
            }
            share(&client, global, &id, agent, &access).await
        }
        Verb::Revoke { id, who, write } => {
            let mut access = access(&client, &id, agent).await?;
            let who = key(&client, &who).await?;
            let (readers, writers) = (access.read.len(), access.write.len());
            access.write.retain(|grant| grant.principal != who);
            if !write {
                access.read.retain(|reader| *reader != who);
            }
            if (access.read.len(), access.write.len()) == (readers, writers) {
                let what = if write { "writes to" } else { "reads" };
                return Err(
                    CliError::usage(format!("{who} {what} the context in no way already")).hint("`meshwork context get` shows who does")
                );
            }
            share(&client, global, &id, agent, &access).await
        }
        Verb::History { id, limit } => history(&client, global, &id, limit, agent).await,
        Verb::Drop { id } => {
            client.delete(&["v1", "contexts", &id], ANSWER_TIMEOUT).await?;
            global.answer(&json!({ "id": id }), || Ok(format!("dropped {}\n", printable(&id, 64))))
        }
        Verb::Watch { id } => watch(&client, global, &id, agent).await,
    }
}

fn acting(agent: Option<&str>) -> Vec<(&str, &str)> {
    agent.map(|agent| ("agent", agent)).into_iter().collect()
}

async fn get(client: &Client, id: &str, path: Option<&str>, agent: Option<&str>) -> Result<Value, CliError> {
    let mut query = acting(agent);
    query.extend(path.map(|path| ("path", path)));
    client.get(&["v1", "contexts", id], &query).await
}

async fn change(client: &Client, global: &Global, id: &str, agent: Option<&str>, operation: Value) -> Result<(), CliError> {
    let answer = client.patch(&["v1", "contexts", id], &acting(agent), &json!({ "ops": [operation] })).await?;
    global.answer(&answer, || {
        let changed: Changed = read(&answer)?;
        Ok(format!("{}\n", changed.operations.iter().map(|id| printable(id, 16)).collect::<Vec<_>>().join("\n")))
    })
}

#[derive(Debug, Deserialize)]
struct Changed {
    operations: Vec<String>,
}

#[derive(Debug, Deserialize, serde::Serialize)]
struct Rights {
    #[serde(default)]
    read: Vec<String>,
    #[serde(default)]
    write: Vec<Grant>,
}

#[derive(Debug, Deserialize, serde::Serialize)]
struct Grant {
    principal: String,
    paths: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Document {
    id: String,
    session_id: String,
    owner: String,
    created_at: String,
    expires_at: String,
    shared_memory: Value,
    agent_memory: Value,
    access_control: Rights,
    equivocations: Vec<Equivocation>,
    version: Version,
}

/// Somebody who signed two operations of one number.
#[derive(Debug, Deserialize)]
struct Equivocation {
    author: String,
    seq: u64,
    operations: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Version {
    operations: u64,
    state_hash: String,
}

async fn access(client: &Client, id: &str, agent: Option<&str>) -> Result<Rights, CliError> {
    Ok(read::<Document>(&get(client, id, None, agent).await?)?.access_control)
}

/// The key that `who` means, as a context's lists have it.
async fn key(client: &Client, who: &str) -> Result<String, CliError> {
    if let Ok(principal) = who.parse::<crate::model::Principal>() {
        return Ok(principal.to_string());
    }
    let record = client.get(&["v1", "agents", who], &[]).await?;
    Ok(record["agent_id"].as_str().unwrap_or(who).to_owned())
}

async fn share(client: &Client, global: &Global, id: &str, agent: Option<&str>, access: &Rights) -> Result<(), CliError> {
    let body = serde_json::to_value(access).map_err(|error| CliError::internal(error.to_string()))?;
    let answer = client.put_document(&["v1", "contexts", id, "access"], &acting(agent), &body).await?;
    global.answer(&answer, || shown(&answer))
}

fn shown(answer: &Value) -> Result<String, CliError> {
    let document: Document = read(answer)?;
    let pretty = |value: &Value| serde_json::to_string_pretty(value).unwrap_or_default();
    let writers =
        document.access_control.write.iter().map(|grant| format!("{}  {}", figures::word(&grant.principal), grant.paths.join(" ")));
    let mut rows = vec![
        ("context", figures::word(&document.id)),
        ("session", figures::word(&document.session_id)),
        ("owner", figures::word(&document.owner)),
        ("created", figures::word(&document.created_at)),
        ("ends", figures::word(&document.expires_at)),
        ("readers", document.access_control.read.iter().map(|reader| figures::word(reader)).collect::<Vec<_>>().join("\n")),
        ("writers", writers.collect::<Vec<_>>().join("\n")),
        ("operations", document.version.operations.to_string()),
        ("state", printable(&document.version.state_hash, 16)),
        ("shared", pretty(&document.shared_memory)),
    ];
    if document.agent_memory.as_object().is_some_and(|memories| !memories.is_empty()) {
        rows.push(("own memory", pretty(&document.agent_memory)));
    }
    let twice = document.equivocations.iter().map(|proof| {
        let operations = proof.operations.iter().map(|id| printable(id, 64)).collect::<Vec<_>>().join(" ");
        format!("{}  number {}: {operations}", figures::word(&proof.author), proof.seq)
    });
    if !document.equivocations.is_empty() {
        rows.push(("signed twice", twice.collect::<Vec<_>>().join("\n")));
    }
    Ok(facts(&rows))
}

#[derive(Debug, Deserialize)]
struct Listing {
    contexts: Vec<Row>,
}

#[derive(Debug, Deserialize)]
struct Row {
    id: String,
    session_id: String,
    owner: String,
    expires_at: String,
    readers: Vec<String>,
    operations: u64,
}

async fn list(client: &Client, global: &Global) -> Result<(), CliError> {
    let answer = client.get(&["v1", "contexts"], &[]).await?;
    global.answer(&answer, || {
        let listing: Listing = read(&answer)?;
        if listing.contexts.is_empty() {
            return Ok("no contexts; `meshwork context create` makes one\n".to_owned());
        }
        let mut table = Table::new(["context", "session", "owner", "readers", "operations", "ends"]);
        for row in &listing.contexts {
            table.row([
                printable(&row.id, 8).trim_end_matches('…').to_owned(),
                printable(&row.session_id, 40),
                printable(row.owner.trim_start_matches("did:key:"), 16),
                row.readers.len().to_string(),
                row.operations.to_string(),
                figures::word(&row.expires_at),
            ]);
        }
        Ok(table.text(global.colour()))
    })
}

#[derive(Debug, Deserialize)]
struct History {
    operations: Vec<Past>,
    total: usize,
}

#[derive(Debug, Deserialize)]
struct Past {
    author: String,
    at: String,
    counts: bool,
    items: Option<Vec<Value>>,
    step: Option<Step>,
}

#[derive(Debug, Deserialize)]
struct Step {
    task_id: String,
    subtask_id: String,
}

async fn history(client: &Client, global: &Global, id: &str, limit: Option<u32>, agent: Option<&str>) -> Result<(), CliError> {
    let limit = limit.map(|limit| limit.to_string());
    let mut query = acting(agent);
    query.extend(limit.as_deref().map(|limit| ("limit", limit)));
    let answer = client.get(&["v1", "contexts", id, "history"], &query).await?;
    global.answer(&answer, || {
        let history: History = read(&answer)?;
        let mut table = Table::new(["at", "author", "step", "what"]);
        for past in &history.operations {
            let what = match &past.items {
                None => "(in the memory of another agent)".to_owned(),
                Some(items) => items.iter().map(item).collect::<Vec<_>>().join("; "),
            };
            let step = past.step.as_ref().map(|step| format!("{} {}", printable(&step.task_id, 8), printable(&step.subtask_id, 20)));
            table.row([
                figures::word(&past.at),
                printable(past.author.trim_start_matches("did:key:"), 16),
                step.unwrap_or_else(|| figures::NOTHING.to_owned()),
                if past.counts { what } else { format!("{what} (does not count)") },
            ]);
        }
        let more = history.total.saturating_sub(history.operations.len());
        let rest = if more > 0 { format!("and {more} before; --limit shows more\n") } else { String::new() };
        Ok(table.text(global.colour()) + &rest)
    })
}

fn item(item: &Value) -> String {
    let text = |name: &str| item[name].as_str().unwrap_or_default();
    let value = item.get("value").or_else(|| item.get("by")).map(|value| format!(" {value}")).unwrap_or_default();
    printable(&format!("{} {}{value}", text("op"), text("path")), VALUE_CHARS_MAX)
}

async fn watch(client: &Client, global: &Global, id: &str, agent: Option<&str>) -> Result<(), CliError> {
    // Its whole id, and whether it is there at all.
    let document: Document = read(&get(client, id, None, agent).await?)?;
    let is_of_it = |event: &str, data: &Value| event == "context_update" && data["context"]["id"] == document.id.as_str();
    client.follow_all(|event, data| if is_of_it(event, &data) { global.screen.line(&data) } else { Ok(()) }).await
}
