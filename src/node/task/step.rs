//! One attempt of one subtask: its input is made, an agent chosen, the call made when it may be, its end reported.
//!
//! Nothing leaves this node before [`book`](super::book) says so: the choice is reported first, and the call waits for the word that it is
//! kept. Dropping the future takes the call back.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rust_decimal::Decimal;
use serde_json::Value;
use tokio::sync::{mpsc, oneshot};

use super::{TaskClock, context, nested, offers, read};
use crate::agents::off_workers;
use crate::mesh::lanes::Watch;
use crate::model::{AgentId, ErrorCode, Failure, InvocationId, NodeId, Price, TaskId, Timestamp};
use crate::node::invocation::invoke::InvokeRequest;
use crate::node::invocation::routing::{self, Attempt};
use crate::node::shared::{Counted, Shared};
use crate::node::view::{Event, State};
use crate::proto::invocation::call::AttemptFailure;
use crate::proto::task::definition::{Definition, Subtask};
use crate::proto::task::key;
use crate::proto::task::machine::{Choose, Chosen, Finish, Input, Send};
use crate::proto::task::result::map_output;
use crate::store::Blobs;
use crate::wire;
use crate::wire::invocation::{Body, Success};
use crate::wire::task::{Charge, Fence, Loss, Text};

/// What a step tells the book.
pub(super) struct Report {
    /// Whose.
    pub(super) task: TaskId,
    /// What happened.
    pub(super) input: Input,
    /// The output as a value, where there is one: others will need it.
    pub(super) output: Option<Arc<Value>>,
}

/// What the book tells a step.
pub(super) struct Orders {
    /// The call may go out.
    pub(super) send: oneshot::Receiver<Send>,
    /// The agent may begin, where it waits for that.
    pub(super) begin: oneshot::Receiver<()>,
}

/// What a step works on.
pub(super) struct Step {
    pub(super) shared: Arc<Shared>,
    pub(super) blobs: Blobs,
    pub(super) reports: mpsc::Sender<Report>,
    pub(super) task: TaskId,
    pub(super) definition: Arc<Definition>,
    /// Outputs of the subtasks before it, by their places.
    pub(super) outputs: Vec<Option<Arc<Value>>>,
    pub(super) choose: Choose,
    pub(super) clock: TaskClock,
}

/// How long until a full disk is tried again.
pub(super) const FULL_RETRY: Duration = Duration::from_secs(1);

/// What the largest choice may take of looking for somebody.
const CHOOSE_MAX: Duration = Duration::from_secs(3);

/// For so long after its start a node waits for an agent that may hold the result of a step, before it has another do the work again: others
/// learn that it is back, and it who is there.
const REUNION_MAX: Duration = Duration::from_secs(3);

/// Chunks of a task within this one that may wait to be read.
const CHUNKS_MAX: usize = 16;

/// By so much the agent's own deadline is later than ours, so that its node does not take what is told here as a timeout for its own.
const GRACE: Duration = Duration::from_millis(200);

impl Step {
    /// Makes the attempt.
    pub(super) async fn run(self, orders: Orders) {
        let number = self.choose.subtask;
        let Some(subtask) = usize::try_from(number).ok().and_then(|index| self.definition.subtasks.get(index)) else { return };
        let request = match request(&self.definition, subtask, &self.outputs, &self.choose) {
            Ok(request) => request,
            Err(failure) => return self.tell(Input::Unavailable(number, failure), None).await,
        };
        let (attempt, bids) = match choose_agent(&self.shared, &request, &self.definition, subtask, &self.choose, self.clock.now()).await {
            Ok(chosen) => chosen,
            Err(failure) => return self.tell(Input::Unavailable(number, self.while_joining(failure)), None).await,
        };
        if !self.shared.routing.admits(self.choose.turn, self.shared.mono()) {
            return self.tell(Input::PutOff(number), None).await;
        }
        let record = &attempt.candidate().entry.record;
        let explain = match bids {
            None => attempt.explanation(self.shared.mono()),
            Some(bids) => {
                let mut explain = attempt.explain(self.shared.mono());
                explain["why"] = "its offer is the best that fits".into();
                explain["offers"] = bids;
                Bytes::from(explain.to_string())
            }
        };
        let chosen = Chosen {
            agent: record.agent,
            name: crate::model::printable(&record.name, 64),
            node: record.node,
            estimate: if subtask.task.is_some() { self.choose.cost_max } else { estimate(&attempt, subtask) },
            explain,
        };
        self.tell(Input::Chosen(number, chosen), None).await;
        let Ok(send) = orders.send.await else { return };
        let (input, output) = self.make(subtask, attempt, request, send, orders.begin).await;
        self.tell(input, output).await;
    }

