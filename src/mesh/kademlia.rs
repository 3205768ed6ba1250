//! Kademlia: who provides a capability, and nothing else.
//!
//! Value records are refused. Provider records are kept only within a bound per peer and in total, and only where the provider is the
//! sender, which libp2p checks. Peers enter the routing table by hand, after identify showed our protocol and an address was dialled
//! with success (threats T10, T12, T13).

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroUsize;
use std::time::Duration;

use libp2p::kad::{self, BucketInserts, Caching, StoreInserts, store::MemoryStore, store::MemoryStoreConfig};
use libp2p::{PeerId, StreamProtocol};

/// The name under which peers negotiate it.
pub(super) const PROTOCOL: StreamProtocol = StreamProtocol::new("/meshwork/kad/1");

/// How long a provider record lives without being renewed.
const PROVIDER_TTL: Duration = Duration::from_secs(30 * 60);
/// How long a value record would live if any were kept.
const VALUE_TTL: Duration = Duration::from_secs(1);
/// How often this node renews its own.
const PROVIDER_INTERVAL: Duration = Duration::from_secs(10 * 60);
/// Providers kept for one key.
const PROVIDERS_PER_KEY_MAX: usize = 256;
/// Keys one peer may provide: 64 agents with a handful of names each.
const KEYS_PER_PEER_MAX: usize = 1_024;
/// Keys kept in total.
const KEYS_MAX: usize = 65_536;

pub(super) fn behaviour(node: PeerId, client_only: bool) -> kad::Behaviour<MemoryStore> {
    let mut config = kad::Config::new(PROTOCOL);
    config
        .set_kbucket_inserts(BucketInserts::Manual)
        .set_record_filtering(StoreInserts::FilterBoth)
        .set_caching(Caching::Disabled)
        // Value records are never kept, but one that has expired on arrival is not even reported, and its sender goes unpunished.
        .set_record_ttl(Some(VALUE_TTL))
        .set_replication_interval(None)
        .set_publication_interval(None)
        .set_provider_record_ttl(Some(PROVIDER_TTL))
        .set_provider_publication_interval(Some(PROVIDER_INTERVAL))
        .set_query_timeout(Duration::from_secs(10))
        .set_substreams_timeout(Duration::from_secs(5))
        .set_parallelism(NonZeroUsize::MIN.saturating_add(3))
        .disjoint_query_paths(true)
        .set_periodic_bootstrap_interval(Some(Duration::from_secs(300)));
    let store = MemoryStoreConfig {
        max_records: 0,
        max_value_bytes: 0,
        max_providers_per_key: PROVIDERS_PER_KEY_MAX,
        // libp2p counts all keys of the store here, this node's own included; the quota below bounds each peer.
        max_provided_keys: KEYS_MAX + KEYS_PER_PEER_MAX,
    };
    let mut behaviour = kad::Behaviour::with_config(node, MemoryStore::with_config(node, store), config);
    // The default waits for a confirmed external address, which a mesh on a private network never gets.
    behaviour.set_mode(Some(if client_only { kad::Mode::Client } else { kad::Mode::Server }));
    behaviour
}

/// Counts the provider records of other peers, so that their number stays bounded.
#[derive(Debug, Default)]
pub(super) struct Quota {
    keys_by_peer: BTreeMap<PeerId, BTreeMap<Vec<u8>, Duration>>,
    peers_by_expiry: BTreeSet<(Duration, PeerId, Vec<u8>)>,
}

impl Quota {
    /// Whether a provider record of `peer` may be kept; counts it if so.
    pub(super) fn admit(&mut self, peer: PeerId, key: &[u8], now: Duration) -> bool {
        while let Some((expiry, peer, key)) = self.peers_by_expiry.first().cloned() {
            if expiry > now {
                break;
            }
            self.remove(peer, &key);
        }
        self.remove(peer, key);
        let held = self.keys_by_peer.get(&peer).map_or(0, BTreeMap::len);
        if held >= KEYS_PER_PEER_MAX || self.peers_by_expiry.len() >= KEYS_MAX {
            return false;
        }
        let expiry = now.saturating_add(PROVIDER_TTL);
        self.keys_by_peer.entry(peer).or_default().insert(key.to_vec(), expiry);
        self.peers_by_expiry.insert((expiry, peer, key.to_vec()));
        true
    }

    fn remove(&mut self, peer: PeerId, key: &[u8]) {
        let Some(keys) = self.keys_by_peer.get_mut(&peer) else { return };
        if let Some(expiry) = keys.remove(key) {
            self.peers_by_expiry.remove(&(expiry, peer, key.to_vec()));
        }
        if keys.is_empty() {
            self.keys_by_peer.remove(&peer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_keeps_within_its_quota_and_gets_it_back_with_time() {
        let (mut quota, peer) = (Quota::default(), PeerId::random());
        let key = |number: usize| number.to_be_bytes();
        for number in 0..KEYS_PER_PEER_MAX {
            assert!(quota.admit(peer, &key(number), Duration::ZERO));
        }
        assert!(!quota.admit(peer, &key(KEYS_PER_PEER_MAX), Duration::ZERO));
        assert!(quota.admit(peer, &key(0), Duration::ZERO), "renewing is always allowed");
        assert!(quota.admit(PeerId::random(), &key(0), Duration::ZERO));
        assert!(quota.admit(peer, &key(KEYS_PER_PEER_MAX), PROVIDER_TTL));
    }
}
