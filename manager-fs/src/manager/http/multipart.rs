//! Forms with a file in them (`multipart/form-data`, RFC 7578), read piece by piece: small fields, and then one file, which
//! is passed on as it comes.

use super::problem::Problem;

/// Bytes of a part's head, or of a field.
const SMALL_BYTES_MAX: usize = 4096;
/// Fields before the file.
const FIELDS_MAX: usize = 16;

/// Where a form is.
#[derive(Debug, PartialEq, Eq)]
enum At {
    /// Before its first part.
    Begin,
    /// Behind a boundary.
    Boundary,
    Head,
    Field(String),
    File,
    End,
}

/// A form that is being read.
#[derive(Debug)]
pub(super) struct Form {
    /// What ends each part: a line end, two hyphens, and the boundary.
    mark: Vec<u8>,
    waiting: Vec<u8>,
    at: At,
    fields: Vec<(String, String)>,
    has_file: bool,
}

impl Form {
    /// One that begins, by the type of its body.
    pub(super) fn new(content_type: &str) -> Result<Self, Problem> {
        let wrong = || Problem::bad_request("this takes a form with a file (multipart/form-data)");
        let rest = content_type.strip_prefix("multipart/form-data").ok_or_else(wrong)?;
        let boundary = rest.split(';').find_map(|part| part.trim().strip_prefix("boundary="));
        let boundary = boundary.map(|text| text.trim_matches('"')).filter(|text| (1..=70).contains(&text.len()));
        let mark = format!("\r\n--{}", boundary.ok_or_else(wrong)?).into_bytes();
        // So that the first boundary is like the others, which stand behind a line end.
        Ok(Self { mark, waiting: b"\r\n".to_vec(), at: At::Begin, fields: Vec::new(), has_file: false })
    }

    /// A field that has come.
    pub(super) fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(of, _)| of == name).map(|(_, value)| value.as_str())
    }

    /// Whether the file has begun.
    pub(super) fn has_file(&self) -> bool {
        self.has_file
    }

    /// Whether all of it has come.
    pub(super) fn is_whole(&self) -> bool {
        self.at == At::End
    }

    /// Takes the next bytes; what they bring of the file is added to `file`.
    pub(super) fn take(&mut self, bytes: &[u8], file: &mut Vec<u8>) -> Result<(), Problem> {
        if self.at == At::End {
            return Ok(());
        }
        self.waiting.extend_from_slice(bytes);
        while self.step(file)? {}
        Ok(())
    }

    /// Goes on, if what has come is enough for it.
    fn step(&mut self, file: &mut Vec<u8>) -> Result<bool, Problem> {
        let broken = |why: &str| Problem::bad_request(format!("the form is broken: {why}"));
        match &self.at {
            At::End => {
                self.waiting.clear();
                Ok(false)
            }
            At::Boundary => {
                if self.waiting.len() < 2 {
                    return Ok(false);
                }
                self.at = match &self.waiting[..2] {
                    b"--" => At::End,
                    b"\r\n" => At::Head,
                    _ => return Err(broken("something stands behind a boundary")),
                };
                self.waiting.drain(..2);
                Ok(true)
            }
            At::Head => match find(&self.waiting, b"\r\n\r\n") {
                Some(end) => {
                    let head = String::from_utf8_lossy(&self.waiting[..end]).into_owned();
                    self.waiting.drain(..end + 4);
                    self.at = self.part(&head)?;
                    Ok(true)
                }
                None if self.waiting.len() > SMALL_BYTES_MAX => Err(broken("a part's head is too long")),
                None => Ok(false),
            },
            At::Begin | At::Field(_) | At::File => self.content(file),
        }
    }

    /// What a part is, by its head.
    fn part(&mut self, head: &str) -> Result<At, Problem> {
        let broken = |why: &str| Problem::bad_request(format!("the form is broken: {why}"));
        let disposition = head.split("\r\n").find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("content-disposition").then(|| value.trim())
        });
        let disposition = disposition.ok_or_else(|| broken("a part does not say what it is"))?;
        let named = |name: &str| {
            let quoted = disposition.split(';').find_map(|part| part.trim().strip_prefix(name)?.strip_prefix('='))?;
            Some(quoted.trim_matches('"').to_owned())
        };
        if self.has_file {
            return Err(broken("something stands behind the file"));
        }
        if named("filename").is_some() {
            self.has_file = true;
            return Ok(At::File);
        }
        if self.fields.len() == FIELDS_MAX {
            return Err(broken("it has too many fields"));
        }
        named("name").map(At::Field).ok_or_else(|| broken("a field has no name"))
    }

    /// Bytes up to the next boundary.
    fn content(&mut self, file: &mut Vec<u8>) -> Result<bool, Problem> {
        let broken = |why: &str| Problem::bad_request(format!("the form is broken: {why}"));
        let Some(end) = find(&self.waiting, &self.mark) else {
            if self.at == At::File {
                // The beginning of a boundary may be at its end.
                let sure = self.waiting.len().saturating_sub(self.mark.len() - 1);
                file.extend(self.waiting.drain(..sure));
            } else if self.waiting.len() > SMALL_BYTES_MAX + self.mark.len() {
                return Err(broken("a field is too long"));
            }
            return Ok(false);
        };
        let content: Vec<u8> = self.waiting.drain(..end).collect();
        self.waiting.drain(..self.mark.len());
        match std::mem::replace(&mut self.at, At::Boundary) {
            At::File => file.extend(content),
            At::Field(name) => {
                let value = String::from_utf8(content).map_err(|_| broken("a field is no text"))?;
                self.fields.push((name, value));
            }
            _ if !content.is_empty() => return Err(broken("something stands before it")),
            _ => {}
        }
        Ok(true)
    }
}