    /// A node that has just started knows nobody yet, which is not the same as that there is nobody.
    fn while_joining(&self, failure: Failure) -> Failure {
        let nobody = matches!(failure.code, ErrorCode::CapabilityNotFound | ErrorCode::AgentNotFound);
        if !nobody || *self.shared.state.borrow() != State::Joining {
            return failure;
        }
        Failure::new(ErrorCode::Unavailable, format!("{}; this node is still joining the mesh", failure.message))
    }

    pub(super) async fn tell(&self, input: Input, output: Option<Arc<Value>>) {
        // The book outlives its steps; if it is gone, so is the node.
        let _ = self.reports.send(Report { task: self.task, input, output }).await;
    }

    /// Makes the call, and says how it ended.
    async fn make(
        &self,
        subtask: &Subtask,
        attempt: Attempt<'_>,
        mut request: InvokeRequest,
        send: Send,
        begin: oneshot::Receiver<()>,
    ) -> (Input, Option<Arc<Value>>) {
        let (shared, fence) = (&self.shared, send.fence);
        // A node that stops lets what runs finish, as far as it has time.
        let _counted = Counted::new(&shared.in_flight);
        let ended = |finish| (Input::Finished(fence, finish), None);
        let price = attempt.candidate().capability().and_then(|capability| capability.price.clone());
        let mut arriving = None;
        if let Some(task) = &subtask.task {
            let input = nested::input(task, &request.input, (self.task, subtask), &self.definition, self.choose.cost_max, price.as_ref());
            request.input = match input {
                Ok(input) => input,
                Err(failure) => return ended(Finish::Rejected { expired: false, failure }),
            };
            let (chunks, words) = mpsc::channel(CHUNKS_MAX);
            (request.chunks, arriving) = (Some(chunks), Some(words));
        }
        if let Some(access) = subtask.context {
            request.context = match context::given(shared, &self.definition, access).await {
                Ok(context) => Some(context),
                // Nobody has begun, and it may do a moment later.
                Err(failure) if failure.retryable => return ended(Finish::Rejected { expired: false, failure }),
                Err(failure) => return (Input::Broken(fence.subtask, failure), None),
            };
        }
        request.key = Some(key(self.task, fence.subtask, subtask, &request.input, self.choose.redo));
        request.fence = Some(wire::invocation::Fence { epoch: super::book::EPOCH, attempt: fence.attempt });
        let left = send.until.map(|until| until.saturating_since(self.clock.now()));
        let start_within = left.map_or(send.start_within, |left| left.min(send.start_within));
        let most = send.start_within.saturating_add(send.close_within);
        let deadline = shared.mono().saturating_add(left.map_or(most, |left| left.min(most))).saturating_add(GRACE);
        let (accepted, acceptance) = oneshot::channel();
        let (go, going) = oneshot::channel();
        let watch = Watch { accepted, go: going };
        let id = InvocationId::from_random(rand::random());
        let node = attempt.candidate().entry.record.node;
        let call = async {
            let call = attempt.ask(&request, id, Some(watch), deadline);
            let Some(words) = &mut arriving else { return call.await };
            let mut call = std::pin::pin!(call);
            let child = async {
                if let Some(task) = nested::first(words).await {
                    self.tell(Input::Delegated(fence, task, node), None).await;
                }
                nested::progress(words, &self.reports, self.task, fence).await;
            };
            tokio::select! {
                biased;
                outcome = &mut call => return outcome,
                () = child => {}
            }
            call.await
        };
        let mut call = std::pin::pin!(call);
        let outcome = tokio::select! {
            biased;
            outcome = &mut call => Some(outcome),
            Ok(()) = acceptance => None,
            () = tokio::time::sleep(start_within) => {
                let waited = u64::try_from(start_within.as_millis()).unwrap_or(u64::MAX);
                let failure = Failure::new(ErrorCode::Busy, format!("the agent did not accept the call within {waited} ms"));
                return ended(Finish::Rejected { expired: true, failure });
            }
        };
        let (outcome, _) = match outcome {
            Some(outcome) => outcome,
            None => {
                // The agent begins on this word alone. Until then an attempt that is given up has surely not begun.
                let told = async {
                    if send.wait {
                        self.tell(Input::Accepted(fence), None).await;
                        if begin.await.is_ok() {
                            let _ = go.send(());
                        }
                    } else {
                        let _ = go.send(());
                        self.tell(Input::Accepted(fence), None).await;
                    }
                    std::future::pending::<Infallible>().await
                };
                tokio::select! {
                    biased;
                    outcome = &mut call => outcome,
                    never = told => match never {},
                    () = tokio::time::sleep(send.close_within) => {
                        let took = u64::try_from(send.close_within.as_millis()).unwrap_or(u64::MAX);
                        let failure = Failure::new(ErrorCode::Timeout, format!("the attempt did not end within {took} ms"));
                        let failure = failure.with("timeout_ms", took);
                        return ended(Finish::Failed { loss: Loss::AttemptTimeout, failure, charge: None });
                    }
                }
            }
        };
        match outcome {
            Ok(success) => self.finished(subtask, (fence, node), price, success).await,
            Err(failed) => {
                let spent = |failure: &Failure| match &subtask.task {
                    Some(_) => nested::spent(failure, &self.definition, self.choose.cost_max, price.clone()),
                    None => None,
                };
                let charge = spent(&failed.failure).or_else(|| charge_of_unfit(price.clone(), &failed.failure));
                ended(failed_attempt(failed, charge))
            }
        }
    }

