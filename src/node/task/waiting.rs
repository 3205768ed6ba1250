//! Steps that everybody refused who could do them, and who takes the place of one that is done.
//!
//! Each of them tries again by itself after a pause that grows, which is right for an agent that others keep busy and wrong for one that this node
//! keeps busy: with thousands of steps in line it would idle while they all pause. So whenever a step ends, the next that waits for the
//! same capability is tried, the most urgent and then the oldest task first. An agent is kept as busy by many as by a few.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use crate::model::{CapabilityName, Priority, TaskId, Timestamp};
use crate::proto::task::state::State;

/// The order in which tasks come: the most urgent, then the oldest.
type Place = (Reverse<Priority>, Timestamp, TaskId);

/// Tasks by the capabilities that steps of theirs wait for.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    tasks_by_capability: BTreeMap<CapabilityName, BTreeSet<Place>>,
}

impl Waiting {
    /// Whether nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.tasks_by_capability.is_empty()
    }

    /// A step of this task was put off.
    pub(super) fn add(&mut self, state: &State, subtask: u32) {
        if let Some(capability) = capability_of(state, subtask) {
            self.tasks_by_capability.entry(capability.clone()).or_default().insert(place(state));
        }
    }

    /// All that was put off in a task that goes on after a restart.
    pub(super) fn add_all(&mut self, state: &State) {
        for subtask in &state.definition().subtasks {
            self.add_if_any(state, &subtask.capability);
        }
    }

    /// This task, if a step of it waits for this.
    pub(super) fn add_if_any(&mut self, state: &State, capability: &CapabilityName) {
        if state.deferred(capability).next().is_some() {
            self.tasks_by_capability.entry(capability.clone()).or_default().insert(place(state));
        }
    }

    /// All tasks that wait for capabilities that are `offered`; they wait no longer.
    pub(super) fn take(&mut self, offered: impl Fn(&CapabilityName) -> bool) -> Vec<(CapabilityName, Vec<TaskId>)> {
        let names: Vec<CapabilityName> = self.tasks_by_capability.keys().filter(|name| offered(name)).cloned().collect();
        let tasks = |name: &CapabilityName| self.tasks_by_capability.remove(name).unwrap_or_default();
        let taken = names.iter().map(tasks).map(|tasks| tasks.into_iter().map(|(.., task)| task).collect::<Vec<_>>()).collect::<Vec<_>>();
        names.into_iter().zip(taken).collect()
    }

    /// The next task with a step that waits for this; it waits no longer.
    pub(super) fn next(&mut self, capability: &CapabilityName) -> Option<TaskId> {
        let tasks = self.tasks_by_capability.get_mut(capability)?;
        let next = tasks.pop_first();
        if tasks.is_empty() {
            self.tasks_by_capability.remove(capability);
        }
        next.map(|(.., task)| task)
    }

    /// This task has ended.
    pub(super) fn remove(&mut self, state: &State) {
        if self.tasks_by_capability.is_empty() {
            return;
        }
        for subtask in &state.definition().subtasks {
            if let Some(tasks) = self.tasks_by_capability.get_mut(&subtask.capability) {
                tasks.remove(&place(state));
            }
        }
        self.tasks_by_capability.retain(|_, tasks| !tasks.is_empty());
    }
}

/// What a subtask needs somebody for.
pub(super) fn capability_of(state: &State, subtask: u32) -> Option<&CapabilityName> {
    let place = usize::try_from(subtask).ok()?;
    state.definition().subtasks.get(place).map(|subtask| &subtask.capability)
}

fn place(state: &State) -> Place {
    (Reverse(state.definition().priority), state.created(), state.id())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;
    use crate::proto::task::definition::{Defaults, Definition};
    use crate::proto::task::state::Config;
    use crate::wire::task::{Submitted, Text};

    fn submitted(number: u128, priority: &str, at_ms: u64) -> State {
        let subtasks = json!([{ "subtask_id": "a", "agent_capability": "echo" }]);
        let document = json!({ "name": "n", "subtasks": subtasks, "priority": priority });
        let at = Timestamp::from_ms(at_ms);
        let definition = Definition::read(&document, &Defaults::default(), at).expect("a definition");
        let document = Text::Inline(document.to_string().into());
        let submitted = Submitted { document, key: None, identity: [0; 32], parent: None };
        State::submitted(TaskId::from_random(number), Arc::new(Config::default()), definition, &submitted, at)
    }

    /// AITP-1: the most urgent goes first, and among equals the oldest; whoever has ended is in nobody's way.
    #[test]
    fn the_most_urgent_and_then_the_oldest_is_next() {
        let mut waiting = Waiting::default();
        let tasks = [submitted(1, "NORMAL", 20), submitted(2, "LOW", 5), submitted(3, "HIGH", 30), submitted(4, "NORMAL", 10)];
        for state in tasks.iter().chain(&tasks) {
            waiting.add(state, 0);
        }
        let echo: CapabilityName = "echo".parse().expect("a capability");
        assert_eq!(waiting.next(&"other".parse().expect("a capability")), None);
        waiting.remove(&tasks[0]);
        let order: Vec<TaskId> = std::iter::from_fn(|| waiting.next(&echo)).collect();
        assert_eq!(order, [3, 4, 2].map(TaskId::from_random));
        assert!(waiting.tasks_by_capability.is_empty());
        waiting.add(&tasks[1], 0);
        assert_eq!(waiting.take(|_| false), []);
        assert_eq!(waiting.take(|name| *name == echo), [(echo.clone(), vec![TaskId::from_random(2)])]);
        assert_eq!(waiting.next(&echo), None);
    }
}
