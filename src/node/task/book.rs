//! The loop that owns this node's tasks.
//!
//! Everything that happens to a task comes here, one thing after the other: what clients want, what steps report, what the disk has, what
//! time it is. A thing is handed to the task's machine, and what the machine says is carried out: events go to the journal, orders to
//! steps. Nothing here waits for anything but the next thing. What has ended is kept by others ([`super::archive`], [`super::filing`]).
//!
//! *Overload.* Submissions are refused while the journal cannot keep up or the disk is full; what runs may end. If the journal is busy all the
//! same, entries wait here, and no task is taken in until they are gone. *A failed disk* ends it: nothing is acknowledged any more, and
//! clients are told to restart the node.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use serde_json::Value;
use tokio::sync::{Semaphore, broadcast, mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until};

use super::archive::{Archive, ended_as, ids_from};
use super::callback::Callbacks;
use super::clock::TaskClock;
use super::copies::Copies;
use super::door::{Command, Receipt, Standing};
use super::filing::{self, Filer, Word, Work};
use super::late;
use super::live::{Answer, Live, Running};
use super::read::{self, Reader, unknown};
use super::recent::Recent;
use super::replay::{Found, Unfinished};
use super::step::{Orders, Report, Step};
use super::waiting::{Waiting, capability_of};
use super::{context, guard, plan};
use crate::model::{CapabilityName, ErrorCode, Failure, TaskId, Timestamp};
use crate::node::failpoint;
use crate::node::shared::Shared;
use crate::node::view::Event as NodeEvent;
use crate::proto::task::machine::{Finish, Input, Machine, Output};
use crate::proto::task::state::State;
use crate::proto::task::{result, unreadable, view};
use crate::store::journal::{Committed, Index, Position, SegmentId};
use crate::wire::task::{Entry, Event, Fence, Outcome, Submitted};

/// Commands of clients that may wait for the loop.
pub(in crate::node) const COMMANDS_MAX: usize = 4_096;
/// Reports of steps that may wait for the loop; a step waits until there is room.
const REPORTS_MAX: usize = 4_096;
/// Things of one kind that are taken before the loop looks at the others.
const PER_TURN: usize = 256;
/// How long after an agent showed up those who wait for one are told: many come at once.
const OFFERED_AFTER: Duration = Duration::from_millis(50);
/// So many more than may be kept, and a quarter of those, are forgotten before it is time.
const FORGET_AT_ONCE: usize = 256;
/// Tasks that are told of where a text may be the beginning of several.
const NAMED_MAX: usize = 8;
/// When whoever was refused may come again: a few hundred commits later.
const RETRY_AFTER_MS: u64 = 200;
/// How often tasks whose time is over are forgotten, and those that have ended are filed in the index.
const FORGET_EVERY: Duration = Duration::from_secs(60);
/// How soon after that at the earliest, whatever has ended since.
const FORGET_PAUSE: Duration = Duration::from_secs(2);

/// Entries on their way to the disk.
struct Pending {
    end: Index,
    task: TaskId,
    events: u64,
}

/// The loop.
pub(in crate::node) struct Book {
    pub(super) shared: Arc<Shared>,
    pub(super) reader: Reader,
    pub(super) clock: TaskClock,
    pub(super) live: BTreeMap<TaskId, Live>,
    pub(super) ended: Archive,
    pub(super) recent: Recent,
    filer: Filer,
    /// The checkpoint that is being made, and what is heard of it.
    filing: Option<tokio::task::JoinHandle<()>>,
    words: (mpsc::Sender<Word>, mpsc::Receiver<Word>),
    /// Every task by when it was submitted, for lists.
    pub(super) by_age: BTreeSet<(Timestamp, TaskId)>,
    by_key: BTreeMap<Arc<str>, (TaskId, [u8; 32])>,
    /// For each task that has not ended those that depend on it and have not ended either.
    dependents: BTreeMap<TaskId, BTreeSet<TaskId>>,
    wakes: BTreeSet<(Timestamp, TaskId)>,
    pending: VecDeque<Pending>,
    copies: Copies,
    /// Entries that the journal had no room for yet.
    backlog: VecDeque<(TaskId, u64, Vec<Bytes>)>,
    pub(super) stopped: Option<Failure>,
    pub(super) reports: mpsc::Sender<Report>,
    report_inbox: mpsc::Receiver<Report>,
    commands: mpsc::Receiver<Command>,
    committed: watch::Receiver<Committed>,
    events: broadcast::Receiver<NodeEvent>,
    /// When those who wait for an agent are told.
    offered_at: Option<Instant>,
    forget_at: Instant,
    forgot_at: Instant,
    callbacks: Callbacks,
    waiting: Waiting,
    /// Room for late results that are asked for.
    pub(super) recalls: Arc<Semaphore>,
    /// Tasks that are gone, and their blobs not yet.
    forgotten: Vec<TaskId>,
    rng: SmallRng,
}

