//! How a subtask's input is made: a JSON value in whose texts stand expressions (AITP 3.1, design/tasks.md, threat T23).
//!
//! A template is parsed once, when the task is submitted; running it only follows paths. A text that is exactly one expression takes the
//! value with its type. Inside a longer text a value is written: texts as they are, numbers, booleans and null as in JSON, objects and
//! lists as JSON text. Keys of objects are never templates.
//!
//! In a run of dollars before a brace each pair stands for one dollar, and one that is left over begins an expression: `$${` is a plain `${`,
//! `$$${parent.input.price}` a price with its dollar. A dollar before anything else is a dollar.
//!
//! Invariants:
//! - What an expression gives is put in as it is and never looked at again: a value that reads like an expression stays that text.
//! - A value that is not there is a failure that names the expression, the place and what is there instead, with one exception: a field of
//!   an object that is exactly one expression of `parent.input` is left out where an object on its way lacks the field. So an optional
//!   parameter is handed on to an optional field of an agent by naming it, and whether the agent could do without is its schema's affair.
//! - Depth, count and length of expressions are bounded, and so is what comes out: naming one large value many times does not multiply it
//!   beyond [`RENDERED_BYTES_MAX`].

pub mod expression;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use self::expression::{Expression, Missing, Root, Source, Wrong};
use super::fault::{Fault, Faults, below};
use crate::model::{ErrorCode, Failure};

/// The deepest nesting of a template.
pub const DEPTH_MAX: usize = 32;

/// The most expressions of one template: one for each subtask that a task may have, so that one can gather all others.
pub const EXPRESSIONS_MAX: usize = 2_048;

/// The most that may come of a template, in bytes of text: what a call may carry.
pub const RENDERED_BYTES_MAX: usize = 16 * 1024 * 1024;

/// The deepest nesting of what comes of a template, which is what JSON readers take.
pub const RENDERED_DEPTH_MAX: usize = 128;

/// How a value is made from the task's parameters and the outputs of its subtasks.
#[derive(Debug, Clone, PartialEq)]
pub struct Template(Node);

/// A part of a template.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Node {
    /// A value that is no list and no object, and holds no expression.
    Plain(Value),
    /// The value that it names.
    Value(Expression),
    /// A text with values written into it.
    Text(Vec<Part>),
    /// Made entry by entry.
    List(Vec<Node>),
    /// Made field by field.
    Object(Vec<(String, Node)>),
}

/// A part of a text.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Part {
    /// As it is.
    Plain(String),
    /// The value that it names, written out.
    Value(Expression),
}

impl Default for Template {
    /// Gives an object without fields.
    fn default() -> Self {
        Self(Node::Object(Vec::new()))
    }
}

impl Template {
    /// Reads the template that stands at `path` of a document; `places` says which subtasks expressions may name.
    ///
    /// # Errors
    /// Every expression that cannot be read, or names a subtask that is not there, with its place.
    pub fn parse(value: &Value, path: &str, places: &BTreeMap<&str, usize>) -> Result<Self, Vec<Fault>> {
        let mut parser = Parser { places, faults: Faults::default(), expressions: 0 };
        let node = parser.node(value, path, DEPTH_MAX);
        parser.faults.or(Self(node))
    }

    /// Makes the value. `output` gives what a subtask gave, by its place, if it has succeeded.
    ///
    /// # Errors
    /// The expression that has no value, where it stands and what is there instead; or the bound that the result passes.
    pub fn render<'a>(&self, input: &'a Map<String, Value>, output: &dyn Fn(usize) -> Option<&'a Value>) -> Result<Value, Failure> {
        let mut renderer = Renderer { input, output, bytes_left: RENDERED_BYTES_MAX };
        renderer.node(&self.0, "", 0)
    }

    /// The places of the subtasks that it names.
    pub fn subtasks(&self) -> BTreeSet<usize> {
        let mut places = BTreeSet::new();
        self.each_expression("", &mut |_, expression, _| {
            if let Source::Output(place) = expression.source {
                places.insert(place);
            }
        });
        places
    }

    /// Its root.
    pub(super) fn root(&self) -> &Node {
        &self.0
    }

    /// Calls `visit` with each expression, the path where it stands below `path`, and whether its field is left out if it has no value.
    pub(super) fn each_expression(&self, path: &str, visit: &mut dyn FnMut(&str, &Expression, bool)) {
        each(&self.0, path, false, visit);
    }
}

