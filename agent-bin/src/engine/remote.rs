//! A repository behind restic's REST protocol, version 2: one that the media agent of another host serves, or any server
//! of that protocol.
//!
//! A connection that is cut is dialled anew and asked the same again until the patience is over: reading changes nothing,
//! and writing a file that is there under the name of its content changes nothing either. So the other side may change
//! its version in the middle of an operation.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use proto::door::Door;
use proto::location::Server;
use serde::Deserialize;

use super::SharedMeter;
use super::again::{Again, Tried};
use super::format::files::{FileFault, FileKind, Store};
use super::format::id::Id;
use crate::wire::client::{Answer, Asked, Client, Wired};
use crate::wire::timed::Patience;
use crate::wire::tls;

/// How long the other side may be away, or refuse for want of room for connections. A change-over takes seconds, a
/// machine that starts again minutes.
pub(super) const OUTAGE_MAX: Duration = Duration::from_secs(15 * 60);
/// What the other side may take. Before it begins its answer it syncs what it was sent.
pub(super) const PATIENCE: Patience =
    Patience { handshake: Duration::from_secs(10), head: Duration::from_secs(120), body: Duration::from_secs(30) };
/// Bytes of an answer where no part was asked for: the largest file of a repository, or the list of ten million.
pub(super) const ANSWER_BYTES_MAX: u64 = 1 << 30;
/// Bytes of the text of a refusal.
pub(super) const REFUSAL_BYTES_MAX: u64 = 4 << 10;

/// Whose server it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Manners {
    /// A media agent, each of whose answers is known.
    Agent,
    /// Anybody's, which may fail for a while in ways of its own, and sends bodies in pieces.
    Any,
}

/// A repository that another host, or a server, has.
pub(super) struct Remote {
    /// How people call it.
    place: PathBuf,
    /// `Host`.
    host: String,
    /// What stands before a path of the repository; ends with a slash.
    base: String,
    authorization: Option<String>,
    manners: Manners,
    client: Client,
    again: Again,
}

impl fmt::Debug for Remote {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(to, "Remote({})", self.place.display())
    }
}

/// A request, without its fields that are always the same.
#[derive(Clone, Copy)]
struct Request<'a> {
    method: &'static str,
    /// Below the repository.
    path: &'a str,
    range: Option<(u64, usize)>,
    body: &'a [u8],
}

impl<'a> Request<'a> {
    fn get(path: &'a str) -> Self {
        Self { method: "GET", path, range: None, body: &[] }
    }
}

/// One entry of a listing (version 2 of the protocol).
#[derive(Deserialize)]
struct Listed {
    name: String,
    size: u64,
}

impl Remote {
    /// Nothing is dialled yet.
    pub(super) fn new(state: &Path, door: &Door, meter: &SharedMeter) -> Self {
        let (state, host, address) = (state.to_owned(), door.host.clone(), door.address.clone());
        let dial = move |patience| Ok(Wired::Tls(Box::new(tls::dial(&state, &host, &address, patience)?)));
        Self {
            place: PathBuf::from(format!("{} (served by {})", door.repository, door.host)),
            host: door.host.to_string(),
            base: format!("/{}/", door.repository),
            authorization: Some(basic("grant", &door.grant)),
            manners: Manners::Agent,
            client: Client::new(PATIENCE, dial),
            again: Again {
                whom: format!("the media agent of {}", door.host),
                meter: meter.clone(),
                outage_max: OUTAGE_MAX,
            },
        }
    }

    /// With any server of the protocol.
    pub(super) fn at(
        place: PathBuf,
        (server, path): (&Server, &str),
        login: Option<(String, String)>,
        client: Client,
        again: Again,
    ) -> Self {
        Self {
            place,
            host: server.authority(),
            base: if path.is_empty() { "/".to_owned() } else { format!("/{path}/") },
            authorization: login.map(|(user, password)| basic(&user, &password)),
            manners: Manners::Any,
            client,
            again,
        }
    }

    /// How people call it.
    pub(super) fn place(&self) -> &Path {
        &self.place
    }

    /// The repository's password, which agents of hosts are told.
    pub(super) fn password(&self) -> Result<String, FileFault> {
        let text = String::from_utf8(self.ask(&Request::get("password"))?.body);
        text.map_err(|_| self.fault("password", io::ErrorKind::InvalidData.into()))
    }

    fn ask(&self, request: &Request<'_>) -> Result<Answer, FileFault> {
        self.again.ask(|| self.try_once(request)).map_err(|error| self.fault(request.path, error))
    }