impl Book {
    pub(in crate::node) fn new(shared: Arc<Shared>, reader: Reader, mut found: Found, commands: mpsc::Receiver<Command>) -> Self {
        let (reports, report_inbox) = mpsc::channel(REPORTS_MAX);
        let (committed, events) = (reader.journal.committed(), shared.events.subscribe());
        let filer = Filer::new(Arc::clone(&shared), reader.clone(), &mut found.known);
        let mut book = Self {
            clock: TaskClock::new(shared.clock),
            shared,
            reader,
            live: BTreeMap::new(),
            ended: Archive::default(),
            recent: Recent::default(),
            filer,
            filing: None,
            words: mpsc::channel(filing::WORDS_MAX),
            by_age: BTreeSet::new(),
            by_key: BTreeMap::new(),
            dependents: BTreeMap::new(),
            wakes: BTreeSet::new(),
            pending: VecDeque::new(),
            copies: Copies::default(),
            backlog: VecDeque::new(),
            stopped: None,
            reports,
            report_inbox,
            commands,
            committed,
            events,
            offered_at: None,
            // The journal still has what was forgotten before.
            forget_at: Instant::now(),
            forgot_at: Instant::now(),
            callbacks: Callbacks::default(),
            waiting: Waiting::default(),
            recalls: Arc::new(Semaphore::new(late::RECALLS_MAX)),
            forgotten: Vec::new(),
            rng: SmallRng::from_os_rng(),
        };
        book.restore(found);
        book
    }

    /// Takes up what a start found in the journal.
    fn restore(&mut self, found: Found) {
        let known = found.known;
        self.by_key = known.keys;
        self.forgotten = known.forgotten;
        self.ended = Archive::restore(found.ended, known.tasks, known.callbacks, known.unwanted);
        self.by_age.extend(self.ended.ages());
        let mut keys: Vec<_> = self.ended.keys().collect();
        keys.sort_unstable_by_key(|(created, ..)| *created);
        for (created, key, named) in keys {
            // A key that was free again, because its task was forgotten, is that of the later one.
            let is_later = |(known, _): &(TaskId, [u8; 32])| self.ended.created(known).is_none_or(|known| known <= created);
            if self.by_key.get(key).is_none_or(is_later) {
                self.by_key.insert(key.into(), named);
            }
        }
        for (task, Unfinished { state, positions, outputs }) in found.live {
            self.begin(task, Machine::restored(state, u64::try_from(positions.len()).unwrap_or(u64::MAX)), positions, outputs);
        }
    }

    fn begin(&mut self, task: TaskId, machine: Machine, positions: Vec<Position>, outputs: Vec<Option<Arc<Value>>>) {
        let state = machine.state();
        self.by_age.insert((state.created(), task));
        if let Some((key, identity)) = state.key() {
            self.by_key.insert(key.into(), (task, identity));
        }
        self.waiting.add_all(state);
        self.live.insert(task, Live::new(machine, positions, outputs));
    }

    /// Runs until the node stops.
    pub(in crate::node) async fn run(mut self) {
        let resumed: Vec<TaskId> = self.live.keys().copied().collect();
        for task in resumed {
            self.tell_dependencies(task);
            self.drive(task, Input::Resume);
        }
        let now = self.clock.now();
        for (task, url, at) in self.ended.callbacks() {
            if let Some(Ok(place)) = self.ended.place(&task) {
                self.callbacks.begin(&self.shared, &self.reader, (task, place), url.to_owned(), now.saturating_since(at));
            }
        }
        let stop = self.shared.tasks_stop.clone();
        loop {
            let wake = self.wakes.first().map(|(at, _)| self.clock.instant(*at));
            let timer = [wake, self.offered_at, Some(self.forget_at)].into_iter().flatten().min().unwrap_or(self.forget_at);
            // Whatever else there is to do, those who wait for a time are not forgotten, and what has been filed is let go of.
            if timer <= Instant::now() && !stop.is_cancelled() {
                self.on_timer();
            }
            if let Ok(word) = self.words.1.try_recv() {
                self.on_word(word);
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                Ok(()) = self.committed.changed() => self.on_committed(),
                Some(report) = self.report_inbox.recv() => {
                    self.on_report(report);
                    for _ in 1..PER_TURN {
                        match self.report_inbox.try_recv() {
                            Ok(report) => self.on_report(report),
                            Err(_) => break,
                        }
                    }
                }
                command = self.commands.recv() => {
                    let Some(command) = command else { break };
                    self.handle(command);
                    for _ in 1..PER_TURN {
                        match self.commands.try_recv() {
                            Ok(command) => self.handle(command),
                            Err(_) => break,
                        }
                    }
                }
                event = self.events.recv(), if self.offered_at.is_none() => {
                    if matches!(event, Ok(NodeEvent::AgentUp { .. }) | Err(broadcast::error::RecvError::Lagged(_))) {
                        self.offered_at = Some(Instant::now() + OFFERED_AFTER);
                    }
                }
                Some(word) = self.words.1.recv() => self.on_word(word),
                () = sleep_until(timer) => self.on_timer(),
            }
        }
        // What has been reported is decided too.
        while let Ok(report) = self.report_inbox.try_recv() {
            self.on_report(report);
        }
        // What was decided is still worth keeping; what runs is taken back, and begun anew under the same key after the next start.
        let work = self.work(Vec::new());
        self.live.clear();
        let journal = self.reader.journal.clone();
        let _ = tokio::task::spawn_blocking(move || journal.close()).await;
        // Nobody listens any more to the one that may be under way.
        self.words.1.close();
        if let Some(filing) = self.filing.take() {
            let _ = filing.await;
        }
        let (filer, words) = (self.filer.clone(), self.words.0.clone());
        let _ = tokio::task::spawn_blocking(move || filer.run(work, &words)).await;
    }

