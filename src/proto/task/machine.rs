//! What drives a task: inputs in, events to keep and orders out.
//!
//! One contract with the shell. It hands over an [`Input`] and the time, and carries out every [`Output`] in order before it hands over the
//! next. [`Output::Append`] is to be kept in the journal; whatever leaves the node because of it comes out of [`Machine::committed`], once
//! the shell says that the disk has it. So nothing is sent, withdrawn or answered before it is durable, and the shell cannot forget that.
//!
//! Orders that stay inside the node (choosing an agent, composing the result) do not wait for the disk: what comes of them does.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rand::Rng;
use rust_decimal::Decimal;
use serde_json::Value;

use super::definition::{Definition, OnTimeout};
use super::ledger::Cover;
use super::state::{Part, Phase, State, number, place};
use super::transitions::{accept, dispatch, end, fail, recover, reject, result, retry, settle, unavailable};
use super::view;
use crate::model::{AgentId, CapabilityName, ErrorCode, Failure, NodeId, TaskId, Timestamp};
use crate::proto::invocation::budget::Turn;
use crate::wire::task::{Bill, Charge, Event, Fence, Loss, Outcome, Reason, Text};

/// An agent that may do a subtask.
#[derive(Debug, Clone, PartialEq)]
pub struct Chosen {
    /// Who.
    pub agent: AgentId,
    /// What it is called.
    pub name: String,
    /// Where it is.
    pub node: NodeId,
    /// What it will probably cost, in the currency of the budget; `None` if it has no price.
    pub estimate: Option<Decimal>,
    /// How the choice came about, as JSON text.
    pub explain: Bytes,
}

/// How an attempt ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Finish {
    /// With an output that matches its schema.
    Done {
        /// The output, mapped.
        output: Text,
        /// What it costs.
        charge: Option<Charge>,
        /// What is to be written to the context, as JSON text that was looked at.
        context_ops: Option<Text>,
    },
    /// It was not begun.
    Rejected {
        /// Whether the agent only did not answer in time.
        expired: bool,
        /// Why.
        failure: Failure,
    },
    /// It had begun, and failed.
    Failed {
        /// How.
        loss: Loss,
        /// Why.
        failure: Failure,
        /// What it costs all the same, as far as anybody said.
        charge: Option<Charge>,
    },
}

/// What happens to a task.
#[derive(Debug, Clone, PartialEq)]
pub enum Input {
    /// It was submitted, or the home node came back: go on from what is kept.
    Resume,
    /// An agent was chosen for a subtask.
    Chosen(u32, Chosen),
    /// Nobody could be chosen, or its input could not be made.
    Unavailable(u32, Failure),
    /// The agent accepted an attempt.
    Accepted(Fence),
    /// What a result brought for the context is written, or cannot be.
    ContextWritten(Fence, Result<(), Failure>),
    /// The agent's node says which task of its own an attempt is.
    Delegated(Fence, TaskId, NodeId),
    /// An attempt ended.
    Finished(Fence, Finish),
    /// The task that an attempt is on another node has come so far, in percent, as that node says. Nothing of it is kept.
    Progress(Fence, u8),
    /// What a result brought for the context cannot be written now, and is tried again. Nothing of it is kept.
    ContextWaits(Fence, Failure),
    /// The agent that would be asked once more is not, since the node has made its share of retries for now.
    PutOff(u32),
    /// What works on a subtask broke: a fault of this node, and no other attempt will mend it.
    Broken(u32, Failure),
    /// A task that it depends on ended.
    DependencyEnded(TaskId, Outcome),
    /// Somebody now offers this.
    Offered(CapabilityName),
    /// Somebody who offers this has just done something else, and may have room for one step.
    Freed(CapabilityName),
    /// A goal was decomposed: the subtasks, who did it and for how much, and the definition with them.
    Planned {
        /// The subtasks as JSON.
        subtasks: Text,
        /// Who decomposed it.
        by: String,
        /// What that costs.
        bill: Option<Bill>,
        /// The definition with them.
        definition: Box<Definition>,
    },
    /// A goal could not be decomposed.
    Unplanned(Failure),
    /// The result was composed and looked at.
    Composed(Result<(), Failure>),
    /// Somebody wants it to be cancelled.
    Cancel,
    /// A moment that [`Machine::wake_at`] named has come.
    Wake,
}

