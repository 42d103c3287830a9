//! A repository in a bucket of S3, or of any server that speaks its protocol, as restic and rustic lay it out.
//!
//! Every body is sent with its SHA-256, which is signed and which the server holds against what it has received; so a file
//! is there as it was sent, or not at all. Where the server can tell (`If-None-Match`), nothing that is there is replaced.

mod answers;
mod sign;

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use proto::location::Server;
use rustic_core::jiff;

use super::again::{Again, Tried};
use super::format::files::{FileFault, FileKind, Store};
use super::format::id::Id;
use super::meter::one_line;
use super::remote::{ANSWER_BYTES_MAX, REFUSAL_BYTES_MAX};
use crate::wire::client::{Answer, Asked, Client};
use answers::Refused;
use sign::{Signer, Unsigned};

/// Bytes of a page of a listing: a thousand keys of a thousand bytes, and what is said of each.
const PAGE_BYTES_MAX: u64 = 8 << 20;
/// Pages of a listing: ten million files.
const PAGES_MAX: usize = 10_000;
const EMPTY: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

/// A repository in a bucket.
pub(super) struct S3 {
    /// How people call it.
    place: PathBuf,
    server: Server,
    bucket: String,
    /// Empty, or with a slash at its end.
    prefix: String,
    signer: Signer,
    client: Client,
    again: Again,
    /// Whether the server knows `If-None-Match`; it does until it says otherwise.
    is_conditional: AtomicBool,
}

/// What S3 knows somebody by.
pub(super) struct Keys {
    pub(super) id: String,
    pub(super) secret: String,
    pub(super) token: Option<String>,
    pub(super) region: String,
}

impl fmt::Debug for S3 {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(to, "S3({})", self.place.display())
    }
}

/// A request to the bucket.
#[derive(Clone, Copy)]
struct Request<'a> {
    method: &'static str,
    /// Below the bucket.
    key: &'a str,
    query: &'a [(&'a str, &'a str)],
    fields: &'a [(&'a str, &'a str)],
    body: &'a [u8],
    /// SHA-256 of the body.
    hash: &'a str,
    /// Bytes that a good answer may have.
    at_most: u64,
}

impl<'a> Request<'a> {
    fn of(method: &'static str, key: &'a str) -> Self {
        Self { method, key, query: &[], fields: &[], body: &[], hash: EMPTY, at_most: ANSWER_BYTES_MAX }
    }
}

impl S3 {
    /// Nothing is dialled yet.
    pub(super) fn new(
        place: PathBuf,
        (server, bucket, prefix): (&Server, &str, &str),
        keys: Keys,
        client: Client,
        again: Again,
    ) -> Self {
        let Keys { id, secret, token, region } = keys;
        Self {
            place,
            server: server.clone(),
            bucket: bucket.to_owned(),
            prefix: if prefix.is_empty() { String::new() } else { format!("{prefix}/") },
            signer: Signer { id, secret, token, region },
            client,
            again,
            is_conditional: AtomicBool::new(true),
        }
    }

    fn key(&self, kind: FileKind, id: &Id) -> String {
        let prefix = &self.prefix;
        match kind {
            FileKind::Config => format!("{prefix}config"),
            // As restic: two digits of it are a directory.
            FileKind::Pack => format!("{prefix}data/{:.2}/{id}", id.to_string()),
            _ => format!("{prefix}{}/{id}", kind.name()),
        }
    }

    fn ask(&self, request: &Request<'_>) -> io::Result<Answer> {
        self.again.ask(|| self.try_once(request))
    }

    fn try_once(&self, request: &Request<'_>) -> Result<Answer, Tried> {
        let Request { method, key, query, fields, body, hash, at_most } = *request;
        let at = jiff::Timestamp::now().strftime("%Y%m%dT%H%M%SZ").to_string();
        let host = self.server.authority();
        let path = if key.is_empty() { format!("/{}", self.bucket) } else { format!("/{}/{key}", self.bucket) };
        let unsigned = Unsigned { method, host: &host, path: &path, query, fields, body: hash, at: &at };
        let (target, signed) = self.signer.sign(&unsigned);
        let fields: Vec<_> = signed.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let at_most = |status| if matches!(status, 200 | 206) { at_most } else { REFUSAL_BYTES_MAX * 4 };
        let asked = Asked { method, target: &target, fields: &fields, body, at_most: &at_most, in_chunks: true };
        let answer = self.client.ask(&asked).map_err(Tried::of)?;
        match answer.status {
            200 | 204 | 206 => Ok(answer),
            status => Err(self.refusal(status, &answer)),
        }
    }

