//! From what a task has to what it shall give, over what agents offer (AITP-4; design/tasks.md, "Decomposition").
//!
//! A chain is found by its schemas alone: a capability can be a step once every field that it requires is there, among the task's
//! parameters or in what a step before it gave, under the same name and with a type that fits for certain. One exception lets texts flow
//! between agents that call them differently: a capability that requires nothing but one text takes the only text of the latest
//! step that gave any. The chain ends with a step that gives every field of the task's output. The shortest chain wins, then the best scored.
//!
//! Two fields of one name may mean different things, and nothing here knows. So a plan is no more than a proposal that fits: it is read like
//! any other, held against the schemas of those who would do it, and every output is checked when it is there.
//!
//! What a schema promises are the fields that it requires; one that requires nothing promises all that it lists. Schemas with references or
//! combinations promise nothing and fit only themselves.
//!
//! Everything is bounded: [`OFFERS_MAX`] capabilities, [`STEPS_MAX`] steps, `WIDTH_MAX` beginnings of chains at a time. What cannot
//! be part of any chain to the output is put aside first, so a mesh of many agents does not crowd out the few that matter.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

use super::types::is_combined;
use crate::model::{CapabilityName, ErrorCode, Failure, printable};

/// The most capabilities that are looked at.
pub const OFFERS_MAX: usize = 512;
/// The most steps of a chain: plans that nobody wrote should be short enough to be understood.
pub const STEPS_MAX: usize = 6;
/// The most beginnings of chains that are followed at a time.
const WIDTH_MAX: usize = 64;
/// The most fields of one schema that are looked at.
const FIELDS_MAX: usize = 256;
/// How deep two schemas are compared.
const DEPTH_MAX: usize = 8;
/// How many names a failure lists.
const LISTED_MAX: usize = 12;
/// The longest name of a field that an expression is made of, in bytes.
const NAME_BYTES_MAX: usize = 100;

/// What somebody offers.
#[derive(Debug, Clone, Copy)]
pub struct Offer<'a> {
    /// Its name.
    pub name: &'a CapabilityName,
    /// What it takes.
    pub input: &'a Value,
    /// What it gives.
    pub output: &'a Value,
    /// How good the best is that offers it, 0 to 1.
    pub score: f64,
}

/// Subtasks, in the shape of a definition, that lead from the parameters to the output.
///
/// # Errors
/// `CAPABILITY_NOT_FOUND`: there is no chain. Its details say what nobody gives, what can be reached, and who comes nearest.
pub fn plan(input: &Value, parameters: &Map<String, Value>, output: &Value, offers: &[Offer<'_>]) -> Result<Value, Failure> {
    let goal = promised(output);
    if goal.is_empty() {
        return Err(failure("the task's output names no fields that a chain of capabilities could lead to"));
    }
    let given: BTreeMap<String, Value> = parameters
        .iter()
        .filter(|(name, _)| is_plain(name))
        .take(FIELDS_MAX)
        .map(|(name, value)| {
            let said = input.pointer("/properties").and_then(|properties| properties.get(name));
            (name.clone(), said.filter(|schema| schema.get("type").is_some()).cloned().unwrap_or_else(|| schema_of(value, DEPTH_MAX)))
        })
        .collect();
    let search = Search {
        given: given.iter().map(|(name, schema)| (name.as_str(), schema)).collect(),
        goal,
        offers: offers.iter().take(OFFERS_MAX).map(Capability::of).collect(),
    };
    let chain = search.chain().ok_or_else(|| search.why_not())?;
    Ok(search.subtasks(&chain, output))
}

/// Fields by name, with what is said of them.
type Fields<'a> = BTreeMap<&'a str, &'a Value>;

/// A capability, taken apart.
struct Capability<'a> {
    name: &'a CapabilityName,
    score: f64,
    /// What it cannot do without.
    required: Fields<'a>,
    /// What it takes beside that.
    optional: Fields<'a>,
    gives: Fields<'a>,
}

