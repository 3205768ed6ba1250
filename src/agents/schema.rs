//! JSON Schema for what a capability takes and gives.
//!
//! A schema arrives from strangers, and a small one can cost a machine minutes: references that double at every level, patterns
//! that backtrack, references that fetch. This module decides which schemas are worth compiling, before the compiler sees them,
//! and which values are worth checking, before the validator sees them.
//!
//! Words: a *node* is one subschema. An edge is *in place* when both ends judge the same value (`allOf`, `$ref`) and *descends* when the
//! far end judges a child of it (`properties`, `items`). The *expanded* count is the number of nodes once every reference is followed.
//!
//! Invariants:
//! - Nothing is ever fetched: a reference starts with `#`, and the base it is read against cannot be moved.
//! - References that return to themselves without descending are refused, so judging a value always ends.
//! - At most [`EXPANDED_MAX`] nodes, [`CHAIN_MAX`] of them in place in a row, and patterns only on the engine that runs in linear time.
//! - A recursive schema may still apply one node many times to one deep value (two branches that both descend through the same property
//!   double with every level), so [`Schema::check`] counts that work on the value at hand and refuses above [`WORK_MAX`].
//! - A fault never repeats a large value, and there are at most [`FAULTS_MAX`].
//!
//! Left to others: the deadline on the worker that calls this, and what is done about a value that does not fit.
//!
//! Source: the threat table, T26 (schema denial of service) and T23 (hostile output); JSON Schema core 2020-12, sections 8 and 10.

use std::{
    collections::{BTreeMap, HashMap},
    fmt::{self, Write as _},
    sync::Arc,
};

use jsonschema::{PatternOptions, ValidationError, Validator, error::ValidationErrorKind};
use serde_json::{Map, Value};

/// The most bytes a schema may take when serialized.
pub const BYTES_MAX: usize = 16 * 1024;
/// The deepest nesting of a schema document.
pub const DEPTH_MAX: usize = 32;
/// The most subschemas after following every reference.
pub const EXPANDED_MAX: u64 = 10_000;
/// The longest run of in-place nodes, which bounds the stack per level of a value.
pub const CHAIN_MAX: usize = 64;
/// The longest pattern, in bytes.
pub const PATTERN_BYTES_MAX: usize = 512;
/// The most patterns in one schema.
pub const PATTERNS_MAX: usize = 64;
/// The most faults that one check reports.
pub const FAULTS_MAX: usize = 8;
/// The longest message of a fault, in characters.
pub const MESSAGE_CHARS_MAX: usize = 300;
/// The deepest nesting of a value that is checked, which is also what the JSON parser reads.
pub const VALUE_DEPTH_MAX: usize = 128;
/// The most applications of a node to a place in a value in one check: a second or two of one core.
pub const WORK_MAX: u64 = 20_000_000;

/// Compiled size of one pattern: room for ordinary repeats, none for `(a{999}){999}`.
const PATTERN_COMPILED_BYTES_MAX: usize = 256 * 1024;
/// Nested applications in one check, so that the validator's recursion fits a two megabyte stack.
const STACK_MAX: usize = 1_024;
/// Beyond this many places in a value only the first fault is looked for: each costs memory before any can be dropped.
const ALL_FAULTS_PLACES_MAX: u64 = 10_000;
/// Entries of the tables that describe a recursive schema.
const ROWS_MAX: usize = 100_000;

const DRAFTS: [&str; 6] = [
    "json-schema.org/draft-04/schema",
    "json-schema.org/draft-06/schema",
    "json-schema.org/draft-07/schema",
    "json-schema.org/draft/2019-09/schema",
    "json-schema.org/draft/2020-12/schema",
    "json-schema.org/schema",
];

/// Why a schema was refused. None of these can be retried with the same schema, and none has changed any state.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The document is neither an object nor a boolean. Happens when a definition names the wrong field; fix the definition.
    #[error("read the schema: it is {found}, and a schema is an object or a boolean")]
    NotASchema {
        /// What was found, such as `an array`.
        found: &'static str,
    },
    /// The serialized schema is too long. Happens with generated schemas; shorten descriptions or split the capability.
    #[error("accept the schema: it is longer than {max} bytes")]
    TooLong {
        /// The bound.
        max: usize,
    },
    /// The document nests too deep. Unusual in hand-written schemas; move inner parts to `$defs`.
    #[error("accept the schema at {path}: it nests deeper than {max} levels")]
    TooDeep {
        /// Where the bound was passed.
        path: String,
        /// The bound.
        max: usize,
    },
    /// Following references gives too many subschemas. Hardly ever happens except as an attack.
    #[error("accept the schema at {path}: following its references gives more than {max} subschemas")]
    TooManyNodes {
        /// The subschema with too many below it.
        path: String,
        /// The bound.
        max: u64,
    },
    /// Too many subschemas judge the same value one inside the other. Hardly ever happens; flatten the references.
    #[error("accept the schema at {path}: more than {max} references and combinators follow each other without descending")]
    TooLongChain {
        /// Where the run starts.
        path: String,
        /// The bound.
        max: usize,
    },
    /// A reference returns to itself without descending into the value, so judging would never end. A mistake or an attack.
    #[error("accept the schema at {path}: its references lead back to it without descending into the value")]
    EndlessReference {
        /// A subschema on the circle.
        path: String,
    },
    /// A reference leaves the document. Happens with schemas split over files; copy the parts into `$defs`.
    #[error("accept the reference at {path}: only references that begin with # are followed")]
    RemoteReference {
        /// Where the reference stands.
        path: String,
    },
    /// A local reference leads nowhere, or two parts share the anchor it names. A typing mistake, most often.
    #[error("resolve the reference at {path}: {reason}")]
    UnresolvedReference {
        /// Where the reference stands.
        path: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A `$id` inside the document moves the base of references. Happens with bundled schemas; unbundle into `$defs`.
    #[error("accept the $id at {path}: it would move the base of the references below it")]
    MovedBase {
        /// Where the `$id` stands.
        path: String,
    },
    /// `$schema` names a draft that is not known here. Happens with custom dialects; use one of the published drafts.
    #[error("accept the $schema at {path}: it is not a published draft from 04 to 2020-12")]
    UnknownDraft {
        /// Where the `$schema` stands.
        path: String,
    },
    /// A pattern is too long, too big once compiled, one of too many, or needs backtracking. Happens with look-around; rewrite the pattern.
    #[error("accept the pattern at {path}: {reason}")]
    Pattern {
        /// Where the pattern stands.
        path: String,
        /// What is wrong with it, with the bound.
        reason: String,
    },
    /// The document breaks the rules of its draft. Happens in normal life; the message says which keyword.
    #[error("compile the schema at {path}: {message}")]
    Invalid {
        /// Where the keyword stands.
        path: String,
        /// What the compiler says.
        message: String,
    },
}

