//! `meshwork context`: documents that agents on several nodes share.
//!
//! `grant` and `revoke` read the lists of a context and write them back with one entry more or less; the owner alone may, so nobody else
//! changes them in between but the owner elsewhere.

use clap::Subcommand;
use futures::StreamExt as _;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    CliError, Global,
    call::input,
    client::{ANSWER_TIMEOUT, Client, read},
    feed::{News, feed},
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
    /// Show a context, or what is at a path of it: as it is, or as it was.
    #[command(after_help = "Example:
  meshwork context get 1f3a9c02
  meshwork context get 1f3a9c02 /shared_memory/plan/title
  meshwork context get 1f3a9c02 /shared_memory/plan --at 90ab34de        as `meshwork context history` names it")]
    Get {
        /// The context.
        id: String,
        /// The path.
        path: Option<String>,
        /// As it was after this operation and all that it builds on: its id or at least 8 digits of it. May be repeated.
        #[arg(long, value_name = "OPERATION", value_delimiter = ',')]
        at: Vec<String>,
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
    /// Fork a context and print the new one's id: you own it, and it holds what its parent holds, or held.
    #[command(after_help = "Example:
  FORK=$(meshwork context fork 1f3a9c02)
  meshwork context fork 1f3a9c02 --at 90ab34de --private --session attempt-2")]
    Fork {
        /// The context to fork; its readers and writers may do the same in the fork.
        id: String,
        /// What it held after this operation and all that it builds on. May be repeated.
        #[arg(long, value_name = "OPERATION", value_delimiter = ',')]
        at: Vec<String>,
        /// Nobody but you may read and write the fork.
        #[arg(long)]
        private: bool,
        /// The session that it belongs to; its parent's without it.
        #[arg(long, value_name = "TEXT")]
        session: Option<String>,
        /// When it ends; with its parent without it.
        #[arg(long, value_name = "TIME")]
        expires: Option<String>,
    },
    /// Bring what another context changed into one, since one was forked from the other or they were merged last.
    #[command(after_help = "Counters and lists add up. What both changed is told as a conflict and taken from the side that is preferred.

Example:
  meshwork context merge 1f3a9c02 $FORK
  meshwork context merge 1f3a9c02 $FORK --prefer target --json | jq .conflicts")]
    Merge {
        /// The context that is changed.
        target: String,
        /// The context from which changes come.
        source: String,
        /// Whose value stays where both changed one.
        #[arg(long, value_enum, default_value = "source")]
        prefer: Side,
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
    /// End what was written so far: what the context holds is kept, and what was written before the checkpoint before is let go of.
    #[command(after_help = "For the owner alone. Nodes make checkpoints by themselves, once a day where much is written.
`history` and `get --at` reach back to the checkpoint before the last.

Example:
  meshwork context checkpoint 1f3a9c02")]
    Checkpoint {
        /// The context.
        id: String,
    },
    /// Let go of this node's replica of a context; other nodes keep theirs. This one does not take it in again for 30 days.
    #[command(after_help = "If this node owns it, nobody changes who may read and write any more.

Example:
  meshwork context drop 1f3a9c02")]
    Drop {
        /// The context.
        id: String,
    },
    /// Follow a context, one JSON document per line: what came to the node so far, then what comes, through restarts of the node.
    #[command(after_help = "Each line has its `index`; these numbers are the node's own, another heard of changes in another order.

Example:
  meshwork context watch 1f3a9c02
  meshwork context watch 1f3a9c02 --after 12 | jq -c 'select(.event == \"operation\") | .items'")]
    Watch {
        /// The context.
        id: String,
        /// Only those after the one with this number.
        #[arg(long, value_name = "N")]
        after: Option<u64>,
    },
}

/// One of the two contexts of a merge.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Side {
    /// The one from which changes come.
    Source,
    /// The one that is changed.
    Target,
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
            begin(&client, global, &["v1", "contexts"], &body).await
        }
        Verb::List => list(&client, global).await,
        Verb::Get { id, path, at } => {
            let answer = get(&client, &id, path.as_deref(), &at, agent).await?;
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
        Verb::Fork { id, at, private, session, expires } => {
            let mut body = json!({});
            for (name, value) in [
                ("at", (!at.is_empty()).then(|| Value::from(at))),
                ("access_control", private.then(|| json!({}))),
                ("session_id", session.map(Value::from)),
                ("expires_at", expires.map(Value::from)),
                ("agent", agent.map(Value::from)),
            ] {
                if let Some(value) = value {
                    body[name] = value;
                }
            }
            begin(&client, global, &["v1", "contexts", &id, "fork"], &body).await
        }
        Verb::Merge { target, source, prefer } => {
            let prefer = match prefer {
                Side::Source => "source",
                Side::Target => "target",
            };
            let body = json!({ "source": source, "prefer": prefer, "agent": agent });
            let answer = client.post(&["v1", "contexts", &target, "merge"], &body, ANSWER_TIMEOUT).await?;
            global.answer(&answer, || merged(&answer, prefer, global.colour()))
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
        Verb::Checkpoint { id } => {
            let body = agent.map_or_else(|| json!({}), |agent| json!({ "agent": agent }));
            let answer = client.post(&["v1", "contexts", &id, "checkpoint"], &body, ANSWER_TIMEOUT).await?;
            global.answer(&answer, || shown(&answer))
        }
        Verb::Drop { id } => {
            client.delete(&["v1", "contexts", &id], ANSWER_TIMEOUT).await?;
            global.answer(&json!({ "id": id }), || Ok(format!("dropped {}\n", printable(&id, 64))))
        }
        Verb::Watch { id, after } => watch(&client, global, &id, after, agent).await,
    }
}

