//! How often somebody may do something (GCRA): one time per key, so that memory is bounded by the number of keys that are remembered.
//!
//! Each key has a bucket of `burst` that fills at one per pause. What is kept of it is the time at which it will be full again, and a key
//! whose bucket is full needs no entry at all, so forgetting the quiet costs nothing.
//!
//! When the table is full of the busy, a newcomer takes the place of whoever is nearest to a full bucket. Nobody gains by being forgotten
//! that way: as long as the table is full all newcomers together have the budget of one key, and each begins with an empty bucket. So
//! however many identities somebody makes, more than `keys_max` of them do no better than `keys_max` and one.
//!
//! A refusal says when to come back, and whoever does is let in, unless others were quicker. MEAP-3; threats T1, T2.

use std::collections::BTreeMap;
use std::time::Duration;

/// How often a full table is searched for those who have become quiet.
const SWEEP_PAUSE: Duration = Duration::from_millis(100);

/// So many in a second on average, and so many at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    pause: Duration,
    burst: u32,
}

impl Rate {
    /// Lets `per_s` through in a second, and `burst` at once. What is out of bounds is taken as the nearest that is not: between one in a
    /// thousand seconds and a million a second, at least one at once.
    pub fn new(per_s: f64, burst: u32) -> Self {
        let per_s = if per_s.is_nan() { 1.0 } else { per_s.clamp(0.001, 1_000_000.0) };
        Self { pause: Duration::from_secs_f64(1.0 / per_s), burst: burst.max(1) }
    }

    /// How long a bucket that is full again at `full_at` keeps the next one waiting.
    fn wait(self, full_at: Duration, now: Duration) -> Duration {
        let room = self.pause.saturating_mul(self.burst.saturating_sub(1));
        full_at.saturating_sub(now.saturating_add(room))
    }

    fn take(self, full_at: &mut Duration, now: Duration) -> Result<(), Duration> {
        let wait = self.wait(*full_at, now);
        if !wait.is_zero() {
            return Err(wait);
        }
        *full_at = (*full_at).max(now).saturating_add(self.pause);
        Ok(())
    }

    /// When a bucket that is empty `now` is full.
    fn empty(self, now: Duration) -> Duration {
        now.saturating_add(self.pause.saturating_mul(self.burst))
    }
}

/// A wait in whole milliseconds, never shorter than it is.
pub fn whole_ms(wait: Duration) -> u64 {
    u64::try_from(wait.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX).max(1)
}

/// Buckets by key.
#[derive(Debug)]
pub struct Limiter<K> {
    full_at_by_key: BTreeMap<K, Duration>,
    /// The bucket that newcomers share while the table is full.
    newcomers_full_at: Duration,
    swept_at: Option<Duration>,
    keys_max: usize,
}

impl<K: Ord + Copy> Limiter<K> {
    /// Remembers at most `keys_max` keys.
    pub fn new(keys_max: usize) -> Self {
        Self { full_at_by_key: BTreeMap::new(), newcomers_full_at: Duration::ZERO, swept_at: None, keys_max: keys_max.max(1) }
    }

    /// Whether `key` may go on now; if so, that is one less. A refusal costs nothing.
    ///
    /// # Errors
    /// How long it should wait.
    pub fn check(&mut self, key: K, rate: Rate, now: Duration) -> Result<(), Duration> {
        if let Some(full_at) = self.full_at_by_key.get_mut(&key) {
            return rate.take(full_at, now);
        }
        if self.is_full() && self.swept_at.is_none_or(|at| now.saturating_sub(at) >= SWEEP_PAUSE) {
            self.swept_at = Some(now);
            self.full_at_by_key.retain(|_, full_at| *full_at > now);
        }
        let mut full_at = now;
        if self.is_full() {
            rate.take(&mut self.newcomers_full_at, now)?;
            let quietest = self.full_at_by_key.iter().min_by_key(|(_, full_at)| **full_at).map(|(key, _)| *key);
            quietest.and_then(|quietest| self.full_at_by_key.remove(&quietest));
            full_at = rate.empty(now);
        } else {
            rate.take(&mut full_at, now)?;
        }
        self.full_at_by_key.insert(key, full_at);
        Ok(())
    }

