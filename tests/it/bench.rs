//! What `meshwork bench` says of itself; how fast things are is for people who look at it on a machine that does nothing else.

use serde_json::json;

use crate::support::meshwork;

/// AITP-12: durable tasks are measured, with what they cost and the disk that they are kept on.
#[tokio::test]
async fn tasks_are_measured_on_the_disk_that_was_asked_for() {
    let folder = tempfile::tempdir().expect("a folder");
    let words = ["bench", "task", "--seconds", "1", "--in-flight", "1,32", "--json", "--data-dir"].map(std::ffi::OsStr::new);

    let document = meshwork(&[&words, [folder.path().as_os_str()].as_slice()].concat()).await.json();

    let rows = document["rows"].as_array().expect("rows");
    assert_eq!(rows.len(), 2, "{document}");
    for (row, in_flight) in rows.iter().zip([1, 32]) {
        let setting = json!({ "transport": "tcp", "steps": 3, "bytes": 256, "in_flight": in_flight });
        assert_eq!((&row["what"], &row["setting"]), (&json!("task"), &setting));
        let number = |key: &str| row[key].as_f64().unwrap_or_else(|| panic!("{key}: {row}"));
        assert!(number("count") > 0.0 && number("submit_p50_us") <= number("submit_p99_us"), "{row}");
        assert!(number("submit_p50_us") < number("p50_us") && number("p50_us") <= number("p99_us"), "{row}");
        assert!(number("flushes_per_task") > 0.0 && number("caller_bytes") > 0.0 && number("host_bytes") > 0.0, "{row}");
        assert!(number("results") > 0.0 && number("result_p99_us") < 10_000_000.0, "{row}");
    }
    let path = document["disk"]["path"].as_str().expect("a path");
    assert!(path.starts_with(&*folder.path().canonicalize().expect("it is there").to_string_lossy()), "{path}");
    assert!(document["disk"]["fdatasync_p50_us"].as_f64().is_some_and(|us| us > 0.0), "{document}");
    assert_eq!(std::fs::read_dir(folder.path()).expect("it is there").count(), 0, "nothing is left behind");
}

/// MEAP-10, MAOP-10: calls and the directory are measured over the transport that was asked for, and shown to people in a table.
#[tokio::test]
async fn calls_and_queries_are_measured_over_the_transport_that_was_asked_for() {
    let folder = tempfile::tempdir().expect("a folder");
    let data = folder.path().to_str().expect("temporary folders have plain names");
    let bench = async |what, more: &[&str]| meshwork(&[&["bench", what, "--seconds", "1", "--data-dir", data], more].concat()).await;

    let calls = bench("invoke", &["--transport", "quic", "--in-flight", "1,8", "--json"]).await;
    assert_eq!((calls.code, calls.stderr.as_str()), (0, ""));
    let calls = calls.json();
    let rows = calls["rows"].as_array().expect("rows");
    for (row, in_flight) in rows.iter().zip([1, 8]) {
        let setting = json!({ "transport": "quic", "bytes": 256, "in_flight": in_flight });
        assert_eq!((&row["what"], &row["setting"]), (&json!("invoke"), &setting));
        let number = |key: &str| row[key].as_f64().unwrap_or_else(|| panic!("{key}: {row}"));
        assert!(number("per_second") > 0.0 && number("p50_us") <= number("p99_us"), "{row}");
    }
    assert_eq!((rows.len(), &calls["resident"][0]["transport"], &calls["disk"]), (2, &json!("quic"), &json!(null)), "{calls}");

    let found = bench("find", &[]).await;
    for what in ["WHAT", "find        records 1", "register    agents 20", "distribute  agents 20"] {
        assert!(found.text().contains(what), "{what}: {found:?}");
    }
    assert!(!found.text().contains("invoke") && !found.text().contains("durable"), "only what was asked for: {found:?}");
    assert_eq!(std::fs::read_dir(folder.path()).expect("it is there").count(), 0, "nothing is left behind");
}
