//! The fallbacks of a task: what to do when something goes wrong (AITP 6.2).
//!
//! Each is a strategy by name, and what the draft's own example says is what holds where nothing is said. `on_subtask_failed` is ours: the
//! draft's other fallbacks are about one attempt, and none says what becomes of the task.

use std::time::Duration;

use serde_json::Value;

use super::super::fault::Faults;
use super::section::Section;
use super::{Fallback, OnFailure, OnOffline, OnTimeout, OnUnavailable};

/// The longest notification, in characters.
const NOTIFICATION_CHARS_MAX: usize = 500;

const FIELDS: [&str; 5] = ["on_agent_offline", "on_timeout", "on_cost_exceeded", "on_capability_unavailable", "on_subtask_failed"];

#[derive(Clone, Copy)]
enum Strategy {
    NextBest,
    Extend,
    Fail,
    Defer,
    Degrade,
}

const NEXT_BEST: (&str, Strategy) = ("SELECT_NEXT_BEST", Strategy::NextBest);
const EXTEND: (&str, Strategy) = ("RETRY_WITH_TIMEOUT_EXTENSION", Strategy::Extend);
const FAIL: (&str, Strategy) = ("FAIL_AND_NOTIFY", Strategy::Fail);
const DEFER: (&str, Strategy) = ("DEFER", Strategy::Defer);
const DEGRADE: (&str, Strategy) = ("DEGRADE", Strategy::Degrade);

/// Reads the section at `path`, if there is one. `defer` is how long to wait before another look where nothing is said.
pub(super) fn read(value: Option<&Value>, path: &str, defer: Duration, faults: &mut Faults) -> Fallback {
    let mut fallback = Fallback {
        on_agent_offline: OnOffline::NextBest,
        on_timeout: OnTimeout::Extend(None),
        cost_notification: None,
        on_unavailable: OnUnavailable::Defer(defer),
        on_failure: OnFailure::Fail,
    };
    let Some(section) = value.and_then(|value| Section::of(value, path, "fallback", &FIELDS, faults)) else { return fallback };
    let mut on = |name: &str, more: &str, strategies: &[(&str, Strategy)]| {
        let known: &[&str] = if more.is_empty() { &["strategy"] } else { &["strategy", more] };
        let inner = Section::of(section.get(name)?, &section.at(name), name, known, faults)?;
        if inner.get("strategy").is_none() {
            faults.add(&inner.at("strategy"), format!("is missing; `{name}` says what to do"));
        }
        let strategy = inner.word("strategy", strategies, faults);
        let (time, text) = match more {
            "notification" => (None, inner.text(more, NOTIFICATION_CHARS_MAX, faults)),
            "" => (None, None),
            _ => (inner.seconds(more, faults), None),
        };
        let takes_time = strategy.is_some_and(|strategy| matches!(strategy, Strategy::Extend | Strategy::Defer));
        if time.is_some() && strategy.is_some() && !takes_time {
            faults.add(&inner.at(more), "says how long, and this strategy does not wait");
        }
        Some((strategy?, time, text))
    };
    if let Some((strategy, ..)) = on("on_agent_offline", "", &[NEXT_BEST, FAIL]) {
        fallback.on_agent_offline = if matches!(strategy, Strategy::Fail) { OnOffline::Fail } else { OnOffline::NextBest };
    }
    if let Some((strategy, time, _)) = on("on_timeout", "extended_timeout_seconds", &[EXTEND, NEXT_BEST, FAIL]) {
        fallback.on_timeout = match strategy {
            Strategy::NextBest => OnTimeout::Retry,
            Strategy::Fail => OnTimeout::Fail,
            Strategy::Extend | Strategy::Defer | Strategy::Degrade => OnTimeout::Extend(time),
        };
    }
    if let Some((_, _, text)) = on("on_cost_exceeded", "notification", &[FAIL]) {
        fallback.cost_notification = text.map(str::to_owned);
    }
    if let Some((strategy, time, _)) = on("on_capability_unavailable", "retry_after_seconds", &[DEFER, FAIL]) {
        let fails = matches!(strategy, Strategy::Fail);
        fallback.on_unavailable = if fails { OnUnavailable::Fail } else { OnUnavailable::Defer(time.unwrap_or(defer)) };
    }
    if let Some((strategy, ..)) = on("on_subtask_failed", "", &[FAIL, DEGRADE]) {
        fallback.on_failure = if matches!(strategy, Strategy::Degrade) { OnFailure::Degrade } else { OnFailure::Fail };
    }
    fallback
}