impl<'a> Capability<'a> {
    fn of(offer: &Offer<'a>) -> Self {
        let takes = listed(offer.input);
        let is_required = required(offer.input);
        let mut missing = is_required.iter().any(|name| !takes.contains_key(name));
        // A schema that says more than its fields might refuse what its fields allow.
        missing |= is_combined(offer.input);
        let (required, optional): (Fields<'a>, Fields<'a>) = takes.into_iter().partition(|(name, _)| is_required.contains(name));
        let gives = if missing { Fields::new() } else { promised(offer.output) };
        Self { name: offer.name, score: if offer.score.is_finite() { offer.score } else { 0.0 }, required, optional, gives }
    }

    /// The field that takes any text, if there is nothing else that it requires.
    fn only_text(&self) -> Option<&'a str> {
        let mut fields = self.required.iter();
        match (fields.next(), fields.next()) {
            (Some((name, schema)), None) if is_free_text(schema) => Some(name),
            _ => None,
        }
    }
}

/// Where a field of a step's input comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Giver {
    Parameters,
    /// The step at this place of the chain.
    Step(usize),
}

/// Fields of an input, each with its giver and the name that it has there.
type Sources<'a> = BTreeMap<&'a str, (Giver, &'a str)>;

struct Search<'a> {
    given: Fields<'a>,
    goal: Fields<'a>,
    offers: Vec<Capability<'a>>,
}

impl<'a> Search<'a> {
    /// The offers of the shortest chain, and of those the best scored.
    fn chain(&self) -> Option<Vec<usize>> {
        if !(0..self.offers.len()).any(|step| self.reaches_goal(step)) {
            return None;
        }
        let useful = self.useful();
        let mut beginnings: Vec<Vec<usize>> = vec![Vec::new()];
        for _ in 0..STEPS_MAX {
            let (mut longer, mut seen): (Vec<Vec<usize>>, BTreeSet<Vec<usize>>) = (Vec::new(), BTreeSet::new());
            let mut best: Option<(f64, Vec<usize>)> = None;
            for chain in &beginnings {
                for next in useful.iter().copied().filter(|next| !chain.contains(next)) {
                    if self.sources(chain, next).is_none() {
                        continue;
                    }
                    let chain: Vec<usize> = chain.iter().copied().chain([next]).collect();
                    if self.reaches_goal(next) {
                        let score = self.score(&chain);
                        if best.as_ref().is_none_or(|(known, _)| score > *known) {
                            best = Some((score, chain));
                        }
                    } else if self.adds(&chain) {
                        let mut steps = chain.clone();
                        steps.sort_unstable();
                        // The same steps in another order give the same.
                        if seen.insert(steps) {
                            longer.push(chain);
                        }
                    }
                }
            }
            if let Some((_, chain)) = best {
                return Some(chain);
            }
            longer.sort_by(|a, b| self.score(b).total_cmp(&self.score(a)));
            longer.truncate(WIDTH_MAX);
            beginnings = longer;
        }
        None
    }

    fn score(&self, chain: &[usize]) -> f64 {
        chain.iter().map(|step| self.offers[*step].score).sum()
    }

    fn reaches_goal(&self, step: usize) -> bool {
        let gives = &self.offers[step].gives;
        self.goal.iter().all(|(name, wanted)| gives.get(name).is_some_and(|given| fits(given, wanted, DEPTH_MAX)))
    }

    /// Whether the last step gives anything that was not there.
    fn adds(&self, chain: &[usize]) -> bool {
        let Some((last, before)) = chain.split_last() else { return false };
        let is_new = |name: &&str| !self.given.contains_key(name) && !before.iter().any(|step| self.offers[*step].gives.contains_key(name));
        self.offers[*last].gives.keys().any(is_new)
    }

