//! The table of states, the fallbacks and the money, row by row, in virtual time (design/tasks.md, "States").

use std::time::Duration;

use rust_decimal::Decimal;
use serde_json::json;

use super::definition::{Backoff, Definition, OnFailure, OnOffline, OnTimeout, OnUnavailable};
use super::machine::{Finish, Input, Machine, Output};
use super::state::{ATTEMPTS_KEPT_MAX, Phase, Status};
use super::testing::{BEGIN, Task, after_ms, agent, budget, charge, dec, definition, node, state, step, text};
use super::view;
use crate::model::{AgentId, ErrorCode, Failure, TaskId};
use crate::proto::invocation::budget::Turn;
use crate::wire::task::{Bill, Event, Fence, Loss, Outcome, Reason};

const BROKEN: Loss = Loss::AgentError;

fn one() -> Definition {
    definition(vec![step("a", &[])])
}

/// `a`, then `b`.
fn two() -> Definition {
    definition(vec![step("a", &[]), step("b", &[0])])
}

fn never() -> Definition {
    let mut definition = one();
    definition.subtasks[0].retry.never = true;
    definition
}

fn degrading(mut definition: Definition) -> Definition {
    definition.fallback.on_failure = OnFailure::Degrade;
    definition
}

fn failed(failure: Failure) -> Finish {
    Finish::Failed { loss: BROKEN, failure, charge: None }
}

fn offered() -> Input {
    Input::Offered("echo".parse().expect("a capability"))
}

// The table of states.

/// AITP-6: PENDING -> EXECUTING on Accepted.
#[test]
fn a_pending_subtask_executes_once_an_agent_accepted_it() {
    let mut task = Task::of(one());
    task.chosen(0, 1);
    assert_eq!(task.status(0), Status::Pending);
    task.accepts(0);
    assert_eq!((task.status(0), task.events()), (Status::Executing, vec!["dispatched", "accepted"]));
}

/// AITP-6: PENDING -> PENDING on Rejected and OfferExpired: the next best is asked at once, and no retry is used up.
#[test]
fn a_pending_subtask_that_is_refused_stays_pending_and_the_next_best_is_asked() {
    let mut task = Task::of(one());
    task.chosen(0, 1);
    task.orders();
    task.rejects(0, ErrorCode::Busy);
    assert_eq!((task.status(0), task.part(0).retries), (Status::Pending, 0));
    assert_eq!(task.choices()[0].refused_by, [agent(1)]);
    task.chosen(0, 2);
    let expired = Finish::Rejected { expired: true, failure: Failure::new(ErrorCode::Timeout, "no word in 5 s") };
    task.takes(Input::Finished(task.fence(0), expired));
    assert_eq!((task.status(0), task.part(0).retries), (Status::Pending, 0));
    assert_eq!(task.choices()[0].refused_by.len(), 2);
    assert_eq!(task.events(), ["dispatched", "rejected", "dispatched", "rejected"]);
}

/// AITP-6: PENDING -> FAILED on DEADLINE.
#[test]
fn a_pending_subtask_fails_with_the_deadline() {
    let mut definition = one();
    definition.deadline = Some(after_ms(5_000));
    let mut task = Task::of(definition);
    task.unavailable(0, ErrorCode::CapabilityNotFound);
    task.waits(5_000);
    assert_eq!((task.status(0), task.gave_up(0)), (Status::Failed, Some(Reason::Deadline)));
    assert_eq!(task.end(), Some((Outcome::Failed, Some(Reason::Deadline))));
    let failure = task.machine.state().end().and_then(|end| end.failure.clone()).expect("a failure");
    assert_eq!((failure.code, &failure.details["waiting"]), (ErrorCode::Timeout, &json!(["a: nobody"])));
}

/// AITP-6: PENDING -> FAILED on NO_CAPABILITY, where the author does not want to wait.
#[test]
fn a_pending_subtask_fails_where_nobody_offers_it_and_nobody_shall_wait() {
    let mut definition = one();
    definition.fallback.on_unavailable = OnUnavailable::Fail;
    let mut task = Task::of(definition);
    task.unavailable(0, ErrorCode::CapabilityNotFound);
    assert_eq!((task.status(0), task.gave_up(0)), (Status::Failed, Some(Reason::NoCapability)));
    assert_eq!(task.end(), Some((Outcome::Failed, Some(Reason::NoCapability))));
}

/// AITP-6: PENDING -> FAILED on COST.
#[test]
fn a_pending_subtask_fails_where_the_budget_does_not_cover_it() {
    let mut definition = one();
    definition.budget = budget("1");
    definition.fallback.cost_notification = Some("Task exceeded budget".to_owned());
    let mut task = Task::of(definition);
    task.chosen_for(0, 1, Some("1.01"));
    assert_eq!((task.status(0), task.gave_up(0)), (Status::Failed, Some(Reason::Cost)));
    let failure = task.machine.state().end().and_then(|end| end.failure.clone()).expect("a failure");
    assert!(failure.code == ErrorCode::OverBudget && failure.message.starts_with("Task exceeded budget: "), "{failure}");
}

/// AITP-6: PENDING and EXECUTING -> FAILED on CANCELLED; what runs is withdrawn.
#[test]
fn all_subtasks_fail_when_the_task_is_cancelled_and_calls_are_withdrawn() {
    let mut task = Task::of(two());
    task.runs(0);
    task.orders();
    task.takes(Input::Cancel);
    assert_eq!((task.gave_up(0), task.gave_up(1)), (Some(Reason::Cancelled), Some(Reason::Cancelled)));
    assert_eq!(task.orders(), [Output::Withdraw(task.fence(0)), Output::Ended]);
    assert_eq!(task.end(), Some((Outcome::Cancelled, Some(Reason::Cancelled))));
    assert_eq!(task.part(0).attempts[0].end.as_ref().expect("it ended").as_str(), "withdrawn");
    task.events();
    task.takes(Input::Cancel);
    assert!(task.events().is_empty(), "it ends once");
}