    fn handle(&mut self, command: Command) {
        match command {
            Command::Submit { task, definition, event, at, reply } => match self.submit(task, *definition, *event, at) {
                Ok((task, created)) => self.answer_receipt(task, reply, move |receipt| (receipt, created)),
                Err(failure) => drop(reply.send(Err(failure))),
            },
            Command::Known { key, identity, reply } => match self.known(&key, identity) {
                Ok(Some(task)) => self.answer_receipt(task, reply, Some),
                Ok(None) => drop(reply.send(Ok(None))),
                Err(failure) => drop(reply.send(Err(failure))),
            },
            Command::Status { task, explain, reply } => {
                let (home, now) = (self.shared.node(), self.clock.now());
                let recent = self.recent.get(&task).map(Standing::Recent);
                match recent.or_else(|| self.ended.standing(&task, |row, failure| unreadable::status(row, failure, home))) {
                    Some(standing) => drop(reply.send(Ok(standing))),
                    None => self.answer(task, reply, move |state| Ok(Standing::Told(view::status(state, home, explain, now)))),
                }
            }
            Command::Percent { task, reply } => drop(reply.send(self.live.get(&task).and_then(|live| live.machine.percent()))),
            Command::Ended { task, reply } => {
                let recent = self.recent.get(&task).map(Standing::Recent);
                let found = match recent.or_else(|| self.ended.standing(&task, unreadable::result)) {
                    Some(standing) => Ok(standing),
                    None if self.live.contains_key(&task) => {
                        let failure = Failure::new(ErrorCode::NotFinished, format!("task {task} has not ended"));
                        Err(failure.with("retry_after_ms", 1_000))
                    }
                    None => Err(unknown(task)),
                };
                let _ = reply.send(found);
            }
            Command::Cancel { task, reply } => {
                if self.ended.contains(&task) || self.live.get(&task).is_some_and(|live| live.machine.state().end().is_some()) {
                    let _ = reply.send(Err(Failure::new(ErrorCode::Conflict, format!("task {task} has ended already"))));
                    return;
                }
                let (home, now) = (self.shared.node(), self.clock.now());
                // The answer is written down before the task is moved to those that have ended.
                self.drive(task, Input::Cancel);
                self.answer(task, reply, move |state| Ok(view::status(state, home, false, now)));
            }
            Command::CalledBack { task, delivered } => {
                let Some(number) = self.ended.events(&task).filter(|_| self.ended.called_back(task)) else { return };
                let (home, at) = (self.shared.node(), self.clock.now());
                let entry = Entry { home, epoch: EPOCH, task, at, event: Event::CalledBack { delivered }, number };
                self.append(task, 0, vec![entry.encode()]);
            }
            Command::List { after, count, reply } => {
                let _ = reply.send(self.list(after, count));
            }
            Command::Results { node, results, reply } => {
                let _ = reply.send(results.into_iter().map(|result| self.on_result(node, result)).collect());
            }
            Command::Follow { task, reply } => {
                let _ = reply.send(self.follow(task));
            }
            Command::Resolve { prefix, reply } => {
                let named = |task: &TaskId| task.to_string().starts_with(&prefix);
                let range = ids_from(&prefix);
                let live = self.live.range(range.clone()).map(|(task, _)| *task);
                let _ = reply.send(live.chain(self.ended.ids(range)).filter(named).take(NAMED_MAX).collect());
            }
        }
    }

