//! The subtasks of a task: which capability does what with which input, and after whom (AITP 3.1).
//!
//! The same code reads what a person wrote and what an agent proposed as a plan (AITP-4). Names are resolved into places here, so that what
//! runs later never meets an unknown one; expressions of `parent.input` are held against the parameters that were given, since both are at
//! hand, and expressions of an output with a mapping against the names that the mapping gives.

use std::collections::{BTreeMap, BTreeSet};

use rust_decimal::Decimal;
use serde_json::{Map, Value};

use super::super::fault::{Fault, Faults, below};
use super::super::graph;
use super::super::template::Template;
use super::super::template::expression::{Expression, Missing, Root, Source, Step};
use super::delegated::{self, Nesting, Reading};
use super::section::{self, Section};
use super::{Budget, ContextAccess, SUBTASKS_MAX, Subtask, Usual, context, metadata};
use crate::model::{SubtaskId, TASK_EXECUTION, json_kind, printable};

/// The most edges between subtasks: a hundred times what a chain of the most subtasks has, and far less than all with all.
const EDGES_MAX: usize = 200_000;
/// The most fields that an output mapping names.
const MAPPING_MAX: usize = 256;
/// The longest name of a field in an output mapping, in characters.
const FIELD_CHARS_MAX: usize = 200;
/// The largest `priority`: the last of all.
const ORDER_MAX: u32 = 1_000_000;
/// Where a subtask stands that does not say how early it goes.
const ORDER_DEFAULT: u32 = 100;
/// How many names of a circle are told.
const CIRCLE_SHOWN_MAX: usize = 8;

const FIELDS: [&str; 19] = [
    "subtask_id",
    "name",
    "agent_capability",
    "version",
    "agent",
    "input",
    "output",
    "output_mapping",
    "depends_on",
    "priority",
    "timeout_seconds",
    "retry_policy",
    "retry",
    "cost_limit",
    "min_trust_score",
    "estimated_units",
    "offers",
    "context",
    "task",
];

/// What subtasks are read with.
pub(super) struct Parent<'a> {
    pub(super) input: &'a Value,
    pub(super) parameters: &'a Map<String, Value>,
    pub(super) usual: Usual,
    pub(super) budget: Option<Budget>,
    /// What the task's steps may do with its context, if it names one.
    pub(super) context: Option<ContextAccess>,
    pub(super) nesting: &'a Nesting,
    /// What tasks within it are read with; a plan has none.
    pub(super) reading: Option<Reading<'a>>,
}

/// Reads the list at `path`.
pub(super) fn read(value: &Value, path: &str, parent: &Parent<'_>, faults: &mut Faults) -> Vec<Subtask> {
    let before = faults.count();
    let Some(entries) = section::list(value, path, SUBTASKS_MAX, faults) else { return Vec::new() };
    let ids = ids(entries, path, faults);
    let places: BTreeMap<&str, usize> =
        ids.iter().enumerate().rev().filter_map(|(place, id)| Some((id.as_ref()?.as_str(), place))).collect();
    let mut subtasks = Vec::with_capacity(entries.len());
    let mut edges = 0;
    for (place, (entry, id)) in entries.iter().zip(&ids).enumerate() {
        if faults.is_full() {
            break;
        }
        let subtask = one(entry, &below(path, &place.to_string()), (place, id.as_ref()), &places, parent, faults);
        edges += subtask.as_ref().map_or(0, |subtask| subtask.after.len());
        subtasks.extend(subtask);
        if edges > EDGES_MAX {
            faults.add(path, format!("has more than {EDGES_MAX} dependencies between its subtasks"));
            break;
        }
    }
    if faults.count() == before {
        check_circles(&subtasks, path, faults);
        check_expressions(&subtasks, path, parent, faults);
    }
    subtasks
}

fn ids(entries: &[Value], path: &str, faults: &mut Faults) -> Vec<Option<SubtaskId>> {
    let mut seen: BTreeMap<SubtaskId, usize> = BTreeMap::new();
    let mut ids = Vec::with_capacity(entries.len());
    for (place, entry) in entries.iter().enumerate() {
        let at = || below(&below(path, &place.to_string()), "subtask_id");
        let id = match entry.get("subtask_id") {
            Some(Value::String(text)) => text.parse::<SubtaskId>().map_err(|error| faults.add(&at(), error.to_string())).ok(),
            Some(other) => {
                faults.add(&at(), format!("is a text, not {}", json_kind(other)));
                None
            }
            None if entry.is_object() => {
                faults.add(&at(), "is missing; a subtask has a name that others can refer to");
                None
            }
            None => None,
        };
        if let Some(id) = &id
            && let Some(first) = seen.insert(id.clone(), place)
        {
            faults.add(&at(), format!("`{id}` is the name of subtask {first} already, counted from 0"));
        }
        ids.push(id);
    }
    ids
}

