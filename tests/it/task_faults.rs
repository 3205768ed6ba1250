//! Tasks in which something goes wrong: agents that fail, are slow, dear, gone or not there yet, a deadline, a change of mind. Each has its
//! documented end, and what can be saved is.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{
    Node, SETTLE, builtin, eventually,
    tasks::{Workshop, planner, step, task},
    with,
};

/// What an agent claims to take, which decides who is asked first.
fn claims(ms: u64) -> Value {
    json!({ "constraints": { "response_time_ms": ms } })
}

fn priced(amount: &str) -> Value {
    json!({ "price": { "amount": amount, "currency": "USD", "unit": "request" } })
}

/// `fallback` with one strategy.
fn fallback(on: &str, strategy: Value) -> Value {
    json!({ "fallback": { on: strategy } })
}

fn strategy(name: &str) -> Value {
    json!({ "strategy": name })
}

/// Unix seconds, so many from now.
fn in_seconds(seconds: f64) -> f64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is right").as_secs_f64();
    ((now + seconds) * 1_000.0).round() / 1_000.0
}

/// A node with one worker of `test.work`, which hosts it itself.
async fn with_worker(workshop: &Workshop) -> Node {
    let node = planner().agent(workshop.worker("worker", "test.work", json!({}))).spawn().await;
    node.knows("test.work", &["worker"]).await;
    node
}

/// A planner, and two nodes with a worker each, of which the first is asked first.
async fn with_two(workshop: &Workshop) -> (Node, Node, Node) {
    let node = planner().spawn().await;
    let host = |name, ms| Node::builder().join(&node).agent(workshop.worker(name, "test.work", claims(ms))).spawn();
    let (first, second) = tokio::join!(host("first", 1), host("second", 900));
    node.knows("test.work", &["first", "second"]).await;
    (node, first, second)
}

/// AITP-8: the pauses before attempts 2, 3 and 4 follow the policy, and chance only makes them longer.
#[tokio::test]
async fn an_agent_that_fails_three_times_is_asked_four_times_with_growing_pauses() {
    let workshop = Workshop::new();
    let node = with_worker(&workshop).await;
    const BASE_MS: u64 = 100;
    for (strategy, factors) in [("exponential", [1, 2, 4]), ("linear", [1, 2, 3]), ("fixed", [1, 1, 1])] {
        let input = json!({ "mark": strategy, "fail": { "times": 3 }, "output": "at last" });
        let policy = json!({ "retry_policy": { "max_retries": 3, "backoff_strategy": strategy, "backoff_base_ms": BASE_MS } });
        let id = node.submit(&with(task(&[step("a", "test.work", input)]), json!({ "metadata": policy }))).await;

        let result = node.result(&id).await;

        assert_eq!((&result["outcome"], &result["result"]), (&json!("success"), &json!("at last")), "{strategy}: {result}");
        let step = node.step(&id, "a").await;
        assert_eq!((&step["attempt"], &step["retries"], &step["status"]), (&json!(4), &json!(3), &json!("SUCCESS")), "{step}");
        let attempts = step["attempts"].as_array().expect("attempts");
        let ms = |attempt: &Value, field: &str| attempt[field].as_u64().unwrap_or_else(|| panic!("{field}: {attempt}"));
        let pauses = attempts.windows(2).map(|pair| ms(&pair[1], "chosen_ms") - ms(&pair[0], "ended_ms"));
        let short = pauses.zip(factors).find(|(pause, factor)| *pause + 1 < factor * BASE_MS);
        assert!(short.is_none(), "{strategy}: {short:?} of {step}");
        let events = node.task_events(&id).await.rest().await;
        let told = events.iter().filter(|(name, _)| name == "attempt_failed").map(|(_, event)| event["retry_in_ms"].as_u64().unwrap_or(0));
        for (told, factor) in told.zip(factors) {
            assert!((factor * BASE_MS..=factor * BASE_MS * 11 / 10).contains(&told), "{strategy}: a pause of {told} ms");
        }
    }
}

