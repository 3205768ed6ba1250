//! The metadata of a task: time, money, retries, tags (AITP 2.2).

use std::collections::BTreeSet;
use std::time::Duration;

use rust_decimal::{Decimal, prelude::ToPrimitive};
use serde_json::Value;

use super::super::fault::{Faults, below};
use super::section::{self, AMOUNT_MAX, Section};
use super::{Backoff, Budget, Defaults, Retry, Usual, currency};
use crate::model::{TaskId, Timestamp, json_kind, printable};

/// The most tags of a task.
const TAGS_MAX: usize = 32;
/// The longest tag, in characters.
const TAG_CHARS_MAX: usize = 64;
/// The most tasks that one may wait for.
const DEPENDENCIES_MAX: usize = 64;
/// The most repetitions of an attempt.
const RETRIES_MAX: u32 = 20;
/// The longest first pause, in milliseconds.
const BACKOFF_BASE_MS_MAX: u32 = 3_600_000;
/// How far ahead a deadline may lie: further is a slip, or in milliseconds.
const DEADLINE_MAX: Duration = Duration::from_secs(366 * 24 * 3_600);

const FIELDS: [&str; 11] = [
    "deadline",
    "timeout_seconds",
    "retry_policy",
    "retry",
    "cost_limit",
    "estimated_cost",
    // What the task tells later; whoever sends back what was once read is not refused.
    "actual_cost",
    "tags",
    "dependencies",
    "min_trust_score",
    "offers",
];

/// What the section says.
#[derive(Debug)]
pub(super) struct Metadata {
    /// See [`super::Definition::deadline`].
    pub(super) deadline: Option<Timestamp>,
    /// See [`super::Definition::tags`].
    pub(super) tags: BTreeSet<String>,
    /// See [`super::Definition::dependencies`].
    pub(super) dependencies: BTreeSet<TaskId>,
    /// See [`super::Definition::budget`].
    pub(super) budget: Option<Budget>,
    /// See [`super::Definition::estimated_cost`].
    pub(super) estimated_cost: Option<Decimal>,
    /// What subtasks have that do not say otherwise.
    pub(super) usual: Usual,
}

/// Reads the section at `path`, if there is one.
pub(super) fn read(value: Option<&Value>, path: &str, defaults: &Defaults, now: Timestamp, faults: &mut Faults) -> Metadata {
    let usual = Usual { retry: defaults.retry, attempt_timeout: defaults.attempt_timeout, min_trust: None, offers: false };
    let mut metadata =
        Metadata { deadline: None, tags: BTreeSet::new(), dependencies: BTreeSet::new(), budget: None, estimated_cost: None, usual };
    let Some(section) = value.and_then(|value| Section::of(value, path, "metadata", &FIELDS, faults)) else { return metadata };
    metadata.deadline = section.get("deadline").and_then(|value| deadline(value, &section.at("deadline"), now, faults));
    for (number, value) in section.list("tags", TAGS_MAX, faults).unwrap_or_default().iter().enumerate() {
        let path = below(&section.at("tags"), &number.to_string());
        if let Some(tag) = section::text(value, &path, TAG_CHARS_MAX, faults) {
            if tag.chars().any(char::is_control) {
                faults.add(&path, "has printable characters only");
            }
            metadata.tags.insert(tag.to_owned());
        }
    }
    metadata.dependencies = section.names("dependencies", DEPENDENCIES_MAX, faults).into_iter().map(|(_, task)| task).collect();
    metadata.budget = cost_limit(&section, None, faults);
    metadata.estimated_cost = section.amount("estimated_cost", faults);
    metadata.usual = read_usual(&section, &usual, faults);
    metadata
}

/// What stands in metadata and in subtasks alike, with `else_usual` for what does not.
pub(super) fn read_usual(section: &Section<'_>, else_usual: &Usual, faults: &mut Faults) -> Usual {
    Usual {
        retry: retry(section, else_usual.retry, faults),
        attempt_timeout: section.seconds("timeout_seconds", faults).unwrap_or(else_usual.attempt_timeout),
        min_trust: section.at_most("min_trust_score", 100, faults).and_then(|score| score.to_f64()).or(else_usual.min_trust),
        offers: section.boolean("offers", faults).unwrap_or(else_usual.offers),
    }
}