    /// What becomes of an answer: mapped, checked against what the author demands, kept where it is large.
    pub(super) async fn finished(
        &self,
        subtask: &Subtask,
        (fence, node): (Fence, NodeId),
        price: Option<Price>,
        success: Success,
    ) -> (Input, Option<Arc<Value>>) {
        let mut charge = charge(price, &success);
        let text = match success.body {
            Body::Inline(text) => text,
            Body::Blob(_) => Bytes::new(),
        };
        let failed = |loss, failure: Failure, charge| {
            (Input::Finished(fence, Finish::Failed { loss, failure: failure.retryable(true), charge }), None)
        };
        let parts = match subtask.context {
            Some(access) => off_workers(text.len(), || context::apart(&self.definition, access, &text)),
            None => Ok((text, None)),
        };
        let (text, ops) = match parts {
            Ok(parts) => parts,
            Err(failure) => return failed(Loss::InvalidOutput, failure, charge),
        };
        let not_json = |error| Failure::new(ErrorCode::InvalidSchema, format!("the output is not JSON: {error}"));
        let mut child = None;
        let mapped = off_workers(text.len(), || {
            let mut value = serde_json::from_slice::<Value>(&text).map_err(not_json)?;
            let mut text = text;
            if subtask.task.is_some() {
                let done = nested::done(value)?;
                charge = charge.take().or(done.charge);
                child = Some(done.task);
                value = done.result;
                text = serde_json::to_vec(&value).map_err(not_json)?.into();
            }
            if subtask.output_mapping.is_empty() {
                return Ok((value, text));
            }
            let value = map_output(subtask, value)?;
            let text = serde_json::to_vec(&value).map_err(not_json)?;
            Ok((value, text.into()))
        });
        if let Some(task) = child {
            self.tell(Input::Delegated(fence, task, node), None).await;
        }
        let checked = mapped.and_then(|(value, text)| {
            read::check(&self.shared, &subtask.output, &value, &format!("output of `{}`", subtask.id))?;
            Ok((value, text))
        });
        let (value, text) = match checked {
            Ok(checked) => checked,
            Err(failure) => return failed(Loss::InvalidOutput, failure, charge),
        };
        // What was done is not done again because the disk is full for a while; the deadline and a cancel still end the wait.
        let kept = async {
            let context_ops = match ops {
                Some(ops) => Some(self.kept(ops).await?),
                None => None,
            };
            Ok((self.kept(text).await?, context_ops))
        };
        match kept.await {
            Ok((output, context_ops)) => (Input::Finished(fence, Finish::Done { output, charge, context_ops }), Some(Arc::new(value))),
            Err(failure) => failed(Loss::AgentError, failure, charge),
        }
    }

    /// A text on the disk, as soon as that has room for it.
    async fn kept(&self, text: Bytes) -> Result<Text, Failure> {
        loop {
            match read::keep(&self.blobs, self.task, text.clone()).await {
                Err(failure) if failure.code == ErrorCode::InsufficientResources => tokio::time::sleep(FULL_RETRY).await,
                kept => return kept,
            }
        }
    }
}

