//! Tasks within tasks (AMP 3 "Task Delegation", AMP-8, threat T20).
//!
//! A subtask may hold a whole task, for another node to run. Its definition is read here as that node will read it, so that a fault is told
//! when the outer task is submitted, with its place; and it travels as it was written, but for its `parameters`: these are a template of the
//! outer task, and the only place where that one's values go in. Every other expression in it is the inner task's own.
//!
//! On the other side, [`Definition::within`] keeps a task that a call brought within the time and the money that the call gives: less is its
//! author's choice, more is nobody's.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use super::super::fault::{Fault, Faults, below, kind};
use super::super::template::Template;
use super::section::Section;
use super::{Budget, Defaults, Definition, currency, read};
use crate::model::Timestamp;
use crate::wire::invocation::HOPS_MAX;
use crate::wire::task::Parent;

/// How a document is read that may stand within another.
#[derive(Debug, Default)]
pub(super) struct Nesting {
    /// How many it stands within.
    pub(super) depth: usize,
    /// Parameters whose values are only known when it is run.
    pub(super) later: BTreeSet<String>,
}

/// The task that a subtask holds, without its parameters, and what makes these.
pub(super) fn read_task(
    section: &Section<'_>,
    places: &BTreeMap<&str, usize>,
    outer: &super::subtasks::Parent<'_>,
    faults: &mut Faults,
) -> Option<(Value, Template)> {
    let (value, path) = (section.get("task")?, section.at("task"));
    for other in ["agent_capability", "input", "estimated_units"].into_iter().filter(|other| section.get(other).is_some()) {
        faults.add(&section.at(other), "stands beside `task`, which says it all; give one of them");
    }
    let Some((defaults, now)) = outer.reading else {
        faults.add(&path, "stands in a plan; only the author of a task gives parts of it away as tasks");
        return None;
    };
    let Value::Object(fields) = value else {
        faults.add(&path, format!("is the definition of a task, not {}", kind(value)));
        return None;
    };
    if outer.nesting.depth >= HOPS_MAX {
        faults.add(&path, format!("is a task within {HOPS_MAX} others, which is as deep as they may stand"));
        return None;
    }
    let mut document = fields.clone();
    let in_section = document.get("Task").is_some_and(Value::is_object);
    let place = if in_section { document.get_mut("Task").and_then(Value::as_object_mut) } else { Some(&mut document) };
    let parameters = place.and_then(|place| place.remove("parameters")).unwrap_or_else(|| Value::Object(Map::new()));
    let parameters_path = below(&if in_section { below(&path, "Task") } else { path.clone() }, "parameters");
    let before = faults.count();
    let template = Template::parse(&parameters, &parameters_path, places).map_err(|found| faults.extend(found)).ok()?;
    let later = parameters.as_object().into_iter().flatten().filter(|(_, value)| {
        let mut is_later = false;
        if let Ok(template) = Template::parse(value, "", places) {
            template.each_expression("", &mut |_, _, _| is_later = true);
        }
        is_later
    });
    let nesting = Nesting { depth: outer.nesting.depth + 1, later: later.map(|(name, _)| name.clone()).collect() };
    match read::read_nested(value, defaults, now, &nesting) {
        Ok(inner) => check_currency(&inner, outer.budget, &path, faults),
        Err(found) => {
            let placed = |fault: Fault| {
                let inner = if fault.path == "/" { "" } else { fault.path.as_str() };
                Fault { path: format!("{path}{inner}"), ..fault }
            };
            faults.extend(found.into_iter().map(placed).collect());
        }
    }
    (faults.count() == before).then_some((Value::Object(document), template))
}

fn check_currency(inner: &Definition, outer: Option<Budget>, path: &str, faults: &mut Faults) {
    if let Some(outer) = outer
        && let Some(other) = inner.foreign_to(outer)
    {
        faults.add(path, format!("{other}, and the budget of the task around it in {}; nothing is converted", outer.currency));
    }
}

impl Definition {
    /// What of it is in another currency than this budget, in words.
    fn foreign_to(&self, given: Budget) -> Option<String> {
        let own = self.budget.map(|budget| budget.currency);
        let limited = || self.subtasks.iter().any(|subtask| subtask.cost_limit.is_some());
        let counted = own.or_else(|| currency::usual().filter(|_| limited()))?;
        (counted != given.currency).then(|| format!("its cost_limit is in {counted}"))
    }

    /// The same task within what the call gives that brought it.
    ///
    /// # Errors
    /// What it may spend is in another currency than what it was given.
    pub fn within(mut self, parent: Parent) -> Result<Self, Fault> {
        if let Some(share) = &parent.budget {
            let given = Budget { amount: share.amount, currency: share.currency };
            if let Some(other) = self.foreign_to(given) {
                let message = format!("{other}, and what the call gives for it in {}; nothing is converted", given.currency);
                return Err(Fault { path: "/metadata/cost_limit".to_owned(), message, suggestion: None });
            }
            let own = self.budget.map_or(given.amount, |budget| budget.amount.min(given.amount));
            self.budget = Some(Budget { amount: own, ..given });
        }
        self.deadline = Some(self.deadline.map_or(parent.deadline, |own: Timestamp| own.min(parent.deadline)));
        self.parent = Some(parent);
        Ok(self)
    }
}

/// What the inner documents of a document are read with.
pub(super) type Reading<'a> = (&'a Defaults, Timestamp);