/// One way in which a value does not fit a schema.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The place in the value as a JSON pointer; `/` is the whole value.
    pub path: String,
    /// What is wrong there, at most [`MESSAGE_CHARS_MAX`] characters.
    pub message: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.message)
    }
}

/// A schema that was found harmless and compiled. Cloning is cheap.
#[derive(Clone)]
pub struct Schema(Arc<Compiled>);

struct Compiled {
    validator: Validator,
    /// Nodes that may apply at one place of a value, where the schema does not recurse.
    expanded: u64,
    /// The longest run of nodes at one place of a value.
    chain: usize,
    /// How the nodes of a recursive schema lead from place to place; `None` where `expanded` says it all.
    rows: Option<HashMap<usize, Row>>,
}

impl fmt::Debug for Schema {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Schema")
            .field("expanded", &self.0.expanded)
            .field("chain", &self.0.chain)
            .field("recursive", &self.0.rows.is_some())
            .finish_non_exhaustive()
    }
}

impl Schema {
    /// Compiles a schema after finding that it is bounded.
    ///
    /// # Errors
    /// [`Error`] names the place and the bound. The work done before refusing is bounded by the size of the document.
    pub fn compile(schema: &Value) -> Result<Self, Error> {
        depth_within(schema, DEPTH_MAX).map_err(|path| Error::TooDeep { path: shown(&path), max: DEPTH_MAX })?;
        if !length_within(schema, BYTES_MAX) {
            return Err(Error::TooLong { max: BYTES_MAX });
        }
        let mut document = schema.clone();
        match &mut document {
            // With local references alone the root's identifier decides nothing, except that it could claim the address of a known document.
            Value::Object(root) => {
                let dialect_04 = root.get("$schema").and_then(Value::as_str).is_some_and(|uri| uri.contains("draft-04"));
                for key in if dialect_04 { &["$id", "id"][..] } else { &["$id"][..] } {
                    if root.get(*key).is_some_and(|id| id.as_str().is_some_and(|id| !id.starts_with('#'))) {
                        root.remove(*key);
                    }
                }
            }
            Value::Bool(_) => {}
            Value::Null => return Err(Error::NotASchema { found: "null" }),
            Value::Number(_) => return Err(Error::NotASchema { found: "a number" }),
            Value::String(_) => return Err(Error::NotASchema { found: "a string" }),
            Value::Array(_) => return Err(Error::NotASchema { found: "an array" }),
        }
        let graph = Graph::of(&document)?;
        let chain = graph.chain()?;
        let (expanded, recursive) = graph.expanded()?;
        let rows = if recursive { Some(graph.rows()?) } else { None };
        let patterns = PatternOptions::regex().size_limit(PATTERN_COMPILED_BYTES_MAX).dfa_size_limit(PATTERN_COMPILED_BYTES_MAX);
        let validator = jsonschema::options().offline().with_pattern_options(patterns).build(&document).map_err(|error| refusal(&error))?;
        Ok(Self(Arc::new(Compiled { validator, expanded, chain, rows })))
    }

    /// What checking a value that is written in so many bytes comes to at most, counted as text of so many bytes.
    pub fn cost(&self, bytes: usize) -> usize {
        match self.0.rows {
            None => bytes.saturating_mul(usize::try_from(self.0.expanded).unwrap_or(usize::MAX)),
            // How often a recursive schema applies is known only once the value has been looked at.
            Some(_) => usize::MAX,
        }
    }

    /// Says whether a value fits.
    ///
    /// # Errors
    /// The faults, at least one and at most [`FAULTS_MAX`]. A value that is too deep or too much work for this schema has one fault that says so.
    pub fn check(&self, value: &Value) -> Result<(), Vec<Fault>> {
        let too_deep = |max: usize| {
            vec![Fault { path: "/".to_owned(), message: format!("nests deeper than {max} levels, the most this schema checks") }]
        };
        // Without recursion the validator goes no deeper than the schema does, however deep the value.
        let depth_max = if self.0.rows.is_some() { VALUE_DEPTH_MAX.min(STACK_MAX / self.0.chain.max(1)) } else { VALUE_DEPTH_MAX };
        if depth_within(value, depth_max).is_err() {
            return Err(too_deep(depth_max));
        }
        let places = places(value);
        let work = match &self.0.rows {
            None => places.saturating_mul(self.0.expanded),
            Some(rows) => work(rows, value),
        };
        if work > WORK_MAX {
            let message = format!("too much work: this schema would be applied more than {WORK_MAX} times to this value");
            return Err(vec![Fault { path: "/".to_owned(), message }]);
        }
        if places > ALL_FAULTS_PLACES_MAX {
            return self.0.validator.validate(value).map_err(|error| vec![fault(&error)]);
        }
        let faults: Vec<Fault> = self.0.validator.iter_errors(value).take(FAULTS_MAX).map(|error| fault(&error)).collect();
        if faults.is_empty() { Ok(()) } else { Err(faults) }
    }
}

