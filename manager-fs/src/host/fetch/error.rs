//! Why bytes could not be had, and what a reader is told of it.

use std::sync::Arc;
use std::time::Duration;

use proto::message::Fault;

use super::UpstreamError;
use crate::host::cache::CacheError;

/// Why bytes could not be had.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum FetchError {
    /// The upstream's last answer within the deadline.
    #[error("{what}: {source}")]
    Upstream {
        /// What was wanted.
        what: String,
        /// The upstream's answer.
        source: UpstreamError,
    },
    /// Time is up.
    #[error("{what}: not there within {} ms", deadline.as_millis())]
    Deadline {
        /// What was wanted.
        what: String,
        /// How long was waited.
        deadline: Duration,
    },
    /// Every answer had a wrong hash.
    #[error("{what}: every answer had a wrong hash; nothing of it was used")]
    WrongHash {
        /// What was wanted.
        what: String,
    },
    /// The local disk failed.
    #[error("{0}")]
    Cache(Arc<CacheError>),
    /// The caller gave up.
    #[error("cancelled")]
    Cancelled,
}

impl From<CacheError> for FetchError {
    fn from(error: CacheError) -> Self {
        FetchError::Cache(Arc::new(error))
    }
}

impl FetchError {
    /// What a program is told whose read needed these bytes. `EIO` is what programs expect of a file system that cannot read;
    /// which of the causes it was stands in the daemon's log and in `status`.
    pub fn errno(&self) -> i32 {
        match self {
            // The cache's own disk: its reason is the reader's (ENOSPC never is: what cannot be kept is streamed).
            FetchError::Cache(error) => error.errno(),
            FetchError::Upstream { .. }
            | FetchError::Deadline { .. }
            | FetchError::WrongHash { .. }
            | FetchError::Cancelled => libc::EIO,
        }
    }
}

impl FetchError {
    /// Whether more time might have helped.
    pub(super) fn is_for_want_of_time(&self) -> bool {
        matches!(
            self,
            FetchError::Upstream { source: UpstreamError::Unavailable(_), .. } | FetchError::Deadline { .. }
        )
    }
}

impl From<Fault> for UpstreamError {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::NotExported(text) => UpstreamError::NotExported(text),
            Fault::Unavailable(text) => UpstreamError::Unavailable(text),
            other => UpstreamError::Failed(other.to_string()),
        }
    }
}

impl From<FetchError> for Fault {
    fn from(error: FetchError) -> Self {
        match &error {
            FetchError::Upstream { source: UpstreamError::NotExported(_), .. } => {
                Fault::NotExported(error.to_string())
            }
            FetchError::Upstream { source: UpstreamError::Unavailable(_), .. } | FetchError::Deadline { .. } => {
                Fault::Unavailable(error.to_string())
            }
            _ => Fault::Failed(error.to_string()),
        }
    }
}
