//! The program that an adapter ran, when the version after it embeds this library: it goes on under its keeper, whose
//! pidfd crosses as everything does that is kept, so that it is there for the way back. Once this version is believed
//! nobody comes back to it, and it is told to end as the adapter would have told it.

use std::os::fd::AsFd;

use rustix::process::Signal;

use crate::descriptor_name::DescriptorName;
use crate::handoff::Handoff;
use crate::inherited::Inherited;
use crate::paths::AgentPaths;
use crate::records::{self, Verified};
use crate::sys;

/// Names of keepers begin with this as long as their program is to go on.
pub const PROGRAM: &str = "program.";
/// Names of keepers whose program has been told to end begin with this.
pub const ENDING: &str = "ending.";

/// The keepers that an adapter left, under their names.
#[derive(Debug, Default)]
pub(crate) struct Predecessor(Vec<DescriptorName>);

impl Predecessor {
    /// What was left to a version that embeds the library by one that an adapter ran.
    pub(crate) fn of(
        handoff: Option<&Handoff>,
        running: &Verified,
        paths: &AgentPaths,
        inherited: &Inherited,
    ) -> Self {
        let is_adapted = |record: &Verified| record.record.metadata.adapter.is_some();
        let before = handoff.filter(|_| !is_adapted(running));
        let before = before.and_then(|handoff| records::load(paths, &handoff.from.version).ok());
        if !before.is_some_and(|before| is_adapted(&before)) {
            return Self::default();
        }
        let names = inherited.names().into_iter();
        Self(names.filter(|name| name.as_ref().starts_with(PROGRAM)).collect())
    }

    /// Has them drain: a keeper that gets SIGTERM tells its program to end, and ends it at its deadline. Until then they
    /// are kept, and no change-over cuts them short.
    pub(crate) fn drain(&mut self, inherited: &Inherited) {
        for name in std::mem::take(&mut self.0) {
            let Some(pidfd) = inherited.take_own(&name) else { continue };
            if let Some(keeper) = sys::fd::process_of(pidfd.as_fd()) {
                tracing::info!("the program of the version before, under process {keeper}, is told to end");
                let kept = inherited.keep(&format!("{ENDING}{keeper}"), &pidfd);
                drop(kept.inspect_err(|e| tracing::warn!("it may be cut short: {e}")));
                if let Err(e) = rustix::process::pidfd_send_signal(&pidfd, Signal::TERM) {
                    tracing::warn!("process {keeper} cannot be told to end: {e}");
                }
            }
            inherited.forget_own(&name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inherited::Table;
    use std::os::unix::process::ExitStatusExt;

    #[test]
    fn what_is_told_to_end_is_kept_until_it_has_and_under_its_old_name_no_longer() {
        let inherited = Inherited::new(Table::default(), None);
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let pid = rustix::process::Pid::from_child(&child);
        let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).unwrap();
        inherited.keep("program.7.abc", pidfd).unwrap();
        let names = |inherited: &Inherited| inherited.names().into_iter().map(String::from).collect::<Vec<_>>();
        let mut left = Predecessor(inherited.names());
        left.drain(&inherited);
        left.drain(&inherited);
        assert_eq!(names(&inherited), [format!("ending.{pid}")]);
        assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGTERM));
    }
}