/// Whom to choose for a subtask, and whom not.
#[derive(Debug, Clone, PartialEq)]
pub struct Choose {
    /// The subtask.
    pub subtask: u32,
    /// Agents that are not asked.
    pub refused_by: Vec<AgentId>,
    /// Agents that are asked only where nobody else is left.
    pub failed_on: Vec<AgentId>,
    /// The agent that comes first if it is there at all.
    pub prefer: Option<AgentId>,
    /// The only agent that the budget can still pay; it is waited for like a sole agent.
    pub only: Option<AgentId>,
    /// How often the work was done and came to nothing that fits: so often whoever keeps results does it anew.
    pub redo: u32,
    /// What the attempt may cost.
    pub cost_max: Option<Decimal>,
    /// What the attempt is to those who count retries.
    pub turn: Turn,
}

/// A call to be made.
#[derive(Debug, Clone, PartialEq)]
pub struct Send {
    /// Which attempt.
    pub fence: Fence,
    /// How long the agent may take to accept it.
    pub start_within: Duration,
    /// How long it may take from then on.
    pub close_within: Duration,
    /// When it is of no use any more.
    pub until: Option<Timestamp>,
    /// Whether the agent begins only on [`Output::Begin`].
    pub wait: bool,
}

/// What the shell must do.
#[derive(Debug, Clone, PartialEq)]
pub enum Output {
    /// Keep this.
    Append(Event),
    /// Choose an agent and make the input.
    Choose(Choose),
    /// Make the call.
    Send(Send),
    /// The agent may begin.
    Begin(Fence),
    /// Stop the call.
    Withdraw(Fence),
    /// Write to the context what a result brought for it.
    WriteContext {
        /// Whose result.
        fence: Fence,
        /// What, as JSON text.
        ops: Text,
        /// Whether it may have been written before: a crash came in between.
        again: bool,
    },
    /// Decompose the goal.
    Plan,
    /// Compose the result, and see whether it matches the task's schema.
    Compose,
    /// The task is over, and that is durable.
    Ended,
}

/// A task under way.
#[derive(Debug)]
pub struct Machine {
    state: State,
    /// How many of its events are durable.
    committed: u64,
    /// Orders that wait for the disk, with the number of events that it must have.
    held: VecDeque<(u64, Output)>,
    /// Whether it was made from the journal: one that lost its end may have held more than this one knows of.
    is_restored: bool,
}

impl Machine {
    /// A task of which `committed` events are durable already: all that made it, or none where its submission is just being kept.
    pub fn new(state: State, committed: u64) -> Self {
        Self { state, committed, held: VecDeque::new(), is_restored: false }
    }

    /// The same, made from the journal at a start.
    pub fn restored(state: State, committed: u64) -> Self {
        Self { is_restored: true, ..Self::new(state, committed) }
    }

    /// The task as it stands.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The task itself, where nothing more will happen to it.
    pub fn into_state(self) -> State {
        self.state
    }

    /// How much of it is done, in percent, where all of it is durable: nobody is told what a crash could undo.
    pub fn percent(&self) -> Option<usize> {
        (self.committed >= self.state.events).then(|| view::percent(&self.state))
    }

    /// How many of its events are durable.
    pub fn committed_events(&self) -> u64 {
        self.committed
    }

    /// Whether anything waits for its events to be durable. If not, they may be kept together with what follows.
    pub fn waits_for_disk(&self) -> bool {
        !self.held.is_empty()
    }

    /// When it wants to be woken.
    pub fn wake_at(&self) -> Option<Timestamp> {
        if self.state.end.is_some() {
            return None;
        }
        let pause = self.state.pauses.first().map(|(until, _)| *until);
        let deadline = self.state.definition.deadline.filter(|_| !self.state.all_over());
        pause.into_iter().chain(deadline).min()
    }

    /// The first `events` events are durable: gives out what waited for that.
    pub fn committed(&mut self, events: u64, outputs: &mut Vec<Output>) {
        self.committed = self.committed.max(events);
        while self.held.front().is_some_and(|(needed, _)| *needed <= self.committed) {
            outputs.extend(self.held.pop_front().map(|(_, output)| output));
        }
    }

    /// Takes an input.
    pub fn handle(&mut self, input: Input, now: Timestamp, rng: &mut impl Rng, outputs: &mut Vec<Output>) {
        // What came in time may still have waited in line; a result that is here is worth more than a deadline that just passed.
        // So is one that was kept before the home node went down.
        let is_result = matches!(input, Input::Finished(_, Finish::Done { .. }) | Input::ContextWritten(..) | Input::Resume);
        if !is_result {
            self.check_deadline(now, outputs);
        }
        let events = self.decide(input, now, rng, outputs);
        self.record(events, now, outputs);
        if is_result {
            self.check_deadline(now, outputs);
        }
        self.advance(now, outputs);
    }

