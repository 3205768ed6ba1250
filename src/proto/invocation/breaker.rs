//! The circuit breaker of each agent and capability: whoever keeps failing is left alone for a while (MEAP-4).
//!
//! *Closed*, calls pass and their ends are counted; [`Config::failures_max`] failures in a row, or half of at least `CALLS_MIN` calls
//! within `WINDOW`, open it. *Open*, nothing passes for a time that doubles with each repetition up to a bound, a little more or less by
//! chance, so that the callers of an agent do not all come back at once. *Half-open*, exactly one call passes as a probe: its success
//! closes the breaker, its failure opens it again. A call that ended neither well nor badly (a refusal, the caller's own fault, a call
//! that was cancelled) frees the probe for another, and a probe that is never heard of again does so after [`PROBE_MAX`]; so a breaker
//! cannot get stuck. Only what this node saw itself counts, which is why nobody can cut a third party off.
//!
//! An agent without failures has no entry here, so the usual call costs no more than a look at an empty table; the table is bounded.
//! Departs from MEAP's text, whose breaker nothing ever closes. That a node is silent or says that an agent is down is the directory's.

use std::collections::BTreeMap;
use std::time::Duration;

use rand::Rng;

use crate::model::{AgentId, CapabilityName};

/// The time over which the share of failures is taken.
const WINDOW: Duration = Duration::from_secs(10);
/// Calls within the window from which on their share of failures says something.
const CALLS_MIN: u32 = 10;
/// An open time is this much shorter or longer by chance.
const JITTER: f64 = 0.2;
/// How long a probe may be out before another is let through: as long as a call usually may take.
pub const PROBE_MAX: Duration = Duration::from_secs(60);
/// Breakers that are kept. Beyond it the closed one that failed longest ago makes room, then the open one that ends first.
const BREAKERS_MAX: usize = 4_096;

/// When breakers open, and for how long.
#[derive(Debug, Clone, Copy)]
pub struct Config {
    /// Failures in a row that open a breaker.
    pub failures_max: u32,
    /// How long it stays open the first time.
    pub open: Duration,
    /// The longest that it stays open, but for jitter. It is forgotten that it was ever open once it was closed for as long.
    pub open_max: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self { failures_max: 3, open: Duration::from_secs(1), open_max: Duration::from_secs(30) }
    }
}

/// How a call ended, as far as the agent is to blame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Well.
    Success,
    /// The agent failed.
    Failure,
    /// It says nothing about the agent.
    Nothing,
}

/// How a breaker stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Calls pass.
    Closed,
    /// No call passes.
    Open {
        /// For how long.
        left: Duration,
    },
    /// One call passes at a time.
    HalfOpen {
        /// Whether that call is under way.
        probed: bool,
    },
}

/// The right to be the one call that passes a half-open breaker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Probe(u64);

#[derive(Debug, Default)]
struct Breaker {
    /// When it becomes half-open; `None` while it is closed.
    open_until: Option<Duration>,
    /// The probe that is out, and until when it is waited for.
    probe: Option<(Probe, Duration)>,
    failures_in_row: u32,
    window_from: Duration,
    successes: u32,
    failures: u32,
    /// How often it has opened.
    openings: u32,
    failed_at: Duration,
}

impl Breaker {
    fn phase(&self, now: Duration) -> Phase {
        match self.open_until {
            None => Phase::Closed,
            Some(until) if now < until => Phase::Open { left: until.saturating_sub(now) },
            Some(_) => Phase::HalfOpen { probed: self.probe.is_some_and(|(_, until)| now < until) },
        }
    }

    fn count(&mut self, failed: bool, now: Duration) {
        if now.saturating_sub(self.window_from) >= WINDOW {
            (self.window_from, self.successes, self.failures) = (now, 0, 0);
        }
        let count = if failed { &mut self.failures } else { &mut self.successes };
        *count = count.saturating_add(1);
        self.failures_in_row = if failed { self.failures_in_row.saturating_add(1) } else { 0 };
    }

    fn is_bad(&self, config: &Config) -> bool {
        let calls = self.successes.saturating_add(self.failures);
        self.failures_in_row >= config.failures_max.max(1) || (calls >= CALLS_MIN && self.failures >= calls / 2)
    }

