//! The events of a node, as `GET /v1/events` and a streamed answer send them.

use std::{collections::VecDeque, fmt, time::Duration};

use bytes::Bytes;
use futures::{StreamExt, stream::BoxStream};
use serde_json::Value;

use super::wait::{SETTLE, within};

/// An open stream of events.
pub(crate) struct Events {
    pieces: BoxStream<'static, reqwest::Result<Bytes>>,
    /// Whether the last piece ended in a carriage return, which a line feed may follow.
    returned: bool,
    unread: Vec<u8>,
    parsed: VecDeque<(String, Value)>,
    /// What broke the stream off, if anything did.
    broken: Option<reqwest::Error>,
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Events").field("parsed", &self.parsed).finish_non_exhaustive()
    }
}

impl Events {
    pub(super) fn new(response: reqwest::Response) -> Self {
        let pieces = response.bytes_stream().boxed();
        Self { pieces, returned: false, unread: Vec::new(), parsed: VecDeque::new(), broken: None }
    }

    /// Waits for an event of this name that `fits`; earlier ones are passed over.
    pub(crate) async fn wait_for(&mut self, name: &str, limit: Duration, fits: impl Fn(&Value) -> bool) -> Value {
        let waiting = async {
            let mut last = None;
            while let Some((found, data)) = self.read().await {
                if found == name && fits(&data) {
                    return data;
                }
                last = Some((found, data));
            }
            panic!("the stream ended before `{name}`; the last event was {last:?}, what broke it off {:?}", self.broken);
        };
        within(&format!("an event `{name}`"), limit, waiting).await
    }

    /// The next event, whatever its name; `None` once the stream has ended.
    pub(crate) async fn next(&mut self) -> Option<(String, Value)> {
        within("an event or the end of the stream", SETTLE, self.read()).await
    }

    /// The events from here to the end of the stream, each taken in time.
    pub(crate) async fn rest(&mut self) -> Vec<(String, Value)> {
        let mut rest = Vec::new();
        while let Some(event) = self.next().await {
            rest.push(event);
        }
        rest
    }

    async fn read(&mut self) -> Option<(String, Value)> {
        loop {
            if let Some(event) = self.parsed.pop_front() {
                return Some(event);
            }
            match self.pieces.next().await? {
                Ok(piece) => self.take(&piece),
                Err(error) => self.broken = Some(error),
            }
            self.parse();
        }
    }

    /// A line ends with a line feed, a carriage return, or both.
    fn take(&mut self, piece: &[u8]) {
        for byte in piece {
            let pair = std::mem::replace(&mut self.returned, *byte == b'\r') && *byte == b'\n';
            if !pair {
                self.unread.push(if *byte == b'\r' { b'\n' } else { *byte });
            }
        }
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
