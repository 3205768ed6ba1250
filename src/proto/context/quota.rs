//! How much of this node's disk contexts may take, and whose (threat T28).
//!
//! Whoever names this node's key or one of its agents' among the readers can have it keep a replica. So contexts that others own have half of
//! what there is, and each of these owners an eighth: a hostile one fills its eighth, all of them together leave this node its own half. A
//! place is taken before anything is written, and given back if it is not.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::{ContextId, Principal};

/// Contexts of others have this part of all: what this node's clients begin must find room whatever others do.
const OTHERS_PART: u64 = 2;
/// One owner elsewhere has this part: four of them, honest or not, fill the half of others, so that one alone keeps nobody out.
const OWNER_PART: u64 = 8;

/// How much there may be.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Contexts.
    pub contexts_max: u64,
    /// Bytes of their files.
    pub bytes_max: u64,
}

/// How much there is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Usage {
    contexts: u64,
    bytes: u64,
}

impl Usage {
    fn plus(self, other: Self) -> Self {
        Self { contexts: self.contexts.saturating_add(other.contexts), bytes: self.bytes.saturating_add(other.bytes) }
    }

    fn less(self, other: Self) -> Self {
        Self { contexts: self.contexts.saturating_sub(other.contexts), bytes: self.bytes.saturating_sub(other.bytes) }
    }
}

/// Why there is no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Full {
    /// Somebody has all that they may have.
    #[error("{whose} {max} {what} ({})", what.key())]
    Of {
        /// Who.
        whose: Whose,
        /// Of what.
        what: What,
        /// How much that is.
        max: u64,
    },
    /// Whose the contexts are that were found at the start is not yet known.
    #[error("this node still counts its contexts and takes none of others meanwhile")]
    Uncounted,
}

/// Who has all that they may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose {
    /// This node, with its own contexts and those of others.
    Node,
    /// All others together.
    Others,
    /// The owner of the context.
    Owner,
}

impl std::fmt::Display for Whose {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Node => "the contexts on this node have all",
            Self::Others => "the contexts of others on this node have all of their half,",
            Self::Owner => "the contexts of this owner on this node have all of an owner's eighth,",
        })
    }
}

/// What there is no more of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// Contexts.
    Contexts,
    /// Bytes of their files.
    Bytes,
}

impl What {
    /// The setting that says how much.
    pub fn key(self) -> &'static str {
        match self {
            Self::Contexts => "context.contexts_max",
            Self::Bytes => "context.bytes_max",
        }
    }
}

impl std::fmt::Display for What {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Contexts => "contexts",
            Self::Bytes => "bytes",
        })
    }
}

/// What all contexts take, by owner.
#[derive(Debug)]
pub struct Quotas {
    limits: Limits,
    by_context: BTreeMap<ContextId, (Option<Principal>, u64)>,
    by_owner: BTreeMap<Principal, Usage>,
    total: Usage,
    is_counted: bool,
}

impl Quotas {
    /// The contexts that were found with their bytes, whose owners are not known yet.
    pub fn new(limits: Limits, found: impl IntoIterator<Item = (ContextId, u64)>) -> Self {
        let by_context: BTreeMap<_, _> = found.into_iter().map(|(id, bytes)| (id, (None, bytes))).collect();
        let total = by_context.values().fold(Usage::default(), |total, (_, bytes)| total.plus(Usage { contexts: 1, bytes: *bytes }));
        Self { limits, is_counted: by_context.is_empty(), by_context, by_owner: BTreeMap::new(), total }
    }

    /// Those whose owner is not known.
    pub fn unowned(&self) -> Vec<ContextId> {
        self.by_context.iter().filter(|(_, (owner, _))| owner.is_none()).map(|(id, _)| *id).collect()
    }

    /// Notes whose a context is that was found.
    pub fn own(&mut self, id: ContextId, owner: Principal) {
        if let Some((None, bytes)) = self.by_context.get(&id).copied() {
            self.set(id, owner, bytes);
        }
    }

    /// Notes that all owners are known which can be.
    pub fn counted(&mut self) {
        self.is_counted = true;
    }

