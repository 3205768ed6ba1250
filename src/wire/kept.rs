//! Entries of the journal on calls with an idempotency key: that one began, and what came of it (design/tasks.md, "Fences and idempotency").
//!
//! They stand in the same journal as those of tasks, and every entry begins with the number of its kind. What holds for the one holds for
//! the other: fields are numbered, unknown ones are passed over, unknown events are not.

use std::cell::RefCell;

use bytes::Bytes;
use minicbor::{Decode, Encode};

use super::task::{Charge, ENTRY_BYTES_MAX, Text, kept_as_agent as agent, kept_as_node as node, kept_as_timestamp as timestamp};
use super::{Error, malformed};
use crate::model::{AgentId, NodeId, Timestamp};

const KIND: &str = "journal entry";
/// Most entries are smaller.
const ENTRY_BYTES_USUAL: usize = 1_000;

thread_local! {
    /// Where entries are written before they have their length.
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// What an entry is about; the first thing that stands in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject {
    /// A task.
    Task,
    /// A call with a key.
    Call,
}

impl Subject {
    fn number(self) -> u8 {
        match self {
            Self::Task => 0,
            Self::Call => 1,
        }
    }

    /// What the entry in `bytes` is about; `None` if a later release wrote it.
    pub fn of(bytes: &[u8]) -> Option<Self> {
        [Self::Task, Self::Call].into_iter().find(|subject| bytes.first() == Some(&subject.number()))
    }

    /// `entry` as bytes, with its subject before it.
    pub(super) fn encode(self, entry: &impl Encode<()>) -> Bytes {
        // Written where the entry before it was, since one that grows is moved several times; what is handed out is no larger than it must be.
        SCRATCH.with_borrow_mut(|bytes| {
            bytes.clear();
            bytes.push(self.number());
            // Writing to memory cannot fail, and every field has an encoding.
            let _ = minicbor::encode(entry, &mut *bytes);
            let entry = Bytes::copy_from_slice(bytes);
            bytes.shrink_to(ENTRY_BYTES_USUAL);
            entry
        })
    }

    /// What stands behind the subject in `bytes`.
    pub(super) fn body(self, bytes: &[u8]) -> Result<&[u8], Error> {
        if bytes.len() > ENTRY_BYTES_MAX {
            return Err(Error::Oversize { kind: KIND, bytes: bytes.len(), bytes_max: ENTRY_BYTES_MAX });
        }
        match bytes.split_first() {
            Some((number, body)) if *number == self.number() => Ok(body),
            Some(_) | None => Err(malformed(KIND, &"about something else")),
        }
    }
}

/// On whose side of a call the entry was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
#[cbor(index_only)]
pub enum Side {
    /// The node whose client made it.
    #[n(0)]
    Caller,
    /// The node whose agent did it.
    #[n(1)]
    Agent,
}

/// One line of the journal.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
#[cbor(map)]
pub struct Entry {
    /// On whose side.
    #[n(0)]
    pub side: Side,
    /// Whose key it is.
    #[cbor(n(1), with = "node")]
    pub caller: NodeId,
    /// For which agent.
    #[cbor(n(2), with = "agent")]
    pub agent: AgentId,
    /// The key, with what it is a key of.
    #[n(3)]
    pub word: String,
    /// When it happened, by this node's clock.
    #[cbor(n(4), with = "timestamp")]
    pub at: Timestamp,
    /// What happened.
    #[n(5)]
    pub event: Event,
}

/// What happened to a call.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
pub enum Event {
    /// It is about to begin.
    #[n(0)]
    Begun(#[n(0)] Begun),
    /// It ended well.
    #[n(1)]
    Done(#[n(0)] Done),
    /// It ended otherwise: the key is free.
    #[n(2)]
    Failed,
}

/// What is known of a call before it begins.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
#[cbor(map)]
pub struct Begun {
    /// BLAKE3 of its input.
    #[cbor(n(0), with = "minicbor::bytes")]
    pub input: [u8; 32],
    /// How often its task has changed its owner, and which attempt it is.
    #[n(1)]
    pub fence: Option<(u64, u32)>,
    /// How long its result is kept, in milliseconds, if not as long as others.
    #[n(2)]
    pub keep_ms: Option<u64>,
}

/// The good end of a call.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
#[cbor(map)]
pub struct Done {
    /// The output, as JSON text.
    #[n(0)]
    pub output: Text,
    /// Units of work, as a decimal.
    #[n(1)]
    pub units: Option<String>,
    /// How long it took, in microseconds: the agent's work, or the whole call on the caller's side.
    #[n(2)]
    pub took_us: u64,
    /// Who did it, on the caller's side.
    #[n(3)]
    pub by: Option<Box<By>>,
    /// How it began, since the entry that said so may be forgotten before this one; those of older releases stand behind another of those.
    #[n(4)]
    pub begun: Option<Begun>,
}

/// Who did a call.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
#[cbor(map)]
pub struct By {
    /// The call.
    #[cbor(n(0), with = "minicbor::bytes")]
    pub invocation: [u8; 16],
    /// The agent.
    #[cbor(n(1), with = "agent")]
    pub agent: AgentId,
    /// Where it is.
    #[cbor(n(2), with = "node")]
    pub node: NodeId,
    /// How many were asked.
    #[n(3)]
    pub attempts: u32,
    /// What it costs.
    #[n(4)]
    pub charge: Option<Charge>,
}

impl Entry {
    /// The entry as bytes.
    pub fn encode(&self) -> Bytes {
        Subject::Call.encode(self)
    }

    /// The entry in `bytes`, which must hold that and nothing else.
    ///
    /// # Errors
    /// [`Error::Oversize`] or [`Error::Malformed`]: another release wrote it, or a disk changed it.
    pub fn decode(bytes: &[u8]) -> Result<Self, Error> {
        let body = Subject::Call.body(bytes)?;
        let mut decoder = minicbor::Decoder::new(body);
        let entry = decoder.decode().map_err(|error| malformed(KIND, &error))?;
        if decoder.position() == body.len() { Ok(entry) } else { Err(malformed(KIND, &"bytes after the end")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(event: Event) -> Entry {
        let caller = libp2p_identity::PeerId::from_bytes(&[0, 1, 7]).expect("a short identity hash");
        let agent = AgentId::from_public_key([3; 32]);
        Entry { side: Side::Agent, caller: caller.into(), agent, word: "echo\nk".to_owned(), at: Timestamp::from_ms(7), event }
    }

    #[test]
    fn every_event_survives_writing_and_reading() {
        let node = entry(Event::Failed).caller;
        let by = By { invocation: [1; 16], agent: AgentId::from_public_key([4; 32]), node, attempts: 2, charge: None };
        let begun = Begun { input: [5; 32], fence: Some((1, 3)), keep_ms: Some(60_000) };
        let done = |begun| {
            let output = Text::Inline(Bytes::from_static(b"1"));
            Event::Done(Done { output, units: Some("2.5".to_owned()), took_us: 9, by: Some(Box::new(by.clone())), begun })
        };
        // The last but one is as older releases wrote it.
        let events = [Event::Begun(begun.clone()), done(Some(begun)), done(None), Event::Failed];
        for event in events {
            let entry = entry(event);
            let bytes = entry.encode();
            assert_eq!(Subject::of(&bytes), Some(Subject::Call));
            assert_eq!(Entry::decode(&bytes), Ok(entry));
            assert!(super::super::task::Entry::decode(&bytes).is_err(), "it is no task's");
        }
    }
}