fn retry(section: &Section<'_>, usual: Retry, faults: &mut Faults) -> Retry {
    let mut retry = usual;
    if let Some(never) = section.word("retry", &[("never", true)], faults) {
        retry.never = never;
    }
    let known = ["max_retries", "backoff_strategy", "backoff_base_ms"];
    let policy = section.get("retry_policy");
    let policy = policy.and_then(|value| Section::of(value, &section.at("retry_policy"), "retry_policy", &known, faults));
    let Some(policy) = policy else { return retry };
    let words = [("exponential", Backoff::Exponential), ("linear", Backoff::Linear), ("fixed", Backoff::Fixed)];
    retry.retries_max = policy.count("max_retries", RETRIES_MAX, faults).unwrap_or(retry.retries_max);
    retry.backoff = policy.word("backoff_strategy", &words, faults).unwrap_or(retry.backoff);
    let base = policy.count("backoff_base_ms", BACKOFF_BASE_MS_MAX, faults);
    retry.base = base.map_or(retry.base, |ms| Duration::from_millis(ms.into()));
    retry
}

/// What something may cost: a number, a decimal in quotes, or an object with a currency. `whole` is the budget of which it is a part.
pub(super) fn cost_limit(section: &Section<'_>, whole: Option<Budget>, faults: &mut Faults) -> Option<Budget> {
    let value = section.get("cost_limit")?;
    let unsaid = whole.map(|budget| budget.currency).or_else(currency::usual)?;
    if !value.is_object() {
        return section.amount("cost_limit", faults).map(|amount| Budget { amount, currency: unsaid });
    }
    let inner = Section::of(value, &section.at("cost_limit"), "cost_limit", &["amount", "currency"], faults)?;
    if inner.get("amount").is_none() {
        faults.add(&inner.at("amount"), format!("is missing; say how much, 0 to {AMOUNT_MAX}"));
    }
    let amount = inner.amount("amount", faults);
    let currency = match inner.get("currency") {
        None => unsaid,
        Some(Value::String(code)) => match currency::find(code) {
            Some(currency) => currency,
            None => {
                let upper = code.to_ascii_uppercase();
                let meant = currency::find(&upper).map(|currency| format!("; did you mean {currency}?")).unwrap_or_default();
                let told = format!("`{}` is not a currency of ISO 4217, such as USD or EUR{meant}", printable(code, 20));
                faults.add(&inner.at("currency"), told);
                return None;
            }
        },
        Some(other) => {
            faults.add(&inner.at("currency"), format!("is three capital letters such as USD, not {}", json_kind(other)));
            return None;
        }
    };
    Some(Budget { amount: amount?, currency })
}

/// When a task is given up: Unix seconds, or RFC 3339 text.
fn deadline(value: &Value, path: &str, now: Timestamp, faults: &mut Faults) -> Option<Timestamp> {
    let ms = match value {
        Value::String(text) => match text.parse::<jiff::Timestamp>() {
            Ok(moment) => u64::try_from(moment.as_millisecond()).unwrap_or(0),
            Err(_) => {
                let told = format!("`{}` is not a time such as 2030-01-31T12:00:00Z, or Unix seconds", printable(text, 40));
                faults.add(path, told);
                return None;
            }
        },
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => {
            let seconds = section::decimal(value, path, faults)?;
            let ms = seconds.checked_mul(Decimal::ONE_THOUSAND);
            if seconds.is_sign_negative() { 0 } else { ms.and_then(|ms| ms.to_u64()).unwrap_or(u64::MAX) }
        }
    };
    let deadline = Timestamp::from_ms(ms);
    if deadline <= now {
        faults.add(path, format!("lies in the past: {deadline}, and it is {now}"));
        return None;
    }
    if deadline > now.saturating_add(DEADLINE_MAX) {
        faults.add(path, format!("lies more than a year ahead: {deadline}; Unix time is in seconds"));
        return None;
    }
    Some(deadline)
}
