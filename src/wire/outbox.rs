//! "I have these results of your tasks' steps, and you may not": what the node of an agent tells the home node of a task, and the answer
//! (design/tasks.md, "Fences and idempotency").
//!
//! Only that there is a result is told, and under which key and fence. The home node asks for the result itself if it wants it, by the call
//! that it was the answer to; so an output takes the way that every output takes, and nothing here is larger than a few names.

use serde::{Deserialize, Serialize};

use super::invocation::KEY_BYTES_MAX;
use super::{Error, rule};
use crate::model::AgentId;

/// Results that are told of at once.
pub const RESULTS_MAX: usize = 64;

const KIND: &str = "results";

/// A result that waits for its owner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptResult {
    /// Who did the work.
    pub agent: AgentId,
    /// The key of the call, as its owner chose it.
    pub key: String,
    /// How often the task had changed its owner.
    pub epoch: u64,
    /// The latest attempt that was made under the key there.
    pub attempt: u32,
}

/// What the home node says of one of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Word {
    /// It asks for it soon.
    Wanted,
    /// It has it, or has no use for it any more.
    Known,
    /// It knows no such attempt.
    Unknown,
    /// The attempt was somebody else's.
    Refused,
}

/// Whether these keep to the bounds.
pub(super) fn check(results: &[KeptResult]) -> Result<(), Error> {
    rule(results.len() <= RESULTS_MAX, KIND, "results", "has at most 64 entries")?;
    rule(results.iter().all(|result| result.key.len() <= KEY_BYTES_MAX), KIND, "results.key", "has at most 128 bytes")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::directory::{Control, Reply};
    use crate::wire::{decode, encode};

    fn results(count: usize, key: &str) -> Control {
        let result = KeptResult { agent: AgentId::from_public_key([1; 32]), key: key.to_owned(), epoch: 1, attempt: 3 };
        Control::Results(vec![result; count])
    }

    #[test]
    fn results_and_words_on_them_keep_to_their_bounds() {
        let told = results(RESULTS_MAX, &"k".repeat(KEY_BYTES_MAX));
        let bytes = encode(&told).expect("the most that may be told fits");
        assert_eq!(decode(&bytes), Ok(told));
        for beyond in [results(RESULTS_MAX + 1, "k"), results(1, &"k".repeat(KEY_BYTES_MAX + 1))] {
            assert!(encode(&beyond).is_err());
            let mut bytes = Vec::new();
            ciborium::into_writer(&beyond, &mut bytes).expect("memory");
            assert!(decode::<Control>(&bytes).is_err());
        }
        let words = Reply::Results(vec![Word::Wanted, Word::Known, Word::Unknown, Word::Refused]);
        assert_eq!(encode(&words).and_then(|bytes| decode(&bytes)), Ok(words));
        assert!(encode(&Reply::Results(vec![Word::Known; RESULTS_MAX + 1])).is_err());
    }
}
