//! `${parent.input.x}`, `${subtask_1.output.items[0]["odd key"]}`: one value, named by where it comes from and the way to it.
//!
//! An expression begins with `parent.input` (the task's parameters) or with the name of a subtask and `output`, and goes on in steps:
//! `.field` of letters, digits, `_` and `-`, `["field"]` (a JSON text) for any other, `[0]` for an entry of a list. It computes nothing, so
//! that what a task does with its values can be read off its text, and it reads only what its two roots hold.

use std::fmt;

use serde_json::{Map, Value};

use crate::model::{json_kind, printable};

/// The longest expression, in bytes, its braces included.
pub const EXPRESSION_BYTES_MAX: usize = 512;

/// The most steps of one expression.
pub const STEPS_MAX: usize = 32;

/// Where a value comes from and the way to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expression {
    /// Where it begins.
    pub source: Source,
    /// The way from there.
    pub steps: Vec<Step>,
    /// As it was written, with its braces.
    text: String,
}

/// Where an expression begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// `parent.input`: the task's parameters.
    Input,
    /// `NAME.output`: what the subtask at this place gave.
    Output(usize),
}

/// One step of the way to a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// A field of an object.
    Field(String),
    /// An entry of a list, counted from 0.
    Item(usize),
}

impl fmt::Display for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Field(name) => write!(f, "field `{}`", printable(name, 80)),
            Self::Item(number) => write!(f, "entry {number}"),
        }
    }
}

/// Why an expression has no value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Missing {
    /// An object on the way lacks the field.
    Field {
        /// Its name.
        name: String,
        /// What the object has instead.
        known: Vec<String>,
    },
    /// What is on the way is no object, or no list that is long enough.
    Other {
        /// The step that cannot be taken.
        step: Step,
        /// What is there instead.
        found: String,
    },
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Field { name, known } if known.is_empty() => {
                write!(f, "there is no field `{}`: the object is empty", printable(name, 80))
            }
            Self::Field { name, known } => {
                let shown: Vec<String> = known.iter().map(|known| printable(known, 80)).collect();
                write!(f, "there is no field `{}`, only {}", printable(name, 80), shown.join(", "))
            }
            Self::Other { step, found } => write!(f, "there is no {step} in {found}"),
        }
    }
}

/// How many fields of an object a [`Missing`] names.
const KNOWN_MAX: usize = 8;

impl Expression {
    /// The value at the end of the way that begins at `root`.
    pub(in crate::proto::task) fn follow<'a>(&self, root: Root<'a>) -> Result<Root<'a>, Missing> {
        let mut place = root;
        for step in &self.steps {
            let next = match (step, place.value()) {
                (Step::Field(name), None | Some(Value::Object(_))) => {
                    let fields = place.fields();
                    fields.and_then(|fields| fields.get(name)).ok_or_else(|| Missing::Field {
                        name: name.clone(),
                        known: fields.into_iter().flat_map(Map::keys).take(KNOWN_MAX).cloned().collect(),
                    })?
                }
                (Step::Item(number), Some(Value::Array(list))) => {
                    list.get(*number).ok_or_else(|| Missing::Other { step: step.clone(), found: format!("a list of {}", list.len()) })?
                }
                (_, found) => {
                    let found = found.map_or("an object", json_kind).to_owned();
                    return Err(Missing::Other { step: step.clone(), found });
                }
            };
            place = Root::Value(next);
        }
        Ok(place)
    }
}

/// What an expression begins at, and what it finds: the parameters are an object without being a [`Value`].
#[derive(Debug, Clone, Copy)]
pub(in crate::proto::task) enum Root<'a> {
    /// The parameters.
    Fields(&'a Map<String, Value>),
    /// Any value.
    Value(&'a Value),
}

impl<'a> Root<'a> {
    fn value(self) -> Option<&'a Value> {
        match self {
            Self::Fields(_) => None,
            Self::Value(value) => Some(value),
        }
    }

    fn fields(self) -> Option<&'a Map<String, Value>> {
        match self {
            Self::Fields(fields) => Some(fields),
            Self::Value(value) => value.as_object(),
        }
    }
}

/// What is wrong with an expression.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Wrong {
    /// It cannot be read, and this is why.
    Text(String),
    /// It begins with a name that nobody has.
    Name(String),
}

