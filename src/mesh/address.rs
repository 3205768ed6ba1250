//! Which addresses this node dials, and which it tells others.
//!
//! Addresses arrive in records, identify messages and routing answers, so whoever writes them can point this node
//! at a printer, a metadata service or a stranger (threat T13). The answer is a policy on *classes* of addresses:
//!
//! - [`AddressClass`] says what kind of host an address names. It looks at the host alone, through the disguises
//!   that IPv6 offers for IPv4 (mapped, translated, 6to4) and through names that are an address in writing.
//! - [`Policy`] dials global hosts and names always, and the local classes only if they were configured or if this
//!   node itself listens on or joins through them. It accepts two shapes, `/tcp` and `/udp/quic-v1`, because
//!   everything else (relays, memory, unix sockets, web sockets) is a transport that the node does not run.
//! - [`DialBudget`] bounds how many dials one source of addresses can cause, so that ten thousand addresses of a
//!   victim in one answer do not become ten thousand connection attempts.
//! - [`advertisable`] picks what goes into our own records.
//!
//! Invariants: nothing here reads a clock or a socket; every table has a bound; an address that is not understood
//! is refused. `Other` is never dialled, whatever is configured.
//!
//! Left to others: a name is resolved inside the transport, after this policy has spoken, so a transport beneath
//! the resolver must ask [`Policy::may_reach`] again. Connection counts are in `limits`, back-off in the dialler.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use multiaddr::{Multiaddr, PeerId, Protocol};

/// The most addresses that one of our records carries.
pub const ADVERTISED_MAX: usize = 8;

/// The kind of host that an address names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AddressClass {
    /// A unicast address that routers of the public internet carry.
    Global,
    /// RFC 1918, the shared space of carrier NAT (100.64/10) and unique local IPv6 (fc00::/7).
    Private,
    /// 169.254/16 and fe80::/10, without the metadata services that clouds put there.
    LinkLocal,
    /// 127/8, ::1 and the name `localhost`.
    Loopback,
    /// A name that a resolver must turn into an address first.
    Dns,
    /// Everything that is not a host to talk to: unspecified, multicast, documentation, reserved, no IP at all.
    Other,
}

impl AddressClass {
    /// Every class, in order of declaration.
    pub const ALL: [Self; 6] = [Self::Global, Self::Private, Self::LinkLocal, Self::Loopback, Self::Dns, Self::Other];

    /// Classifies the host that an address begins with; the rest of the address is not looked at.
    #[must_use]
    pub fn of(address: &Multiaddr) -> Self {
        match Host::of(address) {
            Some(Host::Ip(ip)) => Self::of_ip(ip),
            Some(Host::Loopback) => Self::Loopback,
            Some(Host::Name) => Self::Dns,
            None => Self::Other,
        }
    }

    /// Classifies an IP address.
    #[must_use]
    pub fn of_ip(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(ip) => Self::of_ipv4(ip),
            IpAddr::V6(ip) => Self::of_ipv6(ip),
        }
    }

    /// Whether this class reaches no further than a machine or a site, and so depends on where one stands.
    #[must_use]
    pub fn is_local(self) -> bool {
        matches!(self, Self::Private | Self::LinkLocal | Self::Loopback)
    }

    fn of_ipv4(ip: Ipv4Addr) -> Self {
        match ip.octets() {
            [127, ..] => Self::Loopback,
            // The metadata service of the large clouds hands out credentials to whoever connects.
            [169, 254, 169, 254] => Self::Other,
            [169, 254, ..] => Self::LinkLocal,
            [10, ..] | [192, 168, ..] => Self::Private,
            [172, second, ..] if (16..32).contains(&second) => Self::Private,
            [100, second, ..] if (64..128).contains(&second) => Self::Private,
            // This network, protocol assignments, documentation, the dead 6to4 relay, benchmarks, multicast, reserved.
            [0, ..] | [192, 0, 0, _] | [192, 0, 2, _] | [198, 51, 100, _] | [203, 0, 113, _] => Self::Other,
            [192, 88, 99, _] | [198, 18 | 19, ..] | [224..=255, ..] => Self::Other,
            _ => Self::Global,
        }
    }

    fn of_ipv6(ip: Ipv6Addr) -> Self {
        if let Some(embedded) = embedded_ipv4(ip) {
            return Self::of_ipv4(embedded);
        }
        match ip.segments() {
            [0, 0, 0, 0, 0, 0, 0, 1] => Self::Loopback,
            // The metadata service again, under its IPv6 address.
            [0xfd00, 0x0ec2, 0, 0, 0, 0, 0, 0x0254] => Self::Other,
            [first, ..] if first & 0xfe00 == 0xfc00 => Self::Private,
            [first, ..] if first & 0xffc0 == 0xfe80 => Self::LinkLocal,
            // Protocol assignments (Teredo and benchmarks among them) and the two documentation ranges.
            [0x2001, second, ..] if second < 0x0200 => Self::Other,
            [0x2001, 0x0db8, ..] => Self::Other,
            [0x3fff, second, ..] if second < 0x1000 => Self::Other,
            // Only 2000::/3 has ever been given out as global unicast.
            [first, ..] if first & 0xe000 == 0x2000 => Self::Global,
            _ => Self::Other,
        }
    }

    fn bit(self) -> u8 {
        match self {
            Self::Global => 1,
            Self::Private => 1 << 1,
            Self::LinkLocal => 1 << 2,
            Self::Loopback => 1 << 3,
            Self::Dns => 1 << 4,
            Self::Other => 1 << 5,
        }
    }
}

