//! A small HTTP/1.1 server for the files below a directory, and a client for one of them: what rivals fetch from.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::thread;

use anyhow::{Context, Result, ensure};

use crate::relay::BACKLOG;

/// Longest request that is read, bytes.
const REQUEST_BYTES_MAX: u64 = 64 << 10;

/// Serves the files below `root` on a free port until the process ends, one thread a connection. Call it on a thread of
/// the server's namespace.
///
/// # Errors
/// No port can be had.
pub fn serve(root: &Path) -> Result<u16> {
    let listener = TcpListener::bind("0.0.0.0:0").context("listening for HTTP")?;
    rustix::net::listen(&listener, BACKLOG)?;
    let port = listener.local_addr()?.port();
    let root: Arc<Path> = root.into();
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let root = Arc::clone(&root);
            // A client that goes away in the middle is no news.
            thread::spawn(move || drop(answer_all(&root, &stream)));
        }
    });
    Ok(port)
}

fn answer_all(root: &Path, mut stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream);
    while let Some(request) = Request::read(&mut reader)? {
        answer(root, &request, &mut stream)?;
        if request.close {
            break;
        }
    }
    Ok(())
}

/// What a client wants.
#[derive(Debug, Default, PartialEq, Eq)]
struct Request {
    head_only: bool,
    path: String,
    /// First byte and, unless it goes to the end, the last.
    range: Option<(u64, Option<u64>)>,
    close: bool,
}

impl Request {
    /// `None` at the end of the connection.
    fn read(reader: &mut impl BufRead) -> io::Result<Option<Self>> {
        let mut reader = reader.take(REQUEST_BYTES_MAX);
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        let mut words = line.split_whitespace();
        let (verb, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let mut request = Self { head_only: verb == "HEAD", path: decode(path), ..Self::default() };
        loop {
            let mut header = String::new();
            if reader.read_line(&mut header)? == 0 || header.trim().is_empty() {
                return Ok(Some(request));
            }
            let Some((name, value)) = header.split_once(':') else { continue };
            match name.to_ascii_lowercase().as_str() {
                "range" => request.range = range(value.trim()),
                "connection" => request.close = value.trim().eq_ignore_ascii_case("close"),
                _ => {}
            }
        }
    }
}

/// `bytes=FIRST-[LAST]`; other forms are answered with the whole file, as the standard allows.
fn range(value: &str) -> Option<(u64, Option<u64>)> {
    let (first, last) = value.strip_prefix("bytes=")?.split_once('-')?;
    Some((first.parse().ok()?, if last.is_empty() { None } else { Some(last.parse().ok()?) }))
}

/// Undoes percent encoding; cuts off a query.
fn decode(path: &str) -> String {
    let bytes = path.split('?').next().unwrap_or_default().as_bytes();
    let mut plain = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let escaped = bytes.get(at + 1..at + 3).filter(|_| bytes[at] == b'%');
        let digits = escaped.and_then(|hex| std::str::from_utf8(hex).ok());
        if let Some(byte) = digits.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            plain.push(byte);
            at += 3;
        } else {
            plain.push(bytes[at]);
            at += 1;
        }
    }
    String::from_utf8_lossy(&plain).into_owned()
}

fn answer(root: &Path, request: &Request, stream: &mut impl Write) -> io::Result<()> {
    let relative = Path::new(request.path.trim_start_matches('/'));
    let inside = relative.components().all(|part| matches!(part, Component::Normal(_)));
    let path = root.join(relative);
    if !inside || !path.exists() {
        return stream.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n");
    }
    if path.is_dir() {
        let listing = listing(&path)?;
        let head = format!("HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: {}\r\n\r\n", listing.len());
        let body = if request.head_only { "" } else { &listing };
        return stream.write_all((head + body).as_bytes());
    }
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    let (first, last) = request.range.unwrap_or((0, None));
    let end = last.map_or(length, |last| length.min(last.saturating_add(1)));
    if first > end || (first == length && length > 0) {
        let head = format!("HTTP/1.1 416 Range Not Satisfiable\r\nContent-Range: bytes */{length}\r\n");
        return stream.write_all((head + "Content-Length: 0\r\n\r\n").as_bytes());
    }
    let status = match request.range {
        None => "200 OK\r\n".to_owned(),
        Some(_) => format!("206 Partial Content\r\nContent-Range: bytes {first}-{}/{length}\r\n", end - 1),
    };
    let head = format!("HTTP/1.1 {status}Accept-Ranges: bytes\r\nContent-Length: {}\r\n\r\n", end - first);
    stream.write_all(head.as_bytes())?;
    if !request.head_only {
        file.seek(SeekFrom::Start(first))?;
        io::copy(&mut file.take(end - first), stream)?;
    }
    Ok(())
}

