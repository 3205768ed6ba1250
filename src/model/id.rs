//! Identities: a node is its libp2p key, an agent is an ed25519 key written as `did:key`, an invocation is a random number.

use std::{fmt, str::FromStr};

use libp2p_identity::PeerId;
/// An identifier could not be read.
///
/// Happens whenever a person or a peer writes one wrongly; nothing was changed, and trying the same text again fails again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ParseError {
    /// The text is not a libp2p peer id.
    #[error("`{0}` is not a node id: expected a libp2p peer id such as 12D3KooW...")]
    NodeId(String),
    /// The text is not an ed25519 `did:key`.
    #[error("`{0}` is not an agent id: expected did:key:z6Mk...")]
    AgentId(String),
    /// The text is not an invocation id.
    #[error("`{0}` is not an invocation id: expected 32 hexadecimal digits")]
    InvocationId(String),
    /// The text is not a task id.
    #[error("`{0}` is not a task id: expected a UUID")]
    TaskId(String),
    /// The text is not a subtask's name.
    #[error("`{0}` is not a name of a subtask: expected 1 to 64 letters, digits, `_` and `-`, and not `parent`")]
    SubtaskId(String),
    /// The text is not a moment since 1970.
    #[error("`{0}` is not a time: expected one such as 2026-12-24T18:00:00Z")]
    Timestamp(String),
    /// The text is not a context id.
    #[error("`{0}` is not a context id: expected 64 hexadecimal digits")]
    ContextId(String),
    /// The text is not an operation id.
    #[error("`{0}` is not an operation id: expected 64 hexadecimal digits")]
    OperationId(String),
    /// The text names neither an agent's key nor a node.
    #[error("`{0}` is not a principal: expected did:key:z6Mk... or a libp2p peer id such as 12D3KooW...")]
    Principal(String),
    /// The text is not a place in a context.
    #[error(
        "`{0}` is not a path in a context: expected a JSON Pointer that begins with /shared_memory or /agent_memory/did:key:..., at most 32 names and 512 bytes"
    )]
    Path(String),
}

/// The fewest characters that stand for a node: among thousands of nodes they rarely mean two.
const END_CHARS_MIN: usize = 6;

fn clip(text: &str) -> String {
    super::printable(text, 80)
}

/// One running `meshwork`, named by the key it proves on every connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(PeerId);

impl NodeId {
    /// The libp2p name of the same key.
    pub fn peer_id(&self) -> PeerId {
        self.0
    }

    /// The id that embeds an ed25519 public key, if it is one.
    pub fn from_public_key(key: [u8; 32]) -> Option<Self> {
        let key = libp2p_identity::ed25519::PublicKey::try_from_bytes(&key).ok()?;
        Some(Self(libp2p_identity::PublicKey::from(key).to_peer_id()))
    }

    /// The ed25519 public key inside the id, if the id embeds one (every id that Meshwork makes does).
    pub fn public_key(&self) -> Option<[u8; 32]> {
        let multihash = self.0.to_bytes();
        // An identity multihash (0x00, length) around a protobuf public key of type ed25519 (08 01 12 20).
        let rest = multihash.strip_prefix(&[0x00, 0x24, 0x08, 0x01, 0x12, 0x20])?;
        rest.try_into().ok()
    }

    /// Whether `text` is the end of the id, long enough to mean this node: what [`NodeId::short`] gives, or from six characters on. Tables
    /// write an ellipsis before it.
    pub fn ends_with(&self, text: &str) -> bool {
        let end = text.trim_start_matches(['…', '.']);
        end.len() >= END_CHARS_MIN && self.0.to_base58().ends_with(end)
    }

    /// Enough of the id for a person to tell nodes apart in a table: its last eight characters.
    pub fn short(&self) -> String {
        let text = self.0.to_base58();
        let start = text.len().saturating_sub(8);
        text.get(start..).unwrap_or(&text).to_owned()
    }
}

