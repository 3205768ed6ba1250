//! The agents of this node, by name and by id.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use tokio::sync::mpsc;

use super::agent::Agent;
use super::exchange::Health;
use crate::model::AgentId;

/// An agent's health changed.
#[derive(Debug, Clone)]
pub struct Change {
    /// Which agent.
    pub agent: AgentId,
    /// How it is.
    pub health: Health,
}

/// All attached agents. Cheap to clone; reads are short.
#[derive(Debug, Clone)]
pub struct Registry {
    agents_by_id: Arc<RwLock<BTreeMap<AgentId, Arc<Agent>>>>,
    changes: mpsc::Sender<Change>,
}

impl Registry {
    /// An empty registry that reports changes of health on `changes`.
    pub fn new(changes: mpsc::Sender<Change>) -> Self {
        Self { agents_by_id: Arc::default(), changes }
    }

    /// Attaches an agent, replacing the one with the same id, whose running calls fail.
    pub fn insert(&self, agent: Agent) -> Arc<Agent> {
        let agent = Arc::new(agent);
        let mut health = agent.watch_health();
        let (id, changes) = (agent.id(), self.changes.clone());
        let weak = Arc::downgrade(&agent);
        tokio::spawn(async move {
            loop {
                let now = health.borrow_and_update().clone();
                // A replaced agent must not speak for the one that replaced it.
                if weak.upgrade().is_none()
                    || changes.send(Change { agent: id, health: now }).await.is_err()
                    || health.changed().await.is_err()
                {
                    return;
                }
            }
        });
        let before = self.write().insert(id, Arc::clone(&agent));
        if let Some(before) = before {
            before.stop();
        }
        agent
    }

    /// Detaches an agent.
    pub fn remove(&self, id: AgentId) -> Option<Arc<Agent>> {
        let removed = self.write().remove(&id);
        if let Some(agent) = &removed {
            agent.stop();
        }
        removed
    }

    /// The agent with this id.
    pub fn get(&self, id: AgentId) -> Option<Arc<Agent>> {
        self.read().get(&id).cloned()
    }

    /// The agent with this name.
    pub fn named(&self, name: &str) -> Option<Arc<Agent>> {
        self.read().values().find(|agent| agent.name() == name).cloned()
    }

    /// All agents, by id.
    pub fn all(&self) -> Vec<Arc<Agent>> {
        self.read().values().cloned().collect()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.read().len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.read().is_empty()
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, BTreeMap<AgentId, Arc<Agent>>> {
        self.agents_by_id.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, BTreeMap<AgentId, Arc<Agent>>> {
        self.agents_by_id.write().unwrap_or_else(PoisonError::into_inner)
    }
}
