//! What a context held when its owner ended an era (design/contexts.md "Life").
//!
//! A checkpoint makes a new beginning: whoever holds all that counted of the era before has this *base*, whoever does not is given it by
//! another reader, and its hash stands in the owner's change of access. It is what readers saw of the shared memory, and nothing that was
//! hidden in it; all that is written later is newer. So a counter of a million increments is one number, and what was removed is gone. With it
//! stands what the context had of others it was merged with, which would otherwise be brought twice.
//!
//! Private memories are no part of it: nobody but their agents could say what they held.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::fold::Fold;
use crate::model::{ContextId, OperationId, Path, at_most};
use crate::wire::context::{BASE_BYTES_MAX, Checkpoint, PREFIXES_MAX};

const HASH: &str = "meshwork 2026-11 context base";

/// How many operations of other contexts are remembered: those that were named last.
const MERGED_MAX: usize = 1_024;
/// About what such an operation takes in memory, and a name on one of its paths, beside the name's text.
const SOURCE_BYTES: usize = 512;
const NAME_BYTES: usize = 48;

/// Which operations of other contexts operations of this one named as their sources, and below which paths that counts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Merged {
    /// With the clock of the last operation that named it.
    named: BTreeMap<Arc<Source>, u64>,
    by_clock: BTreeSet<(u64, Arc<Source>)>,
    held_bytes: usize,
}

/// An operation of another context, below some paths.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// The other context.
    pub context: ContextId,
    /// The operation, which this one has with all that lies behind it.
    pub operation: OperationId,
    /// Where: all that the author of an operation that named it could write.
    #[serde(deserialize_with = "at_most::<PREFIXES_MAX, _, _>")]
    pub below: Vec<Path>,
}

impl Source {
    fn held_bytes(&self) -> usize {
        let names = self.below.iter().flat_map(Path::segments).map(|name| NAME_BYTES.saturating_add(name.len()));
        names.fold(SOURCE_BYTES, usize::saturating_add)
    }
}

impl Merged {
    /// About how many bytes it takes in memory.
    pub fn held_bytes(&self) -> u64 {
        u64::try_from(self.held_bytes).unwrap_or(u64::MAX)
    }

    /// Notes that an operation of clock `lamport` named a source. Of too many those stay that were named last, in whatever order they come.
    pub fn note(&mut self, source: Source, lamport: u64) {
        let source = match self.named.get_key_value(&source) {
            Some((_, before)) if *before >= lamport => return,
            Some((known, before)) => {
                self.by_clock.remove(&(*before, Arc::clone(known)));
                Arc::clone(known)
            }
            None => {
                self.held_bytes = self.held_bytes.saturating_add(source.held_bytes());
                Arc::new(source)
            }
        };
        self.by_clock.insert((lamport, Arc::clone(&source)));
        self.named.insert(source, lamport);
        if self.named.len() > MERGED_MAX
            && let Some((_, oldest)) = self.by_clock.pop_first()
        {
            self.named.remove(&oldest);
            self.held_bytes = self.held_bytes.saturating_sub(oldest.held_bytes());
        }
    }

    /// What it has of `context`, each with the clock of the last operation that named it.
    pub fn of(&self, context: ContextId) -> impl Iterator<Item = (&Source, u64)> {
        self.named.iter().map(|(source, clock)| (&**source, *clock)).filter(move |(source, _)| source.context == context)
    }
}

/// What a context held at a checkpoint, as the text of a JSON object: what it was merged with in `merged`, in `shared_memory` what readers saw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Base {
    text: Arc<str>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written<'t> {
    /// Each with the clock of the last operation that named it.
    #[serde(deserialize_with = "at_most::<MERGED_MAX, _, _>")]
    merged: Vec<(u64, Source)>,
    #[serde(borrow)]
    shared_memory: &'t RawValue,
}

