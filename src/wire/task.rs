//! Entries of the journal: what happened to tasks, one event each (design/tasks.md, "Ownership").
//!
//! A task is the fold of its events, so an entry is a promise to every later release: fields are numbered, a number is never given a second
//! meaning, and a field that is not known is passed over. An *event* that is not known must not be passed over, since what it changed
//! would be missing: [`Entry::decode`] then fails, [`Entry::task_of`] still tells whose it was, and that task alone is stopped.
//!
//! Entries name the node and the epoch that own the task, because a journal may one day be kept by other nodes as well. Texts are JSON as
//! they came; one over [`TEXT_BYTES_MAX`] is kept beside the journal and named by its hash.

use std::time::Duration;

use bytes::Bytes;
use minicbor::{Decode, Encode};
use rust_decimal::Decimal;

use super::invocation::Hop;
use super::kept::Subject;
use super::{Error, malformed};
use crate::model::{AgentId, Currency, NodeId, TaskId, Timestamp};

/// The largest text that stands in an entry itself.
pub const TEXT_BYTES_MAX: usize = 64 * 1024;
/// The largest entry: texts of a few fields, each of at most [`TEXT_BYTES_MAX`].
pub const ENTRY_BYTES_MAX: usize = 256 * 1024;

const KIND: &str = "journal entry";

/// One line of the journal.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
#[cbor(map)]
pub struct Entry {
    /// The node that owns the task.
    #[cbor(n(0), with = "kept_as_node")]
    pub home: NodeId,
    /// How often the task has changed its owner.
    #[n(1)]
    pub epoch: u64,
    /// The task.
    #[cbor(n(2), with = "task")]
    pub task: TaskId,
    /// When it happened, by the owner's clock.
    #[cbor(n(3), with = "kept_as_timestamp")]
    pub at: Timestamp,
    /// What happened.
    #[n(4)]
    pub event: Event,
    /// How many events the task had before this one, so that one that is missing is noticed.
    #[n(5)]
    pub number: u64,
}

/// A text that may be too large for the journal.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum Text {
    /// JSON text of at most [`TEXT_BYTES_MAX`].
    #[n(0)]
    Inline(#[cbor(n(0), with = "text")] Bytes),
    /// A file beside the journal.
    #[n(1)]
    Blob {
        /// BLAKE3 of its bytes.
        #[cbor(n(0), with = "minicbor::bytes")]
        hash: [u8; 32],
        /// How many there are.
        #[n(1)]
        length_bytes: u64,
    },
}

impl Text {
    /// How many bytes it has.
    pub fn len(&self) -> u64 {
        match self {
            Self::Inline(bytes) => u64::try_from(bytes.len()).unwrap_or(u64::MAX),
            Self::Blob { length_bytes, .. } => *length_bytes,
        }
    }

    /// Whether there is no byte, which is never JSON.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// What an attempt costs, as it is billed.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Charge {
    /// Units that the agent says it took.
    #[cbor(n(0), with = "decimal")]
    pub units: Decimal,
    /// What is counted.
    #[n(1)]
    pub unit: String,
    /// The price of one.
    #[cbor(n(2), with = "decimal")]
    pub price: Decimal,
    /// In which currency.
    #[cbor(n(3), with = "currency")]
    pub currency: Currency,
    /// All of it.
    #[cbor(n(4), with = "decimal")]
    pub total: Decimal,
}

/// What somebody is billed for who did no subtask.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Bill {
    /// Who.
    #[cbor(n(0), with = "kept_as_agent")]
    pub agent: AgentId,
    /// What.
    #[n(1)]
    pub charge: Charge,
}

/// Which attempt of which subtask. Attempts count from 1 and are never reused: with home and epoch they are the fence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
#[cbor(map)]
pub struct Fence {
    /// The subtask, by its place in the definition.
    #[n(0)]
    pub subtask: u32,
    /// The attempt.
    #[n(1)]
    pub attempt: u32,
}

/// How an attempt that had begun was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(index_only)]
pub enum Loss {
    /// The agent said that it failed.
    #[n(0)]
    AgentError,
    /// The agent or its node is gone.
    #[n(1)]
    AgentLost,
    /// It took longer than an attempt may.
    #[n(2)]
    AttemptTimeout,
    /// What it answered does not match its schema.
    #[n(3)]
    InvalidOutput,
}

