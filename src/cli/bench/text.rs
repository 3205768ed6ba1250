//! The measurements as people read them.

use serde_json::Value;

use crate::cli::figures::NOTHING;
use crate::cli::table::{Table, bold};

/// What stands below the figures of tasks: MAOP 6.1 gives the first, the design the others.
const AIMS: &str = "aimed at, on two cores and a disk: result p99 under 200 ms, submit p99 under 25 ms, end to end p50 under 3 ms at 1 in flight, \
about 6000 tasks/s at 512\n";

/// File systems that are memory.
const IN_MEMORY: [&str; 2] = ["tmpfs", "ramfs"];

/// The whole of it.
pub(super) fn text(document: &Value, colour: bool) -> String {
    let rows = |wanted: fn(&str) -> bool| {
        let rows = document["rows"].as_array().into_iter().flatten();
        rows.filter(move |row| wanted(row["what"].as_str().unwrap_or_default())).collect::<Vec<&Value>>()
    };
    let mut text = format!("meshwork {} ({} build)\n", env!("CARGO_PKG_VERSION"), document["build"].as_str().unwrap_or("?"));
    let (plain, tasks) = (rows(|what| what != "task" && what != "context memory"), rows(|what| what == "task"));
    if !plain.is_empty() {
        text = text + "\n" + &spans(&plain).text(colour);
    }
    if !tasks.is_empty() {
        text = text
            + "\n"
            + &heading(&document["disk"], &tasks, colour)
            + &times(&tasks).text(colour)
            + AIMS
            + "\n"
            + &costs(&tasks).text(colour);
    }
    for row in rows(|what| what == "context memory") {
        text += &format!("\n{} contexts in memory: {}\n", count(&row["setting"]["contexts"]), mebibytes(&row["bytes"]));
    }
    for row in document["resident"].as_array().into_iter().flatten() {
        let transport = row["transport"].as_str().unwrap_or_default();
        text += &format!(
            "\nresident after calls over {transport}: caller {}, agent's node {}\n",
            mebibytes(&row["caller_bytes"]),
            mebibytes(&row["host_bytes"])
        );
    }
    text
}

fn spans(rows: &[&Value]) -> Table<6> {
    let mut table = Table::new(["what", "setting", "per s", "p50", "p99", "p99.9"]);
    for row in rows {
        let setting = row["setting"].as_object().into_iter().flatten();
        let setting: Vec<String> = setting.map(|(key, value)| format!("{key} {}", value.to_string().trim_matches('"'))).collect();
        let what = row["what"].as_str().unwrap_or_default().to_owned();
        table.row([what, setting.join(", "), count(&row["per_second"]), span(&row["p50_us"]), span(&row["p99_us"]), span(&row["p999_us"])]);
    }
    table
}

fn heading(disk: &Value, rows: &[&Value], colour: bool) -> String {
    let word = |value: &Value| value.as_str().unwrap_or("?").to_owned();
    let setting = rows.first().map_or(&Value::Null, |row| &row["setting"]);
    let title =
        format!("durable tasks of {} steps, {} bytes each, over {}", setting["steps"], setting["bytes"], word(&setting["transport"]));
    let memory = disk["filesystem"].as_str().is_some_and(|name| IN_MEMORY.contains(&name));
    format!(
        "{}\ndata on {} ({}) below {}: fdatasync p50 {}, p99 {}\n{}\n",
        bold(&title, colour),
        word(&disk["filesystem"]),
        word(&disk["device"]),
        word(&disk["path"]),
        span(&disk["fdatasync_p50_us"]),
        span(&disk["fdatasync_p99_us"]),
        if memory { "that is memory, so these figures lack what a disk costs; --data-dir names another place\n" } else { "" }
    )
}

