//! The stable codes of everything that can go wrong between a client and an agent.
//!
//! The first eight are AMP's; the rest are what AMP has no word for. Each has a number in MAOP's classes (1xxx the request itself,
//! 2xxx finding someone, 3xxx doing the work, 4xxx rights and limits, 5xxx the node). How a code looks on a particular door (HTTP
//! status, JSON-RPC number, ...) is the door's business, in one table there.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

macro_rules! codes {
    ($($(#[doc = $doc:literal])+ $variant:ident = $number:literal $text:literal $retryable:literal;)*) => {
        /// What went wrong, as a word that scripts may rely on (AMP-10, MAOP-6).
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[non_exhaustive]
        pub enum ErrorCode { $($(#[doc = $doc])+ $variant,)* }

        impl ErrorCode {
            /// Every code.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The code as clients see it.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),* }
            }

            /// The number in MAOP's classes.
            pub fn number(self) -> u16 {
                match self { $(Self::$variant => $number),* }
            }

            /// Whether the same request may succeed later or elsewhere.
            pub fn is_retryable(self) -> bool {
                match self { $(Self::$variant => $retryable),* }
            }
        }
    };
}

codes! {
    /// The request could not be understood.
    InvalidRequest = 1400 "INVALID_REQUEST" false;
    /// Input or output does not match the capability's schema.
    InvalidSchema = 1422 "INVALID_SCHEMA" false;
    /// The payload is larger than the limit that `details` names.
    PayloadTooLarge = 1413 "PAYLOAD_TOO_LARGE" false;
    /// The other side speaks another protocol version.
    VersionUnsupported = 1505 "VERSION_UNSUPPORTED" false;
    /// No such agent is known, or it is gone.
    AgentNotFound = 2410 "AGENT_NOT_FOUND" false;
    /// Nobody offers this capability within the constraints.
    CapabilityNotFound = 2404 "CAPABILITY_NOT_FOUND" false;
    /// No such context.
    ContextNotFound = 2414 "CONTEXT_NOT_FOUND" false;
    /// No such task.
    TaskNotFound = 2415 "TASK_NOT_FOUND" false;
    /// The agent ran and failed, or died while it ran.
    AgentFailed = 3500 "AGENT_FAILED" true;
    /// The deadline passed.
    Timeout = 3408 "TIMEOUT" true;
    /// Somebody cancelled it.
    Cancelled = 3499 "CANCELLED" false;
    /// The result is not there yet.
    NotFinished = 3425 "NOT_FINISHED" true;
    /// The budget does not cover it.
    OverBudget = 3402 "OVER_BUDGET" false;
    /// Who is asking could not be established.
    AuthenticationFailed = 4401 "AUTHENTICATION_FAILED" false;
    /// Who is asking may not do this.
    AccessDenied = 4403 "ACCESS_DENIED" false;
    /// Too many requests from this client.
    RateLimitExceeded = 4429 "RATE_LIMIT_EXCEEDED" true;
    /// It contradicts something that exists.
    Conflict = 4409 "CONFLICT" false;
    /// A queue is full; `details.retry_after_ms` says when to come back.
    Busy = 5429 "BUSY" true;
    /// The node or agent has run out of something it needs.
    InsufficientResources = 5507 "INSUFFICIENT_RESOURCES" true;
    /// The agent or the way to it is down.
    Unavailable = 5503 "UNAVAILABLE" true;
    /// A defect of this node.
    Internal = 5500 "INTERNAL" false;
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for ErrorCode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.iter().copied().find(|code| code.as_str() == text);
        found.ok_or_else(|| format!("`{}` is not an error code", super::printable(text, 40)))
    }
}

impl Serialize for ErrorCode {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for ErrorCode {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// AMP-10, MAOP-6: the eight codes exist, and words and numbers map one to one.
    #[test]
    fn codes_and_numbers_are_one_to_one() {
        let amp = [
            "AGENT_NOT_FOUND",
            "CAPABILITY_NOT_FOUND",
            "AUTHENTICATION_FAILED",
            "RATE_LIMIT_EXCEEDED",
            "TIMEOUT",
            "INVALID_SCHEMA",
            "CONTEXT_NOT_FOUND",
            "INSUFFICIENT_RESOURCES",
        ];
        assert!(amp.iter().all(|code| code.parse::<ErrorCode>().is_ok()));
        let numbers: BTreeSet<u16> = ErrorCode::ALL.iter().map(|code| code.number()).collect();
        let words: BTreeSet<&str> = ErrorCode::ALL.iter().map(|code| code.as_str()).collect();
        assert_eq!((numbers.len(), words.len()), (ErrorCode::ALL.len(), ErrorCode::ALL.len()));
        assert!(numbers.iter().all(|number| (1000..6000).contains(number)));
    }
}
