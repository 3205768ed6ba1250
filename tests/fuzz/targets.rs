//! The decoders, and what must hold of each for any input.

use std::collections::BTreeSet;
use std::fmt::Debug;

use allocation_counter::measure;
use bytes::Bytes;
use meshwork::model::Failure;
use meshwork::proto::context::checkpoint::Base;
use meshwork::wire::blob::{BLOB_BYTES_MAX, HEAD_BYTES, Head};
use meshwork::wire::context::sync::{ANSWER_BYTES_MAX, Answer, QUESTION_BYTES_MAX, Question};
use meshwork::wire::context::{self, Access, BASE_BYTES_MAX, Body, Checkpoint, Genesis, Operation, Statement};
use meshwork::wire::directory::{Control, Gossip, Pulse, Query, Record, Reply};
use meshwork::wire::invocation::{FRAME_BYTES_MAX, Frame, LENGTH_BYTES};
use meshwork::wire::offer::{Inquiry, Offers};
use meshwork::wire::receipt::Receipt;
use meshwork::wire::{self, Document, Error, Signable, Signed};

use super::engine::Target;
use super::seeds;

/// Longest message of an error, in bytes: 120 characters of the decoder's, and our words around them.
const ERROR_BYTES_MAX: usize = 120 * 4 + 200;
/// What a decoder may hold beside its input, however small that is.
const SPARE_BYTES: u64 = 16 * 1024;

pub(crate) const FRAME: Target = Target { name: "frame", bytes_max: FRAME_BYTES_MAX, seeds: seeds::frames, check: frame };
pub(crate) const BLOB_HEAD: Target = Target { name: "blob-head", bytes_max: HEAD_BYTES, seeds: seeds::blob_heads, check: blob_head };
pub(crate) const FAILURE: Target = Target { name: "failure", bytes_max: 4 * 1024, seeds: seeds::failures, check: failure };
pub(crate) const QUERY: Target = document_target::<Query>("query", seeds::queries);
pub(crate) const CONTROL: Target = document_target::<Control>("control", seeds::controls);
pub(crate) const REPLY: Target = document_target::<Reply>("reply", seeds::replies);
pub(crate) const GOSSIP: Target = document_target::<Gossip>("gossip", seeds::gossip);
pub(crate) const RECORD: Target = document_target::<Record>("record", seeds::records);
pub(crate) const PULSE: Target = document_target::<Pulse>("pulse", seeds::pulses);
pub(crate) const RECEIPT: Target = document_target::<Receipt>("receipt", seeds::receipts);
pub(crate) const INQUIRY: Target = document_target::<Inquiry>("inquiry", seeds::inquiries);
pub(crate) const OFFERS: Target = document_target::<Offers>("offers", seeds::offers);
pub(crate) const SIGNED_RECORD: Target =
    signed_target::<Record>("signed-record", seeds::signed_records, |input| signed(input, seeds::record_bodies));
pub(crate) const SIGNED_PULSE: Target =
    signed_target::<Pulse>("signed-pulse", seeds::signed_pulses, |input| signed(input, seeds::pulse_bodies));
pub(crate) const SIGNED_RECEIPT: Target =
    signed_target::<Receipt>("signed-receipt", seeds::signed_receipts, |input| signed(input, seeds::receipt_bodies));

pub(crate) const CONTEXT_GENESIS: Target =
    statement_target::<Genesis>("context-genesis", seeds::context_geneses, |input| statement(input, seeds::geneses));
pub(crate) const CONTEXT_ACCESS: Target =
    statement_target::<Access>("context-access", seeds::context_accesses, |input| statement(input, seeds::accesses));
pub(crate) const CONTEXT_OPERATION: Target =
    statement_target::<Operation>("context-operation", seeds::context_operations, |input| statement(input, seeds::operations));
pub(crate) const CONTEXT_BODY: Target =
    Target { name: "context-body", bytes_max: Operation::BYTES_MAX, seeds: seeds::context_bodies, check: context_body };