    /// Notes how many bytes a context has.
    pub fn set(&mut self, id: ContextId, owner: Principal, bytes: u64) {
        self.remove(id);
        let usage = Usage { contexts: 1, bytes };
        self.by_context.insert(id, (Some(owner), bytes));
        let owned = self.by_owner.entry(owner).or_default();
        *owned = owned.plus(usage);
        self.total = self.total.plus(usage);
    }

    /// Notes that a context is gone.
    pub fn remove(&mut self, id: ContextId) {
        let Some((owner, bytes)) = self.by_context.remove(&id) else { return };
        let usage = Usage { contexts: 1, bytes };
        self.total = self.total.less(usage);
        let Some(owner) = owner else { return };
        let left = self.by_owner.remove(&owner).unwrap_or_default().less(usage);
        if left != Usage::default() {
            self.by_owner.insert(owner, left);
        }
    }

    /// Whether `bytes` more of a context of `owner` fit, on the node of the principals `own`.
    ///
    /// # Errors
    /// [`Full`] if not.
    pub fn check(&self, id: ContextId, owner: Principal, own: &BTreeSet<Principal>, bytes: u64) -> Result<(), Full> {
        let more = Usage { contexts: u64::from(!self.by_context.contains_key(&id)), bytes };
        let Limits { contexts_max, bytes_max } = self.limits;
        fits(Whose::Node, self.total, more, contexts_max, bytes_max)?;
        if own.contains(&owner) {
            return Ok(());
        }
        if !self.is_counted {
            return Err(Full::Uncounted);
        }
        let owned = |owner| self.by_owner.get(owner).copied().unwrap_or_default();
        // A node that keeps few contexts still keeps one of each owner, as far as there is room for others.
        fits(Whose::Owner, owned(&owner), more, (contexts_max / OWNER_PART).max(1), bytes_max / OWNER_PART)?;
        let others = own.iter().fold(self.total, |others, own| others.less(owned(own)));
        fits(Whose::Others, others, more, contexts_max / OTHERS_PART, bytes_max / OTHERS_PART)
    }

    /// Takes the place that [`Quotas::check`] finds.
    ///
    /// # Errors
    /// [`Full`] if there is none.
    pub fn reserve(&mut self, id: ContextId, owner: Principal, own: &BTreeSet<Principal>, bytes: u64) -> Result<(), Full> {
        self.check(id, owner, own, bytes)?;
        let before = self.by_context.get(&id).map_or(0, |(_, bytes)| *bytes);
        self.set(id, owner, before.saturating_add(bytes));
        Ok(())
    }
}