/// A set of address classes.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct AddressClasses(u8);

impl AddressClasses {
    /// The set without a class.
    pub const NONE: Self = Self(0);

    /// Collects the classes of the given addresses; a wildcard such as `0.0.0.0` contributes only `Other`.
    pub fn of<'a>(addresses: impl IntoIterator<Item = &'a Multiaddr>) -> Self {
        addresses.into_iter().map(AddressClass::of).collect()
    }

    /// Returns this set with one class more.
    #[must_use]
    pub fn with(self, class: AddressClass) -> Self {
        Self(self.0 | class.bit())
    }

    /// Returns the classes that are in either set.
    #[must_use]
    pub fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether the class is in the set.
    #[must_use]
    pub fn contains(self, class: AddressClass) -> bool {
        self.0 & class.bit() != 0
    }

    /// Iterates over the classes in the set, in order of declaration.
    pub fn iter(self) -> impl Iterator<Item = AddressClass> {
        AddressClass::ALL.into_iter().filter(move |class| self.contains(*class))
    }
}

impl FromIterator<AddressClass> for AddressClasses {
    fn from_iter<I: IntoIterator<Item = AddressClass>>(classes: I) -> Self {
        classes.into_iter().fold(Self::NONE, Self::with)
    }
}

impl fmt::Debug for AddressClasses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

/// An IP network: all addresses that share a prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Network {
    base: IpAddr,
    prefix_bits: u8,
}

impl Network {
    /// The network of the given prefix length that holds `ip`. IPv4-mapped IPv6 counts as IPv4, and a prefix
    /// longer than the address is cut to its length.
    #[must_use]
    pub fn new(ip: IpAddr, prefix_bits: u8) -> Self {
        match ip.to_canonical() {
            IpAddr::V4(ip) => {
                let prefix_bits = prefix_bits.min(32);
                let mask = u32::MAX.checked_shl(32 - u32::from(prefix_bits)).unwrap_or(0);
                Self { base: IpAddr::V4(Ipv4Addr::from_bits(ip.to_bits() & mask)), prefix_bits }
            }
            IpAddr::V6(ip) => {
                let prefix_bits = prefix_bits.min(128);
                let mask = u128::MAX.checked_shl(128 - u32::from(prefix_bits)).unwrap_or(0);
                Self { base: IpAddr::V6(Ipv6Addr::from_bits(ip.to_bits() & mask)), prefix_bits }
            }
        }
    }

    /// The smallest network that one party commonly holds as a whole: /24 for IPv4 and /64 for IPv6.
    #[must_use]
    pub fn of_neighbours(ip: IpAddr) -> Self {
        let prefix_bits = if ip.to_canonical().is_ipv4() { 24 } else { 64 };
        Self::new(ip, prefix_bits)
    }

    /// Whether the address lies in this network.
    #[must_use]
    pub fn contains(&self, ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        ip.is_ipv4() == self.base.is_ipv4() && Self::new(ip, self.prefix_bits) == *self
    }

    /// How many addresses the network holds, as far as `u64` can say.
    #[must_use]
    pub fn len(&self) -> u64 {
        let width: u8 = if self.base.is_ipv4() { 32 } else { 128 };
        1_u64.checked_shl(u32::from(width.saturating_sub(self.prefix_bits))).unwrap_or(u64::MAX)
    }