/// AITP-6, MAOP-7: PENDING -> FAILED on UPSTREAM_FAILED, where the rest goes on.
#[test]
fn a_pending_subtask_fails_with_the_one_that_it_needs() {
    let mut task = Task::of(degrading(definition(vec![step("a", &[]), step("b", &[0]), step("c", &[1]), step("d", &[])])));
    task.runs(0);
    task.fails_for_good(0);
    assert_eq!((task.gave_up(1), task.gave_up(2)), (Some(Reason::UpstreamFailed), Some(Reason::UpstreamFailed)));
    assert_eq!((task.phase(3), task.end()), (Phase::Choosing, None));
}

/// AITP-6: EXECUTING -> COMPLETED -> SUCCESS on ResultReceived and Validated; then what waits for it is chosen for.
#[test]
fn an_executing_subtask_is_completed_by_a_result_and_a_success_by_a_valid_one() {
    let mut task = Task::of(two());
    task.runs(0);
    task.orders();
    task.does(0);
    assert_eq!(task.events(), ["dispatched", "accepted", "result_received", "validated"]);
    assert_eq!((task.status(0), task.choices()[0].subtask), (Status::Success, 1));
    let at = task.journal.iter().position(|(_, event)| matches!(event, Event::ResultReceived { .. })).expect("a result");
    let mut state = super::testing::state(two());
    task.journal[1..=at].iter().for_each(|(at, event)| state.apply(event, *at));
    assert_eq!(state.parts()[0].status, Status::Completed);
}

/// AITP-6: COMPLETED -> RETRYING on InvalidOutput, though a wrong output is no failure that its sender calls retryable.
#[test]
fn an_invalid_output_is_retried_while_retries_are_left() {
    let mut task = Task::of(one());
    for _ in 0..3 {
        task.runs(0);
        task.loses(0, Loss::InvalidOutput, Failure::new(ErrorCode::InvalidSchema, "no `x`"));
        assert_eq!(task.status(0), Status::Retrying);
        task.waits(10_000);
    }
    task.runs(0);
    task.loses(0, Loss::InvalidOutput, Failure::new(ErrorCode::InvalidSchema, "no `x`"));
    assert_eq!((task.status(0), task.gave_up(0)), (Status::Failed, Some(Reason::RetriesExhausted)));
}

/// AITP-6: EXECUTING -> RETRYING on AgentError(retryable), AgentLost and AttemptTimeout.
#[test]
fn an_executing_subtask_is_retried_whatever_it_was_lost_by() {
    for loss in [Loss::AgentError, Loss::AgentLost, Loss::AttemptTimeout] {
        let mut task = Task::of(one());
        task.runs(0);
        task.loses(0, loss, Failure::new(ErrorCode::AgentFailed, "gone"));
        assert_eq!((task.status(0), task.part(0).retries), (Status::Retrying, 1), "{loss:?}");
    }
}

/// AITP-6: RETRYING -> RETRYING on Rejected; RETRYING -> EXECUTING on Accepted, by another agent than the one that failed.
#[test]
fn a_retrying_subtask_executes_again_and_the_agent_that_failed_comes_last() {
    let mut task = Task::of(one());
    task.runs(0);
    task.fails(0);
    task.orders();
    task.waits(1_100);
    let choice = task.choices().remove(0);
    assert_eq!((choice.failed_on, choice.refused_by), (vec![agent(1)], vec![]));
    task.chosen(0, 2);
    task.rejects(0, ErrorCode::Busy);
    assert_eq!((task.status(0), task.part(0).retries), (Status::Retrying, 1));
    task.chosen(0, 3);
    task.accepts(0);
    assert_eq!((task.status(0), task.fence(0).attempt), (Status::Executing, 3));
}

/// AITP-6: EXECUTING -> FAILED on RetriesExhausted and on NonRetryable.
#[test]
fn an_executing_subtask_fails_for_good_once_nothing_is_left_to_try() {
    let mut task = Task::of(one());
    task.runs(0);
    task.fails_for_good(0);
    assert_eq!((task.gave_up(0), task.part(0).attempts.len()), (Some(Reason::NonRetryable), 1));
    assert_eq!(task.events(), ["dispatched", "accepted", "attempt_failed", "subtask_failed", "ended"]);

    let mut definition = one();
    definition.subtasks[0].retry.retries_max = 0;
    let mut task = Task::of(definition);
    task.runs(0);
    task.fails(0);
    assert_eq!(task.gave_up(0), Some(Reason::RetriesExhausted));
}

/// AITP-6: RETRYING -> FAILED on NO_CAPABILITY.
#[test]
fn a_retrying_subtask_fails_where_nobody_is_left_and_nobody_shall_wait() {
    let mut definition = one();
    definition.fallback.on_unavailable = OnUnavailable::Fail;
    let mut task = Task::of(definition);
    task.runs(0);
    task.fails(0);
    task.waits(1_100);
    task.unavailable(0, ErrorCode::CapabilityNotFound);
    assert_eq!(task.gave_up(0), Some(Reason::NoCapability));
}

/// AITP-6: subtasks that need nothing of each other run side by side, the most urgent first, and not more than there are places.
#[test]
fn independent_subtasks_run_in_parallel_in_the_order_of_their_urgency() {
    let mut steps: Vec<_> = (0..100).map(|index| step(&format!("s{index}"), &[])).collect();
    steps.iter_mut().enumerate().for_each(|(index, step)| step.order = 100 - u32::try_from(index).expect("few"));
    let mut task = Task::of(definition(steps));
    let choices: Vec<u32> = task.choices().iter().map(|choose| choose.subtask).collect();
    assert_eq!(choices, (36..100).rev().collect::<Vec<u32>>());
    task.runs(99);
    task.does(99);
    assert_eq!(task.choices()[0].subtask, 35);
}

// Retries.

/// The pauses before each of three retries.
fn pauses_ms(backoff: Backoff) -> Vec<u64> {
    let mut definition = one();
    definition.subtasks[0].retry.backoff = backoff;
    let mut task = Task::of(definition);
    assert_eq!(task.phase(0), Phase::Choosing, "the first attempt is made at once");
    let mut pauses = Vec::new();
    for _ in 0..3 {
        task.runs(0);
        task.fails(0);
        let Phase::Paused { until, .. } = task.phase(0) else { panic!("{:?}", task.phase(0)) };
        let pause = until.as_ms() - task.now.as_ms();
        task.orders();
        task.waits(pause - 1);
        assert!(task.orders().is_empty(), "not a millisecond earlier");
        task.waits(1);
        assert_eq!(task.choices().len(), 1);
        pauses.push(pause);
    }
    task.runs(0);
    task.fails(0);
    assert_eq!(task.gave_up(0), Some(Reason::RetriesExhausted));
    pauses
}

