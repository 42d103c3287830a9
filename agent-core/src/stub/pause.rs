//! A wait that ends early when the stub is told to end, or somebody comes to its door.

use std::os::fd::AsFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};

use crate::sys::signal::SignalFd;

/// Waits, and says whether the stub was told to end meanwhile.
pub(super) fn pause<'f>(
    signals: &mut SignalFd,
    others: impl IntoIterator<Item = PollFd<'f>>,
    time: Duration,
) -> bool {
    let timeout = Timespec::try_from(time).ok();
    let mut fds: Vec<PollFd<'_>> = others.into_iter().collect();
    fds.push(PollFd::from_borrowed_fd(signals.as_fd(), PollFlags::IN));
    // A wait that is cut short costs one more look.
    let _ = rustix::event::poll(&mut fds, timeout.as_ref());
    drop(fds);
    while let Ok(Some(signal)) = signals.read() {
        if signal != libc::SIGCHLD {
            return true;
        }
    }
    false
}
