//! Embeddable library with which a running agent changes its own version.

mod agent;
pub mod bad;
pub mod channel;
mod confirm;
pub mod control;
mod drain;
mod driver;
pub mod durable;
pub mod exec;
pub mod generation;
pub mod handoff;
mod jobs;
pub mod journal;
pub mod machine;
pub mod operations;
pub mod paths;
pub mod records;
pub mod report;
mod serve;
mod stage;
pub mod stub;
pub mod swap;
pub mod sys;

pub use agent::{Agent, AgentConfig, AgentError, Stop};
pub use operations::{Demand, Ended, OperationContext, Operations};
pub use paths::AgentPaths;
