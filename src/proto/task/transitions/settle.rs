//! What attempts are billed (AITP 7), and what a task within this one is billed of whose attempt nobody heard the end (AMP-8, threat T20).
//!
//! An attempt of a plain step is billed what its agent's answer says, used or not; one that was billed as a duplicate and whose result is
//! then used in another attempt of the same agent is billed as that alone. A task within this one is given money to spend, so one that
//! is lost without a word may have spent it all. As long as the next attempt may be made by the same agent, which finds the same task under
//! the same key, that much stays held back; once another agent is asked, or the subtask is over, it is billed, marked as *assumed*. When the
//! first agent is asked again, or turns out to have answered, that line is taken back. So each agent has its share once, whatever is lost.
//!
//! What an agent says that its task spent is all that it spent under the key of the subtask, in every attempt: it replaces what it said before.
//! After an output that broke its schema the key is another, and so are the accounts: what was spent before stays spent.

use rust_decimal::Decimal;

use super::super::definition::usual_currency;
use super::super::ledger::{Ledger, Line, SPENT_UNIT};
use super::super::state::{Part, Phase, State, number, place};
use crate::model::AgentId;
use crate::wire::task::{Charge, Fence};

/// An attempt of a task within this one that was lost without a word, while what it was given is still held back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::proto::task) struct Unsettled {
    /// Which.
    pub(in crate::proto::task) fence: Fence,
    /// Who made it.
    pub(in crate::proto::task) agent: AgentId,
}

fn is_delegated(state: &State, index: usize) -> bool {
    state.definition.subtasks.get(index).is_some_and(|subtask| subtask.task.is_some())
}

/// The attempt ended with a word on what it cost, or surely cost nothing.
pub(super) fn billed(state: &mut State, fence: Fence, agent: AgentId, charge: Option<&Charge>, duplicate: bool) {
    let index = place(fence.subtask);
    let is_delegated = is_delegated(state, index);
    // One agent's answers under one key are one piece of work.
    if let Some(part) = state.parts.get(index) {
        let is_same = |line: &Line| line.agent == agent && is_one(part, line.fence, fence);
        state.ledger.take_back(|line| is_same(line) && (is_delegated || line.duplicate));
    }
    if let Some(charge) = charge.filter(|charge| !is_delegated || !charge.total.is_zero()) {
        state.ledger.bill(Line { fence, agent, charge: charge.clone(), duplicate, assumed: false });
    }
    let Some(part) = state.parts.get_mut(index) else { return };
    // A late word on an attempt that was followed by others says nothing of them.
    part.unsettled = part.unsettled.filter(|unsettled| unsettled.agent != agent || (duplicate && unsettled.fence != fence));
}

/// An attempt is over: what was held back for it is given back, unless one before it may still spend that.
pub(super) fn released(state: &mut State, subtask: u32) {
    if state.part(subtask).is_some_and(|part| part.unsettled.is_none()) {
        state.ledger.release(subtask);
    }
}

/// The last attempt was lost, and nobody said what it cost.
pub(super) fn lost(state: &mut State, subtask: u32) {
    let index = place(subtask);
    if is_delegated(state, index)
        && !state.ledger.reserved(subtask).is_zero()
        && let Some(part) = state.parts.get_mut(index)
        && let Some(attempt) = part.attempts.last()
    {
        part.unsettled = Some(Unsettled { fence: Fence { subtask, attempt: attempt.number }, agent: attempt.agent });
    }
    released(state, subtask);
}

/// The last attempt ended with an output that is no use, and without a word on what it cost. Nobody will ask for it again.
pub(super) fn spent(state: &mut State, subtask: u32) {
    lost(state, subtask);
    let Some(part) = state.parts.get_mut(place(subtask)) else { return };
    if let Some(lost) = part.unsettled.take() {
        let held = state.ledger.release(subtask);
        assume(&mut state.ledger, part, lost, held);
    }
}

/// Whether two attempts are one piece of work, known under one key.
fn is_one(part: &Part, a: Fence, b: Fence) -> bool {
    a.subtask == b.subtask && part.redo(a.attempt) == part.redo(b.attempt)
}

