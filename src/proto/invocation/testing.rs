//! Candidates in the making, for the tests of this folder.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::breaker;
use super::routing;
use crate::model::{AgentId, Balance};
use crate::proto::directory::rank::{Answer, Candidate, Ranking, Standing, Terms};
use crate::proto::directory::{Availability, Entry, Reach, Traffic};
use crate::proto::peers::trust::Estimate;
use crate::wire::directory::Record;
use crate::wire::directory::tests::record;
use crate::wire::{AgentKey, NodeKey, Signed};

/// What calls share where nobody explores.
pub(super) fn calm() -> routing::State {
    routing::State::new(config())
}

pub(super) fn config() -> routing::Config {
    let breaker = breaker::Config::default();
    routing::Config { balance: Balance::LeastLoad, exploration: 0.0, retry_budget: 0.1, breaker }
}

/// A candidate in the making; known well, unless it is a stranger.
#[derive(Clone, Debug)]
pub(super) struct Agent {
    score: f64,
    standing: Standing,
    entry: Entry,
    estimate: Estimate,
    number: u8,
}

pub(super) fn agent(number: u8) -> Agent {
    let record = Arc::new(record(&node(), number, 1, 1_000, &["text-analysis"]));
    let (availability, reach, traffic) = (Availability::Available, Reach::Connected, Arc::<Traffic>::default());
    let entry = Entry { record, availability, reach, in_flight: 0, queued: 0, others: 0, traffic };
    let estimate = Estimate { successes: 10.0, ..Estimate::stranger() };
    Agent { score: 0.5, standing: Standing::Proven, entry, estimate, number }
}

impl Agent {
    pub(super) fn score(self, score: f64) -> Self {
        Self { score, ..self }
    }

    pub(super) fn stranger(self) -> Self {
        Self { estimate: Estimate::stranger(), standing: Standing::Unproven, ..self }
    }

    pub(super) fn doubted(self) -> Self {
        Self { standing: Standing::Doubted, ..self }
    }

    pub(super) fn here(mut self) -> Self {
        self.entry.reach = Reach::Here;
        self
    }

    /// Calls of others, and of this node.
    pub(super) fn load(mut self, others: u32, own: u32) -> Self {
        self.entry.others = others;
        self.entry.traffic = Arc::default();
        self.entry.traffic.in_flight.store(own, Ordering::Relaxed);
        self
    }

    pub(super) fn concurrency(self, concurrency: u32) -> Self {
        self.changed(|record| record.concurrency = concurrency)
    }

    pub(super) fn idempotent(self) -> Self {
        self.changed(|record| record.capabilities[0].idempotent = true)
    }

    pub(super) fn claims_ms(self, ms: u64) -> Self {
        self.changed(|record| record.capabilities[0].constraints.response_time_ms = Some(ms))
    }

    fn changed(mut self, change: impl FnOnce(&mut Record)) -> Self {
        let mut body = (**self.entry.record).clone();
        change(&mut body);
        let key = AgentKey::from_seed(&[self.number; 32]);
        self.entry.record = Arc::new(Signed::sign(body, &node(), Some(&key)).expect("a valid record"));
        self
    }

    pub(super) fn id(&self) -> AgentId {
        id(self.number)
    }

    pub(super) fn build(&self) -> Candidate {
        Candidate {
            entry: Arc::new(self.entry.clone()),
            capability: 0,
            score: self.score,
            terms: Terms { r#match: 1.0, trust: 0.5, latency: 0.5, cost: 1.0 },
            estimate: self.estimate,
            latency_ms: None,
            standing: self.standing,
            plausible: self.score,
            promised: 1.0,
        }
    }
}

/// The agents in this order.
pub(super) fn ranking(agents: &[Agent]) -> Ranking {
    Ranking::new(Answer { candidates: agents.iter().map(Agent::build).collect(), rejected: Vec::new() })
}

pub(super) fn id(number: u8) -> AgentId {
    AgentKey::from_seed(&[number; 32]).id()
}

pub(super) fn number_of(agent: AgentId) -> u8 {
    (1..=u8::MAX).find(|number| id(*number) == agent).expect("one of the tests' agents")
}

pub(super) fn node() -> NodeKey {
    NodeKey::new(libp2p_identity::Keypair::ed25519_from_bytes([1; 32]).expect("32 bytes"))
}
