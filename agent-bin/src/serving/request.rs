//! One request of restic's REST protocol, version 2, on a repository that is served here: may it, and what comes of it.
//!
//! Whoever is let in may read and add. Nothing that is there is replaced or removed, but locks by whoever took them: what
//! a host that was taken over, or a stolen token, could remove, would be the very thing that a backup is for.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::sync::Arc;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use proto::HostName;
use proto::door::{Access, Bearer, Grant};

use super::far::Far;
use super::fault::ShelfFault;
use super::shelf::Shelf;
use super::{Serving, Stream, now};
use crate::engine::format::files::FileKind;
use crate::engine::format::id::Id;
use crate::wire::http::{self, Head};

/// Bytes of one file: packs have some MiB, and an index of ten million blobs fits.
const FILE_BYTES_MAX: u64 = 1 << 30;
/// Snapshots and locks are documents of people's order of size.
const DOCUMENT_BYTES_MAX: u64 = 64 << 20;
const LOCK_BYTES_MAX: u64 = 64 << 10;

/// What the other side shows of itself.
pub(super) struct Caller<'a> {
    /// Whose certificate it has, which was verified.
    pub(super) host: Option<&'a HostName>,
    pub(super) authorization: Option<&'a str>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Status {
    Ok,
    Part,
    BadRequest,
    Unauthorized,
    Forbidden,
    NotFound,
    NotAllowed,
    TooLarge,
    Unsatisfiable,
    Failed,
    Busy,
    Full,
}

impl Status {
    pub(super) fn text(self) -> &'static str {
        match self {
            Status::Ok => "200 OK",
            Status::Part => "206 Partial Content",
            Status::BadRequest => "400 Bad Request",
            Status::Unauthorized => "401 Unauthorized",
            Status::Forbidden => "403 Forbidden",
            Status::NotFound => "404 Not Found",
            Status::NotAllowed => "405 Method Not Allowed",
            Status::TooLarge => "413 Content Too Large",
            Status::Unsatisfiable => "416 Range Not Satisfiable",
            Status::Failed => "500 Internal Server Error",
            Status::Busy => "503 Service Unavailable",
            Status::Full => "507 Insufficient Storage",
        }
    }
}

/// What is answered.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: Status,
    body: Body,
    read: bool,
    /// A grant stood for it.
    pub(super) is_let_in: bool,
}

#[derive(Debug)]
enum Body {
    Text(&'static str, Vec<u8>),
    /// So many bytes of a file, from where it stands.
    File(File, u64),
    /// So many bytes, of which only the number is asked for.
    Bytes(u64),
}

impl Answer {
    fn with(kind: &'static str, body: Vec<u8>) -> Self {
        Self { status: Status::Ok, body: Body::Text(kind, body), read: false, is_let_in: false }
    }

    pub(super) fn refused(status: Status, why: impl Into<String>) -> Self {
        Self {
            status,
            body: Body::Text("text/plain; charset=utf-8", why.into().into_bytes()),
            read: false,
            is_let_in: false,
        }
    }

    /// Whether the connection stands where the next request begins.
    pub(super) fn body_is_read(&self, bytes: u64) -> bool {
        self.read || bytes == 0
    }

    pub(super) fn bytes(&self) -> u64 {
        match &self.body {
            Body::Text(_, text) => text.len() as u64,
            Body::File(_, bytes) | Body::Bytes(bytes) => *bytes,
        }
    }

    pub(super) fn kind(&self) -> &'static str {
        match &self.body {
            Body::Text(kind, _) => kind,
            Body::File(..) | Body::Bytes(_) => "application/octet-stream",
        }
    }

    pub(super) fn write_body(self, to: &mut impl Write) -> io::Result<()> {
        match self.body {
            Body::Text(_, text) => to.write_all(&text),
            Body::Bytes(_) => Ok(()),
            Body::File(file, bytes) => {
                let written = io::copy(&mut file.take(bytes), to)?;
                // The head has promised more: the connection must end.
                if written == bytes { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
            }
        }
    }
}

impl From<ShelfFault> for Answer {
    fn from(fault: ShelfFault) -> Self {
        let status = match &fault {
            ShelfFault::NotThere => Status::NotFound,
            ShelfFault::NotItsName | ShelfFault::Cut => Status::BadRequest,
            ShelfFault::NotYours | ShelfFault::TooManyLocks => Status::Forbidden,
            ShelfFault::TooLarge => Status::TooLarge,
            ShelfFault::Busy(_) => Status::Busy,
            ShelfFault::Io(error) => match error.kind() {
                io::ErrorKind::NotFound => Status::NotFound,
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Status::Full,
                _ => Status::Failed,
            },
        };
        if status == Status::Failed {
            tracing::warn!("a request fails: {fault}");
        }
        Self::refused(status, fault.to_string())
    }
}

/// What is asked for, below a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Target {
    Whole,
    Password,
    List(FileKind),
    File(FileKind, Id),
}

