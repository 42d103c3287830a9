//! Embeddable library with which a running agent changes its own version.

pub mod control;
pub mod durable;
#[allow(dead_code)]
mod jobs;
pub mod journal;
pub mod operations;
pub mod paths;
pub mod sys;

pub use operations::{Demand, Ended, OperationContext, Operations};
pub use paths::AgentPaths;
