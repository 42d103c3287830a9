//! What a media agent answers that is damaged, or lies: what is asked again, what is a fault that names the file.

use std::io::{BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;

use tempfile::TempDir;

use super::*;
use crate::wire::client::of_http;
use crate::wire::http::{self, Head};
use crate::wire::timed::Timed;
use crate::wire::tls::tests::{Authority, LONG, PATIENT, SHORT};

/// What the other side does with a request.
enum Act {
    /// Answers, and waits for the next one.
    Say(Vec<u8>),
    /// Says this much, and is gone.
    Cut(Vec<u8>),
    /// Says this much, and nothing more.
    Stall(Vec<u8>),
    /// Says this again and again, until nobody listens.
    Repeat(Vec<u8>),
}

type Acts = dyn Fn(usize, &Head) -> Act + Send + Sync;

/// A media agent that does as it is told.
struct Other {
    remote: Remote,
    asked: Arc<AtomicUsize>,
    ends: Arc<AtomicBool>,
    address: String,
    thread: Option<JoinHandle<()>>,
    _dir: TempDir,
}

impl Other {
    /// `acts` is asked with how many requests there were before.
    fn new(acts: impl Fn(usize, &Head) -> Act + Send + Sync + 'static) -> Self {
        Self::called("media-1", acts)
    }

    fn called(name: &str, acts: impl Fn(usize, &Head) -> Act + Send + Sync + 'static) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let [here, there] = ["here", "there"].map(|name| dir.path().join(name));
        let authority = Authority::new();
        authority.enroll(&here, "web-1");
        authority.enroll(&there, name);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let door = Door {
            repository: "vault".parse().unwrap(),
            host: "media-1".parse().unwrap(),
            address: address.clone(),
            grant: "00ff".into(),
        };
        let mut remote = Remote::new(&here, &door, &SharedMeter::default());
        (remote.client.patience, remote.again.outage_max) = (PATIENT, LONG);
        let (asked, ends) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let (acts, count, end): (Arc<Acts>, _, _) = (Arc::new(acts), asked.clone(), ends.clone());
        let thread = std::thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                if end.load(Ordering::SeqCst) {
                    return;
                }
                let (acts, count, there) = (acts.clone(), count.clone(), there.clone());
                std::thread::spawn(move || drop(converse(&there, stream, &count, &*acts)));
            }
        });
        Self { remote, asked, ends, address, thread: Some(thread), _dir: dir }
    }

    /// One that answers every request with the same.
    fn saying(answer: Vec<u8>) -> Self {
        Self::new(move |_, _| Act::Say(answer.clone()))
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::SeqCst);
        drop(TcpStream::connect(&self.address));
        self.thread.take().unwrap().join().unwrap();
    }
}

fn converse(state: &Path, stream: TcpStream, count: &AtomicUsize, acts: &Acts) -> io::Result<()> {
    let (stream, _) = tls::accept(state, 0, Timed::of(stream, PATIENT)?).map_err(io::Error::other)?;
    let mut stream = BufReader::new(stream);
    loop {
        stream.get_mut().sock.within(LONG);
        let Some(head) = Head::read(&mut stream).map_err(of_http)? else { return Ok(()) };
        http::read_body(&mut stream, head.body_bytes().map_err(of_http)?)?;
        let (text, goes_on) = match acts(count.fetch_add(1, Ordering::SeqCst), &head) {
            Act::Say(text) => (text, true),
            Act::Cut(text) => (text, false),
            Act::Stall(text) => {
                stream.get_mut().write_all(&text)?;
                stream.get_mut().flush()?;
                return io::copy(&mut stream, &mut io::sink()).map(drop);
            }
            Act::Repeat(text) => loop {
                stream.get_mut().write_all(&text)?;
            },
        };
        stream.get_mut().write_all(&text)?;
        stream.get_mut().flush()?;
        if !goes_on {
            return Ok(());
        }
    }
}

/// An answer as it should be.
fn whole(status: &str, body: &[u8]) -> Vec<u8> {
    said(status, &format!("Content-Length: {}", body.len()), body)
}

