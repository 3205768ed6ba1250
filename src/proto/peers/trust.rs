//! First-hand trust: what this node saw of each agent, per capability (design.md section 5, AITP-5).
//!
//! Evidence is two decaying sums, good ends and bad ends. With a uniform prior they make a Beta distribution, whose mean times 100 is
//! the trust (50 for a stranger) and whose spread is the confidence interval. How often an agent has done this very capability is its
//! specialization: it narrows the interval, and nothing else does. What others say moves the mean alone, as far as own evidence leaves
//! room ([`Attested`]), and there is no global score.
//!
//! Evidence fades twice: with time ([`HALF_LIFE`]), and with each new outcome, so that the last `MEMORY` or so count. The second
//! lets an agent that recovered earn its trust back in a few calls, whether it failed ten times before or ten thousand times: eight
//! good calls in a row lift even the worst record out of doubt, twenty-four prove it again.
//!
//! An answer that comes far later than the agent claims counts for little (`LATE`): else it would pay to claim 1 ms and take a minute.

use std::collections::BTreeMap;
use std::time::Duration;

use super::receipts::{Attested, Pair};
use crate::model::{AgentId, CapabilityName};

/// Outcomes after which an older one counts about a third.
const MEMORY: f64 = 20.0;
/// What a good answer counts that came far too late by the agent's own word; the rest of it counts as a failure.
const LATE: f64 = 0.25;
/// Weight of the newest latency in the moving average.
const LATENCY_WEIGHT: f64 = 0.2;
/// Standard deviations on each side of the mean: about nine tenths of the distribution.
const INTERVAL_WIDTH: f64 = 1.645;

/// What is believed of one agent and capability.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Estimate {
    /// Mean trust, 0 to 100; 50 without evidence.
    pub trust: f64,
    /// Lower end of the confidence interval.
    pub low: f64,
    /// Upper end of the confidence interval.
    pub high: f64,
    /// Decayed number of calls that ended well.
    pub successes: f64,
    /// Decayed number of calls that ended badly.
    pub failures: f64,
    /// Moving average of measured latency, in milliseconds.
    pub latency_ms: Option<f64>,
    /// What counted receipts of others say; the mean has listened to it, everything else here is first-hand.
    pub attested: Option<Attested>,
}

impl Estimate {
    /// What is believed of a stranger.
    pub fn stranger() -> Self {
        Evidence::default().estimate(Duration::ZERO, Duration::MAX)
    }

    /// Share of calls that ended well, 0 to 1, once there is evidence.
    pub fn success_rate(&self) -> Option<f64> {
        let calls = self.successes + self.failures;
        (calls > 0.0).then(|| self.successes / calls)
    }
}

#[derive(Debug, Clone, Default)]
struct Evidence {
    successes: f64,
    failures: f64,
    latency_ms: Option<f64>,
    at: Duration,
}

impl Evidence {
    fn decay(&self, now: Duration, half_life: Duration) -> f64 {
        let age = now.saturating_sub(self.at);
        0.5_f64.powf(age.as_secs_f64() / half_life.as_secs_f64().max(f64::MIN_POSITIVE))
    }

    fn estimate(&self, now: Duration, half_life: Duration) -> Estimate {
        let decay = self.decay(now, half_life);
        let (successes, failures) = (self.successes * decay, self.failures * decay);
        let (a, b) = (successes + 1.0, failures + 1.0);
        let mean = a / (a + b);
        let deviation = (a * b / ((a + b).powi(2) * (a + b + 1.0))).sqrt();
        let percent = |share: f64| (share * 100.0).clamp(0.0, 100.0);
        Estimate {
            trust: percent(mean),
            low: percent(mean - INTERVAL_WIDTH * deviation),
            high: percent(mean + INTERVAL_WIDTH * deviation),
            successes,
            failures,
            latency_ms: self.latency_ms,
            attested: None,
        }
    }

    fn weight(&self, now: Duration, half_life: Duration) -> f64 {
        (self.successes + self.failures) * self.decay(now, half_life)
    }
}