/// `/NAME/…`; nothing else is a path here, and no part of one is ever one of the file system's.
fn target(text: &str) -> Option<(&str, Target)> {
    let (name, rest) = text.strip_prefix('/')?.split_once('/')?;
    let (rest, query) = rest.split_once('?').map_or((rest, None), |(rest, query)| (rest, Some(query)));
    let kind_of = |text: &str| FileKind::WITH_ID.into_iter().find(|kind| kind.name() == text);
    let target = match rest.split_once('/') {
        None if rest.is_empty() => Target::Whole,
        _ if query.is_some() => return None,
        None if rest == "password" => Target::Password,
        None if rest == FileKind::Config.name() => Target::File(FileKind::Config, Id::of(&[])),
        None => return None,
        Some((kind, "")) => Target::List(kind_of(kind)?),
        Some((kind, id)) => Target::File(kind_of(kind)?, Id::parse(id)?),
    };
    Some((name, target))
}

pub(super) fn answer(
    serving: &Arc<Serving>,
    caller: &Caller<'_>,
    method: &str,
    path: &str,
    head: &Head,
    bytes: u64,
    stream: &mut Stream,
) -> Answer {
    let Some((name, target)) = target(path) else {
        return Answer::refused(Status::NotFound, "there is nothing of this name");
    };
    // Who is not let in does not learn what there is.
    let Some((shelf, grant)) =
        serving.shelf(name).and_then(|shelf| admitted(&shelf, caller).map(|grant| (shelf, grant)))
    else {
        return Answer::refused(
            Status::Unauthorized,
            "no repository of this name is open to this grant, or to this host",
        );
    };
    let answer = match (method, target) {
        ("GET", Target::Password) => password(&shelf, &grant),
        ("GET", Target::List(kind)) => list(&shelf, kind, head),
        ("GET" | "HEAD", Target::File(kind, id)) => match shelf.far() {
            Some(far) => pass_on(far, kind, &id, head, method),
            None => read(&shelf, kind, &id, head),
        },
        ("POST", Target::File(kind, id)) => add(&shelf, &grant, caller, kind, &id, bytes, stream),
        ("DELETE", Target::File(FileKind::Lock, id)) => shelf
            .remove_lock(&id, &owner(&grant, caller))
            .map_or_else(Answer::from, |()| Answer::with(TEXT, Vec::new())),
        ("DELETE", _) => Answer::refused(Status::Forbidden, NEVER_REMOVED),
        ("POST", Target::Whole) => {
            Answer::refused(Status::Forbidden, "repositories are made by `manager-fs repository create`")
        }
        _ => Answer::refused(Status::NotAllowed, "this is not done here"),
    };
    Answer { is_let_in: true, ..answer }
}

const TEXT: &str = "text/plain; charset=utf-8";
const NEVER_REMOVED: &str = "nothing is removed from a served repository, nor replaced in it, but by its media agent";

/// What a grant, which stands in the place of a password, lets the caller do.
fn admitted(shelf: &Shelf, caller: &Caller<'_>) -> Option<Grant> {
    let encoded = caller.authorization?.strip_prefix("Basic ")?;
    let pair = String::from_utf8(BASE64_STANDARD.decode(encoded).ok()?).ok()?;
    let (_, grant) = pair.split_once(':')?;
    let kept = &shelf.kept;
    match Grant::open(grant, &kept.key, &kept.name, now()) {
        Ok(grant) if kept.refuses(&grant) => None,
        Ok(grant) => match &grant.bearer {
            Bearer::Anyone => Some(grant),
            Bearer::Host(host) => (caller.host == Some(host)).then_some(grant),
        },
        Err(fault) => {
            tracing::debug!("a grant for {} is not taken: {fault}", kept.name);
            None
        }
    }
}

/// In whose name locks are taken: a host's agents come and go, and are one.
fn owner(grant: &Grant, caller: &Caller<'_>) -> String {
    match &grant.bearer {
        Bearer::Host(host) => format!("host {host}"),
        Bearer::Anyone => format!("grant {}", Id::of(caller.authorization.unwrap_or_default().as_bytes())),
    }
}

fn password(shelf: &Shelf, grant: &Grant) -> Answer {
    match grant.bearer {
        Bearer::Host(_) => match shelf.password() {
            Ok(password) => Answer::with(TEXT, password.into_bytes()),
            Err(fault) => {
                tracing::error!("{fault}");
                Answer::refused(Status::Failed, "the repository's password cannot be read on the host that serves it")
            }
        },
        Bearer::Anyone => Answer::refused(Status::Forbidden, "the password is told to agents of hosts"),
    }
}

