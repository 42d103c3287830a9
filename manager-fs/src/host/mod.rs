//! The client host's half: two paths, and the wiring on top.
//!
//! ```text
//! data     data/link ──> fetch ──> cache ──> objects ──> fuse ──> mount        data/plane is these as the rest sees them
//! control  data/link ──> control/relay ──> agents                              control/socket answers this machine
//!                        generations: what is attached, held, staged, and why it stays
//! ```
//! [`worker`] puts both together; nothing below it knows the whole.

pub mod adapter;
pub mod bundle;
pub mod cache;
pub mod control;
pub mod data;
pub mod delta;
pub mod enroll;
pub mod fetch;
mod files;
pub mod fuse;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod generations;
mod instance;
mod leftovers;
pub mod mount;
pub mod objects;
mod opcode;
mod panics;
mod pool;
pub mod profile;
pub mod timeline;
pub mod worker;

use proto::message::Fault;

/// Runs work that may wait for disks and mounts on a thread of its own.
///
/// # Errors
/// Those of the work; or it panicked.
pub(crate) async fn blocking<T, F>(work: F) -> Result<T, Fault>
where
    T: Send + 'static,
    F: FnOnce() -> Result<T, Fault> + Send + 'static,
{
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => Err(Fault::Failed(format!("the mount daemon failed inside: {error}"))),
    }
}