/// AITP-8: the last attempt that may be made ends it.
#[tokio::test]
async fn an_agent_that_fails_once_more_than_it_may_fails_the_task() {
    let workshop = Workshop::new();
    let node = with_worker(&workshop).await;
    let policy = json!({ "retry_policy": { "max_retries": 2, "backoff_strategy": "fixed", "backoff_base_ms": 1 } });
    let failing = step("a", "test.work", json!({ "fail": { "times": 9, "error": { "message": "the model is gone", "retryable": true } } }));

    let result = node.run_task(&with(task(&[failing, step("b", "test.work", json!("${a.output}"))]), json!({ "metadata": policy }))).await;

    assert_eq!(
        (&result["status"], &result["outcome"], &result["reason"]),
        (&json!("FAILED"), &json!("failed"), &json!("RETRIES_EXHAUSTED"))
    );
    let error = &result["error"];
    assert_eq!(
        (&error["code"], &error["details"]["subtask_id"], &error["details"]["attempts"]),
        (&json!("AGENT_FAILED"), &json!("a"), &json!(3))
    );
    assert!(error["message"].as_str().is_some_and(|text| text.contains("the model is gone")), "{error}");
    assert_eq!(workshop.notes("started").len(), 3);
}

/// AITP-6, AITP-8: what the agent says is final is not tried again.
#[tokio::test]
async fn a_final_refusal_of_an_agent_is_not_repeated() {
    let workshop = Workshop::new();
    let node = with_worker(&workshop).await;
    let error = json!({ "code": "INVALID_REQUEST", "message": "that is no question", "retryable": false });

    let result = node.run_task(&task(&[step("a", "test.work", json!({ "fail": { "times": 9, "error": error } }))])).await;

    assert_eq!((&result["reason"], &result["error"]["details"]["subtask_id"]), (&json!("NON_RETRYABLE"), &json!("a")), "{result}");
    assert_eq!(workshop.notes("started").len(), 1);
}

/// AITP-6, MAOP-7: a retry goes to another agent where there is one.
#[tokio::test]
async fn a_retry_goes_to_another_agent() {
    let workshop = Workshop::new();
    let (node, _first, _second) = with_two(&workshop).await;
    let policy = json!({ "retry_policy": { "backoff_base_ms": 1 } });

    let id = node.submit(&task(&[with(step("a", "test.work", json!({ "fail": { "times": 1 }, "output": 1 })), policy)])).await;

    assert_eq!(node.result(&id).await["outcome"], "success");
    let who: Vec<Value> = workshop.notes("started").iter().map(|note| note["who"].clone()).collect();
    assert_eq!(who, ["first", "second"]);
    assert_eq!(node.step(&id, "a").await["agent"], "second");
}

/// AITP-9: on_agent_offline, SELECT_NEXT_BEST: killed at work, its step goes to the next best at once.
#[tokio::test]
async fn the_next_best_takes_over_from_an_agent_that_is_killed() {
    let workshop = Workshop::new();
    let (node, mut first, second) = with_two(&workshop).await;
    let slow_retries = json!({ "metadata": { "retry_policy": { "backoff_base_ms": 60_000 } } });
    let document = with(task(&[step("a", "test.work", json!({ "until": "go", "output": "done" }))]), slow_retries);
    let id = node.submit(&document).await;
    workshop.until("started", 1).await;

    first.kill().await;
    workshop.until("started", 2).await;
    workshop.release("go");

    let result = node.result(&id).await;
    assert_eq!((&result["outcome"], &result["result"]), (&json!("success"), &json!("done")), "{result}");
    let step = node.step(&id, "a").await;
    assert_eq!((&step["agent"], &step["node_id"]), (&json!("second"), &json!(second.id())), "{step}");
    assert!(result["execution_time_ms"].as_u64().is_some_and(|ms| ms < 30_000), "no pause of a minute: {result}");
}

