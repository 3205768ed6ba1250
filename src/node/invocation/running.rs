//! The calls that agents of this node work on, so that what an agent calls in turn is known to belong to one of them (threat T20).
//!
//! An agent names the call that it works on by the id that it was given. The node then knows what led to it, how much time is left, and
//! who has to be told when it is cancelled: the call in turn carries the chain one hop further, gets no more time than its parent has
//! left, and does not outlive it. Whoever wants work to go on after its answer makes it without naming a parent.
//!
//! One id may run here twice, since a caller may give a call to a second agent while the first is still being stopped; then the later
//! run counts. Only the caller of the first can do that: another that uses the same id does not become the parent of anybody's calls.
//! Builtin agents call nobody, so their runs are not kept.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Mutex;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::agents::Agent;
use crate::model::{Adapter, AgentId, ErrorCode, Failure, InvocationId, NodeId};
use crate::node::shared::lock;
use crate::proto::invocation::chain;
use crate::wire::invocation::{Hop, Request};

/// The runs of agents that may call in turn. As many as calls are admitted.
#[derive(Debug, Default)]
pub(in crate::node) struct Running {
    runs: Mutex<Runs>,
}

#[derive(Debug, Default)]
struct Runs {
    runs_by_invocation: HashMap<InvocationId, Run>,
    begun: u64,
}

#[derive(Debug)]
struct Run {
    number: u64,
    caller: NodeId,
    agent: AgentId,
    hops: Vec<Hop>,
    deadline: Duration,
    cancel: CancellationToken,
}

/// What a call in turn has from its parent.
#[derive(Debug)]
pub(in crate::node) struct Parent {
    /// The node that called.
    pub(in crate::node) caller: NodeId,
    /// The calls that led to it.
    pub(in crate::node) hops: Vec<Hop>,
    /// When it must be over, since the start of the node.
    pub(in crate::node) deadline: Duration,
    /// Cancelled when the parent is over, one way or the other.
    pub(in crate::node) cancel: CancellationToken,
}

impl Running {
    /// An agent begins with `request`, which `cancel` stops. It can be named as a parent until the guard is dropped.
    pub(super) fn enter<'a>(
        &'a self,
        agent: &Agent,
        caller: NodeId,
        request: &Request,
        deadline: Duration,
        cancel: &CancellationToken,
    ) -> Option<Entered<'a>> {
        let is_builtin = matches!(agent.checked().definition.adapter, Adapter::Builtin { .. });
        if is_builtin { None } else { self.begin(agent.id(), caller, request, deadline, cancel) }
    }

    fn begin<'a>(
        &'a self,
        agent: AgentId,
        caller: NodeId,
        request: &Request,
        deadline: Duration,
        cancel: &CancellationToken,
    ) -> Option<Entered<'a>> {
        let mut runs = lock(&self.runs);
        runs.begun = runs.begun.wrapping_add(1);
        let (number, invocation) = (runs.begun, request.invocation);
        let cancel = cancel.child_token();
        let run = Run { number, caller, agent, hops: request.hops.clone(), deadline, cancel: cancel.clone() };
        match runs.runs_by_invocation.entry(invocation) {
            Entry::Occupied(known) if known.get().caller != caller => return None,
            Entry::Occupied(mut known) => drop(known.insert(run)),
            Entry::Vacant(place) => drop(place.insert(run)),
        }
        Some(Entered { running: self, invocation, number, cancel })
    }

    /// What a call has whose maker works on `parent`.
    ///
    /// # Errors
    /// `INVALID_REQUEST` if no such call runs here, or if too many have led to it.
    pub(in crate::node) fn parent(&self, here: NodeId, parent: InvocationId) -> Result<Parent, Failure> {
        let runs = lock(&self.runs);
        let Some(run) = runs.runs_by_invocation.get(&parent) else {
            let message = format!(
                "no agent of this node works on call {parent}; parent is the id of the call that the caller works on, as it was given, \
                 until it is answered"
            );
            return Err(Failure::new(ErrorCode::InvalidRequest, message).with("path", "/parent"));
        };
        let hops = chain::extended(&run.hops, Hop { node: here, agent: run.agent })?;
        Ok(Parent { caller: run.caller, hops, deadline: run.deadline, cancel: run.cancel.clone() })
    }
}

