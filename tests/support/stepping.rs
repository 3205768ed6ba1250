//! Calls of agents that do what their input lists (`tests/support/agents/stepping.py`), and what became of them.

use serde_json::{Value, json};

use super::{
    agents::{Journal, stepper},
    node::Node,
    wait::{SETTLE, eventually},
};

/// A call of an agent that does these steps.
pub(crate) fn stepping(capability: &str, steps: &[Value]) -> Value {
    json!({ "capability": capability, "input": { "steps": steps }, "timeout_ms": 60_000 })
}

/// Waits until the agent has noted this so often, and no more often.
pub(crate) async fn until_count(journal: &Journal, what: &str, count: usize) {
    let reached = async || (journal.count(what) >= count).then_some(());
    eventually(&format!("{count} calls {what} at the agent"), SETTLE, reached).await;
    assert_eq!(journal.count(what), count, "{:?}", journal.lines());
}

/// The agent takes calls again, at once or after it was started anew.
pub(crate) async fn until_it_serves(node: &Node, capability: &str, after: &str) {
    let call = stepping(capability, &[json!({ "output": "free" })]);
    let served = async || Some(node.invoke(call.clone()).await).filter(|answer| answer.status == 200);
    assert_eq!(eventually(after, SETTLE, served).await.ok()["output"], "free");
}

/// Two agents for the same on nodes of their own, of whom the first is asked first, and a caller.
pub(crate) struct Two {
    pub(crate) caller: Node,
    pub(crate) first: Node,
    pub(crate) second: Node,
    pub(crate) journals: [Journal; 2],
}

impl Two {
    pub(crate) async fn start(idempotent: bool) -> Self {
        let caller = Node::builder().config("[routing]\nexploration = 0.0\n").spawn().await;
        let (mut nodes, mut journals) = (Vec::new(), Vec::new());
        for (name, ms) in [("first", 1), ("second", 900)] {
            let builder = Node::builder();
            let capability = json!({ "id": "test.two", "idempotent": idempotent, "constraints": { "response_time_ms": ms } });
            let (agent, journal) = stepper(name, builder.home(), capability);
            nodes.push(builder.join(&caller).agent(agent).spawn().await);
            journals.push(journal);
        }
        caller.knows("test.two", &["first", "second"]).await;
        let [first, second] = nodes.try_into().expect("two nodes");
        Self { caller, first, second, journals: journals.try_into().expect("two journals") }
    }
}