/// AITP-9: the same with FAIL_AND_NOTIFY fails.
#[tokio::test]
async fn a_lost_agent_fails_the_task_where_its_author_says_so() {
    let workshop = Workshop::new();
    let (node, mut first, _second) = with_two(&workshop).await;
    let steps = [step("a", "test.work", json!({ "until": "never" }))];
    let id = node.submit(&with(task(&steps), fallback("on_agent_offline", strategy("FAIL_AND_NOTIFY")))).await;
    workshop.until("started", 1).await;

    first.kill().await;

    let result = node.result(&id).await;
    assert_eq!((&result["status"], &result["reason"]), (&json!("FAILED"), &json!("NON_RETRYABLE")), "{result}");
    assert_eq!(workshop.notes("started").len(), 1);
}

/// `retry: never`: work that may have begun is not done twice, and the author is told that nobody knows.
#[tokio::test]
async fn work_that_must_not_be_done_twice_ends_with_an_unknown_outcome() {
    let workshop = Workshop::new();
    let (node, mut first, _second) = with_two(&workshop).await;
    let id = node.submit(&task(&[with(step("a", "test.work", json!({ "until": "never" })), json!({ "retry": "never" }))])).await;
    workshop.until("started", 1).await;

    first.kill().await;

    let result = node.result(&id).await;
    assert_eq!((&result["reason"], &result["error"]["details"]["outcome"]), (&json!("UNKNOWN_OUTCOME"), &json!("unknown")), "{result}");
    assert_eq!(workshop.notes("started").len(), 1);
}

/// AITP-9: on_timeout, RETRY_WITH_TIMEOUT_EXTENSION: the second attempt has the longer time.
#[tokio::test]
async fn an_attempt_that_took_too_long_has_more_time_the_second_time() {
    let workshop = Workshop::new();
    let node = with_worker(&workshop).await;
    let document = |on_timeout: Value| {
        let metadata = json!({ "timeout_seconds": 0.3, "retry_policy": { "max_retries": 1, "backoff_base_ms": 1 } });
        let steps = [step("a", "test.work", json!({ "ms": 1_000, "output": "slowly" }))];
        with(task(&steps), with(json!({ "metadata": metadata }), fallback("on_timeout", on_timeout)))
    };

    let extended = json!({ "strategy": "RETRY_WITH_TIMEOUT_EXTENSION", "extended_timeout_seconds": 20 });
    let id = node.submit(&document(extended)).await;
    let result = node.result(&id).await;
    assert_eq!((&result["outcome"], &result["result"]), (&json!("success"), &json!("slowly")), "{result}");
    let step = node.step(&id, "a").await;
    assert_eq!((&step["attempt"], &step["attempts"][0]["error"]["code"]), (&json!(2), &json!("TIMEOUT")), "{step}");

    let retried = node.run_task(&document(strategy("SELECT_NEXT_BEST"))).await;
    assert_eq!((&retried["reason"], &retried["error"]["code"]), (&json!("RETRIES_EXHAUSTED"), &json!("TIMEOUT")), "{retried}");
    let failed = node.run_task(&document(strategy("FAIL_AND_NOTIFY"))).await;
    assert_eq!((&failed["reason"], &failed["error"]["code"]), (&json!("NON_RETRYABLE"), &json!("TIMEOUT")), "{failed}");
}

/// AITP-9: on_timeout: what each attempt is given: twice its time from the second on where nothing is said, and always the same with
/// SELECT_NEXT_BEST.
#[tokio::test]
async fn attempts_that_take_too_long_are_given_the_time_that_the_fallback_says() {
    let workshop = Workshop::new();
    let node = with_worker(&workshop).await;
    let metadata = json!({ "timeout_seconds": 0.2, "retry_policy": { "max_retries": 2, "backoff_base_ms": 1 } });
    let endless = with(task(&[step("a", "test.work", json!({ "until": "never" }))]), json!({ "metadata": metadata }));
    for (document, given) in
        [(endless.clone(), [200, 400, 400]), (with(endless.clone(), fallback("on_timeout", strategy("SELECT_NEXT_BEST"))), [200, 200, 200])]
    {
        let id = node.submit(&document).await;
        let result = node.result(&id).await;
        assert_eq!((&result["reason"], &result["error"]["code"]), (&json!("RETRIES_EXHAUSTED"), &json!("TIMEOUT")), "{result}");
        let step = node.step(&id, "a").await;
        let attempts = step["attempts"].as_array().expect("attempts");
        let had: Vec<&Value> = attempts.iter().map(|attempt| &attempt["error"]["details"]["timeout_ms"]).collect();
        assert_eq!(had, given.each_ref().map(|ms| json!(ms)).iter().collect::<Vec<_>>(), "{step}");
    }
    // Whoever was too slow is told to stop.
    workshop.until("cancelled", 6).await;
}

