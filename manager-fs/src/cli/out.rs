//! Standard output. `println!` panics when nobody reads it any more (`manager-fs diff A B | head`) or its disk is full.

use std::fmt::Arguments;
use std::io::{ErrorKind, Write};
use std::sync::OnceLock;

/// What became of standard output, once a write has failed.
static FAILED: OnceLock<std::io::Error> = OnceLock::new();

/// Prints text. After a failure the rest is not printed; the command goes on, so that its exit code stays true.
pub(crate) fn print(text: Arguments<'_>) {
    if FAILED.get().is_none()
        && let Err(error) = std::io::stdout().write_fmt(text)
    {
        // Only the first failure is of interest.
        let _ = FAILED.set(error);
    }
}

/// Writes out what is buffered, and says whether everything could be printed. A reader that has had enough is no fault.
///
/// # Errors
/// Standard output could not be written for another reason.
pub(crate) fn finish() -> anyhow::Result<()> {
    if let Err(error) = std::io::stdout().flush() {
        let _ = FAILED.set(error);
    }
    match FAILED.get() {
        Some(error) if error.kind() != ErrorKind::BrokenPipe => {
            anyhow::bail!("cannot write to standard output: {error}")
        }
        _ => Ok(()),
    }
}

/// Prints a line to standard output, as [`print`] does.
macro_rules! say {
    ($($text:tt)*) => {
        $crate::cli::out::print(format_args!("{}\n", format_args!($($text)*)))
    };
}
pub(crate) use say;