/// A page with a link to each entry, as other servers make them and some clients read them.
fn listing(dir: &Path) -> io::Result<String> {
    let mut text = String::from("<html><body>\n");
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let slash = if entry.path().is_dir() { "/" } else { "" };
        let name = entry.file_name().to_string_lossy().into_owned() + slash;
        text += &format!("<a href=\"{name}\">{name}</a><br>\n");
    }
    Ok(text + "</body></html>\n")
}

/// Fetches one file and writes it to `sink` as it arrives; returns its bytes.
///
/// # Errors
/// The server cannot be reached, does not have it, or ends early.
pub fn get(address: SocketAddr, path: &str, sink: &mut impl Write) -> Result<u64> {
    let mut stream = TcpStream::connect(address).with_context(|| format!("connecting to {address}"))?;
    stream.set_nodelay(true)?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").as_bytes())?;
    let mut reader = BufReader::with_capacity(256 << 10, stream);
    let mut status = String::new();
    reader.read_line(&mut status)?;
    ensure!(status.split(' ').nth(1) == Some("200"), "{path}: {}", status.trim());
    let mut length = None;
    loop {
        let mut header = String::new();
        ensure!(reader.read_line(&mut header)? > 0, "{path}: the answer ended in its head");
        if header.trim().is_empty() {
            break;
        }
        if let Some((name, value)) = header.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = Some(value.trim().parse::<u64>()?);
        }
    }
    let copied = io::copy(&mut reader, sink)?;
    ensure!(length.is_none_or(|length| length == copied), "{path}: {copied} bytes of {length:?} came");
    Ok(copied)
}

/// Fetches one file into a file.
///
/// # Errors
/// As [`get`], or the disk is full.
pub fn download(address: SocketAddr, path: &str, to: &Path) -> Result<PathBuf> {
    let mut file = File::create(to).with_context(|| format!("creating {}", to.display()))?;
    get(address, path, &mut file)?;
    Ok(to.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn served() -> (tempfile::TempDir, SocketAddr) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("a")).unwrap();
        std::fs::write(dir.path().join("a/b c"), "0123456789").unwrap();
        let port = serve(dir.path()).unwrap();
        (dir, SocketAddr::from(([127, 0, 0, 1], port)))
    }

    #[test]
    fn a_file_is_fetched_whole() {
        let (_dir, address) = served();
        let mut got = Vec::new();
        assert_eq!(get(address, "/a/b%20c", &mut got).unwrap(), 10);
        assert_eq!(got, b"0123456789");
        assert!(get(address, "/a/../../etc/passwd", &mut got).unwrap_err().to_string().contains("404"));
    }

    #[test]
    fn ranges_and_heads_are_answered_on_one_connection() {
        let (_dir, address) = served();
        let mut stream = TcpStream::connect(address).unwrap();
        let text = "GET /a/b%20c HTTP/1.1\r\nRange: bytes=2-4\r\n\r\n\
                    HEAD /a/b%20c HTTP/1.1\r\n\r\n\
                    GET /a HTTP/1.1\r\nConnection: close\r\n\r\n";
        stream.write_all(text.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.contains("206 Partial Content\r\nContent-Range: bytes 2-4/10\r\n"), "{answer}");
        assert!(answer.contains("\r\n\r\n234HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(answer.contains("Content-Length: 10\r\n\r\nHTTP/1.1 200"), "{answer}");
        assert!(answer.contains("<a href=\"b c\">"), "{answer}");
    }
}