fn acting(agent: Option<&str>) -> Vec<(&str, &str)> {
    agent.map(|agent| ("agent", agent)).into_iter().collect()
}

/// Creates what `body` asks for, and prints the id alone, so that a script can go on with it.
async fn begin(client: &Client, global: &Global, path: &[&str], body: &Value) -> Result<(), CliError> {
    let answer = client.post(path, body, ANSWER_TIMEOUT).await?;
    global.answer(&answer, || Ok(format!("{}\n", read::<Document>(&answer)?.id)))
}

async fn get(client: &Client, id: &str, path: Option<&str>, at: &[String], agent: Option<&str>) -> Result<Value, CliError> {
    let mut query = acting(agent);
    query.extend(path.map(|path| ("path", path)));
    let at = at.join(",");
    query.extend((!at.is_empty()).then_some(("at", at.as_str())));
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
    lineage: Lineage,
    access_control: Rights,
    checkpoint: Option<Checkpoint>,
    equivocations: Vec<Equivocation>,
    version: Version,
}

/// Where what was written before was ended.
#[derive(Debug, Deserialize)]
struct Checkpoint {
    at: String,
    is_here: Option<bool>,
}

/// Somebody who signed two operations of one number.
#[derive(Debug, Deserialize)]
struct Equivocation {
    author: String,
    seq: u64,
    operations: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Lineage {
    parent_context: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Version {
    operations: u64,
    state_hash: String,
}

async fn access(client: &Client, id: &str, agent: Option<&str>) -> Result<Rights, CliError> {
    Ok(read::<Document>(&get(client, id, None, &[], agent).await?)?.access_control)
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
    if let Some(parent) = &document.lineage.parent_context {
        rows.insert(3, ("forked from", figures::word(parent)));
    }
    if let Some(checkpoint) = &document.checkpoint {
        let lacks = checkpoint.is_here == Some(false);
        let note = if lacks { ", what it held is not here yet: it comes from the node of another reader" } else { "" };
        rows.push(("checkpoint", format!("{}{note}", printable(&checkpoint.at, 40))));
    }
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
                short(&row.id),
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
    since: Option<Checkpoint>,
}

#[derive(Debug, Deserialize)]
struct Past {
    id: String,
    author: String,
    at: String,
    counts: bool,
    items: Option<Vec<Value>>,
    step: Option<Step>,
    source: Option<String>,
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
        let mut table = Table::new(["operation", "at", "author", "of", "what"]);
        for past in &history.operations {
            let what = match &past.items {
                None => "(in the memory of another agent)".to_owned(),
                Some(items) => items.iter().map(item).collect::<Vec<_>>().join("; "),
            };
            let step = past.step.as_ref().map(|step| format!("{} {}", printable(&step.task_id, 8), printable(&step.subtask_id, 20)));
            let source = past.source.as_ref().map(|source| short(source));
            table.row([
                short(&past.id),
                figures::word(&past.at),
                printable(past.author.trim_start_matches("did:key:"), 16),
                step.or(source).unwrap_or_else(|| figures::NOTHING.to_owned()),
                if past.counts { what } else { format!("{what} (does not count)") },
            ]);
        }
        let more = history.total.saturating_sub(history.operations.len());
        let mut rest = if more > 0 { format!("and {more} before; --limit shows more\n") } else { String::new() };
        if let Some(since) = &history.since {
            rest += &format!("what was written before the checkpoint of {} was let go of\n", printable(&since.at, 40));
        }
        Ok(table.text(global.colour()) + &rest)
    })
}