/// The name of a schema: BLAKE3 over a domain tag and the serialized document, whose keys are sorted.
pub fn hash(schema: &Value) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"meshwork/schema/1");
    hasher.update(schema.to_string().as_bytes());
    *hasher.finalize().as_bytes()
}

/// Which child of a value a descending edge leads to.
#[derive(Debug, Clone, Copy)]
enum Step<'a> {
    Name(&'a str),
    AnyName,
    Item,
}

#[derive(Debug, Default)]
struct Node<'a> {
    pointer: String,
    /// What applying it alone comes to.
    weight: u64,
    here: Vec<usize>,
    below: Vec<(Step<'a>, usize)>,
}

/// Every subschema that can apply, and how they lead to one another. Node 0 is the root.
struct Graph<'a> {
    nodes: Vec<Node<'a>>,
}

/// Where the nodes that start at one place of a value lead: per child, the nodes that start there and how often.
#[derive(Debug, Default)]
struct Row {
    cost: u64,
    names: BTreeMap<String, BTreeMap<usize, u64>>,
    any_name: BTreeMap<usize, u64>,
    item: BTreeMap<usize, u64>,
}

impl<'a> Graph<'a> {
    fn of(document: &'a Value) -> Result<Self, Error> {
        let mut reader =
            Reader { document, ids: HashMap::new(), queue: Vec::new(), nodes: Vec::new(), patterns: 0, anchors: HashMap::new() };
        anchors(document, &mut reader.anchors);
        reader.id(document, String::new());
        while let Some((id, value)) = reader.queue.pop() {
            if let Value::Object(schema) = value {
                reader.read(id, schema)?;
            }
        }
        Ok(Self { nodes: reader.nodes })
    }

    /// The longest run of in-place nodes, which exists because circles are refused.
    fn chain(&self) -> Result<usize, Error> {
        let mut lengths = vec![None; self.nodes.len()];
        let mut open = vec![false; self.nodes.len()];
        let mut longest = 0;
        for id in 0..self.nodes.len() {
            let length = self.chain_from(id, &mut lengths, &mut open)?;
            if length > CHAIN_MAX {
                return Err(Error::TooLongChain { path: shown(&self.nodes[id].pointer), max: CHAIN_MAX });
            }
            longest = longest.max(length);
        }
        Ok(longest)
    }

    fn chain_from(&self, id: usize, lengths: &mut [Option<usize>], open: &mut [bool]) -> Result<usize, Error> {
        if let Some(length) = lengths[id] {
            return Ok(length);
        }
        if open[id] {
            return Err(Error::EndlessReference { path: shown(&self.nodes[id].pointer) });
        }
        open[id] = true;
        let mut longest = 0;
        for &next in &self.nodes[id].here {
            longest = longest.max(self.chain_from(next, lengths, open)?);
        }
        open[id] = false;
        lengths[id] = Some(longest + 1);
        Ok(longest + 1)
    }

    /// The number of nodes once every reference is followed, and whether any leads back to itself; a way back counts once.
    fn expanded(&self) -> Result<(u64, bool), Error> {
        let mut recursive = false;
        let count = self.expanded_from(0, &mut vec![None; self.nodes.len()], &mut vec![false; self.nodes.len()], &mut recursive);
        if count > EXPANDED_MAX {
            return Err(Error::TooManyNodes { path: shown(&self.nodes[0].pointer), max: EXPANDED_MAX });
        }
        Ok((count, recursive))
    }

    fn expanded_from(&self, id: usize, counts: &mut [Option<u64>], open: &mut [bool], recursive: &mut bool) -> u64 {
        if let Some(count) = counts[id] {
            return count;
        }
        if open[id] {
            *recursive = true;
            return 1;
        }
        open[id] = true;
        let node = &self.nodes[id];
        let count = node
            .here
            .iter()
            .chain(node.below.iter().map(|(_, next)| next))
            .fold(node.weight, |sum, &next| sum.saturating_add(self.expanded_from(next, counts, open, recursive)));
        open[id] = false;
        counts[id] = Some(count);
        count
    }

    /// The table by which [`work`] follows a recursive schema through a value.
    fn rows(&self) -> Result<HashMap<usize, Row>, Error> {
        let mut rows = HashMap::new();
        let mut entries = 0;
        let mut waiting = vec![0];
        while let Some(start) = waiting.pop() {
            if rows.contains_key(&start) {
                continue;
            }
            let mut row = Row::default();
            for (id, times) in self.applied_at(start) {
                let node = &self.nodes[id];
                row.cost = row.cost.saturating_add(times.saturating_mul(node.weight));
                entries += 1 + node.below.len();
                for &(step, next) in &node.below {
                    let targets = match step {
                        Step::Name(name) => row.names.entry(name.to_owned()).or_default(),
                        Step::AnyName => &mut row.any_name,
                        Step::Item => &mut row.item,
                    };
                    let sum = targets.entry(next).or_insert(0_u64);
                    *sum = sum.saturating_add(times);
                    waiting.push(next);
                }
                if entries > ROWS_MAX {
                    return Err(Error::TooManyNodes { path: shown(&node.pointer), max: EXPANDED_MAX });
                }
            }
            rows.insert(start, row);
        }
        Ok(rows)
    }

