//! The owner's line of access changes: who could write what, and when (design/contexts.md "Access").
//!
//! Changes are numbered from 1 and each names the one before it. An owner who signs two for one number has split the line: access then stays
//! as it was at the last common change for good, on every replica that has seen both, and the two are the proof. Of several splits the earliest
//! holds, whichever was seen first.
//!
//! A change may be a *checkpoint*: it changes nobody's rights, says what the context held, and begins a new *era*. What was written before it
//! counts as far as its cuts reach, and what is written after it builds on what it says. What the checkpoint before the newest one said
//! stands for good: replicas have let go of what was written before that, so a second change of a number up to there comes too late.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::{ContextId, Path, Principal, Timestamp};
use crate::wire::context::{Access, Cut, Genesis, Last, Verified};

/// How many changes a context may have.
pub const EPOCHS_MAX: u64 = 1_024;

/// All that is known of the access to one context.
#[derive(Debug)]
pub struct Chain {
    owner: Principal,
    context: ContextId,
    born_until: Timestamp,
    changes: Vec<Verified<Access>>,
    /// Who lost a right, and with which changes.
    losses: BTreeMap<Principal, Vec<u64>>,
    /// Which changes are checkpoints.
    checkpoints: Vec<u64>,
    split: Option<Box<(Verified<Access>, Verified<Access>)>>,
}

/// What became of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// It was known.
    Known,
    /// It is the newest now.
    Added,
    /// Changes before it are missing.
    Early,
    /// The owner has signed two for one number.
    Split,
}

/// Why a change does not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// It belongs to another context or comes from another key.
    #[error("the change is not one of this context's owner")]
    Foreign,
    /// It names another change before it than there is, with no other of its number to show for it.
    #[error("the change does not follow the one before it")]
    Loose,
    /// A reader was removed and the key stayed, or the key changes in another way than by one.
    #[error("the change takes a reader away and does not change the key, or changes it wrongly")]
    Key,
    /// It ends the context earlier than before.
    #[error("the change ends the context earlier than it was to end")]
    Shortened,
    /// The line was split at an earlier change.
    #[error("the owner has signed two different changes for one number; access stays as it was before them")]
    Frozen,
    /// It is a checkpoint and changes something else as well, or takes the clock back.
    #[error("a checkpoint changes nothing but the era")]
    Checkpoint,
    /// It is a second one of a number that two checkpoints have settled.
    #[error("two checkpoints have settled what was before; another change of that number comes too late")]
    Settled,
    /// There are too many.
    #[error("a context has at most {EPOCHS_MAX} changes of access")]
    TooMany,
}

impl Chain {
    /// The line that begins with `genesis`.
    pub fn new(context: ContextId, genesis: &Genesis) -> Self {
        let (owner, born_until) = (genesis.owner, genesis.expires_at);
        Self { owner, context, born_until, changes: Vec::new(), losses: BTreeMap::new(), checkpoints: Vec::new(), split: None }
    }

    /// The newest change that counts.
    pub fn tip(&self) -> Option<&Verified<Access>> {
        self.changes.last()
    }

    /// The number of the newest change that counts; 0 if there is none.
    pub fn epoch(&self) -> u64 {
        self.tip().map_or(0, |access| access.epoch)
    }

    /// The change of that number, if it counts.
    pub fn at(&self, epoch: u64) -> Option<&Verified<Access>> {
        let at = usize::try_from(epoch.checked_sub(1)?).ok()?;
        self.changes.get(at)
    }

    /// All that count, oldest first.
    pub fn changes(&self) -> &[Verified<Access>] {
        &self.changes
    }

    /// The numbers of those changes that are checkpoints, in order. The number of a checkpoint is that of the era which it begins; what was
    /// written before the first is of era 0.
    pub fn checkpoints(&self) -> &[u64] {
        &self.checkpoints
    }

    /// The era of an operation that was written at change `epoch`.
    pub fn era(&self, epoch: u64) -> u64 {
        let begun = self.checkpoints.partition_point(|checkpoint| *checkpoint <= epoch);
        begun.checked_sub(1).and_then(|at| self.checkpoints.get(at)).copied().unwrap_or(0)
    }

    /// The era that is open.
    pub fn newest_era(&self) -> u64 {
        self.checkpoints.last().copied().unwrap_or(0)
    }

