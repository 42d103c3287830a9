//! Why a file system operation failed, and what the kernel is told.

use proto::message::Fault;

use crate::host::fetch::FetchError;

/// A file system operation failed. Each cause is given its errno where it is known, and keeps it on its way to the kernel.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FsError {
    /// No such entry or object.
    #[error("not found")]
    NotFound,
    /// A file where a directory is needed.
    #[error("not a directory")]
    NotADirectory,
    /// A directory where a file is needed.
    #[error("is a directory")]
    IsADirectory,
    /// Not a symlink, or something else that makes no sense for this kind of entry.
    #[error("invalid operation for this kind of entry")]
    Invalid,
    /// No such extended attribute.
    #[error("no such attribute")]
    NoAttribute,
    /// The bytes could not be had, see the message.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// The local disk failed.
    #[error("read: {0}")]
    Io(#[from] std::io::Error),
}

impl FsError {
    /// What the kernel is told.
    pub fn errno(&self) -> i32 {
        match self {
            FsError::NotFound => libc::ENOENT,
            FsError::NotADirectory => libc::ENOTDIR,
            FsError::IsADirectory => libc::EISDIR,
            FsError::Invalid => libc::EINVAL,
            FsError::NoAttribute => libc::ENODATA,
            FsError::Fetch(error) => error.errno(),
            FsError::Io(error) => error.raw_os_error().unwrap_or(libc::EIO),
        }
    }

    /// Whether the file system failed, and not the one who asked.
    pub fn is_failure(&self) -> bool {
        matches!(self, FsError::Fetch(_) | FsError::Io(_))
    }
}

impl From<FsError> for Fault {
    fn from(error: FsError) -> Self {
        match error {
            FsError::Fetch(error) => error.into(),
            other => Fault::Failed(other.to_string()),
        }
    }
}
