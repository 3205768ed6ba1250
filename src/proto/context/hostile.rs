//! Writers, former writers, owners and relays who mean harm: what they say converges, and keeps nobody else's word from counting.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::chain::Step;
use super::park::PARKED_MAX;
use super::replica::{BYTES_PER_AUTHOR_MAX, OPERATIONS_PER_AUTHOR_MAX, Refusal, Rights};
use super::testing::{BEGIN, Node, all_write, body, context, key, path, set, who};
use crate::model::{ContextId, OperationId, Path};
use crate::wire::context::seal::ContextKey;
use crate::wire::context::sync::{Question, TIPS_MAX};
use crate::wire::context::{Cut, DEPENDENCIES_MAX, Item, Last, Operation, Signed, Verified};

fn mine(seed: u8, below: &str) -> Path {
    format!("/agent_memory/{}{below}", who(seed)).parse().expect("a path")
}

/// However long the line behind a cut is, what others built on its end counts.
#[test]
fn what_others_built_on_a_long_line_behind_a_cut_stays() {
    let mut owner = context(&all_write([2, 3]));
    let mut writer = owner.join(&[2]);
    writer.pull(&owner);
    (0..PARKED_MAX + 200).for_each(|at| drop(writer.write(2, [set("/unseen", at)])));
    let mut third = owner.join(&[3]);
    third.pull(&writer);
    third.write(3, [set("/third", 1)]);
    owner.change_access(&all_write([3]));
    third.pull(&owner);
    assert_eq!(third.shared(), json!({"third": 1}));
    third.write(3, [set("/more", 1)]);
    owner.pull(&third);
    let mut newcomer = owner.join(&[3]);
    newcomer.pull(&owner);
    for node in [&owner, &third, &newcomer] {
        assert_eq!(node.shared(), json!({"third": 1, "more": 1}));
        assert_eq!((node.replica.parked(), node.replica.tips()), (0, third.replica.tips()));
    }
}

/// The cut is known first, then what was built on what lies behind it, then that.
#[test]
fn what_waits_for_an_operation_behind_a_cut_is_freed_by_it() {
    let mut owner = context(&all_write([2, 3]));
    let mut writer = owner.join(&[2]);
    writer.pull(&owner);
    let mut third = owner.join(&[3]);
    third.pull(&owner);
    let late = writer.write(2, [set("/late", 1)]);
    third.pull(&writer);
    let built = third.write(3, [set("/third", 1)]);
    owner.change_access(&all_write([3]));
    assert_eq!(owner.on_operation(built), Ok(0));
    assert_eq!(owner.on_operation(late), Ok(2));
    assert_eq!((owner.shared(), owner.replica.parked()), (json!({"third": 1}), 0));
}

/// Who loses a right and gets it back goes on behind what does not count, and is not taken for somebody who signs twice.
#[test]
fn an_author_who_gets_the_right_back_signs_no_number_twice() {
    let mut owner = context(&all_write([2]));
    let mut writer = owner.join(&[2]);
    writer.pull(&owner);
    let cut = writer.write(2, [set("/cut", 1)]);
    owner.change_access(&Rights { read: BTreeSet::from([who(2)]), write: BTreeMap::new() });
    owner.change_access(&all_write([2]));
    writer.pull(&owner);
    let again = writer.write(2, [set("/again", 1)]);
    assert_eq!((again.header.seq, again.header.prev), (1, Some(cut.id())));
    owner.pull(&writer);
    assert!(!owner.replica.operations().has_twins(who(2)));
    assert_eq!(owner.shared(), json!({"again": 1}));
    // What does not count is nothing to build on for others.
    let next = owner.write(1, [set("/next", 1)]);
    assert_eq!(next.header.deps, [again.id()]);
}

fn two_branches() -> (Node, Node, Node) {
    let owner = context(&all_write([2, 3]));
    let (mut left, mut right) = (owner.join(&[2]), owner.join(&[2]));
    left.pull(&owner);
    right.pull(&owner);
    (owner, left, right)
}