// What is not kept.

/// AMP-8: what another node says of the progress of its task is shown while it runs, and never kept.
#[test]
fn progress_of_a_task_within_is_shown_and_not_kept() {
    let mut definition = definition(vec![step("a", &[]), step("b", &[])]);
    definition.subtasks[0].task = Some(json!({}));
    let mut task = Task::of(definition);
    task.runs(0);
    task.runs(1);
    task.events();
    let percent = |task: &Task| view::percent(task.machine.state());
    let row =
        |task: &Task| view::status(task.machine.state(), node(1), false, task.now)["progress"]["steps"][0]["progress_percentage"].clone();
    assert_eq!((percent(&task), row(&task)), (0, json!(0)));
    task.takes(Input::Progress(task.fence(0), 50));
    assert_eq!((percent(&task), row(&task), task.events()), (25, json!(50), vec![]));
    for (fence, percent) in [
        (task.fence(1), 90),
        (Fence { subtask: 0, attempt: 9 }, 90),
        (Fence { subtask: 9, attempt: 1 }, 90),
        (task.fence(0), 40),
        (task.fence(0), 255),
    ] {
        task.takes(Input::Progress(fence, percent));
    }
    assert_eq!((percent(&task), row(&task), task.events()), (50, json!(100), vec![]), "the last word counts, and no more than all");
    task.fails(0);
    assert_eq!((percent(&task), row(&task)), (0, json!(0)), "an attempt that failed has come nowhere");
    task.waits(1_100);
    task.runs(0);
    assert_eq!(row(&task), 0, "the next one begins anew");
    task.takes(Input::Progress(task.fence(0), 60));
    task.restarts();
    assert_eq!(row(&task), 0);
    task.runs(0);
    task.does(0);
    assert_eq!((percent(&task), row(&task)), (50, json!(100)));
}

/// F12: a retry for which there is no room waits, longer each time and not for ever, and nothing fails for it.
#[test]
fn a_retry_that_is_put_off_is_made_when_there_is_room() {
    let mut task = Task::of(one());
    assert_eq!(task.choices()[0].turn, Turn::First);
    task.chosen(0, 1);
    task.rejects(0, ErrorCode::Busy);
    assert_eq!(task.choices()[0].turn, Turn::Again, "nobody has begun");
    task.runs(0);
    task.fails(0);
    task.waits(1_100);
    task.events();
    let mut last_ms = 0;
    for round in 0..20 {
        assert_eq!(task.choices().len(), 1, "round {round}");
        task.takes(Input::PutOff(0));
        let Phase::Paused { until, deferred: false } = task.phase(0) else { panic!("{:?}", task.phase(0)) };
        let pause_ms = u64::try_from(until.saturating_since(task.now).as_millis()).expect("short");
        assert!((500..=16_000).contains(&pause_ms), "round {round}: {pause_ms} ms");
        last_ms = pause_ms;
        let told = view::status(task.machine.state(), node(1), false, task.now)["progress"]["steps"][0]["waiting_for"].to_string();
        assert!(told.contains("routing.retry_budget"), "{told}");
        task.waits(pause_ms);
    }
    assert!(last_ms >= 8_000, "{last_ms} ms");
    let choices = task.choices();
    assert_eq!((choices[0].turn, task.status(0), task.events()), (Turn::Retry, Status::Retrying, vec![]));
    for expected in [Turn::Again, Turn::Retry] {
        let mut lost = Task::of(one());
        lost.runs(0);
        if expected == Turn::Retry {
            lost.fails(0);
            lost.waits(1_100);
            lost.runs(0);
        }
        lost.loses(0, Loss::AgentLost, Failure::new(ErrorCode::Unavailable, "gone"));
        lost.waits(2_200);
        assert_eq!(lost.choices().pop().map(|choose| choose.turn), Some(expected), "the first loss of an agent moves its work at once");
    }
    task.takes(Input::PutOff(7));
    task.runs(0);
    task.takes(Input::PutOff(0));
    task.does(0);
    assert_eq!(task.end(), Some((Outcome::Success, None)), "whoever runs is not put off");
}

/// A fault of this node ends a subtask, since nothing else would.
#[test]
fn work_that_breaks_fails_its_subtask() {
    let broken = || Input::Broken(0, Failure::new(ErrorCode::Internal, "a fault").retryable(false));
    let mut choosing = Task::of(one());
    let mut sent = Task::of(one());
    sent.chosen(0, 1);
    let mut running = Task::of(one());
    running.runs(0);
    for task in [&mut choosing, &mut sent, &mut running] {
        task.takes(broken());
        assert_eq!((task.end(), task.gave_up(0)), (Some((Outcome::Failed, Some(Reason::NonRetryable))), Some(Reason::NonRetryable)));
    }
    let mut paused = Task::of(one());
    paused.runs(0);
    paused.fails(0);
    paused.takes(broken());
    assert_eq!(paused.status(0), Status::Retrying, "nothing works on it");
}

/// AITP-8: attempt 1 at once, then after 1, 2 and 4 s; chance makes a pause longer, by a tenth at most, and never shorter.
#[test]
fn pauses_grow_as_the_author_chose() {
    for (backoff, expected) in
        [(Backoff::Exponential, [1_000, 2_000, 4_000]), (Backoff::Linear, [1_000, 2_000, 3_000]), (Backoff::Fixed, [1_000; 3])]
    {
        let pauses = pauses_ms(backoff);
        let fit = pauses.iter().zip(expected).all(|(pause, least)| (least..=least + least / 10).contains(pause));
        assert!(fit && pauses.len() == 3, "{backoff:?}: {pauses:?}");
        assert_ne!(pauses, expected, "steps that failed together do not come back together");
    }
}

