//! Keeping and counting receipts of others.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::{Attested, PIN_FLOW, Pair};
use crate::model::{AgentId, CapabilityName, NodeId, Timestamp};
use crate::wire::Verified;
use crate::wire::directory::CLOCK_SKEW_MS_MAX;
use crate::wire::receipt::{RECEIPTS_MAX, Receipt};

/// Nodes that may be pinned. Whose word counts is a person's choice, and nobody judges more than a handful.
pub const PINS_MAX: usize = 16;
/// Receipts of one issuer that are kept; the one whose window ended first makes room.
const PER_ISSUER_MAX: usize = RECEIPTS_MAX;
/// Receipts that are kept of all issuers without a pin together: something for people to look at, no more.
const UNPINNED_MAX: usize = 512;

/// Who pinned a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pinned {
    /// The configuration (`routing.pinned`).
    Configured,
    /// Somebody, while the node ran.
    Added,
}

/// Why a receipt was not kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// It came from somebody else than its issuer, who should know better.
    Foreign,
    /// It is over.
    Expired,
    /// It was signed by a clock too far ahead of this one.
    Future,
    /// It is this node's own.
    Own,
    /// It is kept already.
    Known,
    /// A later window of the same issuer, agent and capability is kept.
    Older,
    /// Its issuer has signed something else about the same time; from now on neither counts.
    Contradicts,
}

impl Refusal {
    /// Whether only a cheat or a broken node sends such a thing.
    pub fn blames_peer(self) -> bool {
        matches!(self, Self::Foreign | Self::Contradicts)
    }

    /// A constant word for counters.
    pub fn label(self) -> &'static str {
        match self {
            Self::Foreign => "foreign",
            Self::Expired => "expired",
            Self::Future => "future",
            Self::Own | Self::Known | Self::Older => "ignored",
            Self::Contradicts => "contradiction",
        }
    }
}

/// Whether a receipt that came `from` a peer is worth the cost of checking its signature.
///
/// # Errors
/// Why not.
pub fn screen(receipt: &Receipt, from: NodeId, now: Timestamp) -> Result<(), Refusal> {
    if receipt.issuer != from { Err(Refusal::Foreign) } else { timely(receipt, now) }
}

fn timely(receipt: &Receipt, now: Timestamp) -> Result<(), Refusal> {
    if receipt.expires_at <= now {
        return Err(Refusal::Expired);
    }
    let skewed = receipt.issued_at.saturating_since(now) > Duration::from_millis(CLOCK_SKEW_MS_MAX);
    if skewed { Err(Refusal::Future) } else { Ok(()) }
}

/// Whether a kept receipt counts, and if not, why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It does.
    Counted,
    /// Nobody has pinned its issuer.
    Unpinned,
    /// It is over.
    Expired,
    /// Its issuer hosts the agent itself.
    OwnAgent,
    /// The agent is not known here, so neither is who hosts it.
    UnknownAgent,
    /// Its issuer has signed two different receipts about the same time.
    Contradicted,
    /// It is this node's own word, for others; its calls count at first hand.
    Own,
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Counted => "counted",
            Self::Unpinned => "its issuer is not pinned",
            Self::Expired => "it has expired",
            Self::OwnAgent => "its issuer hosts the agent itself",
            Self::UnknownAgent => "the agent is not known here",
            Self::Contradicted => "its issuer signed two different receipts about the same time",
            Self::Own => "it is this node's own, whose calls count at first hand",
        })
    }
}

/// A kept receipt and what becomes of it.
#[derive(Debug, Clone)]
pub struct Judged {
    /// The receipt.
    pub receipt: Arc<Verified<Receipt>>,
    /// Whether it counts.
    pub verdict: Verdict,
    /// How many calls it counts as, after age and flow.
    pub calls: f64,
}

#[derive(Debug)]
struct Kept {
    receipt: Arc<Verified<Receipt>>,
    contradicted: bool,
}

/// Receipts of others, and whose word counts.
#[derive(Debug)]
pub struct Book {
    node: NodeId,
    half_life: Duration,
    pins_by_node: BTreeMap<NodeId, Pinned>,
    kept_by_issuer: BTreeMap<NodeId, BTreeMap<Pair, Kept>>,
}