/// A relay that repeats the branch that was cut away makes nobody work for it again.
#[test]
fn a_branch_that_was_cut_away_is_judged_once() {
    let (mut owner, mut left, mut right) = two_branches();
    let stray = left.write(2, [set("/left", 1)]);
    (0..3).for_each(|at| drop(right.write(2, [set("/right", at)])));
    owner.pull(&right);
    owner.pull_all(&left);
    owner.change_access(&all_write([3]));
    let rebuilds = owner.rebuilds;
    for _ in 0..3 {
        assert_eq!(owner.on_operation(stray.clone()), Ok(0));
    }
    let mut fresh = owner.join(&[3]);
    for access in &owner.accesses {
        fresh.on_access(access.clone()).expect("it counts");
    }
    fresh.pull_all(&right);
    for _ in 0..3 {
        let _ = fresh.on_operation(stray.clone());
    }
    assert_eq!((owner.rebuilds, fresh.rebuilds), (rebuilds, 0));
    for node in [&owner, &fresh] {
        assert_eq!(node.shared(), json!({"right": 2}));
        assert!(node.replica.operations().has_twins(who(2)), "the proof stays");
    }
}

impl Node {
    /// Takes in all operations that another has kept.
    fn pull_all(&mut self, other: &Self) {
        for operation in other.kept.values() {
            let _ = self.on_operation(operation.clone());
        }
    }
}

/// The end of the line that a cut names comes last, after a branch that left it before: what the line says counts everywhere.
#[test]
fn the_line_that_a_cut_keeps_counts_however_late_its_end_comes() {
    let (mut owner, mut left, mut right) = two_branches();
    (0..4).for_each(|at| drop(left.write(2, [set(&format!("/left{at}"), at)])));
    right.write(2, [set("/right", 1)]);
    owner.pull(&left);
    owner.change_access(&all_write([3]));
    let line: Vec<_> = left.kept.values().cloned().collect();
    let stray: Vec<_> = right.kept.values().cloned().collect();
    let orders: [Vec<&Verified<Operation>>; 4] = [
        line.iter().chain(&stray).collect(),
        stray.iter().chain(&line).collect(),
        line[..2].iter().chain(&stray).chain(&line[2..]).collect(),
        line.iter().rev().chain(&stray).collect(),
    ];
    for (order, operations) in orders.iter().enumerate() {
        for rebuilt_at in 0..operations.len() {
            let mut node = owner.join(&[3]);
            for access in &owner.accesses {
                node.on_access(access.clone()).expect("it counts");
            }
            for (at, operation) in operations.iter().enumerate() {
                let _ = node.on_operation((*operation).clone());
                // A node that reads its disk in between has no other opinion.
                if at == rebuilt_at && node.replica.parked() == 0 {
                    node.rebuild();
                }
            }
            assert_eq!(node.shared(), owner.shared(), "order {order}, made anew after {rebuilt_at}");
            assert_eq!(node.shared()["left3"], json!(3));
        }
    }
}

/// Who has the last operation of the wrong branch, and no other, takes it back when it hears of the cut.
#[test]
fn the_end_of_another_branch_with_the_same_number_lies_behind_the_cut() {
    let (mut owner, mut left, mut right) = two_branches();
    left.write(2, [set("/left", 1)]);
    right.write(2, [set("/right", 1)]);
    owner.pull(&right);
    let mut third = owner.join(&[3]);
    third.on_access(owner.accesses[0].clone()).expect("it counts");
    third.pull_all(&left);
    assert_eq!(third.shared(), json!({"left": 1}));
    let cut = owner.change_access(&all_write([3]));
    assert_eq!(third.on_access(cut), Ok(Step::Added));
    assert_eq!(third.shared(), json!({}), "it hears of the other branch later");
    third.pull(&owner);
    assert_eq!(third.shared(), json!({"right": 1}));
}

/// An owner who names an end that there is not, or another's, does harm to the author that it cuts, and the same harm on every replica.
#[test]
fn a_cut_at_an_operation_that_there_is_not_is_the_same_for_all() {
    let mut owner = context(&all_write([2, 3]));
    let mut writer = owner.join(&[2, 3]);
    writer.pull(&owner);
    let written: Vec<_> = (0..4).map(|at| writer.write(2, [set(&format!("/{at}"), at)])).collect();
    let others = writer.write(3, [set("/third", 1)]);
    let lies = [
        (Last { seq: 2, id: OperationId::from_bytes([7; 32]) }, 2),
        (Last { seq: 1, id: others.id() }, 1),
        (Last { seq: 3, id: written[1].id() }, 3),
    ];
    owner.pull(&writer);
    for (last, left) in lies {
        let lie = owner.forge_access(&all_write([3]), |access| access.cuts = vec![Cut { author: who(2), last: Some(last) }]);
        let mut after = owner.join(&[3]);
        after.pull(&owner);
        after.on_access(lie.clone()).expect("it counts");
        let mut before = owner.join(&[3]);
        before.on_access(owner.accesses[0].clone()).expect("it counts");
        before.on_access(lie).expect("it counts");
        before.pull_all(&owner);
        assert_eq!(before.shared(), after.shared(), "{last:?}");
        assert_eq!(after.shared().as_object().map(serde_json::Map::len), Some(left + 1), "{last:?}");
    }
}