    /// Ends a task whose time is up while something is still to be done.
    fn check_deadline(&mut self, now: Timestamp, outputs: &mut Vec<Output>) {
        let is_late = self.state.definition.deadline.is_some_and(|deadline| now >= deadline);
        if is_late && self.state.end.is_none() && !self.state.all_over() {
            let events = end::deadline(&self.state, now);
            self.record(events, now, outputs);
        }
    }

    fn decide(&mut self, input: Input, now: Timestamp, rng: &mut impl Rng, outputs: &mut Vec<Output>) -> Vec<Event> {
        let state = &mut self.state;
        match input {
            Input::Resume => {
                let events = recover::task(state, now);
                self.record(events, now, outputs);
                for index in 0..self.state.parts.len() {
                    let events = recover::subtask(&self.state, index, now);
                    self.record(events, now, outputs);
                    self.write_context(index, outputs);
                }
                Vec::new()
            }
            Input::Chosen(subtask, chosen) => {
                let later = dispatch::cover(state, subtask, &chosen) == Cover::Later;
                let events = dispatch::decide(state, subtask, chosen, now);
                if later && events.is_empty() && state.part(subtask).is_some_and(|part| part.phase == Phase::Choosing) {
                    state.enter(place(subtask), Phase::Held);
                }
                events
            }
            Input::Unavailable(subtask, failure) => unavailable::decide(state, subtask, failure, now),
            Input::Accepted(fence) => accept::decide(state, fence),
            Input::Delegated(fence, task, node) => accept::decide_delegated(state, fence, (task, node)),
            Input::Finished(fence, Finish::Done { output, charge, context_ops }) => {
                let events = result::decide(state, fence, output, charge, context_ops);
                let is_used = events.iter().any(|event| matches!(event, Event::ResultReceived { .. }));
                self.record(events, now, outputs);
                if is_used {
                    let events = result::judge(&self.state, fence, now);
                    self.record(events, now, outputs);
                    self.write_context(place(fence.subtask), outputs);
                }
                Vec::new()
            }
            Input::ContextWritten(fence, written) => {
                let events = result::decide_written(state, fence, written, now);
                let is_written = events.iter().any(|event| matches!(event, Event::ContextWritten(_)));
                self.record(events, now, outputs);
                if is_written { result::judge(&self.state, fence, now) } else { Vec::new() }
            }
            Input::Finished(fence, finish) => match self.meant(fence, finish) {
                Finish::Rejected { expired, failure } => reject::decide(&self.state, fence, expired, failure, now),
                Finish::Failed { loss, failure, charge } => retry::decide(&self.state, fence, loss, failure, charge, now, rng),
                Finish::Done { .. } => Vec::new(),
            },
            Input::Progress(fence, percent) => {
                let is_delegated = state.definition.subtasks.get(place(fence.subtask)).is_some_and(|subtask| subtask.task.is_some());
                let part = state.parts.get_mut(place(fence.subtask)).filter(|_| is_delegated);
                let is_current = |part: &&mut Part| part.current().is_some_and(|attempt| attempt.number == fence.attempt);
                if let Some(part) = part.filter(is_current) {
                    part.unkept.progress_percentage = percent.min(100);
                }
                Vec::new()
            }
            Input::ContextWaits(fence, failure) => {
                result::waits(state, fence, failure, now);
                Vec::new()
            }
            Input::PutOff(subtask) => {
                retry::put_off(state, subtask, now, rng);
                Vec::new()
            }
            Input::Broken(subtask, failure) => {
                let is_open = |part: &Part| matches!(part.phase, Phase::Choosing | Phase::Sent | Phase::Running);
                let is_worked_on = state.part(subtask).is_some_and(is_open);
                if is_worked_on { fail::decide(state, subtask, Reason::NonRetryable, failure, now) } else { Vec::new() }
            }
            Input::DependencyEnded(task, outcome) => {
                if !state.waiting_for.remove(&task) || matches!(outcome, Outcome::Success | Outcome::Partial) {
                    return Vec::new();
                }
                let failure = Failure::new(ErrorCode::AgentFailed, format!("task {task}, on which it depends, failed")).retryable(false);
                end::decide(state, Outcome::Failed, Some(Reason::DependencyFailed), Some(failure.with("task_id", task.to_string())), now)
            }
            Input::Offered(capability) => {
                let due: Vec<usize> = state.deferred(&capability).collect();
                due.into_iter().for_each(|index| state.enter(index, Phase::Ready));
                Vec::new()
            }
            Input::Freed(capability) => {
                let due = state.deferred(&capability).next();
                due.into_iter().for_each(|index| state.enter(index, Phase::Ready));
                Vec::new()
            }
            Input::Planned { subtasks, by, bill, definition } => {
                if state.end.is_some() || !state.parts.is_empty() {
                    return Vec::new();
                }
                if definition.subtasks.is_empty() {
                    let failure = Failure::new(ErrorCode::AgentFailed, "the goal was decomposed into nothing").retryable(false);
                    return end::decide(state, Outcome::Failed, Some(Reason::NoPlan), Some(failure), now);
                }
                let event = Event::Planned { subtasks, by, bill };
                state.apply(&event, now);
                state.planned(*definition);
                outputs.push(Output::Append(event));
                Vec::new()
            }
            Input::Unplanned(failure) => end::decide(state, Outcome::Failed, Some(Reason::NoPlan), Some(failure), now),
            Input::Composed(composed) if state.composing => end::complete(state, composed, now),
            Input::Composed(_) => Vec::new(),
            Input::Cancel => end::cancel(state, now),
            Input::Wake => Vec::new(),
        }
    }

