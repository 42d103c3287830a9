//! Policies: what a storage manager is for (`docs/policies.md`).
//!
//! ```text
//! file, flags ──form──> definition ──┐
//!                                    ├──> machine: time + what happened -> runs that begin ──> whoever orders jobs
//! records of jobs ───────────────────┘
//! ```
//! `schedule` and the machine are pure: no I/O, no clock, no randomness.

mod board;
pub mod definition;
mod form;
pub mod machine;
mod policies;
mod protection;
pub(crate) mod runs;
pub mod schedule;
mod view;
pub mod zone;

pub(crate) use policies::{Here, Policies};

pub use definition::{Place, Policy, PolicyRun};
pub use form::{BackupForm, KeepForm, LimitsForm, NotAPolicy, PolicyForm};
pub use policies::{PolicyAnswer, PolicyAsk, PolicyError, Typed};
pub use protection::{ProtectionRow, ProtectionView, Risk, Why};
pub use runs::RunFact;
pub use view::{LaneView, PolicyView, Standing, TaskView, waits_for};
pub use zone::Zone;
