//! Connections in, for programs that serve: an `accept` that pauses at a change-over, so that no connection is taken
//! which this version will not answer. Those that come meanwhile wait in the listener's backlog for the next one.

use std::fmt;
use std::io;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags};

/// What can be accepted from: [`TcpListener`] and [`UnixListener`].
pub trait Listen: AsFd + Send + Sync + 'static {
    /// A connection.
    type Stream;
    /// As of the standard library.
    ///
    /// # Errors
    /// The socket's.
    fn set_nonblocking(&self, on: bool) -> io::Result<()>;
    /// Accepts one connection, which waits for its reads and writes.
    ///
    /// # Errors
    /// `WouldBlock` when there is none.
    fn accept(&self) -> io::Result<Self::Stream>;
}

impl Listen for TcpListener {
    type Stream = TcpStream;

    fn set_nonblocking(&self, on: bool) -> io::Result<()> {
        TcpListener::set_nonblocking(self, on)
    }

    fn accept(&self) -> io::Result<TcpStream> {
        let (stream, _) = TcpListener::accept(self)?;
        stream.set_nonblocking(false)?;
        Ok(stream)
    }
}

impl Listen for UnixListener {
    type Stream = UnixStream;

    fn set_nonblocking(&self, on: bool) -> io::Result<()> {
        UnixListener::set_nonblocking(self, on)
    }

    fn accept(&self) -> io::Result<UnixStream> {
        let (stream, _) = UnixListener::accept(self)?;
        stream.set_nonblocking(false)?;
        Ok(stream)
    }
}

/// A listener whose connections are counted. Several threads may accept from it.
///
/// ```no_run
/// # use agent_core::{AgentConfig, Intake};
/// # use std::io::Write;
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let config = AgentConfig::from_env()?;
/// let listener = config.inherited().tcp_listener("http", "0.0.0.0:8080")?;
/// let intake = Intake::new(listener)?;
/// // … hand `intake.gate()` to the agent, then serve:
/// loop {
///     let (mut stream, pass) = intake.accept()?;
///     std::thread::spawn(move || {
///         let _ = stream.write_all(b"hello\n");
///         drop((stream, pass)); // answered and closed: the change-over need not wait for it any more
///     });
/// }
/// # }
/// ```
#[derive(Debug)]
pub struct Intake<L: Listen> {
    listener: L,
    gate: Gate,
}

impl<L: Listen> Intake<L> {
    /// Takes connections from this listener, which becomes non-blocking.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn new(listener: L) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Self { listener, gate: Gate::new()? })
    }

    /// Waits for the next connection; while the program is quiesced, for its resuming. Hold the pass for as long as
    /// the connection is served.
    ///
    /// # Errors
    /// The listener's: out of descriptors, say. Trying again after a moment is right.
    pub fn accept(&self) -> io::Result<(L::Stream, Pass)> {
        loop {
            // Before there is a connection: whoever closes the gate waits until it is certain that none is taken.
            let pass = self.gate.enter();
            let mut fds = [
                PollFd::new(&self.listener, PollFlags::IN),
                PollFd::from_borrowed_fd(self.gate.inner.closing.as_fd(), PollFlags::IN),
            ];
            match rustix::event::poll(&mut fds, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
            if pass.is_wanted_back() {
                continue;
            }
            match self.listener.accept() {
                Ok(stream) => return Ok((stream, pass)),
                // Another thread was faster, or the peer has gone again.
                Err(e) if e.kind() == io::ErrorKind::WouldBlock || e.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(e) => return Err(e),
            }
        }
    }

    /// What a change-over closes and opens: see [`crate::Operations::quiesce`].
    pub fn gate(&self) -> Gate {
        self.gate.clone()
    }
}

/// Counts what is under way, and lets nothing new begin while it is closed. A handle that may be cloned. For programs
/// that do not accept connections through an [`Intake`], such as those of an async runtime or workers with a queue.
#[derive(Clone)]
pub struct Gate {
    inner: Arc<Inner>,
}

struct Inner {
    state: Mutex<State>,
    changed: Condvar,
    /// Readable while the gate is closed, for threads that wait in `poll`.
    closing: OwnedFd,
}

