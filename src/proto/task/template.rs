//! Typed path expressions in a subtask's input (AITP 3.1).

/// How a value is made from the task's parameters and the outputs of its subtasks.
#[derive(Debug, Clone, PartialEq)]
pub struct Template(serde_json::Value);
