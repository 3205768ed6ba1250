//! Calls by the thousand against agents that lie, fail, recover or come in swarms, in virtual time: what the rules add up to.
//!
//! Everything that decides is the real thing (directory, ranking, routing, call, evidence, ledger); only the agents are made up. Each
//! claim is checked for several seeds, and a failing seed replays exactly.

use std::collections::BTreeMap;
use std::time::Duration;

use rand::SeedableRng;
use rand::rngs::SmallRng;

use super::call::{self, AttemptFailure, Step};
use super::evidence::{Reader, evidence};
use super::routing;
use super::testing::{self, node};
use crate::model::{AgentId, Balance, CapabilityName, ErrorCode, Failure, Now, Price, Timestamp};
use crate::proto::directory::rank::{Ranking, Rules};
use crate::proto::directory::{self, Rankings, Routes};
use crate::proto::peers::trust::Ledger;
use crate::wire::directory::tests::record;
use crate::wire::directory::{Query, Wanted};
use crate::wire::{AgentKey, Signed};

const SEEDS: std::ops::Range<u64> = 0..10;
/// After so many calls a liar must be found out, and so many are then watched.
const WARM_UP: u32 = 50;
const WATCHED: u32 = 200;

/// T16: an agent that claims a full match, no cost and 1 ms, and fails, gets under 5 % of the calls after 50.
#[test]
fn a_liar_that_fails_is_found_out_within_fifty_calls() {
    for honest_ms in [5, 50, 300, 800] {
        for does in [Does::Fails(2), Does::FailsHalf(2), Does::Fails(900)] {
            found_out(honest_ms, does);
        }
    }
}

/// T16: the same if it serves, but slowly.
#[test]
fn a_liar_that_is_slow_is_found_out_within_fifty_calls() {
    for honest_ms in [5, 50, 300] {
        for does in [Does::Serves(600), Does::Serves(3_000)] {
            found_out(honest_ms, does);
        }
    }
}

fn found_out(honest_ms: u64, does: Does) {
    for seed in SEEDS {
        let mut world = World::new(seed);
        let honest = [world.agent(1, Claims { ms: honest_ms, free: false }), world.agent(2, Claims { ms: honest_ms, free: false })];
        let liar = world.agent(3, Claims { ms: 1, free: true });
        honest.iter().for_each(|agent| world.does(*agent, Does::Serves(honest_ms)));
        world.does(liar, does);
        world.calls(WARM_UP);
        let asked = world.calls(WATCHED);
        let share = f64::from(asked.get(&liar).copied().unwrap_or_default()) / f64::from(WATCHED);
        assert!(share < 0.05, "{does:?} beside {honest_ms} ms has {share} of the calls with seed {seed}");
    }
}

/// T16: one that keeps its word from now on earns its calls back, however long it lied: here within 90 s at ten calls a
/// second, of which up to 36 s are its breaker's.
#[test]
fn an_agent_that_recovers_earns_its_calls_back() {
    for (lied, does) in [(WARM_UP, Does::Fails(2)), (3_000, Does::Fails(2)), (3_000, Does::Serves(2_000))] {
        for seed in SEEDS {
            let mut world = World::new(seed);
            let honest = world.agent(1, Claims { ms: 100, free: false });
            let other = world.agent(2, Claims { ms: 100, free: false });
            let liar = world.agent(3, Claims { ms: 1, free: true });
            [honest, other].iter().for_each(|agent| world.does(*agent, Does::Serves(100)));
            world.does(liar, does);
            world.calls(lied);

            world.does(liar, Does::Serves(1));
            let recovered_at = world.now;
            let mut served = 0;
            while served < 10 {
                served = world.calls(20).get(&liar).copied().unwrap_or_default();
                let took = world.now - recovered_at;
                assert!(took < RECOVERED, "after {lied} calls of {does:?} and {took:?}, with seed {seed}");
            }
        }
    }
}

