//! Names of tasks and of their parts (AITP 2.1, 3.1).

use std::{fmt, str::FromStr};

use super::ParseError;

/// The capability of agents that run whole tasks for others (AMP 3, "Task Delegation").
pub const TASK_EXECUTION: &str = "task-execution";

/// One task, named by its home node when it was submitted. Written as a UUID of version 4.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TaskId(u128);

impl TaskId {
    /// The id for a number that was drawn at random; the bits that say which kind of UUID it is are set here.
    pub fn from_random(number: u128) -> Self {
        const VERSION: u128 = 0xf << 76;
        const VARIANT: u128 = 0b11 << 62;
        Self(number & !VERSION & !VARIANT | 4 << 76 | 0b10 << 62)
    }

    /// The id as it is kept and travels.
    pub fn to_bytes(self) -> [u8; 16] {
        self.0.to_be_bytes()
    }

    /// The id that was kept or travelled as `bytes`.
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(u128::from_be_bytes(bytes))
    }

    /// Enough of the id for a person to tell tasks apart in a table: its first eight digits.
    pub fn short(self) -> String {
        format!("{:08x}", self.0 >> 96)
    }
}

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let part = |shift: u32, digits: u32| (self.0 >> shift) & ((1 << (4 * digits)) - 1);
        write!(f, "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}", part(96, 8), part(80, 4), part(64, 4), part(48, 4), part(0, 12))
    }
}

impl FromStr for TaskId {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        const DASHES: [usize; 4] = [8, 13, 18, 23];
        let well_formed = text.len() == 36
            && text.bytes().enumerate().all(|(at, byte)| if DASHES.contains(&at) { byte == b'-' } else { byte.is_ascii_hexdigit() });
        let number = well_formed.then(|| u128::from_str_radix(&text.replace('-', ""), 16).ok()).flatten();
        number.map(Self).ok_or_else(|| ParseError::TaskId(super::printable(text, 80)))
    }
}

/// The longest name of a subtask, in bytes.
pub const SUBTASK_ID_BYTES_MAX: usize = 64;

/// A subtask's name within its task, chosen by whoever wrote the task: letters, digits, `_` and `-`, since expressions name it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SubtaskId(String);

impl SubtaskId {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SubtaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl FromStr for SubtaskId {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let chars_ok = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-');
        // `parent` is what expressions call the task itself.
        let well_formed = chars_ok && (1..=SUBTASK_ID_BYTES_MAX).contains(&text.len()) && text != "parent";
        if well_formed { Ok(Self(text.to_owned())) } else { Err(ParseError::SubtaskId(super::printable(text, 80))) }
    }
}

super::text::serde_as_text!(TaskId, SubtaskId);

#[cfg(test)]
mod tests {
    use super::*;

    /// AITP-1: a task's id is a UUID of version 4.
    #[test]
    fn a_task_id_is_a_uuid_and_survives_writing_and_reading() {
        for number in [0, u128::MAX, 0x0123_4567_89ab_cdef_0123_4567_89ab_cdef] {
            let id = TaskId::from_random(number);
            let text = id.to_string();
            assert_eq!(text.parse(), Ok(id));
            assert_eq!(TaskId::from_bytes(id.to_bytes()), id);
            assert_eq!((text.as_bytes()[14], b"89ab".contains(&text.as_bytes()[19])), (b'4', true), "{text}");
            assert!(text.starts_with(&id.short()));
        }
    }

    #[test]
    fn what_is_no_name_is_refused() {
        assert!("0123456789ab-cdef-0123-456789abcdef-".parse::<TaskId>().is_err());
        assert!("+1234567-89ab-4def-8123-456789abcdef".parse::<TaskId>().is_err());
        for text in ["", "parent", "a.b", "a b", "${x}", &"x".repeat(65)] {
            assert!(text.parse::<SubtaskId>().is_err(), "{text}");
        }
        assert_eq!("subtask_1".parse::<SubtaskId>().expect("a name").as_str(), "subtask_1");
    }
}
