//! The heads of HTTP/1.1 messages, as much of it as restic's REST protocol needs: every body has a length that its head
//! says, and nothing is sent in pieces (RFC 9112).

use std::io::{self, BufRead, Read, Write};

/// Bytes of a head; a certificate of access is the longest thing in one.
const HEAD_BYTES_MAX: u64 = 16 << 10;
const FIELDS_MAX: usize = 64;

/// What was read is no message that is understood here.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HttpFault {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("the head of a message is longer than {HEAD_BYTES_MAX} bytes, or has more than {FIELDS_MAX} fields")]
    TooLong,
    #[error("this is no message of HTTP/1.1")]
    Malformed,
    #[error("the length of a message's body is not said, or said twice")]
    Length,
}

/// What stands before a body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Head {
    /// Three words: of a request its method, target and version, of an answer version, status and reason.
    first: [String; 3],
    /// Names in lower case.
    fields: Vec<(String, String)>,
}

impl Head {
    /// Reads one; `None`: the connection ended where another message would begin.
    pub(crate) fn read(from: &mut impl BufRead) -> Result<Option<Self>, HttpFault> {
        let mut from = from.take(HEAD_BYTES_MAX);
        let Some(first) = line(&mut from)? else { return Ok(None) };
        let mut words = first.splitn(3, ' ').map(str::to_owned);
        let mut word = || words.next().ok_or(HttpFault::Malformed);
        let first = [word()?, word()?, words.next().unwrap_or_default()];
        let mut fields = Vec::new();
        loop {
            let text = line(&mut from)?.ok_or(HttpFault::Malformed)?;
            if text.is_empty() {
                return Ok(Some(Self { first, fields }));
            }
            // A line that goes on, or a blank before the colon, means something else to somebody else.
            let (name, value) = text.split_once(':').ok_or(HttpFault::Malformed)?;
            if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_') {
                return Err(HttpFault::Malformed);
            }
            if fields.len() == FIELDS_MAX {
                return Err(HttpFault::TooLong);
            }
            fields.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
    }

    /// Method and target of a request.
    pub(crate) fn request(&self) -> Result<(&str, &str), HttpFault> {
        match &self.first {
            [method, target, version] if version == "HTTP/1.1" => Ok((method, target)),
            _ => Err(HttpFault::Malformed),
        }
    }

    /// Status of an answer.
    pub(crate) fn status(&self) -> Result<u16, HttpFault> {
        match &self.first {
            [version, status, _] if version == "HTTP/1.1" => status.parse().map_err(|_| HttpFault::Malformed),
            _ => Err(HttpFault::Malformed),
        }
    }

    /// The value of a field that stands once.
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        let mut found = self.fields.iter().filter(|(known, _)| known == name);
        found.next().filter(|_| found.next().is_none()).map(|(_, value)| value.as_str())
    }

    fn has(&self, name: &str) -> bool {
        self.fields.iter().any(|(known, _)| known == name)
    }

    /// How many bytes follow. A message that says nothing of it has none.
    pub(crate) fn body_bytes(&self) -> Result<u64, HttpFault> {
        match self.field("content-length") {
            _ if self.has("transfer-encoding") => Err(HttpFault::Length),
            // `parse` would take a sign.
            Some(text) if text.bytes().all(|b| b.is_ascii_digit()) => text.parse().map_err(|_| HttpFault::Length),
            None if !self.has("content-length") => Ok(0),
            Some(_) | None => Err(HttpFault::Length),
        }
    }

    /// Whether the sender wants no further message on this connection.
    pub(crate) fn is_last(&self) -> bool {
        self.field("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"))
    }
}

fn line(from: &mut io::Take<&mut impl BufRead>) -> Result<Option<String>, HttpFault> {
    let mut text = Vec::new();
    from.read_until(b'\n', &mut text)?;
    match text.strip_suffix(b"\r\n") {
        Some(line) => String::from_utf8(line.to_vec()).map(Some).map_err(|_| HttpFault::Malformed),
        None if text.is_empty() && from.limit() == HEAD_BYTES_MAX => Ok(None),
        None if from.limit() == 0 => Err(HttpFault::TooLong),
        None if text.ends_with(b"\n") => Err(HttpFault::Malformed),
        None => Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
    }
}