/// An agent that writes nonsense into its own memory cannot make its own node deaf to what others build on that.
#[test]
fn nonsense_in_a_private_memory_shuts_nobody_out() {
    let (owner, home) = (context(&all_write([2])), context(&all_write([2])).join(&[2]));
    let mut header = owner.draft(1, [set("/a", 1)]).expect("may").header.clone();
    (header.author, header.is_private) = (who(2), true);
    let mut rng = <rand::rngs::StdRng as rand::SeedableRng>::seed_from_u64(7);
    let wrong_key = ContextKey::random(&mut rng).seal_operation(header.clone(), &body([Item::Set(mine(2, "/x"), json!(1))]), &mut rng);
    let shared = ContextKey::private(&key(2), owner.replica.id()).seal_operation(header, &body([set("/x", 1)]), &mut rng);
    let access = owner.accesses[0].clone();
    for nonsense in [wrong_key, shared] {
        let nonsense = Signed::sign(nonsense.expect("sealed"), &key(2)).expect("signed");
        let (mut owner, mut home) = (owner.join(&[1]), home.join(&[2]));
        for node in [&mut owner, &mut home] {
            node.on_access(access.clone()).expect("the first");
            assert_eq!(node.on_operation(nonsense.clone()), Ok(1));
        }
        let built = owner.write(1, [set("/a", 1)]);
        assert_eq!(built.header.deps, [nonsense.id()]);
        assert_eq!(home.on_operation(built), Ok(1));
        assert_eq!((home.shared(), home.replica.private(who(2))), (json!({"a": 1}), None));
    }
}

/// A private memory and the shared one are told apart by the header, which says with which key the body is sealed.
#[test]
fn what_is_said_to_be_shared_is_not_private() {
    let mut node = context(&all_write([2]));
    let private = node.forge(1, [Item::Set(mine(1, "/x"), json!(1))], |_| {});
    assert_eq!(node.on_operation(private), Err(Refusal::Access));
    let other = node.forge(1, [set("/x", 1)], |header| header.context = ContextId::from_bytes([9; 32]));
    assert_eq!(node.on_operation(other), Err(Refusal::Foreign));
    let header = node.draft(1, [set("/x", 1)]).expect("may").header.clone();
    let mut rng = <rand::rngs::StdRng as rand::SeedableRng>::seed_from_u64(7);
    let sealed = ContextKey::random(&mut rng).seal_operation(header, &body([set("/x", 1)]), &mut rng).expect("sealed");
    let shut = Signed::sign(sealed, &key(1)).expect("signed");
    assert!(matches!(node.on_operation(shut), Err(Refusal::Shut(_))));
    assert_eq!((node.shared(), node.replica.parked()), (json!({}), 0));
}

/// A reader who may not write shared memory keeps its own, and loses both with the right to read.
#[test]
fn a_reader_writes_to_its_own_memory_until_it_may_not_read() {
    let mut owner = context(&Rights { read: BTreeSet::from([who(2)]), write: BTreeMap::new() });
    let mut reader = owner.join(&[2]);
    reader.pull(&owner);
    let first = reader.write(2, [Item::Set(mine(2, "/n"), json!(1))]);
    owner.on_operation(first.clone()).expect("it counts");
    owner.change_access(&all_write([]));
    let late = reader.write(2, [Item::Set(mine(2, "/n"), json!(2))]);
    assert_eq!(owner.on_operation(late.clone()), Ok(1));
    let counts = |node: &Node, operation: &Verified<Operation>| node.replica.operations().get(operation.id()).map(|entry| entry.counts);
    assert_eq!((counts(&owner, &first), counts(&owner, &late)), (Some(true), Some(false)));
    reader.pull(&owner);
    assert_eq!((counts(&reader, &first), counts(&reader, &late)), (Some(true), Some(false)), "its own node judges alike");
    assert_eq!(reader.replica.private(who(2)), Some(json!({"n": 1})));
}

