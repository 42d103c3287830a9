//! What worker and helper say to each other over `RUN/helper.sock`: one request, one reply, one connection.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use proto::message::Fault;
use proto::width;
use proto::{ObjectId, TreeId, TreePath, codec};
use serde::{Deserialize, Serialize};

use super::probe::ProbeReport;

/// What the helper is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum HelperRequest {
    Mount { tree: TreeId, with_fuse: bool },
    Unmount { tree: TreeId },
    UnmountAll,
    Warm { tree: TreeId, paths: Vec<TreePath>, bytes_max: u64 },
    Prefetch { ranges: Vec<PageRange> },
    Copy { tree: TreeId },
    List,
    Probe,
    MetaUsage,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum HelperReply {
    Mounted { path: String, already: bool, entries: u64, meta_us: u64, mount_us: u64 },
    Unmounted,
    Busy,
    Warmed { bytes: u64, took_us: u64 },
    Prefetched,
    List(Vec<MountedGeneration>),
    Probe(ProbeReport),
    MetaUsage(MetaUsage),
    Failed { errno: i32, text: String },
}

/// Bytes of an object that the page cache shall have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::host) struct PageRange {
    pub(in crate::host) object: ObjectId,
    pub(in crate::host) offset: u64,
    pub(in crate::host) bytes: u64,
}

/// A generation that is mounted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountedGeneration {
    /// The tree that is mounted.
    pub tree: TreeId,
    /// Absolute path of the mount.
    pub path: String,
    /// Whether its overlay has the FUSE layer; without it the generation does not depend on the daemon.
    pub with_fuse: bool,
}

/// Kernel memory of the metadata layers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MetaUsage {
    /// Inodes in use by layers of the tmpfs.
    pub inodes: u64,
    /// Inodes that the tmpfs may have in all.
    pub inodes_max: u64,
    /// Bytes of layers that are images.
    pub image_bytes: u64,
    /// Estimate of the kernel's memory, bytes: the images, and inode, directory entry and two attributes of each inode.
    pub bytes_estimate: u64,
    /// Bytes allowed: the cap.
    pub bytes_max: u64,
}

/// The helper did not do it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HelperError {
    /// It cannot be reached, or went away each time.
    #[error("mount helper: {0}")]
    Unreachable(io::Error),
    /// It tried and failed.
    #[error("mount helper: {text}")]
    Failed {
        /// The error number of the call that failed.
        errno: i32,
        /// What was tried, and why it failed.
        text: String,
    },
    /// Someone uses the mount.
    #[error("the mount of tree {0} is in use")]
    Busy(TreeId),
    /// It answered something else than was asked.
    #[error("mount helper: unexpected answer")]
    Protocol,
}

impl From<HelperError> for Fault {
    fn from(error: HelperError) -> Self {
        Fault::Failed(error.to_string())
    }
}

pub(super) const MESSAGE_BYTES_MAX: usize = 4 << 20;
/// Mounting sends LOOKUP and STATFS to the worker; a helper that was killed is there again within milliseconds.
const CALL_DEADLINE: Duration = Duration::from_secs(60);
const RECONNECT_PAUSE: Duration = Duration::from_millis(10);

/// Asks the helper. Every request can be repeated, so a helper that dies in the middle goes unnoticed.
#[derive(Debug, Clone)]
pub struct HelperClient {
    socket: PathBuf,
}

impl HelperClient {
    /// For the helper that listens here.
    pub fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    /// Unmounts a generation. Plain `umount`: one in use stays.
    ///
    /// # Errors
    /// [`HelperError::Busy`]: ask again when its users are gone.
    pub fn unmount(&self, tree: &TreeId) -> Result<(), HelperError> {
        match self.call(&HelperRequest::Unmount { tree: *tree }, CALL_DEADLINE)? {
            HelperReply::Unmounted => Ok(()),
            HelperReply::Busy => Err(HelperError::Busy(*tree)),
            _ => Err(HelperError::Protocol),
        }
    }

    /// Reads these files of a mounted generation, at most `bytes_max` in all, so that starting it needs no more disk or
    /// network. Returns bytes read and microseconds.
    pub fn warm(
        &self,
        tree: &TreeId,
        paths: Vec<TreePath>,
        bytes_max: u64,
        deadline: Duration,
    ) -> Result<(u64, u64), HelperError> {
        match self.call(&HelperRequest::Warm { tree: *tree, paths, bytes_max }, deadline)? {
            HelperReply::Warmed { bytes, took_us } => Ok((bytes, took_us)),
            _ => Err(HelperError::Protocol),
        }
    }

