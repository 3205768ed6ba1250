//! Whole contexts: replicas that hear the same in different orders, authors who lie, owners who change their mind.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use serde_json::{Value, json};

use super::chain::{self, Step};
use super::fold::{Fold, Kind, Stamp};
use super::replica::{Refusal, Rights};
use super::testing::{all_write, context, path, set, who};
use crate::model::{OperationId, Path, Principal};
use crate::wire::context::{Item, Operation, Signed, Verified};

use super::testing::Node;

/// AMP-9: what one writes, all readers see.
#[test]
fn two_replicas_of_the_same_operations_show_the_same() {
    let mut here = context(&all_write([2]));
    let mut there = here.join(&[2]);
    there.pull(&here);
    here.write(1, [set("/plan", json!({"title": "draft", "steps": ["a"]}))]);
    there.write(2, [Item::Inc(path("/votes"), 2), set("/plan/title", "final")]);
    there.pull(&here);
    here.pull(&there);
    assert_eq!(here.shared(), there.shared());
    assert_eq!(here.replica.state_hash(), there.replica.state_hash());
    assert_eq!(here.shared()["votes"], json!(2));
    here.write(1, [Item::Inc(path("/votes"), -5), Item::Append(path("/plan/steps"), json!("b"))]);
    there.pull(&here);
    assert_eq!((&there.shared()["votes"], &there.shared()["plan"]["steps"]), (&json!(-3), &json!(["a", "b"])));
}

/// AMP-9: only those on the write list write, each below its paths, and only those on the read list read.
#[test]
fn nobody_writes_without_the_right_or_outside_of_it() {
    let notes = BTreeSet::from([path("/notes")]);
    let rights = Rights { read: BTreeSet::from([who(3)]), write: BTreeMap::from([(who(2), notes)]) };
    let mut owner = context(&rights);
    let mut there = owner.join(&[2, 3, 4]);
    there.pull(&owner);
    assert_eq!(there.draft(2, [set("/plan", 1)]), Err(Refusal::Access), "outside of its path");
    assert_eq!(there.draft(2, [set("/notes/a", 1), set("/plan", 1)]), Err(Refusal::Access), "all of an operation or nothing");
    assert_eq!(there.draft(3, [set("/notes/a", 1)]), Err(Refusal::Access), "a reader");
    assert_eq!(there.draft(4, [set("/notes/a", 1)]), Err(Refusal::Access), "a stranger");
    let good = there.write(2, [set("/notes/a", 1)]);
    assert_eq!(owner.on_operation(good), Ok(1));
    // Somebody who may do all elsewhere makes the same context's operation by hand.
    let mut liar = owner.join(&[2]);
    let wide = liar.draft_wide(&owner);
    assert_eq!(owner.on_operation(wide), Err(Refusal::Access));
    assert_eq!(owner.shared(), json!({"notes": {"a": 1}}));
    let stranger = owner.join(&[4]);
    assert!(stranger.shared().as_object().is_some_and(serde_json::Map::is_empty));
}

impl Node {
    /// An operation of 2 outside of its path, as a program makes it that does not ask whether it may.
    fn draft_wide(&mut self, owner: &Self) -> Verified<Operation> {
        self.pull(owner);
        let good = self.draft(2, [set("/notes/b", 1)]).expect("may");
        let key = super::testing::key(2);
        let context_key = crate::wire::context::seal::ContextKey::of(self.replica.chain().tip().expect("a tip"), &key).expect("a reader");
        let mut rng = <rand::rngs::StdRng as rand::SeedableRng>::seed_from_u64(7);
        let body = super::testing::body([set("/plan", 1)]);
        let operation = context_key.seal_operation(good.header.clone(), &body, &mut rng).expect("a valid body");
        Signed::sign(operation, &key).expect("a valid operation")
    }
}

