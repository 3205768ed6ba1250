//! What an agent says of how well it does a capability, and of what that takes (MAOP-2, MAOP 2.2 capability advertisement).
//!
//! All of it is the agent's own word: it is shown as claimed, words of the specializations can be searched for, and nothing of it counts
//! when agents are ranked, since anybody can write 1.0 (threat T16). Bounded, because every node of the mesh keeps it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Entries of each list and of the map.
const ENTRIES_MAX: usize = 16;
/// How long one entry may be, in characters: a line.
const LINE_CHARS_MAX: usize = 128;
/// How long the name of a requirement may be, in characters.
const NAME_CHARS_MAX: usize = 32;

/// An agent's word on one of its capabilities.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Claims {
    /// How good it thinks it is, 0 to 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub score: Option<f64>,
    /// What it is best at.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub specializations: Vec<String>,
    /// What it cannot do.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub limitations: Vec<String>,
    /// What it takes: names of resources with amounts, in whatever terms its author thinks.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub resource_requirements: BTreeMap<String, Fact>,
}

/// One value of a free-form table: no list and no table, so that it has a bound.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged, expecting = "expected a text, a number, true or false")]
pub enum Fact {
    /// `true` or `false`.
    Flag(bool),
    /// A whole number.
    Whole(i64),
    /// Any other number.
    Number(f64),
    /// Anything else, in words.
    Text(String),
}

impl Claims {
    /// Whether nothing is claimed.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The first field that breaks a rule, below the capability, and the rule.
    ///
    /// # Errors
    /// Path and rule.
    pub fn check(&self) -> Result<(), (String, &'static str)> {
        if self.score.is_some_and(|score| !(0.0..=1.0).contains(&score)) {
            return Err(("score".to_owned(), "is 0 to 1"));
        }
        for (name, lines) in [("specializations", &self.specializations), ("limitations", &self.limitations)] {
            if lines.len() > ENTRIES_MAX {
                return Err((name.to_owned(), "has at most 16 entries"));
            }
            if let Some(at) = lines.iter().position(|line| !is_line(line, LINE_CHARS_MAX)) {
                return Err((format!("{name}[{at}]"), "has 1 to 128 printable characters"));
            }
        }
        let requirements = &self.resource_requirements;
        if requirements.len() > ENTRIES_MAX {
            return Err(("resource_requirements".to_owned(), "has at most 16 entries"));
        }
        for (name, fact) in requirements {
            if !is_line(name, NAME_CHARS_MAX) {
                return Err(("resource_requirements".to_owned(), "has names of 1 to 32 printable characters"));
            }
            let sound = match fact {
                Fact::Flag(_) | Fact::Whole(_) => true,
                Fact::Number(number) => number.is_finite(),
                Fact::Text(text) => is_line(text, LINE_CHARS_MAX),
            };
            if !sound {
                return Err((format!("resource_requirements.{name}"), "is a finite number or has 1 to 128 printable characters"));
            }
        }
        Ok(())
    }
}

fn is_line(text: &str, chars_max: usize) -> bool {
    !text.is_empty() && text.len() <= chars_max.saturating_mul(4) && super::printable(text, chars_max) == text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full() -> Claims {
        let text = r#"{"score":0.9,"specializations":["invoices"],"limitations":["no handwriting"],
            "resource_requirements":{"gpu":true,"memory_mb":2048,"share":0.5,"model":"small"}}"#;
        serde_json::from_str(text).expect("valid")
    }

    /// MAOP-2: the four fields of an advertisement.
    #[test]
    fn an_advertisement_reads_maops_fields() {
        let claims = full();
        assert_eq!(claims.check(), Ok(()));
        assert_eq!(claims.resource_requirements["memory_mb"], Fact::Whole(2048));
        assert_eq!(claims.resource_requirements["share"], Fact::Number(0.5));
        assert!(!claims.is_empty() && Claims::default().is_empty());
    }

    #[test]
    fn each_bound_names_its_field() {
        type Change = fn(&mut Claims);
        let broken: [(&str, Change); 9] = [
            ("score", |claims| claims.score = Some(1.01)),
            ("score", |claims| claims.score = Some(f64::NAN)),
            ("specializations", |claims| claims.specializations = vec!["x".to_owned(); 17]),
            ("specializations[1]", |claims| claims.specializations.push("\u{1b}[31m".to_owned())),
            ("limitations[0]", |claims| claims.limitations = vec!["x".repeat(129)]),
            ("limitations[0]", |claims| claims.limitations = vec![String::new()]),
            ("resource_requirements", |claims| drop(claims.resource_requirements.insert("x".repeat(33), Fact::Flag(true)))),
            ("resource_requirements.memory_mb", |claims| {
                claims.resource_requirements.insert("memory_mb".to_owned(), Fact::Number(f64::INFINITY));
            }),
            ("resource_requirements", |claims| {
                claims.resource_requirements.extend((0..17).map(|number| (format!("r{number}"), Fact::Whole(1))));
            }),
        ];
        for (path, change) in broken {
            let mut claims = full();
            change(&mut claims);
            assert_eq!(claims.check().expect_err(path).0, path);
        }
    }

    #[test]
    fn tables_within_tables_are_refused() {
        assert!(serde_json::from_str::<Claims>(r#"{"resource_requirements":{"gpu":{"memory":[1]}}}"#).is_err());
    }
}
