//! How many calls may be tried again: a share of the traffic, so that an overload is not multiplied by those who suffer from it (F12).
//!
//! Each first attempt earns a share of a retry, by default a tenth; a retry that puts work on somebody a second time spends one. What is
//! saved is bounded, and a node begins with that much, so that a quiet node can retry as well. Which retries cost something is decided
//! where attempts are ([`super::call`]).
//!
//! Steps of tasks have a budget of their own, in which a retry that is not there is only put off: a task has time. So that steps of a node
//! which begins no others are not put off for ever, time saves retries for them as well.

use std::time::Duration;

/// Retries that may be saved: as many calls as a node that makes few of them may see fail at once.
const SAVED_MAX: f64 = 10.0;

/// How long it takes to save one retry where nothing else earns any: the reserve is whole again after five seconds, and an agent that is
/// overloaded hardly notices.
const SAVED_EVERY: Duration = Duration::from_millis(500);

/// What an attempt of a task's step is to the budget.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// The first one, which earns.
    First,
    /// One that makes up for another which nobody began, or was lost sight of.
    Again,
    /// One that follows on another which had begun and failed.
    Retry,
}

/// What is left for retries.
#[derive(Debug)]
pub struct Budget {
    share: f64,
    saved: f64,
    /// Until when time has saved.
    saved_until: Duration,
}

impl Budget {
    /// A budget that earns `share` of a retry, 0 to 1, with each first attempt. Without a share nothing is ever retried at a cost.
    pub fn new(share: f64) -> Self {
        let share = share.clamp(0.0, 1.0);
        Self { share, saved: if share > 0.0 { SAVED_MAX } else { 0.0 }, saved_until: Duration::ZERO }
    }

    /// Whether a task's step may make an attempt now. It must be made then, or what it spends is lost.
    #[must_use]
    pub fn admits(&mut self, turn: Turn, now: Duration) -> bool {
        match turn {
            Turn::First => self.on_first(),
            Turn::Again => {}
            Turn::Retry => {
                let earned = now.saturating_sub(self.saved_until).div_duration_f64(SAVED_EVERY);
                self.saved_until = self.saved_until.max(now);
                self.saved = (self.saved + earned).min(SAVED_MAX);
                return self.take();
            }
        }
        true
    }

    /// A call made its first attempt.
    pub fn on_first(&mut self) {
        self.saved = (self.saved + self.share).min(SAVED_MAX);
    }

    /// Spends one retry; false if there is none.
    #[must_use]
    pub fn spend(&mut self) -> bool {
        self.share > 0.0 && self.take()
    }

    fn take(&mut self) -> bool {
        let enough = self.saved >= 1.0;
        if enough {
            self.saved -= 1.0;
        }
        enough
    }

    /// The share that first attempts earn.
    pub fn share(&self) -> f64 {
        self.share
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// MEAP-9: a tenth of the traffic, and a reserve.
    #[test]
    fn retries_are_a_tenth_of_first_attempts_beyond_the_reserve() {
        let mut budget = Budget::new(0.1);
        let reserve = (0..100).filter(|_| budget.spend()).count();
        assert_eq!(reserve, 10);
        let retries: usize = (0..1_000)
            .map(|_| {
                budget.on_first();
                (0..4).filter(|_| budget.spend()).count()
            })
            .sum();
        assert!((99..=100).contains(&retries), "{retries}");
    }

    /// F12: steps of tasks draw from the same budget, and have what time saves besides.
    #[test]
    fn retries_of_steps_are_a_tenth_of_first_attempts_and_two_a_second() {
        let mut budget = Budget::new(0.1);
        let ms = Duration::from_millis;
        let mut spent = 0;
        for round in 0..10_000 {
            assert!(budget.admits(Turn::First, ms(round)) && budget.admits(Turn::Again, ms(round)));
            spent += (0..4).filter(|_| budget.admits(Turn::Retry, ms(round))).count();
        }
        assert!((10 + 1_000 + 19..=10 + 1_000 + 20).contains(&spent), "{spent}");
        assert!(!budget.spend(), "what steps spent is gone for calls too");
    }

    #[test]
    fn a_step_of_a_quiet_node_is_not_put_off_for_ever() {
        for share in [0.0, 0.1] {
            let mut budget = Budget::new(share);
            let mut spend = |ms| (0..100).filter(|_| budget.admits(Turn::Retry, Duration::from_millis(ms))).count();
            assert_eq!((spend(0), spend(400), spend(500), spend(400)), (if share > 0.0 { 10 } else { 0 }, 0, 1, 0), "{share}");
            assert_eq!(spend(3_600_000), 10, "no more than the reserve");
        }
    }

    #[test]
    fn what_is_saved_is_bounded() {
        let mut budget = Budget::new(0.5);
        (0..10_000).for_each(|_| budget.on_first());
        assert_eq!((0..100).filter(|_| budget.spend()).count(), 10);
    }

    #[test]
    fn without_a_share_there_is_no_reserve_either() {
        let mut budget = Budget::new(0.0);
        budget.on_first();
        assert!(!budget.spend());
        assert!(budget.admits(Turn::Retry, Duration::from_secs(1)) && !budget.spend(), "what time saves is for steps");
    }
}
