//! Whether a program is fit to work, asked from outside: over HTTP, by a connection, or by a command.
//!
//! During a hand-over two versions may listen on the same socket, and an answer of the old one says nothing about the new
//! one. So a connection can be made to count only when certain processes have accepted it ([`Answering`]).

mod command;
mod whose;

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use proto::health::{HealthCheck, HealthProbe};
use rustix::process::Pid;

use crate::operations::NotHealthy;

pub use whose::who_listens;

/// What of an answer is read; the status line is all that counts.
const ANSWER_BYTES_MAX: u64 = 64 << 10;
/// Between two looks at who has accepted a connection, and between two connections.
const LOOK_EVERY: Duration = Duration::from_millis(3);

/// Why a program is not fit to work.
#[derive(Debug, thiserror::Error)]
enum HealthFault {
    #[error("no answer in time")]
    Late,
    #[error("nobody took the connection in time")]
    NotTaken,
    #[error("{0} connections were all taken by others than the program that is asked")]
    TakenByOthers(u32),
    #[error(transparent)]
    Io(io::Error),
    #[error("who answers cannot be found out: {0}")]
    Who(io::Error),
    #[error("status {0}")]
    Status(u16),
    #[error("the connection ended without an answer")]
    NoAnswer,
    #[error("the answer is no HTTP")]
    NotHttp,
    #[error(transparent)]
    Command(#[from] command::CommandFault),
}

impl From<io::Error> for HealthFault {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Self::Late,
            _ => Self::Io(error),
        }
    }
}

/// Whose answer counts.
pub enum Answering<'a> {
    /// Whoever listens.
    Anyone,
    /// One of these processes; asked anew at every look, since a program starts others.
    Only(&'a dyn Fn() -> Vec<Pid>),
}

/// Asks once, and waits for the answer for as long as the check says.
///
/// # Errors
/// Why the program is not fit to work: no answer, the wrong one, or not in time.
pub fn ask(check: &HealthCheck, answering: &Answering<'_>) -> Result<(), NotHealthy> {
    let until = Instant::now() + Duration::from_millis(check.timeout_ms);
    let asked = match &check.probe {
        HealthProbe::Socket(address) => connect(*address, answering, until).map(drop),
        HealthProbe::Http { address, path } => {
            connect(*address, answering, until).and_then(|stream| get(stream, *address, path, until))
        }
        HealthProbe::Command(command) => command::run(command, until).map_err(HealthFault::from),
    };
    asked.map_err(|why| NotHealthy(format!("{}: {why}", check.probe)))
}

fn left(until: Instant) -> Result<Duration, HealthFault> {
    let left = until.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(HealthFault::Late) } else { Ok(left) }
}

/// What is left, while `others` connections were taken by somebody else.
fn before(until: Instant, others: u32) -> Result<Duration, HealthFault> {
    left(until).map_err(|_| match others {
        0 => HealthFault::NotTaken,
        n => HealthFault::TakenByOthers(n),
    })
}

fn connect(address: SocketAddr, answering: &Answering<'_>, until: Instant) -> Result<TcpStream, HealthFault> {
    let mut others = 0_u32;
    loop {
        let stream = TcpStream::connect_timeout(&address, before(until, others)?).map_err(HealthFault::Io)?;
        let Answering::Only(processes) = answering else { return Ok(stream) };
        loop {
            match whose::other_end(&stream).map_err(HealthFault::Who)? {
                Some(inode) if whose::has_open(&processes(), inode) => return Ok(stream),
                Some(_) => break,
                None => std::thread::sleep(LOOK_EVERY.min(before(until, others)?)),
            }
        }
        others += 1;
        std::thread::sleep(LOOK_EVERY.min(before(until, others)?));
    }
}

