//! A repository that the media agent of another host serves: its files, by restic's REST protocol.
//!
//! A connection that is cut is dialled anew and asked the same again until the patience is over: reading changes nothing,
//! and writing a file that is there under the name of its content changes nothing either. So the other side may change
//! its version in the middle of an operation.

use std::fmt;
use std::io::{self, BufReader, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use proto::RepositoryName;
use proto::door::Door;
use serde::Deserialize;

use super::SharedMeter;
use super::format::files::{FileFault, FileKind, Store};
use super::format::id::Id;
use crate::wire::http::{self, Head, HttpFault};
use crate::wire::timed::Patience;
use crate::wire::tls::{self, Dialled};

/// How long the other side may be away, or refuse for want of room for connections. A change-over takes seconds, a
/// machine that starts again minutes.
const OUTAGE_MAX: Duration = Duration::from_secs(15 * 60);
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LAST_PAUSE: Duration = Duration::from_secs(5);
/// How often a pause looks whether the operation was stopped.
const BEAT: Duration = Duration::from_millis(100);
/// What the other side may take. Before it begins its answer it syncs what it was sent.
const PATIENCE: Patience =
    Patience { handshake: Duration::from_secs(10), head: Duration::from_secs(120), body: Duration::from_secs(30) };
/// Bytes of an answer where no part was asked for: the largest file of a repository, or the list of ten million.
const ANSWER_BYTES_MAX: u64 = 1 << 30;
/// Bytes of the text of a refusal.
const REFUSAL_BYTES_MAX: u64 = 4 << 10;
/// Connections that are kept for the next request.
const KEPT_MAX: usize = 8;
/// Without a request, the other side ends a connection after a minute.
const KEPT_FOR: Duration = Duration::from_secs(45);

type Connection = BufReader<Dialled>;

/// A repository that another host serves.
pub(super) struct Remote {
    state: PathBuf,
    door: Door,
    authorization: String,
    meter: SharedMeter,
    patience: Patience,
    outage_max: Duration,
    kept: Mutex<Vec<(Connection, Instant)>>,
}

impl fmt::Debug for Remote {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(to, "Remote({} on {})", self.door.repository, self.door.host)
    }
}

/// A request, without its fields that are always the same.
struct Request<'a> {
    method: &'static str,
    /// Below the repository.
    path: &'a str,
    range: Option<(u64, usize)>,
    body: &'a [u8],
}

/// One entry of a listing (version 2 of the protocol).
#[derive(Deserialize)]
struct Listed {
    name: String,
    size: u64,
}

impl Remote {
    /// Nothing is dialled yet.
    pub(super) fn new(state: &Path, door: Door, meter: &SharedMeter) -> Self {
        let authorization = format!("Basic {}", BASE64_STANDARD.encode(format!("grant:{}", door.grant)));
        Self {
            state: state.to_owned(),
            door,
            authorization,
            meter: meter.clone(),
            patience: PATIENCE,
            outage_max: OUTAGE_MAX,
            kept: Mutex::default(),
        }
    }

    /// The repository's name.
    pub(super) fn name(&self) -> &RepositoryName {
        &self.door.repository
    }

    /// How people call it.
    pub(super) fn place(&self) -> PathBuf {
        PathBuf::from(format!("{} (served by {})", self.door.repository, self.door.host))
    }

    /// The repository's password, which agents of hosts are told.
    pub(super) fn password(&self) -> Result<String, FileFault> {
        let request = Request { method: "GET", path: "password", range: None, body: &[] };
        let text = String::from_utf8(self.ask(&request)?);
        text.map_err(|_| self.fault("password", io::ErrorKind::InvalidData.into()))
    }

