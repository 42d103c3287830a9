//! Work that waits for the disk, where it holds up nobody.

/// The thread that did the work ended before it: a panic, whose message is in the log, or the end of the manager.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the manager broke off this work (its log says why); ask again")]
pub struct BrokenOff;

/// Runs work that blocks on a thread that may be blocked.
pub(crate) async fn blocking<T, E>(work: impl FnOnce() -> Result<T, E> + Send + 'static) -> Result<T, E>
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
