//! What the holder leaves to its children across `execve`: descriptors by number, and a worker's greeting.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use serde::{Deserialize, Serialize};
use tokio::process::{Child, Command};

use super::{MountError, message};
use crate::host::files::Doing;

/// Names the inherited descriptors, in order.
const FDS: &str = "MANAGER_FS_INHERITED";

/// What a worker is told first.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Greeting {
    pub(super) init: Vec<u8>,
    /// What the kernel was told; `None` before the first answer.
    pub(super) answer: Option<Vec<u8>>,
    pub(super) restarts: u32,
    pub(super) namespace_pid: Option<u32>,
    pub(super) fuse_fault: Option<String>,
}

/// What a worker says.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) enum Said {
    /// Its answer to INIT, when there was none before.
    Answer(Vec<u8>),
    /// Everything is served; a line for the operator.
    Ready(String),
    /// It is there, and was asked.
    Alive,
}

/// What a worker finds open.
pub(super) struct Inherited {
    /// The FUSE connection; `None` where there is no FUSE.
    pub(super) device: Option<OwnedFd>,
    /// To the holder.
    pub(super) control: UnixStream,
    pub(super) greeting: Greeting,
}

/// Starts a child that inherits exactly these descriptors beside 0 to 2.
pub(super) fn spawn(mut command: Command, fds: &[BorrowedFd<'_>]) -> io::Result<Child> {
    // Without CLOEXEC only while the child is started; this process has one thread, so no other child gets them.
    let inheritable = fds.iter().map(rustix::io::dup).collect::<Result<Vec<_>, _>>()?;
    let numbers: Vec<String> = inheritable.iter().map(|fd| fd.as_raw_fd().to_string()).collect();
    // In a group of its own: Ctrl-C is for the holder, which ends its children in order.
    command.env(FDS, numbers.join(",")).process_group(0).spawn()
}

/// The descriptors that the holder left open for this process.
pub(super) fn inherited<const N: usize>() -> Result<[OwnedFd; N], MountError> {
    let fds = inherited_list()?;
    let count = fds.len();
    let other = |_| MountError::NotInherited { detail: format!(": {count} descriptors instead of {N}") };
    fds.try_into().map_err(other)
}

/// See [`super::Worker::bootstrap`].
pub(super) fn inherited_worker() -> Result<Inherited, MountError> {
    let mut fds = inherited_list()?.into_iter();
    let control = fds.next().ok_or_else(|| MountError::NotInherited { detail: ": no control socket".to_owned() })?;
    let mut control = UnixStream::from(control);
    let greeting = message::receive::<Greeting>(&mut control).doing(|| "read the holder's greeting".to_owned())?;
    Ok(Inherited { device: fds.next(), control, greeting })
}

fn inherited_list() -> Result<Vec<OwnedFd>, MountError> {
    let missing = |detail: String| MountError::NotInherited { detail };
    let list = std::env::var(FDS).map_err(|_| missing(String::new()))?;
    let numbers = list.split(',').map(str::parse::<RawFd>).collect::<Result<Vec<_>, _>>();
    let numbers = numbers.map_err(|error| missing(format!(": {FDS}={list}: {error}")))?;
    let adopt = |number| crate::sys::adopt_descriptor(number).doing(|| format!("take over descriptor {number}"));
    Ok(numbers.into_iter().map(adopt).collect::<Result<Vec<_>, _>>()?)
}
