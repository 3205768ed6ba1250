//! Capability names, their place in the taxonomy, and versions.
//!
//! A name is a path: lower-case words, `-` or `_` inside a word, `.` between namespaces (AMP-13, MAOP 7.2). Above it stand its dotted
//! prefixes and, for a name of AMP's taxonomy, the heading that AMP gives it; an undotted name that AMP does not know stands under
//! `custom`. The topmost of these is the *root*, and the root decides on which gossip shard the name lives.

use std::{fmt, str::FromStr, sync::Arc};

use semver::{Version, VersionReq};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// AMP's capability taxonomy: each heading with the names that stand under it.
pub const TAXONOMY: [(&str, &[&str]); 5] = [
    ("text-processing", &["text-analysis", "sentiment-analysis", "summarization", "translation", "question-answering"]),
    ("data-processing", &["data-extraction", "data-transformation", "data-validation"]),
    ("generation", &["text-generation", "code-generation", "image-generation"]),
    ("reasoning", &["logical-reasoning", "mathematical-reasoning", "causal-reasoning"]),
    ("specialized", &["web-search", "tool-use", "memory-retrieval"]),
];

/// Where undotted names outside the taxonomy stand.
const CUSTOM: &str = "custom";

/// How long a name may be, in bytes: it travels in every record, query and call.
const NAME_BYTES_MAX: usize = 96;

/// How many namespaces a name may have, which bounds the Kademlia keys that one capability costs.
const SEGMENTS_MAX: usize = 6;

/// One of the 64 gossip topics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Shard(u8);

impl Shard {
    /// How many shards there are.
    pub const COUNT: u8 = 64;

    /// The shard with this number, taken modulo their count.
    pub fn new(number: u8) -> Self {
        Self(number % Self::COUNT)
    }

    /// Every shard.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..Self::COUNT).map(Self)
    }

    /// The number of this shard, below [`Shard::COUNT`].
    pub fn number(self) -> u8 {
        self.0
    }
}

/// The name of a capability, or of a heading above capabilities.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CapabilityName(Arc<str>);

impl CapabilityName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether this is a heading of the taxonomy (or `custom`): it can be asked for, but no agent can offer it.
    pub fn is_heading(&self) -> bool {
        &*self.0 == CUSTOM || TAXONOMY.iter().any(|(heading, _)| *heading == &*self.0)
    }

    /// The names above this one, nearest first. Empty only for a heading.
    pub fn ancestors(&self) -> Vec<Self> {
        if self.is_heading() {
            return Vec::new();
        }
        let prefixes = self.0.rmatch_indices('.').filter_map(|(at, _)| self.0.get(..at));
        let mut above: Vec<Self> = prefixes.map(|prefix| Self(prefix.into())).collect();
        let first = self.0.split('.').next().unwrap_or(&self.0);
        match TAXONOMY.iter().find(|(_, names)| names.contains(&first)) {
            Some((heading, _)) => above.push(Self((*heading).into())),
            None if above.is_empty() => above.push(Self(CUSTOM.into())),
            None => {}
        }
        above
    }

    /// The topmost name above this one; the name itself if nothing stands above it.
    pub fn root(&self) -> Self {
        self.ancestors().pop().unwrap_or_else(|| self.clone())
    }

    /// The gossip shard on which agents with this capability are announced.
    pub fn shard(&self) -> Shard {
        let [first, ..] = *blake3::hash(self.root().0.as_bytes()).as_bytes();
        Shard::new(first)
    }

    /// The Kademlia key under which providers of this name are found.
    pub fn key(&self) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"meshwork/cap/1").update(self.0.as_bytes());
        *hasher.finalize().as_bytes()
    }

    /// Whether an agent that offers `self` answers a query for `asked`: the same name, or one that stands under it.
    pub fn is_under(&self, asked: &Self) -> bool {
        self == asked || self.ancestors().contains(asked)
    }
}

