//! How many calls may be tried again: a share of the traffic, so that an overload is not multiplied by those who suffer from it (F12).
//!
//! Each first attempt earns a share of a retry, by default a tenth; a retry that puts work on somebody a second time spends one. What is
//! saved is bounded, and a node begins with that much, so that a quiet node can retry as well. Which retries cost something is decided
//! where attempts are ([`super::call`]).

/// Retries that may be saved: as many calls as a node that makes few of them may see fail at once.
const SAVED_MAX: f64 = 10.0;

/// What is left for retries.
#[derive(Debug)]
pub struct Budget {
    share: f64,
    saved: f64,
}

impl Budget {
    /// A budget that earns `share` of a retry, 0 to 1, with each first attempt. Without a share nothing is ever retried at a cost.
    pub fn new(share: f64) -> Self {
        let share = share.clamp(0.0, 1.0);
        Self { share, saved: if share > 0.0 { SAVED_MAX } else { 0.0 } }
    }

    /// A call made its first attempt.
    pub fn on_first(&mut self) {
        self.saved = (self.saved + self.share).min(SAVED_MAX);
    }

    /// Spends one retry; false if there is none.
    #[must_use]
    pub fn spend(&mut self) -> bool {
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
    }
}
