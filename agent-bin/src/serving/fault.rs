//! Why a file of a repository that is served is not given or taken.

use std::io;

use crate::engine::format::files::FileFault;

/// Locks that may lie in a repository; each operation has one, or two while it is refreshed.
pub(super) const LOCKS_MAX: usize = 2048;

/// A file of the repository cannot be given or taken.
#[derive(Debug, thiserror::Error)]
pub(super) enum ShelfFault {
    #[error("there is no such file")]
    NotThere,
    #[error("the content's SHA-256 is not the file's name")]
    NotItsName,
    #[error("the content ended early")]
    Cut,
    #[error("this lock was taken by somebody else")]
    NotYours,
    #[error(
        "there are {LOCKS_MAX} locks in the repository; the media agent's next job removes those that were left behind"
    )]
    TooManyLocks,
    #[error("a file has at most 256 MiB where the repository lies elsewhere")]
    TooLarge,
    /// The same may succeed later.
    #[error("{0}")]
    Busy(String),
    #[error("{0}")]
    Io(#[from] io::Error),
}

impl From<FileFault> for ShelfFault {
    fn from(fault: FileFault) -> Self {
        Self::Io(fault.source)
    }
}
