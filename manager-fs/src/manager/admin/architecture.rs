//! What is told of a version beside the tree that was published first.

use proto::message::Unix;
use proto::{GenerationRecord, TreeId};
use serde::{Deserialize, Serialize};

/// A version for one more architecture.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Architecture {
    /// Which, such as `aarch64`.
    pub architecture: String,
    /// Its tree.
    pub tree: TreeId,
    /// Bytes of all its files.
    pub content_bytes: u64,
    /// When it was published.
    pub published_unix_ms: Unix,
}

impl Architecture {
    pub(super) fn of(record: &GenerationRecord) -> Self {
        let metadata = &record.metadata;
        Self {
            architecture: metadata.architecture.clone().unwrap_or_default(),
            tree: record.tree,
            content_bytes: metadata.content_bytes,
            published_unix_ms: record.published_unix_ms,
        }
    }
}
