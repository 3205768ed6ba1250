//! What all calls of a node share when an agent is chosen: breakers, the retry budget, exploration, and how calls are balanced.
//!
//! A choice looks at the front of a ranking only: it passes over whoever was tried in this call already or whose breaker does not let it
//! through, and balances among the near-equals of the first that is left. If that one is full, the next best with room takes the call,
//! because a call that waits in line is served later than by somebody slightly worse. Now and then it explores instead. So its cost
//! depends on how many candidates are out of order, never on how many there are.
//!
//! Everything here is told at once how a call ended, while evidence for scores may lag a few milliseconds behind.
//! Implements MEAP-4, MEAP-5, AOP-4, AITP-5.

use std::fmt;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rand::Rng;

use super::balance::{self, is_full};
use super::breaker::{self, Breakers, Phase, Probe};
use super::budget::{Budget, Turn};
use super::evidence::Evidence;
use super::exploration::{Exploration, Try};
use crate::model::{AgentId, Balance};
use crate::proto::directory::rank::{Answer, Candidate, Ranking, Rejection, Standing};
use crate::proto::peers::trust;

/// Candidates behind the first that are compared with it, or looked at for room, when the front of the ranking cannot take the call.
const LOOK_MAX: usize = 32;

/// How agents are chosen.
#[derive(Debug, Clone, Copy)]
pub struct Config {
    /// How calls are spread over near-equals.
    pub balance: Balance,
    /// Share of calls, 0 to 1, that go to somebody of whom little is known or who may have recovered.
    pub exploration: f64,
    /// Share of calls, 0 to 1, that may be retried at a cost.
    pub retry_budget: f64,
    /// When breakers open, and for how long.
    pub breaker: breaker::Config,
}

/// Why an agent was chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// The caller named it.
    Named,
    /// Nobody who can be asked has a better score.
    Best,
    /// Of so many near-equals, this policy chose it.
    Balanced(Balance, usize),
    /// All that are better have more to do than they can.
    Room,
    /// Too little is known of it.
    Exploration,
    /// It was found wanting, and may have recovered.
    SecondChance,
    /// It is the one call that its half-open breaker lets through.
    Probe,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Named => f.write_str("the caller named it"),
            Self::Best => f.write_str("best score"),
            Self::Balanced(Balance::RoundRobin, equals) => write!(f, "its turn among {equals} near-equals"),
            Self::Balanced(Balance::LeastConnections, equals) => write!(f, "fewest connections among {equals} near-equals"),
            Self::Balanced(Balance::LeastLoad, equals) => write!(f, "least load among {equals} near-equals"),
            Self::Room => f.write_str("best score with room"),
            Self::Exploration => f.write_str("exploration: little is known of it"),
            Self::SecondChance => f.write_str("exploration: it may have recovered"),
            Self::Probe => f.write_str("half-open probe: whether it has recovered"),
        }
    }
}

/// Who would be asked. Nothing has changed yet.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pick {
    index: usize,
    why: Why,
    looked: usize,
}

impl Pick {
    /// Where the candidate stands in the ranking.
    pub(super) fn index(&self) -> usize {
        self.index
    }
}

/// Who is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Choice {
    /// Where it stands in the ranking.
    pub index: usize,
    /// Why it was chosen.
    pub why: Why,
    /// How many candidates were looked at.
    pub looked: usize,
    explores: bool,
    probe: Option<Probe>,
}

/// What calls share.
#[derive(Debug)]
pub struct State {
    balance: Balance,
    breakers: Breakers,
    budget: Budget,
    /// The same for steps of tasks, so that neither uses up what the others need.
    steps: Budget,
    exploration: Exploration,
    choices: u64,
}

impl State {
    /// Nothing has happened yet.
    pub fn new(config: Config) -> Self {
        Self {
            balance: config.balance,
            breakers: Breakers::new(config.breaker),
            budget: Budget::new(config.retry_budget),
            steps: Budget::new(config.retry_budget),
            exploration: Exploration::new(config.exploration),
            choices: 0,
        }
    }

    /// Why the breaker of a candidate keeps calls away, if it does.
    pub fn obstacle(&self, candidate: &Candidate, now: Duration) -> Option<Rejection> {
        match self.phase(candidate, now) {
            Phase::Open { left } => Some(Rejection::Breaker(left)),
            Phase::HalfOpen { probed: true } => Some(Rejection::Probed),
            Phase::Closed | Phase::HalfOpen { probed: false } => None,
        }
    }

