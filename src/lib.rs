//! Meshwork.
pub mod model;
pub mod proto;
pub mod wire;