/// T17: a thousand fresh keys get no more than the exploration budget, whatever they promise and whatever they do.
#[test]
fn a_swarm_of_fresh_keys_gets_no_more_than_the_exploration_budget() {
    for does in [Does::Fails(1), Does::Serves(1), Does::ServesOnce(1)] {
        let mut world = World::new(7);
        let honest = [1, 2].map(|number| world.agent(number, Claims { ms: 1, free: false }));
        honest.iter().for_each(|agent| world.does(*agent, Does::Serves(1)));
        world.calls(WARM_UP);
        let swarm: Vec<AgentId> = (1_000..2_000).map(|number| world.agent(number, Claims { ms: 1, free: true })).collect();
        swarm.iter().for_each(|agent| world.does(*agent, does));
        let calls = 600;
        let asked = world.calls(calls);
        let gained: u32 = swarm.iter().filter_map(|agent| asked.get(agent)).sum();
        let budget = f64::from(calls) * EXPLORATION + 2.0;
        assert!(f64::from(gained) <= budget, "{does:?}: {gained} of {calls} calls, the budget is {budget}");
        assert!(gained > calls / 40, "{does:?}: newcomers are tried at all: {gained}");
    }
}

/// T17: neither do keys that are thrown away once they have failed.
#[test]
fn whitewashing_gains_nothing_beyond_the_exploration_budget() {
    let mut world = World::new(7);
    let honest = world.agent(1, Claims { ms: 5, free: false });
    world.does(honest, Does::Serves(5));
    world.calls(WARM_UP);
    let mut gained = 0;
    for generation in 0..40 {
        let fresh = world.agent(1_000 + generation, Claims { ms: 1, free: true });
        world.does(fresh, Does::Fails(1));
        gained += world.calls(25).get(&fresh).copied().unwrap_or_default();
        world.remove(fresh);
    }
    assert!(f64::from(gained) <= 1_000.0 * EXPLORATION + 2.0, "{gained} of 1000");
}

/// MEAP-5: equals share the calls, and one that comes later gets its part.
#[test]
fn honest_equals_share_the_calls_also_with_one_that_comes_later() {
    for seed in SEEDS {
        let mut world = World::new(seed);
        let mut agents: Vec<AgentId> = (1..=3).map(|number| world.agent(number, Claims { ms: 20, free: false })).collect();
        agents.iter().for_each(|agent| world.does(*agent, Does::Serves(20)));
        world.calls(200);
        agents.push(world.agent(4, Claims { ms: 20, free: false }));
        world.does(agents[3], Does::Serves(20));
        world.calls(400);
        let asked = world.calls(400);
        assert!(agents.iter().all(|agent| (60..=140).contains(&asked.get(agent).copied().unwrap_or_default())), "{asked:?} with {seed}");
    }
}

/// AITP-5, AOP-4: a sole provider is asked again although it failed, and serves as soon as it can.
#[test]
fn a_sole_provider_that_recovers_serves_as_soon_as_its_breaker_lets_a_call_through() {
    let mut world = World::new(7);
    let only = world.agent(1, Claims { ms: 20, free: false });
    world.does(only, Does::Fails(20));
    for _ in 0..100 {
        world.calls(1);
        world.now += Duration::from_secs(1);
    }
    world.does(only, Does::Serves(20));
    let recovered_at = world.now;
    while world.calls(1).is_empty() {
        world.now += Duration::from_secs(1);
    }
    assert!(world.now - recovered_at <= Duration::from_secs(37), "{:?}", world.now - recovered_at);
    assert_eq!(world.calls(20).values().sum::<u32>(), 20);
}

const EXPLORATION: f64 = 0.05;
const RECOVERED: Duration = Duration::from_secs(90);

#[derive(Debug, Clone, Copy)]
struct Claims {
    ms: u64,
    free: bool,
}

/// What an agent does, in so many milliseconds.
#[derive(Debug, Clone, Copy)]
enum Does {
    Serves(u64),
    Fails(u64),
    FailsHalf(u64),
    ServesOnce(u64),
}

struct World {
    directory: directory::State,
    routes: Routes,
    rankings: Rankings,
    routing: routing::State,
    ledger: Ledger,
    does_by_agent: BTreeMap<AgentId, (Does, u32)>,
    now: Duration,
    rng: SmallRng,
}

impl World {
    fn new(seed: u64) -> Self {
        let config = routing::Config { exploration: EXPLORATION, balance: Balance::LeastLoad, ..testing::config() };
        Self {
            directory: directory::State::new(directory::Config::new(node().id())),
            routes: Routes::default(),
            rankings: Rankings::default(),
            routing: routing::State::new(config),
            ledger: Ledger::new(10_000),
            does_by_agent: BTreeMap::new(),
            now: Duration::ZERO,
            rng: SmallRng::seed_from_u64(seed),
        }
    }

