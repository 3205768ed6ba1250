//! Which keys exist, and between which bounds their numbers lie.
//!
//! The keys are read off the types themselves: the default configuration and one agent with every field set are written as JSON, and the
//! names found there are the known ones. A field that is added to a section is therefore known at once.

use std::{collections::BTreeMap, fmt};

use serde_json::{Value, json};

use super::Config;
use crate::model;

/// What may stand at a place of the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Shape {
    /// A value of its own, of whatever kind.
    Leaf,
    /// A table with these keys.
    Table(BTreeMap<String, Shape>),
    /// An array of tables of one shape.
    Rows(Box<Shape>),
}

impl Shape {
    fn of(value: &Value) -> Self {
        match value {
            Value::Object(fields) => Self::Table(fields.iter().map(|(key, value)| (key.clone(), Self::of(value))).collect()),
            Value::Array(rows) => match rows.first() {
                Some(row @ Value::Object(_)) => Self::Rows(Box::new(Self::of(row))),
                Some(_) | None => Self::Leaf,
            },
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => Self::Leaf,
        }
    }

    /// The keys directly below this place.
    pub(super) fn keys(&self) -> impl Iterator<Item = &str> {
        let fields = match self {
            Self::Table(fields) => Some(fields),
            Self::Leaf | Self::Rows(_) => None,
        };
        fields.into_iter().flat_map(|fields| fields.keys().map(String::as_str))
    }

    /// What stands under `key`.
    pub(super) fn get(&self, key: &str) -> Option<&Self> {
        match self {
            Self::Table(fields) => fields.get(key),
            Self::Leaf | Self::Rows(_) => None,
        }
    }

    /// What stands at a dotted path.
    pub(super) fn at(&self, path: &str) -> Option<&Self> {
        path.split('.').try_fold(self, |shape, key| shape.get(key))
    }

    /// Every dotted path that ends in a leaf.
    pub(super) fn leaves(&self) -> Vec<String> {
        let below = |key: &str, shape: &Self| match shape {
            Self::Leaf | Self::Rows(_) => vec![key.to_owned()],
            Self::Table(_) => shape.leaves().into_iter().map(|rest| format!("{key}.{rest}")).collect(),
        };
        match self {
            Self::Table(fields) => fields.iter().flat_map(|(key, shape)| below(key, shape)).collect(),
            Self::Leaf | Self::Rows(_) => Vec::new(),
        }
    }
}

/// The sections and their settings, without the agents.
pub(super) fn sections() -> Shape {
    Shape::of(&serde_json::to_value(Config::default()).unwrap_or_default())
}

/// The kinds of adapter.
pub(super) const ADAPTERS: [&str; 4] = ["builtin", "http", "process", "task"];

/// An `[[agent]]` table whose adapter is of this kind; `None` if there is no such kind.
pub(super) fn agent(adapter: &str) -> Option<Shape> {
    let adapter = match adapter {
        "builtin" => json!({"type": "builtin", "kind": "echo", "allow_files": ["x"]}),
        "process" => json!({"type": "process", "command": ["x"], "working_dir": "x", "pass_env": ["x"]}),
        "http" => json!({"type": "http", "endpoint": "x", "health": {"url": "x"}, "token_file": "x", "token_env": "x"}),
        "task" => json!({"type": "task"}),
        _ => return None,
    };
    let full = json!({
        "name": "x", "description": "x", "queue": 1, "rate_limit": {"per_s": 1, "burst": 1}, "adapter": adapter,
        "capability": [{
            "id": "x", "description": "x",
            "price": {"amount": "1", "currency": "USD"},
            "constraints": {"max_input_length": 1, "supported_languages": ["en"], "response_time_ms": 1},
            "score": 1, "specializations": ["x"], "limitations": ["x"], "resource_requirements": {"x": 1},
        }],
    });
    // Reading fills in what has a default, so that writing shows every field there is.
    let definition: model::Definition = serde_json::from_value(full).ok()?;
    let mut shape = Shape::of(&serde_json::to_value(definition).ok()?);
    if let Shape::Table(fields) = &mut shape
        && let Some(Shape::Rows(row)) = fields.get_mut("capability")
        && let Shape::Table(fields) = row.as_mut()
    {
        // Schemas and resources are the author's own: their keys are not ours to know.
        fields.insert("input_schema".to_owned(), Shape::Leaf);
        fields.insert("output_schema".to_owned(), Shape::Leaf);
        fields.insert("resource_requirements".to_owned(), Shape::Leaf);
    }
    Some(shape)
}