impl Base {
    /// What stands in these memories. `None` if it is more than a checkpoint may have.
    pub fn of(shared: &Fold, merged: &Merged) -> Option<Self> {
        let shared = RawValue::from_string(shared.value().to_string()).ok()?;
        let merged = merged.named.iter().map(|(source, clock)| (*clock, Source::clone(source))).collect();
        let written = Written { merged, shared_memory: &shared };
        let base = Self { text: serde_json::to_string(&written).ok()?.into() };
        base.begin(0).filter(|_| base.len_bytes() <= BASE_BYTES_MAX).is_some().then_some(base)
    }

    /// What the checkpoint says of it, for an era that begins after `lamport`.
    pub fn checkpoint(&self, lamport: u64) -> Checkpoint {
        Checkpoint { lamport, hash: blake3::derive_key(HASH, self.text.as_bytes()), bytes: self.len_bytes() }
    }

    /// What has this text, if that is what `checkpoint` says: a base, unless the owner signed the hash of something else.
    pub fn read(text: String, checkpoint: &Checkpoint) -> Option<Self> {
        let base = Self { text: text.into() };
        (base.checkpoint(checkpoint.lamport) == *checkpoint).then_some(base)
    }

    /// The memory that begins with it, and what it was merged with, before all that is written after `lamport`; `None` if it is no base.
    pub fn begin(&self, lamport: u64) -> Option<(Fold, Merged)> {
        let Written { merged: sources, shared_memory } = serde_json::from_str(&self.text).ok()?;
        let mut merged = Merged::default();
        sources.into_iter().for_each(|(clock, source)| merged.note(source, clock.min(lamport)));
        Some((Fold::based(shared_memory, lamport)?, merged))
    }

    /// The text.
    pub fn text(&self) -> &str {
        &self.text
    }