/// The accounts as they are once `agent` is given the next attempt, and what is unsettled then. Nothing is reserved for it yet.
pub(super) fn followed(ledger: &mut Ledger, part: &Part, subtask: u32, agent: AgentId) -> Option<Unsettled> {
    let held = ledger.release(subtask);
    let unsettled = match part.unsettled {
        Some(lost) if lost.agent != agent => {
            assume(ledger, part, lost, held);
            None
        }
        same => same,
    };
    let next = Fence { subtask, attempt: u32::MAX };
    let taken = ledger.take_back(|line| line.assumed && line.agent == agent && is_one(part, line.fence, next));
    unsettled.or_else(|| taken.last().map(|line| Unsettled { fence: line.fence, agent }))
}

/// The accounts as a choice of `agent` would find them.
pub(super) fn foreseen(state: &State, subtask: u32, agent: AgentId) -> Option<Ledger> {
    let part = state.part(subtask).filter(|_| is_delegated(state, place(subtask)))?;
    let mut ledger = state.ledger.clone();
    followed(&mut ledger, part, subtask, agent);
    Some(ledger)
}

/// Whether more is spent than there is.
pub(super) fn is_overdrawn(state: &State) -> bool {
    state.ledger.remaining().is_some_and(|remaining| remaining < Decimal::ZERO)
}

/// Whether more will be spent than there is once this is billed.
pub(super) fn overdraws(state: &State, fence: Fence, charge: &Charge) -> bool {
    let Some(remaining) = state.ledger.remaining().filter(|_| state.ledger.currency() == Some(charge.currency)) else { return false };
    let part = state.part(fence.subtask).filter(|_| is_delegated(state, place(fence.subtask)));
    let last = part.and_then(|part| Some((part, part.attempts.last()?.agent)));
    let replaced = |line: &&Line| last.is_some_and(|(part, agent)| agent == line.agent && is_one(part, line.fence, fence));
    let replaced: Decimal = state.ledger.lines().iter().filter(replaced).map(|line| line.charge.total).sum();
    !charge.total.is_zero() && remaining.saturating_add(replaced) < charge.total
}

/// Who alone may be asked once more, because what another agent would have to be given is not there. As long as it is busy or away, the
/// subtask waits for it: to ask somebody else would only end the task for its cost, with the money still out.
pub(in crate::proto::task) fn only_payable(state: &State, index: usize) -> Option<AgentId> {
    let unsettled = state.parts.get(index)?.unsettled?;
    let held = state.ledger.reserved(unsettled.fence.subtask);
    let left = state.ledger.remaining()?.saturating_sub(held);
    (held > left).then_some(unsettled.agent)
}

/// The subtask is over, and so is its attempt, if one is under way.
pub(super) fn closed(state: &mut State, index: usize) {
    let is_delegated = is_delegated(state, index);
    let Some(part) = state.parts.get_mut(index) else { return };
    let subtask = number(index);
    let running = part.attempts.last().filter(|attempt| is_delegated && part.phase == Phase::Running && attempt.end.is_none());
    let running = running.map(|attempt| Unsettled { fence: Fence { subtask, attempt: attempt.number }, agent: attempt.agent });
    let unsettled = running.or(part.unsettled);
    part.unsettled = None;
    let held = state.ledger.release(subtask);
    if let Some(lost) = unsettled {
        assume(&mut state.ledger, part, lost, held);
    }
}