/// Between which bounds a number lies.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Bounds {
    /// The key.
    pub(super) key: &'static str,
    /// The smallest value that is allowed.
    pub(super) min: f64,
    /// The largest value that is allowed.
    pub(super) max: f64,
    /// Whether it must be a whole number.
    pub(super) whole: bool,
}

impl fmt::Display for Bounds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.whole { "a whole number" } else { "a number" };
        write!(f, "{kind} between {} and {}", self.min, self.max)
    }
}

const fn between(key: &'static str, min: f64, max: f64) -> Bounds {
    Bounds { key, min, max, whole: true }
}

const fn fraction(key: &'static str, max: f64) -> Bounds {
    Bounds { key, min: 0.0, max, whole: false }
}

/// A day, in milliseconds.
const DAY_MS: f64 = 86_400_000.0;

/// The bounds of every number among the settings.
pub(super) const BOUNDS: [Bounds; 52] = [
    between("mesh.limits.pending_in_max", 1.0, 4_096.0),
    between("mesh.limits.pending_out_max", 1.0, 4_096.0),
    between("mesh.limits.established_in_max", 1.0, 65_536.0),
    between("mesh.limits.established_out_max", 1.0, 65_536.0),
    between("mesh.limits.established_max", 1.0, 65_536.0),
    between("mesh.limits.per_peer_max", 1.0, 64.0),
    between("mesh.limits.per_range_max", 1.0, 65_536.0),
    // Less than 32 MiB is below what an idle node takes; more than a pebibyte is a slip of the pen.
    between("mesh.limits.memory_bytes_max", 33_554_432.0, 1_125_899_906_842_624.0),
    fraction("routing.weight_match", 1.0),
    fraction("routing.weight_trust", 1.0),
    fraction("routing.weight_latency", 1.0),
    fraction("routing.weight_cost", 1.0),
    fraction("routing.min_trust", 100.0),
    fraction("routing.exploration", 0.5),
    fraction("routing.retry_budget", 1.0),
    between("routing.breaker_failures", 1.0, 100.0),
    between("routing.breaker_open_ms", 1.0, 600_000.0),
    between("routing.breaker_open_ms_max", 1.0, 600_000.0),
    between("routing.evidence_half_life_ms", 1_000.0, DAY_MS),
    between("routing.suspect_ms", 100.0, 600_000.0),
    between("routing.receipt_window_ms", 100.0, 3_600_000.0),
    between("limits.payload_bytes_max", 256.0, 67_108_864.0),
    between("limits.announced_bytes_max", 65_536.0, 1_099_511_627_776.0),
    between("limits.announced_per_peer_bytes_max", 65_536.0, 1_099_511_627_776.0),
    between("limits.call_timeout_ms_default", 1.0, DAY_MS),
    between("limits.call_timeout_ms_max", 1.0, DAY_MS),
    between("limits.step_timeout_ms_max", 1.0, 7.0 * DAY_MS),
    between("limits.calls_in_flight_max", 1.0, 1_048_576.0),
    between("limits.calls_per_peer_max", 1.0, 1_048_576.0),
    between("limits.calls_per_peer_per_s", 0.0, 1_000_000.0),
    between("limits.calls_per_peer_burst", 1.0, 1_000_000.0),
    between("limits.api_requests_per_s", 0.0, 1_000_000.0),
    between("limits.api_requests_burst", 1.0, 1_000_000.0),
    between("limits.attempts_max", 1.0, 16.0),
    between("limits.agents_max", 0.0, 64.0),
    between("limits.records_max", 1.0, 10_000_000.0),
    between("limits.results_kept_max", 0.0, 10_000_000.0),
    between("limits.results_kept_bytes_max", 0.0, 1_099_511_627_776.0),
    between("limits.results_kept_ms", 0.0, DAY_MS),
    // The largest payload and what stands around it fit.
    between("limits.http_body_bytes_max", 1_024.0, 68_157_440.0),
    // A stop takes at most half a minute, whatever is configured.
    between("limits.drain_ms_max", 0.0, 30_000.0),
    between("task.live_max", 1.0, 1_000_000.0),
    // Memory and the start grow with them.
    between("task.kept_max", 0.0, 1_000_000.0),
    between("task.keep_ms", 0.0, 365.0 * DAY_MS),
    between("task.parallel_max", 1.0, 2_000.0),
    between("task.start_within_ms", 1.0, DAY_MS),
    between("task.defer_ms", 1.0, DAY_MS),
    between("task.attempt_timeout_ms_default", 1.0, DAY_MS),
    between("context.contexts_max", 0.0, 1_000_000.0),
    // Below it an owner's eighth would not hold the largest change.
    between("context.bytes_max", 1_048_576.0, 1_125_899_906_842_624.0),
    between("context.hot_max", 1.0, 1_000_000.0),
    between("context.hot_bytes_max", 1_048_576.0, 1_125_899_906_842_624.0),
];

