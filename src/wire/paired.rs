//! The body of a call that is given a shared context, and that of its answer: two JSON texts in one (design/contexts.md, "What people see").
//!
//! A request that says so ([`Request::with_context`](super::invocation::Request)) has `{"input":..,"context":..}` for its body, and is answered
//! with `{"output":..,"context_ops":..}`, the latter where the agent writes. Whatever carries a body, keeps it as a result or gives that once
//! more carries both, and none of them is ever there without the other.

use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{Error, malformed};

/// The body of a request: both are JSON texts.
pub fn given(input: &[u8], context: &[u8]) -> Bytes {
    [b"{\"input\":", input, b",\"context\":", context, b"}"].concat().into()
}

/// The input and the context in the body of a request.
///
/// # Errors
/// [`Error::Malformed`] if it is not such a body.
pub fn read_given(body: &Bytes) -> Result<(Bytes, Bytes), Error> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Given<'b> {
        #[serde(borrow)]
        input: &'b RawValue,
        #[serde(borrow)]
        context: &'b RawValue,
    }
    let Given { input, context } = serde_json::from_slice(body).map_err(|error| malformed("input with a context", &error))?;
    Ok((part(body, input), part(body, context)))
}

/// The body of an answer: JSON texts.
pub fn made(output: &[u8], context_ops: Option<&[u8]>) -> Bytes {
    match context_ops {
        Some(ops) => [b"{\"output\":", output, b",\"context_ops\":", ops, b"}"].concat().into(),
        None => [b"{\"output\":", output, b"}"].concat().into(),
    }
}

/// The output in the body of an answer, and what is to be written to the context.
///
/// # Errors
/// [`Error::Malformed`] if it is not such a body.
pub fn read_made(body: &Bytes) -> Result<(Bytes, Option<Bytes>), Error> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Made<'b> {
        #[serde(borrow)]
        output: &'b RawValue,
        #[serde(borrow, default)]
        context_ops: Option<&'b RawValue>,
    }
    let Made { output, context_ops } = serde_json::from_slice(body).map_err(|error| malformed("output with a context", &error))?;
    Ok((part(body, output), context_ops.map(|ops| part(body, ops))))
}

/// A part of the text, which is not copied.
fn part(body: &Bytes, part: &RawValue) -> Bytes {
    body.slice_ref(part.get().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_put_together_comes_apart() {
        let text = Bytes::from_static;
        assert_eq!(read_given(&given(b"{\"a\": 1}", b"null")), Ok((text(b"{\"a\": 1}"), text(b"null"))));
        assert_eq!(read_made(&made(b"[1, 2]", Some(b"[{}]"))), Ok((text(b"[1, 2]"), Some(text(b"[{}]")))));
        assert_eq!(read_made(&made(b"null", None)), Ok((text(b"null"), None)), "null is an output like any other");
    }

    #[test]
    fn what_is_no_such_body_is_refused() {
        for body in
            ["", "1", "{}", "{\"input\":1}", "{\"input\":1,\"context\":2,\"more\":3}", "{\"input\":1,\"input\":1,\"context\":2}", "{"]
        {
            assert!(read_given(&Bytes::from(body)).is_err(), "{body}");
        }
        for body in ["", "[]", "{}", "{\"context_ops\":[]}", "{\"output\":1,\"more\":2}", "{\"output\":1}x"] {
            assert!(read_made(&Bytes::from(body)).is_err(), "{body}");
        }
    }
}