/// A run that can be named as a parent. What was called in its name ends with it.
#[derive(Debug)]
pub(super) struct Entered<'a> {
    running: &'a Running,
    invocation: InvocationId,
    number: u64,
    cancel: CancellationToken,
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        self.cancel.cancel();
        let mut runs = lock(&self.running.runs);
        if runs.runs_by_invocation.get(&self.invocation).is_some_and(|run| run.number == self.number) {
            runs.runs_by_invocation.remove(&self.invocation);
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::model::Priority;
    use crate::wire::invocation::Body;

    fn agent(number: u8) -> AgentId {
        AgentId::from_public_key([number; 32])
    }

    fn node() -> NodeId {
        libp2p_identity::PeerId::random().into()
    }

    fn request(hops: Vec<Hop>) -> Request {
        Request {
            invocation: InvocationId::from_random(7),
            capability: "test".parse().expect("a name"),
            version: None,
            agent: agent(1),
            budget_ms: 1_000,
            priority: Priority::Normal,
            key: None,
            fence: None,
            traceparent: None,
            hops,
            confirm: false,
            window_bytes: 0,
            body: Body::Inline(Bytes::from_static(b"1")),
            with_context: false,
        }
    }

    /// Threat T20: a call in turn has the chain one hop longer, the time that is left, and the end of its parent.
    #[test]
    fn a_call_in_turn_has_chain_deadline_and_end_of_its_parent() {
        let (running, here, caller, stop) = (Running::default(), node(), node(), CancellationToken::new());
        let before = Hop { node: caller, agent: agent(9) };
        let request = request(vec![before]);
        let second = Duration::from_secs(1);
        let entered = running.begin(agent(1), caller, &request, second, &stop);

        let parent = running.parent(here, request.invocation).expect("it runs");
        assert_eq!((parent.hops, parent.deadline), (vec![before, Hop { node: here, agent: agent(1) }], second));
        assert!(!parent.cancel.is_cancelled());

        drop(entered);
        assert!(parent.cancel.is_cancelled() && !stop.is_cancelled(), "what was called in turn ends with its parent");
        assert_eq!(running.parent(here, request.invocation).expect_err("it is over").details["path"], "/parent");
    }

    #[test]
    fn cancelling_the_parent_is_heard_by_what_it_called() {
        let (running, caller, stop) = (Running::default(), node(), CancellationToken::new());
        let _entered = running.begin(agent(1), caller, &request(Vec::new()), Duration::ZERO, &stop);
        let parent = running.parent(node(), InvocationId::from_random(7)).expect("it runs");
        stop.cancel();
        assert!(parent.cancel.is_cancelled());
    }

    /// Threat T20: whoever learns the id of a call cannot slip between it and what it calls.
    #[test]
    fn a_stranger_with_the_same_id_becomes_nobodys_parent() {
        let (running, here, caller, stop) = (Running::default(), node(), node(), CancellationToken::new());
        let first = running.begin(agent(1), caller, &request(Vec::new()), Duration::ZERO, &stop);
        assert!(running.begin(agent(2), node(), &request(Vec::new()), Duration::ZERO, &stop).is_none());
        let parent = || running.parent(here, InvocationId::from_random(7)).map(|parent| parent.hops[0].agent);
        assert_eq!(parent(), Ok(agent(1)));

        let second = running.begin(agent(2), caller, &request(Vec::new()), Duration::ZERO, &stop);
        assert_eq!(parent(), Ok(agent(2)), "the caller itself may have gone to another agent");
        drop(first);
        assert_eq!(parent(), Ok(agent(2)), "the end of the first does not end the second");
        drop(second);
        assert!(parent().is_err());
    }
}