    /// The era before the newest, whose operations are still told apart; 0 as long as there is none before it.
    pub fn settled_era(&self) -> u64 {
        self.checkpoints.iter().rev().nth(1).copied().unwrap_or(0)
    }

    /// The checkpoint that ended an era, if it is not the newest.
    pub fn end_of(&self, era: u64) -> Option<&Verified<Access>> {
        let after = self.checkpoints.partition_point(|checkpoint| *checkpoint <= era);
        self.at(*self.checkpoints.get(after)?)
    }

    /// Two changes of the owner for one number, if there are two.
    pub fn split(&self) -> Option<&(Verified<Access>, Verified<Access>)> {
        self.split.as_deref()
    }

    /// How many bytes the changes have.
    pub fn len_bytes(&self) -> usize {
        let split = self.split.iter().flat_map(|split| [&split.0, &split.1]);
        self.changes.iter().chain(split).map(Verified::len_bytes).sum()
    }

    /// When the context ends.
    pub fn expires_at(&self) -> Timestamp {
        self.tip().map_or(self.born_until, |access| access.expires_at)
    }

    /// Takes in a change.
    ///
    /// # Errors
    /// If it does not count; nothing was changed.
    pub fn on_change(&mut self, access: Verified<Access>) -> Result<Step, Refusal> {
        if access.context != self.context || access.owner != self.owner {
            return Err(Refusal::Foreign);
        }
        if access.epoch > EPOCHS_MAX {
            return Err(Refusal::TooMany);
        }
        if let Some((first, second)) = self.split() {
            let is_known = [first, second].iter().any(|known| known.name() == access.name());
            if is_known {
                return Ok(Step::Known);
            }
            if access.epoch >= first.epoch {
                return Err(Refusal::Frozen);
            }
        }
        if access.epoch > self.epoch() + 1 {
            return Ok(Step::Early);
        }
        self.follows(&access)?;
        match self.at(access.epoch) {
            Some(known) if known.name() == access.name() => Ok(Step::Known),
            Some(_) if access.epoch <= self.settled_era() => Err(Refusal::Settled),
            Some(known) => {
                self.split = Some(Box::new((known.clone(), access)));
                let common = self.split.as_ref().map_or(0, |split| split.0.epoch.saturating_sub(1));
                self.changes.truncate(usize::try_from(common).unwrap_or(0));
                self.checkpoints.retain(|checkpoint| *checkpoint <= common);
                Ok(Step::Split)
            }
            None => {
                for author in self.tip().map(|before| losers(before, &access)).unwrap_or_default() {
                    self.losses.entry(author).or_default().push(access.epoch);
                }
                self.checkpoints.extend(access.checkpoint.is_some().then_some(access.epoch));
                self.changes.push(access);
                Ok(Step::Added)
            }
        }
    }

    fn follows(&self, access: &Access) -> Result<(), Refusal> {
        let before = self.at(access.epoch.saturating_sub(1));
        let expected = before.map_or_else(|| self.context.to_bytes(), Verified::name);
        if access.prev != expected {
            return Err(Refusal::Loose);
        }
        if access.expires_at < before.map_or(self.born_until, |before| before.expires_at) {
            return Err(Refusal::Shortened);
        }
        let Some(before) = before else {
            let is_first = access.key_epoch == 1 && access.checkpoint.is_none();
            return if is_first { Ok(()) } else { Err(Refusal::Key) };
        };
        let lost_reader = before.readers.iter().any(|reader| !access.may_read(reader.principal));
        let is_same_key =
            access.key_epoch == before.key_epoch && access.key_check == before.key_check && access.previous_key == before.previous_key;
        let is_next_key = access.key_epoch == before.key_epoch + 1 && access.key_check != before.key_check;
        if let Some(checkpoint) = access.checkpoint {
            let clock = self.at(self.era(before.epoch)).and_then(|before| before.checkpoint).map_or(0, |before| before.lamport);
            let is_same = is_same_key && access.writers == before.writers && access.readers == before.readers;
            return if is_same && checkpoint.lamport >= clock { Ok(()) } else { Err(Refusal::Checkpoint) };
        }
        if is_next_key || (is_same_key && !lost_reader) { Ok(()) } else { Err(Refusal::Key) }
    }