#[derive(Debug, Default)]
struct State {
    closed: bool,
    under_way: usize,
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.inner.state();
        write!(f, "Gate({}, {} under way)", if state.closed { "closed" } else { "open" }, state.under_way)
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Gate {
    /// An open one.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn new() -> io::Result<Self> {
        let closing = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { inner: Arc::new(Inner { state: Mutex::default(), changed: Condvar::new(), closing }) })
    }

    /// Waits until the gate is open; something is under way then until the pass is dropped.
    pub fn enter(&self) -> Pass {
        let state = self.inner.state();
        let mut state =
            self.inner.changed.wait_while(state, |state| state.closed).unwrap_or_else(PoisonError::into_inner);
        state.under_way += 1;
        Pass { gate: self.clone() }
    }

    /// As [`Gate::enter`], without waiting: `None` while the gate is closed.
    pub fn try_enter(&self) -> Option<Pass> {
        let mut state = self.inner.state();
        if state.closed {
            return None;
        }
        state.under_way += 1;
        Some(Pass { gate: self.clone() })
    }

    /// Lets nothing new begin, and waits until nothing is under way, for at most so long. Returns how many still are.
    pub fn close(&self, at_most: Duration) -> usize {
        let until = Instant::now() + at_most;
        let mut state = self.inner.state();
        state.closed = true;
        // Counts up and never waits; that it is readable is all that is looked at.
        let _ = rustix::io::write(&self.inner.closing, &1_u64.to_ne_bytes());
        while state.under_way > 0 {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            state = self.inner.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        state.under_way
    }

    /// Lets everything go on.
    pub fn open(&self) {
        let mut state = self.inner.state();
        state.closed = false;
        let _ = rustix::io::read(&self.inner.closing, &mut [0; 8]);
        self.inner.changed.notify_all();
    }
}

/// Something is under way for as long as this lives.
#[derive(Debug)]
pub struct Pass {
    gate: Gate,
}

impl Pass {
    /// Whether a change-over waits for this: finish what was begun, and begin nothing more. A server that keeps a
    /// connection for several requests closes it after the current one.
    pub fn is_wanted_back(&self) -> bool {
        self.gate.inner.state().closed
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        self.gate.inner.state().under_way -= 1;
        self.gate.inner.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    #[test]
    fn a_closed_gate_waits_for_what_is_under_way_and_no_longer_than_it_may() {
        let gate = Gate::new().unwrap();
        let pass = gate.enter();
        assert!(!pass.is_wanted_back());
        assert_eq!(gate.close(Duration::ZERO), 1);
        assert!(pass.is_wanted_back());
        assert!(gate.try_enter().is_none());
        let waiting = std::thread::spawn({
            let gate = gate.clone();
            move || gate.close(Duration::from_secs(30))
        });
        drop(pass);
        assert_eq!(waiting.join().unwrap(), 0);
        gate.open();
        drop(gate.try_enter().unwrap());
    }

    #[test]
    fn a_connection_that_comes_while_it_is_closed_waits_for_the_opening() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let intake = Arc::new(Intake::new(listener).unwrap());
        let gate = intake.gate();
        let (answered, answers) = std::sync::mpsc::channel();
        let server = intake.clone();
        std::thread::spawn(move || {
            loop {
                let (mut stream, pass) = server.accept().unwrap();
                stream.write_all(b"x").unwrap();
                drop((stream, pass));
                answered.send(()).unwrap();
            }
        });
        let ask = || TcpStream::connect(address).unwrap();
        let mut first = ask();
        answers.recv().unwrap();
        first.read_exact(&mut [0]).unwrap();
        for _ in 0..50 {
            // The thread that waits in `accept` gives its pass back by itself.
            assert_eq!(gate.close(Duration::from_secs(30)), 0);
            let mut waiting = ask();
            waiting.set_read_timeout(Some(Duration::from_millis(2))).unwrap();
            assert!(waiting.read_exact(&mut [0]).is_err(), "nobody answers while it is closed");
            gate.open();
            waiting.set_read_timeout(None).unwrap();
            waiting.read_exact(&mut [0]).unwrap();
            answers.recv().unwrap();
        }
    }

    #[test]
    fn a_listener_of_either_kind_does_not_wait_and_its_connections_do() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let local = Intake::new(UnixListener::bind(&path).unwrap()).unwrap();
        assert_eq!(Listen::accept(&local.listener).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        let mut client = UnixStream::connect(&path).unwrap();
        let (mut served, pass) = local.accept().unwrap();
        assert_eq!(format!("{:?}", local.gate()), "Gate(open, 1 under way)");
        drop(pass);
        local.gate().close(Duration::ZERO);
        assert_eq!(format!("{:?}", local.gate()), "Gate(closed, 0 under way)");
        served.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let writer = std::thread::spawn(move || client.write_all(b"x"));
        served.read_exact(&mut [0]).unwrap();
        writer.join().unwrap().unwrap();

        let remote = Intake::new(TcpListener::bind("127.0.0.1:0").unwrap()).unwrap();
        assert_eq!(Listen::accept(&remote.listener).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }
}