/// AITP-9: on_timeout, SELECT_NEXT_BEST: somebody else gets the same time.
#[tokio::test]
async fn the_next_best_takes_over_from_an_agent_that_takes_too_long() {
    let workshop = Workshop::new();
    let (node, _first, second) = with_two(&workshop).await;
    let metadata = json!({ "metadata": { "timeout_seconds": 3, "retry_policy": { "max_retries": 1, "backoff_base_ms": 1 } } });
    let document = with(task(&[step("a", "test.work", json!({ "until": "go", "output": "done" }))]), metadata);
    let id = node.submit(&with(document, fallback("on_timeout", strategy("SELECT_NEXT_BEST")))).await;

    workshop.until("started", 2).await;
    workshop.release("go");

    let result = node.result(&id).await;
    assert_eq!((&result["outcome"], &result["result"]), (&json!("success"), &json!("done")), "{result}");
    let step = node.step(&id, "a").await;
    assert_eq!((&step["attempt"], &step["node_id"]), (&json!(2), &json!(second.id())), "{step}");
    assert_eq!(step["attempts"][0]["error"]["code"], "TIMEOUT", "{step}");
}

/// AITP-9: on_capability_unavailable, DEFER: when the wait is over it is looked again, and waited again, until the deadline ends it.
#[tokio::test]
async fn a_deferral_is_repeated_until_the_deadline_ends_it() {
    let node = planner().spawn().await;
    let defer = fallback("on_capability_unavailable", json!({ "strategy": "DEFER", "retry_after_seconds": 0.2 }));
    let document = with(task(&[step("a", "test.nobody", json!({}))]), with(json!({ "metadata": { "deadline": in_seconds(2.0) } }), defer));
    let id = node.submit(&document).await;

    let result = node.result(&id).await;

    assert_eq!(
        (&result["status"], &result["reason"], &result["error"]["code"]),
        (&json!("FAILED"), &json!("DEADLINE"), &json!("TIMEOUT")),
        "{result}"
    );
    assert!(result["error"]["details"]["waiting"].to_string().contains("test.nobody"), "{result}");
    let events = node.task_events(&id).await.rest().await;
    let deferred: Vec<&Value> = events.iter().filter(|(name, _)| name == "deferred").map(|(_, event)| &event["retry_in_ms"]).collect();
    assert!(deferred.len() >= 2 && deferred.iter().all(|ms| **ms == 200), "{events:?}");
    assert_eq!(events.last().map(|(name, _)| name.as_str()), Some("ended"), "{events:?}");
}

/// AITP-9: on_capability_unavailable, DEFER: five minutes at most, but who comes late ends the wait at once.
#[tokio::test]
async fn a_late_joiner_ends_a_deferral_at_once() {
    let workshop = Workshop::new();
    let node = planner().spawn().await;
    let id = node.submit(&task(&[step("a", "test.late", json!({ "output": "here I am" }))])).await;
    let waiting = node.until_step(&id, "a", |step| step["waiting_for"].as_str().is_some_and(|text| text.contains("deferred"))).await;
    let why = waiting["waiting_for"].as_str().expect("a reason");
    assert!(why.contains("test.late") && (why.contains("deferred for 300 s") || why.contains("deferred for 29")), "{why}");
    assert_eq!(node.task(&id).await["status"], "PENDING");

    let _late = Node::builder().join(&node).agent(workshop.worker("late", "test.late", json!({}))).spawn().await;

    let result = node.result(&id).await;
    assert_eq!((&result["outcome"], &result["result"]), (&json!("success"), &json!("here I am")), "{result}");
    let events = node.task_events(&id).await.rest().await;
    let deferred = events.iter().find(|(name, _)| name == "deferred").map(|(_, event)| event["retry_in_ms"].clone());
    assert_eq!(deferred, Some(json!(300_000)), "{events:?}");
}