impl Book {
    /// An empty book of `node`, whose own evidence fades to half in this time, and whose configuration pins these nodes.
    pub fn new(node: NodeId, half_life: Duration, configured: impl IntoIterator<Item = NodeId>) -> Self {
        let pins = configured.into_iter().filter(|pinned| *pinned != node).take(PINS_MAX).map(|pinned| (pinned, Pinned::Configured));
        Self { node, half_life, pins_by_node: pins.collect(), kept_by_issuer: BTreeMap::new() }
    }

    /// Whether the word of `node` counts.
    pub fn is_pinned(&self, node: NodeId) -> bool {
        self.pins_by_node.contains_key(&node)
    }

    /// Whose word counts, and who said so.
    pub fn pins(&self) -> impl Iterator<Item = (NodeId, Pinned)> {
        self.pins_by_node.iter().map(|(node, pinned)| (*node, *pinned))
    }

    /// The receipts of one issuer that are kept.
    pub fn receipts_of(&self, issuer: NodeId) -> impl Iterator<Item = &Arc<Verified<Receipt>>> {
        self.kept_by_issuer.get(&issuer).into_iter().flat_map(BTreeMap::values).map(|kept| &kept.receipt)
    }

    /// Lets the word of `node` count. False if there is no room for another pin, or if it is this node.
    pub fn handle_pin(&mut self, node: NodeId) -> bool {
        let known = self.is_pinned(node);
        let room = node != self.node && self.pins_by_node.len() < PINS_MAX;
        if !known && room {
            self.pins_by_node.insert(node, Pinned::Added);
        }
        known || room
    }

    /// Lets the word of `node` count no longer, unless the configuration says that it does.
    pub fn handle_unpin(&mut self, node: NodeId) {
        if self.pins_by_node.get(&node) == Some(&Pinned::Added) {
            self.pins_by_node.remove(&node);
            self.trim_unpinned();
        }
    }

    /// Keeps a receipt that its issuer sent now, or that was kept before a restart.
    ///
    /// # Errors
    /// Why it is not kept. [`Refusal::Contradicts`] changes what is kept: it does not count any more.
    pub fn on_receipt(&mut self, receipt: Verified<Receipt>, now: Timestamp) -> Result<Arc<Verified<Receipt>>, Refusal> {
        if receipt.issuer == self.node {
            return Err(Refusal::Own);
        }
        timely(&receipt, now)?;
        let pair = (receipt.agent, receipt.capability.clone());
        let kept_by_pair = self.kept_by_issuer.entry(receipt.issuer).or_default();
        if let Some(kept) = kept_by_pair.get_mut(&pair) {
            if kept.receipt.bytes() == receipt.bytes() {
                return Err(Refusal::Known);
            }
            if kept.receipt.overlaps(&receipt) {
                kept.contradicted = true;
                return Err(Refusal::Contradicts);
            }
            if receipt.window_end <= kept.receipt.window_start {
                return Err(Refusal::Older);
            }
        } else if kept_by_pair.len() >= PER_ISSUER_MAX {
            let oldest = kept_by_pair.iter().min_by_key(|(_, kept)| kept.receipt.window_end).map(|(pair, _)| pair.clone());
            oldest.map(|pair| kept_by_pair.remove(&pair));
        }
        let receipt = Arc::new(receipt);
        kept_by_pair.insert(pair, Kept { receipt: Arc::clone(&receipt), contradicted: false });
        self.trim_unpinned();
        Ok(receipt)
    }

    /// Forgets what has expired.
    pub fn handle_tick(&mut self, now: Timestamp) {
        for kept_by_pair in self.kept_by_issuer.values_mut() {
            kept_by_pair.retain(|_, kept| kept.receipt.expires_at > now);
        }
        self.kept_by_issuer.retain(|_, kept_by_pair| !kept_by_pair.is_empty());
    }

    /// Whether no receipt is kept.
    pub fn is_empty(&self) -> bool {
        self.kept_by_issuer.is_empty()
    }