/// Reads the expression at the beginning of `text`, which begins with `${`; gives it and its length.
pub(super) fn parse(text: &str, names: &dyn Fn(&str) -> Option<usize>) -> Result<(Expression, usize), Wrong> {
    let mut reader = Reader { text, at: "${".len() };
    let wrong = |message: &str| Wrong::Text(format!("`{}`: {message}", printable(text, 60)));
    reader.skips_spaces();
    let name = reader.word();
    let (source, second) = match name {
        "" => return Err(wrong("an expression begins with `parent.input` or the name of a subtask and `.output`")),
        "parent" => (Some(Source::Input), "input"),
        _ => (names(name).map(Source::Output), "output"),
    };
    let Some(source) = source else { return Err(Wrong::Name(name.to_owned())) };
    if !(reader.takes(".") && reader.word() == second) {
        return Err(wrong(&format!("after `{}` comes `.{second}`", printable(name, 80))));
    }
    let mut steps = Vec::new();
    while !reader.ends() {
        if steps.len() == STEPS_MAX {
            return Err(wrong(&format!("it has more than {STEPS_MAX} steps")));
        }
        let step = match reader.rest().as_bytes() {
            [] => return Err(wrong("it has no end; expected `}`, and a plain `${` is written `$${`")),
            [b'.', ..] => {
                reader.at += 1;
                match reader.word() {
                    "" => return Err(wrong("after a dot comes a field of letters, digits, `_` and `-`; others are written `[\"a b\"]`")),
                    word => Step::Field(word.to_owned()),
                }
            }
            [b'[', b'"', ..] => {
                reader.at += 1;
                let field = reader.quoted().filter(|_| reader.takes("]"));
                Step::Field(field.ok_or_else(|| wrong("a field in brackets is a JSON text: `[\"a b\"]`"))?)
            }
            [b'[', ..] => {
                reader.at += 1;
                let digits = reader.word();
                let number = digits.parse().ok().filter(|_| digits.bytes().all(|digit| digit.is_ascii_digit()) && reader.takes("]"));
                Step::Item(number.ok_or_else(|| wrong("in brackets stands a number or a text in quotes: `[0]`, `[\"a b\"]`"))?)
            }
            _ => return Err(wrong("expected `.field`, `[0]`, `[\"a b\"]` or `}`")),
        };
        steps.push(step);
        if reader.at > EXPRESSION_BYTES_MAX {
            break;
        }
    }
    if reader.at > EXPRESSION_BYTES_MAX {
        return Err(wrong(&format!("it is longer than {EXPRESSION_BYTES_MAX} bytes")));
    }
    let written = text.get(..reader.at).unwrap_or_default().to_owned();
    Ok((Expression { source, steps, text: written }, reader.at))
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Reader<'a> {
    fn rest(&self) -> &'a str {
        self.text.get(self.at..).unwrap_or_default()
    }

    fn takes(&mut self, expected: &str) -> bool {
        let there = self.rest().starts_with(expected);
        if there {
            self.at += expected.len();
        }
        there
    }

    fn skips_spaces(&mut self) {
        self.at += self.rest().len() - self.rest().trim_start_matches(' ').len();
    }

    /// Whether the closing brace comes next, after spaces or none.
    fn ends(&mut self) -> bool {
        let before = self.at;
        self.skips_spaces();
        let ends = self.takes("}");
        if !ends {
            self.at = before;
        }
        ends
    }

    /// The letters, digits, `_` and `-` that come next.
    fn word(&mut self) -> &'a str {
        let rest = self.rest();
        let end = rest.find(|c: char| !(c.is_alphanumeric() || c == '_' || c == '-')).unwrap_or(rest.len());
        self.at += end;
        rest.get(..end).unwrap_or_default()
    }

    /// The JSON text that comes next.
    fn quoted(&mut self) -> Option<String> {
        let rest = self.rest();
        let mut escaped = false;
        let (end, _) = rest.char_indices().skip(1).find(|(_, c)| {
            let closes = *c == '"' && !escaped;
            escaped = *c == '\\' && !escaped;
            closes
        })?;
        self.at += end + 1;
        serde_json::from_str(rest.get(..=end)?).ok()
    }
}
