//! Which descriptors cross `execve`.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// Takes a descriptor that the process inherited, by its number in an environment variable, and closes it on the next
/// `execve`. Each number can be taken once: whoever reads the variable removes it.
///
/// # Errors
/// The number is one of the standard streams, or no such descriptor is open.
pub fn take_inherited(number: RawFd) -> io::Result<OwnedFd> {
    if number <= libc::STDERR_FILENO {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("descriptor {number} is a standard stream")));
    }
    // SAFETY: fcntl on a number has no effect on memory; a number that is not open gives EBADF.
    if unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is open (the call above succeeded), and it was handed to this process by its number alone,
    // so nothing else in the process owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Whether a descriptor is closed by `execve`.
///
/// # Errors
/// `EBADF`, never for a borrowed descriptor.
pub(crate) fn set_close_on_exec(fd: BorrowedFd<'_>, close: bool) -> io::Result<()> {
    let flags = if close { rustix::io::FdFlags::CLOEXEC } else { rustix::io::FdFlags::empty() };
    Ok(rustix::io::fcntl_setfd(fd, flags)?)
}

/// Makes every descriptor but the standard streams close on `execve`, so that nothing of the old tree stays open in the
/// new program. Returns those that would not have been, for [`keep_again`].
///
/// # Errors
/// `/proc/self/fd` cannot be listed.
pub(crate) fn close_all_on_exec() -> io::Result<Vec<RawFd>> {
    let mut changed = Vec::new();
    for entry in std::fs::read_dir("/proc/self/fd")? {
        let Some(number) = entry?.file_name().to_str().and_then(|name| name.parse::<RawFd>().ok()) else { continue };
        if number <= libc::STDERR_FILENO {
            continue;
        }
        // SAFETY: reading and setting the flags of a descriptor by its number has no effect on memory; one that
        // another thread has closed meanwhile gives EBADF, which is ignored.
        unsafe {
            let flags = libc::fcntl(number, libc::F_GETFD);
            if flags >= 0 && flags & libc::FD_CLOEXEC == 0 {
                libc::fcntl(number, libc::F_SETFD, flags | libc::FD_CLOEXEC);
                changed.push(number);
            }
        }
    }
    Ok(changed)
}

/// Undoes [`close_all_on_exec`] after an `execve` that failed.
pub(crate) fn keep_again(changed: &[RawFd]) {
    for number in changed {
        // SAFETY: as above; the flag is set back to what it was.
        unsafe { libc::fcntl(*number, libc::F_SETFD, 0) };
    }
}

/// Which open file a descriptor leads to. It is another one when somebody has closed the descriptor and its number was
/// given to something else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FileId {
    device: u64,
    inode: u64,
}

/// `None` where the descriptor is not open.
pub(crate) fn file_id(fd: BorrowedFd<'_>) -> Option<FileId> {
    let found = rustix::fs::fstat(fd).ok()?;
    Some(FileId { device: found.st_dev, inode: found.st_ino })
}

/// The process that a pidfd is of; `None` where the descriptor is none, or the process has ended.
pub fn process_of(fd: BorrowedFd<'_>) -> Option<rustix::process::Pid> {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd())).ok()?;
    // -1 when it has ended, 0 when it is in another namespace.
    let number = info.lines().find_map(|line| line.strip_prefix("Pid:"))?.trim().parse().ok()?;
    if number > 0 { rustix::process::Pid::from_raw(number) } else { None }
}