    /// Every kept receipt and what becomes of it. `host_of` says where an agent is hosted, if that is known.
    pub fn judge(&self, now: Timestamp, host_of: impl Fn(AgentId) -> Option<NodeId>) -> Vec<Judged> {
        let mut judged: Vec<Judged> = Vec::new();
        let mut asked_by_edge = BTreeMap::<(NodeId, CapabilityName), f64>::new();
        for kept in self.kept_by_issuer.values().flat_map(BTreeMap::values) {
            let (receipt, verdict) = (&kept.receipt, self.verdict(kept, now, &host_of));
            // What is old has faded, as a node's own outcomes do. A busy agent asks for no more of the flow than one that was called
            // often enough, so that it does not drown the others.
            let calls = if verdict == Verdict::Counted { self.faded(receipt, now).min(PIN_FLOW) } else { 0.0 };
            *asked_by_edge.entry((receipt.issuer, receipt.capability.root())).or_default() += calls;
            judged.push(Judged { receipt: Arc::clone(receipt), verdict, calls });
        }
        for judged in &mut judged {
            let asked = asked_by_edge.get(&(judged.receipt.issuer, judged.receipt.capability.root()));
            judged.calls *= asked.map_or(0.0, |asked| (PIN_FLOW / asked).min(1.0));
        }
        judged
    }

    /// What the receipts that count say of each agent and capability.
    pub fn count(&self, now: Timestamp, host_of: impl Fn(AgentId) -> Option<NodeId>) -> BTreeMap<Pair, Attested> {
        let mut sums_by_pair = BTreeMap::<Pair, (Attested, f64)>::new();
        for Judged { receipt, calls, .. } in self.judge(now, host_of).iter().filter(|judged| judged.calls > 0.0) {
            let (sum, timed) = sums_by_pair.entry((receipt.agent, receipt.capability.clone())).or_default();
            let good = calls * share(receipt);
            sum.successes += good;
            sum.failures += calls - good;
            if let Some(latency_ms) = receipt.latency_ms {
                let before = sum.latency_ms.unwrap_or_default();
                *timed += good;
                sum.latency_ms = Some(before + (latency_ms - before) * good / *timed);
            }
        }
        sums_by_pair.into_iter().map(|(pair, (sum, _))| (pair, sum)).collect()
    }

    fn verdict(&self, kept: &Kept, now: Timestamp, host_of: &impl Fn(AgentId) -> Option<NodeId>) -> Verdict {
        if !self.is_pinned(kept.receipt.issuer) {
            return Verdict::Unpinned;
        }
        if kept.contradicted {
            return Verdict::Contradicted;
        }
        if kept.receipt.expires_at <= now {
            return Verdict::Expired;
        }
        match host_of(kept.receipt.agent) {
            None => Verdict::UnknownAgent,
            Some(host) if host == kept.receipt.issuer => Verdict::OwnAgent,
            Some(_) => Verdict::Counted,
        }
    }

    /// How many of a receipt's calls are left at its age.
    fn faded(&self, receipt: &Receipt, now: Timestamp) -> f64 {
        let age = now.saturating_since(receipt.window_end);
        let calls = f64::from(receipt.successes) + f64::from(receipt.failures);
        calls * 0.5_f64.powf(age.as_secs_f64() / self.half_life.as_secs_f64().max(f64::MIN_POSITIVE))
    }

    fn trim_unpinned(&mut self) {
        let unpinned = self.kept_by_issuer.iter().filter(|(issuer, _)| !self.is_pinned(**issuer));
        let mut subjects: Vec<(Timestamp, NodeId, Pair)> =
            unpinned.flat_map(|(issuer, kept)| kept.iter().map(|(pair, kept)| (kept.receipt.window_end, *issuer, pair.clone()))).collect();
        let over = subjects.len().saturating_sub(UNPINNED_MAX);
        if over == 0 {
            return;
        }
        subjects.sort_unstable();
        for (_, issuer, pair) in subjects.into_iter().take(over) {
            if let Some(kept_by_pair) = self.kept_by_issuer.get_mut(&issuer) {
                kept_by_pair.remove(&pair);
            }
        }
        self.kept_by_issuer.retain(|_, kept_by_pair| !kept_by_pair.is_empty());
    }
}

