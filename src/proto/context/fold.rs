//! The state of a context, as the fold of its operations' items (design/contexts.md "Fold").
//!
//! Each item has a [`Stamp`], and stamps are in one order for everybody. A `Set` or `Del` hides whatever is older at its place and below; a
//! `Set` of an object is a `Set` of each of its fields. What counters and lists gained since then adds up, whoever was first to hear of it.
//! Where items of different kinds meet at one place, the newest says what the place is: a number that was set is what a counter starts
//! from, a list that was set what is appended to, and anything else gives way.
//!
//! Items may come in any order: what is hidden once stays hidden, since the stamp that hides it only grows. What an item hides is left where
//! it is, and passed over when the state is shown; so an item costs the way to its place, however much lies below. When what is held has
//! doubled, all that is hidden is swept out, so that not much more is held than could be seen or still decides. The fold cannot take an item
//! back; for that it is made anew.
//!
//! Values are held as text: an array of many small objects takes a hundred times its text as values, and writers are not to be trusted.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::model::OperationId;
use crate::wire::context::Item;

/// When an item counts as written: by its operation's lamport clock, among equals by the operation's name, within one by its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stamp {
    /// The operation's lamport clock.
    pub lamport: u64,
    /// The operation.
    pub id: OperationId,
    /// The item's place in it.
    pub item: u16,
}

/// How much more may be held than was left by the last sweep before it doubled.
const SWEEP_SPARE: usize = 1_024;

/// One memory of a context: the shared one, or an agent's own.
#[derive(Debug, Default)]
pub struct Fold {
    root: Node,
    /// How many places and gains are held, and how many the last sweep left.
    held: usize,
    swept: usize,
}

#[derive(Debug, Default)]
struct Node {
    /// The newest `Set` or `Del` of this place itself.
    reset: Option<Stamp>,
    /// What it put here, fields and all. Children say what became of them since.
    value: Option<Box<str>>,
    /// What was added to a counter and appended to a list. Most places have neither.
    gains: Option<Box<Gains>>,
    children: BTreeMap<Box<str>, Box<Node>>,
}

#[derive(Debug, Default)]
struct Gains {
    added: BTreeMap<Stamp, i64>,
    appended: BTreeMap<Stamp, Box<str>>,
}

/// A value and the stamp of the newest item that it comes of.
type Stamped = (Value, Stamp);

impl Fold {
    /// Takes in one item, which names a place in this memory by the names below its root.
    pub fn apply(&mut self, stamp: Stamp, below_root: &[String], item: &Item) {
        let mut node = &mut self.root;
        for name in below_root {
            if node.hides(stamp) {
                return;
            }
            node = node.children.entry(name.as_str().into()).or_insert_with(|| {
                self.held += 1;
                Box::default()
            });
        }
        if node.hides(stamp) {
            return;
        }
        let is_new = match item {
            Item::Set(_, value) => node.reset(stamp, Some(text(value))),
            Item::Del(_) => node.reset(stamp, None),
            Item::Inc(_, amount) => node.gains.get_or_insert_default().added.insert(stamp, *amount).is_none(),
            Item::Append(_, value) => node.gains.get_or_insert_default().appended.insert(stamp, text(value)).is_none(),
        };
        self.held += usize::from(is_new);
        if self.held > self.swept.saturating_mul(2).saturating_add(SWEEP_SPARE) {
            self.held = self.root.sweep(None);
            self.swept = self.held;
        }
    }

    /// What is in this memory.
    pub fn value(&self) -> Value {
        self.get(&[]).unwrap_or_else(|| Value::Object(Map::new()))
    }

    /// What is at a place, if something is.
    pub fn get(&self, below_root: &[String]) -> Option<Value> {
        let nothing = Node::default();
        let (mut node, mut base, mut hidden) = (&self.root, None, None);
        for name in below_root {
            (base, hidden) = node.seen(base, hidden);
            if node.gains.as_ref().is_some_and(|gains| gains.newest(hidden).is_some()) {
                // It may show what it gained rather than its fields; which is newer, all of them decide.
                let whole = self.root.shown(None, None).map(|(value, _)| value)?;
                return below_root.iter().try_fold(whole, |value, name| field(value, name));
            }
            base = base.and_then(|(value, at)| Some((field(value, name)?, at)));
            node = node.children.get(name.as_str()).map_or(&nothing, |child| child);
        }
        node.shown(base, hidden).map(|(value, _)| value)
    }
}

impl Gains {
    /// The stamps of the newest that was added and of the newest that was appended, as far as they are newer than what is hidden.
    fn newest_of_each(&self, hidden: Option<Stamp>) -> (Option<Stamp>, Option<Stamp>) {
        let is_seen = |stamp: &Stamp| Some(*stamp) > hidden;
        let added = self.added.keys().next_back().copied().filter(is_seen);
        let appended = self.appended.keys().next_back().copied().filter(is_seen);
        (added, appended)
    }

