//! The one place where documents are signed and signatures are checked (design.md section 3, threat T15).
//!
//! A signature covers a domain tag, which names the type, and the exact bytes of the body; a body is verified as it was received and
//! relayed as it was received. A record carries two signatures, its agent's and its node's; a pulse only its node's.

use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use libp2p_identity::Keypair;
use serde::{Deserialize, Serialize};

use super::{Document, Error, malformed};
use crate::model::{AgentId, NodeId};

/// The key of an agent, held by its node.
pub struct AgentKey(SigningKey);

impl AgentKey {
    /// The key for 32 secret bytes.
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        Self(SigningKey::from_bytes(seed))
    }

    /// The id that others know it by.
    pub fn id(&self) -> AgentId {
        AgentId::from_public_key(self.0.verifying_key().to_bytes())
    }

    pub(super) fn signing(&self) -> &SigningKey {
        &self.0
    }
}

impl std::fmt::Debug for AgentKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "AgentKey({})", self.id())
    }
}

/// The key of this node.
#[derive(Clone)]
pub struct NodeKey {
    keypair: Keypair,
    id: NodeId,
}

impl NodeKey {
    /// The same key as libp2p uses to prove who it is.
    pub fn new(keypair: Keypair) -> Self {
        // Every call asks for the id, which takes a while to work out.
        let id = keypair.public().to_peer_id().into();
        Self { keypair, id }
    }

    /// The id that others know it by.
    pub fn id(&self) -> NodeId {
        self.id
    }

    /// The key as libp2p wants it.
    pub fn keypair(&self) -> &Keypair {
        &self.keypair
    }
}

impl std::fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "NodeKey({})", self.id())
    }
}

/// A document that carries signatures.
pub trait Signable: Document {
    /// The domain tag of its signatures; no two types share one.
    const DOMAIN: &'static str;

    /// The node that must have signed it.
    fn node(&self) -> NodeId;

    /// The agent that must have signed it too, if it is an agent's.
    fn agent(&self) -> Option<AgentId>;
}

/// A document as it travels: the body's bytes and who signed them. Nothing in it is to be believed yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signed<T> {
    body: T,
    bytes: Vec<u8>,
}

#[derive(Serialize, Deserialize)]
struct Envelope {
    #[serde(with = "serde_bytes")]
    body: Vec<u8>,
    #[serde(with = "serde_bytes")]
    node_signature: Vec<u8>,
    #[serde(default, with = "serde_bytes", skip_serializing_if = "Vec::is_empty")]
    agent_signature: Vec<u8>,
}

/// What the two signatures and the map around them add to a body.
const ENVELOPE_BYTES_MAX: usize = 256;

impl Document for Envelope {
    const KIND: &'static str = "signed document";
    const BYTES_MAX: usize = 64 * 1024;

    fn check(&self) -> Result<(), Error> {
        super::rule(matches!(self.agent_signature.len(), 0 | 64), Self::KIND, "agent_signature", "has 64 bytes")?;
        super::rule(self.node_signature.len() == 64, Self::KIND, "node_signature", "has 64 bytes")
    }
}

fn message(domain: &str, body: &[u8]) -> Vec<u8> {
    [domain.as_bytes(), &[0], body].concat()
}

impl<T: Signable> Signed<T> {
    /// Signs `body` with the node's key, and with the agent's if it is an agent's document.
    ///
    /// # Errors
    /// If the body breaks one of its own rules, or the keys are not those that it names.
    pub fn sign(body: T, node: &NodeKey, agent: Option<&AgentKey>) -> Result<Verified<T>, Error> {
        if body.node() != node.id() {
            return Err(Error::Signature { kind: T::KIND, signer: "its node" });
        }
        if body.agent() != agent.map(AgentKey::id) {
            return Err(Error::Signature { kind: T::KIND, signer: "its agent" });
        }
        let encoded = super::encode(&body)?;
        let message = message(T::DOMAIN, &encoded);
        let envelope = Envelope {
            node_signature: node.keypair.sign(&message).map_err(|error| malformed(T::KIND, &error))?,
            agent_signature: agent.map(|key| key.0.sign(&message).to_bytes().to_vec()).unwrap_or_default(),
            body: encoded,
        };
        let bytes = super::encode(&envelope)?;
        Ok(Verified(Self { body, bytes }))
    }

    /// Reads a signed document without believing it: well-formed, bounded, by its own rules, signatures not yet checked.
    ///
    /// # Errors
    /// Any variant of [`Error`] but [`Error::Signature`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Error> {
        let bytes_max = T::BYTES_MAX.saturating_add(ENVELOPE_BYTES_MAX);
        if bytes.len() > bytes_max {
            return Err(Error::Oversize { kind: T::KIND, bytes: bytes.len(), bytes_max });
        }
        let envelope: Envelope = super::decode(bytes)?;
        let body: T = super::decode(&envelope.body)?;
        Ok(Self { body, bytes: bytes.to_vec() })
    }

    /// What it says, for checks that are cheaper than a signature.
    pub fn unverified(&self) -> &T {
        &self.body
    }

    /// Checks the signatures. This costs tens of microseconds and belongs on a worker.
    ///
    /// # Errors
    /// [`Error::Signature`] if one is missing, wrong or made with a weak key.
    pub fn verify(self) -> Result<Verified<T>, Error> {
        let envelope: Envelope = super::decode(&self.bytes)?;
        let message = message(T::DOMAIN, &envelope.body);
        let node_key = self.body.node().public_key();
        if !node_key.is_some_and(|key| is_signed(&key, &message, &envelope.node_signature)) {
            return Err(Error::Signature { kind: T::KIND, signer: "its node" });
        }
        let agent_holds = match self.body.agent() {
            Some(agent) => is_signed(&agent.public_key(), &message, &envelope.agent_signature),
            None => envelope.agent_signature.is_empty(),
        };
        if !agent_holds {
            return Err(Error::Signature { kind: T::KIND, signer: "its agent" });
        }
        Ok(Verified(self))
    }
}

/// Whether `signature` is that of `key` under `message`; a weak key has none.
pub(super) fn is_signed(key: &[u8; 32], message: &[u8], signature: &[u8]) -> bool {
    let key = VerifyingKey::from_bytes(key);
    let signature = Signature::from_slice(signature);
    key.is_ok_and(|key| signature.is_ok_and(|signature| key.verify_strict(message, &signature).is_ok()))
}

/// A document whose signatures hold. What it says is still only its author's word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified<T>(Signed<T>);

impl<T> Verified<T> {
    /// The exact bytes, to relay and to keep.
    pub fn bytes(&self) -> &[u8] {
        &self.0.bytes
    }
}

impl<T> std::ops::Deref for Verified<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0.body
    }
}