fn one(
    entry: &Value,
    path: &str,
    (place, id): (usize, Option<&SubtaskId>),
    places: &BTreeMap<&str, usize>,
    parent: &Parent<'_>,
    faults: &mut Faults,
) -> Option<Subtask> {
    let section = Section::of(entry, path, "a subtask", &FIELDS, faults)?;
    let name = section.text("name", super::read::NAME_CHARS_MAX, faults);
    let task = delegated::read_task(&section, places, parent, faults);
    let holds_task = section.get("task").is_some();
    if !holds_task && section.get("agent_capability").is_none() {
        faults.add(&section.at("agent_capability"), "is missing; it names what is called");
    }
    let capability = if holds_task { TASK_EXECUTION.parse().ok() } else { section.parsed("agent_capability", faults) };
    let version = section.parsed("version", faults);
    let agent = section.parsed("agent", faults);
    let template = section.get("input").map(|input| Template::parse(input, &section.at("input"), places));
    let input = template.unwrap_or_else(|| Ok(Template::default())).unwrap_or_else(|found| {
        faults.extend(found);
        Template::default()
    });
    let (task, input) = task.map_or((None, input), |(task, parameters)| (Some(task), parameters));
    let output = section.schema("output", faults);
    let output_mapping = mapping(&section, faults);
    let after = after(&section, &input, (place, id), places, faults);
    let usual = metadata::read_usual(&section, &parent.usual, faults);
    let cost_limit = metadata::cost_limit(&section, parent.budget, faults);
    if let (Some(limit), Some(budget)) = (cost_limit, parent.budget)
        && limit.currency != budget.currency
    {
        let told = format!("is in {}, and the task's cost_limit in {}; nothing is converted", limit.currency, budget.currency);
        faults.add(&section.at("cost_limit"), told);
    }
    let estimated_units = section.at_most("estimated_units", section::AMOUNT_MAX, faults).unwrap_or(Decimal::ONE);
    let context = context::read_access(&section, parent.context, holds_task, faults);
    let order = section.count("priority", ORDER_MAX, faults).unwrap_or(ORDER_DEFAULT);
    let id = id?.clone();
    Some(Subtask {
        name: name.map_or_else(|| id.to_string(), str::to_owned),
        id,
        capability: capability?,
        version,
        agent,
        input,
        output,
        output_mapping,
        after,
        order,
        retry: usual.retry,
        attempt_timeout: usual.attempt_timeout,
        estimated_units,
        cost_limit: cost_limit.map(|limit| limit.amount),
        min_trust: usual.min_trust,
        offers: usual.offers,
        context,
        task,
    })
}

fn mapping(section: &Section<'_>, faults: &mut Faults) -> BTreeMap<String, String> {
    let path = section.at("output_mapping");
    let fields = match section.get("output_mapping") {
        None => return BTreeMap::new(),
        Some(Value::Object(fields)) if fields.len() <= MAPPING_MAX => fields,
        Some(Value::Object(fields)) => {
            faults.add(&path, format!("names at most {MAPPING_MAX} fields, not {}", fields.len()));
            return BTreeMap::new();
        }
        Some(other) => {
            faults.add(&path, format!("is an object of names, {{field of the agent's output: name here}}, not {}", json_kind(other)));
            return BTreeMap::new();
        }
    };
    let mut mapping = BTreeMap::new();
    let mut names = BTreeSet::new();
    for (field, name) in fields {
        let path = below(&path, field);
        if field.chars().nth(FIELD_CHARS_MAX).is_some() {
            faults.add(&path, format!("a field's name has at most {FIELD_CHARS_MAX} characters"));
        }
        let Some(name) = section::text(name, &path, FIELD_CHARS_MAX, faults) else { continue };
        if !names.insert(name) {
            faults.add(&path, format!("`{}` is what another field is called already", printable(name, 80)));
        }
        mapping.insert(field.clone(), name.to_owned());
    }
    mapping
}

/// The places of those that must have succeeded before.
fn after(
    section: &Section<'_>,
    input: &Template,
    (place, id): (usize, Option<&SubtaskId>),
    places: &BTreeMap<&str, usize>,
    faults: &mut Faults,
) -> BTreeSet<usize> {
    let mut after = BTreeSet::new();
    for (path, name) in section.names::<SubtaskId>("depends_on", SUBTASKS_MAX, faults) {
        match places.get(name.as_str()) {
            Some(needed) if *needed == place => faults.add(&path, format!("`{name}` is this subtask; it cannot wait for itself")),
            Some(needed) => drop(after.insert(*needed)),
            None => faults.unknown(&path, "a subtask of this task", name.as_str(), places.keys().copied()),
        }
    }
    for needed in input.subtasks() {
        if needed == place {
            let id = id.map_or_else(String::new, SubtaskId::to_string);
            faults.add(&section.at("input"), format!("names `{id}`, which is this subtask; its output is not there before it has run"));
        } else {
            after.insert(needed);
        }
    }
    after
}

