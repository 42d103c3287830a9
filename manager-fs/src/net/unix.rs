//! Local sockets, also below directories whose paths are longer than a socket address may be.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use tokio::net::{UnixListener, UnixStream};

/// Listens on `path` with mode 0600. A socket that nobody serves any more is replaced; its directory is made if need be.
///
/// # Errors
/// Another process listens there, or the directory cannot be written.
pub fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    let listener = agent_core::internal::sys::socket::bind(path)?;
    listener.set_nonblocking(true)?;
    UnixListener::from_std(listener)
}

/// Connects to a local socket.
///
/// # Errors
/// There is none, or nobody listens.
pub async fn connect_unix(path: &Path) -> io::Result<UnixStream> {
    let (_directory, short) = short(path)?;
    UnixStream::connect(&short).await
}

/// Whether the peer of a local connection is root or this process's own user.
///
/// # Errors
/// The kernel does not tell.
pub fn peer_is_trusted(stream: &UnixStream) -> io::Result<bool> {
    let peer = rustix::net::sockopt::socket_peercred(stream)?;
    Ok(peer.uid.is_root() || peer.uid == rustix::process::geteuid())
}

/// A path of the same socket that fits into a socket address as long as the directory is held open.
fn short(path: &Path) -> io::Result<(File, PathBuf)> {
    let invalid = || io::Error::new(io::ErrorKind::InvalidInput, format!("{} is no socket path", path.display()));
    let (parent, name) = (path.parent().ok_or_else(invalid)?, path.file_name().ok_or_else(invalid)?);
    let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::DIRECTORY;
    let directory = OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(parent)?;
    let short = Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string()).join(name);
    Ok((directory, short))
}
