//! Receipts outside of the loop: what clients see of them, and the slow work: signing, verifying, the disk.
//!
//! A client who looks at receipts has the connected peers asked first, pinned ones before others, and waits for their answers as long as
//! [`LOOK_MAX`]; nothing here lies in the path of a call. A pin is on the disk before it counts, so that whoever set it can rely on it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use serde_bytes::ByteBuf;
use tokio::sync::{mpsc, oneshot};

use super::gossip::Report;
use super::handle::{Handle, disk_failure, stopping};
use super::shared::{Command, Shared};
use super::start::Disk;
use crate::model::{AgentId, ErrorCode, Failure, NodeId, Timestamp, printable};
use crate::proto::peers::receipts::{Judged, PINS_MAX, Pinned, Verdict, screen};
use crate::store::KeptReceipt;
use crate::wire::receipt::Receipt;
use crate::wire::{Signed, Verified};

/// How long a client who looks at receipts waits for what peers say.
const LOOK_MAX: Duration = Duration::from_secs(1);

/// Nodes that are listed where a name could mean several.
const CANDIDATES_MAX: usize = 8;

/// A receipt, and what this node makes of it.
#[derive(Debug, Clone)]
pub struct ReceiptView {
    /// What it says.
    pub receipt: Arc<Verified<Receipt>>,
    /// What people call its agent, if that is known here.
    pub name: Option<String>,
    verdict: Verdict,
    /// How many calls it counts as.
    pub calls: f64,
}

impl ReceiptView {
    /// Whether it counts.
    pub fn is_counted(&self) -> bool {
        self.verdict == Verdict::Counted
    }

    /// Whether it is this node's own.
    pub fn is_own(&self) -> bool {
        self.verdict == Verdict::Own
    }

    /// Why it does not count, if it does not.
    pub fn reason(&self) -> Option<String> {
        (!self.is_counted()).then(|| self.verdict.to_string())
    }
}

/// A node whose word counts.
#[derive(Debug, Clone, Copy)]
pub struct PinView {
    /// The node.
    pub node: NodeId,
    /// Who pinned it.
    pub pinned: Pinned,
    /// Whether it is connected, so that it can be asked.
    pub connected: bool,
    /// Receipts of it that are kept.
    pub receipts: usize,
}

/// What clients want of the loop.
pub(super) enum Order {
    /// Ask peers for receipts about this agent, or about all; whoever holds the other end sees by its closing that they have answered.
    Ask { agent: Option<AgentId>, answered: mpsc::Sender<()> },
    /// Everything that is kept, this node's own receipts included.
    List { reply: oneshot::Sender<Vec<Judged>> },
    /// Whose word counts.
    Pins { reply: oneshot::Sender<Vec<PinView>> },
    /// Let the word of a node count, or not.
    Pin { node: NodeId, pinned: bool, reply: oneshot::Sender<()> },
}

/// Receipts that a worker has verified.
#[derive(Debug, Default)]
pub(super) struct Batch {
    /// The peer that sent them; `None` if they come from the disk.
    pub(super) from: Option<NodeId>,
    pub(super) receipts: Vec<Verified<Receipt>>,
    /// Why others were dropped.
    pub(super) dropped: Vec<&'static str>,
    /// Whether any of those can only come from a cheat.
    pub(super) is_blamed: bool,
    /// Held until the batch is taken in.
    pub(super) answered: Option<mpsc::Sender<()>>,
}

/// Signs what is due on a worker.
pub(super) fn sign(shared: &Arc<Shared>, due: Vec<Receipt>, reports: mpsc::Sender<Report>) {
    let shared = Arc::clone(shared);
    tokio::task::spawn_blocking(move || {
        let sign = |receipt: Receipt| Signed::sign(receipt, &shared.key, None);
        let failed = |error: &crate::wire::Error| tracing::error!(%error, "a receipt cannot be signed");
        let receipts = due.into_iter().filter_map(|receipt| sign(receipt).inspect_err(failed).ok()).collect();
        let _ = reports.blocking_send(Report::Signed(receipts));
    });
}

