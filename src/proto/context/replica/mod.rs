//! One replica of a context: it takes statements in any order and decides which of them count (design/contexts.md "Accept order").
//!
//! An operation is taken in once the change of access that it names and all that it builds on are here; until then it is *early*, and parked.
//! It is refused for good if its author could not write there at the change that it names, if its numbers are not exactly those that follow
//! from what it builds on, or if it does not open. What lies behind a cut takes its place in the graph and does not count: others may have
//! built on it, and its author's fault must not be theirs; an author who gets a right back goes on from there.
//!
//! A checkpoint ends an *era*. An operation of the next one builds on its author's last operation before, which the checkpoint names, on
//! others of its era, and on the checkpoint itself, which stands in the graph as an operation does; so what came before can be let go of. What
//! somebody wrote before the checkpoint and its owner had not seen does not count: its author's node writes it once more.
//!
//! A change of access can take back what counted. The fold cannot; the replica then says that it [is stale](Replica::is_stale), and the
//! shell makes it anew from what it kept ([`Replica::recall`]). What it shows meanwhile is what it showed before.

mod era;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use rand::CryptoRng;
use serde_json::Value;

use super::chain::{self, Chain, Step};
use super::checkpoint::{Merged, Source};
use super::fold::{Fold, Kind};
use super::operations::{Entry, Operations};
use super::park::Park;
use crate::model::{ContextId, OperationId, Path, Principal, Timestamp};
use crate::wire;
use crate::wire::context::seal::ContextKey;
use crate::wire::context::sync::{Heads, TIPS_MAX};
use crate::wire::context::{
    Access, Body, Checkpoint, Cut, DEPENDENCIES_MAX, Genesis, Header, Item, Last, Operation, PrincipalKey, Reader, Signed, Statement as _,
    Tip, Verified, Writer,
};

/// How many operations an author may write in one context.
pub const OPERATIONS_PER_AUTHOR_MAX: u64 = 100_000;
/// How many bytes the operations of an author may have in one context, with what their items add to that.
pub const BYTES_PER_AUTHOR_MAX: u64 = 16 * 1024 * 1024;
/// What an item adds to the bytes of its operation, and what each name on its path does: a path that is a few bytes long can be of a dozen
/// places, each of which takes some hundred bytes of memory, and it is memory that the limit is about.
const ITEM_BYTES: u64 = 64;
const NAME_BYTES: u64 = 32;
/// How many times that much is taken in of an author who signs several operations of one number, on all its branches together. Only such
/// an author can reach it; what it then says reaches some replicas and not others, until its owner cuts it off.
const BRANCHES_PER_AUTHOR_MAX: u64 = 2;

pub use era::Recalled;

/// A context as one node has it.
#[derive(Debug)]
pub struct Replica {
    id: ContextId,
    genesis: Verified<Genesis>,
    chain: Chain,
    own: Vec<PrincipalKey>,
    keys: BTreeMap<u64, ContextKey>,
    operations: Operations,
    shared: Fold,
    private: BTreeMap<Principal, Fold>,
    /// What of other contexts is here.
    merged: Merged,
    /// The era that is taken in: the number of the checkpoint that it begins with, 0 for the first.
    era: u64,
    first_era: u64,
    /// Whether all is here that counted before it.
    is_whole: bool,
    early: Park,
    /// Author's lines that are known beforehand, while the replica is made anew.
    foreseen: Operations,
    is_stale: bool,
}

/// What a replica did with what it was given.
#[derive(Debug, Default)]
pub struct Taken {
    /// What is to be kept and passed on, in this order.
    pub kept: Vec<Verified<Operation>>,
    /// Two operations that one author signed for one number.
    pub twins: Vec<(OperationId, OperationId)>,
    /// Operations that it waits for.
    pub missing: BTreeSet<OperationId>,
    /// Operations that had been parked and do not count after all.
    pub refused: Vec<(Principal, Refusal)>,
}

