//! What a call comes back with when it cannot do what it should: a code for the program, and a text for people.

use std::any::Any;
use std::ffi::c_char;
use std::fmt;
use std::mem::MaybeUninit;
use std::panic::{AssertUnwindSafe, catch_unwind};

use agent_core::{AgentError, InheritedError};

/// Bytes of a text, with the NUL at its end.
pub(crate) const TEXT_BYTES: usize = 1020;

/// Kinds of faults, as a program may tell them apart: `enum agent_core_code` of the header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub(crate) enum Code {
    Argument = 1,
    NotLaunched = 2,
    WrongTime = 3,
    State = 4,
    Host = 5,
    Panicked = 6,
}

/// `agent_core_error`: the caller's own, so that nothing has to be freed.
#[repr(C)]
pub(crate) struct Error {
    code: i32,
    text: [c_char; TEXT_BYTES],
}

/// Where a caller wants a fault, if it does; what lies there is written before it is read.
pub(crate) type ErrorOut<'a> = Option<&'a mut MaybeUninit<Error>>;

/// Why a call cannot do what it should.
#[derive(Debug)]
pub(crate) struct Fault {
    pub(crate) code: Code,
    pub(crate) text: String,
}

impl Fault {
    pub(crate) fn new(code: Code, text: impl fmt::Display) -> Self {
        Self { code, text: text.to_string() }
    }

    pub(crate) fn null(what: &str) -> Self {
        Self::new(Code::Argument, format_args!("{what} is NULL"))
    }
}

impl From<std::io::Error> for Fault {
    fn from(error: std::io::Error) -> Self {
        Self::new(Code::Host, error)
    }
}

impl From<InheritedError> for Fault {
    fn from(error: InheritedError) -> Self {
        let code = if matches!(error, InheritedError::Name(_)) { Code::Argument } else { Code::Host };
        Self::new(code, error)
    }
}

impl From<AgentError> for Fault {
    fn from(error: AgentError) -> Self {
        let code = match error {
            AgentError::NotLaunched(_) | AgentError::NoJournal(_) => Code::NotLaunched,
            AgentError::StartedBefore => Code::WrongTime,
            AgentError::State(_) => Code::State,
            AgentError::Kind(_) => Code::Argument,
            _ => Code::Host,
        };
        Self::new(code, error)
    }
}

impl Error {
    fn of(code: i32, text: &str) -> Self {
        let mut error = Self { code, text: [0; TEXT_BYTES] };
        // A text that is cut ends between two characters; the last byte stays NUL.
        let end = text.floor_char_boundary(TEXT_BYTES - 1);
        for (to, byte) in error.text.iter_mut().zip(text[..end].bytes().filter(|byte| *byte != 0)) {
            *to = byte.cast_signed();
        }
        error
    }
}

/// Does what an entry of the library is for. Whatever comes of it, nothing unwinds into the program: a fault and a panic
/// are written to `error`, and `failed` is the answer.
pub(crate) fn entry<T>(error: ErrorOut<'_>, failed: T, work: impl FnOnce() -> Result<T, Fault>) -> T {
    let (value, code, text) = match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(value)) => (value, 0, String::new()),
        Ok(Err(fault)) => (failed, fault.code as i32, fault.text),
        Err(panic) => (failed, Code::Panicked as i32, format!("agent_core panicked: {}", text_of(&*panic))),
    };
    if let Some(error) = error {
        error.write(Error::of(code, &text));
    }
    value
}

/// As [`entry`], for those that answer with the code itself.
pub(crate) fn coded(error: ErrorOut<'_>, work: impl FnOnce() -> Result<(), Fault>) -> i32 {
    let mut code = Code::Panicked as i32;
    entry(error, (), || {
        let done = work();
        code = done.as_ref().err().map_or(0, |fault| fault.code as i32);
        done
    });
    code
}

fn text_of(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("(no text)")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::CStr;

    fn answered(work: impl FnOnce() -> Result<i32, Fault>) -> (i32, i32, String) {
        let mut error = MaybeUninit::uninit();
        let value = entry(Some(&mut error), -1, work);
        // SAFETY: every entry writes it.
        let error = unsafe { error.assume_init() };
        let bytes: Vec<u8> = error.text.iter().map(|byte| byte.cast_unsigned()).collect();
        (value, error.code, CStr::from_bytes_until_nul(&bytes).unwrap().to_str().unwrap().to_owned())
    }

    #[test]
    fn an_answer_a_fault_and_a_panic_are_told_apart() {
        assert_eq!(answered(|| Ok(7)), (7, 0, String::new()));
        assert_eq!(answered(|| Err(Fault::null("name"))), (-1, 1, "name is NULL".to_owned()));
        let (value, code, text) = answered(|| panic!("no {}", "luck"));
        assert_eq!((value, code, text.as_str()), (-1, 6, "agent_core panicked: no luck"));
        assert_eq!(coded(None, || panic!("nobody looks")), 6);
        assert_eq!(coded(None, || Err(Fault::new(Code::Host, "x"))), 5);
        assert_eq!(coded(None, || Ok(())), 0);
    }

    #[test]
    fn a_long_text_is_cut_between_two_characters_and_ends() {
        let (_, _, text) = answered(|| Err(Fault::new(Code::Host, "ä".repeat(TEXT_BYTES))));
        assert_eq!(text, "ä".repeat((TEXT_BYTES - 1) / 2));
        assert_eq!(answered(|| Err(Fault::new(Code::Host, "a\0b"))).2, "ab");
    }

    #[test]
    fn each_fault_of_the_library_has_the_code_that_the_header_says() {
        let code = |fault: Fault| fault.code;
        assert_eq!(code(AgentError::NotLaunched("X").into()), Code::NotLaunched);
        assert_eq!(code(AgentError::StartedBefore.into()), Code::WrongTime);
        assert_eq!(code(AgentError::State("no".into()).into()), Code::State);
        let source = std::io::Error::other("none left");
        assert_eq!(code(AgentError::Io { what: "x", source }.into()), Code::Host);
    }
}
