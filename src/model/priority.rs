//! How urgent a call is, and how much of what is scarce it may have.

use serde::{Deserialize, Serialize};

/// How urgent a call is (AITP-1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
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
}

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
}
