//! Calls that agents make in turn: how long a chain of them may grow, and that it never closes a circle (threat T20).
//!
//! A call that an agent makes while it works on another carries the chain of those before it, outermost first. The node on which it is
//! made adds one hop, itself and the calling agent; a chain of more than [`HOPS_MAX`] hops is refused, and so is a call to an agent that
//! stands in it already: it waits for itself. Both are looked at where the call is made and once more where it arrives.
//!
//! Nobody signs the chain. What is proven is its last hop, since the channel proves which node calls; what stands before it is the word of
//! the nodes on the way. A node that leaves it out can let a circle run, which the deadline ends: each call in turn gets no more than
//! what is left of the one before it.

use crate::model::{AgentId, ErrorCode, Failure, NodeId};
use crate::wire::invocation::{HOPS_MAX, Hop};

/// The chain of a call that the agent of `hop` makes while it works on a call with the chain `before`.
///
/// # Errors
/// `INVALID_REQUEST` that names the chain if it is too long.
pub fn extended(before: &[Hop], hop: Hop) -> Result<Vec<Hop>, Failure> {
    let chain: Vec<Hop> = before.iter().copied().chain([hop]).collect();
    if chain.len() <= HOPS_MAX {
        return Ok(chain);
    }
    let message = format!("{} calls in turn have led to this one, at most {HOPS_MAX} may: {}", chain.len(), shown(&chain));
    Err(Failure::new(ErrorCode::InvalidRequest, message).with("limit", HOPS_MAX).with("chain", facts(&chain)))
}

/// Whether `agent` may be called at the end of `chain`.
///
/// # Errors
/// `INVALID_REQUEST` that names the chain if the agent stands in it.
pub fn check(chain: &[Hop], agent: AgentId) -> Result<(), Failure> {
    if !contains(chain, agent) {
        return Ok(());
    }
    let message = format!("calling {} once more would close a circle: {}", agent.prefix(), shown(chain));
    Err(Failure::new(ErrorCode::InvalidRequest, message).with("agent_id", agent.to_string()).with("chain", facts(chain)))
}

/// Whether a call of `agent` that has come from `caller` may be done here.
///
/// # Errors
/// As [`check`]; also if somebody else than the caller stands at the end of the chain, or if it is too long.
pub fn check_arrived(chain: &[Hop], agent: AgentId, caller: NodeId) -> Result<(), Failure> {
    if let Some((last, before)) = chain.split_last() {
        extended(before, *last)?;
        if last.node != caller {
            let message = format!("the chain of this call ends with node {}, which is not the one that calls", last.node.short());
            return Err(Failure::new(ErrorCode::InvalidRequest, message).with("chain", facts(chain)));
        }
    }
    check(chain, agent)
}

/// Whether `agent` stands in `chain`.
pub fn contains(chain: &[Hop], agent: AgentId) -> bool {
    chain.iter().any(|hop| hop.agent == agent)
}

fn shown(chain: &[Hop]) -> String {
    let prefixes: Vec<String> = chain.iter().map(|hop| hop.agent.prefix()).collect();
    prefixes.join(" > ")
}

fn facts(chain: &[Hop]) -> Vec<serde_json::Value> {
    chain.iter().map(|hop| serde_json::json!({ "agent_id": hop.agent.to_string(), "node_id": hop.node.to_string() })).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn agent(number: u8) -> AgentId {
        AgentId::from_public_key([number; 32])
    }

    fn node(number: u8) -> NodeId {
        let key = libp2p_identity::Keypair::ed25519_from_bytes([number; 32]).expect("32 bytes are a key");
        key.public().to_peer_id().into()
    }

    fn hop(number: u8) -> Hop {
        Hop { node: node(1), agent: agent(number) }
    }

    fn chain(length: u8) -> Vec<Hop> {
        (1..=length).map(hop).collect()
    }

    /// Threat T20: eight hops are a chain, nine are too many, and the refusal names all of them.
    #[test]
    fn a_chain_grows_to_its_bound_and_no_further() {
        assert_eq!(extended(&chain(7), hop(8)), Ok(chain(8)));
        let failure = extended(&chain(8), hop(9)).expect_err("too long");
        assert_eq!((failure.code, failure.retryable), (ErrorCode::InvalidRequest, false));
        assert_eq!(failure.details["chain"].as_array().map(Vec::len), Some(9));
        assert!((1..=9).all(|number| failure.message.contains(&agent(number).prefix())), "{failure}");
        assert!(check_arrived(&chain(8), agent(9), node(1)).is_ok());
        assert!(check_arrived(&chain(9), agent(10), node(1)).is_err());
    }

    /// Threat T20: whoever is waited for is not called.
    #[test]
    fn an_agent_in_the_chain_is_refused_wherever_it_stands() {
        for number in 1..=3 {
            let failure = check(&chain(3), agent(number)).expect_err("it stands in it");
            assert_eq!(failure.details["agent_id"], agent(number).to_string());
            assert!(failure.message.ends_with(&shown(&chain(3))), "{failure}");
            assert!(check_arrived(&chain(3), agent(number), node(1)).is_err());
        }
        assert_eq!(check(&chain(3), agent(4)), Ok(()));
        assert_eq!(check_arrived(&[], agent(1), node(2)), Ok(()), "a client's own call has no chain");
    }

    #[test]
    fn the_last_hop_is_the_one_that_the_channel_proves() {
        let failure = check_arrived(&chain(2), agent(9), node(2)).expect_err("somebody else calls");
        assert!(failure.message.contains(&node(1).short()), "{failure}");
    }

    proptest! {
        /// Threat T20: whatever agents call in turn, it ends after a bounded number of calls, with no agent twice.
        #[test]
        fn every_chain_of_calls_ends(calls in proptest::collection::vec(0_u8..12, 1..100)) {
            let (mut chain, mut calling) = (Vec::new(), agent(0));
            let mut done = vec![calling];
            for next in calls.into_iter().map(agent) {
                let Ok(longer) = extended(&chain, Hop { node: node(1), agent: calling }) else { break };
                if check(&longer, next).is_ok() {
                    prop_assert!(check_arrived(&longer, next, node(1)).is_ok());
                    prop_assert!(!done.contains(&next));
                    done.push(next);
                    (chain, calling) = (longer, next);
                }
            }
            prop_assert!(done.len() <= HOPS_MAX + 1);
        }
    }
}