    /// Whether the network holds no address, which cannot be.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Iterates over the addresses of the network, lowest first, at most `u64::MAX` of them.
    pub fn addresses(self) -> impl Iterator<Item = IpAddr> {
        (0..self.len()).map(move |offset| match self.base {
            // The offset is below the size of the network, so neither addition can carry into the prefix.
            IpAddr::V4(base) => IpAddr::V4(Ipv4Addr::from_bits(base.to_bits() | u32::try_from(offset).unwrap_or(u32::MAX))),
            IpAddr::V6(base) => IpAddr::V6(Ipv6Addr::from_bits(base.to_bits() | u128::from(offset))),
        })
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.base, self.prefix_bits)
    }
}

/// Decides which addresses this node dials.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Policy {
    /// The local classes that are open; `Global` and `Dns` always are, and `Other` never is.
    pub allowed: AddressClasses,
}

impl Policy {
    /// Opens the configured classes and those of the addresses that the user told this node to listen on or to
    /// join through.
    ///
    /// `listen` are the addresses *as configured*. A wildcard also listens on loopback, but nobody said by it that
    /// strangers may point this node at its own machine, so what a wildcard expands to does not belong here.
    #[must_use]
    pub fn new(configured: AddressClasses, listen: &[Multiaddr], join: &[Multiaddr]) -> Self {
        Self { allowed: configured.union(AddressClasses::of(listen)).union(AddressClasses::of(join)) }
    }

    /// Whether this node may dial the address: a shape that it speaks, towards a class that is open.
    #[must_use]
    pub fn may_dial(&self, address: &Multiaddr) -> bool {
        has_dialable_shape(address) && self.is_open(AddressClass::of(address))
    }

    /// Whether this node may open a connection to this IP address, asked again for what a name resolved to.
    #[must_use]
    pub fn may_reach(&self, ip: IpAddr) -> bool {
        self.is_open(AddressClass::of_ip(ip))
    }

    fn is_open(&self, class: AddressClass) -> bool {
        match class {
            AddressClass::Global | AddressClass::Dns => true,
            AddressClass::Private | AddressClass::LinkLocal | AddressClass::Loopback => self.allowed.contains(class),
            AddressClass::Other => false,
        }
    }
}

/// What a source of addresses gets for one more dial on its account.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spend {
    /// The dial may start and has been counted.
    Granted,
    /// This source already caused a dial of this address within the last minute; that one has succeeded or failed.
    Repeated,
    /// The source has used up its dials for this minute.
    Exhausted,
}

impl Spend {
    /// Whether the dial may start.
    #[must_use]
    pub fn is_granted(self) -> bool {
        match self {
            Self::Granted => true,
            Self::Repeated | Self::Exhausted => false,
        }
    }
}

/// Bounds how many different addresses are dialled per minute because one peer named them.
#[derive(Debug, Clone)]
pub struct DialBudget {
    dials_per_minute_max: usize,
    sources_max: usize,
    dials_by_source: BTreeMap<PeerId, VecDeque<Dial>>,
}

/// One dial on the account of a source. The address is kept as a hash: it is only compared, and a collision costs
/// the source one dial.
#[derive(Debug, Clone, Copy)]
struct Dial {
    started_at: Duration,
    address_hash: u64,
}

impl DialBudget {
    /// Dials per minute that one source may cause: enough for four full records of eight addresses.
    pub const DIALS_PER_MINUTE_MAX: usize = 32;
    /// Sources remembered at once; with 32 dials of 24 bytes each the table stays below one megabyte.
    pub const SOURCES_MAX: usize = 1_024;
    const WINDOW: Duration = Duration::from_secs(60);

    /// A budget of `dials_per_minute_max` per source that remembers at most `sources_max` sources.
    #[must_use]
    pub fn new(dials_per_minute_max: usize, sources_max: usize) -> Self {
        Self { dials_per_minute_max, sources_max: sources_max.max(1), dials_by_source: BTreeMap::new() }
    }

    /// Asks to dial `address` because `source` named it. `now` is the time since the node started.
    pub fn spend(&mut self, source: PeerId, address: &Multiaddr, now: Duration) -> Spend {
        if !self.dials_by_source.contains_key(&source) {
            self.make_room(now);
        }
        let address_hash = hash_of(address);
        let dials = self.dials_by_source.entry(source).or_default();
        forget_old(dials, now);
        if dials.iter().any(|dial| dial.address_hash == address_hash) {
            return Spend::Repeated;
        }
        if dials.len() >= self.dials_per_minute_max {
            return Spend::Exhausted;
        }
        dials.push_back(Dial { started_at: now, address_hash });
        Spend::Granted
    }