/// AITP-9: an attempt that took too long is made again with more time, which is given once.
#[test]
fn a_timeout_extends_the_attempts_after_it() {
    let mut task = Task::of(one());
    let mut spans = Vec::new();
    for _ in 0..4 {
        task.orders();
        task.chosen(0, 1);
        spans.push(task.sends()[0].close_within.as_secs());
        task.accepts(0);
        task.loses(0, Loss::AttemptTimeout, Failure::new(ErrorCode::Timeout, "too slow"));
        task.waits(5_000);
    }
    assert_eq!((spans, task.gave_up(0)), (vec![10, 20, 20, 20], Some(Reason::RetriesExhausted)));
}

/// AITP-9: the other two words for it: the same time again, and none.
#[test]
fn a_timeout_is_retried_with_the_same_time_or_not_at_all() {
    let mut same = one();
    same.fallback.on_timeout = OnTimeout::Retry;
    let mut task = Task::of(same);
    task.runs(0);
    task.loses(0, Loss::AttemptTimeout, Failure::new(ErrorCode::Timeout, "too slow"));
    task.waits(1_100);
    task.orders();
    task.chosen(0, 1);
    assert_eq!(task.sends()[0].close_within.as_secs(), 10);

    let mut none = one();
    none.fallback.on_timeout = OnTimeout::Fail;
    let mut task = Task::of(none);
    task.runs(0);
    task.loses(0, Loss::AttemptTimeout, Failure::new(ErrorCode::Timeout, "too slow"));
    assert_eq!(task.gave_up(0), Some(Reason::NonRetryable));
}

/// AITP-2: `retry: never` begins only once the acceptance is durable.
#[test]
fn who_must_not_begin_twice_begins_when_the_disk_knows() {
    let mut task = Task::of(never());
    task.orders();
    task.chosen(0, 1);
    assert!(task.sends()[0].wait);
    task.disk_stalls();
    task.accepts(0);
    assert_eq!(task.orders(), []);
    task.disk_keeps(task.journal.len());
    assert_eq!(task.orders(), [Output::Begin(task.fence(0))]);
}

/// AITP-6: EXECUTING -> FAILED on UNKNOWN_OUTCOME: lost, too slow, or lost sight of.
#[test]
fn what_must_not_be_done_twice_has_an_unknown_outcome_once_it_is_lost() {
    let lost: [fn(&mut Task); 3] = [
        |task| task.loses(0, Loss::AgentLost, Failure::new(ErrorCode::Unavailable, "gone")),
        |task| task.loses(0, Loss::AttemptTimeout, Failure::new(ErrorCode::Timeout, "too slow")),
        Task::restarts,
    ];
    for lose in lost {
        let mut task = Task::of(never());
        task.runs(0);
        lose(&mut task);
        assert_eq!(task.end(), Some((Outcome::Failed, Some(Reason::UnknownOutcome))));
        let failure = &task.part(0).failure.as_ref().expect("a failure").1;
        assert!(!failure.retryable && failure.details["outcome"] == "unknown", "{failure}");
    }
}

/// AITP-6: under `retry: never` an agent that had not accepted has not begun, so another one is asked.
#[test]
fn what_was_not_accepted_has_not_begun() {
    let mut task = Task::of(never());
    task.chosen(0, 1);
    task.loses(0, Loss::AgentLost, Failure::new(ErrorCode::Unavailable, "gone"));
    assert_eq!((task.status(0), task.phase(0)), (Status::Pending, Phase::Choosing));
    task.chosen(0, 2);
    task.restarts();
    assert_eq!((task.phase(0), task.choices()[0].prefer), (Phase::Choosing, Some(agent(2))));
    task.chosen(0, 2);
    task.accepts(0);
    task.fails(0);
    assert_eq!(task.gave_up(0), Some(Reason::NonRetryable), "it began, and failed");
}

/// AITP-6: an agent that accepted and then refuses was lost; the subtask does not wait for it for ever.
#[test]
fn who_accepted_cannot_refuse() {
    let mut task = Task::of(one());
    task.runs(0);
    task.rejects(0, ErrorCode::Busy);
    assert_eq!((task.status(0), task.part(0).retries, task.phase(0)), (Status::Retrying, 1, Phase::Choosing));
}

// Fallbacks.

/// AITP-9: on_agent_offline: SELECT_NEXT_BEST.
#[test]
fn an_agent_that_is_gone_is_replaced_by_the_next_best() {
    let mut task = Task::of(one());
    task.chosen(0, 1);
    task.orders();
    task.rejects(0, ErrorCode::Unavailable);
    assert_eq!((task.choices()[0].refused_by.clone(), task.end()), (vec![agent(1)], None));
    task.runs(0);
    task.loses(0, Loss::AgentLost, Failure::new(ErrorCode::Unavailable, "gone"));
    assert_eq!(task.choices().pop().expect("a choice").failed_on, [agent(1)], "at once: nobody has to recover");
}

/// AITP-9: on_agent_offline: FAIL_AND_NOTIFY, before and after it accepted.
#[test]
fn an_agent_that_is_gone_fails_the_subtask_where_its_author_says_so() {
    for accepted in [false, true] {
        let mut definition = one();
        definition.fallback.on_agent_offline = OnOffline::Fail;
        let mut task = Task::of(definition);
        task.chosen(0, 1);
        if accepted {
            task.accepts(0);
            task.loses(0, Loss::AgentLost, Failure::new(ErrorCode::Unavailable, "gone"));
        } else {
            task.rejects(0, ErrorCode::Unavailable);
        }
        assert_eq!(task.gave_up(0), Some(Reason::NonRetryable));
    }
}

/// AITP-9: on_capability_unavailable: DEFER, for five minutes or until somebody offers it.
#[test]
fn a_capability_that_nobody_offers_is_looked_for_again_later_or_when_somebody_offers_it() {
    let mut task = Task::of(one());
    task.unavailable(0, ErrorCode::CapabilityNotFound);
    task.orders();
    task.waits(299_999);
    assert_eq!((task.orders(), task.status(0)), (vec![], Status::Pending));
    task.waits(1);
    assert_eq!(task.choices().len(), 1);
    task.unavailable(0, ErrorCode::CapabilityNotFound);
    task.takes(Input::Offered("other".parse().expect("a capability")));
    assert!(task.choices().is_empty());
    task.takes(offered());
    assert_eq!(task.choices().len(), 1);
    assert_eq!(task.events(), ["deferred", "deferred"]);
}