    /// Adds `candidates` that a call would be given to now until there are `limit`, and no more of them than that takes are looked at.
    pub fn withhold(&self, candidates: &mut impl Iterator<Item = Candidate>, answer: &mut Answer, limit: usize, now: Duration) {
        while answer.candidates.len() < limit {
            let Some(candidate) = candidates.next() else { return };
            match self.obstacle(&candidate, now) {
                None => answer.candidates.push(candidate),
                Some(reason) => answer.reject(&candidate.entry, reason),
            }
        }
    }

    /// The breakers.
    pub fn breakers(&self) -> &Breakers {
        &self.breakers
    }

    /// Whether a task's step may make an attempt now; see [`Budget::admits`].
    #[must_use]
    pub fn admits(&mut self, turn: Turn, now: Duration) -> bool {
        self.steps.admits(turn, now)
    }

    pub(super) fn budget(&mut self) -> &mut Budget {
        &mut self.budget
    }

    fn phase(&self, candidate: &Candidate, now: Duration) -> Phase {
        candidate.capability().map_or(Phase::Closed, |capability| self.breakers.phase(candidate.agent(), &capability.id, now))
    }

    /// Whom a call would ask that has asked `tried` already.
    pub(super) fn pick(&mut self, ranking: &Ranking, tried: &[AgentId], named: bool, now: Duration, rng: &mut impl Rng) -> Option<Pick> {
        let candidates = ranking.candidates();
        let mut looked = 0;
        let Self { breakers, exploration, balance, .. } = self;
        let usable = |index: usize| {
            let Some(candidate) = candidates.get(index).filter(|candidate| !tried.contains(&candidate.agent())) else { return false };
            let phase = candidate.capability().map(|capability| breakers.phase(candidate.agent(), &capability.id, now));
            matches!(phase, Some(Phase::Closed | Phase::HalfOpen { probed: false }))
        };
        if tried.is_empty()
            && !named
            && let Some(Try { index, second_chance }) = exploration.pick(ranking, usable, &mut looked, now, rng)
        {
            return Some(Pick { index, why: if second_chance { Why::SecondChance } else { Why::Exploration }, looked });
        }
        let first_at = (0..candidates.len()).find(|index| {
            looked += 1;
            usable(*index)
        })?;
        let first = candidates.get(first_at)?;
        if named {
            return Some(Pick { index: first_at, why: Why::Named, looked });
        }
        let mut nearby = Vec::new();
        let equals = if first_at == 0 {
            ranking.equals()
        } else {
            let behind = candidates.iter().enumerate().skip(first_at).take(LOOK_MAX);
            nearby.extend(behind.filter(|(_, candidate)| candidate.is_near(first.standing, first.score)).map(|(index, _)| index));
            looked += LOOK_MAX.min(candidates.len() - first_at);
            &nearby
        };
        let index = balance::choose(*balance, candidates, equals, usable, &mut looked, rng).unwrap_or(first_at);
        if candidates.get(index).is_some_and(is_full) {
            let mut others = candidates.iter().enumerate().skip(first_at).take(LOOK_MAX);
            let with_room = others.find(|(index, candidate)| {
                looked += 1;
                candidate.standing != Standing::Doubted && !is_full(candidate) && usable(*index)
            });
            if let Some((index, _)) = with_room {
                return Some(Pick { index, why: Why::Room, looked });
            }
        }
        let why = if equals.len() > 1 { Why::Balanced(*balance, equals.len()) } else { Why::Best };
        Some(Pick { index, why, looked })
    }

    /// The agent of a pick is asked.
    pub(super) fn take(&mut self, pick: Pick, candidate: &Candidate, now: Duration) -> Choice {
        let Pick { index, why, looked } = pick;
        self.choices = self.choices.wrapping_add(1);
        candidate.entry.traffic.turn.store(self.choices, Ordering::Relaxed);
        let probe = candidate.capability().and_then(|capability| self.breakers.begin(candidate.agent(), &capability.id, now));
        let explores = matches!(why, Why::Exploration | Why::SecondChance);
        Choice { index, why: if probe.is_some() && why != Why::Named { Why::Probe } else { why }, looked, explores, probe }
    }