    fn make_room(&mut self, now: Duration) {
        if self.dials_by_source.len() < self.sources_max {
            return;
        }
        self.dials_by_source.retain(|_, dials| {
            forget_old(dials, now);
            !dials.is_empty()
        });
        while self.dials_by_source.len() >= self.sources_max {
            let longest_quiet = self.dials_by_source.iter().min_by_key(|(_, dials)| dials.back().map(|dial| dial.started_at));
            let Some(source) = longest_quiet.map(|(source, _)| *source) else {
                return;
            };
            self.dials_by_source.remove(&source);
        }
    }
}

impl Default for DialBudget {
    fn default() -> Self {
        Self::new(Self::DIALS_PER_MINUTE_MAX, Self::SOURCES_MAX)
    }
}

/// Chooses the addresses that this node puts into its own records, best first and at most [`ADVERTISED_MAX`].
///
/// Confirmed external addresses come first, then those of the classes through which this node joined, because its
/// peers are there. Loopback is told only if the node joined through it or has nothing else; link-local only if it
/// joined through it. Duplicates, wildcards and shapes that nobody dials are left out, and so is a trailing
/// `/p2p`, since the record names the node itself.
#[must_use]
pub fn advertisable(listen: &[Multiaddr], external: &[Multiaddr], joined_classes: AddressClasses) -> Vec<Multiaddr> {
    let mut ranked: Vec<(u8, Multiaddr)> = Vec::new();
    let candidates = external.iter().map(|address| (true, address)).chain(listen.iter().map(|address| (false, address)));
    for (is_external, address) in candidates {
        let class = AddressClass::of(address);
        let bare = without_peer(address);
        if !has_dialable_shape(&bare) || ranked.iter().any(|(_, known)| *known == bare) {
            continue;
        }
        let is_joined = joined_classes.contains(class);
        let rank = match class {
            AddressClass::Other => continue,
            AddressClass::Loopback if !is_joined => RANK_LAST_RESORT,
            AddressClass::LinkLocal if !is_joined => continue,
            AddressClass::Global | AddressClass::Dns | AddressClass::Private | AddressClass::LinkLocal | AddressClass::Loopback => {
                match (is_external, is_joined, class.is_local()) {
                    (true, _, _) => 0,
                    (false, true, _) => 1,
                    (false, false, false) => 2,
                    (false, false, true) => 3,
                }
            }
        };
        ranked.push((rank, bare));
    }
    if ranked.iter().any(|(rank, _)| *rank < RANK_LAST_RESORT) {
        ranked.retain(|(rank, _)| *rank < RANK_LAST_RESORT);
    }
    ranked.sort_by_key(|(rank, _)| *rank);
    ranked.truncate(ADVERTISED_MAX);
    ranked.into_iter().map(|(_, address)| address).collect()
}

const RANK_LAST_RESORT: u8 = u8::MAX;

/// The IP address that a multiaddress begins with, in canonical form: IPv4-mapped IPv6 becomes IPv4.
///
/// Names have none, even if they are written like an address: what they resolve to is not known here.
#[must_use]
pub fn ip_of(address: &Multiaddr) -> Option<IpAddr> {
    let host = address.iter().next()?;
    if let Protocol::Ip4(ip) = host {
        Some(IpAddr::V4(ip))
    } else if let Protocol::Ip6(ip) = host {
        Some(IpAddr::V6(ip).to_canonical())
    } else {
        None
    }
}

/// The first component of an address, as far as it names a host.
enum Host {
    Ip(IpAddr),
    Loopback,
    Name,
}

impl Host {
    fn of(address: &Multiaddr) -> Option<Self> {
        if let Some(ip) = ip_of(address) {
            return Some(Self::Ip(ip));
        }
        let host = address.iter().next()?;
        let (Protocol::Dns(name) | Protocol::Dns4(name) | Protocol::Dns6(name) | Protocol::Dnsaddr(name)) = host else {
            return None;
        };
        let name = name.trim_end_matches('.').to_ascii_lowercase();
        // Resolvers answer both without asking anyone, so these names are addresses in disguise.
        if let Ok(ip) = name.parse() {
            return Some(Self::Ip(ip));
        }
        if name == "localhost" || name.ends_with(".localhost") {
            return Some(Self::Loopback);
        }
        (!name.is_empty()).then_some(Self::Name)
    }
}