/// Why an operation does not count.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// It belongs to another context.
    #[error("the operation belongs to another context")]
    Foreign,
    /// Its author may not write there.
    #[error("the author may not write there")]
    Access,
    /// The line of access was split before the change that it names.
    #[error("the operation names a change of access after the one at which access stands still")]
    Frozen,
    /// Its key is not known here, or it was sealed with another.
    #[error("the operation does not open: {0}")]
    Shut(#[source] wire::Error),
    /// Its numbers do not follow from what it builds on.
    #[error("{0} is not what follows from what the operation builds on")]
    Numbers(&'static str),
    /// A checkpoint has ended the era in which it was written, and does not have it.
    #[error("the operation was written before the newest checkpoint, which does not have it")]
    Behind,
    /// There is nothing to end, or too much.
    #[error("no checkpoint can be made: {0}")]
    Checkpoint(&'static str),
    /// Its author has written too much.
    #[error(
        "the author has written all that one may in one context: {OPERATIONS_PER_AUTHOR_MAX} operations, {} MiB",
        BYTES_PER_AUTHOR_MAX / 1024 / 1024
    )]
    Quota,
    /// This node has no key of the author, or the author is not a reader.
    #[error("nobody who may read the context is on this node")]
    NotReader,
    /// It breaks a rule of its format.
    #[error(transparent)]
    Malformed(wire::Error),
}

/// A replica of nothing.
const REPLICA_BYTES: u64 = 4 * 1024;
/// How often a statement that is held as a whole stands in memory: as its bytes, and as what they say, which is no smaller.
const STATEMENT_COPIES: usize = 3;

enum One {
    Known,
    Early(OperationId),
    Waits,
    Taken,
}

/// Who may do what, as people write it (AMP `access_control`): the owner may do all.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rights {
    /// Who may read; whoever may write may read as well.
    pub read: BTreeSet<Principal>,
    /// Who may write below which paths.
    pub write: BTreeMap<Principal, BTreeSet<Path>>,
}

impl Replica {
    /// A replica that knows how the context began, for the readers whose keys are `own`.
    pub fn new(genesis: Verified<Genesis>, own: Vec<PrincipalKey>) -> Self {
        let id = ContextId::from_bytes(genesis.name());
        let chain = Chain::new(id, &genesis);
        Self {
            id,
            genesis,
            chain,
            own,
            keys: BTreeMap::new(),
            operations: Operations::default(),
            shared: Fold::default(),
            private: BTreeMap::new(),
            merged: Merged::default(),
            era: 0,
            first_era: 0,
            is_whole: true,
            early: Park::default(),
            foreseen: Operations::default(),
            is_stale: false,
        }
    }

    /// Which context it is.
    pub fn id(&self) -> ContextId {
        self.id
    }

    /// How it began.
    pub fn genesis(&self) -> &Verified<Genesis> {
        &self.genesis
    }

    /// The access to it.
    pub fn chain(&self) -> &Chain {
        &self.chain
    }

    /// What was written to it.
    pub fn operations(&self) -> &Operations {
        &self.operations
    }

    /// How many operations are parked.
    pub fn parked(&self) -> usize {
        self.early.len()
    }

    /// About how many bytes it takes in memory at most. What the fold has hidden meanwhile still counts.
    pub fn held_bytes(&self) -> u64 {
        let whole = self.chain.len_bytes().saturating_add(self.early.len_bytes()).saturating_mul(STATEMENT_COPIES);
        let begun = self.shared.held_bytes().saturating_add(self.merged.held_bytes());
        let held = self.operations.held_bytes().saturating_add(begun).saturating_add(u64::try_from(whole).unwrap_or(u64::MAX));
        REPLICA_BYTES.saturating_add(held)
    }

    /// Gives back all that are parked, for a replica that is made anew.
    pub fn take_parked(&mut self) -> Vec<Verified<Operation>> {
        self.early.take_all()
    }

    /// Whether something counts in what it shows that does not count any more, or the other way round: it must be made anew.
    pub fn is_stale(&self) -> bool {
        self.is_stale
    }