/// A clock that runs ahead would win every conflict; one is refused (threat T28).
#[test]
fn nobody_jumps_ahead_of_what_it_builds_on() {
    let mut node = context(&all_write([2]));
    node.own.push(2);
    node.rebuild();
    node.write(1, [set("/a", 1)]);
    node.write(2, [set("/a", 2)]);
    assert_eq!(node.on_operation(node.forge(2, [set("/forged", 1)], |header| header.lamport += 1_000)), Err(Refusal::Numbers("lamport")));
    assert_eq!(node.on_operation(node.forge(2, [set("/forged", 1)], |header| header.seq = 2)), Err(Refusal::Numbers("seq")));
    let other = node.replica.last(who(1)).map(|last| last.id);
    let stolen = node.forge(2, [set("/forged", 1)], |header| (header.prev, header.lamport) = (other, 2));
    assert_eq!(node.on_operation(stolen), Err(Refusal::Numbers("seq")), "another's line");
    node.change_access(&all_write([2, 3]));
    node.write(2, [set("/a", 3)]);
    let backdated = node.forge(2, [set("/forged", 1)], |header| header.acl_epoch = 1);
    assert_eq!(node.on_operation(backdated), Err(Refusal::Numbers("acl_epoch")));
    assert_eq!(node.shared(), json!({"a": 3}));
}

/// What comes before what it builds on waits for it, and for nothing else.
#[test]
fn operations_that_come_early_wait_for_what_they_build_on() {
    let mut here = context(&all_write([2]));
    let operations: Vec<_> = (0..20).map(|at| here.write(1, [set("/n", at)])).collect();
    let mut there = here.join(&[2]);
    for operation in operations.iter().rev() {
        assert_eq!(there.on_operation(operation.clone()), Ok(0), "its access is not known either");
    }
    assert_eq!(there.replica.parked(), 20);
    there.on_access(here.accesses[0].clone()).expect("the first");
    assert_eq!((there.shared(), there.replica.parked()), (json!({"n": 19}), 0));
}

/// Threat T28: parked operations are bounded, and those that count come through all the same.
#[test]
fn a_flood_of_operations_that_wait_is_bounded() {
    let mut here = context(&all_write([2]));
    let operations: Vec<_> = (0..super::park::PARKED_MAX + 100).map(|at| here.write(1, [set("/n", at)])).collect();
    let mut there = here.join(&[2]);
    there.on_access(here.accesses[0].clone()).expect("the first");
    for operation in operations.iter().skip(1) {
        assert_eq!(there.on_operation(operation.clone()), Ok(0));
    }
    assert_eq!(there.replica.parked(), super::park::PARKED_MAX / super::park::AUTHOR_PART);
    there.pull(&here);
    assert_eq!((there.shared(), there.replica.parked()), (here.shared(), 0));
}

/// What a writer wrote before it lost the right stays, what the owner had not seen of it goes, and it writes no more.
#[test]
fn a_writer_who_is_revoked_is_cut_off_at_what_the_owner_had_seen() {
    let mut owner = context(&all_write([2, 3]));
    let mut writer = owner.join(&[2]);
    writer.pull(&owner);
    writer.write(2, [set("/seen", 1)]);
    owner.pull(&writer);
    writer.write(2, [set("/unseen", 1)]);
    let mut third = owner.join(&[3]);
    third.pull(&writer);
    assert_eq!(third.shared(), json!({"seen": 1, "unseen": 1}));
    owner.change_access(&all_write([3]));
    third.pull(&owner);
    assert_eq!(third.shared(), json!({"seen": 1}), "rolled back");
    assert_eq!(third.rebuilds, 1);
    writer.pull(&owner);
    assert_eq!(writer.draft(2, [set("/more", 1)]), Err(Refusal::Access));
    owner.pull(&writer);
    owner.pull(&third);
    assert_eq!(owner.replica.state_hash(), third.replica.state_hash());
}