    /// What `key` was let in for did not take place: the next may have its turn. The bucket holds no more for it than it ever does, and who is
    /// no longer remembered gets nothing.
    pub fn give_back(&mut self, key: K, rate: Rate) {
        if let Some(full_at) = self.full_at_by_key.get_mut(&key) {
            *full_at = full_at.saturating_sub(rate.pause);
        }
    }

    /// How long `key` would have to wait now, as far as it is remembered; zero if it need not.
    pub fn wait(&self, key: K, rate: Rate, now: Duration) -> Duration {
        self.full_at_by_key.get(&key).map_or(Duration::ZERO, |full_at| rate.wait(*full_at, now))
    }

    fn is_full(&self) -> bool {
        self.full_at_by_key.len() >= self.keys_max
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// MEAP-3: what is given back can be had once, and never adds to the burst.
    #[test]
    fn what_is_given_back_can_be_had_once() {
        let (mut limiter, rate) = (Limiter::new(8), Rate::new(1.0, 2));
        for _ in 0..100 {
            assert_eq!(limiter.check('a', rate, SECOND), Ok(()));
            limiter.give_back('a', rate);
        }
        for now in [SECOND, SECOND * 60] {
            let passed = (0..10).filter(|_| limiter.check('a', rate, now).is_ok()).count();
            assert_eq!(passed, 2);
            limiter.give_back('a', rate);
            assert_eq!((limiter.check('a', rate, now), limiter.check('a', rate, now)), (Ok(()), Err(SECOND)));
        }
        assert_eq!(limiter.check('a', rate, SECOND * 120), Ok(()));
        limiter.give_back('a', rate);
        limiter.give_back('b', rate);
        assert_eq!((0..10).filter(|_| limiter.check('b', rate, SECOND * 120).is_ok()).count(), 2);
    }

    #[test]
    fn a_burst_passes_and_the_rest_is_told_how_long_to_wait() {
        let (mut limiter, rate) = (Limiter::new(8), Rate::new(10.0, 3));
        for _ in 0..3 {
            assert_eq!(limiter.check(1, rate, Duration::ZERO), Ok(()));
        }
        let wait = limiter.check(1, rate, Duration::ZERO).expect_err("the burst is used up");
        assert_eq!((wait, limiter.wait(1, rate, Duration::ZERO)), (Duration::from_millis(100), wait));
        assert_eq!(limiter.check(1, rate, wait), Ok(()));
        assert_eq!(limiter.check(2, rate, wait), Ok(()), "another key has a bucket of its own");
    }

    #[test]
    fn the_quiet_make_room_for_nothing() {
        let (mut limiter, rate) = (Limiter::new(2), Rate::new(1.0, 1));
        assert!(limiter.check(1, rate, Duration::ZERO).is_ok() && limiter.check(2, rate, Duration::ZERO).is_ok());
        for key in 3..5 {
            assert_eq!(limiter.check(key, rate, 2 * SECOND), Ok(()), "nobody is busy any more");
        }
        assert_eq!(limiter.full_at_by_key.len(), 2);
    }

    /// MEAP-3, threat T2: to be forgotten is no way to a fresh bucket.
    #[test]
    fn who_was_pushed_out_comes_back_with_nothing() {
        let (mut limiter, rate) = (Limiter::new(1), Rate::new(1.0, 5));
        for _ in 0..5 {
            assert!(limiter.check(1, rate, Duration::ZERO).is_ok());
        }
        assert!(limiter.check(1, rate, Duration::ZERO).is_err());
        assert!(limiter.check(2, rate, Duration::ZERO).is_ok(), "a newcomer is let in");
        assert!(limiter.check(2, rate, Duration::ZERO).is_err(), "once");
        assert!(limiter.check(1, rate, Duration::ZERO).is_ok(), "on the newcomers' account");
        assert!(limiter.check(1, rate, Duration::ZERO).is_err(), "and no more of its own");
    }

    #[test]
    fn waits_in_milliseconds_are_never_too_short() {
        assert_eq!([0, 1, 1_000_000, 1_000_001].map(|ns| whole_ms(Duration::from_nanos(ns))), [1, 1, 1, 2]);
    }

    #[test]
    fn rates_out_of_bounds_are_the_nearest_within() {
        assert_eq!(Rate::new(f64::NAN, 0), Rate::new(1.0, 1));
        assert_eq!(Rate::new(0.0, 1), Rate::new(0.001, 1));
        assert_eq!(Rate::new(f64::INFINITY, 1), Rate::new(1e6, 1));
    }

    /// Who asks, and how long after the one before.
    fn asking(keys: u8) -> impl Strategy<Value = Vec<(u8, Duration)>> {
        let one = (0..keys, 0_u64..300_000_000).prop_map(|(key, ns)| (key, Duration::from_nanos(ns)));
        proptest::collection::vec(one, 1..200)
    }

    /// What `rate` allows in `span` at most.
    fn allowance(rate: Rate, span: Duration) -> u128 {
        u128::from(rate.burst) + span.as_nanos() / rate.pause.as_nanos()
    }

    proptest! {
        /// MEAP-3: the hint is true and not longer than it must be: coming back then succeeds, coming back earlier does not.
        #[test]
        fn who_comes_back_when_it_is_told_is_let_in(asks in asking(6), per_s in 0.5_f64..200.0, burst in 1_u32..10, keys_max in 1_usize..8) {
            let (mut limiter, rate, mut now) = (Limiter::new(keys_max), Rate::new(per_s, burst), Duration::ZERO);
            for (key, pause) in asks {
                now += pause;
                if let Err(wait) = limiter.check(key, rate, now) {
                    prop_assert!(!wait.is_zero());
                    let mut later = Limiter { full_at_by_key: limiter.full_at_by_key.clone(), ..limiter };
                    let known = later.full_at_by_key.contains_key(&key);
                    if known {
                        prop_assert!(later.check(key, rate, now + wait - Duration::from_nanos(1)).is_err());
                    }
                    prop_assert_eq!(later.check(key, rate, now + wait), Ok(()));
                    prop_assert_eq!(limiter.wait(key, rate, now), if known { wait } else { Duration::ZERO });
                }
            }
        }

        /// MEAP-3: nobody gets more than its rate in any span of time.
        #[test]
        fn no_key_exceeds_its_rate(asks in asking(3), per_s in 0.5_f64..200.0, burst in 1_u32..10) {
            let (mut limiter, rate, mut now) = (Limiter::new(3), Rate::new(per_s, burst), Duration::ZERO);
            let mut passed: BTreeMap<u8, Vec<Duration>> = BTreeMap::new();
            for (key, pause) in asks {
                now += pause;
                if limiter.check(key, rate, now).is_ok() {
                    passed.entry(key).or_default().push(now);
                }
            }
            for times in passed.values() {
                for (at, first) in times.iter().enumerate() {
                    for (count, last) in (1_u128..).zip(&times[at..]) {
                        prop_assert!(count <= allowance(rate, *last - *first));
                    }
                }
            }
        }

        /// Threat T2: many identities get no more than the table has keys, and one; and the table keeps to its bound.
        #[test]
        fn a_crowd_gains_nothing_by_pushing_itself_out(asks in asking(40), per_s in 0.5_f64..50.0, burst in 1_u32..6, keys_max in 1_usize..5) {
            let (mut limiter, rate, mut now) = (Limiter::new(keys_max), Rate::new(per_s, burst), Duration::ZERO);
            let mut passed = 0_u128;
            for (key, pause) in asks {
                now += pause;
                passed += u128::from(limiter.check(key, rate, now).is_ok());
                prop_assert!(limiter.full_at_by_key.len() <= keys_max);
            }
            prop_assert!(passed <= allowance(rate, now) * (keys_max as u128 + 1));
        }
    }
}
