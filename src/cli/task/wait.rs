//! Waiting for the end of a task, and what is told meanwhile.
//!
//! On a terminal the wait is a live view, drawn from the status document: it is asked for whenever an event says that something changed,
//! so there is one account of a task's state and none is kept here. Elsewhere there is silence, or a line per event where that was
//! asked for. A wait that is broken off by a person or a clock says how to go on; the task goes on by itself.

use std::{future::pending, pin::Pin, time::Duration};

use futures::{Stream, StreamExt as _};
use serde_json::Value;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use super::{
    super::{
        CliError, Global,
        client::{Client, read},
        error::Exit,
        feed::{News, feed, patiently},
        figures::span,
    },
    document::Status,
    events,
    progress::Live,
    short,
};
use crate::model::{ErrorCode, Failure};

/// How often the live view is drawn.
const FRAME: Duration = Duration::from_millis(100);

/// The status is asked for at most this often, however many events come.
const REFRESH_MIN: Duration = Duration::from_millis(200);

/// And at least this often: costs and reasons to wait change without an event.
const REFRESH_MAX: Duration = Duration::from_secs(2);

/// How often the result of an ended task is asked for while the node does not answer; with the pauses of the feed about ten minutes.
const RESULT_ATTEMPTS_MAX: usize = 200;

/// How often the last look at an ended task is tried: the view is only a comfort.
const LOOKS_MAX: usize = 3;

/// What is told while a task runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Show {
    /// Nothing.
    Nothing,
    /// A line on stderr per event.
    Lines,
    /// The live view on stderr.
    Live,
}

impl Show {
    /// The live view where a person sees it; `asked` is whether something is to be told in any case.
    pub(super) fn fitting(asked: bool, global: &Global) -> Self {
        match (global.screen.err_is_terminal() && !global.json, asked) {
            (true, _) => Self::Live,
            (false, true) => Self::Lines,
            (false, false) => Self::Nothing,
        }
    }
}

/// Waits for the end of a task, unless `interrupt` or the timeout comes first; gives the result document.
pub(super) async fn for_result(
    client: &Client,
    global: &Global,
    id: &str,
    show: Show,
    timeout: Option<Duration>,
    interrupt: impl Future<Output = ()>,
) -> Result<Value, CliError> {
    let work = async {
        let ask = || async { client.get(&["aitp", "tasks", id], &[]).await };
        ended(feed(client, &["aitp", "tasks", id, "events"], &[], None), ask, global, id, show).await?;
        patiently(RESULT_ATTEMPTS_MAX, async || client.get(&["aitp", "tasks", id, "result"], &[]).await).await
    };
    let out_of_time = async {
        match timeout {
            Some(timeout) => sleep(timeout).await,
            None => pending().await,
        }
    };
    let name = short(id);
    let error = tokio::select! {
        answer = work => return answer,
        () = interrupt => CliError::from(Failure::new(ErrorCode::NotFinished, format!("interrupted; task {id} goes on"))),
        () = out_of_time => {
            let waited = span(timeout.map_or(0, |timeout| u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX)));
            CliError::timeout(format!("task {id} has not ended within {waited}; it goes on"))
        }
    };
    let hint = format!(
        "`meshwork task watch {name}` follows it, `meshwork task result {name} --wait` waits for its result, `meshwork task cancel {name}` ends it"
    );
    Err(error.hint(hint).with("task_id", id))
}

/// Waits until the task has ended, telling what `show` says. `feed` is what happens to it, `ask` gives its status document.
pub(super) async fn ended<A: Future<Output = Result<Value, CliError>>>(
    mut feed: impl Stream<Item = Result<News, CliError>> + Unpin,
    ask: impl Fn() -> A,
    global: &Global,
    id: &str,
    show: Show,
) -> Result<(), CliError> {
    let mut live = (show == Show::Live).then(|| Live::new(id, global));
    let mut tick = interval(FRAME);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut asked: Option<Pin<Box<A>>> = None;
    let mut asked_at = Instant::now();
    let mut stale = true;
    loop {
        let answer = async {
            match asked.as_mut() {
                Some(asked) => asked.await,
                None => pending().await,
            }
        };
        tokio::select! {
            news = feed.next() => match (news.transpose()?, &mut live) {
                (None, _) => break,
                (Some(News::Event(_)), Some(_)) => stale = true,
                (Some(News::Lost(why)), Some(live)) => live.lost(Some(why)),
                (Some(News::Back), Some(live)) => live.lost(None),
                (Some(news), None) if show == Show::Lines => global.screen.err(&line(&news)),
                (Some(_), None) => {}
            },
            answer = answer => {
                asked = None;
                // A question that was lost is asked again with the next refresh.
                if let (Some(live), Ok(answer)) = (&mut live, answer) {
                    live.update(read(&answer)?);
                }
            }
            _ = tick.tick(), if live.is_some() => {
                let wait = if stale { REFRESH_MIN } else { REFRESH_MAX };
                if asked.is_none() && (asked_at.elapsed() >= wait || live.as_ref().is_some_and(Live::is_empty)) {
                    (asked, asked_at, stale) = (Some(Box::pin(ask())), Instant::now(), false);
                }
                if let Some(live) = &mut live {
                    live.draw();
                }
            }
        }
    }
    if let Some(live) = &mut live {
        if let Ok(answer) = patiently(LOOKS_MAX, async || ask().await).await {
            live.update(read::<Status>(&answer)?);
        }
        live.end();
    }
    Ok(())
}

fn line(news: &News) -> String {
    match news {
        News::Event(event) => events::line(event) + "\n",
        News::Lost(why) => format!("{}; trying again\n", crate::model::printable(why, super::document::REASON_CHARS_MAX)),
        News::Back => "connected again\n".to_owned(),
    }
}

/// Says a failure on stderr and ends with `exit`: for verbs whose document on stdout stands although it is no good news.
pub(super) fn said(error: &CliError, exit: Exit, global: &Global) -> CliError {
    error.print(&global.screen, false);
    CliError::reported(exit)
}