/// The bounds of the number at `key`, if one stands there.
pub(super) fn bounds(key: &str) -> Option<Bounds> {
    BOUNDS.into_iter().find(|bounds| bounds.key == key)
}

/// What was meant by the unknown `key` (its last part) below `prefix`: the same name elsewhere, a similar one here, or a similar path.
pub(super) fn meant(prefix: &str, key: &str, here: &Shape, all: &Shape) -> Option<String> {
    let full = join(prefix, key);
    if let Some(near) = model::nearest(key, here.keys()) {
        return Some(join(prefix, near));
    }
    let leaves = all.leaves();
    let elsewhere = leaves.iter().find(|path| path.rsplit('.').next() == Some(key));
    elsewhere.cloned().or_else(|| model::nearest(&full, leaves.iter().map(String::as_str)).map(str::to_owned))
}

/// `key` below `prefix`, dotted.
pub(super) fn join(prefix: &str, key: &str) -> String {
    if prefix.is_empty() { key.to_owned() } else { format!("{prefix}.{key}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_of_the_defaults_has_bounds_and_lies_between_them() {
        let defaults = serde_json::to_value(Config::default()).expect("serialises");
        for path in sections().leaves() {
            let value = path.split('.').fold(&defaults, |value, key| &value[key]);
            if let Some(number) = value.as_f64() {
                let bounds = bounds(&path).unwrap_or_else(|| panic!("{path} has no bounds"));
                assert!((bounds.min..=bounds.max).contains(&number), "{path}");
            }
        }
    }

    #[test]
    fn every_bound_belongs_to_a_setting() {
        let shape = sections();
        for bounds in BOUNDS {
            assert_eq!(shape.at(bounds.key), Some(&Shape::Leaf), "{}", bounds.key);
        }
    }

    #[test]
    fn agents_have_the_fields_of_their_definition() {
        for adapter in ADAPTERS {
            let shape = agent(adapter).expect("known kind");
            for key in ["name", "version", "framework", "concurrency", "queue", "description", "adapter", "capability"] {
                assert!(shape.get(key).is_some(), "{adapter} {key}");
            }
        }
        let http = agent("http").expect("known");
        assert!(http.at("adapter.health.interval_ms").is_some());
        assert!(http.at("adapter.allow_private").is_some());
        assert_eq!(agent("telepathy"), None);
    }

    #[test]
    fn a_key_in_the_wrong_section_is_found_in_the_right_one() {
        let all = sections();
        let here = all.get("mesh").expect("a section");
        assert_eq!(meant("mesh", "min_trust", here, &all).as_deref(), Some("routing.min_trust"));
        assert_eq!(meant("mesh", "lissten", here, &all).as_deref(), Some("mesh.listen"));
    }
}
