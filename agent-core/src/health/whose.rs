//! Which process has accepted a connection of this host.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::PathBuf;

use rustix::process::Pid;

/// The inode of the other end's socket; `None` until somebody has accepted it.
///
/// # Errors
/// The other end is not on this host, or `/proc/net` cannot be read.
pub(super) fn other_end(stream: &TcpStream) -> io::Result<Option<u64>> {
    let (ours, theirs) = (stream.local_addr()?, stream.peer_addr()?);
    let wanted = (hex(theirs), hex(ours));
    // A program that listens on all addresses of both families has an IPv4 connection in the list of IPv6.
    let mapped = (hex(mapped(theirs)), hex(mapped(ours)));
    for (list, (local, remote)) in [("tcp", &wanted), ("tcp6", &wanted), ("tcp6", &mapped)] {
        let Ok(file) = File::open(format!("/proc/net/{list}")) else { continue };
        for line in BufReader::new(file).lines() {
            let line = line?;
            let mut fields = line.split_whitespace().skip(1);
            if fields.next() == Some(local.as_str()) && fields.next() == Some(remote.as_str()) {
                let inode = fields.nth(6).and_then(|field| field.parse().ok());
                return Ok(inode.filter(|inode| *inode != 0));
            }
        }
    }
    Err(io::Error::new(io::ErrorKind::NotFound, format!("{theirs} is no socket of this host")))
}

/// Who listens at a TCP address of this host, with its name; `None` where that cannot be found out.
pub fn who_listens(at: SocketAddr) -> Option<(Pid, String)> {
    let port = format!(":{:04X}", at.port());
    let listening = ["tcp", "tcp6"].into_iter().find_map(|list| {
        let lines = BufReader::new(File::open(format!("/proc/net/{list}")).ok()?).lines();
        lines.map_while(Result::ok).find_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            // The third is the state: 0A is LISTEN.
            let is_it = fields.get(1)?.ends_with(&port) && *fields.get(3)? == "0A";
            if is_it { fields.get(9)?.parse::<u64>().ok() } else { None }
        })
    })?;
    let processes = std::fs::read_dir("/proc").ok()?.flatten();
    let pids = processes.filter_map(|entry| Pid::from_raw(entry.file_name().to_str()?.parse().ok()?));
    let holder = pids.into_iter().find(|pid| has_open(&[*pid], listening))?;
    let name = std::fs::read_to_string(format!("/proc/{}/comm", holder.as_raw_nonzero())).unwrap_or_default();
    Some((holder, name.trim_end().to_owned()))
}

/// Whether one of these processes has this socket open.
pub(super) fn has_open(processes: &[Pid], inode: u64) -> bool {
    let wanted = PathBuf::from(format!("socket:[{inode}]"));
    processes.iter().any(|pid| {
        let fds = std::fs::read_dir(format!("/proc/{}/fd", pid.as_raw_nonzero())).into_iter().flatten().flatten();
        fds.into_iter().any(|fd| std::fs::read_link(fd.path()).is_ok_and(|target| target == wanted))
    })
}

fn mapped(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) => SocketAddr::new(ip.to_ipv6_mapped().into(), address.port()),
        IpAddr::V6(_) => address,
    }
}

/// As `/proc/net/tcp` has them: words of four bytes in the machine's order, in hexadecimal.
fn hex(address: SocketAddr) -> String {
    let octets = match address.ip() {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let words = octets.chunks_exact(4).map(|word| u32::from_ne_bytes([word[0], word[1], word[2], word[3]]));
    let words: String = words.map(|word| format!("{word:08X}")).collect();
    format!("{words}:{:04X}", address.port())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn a_connection_is_nobodys_until_it_is_accepted() {
        for at in ["127.0.0.1:0", "[::]:0", "[::1]:0"] {
            let listener = match TcpListener::bind(at) {
                Ok(listener) => listener,
                // A machine without IPv6.
                Err(_) if at.starts_with('[') => continue,
                Err(e) => panic!("{at}: {e}"),
            };
            let port = listener.local_addr().unwrap().port();
            let to = if at == "[::1]:0" { format!("[::1]:{port}") } else { format!("127.0.0.1:{port}") };
            let stream = TcpStream::connect(to).unwrap();
            assert_eq!(other_end(&stream).unwrap(), None, "{at}");
            let accepted = listener.accept().unwrap();
            let inode = other_end(&stream).unwrap().unwrap();
            assert_eq!(who_listens(listener.local_addr().unwrap()).unwrap().0, rustix::process::getpid());
            assert!(has_open(&[rustix::process::getpid()], inode), "{at}");
            drop(accepted);
            assert!(!has_open(&[rustix::process::getpid()], inode), "{at}");
        }
    }

    #[test]
    fn a_connection_that_is_left_over_listens_to_nothing() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap();
        let _stream = TcpStream::connect(at).unwrap();
        let _accepted = listener.accept().unwrap();
        assert!(who_listens(at).is_some());
        drop(listener);
        assert_eq!(who_listens(at), None);
    }
}
