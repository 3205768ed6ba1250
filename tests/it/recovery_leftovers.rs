//! A node that was killed between a large text and the entry that names it left a file that nobody knows: the next start removes it, and
//! nothing else.

use std::{fs, path::Path};

use serde_json::json;

use crate::support::{
    Node, SETTLE, eventually,
    tasks::{Workshop, step, task},
};

/// A text that is too large for the journal.
const BYTES: usize = 200_000;

/// Owners that nobody knows, in the form in which a node writes them.
const NOBODYS: [&str; 2] = ["11111111-2222-4333-8444-555555555555", "call-0123456789abcdef0123456789abcdef-18f00000000"];
/// Names that no node gives.
const FOREIGN: [&str; 6] = [
    "notes",
    "call-me",
    "call-0123456789ABCDEF0123456789ABCDEF-18f00000000",
    "call-0123456789abcdef0123456789abcdef-",
    "AAAAAAAA-2222-4333-8444-555555555555",
    "11111111222243338444555555555555",
];

fn plant(data_dir: &Path, owner: &str) {
    let folder = data_dir.join("blobs").join(owner);
    fs::create_dir_all(&folder).expect("a folder is made");
    fs::write(folder.join("0".repeat(64)), "left").expect("a file is written");
}

/// F1, F10: blobs of tasks and kept calls stay, those of nobody go, and what a node did not make is left alone.
#[tokio::test]
async fn large_texts_that_a_crash_left_are_removed_by_the_next_start() {
    let workshop = Workshop::new();
    let host = Node::builder().agent(workshop.worker("worker", "test.work", json!({}))).spawn().await;
    let mut home = Node::builder().join(&host).spawn().await;
    home.knows("test.work", &["worker"]).await;
    let large = json!({ "sized": BYTES });
    let kept = home.submit(&task(&[step("a", "test.work", large.clone())])).await;
    let result = home.result(&kept).await;
    let call = json!({ "capability": "test.work", "input": large, "idempotency_key": "k" });
    let answer = home.invoke(call.clone()).await.ok();
    let known = fs::read_dir(home.data_dir().join("blobs")).expect("large texts lie there").count();
    assert_eq!(known, 2, "the output of a step, and that of a call");
    home.kill().await;
    NOBODYS.iter().chain(&FOREIGN).for_each(|owner| plant(&home.data_dir(), owner));

    let home = home.reborn().spawn().await;

    eventually("the start is through with it", SETTLE, async || home.log().contains("that a crash had left were removed").then_some(()))
        .await;
    let there = |owner: &str| home.data_dir().join("blobs").join(owner).exists();
    assert_eq!(NOBODYS.map(there), [false; 2]);
    assert_eq!(FOREIGN.map(there), [true; 6]);
    assert_eq!(home.task_result(&kept).await, result);
    assert_eq!(home.invoke(call).await.ok()["output"], answer["output"]);
    assert_eq!(workshop.notes("started").len(), 2, "the call was answered from the disk");
}

/// F4: a journal that has lost something may have lost whose a text is, so nothing is removed then.
#[tokio::test]
async fn nothing_is_removed_while_the_journal_is_damaged() {
    let workshop = Workshop::new();
    let mut home = Node::builder().agent(workshop.worker("worker", "test.work", json!({}))).spawn().await;
    home.knows("test.work", &["worker"]).await;
    for _ in 0..2 {
        home.run_task(&task(&[step("a", "test.work", json!({ "sized": BYTES }))])).await;
    }
    assert!(home.terminate().await.success());
    plant(&home.data_dir(), NOBODYS[0]);
    let journal = home.data_dir().join("journal");
    let segment = fs::read_dir(&journal).expect("the journal lies there").map(|entry| entry.expect("an entry").path());
    let segment = segment.into_iter().find(|path| path.extension().is_some_and(|ending| ending == "seg")).expect("a segment");
    let mut bytes = fs::read(&segment).expect("a segment is read");
    let place = bytes.windows(9).position(|part| part == b"test.work").expect("a definition stands there");
    bytes[place] ^= 1;
    fs::write(&segment, bytes).expect("a segment is written");

    let mut home = home.reborn().spawn().await;

    assert!(home.log().contains("the journal is not as it was written"), "the damage was found");
    // Whatever it began is done when it has stopped.
    assert!(home.terminate().await.success());
    assert!(!home.log().contains("that a crash had left"), "{}", home.log());
    assert!(home.data_dir().join("blobs").join(NOBODYS[0]).exists());
}