/// Whoever writes as if it did not know that it was revoked changes nothing.
#[test]
fn a_backdated_operation_does_not_count() {
    let mut owner = context(&all_write([2, 3]));
    let mut writer = owner.join(&[2]);
    writer.pull(&owner);
    writer.write(2, [set("/a", 1)]);
    owner.pull(&writer);
    owner.change_access(&all_write([3]));
    // It has not heard of the change, or says so.
    let backdated = writer.write(2, [set("/a", 2)]);
    assert_eq!(owner.on_operation(backdated.clone()), Ok(1), "it stands there");
    assert_eq!(owner.shared(), json!({"a": 1}), "and does not count");
    let mut newcomer = owner.join(&[3]);
    newcomer.on_operation(backdated).expect("early");
    newcomer.pull(&owner);
    assert_eq!(newcomer.shared(), json!({"a": 1}));
}

/// What builds on an operation behind a cut counts all the same: the fault of one author is not that of another.
#[test]
fn what_others_built_on_a_cut_operation_stays() {
    let mut owner = context(&all_write([2, 3]));
    let mut writer = owner.join(&[2]);
    writer.pull(&owner);
    let mut third = owner.join(&[3]);
    third.pull(&owner);
    writer.write(2, [set("/late", 1)]);
    third.pull(&writer);
    third.write(3, [set("/third", 1)]);
    owner.change_access(&all_write([3]));
    owner.pull(&third);
    third.pull(&owner);
    for node in [&owner, &third] {
        assert_eq!(node.shared(), json!({"third": 1}));
    }
    let mut newcomer = owner.join(&[3]);
    newcomer.pull(&owner);
    assert_eq!(newcomer.replica.state_hash(), owner.replica.state_hash());
    let hollow = owner.kept.values().filter(|operation| !owner.replica.operations().get(operation.id()).expect("kept").counts);
    assert_eq!(hollow.count(), 1, "it stands there and does not count");
}

/// A right that is given back holds from then on; what was cut stays cut.
#[test]
fn a_writer_who_gets_the_right_back_goes_on() {
    let mut owner = context(&all_write([2]));
    let mut writer = owner.join(&[2]);
    writer.pull(&owner);
    let cut = writer.write(2, [set("/cut", 1)]);
    owner.change_access(&Rights { read: BTreeSet::from([who(2)]), write: BTreeMap::new() });
    owner.change_access(&all_write([2]));
    writer.pull(&owner);
    assert_eq!(writer.shared(), json!({}));
    writer.write(2, [set("/again", 1)]);
    let _ = owner.on_operation(cut);
    owner.pull(&writer);
    assert_eq!((owner.shared(), writer.shared()), (json!({"again": 1}), json!({"again": 1})));
}

/// An author who signs two operations of one number still converges, and both show that it did.
#[test]
fn an_equivocating_author_is_found_out_and_does_no_harm() {
    let mut owner = context(&all_write([2, 3]));
    let (mut left, mut right) = (owner.join(&[2]), owner.join(&[2, 3]));
    left.pull(&owner);
    right.pull(&owner);
    let first = left.write(2, [set("/a", "left")]);
    let second = right.write(2, [set("/a", "right")]);
    assert_ne!(first.id(), second.id());
    left.write(2, [set("/b", "left")]);
    for _ in 0..2 {
        owner.pull(&left);
        owner.pull(&right);
        left.pull(&owner);
        right.pull(&owner);
    }
    assert_eq!(owner.replica.operations().twin(first.id()), Some(second.id()));
    assert!(owner.replica.operations().has_twins(who(2)));
    assert_eq!(owner.replica.state_hash(), left.replica.state_hash());
    assert_eq!(owner.replica.state_hash(), right.replica.state_hash());
    // Its line is cut at one branch: the other goes, everywhere.
    owner.change_access(&all_write([3]));
    left.pull(&owner);
    right.pull(&owner);
    let mut newcomer = owner.join(&[3]);
    newcomer.pull(&right);
    newcomer.pull(&left);
    for node in [&left, &right, &newcomer] {
        assert_eq!(node.replica.state_hash(), owner.replica.state_hash());
    }
    assert_eq!(owner.shared()["b"], json!("left"), "the longer branch is the one that is kept");
}

