//! Tasks, agents and a clock for the tests of tasks: definitions put together by hand, and a machine in virtual time whose shell is the
//! test itself.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use rust_decimal::Decimal;
use serde_json::{Map, Value};

use super::definition::{Backoff, Budget, Definition, Fallback, OnFailure, OnOffline, OnTimeout, OnUnavailable, Retry, Subtask, Usual};
use super::machine::{Choose, Chosen, Finish, Input, Machine, Output, Send};
use super::state::{Config, Part, Phase, State, Status};
use super::template::Template;
use crate::model::{AgentId, ErrorCode, Failure, NodeId, Priority, TaskId, Timestamp};
use crate::wire::task::{Charge, Event, Fence, Loss, Outcome, Reason, Submitted, Text};

/// When every test begins.
pub(super) const BEGIN: Timestamp = Timestamp::from_ms(1_700_614_200_000);

/// `span` after the beginning.
pub(super) fn after_ms(ms: u64) -> Timestamp {
    BEGIN.saturating_add(Duration::from_millis(ms))
}

pub(super) fn dec(text: &str) -> Decimal {
    text.parse().expect("a number")
}

/// A subtask that needs those at `after`, with the draft's own retries (AITP 6.1) and ten seconds for an attempt.
pub(super) fn step(id: &str, after: &[usize]) -> Subtask {
    Subtask {
        id: id.parse().expect("a subtask's name"),
        name: id.to_owned(),
        capability: "echo".parse().expect("a capability"),
        version: None,
        agent: None,
        input: Template::parse(&Value::Object(Map::new()), "", &BTreeMap::new()).expect("no expression"),
        output: Value::Bool(true),
        output_mapping: BTreeMap::new(),
        after: after.iter().copied().collect(),
        order: 0,
        retry: Retry { retries_max: 3, backoff: Backoff::Exponential, base: Duration::from_secs(1), never: false },
        attempt_timeout: Duration::from_secs(10),
        estimated_units: Decimal::ONE,
        cost_limit: None,
        min_trust: None,
        offers: false,
        context: None,
        task: None,
    }
}

/// A task of these, with the draft's own fallbacks (AITP 6.2).
pub(super) fn definition(subtasks: Vec<Subtask>) -> Definition {
    Definition {
        name: "a test".to_owned(),
        description: None,
        goal: None,
        input: Value::Bool(true),
        output: Value::Bool(true),
        parameters: Map::new(),
        created_by: None,
        priority: Priority::Normal,
        deadline: None,
        tags: BTreeSet::new(),
        dependencies: BTreeSet::new(),
        budget: None,
        parent: None,
        completion_callback: None,
        context: None,
        estimated_cost: None,
        usual: Usual {
            retry: Retry { retries_max: 3, backoff: Backoff::Exponential, base: Duration::from_secs(1), never: false },
            attempt_timeout: Duration::from_secs(10),
            min_trust: None,
            offers: false,
        },
        fallback: Fallback {
            on_agent_offline: OnOffline::NextBest,
            on_timeout: OnTimeout::Extend(Some(Duration::from_secs(20))),
            cost_notification: None,
            on_unavailable: OnUnavailable::Defer(Duration::from_secs(300)),
            on_failure: OnFailure::Fail,
        },
        subtasks,
    }
}

/// `amount` US dollars.
pub(super) fn budget(amount: &str) -> Option<Budget> {
    Some(Budget { amount: dec(amount), currency: "USD".parse().expect("a currency") })
}

/// What `units` at `price` dollars cost.
pub(super) fn charge(units: &str, price: &str) -> Charge {
    Charge {
        units: dec(units),
        unit: "request".to_owned(),
        price: dec(price),
        currency: "USD".parse().expect("a currency"),
        total: dec(units) * dec(price),
    }
}

pub(super) fn agent(number: u8) -> AgentId {
    AgentId::from_public_key([number; 32])
}

pub(super) fn node(number: u8) -> NodeId {
    libp2p_identity::PeerId::from_bytes(&[0, 1, number]).expect("a short identity hash").into()
}

pub(super) fn text(json: &str) -> Text {
    Text::Inline(Bytes::copy_from_slice(json.as_bytes()))
}