    /// An attempt is over. Each choice must be ended, also when nobody waits for it any more.
    pub fn on_end(&mut self, candidate: &Candidate, choice: Choice, learnt: &Evidence, now: Duration, rng: &mut impl Rng) {
        if choice.explores {
            let well = learnt.trust.map(|outcome| matches!(outcome, trust::Outcome::Success { .. }));
            self.exploration.on_end(candidate.agent(), well);
        }
        if let Some(capability) = candidate.capability() {
            self.breakers.on_end(candidate.agent(), &capability.id, choice.probe, learnt.breaker, now, rng);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use rand::SeedableRng;
    use rand::rngs::SmallRng;

    use super::super::balance::COMPARED_MAX;
    use super::super::exploration::PICKS_MAX;
    use super::super::testing::{Agent, agent, calm, config, number_of, ranking};
    use super::*;

    /// MEAP-5: least load among near-equals.
    #[test]
    fn among_near_equals_the_least_loaded_for_its_size_is_asked() {
        let candidates = [agent(1).score(0.90).load(2, 0), agent(2).score(0.89).load(0, 3), agent(3).score(0.89).load(4, 0).concurrency(8)];
        for seed in 0..20 {
            assert_eq!(Desk::seeded(seed).asks(&candidates), 3);
        }
    }

    /// MEAP-5: this node's own calls and those of others both count, in fractions of an agent's size.
    #[test]
    fn load_is_compared_in_fractions_of_an_agents_size() {
        let candidates = [agent(1).load(4, 5).concurrency(8), agent(2).load(0, 1)];
        for seed in 0..20 {
            assert_eq!(Desk::seeded(seed).asks(&candidates), 2);
        }
    }

    /// MEAP-5: least connections looks at this node's own calls alone.
    #[test]
    fn least_connections_counts_this_nodes_calls_alone() {
        let candidates = [agent(1).load(0, 2).concurrency(8), agent(2).load(7, 1).concurrency(8)];
        let mut desk = Desk::balancing(Balance::LeastConnections);
        assert_eq!(desk.asks(&candidates), 2);
        assert_eq!(Desk::balancing(Balance::LeastLoad).asks(&candidates), 1);
    }

    /// MEAP-5: round robin.
    #[test]
    fn round_robin_asks_each_in_turn() {
        let candidates = [agent(1), agent(2).load(0, 1), agent(3)];
        let ranking = ranking(&candidates);
        let mut desk = Desk::balancing(Balance::RoundRobin);
        let asked: Vec<u8> = (0..9).map(|_| desk.ask(&ranking)).collect();
        let turns: Vec<u8> = asked.iter().copied().cycle().skip(3).take(9).collect();
        assert_eq!(asked, turns, "the same three in the same order again and again");
        assert_eq!(asked[..3].iter().copied().collect::<std::collections::BTreeSet<_>>().len(), 3, "{asked:?}");
    }

    #[test]
    fn whoever_is_full_is_passed_over_for_the_next_best_with_room() {
        let candidates = [agent(1).score(0.90).load(1, 1), agent(2).score(0.87).load(2, 0), agent(3).score(0.6), agent(4).score(0.5)];
        assert_eq!(Desk::new().asks(&candidates), 3);
        let (mut desk, ranking) = (Desk::new(), ranking(&candidates));
        assert_eq!(desk.choice(&ranking).why, Why::Room);
        let all_full = [agent(1).score(0.90).load(1, 1), agent(2).score(0.87).load(2, 0)];
        assert_eq!(Desk::new().asks(&all_full), 1);
        let doubted = [agent(1).score(0.90).load(1, 1), agent(2).score(0.87).doubted()];
        assert_eq!(Desk::new().asks(&doubted), 1, "better late than by somebody who is doubted");
    }

    #[test]
    fn load_below_the_brim_does_not_make_a_worse_agent_better() {
        assert_eq!(Desk::new().asks(&[agent(1).score(0.90).load(1, 0), agent(2).score(0.87)]), 1);
    }

    /// MEAP-5: equals share the calls.
    #[test]
    fn equals_share_the_calls() {
        let asked = Desk::new().tally(&[agent(1).score(0.9), agent(2).score(0.9), agent(3).score(0.89)], 600);
        assert!([1, 2, 3].iter().all(|number| (150..250).contains(&asked[number])), "{asked:?}");
    }

    #[test]
    fn an_agent_on_this_node_is_preferred_among_equals_only() {
        let near = [agent(1).score(0.9), agent(2).score(0.89).here()];
        let busy = [agent(1).score(0.9), agent(2).score(0.89).here().load(1, 0)];
        let worse = [agent(1).score(0.9), agent(2).score(0.5).here()];
        for seed in 0..20 {
            assert_eq!(Desk::seeded(seed).asks(&near), 2);
            assert_eq!(Desk::seeded(seed).asks(&busy), 1);
            assert_eq!(Desk::seeded(seed).asks(&worse), 1);
        }
    }

    #[test]
    fn a_share_of_calls_explores_agents_of_whom_little_is_known() {
        let candidates = [agent(1).score(0.9), agent(2).score(0.3).stranger(), agent(3).score(0.2).stranger()];
        let asked = Desk::exploring(0.1).tally(&candidates, 2_000);
        let explored = asked[&2] + asked[&3];
        assert!((180..=200).contains(&explored), "{asked:?}");
        assert!(asked[&2] > 50 && asked[&3] > 50, "{asked:?}");
        assert_eq!(Desk::new().tally(&candidates, 200), BTreeMap::from([(1, 200)]));
    }

    #[test]
    fn one_doubted_agent_gets_no_more_than_its_part_of_the_exploration() {
        let asked = Desk::exploring(0.05).tally(&[agent(1).score(0.9), agent(2).score(0.95).doubted()], 4_000);
        assert!((50..=110).contains(&asked[&2]), "about 2 %: {asked:?}");
    }

    #[test]
    fn an_agent_is_explored_by_one_call_at_a_time_and_not_too_often() {
        let ranking = ranking(&[agent(1).score(0.9), agent(2).score(0.3).stranger()]);
        let mut desk = Desk::exploring(1.0);
        desk.pace = Duration::ZERO;
        let first = desk.choice(&ranking);
        assert_eq!((first.index, first.why), (1, Why::Exploration));
        assert!((0..50).all(|_| desk.choice(&ranking).index == 0), "one is out");
        desk.end(&ranking, first, breaker::Outcome::Success);
        assert!((0..50).all(|_| desk.choice(&ranking).index == 0), "it was tried just now");
        desk.now += Duration::from_millis(250);
        assert_eq!(desk.choice(&ranking).index, 1);
    }

    #[test]
    fn a_second_attempt_explores_nobody() {
        let candidates = [agent(1).score(0.9), agent(2).score(0.1).stranger()];
        let ranking = ranking(&candidates);
        let mut desk = Desk::exploring(1.0);
        for _ in 0..50 {
            let pick = desk.state.pick(&ranking, &[agent(9).id()], false, desk.now, &mut desk.rng);
            assert_eq!(pick.map(|pick| pick.index), Some(0));
        }
    }

    /// MEAP-4: an open breaker is passed over, a half-open one lets one call through.
    #[test]
    fn breakers_are_heeded_at_once() {
        let candidates = [agent(1).score(0.9), agent(2).score(0.5)];
        let ranking = ranking(&candidates);
        let mut desk = Desk::new();
        for _ in 0..3 {
            let choice = desk.choice(&ranking);
            assert_eq!(choice.index, 0);
            desk.end(&ranking, choice, breaker::Outcome::Failure);
        }
        assert!(matches!(desk.state.obstacle(&ranking.candidates()[0], desk.now), Some(Rejection::Breaker(_))));
        assert_eq!(desk.ask(&ranking), 2);

        desk.now += Duration::from_secs(2);
        let probe = desk.choice(&ranking);
        assert_eq!((probe.index, probe.why), (0, Why::Probe));
        assert_eq!(desk.state.obstacle(&ranking.candidates()[0], desk.now), Some(Rejection::Probed));
        assert_eq!(desk.ask(&ranking), 2, "the probe is out");
        desk.end(&ranking, probe, breaker::Outcome::Success);
        assert_eq!(desk.ask(&ranking), 1);
    }

    #[test]
    fn no_more_candidates_are_looked_at_than_it_takes_to_find_enough() {
        let candidates = [agent(1).score(0.9), agent(2).score(0.5), agent(3).score(0.4), agent(4).score(0.3)];
        let ranking = ranking(&candidates);
        let mut desk = Desk::new();
        for _ in 0..3 {
            let choice = desk.choice(&ranking);
            desk.end(&ranking, choice, breaker::Outcome::Failure);
        }
        let (mut all, mut answer) = (ranking.candidates().iter().cloned(), Answer::default());

        desk.state.withhold(&mut all, &mut answer, 2, desk.now);

        let numbers = |candidates: &[Candidate]| -> Vec<u8> { candidates.iter().map(|candidate| number_of(candidate.agent())).collect() };
        assert_eq!((numbers(&answer.candidates), answer.rejected.len()), (vec![2, 3], 1));
        assert_eq!(numbers(&all.collect::<Vec<_>>()), [4], "nobody looked at it");
    }

    /// A call costs the same work however many agents there are, good ones and fallen ones.
    #[test]
    fn the_work_of_a_choice_does_not_grow_with_the_number_of_candidates() {
        let known: Vec<Agent> = (1..=50).map(|number| agent(number).score(0.9)).collect();
        let fallen: Vec<Agent> = (51..=100).map(|number| agent(number).score(0.3).doubted()).collect();
        for count in [1, 10, 100, 1_000] {
            let so_many = |agents: &[Agent]| agents.iter().cycle().take(count).cloned().collect::<Vec<Agent>>();
            let candidates = [so_many(&known), so_many(&fallen)].concat();
            let ranking = ranking(&candidates);
            let mut desk = Desk::exploring(0.05);
            for balance in [Balance::RoundRobin, Balance::LeastConnections, Balance::LeastLoad] {
                desk.state.balance = balance;
                let mut second_chances = 0;
                for _ in 0..1_000 {
                    let choice = desk.choice(&ranking);
                    desk.end(&ranking, choice, breaker::Outcome::Nothing);
                    assert!(choice.looked <= PICKS_MAX + 1 + COMPARED_MAX, "{count} agents, {balance:?}: {}", choice.looked);
                    second_chances += u32::from(choice.why == Why::SecondChance);
                }
                assert!(second_chances > 0, "{count} agents, {balance:?}");
            }
        }
    }

    struct Desk {
        state: State,
        now: Duration,
        pace: Duration,
        rng: SmallRng,
    }

    impl Desk {
        fn new() -> Self {
            Self::seeded(7)
        }

        fn seeded(seed: u64) -> Self {
            Self { state: calm(), now: Duration::ZERO, pace: Duration::from_secs(1), rng: SmallRng::seed_from_u64(seed) }
        }

        fn balancing(balance: Balance) -> Self {
            Self { state: State::new(Config { balance, ..config() }), ..Self::new() }
        }

        fn exploring(exploration: f64) -> Self {
            Self { state: State::new(Config { exploration, ..config() }), ..Self::new() }
        }

        fn choice(&mut self, ranking: &Ranking) -> Choice {
            let pick = self.state.pick(ranking, &[], false, self.now, &mut self.rng).expect("somebody");
            self.now += self.pace;
            self.state.take(pick, &ranking.candidates()[pick.index], self.now)
        }

        fn end(&mut self, ranking: &Ranking, choice: Choice, breaker: breaker::Outcome) {
            let learnt = Evidence { breaker, ..Evidence::NONE };
            self.state.on_end(&ranking.candidates()[choice.index], choice, &learnt, self.now, &mut self.rng);
        }

        /// One call, which ends at once.
        fn ask(&mut self, ranking: &Ranking) -> u8 {
            let choice = self.choice(ranking);
            self.end(ranking, choice, breaker::Outcome::Nothing);
            number_of(ranking.candidates()[choice.index].agent())
        }

        fn asks(&mut self, candidates: &[Agent]) -> u8 {
            self.ask(&ranking(candidates))
        }

        fn tally(&mut self, candidates: &[Agent], calls: u32) -> BTreeMap<u8, u32> {
            let ranking = ranking(candidates);
            let mut asked = BTreeMap::new();
            for _ in 0..calls {
                *asked.entry(self.ask(&ranking)).or_default() += 1;
            }
            asked
        }
    }
}