    /// What a refusal means, and what is to be done about it.
    fn refusal(&self, status: u16, answer: &Answer) -> Tried {
        use io::ErrorKind::{
            AlreadyExists, NotFound, Other, PermissionDenied, ResourceBusy, StorageFull, UnexpectedEof,
        };
        let Refused { code, message, region } = answers::refused(&answer.body);
        let said = match (one_line(&code), one_line(&message)) {
            (code, _) if code.is_empty() => format!("status {status}"),
            (code, message) => format!("{code}: {message}"),
        };
        let (bucket, server) = (&self.bucket, &self.server);
        let region = answer.head.field("x-amz-bucket-region").map_or(region, str::to_owned);
        let (kind, advice) = match (status, code.as_str()) {
            (404, "NoSuchBucket") => {
                (Other, format!("there is no bucket {bucket} at {server}: make it, or name another"))
            }
            (404, _) => (NotFound, String::new()),
            (416, _) => (UnexpectedEof, String::new()),
            (412, _) => (AlreadyExists, String::new()),
            (301 | 307, _) | (400, "AuthorizationHeaderMalformed" | "IllegalLocationConstraintException") => {
                (Other, format!("the bucket is in region {}: say so in storage.toml", one_line(&region)))
            }
            (_, "RequestTimeTooSkewed") => (Other, "this host's clock is wrong: set it".to_owned()),
            (_, "InvalidAccessKeyId" | "SignatureDoesNotMatch" | "InvalidToken" | "ExpiredToken") => {
                (PermissionDenied, "mend access-key-id and secret-access-key in storage.toml".to_owned())
            }
            (401 | 403, "QuotaExceeded") | (507, _) | (_, "XMinioAdminBucketQuotaExceeded" | "XMinioStorageFull") => {
                (StorageFull, format!("bucket {bucket} is full: make room there, or let it have more"))
            }
            (401 | 403, _) => {
                let needs = "s3:ListBucket, s3:GetObject, s3:PutObject and s3:DeleteObject";
                (PermissionDenied, format!("these keys may not do that in bucket {bucket}: they need {needs}"))
            }
            // What was damaged or cut on the way comes whole the next time.
            (400, "BadDigest" | "XAmzContentSHA256Mismatch" | "RequestTimeout" | "IncompleteBody")
            | (408 | 409 | 425 | 429 | 500 | 502 | 503 | 504, _) => (ResourceBusy, String::new()),
            _ => (Other, String::new()),
        };
        let text = if advice.is_empty() { said } else { format!("{said} ({advice})") };
        let error = io::Error::new(kind, text);
        if kind == ResourceBusy { Tried::Passing(error) } else { Tried::Final(error) }
    }

    fn fault(&self, kind: FileKind, id: &Id, source: io::Error) -> FileFault {
        FileFault { path: self.path(kind, id), source }
    }

    fn put(&self, key: &str, bytes: &[u8], hash: &Id, is_new: bool) -> io::Result<()> {
        let (hex, checksum) = (hash.to_string(), BASE64_STANDARD.encode(hash.as_bytes()));
        let mut fields = vec![("x-amz-checksum-sha256", checksum.as_str())];
        fields.extend(is_new.then_some(("if-none-match", "*")));
        self.ask(&Request { fields: &fields, body: bytes, hash: &hex, ..Request::of("PUT", key) }).map(drop)
    }