/// AITP-9: agents that all refuse are asked again after pauses that grow to half a minute, and never counted as retries.
#[test]
fn a_subtask_that_all_refuse_is_tried_again_ever_more_slowly_and_forgets_old_refusals() {
    let mut task = Task::of(one());
    let mut pauses = Vec::new();
    for _ in 0..100 {
        task.chosen(0, 1);
        task.rejects(0, ErrorCode::Busy);
        task.unavailable(0, ErrorCode::CapabilityNotFound);
        let Phase::Paused { until, .. } = task.phase(0) else { panic!("{:?}", task.phase(0)) };
        pauses.push(until.as_ms() - task.now.as_ms());
        task.waits(30_000);
    }
    assert_eq!((&pauses[..3], pauses[99], task.part(0).retries), (&[500, 1_000, 2_000][..], 30_000, 0));
    assert_eq!((task.part(0).attempts.len(), task.fence(0).attempt), (ATTEMPTS_KEPT_MAX, 100));
}

/// AITP-9: an input that nobody can take is not offered to everybody.
#[test]
fn a_faulty_input_fails_at_once() {
    let mut task = Task::of(one());
    task.unavailable(0, ErrorCode::InvalidSchema);
    assert_eq!(task.gave_up(0), Some(Reason::InvalidInput));
    let mut task = Task::of(one());
    task.chosen(0, 1);
    task.rejects(0, ErrorCode::InvalidRequest);
    assert_eq!(task.gave_up(0), Some(Reason::NonRetryable));
}

// Money.

fn paid(amount: &str, steps: usize) -> Task {
    let mut definition = definition((0..steps).map(|index| step(&format!("s{index}"), &[])).collect());
    definition.budget = budget(amount);
    Task::of(definition)
}

/// AITP-10: what one step holds back another waits for, and gets when it is settled for less.
#[test]
fn a_step_waits_for_money_that_others_hold_back() {
    let mut task = paid("1", 2);
    task.chosen_for(0, 1, Some("0.7"));
    task.chosen_for(1, 1, Some("0.6"));
    assert_eq!((task.phase(0), task.phase(1)), (Phase::Sent, Phase::Held));
    task.orders();
    task.does_for(0, Some(charge("1", "0.3")));
    let choice = task.choices().remove(0);
    assert_eq!((choice.subtask, choice.cost_max), (1, Some(dec("0.7"))));
    task.chosen_for(1, 1, Some("0.6"));
    assert_eq!(task.phase(1), Phase::Sent);
}

/// AITP-10: an attempt that was refused or failed costs nothing, so it holds nothing back while the next one waits.
#[test]
fn an_attempt_that_came_to_nothing_gives_its_money_back() {
    let mut task = paid("1", 2);
    for lose in [|task: &mut Task| task.rejects(0, ErrorCode::Busy), |task: &mut Task| task.fails(0)] {
        task.chosen_for(0, 1, Some("1"));
        assert_eq!(task.machine.state().ledger().free(), Some(dec("0")));
        lose(&mut task);
        assert_eq!(task.machine.state().ledger().free(), Some(dec("1")));
    }
    task.chosen_for(1, 1, Some("1"));
    assert_eq!(task.phase(1), Phase::Sent);
}

/// AITP-9: on_cost_exceeded: FAIL_AND_NOTIFY, when nothing is left that could be given back.
#[test]
fn a_step_that_nobody_can_pay_for_fails() {
    let mut task = paid("1", 2);
    task.chosen_for(0, 1, Some("0.7"));
    task.chosen_for(1, 1, Some("0.6"));
    task.does_for(0, Some(charge("1", "0.7")));
    task.chosen_for(1, 1, Some("0.6"));
    assert_eq!((task.gave_up(1), task.end()), (Some(Reason::Cost), Some((Outcome::Failed, Some(Reason::Cost)))));
    let mut task = paid("1", 1);
    task.unavailable(0, ErrorCode::OverBudget);
    assert_eq!(task.gave_up(0), Some(Reason::Cost), "the shell found nobody who is cheap enough");
}

/// AITP-10: an agent that bills more than is left fails its step; its work is billed once, however often it answers.
#[test]
fn an_agent_that_overdraws_the_budget_is_billed_and_its_output_not_used() {
    let mut definition = two();
    definition.budget = budget("1");
    let mut task = Task::of(definition);
    task.chosen_for(0, 1, Some("0.1"));
    task.accepts(0);
    task.does_for(0, Some(charge("2", "0.75")));
    assert_eq!((task.gave_up(0), task.part(0).output.clone()), (Some(Reason::Cost), None));
    let fence = task.fence(0);
    task.answers(fence, Some(charge("2", "0.75")));
    let ledger = task.machine.state().ledger();
    assert_eq!((ledger.spent(), ledger.remaining(), ledger.lines().len()), (dec("1.5"), Some(dec("-0.5")), 1));
    assert_eq!(task.end(), Some((Outcome::Failed, Some(Reason::Cost))));
}

/// AITP-10: what comes too late is billed as a duplicate, once, and not used; the end closes the accounts.
#[test]
fn a_late_result_is_billed_and_not_used() {
    let mut task = paid("1", 1);
    task.runs(0);
    let late = task.fence(0);
    task.loses(0, Loss::AttemptTimeout, Failure::new(ErrorCode::Timeout, "too slow"));
    task.waits(1_100);
    task.chosen(0, 2);
    task.accepts(0);
    let later = task.fence(0);
    task.loses(0, Loss::AttemptTimeout, Failure::new(ErrorCode::Timeout, "too slow"));
    task.waits(2_200);
    task.chosen(0, 3);
    task.accepts(0);
    task.answers(late, Some(charge("1", "0.1")));
    assert_eq!((task.status(0), task.machine.state().ledger().lines()[0].duplicate), (Status::Executing, true));
    task.does_for(0, Some(charge("1", "0.1")));
    let used = task.part(0).output.clone();
    task.takes(Input::Composed(Ok(())));
    task.events();
    task.answers(late, Some(charge("1", "0.1")));
    task.answers(later, Some(charge("1", "0.1")));
    task.answers(task.fence(0), Some(charge("1", "0.1")));
    task.answers(Fence { subtask: 0, attempt: 9 }, Some(charge("1", "0.1")));
    task.answers(Fence { subtask: 9, attempt: 1 }, Some(charge("1", "0.1")));
    assert_eq!((task.events(), task.part(0).output.clone()), (vec![], used));
    assert_eq!(task.machine.state().ledger().spent(), dec("0.2"));
}

