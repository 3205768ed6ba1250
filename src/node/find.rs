//! Queries: the directory first, then the DHT and the providers it names.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use super::shared::{Command, Shared};
use crate::model::{ErrorCode, Failure};
use crate::proto::directory::rank::Answer;
use crate::wire::directory::Query;

/// How long a query may look further than the directory.
pub(super) const SEARCH_MAX: Duration = Duration::from_millis(2_000);

/// Answers a query. `enough` candidates in the directory answer it at once.
pub(super) async fn find(shared: &Arc<Shared>, query: Query, enough: usize) -> Result<Answer, Failure> {
    let (reply, answer) = oneshot::channel();
    let asked = shared.commands.try_send(Command::Find { query, enough, reply });
    asked.map_err(|_| Failure::new(ErrorCode::Busy, "this node is too busy to answer queries").with("retry_after_ms", 100))?;
    answer.await.map_err(|_| Failure::new(ErrorCode::Unavailable, "this node is stopping"))
}
