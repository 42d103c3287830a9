//! A body that comes in pieces, each with its length before it (RFC 9112, section 7.1).

use std::io::{self, BufRead, Read};

use super::http::HttpFault;

/// Characters of a line that says how long a piece is, and of all lines after the last piece.
const LINE_BYTES_MAX: u64 = 4 << 10;

/// Reads a body of at most so many bytes, to its end.
///
/// # Errors
/// It is longer, cut, or no such body.
pub(crate) fn read_chunks(from: &mut impl BufRead, at_most: u64) -> Result<Vec<u8>, HttpFault> {
    let mut body = Vec::new();
    loop {
        let line = line(from)?;
        // What follows a semicolon is an extension that nobody uses.
        let digits = line.split(';').next().unwrap_or_default().trim_end();
        let is_number = !digits.is_empty() && digits.len() <= 15 && digits.bytes().all(|b| b.is_ascii_hexdigit());
        let length = if is_number { u64::from_str_radix(digits, 16).ok() } else { None };
        let length = length.ok_or(HttpFault::Malformed)?;
        if length == 0 {
            break;
        }
        if body.len() as u64 + length > at_most {
            return Err(HttpFault::Length);
        }
        if from.by_ref().take(length).read_to_end(&mut body).map_err(HttpFault::Io)? as u64 != length {
            return Err(cut());
        }
        let mut end = [0; 2];
        from.read_exact(&mut end).map_err(HttpFault::Io)?;
        if end != *b"\r\n" {
            return Err(HttpFault::Malformed);
        }
    }
    // Fields that follow the body say nothing here.
    let mut left = LINE_BYTES_MAX;
    loop {
        let text = line(from)?;
        left = left.checked_sub(text.len() as u64 + 2).ok_or(HttpFault::TooLong)?;
        if text.is_empty() {
            return Ok(body);
        }
    }
}

fn line(from: &mut impl BufRead) -> Result<String, HttpFault> {
    let mut text = Vec::new();
    from.take(LINE_BYTES_MAX).read_until(b'\n', &mut text)?;
    match text.strip_suffix(b"\r\n") {
        Some(line) => String::from_utf8(line.to_vec()).map_err(|_| HttpFault::Malformed),
        None if text.len() as u64 == LINE_BYTES_MAX => Err(HttpFault::TooLong),
        None if text.ends_with(b"\n") => Err(HttpFault::Malformed),
        None => Err(cut()),
    }
}

fn cut() -> HttpFault {
    HttpFault::Io(io::ErrorKind::UnexpectedEof.into())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(mut text: &[u8], at_most: u64) -> Result<Vec<u8>, HttpFault> {
        read_chunks(&mut text, at_most)
    }

    #[test]
    fn pieces_become_one_body_and_what_follows_is_left() {
        let mut text = &b"4\r\nwiki\r\n5;x=y\r\npedia\r\n0\r\nA: b\r\n\r\nnext"[..];
        assert_eq!(read_chunks(&mut text, 9).unwrap(), b"wikipedia");
        assert_eq!(text, b"next");
        assert_eq!(read(b"0\r\n\r\n", 0).unwrap(), b"");
    }

    #[test]
    fn what_is_too_long_or_malformed_is_a_fault_and_what_is_cut_is_one_that_passes() {
        for text in [
            &b"A\r\n0123456789\r\n0\r\n\r\n"[..],
            b"ffffffffffffffffffffffff\r\nx",
            b"fffffffffffffff\r\nx",
            b"-1\r\nx\r\n",
            b"+1\r\nx\r\n",
            b" 1\r\nx\r\n",
            b"\r\n",
            b"x\r\n",
            b"1\nx\r\n",
            b"1\r\nxy\r\n0\r\n\r\n",
        ] {
            let fault = read(text, 9).unwrap_err();
            assert!(!matches!(fault, HttpFault::Io(_)), "{:?}", String::from_utf8_lossy(text));
        }
        let endless = [&b"0\r\n"[..], &b"A: b\r\n".repeat(10_000)].concat();
        assert!(matches!(read(&endless, 9), Err(HttpFault::TooLong)));
        assert!(matches!(read(&b"1".repeat(10_000), 9), Err(HttpFault::TooLong)));
    }

    proptest! {
        #[test]
        fn whatever_is_sent_in_pieces_comes_whole_and_cut_anywhere_it_does_not(
            pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..40), 0..8),
        ) {
            let mut text = Vec::new();
            for piece in &pieces {
                text.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
                text.extend_from_slice(piece);
                text.extend_from_slice(b"\r\n");
            }
            text.extend_from_slice(b"0\r\n\r\n");
            let body = pieces.concat();
            prop_assert_eq!(&read(&text, body.len() as u64).unwrap(), &body);
            for at in 0..text.len() {
                prop_assert!(read(&text[..at], body.len() as u64).is_err(), "cut at {}", at);
            }
        }

        #[test]
        fn any_bytes_are_a_body_within_its_bound_or_a_fault(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(body) = read(&bytes, 50) {
                prop_assert!(body.len() <= 50);
            }
        }
    }
}