/// Of two branches the one that the owner cut at counts; what stands on the other does not, whoever heard of it first.
#[test]
fn a_branch_that_the_owner_did_not_accept_lies_behind_the_cut() {
    let mut owner = context(&all_write([2, 3]));
    let (mut left, mut right) = (owner.join(&[2]), owner.join(&[2]));
    left.pull(&owner);
    right.pull(&owner);
    left.write(2, [set("/left", 1)]);
    let late: Vec<_> = (0..3).map(|at| right.write(2, [set("/right", at)])).collect();
    owner.pull(&right);
    let mut third = owner.join(&[3]);
    third.pull(&left);
    third.pull(&owner);
    owner.change_access(&all_write([3]));
    third.pull(&owner);
    // Somebody who hears of the other branch and of the cut before it hears of the line that was cut.
    let mut newcomer = owner.join(&[3]);
    for access in &owner.accesses {
        newcomer.on_access(access.clone()).expect("it counts");
    }
    newcomer.pull(&left);
    for operation in late {
        let _ = newcomer.on_operation(operation);
    }
    owner.pull(&left);
    for node in [&owner, &third, &newcomer] {
        assert_eq!(node.shared(), json!({"right": 2}));
    }
}

/// An owner who signs two changes for one number freezes access at the last common one, everywhere.
#[test]
fn an_equivocating_owner_freezes_access() {
    let mut here = context(&all_write([2]));
    let mut there = here.join(&[2]);
    there.pull(&here);
    there.write(2, [set("/before", 1)]);
    here.pull(&there);
    let (one, other) = (here.draft_access(&all_write([2, 3])), here.draft_access(&all_write([2, 4])));
    assert_eq!(here.on_access(one.clone()), Ok(Step::Added));
    here.write(1, [set("/after", 1)]);
    assert_eq!(there.on_access(other.clone()), Ok(Step::Added));
    assert_eq!(there.on_access(one.clone()), Ok(Step::Split));
    assert_eq!(here.on_access(other), Ok(Step::Split));
    assert_eq!(here.on_access(one), Ok(Step::Known));
    for node in [&mut here, &mut there] {
        assert_eq!((node.replica.chain().epoch(), node.shared()), (1, json!({"before": 1})));
        assert!(node.replica.chain().split().is_some());
        node.write(2, [set("/more", 1)]);
    }
    there.pull_operations(&here);
    here.pull_operations(&there);
    assert_eq!(here.shared(), there.shared());
}

impl Node {
    fn pull_operations(&mut self, other: &Self) {
        for id in other.replica.operations().beyond(&self.replica.tips()) {
            let lamport = other.replica.operations().get(id).expect("listed").lamport;
            let _ = self.on_operation(other.kept[&(lamport, id.to_bytes())].clone());
        }
    }
}

/// A change that does not follow is none.
#[test]
fn changes_of_access_that_do_not_follow_are_refused() {
    let mut node = context(&all_write([2]));
    let second = node.change_access(&all_write([2, 3]));
    let mut other = context(&all_write([2, 4]));
    let loose = other.change_access(&all_write([2]));
    assert_eq!(node.on_access(loose), Err(chain::Refusal::Loose), "it follows another first change");
    assert_eq!(node.on_access(second.clone()), Ok(Step::Known));
    let mut fresh = node.join(&[3]);
    assert_eq!(fresh.on_access(second), Ok(Step::Early));
}

