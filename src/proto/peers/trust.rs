//! First-hand trust: what this node saw of each agent, per capability (design.md section 5, AITP-5).
//!
//! Evidence is two decaying sums, good ends and bad ends. With a uniform prior they make a Beta distribution, whose mean times 100 is
//! the trust (50 for a stranger) and whose spread is the confidence interval, so that doing a capability often narrows it. Nothing that
//! others say enters here, and there is no global score.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::model::{AgentId, CapabilityName};

/// After this long an outcome counts half.
const HALF_LIFE: Duration = Duration::from_secs(3_600);
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
}

impl Estimate {
    /// What is believed of a stranger.
    pub fn stranger() -> Self {
        Evidence::default().estimate(Duration::ZERO)
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
    fn decay(&self, now: Duration) -> f64 {
        let age = now.saturating_sub(self.at);
        0.5_f64.powf(age.as_secs_f64() / HALF_LIFE.as_secs_f64())
    }

    fn estimate(&self, now: Duration) -> Estimate {
        let decay = self.decay(now);
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
        }
    }

    fn weight(&self, now: Duration) -> f64 {
        (self.successes + self.failures) * self.decay(now)
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
    /// It failed, lied about its schema, or was never heard of again.
    Failure,
}

/// Evidence on all agents, bounded: the least informative entry makes room.
#[derive(Debug)]
pub struct Ledger {
    evidence_by_agent: BTreeMap<(AgentId, CapabilityName), Evidence>,
    entries_max: usize,
}

impl Ledger {
    /// An empty ledger that holds at most `entries_max` pairs of agent and capability.
    pub fn new(entries_max: usize) -> Self {
        Self { evidence_by_agent: BTreeMap::new(), entries_max: entries_max.max(1) }
    }

    /// Takes in how one attempt ended.
    pub fn handle_outcome(&mut self, agent: AgentId, capability: &CapabilityName, outcome: Outcome, now: Duration) {
        let key = (agent, capability.clone());
        if !self.evidence_by_agent.contains_key(&key) && self.evidence_by_agent.len() >= self.entries_max {
            self.forget_least(now);
        }
        let evidence = self.evidence_by_agent.entry(key).or_default();
        let decay = evidence.decay(now);
        evidence.successes *= decay;
        evidence.failures *= decay;
        evidence.at = now;
        match outcome {
            Outcome::Success { latency_ms } => {
                evidence.successes += 1.0;
                let before = evidence.latency_ms.unwrap_or(latency_ms);
                evidence.latency_ms = Some(before + LATENCY_WEIGHT * (latency_ms - before));
            }
            Outcome::Failure => evidence.failures += 1.0,
        }
    }

    /// What is believed of `agent` doing `capability`.
    pub fn estimate(&self, agent: AgentId, capability: &CapabilityName, now: Duration) -> Estimate {
        let evidence = self.evidence_by_agent.get(&(agent, capability.clone()));
        evidence.map_or_else(Estimate::stranger, |evidence| evidence.estimate(now))
    }

    /// Everything that is believed, by agent and capability.
    pub fn iter(&self, now: Duration) -> impl Iterator<Item = (AgentId, &CapabilityName, Estimate)> {
        self.evidence_by_agent.iter().map(move |((agent, capability), evidence)| (*agent, capability, evidence.estimate(now)))
    }

    fn forget_least(&mut self, now: Duration) {
        let least = self.evidence_by_agent.iter().min_by(|a, b| a.1.weight(now).total_cmp(&b.1.weight(now)));
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
}
