//! Who may have calls done here how often (MEAP-3): peers, the callers of one agent, and the clients of the API.
//!
//! Three tiers, each off unless it is configured. A *peer* is known by its key, whatever name it claims, and has a bucket of its own. An
//! *agent* has one bucket for all its callers, by the word of its definition; it is asked only when the agent would really run, so a
//! result that is kept under an idempotency key costs nothing, nor does a call that the agent had no place for. The *clients* of the API share
//! one bucket, as they share one token.
//!
//! A refusal is RATE_LIMIT_EXCEEDED before anything was begun, so that the call may go elsewhere and nobody's trust suffers; its
//! `retry_after_ms` covers every tier that the call has to pass.

use std::sync::Mutex;
use std::time::Duration;

use crate::config::Limits;
use crate::model::{AgentId, ErrorCode, Failure, NodeId, RateLimit};
use crate::node::shared::lock;
use crate::proto::peers::rate::{Limiter, Rate, whole_ms};
use crate::wire::directory::AGENTS_PER_NODE_MAX;

/// Peers whose buckets are remembered: many times as many as may be connected.
const PEERS_MAX: usize = 4_096;

/// The buckets of this node.
#[derive(Debug)]
pub(in crate::node) struct Rates {
    per_peer: Option<Rate>,
    peers: Mutex<Limiter<NodeId>>,
    agents: Mutex<Limiter<AgentId>>,
    per_client: Option<Rate>,
    clients: Mutex<Limiter<()>>,
}

impl Rates {
    pub(in crate::node) fn new(limits: &Limits) -> Self {
        let rate = |per_s: u32, burst: u32| (per_s > 0).then(|| Rate::new(per_s.into(), burst));
        Self {
            per_peer: rate(limits.calls_per_peer_per_s, limits.calls_per_peer_burst),
            peers: Mutex::new(Limiter::new(PEERS_MAX)),
            // An agent that was detached may leave its bucket behind for as long as it is not full.
            agents: Mutex::new(Limiter::new(2 * AGENTS_PER_NODE_MAX)),
            per_client: rate(limits.api_requests_per_s, limits.api_requests_burst),
            clients: Mutex::new(Limiter::new(1)),
        }
    }

    /// A call has come from `peer`. The time is asked for only where there is a limit.
    pub(super) fn peer(&self, peer: NodeId, now: impl FnOnce() -> Duration) -> Result<(), Failure> {
        let Some(rate) = self.per_peer else { return Ok(()) };
        lock(&self.peers).check(peer, rate, now()).map_err(|wait| refusal("this peer calls too often", "peer", wait))
    }

    /// A call of `caller` is about to be done by `agent`, which allows so many.
    pub(super) fn agent(
        &self,
        agent: AgentId,
        limit: Option<RateLimit>,
        caller: NodeId,
        now: impl FnOnce() -> Duration,
    ) -> Result<(), Failure> {
        let Some(limit) = limit else { return Ok(()) };
        let now = now();
        let checked = lock(&self.agents).check(agent, Rate::new(limit.per_s, limit.burst()), now);
        checked.map_err(|wait| {
            // Whoever comes back has to pass the door of peers again; this call has used up a place there.
            let again = self.per_peer.map_or(Duration::ZERO, |rate| lock(&self.peers).wait(caller, rate, now));
            refusal("this agent is called too often", "agent", wait.max(again))
        })
    }

    /// A call that was let in found no place at the agent.
    pub(super) fn agent_was_busy(&self, agent: AgentId, limit: Option<RateLimit>) {
        if let Some(limit) = limit {
            lock(&self.agents).give_back(agent, Rate::new(limit.per_s, limit.burst()));
        }
    }

    /// A client of the API asks for work.
    pub(in crate::node) fn client(&self, now: Duration) -> Result<(), Failure> {
        let Some(rate) = self.per_client else { return Ok(()) };
        let checked = lock(&self.clients).check((), rate, now);
        checked.map_err(|wait| refusal("the clients of this node ask too often (limits.api_requests_per_s)", "clients", wait))
    }
}

