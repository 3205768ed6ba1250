//! Other nodes and agents as this node has come to know them: whom to join through, whom to shun, whom to trust.

pub mod bootstrap;
pub mod penalties;
pub mod rate;
pub mod receipts;
pub mod trust;
