//! The storage manager, and the mount daemon of the client hosts: two halves of one program.
//!
//! ```text
//! data     publish ──> store ──> export  ══ TLS ══> fetch ──> cache ──> FUSE ──> overlay ──> exec
//! control  upgrade, jobs ──> connections ══ TLS ══> relay ──> agent (stage, drain, swap, exec, confirm)
//! ```
//!
//! [`manager`] and [`host`] never import each other; they share [`net`] and the vocabulary of [`proto`].

pub mod cli;
pub mod clock;
pub mod config;
pub mod host;
pub mod manager;
mod metrics;
pub mod moments;
pub mod net;
pub(crate) mod patch;
mod sync;
mod sys;
pub(crate) mod units;
pub mod version;

// As the targets of `tests/fuzz` call this crate.
#[cfg(test)]
extern crate self as manager_fs;
#[cfg(test)]
mod fuzz_replay;
