//! Names of shared contexts, of what is written to them and of who may (AMP "Context Object Structure", design/contexts.md).

use std::{fmt, str::FromStr};

use super::{AgentId, NodeId, ParseError};

/// Writes 32 bytes as 64 hexadecimal digits, and reads them back.
macro_rules! hexadecimal_id {
    ($name:ident, $error:ident) => {
        impl $name {
            /// The id that travelled or was kept as `bytes`.
            pub fn from_bytes(bytes: [u8; 32]) -> Self {
                Self(bytes)
            }

            /// The id as it is kept and travels.
            pub fn to_bytes(self) -> [u8; 32] {
                self.0
            }

            /// All ids that begin with these hexadecimal digits; `None` if none can.
            pub fn beginning(digits: &str) -> Option<std::ops::RangeInclusive<Self>> {
                let filled = |digit: &str| format!("{digits}{}", digit.repeat(64_usize.saturating_sub(digits.len()))).parse().ok();
                Some(filled("0")?..=filled("f")?)
            }

            /// Enough of the id for a person to tell two apart in a table: its first eight digits.
            pub fn short(self) -> String {
                self.to_string().chars().take(8).collect()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.short())
            }
        }

        impl FromStr for $name {
            type Err = ParseError;

            fn from_str(text: &str) -> Result<Self, ParseError> {
                let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
                let mut bytes = [0; 32];
                let pairs = text.as_bytes().chunks_exact(2);
                let read = text.len() == 64
                    && bytes.iter_mut().zip(pairs).all(|(byte, pair)| match pair {
                        [high, low] => digit(*high).zip(digit(*low)).map(|(high, low)| *byte = high << 4 | low).is_some(),
                        _ => false,
                    });
                if read { Ok(Self(bytes)) } else { Err(ParseError::$error(super::printable(text, 80))) }
            }
        }
    };
}

/// One shared context: the hash of what its owner signed to begin it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContextId([u8; 32]);

/// One change of a context: the hash of its bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OperationId([u8; 32]);

hexadecimal_id!(ContextId, ContextId);
hexadecimal_id!(OperationId, OperationId);

/// Who reads or writes a context: an ed25519 key, of a node or of an agent. Written as `did:key`; a node's peer id means its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Principal([u8; 32]);

impl Principal {
    /// The principal with that public key.
    pub fn from_public_key(key: [u8; 32]) -> Self {
        Self(key)
    }

    /// Its public key.
    pub fn public_key(&self) -> [u8; 32] {
        self.0
    }
}

impl From<AgentId> for Principal {
    fn from(agent: AgentId) -> Self {
        Self(agent.public_key())
    }
}

impl From<Principal> for AgentId {
    fn from(principal: Principal) -> Self {
        Self::from_public_key(principal.0)
    }
}

impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        AgentId::from_public_key(self.0).fmt(f)
    }
}

impl FromStr for Principal {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let node_key = || text.parse::<NodeId>().ok().and_then(|node| node.public_key());
        let key = text.parse::<AgentId>().map(|agent| agent.public_key()).ok().or_else(node_key);
        key.map(Self).ok_or_else(|| ParseError::Principal(super::printable(text, 80)))
    }
}

/// The part of a context that its readers share.
pub const SHARED_MEMORY: &str = "shared_memory";
/// The part of a context in which each agent has a memory that it alone can read.
pub const AGENT_MEMORY: &str = "agent_memory";

/// The longest path, in bytes of its text.
pub const PATH_BYTES_MAX: usize = 512;
/// How deep a path and the value at its end may nest together.
pub const CONTEXT_DEPTH_MAX: usize = 32;

/// A place in a context: a JSON Pointer (RFC 6901) into the context object, such as `/shared_memory/plan/title`.
///
/// It begins with `shared_memory`, or with `agent_memory` and the `did:key` of the agent whose memory it is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Path(Vec<String>);

impl Path {
    /// All that is shared.
    pub fn shared() -> Self {
        Self(vec![SHARED_MEMORY.to_owned()])
    }

    /// The names on the way, from the context object down; never none.
    pub fn segments(&self) -> &[String] {
        &self.0
    }

    /// The place called `name` below this one.
    ///
    /// # Errors
    /// If it lies too deep, or its text is too long.
    pub fn child(&self, name: &str) -> Result<Self, ParseError> {
        let path = Self(self.0.iter().cloned().chain([name.to_owned()]).collect());
        if path.is_well_formed() { Ok(path) } else { Err(ParseError::Path(super::printable(&path.to_string(), 80))) }
    }

