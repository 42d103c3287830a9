//! Rollouts: a planned change of generation over many hosts (`docs/rollouts.md`).
//!
//! ```text
//! file ──plan_file──> plan ──┐
//!                            ├──> machine: state + event -> state + commands ──> whoever carries them out
//! durable progress ──────────┘
//! ```
//! The machine is pure: no I/O, no clock, no randomness, so that a million hosts can be simulated with it.

mod amount;
mod asked;
mod driver;
pub mod machine;
pub mod plan;
mod plan_file;
mod rings;
mod rollouts;
mod run;
mod view;
mod way_back;

pub(crate) use rollouts::Rollouts;
pub(crate) use run::Here;

pub use amount::{Amount, NotAnAmount};
pub use machine::NotForced;
pub use plan::Plan;
pub use plan_file::NotAPlan;
pub use rollouts::{ForceOrder, RolloutError};
pub use view::{ProblemGroup, RingView, RolloutView, WindowView, counts_words, state_words, words};
pub use way_back::NoWayBack;
