//! A query by words alone: every agent that is known must be looked at.
//!
//! That takes tenths of a second where a hundred thousand are, so it is done of a snapshot ([`Routes`]) and bit by bit: whoever drives it
//! does so beside the event loop, and holds the evidence, which calls write to all the time, for no longer than one [`Scan::step`]. The
//! answer is the one that [`super::State::query`] gives. An index of words would help little: a word that everybody uses is looked for as
//! often as any other, and then everybody is to be ranked.

use std::sync::Arc;
use std::time::Duration;

use super::rank::{self, Answer, Asked, Rules};
use super::routes::{Routes, consider};
use super::state::Entry;
use crate::proto::peers::trust::Ledger;
use crate::wire::directory::Query;

/// Agents that one step looks at: some tenths of a millisecond.
const STEP: usize = 256;

/// One query under way.
#[derive(Debug)]
pub struct Scan<'q> {
    asked: Asked<'q>,
    entries: std::vec::IntoIter<Arc<Entry>>,
    answer: Answer,
}

impl<'q> Scan<'q> {
    /// Begins to answer `query`, whose names are not considered.
    pub fn new(query: &'q Query, routes: &Routes) -> Self {
        Self { asked: Asked::new(query), entries: routes.everybody().into_iter(), answer: Answer::default() }
    }

    /// Looks at a few more. Whether any are left.
    pub fn step(&mut self, ledger: &Ledger, now: Duration, rules: &Rules) -> bool {
        for entry in self.entries.by_ref().take(STEP) {
            consider(&entry, &self.asked, ledger, now, rules, &mut self.answer);
        }
        self.entries.len() > 0
    }

    /// The answer, best first.
    pub fn finish(mut self, rules: &Rules) -> Answer {
        rank::order(&mut self.answer.candidates, &rules.weights, self.asked.query.constraints.max_cost);
        self.answer
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::test_runner::RngSeed;

    use super::*;
    use crate::model::{Now, Timestamp};
    use crate::proto::directory::rank::Candidate;
    use crate::proto::directory::{Config, State, Verdict};
    use crate::proto::peers::trust::Outcome;
    use crate::wire::directory::tests::record;
    use crate::wire::directory::{Capability, Wanted};
    use crate::wire::{AgentKey, NodeKey, Signed};

    const NOW: Now = Now { mono: Duration::from_secs(1), wall: Timestamp::from_ms(1_000) };
    /// Whole words, parts of others, and what is written in capitals or is no word.
    const WORDS: [&str; 9] = ["scan", "invoices", "VOICE", "Übersetzt", "übersetzt", "a", "b2", "ΟΔΟΣ", "-"];
    const NAMES: [&str; 6] = ["echo", "acme", "acme.scan", "acme.scan.b2", "text-analysis", "translation"];

    /// A name, a description and what it is best at.
    type Offered = (&'static str, String, String);

    /// The agents of this node or of another that was never reached, each with some capabilities.
    fn directory(agents: &[(bool, Vec<Offered>)]) -> State {
        let key = |seed: u8| NodeKey::new(libp2p_identity::Keypair::ed25519_from_bytes([seed; 32]).expect("32 bytes"));
        let (here, there) = (key(1), key(2));
        let mut state = State::new(Config::new(here.id()));
        for (index, (own, offered)) in agents.iter().enumerate() {
            let node = if *own { &here } else { &there };
            let seed = u8::try_from(index).expect("few");
            let mut body = (*record(node, seed, 1, 1_000, &["echo"])).clone();
            let bare = body.capabilities.remove(0);
            for (name, description, specialization) in offered {
                let mut capability = Capability { id: name.parse().expect("valid"), description: description.clone(), ..bare.clone() };
                capability.claims.specializations.extend((!specialization.is_empty()).then(|| specialization.clone()));
                body.capabilities.push(capability);
            }
            let signed = Signed::sign(body, node, Some(&AgentKey::from_seed(&[seed; 32]))).expect("valid");
            if *own { state.handle_own_record(signed, NOW) } else { assert_eq!(state.on_record(signed, NOW), Verdict::Accept) }
        }
        state
    }

    fn scanned(routes: &Routes, query: &Query, ledger: &Ledger) -> Answer {
        let (mut scan, rules) = (Scan::new(query, routes), Rules::default());
        while scan.step(ledger, NOW.mono, &rules) {}
        scan.finish(&rules)
    }

    /// The rule in a line: the share of the words that occur in name, description and specializations, whatever the case.
    fn by_rule(capability: &Capability, text: &str) -> f64 {
        let specializations = capability.claims.specializations.join(" ");
        let offered = format!("{} {} {specializations}", capability.id, capability.description).to_lowercase();
        let lowered = text.to_lowercase();
        let words: Vec<&str> = lowered.split(|c: char| !c.is_alphanumeric()).filter(|word| word.chars().count() > 1).collect();
        let found = words.iter().filter(|word| offered.contains(*word)).count();
        f64::from(u32::try_from(found).expect("few")) / f64::from(u32::try_from(words.len().max(1)).expect("few"))
    }

    fn text() -> impl Strategy<Value = String> {
        prop::collection::vec(prop::sample::select(&WORDS[..]), 0..4).prop_map(|words| words.join(" "))
    }

    fn offered() -> impl Strategy<Value = Vec<Offered>> {
        let names = prop::sample::subsequence(&NAMES[..], 1..4);
        names.prop_flat_map(|names| names.into_iter().map(|name| (Just(name), text(), text())).collect::<Vec<_>>())
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, rng_seed: RngSeed::Fixed(7), ..ProptestConfig::with_cases(128) })]