fn check_circles(subtasks: &[Subtask], path: &str, faults: &mut Faults) {
    let after: Vec<BTreeSet<usize>> = subtasks.iter().map(|subtask| subtask.after.clone()).collect();
    let Err(circle) = graph::order(&after) else { return };
    let Some(&first) = circle.first() else { return };
    let mut shown: Vec<&str> = circle.iter().take(CIRCLE_SHOWN_MAX).map(|place| subtasks[*place].id.as_str()).collect();
    if circle.len() > CIRCLE_SHOWN_MAX {
        shown.push("...");
    }
    shown.push(subtasks[first].id.as_str());
    let path = below(&below(path, &first.to_string()), "depends_on");
    faults.add(&path, format!("goes round in a circle, in which each waits for the next: {}", shown.join(" -> ")));
}

/// Holds each expression against what is known already of what it names.
fn check_expressions(subtasks: &[Subtask], path: &str, parent: &Parent<'_>, faults: &mut Faults) {
    for (place, subtask) in subtasks.iter().enumerate() {
        let path = format!("{}/{}", below(path, &place.to_string()), if subtask.task.is_some() { "task/parameters" } else { "input" });
        subtask.input.each_expression(&path, &mut |at, expression, is_left_out| match expression.source {
            Source::Input => check_parameter(expression, at, is_left_out, parent, faults),
            Source::Output(upstream) => check_output(expression, at, &subtasks[upstream], faults),
        });
    }
}

fn check_output(expression: &Expression, at: &str, upstream: &Subtask, faults: &mut Faults) {
    if upstream.output_mapping.is_empty() {
        return;
    }
    match expression.steps.first() {
        None => {}
        Some(Step::Field(name)) if upstream.output_mapping.values().any(|known| known == name) => {}
        Some(Step::Field(name)) => {
            let what = format!("what `{}` gives by its output_mapping", upstream.id);
            faults.unknown(at, &what, name, upstream.output_mapping.values().map(String::as_str));
        }
        Some(Step::Item(_)) => faults.add(at, format!("`{expression}` asks for an entry of a list, and `{}` gives an object", upstream.id)),
    }
}

fn check_parameter(expression: &Expression, at: &str, is_left_out: bool, parent: &Parent<'_>, faults: &mut Faults) {
    if let Some(Step::Field(name)) = expression.steps.first()
        && parent.nesting.later.contains(name)
    {
        return;
    }
    let Err(missing) = expression.follow(Root::Fields(parent.parameters)) else { return };
    let is_field = matches!(missing, Missing::Field { .. });
    let is_described = is_field && is_described(parent.input, &expression.steps);
    if is_described && is_left_out {
        return;
    }
    match expression.steps.first() {
        Some(Step::Field(name)) if is_field && !is_described && !parent.parameters.contains_key(name) => {
            let described = parent.input.get("properties").and_then(Value::as_object).into_iter().flat_map(Map::keys);
            let known: BTreeSet<&str> = described.chain(parent.parameters.keys()).map(String::as_str).collect();
            faults.unknown(at, "given in `parameters` or described in `input`", name, known);
        }
        _ => {
            let advice = if is_field { "; give it in `parameters`, or a default in `input`" } else { "" };
            faults.add(at, format!("`{expression}` has no value: {missing}{advice}"));
        }
    }
}

/// Whether a parameter that was not given is one that may be: the schema describes it, or does not say what there is that deep.
fn is_described(schema: &Value, steps: &[Step]) -> bool {
    let mut schema = schema;
    for (depth, step) in steps.iter().enumerate() {
        let Some(fields) = schema.as_object() else { return depth > 0 && schema != &Value::Bool(false) };
        let properties = fields.get("properties").and_then(Value::as_object);
        let described = match step {
            Step::Field(name) => properties.and_then(|properties| properties.get(name)),
            Step::Item(_) => fields.get("items"),
        };
        match described {
            Some(inner) => schema = inner,
            None => {
                let says_all = properties.is_some() || depth == 0;
                return !says_all || super::super::types::is_combined(schema);
            }
        }
    }
    true
}

/// What is wrong with subtasks beside what was read before.
pub(super) fn read_alone(value: &Value, parent: &Parent<'_>) -> Result<Vec<Subtask>, Vec<Fault>> {
    let mut faults = Faults::default();
    let subtasks = read(value, "/subtasks", parent, &mut faults);
    if subtasks.is_empty() && faults.count() == 0 {
        faults.add("/subtasks", "is empty; a plan has at least one subtask");
    }
    faults.or(subtasks)
}
