//! Shared contexts: what every replica makes of the same signed statements, in whatever order they come (AMP "Context Management",
//! design/contexts.md).
//!
//! [`replica`] takes statements and decides which of them count; [`chain`] is the owner's line of access changes and says who could write
//! what and when; [`operations`] is the graph of what was written; [`fold`] makes the state of it. [`edit`] turns what people ask for into
//! items, [`park`] holds what came too early, [`quota`] says how much a node keeps for whom, [`gone`] what
//! it takes in no more.
//!
//! Invariants: what a replica shows is a function of the *set* of statements that it holds, not of their order; a statement that counts was
//! signed by somebody who could write there at the time it names, and before any cut; nobody's statement, however made, keeps another's
//! from counting; every table has a bound. Bytes, signatures and keys are the matter of `wire`; disks and peers that of the shell.

pub mod branch;
pub mod chain;
pub mod checkpoint;
pub mod edit;
pub mod fold;
pub mod gone;
#[cfg(test)]
mod hostile;
pub mod operations;
pub mod park;
pub mod past;
pub mod quota;
pub mod replica;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