fn said(status: &str, fields: &str, body: &[u8]) -> Vec<u8> {
    [format!("HTTP/1.1 {status}\r\n{fields}\r\n\r\n").as_bytes(), body].concat()
}

fn id() -> Id {
    Id::of(b"content")
}

/// The fault, which must name what was asked for, and whose it is.
fn fault<T: fmt::Debug>(found: Result<T, FileFault>, path: &str) -> io::Error {
    let fault = found.unwrap_err();
    let place = format!("vault (served by media-1)/{path}");
    assert!(fault.to_string().starts_with(&place), "{fault}");
    fault.source
}

fn pack() -> String {
    below(FileKind::Pack, &id())
}

#[test]
fn what_is_cut_is_asked_again_until_it_comes_whole() {
    let good = whole("200 OK", b"content");
    let other = Other::new(move |nth, _| match nth {
        0 => Act::Cut(good[..good.len() - 3].to_vec()),
        1 => Act::Cut(good[..20].to_vec()),
        2 => Act::Cut(Vec::new()),
        _ => Act::Say(good.clone()),
    });
    assert_eq!(other.remote.read(FileKind::Pack, &id()).unwrap(), b"content");
    assert_eq!(other.asked(), 4);
    // On the connection that was kept.
    assert_eq!(other.remote.read(FileKind::Pack, &id()).unwrap(), b"content");
    assert_eq!(other.asked(), 5);
}

#[test]
fn a_file_is_sent_again_whole_after_a_cut() {
    let other = Other::new(move |nth, head| {
        assert_eq!(head.body_bytes().unwrap(), 7);
        if nth == 0 { Act::Cut(Vec::new()) } else { Act::Say(whole("200 OK", b"")) }
    });
    other.remote.write(FileKind::Pack, &id(), b"content").unwrap();
    assert_eq!(other.asked(), 2);
}

#[test]
fn a_body_that_does_not_come_to_its_end_is_given_up_and_asked_again() {
    let good = whole("200 OK", b"content");
    let mut other = Other::new(move |nth, _| match nth {
        0 => Act::Stall(said("200 OK", "Content-Length: 8", b"content")),
        _ => Act::Say(good.clone()),
    });
    other.remote.client.patience.body = SHORT;
    assert_eq!(other.remote.read(FileKind::Pack, &id()).unwrap(), b"content");
    assert_eq!(other.asked(), 2);
}

#[test]
fn who_never_answers_is_given_up_when_the_patience_is_over() {
    let mut other = Other::new(|_, _| Act::Stall(b"HTTP/1.1 200".to_vec()));
    (other.remote.client.patience.head, other.remote.again.outage_max) = (SHORT, SHORT);
    let error = fault(other.remote.read(FileKind::Pack, &id()), &pack());
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
}

#[test]
fn what_follows_an_answer_is_not_taken_for_the_next_one() {
    let smuggled = [whole("200 OK", b"content"), whole("200 OK", b"another")].concat();
    let other =
        Other::new(move |nth, _| Act::Say(if nth == 0 { smuggled.clone() } else { whole("200 OK", b"right") }));
    assert_eq!(other.remote.read(FileKind::Pack, &id()).unwrap(), b"content");
    assert_eq!(other.remote.read(FileKind::Index, &id()).unwrap(), b"right");
}

#[test]
fn a_refusal_is_final_and_comes_with_its_words() {
    use io::ErrorKind::{InvalidData, NotFound, PermissionDenied, StorageFull, UnexpectedEof};
    for (status, kind) in [
        ("401 Unauthorized", PermissionDenied),
        ("403 Forbidden", PermissionDenied),
        ("404 Not Found", NotFound),
        ("405 Method Not Allowed", InvalidData),
        ("413 Content Too Large", InvalidData),
        ("416 Range Not Satisfiable", UnexpectedEof),
        ("500 Internal Server Error", InvalidData),
        ("507 Insufficient Storage", StorageFull),
        ("204 No Content", InvalidData),
        ("100 Continue", InvalidData),
        ("999 ", InvalidData),
    ] {
        let other = Other::saying(whole(status, b"words of\r\n\x1b[31m theirs"));
        for asked in 1..3 {
            let error = fault(other.remote.read_part(FileKind::Pack, &id(), 10, 5), &pack());
            assert_eq!((error.kind(), other.asked()), (kind, asked), "{status}: {error}");
            let text = error.to_string();
            assert!(text.contains("words of") && !text.contains(['\n', '\r', '\x1b']), "{text:?}");
        }
    }
}