    /// Who has what there is after `chain`, the latest first.
    fn givers<'s>(&'s self, chain: &'s [usize]) -> impl Iterator<Item = (Giver, &'s Fields<'a>)> {
        let steps = chain.iter().enumerate().rev().map(|(place, step)| (Giver::Step(place), &self.offers[*step].gives));
        steps.chain([(Giver::Parameters, &self.given)])
    }

    /// Where an offer's input comes from after `chain`; `None` if something that it requires is not there.
    fn sources(&self, chain: &[usize], offer: usize) -> Option<Sources<'a>> {
        let offer = &self.offers[offer];
        let by_name = |name: &'a str, wanted: &Value| {
            let mut givers = self.givers(chain);
            givers.find_map(|(giver, fields)| {
                let (name, given) = fields.get_key_value(name)?;
                fits(given, wanted, DEPTH_MAX).then_some((giver, *name))
            })
        };
        let mut sources = Sources::new();
        for (name, wanted) in &offer.required {
            let source = by_name(name, wanted).or_else(|| if offer.only_text() == Some(*name) { self.latest_text(chain) } else { None })?;
            sources.insert(name, source);
        }
        for (name, wanted) in &offer.optional {
            if let Some(source) = by_name(name, wanted) {
                sources.insert(name, source);
            }
        }
        // What takes nothing of what there is does not continue anything.
        (!sources.is_empty()).then_some(sources)
    }

    /// The only text of the latest step that gave texts. Parameters are called as their author meant them.
    fn latest_text(&self, chain: &[usize]) -> Option<(Giver, &'a str)> {
        let texts = |step: usize| self.offers[step].gives.iter().filter(|(_, schema)| is_free_text(schema)).map(|(name, _)| *name);
        let (place, step) = chain.iter().copied().enumerate().rev().find(|(_, step)| texts(*step).next().is_some())?;
        let mut texts = texts(step);
        match (texts.next(), texts.next()) {
            (Some(only), None) => Some((Giver::Step(place), only)),
            _ => None,
        }
    }

    /// The offers that may be part of a chain: they give something of the output, or something that such an offer takes.
    fn useful(&self) -> Vec<usize> {
        let mut names: BTreeSet<&str> = self.goal.keys().copied().collect();
        let (mut useful, mut any_text) = (BTreeSet::new(), false);
        loop {
            let before = useful.len();
            for (place, offer) in self.offers.iter().enumerate() {
                let gives = offer.gives.iter().any(|(name, schema)| names.contains(name) || (any_text && is_free_text(schema)));
                if gives && useful.insert(place) {
                    names.extend(offer.required.keys());
                    any_text |= offer.only_text().is_some();
                }
            }
            if useful.len() == before {
                return useful.into_iter().collect();
            }
        }
    }

    /// The chain as somebody would have written it.
    fn subtasks(&self, chain: &[usize], output: &Value) -> Value {
        let id = |place: usize| format!("step_{}", place + 1);
        let last = chain.len().saturating_sub(1);
        let mut used: BTreeSet<usize> = BTreeSet::new();
        let mut subtasks = Vec::with_capacity(chain.len());
        for (place, step) in chain.iter().enumerate() {
            let sources = self.sources(&chain[..place], *step).unwrap_or_default();
            used.extend(sources.values().filter_map(|(giver, _)| match giver {
                Giver::Step(place) => Some(*place),
                Giver::Parameters => None,
            }));
            let input: Map<String, Value> = sources
                .into_iter()
                .map(|(name, (giver, field))| {
                    let root = match giver {
                        Giver::Parameters => "parent.input".to_owned(),
                        Giver::Step(place) => format!("{}.output", id(place)),
                    };
                    (name.to_owned(), format!("${{{root}[{}]}}", Value::from(field)).into())
                })
                .collect();
            let offer = &self.offers[*step];
            let mut subtask = json!({"subtask_id": id(place), "name": offer.name, "agent_capability": offer.name, "input": input});
            if place == last {
                // What the task's output does not list stays out of the result; and one result needs one last step.
                let wanted = listed(output);
                let kept =
                    offer.gives.iter().filter(|(name, given)| wanted.get(*name).is_some_and(|wanted| fits(given, wanted, DEPTH_MAX)));
                subtask["output_mapping"] = kept.map(|(name, _)| ((*name).to_owned(), Value::from(*name))).collect::<Map<_, _>>().into();
                let unused: Vec<String> = (0..last).filter(|place| !used.contains(place)).map(id).collect();
                if !unused.is_empty() {
                    subtask["depends_on"] = unused.into();
                }
            }
            subtasks.push(subtask);
        }
        subtasks.into()
    }

    /// Why there is no chain, for people who wonder what to attach.
    fn why_not(&self) -> Failure {
        let fitting = |offer: &Capability<'_>| {
            let given =
                |(name, wanted): &(&&'a str, &&'a Value)| offer.gives.get(*name).is_some_and(|given| fits(given, wanted, DEPTH_MAX));
            self.goal.iter().filter(given).map(|(name, _)| *name).collect::<Vec<&str>>()
        };
        let given: Vec<(usize, Vec<&str>)> = self.offers.iter().map(&fitting).enumerate().filter(|(_, given)| !given.is_empty()).collect();
        let nobody: Vec<&str> = self.goal.keys().copied().filter(|name| !given.iter().any(|(_, names)| names.contains(name))).collect();
        let reached = self.reached();
        let names = |steps: &[usize]| listing(steps.iter().map(|step| self.offers[*step].name.as_str()));
        let reach = if reached.is_empty() {
            "no capability can begin with what the parameters hold".to_owned()
        } else {
            format!("what can be reached from the parameters is {}", names(&reached))
        };
        // Who gives most of it, and of those whoever is reached or lacks least.
        let lacks = |step: usize| {
            self.offers[step].required.keys().copied().filter(|name| !self.is_there(&reached, step, name)).collect::<Vec<&str>>()
        };
        let nearest = given.iter().min_by_key(|(step, names)| (self.goal.len().saturating_sub(names.len()), lacks(*step).len()));
        let told = nearest.map_or_else(String::new, |(step, names)| {
            let (name, lacks) = (self.offers[*step].name, lacks(*step));
            let lack = if reached.contains(step) || lacks.is_empty() { String::new() } else { format!(" and lacks {}", listing(lacks)) };
            format!("; nearest is `{name}`, which gives {}{lack}", listing(names.iter().copied()))
        });
        let why = if nobody.is_empty() {
            format!("no chain of at most {STEPS_MAX} capabilities ends in one that gives all of {}", listing(self.goal.keys().copied()))
        } else {
            format!("nobody gives {}", listing(nobody.iter().copied()))
        };
        let shown = |names: &mut dyn Iterator<Item = &str>| {
            names.take(LISTED_MAX).map(|name| printable(name, NAME_BYTES_MAX)).collect::<Vec<String>>()
        };
        let failure = failure(&format!("{why}; {reach}{told}"));
        let failure = failure.with("missing", shown(&mut nobody.iter().copied()));
        let failure = failure.with("reachable", shown(&mut reached.iter().map(|step| self.offers[*step].name.as_str())));
        match nearest {
            Some((step, _)) => failure.with("nearest", self.offers[*step].name.to_string()),
            None => failure,
        }
    }

    /// Every offer that could be a step, however long the chain.
    fn reached(&self) -> Vec<usize> {
        let mut reached = Vec::new();
        loop {
            let next = (0..self.offers.len()).find(|next| !reached.contains(next) && self.sources(&reached, *next).is_some());
            match next {
                Some(next) => reached.push(next),
                None => return reached,
            }
        }
    }

    fn is_there(&self, reached: &[usize], step: usize, name: &str) -> bool {
        let Some(wanted) = self.offers[step].required.get(name) else { return true };
        self.givers(reached).any(|(_, fields)| fields.get(name).is_some_and(|given| fits(given, wanted, DEPTH_MAX)))
    }
}

