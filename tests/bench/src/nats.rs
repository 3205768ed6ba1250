//! NATS: request and reply through a broker.
//!
//! Three processes: Debian's `nats-server` as it comes, a responder that answers each message with its own payload, a client that asks
//! with `async-nats`, which carries all calls of a process on one connection. Nothing is encrypted and nobody proves who they are; a
//! mesh that is both is compared with the fastest way to run NATS, not with the safest.

use anyhow::{Result, anyhow, ensure};
use bytes::Bytes;
use futures::StreamExt;

use crate::load::{Caller, Contender};

const SUBJECT: &str = "echo";

/// Answers until the connection ends.
pub(crate) async fn respond(address: &str, ready: impl FnOnce() -> Result<()>) -> Result<()> {
    let client = connect(address).await?;
    let mut questions = client.subscribe(SUBJECT).await.map_err(|error| anyhow!("subscribe: {error}"))?;
    // The broker knows of the subscription once it has answered what came after it.
    client.flush().await?;
    ready()?;
    while let Some(question) = questions.next().await {
        if let Some(reply) = question.reply {
            client.publish(reply, question.payload).await?;
        }
    }
    Ok(())
}

async fn connect(address: &str) -> Result<async_nats::Client> {
    Ok(async_nats::connect(address).await?)
}

/// A connection to the broker.
#[derive(Debug, Clone)]
pub(crate) struct Nats(async_nats::Client);

impl Nats {
    /// Connects, and waits until the responder answers.
    pub(crate) async fn connect(address: &str) -> Result<Self> {
        let client = connect(address).await?;
        let answer = client.request(SUBJECT, "\"x\"".into()).await?;
        ensure!(&*answer.payload == b"\"x\"", "the responder does not echo");
        Ok(Self(client))
    }
}

impl Contender for Nats {
    type Caller = Self;

    async fn caller(&self) -> Result<Self> {
        Ok(self.clone())
    }
}

impl Caller for Nats {
    async fn call(&mut self, payload: Bytes) -> Result<Bytes> {
        Ok(self.0.request(SUBJECT, payload).await?.payload)
    }
}