    fn ask(&self, request: &Request<'_>) -> Result<Vec<u8>, FileFault> {
        let until = Instant::now() + self.outage_max;
        let mut pause = FIRST_PAUSE;
        loop {
            let error = match self.try_once(request) {
                Ok(Ok(answer)) => return Ok(answer),
                // Whatever it is called, an answer is none that was cut.
                Ok(Err(error)) if error.kind() != io::ErrorKind::ResourceBusy => {
                    return Err(self.fault(request.path, error));
                }
                Err(error) if !may_pass(error.kind()) => return Err(self.fault(request.path, error)),
                Ok(Err(error)) | Err(error) => error,
            };
            if self.meter.is_stopped() || Instant::now() + pause > until {
                return Err(self.fault(request.path, error));
            }
            tracing::debug!("{:?}: {error}; asked again", self);
            if pause > FIRST_PAUSE * 8 {
                self.meter.say(&format!("waits for the media agent of {} ({error})", self.door.host));
            }
            self.rest(pause);
            pause = (pause * 2).min(LAST_PAUSE);
        }
    }

    fn rest(&self, pause: Duration) {
        let until = Instant::now() + pause;
        while Instant::now() < until && !self.meter.is_stopped() {
            std::thread::sleep(BEAT.min(until.saturating_duration_since(Instant::now())));
        }
    }

