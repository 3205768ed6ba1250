//! A task as its events have made it. [`apply`](State::apply) is the only way to change it, live and at start-up alike.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rust_decimal::Decimal;

use super::definition::Definition;
use super::ledger::{Ledger, Line, PLAN};
use super::transitions;
pub use super::transitions::result::Wanted;
use super::transitions::settle::Unsettled;
use crate::model::{AgentId, CapabilityName, Failure, NodeId, Priority, TaskId, Timestamp};
use crate::wire::task::{Bill, Charge, Event, Loss, Outcome, Reason, Submitted, Text};

/// What AITP calls the state of a subtask (AITP 5.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Status {
    /// No agent has accepted it yet.
    Pending,
    /// An agent works on it.
    Executing,
    /// An attempt failed, and another will be made.
    Retrying,
    /// The agent has finished, and its output is being looked at.
    Completed,
    /// Done.
    Success,
    /// Given up.
    Failed,
}

impl Status {
    /// As AITP writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "PENDING",
            Self::Executing => "EXECUTING",
            Self::Retrying => "RETRYING",
            Self::Completed => "COMPLETED",
            Self::Success => "SUCCESS",
            Self::Failed => "FAILED",
        }
    }
}

/// What a subtask waits for. Finer than its status, and no client's business.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Subtasks before it.
    Blocked,
    /// A place among those that run, or an agent to be chosen.
    Ready,
    /// The shell to choose an agent.
    Choosing,
    /// A moment.
    Paused {
        /// Which.
        until: Timestamp,
        /// Whether it may come sooner, because somebody offers the capability.
        deferred: bool,
    },
    /// Others to settle what they have reserved.
    Held,
    /// The agent to accept it.
    Sent,
    /// The agent to finish.
    Running,
    /// Nothing any more.
    Over,
}

/// How many attempts of a subtask are remembered: all that its author can ask for, and as many again that nobody took.
pub const ATTEMPTS_KEPT_MAX: usize = 64;

/// The largest failure that is kept whole; of a larger one its details are left out. Agents write some of them.
const FAILURE_BYTES_MAX: usize = 16 * 1024;

/// One attempt, for people who want to know.
#[derive(Debug, Clone, PartialEq)]
pub struct Attempt {
    /// Which; counted from 1.
    pub number: u32,
    /// Who was chosen.
    pub agent: AgentId,
    /// What it is called.
    pub name: String,
    /// Where it is.
    pub node: NodeId,
    /// When it was chosen.
    pub chosen: Timestamp,
    /// When it accepted.
    pub accepted: Option<Timestamp>,
    /// When the attempt was over.
    pub ended: Option<Timestamp>,
    /// How.
    pub end: Option<AttemptEnd>,
    /// How the choice came about, as JSON text.
    pub explain: Bytes,
    /// What it would probably cost when it was chosen.
    pub estimate: Option<Decimal>,
    /// The task that it is on its node, if it is one.
    pub child: Option<(TaskId, NodeId)>,
}

/// How an attempt ended.
#[derive(Debug, Clone, PartialEq)]
pub enum AttemptEnd {
    /// With a good result.
    Success,
    /// The agent did not take it, or not in time.
    Rejected {
        /// Whether it only did not answer in time.
        expired: bool,
        /// Why.
        failure: Failure,
    },
    /// It had begun, and failed.
    Failed(Loss, Failure),
    /// Its home node lost sight of it and made it anew.
    Requeued,
    /// With a result that came too late.
    Duplicate,
    /// The task ended before it did.
    Withdrawn,
}

impl AttemptEnd {
    /// As clients see it.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Rejected { expired: false, .. } => "rejected",
            Self::Rejected { expired: true, .. } => "offer_expired",
            Self::Failed(Loss::AgentError, _) => "agent_error",
            Self::Failed(Loss::AgentLost, _) => "agent_lost",
            Self::Failed(Loss::AttemptTimeout, _) => "attempt_timeout",
            Self::Failed(Loss::InvalidOutput, _) => "invalid_output",
            Self::Requeued => "requeued",
            Self::Duplicate => "duplicate",
            Self::Withdrawn => "withdrawn",
        }
    }

    /// Why, if it was not well.
    pub fn failure(&self) -> Option<&Failure> {
        match self {
            Self::Rejected { failure, .. } | Self::Failed(_, failure) => Some(failure),
            Self::Success | Self::Requeued | Self::Duplicate | Self::Withdrawn => None,
        }
    }
}

