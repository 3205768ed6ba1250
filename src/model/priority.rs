//! How urgent a call is, and how much of what is scarce it may have.

use std::{fmt, str::FromStr};

/// How urgent a call is (AITP-1). Written in capitals, read in any.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Priority {
    /// May wait, and is refused first.
    Low,
    /// The usual.
    #[default]
    Normal,
    /// Goes first.
    High,
}

impl Priority {
    /// All of them, the least urgent first.
    pub const ALL: [Self; 3] = [Self::Low, Self::Normal, Self::High];

    /// How many of `places` may be taken when a call of this priority comes: when places run out the less urgent are refused first. One
    /// place at least, as long as there is any.
    pub fn room(self, places: usize) -> usize {
        let share = match self {
            Self::Low => places / 2,
            Self::Normal => places - places / 10,
            Self::High => places,
        };
        share.max(places.min(1))
    }

    /// Why a call of this priority finds no room: `LOW calls of this peer are taken while fewer than 2 of 4 run`.
    pub fn refused(self, whose: &str, places: usize, what_they_do: &str) -> String {
        format!("{self} calls {whose} are taken while fewer than {} of {places} {what_they_do}", self.room(places))
    }
}

impl fmt::Display for Priority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Low => "LOW",
            Self::Normal => "NORMAL",
            Self::High => "HIGH",
        })
    }
}

impl FromStr for Priority {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let meant = Self::ALL.into_iter().find(|priority| text.eq_ignore_ascii_case(&priority.to_string()));
        meant.ok_or_else(|| format!("`{}` is not a priority: expected HIGH, NORMAL or LOW", super::printable(text, 20)))
    }
}

super::text::serde_as_text!(Priority);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_less_urgent_find_less_room() {
        assert_eq!(Priority::ALL.map(|priority| priority.room(100)), [50, 90, 100]);
        assert_eq!(Priority::ALL.map(|priority| priority.room(1)), [1, 1, 1]);
        assert_eq!(Priority::ALL.map(|priority| priority.room(0)), [0, 0, 0]);
        assert!(Priority::Low < Priority::Normal && Priority::Normal < Priority::High);
    }

    #[test]
    fn a_refusal_names_the_share_that_was_used_up() {
        let told = Priority::Low.refused("of this node's clients", 4_096, "run");
        assert_eq!(told, "LOW calls of this node's clients are taken while fewer than 2048 of 4096 run");
    }

    #[test]
    fn a_priority_is_read_in_any_letters_and_written_in_capitals() {
        for (text, priority) in [("low", Priority::Low), ("Normal", Priority::Normal), ("HIGH", Priority::High)] {
            assert_eq!(serde_json::from_value::<Priority>(text.into()).expect(text), priority);
            assert_eq!(serde_json::to_value(priority).expect("JSON"), text.to_uppercase());
        }
        assert_eq!("urgent".parse::<Priority>(), Err("`urgent` is not a priority: expected HIGH, NORMAL or LOW".to_owned()));
    }
}