/// What a client hands in.
pub(super) fn submitted() -> Submitted {
    Submitted { document: text("{}"), key: None, identity: [0; 32], parent: None }
}

pub(super) fn id() -> TaskId {
    TaskId::from_random(7)
}

/// The task as it begins.
pub(super) fn state(definition: Definition) -> State {
    State::submitted(id(), Arc::new(Config::default()), definition, &submitted(), BEGIN)
}

/// A task in virtual time. The disk keeps everything at once, unless the test [holds it back](Task::disk_stalls).
pub(super) struct Task {
    pub(super) machine: Machine,
    pub(super) now: Timestamp,
    /// Everything that was to be kept, with its time.
    pub(super) journal: Vec<(Timestamp, Event)>,
    rng: SmallRng,
    looked_at: usize,
    orders: Vec<Output>,
    is_stalled: bool,
}

impl Task {
    /// A task that was just submitted.
    pub(super) fn of(definition: Definition) -> Self {
        let mut task = Self {
            machine: Machine::new(state(definition), 1),
            now: BEGIN,
            journal: vec![(BEGIN, Event::Submitted(submitted()))],
            rng: SmallRng::seed_from_u64(7),
            looked_at: 1,
            orders: Vec::new(),
            is_stalled: false,
        };
        task.takes(Input::Resume);
        task
    }

    /// The home node goes down with this much of the journal on its disk, and comes back.
    pub(super) fn restarts_with(&mut self, events: usize) {
        self.journal.truncate(events);
        let mut state = state(self.machine.state().definition.as_ref().clone());
        self.journal.iter().skip(1).for_each(|(at, event)| state.apply(event, *at));
        self.machine = Machine::restored(state, u64::try_from(events).expect("few"));
        self.looked_at = events;
        self.orders.clear();
        self.is_stalled = false;
        self.takes(Input::Resume);
    }

    pub(super) fn restarts(&mut self) {
        self.restarts_with(self.journal.len());
    }

    pub(super) fn takes(&mut self, input: Input) {
        let mut outputs = Vec::new();
        self.machine.handle(input, self.now, &mut self.rng, &mut outputs);
        for output in outputs {
            if let Output::Append(event) = output {
                self.journal.push((self.now, event));
            } else {
                self.orders.push(output);
            }
        }
        if !self.is_stalled {
            self.disk_keeps(self.journal.len());
        }
    }

    /// From now on nothing is durable before the test says so.
    pub(super) fn disk_stalls(&mut self) {
        self.is_stalled = true;
    }

    /// The first `events` entries are durable.
    pub(super) fn disk_keeps(&mut self, events: usize) {
        self.machine.committed(u64::try_from(events).expect("few"), &mut self.orders);
    }

    /// Time passes, and the task is woken whenever it wants to be.
    pub(super) fn waits(&mut self, ms: u64) {
        let until = self.now.saturating_add(Duration::from_millis(ms));
        while let Some(wake) = self.machine.wake_at().filter(|wake| *wake <= until) {
            assert!(wake >= self.now, "it wants to be woken in the past");
            self.now = wake;
            self.takes(Input::Wake);
            assert!(self.machine.wake_at().is_none_or(|next| next > wake), "it wants to be woken at one moment again and again");
        }
        self.now = until;
    }

