//! Whether the parts of a task fit the agents that would do them, told before anything runs (AITP-3).
//!
//! The directory names the schemas of every agent that it knows. What all agents agree on that could do a subtask is certain, and a task
//! that clashes with it is refused, since it would fail on whoever is chosen. Where they differ, or nobody is known yet, nothing is said: one
//! of them may take it. So an agent with a strange schema can hinder nobody as long as another offers the same.
//!
//! Schemas that this node does not hold are asked for, all at once and for at most [`FETCH_MAX`]; what does not come in that time says
//! nothing either.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use crate::agents::definition::ANYTHING;
use crate::agents::off_workers;
use crate::model::{AgentId, CapabilityName, Failure, NodeId, VersionRequirement};
use crate::node::schemas::schemas_of;
use crate::node::shared::Shared;
use crate::proto::directory::{Reach, Routes};
use crate::proto::task::definition::{Definition, Subtask};
use crate::proto::task::{fault, types};
use crate::wire::directory::SchemaHash;

/// How long schemas are waited for.
const FETCH_MAX: Duration = Duration::from_millis(500);
/// Nodes that are asked for schemas at once; what only others hold says nothing.
const NODES_MAX: usize = 16;

/// Where the subtasks stand in what a client posted.
pub(super) fn place_of_subtasks(document: &Value) -> &'static str {
    if document.get("Task").is_some() { "/Subtasks" } else { SUBTASKS }
}

/// Where they stand in a plan.
pub(super) const SUBTASKS: &str = "/subtasks";

/// Refuses a definition that no agent could be given as it is; `place` is where its subtasks stand.
pub(super) async fn check(shared: &Shared, definition: &Definition, place: &str) -> Result<(), Failure> {
    let agreed_by_what = agreed(&shared.routes.load(), definition);
    if agreed_by_what.values().all(Agreed::is_anything) {
        return Ok(());
    }
    let hashes = agreed_by_what.values().flat_map(|agreed| [agreed.input, agreed.output].map(|hash| (agreed.node, hash)));
    let schemas = Box::pin(texts(shared, hashes)).await;
    let anything = Value::Bool(true);
    let text = |hash: SchemaHash| schemas.get(&hash).map_or(&anything, |text| &**text);
    let found = off_workers(usize::MAX, || {
        types::clashes(definition, &|subtask| {
            agreed_by_what.get(&What::of(subtask)).map(|agreed| (text(agreed.input), text(agreed.output)))
        })
    });
    if found.is_empty() {
        return Ok(());
    }
    let mut found = found;
    for fault in &mut found {
        if let Some(rest) = fault.path.strip_prefix(SUBTASKS) {
            fault.path = format!("{place}{rest}");
        }
    }
    Err(fault::failure(&found))
}

/// Schemas by hash, as far as they are known or can be had from the nodes beside them. What breaks our bounds is left out.
pub(super) async fn texts(shared: &Shared, wanted: impl Iterator<Item = (NodeId, SchemaHash)>) -> BTreeMap<SchemaHash, Arc<Value>> {
    let wanted: BTreeSet<(NodeId, SchemaHash)> = wanted.filter(|(_, hash)| *hash != ANYTHING).collect();
    let is_missing = |hash: &SchemaHash| shared.schemas.get(*hash).is_none();
    let mut missing_by_node: BTreeMap<NodeId, Vec<SchemaHash>> = BTreeMap::new();
    for (node, hash) in wanted.iter().filter(|(_, hash)| is_missing(hash)) {
        missing_by_node.entry(*node).or_default().push(*hash);
    }
    if !missing_by_node.is_empty() {
        let fetch = missing_by_node.iter().take(NODES_MAX).map(|(node, hashes)| schemas_of(shared, *node, hashes));
        let _ = tokio::time::timeout(FETCH_MAX, futures::future::join_all(fetch)).await;
    }
    let known = wanted.iter().filter_map(|(_, hash)| Some((*hash, shared.schemas.get(*hash)?)));
    known.filter(|(_, known)| known.schema.is_some()).map(|(hash, known)| (hash, known.text)).collect()
}

/// What a subtask asks of an agent.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct What<'a> {
    capability: &'a CapabilityName,
    agent: Option<AgentId>,
    /// As text, which has an order.
    version: Option<String>,
}

impl<'a> What<'a> {
    fn of(subtask: &'a Subtask) -> Self {
        Self { capability: &subtask.capability, agent: subtask.agent, version: subtask.version.as_ref().map(ToString::to_string) }
    }
}

/// What all agree on that offer something; [`ANYTHING`] where they differ.
pub(super) struct Agreed {
    /// One of them, and near if one of them is.
    pub(super) node: NodeId,
    is_near: bool,
    /// Of the input schema.
    pub(super) input: SchemaHash,
    /// Of the output schema.
    pub(super) output: SchemaHash,
}

impl Agreed {
    fn is_anything(&self) -> bool {
        self.input == ANYTHING && self.output == ANYTHING
    }
}

fn agreed<'a>(routes: &Routes, definition: &'a Definition) -> BTreeMap<What<'a>, Agreed> {
    let wanted: BTreeMap<What<'_>, &Subtask> = definition.subtasks.iter().map(|subtask| (What::of(subtask), subtask)).collect();
    wanted
        .into_iter()
        .filter_map(|(what, subtask)| Some((what, agreed_on(routes, &subtask.capability, subtask.agent, subtask.version.as_ref())?)))
        .collect()
}

/// What all agree on that offer `capability`, or what stands below it.
pub(super) fn agreed_on(
    routes: &Routes,
    capability: &CapabilityName,
    agent: Option<AgentId>,
    version: Option<&VersionRequirement>,
) -> Option<Agreed> {
    let mut agreed: Option<Agreed> = None;
    for entry in routes.entries(capability).iter().filter(|entry| agent.is_none_or(|agent| agent == entry.record.agent)) {
        let is_near = matches!(entry.reach, Reach::Here | Reach::Connected);
        for offered in &entry.record.capabilities {
            let fits = offered.id.is_under(capability);
            if !fits || version.is_some_and(|wanted| !wanted.accepts(&offered.version)) {
                continue;
            }
            let (node, input, output) = (entry.record.node, offered.input_schema, offered.output_schema);
            let Some(agreed) = &mut agreed else {
                agreed = Some(Agreed { node, is_near, input, output });
                continue;
            };
            if agreed.input != input {
                agreed.input = ANYTHING;
            }
            if agreed.output != output {
                agreed.output = ANYTHING;
            }
            if agreed.is_anything() {
                return Some(Agreed { node, is_near, input: ANYTHING, output: ANYTHING });
            }
            if is_near && !agreed.is_near {
                (agreed.node, agreed.is_near) = (node, true);
            }
        }
    }
    agreed
}