    /// Answers with what the task is now, as soon as that is durable.
    fn answer<T: Send + 'static>(
        &mut self,
        task: TaskId,
        reply: oneshot::Sender<Result<T, Failure>>,
        document: impl FnOnce(&State) -> Result<T, Failure>,
    ) {
        let Some(live) = self.live.get_mut(&task) else {
            let _ = reply.send(Err(unknown(task)));
            return;
        };
        let state = live.machine.state();
        let document = document(state);
        if state.events() <= live.machine.committed_events() {
            let _ = reply.send(document);
        } else if let Some(failure) = &self.stopped {
            let _ = reply.send(Err(failure.clone()));
        } else {
            let needed = state.events();
            let answer = move |durable: Result<(), Failure>| drop(reply.send(durable.and(document)));
            live.answers.push((needed, Box::new(answer)));
        }
    }

    fn submit(
        &mut self,
        task: TaskId,
        definition: crate::proto::task::definition::Definition,
        event: Event,
        at: Timestamp,
    ) -> Result<(TaskId, bool), Failure> {
        if let Some(failure) = &self.stopped {
            return Err(failure.clone());
        }
        let Event::Submitted(submitted) = &event else { return Err(Failure::new(ErrorCode::Internal, "not a submission")) };
        if let Some(key) = &submitted.key
            && let Some(known) = self.known(key, submitted.identity)?
        {
            return Ok((known, false));
        }
        if self.reader.journal.is_full() {
            let message = "the disk of this node is full: tasks that run may end, and no new one is taken";
            return Err(Failure::new(ErrorCode::InsufficientResources, message).with("retry_after_ms", 5_000));
        }
        if !self.backlog.is_empty() {
            let message = "the journal of this node cannot keep up: no task is taken until its disk has what waits";
            return Err(Failure::new(ErrorCode::Busy, message).with("retry_after_ms", RETRY_AFTER_MS));
        }
        let live_max = usize::try_from(self.shared.config.task.live_max).unwrap_or(usize::MAX);
        if self.live.len() >= live_max {
            let failure = Failure::new(ErrorCode::Busy, format!("this node has its {live_max} tasks that have not ended (task.live_max)"));
            return Err(failure.with("limit", live_max).with("retry_after_ms", RETRY_AFTER_MS));
        }
        let missing: Vec<String> = definition.dependencies.iter().filter(|task| !self.is_known(task)).map(ToString::to_string).collect();
        if let Some(first) = missing.first() {
            let failure = Failure::new(ErrorCode::InvalidRequest, format!("the task depends on {first}, which this node does not know"));
            return Err(failure.with("path", "/metadata/dependencies").with("unknown", missing.clone()));
        }
        let config = Arc::clone(&self.reader.config);
        let Some(machine) = crate::proto::task::machine::submit(task, &config, definition, event.clone(), at) else {
            return Err(Failure::new(ErrorCode::Internal, "not a submission"));
        };
        let subtasks = machine.state().parts().len();
        self.begin(task, machine, Vec::new(), vec![None; subtasks]);
        let mut outputs = vec![Output::Append(event)];
        if let Some(live) = self.live.get_mut(&task) {
            live.machine.handle(Input::Resume, at, &mut self.rng, &mut outputs);
        }
        self.carry_out(task, outputs, at);
        // Only now: what follows from one that has failed stands in the journal behind the submission.
        self.tell_dependencies(task);
        Ok((task, true))
    }

    /// The task that was submitted under a key, if it was the same.
    fn known(&self, key: &str, identity: [u8; 32]) -> Result<Option<TaskId>, Failure> {
        match self.by_key.get(key) {
            Some((known, same)) if *same == identity => Ok(Some(*known)),
            Some((known, _)) => {
                let message = "the idempotency key was used before with another definition";
                Err(Failure::new(ErrorCode::Conflict, message).with("task_id", known.to_string()))
            }
            None => Ok(None),
        }
    }

    fn is_known(&self, task: &TaskId) -> bool {
        self.live.contains_key(task) || self.ended.contains(task)
    }

    /// Tells a task how those ended on which it depends, and has it told of the others when they do.
    fn tell_dependencies(&mut self, task: TaskId) {
        let Some(live) = self.live.get(&task) else { return };
        let waiting: Vec<TaskId> = live.machine.state().waiting_for().iter().copied().collect();
        for before in waiting {
            // One that is forgotten has ended, and nobody knows how.
            let forgotten = (!self.live.contains_key(&before)).then_some(Outcome::Failed);
            match self.ended.outcome(&before).or(forgotten) {
                Some(outcome) => self.drive(task, Input::DependencyEnded(before, outcome)),
                None => drop(self.dependents.entry(before).or_default().insert(task)),
            }
        }
    }

    /// Hands an input to a task and carries out what follows.
    fn drive(&mut self, task: TaskId, input: Input) {
        let now = self.clock.now();
        let Some(live) = self.live.get_mut(&task) else { return };
        let mut outputs = Vec::new();
        live.machine.handle(input, now, &mut self.rng, &mut outputs);
        self.carry_out(task, outputs, now);
    }

    fn carry_out(&mut self, task: TaskId, outputs: Vec<Output>, now: Timestamp) {
        let home = self.shared.node();
        let Some(live) = self.live.get_mut(&task) else { return };
        let mut events = Vec::new();
        let mut ended = false;
        for output in outputs {
            match output {
                Output::Append(event) => {
                    if let Event::Deferred { subtask, .. } = &event {
                        self.waiting.add(live.machine.state(), *subtask);
                    }
                    if let Event::Submitted(Submitted { document: text, .. }) | Event::Planned { subtasks: text, .. } = &event {
                        let bytes = usize::try_from(text.len()).unwrap_or(usize::MAX);
                        live.entry_bytes = live.entry_bytes.saturating_add(bytes);
                    }
                    events.push(event);
                }
                // What begins while the node stops would only be cut off; the next start takes it up.
                Output::Choose(_) if self.shared.drain.is_cancelled() => {}
                Output::Choose(choose) => {
                    let (send, sending) = oneshot::channel();
                    let (begin, beginning) = oneshot::channel();
                    let subtask = choose.subtask;
                    let step = Step {
                        shared: Arc::clone(&self.shared),
                        blobs: self.reader.blobs.clone(),
                        reports: self.reports.clone(),
                        task,
                        definition: Arc::clone(live.machine.state().definition()),
                        outputs: live.outputs_for(subtask),
                        choose,
                        clock: self.clock,
                    };
                    let orders = Orders { send: sending, begin: beginning };
                    let told = move |failure| Input::Broken(subtask, failure);
                    let running = guard::spawn(Box::pin(step.run(orders)), &self.reports, task, told);
                    live.running_by_subtask.insert(subtask, Running { send: Some(send), begin: Some(begin), _work: running });
                }
                Output::Send(send) => {
                    let running = live.running_by_subtask.get_mut(&send.fence.subtask);
                    if let Some(waiting) = running.and_then(|running| running.send.take()) {
                        let _ = waiting.send(send);
                    }
                }
                Output::Begin(Fence { subtask, .. }) => {
                    if let Some(waiting) = live.running_by_subtask.get_mut(&subtask).and_then(|running| running.begin.take()) {
                        let _ = waiting.send(());
                    }
                }
                Output::Withdraw(Fence { subtask, .. }) => drop(live.running_by_subtask.remove(&subtask)),
                // A task that ended while the disk was busy writes nothing any more.
                Output::WriteContext { .. } if live.machine.state().end().is_some() => {}
                Output::WriteContext { fence, ops, again } => {
                    let write = context::Write { task, fence, definition: Arc::clone(live.machine.state().definition()), ops, again };
                    let work = write.begin(&self.shared, &self.reader.blobs, &self.reports);
                    live.running_by_subtask.insert(fence.subtask, Running { send: None, begin: None, _work: work });
                }
                Output::Plan => {
                    let (shared, blobs) = (Arc::clone(&self.shared), self.reader.blobs.clone());
                    let work = Box::pin(plan::decompose(shared, blobs, task, Arc::clone(live.machine.state().definition())));
                    live.work = Some(guard::report(work, &self.reports, task, Input::Unplanned));
                }
                Output::Compose => {
                    let shared = Arc::clone(&self.shared);
                    let (definition, outputs) = (Arc::clone(live.machine.state().definition()), live.outputs.clone());
                    let work = async move {
                        let value = result::compose(&definition, &|index| outputs.get(index)?.as_deref());
                        Input::Composed(read::check(&shared, &definition.output, &value, "result"))
                    };
                    live.work = Some(guard::report(work, &self.reports, task, |failure| Input::Composed(Err(failure))));
                }
                Output::Ended => ended = true,
            }
        }
        let wake = live.machine.wake_at();
        if wake != live.wake {
            if let Some(before) = std::mem::replace(&mut live.wake, wake) {
                self.wakes.remove(&(before, task));
            }
            self.wakes.extend(wake.map(|at| (at, task)));
        }
        if !events.is_empty() {
            let count = live.machine.state().events();
            let first = count.saturating_sub(u64::try_from(events.len()).unwrap_or(u64::MAX));
            let entry = |(number, event)| Entry { home, epoch: EPOCH, task, at: now, event, number }.encode();
            let entries = (first..).zip(events).map(entry).collect();
            self.append(task, count, entries);
        }
        if ended {
            self.end(task);
        }
    }

    fn append(&mut self, task: TaskId, events: u64, entries: Vec<Bytes>) {
        if !self.backlog.is_empty() || !self.try_append(task, events, &entries) {
            self.backlog.push_back((task, events, entries));
        }
    }

    /// False if the journal has no room now.
    fn try_append(&mut self, task: TaskId, events: u64, entries: &[Bytes]) -> bool {
        failpoint::before(&self.reader.journal, entries);
        let live = self.live.get(&task);
        let urgent = live.is_some_and(|live| live.machine.waits_for_disk() || !live.answers.is_empty());
        let journal = &self.reader.journal;
        let queued = if urgent { journal.append(entries.to_vec()) } else { journal.append_later(entries.to_vec()) };
        match queued {
            Ok(ticket) => {
                failpoint::queued(entries, &ticket);
                if let Some(live) = self.live.get_mut(&task) {
                    live.positions.extend_from_slice(ticket.positions());
                    live.entry_bytes = live.entry_bytes.saturating_add(entries.iter().map(Bytes::len).sum());
                }
                self.pending.push_back(Pending { end: ticket.end(), task, events });
                true
            }
            Err(refused) if refused.is_retryable() => false,
            Err(refused) => {
                self.fail(&refused.to_string());
                true
            }
        }
    }

    /// The disk has more.
    fn on_committed(&mut self) {
        let (end, stopped) = {
            let committed = self.committed.borrow_and_update();
            (committed.end, committed.stopped.clone())
        };
        let end = failpoint::committed(end);
        self.copies.on_committed(end, &mut self.live);
        while self.pending.front().is_some_and(|pending| pending.end <= end) {
            let Some(Pending { task, events, .. }) = self.pending.pop_front() else { break };
            let Some(live) = self.live.get_mut(&task) else { continue };
            let mut outputs = Vec::new();
            live.machine.committed(events, &mut outputs);
            let ended = live.machine.state().end().is_some() && live.machine.state().events() <= events;
            live.tell(events, ended);
            let (due, waiting) = std::mem::take(&mut live.answers).into_iter().partition(|(needed, _)| *needed <= events);
            live.answers = waiting;
            let due: Vec<(u64, Answer)> = due;
            due.into_iter().for_each(|(_, answer)| answer(Ok(())));
            if !outputs.is_empty() {
                let now = self.clock.now();
                self.carry_out(task, outputs, now);
            }
        }
        while let Some((task, events, entries)) = self.backlog.pop_front() {
            if !self.try_append(task, events, &entries) {
                self.backlog.push_front((task, events, entries));
                break;
            }
        }
        if let Some(reason) = stopped {
            self.fail(&reason);
        }
    }

    /// The journal will keep nothing any more.
    fn fail(&mut self, reason: &str) {
        if self.stopped.is_some() {
            return;
        }
        tracing::error!(reason, "the journal has stopped: tasks are neither taken nor continued until this node is restarted");
        let failure = Failure::new(ErrorCode::Unavailable, format!("the journal of this node has stopped: {reason}"));
        let failure = failure.retryable(false).with("suggestion", "see to the disk and restart the node");
        for live in self.live.values_mut() {
            live.running_by_subtask.clear();
            for (_, answer) in std::mem::take(&mut live.answers) {
                answer(Err(failure.clone()));
            }
        }
        self.stopped = Some(failure);
    }

    fn on_report(&mut self, report: Report) {
        let Report { task, input, output } = report;
        let Some(live) = self.live.get_mut(&task) else { return };
        if let Input::Finished(fence, finish) = &input {
            let place = usize::try_from(fence.subtask).unwrap_or(usize::MAX);
            let state = live.machine.state();
            let current = state.parts().get(place).and_then(|part| part.current());
            let is_used = matches!(finish, Finish::Done { .. }) && state.takes(*fence);
            // What else an attempt still reports that was given up is for the accounts alone.
            if is_used || current.is_some_and(|attempt| attempt.number == fence.attempt) {
                live.running_by_subtask.remove(&fence.subtask);
                if let (Some(output), Some(place)) = (output, live.outputs.get_mut(place)) {
                    *place = Some(output);
                }
            }
        }
        if let Input::Planned { definition, .. } = &input
            && live.outputs.is_empty()
        {
            live.outputs = vec![None; definition.subtasks.len()];
        }
        if let Input::ContextWritten(fence, _) = &input {
            live.running_by_subtask.remove(&fence.subtask);
        }
        let mut freed = None;
        if let Input::Finished(fence, Finish::Done { .. } | Finish::Failed { .. }) = &input
            && !self.waiting.is_empty()
        {
            freed = capability_of(live.machine.state(), fence.subtask).cloned();
        }
        self.drive(task, input);
        if let Some(capability) = freed {
            self.on_freed(capability);
        }
    }

    /// Somebody has room: the next in line is tried.
    fn on_freed(&mut self, capability: CapabilityName) {
        let Some(task) = self.waiting.next(&capability) else { return };
        self.drive(task, Input::Freed(capability.clone()));
        if let Some(live) = self.live.get(&task) {
            self.waiting.add_if_any(live.machine.state(), &capability);
        }
    }

    fn on_timer(&mut self) {
        let now = self.clock.now();
        while let Some((at, task)) = self.wakes.first().copied().filter(|(at, _)| *at <= now) {
            self.wakes.remove(&(at, task));
            if let Some(live) = self.live.get_mut(&task) {
                live.wake = None;
            }
            self.drive(task, Input::Wake);
        }
        if self.offered_at.is_some_and(|at| at <= Instant::now()) {
            self.offered_at = None;
            self.tell_offered();
        }
        if self.forget_at <= Instant::now() {
            self.forgot_at = Instant::now();
            self.forget_at = self.forgot_at + FORGET_EVERY;
            self.forget();
        }
    }

    /// Somebody showed up: tasks that wait for what is now offered go on.
    fn tell_offered(&mut self) {
        let routes = self.shared.routes.load_full();
        for (capability, tasks) in self.waiting.take(|capability| routes.offers(capability)) {
            for task in tasks {
                self.drive(task, Input::Offered(capability.clone()));
            }
        }
    }

    /// A task is over, and that is durable.
    fn end(&mut self, task: TaskId) {
        let Some(live) = self.live.remove(&task) else { return };
        if let Some(at) = live.wake {
            self.wakes.remove(&(at, task));
        }
        self.waiting.remove(live.machine.state());
        for before in &live.machine.state().definition().dependencies {
            if let Some(dependents) = self.dependents.get_mut(before) {
                dependents.remove(&task);
            }
        }
        let summary = view::summary(live.machine.state());
        let Some(ended) = ended_as(&summary, live.machine.state(), &live.positions) else { return };
        live.tell(live.machine.state().events(), true);
        let outcome = ended.outcome;
        let url = ended.callback.clone();
        self.ended.insert(task, ended);
        let Live { machine, outputs, entry_bytes, .. } = live;
        self.recent.insert(machine.into_state(), outputs, entry_bytes);
        self.shared.publish(NodeEvent::TaskEnded(Arc::new(summary)));
        if let (Some(url), Some(Ok(place))) = (url, self.ended.place(&task)) {
            self.callbacks.begin(&self.shared, &self.reader, (task, place), url, Duration::ZERO);
        }
        let kept_max = usize::try_from(self.shared.config.task.kept_max).unwrap_or(usize::MAX);
        let is_crowded = self.ended.len() > kept_max.saturating_add(kept_max / 4).saturating_add(FORGET_AT_ONCE);
        if self.filing.is_none() && (is_crowded || self.ended.is_crowded()) {
            self.forget_soon();
        }
        for dependent in self.dependents.remove(&task).unwrap_or_default() {
            self.drive(dependent, Input::DependencyEnded(task, outcome));
        }
    }

    /// Forgets tasks that ended long ago, and files those that have ended since.
    fn forget(&mut self) {
        if self.filing.is_some() {
            return;
        }
        // Whoever wanted one of them at once has it by now, and those that are forgotten are not told of any more.
        self.recent = Recent::default();
        let limits = &self.shared.config.task;
        let (keep, kept_max) = (Duration::from_millis(limits.keep_ms), usize::try_from(limits.kept_max).unwrap_or(usize::MAX));
        let mut forgotten = std::mem::take(&mut self.forgotten);
        for (created, task, key) in self.ended.forget(self.clock.now(), keep, kept_max) {
            self.by_age.remove(&(created, task));
            if let Some(key) = key.filter(|key| self.by_key.get(key).is_some_and(|(known, _)| *known == task)) {
                self.by_key.remove(&key);
            }
            forgotten.push(task);
        }
        let (filer, work, words) = (self.filer.clone(), self.work(forgotten), self.words.0.clone());
        self.filing = Some(tokio::task::spawn_blocking(move || filer.run(work, &words)));
    }

    /// What a checkpoint is made of now.
    fn work(&self, forgotten: Vec<TaskId>) -> Work {
        // Before anything is looked at: whatever happens to a call from here on lies behind it.
        let journal = &self.reader.journal;
        let last = journal.segments().map_or(SegmentId(0), |(_, last)| last);
        let unended = self.live.values().filter_map(|live| live.positions.first()).map(|position| position.segment).min();
        let running = self.filer.floor();
        let others = [self.ended.pinned(), running].into_iter().flatten().fold(last, SegmentId::min);
        let (watermark, copied) = (unended.map_or(others, |unended| unended.min(others)), self.copies.due(journal, &self.live, others));
        // Only what is older than everything that is wanted goes: were the end of a task gone and its beginning still there, the next start
        // would run it again.
        let kept = self.shared.calls_by_key.segments().into_iter().chain(self.shared.results_by_key.segments());
        let oldest = unended.into_iter().chain(self.ended.oldest()).chain(running).chain(kept).fold(last, SegmentId::min);
        Work { taken: self.ended.take(), watermark, oldest, forgotten, copied }
    }

    /// Forgets before it is time, but not again and again where that frees nothing.
    fn forget_soon(&mut self) {
        self.forget_at = self.forget_at.min(self.forgot_at + FORGET_PAUSE);
    }

    /// What is heard of a checkpoint.
    fn on_word(&mut self, word: Word) {
        match word {
            Word::Filed(tasks) => self.ended.on_filed(tasks, |key| self.by_key.get_key_value(key).map(|(key, _)| Arc::clone(key))),
            Word::Unfiled(keys) => self.ended.on_unfiled(&keys),
            Word::Copied(task, entries) => self.copies.begin(&self.reader.journal, &self.live, task, entries),
            Word::Over => {
                self.filing = None;
                if self.ended.is_crowded() {
                    self.forget_soon();
                }
            }
        }
    }

    /// What a submission is answered with that names a task which has ended.
    fn answer_receipt<T: Send + 'static>(
        &mut self,
        task: TaskId,
        reply: oneshot::Sender<Result<T, Failure>>,
        told: impl FnOnce(Receipt) -> T,
    ) {
        match self.ended.receipt(&task) {
            Some(receipt) => drop(reply.send(Ok(told(receipt)))),
            None => self.answer(task, reply, |state| Ok(told(Receipt::Told(view::receipt(state))))),
        }
    }
}

