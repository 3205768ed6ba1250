//! A streamed answer on its way to the client: chunks are handed on as they come, and a pause that is too long ends the call.

use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use super::invoke::InvokeRequest;
use super::own_side::OwnSide;
use crate::model::{ErrorCode, Failure};
use crate::proto::invocation::call::AttemptFailure;
use crate::proto::invocation::evidence::Reader;
use crate::wire::invocation::Success;

/// How long a client waits for what.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    first: Option<Duration>,
    idle: Option<Duration>,
    deadline: Instant,
}

impl Patience {
    pub(super) fn new(request: &InvokeRequest, deadline: Instant) -> Self {
        Self { first: request.first_chunk, idle: request.idle, deadline }
    }
}

/// Waits for `call` and hands the chunks of its answer on to `client`, each before the end that follows it. Says what its reader saw
/// and did. A client that takes nothing holds up the agent, not this node's memory. Its patience also runs while the call is held up on its
/// `own` side, but then it is not the agent that keeps it waiting.
pub(super) async fn pass_on(
    call: impl Future<Output = Result<Success, AttemptFailure>>,
    mut chunks: mpsc::Receiver<Bytes>,
    client: &mpsc::Sender<Bytes>,
    patience: Patience,
    own: &OwnSide,
) -> (Result<Success, AttemptFailure>, Reader) {
    let mut call = std::pin::pin!(call);
    let mut ended = None;
    let mut reader = Reader::default();
    loop {
        let pause = if reader.streamed { patience.idle } else { patience.first };
        let (until, own_before) = (pause.map(|pause| Instant::now() + pause), own.total());
        let chunk = tokio::select! {
            biased;
            chunk = chunks.recv() => chunk,
            end = &mut call, if ended.is_none() => {
                ended = Some(end);
                continue;
            }
            () = sleep_until(until.unwrap_or(patience.deadline)), if ended.is_none() && until.is_some() => {
                let what = if reader.streamed { "the next chunk of the answer" } else { "the first chunk of the answer" };
                let waited_ms = u64::try_from(pause.unwrap_or_default().as_millis()).unwrap_or(u64::MAX);
                let failure = Failure::new(ErrorCode::Timeout, format!("{what} did not come within {waited_ms} ms"));
                let own = own.total().saturating_sub(own_before);
                reader.silence = pause.map(|pause| pause.saturating_sub(own));
                return (Err(AttemptFailure { failure: failure.with("timeout_ms", waited_ms), begun: true }), reader);
            }
        };
        let Some(chunk) = chunk else { break };
        reader.streamed = true;
        let since = Instant::now();
        let mut sending = std::pin::pin!(client.send(chunk));
        loop {
            tokio::select! {
                biased;
                // A client that has gone misses nothing.
                _ = &mut sending => break,
                // A large output may come meanwhile, which its sender does not keep for ever.
                end = &mut call, if ended.is_none() => ended = Some(end),
                () = sleep_until(patience.deadline) => {
                    let failure = Failure::new(ErrorCode::Timeout, "the client did not take the answer before the deadline");
                    reader.held += since.elapsed();
                    return (Err(AttemptFailure { failure, begun: true }), reader);
                }
            }
        }
        reader.held += since.elapsed();
    }
    let end = match ended {
        Some(end) => end,
        None => call.await,
    };
    (end, reader)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// T16: whoever waited knows for how long, and so does whoever was waited for.
    #[tokio::test(start_paused = true)]
    async fn it_is_told_who_waited_for_whom() {
        let patience = Patience { first: Some(SECOND * 3), idle: Some(SECOND * 2), deadline: Instant::now() + SECOND * 60 };
        let own = OwnSide::default();
        let silent = || std::future::pending::<Result<Success, AttemptFailure>>();

        let (_keep, chunks) = mpsc::channel(1);
        let (client, _takes) = mpsc::channel(1);
        let (end, reader) = pass_on(silent(), chunks, &client, patience, &own).await;
        assert_eq!(end.expect_err("nothing came").failure.code, ErrorCode::Timeout);
        assert_eq!(reader, Reader { silence: Some(SECOND * 3), ..Reader::default() });

        let (_keep, chunks) = mpsc::channel(1);
        let (client, _takes) = mpsc::channel(1);
        let queued = async {
            own.holds_up(tokio::time::sleep(SECOND * 2)).await;
            silent().await
        };
        let (end, reader) = pass_on(queued, chunks, &client, patience, &own).await;
        assert_eq!(end.expect_err("nothing came").failure.details["timeout_ms"], 3_000, "so long did the client wait");
        assert_eq!(reader, Reader { silence: Some(SECOND), ..Reader::default() }, "and so long of it for the agent");

        let (agent, chunks) = mpsc::channel(2);
        let (client, mut takes) = mpsc::channel(1);
        let slow = async {
            for chunk in 0..2 {
                agent.send(Bytes::from(format!("{chunk}"))).await.expect("it is read");
            }
            tokio::time::sleep(SECOND * 5).await;
            takes.recv().await.expect("the first chunk");
            // The second has been taken from the agent, and this end of the client stays open.
            std::future::pending::<()>().await
        };
        let (end, reader) = tokio::select! {
            told = pass_on(silent(), chunks, &client, patience, &own) => told,
            () = slow => panic!("it does not end"),
        };
        assert_eq!(end.expect_err("nothing more came").failure.code, ErrorCode::Timeout);
        assert_eq!(reader, Reader { streamed: true, held: SECOND * 5, silence: Some(SECOND * 2), ..Reader::default() });
    }
}
