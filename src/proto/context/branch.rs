//! Forks and merges: what a fork begins with, and what a merge brings from one context into another (AMP "Fork Context", "Merge Contexts").
//!
//! A merge is of three states: the source as it is, the target as it is, and the *base*: what the source would be if it had gone no further
//! than the target knows. The base is the fold of those operations of the source that the target *has*: what the source began with, if it is
//! a fork; all that an operation of the target names as its sources, and all that lies behind it; what the target's own line left behind
//! when it was forked; and what the source took over from the target itself. So nothing is brought twice or back, whoever is the fork of
//! whom and however often they are merged. What a source that is a fork found where it began is not its own work: it comes with a merge of
//! its parent. Whoever has something of an era has all that counted before it, and at a checkpoint the base is settled as the source was.
//!
//! A counter that the source only added to brings the difference, a list that it only appended to what is new; both add up with what the
//! target did meanwhile. Everything else is a leaf: changed on one side it is taken from there, changed on both sides differently it is a
//! conflict, which is told and decided for the side that the asker prefers.
//!
//! What this cannot know: two who merge the same source at the same time on nodes that do not hear of each other bring its counters twice,
//! and so does a third context that both sides merged.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use super::checkpoint::{Base, Merged};
use super::past::Past;
use super::replica::Replica;
use crate::model::{ContextId, OperationId, Path, Principal};
use crate::wire::context::{Genesis, Header, Item, Parent};

/// How far back the forks of a line are followed.
const LINE_MAX: usize = 64;

/// How much of a list goes into one item; the rest is appended. An entry was small enough to be written once.
const LIST_BYTES_MAX: usize = 16 * 1024;

/// Why two contexts cannot be merged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Apart {
    /// They do not come of one context: the roots of the source and of the target.
    Strangers(ContextId, ContextId),
    /// Whether the target comes of the source is not known here, since this context between them is not here.
    Unknown(ContextId),
}

/// What the target's line had of the source where it left it; nothing if it does not come of it.
///
/// # Errors
/// If the two have no common ancestor, or it cannot be told.
pub fn parting(
    source: (ContextId, &Genesis),
    target: (ContextId, &Genesis),
    mut genesis_of: impl FnMut(ContextId) -> Option<Genesis>,
) -> Result<Vec<OperationId>, Apart> {
    let root = |(id, genesis): (ContextId, &Genesis)| genesis.parent.as_ref().map_or(id, |parent| parent.root);
    if root(source) != root(target) {
        return Err(Apart::Strangers(root(source), root(target)));
    }
    let mut ancestors = BTreeSet::from([root(source)]);
    let mut before = source.1.parent.clone();
    while let Some(parent) = before.filter(|_| ancestors.len() < LINE_MAX) {
        ancestors.insert(parent.context);
        before = genesis_of(parent.context).and_then(|genesis| genesis.parent);
    }
    let (mut at, mut before) = (target.0, target.1.parent.clone());
    for _ in 0..LINE_MAX {
        if ancestors.contains(&at) {
            return Ok(Vec::new());
        }
        // A line whose end is not the root that it names is none.
        let parent = before.ok_or_else(|| Apart::Strangers(root(source), at))?;
        if parent.context == source.0 {
            return Ok(parent.frontier);
        }
        at = parent.context;
        before = if ancestors.contains(&at) { None } else { genesis_of(at).ok_or(Apart::Unknown(at))?.parent };
    }
    Err(Apart::Unknown(at))
}

/// What a fork of the context in `replica` says of it, which leaves it after the operations `frontier` with the state of that hash.
pub fn leave(replica: &Replica, frontier: &BTreeSet<OperationId>, state_hash: [u8; 32]) -> Parent {
    let root = replica.genesis().parent.as_ref().map_or_else(|| replica.id(), |parent| parent.root);
    Parent { context: replica.id(), root, frontier: frontier.iter().copied().collect(), state_hash }
}

/// What a target has of its source: some of its operations and all that lies behind them, each below the paths where whoever says so could
/// write. Whoever may write to a part of a context must not keep changes from the rest of it. With each stands when the target was last told that
/// it has it, by its own clock.
#[derive(Debug, Clone, Default)]
pub struct Had(BTreeMap<BTreeSet<Path>, BTreeMap<OperationId, u64>>);

/// Operations, and where they count.
type Below<'h> = (&'h BTreeSet<Path>, Vec<OperationId>);

impl Had {
    /// What operations of `target` say that it has of `source`; `None` if what it held at a checkpoint is not here, which may say more.
    pub fn of(target: &Past<'_>, source: ContextId, reader: Principal) -> Option<Self> {
        if !target.replica().is_whole() {
            return None;
        }
        let mut had = Self::default();
        for (_, operation, body) in target.counted(reader, |_| true).filter(|(_, _, body)| body.source == Some(source)) {
            let below = target.replica().limits(operation.header.author, operation.header.acl_epoch);
            body.sources.into_iter().for_each(|source| had.note(below.clone(), source, operation.header.lamport));
        }
        for (source, clock) in target.replica().merged().of(source) {
            had.note(source.below.iter().cloned().collect(), source.operation, clock);
        }
        Some(had)
    }

    fn note(&mut self, below: BTreeSet<Path>, source: OperationId, clock: u64) {
        let told = self.0.entry(below).or_default().entry(source).or_default();
        *told = clock.max(*told);
    }

    /// It has had these from its beginning, wherever they are.
    pub fn add(&mut self, operations: Vec<OperationId>) {
        operations.into_iter().for_each(|operation| self.note(BTreeSet::from([Path::shared()]), operation, 0));
    }

