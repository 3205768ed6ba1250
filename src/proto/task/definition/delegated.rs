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

use super::super::fault::{Fault, Faults, below};
use super::super::template::Template;
use super::section::Section;
use super::{Budget, Defaults, Definition, currency, read};
use crate::model::{Timestamp, json_kind};
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
        faults.add(&path, format!("is the definition of a task, not {}", json_kind(value)));
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
    /// What it may spend is in another currency than what it was given, or it gives away a task that names a context: whoever ran that would see
    /// this node ask, and not the one whose wish it is (threat T20).
    pub fn within(mut self, parent: Parent) -> Result<Self, Fault> {
        let names_context = |task: &Value| ["/context", "/Task/context"].iter().any(|place| task.pointer(place).is_some());
        if let Some(at) = self.subtasks.iter().position(|subtask| subtask.task.as_ref().is_some_and(names_context)) {
            let message = "stands in a task that was given away, and such a task gives none away that names a context".to_owned();
            return Err(Fault { path: format!("/subtasks/{at}/task/context"), message, suggestion: None });
        }
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

#[cfg(test)]
mod tests {
    use rust_decimal::Decimal;
    use serde_json::json;

    use super::*;
    use crate::model::Currency;
    use crate::wire::task::Share;

    const NOW: Timestamp = Timestamp::from_ms(1_700_000_000_000);

    fn definition(document: &Value) -> Result<Definition, Vec<Fault>> {
        Definition::read(document, &Defaults::default(), NOW)
    }

    fn parent(amount: &str, currency: &str, deadline_ms: u64) -> Parent {
        let currency = currency.parse::<Currency>().expect("a currency");
        Parent {
            home: libp2p_identity::PeerId::from_bytes(&[0, 1, 7]).expect("a short identity hash").into(),
            task: None,
            subtask: None,
            hops: Vec::new(),
            deadline: NOW.saturating_add(std::time::Duration::from_millis(deadline_ms)),
            budget: Some(Share { amount: amount.parse().expect("a decimal"), currency }),
        }
    }

    /// Threat T20: a task that a call brought has the lesser of its own and of what the call gives.
    #[test]
    fn what_the_call_gives_is_never_exceeded() {
        let bounded = |metadata: Value, parent: Parent| {
            let step = json!({"subtask_id": "a", "agent_capability": "echo"});
            let document = json!({"name": "n", "metadata": metadata, "subtasks": [step]});
            let within = definition(&document).expect("a definition").within(parent);
            within.map(|task| (task.budget.map(|budget| budget.amount), task.deadline)).map_err(|fault| fault.path)
        };
        let at = |ms: u64| Some(NOW.saturating_add(std::time::Duration::from_millis(ms)));
        let own = json!({"cost_limit": 5, "deadline": NOW.as_ms() / 1_000 + 60});
        assert_eq!(bounded(own.clone(), parent("7", "USD", 90_000)), Ok((Some(Decimal::from(5)), at(60_000))));
        assert_eq!(bounded(own.clone(), parent("3", "USD", 30_000)), Ok((Some(Decimal::from(3)), at(30_000))));
        assert_eq!(bounded(json!({}), parent("3", "EUR", 1_000)), Ok((Some(Decimal::from(3)), at(1_000))));
        assert_eq!(bounded(own, parent("3", "EUR", 1_000)), Err("/metadata/cost_limit".to_owned()));
    }

    /// Threat T20: a node that was given a task lends its rights in contexts to nobody; a task that gives away another keeps to the same.
    #[test]
    fn a_task_that_was_given_away_gives_none_away_with_a_context() {
        let step = json!({"subtask_id": "a", "agent_capability": "echo"});
        let inner = json!({"name": "inner", "context": "0a".repeat(32), "subtasks": [step]});
        let within = |subtasks: Value| {
            let read = definition(&json!({"name": "outer", "subtasks": subtasks})).expect("a definition");
            read.within(parent("3", "USD", 1_000)).map(drop).map_err(|fault| fault.path)
        };
        let in_sections = json!({"Task": {"name": "inner", "context": "0a".repeat(32)}, "Subtasks": [step]});
        for task in [inner, in_sections] {
            assert_eq!(within(json!([step, {"subtask_id": "b", "task": task}])), Err("/subtasks/1/task/context".to_owned()));
        }
        assert_eq!(within(json!([{"subtask_id": "b", "task": {"name": "inner", "subtasks": [step]}}])), Ok(()));
    }

    /// AMP-8: the outer task's values go into the parameters and nowhere else; what is not known yet is not held against the inner task.
    #[test]
    fn an_inner_task_keeps_its_own_expressions() {
        let inner = json!({
            "name": "inner",
            "parameters": {"later": "${a.output}", "known": {"x": 1}},
            "subtasks": [{"subtask_id": "a", "agent_capability": "echo", "input": {"x": "${parent.input.later.deep[0]}", "y": "${parent.input.known.x}"}}],
        });
        let outer = |inner: &Value| {
            let first = json!({"subtask_id": "a", "agent_capability": "echo"});
            definition(&json!({"name": "outer", "subtasks": [first, {"subtask_id": "b", "task": inner}]}))
        };
        let read = outer(&inner).expect("a definition");
        let subtask = &read.subtasks[1];
        assert_eq!((subtask.after.iter().copied().collect::<Vec<_>>(), subtask.capability.as_str()), (vec![0], "task-execution"));
        let mut kept = inner.clone();
        kept.as_object_mut().expect("an object").remove("parameters");
        assert_eq!(subtask.task, Some(kept), "as it was written, without its parameters");
        let given = json!({"deep": [7]});
        let made = subtask.input.render(&Map::new(), &|place| (place == 0).then_some(&given)).expect("parameters");
        assert_eq!(made, json!({"later": {"deep": [7]}, "known": {"x": 1}}));

        let mut wrong = inner;
        wrong["subtasks"][0]["input"]["y"] = json!("${parent.input.known.z}");
        let faults = outer(&wrong).expect_err("a known parameter without that field");
        assert_eq!(faults[0].path, "/subtasks/1/task/subtasks/0/input/y");
    }

    /// Threat T20: only the author of a task gives parts of it away, not an agent that plans.
    #[test]
    fn a_plan_holds_no_tasks() {
        let goal = definition(&json!({"name": "n", "goal": "g"})).expect("a definition");
        let plan = json!([{"subtask_id": "b", "task": {"name": "n", "subtasks": [{"subtask_id": "a", "agent_capability": "echo"}]}}]);
        let faults = goal.with_subtasks(&plan).expect_err("a task within a plan");
        assert_eq!(faults[0].path, "/subtasks/0/task");
    }
}