    /// Applies events, has them kept, and notes what may leave the node once they are.
    fn record(&mut self, events: Vec<Event>, now: Timestamp, outputs: &mut Vec<Output>) {
        for event in events {
            let stopped = match &event {
                Event::Ended { .. } => self.running(),
                Event::SubtaskFailed { subtask, .. } => self.current(place(*subtask)).into_iter().collect(),
                Event::Submitted(_)
                | Event::Planned { .. }
                | Event::Dispatched(_)
                | Event::Accepted(_)
                | Event::Rejected { .. }
                | Event::ResultReceived { .. }
                | Event::Validated(_)
                | Event::AttemptFailed { .. }
                | Event::Requeued(_)
                | Event::Deferred { .. }
                | Event::DuplicateResult { .. }
                | Event::CancelRequested
                | Event::Delegated { .. }
                | Event::CalledBack { .. }
                | Event::ContextWritten(_) => Vec::new(),
            };
            self.state.apply(&event, now);
            let needed = self.state.events;
            if let Event::Dispatched(dispatched) = &event
                && let Some(send) = self.send(dispatched.fence)
            {
                self.held.push_back((needed, Output::Send(send)));
            }
            if let Event::Accepted(fence) = &event
                && self.waits(*fence)
            {
                self.held.push_back((needed, Output::Begin(*fence)));
            }
            self.held.extend(stopped.into_iter().map(|fence| (needed, Output::Withdraw(fence))));
            let ended = matches!(event, Event::Ended { .. });
            outputs.push(Output::Append(event));
            if ended {
                self.held.push_back((needed, Output::Ended));
            }
        }
    }

    /// Has written what the result of a subtask brought for the context, if it did and that is not done: once the disk has the result.
    fn write_context(&mut self, index: usize, outputs: &mut Vec<Output>) {
        if let Some((fence, ops)) = result::unwritten(&self.state, index) {
            self.when_kept(Output::WriteContext { fence, ops, again: self.is_restored }, outputs);
        }
    }

    /// Gives out an order as soon as everything is durable that was decided so far.
    fn when_kept(&mut self, order: Output, outputs: &mut Vec<Output>) {
        if self.state.events <= self.committed {
            outputs.push(order);
        } else {
            self.held.push_back((self.state.events, order));
        }
    }

    /// Attempts under way.
    fn running(&self) -> Vec<Fence> {
        (0..self.state.parts.len()).filter_map(|index| self.current(index)).collect()
    }

    /// The attempt of a subtask that is under way.
    fn current(&self, index: usize) -> Option<Fence> {
        let attempt = self.state.parts.get(index)?.current()?;
        Some(Fence { subtask: number(index), attempt: attempt.number })
    }

