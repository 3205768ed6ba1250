//! The changes of one context as they came to this node, told again from any of them on, and then as they come.
//!
//! A context's file holds them in that order, so the number of an event is that of its statement there. Other nodes heard of them in
//! another order and number them otherwise. A stream holds a page of the file and no more, and reads the next when its client has taken that;
//! a client that is slow finds what it missed in the file. Whoever may not read any more is told so, and no more.

use serde_json::{Value, json};
use tokio::sync::broadcast;

use super::door::{lists, row};
use super::hot::Hot;
use crate::model::{ContextId, Failure, Principal};
use crate::node::handle::Handle;
use crate::node::view::{Event, EventStream, NumberedEvent};
use crate::store::{Kept, KeptKind};
use crate::wire::context::{Access, Genesis, Operation, Verified};

/// How often a stream looks again although nobody told of a change: a context ends without one.
const LOOK_PAUSE: std::time::Duration = std::time::Duration::from_secs(30);

/// A stream of events on its way.
struct Following {
    handle: Handle,
    context: ContextId,
    agent: Option<String>,
    changes: broadcast::Receiver<Event>,
    /// Where in the file it goes on, and the number of what stands there.
    from: u64,
    next: u64,
    /// How many entries the file had let go of then.
    dropped: u64,
    /// The first that is wanted.
    first: u64,
}

impl Handle {
    /// The events of a context after the one with this number, or all of them, and then those that come.
    ///
    /// # Errors
    /// `CONTEXT_NOT_FOUND`, `ACCESS_DENIED`.
    pub async fn context_events(&self, which: &str, after: Option<u64>, agent: Option<String>) -> Result<EventStream, Failure> {
        let context = self.shared.contexts.named(which)?;
        let first = after.map_or(0, |after| after.saturating_add(1));
        // What changes from here on is not missed between two looks at the file.
        let changes = self.shared.events.subscribe();
        let following = Following { handle: self.clone(), context, agent: agent.clone(), changes, from: 0, next: 0, dropped: 0, first };
        // Refuses before the stream begins.
        let may_read = move |hot: &mut Hot, handle: &Self| handle.reading(hot, agent.as_deref()).map(drop);
        self.on_worker(move |handle, now| handle.shared.contexts.with(&handle.shared, context, now, |hot| may_read(hot, handle))).await?;
        let batches = futures::stream::try_unfold(following, |following| async move {
            let batch = following.batch().await?;
            Ok::<_, Failure>(batch.map(|(events, following)| (futures::stream::iter(events.into_iter().map(Ok)), following)))
        });
        Ok(Box::pin(futures::TryStreamExt::try_flatten(batches)))
    }
}

impl Following {
    /// The next events, once there are any; `None` when the node stops.
    async fn batch(mut self) -> Result<Option<(Vec<NumberedEvent>, Self)>, Failure> {
        loop {
            let (events, is_end) = self.page().await?;
            if !events.is_empty() {
                return Ok(Some((events, self)));
            }
            if is_end && !self.changed().await {
                return Ok(None);
            }
        }
    }

    /// What is wanted of the next page of the file, and whether the file ends before it.
    async fn page(&mut self) -> Result<(Vec<NumberedEvent>, bool), Failure> {
        let (context, from, next, first, dropped, agent) =
            (self.context, self.from, self.next, self.first, self.dropped, self.agent.clone());
        let read = move |handle: &Handle, now| {
            handle.shared.contexts.with(&handle.shared, context, now, |hot| {
                let reader = handle.reading(hot, agent.as_deref())?.principal();
                // Where things stand has changed with what was let go of, and their numbers have not.
                let (from, mut next, first) = if hot.dropped() == dropped { (from, next, first) } else { (0, 0, first.max(next)) };
                let (page, end) = hot.page(from)?;
                let mut events = Vec::new();
                for kept in &page {
                    events.extend(event(hot, next, kept, reader).filter(|event| event.index >= first));
                    next = next.saturating_add(kept.count());
                }
                Ok((events, page.is_empty(), (end, next, first, hot.dropped())))
            })
        };
        let (events, is_end, place) = self.handle.on_worker(read).await?;
        (self.from, self.next, self.first, self.dropped) = place;
        Ok((events, is_end))
    }

    /// Waits until the context may have changed; false when the node stops.
    async fn changed(&mut self) -> bool {
        let id = json!(self.context);
        let look = tokio::time::sleep(LOOK_PAUSE);
        tokio::pin!(look);
        loop {
            tokio::select! {
                () = self.handle.shared.drain.cancelled() => return false,
                () = &mut look => return true,
                change = self.changes.recv() => match change {
                    Ok(Event::ContextUpdate(update)) if update["context"]["id"] == id => return true,
                    Ok(_) => {}
                    Err(broadcast::error::RecvError::Lagged(_)) => return true,
                    Err(broadcast::error::RecvError::Closed) => return false,
                },
            }
        }
    }
}

/// What a statement is to a client; nothing if it came to nothing.
fn event(hot: &Hot, index: u64, kept: &Kept, reader: Principal) -> Option<NumberedEvent> {
    let (name, mut data) = match kept.kind {
        KeptKind::Genesis => ("created", created(&Verified::kept(&kept.bytes).ok()?)),
        KeptKind::Access => ("access", access(&Verified::kept(&kept.bytes).ok()?)),
        KeptKind::Operation => {
            let operation: Verified<Operation> = Verified::kept(&kept.bytes).ok()?;
            hot.replica.operations().get(operation.id())?;
            ("operation", row(hot, &operation, reader))
        }
        KeptKind::Base | KeptKind::Dropped => return None,
    };
    data["index"] = json!(index);
    data["event"] = json!(name);
    Some(NumberedEvent { index, name, data })
}

fn created(genesis: &Verified<Genesis>) -> Value {
    json!({
        "owner": genesis.owner,
        "session_id": genesis.session_id,
        "at": genesis.created_at.to_string(),
        "parent_context": genesis.parent.as_ref().map(|parent| parent.context),
    })
}

fn access(access: &Verified<Access>) -> Value {
    json!({
        "epoch": access.epoch,
        "at": access.at.to_string(),
        "expires_at": access.expires_at.to_string(),
        "access_control": lists(access),
        "checkpoint": access.checkpoint.is_some(),
    })
}