    /// The nodes that judge a value once `start` does, each with the number of ways that lead to it.
    fn applied_at(&self, start: usize) -> Vec<(usize, u64)> {
        let mut order = Vec::new();
        self.postorder(start, &mut HashMap::new(), &mut order);
        let mut times: HashMap<usize, u64> = HashMap::from([(start, 1)]);
        for &id in order.iter().rev() {
            let here = times.get(&id).copied().unwrap_or(0);
            for next in &self.nodes[id].here {
                let sum = times.entry(*next).or_insert(0);
                *sum = sum.saturating_add(here);
            }
        }
        times.into_iter().collect()
    }

    fn postorder(&self, id: usize, seen: &mut HashMap<usize, ()>, order: &mut Vec<usize>) {
        if seen.insert(id, ()).is_none() {
            for &next in &self.nodes[id].here {
                self.postorder(next, seen, order);
            }
            order.push(id);
        }
    }
}

/// Turns a document into a [`Graph`], refusing what may not stand in one.
struct Reader<'a> {
    document: &'a Value,
    ids: HashMap<*const Value, usize>,
    queue: Vec<(usize, &'a Value)>,
    nodes: Vec<Node<'a>>,
    anchors: HashMap<&'a str, Vec<&'a Value>>,
    patterns: usize,
}

/// A value is looked up among strings or integers alone, and compared with each of other alternatives.
fn weight(schema: &Value) -> u64 {
    let alternatives = schema.get("enum").and_then(Value::as_array);
    let compared = alternatives.filter(|values| !values.iter().all(Value::is_string) && !values.iter().all(Value::is_i64));
    compared.map_or(1, |values| u64::try_from(values.len()).unwrap_or(u64::MAX).saturating_add(1))
}

impl<'a> Reader<'a> {
    /// The node of a subschema; a place reached twice is one node.
    fn id(&mut self, value: &'a Value, pointer: String) -> usize {
        let next = self.nodes.len();
        let id = *self.ids.entry(std::ptr::from_ref(value)).or_insert(next);
        if id == next {
            self.nodes.push(Node { pointer, weight: weight(value), ..Node::default() });
            self.queue.push((id, value));
        }
        id
    }

    fn read(&mut self, id: usize, schema: &'a Map<String, Value>) -> Result<(), Error> {
        let base = self.nodes[id].pointer.clone();
        for (key, value) in schema {
            let at = join(&base, key);
            match key.as_str() {
                "$ref" | "$dynamicRef" | "$recursiveRef" => {
                    if let Some(reference) = value.as_str() {
                        let target = self.resolve(reference, &at)?;
                        // A target reached by two ways keeps the pointer under which it was seen first.
                        let next = self.id(target.0, target.1);
                        self.nodes[id].here.push(next);
                    }
                }
                "$schema" => draft(value, &at)?,
                "$id" if !value.as_str().is_none_or(|id| id.starts_with('#')) => return Err(Error::MovedBase { path: at }),
                // The name that draft 04 had for `$id`; elsewhere it means nothing, and inside `properties` it never comes here.
                "id" if value.as_str().is_some_and(|id| !id.starts_with('#')) && id != 0 => return Err(Error::MovedBase { path: at }),
                "allOf" | "anyOf" | "oneOf" => self.each_here(id, value, &at),
                "not" | "if" | "then" | "else" => self.here(id, value, at),
                "dependentSchemas" | "dependencies" => self.each_here(id, value, &at),
                "properties" => {
                    for (name, child) in value.as_object().into_iter().flatten() {
                        self.below(id, Step::Name(name), child, join(&at, name));
                    }
                }
                "patternProperties" => {
                    for (name, child) in value.as_object().into_iter().flatten() {
                        self.pattern(name, &join(&at, name))?;
                        self.below(id, Step::AnyName, child, join(&at, name));
                    }
                }
                "additionalProperties" | "unevaluatedProperties" | "propertyNames" | "contentSchema" => {
                    self.below(id, Step::AnyName, value, at)
                }
                "prefixItems" | "items" if value.is_array() => {
                    for (index, child) in value.as_array().into_iter().flatten().enumerate() {
                        self.below(id, Step::Item, child, format!("{at}/{index}"));
                    }
                }
                "items" | "additionalItems" | "unevaluatedItems" | "contains" => self.below(id, Step::Item, value, at),
                "$defs" | "definitions" => {
                    for (name, child) in value.as_object().into_iter().flatten() {
                        self.id(child, join(&at, name));
                    }
                }
                "pattern" => self.pattern(value.as_str().unwrap_or_default(), &at)?,
                _ => {}
            }
        }
        Ok(())
    }

    fn here(&mut self, id: usize, value: &'a Value, at: String) {
        let next = self.id(value, at);
        self.nodes[id].here.push(next);
    }

    fn each_here(&mut self, id: usize, value: &'a Value, at: &str) {
        for (index, child) in value.as_array().into_iter().flatten().enumerate() {
            self.here(id, child, format!("{at}/{index}"));
        }
        for (name, child) in value.as_object().into_iter().flatten() {
            self.here(id, child, join(at, name));
        }
    }

    fn below(&mut self, id: usize, step: Step<'a>, value: &'a Value, at: String) {
        let next = self.id(value, at);
        self.nodes[id].below.push((step, next));
    }

    fn pattern(&mut self, pattern: &str, at: &str) -> Result<(), Error> {
        self.patterns += 1;
        if pattern.len() > PATTERN_BYTES_MAX {
            return Err(Error::Pattern { path: shown(at), reason: format!("it is longer than {PATTERN_BYTES_MAX} bytes") });
        }
        if self.patterns > PATTERNS_MAX {
            return Err(Error::Pattern { path: shown(at), reason: format!("the schema has more than {PATTERNS_MAX}") });
        }
        Ok(())
    }