    /// The last operation of `author` that counts of the era which `checkpoint` ended, if it wrote any.
    pub fn last_before(&self, checkpoint: u64, author: Principal) -> Option<Last> {
        let cuts = &self.at(checkpoint).filter(|access| access.checkpoint.is_some())?.cuts;
        cuts.binary_search_by_key(&author, |cut| cut.author).ok().and_then(|at| cuts.get(at))?.last
    }

    /// Whether `author` could write at all of `paths` when change `epoch` was the newest.
    pub fn could_write<'p>(&self, author: Principal, epoch: u64, mut paths: impl Iterator<Item = &'p Path>) -> bool {
        self.at(epoch).is_some_and(|access| paths.all(|path| access.may_write(author, path)))
    }

    /// Whether `author` could read when change `epoch` was the newest.
    pub fn could_read(&self, author: Principal, epoch: u64) -> bool {
        self.at(epoch).is_some_and(|access| access.may_read(author))
    }

    /// The cuts that an operation of `author` on `paths`, written at `epoch`, must lie before: one for every later change that took the right
    /// away. A change that took it away without a cut leaves nothing of it.
    pub fn cuts(&self, author: Principal, epoch: u64, paths: &BTreeSet<&Path>) -> Vec<Cut> {
        let holds = |access: &Access| {
            if paths.is_empty() { access.may_read(author) } else { paths.iter().all(|path| access.may_write(author, path)) }
        };
        // What an era held is settled with its end; what is lost later is lost for what is written later.
        let end = self.end_of(self.era(epoch)).map_or(u64::MAX, |end| end.epoch);
        let later = self.losses.get(&author).into_iter().flatten().filter(|after| (epoch.saturating_add(1)..end).contains(*after));
        let pairs = later.filter_map(|after| self.at(after.checked_sub(1)?).zip(self.at(*after)));
        let losses = pairs.filter(|(before, after)| holds(before) && !holds(after)).map(|(_, after)| after);
        let cut_of = |access: &Verified<Access>| {
            let named = access.cuts.binary_search_by_key(&author, |cut| cut.author).ok().and_then(|at| access.cuts.get(at));
            named.cloned().unwrap_or(Cut { author, last: None })
        };
        losses.map(cut_of).collect()
    }
}