/// The call as the subtask describes it.
pub(super) fn request(
    definition: &Definition,
    subtask: &Subtask,
    outputs: &[Option<Arc<Value>>],
    choose: &Choose,
) -> Result<InvokeRequest, Failure> {
    let output = |index: usize| outputs.get(index).and_then(Option::as_deref);
    // A task within this one is given its parameters so; the rest comes once it is known who runs it.
    let input = subtask.input.render(&definition.parameters, &output)?;
    let text = serde_json::to_vec(&input).map_err(|error| Failure::new(ErrorCode::InvalidRequest, error.to_string()))?;
    let mut request = InvokeRequest::new(subtask.capability.clone(), text.into());
    request.version = subtask.version.clone();
    request.agent = subtask.agent;
    request.priority = definition.priority;
    request.constraints.min_trust = subtask.min_trust;
    let units = subtask.estimated_units.max(Decimal::ONE);
    if subtask.task.is_none() {
        request.constraints.max_cost = choose.cost_max.and_then(|most| most.checked_div(units));
    }
    request.hops = definition.parent.as_ref().map(|parent| parent.hops.clone()).unwrap_or_default();
    Ok(request)
}

/// Chooses whom to ask: who alone can be paid, else who may already hold the result, else, where the task wants offers, whoever makes the best one, else somebody on
/// whom no attempt failed, else anybody who did not refuse. Gives the offers too, if there are any.
async fn choose_agent<'a>(
    shared: &'a Arc<Shared>,
    request: &InvokeRequest,
    definition: &Definition,
    subtask: &Subtask,
    choose: &Choose,
    now: Timestamp,
) -> Result<(Attempt<'a>, Option<Value>), Failure> {
    let deadline = shared.mono().saturating_add(CHOOSE_MAX);
    if let Some(only) = choose.only {
        if choose.refused_by.contains(&only) {
            return Err(Failure::new(ErrorCode::Busy, format!("agent {only} did not take it just now, and the budget pays no other")));
        }
        let named = InvokeRequest { agent: Some(only), ..request.clone() };
        return Box::pin(routing::choose(shared, &named, &choose.refused_by, deadline)).await.map(|attempt| (attempt, None));
    }
    if let Some(prefer) = choose.prefer {
        let named = InvokeRequest { agent: Some(prefer), ..request.clone() };
        loop {
            let mut events = shared.events.subscribe();
            if let Ok(attempt) = Box::pin(routing::choose(shared, &named, &choose.refused_by, deadline)).await {
                return Ok((attempt, None));
            }
            let is_there = async { while !matches!(events.recv().await, Ok(Event::AgentUp { agent, .. }) if agent == prefer) {} };
            let left = REUNION_MAX.saturating_sub(shared.mono());
            if choose.refused_by.contains(&prefer) || left.is_zero() || tokio::time::timeout(left, is_there).await.is_err() {
                break;
            }
        }
    }
    // Whoever was waited for took none of the time for the others.
    let deadline = shared.mono().saturating_add(CHOOSE_MAX);
    if subtask.offers && subtask.agent.is_none() {
        return Box::pin(choose_by_offers(shared, request, definition, subtask, choose, now)).await;
    }
    let mut avoid: Vec<AgentId> = choose.refused_by.iter().chain(&choose.failed_on).copied().collect();
    let mut foreign: Option<Failure> = None;
    let may_again = |agent: &AgentId| choose.failed_on.contains(agent) && !choose.refused_by.contains(agent);
    loop {
        let found = Box::pin(routing::choose(shared, request, &avoid, deadline)).await;
        match found {
            Ok(attempt) => match foreign_currency(definition, &attempt) {
                None => return Ok((attempt, None)),
                Some(failure) => {
                    avoid.push(attempt.candidate().agent());
                    foreign = Some(failure);
                }
            },
            Err(failure) if avoid.iter().any(may_again) => {
                // Nobody else is left, so whoever failed may try again, unless it has just refused.
                tracing::trace!(%failure, subtask = %subtask.id, "nobody but those who failed");
                avoid.retain(|agent| !may_again(agent));
            }
            Err(failure) => {
                // Whoever can be paid, and is busy or away, may do it later.
                let nobody = matches!(failure.code, ErrorCode::CapabilityNotFound | ErrorCode::AgentNotFound);
                return Err(foreign.filter(|_| nobody && choose.refused_by.is_empty()).unwrap_or(failure));
            }
        }
    }
}

