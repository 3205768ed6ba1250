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

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::Deserializer as _;
use serde::de::{Error as _, MapAccess, Visitor};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use crate::model::{CONTEXT_DEPTH_MAX, OperationId, Path};
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
/// How many places a memory may begin with.
const BASE_PLACES_MAX: usize = 200_000;

/// About what such a place takes at most beside its text: itself, and a map that holds it alone.
const PLACE_BYTES: usize = 512;

/// One memory of a context: the shared one, or an agent's own.
#[derive(Debug, Default)]
pub struct Fold {
    root: Node,
    /// How many places and gains are held, and how many the last sweep left.
    held: usize,
    swept: usize,
    /// What it began with takes about so many bytes.
    based_bytes: usize,
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

/// What shows at a place, as far as it matters to what is added or appended there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Nothing.
    Nothing,
    /// A number, or a counter.
    Number,
    /// A list.
    List,
    /// Anything else.
    Other,
}

/// A value and the stamp of the newest item that it comes of.
type Stamped = (Value, Stamp);

impl Fold {
    /// A memory that begins with the fields of the object `text`, all of them older than what is written after `lamport`; `None` if it is no
    /// object, or one of more places than a memory may begin with.
    pub(super) fn based(text: &RawValue, lamport: u64) -> Option<Self> {
        let mut held = 0;
        let root = Node::based(text.get(), lamport, 0, &mut held).filter(|root| root.value.as_deref() == Some("{}"))?;
        let based_bytes = held.saturating_mul(PLACE_BYTES).saturating_add(text.get().len());
        Some(Self { root, held, swept: held, based_bytes })
    }

    /// What of it lies at these places, or below them.
    pub(super) fn below(mut self, places: &BTreeSet<&Path>) -> Self {
        let below_root: Vec<&[String]> = places.iter().filter_map(|path| path.segments().get(1..)).collect();
        self.root.keep_below(&below_root);
        self
    }

    /// About how many bytes at most that takes in memory which it began with. What was written since counts against those who wrote it.
    pub fn held_bytes(&self) -> u64 {
        u64::try_from(self.based_bytes).unwrap_or(u64::MAX)
    }

    /// Takes in the items of an operation that counts, all of which are of this memory.
    pub fn apply_all(&mut self, id: OperationId, lamport: u64, items: &[Item]) {
        self.apply_some(id, lamport, items, |_| true);
    }

    /// Takes in those of them that are wanted.
    pub fn apply_some(&mut self, id: OperationId, lamport: u64, items: &[Item], mut wanted: impl FnMut(&Item) -> bool) {
        for (at, item) in items.iter().enumerate().filter(|(_, item)| wanted(item)) {
            let below_root = match item.path().segments() {
                [_, _, below @ ..] if item.path().private_to().is_some() => below,
                [_, below @ ..] => below,
                [] => continue,
            };
            self.apply(Stamp { lamport, id, item: u16::try_from(at).unwrap_or(u16::MAX) }, below_root, item);
        }
    }

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
            self.sweep();
        }
    }

    /// Lets go of all that is hidden, which changes nothing that can be seen.
    pub(super) fn sweep(&mut self) {
        self.held = self.root.sweep(None);
        self.swept = self.held;
    }

    /// Whether an item of that stamp at a place would change nothing: something newer hides it.
    pub(super) fn hides(&self, stamp: Stamp, below_root: &[String]) -> bool {
        let mut at = Some(&self.root);
        let mut names = below_root.iter();
        while let Some(node) = at {
            if node.hides(stamp) {
                return true;
            }
            at = names.next().and_then(|name| node.children.get(name.as_str())).map(|child| &**child);
        }
        false
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

    /// Of what kind the thing is that [`Fold::get`] finds at a place, if that can be told from what stands there and above: it costs the way
    /// to the place, however much was put or appended there.
    pub fn kind(&self, below_root: &[String]) -> Option<Kind> {
        let (mut node, mut base, mut hidden) = (&self.root, Some(Kind::Nothing), None);
        for name in below_root {
            (base, hidden) = node.seen_kind(base, hidden);
            if node.gains.as_ref().is_some_and(|gains| gains.newest(hidden).is_some()) {
                return None;
            }
            // What the fields of an object are would have to be read.
            base = base.filter(|kind| *kind != Kind::Other).map(|_| Kind::Nothing);
            let Some(child) = node.children.get(name.as_str()) else { return base };
            node = child;
        }
        (base, hidden) = node.seen_kind(base, hidden);
        let (added, appended) = node.gains.as_ref().map(|gains| gains.newest_of_each(hidden)).unwrap_or_default();
        match added.cmp(&appended) {
            _ if !node.children.is_empty() => None,
            Ordering::Greater => Some(Kind::Number),
            Ordering::Less => Some(Kind::List),
            Ordering::Equal => base,
        }
    }
}