/// One subtask as it stands.
#[derive(Debug, Clone)]
pub struct Part {
    /// What AITP calls its state.
    pub status: Status,
    /// What it waits for.
    pub phase: Phase,
    /// Attempts so far, the oldest left out beyond [`ATTEMPTS_KEPT_MAX`]; the last one is under way in the phases `Sent` and `Running`.
    pub attempts: Vec<Attempt>,
    /// How many of them were repeated after they had begun.
    pub retries: u32,
    /// Whether it has been given its extended time.
    pub extended: bool,
    /// Its output, once it is done.
    pub output: Option<Text>,
    /// What its result brings for the task's context, until that is written.
    pub(super) context_ops: Option<Text>,
    /// Whether that is written: such a result is not taken back, whatever else is billed meanwhile.
    pub(super) is_written: bool,
    /// What its output cost.
    pub charge: Option<Charge>,
    /// Why it was given up.
    pub failure: Option<(Reason, Failure)>,
    /// Why it waits, if for anything but what comes before it.
    pub waiting: Option<Failure>,
    /// When its first attempt was chosen.
    pub started: Option<Timestamp>,
    /// When it was done or given up.
    pub ended: Option<Timestamp>,
    /// What was held back for its first attempt, where that is a task: every further one is given as much, and so is the same call.
    pub share: Option<Decimal>,
    /// Its attempts whose output broke its schema: each after them is other work, under another key.
    pub(super) spoiled: Vec<u32>,
    /// Its attempt that was lost with what it was given, where that is a task.
    pub(super) unsettled: Option<Unsettled>,
    /// Subtasks that it still waits for.
    pub(super) missing: usize,
    /// Agents on which an attempt failed: only asked again where nobody else is left.
    pub(super) failed_on: BTreeSet<AgentId>,
    /// Agents that did not take it since it last paused.
    pub(super) refused_by: BTreeSet<AgentId>,
    /// The agent that may hold the result of an attempt that the home node lost sight of.
    pub(super) prefer: Option<AgentId>,
    /// How often in a row nobody took it.
    pub(super) rounds: u32,
    /// What no event says.
    pub(super) unkept: Unkept,
}

/// What is known of a subtask and not kept: a restart begins without it.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Unkept {
    /// How far the task is that its attempt is on another node, as that node says.
    pub(super) progress_percentage: u8,
    /// How often in a row its retry was put off.
    pub(super) put_off: u32,
    /// Since when what its result brings for the context cannot be written, and why.
    pub(super) context_wait: Option<Box<(Timestamp, Failure)>>,
}

impl Part {
    pub(super) fn new(missing: usize) -> Self {
        Self {
            status: Status::Pending,
            phase: if missing == 0 { Phase::Ready } else { Phase::Blocked },
            attempts: Vec::new(),
            retries: 0,
            extended: false,
            output: None,
            context_ops: None,
            is_written: false,
            charge: None,
            failure: None,
            waiting: None,
            started: None,
            ended: None,
            share: None,
            spoiled: Vec::new(),
            unsettled: None,
            missing,
            failed_on: BTreeSet::new(),
            refused_by: BTreeSet::new(),
            prefer: None,
            rounds: 0,
            unkept: Unkept::default(),
        }
    }

    /// The attempt under way.
    pub fn current(&self) -> Option<&Attempt> {
        self.attempts.last().filter(|attempt| matches!(self.phase, Phase::Sent | Phase::Running) && attempt.end.is_none())
    }

    /// How often what came of it was no use before this attempt: so often its work was to be done anew.
    pub(super) fn redo(&self, attempt: u32) -> u32 {
        number(self.spoiled.iter().filter(|spoiled| **spoiled < attempt).count())
    }

    /// Whether it is done or given up.
    pub fn is_over(&self) -> bool {
        self.phase == Phase::Over
    }

