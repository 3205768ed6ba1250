//! What `meshwork task` says of itself in its help, against a node that runs: waits that are broken off or outlive their node, tasks from
//! stdin, what a terminal shows, and the lists and exit codes that scripts rely on. Tasks themselves are in `tasks`.

use std::{
    collections::BTreeMap,
    fs::{self, File},
};

use futures::future::join_all;
use serde_json::{Value, json};

use crate::support::{
    Node, Running, SETTLE, builtin, eventually, shell, signal,
    tasks::{Workshop, planner, step, task},
};

/// A node with a worker whom everything costs half a dollar.
async fn with_worker(workshop: &Workshop) -> Node {
    let price = json!({ "price": { "amount": "0.5", "currency": "USD", "unit": "request" } });
    let node = planner().agent(workshop.worker("worker", "test.work", price)).spawn().await;
    node.knows("test.work", &["worker"]).await;
    node
}

/// A file with this document, beside the notes of the workers.
fn file(workshop: &Workshop, name: &str, document: &Value) -> String {
    let path = workshop.file(name);
    fs::write(&path, document.to_string()).expect("the file is written");
    path.to_str().expect("temporary folders have plain names").to_owned()
}

/// A step that ends when there is a file called `go`.
fn held() -> Value {
    task(&[step("held", "test.work", json!({ "until": "go", "output": { "n": 1 } }))])
}

/// The only task of a node, or its latest.
async fn latest(node: &Node) -> String {
    node.get("/aitp/tasks?limit=1").await.ok()["tasks"][0]["task_id"].as_str().expect("an id").to_owned()
}

/// AITP-7, AITP-11: Ctrl-C ends a wait and not the task; whoever comes later follows it by the beginning of its id, each in their own way.
#[tokio::test]
async fn a_task_goes_on_without_the_one_who_waited_and_others_follow_it() {
    let workshop = Workshop::new();
    let node = with_worker(&workshop).await;
    let held = file(&workshop, "held.json", &held());

    let run = Running::start(&mut node.verb(&["task", "run", &held, "--watch"]));
    run.until("accepted").await;
    signal(&run.child, "INT");
    let run = run.end().await;
    let id = latest(&node).await;
    let short = &id[..8];
    assert_eq!((run.code, run.stdout.as_str()), (1, ""), "{run:?}");
    assert!(run.stderr.contains(&format!("NOT_FINISHED: interrupted; task {id} goes on")), "{run:?}");
    assert!(run.stderr.contains(&format!("`meshwork task watch {short}` follows it")), "{run:?}");
    assert_eq!(node.task(&id).await["status"], "EXECUTING");

    let follow = |words: &[&str]| Running::start(&mut node.verb(words));
    let watch = follow(&["task", "watch", short]);
    let events = follow(&["task", "events", short, "--follow"]);
    let result = follow(&["task", "result", short, "--wait", "--json"]);
    watch.until("accepted").await;
    events.until("accepted").await;
    let impatient = node.cli(&["task", "result", short, "--wait", "--timeout", "0.2"]).await;
    assert!(impatient.code == 4 && impatient.stdout.is_empty() && impatient.stderr.contains("it goes on"), "{impatient:?}");
    let so_far = node.cli(&["task", "events", short]).await;
    assert!(so_far.text().contains("accepted") && !so_far.text().contains("ended"), "{so_far:?}");
    workshop.release("go");

    let (watch, events, result) = (watch.end().await, events.end().await, result.end().await);
    assert_eq!(watch.text(), "{\"n\":1}\n", "{watch:?}");
    assert!(watch.stderr.lines().last().is_some_and(|line| line.contains("ended")), "{watch:?}");
    let lines: Vec<&str> = events.text().lines().collect();
    assert!(lines[0].contains("submitted") && lines.last().is_some_and(|line| line.contains("ended")), "{events:?}");
    assert_eq!(lines.len(), node.history(&id).await.len(), "each event is told once: {events:?}");
    let document = result.json();
    assert_eq!((&document["result"], &document["cost"], &document["currency"]), (&json!({ "n": 1 }), &json!(0.5), &json!("USD")));
    let lines = document["ledger"]["entries"].as_array().map(Vec::len);
    assert_eq!((result.code, lines), (0, Some(1)), "the ledger says whom the half dollar is for: {document}");
}

/// AITP-10, AITP-11: a node that is killed and comes back does not end a wait, and what waited gets the result.
#[tokio::test]
async fn a_wait_outlives_the_node() {
    let workshop = Workshop::new();
    let mut node = with_worker(&workshop).await;
    let run = Running::start(&mut node.verb(&["task", "run", &file(&workshop, "held.json", &held()), "--watch"]));
    run.until("accepted").await;

    node.kill().await;
    run.until("trying again").await;
    let address = node.api().trim_start_matches("http://").to_owned();
    let _node = node.reborn().api(&address).spawn().await;
    run.until("connected again").await;
    workshop.release("go");

    let run = run.end().await;
    assert_eq!(run.text(), "{\"n\":1}\n", "{run:?}");
    assert_eq!(run.stderr.matches("submitted").count(), 1, "what was told is not told again: {run:?}");
}

