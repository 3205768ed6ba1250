//! Tasks: several calls that are one piece of work, and survive the death of any process that has a part in it (AITP, design/tasks.md).
//!
//! [`definition`] reads what somebody asks for and refuses what cannot be run, each fault with its path; [`graph`] says what waits for what,
//! [`template`] makes a subtask's input from what came before, [`types`] sees clashes beforehand, [`planner`] finds steps for a goal, and
//! [`result`] puts outputs together. [`machine`] takes what happens and says what follows; [`state`] is the fold of what was kept, one file
//! of `transitions` for each change; [`key`] is what its attempts are known by elsewhere; [`ledger`] keeps the accounts, and [`view`] is what clients see of it all; [`unreadable`] is what they
//! see of a task that a disk has damaged.
//!
//! Invariants: nothing leaves the node before the event that it follows from is durable; at most one result per subtask is ever used,
//! and everything downstream sees that one; an attempt that was followed by another changes nothing but the accounts; every task ends once.

#[cfg(test)]
mod accounts;
pub mod definition;
pub mod fault;
pub mod graph;
pub mod key;
pub mod ledger;
pub mod machine;
pub mod planner;
pub mod result;
#[cfg(test)]
mod simulation;
pub mod state;
pub mod template;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod transitions;
pub mod types;
pub mod unreadable;
pub mod view;