fn each(node: &Node, path: &str, is_field: bool, visit: &mut dyn FnMut(&str, &Expression, bool)) {
    match node {
        Node::Plain(_) => {}
        Node::Value(expression) => visit(path, expression, is_field && expression.source == Source::Input),
        Node::Text(parts) => parts.iter().for_each(|part| match part {
            Part::Value(expression) => visit(path, expression, false),
            Part::Plain(_) => {}
        }),
        Node::List(entries) => {
            entries.iter().enumerate().for_each(|(number, entry)| each(entry, &below(path, &number.to_string()), false, visit));
        }
        Node::Object(fields) => fields.iter().for_each(|(key, field)| each(field, &below(path, key), true, visit)),
    }
}

struct Parser<'a> {
    places: &'a BTreeMap<&'a str, usize>,
    faults: Faults,
    expressions: usize,
}

impl Parser<'_> {
    fn node(&mut self, value: &Value, path: &str, depth: usize) -> Node {
        match value {
            Value::Null | Value::Bool(_) | Value::Number(_) => Node::Plain(value.clone()),
            Value::String(text) => self.text(text, path),
            Value::Array(_) | Value::Object(_) if depth == 0 => {
                self.faults.add(path, format!("a template nests at most {DEPTH_MAX} levels"));
                Node::Plain(Value::Null)
            }
            Value::Array(entries) => {
                let parsed = entries.iter().enumerate();
                Node::List(parsed.map(|(number, entry)| self.node(entry, &below(path, &number.to_string()), depth - 1)).collect())
            }
            Value::Object(fields) => {
                Node::Object(fields.iter().map(|(key, field)| (key.clone(), self.node(field, &below(path, key), depth - 1))).collect())
            }
        }
    }

    fn text(&mut self, text: &str, path: &str) -> Node {
        let mut parts: Vec<Part> = Vec::new();
        let mut plain = String::new();
        let mut rest = text;
        while let Some(at) = rest.find('$') {
            let (before, from) = rest.split_at(at);
            plain.push_str(before);
            let dollars = from.len() - from.trim_start_matches('$').len();
            let (run, after) = from.split_at(dollars);
            if !after.starts_with('{') {
                plain.push_str(run);
                rest = after;
                continue;
            }
            plain.extend(std::iter::repeat_n('$', dollars / 2));
            if dollars % 2 == 0 {
                rest = after;
                continue;
            }
            self.expressions += 1;
            if self.expressions > EXPRESSIONS_MAX {
                if self.expressions == EXPRESSIONS_MAX + 1 {
                    self.faults.add(path, format!("a template has at most {EXPRESSIONS_MAX} expressions"));
                }
                return Node::Plain(Value::Null);
            }
            let from = from.get(dollars - 1..).unwrap_or_default();
            match expression::parse(from, &|name| self.places.get(name).copied()) {
                Ok((expression, length)) => {
                    if !plain.is_empty() {
                        parts.push(Part::Plain(std::mem::take(&mut plain)));
                    }
                    parts.push(Part::Value(expression));
                    rest = from.get(length..).unwrap_or_default();
                }
                Err(Wrong::Text(message)) => {
                    self.faults.add(path, message);
                    return Node::Plain(Value::Null);
                }
                Err(Wrong::Name(name)) => {
                    let known = std::iter::once("parent").chain(self.places.keys().copied());
                    self.faults.unknown(path, "a name that an expression may begin with", &name, known);
                    return Node::Plain(Value::Null);
                }
            }
        }
        plain.push_str(rest);
        if parts.is_empty() {
            return Node::Plain(Value::String(plain));
        }
        if !plain.is_empty() {
            parts.push(Part::Plain(plain));
        }
        match <[Part; 1]>::try_from(parts) {
            Ok([Part::Value(expression)]) => Node::Value(expression),
            Ok(parts @ [Part::Plain(_)]) => Node::Text(parts.into()),
            Err(parts) => Node::Text(parts),
        }
    }
}

struct Renderer<'a, 'b> {
    input: &'a Map<String, Value>,
    output: &'b dyn Fn(usize) -> Option<&'a Value>,
    bytes_left: usize,
}

