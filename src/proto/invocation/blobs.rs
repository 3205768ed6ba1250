//! Which blobs are expected from whom, and what becomes of those that arrive.
//!
//! A lane announces a blob, a substream brings it, and nothing orders the two: a stream that comes first is held for a moment, within a
//! bound, and one that nobody announced is refused. A call that was refused and comes again under its id may find a stream that its first
//! attempt has left, so whoever waits is given more than one, and of those that come first the last is held. No byte of a blob is read
//! before there is room for all of it in a budget, so that announcements cannot promise more memory than the node has to give (threats T4,
//! T27). An input without room is refused, and its call may go elsewhere; an output is work that has been done, so its stream waits until
//! there is room. `S` is a stream, `W` is whoever waits for it.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::model::{ErrorCode, Failure, InvocationId, NodeId};
use crate::wire::blob::{Head, Part};
use crate::wire::invocation::BlobId;

/// How long a stream waits for its announcement: as long as a lane with much to write may need for it.
pub const EARLY_MAX: Duration = Duration::from_secs(5);
/// Streams of one peer that may wait for their announcements, and as many for room.
pub const EARLY_PER_PEER_MAX: usize = 16;
/// Streams that one announcement is given: that of its own attempt, and those that earlier ones of the same call have left.
pub const STREAMS_MAX: usize = 4;

/// Bounds of what is under way.
#[derive(Debug, Clone, Copy)]
pub struct Config {
    /// The largest blob.
    pub bytes_max: u64,
    /// Bytes expected from one peer.
    pub bytes_per_peer_max: u64,
    /// Bytes expected from all peers.
    pub bytes_total_max: u64,
}

/// Names a blob that is under way.
pub type Key = (NodeId, InvocationId, Part);

#[derive(Debug)]
struct Expected<W> {
    blob: BlobId,
    waiter: W,
    /// Streams that it has been given.
    streams: usize,
    /// Whether it has room in the budget.
    has_room: bool,
}

/// What becomes of a stream.
#[derive(Debug, PartialEq, Eq)]
pub enum Arrival<S, W> {
    /// Give it to whoever waits.
    Deliver(S, W),
    /// It is held until its announcement.
    Held,
    /// Drop it, which resets it.
    Refuse(S, &'static str),
}

/// The blobs of a node.
#[derive(Debug)]
pub struct State<S, W> {
    config: Config,
    expected_by_key: BTreeMap<Key, Expected<W>>,
    early_by_key: BTreeMap<Key, (S, BlobId, Duration)>,
    bytes_by_peer: BTreeMap<NodeId, u64>,
    bytes_total: u64,
}

impl<S, W: Clone> State<S, W> {
    /// Nothing is expected.
    pub fn new(config: Config) -> Self {
        Self { config, expected_by_key: BTreeMap::new(), early_by_key: BTreeMap::new(), bytes_by_peer: BTreeMap::new(), bytes_total: 0 }
    }

    /// A lane announced a blob. Returns its stream if it is there already. Streams are to be read after [`State::handle_room`]. Must be
    /// followed by one [`State::handle_done`].
    ///
    /// # Errors
    /// `PAYLOAD_TOO_LARGE`, `CONFLICT` if the same blob is under way; nothing has changed then.
    pub fn handle_expect(&mut self, key: Key, blob: BlobId, waiter: W) -> Result<Option<S>, Failure> {
        // What is larger than a budget would wait for room for ever.
        let bytes_max = self.config.bytes_max.min(self.config.bytes_per_peer_max).min(self.config.bytes_total_max);
        if blob.length_bytes > bytes_max {
            let message = format!("{} bytes were announced, at most {bytes_max} are allowed", blob.length_bytes);
            return Err(Failure::new(ErrorCode::PayloadTooLarge, message).with("limit", bytes_max));
        }
        if self.expected_by_key.contains_key(&key) {
            return Err(Failure::new(ErrorCode::Conflict, "the same blob is under way"));
        }
        let early = self.early_by_key.remove(&key).filter(|(_, said, _)| *said == blob);
        self.expected_by_key.insert(key, Expected { blob, waiter, streams: usize::from(early.is_some()), has_room: false });
        Ok(early.map(|(stream, ..)| stream))
    }

    /// Takes room for a blob that is expected, unless it has it.
    ///
    /// # Errors
    /// `BUSY` while too much is under way; [`State::handle_done`] of another makes room.
    pub fn handle_room(&mut self, key: &Key) -> Result<(), Failure> {
        let Config { bytes_per_peer_max, bytes_total_max, .. } = self.config;
        let Some(expected) = self.expected_by_key.get_mut(key).filter(|expected| !expected.has_room) else { return Ok(()) };
        let of_peer = self.bytes_by_peer.get(&key.0).copied().unwrap_or_default().saturating_add(expected.blob.length_bytes);
        let total = self.bytes_total.saturating_add(expected.blob.length_bytes);
        if of_peer > bytes_per_peer_max || total > bytes_total_max {
            let limit = if of_peer > bytes_per_peer_max { bytes_per_peer_max } else { bytes_total_max };
            let failure = Failure::new(ErrorCode::Busy, "too many large bodies are under way");
            return Err(failure.with("limit", limit).with("retry_after_ms", 100));
        }
        expected.has_room = true;
        self.bytes_by_peer.insert(key.0, of_peer);
        self.bytes_total = total;
        Ok(())
    }

