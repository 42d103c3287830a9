//! What a server of S3 answers that is damaged, lies, refuses, or has no time: what is asked again, and what is a fault.

use std::io::{BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use super::super::SharedMeter;
use super::super::remote::PATIENCE;
use super::*;
use crate::wire::http::{self, Head};
use crate::wire::web;

const LONG: Duration = Duration::from_secs(60);

/// A request as it came, with its body.
type Seen = (Head, Vec<u8>);

/// A server that does as it is told, and keeps what it was asked.
struct Other {
    store: S3,
    asked: Arc<Mutex<Vec<Seen>>>,
    address: String,
    thread: Option<JoinHandle<()>>,
}

type Acts = dyn Fn(usize, &Head) -> Vec<u8> + Send + Sync;

impl Other {
    /// `acts` is asked with how many requests there were before. An empty answer cuts the connection.
    fn new(acts: impl Fn(usize, &Head) -> Vec<u8> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let server =
            Server { tls: false, host: "127.0.0.1".into(), port: Some(listener.local_addr().unwrap().port()) };
        let asked: Arc<Mutex<Vec<Seen>>> = Arc::default();
        let (kept, acts): (_, Arc<Acts>) = (asked.clone(), Arc::new(acts));
        let thread = std::thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                let (kept, acts) = (kept.clone(), acts.clone());
                let mut stream = BufReader::new(stream);
                // Who dials and says nothing wants its end.
                let Ok(Some(head)) = Head::read(&mut stream) else { return };
                std::thread::spawn(move || drop(converse(stream, head, &kept, &*acts)));
            }
        });
        let keys = Keys { id: "id".into(), secret: "secret".into(), token: None, region: "us-east-1".into() };
        let client = web::client(&server, None, PATIENCE).unwrap();
        let again = Again { whom: "it".into(), meter: SharedMeter::default(), outage_max: LONG };
        let place = PathBuf::from("s3:http://there/bucket/deep");
        let store = S3::new(place, (&server, "bucket", "deep"), keys, client, again);
        Self { store, asked, address, thread: Some(thread) }
    }

    fn saying(answer: Vec<u8>) -> Self {
        Self::new(move |_, _| answer.clone())
    }

    fn asked(&self) -> Vec<Seen> {
        self.asked.lock().unwrap().clone()
    }

    /// Methods and targets.
    fn targets(&self) -> Vec<String> {
        let line = |(head, _): &Seen| head.request().map(|(m, t)| format!("{m} {t}")).unwrap();
        self.asked().iter().map(line).collect()
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        drop(TcpStream::connect(&self.address));
        self.thread.take().unwrap().join().unwrap();
    }
}

fn converse(
    mut stream: BufReader<TcpStream>,
    head: Head,
    kept: &Mutex<Vec<Seen>>,
    acts: &Acts,
) -> Result<(), crate::wire::http::HttpFault> {
    let mut next = Some(head);
    while let Some(head) = next {
        let nth = kept.lock().unwrap().len();
        let answer = acts(nth, &head);
        let body = if answer.is_empty() { Vec::new() } else { http::read_body(&mut stream, head.body_bytes()?)? };
        kept.lock().unwrap().push((head, body));
        if answer.is_empty() {
            return Ok(());
        }
        stream.get_mut().write_all(&answer)?;
        next = Head::read(&mut stream)?;
    }
    Ok(())
}

