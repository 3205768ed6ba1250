//! The loop's part in queries: searches that look further than the directory.

use std::collections::BTreeSet;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::turn::{Asked, EventLoop, LOOKUP_FRESH, LOOKUPS_KEPT, SEARCHES_MAX, Search, WAITERS_MAX};
use crate::model::{CapabilityName, NodeId};
use crate::node::find::SEARCH_MAX;
use crate::node::off_workers;
use crate::proto::directory::rank::Answer;
use crate::proto::directory::{Scan, search};
use crate::proto::peers::trust::Ledger;
use crate::wire::directory::{Control, Query};

/// To rank an agent takes about as long as to read so much text.
const RANKED_BYTES: usize = 2_048;

impl EventLoop {
    pub(super) fn find(&mut self, query: Query, enough: usize, reply: oneshot::Sender<Answer>) {
        let now = self.now().mono;
        self.asked_at_by_shard.extend(query.capabilities.iter().map(|name| (name.shard(), now)));
        let answer = self.answer(&query, now);
        if answer.candidates.len() >= enough {
            let _ = reply.send(answer);
            return;
        }
        let fresh = |name: &&CapabilityName| self.looked_up_at.get(*name).is_none_or(|at| now.saturating_sub(*at) >= LOOKUP_FRESH);
        let alone = self.mesh.connected_len() == 0;
        let names: BTreeSet<CapabilityName> =
            if alone { BTreeSet::new() } else { query.capabilities.iter().filter(fresh).cloned().collect() };
        let dialling = self.directory.unproven_hosts(&query);
        let idle = names.is_empty() && dialling.is_empty();
        if idle || self.searches_by_number.len() >= SEARCHES_MAX {
            let _ = reply.send(answer);
            return;
        }
        let same = |search: &&mut Search| !names.is_empty() && names.is_subset(&search.names) && search.waiters.len() < WAITERS_MAX;
        if let Some(running) = self.searches_by_number.values_mut().find(same) {
            running.waiters.push((query, reply));
            return;
        }
        let number = self.searches_begun;
        self.searches_begun = number.wrapping_add(1);
        let mut outputs = Vec::new();
        let deadline = now.saturating_add(SEARCH_MAX);
        let machine = search::State::new(self.shared.node(), names.clone(), dialling, deadline, &mut outputs);
        let waiters = vec![(query.clone(), reply)];
        self.searches_by_number.insert(number, Search { machine, names, query, waiters });
        self.carry_out(number, outputs);
    }

    /// Answers a query that looks at every record, of the directory as it is now but on another thread.
    pub(super) fn scan(&mut self, query: Query, room: OwnedSemaphorePermit, reply: oneshot::Sender<Answer>) {
        self.publish_routes();
        let shared = Arc::clone(&self.shared);
        tokio::task::spawn_blocking(move || {
            let now = shared.mono();
            let mut scan = Scan::new(&query, &shared.routes.load());
            // Nobody who went away needs to know; and whoever writes evidence waits for one step at most.
            while !reply.is_closed() && scan.step(&read(&shared.ledger), now, &shared.rules) {}
            let _ = reply.send(scan.finish(&shared.rules));
            drop(room);
        });
    }

    pub(super) fn answer(&self, query: &Query, now: Duration) -> Answer {
        let ranked = self.directory.ranked_len(query);
        off_workers(ranked.saturating_mul(RANKED_BYTES), || self.directory.query(query, &read(&self.shared.ledger), now))
    }

    pub(super) fn with_search(&mut self, number: u64, act: impl FnOnce(&mut search::State, &mut Vec<search::Output>)) {
        let mut outputs = Vec::new();
        if let Some(search) = self.searches_by_number.get_mut(&number) {
            act(&mut search.machine, &mut outputs);
        }
        self.carry_out(number, outputs);
    }

    pub(super) fn carry_out(&mut self, number: u64, outputs: Vec<search::Output>) {
        for output in outputs {
            match output {
                search::Output::Lookup(name) => {
                    let lookup = self.mesh.search(&name);
                    self.names_by_lookup.insert(lookup, (number, name));
                }
                search::Output::Ask(node) => {
                    let Some(search) = self.searches_by_number.get(&number) else { continue };
                    let id = self.mesh.ask(node, Control::Find(search.query.clone()));
                    self.asked_by_control.insert(id, Asked::Search(number));
                }
                search::Output::Done => {
                    if let Some(search) = self.searches_by_number.remove(&number) {
                        let now = self.now().mono;
                        if self.looked_up_at.len() >= LOOKUPS_KEPT {
                            self.looked_up_at.retain(|_, at| now.saturating_sub(*at) < LOOKUP_FRESH);
                        }
                        self.looked_up_at.extend(search.names.into_iter().map(|name| (name, now)));
                        for (query, reply) in search.waiters {
                            let _ = reply.send(self.answer(&query, now));
                        }
                    }
                }
            }
        }
    }

    pub(super) fn dialled(&mut self, node: NodeId) {
        let numbers: Vec<u64> = self.searches_by_number.keys().copied().collect();
        for number in numbers {
            self.with_search(number, |machine, outputs| machine.on_dialled(node, outputs));
        }
    }
}

fn read(ledger: &RwLock<Ledger>) -> RwLockReadGuard<'_, Ledger> {
    ledger.read().unwrap_or_else(PoisonError::into_inner)
}