/// What a terminal of 80 columns holds once all of `bytes` has been written to it; the last code in it may be incomplete.
fn screen(bytes: &str) -> Vec<String> {
    let (mut rows, mut row, mut column) = (vec![Vec::new()], 0_usize, 0_usize);
    let mut characters = bytes.chars();
    while let Some(character) = characters.next() {
        match character {
            '\r' => column = 0,
            '\n' => row += 1,
            '\u{1b}' => {
                let Some(bracket) = characters.next() else { break };
                assert_eq!(bracket, '[', "only what moves, clears and colours: {bytes:?}");
                let mut number = String::new();
                let end = loop {
                    match characters.next() {
                        Some(digit @ ('0'..='9' | ';' | '?')) => number.push(digit),
                        end => break end.unwrap_or('m'),
                    }
                };
                let times = number.parse().unwrap_or(1);
                match (end, number.as_str()) {
                    ('A', _) => row = row.saturating_sub(times),
                    ('B', _) => row += times,
                    ('K', "2") => rows[row].clear(),
                    ('m', _) => {}
                    other => panic!("a code that no view needs: {other:?} in {bytes:?}"),
                }
            }
            character => {
                if column == 80 {
                    (row, column) = (row + 1, 0);
                }
                rows.resize_with(rows.len().max(row + 1), Vec::new);
                let length = rows[row].len().max(column + 1);
                rows[row].resize(length, ' ');
                rows[row][column] = character;
                column += 1;
            }
        }
        rows.resize_with(rows.len().max(row + 1), Vec::new);
    }
    rows.into_iter().map(|row| row.into_iter().collect::<String>().trim_end().to_owned()).collect()
}

/// AITP-11: on a terminal each subtask has a bar while it runs, and the last picture stays above the result.
#[tokio::test]
async fn a_terminal_shows_bars_and_keeps_the_last_of_them() {
    let workshop = Workshop::new();
    let node = with_worker(&workshop).await;
    let document = task(&[
        step("first", "test.work", json!({ "output": 1 })),
        step("held", "test.work", json!({ "until": "go", "output": "${first.output}" })),
        step("last", "test.work", json!({ "output": ["${held.output}"] })),
    ]);
    let file = file(&workshop, "task.json", &document);
    for colours in ["", "NO_COLOR=1"] {
        let (api, data) = (node.api(), node.data_dir());
        let verb = format!("stty cols 80 rows 24; {colours} exec meshwork task run {file} --api {api} --data-dir {}", data.display());
        let mut command = shell(workshop.file("").as_path(), None, &format!("exec script -qec '{verb}' /dev/null"));
        let run = Running::start(command.env("TERM", "xterm").env_remove("NO_COLOR"));

        // A picture that is being drawn shows less.
        let drawn = async || {
            let screen = screen(&run.said("out"));
            let begins = |row: &str| screen.iter().any(|line| line.starts_with(row));
            let works = screen.iter().any(|line| line.starts_with("  ") && line.contains(" held   ") && line.contains('╍'));
            (begins("  ✓ first  ━━━━━━━━  SUCCESS    worker@") && works && begins("  · last   ╌╌╌╌╌╌╌╌  PENDING    waits for held"))
                .then_some(())
        };
        eventually("each subtask has its bar", SETTLE, drawn).await;
        workshop.release("go");
        let run = run.end().await;
        fs::remove_file(workshop.file("go")).expect("nobody waits for it any more");

        let last = screen(run.text());
        for row in ["first", "held ", "last "] {
            let row = format!("  ✓ {row}  ━━━━━━━━  SUCCESS  worker@");
            assert!(last.iter().any(|line| line.starts_with(&row) && line.ends_with("  0.5 USD")), "{last:#?}");
        }
        assert!(last.iter().any(|line| line.starts_with("✓ A task of a test") && line.contains("━━━━━━━━ 100 %")), "{last:#?}");
        assert_eq!(last.iter().filter(|line| line.contains("A task of a test")).count(), 1, "one picture stays: {last:#?}");
        let tail: Vec<&str> = last.iter().map(String::as_str).skip_while(|line| *line != "[").take(3).collect();
        assert_eq!(tail, ["[", "  1", "]"], "the result stands below: {last:#?}");
        assert_eq!(run.stdout.contains("\u{1b}[32m"), colours.is_empty(), "colours only for those who want them");
    }
}