    /// Whether `other` is this place or lies below it.
    pub fn covers(&self, other: &Self) -> bool {
        other.0.starts_with(&self.0)
    }

    /// Whose memory it lies in; nobody's if it is shared.
    pub fn private_to(&self) -> Option<Principal> {
        match self.0.as_slice() {
            [root, agent, ..] if root == AGENT_MEMORY => agent.parse::<AgentId>().ok().map(Principal::from),
            _ => None,
        }
    }

    fn is_well_formed(&self) -> bool {
        let root_ok = match self.0.first().map(String::as_str) {
            Some(SHARED_MEMORY) => true,
            Some(AGENT_MEMORY) => self.private_to().is_some(),
            _ => false,
        };
        root_ok && self.0.len() <= CONTEXT_DEPTH_MAX && self.to_string().len() <= PATH_BYTES_MAX
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|name| write!(f, "/{}", name.replace('~', "~0").replace('/', "~1")))
    }
}

impl FromStr for Path {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let fail = || ParseError::Path(super::printable(text, 80));
        let names = text.strip_prefix('/').filter(|_| text.len() <= PATH_BYTES_MAX).ok_or_else(fail)?;
        let path = Self(names.split('/').map(|name| name.replace("~1", "/").replace("~0", "~")).collect());
        // A `~` before anything but 0 and 1 has no meaning, and two texts would name one place.
        if path.is_well_formed() && path.to_string() == text { Ok(path) } else { Err(fail()) }
    }
}

super::text::serde_as_text!(ContextId, OperationId, Principal, Path);

#[cfg(test)]
mod tests {
    use super::*;

    const AGENT: [u8; 32] = [7; 32];

    #[test]
    fn ids_survive_writing_and_reading() {
        let id = ContextId::from_bytes(std::array::from_fn(|at| u8::try_from(at * 8).expect("below 256")));
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!(id.to_string().to_uppercase().parse(), Ok(id));
        assert_eq!(id.short(), "00081018");
        for text in ["", "00", &"g".repeat(64), &"é".repeat(32), &"0".repeat(65)] {
            assert!(text.parse::<OperationId>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_principal_is_written_as_a_key_or_as_a_node() {
        let keypair = libp2p_identity::Keypair::generate_ed25519();
        let node = NodeId::from(keypair.public().to_peer_id());
        let principal: Principal = node.to_string().parse().expect("a node");
        assert_eq!(Some(principal.public_key()), node.public_key());
        assert_eq!(principal.to_string().parse(), Ok(principal));
        assert!("extractor".parse::<Principal>().is_err());
    }

    #[test]
    fn a_path_is_a_pointer_into_the_context_object() {
        let path: Path = "/shared_memory/a~1b/c~0d/".parse().expect("a path");
        assert_eq!(path.segments(), ["shared_memory", "a/b", "c~d", ""]);
        assert_eq!(path.to_string(), "/shared_memory/a~1b/c~0d/");
        assert!(Path::shared().covers(&path) && !path.covers(&Path::shared()) && path.covers(&path));
        let sibling: Path = "/shared_memory/a~1bc".parse().expect("a path");
        assert!(!sibling.covers(&path), "a name is covered as a whole");
        let agent = AgentId::from_public_key(AGENT);
        let private: Path = format!("/agent_memory/{agent}/notes").parse().expect("a path");
        assert_eq!(private.private_to(), Some(agent.into()));
        assert_eq!(path.private_to(), None);
    }

    #[test]
    fn what_is_no_path_is_refused() {
        let deep = format!("/shared_memory{}", "/a".repeat(CONTEXT_DEPTH_MAX));
        let long = format!("/shared_memory/{}", "a".repeat(PATH_BYTES_MAX));
        for text in ["", "/", "shared_memory/a", "/lineage", "/agent_memory", "/agent_memory/extractor", "/shared_memory/~2", &deep, &long]
        {
            assert!(text.parse::<Path>().is_err(), "{text}");
        }
        let deepest = format!("/shared_memory{}", "/a".repeat(CONTEXT_DEPTH_MAX - 1)).parse::<Path>().expect("at the limit");
        assert!(deepest.child("b").is_err());
        let longest = format!("/shared_memory/{}", "a".repeat(PATH_BYTES_MAX - 15));
        assert!(longest.parse::<Path>().is_ok());
    }
}