/// The share of a receipt's calls that ended well.
fn share(receipt: &Receipt) -> f64 {
    f64::from(receipt.successes) / (f64::from(receipt.successes) + f64::from(receipt.failures))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::proto::peers::trust::{Estimate, HALF_LIFE, Ledger, Outcome};
    use crate::wire::directory::tests::node_key;
    use crate::wire::receipt::tests::{body, receipt};
    use crate::wire::receipt::{RECEIPT_LIFETIME, WINDOW_MS_MAX};
    use crate::wire::{NodeKey, Signed};

    const END: u64 = 100_000_000;

    fn at(ms: u64) -> Timestamp {
        Timestamp::from_ms(ms)
    }

    fn pair(seed: u8, capability: &str) -> Pair {
        (AgentId::from_public_key([seed; 32]), capability.parse().expect("valid"))
    }

    /// Agents are hosted by somebody who issues nothing.
    fn elsewhere() -> impl Fn(AgentId) -> Option<NodeId> {
        let host = node_key().id();
        move |_| Some(host)
    }

    fn book(pinned: &[&NodeKey]) -> Book {
        Book::new(node_key().id(), HALF_LIFE, pinned.iter().map(|key| key.id()))
    }

    fn keep(book: &mut Book, receipt: Verified<Receipt>) {
        let now = receipt.issued_at;
        book.on_receipt(receipt, now).expect("kept");
    }

    fn verdicts(book: &Book, now: Timestamp, host_of: impl Fn(AgentId) -> Option<NodeId>) -> Vec<Verdict> {
        book.judge(now, host_of).iter().map(|judged| judged.verdict).collect()
    }

    #[test]
    fn the_word_of_a_pinned_issuer_counts_and_fades() {
        let friend = node_key();
        let mut book = book(&[&friend]);
        keep(&mut book, receipt(&friend, 1, "echo", END, (3, 1)));
        let fresh = book.count(at(END), elsewhere());
        assert_eq!(fresh[&pair(1, "echo")], Attested { successes: 3.0, failures: 1.0, latency_ms: Some(20.0) });
        let half_life_ms = u64::try_from(HALF_LIFE.as_millis()).expect("small");
        let later = book.count(at(END + half_life_ms), elsewhere());
        assert!((later[&pair(1, "echo")].calls() - 2.0).abs() < 1e-9);
        let over = at(END).saturating_add(RECEIPT_LIFETIME);
        assert_eq!(verdicts(&book, over, elsewhere()), [Verdict::Expired]);
        assert!(book.count(over, elsewhere()).is_empty());
        book.handle_tick(over);
        assert!(book.is_empty());
    }

    #[test]
    fn a_receipt_that_does_not_count_says_why() {
        let (friend, stranger) = (node_key(), node_key());
        let mut book = book(&[&friend]);
        keep(&mut book, receipt(&friend, 1, "echo", END, (1, 0)));
        assert_eq!(verdicts(&book, at(END), |_| Some(friend.id())), [Verdict::OwnAgent]);
        assert_eq!(verdicts(&book, at(END), |_| None), [Verdict::UnknownAgent]);
        keep(&mut book, receipt(&stranger, 1, "echo", END, (9, 0)));
        assert!(verdicts(&book, at(END), elsewhere()).contains(&Verdict::Unpinned));
        assert_eq!(book.count(at(END), |_| Some(friend.id())), BTreeMap::new());
        assert!((book.count(at(END), elsewhere())[&pair(1, "echo")].calls() - 1.0).abs() < 1e-9);
    }

    #[test]
    fn only_the_newest_window_is_kept() {
        let friend = node_key();
        let mut book = book(&[&friend]);
        let (old, new) = (receipt(&friend, 1, "echo", END, (9, 0)), receipt(&friend, 1, "echo", END + 60_000, (0, 2)));
        keep(&mut book, old.clone());
        assert_eq!(book.on_receipt(old.clone(), at(END)).expect_err("again"), Refusal::Known);
        keep(&mut book, new);
        assert_eq!(book.on_receipt(old, at(END + 60_000)).expect_err("played again"), Refusal::Older);
        assert_eq!(book.count(at(END + 60_000), elsewhere())[&pair(1, "echo")].failures, 2.0);
    }

    /// Threat T12: two receipts about one time prove a cheat, who is then not heard on this until he speaks of a later time.
    #[test]
    fn who_contradicts_himself_is_not_counted() {
        let friend = node_key();
        let mut book = book(&[&friend]);
        keep(&mut book, receipt(&friend, 1, "echo", END, (9, 0)));
        let other = receipt(&friend, 1, "echo", END + 30_000, (0, 9));
        let refusal = book.on_receipt(other, at(END + 30_000)).expect_err("it speaks of the same time");
        assert!(refusal == Refusal::Contradicts && refusal.blames_peer());
        assert_eq!(verdicts(&book, at(END + 30_000), elsewhere()), [Verdict::Contradicted]);
        keep(&mut book, receipt(&friend, 1, "echo", END + 60_000, (2, 0)));
        assert_eq!(verdicts(&book, at(END + 60_000), elsewhere()), [Verdict::Counted]);
    }

    /// Threat T7: a receipt is good in its time and from its issuer.
    #[test]
    fn what_is_over_or_not_yet_or_not_the_senders_is_refused() {
        let (friend, other) = (node_key(), node_key());
        let mut book = book(&[&friend]);
        let said = receipt(&friend, 1, "echo", END, (1, 0));
        let over = at(END).saturating_add(RECEIPT_LIFETIME);
        assert_eq!(book.on_receipt(said.clone(), over).expect_err("over"), Refusal::Expired);
        assert_eq!(book.on_receipt(said.clone(), at(END - CLOCK_SKEW_MS_MAX - 1)).expect_err("not yet"), Refusal::Future);
        assert_eq!(screen(&said, other.id(), at(END)), Err(Refusal::Foreign));
        assert_eq!(screen(&said, friend.id(), at(END)), Ok(()));
        let mut own = Book::new(friend.id(), HALF_LIFE, []);
        assert_eq!(own.on_receipt(said, at(END)).expect_err("own"), Refusal::Own);
    }

    #[test]
    fn pins_come_and_go_but_for_the_configured_ones() {
        let (configured, added) = (node_key(), node_key());
        let mut book = book(&[&configured]);
        assert!(!book.handle_pin(book.node), "nobody pins himself");
        assert!(book.handle_pin(added.id()) && book.handle_pin(added.id()));
        keep(&mut book, receipt(&added, 1, "echo", END, (1, 0)));
        assert_eq!(verdicts(&book, at(END), elsewhere()), [Verdict::Counted]);
        book.handle_unpin(added.id());
        book.handle_unpin(configured.id());
        assert_eq!(book.pins().collect::<Vec<_>>(), [(configured.id(), Pinned::Configured)]);
        assert_eq!(verdicts(&book, at(END), elsewhere()), [Verdict::Unpinned]);
        while book.pins_by_node.len() < PINS_MAX {
            assert!(book.handle_pin(node_key().id()));
        }
        assert!(!book.handle_pin(node_key().id()));
    }

    /// Strangers fill their own table and nobody else's.
    #[test]
    fn the_book_keeps_to_its_bounds() {
        let friend = node_key();
        let mut book = book(&[&friend]);
        let name = |number: u64| format!("test.c{number}");
        for number in 0..PER_ISSUER_MAX as u64 + 3 {
            keep(&mut book, receipt(&friend, 1, &name(number), END + number, (1, 0)));
        }
        assert_eq!(book.receipts_of(friend.id()).count(), PER_ISSUER_MAX);
        let stranger = node_key();
        for number in 0..5_u64 {
            let crowd = node_key();
            for subject in 0..PER_ISSUER_MAX as u64 {
                keep(&mut book, receipt(&crowd, 1, &name(subject), END + 1_000 * number + subject, (1, 0)));
            }
        }
        keep(&mut book, receipt(&stranger, 1, "echo", END + 900_000, (1, 0)));
        let kept: usize = book.kept_by_issuer.values().map(BTreeMap::len).sum();
        assert_eq!(
            (book.receipts_of(friend.id()).count(), book.receipts_of(stranger.id()).count(), kept),
            (PER_ISSUER_MAX, 1, PER_ISSUER_MAX + UNPINNED_MAX)
        );
        let friends = &book.kept_by_issuer[&friend.id()];
        assert!(!friends.contains_key(&pair(1, &name(0))) && friends.contains_key(&pair(1, &name(3))), "the oldest made room");
    }

    fn number_agent(number: u16) -> AgentId {
        let mut key = [9; 32];
        key[..2].copy_from_slice(&number.to_be_bytes());
        AgentId::from_public_key(key)
    }

    fn praise(issuer: &NodeKey, agent: AgentId, capability: &str) -> Verified<Receipt> {
        let said = Receipt { agent, capability: capability.parse().expect("valid"), ..body(issuer.id(), 1, "echo", END, (u32::MAX, 0)) };
        Signed::sign(said, issuer, None).expect("a valid receipt")
    }

    /// Threat T17: a thousand keys that praise one another gain nothing without a pin.
    #[test]
    fn a_crowd_without_a_pin_gains_nothing() {
        let friend = node_key();
        let mut book = book(&[&friend]);
        let crowd: Vec<NodeKey> = (0..1_000).map(|_| node_key()).collect();
        for (number, key) in (0..).zip(&crowd) {
            keep(&mut book, praise(key, number_agent((number + 1) % 1_000), "echo"));
        }
        assert!(book.count(at(END), elsewhere()).is_empty());
        assert!(book.kept_by_issuer.len() <= UNPINNED_MAX);
    }

    /// Threat T17: through one pinned liar a thousand identities gain together what one of them could have gained alone.
    #[test]
    fn a_pinned_liar_moves_no_more_with_a_thousand_agents_than_with_one() {
        let liar = node_key();
        let gain = |agents: u16| {
            let mut book = book(&[&liar]);
            for number in 0..agents {
                // Names under one root, since a query may ask for all of them at once.
                keep(&mut book, praise(&liar, number_agent(number), &format!("custom.deep.c{}", number % 7)));
            }
            let mut ledger = Ledger::new(10);
            let counted = book.count(at(END), elsewhere());
            let flow: f64 = counted.values().map(Attested::calls).sum();
            ledger.handle_attested(counted);
            let trusts = (0..agents).map(|number| {
                let name = format!("custom.deep.c{}", number % 7).parse().expect("valid");
                ledger.estimate(number_agent(number), &name, Duration::ZERO).trust
            });
            let strange = Estimate::stranger().trust;
            (flow, trusts.map(|trust| trust - strange).fold(0.0, f64::max))
        };
        let (flow_of_one, best_of_one) = gain(1);
        let (flow_of_all, best_of_all) = gain(1_000);
        assert!((flow_of_one - PIN_FLOW).abs() < 1e-6 && flow_of_all <= flow_of_one + 1e-6);
        assert!(best_of_all <= best_of_one && best_of_one < 34.0, "{best_of_all} {best_of_one}");
    }

    /// Threat T17: a new key with all the praise that a crowd and one pinned liar can give does not lift the old one's record,
    /// and one that is praised by a crowd alone is the stranger it was.
    #[test]
    fn a_new_key_brings_no_more_than_a_strangers_trust() {
        let (liar, crowd) = (node_key(), node_key());
        let (poor, fresh, name) = (number_agent(1), number_agent(2), "echo".parse().expect("valid"));
        let mut book = book(&[&liar]);
        keep(&mut book, praise(&liar, poor, "echo"));
        keep(&mut book, praise(&crowd, fresh, "echo"));
        let mut ledger = Ledger::new(10);
        for _ in 0..3 {
            ledger.handle_outcome(poor, &name, Outcome::Failure, Duration::ZERO);
        }
        ledger.handle_attested(book.count(at(END), elsewhere()));
        assert_eq!(ledger.estimate(fresh, &name, Duration::ZERO), Estimate::stranger());
        assert!(ledger.estimate(poor, &name, Duration::ZERO).trust < 30.0);
    }

    proptest! {
        /// Threat T17: whatever an issuer claims of whomever, at whatever age, its edge carries no more than its flow under one root.
        #[test]
        fn no_edge_carries_more_than_its_flow(
            claims in proptest::collection::vec((0_u8..4, 0_u8..6, 0_u32..u32::MAX, 0_u32..u32::MAX, 0_u64..2 * WINDOW_MS_MAX), 1..40),
        ) {
            let issuers: Vec<NodeKey> = (0..4).map(|_| node_key()).collect();
            let pinned = [&issuers[0], &issuers[1]];
            let mut book = book(&pinned);
            for (issuer, agent, successes, failures, age_ms) in claims {
                let failures = if successes == 0 { failures.max(1) } else { failures };
                // Some contradict one another or come too late, which is as well.
                let _ = book.on_receipt(receipt(&issuers[usize::from(issuer)], agent, "echo", END - age_ms, (successes, failures)), at(END));
            }
            let judged = book.judge(at(END), elsewhere());
            for issuer in &issuers {
                let flow: f64 = judged.iter().filter(|judged| judged.receipt.issuer == issuer.id()).map(|judged| judged.calls).sum();
                let flow_max = if book.is_pinned(issuer.id()) { PIN_FLOW } else { 0.0 };
                prop_assert!((0.0..=flow_max + 1e-9).contains(&flow), "{flow}");
            }
            let counted: f64 = book.count(at(END), elsewhere()).values().map(Attested::calls).sum();
            prop_assert!((counted - judged.iter().map(|judged| judged.calls).sum::<f64>()).abs() < 1e-9);
        }
    }
}
