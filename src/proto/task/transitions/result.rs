//! The agent finished: its output is kept, its work billed, and what waited for it goes on (AITP 5.2, AITP 7).
//!
//! The first result wins that comes from the attempt under way, or, while there is none, from the one that was lost last: its fence is the
//! highest that any agent was told to begin under. So the work of an agent that was out of reach for a while is used unless somebody else has
//! been given it in the meantime. Any other is not used; it is billed all the same, marked as duplicate, so that the ledger stays honest: once
//! for each agent, which gives the same result to every attempt under the key. The end of the task closes its accounts: clients are told what
//! it cost, and that does not change any more.
//!
//! What a result brings for the task's context stands in its event, and is written once that is durable; the subtask counts as done when
//! the journal has that it is written. A node that comes back in between looks in the context before it writes.

use rust_decimal::Decimal;

use super::super::state::{Attempt, AttemptEnd, Part, Phase, State, Status, number, place};
use super::{dispatch, fail, settle};
use crate::model::{AgentId, Failure, NodeId, Timestamp};
use crate::wire::outbox::Word;
use crate::wire::task::{Charge, Event, Fence, Loss, Reason, Text};

/// Whether a result of this attempt would be used.
pub(in crate::proto::task) fn is_usable(part: &Part, number: u32) -> bool {
    if let Some(current) = part.current() {
        return current.number == number;
    }
    // Whoever refused has not begun, so nobody was given the work since.
    let begun = part.attempts.iter().rev().find(|attempt| !matches!(attempt.end, Some(AttemptEnd::Rejected { .. })));
    !part.is_over() && part.status != Status::Completed && begun.is_some_and(|attempt| attempt.number == number && is_lost(attempt))
}

/// Whether nobody knows what became of it.
fn is_lost(attempt: &Attempt) -> bool {
    matches!(attempt.end, Some(AttemptEnd::Requeued | AttemptEnd::Failed(Loss::AgentLost | Loss::AttemptTimeout, _)))
}

/// Whether this agent's work under the key of this attempt has been billed as a duplicate, or is used.
fn is_settled(part: &Part, agent: AgentId, number: u32) -> bool {
    let is_same = |attempt: &&Attempt| attempt.agent == agent && part.redo(attempt.number) == part.redo(number);
    part.attempts.iter().filter(is_same).any(|attempt| matches!(attempt.end, Some(AttemptEnd::Success | AttemptEnd::Duplicate)))
}

/// A result that is wanted: to be used, or to be billed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// How many outputs had been no use when the attempt was made.
    pub redo: u32,
    /// What the attempt was given to spend, where it is a task.
    pub share: Option<Decimal>,
    /// What it would probably cost when it was made.
    pub estimate: Option<Decimal>,
    /// Whether it would be used, for all that is known now.
    pub is_used: bool,
}

impl State {
    /// Whether a result of this attempt would be used.
    pub fn takes(&self, fence: Fence) -> bool {
        self.end.is_none() && self.part(fence.subtask).is_some_and(|part| is_usable(part, fence.attempt))
    }

    /// What is said to a node that has a result of this attempt, which its agent made, and how the result is asked for, if it is wanted.
    pub fn word(&self, fence: Fence, agent: AgentId, node: NodeId) -> (Word, Option<Wanted>) {
        if self.end.is_some() {
            return (Word::Known, None);
        }
        let Some(part) = self.part(fence.subtask) else { return (Word::Unknown, None) };
        let Some(attempt) = part.attempts.iter().find(|attempt| attempt.number == fence.attempt) else { return (Word::Unknown, None) };
        if (attempt.agent, attempt.node) != (agent, node) {
            return (Word::Refused, None);
        }
        let is_used = is_usable(part, fence.attempt);
        if is_settled(part, agent, fence.attempt) || !(is_lost(attempt) || is_used) {
            return (Word::Known, None);
        }
        let (redo, share, estimate) = (part.redo(fence.attempt), part.share, attempt.estimate);
        (Word::Wanted, Some(Wanted { redo, share, estimate, is_used }))
    }
}

