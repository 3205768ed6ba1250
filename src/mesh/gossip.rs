//! How gossip is set up: topics, identities of messages, bounds, and the score that peers get.
//!
//! Gossip carries *hints*: fresh records and pulses on 64 fixed shard topics. It may lose messages under load by
//! design, and anti-entropy repairs what it lost; so every setting here prefers bounded work over delivery.
//!
//! Invariants:
//! - Topics are exactly `meshwork/1/shard/00` to `3f`. A peer can subscribe to nothing else (threat T2), and every
//!   one of them has score parameters, because the library scores no fault on a topic that has none.
//! - A message is forwarded only after this node has said so: signatures are strict and validation is manual.
//! - A message id is the hash of the topic and of the bytes, and of nothing that a forwarder chooses. The bytes are a
//!   signed envelope, so a new gossip sequence number around an old envelope is a duplicate (threat T7). The topic
//!   belongs to the id because the library remembers ids even of topics that this node is not subscribed to: with
//!   the bytes alone, whoever first sends an envelope on a topic of its own invention would have the real one
//!   dropped for two minutes, and a record could not be published on two shards.
//! - No sum of good deliveries outweighs one invalid message (threat T8).
//!
//! The score is shaped like Lotus's, the anchor with quiet topics: colocation, invalid messages and protocol
//! misbehaviour cost; too few deliveries do not, because a healthy shard may be silent for minutes. Every number
//! stands with its reason where it is set, as the settings table of the security plan asks.
//!
//! Left to others: validating envelopes and reporting the verdict, also on *our own* messages, which a restarted node
//! hears from its neighbours; turning rejects and `SlowPeer` into penalties and metrics; bounding our own publishing.
//! A reject costs its sender something here only on one of our topics, so `mesh::inbound` must penalise the rest.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use libp2p::gossipsub::{
    self, ConfigBuilder, ConfigBuilderError, IdentTopic, IdentityTransform, MaxCountSubscriptionFilter, MessageAuthenticity, MessageId,
    PeerScoreParams, PeerScoreThresholds, TopicHash, TopicScoreParams, ValidationMode, WhitelistSubscriptionFilter,
};
use libp2p::{Multiaddr, identity};

use crate::mesh::address::{AddressClass, Network, ip_of};

/// The number of shards, and so of topics. Fixed by the protocol: the first byte of a hash modulo 64 selects one.
pub const SHARDS: u8 = 64;

/// The longest message that is sent or read. Adverts are at most 16 KiB; the rest is room for pulses of large nodes.
pub const MESSAGE_BYTES_MAX: usize = 64 * 1024;

/// The most single addresses that can be exempt from the colocation penalty, because the library keeps each of them.
pub const EXEMPT_ADDRESSES_MAX: u64 = 4_096;

const TOPIC_PREFIX: &str = "meshwork/1/shard/";

/// Accepts subscriptions to the shard topics only, and few of them at once.
pub type Filter = MaxCountSubscriptionFilter<WhitelistSubscriptionFilter>;

/// The gossip behaviour as this node runs it.
pub type Behaviour = gossipsub::Behaviour<IdentityTransform, Filter>;