/// A reader that is removed reads nothing that is written later; one that is added reads from the beginning.
#[test]
fn keys_change_when_a_reader_goes_and_lead_back_for_one_who_comes() {
    let mut owner = context(&all_write([2]));
    let mut gone = owner.join(&[2]);
    gone.pull(&owner);
    owner.write(1, [set("/first", 1)]);
    gone.pull(&owner);
    owner.change_access(&all_write([3]));
    let secret = owner.write(1, [set("/secret", 1)]);
    for access in &owner.accesses {
        gone.on_access(access.clone()).expect("it counts");
    }
    assert_eq!(gone.on_operation(secret), Err(Refusal::NotReader));
    let mut newcomer = owner.join(&[3]);
    newcomer.pull(&owner);
    assert_eq!(newcomer.shared(), json!({"first": 1, "secret": 1}));
}

/// AMP-9: an agent's own memory travels, and nobody else reads it or writes to it.
#[test]
fn a_private_memory_is_read_and_written_by_its_agent_alone() {
    let mut owner = context(&all_write([2]));
    let mut agents = owner.join(&[2]);
    agents.pull(&owner);
    let mine = |below: &str| -> Path { format!("/agent_memory/{}{below}", who(2)).parse().expect("a path") };
    agents.write(2, [Item::Set(mine("/mood"), json!("curious"))]);
    assert_eq!(owner.draft(1, [Item::Set(mine("/mood"), json!("sad"))]), Err(Refusal::Access));
    owner.pull(&agents);
    assert_eq!(owner.replica.operations().len(), 1, "it travels");
    assert_eq!(owner.replica.get(&mine("/mood"), who(1)), None);
    assert_eq!(owner.replica.private(who(2)), None);
    assert_eq!(agents.replica.get(&mine("/mood"), who(2)), Some(json!("curious")));
    assert_eq!(agents.replica.get(&mine("/mood"), who(1)), None, "another reader on the same node");
    assert_eq!(owner.replica.state_hash(), agents.replica.state_hash());
}

/// The limit of what one author may write holds on every replica alike.
#[test]
fn an_author_who_wrote_all_that_it_may_is_refused() {
    let mut node = context(&all_write([]));
    node.write(1, [set("/a", 1)]);
    let large = "x".repeat(60_000);
    let mut written = 1;
    let refusal = loop {
        let operation = node.draft(1, [set("/large", large.clone())]).expect("may write");
        match node.on_operation(operation) {
            Ok(_) => written += 1,
            Err(refusal) => break refusal,
        }
    };
    assert_eq!(refusal, Refusal::Quota);
    assert!((270..=280).contains(&written), "{written} operations of 60 kB");
    assert_eq!(node.replica.operations().len(), written);
}

/// A model of the fold: all items in order of their stamps, applied to a plain value.
fn model(items: &[(Stamp, Item)]) -> Value {
    let mut items: Vec<_> = items.to_vec();
    items.sort_by_key(|(stamp, _)| *stamp);
    // What is at each place: the newest set, what came since, and the fields.
    #[derive(Default)]
    struct Place {
        base: Option<Value>,
        added: Vec<i64>,
        appended: Vec<Value>,
        fields: BTreeMap<String, Place>,
        newest: BTreeMap<&'static str, usize>,
    }
    fn put(place: &mut Place, value: &Value, at: usize) {
        *place = Place::default();
        if let Value::Object(fields) = value {
            place.base = Some(json!({}));
            for (name, value) in fields {
                put(place.fields.entry(name.clone()).or_default(), value, at);
            }
        } else {
            place.base = Some(value.clone());
        }
        place.newest.insert("set", at);
    }
    fn show(place: &Place) -> Option<(Value, usize)> {
        let shown: Vec<_> =
            place.fields.iter().filter_map(|(name, field)| show(field).map(|(value, at)| (name.clone(), value, at))).collect();
        let fields = shown.iter().map(|(_, _, at)| ("fields", *at)).max_by_key(|(_, at)| *at);
        let gains = ["added", "appended"].into_iter().filter_map(|kind| place.newest.get(kind).map(|at| (kind, *at)));
        let Some((kind, at)) = fields.into_iter().chain(gains).max_by_key(|(kind, at)| (*at, *kind == "fields")) else {
            return place.base.clone().map(|value| (value, place.newest["set"]));
        };
        let value = match kind {
            "added" => {
                let start = place.base.as_ref().and_then(Value::as_i64).unwrap_or(0);
                json!(start + place.added.iter().sum::<i64>())
            }
            "appended" => {
                let start = place.base.as_ref().and_then(Value::as_array).cloned().unwrap_or_default();
                Value::Array(start.into_iter().chain(place.appended.iter().cloned()).collect())
            }
            _ => Value::Object(shown.into_iter().map(|(name, value, _)| (name, value)).collect()),
        };
        Some((value, at))
    }
    let mut root = Place::default();
    for (at, (_, item)) in items.iter().enumerate() {
        let mut place = &mut root;
        for name in item.path().segments().iter().skip(1) {
            place = place.fields.entry(name.clone()).or_default();
        }
        match item {
            Item::Set(_, value) => put(place, value, at),
            Item::Del(_) => *place = Place::default(),
            Item::Inc(_, amount) => {
                place.added.push(*amount);
                place.newest.insert("added", at);
            }
            Item::Append(_, value) => {
                place.appended.push(value.clone());
                place.newest.insert("appended", at);
            }
        }
    }
    show(&root).map_or_else(|| json!({}), |(value, _)| value)
}

