//! Tasks that ended a moment ago, whole: whoever waits for an end mostly asks for the result at once, and is spared the way to the disk.
//!
//! What is here is durable, and the journal says the same; so all of it may be let go of at any time. There are at most [`TASKS_MAX`], with
//! [`BYTES_MAX`] together, and the oldest make room; the next checkpoint lets go of all, so that a node without work holds none.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use serde_json::Value;

use crate::model::TaskId;
use crate::proto::task::state::State;

/// So many ended in the last tenth of a second, where a node does what it can.
const TASKS_MAX: usize = 512;
/// How long their entries and outputs are together, in bytes. As values they take several times that.
const BYTES_MAX: usize = 4 * 1024 * 1024;

/// A task that has ended, with the value of each output.
#[derive(Debug)]
pub(in crate::node) struct Whole {
    state: State,
    outputs: Vec<Option<Arc<Value>>>,
    bytes: usize,
}

impl Whole {
    pub(super) fn state(&self) -> &State {
        &self.state
    }

    pub(super) fn outputs(&self) -> &[Option<Arc<Value>>] {
        &self.outputs
    }

    /// How large it is, as text.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}

/// The last of them.
#[derive(Debug, Default)]
pub(super) struct Recent {
    tasks: BTreeMap<TaskId, Arc<Whole>>,
    /// In the order of their ends.
    order: VecDeque<TaskId>,
    bytes: usize,
}

impl Recent {
    /// Takes a task whose entries have so many bytes, unless it is too large or its outputs are not all at hand.
    pub(super) fn insert(&mut self, state: State, mut outputs: Vec<Option<Arc<Value>>>, entry_bytes: usize) {
        let parts = state.parts();
        outputs.resize(parts.len(), None);
        for (part, value) in parts.iter().zip(&mut outputs) {
            match &part.output {
                // One that came too late is nobody's.
                None => *value = None,
                Some(_) if value.is_none() => return,
                Some(_) => {}
            }
        }
        let output_bytes = parts.iter().filter_map(|part| part.output.as_ref()).map(|output| output.len()).sum::<u64>();
        let bytes = entry_bytes.saturating_add(usize::try_from(output_bytes).unwrap_or(usize::MAX));
        if bytes > BYTES_MAX {
            return;
        }
        self.bytes = self.bytes.saturating_add(bytes);
        self.order.push_back(state.id());
        self.tasks.insert(state.id(), Arc::new(Whole { state, outputs, bytes }));
        while self.order.len() > TASKS_MAX || self.bytes > BYTES_MAX {
            let Some(oldest) = self.order.pop_front().and_then(|oldest| self.tasks.remove(&oldest)) else { break };
            self.bytes = self.bytes.saturating_sub(oldest.bytes);
        }
    }

    pub(super) fn get(&self, task: &TaskId) -> Option<Arc<Whole>> {
        self.tasks.get(task).map(Arc::clone)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::model::Timestamp;
    use crate::proto::task::definition::{Defaults, Definition};
    use crate::proto::task::state::Config;
    use crate::wire::task::{Submitted, Text};

    fn state(number: u128) -> State {
        let document = json!({ "name": "n", "subtasks": [{ "subtask_id": "a", "agent_capability": "echo" }] });
        let at = Timestamp::from_ms(1);
        let definition = Definition::read(&document, &Defaults::default(), at).expect("a definition");
        let document = Text::Inline(document.to_string().into());
        let submitted = Submitted { document, key: None, identity: [0; 32], parent: None };
        State::submitted(TaskId::from_random(number), Arc::new(Config::default()), definition, &submitted, at)
    }

    #[test]
    fn the_last_are_at_hand_within_bounds_of_number_and_bytes() {
        let mut recent = Recent::default();
        let [first, last, large, huge] = [0, TASKS_MAX as u128, 1 << 100, 1 << 101].map(|number| state(number).id());
        (0..TASKS_MAX as u128).for_each(|number| recent.insert(state(number), Vec::new(), 1_000));
        assert!(recent.get(&first).is_some());
        recent.insert(state(TASKS_MAX as u128), Vec::new(), 1_000);
        assert!(recent.get(&first).is_none() && recent.get(&last).is_some_and(|whole| whole.state().id() == last));
        assert_eq!((recent.order.len(), recent.tasks.len(), recent.bytes), (TASKS_MAX, TASKS_MAX, TASKS_MAX * 1_000));

        recent.insert(state(1 << 100), Vec::new(), BYTES_MAX);
        recent.insert(state(1 << 101), Vec::new(), BYTES_MAX + 1);
        assert!(recent.get(&large).is_some() && recent.get(&last).is_none() && recent.get(&huge).is_none());
        assert_eq!((recent.order.len(), recent.tasks.len(), recent.bytes), (1, 1, BYTES_MAX));
    }
}