/// AITP-9: the same with FAIL_AND_NOTIFY fails, and says who is missing.
#[tokio::test]
async fn a_capability_that_nobody_offers_fails_where_the_author_says_so() {
    let node = planner().agent(builtin("echo", "echo")).spawn().await;
    let unavailable = fallback("on_capability_unavailable", strategy("FAIL_AND_NOTIFY"));

    let result = node.run_task(&with(task(&[step("a", "ecco", json!(1))]), unavailable)).await;

    assert_eq!((&result["status"], &result["reason"]), (&json!("FAILED"), &json!("NO_CAPABILITY")), "{result}");
    assert_eq!(
        (&result["error"]["code"], &result["error"]["details"]["subtask_id"]),
        (&json!("CAPABILITY_NOT_FOUND"), &json!("a")),
        "{result}"
    );
}

/// AITP-9, AITP-10: money is put aside before a step goes out, so steps that run at once cannot spend it twice; what is left decides.
#[tokio::test]
async fn a_budget_is_reserved_and_what_it_does_not_cover_is_not_begun() {
    let workshop = Workshop::new();
    let node = planner().agent(workshop.worker("dear", "test.dear", priced("0.02"))).spawn().await;
    node.knows("test.dear", &["dear"]).await;
    let part = |id: &str| step(id, "test.dear", json!({ "mark": id, "until": "go", "output": id }));
    let document = with(
        task(&[part("a"), part("b"), part("c")]),
        with(
            json!({ "metadata": { "cost_limit": { "amount": "0.05", "currency": "USD" } } }),
            fallback("on_cost_exceeded", json!({ "strategy": "FAIL_AND_NOTIFY", "notification": "Five cents were not enough" })),
        ),
    );

    let id = node.submit(&document).await;
    workshop.until("started", 2).await;
    let begun: Vec<Value> = workshop.notes("started").iter().map(|note| note["input"]["mark"].clone()).collect();
    let third = ["a", "b", "c"].into_iter().find(|name| !begun.contains(&json!(name))).expect("two have begun");
    let held = node.until_step(&id, third, |step| step["waiting_for"].as_str().is_some_and(|text| text.contains("money"))).await;
    assert_eq!((&held["status"], workshop.notes("started").len()), (&json!("PENDING"), 2), "{held}");
    workshop.release("go");

    let result = node.result(&id).await;
    assert_eq!((&result["status"], &result["reason"], &result["error"]["code"]), (&json!("FAILED"), &json!("COST"), &json!("OVER_BUDGET")));
    assert!(result["error"]["message"].as_str().is_some_and(|text| text.starts_with("Five cents were not enough")), "{result}");
    assert_eq!(result["error"]["details"]["subtask_id"], third, "{result}");
    let ledger = &result["ledger"];
    assert_eq!(
        (&ledger["total_cost"], &ledger["remaining_budget"], &ledger["budget"]),
        (&json!(0.04), &json!(0.01), &json!(0.05)),
        "{ledger}"
    );
    assert_eq!(workshop.notes("started").len(), 2, "the third was never begun");
}

/// AITP-10: an agent that claims more units than the budget has is billed, and its output is not used.
#[tokio::test]
async fn units_that_overdraw_the_budget_are_billed_and_end_the_task() {
    let workshop = Workshop::new();
    let node = planner().agent(workshop.worker("dear", "test.dear", priced("0.02"))).spawn().await;
    node.knows("test.dear", &["dear"]).await;
    let greedy = step("a", "test.dear", json!({ "units": 10, "output": 1 }));

    let document = with(task(&[greedy, step("b", "test.dear", json!("${a.output}"))]), json!({ "metadata": { "cost_limit": 0.1 } }));
    let result = node.run_task(&document).await;

    assert_eq!((&result["reason"], &result["error"]["code"]), (&json!("COST"), &json!("OVER_BUDGET")), "{result}");
    assert_eq!((&result["cost"], &result["ledger"]["remaining_budget"]), (&json!(0.2), &json!(-0.1)), "{result}");
    assert_eq!(workshop.notes("started").len(), 1);
}