#[test]
fn nobody_is_sent_elsewhere() {
    let elsewhere = TcpListener::bind("127.0.0.1:0").unwrap();
    elsewhere.set_nonblocking(true).unwrap();
    let fields = format!("Location: https://{}/vault/config\r\nContent-Length: 0", elsewhere.local_addr().unwrap());
    for status in ["301 Moved Permanently", "302 Found", "307 Temporary Redirect", "308 Permanent Redirect"] {
        let other = Other::saying(said(status, &fields, b""));
        let error = fault(other.remote.read(FileKind::Config, &id()), "config");
        assert!(error.to_string().contains(&status[..3]), "{error}");
        assert_eq!((error.kind(), other.asked()), (io::ErrorKind::InvalidData, 1));
    }
    assert_eq!(elsewhere.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock);
}

#[test]
fn who_has_no_room_is_asked_again() {
    let busy = |nth, _: &Head| Act::Say(if nth < 2 { whole("503 Busy", b"") } else { whole("200 OK", b"content") });
    let other = Other::new(busy);
    assert_eq!(other.remote.read(FileKind::Pack, &id()).unwrap(), b"content");
    assert_eq!(other.asked(), 3);
}

#[test]
fn a_head_that_cannot_be_understood_is_a_fault_and_not_asked_for_again() {
    for answer in [
        said("200 OK", "Content-Length: 7\r\nContent-Length: 8", b"content"),
        said("200 OK", "Content-Length: -7", b"content"),
        said("200 OK", "Content-Length: 0x7", b"content"),
        said("200 OK", "Content-Length: 99999999999999999999999", b"content"),
        said("200 OK", "Content-Length: 7\r\nTransfer-Encoding: chunked", b"content"),
        // Where it would end is not said, so nobody could tell that it was cut.
        said("200 OK", "Connection: close", b"content"),
        said("200 OK", &format!("Content-Length: {}", ANSWER_BYTES_MAX + 1), b"content"),
        said("404 Not Found", &format!("Content-Length: {}", REFUSAL_BYTES_MAX + 1), b"content"),
        said("206 Partial Content", "Content-Length: 7", b"content"),
        b"HTTP/2 200 OK\r\nContent-Length: 7\r\n\r\ncontent".to_vec(),
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n".to_vec(),
    ] {
        let text = String::from_utf8_lossy(&answer).into_owned();
        let other = Other::new(move |_, _| Act::Stall(answer.clone()));
        let error = fault(other.remote.read(FileKind::Pack, &id()), &pack());
        assert_eq!((error.kind(), other.asked()), (io::ErrorKind::InvalidData, 1), "{text}: {error}");
    }
}

#[test]
fn a_head_without_end_is_not_read_to_its_end() {
    for endless in ["a", "A: b\r\n"] {
        let other = Other::new(move |nth, _| {
            assert_eq!(nth, 0, "asked again");
            Act::Repeat(format!("HTTP/1.1 200 OK\r\nA: {}", endless.repeat(1000)).into_bytes())
        });
        let error = fault(other.remote.read(FileKind::Pack, &id()), &pack());
        assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{error}");
    }
}

#[test]
fn a_part_is_the_one_that_was_asked_for_or_a_fault() {
    for (status, body, kind) in [
        ("206 Partial Content", &b"cont"[..], io::ErrorKind::UnexpectedEof),
        ("206 Partial Content", b"conten", io::ErrorKind::InvalidData),
        ("206 Partial Content", b"", io::ErrorKind::UnexpectedEof),
        // The beginning of the file, or all of one that is shorter.
        ("200 OK", b"conte", io::ErrorKind::InvalidData),
    ] {
        let other = Other::saying(whole(status, body));
        let error = fault(other.remote.read_part(FileKind::Pack, &id(), 10, 5), &pack());
        assert_eq!((error.kind(), other.asked()), (kind, 1), "{status} {body:?}: {error}");
    }
    let other = Other::new(|_, head| {
        assert_eq!(head.field("range"), Some("bytes=10-14"));
        Act::Say(whole("206 Partial Content", b"conte"))
    });
    assert_eq!(other.remote.read_part(FileKind::Pack, &id(), 10, 5).unwrap(), b"conte");
    assert!(other.remote.read_part(FileKind::Pack, &id(), 10, 0).unwrap().is_empty());
    assert_eq!(other.asked(), 1);
}

