//! Rollouts: a planned change of generation over many hosts (`docs/rollouts.md`).
//!
//! ```text
//! file ──plan_file──> plan ──┐
//!                            ├──> machine: state + event -> state + commands ──> whoever carries them out
//! durable progress ──────────┘
//! ```
//! The machine is pure: no I/O, no clock, no randomness, so that a million hosts can be simulated with it.

mod amount;
pub mod machine;
pub mod plan;
mod plan_file;

pub use amount::{Amount, NotAnAmount};
pub use plan::Plan;
pub use plan_file::NotAPlan;