/// What follows when an attempt ended with an output that matches its schema.
pub(in crate::proto::task) fn decide(
    state: &State,
    fence: Fence,
    output: Text,
    charge: Option<Charge>,
    context_ops: Option<Text>,
) -> Vec<Event> {
    let Some(part) = state.part(fence.subtask).filter(|_| state.end.is_none()) else { return Vec::new() };
    if is_usable(part, fence.attempt) {
        vec![Event::ResultReceived { fence, output, charge, context_ops }]
    } else {
        unused(state, fence, charge)
    }
}

/// What follows when an attempt that was given up ended after all, with work that is not used: it is billed.
pub(in crate::proto::task) fn unused(state: &State, fence: Fence, charge: Option<Charge>) -> Vec<Event> {
    let Some(part) = state.part(fence.subtask).filter(|_| state.end.is_none()) else { return Vec::new() };
    let known = part.attempts.iter().find(|attempt| attempt.number == fence.attempt);
    let is_news = known.is_some_and(|attempt| !is_settled(part, attempt.agent, attempt.number));
    if is_news { vec![Event::DuplicateResult { fence, charge }] } else { Vec::new() }
}

/// The result of a subtask that has brought something for the context, until that is written.
pub(in crate::proto::task) fn unwritten(state: &State, index: usize) -> Option<(Fence, Text)> {
    let part = state.parts.get(index).filter(|part| state.end.is_none() && !part.is_over())?;
    let ops = part.context_ops.clone()?;
    let used = part.attempts.iter().find(|attempt| attempt.end == Some(AttemptEnd::Success))?;
    Some((Fence { subtask: number(index), attempt: used.number }, ops))
}

/// It cannot be written now.
pub(in crate::proto::task) fn waits(state: &mut State, fence: Fence, failure: Failure, now: Timestamp) {
    let is_awaited = unwritten(state, place(fence.subtask)).is_some_and(|(awaited, _)| awaited == fence);
    if let Some(part) = state.parts.get_mut(place(fence.subtask)).filter(|_| is_awaited) {
        let since = part.unkept.context_wait.take().map_or(now, |before| before.0);
        part.unkept.context_wait = Some(Box::new((since, failure)));
    }
}

/// What follows once that is written, or cannot be.
pub(in crate::proto::task) fn decide_written(state: &State, fence: Fence, written: Result<(), Failure>, now: Timestamp) -> Vec<Event> {
    if unwritten(state, place(fence.subtask)).is_none_or(|(awaited, _)| awaited != fence) {
        return Vec::new();
    }
    match written {
        Ok(()) => vec![Event::ContextWritten(fence)],
        Err(failure) => fail::decide(state, fence.subtask, Reason::NonRetryable, failure, now),
    }
}

/// What follows from a result that is kept and billed: it is used, once its part in the context is written, unless nobody can pay for it.
pub(in crate::proto::task) fn judge(state: &State, fence: Fence, now: Timestamp) -> Vec<Event> {
    let billed = state.part(fence.subtask).and_then(|part| part.charge.as_ref()).map_or(Decimal::ZERO, |charge| charge.total);
    let was_covered = state.part(fence.subtask).is_some_and(|part| part.is_written);
    let is_covered = was_covered || billed.is_zero() || state.ledger.remaining().is_none_or(|remaining| !remaining.is_sign_negative());
    if is_covered {
        let is_written = state.part(fence.subtask).is_some_and(|part| part.context_ops.is_none());
        return if is_written { vec![Event::Validated(fence)] } else { Vec::new() };
    }
    let message = format!("the agent billed {}, more than was left of the budget", billed.normalize());
    fail::decide(state, fence.subtask, Reason::Cost, dispatch::over_budget(state, &message), now)
}

