//! What an adapted program listens on: taken from the version before, or bound.

use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;

use agent_core::Inherited;
use agent_core::internal::health::who_listens;
use proto::adapter::{Adapter, Listen, ListenAddress};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

use super::AdapterError;

/// The variable by which nginx, and what was made of it, takes sockets of the nginx before it.
const OF_NGINX: &str = "NGINX";

/// All of them, in the order of the record. What has a name but another address than the record says is bound anew, and
/// what the record does not name any more is forgotten: both count for good when this version is believed.
pub(super) fn all(adapter: &Adapter, inherited: &Inherited) -> Result<Vec<(String, OwnedFd)>, AdapterError> {
    let mut sockets = Vec::new();
    for listen in &adapter.listen {
        let socket = one(listen, inherited)?;
        as_expected(adapter, &socket).map_err(|e| fault_of(listen, e))?;
        sockets.push((listen.name.clone(), socket));
    }
    Ok(sockets)
}

/// Sockets are passed blocking, as service managers do (`NonBlocking=`, systemd.service(5)), but for those that a program
/// takes as an nginx takes them of another: that one never waits in accept(2), and leaves them as it finds them. Where
/// two of its workers are woken for one client, the second would wait there for the next, with the clients it has.
fn as_expected(adapter: &Adapter, socket: &OwnedFd) -> io::Result<()> {
    if adapter.environment.iter().any(|variable| variable.name == OF_NGINX) {
        fcntl_setfl(socket, fcntl_getfl(socket)? | OFlags::NONBLOCK)?;
    }
    Ok(())
}

/// What listens and is none of these is closed, or clients would go on connecting to what nobody serves any more.
pub(super) fn forget_others(ours: &[(String, OwnedFd)], inherited: &Inherited) {
    for name in inherited.names().into_iter().map(String::from) {
        let listens = |fd: OwnedFd| rustix::net::sockopt::socket_acceptconn(fd).unwrap_or(false);
        if ours.iter().all(|(our, _)| *our != name) && inherited.take(&name).is_some_and(listens) {
            inherited.forget(&name);
        }
    }
}

fn one(listen: &Listen, inherited: &Inherited) -> Result<OwnedFd, AdapterError> {
    if let Some(found) = inherited.take(&listen.name).filter(|found| is_at(found, &listen.at)) {
        return Ok(found);
    }
    let bound = bind(&listen.at).map_err(|e| fault_of(listen, e))?;
    inherited.keep(&listen.name, &bound).map_err(|e| fault_of(listen, io::Error::other(e)))?;
    Ok(bound)
}

fn fault_of(listen: &Listen, source: io::Error) -> AdapterError {
    let holder = match (&listen.at, source.kind()) {
        (ListenAddress::Tcp(at), io::ErrorKind::AddrInUse) => who_listens(*at),
        _ => None,
    };
    let holder = holder.map(|(pid, name)| format!(" (process {pid}, {name}, listens there)")).unwrap_or_default();
    AdapterError::Listen { name: listen.name.clone(), at: listen.at.to_string(), source, holder }
}

fn bind(at: &ListenAddress) -> io::Result<OwnedFd> {
    Ok(match at {
        ListenAddress::Tcp(address) => TcpListener::bind(address)?.into(),
        ListenAddress::Udp(address) => UdpSocket::bind(address)?.into(),
        ListenAddress::Unix(path) => {
            // What an earlier boot left; somebody who listens there is not pushed aside.
            if std::os::unix::net::UnixStream::connect(path)
                .is_err_and(|e| e.kind() == io::ErrorKind::ConnectionRefused)
            {
                std::fs::remove_file(path)?;
            }
            UnixListener::bind(path)?.into()
        }
    })
}

/// Whether a socket is bound where the record says; port 0 is any.
fn is_at(socket: &OwnedFd, wanted: &ListenAddress) -> bool {
    let Ok(found) = rustix::net::getsockname(socket.as_fd()) else { return false };
    let is_stream =
        rustix::net::sockopt::socket_type(socket).is_ok_and(|kind| kind == rustix::net::SocketType::STREAM);
    match wanted {
        ListenAddress::Tcp(address) | ListenAddress::Udp(address) => {
            let Ok(found) = SocketAddr::try_from(found) else { return false };
            let same_kind = is_stream == matches!(wanted, ListenAddress::Tcp(_));
            same_kind && found.ip() == address.ip() && (address.port() == 0 || found.port() == address.port())
        }
        ListenAddress::Unix(path) => {
            let found = rustix::net::SocketAddrUnix::try_from(found).ok();
            found.and_then(|found| found.path_bytes().map(|bytes| bytes == path.as_bytes())).unwrap_or(false)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(text: &str) -> ListenAddress {
        ListenAddress::Tcp(text.parse().unwrap())
    }

    #[test]
    fn a_socket_is_taken_when_it_is_where_the_record_says() {
        let listener: OwnedFd = TcpListener::bind("127.0.0.1:0").unwrap().into();
        let port = SocketAddr::try_from(rustix::net::getsockname(&listener).unwrap()).unwrap().port();
        assert!(is_at(&listener, &tcp("127.0.0.1:0")) && is_at(&listener, &tcp(&format!("127.0.0.1:{port}"))));
        assert!(!is_at(&listener, &tcp("127.0.0.1:1")) && !is_at(&listener, &tcp("127.0.0.2:0")));
        assert!(!is_at(&listener, &ListenAddress::Udp("127.0.0.1:0".parse().unwrap())));
        assert!(!is_at(&listener, &ListenAddress::Unix("/run/x".into())));
        assert!(!is_at(&std::fs::File::open("/dev/null").unwrap().into(), &tcp("127.0.0.1:0")));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s").to_string_lossy().into_owned();
        let at = ListenAddress::Unix(path.clone());
        let first = bind(&at).unwrap();
        assert!(is_at(&first, &at));
        assert_eq!(bind(&at).unwrap_err().kind(), io::ErrorKind::AddrInUse, "somebody listens there");
        drop(first);
        bind(&at).unwrap();
    }
}