fn failure(why: &str) -> Failure {
    Failure::new(ErrorCode::CapabilityNotFound, why)
}

/// `` `a`, `b` and 3 more ``.
fn listing<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    let names: Vec<String> = names.into_iter().map(|name| format!("`{}`", printable(name, NAME_BYTES_MAX))).collect();
    let more = names.len().saturating_sub(LISTED_MAX);
    let shown = names.iter().take(LISTED_MAX).map(String::as_str).collect::<Vec<&str>>().join(", ");
    if more == 0 { shown } else { format!("{shown} and {more} more") }
}

/// Whether an expression can name it.
fn is_plain(name: &str) -> bool {
    !name.is_empty() && name.len() <= NAME_BYTES_MAX && !name.chars().any(char::is_control)
}

fn required(schema: &Value) -> BTreeSet<&str> {
    schema.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).take(FIELDS_MAX).collect()
}

/// The fields that a schema of objects lists.
fn listed(schema: &Value) -> Fields<'_> {
    let is_object = schema.get("type").is_none_or(|named| named == "object");
    let properties = schema.get("properties").and_then(Value::as_object).filter(|_| is_object);
    let fields = properties.into_iter().flatten().filter(|(name, schema)| is_plain(name) && **schema != Value::Bool(false));
    fields.take(FIELDS_MAX).map(|(name, schema)| (name.as_str(), schema)).collect()
}

