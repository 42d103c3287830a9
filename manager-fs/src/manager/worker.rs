//! Work that waits for the disk, where it holds up nobody.
//!
//! Hosts' work and operators' commands do not stand in one line: hosts have a part of the threads, and whatever they do, a
//! command finds one.

use tokio::sync::Semaphore;

/// Threads that may block, as tokio has them: more than the disk can use.
const THREADS_MAX: usize = 512;
/// How many of them work for hosts at once.
const FOR_HOSTS: usize = THREADS_MAX - 128;

static HOSTS: Semaphore = Semaphore::const_new(FOR_HOSTS);

/// The thread that did the work ended before it: a panic, whose message is in the log, or the end of the manager.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the manager broke off this work (its log says why); ask again")]
pub struct BrokenOff;

/// Runs a host's work that blocks on a thread that may be blocked, when there is one.
pub(crate) async fn blocking<T, E>(work: impl FnOnce() -> Result<T, E> + Send + 'static) -> Result<T, E>
where
    T: Send + 'static,
    E: From<BrokenOff> + Send + 'static,
{
    let Ok(turn) = HOSTS.acquire().await else { return Err(BrokenOff.into()) };
    let work = move || {
        let done = work();
        drop(turn);
        done
    };
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|_| Err(BrokenOff.into()))
}

/// Runs an operator's command that blocks: hosts never hold it up.
pub(crate) async fn command<T, E>(work: impl FnOnce() -> Result<T, E> + Send + 'static) -> Result<T, E>
where
    T: Send + 'static,
    E: From<BrokenOff> + Send + 'static,
{
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|_| Err(BrokenOff.into()))
}

/// Waits on a thread that may be blocked, such as one that [`blocking`] runs, for what async threads do.
pub(crate) fn waiting<T>(what: impl Future<Output = T>) -> T {
    tokio::runtime::Handle::current().block_on(what)
}
