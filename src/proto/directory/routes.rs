//! The directory as the invocation plane reads it: who offers which name, and the rankings that calls share.
//!
//! [`Routes`] is an immutable snapshot that the event loop replaces; entries are shared, so a new snapshot copies none. A call without
//! constraints of its own is ranked as every other call of that capability, so [`Rankings`] keeps one [`Ranking`] per capability: it
//! is made anew when the snapshot was replaced, because somebody may have come or gone, or when it is [`AGE_MAX`] old, because calls
//! have taught something since. In between, a call costs the same whether one or a thousand agents offer what it asks for.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::rank::{self, Answer, Ranking, Rules};
use super::state::Entry;
use crate::model::{AgentId, CapabilityName};
use crate::proto::peers::trust::Ledger;
use crate::wire::directory::{Query, Wanted};

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

    /// Says who offers `name`; `entries` in the order of the agents' ids.
    pub(super) fn set(&mut self, name: CapabilityName, entries: Vec<Arc<Entry>>) {
        self.generation = self.generation.wrapping_add(1);
        if entries.is_empty() {
            self.entries_by_name.remove(&name);
        } else {
            self.entries_by_name.insert(name, entries.into());
        }
    }

    /// Ranks who may do what `query` asks for; its text is not considered. With `only` nobody else is looked at.
    pub fn rank(&self, query: &Query, only: Option<AgentId>, rules: &Rules, ledger: &Ledger, now: Duration) -> Answer {
        let mut answer = Answer::default();
        let mut seen = BTreeSet::new();
        for name in &query.capabilities {
            let entries = self.entries(name);
            let entries = match only {
                None => entries,
                Some(agent) => entries.binary_search_by(|entry| entry.record.agent.cmp(&agent)).map_or(&[][..], |at| &entries[at..=at]),
            };
            for entry in entries {
                if query.capabilities.len() == 1 || seen.insert(entry.record.agent) {
                    consider(entry, query, ledger, now, rules, &mut answer);
                }
            }
        }
        rank::order(&mut answer.candidates, &rules.weights, query.constraints.max_cost);
        answer
    }
}

/// Takes an agent into the answer with the capability that fits best, or with the reason why none does.
pub(super) fn consider(entry: &Arc<Entry>, query: &Query, ledger: &Ledger, now: Duration, rules: &Rules, answer: &mut Answer) {
    let fits = entry.record.capabilities.iter().enumerate().filter_map(|(at, offered)| Some((at, offered, rank::fit(offered, query)?)));
    let (mut judged, mut reason) = (Vec::new(), None);
    for (at, offered, fit) in fits {
        match rank::judge(entry, at, fit, query, ledger.estimate(entry.record.agent, &offered.id, now), rules) {
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

/// Whether `query` asks for one capability and nothing else, so that its ranking is everybody's.
pub fn is_plain(query: &Query) -> bool {
    query.capabilities.len() == 1 && query.text.is_none() && query.version.is_none() && query.constraints == Wanted::default()
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
