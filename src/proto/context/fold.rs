//! The state of a context, as the fold of its operations' items (design/contexts.md "Fold").
//!
//! Each item has a [`Stamp`], and stamps are in one order for everybody. A `Set` or `Del` hides whatever is older at its place and below; a
//! `Set` of an object is a `Set` of each of its fields. What counters and lists gained since then adds up, whoever was first to hear of it.
//! Where items of different kinds meet at one place, the newest says what the place is: a number that was set is what a counter starts
//! from, a list that was set what is appended to, and anything else gives way.
//!
//! Items may come in any order: what is hidden once stays hidden, since the stamp that hides it only grows. So the fold keeps nothing that
//! is hidden, and is the same after every order. It cannot take an item back; for that it is made anew.

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

/// One memory of a context: the shared one, or an agent's own.
#[derive(Debug, Default)]
pub struct Fold {
    root: Node,
}

#[derive(Debug, Default)]
struct Node {
    /// The newest `Set` or `Del` of this place.
    reset: Option<Stamp>,
    /// What it put here. An object is put here empty, and its fields are children.
    value: Option<Value>,
    /// What came since then. Most places have one kind at most.
    gains: Gains,
    children: BTreeMap<String, Node>,
}

/// What was added to a counter and appended to a list; in a box, since most places have neither.
#[derive(Debug, Default)]
struct Gains(Option<Box<Gained>>);

#[derive(Debug, Default)]
struct Gained {
    added: BTreeMap<Stamp, i64>,
    appended: BTreeMap<Stamp, Value>,
}

impl Fold {
    /// Takes in one item, which names a place in this memory by the names below its root.
    pub fn apply(&mut self, stamp: Stamp, below_root: &[String], item: &Item) {
        let mut node = &mut self.root;
        for name in below_root {
            if node.hides(stamp) {
                return;
            }
            node = node.children.entry(name.clone()).or_default();
        }
        if node.hides(stamp) {
            return;
        }
        match item {
            Item::Set(_, value) => node.set(stamp, value),
            Item::Del(_) => node.reset(stamp, None),
            Item::Inc(_, amount) => drop(node.gains.get().added.insert(stamp, *amount)),
            Item::Append(_, value) => drop(node.gains.get().appended.insert(stamp, value.clone())),
        }
    }

    /// What is in this memory.
    pub fn value(&self) -> Value {
        self.get(&[]).unwrap_or_else(|| Value::Object(Map::new()))
    }

    /// What is at a place, if something is.
    pub fn get(&self, below_root: &[String]) -> Option<Value> {
        let node = below_root.iter().try_fold(&self.root, |node, name| node.children.get(name))?;
        if let Some((value, _)) = node.shown()
            && self.is_shown(below_root)
        {
            return Some(value);
        }
        None
    }

    /// Whether every place on the way shows its fields, rather than something else that is newer.
    fn is_shown(&self, below_root: &[String]) -> bool {
        let mut node = &self.root;
        below_root.iter().all(|name| {
            let is_object = matches!(node.shown(), Some((Value::Object(_), _)));
            match node.children.get(name) {
                Some(child) => node = child,
                None => return false,
            }
            is_object
        })
    }
}

impl Gains {
    fn get(&mut self) -> &mut Gained {
        self.0.get_or_insert_default()
    }

    fn forget_before(&mut self, stamp: Stamp) {
        if let Some(gains) = &mut self.0 {
            gains.added = gains.added.split_off(&stamp);
            gains.appended = gains.appended.split_off(&stamp);
            if gains.added.is_empty() && gains.appended.is_empty() {
                self.0 = None;
            }
        }
    }
}

impl Node {
    fn hides(&self, stamp: Stamp) -> bool {
        self.reset.is_some_and(|reset| reset > stamp)
    }

    /// Everything older than `stamp` goes, here and below.
    fn reset(&mut self, stamp: Stamp, value: Option<Value>) {
        self.reset = Some(stamp);
        self.value = value;
        self.forget_before(stamp);
    }

    fn forget_before(&mut self, stamp: Stamp) {
        self.gains.forget_before(stamp);
        self.children.retain(|_, child| {
            if child.reset.is_some_and(|reset| reset < stamp) {
                child.reset = None;
                child.value = None;
            }
            child.forget_before(stamp);
            child.reset.is_some() || child.gains.0.is_some() || !child.children.is_empty()
        });
    }

    fn set(&mut self, stamp: Stamp, value: &Value) {
        let Value::Object(fields) = value else {
            self.reset(stamp, Some(value.clone()));
            return;
        };
        self.reset(stamp, Some(Value::Object(Map::new())));
        for (name, value) in fields {
            let child = self.children.entry(name.clone()).or_default();
            // A field that somebody changed later than this keeps that.
            if !child.hides(stamp) {
                child.set(stamp, value);
            }
        }
    }

    /// What is shown here, and the newest stamp of what is shown.
    fn shown(&self) -> Option<(Value, Option<Stamp>)> {
        let mut fields = Map::new();
        let mut newest_field = None;
        for (name, child) in &self.children {
            if let Some((value, newest)) = child.shown() {
                fields.insert(name.clone(), value);
                newest_field = newest_field.max(newest);
            }
        }
        let newest_added = self.gains.0.as_ref().and_then(|gains| gains.added.keys().next_back()).copied();
        let newest_appended = self.gains.0.as_ref().and_then(|gains| gains.appended.keys().next_back()).copied();
        let newest = newest_field.max(newest_added).max(newest_appended);
        if newest.is_none() {
            return self.value.clone().map(|value| (value, self.reset));
        }
        let value = if newest == newest_added {
            self.counter()
        } else if newest == newest_appended {
            self.list()
        } else {
            Value::Object(fields)
        };
        Some((value, newest))
    }

    fn counter(&self) -> Value {
        let gained: i128 = self.gains.0.iter().flat_map(|gains| gains.added.values()).map(|amount| i128::from(*amount)).sum();
        match &self.value {
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

    fn list(&self) -> Value {
        let start = self.value.as_ref().and_then(Value::as_array).into_iter().flatten();
        let appended = self.gains.0.iter().flat_map(|gains| gains.appended.values());
        Value::Array(start.chain(appended).cloned().collect())
    }
}

/// The whole number, or the nearest that JSON readers take for one.
fn within(sum: i128) -> Value {
    Value::from(i64::try_from(sum).unwrap_or(if sum < 0 { i64::MIN } else { i64::MAX }))
}