/// AITP-10: what costs nothing goes on when the budget is overdrawn, and no choice is limited to less than nothing.
#[test]
fn a_free_step_needs_no_money() {
    let mut definition = degrading(definition(vec![step("a", &[]), step("b", &[])]));
    definition.budget = budget("1");
    definition.subtasks[1].cost_limit = Some(dec("0.4"));
    let mut task = Task::of(definition);
    assert_eq!(task.choices()[1].cost_max, Some(dec("0.4")), "the step's own limit is the lower one");
    task.runs(0);
    task.does_for(0, Some(charge("1", "3")));
    task.chosen(1, 1);
    task.rejects(1, ErrorCode::Busy);
    assert_eq!(task.choices().pop().expect("a choice").cost_max, Some(dec("0")));
    task.runs(1);
    task.does(1);
    assert_eq!((task.status(1), task.end()), (Status::Success, Some((Outcome::Partial, Some(Reason::Cost)))));
}

/// AITP-10: those that wait for money do not all choose anew whenever some is given back.
#[test]
fn who_waits_for_money_keeps_its_place() {
    let mut task = paid("1", 200);
    task.chosen_for(0, 1, Some("1"));
    (1..64).for_each(|subtask| task.chosen_for(subtask, 1, Some("1")));
    assert_eq!(task.choices().len(), 64, "the others have no place to wait in");
    task.does_for(0, Some(charge("1", "0.001")));
    assert_eq!(task.choices().len(), 64);
}

// The end.

/// AITP-2: the deadline ends the task and withdraws what runs, but a result that is there counts.
#[test]
fn the_deadline_ends_what_is_not_done() {
    let mut definition = two();
    definition.deadline = Some(after_ms(5_000));
    let mut task = Task::of(definition.clone());
    task.runs(0);
    task.orders();
    task.waits(5_000);
    assert_eq!(task.orders(), [Output::Withdraw(task.fence(0)), Output::Ended]);
    assert_eq!((task.gave_up(0), task.gave_up(1)), (Some(Reason::Deadline), Some(Reason::Deadline)));

    let mut task = Task::of(definition);
    task.runs(0);
    task.orders();
    task.now = after_ms(5_001);
    task.does(0);
    assert_eq!((task.status(0), task.end()), (Status::Success, Some((Outcome::Failed, Some(Reason::Deadline)))));
    assert_eq!(task.orders(), [Output::Ended], "nobody is chosen after the end");
}

/// AITP-2: a task whose steps are all done is not failed by a deadline that passes while its result is put together.
#[test]
fn a_task_that_is_done_has_met_its_deadline() {
    let mut definition = one();
    definition.deadline = Some(after_ms(5_000));
    definition.output = json!({"type": "object"});
    let mut task = Task::of(definition);
    task.runs(0);
    task.waits(4_999);
    task.does(0);
    assert_eq!(task.orders().last(), Some(&Output::Compose));
    task.waits(1_000);
    task.restarts();
    assert_eq!(task.orders(), [Output::Compose], "asked for again");
    task.takes(Input::Composed(Ok(())));
    assert_eq!(task.end(), Some((Outcome::Success, None)));
}

#[test]
fn a_result_that_does_not_match_the_schema_fails_the_task() {
    let mut definition = one();
    definition.output = json!({"type": "object"});
    let mut task = Task::of(definition);
    task.takes(Input::Composed(Ok(())));
    assert_eq!(task.end(), None, "nobody asked for a result");
    task.runs(0);
    task.does(0);
    task.takes(Input::Composed(Err(Failure::new(ErrorCode::InvalidSchema, "no object"))));
    assert_eq!(task.end(), Some((Outcome::Failed, Some(Reason::InvalidOutput))));
}

/// MAOP-7: degraded mode: what can be done is done, the result is marked, and it names the cause rather than what followed from it.
#[test]
fn a_degraded_task_ends_in_part() {
    let mut task = Task::of(degrading(definition(vec![step("a", &[1]), step("b", &[]), step("c", &[])])));
    task.runs(1);
    task.fails_for_good(1);
    task.runs(2);
    task.does(2);
    assert_eq!(task.end(), Some((Outcome::Partial, Some(Reason::NonRetryable))));
    assert_eq!(task.machine.state().status(), Status::Completed);

    let mut task = Task::of(degrading(one()));
    task.runs(0);
    task.fails_for_good(0);
    assert_eq!(task.end(), Some((Outcome::Failed, Some(Reason::NonRetryable))), "nothing at all is no part");
}

/// AITP-2: a task waits for those that it depends on, and fails with them.
#[test]
fn a_task_waits_for_those_that_it_depends_on() {
    let (first, second) = (TaskId::from_random(1), TaskId::from_random(2));
    let mut definition = one();
    definition.dependencies = [first, second].into();
    let mut task = Task::of(definition.clone());
    task.takes(Input::DependencyEnded(first, Outcome::Success));
    assert!(task.orders().is_empty());
    task.takes(Input::DependencyEnded(second, Outcome::Partial));
    assert_eq!(task.choices().len(), 1);
    task.chosen(0, 1);
    task.restarts();
    assert_eq!(task.choices().len(), 1, "what has begun does not wait for them again");

    let mut task = Task::of(definition);
    task.takes(Input::DependencyEnded(second, Outcome::Cancelled));
    assert_eq!(task.end(), Some((Outcome::Failed, Some(Reason::DependencyFailed))));
    task.events();
    task.takes(Input::DependencyEnded(first, Outcome::Failed));
    assert!(task.events().is_empty());
}