/// Threat T28: whoever signs many operations of one number fills no more than a bound of any replica.
#[test]
fn an_author_who_signs_without_end_fills_a_bound() {
    let mut node = context(&all_write([2]));
    let large = "x".repeat(60_000);
    let mut taken = 0_u64;
    let refusal = loop {
        let twin = node.forge(1, [set("/a", format!("{taken}{large}"))], |header| {
            (header.seq, header.prev, header.lamport) = (0, None, 1);
            header.deps.clear();
        });
        match node.on_operation(twin) {
            Ok(count) if taken < 600 => taken += u64::try_from(count).expect("few"),
            Ok(_) => panic!("{taken} operations and no end"),
            Err(refusal) => break refusal,
        }
    };
    assert_eq!(refusal, Refusal::Quota);
    assert!((2 * BYTES_PER_AUTHOR_MAX / 61_000..2 * BYTES_PER_AUTHOR_MAX / 60_000).contains(&taken), "{taken} operations of 60 kB");
    assert_eq!(node.replica.operations().heads().len(), usize::try_from(taken).expect("few"));
    // Others go on, and name as many of them as one may.
    node.own.push(2);
    let next = node.replica.draft(&key(2), &body([set("/b", 1)]), BEGIN, &mut <rand::rngs::StdRng as rand::SeedableRng>::seed_from_u64(3));
    let next = next.expect("may write");
    assert_eq!((next.header.deps.len(), next.header.lamport), (DEPENDENCIES_MAX, 2));
    assert_eq!(node.on_operation(next), Ok(1));
}

/// An author with more branches than a message holds keeps nobody from being told how far the others have come.
#[test]
fn an_author_of_many_branches_leaves_room_for_the_others() {
    let mut node = context(&all_write([2]));
    node.own.push(2);
    let last = (0..3).map(|at| node.write(2, [set("/b", at)])).last().expect("three");
    for at in 0..=TIPS_MAX {
        let twin = node.forge(1, [set("/a", at)], |header| {
            (header.seq, header.prev, header.lamport) = (0, None, 1);
            header.deps.clear();
        });
        assert_eq!(node.on_operation(twin), Ok(1));
    }
    assert_eq!(node.replica.tips().len(), TIPS_MAX + 2);
    let heads = node.replica.heads();
    assert_eq!(heads.tips.len(), TIPS_MAX);
    for seed in [1, 2] {
        let last = node.replica.last(who(seed)).map(|last| last.id);
        assert!(heads.tips.iter().any(|tip| tip.author == who(seed) && Some(tip.id) == last), "the longest line of {seed}");
    }
    assert!(Question::Heads(vec![heads]).encode().is_ok());
    // Of more than one may name, what is written next names those that are ahead.
    let next = node.draft(1, [set("/c", 1)]).expect("may write");
    assert!(next.header.deps.contains(&last.id()));
    assert_eq!(next.header.lamport, 4);
}

/// The limit of how many operations one may write is told before anything waits for it.
#[test]
fn an_operation_past_the_number_that_one_may_write_is_refused() {
    let mut node = context(&all_write([]));
    let numbered = |seq: u64| {
        move |header: &mut crate::wire::context::Header| {
            (header.seq, header.prev, header.lamport) = (seq, Some(OperationId::from_bytes([1; 32])), seq + 1);
        }
    };
    let last = node.forge(1, [set("/a", 1)], numbered(OPERATIONS_PER_AUTHOR_MAX - 1));
    assert_eq!(node.on_operation(last), Ok(0), "it waits for what it builds on");
    let past = node.forge(1, [set("/a", 1)], numbered(OPERATIONS_PER_AUTHOR_MAX));
    assert_eq!(node.on_operation(past), Err(Refusal::Quota));
    assert_eq!(node.replica.parked(), 1);
}

/// Threat T28: a million marks that something is gone are bounded by what one author may write, and that counts what they hold.
#[test]
fn deep_and_empty_places_count_for_what_they_hold() {
    let mut node = context(&all_write([]));
    let deep = |operation: usize| (0..256).map(move |at| Item::Del(path(&format!("/{operation}/{at}{}", "/a".repeat(28)))));
    let mut places = 0;
    let refusal = loop {
        let operation = node.draft(1, deep(places / 256)).expect("may write");
        match node.on_operation(operation) {
            Ok(_) => places += 256,
            Err(refusal) => break refusal,
        }
    };
    assert_eq!(refusal, Refusal::Quota);
    // 30 names and an item are 1,024 bytes, and the text of the path comes to that.
    assert!((14_000..16_400).contains(&places), "{places} places of 30 names");
    assert_eq!(node.shared(), json!({}));
}