    /// What an agent's end means by what is known of its beginning: who accepted cannot refuse any more, only be lost; and who waits for the
    /// word to begin has not begun before it accepted.
    fn meant(&self, fence: Fence, finish: Finish) -> Finish {
        let is_running = self.state.part(fence.subtask).is_some_and(|part| part.phase == Phase::Running);
        match finish {
            Finish::Rejected { expired: _, failure } if is_running => Finish::Failed { loss: Loss::AgentLost, failure, charge: None },
            Finish::Failed { loss: Loss::AgentLost | Loss::AttemptTimeout, failure, charge: _ } if !is_running && self.waits(fence) => {
                Finish::Rejected { expired: false, failure }
            }
            Finish::Done { .. } | Finish::Rejected { .. } | Finish::Failed { .. } => finish,
        }
    }

    fn waits(&self, fence: Fence) -> bool {
        self.state.definition.subtasks.get(place(fence.subtask)).is_some_and(|subtask| subtask.retry.never)
    }

    fn send(&self, fence: Fence) -> Option<Send> {
        let (subtask, part) = (self.state.definition.subtasks.get(place(fence.subtask))?, self.state.part(fence.subtask)?);
        let close_within = match self.state.definition.fallback.on_timeout {
            OnTimeout::Extend(named) if part.extended => subtask.extended_timeout(named),
            OnTimeout::Extend(_) | OnTimeout::Retry | OnTimeout::Fail => subtask.attempt_timeout,
        };
        Some(Send {
            fence,
            start_within: self.state.config.start_within,
            close_within: close_within.min(self.state.config.attempt_timeout_max),
            until: self.state.definition.deadline,
            wait: self.waits(fence),
        })
    }

    /// What can be done now, is.
    fn advance(&mut self, now: Timestamp, outputs: &mut Vec<Output>) {
        let state = &mut self.state;
        if state.end.is_some() || !state.waiting_for.is_empty() {
            return;
        }
        if state.parts.is_empty() {
            if !state.planning {
                state.planning = true;
                // An agent may be asked, and none works for a task that a crash could take back.
                self.when_kept(Output::Plan, outputs);
            }
            return;
        }
        while let Some((_, index)) = state.pauses.first().copied().filter(|(until, _)| *until <= now) {
            state.enter(index, Phase::Ready);
        }
        // Who waits for money keeps its place: else all would be chosen for anew whenever some of it is given back.
        while state.busy == 0 || state.busy + state.held.len() < state.config.parallel_max {
            let Some((_, index)) = state.ready.first().copied() else { break };
            state.enter(index, Phase::Choosing);
            let (Some(part), Some(subtask)) = (state.parts.get(index), state.definition.subtasks.get(index)) else { break };
            // What all of it may still cost, whatever others hold back: who waits for their money may yet have it.
            let remaining = state.ledger.remaining().map(|remaining| remaining.max(Decimal::ZERO));
            let left = part.share.or_else(|| [subtask.cost_limit, remaining].into_iter().flatten().min());
            outputs.push(Output::Choose(Choose {
                subtask: number(index),
                refused_by: part.refused_by.iter().copied().collect(),
                failed_on: part.failed_on.iter().copied().collect(),
                prefer: part.prefer,
                only: settle::only_payable(state, index),
                redo: part.redo(u32::MAX),
                cost_max: left,
                turn: retry::turn(part),
            }));
        }
        // What lost attempts may still spend is held back although nobody works. Where only such money is left, nobody gives any back.
        let is_stuck = state.busy == 0 && state.ready.is_empty() && state.pauses.is_empty();
        if is_stuck && let Some(index) = state.held.first().copied() {
            let told = dispatch::over_budget(state, "what is left of the budget is held back for attempts that were lost");
            let events = fail::decide(state, number(index), Reason::Cost, told, now);
            self.record(events, now, outputs);
            return self.advance(now, outputs);
        }
        if state.all_over() && !state.composing {
            state.composing = true;
            let any = state.parts.iter().any(|part| part.failure.is_some());
            if any || state.definition.output == Value::Bool(true) {
                let events = end::complete(state, Ok(()), now);
                self.record(events, now, outputs);
            } else {
                outputs.push(Output::Compose);
            }
        }
    }
}

/// The machine of a task that was just submitted, with the event that begins it.
pub fn submit(id: TaskId, config: &Arc<super::state::Config>, definition: Definition, event: Event, now: Timestamp) -> Option<Machine> {
    let Event::Submitted(submitted) = &event else { return None };
    let state = State::submitted(id, Arc::clone(config), definition, submitted, now);
    Some(Machine::new(state, 0))
}
