//! Names of drafts. What is to be there whole or not at all is written under another name first, which nobody else writes
//! under: no other process, and no other job of this one.

use std::sync::atomic::{AtomicU64, Ordering};

/// What a draft's name has behind that of the file.
pub(crate) fn mark() -> String {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    format!("{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed))
}
