//! The loop's part in results that may not have reached their home node: home nodes that are connected are told of them, and what other nodes
//! tell this one, as the home node of tasks, is answered by the loop that owns tasks.

use tokio::sync::oneshot;

use super::turn::{Asked, EventLoop, fault};
use crate::mesh::ReplyTo;
use crate::model::{NodeId, Now};
use crate::node::gossip::Report;
use crate::node::task;
use crate::proto::invocation::dedup::Key;
use crate::telemetry::Kind;
use crate::wire::directory::{Control, Reply};
use crate::wire::outbox::{KeptResult, Word};

/// When a node may come again whose results nobody had time for, in milliseconds.
const BUSY_MS: u64 = 1_000;

impl EventLoop {
    pub(super) fn tick_outbox(&mut self, now: Now) {
        if self.leaving {
            return;
        }
        for told in self.shared.results_by_key.due(now, |node| self.mesh.is_connected(node)) {
            tracing::debug!(home = %told.home, results = told.keys.len(), "a home node is told of results that it may have missed");
            let id = self.mesh.ask(told.home, Control::Results(told.results));
            self.asked_by_control.insert(id, Asked::Results(told.keys));
        }
    }

    /// A home node has answered what it was told, or not.
    pub(super) fn on_words(&mut self, node: NodeId, keys: &[Key], reply: Result<Reply, String>, now: Now) {
        let words = match reply {
            Ok(Reply::Results(words)) => words,
            Ok(
                Reply::Records { .. }
                | Reply::Differences { .. }
                | Reply::Schemas(_)
                | Reply::Receipts(_)
                | Reply::Offers(_)
                | Reply::Context(_),
            ) => {
                self.penalise(node, fault::PROTOCOL, "another answer than words on results");
                Vec::new()
            }
            Ok(Reply::Busy { .. } | Reply::Refused(_)) | Err(_) => Vec::new(),
        };
        self.shared.results_by_key.on_words(node, keys, &words, now);
    }

    /// Another node has results of tasks of this node.
    pub(super) fn on_results(&mut self, node: NodeId, to: ReplyTo, results: Vec<KeptResult>) {
        let (reply, words) = oneshot::channel();
        // Whoever is not answered is told so when the sender is dropped.
        let _ = self.shared.tasks.try_send(task::Command::Results { node, results, reply });
        let reports = self.inputs.reports.0.clone();
        tokio::spawn(async move {
            let words = words.await.ok();
            let _ = reports.send(Report::Words { node, to, words }).await;
        });
    }

    /// What the loop of tasks says of them.
    pub(super) fn on_words_said(&mut self, node: NodeId, to: ReplyTo, words: Option<Vec<Word>>) {
        let Some(words) = words else {
            self.mesh.reply(to, Reply::Busy { retry_after_ms: BUSY_MS });
            return;
        };
        let is_foreign = words.contains(&Word::Refused);
        self.mesh.reply(to, Reply::Results(words));
        if is_foreign {
            self.shared.metrics.dropped(Kind::Control, "results");
            self.penalise(node, fault::PROTOCOL, "results of steps that it was not given");
        }
    }
}
