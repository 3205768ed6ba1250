//! What an agent says of how well it does a capability, and of what that takes (MAOP-2, MAOP 2.2 capability advertisement).
//!
//! All of it is the agent's own word: it is shown as claimed, words of the specializations can be searched for, and nothing of it counts
//! when agents are ranked, since anybody can write 1.0 (threat T16). Bounded, because every node of the mesh keeps it.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Deserializer, Error, Visitor};
use serde::{Deserialize, Serialize};

use super::list::{at_most, at_most_named};

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
    #[serde(deserialize_with = "at_most::<ENTRIES_MAX, _, _>", skip_serializing_if = "Vec::is_empty")]
    pub specializations: Vec<String>,
    /// What it cannot do.
    #[serde(deserialize_with = "at_most::<ENTRIES_MAX, _, _>", skip_serializing_if = "Vec::is_empty")]
    pub limitations: Vec<String>,
    /// What it takes: names of resources with amounts, in whatever terms its author thinks.
    #[serde(deserialize_with = "at_most_named::<ENTRIES_MAX, _, _>", skip_serializing_if = "BTreeMap::is_empty")]
    pub resource_requirements: BTreeMap<String, Fact>,
}

/// One value of a free-form table: no list and no table, so that it has a bound.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
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

/// Read by hand: serde would first hold whatever is there, lists within lists, before it found that none of it fits (threat T27).
impl<'de> Deserialize<'de> for Fact {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(FactVisitor)
    }
}

struct FactVisitor;

impl Visitor<'_> for FactVisitor {
    type Value = Fact;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text, a number, true or false")
    }

    fn visit_bool<E: Error>(self, flag: bool) -> Result<Fact, E> {
        Ok(Fact::Flag(flag))
    }

    fn visit_i64<E: Error>(self, whole: i64) -> Result<Fact, E> {
        Ok(Fact::Whole(whole))
    }

    fn visit_u64<E: Error>(self, whole: u64) -> Result<Fact, E> {
        #[expect(clippy::cast_precision_loss, reason = "as for any number that is too long to be whole")]
        Ok(i64::try_from(whole).map_or(Fact::Number(whole as f64), Fact::Whole))
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<Fact, E> {
        Ok(Fact::Number(number))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Fact, E> {
        Ok(Fact::Text(text.to_owned()))
    }

    fn visit_string<E: Error>(self, text: String) -> Result<Fact, E> {
        Ok(Fact::Text(text))
    }
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
        let refused = serde_json::from_str::<Claims>(r#"{"resource_requirements":{"gpu":{"memory":[1]}}}"#).expect_err("a table");
        assert!(refused.to_string().contains("expected a text, a number, true or false"), "{refused}");
    }

    #[test]
    fn a_number_that_is_too_long_to_be_whole_is_read_as_any_other() {
        assert_eq!(serde_json::from_str::<Fact>("18446744073709551615").expect("a number"), Fact::Number(18_446_744_073_709_551_615.0));
        assert_eq!(serde_json::from_str::<Fact>("-9223372036854775808").expect("a number"), Fact::Whole(i64::MIN));
    }

    /// Threat T27: what is too long is read no further than its bound.
    #[test]
    fn lists_and_tables_are_read_no_further_than_their_bound() {
        let (list, table) = (vec!["x"; ENTRIES_MAX + 1], (0..=ENTRIES_MAX).map(|at| (at.to_string(), 1)).collect::<BTreeMap<_, _>>());
        for text in [serde_json::json!({ "limitations": list }), serde_json::json!({ "resource_requirements": table })] {
            let refused = serde_json::from_value::<Claims>(text).expect_err("one entry too many");
            assert!(refused.to_string().contains("more than 16 entries"), "{refused}");
        }
    }
}
