//! The events of a node, as `GET /v1/events` sends them.

use std::{collections::VecDeque, fmt, time::Duration};

use futures::{StreamExt, stream::BoxStream};
use serde_json::Value;

use super::wait::within;

/// An open stream of events.
pub(crate) struct Events {
    pieces: BoxStream<'static, Vec<u8>>,
    unread: Vec<u8>,
    parsed: VecDeque<(String, Value)>,
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Events").field("parsed", &self.parsed).finish_non_exhaustive()
    }
}

impl Events {
    pub(super) fn new(response: reqwest::Response) -> Self {
        let pieces = response.bytes_stream().filter_map(async |piece| piece.ok().map(|piece| piece.to_vec()));
        Self { pieces: pieces.boxed(), unread: Vec::new(), parsed: VecDeque::new() }
    }

    /// Waits for an event of this name that `fits`; earlier ones are passed over.
    pub(crate) async fn wait_for(&mut self, name: &str, limit: Duration, fits: impl Fn(&Value) -> bool) -> Value {
        let waiting = async {
            loop {
                while let Some((found, data)) = self.parsed.pop_front() {
                    if found == name && fits(&data) {
                        return data;
                    }
                }
                let piece = self.pieces.next().await.unwrap_or_else(|| panic!("the stream ended before `{name}`"));
                self.unread.extend(piece.into_iter().filter(|byte| *byte != b'\r'));
                self.parse();
            }
        };
        within(&format!("an event `{name}`"), limit, waiting).await
    }

    /// An event ends with an empty line.
    fn parse(&mut self) {
        while let Some(end) = self.unread.windows(2).position(|pair| pair == b"\n\n") {
            let block: Vec<u8> = self.unread.drain(..end + 2).collect();
            let block = String::from_utf8(block).expect("events are UTF-8");
            let field = |name: &str| block.lines().filter_map(|line| line.strip_prefix(name)).map(str::trim_start).collect::<Vec<_>>();
            let data = field("data:").join("\n");
            // A block without data is a comment that keeps the connection alive.
            if !data.is_empty() {
                let data = serde_json::from_str(&data).unwrap_or_else(|error| panic!("an event's data is not JSON: {error}: {block}"));
                self.parsed.push_back((field("event:").concat(), data));
            }
        }
    }
}