/// AITP-11: definitions come from stdin and values from files; a failed task and a plan with a gap are exit code 1, on stderr for people and
/// whole for programs; lists are read in parts.
#[tokio::test]
async fn scripts_get_documents_and_exit_codes() {
    let workshop = Workshop::new();
    let node = with_worker(&workshop).await;

    let from_stdin =
        "name: From stdin\nsubtasks: [{ subtask_id: only, agent_capability: test.work, input: { output: \"${parent.input.said}\" } }]\n";
    fs::write(workshop.file("task.yaml"), from_stdin).expect("the file is written");
    fs::write(workshop.file("notes.txt"), "two\nlines").expect("the file is written");
    let said = format!("said=@{}", workshop.file("notes.txt").display());
    let mut run = node.verb(&["task", "run", "-", "--input", &said]);
    let run = Running::start(run.stdin(File::open(workshop.file("task.yaml")).expect("it is there"))).end().await;
    assert_eq!((run.text(), run.stderr.as_str()), ("\"two\\nlines\"\n", ""), "the result and nothing else");

    let boom = json!({ "fail": { "times": 9, "error": { "message": "boom", "retryable": false } } });
    let failing = file(&workshop, "failing.json", &task(&[step("a", "test.work", boom)]));
    let failed = node.cli(&["task", "run", &failing]).await;
    assert_eq!((failed.code, failed.stdout.as_str()), (1, ""), "{failed:?}");
    assert!(failed.stderr.contains("boom") && failed.stderr.contains("`meshwork task status "), "{failed:?}");
    let failed = node.cli(&["task", "run", &failing, "--json"]).await;
    assert_eq!((failed.code, &failed.json()["outcome"]), (1, &json!("failed")), "{failed:?}");

    let gap = task(&[step("a", "test.work", json!({ "output": 1 })), step("b", "nobody.does.this", json!({ "x": "${a.output}" }))]);
    let gap = file(&workshop, "gap.json", &gap);
    let plan = node.cli(&["task", "plan", &gap]).await;
    assert!(plan.code == 1 && plan.stdout.contains("worker@") && plan.stdout.contains("\n  b: "), "{plan:?}");
    assert!(plan.stderr.contains("1 of 2 subtasks has no agent"), "{plan:?}");
    let plan = node.cli(&["task", "plan", &gap, "--json"]).await;
    assert_eq!((plan.code, &plan.json()["runnable"], &plan.json()["subtasks"][1]["agent"]), (1, &json!(false), &Value::Null), "{plan:?}");
    let steps = workshop.notes("started").len();
    assert_eq!(node.cli(&["task", "plan", &failing]).await.code, 0);
    assert_eq!(workshop.notes("started").len(), steps, "a plan runs no step");

    let page = async |words: &[&str]| {
        let document = node.cli(&[&["task", "list", "--json"], words].concat()).await.json();
        let rows = document["tasks"].as_array().expect("rows");
        (rows.iter().map(|row| row["name"].as_str().expect("a name").to_owned()).collect::<Vec<_>>(), document["next"].clone())
    };
    let (names, next) = page(&["--limit", "2"]).await;
    assert_eq!(names, ["A task of a test", "A task of a test"]);
    let cursor = next.as_str().expect("there is one more");
    assert_eq!(page(&["--after", cursor]).await, (vec!["From stdin".to_owned()], Value::Null));
    let shown = node.cli(&["task", "list", "--limit", "2"]).await;
    assert!(shown.text().ends_with(&format!("there are more: --after {cursor}\n")), "{shown:?}");
    assert_eq!(node.cli(&["task", "list", "--limit", "1001"]).await.code, 2, "more than it promises");
    assert!(node.cli(&["task", "list", "--after", "x"]).await.stderr.contains("no cursor"));
}

/// AITP-11: the beginning of an id names the only task that it fits, however old; where it fits two, both are named and neither is taken.
#[tokio::test]
async fn the_beginning_of_an_id_names_one_task_or_none() {
    let node = Node::builder().agent(builtin("echo", "echo")).spawn().await;
    node.knows("echo", &["echo"]).await;
    let document = task(&[step("a", "echo", json!(1))]);
    // Four characters are few: among a few hundred tasks two begin alike.
    let mut by_beginning = BTreeMap::<String, Vec<String>>::new();
    let mut count = 0;
    while !by_beginning.values().any(|ids| ids.len() > 1) {
        for id in join_all((0..50).map(|_| node.submit(&document))).await {
            by_beginning.entry(id[..4].to_owned()).or_default().push(id);
            count += 1;
        }
        assert!(count < 3_000, "ids are no longer drawn by chance");
    }
    let (beginning, both) = by_beginning.iter().find(|(_, ids)| ids.len() > 1).expect("two that begin alike");
    let (unique, alone) = by_beginning.iter().find(|(_, ids)| ids.len() == 1).expect("one that begins like no other");

    for verb in ["cancel", "status", "watch"] {
        let refused = node.cli(&["task", verb, beginning]).await;
        assert_eq!((refused.code, refused.stdout.as_str()), (2, ""), "{refused:?}");
        assert!(both.iter().all(|id| refused.stderr.contains(id)) && refused.stderr.contains("write more of the id"), "{refused:?}");
    }
    let shown = node.cli(&["task", "status", &unique.to_uppercase(), "--json"]).await;
    assert_eq!((shown.code, &shown.json()["task_id"]), (0, &json!(alone[0])));
}
