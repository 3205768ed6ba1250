//! Fuzz tests of every decoder in `src/wire`: what a peer can send, and worse.
//!
//! A target is a decoder with what must hold of it for any bytes at all ([`targets`]):
//! - it returns; it neither panics nor overflows;
//! - it never holds more than a fixed multiple of the input, and a constant, in memory;
//! - what it accepts, it writes and reads again as the same value; what it refuses, it refuses in a short printable sentence.
//!
//! Inputs are mutations ([`mutate`]) of a pool that begins with well-formed messages ([`seeds`]) and the corpus, and grows by every input
//! that the decoder answers in a new way ([`engine`]). It needs neither nightly nor a sanitizer, so it runs wherever the tests do.
//!
//! `corpus/TARGET.hex` holds one input per line. All of them are checked first; an input that fails is added to it, where it stays as a
//! test of the mended decoder. The rest of a run is decided by its seed alone, which a failure names.
//!
//! `FUZZ_INPUTS` is how many inputs each target gets, 20,000 without it; `FUZZ_SEED` where the mutations start, the same place every
//! time without it; `FUZZ_GROW=1` adds to the corpus a few of those that were answered in a new way. `scripts/fuzz` sets them.

mod engine;
mod mutate;
mod seeds;
mod targets;

/// Frames of a lane (design.md section 5, threats T4, T27).
#[test]
fn frames_hold_against_any_bytes() {
    engine::run(&targets::FRAME);
}

/// The heads of blobs.
#[test]
fn blob_heads_hold_against_any_bytes() {
    engine::run(&targets::BLOB_HEAD);
}

/// What stands in the error frame of a lane.
#[test]
fn failures_hold_against_any_bytes() {
    engine::run(&targets::FAILURE);
}

/// Queries as they travel.
#[test]
fn queries_hold_against_any_bytes() {
    engine::run(&targets::QUERY);
}

/// Requests of the control protocol.
#[test]
fn control_requests_hold_against_any_bytes() {
    engine::run(&targets::CONTROL);
}

/// Answers of the control protocol, which are the largest documents.
#[test]
fn control_replies_hold_against_any_bytes() {
    engine::run(&targets::REPLY);
}

/// Gossip messages.
#[test]
fn gossip_holds_against_any_bytes() {
    engine::run(&targets::GOSSIP);
}

/// Records before anybody looks at signatures.
#[test]
fn records_hold_against_any_bytes() {
    engine::run(&targets::RECORD);
}

/// Pulses before anybody looks at signatures.
#[test]
fn pulses_hold_against_any_bytes() {
    engine::run(&targets::PULSE);
}

/// Receipts before anybody looks at signatures.
#[test]
fn receipts_hold_against_any_bytes() {
    engine::run(&targets::RECEIPT);
}

/// Questions for offers.
#[test]
fn inquiries_hold_against_any_bytes() {
    engine::run(&targets::INQUIRY);
}

/// Answers to questions for offers.
#[test]
fn offers_hold_against_any_bytes() {
    engine::run(&targets::OFFERS);
}

/// Threat T15: signed records, which nobody changes unnoticed.
#[test]
fn signed_records_hold_against_any_bytes() {
    engine::run(&targets::SIGNED_RECORD);
}

/// Threat T15: signed pulses, which nobody changes unnoticed.
#[test]
fn signed_pulses_hold_against_any_bytes() {
    engine::run(&targets::SIGNED_PULSE);
}

/// Threat T15: signed receipts, which nobody changes unnoticed.
#[test]
fn signed_receipts_hold_against_any_bytes() {
    engine::run(&targets::SIGNED_RECEIPT);
}

/// Threat T15: how contexts begin, as their owners sign it, which nobody changes unnoticed.
#[test]
fn geneses_of_contexts_hold_against_any_bytes() {
    engine::run(&targets::CONTEXT_GENESIS);
}

/// Threat T15: who may read and write a context, as its owner signs it.
#[test]
fn access_changes_of_contexts_hold_against_any_bytes() {
    engine::run(&targets::CONTEXT_ACCESS);
}

/// Threat T15: what writers sign, sealed.
#[test]
fn operations_of_contexts_hold_against_any_bytes() {
    engine::run(&targets::CONTEXT_OPERATION);
}

/// Threat T15: what writers seal, once it is open.
#[test]
fn bodies_of_operations_hold_against_any_bytes() {
    engine::run(&targets::CONTEXT_BODY);
}

/// Questions of other replicas.
#[test]
fn questions_about_contexts_hold_against_any_bytes() {
    engine::run(&targets::CONTEXT_QUESTION);
}

/// Answers of other replicas.
#[test]
fn answers_about_contexts_hold_against_any_bytes() {
    engine::run(&targets::CONTEXT_ANSWER);
}

/// Threat T28: what a context held at a checkpoint, when its owner signed the hash of anything.
#[test]
fn bases_of_contexts_hold_against_any_text() {
    engine::run(&targets::CONTEXT_BASE);
}

/// Threat T28: a base of more places, sources or paths than there may be is left where it has too many.
#[test]
fn what_a_base_has_too_much_of_is_not_held() {
    assert_eq!(targets::bases_past_their_bounds(), Ok(()));
}