fn list(shelf: &Shelf, kind: FileKind, head: &Head) -> Answer {
    let listed = match shelf.list(kind) {
        Ok(listed) => listed,
        Err(fault) => return fault.into(),
    };
    const V2: &str = "application/vnd.x.restic.rest.v2";
    let entries =
        |one: &dyn Fn(&(Id, u64)) -> String| format!("[{}]", listed.iter().map(one).collect::<Vec<_>>().join(","));
    if head.field("accept").is_some_and(|kinds| kinds.contains(V2)) {
        let text = entries(&|(id, size)| format!("{{\"name\":\"{id}\",\"size\":{size}}}"));
        Answer::with(V2, text.into_bytes())
    } else {
        let text = entries(&|(id, _)| format!("\"{id}\""));
        Answer::with("application/vnd.x.restic.rest.v1", text.into_bytes())
    }
}

fn read(shelf: &Shelf, kind: FileKind, id: &Id, head: &Head) -> Answer {
    let opened = shelf.open(kind, id).and_then(|file| Ok((file.metadata()?.len(), file)));
    let (bytes, mut file) = match opened {
        Ok(opened) => opened,
        Err(fault) => return fault.into(),
    };
    let Some(range) = head.field("range") else {
        return Answer { status: Status::Ok, body: Body::File(file, bytes), read: false, is_let_in: false };
    };
    let Some((from, length)) = http::range(range, bytes) else {
        return Answer::refused(Status::Unsatisfiable, format!("the file has {bytes} bytes"));
    };
    match file.seek(SeekFrom::Start(from)) {
        Ok(_) => Answer { status: Status::Part, body: Body::File(file, length), read: false, is_let_in: false },
        Err(error) => ShelfFault::Io(error).into(),
    }
}

/// The same of a file that lies elsewhere.
fn pass_on(far: &Far, kind: FileKind, id: &Id, head: &Head, method: &str) -> Answer {
    const BYTES: &str = "application/octet-stream";
    let answer = match (method, head.field("range")) {
        ("HEAD", _) => {
            far.bytes(kind, id).map(|bytes| Answer { body: Body::Bytes(bytes), ..Answer::with(BYTES, vec![]) })
        }
        (_, None) => far.whole(kind, id).map(|content| Answer::with(BYTES, content)),
        (_, Some(range)) => far.part(kind, id, range).map(|part| match part {
            Ok(part) => Answer { status: Status::Part, ..Answer::with(BYTES, part) },
            Err(bytes) => Answer::refused(Status::Unsatisfiable, format!("the file has {bytes} bytes")),
        }),
    };
    answer.unwrap_or_else(Answer::from)
}

fn add(
    shelf: &Shelf,
    grant: &Grant,
    caller: &Caller<'_>,
    kind: FileKind,
    id: &Id,
    bytes: u64,
    stream: &mut Stream,
) -> Answer {
    let at_most = match kind {
        // A key would let somebody in for ever, and there is one config.
        FileKind::Config | FileKind::Key => return Answer::refused(Status::Forbidden, NEVER_REMOVED),
        FileKind::Lock => LOCK_BYTES_MAX,
        _ if grant.access == Access::Read => return Answer::refused(Status::Forbidden, "this grant is for reading"),
        FileKind::Snapshot => DOCUMENT_BYTES_MAX,
        FileKind::Pack | FileKind::Index => FILE_BYTES_MAX,
    };
    if bytes > at_most {
        return Answer::refused(Status::TooLarge, format!("at most {at_most} bytes are taken"));
    }
    stream.get_mut().sock.within_body(bytes);
    let added = match kind {
        FileKind::Lock => shelf.add_lock(id, bytes, stream, &owner(grant, caller)),
        _ => shelf.add(kind, id, bytes, stream),
    };
    match added {
        Ok(()) => Answer { read: true, ..Answer::with(TEXT, Vec::new()) },
        Err(fault) => fault.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_the_protocol_are_paths() {
        let id = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let pack = Target::File(FileKind::Pack, Id::parse(id).unwrap());
        assert_eq!(target(&format!("/vault/data/{id}")), Some(("vault", pack)));
        assert_eq!(target("/vault/locks/"), Some(("vault", Target::List(FileKind::Lock))));
        assert_eq!(target("/vault/?create=true"), Some(("vault", Target::Whole)));
        assert_eq!(target("/vault/password"), Some(("vault", Target::Password)));
        for bad in [
            "",
            "/",
            "vault/data/",
            "/vault",
            "/vault/data",
            "/vault/other/",
            "/vault/data/../config",
            "/vault/data/ab",
            "/vault//data/",
            "/vault/data/?x",
            "/vault/config/",
            "/vault/%2e%2e/",
            "http://a/vault/config",
        ] {
            assert_eq!(target(bad), None, "{bad}");
        }
    }
}