/// Why a task or subtask failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
#[cbor(index_only)]
pub enum Reason {
    /// The deadline passed.
    #[n(0)]
    Deadline,
    /// Nobody could do it.
    #[n(1)]
    NoCapability,
    /// The budget does not cover it.
    #[n(2)]
    Cost,
    /// Somebody cancelled it.
    #[n(3)]
    Cancelled,
    /// A subtask that it needs failed.
    #[n(4)]
    UpstreamFailed,
    /// Every attempt failed.
    #[n(5)]
    RetriesExhausted,
    /// It failed in a way that another attempt cannot mend.
    #[n(6)]
    NonRetryable,
    /// It may have been done or not, and must not be done twice.
    #[n(7)]
    UnknownOutcome,
    /// The result does not match the task's schema.
    #[n(8)]
    InvalidOutput,
    /// A task that it depends on failed.
    #[n(9)]
    DependencyFailed,
    /// An expression of its input has no value.
    #[n(10)]
    InvalidInput,
    /// No plan leads to the goal.
    #[n(11)]
    NoPlan,
    /// The journal holds something about it that this node cannot read.
    #[n(12)]
    Unreadable,
}

/// How a task ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(index_only)]
pub enum Outcome {
    /// All of it was done.
    #[n(0)]
    Success,
    /// Some of it was done, and its author asked for that much.
    #[n(1)]
    Partial,
    /// It was not done.
    #[n(2)]
    Failed,
    /// Somebody cancelled it.
    #[n(3)]
    Cancelled,
}

