//! Who can read what: keys of contexts, sealed to readers, and operations, sealed with keys (design/contexts.md "Secrecy").
//!
//! Each key epoch of a context has a random key. It reaches a reader through HPKE (RFC 9180, X25519 with HKDF-SHA256 and
//! ChaCha20-Poly1305) in an access change; a later key also seals the one before it, so that who may read now may read from the beginning.
//! Bodies are sealed with XChaCha20-Poly1305 and bound to their header. A private memory is sealed with a key that only its agent can
//! derive.
//!
//! What this does not give: there is no forward secrecy, and who could read once keeps what it read.

use chacha20poly1305::aead::{Aead as _, KeyInit as _, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use hpke::aead::ChaCha20Poly1305;
use hpke::kdf::HkdfSha256;
use hpke::kem::X25519HkdfSha256;
use hpke::rand_core::{TryCryptoRng, TryRng};
use hpke::{Deserializable as _, Kem, OpModeR, OpModeS, Serializable as _};
use rand::CryptoRng;

use super::key::exchange_key;
use super::{Access, Body, Header, Operation, PrincipalKey};
use crate::model::{ContextId, Principal};
use crate::wire::Error;

/// A key sealed to a reader: what the reader needs to open it, the key, and what shows that nobody changed it.
pub const SEALED_KEY_BYTES: usize = 32 + 32 + 16;

/// A key sealed with the one after it.
pub const SEALED_PREVIOUS_BYTES: usize = 32 + 16;

const CHECK: &str = "meshwork 2026-11 context key check";
const PRIVATE: &str = "meshwork 2026-11 context private memory";
const READER: &[u8] = b"meshwork/context/key/1";
const PREVIOUS: &[u8] = b"meshwork/context/previous-key/1";
const BASE: &[u8] = b"meshwork/context/base/1";
const BASE_NONCE: &str = "meshwork 2026-11 context base nonce";
/// What sealing adds to a text.
pub const TAG_BYTES: u64 = 16;

/// The key of one key epoch of a context.
#[derive(Clone, PartialEq, Eq, zeroize::ZeroizeOnDrop)]
pub struct ContextKey([u8; 32]);

impl std::fmt::Debug for ContextKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ContextKey(..)")
    }
}

/// Something that was sealed does not open with this key: it is another's, or was changed.
fn shut(kind: &'static str) -> Error {
    Error::Rule { kind, field: "sealed", rule: "opens with the key that it was sealed with" }
}

impl ContextKey {
    /// A new key.
    pub fn random(rng: &mut impl CryptoRng) -> Self {
        let mut key = [0; 32];
        rng.fill_bytes(&mut key);
        Self(key)
    }

    /// What shows that two readers hold the same key, and tells nobody the key.
    pub fn check(&self) -> [u8; 32] {
        blake3::derive_key(CHECK, &self.0)
    }

    /// The key of one principal's own memory in a context.
    pub fn private(owner: &PrincipalKey, context: ContextId) -> Self {
        Self(owner.derive(PRIVATE, &context.to_bytes()))
    }

    /// This key, sealed to a reader of `context`.
    ///
    /// # Errors
    /// If the reader's key is no key.
    pub fn seal_to(&self, reader: Principal, context: ContextId, rng: &mut impl CryptoRng) -> Result<[u8; SEALED_KEY_BYTES], Error> {
        let fail = |_| Error::Rule { kind: "principal", field: "key", rule: "is an ed25519 key" };
        let recipient = <X25519HkdfSha256 as Kem>::PublicKey::from_bytes(&exchange_key(reader)?).map_err(fail)?;
        let sealed = hpke::single_shot_seal_with_rng::<ChaCha20Poly1305, HkdfSha256, X25519HkdfSha256>(
            &OpModeS::Base,
            &recipient,
            READER,
            &self.0,
            &context.to_bytes(),
            &mut Adapter(rng),
        );
        let (encapsulated, ciphertext) = sealed.map_err(fail)?;
        let bytes = [encapsulated.to_bytes().as_slice(), &ciphertext].concat();
        bytes.try_into().map_err(|_| shut("context key"))
    }

    /// The key that `access` gives to the reader with `key`.
    ///
    /// # Errors
    /// If it gives none, or another than it shows to everybody.
    pub fn of(access: &Access, key: &PrincipalKey) -> Result<Self, Error> {
        let reader = access.readers.iter().find(|reader| reader.principal == key.principal());
        let sealed = &reader.ok_or_else(|| shut("context key"))?.sealed_key;
        let (encapsulated, ciphertext) = sealed.split_at_checked(32).ok_or_else(|| shut("context key"))?;
        let fail = |_| shut("context key");
        let secret = <X25519HkdfSha256 as Kem>::PrivateKey::from_bytes(key.exchange_secret().as_slice()).map_err(fail)?;
        let encapsulated = <X25519HkdfSha256 as Kem>::EncappedKey::from_bytes(encapsulated).map_err(fail)?;
        let opened = hpke::single_shot_open::<ChaCha20Poly1305, HkdfSha256, X25519HkdfSha256>(
            &OpModeR::Base,
            &secret,
            &encapsulated,
            READER,
            ciphertext,
            &access.context.to_bytes(),
        );
        let opened = zeroize::Zeroizing::new(opened.map_err(fail)?);
        let key = Self(opened.as_slice().try_into().map_err(|_| shut("context key"))?);
        if key.check() == access.key_check { Ok(key) } else { Err(shut("context key")) }
    }

