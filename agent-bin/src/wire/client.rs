//! One server of HTTP/1.1, whose connections are kept from one request to the next.

use std::fmt;
use std::io::{self, BufReader, Read, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::chunks::read_chunks;
use super::http::{self, Head, HttpFault};
use super::timed::{Patience, Timed};
use super::tls::Dialled;

/// Connections that are kept for the next request.
const KEPT_MAX: usize = 8;
/// Without a request, a media agent ends a connection after a minute; others do so earlier, which is noticed.
const KEPT_FOR: Duration = Duration::from_secs(45);
/// How long an answer may take that was given before its request was sent whole.
const EARLY: Duration = Duration::from_secs(2);

/// A connection, with TLS or without.
#[derive(Debug)]
pub(crate) enum Wired {
    Plain(Timed),
    Tls(Box<Dialled>),
}

impl Wired {
    pub(crate) fn timed(&mut self) -> &mut Timed {
        match self {
            Wired::Plain(timed) => timed,
            Wired::Tls(stream) => &mut stream.sock,
        }
    }
}

impl Read for Wired {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        match self {
            Wired::Plain(timed) => timed.read(bytes),
            Wired::Tls(stream) => stream.read(bytes),
        }
    }
}

impl Write for Wired {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Wired::Plain(timed) => timed.write(bytes),
            Wired::Tls(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Wired::Plain(timed) => timed.flush(),
            Wired::Tls(stream) => stream.flush(),
        }
    }
}

type Connection = BufReader<Wired>;

/// How a connection is made.
type Dial = dyn Fn(Patience) -> io::Result<Wired> + Send + Sync;

/// One server.
pub(crate) struct Client {
    dial: Box<Dial>,
    pub(crate) patience: Patience,
    kept: Mutex<Vec<(Connection, Instant)>>,
}

impl fmt::Debug for Client {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str("Client")
    }
}

/// A request.
#[derive(Clone, Copy)]
pub(crate) struct Asked<'a> {
    pub(crate) method: &'a str,
    pub(crate) target: &'a str,
    /// All but `Content-Length`.
    pub(crate) fields: &'a [(&'a str, &'a str)],
    pub(crate) body: &'a [u8],
    /// Bytes that the body of an answer of this status may have.
    pub(crate) at_most: &'a dyn Fn(u16) -> u64,
    /// Whether the body of an answer may come in pieces.
    pub(crate) in_chunks: bool,
}

/// What came of it.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: Head,
    pub(crate) body: Vec<u8>,
}

impl Client {
    /// Nothing is dialled yet.
    pub(crate) fn new(
        patience: Patience,
        dial: impl Fn(Patience) -> io::Result<Wired> + Send + Sync + 'static,
    ) -> Self {
        Self { dial: Box::new(dial), patience, kept: Mutex::default() }
    }

    /// Asks once; a connection that was kept, and has ended meanwhile, does not count.
    ///
    /// # Errors
    /// The connection's; `InvalidData` if the answer is none.
    pub(crate) fn ask(&self, asked: &Asked<'_>) -> io::Result<Answer> {
        let kept = self.take();
        let was_kept = kept.is_some();
        let mut connection = kept.map_or_else(|| self.dial(), Ok)?;
        match exchange(&mut connection, asked) {
            Ok((answer, is_last)) => {
                if !is_last {
                    self.keep(connection);
                }
                Ok(answer)
            }
            // It has waited too long for this request: nothing is wrong with the other side.
            Err(error) if was_kept && may_pass(error.kind()) => {
                self.kept().clear();
                connection = self.dial()?;
                let (answer, is_last) = exchange(&mut connection, asked)?;
                if !is_last {
                    self.keep(connection);
                }
                Ok(answer)
            }
            Err(error) => Err(error),
        }
    }

    fn kept(&self) -> MutexGuard<'_, Vec<(Connection, Instant)>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self) -> Option<Connection> {
        let mut kept = self.kept();
        kept.retain(|(_, since)| since.elapsed() < KEPT_FOR);
        kept.pop().map(|(connection, _)| connection)
    }

    fn keep(&self, connection: Connection) {
        let mut kept = self.kept();
        // What follows an answer, and nobody has asked for, must not become the next one.
        if kept.len() < KEPT_MAX && connection.buffer().is_empty() {
            kept.push((connection, Instant::now()));
        }
    }

    fn dial(&self) -> io::Result<Connection> {
        Ok(BufReader::with_capacity(64 << 10, (self.dial)(self.patience)?))
    }
}

/// The answer, and whether the connection ends with it.
fn exchange(connection: &mut Connection, asked: &Asked<'_>) -> io::Result<(Answer, bool)> {
    let sent = send(connection.get_mut(), asked);
    connection.get_mut().timed().within_head();
    let head = match sent {
        Ok(()) => Head::read(connection).map_err(of_http)?.ok_or(io::ErrorKind::UnexpectedEof)?,
        // Whoever refuses a request before it has come whole may have said why.
        Err(error) => {
            connection.get_mut().timed().within(EARLY);
            match Head::read(connection) {
                Ok(Some(head)) => head,
                _ => return Err(error),
            }
        }
    };
    let status = head.status().map_err(of_http)?;
    let at_most = (asked.at_most)(status);
    let has_body = asked.method != "HEAD" && (!matches!(status, 204 | 304) || head.field("content-length").is_some());
    let is_chunked = head.field("transfer-encoding").is_some_and(|value| value.eq_ignore_ascii_case("chunked"));
    if has_body && asked.in_chunks && is_chunked && head.field("content-length").is_none() {
        connection.get_mut().timed().within_body(at_most.min(64 << 20));
        let body = read_chunks(connection, at_most).map_err(of_http)?;
        let is_last = head.is_last();
        return Ok((Answer { status, head, body }, is_last));
    }
    let bytes = head.body_bytes().map_err(of_http)?;
    // Where its end is not said, nobody can tell that it was cut.
    if matches!(status, 200 | 206) && asked.method == "GET" && head.field("content-length").is_none() {
        return Err(of_http(HttpFault::Length));
    }
    if has_body && bytes > at_most {
        let what = format!("it answers with {bytes} bytes where {at_most} at most were to come");
        return Err(io::Error::new(io::ErrorKind::InvalidData, what));
    }
    connection.get_mut().timed().within_body(bytes);
    let body = if has_body { http::read_body(connection, bytes)? } else { Vec::new() };
    let is_last = head.is_last() || (has_body && head.field("content-length").is_none());
    Ok((Answer { status, head, body }, is_last))
}

fn send(stream: &mut Wired, asked: &Asked<'_>) -> io::Result<()> {
    let length = asked.body.len().to_string();
    let fields = [asked.fields, &[("Content-Length", length.as_str())]].concat();
    stream.timed().within_body(asked.body.len() as u64);
    http::write_head(stream, &format!("{} {} HTTP/1.1", asked.method, asked.target), &fields)?;
    stream.write_all(asked.body)?;
    stream.flush()
}

/// Whether the same may succeed later: what the other side refuses, or cannot be understood, stays so.
pub(crate) fn may_pass(kind: io::ErrorKind) -> bool {
    use io::ErrorKind::{AlreadyExists, InvalidData, InvalidInput, NotFound, Other, PermissionDenied, StorageFull};
    !matches!(kind, NotFound | PermissionDenied | StorageFull | InvalidData | InvalidInput | Other | AlreadyExists)
}

pub(crate) fn of_http(fault: HttpFault) -> io::Error {
    match fault {
        HttpFault::Io(error) => error,
        other => io::Error::new(io::ErrorKind::InvalidData, other.to_string()),
    }
}
