//! A receipt: the caller's signed word on how an agent did a capability over a window of time (design.md section 5, threats T7, T16, T17).
//!
//! The issuer is the node whose calls they were. Its windows on one agent and capability follow one another and never overlap, so the window
//! is the sequence number: a later one replaces an earlier one, and two different ones that overlap contradict each other, by the issuer's
//! own signature. A receipt is evidence and no account: it holds counts and a mean, no call and no price. What it is worth to whoever
//! reads it is decided in `proto::peers::receipts`.
//!
//! Receipts travel over the control protocol alone ([`super::directory::Control::Receipts`]), from their issuer to whoever asks. A node
//! that does not know them refuses the question and is asked no more for a while.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Document, Error, VERSION, rule, signed::Signable, version};
use crate::model::{AgentId, CapabilityName, NodeId, Timestamp};

/// How long a window may be: in an hour most of a node's own evidence has faded, so a longer one would mix the present with what no longer counts.
pub const WINDOW_MS_MAX: u64 = 3_600_000;
/// How long after it was issued a receipt may stay valid: by then nothing is left of its weight.
pub const RECEIPT_LIFETIME_MS_MAX: u64 = 86_400_000;
/// Agents that may be named in one request for receipts.
pub const RECEIPT_AGENTS_MAX: usize = 64;
/// Receipts in one answer.
pub const RECEIPTS_MAX: usize = 128;

/// How one agent did one capability for one caller.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Receipt {
    /// Format version.
    pub v: u16,
    /// The node whose calls they were, whose key signs.
    pub issuer: NodeId,
    /// The agent that was called.
    pub agent: AgentId,
    /// What it was called for.
    pub capability: CapabilityName,
    /// Beginning of the window.
    pub window_start: Timestamp,
    /// End of the window; the next one of the same issuer, agent and capability begins here or later.
    pub window_end: Timestamp,
    /// Calls that ended well.
    pub successes: u32,
    /// Calls that ended badly, or far later than the agent claims; refusals are neither.
    pub failures: u32,
    /// Mean latency of the calls that ended well, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency_ms: Option<f64>,
    /// When it was signed.
    pub issued_at: Timestamp,
    /// When it must be forgotten.
    pub expires_at: Timestamp,
}

impl Receipt {
    /// The version that this build writes.
    pub const V: u16 = VERSION;

    /// All calls of the window.
    pub fn calls(&self) -> u64 {
        u64::from(self.successes).saturating_add(u64::from(self.failures))
    }

    /// Whether both are of one issuer on one subject, and speak of the same time.
    pub fn overlaps(&self, other: &Self) -> bool {
        let same = (self.issuer, self.agent, &self.capability) == (other.issuer, other.agent, &other.capability);
        same && self.window_start < other.window_end && other.window_start < self.window_end
    }
}

impl Document for Receipt {
    const KIND: &'static str = "receipt";
    const BYTES_MAX: usize = 1_024;

    fn check(&self) -> Result<(), Error> {
        let kind = Self::KIND;
        version(self.v, kind)?;
        let window_ms = self.window_end.as_ms().checked_sub(self.window_start.as_ms());
        let window_ok = window_ms.is_some_and(|ms| (1..=WINDOW_MS_MAX).contains(&ms));
        rule(window_ok, kind, "window_end", "lies after window_start, by an hour at most")?;
        rule(self.issued_at >= self.window_end, kind, "issued_at", "is not before the end of the window")?;
        let lifetime_ms = self.expires_at.as_ms().checked_sub(self.issued_at.as_ms());
        let lifetime_ok = lifetime_ms.is_some_and(|ms| (1..=RECEIPT_LIFETIME_MS_MAX).contains(&ms));
        rule(lifetime_ok, kind, "expires_at", "lies after issued_at, by a day at most")?;
        rule(!self.capability.is_heading(), kind, "capability", "is not a heading of the taxonomy")?;
        rule(self.calls() > 0, kind, "successes", "and failures are not both zero")?;
        let latency_ok = self.latency_ms.is_none_or(|ms| self.successes > 0 && (0.0..=1e9).contains(&ms));
        rule(latency_ok, kind, "latency_ms", "is a number of milliseconds, not negative, of calls that ended well")
    }
}

impl Signable for Receipt {
    const DOMAIN: &'static str = "meshwork/receipt/1";

    fn node(&self) -> NodeId {
        self.issuer
    }

    fn agent(&self) -> Option<AgentId> {
        // It speaks of the agent, which has no part in it.
        None
    }
}