    fn try_once(&self, request: &Request<'_>) -> Result<Answer, Tried> {
        let Request { method, path, range, body } = *request;
        let range_text = range.map(|(from, length)| format!("bytes={from}-{}", from + (length as u64).max(1) - 1));
        let mut fields = vec![("Host", self.host.as_str()), ("Accept", "application/vnd.x.restic.rest.v2")];
        fields.extend(self.authorization.as_deref().map(|text| ("Authorization", text)));
        fields.extend(range_text.as_deref().map(|text| ("Range", text)));
        let good = if range.is_some() { 206 } else { 200 };
        let at_most = |status: u16| match range {
            _ if status != good => REFUSAL_BYTES_MAX,
            Some((_, length)) => length as u64,
            None => ANSWER_BYTES_MAX,
        };
        let target = format!("{}{path}", self.base);
        let in_chunks = self.manners == Manners::Any;
        let asked = Asked { method, target: &target, fields: &fields, body, at_most: &at_most, in_chunks };
        let answer = self.client.ask(&asked).map_err(Tried::of)?;
        let status = answer.status;
        if matches!(status, 200 | 206) && status != good {
            let what = "it answers with another part of the file than was asked for";
            return Err(Tried::Final(io::Error::new(io::ErrorKind::InvalidData, what)));
        }
        let Some(kind) = refusal(status, self.manners) else { return Ok(answer) };
        let text = super::meter::one_line(&String::from_utf8_lossy(&answer.body));
        let text = match (self.manners, text.is_empty()) {
            (Manners::Agent, false) => text,
            (Manners::Any, _) if matches!(status, 401 | 403) => {
                format!("status {status}: {text}; user and password are in storage.toml of this host")
            }
            _ => format!("status {status} {text}").trim_end().to_owned(),
        };
        let error = io::Error::new(kind, text);
        // Whatever else it is called, an answer is none that was cut.
        Err(if kind == io::ErrorKind::ResourceBusy { Tried::Passing(error) } else { Tried::Final(error) })
    }

    fn fault(&self, path: &str, source: io::Error) -> FileFault {
        FileFault { path: self.place.join(path), source }
    }
}

fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", BASE64_STANDARD.encode(format!("{user}:{password}")))
}

/// What a status says, as the file system would.
fn refusal(status: u16, manners: Manners) -> Option<io::ErrorKind> {
    match status {
        200 | 206 => None,
        201 | 204 if manners == Manners::Any => None,
        408 | 429 | 500 | 502 | 504 if manners == Manners::Any => Some(io::ErrorKind::ResourceBusy),
        404 => Some(io::ErrorKind::NotFound),
        401 | 403 => Some(io::ErrorKind::PermissionDenied),
        416 => Some(io::ErrorKind::UnexpectedEof),
        503 => Some(io::ErrorKind::ResourceBusy),
        507 => Some(io::ErrorKind::StorageFull),
        _ => Some(io::ErrorKind::InvalidData),
    }
}

fn below(kind: FileKind, id: &Id) -> String {
    if kind == FileKind::Config { kind.name().to_owned() } else { format!("{}/{id}", kind.name()) }
}

impl Store for Remote {
    fn path(&self, kind: FileKind, id: &Id) -> PathBuf {
        self.place.join(below(kind, id))
    }

    fn make(&self) -> Result<(), FileFault> {
        self.ask(&Request { method: "POST", ..Request::get("?create=true") }).map(drop)
    }

    fn list(&self, kind: FileKind) -> Result<Vec<(Id, u64)>, FileFault> {
        let path = format!("{}/", kind.name());
        let answer = match self.ask(&Request::get(&path)) {
            // Of a repository that has none of the kind, as some say it.
            Err(fault) if self.manners == Manners::Any && fault.source.kind() == io::ErrorKind::NotFound => {
                return Ok(Vec::new());
            }
            answer => answer?.body,
        };
        let listed: Vec<Listed> = serde_json::from_slice(&answer).map_err(|error| self.fault(&path, error.into()))?;
        Ok(listed.into_iter().filter_map(|Listed { name, size }| Some((Id::parse(&name)?, size))).collect())
    }

    fn read(&self, kind: FileKind, id: &Id) -> Result<Vec<u8>, FileFault> {
        Ok(self.ask(&Request::get(&below(kind, id)))?.body)
    }

    fn read_part(&self, kind: FileKind, id: &Id, offset: u64, length: usize) -> Result<Vec<u8>, FileFault> {
        let path = below(kind, id);
        if length == 0 {
            return Ok(Vec::new());
        }
        let part = self.ask(&Request { range: Some((offset, length)), ..Request::get(&path) })?.body;
        if part.len() == length { Ok(part) } else { Err(self.fault(&path, io::ErrorKind::UnexpectedEof.into())) }
    }

    fn bytes(&self, kind: FileKind, id: &Id) -> Result<u64, FileFault> {
        let path = below(kind, id);
        let answer = self.ask(&Request { method: "HEAD", ..Request::get(&path) })?;
        answer.head.body_bytes().map_err(|fault| self.fault(&path, crate::wire::client::of_http(fault)))
    }

    fn write(&self, kind: FileKind, id: &Id, bytes: &[u8]) -> Result<(), FileFault> {
        self.ask(&Request { method: "POST", body: bytes, ..Request::get(&below(kind, id)) }).map(drop)
    }

    fn remove(&self, kind: FileKind, id: &Id) -> Result<(), FileFault> {
        match self.ask(&Request { method: "DELETE", ..Request::get(&below(kind, id)) }) {
            Err(fault) if fault.source.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed.map(drop),
        }
    }

    fn is_there(&self, kind: FileKind, id: &Id) -> bool {
        let asked = self.ask(&Request { method: "HEAD", ..Request::get(&below(kind, id)) });
        !asked.is_err_and(|fault| fault.source.kind() == io::ErrorKind::NotFound)
    }

    fn written_at(&self, _: FileKind, _: &Id) -> Option<SystemTime> {
        None
    }
}

#[cfg(test)]
#[path = "remote_tests.rs"]
mod tests;