fn times(rows: &[&Value]) -> Table<9> {
    let mut table =
        Table::new(["in flight", "tasks/s", "submit p50", "p99", "end to end p50", "p90", "p99", "over a call, per step", "result p99"]);
    for row in rows {
        table.row([
            count(&row["setting"]["in_flight"]),
            count(&row["per_second"]),
            span(&row["submit_p50_us"]),
            span(&row["submit_p99_us"]),
            span(&row["p50_us"]),
            span(&row["p90_us"]),
            span(&row["p99_us"]),
            span(&row["step_overhead_us"]),
            span(&row["result_p99_us"]),
        ]);
    }
    table
}

fn costs(rows: &[&Value]) -> Table<6> {
    let mut table = Table::new(["in flight", "flushes/task", "cpu/task here", "agent's node", "memory here", "agent's node"]);
    for row in rows {
        table.row([
            count(&row["setting"]["in_flight"]),
            row["flushes_per_task"].as_f64().map_or_else(nothing, |number| format!("{number:.2}")),
            span(&row["caller_cpu_us"]),
            span(&row["host_cpu_us"]),
            mebibytes(&row["caller_bytes"]),
            mebibytes(&row["host_bytes"]),
        ]);
    }
    table
}

fn nothing() -> String {
    NOTHING.to_owned()
}

fn count(value: &Value) -> String {
    value.as_f64().map_or_else(nothing, |number| format!("{number:.0}"))
}

/// Three digits or so.
fn span(us: &Value) -> String {
    us.as_f64().map_or_else(nothing, |us| match us {
        us if us.abs() < 100.0 => format!("{us:.1} us"),
        us if us.abs() < 1_000.0 => format!("{us:.0} us"),
        us if us.abs() < 100_000.0 => format!("{:.2} ms", us / 1_000.0),
        us => format!("{:.0} ms", us / 1_000.0),
    })
}

fn mebibytes(bytes: &Value) -> String {
    bytes.as_f64().map_or_else(nothing, |bytes| format!("{:.1} MiB", bytes / 1_048_576.0))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn tasks_are_shown_with_the_disk_that_they_are_kept_on() {
        let disk =
            json!({"path": "/data", "filesystem": "ext4", "device": "/dev/a", "fdatasync_p50_us": 812.5, "fdatasync_p99_us": 2_500.0});
        let task = json!({
            "what": "task", "setting": {"transport": "tcp", "steps": 3, "bytes": 256, "in_flight": 64}, "per_second": 1234.0,
            "submit_p50_us": 99.94, "submit_p99_us": 1_500.0, "p50_us": 250_000.0, "step_overhead_us": -3.0, "flushes_per_task": 0.5,
            "caller_bytes": 1_048_576, "host_bytes": null,
        });
        let of = |disk: &Value| text(&json!({"build": "debug", "rows": [task], "disk": disk, "resident": []}), false);
        let shown = of(&disk);
        assert!(!shown.contains("that is memory"), "{shown}");
        assert!(
            of(&json!({"filesystem": "tmpfs"})).contains("\nthat is memory, so these figures lack"),
            "a journal in memory is no journal"
        );
        for part in [
            "result p99 under 200 ms",
            "over tcp",
            "data on ext4 (/dev/a) below /data: fdatasync p50 812 us, p99 2.50 ms",
            "64         1234     99.9 us     1.50 ms  250 ms",
        ] {
            assert!(shown.contains(part), "{part}\n{shown}");
        }
        assert!(shown.contains("-3.0 us") && shown.contains("0.50") && shown.contains("1.0 MiB"), "{shown}");
    }

    #[test]
    fn calls_are_shown_without_what_tasks_have() {
        let call = json!({"what": "invoke", "setting": {"in_flight": 8}, "per_second": 10.0, "p50_us": 1.0, "p99_us": 2.0, "p999_us": 3.0});
        let resident = json!([{"transport": "quic", "caller_bytes": 2_097_152, "host_bytes": 1}]);
        let shown = text(&json!({"build": "release", "rows": [call], "disk": null, "resident": resident}), false);
        assert!(shown.contains("invoke  in_flight 8  10     1.0 us") && !shown.contains("durable"), "{shown}");
        assert!(shown.contains("resident after calls over quic: caller 2.0 MiB"), "{shown}");
    }
}