/// AITP-10, AITP-9: who asks more than a step may cost, or another money than the budget's, is not asked.
#[tokio::test]
async fn agents_that_are_too_dear_for_a_step_are_not_asked() {
    let workshop = Workshop::new();
    let node = planner()
        .agent(workshop.worker("dear", "test.dear", with(priced("0.02"), claims(1))))
        .agent(workshop.worker("cheap", "test.dear", with(priced("0.005"), claims(900))))
        .spawn()
        .await;
    node.knows("test.dear", &["cheap", "dear"]).await;
    let limited = |limit: &str| with(step("a", "test.dear", json!({ "output": 1 })), json!({ "cost_limit": limit }));

    let id = node.submit(&task(&[limited("0.01")])).await;
    assert_eq!(node.result(&id).await["outcome"], "success");
    assert_eq!(node.step(&id, "a").await["agent"], "cheap");

    let euros = json!({ "metadata": { "cost_limit": { "amount": 1, "currency": "EUR" } } });
    let foreign = node.run_task(&with(task(&[step("a", "test.dear", json!({ "output": 1 }))]), euros)).await;
    assert_eq!((&foreign["reason"], &foreign["error"]["code"]), (&json!("COST"), &json!("OVER_BUDGET")), "{foreign}");
    let poor = node.run_task(&task(&[limited("0.001")])).await;
    assert_eq!((&poor["reason"], &poor["error"]["code"]), (&json!("COST"), &json!("OVER_BUDGET")), "{poor}");
    assert_eq!(workshop.notes("started").len(), 1);
}

/// AITP-5: who is known to fail is not asked by an author who asks for trust; a stranger may yet deserve it.
#[tokio::test]
async fn who_is_trusted_too_little_is_not_asked() {
    let workshop = Workshop::new();
    let node = planner().agent(workshop.worker("known", "test.work", claims(1))).spawn().await;
    node.knows("test.work", &["known"]).await;
    let failing = json!({ "fail": { "times": 99, "error": { "message": "no", "retryable": false } } });
    for _ in 0..8 {
        node.invoke(json!({ "capability": "test.work", "input": failing })).await.refused(502, "AGENT_FAILED");
    }
    // Outcomes reach the ledger in batches.
    let learnt = async || (node.get("/v1/trust").await.ok()["agents"][0]["high"].as_f64()? < 60.0).then_some(());
    eventually("it is known to fail", SETTLE, learnt).await;
    let metadata = json!({ "metadata": { "min_trust_score": 60 } });
    let unavailable = fallback("on_capability_unavailable", strategy("FAIL_AND_NOTIFY"));
    let document = with(task(&[step("a", "test.work", json!({ "mark": "task", "output": 1 }))]), with(metadata, unavailable));

    let nobody = node.run_task(&document).await;
    assert_eq!((&nobody["reason"], &nobody["error"]["code"]), (&json!("NO_CAPABILITY"), &json!("CAPABILITY_NOT_FOUND")), "{nobody}");

    let _host = Node::builder().join(&node).agent(workshop.worker("stranger", "test.work", claims(900))).spawn().await;
    node.knows("test.work", &["known", "stranger"]).await;
    assert_eq!(node.run_task(&document).await["outcome"], "success");
    let asked: Vec<Value> =
        workshop.notes("started").iter().filter(|note| note["input"]["mark"] == "task").map(|note| note["who"].clone()).collect();
    assert_eq!(asked, ["stranger"]);
}

