//! Results of attempts that were given up, of which the node of the agent tells (design/tasks.md, "A result that cannot be delivered waits in an
//! outbox").
//!
//! What is told is only that there is a result. Whether it is wanted, the core says: to be used, or to be billed as a duplicate. It is then
//! asked for by the call that it was the answer to, under the same key and fence, and comes in the way of every output, with every check.
//! The agent is never told to begin, so that nothing is done for it a second time. Of an attempt the agent is paid at most what one unit was
//! estimated to cost when it was chosen, whatever its record has said since.
//!
//! A node that tells of a step under a key which is not the step's is at fault. One that is told that its result is wanted, and is not asked,
//! because there is no room or no way to it yet, tells of it again.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rust_decimal::Decimal;
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::task::AbortOnDropHandle;

use super::book::{Book, EPOCH};
use super::nested;
use super::step::{Step, charge, charge_of_unfit, key, request};
use crate::model::{AgentId, ErrorCode, Failure, NodeId, Price};
use crate::node::invocation::routing;
use crate::node::shared::Command;
use crate::proto::invocation::budget::Turn;
use crate::proto::task::definition::Subtask;
use crate::proto::task::key as keys;
use crate::proto::task::machine::{Choose, Finish, Input};
use crate::proto::task::state::Wanted;
use crate::wire;
use crate::wire::directory::Wanted as Constraints;
use crate::wire::invocation::{Body, Success};
use crate::wire::outbox::{KeptResult, Word};
use crate::wire::task::{Charge, Fence, Loss};

/// Results that are asked for at once.
pub(super) const RECALLS_MAX: usize = 64;
/// How long an agent's node may take to give one: it has it, and the largest takes a while.
const RECALL_MAX: Duration = Duration::from_secs(30);

/// A result that is wanted.
struct Late {
    fence: Fence,
    agent: AgentId,
    node: NodeId,
    /// The key under which it is said to be kept.
    key: String,
    /// What the attempt was estimated to cost.
    estimate: Option<Decimal>,
    /// Whether it will be used, for all that is known now.
    is_used: bool,
}

impl Book {
    /// A node says that it has the result of an attempt.
    pub(super) fn on_result(&mut self, node: NodeId, result: KeptResult) -> Word {
        let KeptResult { agent, key, epoch, attempt } = result;
        let Some((task, subtask)) = keys::read(&key).filter(|_| epoch == EPOCH) else { return Word::Unknown };
        let Some(live) = self.live.get_mut(&task) else {
            return if self.ended.contains(&task) { Word::Known } else { Word::Unknown };
        };
        let (state, fence) = (live.machine.state(), Fence { subtask, attempt });
        let (word, wanted) = state.word(fence, agent, node);
        let is_asked = live.recalls_by_subtask.get(&subtask).is_some_and(|recall| !recall.is_finished());
        let (Some(wanted), false, None) = (wanted, is_asked, &self.stopped) else { return word };
        let Ok(room) = Arc::clone(&self.recalls).try_acquire_owned() else { return word };
        let Wanted { redo, share, estimate, is_used } = wanted;
        let late = Late { fence, agent, node, key, estimate, is_used };
        let choose = Choose {
            subtask,
            refused_by: Vec::new(),
            failed_on: Vec::new(),
            prefer: None,
            only: None,
            redo,
            cost_max: share,
            turn: Turn::Again,
        };
        let step = Step {
            shared: Arc::clone(&self.shared),
            blobs: self.reader.blobs.clone(),
            reports: self.reports.clone(),
            task,
            definition: Arc::clone(state.definition()),
            outputs: live.outputs_for(subtask),
            choose,
            clock: self.clock,
        };
        live.recalls_by_subtask.insert(subtask, recall(step, late, room));
        word
    }
}

/// Asks for it. The task is told what comes of it, unless that is nothing.
fn recall(step: Step, late: Late, room: OwnedSemaphorePermit) -> AbortOnDropHandle<()> {
    AbortOnDropHandle::new(tokio::spawn(Box::pin(async move {
        let (task, fence) = (step.task, late.fence);
        if let Err(failure) = step.recall(late).await {
            tracing::debug!(%task, ?fence, %failure, "a late result was not taken");
        }
        drop(room);
    })))
}

