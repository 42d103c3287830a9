//! A connection whose every read and write ends at a time that is set for it: a peer that sends a byte a minute gets no
//! further than one that sends none.

use std::fmt;
use std::io::{self, IoSlice, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

/// How long one address of a name may take to accept.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);
/// How fast a body must come or go, beyond what every one is granted.
const BYTES_A_SECOND_MIN: u64 = 16 << 10;

/// Bytes that are taken from the socket at once: TLS asks for four KiB at a time, and a call of the kernel costs more than
/// what it brings then.
const AHEAD_BYTES: usize = 64 << 10;

/// A time of no more is said exactly.
const NEAR: Duration = Duration::from_secs(1);

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
    /// What the socket waits for at most when it reads, and when it writes.
    armed: [Duration; 2],
    /// What was read and not yet given.
    ahead: Ahead,
}

/// Bytes between two places of a buffer.
struct Ahead {
    bytes: Box<[u8]>,
    from: usize,
    to: usize,
}

impl fmt::Debug for Ahead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.to - self.from)
    }
}

/// What a socket's time-out is for.
#[derive(Clone, Copy)]
enum Way {
    Read,
    Write,
}

impl Timed {
    /// Over a connection that was accepted.
    ///
    /// # Errors
    /// The socket's.
    pub(crate) fn of(stream: TcpStream, patience: Patience) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        let ahead = Ahead { bytes: vec![0; AHEAD_BYTES].into_boxed_slice(), from: 0, to: 0 };
        Ok(Self { stream, patience, until: Instant::now(), armed: [Duration::ZERO; 2], ahead })
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

    /// The same by a moment, if that is earlier.
    pub(crate) fn by(&mut self, moment: Instant) {
        self.until = self.until.min(moment);
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

    /// Has the socket wait no longer than what is left. It is told so only where that has become much less or more: most
    /// calls of a body need not say it again, and one that ends before its time is made once more.
    fn arm(&mut self, way: Way) -> io::Result<()> {
        let (left, armed) = (self.left()?, &mut self.armed[way as usize]);
        if *armed > left || *armed < left / 2 {
            let time = if left > NEAR { left * 3 / 4 } else { left.max(Duration::from_millis(1)) };
            match way {
                Way::Read => self.stream.set_read_timeout(Some(time))?,
                Way::Write => self.stream.set_write_timeout(Some(time))?,
            }
            *armed = time;
        }
        Ok(())
    }

    fn do_within(&mut self, way: Way, mut call: impl FnMut(&mut Self) -> io::Result<usize>) -> io::Result<usize> {
        loop {
            self.arm(way)?;
            match call(self) {
                // What a socket's own time-out is called differs by system.
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {}
                done => return done,
            }
        }
    }
}

impl Read for Timed {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        if self.ahead.from == self.ahead.to {
            let read = self.do_within(Way::Read, |timed| timed.stream.read(&mut timed.ahead.bytes))?;
            (self.ahead.from, self.ahead.to) = (0, read);
        } else {
            // Also what is there already has its time: a peer must not be served for ever by what it has sent at once.
            self.left()?;
        }
        let there = &self.ahead.bytes[self.ahead.from..self.ahead.to];
        let given = there.len().min(bytes.len());
        bytes[..given].copy_from_slice(&there[..given]);
        self.ahead.from += given;
        Ok(given)
    }
}

impl Write for Timed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.do_within(Way::Write, |timed| timed.stream.write(bytes))
    }

    /// Several records of TLS are one call.
    fn write_vectored(&mut self, bytes: &[IoSlice<'_>]) -> io::Result<usize> {
        self.do_within(Way::Write, |timed| timed.stream.write_vectored(bytes))
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