    /// What of it is here. Whoever merges has all that was merged before; so of a source that has let go of older eras what was named before
    /// something that is here lies behind that.
    ///
    /// # Errors
    /// One that is not here, and may not have come yet.
    fn here(&self, has_let_go: bool, is_here: impl Fn(OperationId) -> bool) -> Result<Vec<Below<'_>>, OperationId> {
        let everywhere = self.0.get(&BTreeSet::from([Path::shared()])).into_iter().flatten();
        let newest = everywhere.filter(|(id, _)| has_let_go && is_here(**id)).map(|(_, clock)| *clock).max().unwrap_or(0);
        let of = |(below, operations)| {
            let operations: &BTreeMap<OperationId, u64> = operations;
            let (here, missing): (Vec<OperationId>, Vec<OperationId>) = operations.keys().partition(|id| is_here(**id));
            match missing.into_iter().find(|id| operations.get(id).is_none_or(|clock| *clock >= newest)) {
                Some(missing) => Err(missing),
                None => Ok((below, here)),
            }
        };
        self.0.iter().map(of).collect()
    }
}

/// Why it cannot be told what a source did that its target does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Untold {
    /// The target has this operation, which is not here: it has not come yet, or was let go of after a checkpoint.
    Missing(OperationId),
    /// What the source had before its own work was let go of after a checkpoint.
    Settled,
    /// What the source held at a checkpoint is not here.
    Incomplete,
}

/// What a source did that its target does not have.
#[derive(Debug, Clone, PartialEq)]
pub struct Work {
    base: Value,
    source: Value,
    /// Where something was set or taken away, rather than added.
    resets: BTreeSet<Path>,
}

impl Work {
    /// What `source` did that `target` does not have.
    ///
    /// # Errors
    /// If it cannot be told.
    pub fn of(source: &Past<'_>, target: ContextId, had: &Had, reader: Principal) -> Result<Self, Untold> {
        let (replica, genesis, chain) = (source.replica(), source.replica().genesis(), source.replica().chain());
        let first = replica.first_era();
        let Some((held, merged)) = source.begin(first).filter(|_| replica.is_whole()) else { return Err(Untold::Incomplete) };
        let is_here = |id: OperationId| {
            let is_newer = || chain.checkpoints().iter().any(|era| *era >= first && replica.root(*era) == Some(id));
            // Of an era before the first that is here only some operations may be.
            replica.operations().get(id).is_some_and(|entry| chain.era(entry.acl_epoch) >= first) || is_newer()
        };
        let had = had.here(first > 0, is_here).map_err(Untold::Missing)?;
        // Whoever has something that was written since has all that stood there.
        let below: BTreeSet<&Path> = had.iter().filter(|(_, operations)| !operations.is_empty()).flat_map(|(below, _)| *below).collect();
        let is_mixed = first > 0 && (genesis.parent.is_some() || merged.of(target).next().is_some());
        if is_mixed && !below.contains(&Path::shared()) {
            return Err(Untold::Settled);
        }
        let (mut base, mut resets) = (held.below(&below), BTreeSet::new());
        let behind = |operations: Vec<OperationId>| {
            let behind = source.behind(operations);
            (source.era(&behind), behind)
        };
        let had: Vec<_> = had.into_iter().map(|(below, operations)| (below, behind(operations))).collect();
        for era in std::iter::once(first).chain(chain.checkpoints().iter().copied().filter(|era| *era > first)) {
            if let Some(checkpoint) = chain.at(era).and_then(|access| access.checkpoint).filter(|_| era > first) {
                // What the source had hidden by then it does not know any more; nor does the base.
                let settled = Base::of(&base, &Merged::default()).and_then(|base| base.begin(checkpoint.lamport));
                base = settled.ok_or(Untold::Settled)?.0;
            }
            let of_era = |header: &Header| !header.is_private && chain.era(header.acl_epoch) == era;
            for (id, operation, body) in source.counted(reader, of_era) {
                let is_copied = genesis.parent.as_ref().is_some_and(|parent| {
                    operation.header.author == genesis.owner && body.source == Some(parent.context) && body.sources == parent.frontier
                });
                let is_whole = is_copied || body.source == Some(target);
                let behind = had.iter().filter(|(_, (newest, behind))| era < *newest || behind.contains(&id));
                let behind: Vec<_> = behind.map(|(below, _)| *below).collect();
                let is_had = |item: &Item| is_whole || behind.iter().copied().flatten().any(|prefix| prefix.covers(item.path()));
                base.apply_some(id, operation.header.lamport, &body.items, is_had);
                let is_reset = |item: &&Item| matches!(item, Item::Set(..) | Item::Del(_)) && !is_had(item);
                resets.extend(body.items.iter().filter(is_reset).map(|item| item.path().clone()));
            }
        }
        Ok(Self { base: base.value(), source: source.replica().shared(), resets })
    }
}

/// Whose value stays where both sides changed one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Prefer {
    /// That of the source: whoever merges asks for it.
    #[default]
    Source,
    /// That of the target.
    Target,
}

/// A place that both sides changed differently; a side that has nothing there has no value.
#[derive(Debug, Clone, PartialEq)]
pub struct Conflict {
    /// Where.
    pub path: Path,
    /// What the source has.
    pub source: Option<Value>,
    /// What the target had.
    pub target: Option<Value>,
}

/// What a merge comes to.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Merge {
    /// What is to be written to the target.
    pub items: Vec<Item>,
    /// Where both sides had changed something.
    pub conflicts: Vec<Conflict>,
}

/// What brings `work` into a target that holds `target`.
pub fn merge(work: &Work, target: &Value, prefer: Prefer) -> Merge {
    let mut merging = Merging { resets: &work.resets, prefer, merge: Merge::default() };
    merging.place(&Path::shared(), false, [Some(&work.base), Some(&work.source), Some(target)]);
    merging.merge
}

/// What puts `value` at `path`, where nothing is or something that is no object: the leaves of objects one by one, so that what others
/// write beside them stays, and long lists in pieces.
pub fn put(path: &Path, value: &Value, items: &mut Vec<Item>) {
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            let places: Option<Vec<_>> = fields.iter().map(|(name, value)| Some((path.child(name).ok()?, value))).collect();
            match places {
                Some(places) => places.iter().for_each(|(path, value)| put(path, value, items)),
                // A name that fits into no path was written with the object around it.
                None => items.push(Item::Set(path.clone(), value.clone())),
            }
        }
        Value::Array(entries) => {
            let mut bytes = 0;
            let first = entries.iter().take_while(|entry| {
                bytes += entry.to_string().len();
                bytes <= LIST_BYTES_MAX
            });
            let first: Vec<Value> = first.cloned().collect();
            let rest = entries.iter().skip(first.len()).map(|entry| Item::Append(path.clone(), entry.clone()));
            items.push(Item::Set(path.clone(), Value::Array(first)));
            items.extend(rest);
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Object(_) => {
            items.push(Item::Set(path.clone(), value.clone()));
        }
    }
}