/// The IPv4 address that an IPv6 address is only a wrapper for: mapped, translated (64:ff9b::/96) or 6to4.
fn embedded_ipv4(ip: Ipv6Addr) -> Option<Ipv4Addr> {
    let from_halves = |high: u16, low: u16| Ipv4Addr::from_bits((u32::from(high) << 16) | u32::from(low));
    match ip.segments() {
        [0, 0, 0, 0, 0, 0xffff, high, low] | [0x0064, 0xff9b, 0, 0, 0, 0, high, low] => Some(from_halves(high, low)),
        [0x2002, high, low, ..] => Some(from_halves(high, low)),
        _ => None,
    }
}

/// Whether the address is a host, then `/tcp` or `/udp/quic-v1` on a real port, then at most one `/p2p`.
fn has_dialable_shape(address: &Multiaddr) -> bool {
    let mut parts = address.iter();
    // `/dnsaddr` is left out on purpose: it resolves to whole addresses of any shape, and to many of them.
    let is_host =
        matches!(parts.next(), Some(Protocol::Ip4(_) | Protocol::Ip6(_) | Protocol::Dns(_) | Protocol::Dns4(_) | Protocol::Dns6(_)));
    let is_transport = match parts.next() {
        Some(Protocol::Tcp(port)) => port != 0,
        Some(Protocol::Udp(port)) => port != 0 && matches!(parts.next(), Some(Protocol::QuicV1)),
        _ => false,
    };
    let is_end = match parts.next() {
        None => true,
        Some(Protocol::P2p(_)) => parts.next().is_none(),
        Some(_) => false,
    };
    is_host && is_transport && is_end
}

fn without_peer(address: &Multiaddr) -> Multiaddr {
    let mut bare = address.clone();
    if matches!(bare.iter().last(), Some(Protocol::P2p(_))) {
        bare.pop();
    }
    bare
}

fn forget_old(dials: &mut VecDeque<Dial>, now: Duration) {
    while dials.front().is_some_and(|dial| now.saturating_sub(dial.started_at) >= DialBudget::WINDOW) {
        dials.pop_front();
    }
}