/// What nobody can open is still for readers to write: a stranger's memory takes no room.
#[test]
fn a_stranger_has_no_memory_here() {
    let mut owner = context(&all_write([2]));
    let mut header = owner.draft(1, [set("/a", 1)]).expect("may").header.clone();
    (header.author, header.is_private) = (who(4), true);
    let mut rng = <rand::rngs::StdRng as rand::SeedableRng>::seed_from_u64(7);
    let memory = body([Item::Set(mine(4, "/x"), json!(1))]);
    let sealed = ContextKey::private(&key(4), owner.replica.id()).seal_operation(header, &memory, &mut rng).expect("sealed");
    assert_eq!(owner.on_operation(Signed::sign(sealed, &key(4)).expect("signed")), Err(Refusal::Access));
    assert!(owner.replica.operations().is_empty());
}

/// The items of one operation take effect in their order, all 256 of them.
#[test]
fn the_items_of_an_operation_come_one_after_another() {
    let mut node = context(&all_write([]));
    let items: Vec<Item> = (0..256).map(|at| if at % 2 == 0 { set("/a", at) } else { Item::Append(path("/l"), json!(at)) }).collect();
    node.write(1, items);
    assert_eq!(node.shared()["a"], json!(254));
    let appended: Vec<Value> = (0..256).filter(|at| at % 2 == 1).map(Value::from).collect();
    assert_eq!(node.shared()["l"], Value::Array(appended));
    node.write(1, [set("/b", 1), Item::Del(path("/b")), set("/c", 1), Item::Inc(path("/c"), 2), set("/c/d", 3)]);
    assert_eq!((node.shared().get("b"), &node.shared()["c"]), (None, &json!({"d": 3})));
}

/// Among equal clocks the operation's name decides, the same everywhere.
#[test]
fn of_two_that_wrote_at_once_the_same_one_wins_on_every_replica() {
    for round in 0..8 {
        let mut owner = context(&all_write([2]));
        let mut other = owner.join(&[2]);
        other.pull(&owner);
        let here = owner.write(1, [set("/a", format!("here {round}"))]);
        let there = other.write(2, [set("/a", format!("there {round}"))]);
        let expected = if here.id() > there.id() { "here" } else { "there" };
        owner.on_operation(there).expect("counts");
        other.on_operation(here).expect("counts");
        assert_eq!(owner.shared(), json!({"a": format!("{expected} {round}")}));
        assert_eq!(other.shared(), owner.shared());
    }
}

/// What is missing is named, so that it can be asked for.
#[test]
fn an_operation_that_is_missing_is_named() {
    let mut here = context(&all_write([2]));
    let first = here.write(1, [set("/a", 1)]);
    let second = here.write(1, [set("/a", 2)]);
    let mut there = here.join(&[2]);
    there.on_access(here.accesses[0].clone()).expect("the first");
    let taken = there.replica.on_operation(second.clone()).expect("early");
    assert_eq!((taken.missing, taken.kept.len()), (BTreeSet::from([first.id()]), 0));
    let taken = there.replica.on_operation(first.clone()).expect("counts");
    assert_eq!(taken.kept, [first.clone(), second]);
    let again = there.replica.on_operation(first).expect("known");
    assert!(again.kept.is_empty() && again.missing.is_empty() && again.twins.is_empty());
}

/// What was parked and does not count after all is reported with its author.
#[test]
fn what_waited_in_vain_is_reported() {
    let owner = context(&all_write([2]));
    let mut stranger = owner.join(&[1]);
    stranger.pull(&owner);
    // In a context of its own making the stranger may write; here it may not.
    let theirs = stranger.forge(1, [set("/a", 1)], |header| header.author = who(9));
    let mut there = owner.join(&[2]);
    assert_eq!(there.on_operation(theirs), Ok(0), "nothing is known of anybody's rights");
    let (step, taken) = there.replica.on_access(owner.accesses[0].clone()).expect("the first");
    assert_eq!((step, taken.refused), (Step::Added, vec![(who(9), Refusal::Access)]));
}
