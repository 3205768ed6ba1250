//! The live view of a task whose node runs in this process: the same account, without a connection that could break.

use futures::{StreamExt as _, TryStreamExt as _};

use super::{
    super::{CliError, Global, feed::News},
    wait::{Show, ended},
};
use crate::{model::TaskId, node::Handle};

/// Shows a task until it has ended, where a person sees it.
pub(in crate::cli) async fn watch(handle: &Handle, task: TaskId, global: &Global) -> Result<(), CliError> {
    let events = handle.task_events(task, None).await?;
    let feed = events.map_ok(|event| News::Event(event.data)).map_err(CliError::from).boxed();
    let ask = || async { handle.task(task, false).await.map_err(CliError::from) };
    ended(feed, ask, global, &task.to_string(), Show::fitting(false, global)).await
}