    fn open(&mut self, config: &Config, now: Duration, rng: &mut impl Rng) {
        let time = config.open.saturating_mul(2_u32.saturating_pow(self.openings.min(16))).min(config.open_max);
        let time = time.mul_f64(rng.random_range(1.0 - JITTER..=1.0 + JITTER));
        *self = Self {
            open_until: Some(now.saturating_add(time)),
            openings: self.openings.saturating_add(1),
            failed_at: now,
            ..Self::default()
        };
    }

    fn close(&mut self, now: Duration) {
        *self = Self { openings: self.openings, failed_at: self.failed_at, window_from: now, ..Self::default() };
    }
}

/// All breakers of a node.
#[derive(Debug)]
pub struct Breakers {
    config: Config,
    breakers_by_agent: BTreeMap<(AgentId, CapabilityName), Breaker>,
    probes: u64,
}

impl Breakers {
    /// All closed.
    pub fn new(config: Config) -> Self {
        Self { config, breakers_by_agent: BTreeMap::new(), probes: 0 }
    }

    /// How the breaker of `agent` doing `capability` stands.
    pub fn phase(&self, agent: AgentId, capability: &CapabilityName, now: Duration) -> Phase {
        if self.breakers_by_agent.is_empty() {
            return Phase::Closed;
        }
        self.breakers_by_agent.get(&(agent, capability.clone())).map_or(Phase::Closed, |breaker| breaker.phase(now))
    }

    /// A call begins. Gives it the probe if the breaker is half-open and none is out; must be called only where [`Breakers::phase`] lets
    /// the call through.
    pub fn begin(&mut self, agent: AgentId, capability: &CapabilityName, now: Duration) -> Option<Probe> {
        if self.breakers_by_agent.is_empty() {
            return None;
        }
        let breaker = self.breakers_by_agent.get_mut(&(agent, capability.clone()))?;
        if breaker.phase(now) != (Phase::HalfOpen { probed: false }) {
            return None;
        }
        self.probes = self.probes.wrapping_add(1);
        let probe = Probe(self.probes);
        breaker.probe = Some((probe, now.saturating_add(PROBE_MAX)));
        Some(probe)
    }

    /// A call ended, with the probe it was given.
    pub fn on_end(
        &mut self,
        agent: AgentId,
        capability: &CapabilityName,
        probe: Option<Probe>,
        outcome: Outcome,
        now: Duration,
        rng: &mut impl Rng,
    ) {
        if self.breakers_by_agent.is_empty() && outcome != Outcome::Failure {
            return;
        }
        let key = (agent, capability.clone());
        if outcome == Outcome::Failure && !self.breakers_by_agent.contains_key(&key) {
            self.make_room(now);
            self.breakers_by_agent.insert(key.clone(), Breaker { window_from: now, ..Breaker::default() });
        }
        let Some(breaker) = self.breakers_by_agent.get_mut(&key) else { return };
        if breaker.open_until.is_some() {
            // Whatever began before the breaker opened says nothing about the agent as it is now.
            let is_probe = probe.is_some() && breaker.probe.map(|(probe, _)| probe) == probe;
            match outcome {
                Outcome::Success if is_probe => breaker.close(now),
                Outcome::Failure if is_probe => breaker.open(&self.config, now, rng),
                Outcome::Nothing if is_probe => breaker.probe = None,
                Outcome::Success | Outcome::Failure | Outcome::Nothing => {}
            }
            return;
        }
        match outcome {
            Outcome::Nothing => {}
            Outcome::Success => {
                breaker.count(false, now);
                if now.saturating_sub(breaker.failed_at) >= self.config.open_max.max(WINDOW) {
                    self.breakers_by_agent.remove(&key);
                }
            }
            Outcome::Failure => {
                if now.saturating_sub(breaker.failed_at) >= self.config.open_max {
                    breaker.openings = 0;
                }
                breaker.count(true, now);
                breaker.failed_at = now;
                if breaker.is_bad(&self.config) {
                    breaker.open(&self.config, now, rng);
                }
            }
        }
    }

    /// Every breaker that is not closed.
    pub fn tripped(&self, now: Duration) -> impl Iterator<Item = (AgentId, &CapabilityName, Phase)> {
        let phases = self.breakers_by_agent.iter().map(move |((agent, capability), breaker)| (*agent, capability, breaker.phase(now)));
        phases.filter(|(_, _, phase)| *phase != Phase::Closed)
    }