/// Chooses whoever makes the best offer that fits.
async fn choose_by_offers<'a>(
    shared: &'a Arc<Shared>,
    request: &InvokeRequest,
    definition: &Definition,
    subtask: &Subtask,
    choose: &Choose,
    now: Timestamp,
) -> Result<(Attempt<'a>, Option<Value>), Failure> {
    let bids = Box::pin(offers::ask(shared, request, definition, subtask, choose, now)).await?;
    let deadline = shared.mono().saturating_add(CHOOSE_MAX);
    let mut gone = None;
    for agent in bids.agents {
        let named = InvokeRequest { agent: Some(agent), ..request.clone() };
        match Box::pin(routing::choose(shared, &named, &choose.refused_by, deadline)).await {
            Ok(attempt) => return Ok((attempt, Some(bids.document))),
            Err(failure) => gone = Some(failure),
        }
    }
    if let Some(failure) = bids.nobody.or(gone) {
        return Err(failure);
    }
    // Nobody was there to ask: why, routing knows best.
    let found = Box::pin(routing::choose(shared, request, &choose.refused_by, deadline)).await;
    let message = format!("nobody who offers `{}` could be asked for an offer", request.capability);
    Err(found.err().unwrap_or_else(|| Failure::new(ErrorCode::Busy, message)))
}

/// Why an agent cannot be paid, if its price is in another currency than the budget.
fn foreign_currency(definition: &Definition, attempt: &Attempt<'_>) -> Option<Failure> {
    let budget = definition.budget?;
    let candidate = attempt.candidate();
    let price = candidate.capability()?.price.as_ref().filter(|price| price.currency != budget.currency && !price.amount.is_zero())?;
    let name = crate::model::printable(&candidate.entry.record.name, 64);
    let message = format!("`{name}` is paid in {}, and the budget is in {}", price.currency, budget.currency);
    Some(Failure::new(ErrorCode::OverBudget, message))
}

/// What the attempt will probably cost.
fn estimate(attempt: &Attempt<'_>, subtask: &Subtask) -> Option<Decimal> {
    let price = attempt.candidate().capability()?.price.as_ref()?;
    Some(price.times(subtask.estimated_units))
}

/// What an attempt costs.
pub(super) fn charge(attempt_price: Option<Price>, success: &Success) -> Option<Charge> {
    Some(bill(attempt_price?, success.units.as_deref()))
}

/// What an answer costs that somebody on its way found not to match its schema, and that did not come for this alone.
pub(super) fn charge_of_unfit(attempt_price: Option<Price>, failure: &Failure) -> Option<Charge> {
    let units = failure.details.get("units").filter(|_| failure.code == ErrorCode::InvalidSchema)?;
    Some(bill(attempt_price?, units.as_str()))
}

/// So many units at this price; one where nobody says how many in a way that makes sense.
fn bill(price: Price, units: Option<&str>) -> Charge {
    let stated = units.and_then(|units| units.parse::<Decimal>().ok());
    let units = stated.filter(|units| !units.is_sign_negative()).unwrap_or(Decimal::ONE);
    Charge { units, total: price.times(units), unit: price.unit, price: price.amount, currency: price.currency }
}

/// What becomes of an attempt that failed, for this bill.
fn failed_attempt(failed: AttemptFailure, charge: Option<Charge>) -> Finish {
    let AttemptFailure { failure, begun } = failed;
    if !begun {
        return Finish::Rejected { expired: false, failure };
    }
    let losses = [
        (ErrorCode::Unavailable, Loss::AgentLost),
        (ErrorCode::Timeout, Loss::AttemptTimeout),
        (ErrorCode::InvalidSchema, Loss::InvalidOutput),
    ];
    // Lost at work is an agent's failure that nobody knows the outcome of.
    let otherwise =
        if failure.details.get("outcome").is_some_and(|outcome| outcome == "unknown") { Loss::AgentLost } else { Loss::AgentError };
    let loss = losses.into_iter().find(|(code, _)| *code == failure.code).map_or(otherwise, |(_, loss)| loss);
    Finish::Failed { loss, failure, charge }
}

/// What all attempts of a subtask are known by to whoever executes them.
pub(super) fn key(task: TaskId, place: u32, subtask: &Subtask, input: &[u8], redo: u32) -> String {
    key::of(task, (place, &subtask.id), &off_workers(input.len(), || blake3::hash(input)), redo)
}