    /// Whether all is here that counted before its era; otherwise what it shows lacks what another reader must give ([`Replica::recall`]).
    pub fn is_whole(&self) -> bool {
        self.is_whole
    }

    /// The first era whose operations are here: the one before the newest, unless this replica came later.
    pub fn first_era(&self) -> u64 {
        self.first_era
    }

    /// Whether `id` is the name of a checkpoint, which stands in the graph as an operation does.
    pub fn is_checkpoint(&self, id: OperationId) -> bool {
        self.chain.checkpoints().iter().any(|era| self.root(*era) == Some(id))
    }

    /// What stands in the graph for the checkpoint that an era begins with.
    pub fn root(&self, era: u64) -> Option<OperationId> {
        self.chain.at(era).map(|checkpoint| OperationId::from_bytes(checkpoint.name()))
    }

    /// What its readers share.
    pub fn shared(&self) -> Value {
        self.shared.value()
    }

    /// What is at `path`, as far as `reader` may see it.
    pub fn get(&self, path: &Path, reader: Principal) -> Option<Value> {
        let (memory, below) = self.memory(path, reader)?;
        memory.get(below)
    }

    /// Of what kind that is, if it can be told at little cost ([`Fold::kind`]).
    pub fn kind(&self, path: &Path, reader: Principal) -> Option<Kind> {
        let (memory, below) = self.memory(path, reader)?;
        memory.kind(below)
    }

