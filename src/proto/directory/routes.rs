//! The directory as the invocation plane reads it: who offers which name, and the rankings that calls share.
//!
//! [`Routes`] is an immutable snapshot that the event loop replaces; entries are shared, so a new snapshot copies none. A call without
//! constraints of its own is ranked as every other call of that capability, so [`Rankings`] keeps one [`Ranking`] per capability: it
//! is made anew when the snapshot was replaced, because somebody may have come or gone, or when it is [`AGE_MAX`] old, because calls
//! have taught something since. In between, a call costs the same whether one or a thousand agents offer what it asks for.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use super::rank::{self, Answer, Asked, Ranking, Rules};
use super::state::Entry;
use crate::model::{AgentId, CapabilityName};
use crate::proto::peers::trust::Ledger;
use crate::wire::directory::Query;

/// How long a ranking is shared. Outcomes reach the ledger in batches of about this length anyway.
const AGE_MAX: Duration = Duration::from_millis(10);
/// Rankings that are kept; a node that calls more capabilities than this within [`AGE_MAX`] ranks some of them more often.
const RANKINGS_MAX: usize = 256;

/// An immutable index for the invocation plane: who offers which name. Cheap to replace, cheaper to read.
#[derive(Debug, Clone, Default)]
pub struct Routes {
    /// In the order of the agents' ids.
    entries_by_name: BTreeMap<CapabilityName, Arc<[Arc<Entry>]>>,
    /// Grows with every change.
    generation: u64,
}

impl Routes {
    /// Every known agent that offers `name` or something under it, whether it can be called or not.
    pub fn entries(&self, name: &CapabilityName) -> &[Arc<Entry>] {
        self.entries_by_name.get(name).map_or(&[], |entries| entries)
    }

    /// The names and headings under which anybody is known.
    pub fn names(&self) -> impl Iterator<Item = &CapabilityName> {
        self.entries_by_name.keys()
    }

    /// Whether somebody offers this, or something below it.
    pub fn offers(&self, name: &CapabilityName) -> bool {
        self.entries_by_name.contains_key(name)
    }

    /// Those of the names that are next to `asked` in their order, so that they begin like it: at most `count` on either side.
    pub fn names_beside(&self, asked: &CapabilityName, count: usize) -> impl Iterator<Item = &CapabilityName> {
        let before = self.entries_by_name.range(..asked).rev().take(count);
        let behind = self.entries_by_name.range((Bound::Excluded(asked), Bound::Unbounded)).take(count);
        before.chain(behind).map(|(name, _)| name)
    }

    /// Every known agent once, in the order of their ids.
    pub(super) fn everybody(&self) -> Vec<Arc<Entry>> {
        let mut entries = Vec::new();
        for (name, offering) in &self.entries_by_name {
            // An agent stands under each of its capabilities and the headings above them; the first of its own names is one of these.
            let first = |entry: &&Arc<Entry>| entry.record.capabilities.iter().map(|offered| &offered.id).min() == Some(name);
            entries.extend(offering.iter().filter(first).map(|entry| (entry.record.agent, Arc::clone(entry))));
        }
        entries.sort_unstable_by_key(|(agent, _)| *agent);
        entries.into_iter().map(|(_, entry)| entry).collect()
    }

    /// Says who offers `name`; `entries` in the order of the agents' ids.
    pub(super) fn set(&mut self, name: CapabilityName, entries: Vec<Arc<Entry>>) {
        self.generation = self.generation.wrapping_add(1);
        if entries.is_empty() {
            self.entries_by_name.remove(&name);
        } else {
            self.entries_by_name.insert(name, entries.into());
        }
    }

    /// Ranks who may do what `query` asks for by name. With `only` nobody else is looked at.
    pub fn rank(&self, query: &Query, only: Option<AgentId>, rules: &Rules, ledger: &Ledger, now: Duration) -> Answer {
        let (mut answer, asked) = (Answer::default(), Asked::new(query));
        let mut seen = BTreeSet::new();
        for name in &query.capabilities {
            let entries = self.entries(name);
            let entries = match only {
                None => entries,
                Some(agent) => entries.binary_search_by(|entry| entry.record.agent.cmp(&agent)).map_or(&[][..], |at| &entries[at..=at]),
            };
            for entry in entries {
                if query.capabilities.len() == 1 || seen.insert(entry.record.agent) {
                    consider(entry, &asked, ledger, now, rules, &mut answer);
                }
            }
        }
        rank::order(&mut answer.candidates, &rules.weights, query.constraints.max_cost);
        answer
    }
}