fn get(mut stream: TcpStream, address: SocketAddr, path: &str, until: Instant) -> Result<(), HealthFault> {
    stream.set_write_timeout(Some(left(until)?))?;
    let request =
        format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nUser-Agent: manager-fs\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    let mut bytes = [0; 4096];
    // To its end, or the program would find its connection broken; what is too much is left.
    while (answer.len() as u64) < ANSWER_BYTES_MAX {
        stream.set_read_timeout(Some(left(until)?))?;
        match stream.read(&mut bytes) {
            Ok(0) => break,
            Ok(n) => answer.extend_from_slice(&bytes[..n]),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            // The answer is there, and how its connection ends is nobody's health.
            Err(_) if status(&answer).is_some() => break,
            Err(e) => return Err(e.into()),
        }
    }
    match status(&answer) {
        Some(200..=399) => Ok(()),
        Some(status) => Err(HealthFault::Status(status)),
        None if answer.is_empty() => Err(HealthFault::NoAnswer),
        None => Err(HealthFault::NotHttp),
    }
}

/// The number in `HTTP/1.1 200 OK`.
fn status(answer: &[u8]) -> Option<u16> {
    let line = answer.split(|byte| *byte == b'\n').next()?;
    let mut words = line.split(|byte| *byte == b' ');
    words.next()?.starts_with(b"HTTP/").then_some(())?;
    std::str::from_utf8(words.next()?).ok()?.trim_end().parse().ok().filter(|status| (100..=999).contains(status))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    fn check(probe: HealthProbe, timeout_ms: u64) -> HealthCheck {
        HealthCheck { probe, interval_ms: 1, timeout_ms }
    }

    fn server(answer: &'static [u8]) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                if stream.read(&mut [0; 4096]).is_ok_and(|n| n > 0) {
                    let _ = stream.write_all(answer);
                }
            }
        });
        address
    }

    fn http(answer: &'static [u8]) -> Result<(), String> {
        let probe = HealthProbe::Http { address: server(answer), path: "/".into() };
        ask(&check(probe, 10_000), &Answering::Anyone).map_err(|e| e.0)
    }

    #[test]
    fn the_status_line_decides() {
        assert_eq!(http(b"HTTP/1.1 200 OK\r\n\r\nwell"), Ok(()));
        assert_eq!(http(b"HTTP/1.0 302 Found\r\n\r\n"), Ok(()));
        assert!(http(b"HTTP/1.1 503 Busy\r\n\r\n").unwrap_err().contains("status 503"));
        assert!(http(b"SSH-2.0\r\n").unwrap_err().contains("no HTTP"));
        assert!(http(b"").unwrap_err().contains("without an answer"));
    }

    #[test]
    fn who_does_not_answer_is_waited_for_no_longer_than_said() {
        let silent = TcpListener::bind("127.0.0.1:0").unwrap();
        let probe = HealthProbe::Http { address: silent.local_addr().unwrap(), path: "/".into() };
        let fault = ask(&check(probe, 50), &Answering::Anyone).unwrap_err().0;
        assert!(fault.contains("in time"), "{fault}");
        let gone = silent.local_addr().unwrap();
        drop(silent);
        let fault = ask(&check(HealthProbe::Socket(gone), 1000), &Answering::Anyone).unwrap_err().0;
        assert!(fault.contains("refused"), "{fault}");
    }

    #[test]
    fn an_answer_of_somebody_else_does_not_count() {
        let probe = HealthProbe::Http { address: server(b"HTTP/1.1 200 OK\r\n\r\n"), path: "/".into() };
        let us = || vec![rustix::process::getpid()];
        ask(&check(probe.clone(), 10_000), &Answering::Only(&us)).unwrap();
        let nobody = Vec::new;
        let fault = ask(&check(probe, 100), &Answering::Only(&nobody)).unwrap_err().0;
        assert!(fault.contains("taken by others"), "{fault}");
    }

    /// Answers, and breaks the connection with the request unread.
    fn breaking(answer: &'static [u8]) -> Result<(), String> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = std::thread::spawn(move || {
            let mut stream = listener.accept().unwrap().0;
            stream.peek(&mut [0]).unwrap();
            stream.write_all(answer).unwrap();
        });
        let probe = HealthProbe::Http { address, path: "/".into() };
        let asked = ask(&check(probe, 10_000), &Answering::Anyone).map_err(|e| e.0);
        server.join().unwrap();
        asked
    }

    #[test]
    fn how_the_connection_ends_counts_only_before_the_answer() {
        assert_eq!(breaking(b"HTTP/1.1 204 No Content\r\n"), Ok(()));
        let fault = breaking(b"").unwrap_err();
        assert!(fault.contains("reset"), "{fault}");
    }
}