    /// The memory in which `path` lies, as far as `reader` may see it, and the way there.
    fn memory<'p>(&self, path: &'p Path, reader: Principal) -> Option<(&Fold, &'p [String])> {
        match (path.private_to(), path.segments()) {
            (None, [_, below @ ..]) => Some((&self.shared, below)),
            (Some(owner), [_, _, below @ ..]) if owner == reader => Some((self.private.get(&owner)?, below)),
            _ => None,
        }
    }

    /// The memory of `agent`, if it is one of this node's and has written to it.
    pub fn private(&self, agent: Principal) -> Option<Value> {
        self.private.get(&agent).map(Fold::value)
    }

    /// The hash of what its readers share; the same on all replicas that hold the same.
    pub fn state_hash(&self) -> [u8; 32] {
        state_hash(&self.shared())
    }

    /// Takes in a change of access.
    ///
    /// # Errors
    /// If it does not count; nothing was changed.
    pub fn on_access(&mut self, access: Verified<Access>) -> Result<(Step, Taken), chain::Refusal> {
        let before = self.chain.tip().cloned();
        let step = self.chain.on_change(access)?;
        let mut taken = Taken::default();
        match step {
            Step::Added => {
                self.learn_keys();
                if let (Some(before), Some(after)) = (before, self.chain.tip()) {
                    self.is_stale |= self.takes_back(&before, after) || after.checkpoint.is_some();
                }
                let parked = self.early.take_all();
                self.take(parked, &mut taken);
            }
            Step::Split => {
                let epoch = self.chain.epoch();
                let takes_back = before.is_some_and(|before| before.epoch > epoch) && !self.operations.is_empty();
                self.is_stale |= takes_back || self.era > self.chain.newest_era();
            }
            Step::Known | Step::Early => {}
        }
        Ok((step, taken))
    }

    /// Whether something that counted does not count after this change.
    fn takes_back(&self, before: &Access, after: &Access) -> bool {
        chain::losers(before, after).into_iter().any(|author| {
            let cut = after.cuts.iter().find(|cut| cut.author == author).and_then(|cut| cut.last);
            let lies_beyond = |last: Last| cut.is_none_or(|cut| cut.seq < last.seq || cut.seq == last.seq && cut.id != last.id);
            self.operations.last(author).is_some_and(lies_beyond) || self.operations.has_twins(author)
        })
    }

    /// The keys that the newest change gives to this node, and all that they lead back to.
    fn learn_keys(&mut self) {
        let Some(tip) = self.chain.tip() else { return };
        if !self.keys.contains_key(&tip.key_epoch) {
            let Some(key) = self.own.iter().find_map(|own| ContextKey::of(tip, own).ok()) else { return };
            self.keys.insert(tip.key_epoch, key);
        }
        for access in self.chain.changes().iter().rev() {
            let before = access.key_epoch.saturating_sub(1);
            if let Some(sealed) = &access.previous_key
                && !self.keys.contains_key(&before)
                && let Some(previous) = self.keys.get(&access.key_epoch).and_then(|key| key.open_previous(sealed).ok())
            {
                self.keys.insert(before, previous);
            }
        }
    }

    /// Takes in an operation, and all that waited for it.
    ///
    /// # Errors
    /// If it does not count; nothing was changed.
    pub fn on_operation(&mut self, operation: Verified<Operation>) -> Result<Taken, Refusal> {
        let mut taken = Taken::default();
        let id = operation.id();
        match self.take_one(operation, &mut taken)? {
            One::Taken => {
                let freed = self.early.freed_by(id);
                self.take(freed, &mut taken);
            }
            One::Early(missing) => drop(taken.missing.insert(missing)),
            One::Known | One::Waits => {}
        }
        Ok(taken)
    }

    fn take(&mut self, operations: Vec<Verified<Operation>>, taken: &mut Taken) {
        let mut queue = VecDeque::from(operations);
        while let Some(operation) = queue.pop_front() {
            let (id, author) = (operation.id(), operation.header.author);
            match self.take_one(operation, taken) {
                Ok(One::Taken) => queue.extend(self.early.freed_by(id)),
                Ok(One::Early(missing)) => drop(taken.missing.insert(missing)),
                Ok(One::Known | One::Waits) => {}
                Err(refusal) => taken.refused.push((author, refusal)),
            }
        }
    }

    fn take_one(&mut self, operation: Verified<Operation>, taken: &mut Taken) -> Result<One, Refusal> {
        let (id, author) = (operation.id(), operation.header.author);
        if self.operations.get(id).is_some() {
            return Ok(One::Known);
        }
        if operation.header.context != self.id {
            return Err(Refusal::Foreign);
        }
        if operation.header.acl_epoch > self.chain.epoch() {
            if self.chain.split().is_some() {
                return Err(Refusal::Frozen);
            }
            self.park(operation, None);
            return Ok(One::Waits);
        }
        let era = self.chain.era(operation.header.acl_epoch);
        if era > self.era {
            // The replica is to be made anew first.
            self.park(operation, None);
            return Ok(One::Waits);
        }
        if era < self.era || !self.is_before_end(era, id, &operation.header) {
            return Err(Refusal::Behind);
        }
        let before = self.chain.last_before(era, author);
        if operation.header.seq.saturating_sub(before.map_or(0, |last| last.seq.saturating_add(1))) >= OPERATIONS_PER_AUTHOR_MAX {
            return Err(Refusal::Quota);
        }
        let body = self.open(&operation)?;
        let paths: BTreeSet<&Path> = body.iter().flat_map(|body| &body.items).map(|item| item.path()).collect();
        if !self.had_right(&operation.header, &paths) {
            return Err(Refusal::Access);
        }
        let is_end = |parent: OperationId| before.is_some_and(|last| last.id == parent) || self.root(era) == Some(parent);
        let missing = operation.header.parents().find(|parent| self.operations.get(*parent).is_none() && !is_end(*parent));
        if let Some(missing) = missing {
            self.park(operation, Some(missing));
            return Ok(One::Early(missing));
        }
        let counts = !self.is_cut(id, &operation.header, &paths);
        let entry = self.follows(&operation, body.as_ref(), counts)?;
        if let Some(body) = body.as_ref().filter(|_| counts) {
            self.note_merged(&operation.header, body);
            let memory = if operation.header.is_private { self.private.entry(author).or_default() } else { &mut self.shared };
            memory.apply_all(id, operation.header.lamport, &body.items);
        }
        self.insert(operation, entry, taken);
        Ok(One::Taken)
    }

    /// Which paths an operation of `author`, written at change `epoch`, may speak for.
    pub fn limits(&self, author: Principal, epoch: u64) -> BTreeSet<Path> {
        let access = self.chain.at(epoch).filter(|access| access.owner != author);
        let limits = access.and_then(|access| access.writers.iter().find(|writer| writer.principal == author));
        limits.map_or_else(|| BTreeSet::from([Path::shared()]), |writer| writer.prefixes.iter().cloned().collect())
    }

    fn note_merged(&mut self, header: &Header, body: &Body) {
        let Some(context) = body.source else { return };
        // What stands in a private memory not everybody knows.
        if header.is_private {
            return;
        }
        let below: Vec<Path> = self.limits(header.author, header.acl_epoch).into_iter().collect();
        for operation in &body.sources {
            self.merged.note(Source { context, operation: *operation, below: below.clone() }, header.lamport);
        }
    }

    /// What it has of other contexts.
    pub fn merged(&self) -> &Merged {
        &self.merged
    }

    fn park(&mut self, operation: Verified<Operation>, missing: Option<OperationId>) {
        let Header { author, is_private, .. } = operation.header;
        let has_right = |access: &Access| {
            let writes = || access.writers.binary_search_by_key(&author, |writer| writer.principal).is_ok();
            if is_private { access.may_read(author) } else { author == access.owner || writes() }
        };
        let may_write = self.chain.tip().is_some_and(|tip| has_right(tip));
        self.early.put(operation, missing, may_write);
    }

    fn insert(&mut self, operation: Verified<Operation>, entry: Entry, taken: &mut Taken) {
        let (id, author) = (operation.id(), operation.header.author);
        self.operations.insert(id, entry, &operation.header);
        taken.twins.extend(self.operations.twin(id).map(|twin| (twin, id)));
        // Which of two branches lies before a cut is known only once the end of the line is here.
        self.is_stale |= self.operations.has_twins(author) && self.ends_cut_line(author, id);
        taken.kept.push(operation);
    }

    fn ends_cut_line(&self, author: Principal, id: OperationId) -> bool {
        let is_end = |cut: &Cut| cut.author == author && cut.last.is_some_and(|last| last.id == id);
        self.chain.changes().iter().any(|access| access.cuts.iter().any(is_end))
    }

    /// What stands in an operation; nothing that this node can read if it is in the memory of somebody else's agent. An agent of this node
    /// that wrote nonsense there is not refused either: nobody else can tell, and what others build on it must count here as there.
    fn open(&self, operation: &Operation) -> Result<Option<Body>, Refusal> {
        let header = &operation.header;
        if header.is_private {
            let Some(own) = self.own.iter().find(|own| own.principal() == header.author) else { return Ok(None) };
            let body = ContextKey::private(own, self.id).open_operation(operation).ok();
            return Ok(body.filter(|body| body.private_to() == Some(header.author)));
        }
        let key = self.key_at(header.acl_epoch).ok_or(Refusal::NotReader)?;
        let body = key.open_operation(operation).map_err(Refusal::Shut)?;
        if body.private_to().is_none() { Ok(Some(body)) } else { Err(Refusal::Access) }
    }

    /// What stands in an operation, as far as `reader` may see it; it must be one of this node's.
    pub fn open_for(&self, operation: &Operation, reader: Principal) -> Option<Body> {
        let is_visible = !operation.header.is_private || operation.header.author == reader;
        if is_visible { self.open(operation).ok().flatten() } else { None }
    }

    /// The operations and checkpoints whose names begin with these hexadecimal digits; of many at least two.
    pub fn named(&self, digits: &str) -> Vec<OperationId> {
        let range = OperationId::beginning(digits);
        let roots = self.chain.checkpoints().iter().filter(|era| **era >= self.first_era).filter_map(|era| self.root(*era));
        let roots = roots.filter(|root| range.as_ref().is_some_and(|range| range.contains(root)));
        self.operations.named(digits).into_iter().chain(roots).collect()
    }

    fn key_at(&self, epoch: u64) -> Option<&ContextKey> {
        self.keys.get(&self.chain.at(epoch)?.key_epoch)
    }

    fn had_right(&self, header: &Header, paths: &BTreeSet<&Path>) -> bool {
        if header.is_private {
            self.chain.could_read(header.author, header.acl_epoch)
        } else {
            self.chain.could_write(header.author, header.acl_epoch, paths.iter().copied())
        }
    }

    fn is_cut(&self, id: OperationId, header: &Header, paths: &BTreeSet<&Path>) -> bool {
        let (author, seq) = (header.author, header.seq);
        // Who can open a private memory and who cannot must judge alike: all that counts there is whether its author may read.
        let shared = if header.is_private { BTreeSet::new() } else { paths.clone() };
        let lines = if self.foreseen.is_empty() { &self.operations } else { &self.foreseen };
        let is_before = |cut: &Cut| cut.last.is_some_and(|last| lines.is_on_line(id, seq, author, last));
        !self.chain.cuts(author, header.acl_epoch, &shared).iter().all(is_before)
    }

    /// Its place in the graph, if its numbers are those that follow from what it builds on, all of which is there.
    fn follows(&self, operation: &Verified<Operation>, body: Option<&Body>, counts: bool) -> Result<Entry, Refusal> {
        let header = &operation.header;
        // What an earlier era held is told by the checkpoint, and by nothing else.
        let entry_of = |id| self.operations.get(id).filter(|entry| entry.acl_epoch >= self.era);
        let before = self.chain.last_before(self.era, header.author);
        let mut lamport = self.clock();
        for id in header.parents() {
            let Some(parent) = entry_of(id) else {
                let is_known = header.prev == Some(id) && before.is_some_and(|last| last.id == id);
                let is_root = header.deps.contains(&id) && self.root(self.era) == Some(id);
                if is_known || is_root {
                    continue;
                }
                return Err(Refusal::Numbers("prev"));
            };
            lamport = lamport.max(parent.lamport);
            if parent.acl_epoch > header.acl_epoch {
                return Err(Refusal::Numbers("acl_epoch"));
            }
        }
        if header.lamport.checked_sub(1) != Some(lamport) {
            return Err(Refusal::Numbers("lamport"));
        }
        let prev = header.prev.and_then(entry_of);
        let seq_before = match prev {
            Some(prev) if prev.author != header.author => return Err(Refusal::Numbers("seq")),
            Some(prev) => Some(prev.seq),
            None => before.map(|last| last.seq),
        };
        // Whoever wrote before goes on from there.
        if header.seq != seq_before.map_or(0, |seq| seq.saturating_add(1)) || header.prev.is_some() != seq_before.is_some() {
            return Err(Refusal::Numbers("seq"));
        }
        // What stands in a private memory cannot count: not everybody knows it.
        let shared = body.filter(|_| !header.is_private);
        let bytes = u64::try_from(operation.len_bytes()).unwrap_or(u64::MAX).saturating_add(shared.map_or(0, takes_bytes));
        let line_bytes = prev.map_or(0, |prev| prev.line_bytes).saturating_add(bytes);
        let written = self.operations.written(header.author);
        let has_branched = written.0 >= BRANCHES_PER_AUTHOR_MAX * OPERATIONS_PER_AUTHOR_MAX
            || written.1.saturating_add(bytes) > BRANCHES_PER_AUTHOR_MAX * BYTES_PER_AUTHOR_MAX;
        if line_bytes > BYTES_PER_AUTHOR_MAX || has_branched {
            return Err(Refusal::Quota);
        }
        let Header { author, seq, prev, lamport, acl_epoch, .. } = *header;
        Ok(Entry { author, seq, prev, lamport, acl_epoch, line_bytes, counts, skip: None })
    }

    /// The next operation of the author with `key`, which does what `body` says, to be taken in like any other.
    ///
    /// # Errors
    /// If the author may not, or `body` breaks a rule.
    pub fn draft(&self, key: &PrincipalKey, body: &Body, at: Timestamp, rng: &mut impl CryptoRng) -> Result<Verified<Operation>, Refusal> {
        let author = key.principal();
        let last = self.last(author);
        let prev = last.map(|last| last.id);
        let root = self.root(self.era);
        let mut deps: Vec<(u64, OperationId)> = self
            .operations
            .heads()
            .iter()
            .filter(|id| Some(**id) != prev)
            .filter_map(|id| Some((if root == Some(*id) { self.clock() } else { self.operations.get(*id)?.lamport }, *id)))
            .collect();
        // Of too many, those that are ahead of the others.
        deps.sort_unstable_by(|a, b| b.cmp(a));
        deps.truncate(DEPENDENCIES_MAX);
        let lamport_before = prev.and_then(|prev| self.operations.get(prev)).map_or(0, |entry| entry.lamport).max(self.clock());
        let lamport = deps.first().map_or(0, |(lamport, _)| *lamport).max(lamport_before);
        let mut deps: Vec<OperationId> = deps.into_iter().map(|(_, id)| id).collect();
        deps.sort_unstable();
        let header = Header {
            v: wire::VERSION,
            context: self.id,
            author,
            seq: last.map_or(0, |last| last.seq.saturating_add(1)),
            prev,
            deps,
            lamport: lamport.saturating_add(1),
            acl_epoch: self.chain.epoch(),
            is_private: body.private_to().is_some(),
            at,
        };
        let paths: BTreeSet<&Path> = body.items.iter().map(|item| item.path()).collect();
        let right = body.private_to().is_none_or(|owner| owner == author) && self.had_right(&header, &paths);
        if !right {
            return Err(Refusal::Access);
        }
        let sealed_with = if header.is_private {
            ContextKey::private(key, self.id)
        } else {
            self.key_at(header.acl_epoch).cloned().ok_or(Refusal::NotReader)?
        };
        let operation = sealed_with.seal_operation(header, body, rng).map_err(Refusal::Malformed)?;
        Signed::sign(operation, key).map_err(Refusal::Malformed)
    }

    /// What the owner's next change of access says, to be taken in like any other.
    ///
    /// # Errors
    /// If `key` is not the owner's, or the rights break a rule.
    pub fn draft_access(
        &self,
        key: &PrincipalKey,
        rights: &Rights,
        expires_at: Timestamp,
        at: Timestamp,
        rng: &mut impl CryptoRng,
    ) -> Result<Verified<Access>, Refusal> {
        if self.chain.split().is_some() {
            return Err(Refusal::Frozen);
        }
        let owner = self.genesis.owner;
        if key.principal() != owner {
            return Err(Refusal::Access);
        }
        let before = self.chain.tip();
        let readers: BTreeSet<Principal> = rights.read.iter().chain(rights.write.keys()).copied().chain([owner]).collect();
        let writers: Vec<Writer> = rights
            .write
            .iter()
            .filter(|(principal, _)| **principal != owner)
            .map(|(principal, prefixes)| Writer { principal: *principal, prefixes: prefixes.iter().cloned().collect() })
            .collect();
        let loses_reader = before.is_some_and(|before| before.readers.iter().any(|reader| !readers.contains(&reader.principal)));
        let (context_key, key_epoch, previous_key) = match before {
            Some(before) if !loses_reader => {
                let key = self.keys.get(&before.key_epoch).cloned().ok_or(Refusal::NotReader)?;
                (key, before.key_epoch, before.previous_key)
            }
            Some(before) => {
                let previous = self.keys.get(&before.key_epoch).ok_or(Refusal::NotReader)?;
                let key = ContextKey::random(rng);
                let sealed = key.seal_previous(previous);
                (key, before.key_epoch + 1, Some(sealed))
            }
            None => (ContextKey::random(rng), 1, None),
        };
        let seal = |principal: Principal, rng: &mut _| {
            let sealed_key = context_key.seal_to(principal, self.id, rng).map_err(Refusal::Malformed)?;
            Ok(Reader { principal, sealed_key })
        };
        let mut access = Access {
            v: wire::VERSION,
            context: self.id,
            owner,
            epoch: self.chain.epoch().saturating_add(1),
            prev: before.map_or_else(|| self.id.to_bytes(), Verified::name),
            writers,
            readers: readers.into_iter().map(|principal| seal(principal, rng)).collect::<Result<_, Refusal>>()?,
            key_epoch,
            key_check: context_key.check(),
            previous_key,
            cuts: Vec::new(),
            expires_at: expires_at.max(self.chain.expires_at()),
            at,
            checkpoint: None,
        };
        // A cut for everybody who may less after the change than before.
        let losers = before.map(|before| chain::losers(before, &access)).unwrap_or_default();
        access.cuts = losers.into_iter().map(|author| Cut { author, last: self.last(author) }).collect();
        Signed::sign(access, key).map_err(Refusal::Malformed)
    }

    /// How far it has come. Of more branches than a message holds, each author's longest come first: whoever signs many operations of one
    /// number must not keep the others from being told of.
    ///
    /// A context in which more than [`TIPS_MAX`] authors ever wrote is told of in part. What the others wrote is then sent anew in each
    /// exchange; if that is more than an answer holds, two replicas complete each other no further. Its owner forks such a context.
    pub fn heads(&self) -> Heads {
        let is_longest = |tip: &Tip| self.last(tip.author).is_some_and(|last| last.id == tip.id);
        let (mut tips, branches): (Vec<Tip>, Vec<Tip>) = self.tips().into_iter().partition(is_longest);
        tips.extend(branches);
        tips.truncate(TIPS_MAX);
        tips.sort_unstable();
        Heads { context: self.id, epoch: self.chain.epoch(), access: self.chain.tip().map_or([0; 32], Verified::name), tips }
    }

    /// The last operations of all authors in this era.
    pub fn tips(&self) -> Vec<Tip> {
        self.operations.tips().into_iter().filter(|tip| self.is_of_era(tip.id)).collect()
    }

    /// What a replica with those tips lacks of this era, in an order in which each builds on those before it.
    pub fn beyond(&self, tips: &[Tip]) -> Vec<OperationId> {
        self.operations.beyond(tips).into_iter().filter(|id| self.is_of_era(*id)).collect()
    }

    fn is_of_era(&self, id: OperationId) -> bool {
        self.operations.get(id).is_some_and(|entry| entry.acl_epoch >= self.era)
    }

    /// The last operation of an author, of this era or as the checkpoint names it.
    pub fn last(&self, author: Principal) -> Option<Last> {
        self.operations.last(author).filter(|last| self.is_of_era(last.id)).or_else(|| self.chain.last_before(self.era, author))
    }
}

/// The hash of what readers share.
pub(super) fn state_hash(shared: &Value) -> [u8; 32] {
    blake3::derive_key("meshwork 2026-11 context state", shared.to_string().as_bytes())
}

/// What the items of an operation count beside its bytes.
pub fn takes_bytes(body: &Body) -> u64 {
    let names = |item: &Item| u64::try_from(item.path().segments().len()).unwrap_or(u64::MAX).saturating_sub(1);
    body.items.iter().map(|item| names(item).saturating_mul(NAME_BYTES).saturating_add(ITEM_BYTES)).sum()
}

/// How a context begins: what its owner signs, to be followed by the first change of access.
///
/// # Errors
/// If what it says breaks a rule.
pub fn begin(key: &PrincipalKey, genesis: Genesis) -> Result<Verified<Genesis>, Refusal> {
    debug_assert_eq!(genesis.signer(), key.principal(), "an owner signs for itself");
    Signed::sign(genesis, key).map_err(Refusal::Malformed)
}
