//! What counted receipts say of one agent and capability, and how far an estimate listens to it.

use crate::model::Figure;
use crate::proto::peers::trust::Estimate;

/// Calls that the word of others may count as together, whoever they are.
const ATTESTED_MAX: f64 = 4.0;
/// What the uniform prior of an estimate weighs.
const PRIOR: f64 = 2.0;

/// Calls of others, faded by age and capped by flow.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Attested {
    /// Calls that ended well.
    pub successes: f64,
    /// Calls that ended badly.
    pub failures: f64,
    /// Mean latency of those that ended well, in milliseconds.
    pub latency_ms: Option<f64>,
}

impl Attested {
    /// How many calls it counts as.
    pub fn calls(&self) -> f64 {
        self.successes + self.failures
    }

    /// `own`, moved by this as far as own evidence leaves room.
    ///
    /// With `n` calls of its own a node hears others as at most `ATTESTED_MAX` / (1 + n)^2 calls: as all of it when it knows nothing, as
    /// one call when it remembers one, as next to nothing after three.
    #[must_use]
    pub fn inform(self, own: Estimate) -> Estimate {
        let calls = own.successes + own.failures;
        let heard_max = ATTESTED_MAX / (1.0 + calls).powi(2);
        let scale = if self.calls() > 0.0 { (heard_max / self.calls()).min(1.0) } else { return own };
        let (good, bad) = (self.successes * scale, self.failures * scale);
        let weight = calls + PRIOR;
        let trust = (own.trust * weight + 100.0 * good) / (weight + good + bad);
        // The interval is first-hand, and the mean stays inside of it.
        Estimate { trust: trust.clamp(own.low, own.high), attested: Some(self), ..own }
    }
}

impl Estimate {
    /// The latency that is believed in, in milliseconds: measured, else attested.
    pub fn latency_figure(&self) -> Option<Figure<f64>> {
        let attested = || self.attested.and_then(|attested| attested.latency_ms);
        self.latency_ms.map(Figure::measured).or_else(|| attested().map(Figure::attested))
    }

    /// The share of calls that end well, 0 to 1: measured, else attested.
    pub fn success_figure(&self) -> Option<Figure<f64>> {
        let attested = || self.attested.filter(|attested| attested.calls() > 0.0).map(|attested| attested.successes / attested.calls());
        self.success_rate().map(Figure::measured).or_else(|| attested().map(Figure::attested))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::model::AgentId;
    use crate::proto::peers::trust::{Ledger, Outcome};

    fn own(successes: u32, failures: u32) -> Estimate {
        let (mut ledger, agent, name) = (Ledger::new(1), AgentId::from_public_key([1; 32]), "echo".parse().expect("valid"));
        for _ in 0..successes {
            ledger.handle_outcome(agent, &name, Outcome::Success { latency_ms: 10.0 }, Duration::ZERO);
        }
        for _ in 0..failures {
            ledger.handle_outcome(agent, &name, Outcome::Failure, Duration::ZERO);
        }
        ledger.estimate(agent, &name, Duration::ZERO)
    }

    fn said(successes: f64, failures: f64) -> Attested {
        Attested { successes, failures, latency_ms: (successes > 0.0).then_some(30.0) }
    }

    #[test]
    fn a_stranger_is_known_by_what_others_say() {
        let praised = said(4.0, 0.0).inform(Estimate::stranger());
        let scolded = said(0.0, 4.0).inform(Estimate::stranger());
        assert!(praised.trust > 80.0 && scolded.trust < 20.0);
        assert!(scolded.high > 90.0, "hearsay outlaws nobody");
        assert_eq!(praised.latency_figure(), Some(Figure::attested(30.0)));
        assert_eq!(praised.success_figure(), Some(Figure::attested(1.0)));
        assert_eq!(Attested::default().inform(own(2, 1)), own(2, 1));
    }

    #[test]
    fn figures_of_its_own_come_first() {
        let known = said(0.0, 4.0).inform(own(3, 0));
        assert_eq!(known.latency_figure(), Some(Figure::measured(10.0)));
        assert_eq!(known.success_figure(), Some(Figure::measured(1.0)));
    }

    proptest! {
        /// Threat T17: from the first own call on, all others together weigh no more than what this node saw.
        #[test]
        fn own_evidence_dominates(good in 0_u32..6, bad in 0_u32..6, praise in 0.0..1e12_f64, blame in 0.0..1e12_f64) {
            let (alone, told) = (own(good, bad), said(praise, blame).inform(own(good, bad)));
            let calls = f64::from(good + bad);
            prop_assert!((told.low..=told.high).contains(&told.trust));
            prop_assert_eq!((told.low, told.high), (alone.low, alone.high), "the interval is first-hand");
            if calls >= 1.0 {
                // The worst that as many calls as its own could do.
                let weight = calls + PRIOR;
                let (lowest, highest) = (alone.trust * weight / (weight + calls), (alone.trust * weight + 100.0 * calls) / (weight + calls));
                prop_assert!(told.trust >= lowest - 1e-9 && told.trust <= highest + 1e-9, "{alone:?} {told:?}");
            }
        }

        /// Threat T17: no praise lifts an agent that has only failed here above one that nobody knows.
        #[test]
        fn a_poor_record_stays_below_a_stranger(bad in 1_u32..60, praise in 0.0..1e12_f64) {
            prop_assert!(said(praise, 0.0).inform(own(0, bad)).trust <= Estimate::stranger().trust + 1e-9);
        }
    }
}
