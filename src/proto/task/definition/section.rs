//! Reads the fields of one object of a definition, with a fault for each that is not what it must be.
//!
//! A field that is absent gives `None` without a fault; one that is there and wrong, `null` included, gives `None` with one. Numbers go
//! through their text into decimals, so that no amount passes through binary fractions and nothing that is no number passes at all.

use std::time::Duration;

use rust_decimal::{Decimal, prelude::ToPrimitive};
use serde_json::{Map, Value};

use super::super::fault::{Faults, below};
use crate::model::{json_kind, printable};

/// The longest time that an attempt, an extension or a pause before another look may have: a week.
pub(super) const SECONDS_MAX: u32 = 7 * 24 * 3_600;

/// The largest amount and the largest number of units: more is a slip.
pub(super) const AMOUNT_MAX: u32 = 1_000_000_000;

/// One object and where it stands.
#[derive(Debug)]
pub(super) struct Section<'a> {
    fields: &'a Map<String, Value>,
    path: String,
}

impl<'a> Section<'a> {
    /// The object at `path`, which may have the fields `known`.
    pub(super) fn of(value: &'a Value, path: &str, what: &str, known: &[&str], faults: &mut Faults) -> Option<Self> {
        let Value::Object(fields) = value else {
            faults.add(path, format!("{what} is an object, not {}", json_kind(value)));
            return None;
        };
        let section = Self { fields, path: path.to_owned() };
        for key in fields.keys().filter(|key| !known.contains(&key.as_str())) {
            faults.unknown(&section.at(key), &format!("a field of {what}"), key, known.iter().copied());
        }
        Some(section)
    }

    /// Where it stands.
    pub(super) fn path(&self) -> &str {
        &self.path
    }

    /// Where a field of it stands.
    pub(super) fn at(&self, key: &str) -> String {
        below(&self.path, key)
    }

    /// A field as it is.
    pub(super) fn get(&self, key: &str) -> Option<&'a Value> {
        self.fields.get(key)
    }

    /// A text of 1 to `chars_max` characters.
    pub(super) fn text(&self, key: &str, chars_max: usize, faults: &mut Faults) -> Option<&'a str> {
        text(self.get(key)?, &self.at(key), chars_max, faults)
    }

    /// A text of which `T` can be read.
    pub(super) fn parsed<T>(&self, key: &str, faults: &mut Faults) -> Option<T>
    where
        T: std::str::FromStr,
        T::Err: std::fmt::Display,
    {
        let Value::String(text) = self.get(key)? else {
            faults.add(&self.at(key), format!("is a text, not {}", self.get(key).map_or("absent", json_kind)));
            return None;
        };
        text.parse().map_err(|error: T::Err| faults.add(&self.at(key), error.to_string())).ok()
    }

    /// One of some words.
    pub(super) fn word<T: Copy>(&self, key: &str, words: &[(&str, T)], faults: &mut Faults) -> Option<T> {
        let value = self.get(key)?;
        let Value::String(text) = value else {
            faults.add(&self.at(key), format!("is a text, not {}", json_kind(value)));
            return None;
        };
        let meant = words.iter().find(|(word, _)| word == text).map(|(_, meaning)| *meaning);
        if meant.is_none() {
            faults.unknown(&self.at(key), "one of the words that may stand here", text, words.iter().map(|(word, _)| *word));
        }
        meant
    }

    /// `true` or `false`.
    pub(super) fn boolean(&self, key: &str, faults: &mut Faults) -> Option<bool> {
        let value = self.get(key)?;
        if !value.is_boolean() {
            faults.add(&self.at(key), format!("is true or false, not {}", json_kind(value)));
        }
        value.as_bool()
    }

    /// A whole number from 0 to `max`.
    pub(super) fn count(&self, key: &str, max: u32, faults: &mut Faults) -> Option<u32> {
        let number = self.number(key, faults)?;
        let whole = number.to_u32().filter(|whole| Decimal::from(*whole) == number && *whole <= max);
        if whole.is_none() {
            faults.add(&self.at(key), format!("is a whole number from 0 to {max}, not {number}"));
        }
        whole
    }

    /// A number from 0 to `max`.
    pub(super) fn at_most(&self, key: &str, max: u32, faults: &mut Faults) -> Option<Decimal> {
        let number = self.number(key, faults)?;
        within(number, &self.at(key), max, faults)
    }

    /// A time in seconds, from a millisecond on.
    pub(super) fn seconds(&self, key: &str, faults: &mut Faults) -> Option<Duration> {
        let seconds = self.number(key, faults)?;
        let ms = Some(seconds)
            .filter(|seconds| *seconds <= Decimal::from(SECONDS_MAX))
            .and_then(|seconds| seconds.checked_mul(Decimal::ONE_THOUSAND));
        let time = ms.and_then(|ms| ms.to_u64()).filter(|ms| *ms > 0).map(Duration::from_millis);
        if time.is_none() {
            faults.add(&self.at(key), format!("is a time of 0.001 to {SECONDS_MAX} seconds, not {seconds}"));
        }
        time
    }

    /// A number, exactly as it was written; never one in quotes.
    fn number(&self, key: &str, faults: &mut Faults) -> Option<Decimal> {
        let value = self.get(key)?;
        if !value.is_number() {
            faults.add(&self.at(key), format!("is a number, not {}", json_kind(value)));
            return None;
        }
        decimal(value, &self.at(key), faults)
    }

    /// An amount: a number, or a decimal in quotes, from 0 to [`AMOUNT_MAX`].
    pub(super) fn amount(&self, key: &str, faults: &mut Faults) -> Option<Decimal> {
        let amount = decimal(self.get(key)?, &self.at(key), faults)?;
        within(amount, &self.at(key), AMOUNT_MAX, faults)
    }

    /// A list of at most `max` entries.
    pub(super) fn list(&self, key: &str, max: usize, faults: &mut Faults) -> Option<&'a [Value]> {
        let value = self.get(key)?;
        list(value, &self.at(key), max, faults)
    }

    /// A list of texts of which `T` can be read, each with its path.
    pub(super) fn names<T>(&self, key: &str, max: usize, faults: &mut Faults) -> Vec<(String, T)>
    where
        T: std::str::FromStr,
        T::Err: std::fmt::Display,
    {
        let mut names = Vec::new();
        for (number, value) in self.list(key, max, faults).unwrap_or_default().iter().enumerate() {
            let path = below(&self.at(key), &number.to_string());
            match value.as_str().map(str::parse) {
                Some(Ok(name)) => names.push((path, name)),
                Some(Err(error)) => faults.add(&path, T::Err::to_string(&error)),
                None => faults.add(&path, format!("is a text, not {}", json_kind(value))),
            }
        }
        names
    }

    /// A JSON Schema; `true` where there is none. Whether it can be compiled is for whoever has a compiler to say.
    pub(super) fn schema(&self, key: &str, faults: &mut Faults) -> Value {
        match self.get(key) {
            None => Value::Bool(true),
            Some(schema @ (Value::Object(_) | Value::Bool(_))) => schema.clone(),
            Some(other) => {
                faults.add(&self.at(key), format!("is a JSON Schema, so an object, true or false, not {}", json_kind(other)));
                Value::Bool(true)
            }
        }
    }
}