/// How long a receipt that is issued now is valid.
pub const RECEIPT_LIFETIME: Duration = Duration::from_millis(RECEIPT_LIFETIME_MS_MAX);

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::wire::directory::Pulse;
    use crate::wire::{NodeKey, Signed, Verified, decode, encode};

    /// A receipt of `issuer` on the agent `seed` and `capability`, for a window of a minute that ended at `end_ms`.
    pub(crate) fn receipt(
        issuer: &NodeKey,
        seed: u8,
        capability: &str,
        end_ms: u64,
        (successes, failures): (u32, u32),
    ) -> Verified<Receipt> {
        Signed::sign(body(issuer.id(), seed, capability, end_ms, (successes, failures)), issuer, None).expect("a valid receipt")
    }

    pub(crate) fn body(issuer: NodeId, seed: u8, capability: &str, end_ms: u64, (successes, failures): (u32, u32)) -> Receipt {
        Receipt {
            v: Receipt::V,
            issuer,
            agent: AgentId::from_public_key([seed; 32]),
            capability: capability.parse().expect("a valid name"),
            window_start: Timestamp::from_ms(end_ms.saturating_sub(60_000)),
            window_end: Timestamp::from_ms(end_ms),
            successes,
            failures,
            latency_ms: (successes > 0).then_some(20.0),
            issued_at: Timestamp::from_ms(end_ms),
            expires_at: Timestamp::from_ms(end_ms).saturating_add(RECEIPT_LIFETIME),
        }
    }

    fn key() -> NodeKey {
        crate::wire::directory::tests::node_key()
    }

    #[test]
    fn a_signed_receipt_is_believed_on_the_other_side() {
        let sent = receipt(&key(), 1, "text-analysis", 100_000, (9, 1));
        let received = Signed::<Receipt>::from_bytes(sent.bytes()).expect("well-formed").verify().expect("signed");
        assert_eq!(received, sent);
    }

    /// Threat T15: every byte of a signed receipt counts.
    #[test]
    fn no_byte_of_a_receipt_can_be_changed() {
        let sent = receipt(&key(), 1, "text-analysis", 100_000, (9, 1));
        for at in 0..sent.bytes().len() {
            let mut bytes = sent.bytes().to_vec();
            bytes[at] ^= 0x01;
            let believed = Signed::<Receipt>::from_bytes(&bytes).and_then(Signed::verify);
            assert!(believed.is_err(), "byte {at} changed unnoticed");
        }
    }

    /// Threat T15: a signature of one type is none of another, and nobody signs for another node.
    #[test]
    fn a_receipt_is_signed_as_a_receipt_and_by_its_issuer() {
        let (here, there) = (key(), key());
        let sent = receipt(&here, 1, "echo", 100_000, (1, 0));
        assert!(Signed::<Pulse>::from_bytes(sent.bytes()).and_then(Signed::verify).is_err());
        assert!(Signed::sign(body(there.id(), 1, "echo", 100_000, (1, 0)), &here, None).is_err());
    }

    type Change = fn(&mut Receipt);

    #[test]
    fn receipts_that_break_a_rule_are_refused() {
        let good = body(key().id(), 1, "echo", 100_000_000, (2, 1));
        assert_eq!(encode(&good).and_then(|bytes| decode::<Receipt>(&bytes)), Ok(good.clone()));
        let changes: [(&str, Change); 10] = [
            ("window_end", |receipt| receipt.window_start = receipt.window_end),
            ("window_end", |receipt| receipt.window_start = Timestamp::from_ms(receipt.window_end.as_ms() - WINDOW_MS_MAX - 1)),
            ("issued_at", |receipt| receipt.issued_at = Timestamp::from_ms(receipt.window_end.as_ms() - 1)),
            ("expires_at", |receipt| receipt.expires_at = receipt.issued_at),
            ("expires_at", |receipt| receipt.expires_at = receipt.expires_at.saturating_add(Duration::from_millis(1))),
            ("capability", |receipt| receipt.capability = "text-processing".parse().expect("valid")),
            ("successes", |receipt| (receipt.successes, receipt.failures) = (0, 0)),
            ("latency_ms", |receipt| receipt.latency_ms = Some(f64::NAN)),
            ("latency_ms", |receipt| receipt.latency_ms = Some(-1.0)),
            ("latency_ms", |receipt| receipt.successes = 0),
        ];
        for (expected, change) in changes {
            let mut bad = good.clone();
            change(&mut bad);
            let error = encode(&bad).expect_err(expected);
            assert!(matches!(error, Error::Rule { field, .. } if field == expected), "{error}");
        }
        let later = Receipt { v: 2, ..good };
        assert!(matches!(encode(&later), Err(Error::Version { version: 2, .. })));
    }

    #[test]
    fn the_longest_receipt_fits_its_bound() {
        let long = format!("{}.{}", "a".repeat(50), "b".repeat(45));
        let mut receipt = body(key().id(), 255, &long, u64::MAX / 2, (u32::MAX, u32::MAX));
        receipt.latency_ms = Some(1.0 / 3.0);
        assert!(encode(&receipt).is_ok());
    }

    #[test]
    fn windows_that_touch_do_not_overlap() {
        let issuer = key().id();
        let at = |end_ms| body(issuer, 1, "echo", end_ms, (1, 0));
        assert!(at(100_000).overlaps(&at(100_000)) && at(100_000).overlaps(&at(159_999)) && at(159_999).overlaps(&at(100_000)));
        assert!(!at(100_000).overlaps(&at(160_000)) && !at(160_000).overlaps(&at(100_000)));
        assert!(!at(100_000).overlaps(&body(key().id(), 1, "echo", 100_000, (1, 0))), "another issuer");
    }
}