    /// What was expected has come, or is expected no longer.
    pub fn handle_done(&mut self, key: &Key) {
        let Some(expected) = self.expected_by_key.remove(key).filter(|expected| expected.has_room) else { return };
        self.bytes_total = self.bytes_total.saturating_sub(expected.blob.length_bytes);
        if let Some(of_peer) = self.bytes_by_peer.get_mut(&key.0) {
            *of_peer = of_peer.saturating_sub(expected.blob.length_bytes);
            if *of_peer == 0 {
                self.bytes_by_peer.remove(&key.0);
            }
        }
    }

    /// A stream arrived and has shown its head.
    pub fn on_stream(&mut self, peer: NodeId, head: &Head, stream: S, now: Duration) -> Arrival<S, W> {
        let key = (peer, head.invocation, head.part);
        let first = (peer, InvocationId::from_bytes([0; 16]), Part::Input);
        let of_peer = self.expected_by_key.range(first..).take_while(|(key, _)| key.0 == peer);
        let waiting: usize = of_peer.filter(|(_, expected)| !expected.has_room).map(|(_, expected)| expected.streams).sum();
        match self.expected_by_key.get_mut(&key) {
            Some(expected) if expected.blob != head.blob => Arrival::Refuse(stream, "another blob than was announced"),
            Some(expected) if !expected.has_room && waiting >= EARLY_PER_PEER_MAX => {
                Arrival::Refuse(stream, "too many blobs wait for room")
            }
            Some(expected) if expected.streams >= STREAMS_MAX => Arrival::Refuse(stream, "the same blob too often"),
            Some(expected) => {
                expected.streams = expected.streams.saturating_add(1);
                Arrival::Deliver(stream, expected.waiter.clone())
            }
            None => {
                let of_peer = self.early_by_key.keys().filter(|(from, ..)| *from == peer).count();
                if of_peer >= EARLY_PER_PEER_MAX && !self.early_by_key.contains_key(&key) {
                    return Arrival::Refuse(stream, "too many blobs that nobody announced");
                }
                // Whoever sends a blob again has given up the stream before.
                self.early_by_key.insert(key, (stream, head.blob, now.saturating_add(EARLY_MAX)));
                Arrival::Held
            }
        }
    }

    /// Time has passed: returns the streams whose announcement did not come.
    pub fn handle_timeout(&mut self, now: Duration) -> Vec<S> {
        let over: Vec<Key> = self.early_by_key.iter().filter(|(_, (.., until))| *until <= now).map(|(key, _)| *key).collect();
        over.iter().filter_map(|key| self.early_by_key.remove(key)).map(|(stream, ..)| stream).collect()
    }