pub(in crate::proto::task) fn received(
    state: &mut State,
    fence: Fence,
    output: &Text,
    charge: Option<&Charge>,
    context_ops: Option<&Text>,
    at: Timestamp,
) {
    let index = place(fence.subtask);
    let Some(part) = state.parts.get_mut(index) else { return };
    let Some(attempt) = part.attempts.iter_mut().find(|attempt| attempt.number == fence.attempt) else { return };
    // The word that it was accepted may have been overtaken.
    attempt.accepted.get_or_insert(at);
    attempt.ended = Some(at);
    attempt.end = Some(AttemptEnd::Success);
    let agent = attempt.agent;
    part.status = Status::Completed;
    part.output = Some(output.clone());
    part.charge = charge.cloned();
    part.context_ops = context_ops.cloned();
    settle::billed(state, fence, agent, charge, false);
    settle::released(state, fence.subtask);
    // Until it is judged it waits for nothing else, wherever it was when the result came.
    state.enter(index, Phase::Running);
    state.wake_held();
}

pub(in crate::proto::task) fn context_written(state: &mut State, fence: Fence) {
    if let Some(part) = state.parts.get_mut(place(fence.subtask)) {
        part.context_ops = None;
        part.is_written = true;
    }
}

pub(in crate::proto::task) fn validated(state: &mut State, fence: Fence, at: Timestamp) {
    let index = place(fence.subtask);
    let Some(part) = state.parts.get_mut(index) else { return };
    part.status = Status::Success;
    part.ended = Some(at);
    part.waiting = None;
    state.enter(index, Phase::Over);
    for dependent in state.dependents.get(index).cloned().unwrap_or_default() {
        let Some(part) = state.parts.get_mut(dependent) else { continue };
        part.missing = part.missing.saturating_sub(1);
        if part.missing == 0 && part.phase == Phase::Blocked {
            state.enter(dependent, Phase::Ready);
        }
    }
}