#[test]
fn of_a_list_only_ids_are_taken() {
    let good = id();
    let names = ["../x", "/etc/passwd", "..", "", "\\u0000", &"a".repeat(1 << 20), &"g".repeat(64), &"é".repeat(32)];
    let entries = names.map(|name| format!("{{\"name\":\"{name}\",\"size\":1}}"));
    let text = format!("[{},{{\"name\":\"{good}\",\"size\":{}}}]", entries.join(","), u64::MAX);
    let other = Other::saying(whole("200 OK", text.as_bytes()));
    assert_eq!(other.remote.list(FileKind::Pack).unwrap(), [(good, u64::MAX)]);
}

#[test]
fn a_list_that_is_none_or_too_long_is_a_fault() {
    let cut = format!("[{{\"name\":\"{}\",\"size\":1}}", id());
    let negative = format!("[{{\"name\":\"{}\",\"size\":-1}}]", id());
    let huge = format!("[{{\"name\":\"{}\",\"size\":18446744073709551616}}]", id());
    let deep = "[".repeat(1 << 20);
    for text in ["", "{}", "null", "[1]", "[{}]", "\u{feff}[]", &cut, &negative, &huge, &deep] {
        let other = Other::saying(whole("200 OK", text.as_bytes()));
        fault(other.remote.list(FileKind::Snapshot), "snapshots/");
        assert_eq!(other.asked(), 1);
    }
    let length = format!("Content-Length: {}", ANSWER_BYTES_MAX + 1);
    let other = Other::saying(said("200 OK", &length, b"["));
    let error = fault(other.remote.list(FileKind::Snapshot), "snapshots/");
    assert!(error.to_string().contains(&ANSWER_BYTES_MAX.to_string()), "{error}");
}

#[test]
fn a_password_is_text() {
    let other = Other::saying(whole("200 OK", b"\xff\xfe"));
    assert_eq!(fault(other.remote.password().map(drop), "password").kind(), io::ErrorKind::InvalidData);
}

#[test]
fn what_is_not_there_is_removed_and_what_is_refused_is_there() {
    let other = Other::saying(said("404 Not Found", "Content-Length: 0", b""));
    other.remote.remove(FileKind::Lock, &id()).unwrap();
    assert!(!other.remote.is_there(FileKind::Lock, &id()));
    let other = Other::saying(said("403 Forbidden", "Content-Length: 0", b""));
    let error = fault(other.remote.remove(FileKind::Lock, &id()), &below(FileKind::Lock, &id()));
    assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
    assert!(other.remote.is_there(FileKind::Lock, &id()), "nobody can say");
}

#[test]
fn an_operation_that_is_stopped_waits_for_nobody() {
    let meter = SharedMeter::default();
    let stops = meter.clone();
    let mut other = Other::new(move |nth, _| {
        assert!(nth < 3, "asked again");
        if nth == 2 {
            stops.stop();
        }
        Act::Cut(Vec::new())
    });
    other.remote.again.meter = meter;
    let error = fault(other.remote.read(FileKind::Pack, &id()), &pack());
    assert_eq!((error.kind(), other.asked()), (io::ErrorKind::UnexpectedEof, 3));
}

#[test]
fn another_host_in_its_place_is_told_nothing() {
    let other = Other::called("media-2", |_, _| Act::Say(whole("200 OK", b"content")));
    let error = fault(other.remote.read(FileKind::Pack, &id()), &pack());
    assert!(error.to_string().contains("NotValidForName"), "{error}");
    assert_eq!(other.asked(), 0);
}
