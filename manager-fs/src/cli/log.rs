//! Log lines of the long-running commands: on standard error, filtered by `MANAGER_FS_LOG`.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

/// Begins to print log lines. `MANAGER_FS_LOG` is a filter such as `debug` or `manager_fs::net=trace`; by default
/// `info` without the FUSE library's own.
pub(super) fn start() {
    start_to(std::io::stderr);
}

/// As [`start`], on a way of its own.
pub(super) fn start_to(writer: impl for<'w> MakeWriter<'w> + Send + Sync + 'static) {
    let filter = EnvFilter::try_from_env("MANAGER_FS_LOG").unwrap_or_else(|_| EnvFilter::new("info,fuser=warn"));
    // Fails when a log was set up already, which is as good.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(writer)
        .try_init();
}