    /// Makes room for one more attempt: the oldest goes that nobody took, since these may be without end.
    pub(super) fn forget_attempts(&mut self) {
        if self.attempts.len() >= ATTEMPTS_KEPT_MAX {
            let was_begun = |attempt: &Attempt| !matches!(attempt.end, Some(AttemptEnd::Rejected { .. }));
            let oldest = self.attempts.iter().position(|attempt| !was_begun(attempt)).unwrap_or(0);
            self.attempts.remove(oldest);
        }
    }

    /// Ends the last attempt, if it is not over yet.
    pub(super) fn end_attempt(&mut self, end: AttemptEnd, at: Timestamp) {
        if let Some(attempt) = self.attempts.last_mut().filter(|attempt| attempt.end.is_none()) {
            attempt.ended = Some(at);
            attempt.end = Some(end);
        }
    }
}

/// How a task ended.
#[derive(Debug, Clone, PartialEq)]
pub struct End {
    /// How.
    pub outcome: Outcome,
    /// Why, as a word.
    pub reason: Option<Reason>,
    /// Why.
    pub failure: Option<Failure>,
    /// When.
    pub at: Timestamp,
}

/// What every task of a node has in common.
#[derive(Debug, Clone)]
pub struct Config {
    /// How long an agent may take to accept an attempt before another is asked.
    pub start_within: Duration,
    /// The longest that one attempt may take, whatever its author says.
    pub attempt_timeout_max: Duration,
    /// The first pause when everybody who could do it refuses; each further one is twice as long.
    pub refused_pause: Duration,
    /// The longest of those.
    pub refused_pause_max: Duration,
    /// Subtasks of one task that run at once.
    pub parallel_max: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            start_within: Duration::from_secs(5),
            attempt_timeout_max: Duration::from_secs(600),
            refused_pause: Duration::from_millis(500),
            refused_pause_max: Duration::from_secs(30),
            parallel_max: 64,
        }
    }
}

/// One task.
#[derive(Debug, Clone)]
pub struct State {
    pub(super) id: TaskId,
    pub(super) config: Arc<Config>,
    pub(super) definition: Arc<Definition>,
    pub(super) created: Timestamp,
    pub(super) key: Option<String>,
    pub(super) identity: [u8; 32],
    pub(super) events: u64,
    pub(super) planned_by: Option<String>,
    pub(super) parts: Vec<Part>,
    /// For each subtask those that wait for it.
    pub(super) dependents: Vec<Vec<usize>>,
    /// Those in the phase `Ready`, the most urgent first.
    pub(super) ready: BTreeSet<(u32, usize)>,
    /// When those in the phase `Paused` go on.
    pub(super) pauses: BTreeSet<(Timestamp, usize)>,
    /// Those in the phase `Held`.
    pub(super) held: BTreeSet<usize>,
    /// How many are choosing, sent or running.
    pub(super) busy: usize,
    /// How many are over.
    pub(super) over: usize,
    pub(super) ledger: Ledger,
    /// Tasks that must have ended well before this one begins.
    pub(super) waiting_for: BTreeSet<TaskId>,
    /// Whether the shell has been asked for a plan.
    pub(super) planning: bool,
    /// Whether the shell has been asked to compose the result.
    pub(super) composing: bool,
    pub(super) cancelling: bool,
    pub(super) end: Option<End>,
}

impl State {
    /// The task that a submission begins.
    pub fn submitted(id: TaskId, config: Arc<Config>, definition: Definition, submitted: &Submitted, at: Timestamp) -> Self {
        let mut state = Self {
            id,
            config,
            created: at,
            key: submitted.key.clone(),
            identity: submitted.identity,
            events: 1,
            planned_by: None,
            parts: Vec::new(),
            dependents: Vec::new(),
            ready: BTreeSet::new(),
            pauses: BTreeSet::new(),
            held: BTreeSet::new(),
            busy: 0,
            over: 0,
            ledger: Ledger::new(definition.budget),
            waiting_for: definition.dependencies.clone(),
            planning: false,
            composing: false,
            cancelling: false,
            end: None,
            definition: Arc::new(definition),
        };
        state.lay_out();
        state
    }

