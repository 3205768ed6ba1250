//! Waiting for something to become true, never for time to pass.

use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval, timeout};

/// How long a mesh of a few nodes on one busy machine may take to agree, where no tighter bound is promised.
pub(crate) const SETTLE: Duration = Duration::from_secs(15);

/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(25);

/// Asks `probe` until it gives something; fails the test with `what` when `limit` has passed.
pub(crate) async fn eventually<T>(what: &str, limit: Duration, probe: impl AsyncFnMut() -> Option<T>) -> T {
    match poll(limit, probe).await {
        Some(found) => found,
        None => panic!("{what}: not within {limit:?}"),
    }
}

/// Asks `probe` until it gives something, for as long as `limit`.
pub(super) async fn poll<T>(limit: Duration, mut probe: impl AsyncFnMut() -> Option<T>) -> Option<T> {
    let asking = async {
        let mut ticks = interval(POLL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if let Some(found) = probe().await {
                return found;
            }
        }
    };
    timeout(limit, asking).await.ok()
}

/// The result of `future`; fails the test with `what` when `limit` has passed.
pub(crate) async fn within<T>(what: &str, limit: Duration, future: impl Future<Output = T>) -> T {
    match timeout(limit, future).await {
        Ok(result) => result,
        Err(_) => panic!("{what}: not within {limit:?}"),
    }
}