    fn agent(&mut self, number: u64, claims: Claims) -> AgentId {
        let mut body = (*record(&node(), 1, 1, WALL_MS, &["echo"])).clone();
        let key = AgentKey::from_seed(blake3::hash(&number.to_be_bytes()).as_bytes());
        body.agent = key.id();
        body.capabilities[0].constraints.response_time_ms = Some(claims.ms);
        let price = || Price { amount: "1".parse().expect("a decimal"), currency: "USD".parse().expect("a code"), unit: "call".to_owned() };
        body.capabilities[0].price = (!claims.free).then(price);
        let record = Signed::sign(body, &node(), Some(&key)).expect("a valid record");
        self.directory.handle_own_record(record, Now { mono: self.now, wall: Timestamp::from_ms(WALL_MS) });
        self.routes = self.directory.changed_routes().expect("somebody came");
        self.does_by_agent.insert(key.id(), (Does::Serves(1), 0));
        key.id()
    }

    fn remove(&mut self, agent: AgentId) {
        self.directory.handle_own_removed(agent);
        self.routes = self.directory.changed_routes().expect("somebody went");
    }

    fn does(&mut self, agent: AgentId, does: Does) {
        self.does_by_agent.insert(agent, (does, 0));
    }

    fn ranking(&mut self) -> std::sync::Arc<Ranking> {
        let name = name();
        if let Some(ranking) = self.rankings.get(&name, &self.routes, self.now) {
            return ranking;
        }
        let query = Query { capabilities: vec![name.clone()], text: None, version: None, constraints: Wanted::default(), limit: 1 };
        let ranking = Ranking::new(self.routes.rank(&query, None, &Rules::default(), &self.ledger, self.now)).into();
        self.rankings.insert(name, std::sync::Arc::clone(&ranking), &self.routes, self.now);
        ranking
    }

    /// Makes calls one after the other; how often each agent was asked.
    fn calls(&mut self, count: u32) -> BTreeMap<AgentId, u32> {
        let mut asked = BTreeMap::new();
        for _ in 0..count {
            let deadline = self.now + Duration::from_secs(60);
            let mut machine = call::State::new(call::Config { attempts_max: 4 }, name(), None, false, self.now, deadline);
            loop {
                let ranking = self.ranking();
                match machine.next(&ranking, &mut self.routing, self.now, &mut self.rng) {
                    Step::Fail(_) | Step::Unknown => break,
                    Step::Search => {}
                    Step::Ask(choice) => {
                        let candidate = &ranking.candidates()[choice.index];
                        *asked.entry(candidate.agent()).or_default() += 1;
                        let (ms, served) = self.serve(candidate.agent());
                        let took = Duration::from_millis(ms);
                        let asked_at = self.now;
                        self.now += took;
                        let failure = || Failure::new(ErrorCode::AgentFailed, "no");
                        let failed = (!served).then(|| AttemptFailure { failure: failure(), begun: true });
                        let learnt = evidence(candidate, failed.as_ref(), took, deadline.saturating_sub(asked_at), Reader::default());
                        self.routing.on_end(candidate, choice, &learnt, self.now, &mut self.rng);
                        let outcome = learnt.trust.expect("each end says something");
                        self.ledger.handle_outcome(candidate.agent(), &name(), outcome, self.now);
                        match failed {
                            None => break,
                            Some(failed) => machine.on_failure(failed, self.now),
                        }
                    }
                }
            }
        }
        asked
    }

    fn serve(&mut self, agent: AgentId) -> (u64, bool) {
        let (does, calls) = self.does_by_agent.get_mut(&agent).expect("one of the world's agents");
        *calls += 1;
        match *does {
            Does::Serves(ms) => (ms, true),
            Does::Fails(ms) => (ms, false),
            Does::FailsHalf(ms) => (ms, *calls % 2 == 0),
            Does::ServesOnce(ms) => (ms, *calls == 1),
        }
    }
}

const WALL_MS: u64 = 1_700_000_000_000;

fn name() -> CapabilityName {
    "echo".parse().expect("a valid name")
}
