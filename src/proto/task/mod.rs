//! Tasks: several calls that are one piece of work, and survive the death of any process that has a part in it (AITP, design/tasks.md).
//!
//! [`definition`] reads what somebody asks for and refuses what cannot be run, each fault with its path.

pub mod definition;
pub mod template;