impl From<PeerId> for NodeId {
    fn from(peer: PeerId) -> Self {
        Self(peer)
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for NodeId {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        text.parse().map(Self).map_err(|_| ParseError::NodeId(clip(text)))
    }
}

/// One agent: the ed25519 public key that signs its record. Written `did:key:z6Mk...`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AgentId([u8; 32]);

/// Multicodec prefix of an ed25519 public key, as the did:key method writes it.
const ED25519_MULTICODEC: [u8; 2] = [0xed, 0x01];

impl AgentId {
    /// The id that belongs to a public key.
    pub fn from_public_key(key: [u8; 32]) -> Self {
        Self(key)
    }

    /// The public key that the id stands for.
    pub fn public_key(&self) -> [u8; 32] {
        self.0
    }

    /// The eight characters after `z6Mk`, which people see behind a name: `extractor@pQrStUvW`.
    pub fn prefix(&self) -> String {
        self.to_string().chars().skip("did:key:z6Mk".len()).take(8).collect()
    }
}

impl fmt::Display for AgentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = ED25519_MULTICODEC.to_vec();
        bytes.extend_from_slice(&self.0);
        write!(f, "did:key:z{}", bs58::encode(bytes).into_string())
    }
}

impl FromStr for AgentId {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let fail = || ParseError::AgentId(clip(text));
        let encoded = text.strip_prefix("did:key:z").filter(|encoded| encoded.len() <= 64).ok_or_else(fail)?;
        let bytes = bs58::decode(encoded).into_vec().map_err(|_| fail())?;
        let key = bytes.strip_prefix(&ED25519_MULTICODEC).ok_or_else(fail)?;
        key.try_into().map(Self).map_err(|_| fail())
    }
}

/// One call of one capability, the same on every node that it passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InvocationId(u128);

impl InvocationId {
    /// The id for a number that the caller drew at random.
    pub fn from_random(number: u128) -> Self {
        Self(number)
    }

    /// The id as it travels.
    pub fn to_bytes(self) -> [u8; 16] {
        self.0.to_be_bytes()
    }

    /// The id that travelled as `bytes`.
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(u128::from_be_bytes(bytes))
    }
}

impl fmt::Display for InvocationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl FromStr for InvocationId {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let well_formed = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let number = well_formed.then(|| u128::from_str_radix(text, 16).ok()).flatten();
        number.map(Self).ok_or_else(|| ParseError::InvocationId(clip(text)))
    }
}

super::text::serde_as_text!(NodeId, AgentId, InvocationId);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_id_survives_writing_and_reading() {
        let id = AgentId::from_public_key([7; 32]);
        assert!(id.to_string().starts_with("did:key:z6Mk"));
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!(id.prefix().len(), 8);
    }

    #[test]
    fn a_node_id_shows_its_key() {
        let keypair = libp2p_identity::Keypair::generate_ed25519();
        let node = NodeId::from(keypair.public().to_peer_id());
        let key = keypair.public().try_into_ed25519().expect("made as ed25519").to_bytes();
        assert_eq!(node.public_key(), Some(key));
        assert_eq!(NodeId::from_public_key(key), Some(node));
        assert_eq!(node.to_string().parse(), Ok(node));
    }

    #[test]
    fn a_node_is_meant_by_the_end_of_its_id() {
        let node: NodeId = "12D3KooWEyoppNCUx8Yx66oV9fJnriXwCcXwDDUA2kj6vnc6iDEp".parse().expect("valid");
        for text in [&node.short(), "…vnc6iDEp", "...vnc6iDEp", "c6iDEp", &node.to_string()] {
            assert!(node.ends_with(text), "{text}");
        }
        for text in ["6iDEp", "…6iDEp", "C6IDEP", "12D3KooWEyopp", ""] {
            assert!(!node.ends_with(text), "{text}");
        }
    }

    #[test]
    fn foreign_texts_are_refused_with_their_beginning() {
        assert!("did:web:example.org".parse::<AgentId>().is_err());
        assert!("did:key:z6Mk".parse::<AgentId>().is_err());
        assert!("+123456789012345678901234567890ab".parse::<InvocationId>().is_err());
        let error = format!("{}\u{1b}[31m", "x".repeat(500)).parse::<NodeId>().expect_err("not base58");
        assert!(error.to_string().len() < 200);
    }
}