    fn len_bytes(&self) -> u64 {
        u64::try_from(self.text.len()).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::rngs::StdRng;
    use rand::seq::IndexedRandom as _;
    use rand::{Rng as _, SeedableRng as _};
    use serde_json::{Value, json};

    use super::super::chain::{self, Step};
    use super::super::replica::{Refusal, Rights};
    use super::super::testing::{Node, all_write, context, path, set, who};
    use super::*;
    use crate::wire::context::{Access, Item, Verified};

    fn inc(below: &str, by: i64) -> Item {
        Item::Inc(path(below), by)
    }

    fn append(below: &str, value: impl Into<Value>) -> Item {
        Item::Append(path(below), value.into())
    }

    /// The context of the owner's node, in which 1 and 2 write, and the node of 2.
    fn two() -> (Node, Node) {
        let mut here = context(&all_write([2]));
        here.write(1, [set("/a", json!({"b": 1})), inc("/n", 2), append("/l", "x")]);
        let mut there = here.join(&[2]);
        there.pull(&here);
        (here, there)
    }

    #[test]
    fn a_checkpoint_changes_nothing_that_is_seen() {
        let (mut here, mut there) = two();
        there.write(2, [inc("/n", 3), Item::Del(path("/a/b")), append("/l", "y")]);
        here.pull(&there);
        let before = here.shared();
        let checkpoint = here.checkpoint();
        assert_eq!((here.shared(), before), (json!({"a": {}, "n": 5, "l": ["x", "y"]}), json!({"a": {}, "n": 5, "l": ["x", "y"]})));
        assert_eq!(here.replica.operations().heads(), &BTreeSet::from([OperationId::from_bytes(checkpoint.name())]));
        there.pull(&here);
        assert!(there.replica.is_whole() && there.shared() == here.shared());
        // What is written then adds to what stood there.
        there.write(2, [inc("/n", 1), append("/l", "z"), set("/a/c", 2)]);
        here.write(1, [inc("/n", 1), set("/a/d", 3)]);
        here.pull(&there);
        there.pull(&here);
        assert_eq!(here.shared(), json!({"a": {"c": 2, "d": 3}, "n": 7, "l": ["x", "y", "z"]}));
        assert_eq!((here.shared(), here.replica.heads()), (there.shared(), there.replica.heads()));
    }

    #[test]
    fn whoever_comes_later_is_given_what_stood_at_the_checkpoint() {
        let (mut here, _) = two();
        here.checkpoint();
        here.write(1, [inc("/n", 1)]);
        let mut late = here.join(&[2]);
        for access in &here.accesses {
            late.on_access(access.clone()).expect("it counts");
        }
        assert!(!late.replica.is_whole());
        assert_eq!(
            (late.replica.wanted_base().is_some(), here.replica.beyond(&late.replica.tips()).len()),
            (true, 1),
            "it is told what it lacks, and no more"
        );
        late.pull(&here);
        assert!(late.replica.is_whole() && late.shared() == json!({"a": {"b": 1}, "n": 3, "l": ["x"]}));
        late.write(2, [inc("/n", 1)]);
        here.pull(&late);
        assert_eq!((here.shared(), here.replica.heads()), (late.shared(), late.replica.heads()));
        // Also by one that came so itself, and at the next one.
        here.checkpoint();
        late.pull(&here);
        assert!(late.replica.is_whole(), "it had all since");
        let mut later = late.join(&[2]);
        later.pull(&late);
        assert_eq!((later.replica.is_whole(), later.shared()), (true, here.shared()));
    }

    /// No acknowledged operation is lost: what its owner had not seen, its author writes once more.
    #[test]
    fn what_the_owner_had_not_seen_is_written_once_more() {
        let (mut here, mut there) = two();
        let unseen = there.write(2, [inc("/n", 10), set("/a/b", 2), append("/l", "y")]);
        here.checkpoint();
        assert_eq!(here.on_operation(unseen), Err(Refusal::Behind));
        there.pull(&here);
        assert_eq!(there.shared(), json!({"a": {"b": 2}, "n": 12, "l": ["x", "y"]}));
        here.pull(&there);
        assert_eq!(here.shared(), there.shared());
        // Once, however often it is read again.
        there.rebuild();
        assert_eq!(there.shared(), here.shared());
        assert!(!there.replica.operations().has_twins(who(2)) && !here.replica.operations().has_twins(who(2)));
    }

    #[test]
    fn of_what_the_owner_had_not_seen_only_that_is_written_which_still_changes_something() {
        let (mut here, mut there) = two();
        there.write(2, [set("/a/b", "old"), set("/c", "new")]);
        here.write(1, [inc("/n", 1)]);
        here.write(1, [set("/a/b", "newer")]);
        here.checkpoint();
        here.write(1, [inc("/n", 1)]);
        // It has all that counted before, and can tell.
        there.pull(&here);
        for operation in here.kept.values() {
            let _ = there.on_operation(operation.clone());
        }
        there.rebuild();
        here.pull(&there);
        assert_eq!(here.shared(), there.shared());
        assert_eq!(here.shared()["c"], json!("new"));
    }

    #[test]
    fn what_was_before_the_checkpoint_before_the_last_is_let_go_of() {
        let (mut here, mut there) = two();
        let first = here.replica.operations().len();
        here.checkpoint();
        here.write(1, [inc("/n", 1)]);
        assert_eq!((here.replica.operations().len(), here.replica.first_era()), (first + 1, 0));
        let second = here.checkpoint();
        here.write(1, [inc("/n", 1)]);
        assert_eq!((here.replica.operations().len(), here.replica.first_era()), (2, 2));
        there.pull(&here);
        assert_eq!((there.shared(), second.epoch), (here.shared(), 3));
        // And a replica is made of the bases and what was written since.
        here.kept.retain(|_, operation| operation.header.acl_epoch >= 2);
        let before = here.shared();
        here.rebuild();
        assert_eq!((here.shared(), here.replica.is_whole()), (before, true));
    }

    #[test]
    fn numbers_go_on_and_quotas_begin_anew() {
        let (mut here, mut there) = two();
        here.checkpoint();
        there.pull(&here);
        let second = here.write(1, [inc("/n", 1)]);
        assert_eq!((second.header.seq, second.header.lamport), (1, 2));
        let first = there.write(2, [inc("/n", 1)]);
        assert_eq!((first.header.seq, first.header.lamport, first.header.prev), (0, 2, None));
        let bytes = here.replica.operations().get(second.id()).expect("here").line_bytes;
        assert!(bytes < 2 * u64::try_from(second.len_bytes()).expect("small"), "of the second alone");
    }

    /// What was hidden when its era ended is not written again after a later checkpoint, when nobody can tell that any more.
    #[test]
    fn what_was_hidden_stays_hidden() {
        let (mut here, mut there) = two();
        there.write(2, [set("/a/b", "old")]);
        here.write(1, [inc("/n", 1)]);
        here.write(1, [set("/a/b", "newer")]);
        let mut whole = here.join(&[2]);
        whole.pull(&here);
        whole.kept.extend(there.kept.clone());
        whole.rebuild();
        for by in 1..=2 {
            here.checkpoint();
            whole.pull(&here);
            assert_eq!((whole.shared(), whole.replica.last(who(2))), (here.shared(), None), "after {by}");
            here.write(1, [inc("/n", 1)]);
            whole.pull(&here);
        }
    }

    /// Threat: an author who signs two operations of one number. What others built on the branch that the checkpoint does not name they write
    /// once more, and nobody is left without.
    #[test]
    fn what_was_built_on_the_other_branch_of_a_liar_is_written_once_more() {
        let mut here = context(&all_write([2, 3]));
        here.write(1, [inc("/n", 1)]);
        let mut there = here.join(&[3]);
        there.pull(&here);
        let liar = here.join(&[2]);
        let mut branches: Vec<Node> = (0..2).map(|_| liar.join(&[2])).collect();
        for (node, by) in branches.iter_mut().zip([10, 20]) {
            node.pull(&here);
            node.write(2, [inc("/liar", by)]);
        }
        for at in 0..2 {
            // Whichever of the two is named, the third builds on the other in one of the rounds.
            let mut third = there.join(&[3]);
            third.pull(&here);
            third.pull(&branches[at]);
            third.write(3, [inc("/n", 100)]);
            let mut owner = here.join(&[1]);
            owner.pull(&here);
            for node in [&branches[0], &branches[1], &third] {
                owner.pull(node);
            }
            assert!(owner.replica.operations().has_twins(who(2)));
            owner.checkpoint();
            assert!(owner.replica.is_whole());
            third.pull(&owner);
            owner.pull(&third);
            assert!(third.replica.is_whole());
            assert_eq!((owner.shared()["n"].clone(), owner.shared()), (json!(101), third.shared()), "branch {at}");
        }
    }

    /// What its author wrote in the new era is not undone by what waited from the old one.
    #[test]
    fn what_has_taken_its_place_since_stays() {
        let (mut here, mut there) = two();
        there.write(2, [set("/a/b", "old"), set("/c", "old")]);
        here.write(1, [inc("/n", 1)]);
        here.checkpoint();
        here.write(1, [set("/a/b", "newer")]);
        let kept = there.kept.clone();
        let mut late = here.join(&[2]);
        late.pull(&here);
        late.kept.extend(kept);
        late.rebuild();
        assert_eq!((late.shared()["a"]["b"].clone(), late.shared()["c"].clone()), (json!("newer"), json!("old")));
    }

    /// AMP-9: what is written once more says of what it was merged, as it did before.
    #[test]
    fn a_merge_that_is_written_once_more_is_still_one() {
        let (mut here, mut there) = two();
        let body = crate::wire::context::Body {
            items: vec![inc("/n", 5)],
            sources: vec![OperationId::from_bytes([5; 32])],
            step: None,
            source: Some(ContextId::from_bytes([6; 32])),
            again: None,
        };
        there.write_body(2, &body).expect("may");
        here.checkpoint();
        there.pull(&here);
        here.pull(&there);
        for node in [&here, &there] {
            assert_eq!(node.replica.merged().of(ContextId::from_bytes([6; 32])).count(), 1);
            assert_eq!(node.shared()["n"], json!(7));
        }
    }

    #[test]
    fn an_era_of_which_something_is_missing_is_not_looked_back_at() {
        let (mut here, mut there) = two();
        there.write(2, [inc("/n", 1)]);
        here.write(1, [inc("/n", 1)]);
        here.checkpoint();
        assert_eq!((here.replica.first_era(), here.replica.operations().len()), (0, 2));
        there.pull(&here);
        assert!(there.replica.is_whole());
        assert_eq!((there.replica.first_era(), there.replica.operations().len()), (2, 1), "its own once more alone");
    }

    /// A replica that has nothing but the base goes back with the line of access as well.
    #[test]
    fn a_split_takes_the_newest_checkpoint_back_from_all() {
        let (mut here, _) = two();
        here.checkpoint();
        here.write(1, [inc("/n", 1)]);
        let rival = here.forge_access(&all_write([2]), |access| access.at = super::super::testing::END);
        here.checkpoint();
        let mut late = here.join(&[2]);
        late.pull(&here);
        assert!(late.replica.is_whole() && late.replica.operations().is_empty());
        assert_eq!((late.on_access(rival.clone()), here.on_access(rival)), (Ok(Step::Split), Ok(Step::Split)));
        assert!(!late.replica.is_whole() && here.replica.is_whole());
        late.bases.extend(here.bases.clone());
        late.pull(&here);
        late.rebuild();
        assert_eq!((late.shared(), late.replica.heads()), (here.shared(), here.replica.heads()));
    }

    /// What an era began with is no operation of anybody, and takes memory all the same.
    #[test]
    fn a_replica_says_what_the_base_takes_that_it_began_with() {
        let (mut here, _) = two();
        let text = "x".repeat(10_000);
        here.write(1, (0..5).map(|at| set(&format!("/o/{at}"), text.as_str())));
        here.checkpoint();
        here.write(1, [inc("/n", 1)]);
        here.checkpoint();
        assert_eq!(here.replica.operations().len(), 1);
        assert!(here.replica.held_bytes() > 50_000, "{} bytes", here.replica.held_bytes());
    }

    /// The last operation of `seed` on a node.
    fn last(node: &Node, seed: u8) -> OperationId {
        node.replica.operations().last(who(seed)).expect("wrote").id
    }

    #[test]
    fn nothing_builds_on_what_lies_before_the_checkpoint_but_its_authors_last() {
        let (mut here, mut there) = two();
        there.write(2, [inc("/n", 1)]);
        here.pull(&there);
        let theirs = last(&here, 2);
        let checkpoint = here.checkpoint();
        let root = OperationId::from_bytes(checkpoint.name());
        type Change = Box<dyn FnOnce(&mut crate::wire::context::Header)>;
        let changes: [(&str, Change); 6] = [
            ("another's last", Box::new(move |header| header.deps = vec![theirs])),
            ("an older clock", Box::new(|header| header.lamport -= 1)),
            ("a later clock", Box::new(|header| header.lamport += 1)),
            ("nothing", Box::new(|header| (header.prev, header.seq) = (None, 0))),
            ("the checkpoint as its own", Box::new(move |header| (header.prev, header.deps) = (Some(root), Vec::new()))),
            ("another number", Box::new(|header| header.seq += 1)),
        ];
        for (what, change) in changes {
            let forged = here.forge(1, [inc("/n", 1)], change);
            assert!(matches!(here.on_operation(forged), Err(Refusal::Numbers(_))), "{what}");
        }
        let without = here.forge(1, [inc("/n", 1)], |header| header.deps = Vec::new());
        assert_eq!(here.on_operation(without), Ok(1), "the checkpoint need not be named");
        let older = here.forge(2, [inc("/n", 1)], |header| header.acl_epoch = 1);
        assert_eq!(here.on_operation(older), Err(Refusal::Behind));
    }

    fn refused(node: &mut Node, change: &Verified<Access>) -> chain::Refusal {
        node.on_access(change.clone()).expect_err("it does not count")
    }

    #[test]
    fn a_checkpoint_changes_nobodys_rights_and_takes_no_clock_back() {
        let (mut here, mut there) = two();
        (0..2).for_each(|_| drop(there.write(2, [inc("/n", 1)])));
        here.pull(&there);
        here.checkpoint();
        here.write(1, [inc("/n", 1)]);
        let checkpoint = (*here.draft_checkpoint().expect("the owner may")).clone();
        let sign = |access: Access| crate::wire::context::Signed::sign(access, &super::super::testing::key(1)).expect("by its own rules");
        let rights = sign(Access { writers: Vec::new(), ..checkpoint.clone() });
        assert_eq!(refused(&mut here, &rights), chain::Refusal::Checkpoint);
        let before = Checkpoint { lamport: 2, ..checkpoint.checkpoint.expect("a checkpoint") };
        let back = sign(Access { checkpoint: Some(before), ..checkpoint.clone() });
        assert_eq!(refused(&mut here, &back), chain::Refusal::Checkpoint);
        assert_eq!(here.on_access(sign(checkpoint)), Ok(Step::Added));
        assert_eq!(here.draft_checkpoint().err(), Some(Refusal::Checkpoint("nothing was written since the last one")));
    }

    /// An owner that says something else than what was held fools those who have it not; the others see that they lack it.
    #[test]
    fn what_a_checkpoint_says_is_checked_by_all_who_can() {
        let (mut here, mut there) = two();
        let honest = (*here.draft_checkpoint().expect("the owner may")).clone();
        let lie = Checkpoint { hash: [7; 32], ..honest.checkpoint.expect("a checkpoint") };
        let lie = crate::wire::context::Signed::sign(Access { checkpoint: Some(lie), ..honest }, &super::super::testing::key(1))
            .expect("a change");
        assert_eq!(there.on_access(lie), Ok(Step::Added));
        assert!(!there.replica.is_whole() && there.replica.wanted_base().is_some());
        assert_eq!(there.shared(), here.shared(), "until it is given that, it shows what it has");
        assert!(Base::read("{}".to_owned(), &honest_of(&mut here)).is_none());
    }

    /// Whoever has the text of a hash that the owner signed, and nothing can begin with it, knows that it lacks the base.
    #[test]
    fn with_what_is_no_base_a_replica_is_not_whole() {
        let (here, mut there) = two();
        let (text, honest) = ("[]".to_owned(), (*here.draft_checkpoint().expect("the owner may")).clone());
        let lie = Base { text: text.as_str().into() }.checkpoint(honest.checkpoint.expect("a checkpoint").lamport);
        let lie = Access { checkpoint: Some(lie), ..honest };
        let lie = crate::wire::context::Signed::sign(lie, &super::super::testing::key(1)).expect("a change");
        assert_eq!(there.on_access(lie.clone()), Ok(Step::Added));
        let read = Base::read(text, &lie.checkpoint.expect("a checkpoint")).expect("what was signed");
        there.bases.insert(lie.epoch, read);
        there.rebuild();
        assert!(!there.replica.is_whole() && there.shared() == here.shared(), "it goes on with what it has");
    }

    fn honest_of(here: &mut Node) -> Checkpoint {
        here.checkpoint().checkpoint.expect("a checkpoint")
    }

    #[test]
    fn a_second_change_of_a_settled_number_comes_too_late() {
        let (mut here, _) = two();
        let rival_of_first = here.forge_access(&Rights::default(), |access| access.at = super::super::testing::END);
        here.checkpoint();
        here.write(1, [inc("/n", 1)]);
        let rival_of_second = here.forge_access(&all_write([2]), |access| access.at = super::super::testing::END);
        let before = here.shared();
        here.checkpoint();
        assert_eq!(refused(&mut here, &rival_of_first), chain::Refusal::Settled);
        assert_eq!(here.on_access(rival_of_second), Ok(Step::Split), "that of the last one stops access");
        assert_eq!((here.shared(), here.replica.is_whole()), (before, true));
        assert!(here.draft_checkpoint().is_err());
    }

    /// AMP-9: forks and merges go on over checkpoints.
    #[test]
    fn what_was_merged_is_remembered_over_checkpoints() {
        let mut merged = Merged::default();
        let source = |at: u8| Source {
            context: ContextId::from_bytes([1; 32]),
            operation: OperationId::from_bytes([at; 32]),
            below: vec![Path::shared()],
        };
        (0..=200).for_each(|at| merged.note(source(at), u64::from(at)));
        merged.note(source(3), 500);
        let base = Base::of(&Fold::default(), &merged).expect("small");
        let (_, read) = base.begin(500).expect("reads");
        assert_eq!((read.of(source(0).context).count(), read.of(ContextId::from_bytes([2; 32])).count()), (201, 0));
    }

    /// Of too many sources the same stay, in whatever order they came.
    #[test]
    fn the_sources_that_were_named_last_stay() {
        let named: Vec<(u64, Source)> = (0..3 * MERGED_MAX)
            .map(|at| {
                let [.., high, low] = (at % (2 * MERGED_MAX)).to_be_bytes();
                let mut operation = [0; 32];
                (operation[0], operation[1]) = (high, low);
                let at = u64::try_from(at * 7 % 5_000).expect("small");
                (at, Source { context: ContextId::from_bytes([1; 32]), operation: OperationId::from_bytes(operation), below: vec![] })
            })
            .collect();
        let noted = |named: &mut dyn Iterator<Item = &(u64, Source)>| {
            let mut merged = Merged::default();
            named.for_each(|(lamport, source)| merged.note(source.clone(), *lamport));
            merged
        };
        let forwards = noted(&mut named.iter());
        assert_eq!((forwards.named.len(), &forwards), (MERGED_MAX, &noted(&mut named.iter().rev())));
        assert_eq!(forwards.held_bytes(), u64::try_from(MERGED_MAX * SOURCE_BYTES).expect("small"), "of those that stay");
    }

    /// An owner may sign the hash of anything.
    #[test]
    fn what_names_more_sources_than_are_remembered_or_more_paths_than_a_writer_has_is_no_base() {
        let begins = |sources: usize, paths: usize| {
            let source = |at: usize| {
                let operation = blake3::hash(&at.to_be_bytes());
                let below = vec![Path::shared(); paths];
                let operation = OperationId::from_bytes(operation.into());
                json!([1, { "context": ContextId::from_bytes([1; 32]), "operation": operation, "below": below }])
            };
            let written = json!({ "merged": (0..sources).map(source).collect::<Vec<_>>(), "shared_memory": {} });
            let begun = Base { text: written.to_string().into() }.begin(1);
            begun.map(|(_, merged)| merged.of(ContextId::from_bytes([1; 32])).count())
        };
        assert_eq!((begins(MERGED_MAX, 1), begins(MERGED_MAX + 1, 1)), (Some(MERGED_MAX), None));
        assert_eq!((begins(1, PREFIXES_MAX), begins(1, PREFIXES_MAX + 1)), (Some(1), None));
    }

    #[test]
    fn a_base_has_a_bound() {
        let many = |count: usize| format!("{{{}}}", (0..count).map(|at| format!("\"{at}\":0")).collect::<Vec<_>>().join(","));
        let based = |count| Fold::based(&RawValue::from_string(many(count)).expect("JSON"), 1);
        assert!(based(199_999).is_some() && based(200_000).is_none());
        let again = |count: usize| format!("{{{}}}", vec!["\"a\":0"; count].join(","));
        assert!(Fold::based(&RawValue::from_string(again(200_000)).expect("JSON"), 1).is_none(), "each is counted as it is read");
        assert!(Fold::based(&RawValue::from_string("[]".to_owned()).expect("JSON"), 1).is_none());
    }

    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            "[a-z]{0,3}".prop_map(Value::from),
            Just(Value::Null)
        ];
        leaf.prop_recursive(3, 24, 4, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                proptest::collection::btree_map("[ab/~\"]{0,2}", inner, 0..4)
                    .prop_map(|fields| Value::Object(fields.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn a_base_holds_what_was_seen(fields in proptest::collection::btree_map("[ab/~\"]{0,2}", value(), 0..4)) {
            let seen = Value::Object(fields.into_iter().collect());
            let fold = Fold::based(&RawValue::from_string(seen.to_string()).expect("JSON"), 7).expect("small");
            prop_assert_eq!(&fold.value(), &seen);
            let base = Base::of(&fold, &Merged::default()).expect("small");
            let read = Base::read(base.text().to_owned(), &base.checkpoint(9)).expect("its own");
            let (again, _) = read.begin(9).expect("reads");
            prop_assert_eq!(again.value(), seen);
            prop_assert_eq!(Base::of(&again, &Merged::default()), Some(base));
        }

    }

    proptest! {
        // Each has dozens of operations signed and sealed.
        #![proptest_config(ProptestConfig::with_cases(24))]

        /// Whoever writes what when, and whenever the owner ends an era: nothing that was written is lost, and all show the same.
        #[test]
        fn nothing_is_lost_over_checkpoints(seed in any::<u64>()) {
            let mut rng = StdRng::seed_from_u64(seed);
            let mut nodes = vec![context(&all_write([2, 3]))];
            for own in [2, 3] {
                let mut node = nodes[0].join(&[own]);
                node.pull(&nodes[0]);
                nodes.push(node);
            }
            let (mut total, mut entries, mut checkpoints, mut own) = (0_i64, 0_usize, 0, [Vec::new(), Vec::new(), Vec::new()]);
            for _ in 0..60 {
                let (at, other) = (rng.random_range(0..3), rng.random_range(0..3));
                match rng.random_range(0..13) {
                    10 => nodes[at].rebuild(),
                    11..=12 => {
                        let author = u8::try_from(at + 1).expect("small");
                        own[at].push(entries);
                        let path = |below: &str| -> Path { format!("/agent_memory/{}{below}", who(author)).parse().expect("a path") };
                        let items = [Item::Append(path("/l"), entries.into()), Item::Set(path("/last"), entries.into())];
                        nodes[at].write(author, items);
                        entries += 1;
                    }
                    0 => checkpoints += usize::from(nodes[0].draft_checkpoint().is_ok_and(|checkpoint| nodes[0].on_access(checkpoint).is_ok())),
                    1..=4 if at != other => {
                        let there = std::mem::replace(&mut nodes[other], context(&all_write([])));
                        nodes[at].pull(&there);
                        nodes[other] = there;
                    }
                    _ => {
                        let author = u8::try_from(at + 1).expect("small");
                        let by = rng.random_range(1..100);
                        let name = ["a", "b"].choose(&mut rng).expect("one");
                        nodes[at].write(author, [inc("/n", by), append("/l", entries), set(&format!("/{name}/x"), by)]);
                        (total, entries) = (total + by, entries + 1);
                    }
                }
            }
            for _ in 0..3 {
                for (at, other) in [(0, 1), (0, 2), (1, 0), (2, 0), (1, 2), (2, 1)] {
                    let there = std::mem::replace(&mut nodes[other], context(&all_write([])));
                    nodes[at].pull(&there);
                    nodes[other] = there;
                }
            }
            for node in &mut nodes {
                prop_assert!(node.replica.is_whole());
                prop_assert_eq!(node.shared().get("n").cloned().unwrap_or_else(|| json!(0)), json!(total), "after {} checkpoints", checkpoints);
                let mut list: Vec<u64> = node.shared().get("l").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_u64).collect();
                list.sort_unstable();
                let own: Vec<u64> = own.iter().flatten().filter_map(|entry| u64::try_from(*entry).ok()).collect();
                let expected: Vec<u64> = (0..u64::try_from(entries).expect("few")).filter(|entry| !own.contains(entry)).collect();
                prop_assert_eq!(list, expected);
            }
            // What its author alone sees keeps its order as well.
            for (at, own) in own.iter().enumerate() {
                let memory = nodes[at].replica.private(who(u8::try_from(at + 1).expect("small")));
                let expected = own.last().map(|last| json!({ "l": own, "last": last }));
                prop_assert_eq!(&memory, &expected);
                nodes[at].rebuild();
                prop_assert_eq!(&nodes[at].replica.private(who(u8::try_from(at + 1).expect("small"))), &expected);
            }
            prop_assert_eq!(nodes[0].shared(), nodes[1].shared());
            prop_assert_eq!(nodes[0].shared(), nodes[2].shared());
            prop_assert_eq!(nodes[0].replica.heads(), nodes[2].replica.heads());
        }
    }
}