fn any_value() -> impl Strategy<Value = Value> {
    prop_oneof![
        (-3_i64..4).prop_map(Value::from),
        Just(json!("text")),
        Just(json!(null)),
        Just(json!([1, 2])),
        Just(json!({})),
        Just(json!({"a": 1})),
        Just(json!({"a": {"b": 2}, "b": [3]})),
    ]
}

fn any_item() -> impl Strategy<Value = Item> {
    let below = prop::collection::vec(prop_oneof![Just("/a"), Just("/b")], 1..4).prop_map(|names| path(&names.concat()));
    (below, any_value(), -5_i64..6, 0..8_u8).prop_map(|(path, value, amount, kind)| match kind {
        0..=3 => Item::Set(path, value),
        4 => Item::Del(path),
        5 => Item::Inc(path, amount),
        _ => Item::Append(path, value),
    })
}

/// Places at, above, below and beside those of [`any_item`].
const PLACES: [&str; 13] = ["/a", "/b", "/c", "/a/a", "/a/b", "/b/a", "/b/c", "/a/a/a", "/a/a/b", "/a/b/a", "/b/b/b", "/a/0", "/a/b/a/b"];

fn kind_of(found: Option<Value>) -> Kind {
    match found {
        None => Kind::Nothing,
        Some(Value::Number(_)) => Kind::Number,
        Some(Value::Array(_)) => Kind::List,
        Some(Value::Null | Value::Bool(_) | Value::String(_) | Value::Object(_)) => Kind::Other,
    }
}

/// What is at a place that objects lead to; the entries of lists have none.
fn object_at<'v>(value: &'v Value, below: &str) -> Option<&'v Value> {
    below.split('/').skip(1).try_fold(value, |value, name| value.as_object()?.get(name))
}

