//! The control path: what the manager and this machine's programs ask of the mount daemon.
//!
//! ```text
//! manager ──data/link──> daemon ──> relay ──> agent.rs ──> RUN/agents/PRODUCT.sock
//!                                     └──> jobs: operations under way, whatever breaks in between
//! RUN/mount.sock ──> socket ──> daemon        spool: reports until the manager has them
//! ```

pub(in crate::host) mod agent;
mod check;
pub(in crate::host) mod daemon;
pub(in crate::host) mod exports;
mod give;
mod jobs;
pub mod launch;
mod metrics;
mod orders;
pub(in crate::host) mod relay;
pub(in crate::host) mod socket;
pub(in crate::host) mod spool;
mod status;
