//! The threads that a node runs on.
//!
//! A call is a dozen short steps of as many tasks that wake each other. Every worker that sleeps is woken to help with them and finds next
//! to nothing: on two cores a second worker made a node slower by a third. So a node has half as many workers as there are cores, and
//! leaves the rest to its agents, which do the work that takes time. Nothing that takes long may run on a worker for that: text is read off
//! them, builtin agents and disks have threads of their own.

use std::io;
use std::num::NonZeroUsize;

use tokio::runtime::{Builder, Runtime};

/// The number of workers, if somebody wants another.
const WORKERS: &str = "TOKIO_WORKER_THREADS";
/// Steps after which a worker looks at what did not fit into its own queue: hundreds of calls that are answered at once do not, and
/// seldom looked at they would wait for all that come after them.
const OVERFLOW_EVERY: u32 = 4;

/// The runtime of a node.
///
/// # Errors
/// If the system gives no threads.
pub fn runtime() -> io::Result<Runtime> {
    let mut builder = Builder::new_multi_thread();
    builder.global_queue_interval(OVERFLOW_EVERY);
    if std::env::var_os(WORKERS).is_none() {
        let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        builder.worker_threads((cores / 2).max(1));
    }
    builder.enable_all().build()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_of_the_cores_are_left_to_agents() {
        let wanted = std::env::var(WORKERS).ok().and_then(|workers| workers.parse().ok());
        let half = std::thread::available_parallelism().map_or(1, NonZeroUsize::get) / 2;
        let runtime = runtime().expect("threads");
        assert_eq!(runtime.metrics().num_workers(), wanted.unwrap_or_else(|| half.max(1)));
    }
}
