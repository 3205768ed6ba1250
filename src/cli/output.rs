//! Where a verb writes: stdout for its answer, stderr for everything about it.
//!
//! A reader that closes its end (`meshwork agents | head -1`) ends the verb quietly and successfully. Documents are pretty on a terminal
//! and on one line otherwise; either way every character that could steer a terminal is written as a JSON escape, which changes no value.

use std::io::{self, IsTerminal, Write};
#[cfg(test)]
use std::sync::{Arc, Mutex};

use serde_json::Value;

use super::error::{CliError, Exit};

/// The two streams of the process, or in tests two pages.
#[derive(Debug, Clone, Default)]
pub(crate) enum Screen {
    /// The process's own.
    #[default]
    Process,
    /// Stdout and stderr, kept.
    #[cfg(test)]
    Memory(Arc<Mutex<(String, String)>>),
}

impl Screen {
    /// Writes to stdout.
    ///
    /// # Errors
    /// When nobody reads any more (exit code 0) or the stream cannot be written.
    pub(crate) fn out(&self, text: &str) -> Result<(), CliError> {
        match self {
            Self::Process => {
                let mut stdout = io::stdout().lock();
                stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).map_err(|error| {
                    if error.kind() == io::ErrorKind::BrokenPipe {
                        return CliError::reported(Exit::Done);
                    }
                    CliError::internal(format!("failed to write to stdout: {error}"))
                })
            }
            #[cfg(test)]
            Self::Memory(pages) => pages.lock().map(|mut pages| pages.0.push_str(text)).map_err(|_| CliError::internal("a test panicked")),
        }
    }

    /// Writes to stderr, as far as that is possible.
    pub(crate) fn err(&self, text: &str) {
        match self {
            Self::Process => drop(io::stderr().lock().write_all(text.as_bytes())),
            #[cfg(test)]
            Self::Memory(pages) => pages.lock().expect("no panic while held").1.push_str(text),
        }
    }

    /// Writes one document to stdout.
    ///
    /// # Errors
    /// As [`Screen::out`].
    pub(crate) fn json(&self, document: &Value) -> Result<(), CliError> {
        if self.out_is_terminal() { self.out(&(tame(&format!("{document:#}")) + "\n")) } else { self.line(document) }
    }

    /// Writes one document of several to stdout, on a line of its own.
    ///
    /// # Errors
    /// As [`Screen::out`].
    pub(crate) fn line(&self, document: &Value) -> Result<(), CliError> {
        self.out(&(tame(&document.to_string()) + "\n"))
    }

    /// Whether a person reads stdout.
    pub(crate) fn out_is_terminal(&self) -> bool {
        matches!(self, Self::Process) && io::stdout().is_terminal()
    }

    /// Whether a person reads stderr.
    pub(crate) fn err_is_terminal(&self) -> bool {
        matches!(self, Self::Process) && io::stderr().is_terminal()
    }

    /// Two empty pages.
    #[cfg(test)]
    pub(crate) fn memory() -> Self {
        Self::Memory(Arc::default())
    }

    /// What stands on stdout and stderr.
    #[cfg(test)]
    pub(crate) fn pages(&self) -> (String, String) {
        match self {
            Self::Process => Default::default(),
            Self::Memory(pages) => pages.lock().expect("no panic while held").clone(),
        }
    }
}

/// JSON text with every character that steers a terminal written as an escape.
///
/// Outside of strings JSON has no such character but the line feeds of pretty printing, and serde_json escapes those inside strings.
fn tame(json: &str) -> String {
    let mut tamed = String::with_capacity(json.len());
    for c in json.chars() {
        let steers =
            c.is_control() || matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}');
        if steers && c != '\n' { tamed += &format!("\\u{:04x}", u32::from(c)) } else { tamed.push(c) }
    }
    tamed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_that_steer_a_terminal_are_escaped_without_changing_the_value() {
        let value = Value::String("a\u{1b}[31m\u{9b}2J\u{202e}\nä".to_owned());
        let text = tame(&serde_json::to_string_pretty(&value).expect("JSON"));
        assert_eq!(text, "\"a\\u001b[31m\\u009b2J\\u202e\\nä\"");
        assert_eq!(serde_json::from_str::<Value>(&text).expect("still JSON"), value);
    }
}
