//! A task of which the journal holds something that cannot be read: what clients see of it.
//!
//! Nothing is guessed. It counts as failed, with the reason UNREADABLE and what is wrong as its error; what its entries told before the first
//! that is missing is shown in its row, and no step of it is, since what came of them is not known. One whose row the index still has stands as
//! that says, with what is wrong beside it.

use serde_json::{Value, json};

use super::view;
use crate::model::{Failure, NodeId, Priority, TaskId, Timestamp};
use crate::wire::task::{Outcome, Reason};

/// Its row in a list. `known` is the row that its entries made before the first that is missing, if they made one.
pub fn summary(task: TaskId, known: Option<Value>, since: Timestamp, noticed: Timestamp) -> Value {
    let seconds = |at: Timestamp| at.as_ms() / 1_000;
    let unknown = || {
        json!({
            "task_id": task, "name": "", "priority": Priority::default(), "tags": [], "created_at": seconds(since),
            "percent_complete": 0, "total_steps": 0, "cost_so_far": 0, "currency": "USD",
        })
    };
    let mut row = known.unwrap_or_else(unknown);
    row["status"] = "FAILED".into();
    row["outcome"] = view::outcome_word(Outcome::Failed).into();
    row["reason"] = view::reason_word(Reason::Unreadable).into();
    row["ended_at"] = seconds(noticed).into();
    row
}

/// Its status document, from its row.
pub fn status(row: &Value, failure: &Failure, home: NodeId) -> Value {
    let mut document = row.clone();
    let total = document["total_steps"].take();
    let percent = document["percent_complete"].take();
    if let Some(fields) = document.as_object_mut() {
        fields.retain(|_, value| !value.is_null());
    }
    let more = json!({
        "description": "", "goal": null, "error": view::error(failure), "home_node_id": home, "created_by": null, "started_at": null,
        "deadline": null, "current_step": 0, "estimated_completion": null, "budget": null,
        "progress": { "task_id": row["task_id"], "current_step": 0, "total_steps": total, "percent_complete": percent, "steps": [] },
    });
    if let (Some(fields), Value::Object(more)) = (document.as_object_mut(), more) {
        fields.extend(more);
    }
    document
}

/// Its result document, from its row.
pub fn result(row: &Value, failure: &Failure) -> Value {
    let (task, cost, currency) = (&row["task_id"], &row["cost_so_far"], &row["currency"]);
    json!({
        "task_id": task, "status": row["status"], "outcome": row["outcome"], "reason": row["reason"], "error": view::error(failure),
        "result": null, "cost": cost, "currency": currency, "execution_time_ms": 0,
        "ledger": { "task_id": task, "budget": null, "currency": currency, "entries": [], "total_cost": cost, "remaining_budget": null },
    })
}

#[cfg(test)]
mod tests {
    use super::super::testing::{BEGIN, after_ms, id, node};
    use super::*;
    use crate::model::ErrorCode;

    #[test]
    fn a_task_of_which_nothing_is_known_has_every_document() {
        let row = summary(id(), None, BEGIN, after_ms(2_000));
        assert_eq!((&row["status"], &row["reason"], &row["outcome"]), (&json!("FAILED"), &json!("UNREADABLE"), &json!("failed")));
        assert_eq!(row["ended_at"], BEGIN.as_ms() / 1_000 + 2);
        let failure = Failure::new(ErrorCode::Internal, "its beginning is missing").retryable(false);
        let status = status(&row, &failure, node(1));
        assert_eq!((&status["task_id"], &status["status"]), (&row["task_id"], &json!("FAILED")));
        assert_eq!(status["error"]["message"], "its beginning is missing");
        assert_eq!((&status["progress"]["total_steps"], status.get("total_steps")), (&json!(0), None));
        let result = result(&row, &failure);
        assert_eq!((&result["reason"], &result["error"]), (&json!("UNREADABLE"), &status["error"]));
    }
}
