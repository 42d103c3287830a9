//! A connection whose every read and write ends at a time that is set for it: a peer that sends a byte a minute gets no
//! further than one that sends none.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

/// How long one address of a name may take to accept.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);
/// How fast a body must come or go, beyond what every one is granted.
const BYTES_A_SECOND_MIN: u64 = 16 << 10;

/// What a peer may take for each part of what it says.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    /// One round trip.
    pub(crate) handshake: Duration,
    /// To the last byte of a head.
    pub(crate) head: Duration,
    /// What every body is granted, however short.
    pub(crate) body: Duration,
}

/// A connection.
#[derive(Debug)]
pub(crate) struct Timed {
    stream: TcpStream,
    patience: Patience,
    until: Instant,
}

impl Timed {
    /// Over a connection that was accepted.
    ///
    /// # Errors
    /// The socket's.
    pub(crate) fn of(stream: TcpStream, patience: Patience) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        Ok(Self { stream, patience, until: Instant::now() })
    }

    /// Dials `HOST:PORT`, one of its addresses after the other.
    ///
    /// # Errors
    /// The name has no address, or none of them accepts.
    pub(crate) fn dial(address: &str, patience: Patience) -> io::Result<Self> {
        let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        for one in address.to_socket_addrs()? {
            match TcpStream::connect_timeout(&one, CONNECT_DEADLINE) {
                Ok(stream) => return Self::of(stream, patience),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// Everything that is read or written from now on must be done within this time.
    pub(crate) fn within(&mut self, time: Duration) {
        self.until = Instant::now() + time;
    }

    /// The same for a handshake.
    pub(super) fn within_handshake(&mut self) {
        self.within(self.patience.handshake);
    }

    /// The same for a head.
    pub(crate) fn within_head(&mut self) {
        self.within(self.patience.head);
    }

    /// The same for a body of so many bytes.
    pub(crate) fn within_body(&mut self, bytes: u64) {
        self.within(self.patience.body + Duration::from_secs(bytes / BYTES_A_SECOND_MIN));
    }

    fn left(&self) -> io::Result<Duration> {
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
    }
}

/// What a socket's own time-out is called differs by system.
fn late(error: io::Error) -> io::Error {
    if error.kind() == io::ErrorKind::WouldBlock { io::ErrorKind::TimedOut.into() } else { error }
}

impl Read for Timed {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(Some(self.left()?))?;
        self.stream.read(bytes).map_err(late)
    }
}

impl Write for Timed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(Some(self.left()?))?;
        self.stream.write(bytes).map_err(late)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn a_peer_that_drips_gets_no_more_time_than_one_that_is_silent() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let dripping = std::thread::spawn(move || {
            let mut peer = listener.accept().unwrap().0;
            while peer.write_all(b".").is_ok() {
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        let none = Duration::ZERO;
        let patience = Patience { handshake: none, head: none, body: none };
        let mut timed = Timed::dial(&address, patience).unwrap();
        timed.within(Duration::from_millis(300));
        let mut all = Vec::new();
        assert_eq!(timed.read_to_end(&mut all).unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert!(!all.is_empty());
        drop(timed);
        dripping.join().unwrap();
        assert!(Timed::dial(&address, patience).is_err(), "nobody listens any more");
    }
}