/// Takes an agent into the answer with the capability that fits best, or with the reason why none does.
pub(super) fn consider(entry: &Arc<Entry>, asked: &Asked<'_>, ledger: &Ledger, now: Duration, rules: &Rules, answer: &mut Answer) {
    let fits = entry.record.capabilities.iter().enumerate().filter_map(|(at, offered)| Some((at, offered, asked.fit(offered)?)));
    let (mut judged, mut reason) = (Vec::new(), None);
    for (at, offered, fit) in fits {
        match rank::judge(entry, at, fit, asked.query, ledger.estimate(entry.record.agent, &offered.id, now), rules) {
            Ok(candidate) => judged.push(candidate),
            Err(rejection) => reason = Some(rejection),
        }
    }
    // An agent that offers the capability in two versions, or two capabilities under one heading, answers with the best fit.
    let newest = |at: usize| entry.record.capabilities.get(at).map(|offered| &offered.version);
    let best = judged
        .into_iter()
        .max_by(|a, b| a.terms.r#match.total_cmp(&b.terms.r#match).then_with(|| newest(a.capability).cmp(&newest(b.capability))));
    match (best, reason) {
        (Some(candidate), _) => answer.candidates.push(candidate),
        (None, Some(reason)) => answer.reject(entry, reason),
        (None, None) => {}
    }
}

#[derive(Debug)]
struct Kept {
    ranking: Arc<Ranking>,
    generation: u64,
    at: Duration,
}

/// The rankings that calls share.
#[derive(Debug, Default)]
pub struct Rankings {
    kept_by_name: BTreeMap<CapabilityName, Kept>,
}

impl Rankings {
    /// The ranking for `name`, if it still holds.
    pub fn get(&self, name: &CapabilityName, routes: &Routes, now: Duration) -> Option<Arc<Ranking>> {
        let kept = self.kept_by_name.get(name)?;
        let holds = kept.generation == routes.generation && now.saturating_sub(kept.at) < AGE_MAX;
        holds.then(|| Arc::clone(&kept.ranking))
    }

    /// Keeps a ranking that was made of `routes` just now.
    pub fn insert(&mut self, name: CapabilityName, ranking: Arc<Ranking>, routes: &Routes, now: Duration) {
        if self.kept_by_name.len() >= RANKINGS_MAX && !self.kept_by_name.contains_key(&name) {
            let oldest = self.kept_by_name.iter().min_by_key(|(_, kept)| kept.at).map(|(name, _)| name.clone());
            oldest.and_then(|name| self.kept_by_name.remove(&name));
        }
        self.kept_by_name.insert(name, Kept { ranking, generation: routes.generation, at: now });
    }
}

#[cfg(test)]
impl Routes {
    /// Names that somebody offers; who does not matter.
    pub(crate) fn named(names: &[&str]) -> Self {
        let named = names.iter().map(|name| (name.parse().expect("a valid name"), Arc::from([])));
        Self { entries_by_name: named.collect(), generation: 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Now, Timestamp};
    use crate::proto::directory::{Config, State};
    use crate::wire::NodeKey;
    use crate::wire::directory::Wanted;
    use crate::wire::directory::tests::record;

    /// A call without constraints costs no ranking while one holds, however many agents there are.
    #[test]
    fn a_ranking_is_shared_until_it_is_old_or_somebody_came_or_went() {
        let (mut state, name) = (directory(), name("echo"));
        let routes = with_agent(&mut state, 1, "echo");
        let mut rankings = Rankings::default();
        assert!(rankings.get(&name, &routes, ms(0)).is_none());
        let ranking = Arc::new(Ranking::default());
        rankings.insert(name.clone(), Arc::clone(&ranking), &routes, ms(0));
        assert!((0..10).all(|at| rankings.get(&name, &routes, ms(at)).is_some_and(|kept| Arc::ptr_eq(&kept, &ranking))));
        assert!(rankings.get(&name, &routes, ms(10)).is_none(), "calls may have taught something");
        let changed = with_agent(&mut state, 2, "echo");
        assert!(rankings.get(&name, &changed, ms(1)).is_none(), "somebody came");
    }

    #[test]
    fn the_rankings_that_are_kept_are_bounded_and_the_oldest_goes_first() {
        let (mut rankings, routes) = (Rankings::default(), Routes::default());
        for number in 0..RANKINGS_MAX as u64 + 1 {
            rankings.insert(name(&format!("acme.n{number}")), Arc::default(), &routes, Duration::from_micros(number));
        }
        assert_eq!(rankings.kept_by_name.len(), RANKINGS_MAX);
        assert!(rankings.get(&name("acme.n0"), &routes, ms(1)).is_none());
        assert!(rankings.get(&name("acme.n1"), &routes, ms(1)).is_some());
    }

    /// News of one agent costs nothing for the thousand others of its capability.
    #[test]
    fn a_new_snapshot_shares_the_entries_of_whoever_did_not_change() {
        let mut state = directory();
        let before = with_agent(&mut state, 1, "echo");
        let after = with_agent(&mut state, 2, "echo");
        let kept = after.entries(&name("echo")).iter().filter(|entry| Arc::ptr_eq(entry, &before.entries(&name("echo"))[0])).count();
        assert_eq!((kept, after.entries(&name("echo")).len()), (1, 2));
    }

    #[test]
    fn a_query_for_one_agent_looks_at_nobody_else() {
        let mut state = directory();
        let routes = [1, 2, 3].map(|seed| with_agent(&mut state, seed, "echo")).into_iter().next_back().expect("three");
        let query = Query { capabilities: vec![name("echo")], text: None, version: None, constraints: Wanted::default(), limit: 1 };
        for entry in routes.entries(&name("echo")) {
            let agent = entry.record.agent;
            let answer = routes.rank(&query, Some(agent), &Rules::default(), &Ledger::new(1), ms(0));
            assert_eq!(answer.candidates.iter().map(rank::Candidate::agent).collect::<Vec<_>>(), [agent]);
        }
        let nobody = AgentId::from_public_key([9; 32]);
        assert!(routes.rank(&query, Some(nobody), &Rules::default(), &Ledger::new(1), ms(0)).candidates.is_empty());
    }

    fn directory() -> State {
        State::new(Config::new(node().id()))
    }

    fn with_agent(state: &mut State, seed: u8, capability: &str) -> Routes {
        state.handle_own_record(record(&node(), seed, 1, 1_000, &[capability]), Now { mono: ms(0), wall: Timestamp::from_ms(1_000) });
        state.changed_routes().expect("somebody came")
    }

    fn node() -> NodeKey {
        NodeKey::new(libp2p_identity::Keypair::ed25519_from_bytes([1; 32]).expect("32 bytes"))
    }

    fn name(text: &str) -> CapabilityName {
        text.parse().expect("a valid name")
    }

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }
}
