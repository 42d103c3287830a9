//! A program that runs, as its parent sees it.

use std::time::{Duration, Instant};

use proto::agent::{ChangeId, StepEvent};
use rustix::process::Pid;

use super::evidence::Tail;
use crate::channel::Channel;
use crate::journal::Entry;

/// A program that has closed its channel and does not end can be watched no more: nobody would hear that it becomes
/// another version.
const MUTE_PATIENCE: Duration = Duration::from_secs(5);

/// Which time was up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Overdue {
    Confirming(u64),
    Serving(u64),
    Mute,
}

/// The agent, as its parent sees it.
pub(super) struct Running {
    pub(super) pid: Pid,
    pub(super) channel: Channel,
    pub(super) tail: Tail,
    pub(super) since: Instant,
    /// When the probation is over, and how long it was.
    pub(super) probation: Option<(Instant, u64)>,
    pub(super) timeline: Vec<StepEvent>,
    pub(super) confirmed: bool,
    /// Why it has not, as it said last.
    pub(super) unwell: Option<String>,
    /// It is what the journal calls current, not the version before on its way there.
    pub(super) is_new: bool,
    /// The change-over by which it came to be what it is: which, and from and to what.
    pub(super) change: Option<Box<(ChangeId, Entry, Entry)>>,
    /// By then it must serve, and how long it had, milliseconds; `None` once it has said so.
    pub(super) serving_by: Option<(Instant, u64)>,
    /// Since when its end of the channel is closed.
    pub(super) mute_since: Option<Instant>,
    /// Its time was up, and it was killed.
    pub(super) overdue: Option<Overdue>,
    /// SIGTERM has been passed on; by then it must have ended.
    pub(super) stopping: Option<Instant>,
}

impl Running {
    /// By when a program that has closed its channel must have ended: one that is told to end, or is being killed, may
    /// take its time.
    pub(super) fn mute_by(&self) -> Option<Instant> {
        let since = self.mute_since.filter(|_| self.overdue.is_none() && self.stopping.is_none());
        since.map(|since| since + MUTE_PATIENCE)
    }
}
