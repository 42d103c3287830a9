//! Texts and bytes that cross between a C program and this library.

use std::ffi::{CStr, c_char};

use crate::error::{Code, Fault};

/// The text that a caller gave.
///
/// # Safety
/// `text` is NULL, or points to bytes that end in NUL and stay as they are while `'a` lasts.
pub(crate) unsafe fn text<'a>(text: *const c_char, what: &str) -> Result<&'a str, Fault> {
    if text.is_null() {
        return Err(Fault::null(what));
    }
    // SAFETY: as the caller says.
    let text = unsafe { CStr::from_ptr(text) };
    text.to_str().map_err(|_| Fault::new(Code::Argument, format_args!("{what} is not UTF-8")))
}

/// The bytes that a caller gave; no bytes may be anywhere.
///
/// # Safety
/// `length` is 0, or `bytes` is NULL or points to so many bytes that stay as they are while `'a` lasts.
pub(crate) unsafe fn bytes<'a>(bytes: *const u8, length: usize, what: &str) -> Result<&'a [u8], Fault> {
    match (length, bytes.is_null()) {
        (0, _) => Ok(&[]),
        (_, true) => Err(Fault::null(what)),
        // No object is larger, so this is a negative number that was converted.
        _ if isize::try_from(length).is_err() => {
            Err(Fault::new(Code::Argument, format_args!("{what} has {length} bytes")))
        }
        // SAFETY: as the caller says.
        _ => Ok(unsafe { std::slice::from_raw_parts(bytes, length) }),
    }
}

/// `agent_core_answer`: what a callback says, in as many parts as it likes.
#[derive(Debug, Default)]
pub(crate) struct Answer(pub(crate) Vec<u8>);

impl Answer {
    /// As a reason, for people.
    pub(crate) fn reason(&self) -> String {
        let text = String::from_utf8_lossy(&self.0);
        let text = text.trim();
        if text.is_empty() { "it gave no reason".to_owned() } else { text.to_owned() }
    }
}

/// `agent_core_answer_write` of the header.
///
/// # Safety
/// As the header says.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn agent_core_answer_write(
    to: Option<&mut Answer>,
    from: *const u8,
    length: usize,
) -> i32 {
    crate::error::coded(None, || {
        let to = to.ok_or_else(|| Fault::null("the answer"))?;
        // SAFETY: as the caller says.
        to.0.extend_from_slice(unsafe { bytes(from, length, "what is written") }?);
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_there_and_of_characters() {
        // SAFETY: literals end in NUL and stay.
        unsafe {
            assert_eq!(text(c"ab".as_ptr(), "x").unwrap(), "ab");
            assert_eq!(text(std::ptr::null(), "the name").unwrap_err().text, "the name is NULL");
            assert_eq!(text(c"\xff".as_ptr(), "the name").unwrap_err().text, "the name is not UTF-8");
            assert_eq!(bytes(std::ptr::null(), 0, "x").unwrap(), b"");
            assert!(bytes(std::ptr::null(), 1, "x").is_err());
            assert!(bytes(b"ab".as_ptr(), usize::MAX, "x").is_err());
        }
    }

    #[test]
    fn an_answer_is_written_in_parts() {
        let mut answer = Answer::default();
        assert_eq!(answer.reason(), "it gave no reason");
        // SAFETY: so many bytes are there.
        unsafe {
            assert_eq!(agent_core_answer_write(Some(&mut answer), b" no".as_ptr(), 3), 0);
            assert_eq!(agent_core_answer_write(Some(&mut answer), b"ne \n".as_ptr(), 4), 0);
            assert_eq!(agent_core_answer_write(None, b"x".as_ptr(), 1), Code::Argument as i32);
        }
        assert_eq!(answer.reason(), "none");
    }
}
