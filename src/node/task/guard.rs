//! Work of tasks that panics: a fault of this node, of which the task is told, so that it does not wait for an end that never comes.

use std::panic::AssertUnwindSafe;

use futures::FutureExt as _;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use super::step::Report;
use crate::model::{ErrorCode, Failure, TaskId};
use crate::proto::task::machine::Input;

/// Begins such work; dropping the handle takes it back.
pub(super) fn spawn(
    work: impl Future<Output = ()> + Send + 'static,
    reports: &mpsc::Sender<Report>,
    task: TaskId,
    told: impl FnOnce(Failure) -> Input + Send + 'static,
) -> AbortOnDropHandle<()> {
    AbortOnDropHandle::new(tokio::spawn(guarded(work, reports.clone(), task, told)))
}

/// Begins work that comes to one thing that the task is told.
pub(super) fn report(
    work: impl Future<Output = Input> + Send + 'static,
    reports: &mpsc::Sender<Report>,
    task: TaskId,
    told: impl FnOnce(Failure) -> Input + Send + 'static,
) -> AbortOnDropHandle<()> {
    let inbox = reports.clone();
    let work = async move {
        let input = work.await;
        let _ = inbox.send(Report { task, input, output: None }).await;
    };
    spawn(work, reports, task, told)
}

/// Does `work`, which reports by itself how it ends; if it panics, what `told` makes of that is reported. Nobody looks at what it worked on
/// after that, so it does not matter in which state that is.
async fn guarded(
    work: impl Future<Output = ()> + Send,
    reports: mpsc::Sender<Report>,
    task: TaskId,
    told: impl FnOnce(Failure) -> Input + Send,
) {
    if AssertUnwindSafe(work).catch_unwind().await.is_err() {
        tracing::error!(%task, "work on a task broke off; what the node wrote on its standard error says where");
        let failure = Failure::new(ErrorCode::Internal, "the work broke off, which is a fault of this node").retryable(false);
        let failure = failure.with("suggestion", "report it with what the node wrote on its standard error");
        // The book outlives what works for it; if it is gone, so is the node.
        let _ = reports.send(Report { task, input: told(failure), output: None }).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_task_is_told_of_work_that_panics() {
        let (reports, mut inbox) = mpsc::channel(1);
        let task = TaskId::from_random(7);
        guarded(async { assert!(task == TaskId::from_random(8), "a fault") }, reports.clone(), task, |failure| Input::Broken(3, failure))
            .await;
        let report = inbox.recv().await.expect("a report");
        assert_eq!(report.task, task);
        assert!(matches!(report.input, Input::Broken(3, failure) if failure.code == ErrorCode::Internal && !failure.retryable));
        guarded(async {}, reports, task, Input::Unplanned).await;
        assert!(inbox.recv().await.is_none(), "what ends well has nothing to tell");
    }
}
