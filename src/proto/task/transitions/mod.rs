//! What may happen to a task, a file for each: `decide` says which events follow from an input, `apply` what an event changes.
//!
//! | from -> to | event | file |
//! |---|---|---|
//! | PENDING or RETRYING, an agent is chosen | Dispatched | [`dispatch`] |
//! | PENDING or RETRYING -> EXECUTING | Accepted | [`accept`] |
//! | PENDING -> PENDING, RETRYING -> RETRYING | Rejected | [`reject`] |
//! | PENDING -> PENDING, RETRYING -> RETRYING, nobody can do it | Deferred | [`unavailable`] |
//! | EXECUTING -> COMPLETED -> SUCCESS | ResultReceived, Validated | [`result`] |
//! | COMPLETED, what it brings for the context is written | ContextWritten | [`result`] |
//! | RETRYING -> COMPLETED -> SUCCESS, the attempt that was lost answers before there is another | ResultReceived, Validated | [`result`] |
//! | any, an attempt that was given up answers | DuplicateResult | [`result`] |
//! | EXECUTING or COMPLETED -> RETRYING | AttemptFailed | [`retry`] |
//! | anything -> FAILED | SubtaskFailed | [`fail`] |
//! | the home node was away | Requeued | [`recover`] |
//! | the end of the task | CancelRequested, Ended | [`end`] |
//!
//! What each of them means for the accounts stands in [`settle`].
//!
//! `decide` may assume nothing of an input but its type: it may be late, repeated, or about an attempt that is not the current one.

pub(super) mod accept;
pub(super) mod dispatch;
pub(super) mod end;
pub(super) mod fail;
pub(super) mod recover;
pub(super) mod reject;
pub(super) mod result;
pub(super) mod retry;
pub(super) mod settle;
pub(super) mod unavailable;