    fn make_room(&mut self, now: Duration) {
        if self.breakers_by_agent.len() >= BREAKERS_MAX {
            let worth = |breaker: &Breaker| (breaker.phase(now) != Phase::Closed, breaker.open_until, breaker.failed_at);
            let least = self.breakers_by_agent.iter().min_by_key(|(_, breaker)| worth(breaker)).map(|(key, _)| key.clone());
            least.and_then(|key| self.breakers_by_agent.remove(&key));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::test_runner::RngSeed;
    use rand::SeedableRng;
    use rand::rngs::SmallRng;

    use super::*;

    /// MEAP-4: closed, open, half-open, closed again.
    #[test]
    fn a_breaker_opens_after_failures_in_a_row_and_closes_after_a_good_probe() {
        let mut breaker = One::new();
        breaker.fails(2, s(0));
        assert_eq!(breaker.phase(s(0)), Phase::Closed);
        breaker.fails(1, s(0));
        assert!(matches!(breaker.phase(s(0)), Phase::Open { left } if (800..=1_200).contains(&left.as_millis())));

        assert_eq!(breaker.phase(s(2)), Phase::HalfOpen { probed: false });
        let probe = breaker.begin(s(2));
        assert!(probe.is_some());
        assert_eq!(breaker.phase(s(2)), Phase::HalfOpen { probed: true });
        assert_eq!(breaker.begin(s(2)), None, "one probe at a time");
        breaker.ends(probe, Outcome::Success, s(3));
        assert_eq!(breaker.phase(s(3)), Phase::Closed);
    }

    /// MEAP-4: whoever fails its probe is left alone for longer, up to a bound.
    #[test]
    fn the_open_time_doubles_up_to_a_bound_and_varies_by_chance() {
        let mut breaker = One::new();
        breaker.fails(3, s(0));
        let (mut now, mut times) = (s(0), Vec::new());
        for _ in 0..10 {
            let Phase::Open { left } = breaker.phase(now) else { panic!("open") };
            times.push(left.as_secs_f64());
            now += left;
            let probe = breaker.begin(now);
            breaker.ends(probe, Outcome::Failure, now);
        }
        for (index, time) in times.iter().enumerate() {
            let middle = 2_f64.powi(i32::try_from(index).expect("few")).min(30.0);
            assert!((middle * 0.8..=middle * 1.2).contains(time), "{times:?}");
        }
        assert!(times.iter().any(|time| (time - time.round()).abs() > 1e-6), "no jitter: {times:?}");
    }

    #[test]
    fn half_of_many_calls_open_it_even_if_not_in_a_row() {
        let mut breaker = One::new();
        for _ in 0..4 {
            breaker.fails(1, s(1));
            breaker.ends(None, Outcome::Success, s(1));
        }
        assert_eq!(breaker.phase(s(1)), Phase::Closed, "too few calls");
        breaker.fails(1, s(1));
        breaker.ends(None, Outcome::Success, s(1));
        breaker.fails(1, s(1));
        assert!(matches!(breaker.phase(s(1)), Phase::Open { .. }));
    }

    #[test]
    fn failures_that_are_far_apart_do_not_open_it() {
        let mut breaker = One::new();
        for second in 0..40 {
            breaker.fails(1, s(second));
            breaker.ends(None, Outcome::Success, s(second));
            breaker.ends(None, Outcome::Success, s(second));
            assert_eq!(breaker.phase(s(second)), Phase::Closed, "after {second} s");
        }
    }

    /// MEAP-4, MEAP-9: refusals are not failures.
    #[test]
    fn what_says_nothing_about_the_agent_neither_opens_nor_closes() {
        let mut breaker = One::new();
        for _ in 0..100 {
            breaker.ends(None, Outcome::Nothing, s(0));
        }
        assert_eq!(breaker.phase(s(0)), Phase::Closed);
        breaker.fails(3, s(0));
        let probe = breaker.begin(s(2));
        breaker.ends(probe, Outcome::Nothing, s(2));
        assert_eq!(breaker.phase(s(2)), Phase::HalfOpen { probed: false }, "the probe is free for another call");
    }

    #[test]
    fn a_probe_that_is_never_heard_of_is_given_to_another_call() {
        let mut breaker = One::new();
        breaker.fails(3, s(0));
        let lost = breaker.begin(s(2));
        let next = breaker.begin(s(2) + PROBE_MAX);
        assert!(next.is_some() && next != lost);
        breaker.ends(lost, Outcome::Failure, s(100));
        assert_eq!(breaker.phase(s(100)), Phase::HalfOpen { probed: true }, "the lost one is no longer asked");
        breaker.ends(next, Outcome::Success, s(100));
        assert_eq!(breaker.phase(s(100)), Phase::Closed);
    }

    #[test]
    fn what_began_before_the_breaker_opened_does_not_move_it() {
        let mut breaker = One::new();
        breaker.fails(3, s(0));
        let before = breaker.phase(s(0));
        breaker.fails(5, s(0));
        breaker.ends(None, Outcome::Success, s(0));
        assert_eq!(breaker.phase(s(0)), before);
    }

    #[test]
    fn each_agent_and_capability_has_a_breaker_of_its_own() {
        let mut breaker = One::new();
        breaker.fails(3, s(0));
        let other: CapabilityName = "acme.scan".parse().expect("valid");
        assert_eq!(breaker.all.phase(agent(1), &other, s(0)), Phase::Closed);
        assert_eq!(breaker.all.phase(agent(2), &name(), s(0)), Phase::Closed);
        assert_eq!(breaker.all.tripped(s(0)).count(), 1);
    }

    #[test]
    fn the_table_keeps_to_its_bound_and_lets_the_harmless_go_first() {
        let mut breaker = One::new();
        breaker.fails(3, s(0));
        for number in 0..BREAKERS_MAX + 10 {
            let key = *blake3::hash(&number.to_be_bytes()).as_bytes();
            breaker.all.on_end(AgentId::from_public_key(key), &name(), None, Outcome::Failure, s(0), &mut breaker.rng);
        }
        assert_eq!(breaker.all.breakers_by_agent.len(), BREAKERS_MAX);
        assert!(matches!(breaker.phase(s(0)), Phase::Open { .. }), "an open one is kept");
    }

    #[test]
    fn an_agent_that_is_well_again_is_forgotten() {
        let mut breaker = One::new();
        breaker.fails(2, s(0));
        breaker.ends(None, Outcome::Success, s(31));
        assert!(breaker.all.breakers_by_agent.is_empty());
    }

    #[derive(Debug, Clone)]
    enum Op {
        Begin,
        End { which: usize, outcome: Outcome },
        Pass { ms: u64 },
    }

    fn op() -> impl Strategy<Value = Op> {
        let outcome = prop::sample::select(vec![Outcome::Success, Outcome::Failure, Outcome::Failure, Outcome::Nothing]);
        prop_oneof![
            4 => Just(Op::Begin),
            4 => (any::<usize>(), outcome).prop_map(|(which, outcome)| Op::End { which, outcome }),
            2 => prop::sample::select(vec![0_u64, 1, 500, 1_000, 5_000, 60_000, 75_000]).prop_map(|ms| Op::Pass { ms }),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, rng_seed: RngSeed::Fixed(7), ..ProptestConfig::with_cases(512) })]

        /// MEAP-4: whatever happens in whatever order, at most one probe is out, and a breaker lets somebody through in bounded time
        /// and closes when that goes well.
        #[test]
        fn a_breaker_is_never_stuck(ops in prop::collection::vec(op(), 1..80), seed in any::<u64>()) {
            let mut breaker = One::new();
            breaker.rng = SmallRng::seed_from_u64(seed);
            let (mut now, mut running) = (s(0), Vec::<(Option<Probe>, Duration)>::new());
            for op in ops {
                match op {
                    Op::Begin => match breaker.phase(now) {
                        Phase::Open { .. } | Phase::HalfOpen { probed: true } => {}
                        phase @ (Phase::Closed | Phase::HalfOpen { probed: false }) => {
                            let probe = breaker.begin(now);
                            prop_assert_eq!(probe.is_some(), phase != Phase::Closed);
                            running.push((probe, now));
                        }
                    },
                    Op::End { which, outcome } if !running.is_empty() => {
                        let (probe, _) = running.swap_remove(which % running.len());
                        breaker.ends(probe, outcome, now);
                    }
                    Op::End { .. } => {}
                    Op::Pass { ms } => now += Duration::from_millis(ms),
                }
                if let Phase::HalfOpen { .. } = breaker.phase(now) {
                    let out = running.iter().filter(|(probe, since)| probe.is_some() && now < *since + PROBE_MAX && breaker.is_current(*probe));
                    prop_assert!(out.count() <= 1);
                }
            }
            // Nobody reports any more. Whatever it stands at, time and one good call mend it.
            now += Duration::from_secs(72).max(PROBE_MAX);
            let passes = matches!(breaker.phase(now), Phase::Closed | Phase::HalfOpen { probed: false });
            prop_assert!(passes, "stuck");
            let probe = breaker.begin(now);
            breaker.ends(probe, Outcome::Success, now);
            prop_assert_eq!(breaker.phase(now), Phase::Closed);
        }
    }