/// AITP-4: a goal is decomposed once, and what comes of it is run.
#[test]
fn a_goal_is_planned_before_it_is_run() {
    let planned = || Input::Planned { subtasks: text("[]"), by: "schemas".to_owned(), bill: None, definition: Box::new(two()) };
    let mut task = Task::of(definition(vec![]));
    assert_eq!(task.orders(), [Output::Plan]);
    task.restarts();
    assert_eq!(task.orders(), [Output::Plan], "asked for again");
    task.takes(planned());
    assert_eq!((task.events(), task.choices().len()), (vec!["planned"], 1));
    task.runs(0);
    task.events();
    task.takes(planned());
    assert_eq!((task.events(), task.status(0)), (vec![], Status::Executing), "a second plan changes nothing");

    let mut task = Task::of(definition(vec![]));
    task.takes(Input::Unplanned(Failure::new(ErrorCode::CapabilityNotFound, "no chain leads there")));
    assert_eq!(task.end(), Some((Outcome::Failed, Some(Reason::NoPlan))));
    let mut task = Task::of(definition(vec![]));
    task.takes(Input::Planned { subtasks: text("[]"), by: "agent".to_owned(), bill: None, definition: Box::new(definition(vec![])) });
    assert_eq!(task.end(), Some((Outcome::Failed, Some(Reason::NoPlan))), "a plan without steps");
}

// The contract.

/// AITP-6: late, repeated and stale inputs change nothing.
#[test]
fn what_is_not_about_the_current_attempt_changes_nothing() {
    let mut task = Task::of(one());
    task.runs(0);
    let stale = task.fence(0);
    task.fails(0);
    task.waits(1_100);
    task.chosen(0, 2);
    task.events();
    let before = format!("{:?}", task.machine.state());
    let broken = || Failure::new(ErrorCode::AgentFailed, "late");
    for input in [
        Input::Accepted(stale),
        Input::Finished(stale, failed(broken())),
        Input::Finished(stale, Finish::Rejected { expired: true, failure: broken() }),
        Input::Finished(Fence { subtask: 7, attempt: 1 }, failed(broken())),
        Input::Unavailable(0, broken()),
        Input::Unavailable(7, broken()),
        Input::Wake,
        offered(),
        Input::DependencyEnded(TaskId::from_random(3), Outcome::Failed),
    ] {
        let told = format!("{input:?}");
        task.takes(input);
        assert_eq!((task.events(), format!("{:?}", task.machine.state())), (vec![], before.clone()), "{told}");
    }
    task.chosen(0, 3);
    assert_eq!(task.events(), Vec::<&str>::new(), "a second choice");
}

/// Nothing leaves the node before what it follows from is durable: a call, the word to begin, a withdrawal, the end.
#[test]
fn nothing_leaves_the_node_before_it_is_durable() {
    let mut task = Task::of(never());
    task.orders();
    task.disk_stalls();
    task.chosen(0, 1);
    task.accepts(0);
    task.takes(Input::Cancel);
    assert_eq!(task.orders(), []);
    assert_eq!(task.events(), ["dispatched", "accepted", "cancel_requested", "ended"]);
    let fence = task.fence(0);
    task.disk_keeps(2);
    assert!(matches!(&task.orders()[..], [Output::Send(send)] if send.fence == fence));
    task.disk_keeps(3);
    assert_eq!(task.orders(), [Output::Begin(fence)]);
    task.disk_keeps(4);
    assert_eq!(task.orders(), []);
    task.disk_keeps(5);
    assert_eq!(task.orders(), [Output::Withdraw(fence), Output::Ended]);
    task.disk_keeps(5);
    assert_eq!(task.orders(), []);
}

/// Threat T20, AITP-10: two lost shares hold all the money back from each other: one of the two is given up, and nobody waits for ever.
#[test]
fn steps_that_hold_back_each_others_money_do_not_wait_for_ever() {
    let mut both = definition(vec![step("a", &[]), step("b", &[])]);
    both.budget = budget("1.2");
    both.fallback.on_failure = OnFailure::Degrade;
    for subtask in &mut both.subtasks {
        (subtask.task, subtask.cost_limit) = (Some(json!({})), Some(dec("0.6")));
    }
    let mut task = Task::of(both);
    for subtask in [0, 1] {
        task.chosen_for(subtask, 1, Some("0.6"));
        task.accepts(subtask);
    }
    for subtask in [0, 1] {
        task.loses(subtask, Loss::AgentLost, Failure::new(ErrorCode::Unavailable, "gone"));
    }
    task.waits(10_000);
    for subtask in [0, 1] {
        task.chosen_for(subtask, 2, Some("0.6"));
    }
    let reasons: Vec<Option<Reason>> = [0, 1].into_iter().map(|subtask| task.gave_up(subtask)).collect();
    assert!(reasons.contains(&Some(Reason::Cost)), "{reasons:?}");
    for _ in 0..3 {
        for choose in task.choices() {
            task.chosen_for(choose.subtask, 2, Some("0.6"));
            if task.phase(choose.subtask) == Phase::Sent {
                task.accepts(choose.subtask);
                task.does_for(choose.subtask, None);
            }
        }
    }
    assert!(task.end().is_some(), "{:?} {:?}", task.phase(0), task.phase(1));
}

/// AITP-5: somebody has room for one step, and of those that wait the one that would wait for the shortest time takes it.
#[test]
fn room_for_one_step_is_taken_by_one_step() {
    let mut task = Task::of(definition(vec![step("a", &[]), step("b", &[]), step("c", &[])]));
    for subtask in [1, 0, 2] {
        task.chosen(subtask, 1);
        task.rejects(subtask, ErrorCode::Busy);
        task.takes(Input::Unavailable(subtask, Failure::new(ErrorCode::Busy, "full")));
        task.waits(10);
    }
    task.orders();
    let freed = |name: &str| Input::Freed(name.parse().expect("a capability"));
    task.takes(freed("other"));
    assert_eq!(task.choices(), []);
    for subtask in [1, 0, 2] {
        task.takes(freed("echo"));
        assert_eq!(task.choices().iter().map(|choose| choose.subtask).collect::<Vec<_>>(), [subtask]);
    }
    task.takes(freed("echo"));
    assert_eq!(task.choices(), [], "nobody waits");
}