impl fmt::Display for CapabilityName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for CapabilityName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.len() > NAME_BYTES_MAX {
            return Err(format!("a capability name has at most {NAME_BYTES_MAX} characters, this one has {}", text.len()));
        }
        let word_ok = |segment: &str| {
            let edges = [segment.chars().next(), segment.chars().next_back()];
            let inside = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_';
            segment.chars().all(inside) && edges.iter().all(|edge| edge.is_some_and(|c| c.is_ascii_alphanumeric()))
        };
        if !text.split('.').all(word_ok) {
            return Err(format!(
                "`{}` is not a capability name: lower-case letters and digits, `-` or `_` inside a word, `.` between namespaces",
                super::printable(text, NAME_BYTES_MAX)
            ));
        }
        if text.split('.').count() > SEGMENTS_MAX {
            return Err(format!("a capability name has at most {SEGMENTS_MAX} namespaces"));
        }
        Ok(Self(text.into()))
    }
}

impl Serialize for CapabilityName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for CapabilityName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// The version of a capability, `MAJOR.MINOR` or `MAJOR.MINOR.PATCH` (AMP-2, AMP-14).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct CapabilityVersion(Version);

impl CapabilityVersion {
    /// The version as numbers.
    pub fn semver(&self) -> &Version {
        &self.0
    }
}

impl fmt::Display for CapabilityVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.patch == 0 && self.0.pre.is_empty() && self.0.build.is_empty() {
            write!(f, "{}.{}", self.0.major, self.0.minor)
        } else {
            self.0.fmt(f)
        }
    }
}

impl FromStr for CapabilityVersion {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let fail = || format!("`{}` is not a version: expected MAJOR.MINOR such as 1.0", super::printable(text, 40));
        if text.len() > 32 {
            return Err(fail());
        }
        let dots = text.split(['-', '+']).next().unwrap_or(text).matches('.').count();
        let full = if dots == 1 && !text.contains(['-', '+']) { format!("{text}.0") } else { text.to_owned() };
        Version::parse(&full).map(Self).map_err(|_| fail())
    }
}

/// Which versions of a capability will do, in Cargo's notation; a bare `1.2` means `^1.2`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VersionRequirement(VersionReq);

impl VersionRequirement {
    /// Whether `version` will do.
    pub fn accepts(&self, version: &CapabilityVersion) -> bool {
        self.0.matches(&version.0)
    }
}

impl fmt::Display for VersionRequirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for VersionRequirement {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let requirement = (text.len() <= 64).then(|| VersionReq::parse(text).ok()).flatten();
        requirement.map(Self).ok_or_else(|| {
            format!("`{}` is not a version requirement: expected something like ^1.2 or >=1, <3", super::printable(text, 64))
        })
    }
}

super::text::serde_as_text!(CapabilityVersion, VersionRequirement);

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> CapabilityName {
        text.parse().expect("a valid name")
    }

    fn above(text: &str) -> Vec<String> {
        name(text).ancestors().iter().map(ToString::to_string).collect()
    }

    /// AMP-13: the taxonomy, with namespaced extensions.
    #[test]
    fn names_stand_under_prefixes_and_headings() {
        assert_eq!(above("text-analysis"), ["text-processing"]);
        assert_eq!(above("text-analysis.sentiment.de"), ["text-analysis.sentiment", "text-analysis", "text-processing"]);
        assert_eq!(above("acme.invoices.scan"), ["acme.invoices", "acme"]);
        assert_eq!(above("pdf_text_extraction"), ["custom"]);
        assert!(above("custom").is_empty());
        assert!(name("text-analysis").is_under(&name("text-processing")));
        assert!(!name("text-analysis").is_under(&name("text")));
    }

    #[test]
    fn names_with_one_root_share_a_shard() {
        assert_eq!(name("summarization").shard(), name("translation").shard());
        assert_eq!(name("acme.a").shard(), name("acme.b.c").shard());
        assert!(name("x").shard().number() < Shard::COUNT);
    }

    #[test]
    fn ill_formed_names_are_refused() {
        for text in ["", "Text", "a..b", ".a", "a.", "-a", "a-", "a b", "a/b", "ä", &"a".repeat(97), "a.b.c.d.e.f.g"] {
            assert!(text.parse::<CapabilityName>().is_err(), "{text:?}");
        }
    }

    /// AMP-14: versions are MAJOR.MINOR.
    #[test]
    fn two_part_versions_meet_requirements() {
        let version: CapabilityVersion = "1.4".parse().expect("valid");
        assert_eq!(version.to_string(), "1.4");
        assert!("1.2".parse::<VersionRequirement>().expect("valid").accepts(&version));
        assert!(!"2".parse::<VersionRequirement>().expect("valid").accepts(&version));
        assert!("1".parse::<CapabilityVersion>().is_err());
    }
}
