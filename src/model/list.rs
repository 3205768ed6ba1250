//! Reading lists that somebody else wrote.
//!
//! serde takes a list's declared length for a promise and makes room for it, up to a megabyte, before it has seen a single entry; and it
//! reads on however many there are. Here an entry too many ends the reading, and room is made for what is there (threat T27).

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};

/// A list of at most `MAX` entries; for `#[serde(deserialize_with = "at_most::<MAX, _, _>")]`.
pub(crate) fn at_most<'de, const MAX: usize, T, D>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    T: Deserialize<'de>,
    D: Deserializer<'de>,
{
    deserializer.deserialize_seq(AtMost::<MAX, T>(PhantomData))
}

struct AtMost<const MAX: usize, T>(PhantomData<T>);

impl<'de, const MAX: usize, T: Deserialize<'de>> Visitor<'de> for AtMost<MAX, T> {
    type Value = Vec<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a list of at most {MAX} entries")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut entries: A) -> Result<Vec<T>, A::Error> {
        let mut list = Vec::new();
        while let Some(entry) = entries.next_element()? {
            if list.len() >= MAX {
                return Err(A::Error::custom(format_args!("a list has more than {MAX} entries")));
            }
            list.push(entry);
        }
        Ok(list)
    }
}

/// A table of at most `MAX` entries; for `#[serde(deserialize_with = "at_most_named::<MAX, _, _>")]`.
pub(crate) fn at_most_named<'de, const MAX: usize, T, D>(deserializer: D) -> Result<BTreeMap<String, T>, D::Error>
where
    T: Deserialize<'de>,
    D: Deserializer<'de>,
{
    deserializer.deserialize_map(AtMostNamed::<MAX, T>(PhantomData))
}

struct AtMostNamed<const MAX: usize, T>(PhantomData<T>);

impl<'de, const MAX: usize, T: Deserialize<'de>> Visitor<'de> for AtMostNamed<MAX, T> {
    type Value = BTreeMap<String, T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a table of at most {MAX} entries")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Self::Value, A::Error> {
        let mut table = BTreeMap::new();
        while let Some((name, entry)) = entries.next_entry()? {
            table.insert(name, entry);
            if table.len() > MAX {
                return Err(A::Error::custom(format_args!("a table has more than {MAX} entries")));
            }
        }
        Ok(table)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, serde::Deserialize)]
    struct Pair(#[serde(deserialize_with = "at_most::<2, _, _>")] Vec<u64>);

    #[test]
    fn a_list_that_is_too_long_is_refused_and_a_full_one_is_not() {
        assert_eq!(serde_json::from_str::<Pair>("[1,2]").expect("two"), Pair(vec![1, 2]));
        let error = serde_json::from_str::<Pair>("[1,2,3]").expect_err("three");
        assert!(error.to_string().contains("a list has more than 2 entries"), "{error}");
    }

    #[derive(Debug, PartialEq, serde::Deserialize)]
    struct Table(#[serde(deserialize_with = "at_most_named::<1, _, _>")] BTreeMap<String, u64>);

    #[test]
    fn a_table_that_is_too_long_is_refused_and_a_full_one_is_not() {
        let full = Table(BTreeMap::from([("a".to_owned(), 1)]));
        assert_eq!(serde_json::from_str::<Table>("{\"a\":1}").expect("one"), full);
        let error = serde_json::from_str::<Table>("{\"a\":1,\"b\":2}").expect_err("two");
        assert!(error.to_string().contains("a table has more than 1 entries"), "{error}");
    }
}