        /// AMP-5: bit by bit of a snapshot, everybody is found who is found at once, in the same order, and nobody twice; and whoever is
        /// found uses the words.
        #[test]
        fn a_scan_gives_the_answer_of_a_query(
            agents in prop::collection::vec((prop::bool::weighted(0.8), offered()), 0..12),
            words in text(),
            failed in prop::collection::vec(any::<prop::sample::Index>(), 0..4),
        ) {
            let (mut state, mut ledger) = (directory(&agents), Ledger::new(16));
            let query = Query { capabilities: Vec::new(), text: Some(words.clone()), version: None, constraints: Wanted::default(), limit: 10 };
            for index in failed.iter().filter(|_| !agents.is_empty()) {
                let at = index.index(agents.len());
                let agent = AgentKey::from_seed(&[u8::try_from(at).expect("few"); 32]).id();
                ledger.handle_outcome(agent, &agents[at].1[0].0.parse().expect("valid"), Outcome::Failure, NOW.mono);
            }
            let routes = state.changed_routes().unwrap_or_default();
            let (at_once, by_and_by) = (state.query(&query, &ledger, NOW.mono), scanned(&routes, &query, &ledger));
            let found = |answer: &Answer| -> Vec<_> {
                answer.candidates.iter().map(|found| (found.agent(), found.capability, found.score.to_bits(), found.terms)).collect()
            };
            prop_assert_eq!(found(&by_and_by), found(&at_once));
            prop_assert_eq!(&by_and_by.rejected, &at_once.rejected);

            let uses = |entry: &Entry| entry.record.capabilities.iter().any(|offered| by_rule(offered, &words) > 0.0);
            let users = state.entries().filter(uses).count();
            prop_assert_eq!(by_and_by.candidates.len() + by_and_by.rejected.len(), users);
            for found in &by_and_by.candidates {
                prop_assert!(found.capability().is_some_and(|offered| (by_rule(offered, &words) - found.terms.r#match).abs() < 1e-9));
            }
        }
    }

    #[test]
    fn one_step_looks_at_a_bounded_number_of_agents() {
        let nobody = directory(&[]).changed_routes().unwrap_or_default();
        let query =
            Query { capabilities: Vec::new(), text: Some("echo".to_owned()), version: None, constraints: Wanted::default(), limit: 1 };
        let mut scan = Scan::new(&query, &nobody);
        let mut state = directory(&[(true, vec![("echo", String::new(), String::new())])]);
        let entry = state.changed_routes().expect("one came").everybody().remove(0);
        scan.entries = vec![entry; STEP + 1].into_iter();
        assert!(scan.step(&Ledger::new(1), NOW.mono, &Rules::default()));
        assert_eq!(scan.answer.candidates.len(), STEP);
        assert!(!scan.step(&Ledger::new(1), NOW.mono, &Rules::default()));
        assert_eq!(scan.finish(&Rules::default()).candidates.iter().map(Candidate::agent).count(), STEP + 1);
    }
}