pub(crate) const CONTEXT_QUESTION: Target = Target {
    name: "context-question",
    bytes_max: QUESTION_BYTES_MAX,
    seeds: seeds::context_questions,
    check: |input| message(input, Question::decode, Question::encode),
};
pub(crate) const CONTEXT_ANSWER: Target = Target {
    name: "context-answer",
    bytes_max: ANSWER_BYTES_MAX,
    seeds: seeds::context_answers,
    check: |input| message(input, Answer::decode, Answer::encode),
};
pub(crate) const CONTEXT_BASE: Target =
    Target { name: "context-base", bytes_max: 64 * 1024, seeds: seeds::context_bases, check: context_base };

/// Bytes that a message between replicas may hold for each byte of its encoding: empty statements take the most.
const MESSAGE_FACTOR: u64 = 96;
/// Bytes that what a context begins with may hold for each byte of its text: objects of one field in each other take the most.
const BASE_FACTOR: u64 = 160;
/// Bytes that it may hold however long its text is.
const BASE_HELD_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// The domain of the hashes of bases.
const BASE_HASH: &str = "meshwork 2026-11 context base";

/// Bytes that the body of an operation may hold for each byte of its encoding: an array of small objects takes the most.
const BODY_FACTOR: u64 = 160;
/// Bytes that a document may hold for each byte of its encoding.
const DOCUMENT_FACTOR: u64 = 32;

const fn document_target<D: Document + PartialEq + Debug>(name: &'static str, seeds: fn() -> Vec<Vec<u8>>) -> Target {
    Target { name, bytes_max: D::BYTES_MAX, seeds, check: document::<D> }
}

const fn signed_target<D: Document>(name: &'static str, seeds: fn() -> Vec<Vec<u8>>, check: fn(&[u8]) -> Result<String, String>) -> Target {
    Target { name, bytes_max: D::BYTES_MAX + 256, seeds, check }
}

const fn statement_target<T: Statement>(
    name: &'static str,
    seeds: fn() -> Vec<Vec<u8>>,
    check: fn(&[u8]) -> Result<String, String>,
) -> Target {
    Target { name, bytes_max: T::BYTES_MAX + 80, seeds, check }
}

/// Decodes, and holds the decoder to its memory: at most `factor` bytes for each byte of the input.
fn bounded<T>(input: &[u8], factor: u64, decode: impl FnOnce() -> T) -> Result<T, String> {
    let mut decoded = None;
    let held = measure(|| decoded = Some(decode())).bytes_max;
    let may = u64::try_from(input.len()).unwrap_or(u64::MAX).saturating_mul(factor).saturating_add(SPARE_BYTES);
    if held > may {
        return Err(format!("decoding {} bytes held {held} bytes of memory, {may} are allowed", input.len()));
    }
    decoded.ok_or_else(|| "nothing was decoded".to_owned())
}

fn refusal(error: &Error) -> Result<String, String> {
    let text = error.to_string();
    if text.len() > ERROR_BYTES_MAX || text.chars().any(char::is_control) {
        return Err(format!("the refusal is long or not printable: {text:?}"));
    }
    Ok(text)
}

