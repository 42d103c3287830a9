//! Local stream sockets at paths of any length.
//!
//! `sockaddr_un` holds 108 bytes, and a host's RUN directory may be longer; so the directory is opened and the socket
//! named as `/proc/self/fd/N/<name>`.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// Connections that wait while nobody accepts. During a change-over they wait here, so there must be room for every
/// local client that a host can have; the kernel cuts it to `net.core.somaxconn` (4096 since Linux 5.4).
const BACKLOG: i32 = 4096;

/// Connects to the socket at `path`.
///
/// # Errors
/// `NotFound` or `ConnectionRefused` when nobody serves there.
pub fn connect(path: &Path) -> io::Result<UnixStream> {
    let (_dir, address) = reach(path)?;
    let socket = new_socket()?;
    rustix::net::connect(&socket, &address)?;
    Ok(UnixStream::from(socket))
}

/// Listens at `path`, for the owner alone. The path leads to a socket that already listens, or to the old one, at
/// every moment.
///
/// # Errors
/// `AddrInUse` when somebody serves there.
pub fn bind(path: &Path) -> io::Result<UnixListener> {
    match connect(path) {
        Ok(_) => return Err(io::Error::new(io::ErrorKind::AddrInUse, "another process serves there")),
        Err(e) if e.kind() == io::ErrorKind::NotFound || e.kind() == io::ErrorKind::ConnectionRefused => {}
        Err(e) => return Err(e),
    }
    replace(path)
}

/// As [`bind`], and takes the path from whoever serves there.
///
/// # Errors
/// The file system's.
pub fn replace(path: &Path) -> io::Result<UnixListener> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let mut temporary = name.to_os_string();
    temporary.push(".new");
    let temporary = path.with_file_name(temporary);
    drop(fs::remove_file(&temporary));
    let (_dir, address) = reach(&temporary)?;
    let socket = new_socket()?;
    rustix::net::bind(&socket, &address)?;
    fs::set_permissions(&temporary, fs::Permissions::from_mode(0o600))?;
    rustix::net::listen(&socket, BACKLOG)?;
    fs::rename(&temporary, path)?;
    Ok(UnixListener::from(socket))
}

/// Who is at the other end of a local connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// Process id when it connected; 0 when it is outside of our process id namespace.
    pub pid: i32,
    /// Effective user when it connected.
    pub uid: u32,
}

impl Peer {
    /// Root and our own user are allowed to ask.
    pub fn is_allowed(&self) -> bool {
        self.uid == 0 || self.uid == rustix::process::geteuid().as_raw()
    }
}

/// The peer's credentials as the kernel noted them at connect (`SO_PEERCRED`).
///
/// # Errors
/// The descriptor is not a connected local socket.
pub fn peer(stream: impl AsFd) -> io::Result<Peer> {
    let credentials = rustix::net::sockopt::socket_peercred(stream)?;
    Ok(Peer { pid: credentials.pid.as_raw_nonzero().get(), uid: credentials.uid.as_raw() })
}

fn new_socket() -> io::Result<OwnedFd> {
    Ok(rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?)
}

/// An address for `path`, valid while the returned directory is open.
fn reach(path: &Path) -> io::Result<(Option<OwnedFd>, SocketAddrUnix)> {
    if let Ok(address) = SocketAddrUnix::new(path) {
        return Ok((None, address));
    }
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let dir = rustix::fs::open(dir, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let short = PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd())).join(name);
    Ok((Some(dir), SocketAddrUnix::new(short)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    #[test]
    fn a_path_longer_than_a_socket_address_serves() {
        let dir = tempfile::tempdir().unwrap();
        let long = dir.path().join("d".repeat(120)).join("e".repeat(120));
        fs::create_dir_all(&long).unwrap();
        let path = long.join("agent.sock");
        assert_eq!(connect(&path).unwrap_err().kind(), io::ErrorKind::NotFound);
        let listener = bind(&path).unwrap();
        let mut client = connect(&path).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        client.write_all(b"x").unwrap();
        let mut byte = [0];
        server.read_exact(&mut byte).unwrap();
        assert_eq!(peer(&server).unwrap().pid, std::process::id().cast_signed());
        assert!(peer(&server).unwrap().is_allowed());
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_dead_socket_is_replaced_and_a_live_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let live = bind(&path).unwrap();
        assert_eq!(bind(&path).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(live);
        assert_eq!(connect(&path).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        drop(bind(&path).unwrap());
    }
}