/// MAOP-7: degraded mode: what does not need the failed step goes on, and the result says what is missing.
#[tokio::test]
async fn a_degraded_task_gives_what_it_has_and_says_what_is_missing() {
    let workshop = Workshop::new();
    let node = with_worker(&workshop).await;
    let failing = json!({ "fail": { "times": 9, "error": { "message": "no", "retryable": false } } });
    let steps = [
        step("good", "test.work", json!({ "output": "here" })),
        step("bad", "test.work", with(failing, json!({ "mark": "bad" }))),
        step("after-good", "test.work", json!({ "output": "${good.output} too" })),
        step("after-bad", "test.work", json!({ "output": "${bad.output}" })),
        step("after-that", "test.work", json!({ "output": "${after-bad.output}" })),
    ];
    let document = with(task(&steps), fallback("on_subtask_failed", strategy("DEGRADE")));
    let id = node.submit(&document).await;

    let result = node.result(&id).await;

    assert_eq!((&result["status"], &result["outcome"]), (&json!("COMPLETED"), &json!("partial")), "{result}");
    assert_eq!((&result["result"], &result["missing"]), (&json!({ "after-good": "here too" }), &json!(["bad", "after-bad", "after-that"])));
    assert_eq!(result["error"]["details"]["subtask_id"], "bad", "{result}");
    assert_eq!(node.step(&id, "after-that").await["error"]["details"]["subtask_id"], "bad");
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("task.json");
    std::fs::write(&file, document.to_string()).expect("the file is written");
    let run = node.cli(&["task", "run", file.to_str().expect("a plain name")]).await;
    assert_eq!(run.json(), json!({ "after-good": "here too" }), "a result in part is a result");
    assert!(run.code == 0 && run.stderr.contains("partial") && run.stderr.contains("after-that"), "{run:?}");

    let strict = node.run_task(&task(&steps)).await;
    assert_eq!((&strict["status"], &strict["result"]), (&json!("FAILED"), &Value::Null), "{strict}");
}

/// AITP-2, AITP-6: a deadline ends everything, says what the task waited for, and reaches the agent.
#[tokio::test]
async fn a_deadline_ends_a_task_and_its_agents() {
    let workshop = Workshop::new();
    let node = with_worker(&workshop).await;
    let steps = [step("a", "test.work", json!({ "until": "never" })), step("b", "test.nobody", json!({}))];
    let id = node.submit(&with(task(&steps), json!({ "metadata": { "deadline": in_seconds(1.5) } }))).await;
    workshop.until("started", 1).await;

    let result = node.result(&id).await;

    assert_eq!((&result["status"], &result["reason"], &result["error"]["code"]), (&json!("FAILED"), &json!("DEADLINE"), &json!("TIMEOUT")));
    let waited = result["error"]["details"]["waiting"].to_string();
    assert!(waited.contains("b: ") && waited.contains("test.nobody"), "{result}");
    let ms = result["execution_time_ms"].as_u64().expect("a time");
    assert!(ms < 10_000, "{ms} ms");
    workshop.until("cancelled", 1).await;
}

/// AITP-11: a cancel ends the task at once, and the agent is told.
#[tokio::test]
async fn a_cancel_reaches_the_agents_wherever_they_are() {
    let workshop = Workshop::new();
    let node = with_worker(&workshop).await;
    let _other = Node::builder().join(&node).agent(workshop.worker("other", "test.other", json!({}))).spawn().await;
    node.knows("test.other", &["other"]).await;
    let long = json!({ "until": "never" });
    let steps = [step("a", "test.work", long.clone()), step("b", "test.other", long), step("c", "test.work", json!("${a.output}"))];
    let id = node.submit(&task(&steps)).await;
    workshop.until("started", 2).await;

    let status = node.post(&format!("/aitp/tasks/{id}/cancel"), &json!({})).await.ok();

    assert_eq!((&status["status"], &status["outcome"], &status["reason"]), (&json!("FAILED"), &json!("cancelled"), &json!("CANCELLED")));
    workshop.until("cancelled", 2).await;
    let result = node.get(&format!("/aitp/tasks/{id}/result")).await.ok();
    assert_eq!((&result["outcome"], &result["error"]["code"], &result["result"]), (&json!("cancelled"), &json!("CANCELLED"), &Value::Null));
    assert_eq!(node.step(&id, "c").await["status"], "FAILED");
    node.post(&format!("/aitp/tasks/{id}/cancel"), &json!({})).await.refused(409, "CONFLICT");
    let events = node.task_events(&id).await.rest().await;
    let names: Vec<&str> = events.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names[names.len() - 2..], ["cancel_requested", "ended"], "{names:?}");
}