/// How one attempt ended, as far as it says something about the agent. Refusals say nothing and are not reported.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Outcome {
    /// It answered well, after this many milliseconds.
    Success {
        /// From sending to the final reply, in milliseconds.
        latency_ms: f64,
    },
    /// It answered well, but far later than it claims to.
    Late {
        /// From sending to the final reply, in milliseconds.
        latency_ms: f64,
    },
    /// It failed, lied about its schema, or was never heard of again.
    Failure,
}

/// After this long an outcome counts half, unless it is configured otherwise.
pub const HALF_LIFE: Duration = Duration::from_secs(1_200);

/// How many agents are remembered who were proven to lie.
pub const LIARS_MAX: usize = 4_096;

/// Evidence on all agents, bounded: the least informative entry makes room.
#[derive(Debug)]
pub struct Ledger {
    /// Who was proven to lie, with when that was.
    liars: BTreeMap<AgentId, Duration>,
    evidence_by_agent: BTreeMap<(AgentId, CapabilityName), Evidence>,
    attested_by_agent: BTreeMap<Pair, Attested>,
    entries_max: usize,
    half_life: Duration,
}

impl Ledger {
    /// An empty ledger that holds at most `entries_max` pairs of agent and capability.
    pub fn new(entries_max: usize) -> Self {
        let (liars, evidence_by_agent, attested_by_agent) = Default::default();
        Self { liars, evidence_by_agent, attested_by_agent, entries_max: entries_max.max(1), half_life: HALF_LIFE }
    }

    /// The same, with outcomes that count half after another time.
    #[must_use]
    pub fn with_half_life(self, half_life: Duration) -> Self {
        Self { half_life, ..self }
    }

    /// Takes in how one attempt ended.
    pub fn handle_outcome(&mut self, agent: AgentId, capability: &CapabilityName, outcome: Outcome, now: Duration) {
        let key = (agent, capability.clone());
        if !self.evidence_by_agent.contains_key(&key) && self.evidence_by_agent.len() >= self.entries_max {
            self.forget_least(now);
        }
        let evidence = self.evidence_by_agent.entry(key).or_default();
        let decay = evidence.decay(now, self.half_life) * (1.0 - 1.0 / MEMORY);
        evidence.successes *= decay;
        evidence.failures *= decay;
        evidence.at = now;
        let (success, latency_ms) = match outcome {
            Outcome::Success { latency_ms } => (1.0, Some(latency_ms)),
            Outcome::Late { latency_ms } => (LATE, Some(latency_ms)),
            Outcome::Failure => (0.0, None),
        };
        evidence.successes += success;
        evidence.failures += 1.0 - success;
        if let Some(latency_ms) = latency_ms {
            let before = evidence.latency_ms.unwrap_or(latency_ms);
            evidence.latency_ms = Some(before + LATENCY_WEIGHT * (latency_ms - before));
        }
    }

    /// Replaces all that counted receipts say. Their number is bounded where they are kept.
    pub fn handle_attested(&mut self, attested_by_agent: BTreeMap<Pair, Attested>) {
        self.attested_by_agent = attested_by_agent;
    }

    /// Takes in the proof that an agent lied: it signed two things of which one alone can be true. Nothing makes up for that. Of too many, the
    /// one that was proven longest ago is forgotten.
    pub fn handle_proof(&mut self, agent: AgentId, now: Duration) {
        self.liars.insert(agent, now);
        if self.liars.len() > LIARS_MAX
            && let Some(oldest) = self.liars.iter().min_by_key(|(_, at)| **at).map(|(agent, _)| *agent)
        {
            self.liars.remove(&oldest);
        }
    }

    /// What is believed of `agent` doing `capability`.
    pub fn estimate(&self, agent: AgentId, capability: &CapabilityName, now: Duration) -> Estimate {
        let believed = self.evidence(agent, capability, now);
        if self.liars.contains_key(&agent) { Estimate { trust: 0.0, low: 0.0, high: 0.0, ..believed } } else { believed }
    }