fn hash_of(address: &Multiaddr) -> u64 {
    let mut hasher = DefaultHasher::new();
    without_peer(address).hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: &str = "12D3KooWK99VoVxNE7XzyBwXEzW7xhK7Gpv85r9F3V3fyKSUKPH5";

    #[test]
    fn every_range_of_addresses_has_its_class() {
        let table = [
            (AddressClass::Global, "1.1.1.1 8.8.8.8 100.63.255.255 100.128.0.0 172.15.0.1 172.32.0.1 192.0.1.1 198.17.0.1 223.255.255.255"),
            (AddressClass::Global, "2606:4700::1111 2a00::1 2400::1 2001:200::1 2001:4860:4860::8888 3fff:1000::1"),
            (AddressClass::Private, "10.0.0.1 172.16.0.1 172.31.255.255 192.168.1.1 100.64.0.1 100.127.255.255 fc00::1 fd12:3456::1"),
            (AddressClass::LinkLocal, "169.254.0.1 169.254.169.253 fe80::1 febf::1"),
            (AddressClass::Loopback, "127.0.0.1 127.255.255.255 ::1"),
            (AddressClass::Other, "0.0.0.0 0.1.2.3 192.0.0.8 192.0.2.1 198.51.100.7 203.0.113.9 198.18.0.1 198.19.255.255"),
            (AddressClass::Other, "192.88.99.1 224.0.0.1 239.255.255.250 240.0.0.1 255.255.255.255 169.254.169.254"),
            (AddressClass::Other, ":: ff02::1 2001:db8::1 3fff::1 2001::1 100::1 fec0::1 64:ff9b:1::1 4000::1 fd00:ec2::254"),
        ];
        for (class, ips) in table {
            for ip in ips.split(' ') {
                assert_eq!(AddressClass::of_ip(ip.parse().unwrap()), class, "{ip}");
            }
        }
    }

    #[test]
    fn ipv4_inside_ipv6_has_the_class_of_the_ipv4_address() {
        for wrapped in ["::ffff:10.0.0.1", "64:ff9b::10.0.0.1", "2002:0a00:0001::1"] {
            assert_eq!(AddressClass::of_ip(wrapped.parse().unwrap()), AddressClass::Private, "{wrapped}");
        }
        assert_eq!(AddressClass::of_ip("::ffff:127.0.0.1".parse().unwrap()), AddressClass::Loopback);
        assert_eq!(AddressClass::of_ip("::ffff:1.1.1.1".parse().unwrap()), AddressClass::Global);
        assert_eq!(AddressClass::of_ip("64:ff9b::169.254.169.254".parse().unwrap()), AddressClass::Other);
    }

    #[test]
    fn names_are_a_class_of_their_own_unless_they_are_addresses_in_writing() {
        assert_eq!(class("/dns4/node.example.org/tcp/1"), AddressClass::Dns);
        assert_eq!(class("/dnsaddr/node.example.org"), AddressClass::Dns);
        assert_eq!(class("/dns/LOCALHOST./tcp/1"), AddressClass::Loopback);
        assert_eq!(class("/dns4/printer.localhost/tcp/1"), AddressClass::Loopback);
        assert_eq!(class("/dns4/127.0.0.1/tcp/1"), AddressClass::Loopback);
        assert_eq!(class("/dns4/192.168.0.1/tcp/1"), AddressClass::Private);
        assert_eq!(class("/dns6/::1/tcp/1"), AddressClass::Loopback);
    }

    #[test]
    fn addresses_without_a_host_are_other() {
        for address in ["/memory/7", "/unix/%2Ftmp%2Fsocket", "/tcp/80", "/p2p-circuit", ""] {
            assert_eq!(class(address), AddressClass::Other, "{address}");
        }
    }

    #[test]
    fn class_sets_hold_what_was_put_in() {
        let classes = AddressClasses::NONE.with(AddressClass::Private).with(AddressClass::Dns);
        for candidate in AddressClass::ALL {
            assert_eq!(classes.contains(candidate), matches!(candidate, AddressClass::Private | AddressClass::Dns));
        }
        assert_eq!(classes.iter().collect::<AddressClasses>(), classes);
        assert_eq!(format!("{classes:?}"), "{Private, Dns}");
    }

    #[test]
    fn global_hosts_and_names_may_always_be_dialled() {
        let policy = Policy::default();
        for address in ["/ip4/1.1.1.1/tcp/4001", "/ip6/2606:4700::1111/udp/4001/quic-v1", "/dns4/a.example.org/tcp/1"] {
            assert!(policy.may_dial(&parse(address)), "{address}");
            assert!(policy.may_dial(&parse(&format!("{address}/p2p/{PEER}"))), "{address}");
        }
    }

    #[test]
    fn local_hosts_may_be_dialled_only_through_an_open_class() {
        let cases = [
            ("/ip4/10.1.2.3/tcp/1", AddressClass::Private),
            ("/ip4/169.254.3.4/udp/1/quic-v1", AddressClass::LinkLocal),
            ("/ip4/127.0.0.1/tcp/1", AddressClass::Loopback),
            ("/ip6/::ffff:127.0.0.1/tcp/1", AddressClass::Loopback),
            ("/dns4/localhost/tcp/1", AddressClass::Loopback),
        ];
        for (address, class) in cases {
            let address = parse(address);
            assert!(!Policy::default().may_dial(&address), "{address}");
            for open in AddressClass::ALL {
                let policy = Policy { allowed: AddressClasses::NONE.with(open) };
                assert_eq!(policy.may_dial(&address), open == class, "{address} with {open:?} open");
            }
        }
    }

    #[test]
    fn listening_and_joining_open_a_class_but_a_wildcard_does_not() {
        let loopback = parse("/ip4/127.0.0.1/tcp/9");
        let private = parse("/ip4/10.0.0.9/tcp/9");
        let by_listening = Policy::new(AddressClasses::NONE, &[parse("/ip4/127.0.0.1/tcp/0")], &[]);
        assert!(by_listening.may_dial(&loopback) && !by_listening.may_dial(&private));
        let by_joining = Policy::new(AddressClasses::NONE, &[], &[parse("/ip4/10.0.0.1/tcp/1")]);
        assert!(by_joining.may_dial(&private) && !by_joining.may_dial(&loopback));
        let by_config = Policy::new(AddressClasses::NONE.with(AddressClass::Private), &[], &[]);
        assert!(by_config.may_dial(&private));
        let wildcard = Policy::new(AddressClasses::NONE, &[parse("/ip4/0.0.0.0/tcp/1"), parse("/ip6/::/tcp/1")], &[]);
        assert!(!wildcard.may_dial(&loopback) && !wildcard.may_dial(&private));
    }

    #[test]
    fn what_is_no_host_is_never_dialled() {
        let open = Policy { allowed: AddressClass::ALL.into_iter().collect() };
        for address in
            ["/ip4/0.0.0.0/tcp/1", "/ip4/224.0.0.1/tcp/1", "/ip4/203.0.113.1/tcp/1", "/ip4/169.254.169.254/tcp/80", "/dns4/./tcp/1"]
        {
            assert!(!open.may_dial(&parse(address)), "{address}");
        }
    }

    #[test]
    fn only_plain_tcp_and_quic_shapes_are_dialled() {
        let open = Policy { allowed: AddressClass::ALL.into_iter().collect() };
        let refused = [
            "/ip4/1.1.1.1".to_owned(),
            "/ip4/1.1.1.1/tcp/0".to_owned(),
            "/ip4/1.1.1.1/udp/0/quic-v1".to_owned(),
            "/ip4/1.1.1.1/udp/1".to_owned(),
            "/ip4/1.1.1.1/udp/1/quic".to_owned(),
            "/ip4/1.1.1.1/udp/1/quic-v1/webtransport".to_owned(),
            "/ip4/1.1.1.1/tcp/1/ws".to_owned(),
            "/ip4/1.1.1.1/tcp/1/tls/ws".to_owned(),
            "/ip4/1.1.1.1/tcp/1/tcp/2".to_owned(),
            "/ip4/1.1.1.1/ip4/1.1.1.1/tcp/1".to_owned(),
            "/memory/7".to_owned(),
            "/unix/%2Ftmp%2Fsocket".to_owned(),
            "/dnsaddr/a.example.org".to_owned(),
            format!("/dnsaddr/a.example.org/p2p/{PEER}"),
            format!("/ip4/1.1.1.1/tcp/1/p2p/{PEER}/p2p-circuit"),
            format!("/ip4/1.1.1.1/tcp/1/p2p/{PEER}/p2p-circuit/p2p/{PEER}"),
            format!("/ip4/1.1.1.1/tcp/1/p2p/{PEER}/p2p/{PEER}"),
            format!("/p2p/{PEER}"),
            "/ip6zone/eth0/ip6/fe80::1/tcp/1".to_owned(),
            String::new(),
        ];
        for address in refused {
            assert!(!open.may_dial(&parse(&address)), "{address}");
        }
    }

    #[test]
    fn resolved_addresses_are_judged_like_written_ones() {
        let policy = Policy::new(AddressClasses::NONE, &[parse("/ip4/10.0.0.1/tcp/1")], &[]);
        assert!(policy.may_reach("1.1.1.1".parse().unwrap()));
        assert!(policy.may_reach("10.9.9.9".parse().unwrap()));
        assert!(!policy.may_reach("127.0.0.1".parse().unwrap()));
        assert!(!policy.may_reach("::ffff:169.254.169.254".parse().unwrap()));
    }

    #[test]
    fn one_source_causes_a_bounded_number_of_dials_per_minute() {
        let mut budget = DialBudget::default();
        let source = PeerId::random();
        let granted = (0..10_000).filter(|n| budget.spend(source, &numbered(*n), seconds(1)).is_granted()).count();
        assert_eq!(granted, DialBudget::DIALS_PER_MINUTE_MAX);
        assert_eq!(budget.spend(source, &numbered(20_000), seconds(60)), Spend::Exhausted);
        assert_eq!(budget.spend(source, &numbered(20_000), seconds(61)), Spend::Granted);
    }

    #[test]
    fn the_window_slides_so_no_minute_sees_twice_the_budget() {
        let mut budget = DialBudget::new(2, 4);
        let source = PeerId::random();
        assert!(budget.spend(source, &numbered(0), seconds(0)).is_granted());
        assert!(budget.spend(source, &numbered(1), seconds(59)).is_granted());
        assert!(budget.spend(source, &numbered(2), seconds(61)).is_granted());
        assert_eq!(budget.spend(source, &numbered(3), seconds(100)), Spend::Exhausted);
        assert_eq!(budget.spend(source, &numbered(3), seconds(119)), Spend::Granted);
    }

    #[test]
    fn the_same_address_is_dialled_once_per_minute_and_source() {
        let mut budget = DialBudget::default();
        let (source, other) = (PeerId::random(), PeerId::random());
        let bare = parse("/ip4/1.1.1.1/tcp/1");
        let with_peer = parse(&format!("/ip4/1.1.1.1/tcp/1/p2p/{PEER}"));
        assert_eq!(budget.spend(source, &bare, seconds(0)), Spend::Granted);
        assert_eq!(budget.spend(source, &with_peer, seconds(30)), Spend::Repeated);
        assert_eq!(budget.spend(other, &with_peer, seconds(30)), Spend::Granted);
        assert_eq!(budget.spend(source, &bare, seconds(60)), Spend::Granted);
    }

    #[test]
    fn the_table_of_sources_is_bounded_and_forgets_the_longest_quiet() {
        let mut budget = DialBudget::new(1, 3);
        let sources: Vec<PeerId> = (0..4).map(|_| PeerId::random()).collect();
        for (n, source) in sources.iter().enumerate() {
            assert!(budget.spend(*source, &numbered(0), seconds(n as u64)).is_granted());
            assert!(budget.dials_by_source.len() <= 3);
        }
        assert_eq!(budget.spend(sources[3], &numbered(9), seconds(5)), Spend::Exhausted);
        assert_eq!(budget.spend(sources[0], &numbered(9), seconds(5)), Spend::Granted);
    }

    #[test]
    fn adverts_carry_external_addresses_first_and_never_a_wildcard() {
        let listen =
            [parse("/ip4/0.0.0.0/tcp/1"), parse("/ip4/127.0.0.1/tcp/1"), parse("/ip4/10.0.0.5/tcp/1"), parse("/ip4/9.9.9.9/tcp/1")];
        let external = [parse(&format!("/ip4/1.1.1.1/tcp/1/p2p/{PEER}")), parse("/ip4/9.9.9.9/tcp/1")];
        let advertised = advertisable(&listen, &external, AddressClasses::NONE);
        assert_eq!(texts(&advertised), ["/ip4/1.1.1.1/tcp/1", "/ip4/9.9.9.9/tcp/1", "/ip4/10.0.0.5/tcp/1"]);
    }

    #[test]
    fn loopback_is_advertised_when_joined_through_it_or_when_nothing_else_is_left() {
        let loopback = parse("/ip4/127.0.0.1/tcp/1");
        let private = parse("/ip4/10.0.0.5/tcp/1");
        let joined = AddressClasses::NONE.with(AddressClass::Loopback);
        assert_eq!(texts(&advertisable(&[private.clone(), loopback.clone()], &[], AddressClasses::NONE)), ["/ip4/10.0.0.5/tcp/1"]);
        assert_eq!(texts(&advertisable(&[private, loopback.clone()], &[], joined)), ["/ip4/127.0.0.1/tcp/1", "/ip4/10.0.0.5/tcp/1"]);
        assert_eq!(texts(&advertisable(&[loopback], &[], AddressClasses::NONE)), ["/ip4/127.0.0.1/tcp/1"]);
    }

    #[test]
    fn adverts_are_bounded_and_leave_out_what_cannot_be_dialled() {
        let many: Vec<Multiaddr> = (0..50).map(numbered).collect();
        assert_eq!(advertisable(&many, &many, AddressClasses::NONE).len(), ADVERTISED_MAX);
        let odd = [parse("/ip4/1.1.1.1/tcp/1/ws"), parse("/ip4/1.1.1.1/tcp/0"), parse("/memory/1"), parse("/ip6/fe80::1/tcp/1")];
        assert_eq!(advertisable(&odd, &[], AddressClasses::NONE), []);
        let joined = AddressClasses::NONE.with(AddressClass::LinkLocal);
        assert_eq!(texts(&advertisable(&odd, &[], joined)), ["/ip6/fe80::1/tcp/1"]);
    }

    #[test]
    fn networks_hold_their_neighbours() {
        let network = Network::of_neighbours("10.1.2.3".parse().unwrap());
        assert_eq!(network.to_string(), "10.1.2.0/24");
        assert_eq!(network, Network::of_neighbours("::ffff:10.1.2.200".parse().unwrap()));
        assert!(network.contains("10.1.2.255".parse().unwrap()) && !network.contains("10.1.3.0".parse().unwrap()));
        assert_eq!(network.addresses().count(), 256);
        let network = Network::of_neighbours("2606:4700:1:2:3:4:5:6".parse().unwrap());
        assert_eq!(network.to_string(), "2606:4700:1:2::/64");
        assert!(!network.contains("10.1.2.3".parse().unwrap()));
        assert_eq!(Network::new("10.1.2.3".parse().unwrap(), 99).len(), 1);
        assert_eq!(Network::new("10.1.2.3".parse().unwrap(), 0).len(), 1 << 32);
        assert_eq!(Network::new("::1".parse().unwrap(), 0).len(), u64::MAX);
    }

    fn parse(text: &str) -> Multiaddr {
        text.parse().unwrap()
    }

    fn class(text: &str) -> AddressClass {
        AddressClass::of(&parse(text))
    }

    fn numbered(n: u16) -> Multiaddr {
        parse(&format!("/ip4/1.2.3.4/tcp/{}", n + 1))
    }

    fn seconds(s: u64) -> Duration {
        Duration::from_secs(s)
    }

    fn texts(addresses: &[Multiaddr]) -> Vec<String> {
        addresses.iter().map(ToString::to_string).collect()
    }
}