/// Why gossip could not be set up. None of these happens in normal life and none can be retried: all are settings.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The library refused the configuration.
    #[error("gossip configuration refused")]
    Config(#[from] ConfigBuilderError),
    /// The library refused the combination of signing and validation.
    #[error("gossip behaviour refused: {0}")]
    Behaviour(&'static str),
    /// The library refused the score parameters.
    #[error("gossip score parameters refused: {0}")]
    Score(String),
    /// The exempt networks hold more addresses than can be listed one by one.
    #[error("{addresses} addresses exempt from the colocation penalty, more than {EXEMPT_ADDRESSES_MAX}")]
    TooManyExempt {
        /// How many addresses the networks hold together.
        addresses: u64,
    },
}

/// The topic of a shard. Shard numbers wrap at [`SHARDS`], as the hash that selects them does.
#[must_use]
pub fn topic(shard: u8) -> IdentTopic {
    IdentTopic::new(format!("{TOPIC_PREFIX}{:02x}", shard % SHARDS))
}

/// All topics, in order of their shards.
pub fn topics() -> impl Iterator<Item = IdentTopic> {
    (0..SHARDS).map(topic)
}

/// The shard of a topic, or nothing if the topic is not one of ours in exactly our spelling.
#[must_use]
pub fn shard_of(hash: &TopicHash) -> Option<u8> {
    let digits = hash.as_str().strip_prefix(TOPIC_PREFIX)?;
    let shard = u8::from_str_radix(digits, 16).ok().filter(|shard| *shard < SHARDS)?;
    (topic(shard).hash() == *hash).then_some(shard)
}

/// The identity of a message: BLAKE3 of the length of its topic, the topic and the signed envelope.
#[must_use]
pub fn message_id(message: &gossipsub::Message) -> MessageId {
    let topic = message.topic.as_str().as_bytes();
    let mut hasher = blake3::Hasher::new();
    // Without the length, a longer invented topic with a shorter message could have the id of an honest one.
    hasher.update(&u64::try_from(topic.len()).unwrap_or(u64::MAX).to_le_bytes());
    hasher.update(topic);
    hasher.update(&message.data);
    MessageId::from(hasher.finalize().as_bytes().to_vec())
}

/// The networks to exempt from the colocation penalty, given the addresses that this node listens on and joins
/// through: loopback, and the neighbourhood of each local address. Other addresses, wildcards and names give none.
#[must_use]
pub fn exempt_networks(own: &[Multiaddr]) -> Vec<Network> {
    let mut networks = Vec::new();
    for ip in own.iter().filter_map(ip_of) {
        match AddressClass::of_ip(ip) {
            // Tests and local meshes spread over 127.0.0.x; both families, since either can be used to reach us.
            AddressClass::Loopback => {
                networks.extend([Network::new(IpAddr::from([127, 0, 0, 1]), 24), Network::new(IpAddr::V6(Ipv6Addr::LOCALHOST), 128)])
            }
            // A /64 cannot be listed, but colocation counts single addresses, and several nodes behind one local
            // IPv6 address are most likely behind our own.
            AddressClass::Private | AddressClass::LinkLocal => networks.push(Network::new(ip, if ip.is_ipv4() { 24 } else { 128 })),
            AddressClass::Global | AddressClass::Dns | AddressClass::Other => {}
        }
    }
    networks.sort_unstable();
    networks.dedup();
    networks
}

/// Builds the gossip behaviour of a node.
///
/// `exempt` are the networks whose nodes may share an address without being taken for one attacker; see
/// [`exempt_networks`].
///
/// # Errors
/// Fails if the exempt networks are too large to be listed, or if the library refuses a setting.
pub fn behaviour(keypair: &identity::Keypair, exempt: &[Network]) -> Result<Behaviour, Error> {
    let signed = MessageAuthenticity::Signed(keypair.clone());
    let mut behaviour = Behaviour::new_with_subscription_filter(signed, config()?, filter()).map_err(Error::Behaviour)?;
    behaviour.with_peer_score(score_params(exempt)?, score_thresholds()).map_err(Error::Score)?;
    Ok(behaviour)
}

/// The settings of the protocol, without the score.
///
/// # Errors
/// Fails if the library finds the settings inconsistent.
pub fn config() -> Result<gossipsub::Config, Error> {
    let config = ConfigBuilder::default()
        // Every message names its author and is signed: envelopes are, and a forwarder must be accountable too.
        .validation_mode(ValidationMode::Strict)
        // Forward only what our own checks accepted; the default forwards everything that is signed by anybody.
        .validate_messages()
        .message_id_fn(message_id)
        // A restarted node hears its own last messages from its neighbours. The default takes each for a forgery and
        // charges it to the honest neighbour like an invalid message.
        .allow_self_origin(true)
        .max_transmit_size(MESSAGE_BYTES_MAX)
        // Flooding every peer with our own messages is global, not per topic, and costs us every connection.
        .flood_publish(false)
        // The mesh per topic, over all topics in common: 6 neighbours wanted, repaired below 4, pruned above 12.
        .mesh_n(MESH_WANTED)
        .mesh_n_low(MESH_LOW)
        .mesh_n_high(MESH_HIGH)
        // At least 2 of them dialled by us, so that incoming Sybils alone cannot fill a mesh (threat T10).
        .mesh_outbound_min(MESH_OUTBOUND_MIN)
        // One second is the protocol's usual heartbeat and bounds how long a broken mesh stays broken.
        .heartbeat_interval(Duration::from_secs(1))
        // The default of five seconds would be most of a late joiner's patience.
        .heartbeat_initial_delay(Duration::from_millis(100))
        // Messages stay available for 5 heartbeats and are offered during 3: long enough to pass over a lossy hop;
        // what is older comes by anti-entropy.
        .history_length(5)
        .history_gossip(3)
        // Twice the default. An envelope may live for 5 minutes, and its own replay window takes over after this.
        .duplicate_cache_time(Duration::from_secs(120))
        // At most 256 messages wait for a slow peer, 16 MiB at the worst; the default of 5,000 would be 320 MiB each.
        .connection_handler_queue_len(256)
        // A hint that waited longer than this is stale, and pulses replace each other every 5 seconds anyway.
        .publish_queue_duration(Duration::from_secs(5))
        .forward_queue_duration(Duration::from_secs(1))
        // We send one message per frame; this bounds the work that one frame of somebody else can cause.
        .max_publish_messages(128)
        // One frame of control data. An id takes 34 bytes, so the 256 ids below need 9 KiB; the default of 5,000 ids
        // would make a busy node send frames that its peers refuse.
        .max_control_message_size(16 * 1024)
        .max_control_messages_sent(256)
        // Offers come one topic at a time, and an honest peer may have all topics; the default of 10 would ignore most.
        .max_ihave_messages_heartbeat(usize::from(SHARDS))
        .build()?;
    Ok(config)
}

const MESH_WANTED: usize = 6;
const MESH_LOW: usize = 4;
const MESH_HIGH: usize = 12;
const MESH_OUTBOUND_MIN: usize = 2;

// The library checks these relations only for topics that are configured one by one.
const _: () = assert!(MESH_OUTBOUND_MIN <= MESH_LOW && MESH_LOW <= MESH_WANTED && MESH_WANTED <= MESH_HIGH);
const _: () = assert!(MESH_OUTBOUND_MIN * 2 <= MESH_WANTED);

fn filter() -> Filter {
    MaxCountSubscriptionFilter {
        filter: WhitelistSubscriptionFilter(topics().map(|topic| topic.hash()).collect()),
        max_subscribed_topics: usize::from(SHARDS),
        // Leaving and entering every topic in one frame is the most that makes sense.
        max_subscriptions_per_request: 2 * usize::from(SHARDS),
    }
}

/// The score that every peer gets.
///
/// # Errors
/// Fails if the exempt networks are too large to be listed.
pub fn score_params(exempt: &[Network]) -> Result<PeerScoreParams, Error> {
    Ok(PeerScoreParams {
        topics: topics().map(|topic| (topic.hash(), topic_score_params())).collect(),
        // Half of what one invalid message costs. Good deliveries order peers; they do not buy licence.
        topic_score_cap: 50.0,
        // What the application says counts as it is.
        app_specific_weight: 1.0,
        // Up to 5 peers behind one address are a household or an office. Each further one costs all of them, by the
        // square: 8 reach -900 and get no gossip, 11 reach -3,600 and are not heard.
        ip_colocation_factor_weight: -100.0,
        ip_colocation_factor_threshold: 5.0,
        ip_colocation_factor_whitelist: listed(exempt)?,
        // Grafting too early or not delivering what was offered: 6 times an hour is bad luck, by the square beyond.
        behaviour_penalty_weight: -10.0,
        behaviour_penalty_threshold: 6.0,
        behaviour_penalty_decay: decay_over(HOUR),
        // Dropped messages to a slow peer: a quarter of its queue is a hiccup; a whole queue lost in a burst costs
        // about as much as one invalid message, which moves the peer out of the mesh until it has caught up, but a
        // peer that loses 33 a second for ever still gets gossip. Forgotten within a minute of keeping up (threat T9).
        slow_peer_weight: -0.5,
        slow_peer_threshold: 64.0,
        slow_peer_decay: decay_over(Duration::from_secs(60)),
        // Every counter fades once a second and is zero below a hundredth.
        decay_interval: DECAY_INTERVAL,
        decay_to_zero: DECAY_TO_ZERO,
        // A bad score is kept for 6 hours after the peer left, so that reconnecting does not wash it.
        retain_score: 6 * HOUR,
    })
}

/// The part of the score that each topic contributes.
fn topic_score_params() -> TopicScoreParams {
    TopicScoreParams {
        // Scales everything below. At its best a topic gives 1.1; all 64 give 70, less than one invalid message takes.
        topic_weight: 0.1,
        // Staying in the mesh: one point after an hour and no more, so that old neighbours win ties.
        time_in_mesh_weight: 1.0 / 3_600.0,
        time_in_mesh_quantum: Duration::from_secs(1),
        time_in_mesh_cap: 3_600.0,
        // Being first with a message: a point each, fading over ten minutes, at most ten.
        first_message_deliveries_weight: 1.0,
        first_message_deliveries_decay: decay_over(Duration::from_secs(600)),
        first_message_deliveries_cap: 10.0,
        // Delivering too little (P3, and P3b on being pruned for it) is not punished: on a quiet shard an honest
        // peer has nothing to deliver. The remaining numbers only have to be valid.
        mesh_message_deliveries_weight: 0.0,
        mesh_message_deliveries_decay: decay_over(HOUR),
        mesh_message_deliveries_cap: 1.0,
        mesh_message_deliveries_threshold: 1.0,
        mesh_message_deliveries_window: Duration::from_millis(10),
        mesh_message_deliveries_activation: Duration::from_secs(60),
        mesh_failure_penalty_weight: 0.0,
        mesh_failure_penalty_decay: decay_over(HOUR),
        // Invalid messages, by the square and for an hour: one costs 100, three 900, six 3,600, and that is the end.
        invalid_message_deliveries_weight: -1_000.0,
        invalid_message_deliveries_decay: decay_over(HOUR),
    }
}

/// The scores at which a peer loses something.
#[must_use]
pub fn score_thresholds() -> PeerScoreThresholds {
    PeerScoreThresholds {
        // Below: no offers to it or from it. Three invalid messages, or a crowd of eight behind one address.
        gossip_threshold: -500.0,
        // Below: our own messages are not sent to it. Four invalid messages.
        publish_threshold: -1_000.0,
        // Below: it is not heard at all. Six invalid messages.
        graylist_threshold: -2_500.0,
        // Peer exchange is off; nobody reaches this.
        accept_px_threshold: 1_000.0,
        // A mesh whose median peer is below this takes up to two better ones each minute. A neighbour in all topics
        // gets there by 25 minutes of staying, or at once by being first with 25 messages.
        opportunistic_graft_threshold: 2.5,
    }
}

const HOUR: Duration = Duration::from_secs(3_600);
const DECAY_INTERVAL: Duration = Duration::from_secs(1);
const DECAY_TO_ZERO: f64 = 0.01;

/// The factor that takes a counter of one to nothing over the given time.
fn decay_over(time: Duration) -> f64 {
    gossipsub::score_parameter_decay_with_base(time, DECAY_INTERVAL, DECAY_TO_ZERO)
}

/// The addresses of the networks one by one, since the library knows no ranges.
fn listed(networks: &[Network]) -> Result<HashSet<IpAddr>, Error> {
    let addresses = networks.iter().fold(0_u64, |sum, network| sum.saturating_add(network.len()));
    if addresses > EXEMPT_ADDRESSES_MAX {
        return Err(Error::TooManyExempt { addresses });
    }
    Ok(networks.iter().flat_map(|network| network.addresses()).collect())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use futures::StreamExt;
    use libp2p::gossipsub::{Event, Message, PublishError, TopicSubscriptionFilter};
    use libp2p::swarm::SwarmEvent;
    use libp2p::{PeerId, Swarm, SwarmBuilder, noise, tcp, yamux};
    use tokio::time::timeout;

    use super::*;

    #[test]
    fn the_behaviour_builds_with_and_without_exemptions() {
        let keypair = identity::Keypair::generate_ed25519();
        assert!(behaviour(&keypair, &[]).is_ok());
        assert!(behaviour(&keypair, &exempt_networks(&[parse("/ip4/127.0.0.1/tcp/1"), parse("/ip4/10.0.0.7/tcp/1")])).is_ok());
    }

    #[test]
    fn every_topic_has_parameters_and_round_trips_through_its_shard() {
        let behaviour = behaviour(&identity::Keypair::generate_ed25519(), &[]).unwrap();
        for shard in 0..SHARDS {
            assert_eq!(shard_of(&topic(shard).hash()), Some(shard));
            let params = behaviour.get_topic_params(&topic(shard)).expect("a topic without parameters");
            assert_eq!(params.invalid_message_deliveries_weight, -1_000.0);
        }
        assert_eq!(topics().map(|topic| topic.hash()).collect::<BTreeSet<_>>().len(), 64);
        assert_eq!(topic(0x3f).hash().as_str(), "meshwork/1/shard/3f");
        assert_eq!(topic(64).hash(), topic(0).hash());
    }

    #[test]
    fn foreign_topics_have_no_shard() {
        for foreign in [
            "meshwork/1/shard/40",
            "meshwork/1/shard/0",
            "meshwork/1/shard/000",
            "meshwork/1/shard/3F",
            "meshwork/1/shard/+1",
            "meshwork/2/shard/00",
            "",
        ] {
            assert_eq!(shard_of(&TopicHash::from_raw(foreign)), None, "{foreign}");
        }
    }

    #[test]
    fn every_shard_can_be_subscribed_to_and_nothing_else() {
        let mut behaviour = behaviour(&identity::Keypair::generate_ed25519(), &[]).unwrap();
        for topic in topics() {
            assert!(behaviour.subscribe(&topic).unwrap());
        }
        assert!(behaviour.subscribe(&IdentTopic::new("meshwork/1/shard/40")).is_err());
        let mut filter = filter();
        assert!(filter.can_subscribe(&topic(7).hash()));
        assert!(!filter.can_subscribe(&TopicHash::from_raw("named by a peer")));
    }

    #[test]
    fn the_settings_are_those_of_the_security_table() {
        let config = config().unwrap();
        assert!(matches!(config.validation_mode(), ValidationMode::Strict));
        assert!(config.validate_messages() && !config.flood_publish() && !config.do_px());
        assert_eq!(config.max_transmit_size(), 64 * 1024);
        assert_eq!(config.duplicate_cache_time(), Duration::from_secs(120));
        assert_eq!(config.heartbeat_interval(), Duration::from_secs(1));
        assert_eq!((config.mesh_n(), config.mesh_n_low(), config.mesh_n_high(), config.mesh_outbound_min()), (6, 4, 12, 2));
        assert_eq!(config.connection_handler_queue_len(), 256);
    }

    #[test]
    fn a_full_offer_fits_into_one_frame_of_control_data() {
        let config = config().unwrap();
        let id_bytes = message_id(&message("x", b"")).0.len() + 2;
        let offer_bytes = config.max_control_messages_sent() * id_bytes + topic(0).hash().as_str().len() + 32;
        assert!(offer_bytes <= config.max_control_message_size());
    }

    #[test]
    fn a_message_id_depends_on_topic_and_bytes_alone() {
        let shard = topic(0).hash().into_string();
        let mut replayed = message(&shard, b"envelope");
        replayed.source = Some(PeerId::random());
        replayed.sequence_number = Some(99);
        assert_eq!(message_id(&message(&shard, b"envelope")), message_id(&replayed));
        assert_ne!(message_id(&message(&shard, b"envelope")), message_id(&message(&shard, b"another")));
        assert_ne!(message_id(&message(&shard, b"envelope")), message_id(&message("invented", b"envelope")));
        assert_ne!(message_id(&message(&shard, b"envelope")), message_id(&message(&format!("{shard}env"), b"elope")));
    }

    #[tokio::test]
    async fn one_record_travels_on_two_shards() {
        let (mut speaker, mut hearer) = (swarm(&loopback()), swarm(&loopback()));
        for shard in [1, 2] {
            hearer.behaviour_mut().subscribe(&topic(shard)).unwrap();
        }
        hearer.listen_on(parse("/ip4/127.0.0.1/tcp/0")).unwrap();
        let address =
            wait_for(&mut hearer, |event| if let SwarmEvent::NewListenAddr { address, .. } = event { Some(address) } else { None }).await;
        speaker.dial(address).unwrap();
        let heard = tokio::spawn(async move {
            let mut heard = BTreeSet::new();
            while heard.len() < 2 {
                let is_message =
                    |event| if let SwarmEvent::Behaviour(Event::Message { message, .. }) = event { Some(message) } else { None };
                let message = wait_for(&mut hearer, is_message).await;
                assert_eq!(message.data, b"record");
                heard.insert(shard_of(&message.topic).unwrap());
            }
            heard
        });
        for _ in 0..2 {
            wait_for(&mut speaker, |event| matches!(event, SwarmEvent::Behaviour(Event::Subscribed { .. })).then_some(())).await;
        }
        for shard in [1, 2] {
            speaker.behaviour_mut().publish(topic(shard), b"record".to_vec()).unwrap();
        }
        assert!(matches!(speaker.behaviour_mut().publish(topic(1), b"record".to_vec()), Err(PublishError::Duplicate)));
        tokio::spawn(speaker.for_each(|_| async {}));
        assert_eq!(heard.await.unwrap(), BTreeSet::from([1, 2]));
    }

    #[tokio::test]
    async fn a_crowd_behind_one_address_sinks_unless_it_is_exempt() {
        for (exempt, score) in [(Vec::new(), -900.0), (loopback(), 0.0)] {
            let mut hearer = swarm(&exempt);
            hearer.listen_on(parse("/ip4/127.0.0.1/tcp/0")).unwrap();
            let address =
                wait_for(&mut hearer, |event| if let SwarmEvent::NewListenAddr { address, .. } = event { Some(address) } else { None })
                    .await;
            let mut peer = PeerId::random();
            for _ in 0..8 {
                let mut caller = swarm(&loopback());
                peer = *caller.local_peer_id();
                caller.dial(address.clone()).unwrap();
                tokio::spawn(caller.for_each(|_| async {}));
                wait_for(&mut hearer, |event| matches!(event, SwarmEvent::ConnectionEstablished { .. }).then_some(())).await;
            }
            assert_eq!(hearer.behaviour().peer_score(&peer), Some(score));
        }
    }

    #[test]
    fn score_parameters_and_thresholds_validate() {
        let params = score_params(&[Network::new(IpAddr::from([127, 0, 0, 1]), 24)]).unwrap();
        assert_eq!(params.validate(), Ok(()));
        assert_eq!(score_thresholds().validate(), Ok(()));
        assert_eq!(params.ip_colocation_factor_whitelist.len(), 256);
    }

    #[test]
    fn no_good_deeds_outweigh_one_invalid_message() {
        let params = score_params(&[]).unwrap();
        let best: f64 = params
            .topics
            .values()
            .map(|topic| {
                let staying = topic.time_in_mesh_weight * topic.time_in_mesh_cap;
                topic.topic_weight * (staying + topic.first_message_deliveries_weight * topic.first_message_deliveries_cap)
            })
            .sum();
        let topic = topic_score_params();
        assert!(best + topic.topic_weight * topic.invalid_message_deliveries_weight < 0.0, "{best}");
    }

    #[test]
    fn silence_costs_nothing() {
        let topic = topic_score_params();
        assert_eq!((topic.mesh_message_deliveries_weight, topic.mesh_failure_penalty_weight), (0.0, 0.0));
    }

    #[test]
    fn own_local_addresses_are_exempt_and_global_ones_are_not() {
        let own = [
            parse("/ip4/127.0.0.1/tcp/1"),
            parse("/ip4/127.0.0.1/udp/1/quic-v1"),
            parse("/ip4/192.168.7.5/tcp/1"),
            parse("/ip6/fd00::9/tcp/1"),
            parse("/ip4/1.1.1.1/tcp/1"),
            parse("/ip4/0.0.0.0/tcp/1"),
            parse("/dns4/node.example.org/tcp/1"),
        ];
        let texts: Vec<String> = exempt_networks(&own).iter().map(ToString::to_string).collect();
        assert_eq!(texts, ["127.0.0.0/24", "192.168.7.0/24", "::1/128", "fd00::9/128"]);
    }

    #[test]
    fn exempting_more_addresses_than_can_be_listed_is_an_error() {
        let wide = Network::new(IpAddr::from([10, 0, 0, 0]), 8);
        assert!(matches!(score_params(&[wide]), Err(Error::TooManyExempt { addresses: 16_777_216 })));
    }

    fn loopback() -> Vec<Network> {
        exempt_networks(&[parse("/ip4/127.0.0.1/tcp/0")])
    }

    fn swarm(exempt: &[Network]) -> Swarm<Behaviour> {
        SwarmBuilder::with_new_identity()
            .with_tokio()
            .with_tcp(tcp::Config::default(), noise::Config::new, yamux::Config::default)
            .unwrap()
            .with_behaviour(|keypair| behaviour(keypair, exempt).unwrap())
            .unwrap()
            .build()
    }

    async fn wait_for<T>(swarm: &mut Swarm<Behaviour>, wanted: impl Fn(SwarmEvent<Event>) -> Option<T>) -> T {
        let found = async {
            loop {
                if let Some(found) = wanted(swarm.select_next_some().await) {
                    return found;
                }
            }
        };
        timeout(Duration::from_secs(20), found).await.expect("no such event in time")
    }

    fn parse(text: &str) -> Multiaddr {
        text.parse().unwrap()
    }

    fn message(topic: &str, data: &[u8]) -> Message {
        Message { source: None, data: data.to_vec(), sequence_number: None, topic: TopicHash::from_raw(topic) }
    }
}