fn whole(status: &str, body: &str) -> Vec<u8> {
    format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

fn length(bytes: usize) -> Vec<u8> {
    format!("HTTP/1.1 200 OK\r\nContent-Length: {bytes}\r\n\r\n").into_bytes()
}

fn refusal(status: &str, code: &str) -> Vec<u8> {
    whole(status, &format!("<Error><Code>{code}</Code><Message>because\x1b[31m</Message></Error>"))
}

fn id() -> Id {
    Id::of(b"content")
}

fn pack_key() -> String {
    format!("/bucket/deep/data/{:.2}/{}", id().to_string(), id())
}

#[test]
fn a_file_is_sent_signed_with_its_hash_and_only_where_nothing_is() {
    let other = Other::saying(whole("200 OK", ""));
    other.store.write(FileKind::Pack, &id(), b"content").unwrap();
    let (head, body) = other.asked().remove(0);
    assert_eq!(head.request().unwrap(), ("PUT", pack_key().as_str()));
    assert_eq!((head.field("if-none-match"), body.as_slice()), (Some("*"), &b"content"[..]));
    assert_eq!(head.field("x-amz-content-sha256"), Some(id().to_string().as_str()));
    let checksum = head.field("x-amz-checksum-sha256").unwrap();
    assert_eq!(BASE64_STANDARD.decode(checksum).unwrap(), id().as_bytes());
    let authorization = head.field("authorization").unwrap();
    assert!(authorization.contains("host;if-none-match;x-amz-checksum-sha256;x-amz-content-sha256;x-amz-date"));
    assert!(!authorization.contains("secret"));
}

#[test]
fn what_is_there_stays_unless_it_is_damaged_and_a_config_is_never_replaced() {
    let there = |bytes: usize| {
        Other::new(move |_, head| match (head.request().unwrap().0, head.field("if-none-match")) {
            ("PUT", Some("*")) => refusal("412 Precondition Failed", "PreconditionFailed"),
            ("HEAD", _) => length(bytes),
            _ => whole("200 OK", ""),
        })
    };
    let other = there(7);
    other.store.write(FileKind::Pack, &id(), b"content").unwrap();
    assert_eq!(other.asked().len(), 2);
    let other = there(3);
    other.store.write(FileKind::Pack, &id(), b"content").unwrap();
    assert_eq!(other.asked().last().unwrap().1, b"content");
    assert_eq!(other.asked().len(), 3);
    let other = there(7);
    let fault = other.store.write(FileKind::Config, &id(), b"another").unwrap_err();
    assert_eq!((fault.source.kind(), other.asked().len()), (io::ErrorKind::AlreadyExists, 1));
}

#[test]
fn a_server_without_conditions_is_asked_without() {
    let other = Other::new(|_, head| match head.field("if-none-match") {
        Some(_) => refusal("501 Not Implemented", "NotImplemented"),
        None => whole("200 OK", ""),
    });
    for _ in 0..2 {
        other.store.write(FileKind::Pack, &id(), b"content").unwrap();
    }
    assert_eq!(other.asked().len(), 3, "it is tried once");
}

#[test]
fn what_is_cut_or_has_no_room_comes_whole_the_next_time() {
    let other = Other::new(|nth, _| match nth {
        0 => Vec::new(),
        1 => refusal("503 Slow Down", "SlowDown"),
        2 => refusal("400 Bad Request", "BadDigest"),
        3 => refusal("500 Internal Server Error", "InternalError"),
        _ => whole("200 OK", ""),
    });
    let large = vec![7; 4 << 20];
    other.store.write(FileKind::Pack, &Id::of(&large), &large).unwrap();
    assert_eq!(other.asked().len(), 5);
    assert_eq!(other.asked().pop().unwrap().1, large);
}

#[test]
fn a_refusal_is_final_and_says_what_is_to_be_done() {
    use io::ErrorKind::{NotFound, Other as Else, PermissionDenied, StorageFull, UnexpectedEof};
    for (status, code, kind, word) in [
        ("403 Forbidden", "InvalidAccessKeyId", PermissionDenied, "storage.toml"),
        ("403 Forbidden", "SignatureDoesNotMatch", PermissionDenied, "secret-access-key"),
        ("403 Forbidden", "AccessDenied", PermissionDenied, "s3:PutObject"),
        ("403 Forbidden", "RequestTimeTooSkewed", Else, "clock"),
        ("404 Not Found", "NoSuchBucket", Else, "there is no bucket bucket"),
        ("404 Not Found", "NoSuchKey", NotFound, "NoSuchKey"),
        ("416 Range Not Satisfiable", "InvalidRange", UnexpectedEof, "InvalidRange"),
        ("301 Moved Permanently", "PermanentRedirect", Else, "region"),
        ("400 Bad Request", "AuthorizationHeaderMalformed", Else, "region"),
        ("507 Insufficient Storage", "XMinioStorageFull", StorageFull, "is full"),
        ("403 Forbidden", "QuotaExceeded", StorageFull, "is full"),
        ("418 Teapot", "", Else, "status 418"),
    ] {
        let other = Other::saying(refusal(status, code));
        let fault = other.store.read(FileKind::Pack, &id()).unwrap_err();
        let text = fault.to_string();
        assert_eq!((fault.source.kind(), other.asked().len()), (kind, 1), "{text}");
        assert!(text.starts_with("s3:http://there/bucket/deep/data/") && text.contains(word), "{text}");
        assert!(!text.contains(['\x1b', '\n']) && !text.contains("secret\""), "{text:?}");
    }
}

#[test]
fn a_listing_is_followed_to_its_end_and_only_what_was_asked_for_is_taken() {
    let good = id();
    let page = move |keys: &[String], next: Option<&str>| {
        let object = |key: &String| format!("<Contents><Key>{key}</Key><Size>7</Size></Contents>");
        let more = next.map(|token| format!("<NextContinuationToken>{token}</NextContinuationToken>"));
        let (objects, is_more) = (keys.iter().map(object).collect::<String>(), more.is_some());
        let more = more.unwrap_or_default();
        format!("<ListBucketResult>{objects}<IsTruncated>{is_more}</IsTruncated>{more}</ListBucketResult>")
    };
    let chunked = |body: &str| {
        let (a, b) = body.split_at(9);
        let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        format!("{head}{:x}\r\n{a}\r\n{:x}\r\n{b}\r\n0\r\n\r\n", a.len(), b.len()).into_bytes()
    };
    let other = Other::new(move |nth, _| match nth {
        0 => {
            let (strange, outside) = ("deep/data/ab/notes".to_owned(), format!("other/{good}"));
            chunked(&page(&[strange, outside, format!("deep/data/{:.2}/{good}", good.to_string())], Some("a+/=")))
        }
        _ => whole("200 OK", &page(&[format!("deep/data/{}", Id::of(b"flat"))], None)),
    });
    assert_eq!(other.store.list(FileKind::Pack).unwrap(), [(good, 7), (Id::of(b"flat"), 7)]);
    let targets = other.targets();
    assert_eq!(targets[0], "GET /bucket?list-type=2&prefix=deep%2Fdata%2F");
    assert_eq!(targets[1], "GET /bucket?continuation-token=a%2B%2F%3D&list-type=2&prefix=deep%2Fdata%2F");

    let endless = Other::saying(whole("200 OK", &page(&[], Some("again"))));
    let fault = endless.store.list(FileKind::Lock).unwrap_err().to_string();
    assert!(fault.contains("does not come to an end") && fault.starts_with("s3:http://there/"), "{fault}");
    for wrong in ["", "[]", "<html/>", "<ListBucketResult>"] {
        let other = Other::saying(whole("200 OK", wrong));
        assert_eq!(other.store.list(FileKind::Lock).unwrap_err().source.kind(), io::ErrorKind::InvalidData);
        assert_eq!(other.asked().len(), 1);
    }
    let long = Other::saying(length(usize::try_from(PAGE_BYTES_MAX).unwrap() + 1));
    assert!(long.store.list(FileKind::Lock).unwrap_err().to_string().contains("at most"));
}

#[test]
fn a_part_is_the_one_that_was_asked_for_or_a_fault() {
    let other = Other::new(|_, head| {
        assert_eq!(head.field("range"), Some("bytes=3-6"));
        whole("206 Partial Content", "tent")
    });
    assert_eq!(other.store.read_part(FileKind::Pack, &id(), 3, 4).unwrap(), b"tent");
    assert!(other.store.read_part(FileKind::Pack, &id(), 3, 0).unwrap().is_empty());
    for (status, body, kind) in [
        ("200 OK", "tent", io::ErrorKind::InvalidData),
        ("206 Partial Content", "ten", io::ErrorKind::UnexpectedEof),
        ("206 Partial Content", "content", io::ErrorKind::InvalidData),
    ] {
        let other = Other::saying(whole(status, body));
        assert_eq!(other.store.read_part(FileKind::Pack, &id(), 3, 4).unwrap_err().source.kind(), kind, "{status}");
    }
}

#[test]
fn what_is_not_there_is_removed_and_who_is_refused_cannot_say() {
    let other = Other::saying(refusal("404 Not Found", "NoSuchKey"));
    other.store.remove(FileKind::Lock, &id()).unwrap();
    assert!(!other.store.is_there(FileKind::Lock, &id()));
    let other = Other::saying(refusal("403 Forbidden", "AccessDenied"));
    assert!(other.store.remove(FileKind::Lock, &id()).is_err() && other.store.is_there(FileKind::Lock, &id()));
}

#[test]
fn who_drips_is_given_up() {
    let mut other = Other::saying(b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\ncontent".to_vec());
    (other.store.client.patience.body, other.store.again.outage_max) =
        (Duration::from_millis(200), Duration::from_millis(300));
    let fault = other.store.read(FileKind::Pack, &id()).unwrap_err();
    assert_eq!(fault.source.kind(), io::ErrorKind::TimedOut);
}
