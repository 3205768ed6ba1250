//! The places of an agent: who works, who waits, and who is refused when too many come.
//!
//! A place that comes free goes to the most urgent who waits, the earliest among equals. The line is bounded; when it is full, somebody more
//! urgent takes the place of the least urgent who came last, who is told so at once.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use crate::model::Priority;

/// The line is full, for somebody of this priority.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Full;

type Waiter = oneshot::Sender<Result<Permit, Full>>;

struct State {
    free: usize,
    /// One line per priority, the least urgent first.
    lines: [VecDeque<Waiter>; Priority::ALL.len()],
}

impl State {
    fn waiting(&self) -> usize {
        self.lines.iter().map(VecDeque::len).sum()
    }

    fn forget_gone(&mut self) {
        for line in &mut self.lines {
            line.retain(|waiter| !waiter.is_closed());
        }
    }
}

/// The places of one agent.
pub(super) struct Slots(Arc<Mutex<State>>);

/// A place that is taken, until it is dropped.
pub(super) struct Permit(Option<Arc<Mutex<State>>>);

/// Whoever comes gets one of these.
pub(super) enum Place {
    /// A free place.
    Free(Permit),
    /// A place in the line; the permit comes, or the word that somebody more urgent came.
    Waiting(oneshot::Receiver<Result<Permit, Full>>),
}

impl Slots {
    pub(super) fn new(places: usize) -> Self {
        Self(Arc::new(Mutex::new(State { free: places, lines: Default::default() })))
    }

    /// Takes a place, or stands in a line of at most `line_max`.
    pub(super) fn take(&self, priority: Priority, line_max: usize) -> Result<Place, Full> {
        let state = &mut *lock(&self.0);
        if state.free > 0 {
            state.free -= 1;
            return Ok(Place::Free(Permit(Some(Arc::clone(&self.0)))));
        }
        if state.waiting() >= priority.room(line_max) {
            state.forget_gone();
        }
        if state.waiting() >= priority.room(line_max) {
            // Somebody less urgent makes room, if there is one and the line is what is full.
            let less = state.lines.iter_mut().take(priority as usize).find_map(VecDeque::pop_back);
            let Some(less) = less.filter(|_| line_max > 0) else { return Err(Full) };
            let _ = less.send(Err(Full));
        }
        let (waiter, place) = oneshot::channel();
        if let Some(line) = state.lines.get_mut(priority as usize) {
            line.push_back(waiter);
        }
        Ok(Place::Waiting(place))
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let Some(slots) = self.0.take() else { return };
        let mut unwanted = Vec::new();
        {
            let state = &mut *lock(&slots);
            loop {
                let Some(next) = state.lines.iter_mut().rev().find_map(VecDeque::pop_front) else {
                    state.free += 1;
                    break;
                };
                match next.send(Ok(Permit(Some(Arc::clone(&slots))))) {
                    Ok(()) => break,
                    // Whoever waited has gone. The place that comes back must not be given away again while it is held here.
                    Err(Ok(mut back)) => back.0 = None,
                    Err(Err(full)) => unwanted.push(full),
                }
            }
        }
        drop(unwanted);
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiting(place: Result<Place, Full>) -> oneshot::Receiver<Result<Permit, Full>> {
        match place {
            Ok(Place::Waiting(place)) => place,
            Ok(Place::Free(_)) | Err(Full) => panic!("does not wait"),
        }
    }

    fn free(place: Result<Place, Full>) -> Permit {
        match place {
            Ok(Place::Free(permit)) => permit,
            Ok(Place::Waiting(_)) | Err(Full) => panic!("not free"),
        }
    }

    #[test]
    fn the_most_urgent_is_next_and_the_earliest_among_equals() {
        let slots = Slots::new(1);
        let permit = free(slots.take(Priority::Normal, 10));
        let [mut low, mut first, mut second, mut high] =
            [Priority::Low, Priority::Normal, Priority::Normal, Priority::High].map(|priority| waiting(slots.take(priority, 10)));
        drop(permit);
        for next in [&mut high, &mut first, &mut second, &mut low] {
            drop(next.try_recv().expect("it is its turn").expect("not refused"));
        }
        drop(free(slots.take(Priority::Low, 0)));
    }

    /// MEAP-9: the least urgent are refused first.
    #[test]
    fn a_full_line_makes_room_for_the_more_urgent() {
        let slots = Slots::new(1);
        let _permit = free(slots.take(Priority::Low, 4));
        let [mut first, mut second] = [(); 2].map(|()| waiting(slots.take(Priority::Low, 4)));
        assert!(slots.take(Priority::Low, 4).is_err(), "the less urgent have half of the line");
        let _normal = [(); 2].map(|()| waiting(slots.take(Priority::Normal, 4)));
        let _high = waiting(slots.take(Priority::High, 4));
        assert!(matches!(second.try_recv(), Ok(Err(Full))), "who came last of the least urgent makes room");
        assert!(first.try_recv().is_err());
        let _high = waiting(slots.take(Priority::High, 4));
        assert!(matches!(first.try_recv(), Ok(Err(Full))));
        let _high = [(); 2].map(|()| waiting(slots.take(Priority::High, 4)));
        assert!(slots.take(Priority::High, 4).is_err(), "nobody less urgent waits");
    }

    #[test]
    fn a_place_goes_past_those_who_have_gone() {
        let slots = Slots::new(1);
        let permit = free(slots.take(Priority::Normal, 2));
        drop(waiting(slots.take(Priority::Normal, 2)));
        drop(waiting(slots.take(Priority::Normal, 2)));
        let mut third = waiting(slots.take(Priority::Normal, 2));
        drop(permit);
        let permit = third.try_recv().expect("it is its turn").expect("not refused");
        drop(permit);
        drop(free(slots.take(Priority::Normal, 2)));
    }

    #[test]
    fn a_permit_that_nobody_fetches_comes_back() {
        let slots = Slots::new(1);
        let permit = free(slots.take(Priority::Normal, 2));
        let place = waiting(slots.take(Priority::Normal, 2));
        drop(permit);
        drop(place);
        drop(free(slots.take(Priority::Normal, 2)));
    }
}