    /// What was to be kept since somebody looked, as clients call it.
    pub(super) fn events(&mut self) -> Vec<&'static str> {
        let fresh = self.journal.iter().skip(self.looked_at).map(|(_, event)| event.name()).collect();
        self.looked_at = self.journal.len();
        fresh
    }

    /// What the shell was told to do since somebody looked.
    pub(super) fn orders(&mut self) -> Vec<Output> {
        std::mem::take(&mut self.orders)
    }

    /// The choices that the shell was asked for since somebody looked; other orders are forgotten.
    pub(super) fn choices(&mut self) -> Vec<Choose> {
        let wanted = |order| if let Output::Choose(choose) = order { Some(choose) } else { None };
        self.orders().into_iter().filter_map(wanted).collect()
    }

    /// The calls that left the node since somebody looked; other orders are forgotten.
    pub(super) fn sends(&mut self) -> Vec<Send> {
        let wanted = |order| if let Output::Send(send) = order { Some(send) } else { None };
        self.orders().into_iter().filter_map(wanted).collect()
    }

    /// This agent is chosen, for this estimate.
    pub(super) fn chosen_for(&mut self, subtask: u32, number: u8, estimate: Option<&str>) {
        let (agent, name, node) = (agent(number), format!("agent {number}"), node(number));
        let chosen = Chosen { agent, name, node, estimate: estimate.map(dec), explain: Bytes::from_static(b"{}") };
        self.takes(Input::Chosen(subtask, chosen));
    }

    pub(super) fn chosen(&mut self, subtask: u32, number: u8) {
        self.chosen_for(subtask, number, None);
    }

    /// The last attempt of a subtask.
    pub(super) fn fence(&self, subtask: u32) -> Fence {
        Fence { subtask, attempt: self.part(subtask).attempts.last().expect("an attempt").number }
    }

    pub(super) fn accepts(&mut self, subtask: u32) {
        self.takes(Input::Accepted(self.fence(subtask)));
    }

    /// Agent 1 is chosen and accepts.
    pub(super) fn runs(&mut self, subtask: u32) {
        self.chosen(subtask, 1);
        self.accepts(subtask);
    }

    pub(super) fn does_for(&mut self, subtask: u32, charge: Option<Charge>) {
        self.answers(self.fence(subtask), charge);
    }

    pub(super) fn does(&mut self, subtask: u32) {
        self.does_for(subtask, None);
    }

    /// An attempt, the current one or not, ends well.
    pub(super) fn answers(&mut self, fence: Fence, charge: Option<Charge>) {
        self.answers_with(fence, charge, None);
    }

    /// The same, and with something for the context.
    pub(super) fn answers_with(&mut self, fence: Fence, charge: Option<Charge>, context_ops: Option<Text>) {
        self.takes(Input::Finished(fence, Finish::Done { output: text(&fence.attempt.to_string()), charge, context_ops }));
    }

    pub(super) fn rejects(&mut self, subtask: u32, code: ErrorCode) {
        let finish = Finish::Rejected { expired: false, failure: Failure::new(code, "no") };
        self.takes(Input::Finished(self.fence(subtask), finish));
    }

    pub(super) fn loses(&mut self, subtask: u32, loss: Loss, failure: Failure) {
        self.loses_for(subtask, loss, failure, None);
    }

    pub(super) fn loses_for(&mut self, subtask: u32, loss: Loss, failure: Failure, charge: Option<Charge>) {
        self.takes(Input::Finished(self.fence(subtask), Finish::Failed { loss, failure, charge }));
    }

    /// The agent says that it failed, and that another attempt may do.
    pub(super) fn fails(&mut self, subtask: u32) {
        self.loses(subtask, Loss::AgentError, Failure::new(ErrorCode::AgentFailed, "it broke"));
    }

    /// The agent says that it failed, and always will.
    pub(super) fn fails_for_good(&mut self, subtask: u32) {
        self.loses(subtask, Loss::AgentError, Failure::new(ErrorCode::AgentFailed, "it broke").retryable(false));
    }

    pub(super) fn unavailable(&mut self, subtask: u32, code: ErrorCode) {
        self.takes(Input::Unavailable(subtask, Failure::new(code, "nobody")));
    }

    pub(super) fn part(&self, subtask: u32) -> &Part {
        self.machine.state().part(subtask).expect("a subtask")
    }

    pub(super) fn status(&self, subtask: u32) -> Status {
        self.part(subtask).status
    }

    pub(super) fn phase(&self, subtask: u32) -> Phase {
        self.part(subtask).phase
    }

    /// Why a subtask was given up.
    pub(super) fn gave_up(&self, subtask: u32) -> Option<Reason> {
        self.part(subtask).failure.as_ref().map(|(reason, _)| *reason)
    }

    /// How the task ended, and why.
    pub(super) fn end(&self) -> Option<(Outcome, Option<Reason>)> {
        self.machine.state().end().map(|end| (end.outcome, end.reason))
    }
}