/// AITP-4: whoever decomposes is not asked for a task that a crash could take back.
#[test]
fn no_goal_is_decomposed_before_its_task_is_durable() {
    let mut task = Task::of(definition(vec![]));
    task.machine = Machine::new(state(definition(vec![])), 0);
    task.orders();
    task.disk_stalls();
    task.takes(Input::Resume);
    assert_eq!(task.orders(), []);
    task.disk_keeps(1);
    assert_eq!(task.orders(), [Output::Plan]);
}

/// AITP-10: who decomposed the goal is paid out of the budget of the task.
#[test]
fn a_plan_is_billed() {
    let mut goal = definition(vec![]);
    goal.budget = budget("1");
    let mut planned = two();
    planned.budget = budget("1");
    let mut task = Task::of(goal);
    task.orders();
    let bill = Some(Bill { agent: agent(9), charge: charge("1", "0.4") });
    task.takes(Input::Planned { subtasks: text("[]"), by: "agent".to_owned(), bill, definition: Box::new(planned) });
    assert_eq!(task.choices()[0].cost_max, Some(dec("0.6")));
    let lines: Vec<(AgentId, Decimal)> = task.machine.state().ledger().lines().iter().map(|line| (line.agent, line.charge.total)).collect();
    assert_eq!(lines, [(agent(9), dec("0.4"))]);
}

/// AITP-6: whichever of a decision's events the disk still had, the task goes on to the same end after a restart.
#[test]
fn a_decision_that_was_kept_in_part_is_carried_through() {
    type Story = (&'static str, fn() -> Definition, fn(&mut Task));
    let stories: [Story; 5] = [
        (
            "given up",
            || definition(vec![step("a", &[]), step("b", &[0]), step("c", &[])]),
            |task| {
                task.runs(0);
                task.fails_for_good(0);
            },
        ),
        (
            "degraded",
            || degrading(definition(vec![step("a", &[]), step("b", &[0]), step("c", &[1])])),
            |task| {
                task.runs(0);
                task.fails_for_good(0);
            },
        ),
        ("cancelled", two, |task| task.takes(Input::Cancel)),
        ("done", one, |task| {
            task.runs(0);
            task.does(0);
        }),
        (
            "overdrawn",
            || {
                let mut definition = one();
                definition.budget = budget("1");
                definition
            },
            |task| {
                task.runs(0);
                task.does_for(0, Some(charge("1", "2")));
            },
        ),
    ];
    for (name, definition, story) in stories {
        let mut whole = Task::of(definition());
        story(&mut whole);
        let end = whole.end();
        assert!(end.is_some(), "{name}");
        let decided = whole
            .journal
            .iter()
            .position(|(_, event)| matches!(event, Event::AttemptFailed { .. } | Event::ResultReceived { .. } | Event::CancelRequested));
        for kept in decided.expect("a decision") + 1..=whole.journal.len() {
            let mut task = Task::of(definition());
            story(&mut task);
            task.restarts_with(kept);
            assert_eq!(task.end(), end, "{name}, with {kept} of {} events", whole.journal.len());
            assert_eq!(task.journal, whole.journal, "{name}, with {kept} events");
        }
    }
}

/// AITP-6: what a task had and did not use when it ended is not shown as the output of a subtask that failed.
#[test]
fn a_subtask_that_failed_with_the_task_has_no_output() {
    let mut task = Task::of(definition(vec![step("a", &[]), step("b", &[])]));
    task.runs(0);
    task.runs(1);
    task.does(1);
    let received = task.journal.len() - 1;
    assert!(matches!(task.journal[received - 1].1, Event::ResultReceived { .. }));
    task.restarts_with(received);
    assert_eq!(task.status(1), Status::Success, "looked at after the restart");
    let mut state = super::testing::state(definition(vec![step("a", &[]), step("b", &[])]));
    task.journal[1..received].iter().for_each(|(at, event)| state.apply(event, *at));
    state.apply(&Event::Ended { outcome: Outcome::Failed, reason: None, failure: None }, task.now);
    assert_eq!((state.parts()[1].status, state.output(1)), (Status::Failed, None));
}

/// AITP-6: a restart makes anew what was under way, asks whoever may have done it first, and uses up no retry.
#[test]
fn a_restart_asks_the_same_agent_again() {
    let mut task = Task::of(one());
    task.runs(0);
    task.restarts();
    assert_eq!(task.events(), ["requeued"]);
    assert_eq!(task.choices()[0].prefer, Some(agent(1)));
    task.chosen(0, 1);
    assert_eq!((task.fence(0).attempt, task.part(0).retries), (2, 0));
    task.does(0);
    assert_eq!(task.end(), Some((Outcome::Success, None)));
}

#[test]
fn a_failure_that_is_too_long_for_the_journal_is_kept_without_its_details() {
    let mut task = Task::of(one());
    task.runs(0);
    let huge = Failure::new(ErrorCode::AgentFailed, "it broke").with("log", "x".repeat(100_000));
    task.loses(0, BROKEN, huge);
    let Some((_, Event::AttemptFailed { failure, .. })) = task.journal.last() else { panic!("{:?}", task.journal.last()) };
    assert!(failure.len() < 1_000);
    assert_eq!(task.part(0).waiting.as_ref().expect("a failure").message, "it broke");
}

#[test]
fn a_task_begins_with_its_submission_and_nothing_else() {
    let config = std::sync::Arc::new(super::state::Config { start_within: Duration::from_secs(1), ..super::state::Config::default() });
    let id = super::testing::id();
    let begun: Option<Machine> = super::machine::submit(id, &config, one(), Event::Submitted(super::testing::submitted()), BEGIN);
    assert_eq!(begun.map(|machine| (machine.state().events(), machine.committed_events())), Some((1, 0)));
    assert!(super::machine::submit(id, &config, one(), Event::CancelRequested, BEGIN).is_none());
}
