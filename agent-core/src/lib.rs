//! Embeddable library with which a running agent changes its own version.

pub mod control;
pub mod durable;
pub mod journal;
pub mod paths;
pub mod sys;

pub use paths::AgentPaths;