/// What a fork begins with: the items that make its shared memory `shared`.
pub fn copy(shared: &Value) -> Vec<Item> {
    let mut items = Vec::new();
    if shared.as_object().is_some_and(|fields| !fields.is_empty()) {
        put(&Path::shared(), shared, &mut items);
    }
    items
}

/// The base, the source's and the target's value of one place.
type Three<'v> = [Option<&'v Value>; 3];

struct Merging<'w> {
    resets: &'w BTreeSet<Path>,
    prefer: Prefer,
    merge: Merge,
}

impl Merging<'_> {
    /// Merges one place; whether something is there afterwards.
    fn place(&mut self, path: &Path, is_reset: bool, three: Three<'_>) -> bool {
        let [base, source, target] = three;
        let is_reset = is_reset || self.resets.contains(path);
        if source == base {
            return target.is_some();
        }
        if let Some(mut items) = added(path, three).filter(|_| !is_reset) {
            self.merge.items.append(&mut items);
            return true;
        }
        // Also where both sides look alike: counters in them may have grown by as much on either.
        if let Some(places) = places(path, three) {
            return self.fields(path, is_reset, three, places);
        }
        if source == target {
            return target.is_some();
        }
        let is_conflict = target != base;
        if is_conflict {
            let conflict = Conflict { path: path.clone(), source: source.cloned(), target: target.cloned() };
            self.merge.conflicts.push(conflict);
        }
        if is_conflict && self.prefer == Prefer::Target {
            return target.is_some();
        }
        self.take(path, source, target);
        source.is_some()
    }

    /// Puts there what the source has.
    fn take(&mut self, path: &Path, source: Option<&Value>, target: Option<&Value>) {
        match source {
            // Whatever is hidden there now must not be seen beside the new fields.
            Some(Value::Object(fields)) if target.is_some() && !fields.is_empty() => {
                self.merge.items.push(Item::Set(path.clone(), Value::Object(Map::new())));
                source.iter().for_each(|value| put(path, value, &mut self.merge.items));
            }
            Some(value) => put(path, value, &mut self.merge.items),
            None => self.merge.items.push(Item::Del(path.clone())),
        }
    }

    fn fields(&mut self, path: &Path, is_reset: bool, [base, source, target]: Three<'_>, places: BTreeMap<&str, Path>) -> bool {
        let begin = self.merge.items.len();
        let names = target.and_then(Value::as_object).into_iter().flat_map(Map::keys);
        let mut is_filled = names.into_iter().any(|name| !places.contains_key(name.as_str()));
        for (name, place) in &places {
            is_filled |= self.place(place, is_reset, [base, source, target].map(|value| field(value, name)));
        }
        // Whether an object of which nothing is left is still there depends on how it came to be; what the source has decides, unless the
        // target took away what was there.
        if !is_filled && path.segments().len() > 1 {
            if source.and_then(Value::as_object).is_some_and(|fields| !fields.is_empty()) {
                // What else the source has there the target took away; hidden by an item of this merge, nobody would hear of that.
                return false;
            }
            self.merge.items.truncate(begin);
            match (source, target) {
                (Some(_), Some(Value::Object(fields))) if fields.is_empty() => {}
                (Some(_), None) if base.is_some() => return false,
                (Some(_), _) => self.merge.items.push(Item::Set(path.clone(), Value::Object(Map::new()))),
                (None, Some(_)) => self.merge.items.push(Item::Del(path.clone())),
                (None, None) => {}
            }
            return source.is_some();
        }
        true
    }
}

fn field<'v>(value: Option<&'v Value>, name: &str) -> Option<&'v Value> {
    value.and_then(|value| value.as_object()?.get(name))
}

/// The fields that the source changed, of a place that is merged by fields: where neither the source nor the target has anything but an
/// object, and each of them has a path of its own.
fn places<'v>(path: &Path, [base, source, target]: Three<'v>) -> Option<BTreeMap<&'v str, Path>> {
    let is_fields = |value: Option<&Value>| value.is_none_or(Value::is_object);
    let is_new = target.is_some() || is_fields(base);
    if !(is_fields(source) && is_fields(target) && is_new) {
        return None;
    }
    let names = [base, source].into_iter().flatten().filter_map(Value::as_object).flat_map(Map::keys);
    let changed = names.filter(|name| field(base, name) != field(source, name));
    changed.map(|name| Some((name.as_str(), path.child(name).ok()?))).collect()
}

/// What adds to the target what the source added since the base, if both are counters or both are lists there.
fn added(path: &Path, three: Three<'_>) -> Option<Vec<Item>> {
    match three {
        [base @ (None | Some(Value::Number(_))), Some(Value::Number(source)), target] if fits(base, target, Value::is_number) => {
            let difference = match (base.and_then(Value::as_number), source) {
                (None, source) => source.as_i64(),
                (Some(base), source) => difference(base, source),
            };
            difference.map(|difference| vec![Item::Inc(path.clone(), difference)])
        }
        [base @ (None | Some(Value::Array(_))), Some(Value::Array(source)), target] if fits(base, target, Value::is_array) => {
            let mut known = base.and_then(Value::as_array).into_iter().flatten().peekable();
            // What was appended may stand between what was known: lists are in the order of their operations.
            let is_new = |entry: &&Value| known.next_if_eq(entry).is_none();
            let new: Vec<Item> = source.iter().filter(is_new).map(|entry| Item::Append(path.clone(), entry.clone())).collect();
            (known.peek().is_none() && !new.is_empty()).then_some(new)
        }
        _ => None,
    }
}

/// Whether the target can be added to: it has something of the kind, or, like the base, nothing.
fn fits(base: Option<&Value>, target: Option<&Value>, is_kind: impl Fn(&Value) -> bool) -> bool {
    target.map_or_else(|| base.is_none(), is_kind)
}

