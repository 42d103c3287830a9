//! A program that runs, as its parent sees it.

use std::io::PipeReader;
use std::os::fd::AsFd;
use std::time::Instant;

use proto::agent::{ChangeId, StepEvent};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::Pid;

use super::evidence::Tail;
use crate::channel::Channel;
use crate::journal::Entry;

/// Which time was up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Overdue {
    Confirming(u64),
    Serving(u64),
}

/// The agent, as its parent sees it.
pub(super) struct Running {
    pub(super) pid: Pid,
    pub(super) channel: Channel,
    pub(super) stderr: Option<PipeReader>,
    pub(super) tail: Tail,
    pub(super) since: Instant,
    /// When the probation is over, and how long it was.
    pub(super) probation: Option<(Instant, u64)>,
    pub(super) timeline: Vec<StepEvent>,
    pub(super) confirmed: bool,
    /// It is what the journal calls current, not the version before on its way there.
    pub(super) is_new: bool,
    /// The change-over by which it came to be what it is: which, and from and to what.
    pub(super) change: Option<Box<(ChangeId, Entry, Entry)>>,
    /// By then it must serve, and how long it had, milliseconds; `None` once it has said so.
    pub(super) serving_by: Option<(Instant, u64)>,
    /// Its time was up, and it was killed.
    pub(super) overdue: Option<Overdue>,
    /// SIGTERM has been passed on; by then it must have ended.
    pub(super) stopping: Option<Instant>,
}

impl Running {
    /// A program that is not an agent closes the channel; polling it would spin.
    pub(super) fn channel_is_over(&self) -> bool {
        let mut fds = [PollFd::from_borrowed_fd(self.channel.as_fd(), PollFlags::IN)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        rustix::event::poll(&mut fds, Some(&now)).is_ok() && fds[0].revents().contains(PollFlags::HUP)
    }
}