/// What happened to a task. Failures are JSON texts of a [`Failure`](crate::model::Failure).
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
pub enum Event {
    /// Somebody asked for it.
    #[n(0)]
    Submitted(#[n(0)] Submitted),
    /// A goal was decomposed.
    #[n(1)]
    Planned {
        /// The subtasks as JSON, in the shape of a definition.
        #[n(0)]
        subtasks: Text,
        /// How: by an agent or by schemas.
        #[n(1)]
        by: String,
        /// What the agent is paid for it, if it has a price.
        #[n(2)]
        bill: Option<Bill>,
    },
    /// An agent was chosen, and its cost reserved; the call may go out once this is kept.
    #[n(2)]
    Dispatched(#[n(0)] Dispatched),
    /// The agent took it.
    #[n(3)]
    Accepted(#[n(0)] Fence),
    /// The agent did not take it, or not in time; it has not begun.
    #[n(4)]
    Rejected {
        /// The attempt.
        #[n(0)]
        fence: Fence,
        /// Whether it only did not answer in time.
        #[n(1)]
        expired: bool,
        /// Why.
        #[n(2)]
        failure: Text,
    },
    /// The agent finished.
    #[n(5)]
    ResultReceived {
        /// The attempt.
        #[n(0)]
        fence: Fence,
        /// The output, mapped.
        #[n(1)]
        output: Text,
        /// What it costs, if the capability has a price.
        #[n(2)]
        charge: Option<Charge>,
        /// What is to be written to the task's context before anything goes on, as JSON text; entries of older releases say nothing.
        #[n(3)]
        context_ops: Option<Text>,
    },
    /// The output matches its schema: the subtask is done.
    #[n(6)]
    Validated(#[n(0)] Fence),
    /// The attempt failed after it had begun.
    #[n(7)]
    AttemptFailed {
        /// The attempt.
        #[n(0)]
        fence: Fence,
        /// How.
        #[n(1)]
        loss: Loss,
        /// Why.
        #[n(2)]
        failure: Text,
        /// After which pause it is repeated; not at all without one.
        #[cbor(n(3), with = "pause")]
        retry_in: Option<Duration>,
        /// What it costs all the same, as far as anybody said; entries of older releases say nothing.
        #[n(4)]
        charge: Option<Charge>,
    },
    /// The home node came back and did not know how the attempt ended: it is made anew under the same key.
    #[n(8)]
    Requeued(#[n(0)] Fence),
    /// Nobody can do it now.
    #[n(9)]
    Deferred {
        /// The subtask.
        #[n(0)]
        subtask: u32,
        /// For how long.
        #[cbor(n(1), with = "span")]
        span: Duration,
        /// Why.
        #[n(2)]
        failure: Text,
    },
    /// The subtask is given up.
    #[n(10)]
    SubtaskFailed {
        /// The subtask.
        #[n(0)]
        subtask: u32,
        /// Why, as a word.
        #[n(1)]
        reason: Reason,
        /// Why.
        #[n(2)]
        failure: Text,
    },
    /// An attempt that was given up ended well after all, while its task went on. Its output is not used, and it is billed.
    #[n(11)]
    DuplicateResult {
        /// The attempt.
        #[n(0)]
        fence: Fence,
        /// What it costs.
        #[n(1)]
        charge: Option<Charge>,
    },
    /// Somebody asked for it to be cancelled.
    #[n(12)]
    CancelRequested,
    /// It is over, and its accounts are closed; nothing follows but [`Event::CalledBack`].
    #[n(13)]
    Ended {
        /// How.
        #[n(0)]
        outcome: Outcome,
        /// Why, as a word.
        #[n(1)]
        reason: Option<Reason>,
        /// Why.
        #[n(2)]
        failure: Option<Text>,
    },
    /// The agent runs the subtask as a task of its own node.
    #[n(14)]
    Delegated {
        /// The attempt.
        #[n(0)]
        fence: Fence,
        /// The task there.
        #[cbor(n(1), with = "task")]
        task: TaskId,
        /// The node whose task it is.
        #[cbor(n(2), with = "kept_as_node")]
        node: NodeId,
    },
    /// Its author has been told of its end, or that was given up. Follows the end.
    #[n(15)]
    CalledBack {
        /// Whether the word was taken.
        #[n(0)]
        delivered: bool,
    },
    /// What the result brought for the task's context is written there.
    #[n(16)]
    ContextWritten(#[n(0)] Fence),
}

/// What somebody asked for.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
#[cbor(map)]
pub struct Submitted {
    /// The definition as JSON, as it came.
    #[n(0)]
    pub document: Text,
    /// The client's word for it: a second submission under it is this one.
    #[n(1)]
    pub key: Option<String>,
    /// BLAKE3 of what a second submission under the key must be.
    #[cbor(n(2), with = "minicbor::bytes")]
    pub identity: [u8; 32],
    /// Whose work it is a part of, if a call brought it.
    #[n(3)]
    pub parent: Option<Box<Parent>>,
}

/// What a delegated task has from the call that brought it (AMP 3, "Task Delegation").
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
#[cbor(map)]
pub struct Parent {
    /// The node that called.
    #[cbor(n(0), with = "kept_as_node")]
    pub home: NodeId,
    /// The task there that it is a part of, as the caller says.
    #[cbor(n(1), with = "maybe_task")]
    pub task: Option<TaskId>,
    /// Its place there, as the caller says.
    #[n(2)]
    pub subtask: Option<String>,
    /// The calls that led to it, the outermost first; at most as many as a call may have.
    #[cbor(n(3), with = "hops")]
    pub hops: Vec<Hop>,
    /// When the call is over.
    #[cbor(n(4), with = "kept_as_timestamp")]
    pub deadline: Timestamp,
    /// What it may spend.
    #[n(5)]
    pub budget: Option<Share>,
}

/// A part of a budget.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Share {
    /// How much.
    #[cbor(n(0), with = "decimal")]
    pub amount: Decimal,
    /// In which currency.
    #[cbor(n(1), with = "currency")]
    pub currency: Currency,
}

/// An agent was chosen.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
#[cbor(map)]
pub struct Dispatched {
    /// The attempt.
    #[n(0)]
    pub fence: Fence,
    /// Whom it is given to.
    #[cbor(n(1), with = "kept_as_agent")]
    pub agent: AgentId,
    /// What that agent is called.
    #[n(2)]
    pub name: String,
    /// Where it is.
    #[cbor(n(3), with = "kept_as_node")]
    pub node: NodeId,
    /// What it will probably cost.
    #[cbor(n(4), with = "cost")]
    pub estimate: Option<Decimal>,
    /// How the choice came about, as JSON text.
    #[cbor(n(5), with = "text")]
    pub explain: Bytes,
}

impl Event {
    /// What clients call it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Submitted(_) => "submitted",
            Self::Planned { .. } => "planned",
            Self::Dispatched(_) => "dispatched",
            Self::Accepted(_) => "accepted",
            Self::Rejected { .. } => "rejected",
            Self::ResultReceived { .. } => "result_received",
            Self::Validated(_) => "validated",
            Self::AttemptFailed { loss: Loss::InvalidOutput, .. } => "invalid_output",
            Self::AttemptFailed { .. } => "attempt_failed",
            Self::Requeued(_) => "requeued",
            Self::Deferred { .. } => "deferred",
            Self::SubtaskFailed { .. } => "subtask_failed",
            Self::DuplicateResult { .. } => "duplicate_result",
            Self::CancelRequested => "cancel_requested",
            Self::Ended { .. } => "ended",
            Self::Delegated { .. } => "delegated",
            Self::CalledBack { .. } => "called_back",
            Self::ContextWritten(_) => "context_written",
        }
    }
}

impl Entry {
    /// The entry as bytes.
    pub fn encode(&self) -> Bytes {
        Subject::Task.encode(self)
    }

    /// The entry in `bytes`, which must hold that and nothing else.
    ///
    /// # Errors
    /// [`Error::Oversize`] or [`Error::Malformed`]: another release wrote it, or a disk changed it.
    pub fn decode(bytes: &[u8]) -> Result<Self, Error> {
        let body = Subject::Task.body(bytes)?;
        let mut decoder = minicbor::Decoder::new(body);
        let entry = decoder.decode().map_err(|error| malformed(KIND, &error))?;
        if decoder.position() == body.len() { Ok(entry) } else { Err(malformed(KIND, &"bytes after the end")) }
    }

    /// Whose entry it is, where the rest cannot be read.
    pub fn task_of(bytes: &[u8]) -> Option<TaskId> {
        #[derive(Decode)]
        #[cbor(map)]
        struct Head {
            #[cbor(n(2), with = "task")]
            task: TaskId,
        }
        minicbor::decode::<Head>(Subject::Task.body(bytes).ok()?).ok().map(|head| head.task)
    }
}

/// Makes the pair of functions that `minicbor` wants for a type that is not its own.
macro_rules! kept_as {
    ($module:ident, $type:ty, $to:expr, $raw:ty, $from:expr) => {
        pub(in crate::wire) mod $module {
            use minicbor::decode::Error as DecodeError;
            use minicbor::encode::{Error as EncodeError, Write};
            use minicbor::{Decoder, Encoder};

            use super::*;

            pub(in crate::wire) fn encode<C, W: Write>(
                value: &$type,
                encoder: &mut Encoder<W>,
                context: &mut C,
            ) -> Result<(), EncodeError<W::Error>> {
                let to: fn(&$type) -> $raw = $to;
                encoder.encode_with(to(value), context).map(drop)
            }

            pub(in crate::wire) fn decode<'b, C>(decoder: &mut Decoder<'b>, context: &mut C) -> Result<$type, DecodeError> {
                let from: fn($raw) -> Option<$type> = $from;
                let raw: $raw = decoder.decode_with(context)?;
                from(raw).ok_or_else(|| DecodeError::message(concat!("not a ", stringify!($module))))
            }
        }
    };
}

use minicbor::bytes::{ByteArray, ByteVec};

kept_as!(task, TaskId, |id| ByteArray::from(id.to_bytes()), ByteArray<16>, |raw| Some(TaskId::from_bytes(raw.into())));
kept_as!(maybe_task, Option<TaskId>, |id| id.map(|id| ByteArray::from(id.to_bytes())), Option<ByteArray<16>>, |raw| {
    Some(raw.map(|raw| TaskId::from_bytes(raw.into())))
});
kept_as!(kept_as_agent, AgentId, |id| ByteArray::from(id.public_key()), ByteArray<32>, |raw| Some(AgentId::from_public_key(raw.into())));
kept_as!(kept_as_node, NodeId, |id| ByteVec::from(id.peer_id().to_bytes()), ByteVec, |raw| {
    libp2p_identity::PeerId::from_bytes(&raw).ok().map(NodeId::from)
});
kept_as!(kept_as_timestamp, Timestamp, |at| at.as_ms(), u64, |ms| Some(Timestamp::from_ms(ms)));
kept_as!(
    hops,
    Vec<Hop>,
    |hops| hops.iter().map(|hop| (ByteVec::from(hop.node.peer_id().to_bytes()), ByteArray::from(hop.agent.public_key()))).collect(),
    Vec<(ByteVec, ByteArray<32>)>,
    |raw| raw
        .into_iter()
        .map(|(node, agent)| {
            let node = libp2p_identity::PeerId::from_bytes(&node).ok()?;
            Some(Hop { node: node.into(), agent: AgentId::from_public_key(agent.into()) })
        })
        .collect()
);
kept_as!(decimal, Decimal, |number| number.to_string(), String, |text| text.parse().ok());
kept_as!(currency, Currency, |currency| currency.to_string(), String, |text| text.parse().ok());
kept_as!(span, Duration, |span| u64::try_from(span.as_millis()).unwrap_or(u64::MAX), u64, |ms| Some(Duration::from_millis(ms)));
kept_as!(pause, Option<Duration>, |span| span.map(|span| u64::try_from(span.as_millis()).unwrap_or(u64::MAX)), Option<u64>, |ms| {
    Some(ms.map(Duration::from_millis))
});
kept_as!(cost, Option<Decimal>, |number| number.map(|number| number.to_string()), Option<String>, |text| match text {
    Some(text) => text.parse().ok().map(Some),
    None => Some(None),
});

mod text {
    use bytes::Bytes;
    use minicbor::decode::Error as DecodeError;
    use minicbor::encode::{Error as EncodeError, Write};
    use minicbor::{Decoder, Encoder};

    pub(super) fn encode<C, W: Write>(value: &Bytes, encoder: &mut Encoder<W>, _: &mut C) -> Result<(), EncodeError<W::Error>> {
        encoder.bytes(value).map(drop)
    }

    pub(super) fn decode<'b, C>(decoder: &mut Decoder<'b>, _: &mut C) -> Result<Bytes, DecodeError> {
        decoder.bytes().map(Bytes::copy_from_slice)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(event: Event) -> Entry {
        let home = libp2p_identity::PeerId::from_bytes(&[0, 1, 7]).expect("a short identity hash");
        Entry { home: home.into(), epoch: 1, task: TaskId::from_random(7), at: Timestamp::from_ms(1_700_000_000_000), event, number: 5 }
    }

    fn inline(text: &'static str) -> Text {
        Text::Inline(Bytes::from_static(text.as_bytes()))
    }

    fn all() -> Vec<Event> {
        let fence = Fence { subtask: 3, attempt: 2 };
        let home = entry(Event::CancelRequested).home;
        let charge = Charge {
            units: "5000".parse().expect("a number"),
            unit: "token".to_owned(),
            price: "0.00001".parse().expect("a number"),
            currency: "USD".parse().expect("a currency"),
            total: "0.05000".parse().expect("a number"),
        };
        let agent = AgentId::from_public_key([9; 32]);
        vec![
            Event::Submitted(Submitted { document: inline("{}"), key: Some("k".to_owned()), identity: [1; 32], parent: None }),
            Event::Submitted(Submitted {
                document: inline("{}"),
                key: None,
                identity: [1; 32],
                parent: Some(Box::new(Parent {
                    home,
                    task: Some(TaskId::from_random(8)),
                    subtask: Some("s".to_owned()),
                    hops: vec![Hop { node: home, agent }; 2],
                    deadline: Timestamp::from_ms(1_700_000_001_000),
                    budget: Some(Share { amount: charge.total, currency: charge.currency }),
                })),
            }),
            Event::Planned { subtasks: Text::Blob { hash: [2; 32], length_bytes: 100_000 }, by: "schemas".to_owned(), bill: None },
            Event::Dispatched(Dispatched {
                fence,
                agent,
                name: "a".to_owned(),
                node: home,
                estimate: Some(charge.total),
                explain: Bytes::from_static(b"{}"),
            }),
            Event::Accepted(fence),
            Event::Rejected { fence, expired: true, failure: inline("{}") },
            Event::ResultReceived { fence, output: inline("1"), charge: Some(charge.clone()), context_ops: None },
            Event::ResultReceived { fence, output: inline("1"), charge: None, context_ops: Some(inline("[]")) },
            Event::ContextWritten(fence),
            Event::Validated(fence),
            Event::AttemptFailed {
                fence,
                loss: Loss::AgentLost,
                failure: inline("{}"),
                retry_in: Some(Duration::from_secs(1)),
                charge: Some(charge.clone()),
            },
            Event::Requeued(fence),
            Event::Deferred { subtask: 3, span: Duration::from_secs(300), failure: inline("{}") },
            Event::SubtaskFailed { subtask: 3, reason: Reason::Cost, failure: inline("{}") },
            Event::DuplicateResult { fence, charge: Some(charge) },
            Event::CancelRequested,
            Event::Ended { outcome: Outcome::Failed, reason: Some(Reason::Cost), failure: None },
            Event::Delegated { fence, task: TaskId::from_random(8), node: home },
            Event::CalledBack { delivered: true },
        ]
    }

    /// AITP-12: what happened is read again as it was written, to the last digit of a price.
    #[test]
    fn every_event_survives_writing_and_reading() {
        for event in all() {
            let entry = entry(event);
            assert_eq!(Entry::decode(&entry.encode()), Ok(entry));
        }
    }

    /// AITP-12: an entry that a release wrote which did not bill failed attempts.
    #[test]
    fn an_entry_without_a_field_that_came_later_is_still_read() {
        #[derive(Encode)]
        struct Older(#[n(0)] Fence, #[n(1)] Loss, #[n(2)] Text, #[n(3)] Option<u64>);
        let (fence, loss, failure) = (Fence { subtask: 3, attempt: 2 }, Loss::InvalidOutput, inline("{}"));
        let older = minicbor::to_vec(Older(fence, loss, failure.clone(), Some(1_000))).expect("bytes");
        let known = entry(Event::AttemptFailed { fence, loss, failure, retry_in: Some(Duration::from_secs(1)), charge: None });
        let mut bytes = entry(Event::CancelRequested).encode().to_vec();
        // The event is the number of its kind and its fields; of the one that it replaces both are a byte.
        let place = bytes.len() - 4;
        assert_eq!(bytes.get(place..place + 2), Some([12, 0x80].as_slice()));
        bytes.splice(place..place + 2, [7].into_iter().chain(older));
        assert_eq!(Entry::decode(&bytes), Ok(known));
    }

    /// AITP-12: an entry that a release wrote whose steps had no context.
    #[test]
    fn a_result_without_a_context_is_still_read() {
        #[derive(Encode)]
        struct Older(#[n(0)] Fence, #[n(1)] Text, #[n(2)] Option<u64>);
        let (fence, output) = (Fence { subtask: 3, attempt: 2 }, inline("1"));
        let older = minicbor::to_vec(Older(fence, output.clone(), None)).expect("bytes");
        let known = entry(Event::ResultReceived { fence, output, charge: None, context_ops: None });
        let mut bytes = entry(Event::CancelRequested).encode().to_vec();
        let place = bytes.len() - 4;
        bytes.splice(place..place + 2, [5].into_iter().chain(older));
        assert_eq!(Entry::decode(&bytes), Ok(known));
    }

    #[test]
    fn an_event_of_a_later_release_is_refused_and_its_task_known() {
        let mut bytes = entry(Event::CancelRequested).encode().to_vec();
        let place = bytes.len() - 4;
        assert_eq!(bytes[place], 12, "the number of the event");
        bytes[place] = 23;
        assert!(matches!(Entry::decode(&bytes), Err(Error::Malformed { .. })));
        assert_eq!(Entry::task_of(&bytes), Some(TaskId::from_random(7)));
    }

    #[test]
    fn a_field_of_a_later_release_is_passed_over() {
        let known = entry(Event::CancelRequested);
        let mut bytes = known.encode().to_vec();
        bytes[1] += 1;
        bytes.extend([9, 0x61, b'x']);
        assert_eq!(Entry::decode(&bytes), Ok(known));
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_a_decoder_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..300), at in 0_usize..200, byte: u8) {
            let _ = Entry::decode(&bytes);
            for event in all() {
                let mut entry = entry(event).encode().to_vec();
                let at = at % entry.len();
                entry[at] = byte;
                let _ = Entry::decode(&entry);
                let _ = Entry::task_of(&entry);
            }
        }
    }
}
