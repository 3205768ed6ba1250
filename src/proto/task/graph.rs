//! What has to wait for what: the order of a task's subtasks (AITP 3.2).
//!
//! Edges are given as, for each subtask, the places of those that must have succeeded before it. Everything here is iterative, so a chain
//! may be as long as a task may be, and linear in the edges.

use std::collections::{BTreeSet, VecDeque};

/// An order in which each subtask comes after those that it waits for; among those that are free at once the first written comes first.
///
/// # Errors
/// A circle: each of these waits for the next, and the last for the first.
pub fn order(after: &[BTreeSet<usize>]) -> Result<Vec<usize>, Vec<usize>> {
    let dependents = dependents(after);
    let mut waiting: Vec<usize> = after.iter().map(BTreeSet::len).collect();
    let mut free: VecDeque<usize> = (0..after.len()).filter(|place| waiting[*place] == 0).collect();
    let mut order = Vec::with_capacity(after.len());
    while let Some(place) = free.pop_front() {
        order.push(place);
        for &dependent in &dependents[place] {
            waiting[dependent] -= 1;
            if waiting[dependent] == 0 {
                free.push_back(dependent);
            }
        }
    }
    if order.len() == after.len() { Ok(order) } else { Err(circle(after, &waiting)) }
}

/// For each subtask those that wait for it, in the order in which they were written.
pub fn dependents(after: &[BTreeSet<usize>]) -> Vec<Vec<usize>> {
    let mut dependents = vec![Vec::new(); after.len()];
    for (place, needed) in after.iter().enumerate() {
        for &needed in needed {
            dependents[needed].push(place);
        }
    }
    dependents
}

/// Those that nobody waits for.
pub fn sinks(after: &[BTreeSet<usize>]) -> Vec<usize> {
    let needed: BTreeSet<usize> = after.iter().flatten().copied().collect();
    (0..after.len()).filter(|place| !needed.contains(place)).collect()
}

/// A circle among those that are still waiting: each of them waits for one that does, so going on from any comes back to where one was.
fn circle(after: &[BTreeSet<usize>], waiting: &[usize]) -> Vec<usize> {
    let mut way: Vec<usize> = Vec::new();
    let mut seen_at: Vec<Option<usize>> = vec![None; after.len()];
    let mut next = (0..after.len()).find(|place| waiting[*place] > 0);
    while let Some(place) = next {
        if let Some(start) = seen_at[place] {
            way.drain(..start);
            break;
        }
        seen_at[place] = Some(way.len());
        way.push(place);
        next = after[place].iter().copied().find(|needed| waiting[*needed] > 0);
    }
    way
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn edges(all: &[&[usize]]) -> Vec<BTreeSet<usize>> {
        all.iter().map(|needed| needed.iter().copied().collect()).collect()
    }

    /// AITP-3: the draft's own three steps.
    #[test]
    fn each_comes_after_what_it_waits_for() {
        let after = edges(&[&[], &[0], &[0, 1]]);
        assert_eq!(order(&after), Ok(vec![0, 1, 2]));
        assert_eq!(dependents(&after), vec![vec![1, 2], vec![2], vec![]]);
        assert_eq!(sinks(&after), vec![2]);
        assert_eq!(sinks(&edges(&[&[], &[0], &[0]])), vec![1, 2]);
    }

    /// AITP-3: a circle is found, and nothing but the circle.
    #[test]
    fn a_circle_is_told_without_what_merely_leads_to_it() {
        assert_eq!(order(&edges(&[&[1], &[2], &[3], &[1]])), Err(vec![1, 2, 3]));
        assert_eq!(order(&edges(&[&[0]])), Err(vec![0]));
    }

    #[test]
    fn a_long_chain_needs_no_deep_stack() {
        let chain: Vec<BTreeSet<usize>> = (0..2_000_usize).map(|place| place.checked_sub(1).into_iter().collect()).collect();
        assert_eq!(order(&chain).expect("no circle").len(), 2_000);
        let mut round = chain;
        round[0].insert(1_999);
        assert_eq!(order(&round).expect_err("a circle").len(), 2_000);
    }

    proptest! {
        /// AITP-3: any edges either have an order that keeps to them or a circle that is one.
        #[test]
        fn edges_have_an_order_or_a_circle(pairs in prop::collection::vec((0..12_usize, 0..12_usize), 0..30)) {
            let mut after = vec![BTreeSet::new(); 12];
            for (place, needed) in pairs {
                after[place].insert(needed);
            }
            match order(&after) {
                Ok(order) => {
                    let rank = |place: usize| order.iter().position(|other| *other == place);
                    prop_assert!((0..12).all(|place| after[place].iter().all(|needed| rank(*needed) < rank(place))));
                }
                Err(circle) => {
                    let next = circle.iter().cycle().skip(1);
                    prop_assert!(!circle.is_empty() && circle.iter().zip(next).all(|(place, needed)| after[*place].contains(needed)));
                }
            }
        }
    }
}