    /// Makes a part of each subtask.
    pub(super) fn lay_out(&mut self) {
        let subtasks = &self.definition.subtasks;
        self.parts = subtasks.iter().map(|subtask| Part::new(subtask.after.len())).collect();
        self.dependents = vec![Vec::new(); subtasks.len()];
        for (index, subtask) in subtasks.iter().enumerate() {
            for before in &subtask.after {
                if let Some(dependents) = self.dependents.get_mut(*before) {
                    dependents.push(index);
                }
            }
        }
        let first = subtasks.iter().enumerate().filter(|(_, subtask)| subtask.after.is_empty());
        self.ready = first.map(|(index, subtask)| (subtask.order, index)).collect();
    }

    /// Changes the task by what happened `at` that time. Everything that an event says is taken as said: whether it may happen was decided
    /// before it was kept.
    pub fn apply(&mut self, event: &Event, at: Timestamp) {
        self.events += 1;
        if !matches!(event, Event::Submitted(_) | Event::CancelRequested | Event::Ended { .. }) {
            // Nothing is done for a task before those that it waits for have ended.
            self.waiting_for.clear();
        }
        match event {
            // A task begins once, in `submitted`.
            Event::Submitted(_) => {}
            Event::Planned { subtasks: _, by, bill } => {
                self.planned_by = Some(by.clone());
                if let Some(Bill { agent, charge }) = bill {
                    self.ledger.bill(Line { fence: PLAN, agent: *agent, charge: charge.clone(), duplicate: false, assumed: false });
                }
            }
            Event::Dispatched(dispatched) => transitions::dispatch::apply(self, dispatched, at),
            Event::Accepted(fence) => transitions::accept::apply(self, *fence, at),
            Event::Rejected { fence, expired, failure } => transitions::reject::apply(self, *fence, *expired, failure, at),
            Event::ResultReceived { fence, output, charge, context_ops } => {
                transitions::result::received(self, *fence, output, charge.as_ref(), context_ops.as_ref(), at);
            }
            Event::ContextWritten(fence) => transitions::result::context_written(self, *fence),
            Event::Validated(fence) => transitions::result::validated(self, *fence, at),
            Event::AttemptFailed { fence, loss, failure, retry_in, charge } => {
                transitions::retry::apply(self, *fence, *loss, failure, charge.as_ref(), *retry_in, at);
            }
            Event::Requeued(fence) => transitions::recover::apply(self, *fence, at),
            Event::Deferred { subtask, span, failure } => transitions::unavailable::apply(self, *subtask, *span, failure, at),
            Event::SubtaskFailed { subtask, reason, failure } => transitions::fail::apply(self, *subtask, *reason, failure, at),
            Event::DuplicateResult { fence, charge } => transitions::result::duplicate(self, *fence, charge.as_ref(), at),
            Event::CancelRequested => self.cancelling = true,
            // Told after the end, and nothing of the task itself.
            Event::CalledBack { .. } => {}
            Event::Delegated { fence, task, node } => transitions::accept::delegated(self, *fence, (*task, *node)),
            Event::Ended { outcome, reason, failure } => transitions::end::apply(self, *outcome, *reason, failure.as_ref(), at),
        }
    }

    /// Replaces the definition by one with subtasks: a goal was decomposed.
    pub fn planned(&mut self, definition: Definition) {
        self.definition = Arc::new(definition);
        self.planning = false;
        self.lay_out();
    }

    /// Which task.
    pub fn id(&self) -> TaskId {
        self.id
    }

    /// What is to be done.
    pub fn definition(&self) -> &Arc<Definition> {
        &self.definition
    }

    /// When it was submitted.
    pub fn created(&self) -> Timestamp {
        self.created
    }

    /// The client's word for it, and what a second submission under it must be.
    pub fn key(&self) -> Option<(&str, [u8; 32])> {
        self.key.as_deref().map(|key| (key, self.identity))
    }

    /// How many events made it.
    pub fn events(&self) -> u64 {
        self.events
    }

    /// Its subtasks as they stand, in the order of the definition.
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// Its accounts.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// How it ended, if it has.
    pub fn end(&self) -> Option<&End> {
        self.end.as_ref()
    }

