//! Comparing two directories without sending either: one hash per bucket of agents.
//!
//! Agents are dealt into 256 buckets by the first byte of their key. A bucket's hash is the sum of its entries' hashes, so adding and
//! removing one entry costs one hash. Two directories are equal exactly when all buckets are; where one differs, its entries are listed
//! and the newer records fetched. An empty directory differs everywhere, so a newcomer pulls everything by the same steps.

use crate::model::AgentId;
use crate::wire::directory::BUCKETS;

/// The hashes of all buckets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Digest {
    hashes: Vec<u64>,
}

impl Default for Digest {
    fn default() -> Self {
        Self { hashes: vec![0; BUCKETS] }
    }
}

/// The bucket into which an agent falls.
pub(super) fn bucket(agent: AgentId) -> usize {
    let [first, ..] = agent.public_key();
    usize::from(first)
}

fn entry_hash(agent: AgentId, sequence: u64) -> u64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&agent.public_key()).update(&sequence.to_be_bytes());
    let mut hash = [0; 8];
    hasher.finalize_xof().fill(&mut hash);
    u64::from_be_bytes(hash)
}

impl Digest {
    pub(super) fn add(&mut self, agent: AgentId, sequence: u64) {
        if let Some(hash) = self.hashes.get_mut(bucket(agent)) {
            *hash = hash.wrapping_add(entry_hash(agent, sequence));
        }
    }

    pub(super) fn remove(&mut self, agent: AgentId, sequence: u64) {
        if let Some(hash) = self.hashes.get_mut(bucket(agent)) {
            *hash = hash.wrapping_sub(entry_hash(agent, sequence));
        }
    }

    /// The hashes as they travel: eight bytes each, big end first.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.hashes.iter().flat_map(|hash| hash.to_be_bytes()).collect()
    }

    /// The digest that travelled as `bytes`; `None` if there are not exactly 256 hashes.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (hashes, rest) = bytes.as_chunks::<8>();
        let whole = rest.is_empty() && hashes.len() == BUCKETS;
        whole.then(|| Self { hashes: hashes.iter().map(|hash| u64::from_be_bytes(*hash)).collect() })
    }

    /// The numbers of the buckets in which `self` and `other` differ.
    pub fn differences<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = usize> + 'a {
        let pairs = self.hashes.iter().zip(&other.hashes).enumerate();
        pairs.filter(|(_, (mine, theirs))| mine != theirs).map(|(bucket, _)| bucket)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agent(number: u8) -> AgentId {
        AgentId::from_public_key([number; 32])
    }

    #[test]
    fn order_does_not_matter_and_removal_undoes() {
        let (mut a, mut b) = (Digest::default(), Digest::default());
        a.add(agent(1), 1);
        a.add(agent(2), 1);
        b.add(agent(2), 1);
        b.add(agent(3), 9);
        b.add(agent(1), 1);
        assert_eq!(a.differences(&b).collect::<Vec<_>>(), [3]);
        b.remove(agent(3), 9);
        assert_eq!(a, b);
        assert_eq!(Digest::from_bytes(&a.to_bytes()), Some(a));
        assert_eq!(Digest::from_bytes(&[0; 9]), None);
    }
}
