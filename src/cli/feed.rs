//! The events of one task or context, in order and each once, through broken connections and restarts of the node.
//!
//! The node numbers the events of each and replays them from any number on, so all that has to survive here is the number of the last one
//! seen. What can pass by itself (no connection, a node that has no place) is tried again for as long as somebody listens; only a
//! refusal that repeating cannot mend ends the feed with an error. It ends without one after `ended`, the last event of every task; a
//! context has no last one.

use std::time::Duration;

use eventsource_stream::{Event as Raw, Eventsource as _};
use futures::{Stream, StreamExt as _, stream};
use serde_json::Value;

use super::{CliError, client::Client, error::Exit};
use crate::model::ErrorCode;

/// The pause before the second try to connect; it doubles.
const PAUSE_MIN: Duration = Duration::from_millis(200);

/// The longest pause between tries: how long after a node's return it may take to be noticed.
const PAUSE_MAX: Duration = Duration::from_secs(3);

/// A stream that has been silent for so long is opened anew: the other side may be gone without a word, and asking again costs little.
const SILENCE_MAX: Duration = Duration::from_secs(45);

/// The event that ends every task.
const LAST: &str = "ended";

/// The event with which the node says why it breaks a stream off.
const BROKEN: &str = "error";

/// What comes out of a feed.
#[derive(Debug)]
pub(super) enum News {
    /// Something happened: the node's document.
    Event(Value),
    /// The connection is gone, for this reason; it is being tried again.
    Lost(String),
    /// It is back.
    Back,
}

/// The events at `path` of the node after number `after`, or all.
pub(super) fn feed(
    client: &Client,
    path: &[&str],
    query: &[(&str, &str)],
    after: Option<u64>,
) -> impl Stream<Item = Result<News, CliError>> + Unpin + use<> {
    let feed = Feed {
        client: client.clone(),
        path: path.iter().copied().map(str::to_owned).collect(),
        query: query.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
        cursor: after,
        raw: None,
        pause: Duration::ZERO,
        lost: false,
        over: false,
    };
    Box::pin(stream::try_unfold(feed, async |mut feed| Ok(feed.next().await?.map(|news| (news, feed)))))
}

type RawEvents = stream::BoxStream<'static, Option<Raw>>;

struct Feed {
    client: Client,
    path: Vec<String>,
    query: Vec<(String, String)>,
    /// The number of the last event that came out.
    cursor: Option<u64>,
    /// The open connection.
    raw: Option<RawEvents>,
    /// How long to wait before the next try to connect.
    pause: Duration,
    lost: bool,
    over: bool,
}

impl Feed {
    async fn next(&mut self) -> Result<Option<News>, CliError> {
        while !self.over {
            let Some(raw) = &mut self.raw else {
                tokio::time::sleep(self.pause).await;
                match self.connect().await {
                    Ok(raw) => self.raw = Some(raw),
                    Err(error) if may_pass(&error) => return Ok(Some(self.lose(error.message().unwrap_or_default()))),
                    Err(error) => return Err(error),
                }
                if std::mem::take(&mut self.lost) {
                    return Ok(Some(News::Back));
                }
                continue;
            };
            match tokio::time::timeout(SILENCE_MAX, raw.next()).await {
                // Asked again, the node refuses in a way that says whether it may pass.
                Ok(Some(Some(raw))) if raw.event == BROKEN => return Ok(Some(self.lose("the node broke the stream of events off"))),
                Ok(Some(Some(raw))) => {
                    self.pause = Duration::ZERO;
                    if let Some(event) = self.take(raw) {
                        return Ok(Some(News::Event(event)));
                    }
                }
                Ok(Some(None) | None) => return Ok(Some(self.lose("the stream of events broke off"))),
                Err(_) => self.raw = None,
            }
        }
        Ok(None)
    }

    async fn connect(&self) -> Result<RawEvents, CliError> {
        let after = self.cursor.map(|cursor| cursor.to_string());
        let path: Vec<&str> = self.path.iter().map(String::as_str).collect();
        let mut query: Vec<(&str, &str)> = self.query.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        query.extend(after.iter().map(|after| ("after", after.as_str())));
        let response = self.client.follow(&path, &query).await?;
        Ok(response.bytes_stream().eventsource().map(Result::ok).boxed())
    }

    /// The document of an event, unless it came out before.
    fn take(&mut self, raw: Raw) -> Option<Value> {
        let document = serde_json::from_str(&raw.data).unwrap_or(Value::String(raw.data));
        let index = raw.id.parse().ok().or_else(|| document.get("index").and_then(Value::as_u64));
        if index.is_some() && index <= self.cursor {
            return None;
        }
        self.cursor = index.or(self.cursor);
        self.over = raw.event == LAST || document.get("event").and_then(Value::as_str) == Some(LAST);
        Some(document)
    }

    fn lose(&mut self, why: &str) -> News {
        self.raw = None;
        self.lost = true;
        self.pause = (self.pause * 2).clamp(PAUSE_MIN, PAUSE_MAX);
        News::Lost(why.to_owned())
    }
}

/// Asks until an answer comes or a refusal that stays, with `attempts_max` tries at most.
pub(super) async fn patiently(attempts_max: usize, ask: impl AsyncFn() -> Result<Value, CliError>) -> Result<Value, CliError> {
    let mut pause = PAUSE_MIN;
    for _ in 1..attempts_max {
        match ask().await {
            Err(error) if is_lost(&error) => tokio::time::sleep(pause).await,
            answer => return answer,
        }
        pause = (pause * 2).min(PAUSE_MAX);
    }
    ask().await
}

/// Whether there was no answer at all.
fn is_lost(error: &CliError) -> bool {
    matches!(error.exit(), Exit::Unreachable | Exit::Timeout)
}

/// Whether the same request may be answered later.
fn may_pass(error: &CliError) -> bool {
    let busy = [ErrorCode::Unavailable, ErrorCode::Busy, ErrorCode::RateLimitExceeded, ErrorCode::InsufficientResources];
    is_lost(error) || busy.into_iter().any(|code| error.is(code))
}
