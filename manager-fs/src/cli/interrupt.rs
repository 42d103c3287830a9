//! Ctrl-C for commands that have something to take away before they end.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio::signal::unix::{SignalKind, signal};

use super::Interrupted;

static HAPPENED: AtomicBool = AtomicBool::new(false);

/// From now on SIGINT and SIGTERM are noted instead of ending this process.
///
/// # Errors
/// No thread or no handler can be had.
pub(super) fn note_from_now_on() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (mut interrupt, mut terminate) = {
        let _entered = runtime.enter();
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
    };
    std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        runtime.block_on(async {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            HAPPENED.store(true, Ordering::Relaxed);
        });
    })?;
    Ok(())
}

/// Whether there was one; `becomes` is what becomes of the work, for people.
///
/// # Errors
/// [`Interrupted`].
pub(super) fn check(becomes: &str) -> Result<(), Interrupted> {
    if HAPPENED.load(Ordering::Relaxed) { Err(Interrupted(becomes.to_owned())) } else { Ok(()) }
}