/// Bills all that an attempt was given, in place of what its agent said before.
fn assume(ledger: &mut Ledger, part: &Part, lost: Unsettled, held: Decimal) {
    let currency = ledger.budget().map(|budget| budget.currency).or_else(usual_currency);
    let Some(currency) = currency.filter(|_| !held.is_zero()) else { return };
    ledger.take_back(|line| line.agent == lost.agent && is_one(part, line.fence, lost.fence));
    let charge = Charge { units: held, unit: SPENT_UNIT.to_owned(), price: Decimal::ONE, currency, total: held };
    ledger.bill(Line { fence: lost.fence, agent: lost.agent, charge, duplicate: false, assumed: true });
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::super::machine::Input;
    use super::super::super::state::Status;
    use super::super::super::testing::{Task, agent, budget, charge, dec, definition, step};
    use super::*;
    use crate::model::{ErrorCode, Failure};
    use crate::wire::task::{Loss, Outcome, Reason};

    fn broken() -> Failure {
        Failure::new(ErrorCode::AgentFailed, "it broke")
    }

    fn too_slow() -> Failure {
        Failure::new(ErrorCode::Timeout, "too slow")
    }

    /// A step with so much to spend.
    fn plain(amount: &str) -> Task {
        let mut definition = definition(vec![step("a", &[])]);
        definition.budget = budget(amount);
        Task::of(definition)
    }

    /// A task within this one, which is given one dollar of so many.
    fn delegated(amount: &str) -> Task {
        let mut definition = definition(vec![step("a", &[])]);
        definition.budget = budget(amount);
        definition.subtasks[0].task = Some(json!({}));
        definition.subtasks[0].cost_limit = Some(dec("1"));
        Task::of(definition)
    }

    /// This agent has it, and is lost without a word.
    fn lost_on(task: &mut Task, number: u8, loss: Loss) {
        task.chosen_for(0, number, Some("1"));
        task.accepts(0);
        task.loses(0, loss, too_slow());
        task.waits(10_000);
    }

    /// What was billed: the attempt, the amount, whether it is assumed.
    fn lines(task: &Task) -> Vec<(u32, String, bool)> {
        let lines = task.machine.state().ledger().lines().iter();
        lines.map(|line| (line.fence.attempt, line.charge.total.normalize().to_string(), line.assumed)).collect()
    }

    fn money(task: &Task) -> (Decimal, Decimal) {
        let ledger = task.machine.state().ledger();
        (ledger.spent(), ledger.free().expect("a budget"))
    }

    fn line(attempt: u32, amount: &str, is_assumed: bool) -> (u32, String, bool) {
        (attempt, amount.to_owned(), is_assumed)
    }

    /// AITP-10: an answer that does not fit is paid for like any other, and what is left decides over the next attempt.
    #[test]
    fn an_answer_that_does_not_fit_is_billed() {
        let mut task = plain("1");
        task.chosen_for(0, 1, Some("0.5"));
        task.accepts(0);
        task.loses_for(0, Loss::InvalidOutput, broken(), Some(charge("1", "0.6")));
        assert_eq!((task.status(0), money(&task)), (Status::Retrying, (dec("0.6"), dec("0.4"))));
        task.waits(2_000);
        assert_eq!(task.choices().pop().expect("a choice").cost_max, Some(dec("0.4")));
        task.chosen_for(0, 2, Some("0.5"));
        assert_eq!(task.end(), Some((Outcome::Failed, Some(Reason::Cost))), "nobody can pay for another attempt");
        assert_eq!(lines(&task), [line(1, "0.6", false)]);
    }

    /// AITP-10: there is no retry on credit.
    #[test]
    fn a_failed_attempt_that_overdraws_the_budget_is_the_last() {
        let mut task = plain("1");
        task.chosen_for(0, 1, Some("0.5"));
        task.accepts(0);
        task.loses_for(0, Loss::InvalidOutput, broken(), Some(charge("1", "1.1")));
        assert_eq!((task.end(), task.gave_up(0)), (Some((Outcome::Failed, Some(Reason::Cost))), Some(Reason::Cost)));
        let before = lines(&task);
        task.restarts();
        assert_eq!((lines(&task), task.end()), (before, Some((Outcome::Failed, Some(Reason::Cost)))));
        // The failure was kept, and what follows from it was not.
        task.restarts_with(4);
        assert_eq!(task.end(), Some((Outcome::Failed, Some(Reason::Cost))));
    }

    /// Threat T20: what a lost agent was given is not given a second time: it is held back until another is asked, and billed then.
    #[test]
    fn what_was_lost_with_one_agent_is_billed_when_another_is_asked() {
        for loss in [Loss::AgentLost, Loss::AttemptTimeout] {
            let mut task = delegated("2.5");
            lost_on(&mut task, 1, loss);
            assert_eq!((lines(&task), money(&task)), (vec![], (dec("0"), dec("1.5"))), "held back");
            task.chosen_for(0, 2, Some("1"));
            assert_eq!((lines(&task), money(&task)), (vec![line(1, "1", true)], (dec("1"), dec("0.5"))));
            task.accepts(0);
            task.does_for(0, Some(charge("0.2", "1")));
            assert_eq!((lines(&task), money(&task)), (vec![line(1, "1", true), line(2, "0.2", false)], (dec("1.2"), dec("1.3"))));
            let before = lines(&task);
            task.restarts();
            assert_eq!(lines(&task), before);
        }
    }

    /// AMP-8, AITP-10: a task whose result was no use is begun anew under another key, also by the same agent: what it spent before stays
    /// spent, said or assumed, and what it says of the new one replaces nothing.
    #[test]
    fn work_that_is_done_anew_is_paid_anew() {
        for (said, first) in [(Some(charge("0.4", "1")), line(1, "0.4", false)), (None, line(1, "1", true))] {
            let mut task = delegated("3");
            task.chosen_for(0, 1, Some("1"));
            task.accepts(0);
            let spoiled = task.fence(0);
            task.loses_for(0, Loss::InvalidOutput, broken(), said);
            assert_eq!(lines(&task), std::slice::from_ref(&first));
            task.waits(2_000);
            let choose = task.choices().pop().expect("a choice");
            assert_eq!((choose.redo, choose.only), (1, None), "nobody knows the new key");
            task.chosen_for(0, 1, Some("1"));
            task.accepts(0);
            task.restarts();
            assert_eq!(task.choices().pop().expect("a choice").redo, 1, "a start repeats the key");
            task.chosen_for(0, 1, Some("1"));
            task.accepts(0);
            task.answers(spoiled, Some(charge("0.4", "1")));
            task.does_for(0, Some(charge("0.2", "1")));
            let late = if first.2 { line(1, "0.4", false) } else { first };
            assert_eq!((task.status(0), lines(&task)), (Status::Success, vec![late, line(3, "0.2", false)]));
            let before = lines(&task);
            task.restarts();
            assert_eq!(lines(&task), before);
        }
    }

    /// AMP-8: the same agent finds the same task under the same key, so what it says in the end is all there is to pay.
    #[test]
    fn the_same_agent_is_billed_once_whatever_was_lost_with_it() {
        let mut task = delegated("1");
        lost_on(&mut task, 1, Loss::AttemptTimeout);
        assert_eq!(task.choices().pop().expect("a choice").only, Some(agent(1)), "nobody else can be paid");
        task.chosen_for(0, 1, Some("1"));
        task.rejects(0, ErrorCode::Busy);
        let choose = task.choices().pop().expect("a choice");
        assert_eq!((choose.only, choose.refused_by), (Some(agent(1)), vec![agent(1)]), "it is waited for");
        task.unavailable(0, ErrorCode::Busy);
        assert_eq!((task.end(), task.events().pop()), (None, Some("deferred")));
        task.waits(1_000);
        assert_eq!(task.choices().pop().expect("a choice").only, Some(agent(1)));
        assert_eq!(money(&task), (dec("0"), dec("0")), "it may still spend what it was given at first");
        task.chosen_for(0, 1, Some("1"));
        task.accepts(0);
        task.does_for(0, Some(charge("0.3", "1")));
        assert_eq!((lines(&task), money(&task)), (vec![line(3, "0.3", false)], (dec("0.3"), dec("0.7"))));
        assert_eq!(task.status(0), Status::Success);
    }

    /// Threat T20: a delegated budget is not spent again by each retry.
    #[test]
    fn a_retry_that_would_spend_the_share_a_second_time_fails_for_its_cost() {
        let mut task = delegated("1.9");
        lost_on(&mut task, 1, Loss::AgentLost);
        task.chosen_for(0, 2, Some("1"));
        assert_eq!((task.gave_up(0), lines(&task)), (Some(Reason::Cost), vec![line(1, "1", true)]));
        assert_eq!(money(&task), (dec("1"), dec("0.9")));
    }

    /// Threat T20: who was given up and is asked again has not been given its share twice.
    #[test]
    fn an_agent_that_is_asked_again_takes_up_what_it_was_given() {
        let mut task = delegated("2");
        lost_on(&mut task, 1, Loss::AttemptTimeout);
        lost_on(&mut task, 2, Loss::AttemptTimeout);
        assert_eq!(lines(&task), [line(1, "1", true)]);
        task.chosen_for(0, 1, Some("1"));
        assert_eq!((lines(&task), money(&task)), (vec![line(2, "1", true)], (dec("1"), dec("0"))));
        task.rejects(0, ErrorCode::Busy);
        assert_eq!(money(&task), (dec("1"), dec("0")), "its first attempt is still open");
        task.takes(Input::Cancel);
        assert_eq!(lines(&task), [line(2, "1", true), line(1, "1", true)]);
    }

    /// AMP-8: what is under way when its task ends may have spent all that it was given.
    #[test]
    fn what_runs_when_the_task_ends_is_billed_by_assumption() {
        let mut task = delegated("2");
        task.chosen_for(0, 1, Some("1"));
        task.accepts(0);
        task.takes(Input::Cancel);
        assert_eq!((lines(&task), money(&task)), (vec![line(1, "1", true)], (dec("1"), dec("1"))));
        let mut task = delegated("2");
        task.chosen_for(0, 1, Some("1"));
        task.takes(Input::Cancel);
        assert_eq!(lines(&task), [], "nobody has begun");
        let mut task = delegated("2");
        lost_on(&mut task, 1, Loss::AgentLost);
        task.takes(Input::Cancel);
        assert_eq!((lines(&task), money(&task)), (vec![line(1, "1", true)], (dec("1"), dec("1"))));
        assert_eq!(task.machine.state().ledger().currency(), budget("1").map(|budget| budget.currency));
    }

    /// AMP-8: a task that failed says what it spent, and that is what it is billed; one that has spent nothing costs nothing.
    #[test]
    fn a_task_that_failed_is_billed_what_it_says() {
        let mut task = delegated("2");
        task.chosen_for(0, 1, Some("1"));
        task.accepts(0);
        task.loses_for(0, Loss::AgentError, broken(), Some(charge("0.3", "1")));
        assert_eq!((lines(&task), money(&task)), (vec![line(1, "0.3", false)], (dec("0.3"), dec("1.7"))));
        task.waits(2_000);
        task.chosen_for(0, 1, Some("1"));
        task.accepts(0);
        // All that it spent under the key, so what it said before is part of it.
        task.loses_for(0, Loss::AgentError, broken(), Some(charge("0.4", "1")));
        assert_eq!(lines(&task), [line(2, "0.4", false)]);
        let mut task = delegated("2");
        task.chosen_for(0, 1, Some("1"));
        task.accepts(0);
        task.loses_for(0, Loss::AgentError, broken(), Some(charge("0", "1")));
        assert_eq!((lines(&task), money(&task)), (vec![], (dec("0"), dec("2"))));
    }

    /// AITP-10: who was given up and answers after all is billed what it says, in place of what was assumed.
    #[test]
    fn a_late_answer_takes_the_place_of_what_was_assumed() {
        let mut task = delegated("2.5");
        lost_on(&mut task, 1, Loss::AttemptTimeout);
        let late = task.fence(0);
        task.chosen_for(0, 2, Some("1"));
        task.answers(late, Some(charge("0.1", "1")));
        assert_eq!((lines(&task), money(&task)), (vec![line(1, "0.1", false)], (dec("0.1"), dec("1.4"))));
        let mut task = delegated("2.5");
        lost_on(&mut task, 1, Loss::AttemptTimeout);
        task.answers(task.fence(0), Some(charge("0.1", "1")));
        assert_eq!((lines(&task), money(&task)), (vec![line(1, "0.1", false)], (dec("0.1"), dec("2.4"))), "before anybody else is asked");
    }

    /// F1: the home node went down while another ran its task: the same agent is asked first, and where it is gone, its share is with it.
    #[test]
    fn a_restart_gives_no_share_away_twice() {
        let mut task = delegated("2.5");
        task.chosen_for(0, 1, Some("1"));
        task.accepts(0);
        task.restarts();
        assert_eq!((money(&task), task.choices().pop().expect("a choice").prefer), ((dec("0"), dec("1.5")), Some(agent(1))));
        task.chosen_for(0, 2, Some("1"));
        assert_eq!((lines(&task), money(&task)), (vec![line(1, "1", true)], (dec("1"), dec("0.5"))));
    }
}