    /// Subtasks that wait for somebody who does this, the one that has to wait for the shortest time first.
    pub fn deferred(&self, capability: &CapabilityName) -> impl Iterator<Item = usize> {
        let is_meant = |index: &usize| {
            let is_deferred = self.parts.get(*index).is_some_and(|part| matches!(part.phase, Phase::Paused { deferred: true, .. }));
            is_deferred && self.definition.subtasks.get(*index).is_some_and(|subtask| subtask.capability == *capability)
        };
        self.pauses.iter().map(|(_, index)| *index).filter(is_meant)
    }

    /// Tasks that it waits for.
    pub fn waiting_for(&self) -> &BTreeSet<TaskId> {
        &self.waiting_for
    }

    /// Who decomposed it, if its author did not.
    pub fn planned_by(&self) -> Option<&str> {
        self.planned_by.as_deref()
    }

    /// How urgent its calls are.
    pub fn priority(&self) -> Priority {
        self.definition.priority
    }

    /// What AITP calls its state (AITP 2.1).
    pub fn status(&self) -> Status {
        match &self.end {
            Some(End { outcome: Outcome::Success | Outcome::Partial, .. }) => Status::Completed,
            Some(End { outcome: Outcome::Failed | Outcome::Cancelled, .. }) => Status::Failed,
            None if self.parts.iter().all(|part| part.status == Status::Pending && part.attempts.is_empty()) => Status::Pending,
            None => Status::Executing,
        }
    }

    /// The output of the subtask at this place, if it is done.
    pub fn output(&self, index: usize) -> Option<&Text> {
        self.parts.get(index)?.output.as_ref()
    }

    /// Whether every subtask is done or given up.
    pub(super) fn all_over(&self) -> bool {
        !self.parts.is_empty() && self.over == self.parts.len()
    }

    /// The part with this number.
    pub(super) fn part(&self, subtask: u32) -> Option<&Part> {
        self.parts.get(usize::try_from(subtask).ok()?)
    }

    /// Puts a part into another phase, and keeps the sets that follow from phases.
    pub(super) fn enter(&mut self, index: usize, phase: Phase) {
        let order = self.definition.subtasks.get(index).map_or(0, |subtask| subtask.order);
        let Some(part) = self.parts.get_mut(index) else { return };
        match part.phase {
            Phase::Ready => {
                self.ready.remove(&(order, index));
            }
            Phase::Paused { until, .. } => {
                self.pauses.remove(&(until, index));
            }
            Phase::Choosing | Phase::Sent | Phase::Running => self.busy -= 1,
            Phase::Over => self.over -= 1,
            Phase::Held => {
                self.held.remove(&index);
            }
            Phase::Blocked => {}
        }
        match phase {
            Phase::Ready => {
                self.ready.insert((order, index));
            }
            Phase::Paused { until, .. } => {
                self.pauses.insert((until, index));
            }
            Phase::Choosing | Phase::Sent | Phase::Running => self.busy += 1,
            Phase::Over => self.over += 1,
            Phase::Held => {
                self.held.insert(index);
            }
            Phase::Blocked => {}
        }
        part.phase = phase;
    }

    /// What was reserved has been given back, so those that waited for it may try again.
    pub(super) fn wake_held(&mut self) {
        for index in self.held.clone() {
            self.enter(index, Phase::Ready);
        }
    }
}

/// A failure as it is kept.
pub(super) fn kept(failure: &Failure) -> Text {
    let whole = serde_json::to_vec(failure).unwrap_or_default();
    if whole.len() <= FAILURE_BYTES_MAX {
        return Text::Inline(whole.into());
    }
    let bare = Failure::new(failure.code, &failure.message).retryable(failure.retryable);
    Text::Inline(serde_json::to_vec(&bare).unwrap_or_default().into())
}

/// A failure as it was kept.
pub(super) fn failure_of(text: &Text) -> Failure {
    let read = match text {
        Text::Inline(bytes) => serde_json::from_slice(bytes).ok(),
        Text::Blob { .. } => None,
    };
    read.unwrap_or_else(|| Failure::new(crate::model::ErrorCode::Internal, "what went wrong was not kept"))
}

/// The place of a subtask in the definition.
pub(super) fn place(subtask: u32) -> usize {
    usize::try_from(subtask).unwrap_or(usize::MAX)
}

/// The number of a subtask in events.
pub(super) fn number(index: usize) -> u32 {
    u32::try_from(index).unwrap_or(u32::MAX)
}