fn fold(items: &[(Stamp, Item)]) -> Value {
    let mut fold = Fold::default();
    for (stamp, item) in items {
        fold.apply(*stamp, &item.path().segments()[1..], item);
    }
    fold.value()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    /// The fold is what a plain model makes of the same items in order, and the same after every order.
    #[test]
    fn the_fold_is_that_of_a_plain_model_in_every_order(
        items in prop::collection::vec(any_item(), 0..24),
        shuffled in Just(()).prop_perturb(|(), mut rng| rng.next_u64()),
    ) {
        let stamped: Vec<_> = items.into_iter().enumerate().map(|(at, item)| {
            let number = u8::try_from(at).expect("few");
            // Some share a clock, and the order of their names decides.
            (Stamp { lamport: u64::from(number / 2), id: OperationId::from_bytes([255 - number; 32]), item: 0 }, item)
        }).collect();
        let mut rng = <rand::rngs::SmallRng as rand::SeedableRng>::seed_from_u64(shuffled);
        let mut other = stamped.clone();
        rand::seq::SliceRandom::shuffle(other.as_mut_slice(), &mut rng);
        let expected = model(&stamped);
        prop_assert_eq!(&fold(&stamped), &expected);
        prop_assert_eq!(&fold(&other), &expected);
        let mut fold = Fold::default();
        for (stamp, item) in other.iter().chain(&stamped) {
            fold.apply(*stamp, &item.path().segments()[1..], item);
            for below in PLACES {
                let below = path(below);
                let place = &below.segments()[1..];
                let Some(kind) = fold.kind(place) else { continue };
                prop_assert_eq!(kind, kind_of(fold.get(place)), "at {}", below);
            }
            let before = fold.value();
            fold.sweep();
            prop_assert_eq!(fold.value(), before, "what is swept out was hidden");
        }
        prop_assert_eq!(&fold.value(), &expected, "told twice");
        for below in PLACES {
            let found = fold.get(&path(below).segments()[1..]);
            prop_assert_eq!(found.as_ref(), object_at(&expected, below), "{}", below);
        }
    }
}

#[derive(Debug, Clone)]
enum Deed {
    Write { node: usize, item: Item },
    Pull { from: usize, to: usize },
    Grant { mask: u8 },
    Equivocate { node: usize, item: Item },
}

fn any_deed() -> impl Strategy<Value = Deed> {
    prop_oneof![
        5 => (0..4_usize, any_item()).prop_map(|(node, item)| Deed::Write { node, item }),
        3 => (0..4_usize, 0..4_usize).prop_map(|(from, to)| Deed::Pull { from, to }),
        1 => (0..64_u8).prop_map(|mask| Deed::Grant { mask }),
        1 => (1..4_usize, any_item()).prop_map(|(node, item)| Deed::Equivocate { node, item }),
    ]
}

fn granted(mask: u8) -> Rights {
    let mut rights = all_write((0..3).filter(|bit| mask & 1 << bit != 0).map(|bit| bit + 2));
    // Some may write in one place only.
    let narrow = (0..3).filter(|bit| mask & 8 << bit != 0).map(|bit| (who(bit + 2), BTreeSet::from([path("/a")])));
    rights.write.extend(narrow);
    // All of them read, so that they can be asked what they see.
    rights.read = (2..5).map(who).collect::<BTreeSet<Principal>>();
    rights
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Whatever is written, by whom, granted, revoked and signed twice: once all have heard of all, all show the same, and so does
    /// somebody who hears of it in another order, more than once.
    #[test]
    fn replicas_that_hold_the_same_show_the_same(
        deeds in prop::collection::vec(any_deed(), 1..40),
        order in Just(()).prop_perturb(|(), mut rng| rng.next_u64()),
    ) {
        let owner = context(&granted(7));
        let mut nodes = vec![owner];
        for seed in 2..5 {
            let mut node = nodes[0].join(&[seed]);
            node.pull(&nodes[0]);
            nodes.push(node);
        }
        let pull = |nodes: &mut Vec<Node>, from: usize, to: usize| if from != to {
            let nobody = nodes[0].join(&[]);
            let mut node = std::mem::replace(&mut nodes[to], nobody);
            node.pull(&nodes[from]);
            nodes[to] = node;
        };
        for deed in deeds {
            match deed {
                Deed::Write { node, item } => {
                    let seed = u8::try_from(node + 1).expect("few");
                    if nodes[node].draft(seed, [item.clone()]).is_ok() {
                        nodes[node].write(seed, [item]);
                    }
                }
                Deed::Equivocate { node, item } => {
                    // A second node with the same key writes from where the first was before.
                    let seed = u8::try_from(node + 1).expect("few");
                    let mut twin = nodes[node].join(&[seed]);
                    twin.pull(&nodes[0]);
                    if twin.draft(seed, [item.clone()]).is_ok() {
                        let operation = twin.write(seed, [item]);
                        let _ = nodes[node].on_operation(operation);
                    }
                }
                Deed::Pull { from, to } => pull(&mut nodes, from, to),
                Deed::Grant { mask } => drop(nodes[0].change_access(&granted(mask))),
            }
        }
        for _ in 0..4 {
            for from in 0..4 {
                (0..4).for_each(|to| pull(&mut nodes, from, to));
            }
        }
        let hashes: Vec<_> = nodes.iter().map(|node| node.replica.state_hash()).collect();
        prop_assert!(hashes.iter().all(|hash| *hash == hashes[0]), "{:?}", nodes.iter().map(Node::shared).collect::<Vec<_>>());
        // Somebody who hears of it all from the disks of all, in any order, each twice.
        let mut rng = <rand::rngs::SmallRng as rand::SeedableRng>::seed_from_u64(order);
        let mut newcomer = nodes[0].join(&[2]);
        let mut heard: Vec<_> = nodes.iter().flat_map(|node| node.kept.values().cloned()).collect();
        heard.extend(heard.clone());
        rand::seq::SliceRandom::shuffle(heard.as_mut_slice(), &mut rng);
        let half = heard.len() / 2;
        for operation in heard.drain(..half) {
            let _ = newcomer.on_operation(operation);
        }
        for access in &nodes[0].accesses {
            prop_assert!(newcomer.on_access(access.clone()).is_ok());
        }
        for operation in heard {
            let _ = newcomer.on_operation(operation);
        }
        newcomer.pull(&nodes[0]);
        prop_assert_eq!(newcomer.replica.state_hash(), hashes[0], "{} and {}", newcomer.shared(), nodes[0].shared());
        let tips: Vec<_> = newcomer.replica.tips();
        prop_assert_eq!(tips, nodes[0].replica.tips(), "nothing is left to ask for");
    }
}

