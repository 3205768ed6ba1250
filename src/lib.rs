//! Meshwork.
#[cfg(feature = "node")]
pub mod agents;
#[cfg(feature = "node")]
pub mod config;
#[cfg(feature = "node")]
pub mod mesh;
pub mod model;
pub mod proto;
#[cfg(feature = "node")]
pub mod store;
pub mod wire;
