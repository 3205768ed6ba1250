//! Who gets a try although others are known to be good: newcomers, and those that failed and may have recovered.
//!
//! Without it nobody could earn trust or earn it back. With too much of it a swarm of fresh keys would live on it (threats T16, T17). So
//! a call explores only out of a budget that first attempts fill with a configured share; and each agent is tried by one call at a time,
//! not more often than every `PAUSE`. Of the budget at most `FALLEN_SHARE` goes to agents that were found wanting, until one of them
//! does well at its last try. Nobody is tried who by its own word is no match for the best.
//!
//! While even the best is unproven, there is nothing to protect: then a quarter of the calls looks around besides, so that whoever
//! promises most does not keep the calls only because nobody else was ever asked.

use std::collections::BTreeMap;
use std::time::Duration;

use rand::Rng;

use crate::model::AgentId;
use crate::proto::directory::rank::{Ranking, Standing};

/// Part of the budget for agents that were found wanting. The rest is not saved for them, so that one alone never gets the whole budget.
const FALLEN_SHARE: f64 = 0.4;
/// Share of calls that look around while nobody is proven.
const UNSURE_SHARE: f64 = 0.25;
/// Tries that may be saved.
const SAVED_MAX: f64 = 2.0;
/// Pause between two tries of one agent.
const PAUSE: Duration = Duration::from_millis(250);
/// Agents whose tries are remembered; while there are as many, no further one is tried.
const TRIALS_MAX: usize = 1_024;
/// Candidates that are looked at for one try.
pub(super) const PICKS_MAX: usize = 4;

/// Who is to be tried.
#[derive(Debug, Clone, Copy)]
pub struct Try {
    /// Where it stands in the ranking.
    pub index: usize,
    /// Whether it was found wanting before.
    pub second_chance: bool,
}

#[derive(Debug)]
struct Trial {
    runs: bool,
    went_well: bool,
    again_at: Duration,
}

/// The budget and who was tried of late.
#[derive(Debug)]
pub struct Exploration {
    share: f64,
    saved: f64,
    trials_by_agent: BTreeMap<AgentId, Trial>,
}

impl Exploration {
    /// Explores with `share` of all calls, 0 to 1.
    pub fn new(share: f64) -> Self {
        Self { share: share.clamp(0.0, 1.0), saved: 0.0, trials_by_agent: BTreeMap::new() }
    }

    /// Whom the first attempt of a call explores, if it is to explore anybody. The try must be ended.
    pub fn pick(
        &mut self,
        ranking: &Ranking,
        usable: impl Fn(usize) -> bool,
        looked: &mut usize,
        now: Duration,
        rng: &mut impl Rng,
    ) -> Option<Try> {
        if self.share <= 0.0 {
            return None;
        }
        self.saved = (self.saved + self.share).min(SAVED_MAX);
        let candidates = ranking.candidates();
        let first = candidates.first()?;
        let is_known = first.estimate.successes + first.estimate.failures >= 0.5;
        let unsure = first.standing == Standing::Unproven && is_known && rng.random_bool(UNSURE_SHARE);
        if !unsure && self.saved < 1.0 {
            return None;
        }
        let (newcomers, fallen) = (ranking.newcomers(), ranking.fallen());
        let second_chance = !unsure && !fallen.is_empty() && (newcomers.is_empty() || rng.random_bool(FALLEN_SHARE));
        let pool = if second_chance { fallen } else { newcomers };
        if pool.is_empty() {
            return None;
        }
        for _ in 0..PICKS_MAX {
            *looked += 1;
            let Some(&index) = pool.get(rng.random_range(0..pool.len())) else { continue };
            let Some(candidate) = candidates.get(index) else { continue };
            // Whoever is as good as the best gets calls anyway.
            if candidate.is_near(first.standing, first.score) || !usable(index) || !self.may_try(candidate.agent(), now) {
                continue;
            }
            if !unsure {
                self.saved -= 1.0;
            }
            let went_well = self.trials_by_agent.get(&candidate.agent()).is_some_and(|trial| trial.went_well);
            if second_chance && newcomers.is_empty() && !went_well && !rng.random_bool(FALLEN_SHARE) {
                return None;
            }
            let trial = Trial { runs: true, went_well, again_at: now.saturating_add(PAUSE) };
            self.trials_by_agent.insert(candidate.agent(), trial);
            return Some(Try { index, second_chance });
        }
        None
    }

    fn may_try(&mut self, agent: AgentId, now: Duration) -> bool {
        match self.trials_by_agent.get(&agent) {
            Some(trial) => !trial.runs && trial.again_at <= now,
            None => {
                if self.trials_by_agent.len() >= TRIALS_MAX {
                    self.trials_by_agent.retain(|_, trial| trial.runs || trial.again_at > now);
                }
                self.trials_by_agent.len() < TRIALS_MAX
            }
        }
    }

    /// The try of `agent` is over, well or badly if it says anything about it.
    pub fn on_end(&mut self, agent: AgentId, well: Option<bool>) {
        if let Some(trial) = self.trials_by_agent.get_mut(&agent) {
            trial.runs = false;
            trial.went_well = well.unwrap_or(trial.went_well);
        }
    }
}
