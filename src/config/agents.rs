//! The `[[agent]]` tables of a file.
//!
//! Their keys are checked here, with the nearest known one for a slip; their values by the types of [`model::Definition`]. What needs
//! more than the text (whether a schema compiles, whether a kind of agent exists in this build) is left to where agents are attached,
//! which treats definitions from every source alike.

use std::path::Path;

use serde::Deserialize;
use toml::{
    Spanned,
    de::{DeTable, DeValue, ValueDeserializer},
};

use super::{
    Place,
    error::Faults,
    keys::{self, ADAPTERS, Shape},
};
use crate::model::{self, Definition};

/// How long an agent's name may be, in characters.
const NAME_CHARS_MAX: usize = 64;

/// How many invocations one agent may work on at once.
const CONCURRENCY_MAX: u32 = 1_024;

/// The definitions in `rows`; those with faults are left out and the faults noted. Relative paths are taken from `folder`.
pub(super) fn read(
    rows: &Spanned<DeValue<'_>>,
    folder: Option<&Path>,
    place: &impl Fn(usize) -> Place,
    faults: &mut Faults,
) -> Vec<Definition> {
    let Some(tables) = rows.get_ref().as_array() else {
        let hint = "write [[agent]] with two brackets".to_owned();
        faults.add("agent", "is a list of tables", Some(hint), Some(place(rows.span().start)));
        return Vec::new();
    };
    let mut definitions: Vec<Definition> = Vec::new();
    for (number, row) in tables.iter().enumerate() {
        let path = format!("agent[{number}]");
        let written = place(row.span().start);
        let Some(table) = row.get_ref().as_table() else {
            faults.add(&path, "is not a table", Some("write [[agent]] and its keys below".to_owned()), Some(written));
            continue;
        };
        let Some(shape) = shape_of(table, &path, &written, place, faults) else { continue };
        let faults_before = faults.as_slice().len();
        unknown_keys(table, &path, &shape, place, faults);
        if faults.as_slice().len() > faults_before {
            continue;
        }
        match Definition::deserialize(ValueDeserializer::from(row.clone())) {
            Ok(mut definition) => {
                if let Some(folder) = folder {
                    definition.adapter.resolve_paths(folder);
                }
                check(&definition, &definitions, &path, &written, faults);
                definitions.push(definition);
            }
            Err(error) => {
                let problem = model::printable(error.message().trim_end(), 300);
                let at = error.span().map_or_else(|| row.span().start, |span| span.start);
                faults.add(&path_at(row, at, &path).unwrap_or(path), problem, None, Some(place(at)));
            }
        }
    }
    definitions
}

/// Which keys this agent may have, which depends on the kind of its adapter.
fn shape_of(table: &DeTable<'_>, path: &str, written: &Place, place: &impl Fn(usize) -> Place, faults: &mut Faults) -> Option<Shape> {
    let key = format!("{path}.adapter");
    let Some(adapter) = table.get("adapter") else {
        let near = table.keys().find(|key| model::nearest(key.get_ref(), ["adapter"]).is_some());
        let hint = near.map(|near| format!("did you mean adapter where {} stands?", model::printable(near.get_ref(), 64)));
        faults.add(&key, "is missing", hint, Some(written.clone()));
        return None;
    };
    let here = Some(place(adapter.span().start));
    let Some(kind) = adapter.get_ref().get("type").and_then(|kind| kind.get_ref().as_str()) else {
        faults.add(&format!("{key}.type"), format!("is missing: expected one of {}", ADAPTERS.join(", ")), None, here);
        return None;
    };
    let shape = keys::agent(kind);
    if shape.is_none() {
        let hint = model::nearest(kind, ADAPTERS).map(|near| format!("did you mean {near}?"));
        let problem = format!("`{}` is not allowed: expected one of {}", model::printable(kind, 64), ADAPTERS.join(", "));
        faults.add(&format!("{key}.type"), problem, hint, here);
    }
    shape
}

fn unknown_keys(table: &DeTable<'_>, path: &str, shape: &Shape, place: &impl Fn(usize) -> Place, faults: &mut Faults) {
    for (key, value) in table {
        // Both spellings are read.
        let name = if key.get_ref() == "capabilities" { "capability" } else { key.get_ref().as_ref() };
        let below = keys::join(path, name);
        match (shape.get(name), value.get_ref()) {
            (None, _) => {
                let hint = model::nearest(name, shape.keys()).map(|near| format!("did you mean {path}.{near}?"));
                faults.add(&below, "unknown key", hint, Some(place(key.span().start)));
            }
            (Some(shape @ Shape::Table(_)), DeValue::Table(table)) => unknown_keys(table, &below, shape, place, faults),
            (Some(Shape::Rows(shape)), DeValue::Array(rows)) => {
                for (number, row) in rows.iter().enumerate() {
                    if let Some(table) = row.get_ref().as_table() {
                        unknown_keys(table, &format!("{below}[{number}]"), shape, place, faults);
                    }
                }
            }
            // A value of the wrong kind is the reader's to refuse.
            (Some(Shape::Leaf | Shape::Table(_) | Shape::Rows(_)), _) => {}
        }
    }
}

/// The path of the innermost value that stands at byte `at`, below `path`.
fn path_at(value: &Spanned<DeValue<'_>>, at: usize, path: &str) -> Option<String> {
    // The span of a table with a header is its header alone, so what lies below is looked at first.
    let below = match value.get_ref() {
        DeValue::Table(table) => table.iter().find_map(|(key, value)| path_at(value, at, &keys::join(path, key.get_ref()))),
        DeValue::Array(rows) => rows.iter().enumerate().find_map(|(number, row)| path_at(row, at, &format!("{path}[{number}]"))),
        DeValue::String(_) | DeValue::Integer(_) | DeValue::Float(_) | DeValue::Boolean(_) | DeValue::Datetime(_) => None,
    };
    below.or_else(|| value.span().contains(&at).then(|| path.to_owned()))
}

/// What the types do not say and the node's own files depend on.
fn check(definition: &Definition, others: &[Definition], path: &str, written: &Place, faults: &mut Faults) {
    let (name, here) = (&definition.name, || Some(written.clone()));
    if !name_ok(name) {
        let allowed = "1 to 64 letters, digits, `-`, `_` or `.`, not beginning with `.`";
        faults.add_value(&format!("{path}.name"), name, allowed, here());
    } else if others.iter().any(|other| other.name == *name) {
        faults.add_value(&format!("{path}.name"), name, "a name that no other agent of this node has", here());
    }
    if !(1..=CONCURRENCY_MAX).contains(&definition.concurrency) {
        let allowed = format!("a whole number between 1 and {CONCURRENCY_MAX}");
        faults.add_value(&format!("{path}.concurrency"), definition.concurrency, &allowed, here());
    }
}

fn name_ok(name: &str) -> bool {
    let chars_ok = name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'));
    chars_ok && (1..=NAME_CHARS_MAX).contains(&name.len()) && !name.starts_with('.')
}