fn refusal(what: &str, scope: &str, wait: Duration) -> Failure {
    let retry_after_ms = whole_ms(wait);
    let message = format!("{what}; come back in {retry_after_ms} ms");
    Failure::new(ErrorCode::RateLimitExceeded, message).with("scope", scope).with("retry_after_ms", retry_after_ms)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ZERO: Duration = Duration::ZERO;

    fn limits(per_peer: u32, api: u32) -> Limits {
        let (calls_per_peer_burst, api_requests_burst) = (2, 3);
        Limits { calls_per_peer_per_s: per_peer, calls_per_peer_burst, api_requests_per_s: api, api_requests_burst, ..Limits::default() }
    }

    fn peer() -> NodeId {
        libp2p_identity::PeerId::random().into()
    }

    fn wait(refused: Result<(), Failure>) -> Duration {
        let failure = refused.expect_err("over the limit");
        assert!(failure.code == ErrorCode::RateLimitExceeded && failure.retryable && failure.is_refusal(), "{failure:?}");
        Duration::from_millis(failure.retry_after_ms().expect("a hint"))
    }

    /// MEAP-3: each peer has its own budget, by its key.
    #[test]
    fn one_peer_does_not_use_up_the_budget_of_another() {
        let (rates, one, other) = (Rates::new(&limits(10, 0)), peer(), peer());
        for _ in 0..2 {
            assert_eq!(rates.peer(one, || ZERO), Ok(()));
        }
        let back = wait(rates.peer(one, || ZERO));
        assert_eq!(back, Duration::from_millis(100));
        assert_eq!(rates.peer(other, || ZERO), Ok(()));
        assert_eq!(rates.peer(one, || back), Ok(()), "the hint is true");
    }

    #[test]
    fn an_agent_has_one_budget_for_all_its_callers_if_it_asks_for_one() {
        let (rates, agent) = (Rates::new(&limits(0, 0)), AgentId::from_public_key([1; 32]));
        let limit = Some(RateLimit { per_s: 0.5, burst: None });
        assert_eq!(rates.agent(agent, limit, peer(), || ZERO), Ok(()));
        assert_eq!(wait(rates.agent(agent, limit, peer(), || ZERO)), Duration::from_secs(2));
        assert_eq!(rates.agent(AgentId::from_public_key([2; 32]), limit, peer(), || ZERO), Ok(()));
        for _ in 0..100 {
            assert_eq!(rates.agent(agent, None, peer(), || ZERO), Ok(()));
        }
    }

    /// MEAP-3: the hint of one tier holds for the others too.
    #[test]
    fn who_comes_back_to_an_agent_passes_the_door_of_peers_as_well() {
        let (rates, agent, caller) = (Rates::new(&limits(1, 0)), AgentId::from_public_key([1; 32]), peer());
        let limit = Some(RateLimit { per_s: 100.0, burst: Some(1) });
        assert!(rates.peer(caller, || ZERO).is_ok() && rates.agent(agent, limit, caller, || ZERO).is_ok());
        assert!(rates.peer(caller, || ZERO).is_ok());
        let back = wait(rates.agent(agent, limit, caller, || ZERO));
        assert!(rates.peer(caller, || back).is_ok() && rates.agent(agent, limit, caller, || back).is_ok(), "{back:?}");
    }

    #[test]
    fn what_is_not_configured_limits_nobody() {
        let (open, closed) = (Rates::new(&Limits::default()), Rates::new(&limits(0, 1)));
        for _ in 0..1_000 {
            assert!(open.peer(peer(), || ZERO).is_ok() && open.client(ZERO).is_ok());
        }
        for _ in 0..3 {
            assert_eq!(closed.client(ZERO), Ok(()));
        }
        assert_eq!(wait(closed.client(ZERO)), Duration::from_secs(1));
    }
}