/// The beginning of an id, by which it can be named.
fn short(id: &str) -> String {
    printable(id, 8).trim_end_matches('…').to_owned()
}

#[derive(Debug, Deserialize)]
struct Merged {
    operations: Vec<String>,
    changed: Vec<String>,
    conflicts: Vec<Conflict>,
}

#[derive(Debug, Deserialize)]
struct Conflict {
    path: String,
    source: Option<Value>,
    target: Option<Value>,
}

fn counted(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

fn merged(answer: &Value, prefer: &str, colour: bool) -> Result<String, CliError> {
    let merged: Merged = read(answer)?;
    let mut text = match merged.operations.as_slice() {
        [] => "nothing was brought over\n".to_owned(),
        operations => format!("changed {} in {}\n", counted(merged.changed.len(), "place"), counted(operations.len(), "operation")),
    };
    if !merged.conflicts.is_empty() {
        text += &format!("both had changed these; the {prefer}'s stay:\n");
        let mut table = Table::new(["path", "source", "target"]);
        let shown = |value: &Option<Value>| value.as_ref().map_or_else(|| figures::NOTHING.to_owned(), figures::plain);
        for conflict in &merged.conflicts {
            let [source, target] = [&conflict.source, &conflict.target].map(|value| printable(&shown(value), VALUE_CHARS_MAX));
            table.row([printable(&conflict.path, VALUE_CHARS_MAX), source, target]);
        }
        text += &table.text(colour);
    }
    Ok(text)
}

fn item(item: &Value) -> String {
    let text = |name: &str| item[name].as_str().unwrap_or_default();
    let value = item.get("value").or_else(|| item.get("by")).map(|value| format!(" {value}")).unwrap_or_default();
    printable(&format!("{} {}{value}", text("op"), text("path")), VALUE_CHARS_MAX)
}

async fn watch(client: &Client, global: &Global, id: &str, after: Option<u64>, agent: Option<&str>) -> Result<(), CliError> {
    // A context that is not there and a node that is not there are told at once, not waited for. From here on its whole id is meant.
    let document: Document = read(&get(client, id, None, &[], agent).await?)?;
    let mut feed = feed(client, &["v1", "contexts", &document.id, "events"], &acting(agent), after);
    while let Some(news) = feed.next().await.transpose()? {
        match news {
            News::Event(event) => global.screen.line(&event)?,
            News::Lost(why) => global.screen.err(&format!("{}; trying again\n", printable(&why, VALUE_CHARS_MAX))),
            News::Back => global.screen.err("connected again\n"),
        }
    }
    Ok(())
}
