//! The doors through which clients speak to a node.
//!
//! Each door is a file or folder that translates its protocol into calls of [`crate::node::Handle`] and back; none decides anything.
//! `guard` stands before all of them (threat T24), and `error` is the one table from error codes to what a door's clients see.

mod aitp;
mod error;
mod guard;
mod replay;
mod rest;
mod server;

pub use error::{ApiError, http_status};
pub use server::{Server, bind};
