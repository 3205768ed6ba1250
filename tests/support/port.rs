//! Ports of nodes that come back at the address that others know them by.
//!
//! A port that the system picks is one that it gives to somebody else while its node is dead: to the listener of another test, or to any
//! connection that leaves this machine. So these lie below the range that the system picks from, and each is locked by a file as long as its
//! test runs, for all tests on this machine.

use std::{
    fs::{self, File},
    net::TcpListener,
};

/// Below it are ports that have names.
const FIRST: u16 = 10_240;
/// Where the range begins that the system picks from, if it does not say.
const PICKED_FROM: u16 = 32_768;

/// A port of this machine that is nobody else's.
#[derive(Debug)]
pub(crate) struct Port {
    number: u16,
    _lock: File,
}

impl Port {
    /// One that nobody has.
    pub(crate) fn reserve() -> Self {
        let range = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
        let picked_from = range.split_whitespace().next().and_then(|first| first.parse().ok()).unwrap_or(PICKED_FROM);
        let count = picked_from.max(FIRST + 1) - FIRST;
        let begin = rand::random_range(0..count);
        let folder = std::env::temp_dir().join("meshwork-test-ports");
        fs::create_dir_all(&folder).expect("a folder for the locks of ports");
        let mut numbers =
            (0..count).map(|step| FIRST + u16::try_from((u32::from(begin) + u32::from(step)) % u32::from(count)).expect("a port"));
        let free = numbers.find_map(|number| {
            let lock = File::options().create(true).append(true).open(folder.join(number.to_string())).expect("the lock of a port");
            let is_free = lock.try_lock().is_ok() && TcpListener::bind(("127.0.0.1", number)).is_ok();
            is_free.then_some(Self { number, _lock: lock })
        });
        free.expect("a port is free")
    }

    /// The address of a node that listens on it.
    pub(crate) fn address(&self) -> String {
        format!("/ip4/127.0.0.1/tcp/{}", self.number)
    }
}