fn fits(whose: Whose, usage: Usage, more: Usage, contexts_max: u64, bytes_max: u64) -> Result<(), Full> {
    let after = usage.plus(more);
    if more.contexts > 0 && after.contexts > contexts_max {
        return Err(Full::Of { whose, what: What::Contexts, max: contexts_max });
    }
    if after.bytes > bytes_max { Err(Full::Of { whose, what: What::Bytes, max: bytes_max }) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::super::testing::who;
    use super::*;

    const LIMITS: Limits = Limits { contexts_max: 80, bytes_max: 8_000 };

    fn id(number: u8) -> ContextId {
        ContextId::from_bytes([number; 32])
    }

    fn quotas() -> Quotas {
        Quotas::new(LIMITS, [])
    }

    fn own() -> BTreeSet<Principal> {
        [1, 2].map(who).into()
    }

    fn full(whose: Whose, what: What, max: u64) -> Result<(), Full> {
        Err(Full::Of { whose, what, max })
    }

    /// Threat T28: an owner elsewhere fills an eighth, all of them together half, and the rest is this node's own.
    #[test]
    fn each_owner_has_an_eighth_of_the_contexts_and_others_half() {
        let mut quotas = quotas();
        for at in 0..10 {
            assert_eq!(quotas.reserve(id(at), who(3), &own(), 1), Ok(()));
        }
        assert_eq!(quotas.reserve(id(10), who(3), &own(), 1), full(Whose::Owner, What::Contexts, 10));
        for at in 10..40 {
            assert_eq!(quotas.reserve(id(at), who(4 + at / 10), &own(), 1), Ok(()));
        }
        assert_eq!(quotas.reserve(id(40), who(9), &own(), 1), full(Whose::Others, What::Contexts, 40));
        assert_eq!(quotas.reserve(id(0), who(3), &own(), 1), Ok(()), "those that are there may grow");
        for at in 40..80 {
            assert_eq!(quotas.reserve(id(at), who(1 + at % 2), &own(), 1), Ok(()));
        }
        assert_eq!(quotas.reserve(id(80), who(1), &own(), 1), full(Whose::Node, What::Contexts, 80));
        quotas.remove(id(0));
        assert_eq!(quotas.reserve(id(80), who(3), &own(), 1), Ok(()));
    }

    #[test]
    fn each_owner_has_an_eighth_of_the_bytes_and_others_half() {
        let mut quotas = quotas();
        assert_eq!(quotas.reserve(id(0), who(3), &own(), 600), Ok(()));
        assert_eq!(quotas.reserve(id(1), who(3), &own(), 401), full(Whose::Owner, What::Bytes, 1_000));
        assert_eq!(quotas.reserve(id(0), who(3), &own(), 400), Ok(()));
        assert_eq!(quotas.check(id(0), who(3), &own(), 1), full(Whose::Owner, What::Bytes, 1_000));
        for at in 4..7 {
            assert_eq!(quotas.reserve(id(at), who(at), &own(), 1_000), Ok(()));
        }
        assert_eq!(quotas.reserve(id(9), who(9), &own(), 1), full(Whose::Others, What::Bytes, 4_000));
        assert_eq!(quotas.reserve(id(10), who(1), &own(), 4_000), Ok(()), "this node has all that others have not");
        assert_eq!(quotas.check(id(10), who(1), &own(), 1), full(Whose::Node, What::Bytes, 8_000));
        let told = quotas.check(id(10), who(1), &own(), 1).expect_err("full").to_string();
        assert_eq!(told, "the contexts on this node have all 8000 bytes (context.bytes_max)");
        // What was not written after all.
        quotas.set(id(10), who(1), 3_999);
        assert_eq!(quotas.check(id(10), who(1), &own(), 1), Ok(()));
    }

    /// An agent that comes to this node brings its contexts over to this node's side.
    #[test]
    fn whose_a_context_is_depends_on_who_lives_here_now() {
        let mut quotas = quotas();
        assert_eq!(quotas.reserve(id(0), who(3), &own(), 1_000), Ok(()));
        assert_eq!(quotas.check(id(0), who(3), &own(), 1), full(Whose::Owner, What::Bytes, 1_000));
        assert_eq!(quotas.check(id(0), who(3), &[1, 3].map(who).into(), 7_000), Ok(()));
    }

    #[test]
    fn what_was_found_counts_at_once_and_others_wait_until_it_is_known_whose_it_is() {
        let mut quotas = Quotas::new(LIMITS, [(id(0), 900), (id(1), 1_000), (id(2), 100)]);
        assert_eq!(quotas.check(id(9), who(1), &own(), 6_001), full(Whose::Node, What::Bytes, 8_000));
        assert_eq!(quotas.check(id(0), who(3), &own(), 1), Err(Full::Uncounted));
        assert_eq!(quotas.unowned(), [0, 1, 2].map(id));
        quotas.own(id(0), who(3));
        quotas.own(id(1), who(1));
        quotas.counted();
        assert_eq!(quotas.unowned(), [id(2)], "one that cannot be read is nobody's, and counts");
        assert_eq!(quotas.check(id(0), who(3), &own(), 100), Ok(()));
        assert_eq!(quotas.check(id(0), who(3), &own(), 101), full(Whose::Owner, What::Bytes, 1_000));
        for at in 0..3 {
            quotas.remove(id(at));
        }
        assert_eq!((quotas.total, quotas.by_owner.len()), (Usage::default(), 0));
    }
}