    fn evidence(&self, agent: AgentId, capability: &CapabilityName, now: Duration) -> Estimate {
        let key = (agent, capability.clone());
        let own = self.evidence_by_agent.get(&key).map_or_else(Estimate::stranger, |evidence| evidence.estimate(now, self.half_life));
        self.attested_by_agent.get(&key).map_or(own, |attested| attested.inform(own))
    }

    /// Everything that is believed, by agent and capability: what was seen first, then what was only heard of.
    pub fn iter(&self, now: Duration) -> impl Iterator<Item = (AgentId, &CapabilityName, Estimate)> {
        let heard = self.attested_by_agent.keys().filter(|key| !self.evidence_by_agent.contains_key(*key));
        let known = self.evidence_by_agent.keys().chain(heard);
        known.map(move |(agent, capability)| (*agent, capability, self.estimate(*agent, capability, now)))
    }

    fn forget_least(&mut self, now: Duration) {
        let half_life = self.half_life;
        let least = self.evidence_by_agent.iter().min_by(|a, b| a.1.weight(now, half_life).total_cmp(&b.1.weight(now, half_life)));
        if let Some(key) = least.map(|(key, _)| key.clone()) {
            self.evidence_by_agent.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agent(number: u8) -> AgentId {
        AgentId::from_public_key([number; 32])
    }

    fn name() -> CapabilityName {
        "echo".parse().expect("valid")
    }

    #[test]
    fn a_stranger_is_trusted_half_with_a_wide_interval() {
        let stranger = Estimate::stranger();
        assert_eq!(stranger.trust, 50.0);
        assert!(stranger.low < 10.0 && stranger.high > 90.0);
        assert_eq!(stranger.success_rate(), None);
    }

    #[test]
    fn evidence_moves_the_mean_and_narrows_the_interval() {
        let mut ledger = Ledger::new(10);
        for _ in 0..20 {
            ledger.handle_outcome(agent(1), &name(), Outcome::Success { latency_ms: 10.0 }, Duration::ZERO);
            ledger.handle_outcome(agent(2), &name(), Outcome::Failure, Duration::ZERO);
        }
        let good = ledger.estimate(agent(1), &name(), Duration::ZERO);
        let bad = ledger.estimate(agent(2), &name(), Duration::ZERO);
        assert!(good.trust > 90.0 && good.low > 80.0 && good.latency_ms == Some(10.0));
        assert!(bad.trust < 10.0 && bad.high < 20.0);
    }

    #[test]
    fn one_failure_does_not_outlaw_a_sole_provider() {
        let mut ledger = Ledger::new(10);
        ledger.handle_outcome(agent(1), &name(), Outcome::Failure, Duration::ZERO);
        assert!(ledger.estimate(agent(1), &name(), Duration::ZERO).high >= 50.0);
    }

    /// Design "Operation": the trust of who signs two operations of one number goes to 0, whatever it does well.
    #[test]
    fn who_was_proven_to_lie_is_trusted_in_nothing() {
        let mut ledger = Ledger::new(10);
        ledger.handle_outcome(agent(1), &name(), Outcome::Success { latency_ms: 10.0 }, Duration::ZERO);
        ledger.handle_proof(agent(1), Duration::ZERO);
        ledger.handle_outcome(agent(1), &name(), Outcome::Success { latency_ms: 10.0 }, Duration::ZERO);
        let liar = ledger.estimate(agent(1), &name(), HALF_LIFE * 10);
        assert_eq!((liar.trust, liar.low, liar.high, liar.latency_ms), (0.0, 0.0, 0.0, Some(10.0)));
        assert_eq!(ledger.estimate(agent(2), &name(), Duration::ZERO), Estimate::stranger());
    }

    #[test]
    fn of_too_many_liars_the_one_proven_first_is_forgotten() {
        let mut ledger = Ledger::new(10);
        let liar = |at: usize| {
            let mut key = [0; 32];
            key[..8].copy_from_slice(&at.to_be_bytes());
            AgentId::from_public_key(key)
        };
        (0..LIARS_MAX).for_each(|at| ledger.handle_proof(liar(at), Duration::from_secs(if at == 7 { 0 } else { 1 })));
        let trust = |ledger: &Ledger, at| ledger.estimate(liar(at), &name(), Duration::ZERO).trust;
        assert_eq!(trust(&ledger, 7), 0.0, "at the limit");
        ledger.handle_proof(liar(LIARS_MAX), Duration::from_secs(1));
        assert_eq!((trust(&ledger, 7), trust(&ledger, 0), trust(&ledger, LIARS_MAX)), (50.0, 0.0, 0.0), "past it");
    }

    #[test]
    fn old_evidence_fades() {
        let mut ledger = Ledger::new(10);
        for _ in 0..10 {
            ledger.handle_outcome(agent(1), &name(), Outcome::Failure, Duration::ZERO);
        }
        let later = ledger.estimate(agent(1), &name(), HALF_LIFE * 10);
        assert!(later.trust > 49.0);
    }

    #[test]
    fn the_ledger_keeps_to_its_bound() {
        let mut ledger = Ledger::new(3);
        for number in 0..10 {
            ledger.handle_outcome(agent(number), &name(), Outcome::Failure, Duration::from_secs(u64::from(number)));
        }
        assert_eq!(ledger.iter(Duration::ZERO).count(), 3);
    }

    /// AITP-5: how often an agent has done this very capability narrows what is believed of it.
    #[test]
    fn specialization_narrows_the_interval_of_that_capability_alone() {
        let (mut ledger, other) = (Ledger::new(10), "acme.scan".parse().expect("valid"));
        let width = |ledger: &Ledger, name: &CapabilityName| {
            let estimate = ledger.estimate(agent(1), name, Duration::ZERO);
            estimate.high - estimate.low
        };
        let mut before = width(&ledger, &name());
        for _ in 0..10 {
            ledger.handle_outcome(agent(1), &name(), Outcome::Success { latency_ms: 1.0 }, Duration::ZERO);
            let after = width(&ledger, &name());
            assert!(after < before, "{after} is not below {before}");
            before = after;
        }
        assert_eq!(width(&ledger, &other), width(&Ledger::new(1), &other));
    }

    /// T16: good calls outweigh whatever was before, within a number of calls that does not grow with the sins.
    #[test]
    fn even_the_worst_record_is_mended_by_a_few_dozen_calls() {
        for sins in [20, 10_000] {
            let mut ledger = Ledger::new(10);
            (0..sins).for_each(|_| ledger.handle_outcome(agent(1), &name(), Outcome::Failure, Duration::ZERO));
            let mut until = |wanted: fn(&Estimate) -> bool| {
                let mut calls = 0;
                while !wanted(&ledger.estimate(agent(1), &name(), Duration::ZERO)) {
                    ledger.handle_outcome(agent(1), &name(), Outcome::Success { latency_ms: 1.0 }, Duration::ZERO);
                    calls += 1;
                }
                calls
            };
            let (lifted, proven) = (until(|estimate| estimate.high >= 50.0), until(|estimate| estimate.low >= 50.0));
            assert!(lifted <= 8 && lifted + proven <= 24, "after {sins}: {lifted}, {proven}");
        }
    }

    /// T16: a promise that is broken counts, though the answer was good.
    #[test]
    fn late_answers_make_an_agent_doubted() {
        let mut ledger = Ledger::new(10);
        for _ in 0..15 {
            ledger.handle_outcome(agent(1), &name(), Outcome::Late { latency_ms: 900.0 }, Duration::ZERO);
        }
        let estimate = ledger.estimate(agent(1), &name(), Duration::ZERO);
        assert!(estimate.high < 50.0 && estimate.latency_ms == Some(900.0), "{estimate:?}");
    }
}
