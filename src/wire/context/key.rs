//! The secret key of a principal: it signs what the principal says, and opens what was sealed to it.

use ed25519_dalek::{Signer as _, SigningKey, VerifyingKey};

use crate::model::Principal;
use crate::wire::{AgentKey, Error, NodeKey};

/// The ed25519 key of a node or an agent, as a reader and writer of contexts.
///
/// The same key signs and, as an X25519 key, receives what is sealed to it; that both uses of one key do each other no harm is shown in
/// <https://eprint.iacr.org/2021/509>.
#[derive(Clone)]
pub struct PrincipalKey(SigningKey);

impl PrincipalKey {
    /// The key for 32 secret bytes.
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        Self(SigningKey::from_bytes(seed))
    }

    /// Whose key it is.
    pub fn principal(&self) -> Principal {
        Principal::from_public_key(self.0.verifying_key().to_bytes())
    }

    pub(super) fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.0.sign(message).to_bytes()
    }

    /// The X25519 secret for what is sealed to this principal.
    pub(super) fn exchange_secret(&self) -> zeroize::Zeroizing<[u8; 32]> {
        zeroize::Zeroizing::new(self.0.to_scalar_bytes())
    }

    /// A secret that is this principal's alone, for one purpose.
    pub(super) fn derive(&self, purpose: &str, about: &[u8]) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new_derive_key(purpose);
        hasher.update(self.0.as_bytes()).update(about);
        hasher.finalize().into()
    }
}

/// The X25519 key under which something is sealed to `principal`.
pub(super) fn exchange_key(principal: Principal) -> Result<[u8; 32], Error> {
    let key = VerifyingKey::from_bytes(&principal.public_key()).ok().filter(|key| !key.is_weak());
    let key = key.ok_or(Error::Rule { kind: "principal", field: "key", rule: "is an ed25519 key" })?;
    Ok(key.to_montgomery().to_bytes())
}

impl From<&AgentKey> for PrincipalKey {
    fn from(key: &AgentKey) -> Self {
        Self(key.signing().clone())
    }
}

impl TryFrom<&NodeKey> for PrincipalKey {
    type Error = Error;

    fn try_from(key: &NodeKey) -> Result<Self, Error> {
        let pair = key.keypair().clone().try_into_ed25519().ok();
        let seed = pair.and_then(|pair| pair.secret().as_ref().try_into().ok());
        seed.map(|seed| Self::from_seed(&seed)).ok_or(Error::Rule { kind: "node key", field: "type", rule: "is ed25519" })
    }
}

impl std::fmt::Debug for PrincipalKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PrincipalKey({})", self.principal())
    }
}
