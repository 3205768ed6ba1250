//! One query that the directory alone cannot answer: when to look further, and when to stop waiting.
//!
//! A search asks the DHT for providers of each name, puts the whole query to each provider once, and waits for hosts that are being
//! dialled. It ends when nothing is outstanding, or at its deadline with what came until then; so every query is answered once.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::model::{CapabilityName, NodeId};

/// Providers that one query is put to.
const PROVIDERS_MAX: usize = 64;

/// What the shell must do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Ask the DHT who provides this name; report with [`State::on_providers`].
    Lookup(CapabilityName),
    /// Put the query to this node; report with [`State::on_answer`].
    Ask(NodeId),
    /// Answer from the directory: no more will come.
    Done,
}

/// One search.
#[derive(Debug)]
pub struct State {
    here: NodeId,
    lookups: BTreeSet<CapabilityName>,
    asked: BTreeSet<NodeId>,
    unanswered: BTreeSet<NodeId>,
    dialling: BTreeSet<NodeId>,
    deadline: Duration,
    done: bool,
}

impl State {
    /// Begins a search for `names` that waits for the hosts in `dialling` as well, until `deadline`.
    pub fn new(
        here: NodeId,
        names: BTreeSet<CapabilityName>,
        dialling: BTreeSet<NodeId>,
        deadline: Duration,
        outputs: &mut Vec<Output>,
    ) -> Self {
        outputs.extend(names.iter().cloned().map(Output::Lookup));
        let mut state = Self { here, lookups: names, asked: BTreeSet::new(), unanswered: BTreeSet::new(), dialling, deadline, done: false };
        state.settle(outputs);
        state
    }

    /// The DHT named providers of `name`; `over` if it will name no more.
    pub fn on_providers(&mut self, name: &CapabilityName, nodes: impl IntoIterator<Item = NodeId>, over: bool, outputs: &mut Vec<Output>) {
        if self.done {
            return;
        }
        for node in nodes {
            if node != self.here && self.asked.len() < PROVIDERS_MAX && self.asked.insert(node) {
                self.unanswered.insert(node);
                outputs.push(Output::Ask(node));
            }
        }
        if over {
            self.lookups.remove(name);
        }
        self.settle(outputs);
    }

    /// `node` answered, or will not; its records have been taken in.
    pub fn on_answer(&mut self, node: NodeId, outputs: &mut Vec<Output>) {
        self.unanswered.remove(&node);
        self.settle(outputs);
    }

    /// Dialling `node` is over, one way or the other.
    pub fn on_dialled(&mut self, node: NodeId, outputs: &mut Vec<Output>) {
        if self.dialling.remove(&node) {
            self.settle(outputs);
        }
    }

    /// Records of a node that is now being dialled came in with an answer: wait for it too.
    pub fn on_dialling(&mut self, node: NodeId) {
        if !self.done {
            self.dialling.insert(node);
        }
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Duration, outputs: &mut Vec<Output>) {
        if now >= self.deadline && !self.done {
            self.done = true;
            outputs.push(Output::Done);
        }
    }

    /// When [`State::handle_timeout`] ends the search.
    pub fn poll_timeout(&self) -> Option<Duration> {
        (!self.done).then_some(self.deadline)
    }

    fn settle(&mut self, outputs: &mut Vec<Output>) {
        if !self.done && self.lookups.is_empty() && self.unanswered.is_empty() && self.dialling.is_empty() {
            self.done = true;
            outputs.push(Output::Done);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node() -> NodeId {
        libp2p_identity::PeerId::random().into()
    }

    fn name(text: &str) -> CapabilityName {
        text.parse().expect("valid")
    }

    #[test]
    fn each_provider_is_asked_once_and_the_search_ends_with_the_last_answer() {
        let (here, there, mut outputs) = (node(), node(), Vec::new());
        let mut state = State::new(here, BTreeSet::from([name("a"), name("b")]), BTreeSet::new(), Duration::from_secs(1), &mut outputs);
        assert_eq!(std::mem::take(&mut outputs), [Output::Lookup(name("a")), Output::Lookup(name("b"))]);
        state.on_providers(&name("a"), [here, there], true, &mut outputs);
        state.on_providers(&name("b"), [there], true, &mut outputs);
        assert_eq!(std::mem::take(&mut outputs), [Output::Ask(there)]);
        state.on_answer(there, &mut outputs);
        assert_eq!(outputs, [Output::Done]);
    }

    #[test]
    fn a_search_with_nothing_to_wait_for_is_done_at_once() {
        let mut outputs = Vec::new();
        State::new(node(), BTreeSet::new(), BTreeSet::new(), Duration::from_secs(1), &mut outputs);
        assert_eq!(outputs, [Output::Done]);
    }

    #[test]
    fn the_deadline_ends_it_once() {
        let (host, mut outputs) = (node(), Vec::new());
        let mut state = State::new(node(), BTreeSet::new(), BTreeSet::from([host]), Duration::from_secs(1), &mut outputs);
        state.handle_timeout(Duration::from_millis(999), &mut outputs);
        assert!(outputs.is_empty());
        state.handle_timeout(Duration::from_secs(1), &mut outputs);
        state.on_dialled(host, &mut outputs);
        assert_eq!(outputs, [Output::Done]);
    }
}
