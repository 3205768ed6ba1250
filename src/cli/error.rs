//! How a verb fails: an exit code, and the same error document that a node's doors give.
//!
//! What the node refused is passed on word for word, codes that this build does not know included. What went wrong on this side (usage,
//! a node that does not answer, a wait that ran out) is put into the same shape, so a script reads one kind of document.

use std::process::ExitCode;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{figures::millis, output::Screen};
use crate::model::{ErrorCode, Failure, printable};

/// How much of a message or of one detail is shown, in characters; a node caps its own far lower.
const SHOWN_CHARS_MAX: usize = 2_000;

/// How the process ends. The numbers are promised to scripts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    /// Done.
    Done = 0,
    /// The mesh said no.
    Refused = 1,
    /// Wrong usage or configuration.
    Usage = 2,
    /// No node answers.
    Unreachable = 3,
    /// Time ran out.
    Timeout = 4,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// The inside of an error document.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Body {
    /// The stable code, as text: a newer node may know more of them than [`ErrorCode`].
    pub(crate) code: String,
    /// The code's number.
    #[serde(default)]
    pub(crate) number: u64,
    /// One sentence for a person.
    #[serde(default)]
    pub(crate) message: String,
    /// Whether the same request may succeed later.
    #[serde(default)]
    pub(crate) retryable: bool,
    /// Facts for a program; `suggestion`, `retry_after_ms` and `faults` are also shown to people.
    #[serde(default)]
    pub(crate) details: Map<String, Value>,
    /// Where to look in the node's log.
    #[serde(default)]
    pub(crate) trace_id: Option<String>,
}

/// Why a verb did not do what it was asked.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct CliError {
    exit: Exit,
    /// Absent when the verb has printed all there is to say.
    body: Option<Box<Body>>,
}

impl CliError {
    fn new(exit: Exit, code: ErrorCode, message: impl AsRef<str>) -> Self {
        let message = printable(message.as_ref(), SHOWN_CHARS_MAX);
        let body = Body {
            code: code.to_string(),
            number: code.number().into(),
            message,
            retryable: code.is_retryable(),
            details: Map::new(),
            trace_id: None,
        };
        Self { exit, body: Some(Box::new(body)) }
    }

    /// The command line, a file or the environment is wrong.
    pub(crate) fn usage(message: impl AsRef<str>) -> Self {
        Self::new(Exit::Usage, ErrorCode::InvalidRequest, message)
    }

    /// No node answers.
    pub(crate) fn unreachable(message: impl AsRef<str>) -> Self {
        Self::new(Exit::Unreachable, ErrorCode::Unavailable, message)
    }

    /// Time ran out on this side.
    pub(crate) fn timeout(message: impl AsRef<str>) -> Self {
        Self::new(Exit::Timeout, ErrorCode::Timeout, message)
    }

    /// The person who asked took it back.
    pub(crate) fn cancelled(message: impl AsRef<str>) -> Self {
        Self::new(Exit::Refused, ErrorCode::Cancelled, message)
    }

    /// This program or its machine failed.
    pub(crate) fn internal(message: impl AsRef<str>) -> Self {
        Self::new(Exit::Refused, ErrorCode::Internal, message)
    }

    /// The node answered with an error document.
    pub(crate) fn answered(body: Body) -> Self {
        let exit = if body.code == ErrorCode::Timeout.as_str() { Exit::Timeout } else { Exit::Refused };
        Self { exit, body: Some(Box::new(body)) }
    }

    /// Everything has been said already; only the exit code is left.
    pub(crate) fn reported(exit: Exit) -> Self {
        Self { exit, body: None }
    }

    /// The same failure with advice, unless it came with some.
    #[must_use]
    pub(crate) fn hint(mut self, advice: impl Into<String>) -> Self {
        if let Some(body) = &mut self.body {
            body.details.entry("suggestion").or_insert_with(|| Value::String(advice.into()));
        }
        self
    }

    /// The same failure with one more fact in `details`.
    #[must_use]
    pub(crate) fn with(mut self, name: &str, fact: impl Into<Value>) -> Self {
        if let Some(body) = &mut self.body {
            body.details.insert(name.to_owned(), fact.into());
        }
        self
    }

    /// How the process ends.
    pub(crate) fn exit(&self) -> Exit {
        self.exit
    }

    /// Whether this is its code.
    pub(crate) fn is(&self, code: ErrorCode) -> bool {
        self.body.as_ref().is_some_and(|body| body.code == code.as_str())
    }

    /// What happened, or nothing when all has been said.
    pub(crate) fn message(&self) -> Option<&str> {
        self.body.as_ref().map(|body| body.message.as_str())
    }