impl Kind {
    /// That of a value by its text, whose first byte says it.
    fn of(text: &str) -> Self {
        match text.as_bytes().first() {
            Some(b'-' | b'0'..=b'9') => Self::Number,
            Some(b'[') => Self::List,
            Some(_) | None => Self::Other,
        }
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
    /// The place that holds the value `text`; each of its fields is a place of its own, and newer than what is around it.
    fn based(text: &str, lamport: u64, depth: u16, held: &mut usize) -> Option<Self> {
        *held = held.checked_add(1).filter(|held| *held <= BASE_PLACES_MAX)?;
        let reset = Some(Stamp { lamport, id: OperationId::from_bytes([u8::MAX; 32]), item: depth });
        let is_object = text.starts_with('{') && usize::from(depth) < CONTEXT_DEPTH_MAX;
        if !is_object {
            return Some(Self { reset, value: Some(text.into()), ..Self::default() });
        }
        let fields = Fields { lamport, depth: depth.saturating_add(1), held };
        let children = serde_json::Deserializer::from_str(text).deserialize_map(fields).ok()?;
        Some(Self { reset, value: Some("{}".into()), gains: None, children })
    }

    fn keep_below(&mut self, places: &[&[String]]) {
        if places.iter().any(|place| place.is_empty()) {
            return;
        }
        (self.reset, self.value, self.gains) = (None, None, None);
        self.children.retain(|name, child| {
            let named = places.iter().filter_map(|place| place.split_first()).filter(|(first, _)| first.as_str() == &**name);
            let below: Vec<&[String]> = named.map(|(_, rest)| rest).collect();
            child.keep_below(&below);
            !below.is_empty()
        });
    }

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

    /// The same of what [`Kind`] it is, where that is known.
    fn seen_kind(&self, base: Option<Kind>, hidden: Option<Stamp>) -> (Option<Kind>, Option<Stamp>) {
        match self.reset {
            Some(_) if self.reset > hidden => (Some(self.value.as_deref().map_or(Kind::Nothing, Kind::of)), self.reset),
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

/// Makes places of the fields of an object, one after the other: those beyond what a memory may begin with are not read.
struct Fields<'h> {
    lamport: u64,
    depth: u16,
    held: &'h mut usize,
}

impl<'de> Visitor<'de> for Fields<'_> {
    type Value = BTreeMap<Box<str>, Box<Node>>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Self::Value, A::Error> {
        let mut children = BTreeMap::new();
        while let Some((name, field)) = fields.next_entry::<Box<str>, &RawValue>()? {
            let place = Node::based(field.get(), self.lamport, self.depth, self.held);
            children.insert(name, Box::new(place.ok_or_else(|| A::Error::custom("the places are too many"))?));
        }
        Ok(children)
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::testing::{path, set};
    use super::*;

    fn stamp(lamport: u64) -> Stamp {
        Stamp { lamport, id: OperationId::from_bytes([0; 32]), item: 0 }
    }

    fn put(fold: &mut Fold, at: u64, item: &Item) {
        fold.apply(stamp(at), &item.path().segments()[1..], item);
    }

    fn of(items: impl IntoIterator<Item = Item>) -> Value {
        let mut fold = Fold::default();
        for (at, item) in (1..).zip(items) {
            put(&mut fold, at, &item);
        }
        fold.value()
    }

    fn inc(below: &str, amount: i64) -> Item {
        Item::Inc(path(below), amount)
    }

    fn append(below: &str, value: impl Into<Value>) -> Item {
        Item::Append(path(below), value.into())
    }

    #[test]
    fn a_counter_stops_at_the_ends_of_the_whole_numbers() {
        assert_eq!(of([inc("/n", i64::MAX), inc("/n", 1)]), json!({"n": i64::MAX}));
        assert_eq!(of([inc("/n", i64::MIN), inc("/n", -1)]), json!({"n": i64::MIN}));
        assert_eq!(
            of([inc("/n", i64::MAX), inc("/n", i64::MAX), inc("/n", i64::MIN), inc("/n", 2)]),
            json!({"n": i64::MAX}),
            "no step is lost"
        );
        assert_eq!(of([inc("/n", i64::MAX), inc("/n", 5), inc("/n", -6)]), json!({"n": i64::MAX - 1}), "what went over comes back");
        assert_eq!(of([set("/n", i64::MAX), inc("/n", 1)]), json!({"n": i64::MAX}));
        assert_eq!(of([set("/n", u64::MAX), inc("/n", -1)]), json!({"n": i64::MAX}), "a counter is a signed number");
        assert_eq!(of([set("/n", u64::MAX)]), json!({"n": u64::MAX}), "what was set alone is shown as it was set");
    }

    #[test]
    fn a_counter_starts_from_the_number_that_was_set() {
        assert_eq!(of([set("/n", 0.5), inc("/n", 2)]), json!({"n": 2.5}));
        assert_eq!(of([set("/n", -1.5), inc("/n", -2), inc("/n", 1)]), json!({"n": -2.5}));
        assert_eq!(of([set("/n", 1e308), inc("/n", i64::MAX)]), json!({"n": 1e308}));
        assert_eq!(of([set("/n", json!({"a": 5})), inc("/n/a", 2)]), json!({"n": {"a": 7}}), "in an object as well");
        assert_eq!(of([set("/n", "text"), inc("/n", 2)]), json!({"n": 2}), "anything else gives way");
        assert_eq!(of([inc("/n", 2), set("/n", 10), inc("/n", 1)]), json!({"n": 11}), "what came before it is gone");
        assert_eq!(of([inc("/n", 2), Item::Del(path("/n"))]), json!({}));
    }

    #[test]
    fn a_list_starts_from_the_one_that_was_set_and_the_newest_kind_shows() {
        assert_eq!(of([set("/l", json!([1])), append("/l", 2), append("/l", json!([3]))]), json!({"l": [1, 2, [3]]}));
        assert_eq!(of([inc("/l", 1), append("/l", "a")]), json!({"l": ["a"]}));
        assert_eq!(of([append("/l", "a"), inc("/l", 1)]), json!({"l": 1}));
        assert_eq!(of([append("/l", "a"), set("/l/b", 1)]), json!({"l": {"b": 1}}));
        assert_eq!(of([set("/l/b", 1), append("/l", "a")]), json!({"l": ["a"]}));
        let mut fold = Fold::default();
        for (at, item) in (1..).zip([set("/l/b", 1), append("/l", "a")]) {
            put(&mut fold, at, &item);
        }
        assert_eq!(fold.get(&["l".to_owned(), "b".to_owned()]), None, "a field that gave way is not there either");
        assert_eq!(fold.get(&["l".to_owned()]), Some(json!(["a"])));
    }

    /// What is appended one by one, or counted up, is not made anew for each.
    #[test]
    fn what_kind_a_place_is_of_is_told_from_the_place_alone() {
        let kind = |items: &[Item]| {
            let mut fold = Fold::default();
            for (at, item) in (1..).zip(items) {
                put(&mut fold, at, item);
            }
            fold.kind(&["a".to_owned(), "b".to_owned()])
        };
        for (items, expected) in [
            (vec![], Kind::Nothing),
            (vec![set("/a", 1)], Kind::Nothing),
            (vec![set("/a/b", 1), Item::Del(path("/a"))], Kind::Nothing),
            (vec![set("/a/b", -1.5)], Kind::Number),
            (vec![set("/a/b", json!([1]))], Kind::List),
            (vec![set("/a/b", "text")], Kind::Other),
            (vec![set("/a/b", json!({}))], Kind::Other),
            (vec![inc("/a/b", 1)], Kind::Number),
            (vec![append("/a/b", 1)], Kind::List),
            (vec![set("/a", json!({"b": []})), append("/a/b", 1)], Kind::List),
            (vec![append("/a/b", 1), inc("/a/b", 1)], Kind::Number),
            (vec![inc("/a/b", 1), append("/a/b", 1)], Kind::List),
            (vec![append("/a/b", 1), set("/a/b", 1)], Kind::Number),
        ] {
            assert_eq!(kind(&items), Some(expected), "{items:?}");
        }
        assert_eq!(kind(&[set("/a", json!({"b": 1}))]), None, "a field of what was put above");
        assert_eq!(kind(&[append("/a/b", 1), set("/a/b/c", 1)]), None, "it has fields of its own");
        assert_eq!(kind(&[set("/a/b", 1), append("/a", 1)]), None, "what stands above may be a list");
    }

    #[test]
    fn an_older_item_that_comes_later_is_hidden() {
        let mut fold = Fold::default();
        put(&mut fold, 9, &set("/a", json!({"b": {"c": 1}, "e": {}})));
        for old in [set("/a/b/c", 2), set("/a/b", 3), inc("/a/b/c", 4), append("/a/x", 5), Item::Del(path("/a")), set("/a", "x")] {
            put(&mut fold, 8, &old);
        }
        assert_eq!(fold.value(), json!({"a": {"b": {"c": 1}, "e": {}}}));
        put(&mut fold, 10, &Item::Del(path("/a/b/c")));
        assert_eq!(fold.value(), json!({"a": {"b": {}, "e": {}}}));
        put(&mut fold, 11, &Item::Del(path("")));
        put(&mut fold, 10, &set("/z", 1));
        assert_eq!(fold.value(), json!({}));
    }

    /// What hides much costs no more than what hides little, and what is hidden is let go of.
    #[test]
    fn what_is_hidden_is_not_held_for_long() {
        let mut fold = Fold::default();
        for at in 1..20_000 {
            put(&mut fold, at, &set(&format!("/{at}/a/b"), "x"));
            if at % 100 == 0 {
                put(&mut fold, at, &Item::Del(path("")));
            }
        }
        assert!(fold.held <= 2 * 500 + SWEEP_SPARE + 500, "{} are held", fold.held);
        assert_eq!(fold.value().as_object().map(Map::len), Some(99));
        // A counter that is set anew now and then, and a list.
        for at in 20_000..40_000 {
            put(&mut fold, at, &if at % 100 == 0 { set("/n", 0) } else { inc("/n", 1) });
            put(&mut fold, at, &if at % 100 == 0 { set("/l", json!([])) } else { append("/l", 1) });
        }
        assert!(fold.held <= 3 * 1_000 + SWEEP_SPARE, "{} are held", fold.held);
        assert_eq!((&fold.value()["n"], fold.value()["l"].as_array().map(Vec::len)), (&json!(99), Some(99)));
    }

    /// Deep places cost memory in proportion to their path, and are shown without much of a stack.
    #[test]
    fn the_deepest_places_fold_on_a_small_stack() {
        let run = || {
            let mut fold = Fold::default();
            for at in 1..200 {
                let below = format!("/{at}{}", "/a".repeat(crate::model::CONTEXT_DEPTH_MAX - 2));
                put(&mut fold, at, &set(&below, at));
            }
            put(&mut fold, 150, &Item::Del(path("")));
            fold.sweep();
            assert_eq!(fold.value().as_object().map(Map::len), Some(49));
        };
        let small = std::thread::Builder::new().stack_size(256 * 1024).spawn(run).expect("a thread");
        assert!(small.join().is_ok());
    }
}