    /// How long whoever is well again may have to wait: until the last call that began before has ended, the longest open time, and a
    /// probe that nobody hears of for each that there is.
    fn mended_after(lost: u32) -> Duration {
        CALL_MAX + Config::default().open_max.mul_f64(1.0 + JITTER) + PROBE_MAX * lost + s(2)
    }

    /// How long a call may take that began before.
    const CALL_MAX: Duration = Duration::from_secs(60);

    fn late() -> impl Strategy<Value = (Option<u64>, Outcome)> {
        let outcome = prop::sample::select(vec![Outcome::Success, Outcome::Failure, Outcome::Failure, Outcome::Nothing]);
        (prop::option::weighted(0.8, 0..=CALL_MAX.as_secs()), outcome)
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, rng_seed: RngSeed::Fixed(8), ..ProptestConfig::with_cases(512) })]

        /// MEAP-4: an agent that is well again is called again within a bound and from then on, whatever came before: calls that began
        /// while it was ill end late, badly or never, and so do some of the probes.
        #[test]
        fn a_breaker_whose_agent_is_well_again_closes_within_a_bound_and_stays_closed(
            ops in prop::collection::vec(op(), 1..60),
            late in prop::collection::vec(late(), 60),
            lost in 0_u32..3,
            seed in any::<u64>(),
        ) {
            let mut breaker = One::new();
            breaker.rng = SmallRng::seed_from_u64(seed);
            let (mut now, mut running) = (s(0), Vec::new());
            for op in ops {
                match op {
                    Op::Begin if breaker.passes(now) => running.push(breaker.begin(now)),
                    Op::End { which, outcome } if !running.is_empty() => {
                        let probe = running.swap_remove(which % running.len());
                        breaker.ends(probe, outcome, now);
                    }
                    Op::Begin | Op::End { .. } => {}
                    Op::Pass { ms } => now += Duration::from_millis(ms),
                }
            }

            let (well_at, mut losing) = (now, lost);
            let still: Vec<_> = running.into_iter().zip(late).collect();
            let last = mended_after(lost).as_secs() + 120;
            for second in 0..=last {
                let now = well_at + s(second);
                for (probe, (_, outcome)) in still.iter().filter(|(_, (at, _))| *at == Some(second)) {
                    breaker.ends(*probe, *outcome, now);
                }
                prop_assert!(s(second) <= mended_after(lost) || breaker.phase(now) == Phase::Closed, "{:?} after {} s", breaker.phase(now), second);
                if breaker.passes(now) {
                    let probe = breaker.begin(now);
                    if probe.is_some() && losing > 0 {
                        losing -= 1;
                    } else {
                        breaker.ends(probe, Outcome::Success, now);
                    }
                }
            }
        }
    }

    struct One {
        all: Breakers,
        rng: SmallRng,
    }

    impl One {
        fn new() -> Self {
            Self { all: Breakers::new(Config::default()), rng: SmallRng::seed_from_u64(7) }
        }

        fn phase(&self, now: Duration) -> Phase {
            self.all.phase(agent(1), &name(), now)
        }

        fn passes(&self, now: Duration) -> bool {
            matches!(self.phase(now), Phase::Closed | Phase::HalfOpen { probed: false })
        }

        fn begin(&mut self, now: Duration) -> Option<Probe> {
            self.all.begin(agent(1), &name(), now)
        }

        fn ends(&mut self, probe: Option<Probe>, outcome: Outcome, now: Duration) {
            self.all.on_end(agent(1), &name(), probe, outcome, now, &mut self.rng);
        }

        fn fails(&mut self, times: u32, now: Duration) {
            (0..times).for_each(|_| self.ends(None, Outcome::Failure, now));
        }

        fn is_current(&self, probe: Option<Probe>) -> bool {
            self.all.breakers_by_agent.values().any(|breaker| breaker.probe.map(|(probe, _)| probe) == probe)
        }
    }

    fn agent(number: u8) -> AgentId {
        AgentId::from_public_key([number; 32])
    }

    fn name() -> CapabilityName {
        "echo".parse().expect("valid")
    }

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }
}