/// The fields that are there for certain in whatever matches.
fn promised(schema: &Value) -> Fields<'_> {
    if is_combined(schema) {
        return Fields::new();
    }
    let (fields, required) = (listed(schema), required(schema));
    if required.is_empty() { fields } else { fields.into_iter().filter(|(name, _)| required.contains(name)).collect() }
}

fn is_free_text(schema: &Value) -> bool {
    schema.get("type").is_some_and(|named| named == "string") && schema.get("format").is_none() && !is_combined(schema)
}

/// The names of the types that a schema allows; `None` if it allows any.
fn types(schema: &Value) -> Option<BTreeSet<&str>> {
    match schema.get("type")? {
        Value::String(name) => Some(BTreeSet::from([name.as_str()])),
        Value::Array(names) => Some(names.iter().filter_map(Value::as_str).collect()),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => None,
    }
}

/// Whether every value of `given` is of a type that `wanted` takes. Lengths and bounds are left to the values.
fn fits(given: &Value, wanted: &Value, depth: usize) -> bool {
    if given == wanted {
        return true;
    }
    if is_combined(given) || is_combined(wanted) || depth == 0 {
        return false;
    }
    let format = |schema: &Value| schema.get("format").and_then(Value::as_str).map(str::to_owned);
    if format(wanted).is_some() && format(given).is_some() && format(given) != format(wanted) {
        return false;
    }
    let Some(taken) = types(wanted) else { return wanted.is_object() || *wanted == Value::Bool(true) };
    let Some(types) = types(given) else { return false };
    if !types.iter().all(|name| taken.contains(name) || (*name == "integer" && taken.contains("number"))) {
        return false;
    }
    if types.contains("array")
        && let Some(wanted) = wanted.get("items")
        && *wanted != Value::Bool(true)
        && !given.get("items").is_some_and(|given| fits(given, wanted, depth - 1))
    {
        return false;
    }
    if types.contains("object") {
        let (given, taken) = (promised(given), listed(wanted));
        return required(wanted).iter().all(|name| given.contains_key(name))
            && taken.iter().all(|(name, wanted)| given.get(name).is_none_or(|given| fits(given, wanted, depth - 1)));
    }
    true
}

