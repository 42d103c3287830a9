//! Clients that ask a server without a pause, and what becomes of each of their requests.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Nobody waits longer for one answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// What became of the requests.
#[derive(Debug, Default, Clone)]
pub struct Seen {
    /// How often each answer came; of HTTP, status and the first line of the body.
    pub answers: BTreeMap<String, u64>,
    /// Connections that were refused.
    pub refused: u64,
    /// Connections that were reset, or ended in the middle of an answer.
    pub cut: u64,
    /// Connections that ended without an answer.
    pub empty: u64,
    /// Answers that did not come within 30 s.
    pub late: u64,
    /// From the beginning of a request to the end of its answer, at most; with those that were refused, until the next
    /// answer.
    pub longest: Duration,
}

impl Seen {
    /// Requests that had no answer.
    pub fn lost(&self) -> u64 {
        self.refused + self.cut + self.empty + self.late
    }

    /// Answers that begin with this.
    pub fn of(&self, beginning: &str) -> u64 {
        self.answers.iter().filter(|(answer, _)| answer.starts_with(beginning)).map(|(_, count)| count).sum()
    }

    fn add(&mut self, other: &Self) {
        for (answer, count) in &other.answers {
            *self.answers.entry(answer.clone()).or_default() += count;
        }
        self.refused += other.refused;
        self.cut += other.cut;
        self.empty += other.empty;
        self.late += other.late;
        self.longest = self.longest.max(other.longest);
    }
}

impl std::fmt::Display for Seen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { refused, cut, empty, late, longest, .. } = self;
        let answers = self.of("");
        write!(f, "{answers} answers, {refused} refused, {cut} cut, {empty} empty, {late} late, ")?;
        write!(f, "longest pause {} ms", longest.as_millis())
    }
}

/// Asks once over HTTP, over a connection of its own.
///
/// # Errors
/// As of connections; `UnexpectedEof` where there was no answer, or half of one.
pub fn get(address: SocketAddr, path: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let text = String::from_utf8_lossy(&answer);
    let cut = || io::Error::new(io::ErrorKind::UnexpectedEof, if answer.is_empty() { "empty" } else { "cut" });
    let (head, body) = text.split_once("\r\n\r\n").ok_or_else(cut)?;
    let length =
        head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length:")?.trim().parse().ok());
    if length.is_some_and(|length: usize| body.len() < length) {
        return Err(cut());
    }
    let status = head.split(' ').nth(1).unwrap_or_default();
    Ok(format!("{status} {}", body.lines().next().unwrap_or_default()))
}

/// So many clients ask while something is done; returns what they saw, and what came of the work.
///
/// # Panics
/// A client panics.
pub fn under_load<T>(
    clients: usize,
    ask: impl Fn() -> io::Result<String> + Sync,
    work: impl FnOnce() -> T,
) -> (Seen, T) {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let asking: Vec<_> = (0..clients).map(|_| scope.spawn(|| go_on(&ask, &over))).collect();
        let done = work();
        over.store(true, Ordering::Release);
        let mut seen = Seen::default();
        for client in asking {
            seen.add(&client.join().expect("a client"));
        }
        (seen, done)
    })
}

fn go_on(ask: &(impl Fn() -> io::Result<String> + Sync), over: &AtomicBool) -> Seen {
    let mut seen = Seen::default();
    let mut since = Instant::now();
    while !over.load(Ordering::Acquire) {
        match ask() {
            Ok(answer) => {
                seen.longest = seen.longest.max(since.elapsed());
                *seen.answers.entry(answer).or_default() += 1;
                since = Instant::now();
            }
            Err(e) => {
                match e.kind() {
                    io::ErrorKind::ConnectionRefused => seen.refused += 1,
                    io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => seen.late += 1,
                    io::ErrorKind::UnexpectedEof if e.to_string() == "empty" => seen.empty += 1,
                    _ => seen.cut += 1,
                }
                // Nobody asks again at once.
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }
    seen
}