/// Reads and verifies on a worker what a peer answered.
pub(super) fn verify(
    from: NodeId,
    documents: Vec<ByteBuf>,
    now: Timestamp,
    answered: Option<mpsc::Sender<()>>,
    reports: mpsc::Sender<Report>,
) {
    tokio::task::spawn_blocking(move || {
        let mut batch = Batch { from: Some(from), answered, ..Batch::default() };
        for bytes in documents {
            let read = Signed::<Receipt>::from_bytes(&bytes).map_err(|error| (error.label(), true));
            let screened = read.and_then(|signed| match screen(signed.unverified(), from, now) {
                Ok(()) => signed.verify().map_err(|error| (error.label(), true)),
                Err(refusal) => Err((refusal.label(), refusal.blames_peer())),
            });
            match screened {
                Ok(receipt) => batch.receipts.push(receipt),
                Err((label, is_blamed)) => {
                    batch.dropped.push(label);
                    // A later release is not malformed.
                    batch.is_blamed |= is_blamed && label != "version";
                }
            }
        }
        let _ = reports.blocking_send(Report::Receipts(batch));
    });
}

/// Reads on a worker what was kept before a restart. A file is no more to be believed than a peer.
pub(super) fn restore(disk: Arc<Disk>, now: Timestamp, reports: mpsc::Sender<Report>) {
    tokio::task::spawn_blocking(move || {
        let kept = disk.index.as_ref().map(|index| index.receipts(now.as_ms())).transpose();
        let kept = kept.inspect_err(|error| tracing::warn!(%error, "receipts are not remembered")).ok().flatten().unwrap_or_default();
        let read = |kept: KeptReceipt| Signed::from_bytes(&kept.bytes).and_then(Signed::verify);
        let receipts = kept.into_iter().filter_map(|kept| read(kept).ok()).collect();
        let _ = reports.blocking_send(Report::Receipts(Batch { receipts, ..Batch::default() }));
    });
}

/// Keeps receipts over a restart, on a worker.
pub(super) fn keep(disk: &Arc<Disk>, receipts: &[&Verified<Receipt>]) {
    let kept = |receipt: &&Verified<Receipt>| KeptReceipt {
        subject: format!("{} {} {}", receipt.issuer, receipt.agent, receipt.capability),
        ends_ms: receipt.window_end.as_ms(),
        until_ms: receipt.expires_at.as_ms(),
        bytes: receipt.bytes().to_vec(),
    };
    let (disk, kept): (_, Vec<KeptReceipt>) = (Arc::clone(disk), receipts.iter().map(kept).collect());
    if kept.is_empty() {
        return;
    }
    tokio::task::spawn_blocking(move || {
        let Some(index) = &disk.index else { return };
        let put = kept.iter().try_for_each(|receipt| index.put_receipt(receipt)).and_then(|()| index.flush());
        if let Err(error) = put {
            tracing::warn!(%error, "receipts could not be remembered");
        }
    });
}

impl Handle {
    /// Receipts about `agent`, or all, and whether they count; connected peers are asked first.
    ///
    /// # Errors
    /// `UNAVAILABLE` while the node stops.
    pub async fn receipts(&self, agent: Option<AgentId>) -> Result<Vec<ReceiptView>, Failure> {
        let (answered, mut waiting) = mpsc::channel(1);
        self.order(Order::Ask { agent, answered }).await?;
        let all_answered = async { while waiting.recv().await.is_some() {} };
        // Whoever is slower is heard the next time somebody looks.
        let _ = tokio::time::timeout(LOOK_MAX, all_answered).await;
        let (reply, judged) = oneshot::channel();
        self.order(Order::List { reply }).await?;
        let judged = judged.await.map_err(|_| stopping())?;
        let agents = self.agents().await?;
        let name = |id: AgentId| agents.iter().find(|view| view.entry.record.agent == id).map(|view| view.entry.record.name.clone());
        let wanted = |judged: &Judged| agent.is_none_or(|agent| judged.receipt.agent == agent);
        let view = |Judged { receipt, verdict, calls }: Judged| ReceiptView { name: name(receipt.agent), receipt, verdict, calls };
        Ok(judged.into_iter().filter(wanted).map(view).collect())
    }

    /// The nodes whose word counts.
    ///
    /// # Errors
    /// `UNAVAILABLE` while the node stops.
    pub async fn pins(&self) -> Result<Vec<PinView>, Failure> {
        let (reply, pins) = oneshot::channel();
        self.order(Order::Pins { reply }).await?;
        pins.await.map_err(|_| stopping())
    }

    /// The node that `which` means: its id, or an unambiguous end of it, among all that this node knows: itself, its peers, those with
    /// agents in the directory and those that are pinned.
    ///
    /// # Errors
    /// `INVALID_REQUEST` if there is none or more than one.
    pub async fn node_named(&self, which: &str) -> Result<NodeId, Failure> {
        if let Ok(node) = which.parse() {
            return Ok(node);
        }
        let mut known = BTreeSet::from([self.node_id()]);
        known.extend(self.peers().await?.into_iter().map(|(peer, _)| peer.node));
        known.extend(self.agents().await?.into_iter().map(|view| view.entry.record.node));
        known.extend(self.pins().await?.into_iter().map(|pin| pin.node));
        meant(&known, which)
    }

