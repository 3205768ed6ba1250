//! How many questions of peers about contexts are answered at once: each holds a worker while it reads a file, and no peer may hold all.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use crate::model::NodeId;
use crate::node::shared::lock;

/// Questions that are answered at once.
const QUESTIONS_MAX: usize = 32;
/// Those of one peer, which tells of each change as it is made: half, so that no peer alone keeps the others out.
const QUESTIONS_PER_PEER_MAX: usize = 16;

/// Those that are being answered, by who asked.
#[derive(Debug, Default)]
pub(in crate::node) struct Questions(Mutex<BTreeMap<NodeId, usize>>);

/// One of them, for as long as this lives.
#[derive(Debug)]
pub(in crate::node) struct Asked {
    questions: Arc<Questions>,
    node: NodeId,
}

impl Questions {
    /// A place for a question of `node`, if there is one.
    pub(in crate::node) fn begin(self: &Arc<Self>, node: NodeId) -> Option<Asked> {
        let mut asked = lock(&self.0);
        let has_room = asked.values().sum::<usize>() < QUESTIONS_MAX && asked.get(&node).is_none_or(|of| *of < QUESTIONS_PER_PEER_MAX);
        has_room.then(|| {
            *asked.entry(node).or_default() += 1;
            Asked { questions: Arc::clone(self), node }
        })
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        let mut asked = lock(&self.questions.0);
        if let Some(of) = asked.get_mut(&self.node) {
            *of -= 1;
            if *of == 0 {
                asked.remove(&self.node);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Threat T28: a peer that asks without end leaves room for the others.
    #[test]
    fn a_peer_has_a_share_of_the_questions() {
        let questions = Arc::new(Questions::default());
        let node = |_| NodeId::from(libp2p_identity::Keypair::generate_ed25519().public().to_peer_id());
        let nodes: Vec<NodeId> = (0..3).map(node).collect();
        let mut asked: Vec<Asked> = (0..QUESTIONS_PER_PEER_MAX).filter_map(|_| questions.begin(nodes[0])).collect();
        assert_eq!(asked.len(), QUESTIONS_PER_PEER_MAX);
        assert!(questions.begin(nodes[0]).is_none(), "past its share");
        asked.extend((0..QUESTIONS_PER_PEER_MAX).filter_map(|_| questions.begin(nodes[1])));
        assert_eq!(asked.len(), QUESTIONS_MAX);
        assert!(questions.begin(nodes[2]).is_none(), "past that of all");
        asked.remove(0);
        assert!(questions.begin(nodes[2]).is_some());
        drop(asked);
        assert!(lock(&questions.0).is_empty());
    }
}