    /// Bytes that are expected.
    pub fn bytes_total(&self) -> u64 {
        self.bytes_total
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: Config = Config { bytes_max: 100, bytes_per_peer_max: 150, bytes_total_max: 220 };

    fn peer() -> NodeId {
        libp2p_identity::Keypair::generate_ed25519().public().to_peer_id().into()
    }

    fn blob(length: usize) -> BlobId {
        BlobId::of(&vec![7; length])
    }

    fn head(number: u128, blob: BlobId) -> Head {
        Head { invocation: InvocationId::from_random(number), part: Part::Input, blob }
    }

    fn key(peer: NodeId, head: &Head) -> Key {
        (peer, head.invocation, head.part)
    }

    #[test]
    fn a_blob_finds_whoever_waits_whichever_comes_first() {
        let (peer, head) = (peer(), head(1, blob(10)));
        let mut announced_first = State::new(CONFIG);
        assert_eq!(announced_first.handle_expect(key(peer, &head), head.blob, 'w'), Ok(None));
        assert_eq!(announced_first.on_stream(peer, &head, 's', Duration::ZERO), Arrival::Deliver('s', 'w'));

        let mut stream_first = State::new(CONFIG);
        assert_eq!(stream_first.on_stream(peer, &head, 's', Duration::ZERO), Arrival::Held);
        assert_eq!(stream_first.handle_expect(key(peer, &head), head.blob, 'w'), Ok(Some('s')));
        assert!(stream_first.handle_timeout(EARLY_MAX).is_empty());
    }

    #[test]
    fn what_was_not_announced_by_this_peer_is_refused() {
        let (us, them, head) = (peer(), peer(), head(1, blob(10)));
        let mut state: State<char, char> = State::new(CONFIG);
        assert_eq!(state.handle_expect(key(us, &head), head.blob, 'w'), Ok(None));
        assert_eq!(state.on_stream(them, &head, 's', Duration::ZERO), Arrival::Held);
        assert_eq!(state.handle_timeout(EARLY_MAX), ['s']);
        let other = Head { blob: blob(11), ..head };
        assert_eq!(state.on_stream(us, &other, 't', Duration::ZERO), Arrival::Refuse('t', "another blob than was announced"));
        assert_eq!(state.on_stream(us, &head, 's', Duration::ZERO), Arrival::Deliver('s', 'w'));
    }

    /// MAOP-10: an attempt whose input was refused may leave a stream behind, which must not keep that of the next one out.
    #[test]
    fn a_stream_of_an_earlier_attempt_does_not_keep_the_next_one_out() {
        let (peer, head) = (peer(), head(1, blob(10)));
        let mut state: State<char, char> = State::new(CONFIG);
        assert_eq!(state.on_stream(peer, &head, 'a', Duration::ZERO), Arrival::Held);
        assert_eq!(state.on_stream(peer, &head, 'b', Duration::ZERO), Arrival::Held);
        assert_eq!(state.handle_expect(key(peer, &head), head.blob, 'w'), Ok(Some('b')), "the last is the likeliest to be whole");
        for stream in ['c', 'd', 'e'] {
            assert_eq!(state.on_stream(peer, &head, stream, Duration::ZERO), Arrival::Deliver(stream, 'w'));
        }
        assert_eq!(state.on_stream(peer, &head, 'f', Duration::ZERO), Arrival::Refuse('f', "the same blob too often"));
    }

    #[test]
    fn an_early_stream_of_another_blob_does_not_serve() {
        let (peer, head) = (peer(), head(1, blob(10)));
        let mut state: State<char, char> = State::new(CONFIG);
        assert_eq!(state.on_stream(peer, &Head { blob: blob(9), ..head }, 's', Duration::ZERO), Arrival::Held);
        assert_eq!(state.handle_expect(key(peer, &head), head.blob, 'w'), Ok(None));
    }

    #[test]
    fn announcements_are_held_to_their_budgets_and_give_them_back() {
        let (us, them) = (peer(), peer());
        let mut state: State<char, char> = State::new(CONFIG);
        let expect = |state: &mut State<char, char>, from: NodeId, number: u128, length: usize| {
            let head = head(number, blob(length));
            let key = key(from, &head);
            state.handle_expect(key, head.blob, 'w').map_err(|failure| failure.code)?;
            state.handle_room(&key).map_err(|failure| failure.code)
        };
        assert_eq!(expect(&mut state, us, 1, 101), Err(ErrorCode::PayloadTooLarge));
        assert_eq!(expect(&mut state, us, 2, 100), Ok(()));
        assert_eq!(expect(&mut state, us, 2, 100), Err(ErrorCode::Conflict));
        assert_eq!(expect(&mut state, us, 3, 51), Err(ErrorCode::Busy));
        assert_eq!(expect(&mut state, us, 4, 50), Ok(()));
        assert_eq!(expect(&mut state, them, 5, 71), Err(ErrorCode::Busy));
        state.handle_done(&key(us, &head(2, blob(100))));
        state.handle_done(&key(us, &head(2, blob(100))));
        state.handle_done(&key(us, &head(3, blob(51))));
        assert_eq!(state.bytes_total(), 50, "what had no room gives none back");
        let waits = key(them, &head(5, blob(71)));
        assert_eq!((state.handle_room(&waits), state.handle_room(&waits)), (Ok(()), Ok(())), "what waited finds the room, once");
        assert_eq!(state.bytes_total(), 121);
    }

    #[test]
    fn streams_that_wait_for_room_are_bounded() {
        let peer = peer();
        let mut state: State<u128, char> = State::new(CONFIG);
        for number in 0..17 {
            let head = head(number, blob(100));
            assert_eq!(state.handle_expect(key(peer, &head), head.blob, 'w'), Ok(None));
        }
        for number in 0..16 {
            assert_eq!(state.on_stream(peer, &head(number, blob(100)), number, Duration::ZERO), Arrival::Deliver(number, 'w'));
        }
        assert_eq!(state.on_stream(peer, &head(16, blob(100)), 16, Duration::ZERO), Arrival::Refuse(16, "too many blobs wait for room"));
        assert_eq!(state.handle_room(&key(peer, &head(0, blob(100)))), Ok(()));
        assert_eq!(state.on_stream(peer, &head(16, blob(100)), 16, Duration::ZERO), Arrival::Deliver(16, 'w'));
    }

    #[test]
    fn streams_that_nobody_announced_are_bounded() {
        let peer = peer();
        let mut state: State<u128, char> = State::new(CONFIG);
        for number in (0..16).chain([3]) {
            assert_eq!(state.on_stream(peer, &head(number, blob(1)), number, Duration::ZERO), Arrival::Held);
        }
        assert!(matches!(state.on_stream(peer, &head(16, blob(1)), 16, Duration::ZERO), Arrival::Refuse(16, _)));
        assert_eq!(state.handle_timeout(EARLY_MAX).len(), 16);
    }
}
