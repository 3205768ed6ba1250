//! The loop's part in receipts: windows that end are signed, pinned peers are asked, what they say is counted.

use std::sync::Arc;
use std::time::Duration;

use serde_bytes::ByteBuf;
use tokio::sync::mpsc;

use super::turn::{Asked, EventLoop, fault};
use crate::config::Routing;
use crate::model::{AgentId, NodeId, Now};
use crate::node::receipts::{self as work, Batch, Order, PinView};
use crate::node::shared::Observed;
use crate::proto::peers::receipts::{Asking, Book, Judged, Verdict, Windows};
use crate::telemetry::Kind;
use crate::wire::Verified;
use crate::wire::directory::{Control, Reply};
use crate::wire::receipt::Receipt;

/// Peers that are asked when a person looks.
const LOOK_PEERS_MAX: usize = 16;
/// How often receipts are counted anew, since they fade and agents come and go.
const COUNT_PAUSE: Duration = Duration::from_secs(1);

/// The machines of receipts.
pub(super) struct Receipts {
    windows: Windows,
    book: Book,
    asking: Asking,
    count_at: Duration,
    /// Whether anything counted the last time.
    counts: bool,
}

impl Receipts {
    pub(super) fn new(node: NodeId, routing: &Routing) -> Self {
        let window = Duration::from_millis(routing.receipt_window_ms);
        // A configuration that was loaded holds ids.
        let pinned = routing.pinned.iter().filter_map(|text| text.parse().ok());
        Self {
            windows: Windows::new(node, window),
            book: Book::new(node, Duration::from_millis(routing.evidence_half_life_ms), pinned),
            asking: Asking::new(window),
            count_at: Duration::ZERO,
            counts: false,
        }
    }
}

impl EventLoop {
    /// The loop of a node that an earlier run left these pins, and receipts.
    pub(in crate::node) fn with_pins(mut self, pins: impl IntoIterator<Item = NodeId>) -> Self {
        for node in pins {
            if !self.receipts.book.handle_pin(node) {
                tracing::warn!(%node, "there is no room for this pin");
            }
        }
        work::restore(Arc::clone(&self.disk), self.now().wall, self.inputs.reports.0.clone());
        self
    }

    /// A node needs nobody's word on its own agents, and nobody would count its word on them.
    pub(super) fn sum_outcome(&mut self, observed: &Observed, now: Now) {
        if self.shared.registry.get(observed.agent).is_none() {
            self.receipts.windows.handle_outcome(observed.agent, &observed.capability, observed.outcome, now.wall);
        }
    }

    pub(super) fn tick_receipts(&mut self, now: Now) {
        if self.leaving {
            return;
        }
        let due = self.receipts.windows.handle_tick(now.wall);
        if !due.is_empty() {
            work::sign(&self.shared, due, self.inputs.reports.0.clone());
        }
        let Receipts { book, asking, .. } = &mut self.receipts;
        let ask = asking.handle_tick(now.mono, &mut self.rng, |node| book.is_pinned(node));
        for node in ask {
            self.ask_receipts(node, Vec::new(), None);
        }
        if now.mono >= self.receipts.count_at {
            self.receipts.book.handle_tick(now.wall);
            self.count_receipts(now);
        }
    }

    pub(super) fn receipts_connected(&mut self, node: NodeId) {
        let now = self.now().mono;
        self.receipts.asking.on_connected(node, now, &mut self.rng);
    }

    pub(super) fn receipts_disconnected(&mut self, node: NodeId) {
        self.receipts.asking.on_disconnected(node);
    }

    fn ask_receipts(&mut self, node: NodeId, agents: Vec<AgentId>, answered: Option<mpsc::Sender<()>>) {
        let id = self.mesh.ask(node, Control::Receipts(agents));
        self.asked_by_control.insert(id, Asked::Receipts(answered));
    }

    /// What this node tells of agents: its own receipts, never those of others.
    pub(super) fn answer_receipts(&self, agents: &[AgentId], now: Now) -> Reply {
        let receipts = self.receipts.windows.about(agents, now.wall);
        Reply::Receipts(receipts.into_iter().map(|receipt| ByteBuf::from(receipt.bytes())).collect())
    }