/// A list of at most `max` entries. How many there are is said before any of them is looked at.
pub(super) fn list<'a>(value: &'a Value, path: &str, max: usize, faults: &mut Faults) -> Option<&'a [Value]> {
    match value {
        Value::Array(entries) if entries.len() <= max => Some(entries),
        Value::Array(entries) => {
            faults.add(path, format!("has at most {max} entries, not {}", entries.len()));
            None
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Object(_) => {
            faults.add(path, format!("is a list, not {}", json_kind(value)));
            None
        }
    }
}

/// A text of 1 to `chars_max` characters.
pub(super) fn text<'a>(value: &'a Value, path: &str, chars_max: usize, faults: &mut Faults) -> Option<&'a str> {
    let Value::String(text) = value else {
        faults.add(path, format!("is a text, not {}", json_kind(value)));
        return None;
    };
    // Counting stops where it has an answer: the text may be as long as the document.
    let fits = !text.is_empty() && text.chars().nth(chars_max).is_none();
    if !fits {
        faults.add(path, format!("has 1 to {chars_max} characters, not {}", text.chars().count()));
    }
    fits.then_some(text)
}

/// The number as it was written: JSON's, or a decimal in quotes.
pub(super) fn decimal(value: &Value, path: &str, faults: &mut Faults) -> Option<Decimal> {
    let read = match value {
        Value::Number(number) => {
            let text = number.to_string();
            Decimal::from_str_exact(&text).or_else(|_| Decimal::from_scientific(&text)).ok()
        }
        Value::String(text) if text.len() <= 64 => Decimal::from_str_exact(text).ok(),
        Value::String(_) => None,
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => {
            faults.add(path, format!("is a number or a decimal in quotes, not {}", json_kind(value)));
            return None;
        }
    };
    if read.is_none() {
        let shown = value.as_str().map_or_else(|| value.to_string(), |text| printable(text, 40));
        faults.add(path, format!("`{shown}` is not a decimal number such as 10.00, of at most 28 digits"));
    }
    read
}

/// A number from 0 to `max`.
pub(super) fn within(number: Decimal, path: &str, max: u32, faults: &mut Faults) -> Option<Decimal> {
    let fits = number >= Decimal::ZERO && number <= Decimal::from(max);
    if !fits {
        faults.add(path, format!("is 0 to {max}, not {number}"));
    }
    fits.then_some(number)
}