    /// The answer; the outer error is the connection's.
    fn try_once(&self, request: &Request<'_>) -> io::Result<io::Result<Vec<u8>>> {
        let kept = self.take();
        let was_kept = kept.is_some();
        let mut connection = kept.map_or_else(|| self.dial(), Ok)?;
        match self.exchange(&mut connection, request) {
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
                let (answer, is_last) = self.exchange(&mut connection, request)?;
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
        let stream = tls::dial(&self.state, &self.door.host, &self.door.address, self.patience)?;
        Ok(BufReader::with_capacity(64 << 10, stream))
    }

    /// The answer, and whether the connection ends with it. The outer error is the connection's.
    fn exchange(
        &self,
        connection: &mut Connection,
        request: &Request<'_>,
    ) -> io::Result<(io::Result<Vec<u8>>, bool)> {
        let Request { method, path, range, body } = request;
        let length = body.len().to_string();
        let range_text = range.map(|(from, length)| format!("bytes={from}-{}", from + (length as u64).max(1) - 1));
        let mut fields = vec![
            ("Host", self.door.host.as_str()),
            ("Authorization", &self.authorization),
            ("Accept", "application/vnd.x.restic.rest.v2"),
            ("Content-Length", &length),
        ];
        fields.extend(range_text.as_deref().map(|text| ("Range", text)));
        let stream = connection.get_mut();
        stream.sock.within_body(body.len() as u64);
        let first = format!("{method} /{}/{path} HTTP/1.1", self.door.repository);
        http::write_head(stream, &first, &fields)?;
        stream.write_all(body)?;
        stream.flush()?;
        stream.sock.within_head();
        let head = Head::read(connection).map_err(of_http)?.ok_or(io::ErrorKind::UnexpectedEof)?;
        let (status, bytes) = (head.status().map_err(of_http)?, head.body_bytes().map_err(of_http)?);
        let is_good = status == if range.is_some() { 206 } else { 200 };
        if matches!(status, 200 | 206) && !is_good {
            let what = "it answers with another part of the file than was asked for";
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        // Where its end is not said, nobody can tell that it was cut.
        if is_good && *method == "GET" && head.field("content-length").is_none() {
            return Err(of_http(HttpFault::Length));
        }
        let has_body = *method != "HEAD";
        let at_most = match range {
            _ if !is_good => REFUSAL_BYTES_MAX,
            Some((_, length)) => *length as u64,
            None => ANSWER_BYTES_MAX,
        };
        if has_body && bytes > at_most {
            let what = format!("it answers with {bytes} bytes where {at_most} at most were to come");
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        connection.get_mut().sock.within_body(bytes);
        let body = if has_body { http::read_body(connection, bytes)? } else { Vec::new() };
        let answer = match refusal(status) {
            None => Ok(body),
            Some(kind) => {
                let text = String::from_utf8_lossy(&body);
                let text = super::meter::one_line(&text);
                Err(io::Error::new(kind, if text.is_empty() { format!("status {status}") } else { text }))
            }
        };
        Ok((answer, head.is_last()))
    }

    fn fault(&self, path: &str, source: io::Error) -> FileFault {
        FileFault { path: self.place().join(path), source }
    }
}

/// What a status says, as the file system would.
fn refusal(status: u16) -> Option<io::ErrorKind> {
    match status {
        200 | 206 => None,
        404 => Some(io::ErrorKind::NotFound),
        401 | 403 => Some(io::ErrorKind::PermissionDenied),
        416 => Some(io::ErrorKind::UnexpectedEof),
        503 => Some(io::ErrorKind::ResourceBusy),
        507 => Some(io::ErrorKind::StorageFull),
        _ => Some(io::ErrorKind::InvalidData),
    }
}

/// Whether the same may succeed later: what the other side refuses, or cannot be understood, stays so.
fn may_pass(kind: io::ErrorKind) -> bool {
    use io::ErrorKind::{InvalidData, NotFound, Other, PermissionDenied, StorageFull};
    !matches!(kind, NotFound | PermissionDenied | StorageFull | InvalidData | Other)
}

fn of_http(fault: HttpFault) -> io::Error {
    match fault {
        HttpFault::Io(error) => error,
        other => io::Error::new(io::ErrorKind::InvalidData, other.to_string()),
    }
}

fn below(kind: FileKind, id: &Id) -> String {
    if kind == FileKind::Config { kind.name().to_owned() } else { format!("{}/{id}", kind.name()) }
}

impl Store for Remote {
    fn path(&self, kind: FileKind, id: &Id) -> PathBuf {
        self.place().join(below(kind, id))
    }

    fn list(&self, kind: FileKind) -> Result<Vec<(Id, u64)>, FileFault> {
        let path = format!("{}/", kind.name());
        let answer = self.ask(&Request { method: "GET", path: &path, range: None, body: &[] })?;
        let listed: Vec<Listed> = serde_json::from_slice(&answer).map_err(|error| self.fault(&path, error.into()))?;
        Ok(listed.into_iter().filter_map(|Listed { name, size }| Some((Id::parse(&name)?, size))).collect())
    }

    fn read(&self, kind: FileKind, id: &Id) -> Result<Vec<u8>, FileFault> {
        self.ask(&Request { method: "GET", path: &below(kind, id), range: None, body: &[] })
    }

    fn read_part(&self, kind: FileKind, id: &Id, offset: u64, length: usize) -> Result<Vec<u8>, FileFault> {
        let path = below(kind, id);
        if length == 0 {
            return Ok(Vec::new());
        }
        let part = self.ask(&Request { method: "GET", path: &path, range: Some((offset, length)), body: &[] })?;
        if part.len() == length { Ok(part) } else { Err(self.fault(&path, io::ErrorKind::UnexpectedEof.into())) }
    }

    fn write(&self, kind: FileKind, id: &Id, bytes: &[u8]) -> Result<(), FileFault> {
        self.ask(&Request { method: "POST", path: &below(kind, id), range: None, body: bytes }).map(drop)
    }

    fn remove(&self, kind: FileKind, id: &Id) -> Result<(), FileFault> {
        match self.ask(&Request { method: "DELETE", path: &below(kind, id), range: None, body: &[] }) {
            Err(fault) if fault.source.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed.map(drop),
        }
    }

    fn is_there(&self, kind: FileKind, id: &Id) -> bool {
        let asked = self.ask(&Request { method: "HEAD", path: &below(kind, id), range: None, body: &[] });
        !asked.is_err_and(|fault| fault.source.kind() == io::ErrorKind::NotFound)
    }

    fn written_at(&self, _: FileKind, _: &Id) -> Option<SystemTime> {
        None
    }
}

#[cfg(test)]
#[path = "remote_tests.rs"]
mod tests;