/// The epoch of a journal that one node keeps alone.
pub(super) const EPOCH: u64 = 1;

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::node::Node;
    use crate::proto::task::definition::Definition;
    use crate::store::DataDir;
    use crate::store::journal::Config;
    use crate::wire::task::Text;

    const TINY: Config = Config { segment_bytes: 65_536, queue_entries_max: 8, queue_bytes_max: 65_536 };

    type Answer = oneshot::Receiver<Result<(Receipt, bool), Failure>>;

    /// A loop that does not run by itself, with a journal of its own on a node that is there for the rest.
    async fn book(folder: &std::path::Path) -> (Node, Book) {
        let mut config = crate::config::Config::default();
        config.node.data_dir = folder.join("node");
        config.mesh.listen = vec!["/ip4/127.0.0.1/tcp/0".to_owned()];
        let node = Node::start(config.clone()).await.expect("a node");
        let dir = DataDir::open(&folder.join("book")).expect("a data directory");
        let (journal, replay) = dir.journal(TINY).expect("a journal");
        replay.run(|_| {}).expect("an empty one");
        let reader = Reader::new(journal, dir.blobs(), None, &config);
        let book = Book::new(Arc::clone(&node.handle.shared), reader, Found::default(), mpsc::channel(1).1);
        (node, book)
    }

    fn submit(book: &mut Book, number: u128) -> Answer {
        submit_after(book, number, &[])
    }

    fn submit_after(book: &mut Book, number: u128, before: &[u128]) -> Answer {
        let before: Vec<String> = before.iter().map(|number| TaskId::from_random(*number).to_string()).collect();
        let subtasks = json!([{ "subtask_id": "a", "agent_capability": "test.nobody" }]);
        let document = json!({ "name": "n", "subtasks": subtasks, "metadata": { "dependencies": before } });
        let at = book.clock.now();
        let definition = Box::new(Definition::read(&document, &book.reader.defaults, at).expect("a definition"));
        let document = Text::Inline(document.to_string().into());
        let event = Box::new(Event::Submitted(Submitted { document, key: None, identity: [0; 32], parent: None }));
        let (reply, answer) = oneshot::channel();
        book.handle(Command::Submit { task: TaskId::from_random(number), definition, event, at, reply });
        answer
    }

    async fn until_all_is_durable(book: &mut Book) {
        while !book.backlog.is_empty() || !book.pending.is_empty() {
            book.committed.changed().await.expect("the writer runs");
            book.on_committed();
        }
    }

    /// AITP-2: a task that depends on one which has failed already ends at once, and can be read all the same; and who waits for whom is known
    /// no longer than both are under way.
    #[tokio::test]
    async fn a_task_is_written_down_before_what_follows_from_those_on_which_it_depends() {
        let folder = tempfile::tempdir().expect("a folder");
        let (node, mut book) = book(folder.path()).await;
        let [first, second, third] = [1, 2, 3].map(TaskId::from_random);
        drop((submit(&mut book, 1), submit_after(&mut book, 2, &[1])));
        assert_eq!(book.dependents, BTreeMap::from([(first, BTreeSet::from([second]))]));
        book.drive(second, Input::Cancel);
        until_all_is_durable(&mut book).await;
        assert_eq!(book.dependents, BTreeMap::from([(first, BTreeSet::new())]));
        book.drive(first, Input::Cancel);
        until_all_is_durable(&mut book).await;
        assert!(book.live.is_empty() && book.dependents.is_empty(), "{:?}", book.dependents);

        let answer = submit_after(&mut book, 3, &[1]);
        until_all_is_durable(&mut book).await;

        assert!(answer.await.expect("an answer").is_ok_and(|(_, is_new)| is_new), "it was taken");
        let place = book.ended.place(&third).expect("it has ended").expect("it can be read");
        let state = book.reader.state(&book.reader.positions(&place).expect("its entries")).expect("a task");
        assert_eq!((state.end().map(|end| end.outcome), book.dependents.len()), (Some(Outcome::Failed), 0));
        book.reader.journal.close();
        drop(node);
    }

    /// AITP-12, fault F3: while the journal has no room for what was decided, no task is taken, and who asks is told why and when to come
    /// again; what was taken before is acknowledged as soon as it is durable, and then the next is taken.
    #[tokio::test]
    async fn a_journal_that_cannot_keep_up_refuses_tasks_by_name() {
        let folder = tempfile::tempdir().expect("a folder");
        let (node, mut book) = book(folder.path()).await;
        let journal = book.reader.journal.clone();
        let mut taken = Vec::new();
        // The writer may be quicker than this once or twice.
        while book.backlog.is_empty() {
            while journal.append(vec![Bytes::from_static(b"of somebody else")]).is_ok() {}
            taken.push(submit(&mut book, taken.len() as u128));
            assert!(taken.len() < 1_000, "the queue of {} entries is never full", TINY.queue_entries_max);
        }
        let last = taken.last_mut().expect("one");
        assert!(last.try_recv().is_err_and(|error| error == oneshot::error::TryRecvError::Empty), "nothing is told that is not durable");

        let live = book.live.len();
        let refused = submit(&mut book, 1 << 100).await.expect("an answer").map(|_| ()).expect_err("no room");

        assert_eq!((refused.code, refused.retryable, &refused.details["retry_after_ms"]), (ErrorCode::Busy, true, &json!(RETRY_AFTER_MS)));
        assert!(refused.message.contains("journal") && !refused.message.contains("task.live_max"), "{refused}");
        assert_eq!((book.live.len(), refused.details.get("limit")), (live, None));
        until_all_is_durable(&mut book).await;
        for answer in taken {
            assert!(answer.await.expect("an answer").is_ok_and(|(_, is_new)| is_new), "it was taken");
        }
        let next = submit(&mut book, 1 << 100);
        until_all_is_durable(&mut book).await;
        assert!(next.await.expect("an answer").is_ok_and(|(_, is_new)| is_new), "there is room again");
        journal.close();
        drop(node);
    }
}