/// What is certain of a value.
fn schema_of(value: &Value, depth: usize) -> Value {
    match value {
        _ if depth == 0 => json!(true),
        Value::Null => json!({"type": "null"}),
        Value::Bool(_) => json!({"type": "boolean"}),
        Value::Number(number) if number.is_i64() || number.is_u64() => json!({"type": "integer"}),
        Value::Number(_) => json!({"type": "number"}),
        Value::String(_) => json!({"type": "string"}),
        Value::Array(entries) => {
            let mut schemas = entries.iter().take(FIELDS_MAX).map(|entry| schema_of(entry, depth - 1));
            let first = schemas.next().unwrap_or(Value::Bool(true));
            let alike = entries.len() <= FIELDS_MAX && schemas.all(|schema| schema == first);
            if alike { json!({"type": "array", "items": first}) } else { json!({"type": "array"}) }
        }
        Value::Object(fields) => {
            let properties: Map<String, Value> =
                fields.iter().take(FIELDS_MAX).map(|(name, value)| (name.clone(), schema_of(value, depth - 1))).collect();
            let required: Vec<&String> = properties.keys().collect();
            json!({"type": "object", "required": required, "properties": properties})
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Timestamp;
    use crate::proto::task::definition::{Defaults, Definition};

    /// An object with these fields, all required; a name that ends in `?` is not.
    fn object(fields: &Value) -> Value {
        let fields = fields.as_object().expect("fields");
        let required: Vec<&String> = fields.keys().filter(|name| !name.ends_with('?')).collect();
        let named = |(name, kind): (&String, &Value)| {
            let schema = if kind.is_string() { json!({"type": kind}) } else { kind.clone() };
            (name.trim_end_matches('?').to_owned(), schema)
        };
        json!({"type": "object", "required": required, "properties": fields.iter().map(named).collect::<Map<_, _>>(), "additionalProperties": false})
    }

    /// Name, what is taken, what is given, score.
    type Row = (&'static str, Value, Value, f64);

    fn planned(parameters: &Value, output: &Value, rows: &[Row]) -> Result<Value, Failure> {
        let rows: Vec<(CapabilityName, Value, Value, f64)> = rows
            .iter()
            .map(|(name, input, output, score)| (name.parse().expect("a name"), object(input), object(output), *score))
            .collect();
        let offers: Vec<Offer<'_>> = rows.iter().map(|(name, input, output, score)| Offer { name, input, output, score: *score }).collect();
        let fields = parameters.as_object().expect("parameters");
        let subtasks = plan(&json!(true), fields, output, &offers)?;
        // Every plan is a definition that can be run, with one result.
        let document = json!({"name": "n", "goal": "g", "parameters": parameters, "subtasks": subtasks});
        let definition = Definition::read(&document, &Defaults::default(), Timestamp::from_ms(0)).expect("a definition");
        assert_eq!(definition.sinks().len(), 1, "{subtasks}");
        Ok(subtasks)
    }

    fn steps(plan: &Value) -> Vec<&str> {
        plan.as_array().expect("a list").iter().map(|step| step["agent_capability"].as_str().expect("a name")).collect()
    }

    fn paper() -> Vec<Row> {
        vec![
            (
                "pdf-text-extraction",
                json!({"pdf_url": "string", "max_pages?": "integer"}),
                json!({"raw_text": "string", "pages": "integer"}),
                0.5,
            ),
            ("nlp-analysis", json!({"text": "string"}), json!({"sentences": {"type": "array", "items": {"type": "string"}}}), 0.5),
            ("sentence-count", json!({"sentences": {"type": "array", "items": {"type": "string"}}}), json!({"count": "integer"}), 0.5),
            ("unrelated", json!({"raw_text": "string"}), json!({"colour": "string"}), 1.0),
        ]
    }

    /// AITP-4: the chain goes from the parameters to the output by names and types, and hands optional fields on.
    #[test]
    fn a_chain_leads_from_the_parameters_to_the_output() {
        let parameters = json!({"pdf_url": "https://example.org/a.pdf", "max_pages": 3});
        let plan = planned(&parameters, &object(&json!({"count": "integer"})), &paper()).expect("a plan");
        assert_eq!(steps(&plan), ["pdf-text-extraction", "nlp-analysis", "sentence-count"]);
        assert_eq!(plan[0]["input"], json!({"pdf_url": "${parent.input[\"pdf_url\"]}", "max_pages": "${parent.input[\"max_pages\"]}"}));
        assert_eq!(plan[1]["input"], json!({"text": "${step_1.output[\"raw_text\"]}"}), "the only text of the step before");
        assert_eq!(plan[2]["input"], json!({"sentences": "${step_2.output[\"sentences\"]}"}));
        assert_eq!(plan[2]["output_mapping"], json!({"count": "count"}));
    }

    /// AITP-4: the shortest chain wins, and of those the best scored.
    #[test]
    fn shorter_comes_before_better_and_better_before_worse() {
        let output = object(&json!({"summary": "string"}));
        let rows: Vec<Row> = vec![
            ("a.long", json!({"text": "string"}), json!({"notes": {"type": "array"}}), 1.0),
            ("a.end", json!({"notes": {"type": "array"}}), json!({"summary": "string"}), 1.0),
            ("b.poor", json!({"text": "string"}), json!({"summary": "string"}), 0.1),
            ("b.good", json!({"text": "string"}), json!({"summary": "string", "more": "string"}), 0.2),
        ];
        let text = json!({"text": "t"});
        assert_eq!(steps(&planned(&text, &output, &rows).expect("a plan")), ["b.good"]);
        assert_eq!(steps(&planned(&text, &output, &rows[..2]).expect("a plan")), ["a.long", "a.end"]);
    }

    /// AITP-4: two branches meet in the step that needs both.
    #[test]
    fn a_step_may_take_from_several_before_it() {
        let rows: Vec<Row> = vec![
            ("left", json!({"text": "string"}), json!({"a": "integer"}), 0.5),
            ("right", json!({"text": "string"}), json!({"b": "integer"}), 0.5),
            ("join", json!({"a": "number", "b": "number"}), json!({"sum": "number"}), 0.5),
        ];
        let plan = planned(&json!({"text": "t"}), &object(&json!({"sum": "number"})), &rows).expect("a plan");
        assert_eq!(steps(&plan)[2], "join");
        let input = plan[2]["input"].to_string();
        assert!(input.contains("step_1.output") && input.contains("step_2.output"), "{input}");
    }

    /// AITP-4: a type that might not fit is no way.
    #[test]
    fn types_must_fit_for_certain() {
        for (given, wanted, fit) in [
            (json!({"type": "integer"}), json!({"type": "number"}), true),
            (json!({"type": "number"}), json!({"type": "integer"}), false),
            (json!({"type": "string"}), json!({"type": ["string", "null"]}), true),
            (json!({"type": ["string", "null"]}), json!({"type": "string"}), false),
            (json!({}), json!({"type": "string"}), false),
            (json!({"type": "string"}), json!({}), true),
            (json!({"type": "string"}), json!({"enum": ["a"]}), false),
            (json!({"enum": ["a"]}), json!({"enum": ["a"]}), true),
            (json!({"type": "string", "format": "uri"}), json!({"type": "string", "format": "date"}), false),
            (json!({"type": "array"}), json!({"type": "array", "items": {"type": "string"}}), false),
            (json!({"type": "array", "items": {"type": "string"}}), json!({"type": "array"}), true),
            (object(&json!({"x": "string"})), object(&json!({"x": "string", "y?": "string"})), true),
            (object(&json!({"x": "string"})), object(&json!({"y": "string"})), false),
            (object(&json!({"x": "string"})), object(&json!({"x": "integer"})), false),
        ] {
            assert_eq!(fits(&given, &wanted, DEPTH_MAX), fit, "{given} for {wanted}");
        }
    }

    /// AITP-4: which of two texts is meant is not guessed.
    #[test]
    fn of_two_texts_none_is_taken_under_another_name() {
        let output = object(&json!({"summary": "string"}));
        let rows = |given: Value, taken: Value| -> [Row; 2] {
            [("reader", json!({"page": "integer"}), given, 0.5), ("summarization", taken, json!({"summary": "string"}), 0.5)]
        };
        let plan = |given: Value, taken: Value| planned(&json!({"page": 3, "title": "t"}), &output, &rows(given, taken));
        assert!(plan(json!({"abstract": "string", "year": "integer"}), json!({"text": "string"})).is_ok());
        assert!(plan(json!({"abstract": "string", "note": "string"}), json!({"text": "string"})).is_err(), "one of two texts");
        assert!(
            plan(json!({"abstract": "string"}), json!({"text": "string", "language": "string"})).is_err(),
            "it requires more than a text"
        );
        assert!(plan(json!({"link": {"type": "string", "format": "uri"}}), json!({"text": "string"})).is_err(), "a link is no text");
        assert!(plan(json!({"year": "integer"}), json!({"text": "string"})).is_err(), "nor is a parameter renamed");
    }

    /// AITP-4: where there is no chain, it is told what is missing, what was reached, and who comes nearest.
    #[test]
    fn a_failure_says_what_is_missing() {
        let parameters = json!({"pdf_url": "u"});
        let nobody =
            planned(&parameters, &object(&json!({"count": "integer", "limits": "string"})), &paper()).expect_err("nobody gives limits");
        assert_eq!(nobody.code, ErrorCode::CapabilityNotFound);
        assert!(nobody.message.starts_with("nobody gives `limits`; what can be reached from the parameters is "), "{nobody}");
        assert!(nobody.message.ends_with("nearest is `sentence-count`, which gives `count`"), "{nobody}");
        assert_eq!((&nobody.details["missing"], &nobody.details["nearest"]), (&json!(["limits"]), &json!("sentence-count")));

        let stuck = planned(&json!({"year": 3}), &object(&json!({"count": "integer"})), &paper()).expect_err("nothing begins");
        let told =
            "no capability can begin with what the parameters hold; nearest is `sentence-count`, which gives `count` and lacks `sentences`";
        assert!(stuck.message.ends_with(told), "{stuck}");

        let apart =
            planned(&parameters, &object(&json!({"count": "integer", "pages": "integer"})), &paper()).expect_err("no one step gives both");
        assert!(apart.message.starts_with("no chain of at most 6 capabilities ends in one that gives all of `count`, `pages`"), "{apart}");

        let open = planned(&parameters, &json!(true), &paper()).expect_err("no goal");
        assert!(open.message.contains("names no fields"), "{open}");
    }

    /// AITP-4: a chain is found among many capabilities that do not matter, none is longer than the most steps, and the search ends.
    #[test]
    fn the_search_is_bounded() {
        let names: Vec<String> = (0..OFFERS_MAX).map(|number| format!("n{number}")).collect();
        let field = |number: usize| object(&json!({format!("f{number}"): "integer"}));
        let crowd: Vec<(CapabilityName, Value, Value)> = names
            .iter()
            .enumerate()
            .map(|(number, name)| {
                let link = number < STEPS_MAX + 1;
                // A chain of the first few; all others take what is there from the beginning, and give things beside.
                let (takes, gives) = if link { (field(number), field(number + 1)) } else { (field(0), field(number + 1_000)) };
                (name.parse().expect("a name"), takes, gives)
            })
            .collect();
        let offers: Vec<Offer<'_>> = crowd.iter().map(|(name, input, output)| Offer { name, input, output, score: 0.5 }).collect();
        let parameters = json!({"f0": 1});
        let run = |last: usize| plan(&json!(true), parameters.as_object().expect("fields"), &field(last), &offers);
        assert_eq!(run(STEPS_MAX).expect("a plan").as_array().map(Vec::len), Some(STEPS_MAX));
        assert!(run(STEPS_MAX + 1).expect_err("too far").message.starts_with("no chain of at most 6"));
        // Everything can begin, and everything is needed by a last step that needs more than a chain can hold: the width alone bounds it.
        let needed: Map<String, Value> = (0..FIELDS_MAX).map(|number| (format!("f{}", number + 1_000), json!("integer"))).collect();
        let last: CapabilityName = "last".parse().expect("a name");
        let (needed, goal) = (object(&Value::Object(needed)), object(&json!({"goal": "integer"})));
        let wide: Vec<(CapabilityName, Value)> =
            (0..FIELDS_MAX).map(|number| (format!("w{number}").parse().expect("a name"), field(number + 1_000))).collect();
        let begin = field(0);
        let offers = wide.iter().map(|(name, output)| Offer { name, input: &begin, output, score: 0.5 });
        let offers: Vec<Offer<'_>> = offers.chain([Offer { name: &last, input: &needed, output: &goal, score: 0.5 }]).collect();
        let none = plan(&json!(true), parameters.as_object().expect("fields"), &goal, &offers).expect_err("more than a chain can hold");
        assert!(none.message.starts_with("no chain of at most 6") && none.message.contains("and 245 more"), "{none}");
    }
}
