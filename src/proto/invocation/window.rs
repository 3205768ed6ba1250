//! How much of a large body may be on its way.
//!
//! Whatever the sender has written and the receiver has not taken stands in some buffer, and a call on the same connection waits behind it.
//! Too little of it leaves a long path empty. The window follows TCP Vegas: the shortest time in which a piece was taken is that of an empty
//! path; what longer times show is pieces that queue, and a few of those are enough to keep any path busy. So the queue is short on a
//! loopback as on a slow link far away, whatever its buffers would hold. The window grows by a piece for each that is taken until the first
//! queue shows; then, each time that all of it was taken, by an eighth, or back by what queues too much.

use std::collections::VecDeque;
use std::time::Duration;

/// Pieces that may be on their way before anything is known, and at any time after.
const PIECES_MIN: usize = 4;
/// The most: with pieces of 32 KiB what a path of 0.1 s needs at 160 MB/s.
const PIECES_MAX: usize = 512;
/// With fewer in the queue the window grows.
const QUEUED_LOW: usize = 6;
/// With more it shrinks.
const QUEUED_HIGH: usize = 10;

/// The pieces of one body that are on their way.
#[derive(Debug)]
pub struct Window {
    pieces: usize,
    /// When those that are on their way were sent, oldest first.
    sent: VecDeque<Duration>,
    shortest: Option<Duration>,
    queued_once: bool,
    /// Taken since the window last changed.
    taken: usize,
}

impl Window {
    /// Nothing is on its way.
    pub fn new() -> Self {
        Self { pieces: PIECES_MIN, sent: VecDeque::new(), shortest: None, queued_once: false, taken: 0 }
    }

    /// Whether one more piece may be sent.
    pub fn has_room(&self) -> bool {
        self.sent.len() < self.pieces
    }

    /// Pieces that are on their way.
    pub fn outstanding(&self) -> usize {
        self.sent.len()
    }

    /// A piece was sent.
    pub fn handle_sent(&mut self, now: Duration) {
        self.sent.push_back(now);
    }

    /// The receiver says that it has taken a piece.
    ///
    /// # Errors
    /// If none is on its way: no honest receiver says so.
    pub fn on_taken(&mut self, now: Duration) -> Result<(), Unsent> {
        let was_full = !self.has_room();
        let sent = self.sent.pop_front().ok_or(Unsent)?;
        let took = now.saturating_sub(sent).max(Duration::from_nanos(1));
        let shortest = self.shortest.map_or(took, |shortest| shortest.min(took));
        self.shortest = Some(shortest);
        self.taken = self.taken.saturating_add(1);
        let queued = self.queued(took - shortest, took);
        self.queued_once |= queued > QUEUED_LOW;
        let whole = self.taken >= self.pieces;
        if !self.queued_once && was_full {
            self.change(self.pieces.saturating_add(1));
        } else if whole && queued > QUEUED_HIGH {
            self.change(self.pieces.saturating_sub(queued.saturating_sub(QUEUED_HIGH)));
        } else if whole && queued < QUEUED_LOW && was_full {
            self.change(self.pieces.saturating_add((self.pieces / 8).max(1)));
        }
        Ok(())
    }

    /// Pieces of a full window that stood in a queue, if one of them was `late` by so much of the time that it `took`.
    fn queued(&self, late: Duration, took: Duration) -> usize {
        let pieces = u128::try_from(self.pieces).unwrap_or(u128::MAX);
        usize::try_from(pieces.saturating_mul(late.as_nanos()) / took.as_nanos().max(1)).unwrap_or(usize::MAX)
    }

    fn change(&mut self, pieces: usize) {
        self.pieces = pieces.clamp(PIECES_MIN, PIECES_MAX);
        self.taken = 0;
    }
}

impl Default for Window {
    fn default() -> Self {
        Self::new()
    }
}

/// A piece was taken that was never sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("more was taken than was sent")]
pub struct Unsent;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A path that takes a piece every `service`, after a way of `way`: sends `count` pieces and says how many were in the queue at most
    /// during the second half, and how long all of it took.
    fn path(way: Duration, service: Duration, count: usize) -> (usize, Duration) {
        let mut window = Window::new();
        let (mut now, mut sent, mut free_at, mut most) = (Duration::ZERO, 0, Duration::ZERO, 0);
        let mut taken: VecDeque<Duration> = VecDeque::new();
        while sent < count || !taken.is_empty() {
            if sent < count && window.has_room() {
                window.handle_sent(now);
                free_at = free_at.max(now + way / 2) + service;
                taken.push_back(free_at + way / 2);
                sent += 1;
                let in_queue = (free_at.saturating_sub(now + way / 2).as_nanos() / service.as_nanos()) as usize;
                most = if sent > count / 2 { most.max(in_queue) } else { 0 };
            } else if let Some(at) = taken.pop_front() {
                now = at;
                window.on_taken(now).expect("it was sent");
            }
        }
        (most, now)
    }

    /// MEAP-9: whatever the path, few pieces stand in its queue, and it is hardly ever idle.
    #[test]
    fn a_short_queue_keeps_any_path_busy() {
        for (way_us, service_us) in [(60, 40), (1_000, 300), (20_000, 2_600), (20_000, 260), (100_000, 2_600), (100_000, 1_000)] {
            let (way, service) = (Duration::from_micros(way_us), Duration::from_micros(service_us));
            let (queued, took) = path(way, service, 2_000);
            assert!(queued <= 2 * QUEUED_HIGH, "{queued} of {way_us} us, {service_us} us");
            let best = way + 2_000 * service;
            assert!(took < best * 3 / 2, "{took:?} where {best:?} would do, {way_us} us, {service_us} us");
        }
    }

    #[test]
    fn what_was_never_sent_cannot_be_taken() {
        let mut window = Window::new();
        assert_eq!(window.on_taken(Duration::ZERO), Err(Unsent));
        window.handle_sent(Duration::ZERO);
        assert_eq!(window.on_taken(Duration::ZERO), Ok(()));
        assert_eq!(window.on_taken(Duration::ZERO), Err(Unsent));
    }

    proptest! {
        /// Whatever the receiver does, the window stays within its bounds and never stands still while nothing is on its way.
        #[test]
        fn the_window_keeps_its_bounds(steps in prop::collection::vec((any::<bool>(), 0_u64..10_000_000), 1..2_000)) {
            let (mut window, mut now) = (Window::new(), Duration::ZERO);
            for (send, us) in steps {
                now += Duration::from_micros(us);
                if send && window.has_room() {
                    window.handle_sent(now);
                } else {
                    let before = window.outstanding();
                    prop_assert_eq!(window.on_taken(now).is_ok(), before > 0);
                }
                prop_assert!((PIECES_MIN..=PIECES_MAX).contains(&window.pieces));
                prop_assert!(window.outstanding() > 0 || window.has_room());
            }
        }
    }
}