    fn newest(&self, hidden: Option<Stamp>) -> Option<Stamp> {
        let (added, appended) = self.newest_of_each(hidden);
        added.max(appended)
    }
}

impl Node {
    fn hides(&self, stamp: Stamp) -> bool {
        self.reset.is_some_and(|reset| reset > stamp)
    }

    /// Whether it was none of those that are held.
    fn reset(&mut self, stamp: Stamp, value: Option<Box<str>>) -> bool {
        self.value = value;
        self.reset.replace(stamp).is_none()
    }

    /// What this place starts from, and what hides all that is not newer: what was put here, or what comes from above if that is newer.
    fn seen(&self, base: Option<Stamped>, hidden: Option<Stamp>) -> (Option<Stamped>, Option<Stamp>) {
        match self.reset {
            Some(reset) if self.reset > hidden => {
                let value = self.value.as_ref().and_then(|text| serde_json::from_str(text).ok());
                (value.map(|value| (value, reset)), self.reset)
            }
            Some(_) | None => (base, hidden),
        }
    }

    /// What is shown here.
    fn shown(&self, base: Option<Stamped>, hidden: Option<Stamp>) -> Option<Stamped> {
        let (base, hidden) = self.seen(base, hidden);
        let base_at = base.as_ref().map(|(_, at)| *at);
        let (mut below, plain) = match base {
            Some((Value::Object(fields), _)) => (fields, Some(Value::Object(Map::new()))),
            base => (Map::new(), base.map(|(value, _)| value)),
        };
        let mut fields = Map::new();
        let mut newest_field = None;
        for (name, child) in &self.children {
            let base = below.remove(&**name).zip(base_at);
            if let Some((value, newest)) = child.shown(base, hidden) {
                fields.insert(name.to_string(), value);
                newest_field = newest_field.max(Some(newest));
            }
        }
        if !below.is_empty() {
            newest_field = newest_field.max(base_at);
            fields.append(&mut below);
        }
        let (added, appended) = self.gains.as_ref().map(|gains| gains.newest_of_each(hidden)).unwrap_or_default();
        let Some(newest) = newest_field.max(added).max(appended) else { return plain.zip(base_at) };
        let value = if Some(newest) == added {
            self.counter(plain.as_ref(), hidden)
        } else if Some(newest) == appended {
            self.list(plain, hidden)
        } else {
            Value::Object(fields)
        };
        Some((value, newest))
    }

    fn counter(&self, start: Option<&Value>, hidden: Option<Stamp>) -> Value {
        let added = self.gains.iter().flat_map(|gains| &gains.added).filter(|(stamp, _)| Some(**stamp) > hidden);
        let gained: i128 = added.map(|(_, amount)| i128::from(*amount)).sum();
        match start {
            Some(Value::Number(start)) if start.as_i128().is_none() => {
                // A counter that starts from a fraction; what it gained is exact up to 2^53.
                #[expect(clippy::cast_precision_loss, reason = "fractions are floats in JSON")]
                let sum = start.as_f64().unwrap_or_default() + gained as f64;
                Value::from(sum)
            }
            Some(Value::Number(start)) => within(start.as_i128().unwrap_or_default().saturating_add(gained)),
            Some(_) | None => within(gained),
        }
    }

    fn list(&self, start: Option<Value>, hidden: Option<Stamp>) -> Value {
        let mut list = match start {
            Some(Value::Array(start)) => start,
            _ => Vec::new(),
        };
        let appended = self.gains.iter().flat_map(|gains| &gains.appended).filter(|(stamp, _)| Some(**stamp) > hidden);
        list.extend(appended.filter_map(|(_, text)| serde_json::from_str::<Value>(text).ok()));
        Value::Array(list)
    }

    /// Lets go of all that is hidden, here and below; how much is left.
    fn sweep(&mut self, hidden: Option<Stamp>) -> usize {
        let hidden = hidden.max(self.reset);
        if self.reset < hidden {
            self.reset = None;
            self.value = None;
        }
        if let Some(gains) = &mut self.gains {
            gains.added.retain(|stamp, _| Some(*stamp) > hidden);
            gains.appended.retain(|stamp, _| Some(*stamp) > hidden);
        }
        self.gains.take_if(|gains| gains.added.is_empty() && gains.appended.is_empty());
        let mut held = usize::from(self.reset.is_some()) + self.gains.as_ref().map_or(0, |gains| gains.added.len() + gains.appended.len());
        self.children.retain(|_, child| {
            let below = child.sweep(hidden);
            held += below;
            below > 0
        });
        // The place itself, if something is there.
        held + usize::from(held > 0)
    }
}

fn text(value: &Value) -> Box<str> {
    value.to_string().into()
}

fn field(value: Value, name: &str) -> Option<Value> {
    match value {
        Value::Object(mut fields) => fields.remove(name),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => None,
    }
}

/// The whole number, or the nearest that JSON readers take for one.
fn within(sum: i128) -> Value {
    Value::from(i64::try_from(sum).unwrap_or(if sum < 0 { i64::MIN } else { i64::MAX }))
}