impl<'a> Renderer<'a, '_> {
    fn node(&mut self, node: &Node, path: &str, depth: usize) -> Result<Value, Failure> {
        Ok(match node {
            Node::Plain(value) => value.clone(),
            Node::Value(expression) => {
                let found = self.find(expression).map_err(|missing| absent(expression, path, &missing))?;
                self.copied(found, path, depth)?
            }
            Node::Text(parts) => {
                let mut text = String::new();
                for part in parts {
                    match part {
                        Part::Plain(plain) => text.push_str(plain),
                        Part::Value(expression) => {
                            let found = self.find(expression).map_err(|missing| absent(expression, path, &missing))?;
                            let value = self.copied(found, path, depth)?;
                            match value.as_str() {
                                Some(value) => text.push_str(value),
                                None => text.push_str(&value.to_string()),
                            }
                        }
                    }
                }
                Value::String(text)
            }
            Node::List(entries) => {
                let mut list = Vec::with_capacity(entries.len());
                for (number, entry) in entries.iter().enumerate() {
                    list.push(self.node(entry, &below(path, &number.to_string()), depth + 1)?);
                }
                Value::Array(list)
            }
            Node::Object(fields) => {
                let mut object = Map::new();
                for (key, field) in fields {
                    if !self.is_left_out(field) {
                        object.insert(key.clone(), self.node(field, &below(path, key), depth + 1)?);
                    }
                }
                Value::Object(object)
            }
        })
    }

    /// Whether the field of an object is a parameter that was not given.
    fn is_left_out(&self, field: &Node) -> bool {
        let Node::Value(expression) = field else { return false };
        expression.source == Source::Input && matches!(self.find(expression), Err(Missing::Field { .. }))
    }

    fn find(&self, expression: &Expression) -> Result<Root<'a>, Missing> {
        let root = match expression.source {
            Source::Input => Root::Fields(self.input),
            Source::Output(place) => match (self.output)(place) {
                Some(value) => Root::Value(value),
                None => {
                    let step = expression::Step::Field("output".to_owned());
                    return Err(Missing::Other { step, found: "a subtask that has not succeeded".to_owned() });
                }
            },
        };
        expression.follow(root)
    }

    fn copied(&mut self, found: Root<'a>, path: &str, depth: usize) -> Result<Value, Failure> {
        let weighed = match found {
            Root::Value(value) => self.weigh(value, depth),
            Root::Fields(fields) => fields.iter().try_for_each(|(key, field)| {
                self.take(key.len())?;
                self.weigh(field, depth + 1)
            }),
        };
        let told = |rule: String| Failure::new(ErrorCode::PayloadTooLarge, rule).with("path", path);
        match weighed {
            Ok(()) => Ok(match found {
                Root::Value(value) => value.clone(),
                Root::Fields(fields) => Value::Object(fields.clone()),
            }),
            Err(Bound::Bytes) => Err(told(format!("the input that the template gives is larger than {RENDERED_BYTES_MAX} bytes"))),
            Err(Bound::Depth) => Err(told(format!("the input that the template gives nests deeper than {RENDERED_DEPTH_MAX} levels"))),
        }
    }

    fn weigh(&mut self, value: &Value, depth: usize) -> Result<(), Bound> {
        if depth >= RENDERED_DEPTH_MAX {
            return Err(Bound::Depth);
        }
        match value {
            Value::Null | Value::Bool(_) | Value::Number(_) => self.take(4),
            Value::String(text) => self.take(text.len() + 2),
            Value::Array(entries) => {
                self.take(2 + entries.len())?;
                entries.iter().try_for_each(|entry| self.weigh(entry, depth + 1))
            }
            Value::Object(fields) => fields.iter().try_for_each(|(key, field)| {
                self.take(key.len() + 4)?;
                self.weigh(field, depth + 1)
            }),
        }
    }

    fn take(&mut self, bytes: usize) -> Result<(), Bound> {
        self.bytes_left = self.bytes_left.checked_sub(bytes).ok_or(Bound::Bytes)?;
        Ok(())
    }
}

enum Bound {
    Bytes,
    Depth,
}

fn absent(expression: &Expression, path: &str, why: &Missing) -> Failure {
    Failure::new(ErrorCode::InvalidSchema, format!("`{expression}` has no value: {why}"))
        .with("path", if path.is_empty() { "/" } else { path })
        .with("expression", expression.to_string())
}