/// How much more `source` is than `base`, if a counter can be that much more.
fn difference(base: &serde_json::Number, source: &serde_json::Number) -> Option<i64> {
    if let (Some(base), Some(source)) = (base.as_i128(), source.as_i128()) {
        return i64::try_from(source - base).ok();
    }
    // What a counter that starts from a fraction gained is exact up to 2^53.
    let more = source.as_f64()? - base.as_f64()?;
    format!("{more}").parse().ok().filter(|whole: &i64| whole.unsigned_abs() < 1 << f64::MANTISSA_DIGITS)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::rngs::StdRng;
    use rand::{Rng as _, SeedableRng as _};
    use serde_json::json;

    use super::super::chain::Step;
    use super::super::testing::{BEGIN, END, Node, all_write, context, key, path, set, who};
    use super::super::{edit, replica};
    use super::*;
    use crate::wire::VERSION;
    use crate::wire::context::Body;

    fn past(node: &Node) -> Past<'_> {
        Past::new(&node.replica, node.bases.clone(), node.kept.values().cloned())
    }

    impl Node {
        /// Writes items that bring this context what `source` had at those operations.
        fn bring(&mut self, items: Vec<Item>, source: ContextId, sources: &[OperationId]) {
            self.bring_as(1, items, source, sources);
        }

        fn bring_as(&mut self, author: u8, items: Vec<Item>, source: ContextId, sources: &[OperationId]) {
            for items in edit::portions(items, 4_000) {
                let body = Body { items, sources: sources.to_vec(), step: None, source: Some(source), again: None };
                let mut rng = StdRng::seed_from_u64(u64::try_from(self.replica.operations().len()).expect("few"));
                let operation = self.replica.draft(&key(author), &body, BEGIN, &mut rng).expect("may write");
                assert_eq!(self.on_operation(operation), Ok(1));
            }
        }

        fn fork(&self, nonce: u8) -> Self {
            self.fork_at(nonce, self.replica.operations().heads().clone())
        }

        fn fork_at(&self, nonce: u8, frontier: BTreeSet<OperationId>) -> Self {
            let past = past(self);
            let state = past.state(&past.behind(frontier.iter().copied()), who(1)).expect("all is here");
            let parent = leave(&self.replica, &frontier, state.hash());
            let genesis = Genesis {
                v: VERSION,
                owner: who(1),
                nonce: [nonce; 16],
                session_id: "fork".to_owned(),
                created_at: BEGIN,
                expires_at: END,
                parent: Some(parent.clone()),
            };
            let genesis = replica::begin(&key(1), genesis).expect("a valid genesis");
            let mut fork = Self::new(genesis, &[1]);
            fork.change_access(&all_write([2]));
            fork.bring(copy(&state.shared()), parent.context, &parent.frontier);
            fork
        }

        fn work_for(&self, target: &Self) -> Result<Work, Untold> {
            let (source, target) = (past(self), past(target));
            let (here, there) = (self.replica.id(), target.replica().id());
            let left = parting((here, self.replica.genesis()), (there, target.replica().genesis()), |_| None).expect("related");
            let mut had = Had::of(&target, here, who(1)).expect("the target is whole");
            had.add(left);
            Work::of(&source, there, &had, who(1))
        }

        /// Merges this context into `target`.
        fn merge_into(&self, target: &mut Self, prefer: Prefer) -> Merge {
            self.try_merge_into(target, prefer).expect("all is here")
        }

        fn try_merge_into(&self, target: &mut Self, prefer: Prefer) -> Result<Merge, Untold> {
            let merge = merge(&self.work_for(target)?, &target.shared(), prefer);
            let frontier: Vec<OperationId> = self.replica.operations().heads().iter().copied().collect();
            target.bring(merge.items.clone(), self.replica.id(), &frontier);
            Ok(merge)
        }
    }

    fn inc(below: &str, by: i64) -> Item {
        Item::Inc(path(below), by)
    }

    fn append(below: &str, value: impl Into<Value>) -> Item {
        Item::Append(path(below), value.into())
    }

    fn del(below: &str) -> Item {
        Item::Del(path(below))
    }

    fn begun(items: impl IntoIterator<Item = Item>) -> Node {
        let mut node = context(&all_write([2]));
        node.own.push(2);
        node.rebuild();
        node.write(1, items);
        node
    }

    fn is_nothing(merge: &Merge) -> bool {
        *merge == Merge::default()
    }

    /// AMP-9: a merge brings what changed in the fork, and says where both sides had changed something.
    #[test]
    fn a_merge_brings_changes_and_names_conflicts() {
        let mut parent = begun([set("/plan", json!({"title": "draft", "pages": 3, "old": true})), inc("/votes", 1), append("/log", "a")]);
        let mut fork = parent.fork(1);
        fork.write(1, [set("/plan/title", "final"), del("/plan/old"), inc("/votes", 2), append("/log", "b"), set("/plan/pages", 4)]);
        parent.write(1, [inc("/votes", 10), append("/log", "c"), set("/plan/pages", 5), set("/notes/x", 1)]);
        let conflict = Conflict { path: path("/plan/pages"), source: Some(json!(4)), target: Some(json!(5)) };
        for (prefer, pages) in [(Prefer::Source, 4), (Prefer::Target, 5)] {
            let mut target = parent.join(&[1]);
            target.pull(&parent);
            let merge = fork.merge_into(&mut target, prefer);
            assert_eq!(merge.conflicts, std::slice::from_ref(&conflict));
            let expected = json!({"plan": {"title": "final", "pages": pages}, "votes": 13, "log": ["a", "c", "b"], "notes": {"x": 1}});
            assert_eq!(target.shared(), expected);
            assert!(is_nothing(&fork.merge_into(&mut target, prefer)), "merged twice is merged once");
        }
    }

    /// What was brought over is not brought back: numbers would grow each time.
    #[test]
    fn contexts_that_are_merged_to_and_fro_add_up_once() {
        let mut parent = begun([set("/n", 100)]);
        let mut fork = parent.fork(1);
        let mut sibling = parent.fork(2);
        for round in 1..4 {
            parent.write(1, [inc("/n", 1), append("/l", json!(["parent", round]))]);
            fork.write(1, [inc("/n", 10), append("/l", json!(["fork", round]))]);
            parent.merge_into(&mut fork, Prefer::Source);
            fork.merge_into(&mut parent, Prefer::Source);
            assert_eq!((&parent.shared()["n"], &fork.shared()["n"]), (&json!(100 + 11 * round), &json!(100 + 11 * round)));
            assert_eq!(parent.shared()["l"].as_array().map(Vec::len), fork.shared()["l"].as_array().map(Vec::len));
        }
        sibling.write(1, [inc("/n", 1_000)]);
        sibling.merge_into(&mut fork, Prefer::Source);
        assert_eq!(fork.shared()["n"], 1_133, "of a sibling its own work");
        fork.merge_into(&mut parent, Prefer::Source);
        assert_eq!(parent.shared()["n"], 1_133, "what came from a third goes on");
    }

    /// What a counter or list was set to is no addition, and neither adds to something of another kind.
    #[test]
    fn what_was_set_is_not_added() {
        for (base, source, target, expected, conflicts) in [
            (set("/x", 1), set("/x", 5), inc("/x", 1), json!(5), 1),
            (set("/x", 1), inc("/x", 4), set("/x", 10), json!(14), 0),
            (set("/x", 1), inc("/x", 4), set("/x", "text"), json!(5), 1),
            (set("/x", 1), inc("/x", 4), del("/x"), json!(5), 1),
            (set("/x", 0.5), inc("/x", 4), inc("/x", 1), json!(5.5), 0),
            (set("/x", json!([1])), append("/x", 2), append("/x", 3), json!([1, 3, 2]), 0),
            (set("/x", json!([1])), set("/x", json!([1, 2])), append("/x", 3), json!([1, 2]), 1),
            (set("/y", 0), inc("/x", 4), inc("/x", 1), json!(5), 0),
            (set("/y", 0), inc("/x", 4), append("/x", 1), json!(4), 1),
            (set("/x", 1), set("/x", json!({"a": 1})), set("/x", json!({"b": 2})), json!({"a": 1, "b": 2}), 0),
            (set("/x", json!({"a": 1})), set("/x", 7), set("/x/a", 2), json!(7), 1),
            (set("/x", json!({"a": 1})), del("/x"), set("/x/b", 2), json!({"b": 2}), 0),
            (set("/x", json!({"a": 1})), del("/x"), set("/x/a", 2), json!(null), 1),
            (set("/x", json!({"a": 1, "b": 2})), del("/x/a"), del("/x/b"), json!({}), 0),
            (set("/x", json!({"a": 1, "b": 2})), del("/x/a"), del("/x"), json!(null), 0),
            (set("/x", json!({"a": 1})), set("/x", json!({})), del("/x"), json!(null), 0),
        ] {
            let mut parent = begun([base.clone()]);
            let mut fork = parent.fork(1);
            fork.write(1, [source.clone()]);
            parent.write(1, [target.clone()]);
            let merge = fork.merge_into(&mut parent, Prefer::Source);
            let shown = parent.shared().get("x").cloned().unwrap_or_default();
            assert_eq!((shown, merge.conflicts.len()), (expected, conflicts), "{base:?} {source:?} {target:?}");
        }
    }

    /// Names that no path can hold, and lists that no operation can.
    #[test]
    fn what_was_written_in_one_piece_is_copied_and_merged_in_one() {
        let long = "n".repeat(crate::model::PATH_BYTES_MAX);
        let mut parent = begun([set("/o", json!({ long.as_str(): 1, "short": 2 })), set("/empty", json!({})), set("/null", json!(null))]);
        for at in 0..40 {
            parent.write(1, [append("/list", format!("{at}{}", "x".repeat(1_000)))]);
        }
        let mut fork = parent.fork(1);
        assert_eq!(fork.shared(), parent.shared());
        assert!(is_nothing(&fork.merge_into(&mut parent, Prefer::Source)));
        fork.write(1, [set("/o", json!({ long.as_str(): 3, "short": 2 }))]);
        fork.merge_into(&mut parent, Prefer::Source);
        assert_eq!(fork.shared(), parent.shared());
    }

    #[test]
    fn a_fork_of_an_older_state_merges_what_it_changed_since_then() {
        let mut parent = begun([set("/a", 1)]);
        let early = parent.replica.operations().heads().clone();
        parent.write(1, [set("/a", 2), set("/b", 1)]);
        let mut fork = parent.fork_at(1, early);
        assert_eq!(fork.shared(), json!({"a": 1}));
        assert!(is_nothing(&fork.merge_into(&mut parent, Prefer::Source)), "it changed nothing");
        fork.write(1, [set("/c", 1)]);
        fork.merge_into(&mut parent, Prefer::Source);
        assert_eq!(parent.shared(), json!({"a": 2, "b": 1, "c": 1}));
        parent.merge_into(&mut fork, Prefer::Source);
        assert_eq!(fork.shared(), parent.shared());
    }

    /// A writer who is cut off is not merged either, and what it was the base of is not brought twice.
    #[test]
    fn what_does_not_count_is_not_merged() {
        let mut parent = begun([inc("/n", 1)]);
        let mut fork = parent.fork(1);
        fork.own.push(2);
        fork.rebuild();
        fork.write(2, [inc("/n", 5), set("/bad", true)]);
        let mut seen = parent.join(&[1]);
        seen.pull(&parent);
        fork.merge_into(&mut seen, Prefer::Source);
        assert_eq!(seen.shared(), json!({"n": 6, "bad": true}));
        let mut elsewhere = fork.join(&[1]);
        elsewhere.on_access(fork.accesses[0].clone()).expect("the first");
        let copied: Vec<_> = fork.kept.values().filter(|operation| operation.header.author == who(1)).cloned().collect();
        copied.into_iter().for_each(|operation| drop(elsewhere.on_operation(operation)));
        elsewhere.change_access(&all_write([]));
        fork.pull(&elsewhere);
        assert_eq!(fork.shared(), json!({"n": 1}), "its owner had not seen what was written");
        fork.merge_into(&mut parent, Prefer::Source);
        assert_eq!(parent.shared(), json!({"n": 1}));
    }

    /// Whoever may write to a part of a context cannot say of the rest that it has what it has not.
    #[test]
    fn a_writer_of_a_part_speaks_for_that_part_alone() {
        let mut parent = begun([set("/plan", 1), set("/notes/n", 1)]);
        parent.change_access(&super::super::replica::Rights {
            write: BTreeMap::from([(who(2), BTreeSet::from([path("/notes")]))]),
            ..super::super::replica::Rights::default()
        });
        let mut fork = parent.fork(1);
        fork.write(1, [set("/plan", 2), inc("/notes/n", 5), set("/notes/lost", true)]);
        let frontier: Vec<OperationId> = fork.replica.operations().heads().iter().copied().collect();
        parent.bring_as(2, vec![inc("/notes/n", 5)], fork.replica.id(), &frontier);
        let merge = fork.merge_into(&mut parent, Prefer::Source);
        assert_eq!((parent.shared(), merge.conflicts), (json!({"plan": 2, "notes": {"n": 6}}), Vec::new()));
    }

    /// What was merged and written once more after a checkpoint is not brought once more.
    #[test]
    fn what_a_checkpoint_left_behind_of_a_merge_is_merged_once() {
        let mut parent = begun([inc("/n", 1)]);
        let mut other = parent.join(&[2]);
        other.pull(&parent);
        let mut fork = parent.fork(1);
        fork.write(1, [inc("/n", 10)]);
        let brought = merge(&fork.work_for(&other).expect("all is here"), &other.shared(), Prefer::Source);
        let frontier: Vec<OperationId> = fork.replica.operations().heads().iter().copied().collect();
        other.bring_as(2, brought.items, fork.replica.id(), &frontier);
        parent.write(1, [set("/unmerged", 1)]);
        parent.checkpoint();
        other.pull(&parent);
        parent.pull(&other);
        assert_eq!(parent.shared()["n"], 11);
        assert!(is_nothing(&fork.merge_into(&mut parent, Prefer::Source)));
        parent.merge_into(&mut fork, Prefer::Source);
        assert_eq!(fork.shared(), json!({"n": 11, "unmerged": 1}));
    }

    /// What stood at the checkpoint where a fork began is not brought to it again, although what came before is still held one by one.
    #[test]
    fn what_was_before_a_checkpoint_that_the_target_has_is_had() {
        let mut parent = begun([inc("/n", 5)]);
        parent.checkpoint();
        let mut fork = parent.fork(1);
        fork.write(1, [inc("/n", 1)]);
        assert!(is_nothing(&parent.merge_into(&mut fork, Prefer::Source)));
        parent.write(1, [inc("/n", 10)]);
        parent.merge_into(&mut fork, Prefer::Source);
        assert_eq!(fork.shared(), json!({"n": 16}));
    }

    /// A fork of `parent` that added 10, 1 and 2 and ended an era after each of the first two.
    fn fork_of_three_eras(parent: &Node) -> Node {
        let mut fork = parent.fork(1);
        for by in [10, 1] {
            fork.write(1, [inc("/n", by)]);
            fork.checkpoint();
        }
        fork.write(1, [inc("/n", 2)]);
        fork
    }

    #[test]
    fn what_is_not_told_apart_any_more_is_not_merged() {
        let mut parent = begun([set("/plan", 1), inc("/n", 5)]);
        parent.change_access(&super::super::replica::Rights {
            write: BTreeMap::from([(who(2), BTreeSet::from([path("/notes")]))]),
            ..super::super::replica::Rights::default()
        });
        let fork = fork_of_three_eras(&parent);
        assert_eq!(fork.work_for(&parent), Err(Untold::Settled), "its own work and what it began with");
        let frontier: Vec<OperationId> = fork.replica.operations().heads().iter().copied().collect();
        parent.bring_as(2, vec![set("/notes/x", 1)], fork.replica.id(), &frontier);
        assert_eq!(fork.work_for(&parent), Err(Untold::Settled), "who writes below a part speaks for that alone");
        parent.write(1, [inc("/n", 1)]);
        let mut fork = fork;
        parent.merge_into(&mut fork, Prefer::Source);
        assert_eq!(fork.shared(), json!({"plan": 1, "n": 19}), "the other way nothing is unclear");
    }

    /// What is not known is not taken for nothing, of which all would be new.
    #[test]
    fn what_a_source_held_at_a_checkpoint_must_be_here() {
        let mut parent = begun([inc("/n", 5)]);
        let fork = parent.fork(1);
        parent.checkpoint();
        parent.write(1, [inc("/n", 1)]);
        let mut late = parent.join(&[2]);
        for access in &parent.accesses {
            late.on_access(access.clone()).expect("it counts");
        }
        assert_eq!(late.work_for(&fork), Err(Untold::Incomplete));
        assert!(Had::of(&past(&late), fork.replica.id(), who(2)).is_none(), "nor is known what it was merged with");
        parent.write(1, [inc("/n", 1)]);
        parent.checkpoint();
        parent.write(1, [inc("/n", 1)]);
        parent.checkpoint();
        parent.bases.clear();
        assert_eq!(parent.work_for(&fork), Err(Untold::Incomplete), "although what it shows is here");
    }

    /// Numbers that give way to a list and are added to again are what a checkpoint says, not what lay hidden behind it.
    #[test]
    fn what_is_had_goes_through_checkpoints_as_the_source_did() {
        let mut parent = begun([inc("/x", 5)]);
        parent.write(1, [append("/x", 1)]);
        parent.checkpoint();
        parent.write(1, [inc("/x", 2)]);
        let mut fork = parent.fork(1);
        assert_eq!((parent.shared(), fork.shared()), (json!({"x": 2}), json!({"x": 2})));
        assert!(is_nothing(&parent.merge_into(&mut fork, Prefer::Source)));
    }

    /// A context whose owner split its line of access takes no new readers; whoever reads it can go on in a fork, and bring that back.
    #[test]
    fn a_context_whose_access_stands_still_is_forked_and_merged_all_the_same() {
        let mut parent = begun([set("/a", 1)]);
        let other = parent.draft_access(&all_write([2, 3]));
        parent.change_access(&all_write([2, 4]));
        parent.on_access(other).expect("proof of the split");
        assert!(parent.replica.chain().split().is_some());
        let mut fork = parent.fork(1);
        fork.write(1, [set("/a", 2)]);
        fork.merge_into(&mut parent, Prefer::Source);
        assert_eq!(parent.shared(), json!({"a": 2}));
    }

    #[test]
    fn contexts_without_a_common_ancestor_or_with_an_unknown_line_are_told() {
        let root = begun([set("/a", 1)]);
        let (child, other) = (root.fork(1), root.fork(2));
        let grandchild = child.fork(3);
        let id = |node: &Node| node.replica.id();
        let ask = |source: &Node, target: &Node, here: &[&Node]| {
            let genesis_of = |wanted| here.iter().find(|node| id(node) == wanted).map(|node| (**node.replica.genesis()).clone());
            parting((id(source), source.replica.genesis()), (id(target), target.replica.genesis()), genesis_of)
        };
        let frontier = |node: &Node| node.replica.operations().heads().iter().copied().collect::<Vec<_>>();
        assert_eq!(ask(&root, &child, &[]), Ok(frontier(&root)));
        assert_eq!(ask(&child, &root, &[]), Ok(Vec::new()));
        assert_eq!(ask(&child, &other, &[]), Ok(Vec::new()));
        assert_eq!(ask(&root, &grandchild, &[&child]), Ok(frontier(&root)));
        assert_eq!(ask(&root, &grandchild, &[]), Err(Apart::Unknown(id(&child))));
        assert_eq!(ask(&grandchild, &root, &[]), Ok(Vec::new()));
        assert_eq!(ask(&other, &grandchild, &[]), Err(Apart::Unknown(id(&child))));
        assert_eq!(ask(&other, &grandchild, &[&child]), Ok(Vec::new()));
        let stranger = {
            let access = all_write([]);
            let mut genesis = (**context(&access).replica.genesis()).clone();
            genesis.nonce = [200; 16];
            Replica::new(replica::begin(&key(1), genesis).expect("a valid genesis"), vec![key(1)])
        };
        let apart = parting((stranger.id(), stranger.genesis()), (id(&child), child.replica.genesis()), |_| None);
        assert_eq!(apart, Err(Apart::Strangers(stranger.id(), id(&root))));
        let mut forged = (**child.replica.genesis()).clone();
        forged.parent.as_mut().expect("a parent").context = stranger.id();
        let genesis_of = |_| Some((**stranger.genesis()).clone());
        assert_eq!(
            parting((id(&other), other.replica.genesis()), (ContextId::from_bytes([3; 32]), &forged), genesis_of),
            Err(Apart::Strangers(id(&root), stranger.id())),
            "a line that ends elsewhere than it says"
        );
        // Some operation that a merge names is not here yet.
        let mut unknown = Had::default();
        unknown.add(vec![OperationId::from_bytes([9; 32])]);
        assert_eq!(Work::of(&past(&child), id(&root), &unknown, who(1)), Err(Untold::Missing(OperationId::from_bytes([9; 32]))));
    }

    /// Something that a client does, below `root`, or the owner, who ends an era.
    fn edits(root: &'static str, count: usize) -> impl Strategy<Value = Vec<Option<Item>>> {
        let leaf = prop_oneof![Just("/a"), Just("/o"), Just("/o/x"), Just("/o/y"), Just("/o/p/q")];
        let value = prop_oneof![
            (0..3_i64).prop_map(Value::from),
            Just(json!({})),
            Just(json!({"x": 1})),
            Just(json!({"p": {"q": 2}, "y": null})),
            Just(json!([1]))
        ];
        let one = prop_oneof![
            4 => (leaf.clone(), value).prop_map(move |(leaf, value)| Some(set(&format!("{root}{leaf}"), value))),
            2 => leaf.prop_map(move |leaf| Some(del(&format!("{root}{leaf}")))),
            2 => (-3..4_i64).prop_map(move |by| Some(inc(&format!("{root}/n"), by))),
            2 => (0..3_i64).prop_map(move |value| Some(append(&format!("{root}/l"), value))),
            1 => Just(None),
        ];
        proptest::collection::vec(one, 0..count)
    }

    fn wrote(node: &mut Node, edits: Vec<Option<Item>>) {
        for edit in edits {
            match edit {
                Some(item) => drop(node.write(1, [item])),
                None => ended(node),
            }
        }
    }

    /// The owner ends the era, if anything was written in it.
    fn ended(node: &mut Node) {
        if let Ok(checkpoint) = node.draft_checkpoint() {
            assert_eq!(node.on_access(checkpoint), Ok(Step::Added));
        }
    }

    /// Merges one into the other, unless that is refused, which nobody is who has all that the source ever wrote.
    fn merged(source: &Node, target: &mut Node) -> Option<Merge> {
        let merge = source.try_merge_into(target, Prefer::Source);
        assert!(merge.is_ok() || source.replica.first_era() > 0, "{merge:?}");
        merge.ok()
    }

    /// What one side took away of an object is not hidden by what the other took away of it.
    #[test]
    fn an_object_that_both_empty_is_empty_on_both() {
        let mut parent = begun([set("/o", json!({"p": {"q": 2}, "y": null}))]);
        let mut fork = parent.fork(1);
        wrote(&mut parent, vec![Some(del("/o/y"))]);
        wrote(&mut fork, vec![Some(del("/o/p/q"))]);
        parent.merge_into(&mut fork, Prefer::Source);
        fork.merge_into(&mut parent, Prefer::Source);
        assert_eq!(parent.shared().pointer("/o/p/q"), None);
        assert_eq!(parent.shared(), fork.shared());
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

        /// A fork holds what its parent held; merged at once neither changes the other; and either brings an untouched other all its changes.
        #[test]
        fn a_fork_and_its_parent_bring_each_other_all_that_changed(first in edits("", 12), then in edits("", 12)) {
            let mut parent = begun([set("/first", 1)]);
            wrote(&mut parent, first);
            let mut fork = parent.fork(1);
            prop_assert_eq!(fork.shared(), parent.shared());
            prop_assert_eq!(Some(fork.replica.state_hash()), fork.replica.genesis().parent.as_ref().map(|parent| parent.state_hash));
            let (mut early, mut late) = (parent.fork(2), parent.join(&[1]));
            late.pull(&parent);
            prop_assert!(is_nothing(&fork.merge_into(&mut parent, Prefer::Source)) && is_nothing(&parent.merge_into(&mut fork, Prefer::Source)));
            wrote(&mut fork, then.clone());
            if let Some(merge) = merged(&fork, &mut late) {
                prop_assert_eq!((late.shared(), merge.conflicts), (fork.shared(), Vec::new()));
                prop_assert!(is_nothing(&fork.merge_into(&mut late, Prefer::Source)), "merged twice is merged once");
            }
            wrote(&mut parent, then);
            if let Some(merge) = merged(&parent, &mut early) {
                prop_assert_eq!((early.shared(), merge.conflicts), (parent.shared(), Vec::new()));
            }
        }

        /// What both change in different places is there afterwards, whichever is merged into which.
        #[test]
        fn changes_in_different_places_are_united(first in edits("", 8), here in edits("/h", 10), there in edits("/t", 10)) {
            let mut parent = begun([set("/first", 1)]);
            wrote(&mut parent, first);
            let mut fork = parent.fork(1);
            wrote(&mut parent, here);
            wrote(&mut fork, there);
            let mut expected = parent.shared();
            for (name, value) in fork.shared().as_object().expect("an object") {
                expected[name] = value.clone();
            }
            let mut other = fork.join(&[1]);
            other.pull(&fork);
            if let Some(merge) = merged(&parent, &mut other) {
                prop_assert_eq!((other.shared(), merge.conflicts), (expected.clone(), Vec::new()));
            }
            if let Some(merge) = merged(&fork, &mut parent) {
                prop_assert_eq!((parent.shared(), merge.conflicts), (expected, Vec::new()));
            }
        }

        /// Merged to and fro both hold the same, whatever each did; counters are the sum of all that was added, and lists have all entries.
        #[test]
        fn merged_to_and_fro_both_hold_the_same(first in edits("", 8), here in edits("", 10), there in edits("", 10), adds in proptest::collection::vec((0..4_usize, 1..9_i64), 0..12)) {
            let mut parent = begun([set("/first", 1)]);
            wrote(&mut parent, first);
            let mut fork = parent.fork(1);
            wrote(&mut parent, here);
            wrote(&mut fork, there);
            for (what, by) in &adds {
                match what {
                    0 => wrote(&mut parent, vec![Some(inc("/sum", *by)), Some(append("/all", *by))]),
                    1 => wrote(&mut fork, vec![Some(inc("/sum", *by)), Some(append("/all", *by))]),
                    2 => drop(merged(&parent, &mut fork)),
                    _ => drop(merged(&fork, &mut parent)),
                }
            }
            if merged(&parent, &mut fork).is_none() || merged(&fork, &mut parent).is_none() {
                return Ok(());
            }
            let sorted = |node: &Node| {
                let mut shared = node.shared();
                for list in ["all", "l"] {
                    if let Some(entries) = shared.get_mut(list).and_then(Value::as_array_mut) {
                        entries.sort_by_key(ToString::to_string);
                    }
                }
                shared
            };
            prop_assert_eq!(sorted(&parent), sorted(&fork));
            let added: Vec<i64> = adds.iter().filter(|(what, _)| *what < 2).map(|(_, by)| *by).collect();
            let all = sorted(&parent)["all"].as_array().map_or(0, Vec::len);
            prop_assert_eq!((parent.shared()["sum"].as_i64().unwrap_or_default(), all), (added.iter().sum(), added.len()));
        }

        /// Whoever adds what where, whenever eras end, and whoever is read anew or comes late: what is merged is there once, what is refused
        /// is as it was.
        #[test]
        fn what_is_added_is_there_once_over_checkpoints(seed in any::<u64>()) {
            let mut rng = StdRng::seed_from_u64(seed);
            let mut nodes = vec![(begun([set("/first", 1)]), BTreeSet::new())];
            for step in 0..40_i64 {
                let at = rng.random_range(0..nodes.len());
                match rng.random_range(0..12) {
                    0..=3 => {
                        nodes[at].0.write(1, [inc("/n", 1 + step), append("/l", step)]);
                        nodes[at].1.insert(step);
                    }
                    4..=6 => ended(&mut nodes[at].0),
                    7 => nodes[at].0.rebuild(),
                    8 => {
                        let mut late = nodes[at].0.join(&[1, 2]);
                        late.pull(&nodes[at].0);
                        nodes[at].0 = late;
                    }
                    9 if nodes.len() < 3 => {
                        let fork = (nodes[0].0.fork(u8::try_from(nodes.len()).expect("few")), nodes[0].1.clone());
                        nodes.push(fork);
                    }
                    // Forks are merged with their parent alone: of a third all would be brought that both merged.
                    what if at > 0 => {
                        let (parents, forks) = nodes.split_at_mut(at);
                        let (source, target) =
                            if what == 10 { (&mut parents[0], &mut forks[0]) } else { (&mut forks[0], &mut parents[0]) };
                        if merged(&source.0, &mut target.0).is_some() {
                            target.1.extend(&source.1);
                        }
                    }
                    _ => {}
                }
                for (node, steps) in &nodes {
                    let shared = node.shared();
                    prop_assert_eq!(shared.get("n").and_then(Value::as_i64).unwrap_or_default(), steps.iter().map(|step| 1 + step).sum::<i64>());
                    let mut list: Vec<i64> = shared.get("l").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_i64).collect();
                    list.sort_unstable();
                    prop_assert!(list.iter().eq(steps), "{:?} rather than {:?}", list, steps);
                }
            }
        }
    }
}