    pub(super) fn on_receipts_reply(&mut self, node: NodeId, reply: Result<Reply, String>, answered: Option<mpsc::Sender<()>>, now: Now) {
        match reply {
            Ok(Reply::Receipts(documents)) => work::verify(node, documents, now.wall, answered, self.inputs.reports.0.clone()),
            Ok(Reply::Refused(_)) => self.receipts.asking.on_refused(node, now.mono),
            Ok(
                Reply::Records { .. }
                | Reply::Differences { .. }
                | Reply::Schemas(_)
                | Reply::Offers(_)
                | Reply::Context(_)
                | Reply::Results(_)
                | Reply::Busy { .. },
            )
            | Err(_) => {
                tracing::debug!(%node, reply = ?reply.err(), "a peer sent no receipts");
            }
        }
    }

    /// Receipts have been verified.
    pub(super) fn on_receipts(&mut self, batch: Batch) {
        let now = self.now();
        let Batch { from, receipts, dropped, mut is_blamed, answered } = batch;
        for label in dropped {
            self.shared.metrics.dropped(Kind::Document, label);
        }
        let mut kept: Vec<Arc<Verified<Receipt>>> = Vec::new();
        for receipt in receipts {
            if receipt.issuer == self.shared.node() && from.is_none() {
                self.receipts.windows.handle_signed(receipt, now.wall);
                continue;
            }
            match self.receipts.book.on_receipt(receipt, now.wall) {
                Ok(receipt) => kept.push(receipt),
                Err(refusal) => {
                    is_blamed |= refusal.blames_peer();
                    self.shared.metrics.dropped(Kind::Document, refusal.label());
                }
            }
        }
        if let Some(node) = from {
            if is_blamed {
                self.penalise(node, fault::SIGNATURE, "receipts that do not hold");
            }
            if self.receipts.book.is_pinned(node) {
                work::keep(&self.disk, &kept.iter().map(|receipt| &**receipt).collect::<Vec<_>>());
            }
        }
        self.count_receipts(now);
        drop(answered);
    }

    /// Receipts of this node have been signed.
    pub(super) fn on_signed(&mut self, receipts: Vec<Verified<Receipt>>) {
        let now = self.now().wall;
        work::keep(&self.disk, &receipts.iter().collect::<Vec<_>>());
        for receipt in receipts {
            self.receipts.windows.handle_signed(receipt, now);
        }
    }

    fn count_receipts(&mut self, now: Now) {
        self.receipts.count_at = now.mono.saturating_add(COUNT_PAUSE);
        let counted = self.receipts.book.count(now.wall, |agent| self.host_of(agent));
        if counted.is_empty() && !self.receipts.counts {
            return;
        }
        self.receipts.counts = !counted.is_empty();
        self.shared.ledger.write().unwrap_or_else(std::sync::PoisonError::into_inner).handle_attested(counted);
    }

    fn host_of(&self, agent: AgentId) -> Option<NodeId> {
        self.directory.entry(agent).map(|entry| entry.record.node)
    }

    pub(super) fn on_receipts_order(&mut self, order: Order) {
        let now = self.now();
        match order {
            Order::Ask { agent, answered } => {
                let Receipts { book, asking, .. } = &mut self.receipts;
                for node in asking.handle_view(now.mono, LOOK_PEERS_MAX, |node| book.is_pinned(node)) {
                    self.ask_receipts(node, agent.into_iter().collect(), Some(answered.clone()));
                }
            }
            Order::List { reply } => {
                let mut judged = self.receipts.book.judge(now.wall, |agent| self.host_of(agent));
                let own = |receipt: &Verified<Receipt>| Judged { receipt: Arc::new(receipt.clone()), verdict: Verdict::Own, calls: 0.0 };
                judged.extend(self.receipts.windows.about(&[], now.wall).into_iter().map(own));
                let _ = reply.send(judged);
            }
            Order::Pins { reply } => {
                let book = &self.receipts.book;
                let view = |(node, pinned)| PinView {
                    node,
                    pinned,
                    connected: self.mesh.is_connected(node),
                    receipts: book.receipts_of(node).count(),
                };
                let _ = reply.send(book.pins().map(view).collect());
            }
            Order::Pin { node, pinned, reply } => {
                if pinned {
                    self.receipts.book.handle_pin(node);
                    // What was kept to be looked at is now worth remembering.
                    let kept: Vec<_> = self.receipts.book.receipts_of(node).map(|receipt| &**receipt).collect();
                    work::keep(&self.disk, &kept);
                } else {
                    self.receipts.book.handle_unpin(node);
                }
                self.count_receipts(now);
                let _ = reply.send(());
            }
        }
    }
}
