//! Tasks, agents and a clock for the tests of tasks: definitions put together by hand, and a machine in virtual time whose shell is the
//! test itself.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rust_decimal::Decimal;
use serde_json::{Map, Value};

use super::definition::{Backoff, Budget, Definition, Fallback, OnFailure, OnOffline, OnTimeout, OnUnavailable, Retry, Subtask, Usual};
use super::state::{Config, State};
use super::template::Template;
use crate::model::{AgentId, NodeId, Priority, TaskId, Timestamp};
use crate::wire::task::{Charge, Submitted, Text};

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
        estimated_cost: None,
        usual: Usual {
            retry: Retry { retries_max: 3, backoff: Backoff::Exponential, base: Duration::from_secs(1), never: false },
            attempt_timeout: Duration::from_secs(10),
            min_trust: None,
            offers: false,
        },
        fallback: Fallback {
            on_agent_offline: OnOffline::NextBest,
            on_timeout: OnTimeout::Extend(Duration::from_secs(20)),
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
    Submitted { document: text("{}"), key: None, identity: [0; 32] }
}

pub(super) fn id() -> TaskId {
    TaskId::from_random(7)
}

/// The task as it begins.
pub(super) fn state(definition: Definition) -> State {
    State::submitted(id(), Arc::new(Config::default()), definition, &submitted(), BEGIN)
}