pub(in crate::proto::task) fn duplicate(state: &mut State, fence: Fence, charge: Option<&Charge>, at: Timestamp) {
    let Some(part) = state.parts.get_mut(place(fence.subtask)) else { return };
    let Some(attempt) = part.attempts.iter_mut().find(|attempt| attempt.number == fence.attempt) else { return };
    attempt.ended.get_or_insert(at);
    attempt.end = Some(AttemptEnd::Duplicate);
    let agent = attempt.agent;
    let is_idle = part.current().is_none();
    settle::billed(state, fence, agent, charge, true);
    if is_idle {
        settle::released(state, fence.subtask);
        state.wake_held();
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::super::machine::{Finish, Input, Output};
    use super::super::super::testing::{Task, agent, budget, charge, definition, node, step, text};
    use super::super::super::view;
    use super::*;
    use crate::model::ErrorCode;
    use crate::proto::task::definition::{OnFailure, OnTimeout};
    use crate::wire::task::Outcome;

    /// A task of two steps, the second after the first, of which the first was lost with this agent.
    fn lost_on(number: u8) -> (Task, Fence) {
        let mut definition = definition(vec![step("a", &[]), step("b", &[0])]);
        definition.budget = budget("10");
        let mut task = Task::of(definition);
        task.chosen_for(0, number, Some("1"));
        task.accepts(0);
        lose(&mut task);
        let late = task.fence(0);
        (task, late)
    }

    fn lose(task: &mut Task) {
        task.loses(0, Loss::AgentLost, Failure::new(ErrorCode::Unavailable, "gone"));
    }

    /// What was billed: the attempt, and whether it is a duplicate.
    fn lines(task: &Task) -> Vec<(u32, bool)> {
        task.machine.state().ledger().lines().iter().map(|line| (line.fence.attempt, line.duplicate)).collect()
    }

    fn word(task: &Task, attempt: u32, number: u8) -> Word {
        task.machine.state().word(Fence { subtask: 0, attempt }, agent(number), node(number)).0
    }

    /// AITP-10, F10: the work of an agent that was out of reach is used, unless another was given it; at whatever point the home node goes down
    /// then, the result is used once.
    #[test]
    fn a_late_result_is_used_while_no_other_attempt_was_begun() {
        for refused in [false, true] {
            let (mut task, late) = lost_on(1);
            if refused {
                task.chosen_for(0, 2, Some("1"));
                task.rejects(0, ErrorCode::Busy);
            }
            task.events();
            assert_eq!(word(&task, 1, 1), Word::Wanted);
            task.answers(late, Some(charge("1", "0.5")));
            assert_eq!((task.events(), task.status(0)), (vec!["result_received", "validated"], Status::Success));
            assert_eq!((lines(&task), task.part(0).attempts[0].end.as_ref()), (vec![(1, false)], Some(&AttemptEnd::Success)));
            let next = |task: &mut Task| task.choices().into_iter().map(|choose| choose.subtask).next_back();
            assert_eq!((next(&mut task), word(&task, 1, 1)), (Some(1), Word::Known));
            task.answers(late, Some(charge("1", "0.5")));
            assert_eq!(task.events(), [""; 0]);

            task.restarts_with(task.journal.len() - 1);
            assert_eq!((task.events(), task.status(0), lines(&task)), (vec!["validated"], Status::Success, vec![(1, false)]));
            assert!(matches!(task.journal.last(), Some((_, Event::Validated(fence))) if *fence == late));
        }
    }

    /// F14: once another has been given the work, what comes late is billed and not used, though the other may not have accepted yet.
    #[test]
    fn a_result_that_comes_after_another_attempt_was_given_out_is_a_duplicate() {
        for is_accepted in [false, true] {
            let (mut task, late) = lost_on(1);
            task.chosen_for(0, 2, Some("1"));
            if is_accepted {
                task.accepts(0);
            }
            task.events();
            assert_eq!(word(&task, 1, 1), Word::Wanted, "to be billed");
            assert!(!task.machine.state().takes(late));
            task.answers(late, Some(charge("1", "0.5")));
            assert_eq!((task.events(), word(&task, 1, 1)), (vec!["duplicate_result"], Word::Known));
            assert!(!task.orders().iter().any(|order| matches!(order, Output::Withdraw(_))), "the other goes on");
            task.does_for(0, Some(charge("1", "0.5")));
            assert_eq!((task.status(0), lines(&task)), (Status::Success, vec![(1, true), (2, false)]));
        }
    }

    /// AITP-10: an agent gives the same result to every attempt under its key, so its work is billed once, used or not.
    #[test]
    fn a_duplicate_whose_agent_is_asked_again_is_billed_once() {
        let (mut task, late) = lost_on(1);
        task.chosen_for(0, 2, Some("1"));
        task.accepts(0);
        task.answers(late, Some(charge("1", "0.5")));
        lose(&mut task);
        task.waits(60_000);
        task.chosen_for(0, 1, Some("1"));
        task.accepts(0);
        task.does_for(0, Some(charge("1", "0.5")));
        assert_eq!((task.status(0), lines(&task)), (Status::Success, vec![(3, false)]));
        task.answers(late, Some(charge("1", "0.5")));
        assert_eq!(lines(&task), [(3, false)]);
        let before = lines(&task);
        task.restarts();
        assert_eq!(lines(&task), before);
    }

    /// AITP-10: a late output that does not fit is paid for like any other, and the step is still to be done.
    #[test]
    fn a_late_result_that_does_not_fit_is_billed_and_not_used() {
        let (mut task, late) = lost_on(1);
        task.events();
        let failure = Failure::new(ErrorCode::InvalidSchema, "no number");
        let finish = Finish::Failed { loss: Loss::InvalidOutput, failure, charge: Some(charge("1", "0.5")) };
        task.takes(Input::Finished(late, finish));
        assert_eq!((task.events(), task.status(0), lines(&task)), (vec!["duplicate_result"], Status::Retrying, vec![(1, true)]));
        assert_eq!(word(&task, 1, 1), Word::Known);
        // An attempt that is lost once more says nothing of its work.
        let failure = Failure::new(ErrorCode::Unavailable, "gone");
        task.takes(Input::Finished(late, Finish::Failed { loss: Loss::AgentLost, failure, charge: None }));
        assert_eq!(task.events(), [""; 0]);
    }

    /// Threats T4, T16: a result is wanted from whoever was given the attempt alone, and only while the task goes on.
    #[test]
    fn only_the_node_that_was_given_an_attempt_has_a_result_of_it() {
        let (mut task, _) = lost_on(1);
        let state = task.machine.state();
        let first = Fence { subtask: 0, attempt: 1 };
        assert_eq!((state.word(first, agent(1), node(2)).0, state.word(first, agent(2), node(1)).0), (Word::Refused, Word::Refused));
        assert_eq!((word(&task, 2, 1), word(&task, 0, 1)), (Word::Unknown, Word::Unknown));
        let nowhere = Fence { subtask: 2, attempt: 1 };
        assert_eq!(state.word(nowhere, agent(1), node(1)).0, Word::Unknown);
        task.chosen_for(0, 2, Some("1"));
        assert_eq!((word(&task, 2, 2), word(&task, 2, 1)), (Word::Wanted, Word::Refused));
        task.rejects(0, ErrorCode::Busy);
        assert_eq!(word(&task, 2, 2), Word::Known, "it said that it had not begun");
        task.takes(Input::Cancel);
        assert_eq!((word(&task, 1, 1), word(&task, 1, 2)), (Word::Known, Word::Known), "the accounts are closed");
    }

    /// A task of two steps, the second after the first, whose first has just answered with something for the context.
    fn wrote() -> (Task, Fence) {
        let mut task = Task::of(definition(vec![step("a", &[]), step("b", &[0])]));
        task.runs(0);
        task.orders();
        let fence = task.fence(0);
        task.answers_with(fence, None, Some(text("[1]")));
        (task, fence)
    }

    fn order(fence: Fence, again: bool) -> Output {
        Output::WriteContext { fence, ops: text("[1]"), again }
    }

    fn denied() -> Failure {
        Failure::new(ErrorCode::AccessDenied, "the right was taken away")
    }

    /// AMP-9: what a step brings for the context is written once its result is durable, and nothing goes on before that is durable too.
    #[test]
    fn what_follows_waits_until_the_context_is_written() {
        let mut task = Task::of(definition(vec![step("a", &[]), step("b", &[0])]));
        task.runs(0);
        task.orders();
        task.disk_stalls();
        let fence = task.fence(0);
        task.answers_with(fence, None, Some(text("[1]")));
        assert_eq!(task.orders(), [], "the disk does not have the result");
        task.disk_keeps(task.journal.len());
        assert_eq!((task.orders(), task.status(0), task.phase(1)), (vec![order(fence, false)], Status::Completed, Phase::Blocked));
        let stale = Fence { attempt: fence.attempt + 1, ..fence };
        task.takes(Input::ContextWritten(stale, Ok(())));
        assert_eq!(task.status(0), Status::Completed);
        task.events();
        task.takes(Input::ContextWritten(fence, Ok(())));
        assert_eq!((task.events(), task.status(0)), (vec!["context_written", "validated"], Status::Success));
        assert_eq!(task.choices().len(), 1, "the next is chosen for");
        task.takes(Input::ContextWritten(fence, Ok(())));
        assert_eq!(task.events(), [""; 0], "it is written once");
    }

    /// A write that has to wait is shown with its reason for as long as it does; nothing of that is kept.
    #[test]
    fn a_write_that_waits_is_shown_and_not_kept() {
        let (mut task, fence) = wrote();
        let kept = task.journal.clone();
        let shown = |task: &Task| {
            let status = view::status(task.machine.state(), node(1), false, task.now);
            let step = &status["progress"]["steps"][0];
            (step["context_write"].clone(), step["waiting_for"].clone())
        };
        let began_s = task.now.as_ms() / 1_000;
        let full = || Failure::new(ErrorCode::InsufficientResources, "the disk is full");
        task.takes(Input::ContextWaits(Fence { attempt: fence.attempt + 1, ..fence }, full()));
        assert_eq!(shown(&task), (Value::Null, Value::Null), "of another attempt");
        task.takes(Input::ContextWaits(fence, full()));
        task.waits(5_000);
        task.takes(Input::ContextWaits(fence, Failure::new(ErrorCode::Unavailable, "it is damaged")));
        let expected = json!({ "state": "waiting", "reason": "UNAVAILABLE", "since": began_s });
        assert_eq!(shown(&task), (expected, json!("its context: it is damaged")), "since the first, for the last reason");
        assert_eq!(task.journal, kept);
        task.restarts();
        assert_eq!(shown(&task).0, Value::Null, "it is tried first");
        task.takes(Input::ContextWaits(fence, full()));
        assert_eq!(shown(&task).0["reason"], "INSUFFICIENT_RESOURCES");
        let mut cancelled = wrote().0;
        cancelled.takes(Input::ContextWaits(fence, full()));
        cancelled.takes(Input::Cancel);
        assert_eq!(shown(&cancelled), (Value::Null, Value::Null));
        task.takes(Input::ContextWritten(fence, Ok(())));
        assert_eq!((shown(&task), task.status(0)), ((Value::Null, Value::Null), Status::Success));
    }

    /// AITP-12: a node that comes back before it has kept that the context is written looks there first; one that has kept it writes nothing.
    #[test]
    fn a_restart_asks_for_what_may_be_written() {
        let (mut task, fence) = wrote();
        task.restarts();
        assert_eq!(task.orders(), [order(fence, true)]);
        task.takes(Input::ContextWritten(fence, Ok(())));
        let kept = task.journal.len();
        task.restarts_with(kept - 1);
        assert_eq!((task.status(0), task.choices().len()), (Status::Success, 1), "it is looked at, and not written");
        assert_eq!(task.journal.last().map(|(_, event)| event.name()), Some("validated"));
        task.restarts_with(kept - 2);
        assert_eq!(task.orders(), [order(fence, true)]);
    }

    /// A journal that lost its end may have held a result that comes again: what it brings is looked for before it is written.
    #[test]
    fn what_comes_after_a_start_may_be_written_already() {
        let mut task = Task::of(definition(vec![step("a", &[])]));
        task.runs(0);
        task.restarts();
        task.orders();
        let fence = task.fence(0);
        task.answers_with(fence, None, Some(text("[1]")));
        assert_eq!(task.orders(), [order(fence, true)]);
    }

    /// AITP-10: a result that was paid, and written, is not taken back for what others cost since.
    #[test]
    fn a_result_that_is_written_is_not_failed_for_cost() {
        let mut definition = definition(vec![step("a", &[]), step("b", &[])]);
        definition.budget = budget("2");
        definition.fallback.on_failure = OnFailure::Degrade;
        let mut task = Task::of(definition);
        task.runs(0);
        task.runs(1);
        let fence = task.fence(0);
        task.answers_with(fence, Some(charge("1", "1")), Some(text("[1]")));
        task.answers_with(task.fence(1), Some(charge("1", "5")), None);
        assert_eq!(task.gave_up(1), Some(Reason::Cost));
        let kept = task.journal.len();
        task.takes(Input::ContextWritten(fence, Ok(())));
        assert_eq!(task.journal.get(kept).map(|(_, event)| event.name()), Some("context_written"));
        assert_eq!((task.status(0), task.gave_up(0)), (Status::Success, None));
    }

    /// AMP-9: a step whose part of the context cannot be written has failed, and has no output; so has what needs it.
    #[test]
    fn a_step_fails_whose_part_of_the_context_is_refused() {
        let (mut task, fence) = wrote();
        task.takes(Input::ContextWritten(fence, Err(denied())));
        assert_eq!((task.gave_up(0), task.end()), (Some(Reason::NonRetryable), Some((Outcome::Failed, Some(Reason::NonRetryable)))));
        assert_eq!(task.machine.state().output(0), None);
        let before = task.journal.clone();
        task.restarts();
        assert_eq!((task.orders(), &task.journal), (vec![], &before), "nothing is written any more");
    }

    /// A task that ends meanwhile is over: nothing is made of the word that the context is written.
    #[test]
    fn a_task_that_ends_meanwhile_stays_as_it_ended() {
        for written in [Ok(()), Err(denied())] {
            let (mut task, fence) = wrote();
            task.takes(Input::Cancel);
            let (before, end) = (task.journal.clone(), task.end());
            task.takes(Input::ContextWritten(fence, written));
            assert_eq!((&task.journal, task.end()), (&before, end));
            task.restarts();
            assert!(!task.orders().iter().any(|order| matches!(order, Output::WriteContext { .. })));
        }
    }

    /// AITP-10: a result that comes after its attempt had timed out is written to the context if it is used, and not if the subtask was
    /// given up meanwhile or another attempt has the work; neither then nor after a restart.
    #[test]
    fn a_late_result_is_written_only_if_it_is_used() {
        let late = |is_over: bool| {
            let mut first = step("a", &[]);
            first.retry.retries_max = if is_over { 0 } else { 1 };
            let mut definition = definition(vec![first, step("b", &[])]);
            definition.fallback.on_timeout = OnTimeout::Retry;
            definition.fallback.on_failure = OnFailure::Degrade;
            let mut task = Task::of(definition);
            task.runs(0);
            let fence = task.fence(0);
            task.loses(0, Loss::AttemptTimeout, Failure::new(ErrorCode::Timeout, "it took too long"));
            assert_eq!((task.part(0).is_over(), task.end()), (is_over, None));
            (task, fence)
        };
        let writes = |task: &mut Task| task.orders().iter().filter(|order| matches!(order, Output::WriteContext { .. })).count();
        let (mut used, fence) = late(false);
        used.answers_with(fence, None, Some(text("[1]")));
        assert_eq!(used.orders().pop(), Some(order(fence, false)));
        let (mut over, gave_up) = late(true);
        let (mut redone, replaced) = late(false);
        redone.waits(60_000);
        redone.chosen(0, 2);
        redone.accepts(0);
        for (task, fence) in [(&mut over, gave_up), (&mut redone, replaced)] {
            task.answers_with(fence, None, Some(text("[1]")));
            assert_eq!((writes(task), task.part(0).context_ops.as_ref()), (0, None));
            task.takes(Input::ContextWritten(fence, Ok(())));
            task.restarts();
            assert_eq!((writes(task), task.machine.state().output(0)), (0, None));
        }
    }

    /// AITP-10: what nobody can pay for is not written either; a result that is not used writes nothing.
    #[test]
    fn only_a_result_that_is_used_and_paid_writes() {
        let mut definition = definition(vec![step("a", &[])]);
        definition.budget = budget("1");
        let mut task = Task::of(definition);
        task.runs(0);
        task.orders();
        task.answers_with(task.fence(0), Some(charge("1", "2")), Some(text("[1]")));
        assert_eq!(task.gave_up(0), Some(Reason::Cost));
        let (mut other, late) = lost_on(1);
        other.chosen_for(0, 2, Some("1"));
        other.accepts(0);
        other.answers_with(late, None, Some(text("[1]")));
        let orders = [task.orders(), other.orders()].concat();
        assert!(!orders.iter().any(|order| matches!(order, Output::WriteContext { .. })), "{orders:?}");
    }
}