    fn resolve(&self, reference: &str, at: &str) -> Result<(&'a Value, String), Error> {
        let Some(fragment) = reference.strip_prefix('#') else {
            return Err(Error::RemoteReference { path: shown(at) });
        };
        let unresolved = |reason| Error::UnresolvedReference { path: shown(at), reason };
        let fragment = decoded(fragment).ok_or_else(|| unresolved("it has a broken percent escape"))?;
        if fragment.is_empty() || fragment.starts_with('/') {
            let target = self.document.pointer(&fragment).ok_or_else(|| unresolved("it leads nowhere"))?;
            return Ok((target, fragment));
        }
        match self.anchors.get(fragment.as_str()).map(Vec::as_slice) {
            Some(&[target]) => Ok((target, format!("#{fragment}"))),
            Some(_) => Err(unresolved("two parts of the document share its anchor")),
            None => Err(unresolved("no part of the document has its anchor")),
        }
    }
}

/// Gathers what local names point at, wherever they stand: more than the compiler will look at, never less.
fn anchors<'a>(value: &'a Value, found: &mut HashMap<&'a str, Vec<&'a Value>>) {
    match value {
        Value::Object(map) => {
            let mut names: Vec<&str> = ["$anchor", "$dynamicAnchor"].iter().filter_map(|key| map.get(*key)?.as_str()).collect();
            names.extend(["$id", "id"].iter().filter_map(|key| map.get(*key)?.as_str()?.strip_prefix('#')));
            names.sort_unstable();
            names.dedup();
            for name in names {
                found.entry(name).or_default().push(value);
            }
            map.values().for_each(|child| anchors(child, found));
        }
        Value::Array(items) => items.iter().for_each(|child| anchors(child, found)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn draft(value: &Value, at: &str) -> Result<(), Error> {
    let uri = value.as_str().unwrap_or_default();
    let name = uri.strip_prefix("https://").or_else(|| uri.strip_prefix("http://")).unwrap_or_default();
    if DRAFTS.contains(&name.trim_end_matches('#')) { Ok(()) } else { Err(Error::UnknownDraft { path: shown(at) }) }
}

/// How often nodes would be applied while judging a value; counting stops once it is too much.
fn work(rows: &HashMap<usize, Row>, value: &Value) -> u64 {
    let mut total = 0;
    let mut waiting = vec![(value, BTreeMap::from([(0, 1_u64)]))];
    while let Some((value, starts)) = waiting.pop() {
        let rows: Vec<(&Row, u64)> = starts.iter().filter_map(|(id, times)| Some((rows.get(id)?, *times))).collect();
        // Counting is work as well, hence the one for each start.
        let cost = rows.iter().fold(1_u64, |sum, (row, times)| sum.saturating_add(row.cost.saturating_mul(*times)).saturating_add(1));
        total = cost.saturating_add(total);
        if total > WORK_MAX {
            return total;
        }
        let mut follow = |child, name: Option<&str>| {
            let mut next = BTreeMap::new();
            for (row, times) in &rows {
                let named = name.and_then(|name| row.names.get(name));
                let others = if name.is_some() { &row.any_name } else { &row.item };
                for (id, ways) in named.into_iter().flatten().chain(others) {
                    let sum = next.entry(*id).or_insert(0_u64);
                    *sum = sum.saturating_add(times.saturating_mul(*ways));
                }
            }
            if !next.is_empty() {
                waiting.push((child, next));
            }
        };
        match value {
            Value::Object(map) => map.iter().for_each(|(name, child)| follow(child, Some(name))),
            Value::Array(items) => items.iter().for_each(|child| follow(child, None)),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }
    total
}

/// The number of values in a value, itself included.
fn places(value: &Value) -> u64 {
    let mut count = 0;
    let mut waiting = vec![value];
    while let Some(value) = waiting.pop() {
        count += 1;
        match value {
            Value::Array(items) => waiting.extend(items),
            Value::Object(map) => waiting.extend(map.values()),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }
    count
}

/// Refuses with the place where the nesting passes `max`.
fn depth_within(value: &Value, max: usize) -> Result<(), String> {
    let mut waiting = vec![(value, 1, String::new())];
    while let Some((value, depth, at)) = waiting.pop() {
        let leaf = matches!(value, Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_));
        if depth > max && !leaf {
            return Err(at);
        }
        match value {
            Value::Array(items) => {
                waiting.extend(items.iter().enumerate().filter(|(_, v)| nests(v)).map(|(i, v)| (v, depth + 1, format!("{at}/{i}"))))
            }
            Value::Object(map) => waiting.extend(map.iter().filter(|(_, v)| nests(v)).map(|(k, v)| (v, depth + 1, join(&at, k)))),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }
    Ok(())
}

fn nests(value: &Value) -> bool {
    value.is_array() || value.is_object()
}

/// Whether the serialized form has at most `max` bytes; stops writing at the bound.
fn length_within(value: &Value, max: usize) -> bool {
    struct Room(usize);
    impl fmt::Write for Room {
        fn write_str(&mut self, text: &str) -> fmt::Result {
            self.0 = self.0.checked_sub(text.len()).ok_or(fmt::Error)?;
            Ok(())
        }
    }
    write!(Room(max), "{value}").is_ok()
}

fn refusal(error: &ValidationError<'_>) -> Error {
    let path = shown(error.instance_path().as_str());
    let last = path.rsplit('/').next().unwrap_or_default();
    if last == "pattern" || path.contains("/patternProperties") {
        let reason = format!(
            "it is no pattern of the linear engine (no look-around, no back-references, at most {PATTERN_COMPILED_BYTES_MAX} bytes compiled)"
        );
        return Error::Pattern { path, reason };
    }
    Error::Invalid { path, message: capped(&message(error)) }
}

fn fault(error: &ValidationError<'_>) -> Fault {
    Fault { path: shown(error.instance_path().as_str()), message: capped(&message(error)) }
}

/// What is wrong, without repeating more of the value than a short scalar or a few names.
fn message(error: &ValidationError<'_>) -> String {
    if let ValidationErrorKind::AdditionalProperties { unexpected } | ValidationErrorKind::UnevaluatedProperties { unexpected } =
        error.kind()
    {
        let names: Vec<String> = unexpected.iter().take(3).map(|name| format!("`{}`", name.chars().take(40).collect::<String>())).collect();
        let more = if unexpected.len() > names.len() { format!(" and {} more", unexpected.len() - names.len()) } else { String::new() };
        return format!("unexpected properties: {}{more}", names.join(", "));
    }
    if matches!(error.kind(), ValidationErrorKind::FalseSchema) {
        return "no value is allowed here".to_owned();
    }
    let short = match error.instance().as_ref() {
        Value::Null | Value::Bool(_) | Value::Number(_) => true,
        Value::String(text) => text.len() <= 80,
        Value::Array(_) | Value::Object(_) => matches!(error.kind(), ValidationErrorKind::Required { .. }),
    };
    if short { error.to_string() } else { error.masked().to_string() }
}

/// At most [`MESSAGE_CHARS_MAX`] characters on one line.
fn capped(text: &str) -> String {
    let mut chars = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    let mut kept: String = chars.by_ref().take(MESSAGE_CHARS_MAX).collect();
    if chars.next().is_some() {
        kept.pop();
        kept.push('…');
    }
    kept
}

fn shown(pointer: &str) -> String {
    if pointer.is_empty() { "/".to_owned() } else { capped(pointer) }
}

fn join(base: &str, key: &str) -> String {
    format!("{base}/{}", key.replace('~', "~0").replace('/', "~1"))
}

/// Undoes percent escapes, as a reference is a URI.
fn decoded(text: &str) -> Option<String> {
    String::from_utf8(crate::model::percent_decoded(text)?).ok()
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use serde_json::json;

    use super::*;

    fn refused(schema: &Value) -> Error {
        let started = Instant::now();
        let error = Schema::compile(schema).expect_err("refused");
        assert!(started.elapsed() < Duration::from_millis(200), "refusing took {:?}", started.elapsed());
        error
    }

    fn faults(schema: &Value, value: &Value) -> Vec<Fault> {
        Schema::compile(schema).unwrap().check(value).expect_err("faults")
    }

    fn nested(levels: usize) -> Value {
        (0..levels).fold(json!(1), |inner, _| json!([inner]))
    }

    /// `levels` definitions, each made by `body` from a reference to the next.
    fn ladder(levels: usize, body: impl Fn(Value) -> Value) -> Value {
        let mut defs = Map::new();
        for level in 0..levels {
            defs.insert(format!("d{level}"), body(json!({ "$ref": format!("#/$defs/d{}", level + 1) })));
        }
        defs.insert(format!("d{levels}"), json!({"type": "integer"}));
        json!({"$ref": "#/$defs/d0", "$defs": defs})
    }

    #[test]
    fn a_value_that_fits_has_no_faults() {
        let schema = json!({"type": "object", "required": ["text"], "properties": {"text": {"type": "string"}}});
        assert_eq!(Schema::compile(&schema).unwrap().check(&json!({"text": "hello"})), Ok(()));
    }

    #[test]
    fn a_fault_names_its_place_and_says_what_was_expected() {
        let schema = json!({"properties": {"a/b": {"type": "array", "items": {"type": "integer"}}}, "required": ["x"]});
        let found = faults(&schema, &json!({"a/b": [1, "two"]}));
        assert!(found.iter().any(|f| f.path == "/a~1b/1" && f.message.contains("integer")), "{found:?}");
        assert!(found.iter().any(|f| f.path == "/" && f.message.contains("\"x\" is a required")), "{found:?}");
    }

    #[test]
    fn at_most_eight_faults_are_reported() {
        assert_eq!(faults(&json!({"items": {"type": "string"}}), &json!(vec![1; 100])).len(), FAULTS_MAX);
        assert_eq!(faults(&json!({"items": {"type": "string"}}), &json!(vec![1; 20_000])).len(), 1);
    }

    #[test]
    fn a_fault_does_not_repeat_a_large_value() {
        let large = "x".repeat(100_000);
        for schema in
            [json!({"type": "integer"}), json!({"enum": ["a"]}), json!({"maxLength": 3}), json!({"pattern": "^y"}), json!({"not": {}})]
        {
            let found = faults(&schema, &json!(large));
            assert!(found[0].message.len() < 200, "{found:?}");
        }
        let found = faults(&json!({"properties": {"e": {}}, "additionalProperties": false}), &json!({large: 1, "b": 1, "c": 1, "d": 1}));
        assert!(found[0].message.chars().count() <= MESSAGE_CHARS_MAX && found[0].message.contains("and 1 more"), "{found:?}");
    }

    #[test]
    fn the_same_schema_in_another_order_has_the_same_hash() {
        let one: Value = serde_json::from_str(r#"{"type": "object", "$id": "a", "properties": {"b": true, "a": false}}"#).unwrap();
        let two: Value = serde_json::from_str(r#"{"properties": {"a": false, "b": true}, "$id": "a", "type": "object"}"#).unwrap();
        assert_eq!(hash(&one), hash(&two));
        assert_ne!(hash(&one), hash(&json!({})));
        assert_eq!(hash(&json!({})), *blake3::hash(b"meshwork/schema/1{}").as_bytes());
    }

    #[test]
    fn only_objects_and_booleans_are_schemas() {
        assert_eq!(refused(&json!([])), Error::NotASchema { found: "an array" });
        assert_eq!(refused(&json!("x")), Error::NotASchema { found: "a string" });
        assert!(Schema::compile(&json!(true)).is_ok());
        assert!(Schema::compile(&json!(false)).unwrap().check(&json!(1)).is_err());
    }

    #[test]
    fn a_long_schema_is_refused() {
        assert_eq!(refused(&json!({"description": "x".repeat(BYTES_MAX)})), Error::TooLong { max: BYTES_MAX });
    }

    #[test]
    fn a_deep_schema_is_refused_with_its_place() {
        let deep = (0..DEPTH_MAX).fold(json!({}), |inner, _| json!({"not": inner}));
        let Error::TooDeep { path, max } = refused(&deep) else { panic!("another error") };
        assert!(path.starts_with("/not/not") && max == DEPTH_MAX, "{path}");
    }

    #[test]
    fn doubled_references_are_refused_before_they_are_followed() {
        for body in ["allOf", "anyOf", "oneOf"] {
            let schema = ladder(28, |next| json!({body: [next, next]}));
            assert!(matches!(refused(&schema), Error::TooManyNodes { .. }));
        }
        let schema = ladder(28, |next| json!({"properties": {"a": next, "b": next}}));
        assert!(matches!(refused(&schema), Error::TooManyNodes { .. }));
    }

    #[test]
    fn unevaluated_properties_do_not_hide_doubled_work() {
        for key in ["unevaluatedProperties", "unevaluatedItems"] {
            for by in ["anyOf", "allOf", "oneOf"] {
                let schema = Schema::compile(&ladder(28, |next| json!({by: [next], key: false}))).unwrap();
                let started = Instant::now();
                assert!(schema.check(&json!({"a": 1, "b": [1]})).is_err());
                assert!(started.elapsed() < Duration::from_millis(200), "{key} {by}");
            }
        }
    }

    #[test]
    fn a_long_run_of_references_is_refused() {
        assert!(matches!(refused(&ladder(CHAIN_MAX, |next| next)), Error::TooLongChain { max: CHAIN_MAX, .. }));
    }

    #[test]
    fn references_may_recurse_through_a_child_of_the_value() {
        let tree = json!({"type": "object", "properties": {"left": {"$ref": "#"}, "right": {"$ref": "#"}}, "additionalProperties": false});
        let tree = Schema::compile(&tree).unwrap();
        let deep = (0..100).fold(json!({}), |inner, _| json!({"left": inner, "right": {}}));
        assert_eq!(tree.check(&deep), Ok(()));
        let broken = (0..50).fold(json!({"middle": 1}), |inner, _| json!({"left": inner}));
        assert!(tree.check(&broken).unwrap_err()[0].path.ends_with("/left/left"));
    }

    #[test]
    fn references_may_not_recurse_in_place() {
        let direct = json!({"$ref": "#"});
        let around = json!({"$defs": {"a": {"allOf": [{"$ref": "#/$defs/b"}]}, "b": {"not": {"$ref": "#/$defs/a"}}}, "$ref": "#/$defs/a"});
        let dynamic = json!({"$dynamicAnchor": "me", "anyOf": [{"$dynamicRef": "#me"}]});
        for schema in [direct, around, dynamic] {
            assert!(matches!(refused(&schema), Error::EndlessReference { .. }));
        }
    }

    #[test]
    fn recursion_that_doubles_with_depth_is_counted_on_the_value() {
        let schema = json!({"allOf": [{"properties": {"x": {"$ref": "#"}}}, {"additionalProperties": {"$ref": "#"}}]});
        let schema = Schema::compile(&schema).unwrap();
        let value = |depth| (0..depth).fold(json!({}), |inner, _| json!({"x": inner}));
        assert_eq!(schema.check(&value(10)), Ok(()));
        let started = Instant::now();
        assert!(schema.check(&value(60)).unwrap_err()[0].message.contains("too much work"));
        assert!(started.elapsed() < Duration::from_millis(100));
    }

    #[test]
    fn many_recursions_that_feed_one_another_are_counted_on_the_value() {
        let mut schema = ladder(20, |next| json!({"anyOf": [next]}));
        for level in 0..20 {
            schema["$defs"][format!("d{level}")]["items"] = json!({"$ref": format!("#/$defs/d{level}")});
        }
        let started = Instant::now();
        let found = Schema::compile(&schema).map(|schema| schema.check(&nested(20)));
        assert!(started.elapsed() < Duration::from_millis(500));
        assert!(found.is_err() || found.unwrap().unwrap_err()[0].message.contains("too much work"));
    }

    #[test]
    fn a_value_that_is_too_deep_is_refused() {
        let schema = Schema::compile(&json!({"items": {"$ref": "#"}})).unwrap();
        assert_eq!(schema.check(&nested(VALUE_DEPTH_MAX)), Ok(()));
        assert!(schema.check(&nested(VALUE_DEPTH_MAX + 1)).unwrap_err()[0].message.contains("deeper"));
    }

    #[test]
    fn the_deepest_accepted_recursion_fits_a_small_stack() {
        let run = |schema: Value| {
            let thread = std::thread::Builder::new().stack_size(2 * 1024 * 1024);
            let run =
                move || Schema::compile(&schema).map(|s| (0..=VALUE_DEPTH_MAX).filter(|depth| s.check(&nested(*depth)).is_ok()).count());
            thread.spawn(run).unwrap().join().unwrap()
        };
        for by in ["allOf", "anyOf", "oneOf"] {
            let mut schema = ladder(28, |next| json!({by: [next]}));
            schema["$defs"]["d28"] = json!({"items": {"$ref": "#"}});
            assert!(run(schema).unwrap() > 5);
        }
        let wide = ladder(300, |next| json!({"items": next}));
        assert!(run(wide).is_ok());
    }

    #[test]
    fn definitions_that_all_name_each_other_compile_in_time_or_not_at_all() {
        let names: Vec<String> = (0..16).map(|n| format!("d{n}")).collect();
        let all: Map<String, Value> = names.iter().map(|name| (name.clone(), json!({"$ref": format!("#/$defs/{name}")}))).collect();
        let defs: Map<String, Value> = names.iter().map(|name| (name.clone(), json!({"properties": all}))).collect();
        let started = Instant::now();
        let _ = Schema::compile(&json!({"$defs": defs, "$ref": "#/$defs/d0"}));
        assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
    }

    #[test]
    fn references_out_of_the_document_are_refused() {
        for reference in ["https://example.com/s.json", "file:///etc/passwd", "other.json#/a", "json-schema:///x"] {
            for key in ["$ref", "$dynamicRef", "$recursiveRef"] {
                let schema = json!({"properties": {"a": {key: reference}}});
                assert_eq!(refused(&schema), Error::RemoteReference { path: format!("/properties/a/{key}") });
            }
        }
    }

    #[test]
    fn references_that_lead_nowhere_are_refused() {
        for reference in ["#/$defs/none", "#none", "#%zz"] {
            assert!(matches!(refused(&json!({"$ref": reference})), Error::UnresolvedReference { .. }));
        }
        let twice = json!({"$ref": "#a", "$defs": {"x": {"$anchor": "a"}, "y": {"$anchor": "a"}}});
        assert!(matches!(refused(&twice), Error::UnresolvedReference { .. }));
    }

    #[test]
    fn local_references_of_every_form_are_followed() {
        let defs = json!({"a b": {"$anchor": "named", "type": "integer"}});
        for reference in ["#/$defs/a%20b", "#named"] {
            let schema = json!({"$defs": defs, "items": {"$ref": reference}});
            assert!(Schema::compile(&schema).unwrap().check(&json!(["x"])).is_err());
        }
    }

    #[test]
    fn a_property_named_like_a_keyword_is_no_keyword() {
        let schema = json!({"properties": {"$ref": {"type": "string"}, "$id": {"type": "string"}, "id": {"type": "string"}, "pattern": true}, "const": {"$ref": "http://x"}});
        assert!(Schema::compile(&schema).is_ok());
    }

    #[test]
    fn an_identifier_may_stand_at_the_root_only() {
        let inner = json!({"properties": {"a": {"$id": "https://example.com/b"}}});
        assert_eq!(refused(&inner), Error::MovedBase { path: "/properties/a/$id".to_owned() });
        let claims =
            json!({"$id": "http://json-schema.org/draft-07/schema#", "items": {"$ref": "#/$defs/a"}, "$defs": {"a": {"type": "integer"}}});
        let schema = Schema::compile(&claims).unwrap();
        assert!(schema.check(&json!([1])).is_ok() && schema.check(&json!(["x"])).is_err());
    }

    #[test]
    fn only_published_drafts_are_known() {
        for uri in ["http://json-schema.org/draft-07/schema#", "https://json-schema.org/draft/2020-12/schema"] {
            assert!(Schema::compile(&json!({"$schema": uri})).is_ok());
        }
        assert!(matches!(refused(&json!({"$schema": "https://example.com/meta"})), Error::UnknownDraft { .. }));
    }

    #[test]
    fn backtracking_patterns_are_harmless_or_refused() {
        let schema = Schema::compile(&json!({"pattern": "^(a+)+$"})).unwrap();
        let started = Instant::now();
        assert!(schema.check(&json!("a".repeat(50_000) + "!")).is_err());
        assert!(started.elapsed() < Duration::from_secs(1));
        for pattern in ["(?=a)b", "(a)\\1", "("] {
            assert!(matches!(refused(&json!({"properties": {"a": {"pattern": pattern}}})), Error::Pattern { .. }), "{pattern}");
        }
    }

    #[test]
    fn patterns_with_big_repeats_are_refused() {
        for pattern in ["(a{999}){999}", "((a{99}){99}){99}", "[^x]{60000}"] {
            assert!(matches!(refused(&json!({"pattern": pattern})), Error::Pattern { .. }), "{pattern}");
            assert!(matches!(refused(&json!({"patternProperties": {pattern: true}})), Error::Pattern { .. }), "{pattern}");
        }
    }

    #[test]
    fn long_patterns_and_many_patterns_are_refused() {
        assert!(matches!(refused(&json!({"pattern": "a".repeat(PATTERN_BYTES_MAX + 1)})), Error::Pattern { .. }));
        let many: Map<String, Value> = (0..=PATTERNS_MAX).map(|n| (format!("^{n}$"), json!(true))).collect();
        assert!(matches!(refused(&json!({"patternProperties": many})), Error::Pattern { .. }));
    }

    /// Threat T26: a small value under a rich schema is as much work as a large text, and counted as such.
    #[test]
    fn what_a_check_comes_to_follows_the_schema_and_not_the_text_alone() {
        let plain = Schema::compile(&json!({ "type": "string" })).expect("a schema");
        assert_eq!(plain.cost(1_000), 1_000);
        let rich = json!({ "items": { "allOf": vec![json!({ "type": "number" }); 500] } });
        assert!(Schema::compile(&rich).expect("a schema").cost(1_000) > 500_000);
        let among = json!({ "items": { "enum": (0..500).map(|number| f64::from(number) + 0.5).collect::<Vec<_>>() } });
        assert!(Schema::compile(&among).expect("a schema").cost(1_000) > 500_000);
        let recursive = json!({ "properties": { "next": { "$ref": "#" } } });
        assert_eq!(Schema::compile(&recursive).expect("a schema").cost(1), usize::MAX);
    }

    #[test]
    fn a_broken_keyword_is_named() {
        let Error::Invalid { path, message } = refused(&json!({"properties": {"a": {"type": "strnig"}}})) else { panic!("another error") };
        assert_eq!(path, "/properties/a/type");
        assert!(message.contains("strnig"), "{message}");
    }
}
