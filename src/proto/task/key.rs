//! What all attempts of a subtask are known by to whoever executes them (design/tasks.md, "Fences and idempotency"): the same work has the
//! same key, and other work another.
//!
//! BLAKE3 of task, subtask and input tells them apart, and what was done and is no use is other work from then on. Which task and subtask it is stands before that in the open, so that the home node
//! finds them again when it is told of a result by its key. Nothing is believed because a key says so.

use crate::model::{SubtaskId, TaskId};

/// The key of the subtask at this place, once so many outputs were no use.
pub fn of(task: TaskId, (place, subtask): (u32, &SubtaskId), input: &blake3::Hash, redo: u32) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&task.to_bytes()).update(subtask.as_str().as_bytes()).update(b"\n").update(input.as_bytes());
    if redo > 0 {
        hasher.update(&redo.to_be_bytes());
    }
    format!("{task}.{place}.{}", hasher.finalize().to_hex())
}

/// Which task and which of its subtasks a key names.
pub fn read(key: &str) -> Option<(TaskId, u32)> {
    let (task, rest) = key.split_once('.')?;
    let (place, _) = rest.split_once('.')?;
    Some((task.parse().ok()?, place.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::invocation::KEY_BYTES_MAX;

    #[test]
    fn a_key_names_its_subtask_and_fits() {
        let (task, subtask) = (TaskId::from_random(7), "a".parse::<SubtaskId>().expect("a name"));
        let key = of(task, (u32::MAX, &subtask), &blake3::hash(b"1"), 0);
        assert_eq!(read(&key), Some((task, u32::MAX)));
        assert!(key.len() <= KEY_BYTES_MAX, "{key}");
        for odd in ["", "k", "a.b", "..", &key.replace('.', "-"), &format!("{task}.-1.x"), &format!("{task}.4294967296.x")] {
            assert_eq!(read(odd), None, "{odd}");
        }
    }

    #[test]
    fn other_work_has_another_key() {
        let (task, a, b) = (TaskId::from_random(7), "a".parse::<SubtaskId>().expect("a name"), "b".parse::<SubtaskId>().expect("a name"));
        let key = |task, place, subtask, input: &[u8], redo| of(task, (place, subtask), &blake3::hash(input), redo);
        let first = key(task, 0, &a, b"1", 0);
        assert_eq!(first, key(task, 0, &a, b"1", 0));
        let others =
            [key(TaskId::from_random(8), 0, &a, b"1", 0), key(task, 1, &b, b"1", 0), key(task, 0, &a, b"2", 0), key(task, 0, &a, b"1", 1)];
        for other in others {
            assert_ne!(first, other);
        }
    }
}