impl Step {
    async fn recall(&self, late: Late) -> Result<(), Failure> {
        let Late { fence, agent, node, estimate, is_used, .. } = late;
        let gone = || Failure::new(ErrorCode::Unavailable, "nobody knows the agent now");
        let index = usize::try_from(fence.subtask).unwrap_or(usize::MAX);
        let subtask = self.definition.subtasks.get(index).ok_or_else(gone)?;
        let mut request = request(&self.definition, subtask, &self.outputs, &self.choose)?;
        // It was chosen once by all that its author demands.
        (request.agent, request.constraints) = (Some(agent), Constraints::default());
        let candidate = routing::known(&self.shared, &request).filter(|candidate| candidate.entry.record.node == node);
        let price = candidate.as_ref().and_then(|candidate| candidate.capability()?.price.clone());
        // It was asked in the currency of the budget, and another one would be billed beside it.
        let price = price.filter(|price| self.definition.budget.as_ref().is_none_or(|budget| budget.currency == price.currency));
        if let Some(task) = &subtask.task {
            request.input =
                nested::input(task, &request.input, (self.task, subtask), &self.definition, self.choose.cost_max, price.as_ref())?;
        }
        let own = key(self.task, fence.subtask, subtask, &request.input, self.choose.redo);
        if own != late.key {
            // What a task within this one is given goes by the agent's price, and that may have changed.
            if subtask.task.is_none() {
                let what = "a result under another key than the step's";
                let _ = self.shared.commands.try_send(Command::Penalise { node, what });
            }
            return Err(Failure::new(ErrorCode::Conflict, "it is kept under another key"));
        }
        let candidate = candidate.ok_or_else(gone)?;
        // Nobody begins, so nothing is looked up; it says what the answer is made of.
        request.context = subtask.context.map(|_| Bytes::from_static(b"null"));
        request.key = Some(own);
        request.fence = Some(wire::invocation::Fence { epoch: EPOCH, attempt: fence.attempt });
        let deadline = self.shared.mono().saturating_add(RECALL_MAX);
        let price = if subtask.task.is_some() { price } else { agreed(price, estimate, subtask.estimated_units) };
        let unused = |failure, charge| (Input::Finished(fence, Finish::Failed { loss: Loss::InvalidOutput, failure, charge }), None);
        let (input, output) = match routing::recall(&self.shared, &request, &candidate, deadline).await {
            Ok(success) if is_used => self.finished(subtask, (fence, node), price, success).await,
            Ok(success) => {
                let failure = Failure::new(ErrorCode::Conflict, "another attempt was made meanwhile");
                unused(failure, billed(subtask, price, &success))
            }
            Err(failed) => match charge_of_unfit(price, &failed.failure) {
                Some(charge) => unused(failed.failure, Some(charge)),
                None => return Err(failed.failure),
            },
        };
        self.tell(input, output).await;
        Ok(())
    }
}

/// What an answer costs that is not used.
fn billed(subtask: &Subtask, price: Option<Price>, success: &Success) -> Option<Charge> {
    let spent = || match &success.body {
        Body::Inline(text) if subtask.task.is_some() => nested::done(serde_json::from_slice(text).ok()?).ok()?.charge,
        Body::Inline(_) | Body::Blob(_) => None,
    };
    charge(price, success).or_else(spent)
}

/// The price at which an agent was asked, or what it asks for now if that is less.
fn agreed(price: Option<Price>, estimate: Option<Decimal>, units: Decimal) -> Option<Price> {
    let (price, estimate) = (price?, estimate?);
    if price.times(units) <= estimate {
        return Some(price);
    }
    let amount = estimate.checked_div(units).unwrap_or_default();
    Some(Price { amount, ..price })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn price(amount: &str) -> Price {
        Price { amount: dec(amount), currency: "USD".parse().expect("a currency"), unit: "request".to_owned() }
    }

    fn dec(text: &str) -> Decimal {
        text.parse().expect("a number")
    }

    /// AITP-10: an agent that was lost and raises its price before it answers is paid what it was asked at.
    #[test]
    fn a_late_answer_is_paid_no_more_than_it_was_asked_at() {
        let paid = |now, estimate: Option<&str>, units| agreed(now, estimate.map(dec), dec(units)).map(|price| price.amount.normalize());
        assert_eq!(paid(Some(price("0.5")), Some("1.0"), "2"), Some(dec("0.5")));
        assert_eq!(paid(Some(price("0.4")), Some("1.0"), "2"), Some(dec("0.4")), "it has become cheaper");
        assert_eq!(paid(Some(price("50")), Some("1.0"), "2"), Some(dec("0.5")));
        assert_eq!(paid(Some(price("50")), None, "2"), None, "it was free");
        assert_eq!(paid(None, Some("1.0"), "2"), None, "it is free");
    }
}