    /// Lets the word of `node` count, or not, now and after a restart. Says whether that changed anything.
    ///
    /// # Errors
    /// `INVALID_REQUEST` for this node itself, `CONFLICT` if the configuration says otherwise, `INSUFFICIENT_RESOURCES` if there are too many
    /// pins or the disk is full. On an error nothing has changed.
    pub async fn set_pin(&self, node: NodeId, pinned: bool) -> Result<bool, Failure> {
        if node == self.node_id() {
            return Err(Failure::new(ErrorCode::InvalidRequest, "this node needs no pin: its own calls count at first hand"));
        }
        // One at a time, so that what is counted here is what the disk holds.
        let _turn = self.disk.pinning.lock().await;
        let pins = self.pins().await?;
        let before = pins.iter().find(|pin| pin.node == node).map(|pin| pin.pinned);
        match before {
            Some(Pinned::Configured) if !pinned => {
                let message = format!("node {} is pinned by the configuration; remove it from routing.pinned and restart", node.short());
                return Err(Failure::new(ErrorCode::Conflict, message).with("path", "routing.pinned"));
            }
            Some(_) if pinned => return Ok(false),
            None if pinned && pins.len() >= PINS_MAX => {
                let failure = Failure::new(ErrorCode::InsufficientResources, format!("{PINS_MAX} nodes are pinned already"));
                return Err(failure.with("limit", PINS_MAX).with("suggestion", "remove a pin first").retryable(false));
            }
            Some(_) | None => {}
        }
        let disk = Arc::clone(&self.disk);
        let written = tokio::task::spawn_blocking(move || disk.dir.pins().set(node, pinned));
        let changed = written.await.map_err(|_| stopping())?.map_err(disk_failure)?;
        let (reply, done) = oneshot::channel();
        self.order(Order::Pin { node, pinned, reply }).await?;
        done.await.map_err(|_| stopping())?;
        Ok(changed)
    }

    async fn order(&self, order: Order) -> Result<(), Failure> {
        self.shared.commands.send(Command::Receipts(order)).await.map_err(|_| stopping())
    }
}

/// The one of `known` whose id ends as `which` does.
fn meant(known: &BTreeSet<NodeId>, which: &str) -> Result<NodeId, Failure> {
    let meant: Vec<NodeId> = known.iter().copied().filter(|node| node.ends_with(which)).collect();
    let shown = printable(which, 80);
    let failure = match meant.as_slice() {
        [node] => return Ok(*node),
        [] => {
            let message = format!("`{shown}` is neither the id of a node nor the end, six characters or more, of one that is known here");
            let failure = Failure::new(ErrorCode::InvalidRequest, message);
            failure.with("suggestion", "`meshwork peers --long` and `meshwork status` show whole ids")
        }
        several => {
            let ids: Vec<String> = several.iter().take(CANDIDATES_MAX).map(ToString::to_string).collect();
            let failure = Failure::new(ErrorCode::InvalidRequest, format!("`{shown}` could mean {}", ids.join(", ")));
            failure.with("candidates", ids).with("suggestion", "give more of the id")
        }
    };
    Err(failure.with("path", "node"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_an_id_means_the_one_node_that_has_it() {
        let ids = ["12D3KooWEyoppNCUx8Yx66oV9fJnriXwCcXwDDUA2kj6vnc6iDEp", "12D3KooWEyoppNCUy8Yx66oV9fJnriXwCcXwDDUA2kj6vnc6iDEp"];
        let [one, other] = ids.map(|id| id.parse::<NodeId>().expect("valid"));
        let alone = BTreeSet::from([one]);
        assert_eq!(meant(&alone, "…vnc6iDEp"), Ok(one));
        let unknown = meant(&alone, "6iDEp").expect_err("too short");
        assert!(unknown.details["suggestion"].as_str().is_some_and(|hint| hint.contains("peers --long")), "{unknown:?}");
        let several = meant(&BTreeSet::from([one, other]), "vnc6iDEp").expect_err("two");
        assert!(ids.iter().all(|id| several.message.contains(id)), "{several}");
        assert_eq!((unknown.code, several.code), (ErrorCode::InvalidRequest, ErrorCode::InvalidRequest));
    }
}