    /// As [`S3::put`], unless something is there.
    fn put_new(&self, kind: FileKind, id: &Id, bytes: &[u8]) -> io::Result<()> {
        let (key, config) = (self.key(kind, id), kind == FileKind::Config);
        // All others have the name of their content: if it is another one, the server refuses it.
        let hash = if config { Id::of(bytes) } else { *id };
        if !self.is_conditional.load(Ordering::Relaxed) {
            return self.put(&key, bytes, &hash, false);
        }
        match self.put(&key, bytes, &hash, true) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && !config => {
                // Something else of this name is damaged, and what has the right hash takes its place.
                let there = self.bytes(kind, id).map_err(|fault| fault.source)?;
                if there == bytes.len() as u64 { Ok(()) } else { self.put(&key, bytes, &hash, false) }
            }
            Err(error) if error.to_string().starts_with("NotImplemented") => {
                self.is_conditional.store(false, Ordering::Relaxed);
                self.put(&key, bytes, &hash, false)
            }
            put => put,
        }
    }

    fn list_below(&self, prefix: &str) -> io::Result<Vec<(Id, u64)>> {
        let (mut found, mut next): (Vec<(Id, u64)>, Option<String>) = (Vec::new(), None);
        for _ in 0..PAGES_MAX {
            let mut query = vec![("list-type", "2"), ("prefix", prefix)];
            query.extend(next.as_deref().map(|token| ("continuation-token", token)));
            let answer = self.ask(&Request { query: &query, at_most: PAGE_BYTES_MAX, ..Request::of("GET", "") })?;
            let page = answers::page(&answer.body)
                .map_err(|fault| io::Error::new(io::ErrorKind::InvalidData, fault.to_string()))?;
            for (key, bytes) in page.objects {
                // Strangers have other names, and what is not below was not asked for.
                let name = key.strip_prefix(prefix).map(|below| below.rsplit('/').next().unwrap_or(below));
                found.extend(name.and_then(Id::parse).map(|id| (id, bytes)));
            }
            if page.next.is_none() {
                return Ok(found);
            }
            if page.next == next {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "its listing does not come to an end"));
            }
            next = page.next;
        }
        Err(io::Error::new(io::ErrorKind::InvalidData, format!("its listing has more than {PAGES_MAX} pages")))
    }
}

impl Store for S3 {
    fn path(&self, kind: FileKind, id: &Id) -> PathBuf {
        let key = self.key(kind, id);
        self.place.join(key.strip_prefix(&self.prefix).unwrap_or(&key))
    }

    fn list(&self, kind: FileKind) -> Result<Vec<(Id, u64)>, FileFault> {
        let listed = self.list_below(&format!("{}{}/", self.prefix, kind.name()));
        listed.map_err(|source| FileFault { path: self.place.join(kind.name()), source })
    }

    fn read(&self, kind: FileKind, id: &Id) -> Result<Vec<u8>, FileFault> {
        let read = self.ask(&Request::of("GET", &self.key(kind, id)));
        read.map(|answer| answer.body).map_err(|error| self.fault(kind, id, error))
    }

    fn read_part(&self, kind: FileKind, id: &Id, offset: u64, length: usize) -> Result<Vec<u8>, FileFault> {
        if length == 0 {
            return Ok(Vec::new());
        }
        let range = format!("bytes={offset}-{}", offset + length as u64 - 1);
        let (key, fields) = (self.key(kind, id), [("range", range.as_str())]);
        let request = Request { fields: &fields, at_most: length as u64, ..Request::of("GET", &key) };
        let answer = self.ask(&request).map_err(|error| self.fault(kind, id, error))?;
        match answer.status {
            206 if answer.body.len() == length => Ok(answer.body),
            206 => Err(self.fault(kind, id, io::ErrorKind::UnexpectedEof.into())),
            _ => {
                let what = "it answers with another part of the file than was asked for";
                Err(self.fault(kind, id, io::Error::new(io::ErrorKind::InvalidData, what)))
            }
        }
    }

    fn bytes(&self, kind: FileKind, id: &Id) -> Result<u64, FileFault> {
        let asked = self.ask(&Request::of("HEAD", &self.key(kind, id)));
        let length = asked.and_then(|answer| answer.head.body_bytes().map_err(crate::wire::client::of_http));
        length.map_err(|error| self.fault(kind, id, error))
    }

    fn write(&self, kind: FileKind, id: &Id, bytes: &[u8]) -> Result<(), FileFault> {
        self.put_new(kind, id, bytes).map_err(|error| self.fault(kind, id, error))
    }

    fn remove(&self, kind: FileKind, id: &Id) -> Result<(), FileFault> {
        match self.ask(&Request::of("DELETE", &self.key(kind, id))) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed.map(drop).map_err(|error| self.fault(kind, id, error)),
        }
    }

    fn is_there(&self, kind: FileKind, id: &Id) -> bool {
        let asked = self.ask(&Request::of("HEAD", &self.key(kind, id)));
        !asked.is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
    }

    fn written_at(&self, _: FileKind, _: &Id) -> Option<SystemTime> {
        None
    }
}

#[cfg(test)]
mod tests;
