//! What is wrong with a definition, told all at once.
//!
//! Whoever wrote a definition mends it in an editor, so reading goes on after the first fault and tells each with its place, as a JSON
//! pointer into the document that was read, and with the nearest known word where a word is unknown. What is quoted of the document is cut
//! and made printable here (threat T29), and there are at most [`FAULTS_MAX`]: a hostile document does not buy a long answer.

use std::fmt;

use serde_json::json;

use crate::model::{ErrorCode, Failure, nearest, printable};

/// The most faults that are told of one document: more than anybody mends in one go.
pub const FAULTS_MAX: usize = 64;

/// How much of a place is told, in characters: a key can be as long as the document.
const PATH_CHARS_MAX: usize = 300;

/// How many known words a fault lists.
const LISTED_MAX: usize = 12;

/// From how many bytes on a word that is part of a known one is taken to mean it: `capability` for `agent_capability`.
const PART_BYTES_MIN: usize = 4;

/// One fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Where, as a JSON pointer into the document: `/subtasks/2/input/text`; `/` is the whole.
    pub path: String,
    /// What is wrong and what would do.
    pub message: String,
    /// What was probably meant.
    pub suggestion: Option<String>,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.message)?;
        self.suggestion.iter().try_for_each(|suggestion| write!(f, "; did you mean `{suggestion}`?"))
    }
}

/// The failure that tells a person about the faults of a definition.
pub fn failure(faults: &[Fault]) -> Failure {
    let message = match faults {
        [fault] => fault.to_string(),
        [fault, rest @ ..] => format!("{fault} (and {} more)", rest.len()),
        [] => "it breaks a rule".to_owned(),
    };
    let failure = Failure::new(ErrorCode::InvalidRequest, format!("the task cannot be accepted: {message}"));
    let Some(first) = faults.first() else { return failure };
    let failure = failure.with("path", first.path.clone());
    let failure = match &first.suggestion {
        Some(suggestion) => failure.with("suggestion", suggestion.clone()),
        None => failure,
    };
    let listed = |fault: &Fault| match &fault.suggestion {
        Some(suggestion) => json!({"path": fault.path, "message": fault.message, "suggestion": suggestion}),
        None => json!({"path": fault.path, "message": fault.message}),
    };
    failure.with("faults", faults.iter().map(listed).collect::<Vec<_>>())
}

/// The faults found so far.
#[derive(Debug, Default)]
pub(super) struct Faults(Vec<Fault>);

impl Faults {
    /// One more, unless there are enough.
    pub(super) fn add(&mut self, path: &str, message: impl Into<String>) {
        self.push(path, message.into(), None);
    }

    /// `word` is none of the known ones.
    pub(super) fn unknown<'a>(&mut self, path: &str, what: &str, word: &str, known: impl IntoIterator<Item = &'a str>) {
        if self.is_full() {
            return;
        }
        let known: Vec<&str> = known.into_iter().collect();
        let part_of = || known.iter().copied().find(|known| word.len() >= PART_BYTES_MIN && known.contains(word));
        let suggestion = nearest(word, known.iter().copied()).or_else(part_of).map(str::to_owned);
        let message = format!("`{}` is not {what}; there {}", printable(word, 80), listed(&known));
        self.push(path, message, suggestion);
    }

    /// Whether more would not be told.
    pub(super) fn is_full(&self) -> bool {
        self.0.len() >= FAULTS_MAX
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.0.len()
    }

    /// Takes what was found elsewhere.
    pub(super) fn extend(&mut self, faults: Vec<Fault>) {
        let room = FAULTS_MAX.saturating_sub(self.0.len());
        self.0.extend(faults.into_iter().take(room));
    }

    /// `value`, if nothing is wrong.
    pub(super) fn or<T>(self, value: T) -> Result<T, Vec<Fault>> {
        if self.0.is_empty() { Ok(value) } else { Err(self.0) }
    }

    /// The faults.
    pub(super) fn into_vec(self) -> Vec<Fault> {
        self.0
    }

    fn push(&mut self, path: &str, message: String, suggestion: Option<String>) {
        if !self.is_full() {
            let path = if path.is_empty() { "/".to_owned() } else { printable(path, PATH_CHARS_MAX) };
            self.0.push(Fault { path, message, suggestion });
        }
    }
}

/// `is: a, b`, or `are: a, b and 7 more`.
fn listed(known: &[&str]) -> String {
    let shown: Vec<String> = known.iter().take(LISTED_MAX).map(|word| printable(word, 80)).collect();
    match (known.len(), known.len().saturating_sub(LISTED_MAX)) {
        (0, _) => "is none".to_owned(),
        (1, _) => format!("is: {}", shown.join(", ")),
        (_, 0) => format!("are: {}", shown.join(", ")),
        (_, more) => format!("are: {} and {more} more", shown.join(", ")),
    }
}

/// The pointer to `key` below `path`.
pub(super) fn below(path: &str, key: &str) -> String {
    // Made for every field of every document, wrong or not: in one piece.
    let mut pointer = String::with_capacity(path.len() + key.len() + 1);
    pointer.push_str(path);
    pointer.push('/');
    if key.contains(['~', '/']) {
        pointer.push_str(&key.replace('~', "~0").replace('/', "~1"));
    } else {
        pointer.push_str(key);
    }
    pointer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_lists_every_fault_and_suggests_the_first_ones_word() {
        let mut faults = Faults::default();
        faults.unknown("/priorty", "a field of a task", "priorty", ["name", "priority"]);
        faults.add("", "neither subtasks nor a goal");
        let told = failure(&faults.into_vec());
        assert_eq!(told.details["suggestion"], "priority");
        assert_eq!(told.details["faults"][1]["path"], "/");
        assert!(told.message.contains("did you mean `priority`? (and 1 more)"), "{told}");
    }

    #[test]
    fn faults_are_bounded_in_number_and_length() {
        let mut faults = Faults::default();
        for _ in 0..1_000 {
            faults.unknown(&"x".repeat(10_000), "known", &"\u{1b}".repeat(10_000), ["a"; 100]);
        }
        let told = faults.into_vec();
        assert_eq!(told.len(), FAULTS_MAX);
        assert!(told.iter().all(|fault| fault.path.chars().count() <= PATH_CHARS_MAX + 1 && fault.message.len() < 500));
        assert!(!told[0].to_string().contains('\u{1b}'));
    }
}
