//! Tasks held against the schemas of those who would do them: clashes refused before anything runs, and steps found for a goal.

use serde_json::{Value, json};

use crate::support::{Node, SETTLE, script};

fn object(properties: &Value) -> Value {
    let required: Vec<&String> = properties.as_object().expect("properties").keys().collect();
    json!({ "type": "object", "required": required, "properties": properties, "additionalProperties": false })
}

fn words() -> Value {
    json!({ "type": "array", "items": { "type": "string" } })
}

/// Makes words of a text.
fn splitter(name: &str) -> Value {
    let (input, output) = (object(&json!({ "text": { "type": "string" } })), object(&json!({ "words": words() })));
    script(name, "sentence.py", &[], json!({ "id": "test.split", "input_schema": input, "output_schema": output }))
}

/// Finds the longest of words.
fn chooser(name: &str) -> Value {
    let (input, output) = (object(&json!({ "words": words() })), object(&json!({ "longest": { "type": "string" } })));
    script(name, "sentence.py", &[], json!({ "id": "test.longest", "input_schema": input, "output_schema": output }))
}

/// A task that splits a text and puts what comes of it where the second step has `field`.
fn task(field: &str, value: &str) -> Value {
    json!({
        "name": "the longest word",
        "parameters": { "text": "a mesh of agents" },
        "subtasks": [
            { "subtask_id": "split", "agent_capability": "test.split", "input": { "text": "${parent.input.text}" } },
            { "subtask_id": "longest", "agent_capability": "test.longest", "input": { field: value } },
        ],
    })
}

/// The same in the draft's sections.
fn in_sections(mut task: Value) -> Value {
    let fields = task.as_object_mut().expect("a task");
    let subtasks = fields.remove("subtasks").expect("subtasks");
    json!({ "Task": task, "Subtasks": subtasks })
}

/// Hands a task in, waits for its end and reads its result.
async fn result(node: &Node, task: &Value) -> Value {
    let mut events = node.events().await;
    let id = node.post("/aitp/tasks", task).await.ok()["task_id"].clone();
    events.wait_for("task_ended", SETTLE, |ended| ended["task_id"] == id).await;
    node.get(&format!("/aitp/tasks/{}/result", id.as_str().expect("an id"))).await.ok()
}

/// Two nodes with an agent each, and one at home that has none.
async fn mesh() -> [Node; 3] {
    let first = Node::builder().agent(splitter("splitter")).spawn().await;
    let second = Node::builder().agent(chooser("chooser")).join(&first).spawn().await;
    let home = Node::builder().join(&first).spawn().await;
    home.knows("test.split", &["splitter"]).await;
    home.knows("test.longest", &["chooser"]).await;
    [home, first, second]
}

/// AITP-3: types that clash with the schemas of agents elsewhere are refused with their place, and nothing is taken in.
#[tokio::test]
async fn a_task_that_clashes_with_the_agents_that_there_are_is_refused() {
    let [home, _first, _second] = mesh().await;

    for (task, path, message) in [
        (task("words", "${parent.input.text}"), "/subtasks/1/input/words", "is string, and `test.longest` takes array here"),
        (task("wrods", "${split.output.words}"), "/subtasks/1/input/wrods", "`wrods` is not a field that `test.longest` takes"),
        (task("words", "${split.output.words[0]}"), "/subtasks/1/input/words", "takes array here"),
        (in_sections(task("words", "${parent.input.text}")), "/Subtasks/1/input/words", "takes array here"),
    ] {
        for door in ["/aitp/tasks", "/aitp/tasks/plan"] {
            let error = home.post(door, &task).await.refused(400, "INVALID_REQUEST");
            assert_eq!(error["details"]["path"], path, "{error}");
            assert!(error["message"].as_str().is_some_and(|told| told.contains(message)), "{error}");
        }
    }
    assert_eq!(home.get("/aitp/tasks").await.ok()["tasks"], json!([]), "nothing was taken in");

    let done = result(&home, &task("words", "${split.output.words}")).await;
    assert_eq!((&done["outcome"], &done["result"]), (&json!("success"), &json!({ "longest": "agents" })), "{done}");
}

/// AITP-3: where agents of one capability differ, or none is known, one may yet take it; a repeated submission is the task that it was.
#[tokio::test]
async fn what_is_not_certain_is_not_refused() {
    let home = Node::first().await;
    let clashing = task("words", "${parent.input.text}");
    let submit = async || {
        let request = home.request(reqwest::Method::POST, "/aitp/tasks").header("Idempotency-Key", "k").json(&clashing);
        home.send(request).await
    };
    let taken = submit().await;
    assert_eq!(taken.status, 201, "nobody is known: {}", taken.body);

    home.post("/v1/agents", &chooser("strict")).await.ok();
    home.knows("test.longest", &["strict"]).await;
    home.post("/aitp/tasks", &clashing).await.refused(400, "INVALID_REQUEST");
    let again = submit().await;
    assert_eq!((again.status, &again.body["task_id"]), (200, &taken.body["task_id"]), "it was taken before anybody was known");

    let lenient = script("lenient", "sentence.py", &[], json!({ "id": "test.longest" }));
    home.post("/v1/agents", &lenient).await.ok();
    home.knows("test.longest", &["lenient", "strict"]).await;
    assert_eq!(home.post("/aitp/tasks", &clashing).await.status, 201, "another agent may take it");
}

/// What nobody has steps for.
fn goal(output: &Value) -> Value {
    json!({ "name": "the longest word", "goal": "Find the longest word", "parameters": { "text": "a mesh of agents" }, "output": object(output) })
}

/// AITP-4: a goal without steps is led through the agents whose schemas fit, wherever they are, and the result is what its output asks for.
#[tokio::test]
async fn a_goal_alone_finds_its_steps_by_schemas() {
    let [home, _first, _second] = mesh().await;
    let goal = goal(&json!({ "longest": { "type": "string" } }));

    let plan = home.post("/aitp/tasks/plan", &goal).await.ok();
    let capabilities: Vec<&Value> = plan["subtasks"].as_array().expect("steps").iter().map(|step| &step["capability"]).collect();
    assert_eq!((&plan["decomposed_by"], &plan["runnable"]), (&json!("schemas"), &json!(true)), "{plan}");
    assert_eq!(capabilities, ["test.split", "test.longest"], "{plan}");

    let done = result(&home, &goal).await;
    assert_eq!((&done["outcome"], &done["result"]), (&json!("success"), &json!({ "longest": "agents" })), "{done}");
}

/// AITP-4: where no steps lead to the goal, the task fails and says what nobody gives and who comes nearest.
#[tokio::test]
async fn a_goal_that_no_agents_lead_to_says_what_is_missing() {
    let [home, _first, _second] = mesh().await;
    let goal = goal(&json!({ "longest": { "type": "string" }, "shortest": { "type": "string" } }));

    let refused = home.post("/aitp/tasks/plan", &goal).await.error("CAPABILITY_NOT_FOUND");
    let failed = result(&home, &goal).await;

    assert_eq!((&failed["outcome"], &failed["reason"]), (&json!("failed"), &json!("NO_PLAN")), "{failed}");
    for error in [&refused, &failed["error"]] {
        let message = error["message"].as_str().expect("a message");
        for told in ["no agent offers `task-decomposition`", "nobody gives `shortest`", "nearest is `test.longest`, which gives `longest`"]
        {
            assert!(message.contains(told), "{told}: {error}");
        }
    }
    assert_eq!((&refused["details"]["missing"], &refused["details"]["nearest"]), (&json!(["shortest"]), &json!("test.longest")));
}