/// MAOP-7: an agent's node that refuses for lack of room is asked again, without counting as a failure.
#[tokio::test]
async fn a_busy_agent_is_asked_again_until_it_has_room() {
    let workshop = Workshop::new();
    let narrow = with(workshop.worker("narrow", "test.work", json!({})), json!({ "concurrency": 1, "queue": 1 }));
    let node = planner().agent(narrow).spawn().await;
    node.knows("test.work", &["narrow"]).await;
    let steps: Vec<Value> = (0..6).map(|n| step(&format!("s{n}"), "test.work", json!({ "ms": 50, "mark": n, "output": n }))).collect();
    let never_retried = json!({ "metadata": { "retry_policy": { "max_retries": 0 } } });

    let result = node.run_task(&with(task(&steps), never_retried)).await;

    assert_eq!(result["outcome"], "success", "{result}");
    assert_eq!((result["result"]["s5"].clone(), workshop.notes("done").len()), (json!(5), 6));
}

/// AITP-12: a node that is told to stop keeps its tasks, and goes on with them when it comes back.
#[tokio::test]
async fn a_task_goes_on_after_an_orderly_stop() {
    let workshop = Workshop::new();
    let node = with_worker(&workshop).await;
    let deferred = node.submit(&task(&[step("a", "test.later", json!({ "output": "later" }))])).await;
    node.until_step(&deferred, "a", |step| step["waiting_for"].as_str().is_some_and(|text| text.contains("deferred"))).await;

    let later = workshop.worker("later", "test.later", json!({}));
    let node = node.restart_with(|builder| builder.agent(later)).await;

    let result = node.result(&deferred).await;
    assert_eq!((&result["outcome"], &result["result"]), (&json!("success"), &json!("later")), "{result}");
    let took = Duration::from_millis(result["execution_time_ms"].as_u64().expect("a time"));
    assert!(took < SETTLE, "{took:?}");
}

/// AITP-9, AITP-10: the only agent that is paid in the currency of the budget is busy; that another one is paid in euros does not end the task.
#[tokio::test]
async fn a_busy_agent_is_waited_for_though_another_is_paid_in_foreign_money() {
    let workshop = Workshop::new();
    let agent = |name: &str, currency: &str| {
        let price = json!({ "price": { "amount": "0.1", "currency": currency } });
        with(workshop.worker(name, "test.work", price), json!({ "concurrency": 1, "queue": 0 }))
    };
    let home = planner().agent(agent("own", "USD")).agent(agent("foreign", "EUR")).spawn().await;
    home.knows("test.work", &["foreign", "own"]).await;
    let call = json!({ "capability": "test.work", "agent_id": home.agent_id("own").await, "input": { "mark": "other", "until": "go" } });
    let other = tokio::spawn(home.request(Method::POST, "/v1/invoke").json(&call).send());
    workshop.until("started", 1).await;
    let limited = json!({ "metadata": { "cost_limit": { "amount": "1", "currency": "USD" } } });
    let id = home.submit(&with(task(&[step("a", "test.work", json!({ "output": 1 }))]), limited)).await;
    home.task_events(&id).await.wait_for("deferred", SETTLE, |_| true).await;
    workshop.release("go");
    let result = home.result(&id).await;
    assert_eq!((&result["outcome"], &result["cost"], &result["currency"]), (&json!("success"), &json!(0.1), &json!("USD")), "{result}");
    let other = other.await.expect("the other call ends").expect("the node answers");
    assert_eq!(other.status().as_u16(), 200);
}