/// The kind of an accepted value: which variants and fields it is made of, each once, not what they hold nor how often they occur.
fn kind(value: &impl Debug) -> String {
    let text = format!("{value:?}").replace(r"\\", "").replace(r#"\""#, "");
    let outside: String = text.split('"').step_by(2).collect::<Vec<_>>().join(" ");
    let words: BTreeSet<&str> = outside.split(|character: char| !character.is_alphabetic()).collect();
    words.into_iter().collect::<Vec<_>>().join(" ")
}

fn document<D: Document + PartialEq + Debug>(input: &[u8]) -> Result<String, String> {
    let read = match bounded(input, DOCUMENT_FACTOR, || wire::decode::<D>(input))? {
        Ok(read) => read,
        Err(error) => return refusal(&error),
    };
    match wire::encode(&read) {
        Ok(bytes) if wire::decode::<D>(&bytes).as_ref() == Ok(&read) => Ok(kind(&read)),
        Ok(_) => Err(format!("written and read again it is another: {read:?}")),
        // Fields that may be left out are written, which can be more than was read.
        Err(Error::Oversize { bytes, .. }) if input.len() < bytes => Ok("just too large to be written".to_owned()),
        Err(error) => Err(format!("it was read and cannot be written: {error}")),
    }
}

fn frame(input: &[u8]) -> Result<String, String> {
    let bytes = Bytes::copy_from_slice(input);
    let shared = bounded(input, 4, || Frame::decode(&bytes))?;
    // What small frames take, and that is most of what peers send.
    let copied = bounded(input, 4, || Frame::decode_copied(input))?;
    if copied != shared {
        return Err(format!("copied it is {copied:?}, and shared {shared:?}"));
    }
    let read = match shared {
        Ok(read) => read,
        Err(error) => return refusal(&error),
    };
    let mut buffer = vec![0xaa; 3];
    read.encode(&mut buffer).map_err(|error| format!("it was read and cannot be written: {error}"))?;
    let again = Bytes::from(buffer).slice(3 + LENGTH_BYTES..);
    if Frame::decode(&again).as_ref() != Ok(&read) || Frame::decode_copied(&again).as_ref() != Ok(&read) {
        return Err(format!("written and read again it is another: {read:?}"));
    }
    Ok(kind(&read))
}

fn blob_head(input: &[u8]) -> Result<String, String> {
    // Whoever reads it reads as many bytes as it has.
    let mut head = [0; HEAD_BYTES];
    head.iter_mut().zip(input).for_each(|(place, byte)| *place = *byte);
    match bounded(input, 0, || Head::decode(&head))? {
        Ok(read) if read.encode() == head && read.blob.length_bytes <= BLOB_BYTES_MAX => Ok(format!("{:?}", read.part)),
        Ok(read) => Err(format!("written again it is another: {read:?}")),
        Err(error) => refusal(&error),
    }
}

fn failure(input: &[u8]) -> Result<String, String> {
    let read = match bounded(input, 64, || serde_json::from_slice::<Failure>(input))? {
        Ok(read) => read,
        Err(error) => return Ok(error.to_string().replace('"', "`")),
    };
    // What came in its frame goes out in one, however much it holds.
    let mut buffer = Vec::new();
    Frame::error(1, true, &read).encode(&mut buffer).map_err(|error| format!("its frame cannot be written: {error}"))?;
    let text = serde_json::to_vec(&read).map_err(|error| format!("it was read and cannot be written: {error}"))?;
    match serde_json::from_slice::<Failure>(&text) {
        Ok(again) if again == read => Ok(kind(&read)),
        Ok(_) | Err(_) => Err(format!("written and read again it is another: {read:?}")),
    }
}

/// The keys signed the seeds and nothing else, so nothing else may be believed.
fn signed<D: Signable + Clone + PartialEq + Debug>(input: &[u8], honest: fn() -> Vec<D>) -> Result<String, String> {
    let read = match bounded(input, DOCUMENT_FACTOR, || Signed::<D>::from_bytes(input))? {
        Ok(read) => read,
        Err(error) => return refusal(&error),
    };
    let kind = kind(read.unverified());
    match read.verify() {
        Err(error) => Ok(format!("{kind} {}", refusal(&error)?)),
        Ok(body) if honest().contains(&*body) => Ok("believed".to_owned()),
        Ok(body) => Err(format!("believed although nobody signed it: {:?}", *body)),
    }
}

/// Nobody but the keys of the seeds signed anything, and for each value there is one way to write it.
fn statement<T: Statement + Clone + PartialEq + Debug>(input: &[u8], honest: fn() -> Vec<T>) -> Result<String, String> {
    let read = match bounded(input, DOCUMENT_FACTOR, || context::Signed::<T>::from_bytes(input))? {
        Ok(read) => read,
        Err(error) => return refusal(&error),
    };
    let kind = kind(read.unverified());
    let written = minicbor::to_vec(read.unverified()).map_err(|error| format!("it was read and cannot be written: {error}"))?;
    if !input.windows(written.len()).any(|window| window == written) {
        return Err(format!("it is written in another way: {:?}", read.unverified()));
    }
    match read.verify() {
        Err(error) => Ok(format!("{kind} {}", refusal(&error)?)),
        Ok(body) if body.to_bytes() != input => Err(format!("two writings of one statement: {:?}", *body)),
        Ok(body) if honest().contains(&*body) => Ok("believed".to_owned()),
        Ok(body) => Err(format!("believed although nobody signed it: {:?}", *body)),
    }
}

/// What a writer may put into an operation, as its readers read it once it is open.
fn context_body(input: &[u8]) -> Result<String, String> {
    let read = match bounded(input, BODY_FACTOR, || minicbor::decode::<Body>(input))? {
        Ok(read) => read,
        Err(error) => return Ok(error.to_string()),
    };
    if let Err(error) = read.check() {
        return refusal(&error);
    }
    let bytes = minicbor::to_vec(&read).map_err(|error| format!("it was read and cannot be written: {error}"))?;
    match minicbor::decode::<Body>(&bytes) {
        Ok(again) if again == read => Ok(kind(&read)),
        Ok(_) | Err(_) => Err(format!("written and read again it is another: {read:?}")),
    }
}

/// What replicas ask and tell each other: for each message there is one way to write it.
fn message<M: Debug>(
    input: &[u8],
    decode: fn(&[u8]) -> Result<M, Error>,
    encode: fn(&M) -> Result<Vec<u8>, Error>,
) -> Result<String, String> {
    let read = match bounded(input, MESSAGE_FACTOR, || decode(input))? {
        Ok(read) => read,
        Err(error) => return refusal(&error),
    };
    match encode(&read) {
        Ok(bytes) if bytes == input => Ok(kind(&read)),
        Ok(_) => Err(format!("it is written in another way: {read:?}")),
        Err(error) => Err(format!("it was read and cannot be written: {error}")),
    }
}

/// The text, as if an owner had signed its hash.
fn base(text: &str) -> Result<Base, String> {
    let bytes = u64::try_from(text.len()).unwrap_or(u64::MAX);
    let checkpoint = Checkpoint { lamport: 9, hash: blake3::derive_key(BASE_HASH, text.as_bytes()), bytes };
    Base::read(text.to_owned(), &checkpoint).ok_or_else(|| "it is not what its own hash says".to_owned())
}

/// What a context held at a checkpoint. Whatever an owner signed, all begin with the same, and that is what the next one holds.
fn context_base(input: &[u8]) -> Result<String, String> {
    let Ok(text) = std::str::from_utf8(input) else { return Ok("no text".to_owned()) };
    let base = base(text)?;
    let Some((shared, merged)) = bounded(input, BASE_FACTOR, || base.begin(9))? else { return Ok("no base".to_owned()) };
    let again = Base::of(&shared, &merged).and_then(|base| base.begin(9));
    if again.is_some_and(|(again, also)| again.value() == shared.value() && also == merged) {
        Ok(format!("{} {}", kind(&shared.value()), kind(&merged)))
    } else {
        Err("written and read again it is another".to_owned())
    }
}

/// Texts as long as a base may be, made of as much as possible of what is bounded in one.
pub(crate) fn bases_past_their_bounds() -> Result<(), String> {
    let length = usize::try_from(BASE_BYTES_MAX).map_err(|error| error.to_string())?;
    let repeated = |before: &str, part: &dyn Fn(usize) -> String, after: &str| {
        let mut text = format!("{before}{}", part(0));
        for next in (1..).map(part) {
            if text.len() + next.len() + after.len() >= length {
                break;
            }
            text.push(',');
            text.push_str(&next);
        }
        text + after
    };
    let path = format!("\"/shared_memory{}\"", "/a".repeat(30));
    let source = |at: usize| format!(r#"[1,{{"context":"{at:064x}","operation":"{at:064x}","below":["#);
    let texts = [
        repeated(r#"{"merged":[],"shared_memory":{"#, &|at| format!("\"{at:x}\":0"), "}}"),
        repeated(&format!(r#"{{"merged":[{}"#, source(0)), &|_| path.clone(), r#"]}]],"shared_memory":{}}"#),
        repeated(r#"{"merged":["#, &|at| source(at) + "]}]", r#"],"shared_memory":{}}"#),
    ];
    texts.iter().try_for_each(|text| {
        let (base, mut begun) = (base(text)?, None);
        let held = measure(|| begun = Some(base.begin(9))).bytes_max;
        match begun {
            Some(None) if held <= BASE_HELD_BYTES_MAX => Ok(()),
            _ => Err(format!("{}...: {held} bytes of memory were held, {BASE_HELD_BYTES_MAX} are allowed, or it is a base", &text[..40])),
        }
    })
}