/// What bounds the memory of all contexts counts what is parked and what the owner changed, not only what counts.
#[test]
fn what_a_replica_takes_grows_with_all_that_it_holds() {
    let mut owner = context(&all_write([2]));
    let mut other = owner.join(&[2]);
    let empty = other.replica.held_bytes();
    other.pull(&owner);
    let shared = other.replica.held_bytes();
    let lines: Vec<_> = (0..3).map(|at| owner.write(1, [set(&format!("/{at}"), "x".repeat(10_000))])).collect();
    other.on_operation(lines[2].clone()).expect("it waits");
    let parked = other.replica.held_bytes();
    for operation in &lines[..2] {
        other.on_operation(operation.clone()).expect("it counts");
    }
    let written = other.replica.held_bytes();
    assert!(empty < shared && shared + 10_000 < parked, "{empty} {shared} {parked}");
    assert_eq!(other.replica.parked(), 0);
    assert!((30_000..33_000).contains(&(written - shared)), "{shared} {written}");
}

/// What waited before a change of access took something back still waits after that.
#[test]
fn what_is_parked_outlives_a_replica_that_is_made_anew() {
    let mut owner = context(&all_write([2, 3]));
    let (mut cut, mut other) = (owner.join(&[2]), owner.join(&[3]));
    cut.pull(&owner);
    other.pull(&owner);
    let unseen = cut.write(2, [set("/unseen", 1)]);
    let (first, second) = (other.write(3, [set("/a", 1)]), other.write(3, [set("/b", 2)]));
    let mut node = owner.join(&[3]);
    node.pull(&owner);
    assert_eq!((node.on_operation(unseen), node.on_operation(second)), (Ok(1), Ok(0)));
    owner.change_access(&all_write([3]));
    node.pull(&owner);
    assert_eq!((node.rebuilds, node.replica.parked(), node.shared()), (1, 1, json!({})));
    assert_eq!(node.on_operation(first), Ok(2));
    assert_eq!(node.shared(), json!({"a": 1, "b": 2}));
}
