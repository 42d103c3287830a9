//! Entering the mount daemon's namespaces. Without root its mounts exist only inside of them.

use std::io;
use std::os::fd::AsFd;

use rustix::process::{Pid, PidfdFlags, pidfd_open};
use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};

/// Moves this process into the user and mount namespaces of `pid`. The kernel allows that only while the process has
/// one thread, so it is called before any other is started. Does nothing when it is inside already.
///
/// # Errors
/// The process is gone, is another user's, or this process has threads (`EINVAL`).
pub fn enter(pid: u32) -> io::Result<()> {
    if is_inside(pid)? {
        return Ok(());
    }
    let target = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidInput)?;
    let process = pidfd_open(target, PidfdFlags::empty())?;
    let working_directory = std::env::current_dir();
    move_into_thread_name_spaces(process.as_fd(), ThreadNameSpaceType::USER | ThreadNameSpaceType::MOUNT)?;
    // The kernel moves a process that enters a mount namespace to its root directory.
    if let Ok(dir) = working_directory {
        drop(std::env::set_current_dir(dir));
    }
    Ok(())
}

/// Whether this process is in the user and mount namespaces of `pid`.
///
/// # Errors
/// The process is gone or another user's.
pub(crate) fn is_inside(pid: u32) -> io::Result<bool> {
    for kind in ["user", "mnt"] {
        let theirs = std::fs::read_link(format!("/proc/{pid}/ns/{kind}"))?;
        if theirs != std::fs::read_link(format!("/proc/self/ns/{kind}"))? {
            return Ok(false);
        }
    }
    Ok(true)
}