    pub(super) fn prefetch(&self, ranges: Vec<PageRange>) -> Result<(), HelperError> {
        match self.call(&HelperRequest::Prefetch { ranges }, CALL_DEADLINE)? {
            HelperReply::Prefetched => Ok(()),
            _ => Err(HelperError::Protocol),
        }
    }

    /// The generations that are mounted, also by earlier daemons.
    pub fn mounted(&self) -> Result<Vec<MountedGeneration>, HelperError> {
        match self.call(&HelperRequest::List, CALL_DEADLINE)? {
            HelperReply::List(mounted) => Ok(mounted),
            _ => Err(HelperError::Protocol),
        }
    }

    /// What this host permits.
    pub fn probe(&self) -> Result<ProbeReport, HelperError> {
        match self.call(&HelperRequest::Probe, CALL_DEADLINE)? {
            HelperReply::Probe(report) => Ok(report),
            _ => Err(HelperError::Protocol),
        }
    }

    /// Memory of the metadata layers.
    pub fn meta_usage(&self) -> Result<MetaUsage, HelperError> {
        match self.call(&HelperRequest::MetaUsage, CALL_DEADLINE)? {
            HelperReply::MetaUsage(usage) => Ok(usage),
            _ => Err(HelperError::Protocol),
        }
    }

    pub(super) fn mount(&self, tree: &TreeId, with_fuse: bool) -> Result<HelperReply, HelperError> {
        self.call(&HelperRequest::Mount { tree: *tree, with_fuse }, CALL_DEADLINE)
    }

    pub(super) fn copy(&self, tree: &TreeId) -> Result<HelperReply, HelperError> {
        self.call(&HelperRequest::Copy { tree: *tree }, Duration::from_secs(600))
    }

    pub(super) fn unmount_all(&self, deadline: Duration) -> Result<(), HelperError> {
        self.call(&HelperRequest::UnmountAll, deadline).map(|_| ())
    }

    fn call(&self, request: &HelperRequest, deadline: Duration) -> Result<HelperReply, HelperError> {
        let until = Instant::now() + deadline;
        loop {
            match self.call_once(request, until) {
                Ok(HelperReply::Failed { errno, text }) => return Err(HelperError::Failed { errno, text }),
                Ok(reply) => return Ok(reply),
                Err(error) if Instant::now() + RECONNECT_PAUSE >= until => {
                    return Err(HelperError::Unreachable(error));
                }
                Err(_) => std::thread::sleep(RECONNECT_PAUSE),
            }
        }
    }

    fn call_once(&self, request: &HelperRequest, until: Instant) -> io::Result<HelperReply> {
        let mut stream = connect(&self.socket)?;
        let left = until.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        stream.set_read_timeout(Some(left))?;
        send(&mut stream, request)?;
        receive(&mut stream)
    }
}

/// A socket's path may be longer than `sockaddr_un` takes; its directory's descriptor is not.
fn connect(socket: &Path) -> io::Result<UnixStream> {
    let (dir, name) = split(socket)?;
    UnixStream::connect(format!("/proc/self/fd/{}/{name}", dir.as_raw_fd()))
}

/// See [`connect`].
pub(super) fn listen(socket: &Path) -> io::Result<std::os::unix::net::UnixListener> {
    let (dir, name) = split(socket)?;
    let _ = std::fs::remove_file(socket);
    let listener = std::os::unix::net::UnixListener::bind(format!("/proc/self/fd/{}/{name}", dir.as_raw_fd()))?;
    std::fs::set_permissions(socket, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    Ok(listener)
}

fn split(socket: &Path) -> io::Result<(File, String)> {
    let parent = socket.parent().ok_or(io::ErrorKind::InvalidInput)?;
    let name = socket.file_name().and_then(|name| name.to_str()).ok_or(io::ErrorKind::InvalidInput)?;
    Ok((File::open(parent)?, name.to_owned()))
}

pub(super) fn send<T: Serialize>(stream: &mut UnixStream, value: &T) -> io::Result<()> {
    let body = codec::encode(value).map_err(io::Error::other)?;
    stream.write_all(&[&width::count(body.len()).to_le_bytes()[..], &body].concat())
}

pub(super) fn receive<T: serde::de::DeserializeOwned>(stream: &mut UnixStream) -> io::Result<T> {
    let mut len = [0; 4];
    stream.read_exact(&mut len)?;
    let len = u32::from_le_bytes(len) as usize;
    if len > MESSAGE_BYTES_MAX {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut body = vec![0; len];
    stream.read_exact(&mut body)?;
    codec::decode::<T, MESSAGE_BYTES_MAX>(&body).map_err(io::Error::other)
}

#[cfg(test)]
#[path = "message_tests.rs"]
mod tests;
