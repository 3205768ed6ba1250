//! How the nouns of contexts are written in CBOR: keys and hashes as byte strings, paths as text, times as milliseconds, values as JSON.

use serde_json::Value;

use crate::model::{ContextId, OperationId, Path, Principal, TaskId, Timestamp};

/// Makes the pair of functions that `minicbor` wants for a type that is not its own.
macro_rules! written_as {
    ($module:ident, $type:ty, $to:expr, $raw:ty, $from:expr) => {
        pub(super) mod $module {
            use minicbor::decode::Error as DecodeError;
            use minicbor::encode::{Error as EncodeError, Write};
            use minicbor::{Decoder, Encoder};

            use super::*;

            pub(in super::super) fn encode<C, W: Write>(
                value: &$type,
                e: &mut Encoder<W>,
                ctx: &mut C,
            ) -> Result<(), EncodeError<W::Error>> {
                let to: fn(&$type) -> $raw = $to;
                minicbor::Encode::encode(&to(value), e, ctx)
            }

            pub(in super::super) fn decode<C>(d: &mut Decoder<'_>, ctx: &mut C) -> Result<$type, DecodeError> {
                let raw: $raw = minicbor::Decode::decode(d, ctx)?;
                let from: fn($raw) -> Option<$type> = $from;
                from(raw).ok_or_else(|| DecodeError::message(concat!("no ", stringify!($module))))
            }
        }
    };
}

type Hash = minicbor::bytes::ByteArray<32>;

written_as!(principal, Principal, |key| key.public_key().into(), Hash, |bytes| Some(Principal::from_public_key(bytes.into())));
written_as!(context, ContextId, |id| id.to_bytes().into(), Hash, |bytes| Some(ContextId::from_bytes(bytes.into())));
written_as!(operation, OperationId, |id| id.to_bytes().into(), Hash, |bytes| Some(OperationId::from_bytes(bytes.into())));
written_as!(time, Timestamp, |time| time.as_ms(), u64, |ms| Some(Timestamp::from_ms(ms)));
written_as!(path, Path, ToString::to_string, String, |text| text.parse().ok());
written_as!(value, Value, ToString::to_string, String, |text| serde_json::from_str(&text).ok());
written_as!(task, TaskId, |id| id.to_bytes().into(), minicbor::bytes::ByteArray<16>, |bytes| Some(TaskId::from_bytes(bytes.into())));
written_as!(maybe_context, Option<ContextId>, |id| id.map(|id| id.to_bytes().into()), Option<Hash>, |bytes| Some(
    bytes.map(|bytes| ContextId::from_bytes(bytes.into()))
));
written_as!(maybe_operation, Option<OperationId>, |id| id.map(|id| id.to_bytes().into()), Option<Hash>, |bytes| Some(
    bytes.map(|bytes| OperationId::from_bytes(bytes.into()))
));
written_as!(operations, Vec<OperationId>, |ids| ids.iter().map(|id| id.to_bytes().into()).collect(), Vec<Hash>, |ids| Some(
    ids.into_iter().map(|bytes| OperationId::from_bytes(bytes.into())).collect()
));
written_as!(paths, Vec<Path>, |paths| paths.iter().map(ToString::to_string).collect(), Vec<String>, |texts| texts
    .iter()
    .map(|text| text.parse().ok())
    .collect());
