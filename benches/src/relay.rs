//! A TCP relay that adds latency: half a round trip to each byte in each direction, and a whole one to a new connection.
//!
//! ```text
//! client ──accept──> fill ──queue, each part with its due time──> drain ──> server
//! ```
//! A queue takes no more than what the pipe would hold; a sender that is ahead of it waits, as it would for a window.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::profile::Profile;

/// Bytes of one read.
const PART_BYTES: usize = 64 << 10;
/// Connections that may wait to be accepted: a crowd comes at once.
pub(crate) const BACKLOG: i32 = 4096;
/// The relay's threads do little: many connections should not cost much memory.
const STACK_BYTES: usize = 128 << 10;

/// Listens until it is dropped.
#[derive(Debug)]
pub struct Relay {
    listener: Arc<TcpListener>,
    port: u16,
}

impl Relay {
    /// Relays from a free port of every address to a loopback port. Call it on a thread of the namespace in which both
    /// are.
    ///
    /// # Errors
    /// No port can be had.
    pub fn start(target: u16, profile: &Profile) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).context("listening for a relay")?;
        rustix::net::listen(&listener, BACKLOG)?;
        let port = listener.local_addr()?.port();
        let listener = Arc::new(listener);
        let (accepting, half, window) = (Arc::clone(&listener), profile.round_trip / 2, profile.window_bytes());
        thread::spawn(move || {
            while let Ok((inbound, peer)) = accepting.accept() {
                spawn(move || relay(inbound, (peer, target), half, window));
            }
        });
        Ok(Self { listener, port })
    }

    /// Where clients dial.
    pub fn port(&self) -> u16 {
        self.port
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        // Wakes the accepting thread. Connections end with their peers.
        let _ = rustix::net::shutdown(&*self.listener, rustix::net::Shutdown::Both);
    }
}

/// One connection. To the client it is open at once, to the server half a round trip later; what the client sends
/// before the acknowledgement would have reached it, it would have sent a round trip later.
fn relay(inbound: TcpStream, ends: (SocketAddr, u16), half: Duration, window: usize) -> Option<()> {
    let opened = Instant::now();
    thread::sleep(half);
    let outbound = connect(ends).ok()?;
    inbound.set_nodelay(true).ok()?;
    outbound.set_nodelay(true).ok()?;
    let (up, down) = (Arc::new(Line::new(window)), Arc::new(Line::new(window)));
    let (inbound_too, outbound_too) = (inbound.try_clone().ok()?, outbound.try_clone().ok()?);
    let (up_too, down_too) = (Arc::clone(&up), Arc::clone(&down));
    spawn(move || up_too.drain(outbound_too));
    spawn(move || down_too.drain(inbound_too));
    spawn(move || down.fill(outbound, half, opened));
    up.fill(inbound, half, opened + half * 2);
    Some(())
}

/// Connects from a loopback address that is the client's own, so that the server can tell hosts apart.
fn connect((client, target): (SocketAddr, u16)) -> Result<TcpStream> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with};
    let from = match client.ip() {
        IpAddr::V4(address) if !address.is_loopback() => {
            let [_, second, third, fourth] = address.octets();
            Ipv4Addr::new(127, second, third, fourth)
        }
        _ => Ipv4Addr::LOCALHOST,
    };
    let socket = socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    bind(&socket, &SocketAddrV4::new(from, 0))?;
    rustix::net::connect(&socket, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, target))?;
    Ok(TcpStream::from(socket))
}

fn spawn<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) {
    // Without a thread the streams are dropped and the peers see the connection end.
    let _ = thread::Builder::new().stack_size(STACK_BYTES).spawn(work);
}

/// What is under way in one direction.
#[derive(Debug)]
struct Line {
    state: Mutex<Parts>,
    changed: Condvar,
    bytes_max: usize,
}

#[derive(Debug, Default)]
struct Parts {
    /// When each is due; an empty one is the end.
    queue: VecDeque<(Instant, Vec<u8>)>,
    bytes: usize,
    /// The receiver is gone.
    broken: bool,
}

impl Line {
    fn new(bytes_max: usize) -> Self {
        Self { state: Mutex::default(), changed: Condvar::new(), bytes_max }
    }

    fn lock(&self) -> MutexGuard<'_, Parts> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads until the sender ends. Nothing counts as sent before `not_before`.
    fn fill(&self, mut from: TcpStream, delay: Duration, not_before: Instant) {
        let mut buffer = vec![0; PART_BYTES];
        loop {
            let length = from.read(&mut buffer).unwrap_or(0);
            let due = Instant::now().max(not_before) + delay;
            let mut parts = self.lock();
            while parts.bytes >= self.bytes_max && !parts.broken {
                parts = self.changed.wait(parts).unwrap_or_else(PoisonError::into_inner);
            }
            parts.bytes += length;
            parts.queue.push_back((due, buffer[..length].to_vec()));
            self.changed.notify_all();
            if length == 0 || parts.broken {
                return;
            }
        }
    }

    /// Writes each part when it is due, until the end.
    fn drain(&self, mut to: TcpStream) {
        loop {
            let (due, part) = self.next();
            thread::sleep(due.saturating_duration_since(Instant::now()));
            if part.is_empty() || to.write_all(&part).is_err() {
                break;
            }
            self.lock().bytes -= part.len();
            self.changed.notify_all();
        }
        self.lock().broken = true;
        self.changed.notify_all();
        let _ = to.shutdown(Shutdown::Write);
    }

    fn next(&self) -> (Instant, Vec<u8>) {
        let mut parts = self.lock();
        loop {
            if let Some(part) = parts.queue.pop_front() {
                return part;
            }
            parts = self.changed.wait(parts).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_connection_and_an_answer_take_a_round_trip_each() {
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let target = server.local_addr().unwrap().port();
        thread::spawn(move || {
            let (mut stream, _) = server.accept().unwrap();
            let mut byte = [0];
            while let Ok(1) = stream.read(&mut byte) {
                stream.write_all(&byte).unwrap();
            }
        });
        let profile = Profile { name: "test", megabits: None, round_trip: Duration::from_millis(60) };
        let relay = Relay::start(target, &profile).unwrap();
        let since = Instant::now();
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, relay.port())).unwrap();
        let mut byte = [7];
        for round_trips in [2, 3] {
            stream.write_all(&byte).unwrap();
            stream.read_exact(&mut byte).unwrap();
            let took = since.elapsed();
            assert!(took >= profile.round_trip * round_trips, "{took:?} for {round_trips} round trips");
            assert!(took < profile.round_trip * (round_trips + 1), "{took:?} for {round_trips} round trips");
        }
    }

    #[test]
    fn the_end_arrives_after_every_byte() {
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let target = server.local_addr().unwrap().port();
        let sent: Vec<u8> = (0..3_000_000_u32).map(|at| at.to_le_bytes()[0]).collect();
        let sending = sent.clone();
        thread::spawn(move || server.accept().unwrap().0.write_all(&sending).unwrap());
        let profile = Profile { name: "test", megabits: None, round_trip: Duration::from_millis(2) };
        let relay = Relay::start(target, &profile).unwrap();
        let mut received = Vec::new();
        TcpStream::connect((Ipv4Addr::LOCALHOST, relay.port())).unwrap().read_to_end(&mut received).unwrap();
        assert!(received == sent, "{} of {} bytes", received.len(), sent.len());
    }
}