/// Who may less after a change than before it, in order.
pub fn losers(before: &Access, after: &Access) -> Vec<Principal> {
    let prefixes = |access: &Access, author: Principal| {
        let at = access.writers.binary_search_by_key(&author, |writer| writer.principal);
        at.ok().and_then(|at| access.writers.get(at)).map(|writer| writer.prefixes.clone()).unwrap_or_default()
    };
    let loses = |author: &Principal| {
        let still = prefixes(after, *author);
        let is_covered = |prefix: &Path| still.iter().any(|wider| wider.covers(prefix));
        *author != after.owner && (!after.may_read(*author) || !prefixes(before, *author).iter().all(is_covered))
    };
    before.readers.iter().map(|reader| reader.principal).filter(loses).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::replica::{self, Rights};
    use super::super::testing::{BEGIN, END, Node, all_write, context, key, path, who};
    use super::*;
    use crate::wire::context::Signed;
    use crate::wire::context::seal::ContextKey;

    fn refused(node: &mut Node, change: &Verified<Access>) -> Refusal {
        let before = node.replica.chain().tip().map(Verified::name);
        let refusal = node.on_access(change.clone()).expect_err("it does not count");
        assert_eq!(node.replica.chain().tip().map(Verified::name), before, "nothing was changed");
        refusal
    }

    #[test]
    fn a_change_of_another_context_or_owner_is_foreign() {
        let mut node = context(&all_write([2]));
        let elsewhere = node.forge_access(&all_write([2]), |access| access.context = ContextId::from_bytes([3; 32]));
        assert_eq!(refused(&mut node, &elsewhere), Refusal::Foreign);
        let mut usurped = (*node.draft_access(&all_write([2]))).clone();
        usurped.owner = who(2);
        let usurped = Signed::sign(usurped, &key(2)).expect("by its own rules a change");
        assert_eq!(refused(&mut node, &usurped), Refusal::Foreign);
    }

    #[test]
    fn the_key_changes_by_one_when_a_reader_goes_and_otherwise_as_a_whole() {
        let mut node = context(&all_write([2]));
        let other = ContextKey::random(&mut <rand::rngs::StdRng as rand::SeedableRng>::seed_from_u64(9));
        // A reader goes and the key stays.
        let tip = node.replica.chain().tip().expect("a tip").clone();
        let stays = node.forge_access(&all_write([]), |access| {
            (access.key_epoch, access.key_check, access.previous_key) = (tip.key_epoch, tip.key_check, tip.previous_key);
        });
        assert_eq!(refused(&mut node, &stays), Refusal::Key);
        let stays_by_name = node.forge_access(&all_write([]), |access| access.key_check = tip.key_check);
        assert_eq!(refused(&mut node, &stays_by_name), Refusal::Key);
        // Another key under the same number.
        let secret = node.forge_access(&all_write([2]), |access| access.key_check = other.check());
        assert_eq!(refused(&mut node, &secret), Refusal::Key);
        node.change_access(&all_write([]));
        let rewritten = node.forge_access(&all_write([]), |access| access.previous_key = Some(other.seal_previous(&other)));
        assert_eq!(refused(&mut node, &rewritten), Refusal::Key, "what leads back is not changed afterwards");
        // Back to a key that a former reader has, or on past one.
        let back = node.forge_access(&all_write([]), |access| {
            (access.key_epoch, access.key_check, access.previous_key) = (tip.key_epoch, tip.key_check, tip.previous_key);
        });
        assert_eq!(refused(&mut node, &back), Refusal::Key);
        node.change_access(&all_write([2]));
        let skips = node.forge_access(&all_write([]), |access| access.key_epoch += 1);
        assert_eq!(refused(&mut node, &skips), Refusal::Key);
        // An owner may change the key although nobody goes.
        let fresh = node.forge_access(&all_write([2]), |access| {
            (access.key_epoch, access.key_check) = (access.key_epoch + 1, other.check());
        });
        assert_eq!(node.on_access(fresh), Ok(Step::Added));
    }

    #[test]
    fn a_context_is_extended_and_never_shortened() {
        let mut node = context(&all_write([2]));
        let earlier = node.forge_access(&all_write([2]), |access| access.expires_at = Timestamp::from_ms(END.as_ms() - 1));
        assert_eq!(refused(&mut node, &earlier), Refusal::Shortened);
        assert_eq!(node.replica.chain().expires_at(), END);
        let later = Timestamp::from_ms(END.as_ms() + 1);
        let extended = node.forge_access(&all_write([2]), |access| access.expires_at = later);
        assert_eq!(node.on_access(extended), Ok(Step::Added));
        assert_eq!(node.replica.chain().expires_at(), later);
        let back = node.forge_access(&all_write([2]), |access| access.expires_at = END);
        assert_eq!(refused(&mut node, &back), Refusal::Shortened);
        // The first change may not end it earlier than the genesis says either.
        let genesis = node.replica.genesis().clone();
        let mut fresh = Chain::new(node.replica.id(), &genesis);
        let first = Signed::sign(Access { expires_at: BEGIN, ..(*node.accesses[0]).clone() }, &key(1)).expect("a change");
        assert_eq!(fresh.on_change(first), Err(Refusal::Shortened));
        assert_eq!((fresh.epoch(), fresh.expires_at()), (0, END));
    }

    #[test]
    fn a_context_has_1024_changes_and_no_more() {
        let mut node = context(&all_write([]));
        while node.replica.chain().epoch() < EPOCHS_MAX {
            node.change_access(&all_write([]));
        }
        let past = node.draft_access(&all_write([]));
        assert_eq!(past.epoch, EPOCHS_MAX + 1);
        assert_eq!(refused(&mut node, &past), Refusal::TooMany);
    }

    /// Of several splits the earliest holds, whichever was seen first, and no third branch is let in.
    #[test]
    fn an_owner_who_splits_the_line_twice_is_frozen_at_the_first() {
        let mut here = context(&all_write([2]));
        let mut there = here.join(&[3]);
        let early = here.draft_access(&all_write([2, 4]));
        let second = here.change_access(&all_write([2, 3]));
        let late = here.draft_access(&all_write([3]));
        let third = here.change_access(&all_write([2]));
        let fourth = here.draft_access(&all_write([2]));
        let first = here.accesses[0].clone();
        assert_eq!(here.on_access(late.clone()), Ok(Step::Split));
        assert_eq!(here.replica.chain().epoch(), 2);
        assert_eq!(here.on_access(fourth.clone()), Err(Refusal::Frozen));
        assert_eq!(here.on_access(second.clone()), Ok(Step::Known));
        let branch = here.forge_access_at(&third);
        assert_eq!(here.on_access(branch.clone()), Err(Refusal::Frozen), "a third branch changes nothing");
        assert_eq!(here.on_access(early.clone()), Ok(Step::Split), "an earlier split does");
        // The other way round.
        for change in [first, second.clone()] {
            assert_eq!(there.on_access(change), Ok(Step::Added));
        }
        assert_eq!(there.on_access(early.clone()), Ok(Step::Split));
        for change in [&third, &late, &branch, &fourth] {
            assert_eq!(there.on_access(change.clone()), Err(Refusal::Frozen));
        }
        for node in [&here, &there] {
            let chain = node.replica.chain();
            assert_eq!(chain.epoch(), 1);
            let mut proof = chain.split().map(|(one, other)| [one.name(), other.name()]).expect("a proof");
            proof.sort_unstable();
            let mut expected = [early.name(), second.name()];
            expected.sort_unstable();
            assert_eq!(proof, expected);
        }
        for change in [&early, &second] {
            assert_eq!(here.on_access(change.clone()), Ok(Step::Known));
        }
        let mut rng = <rand::rngs::StdRng as rand::SeedableRng>::seed_from_u64(1);
        let draft = here.replica.draft_access(&key(1), &all_write([2]), END, BEGIN, &mut rng);
        assert_eq!(draft, Err(replica::Refusal::Frozen));
    }

    impl Node {
        /// Another change of the same number behind the same one.
        fn forge_access_at(&self, change: &Verified<Access>) -> Verified<Access> {
            Signed::sign(Access { at: END, ..(**change).clone() }, &key(1)).expect("a valid change")
        }
    }

    #[test]
    fn who_loses_what_is_told_from_the_two_changes() {
        let rights = |write: &[(u8, &[&str])], read: &[u8]| Rights {
            read: read.iter().map(|seed| who(*seed)).collect(),
            write: write.iter().map(|(seed, below)| (who(*seed), below.iter().map(|below| path(below)).collect())).collect(),
        };
        let before = rights(&[(2, &["/a", "/b"]), (3, &[""]), (4, &["/a/c"]), (5, &["/a"])], &[6, 7]);
        let after = rights(&[(2, &["/a"]), (3, &["/a"]), (4, &["/a"]), (5, &["/a"])], &[6, 8]);
        let mut node = context(&before);
        let before = node.replica.chain().tip().expect("a tip").clone();
        let after = node.change_access(&after);
        let expected: BTreeSet<_> = [2, 3, 7].map(who).into();
        assert_eq!(losers(&before, &after), expected.into_iter().collect::<Vec<_>>());
        // What was lost is asked for path by path.
        let chain = node.replica.chain();
        let cuts = |seed, below: &[&str]| {
            let paths: Vec<Path> = below.iter().map(|below| path(below)).collect();
            chain.cuts(who(seed), 1, &paths.iter().collect()).len()
        };
        assert_eq!((cuts(2, &["/a/x"]), cuts(2, &["/b"]), cuts(2, &["/a", "/b"])), (0, 1, 1));
        assert_eq!((cuts(3, &["/a"]), cuts(3, &["/c"]), cuts(4, &["/a/c"]), cuts(7, &[])), (0, 1, 0, 1));
        assert_eq!((cuts(6, &[]), cuts(1, &["/z"])), (0, 0));
        assert!(chain.cuts(who(2), 2, &BTreeSet::from([&path("/b")])).is_empty(), "what is lost already is not lost again");
        let named: BTreeMap<_, _> = after.cuts.iter().map(|cut| (cut.author, cut.last)).collect();
        assert_eq!(named.keys().copied().collect::<BTreeSet<_>>(), [2, 3, 7].map(who).into());
    }
}