/// Writes a head: its first line, and its fields.
pub(crate) fn write_head(to: &mut impl Write, first: &str, fields: &[(&str, &str)]) -> io::Result<()> {
    let mut text = format!("{first}\r\n");
    for (name, value) in fields {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    text.push_str("\r\n");
    to.write_all(text.as_bytes())
}

/// `bytes=FIRST-LAST`, the one form of a range that is used; `None`: another one. Returns where it begins, and how many
/// bytes it has.
pub(crate) fn range(text: &str, bytes: u64) -> Option<(u64, u64)> {
    let (first, last) = text.strip_prefix("bytes=")?.split_once('-')?;
    let first: u64 = first.parse().ok()?;
    let last: u64 = if last.is_empty() { bytes.checked_sub(1)? } else { last.parse().ok()? };
    let last = last.min(bytes.checked_sub(1)?);
    (first <= last).then(|| (first, last - first + 1))
}

/// Reads a body that has just this length.
pub(crate) fn read_body(from: &mut impl Read, bytes: u64) -> io::Result<Vec<u8>> {
    let mut body = Vec::new();
    // What is said of a length is believed once the bytes are there.
    if from.take(bytes).read_to_end(&mut body)? as u64 == bytes {
        Ok(body)
    } else {
        Err(io::ErrorKind::UnexpectedEof.into())
    }
}

#[cfg(test)]
mod tests {
    use std::io::BufReader;

    use proptest::prelude::*;

    use super::*;

    fn head(text: &str) -> Result<Option<Head>, HttpFault> {
        Head::read(&mut text.as_bytes())
    }

    #[test]
    fn a_request_and_an_answer_are_read() {
        let mut two =
            &b"GET /a/b HTTP/1.1\r\nRange: bytes=1-2\r\nContent-LENGTH:  3\r\n\r\nabcHTTP/1.1 404 Not Found\r\n\r\n"
                [..];
        let request = Head::read(&mut two).unwrap().unwrap();
        assert_eq!(request.request().unwrap(), ("GET", "/a/b"));
        assert_eq!((request.field("range"), request.body_bytes().unwrap()), (Some("bytes=1-2"), 3));
        assert_eq!(read_body(&mut two, 3).unwrap(), b"abc");
        let answer = Head::read(&mut two).unwrap().unwrap();
        assert_eq!((answer.status().unwrap(), answer.body_bytes().unwrap()), (404, 0));
        assert!(Head::read(&mut two).unwrap().is_none());
        assert!(read_body(&mut two, 1).is_err());
        let mut text = Vec::new();
        write_head(&mut text, "HTTP/1.1 200 OK", &[("Content-Length", "7")]).unwrap();
        assert_eq!(head(&String::from_utf8(text).unwrap()).unwrap().unwrap().body_bytes().unwrap(), 7);
    }

    #[test]
    fn what_two_readers_could_read_differently_is_refused() {
        for text in [
            "GET /\r\n\r\n",
            "GET / HTTP/1.1\nHost: a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost : a\r\n\r\n",
            "GET / HTTP/1.1\r\n folded\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a",
            "GET / HTTP/1.0\r\n\r\n",
            "\u{7f}\r\n\r\n",
        ] {
            let fault = head(text).and_then(|head| head.unwrap().request().map(|_| ()));
            assert!(fault.is_err(), "{text:?}");
        }
        for fields in ["Content-Length: 1\r\nContent-Length: 1", "Content-Length: +1", "Transfer-Encoding: chunked"] {
            let head = head(&format!("POST / HTTP/1.1\r\n{fields}\r\n\r\n")).unwrap().unwrap();
            assert!(matches!(head.body_bytes(), Err(HttpFault::Length)), "{fields}");
        }
        let long = format!("GET / HTTP/1.1\r\nA: {}\r\n\r\n", "a".repeat(20_000));
        assert!(matches!(head(&long), Err(HttpFault::TooLong)));
        let many = format!("GET / HTTP/1.1\r\n{}\r\n", "A: a\r\n".repeat(65));
        assert!(matches!(head(&many), Err(HttpFault::TooLong)));
    }

    #[test]
    fn the_longest_head_is_read_and_none_that_is_longer() {
        let of = |bytes: usize| {
            let (begin, end) = ("GET / HTTP/1.1\r\nA: ", "\r\n\r\n");
            format!("{begin}{}{end}", "a".repeat(bytes - begin.len() - end.len()))
        };
        let most = usize::try_from(HEAD_BYTES_MAX).unwrap();
        assert!(head(&of(most)).unwrap().is_some());
        assert!(matches!(head(&of(most + 1)), Err(HttpFault::TooLong)));
        let fields = |count: usize| format!("GET / HTTP/1.1\r\n{}\r\n", "A: a\r\n".repeat(count));
        assert_eq!(head(&fields(FIELDS_MAX)).unwrap().unwrap().fields.len(), FIELDS_MAX);
        assert!(matches!(head(&fields(FIELDS_MAX + 1)), Err(HttpFault::TooLong)));
    }

    #[test]
    fn of_an_endless_head_no_more_is_read_than_is_bounded() {
        for line in ["a", "A: a\r\n", "\n", "\r\n\r"] {
            let mut endless = Counted(line.as_bytes().iter().copied().cycle(), 0);
            assert!(Head::read(&mut BufReader::with_capacity(512, &mut endless)).is_err(), "{line:?}");
            assert!(endless.1 <= HEAD_BYTES_MAX + 512, "{line:?}: {} bytes", endless.1);
        }
    }

    /// Counts what was read of it.
    struct Counted<I>(I, u64);

    impl<I: Iterator<Item = u8>> Read for Counted<I> {
        fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
            let read = bytes.iter_mut().zip(&mut self.0).map(|(to, from)| *to = from).count();
            self.1 += read as u64;
            Ok(read)
        }
    }

    /// Gives its bytes in pieces of these lengths.
    struct Pieces<'a>(&'a [u8], Vec<usize>);

    impl Read for Pieces<'_> {
        fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
            let most = self.1.pop().unwrap_or(usize::MAX).max(1).min(bytes.len());
            self.0.read(&mut bytes[..most])
        }
    }

    /// Every head of a connection, and how it ends.
    fn heads(mut from: impl BufRead) -> (Vec<Head>, Option<String>) {
        let mut all = Vec::new();
        loop {
            match Head::read(&mut from) {
                Ok(Some(head)) => all.push(head),
                Ok(None) => return (all, None),
                Err(fault) => return (all, Some(fault.to_string())),
            }
        }
    }

    /// Bytes that are a head here and there.
    fn nearly() -> impl Strategy<Value = Vec<u8>> {
        let part = prop_oneof![
            Just(b"GET /a HTTP/1.1\r\n".to_vec()),
            Just(b"HTTP/1.1 200 OK\r\n".to_vec()),
            Just(b"Content-Length: 7\r\n".to_vec()),
            Just(b"\r\n".to_vec()),
            "[A-Za-z-]{1,8}: ?[ -~]{0,20}\r\n".prop_map(String::into_bytes),
            prop::collection::vec(any::<u8>(), 0..12),
        ];
        prop::collection::vec(part, 0..24).prop_map(|parts| parts.concat())
    }

    proptest! {
        #[test]
        fn whatever_comes_is_read_the_same_however_it_is_cut(
            bytes in nearly(), pieces in prop::collection::vec(1_usize..40, 0..100), capacity in 1_usize..64,
        ) {
            let once = heads(&bytes[..]);
            prop_assert_eq!(&heads(BufReader::with_capacity(capacity, Pieces(&bytes, pieces))), &once);
            for head in once.0 {
                prop_assert!(!(head.request().is_ok() && head.status().is_ok()));
                let said = head.fields.iter().filter(|(name, _)| name == "content-length").count();
                if said > 1 || head.has("transfer-encoding") {
                    prop_assert!(head.body_bytes().is_err());
                }
                prop_assert!(head.fields.iter().all(|(name, _)| !name.is_empty() && *name == name.to_ascii_lowercase()));
            }
        }

        #[test]
        fn any_bytes_are_a_head_or_a_fault(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            heads(&bytes[..]);
        }

        #[test]
        fn what_is_written_is_read(
            target in "/[!-~]{0,40}", fields in prop::collection::vec(("[A-Za-z0-9_-]{1,12}", "([!-~]([ -~]{0,20}[!-~])?)?"), 0..64),
        ) {
            let fields: Vec<_> = fields.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
            let mut text = Vec::new();
            write_head(&mut text, &format!("PUT {target} HTTP/1.1"), &fields).unwrap();
            let head = Head::read(&mut &text[..]).unwrap().unwrap();
            prop_assert_eq!(head.request().unwrap(), ("PUT", target.as_str()));
            let read: Vec<_> = head.fields.iter().map(|(name, value)| (name.clone(), value.as_str())).collect();
            let written: Vec<_> = fields.iter().map(|(name, value)| (name.to_ascii_lowercase(), *value)).collect();
            prop_assert_eq!(read, written);
            // Cut anywhere it is nothing.
            for at in 1..text.len() {
                prop_assert!(Head::read(&mut &text[..at]).is_err(), "cut at {}", at);
            }
        }

        #[test]
        fn a_range_never_leaves_its_file(text in "bytes=[0-9]{0,20}-[0-9]{0,20}", first: u64, last: u64, bytes: u64) {
            for text in [text, format!("bytes={first}-{last}")] {
                if let Some((from, length)) = range(&text, bytes) {
                    prop_assert!(length > 0 && from.checked_add(length).is_some_and(|end| end <= bytes), "{}", text);
                }
            }
        }
    }

    #[test]
    fn a_range_lies_in_what_there_is() {
        for (text, bytes, found) in [
            ("bytes=0-9", 10, Some((0, 10))),
            ("bytes=3-", 10, Some((3, 7))),
            ("bytes=3-100", 10, Some((3, 7))),
            ("bytes=10-11", 10, None),
            ("bytes=0-0", 0, None),
            ("bytes=5-4", 10, None),
            ("bytes=-5", 10, None),
            ("bytes=0-1,3-4", 10, None),
            ("lines=0-1", 10, None),
        ] {
            assert_eq!(range(text, bytes), found, "{text}");
        }
    }
}