    /// A fact that came with it.
    pub(crate) fn detail(&self, name: &str) -> Option<&Value> {
        self.body.as_ref()?.details.get(name)
    }

    /// The advice that came with it.
    pub(crate) fn suggestion(&self) -> Option<&str> {
        self.body.as_ref().and_then(|body| body.details.get("suggestion")).and_then(Value::as_str)
    }

    /// What is written to stderr.
    fn text(body: &Body) -> String {
        let mut text = format!("error: {}: {}\n", printable(&body.code, 64), printable(&body.message, SHOWN_CHARS_MAX));
        for fault in body.details.get("faults").and_then(Value::as_array).into_iter().flatten() {
            let part = |name: &str| fault.get(name).and_then(Value::as_str);
            let fault = match (part("path"), part("message")) {
                (Some(path), Some(message)) => format!("{path}: {message}"),
                _ => fault.as_str().map_or_else(|| fault.to_string(), str::to_owned),
            };
            text += &format!("  {}\n", printable(&fault, SHOWN_CHARS_MAX));
        }
        if let Some(suggestion) = body.details.get("suggestion").and_then(Value::as_str) {
            text += &format!("hint: {}\n", printable(suggestion, SHOWN_CHARS_MAX));
        }
        if let Some(wait_ms) = body.details.get("retry_after_ms").and_then(Value::as_f64) {
            text += &format!("hint: try again in {}\n", millis(wait_ms));
        }
        text
    }

    /// Says what went wrong, on stderr and with `json` also as a document on stdout.
    pub(crate) fn print(&self, screen: &Screen, json: bool) {
        if let Some(body) = &self.body {
            screen.err(&Self::text(body));
        }
        if json {
            // A reader that has gone does not change how the verb ended.
            let _ = self.print_document(screen);
        }
    }

    /// Writes the error document to stdout.
    pub(crate) fn print_document(&self, screen: &Screen) -> Result<(), Self> {
        match &self.body {
            Some(body) => screen.json(&json!({ "error": body })),
            None => Ok(()),
        }
    }
}

impl From<Failure> for CliError {
    fn from(failure: Failure) -> Self {
        let number = failure.code.number().into();
        let Failure { code, message, retryable, details } = failure;
        Self::answered(Body { code: code.to_string(), number, message, retryable, details, trace_id: None })
    }
}

impl From<anyhow::Error> for CliError {
    fn from(error: anyhow::Error) -> Self {
        Self::internal(format!("{error:#}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(code: &str) -> CliError {
        let body = json!({ "code": code, "number": 2404, "message": "nobody", "details": { "retry_after_ms": 1500, "suggestion": "text-analysis" } });
        CliError::answered(serde_json::from_value(body).expect("an error body"))
    }

    #[test]
    fn each_kind_of_failure_has_its_exit_code() {
        let exits = [
            (CliError::usage("x"), 2),
            (CliError::unreachable("x"), 3),
            (CliError::timeout("x"), 4),
            (CliError::cancelled("x"), 1),
            (CliError::internal("x"), 1),
            (answered("CAPABILITY_NOT_FOUND"), 1),
            (answered("A_CODE_OF_THE_FUTURE"), 1),
            (answered("TIMEOUT"), 4),
            (Failure::new(ErrorCode::Busy, "x").into(), 1),
            (CliError::reported(Exit::Refused), 1),
        ];
        for (error, exit) in exits {
            assert_eq!(error.exit() as u8, exit, "{error:?}");
        }
    }

    #[test]
    fn a_failure_names_its_code_and_gives_every_hint() {
        let screen = Screen::memory();
        answered("CAPABILITY_NOT_FOUND").hint("unused").print(&screen, true);
        let (out, err) = screen.pages();
        assert_eq!(err, "error: CAPABILITY_NOT_FOUND: nobody\nhint: text-analysis\nhint: try again in 1.5 s\n");
        let document: Value = serde_json::from_str(&out).expect("one document");
        assert_eq!(document["error"]["number"], 2404);
        assert_eq!(document["error"]["trace_id"], Value::Null);
    }

    #[test]
    fn escape_sequences_of_strangers_do_not_reach_the_terminal() {
        let screen = Screen::memory();
        let mut error = answered("CAPABILITY_NOT_FOUND");
        error.body.as_mut().expect("a body").message = "\u{1b}[2Jgone".to_owned();
        error.print(&screen, true);
        let (out, err) = screen.pages();
        assert!(!out.contains('\u{1b}') && !err.contains('\u{1b}'));
    }
}