    /// The key of the epoch before, sealed with this one.
    pub fn seal_previous(&self, previous: &Self) -> [u8; SEALED_PREVIOUS_BYTES] {
        // Each key seals one other, so that one nonce serves. The length is that of a key and a tag.
        self.seal(&[0; 24], PREVIOUS, &previous.0).try_into().unwrap_or([0; SEALED_PREVIOUS_BYTES])
    }

    /// The key of the epoch before.
    ///
    /// # Errors
    /// If the owner sealed something else, or with another key.
    pub fn open_previous(&self, sealed: &[u8]) -> Result<Self, Error> {
        let opened = zeroize::Zeroizing::new(self.open(&[0; 24], PREVIOUS, sealed).ok_or_else(|| shut("previous key"))?);
        opened.as_slice().try_into().map(Self).map_err(|_| shut("previous key"))
    }

    /// The operation with this header and body.
    ///
    /// # Errors
    /// If the body breaks one of its own rules.
    pub fn seal_operation(&self, header: Header, body: &Body, rng: &mut impl CryptoRng) -> Result<Operation, Error> {
        let mut nonce = [0; 24];
        rng.fill_bytes(&mut nonce);
        let sealed = self.seal(&nonce, &header.encode(), &body.encode()?);
        Ok(Operation { header, nonce, sealed })
    }

    /// What stands in an operation.
    ///
    /// # Errors
    /// If it was not sealed with this key, or is no body.
    pub fn open_operation(&self, operation: &Operation) -> Result<Body, Error> {
        let opened = self.open(&operation.nonce, &operation.header.encode(), &operation.sealed);
        Body::decode(&opened.ok_or_else(|| shut("operation"))?)
    }

    /// What a context held at the checkpoint of that name, sealed in the one way there is: the name says what the text is, so that a nonce made
    /// of it serves for no other.
    pub fn seal_base(&self, checkpoint: &[u8; 32], text: &str) -> Vec<u8> {
        self.seal(&base_nonce(checkpoint), &[BASE, checkpoint].concat(), text.as_bytes())
    }

    /// What a context held at the checkpoint of that name. Whether it is what the checkpoint says is for the caller to see.
    ///
    /// # Errors
    /// If it was not sealed with this key for that checkpoint, or is no text.
    pub fn open_base(&self, checkpoint: &[u8; 32], sealed: &[u8]) -> Result<String, Error> {
        let opened = self.open(&base_nonce(checkpoint), &[BASE, checkpoint].concat(), sealed);
        opened.and_then(|bytes| String::from_utf8(bytes).ok()).ok_or_else(|| shut("base"))
    }

    fn seal(&self, nonce: &[u8; 24], bound_to: &[u8], text: &[u8]) -> Vec<u8> {
        let payload = Payload { msg: text, aad: bound_to };
        // It fails on texts of more than 256 GiB.
        self.cipher().encrypt(&XNonce::from(*nonce), payload).unwrap_or_default()
    }

    fn open(&self, nonce: &[u8; 24], bound_to: &[u8], sealed: &[u8]) -> Option<Vec<u8>> {
        self.cipher().decrypt(&XNonce::from(*nonce), Payload { msg: sealed, aad: bound_to }).ok()
    }

    fn cipher(&self) -> XChaCha20Poly1305 {
        XChaCha20Poly1305::new(&self.0.into())
    }
}

fn base_nonce(checkpoint: &[u8; 32]) -> [u8; 24] {
    let mut nonce = [0; 24];
    blake3::Hasher::new_derive_key(BASE_NONCE).update(checkpoint).finalize_xof().fill(&mut nonce);
    nonce
}

/// A generator of ours for a library that knows the traits of a later release.
struct Adapter<'r, R>(&'r mut R);

impl<R: CryptoRng> TryRng for Adapter<'_, R> {
    type Error = std::convert::Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Self::Error> {
        Ok(self.0.next_u32())
    }

    fn try_next_u64(&mut self) -> Result<u64, Self::Error> {
        Ok(self.0.next_u64())
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Self::Error> {
        self.0.fill_bytes(bytes);
        Ok(())
    }
}

impl<R: CryptoRng> TryCryptoRng for Adapter<'_, R> {}
