//! The stub (`manager-fs launch PRODUCT`): starts an agent from its journal and saved metadata alone, watches it, and
//! returns to the last good version when a new one does not prove itself. It knows no version, links none, and stays
//! the parent of all of them; the agent's process id stays through every change-over, and so does its listening socket,
//! which is the stub's.
//!
//! ```text
//!           journal, record, mount daemon            Serving          SIGTERM
//!  start ───────────────────────────────> Running ───────────> ready ─────────> agent ends ──> exit 0
//!                                          │  ^
//!                  ended, or time is up    v  │ last good (probation), or the same again after a while
//!                                        verdict
//! ```
//!
//! One thread and one `poll`; a second thread sends reports. Nothing here looks at a clock more often than a deadline
//! asks for.

mod after;
mod begin;
mod carry;
mod choose;
mod door;
mod evidence;
mod held;
mod lock;
mod order;
mod outlet;
mod pause;
mod run;
mod running;
mod spawn;
mod staging;
mod strays;
mod verdict;
mod wanted;
mod watch;

use std::io;
use std::path::Path;

use crate::AgentPaths;
use crate::durable::FileFault;
use crate::generation::ProgramFault;
use crate::records::RecordError;

pub(crate) use lock::is_served;
pub use outlet::Outlet;

/// Whoever watches the stub: its messages are for people, one line each.
pub trait Observer {
    /// Something happened that an operator wants to know, in a line.
    fn say(&mut self, line: &str);
    /// The agent serves; called once.
    fn ready(&mut self, line: &str);
    /// What the agent wrote to its standard error. None of the three may wait for a reader: see [`Outlet`].
    fn agent_wrote(&mut self, bytes: &[u8]);
}

/// The stub cannot go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StubError {
    /// The saved metadata cannot be used.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// A file cannot be used.
    #[error(transparent)]
    File(#[from] FileFault),
    /// The entry point cannot be started.
    #[error(transparent)]
    Program(#[from] ProgramFault),
    /// Another stub of this product runs on these directories.
    #[error("another `launch` of {product} runs here (process {pid})")]
    Running {
        /// The product that was to be launched.
        product: String,
        /// The process id of the other stub.
        pid: u32,
    },
    /// The mount daemon says no.
    #[error("the mount daemon refuses {what}: {fault}")]
    Daemon {
        /// What was asked.
        what: String,
        /// What it answered.
        fault: String,
    },
    /// The mount daemon's namespaces cannot be entered.
    #[error("cannot enter the mount daemon's namespaces (process {pid}): {source}")]
    Namespace {
        /// Its holder's process id.
        pid: u32,
        /// What the operating system said.
        source: io::Error,
    },
    /// The operating system says no.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// What the operating system said.
        source: io::Error,
    },
}

/// Runs the product's agent until SIGTERM or SIGINT, which ends the agent in good order first. `adapter` is the program
/// that is started, with `__adapter` and the path of the tree, for versions whose programs are no agents by themselves.
///
/// # Errors
/// The agent cannot be started, for a reason that waiting does not cure: the metadata is missing or not believed, the
/// product is not exported to this host, another stub runs. An agent that ends by itself is no error; it is started
/// again.
pub fn run(paths: &AgentPaths, adapter: Option<&Path>, observer: &mut dyn Observer) -> Result<(), StubError> {
    // Before anything else: signals are blocked before the first thread, and what the caller left open is not for the
    // agent.
    let signals = crate::sys::signal::SignalFd::new(&[libc::SIGTERM, libc::SIGINT, libc::SIGCHLD]);
    let mut signals = signals.map_err(io_error("no descriptor for signals"))?;
    let held = held::Held::from_service_manager();
    crate::sys::fd::close_all_on_exec().map_err(io_error("/proc/self/fd cannot be listed"))?;
    crate::sys::exec::adopt_orphans().map_err(io_error("orphans cannot be adopted"))?;
    match begin::begin(paths, &mut signals, observer)? {
        Some(begun) => watch::Stub::new(paths, adapter, observer, signals, held, begun)?.run(),
        // Told to end while it waited.
        None => Ok(()),
    }
}

fn io_error(what: &'static str) -> impl Fn(io::Error) -> StubError {
    move |source| StubError::Io { what, source }
}