fn find(within: &[u8], what: &[u8]) -> Option<usize> {
    within.windows(what.len()).position(|window| window == what)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TYPE: &str = "multipart/form-data; boundary=----x";

    fn form(file: &[u8]) -> Vec<u8> {
        let head = "------x\r\nContent-Disposition: form-data; name=\"product\"\r\n\r\nsample\r\n------x\r\n\
                    Content-Disposition: form-data; name=\"archive\"; filename=\"a.tar\"\r\nContent-Type: x/y\r\n\r\n";
        [head.as_bytes(), file, b"\r\n------x--\r\n"].concat()
    }

    fn read(bytes: &[u8], at_once: usize) -> Result<(Form, Vec<u8>), Problem> {
        let (mut form, mut file) = (Form::new(TYPE)?, Vec::new());
        bytes.chunks(at_once.max(1)).try_for_each(|piece| form.take(piece, &mut file))?;
        Ok((form, file))
    }

    #[test]
    fn a_file_with_what_looks_like_a_boundary_stays_whole() {
        for content in [&b""[..], b"\r\n------", b"\r\n-----x--", b"a\r\n------\r\n", b"\r\n\r\n"] {
            let (form, file) = read(&form(content), 3).unwrap();
            assert!(form.is_whole() && form.has_file());
            assert_eq!((form.field("product"), file.as_slice()), (Some("sample"), content));
        }
    }

    #[test]
    fn what_is_no_such_form_or_too_large_a_one_is_refused() {
        for wrong in ["application/json", "multipart/form-data", "multipart/form-data; boundary="] {
            assert!(Form::new(wrong).is_err(), "{wrong}");
        }
        let long = "x".repeat(10_000);
        let field = "------x\r\nContent-Disposition: form-data; name=\"a\"\r\n\r\n";
        for wrong in [
            format!("before\r\n{field}"),
            format!("------x{long}"),
            format!("------x\r\n{long}"),
            format!("{field}{long}"),
            String::from("------x\r\nContent-Type: x\r\n\r\n"),
            format!("{field}1\r\n").repeat(20),
            long,
        ] {
            assert_eq!(read(wrong.as_bytes(), 64).map(drop).map_err(|problem| problem.status), Err(400));
        }
        let cut = form(b"content");
        assert!(!read(&cut[..cut.len() - 6], 7).unwrap().0.is_whole());
        let two = [&form(b"one")[..form(b"one").len() - 4], &form(b"two")["------x".len()..]].concat();
        assert!(read(&two, 9).is_err(), "one file");
    }

    proptest! {
        #[test]
        fn in_whatever_pieces_it_comes_it_is_the_same(content in prop::collection::vec(any::<u8>(), 0..200), at in 1_usize..60) {
            let (form, file) = read(&form(&content), at).unwrap();
            prop_assert!(form.is_whole());
            prop_assert_eq!(file, content);
        }

        #[test]
        fn any_bytes_are_answered(bytes in prop::collection::vec(any::<u8>(), 0..300), at in 1_usize..60) {
            let _ = read(&[b"------x\r\n", bytes.as_slice()].concat(), at);
        }
    }
}
